"""Stage 2: transcripts -> a sentencepiece model.

``<out_dir>/bpe.model``   the model: ``<blk>`` = 0, ``<unk>`` = 1, no begin or end of sentence
``<out_dir>/tokens.txt``  "symbol id" a line, the form that icefall and sherpa-onnx read
"""

import io
import re
from collections import Counter
from pathlib import Path
from typing import Any, Dict, Iterable, List, Sequence

import sentencepiece

from rnnt_kd.atomic import new_dir
from rnnt_kd.errors import UserError
from rnnt_kd.text.tokenizer import SPACE

BLANK, UNKNOWN = "<blk>", "<unk>"
MODEL_TYPES = ("bpe", "unigram", "char")
_LONGEST_SENTENCE = 100_000  # bytes; sentencepiece silently skips longer ones
_BYTES = 256


def train_bpe(
    texts: Iterable[str],
    vocab_size: int,
    out_dir: Path,
    model_type: str = "bpe",
    shrink_to_fit: bool = False,
    enlarge_to_fit: bool = False,
    byte_fallback: bool = False,
    events: Sequence[str] = (),
) -> Path:
    """Train and write a model; the same texts in the same order give the same bytes.

    Args:
      texts:      transcripts; empty ones do not count.
      vocab_size: pieces, ``<blk>`` and ``<unk>`` included.
      out_dir:    the folder to make; an older one is replaced.
      model_type: "bpe", "unigram" or "char".
      shrink_to_fit: where the text allows fewer pieces, take as many as it allows.
      enlarge_to_fit: where its characters need more pieces, take as many as they need.
      byte_fallback: characters for which there is no room, and those of other text, are spelled in bytes.
      events:     words that get a piece of their own, whatever they are made of.
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
        options: Dict[str, Any] = {"model_type": model_type}
        options["user_defined_symbols"] = [BLANK, *(SPACE + event for event in events)]
        options.update({"byte_fallback": True} if byte_fallback else {})  # the model's bytes tell what was said
        _write(made, _train(sentences, vocab_size, options, shrink_to_fit, enlarge_to_fit))
    return out_dir


def take_bpe(model: Path, out_dir: Path) -> Path:
    """Make the folder of a model that is there, as ``Tokenizer.load`` takes it.  Returns: ``out_dir``."""
    with new_dir(out_dir) as made:
        _write(made, model.read_bytes())
    return out_dir


def _write(made: Path, model: bytes) -> None:
    (made / "bpe.model").write_bytes(model)
    processor = sentencepiece.SentencePieceProcessor(model_proto=model)
    lines = [f"{processor.id_to_piece(index)} {index}\n" for index in range(processor.get_piece_size())]
    (made / "tokens.txt").write_text("".join(lines), encoding="utf-8", newline="\n")


def _train(
    sentences: List[str], vocab_size: int, options: Dict[str, Any], shrink_to_fit: bool, enlarge_to_fit: bool
) -> bytes:
    characters = _characters(sentences, options["user_defined_symbols"])
    smallest = 2 + len(options["user_defined_symbols"])  # with <unk> and the word boundary
    if "byte_fallback" in options:
        smallest += _BYTES + 1
        rare = set(characters[max(1, vocab_size + 1 - smallest) :])
        sentences = ["".join(letter for letter in text if letter not in rare) for text in sentences]
    else:
        smallest += len(characters)
    advice = "it is text.vocab_size of the preset: --set text.vocab_size=N"
    if vocab_size < smallest and not enlarge_to_fit:
        problem = f"{vocab_size} is too small for the characters of the text"
        raise UserError("vocab_size", problem, f"at least {smallest}", advice)
    vocab_size = max(vocab_size, smallest)
    try:
        return _sentencepiece(sentences, vocab_size, options)
    except RuntimeError as error:
        largest = _largest_vocabulary(sentences, vocab_size, options, str(error))
    if shrink_to_fit:
        return _sentencepiece(sentences, largest, options)
    raise UserError("vocab_size", f"{vocab_size} is larger than the text allows", f"at most {largest}", advice)


def _characters(sentences: List[str], symbols: Sequence[str]) -> List[str]:
    """The characters outside ``symbols``, the most frequent first."""
    counts: Counter[str] = Counter()
    for text in sentences:
        text = SPACE + text.replace(" ", SPACE)
        for symbol in sorted(symbols[1:], key=len, reverse=True):
            text = text.replace(symbol, "")
        counts.update(text)
    return sorted(counts.keys() - {SPACE}, key=lambda letter: (-counts[letter], letter))


def _sentencepiece(sentences: List[str], vocab_size: int, options: Dict[str, Any]) -> bytes:
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(sentences),
        model_writer=model,
        vocab_size=vocab_size,
        character_coverage=1.0,
        normalization_rule_name="identity",  # decode(encode(text)) is text, in any script
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
        **options,
    )
    return model.getvalue()


def _largest_vocabulary(sentences: List[str], vocab_size: int, options: Dict[str, Any], message: str) -> int:
    """The largest size that trains: sentencepiece names it, or it is found by halving."""
    named = re.search(r"<= (\d+)", message)
    if named:
        return int(named.group(1))
    low, high = 0, vocab_size  # low is not too large, high is
    while high - low > 1:
        middle = (low + high) // 2
        try:
            _sentencepiece(sentences, middle, options)
            low = middle
        except RuntimeError as error:
            low, high = (middle, high) if "required_chars" in str(error) else (low, middle)
    return low
