"""onnxruntime against the system in torch, on random lengths and batches."""

import copy
from pathlib import Path
from typing import Any, Dict, Iterator, List, Mapping, Optional, Tuple

import numpy as np
import torch
from torch import Tensor, nn

from rnnt_kd.data.audio_format import FEATURE_DIM
from rnnt_kd.errors import UserError
from rnnt_kd.export import blank_penalty
from rnnt_kd.export.graphs import JoinerFile, OfflineEncoder, PredictorFile, StreamingEncoderFile, random_chunks
from rnnt_kd.export.onnx_file import OneByOne, multiplies_integers, session
from rnnt_kd.models.transducer import Transducer
from rnnt_kd.sparsity import rounding

TOLERANCE = 1e-4  # encoder outputs and logits are of order 1 to 10
ROUNDED_FACTOR, ROUNDED_FLOOR = 2.0, 1e-4

Case = Tuple[str, type, List[Tuple[Tensor, ...]]]  # file, wrapper of the model, batches


def verify_numbers(folder: Path, model: Transducer, manifest: Dict[str, Any], seed: int = 0) -> Dict[str, float]:
    """File -> largest difference; for rounded weights |difference| / |output|, over all batches together.

    float32, float16, int4: within 1e-4 of the system with the weights that are stored.  int8, whose inputs are rounded,
    too: at most twice as far from the system as a plain imitation in torch, that rounds weights and inputs of every
    linear map and convolution, and the embedding, to 256 steps from least to largest.  (QInt8 weights saturate on CPUs
    with AVX2 and no VNNI, and are eight times as far.)  A streaming encoder gets chunks in a row; its caches are
    compared, too.

    Raises: UserError: a difference above the bound, or other lengths.
    """
    model = copy.deepcopy(model).eval()
    weights = manifest["weights"]
    imitation = _eight_bit(model) if weights == "int8" else stored_as(model, weights)
    found: Dict[str, float] = {}
    static = manifest.get("static")
    for name, wrapper, batches in _cases(model, torch.Generator().manual_seed(seed), manifest["streaming"], static):
        path = folder / name
        expected = [_forward(wrapper(model), batch) for batch in batches]
        got = _run_all(OneByOne(path) if static else session(path), batches)
        for one, other in zip(got, expected, strict=True):
            if [value.shape for value in one] != [value.shape for value in other]:
                shapes = [tuple(values[0].shape) for values in (one, other)]
                raise UserError(path, f"its output has the sizes {shapes[0]}", f"{shapes[1]}, as in torch")
            if not manifest["streaming"] and one[1:] and one[1].tolist() != other[1].tolist():
                problem = f"encoder_out_lens {one[1].tolist()}"
                raise UserError(path, problem, f"{other[1].tolist()}, as in torch")
        stored = [_forward(wrapper(imitation), batch) for batch in batches]
        far, bound = _largest(got, stored), TOLERANCE
        found[name] = far if weights == "float32" else _relative(got, expected)
        if weights == "int8":
            far, bound = found[name], max(ROUNDED_FACTOR * _relative(stored, expected), ROUNDED_FLOOR)
        if not far <= bound:
            problem = f"its output differs from torch by {far:.2g}"
            cure = "a fault of the export: report it"
            if weights == "int8" and not multiplies_integers():
                cure = "this onnxruntime multiplies integers wrongly on this CPU: check with another version of it"
            raise UserError(path, problem, f"at most {bound:.2g}", cure)
    return found


def _cases(
    model: Transducer, generator: torch.Generator, streaming: bool, static: Optional[Mapping[str, int]] = None
) -> Iterator[Case]:
    lens = [[50, 31], [1], [7, 3, 123, 2], torch.randint(4, 900, (3,), generator=generator).tolist()]
    if static:  # one at a time: what stands on padding is nobody's
        longest = static["feature_frames"]
        lens = [[1], [longest], *torch.randint(1, longest + 1, (8, 1), generator=generator).tolist()]
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


@torch.no_grad()
def _forward(network: nn.Module, batch: Tuple[Tensor, ...]) -> List[np.ndarray]:
    output = network.eval()(*batch)
    return [value.numpy() for value in (output if isinstance(output, tuple) else (output,))]


def _run_all(loaded: Any, batches: List[Tuple[Tensor, ...]]) -> List[List[np.ndarray]]:
    names = [value.name for value in loaded.get_inputs()]
    feeds = [{name: value.numpy() for name, value in zip(names, batch, strict=True)} for batch in batches]
    return [loaded.run(None, values) for values in feeds]


def _relative(got: List[List[np.ndarray]], expected: List[List[np.ndarray]]) -> float:
    error = sum(float(((a[0] - b[0]) ** 2).sum(dtype=np.float64)) for a, b in zip(got, expected, strict=True))
    return (error / max(sum(float((b[0] ** 2).sum(dtype=np.float64)) for b in expected), 1e-12)) ** 0.5


def _largest(got: List[List[np.ndarray]], expected: List[List[np.ndarray]]) -> float:
    pairs = [pair for one, other in zip(got, expected, strict=True) for pair in zip(one, other, strict=True)]
    return max(float(np.abs(a - b).max()) for a, b in pairs)


def stored_as(model: Transducer, weights: str) -> Transducer:
    """The model with the weights that a file in float32, float16 or int4 holds."""
    model = copy.deepcopy(model).requires_grad_(False)
    for value in model.state_dict().values() if weights != "float32" else ():
        if value.is_floating_point():
            value.copy_(rounding.rounded(value, 4) if weights == "int4" else value.half())
    return model


def learned_so(model: Transducer, stored: Transducer) -> bool:
    """Does rounding change no weight?  Blank's bias aside, which an export lowers; in a vocabulary of whole sixteens
    its neighbours share its scale, and are rounded anew then."""
    pairs = zip(model.state_dict().items(), stored.state_dict().values(), strict=True)
    different = {name: a != b for (name, a), b in pairs}
    different[blank_penalty.BIAS][model.blank_id] = False
    return not any(bool(places.any()) for places in different.values())


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
