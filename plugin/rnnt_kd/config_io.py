"""Configuration files: YAML on disk <-> the dataclasses of ``rnnt_kd.config``.

What is wrong is one line that names the file, the key, the value and what is expected.  Nothing that stands in a file
is replaced by what stands elsewhere: ``${...}`` is an error.
"""

import dataclasses
import json
import re
import typing
from pathlib import Path
from typing import Any, Dict, List, Mapping, Sequence, Tuple, Type, TypeVar

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from pydantic import TypeAdapter, ValidationError

from rnnt_kd import atomic, choices
from rnnt_kd.config import ROLES, RecipeConfig, SystemConfig
from rnnt_kd.errors import UserError
from rnnt_kd.text_files import read_text

Config = TypeVar("Config")
MOST_VALUES = 100_000  # of a file
SHARED = ("base", "training")  # keys of a preset beside RecipeConfig's


def load_recipe(path: Path, overrides: Sequence[str] = ()) -> RecipeConfig:
    """Read a preset and apply ``key.sub=value`` overrides.

    ``base: FILE`` is a file of the same folder that this one is laid over, key by key; ``training:`` is what all roles
    have in common.
    Raises:
      UserError: no such file, not YAML, an unknown key, a value of the wrong type or out of its range.
    """
    values = _with_base(Path(path), ())
    recipe = _recipe(values, path)
    if not overrides:
        return recipe
    for override in overrides:
        values = merged(values, nested(*parse_override(override)))
    return _recipe(values, "--set")


def read_system_config(path: Path) -> SystemConfig:
    """Read ``<system dir>/config.yaml``.  Raises UserError as ``load_recipe`` does."""
    return checked(SystemConfig, read_mapping(Path(path)), path)


def write_system_config(path: Path, config: SystemConfig) -> None:
    """Write ``config`` with every value resolved, atomically."""
    atomic.write_text(Path(path), OmegaConf.to_yaml(OmegaConf.create(as_plain_dict(config))))


def as_plain_dict(config: object) -> dict:
    """A dataclass as nested plain dicts and lists, for fingerprints and JSON."""
    return dataclasses.asdict(config)  # type: ignore[call-overload]


def read_mapping(path: Path, next_step: str = "check the preset's name") -> Dict[str, Any]:
    """The values of a YAML file, not held against anything yet; a key that stands twice is an error, too.

    Raises:
      UserError: no such file, not YAML, not a mapping, or ``${...}`` in it.
    """
    text = read_text(path, "a YAML file", next_step)
    reference = re.search(r"\$\{[^}\n]*\}?", text)
    if reference:
        raise UserError(path, f"'{reference.group()}'", "plain values", "write the value itself")
    try:
        _check_size(yaml.compose(text, Loader=yaml.SafeLoader), {})
        values = OmegaConf.create(text)
    except RecursionError:
        raise UserError(path, "nested too deep, or an alias of itself", "key: value lines") from None
    except (AssertionError, OmegaConfBaseException) as error:  # a number or date alone; a key such as null
        found = str(error).partition("\n")[0] or "a value alone"
        raise UserError(path, f"not a mapping with names as keys ({found})", "key: value lines") from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f"{path}:{mark.line + 1}" if mark else path
        raise UserError(where, f"not YAML ({getattr(error, 'problem', None) or error})", "key: value lines") from None
    except (ValueError, LookupError, AttributeError) as error:  # of a value whose tag or prefix says what it is not
        raise UserError(path, f"not YAML ({error!s:.100})", "key: value lines") from None
    if not OmegaConf.is_dict(values):
        raise UserError(path, "not a mapping", "key: value lines")
    return OmegaConf.to_container(values)  # type: ignore[return-value]


def _check_size(node: Any, sizes: Dict[int, int]) -> int:
    """Values below a YAML node, aliases written out.  Raises yaml.YAMLError: more than any file of ours has."""
    if id(node) not in sizes:
        inner = node.value if isinstance(node, yaml.CollectionNode) else []
        nodes = [part for item in inner for part in (item if isinstance(item, tuple) else (item,))]
        sizes[id(node)] = 1 + sum(_check_size(part, sizes) for part in nodes)
    if sizes[id(node)] > MOST_VALUES:
        raise yaml.YAMLError(f"more than {MOST_VALUES} values, its aliases written out")
    return sizes[id(node)]


