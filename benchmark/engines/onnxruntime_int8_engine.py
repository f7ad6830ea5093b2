"""onnxruntime_int8: the same file with weights and products in 8 bits."""

from torch import nn

from benchmark.engines import onnxruntime_engine
from rnnt_kd.export.quantize import quantize_int8


def compile_encoder(encoder: nn.Module) -> onnxruntime_engine.OnnxEncoder:
    return onnxruntime_engine.compile_encoder(encoder, quantize_int8)
