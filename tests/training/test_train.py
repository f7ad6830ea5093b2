"""The train command: systems, their files, and each bad input as one line with nothing half-written."""

import dataclasses
import json
import shutil

import pytest
import torch
from command_cases import refused, told
from filelock import FileLock
from safetensors.torch import load_file
from training_cases import metrics, system_json

from rnnt_kd.bin import train as command
from rnnt_kd.config_io import read_system_config, write_system_config
from rnnt_kd.data.source import open_source
from rnnt_kd.errors import UserError
from rnnt_kd.record import json_digest, read_record, record_path
from rnnt_kd.sparsity import schedules
from rnnt_kd.systems import store
from rnnt_kd.text.tokenizer import Tokenizer
from rnnt_kd.text.train_bpe import train_bpe
from rnnt_kd.training import learning_rates, setup
from rnnt_kd.training.loop import Training
from rnnt_kd.training.system_dir import system_record

ONE_EPOCH = ["teacher.training.epochs=1", "sparse_student.training.epochs=1", "small_student.training.epochs=1"]


def test_a_finished_system_has_its_files(teacher_dir):
    system = system_json(teacher_dir)
    assert system["system"] == system["role"] == "teacher" and system["kd"] is False and system["teacher"] is None
    assert system["params"] == sum(tensor.numel() for tensor in load_file(teacher_dir / "model.safetensors").values())
    assert system["nonzero_params"] <= system["params"] and system["sparsity"] == 0.0
    assert system["epochs"] == 3 and system["steps"] == metrics(teacher_dir, "train")[-1]["step"]
    assert system["best_dev_loss"] == min(line["pruned_loss"] for line in metrics(teacher_dir, "dev"))
    assert system["train_seconds"] > 0 and list((teacher_dir / "tensorboard").iterdir())


def test_loss_falls_and_terms_are_logged_apart(teacher_dir):
    train, dev = metrics(teacher_dir, "train"), metrics(teacher_dir, "dev")
    assert train[-1]["pruned_loss"] < 0.7 * train[0]["pruned_loss"] and dev[-1]["pruned_loss"] < dev[0]["pruned_loss"]
    for line in train:
        terms = {name: line[f"{name}_loss"] for name in ("simple", "pruned", "ctc")}
        assert all(value > 0 for value in terms.values()) and line["kd_loss"] == 0.0
    last = train[-1]  # after the warm-up the scales are constant: the sum must be the loss
    total = 0.5 * last["simple_loss"] + last["pruned_loss"] + 0.2 * last["ctc_loss"]
    assert last["loss"] == pytest.approx(total, rel=1e-5)


def test_final_weights_average_the_best_epochs(tone_corpus, teacher_dir):
    system = system_json(teacher_dir)
    kept = {path.name: path for path in (teacher_dir / "checkpoints").iterdir()}
    endings = [f"epoch-{epoch:04d}" for epoch in system["averaged_epochs"]]
    paths = [next(path for name, path in kept.items() if name.endswith(ending)) for ending in endings]
    assert len(kept) == len(paths)
    final = load_file(teacher_dir / "model.safetensors")
    for name, value in final.items():
        mean = sum(load_file(path / "model.safetensors")[name].double() for path in paths) / len(paths)
        torch.testing.assert_close(value, mean.float())


def test_sparse_student_keeps_exact_zeros_through_the_average(tone_corpus, teacher_dir, tmp_path):
    config = tone_corpus.config(
        "sparse_student", "s", sparsity=0.75, overrides=["sparse_student.training.average_best=5"]
    )
    config.sparsity.scope = "per-layer"
    said = tone_corpus.train(config, tmp_path / "s", teacher_dir=teacher_dir)
    system = system_json(tmp_path / "s")
    final = load_file(tmp_path / "s" / "model.safetensors")
    matched = [value for name, value in final.items() if "feedforward1.linear_in.weight" in name]
    assert matched and all((value == 0).float().mean().item() == pytest.approx(0.75, abs=0.01) for value in matched)
    assert system["sparsity"] == pytest.approx(0.75, abs=0.01)
    nonzero = sum(int((value != 0).sum()) for value in final.values())
    assert system["nonzero_params"] == nonzero
    assert system["sparsity_total"] == pytest.approx(1 - nonzero / system["params"])
    assert 1 not in system["averaged_epochs"]  # the masks still moved in the first epoch
    assert not any("resumes" in line for line in said)


