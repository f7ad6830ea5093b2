"""Node scores: against the plain loops and whole logits, on odd shapes, padding and bad input.

The measure of an error is that of whole logits in the same precision, see ``joiner_cases.py``.
"""

import logging

import pytest
import reference
import torch
from hypothesis import given
from joiner_cases import (
    DTYPES,
    IMPLS,
    NOTHING,
    ODD_SHAPES,
    JoinerCase,
    allowed_error,
    assert_no_worse,
    every_impl,
    joiner_cases,
    make_joiner_case,
    odd_case,
    place_for,
    three_ways,
    value_and_gradients,
)

from rnnt_kd.errors import UserError
from rnnt_kd.losses.kept_nodes import KeptNodes, kept_nodes
from rnnt_kd.losses.node_scores import JoinerParts, choose_impl, node_scores, torch_impl

SEEDS = range(4)
IN_HALF_PRECISION = {"one label", "503 classes of 77 features", "pruned before", "no bias", "one feature"}  # by Triton


def scored(nodes, impl="torch"):
    """joiner -> its scores, (3, B, T, s_range); of an empty class one number."""
    return lambda joiner: torch.stack(node_scores(joiner, nodes, impl=impl)).clamp(min=NOTHING)


@given(joiner_cases())
def test_value_and_gradient_are_the_plain_loops(case):
    nodes, lattice = case.nodes, case.lattice

    def specified(joiner):
        logits = reference.joiner_logits(*joiner[:4], lattice.ranges)
        values = []
        for b, t, k in nodes.node_mask.nonzero().tolist():
            s = int(lattice.ranges[b, t, k])
            label = lattice.transcripts[b][s] if s < len(lattice.transcripts[b]) else None
            values += [x for x in reference.posteriors(logits[b, t, k], label, lattice.blank) if x is not None]
        return torch.stack(values)

    def found(joiner):
        values = torch.stack(node_scores(joiner, nodes, impl="torch"), dim=-1)[nodes.node_mask].reshape(-1)
        return values[values > NOTHING]

    for ours, theirs in zip(value_and_gradients(case.student, found), value_and_gradients(case.student, specified)):
        torch.testing.assert_close(ours, theirs, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("shape, temperature, dtype, impl", [
    (*shape, dtype, impl)
    for shape in [*((name, 1.0) for name in ODD_SHAPES), ("no bias", 2.5), ("peaky", 2.5)]
    for dtype in DTYPES for impl in IMPLS
    if impl == "torch" or torch.finfo(dtype).bits > 16 or shape[0] in IN_HALF_PRECISION
])  # fmt: skip
def test_no_worse_than_whole_logits(shape, temperature, dtype, impl):
    """The temperature divides the logits."""
    runs = [three_ways(place_for(impl, odd_case(shape, seed).to(dtype)), impl, temperature) for seed in SEEDS]
    found = runs[0][0]
    assert found[0].dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert all(grad.dtype == dtype for grad in found[1:])
    if dtype == torch.float64:  # which naive and true are, alike
        for ours, right in zip(found, runs[0][2]):
            torch.testing.assert_close(ours, right, rtol=1e-10, atol=1e-12)
    else:
        assert_no_worse(runs, allowed_error(impl, dtype))


@every_impl
@pytest.mark.parametrize(
    "bias, N, is_sorted", [(True, 70, True), (False, 70, True), (True, 90, False), (True, 0, True)]
)
def test_split_logits_of_any_rows(bias, N, is_sorted, impl):
    """The seam of the implementations: rows in any order, some unused, and labels that are blank; no node at all."""
    generator = torch.Generator().manual_seed(0)
    C, J, blank = 9, 5, 4
    joiner = JoinerParts(*(torch.randn(*x, generator=generator) for x in ((12, J), (20, J), (C, J), (C,))))
    if not bias:
        joiner = joiner._replace(bias=None)
    joiner = place_for(impl, JoinerCase(None, joiner, joiner)).student
    rows = [torch.randint(0, high, (N,), generator=generator).to(joiner.am.device) for high in (12, 20, C)]
    am_rows, lm_rows, labels = rows[0].sort().values if is_sorted else rows[0], rows[1], rows[2]
    assert (labels == blank).any() or N == 0
    module = choose_impl(impl, joiner)

    def found(x):
        rows = (labels, am_rows, lm_rows, blank)
        return torch.stack(module.split_logits(*x[:4], *rows, torch.tanh))

    def specified(x):
        logits = torch.nn.functional.linear((x.am[am_rows] + x.lm[lm_rows]).tanh(), x.weight, x.bias)
        classes = torch.arange(C, device=labels.device)
        is_own = (classes == blank) | (classes == labels.unsqueeze(1))
        own = (logits[:, blank], logits.gather(1, labels.unsqueeze(1)).squeeze(1))
        return torch.stack((*own, logits.masked_fill(is_own, 10 * NOTHING).logsumexp(dim=1)))

    ours, right = (value_and_gradients(joiner, function) for function in (found, specified))
    torch.testing.assert_close(ours, right, rtol=1e-4, atol=1e-5)


@every_impl
def test_blank_alone_is_certain(impl):
    """C = 1: neither a label nor a rest."""
    joiner = JoinerParts(torch.randn(1, 3, 4), torch.randn(1, 1, 4), torch.randn(1, 4), torch.randn(1))
    nodes = kept_nodes(
        torch.zeros(1, 0, dtype=torch.int64), torch.zeros(1, 3, 1, dtype=torch.int64), 0, None, "regular"
    )
    case = place_for(impl, JoinerCase(None, joiner, joiner))
    nodes = KeptNodes(*(x.to(case.student.am.device) if torch.is_tensor(x) else x for x in vars(nodes).values()))
    value, *grads = value_and_gradients(case.student, lambda x: node_scores(x, nodes, impl=impl).log_blank)
    _, log_label, log_rest = node_scores(case.student, nodes, impl=impl)
    assert (log_label < NOTHING).all() and (log_rest < NOTHING).all()
    assert not value.any() and not any(grad.any() for grad in grads)


@every_impl
def test_rest_of_almost_no_probability(impl):
    """p(blank) = 1 - 1e-22: 1 - p(blank) - p(label) would have no correct digit in float32."""
    runs = []
    for seed in SEEDS:
        case = place_for(impl, make_joiner_case(seed, B=2, T=5, S=3, C=6).to(torch.float32))
        case.student.bias[case.lattice.blank] += 50.0
        runs.append(three_ways(case, impl))
    assert (runs[0][0][0] < -40.0).any()
    assert_no_worse(runs, allowed_error(impl, torch.float32))


@every_impl
@pytest.mark.parametrize("size", [1e3, 1e10, 1e20])
def test_extreme_logits_stay_finite(impl, size):
    case = place_for(impl, make_joiner_case(5, B=2, T=5, S=3, C=6, logit_scale=size).to(torch.float32))
    for part in value_and_gradients(case.student, lambda x: scored(case.nodes, impl)(x).exp()):
        assert torch.isfinite(part).all()


@every_impl
def test_symbols_ruled_out_by_minus_infinity(impl):
    """A masked vocabulary, down to no rest at all: no NaN."""
    case = place_for(impl, make_joiner_case(5, B=2, T=5, S=3, C=6).to(torch.float32))
    nodes = case.nodes
    used = {case.lattice.blank, *nodes.labels.flatten().tolist()}
    bias = case.student.bias.clone()
    bias[[c for c in range(6) if c not in used]] = float("-inf")
    joiner = case.student._replace(bias=bias)
    value, *grads = value_and_gradients(joiner, lambda x: torch.stack(node_scores(x, nodes, impl=impl)).exp())
    assert all(torch.isfinite(part).all() for part in (value, *grads))
    torch.testing.assert_close(value.sum(dim=0)[nodes.node_mask], torch.ones(int(nodes.node_mask.sum())).to(value))


@every_impl
@pytest.mark.parametrize("pruned", [False, True])
def test_padding_is_never_computed(pruned, impl):
    """NaN on it: in the scores of no node, and with a gradient of exactly zero; its scores are zero."""
    case = make_joiner_case(12, B=3, T=8, S=6, C=7, J=5, pruned=pruned, s_range=4)
    case = place_for(impl, case.to(torch.float32))
    nodes, (am, lm, *rest) = case.nodes, case.student
    T, S = nodes.ranges.shape[1], nodes.symbols.shape[1]
    frames, symbols = nodes.boundary[:, 3:], nodes.boundary[:, 2:3]
    if pruned:
        am_padding = lm_padding = ~nodes.node_mask
    else:
        am_padding = torch.arange(T, device=am.device) >= frames
        lm_padding = torch.arange(S + 1, device=am.device) > symbols
    assert am_padding.any() and lm_padding.any()
    poisoned = JoinerParts(am.clone(), lm.clone(), *rest)
    poisoned.am[am_padding], poisoned.lm[lm_padding] = float("nan"), float("nan")
    expected = value_and_gradients(case.student, scored(nodes, impl))
    found = value_and_gradients(poisoned, scored(nodes, impl))
    for clean, part in zip(expected, found):
        assert torch.equal(part, clean)
    assert not found[1][am_padding].any() and not found[2][lm_padding].any()
    assert not found[0][:, ~nodes.node_mask].any()
    is_end = nodes.node_mask & (nodes.labels == nodes.termination_symbol)
    assert is_end.any() and (torch.stack(node_scores(case.student, nodes, impl=impl))[1][is_end] < NOTHING).all()


def test_pruned_without_a_copy_is_scored_once_per_frame():
    """k2's pruning repeats the encoder's side by strides: the same bits as before the pruning."""
    case = make_joiner_case(4, B=2, T=6, S=4, C=7, J=5).to(torch.float32)
    nodes, (am, lm, *rest) = case.nodes, case.student
    repeated = am.unsqueeze(2).expand(*nodes.ranges.shape, 5)
    assert torch.equal(scored(nodes)(case.student), scored(nodes)(JoinerParts(repeated, lm, *rest)))


@every_impl
def test_strides_of_the_inputs_do_not_matter(impl):
    case = place_for(impl, make_joiner_case(4, B=3, T=6, S=4, C=7, J=5).to(torch.float32))
    nodes, (am, lm, weight, bias, *_) = case.nodes, case.student
    other = JoinerParts(
        am.transpose(0, 1).contiguous().transpose(0, 1),
        lm.transpose(1, 2).contiguous().transpose(1, 2),
        weight.t().contiguous().t(),
        torch.stack((bias, bias), dim=1)[:, 0],
    )
    found, expected = (value_and_gradients(joiner, scored(nodes, impl)) for joiner in (other, case.student))
    torch.testing.assert_close(found, expected)


@every_impl
@pytest.mark.parametrize("wanted", [("am",), ("lm",), ("weight",), ("bias",), ("weight", "bias"), ("am", "lm")])
def test_gradients_of_some_inputs_only(wanted, impl):
    case = place_for(impl, make_joiner_case(4, B=2, T=6, S=4, C=7, J=5).to(torch.float32))
    nodes = case.nodes

    def grads(names):
        leaves = {name: getattr(case.student, name).detach().clone() for name in ("am", "lm", "weight", "bias")}
        inputs = [leaves[name].requires_grad_() for name in names]
        score = scored(nodes, impl)(JoinerParts(**leaves))
        found = torch.autograd.grad((score * torch.arange(score.numel()).reshape(score.shape).to(score)).sum(), inputs)
        return dict(zip(names, found))

    everything = grads(("am", "lm", "weight", "bias"))
    assert all(torch.equal(grad, everything[name]) for name, grad in grads(wanted).items())


def test_an_activation_may_work_in_place():
    case = make_joiner_case(3, activation=torch.relu)
    in_place = case.student._replace(activation=torch.nn.ReLU(inplace=True))
    found, right = (
        value_and_gradients(joiner, lambda x: node_scores(x, case.nodes, impl="torch").log_blank.sum())
        for joiner in (in_place, case.student)
    )
    assert all(torch.equal(a, b) for a, b in zip(found, right))


@pytest.mark.parametrize("rows", [1, 2, -1, 0, 1000])
def test_any_size_of_block(rows, monkeypatch):
    """One node at a time; N - 1, N and more nodes at once."""
    case = make_joiner_case(8, B=3, T=6, S=4, C=7, J=5)
    function = scored(case.nodes)
    expected = value_and_gradients(case.student, function)
    N = int(case.nodes.node_mask.sum())
    monkeypatch.setattr(torch_impl, "MOST_ROWS", rows if rows > 0 else N + rows)
    found = value_and_gradients(case.student, function)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


def test_auto_says_what_it_chose(caplog):
    case = make_joiner_case(4).to(torch.float64)
    with caplog.at_level(logging.DEBUG, logger="rnnt_kd.losses.node_scores"):
        assert choose_impl("auto", case.student) is torch_impl
    assert "node scores: torch, on cpu" in caplog.text
    assert "node scores: not triton (" in caplog.text
    assert all(record.levelno == logging.DEBUG for record in caplog.records)


def test_an_impossible_implementation_is_named():
    case = make_joiner_case(1)  # float64, which no GPU kernel here takes
    with pytest.raises(UserError, match="impl: 'triton' cannot run: .*choose auto or torch"):
        node_scores(case.student, case.nodes, impl="triton")
