"""Folds by speaker, from data directories to the table: what is shared, what is not, and what each figure is made of."""

import json
import shutil

import pytest
from command_cases import told
from experiment_cases import change_words
from experiments.folds.conftest import SYSTEMS, Folds, collect, make_data
from tone_corpus import PRESET

from rnnt_kd.bin import tune_token_bonus
from rnnt_kd.data.kaldi_dir import read_table
from rnnt_kd.record import Record
from rnnt_kd.scoring.recognitions import read_recogs
from rnnt_kd.scoring.token_bonus import best
from rnnt_kd.scoring.word_errors import count_all, count_by_speaker
from rnnt_kd.text.tokenizer import Tokenizer

KEYS = (
    "system seed sparsity kd kd_weighting kd_scale test_set wer words ins del sub p_value cer fold declared token_bonus "
    "made_as utterances speaker_errors"
)
POOLED = "corpus test_set system baseline sparsity words wer baseline_wer change p p_seeds folds seeds declared"


WAYS = {  # folder -> search, token bonus
    "decode_test_modified_beam_search": ("modified_beam_search", ""),
    "decode_test_greedy_search": ("greedy_search", ""),
    "token_bonus/test": ("modified_beam_search", "own"),
}


def recogs(trial, fold, system, seed, folder="decode_test_modified_beam_search"):
    return read_recogs(trial.exp / f"fold{fold}of3" / "trial" / system / f"seed{seed}" / folder / "recogs-test.txt")


def test_features_are_made_once_and_every_fold_has_its_bpe_teacher_cache_students_and_decodings(finished):
    _, started = finished
    assert [name for name in started if name.startswith("compute_features")] == ["compute_features cuts of all folds"]
    for fold in (1, 2, 3):
        own = [name for name in started if f"fold{fold} " in name]
        students = ["half/1", "half/2", "half_kd/1", "half_kd/2"]
        assert own == [
            f"train_bpe fold{fold} bpe", f"train fold{fold} teacher/1",
            f"cache_teacher kd_cache_range3 of fold{fold} teacher/1",
            *(f"train fold{fold} {job}" for job in students),
            *(
                f"decode fold{fold} {job} test, {search}"
                for job in ("teacher/1", *students)
                for search in ("modified_beam_search", "greedy_search")
            ),
            *(f"tune_token_bonus fold{fold} {job} token bonus" for job in ("teacher/1", *students)),
        ]  # fmt: skip


def test_the_bpe_model_of_a_fold_knows_its_training_text_alone(tmp_path):
    """A letter that one speaker says is unknown in the fold that tests her."""
    trial = Folds(tmp_path)
    make_data(trial.folder)
    text = trial.folder / "train" / "text"
    text.write_text(text.read_text().replace("ann-0 ", "ann-0 zz"))
    (trial.folder / "preset.yaml").write_text(PRESET)
    trial.file.write_text(SYSTEMS)
    trial.run("--steps", "features bpe")
    for fold in (1, 2, 3):
        folder = trial.exp / f"fold{fold}of3"
        tokenizer = Tokenizer.load(folder / "bpe")
        knows = tokenizer.unk_id not in tokenizer.encode("z")
        assert knows == any(
            value.startswith("zz") for value, _ in read_table(folder / "data" / "train" / "text").values()
        )


def test_rows_are_a_fold_system_seed_test_set_and_bonus_with_the_scorers_figures(finished):
    trial, _ = finished
    rows = trial.read("results.json")
    plain = [row for row in rows if not row["token_bonus"]]
    assert [(row["fold"], row["system"], row["seed"]) for row in plain] == [
        (fold, system, seed)
        for fold in (1, 2, 3)
        for system, seed in (("teacher", 1), ("half", 1), ("half", 2), ("half_kd", 1), ("half_kd", 2))
    ]
    assert len({row["wer"] for row in plain}) > 5  # else equal figures say little
    for row in rows:
        assert list(row) == KEYS.split() and row["test_set"] == "test"
        items = recogs(trial, row["fold"], row["system"], row["seed"], [*WAYS][2 * bool(row["token_bonus"])])
        counts = count_all(items)
        found = [row[key] for key in ("ins", "del", "sub", "words", "wer")]
        assert found == [counts.ins, counts.dels, counts.subs, counts.words, pytest.approx(counts.wer, abs=1e-4)]
        of_speakers = count_by_speaker(items, {item.utterance_id: item.utterance_id[:3] for item in items})
        assert row["speaker_errors"] == {name: one.errors for name, one in sorted(of_speakers.items())}
        assert row["utterances"] == len(items)
        assert row["declared"] == (row["system"] != "teacher" and not row["token_bonus"])


