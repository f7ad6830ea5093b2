"""icefall's train.py as it stands, with a teacher, zeros among the weights, or both.

Its module is imported, and of the functions in it four are wrapped: the one that builds the model, ``compute_loss``,
``load_checkpoint_if_available`` and ``run``.  ``run`` is what mp.spawn starts in each process, by the name that it has
here; so every rank does the same, whatever its train.py imports anew.
"""

import contextlib
import importlib.util
import inspect
import json
import logging
import os
import sys
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Dict, List, Mapping, Optional, Sequence, Tuple

import torch
from torch import nn

from rnnt_kd.errors import UserError
from rnnt_kd.icefall.distill import Distiller, distill
from rnnt_kd.icefall.model import IcefallModel
from rnnt_kd.icefall.recipe import BUILDERS, OURS, import_train, load_teacher, recipe_above
from rnnt_kd.icefall.sparse import SparseTraining
from rnnt_kd.losses.as_k2 import as_k2
from rnnt_kd.teachers.same import check_same
from rnnt_kd.text.pieces import pieces_digests, read_pieces

ENVIRONMENT = "RNNT_KD_ICEFALL"  # the settings, as JSON, for the processes that mp.spawn starts
_ERROR = f"{UserError.__module__}.{UserError.__qualname__}: "


@dataclass(frozen=True)
class TeacherSettings:
    """As in ``load_teacher``; ``tokens``: bpe.model or tokens.txt, where the checkpoint's own is not there."""

    place: str
    epoch: Optional[int] = None
    avg: Optional[int] = None
    iter: Optional[int] = None
    use_averaged_model: bool = True
    recipe: Optional[str] = None
    options: Dict[str, str] = field(default_factory=dict)
    tokens: Optional[str] = None

    def load(self, student_recipe: Optional[Path] = None) -> Any:
        """The teacher; one whose folder lies in no recipe is taken for one of the student's."""
        recipe = self.recipe
        if recipe is None and student_recipe and not (recipe_above(Path(self.place)) / "train.py").is_file():
            recipe = str(student_recipe)
        return load_teacher(
            Path(self.place), self.epoch, self.avg, iter=self.iter, use_averaged_model=self.use_averaged_model,
            recipe=None if recipe is None else Path(recipe), **self.options,
        )  # fmt: skip

    def pieces(self, options: Mapping[str, Any]) -> Optional[List[str]]:
        """Its tokens, where a path in its options is one from a folder above its own; None: not there."""
        if self.tokens:
            return read_pieces(Path(self.tokens))
        place = Path(os.path.abspath(self.place))
        return recipe_pieces(options, [*place.parents, *place.resolve().parents])

    def known_pieces(self, teacher: IcefallModel) -> List[str]:
        """``pieces`` of a loaded teacher.  UserError: they are not there."""
        found = self.pieces(teacher.options)
        if found is None:
            problem = "its bpe.model or tokens.txt is in no folder above it"
            raise UserError(teacher.where, problem, "its tokens", "name the file (--kd-teacher-tokens, tokens:)")
        return found


@dataclass(frozen=True)
class Settings:
    """What the launcher was asked for, beside the options of train.py.

    train:     train.py.
    teacher, cache:  at most one of them.
    kd:        keyword arguments of ``distill``; ``alignment_entropy`` needs no teacher.
    sparsity:  of ``SparseTraining``; None: dense.
    """

    train: str
    teacher: Optional[TeacherSettings] = None
    cache: Optional[str] = None
    kd: Dict[str, Any] = field(default_factory=dict)
    sparsity: Optional[Dict[str, Any]] = None


def launch(settings: Settings, argv: Sequence[str]) -> None:
    """Run ``settings.train`` with the options ``argv``, in as many processes as these say.

    Raises UserError: nothing to do, a train.py that is none, and whatever a rank found that the user can put right.
    """
    train = import_as_main(Path(settings.train))
    is_zipformer = _without_k2()
    asked = (settings.teacher, settings.cache, settings.sparsity, settings.kd.get("alignment_entropy"))
    if all(one is None for one in asked) and not is_zipformer:
        expected = "--kd-teacher, --kd-cache, --sparsity or --alignment-entropy"
        raise UserError(settings.train, "no teacher, no cache, no sparsity", expected, "or run it by itself")
    if settings.teacher is not None and settings.cache is not None:
        raise UserError("--kd-cache", "and --kd-teacher", "one of them: the cache holds what its teacher said")
    os.environ[ENVIRONMENT] = json.dumps(asdict(settings))
    setattr(train, f"_{OURS}_run", train.run)
    train.run = run
    sys.argv = [settings.train, *argv]
    try:
        train.main()
    except torch.multiprocessing.ProcessRaisedException as error:
        lines = [line for line in str(error).splitlines() if line.startswith(_ERROR)]
        if not lines:
            raise
        where, _, problem = lines[-1][len(_ERROR) :].partition(": ")
        raise UserError(where, problem) from None


