"""The command: from nothing to the table, on from anywhere, and what it refuses to average."""

import json
import shlex
import shutil
from pathlib import Path

import pytest
from command_cases import edit_record, record_again, told
from experiments.conftest import Trial, printed

from rnnt_kd.bin import attach_teacher, decode
from rnnt_kd.bin import experiment as command
from rnnt_kd.config_io import read_system_config
from rnnt_kd.data.source import open_source
from rnnt_kd.record import json_digest
from rnnt_kd.scoring.bootstrap import errors_by_utterance, paired_p_value
from rnnt_kd.scoring.recognitions import Recognition, read_recogs, write_recogs
from rnnt_kd.scoring.word_errors import count_all

BOTH = f"kd_cache_range3_mean-{json_digest([('trial', 'large', 3), ('trial', 'teacher', 1)])[:8]}"
RESULT_KEYS = "system seed sparsity kd kd_weighting kd_scale test_set wer words ins del sub p_value cer".split()


def cells_of(text):
    """Of the preset's search."""
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line.startswith("|")]
    return [cells for cells in rows if cells[2] != "greedy_search"]


def row(trial, system):
    return next(row for row in trial.read("summary.json") if row["system"] == system)


def recogs(trial, system, seed):
    return trial.dir / system / f"seed{seed}" / "decode_dev_modified_beam_search" / "recogs-dev.txt"


def decodings(job):
    return [f"decode {job} dev, {search}" for search in ("modified_beam_search", "greedy_search")]


def test_from_nothing_teachers_then_caches_then_students(finished):
    _, started = finished
    students = ("sparse50/1", "sparse50/2", "sparse50_kd/1", "sparse50_kd/2", "hot/1", "small_large/1")
    assert started == [
        "train large/3",
        f"cache_teacher {BOTH} of large/3", "cache_teacher kd_cache_range3 of teacher/1",
        "cache_teacher kd_cache_range3_temperature2 of teacher/1",
        *(f"train {job}" for job in students),
        *(line for job in ("teacher/1", "large/3", *students) for line in decodings(job)),
    ]  # fmt: skip


def test_systems_are_what_the_file_says(finished):
    trial, _ = finished
    configs = {path.parts[-3:-1]: read_system_config(path) for path in trial.dir.glob("*/seed*/config.yaml")}
    assert len(configs) == 8
    for (name, seed), config in configs.items():
        assert (config.name, f"seed{config.seed}") == (name, seed)
    hot = configs["hot", "seed1"]
    assert (hot.kd.temperature, hot.kd.weighting, hot.sparsity.target) == (2.0, "uniform", 0.5)
    assert configs["large", "seed3"].model.encoder_options["dim"] == 48
    teachers = {name: config.teacher_checksum for (name, _), config in configs.items()}
    assert teachers["small_large"] not in (teachers["hot"], "") and teachers["hot"] == teachers["sparse50"]


def test_results_are_the_scorers_figures(finished):
    trial, _ = finished
    results = trial.read("results.json")
    assert len({item["wer"] for item in results}) >= 4  # else equal figures say little
    assert [(item["system"], item["seed"]) for item in results] == [
        ("teacher", 1), ("sparse50", 1), ("sparse50", 2), ("sparse50_kd", 1), ("sparse50_kd", 2), ("hot", 1), ("large", 3),
        ("small_large", 1),
    ]  # fmt: skip
    for item in results[1:]:
        assert list(item) == RESULT_KEYS and item["test_set"] == "dev"
        counts = count_all(read_recogs(recogs(trial, item["system"], item["seed"])))
        figures = [item[key] for key in ("ins", "del", "sub", "words")]
        assert figures == [counts.ins, counts.dels, counts.subs, counts.words]
        assert item["wer"] == pytest.approx(counts.wer, abs=1e-4)
        scored = json.loads((recogs(trial, item["system"], item["seed"]).parent / "wer-dev.json").read_text())
        assert item["p_value"] == (scored["p_value"] if item["kd"] else None)
        assert (scored["p_value"] is not None) == item["kd"]
        assert (item["kd"], item["kd_weighting"]) == {
            "sparse50_kd": (True, "uniform"), "hot": (True, "uniform"), "small_large": (True, "student-occupancy"),
        }.get(item["system"], (False, None))  # fmt: skip


