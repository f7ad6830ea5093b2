"""Configuration files: YAML on disk <-> the dataclasses of ``rnnt_kd.config``.

OmegaConf checks types and names; its errors become one line that names the file,
the key and the keys that exist.
"""

import dataclasses
import difflib
from pathlib import Path
from typing import Any, List, Mapping, Sequence, Type, TypeVar

import yaml
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import ConfigKeyError, OmegaConfBaseException

from rnnt_kd import atomic
from rnnt_kd.config import RecipeConfig, SystemConfig
from rnnt_kd.errors import UserError

Config = TypeVar("Config")


def load_recipe(path: Path, overrides: Sequence[str] = ()) -> RecipeConfig:
    """Read a preset and apply ``key.sub=value`` overrides.

    Raises:
      UserError: no such file, not YAML, an unknown key, a value of the wrong type.
    """
    return _load(RecipeConfig, Path(path), overrides)


def read_system_config(path: Path) -> SystemConfig:
    """Read ``<system dir>/config.yaml``.  Raises UserError as ``load_recipe`` does."""
    return _load(SystemConfig, Path(path), ())


def write_system_config(path: Path, config: SystemConfig) -> None:
    """Write ``config`` with every value resolved, atomically."""
    atomic.write_text(Path(path), OmegaConf.to_yaml(OmegaConf.structured(config)))


def as_plain_dict(config: object) -> dict:
    """A dataclass as nested plain dicts and lists, for fingerprints and JSON."""
    return dataclasses.asdict(config)  # type: ignore[call-overload]


def read_mapping(path: Path, next_step: str = "check the preset's name") -> DictConfig:
    """The values of a YAML file, not held against anything yet; a key that stands twice is an error, too.

    Raises:
      UserError: no such file, not YAML, not a mapping.
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
    except FileNotFoundError:
        raise UserError(path, "no such configuration file", "a YAML file", next_step) from None
    except UnicodeDecodeError:
        raise UserError(path, "not UTF-8 text", "a YAML file") from None
    try:
        values = OmegaConf.create(text)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f"{path}:{mark.line + 1}" if mark else path
        raise UserError(where, f"not YAML ({getattr(error, 'problem', None) or error})", "key: value lines") from None
    if not OmegaConf.is_dict(values):
        raise UserError(path, "not a mapping", "key: value lines")
    return values


def checked(schema: Type[Config], values: Mapping[Any, Any], where: object) -> Config:
    """``values`` as an object of the dataclass ``schema``.  UserError: an unknown key, a value of the wrong type."""
    merged = _merge(OmegaConf.structured(schema), OmegaConf.create(dict(values)), where)
    return OmegaConf.to_object(merged)  # type: ignore[return-value]


def _load(schema: Type[Config], path: Path, overrides: Sequence[str]) -> Config:
    config = _merge(OmegaConf.structured(schema), read_mapping(path), path)
    for override in overrides:
        key, separator, _ = override.partition("=")
        if not separator:
            raise UserError("--set", f"'{override}'", "key=value", "for example teacher.training.epochs=3")
        config = _merge(config, OmegaConf.from_dotlist([override]), f"--set {key}")
    return OmegaConf.to_object(config)  # type: ignore[return-value]


def _merge(config, values, where):
    try:
        return OmegaConf.merge(config, values)
    except ConfigKeyError as error:
        key = str(error.full_key or error.key)
        known = _keys_beside(config, key)
        close = difflib.get_close_matches(key.rsplit(".", 1)[-1], known, n=1)
        hint = f"did you mean '{close[0]}'?" if close else ""
        raise UserError(where, f"unknown key '{key}'", f"one of: {', '.join(known)}", hint) from None
    except OmegaConfBaseException as error:
        first_line = str(error).splitlines()[0]
        raise UserError(where, f"'{error.full_key}': {first_line}", "a value of the right type") from None


def _keys_beside(config, key: str) -> List[str]:
    """The keys that may stand where the unknown ``key`` stands."""
    parent = key.rpartition(".")[0]
    node = OmegaConf.select(config, parent) if parent else config
    if node is None or not OmegaConf.is_config(node):
        node = config
    return sorted(str(name) for name in node)
