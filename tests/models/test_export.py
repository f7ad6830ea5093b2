"""Encoder, predictor and joiner can be exported: no Python branch depends on data, sizes stay dynamic.

TorchScript traces in every torch, ``torch.export`` from torch 2.5; the ONNX files are tested in ``tests/export``.
"""

import pytest
import torch
from model_cases import log_mel, transducer

from rnnt_kd.export.graphs import OfflineEncoder

TORCH = tuple(int(part) for part in torch.__version__.split(".")[:2])


@pytest.fixture(scope="module")
def model():
    return transducer(6, encoder_options={"num_layers": 2}, ctc_head=False).eval()


def batch(lens):
    torch.manual_seed(7)
    return log_mel(len(lens), max(lens), 80), torch.tensor(lens)


def test_a_trace_at_one_size_is_right_at_others(model):
    encoder = OfflineEncoder(model).eval()
    traced = torch.jit.trace(encoder, batch([50, 31]), check_trace=False)
    for lens in ([50, 31], [1], [7, 3, 123], [400]):
        x, x_lens = batch(lens)
        for got, expected in zip(traced(x, x_lens), encoder(x, x_lens), strict=True):
            torch.testing.assert_close(got, expected, atol=1e-5, rtol=0)


@pytest.mark.skipif(
    TORCH < (2, 5), reason="torch.export with dynamic sizes needs torch 2.5; torch 1.13 exports through TorchScript"
)
def test_torch_export_with_dynamic_sizes(model):
    from torch.export import Dim, export

    encoder = OfflineEncoder(model).eval()
    shapes = {"x": {0: Dim.DYNAMIC, 1: Dim.DYNAMIC}, "x_lens": {0: Dim.DYNAMIC}}
    program = export(encoder, batch([50, 31]), dynamic_shapes=shapes, strict=False).module()
    for lens in ([50, 31], [7, 3, 123]):
        x, x_lens = batch(lens)
        torch.testing.assert_close(program(x, x_lens)[0], encoder(x, x_lens)[0], atol=1e-5, rtol=0)