def test_the_table_pools_all_folds(finished):
    trial, _ = finished
    for folder, way in WAYS.items():
        rates = {}
        for system in ("half", "half_kd"):
            counted = [[count_all(recogs(trial, fold, system, seed, folder)) for seed in (1, 2)] for fold in (1, 2, 3)]
            words = sum(one.words for one, _ in counted)
            rates[system] = 100 * sum(one.errors + other.errors for one, other in counted) / 2 / words
            row = trial.row(system, way)
            assert [row["wer"], row["words"]] == [pytest.approx(rates[system]), words]
            assert row["del_mean"] == sum(one.dels + other.dels for one, other in counted) / 2
            within = [abs(one.wer - other.wer) ** 2 / 2 for one, other in counted]
            assert row["wer_sd"] == pytest.approx((sum(within) / 3) ** 0.5, abs=1e-4)
        assert row["relative_change"] == pytest.approx(100 * (rates["half_kd"] / rates["half"] - 1))
        assert row["change_ci95"][0] < row["relative_change"] < row["change_ci95"][1] and row["seen_with_80"] > 0
    assert words == 56 and trial.row("half_kd")["folds"] == [1, 2, 3] and trial.row("half_kd")["seeds"] == [1, 2]
    assert trial.row("teacher")["relative_change"] is None and trial.row("half_kd")["p_value_seeds"] is not None
    (row,) = [row for row in trial.read("pooled.json") if (row["system"], row["test_set"]) == ("half_kd", "clean")]
    assert list(row) == POOLED.split() and [row["folds"], row["seeds"], row["declared"]] == [3, 2, True]
    assert [row["p"], row["p_seeds"]] == [trial.row("half_kd")[key] for key in ("p_value", "p_value_seeds")]
    assert [row["corpus"], row["baseline"], row["sparsity"], row["words"]] == ["tones", "half", 0.5, 56]


def test_the_endpoint_stands_first_with_its_figures(finished):
    text = (finished[0].dir / "summary.md").read_text()
    line = "Declared before the first training: half_kd against half (50% zeros) on test, modified_beam_search."
    assert line in text and "these trainings" in text and "seeds too.**" in text
    systems = [line.split("|")[1].strip() for line in text.splitlines() if line.startswith("|")]
    assert systems[2:] == ["half", "half_kd", "teacher", "teacher", "teacher", "half", "half", "half_kd", "half_kd"]


def test_an_endpoint_that_was_changed_is_said_and_counts_no_more(trial):
    trial.file.write_text(SYSTEMS.replace("half_kd, baseline: half,", "half_kd, baseline: half, token_bonus: own,"))
    trial.run("--steps", "score")
    text = (trial.dir / "summary.md").read_text()
    assert "Everything here is exploratory, the endpoint too" in text
    assert "changed after the first training: declared.token_bonus was '' and is 'own'" in text
    assert not any(row["declared"] for row in trial.read("results.json") + trial.read("pooled.json"))
    trial.file.write_text("\n".join(line for line in SYSTEMS.splitlines() if not line.startswith("endpoint")))
    trial.run("--steps", "score")
    text = (trial.dir / "summary.md").read_text()
    assert "there is no endpoint: changed after the first training: declared.baseline was 'half'" in text


def test_what_the_baseline_itself_is_compared_with_was_not_asked(trial, tmp_path):
    text = SYSTEMS.replace("half: {role", "half: {baseline: teacher, role")
    trial.file.write_text(text.replace("half_kd: {base: half,", "half_kd: {base: half, baseline: half,"))
    trial.run("--steps", "score")
    collect(trial, tmp_path)
    for rows in (trial.read("pooled.json"), json.loads((tmp_path / "pooled.json").read_text())):
        found = {row["system"]: (row["baseline"], row["declared"]) for row in rows if row["test_set"] == "clean"}
        assert found == {"teacher": (None, False), "half": ("teacher", False), "half_kd": ("half", True)}


