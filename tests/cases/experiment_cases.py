"""experiment.json of a made-up experiment."""

from pathlib import Path

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
