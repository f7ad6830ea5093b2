"""A model, a batch and the objective, small enough for the plain loops."""

import torch
from model_cases import transducer
from training_cases import whole_lattice

from rnnt_kd.config import TrainingConfig
from rnnt_kd.lattice import get_backend
from rnnt_kd.text.labels import padded_labels
from rnnt_kd.training.objective import Objective

SMALL = dict(num_layers=1, dim=16, feedforward_dim=16)
TRAINING = TrainingConfig(prune_range=9, lm_only_scale=0.25, simple_loss_scale=0.5, ctc_loss_scale=0.2)


def make_model(seed, blank_id=0):
    model = transducer(seed, encoder_options=SMALL, dropout=0.0, vocab_size=4, blank_id=blank_id)
    for head in (model.simple_am_proj, model.simple_lm_proj, model.ctc_output):
        torch.nn.init.normal_(head.weight)  # far from uniform: differences show
    return model


def make_batch(frames=(16, 9, 12), labels=((1, 3), (2,), ())):
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(len(frames), max(frames), 80, generator=generator) * 3 - 5
    return (features, torch.tensor(frames), *padded_labels(labels, 0))


def objective(model, training=TRAINING, kd=None, teacher=None, backend="torch"):
    return Objective(model, training, get_backend(backend), kd, teacher)


def full_lattice(model, features, lens, labels):
    """Joiner logits of every node, ranges that keep all of them, and the frames of each utterance."""
    logits, frames = whole_lattice(model, features, lens, labels)
    ranges = torch.arange(labels.size(1) + 1).expand(len(labels), logits.size(1), -1)
    return logits, ranges, frames


def transcripts(labels, label_lens):
    return [row[:length].tolist() for row, length in zip(labels, label_lens, strict=True)]
