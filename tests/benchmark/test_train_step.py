"""A step of the benchmark is a training step: weights move, a teacher runs only where it should."""

import pytest
import torch

from benchmark import train_step
from benchmark.turns import Measurement

SPECIFICATION = dict(
    device="cpu", seed=1, prune_range=3, encoder="conformer", size="tiny", joiner_dim=8, vocab=7,
    batches=[[[9, 3], [8, 2]], [[11, 4]]],
)  # fmt: skip


@pytest.mark.parametrize("variant, models", [("none", 1), ("online", 2), ("cache", 2)])
def test_steps_move_all_weights_and_only_online_runs_a_teacher(variant, models, monkeypatch):
    made, kd = [], []
    build, weighted_sum = train_step.build_transducer, train_step.weighted_sum
    monkeypatch.setattr(train_step, "build_transducer", lambda **sizes: made.append(build(**sizes)) or made[-1])

    def recorded(terms, scales):
        kd.append(float(terms["kd"].detach()) * scales["kd"])
        return weighted_sum(terms, scales)

    monkeypatch.setattr(train_step, "weighted_sum", recorded)
    subjects, _ = train_step.subjects({**SPECIFICATION, "variant": variant})
    assert len(made) == models and len(subjects) == 2
    if variant == "cache":  # it was filled by then
        monkeypatch.setattr(made[1], "encode", lambda *_: pytest.fail("the cache's teacher runs in a step"))
    before = {name: value.clone() for name, value in made[0].state_dict().items()}
    teacher = [parameter.clone() for model in made[1:] for parameter in model.parameters()]
    for step, parameters in subjects:
        assert step() is None
        assert all(parameter.grad is None for parameter in parameters)
    after = made[0].state_dict()
    assert all(torch.isfinite(value).all() for value in after.values())
    still = [name for name in before if before[name].is_floating_point() and torch.equal(before[name], after[name])]
    assert still == []
    assert all(map(torch.equal, teacher, [p for model in made[1:] for p in model.parameters()]))
    assert all(value == 0.0 for value in kd) if variant == "none" else all(value > 0.0 for value in kd)


def test_rows_have_ratios_to_the_step_without_distillation():
    def job(variant, seconds, cannot=None):
        specification = {**SPECIFICATION, "variant": variant}
        return Measurement(variant, specification, seconds=[[seconds]] * 2, peak_bytes=[10**6] * 2, cannot=cannot)

    none, cache = train_step.rows_of_group([job("none", 2.0), job("online", 9.0, "out of memory"), job("cache", 2.1)])
    assert (
        none["time_vs_none"] == 1.0 and cache["time_vs_none"] == pytest.approx(1.05) and cache["memory_vs_none"] == 1.0
    )
    (alone,) = train_step.rows_of_group([job("cache", 2.0)])
    assert alone["time_vs_none"] is None
