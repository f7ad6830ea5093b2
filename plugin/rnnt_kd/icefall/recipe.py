"""icefall's recipes and checkpoints: folders of top-level modules, and epoch-N.pt, which holds every option of its run.

Reading a checkpoint runs code that stands in it, as icefall's own decode.py does: take those that you trust.
"""

import contextlib
import importlib
import sys
import zipfile
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any, Callable, Dict, Iterator, List, Optional, Tuple

import torch
from torch import Tensor, nn

from rnnt_kd.errors import UserError
from rnnt_kd.icefall.model import IcefallModel

STATES = ("model", "model_avg", "optimizer", "scheduler", "grad_scaler", "sampler")  # all else are options
OURS = "rnnt_kd"  # what the launcher adds
BOOLEANS = {"1": True, "true": True, "0": False, "false": False}
BUILDERS = ("get_model", "get_transducer_model")


def load_teacher(
    place: Path,
    epoch: Optional[int] = None,
    avg: Optional[int] = None,
    *,
    iter: Optional[int] = None,
    use_averaged_model: bool = True,
    recipe: Optional[Path] = None,
    **options: Any,
) -> IcefallModel:
    """A trained model of icefall's, in eval mode and without gradients, on the CPU.

    Args:
      place:    ``exp/jit_script.pt``, which needs no recipe; a checkpoint; or the folder of a training's checkpoints.
      epoch, avg, iter, use_averaged_model:  of a folder, as in icefall's decode.py, by icefall's own averaging.
                With avg=0, the weights of the checkpoint itself; None: 1.
      recipe:   the folder with its train.py; None: the folder above the checkpoints'.
      options:  in the place of the checkpoint's, such as chunk_size="32" of a causal model, which by itself takes the
                largest context.
    Raises:
      UserError: no such checkpoint, one without options (``pretrained.pt``), a folder without train.py, weights that
        do not fit, or what a file cannot have: an epoch, an average, and a script options.
    """
    place = Path(place)
    asked = {"epoch": epoch, "iter": iter, "avg": avg or None, **(options if _is_script(place) else {})}
    given = [name for name, value in asked.items() if value is not None]
    if place.is_file() and given:
        problem = f"is a file, which has no {given[0]} to choose"
        raise UserError(place, problem, "the folder of the checkpoints", f"or leave out {given[0]}")
    if _is_script(place):
        try:
            script = torch.jit.load(str(place), map_location="cpu")
        except (RuntimeError, OSError) as error:
            raise _unreadable(place, error) from None
        for parameter in script.parameters():  # requires_grad_() is not for scripts
            parameter.requires_grad_(False)
        return IcefallModel(script, place)
    state, saved, where = averaged(place, epoch, avg, iter=iter, use_averaged_model=use_averaged_model)
    if "vocab_size" not in saved or "blank_id" not in saved:
        expected = "epoch-N.pt or checkpoint-N.pt of icefall's train.py, or jit_script.pt"
        raise UserError(where, "holds weights without the options of their training", expected)
    if saved.get("causal"):
        saved = {**saved, "chunk_size": "-1", "left_context_frames": "-1"}
    if saved.get("dynamic_chunk_training"):  # the older conformers draw chunks in eval mode, too
        saved = {**saved, "dynamic_chunk_training": False}
    saved.pop(OURS, None)
    for name, value in options.items():
        if name not in saved:
            raise UserError(where, f"has no option {name}", "one of its training, such as chunk_size")
        saved[name] = _as(saved[name], value, f"{where}: option {name}")
    folder = Path(recipe) if recipe is not None else recipe_above(place)
    with recipe_imports(folder):
        train = import_train(folder / "train.py")
        params = train.get_params()
        saved = {**_usual_options(train), **saved}
        params.update(saved)
        try:
            model: nn.Module = builder(train)(params)
            model.load_state_dict(state)
        except Exception as error:  # of whatever kind: another recipe's options, or weights
            problem = f"does not fit {folder}/train.py ({' '.join(str(error).split())[:200]})"
            raise UserError(where, problem, "the teacher's own recipe", "give it (--kd-teacher-recipe)") from None
    teacher = IcefallModel(model.requires_grad_(False), where)
    teacher.options = saved
    return teacher


