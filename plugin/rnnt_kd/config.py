"""What a preset (``egs/<corpus>/conf/<preset>.yaml``) may say, and the defaults.

Plain dataclasses: the file format, its checking and its error messages live in
``rnnt_kd.bin.options``.  A key that is not here is an error there.
"""

from dataclasses import dataclass, field
from typing import Any, Dict, List, Optional


@dataclass
class FeaturesConfig:
    """Stage 1.  80-bin log-mel filter banks, 25 ms windows every 10 ms, 16 kHz."""

    speed_perturb: List[float] = field(default_factory=lambda: [1.0])  # training cuts only


@dataclass
class TextConfig:
    """Stage 2."""

    vocab_size: int = 500  # BPE pieces, <blk> and <unk> included
    model_type: str = "bpe"  # sentencepiece: bpe, unigram, char


@dataclass
class ModelConfig:
    """One transducer.  ``size`` names a row of the encoder module's ``SIZES``."""

    encoder: str = "conformer"  # models/encoders/<encoder>.py
    size: str = "tiny"
    encoder_options: Dict[str, Any] = field(default_factory=dict)  # override single values of the row
    predictor: str = "stateless"  # models/predictors/<predictor>.py
    joiner: str = "tanh"  # models/joiners/<joiner>.py
    predictor_dim: int = 128
    joiner_dim: int = 128
    dropout: float = 0.1
    ctc_head: bool = True


@dataclass
class SpecAugmentConfig:
    num_frequency_masks: int = 2
    max_frequency_bins: int = 20
    num_time_masks: int = 2
    max_time_frames: int = 40
    max_time_fraction: float = 0.15  # of an utterance, all time masks together


@dataclass
class TrainingConfig:
    epochs: int = 30
    batch_seconds: float = 60.0  # audio a batch, padding included
    num_buckets: int = 10
    min_seconds: float = 0.1  # shorter or longer utterances are left out, counted and named
    max_seconds: float = 35.0
    precision: str = "32-true"  # Lightning Fabric's names
    optimizer: str = "adamw"  # a function of training/optimizers.py
    schedule: str = "cosine"  # of the learning rate, a function of training/learning_rates.py
    learning_rate: float = 2e-3  # peak
    warmup_steps: int = 200
    final_learning_rate_fraction: float = 0.02  # the schedule falls from the peak to this fraction of it
    weight_decay: float = 1e-2
    betas: List[float] = field(default_factory=lambda: [0.9, 0.98])
    gradient_clip: float = 5.0
    prune_range: int = 5
    lm_only_scale: float = 0.25
    am_only_scale: float = 0.0
    simple_loss_scale: float = 0.5
    pruned_loss_warmup_steps: int = 200  # pruned and distillation terms ramp 0.1 -> 1 while the ranges are poor
    ctc_loss_scale: float = 0.2
    rnnt_type: str = "regular"
    specaugment: Optional[SpecAugmentConfig] = field(default_factory=SpecAugmentConfig)
    validate_every_epochs: int = 1
    average_best: int = 5  # checkpoints, by validation loss
    checkpoint_every_steps: int = 200
    log_every_steps: int = 20
    max_nonfinite_batches: int = 5  # in a row


@dataclass
class KdConfig:
    variant: str = "collapsed"  # a function of losses/kd_variants.py
    weighting: str = "occupancy"  # a function of losses/kd_weightings.py
    scale: float = 1.0
    ranges: str = "teacher"  # whose lattice nodes: "teacher", from the cache of stage 4, or "student", teacher online
    temperature: float = 1.0
    ramp_steps: int = 0  # kd scale grows linearly from 0 over these steps
    shift: int = 0  # encoder frames (40 ms) that the teacher's lattice is moved later, for streaming students


@dataclass
class SparsityConfig:
    """Gradual magnitude sparsification (Zhu & Gupta 2017), fractions of the run's steps."""

    begin_fraction: float = 0.0
    end_fraction: float = 0.5  # masks are frozen after this
    update_every_steps: int = 10
    structure: str = "unstructured"  # or a block such as 16x1 (outputs x inputs), or 2:4: sparsity/structures.py
    scope: str = "per-layer"  # or "global"
    schedule: str = "cubic"  # shape of the ramp, a function of sparsity/schedules.py
    include: List[str] = field(
        default_factory=lambda: [
            r"encoder\..*(linear|pointwise|proj).*\.weight",
            r"predictor\..*proj.*\.weight",
            r"joiner\..*\.weight",
        ]
    )
    exclude: List[str] = field(default_factory=lambda: [r".*norm.*", r".*depthwise.*", r".*embedding.*", r".*bias.*"])


@dataclass
class DecodingConfig:
    search: str = "modified_beam_search"  # decoding/<search>.py
    beam: int = 4
    batch_seconds: float = 120.0


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

    name: str = "teacher"  # teacher, sparse60, sparse60_kd, small, small_kd ...
    role: str = "teacher"  # teacher, sparse_student, small_student, streaming_student
    seed: int = 1
    model: ModelConfig = field(default_factory=ModelConfig)
    training: TrainingConfig = field(default_factory=TrainingConfig)
    sparsity: Optional[SparsityConfig] = None
    target_sparsity: float = 0.0
    kd: Optional[KdConfig] = None
    vocab_size: int = 0
    blank_id: int = 0
    bpe_checksum: str = ""  # sha256 of bpe.model
    teacher_checksum: str = ""  # sha256 of the teacher's model.safetensors (sparse and streaming students, kd)
