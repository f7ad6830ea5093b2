"""Unlabelled audio: teachers write down what is said there, students learn from it, too."""

import gzip
import json
import shutil

import pytest
from command_cases import told
from experiment_cases import change_words
from experiments.conftest import Trial

from rnnt_kd.bin import pseudo_label
from rnnt_kd.data.features import originals
from rnnt_kd.data.source import open_source
from rnnt_kd.scoring.recognitions import Recognition, read_recogs, write_recogs
from rnnt_kd.teachers.cache import TeacherCache

SYSTEMS = """
systems:
  teacher: {role: teacher}
  small: {role: small_student}
  small_kd: {base: small, kd: {}}
  without: {base: small, training: {unlabelled: false}}
  without_kd: {base: without, kd: {}}
"""


def under_new_names(folder, target):
    """A data directory of the same audio without its text."""
    target.mkdir()
    for name in ("wav.scp", "utt2spk"):
        pairs = [line.split(maxsplit=1) for line in (folder / name).read_text().splitlines()]
        lines = [f"new-{key} {value if name == 'wav.scp' else 'new-' + value}\n" for key, value in pairs]
        (target / name).write_text("".join(lines))
    return target


@pytest.fixture
def trial(tone_corpus, teacher_dir, tmp_path):
    trial = Trial(tmp_path, tone_corpus)
    trial.file.write_text(SYSTEMS)
    shutil.copytree(tone_corpus.bpe_dir, trial.exp / "bpe")
    trial.unlabelled = under_new_names(tone_corpus.folder / "train", tmp_path / "audio")
    return trial


def run(trial, *more, steps="features teacher pseudo_label cache train"):
    words = ["--train-dir", trial.corpus.folder / "train", "--set", f"features.unlabelled_dir={trial.unlabelled}"]
    words += ["--set", "features.speed_perturb=[1.0, 1.1]"]
    return trial.run("--steps", steps, *words, *more)


def cuts(path):
    return {values["id"]: values for values in map(json.loads, gzip.open(path, "rt", encoding="utf-8"))}


def text(cut):
    return cut["supervisions"][0].get("text")


def of_teacher(trial, name="with_unlabelled.trial.teacher.1"):
    return trial.exp / "cuts" / f"{name}.jsonl.gz"


def recogs(trial):
    return trial.teacher / "decode_unlabelled_modified_beam_search" / "recogs-unlabelled.txt"


def test_from_audio_to_students_that_learned_from_it(trial, capfd):
    assert run(trial) == [
        *(f"compute_features cuts {name}" for name in ("train", "unlabelled", "dev")),
        "train teacher/1",
        "decode teacher/1 unlabelled, modified_beam_search",
        "pseudo_label pseudo-labels with_unlabelled.trial.teacher.1.jsonl.gz",
        "cache_teacher kd_cache_range3 of teacher/1",
        "cache_teacher kd_cache_range3_unlabelled of teacher/1",
        *(f"train {name}/1" for name in ("small", "small_kd", "without", "without_kd")),
    ]
    heard = {one.utterance_id: " ".join(one.hyp) for one in read_recogs(recogs(trial))}
    labelled, unlabelled, both = (
        cuts(path)
        for path in (*(trial.exp / "cuts" / f"{name}.jsonl.gz" for name in ("train", "unlabelled")), of_teacher(trial))
    )
    assert len(heard) == 24 and len(labelled) == len(unlabelled) == 48 and not any(map(text, unlabelled.values()))
    assert both == {
        **labelled,
        **{
            key: {**cut, "supervisions": [{**cut["supervisions"][0], "text": heard[key.replace("_sp1.1", "")]}]}
            for key, cut in unlabelled.items()
            if heard[key.replace("_sp1.1", "")]
        },
    }
    new = [key for key in both if key.startswith("new-")]
    assert new and len({text(both[key]) for key in new}) > 1
    said = capfd.readouterr()
    assert f"48 labelled cuts, 48 unlabelled, {96 - len(both)} of these" in said.out
    for name, count in (("small", len(both)), ("small_kd", len(both)), ("without", 48), ("without_kd", 48)):
        assert f"{name}: train: {count} of {count} utterances" in said.err
    for folder, has_new in (("kd_cache_range3_unlabelled", True), ("kd_cache_range3", False)):
        places = TeacherCache.open(trial.teacher / folder, partial=True).places([*labelled, *new])
        assert [place is not None for place in places] == [True] * 48 + [has_new] * len(new)

    assert run(trial) == []
    change_words(recogs(trial), lambda one: ("ab", *one.hyp))
    assert run(trial) == [
        "pseudo_label pseudo-labels with_unlabelled.trial.teacher.1.jsonl.gz",
        "cache_teacher kd_cache_range3_unlabelled of teacher/1",
        "train small/1",
        "train small_kd/1",
    ]
    assert text(cuts(of_teacher(trial))[new[0]]).startswith("ab ")

    trial.exp.rename(trial.exp.with_name("moved"))
    trial.exp = trial.exp.with_name("moved")
    assert run(trial, "--set", "without.training.epochs=2") == [
        "cache_teacher kd_cache_range3 of teacher/1",
        "train without/1",
        "train without_kd/1",
    ]
    assert run(trial, "--set", "small.training.epochs=2")[-2:] == ["train small/1", "train small_kd/1"]


