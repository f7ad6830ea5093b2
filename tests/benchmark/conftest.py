"""Two small systems with random weights, and noise for them to hear."""

import shutil

import pytest
from export_cases import workplace  # noqa: F401


@pytest.fixture(scope="session")
def place(workplace, tmp_path_factory):  # noqa: F811
    """bpe/, data/ (noise, and an utterance without audio), systems/dense, systems/sparse."""
    folder = shutil.copytree(workplace, tmp_path_factory.mktemp("benchmark") / "place")
    (folder / "a-1.wav").write_bytes(b"no audio")
    wav_scp = folder / "data" / "wav.scp"
    wav_scp.write_text(wav_scp.read_text().replace(str(workplace / "a-1.wav"), str(folder / "a-1.wav")))
    return folder
