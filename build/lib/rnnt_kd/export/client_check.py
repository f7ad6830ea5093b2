"""A check of an export: what sherpa-onnx recognises with it, against our own decoder on the system in torch.

Greedy and modified beam search, single utterances and batches, every utterance that is given.  Our side
starts from the audio too (Lhotse's filter banks without stage 1's rounding).  Tokens, times and letters decide;
blanks are compared as ``client_text`` says that the client writes them, and words are counted in the tokens.

The client's features may differ from ours by ``FEATURE_TOLERANCE``.  Where two paths are as likely as that, either may
win: a difference that our own search makes, too, when its features move by so much is a tie, and decides nothing.
"""

from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Dict, List, Sequence

import numpy as np
import torch

from rnnt_kd.data.audio_format import FRAME_SECONDS, SAMPLING_RATE
from rnnt_kd.data.speech import Speech, filter_banks
from rnnt_kd.decoding.lookup import get_search
from rnnt_kd.errors import UserError
from rnnt_kd.export import client, client_text
from rnnt_kd.models.transducer import Transducer
from rnnt_kd.scoring.bootstrap import one_seed_p_value
from rnnt_kd.scoring.recognitions import Recognition, words_counted
from rnnt_kd.scoring.word_errors import count_all
from rnnt_kd.text.tokenizer import Tokenizer

BATCH_SIZES = (1, 8)
BEAM = 4
FEATURE_TOLERANCE = 2e-3
TIE_TRIALS = 50
ENCODER_FRAME_SECONDS = 4 * FRAME_SECONDS
_FEATURE_SAMPLES = 600 * SAMPLING_RATE


@dataclass(frozen=True)
class Difference:
    """One utterance that sherpa-onnx and our decoder recognise differently, or at other times."""

    utterance: str
    search: str
    batch_size: int
    what: str  # "text", "tokens", "times"; "tie": one of these; "blanks": the same tokens, times and letters
    sherpa_onnx: str
    rnnt_kd: str

    @property
    def decides(self) -> bool:
        """Is it more than a tie, or a client that sets blanks otherwise than ``client_text``?"""
        return self.what not in ("blanks", "tie")


def check_client(
    folder: Path, model: Transducer, tokenizer: Tokenizer, speech: Sequence[Speech], score_events: bool = True
) -> Dict[str, Any]:
    """Recognise ``speech`` (all with samples) four times on either side.  ``score_events``: <unk>, [noise] count.

    Returns JSON values: ``utterances``, ``audio_seconds``, ``runs`` (search, batch_size, differences, and where
    there are reference words wer_sherpa_onnx, wer_rnnt_kd and the p-value of the pair), ``differences`` (a list)
    ``ties`` and ``differences_in_blanks``.
    Raises: UserError: the client died, or answers with another number of results.
    """
    features = [filter_banks(item.heard) for item in speech]
    samples = [item.heard for item in speech]
    runs: List[Dict[str, Any]] = []
    differences: List[Difference] = []
    for search in client.SEARCHES:
        for batch_size in BATCH_SIZES:
            ours = _recognise(model, tokenizer, features, search, batch_size)
            theirs = client.recognize(folder, samples, search=search, beam=BEAM, batch_size=batch_size)
            if len(theirs) != len(speech):
                raise UserError(folder, f"sherpa-onnx gave {len(theirs)} results", f"{len(speech)}")
            found = [
                replace(difference, what="tie")
                if difference.decides and is_tie(model, tokenizer, heard, search, other)
                else difference
                for item, heard, own, other in zip(speech, features, ours, theirs, strict=True)
                for difference in compare(item.id, search, batch_size, own, other)
            ]
            differences += found
            runs.append({"search": search, "batch_size": batch_size, "differences": deciding(found)})
            tokens = ([item.tokens for item in side] for side in (ours, theirs))
            runs[-1].update(word_errors(speech, *tokens, score_events=score_events))
    return measured(speech, runs, differences)


def measured(speech: Sequence[Speech], runs: List[Dict[str, Any]], differences: List[Difference]) -> Dict[str, Any]:
    """What ``check_client`` returns."""
    return {
        "utterances": len(speech),
        "audio_seconds": round(sum(item.seconds for item in speech), 3),
        "beam": BEAM,
        "runs": runs,
        "differences": [asdict(item) for item in differences if item.decides],
        "ties": [asdict(item) for item in differences if item.what == "tie"],
        "differences_in_blanks": [asdict(item) for item in differences if item.what == "blanks"],
    }


def deciding(differences: Sequence[Difference]) -> int:
    """How many decide."""
    return sum(difference.decides for difference in differences)