def steps_seen(patch):
    """The weights after every step of the trainings that follow, and whether the masks were frozen before it."""
    seen, real = [], Training._train_step

    def step(training, batch):
        frozen = training.sparsifier is None or training.sparsifier.frozen
        real(training, batch)
        seen.append((frozen, {name: value.double() for name, value in training.model.state_dict().items()}))

    patch.setattr(Training, "_train_step", step)
    return seen


@pytest.mark.parametrize("role", ["teacher", "sparse_student"])
def test_the_moving_average_is_that_of_the_steps_since_the_masks_rest(
    tone_corpus, teacher_dir, tmp_path, monkeypatch, role
):
    seen = steps_seen(monkeypatch)
    overrides = [f"{role}.training.averaging=ema", f"{role}.training.ema_decay=0.7"]
    sparsity = 0.75 if role == "sparse_student" else 0.0
    tone_corpus.train(
        tone_corpus.config(role, "x", sparsity=sparsity, overrides=overrides), tmp_path / "x", teacher_dir=teacher_dir
    )
    frozen = [weights for was_frozen, weights in seen if was_frozen]
    start = seen[len(seen) - len(frozen) - 1][1] if sparsity else None
    assert len(frozen) > 3 and (start is not None or len(frozen) == len(seen))
    final = load_file(tmp_path / "x" / "model.safetensors")
    for name, value in final.items():
        if (
            start is None
        ):  # the first weights were not seen: with d = 0.1 at first, a third of a percent is left of them
            expected, first = frozen[0][name], 1
        else:
            expected, first = start[name], 0
        for count, weights in enumerate(frozen[first:], first):
            decay = min(0.7, (1 + count) / (10 + count))
            expected = decay * expected + (1 - decay) * weights[name]
        torch.testing.assert_close(value.double(), expected, rtol=1e-4, atol=1e-4 if start is None else 1e-6)
    if sparsity:
        assert system_json(tmp_path / "x")["sparsity"] == pytest.approx(0.75, abs=0.01)
        masks = [weights["encoder.layers.0.feedforward1.linear_in.weight"] == 0 for weights in frozen]
        assert torch.equal(final["encoder.layers.0.feedforward1.linear_in.weight"] == 0, masks[-1])
    last = metrics(tmp_path / "x", "dev")[-1]["pruned_loss"]
    assert system_json(tmp_path / "x")["average_dev_loss"] != last


def test_a_moving_average_of_no_memory_is_the_last_step(tone_corpus, tmp_path, monkeypatch):
    seen = steps_seen(monkeypatch)
    overrides = ["teacher.training.averaging=ema", "teacher.training.ema_decay=0.0"]
    tone_corpus.train(tone_corpus.config(overrides=overrides), tmp_path / "x")
    last = seen[-1][1]
    final = load_file(tmp_path / "x" / "model.safetensors")
    assert all(torch.equal(value.double(), last[name]) for name, value in final.items())


