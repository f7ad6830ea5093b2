"""All figures of one scoring: ``wer-<test set>.json``, and the same as text."""

import json
from pathlib import Path
from typing import Any, Dict, Mapping, Optional, Sequence

from rnnt_kd.errors import UserError
from rnnt_kd.scoring.bootstrap import confidence_interval, one_seed_p_value
from rnnt_kd.scoring.recognitions import Recognition
from rnnt_kd.scoring.word_errors import ErrorCounts, count_all, count_by_speaker
from rnnt_kd.tables import markdown, shown


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
      recognitions:       with at least one reference word among them.
      utt2spk:            utterance id -> speaker id; empty: no table of speakers.
      baseline:           the same utterances in the same order, recognised by the system to compare with.
      replications, seed: of the bootstrap.
    Returns:
      JSON values: ``wer`` (per cent), ``errors``, ``words``, ``ins``, ``del``, ``sub``, ``utterances``,
      ``ci95`` ([low, high] per cent, or None), ``p_value`` and ``baseline_wer`` (None without a baseline),
      ``replications``, ``seed``, ``speakers`` (a list with the counts of each).
    """
    interval = confidence_interval(recognitions, replications, seed)
    by_speaker = count_by_speaker(recognitions, utt2spk) if utt2spk else {}
    return {
        **_figures(count_all(recognitions)),
        "ci95": interval and [round(value, 4) for value in interval],
        "p_value": baseline and round(one_seed_p_value(recognitions, baseline, replications, seed), 6),
        "baseline_wer": baseline and round(count_all(baseline).wer, 4),
        "replications": replications,
        "seed": seed,
        "speakers": [{"speaker": speaker, **_figures(counts)} for speaker, counts in by_speaker.items()],
    }


def describe(result: Mapping[str, Any]) -> str:
    """The text of ``wer-<test set>.txt``: Kaldi's line, interval, comparison, speakers."""
    low_high = "{:.2f} .. {:.2f}".format(*result["ci95"]) if result["ci95"] else "too few words to tell"
    lines = [kaldi_line(result), f"95 % interval (bootstrap over utterances): {low_high}"]
    if result["p_value"] is not None:
        baseline = f"baseline %WER {result['baseline_wer']:.2f} ({result['baseline']})"
        lines.append(f"{baseline}: p = {result['p_value']:.4f} (two-sided, paired bootstrap)")
    left_out = result["not_decoded"]
    if left_out:
        lines.append(f"not in these figures: {len(left_out)} utterances left out: {', '.join(left_out)}")
    if result["speakers"]:
        lines += ["", _speakers(result["speakers"])]
    return "\n".join(lines) + "\n"


def kaldi_line(figures: Mapping[str, Any]) -> str:
    """``%WER 9.10 [ 4786 / 52576, 708 ins, 464 del, 3614 sub ]``"""
    counts = (
        f"{figures['errors']} / {figures['words']}, {figures['ins']} ins, {figures['del']} del, {figures['sub']} sub"
    )
    return f"%WER {figures['wer']:.2f} [ {counts} ]"


def read_json(path: Path, default: Optional[Dict[str, Any]] = None, numbers: Sequence[str] = ()) -> Dict[str, Any]:
    """A JSON object from disk; ``default`` where there is no such file.

    Raises:
      UserError: no file and no default, not a JSON object, or without one of the ``numbers``.
    """
    try:
        value = json.loads(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        if default is None:
            raise UserError(path, "no such file", "a file of rnnt_kd", "run the stage that makes it") from None
        return default
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, dict):
        raise UserError(path, "not a JSON object", "a file of rnnt_kd", "delete it and run the stage that makes it")
    for key in numbers:
        if not isinstance(value.get(key), (int, float)):
            next_step = "delete it and run the stage that makes it"
            raise UserError(path, f"{key} is {value.get(key)!r}", "a number, as rnnt_kd writes it", next_step)
    return value


def _figures(counts: ErrorCounts) -> Dict[str, Any]:
    return {
        "wer": round(counts.wer, 4) if counts.words else None,  # JSON has no infinity
        "errors": counts.errors,
        "words": counts.words,
        "ins": counts.ins,
        "del": counts.dels,
        "sub": counts.subs,
        "utterances": counts.utterances,
    }


def _speakers(table: Sequence[Mapping[str, Any]]) -> str:
    rows = [
        [row["speaker"], row["utterances"], row["words"], shown(row["wer"], ".2f"), row["ins"], row["del"], row["sub"]]
        for row in table
    ]
    return markdown(["speaker", "utterances", "words", "%WER", "ins", "del", "sub"], rows)
