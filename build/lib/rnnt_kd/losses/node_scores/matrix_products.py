"""The matrix products of the output layer, as fast as the CPU allows.

PyTorch sends float32 products on a CPU to MKL.  oneDNN, which is in the same wheel and which
PyTorch uses for convolutions, chooses its kernel by what the CPU can do and not by who
made it: on an AMD CPU with AVX-512 the three products of an output layer took 0.6 of MKL's time
(torch 1.13; ``benchmark.loss --peers matmul_onednn``).  A product is a convolution with a 1 x 1 kernel over
"pixels" = rows.
"""

from typing import Optional

import torch
from torch import Tensor

SMALLEST = 2**21  # multiplications from which on the other library's set-up time is nothing


def linear(x: Tensor, weight: Tensor, bias: Optional[Tensor]) -> Tensor:
    """``x @ weight.T + bias``: (R, K), (C, K), (C,) or None -> (R, C), contiguous, without gradient."""
    if not _is_for_onednn(x, weight):
        return torch.nn.functional.linear(x, weight, bias)
    # (R, K) in memory is one image of R x 1 pixels with K channels, channels last.
    image = x.contiguous().view(1, x.shape[0], 1, x.shape[1]).permute(0, 3, 1, 2)
    kernel = weight.contiguous().view(*weight.shape, 1, 1)
    out = torch.mkldnn_convolution(image, kernel, bias, (0, 0), (1, 1), (1, 1), 1)
    return out[0, :, :, 0].t().contiguous()


def transposed_product(x: Tensor, y: Tensor, add_to: Tensor) -> None:
    """``add_to += x.T @ y``: (R, C), (R, K), (C, K)."""
    if _is_for_onednn(x, add_to):
        add_to += linear(x.t().contiguous(), y.t().contiguous(), None)
    else:
        add_to.addmm_(x.t(), y)


def _is_for_onednn(x: Tensor, weight: Tensor) -> bool:
    return (
        x.device.type == "cpu"
        and x.dtype == weight.dtype == torch.float32
        and x.shape[0] * weight.numel() >= SMALLEST
        and torch.backends.mkldnn.is_available()
    )
