"""onnxruntime_int8: the same file with weights and products in 8 bits."""

from functools import partial

from torch import nn

from benchmark.engines import onnxruntime_engine
from rnnt_kd.export.formats import convert


def compile_encoder(encoder: nn.Module) -> onnxruntime_engine.OnnxEncoder:
    return onnxruntime_engine.compile_encoder(encoder, partial(convert, form="int8"))
