"""``zipformer train`` as it stands, by the launcher.  Needs the package with all that it needs."""

import importlib.util
import io
import json
import os
import re
import subprocess
import sys
import tarfile

import numpy as np
import pytest
import torch

OPTIONS = (
    "--bpe-model librispeech-500 --use-noise-augment 0 --num-workers 0 --tensorboard 0 --num-epochs 1 --max-duration 12"
)
OPTIONS += " --num-encoder-layers 1,1 --downsampling-factor 1,2 --encoder-dim 16,24 --encoder-unmasked-dim 16,16"
OPTIONS += " --feedforward-dim 24,24 --num-heads 2,2 --query-head-dim 4 --value-head-dim 4 --cnn-module-kernel 15,15"
OPTIONS += " --decoder-dim 16 --joiner-dim 24 --use-cr-ctc 0"  # its CR-CTC calls time_warp with a name that it lacks


@pytest.fixture(scope="module")
def train(root, tmp_path_factory):
    """run(*options, exit_status=0) -> the folder, and what it printed; in one process."""
    if importlib.util.find_spec("zipformer") is None or importlib.util.find_spec("atdataset") is None:
        pytest.skip("the pip package zipformer is not installed with all that it needs: tests/run.sh --env zipformer")
    import soundfile

    folder, rng = tmp_path_factory.mktemp("train"), np.random.default_rng(1)
    with tarfile.open(folder / "speech.tar", "w") as tar, open(folder / "text.jsonl", "w") as labels:
        for n in range(12):
            sound, words = io.BytesIO(), " ".join(rng.choice(["ONE", "TWO", "THREE", "FOUR"], size=3))
            soundfile.write(sound, 0.1 * rng.normal(size=16000 + 1000 * n), 16000, format="WAV")
            entry = tarfile.TarInfo(f"utterance{n}.wav")
            entry.size = sound.tell()
            sound.seek(0)
            tar.addfile(entry, sound)
            labels.write(json.dumps({"audio_filepath": entry.name, "text": words}) + "\n")
    (folder / "train.lst").write_text(f"{folder}/speech.tar {folder}/text.jsonl 0.005\n")

    def run(name, *options, exit_status=0):
        words = [*OPTIONS.split(), "--training-sets", str(folder / "train.lst"), "--exp-dir", str(folder / name)]
        environment = {**os.environ, "PYTHONPATH": str(root / "plugin"), "TORCHDYNAMO_DISABLE": "1"}
        command = [sys.executable, "-m", "rnnt_kd.zipformer", "train", *words, *options]
        done = subprocess.run(command, env=environment, text=True, capture_output=True, cwd=folder)
        assert done.returncode == exit_status, done.stderr[-3000:]
        return folder / name, done.stderr

    return run


@pytest.fixture(scope="module")
def teacher(train):
    folder, log = train("teacher", "--seed", "1")
    assert "pruned_loss=" in log and "kd_loss" not in log
    return folder


def options_of(teacher):
    return ["--kd-teacher", str(teacher), "--kd-teacher-epoch", "1", "--kd-teacher-avg", "0"]


def test_a_student_learns_from_what_the_package_trained_and_none_of_it_is_in_its_checkpoint(train, teacher):
    folder, log = train("student", *options_of(teacher), "--seed", "2")
    assert "kd_loss=" in log and f"learns from {teacher}/epoch-1.pt" in log
    ours, theirs = (torch.load(x / "epoch-1.pt", map_location="cpu", weights_only=False) for x in (folder, teacher))
    for part in ("model", "model_avg"):
        assert {name: x.shape for name, x in ours[part].items()} == {name: x.shape for name, x in theirs[part].items()}


@pytest.mark.parametrize(
    "options, message",
    [
        (["--kd-cache", "kd"], "--kd-cache: .*expected --kd-teacher"),
        (["--kd-teacher", "nowhere.pt"], "nowhere.pt: .*no such file or folder"),
        (["--kd-teahcer", "exp"], "--kd-teahcer: unknown option"),
        (["{teacher}", "--context-size", "1"], "its context size is 2.*1, as the student has"),
        (["{teacher}", "--bpe-model", "gigaspeech-500"], "its pieces"),
    ],
)
def test_bad_input_is_one_line(train, teacher, options, message):
    words = options_of(teacher) + options[1:] if options[0] == "{teacher}" else options
    (line,) = [x for x in train("none", *words, exit_status=1)[1].splitlines() if x.startswith("error: ")]
    assert re.search(message, line), line
