"""All figures of one scoring: ``wer-<test set>.json``, and the same as text."""

from pathlib import Path
from typing import Any, Dict, Mapping, Optional, Sequence

from rnnt_kd.errors import UserError
from rnnt_kd.files import parse_json
from rnnt_kd.scoring.bootstrap import confidence_interval, one_seed_p_value, too_few
from rnnt_kd.scoring.characters import as_characters, counts_characters
from rnnt_kd.scoring.recognitions import Recognition
from rnnt_kd.scoring.word_errors import ErrorCounts, count_all, count_by_speaker
from rnnt_kd.tables import markdown, shown

_COUNTS = ("errors", "ins", "del", "sub")
_MAKE = "delete it and run the stage that makes it"


def score(
    recognitions: Sequence[Recognition],
    *,
    utt2spk: Mapping[str, str],
    baseline: Optional[Sequence[Recognition]] = None,
    replications: int = 10000,
    seed: int = 0,
) -> Dict[str, Any]:
    """Score a test set.

    Args:
      utt2spk:            utterance id -> speaker id; empty: no table of speakers.
      baseline:           the same utterances in the same order, recognised by the system to compare with.
      replications, seed: of the bootstrap.
    Returns:
      JSON values: ``wer`` (per cent, None without a reference word), ``errors``, ``words``, ``ins``, ``del``, ``sub``,
      ``utterances``, ``ci95`` ([low, high] per cent, or None), ``p_value`` and ``baseline_wer`` (None without a
      baseline), ``too_few`` (what there is too little of for an interval and a p-value, or None), ``characters`` (the
      same with ``cer`` and ``characters`` where characters are counted, or None), ``replications``, ``seed``,
      ``speakers`` (a list with the counts of each).
    """
    by_speaker = count_by_speaker(recognitions, utt2spk) if utt2spk else {}
    few = too_few(len(recognitions), by_speaker)

    def measured(items: Sequence[Recognition], others: Optional[Sequence[Recognition]]) -> Dict[str, Any]:
        interval = None if few else confidence_interval(items, replications, seed)
        p_value = one_seed_p_value(items, others, replications, seed) if others and interval else None
        counts = count_all(items)
        return {
            **figures(counts),
            "utterances": counts.utterances,
            "ci95": interval and [round(value, 4) for value in interval],
            "p_value": p_value and round(p_value, 6),
            "baseline_wer": others and _rounded(count_all(others).wer),
        }

    words, characters = measured(recognitions, baseline), None
    if counts_characters(recognitions):
        values = measured(as_characters(recognitions), baseline and as_characters(baseline))
        names = {"wer": "cer", "words": "characters", "baseline_wer": "baseline_cer"}
        characters = {names.get(key, key): value for key, value in values.items()}
    if not few and words["ci95"] is None:
        few = f"{words['words'] or 'no'} word{'s' if words['words'] != 1 else ''}"
    return {
        **words,
        "too_few": few or None,
        "characters": characters,
        "replications": replications,
        "seed": seed,
        "speakers": [
            {"speaker": speaker, **figures(counts), "utterances": counts.utterances}
            for speaker, counts in by_speaker.items()
        ],
    }


def describe(result: Mapping[str, Any]) -> str:
    """The text of ``wer-<test set>.txt``: Kaldi's lines, intervals, comparisons, speakers."""
    lines = []
    for figures in filter(None, (result, result["characters"])):
        few = f"too few to tell ({result['too_few']})"
        interval = "{:.2f} .. {:.2f}".format(*figures["ci95"]) if figures["ci95"] else few
        lines += [kaldi_line(figures), f"95 % interval (bootstrap over utterances): {interval}"]
        if result["baseline"]:
            name, rate = ("%WER", "wer") if figures is result else ("%CER", "cer")
            p = f"p = {figures['p_value']:.4f} (two-sided, paired bootstrap)" if figures["p_value"] else few
            lines.append(f"baseline {name} {shown(figures[f'baseline_{rate}'], '.2f')} ({result['baseline']}): {p}")
    left_out = result["not_decoded"]
    if left_out:
        lines.append(f"not in these figures: {len(left_out)} utterances left out: {', '.join(left_out)}")
    if result["speakers"]:
        lines += ["", _speakers(result["speakers"])]
    return "\n".join(lines) + "\n"


def kaldi_line(figures: Mapping[str, Any]) -> str:
    """``%WER 9.10 [ 4786 / 52576, 708 ins, 464 del, 3614 sub ]``, ``%CER ...``; "-" where there is no rate."""
    name, length = ("%CER", "characters") if "cer" in figures else ("%WER", "words")
    counts = (
        f"{figures['errors']} / {figures[length]}, {figures['ins']} ins, {figures['del']} del, {figures['sub']} sub"
    )
    return f"{name} {shown(figures[name[1:].lower()], '.2f')} [ {counts} ]"


def read_json(path: Path, default: Optional[Dict[str, Any]] = None, numbers: Sequence[str] = ()) -> Dict[str, Any]:
    """A JSON object from disk; ``default`` where there is no such file.

    Raises:
      UserError: no file and no default, not a JSON object, or without one of the ``numbers``.
    """
    try:
        value = parse_json(Path(path).read_text(encoding="utf-8"), parse_constant=_no_number)
    except FileNotFoundError:
        if default is None:
            raise UserError(path, "no such file", "a file of rnnt_kd", "run the stage that makes it") from None
        return default
    except (OSError, ValueError):
        value = None
    if not isinstance(value, dict):
        raise UserError(path, "not a JSON object", "a file of rnnt_kd", _MAKE)
    _check(path, value, numbers)
    return value


def read_scores(path: Path) -> Dict[str, Any]:
    """``wer-<test set>.json``, as ``score`` returns it.  UserError: it is damaged."""
    result = {"characters": None, "too_few": None, **read_json(path)}
    for figures, rate, length in ((result, "wer", "words"), (result["characters"], "cer", "characters")):
        if figures is not None:
            values = figures if isinstance(figures, dict) else {}
            low_high = values.get("ci95") or (None, None)
            if not isinstance(low_high, (list, tuple)) or len(low_high) != 2:
                low_high = (str(low_high), "")
            optional = {key: values.get(key, "") for key in (rate, "p_value", f"baseline_{rate}")}
            optional.update(zip(("ci95", "the end of ci95"), low_high))
            _check(path, values, (*_COUNTS, length))
            _check(path, optional, [key for key, value in optional.items() if value is not None])
    return result


def _check(path: Path, values: Mapping[str, Any], numbers: Sequence[str]) -> None:
    """Raises UserError: one of them is no number."""
    for key in numbers:
        value = values.get(key)
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise UserError(path, f"{key} is {value!r}", "a number, as rnnt_kd writes it", _MAKE)


def _no_number(text: str) -> None:
    raise ValueError(f"{text} is not JSON")


def figures(counts: ErrorCounts) -> Dict[str, Any]:
    """Rate (per cent, None without a word), errors and words, as files have them."""
    return {
        "wer": _rounded(counts.wer),
        "errors": counts.errors,
        "words": counts.words,
        "ins": counts.ins,
        "del": counts.dels,
        "sub": counts.subs,
    }


def _rounded(rate: Optional[float]) -> Optional[float]:
    return None if rate is None else round(rate, 4)


def _speakers(table: Sequence[Mapping[str, Any]]) -> str:
    rows = [
        [row["speaker"], row["utterances"], row["words"], shown(row["wer"], ".2f"), row["ins"], row["del"], row["sub"]]
        for row in table
    ]
    return markdown(["speaker", "utterances", "words", "%WER", "ins", "del", "sub"], rows)
