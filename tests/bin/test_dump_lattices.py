"""``python -m rnnt_kd.bin.dump_lattices``: from three systems' folders to files that the page reads."""

import io
import itertools
import json
import re
import shutil
from dataclasses import replace

import numpy as np
import pytest
import soundfile
from command_cases import fails_on_a_full_disk, refused, writes_interrupted
from experiment_cases import write_experiment
from system_cases import noise_corpus, random_system

from rnnt_kd.bin import dump_lattices as command
from rnnt_kd.config import KdConfig, TrainingConfig
from rnnt_kd.config_io import read_system_config, write_system_config
from rnnt_kd.data.dataset import load_cuts_info, read_batches
from rnnt_kd.files import DATA_ROOTS
from rnnt_kd.lattice import get_backend
from rnnt_kd.report.lattice_data import list_lattices, read_lattice
from rnnt_kd.report.utterance_lattice import utterance_lattice
from rnnt_kd.scoring.recognitions import Recognition, write_recogs
from rnnt_kd.systems.store import file_digest, load_system
from rnnt_kd.text.tokenizer import Tokenizer

TEXTS = {"s-a": "one two", "s-b": "three", "s-c": "four one", "s-d": "two"}
HYPS = {  # one utterance gains, one loses, one has other words, one stays
    "teacher": TEXTS,
    "plain": {"s-a": "one one", "s-b": "three", "s-c": "four two", "s-d": "two"},
    "taught": {"s-a": "one two", "s-b": "", "s-c": "four three", "s-d": "two"},
}
BACKEND = ("--device", "cpu", "--lattice-backend", "torch")


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """exp/{cuts,bpe}, exp/default with three systems of random weights, and what they "recognised"."""
    folder = tmp_path_factory.mktemp("lattices")
    tokenizer = noise_corpus(folder, TEXTS, lambda index: 12000)
    experiment = folder / "exp/default"
    make_system(experiment / "teacher", tokenizer, 1)
    make_system(experiment / "plain", tokenizer, 2)
    teacher = file_digest(experiment / "teacher/seed1/model.safetensors")
    make_system(experiment / "taught", tokenizer, 3, kd=KdConfig(), teacher_checksum=teacher)
    distilled = {"baseline": "plain", "kd": {}}
    systems = {
        "teacher": {"role": "teacher"},
        "plain": {"role": "sparse_student"},
        "taught": {"role": "sparse_student", **distilled},
        "streamed": {"role": "streaming_student", **distilled},  # hears a part of the utterance
    }
    write_experiment(experiment, systems, (1, 2), {"test": folder / "data/test"})
    return folder


def make_system(folder, tokenizer, seed, **changed):
    random_system(
        folder / "seed1", tokenizer, seed, name=folder.name, training=TrainingConfig(prune_range=3), **changed
    )
    decode(folder, HYPS[folder.name])


def decode(folder, hyps, search="greedy_search", texts=TEXTS):
    out = folder / f"seed1/decode_test_{search}"
    out.mkdir(exist_ok=True)
    items = [Recognition(name, tuple(texts[name].split()), tuple(hyps[name].split())) for name in texts]
    write_recogs(out / "recogs-test.txt", items)
    (out / "decode.json").write_text(json.dumps({"test_set": "test", "search": search}))


@pytest.fixture
def exp(made, tmp_path, monkeypatch):
    """The experiment's folder, EXP_DIR/default, and its data allowed."""
    monkeypatch.setenv(DATA_ROOTS, json.dumps([str(made / "data")]))
    return shutil.copytree(made / "exp", tmp_path / "exp") / "default"


def run(exp, *more):
    command.main(["--experiment-dir", str(exp), *BACKEND, *map(str, more)])


def models_of(exp):
    names = {"teacher": "teacher", "twin": "plain", "student": "taught"}
    return {key: load_system(exp / name / "seed1")[0] for key, name in names.items()}


def fails(exp, capsys, *more):
    return refused(capsys, command.main, "--experiment-dir", exp, *BACKEND, *more)