def test_a_system_that_is_made_otherwise_is_another_endpoint(trial):
    trial.file.write_text(SYSTEMS.replace("kd: {}", "kd: {scale: 2.0}"))
    trial.run("--steps", "score")
    text = (trial.dir / "summary.md").read_text()
    assert "half_kd.kd.scale was None and is 2.0" in text and "is another system" in text
    own = "training.epochs was 1 and is 2"
    for file, words, changed in (
        (SYSTEMS, ["--set", "sparse_student.training.epochs=2"], f"trained.half.{own}, trained.half_kd.{own}"),
        (SYSTEMS.replace("teacher, seeds", "teacher, training: {epochs: 2}, seeds"), [], f"trained.teacher.{own}"),
    ):
        trial.file.write_text(file)
        trial.run("--steps", "score", *words)
        assert f"changed after the first training: {changed}." in (trial.dir / "summary.md").read_text()
    record, name = trial.dir / ".endpoint.record.json", "endpoint"
    before = json.loads(record.read_text())["settings"]
    older = {key: value for key, value in before.items() if not key.startswith("trained.")}
    Record(trial.dir, name, older, {}).start(keep=True)  # as versions before wrote it
    trial.file.write_text(SYSTEMS)
    trial.run("--steps", "score")
    assert "Declared before the first training" in (trial.dir / "summary.md").read_text() and older != before


def test_a_fold_that_was_scored_otherwise_is_in_no_figure(trial):
    for path in trial.exp.rglob("recogs-test.txt"):
        change_words(path, lambda item: [*item.ref, "<unk>"])
    trial.run("--steps", "score")
    trial.run("--steps", "score", "--fold", "1", "--set", "text.score_events=false")
    row = trial.row("half")
    assert (row["folds"], row["wer"], row["ins_mean"]) == ([1], 0.0, 0.0)
    assert row["unfinished"]["fold 2 seed 1"] == "test is scored otherwise: run stage 7 again"


def test_an_endpoint_that_comes_late_is_said(trial):
    (trial.dir / ".endpoint.record.json").unlink()
    trial.run("--steps", "score")
    assert "it was not recorded before a first training" in (trial.dir / "summary.md").read_text()
    (trial.exp / "fold1of3" / "trial" / "half" / "seed2" / "system.json").unlink()
    trial.run("--steps", "train decode score", "--fold", "1")
    assert "it was written down after the first training" in (trial.dir / "summary.md").read_text()


def test_a_partly_finished_experiment_has_a_table_of_what_is_there_and_one_fold_goes_on_alone(trial):
    (trial.exp / "fold2of3" / "trial" / "half_kd" / "seed1" / "system.json").unlink()
    shutil.rmtree(trial.exp / "fold3of3" / "trial" / "half_kd" / "seed2")
    shutil.rmtree(trial.exp / "fold3of3" / "trial" / "half_kd" / "seed1")
    trial.run("--steps", "score")
    row, text = trial.row("half_kd"), (trial.dir / "summary.md").read_text()
    assert row["folds"] == [1, 2] and row["p_value_seeds"] is None and row["p_value"] is not None
    assert row["compared_words"] < trial.row("half")["words"] and "2 of 3" in text
    assert "- half_kd, fold 2 seed 1: training is not finished" in text
    assert "- half_kd, fold 3 seed 1, fold 3 seed 2: not trained" in text
    started = trial.run("--fold", "2", "--steps", "teacher cache train decode score")
    assert [name for name in started if name.startswith("train ")] == ["train fold2 half_kd/1"]
    assert trial.row("half_kd")["folds"] == [1, 2]


def test_a_machine_without_the_first_fold_leaves_exports_and_page_to_another(trial, tmp_path, capfd):
    machine = Folds(tmp_path / "machine")
    shutil.copytree(trial.folder, machine.folder, symlinks=True)
    shutil.rmtree(machine.exp / "fold1of3" / "trial")
    assert machine.run("--steps", "export report", "--fold", "2") == []
    said = capfd.readouterr().err
    machine.run("--steps", "export report", "--fold", "2", "--print-jobs")
    assert capfd.readouterr().out.count("bin.experiment") == 2
    assert "exports are of fold 1, and none of its systems is here" in said and "the page is of fold 1" in said


