"""One answer to "is it finished?" and to "is it what was written?": the record of what a folder was made of.

``<folder>/.<name>.record.json`` holds the settings, the SHA-256 of every input and, when the work has ended, of every
output, and its own.  It is written last: work that was killed has no outputs in its record, or no record at all.
"""

import hashlib
import json
import os
import stat
from pathlib import Path
from typing import Any, Dict, Iterable, Iterator, List, Mapping, Optional, Sequence, Union

from rnnt_kd import atomic
from rnnt_kd.errors import UserError
from rnnt_kd.files import parse_json

PARTS = ("settings", "inputs", "outputs", "stats", "sources", "notes", "sizes")  # of a record, mappings; sizes: once
MOST_NAMED = 3  # changes, in a message
LARGE = 1 << 20  # bytes; of such an output size and time are compared, and its contents where these differ


class Record:
    """What a folder is made of now, to be held against what it was made of.

    Args:
      folder:   where the outputs are.
      name:     of the work.
      settings: everything but files that the outputs depend on; JSON values, nested ones are compared by dotted key.
      inputs:   files whose contents the outputs depend on, or name -> digest.
      outputs:  paths in ``folder`` that must exist for it to be finished, of a folder all files in it; those known
                only at the end go to ``finish``.
      sources:  inputs too large to read for this: size, time and where a link leads are compared; or name -> path.
      defaults: settings that an older record without these keys has.
      notes:    what is recorded and not compared: where it was made.
    """

    ignored: Sequence[str] = ()  # settings that an older record may have, and on which nothing depends

    def __init__(
        self,
        folder: Path,
        name: str,
        settings: Mapping[str, Any],
        inputs: Union[Sequence[Path], Mapping[str, str]],
        outputs: Sequence[str] = (),
        sources: Union[Sequence[Path], Mapping[str, Path]] = (),
        defaults: Mapping[str, Any] = {},
        notes: Mapping[str, str] = {},
    ):
        self.folder, self.name, self.outputs = Path(folder), name, list(outputs)
        self.path = record_path(self.folder, name)
        self.settings, self.defaults, self.notes = _flat(settings), _flat(defaults), dict(notes)
        given = inputs if isinstance(inputs, Mapping) else {str(path): file_digest(path) for path in inputs}
        self.inputs: Dict[str, str] = dict(given)
        self._paths = dict(sources) if isinstance(sources, Mapping) else {str(path): path for path in sources}
        self.sources = {name: _source(path) for name, path in self._paths.items()}

    def changes(self) -> List[str]:
        """What differs from the record on disk, for people; nothing where there is none."""
        before = read_record(self.path)
        if not before:
            return []
        old = {
            **{key: self.defaults[key] for key in self.settings if key in self.defaults},
            **before.get("settings", {}),
        }
        keys = sorted({*old, *self.settings} - {*self.ignored})
        keys = [key for key in keys if old.get(key) != self.settings.get(key)]
        changes = [f"{key} was {old.get(key)!r} and is {self.settings.get(key)!r}" for key in keys]
        files = before.get("inputs", {})
        common = [name for name in sorted(files) if name in self.inputs]
        changes += [f"{name} changed" for name in common if files[name] != self.inputs[name]]
        others = [{name: all_[name] for name in all_ if name not in common} for all_ in (files, self.inputs)]
        if sorted(others[0].values()) != sorted(others[1].values()):  # else the same files, elsewhere
            changes += [f"{name} is another input" for name in sorted({**others[0], **others[1]})]
        return changes

    def identity(self) -> str:
        """SHA-256 of inputs and of all settings that are not the usual ones: an option to come changes nothing."""
        unusual = {key: value for key, value in self.settings.items() if self.defaults.get(key) != value}
        return json_digest([unusual, self.inputs])

    def why_not(self) -> str:
        """Why the folder is not finished; "" where nothing has changed since ``finish`` and the outputs are there."""
        before = read_record(self.path)
        if not before:
            return "its record is damaged" if self.path.exists() else "not made"
        reasons = self.changes()
        if "outputs" not in before:
            reasons.append("it was not finished")
        for name in dict.fromkeys([*self.outputs, *before.get("outputs", {})]):
            if not self.place(name).exists():
                reasons.append(f"{name} is missing")
            elif not self.is_whole(name, before):
                reasons.append(f"{name} is not what was written")
        return in_words(reasons + self._changed_sources(before))

    def place(self, name: str) -> Path:
        """Where an output is."""
        return self.folder / name

    def digest(self, name: str) -> str:
        """SHA-256 of an output."""
        return file_digest(self.place(name))

    def is_whole(self, name: str, before: Mapping[str, Any]) -> bool:
        """Is an output what was written, as far as ``before``, the record on disk, can tell?"""
        written = before.get("outputs", {}).get(name)
        if written is None or self.place(name).is_dir():
            return True
        stat = _stat(self.place(name))
        return (stat[0] >= LARGE and stat == before.get("stats", {}).get(name)) or self.digest(name) == written

    def start(self, keep: bool = False) -> None:
        """From here on the outputs are being replaced.  ``keep``: work that can go on records what it is made of."""
        if keep:
            self._write({})
        else:
            self.path.unlink(missing_ok=True)

    def finish(self, outputs: Union[Iterable[str], Mapping[str, str]] = ()) -> None:
        """Record that the outputs belong to these settings and inputs; ``outputs`` may hold digests that are known."""
        known = outputs if isinstance(outputs, Mapping) else {}
        names = [name for given in sorted({*self.outputs, *outputs}) for name in _files(self.folder, given)]
        stats = {name: _stat(self.folder / name) for name in names if (self.folder / name).is_file()}
        self._write({"outputs": {name: known.get(name) or self.digest(name) for name in names}, "stats": stats})

    def _write(self, more: Mapping[str, Any]) -> None:
        values = {key: getattr(self, key) for key in ("settings", "inputs", "sources", "notes")}
        values = json.loads(json.dumps({**values, **more}))
        values["sha256"] = json_digest(values)
        atomic.write_text(self.path, json.dumps(values, indent=1, sort_keys=True) + "\n")

    def _changed_sources(self, before: Mapping[str, Any]) -> List[str]:
        recorded, finished = before.get("sources"), self.path.stat().st_mtime_ns
        changed = [
            str(self._paths[name])
            for name, now in self.sources.items()
            if (now != recorded.get(name) if recorded is not None else now is not None and now[1] > finished)
        ]
        changed += [name for name in recorded or () if name not in self.sources]
        more = f" and {len(changed) - 1} more" if len(changed) > 1 else ""
        return [f"{changed[0]}{more} changed since"] if changed else []


