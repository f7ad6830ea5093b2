"""Learning rates, parameter groups, optimizers by name, and their state on its way through a file."""

import math

import pytest
import torch
from model_cases import transducer

from rnnt_kd.config import TrainingConfig
from rnnt_kd.errors import UserError
from rnnt_kd.systems.store import read_tensors, write_tensors
from rnnt_kd.training import optimizers
from rnnt_kd.training.learning_rates import cosine
from rnnt_kd.training.optimizer import load_optimizer_tensors, make_optimizer, optimizer_tensors, parameter_groups


def rate(step, **changes):
    return cosine(step, **{**dict(peak=1.0, warmup_steps=10, total_steps=110, final_fraction=0.1), **changes})


def test_learning_rate_rises_linearly_then_falls_as_a_cosine():
    assert [rate(step) for step in range(10)] == pytest.approx([0.1 * (step + 1) for step in range(10)])
    assert rate(59) == pytest.approx(0.1 + 0.9 * 0.5)  # half of the way down
    assert rate(34) == pytest.approx(0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi / 4)))
    assert rate(109) == pytest.approx(0.1)
    assert rate(5000) == pytest.approx(0.1)


@pytest.mark.parametrize("changes", [dict(warmup_steps=0), dict(total_steps=5), dict(total_steps=10)])
def test_learning_rate_of_degenerate_runs(changes):
    assert all(0.0 < rate(step, **changes) <= 1.0 for step in range(120))


def model():
    return transducer(encoder_options=dict(num_layers=1))


def test_norms_biases_and_embeddings_do_not_decay():
    network = model()
    decay, keep = parameter_groups(network, 0.01)
    decaying = {id(parameter) for parameter in decay["params"]}
    assert decay["weight_decay"] == 0.01 and keep["weight_decay"] == 0.0
    assert len(decay["params"]) + len(keep["params"]) == len(list(network.parameters()))
    for name, parameter in network.named_parameters():
        exempt = parameter.ndim < 2 or any(word in name for word in ("norm", "bias", "embedding"))
        assert (id(parameter) in decaying) == (not exempt), name
    assert any("linear" in name and id(parameter) in decaying for name, parameter in network.named_parameters())


def by_name(monkeypatch, kind, **options):
    """A function of this test, as if it stood in ``optimizers.py``; returns a configuration that names it."""

    def of_this_test(groups, config, device):
        return kind(groups, lr=config.learning_rate, **options)

    of_this_test.__module__ = optimizers.__name__
    monkeypatch.setattr(optimizers, "of_this_test", of_this_test, raising=False)
    return TrainingConfig(optimizer="of-this-test")


@pytest.mark.parametrize("kind, options", [
    (None, {}),
    (torch.optim.SGD, {"momentum": 0.9}),
    (torch.optim.Adagrad, {}),
    (torch.optim.NAdam, {}),  # keeps a product of numbers
    (torch.optim.ASGD, {}),  # keeps eta and mu
    (torch.optim.Rprop, {}),
])  # fmt: skip
def test_state_of_any_optimizer_goes_through_a_file_without_change(monkeypatch, tmp_path, kind, options):
    def run(steps, network, optimizer, start=0):
        for step in range(start, start + steps):
            generator = torch.Generator().manual_seed(step)
            for parameter in network.parameters():
                parameter.grad = torch.randn(parameter.shape, generator=generator)
            optimizer.step()

    config = TrainingConfig() if kind is None else by_name(monkeypatch, kind, **options)
    whole = model()
    run(6, whole, make_optimizer(whole, config))
    first, second = model(), model()
    optimizer = make_optimizer(first, config)
    assert type(optimizer) is (kind or torch.optim.AdamW)
    run(3, first, optimizer)
    second.load_state_dict(first.state_dict())
    resumed = make_optimizer(second, config)
    write_tensors(tmp_path / "file", optimizer_tensors(optimizer, first))
    load_optimizer_tensors(resumed, second, read_tensors(tmp_path / "file"), "file", "")
    run(3, second, resumed, start=3)
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), second.parameters(), strict=True))


def test_a_state_for_another_model_is_named():
    network, foreign = model(), {"other.weight/exp_avg": torch.zeros(1)}
    with pytest.raises(UserError, match="optimizer.safetensors.*'other.weight/exp_avg'"):
        load_optimizer_tensors(make_optimizer(network, TrainingConfig()), network, foreign, "optimizer.safetensors", "")
