"""Promises of the sparsifier: reference of dense masters, recovery, freezing, exact zeros, resume, errors."""

import copy
import re

import pytest
import torch
from torch import nn

from rnnt_kd.errors import UserError
from rnnt_kd.sparsity.report import measured_sparsity, sparsity_report
from rnnt_kd.sparsity.schedules import cubic
from rnnt_kd.sparsity.sparsifier import Sparsifier
from rnnt_kd.sparsity.structures import get_structure, unstructured

INCLUDE = [r"(0|2)\.weight"]


def make_model(seed=1):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(10, 16), nn.Tanh(), nn.Linear(16, 8), nn.LayerNorm(8))


def make_sparsifier(model, final=0.8, begin=2, end=20, every=3, **options):
    return Sparsifier(model, final, begin, end, every, **{"include": INCLUDE, "scope": "per-layer", **options})


def make_optimizer(model):
    return torch.optim.AdamW(model.parameters(), lr=1e-2)


def backward(model, step):
    torch.manual_seed(1000 + step)
    x = torch.randn(32, 10).to(model[0].weight.dtype)
    model.zero_grad()
    (model(x) - torch.sin(x[:, :8] * 3)).square().mean().backward()


def train(model, optimizer, sparsifier, steps):
    for step in steps:
        backward(model, step)
        optimizer.step()
        sparsifier.step(step)


@pytest.mark.parametrize(
    "make",
    [lambda p: torch.optim.SGD(p, lr=0.1), lambda p: torch.optim.AdamW(p, lr=1e-2, weight_decay=0)],
    ids=["sgd", "adamw"],
)
@pytest.mark.parametrize("scope", ["global", "per-layer"])
def test_equals_dense_masters_with_masked_forward(make, scope):
    """The textbook form: dense weights in the optimizer, a masked forward, a straight-through gradient."""
    model, forward = make_model().double(), make_model().double()
    optimizer, sparsifier = make(model.parameters()), make_sparsifier(model, scope=scope)
    dense = {n: nn.Parameter(p.detach().clone()) for n, p in forward.named_parameters()}
    masks = {n: torch.ones_like(p, dtype=torch.bool) for n, p in dense.items()}
    reference = make(list(dense.values()))
    for step in range(1, 20):  # up to the freeze
        train(model, optimizer, sparsifier, [step])
        for n, p in forward.named_parameters():
            p.data = dense[n].data * masks[n]
        backward(forward, step)
        for n, p in forward.named_parameters():
            dense[n].grad = p.grad.clone()
        reference.step()
        if step > 2 and (step - 2) % 3 == 0:
            together = [sparsifier.names] if scope == "global" else [[name] for name in sparsifier.names]
            for names in together:
                masks.update(zip(names, unstructured([dense[n].data for n in names], cubic(step, 2, 20, 0.8))))
        for n, p in model.named_parameters():
            assert step > 4 or torch.equal(p.data, dense[n].data)  # nothing happens before the first masks
            torch.testing.assert_close(p.data, dense[n].data * masks[n], atol=1e-12, rtol=1e-9)
    kept = [kept for kept, _ in sparsifier.sparsity_report(model).values()]
    assert sum(kept) < 288 / 4 and (scope == "global" or kept[0] < 160 / 4)


def test_a_ramp_may_begin_with_a_jump():
    model = make_model()
    sparsifier = make_sparsifier(model, initial_sparsity=0.5)
    train(model, make_optimizer(model), sparsifier, range(1, 5))
    assert sparsifier.current_target == 0.0  # begins after step 2, the first masks come with step 5
    train(model, make_optimizer(model), sparsifier, [5])
    assert sparsifier.current_target == cubic(5, 2, 20, 0.8, 0.5) > 0.5
    assert sparsifier.sparsity_report(model)["0.weight"][0] == 160 - round(sparsifier.current_target * 160)


def test_weights_come_back_until_the_ramp_ends_and_never_after():
    model = make_model()
    sparsifier, optimizer = make_sparsifier(model, every=1), make_optimizer(model)
    returned, previous = 0, None
    for step in range(1, 41):
        train(model, optimizer, sparsifier, [step])
        kept = model[0].weight.detach() != 0
        if previous is not None:
            returned += int((kept & ~previous).sum()) if step <= 20 else 0
            assert step <= 20 or torch.equal(kept, previous)
        assert sparsifier.frozen == (step >= 20)
        previous = kept
    assert returned > 0


