"""onnxruntime: the encoder's file as ``export`` writes it, without the joiner's projection."""

import tempfile
from pathlib import Path
from typing import Callable, Optional

import numpy as np
import torch
from torch import Tensor, nn

from rnnt_kd.export.graphs import GraphSpec
from rnnt_kd.export.onnx_file import session, write_graph

Rewrite = Callable[[Path, Path], None]  # source file, target file


def compile_encoder(encoder: nn.Module, rewrite: Optional[Rewrite] = None) -> "OnnxEncoder":
    """Args:
    rewrite: makes the file that is run of the float32 file.
    """
    with tempfile.TemporaryDirectory() as folder:
        path, axes = Path(folder) / "encoder.onnx", {"encoder_out": {0: "N", 1: "T_out"}, "lens": {0: "N"}}
        example = torch.zeros(2, 50, 80) - 7.5, torch.tensor([50, 31])
        axes.update({"x": {0: "N", 1: "T"}, "x_lens": {0: "N"}})
        metadata = {"model_type": "conformer"}  # for ``formats.make_int8``, which treats encoders differently
        write_graph(GraphSpec(encoder, example, ["x", "x_lens"], ["encoder_out", "lens"], axes, metadata), path)
        if rewrite is not None:
            rewrite(path, path.with_name("rewritten.onnx"))
            path = path.with_name("rewritten.onnx")
        return OnnxEncoder(path)


class OnnxEncoder:
    """See ``CompiledEncoder``; ``num_bytes`` is the size of the file."""

    def __init__(self, path: Path):
        self.num_bytes = path.stat().st_size
        self._session = session(path)

    def __call__(self, features: Tensor) -> Tensor:
        feeds = {"x": features.numpy()[None], "x_lens": np.array([len(features)])}
        return torch.from_numpy(self._session.run(["encoder_out"], feeds)[0][0])
