"""What the rest of the package asks of encoders, predictors and joiners.

All are ``nn.Module``s as well.  An encoder and a predictor are asked for nothing else; ``training``,
``decoding`` and ``export`` tell a streaming encoder by ``isinstance(encoder, StreamingEncoder)``.

Letters: N utterances, T feature frames of F mel bins, T' encoder frames, D encoder dimension, U labels,
P predictor dimension, J joiner dimension, C labels with blank.
"""

from typing import Callable, Dict, List, Protocol, Tuple, runtime_checkable

from torch import Tensor, nn

# What a module's ``units()`` gives, where it has parts that can be cut out of it: kind of unit -> where the units are:
# (parameter, its dimension, (units, n) int64: the places of each unit there, -1 alone where it has none).
# sparsity/units.py
UnitPlaces = Dict[str, List[Tuple[str, int, Tensor]]]


@runtime_checkable
class Encoder(Protocol):
    """Features -> frames.  Padding must not change an utterance, so that batches do not change results."""

    output_dim: int  # D
    subsampling_factor: int  # feature frames an encoder frame: what T / T' tends to

    def __call__(self, x: Tensor, x_lens: Tensor) -> Tuple[Tensor, Tensor]:
        """x (N, T, F) float32 log-mel energies, x_lens (N,) int64 -> (N, T', D), (N,) int64; T' is the longest."""

    def output_lengths(self, x_lens: Tensor) -> Tensor:
        """Encoder frames of utterances of ``x_lens`` feature frames, without encoding: (N,) int64 -> (N,) int64."""


@runtime_checkable
class StreamingEncoder(Encoder, Protocol):
    """An encoder that can go chunk by chunk, in export as sherpa-onnx calls one of model type ``conformer``."""

    chunk_frames: int  # encoder frames a chunk, the default of recognition
    left_frames: int  # encoder frames seen before a chunk
    eval_chunk_frames: int  # chunk of ``__call__`` in eval mode; 0: it sees everything

    def feature_frames(self, chunk: int) -> int:
        """Feature frames that ``streaming_forward`` needs for a chunk; it moves on by subsampling_factor * chunk."""

    def init_state(self, batch_size: int) -> Tuple[Tensor, ...]:
        """The caches before the first chunk."""

    def streaming_forward(self, x: Tensor, *caches_and_processed_lens: Tensor) -> Tuple[Tensor, ...]:
        """x (N, feature_frames(chunk), F), the caches, (N,) int64 frames so far -> (N, chunk, D), the next caches."""

    def weights_from_full_context(self, weights: Dict[str, Tensor]) -> Dict[str, Tensor]:
        """A transducer's weights whose encoder sees everything, ready for one with this encoder to start from."""


class Predictor(Protocol):
    """Labels -> what the joiner adds.  Made from ``vocab_size, dim, context_size=, blank_id=``, and ``dropout=``
    where ``model.label_dropout`` is to be had."""

    output_dim: int  # P
    context_size: int  # labels seen

    def __call__(self, y: Tensor, need_pad: bool = True) -> Tensor:
        """y (N, U) int64, below zero "no label" -> (N, U, P); unpadded (N, U - context_size + 1, P)."""

    def tabulated(self) -> Callable[[Tensor], Tensor]:
        """The same for searches: (n, context_size) int64 labels -> (n, P), to rounding."""

    def start_context(self) -> List[int]:
        """``context_size`` labels before the first one."""


class Joiner(Protocol):
    """``output_linear(activation(encoder_proj(encoder_out) + predictor_proj(predictor_out)))``.

    Made from ``encoder_dim, predictor_dim, joiner_dim, vocab_size``.  The loss takes the parts and builds the
    logits itself, block by block; it is fastest where ``activation`` is ``torch.tanh`` itself.
    """

    encoder_proj: nn.Module  # D -> J
    predictor_proj: nn.Module  # P -> J
    output_linear: nn.Linear  # J -> C
    activation: Callable[[Tensor], Tensor]  # elementwise, without parameters

    def __call__(self, am: Tensor, lm: Tensor) -> Tensor:
        """Raw logits (..., C) of two projected tensors (..., J) that broadcast against each other."""
