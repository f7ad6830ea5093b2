"""A model of icefall's, made to learn from a teacher: ``kd = distill(model, teacher=...)``.

The model's own ``forward`` runs as it stands, whichever recipe it is of.  Of the calls that it makes to ``k2``, two are
answered here while it trains: the ranges, where a cache has them, and ``rnnt_loss_pruned``, which is icefall's value
plus ``scale`` times the distillation term.  The joiner hands over its inputs, so that its logits are never made.  Thus
train.py warms up the term with the pruned loss, and half precision, DDP and CR-CTC are its own affair.

The model becomes one of a subclass that knows the teacher; the teacher is in no ``state_dict``, copy, or bucket of DDP.

B batch, T encoder frames, S symbols.
"""

import contextlib
import functools
from typing import TYPE_CHECKING, Any, Dict, Iterator, List, Optional, Tuple, Union

import torch
from torch import Tensor, nn

from rnnt_kd.errors import UserError
from rnnt_kd.icefall.model import JOINER, IcefallModel, kind, output_layer, why_no_joiner
from rnnt_kd.losses import Distillation, JoinerParts, Logits, TeacherView, transducer_terms
from rnnt_kd.losses.as_k2 import as_k2
from rnnt_kd.losses.choices import WEIGHTING
from rnnt_kd.teachers.interface import Teacher
from rnnt_kd.teachers.same import check_same, check_teacher
from rnnt_kd.teachers.views import OnlineTeacher, kept_ranges

if TYPE_CHECKING:
    from rnnt_kd.teachers.cache import TeacherCache


def distill(
    model: nn.Module,
    teacher: Union[None, Teacher, nn.Module] = None,
    cache: Optional["TeacherCache"] = None,
    *,
    scale: float = 1.0,
    variant: str = "collapsed",
    weighting: str = WEIGHTING,
    temperature: float = 1.0,
    shift: int = 0,
    align: str = "strict",
    missing: str = "error",
    alignment_entropy: float = 0.0,
) -> "Distiller":
    """Let ``model`` learn from ``teacher``, which runs in each step, or from ``cache``.

    To be called once, before the model is copied (``model_avg``) and wrapped in DDP.

    Args:
      model:    of an icefall recipe, or of the package zipformer; in place.
      teacher:  of ``load_teacher``, or another model of icefall's interface, put in eval mode.  It hears what the
                student's encoder hears, and follows it to its device.
      cache:    of ``rnnt_kd.icefall cache``; ``kd.batch`` must be the batch when the model runs.
      scale:    of the distillation term.
      variant, weighting, temperature, shift:  see ``losses.distillation.Distillation``.
      align:    "strict", or "crop-pad" where the teacher makes up to two frames more or fewer (``teachers.views``).
      missing:  "error", or "skip": utterances that the cache does not have are trained without the term.
      alignment_entropy:  scale of the term that makes the model decide on one alignment (``losses.terms``); alone, too,
                which needs neither teacher nor cache.
    Raises:
      UserError: not one of teacher and cache, an unknown name, a model that is no transducer of icefall's, or a teacher
        that differs in its classes, blank or context size.
    """
    for what, number in (("kd scale", scale), ("alignment entropy", alignment_entropy)):
        if isinstance(number, str) or not 0.0 <= number < float("inf"):
            raise UserError(what, repr(number), "a number >= 0")
    alone = teacher is None and cache is None and alignment_entropy > 0.0
    if (teacher is None) == (cache is None) and not alone:
        raise UserError("distill", f"{'no' if cache is None else 'both'} teacher and cache", "one of them")
    for what, value, known in (("align", align, ("strict", "crop-pad")), ("missing", missing, ("error", "skip"))):
        if value not in known:
            raise UserError(what, repr(value), " or ".join(known))
    base: Any = type(model)
    if hasattr(base, "_rnnt_kd"):
        raise UserError("student", "learns from a teacher already", "one call of distill")
    if not hasattr(getattr(model, "decoder", None), "blank_id") or "k2" not in _globals(base):
        problem = "has no decoder with blank_id, or its module does not use k2"
        raise UserError(f"student {base.__name__}", problem, "a transducer of icefall's (--use-transducer 1)")
    options = Distillation(variant, weighting, temperature, shift=shift)
    kd = Distiller(model, _globals(base), scale, options, align, missing, alignment_entropy)
    if cache is not None:
        kd.cache = cache
        check_same(cache.folder, {"blank": cache.facts.blank_id}, kind(model))
        if temperature not in (1.0, cache.facts.temperature):
            problem, expected = f"made at temperature {cache.facts.temperature}", f"{temperature}, that of the student"
            raise UserError(cache.folder, problem, expected, "make it again with --temperature")
    elif not alone:
        if isinstance(teacher, nn.Module):
            teacher = IcefallModel(teacher)
        if isinstance(teacher, IcefallModel):
            check_teacher(teacher.where, teacher.model, model)
            check_same(teacher.where, kind(teacher.model), kind(model))
        assert teacher is not None
        kd.online = OnlineTeacher(teacher, shift, align)

    class Distilled(base):
        _rnnt_kd = kd

        def forward(self, *args: Any, **kwargs: Any) -> Any:
            x, x_lens = (*args, *(kwargs[name] for name in ("x", "x_lens") if name in kwargs))[:2]
            if not self.training:
                return super().forward(*args, **kwargs)
            kd.heard, kd.given, kd.autocast = (x, x_lens), x_lens.tolist(), _autocast_of(x.device.type)
            with kd.listening(self):
                return super().forward(*args, **kwargs)

        if hasattr(base, "forward_encoder"):

            def forward_encoder(self, x: Tensor, x_lens: Tensor) -> Any:
                kd.heard = (x, x_lens)  # after CR-CTC has masked it and made two of each
                return super().forward_encoder(x, x_lens)

    Distilled.__name__, Distilled.__qualname__, Distilled.__module__ = base.__name__, base.__qualname__, base.__module__
    model.__class__ = Distilled
    return kd


