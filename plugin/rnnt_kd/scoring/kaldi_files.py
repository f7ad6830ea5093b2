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
from rnnt_kd.scoring.word_errors import GAP, ErrorCounts, align, count_all, count_by_speaker

DETAILS = "scoring_kaldi/wer_details"
FILES = ("wer_0_0.0", "scoring_kaldi/best_wer", *(f"{DETAILS}/{name}" for name in ("per_utt", "per_spk", "ops")))
_SHOWN_GAP = "***"
_OPERATIONS = {"C": "correct", "I": "insertion", "D": "deletion", "S": "substitution"}
_WIDEST = 16  # a longer word of ``ops`` is not cut, but moves what follows


def write_kaldi_files(
    folder: Path, recognitions: Sequence[Recognition], speakers: Mapping[str, str], result: Mapping[str, Any]
) -> None:
    """Write ``FILES`` into ``folder``, each atomically.

    Args:
      speakers: utterance id -> speaker id; empty: ``per_spk`` has the sums only.
      result:   of ``results.score``, and ``not_decoded``: ids of utterances that are not in the figures.
    """
    total = count_all(recognitions)
    missing = len(result["not_decoded"])
    line = kaldi_line(result)
    rates = [
        line + (" [PARTIAL]" if missing else ""),
        f"%SER {100 * total.wrong / total.utterances:.2f} [ {total.wrong} / {total.utterances} ]",
        f"Scored {total.utterances} sentences, {missing} not present in hyp.",
    ]
    alignments = [(item.utterance_id, _triples(item)) for item in recognitions]
    texts = (
        rates,
        [f"{rates[0]} {folder / FILES[0]}"],
        [line for key, triples in alignments for line in _utterance(key, triples)],
        _speakers([*count_by_speaker(recognitions, speakers).items()] if speakers else [], total, speakers.values()),
        _operations(Counter(triple for _, triples in alignments for triple in triples)),
    )
    for name, lines in zip(FILES, texts, strict=True):
        atomic.write_text(Path(folder) / name, "".join(f"{line}\n" for line in lines))


def _triples(item: Recognition) -> List[Tuple[str, str, str]]:
    """(reference word, hypothesis word, operation)"""
    triples = []
    for ref, hyp in align(item.ref, item.hyp):
        operation = "D" if hyp == GAP else "I" if ref == GAP else "C" if ref == hyp else "S"
        triples.append((ref or _SHOWN_GAP, hyp or _SHOWN_GAP, operation))
    return triples


def _utterance(key: str, triples: Sequence[Tuple[str, str, str]]) -> List[str]:
    widths = [max(map(len, triple)) for triple in triples]
    lines = []
    for side, name in enumerate(("ref ", "hyp ", "op  ")):
        cells = []
        for triple, width in zip(triples, widths, strict=True):
            right = (width - len(triple[side])) // 2
            cells.append((triple[side] + " " * right).rjust(width))
        lines.append(f"{key} {name} {'  '.join(cells)}")
    numbers = Counter(operation for _, _, operation in triples)
    return [*lines, f"{key} #csid {' '.join(str(numbers[name]) for name in 'CSID')}"]


def _speakers(table: Iterable[Tuple[str, ErrorCounts]], total: ErrorCounts, names: Iterable[str]) -> List[str]:
    width = max([15, *map(len, names)])
    head = ("#SENT", "#WORD", "Corr", "Sub", "Ins", "Del", "Err", "S.Err")
    lines = [f"{'SPEAKER':{width}} id  " + " ".join(f"{name:>10}" for name in head)]
    for name, counts in (*table, ("SUM", total)):
        sizes = (counts.utterances, counts.words)
        errors = (counts.correct, counts.subs, counts.ins, counts.dels, counts.errors, counts.wrong)
        lines.append(f"{name:{width}} raw " + " ".join(f"{number:10d}" for number in (*sizes, *errors)))
        if counts.words:
            rates = [100 * number / counts.words for number in errors[:-1]] + [100 * counts.wrong / counts.utterances]
            cells = [f"{number:10d}" for number in sizes] + [f"{rate:10.2f}" for rate in rates]
            lines.append(f"{name:{width}} sys " + " ".join(cells))
    return lines


def _operations(pairs: Mapping[Tuple[str, str, str], int]) -> List[str]:
    """Sorted as Kaldi does, by ``LC_ALL=C sort -b -i -k 1,1 -k 4,4rn -k 2,2 -k 3,3``, for which only ASCII counts."""
    width = min(_WIDEST, max((len(word) for ref, hyp, _ in pairs for word in (ref, hyp)), default=0))
    digits = max((len(str(number)) for number in pairs.values()), default=0)
    rows = []
    for (ref, hyp, operation), number in pairs.items():
        name = _OPERATIONS[operation]
        line = f"{name:14}{ref:>{width}}    {hyp:>{width}}    {number:{digits}d}"
        rows.append(((name, -number, *(word.encode("ascii", "ignore") for word in (ref, hyp)), line.encode()), line))
    return [line for _, line in sorted(rows)]