def change(folder, **values):
    write_system_config(folder / "config.yaml", replace(read_system_config(folder / "config.yaml"), **values))


def test_the_files_hold_what_the_three_models_say(made, exp, capsys):
    run(exp)
    assert "3 utterances (1 gained, 1 lost, 1 changed)" in capsys.readouterr().out
    items = [read_lattice(path) for path in list_lattices(exp)]
    assert [(item.chosen, item.utterance, item.order) for item in items] == [
        ("gained", "s-a", 1), ("lost", "s-b", 2), ("changed", "s-c", 3),
    ]  # fmt: skip
    tokenizer = Tokenizer.load(exp.parent / "bpe")
    models = models_of(exp)
    places = {info.id: place for place, info in enumerate(load_cuts_info(exp.parent / "cuts/test.jsonl.gz"))}
    for item in items:
        labels = tokenizer.encode(TEXTS[item.utterance])
        assert item.tokens == tuple(tokenizer.pieces()[label] for label in labels)
        assert item.ref == tuple(TEXTS[item.utterance].split()) and item.speaker == "s" and item.duration == 0.75
        assert {key: model.name for key, model in item.models.items()} == {
            "teacher": "teacher", "twin": "plain", "student": "taught",
        }  # fmt: skip
        assert item.models["student"].hyp == tuple(HYPS["taught"][item.utterance].split())
        batch = next(read_batches(exp.parent / "cuts/test.jsonl.gz", [[places[item.utterance]]]))
        starts, views = utterance_lattice(
            models, TrainingConfig(), 3, "regular", get_backend("torch"), batch.features[0], labels
        )
        np.testing.assert_array_equal(item.starts, starts)
        for key, view in views.items():
            model = item.models[key]
            for name in ("log_blank", "log_label", "occupancy", "path"):
                np.testing.assert_allclose(getattr(model, name), getattr(view, name).numpy(), rtol=1e-6, err_msg=name)
            assert model.loss == view.loss and (key == "teacher") == (model.kl is None)
        samples, rate = soundfile.read(io.BytesIO(item.audio))
        assert rate == 16000 and abs(len(samples) - 12000) < 1200  # MP3 pads its frames
        spoken, _ = soundfile.read(made / f"{item.utterance}.wav", dtype="float32")
        expected = [float(np.sqrt(np.mean(spoken[640 * t : 640 * t + 640].astype(float) ** 2))) for t in range(18)]
        np.testing.assert_allclose(item.loudness[:18], expected, rtol=1e-5)
        assert item.loudness.shape == starts.shape
        assert np.std(samples[: len(spoken)]) == pytest.approx(np.std(spoken[: len(samples)]), rel=0.5)


def test_again_is_one_line_and_touches_nothing_and_deleted_pictures_are_made_again(exp, capsys):
    run(exp)
    before = {path: path.stat().st_mtime_ns for path in exp.rglob("lattices/**/*")}
    capsys.readouterr()
    run(exp)
    said = capsys.readouterr().out
    assert "finished already, skipped" in said and said.count("\n") == 1
    assert {path: path.stat().st_mtime_ns for path in exp.rglob("lattices/**/*")} == before
    victim = list_lattices(exp)[0]
    content = victim.read_bytes()
    victim.unlink()
    run(exp)
    assert victim.read_bytes() == content


def test_another_decoding_makes_them_anew_and_leaves_no_old_ones(exp, capsys):
    run(exp)
    decode(exp / "taught", {**HYPS["taught"], "s-a": "one one", "s-b": "three"})
    run(exp)
    assert "runs again" in capsys.readouterr().out
    assert [read_lattice(path).utterance for path in list_lattices(exp)] == ["s-c"]


def test_killed_in_the_middle_it_goes_on(exp):
    with pytest.raises(SystemExit) as end, writes_interrupted(4):  # of three files each
        run(exp)
    assert end.value.code == 130 and len(list_lattices(exp)) == 1
    run(exp)
    assert len(list_lattices(exp)) == 3


