"""Options of decode for language models, hot words and a bonus for length in beam search."""

import argparse
from pathlib import Path
from typing import Any, Dict, List

from rnnt_kd.decoding.hotwords import HotWords, read_hotwords
from rnnt_kd.decoding.ngram_lm import read_arpa
from rnnt_kd.decoding.scorers import TokenBonus, WordLm, lm_scorer
from rnnt_kd.errors import UserError
from rnnt_kd.text.scripts import is_unspaced

FUSING = "modified_beam_search"  # the search that takes them
LM_SCALE, HOTWORDS_SCORE = 0.2, 1.0
_NUMBERS = {"lm_scale": "lm", "hotwords_score": "hotwords", "token_bonus": None}  # option -> the file it belongs to


def add_scorers(target: argparse.ArgumentParser) -> None:
    """``--lm``, ``--lm-scale``, ``--hotwords``, ``--hotwords-score``, ``--token-bonus``."""
    group = target.add_argument_group(f"beside the model ({FUSING})")
    group.add_argument("--lm", type=Path, metavar="ARPA", help="n-gram language model of words or of BPE pieces")
    group.add_argument("--lm-scale", type=float, metavar="X", help=f"of its log-probabilities (default: {LM_SCALE})")
    group.add_argument(
        "--hotwords", type=Path, metavar="FILE", help="phrases to prefer, one a line, perhaps with ' :SCORE' behind it"
    )
    group.add_argument(
        "--hotwords-score",
        type=float,
        metavar="X",
        help=f"of each token of a phrase without a score of its own (default: {HOTWORDS_SCORE})",
    )
    group.add_argument("--token-bonus", type=float, metavar="X", help="added for each token; it takes from deletions")


def check_scorers(args: argparse.Namespace) -> None:
    """UserError: a number without its file, or a search that asks nobody."""
    for name, file in _NUMBERS.items():
        value, option = getattr(args, name), f"--{name.replace('_', '-')}"
        if value is not None and file is not None and getattr(args, file) is None:
            raise UserError(option, f"given without --{file}", f"a file for --{file}", "name one, or omit it")
    if args.search != FUSING and scorer_settings(args):
        problem = "takes no language model, no hot words and no bonus"
        raise UserError(f"--search {args.search}", problem, f"--search {FUSING}")


def scorer_settings(args: argparse.Namespace) -> Dict[str, Any]:
    """The settings that were asked for; none where nothing was."""
    values = {name: getattr(args, name) for name in ("lm", "lm_scale", "hotwords", "hotwords_score", "token_bonus")}
    if args.lm is not None and args.lm_scale is None:
        values["lm_scale"] = LM_SCALE
    if args.hotwords is not None and args.hotwords_score is None:
        values["hotwords_score"] = HOTWORDS_SCORE
    return {
        name: str(value) if isinstance(value, Path) else value for name, value in values.items() if value is not None
    }


def make_scorers(settings: Dict[str, Any], tokenizer, normalization: str = "nfc") -> List:
    """The scorers of ``scorer_settings``; ``normalization``: of their texts, see ``text.normalization``."""
    found: List[Any] = []
    if "lm" in settings:
        lm = read_arpa(settings["lm"], normalization)
        found.append(lm_scorer(lm, tokenizer.pieces(), settings["lm_scale"], settings["lm"]))
        spelled = getattr(found[0], "spelled", len(lm.words))  # a model of pieces fits or is refused
        if spelled < len(lm.words):
            print(f"{settings['lm']}: the BPE model can spell {spelled} of its {len(lm.words)} words", flush=True)
        if isinstance(found[0], WordLm) and is_unspaced(lm.words):
            advice = "where transcripts have none, train it on the pieces of the BPE model"
            print(f"{settings['lm']}: its words are told apart by blanks; {advice}", flush=True)
    if "hotwords" in settings:
        phrases = read_hotwords(settings["hotwords"], tokenizer, settings["hotwords_score"], normalization)
        found.append(HotWords(phrases, tokenizer.vocab_size))
    if "token_bonus" in settings:
        found.append(TokenBonus(settings["token_bonus"], tokenizer.vocab_size))
    return found
