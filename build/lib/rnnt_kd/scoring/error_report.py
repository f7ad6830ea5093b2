"""``errs-<test set>.txt``, in the form icefall users know."""

from collections import Counter
from itertools import groupby
from typing import Dict, List, Mapping, Sequence

from rnnt_kd.scoring.characters import as_characters, counts_characters
from rnnt_kd.scoring.recognitions import Recognition
from rnnt_kd.scoring.word_errors import GAP, Alignment, ErrorCounts, align, count
from rnnt_kd.tables import shown

_SHOWN_GAP = "*"
_SECTIONS = ("PER-UTT DETAILS:", "SUBSTITUTIONS:", "DELETIONS:", "INSERTIONS:", "PER-WORD STATS:")


def format_errors(recognitions: Sequence[Recognition]) -> str:
    """The whole text of ``errs-<test set>.txt``: errors of words, and of characters where these are counted too."""
    text = _format(recognitions, "%WER", "words")
    if counts_characters(recognitions):
        text += "\n" + _format(as_characters(recognitions), "%CER", "characters")
    return text


def _format(recognitions: Sequence[Recognition], rate: str, units: str) -> str:
    """Totals; every utterance with its errors as ``(ref words->hyp words)``, ``*`` for none, errors in a row
    in one bracket; substitutions, deletions, insertions and words, the most frequent first.
    """
    alignments = {item.utterance_id: align(item.ref, item.hyp) for item in recognitions}
    total = sum(map(count, alignments.values()), ErrorCounts())
    pairs = Counter(pair for alignment in alignments.values() for pair in alignment)
    errors = {pair: number for pair, number in pairs.items() if pair[0] != pair[1]}
    lines = [
        f"{rate} = {shown(total.wer, '.2f')}",
        f"Errors: {total.ins} insertions, {total.dels} deletions, {total.subs} substitutions, "
        f"over {total.words} reference {units} ({total.correct} correct)",
        f"Search below for sections starting with {', '.join(_SECTIONS)}",
        "",
        "PER-UTT DETAILS: corr or (ref->hyp)  ",
        *(f"{key}:\t{_utterance(alignment)}" for key, alignment in alignments.items()),
        "",
        "SUBSTITUTIONS: count ref -> hyp",
        *_ranked({f"{ref} -> {hyp}": number for (ref, hyp), number in errors.items() if GAP not in (ref, hyp)}),
        "",
        "DELETIONS: count ref",
        *_ranked({ref: number for (ref, hyp), number in errors.items() if hyp == GAP}),
        "",
        "INSERTIONS: count hyp",
        *_ranked({hyp: number for (ref, hyp), number in errors.items() if ref == GAP}),
        "",
        "PER-WORD STATS: word  corr tot_errs count_in_ref count_in_hyp",
        *_words(pairs),
    ]
    return "\n".join(lines) + "\n"


def _utterance(alignment: Alignment) -> str:
    parts: List[str] = []
    for is_correct, run in groupby(alignment, key=lambda pair: pair[0] == pair[1]):
        refs, hyps = ([word for word in side if word != GAP] for side in zip(*run, strict=True))
        parts += refs if is_correct else [f"({' '.join(refs) or _SHOWN_GAP}->{' '.join(hyps) or _SHOWN_GAP})"]
    return " ".join(parts)


def _ranked(counts: Mapping[str, int]) -> List[str]:
    return [f"{number}   {text}" for text, number in sorted(counts.items(), key=lambda item: (-item[1], item[0]))]


def _words(pairs: Mapping) -> List[str]:
    correct: Dict[str, int] = Counter()
    in_ref: Dict[str, int] = Counter()
    in_hyp: Dict[str, int] = Counter()
    for (ref, hyp), number in pairs.items():
        in_ref[ref] += number
        in_hyp[hyp] += number
        correct[ref] += number * (ref == hyp)
    # an error is a word of ref that is wrong in hyp, or a word of hyp that is wrong: a substitution is one of each word
    wrong = {word: in_ref[word] + in_hyp[word] - 2 * correct[word] for word in {*in_ref, *in_hyp} - {GAP}}
    ranked = sorted(wrong, key=lambda word: (-wrong[word], word))
    return [f"{word}   {correct[word]} {wrong[word]} {in_ref[word]} {in_hyp[word]}" for word in ranked]