def checked(schema: Type[Config], values: Mapping[str, Any], where: object) -> Config:
    """``values`` as an object of the dataclass ``schema``.

    Raises:
      UserError: an unknown key, a value of the wrong type or out of its range; it begins with ``where``.
    """
    try:
        return TypeAdapter(schema).validate_python(dict(values))
    except ValidationError as failed:
        error = failed.errors()[0]
    loc, context, found = list(map(str, error["loc"])), error.get("ctx", {}), error.get("input")
    own, place = context.get("error"), ".".join(map(str, error["loc"]))
    if isinstance(own, UserError):  # of a rule over several values, which names the last part of the key
        whole = ".".join([*loc, own.where.rpartition(".")[2]])
        raise UserError(_place(where, whole), own.problem, own.expected, own.next_step)
    if error["type"] == "unexpected_keyword_argument":
        known = _keys(schema, loc[:-1]) + (list(SHARED) if schema is RecipeConfig and len(loc) == 1 else [])
        hint = choices.nearest(loc[-1], known)
        raise UserError(where or place, f"unknown key '{place}'", f"one of: {', '.join(sorted(known))}", hint)
    expected = _EXPECTED.get(error["type"], error["msg"]).format(**context)
    if error["type"] == "literal_error":
        expected = "one of: " + context["expected"].replace("'", "").replace(" or ", ", ")
    raise UserError(_place(where, place), json.dumps(found, default=str, ensure_ascii=False), expected)


def parse_override(text: str) -> Tuple[str, Any]:
    """``key.sub=value`` as (key, value), the value as in YAML.  UserError: no "=", or no YAML behind it."""
    key, separator, value = text.partition("=")
    if not separator or not all(key.split(".")):
        raise UserError("--set", f"'{text}'", "KEY=VALUE", "for example sparse90_kd.kd.scale=2")
    if "${" in value:
        raise UserError(f"--set {key}", f"'{value}'", "a plain value", "write the value itself")
    if re.fullmatch(r"\d+:\d+", value):  # the structure 2:4, which YAML reads as a number to the base of 60
        return key, value
    try:
        return key, OmegaConf.to_container(OmegaConf.from_dotlist([f"value={value}"]))["value"]  # type: ignore
    except Exception:  # the YAML parser's own
        raise UserError(f"--set {key}", f"'{value}'", "a value as in YAML", "for example 2, [1, 2] or text") from None


def nested(key: str, value: Any) -> Dict[str, Any]:
    """``a.b`` and a value as ``{"a": {"b": value}}``."""
    first, _, rest = key.partition(".")
    return {first: nested(rest, value) if rest else value}


def merged(below: Mapping[str, Any], above: Mapping[str, Any]) -> Dict[str, Any]:
    """``above`` over ``below``, mappings key by key at any depth; a number for ``sparsity`` is its target."""
    result = dict(below)
    for key, value in above.items():
        old = result.get(key)
        if key == "sparsity":
            old, value = ({"target": item} if _is_number(item) else item for item in (old, value))
        result[key] = merged(old, value) if isinstance(old, Mapping) and isinstance(value, Mapping) else value
    return result


def mapping(value: Any, where: str) -> Dict[Any, Any]:
    """``value``, if it is a mapping; else UserError."""
    if not isinstance(value, dict):
        raise UserError(where, f"'{value}' is no mapping", "key: value pairs")
    return value


_EXPECTED = {  # pydantic's type of an error -> what was expected
    "int_type": "a whole number",
    "float_type": "a number",
    "finite_number": "a finite number",
    "bool_type": "true or false",
    "string_type": 'text, in quotes where YAML reads a number, as in structure: "2:4"',
    "list_type": "a list",
    "dict_type": "key: value pairs",
    "dataclass_type": "key: value pairs",
    "greater_than": "a number > {gt:g}",
    "greater_than_equal": "a number >= {ge:g}",
    "less_than": "a number < {lt:g}",
    "less_than_equal": "a number <= {le:g}",
    "too_short": "at least {min_length} values",
    "too_long": "at most {max_length} values",
}


def _recipe(values: Mapping[str, Any], where: object) -> RecipeConfig:
    values = dict(values)
    shared = mapping(values.pop("training", None) or {}, f"{where}: training")
    for role in ROLES:
        if values.get(role) is not None or (shared and role != "streaming_student"):
            part = mapping(values.get(role) or {}, f"{where}: {role}")
            own = mapping(part.get("training") or {}, f"{where}: {role}.training")
            values[role] = {**part, "training": merged(shared, own)}
    return checked(RecipeConfig, values, where)


def _with_base(path: Path, above: Tuple[Path, ...]) -> Dict[str, Any]:
    values = read_mapping(path, f"it is the base of {above[-1]}" if above else "check the preset's name")
    if "base" not in values:
        return values
    base = str(values.pop("base"))
    below = path.parent / base
    if below.name != base or below in (*above, path):
        raise UserError(f"{path}: base", base, "another file of the same folder, not laid over this one")
    return merged(_with_base(below, (*above, path)), values)


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _place(where: object, key: object) -> str:
    return f"{where}: {key}" if str(where) else str(key)


def _keys(schema: Any, parents: Sequence[str]) -> List[str]:
    """The keys that may stand below ``parents``."""
    for name in parents:
        hints = typing.get_type_hints(schema)
        inner = [kind for kind in (hints[name], *typing.get_args(hints[name])) if dataclasses.is_dataclass(kind)]
        schema = inner[0] if inner else schema
    return [item.name for item in dataclasses.fields(schema)]