def test_greedy_search_stands_beside_the_presets_in_every_table(finished):
    trial, _ = finished
    table, text = trial.read("summary.json"), (trial.dir / "summary.md").read_text()
    assert [(one["system"], one["search"]) for one in table] == [
        (one["system"], search) for one in table[::2] for search in ("modified_beam_search", "greedy_search")
    ]
    assert text.count("| greedy_search ") == text.count("| modified_beam_search ") == len(table) / 2
    for one in table[1::2]:
        folders = [trial.dir / one["system"] / f"seed{seed}" / "decode_dev_greedy_search" for seed in one["seeds"]]
        counted = [count_all(read_recogs(folder / "recogs-dev.txt")) for folder in folders]
        assert one["wer"] == pytest.approx(sum(counts.wer for counts in counted) / len(counted), abs=1e-4)
        assert one["del"] == sum(counts.dels for counts in counted)
        assert {json.loads((folder / "decode.json").read_text())["search"] for folder in folders} == {"greedy_search"}


def test_the_table_is_over_seeds_and_pooled(finished, monkeypatch):
    monkeypatch.setattr("rnnt_kd.scoring.bootstrap.LEAST_UTTERANCES", 2)
    trial, _ = finished
    summary = row(trial, "sparse50_kd")
    each = [item for item in trial.read("results.json") if item["system"] == "sparse50_kd"]
    rates = [item["wer"] for item in each]
    assert summary["seeds"] == summary["seeds_wanted"] == summary["compared_seeds"] == [1, 2]
    spread = pytest.approx([sum(rates) / 2, abs(rates[0] - rates[1]) / 2**0.5])
    assert [summary["wer"], summary["wer_sd"]] == spread and summary["unfinished"] == {}
    assert (summary["wer_min"], summary["wer_max"]) == (min(rates), max(rates))
    for key in ("ins", "del", "sub"):
        assert summary[key] == sum(item[key] for item in each) == 2 * summary[f"{key}_mean"]
    errors, others = (
        {seed: errors_by_utterance(read_recogs(recogs(trial, name, seed))) for seed in (1, 2)}
        for name in ("sparse50_kd", "sparse50")
    )
    for key, over in (("p_value", "utterances"), ("p_value_seeds", "both")):
        assert summary[key] == pytest.approx(paired_p_value(errors, others, over=over, replications=500), abs=1e-6)
    change = 100 * (summary["wer"] / row(trial, "sparse50")["wer"] - 1)
    assert summary["relative_change"] == pytest.approx(change)
    assert (summary["kd_variant"], summary["kd_ranges"], summary["kd_temperature"]) == ("collapsed", "teacher", 1.0)
    assert row(trial, "hot")["p_value"] is not None and row(trial, "hot")["p_value_seeds"] is None  # one seed
    assert row(trial, "hot")["kd_temperature"] == 2.0 and row(trial, "hot")["compared_seeds"] == [1]
    sparse = row(trial, "sparse50")
    assert sparse["nonzero_params"] < sparse["params"] == row(trial, "teacher")["params"]


def test_a_table_from_few_utterances_says_so(trial):
    seeds = {path: path.read_bytes() for path in trial.dir.rglob("wer-dev.json")}
    for path in seeds:  # as if all were to be scored again
        path.unlink()
    assert trial.run("--steps", "score", enough=False) == []
    summary = row(trial, "sparse50_kd")
    assert summary["wer"] is not None and summary["relative_change"] is not None
    assert {row["too_few"] for row in trial.read("summary.json")} == {"6 utterances"}
    assert [summary["p_value"], summary["p_value_seeds"], row(trial, "hot")["ci95"]] == [None] * 3
    assert {item["p_value"] for item in trial.read("results.json")} == {None}
    text = (trial.dir / "summary.md").read_text()
    cells = {cells[0]: cells for cells in cells_of(text)}
    assert "Too few to tell: dev (6 utterances)." in text
    assert cells["sparse50_kd"][13:15] == ["too few", "too few"] and cells["teacher"][13:15] == ["-", "-"]
    assert cells["hot"][7].endswith(" [too few]") and cells["hot"][13:15] == ["too few", "-"]


