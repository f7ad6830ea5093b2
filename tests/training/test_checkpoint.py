"""Averages, what is kept, and finished systems that are not what they should be."""

import json
import re
import shutil

import pytest
import torch
from safetensors.torch import save as as_bytes

from rnnt_kd.errors import UserError
from rnnt_kd.systems import store
from rnnt_kd.training import checkpoint
from rnnt_kd.training.state import EpochResult, TrainState, draw_seed


@pytest.mark.parametrize("number", [1, 3])
def test_average_is_the_mean_and_keeps_exact_zeros(tmp_path, number):
    generator = torch.Generator().manual_seed(0)
    mask = torch.rand(5, 7, generator=generator) > 0.5
    tensors = [{"w": torch.randn(5, 7, generator=generator) * mask, "n": torch.tensor([3])} for _ in range(number)]
    folders = [tmp_path / str(index) for index in range(number)]
    for folder, values in zip(folders, tensors, strict=True):
        checkpoint.save_checkpoint(folder, values, {}, {}, {})
    mean = checkpoint.average(folders)
    assert mean["n"].tolist() == [3] and mean["n"].dtype == torch.int64
    mean = mean["w"]
    assert mean.dtype == torch.float32
    torch.testing.assert_close(
        mean, sum(values["w"].double() for values in tensors).div(number).float(), rtol=0, atol=0
    )
    assert torch.equal(mean == 0, ~mask)


def save(folder, name):
    checkpoint.save_checkpoint(
        folder / name, {"w": torch.ones(2)}, {"w/step": torch.ones(1)}, {}, TrainState().to_dict()
    )


def test_tidy_keeps_the_last_whole_and_the_weights_of_the_best(tmp_path):
    names = [
        checkpoint.checkpoint_name(step, epoch) for step, epoch in ((3, None), (4, 1), (6, None), (8, None), (8, 2))
    ]
    for name in reversed(names):
        save(tmp_path, name)
    assert [path.name for path in checkpoint.list_checkpoints(tmp_path)] == names
    checkpoint.tidy(tmp_path, 2, [names[1]])
    assert [path.name for path in checkpoint.list_checkpoints(tmp_path)] == [names[1], names[3], names[4]]
    assert not (tmp_path / names[1] / "optimizer.safetensors").exists()
    assert checkpoint.load_checkpoint(tmp_path / names[4]).optimizer["w/step"].item() == 1.0
    with pytest.raises(UserError, match="optimizer.safetensors"):
        checkpoint.load_checkpoint(tmp_path / names[1])


def test_the_last_end_of_an_epoch_stays_whole_until_the_end(tmp_path):
    """Another number of processes goes on from there."""
    names = [checkpoint.checkpoint_name(*given) for given in ((4, 1), (8, 2), (10, None), (12, None))]
    for name in names:
        save(tmp_path, name)
    checkpoint.tidy(tmp_path, 2, [names[0]])
    assert [path.name for path in checkpoint.list_checkpoints(tmp_path)] == names
    for name in names[1:]:
        assert checkpoint.load_checkpoint(tmp_path / name).optimizer
    said = []
    (saved,) = checkpoint.load_newest(tmp_path, "", 1, said.append)
    assert (saved.path.name, said) == (names[3], [])
    (saved,) = checkpoint.load_newest(tmp_path, "", 2, said.append)
    assert saved.path.name == names[1] and f"by 1 process(es), and now there are 2; from {names[1]}, " in said[0]
    assert [path.name for path in checkpoint.list_checkpoints(tmp_path)] == names[:2]
    checkpoint.tidy(tmp_path, 0, [names[0]])
    assert [path.name for path in checkpoint.list_checkpoints(tmp_path)] == names[:1]


