"""Finished stages are skipped; a changed setting runs a stage again.

What a stage made is described by ``<out_dir>/.<name>.stage.json``: its settings and
the SHA-256 of every input file.  The record is written last, so a stage that was
killed has none.
"""

import hashlib
import json
from pathlib import Path
from typing import Iterable, List, Mapping, Sequence

from rnnt_kd import atomic


class Stage:
    """The record of one stage.

    Args:
      out_dir:  where the outputs are.
      name:     what the record is called and what messages say.
      settings: everything but files that the outputs depend on; JSON values.
      inputs:   files whose contents the outputs depend on.
      sources:  such files that are too large to read for this: a newer one runs the stage again.
      outputs:  paths, relative to ``out_dir``, that must exist for the stage to count as finished;
                those known only at the end are given to ``finish``.
    """

    def __init__(
        self,
        out_dir: Path,
        name: str,
        settings: Mapping,
        inputs: Sequence[Path],
        outputs: Sequence[str],
        sources: Sequence[Path] = (),
    ):
        self.out_dir, self.name, self.outputs, self.sources = Path(out_dir), name, list(outputs), list(sources)
        self.record_path = self.out_dir / f".{name}.stage.json"
        self._now = {
            "settings": json.loads(json.dumps(dict(settings))),
            "inputs": {str(path): file_digest(Path(path)) for path in inputs},
        }

    def is_finished(self) -> bool:
        """True, and one line that says so, if nothing has changed since ``finish``."""
        try:
            before = json.loads(self.record_path.read_text(encoding="utf-8"))
        except (FileNotFoundError, ValueError):
            return False
        reasons = _differences(before, self._now)
        outputs = self.outputs + before.get("outputs", [])
        reasons += [f"{name} is missing" for name in outputs if not (self.out_dir / name).exists()]
        reasons += self._newer_sources()
        if reasons:
            print(f"{self.name}: runs again, because {'; '.join(reasons)}", flush=True)
            return False
        print(f"{self.name}: finished already, skipped ({self.out_dir})", flush=True)
        return True

    def start(self) -> None:
        """Forget an older record: from here on the outputs are being replaced."""
        self.record_path.unlink(missing_ok=True)

    def finish(self, outputs: Iterable[str] = ()) -> None:
        """Record that the outputs belong to these settings and inputs."""
        record = {**self._now, "outputs": sorted(outputs)}
        atomic.write_text(self.record_path, json.dumps(record, indent=1, sort_keys=True) + "\n")

    def _newer_sources(self) -> List[str]:
        finished = self.record_path.stat().st_mtime_ns
        newer = [path for path in self.sources if path.exists() and path.stat().st_mtime_ns > finished]
        more = f" and {len(newer) - 1} more" if len(newer) > 1 else ""
        return [f"{newer[0]}{more} changed since"] if newer else []


def file_digest(path: Path) -> str:
    """SHA-256 of a file's bytes, hexadecimal; "absent" where there is none."""
    digest = hashlib.sha256()
    try:
        with open(path, "rb") as stream:
            for block in iter(lambda: stream.read(1 << 20), b""):
                digest.update(block)
    except FileNotFoundError:
        return "absent"
    return digest.hexdigest()


def _differences(before: Mapping, now: Mapping) -> List[str]:
    """Human words for what changed: settings by value, inputs by name."""
    reasons = []
    old, new = before.get("settings", {}), now["settings"]
    for key in sorted(set(old) | set(new)):
        if old.get(key) != new.get(key):
            reasons.append(f"{key} was {old.get(key)!r} and is {new.get(key)!r}")
    old, new = before.get("inputs", {}), now["inputs"]
    for path in sorted(set(old) | set(new)):
        if old.get(path) != new.get(path):
            reasons.append(f"{path} changed" if path in old and path in new else f"{path} is another input")
    return reasons
