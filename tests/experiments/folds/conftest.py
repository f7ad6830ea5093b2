"""An experiment in three folds on a corpus of tones by seven speakers, run to its end in this process."""

import random
import shutil
from argparse import Namespace
from pathlib import Path

import numpy as np
import pytest
from experiment_cases import change_words
from experiments.conftest import Trial
from tone_corpus import PRESET, write_tones

from rnnt_kd.bin import collect_results, tune_token_bonus
from rnnt_kd.data.kaldi_dir import write_data_dir
from rnnt_kd.experiments import progress

SYSTEMS = """
folds: 3
seeds: [1, 2]
tune_token_bonus: true
endpoint: {system: half_kd, baseline: half, sparsity: 0.5, test_set: test, search: modified_beam_search}
systems:
  teacher: {role: teacher, seeds: [1]}
  half: {role: sparse_student, sparsity: 0.5}
  half_kd: {base: half, kd: {}}
"""
SPEAKERS = {"train": ["ann", "bob", "cid", "dot"], "dev": ["eve"], "test": ["fay", "gus"]}


class Folds(Trial):
    """Its data and its preset lie in its folder."""

    def __init__(self, folder: Path):
        super().__init__(folder, Namespace(folder=folder, preset=folder / "preset.yaml"))
        self.folder = folder

    def run(self, *more: str) -> list:
        words = ["--train-dir", self.folder / "train", "--test-dirs", self.folder / "test", "--replications", "300"]
        words += ["--steps", "features bpe teacher cache train decode score", *more]
        with pytest.MonkeyPatch.context() as patch:
            for module in (tune_token_bonus, progress.token_bonus):
                patch.setattr(module, "GRID", (0.0, 2.0))
            return super().run(*words)

    def row(self, system, way=("modified_beam_search", "")):
        rows = self.read("summary.json")
        return next(row for row in rows if row["system"] == system and (row["search"], row["token_bonus"]) == way)


def make_data(folder: Path) -> None:
    generator = np.random.default_rng(0)
    for part, speakers in SPEAKERS.items():
        texts = {
            f"{speaker}-{number}": " ".join("".join(generator.choice(list("abcde"), 3)) for _ in range(2))
            for speaker in speakers
            for number in range(4)
        }
        (folder / f"{part}_audio").mkdir()
        for key, text in texts.items():
            write_tones(folder / f"{part}_audio" / f"{key}.wav", text, generator)
        wav_scp = {key: folder / f"{part}_audio" / f"{key}.wav" for key in texts}
        write_data_dir(folder / part, wav_scp=wav_scp, text=texts, utt2spk={key: key[:3] for key in texts})


def collect(trial, folder):
    words = ["--experiment-dir", trial.dir, "--results", folder / "results.json", "--pooled", folder / "pooled.json"]
    collect_results.main.__wrapped__([str(word) for word in words])


@pytest.fixture(scope="session")
def finished(tmp_path_factory):
    """(the experiment, what was started); the words recognised are replaced by some that differ in their errors."""
    trial = Folds(tmp_path_factory.mktemp("folds"))
    make_data(trial.folder)
    preset = PRESET.replace("epochs: 3", "epochs: 1").replace("average_best: 2", "average_best: 1")
    (trial.folder / "preset.yaml").write_text(preset)
    trial.file.write_text(SYSTEMS)
    started = trial.run()
    generator = random.Random(0)
    for number, path in enumerate(sorted(trial.exp.rglob("recogs-test.txt"))):
        least = 0.02 * (number % 19)
        change_words(path, lambda item: [word for word in item.ref if generator.random() > least])
    assert trial.run("--steps", "score") == []
    return trial, started


@pytest.fixture
def trial(finished, tmp_path):
    """A copy of the finished experiment, to spoil."""
    return Folds(shutil.copytree(finished[0].folder, tmp_path / "copy", symlinks=True))