@pytest.mark.parametrize("name", ["state.json", "model.safetensors", "optimizer.safetensors", "sparsifier.safetensors"])
def test_a_flipped_bit_of_any_byte_of_a_checkpoint_is_found(tmp_path, name):
    save(tmp_path, "step-00000003")
    folder = tmp_path / "step-00000003"
    path, readers = folder / name, [checkpoint.load_checkpoint]
    readers += [lambda folder: checkpoint.average([folder])] if name in ("state.json", "model.safetensors") else []
    whole, state = path.read_bytes(), checkpoint.load_checkpoint(folder).state
    for bit in (8 * i + i % 8 for i in range(len(whole))):
        damaged = bytearray(whole)
        damaged[bit // 8] ^= 1 << bit % 8
        path.write_bytes(damaged)
        for reader in readers:
            try:
                assert name == "state.json" and json.loads(damaged) == json.loads(whole), (reader(folder), bit)
            except (UserError, ValueError):
                with pytest.raises(UserError, match=f"{path}: .*delete {folder}"):
                    reader(folder)
    path.write_bytes(whole)
    assert checkpoint.load_checkpoint(folder).state == state


def test_a_checkpoint_of_another_run_is_named_and_one_of_an_earlier_version_taken(tmp_path):
    folder = tmp_path / "step-00000003"
    checkpoint.save_checkpoint(folder, {"w": torch.ones(2)}, {}, {}, {"step": 3}, run="one")
    assert checkpoint.load_checkpoint(folder, "one").state == {"step": 3} and checkpoint.average([folder], "one")
    for read in (lambda: checkpoint.load_checkpoint(folder, "two"), lambda: checkpoint.average([folder], "two")):
        with pytest.raises(UserError, match=f"{folder}: a checkpoint of another run; .*delete {folder}"):
            read()
    state = json.loads((folder / "state.json").read_text())
    del state["run"], state["sha256"]["state.json"]
    (folder / "state.json").write_text(json.dumps(state))
    assert checkpoint.load_checkpoint(folder, "two").state == {"step": 3}


RESULT = EpochResult("step-00000007-epoch-0001", 1, 7, 1 / 7, True)


def test_state_survives_json_exactly():
    state = TrainState(step=7, window=[0.1, 1e-30, 1 / 3], results=[RESULT])
    assert TrainState.from_dict(state.to_dict(), "x") == state
    elsewhere = [{**vars(RESULT), "checkpoint": name} for name in ("../x", "/etc", "", "step-1/../..", 3)]
    elsewhere = [{**state.to_dict(), "results": [result]} for result in elsewhere]
    for broken in ({}, {**state.to_dict(), "format": 0}, {**state.to_dict(), "surprise": 1}, *elsewhere):
        with pytest.raises(UserError, match="state.json"):
            TrainState.from_dict(broken, "state.json")


def test_draws_differ_by_seed_purpose_and_number():
    draws = {draw_seed(seed, purpose, number) for seed in (1, 2) for purpose in ("a", "b") for number in range(50)}
    assert len(draws) == 200 and all(0 <= draw < 2**63 for draw in draws)


@pytest.mark.parametrize("name, change, message", [
    ("config.yaml", None, "no trained system"),
    ("config.yaml", lambda content: re.sub(rb"(?m)^vocab_size: .*", b"vocab_size: 1000000000", content), "at most 1000,"),
    ("config.yaml", lambda content: content.replace(b"joiner_dim: ", b"joiner_dim: 99999"), "joiner_dim: 99999.* at most"),
    ("config.yaml", lambda content: re.sub(rb"(?m)^    dim: .*", b"    dim: 4000000", content), "dim: 4000000"),
    ("model.safetensors", lambda content: (2**31).to_bytes(8, "little") + content[8:], "model.safetensors: damaged"),
    ("model.safetensors", lambda content: (2**63).to_bytes(8, "little") + content[8:], "model.safetensors: damaged"),
    ("model.safetensors", None, "model.safetensors: missing"),
    ("model.safetensors", lambda content: content[:-9], "model.safetensors: damaged"),
    ("model.safetensors", lambda content: as_bytes({"w": torch.ones(1)}), "model.safetensors: has no tensor"),
])  # fmt: skip
def test_load_system_names_what_is_wrong(teacher_dir, tmp_path, name, change, message):
    for file in ("config.yaml", "model.safetensors"):
        content = (teacher_dir / file).read_bytes()
        if file != name or change:
            (tmp_path / file).write_bytes(change(content) if file == name else content)
    with pytest.raises(UserError, match=message):
        store.load_system(tmp_path)


@pytest.mark.parametrize("change", [
    lambda content: content[: len(content) // 2] + bytes([content[len(content) // 2] ^ 1]) + content[len(content) // 2 + 1 :],
    lambda content: content + b" ",
])  # fmt: skip
@pytest.mark.parametrize("name", ["config.yaml", "model.safetensors", "system.json"])
def test_a_finished_system_that_is_not_what_was_written_is_refused(teacher_dir, tmp_path, name, change):
    for file in ("config.yaml", "model.safetensors", "system.json", ".training.record.json"):
        (tmp_path / file).write_bytes((teacher_dir / file).read_bytes())
    (tmp_path / name).write_bytes(change((teacher_dir / name).read_bytes()))
    with pytest.raises(UserError, match=f"{tmp_path / name}: .*move {tmp_path} away and train it again"):
        store.load_system(tmp_path)
    (tmp_path / name).write_bytes((teacher_dir / name).read_bytes())
    store.load_system(tmp_path)


def test_a_hand_in_the_configuration_is_named_undone_by_training_and_allowed_on_purpose(
    tone_corpus, teacher_dir, tmp_path
):
    folder = shutil.copytree(teacher_dir, tmp_path / "teacher")
    config = folder / "config.yaml"
    whole = config.read_text()
    config.write_text(whole.replace("seed: 1", "seed: 2"))
    with pytest.raises(UserError, match=f"{config}: is not what was written; .*remove {folder}/.training.record.json"):
        store.load_system(folder)
    said = tone_corpus.train(tone_corpus.config(name="teacher"), folder)
    assert any("written again" in line for line in said) and any("finished already" in line for line in said)
    assert config.read_text() == whole
    config.write_text(whole.replace("seed: 1", "seed: 2"))
    (folder / ".training.record.json").unlink()
    assert store.load_system(folder)[1].seed == 2


def test_load_weights_names_the_tensor_that_differs(teacher_dir):
    model, config = store.load_system(teacher_dir)
    assert not model.training and config.role == "teacher" and config.vocab_size == model.vocab_size
    tensors = model.state_dict()
    name = "joiner.output_linear.weight"
    with pytest.raises(UserError, match=f"'{name}' is \\(1, 1\\)"):
        store.load_weights(model, {**tensors, name: torch.zeros(1, 1)}, "file", "")
    with pytest.raises(UserError, match="'extra' is not of this model"):
        store.load_weights(model, {**tensors, "extra": torch.zeros(1)}, "file", "")
