"""Encoder, predictor and joiner can be exported: no Python branch depends on data, sizes stay dynamic.

What can be checked depends on the installed packages: TorchScript traces always; ``torch.onnx.export``
where it needs no further package (torch 1.13) or has it; ``torch.export`` from torch 2.
"""

import importlib.util
import io

import pytest
import torch

from rnnt_kd.models import build_transducer

TORCH = tuple(int(part) for part in torch.__version__.split(".")[:2])


class OfflineEncoder(torch.nn.Module):
    """The encoder file of sherpa-onnx: encoder with the joiner's projection."""

    def __init__(self, model):
        super().__init__()
        self.encoder, self.encoder_proj = model.encoder, model.joiner.encoder_proj

    def forward(self, x, x_lens):
        out, lens = self.encoder(x, x_lens)
        return self.encoder_proj(out), lens


class OfflinePredictor(torch.nn.Module):
    """sherpa-onnx's "decoder" file: two labels in, one projected vector out."""

    def __init__(self, model):
        super().__init__()
        self.predictor, self.predictor_proj = model.predictor, model.joiner.predictor_proj

    def forward(self, y):
        return self.predictor_proj(self.predictor(y, need_pad=False)[:, 0])


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(6)
    return build_transducer(
        encoder="conformer",
        size="tiny",
        encoder_options={"num_layers": 2},
        predictor_dim=32,
        joiner_dim=32,
        dropout=0.1,
        ctc_head=False,
        vocab_size=30,
        blank_id=0,
    ).eval()


def batch(lens):
    torch.manual_seed(7)
    return torch.randn(len(lens), max(lens), 80) * 3.5 - 7.5, torch.tensor(lens)


def test_a_trace_at_one_size_is_right_at_others(model):
    encoder = OfflineEncoder(model)
    traced = torch.jit.trace(encoder, batch([50, 31]), check_trace=False)
    for lens in ([50, 31], [1], [7, 3, 123], [400]):
        x, x_lens = batch(lens)
        for got, expected in zip(traced(x, x_lens), encoder(x, x_lens), strict=True):
            torch.testing.assert_close(got, expected, atol=1e-5, rtol=0)


def test_onnx_export(model):
    if TORCH >= (2, 0) and importlib.util.find_spec("onnx") is None:
        pytest.skip("torch 2 needs the package onnx to export; torch 1.13 is checked in the other environment")
    parts = [
        (
            OfflineEncoder(model),
            batch([50, 31]),
            ["x", "x_lens"],
            ["encoder_out", "encoder_out_lens"],
            {"x": {0: "N", 1: "T"}},
        ),
        (OfflinePredictor(model), (torch.tensor([[-1, 0], [3, 4]]),), ["y"], ["decoder_out"], {"y": {0: "N"}}),
        (
            model.joiner,
            (torch.randn(2, 32), torch.randn(2, 32)),
            ["encoder_out", "decoder_out"],
            ["logit"],
            {"encoder_out": {0: "N"}},
        ),
    ]
    more = {"dynamo": False} if TORCH >= (2, 5) else {}
    for module, arguments, inputs, outputs, axes in parts:
        file = io.BytesIO()
        torch.onnx.export(
            module,
            arguments,
            file,
            opset_version=13,
            input_names=inputs,
            output_names=outputs,
            dynamic_axes=axes,
            **more,
        )
        for name in inputs + outputs:  # an unused input is dropped by the exporter
            assert name.encode() in file.getvalue(), name


@pytest.mark.skipif(
    TORCH < (2, 5), reason="torch.export with dynamic sizes needs torch 2.5; torch 1.13 exports through TorchScript"
)
def test_torch_export_with_dynamic_sizes(model):
    from torch.export import Dim, export

    encoder = OfflineEncoder(model)
    shapes = {"x": {0: Dim.DYNAMIC, 1: Dim.DYNAMIC}, "x_lens": {0: Dim.DYNAMIC}}
    program = export(encoder, batch([50, 31]), dynamic_shapes=shapes, strict=False).module()
    for lens in ([50, 31], [7, 3, 123]):
        x, x_lens = batch(lens)
        torch.testing.assert_close(program(x, x_lens)[0], encoder(x, x_lens)[0], atol=1e-5, rtol=0)
