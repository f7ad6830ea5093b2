"""``model.packed.safetensors``: smaller, exact, read by whatever reads a system, refused when damaged."""

import json
import struct

import pytest
import torch
from command_cases import refused, told
from safetensors import safe_open

from rnnt_kd.bin import pack_weights
from rnnt_kd.config import ModelConfig, SystemConfig
from rnnt_kd.config_io import write_system_config
from rnnt_kd.errors import UserError
from rnnt_kd.record import Record
from rnnt_kd.systems.packed import PACKED, read_packed, write_packed
from rnnt_kd.systems.store import build_model, load_system, read_tensors, refuse_decoding_only, write_tensors

OPTIONS = {"num_layers": 1, "dim": 32, "feedforward_dim": 48}


@pytest.fixture
def system(tmp_path):
    """90 % of the matrices' weights are zeros."""
    folder = tmp_path / "sparse90"
    folder.mkdir()
    model = ModelConfig(encoder_options=OPTIONS, predictor_dim=24, joiner_dim=24)
    config = SystemConfig(name="sparse90", role="sparse_student", model=model, vocab_size=30)
    write_system_config(folder / "config.yaml", config)
    torch.manual_seed(3)
    tensors = build_model(config).state_dict()
    for value in tensors.values():
        if value.dim() == 2:
            value.masked_fill_(torch.rand(value.shape) < 0.9, 0.0)
    write_tensors(folder / "model.safetensors", tensors)
    return folder


def test_the_same_weights_are_packed_into_the_same_bytes(system, tmp_path):
    content = (system / "model.safetensors").read_bytes()
    for number in range(8):  # safetensors draws the order of its metadata each time
        write_packed(tmp_path / str(number), content)
    assert len({(tmp_path / str(number)).read_bytes() for number in range(8)}) == 1


def test_packed_weights_without_metadata_are_one_line(tmp_path):
    header = b'{"__metadata__":null,"x":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}}'
    (tmp_path / PACKED).write_bytes(len(header).to_bytes(8, "little") + header + b"x")
    assert f"{PACKED}: packed_weights version None; expected '1'" in told(read_packed, tmp_path / PACKED)


def test_a_packed_system_is_smaller_and_loads_bit_for_bit(system, capsys):
    original = (system / "model.safetensors").read_bytes()
    before, _ = load_system(system)
    pack_weights.main([str(system), "--remove"])
    assert "times smaller" in capsys.readouterr().out
    assert not (system / "model.safetensors").exists()
    tensors = before.state_dict()
    packed_bytes = (system / PACKED).stat().st_size
    expected = sum(4 * v.numel() if v.dim() != 2 else v.numel() / 8 + 4 * int((v != 0).sum()) for v in tensors.values())
    assert packed_bytes < expected + 150 * len(tensors) and packed_bytes < 0.6 * len(original)
    after, _ = load_system(system)
    for (name, one), (other_name, other) in zip(tensors.items(), after.state_dict().items(), strict=True):
        assert name == other_name and one.numpy().tobytes() == other.numpy().tobytes()
    pack_weights.main([str(system), "--unpack", "--remove"])
    assert (system / "model.safetensors").read_bytes() == original and not (system / PACKED).exists()


def test_hostile_tensors(tmp_path):
    tensors = {
        "nan": torch.tensor([0.0, -0.0, float("nan"), 1e-45] + [0.0] * 60),
        "half": torch.zeros(3, 0, 2, dtype=torch.float16),
        "flags": torch.tensor([[True, False], [False, False]]),
        "count": torch.tensor(7),
        "zeros": torch.zeros(100, 3, dtype=torch.int64),
    }
    write_tensors(tmp_path / "dense", tensors)
    write_packed(tmp_path / "packed", (tmp_path / "dense").read_bytes())
    again = read_packed(tmp_path / "packed")
    assert again.keys() == tensors.keys()
    for name, value in tensors.items():
        assert again[name].dtype == value.dtype and again[name].shape == value.shape
        assert again[name].numpy().tobytes() == value.numpy().tobytes()


