"""Small systems with random weights, their data, and an export."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from export_cases import TEXTS, export, make_system

from rnnt_kd.data.kaldi_dir import write_data_dir
from rnnt_kd.text.train_bpe import train_bpe


@pytest.fixture(scope="session")
def workplace(tmp_path_factory) -> Path:
    """bpe/, data/ (six utterances of noise, 0.3 to 2 s), systems/dense, systems/sparse."""
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("export")
    generator = np.random.default_rng(0)
    audio = {key: folder / f"{key}.wav" for key in TEXTS}
    for index, path in enumerate(audio.values()):
        loud = 0.02 * 4.0 ** (index % 3) * (1 + np.sin(np.arange(4800 + 5500 * index) / 2500.0))
        soundfile.write(path, loud * generator.normal(size=len(loud)), 16000)
    write_data_dir(folder / "data", wav_scp=audio, text=TEXTS, utt2spk={key: key[0] for key in TEXTS})
    train_bpe([text for text in TEXTS.values() if text], 16, folder / "bpe")
    make_system(folder / "systems" / "dense", folder / "bpe")
    make_system(folder / "systems" / "sparse", folder / "bpe", sparsity=0.9, seed=2)
    return folder


@pytest.fixture(scope="session")
def exported(workplace) -> Path:
    """systems/dense, exported and compared with sherpa-onnx on data/."""
    system = workplace / "systems" / "dense"
    return export(workplace, system, workplace / "out" / "dense", check_data_dir=workplace / "data")


@pytest.fixture
def folder(exported, tmp_path) -> Path:
    """A copy of ``exported`` to spoil."""
    return shutil.copytree(exported, tmp_path / "export")
