"""What a run starts from: the resolved configuration, the models, the sparsifier."""

import dataclasses
from pathlib import Path
from typing import Any, Dict, Optional, Sequence, Tuple

import torch
from torch import Tensor, nn

from rnnt_kd import choices
from rnnt_kd.config import SystemConfig
from rnnt_kd.config_io import as_plain_dict
from rnnt_kd.data.source import open_source
from rnnt_kd.data.stored_frames import AGAIN
from rnnt_kd.errors import UserError
from rnnt_kd.losses.features import paired_layers
from rnnt_kd.models.interfaces import StreamingEncoder
from rnnt_kd.models.transducer import Transducer
from rnnt_kd.record import read_record, record_path
from rnnt_kd.sparsity import schedules
from rnnt_kd.sparsity.sparsifier import Sparsifier
from rnnt_kd.sparsity.structures import unit_kinds
from rnnt_kd.systems import store
from rnnt_kd.systems.store import refuse_decoding_only, weights_digest
from rnnt_kd.teachers.cache import TeacherCache, check_utterances
from rnnt_kd.teachers.carried import CarriedTeacher, StoredTeacher
from rnnt_kd.teachers.shards import digest_of_all
from rnnt_kd.text.tokenizer import Tokenizer
from rnnt_kd.training import learning_rates, optimizers
from rnnt_kd.training.batches import TrainingData, encoder_frames, heard_by_teacher
from rnnt_kd.training.progress import Say

STARTS_FROM_TEACHER = ("sparse_student", "streaming_student")  # roles


def check_names(config: SystemConfig) -> None:
    """UserError: an encoder, predictor, joiner, optimizer or schedule that does not exist."""
    for part in ("encoder", "predictor", "joiner"):
        choices.check(getattr(config.model, part), choices.names(f"rnnt_kd.models.{part}s"), f"model.{part}")
    choices.function(optimizers, config.training.optimizer, "training.optimizer")
    choices.function(learning_rates, config.training.schedule, "training.schedule")
    if config.sparsity is not None:
        choices.function(schedules, config.sparsity.schedule, "sparsity.schedule")


def resolve(
    config: SystemConfig, tokenizer: Tokenizer, teacher_dir: Optional[Path], cache: Optional[StoredTeacher] = None
) -> SystemConfig:
    """Fill in what the tokenizer and the teacher decide, after checking that they fit.

    Raises:
      UserError: a name that ``check_names`` does not know; or a teacher is needed and missing, or differs in BPE
        model, blank id or (for a sparse student) in the model; it says which.  A streaming student
        whose model has other shapes than the teacher's is none: it starts from scratch.
    """
    check_names(config)
    config = dataclasses.replace(
        config, vocab_size=tokenizer.vocab_size, blank_id=tokenizer.blank_id, bpe_checksum=tokenizer.checksum
    )
    starts_there = config.role in STARTS_FROM_TEACHER
    if not starts_there and config.kd is None:
        return config
    if teacher_dir is None and cache is not None and not starts_there:
        return dataclasses.replace(config, teacher_checksum=cache.facts.teacher)
    if teacher_dir is None:
        raise UserError(
            "--teacher-dir", f"missing, and {config.name} needs a teacher", "the folder of a trained system"
        )
    teacher = store.read_system(teacher_dir)
    refuse_decoding_only(teacher_dir)
    for key, what in (("bpe_checksum", "BPE model"), ("blank_id", "blank id"), ("vocab_size", "vocabulary size")):
        theirs, ours = getattr(teacher, key), getattr(config, key)
        if theirs != ours:
            raise UserError(
                teacher_dir,
                f"the {what} of teacher and student differ (teacher {_short(theirs)}, student {_short(ours)})",
                f"the same {what} in both",
                "train the teacher with this --bpe-dir, or give the --bpe-dir it was trained with",
            )
    if config.role == "sparse_student":
        theirs, ours = as_plain_dict(teacher.model), as_plain_dict(config.model)
        for key in ours:
            if key not in ("dropout", "label_dropout") and theirs.get(key) != ours[key]:
                raise UserError(
                    teacher_dir,
                    f"model.{key} is {theirs.get(key)}, and this preset's teacher has {ours[key]}",
                    "a teacher of this preset: a sparse student starts from its weights",
                    "train the teacher again",
                )
    if config.kd is not None and config.kd.features > 0:
        paired_layers(store.build_model(config), store.build_model(teacher), config.kd.feature_layers)
    if cache is None or starts_there:  # else nobody reads its weights
        store.load_system(teacher_dir)  # a damaged one is an error before anything is written
    return dataclasses.replace(config, teacher_checksum=weights_digest(teacher_dir))


