"""Blank, label and rest: against log_softmax, with gradients."""

import torch
from hypothesis import given
from hypothesis import strategies as st
from lattice_cases import gradients

from rnnt_kd.lattice.node_log_probs import node_log_probs


def by_softmax(logits, labels, blank):
    probs = logits.softmax(dim=-1)
    classes = torch.arange(logits.shape[-1])
    is_rest = (classes != blank) & (classes != labels.unsqueeze(-1))
    label = probs.gather(-1, labels.unsqueeze(-1)).squeeze(-1)
    return torch.stack((probs[..., blank], label, (probs * is_rest).sum(-1))).log()


@given(st.integers(0, 10**6), st.integers(3, 7), st.integers(0, 2))
def test_value_and_gradient(seed, C, blank):
    generator = torch.Generator().manual_seed(seed)
    logits = 3.0 * torch.randn(2, 3, C, generator=generator, dtype=torch.float64)
    labels = torch.randint(0, C, (2, 3), generator=generator)  # blank itself among them
    exists = torch.stack((labels >= 0, labels != blank, labels >= 0))
    found = gradients(lambda x: torch.stack(node_log_probs(x, labels, blank))[exists], logits)
    torch.testing.assert_close(found, gradients(lambda x: by_softmax(x, labels, blank)[exists], logits))
    assert (node_log_probs(logits, labels, blank)[1][labels == blank] < -1e29).all()


def test_a_rest_far_below_keeps_its_digits():
    """float32: p(blank) + p(label) rounds to 1, and the rest lies under exp(-100)."""
    logits = torch.tensor([[0.0, 0.5, -150.0, -151.0]])
    log_rest = node_log_probs(logits, torch.tensor([1]), 0)[2]
    true = logits.double().log_softmax(-1)[0, 2:].logsumexp(0)
    torch.testing.assert_close(log_rest[0].double(), true, rtol=1e-6, atol=0.0)


def test_backward_twice_over_one_graph():
    logits = torch.randn(3, 4, requires_grad=True)
    total = sum(x.sum() for x in node_log_probs(logits, torch.tensor([1, 2, 0]), 0))
    (first,) = torch.autograd.grad(total, logits, retain_graph=True)
    (second,) = torch.autograd.grad(total, logits)
    assert torch.equal(first, second)
