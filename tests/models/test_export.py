"""Encoder, predictor and joiner can be exported: no Python branch depends on data, sizes stay dynamic.

Here by ``torch.export``, from torch 2.5; traces, of which the ONNX files are made, are tested in ``tests/export``.
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