def teacher_cache(
    config: SystemConfig, tokenizer: Tokenizer, kd_cache: Optional[Path], teachers: Sequence[Path], train_cuts: Path
) -> Optional[StoredTeacher]:
    """What ``config`` distils from, a cache or what the cuts carry; None where it distils from none.

    Raises:
      UserError: it is missing, not finished, or made with something else than this training has.
    """
    if config.kd is not None and config.kd.ranges != "teacher" and len(teachers) > 1:
        raise UserError(teachers[1], "a further teacher, and kd.ranges student", "one teacher, or kd.ranges teacher")
    if config.kd is None or config.kd.ranges != "teacher":
        return None
    expected = expected_facts(config, tokenizer, train_cuts)
    if config.kd.missing == "skip":
        del expected["cuts"]  # some are not in the cache, so it may be of others
    for teacher in teachers:
        store.read_system(teacher)
    if teachers:
        expected = {"teacher": digest_of_all(list(map(weights_digest, teachers))), **expected}
    if kd_cache is not None:
        return TeacherCache.open(kd_cache, expected, partial=config.kd.missing == "skip")
    carried = CarriedTeacher.of(open_source(train_cuts), expected)
    if carried is None:
        raise UserError(
            "--kd-cache",
            f"missing, {train_cuts} carry no teacher, and {config.name} learns from a cached one (kd.ranges teacher)",
            "the folder of stage 4",
            "or kd.ranges=student, with a teacher that runs online",
        )
    if config.kd.hears == "original":
        raise UserError(train_cuts, "carry a teacher of each cut", "a cache, for kd.hears original", AGAIN)
    return carried


def expected_facts(config: SystemConfig, tokenizer: Tokenizer, train_cuts: Path) -> Dict[str, Any]:
    """In what the ``CacheFacts`` of a teacher must agree with a student that distils from it."""
    assert config.kd is not None
    return {
        "bpe": tokenizer.checksum,
        "blank_id": tokenizer.blank_id,
        "prune_range": config.training.prune_range,
        "rnnt_type": config.training.rnnt_type,
        "temperature": config.kd.temperature,
        "cuts": open_source(train_cuts).digest,
    }


def input_digests(system_dir: Path, train_cuts: Path, dev_cuts: Path, cache: Optional[StoredTeacher]) -> Dict[str, str]:
    """What the system in a folder is trained on, for its record."""
    recorded = read_record(record_path(system_dir, store.TRAINING)).get("inputs", {})
    sources = {"train cuts": open_source(train_cuts), "dev cuts": open_source(dev_cuts)}
    digests = {name: source.content_as(recorded.get(name)) for name, source in sources.items()}
    name = "teacher cache"
    return digests if cache is None else {**digests, name: cache.content_as(recorded.get(name))}


