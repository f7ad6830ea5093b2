"""The tiny transducer learns from scratch at the recipes' learning rate."""

import torch
import torch.nn.functional as F

from rnnt_kd.models import build_transducer


def build(dropout=0.1, **options):
    torch.manual_seed(8)
    return build_transducer(
        encoder="conformer",
        size="tiny",
        encoder_options=options,
        predictor_dim=128,
        joiner_dim=128,
        dropout=dropout,
        ctc_head=True,
        vocab_size=80,
        blank_id=0,
    ).train()


def test_learns_a_small_task_from_scratch():
    """CTC on eight random 'utterances' whose labels are patterns in the features: the loss must fall below 0.3."""
    model = build(dropout=0.0, num_layers=2)
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3, betas=(0.9, 0.98))
    patterns = torch.randn(6, 80) * 3
    y = torch.randint(1, 6, (8, 5))
    x = torch.randn(8, 120, 80) - 7.5 + patterns[y].repeat_interleave(24, dim=1)
    for step in range(60):
        optimizer.param_groups[0]["lr"] = 2e-3 * min(1.0, (step + 1) / 20)
        out, lens = model.encode(x, torch.full((8,), 120))
        log_probs = model.ctc_output(out).log_softmax(2).transpose(0, 1)
        loss = F.ctc_loss(log_probs, y, lens, torch.full((8,), 5))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss < 0.3, loss
