"""The figures of a scoring as JSON values, and the JSON files of a run."""

import json
from pathlib import Path
from typing import Any, Dict, Optional

from rnnt_kd.errors import UserError
from rnnt_kd.scoring.word_errors import ErrorCounts


def figures(counts: ErrorCounts) -> Dict[str, Any]:
    """``wer`` in per cent (None without reference words) and the counts it is made of."""
    return {
        "wer": round(counts.wer, 4) if counts.words else None,
        "errors": counts.errors,
        "words": counts.words,
        "ins": counts.ins,
        "del": counts.dels,
        "sub": counts.subs,
        "utterances": counts.utterances,
    }


def read_json(path: Path, default: Optional[Dict[str, Any]] = None) -> Dict[str, Any]:
    """A JSON object from disk; ``default`` where there is no such file.

    Raises:
      UserError: no file and no default, or not a JSON object.
    """
    try:
        value = json.loads(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        if default is None:
            raise UserError(path, "no such file", "a file written by rnnt_kd", "run the stage that makes it") from None
        return default
    except ValueError:
        value = None
    if not isinstance(value, dict):
        raise UserError(
            path, "not a JSON object", "a file written by rnnt_kd", "delete it and run the stage that makes it again"
        )
    return value
