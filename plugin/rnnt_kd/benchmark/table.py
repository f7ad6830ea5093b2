"""The results as text.

A row's time is followed by its lowest and highest; "-" stands where there is nothing to compare with.
"""

from typing import Any, Dict, List, Optional, Sequence

from rnnt_kd.benchmark.results import Goal, Row, Slope

HEADER = (
    *("C", "batch", "teacher", "by", "seconds", "low..high", "peak MB"),
    *("time ÷ k2", "memory ÷ k2", "time ÷ matmul"),
)


def results_table(rows: Sequence[Row]) -> str:
    lines: List[Sequence[str]] = [HEADER]
    for row in rows:
        lines.append(
            (
                str(row.vocab),
                str(row.batch),
                "" if row.is_floor else row.variant,
                row.name,
                _number(row.seconds),
                f"{_number(row.low)}..{_number(row.high)}",
                "" if row.is_floor else f"{row.peak_mb:.1f}",
                _ratio(row.time_vs_k2),
                _ratio(row.memory_vs_k2),
                _ratio(row.time_vs_matmul),
            )
        )
    return align(lines)


def goals_table(goals: Sequence[Goal]) -> str:
    lines = [("goal", "at most", "measured", "")]
    lines += [(goal.what, f"{goal.limit:g}", f"{goal.value:.3f}", _verdict(goal)) for goal in goals]
    return align(lines, left_columns=(0, 3))


def slopes_table(slopes: Sequence[Slope], joiner_dim: int, bytes_a_number: int) -> str:
    """``joiner_dim`` and ``bytes_a_number`` give the least that any loss needs: the weight's gradient."""
    lines = [("peak memory grows by", "teacher", "bytes a class", "bytes a node")]
    for slope in slopes:
        values = ["-" if value is None else f"{value:.0f}" for value in (slope.bytes_a_class, slope.bytes_a_node)]
        lines.append((slope.name, slope.variant, *values))
    lines.append(("(gradient of the output layer alone)", "", str(joiner_dim * bytes_a_number + bytes_a_number), ""))
    return align(lines, left_columns=(0, 1))


def steps_table(rows: Sequence[Dict[str, Any]]) -> str:
    """Of ``train_step.rows``."""
    lines: List[Sequence[str]] = [
        ("size", "C", "batch", "teacher", "seconds", "low..high", "peak MB", "time ÷ none", "memory ÷ none", "goal")
    ]
    for row in rows:
        limit, ratio = row["limit"], row["time_vs_none"]
        goal = (
            "" if limit is None or ratio is None else f"<= {limit:g}: {'reached' if ratio <= limit else 'NOT reached'}"
        )
        lines.append(
            (
                row["size"],
                str(row["vocab"]),
                str(row["batch"]),
                row["variant"],
                _number(row["seconds"]),
                f"{_number(row['low'])}..{_number(row['high'])}",
                f"{row['peak_mb']:.1f}",
                _ratio(ratio),
                _ratio(row["memory_vs_none"]),
                goal,
            )
        )
    return align(lines, left_columns=(0, 3, 9))


def _verdict(goal: Goal) -> str:
    return "reached" if goal.is_reached else "NOT reached"


def _number(value: float) -> str:
    return f"{value:.4f}" if value < 1 else f"{value:.3f}"


def _ratio(value: Optional[float]) -> str:
    return "-" if value is None else f"{value:.3f}"


def align(lines: Sequence[Sequence[str]], left_columns: Sequence[int] = (2, 3)) -> str:
    """Columns as wide as their widest cell, numbers to the right."""
    widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
    aligned = []
    for line in lines:
        cells = [
            cell.ljust(width) if column in left_columns else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(line, widths))
        ]
        aligned.append("  ".join(cells).rstrip())
    return "\n".join(aligned)
