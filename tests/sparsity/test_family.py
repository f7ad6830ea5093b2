"""Several sparsities in one set of weights: members in turns, each a part of the denser one."""

import copy

import pytest
import torch
from command_cases import told
from torch import nn

from rnnt_kd.sparsity.schedules import cubic
from rnnt_kd.sparsity.sparsifier import Sparsifier
from rnnt_kd.sparsity.structures import unstructured

NAMES = ["0.weight", "2.weight"]


def make(nested=(0.5, 0.7), final=0.9, end=20, dtype=torch.float32, **options):
    torch.manual_seed(1)
    model = nn.Sequential(nn.Linear(10, 16), nn.Tanh(), nn.Linear(16, 8), nn.LayerNorm(8)).to(dtype)
    options = {"scope": "per-layer", "include": [r"(0|2)\.weight"], **options}
    sparsifier = Sparsifier(model, final, 2, end, 3, nested=nested, **options)
    return model, sparsifier, torch.optim.AdamW(model.parameters(), lr=1e-2)


def backward(model, step):
    torch.manual_seed(1000 + step)
    x = torch.randn(32, 10).to(model[0].weight.dtype)
    model.zero_grad()
    (model(x) - torch.sin(x[:, :8] * 3)).square().mean().backward()


def train(model, sparsifier, optimizer, steps):
    for step in steps:
        with sparsifier.shown(step):
            backward(model, step)
        sparsifier.mask_gradients()
        optimizer.step()
        sparsifier.step(step)


def zeros(tensors):
    return sum(int((tensors[name] == 0).sum()) for name in NAMES) / sum(tensors[name].numel() for name in NAMES)


@pytest.mark.parametrize("structure", ["unstructured", "4x1"])
@pytest.mark.parametrize("scope", ["global", "per-layer"])
def test_every_member_has_its_sparsity_and_is_a_part_of_the_denser_one(scope, structure):
    model, sparsifier, optimizer = make(scope=scope, structure=structure)
    train(model, sparsifier, optimizer, range(1, 30))
    state = model.state_dict()
    members = [sparsifier.cut(state, number) for number in range(3)]
    assert members[0] is state and sparsifier.sparsities == [0.5, 0.7, 0.9]
    for number, (tensors, sparsity) in enumerate(zip(members, sparsifier.sparsities)):
        assert zeros(tensors) == pytest.approx(sparsity, abs=0.03)
        report = sparsifier.sparsity_report(model, number)
        assert {name: kept for name, (kept, _) in report.items()} == {
            name: int(tensors[name].count_nonzero()) for name in NAMES
        }
        for name, tensor in tensors.items():
            assert torch.equal(tensor, state[name] * (tensor != 0)), name


def test_training_is_that_of_dense_masters_whose_members_take_turns():
    """The textbook form in float64, up to the freeze: dense weights in the optimizer, a masked forward."""
    model, sparsifier, optimizer = make(dtype=torch.float64)
    forward = copy.deepcopy(model)
    dense = {name: nn.Parameter(value.detach().clone()) for name, value in model.named_parameters()}
    reference = torch.optim.AdamW(list(dense.values()), lr=1e-2, weight_decay=0.0)
    optimizer.param_groups[0]["weight_decay"] = 0.0
    members = [{name: torch.ones_like(dense[name], dtype=torch.bool) for name in NAMES} for _ in range(3)]
    for step in range(1, 20):
        train(model, sparsifier, optimizer, [step])
        shown = members[[2, 0, 1][step % 3]]
        for name, value in forward.named_parameters():
            value.data = dense[name].data * shown[name] if name in NAMES else dense[name].data.clone()
        backward(forward, step)
        for name, value in forward.named_parameters():
            learns = ~members[0][name] | shown[name] if name in NAMES else torch.ones_like(value, dtype=torch.bool)
            dense[name].grad = value.grad * learns
        reference.step()
        if step > 2 and (step - 2) % 3 == 0:
            for name in NAMES:
                rest = dense[name].data.clone()
                for number, final in enumerate((0.5, 0.7, 0.9)):
                    members[number][name] = unstructured([rest], cubic(step, 2, 20, final))[0]
                    rest = rest * members[number][name]
        for name, value in model.named_parameters():
            expected = dense[name].data * members[0][name] if name in NAMES else dense[name].data
            torch.testing.assert_close(value.data, expected, atol=1e-12, rtol=1e-9)


def test_the_member_that_is_shown_learns_alone_and_the_rest_comes_back():
    model, sparsifier, optimizer = make()
    train(model, sparsifier, optimizer, range(1, 25))
    before, optional = copy.deepcopy(model.state_dict()), 0
    for step, number in ((24, 2), (25, 0), (26, 1), (27, 2)):
        with sparsifier.shown(step):
            member = {name: value.clone() for name, value in model.state_dict().items()}
            backward(model, step)
        sparsifier.mask_gradients()
        for name, value in model.state_dict().items():
            assert torch.equal(value, before[name])
            assert torch.equal(member[name], sparsifier.cut(before, number)[name])
        for name in NAMES:
            gradient = dict(model.named_parameters())[name].grad
            assert not gradient[member[name] == 0].any() and gradient[member[name] != 0].any()
            optional += int(((member[name] == 0) & (before[name] != 0)).sum())
    assert optional > 0


def test_a_resumed_family_is_the_same():
    whole = make()
    train(*whole, range(1, 28))
    for stop in (10, 24):  # on the ramp, and frozen
        parts, again = make(), make()
        train(*parts, range(1, stop))
        for new, old in zip(again, parts, strict=True):
            new.load_state_dict(copy.deepcopy(old.state_dict()))
        train(*again, range(stop, 28))
        for number in range(3):
            ours, right = (one[1].cut(one[0].state_dict(), number) for one in (again, whole))
            assert all(torch.equal(ours[name], right[name]) for name in right)
    assert "a checkpoint of this system" in told(lambda: make(nested=(0.5,))[1].load_state_dict(whole[1].state_dict()))
    assert "sparsifier state" in told(lambda: make(nested=(0.5, 0.6))[1].load_state_dict(whole[1].state_dict()))


@pytest.mark.parametrize("nested, options", [
    ((0.5, 0.5), {}), ((0.9,), {}), ((0.95,), {}), ((0.0,), {}), ((0.25,), dict(final=0.5, structure="2:4")),
])  # fmt: skip
def test_a_family_that_cannot_be_is_refused(nested, options):
    assert "sparsity.nested: " in told(make, nested=nested, **options)