def recipe_above(place: Path) -> Path:
    """The folder that ``place``, a training's folder or a checkpoint in it, lies in."""
    return (place if place.is_dir() else place.parent).resolve().parent


def averaged(
    place: Path,
    epoch: Optional[int],
    avg: Optional[int],
    *,
    iter: Optional[int] = None,
    use_averaged_model: bool = True,
) -> Tuple[Dict[str, Tensor], Dict[str, Any], str]:
    """Weights as decode.py averages them, the options of the last checkpoint, and how to call it in messages.

    A sparse model of ours comes with its zeros: the masks of the last checkpoint are applied after the averaging.
    Raises UserError as ``load_teacher``.
    """
    avg = 1 if avg is None else avg
    if avg < 0:
        raise UserError("avg", str(avg), "0 or more")
    if not place.exists():
        raise UserError(place, "no such file or folder", "checkpoints of icefall's train.py, or jit_script.pt")
    if place.is_file():
        names = [place]
    else:
        kind, number = ("epoch", epoch) if iter is None else ("checkpoint", iter)
        numbers = (path.stem[len(kind) + 1 :] for path in place.glob(f"{kind}-*.pt"))
        there = sorted(int(n) for n in numbers if n.isdigit())  # there may be epoch-30-avg-9.pt, too
        listed = f"{there[:3]} to {there[-1]}" if len(there) > 5 else f"{there}"
        if number not in there:
            problem = f"no {kind}-{number}.pt here" if number is not None else "a folder, and no epoch"
            expected = f"one of {kind} {listed}" if there else f"{kind}-N.pt of icefall's train.py"
            raise UserError(place, problem, expected, "give epoch (--epoch, --kd-teacher-epoch)")
        upto = [n for n in there if n <= number][::-1]
        count = 1 if avg == 0 else avg + 1 if use_averaged_model else avg
        expect = range(number, number - count, -1) if iter is None else upto[:count]
        if len(upto) < count or upto[:count] != [*expect]:
            problem = f"an average over {avg} up to {kind} {number} needs {count} checkpoints, and there are {listed}"
            raise UserError(place, problem, "a smaller avg; 0 takes the checkpoint's own weights")
        names = [place / f"{kind}-{n}.pt" for n in upto[:count]]
    last = read_checkpoint(names[0])
    where = f"{names[0]}" + (f" (avg {avg})" if len(names) > 1 else "")
    if len(names) == 1:
        state = last["model"]
    else:
        of = _import("icefall.checkpoint" if find_spec("icefall") else "zipformer.utils.checkpoint", where)
        paths = [str(name) for name in names]
        if use_averaged_model and not all("model_avg" in one for one in (last, read_checkpoint(names[-1]))):
            raise UserError(where, "has no model_avg", "use_averaged_model false (--use-averaged-model 0)")
        average: Callable[..., Any] = of.average_checkpoints_with_averaged_model
        try:
            state = average(paths[-1], paths[0]) if use_averaged_model else of.average_checkpoints(paths)
        except AssertionError:
            problem = f"no average was taken since {names[-1].name}: --average-period is {last.get('average_period')}"
            raise UserError(where, problem, "a larger avg, or 0: the checkpoint's own weights") from None
    apply_masks(state, last)
    return state, {key: value for key, value in last.items() if key not in STATES}, where


def masks_of(saved: Dict[str, Any]) -> Dict[str, Tensor]:
    """Name -> True where a weight is kept, of a checkpoint's ``rnnt_kd``; {} of a dense model."""
    state = (saved.get(OURS) or {}).get("sparsifier") or {}
    suffix = ".weight_mask"
    return {name[: -len(suffix)]: mask for name, mask in state.items() if name.endswith(suffix)}