def test_words_of_another_recogniser(trial):
    """Its empty hypotheses are left out; teachers are not asked."""
    names = [line.split()[0] for line in (trial.unlabelled / "wav.scp").read_text().splitlines()]
    (trial.unlabelled / "text").write_text("".join(f"{name} {'abc de' * (name > 'new-train-010')}\n" for name in names))
    trial.file.write_text("systems: {small: {role: small_student}}\n")
    words = "pseudo_label pseudo-labels with_unlabelled.jsonl.gz"
    assert run(trial)[-2:] == [words, "train small/1"]
    new = {key: text(cut) for key, cut in cuts(of_teacher(trial, "with_unlabelled")).items() if key.startswith("new-")}
    assert set(new.values()) == {"abc de"} and len(new) == 2 * 13


def test_what_is_out_of_date_is_noticed(trial, capsys):
    two = "systems: {teacher: {role: teacher}, small: {role: small_student}"
    trial.file.write_text(f"{two}, other: {{role: teacher}}, of_other: {{role: small_student, teacher: other}}}}\n")
    run(trial)
    trial.file.write_text(f"{two}}}\n")
    names = [line.split()[0] for line in (trial.unlabelled / "wav.scp").read_text().splitlines()]
    (trial.unlabelled / "text").write_text("".join(f"{name} abc de\n" for name in names))
    assert f"{of_teacher(trial, 'with_unlabelled')}: not made; " in told(run, trial, steps="train")
    (trial.unlabelled / "text").rename(trial.unlabelled / "spoken")
    assert run(trial, steps="train") == []
    (trial.unlabelled / "spoken").rename(trial.unlabelled / "text")
    assert "its text has no word in any of 48 cuts" in told(run, trial, steps="pseudo_label")
    run(trial, steps="features")
    (trial.unlabelled / "text").unlink()
    assert '"new-train-000" has text, and a teacher' in told(run, trial, steps="pseudo_label")
    capsys.readouterr()
    run(trial, "--print-jobs", steps="pseudo_label train")
    printed = capsys.readouterr().out
    assert "bin.pseudo_label" in printed and "--system small" in printed and "--system teacher" not in printed


def test_a_job_of_a_queue_makes_what_it_needs(trial):
    run(trial, steps="features")
    started = run(trial, "--job", "small_kd/1", steps="")
    assert [name.split()[0] for name in started[:5]] == ["train", "decode", "pseudo_label", "cache_teacher", "train"]
    assert run(trial, "--job", "without/1", steps="")[0].startswith("train without")


def test_what_cannot_be_is_one_line(trial, tone_corpus):
    assert "features.speed_perturb: [1.1], and" in told(run, trial, "--set", "features.speed_perturb=[1.1]")
    wrong = "features.unlabelled_dir (--unlabelled-dir): given with folds"
    assert wrong in told(run, trial, "--set", "folds=3")
    given = ["--train-cuts", tone_corpus.train_cuts, "--set", "features.unlabelled_dir=audio"]
    assert "(--unlabelled-dir): given with --train-cuts" in told(trial.run, "--steps", "", *given)
    dev = shutil.copytree(tone_corpus.folder / "dev", trial.unlabelled.parent / "unlabelled")
    assert "a set has the name unlabelled" in told(run, trial, "--dev-dir", dev, steps="")
    lines = {name: (trial.unlabelled / name).read_text() for name in ("wav.scp", "utt2spk")}
    for name, content in lines.items():
        (trial.unlabelled / name).write_text(content.replace("new-train-000 ", "new-train-000_far1 "))
    assert '"new-train-000_far1" ends as the name of a copy' in told(run, trial)
    for name, content in lines.items():
        (trial.unlabelled / name).write_text(content.replace("new-train-000 ", "dev-001 "))
    assert f'"dev-001" is in {tone_corpus.folder / "dev"}, too' in told(run, trial)
    shutil.rmtree(trial.unlabelled)
    assert f"{trial.unlabelled}: no such directory" in told(run, trial)


def test_words_that_do_not_fit_the_cuts_are_one_line(trial, tone_corpus):
    run(trial, steps="features")
    names = {name: trial.exp / "cuts" / f"{name}.jsonl.gz" for name in ("train", "unlabelled", "dev")}
    words = trial.unlabelled.parent / "words"
    words.mkdir()
    items = {one: Recognition(one, (), ("a",)) for one in open_source(names["unlabelled"]).ids(range(48))}

    def label(these, labelled="train", out="out.jsonl.gz"):
        write_recogs(words / "recogs-unlabelled.txt", these)
        options = {"--cuts": names[labelled], "--unlabelled-cuts": names["unlabelled"]}
        options["--words"] = words / "recogs-unlabelled.txt"
        pseudo_label.main.__wrapped__([str(x) for pair in {**options, "--out": words / out}.items() for x in pair])

    lacking = [one for name, one in items.items() if name != "new-train-003"]
    assert ': nobody decoded "new-train-003"' in told(label, lacking)
    nothing = [Recognition(name, (), ()) for name in items]
    assert "the teacher heard no word in any of 48 cuts" in told(label, nothing)
    twice = '"new-train-000" is labelled, too, in '
    assert twice in told(label, items.values(), labelled="unlabelled")
    (words / "out.jsonl.gz").unlink(missing_ok=True)
    damaged = names["unlabelled"].read_bytes()[:-40]
    names["unlabelled"].write_bytes(damaged)
    assert "cannot be read as cuts" in told(label, items.values())
    assert not (words / "out.jsonl.gz").exists()


def test_originals_are_those_that_are_there():
    ids = ["a", "a_sp0.9", "a_far1", "a_sp0.9_far2", "b_sp2.0", "b_sp2.0_sp1.1", "c_far1", "d_sp", "_sp1.1"]
    found = originals(ids)
    assert [found[name] for name in ids] == ["a", "a", "a", "a", "b_sp2.0", "b_sp2.0", "c_far1", "d_sp", "_sp1.1"]
