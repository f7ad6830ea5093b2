"""What Kaldi's scoring leaves beside a decoding, in Kaldi's form, for the tools and habits that read it.

    wer_0_0.0                            word and sentence error rates, as ``compute-wer`` prints them
    scoring_kaldi/best_wer               the line that ``grep WER .../wer_* | utils/best_wer.sh`` prints
    scoring_kaldi/wer_details/per_utt    each utterance: reference, hypothesis, operations, their numbers
    scoring_kaldi/wer_details/per_spk    numbers and rates of each speaker
    scoring_kaldi/wer_details/ops        how often each pair of words was aligned

Kaldi names ``wer_<weight>_<penalty>`` after the language model's weight and the word insertion penalty, of which a
transducer has none.  Of several alignments with the fewest errors, ``word_errors.align`` decides.
"""

from collections import Counter
from pathlib import Path
from typing import Any, Iterable, List, Mapping, Sequence, Tuple

from rnnt_kd import atomic
from rnnt_kd.scoring.recognitions import Recognition
from rnnt_kd.scoring.results import kaldi_line
from rnnt_kd.scoring.word_errors import Alignment, ErrorCounts, align, count, count_all, count_by_speaker, operation

DETAILS = "scoring_kaldi/wer_details"
FILES = ("wer_0_0.0", "scoring_kaldi/best_wer", *(f"{DETAILS}/{name}" for name in ("per_utt", "per_spk", "ops")))
_SHOWN_GAP = "***"
_ROWS = ("ref ", "hyp ", "op  ")
_NAMES = {"C": "correct", "I": "insertion", "D": "deletion", "S": "substitution"}
_WIDEST = 16  # a longer word of ``ops`` is not cut, but moves what follows


def write_kaldi_files(
    folder: Path, recognitions: Sequence[Recognition], speakers: Mapping[str, str], result: Mapping[str, Any]
) -> None:
    """Write ``FILES`` into ``folder``, each atomically.

    Args:
      speakers: utterance id -> speaker id; empty: ``per_spk`` has the sums only.
      result:   of ``results.score``, and ``not_decoded``: ids of utterances that are not in the figures.
    """
    total, missing = count_all(recognitions), len(result["not_decoded"])
    rate = kaldi_line(result) + (" [PARTIAL]" if missing else "")
    rates = [
        rate,
        f"%SER {100 * total.wrong / total.utterances:.2f} [ {total.wrong} / {total.utterances} ]",
        f"Scored {total.utterances} sentences, {missing} not present in hyp.",
    ]
    alignments = {item.utterance_id: align(item.ref, item.hyp) for item in recognitions}
    texts = (
        rates,
        [f"{rate} {folder / FILES[0]}"],
        [line for key, alignment in alignments.items() for line in _utterance(key, alignment)],
        _speakers(count_by_speaker(recognitions, speakers) if speakers else {}, total, speakers.values()),
        _operations(Counter(pair for alignment in alignments.values() for pair in alignment)),
    )
    for name, lines in zip(FILES, texts, strict=True):
        atomic.write_text(folder / name, "".join(f"{line}\n" for line in lines))


def _utterance(key: str, alignment: Alignment) -> List[str]:
    columns = [(ref or _SHOWN_GAP, hyp or _SHOWN_GAP, operation(ref, hyp)) for ref, hyp in alignment]
    cells = [[_centred(cell, max(map(len, column))) for cell in column] for column in columns]
    rows = [f"{key} {name} " + "  ".join(column[n] for column in cells) for n, name in enumerate(_ROWS)]
    counts = count(alignment)
    return [*rows, f"{key} #csid {counts.correct} {counts.subs} {counts.ins} {counts.dels}"]


def _centred(cell: str, width: int) -> str:
    return (cell + " " * ((width - len(cell)) // 2)).rjust(width)


def _speakers(table: Mapping[str, ErrorCounts], total: ErrorCounts, names: Iterable[str]) -> List[str]:
    width = max([15, *map(len, names)])
    head = ("#SENT", "#WORD", "Corr", "Sub", "Ins", "Del", "Err", "S.Err")
    lines = [f"{'SPEAKER':{width}} id  " + " ".join(f"{name:>10}" for name in head)]
    for name, counts in (*table.items(), ("SUM", total)):
        sizes = f"{counts.utterances:10d} {counts.words:10d}"
        numbers = (counts.correct, counts.subs, counts.ins, counts.dels, counts.errors, counts.wrong)
        lines.append(f"{name:{width}} raw {sizes} " + " ".join(f"{number:10d}" for number in numbers))
        if counts.words:
            rates = [100 * number / counts.words for number in numbers[:-1]] + [100 * counts.wrong / counts.utterances]
            lines.append(f"{name:{width}} sys {sizes} " + " ".join(f"{rate:10.2f}" for rate in rates))
    return lines


def _operations(pairs: Mapping[Tuple[str, str], int]) -> List[str]:
    """Sorted as Kaldi does, by ``LC_ALL=C sort -b -i -k 1,1 -k 4,4rn -k 2,2 -k 3,3``, for which only ASCII counts."""
    shown = {(ref or _SHOWN_GAP, hyp or _SHOWN_GAP, _NAMES[operation(ref, hyp)]): n for (ref, hyp), n in pairs.items()}
    width = min(_WIDEST, max((len(word) for pair in shown for word in pair[:2]), default=0))
    digits = max((len(str(number)) for number in shown.values()), default=0)
    rows = []
    for (ref, hyp, name), number in shown.items():
        line = f"{name:14}{ref:>{width}}    {hyp:>{width}}    {number:{digits}d}"
        rows.append((name, -number, ref.encode("ascii", "ignore"), hyp.encode("ascii", "ignore"), line))
    return [row[-1] for row in sorted(rows)]
