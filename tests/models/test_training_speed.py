"""The tiny transducer can be trained on one CPU thread, and it learns from scratch at the recipes' learning rate."""

import time

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


def test_a_training_step_is_much_faster_than_real_time():
    """About 350 times real time on one core of 2019; the bound, in CPU time, leaves room for a slower one."""
    model = build()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    x, x_lens, y = torch.randn(8, 800, 80) * 3.5 - 7.5, torch.full((8,), 800), torch.randint(1, 80, (8, 30))
    times = []
    for _ in range(4):
        start = time.process_time()
        optimizer.zero_grad()
        out, _ = model.encode(x, x_lens)
        lm = model.joiner.predictor_proj(model.predict(y))
        logits = model.joiner(model.joiner.encoder_proj(out).unsqueeze(2).expand(-1, -1, 5, -1), lm[:, :5].unsqueeze(1))
        (logits.square().mean() + model.ctc_output(out).square().mean()).backward()
        optimizer.step()
        times.append(time.process_time() - start)
    assert 64 / min(times) > 60, times


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
