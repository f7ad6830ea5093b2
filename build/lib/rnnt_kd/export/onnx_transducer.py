"""The three ONNX files of an export, run by onnxruntime, for our own searches.

Looks like a ``Transducer`` to ``decoding``: the files hold the joiner's projections, so those are the identity here.
"""

from pathlib import Path
from typing import Callable, List, Sequence, Tuple

import torch
from torch import Tensor

from rnnt_kd.export.model_json import ONNX_FILES
from rnnt_kd.export.verify import session


class OnnxTransducer:
    """Args: folder with encoder.onnx (offline), decoder.onnx and joiner.onnx.

    Raises: UserError: onnxruntime does not load a file.
    """

    def __init__(self, folder: Path):
        self._encoder, predictor, joiner = (session(Path(folder) / name) for name in ONNX_FILES)
        self.predictor, self.joiner = _Predictor(predictor), _Joiner(joiner)

    def encode(self, features: Sequence[Tensor]) -> Tuple[Tensor, Tensor]:
        """Each of N utterances (T, 80) by itself -> (N, T', J) padded with zeros, (N,) int64.

        One at a time, as a device hears them: the integer products of an int8 file round all utterances of a batch
        with one scale.
        """
        outputs, lens = [], []
        for matrix in features:
            feeds = {"x": matrix[None].numpy(), "x_lens": torch.tensor([len(matrix)]).numpy()}
            encoder_out, encoder_out_lens = self._encoder.run(None, feeds)
            outputs.append(torch.from_numpy(encoder_out[0]))
            lens.append(int(encoder_out_lens[0]))
        return torch.nn.utils.rnn.pad_sequence(outputs, batch_first=True), torch.tensor(lens)


class _Predictor:
    def __init__(self, session):
        self._session = session

    def start_context(self) -> List[int]:
        return [-1, 0]

    def __call__(self, y: Tensor, need_pad: bool = False) -> Tensor:
        """(N, 2) int64 -> (N, 1, J)."""
        assert not need_pad
        return self._run(y)[:, None]

    def tabulated(self) -> Callable[[Tensor], Tensor]:
        """(N, 2) int64 -> (N, J), as searches ask; there is no table here."""
        return self._run

    def _run(self, y: Tensor) -> Tensor:
        return torch.from_numpy(self._session.run(None, {"y": y.numpy()})[0])


class _Joiner:
    def __init__(self, session):
        self._session = session

    @staticmethod
    def encoder_proj(encoder_out: Tensor) -> Tensor:
        return encoder_out

    @staticmethod
    def predictor_proj(decoder_out: Tensor) -> Tensor:
        return decoder_out

    def __call__(self, am: Tensor, lm: Tensor) -> Tensor:
        """(..., J) twice, which broadcast against each other -> logits (..., C)."""
        am, lm = torch.broadcast_tensors(am, lm)
        rows = {"encoder_out": am, "decoder_out": lm}
        feeds = {name: value.reshape(-1, value.shape[-1]).numpy() for name, value in rows.items()}
        return torch.from_numpy(self._session.run(None, feeds)[0]).reshape(*am.shape[:-1], -1)