class Distiller:
    """Made by ``distill``; belongs to one model.

    Attributes:
      batch:    the batch that is being trained on, a dict of Lhotse's K2SpeechRecognitionDataset: for a cache.
      last:     0-dim, the distillation term of the last step, unscaled, summed over the batch.
      scale:    its factor, ``alignment_entropy`` that of the other term; may be changed between steps.
      steps:    in how many steps there was one.
      skipped:  how many utterances were trained without it, as the cache did not have them.
    """

    def __init__(
        self, model: nn.Module, space: Dict[str, Any], scale: float, options: Distillation, align: str, missing: str,
        alignment_entropy: float = 0.0,
    ):  # fmt: skip
        self._space, self.alignment_entropy = space, alignment_entropy
        self.scale, self.options, self.align, self.missing = scale, options, align, missing
        self.online: Optional[OnlineTeacher] = None
        self.cache: Optional[TeacherCache] = None
        self.batch: Optional[Dict[str, Any]] = None
        self.last = torch.zeros(())
        self.steps = self.skipped = 0
        self.heard: Tuple[Tensor, Tensor] = (self.last, self.last)
        self.given: List[int] = []  # feature frames of the utterances that the model was given
        self.autocast: Dict[str, Any] = {}  # that the model runs under; its losses run without
        joiners = [part for part in model.modules() if all(hasattr(part, name) for name in JOINER)]
        self._paths = [name for name, part in model.named_modules() if any(part is one for one in joiners)]
        self._needs_logits = not joiners or any(why_no_joiner(joiner) for joiner in joiners)

    @contextlib.contextmanager
    def listening(self, model: nn.Module) -> Iterator[None]:
        """While the model trains, its module's ``k2`` is ours, and its joiners hand over their inputs."""
        space, k2 = self._space, self._space["k2"]
        lattice = _Lattice(k2 if k2 is not None else as_k2(), self)
        joiners = [] if self._needs_logits else [model.get_submodule(path) for path in self._paths]
        lattice.takes_inputs = bool(joiners)
        space["k2"] = lattice
        for joiner in joiners:
            joiner.forward = functools.partial(lattice.take, joiner)
        try:
            yield
        finally:
            space["k2"] = k2
            for joiner in joiners:
                del joiner.forward

    def from_cache(self, num_frames: Tensor, T: int, S: int, s_range: int) -> TeacherView:
        """Of the batch, on the teacher's own nodes.  Raises UserError: not in the cache, or it does not fit."""
        assert self.cache is not None
        cache, facts = self.cache, self.cache.facts
        check_same(cache.folder, {"prune range": facts.prune_range}, {"prune range": s_range})
        names, frames = self.names(len(num_frames)), num_frames.tolist()
        found = cache.lookup(names, frames, S, self.missing, self.align).to(num_frames.device)
        if found.is_known is not None:
            self.skipped += int((~found.is_known.flatten(1).any(dim=1)).sum())
        return found.view(num_frames, T, shift=self.options.shift, align=self.align, rnnt_type=facts.rnnt_type)

    def names(self, count: int) -> List[str]:
        """Ids of the cuts of the ``count`` utterances that the encoder heard."""
        if self.batch is None:
            raise UserError("kd.batch", "nothing", "the batch", "set kd.batch = batch before the model runs")
        found = self.batch["supervisions"]
        if found.get("cut") is None:
            raise UserError("batch", "has no cuts, whose ids a cache needs", "return_cuts=True", "--return-cuts 1")
        n = len(self.given)  # a recipe may have dropped the last ones, and CR-CTC hears each twice
        names, frames = [cut.id for cut in found["cut"]][:n], found["num_frames"].tolist()[:n]
        if frames != self.given or len(names) != n:
            expected = f"{self.given[:3]}..., as the model was given"
            raise UserError("kd.batch", f"utterances of {frames[:3]}... frames", expected, "set it in every step")
        return names * (count // n)


class _Lattice:
    """``k2`` for one run of the model."""

    def __init__(self, k2: Any, kd: Distiller):
        self._k2, self._kd = k2, kd
        self._parts: Optional[JoinerParts] = None
        self._view: Optional[TeacherView] = None
        self.takes_inputs = False

    def __getattr__(self, name: str) -> Any:
        return getattr(self._k2, name)

    def get_rnnt_prune_ranges(self, px_grad: Tensor, py_grad: Tensor, boundary: Tensor, s_range: int) -> Tensor:
        own = self._k2.get_rnnt_prune_ranges(px_grad=px_grad, py_grad=py_grad, boundary=boundary, s_range=s_range)
        if self._kd.cache is None:
            return own
        S, T = px_grad.shape[1], py_grad.shape[2]
        self._view = self._kd.from_cache(boundary[:, 3], T, S, s_range)
        return kept_ranges(self._view, lambda: own)

    def do_rnnt_pruning(self, am: Tensor, lm: Tensor, ranges: Tensor) -> Tuple[Tensor, Tensor]:
        return (am, lm) if self.takes_inputs else self._k2.do_rnnt_pruning(am=am, lm=lm, ranges=ranges)

    def take(self, joiner: Any, am: Tensor, lm: Tensor, project_input: bool = True) -> Tensor:
        """In the place of the joiner's ``forward``; what it returns goes to ``rnnt_loss_pruned`` alone."""
        if project_input:
            am, lm = joiner.encoder_proj(am), joiner.decoder_proj(lm)
        self._parts = JoinerParts(am, lm, *output_layer(joiner))
        return am.new_empty(0)

    def rnnt_loss_pruned(
        self,
        logits: Tensor,
        symbols: Tensor,
        ranges: Tensor,
        termination_symbol: int,
        boundary: Tensor,
        rnnt_type: str = "regular",
        delay_penalty: float = 0.0,
        reduction: str = "mean",
        **more: Any,
    ) -> Tensor:
        kd, T = self._kd, ranges.shape[1]
        is_symbol = torch.arange(symbols.shape[1], device=symbols.device) < boundary[:, 2:3]
        labels = symbols.masked_fill(~is_symbol, termination_symbol)
        if kd.online is not None:
            x, x_lens = kd.heard
            with torch.autocast(**kd.autocast):
                self._view = kd.online.view(x, x_lens, labels, boundary[:, 3], T)
        elif kd.cache is not None:
            check_same(kd.cache.folder, {"rnnt_type": kd.cache.facts.rnnt_type}, {"rnnt_type": rnnt_type})
            kd.cache.check_labels(kd.names(len(labels)), labels)
        student = Logits(logits) if self._parts is None else self._parts
        rnnt, term = transducer_terms(
            student, symbols, ranges, termination_symbol, boundary, rnnt_type, delay_penalty, reduction,
            teacher=self._view, kd=kd.options, entropy_scale=kd.alignment_entropy, **more,
        )  # fmt: skip
        kd.last = term.detach().sum() * len(kd.given) / len(symbols)
        kd.steps += 1
        self._parts, self._view = None, None
        return rnnt + kd.scale * term


def _autocast_of(device: str) -> Dict[str, Any]:
    """What ``torch.autocast`` is at this moment, as its arguments."""
    if hasattr(torch, "get_autocast_dtype"):
        dtype, enabled = torch.get_autocast_dtype(device), torch.is_autocast_enabled(device)
    else:  # torch 1
        is_gpu = device == "cuda"
        dtype = (torch.get_autocast_gpu_dtype if is_gpu else torch.get_autocast_cpu_dtype)()
        enabled = (torch.is_autocast_enabled if is_gpu else torch.is_autocast_cpu_enabled)()
    return {"device_type": device, "dtype": dtype, "enabled": enabled}


def _globals(base: type) -> Dict[str, Any]:
    """Of the module that the model's ``forward`` stands in."""
    return getattr(base.forward, "__globals__", {})  # type: ignore[attr-defined]
