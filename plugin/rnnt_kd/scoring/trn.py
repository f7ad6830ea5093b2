"""Words and ids: NIST's trn, one utterance a line.

    YES PLEASE (fash-an4_fash-cen1)

The id is ``<speaker>-<utterance id>``: sclite -i rm takes what stands before the first "-" for the speaker.
"""

from pathlib import Path
from typing import Iterable, Mapping

from rnnt_kd import atomic
from rnnt_kd.scoring.recognitions import Recognition


def write_trn(ref_path: Path, hyp_path: Path, recognitions: Iterable[Recognition], speakers: Mapping[str, str]) -> None:
    """Write the references to one file and what was recognised to the other, sorted by id, atomically.

    Args:
      speakers: utterance id -> speaker id, every utterance of ``recognitions``.
    """
    items = sorted(recognitions, key=lambda item: item.utterance_id)
    for path, side in ((ref_path, "ref"), (hyp_path, "hyp")):
        lines = []
        for item in items:
            name = f"({speakers[item.utterance_id]}-{item.utterance_id})"
            lines.append(" ".join([*getattr(item, side), name]) + "\n")
        atomic.write_text(path, "".join(lines))
