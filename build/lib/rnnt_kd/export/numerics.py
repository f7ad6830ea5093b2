"""onnxruntime against the system in torch, on random lengths and batches.

float32: every output within 1e-4.  float16 and int8: at most twice as far from the system as a plain imitation of
the rounding in torch, measured as |difference| / |output|.  The imitation of float16 rounds the weights; that of
int8 rounds weights and inputs of every linear map and convolution, and the embedding, to 256 steps from least to
largest.  (QInt8 weights saturate on CPUs with AVX2 and no VNNI, and are eight times as far.)
"""

import copy
from pathlib import Path
from typing import Any, Dict, Iterator, List, Tuple

import numpy as np
import torch
from torch import Tensor, nn

from rnnt_kd.data.audio_format import FEATURE_DIM
from rnnt_kd.errors import UserError
from rnnt_kd.export.graphs import JoinerFile, OfflineEncoder, PredictorFile
from rnnt_kd.export.streaming_graphs import StreamingEncoderFile, random_chunks
from rnnt_kd.export.verify import session
from rnnt_kd.models.transducer import Transducer

TOLERANCE = 1e-4  # encoder outputs and logits are of order 1 to 10
ROUNDED_FACTOR, ROUNDED_FLOOR = 2.0, 1e-4

Case = Tuple[str, type, List[Tuple[Tensor, ...]]]  # file, wrapper of the model, batches


def verify_numbers(folder: Path, model: Transducer, manifest: Dict[str, Any], seed: int = 0) -> Dict[str, float]:
    """File -> largest difference; for int8 and float16 |difference| / |output|, over all batches together.

    A streaming encoder gets chunks in a row; its caches are compared, too.

    Raises: UserError: a difference above the bound, or other lengths.
    """
    weights = manifest["weights"]
    model = copy.deepcopy(model).eval()
    imitated = {"float32": None, "float16": _half, "int8": _eight_bit}[weights]
    found: Dict[str, float] = {}
    for name, wrapper, batches in _cases(model, torch.Generator().manual_seed(seed), manifest["streaming"]):
        expected = [_forward(wrapper(model).eval(), batch) for batch in batches]
        got = _run(folder / name, batches)
        for one, other in zip(got, expected, strict=True):
            if [value.shape for value in one] != [value.shape for value in other]:
                shapes = [tuple(values[0].shape) for values in (one, other)]
                raise UserError(folder / name, f"its output has the sizes {shapes[0]}", f"{shapes[1]}, as in torch")
            if not manifest["streaming"] and one[1:] and one[1].tolist() != other[1].tolist():
                lens = one[1].tolist(), other[1].tolist()
                raise UserError(folder / name, f"encoder_out_lens {lens[0]}", f"{lens[1]}, as in torch")
        if imitated:
            imitation = [_forward(wrapper(imitated(model)).eval(), batch) for batch in batches]
            found[name] = _relative(got, expected)
            bound = max(ROUNDED_FACTOR * _relative(imitation, expected), ROUNDED_FLOOR)
        else:
            pairs = [pair for one, other in zip(got, expected, strict=True) for pair in zip(one, other, strict=True)]
            found[name] = max(float(np.abs(a - b).max()) for a, b in pairs)
            bound = TOLERANCE
        if not found[name] <= bound:
            found_there = f"its output differs from torch by {found[name]:.2g}"
            raise UserError(folder / name, found_there, f"at most {bound:.2g}", "a fault of the export: report it")
    return found


def _cases(model: Transducer, generator: torch.Generator, streaming: bool) -> Iterator[Case]:
    lens = [[50, 31], [1], [7, 3, 123, 2], torch.randint(4, 900, (3,), generator=generator).tolist()]
    if streaming:
        chunks = [chunk for size in (1, 3) for chunk in random_chunks(model, generator, size, 7)]
        yield "encoder.onnx", StreamingEncoderFile, chunks
    else:
        features = [torch.randn(len(n), max(n), FEATURE_DIM, generator=generator) * 3.5 - 7.5 for n in lens]
        yield "encoder.onnx", OfflineEncoder, [(x, torch.tensor(n)) for x, n in zip(features, lens, strict=True)]
    labels = torch.randint(-1, model.vocab_size, (64, model.predictor.context_size), generator=generator)
    yield "decoder.onnx", PredictorFile, [(labels,), (labels[:1],), (torch.tensor([[-1, 0]]),)]
    dim = model.joiner.output_linear.in_features
    pairs = [(torch.randn(n, dim, generator=generator), torch.randn(n, dim, generator=generator)) for n in (1, 33)]
    yield "joiner.onnx", JoinerFile, [pair for pair in pairs]


def _forward(network: nn.Module, batch: Tuple[Tensor, ...]) -> List[np.ndarray]:
    with torch.no_grad():
        output = network(*batch)
    return [value.numpy() for value in (output if isinstance(output, tuple) else (output,))]


def _run(path: Path, batches: List[Tuple[Tensor, ...]]) -> List[List[np.ndarray]]:
    run = session(path)
    names = [value.name for value in run.get_inputs()]
    return [run.run(None, {name: value.numpy() for name, value in zip(names, batch, strict=True)}) for batch in batches]


def _relative(got: List[List[np.ndarray]], expected: List[List[np.ndarray]]) -> float:
    error = sum(float(((a[0] - b[0]) ** 2).sum(dtype=np.float64)) for a, b in zip(got, expected, strict=True))
    return (error / max(sum(float((b[0] ** 2).sum(dtype=np.float64)) for b in expected), 1e-12)) ** 0.5


def _half(model: Transducer) -> Transducer:
    model = copy.deepcopy(model)
    for value in model.state_dict().values():
        if value.is_floating_point():
            value.copy_(value.half())
    return model


def _eight_bit(model: Transducer) -> Transducer:
    model = copy.deepcopy(model).requires_grad_(False)
    for module in model.modules():
        if isinstance(module, (nn.Linear, nn.Conv1d, nn.Conv2d)):
            module.register_forward_pre_hook(lambda module, inputs: (_to_256_steps(inputs[0]), *inputs[1:]))
        if isinstance(module, (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Embedding)):
            module.weight.copy_(_to_256_steps(module.weight))
    return model


def _to_256_steps(values: Tensor) -> Tensor:
    """Rounded to 256 steps between the least and the largest value, of which zero is one."""
    low, high = values.min().clamp(max=0.0), values.max().clamp(min=0.0)
    step = ((high - low) / 255).clamp(min=1e-12)
    return ((values / step).round().clamp(-(-low / step).round(), 255 - (-low / step).round())) * step
