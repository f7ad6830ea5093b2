"""One answer to "is it finished?": the record of what a folder was made of.

``<folder>/.<name>.record.json`` holds the settings, the SHA-256 of every input and, when the work has ended, of every
output.  It is written last: work that was killed has no outputs in its record, or no record at all.
"""

import hashlib
import json
from pathlib import Path
from typing import Any, Dict, Iterable, List, Mapping, Optional, Sequence, Union

from rnnt_kd import atomic
from rnnt_kd.files import parse_json

PARTS = ("settings", "inputs", "outputs")  # of a record, each a mapping
MOST_NAMED = 3  # changes, in a message


class Record:
    """What a folder is made of now, to be held against what it was made of.

    Args:
      folder:   where the outputs are.
      name:     of the work.
      settings: everything but files that the outputs depend on; JSON values, nested ones are compared by dotted key.
      inputs:   files whose contents the outputs depend on, or name -> digest.
      outputs:  paths in ``folder`` that must exist for it to be finished; those known only at the end go to ``finish``.
      sources:  inputs too large to read for this: a newer one counts as changed.
      defaults: settings that an older record without these keys has.
      notes:    what is recorded and not compared: where it was made.
    """

    def __init__(
        self,
        folder: Path,
        name: str,
        settings: Mapping[str, Any],
        inputs: Union[Sequence[Path], Mapping[str, str]],
        outputs: Sequence[str] = (),
        sources: Sequence[Path] = (),
        defaults: Mapping[str, Any] = {},
        notes: Mapping[str, str] = {},
    ):
        self.folder, self.name, self.outputs, self.sources = Path(folder), name, list(outputs), list(sources)
        self.path = self.folder / f".{name}.record.json"
        self.settings, self.defaults, self.notes = _flat(settings), _flat(defaults), dict(notes)
        given = inputs if isinstance(inputs, Mapping) else {str(path): file_digest(path) for path in inputs}
        self.inputs: Dict[str, str] = dict(given)

    def changes(self) -> List[str]:
        """What differs from the record on disk, for people; nothing where there is none."""
        before = read_record(self.path)
        if not before:
            return []
        old = {
            **{key: self.defaults[key] for key in self.settings if key in self.defaults},
            **before.get("settings", {}),
        }
        keys = sorted(key for key in {*old, *self.settings} if old.get(key) != self.settings.get(key))
        changes = [f"{key} was {old.get(key)!r} and is {self.settings.get(key)!r}" for key in keys]
        files = before.get("inputs", {})
        for name in sorted({*files, *self.inputs}):
            if files.get(name) != self.inputs.get(name):
                changes.append(
                    f"{name} changed" if name in files and name in self.inputs else f"{name} is another input"
                )
        return changes

    def why_not(self) -> str:
        """Why the folder is not finished; "" where nothing has changed since ``finish`` and the outputs are there."""
        before = read_record(self.path)
        if not before:
            return "not made"
        reasons = self.changes()
        if "outputs" not in before:
            reasons.append("it was not finished")
        outputs = dict.fromkeys([*self.outputs, *before.get("outputs", {})])
        reasons += [f"{name} is missing" for name in outputs if not self.exists(name)]
        sizes = before.get("sizes", {})
        reasons += [
            f"{name} is not what was written" for name in sizes if _size(self.folder / name) not in (None, sizes[name])
        ]
        return in_words(reasons + self._newer_sources())

    def exists(self, name: str) -> bool:
        """Is this output there?"""
        return (self.folder / name).exists()

    def start(self, keep: bool = False) -> None:
        """From here on the outputs are being replaced.  ``keep``: work that can go on records what it is made of."""
        if keep:
            self._write({})
        else:
            self.path.unlink(missing_ok=True)

    def finish(self, outputs: Iterable[str] = ()) -> None:
        """Record that the outputs belong to these settings and inputs."""
        paths = {name: self.folder / name for name in sorted({*self.outputs, *outputs})}
        sizes = {name: _size(path) for name, path in paths.items() if path.is_file()}
        self._write({"outputs": {name: file_digest(path) for name, path in paths.items()}, "sizes": sizes})

    def _write(self, more: Mapping[str, Any]) -> None:
        values = {"settings": self.settings, "inputs": self.inputs, "notes": self.notes, **more}
        atomic.write_text(self.path, json.dumps(values, indent=1, sort_keys=True) + "\n")

    def _newer_sources(self) -> List[str]:
        finished = self.path.stat().st_mtime_ns
        newer = [path for path in self.sources if path.exists() and path.stat().st_mtime_ns > finished]
        more = f" and {len(newer) - 1} more" if len(newer) > 1 else ""
        return [f"{newer[0]}{more} changed since"] if newer else []


def read_record(path: Path) -> Dict[str, Any]:
    """What stands in a record; empty where there is none, or a damaged one."""
    try:
        values = parse_json(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    whole = isinstance(values, dict) and all(isinstance(values.get(key, {}), dict) for key in PARTS)
    return values if whole else {}


def in_words(changes: Sequence[str]) -> str:
    """The first changes and how many more, for a message."""
    more = f" and {len(changes) - MOST_NAMED} more" if len(changes) > MOST_NAMED else ""
    return ", ".join(changes[:MOST_NAMED]) + more


def file_digest(path: Path) -> str:
    """SHA-256 of a file's bytes, hexadecimal; "absent" where there is none, "folder" for a folder."""
    digest = hashlib.sha256()
    try:
        with open(path, "rb") as stream:
            for block in iter(lambda: stream.read(1 << 20), b""):
                digest.update(block)
    except FileNotFoundError:
        return "absent"
    except IsADirectoryError:
        return "folder"
    return digest.hexdigest()


def _size(path: Path) -> Optional[int]:
    return path.stat().st_size if path.is_file() else None


def _flat(values: Mapping[str, Any], prefix: str = "") -> Dict[str, Any]:
    flat: Dict[str, Any] = {}
    for key, value in json.loads(json.dumps(dict(values))).items():
        flat.update(_flat(value, f"{prefix}{key}.") if isinstance(value, dict) and value else {prefix + key: value})
    return flat
