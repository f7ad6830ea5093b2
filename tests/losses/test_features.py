"""The feature term against plain loops in float64, and layers found by their names."""

import pytest
import torch
from torch import nn

from rnnt_kd.errors import UserError
from rnnt_kd.losses.features import feature_loss, layer_names, paired_layers, recorded


def random_layers(generator, widths, shape=(3, 7)):
    return [torch.randn(*shape, width, generator=generator, dtype=torch.float64) for width in widths]


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("widths, others", [((4, 4), (4, 4)), ((3,), (5,)), ((6, 4, 2), (4, 4, 4)), ((1,), (1,))])
def test_it_is_the_plain_loops_whatever_the_padding_holds(seed, widths, others):
    generator = torch.Generator().manual_seed(seed)
    own, theirs = random_layers(generator, widths), random_layers(generator, others)
    frames = torch.tensor([7, 3, 5])
    own[0].requires_grad_()
    found = feature_loss(own, theirs, frames, 7)
    valid = [(b, t) for b in range(3) for t in range(int(frames[b]))]
    expected = 0.0
    for h, t in zip(own, theirs, strict=True):
        rows, wanted = (torch.stack([layer[place] for place in valid]) for layer in (h, t))
        if rows.shape[1] != wanted.shape[1]:
            rows = rows @ torch.linalg.lstsq(rows, wanted).solution  # autograd through it: the gradient's reference
        expected = expected + sum((a - b).pow(2).sum() for a, b in zip(rows, wanted, strict=True)) / sum(
            b.pow(2).sum() for b in wanted
        )
    expected = expected * 15 / len(widths)
    assert found.item() == pytest.approx(expected.item(), rel=1e-4)
    (gradient,) = torch.autograd.grad(found, own[0])
    (wanted,) = torch.autograd.grad(expected, own[0])
    torch.testing.assert_close(gradient, wanted, rtol=1e-3, atol=1e-3)
    for layer in (*own, *theirs):
        layer.data[1, 3:] = 1e3
    assert feature_loss(own, theirs, frames, 7).item() == found.item()


def test_a_teacher_that_is_silent_is_finite():
    zeros, own = torch.zeros(1, 4, 3), torch.ones(1, 4, 2, requires_grad=True)
    feature_loss([own], [zeros], torch.tensor([4]), 4).backward()
    assert torch.isfinite(own.grad).all()
    assert torch.isfinite(feature_loss([zeros], [torch.ones(1, 4, 5)], torch.tensor([4]), 4))
    assert not torch.isfinite(feature_loss([own * torch.inf], [torch.ones(1, 4, 5)], torch.tensor([4]), 4))


@pytest.mark.parametrize(
    "own, theirs",
    [((2, 8, 3), (2, 9, 3)), ((8, 2, 3), (8, 2, 3)), ((2, 16, 3), (2, 16, 3)), ((2, 8, 3), (8, 2, 3))],
    ids=["another rate", "time first", "before a subsampling", "the teacher's time first"],
)
def test_layers_of_another_shape_than_the_encoders_output_are_named(own, theirs):
    with pytest.raises(UserError, match=r"kd.feature_layers: gives .*; expected \(2, 8, width\) in both"):
        feature_loss([torch.ones(own)], [torch.ones(theirs)], torch.tensor([8, 4]), 8)


def test_the_map_is_the_best_one_of_badly_scaled_layers_too():
    generator = torch.Generator().manual_seed(0)
    scales = torch.logspace(-3, 0, 24)
    h = torch.randn(1, 900, 24, generator=generator) * scales + 3.0
    t = torch.randn(1, 900, 40, generator=generator) * 0.05 + (h - 3.0) / scales @ torch.randn(
        24, 40, generator=generator
    )
    rows, wanted = h[0].double(), t[0].double()
    residual = wanted - rows @ torch.linalg.lstsq(rows, wanted).solution
    expected = 900 * residual.pow(2).sum() / wanted.pow(2).sum()
    assert feature_loss([h], [t], torch.tensor([900]), 900).item() == pytest.approx(expected.item(), rel=0.02)


@pytest.mark.parametrize(
    "own, theirs, expected", [(4, 4, [0, 1, 2, 3]), (2, 4, [1, 3]), (1, 4, [3]), (3, 4, [0, 2, 3]), (3, 5, [1, 2, 4])]
)
def test_layers_are_paired_from_the_last_one(own, theirs, expected):
    student, teacher = (nn.ModuleList(nn.Linear(1, 1) for _ in range(count)) for count in (own, theirs))
    assert paired_layers(student, teacher, [r"\d"]) == ([str(k) for k in range(own)], [str(k) for k in expected])


def test_fewer_layers_of_the_teacher_are_named():
    with pytest.raises(UserError, match="2 of the student, 1 of the teacher"):
        paired_layers(nn.ModuleList([nn.ReLU(), nn.ReLU()]), nn.ModuleList([nn.ReLU()]), [r"\d"])


class Toy(nn.Module):
    """Its second layer is called first."""

    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(2, 2), nn.Linear(2, 2), nn.LSTM(2, 2)])

    def forward(self, x):
        return self.layers[0](self.layers[1](x))


def test_layers_are_given_in_the_order_of_their_names_and_no_hook_stays():
    toy, x = Toy(), torch.randn(1, 3, 2)
    names = layer_names(toy, [r"layers\.[01]"], "student")
    with recorded(toy, names) as given:
        result = toy(x)
    assert names == ["layers.0", "layers.1"] and torch.equal(given[0], result)
    assert torch.equal(given[1], toy.layers[1](x))
    with pytest.raises(RuntimeError, match="mat1"), recorded(toy, names):
        toy(torch.randn(1, 3, 5))
    with pytest.raises(UserError, match=r"layers\.2 gives no"), recorded(toy, ["layers.2"]):
        toy(x)
    assert not any(module._forward_hooks for module in toy.modules())