@pytest.mark.parametrize("structure, sparsity, block", [("4x1", 0.75, (4, 1)), ("2:4", 0.5, (1, 4))])
def test_the_averaged_weights_of_a_structured_student_have_whole_blocks(
    tone_corpus, teacher_dir, tmp_path, structure, sparsity, block
):
    folder = tmp_path / "exp" / "trial" / "x" / "seed1"
    zeros = f"{{target: {sparsity}, structure: '{structure}', scope: per-layer}}"
    entry = f"{{role: sparse_student, sparsity: {zeros}, training: {{epochs: 2}}}}"
    command.main(tone_corpus.arguments(tmp_path / "exp", entry, teacher_dir))
    assert read_system_config(folder / "config.yaml").sparsity.structure == structure
    assert system_json(folder)["sparsity"] == pytest.approx(sparsity, abs=0.02)
    weight = load_file(folder / "model.safetensors")["encoder.layers.0.feedforward1.linear_in.weight"]
    rows, columns = block
    cells = weight.reshape(weight.shape[0] // rows, rows, weight.shape[1] // columns, columns) != 0
    in_a_block = cells.sum((1, 3))
    allowed = (0, rows * columns) if ":" not in structure else (2,)
    assert torch.isin(in_a_block, torch.tensor(allowed)).all()
    assert float((weight == 0).double().mean()) == pytest.approx(sparsity, abs=4 / weight.numel())


def test_sparse_student_starts_from_the_teacher(tone_corpus, teacher_dir):
    config = tone_corpus.config("sparse_student", "s", sparsity=0.5)
    config = setup.resolve(config, Tokenizer.load(tone_corpus.bpe_dir), teacher_dir)
    started = setup.models(config, teacher_dir, torch.device("cpu"))[0].state_dict()
    teacher = load_file(teacher_dir / "model.safetensors")
    assert all(torch.equal(started[name], teacher[name]) for name in teacher)


def test_distillation_is_logged_and_changes_the_student(tone_corpus, teacher_dir, tmp_path):
    plain, taught = tmp_path / "small", tmp_path / "small_kd"
    tone_corpus.train(tone_corpus.config("small_student", "small", overrides=ONE_EPOCH), plain)
    config = tone_corpus.config(
        "small_student", "small_kd", with_kd=True, overrides=ONE_EPOCH, ranges="student", variant="full",
        weighting="uniform", scale=2.0,
    )  # fmt: skip
    tone_corpus.train(config, taught, teacher_dir=teacher_dir)
    assert all(line["kd_loss"] > 0 for line in metrics(taught, "train"))
    assert system_json(taught)["kd"] is True
    assert dataclasses.astuple(read_system_config(taught / "config.yaml").kd)[:3] == ("full", "uniform", 2.0)
    first, second = (load_file(folder / "model.safetensors") for folder in (plain, taught))
    assert any(not torch.equal(first[name], second[name]) for name in first)


def test_how_it_is_made_makes_no_system_stale_and_changes_no_bit(tone_corpus, tmp_path):
    config = tone_corpus.config()
    tone_corpus.train(config, tmp_path / "x")
    record = record_path(tmp_path / "x", "training")
    before = json.loads(record.read_text())
    del before["sha256"]  # as an earlier version wrote it, which recorded some of these
    before["settings"].update({"training.log_every_steps": 2, "training.checkpoint_every_steps": 3})
    record.write_text(json.dumps(before))
    config.training.loss_memory_mb = 0.0
    config.training.max_nonfinite_batches, config.training.checkpoint_every_steps = 9, 4
    assert "finished already" in tone_corpus.train(config, tmp_path / "x")[0]
    tone_corpus.train(config, tmp_path / "y")
    assert (
        load_file(tmp_path / "x" / "model.safetensors").keys() == load_file(tmp_path / "y" / "model.safetensors").keys()
    )
    same = ((tmp_path / name / "model.safetensors").read_bytes() for name in "xy")
    assert len(set(same)) == 1


@pytest.mark.parametrize("role, structure, scope, first", [
    ("sparse_student", "unstructured", "global", 0.75),
    ("sparse_student", "4x1", "global", 0.75),
    ("sparse_student", "ffn", "per-layer", 0.0),
    ("streaming_student", "unstructured", "global", 0.75),
])  # fmt: skip
def test_matrices_compete_and_most_go_at_once_but_not_of_units(tone_corpus, role, structure, scope, first):
    config = tone_corpus.config(role, sparsity={"target": 0.8, "structure": structure})
    config.vocab_size = 12
    made = setup.sparsifier(config, store.build_model(config), 10)
    assert (made.scope, made.initial_sparsity) == (scope, pytest.approx(0.8 * first))
    config.sparsity.scope, config.sparsity.initial = "global" if scope == "per-layer" else "per-layer", 0.25
    made = setup.sparsifier(config, store.build_model(config), 10)
    assert (made.scope, made.initial_sparsity) == (config.sparsity.scope, pytest.approx(0.2))


def test_a_sparse_system_from_before_these_options_is_another(tone_corpus, tmp_path, monkeypatch):
    """It had per-layer and nothing at once, whatever its record leaves out."""
    config = tone_corpus.config("sparse_student", sparsity=0.5)
    new = system_record(tmp_path, config, {})
    config.sparsity.scope, config.sparsity.initial = "per-layer", 0.0
    same = system_record(tmp_path, config, {})
    old = {key: value for key, value in new.settings.items() if key not in ("sparsity.scope", "sparsity.initial")}
    monkeypatch.setattr("rnnt_kd.record.read_record", lambda path: {"settings": old})
    assert same.changes() == []
    assert new.changes() == ["sparsity.initial was 0.0 and is None", "sparsity.scope was 'per-layer' and is None"]


def test_finished_already_is_skipped(tone_corpus, teacher_dir):
    before = (teacher_dir / "model.safetensors").stat().st_mtime_ns
    said = tone_corpus.train(tone_corpus.config(name="teacher"), teacher_dir)
    assert len(said) == 1 and "finished already, skipped" in said[0]
    assert (teacher_dir / "model.safetensors").stat().st_mtime_ns == before


def test_a_record_of_an_earlier_version_has_the_folders_of_cuts_in_it(tone_corpus, teacher_dir, tmp_path):
    shutil.copytree(teacher_dir, tmp_path / "teacher")
    path = tmp_path / "teacher" / ".training.record.json"
    values = read_record(path)
    sources = {"train cuts": open_source(tone_corpus.train_cuts), "dev cuts": open_source(tone_corpus.dev_cuts)}
    assert values["inputs"] == {name: source.content for name, source in sources.items()}
    values["inputs"] = {name: source.lines for name, source in sources.items()}
    assert not set(values["inputs"].values()) & {source.content for source in sources.values()}
    path.write_text(json.dumps({**values, "sha256": json_digest(values)}))
    said = tone_corpus.train(tone_corpus.config(name="teacher"), tmp_path / "teacher")
    assert len(said) == 1 and "finished already, skipped" in said[0]


def test_another_configuration_is_not_continued(tone_corpus, teacher_dir, tmp_path):
    shutil.copytree(teacher_dir, tmp_path / "teacher")
    config = tone_corpus.config(name="teacher", overrides=ONE_EPOCH)
    said = tone_corpus.train(config, tmp_path / "teacher")
    assert "training.epochs was 3 and is 1" in said[0] and "teacher.old-1" in said[0]
    old, new = (folder / "model.safetensors" for folder in (tmp_path / "teacher.old-1", teacher_dir))
    assert old.read_bytes() == new.read_bytes()
    assert read_system_config(tmp_path / "teacher" / "config.yaml").training.epochs == 1
    said = tone_corpus.train(config, tmp_path / "teacher", train_cuts=tone_corpus.dev_cuts)
    assert "train cuts changed" in said[0] and (tmp_path / "teacher.old-2").is_dir()


def test_killed_before_the_record_it_ends_again_with_the_same_weights(tone_corpus, tmp_path, monkeypatch):
    config = tone_corpus.config(overrides=ONE_EPOCH)
    with monkeypatch.context() as killed, pytest.raises(ZeroDivisionError):
        killed.setattr("rnnt_kd.record.Record.finish", lambda self, outputs=(): 1 / 0)
        tone_corpus.train(config, tmp_path / "x")
    weights = (tmp_path / "x" / "model.safetensors").read_bytes()
    tone_corpus.train(config, tmp_path / "x")
    assert (tmp_path / "x" / "model.safetensors").read_bytes() == weights
    assert "finished already" in tone_corpus.train(config, tmp_path / "x")[0]


def test_damaged_weights_of_a_finished_system_are_moved_aside(tone_corpus, teacher_dir, tmp_path):
    shutil.copytree(teacher_dir, tmp_path / "x")
    weights = tmp_path / "x" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    said = tone_corpus.train(tone_corpus.config(name="teacher"), tmp_path / "x")
    assert "model.safetensors is not what was written" in said[0] and (tmp_path / "x.old-1").is_dir()
    assert weights.read_bytes() == (teacher_dir / "model.safetensors").read_bytes()


def test_a_system_of_an_earlier_version_is_left_alone(tone_corpus, teacher_dir, tmp_path):
    shutil.copytree(teacher_dir, tmp_path / "x")
    (tmp_path / "x" / ".training.record.json").rename(tmp_path / "x" / "inputs.json")
    before = sorted(path.name for path in (tmp_path / "x").iterdir())
    with pytest.raises(UserError, match="a system of an earlier version.*move it away"):
        tone_corpus.train(tone_corpus.config(name="teacher"), tmp_path / "x")
    assert sorted(path.name for path in (tmp_path / "x").iterdir()) == before


def test_a_run_that_was_killed_while_it_wrote_its_first_record_goes_on(tone_corpus, tmp_path):
    config = tone_corpus.config(overrides=ONE_EPOCH)
    (tmp_path / "x" / "checkpoints").mkdir(parents=True)
    write_system_config(tmp_path / "x" / "config.yaml", config)
    (tmp_path / "x" / "..training.record.json.0bbfd16a-22316.5h8hqulk.tmp").write_text('{"inp')
    tone_corpus.train(config, tmp_path / "x")
    assert (tmp_path / "x" / "system.json").exists()


def test_unusable_utterances_are_left_out_and_named(tone_corpus, tmp_path):
    """A BPE model that lacks a letter: its utterances are counted and named."""
    bpe = train_bpe(["aa bb cc dd"], 7, tmp_path / "bpe", "char")  # no e
    said = tone_corpus.train(tone_corpus.config(overrides=ONE_EPOCH), tmp_path / "x", tokenizer=Tokenizer.load(bpe))
    named = json.loads((tmp_path / "x" / "left_out.json").read_text())["train"]
    (reason,) = named
    texts = dict(line.split(maxsplit=1) for line in (tone_corpus.folder / "train" / "text").read_text().splitlines())
    assert named[reason] == sorted(name for name, text in texts.items() if "e" in text)
    count = len(named[reason])
    assert any(f'left out: {count} ({100 * count / 24:.1f} %) {reason}, such as "e" of' in line for line in said), said


def poison(monkeypatch, is_bad):
    """NaN features in the training steps for which ``is_bad(step)``."""
    real = Training._train_step

    def step(self, batch):
        if is_bad(self.state.step):
            batch.inputs["features"].mul_(float("nan"))
        real(self, batch)

    monkeypatch.setattr(Training, "_train_step", step)


def test_a_nonfinite_batch_is_skipped_and_named(tone_corpus, tmp_path, monkeypatch, capsys):
    poison(monkeypatch, lambda step: step in (1, 2))
    tone_corpus.train(tone_corpus.config(overrides=ONE_EPOCH), tmp_path / "x")
    skipped = metrics(tmp_path / "x", "nonfinite")
    assert [line["step"] for line in skipped] == [2, 3]
    assert all(name.startswith("train-") for line in skipped for name in line["utterances"])
    assert f"batch skipped: {' '.join(skipped[0]['utterances'])}" in capsys.readouterr().err
    assert all(torch.isfinite(value).all() for value in load_file(tmp_path / "x" / "model.safetensors").values())
    assert system_json(tmp_path / "x")["nonfinite_batches"] == 2


def test_nonfinite_batches_in_a_row_stop_the_run(tone_corpus, tmp_path, monkeypatch):
    poison(monkeypatch, lambda step: step >= 2)
    config = tone_corpus.config(overrides=["teacher.training.max_nonfinite_batches=3"])
    with pytest.raises(UserError, match="3 batches in a row, up to step 5; the last: train-.*learning_rate"):
        tone_corpus.train(config, tmp_path / "x")
    assert not (tmp_path / "x" / "system.json").exists()


def test_weights_that_are_no_numbers_at_the_end_are_no_system(tone_corpus, tmp_path):
    overrides = ["learning_rate=1e30", "warmup_steps=0", "batch_seconds=8", "epochs=1"]
    config = tone_corpus.config(overrides=[f"teacher.training.{one}" for one in overrides])
    with pytest.raises(UserError, match="the loss on the development set is not finite"):
        tone_corpus.train(config, tmp_path / "x")
    assert not (tmp_path / "x" / "system.json").exists()
    assert all(1e30 == value for name, value in metrics(tmp_path / "x", "dev")[-1].items() if name.endswith("loss"))


@pytest.mark.parametrize("begin, end, epochs", [(0.6, 0.9, 2), (0.95, 1.0, 10)])
def test_a_ramp_that_begins_in_the_last_epoch_begins_before_it(tone_corpus, begin, end, epochs):
    ramp = {"target": 0.5, "begin_fraction": begin, "end_fraction": end}
    config = tone_corpus.config("sparse_student", sparsity=ramp, overrides=[f"sparse_student.training.epochs={epochs}"])
    config.vocab_size = 8
    sparsifier = setup.sparsifier(config, store.build_model(config), 10)
    sparsifier.step(10 * (epochs - 1))
    assert sparsifier.frozen


@pytest.mark.parametrize(
    "section, key", [("training", "optimizer"), ("training", "schedule"), ("sparsity", "schedule")]
)
def test_an_unknown_name_is_told_before_anything_is_written(tone_corpus, teacher_dir, tmp_path, section, key):
    config = tone_corpus.config("sparse_student", sparsity=0.5)
    setattr(getattr(config, section), key, "adann")
    with pytest.raises(UserError, match=f"{section}.{key}: there is no 'adann'; expected one of: "):
        tone_corpus.train(config, tmp_path / "x", teacher_dir=teacher_dir)
    assert not (tmp_path / "x").exists()


def test_schedules_of_ones_own_are_functions_in_their_files(tone_corpus, teacher_dir, tmp_path, monkeypatch):
    def flat(step, *, peak, warmup_steps, total_steps, final_fraction):
        return peak / 4

    def jump(step, begin_step, end_step, final_sparsity, initial_sparsity):
        assert initial_sparsity == 0.5 * 0.9
        return final_sparsity if step >= end_step else final_sparsity / 3

    for module, function in ((learning_rates, flat), (schedules, jump)):
        function.__module__ = module.__name__
        monkeypatch.setattr(module, function.__name__, function, raising=False)
    config = tone_corpus.config("sparse_student", sparsity=0.9)
    config.training.schedule, config.sparsity.schedule, config.sparsity.initial = "flat", "jump", 0.5
    tone_corpus.train(config, tmp_path / "x", teacher_dir=teacher_dir)
    lines = metrics(tmp_path / "x", "train")
    assert {line["learning_rate"] for line in lines} == {config.training.learning_rate / 4}
    assert {line["target_sparsity"] for line in lines} - {0.0} == {0.9 / 3, 0.9}


def test_a_second_run_in_the_same_folder_is_refused(tone_corpus, tmp_path):
    with FileLock(str(tmp_path / ".x.lock")):
        assert "another run is training" in told(lambda: tone_corpus.train(tone_corpus.config(), tmp_path / "x"))
    assert not (tmp_path / "x").exists()


def test_a_folder_of_something_else_is_left_alone(tone_corpus, tmp_path):
    (tmp_path / "x").mkdir()
    (tmp_path / "x" / "thesis.tex").write_text("mine")
    assert "something else" in told(lambda: tone_corpus.train(tone_corpus.config(), tmp_path / "x"))
    assert [path.name for path in (tmp_path / "x").iterdir()] == ["thesis.tex"]


@pytest.mark.parametrize("role, values, options, message", [
    ("small_student", {"with_kd": True, "ranges": "student"}, ["bpe"], "BPE model of teacher and student differ"),
    ("small_student", {"with_kd": True, "ranges": "student"}, ["blank"], "blank id .* differ .teacher 3, student 0"),
    ("sparse_student", {"sparsity": 0.5, "overrides": ["teacher.model.joiner_dim=24"]}, [], "joiner_dim is 16.*24"),
    ("teacher", {"overrides": ["training.precision=16-mixed"]}, [], "training.precision: 16-mixed on a CPU"),
])  # fmt: skip
def test_what_does_not_fit_is_named_and_nothing_is_written(
    tone_corpus, teacher_dir, tmp_path, role, values, options, message
):
    given = {"teacher_dir": teacher_dir}
    if "bpe" in options:
        given["tokenizer"] = Tokenizer.load(train_bpe(["e d c b a"], 8, tmp_path / "bpe", "char"))
    if "blank" in options:
        given["teacher_dir"] = shutil.copytree(teacher_dir, tmp_path / "teacher")
        path = tmp_path / "teacher" / "config.yaml"
        path.write_text(path.read_text().replace("blank_id: 0", "blank_id: 3"))
        (tmp_path / "teacher" / ".training.record.json").unlink()  # else the changed file is what is named
    with pytest.raises(UserError, match=message):
        tone_corpus.train(tone_corpus.config(role, **values), tmp_path / "x", **given)
    assert not (tmp_path / "x").exists()


def test_a_damaged_teacher_touches_no_student(tone_corpus, teacher_dir, tmp_path):
    shutil.copytree(teacher_dir, tmp_path / "teacher")
    weights = tmp_path / "teacher" / "model.safetensors"
    config = tone_corpus.config("sparse_student", sparsity=0.5, overrides=ONE_EPOCH)
    tone_corpus.train(config, tmp_path / "x", teacher_dir=tmp_path / "teacher")
    weights.write_bytes(weights.read_bytes()[:1000])
    for folder in (tmp_path / "x", tmp_path / "new"):
        assert "model.safetensors: damaged" in told(tone_corpus.train, config, folder, teacher_dir=tmp_path / "teacher")
    assert (tmp_path / "x" / "system.json").exists()
    assert {path.name for path in tmp_path.iterdir() if not path.name.startswith(".")} == {"teacher", "x"}


@pytest.mark.parametrize("entry, more, message", [
    ("{role: sparse_student, sparsity: 0.5}", [], "teacher/seed1: no trained system here"),
    ("{role: sparse_student, sparsity: 90}", [], "system x: sparsity.target: 90"),
    ("{role: small_student, kd: {}}", [], "teacher/seed1: no trained system here"),
    ("{role: small_student, kd: {ranges: student}}", [], "teacher/seed1: no trained system here"),
    ("{role: small_student, kd: {variant: best}}", [], "expected one of: collapsed, full"),
    ("{role: sparse_student, sparsity: {target: 0.5, structure: block}}", [], "unstructured, 1x16, 16x1, 4x4, 16x16, 2:4"),
    ("{role: sparse_student, sparsity: {target: 0.9, structure: '2:4'}}", [], "expected 0.5"),
    ("{role: sparse_student, sparsity: {structure: 16x1}}", [], "sparsity.target"),
    ("{role: small_student}", ["--system", "y"], "--system: there is no 'y'"),
    ("{role: small_student}", ["--seed", "7"], "--seed of x: there is no '7'"),
    ("{role: small_student}", ["--dev-set", "nowhere"], "nowhere.jsonl.gz: no such"),
    ("{role: small_student}", ["--set", "x.training.epoch=3"], "did you mean 'epochs'"),
    ("small_student", ["--set", "x.kd.scale=2"], "system x: 'small_student' is no mapping"),
])  # fmt: skip
def test_bad_input_is_one_line(tone_corpus, tmp_path, capsys, entry, more, message):
    assert message in refused(capsys, command.main, *tone_corpus.arguments(tmp_path / "exp", entry), *more)
    assert not (tmp_path / "exp" / "trial" / "x").exists()
