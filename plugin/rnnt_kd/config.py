"""What a preset (``egs/<corpus>/conf/<preset>.yaml``) may say: names, types, ranges and defaults.

A value out of its range, of another type, or under another name cannot be made.  Files become these objects in
``rnnt_kd.config_io``, which says what is wrong in one line.
"""

from dataclasses import field
from typing import TYPE_CHECKING, Annotated, Any, Dict, List, Literal, Optional, get_args

from pydantic import ConfigDict, Field, Strict, model_validator
from pydantic.dataclasses import dataclass as pydantic_dataclass

from rnnt_kd import choices
from rnnt_kd.errors import UserError
from rnnt_kd.losses.choices import WEIGHTING, available_variants, available_weightings, get_variant, needs_logits
from rnnt_kd.sparsity.structures import check_structure, unit_kinds

Role = Literal["teacher", "sparse_student", "small_student", "streaming_student"]
ROLES = get_args(Role)  # parts of a preset
RNNT_TYPES = ("regular", "modified", "constrained")

Whole = Annotated[int, Strict()]
Number = Annotated[float, Strict(), Field(allow_inf_nan=False)]
Flag = Annotated[bool, Strict()]
Count = Annotated[Whole, Field(ge=1)]
Steps = Annotated[Whole, Field(ge=0)]
Positive = Annotated[Number, Field(gt=0)]
Scale = Annotated[Number, Field(ge=0)]
Fraction = Annotated[Number, Field(ge=0, le=1)]

if TYPE_CHECKING:
    from dataclasses import dataclass
else:
    dataclass = pydantic_dataclass(config=ConfigDict(extra="forbid", validate_default=True))


def _check_snr(where: str, snr_db: List[float]) -> None:
    if snr_db[0] > snr_db[1]:
        raise UserError(where, f"{snr_db[0]} > {snr_db[1]}", "the lowest, then the highest")


@dataclass
class FeaturesConfig:
    """Stage 1.  80-bin log-mel filter banks, 25 ms windows every 10 ms, 16 kHz."""

    speed_perturb: List[Positive] = field(default_factory=lambda: [1.0])  # training cuts only
    far_copies: Steps = 0  # of each training cut, across a room and in noise: data/far.py
    far_sets: Flag = False  # beside each test set and dev, a far one: test_far
    snr_db: Annotated[List[Number], Field(min_length=2, max_length=2)] = field(default_factory=lambda: [2.0, 15.0])
    noise_dir: Optional[str] = None  # Kaldi data directory or tree of audio; null: pink noise, and babble
    rir_dir: Optional[str] = None  # the same, of room responses; null: they are drawn
    unlabelled_dir: Optional[str] = None  # Kaldi data directory without text: students learn its teacher's words, too

    @model_validator(mode="after")
    def _used(self):
        if self.unlabelled_dir is not None and 1.0 not in self.speed_perturb:
            problem = f"{self.speed_perturb}, and the teacher hears unlabelled audio at its own speed"
            raise UserError("features.speed_perturb", problem, "1.0 among them")
        given = next((name for name in ("noise_dir", "rir_dir") if getattr(self, name) is not None), None)
        if given and not (self.far_copies or self.far_sets):
            problem = "given, and nothing is heard there"
            raise UserError(f"features.{given}", problem, "far_copies: 1, far_sets: true", "--preset far has both")
        _check_snr("features.snr_db", self.snr_db)
        return self


@dataclass
class TextConfig:
    """Stage 2."""

    vocab_size: Count = 500  # BPE pieces, <blk> and <unk> included
    model_type: Literal["bpe", "unigram", "char"] = "bpe"  # of sentencepiece
    shrink_to_fit: Flag = False  # fewer pieces where the text has no use for so many
    enlarge_to_fit: Flag = True  # more pieces where the characters of the text need them
    byte_fallback: Flag = False  # rare and unknown characters in bytes, of 256 more pieces
    normalization: Literal["nfc", "none"] = "nfc"  # of every text: text/normalization.py
    keep_events: Flag = True  # a piece of its own for <unk>, [noise] and the like
    score_events: Flag = True  # they count as words


@dataclass
class ModelConfig:
    """One transducer.  ``size`` names a row of the encoder module's ``SIZES``."""

    encoder: str = "conformer"  # models/encoders/<encoder>.py
    size: str = "tiny"
    encoder_options: Dict[str, Any] = field(default_factory=dict)  # override single values of the row
    predictor: str = "stateless"  # models/predictors/<predictor>.py
    joiner: str = "tanh"  # models/joiners/<joiner>.py
    predictor_dim: Count = 128
    joiner_dim: Count = 128
    dropout: Fraction = 0.1
    label_dropout: Fraction = 0.0  # share of the labels that the predictor does not see in training
    ctc_head: Flag = True