def check_cache(cache: StoredTeacher, config: SystemConfig, data: TrainingData, say: Say) -> None:
    """Look for every utterance that ``config`` would train on; say how many are missing, where some may be.

    Raises:
      UserError: another subsampling, a missing utterance, or another number of encoder frames.
    """
    model = store.build_model(config)
    theirs, ours = cache.facts.subsampling, model.encoder.subsampling_factor
    if theirs != ours:
        problem = f"made with {theirs} feature frames an encoder frame, and {config.name} has {ours}"
        raise UserError(cache.folder, problem, "the same subsampling in both")
    data.select(model.encoder.output_lengths, model.ctc_output is not None)
    assert config.kd is not None
    source, places = data.selections["train"].source, data.selections["train"].places.tolist()
    frames = encoder_frames(source, places, model.encoder.output_lengths)
    heard = heard_by_teacher(config, source.ids(places))
    missing = check_utterances(
        cache.folder, heard, cache.frames(source, places, heard), frames, config.kd.missing, config.kd.align
    )
    if missing:
        share = f"{missing} of {len(places)} utterances ({100 * missing / len(places):.1f} %)"
        say(f"{config.name}: {share} have no teacher in {cache.folder} and are trained without distillation")


def models(
    config: SystemConfig, teacher_dir: Optional[Path], device: torch.device
) -> Tuple[Transducer, Optional[Transducer]]:
    """The model to train, on the CPU still, and the teacher that runs online on ``device`` (or None)."""
    model = store.build_model(config)
    is_online = config.kd is not None and config.kd.runs_teacher
    if teacher_dir is None:
        assert not is_online and config.role not in STARTS_FROM_TEACHER, "resolve() asks for a teacher"
        return model, None
    path = teacher_dir / store.FINAL
    if config.role == "sparse_student":
        store.load_weights(model, store.read_weights(teacher_dir), path, "train the teacher again")
    elif config.role == "streaming_student":
        weights = store.read_weights(teacher_dir)
        _start_streaming(model, weights, store.read_system(teacher_dir).model.encoder != config.model.encoder)
    if not is_online:
        return model, None
    teacher, _ = store.load_system(teacher_dir, str(device))
    return model, teacher.requires_grad_(False)


def sparsifier(config: SystemConfig, model: nn.Module, steps_per_epoch: int) -> Optional[Sparsifier]:
    """The sparsifier of a sparse student.

    Its ramp ends early enough that the weights of at least the last epoch have frozen masks.
    """
    options = config.sparsity
    if options is None or options.target == 0.0:
        return None
    steps = steps_per_epoch * config.training.epochs
    if set(unit_kinds(options.structure)) - {"joiner", "predictor"} and not hasattr(model.encoder, "options_of"):
        problem = f"{options.structure}, and of the encoder {config.model.encoder} no unit can be cut out"
        raise UserError("sparsity.structure", problem, "conformer or streaming_conformer", "or joiner+predictor")
    has_units = bool(unit_kinds(options.structure))
    initial = options.initial if options.initial is not None else 0.0 if has_units else 0.75
    last_end = steps - steps_per_epoch if config.training.epochs > 1 else steps // 2
    end_step = max(1, min(int(options.end_fraction * steps), last_end))
    return Sparsifier(
        model,
        final_sparsity=options.target,
        begin_step=min(int(options.begin_fraction * steps), end_step),
        end_step=end_step,
        update_every_steps=options.update_every_steps,
        structure=options.structure,
        scope=options.scope or ("per-layer" if has_units else "global"),
        include=options.include,
        exclude=options.exclude,
        schedule=options.schedule,
        score=options.score,
        initial_sparsity=initial * options.target,
        nested=options.nested,
    )


def _start_streaming(model: Transducer, weights: Dict[str, Tensor], full_context: bool) -> None:
    """Take a teacher's ``weights`` if every one has its place in ``model``; else leave it as it is."""
    own = {name: tensor.shape for name, tensor in model.state_dict().items()}
    if own == {name: tensor.shape for name, tensor in weights.items()}:
        if full_context:
            assert isinstance(model.encoder, StreamingEncoder)
            weights = model.encoder.weights_from_full_context(weights)
        model.load_state_dict(weights)


def _short(value: object) -> str:
    return str(value)[:12]
