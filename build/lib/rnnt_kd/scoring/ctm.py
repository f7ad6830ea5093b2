"""Words with times and confidences: NIST's ctm, as Kaldi writes it and sclite reads it.

    <utterance id> 1 <start> <duration> <word> <confidence>

One word a line, times in seconds from the utterance's start; sorted by id as bytes (``LC_ALL=C sort``), which
sclite needs, then by start.  An utterance without words has no line.  Characters to which sclite gives a meaning are
written as trn.py says.
"""

from pathlib import Path
from typing import Iterable, Tuple

from rnnt_kd import atomic
from rnnt_kd.scoring.alternatives import Alternative
from rnnt_kd.scoring.trn import escaped


def write_ctm(path: Path, found: Iterable[Tuple[str, Alternative]]) -> None:
    """Write (utterance id, its best hypothesis) pairs, atomically."""
    lines = []
    for utterance_id, item in sorted(found, key=lambda pair: escaped(pair[0]).encode()):
        for word, start, end, sure in zip(
            item.words, item.word_starts, item.word_ends, item.word_confidences, strict=True
        ):
            times = f"{start:.2f} {end - start:.2f}"
            lines.append(f"{escaped(utterance_id)} 1 {times} {escaped(word)} {sure:.4f}\n")
    atomic.write_text(path, "".join(lines))