@dataclass
class SpecAugmentConfig:
    num_frequency_masks: Steps = 2
    max_frequency_bins: Steps = 20
    num_time_masks: Steps = 2
    max_time_frames: Steps = 40
    max_time_fraction: Fraction = 0.15  # of an utterance, all time masks together


@dataclass
class BabbleConfig:
    """Other utterances of the batch behind some of it: data/babble.py."""

    share: Fraction = 0.5  # of the utterances
    snr_db: Annotated[List[Number], Field(min_length=2, max_length=2)] = field(default_factory=lambda: [10.0, 20.0])
    talkers: Count = 3

    @model_validator(mode="after")
    def _in_order(self):
        _check_snr("babble.snr_db", self.snr_db)
        return self


@dataclass
class ConsistencyConfig:
    """Of every utterance a batch holds two augmented views, and each is to say what the other says: no teacher."""

    lattice: Scale = 0.2  # of their divergence on the nodes of one pruned lattice, kd.variant collapsed
    ctc: Scale = 0.2  # of their CTC posteriors, frame by frame (CR-CTC, arXiv 2410.05101)
    weighting: str = "occupancy"  # of the nodes: losses/kd_weightings.py, the other view is the teacher
    ramp_steps: Steps = 0  # both grow linearly from 0 over these steps

    @model_validator(mode="after")
    def _can_be(self):
        choices.check(self.weighting, available_weightings(), "consistency.weighting")
        if self.lattice == self.ctc == 0.0:
            raise UserError("consistency", "lattice 0 and ctc 0", "one of them above 0", "or consistency: null")
        return self


@dataclass
class TrainingConfig:
    epochs: Count = 30
    batch_seconds: Positive = 60.0  # audio a batch, padding included
    num_buckets: Count = 10
    num_workers: Steps = 0  # processes that make batches ready; results do not depend on it
    min_seconds: Scale = 0.1  # shorter or longer utterances are left out, counted and named
    max_seconds: Positive = 35.0
    precision: Literal["32-true", "bf16-mixed", "16-mixed"] = "32-true"  # Lightning Fabric's names
    optimizer: str = "adamw"  # a function of training/optimizers.py
    schedule: str = "cosine"  # of the learning rate, a function of training/learning_rates.py
    learning_rate: Positive = 2e-3  # peak
    warmup_steps: Steps = 200
    final_learning_rate_fraction: Fraction = 0.02  # the schedule falls from the peak to this fraction of it
    weight_decay: Scale = 1e-2
    betas: Annotated[List[Annotated[Number, Field(ge=0, lt=1)]], Field(min_length=2, max_length=2)] = field(
        default_factory=lambda: [0.9, 0.98]
    )
    gradient_clip: Positive = 5.0
    prune_range: Annotated[Whole, Field(ge=2)] = 5
    lm_only_scale: Fraction = 0.25
    am_only_scale: Fraction = 0.0
    simple_loss_scale: Scale = 0.5
    pruned_loss_warmup_steps: Steps = 200  # pruned and distillation terms ramp 0.1 -> 1 while the ranges are poor
    ctc_loss_scale: Scale = 0.2
    rnnt_type: Literal["regular", "modified", "constrained"] = "regular"
    loss_memory_mb: Optional[Scale] = None  # of logits kept for the backward pass: JoinerParts.memory
    delay_penalty: Scale = 0.0  # k2's, of the simple and the pruned loss: larger makes symbols come earlier
    specaugment: Optional[SpecAugmentConfig] = field(default_factory=SpecAugmentConfig)
    babble: Optional[BabbleConfig] = None  # before SpecAugment; see kd.hears
    alignment_entropy: Scale = 0.0  # of a term that makes the model decide on one alignment: losses/terms.py
    consistency: Optional[ConsistencyConfig] = None  # batch_seconds counts both views
    weight_bits: Optional[Literal[4, 8]] = None  # learn with weights rounded to so many bits: sparsity/rounding.py
    validate_every_epochs: Count = 1
    unlabelled: Flag = True  # a student: also learn from features.unlabelled_dir, where there is one
    averaging: Literal["best", "ema"] = "best"  # of checkpoints, or a moving average of the weights of every step
    average_best: Count = 5  # best: of how many checkpoints at most, by validation loss
    ema_decay: Annotated[Number, Field(ge=0, lt=1)] = 0.999  # ema: of the average in each step
    checkpoint_every_steps: Count = 200
    log_every_steps: Count = 20
    max_nonfinite_batches: Count = 5  # in a row

    @model_validator(mode="after")
    def _in_order(self):
        if self.min_seconds > self.max_seconds:
            problem = f"{self.min_seconds} > {self.max_seconds} (max_seconds)"
            raise UserError("training.min_seconds", problem, "min_seconds <= max_seconds")
        if self.consistency is not None and self.consistency.ctc > 0 and self.ctc_loss_scale == 0.0:
            problem = f"{self.consistency.ctc}, and ctc_loss_scale is 0"
            raise UserError("training.consistency.ctc", problem, "a CTC loss as well, or ctc: 0.0")
        return self

    @property
    def views(self) -> int:
        """Of each utterance of a training batch."""
        return 1 if self.consistency is None else 2


