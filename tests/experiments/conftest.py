"""An experiment on a corpus of tones, run to its end in this process."""

import json
import random
import shutil
from pathlib import Path

import pytest
from experiment_cases import change_words, jobs_in_this_process
from training.conftest import teacher_dir, tone_corpus  # noqa: F401

from rnnt_kd.bin import experiment as command
from rnnt_kd.scoring import bootstrap, results

SYSTEMS = """
seeds: [1, 2]
baseline: sparse50
systems:
  teacher: {role: teacher, seeds: [1]}
  sparse50: {role: sparse_student, sparsity: 0.5}
  sparse50_kd: {base: sparse50, kd: {weighting: uniform}}
  hot: {base: sparse50_kd, seeds: [1], kd: {temperature: 2.0}}
  large: {role: teacher, seeds: [3], model: {encoder_options: {dim: 48}}}
  small_large: {role: small_student, teacher: [large, teacher], kd: {}, seeds: [1]}
"""
STEPS = "teacher cache train decode score"


class Trial:
    """An experiment folder; ``run`` is the command, its jobs run in this process."""

    def __init__(self, folder: Path, corpus):
        self.exp, self.file, self.corpus = folder / "exp", folder / "trial.yaml", corpus
        self.dir = self.exp / "trial"
        self.teacher = self.dir / "teacher" / "seed1"

    def read(self, name: str):
        return json.loads((self.dir / name).read_text())

    def copy(self, folder: Path) -> "Trial":
        """In ``folder``, to spoil."""
        return Trial(shutil.copytree(self.file.parent, folder / "copy", symlinks=True), self.corpus)

    def arguments(self, *more: str) -> list:
        return [
            *("--experiment", str(self.file), "--config", str(self.corpus.preset), "--exp-dir", str(self.exp)),
            *("--dev-dir", str(self.corpus.folder / "dev"), "--test-dirs", str(self.corpus.folder / "dev")),
            *("--device", "cpu", "--lattice-backend", "torch", "--corpus", "tones", "--replications", "500"),
            *("--steps", STEPS, *map(str, more)),
        ]

    def run(self, *more: str, enough: bool = True) -> list:
        """Returns the names of the commands that were started, "train sparse50/1" ...

        The six utterances of the test set are taken for enough, unless ``enough`` is False.
        """
        with pytest.MonkeyPatch.context() as patch, jobs_in_this_process() as started:
            if enough:
                patch.setattr(bootstrap, "LEAST_UTTERANCES", 2)
                patch.setattr(results, "too_few", lambda *_: "")
            command.main.__wrapped__(self.arguments(*more))
        return started


def printed(trial, capsys, *arguments):
    """The lines of ``--print-jobs``, for a queue."""
    capsys.readouterr()
    words = [word for word in trial.arguments("--print-jobs", *arguments)]
    del words[words.index("--steps") : words.index("--steps") + 2]
    command.main.__wrapped__(words)
    return capsys.readouterr().out.splitlines()


@pytest.fixture(scope="session")
def untrained(tone_corpus, teacher_dir, tmp_path_factory):  # noqa: F811
    """What stages 0 to 3 leave, but for the second teacher."""
    folder = tmp_path_factory.mktemp("trial")
    trial = Trial(folder, tone_corpus)
    trial.file.write_text(SYSTEMS)
    shutil.copytree(tone_corpus.folder / "cuts", trial.exp / "cuts")
    shutil.copytree(tone_corpus.bpe_dir, trial.exp / "bpe")
    shutil.copytree(teacher_dir, trial.teacher)
    return trial


@pytest.fixture(scope="session")
def finished(untrained):
    """(the experiment, what its run started); the words recognised are replaced by some that differ in their errors."""
    started = untrained.run()
    generator = random.Random(0)
    for number, path in enumerate(sorted(untrained.exp.rglob("recogs-dev.txt"))):
        times = [1] * 9 + [0] * number
        change_words(path, lambda item: [word for word in item.ref for _ in range(generator.choice(times))])
    assert untrained.run("--steps", "score") == []
    return untrained, started


@pytest.fixture
def trial(finished, tmp_path):
    return finished[0].copy(tmp_path)