@pytest.mark.parametrize("words", [[], ["零一二"]])
def test_a_test_set_without_words_and_one_of_characters_have_a_table(trial, words):
    """Noise has insertions and no rate; Chinese has %CER beside %WER."""
    for number, path in enumerate(sorted(trial.exp.rglob("recogs-dev.txt"))):
        hyp = ["零三二"] * (number // 2 % 2) if words else ["ja"] * number  # two decodings a training
        write_recogs(path, [Recognition(item.utterance_id, tuple(words), tuple(hyp)) for item in read_recogs(path)])
        record_again(path, "decode-dev")
    data = trial.corpus.folder / "dev" / "text"
    content = data.read_text()
    try:
        data.write_text("".join(f"{line.split()[0]} {' '.join(words)}".strip() + "\n" for line in content.splitlines()))
        trial.run("--steps", "score")
    finally:
        data.write_text(content)
    summary, text = row(trial, "sparse50_kd"), (trial.dir / "summary.md").read_text()
    cells = {cells[0]: cells for cells in cells_of(text)}
    if words:
        assert summary["words"] == 6 and summary["characters"]["characters"] == 18
        assert {item["cer"] for item in trial.read("results.json")} == {33.3333, 100.0}
        assert summary["characters"]["cer"] == pytest.approx(200 / 3, abs=1e-3) and summary["wer"] == 100.0
        assert summary["characters"]["p_value"] is not None
        assert cells["sparse50_kd"][17].startswith("66.67 +- 47.14 [33.33, 100.00]") and cells["system"][17] == "%CER"
    else:
        assert (summary["wer"], summary["words"], summary["characters"]) == (None, 0, None) and summary["ins_mean"] > 0
        assert cells["sparse50_kd"][7] == "-" and "not finished" not in text
        assert "Too few to tell: dev (no words)." in text


def test_unequal_seeds_are_compared_over_those_that_both_have(finished):
    rates = {item["seed"]: item["wer"] for item in finished[0].read("results.json") if item["system"] == "sparse50"}
    assert row(finished[0], "hot")["baseline_wer"] == rates[1]


def test_a_baseline_that_lacks_a_seed_is_named_with_those_that_are_compared(trial):
    (trial.dir / "sparse50" / "seed1" / "system.json").unlink()
    trial.run("--steps", "score")
    assert row(trial, "sparse50_kd")["compared_seeds"] == [2] and row(trial, "sparse50_kd")["seeds"] == [1, 2]
    assert row(trial, "hot")["p_value"] is None and row(trial, "hot")["relative_change"] is None
    text = (trial.dir / "summary.md").read_text()
    compared = {cells[0]: cells[11] for cells in cells_of(text)}
    assert (compared["sparse50_kd"], compared["hot"]) == ("sparse50 (seeds 2)", "sparse50 (seeds none)")
    nothing = [item["p_value"] for item in trial.read("results.json") if (item["system"], item["seed"]) == ("hot", 1)]
    assert nothing == [None]


def test_a_finished_experiment_does_nothing_but_print_the_table(trial, capsys):
    files = {path: path.stat().st_mtime_ns for path in trial.exp.rglob("*") if path.is_file()}
    tables = {name: (trial.dir / name).read_text() for name in ("summary.json", "results.json")}
    capsys.readouterr()
    first_line = (trial.dir / "summary.md").read_text().splitlines()[0]
    shutil.rmtree(trial.teacher / "tensorboard", ignore_errors=True)
    # the copy lies elsewhere: scores name their baseline's folder, so only these are made again
    assert trial.run() == []
    printed = capsys.readouterr()
    assert printed.out.splitlines()[0] == first_line and "runs again" not in printed.out + printed.err
    lines = [line for line in printed.err.splitlines() if line.startswith("%WER ")]
    assert len(lines) == 16 and lines[0].endswith(f" ] {trial.teacher}/decode_dev_modified_beam_search")
    assert trial.run() == []
    for name, text in tables.items():
        assert (trial.dir / name).read_text() == text
    remade = {path.name for path, time in files.items() if path.exists() and path.stat().st_mtime_ns != time}
    assert not [name for name in remade if name.startswith(("model", "system", "recogs", "decode", "shard"))]


def test_what_is_missing_is_made_and_nothing_else(trial):
    (trial.dir / "hot" / "seed1" / "system.json").unlink()
    shutil.rmtree(trial.dir / "hot" / "seed1" / "checkpoints")  # killed before the first
    shutil.rmtree(trial.dir / "small_large" / "seed1" / "decode_dev_modified_beam_search")
    weights = {path: path.read_bytes() for path in trial.dir.glob("*/seed*/model.safetensors")}
    others = [item for item in trial.read("results.json") if item["system"] not in ("hot", "small_large")]
    shutil.rmtree(trial.dir / "sparse50_kd" / "seed2")
    started = trial.run()
    assert started == [
        "cache_teacher kd_cache_range3 of teacher/1",
        "cache_teacher kd_cache_range3_temperature2 of teacher/1",
        "train sparse50_kd/2",
        "train hot/1",
        *decodings("sparse50_kd/2"),
        *decodings("hot/1"),
        decodings("small_large/1")[0],
    ]
    assert all(path.read_bytes() == content for path, content in weights.items())  # what was made again, to the bit
    now = {(item["system"], item["seed"]): item for item in trial.read("results.json")}
    assert [now[item["system"], item["seed"]] == item for item in others] == [True, True, True, True, False, True]
    assert len(now) == 8  # of sparse50_kd/2 the words are other ones: those of the fixture are gone


def test_an_unfinished_seed_is_named_and_in_no_figure(trial):
    (trial.dir / "sparse50_kd" / "seed2" / "system.json").unlink()
    shutil.rmtree(trial.dir / "hot")
    assert trial.run("--steps", "score") == []
    summary, alone = row(trial, "sparse50_kd"), row(trial, "hot")
    assert summary["seeds"] == summary["compared_seeds"] == [1]
    assert summary["unfinished"] == {"2": "training is not finished"}
    rates = {item["seed"]: item["wer"] for item in trial.read("results.json") if item["system"] == "sparse50_kd"}
    assert list(rates) == [1] and summary["wer"] == rates[1] and summary["wer_sd"] is None
    assert alone["wer"] is None and alone["unfinished"] == {"1": "not trained"}
    text = (trial.dir / "summary.md").read_text()
    assert "- sparse50_kd, seed 2: training is not finished" in text and "- hot, seed 1: not trained" in text
    seeds = {cells[0]: cells[3] for cells in cells_of(text)}
    assert (seeds["sparse50_kd"], seeds["hot"]) == ("1 of 1 2", "- of 1")


@pytest.mark.parametrize("file, work, content, words", [
    ("system.json", "training", "{}", "system.json: params is None; expected a number"),
    ("system.json", "training", "[]", "system.json: not a JSON object"),
    ("decode_dev_modified_beam_search/decode.json", "decode-dev", '{"rtf": "fast"}', "decode.json: rtf is 'fast'"),
    ("decode_dev_modified_beam_search/decode.json", "decode-dev", "{", "decode.json: not a JSON object"),
    ("decode_dev_modified_beam_search/decode.json", "decode-dev", "[" * 9999, "decode.json: not a JSON object"),
])  # fmt: skip
def test_a_damaged_result_is_one_line(trial, file, work, content, words):
    path = trial.dir / "hot" / "seed1" / file
    path.write_text(content)
    trial.run("--steps", "score")
    assert f"{path.name} is not what was written" in row(trial, "hot")["unfinished"]["1"]
    record_again(path, work)
    assert words in told(trial.run, "--steps", "score")


@pytest.mark.parametrize("name", ["recogs-dev.txt", "tokens-dev.jsonl", "dev.ctm"])
def test_a_flipped_bit_of_a_decoding_is_decoded_again(trial, name):
    path = recogs(trial, "hot", 1).with_name(name)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    assert trial.run("--steps", "decode") == decodings("hot/1")[:1]


@pytest.mark.parametrize("content", ["{", "[]", '{"settings": 3}'])
def test_a_system_whose_record_is_damaged_is_in_no_figure(trial, content):
    record = trial.dir / "hot" / "seed1" / ".training.record.json"
    record.write_text(content)
    trial.run("--steps", "score")
    assert "hot" not in {row["system"] for row in trial.read("results.json")}
    assert f"{record} is damaged" in (trial.dir / "summary.md").read_text()


def test_a_changed_definition_is_not_averaged_in_and_is_trained_anew(trial):
    trial.file.write_text(trial.file.read_text().replace("temperature: 2.0", "scale: 3.0"))
    trial.run("--steps", "score")
    changed = "is another system: kd.scale was 1.0 and is 3.0, kd.temperature was 2.0 and is 1.0"
    assert changed in row(trial, "hot")["unfinished"]["1"]
    cache = "cache_teacher kd_cache_range3 of teacher/1"
    assert trial.run() == [cache, "train hot/1", *decodings("hot/1")]
    assert (trial.dir / "hot" / "seed1.old-1").exists() and row(trial, "hot")["unfinished"] == {}


def test_the_same_systems_under_other_names_are_not_trained_again(trial):
    (trial.dir / "hot").rename(trial.dir / "warm")
    trial.file.write_text(trial.file.read_text().replace("hot:", "warm:"))
    assert trial.run() == [] and row(trial, "warm")["seeds"] == [1]


def test_where_a_system_was_made_does_not_count(trial):
    inputs = trial.dir / "hot" / "seed1" / ".training.record.json"
    edit_record(inputs, lambda values: values["notes"].update({"lattice backend": "triton_backend"}))
    record = recogs(trial, "hot", 1).parent / ".decode-dev.record.json"
    edit_record(record, lambda values: values["settings"].update(device="cuda"))
    assert trial.run() == [] and row(trial, "hot")["seeds"] == [1]


def test_a_decoding_with_other_options_in_the_same_folder_is_not_taken_for_the_plain_one(trial):
    record = recogs(trial, "hot", 1).parent / ".decode-dev.record.json"
    edit_record(record, lambda values: values["settings"].update(nbest=4))
    assert trial.run("--steps", "decode") == decodings("hot/1")[:1]


def test_weights_that_are_not_what_was_written_are_not_averaged_in(trial):
    weights = trial.dir / "hot" / "seed1" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    trial.run("--steps", "score")
    assert "model.safetensors is not what was written" in row(trial, "hot")["unfinished"]["1"]


def test_another_search_is_decoded_again(trial):
    preset = trial.file.with_name("preset.yaml")
    preset.write_text(trial.corpus.preset.read_text() + "decoding: {beam: 2}\n")
    started = trial.run("--config", preset)
    assert len(started) == 16 and all(name.startswith("decode ") for name in started)


def test_results_with_another_bpe_model_are_refused(trial):
    config = trial.dir / "hot" / "seed1" / "config.yaml"
    checksum = read_system_config(config).bpe_checksum
    config.write_text(config.read_text().replace(checksum, "a" * 64))
    message = told(trial.run, "--steps", "score")
    assert all(word in message for word in ("hot/seed1", "another BPE model (checksum aaaaaaaaaaaa)", checksum[:12]))


def test_results_of_another_corpus_are_refused(trial):
    inputs = trial.dir / "sparse50" / "seed2" / ".training.record.json"
    edit_record(inputs, lambda values: values["inputs"].update({"train cuts": "1" * 64}))
    assert "sparse50/seed2: trained with other train cuts" in told(trial.run, "--steps", "score")


def test_a_teacher_that_is_not_the_one_recorded_is_refused(trial):
    teacher = trial.dir / "large" / "seed3" / "model.safetensors"
    shutil.copy(trial.teacher / "model.safetensors", teacher)
    message = told(trial.run, "--steps", "score")
    assert "small_large/seed1: its teacher had other weights" in message and str(teacher) in message


def test_other_references_are_refused(trial):
    path = recogs(trial, "sparse50_kd", 1)
    first, *rest = read_recogs(path)
    write_recogs(path, [type(first)(first.utterance_id, ("other", *first.ref[1:]), first.hyp), *rest])
    record_again(path, "decode-dev")
    assert first.utterance_id in told(trial.run, "--steps", "score")


def test_a_missing_teacher_says_which_stage_makes_it(trial):
    (trial.teacher / "system.json").unlink()
    for step in ("cache", "train"):
        message = told(trial.run, "--steps", step)
        assert str(trial.teacher) in message and "run stage 3 first" in message


def test_systems_in_the_former_layout_are_left_alone_and_it_is_said_what_to_do(trial):
    old = trial.exp / "students" / "sparse90" / "model.safetensors"
    old.parent.mkdir(parents=True)
    old.write_bytes(b"weights")
    for arguments in ((), ("--steps", ""), ("--print-jobs",)):
        message = told(trial.run, *arguments)
        assert str(trial.exp) in message and "students" in message and "CHANGELOG.md" in message
    assert old.read_bytes() == b"weights"


def test_a_one_off_change_runs_again_what_depends_on_it(trial):
    started = trial.run("--set", "hot.kd.scale=2", "--steps", "train decode")
    assert started == ["train hot/1", *decodings("hot/1")]
    assert read_system_config(trial.dir / "hot" / "seed1" / "config.yaml").kd.scale == 2.0
    assert "did you mean 'scale'" in told(trial.run, "--set", "hot.kd.scal=2")
    assert "kd.scale" in told(trial.run, "--set", "hot.kd.scale=-1")


def test_printing_needs_nothing_but_the_file_and_each_line_is_whole(trial, tmp_path, capsys):
    shutil.rmtree(trial.exp)
    lines = printed(trial, capsys, "--gpu-inference", "false")
    assert len(lines) == 8 and not trial.exp.exists()
    assert ["--job teacher/1" in lines[0], "--job large/3" in lines[1]] == [True, True]  # others wait for them
    for line in lines:
        assert str(trial.file.resolve()) in line and "-m rnnt_kd.bin.experiment" in line
        assert "--gpu-inference false" in line and "--print-jobs" not in line


def test_every_step_prints_its_jobs_before_anything_is_there(trial, capsys):
    shutil.rmtree(trial.exp)
    steps = [step for step in command.STEPS]
    more = ["--train-dir", trial.corpus.folder / "train", "--nj", 3, "--decode-nj", 2]
    lines = printed(trial, capsys, *more, "--steps", " ".join(steps))
    assert not trial.exp.exists()
    found = {}
    for line in lines:
        found.setdefault(line, []) if line[0] == "#" else found[list(found)[-1]].append(line)
    modules = {name: {line.split("-m rnnt_kd.bin.")[1].split()[0] for line in of} for name, of in found.items()}
    assert modules == {
        "# features": {"compute_features"}, "# bpe": {"experiment"}, "# teacher": {"train"}, "# train": {"train"},
        "# pseudo_label": set(), "# cache": {"cache_teacher"}, "# decode": {"decode"}, "# score": {"experiment"}, "# export": {"export"},
        "# then": {"experiment"}, "# report": {"experiment"},
    }  # fmt: skip
    counts = {name[2:]: len(of) for name, of in found.items()}
    assert [counts[name] for name in ("bpe", "teacher", "cache", "train", "decode", "score", "export", "report")] == [
        1, 2, 3 * 3, 6, 2 * 8 * 2, 1, 6, 1,
    ]  # fmt: skip
    assert all(f"--job {1 + index % 2} --nj 2" in line for index, line in enumerate(found["# decode"]))
    for line in found["# score"] + found["# then"]:
        assert "--print-jobs" not in line and line.count("--steps") == 1


def test_jobs_of_a_step_that_others_ran_are_not_run_again(trial, capsys):
    """The printed lines of one system's decoding, in the wrong order."""
    folder = recogs(trial, "hot", 1).parent
    before = {path.name: path.read_bytes() for path in folder.glob("*-dev.*")}
    shutil.rmtree(folder)
    lines = printed(trial, capsys, "--decode-nj", "2", "--steps", "decode")
    assert len(lines) == 3
    for line in lines[:0:-1]:
        words = shlex.split(line.split(" && ")[1])
        decode.main.__wrapped__(words[words.index("rnnt_kd.bin.decode") + 1 :])
    assert trial.run("--steps", "decode") == []
    made = {path.name: path.read_bytes() for path in folder.glob("*-dev.*")}
    assert made.keys() <= before.keys() and "tokens-dev.jsonl" in made


def test_only_missing_jobs_are_printed(trial, capsys):
    shutil.rmtree(trial.dir / "hot")
    assert ["--job hot/1" in line for line in printed(trial, capsys)] == [True]
    lines = printed(trial, capsys, "--steps", "teacher train decode")
    assert ["/hot/seed1" in line or "--system hot" in line for line in lines if line[0] != "#"] == [True] * 3


def test_a_job_makes_what_it_needs(trial):
    shutil.rmtree(trial.dir / "large")
    shutil.rmtree(trial.dir / "small_large")
    assert trial.run("--job", "small_large/1") == [
        "train large/3", f"cache_teacher cache {BOTH}", "train small_large/1", *decodings("small_large/1"),
    ]  # fmt: skip
    assert trial.run("--job", "small_large/1") == []
    assert trial.run("--job", "large/3") == decodings("large/3")
    assert "did you mean 'small_large/1'" in told(trial.run, "--job", "smal_large/1")


@pytest.mark.parametrize("arguments, words", [
    (["--nj", "0"], "--nj: 0"),
    (["--decode-nj", "0"], "--decode-nj: 0"),
    (["--cmd", "no-such-queue.pl --mem 2G"], "--cmd: 'no-such-queue.pl' is no program that can be run"),
    (["--cmd", "/"], "--cmd: '/' is no program that can be run"),
    (["--steps", "train slep"], "--steps: there is no 'slep'; expected one of: features"),
    (["--dev-dir", "/"], "'/' gives a set no name"),
    (["--test-dirs", "x/-test"], "'x/-test' gives a set no name, or one that begins with a dot or a hyphen"),
    (["--replications", "0"], "--replications, --seed: 0, 0"),
    (["--steps", "score", "--seed", str(2**31)], "--replications, --seed: 500, 2147483648"),
    (["--set", "decoding.search=gredy_search"], "decoding.search: there is no 'gredy_search'"),
    (["--test-dirs", "x/test", "y/test"], "two directories have the name 'test'"),
    (["--test-dirs", "x/dev"], "two directories have the name 'dev'"),
    (["--dev-dir", "x/train"], "--dev-dir: 'x/train' has the name of the training set's files"),
    (["--test-dirs", "x/train"], "two directories have the name 'train'"),
])  # fmt: skip
def test_wrong_options(untrained, arguments, words):
    assert words in told(untrained.run, *arguments)


@pytest.mark.parametrize("written, name", [
    (".", "inner"), ("./", "inner"), ("..", "outer"), ("x/.", "x"), ("x/", "x"), ("x/..", "inner"), ("link", "link"),
])  # fmt: skip
def test_a_set_has_its_folders_name_however_it_is_written(tmp_path, monkeypatch, written, name):
    (tmp_path / "outer" / "inner" / "x").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "outer" / "inner")
    Path("link").symlink_to("x")
    assert command._set_name(Path(written)) == name


