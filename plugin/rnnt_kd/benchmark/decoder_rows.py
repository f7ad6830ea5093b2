"""From timed passes of recognisers to rows and a table.

A real-time factor is the sum over the batches of the median over the rounds (low, high: of the fastest and slowest),
divided by the seconds of audio.  Ratios are medians over all batches and rounds of two times taken in the same turn.
"""

from statistics import median
from typing import Any, Callable, Dict, List, Optional, Sequence

from rnnt_kd.benchmark.decoders import Turns
from rnnt_kd.benchmark.table import align
from rnnt_kd.scoring.recognitions import Recognition
from rnnt_kd.scoring.word_errors import count_all

OURS, LOOP, SHERPA = "ours", "plain loop", "sherpa-onnx"
PARTS = ("search", "encoder_search", "whole")
GOAL_BATCH, GOAL = 16, 5.0  # batched greedy search is so many times as fast as the plain loop
HEADER = (
    *("system", "batch", "search", "by", "RTF search", "low..high", "encoder+search", "audio to text"),
    *("search, loop ÷ it", "all, sherpa ÷ it", "%WER", "ins", "del", "sub", "other words"),
)
LEFT_COLUMNS = (0, 2, 3, 5)


def decoder_rows(
    system: str, batch_size: int, names: Sequence[Any], turns: Sequence[Turns], refs: Dict[str, str], seconds: float
) -> List[Dict[str, Any]]:
    """A row for each recogniser.

    Args:
      names:   (search, by) of each; ``OURS`` of a search is what the words of the others are compared with.
      refs:    utterance id -> what was said.
      seconds: of audio.
    """
    by_name = dict(zip(names, turns))
    rows = []
    for (search, by), done in by_name.items():
        row = {"system": system, "batch": batch_size, "search": search, "by": by}
        for part in PARTS:
            for key, choose in (("", median), ("_low", min), ("_high", max)):
                row[f"{part}_rtf{key}"] = _real_time_factor(done.seconds[part], choose, seconds)
        row["rounds"] = len(done.seconds["whole"][0])
        row["loop_ratio"] = _ratio(by_name.get((search, LOOP)), done, "search")
        row["sherpa_ratio"] = _ratio(by_name.get((search, SHERPA)), done, "whole")
        row.update(_words(refs, done.texts, by_name[search, OURS].texts))
        rows.append(row)
    return rows


def decoder_table(rows: Sequence[Dict[str, Any]], markdown: bool = False) -> str:
    lines = [HEADER] + [_cells(row) for row in rows]
    if markdown:
        rule = ["---" if column in LEFT_COLUMNS else "---:" for column in range(len(HEADER))]
        return "\n".join("| " + " | ".join(line) + " |" for line in [HEADER, rule, *lines[1:]])
    return align(lines, LEFT_COLUMNS)


def goal_lines(rows: Sequence[Dict[str, Any]]) -> List[str]:
    """What became of the goal, a line for each system that has both sides of it."""
    return [
        f"goal: {row['system']}, batch {GOAL_BATCH}: batched greedy search at least {GOAL:g} x as fast as the plain "
        f"loop: {row['loop_ratio']:.1f} x, {'reached' if row['loop_ratio'] >= GOAL else 'NOT reached'}"
        for row in rows
        if (row["batch"], row["search"], row["by"]) == (GOAL_BATCH, "greedy_search", OURS) and row["loop_ratio"]
    ]


def _real_time_factor(batches: Sequence[Sequence[float]], choose: Callable, seconds: float) -> Optional[float]:
    return sum(map(choose, batches)) / seconds if all(batches) else None


def _ratio(theirs: Optional[Turns], ours: Turns, part: str) -> Optional[float]:
    if theirs is None:
        return None
    batches = zip(theirs.seconds[part], ours.seconds[part])
    ratios = [first / second for pair in batches for first, second in zip(*pair)]
    return median(ratios) if ratios else None


def _words(refs: Dict[str, str], texts: Dict[str, str], ours: Dict[str, str]) -> Dict[str, Any]:
    split = {key: tuple(text.split()) for key, text in texts.items()}
    counts = count_all(Recognition(key, tuple(refs[key].split()), hyp) for key, hyp in split.items())
    return {
        "wer": round(counts.wer, 4),
        "words": counts.words,
        "ins": counts.ins,
        "del": counts.dels,
        "sub": counts.subs,
        "other_words": sum(hyp != tuple(ours[key].split()) for key, hyp in split.items()),
    }


def _cells(row: Dict[str, Any]) -> List[str]:
    low, high = row["search_rtf_low"], row["search_rtf_high"]
    return [
        row["system"],
        str(row["batch"]),
        row["search"],
        row["by"],
        _shown(row["search_rtf"], ".5f"),
        "-" if low is None else f"{low:.5f}..{high:.5f}",
        _shown(row["encoder_search_rtf"], ".5f"),
        _shown(row["whole_rtf"], ".5f"),
        _shown(row["loop_ratio"], ".2f"),
        _shown(row["sherpa_ratio"], ".2f"),
        _shown(row["wer"], ".2f"),
        *(str(row[key]) for key in ("ins", "del", "sub", "other_words")),
    ]


def _shown(value: Optional[float], style: str) -> str:
    return "-" if value is None else format(value, style)
