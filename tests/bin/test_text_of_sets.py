"""What a preset's ``text:`` says reaches the commands, and what the text lacks is said for each set."""

from pathlib import Path

import pytest
from experiment_cases import jobs_in_this_process

from rnnt_kd.bin import experiment
from rnnt_kd.experiments.plan import Places, Plan

SETS = {"train": "a ONE\nb TWO <unk>\n", "dev": "a ONE\n", "clean": "a one\nb TWO\n", "other": "a TWÖ\n"}


@pytest.fixture
def places(tmp_path, root):
    for name, text in SETS.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "text").write_text(text, encoding="utf-8")
    (tmp_path / "trial.yaml").write_text(
        "systems: {teacher: {role: teacher}, x: {role: sparse_student, sparsity: 0.5}}"
    )
    return Places(
        root / "egs/synth/conf/smoke.yaml", tmp_path / "exp", "dev", {"clean": tmp_path / "clean"},
        train_dir=tmp_path / "train", dev_dir=tmp_path / "dev",
    )  # fmt: skip


def commands(places, **text):
    overrides = tuple(f"text.{key}={value}" for key, value in text.items())
    plan = Plan(places.exp_dir.parent / "trial.yaml", Places(**{**vars(places), "overrides": overrides}))
    job = ("x", 1)
    return {
        **plan.features_commands(), "bpe": plan.bpe_command(), "decode": plan.decode_command(job, "clean"),
        "score": plan.score_arguments(job, "clean", plan.search, ("teacher", 1)),
    }  # fmt: skip


@pytest.mark.parametrize("text, options, where", [
    ({"normalization": "none"}, "--normalization none", "train dev clean bpe decode"),
    ({"score_events": "false"}, "--ignore-events", "score"),
    ({"byte_fallback": "true"}, "--byte-fallback", "bpe"),
    ({"shrink_to_fit": "true"}, "--shrink-to-fit", "bpe"),
])  # fmt: skip
def test_a_key_of_text_changes_the_commands_that_it_is_about(places, text, options, where):
    usual, changed = commands(places), commands(places, **text)
    assert {name for name in usual if usual[name] != changed[name]} == set(where.split())
    assert all(options in " ".join(changed[name]) for name in where.split())
    assert {"--enlarge-to-fit", "--keep-events"} < set(usual["bpe"])
    both = commands(places, enlarge_to_fit="false", keep_events="false")["bpe"]
    assert not {"--enlarge-to-fit", "--keep-events"} & set(both)


def test_what_cannot_be_written_is_said_of_each_set_before_training(places, capfd):
    folder = places.exp_dir.parent
    words = ["--experiment", folder / "trial.yaml", "--config", places.preset, "--exp-dir", places.exp_dir]
    words += ["--train-dir", folder / "train", "--dev-dir", folder / "dev", "--steps", "bpe"]
    words += ["--test-dirs", folder / "clean", folder / "other", "--set", "text.vocab_size=4"]
    with jobs_in_this_process():
        experiment.main([*map(str, words), "--set", "text.shrink_to_fit=true"])
    printed = capfd.readouterr()
    assert "9 pieces, more than text.vocab_size 4" in printed.out and "<unk> (1 times)" in printed.out
    assert printed.err.splitlines() == [
        "train: the BPE model can write all 2 utterances",
        "dev: the BPE model can write all 1 utterances",
        'clean: the BPE model cannot write 1 of 2 utterances (50.0 %), such as "o" of "one" in a; in upper case it can: '
        "change the case of this set's text, or of the training text",
        'other: the BPE model cannot write 1 of 1 utterances (100.0 %), such as "Ö" of "TWÖ" in a',
    ]
    assert Path(places.exp_dir / "bpe" / "bpe.model").is_file()
