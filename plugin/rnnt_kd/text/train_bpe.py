"""Stage 2: transcripts -> a sentencepiece model.

``<out_dir>/bpe.model``   the model: ``<blk>`` = 0, ``<unk>`` = 1, no begin or end of sentence
``<out_dir>/tokens.txt``  "symbol id" a line, the form that icefall and sherpa-onnx read
"""

import io
import re
from pathlib import Path
from typing import Iterable, List

import sentencepiece

from rnnt_kd.atomic import new_dir
from rnnt_kd.errors import UserError

BLANK, UNKNOWN = "<blk>", "<unk>"
MODEL_TYPES = ("bpe", "unigram", "char")
_LONGEST_SENTENCE = 100_000  # bytes; sentencepiece silently skips longer ones


def train_bpe(
    texts: Iterable[str], vocab_size: int, out_dir: Path, model_type: str = "bpe", shrink_to_fit: bool = False
) -> Path:
    """Train and write a model; the same texts in the same order give the same bytes.

    Args:
      texts:      transcripts; empty ones do not count.
      vocab_size: pieces, ``<blk>`` and ``<unk>`` included.
      out_dir:    the folder to make; an older one is replaced.
      model_type: "bpe", "unigram" or "char".
      shrink_to_fit: where the text allows fewer pieces, take as many as it allows.
    Returns: ``out_dir``.
    Raises: UserError: an unknown type, no text, or a size that the text does not allow (it says what it allows).
    """
    out_dir = Path(out_dir)
    if model_type not in MODEL_TYPES:
        raise UserError("model_type", f'found "{model_type}"', f"one of {', '.join(MODEL_TYPES)}")
    sentences = [text for text in (" ".join(text.split()) for text in texts) if text]
    if not sentences:
        raise UserError("BPE training text", "there is no text", "at least one transcript that is not empty")
    with new_dir(out_dir) as made:
        model = _train(sentences, vocab_size, model_type, shrink_to_fit)
        (made / "bpe.model").write_bytes(model)
        processor = sentencepiece.SentencePieceProcessor(model_proto=model)
        lines = [f"{processor.id_to_piece(index)} {index}\n" for index in range(processor.get_piece_size())]
        (made / "tokens.txt").write_text("".join(lines), encoding="utf-8", newline="\n")
    return out_dir


def _train(sentences: List[str], vocab_size: int, model_type: str, shrink_to_fit: bool) -> bytes:
    smallest = 3  # <blk>, <unk>, the word boundary: below it sentencepiece names no reason
    try:
        model = _sentencepiece(sentences, max(vocab_size, smallest), model_type)
    except RuntimeError as error:
        needed = re.search(r"required_chars\D*\d+ vs (\d+)", str(error))
        if not needed:
            largest = _largest_vocabulary(sentences, vocab_size, model_type, str(error))
            if shrink_to_fit:
                return _sentencepiece(sentences, largest, model_type)
            problem, advice = f"{vocab_size} is larger than the text allows", "choose a smaller vocabulary"
            raise UserError("vocab_size", problem, f"at most {largest}", advice) from None
        smallest = int(needed.group(1))
    if vocab_size < smallest:
        problem = f"{vocab_size} is too small for the characters of the text"
        raise UserError("vocab_size", problem, f"at least {smallest}", "choose a larger vocabulary")
    return model


def _sentencepiece(sentences: List[str], vocab_size: int, model_type: str) -> bytes:
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(sentences),
        model_writer=model,
        vocab_size=vocab_size,
        model_type=model_type,
        character_coverage=1.0,
        normalization_rule_name="identity",  # decode(encode(text)) is text, in any script
        user_defined_symbols=[BLANK],
        unk_id=1,
        unk_piece=UNKNOWN,
        bos_id=-1,
        eos_id=-1,
        pad_id=-1,
        num_threads=1,
        shuffle_input_sentence=False,
        input_sentence_size=0,
        max_sentence_length=_LONGEST_SENTENCE,
        minloglevel=2,
    )
    return model.getvalue()


def _largest_vocabulary(sentences: List[str], vocab_size: int, model_type: str, message: str) -> int:
    """The largest size that trains: sentencepiece names it, or it is found by halving."""
    named = re.search(r"<= (\d+)", message)
    if named:
        return int(named.group(1))
    low, high = 0, vocab_size  # low is not too large, high is
    while high - low > 1:
        middle = (low + high) // 2
        try:
            _sentencepiece(sentences, middle, model_type)
            low = middle
        except RuntimeError as error:
            low, high = (middle, high) if "required_chars" in str(error) else (low, middle)
    return low
