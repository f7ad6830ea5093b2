"""From measured passes of encoders to rows and a table.

A part's time is the median over its rounds (low, high: its fastest and slowest), a row's their sum; ``faster`` is
the median over all parts and rounds of the first system's time divided by this one's, both taken in the same turn in
the same engine.
1 MB is 10**6 bytes.
"""

from statistics import median
from typing import Any, Dict, List, Optional, Sequence

from rnnt_kd.benchmark.rounds import Job
from rnnt_kd.benchmark.table import align

HEADER = (
    *("engine", "system", "zeros", "structure", "real-time factor", "low..high", "faster than"),
    *("MB of weights", "peak MB", "%WER", "ins", "del", "sub", "other words"),
)
LEFT_COLUMNS = (0, 1, 3, 5)


def rows_of_engine(jobs: Sequence[Job], audio_seconds: float) -> List[Dict[str, Any]]:
    """Rows of the jobs that ran in one engine; ``faster`` compares with the first job, if that ran."""
    first = jobs[0] if jobs and jobs[0].cannot is None else None
    return [_row(job, first, audio_seconds) for job in jobs if job.cannot is None]


def encoder_table(rows: Sequence[Dict[str, Any]], markdown: bool = False) -> str:
    """``HEADER`` and a line a row; the column of words only where some row has a word error rate."""
    lines = [HEADER] + [_cells(row) for row in rows]
    if not any(row["wer"] is not None for row in rows):
        lines = [line[:9] for line in lines]
    if markdown:
        rule = ["---" if column in LEFT_COLUMNS else "---:" for column in range(len(lines[0]))]
        return "\n".join("| " + " | ".join(line) + " |" for line in [lines[0], rule, *lines[1:]])
    return align(lines, LEFT_COLUMNS)


def _row(job: Job, first: Optional[Job], audio_seconds: float) -> Dict[str, Any]:
    facts = job.facts
    return {
        "engine": job.specification["engine"],
        "system": job.name,
        "structure": facts["structure"],
        "sparsity": round(facts["sparsity"], 4),
        "non_zeros": facts["non_zeros"],
        "rtf": sum(median(times) for times in job.seconds) / audio_seconds,
        "low": sum(min(times) for times in job.seconds) / audio_seconds,
        "high": sum(max(times) for times in job.seconds) / audio_seconds,
        "rounds": len(job.seconds[0]),
        "faster": None if first is None else _faster(first, job),
        "faster_than": None if first is None else first.name,
        "bytes": facts["bytes"],
        "peak_bytes": facts["peak_bytes"],
        "wer": None,
    }


def _faster(first: Job, job: Job) -> float:
    pairs = [pair for theirs, ours in zip(first.seconds, job.seconds) for pair in zip(theirs, ours)]
    return median(theirs / ours for theirs, ours in pairs)


def _cells(row: Dict[str, Any]) -> List[str]:
    cells = [
        row["engine"],
        row["system"],
        f"{100 * row['sparsity']:.0f} %",
        row["structure"],
        f"{row['rtf']:.6f}",
        f"{row['low']:.6f}..{row['high']:.6f}",
        "-" if row["faster"] is None else f"{row['faster']:.2f} x {row['faster_than']}",
        f"{row['bytes'] / 1e6:.2f}",
        f"{row['peak_bytes'] / 1e6:.1f}",
    ]
    if row["wer"] is None:
        return cells + ["-"] * 5
    return cells + [f"{row['wer']:.2f}", *(str(row[key]) for key in ("ins", "del", "sub", "other_words"))]
