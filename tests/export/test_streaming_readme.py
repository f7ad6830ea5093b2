"""The README of a streaming export: its commands run as they stand."""

import re
import subprocess
import sys

import numpy as np
import soundfile
from export_cases import make_system

from rnnt_kd.data.speech import filter_banks, read_speech
from rnnt_kd.decoding.streaming import StreamingRecognizer
from rnnt_kd.export.export_system import export_system
from rnnt_kd.systems.store import load_system
from rnnt_kd.text.tokenizer import Tokenizer


def test_the_commands_of_a_streaming_readme_run(workplace, tmp_path):
    system = make_system(tmp_path / "stream", workplace / "bpe", encoder="streaming_conformer", seed=3)
    folder = tmp_path / "out"
    values = export_system(system, workplace / "bpe", folder, streaming=True, say=lambda line: None)
    assert values["streaming"] and values["check"]["differences"] == 0
    item = list(read_speech(workplace / "data"))[4]
    soundfile.write(folder / "speech.wav", item.samples, 16000)
    code = re.search(r"```python\n(.*?)```", (folder / "README.md").read_text(), re.DOTALL).group(1)
    done = subprocess.run([sys.executable, "-c", code], cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    silence = np.zeros(16000, dtype=np.float32)  # what the README appends, so that no word is lost
    stream = StreamingRecognizer(load_system(system)[0], search="modified_beam_search", beam=4)
    stream.accept(filter_banks(np.concatenate([item.samples, silence])))
    expected = Tokenizer.load(workplace / "bpe").decode(stream.result().tokens)
    assert expected and done.stdout.strip() == expected.strip()
