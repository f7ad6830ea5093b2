"""Two small systems with random weights, and noise for them to hear."""

import numpy as np
import pytest
import soundfile
from export_cases import TEXTS, make_system

from rnnt_kd.data.kaldi_dir import write_data_dir
from rnnt_kd.text.train_bpe import train_bpe


@pytest.fixture(scope="package")
def place(tmp_path_factory):
    """bpe/, data/ (noise, and an utterance without audio), systems/dense, systems/sparse."""
    folder = tmp_path_factory.mktemp("benchmark")
    generator = np.random.default_rng(0)
    audio = {key: folder / f"{key}.wav" for key in TEXTS}
    for index, path in enumerate(audio.values()):
        soundfile.write(path, 0.05 * generator.normal(size=4800 + 5500 * index), 16000)
    write_data_dir(folder / "data", wav_scp=audio, text=TEXTS, utt2spk={key: key[0] for key in TEXTS})
    audio["a-1"].write_bytes(b"no audio")
    train_bpe([text for text in TEXTS.values() if text], 16, folder / "bpe")
    make_system(folder / "systems" / "dense", folder / "bpe")
    make_system(folder / "systems" / "sparse", folder / "bpe", sparsity=0.9, seed=2)
    return folder


@pytest.fixture
def fails(capsys):
    """Of a command that must fail with one line: that line."""

    def line(main, *arguments):
        with pytest.raises(SystemExit) as error:
            main(list(map(str, arguments)))
        assert error.value.code == 1
        lines = capsys.readouterr().err.strip().splitlines()
        assert lines[-1].startswith("error: ") and "Traceback" not in "".join(lines)
        return lines[-1]

    return line