def apply_masks(state: Dict[str, Tensor], saved: Dict[str, Any]) -> None:
    for name, mask in masks_of(saved).items():
        state[name] = state[name].masked_fill(~mask.to(state[name].device), 0.0)


def read_checkpoint(path: Path) -> Dict[str, Any]:
    """UserError: missing, or no checkpoint of icefall's."""
    try:
        saved = torch.load(path, map_location="cpu", weights_only=False)
    except FileNotFoundError:
        raise UserError(path, "no such file", "a checkpoint of icefall's train.py") from None
    except Exception as error:  # whatever a pickle of anything may raise
        raise _unreadable(path, error) from None
    if not isinstance(saved, dict) or not isinstance(saved.get("model"), dict):
        raise UserError(path, "holds no model", "a checkpoint of icefall's train.py")
    return saved


@contextlib.contextmanager
def recipe_imports(folder: Path) -> Iterator[None]:
    """Imports find the modules of ``folder`` first, and those of another recipe are not disturbed by them."""
    folder = Path(folder).resolve()
    names = {path.stem for path in folder.glob("*.py")}
    before = {name: sys.modules.pop(name) for name in names & set(sys.modules)}
    setters = ("set_num_interop_threads", "set_num_threads")
    threads = [getattr(torch, name) for name in setters]
    for name in setters:  # every train.py calls them when it is imported, and the second such call ends the process
        setattr(torch, name, lambda n: None)
    sys.path.insert(0, str(folder))
    try:
        yield
    finally:
        for name, setter in zip(setters, threads):
            setattr(torch, name, setter)
        sys.path.remove(str(folder))
        for name in names:
            sys.modules.pop(name, None)
        sys.modules.update(before)


def import_train(path: Path) -> ModuleType:
    """The module of a train.py whose folder is the first to be searched.  UserError: it is none of icefall's."""
    if not path.is_file():
        raise UserError(path, "no such file", "train.py of an icefall recipe", "give the recipe's folder")
    train = _import(path.stem, path)
    missing = [name for name in ("get_params", "compute_loss", "run", "main") if not hasattr(train, name)]
    if not any(hasattr(train, name) for name in BUILDERS):
        missing.append(BUILDERS[0])
    if missing:
        raise UserError(path, f"has no {', '.join(missing)}", "train.py of an icefall transducer recipe")
    return train


def builder(train: ModuleType) -> Callable[..., nn.Module]:
    return getattr(train, next(name for name in BUILDERS if hasattr(train, name)))


def _usual_options(train: ModuleType) -> Dict[str, Any]:
    """As of decode.py: those that a checkpoint older than its recipe does not have."""
    if not hasattr(train, "get_parser"):
        return {}
    parser = train.get_parser()
    for action in parser._actions:
        action.required = False
    return vars(parser.parse_args([]))


def _import(name: str, where: object) -> ModuleType:
    """icefall's code, which ``where`` needs."""
    try:
        return importlib.import_module(name)
    except ImportError as error:
        problem = f"{name} does not import ({error})"
        raise UserError(where, problem, "icefall, its requirements and PYTHONPATH as for training") from None


def _as(usual: object, value: object, where: str) -> object:
    """``value`` as one of the kind of ``usual``: of the command line all are text."""
    if not isinstance(usual, (bool, int, float)):
        return value
    try:
        return BOOLEANS[str(value).lower()] if isinstance(usual, bool) else type(usual)(str(value))
    except (KeyError, ValueError):
        raise UserError(where, repr(value), f"as {usual!r}") from None


def _is_script(path: Path) -> bool:
    if not path.is_file() or not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        names: List[str] = archive.namelist()
    return any("/code/" in name for name in names)


def _unreadable(path: Path, error: Exception) -> UserError:
    problem = f"cannot be read ({type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''})"[:300]
    return UserError(path, problem, "a checkpoint of icefall's train.py, or jit_script.pt")