def test_a_dropped_weight_returns_when_it_grows_and_one_that_does_not_keeps_its_value():
    model = nn.Sequential(nn.Linear(4, 1, bias=False))
    model[0].weight.data = torch.tensor([[1.0, 2.0, 3.0, 4.0]])
    sparsifier = Sparsifier(model, 0.5, 0, 3, 1, include=[r"0\.weight"])
    sparsifier.step(2)  # target 0.5 * (1 - 1/27): two of four
    assert model[0].weight.tolist() == [[0.0, 0.0, 3.0, 4.0]]
    with torch.no_grad():
        model[0].weight[0, 0] += 5.0  # an optimizer's update: dense 1 + 5
    sparsifier.step(3)
    assert model[0].weight.tolist() == [[6.0, 0.0, 0.0, 4.0]] and sparsifier.frozen
    with torch.no_grad():
        model[0].weight += 100.0
    sparsifier.step(4)
    assert model[0].weight.tolist() == [[106.0, 0.0, 0.0, 104.0]]


@pytest.mark.parametrize("steps", [13, 30])  # ended on the ramp, ended after it
def test_zeros_are_exact_after_finalize_and_as_many_as_asked(steps):
    model = make_model()
    sparsifier = make_sparsifier(model)
    train(model, make_optimizer(model), sparsifier, range(1, steps + 1))
    sparsifier.finalize()
    report = sparsifier.sparsity_report(model)
    target = sparsifier.current_target
    assert target == (0.8 if steps == 30 else cubic(11, 2, 20, 0.8))
    assert report == {n: (t - round(target * t), t) for n, t in {"0.weight": 160, "2.weight": 128}.items()}
    dropped = model.state_dict()["0.weight"][~sparsifier.state_dict()["0.weight.weight_mask"]]
    assert (dropped == 0).all() and not torch.signbit(dropped).any()  # +0.0, also in a file
    assert type(model[0]) is nn.Linear and set(model.state_dict()) == set(make_model().state_dict())
    whole = sparsity_report(model)
    assert set(whole) == {n for n, _ in model.named_parameters()}
    assert measured_sparsity(whole) < measured_sparsity(report) == pytest.approx(target, abs=0.01)


def test_zeros_are_exact_at_every_step_survive_averaging_after_the_ramp_and_go_to_other_models():
    model = make_model()
    sparsifier, optimizer = make_sparsifier(model), make_optimizer(model)
    sums = {}
    for step in range(1, 26):
        train(model, optimizer, sparsifier, [step])
        if step == 12:
            assert sparsifier.sparsity_report(model)["0.weight"][0] == 160 - round(cubic(11, 2, 20, 0.8) * 160)
        if step >= 20:
            sums = {n: sums.get(n, 0) + p.detach() for n, p in model.named_parameters()}
    average = make_model(2)
    average.load_state_dict({n: s / 6 for n, s in sums.items()})
    assert sparsifier.sparsity_report(average) == sparsifier.sparsity_report(model)
    other = make_model(3)
    sparsifier.apply_masks(other)
    assert sparsifier.sparsity_report(other) == sparsifier.sparsity_report(model)


@pytest.mark.parametrize("killed_at", [1, 7, 11, 19, 20, 24])
@pytest.mark.parametrize("scope", ["per-layer", "global"])
def test_a_resumed_run_is_bit_identical(killed_at, scope):
    def start(seed):
        model = make_model(seed)
        return model, make_optimizer(model), make_sparsifier(model, scope=scope)

    straight = start(1)
    train(*straight, range(1, 31))
    first = start(1)
    train(*first, range(1, killed_at + 1))
    saved = [*(copy.deepcopy(part.state_dict()) for part in first[:2]), first[2].state_dict()]
    assert all(isinstance(v, torch.Tensor) for v in saved[2].values())
    train(*first, range(killed_at + 1, 31))  # the sparsifier's state is a snapshot
    second = start(99)
    for part, state in zip(second, saved, strict=True):
        part.load_state_dict(state)
    train(*second, range(killed_at + 1, 31))
    for a, b in zip(straight[0].state_dict().values(), second[0].state_dict().values(), strict=True):
        assert torch.equal(a, b)
    a, b = straight[2].state_dict(), second[2].state_dict()
    assert a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def test_foreign_states_are_refused_and_change_nothing():
    model = make_model()
    sparsifier = make_sparsifier(model)
    train(model, make_optimizer(model), sparsifier, range(1, 8))
    good = sparsifier.state_dict()
    bad = [
        {},
        {k: v for k, v in good.items() if not k.startswith("2.")},
        {**good, "5.weight.weight_mask": good["2.weight.weight_mask"]},
        {**good, "0.weight.hidden": torch.zeros(3, 3)},
        make_sparsifier(make_model(), final=0.6).state_dict(),
        make_sparsifier(make_model(), end=21).state_dict(),
    ]
    for state in bad:
        with pytest.raises(UserError):
            sparsifier.load_state_dict(state)
    assert all(torch.equal(v, good[k]) for k, v in sparsifier.state_dict().items())


