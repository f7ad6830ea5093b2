"""ESPnet2's transducer tasks with ``--kd_conf``: the models of ``models.py``, their teacher and their cache.

Keys of ``kd_conf``, all optional; without teacher and cache there is our loss alone:

teacher_model    a trained model of either task, to run online
teacher_config   its config.yaml, where that is not beside it
cache            folder that ``python -m rnnt_kd.espnet cache`` filled, looked up by utterance id; ESPnet2 only
scale, variant, weighting, temperature, class_scales, shift, align, missing   as in ``config.KdConfig``
alignment_entropy   scale of the term that makes the model decide on one alignment (``losses.terms``), also alone
backend          of the lattice
pruned           of the hybrid task, which has no ``k2_pruned_loss_args``: their keys, and ``warmup_steps``
"""

import hashlib
import importlib.util
import logging
import sys
from dataclasses import fields
from pathlib import Path
from types import ModuleType
from typing import Any, Dict, Optional, Sequence, Tuple

import torch
import yaml
from espnet2.asr_transducer.espnet_transducer_model import ESPnetASRTransducerModel
from espnet2.tasks.abs_task import AbsTask
from espnet2.tasks.asr import ASRTask
from espnet2.tasks.asr_transducer import ASRTransducerTask
from espnet2.torch_utils.safe_torch_load import safe_torch_load
from espnet2.utils.nested_dict_action import NestedDictAction

from rnnt_kd import choices
from rnnt_kd.errors import UserError
from rnnt_kd.espnet.models import EspnetTransducer, Kd, KdASRModel, KdTransducerModel, Pruning
from rnnt_kd.lattice import get_backend
from rnnt_kd.losses import Distillation
from rnnt_kd.losses.choices import WEIGHTING
from rnnt_kd.teachers.same import check_same
from rnnt_kd.teachers.views import OnlineTeacher

DEFAULTS: Dict[str, Any] = {
    "teacher_model": None, "teacher_config": None, "cache": None, "scale": 1.0, "variant": "collapsed",
    "weighting": WEIGHTING, "temperature": 1.0, "class_scales": None, "shift": 0, "align": "strict",
    "missing": "error", "alignment_entropy": 0.0, "backend": "auto", "pruned": None,
}  # fmt: skip
SOURCES = ("teacher_model", "cache")
OF_A_TEACHER = ("scale", "variant", "weighting", "temperature", "class_scales", "shift", "align", "missing")


class Distil(AbsTask):
    """What both tasks share."""

    @classmethod
    def add_task_arguments(cls, parser):
        super().add_task_arguments(parser)
        help = f"distillation: {' '.join(DEFAULTS)}; see docs/espnet.md of rnnt-kd"
        parser.add_argument("--kd_conf", action=NestedDictAction, default={}, help=help)

    @classmethod
    def main_worker(cls, args):
        """In every process; what the user can put right is one line and exit status 1."""
        try:
            super().main_worker(args)
        except UserError as error:
            raise SystemExit(f"error: {error}") from None

    @classmethod
    def build_model(cls, args):
        """ESPnet's model, made ours.

        Raises:
          UserError: keys and values of ``kd_conf``, or a teacher or cache that does not fit to this model.
        """
        conf = read_conf(getattr(args, "kd_conf", None))
        provide_warp_transducer()
        model = super().build_model(args)
        if (why := cls.why_not(model)) and not getattr(args, "kd_conf", None):
            return model  # of asr.sh, that trains with attention
        if why:
            raise UserError(*why)
        model.__class__ = cls.model_class
        model.pruning = cls.pruning_of(model, conf["pruned"])
        source = next((key for key in SOURCES if conf[key]), None)
        online = cache = None
        options = Distillation(*(conf[key] for key in ("variant", "weighting", "temperature", "class_scales", "shift")))
        for key in OF_A_TEACHER:
            needed = SOURCES[1:] if key == "missing" else SOURCES
            if source not in needed and conf[key] != DEFAULTS[key]:
                raise UserError(f"kd_conf.{key}", f"does nothing without {' or '.join(needed)}", "both, or neither")
        if getattr(args, "collect_stats", False):
            pass  # nothing is trained, by some tens of processes
        elif source == "teacher_model":
            online = OnlineTeacher(
                load_teacher(conf["teacher_model"], conf["teacher_config"], model)[0], conf["shift"], conf["align"]
            )
        elif source == "cache":
            cache = open_cache(conf, args, model)
        if source and getattr(getattr(model, "specaug", None), "apply_time_warp", False):
            logging.warning(
                "rnnt_kd: the model's SpecAugment warps time, by frames that the teacher does not know of; "
                "set specaug_conf: apply_time_warp: false"
            )
        settings = {key: conf[key] for key in ("scale", "align", "missing", "alignment_entropy", "backend")}
        model.kd = Kd(options=options, online=online, cache=cache, **settings)
        what = {
            None: "no teacher",
            "teacher_model": f"teacher {conf['teacher_model']}",
            "cache": f"cache {conf['cache']}",
        }
        logging.info(f"rnnt_kd: {what[source]}; {conf}")
        return model