def as_result(
    tokens: Sequence[int], frames: Sequence[int], tokenizer: Tokenizer, start: float = 0.0, streaming: bool = False
):
    """Our tokens and their encoder frames, as sherpa-onnx would give them."""
    symbols, times = tokenizer.pieces(), [frame * ENCODER_FRAME_SECONDS for frame in frames]
    pieces = [symbols[token] for token in tokens]
    return client.ClientResult(client_text.text_of(pieces, streaming), client_text.tokens_of(pieces), times, start)


def check_features(speech: Sequence[Speech], folder: Path) -> float:
    """Largest difference between our filter banks and ``OnlineStream.get_frames``, on up to ten minutes in a row.

    Raises: UserError: it is above 2e-3, or the frames are not as many.
    """
    samples = np.concatenate([item.samples for item in speech if item.samples is not None])[:_FEATURE_SAMPLES]
    ours, theirs = filter_banks(samples).numpy(), np.asarray(client.features(samples))
    if ours.shape != theirs.shape:
        raise UserError(folder, f"sherpa-onnx computes features of the shape {theirs.shape}", f"{ours.shape}")
    largest = float(np.abs(ours - theirs).max())
    if not largest <= FEATURE_TOLERANCE:
        raise UserError(folder, f"sherpa-onnx's features differ by {largest:.2g}", f"at most {FEATURE_TOLERANCE:g}")
    return largest


def _recognise(
    model: Transducer, tokenizer: Tokenizer, features: Sequence[torch.Tensor], search: str, batch_size: int
) -> List["client.ClientResult"]:
    found: List[client.ClientResult] = []
    for start in range(0, len(features), batch_size):
        batch = features[start : start + batch_size]
        lens = torch.tensor([len(matrix) for matrix in batch])
        with torch.no_grad():
            encoder_out, out_lens = model.encode(torch.nn.utils.rnn.pad_sequence(list(batch), batch_first=True), lens)
        for hypothesis, *_ in get_search(search)(
            model, encoder_out, out_lens, beam=BEAM, blank_id=tokenizer.blank_id, unk_id=tokenizer.unk_id
        ):
            found.append(as_result(hypothesis.tokens, hypothesis.timestamps, tokenizer))
    return found


def is_tie(model: Transducer, tokenizer: Tokenizer, features: torch.Tensor, search: str, theirs) -> bool:
    """Does our search find what the client found in some (frames, 80) ``features`` within the tolerance of these?"""
    generator = torch.Generator().manual_seed(0)
    for _ in range(TIE_TRIALS):
        moved = features + FEATURE_TOLERANCE * (2 * torch.rand(features.shape, generator=generator) - 1)
        (ours,) = _recognise(model, tokenizer, [moved], search, 1)
        if not deciding(compare("", search, 1, ours, theirs)):
            return True
    return False


def compare(utterance: str, search: str, batch_size: int, ours, theirs) -> List[Difference]:
    """The first thing that differs; a list of it, or an empty one."""
    times = [f"{t:.2f}" for t in ours.timestamps], [f"{t:.2f}" for t in theirs.timestamps]
    for what, one, two in (
        ("text", ours.text, theirs.text),
        ("tokens", "|".join(ours.tokens), "|".join(theirs.tokens)),
        ("times", " ".join(times[0]), " ".join(times[1])),
        ("blanks", ours.text, theirs.text),
    ):
        if one != two and (what != "text" or "".join(one.split()) != "".join(two.split())):
            return [Difference(utterance, search, batch_size, what, sherpa_onnx=two, rnnt_kd=one)]
    return []


def word_errors(
    speech: Sequence[Speech],
    ours: Sequence[Sequence[str]],
    theirs: Sequence[Sequence[str]],
    *,
    score_events: bool,
) -> Dict[str, Any]:
    """Of tokens: both word error rates, the counts of sherpa-onnx's, and the p-value (None: too few); nothing without
    reference words.

    Words are counted in the tokens: in its text the client closes words up.
    """
    own, other = (
        words_counted(
            [
                Recognition(item.id, tuple(item.text.split()), tuple(client_text.words_of(tokens)))
                for item, tokens in zip(speech, side, strict=True)
            ],
            score_events,
        )
        for side in (ours, theirs)
    )
    if not any(item.ref for item in own):
        return {}
    counts, p_value = count_all(other), one_seed_p_value(other, own)
    return {
        "wer_sherpa_onnx": round(counts.wer or 0.0, 4),
        "errors": {"words": counts.words, "ins": counts.ins, "del": counts.dels, "sub": counts.subs},
        "wer_rnnt_kd": round(count_all(own).wer or 0.0, 4),
        "p_value": p_value and round(p_value, 6),
    }