def run(*args: Any, **kwargs: Any) -> None:
    """In the place of train.py's ``run``, in each process."""
    values = json.loads(os.environ[ENVIRONMENT])
    teacher = values.pop("teacher")
    settings = Settings(teacher=None if teacher is None else TeacherSettings(**teacher), **values)
    train = import_as_main(Path(settings.train))
    _without_k2()
    original = getattr(train, f"_{OURS}_run", train.run)
    training = _Training(train, settings)
    with training.sparse.hooked() if training.sparse else _nothing():
        original(*args, **kwargs)
    training.finish()


class _Training:
    """One process's training: wraps the functions of ``train``."""

    def __init__(self, train: Any, settings: Settings):
        self.settings = settings
        self.kd: Optional[Distiller] = None
        self.folder = Path(settings.train).resolve().parent
        self.sparse = None if settings.sparsity is None else SparseTraining(**settings.sparsity)
        for name in BUILDERS:
            if hasattr(train, name):
                setattr(train, name, _wrap(getattr(train, name), self._build))
        train.compute_loss = _wrap(train.compute_loss, self._compute_loss)
        if hasattr(train, "load_checkpoint_if_available"):
            train.load_checkpoint_if_available = _wrap(train.load_checkpoint_if_available, self._load)

    def _build(self, original, *args: Any, **kwargs: Any) -> nn.Module:
        model, settings = original(*args, **kwargs), self.settings
        params = args[0] if args else kwargs["params"]
        if settings.teacher is not None:
            teacher = settings.teacher.load(self.folder)
            _check_recipes(teacher.where, teacher.options, settings.teacher.pieces(teacher.options), params)
            self.kd = distill(model, teacher=teacher, **settings.kd)
            logging.info(f"rnnt-kd: learns from {teacher.where}, {settings.kd}")
        elif settings.cache is not None:
            from rnnt_kd.teachers.cache import TeacherCache

            check_options_for_cache(params)
            cache = TeacherCache.open(Path(settings.cache))
            ours = recipe_pieces(params)
            if ours is not None and cache.facts.bpe not in pieces_digests(ours, params.get("bpe_model")):
                expected = f"{params.get('bpe_model') or params.get('lang_dir')}, that of this training"
                raise UserError(settings.cache, "was made with another BPE model", expected, "make it with that one")
            check_same(settings.cache, {"subsampling": cache.facts.subsampling}, {"subsampling": _factor(params)})
            self.kd = distill(model, cache=cache, **settings.kd)
            logging.info(f"rnnt-kd: learns from {len(cache)} utterances of {settings.cache}, {settings.kd}")
        elif settings.kd.get("alignment_entropy") is not None:
            self.kd = distill(model, **settings.kd)
        if self.sparse:
            self.sparse.model = model
        params[OURS] = _Saved(settings, self.sparse)
        return model

    def _compute_loss(self, original, *args: Any, **kwargs: Any) -> Tuple[Any, Any]:
        kd = self.kd
        if kd is None:
            return original(*args, **kwargs)
        given = inspect.signature(original).bind(*args, **kwargs).arguments
        kd.batch, before = given["batch"], kd.steps
        loss, info = original(*args, **kwargs)
        if given["is_training"]:
            if kd.steps == before:
                expected = "a model that calls k2.rnnt_loss_pruned (--use-transducer 1)"
                raise UserError(self.settings.train, "has trained a batch without asking the teacher", expected)
            term = kd.last.item()
            if "pruned_loss" in info:
                info["pruned_loss"] -= kd.scale * term  # so that it is what it is without a teacher
            info["kd_loss"] = term
        return loss, info

    def _load(self, original, *args: Any, **kwargs: Any) -> Any:
        saved = original(*args, **kwargs)
        before: Dict[str, Any] = (saved or {}).get(OURS) or {}
        taught = next((f"--kd-{name}" for name in ("teacher", "cache") if before.get(name)), None)
        if taught and self.settings.teacher is None and self.settings.cache is None:
            expected = f"{taught} as it had, or another, or --kd-scale 0 beside it"
            raise UserError("--start-epoch", "its checkpoint is of a training with a teacher", expected)
        state, sparsity = before.get("sparsifier"), before.get("sparsity") or {}
        if self.sparse:
            ours = self.settings.sparsity or {}
            for name, usual in (("structure", None), ("scope", "per-layer")):
                if state is not None and sparsity.get(name, usual) != ours.get(name, usual):
                    problem = f"{ours.get(name, usual)}, and its checkpoint has {sparsity.get(name, usual)}"
                    raise UserError(f"--sparsity-{name}", problem, "the same")
            self.sparse.saved = state
        elif state is not None:
            raise UserError(
                "--start-epoch", "its checkpoint is of a sparse training", "--sparsity as it had", "give it"
            )
        return saved

    def finish(self) -> None:
        if self.kd is not None and self.kd.skipped:
            logging.warning(f"rnnt-kd: {self.kd.skipped} utterances had no teacher in {self.settings.cache}")
        if self.sparse:
            self.sparse.finish()


