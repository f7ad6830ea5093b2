"""Stage 1 of an experiment with far speech, in folds: who is heard where."""

import numpy as np
import pytest
import soundfile
from experiment_cases import jobs_in_this_process

from rnnt_kd.bin import experiment as command
from rnnt_kd.data import far, folds
from rnnt_kd.data.kaldi_dir import read_data_dir, write_data_dir
from rnnt_kd.data.source import open_source
from rnnt_kd.record import read_record

PRESET = "features: {speed_perturb: [1.0, 1.1], far_copies: 1, far_sets: true}\n"
EXPERIMENT = "folds: 3\nsystems: {teacher: {role: teacher}}\n"


@pytest.fixture
def corpus(tmp_path):
    """Nine speakers of two utterances each, in a train, a dev and a test directory."""
    for part, speakers in (("train", range(5)), ("dev", range(5, 7)), ("test", range(7, 9))):
        audio, texts = {}, {}
        for speaker in speakers:
            for number in range(2):
                key = f"s{speaker}-{number}"
                time = np.arange(6400) / 16000
                audio[key] = tmp_path / f"{key}.wav"
                soundfile.write(audio[key], 0.1 * np.sin(2 * np.pi * (200 + 100 * speaker) * time), 16000)
                texts[key] = "a b " * (1 + speaker)
        write_data_dir(
            tmp_path / part, wav_scp=audio, text=texts, utt2spk={key: key.partition("-")[0] for key in audio}
        )
    (tmp_path / "preset.yaml").write_text(PRESET)
    (tmp_path / "trial.yaml").write_text(EXPERIMENT)
    return tmp_path


def features(corpus, patch):
    """Stage 1 in this process; returns (where, who is heard, who babbles) of every draw."""
    heard, current, real, real_talk = [], [], far.Surroundings.heard, far._talk

    def listening(self, samples, key, speaker):
        current[:] = [speaker]
        return real(self, samples, key, speaker)

    def talking(talker):
        heard.append((started[-1].partition(" ")[2], *current, talker.speaker))
        return real_talk(talker)

    patch.setattr(far.Surroundings, "heard", listening)
    patch.setattr(far, "_talk", talking)
    words = ["--experiment", "trial.yaml", "--config", "preset.yaml", "--exp-dir", "exp", "--train-dir", "train"]
    words += ["--dev-dir", "dev", "--test-dirs", "test", "--steps", "features", "--device", "cpu"]
    patch.chdir(corpus)
    with jobs_in_this_process() as started:
        command.main.__wrapped__(words)
    return heard


def test_no_fold_hears_in_training_whom_it_tests(corpus, monkeypatch):
    heard = features(corpus, monkeypatch)
    exp = corpus / "exp"
    parts = {}
    for fold in (1, 2, 3):
        folder = folds.fold_dir(exp, fold, 3)
        sets = {name: set(read_data_dir(folder / "data" / name).speakers) for name in ("train", "dev", "test")}
        parts.update(dict.fromkeys(sets["test"], fold))
        cuts = {name: open_source(folder / "cuts" / f"{name}.jsonl.gz") for name in (*sets, "test_far", "dev_far")}
        ids = {cut.id for cut in cuts["train"]}
        assert len(ids) == 2 * 4 * len(sets["train"]) and {far_id for far_id in ids if far_id.endswith("_sp1.1_far1")}
        assert {cut.supervisions[0].speaker for cut in cuts["train"]} == sets["train"]
        for name in ("dev", "test"):
            clean, distant = (read_data_dir(folder / "data" / (name + ending)) for ending in ("", "_far"))
            expected = [(one.id, one.text, one.speaker) for one in clean.utterances]
            assert [(one.id, one.text, one.speaker) for one in distant.utterances] == expected
            assert {cut.id for cut in cuts[f"{name}_far"]} == {cut.id for cut in cuts[name]}
        babble = [pair for where, *pair in heard if where.startswith(f"fold{fold} ")]
        assert babble and all(talker in sets["train"] for _, talker in babble)
    of_all = [pair for where, *pair in heard if where == "cuts of all folds"]
    assert of_all and all(parts[speaker] == parts[talker] and speaker != talker for speaker, talker in of_all)
    (record,) = exp.glob("folds3/cuts/.features_train.record.json")
    assert read_record(record)["settings"]["far.folds"] == 3


def test_stage_1_finds_everything_finished(corpus, monkeypatch, capsys):
    features(corpus, monkeypatch)
    capsys.readouterr()
    assert features(corpus, monkeypatch) == []
    said = capsys.readouterr().out
    assert said.count("finished already, skipped") == 1 + 3 * 4