@dataclass
class KdConfig:
    variant: str = "collapsed"  # a function of losses/kd_variants.py
    weighting: str = WEIGHTING  # a function of losses/kd_weightings.py
    scale: Scale = 1.0
    label_scale: Scale = 1.0  # of the pruned RNN-T loss beside it; 0: of this lattice the teacher alone is learned
    # what a teacher hears: the same audio, of a far copy the clean original, or the very batch, SpecAugment and all
    hears: Literal["student", "original", "same-view"] = "student"
    ranges: Literal["teacher", "student"] = "teacher"  # whose lattice nodes; student: the teacher runs online
    temperature: Positive = 1.0
    ramp_steps: Steps = 0  # kd scale grows linearly from 0 over these steps
    shift: Steps = 0  # encoder frames (40 ms) that the teacher's lattice is moved later, for streaming students
    align: Literal["strict", "crop-pad"] = "strict"  # encoder frames of teacher and student: teachers/views.py
    class_scales: Optional[Annotated[List[Scale], Field(min_length=3, max_length=3)]] = None  # of blank, label, rest
    features: Scale = 0.0  # of the term by which encoder layers imitate the teacher's: losses/features.py
    feature_layers: Annotated[List[str], Field(min_length=1)] = field(  # patterns of modules of teacher and student
        default_factory=lambda: [r"encoder\.layers\.\d+"]
    )
    missing: Literal["error", "skip"] = (
        "error"  # utterances that the cache does not have; skip: trained without this term
    )
    in_place: Flag = (
        False  # of a family (sparsity.nested): sparser members learn from the densest, which has no teacher
    )

    @model_validator(mode="after")
    def _can_be(self):
        choices.check(self.variant, available_variants(), "kd.variant")
        choices.check(self.weighting, available_weightings(), "kd.weighting")
        if self.ranges == "teacher" and needs_logits(get_variant(self.variant)):
            problem = f"{self.variant} compares whole logits, and with kd.ranges teacher there are cached posteriors"
            raise UserError("kd.variant", problem, "collapsed, or kd.ranges student", "set kd.ranges to student")
        if self.features > 0 and (self.hears != "same-view" or self.ranges == "teacher"):
            problem = f"with kd.hears {self.hears}, kd.ranges {self.ranges}: layers are compared of one batch"
            both = "kd.ranges student and kd.hears same-view"
            raise UserError("kd.features", problem, both, "set both")
        if self.features > 0 and self.align != "strict":
            problem = f"with kd.align {self.align}: layers are compared frame by frame"
            raise UserError("kd.features", problem, "kd.align strict")
        if self.scale == self.label_scale == self.features == 0.0:
            raise UserError("kd", "scale, label_scale and features are 0", "one of them above 0", "or kd: null")
        if self.in_place and ((self.ranges, self.hears) != ("student", "same-view") or self.features > 0 or self.shift):
            problem = (
                f"with kd.ranges {self.ranges}, hears {self.hears}, features {self.features:g}, shift {self.shift}"
            )
            expected = "ranges student, hears same-view, and neither of the others: members of one model hear one batch"
            raise UserError("kd.in_place", problem, expected)
        if self.label_scale != 1.0 and (self.missing == "skip" or self.in_place):
            problem = f"{self.label_scale:g} with kd.{'in_place' if self.in_place else 'missing skip'}"
            problem += ": what has no teacher, an utterance or the densest member, has its labels alone"
            raise UserError("kd.label_scale", problem, "1, or kd.missing error and no kd.in_place")
        if self.hears == "same-view" and self.ranges == "teacher":
            problem = "same-view, and with kd.ranges teacher there are cached posteriors, of clean features"
            raise UserError("kd.hears", problem, "kd.ranges student", "set kd.ranges to student")
        return self

    @property
    def runs_teacher(self) -> bool:
        """In each step: another system, neither a cache of it nor a member of the student's own family."""
        return self.ranges == "student" and not self.in_place


