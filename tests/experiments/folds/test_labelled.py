"""Folds with labels of a part of the speakers."""

import json

from command_cases import told
from experiments.folds.conftest import Folds, make_data
from tone_corpus import PRESET

from rnnt_kd.data.source import open_source
from rnnt_kd.scoring.recognitions import read_recogs

SCARCE = """
folds: 3
labelled: 0.5
seeds: [2]
endpoint: {system: taught, baseline: labels, sparsity: 0.0, test_set: test, search: modified_beam_search}
systems:
  teacher: {role: teacher}
  server: {of: whole}
  labels: {role: small_student, training: {unlabelled: false}}
  taught: {role: small_student, kd: {}, baseline: labels}
"""


def cuts_of(path):
    return {cut.id: cut for cut in open_source(path)}


def test_labels_of_a_part_of_the_speakers_and_a_teachers_words_of_the_others(tmp_path):
    trial = Folds(tmp_path)
    make_data(tmp_path)
    (tmp_path / "preset.yaml").write_text(
        PRESET.replace("epochs: 3", "epochs: 1") + "features: {speed_perturb: [1.0, 1.1]}\n"
    )
    trial.file.write_text(SCARCE)
    (tmp_path / "whole.yaml").write_text("folds: 3\nsystems: {server: {role: teacher}}\n")
    steps = ["--steps", "features bpe teacher pseudo_label cache train"]
    made = "fold2 pseudo-labels with_unlabelled50.trial.teacher.2.jsonl.gz"
    assert trial.run(*steps, "--fold", "2") == [
        "compute_features cuts of all folds", "train_bpe fold2 bpe", "train fold2 teacher/2", "train fold2 server/1",
        "decode fold2 teacher/2 unlabelled50, modified_beam_search", f"pseudo_label {made}",
        "cache_teacher kd_cache_range3_unlabelled50 of fold2 teacher/2",
        *(f"train fold2 {name}" for name in ("labels/2", "taught/2")),
    ]  # fmt: skip
    fold = trial.exp / "fold2of3"
    train, few, rest = (cuts_of(fold / "cuts" / f"{name}.jsonl.gz") for name in ("train", "labelled50", "unlabelled50"))
    assert {*few} | {*rest} == {*train} and not {*few} & {*rest} and few == {key: train[key] for key in few}
    speakers, others = ({cut.supervisions[0].speaker for cut in cuts.values()} for cuts in (few, rest))
    assert speakers and others and not speakers & others
    words = [sum(len(train[key].supervisions[0].text.split()) for key in cuts) for cuts in (few, rest)]
    assert words[0] >= 0.5 * sum(words) and not any(cut.supervisions[0].text for cut in rest.values())
    folder = fold / "trial" / "teacher" / "seed2" / "decode_unlabelled50_modified_beam_search"
    heard = {one.utterance_id: " ".join(one.hyp) for one in read_recogs(folder / "recogs-unlabelled50.txt")}
    assert {*heard} == {key for key in rest if not key.endswith("_sp1.1")}
    both = cuts_of(fold / "cuts" / "with_unlabelled50.trial.teacher.2.jsonl.gz")
    texts = {
        **{key: cut.supervisions[0].text for key, cut in few.items()},
        **{key: heard[key.replace("_sp1.1", "")] for key in rest},
    }
    assert {key: cut.supervisions[0].text for key, cut in both.items()} == {
        key: text for key, text in texts.items() if text
    }
    learned = {"few": ["trial/teacher", "trial/labels"], "both": ["trial/taught"], "train": ["whole/server"]}
    files = {"few": "labelled50", "both": made.split()[2][:-9], "train": "train"}
    for name, folders in learned.items():
        source = open_source(fold / "cuts" / f"{files[name]}.jsonl.gz")
        for (path,) in (list((fold / folder).glob("seed*/.training.record.json")) for folder in folders):
            recorded = json.loads(path.read_text())["inputs"]["train cuts"]
            assert recorded == source.content_as(recorded), path
    assert trial.run(*steps, "--fold", "2") == ["train_bpe fold2 bpe"]  # which finds it
    declared = json.loads((trial.dir / ".endpoint.record.json").read_text())["settings"]
    assert (declared["declared.labelled"], declared["declared.system"]) == (0.5, "taught")
    trial.run("--steps", "features bpe", "--fold", "3")
    assert trial.run("--job", "taught/2", "--fold", "3")[:5] == [
        "train fold3 teacher/2", "decode fold3 teacher/2 unlabelled50", "pseudo_label pseudo-labels",
        "cache_teacher cache kd_cache_range3_unlabelled50", "train fold3 taught/2",
    ]  # fmt: skip

    (tmp_path / "more.yaml").write_text("folds: 3\nsystems: {words: {of: trial}}\n")
    trial.file = tmp_path / "more.yaml"
    assert "of: trial.yaml has labels of a part; expected an experiment with all labels" in told(trial.run)
    trial.file.write_text("labelled: 0.2\nsystems: {teacher: {role: teacher}}\n")
    assert "labelled: given without folds" in told(trial.run)
    trial.file.write_text("folds: 3\nlabelled: 0.2\nsystems: {teacher: {role: teacher}}\n")
    wrong = "labelled: given with features.speed_perturb [0.9]; expected 1.0 among them"
    assert wrong in told(trial.run, "--set", "features.speed_perturb=[0.9]")