class KdTransducerTask(Distil, ASRTransducerTask):
    """``asr_transducer``; ``use_k2_pruned_loss`` says whether the lattice is pruned, k2 is not needed."""

    model_class = KdTransducerModel

    @staticmethod
    def why_not(model) -> Optional[Tuple[str, ...]]:
        if model.fastemit_lambda > 0.0:
            return "model_conf.fastemit_lambda", str(model.fastemit_lambda), "0: this loss has no FastEmit"
        return None

    @staticmethod
    def pruning_of(model, pruned) -> Optional[Pruning]:
        if pruned is not None:
            problem = "this task has it in model_conf: use_k2_pruned_loss and k2_pruned_loss_args"
            raise UserError("kd_conf.pruned", problem, "", "write it there")
        where = "model_conf.k2_pruned_loss_args"
        return read_pruning(model.k2_pruned_loss_args, where) if model.use_k2_pruned_loss else None


class KdASRTask(Distil, ASRTask):
    """``asr``, any encoder, with ``decoder: transducer``: the full lattice, or pruned by heads that the model is given.

    These are two more layers in the weights, which ESPnet's inference passes over.
    """

    model_class = KdASRModel

    @staticmethod
    def why_not(model) -> Optional[Tuple[str, ...]]:
        if getattr(model, "use_transducer_decoder", False) and not hasattr(model, "transducer_multi_blank_durations"):
            return None
        return "decoder", "no transducer, or one with transducer_multi_blank_durations", "decoder: transducer"

    @staticmethod
    def pruning_of(model, pruned) -> Optional[Pruning]:
        if pruned is None:
            return None
        where, pruned = "kd_conf.pruned", dict(pruned)
        model.warmup_steps, model.steps_num = _number(pruned.pop("warmup_steps", 25000), f"{where}.warmup_steps"), -1
        add_heads(model)
        return read_pruning(pruned, where)


def read_conf(conf: Optional[Dict[str, Any]]) -> Dict[str, Any]:
    """``kd_conf`` with its defaults.  Raises UserError: an unknown key, or a value that cannot be."""
    conf = dict(conf or {})
    for key in conf:
        choices.check(key, list(DEFAULTS), "kd_conf")
        if key in SOURCES and not conf[key]:
            raise UserError(f"kd_conf.{key}", "is empty", "a path", "leave it out to train without a teacher")
    conf = {**DEFAULTS, **conf}
    for key in ("scale", "temperature", "alignment_entropy"):
        conf[key] = _number(conf[key], f"kd_conf.{key}")
    conf["shift"] = _whole(conf["shift"], "kd_conf.shift")
    for key in (*SOURCES, "teacher_config"):
        if not isinstance(conf[key], (str, type(None))):
            raise UserError(f"kd_conf.{key}", repr(conf[key]), "a path")
    if isinstance(conf["class_scales"], (list, tuple)):
        conf["class_scales"] = [_number(value, "kd_conf.class_scales") for value in conf["class_scales"]]
    if conf["pruned"] is not None and not isinstance(conf["pruned"], dict):
        raise UserError("kd_conf.pruned", repr(conf["pruned"]), "a mapping, as {prune_range: 5}", "or leave it out")
    choices.check(conf["align"], ["strict", "crop-pad"], "kd_conf.align")
    choices.check(conf["missing"], ["error", "skip"], "kd_conf.missing")
    get_backend(conf["backend"])
    if all(conf[key] for key in SOURCES):
        raise UserError("kd_conf", "teacher_model and cache", "one of them", "leave the other out")
    if conf["teacher_config"] and not conf["teacher_model"]:
        raise UserError("kd_conf", "teacher_config without teacher_model", "both", "name the model, too")
    return conf


def read_pruning(given: Dict[str, Any], where: str) -> Pruning:
    """Raises UserError: an unknown key, or a value that this loss cannot have."""
    for key in given:
        choices.check(key, [field.name for field in fields(Pruning)], where)
    read: Dict[type, Any] = {str: lambda value, _: str(value), int: _whole, float: _number}
    kinds = {field.name: read[type(field.default)] for field in fields(Pruning)}
    pruning = Pruning(**{key: kinds[key](value, f"{where}.{key}") for key, value in given.items()})
    choices.check(pruning.loss_type, ["regular", "modified", "constrained"], f"{where}.loss_type")
    choices.check(pruning.reduction, ["mean", "sum"], f"{where}.reduction")
    if pruning.padding_idx != 0:
        raise UserError(f"{where}.padding_idx", str(pruning.padding_idx), "0, blank's", "leave it out")
    return pruning


