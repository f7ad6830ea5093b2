"""The tokens of anybody's model: of a sentencepiece bpe.model, or of a tokens.txt of icefall's and sherpa-onnx's."""

import hashlib
from pathlib import Path
from typing import List, Optional, Sequence, Set

from rnnt_kd.errors import UserError
from rnnt_kd.text_files import read_text


def read_pieces(path: Path) -> List[str]:
    """The symbol of each id.  UserError: neither kind of file, or ids that do not count from 0."""
    path = Path(path)
    if not path.is_file():
        raise UserError(path, "no such file", "bpe.model or tokens.txt")
    if path.suffix == ".txt":
        rows = [line.rsplit(maxsplit=1) for line in read_text(path, "tokens").splitlines() if line.strip()]
        symbols = [row[0] if len(row) == 2 else " " for row in rows]
        count = len(symbols)  # lexicons end with disambiguation symbols, #0 and so on, which no model has
        if "#0" in symbols and symbols[(first := symbols.index("#0")) :] == [f"#{n}" for n in range(count - first)]:
            count = first  # else it is a piece
        if [row[-1] for row in rows] != [str(n) for n in range(len(rows))] or not count:
            raise UserError(path, "is no list of tokens", "lines of a symbol and its number, from 0 on")
        return symbols[:count]
    if path.suffix == ".vocab":
        return [line.split("\t")[0] for line in read_text(path, "tokens").splitlines()]
    import sentencepiece

    processor = sentencepiece.SentencePieceProcessor()
    try:
        processor.load(str(path))
        return [processor.id_to_piece(n) for n in range(processor.get_piece_size())]
    except (RuntimeError, OSError, UnicodeDecodeError):
        raise UserError(path, "is not a sentencepiece model", "bpe.model or tokens.txt") from None


def pieces_digest(pieces: Sequence[str]) -> str:
    """SHA-256, hexadecimal."""
    return hashlib.sha256("\n".join(pieces).encode()).hexdigest()


def pieces_digests(pieces: Sequence[str], model: Optional[Path] = None) -> Set[str]:
    """How a cache may name them: by ``pieces_digest``, or by the SHA-256 of ``model``'s file."""
    digests = {pieces_digest(pieces)}
    if model is not None and Path(model).is_file():
        digests.add(hashlib.sha256(Path(model).read_bytes()).hexdigest())
    return digests
