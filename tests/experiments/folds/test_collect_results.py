"""``bin.collect_results``: figures of folds, as they come, in files that can be committed."""

import json
import shutil

from command_cases import told
from experiments.folds.conftest import Folds, collect

from rnnt_kd.bin import collect_results
from rnnt_kd.scoring import bootstrap


def test_figures_of_two_corpora_are_not_taken_for_one_anothers(trial, tmp_path):
    other = tmp_path / "other" / trial.dir.name
    other.mkdir(parents=True)
    rows = [{**row, "wer": 99.0} for row in trial.read("results.json")]
    for name, values in (("results", rows), ("pooled", trial.read("pooled.json"))):
        (other / f"{name}.json").write_text(json.dumps(values))
    words = ["--experiment-dir", trial.dir, other, "--results", tmp_path / "r.json"]
    said = told(collect_results.main.__wrapped__, [str(word) for word in words])
    assert (
        f"{other}: figures of " in said and f"other than in {trial.dir}" in said and not (tmp_path / "r.json").exists()
    )


def test_rows_are_collected_as_they_come_and_replace_their_older_selves(trial, tmp_path):
    old = [  # of an experiment without folds, and of another with the same names
        {"system": "half", "seed": 1, "test_set": "test", "wer": 12.5},
        {"experiment": "far", **trial.read("results.json")[0], "wer": 50.0},
    ]
    (tmp_path / "results.json").write_text(json.dumps(old))

    def named(rows):
        return [{"experiment": "trial", **row} for row in rows]

    for _ in range(2):
        collect(trial, tmp_path)
        assert json.loads((tmp_path / "results.json").read_text()) == old + named(trial.read("results.json"))
        assert json.loads((tmp_path / "pooled.json").read_text()) == named(trial.read("pooled.json"))
    fewer = [{**row, "folds": 2, "wer": 1.0} for row in trial.read("pooled.json")]  # as of a machine with two
    (trial.dir / "pooled.json").write_text(json.dumps(fewer))
    collect(trial, tmp_path)
    assert all(row["folds"] == 3 for row in json.loads((tmp_path / "pooled.json").read_text()))
    (trial.dir / "pooled.json").unlink()
    assert "no such file" in told(collect, trial, tmp_path)


def test_folds_of_several_machines_are_pooled_as_if_they_were_of_one(trial, tmp_path, monkeypatch):
    """Of each, only one fold is at hand when its figures are collected."""
    monkeypatch.setattr(bootstrap, "LEAST_UTTERANCES", 2)
    whole = trial.read("pooled.json")
    of_one_fold = {}
    for fold in (1, 2, 3):
        machine = Folds(tmp_path / f"machine{fold}")
        shutil.copytree(trial.folder, machine.folder, symlinks=True)
        for other in {1, 2, 3} - {fold}:
            shutil.rmtree(machine.exp / f"fold{other}of3" / "trial")
        machine.run("--steps", "score", "--replications", "10000")
        collect(machine, tmp_path)
        of_one_fold[fold] = machine.read("pooled.json")
    trial.run("--steps", "score", "--replications", "10000")
    collected = json.loads((tmp_path / "pooled.json").read_text())
    expected = [{"experiment": "trial", **row} for row in trial.read("pooled.json")]
    usual = [row["test_set"] == "clean" for row in expected]
    assert sum(usual) == 3 and whole != of_one_fold[3]
    assert [row for row, is_usual in zip(collected, usual) if is_usual] == [
        row for row, is_usual in zip(expected, usual) if is_usual
    ]
    # What another search did is not in results.json: of it, pooled.json has what was at hand last.
    assert [row["folds"] for row, is_usual in zip(collected, usual) if not is_usual] == [1] * (len(usual) - 3)
    rows = json.loads((tmp_path / "results.json").read_text())
    first = next(row for row in rows if row["system"] == "half")
    assert len({(row["made_as"], row["kd"], row["system"]) for row in rows}) == 3  # whatever the fold and the seed
    assert len({(row["made_as"], row["kd"]) for row in rows}) == 3
    (tmp_path / "results.json").write_text(
        json.dumps([{**first, "made_as": "otherwise"}, *rows[rows.index(first) + 1 :]])
    )
    kept = (tmp_path / "results.json").read_text()
    said = told(collect, machine, tmp_path)
    assert "half was not made in the same way in folds 1, 2, 3" in said and "results.json" in said
    assert (tmp_path / "results.json").read_text() == kept
    first["speaker_errors"] = {"zoe": 1}
    (tmp_path / "results.json").write_text(json.dumps(rows))
    assert "fold 1 of half or its baseline was tested on other speakers or words" in told(collect, machine, tmp_path)


def test_a_training_that_is_collected_again_leaves_nothing_of_its_older_self(tmp_path):
    """Its own token bonus is another one every time, or none."""
    folder, out = tmp_path / "trial", tmp_path / "results.json"
    folder.mkdir()
    for bonus, expected in {
        0.5: [(1, 0.0, 0.5), (1, 0.5, 0.5), (2, 0.0, 0.5), (2, 0.5, 0.5)],
        0.75: [(1, 0.0, 0.75), (1, 0.75, 0.75), (2, 0.0, 0.5), (2, 0.5, 0.5)],  # of seed 1 alone
        0.0: [(1, 0.0, 0.0), (2, 0.0, 0.0)],
    }.items():
        rows = [
            {"fold": 1, "system": "half", "seed": seed, "test_set": "test", "token_bonus": one, "wer": bonus}
            for seed in (1, 2)
            for one in dict.fromkeys((0.0, bonus))
        ]
        rows = rows if bonus != 0.75 else [row for row in rows if row["seed"] == 1]
        (folder / "results.json").write_text(json.dumps(rows))
        collect_results.main.__wrapped__(["--experiment-dir", str(folder), "--results", str(out)])
        found = [(row["seed"], row["token_bonus"], row["wer"]) for row in json.loads(out.read_text())]
        assert sorted(found) == expected