def load_teacher(weights: str, config: Optional[str], student=None) -> Tuple[EspnetTransducer, Any]:
    """A trained model of either task, on the CPU, in float32 and eval mode, and the options that it was trained with.

    Raises:
      UserError: a file that is missing or not what it should be, weights that lack one of the model's, or other
        tokens than those of ``student``.
    """
    path = Path(config) if config else Path(weights).parent / "config.yaml"
    for file in (Path(weights), path):
        if not file.is_file():
            step = "give teacher_config" if file == path and not config else "check kd_conf"
            raise UserError(file, "no such file", "a model (*.pth) and the config.yaml of its training", step)
    expected = "the config.yaml of a trained transducer of ESPnet's asr_transducer or asr task"
    try:
        options = yaml.safe_load(path.read_bytes())
        is_hybrid = "ctc_conf" in options
        provide_warp_transducer()
        model, args = (ASRTask if is_hybrid else ASRTransducerTask).build_model_from_file(path)
        has_joiner = model.joint_network is not None
    except UserError:
        raise
    except Exception as error:  # whatever building a model from a file of any content may raise
        raise UserError(path, f"gives no transducer ({type(error).__name__}: {error})", expected) from None
    if not has_joiner:
        raise UserError(path, "its model has no transducer decoder", expected)
    if student is not None:
        theirs, ours = ({"tokens": x.token_list, "blank": EspnetTransducer(x).blank_id} for x in (model, student))
        check_same(path, theirs, ours)
    try:
        state = safe_torch_load(weights, map_location="cpu")
        state = state.get("module", state.get("state_dict", state))  # of DeepSpeed, of Lightning
        state = {name.removeprefix("model."): x for name, x in state.items()}
        if "am_proj.weight" in state and not hasattr(model, "am_proj"):
            add_heads(model)
        missing = model.load_state_dict(state, strict=False).missing_keys
    except Exception as error:  # whatever reading a file of any content may raise
        reason = (str(error).strip() or type(error).__name__).splitlines()[-1]
        raise UserError(weights, f"are no weights of {path} ({reason})") from None
    if missing:
        raise UserError(
            weights, f"lacks {len(missing)} of the model's weights, the first {missing[0]}", f"those of {path}"
        )
    model.encoder.dynamic_chunk_training = False  # in eval mode, too, it draws chunks; as ESPnet's inference does
    return EspnetTransducer(model.eval().requires_grad_(False)), args


def open_cache(conf: Dict[str, Any], args, model):
    """Of ``kd_conf.cache``.  Raises UserError: there is none, or it was made for another student."""
    try:
        from rnnt_kd.teachers.cache import TeacherCache
    except ModuleNotFoundError as error:
        step = "pip install 'rnnt-kd[recipe]', or let the teacher run online: teacher_model"
        raise UserError("kd_conf.cache", f"the package {error.name} is not installed", "", step) from None
    expected = {"bpe": labels_digest(args, model.token_list), "blank_id": 0, "temperature": conf["temperature"]}
    if model.pruning is not None:
        expected.update(prune_range=model.pruning.prune_range, rnnt_type=model.pruning.loss_type)
    elif conf["missing"] == "skip":
        step = "make the cache of all utterances, or set kd_conf.pruned"
        raise UserError("kd_conf.missing", "skip, and the student has no ranges of its own", "error", step)
    return TeacherCache.open(Path(conf["cache"]), expected)


def add_heads(model) -> None:
    """Give a hybrid model the two layers that say which nodes of the lattice to keep."""
    model.am_proj = torch.nn.Linear(model.joint_network.lin_enc.in_features, model.vocab_size)
    model.lm_proj = torch.nn.Linear(model.joint_network.lin_dec.in_features, model.vocab_size)


def provide_warp_transducer() -> None:
    """ESPnet's hybrid models want its loss when they are made; where it is missing, they get one that refuses."""
    if "warprnnt_pytorch" not in sys.modules and importlib.util.find_spec("warprnnt_pytorch") is None:

        class RNNTLoss:
            def __init__(self, **_):
                pass

            def __call__(self, *_):
                step = "train with rnnt_kd.espnet.KdASRTask, or install it"
                raise UserError("warp-transducer", "is not installed", "", step)

        module = ModuleType("warprnnt_pytorch")
        module.RNNTLoss = RNNTLoss  # type: ignore[attr-defined]
        sys.modules["warprnnt_pytorch"] = module


def labels_digest(args, tokens: Sequence[str]) -> str:
    """By which a cache and its students know that a text has the same labels for both."""
    parts = ["\n".join(tokens), *(str(getattr(args, name, None)) for name in ("token_type", "cleaner", "g2p"))]
    model = Path(getattr(args, "bpemodel", None) or "")
    content = model.read_bytes() if model.is_file() else b""
    return hashlib.sha256("\0".join(parts).encode() + content).hexdigest()


def task_of(model) -> type:
    """ESPnet's."""
    return ASRTransducerTask if isinstance(model, ESPnetASRTransducerModel) else ASRTask


def _whole(value: Any, where: str) -> int:
    number = _number(value, where)
    if number != int(number):
        raise UserError(where, str(value), "a whole number")
    return int(number)


def _number(value: Any, where: str) -> float:
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = -1.0
    if not 0.0 <= number < float("inf"):
        raise UserError(where, str(value), "a number of at least 0")
    return number