def test_global_scope_lets_matrices_compete():
    model = make_model()
    model[2].weight.data *= 100
    Sparsifier(model, 0.5, 0, 1, 1, include=INCLUDE).step(1)  # the default
    report = sparsity_report(model, ["0.weight", "2.weight"])
    assert report == {"0.weight": (16, 160), "2.weight": (128, 128)}  # 144 of 288, all from the small one
    flat = torch.cat([make_model()[0].weight.flatten(), 100 * make_model()[2].weight.flatten()])
    kept = torch.cat([model[0].weight.flatten(), model[2].weight.flatten()])
    assert torch.equal(kept, flat * unstructured([flat], 0.5)[0])


@pytest.mark.parametrize("structure, kept", [("unstructured", 3), ("2x1", 2)])
def test_no_matrix_vanishes_however_small_its_weights(structure, kept):
    """A tenth of what it would keep by itself, 0.02 of 160, stays; the others pay for it."""
    model = make_model()
    model[0].weight.data *= 1e-6
    largest = model[0].weight.detach().abs().flatten().topk(kept).indices
    Sparsifier(model, 0.8, 0, 1, 1, structure=structure, include=INCLUDE).step(1)
    report = sparsity_report(model, ["0.weight", "2.weight"])
    assert kept <= report["0.weight"][0] <= kept + 2 and torch.isfinite(model[0].weight).all()
    assert structure != "unstructured" or set((model[0].weight.flatten() != 0).nonzero().squeeze(1).tolist()) == set(
        largest.tolist()
    )
    total = sum(count for count, _ in report.values())
    assert 288 - round(0.8 * 288) <= total <= 288 - round(0.8 * 288) + 1


def test_a_tenth_that_is_less_than_a_weight_is_one():
    model = make_model()
    model[0].weight.data *= 1e-6
    Sparsifier(model, 0.99, 0, 1, 1, include=INCLUDE).step(1)
    assert sparsity_report(model, ["0.weight", "2.weight"]) == {"0.weight": (1, 160), "2.weight": (2, 128)}


def test_gradients_of_dropped_weights_are_masked_only_after_the_ramp():
    model = make_model()
    sparsifier, optimizer = make_sparsifier(model), make_optimizer(model)
    train(model, optimizer, sparsifier, range(1, 15))
    dropped = model[0].weight == 0
    sparsifier.mask_gradients()
    assert (model[0].weight.grad[dropped] != 0).any()
    train(model, optimizer, sparsifier, range(15, 22))
    dropped = model[0].weight == 0
    assert (model[0].weight.grad[dropped] != 0).any()
    sparsifier.mask_gradients()
    assert (model[0].weight.grad[dropped] == 0).all() and (model[0].weight.grad[~dropped] != 0).any()


@pytest.mark.parametrize("options, words", [
    (dict(structure="blocks"), "unstructured"),
    (dict(structure="nn"), "unstructured"),
    (dict(scope="layer"), "global, per-layer"),
    (dict(final=1.0), "[0, 1)"),
    (dict(initial_sparsity=0.9), "initial sparsity: 0.9; expected from 0 to the final one, 0.8"),
    (dict(initial_sparsity=float("nan")), "initial sparsity: nan"),
    (dict(final=90), "0.9"),
    (dict(final=float("nan")), "[0, 1)"),
    (dict(begin=5, end=4), "begin <= end"),
    (dict(every=0), "at least 1"),
    (dict(structure="2:4", final=0.9), "0.5"),
    (dict(structure="4:4", final=0.5), "2:4"),
    (dict(structure="0x4"), "16x1"),
    (dict(structure="4x4", include=[r"(0|3)\.weight"]), "3.weight is a vector"),
])  # fmt: skip
def test_wrong_values_are_named(options, words):
    with pytest.raises(UserError, match=re.escape(words)):
        make_sparsifier(make_model(), **options)


@pytest.mark.parametrize("include, exclude, words", [
    ([r"0\.weight", r"encoder\..*"], [], r"encoder\\..*"),
    ([r"0"], [], "0.weight"),
    ([r"0\.weight"], [r".*weight"], "leaves no parameter"),
    ([r"(0\.weight"], [], "regular expression"),
    ([], [], "leaves no parameter"),
])  # fmt: skip
def test_patterns_that_match_nothing_are_errors(include, exclude, words):
    with pytest.raises(UserError, match=re.escape(words)):
        Sparsifier(make_model(), 0.5, 0, 10, include=include, exclude=exclude)


@pytest.mark.parametrize("structure, final", [("4x4", 0.75), ("2:4", 0.5), ("1x16", 0.5)])
def test_structured_masks_are_those_of_the_dense_weights(structure, final):
    """On the ramp a dropped block comes back when its dense weights grow; at the end the structure is whole."""
    model = make_model()
    optimizer, sparsifier = make_optimizer(model), make_sparsifier(model, final=final, structure=structure)
    train(model, optimizer, sparsifier, range(1, 25))
    sparsifier.finalize()
    for name in sparsifier.names:
        weight = dict(model.named_parameters())[name].detach()
        mask = weight != 0
        assert torch.equal(
            get_structure(structure)([weight], final)[0], mask
        )  # zeros are whole blocks: the least of all