def test_a_full_disk_is_one_line_and_the_same_command_goes_on(exp, root):
    """No picture can be written."""
    arguments = ["--experiment-dir", str(exp), *BACKEND, "--figures"]
    fails_on_a_full_disk(root, "dump_lattices", arguments, file_bytes=3000)
    assert list_lattices(exp) == [] and not list(exp.rglob("*.tmp"))
    run(exp, "--figures")
    assert len([read_lattice(path) for path in list_lattices(exp)]) == 3


def test_no_word_changed_is_no_error(exp, capsys):
    decode(exp / "taught", HYPS["plain"])
    run(exp)
    assert "0 utterances (no word was changed)" in capsys.readouterr().out and list_lattices(exp) == []
    run(exp)
    assert "finished already" in capsys.readouterr().out


@pytest.mark.parametrize("damage, reason", [
    (lambda exp: shutil.rmtree(exp / "plain"), "there is no .*plain/seed1"),
    (lambda exp: (exp / "taught/seed1/model.safetensors").unlink(), "taught is not trained to the end"),
    (lambda exp: shutil.rmtree(exp / "teacher/seed1/decode_test_greedy_search"), "teacher has not decoded test"),
    (lambda exp: next((exp / "plain").glob("*/*/decode.json")).unlink(), "plain has not decoded test"),
])  # fmt: skip
def test_an_unfinished_system_is_named_and_left_out(exp, capsys, damage, reason):
    damage(exp)
    run(exp)
    said = capsys.readouterr().out
    assert re.search(rf"^lattices of taught on test: omitted, .*{reason}", said), said
    assert list_lattices(exp) == []


def test_another_search_is_compared_where_all_three_have_it(exp, capsys):
    for name in ("teacher", "plain"):
        decode(exp / name, HYPS[name], "modified_beam_search")
    run(exp, "--search", "modified_beam_search")
    assert "omitted, taught has not decoded test with modified_beam_search" in capsys.readouterr().out
    decode(exp / "taught", HYPS["plain"], "modified_beam_search")
    run(exp, "--search", "modified_beam_search")
    assert "no word was changed" in capsys.readouterr().out


def test_distilled_systems_that_hear_whole_utterances_are_the_default(exp, capsys):
    run(exp)
    assert {read_lattice(path).system for path in list_lattices(exp)} == {"taught"}
    assert "streamed" not in capsys.readouterr().out
    run(exp, "--systems", "streamed")
    assert "lattices of streamed on test: omitted, there is no" in capsys.readouterr().out
    assert "'plain' is not compared with a system without" in fails(exp, capsys, "--systems", "plain")


def test_audio_is_what_a_data_directory_in_a_data_root_says(made, exp, monkeypatch, capsys):
    monkeypatch.setenv(DATA_ROOTS, "[]")
    run(exp)
    said = capsys.readouterr().out
    assert f"without sound: {exp}/experiment.json: names {made}/data/test, which is not below {exp.parent}" in said
    items = [read_lattice(path) for path in list_lattices(exp)]
    assert len(items) == 3 and all(item.audio == b"" and not item.loudness.any() for item in items)
    run(exp, "--data-root", made / "data")
    assert "runs again, because" in capsys.readouterr().out
    assert all(read_lattice(path).audio for path in list_lattices(exp))


def test_models_that_do_not_belong_together_are_named(exp, capsys, tmp_path):
    change(exp / "taught/seed1", teacher_checksum="0" * 64)
    assert "seed1: distilled from another teacher than" in fails(exp, capsys)
    change(exp / "taught/seed1", kd=None)
    assert "seed1: trained without distillation; expected a distilled system" in fails(exp, capsys)
    change(exp / "plain/seed1", bpe_checksum="0" * 64)
    assert "bpe: another BPE model" in fails(exp, capsys)
    assert list_lattices(exp) == []