def test_newer_weights_are_not_lost_to_an_older_packed_file(system, capsys):
    pack_weights.main([str(system)])
    pack_weights.main([str(system), "--unpack"])
    tensors = read_tensors(system / "model.safetensors")
    tensors["joiner.output_linear.bias"][0] += 1
    write_tensors(system / "model.safetensors", tensors)
    newer = (system / "model.safetensors").read_bytes()
    said = refused(capsys, pack_weights.main, str(system), "--unpack")
    assert "model.safetensors: holds other weights than model.packed.safetensors" in said
    assert (system / "model.safetensors").read_bytes() == newer


def test_shapes_below_0_are_damage(tmp_path):
    write_tensors(tmp_path / "dense", {"a": torch.zeros(100, 3)})
    write_packed(tmp_path / "packed", (tmp_path / "dense").read_bytes())
    content = (tmp_path / "packed").read_bytes()
    (tmp_path / "packed").write_bytes(content.replace(b"[100,3]", b"[-10,3]"))
    assert "damaged or not packed weights" in told(read_packed, tmp_path / "packed")


@pytest.mark.parametrize("dtype, shape", [("F32", [0, 2**64 - 1]), ("F32", [0, 2**62, 8]), ("F8_E4M3", [4])])
def test_sizes_and_types_that_torch_does_not_know_are_damage(tmp_path, dtype, shape):
    size = 4 if 0 not in shape else 0
    header = json.dumps({"a": {"dtype": dtype, "shape": shape, "data_offsets": [0, size]}}).encode()
    (tmp_path / "x").write_bytes(struct.pack("<Q", len(header)) + header + bytes(size))
    try:
        assert read_tensors(tmp_path / "x")["a"].shape == tuple(shape)  # where torch knows it
    except UserError as error:
        assert "damaged or not a safetensors file" in str(error)


def test_any_safetensors_reader_opens_it(system):
    pack_weights.main([str(system)])
    with safe_open(str(system / PACKED), "pt") as file:
        metadata = file.metadata()
        shapes = json.loads(metadata["shapes"])
        assert metadata["packed_weights"] == "1" and shapes["joiner.output_linear.weight"] == [30, 24]
        bits = file.get_tensor("joiner.output_linear.weight:bits")
        weight = read_tensors(system / "model.safetensors")["joiner.output_linear.weight"]
        assert [int(b) for byte in bits for b in f"{int(byte):08b}"] == (weight != 0).int().flatten().tolist()
        assert torch.equal(file.get_tensor("joiner.output_linear.weight:values"), weight[weight != 0])


def test_damaged_missing_and_foreign_files_are_one_line(system, capsys):
    assert "model.packed.safetensors: missing" in refused(capsys, pack_weights.main, system, "--unpack")
    pack_weights.main([str(system), "--remove"])
    content = (system / PACKED).read_bytes()
    for broken in (content[:-5], content[:7], b"", b"PK" + content):
        (system / PACKED).write_bytes(broken)
        assert "damaged or not packed weights" in told(load_system, system)
    write_tensors(system / PACKED, {"a": torch.ones(2)})
    assert "packed_weights version None; expected '1'" in refused(capsys, pack_weights.main, system, "--unpack")
    (system / PACKED).unlink()
    assert "not trained to the end" in refused(capsys, pack_weights.main, system)


def test_a_value_that_was_changed_is_found_when_unpacking(system, capsys):
    pack_weights.main([str(system), "--remove"])
    content = bytearray((system / PACKED).read_bytes())
    content[8 + int.from_bytes(content[:8], "little") + 1] ^= 1  # data begin with the largest type
    (system / PACKED).write_bytes(content)
    assert "does not unpack to what was packed" in refused(capsys, pack_weights.main, system, "--unpack")
    assert "does not unpack to what was packed" in told(load_system, system)
    assert not (system / "model.safetensors").exists()


def test_packed_weights_of_another_system_are_refused(system, capsys):
    Record(system, "training", {}, {}, ["model.safetensors"]).finish()
    tensors = read_tensors(system / "model.safetensors")
    pack_weights.main([str(system), "--remove"])
    load_system(system)
    tensors["joiner.output_linear.weight"] += 1
    write_tensors(system / "other", tensors)
    write_packed(system / PACKED, (system / "other").read_bytes())
    assert "model.packed.safetensors: is not what was written" in told(load_system, system)


def test_a_packed_teacher_is_refused_with_the_command(system):
    pack_weights.main([str(system), "--remove"])
    with pytest.raises(UserError, match=r"packed.*pack_weights .*sparse90 --unpack"):
        refuse_decoding_only(system)
