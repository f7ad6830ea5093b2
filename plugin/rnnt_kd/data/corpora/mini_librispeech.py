"""Mini LibriSpeech: the 5 hours of ``train-clean-5`` and the 2 of ``dev-clean-2`` -> Kaldi data directories.

LibriSpeech's layout, rules and options (``librispeech.py``) with other parts.  It has no official test
set: test is dev again (as in Kaldi's recipe), unless ``test_speakers`` holds some out.  Where ``dev-clean-2`` is
missing, dev is speakers 32, 669, 1737 and 7312 of ``train-clean-5``.
"""

from pathlib import Path
from typing import Dict, List, Optional

from rnnt_kd.data.corpora import librispeech

OPTIONS = {**librispeech.OPTIONS, "train": "train-clean-5", "dev": "dev-clean-2", "test": ""}


def prepare(corpus_dir: Optional[Path], out_dir: Path, *, seed: int, options: Dict[str, str]) -> List[Path]:
    """Make ``out_dir/{train,dev,test}``; arguments and errors as in ``librispeech.prepare``."""
    return librispeech.prepare_parts("mini_librispeech", OPTIONS, corpus_dir, out_dir, seed, options)
