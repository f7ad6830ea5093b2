"""Small random transducers, and frames, for the tests of searches."""

import torch

from rnnt_kd.models.joiner import Joiner
from rnnt_kd.models.predictor import StatelessPredictor

BLANK, UNK = 0, 1


class Model(torch.nn.Module):
    """Predictor and joiner of a random transducer; a search needs no more."""

    def __init__(self, seed, vocab_size=6, peak=1.0, context_size=2, blank_id=BLANK, dim=8):
        super().__init__()
        torch.manual_seed(seed)
        self.predictor = StatelessPredictor(vocab_size, dim, context_size, blank_id)
        self.joiner = Joiner(dim, dim, dim, vocab_size)
        with torch.no_grad():
            self.joiner.output_linear.weight.mul_(peak)
        self.double().eval()  # so that batching cannot change a rounding that matters


def encoder_output(seed, lens, dim=8, padding=1e3):
    """Random frames; what is behind the end is absurd, and must not matter."""
    generator = torch.Generator().manual_seed(seed)
    frames = 3 * torch.randn(len(lens), max(lens, default=0), dim, dtype=torch.float64, generator=generator)
    lens = torch.tensor(lens, dtype=torch.int64)
    frames[torch.arange(frames.shape[1]) >= lens[:, None]] = padding
    return frames, lens


def log_probs(model, frame, tokens):
    """log p(. | one frame, tokens so far) as a list."""
    context = (model.predictor.start_context() + tokens)[-model.predictor.context_size :]
    with torch.no_grad():
        lm = model.joiner.predictor_proj(model.predictor(torch.tensor([context]), need_pad=False)[0, 0])
        return model.joiner(model.joiner.encoder_proj(frame), lm).log_softmax(-1).tolist()
