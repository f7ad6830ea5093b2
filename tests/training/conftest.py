"""A corpus of a few seconds made of tones, and a teacher trained on it, and its cache."""

from pathlib import Path

import pytest
import torch
from tone_corpus import Corpus, make_tone_corpus


@pytest.fixture(scope="session")
def tone_corpus(tmp_path_factory) -> Corpus:
    return make_tone_corpus(tmp_path_factory.mktemp("tones"))


@pytest.fixture(scope="session")
def teacher_dir(tone_corpus, tmp_path_factory) -> Path:
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("systems") / "teacher"
    tone_corpus.train(tone_corpus.config(name="teacher"), folder)
    return folder


@pytest.fixture(scope="session")
def kd_cache(tone_corpus, teacher_dir) -> Path:
    """Beside the cuts; not to be changed."""
    return tone_corpus.cache(teacher_dir, tone_corpus.folder / "cuts" / "kd_cache")