def test_cuts_that_carry_their_teacher_take_the_place_of_a_data_directory_and_of_a_cache(
    tone_corpus, teacher_dir, tmp_path, capsys
):
    given = Path(shutil.copytree(tone_corpus.folder / "cuts", tmp_path / "icefall"))
    cache = tone_corpus.cache(teacher_dir, given / "kd_cache", cuts=given / "train.jsonl.gz")
    words = ["--kd-cache", str(cache), "--out", str(given / "cuts_train.jsonl.gz")]
    attach_teacher.main.__wrapped__(["--cuts", str(given / "train.jsonl.gz"), *words])
    trial = Trial(tmp_path, tone_corpus)
    trial.file.write_text("systems: {teacher: {role: teacher}, small_kd: {role: small_student, kd: {}}}")
    shutil.copytree(tone_corpus.folder / "cuts", trial.exp / "cuts", ignore=shutil.ignore_patterns("*train*", "kd*"))
    shutil.copytree(teacher_dir, trial.teacher)
    more = "--train-cuts", given / "cuts_train.jsonl.gz", "--steps"
    assert trial.run(*more, "bpe") == ["train_bpe bpe"]
    lines = [f"{info.id} {info.text}" for info in open_source(given / "train.jsonl.gz").infos()]
    assert open_source(given / "cuts_train.jsonl.gz").content == open_source(given / "train.jsonl.gz").content
    assert (trial.exp / "cuts/train.text").read_text().splitlines() == lines
    shutil.rmtree(trial.exp / "bpe")
    shutil.copytree(tone_corpus.bpe_dir, trial.exp / "bpe")
    assert trial.run(*more, "teacher cache train") == ["train small_kd/1"]
    said = capsys.readouterr().err
    assert "small_kd/1: " in said and "cuts_train.jsonl.gz carry its teacher, so no cache is made" in said
    assert (
        trial.run(*more, "cache train") == []
        and trial.run(*more, "decode", "--decode-nj", 1)[0] == decodings("teacher/1")[0]
    )
    config = tone_corpus.config("small_student", "small_kd", with_kd=True)
    tone_corpus.train(
        config, tmp_path / "x", kd_cache=cache, teacher_dir=teacher_dir, train_cuts=given / "train.jsonl.gz"
    )
    weights = [folder / "model.safetensors" for folder in (trial.dir / "small_kd/seed1", tmp_path / "x")]
    assert weights[0].read_bytes() == weights[1].read_bytes()
    for words, expected in (
        (["--set", "features.far_sets=true"], "features.far_sets needs"),
        (["--train-dir", "x"], "both"),
    ):
        assert expected in told(trial.run, *more, "train", *words)
