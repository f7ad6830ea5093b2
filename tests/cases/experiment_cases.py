"""experiment.json of a made-up experiment; the jobs of a real one in this process, and the words that it recognised."""

import contextlib
import importlib
from pathlib import Path

import pytest
import torch
from command_cases import record_again

from rnnt_kd.bin import experiment_steps
from rnnt_kd.scoring.recognitions import Recognition, read_recogs, write_recogs
from rnnt_kd.systems.experiment_folder import EvaluationSet, ExperimentFolder, ListedSystem, write


def write_experiment(folder, systems, seeds=(1,), data_dirs=None, search="greedy_search"):
    """Returns what was written into ``folder``, EXP_DIR/EXPERIMENT.

    systems: name -> values of ListedSystem; the teacher of all is the first.  data_dirs: test set -> data directory.
    """
    teacher = next(iter(systems))
    listed = [
        ListedSystem(
            name=name,
            seeds=seeds,
            folders={seed: folder / name / f"seed{seed}" for seed in seeds},
            teacher=None if name == teacher else teacher,
            **values,
        )
        for name, values in systems.items()
    ]
    cuts = folder.parent / "cuts"
    sets = {
        name: EvaluationSet(Path(data_dir), cuts / f"{name}.jsonl.gz")
        for name, data_dir in (data_dirs or {"test": "/data/test"}).items()
    }
    paths = folder.parent / "bpe", cuts / "train.jsonl.gz"
    written = ExperimentFolder(folder.name, "synth", "conf/cpu.yaml", search, 4, *paths, sets, tuple(listed))
    write(folder, written)
    return written


@contextlib.contextmanager
def jobs_in_this_process():
    """Yields the list of the jobs that were started, "train sparse50/1" ..."""
    started = []

    def run_one_by_one(jobs, at_once, cmd):
        assert len({job.log for job in jobs}) == len(jobs)
        for job in jobs:
            for number in job.numbers:
                _, module, *words = job.words_of(number)
                started.append(f"{module.rpartition('.')[2]} {job.name_of(number)}")
                importlib.import_module(module).main.__wrapped__(words)
                torch.set_flush_denormal(False)
        return []

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(experiment_steps, "run_side_by_side", run_one_by_one)
        yield started


def change_words(path, words):
    """A decoding recognised ``words`` of each recognition instead."""
    items = [Recognition(one.utterance_id, one.ref, tuple(words(one))) for one in read_recogs(path)]
    write_recogs(path, items)
    record_again(path, f"decode-{path.stem.removeprefix('recogs-')}")
    if path.parent.parent.name == "token_bonus":
        record_again(path, "token_bonus", path.parent.parent)
