"""Whoever takes part computes what it should: a benchmark of wrong results is none."""

import ast

import pytest
import reference
import torch

from benchmark.loss_inputs import make_inputs
from benchmark.peers import ALWAYS, available_peers, get_peer, matmul_peer, ours_lean_peer, ours_peer
from rnnt_kd.lattice.prune_ranges import do_rnnt_pruning

CPU = torch.device("cpu")
BATCH = [(5, 3), (4, 2)]


@pytest.fixture
def small():
    return make_inputs(BATCH, vocab=5, joiner_dim=4, prune_range=3, dtype=torch.float64, device=CPU, seed=1)


def pruned_logits(joiner, ranges):
    am, lm = do_rnnt_pruning(joiner[0], joiner[1], ranges)
    return torch.tanh(am + lm) @ joiner[2].t() + joiner[3]


def transcripts(made):
    return [made.symbols[b, :S].tolist() for b, (_, S) in enumerate(BATCH)]


def expected_loss(made, lattice, variant):
    """By the plain loops of ``reference.py``."""
    symbols, frames = transcripts(made), [T for T, _ in BATCH]
    if lattice == "full":
        B, T, S1 = made.am.shape[0], made.am.shape[1], made.lm.shape[1]
        ranges = torch.arange(S1).expand(B, T, S1)
    else:
        ranges = made.ranges
    logits = pruned_logits(made.leaves, ranges)
    losses = reference.rnnt_losses_pruned(logits, symbols, ranges, 0, frames)
    if variant != "none":
        teacher = pruned_logits(made.teacher, ranges)
        losses = losses + reference.kd_losses(
            logits, teacher, symbols, ranges, 0, frames, variant="collapsed", weighting="occupancy"
        )
    return losses.mean()


def compare(function, made, lattice, variant, tolerance):
    loss = function()
    loss.backward()
    found = [leaf.grad.clone() for leaf in made.leaves]
    expected = expected_loss(made, lattice, variant)
    torch.testing.assert_close(loss.to(expected.dtype), expected, rtol=tolerance, atol=tolerance)
    for mine, right in zip(found, torch.autograd.grad(expected, made.leaves)):
        torch.testing.assert_close(mine, right.to(mine.dtype), rtol=10 * tolerance, atol=10 * tolerance)


LOSSES = [name for name in available_peers() if get_peer(name).LATTICE and name != "ours_lean"]


@pytest.mark.parametrize("name", LOSSES)
def test_a_peer_computes_the_loss_and_its_gradient(name, small):
    peer = get_peer(name)
    reason = peer.why_not(CPU)
    if reason is not None:
        pytest.skip(f"{name}: {reason}")
    for variant in peer.VARIANTS:
        for leaf in small.leaves:
            leaf.grad = None
        # logits.float(): peers compute in float32
        compare(peer.prepare(small, variant), small, peer.LATTICE, variant, tolerance=1e-5)


@pytest.mark.parametrize("variant, tolerance", [("none", 1e-6), ("online", 1e-6), ("cache", 2e-3)])
@pytest.mark.parametrize("peer", [ours_peer, ours_lean_peer])
def test_ours_computes_the_loss_and_its_gradient(peer, variant, tolerance, small):
    """The cached teacher is rounded to float16."""
    compare(peer.prepare(small, variant, "torch"), small, "pruned", variant, tolerance)


def test_a_cached_pass_reads_no_teacher(small):
    """Whatever becomes of the teacher after the cache is made."""
    function = ours_peer.prepare(small, "cache", "torch")
    before = function().detach()
    for tensor in small.teacher:
        tensor.fill_(float("nan"))
    assert torch.equal(function().detach(), before)


def test_matmul_does_the_three_products_of_the_valid_nodes(small, monkeypatch):
    products = matmul_peer.prepare(small, "none")
    true_mm, sizes = torch.mm, []

    def mm(a, b, out):
        sizes.append((tuple(a.shape), tuple(b.shape)))
        return true_mm(a, b, out=out)

    monkeypatch.setattr(torch, "mm", mm)
    assert products() is None
    N = small.num_nodes
    assert N == 5 * 3 + 4 * 3
    assert sizes == [((N, 4), (4, 5)), ((N, 5), (5, 4)), ((5, N), (N, 4))]


def test_every_peer_has_the_whole_interface():
    for name in [*available_peers(), *ALWAYS]:
        peer = get_peer(name)
        assert set(peer.VARIANTS) <= {"none", "online", "cache"} and peer.LATTICE in ("pruned", "full", "")
        small, large = (peer.estimated_bytes(2, 10, 4, 3, C, 8) for C in (10, 1000))
        assert 0 < small < large
        reason = peer.why_not(CPU)
        assert reason is None or reason


def test_what_only_a_peer_or_the_picture_needs_comes_in_by_one_door(root):
    doors = {package: f"peers/{package}_peer.py" for package in ("k2", "torchaudio", "warprnnt_numba")}
    doors["matplotlib"] = "plot.py"
    found = set()
    for path in (root / "benchmark").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            packages = {name.split(".")[0] for name in names} & set(doors)
            found |= {(package, path.relative_to(root / "benchmark").as_posix()) for package in packages}
    assert found == set(doors.items())