def test_a_test_set_named_dev_hides_no_development_set_and_every_set_is_decoded(trial, tmp_path, capsys):
    fold = trial.exp / "fold1of3"
    cuts = {name: tmp_path / "cuts" / f"{name}.jsonl.gz" for name in ("dev", "other", "eval")}
    (tmp_path / "cuts").mkdir()
    for name, path in cuts.items():
        shutil.copy(fold / "cuts" / ("test.jsonl.gz" if name == "other" else "dev.jsonl.gz"), path)
    words = ["--system-dir", fold / "trial" / "half" / "seed1", "--bpe-dir", fold / "bpe", "--grid", "0", "1"]
    words += ["--device", "cpu", "--out-dir", tmp_path / "out", "--data-root", trial.folder]

    def tune(dev, *tests):
        given = [*words, "--dev-cuts", cuts[dev], "--test-cuts", *tests]
        tune_token_bonus.main.__wrapped__([str(word) for word in given])
        return "token_bonus: finished already, skipped" in capsys.readouterr().out

    assert not tune("eval", cuts["dev"]) and tune("eval", cuts["dev"])
    assert not tune("other", cuts["dev"])
    assert not tune("other", cuts["eval"]) and (tmp_path / "out" / "eval" / "recogs-eval.txt").exists()
    shutil.rmtree(tmp_path / "out" / "eval")
    assert not tune("other", cuts["eval"]) and (tmp_path / "out" / "eval" / "recogs-eval.txt").exists()
    assert "--test-cuts: two of one name" in told(tune, "other", cuts["eval"], cuts["eval"])


def test_the_bonus_with_the_fewest_errors_is_taken_of_equal_ones_the_smallest():
    assert best({0.0: 9, 0.25: 7, 0.5: 7, 1.0: 8}) == 0.25 and best({0.0: 3, 0.5: 3}) == 0.0


@pytest.mark.parametrize("change, words", [
    (("system: half_kd, ", ""), "endpoint: names no system; expected system, baseline"),
    (("system: half_kd", "system: half_kdd"), "endpoint: system: there is no 'half_kdd'"),
    (("baseline: half,", "baseline: half_kd,"), "endpoint: compares half_kd with itself"),
    (("baseline: half,", "baseline: teacher,"), "endpoint: baseline: teacher"),
    (("sparsity: 0.5, test", "sparsity: 0.9, test"), "endpoint: sparsity: 0.9; expected 0.5"),
    (("test_set: test", "test_set: test_far"), "endpoint: test_set: there is no 'test_far'"),
    (("search: modified_beam_search", "search: greedy_search"), "endpoint: search: there is no 'greedy_search'"),
    (("search: modified_beam_search", "search: modified_beam_search, p: 1"), "endpoint: there is no 'p'"),
    (("folds: 3\n", ""), "endpoint: given without folds"), (("folds: 3", "folds: 0"), "endpoint: given without folds"),
    (("folds: 3", "folds: 2"), "folds: 2; expected a whole number from 3 to 1000"),
    (("folds: 3", "folds: 100000000"), "folds: 100000000; expected a whole number from 3 to 1000"),
    (("folds: 3", "folds: five"), "folds: 'five'; expected a whole number"),
    (("folds: 3", "folds: '5'"), "folds: '5'; expected a whole number"),
    (("sparsity: 0.5, test", "sparsity: '0.5', test"), "endpoint: sparsity: '0.5'; expected 0.5"),
    (("tune_token_bonus: true", "tune_token_bonus: 3"), "tune_token_bonus: 3; expected true or false"),
    *((("tune_token_bonus: true", f"labelled: {share}"), f"labelled: {found}; expected a share between 0 and 1")
      for share, found in (("1", "1"), ("0.0", "0.0"), (".nan", "nan"), ("yes", "True"), ("'0.2'", "'0.2'"))),
])  # fmt: skip
def test_wrong_experiments_are_one_line(tmp_path, change, words):
    trial = Folds(tmp_path)
    make_data(tmp_path)
    (tmp_path / "preset.yaml").write_text(PRESET)
    trial.file.write_text(SYSTEMS.replace(*change))
    assert words in told(trial.run, "--steps", "")


def test_a_name_of_digits_needs_its_quotes(tmp_path):
    trial = Folds(tmp_path)
    (tmp_path / "preset.yaml").write_text(PRESET)
    text = SYSTEMS.replace("half_kd: {base", "'90': {base")
    trial.file.write_text(text.replace("system: half_kd", "system: 90"))
    assert "endpoint: system: there is no '90'; expected one of: teacher, half, 90" in told(trial.run, "--steps", "")
    trial.file.write_text(text.replace("system: half_kd", "system: '90'"))
    assert trial.run("--steps", "") == []


@pytest.mark.parametrize("arguments, words", [
    (["--fold", "4"], "--fold: 4; expected 1 .. 3"), (["--job", "half/1"], "--job: given for an experiment with 3 folds"),
    (["--set", "decoding.search=greedy_search"], "tune_token_bonus: given with decoding.search greedy_search; expected"),
])  # fmt: skip
def test_wrong_folds_are_one_line(finished, arguments, words):
    assert words in told(finished[0].run, *arguments)