@dataclass
class SparsityConfig:
    """Gradual magnitude sparsification (Zhu & Gupta 2017), fractions of the run's steps."""

    target: Annotated[Number, Field(ge=0, lt=1)] = 0.0  # share of the weights that are zero in the end
    initial: Optional[Fraction] = (
        None  # share of the target that goes at once, with the first masks; null: 0.75, of units 0
    )
    nested: List[Fraction] = field(default_factory=list)  # lower ones, trained with it in the same weights: a family
    begin_fraction: Fraction = 0.0
    end_fraction: Fraction = 0.5  # masks are frozen after this
    update_every_steps: Count = 10
    # or a block such as 16x1 (outputs x inputs), 2:4, or units that are cut out, heads+ffn: sparsity/structures.py
    structure: str = "unstructured"
    score: Literal["magnitude", "taylor"] = "magnitude"  # of units: sparsity/units.py
    # who competes: all weights, or those of a matrix; null: global, of units per-layer
    scope: Optional[Literal["global", "per-layer"]] = None
    schedule: str = "cubic"  # shape of the ramp, a function of sparsity/schedules.py
    include: List[str] = field(  # and exclude: not of units, which say their weights themselves
        default_factory=lambda: [
            r"encoder\..*(linear|pointwise|proj).*\.weight",
            r"predictor\..*proj.*\.weight",
            r"joiner\..*\.weight",
        ]
    )
    exclude: List[str] = field(default_factory=lambda: [r".*norm.*", r".*depthwise.*", r".*embedding.*", r".*bias.*"])

    @model_validator(mode="after")
    def _can_be(self):
        if self.begin_fraction > self.end_fraction:
            problem = f"{self.begin_fraction} > {self.end_fraction} (end_fraction)"
            raise UserError("sparsity.begin_fraction", problem, "begin_fraction <= end_fraction")
        check_structure(self.structure, final_sparsity=self.target, nested=self.nested if self.target else [])
        if self.score != "magnitude" and not unit_kinds(self.structure):
            problem = f"{self.score} with sparsity.structure {self.structure}: it is a score of units"
            raise UserError("sparsity.score", problem, "magnitude, or a structure of units such as heads+ffn")
        return self


@dataclass
class DecodingConfig:
    search: str = "modified_beam_search"  # decoding/<search>.py
    beam: Count = 4
    batch_seconds: Positive = 120.0


@dataclass
class TeacherConfig:
    model: ModelConfig = field(default_factory=ModelConfig)
    training: TrainingConfig = field(default_factory=TrainingConfig)


@dataclass
class SparseStudentConfig:
    """Starts from the teacher's weights, so it needs few epochs."""

    training: TrainingConfig = field(default_factory=TrainingConfig)
    sparsity: SparsityConfig = field(default_factory=SparsityConfig)


@dataclass
class SmallStudentConfig:
    """Dense, about as many parameters as the sparsest student has non-zeros; trained from scratch."""

    model: ModelConfig = field(default_factory=ModelConfig)
    training: TrainingConfig = field(default_factory=TrainingConfig)


@dataclass
class StreamingStudentConfig:
    """Recognises while it listens; starts from the teacher's weights where its model has the same shapes."""

    model: ModelConfig = field(default_factory=lambda: ModelConfig(encoder="streaming_conformer"))
    training: TrainingConfig = field(default_factory=TrainingConfig)


@dataclass
class RecipeConfig:
    """A whole preset."""

    features: FeaturesConfig = field(default_factory=FeaturesConfig)
    text: TextConfig = field(default_factory=TextConfig)
    teacher: TeacherConfig = field(default_factory=TeacherConfig)
    sparse_student: SparseStudentConfig = field(default_factory=SparseStudentConfig)
    small_student: SmallStudentConfig = field(default_factory=SmallStudentConfig)
    streaming_student: Optional[StreamingStudentConfig] = None
    kd: KdConfig = field(default_factory=KdConfig)
    decoding: DecodingConfig = field(default_factory=DecodingConfig)


@dataclass
class SystemConfig:
    """One system to train, resolved: what ``<system dir>/config.yaml`` holds."""

    name: str = "teacher"
    role: Role = "teacher"
    seed: Steps = 1
    model: ModelConfig = field(default_factory=ModelConfig)
    training: TrainingConfig = field(default_factory=TrainingConfig)
    sparsity: Optional[SparsityConfig] = None
    kd: Optional[KdConfig] = None
    vocab_size: Steps = 0
    blank_id: Steps = 0
    bpe_checksum: str = ""  # sha256 of bpe.model
    teacher_checksum: str = ""  # sha256 of the teacher's model.safetensors (sparse and streaming students, kd)

    @property
    def zeros(self) -> float:
        """Share of the weights that is to be zero; of a family, in its densest member."""
        return 0.0 if self.sparsity is None else min([*self.sparsity.nested, self.sparsity.target])

    @model_validator(mode="after")
    def _can_be(self):
        if not self.model.ctc_head and self.training.consistency is not None and self.training.consistency.ctc > 0:
            problem = f"{self.training.consistency.ctc}, and model.ctc_head is false"
            raise UserError("training.consistency.ctc", problem, "a CTC head as well, or ctc: 0.0")
        return self
