"""Numbers of an export against torch: what is allowed, and that more is not."""

import numpy as np
import pytest
import torch
from export_cases import change_weights
from onnxruntime.quantization import QuantType, quantize_dynamic

from rnnt_kd.errors import UserError
from rnnt_kd.export.check import verify_numbers
from rnnt_kd.export.model_json import ONNX_FILES, read_manifest
from rnnt_kd.systems.store import load_system


@pytest.fixture
def model(workplace):
    return load_system(workplace / "systems" / "dense")[0]


def test_float32_is_within_1e_4(exported, model):
    found = verify_numbers(exported, model, read_manifest(exported))
    assert set(found) == set(ONNX_FILES) and max(found.values()) < 1e-4


@pytest.mark.parametrize("file, name", [
    ("encoder.onnx", "encoder.layers.1.attention.out_proj.bias"),
    ("decoder.onnx", "predictor.context_proj.bias"),
    ("joiner.onnx", "joiner.output_linear.bias"),
])  # fmt: skip
def test_one_weight_that_is_another_is_found_in_each_file(folder, model, file, name):
    change_weights(
        folder / file, lambda _, values: values + 1e-2 * (np.arange(len(values)) == 3).astype(np.float32), name
    )
    with pytest.raises(UserError, match=f"{file}: its output differs from torch by"):
        verify_numbers(folder, model, read_manifest(folder, check_files=False))


def test_a_mask_that_forgets_padding_is_found(exported, model):
    """The batches of different lengths are there for this: alone, every utterance would be right."""

    class Forgetful(torch.nn.Module):
        def __init__(self, encoder):
            super().__init__()
            self.encoder, self.subsampling_factor = encoder, 4

        def forward(self, x, x_lens):
            return self.encoder(x, torch.full_like(x_lens, x.size(1)))

    model.encoder = Forgetful(model.encoder)
    with pytest.raises(UserError, match="encoder.onnx"):
        verify_numbers(exported, model, read_manifest(exported))


def test_int8_may_err_as_eight_bits_err_and_no_more(folder, exported, model):
    manifest = {**read_manifest(exported), "weights": "int8"}
    for file in ONNX_FILES:
        quantize_dynamic(str(exported / file), str(folder / file), weight_type=QuantType.QUInt8)
    found = verify_numbers(folder, model, manifest)
    assert 1e-3 < found["encoder.onnx"] < 0.2  # it is not float32
    with pytest.raises(UserError, match="its output differs from torch"):  # nor may it pass for float32
        verify_numbers(folder, model, {**manifest, "weights": "float32"})

    def six_bits(name, values):
        if name.endswith("weight_quantized"):
            values = ((values.astype(int) + 2) // 4 * 4).clip(0, 255).astype(values.dtype)
        return values

    change_weights(folder / "encoder.onnx", six_bits)
    with pytest.raises(UserError, match="encoder.onnx: its output differs from torch"):
        verify_numbers(folder, model, manifest)


def test_float16_may_err_as_float16_errs_and_no_more(folder, exported, model):
    manifest = {**read_manifest(exported), "weights": "float16"}

    def rounded(name, values):
        return values.astype(np.float16).astype(np.float32) if values.dtype == np.float32 else values

    def bfloat16(name, values):  # 8 bits of 11
        return torch.tensor(values).bfloat16().float().numpy() if values.dtype == np.float32 else values

    for file in ONNX_FILES:
        change_weights(folder / file, rounded)
    assert 0 < max(verify_numbers(folder, model, manifest).values()) < 1e-2
    change_weights(folder / "encoder.onnx", bfloat16)
    with pytest.raises(UserError, match="encoder.onnx: its output differs from torch"):
        verify_numbers(folder, model, manifest)