def record_path(folder: Path, name: str) -> Path:
    """Where the record of some work in a folder is."""
    return Path(folder) / f".{name}.record.json"


def read_record(path: Path) -> Dict[str, Any]:
    """What stands in a record; empty where there is none, or a damaged one."""
    try:
        values = parse_json(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    if not isinstance(values, dict):
        return {}
    own = values.pop("sha256", None)  # none in those of earlier versions
    whole = set(values) <= set(PARTS) and all(isinstance(value, dict) for value in values.values())
    if not whole or own not in (None, json_digest(values)):
        return {}
    digests = [digest for key in ("inputs", "outputs") for digest in values.get(key, {}).values()]
    return values if all(isinstance(digest, str) for digest in digests) else {}


def verify(
    path: Path, name: str, next_step: str, output: str = "", digest: str = "", folder: Optional[Path] = None
) -> None:
    """Hold a file against the record of the work ``name`` in its folder, where there is one.

    Args:
      output: the file's name in the record, if another.
      digest: of the file, if known.
      folder: where the record is, if elsewhere; then ``output`` is the path from there.
    Raises:
      UserError: it is not what was written, or the record is damaged.  Files from elsewhere have no record.
    """
    path = Path(path)
    where = record_path(folder or path.parent, name)
    record = read_record(where)
    on_purpose = f"{next_step}; or remove {where} to use what is there as it is"
    if not record and where.exists():
        raise UserError(where, "damaged", f"the record that {path.name} is held against", on_purpose)
    written = record.get("outputs", {}).get(output or path.name)
    if written is not None and written != (digest or file_digest(path)):
        raise UserError(path, "is not what was written", f"SHA-256 {written[:12]}... of {where.name}", on_purpose)


def in_words(changes: Sequence[str]) -> str:
    """The first changes and how many more, for a message."""
    more = f" and {len(changes) - MOST_NAMED} more" if len(changes) > MOST_NAMED else ""
    return ", ".join(changes[:MOST_NAMED]) + more


def file_digest(path: Path) -> str:
    """SHA-256 of a file's bytes, hexadecimal; of a folder, of names and sizes in it; else "absent" or "device"."""
    digest = hashlib.sha256()
    try:
        if not stat.S_ISREG(mode := os.stat(path).st_mode):
            if not stat.S_ISDIR(mode):
                return "device"
            return json_digest({name: (path / name).stat().st_size for name in _files(path, "")})
        with open(path, "rb") as stream:
            for block in iter(lambda: stream.read(1 << 20), b""):
                digest.update(block)
    except FileNotFoundError:
        return "absent"
    return digest.hexdigest()


def json_digest(values: Any) -> str:
    """SHA-256 that does not depend on spaces or the order of keys."""
    text = json.dumps(values, sort_keys=True, ensure_ascii=True, separators=(",", ":"))
    return hashlib.sha256(text.encode("utf-8")).hexdigest()


def _stat(path: Path) -> List[int]:
    status = path.stat()
    return [status.st_size, status.st_mtime_ns]


def _source(path: Path) -> Optional[List[Any]]:
    """Size, time, and where links lead, one after the other; None where there is no file."""
    links, place = [], os.fspath(path)
    if not os.path.exists(place):
        return None
    while os.path.islink(place):
        links.append(os.readlink(place))
        place = os.path.join(os.path.dirname(place), links[-1])
    return [*_stat(Path(path)), *links]


def _files(folder: Path, name: str) -> Iterator[str]:
    """An output; the files in it where it is a folder."""
    if (folder / name).is_dir():
        inside = sorted(path for path in (folder / name).rglob("*") if path.is_file())
        yield from (path.relative_to(folder).as_posix() for path in inside)
    else:
        yield name


def _flat(values: Mapping[str, Any], prefix: str = "") -> Dict[str, Any]:
    flat: Dict[str, Any] = {}
    for key, value in json.loads(json.dumps(dict(values))).items():
        flat.update(_flat(value, f"{prefix}{key}.") if isinstance(value, dict) and value else {prefix + key: value})
    return flat