class _Saved:
    """What a checkpoint holds of ours, as it is when it is written: a dict, for whoever reads it."""

    def __init__(self, settings: Settings, sparse: Optional[SparseTraining]):
        self._settings, self._sparse = settings, sparse

    def __repr__(self) -> str:
        return str(asdict(self._settings))

    def __reduce__(self):
        state = None if self._sparse is None else self._sparse.state_dict()
        return dict, ([*asdict(self._settings).items(), ("sparsifier", state)],)


def check_options_for_cache(params: Mapping[str, Any]) -> None:
    """UserError: options of train.py with which no cache can be used, for frames or ids would be others."""
    warps = params.get("spec_aug_time_warp_factor", 80)
    if (params.get("enable_spec_aug", True) or params.get("use_cr_ctc", False)) and (warps is None or warps >= 1):
        problem = f"{warps}: SpecAugment moves frames by up to {warps}, and those of the cache stay"
        raise UserError("--spec-aug-time-warp-factor", problem, "-1 with --kd-cache", "or let the teacher run")
    if params.get("concatenate_cuts", False):
        raise UserError("--concatenate-cuts", "1: its cuts have new ids", "0 with --kd-cache", "or let the teacher run")
    if not params.get("return_cuts", True):
        raise UserError("--return-cuts", "0: a cache is read by the ids of the cuts", "1 with --kd-cache")


def recipe_pieces(options: Mapping[str, Any], folders: Sequence[Path] = (Path(),)) -> Optional[List[str]]:
    """The tokens of a recipe by its options, whose paths start in the first folder that has them; None: not there."""
    names = [options.get("bpe_model"), Path(str(options.get("lang_dir"))) / "tokens.txt"]
    named = [folder / name for folder in folders for name in names if name]
    if found := importlib.util.find_spec("ssentencepiece"):  # zipformer's tokens, some of which have names
        named += [Path(folder, "resources", f"{names[0]}.vocab") for folder in found.submodule_search_locations or ()]
    return next((read_pieces(path) for path in named if path.is_file()), None)


def _check_recipes(where: object, theirs: Mapping[str, Any], pieces: Optional[List[str]], ours: Mapping[str, Any]):
    """UserError: teacher and student differ in tokens, features or subsampling, as far as their options say."""
    mine = recipe_pieces(ours)
    if pieces is None or mine is None:
        logging.warning(f"rnnt-kd: the tokens of {where} are not compared (--kd-teacher-tokens bpe.model)")
    names = {"feature_dim": "feature dimension", "subsampling_factor": "subsampling"}
    both = [{text: options.get(name) for name, text in names.items()} for options in (theirs, ours)]
    check_same(where, {"pieces": pieces, **both[0]}, {"pieces": mine, **both[1]})


def _factor(params: Mapping[str, Any]) -> Optional[int]:
    return params.get("subsampling_factor")


def import_as_main(path: Path) -> Any:
    """train.py as a module, its folder the first to be searched, as if Python had been called with it."""
    folder = str(path.resolve().parent)
    if sys.path[:1] != [folder]:
        sys.path.insert(0, folder)
    return import_train(path)


def _without_k2() -> bool:
    """Is it the package zipformer's training?  Where that found no k2, it has ours now."""
    module: Any = sys.modules.get("zipformer.modules.model")
    if module is not None and module.k2 is None:
        module.k2 = as_k2()
    return module is not None


def _wrap(original, replacement):
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        return replacement(original, *args, **kwargs)

    return wrapped


def _nothing():
    return contextlib.nullcontext()
