"""Real speech and trained systems, as the benchmarks of searches and encoders read them; and words, counted."""

from pathlib import Path
from typing import Any, Dict, List, Optional, Sequence, Tuple

from rnnt_kd.data.speech import Speech, read_speech
from rnnt_kd.errors import UserError
from rnnt_kd.scoring.recognitions import Recognition
from rnnt_kd.scoring.results import figures
from rnnt_kd.scoring.word_errors import count_all
from rnnt_kd.systems.store import read_system
from rnnt_kd.text.tokenizer import Tokenizer

WORD_KEYS = ("wer", "ins", "del", "sub", "other_words")
WORD_HEAD = ("%WER", "ins", "del", "sub", "other words")


def usable_speech(data_dir: Path, most: Optional[int] = None) -> List[Speech]:
    """The utterances that have usable audio; of more than ``most`` every n-th by length.  UserError: there are none."""
    speech = [item for item in read_speech(data_dir) if item.samples is not None]
    if not speech:
        raise UserError(data_dir, "holds no usable audio", "some speech")
    if most is None or most >= len(speech):
        return speech
    ordered = sorted(speech, key=lambda item: len(item.heard))
    return [ordered[number * len(ordered) // most] for number in range(most)]


def named_systems(folders: Sequence[Path]) -> List[Tuple[str, Path]]:
    """(name, folder): the system's name or, of several called alike, its path.  UserError: it holds no system."""
    folders = [folder.resolve() for folder in folders]
    short = [read_system(folder).name for folder in folders]
    return [(name if short.count(name) == 1 else str(folder), folder) for name, folder in zip(short, folders)]


def own_tokenizer(bpe_dir: Path, system_dirs: Sequence[Path]) -> Tokenizer:
    """That of the folder.  UserError: some system has another."""
    tokenizer = Tokenizer.load(bpe_dir)
    for system_dir in system_dirs:
        checksum = read_system(system_dir).bpe_checksum
        if checksum != tokenizer.checksum:
            expected = f"that of {system_dir} (checksum {checksum[:12]})"
            raise UserError(bpe_dir, f"another BPE model (checksum {tokenizer.checksum[:12]})", expected)
    return tokenizer


def word_figures(refs: Dict[str, str], texts: Dict[str, str], others: Optional[Dict[str, str]]) -> Dict[str, Any]:
    """Word errors, and ``other_words``: utterances whose words differ from those in ``others``.

    Args:
      refs, texts, others: utterance id -> what was said, what was recognised, what somebody else recognised.
    """
    split = {key: tuple(text.split()) for key, text in texts.items()}
    counts = count_all(Recognition(key, tuple(refs[key].split()), hyp) for key, hyp in split.items())
    changed = others and sum(hyp != tuple(others[key].split()) for key, hyp in split.items())
    return {**figures(counts), "other_words": changed}
