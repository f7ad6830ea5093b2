"""Transcripts <-> token ids, with the model that ``train_bpe`` wrote, or one of icefall's.

Blank is 0; ``<unk>`` is 1 in every model of this project, and 2 in icefall's, behind ``<sos/eos>``.
"""

import hashlib
from pathlib import Path
from typing import List, Sequence, Tuple

import sentencepiece

from rnnt_kd.errors import UserError
from rnnt_kd.record import verify

RECORD = "BPE"  # of the stage that writes bpe.model
FIRST = (["<blk>", "<unk>"], ["<blk>", "<sos/eos>", "<unk>"])  # pieces
SPACE = "\u2581"  # a piece that begins with it begins a word


class Tokenizer:
    """Made by ``Tokenizer.load``.

    Attributes:
      vocab_size: number of pieces, blank and ``<unk>`` included.
      blank_id, unk_id: 0, and 1 or 2.
      checksum:   SHA-256 of ``bpe.model``, hexadecimal: what teacher and student must share.
    """

    blank_id = 0

    def __init__(self, processor: sentencepiece.SentencePieceProcessor, checksum: str):
        self._processor = processor
        self.vocab_size, self.unk_id = processor.get_piece_size(), processor.unk_id()
        self.checksum = checksum

    @classmethod
    def load(cls, path: Path) -> "Tokenizer":
        """``path``: the folder with ``bpe.model``, or the model.  UserError: missing, foreign, or damaged."""
        path = Path(path)
        model = path / "bpe.model" if path.is_dir() else path
        if not model.is_file():
            raise UserError(model, "no such file", "the bpe.model of stage 2", "check the path, or run stage 2")
        content = model.read_bytes()
        checksum = hashlib.sha256(content).hexdigest()
        verify(model, RECORD, "run stage 2 again", digest=checksum)
        processor = sentencepiece.SentencePieceProcessor()
        try:
            readable = bool(content) and processor.load_from_serialized_proto(content) is not False
            readable = readable and processor.get_piece_size() > 2
            readable = readable and all(map(processor.id_to_piece, range(processor.get_piece_size())))
        except (RuntimeError, UnicodeDecodeError):
            readable = False
        if not readable:
            raise UserError(model, "is not a sentencepiece model", "the bpe.model of stage 2", "run stage 2 again")
        pieces = [processor.id_to_piece(index) for index in range(3)]
        if processor.unk_id() not in (1, 2) or pieces[: processor.unk_id() + 1] not in FIRST:
            problem = f"its first pieces are {' '.join(pieces)}"
            expected = " or ".join(map(" ".join, FIRST))
            raise UserError(model, problem, expected, "train the model with stage 2, or as icefall does")
        return cls(processor, checksum)

    def encode(self, text: str) -> List[int]:
        """Token ids; [] for an empty text.  Never blank."""
        # A transcript that spells "<blk>" would yield blank, which no path through the lattice can emit.
        return [max(token, self.unk_id) for token in self._processor.encode(text, out_type=int)]

    def decode(self, ids: Sequence[int]) -> str:
        """Text of token ids; blanks do not count."""
        return self._processor.decode([int(token) for token in ids if token != self.blank_id])

    def word_spans(self, ids: Sequence[int]) -> List[Tuple[str, int, int]]:
        """The words of ``decode(ids)``, each with the places of its first and last token among ``ids`` (no blank)."""
        starts = [place for place, token in enumerate(ids) if self._processor.id_to_piece(token).startswith(SPACE)]
        bounds = sorted({0, *starts, len(ids)})
        groups = ((ids[begin:end], begin, end - 1) for begin, end in zip(bounds, bounds[1:]))
        return [(word, first, last) for group, first, last in groups for word in self.decode(group).split()]

    def pieces(self) -> List[str]:
        """The symbol of each id, U+2581 for a space: what ``tokens.txt`` lists."""
        return [self._processor.id_to_piece(index) for index in range(self.vocab_size)]

    def scored_pieces(self) -> str:
        """sentencepiece's ``.vocab``: a line of piece, tab and score for each id."""
        scores = map(self._processor.get_score, range(self.vocab_size))
        return "".join(f"{piece}\t{score:.9g}\n" for piece, score in zip(self.pieces(), scores, strict=True))