def test_another_test_set_is_named(exp, capsys):
    texts = {**TEXTS, "s-a": "one four"}
    for name in HYPS:
        decode(exp / name, HYPS[name], texts=texts)
    assert 'ref of "s-a" differs from' in fails(exp, capsys)
    decode(exp / "teacher", TEXTS)
    assert 'ref of "s-a" differs from' in fails(exp, capsys)


def test_figures_are_counted_over_every_node_of_the_test_set(exp, capsys):
    run(exp, "--figures")
    said = capsys.readouterr().out
    found = json.loads((exp / "lattices/taught/test-figures.json").read_text())
    assert len(list_lattices(exp)) == 3, "figures are no picture"
    tokenizer, cuts = Tokenizer.load(exp.parent / "bpe"), exp.parent / "cuts/test.jsonl.gz"
    models = models_of(exp)
    nodes, blanks, labels_at, arcs = [], [], [], 0  # nodes: occupancy, KL divergence and blank's probability
    for batch in read_batches(cuts, [[0], [1], [2], [3]]):
        labels = tokenizer.encode(batch.texts[0])
        starts, views = utterance_lattice(
            models, TrainingConfig(), 3, "regular", get_backend("torch"), batch.features[0], labels
        )
        arcs += len(starts) + len(labels)
        teacher_view, twin_view = views["teacher"], views["twin"]
        columns = (teacher_view.occupancy, twin_view.kl, twin_view.log_blank.exp())
        for t, k in itertools.product(range(len(starts)), range(3)):
            if starts[t] + k <= len(labels):
                nodes.append([float(column[t, k]) for column in columns])
        path = [tuple(node) for node in teacher_view.path.tolist()]
        for (t, s), (_, s_after) in zip(path, [*path[1:], (len(starts), len(labels))]):
            if s_after > s:
                blanks.append(float(twin_view.log_blank[t, s - starts[t]].exp()))
                labels_at.append(float(twin_view.log_label[t, s - starts[t]].exp()))
    assert found["utterances"] == 4 and found["arcs"] == arcs and found["emissions"] == len(blanks)
    occupied, kl, blank = np.array(nodes).T
    regions = {"on": occupied > 0.5, "off": occupied < 0.01, "between": (occupied >= 0.01) & (occupied <= 0.5)}
    assert found["nodes"] == {region: inside.sum() for region, inside in regions.items()}
    for region, inside in regions.items():
        if inside.any():
            assert found["twin"]["mean_kl"][region] == pytest.approx(kl[inside].mean(), rel=1e-5)
            assert found["twin"]["kl_share"][region] == pytest.approx(kl[inside].sum() / kl.sum(), rel=1e-5)
    assert found["twin"]["blank_at_emission"] == pytest.approx(np.mean(blanks), rel=1e-5)
    assert found["twin"]["label_at_emission"] == pytest.approx(np.mean(labels_at), rel=1e-5)
    if regions["off"].any():
        assert found["twin"]["blank_off"] == pytest.approx(blank[regions["off"]].mean(), rel=1e-5)
    assert found["teacher"]["kd_per_arc"] == 0.0 and found["name_of_twin"] == "plain"
    assert f"{found['twin']['blank_at_emission']:.3f}" in said


def test_long_utterances_get_no_picture(exp, capsys):
    run(exp, "--max-seconds", "0.5")
    assert "0 utterances" in capsys.readouterr().out


@pytest.mark.parametrize(
    "more", [("--max-utterances", 0), ("--max-seconds", -1), ("--max-seconds", 0), ("--num-threads", 0)]
)
def test_a_bad_option_is_one_line(exp, capsys, more):
    assert more[0] in fails(exp, capsys, *more)


def test_missing_folders_are_one_line(exp, capsys, tmp_path):
    assert "no such file" in fails(tmp_path / "nowhere", capsys)
    assert "--systems: empty" in fails(exp, capsys, "--systems", " ")
    assert "no test set 'other'; expected of: test" in fails(exp, capsys, "--test-set", "other")
    shutil.rmtree(exp.parent / "bpe")
    assert "bpe.model" in fails(exp, capsys)
