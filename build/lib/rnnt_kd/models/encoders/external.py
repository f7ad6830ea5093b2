"""Any ``nn.Module`` as encoder: ``encoder: external``, ``encoder_options: {factory: "package.module:function", ...}``.

What the factory's module must offer is in docs/encoders.md; what it does not say, a batch of noise tells, and what it
says is compared with that.  Reading a system of this kind imports the module that its ``config.yaml`` names, which
runs that module's code; so it must be one that the user placed on PYTHONPATH, not any function of the Python that is
installed (``subprocess:run`` is one), or icefall's of this package, which asks that of its recipe.  No other value of
a configuration is imported by its name.
"""

import importlib.util
import re
import site
import sysconfig
from typing import Any, List, Optional, Tuple

import torch
from torch import Tensor, nn

from rnnt_kd.errors import UserError

SIZES: dict = {}  # the options say everything
FEATURE_DIM = 80
PROBED = torch.arange(160, 201)  # feature frames of the utterances of noise
LARGEST_FACTOR = 20  # two periods of it are probed
ICEFALL = "rnnt_kd.icefall.external"
_FACTORY = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)*:[^\W\d]\w*")


class External(nn.Module):
    """Somebody else's module, as ``module``, with the members of ``interfaces.Encoder``.

    Args:
      factory: "package.module:function".
      dropout: of the configuration; not handed on, for a factory has options of its own.
      options: for the factory.

    Raises:
      UserError: a factory that cannot be imported or called, or whose module is no encoder; it says why.
    """

    def __init__(self, dropout: float = 0.0, *, factory: str = "", **options: Any):
        super().__init__()
        self._where = f"encoder_options.factory {factory}".rstrip()
        self.module = self._make(factory, options)
        lens, dim = self._probe()
        counted, self._offset = counted_by(lens)
        own = getattr(self.module, "output_lengths", None)
        factor: Any = getattr(self.module, "subsampling_factor", counted)
        if counted is None and (own is None or factor is None):
            missing = "a module with subsampling_factor and output_lengths"
            raise self._error(f"no (T + a) // b, b <= {LARGEST_FACTOR}, counts its frames, {lens[0]} of 160", missing)
        self.subsampling_factor: int = factor
        self.output_dim: int = getattr(self.module, "output_dim", dim)
        expected = self.output_lengths(PROBED).tolist()
        if (lens, dim) != (expected, self.output_dim):
            frames, found, wanted = next((x for x in zip(PROBED.tolist(), lens, expected) if x[1] != x[2]), (160,) * 3)
            if found == wanted:
                raise self._error(f"makes {dim} dimensions", f"{self.output_dim}, its output_dim")
            raise self._error(f"makes {found} frames of {frames}", f"{wanted}, as its output_lengths says")

    def forward(self, x: Tensor, x_lens: Tensor) -> Tuple[Tensor, Tensor]:
        """(N, T, 80) float32, (N,) int64 -> (N, T', D), (N,) int64."""
        out, lens = self.module(x, x_lens)
        return out, lens.to(torch.int64)

    def output_lengths(self, x_lens: Tensor) -> Tensor:
        """The module's own, or (x_lens + a) // b, at least 0, with the numbers that were probed."""
        own = getattr(self.module, "output_lengths", None)
        if own is not None:
            return own(x_lens).to(torch.int64)
        return torch.div(x_lens + self._offset, self.subsampling_factor, rounding_mode="floor").clamp(min=0)

    def _make(self, factory: str, options: dict) -> nn.Module:
        if not _FACTORY.fullmatch(str(factory)):
            raise UserError("encoder_options.factory", repr(factory), '"package.module:function"')
        module_name, _, name = factory.partition(":")
        installed = "is of Python, of an installed package or of rnnt_kd"
        if _is_installed(module_name):
            raise self._error(installed, "a function of your own, in a folder on PYTHONPATH")
        try:
            function = getattr(importlib.import_module(module_name), name, None)
        except (Exception, SystemExit) as error:
            raise self._error(f"does not import ({_short(error)})", "a module on PYTHONPATH") from error
        if not callable(function):
            raise self._error(f"{module_name} has no function {name}", "a callable")
        is_module = isinstance(function, type) and issubclass(function, nn.Module)
        if not is_module and _is_installed(str(getattr(function, "__module__", None) or "builtins")):
            raise self._error(installed, f"a function that stands in {module_name} itself")
        try:
            made = function(**options)
        except UserError:
            raise
        except (Exception, SystemExit) as error:
            raise self._error(f"fails ({_short(error)})", "a factory that takes these encoder_options") from error
        if not isinstance(made, nn.Module):
            raise self._error(f"returns a {type(made).__name__}", "an nn.Module")
        return made

    @torch.no_grad()
    def _probe(self) -> Tuple[List[int], int]:
        """Frames of utterances of ``PROBED`` feature frames, and D."""
        noise = torch.randn(len(PROBED), int(PROBED.max()), FEATURE_DIM, generator=torch.Generator().manual_seed(0))
        training = self.module.training
        self.module.eval()
        try:
            with torch.random.fork_rng(devices=[]):
                out, lens = self.module(3.5 * noise - 7.5, PROBED.clone())
            shapes = tuple(out.shape), tuple(lens.shape)
        except (Exception, SystemExit) as error:
            shape = f"x {tuple(noise.shape)}, x_lens {tuple(PROBED.shape)}"
            raise self._error(f"fails on {shape} ({_short(error)})", "forward(x, x_lens) -> (out, lens)") from error
        finally:
            self.module.train(training)
        longest = int(lens.max())
        if len(shapes[0]) != 3 or (shapes[0][0], shapes[0][1], shapes[1]) != (len(PROBED), longest, (len(PROBED),)):
            expected = f"({len(PROBED)}, {longest}, D) and ({len(PROBED)},), {longest} being the longest of lens"
            raise self._error(f"returns out {shapes[0]} and lens {shapes[1]}", expected)
        return lens.tolist(), shapes[0][2]

    def _error(self, problem: str, expected: str) -> UserError:
        return UserError(self._where, problem, expected)


def _is_installed(module: str) -> bool:
    """Does it come with Python, an installed package or this program, which nobody chose to make an encoder?"""
    package = module.partition(".")[0]
    if module == ICEFALL:
        return False
    try:
        spec = importlib.util.find_spec(package)
    except ValueError:  # made by a program, not found
        return False
    if spec is None:
        return False
    paths = sysconfig.get_paths()
    folders = [paths[key] for key in ("stdlib", "platstdlib", "purelib", "platlib")]
    folders += [*site.getsitepackages(), site.getusersitepackages()]
    found = [*(spec.submodule_search_locations or []), str(spec.origin)]
    ours = package in ("rnnt_kd", "benchmark") or spec.origin in ("built-in", "frozen")
    return ours or any(place.startswith(f"{folder}/") for place in found for folder in folders)


def counted_by(lens: List[int]) -> Tuple[Optional[int], int]:
    """b and a of (T + a) // b, which gives ``lens`` for ``PROBED``; (None, 0) where there is none."""
    first = int(PROBED[0])
    for b in range(1, LARGEST_FACTOR + 1):
        for a in range(b * lens[0] - first, b * lens[0] - first + b):
            if [(T + a) // b for T in PROBED.tolist()] == lens:
                return b, a
    return None, 0


def _short(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}".splitlines()[0][:200]
