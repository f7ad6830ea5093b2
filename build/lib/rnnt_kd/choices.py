"""Names on the command line are modules on disk, or functions of one: which there are, and the one asked for."""

import difflib
import importlib
import inspect
import pkgutil
from types import ModuleType
from typing import Callable, Dict, List, Sequence

from rnnt_kd.errors import UserError


def names(package: str, suffix: str = "") -> List[str]:
    """Public modules of ``package`` (dotted) whose name ends in ``suffix``, sorted, without it."""
    found = [module.name for module in pkgutil.iter_modules(importlib.import_module(package).__path__)]
    return sorted(name[: len(name) - len(suffix)] for name in found if name.endswith(suffix) and name[0] != "_")


def load(package: str, name: str, suffix: str = "", what: object = None) -> ModuleType:
    """The module ``package.<name><suffix>``.  UserError, about ``what`` (default: the package): there is none."""
    check(name, names(package, suffix), what or package.rpartition(".")[2])
    return importlib.import_module(f"{package}.{name}{suffix}")


def functions(module: ModuleType) -> Dict[str, Callable]:
    """Option value -> public function of ``module`` itself, in its order; "-" for the functions' "_"."""
    return {
        name.replace("_", "-"): value
        for name, value in vars(module).items()
        if inspect.isfunction(value) and value.__module__ == module.__name__ and not name.startswith("_")
    }


def function(module: ModuleType, name: str, what: object) -> Callable:
    """The function behind an option value.  UserError, about ``what``: there is none."""
    return functions(module)[check(name, list(functions(module)), what)]


def check(name: str, known: Sequence[str], what: object) -> str:
    """``name``, if it is one of ``known``.  UserError, about ``what``: it is not; the nearest right one is named."""
    if name not in known:
        raise UserError(what, f"there is no '{name}'", f"one of: {', '.join(known)}", nearest(name, known))
    return name


def nearest(name: str, known: Sequence[str]) -> str:
    """A next step for a mistyped name, empty where nothing is like it."""
    close = difflib.get_close_matches(str(name), list(known), n=1)
    return f"did you mean '{close[0]}'?" if close else ""
