"""Medians, ratios, agreement and growth of memory, from measured passes of losses."""

import pytest

from benchmark.loss_rows import disagreements, growth, growth_table, results_table, rows_of_group
from benchmark.plot import plot_results
from benchmark.turns import Measurement

BATCHES = [[[10, 4]] * 8, [[20, 4]] * 8, [[30, 4]] * 8]


def job(
    subject, variant="none", seconds=1.0, peak=10**8, vocab=500, batches=BATCHES, losses=(5.0, 6.0, 7.0), cannot=None
):
    """``seconds`` and ``peak`` of the middle batch; the others have half and twice as much."""
    impl = "torch" if subject == "ours" else None
    return Measurement(
        f"{subject} {variant}",
        dict(subject=subject, variant=variant, vocab=vocab, batches=batches, prune_range=5, impl=impl),
        seconds=[[0.8 * seconds * f, 3.0 * seconds * f, seconds * f] for f in (0.5, 1.0, 2.0)],
        peak_bytes=[round(peak * f) for f in (0.5, 1.0, 2.0)],
        losses=list(losses),
        facts={"impl": impl, "lattice": {"torchaudio": "full", "matmul": ""}.get(subject, "pruned")},
        cannot=cannot,
    )


def group(vocab=500):
    return [
        job("ours", "none", 0.3, 30 * 10**6, vocab),
        job("ours", "cache", 0.4, 35 * 10**6, vocab),
        job("k2", "none", 0.8, 10**8, vocab),
        job("matmul", "none", 0.2, 0, vocab),
    ]


def test_a_row_is_the_median_over_batches_of_the_medians_over_rounds():
    row = rows_of_group([job("ours", seconds=2.0)])[0]
    assert (row["seconds"], row["low"], row["high"]) == (2.0, 1.6, 6.0)  # the mean would be 3.2
    assert (row["peak_mb"], row["rounds"], row["batch"]) == (100.0, 3, 8)
    assert [batch["nodes"] for batch in row["batches"]] == [400, 800, 1200]
    assert [batch["frames"] for batch in row["batches"]] == [10, 20, 30]


def test_ratios_are_to_k2_without_a_teacher_and_to_the_matrix_products():
    _, cache, k2, matmul = rows_of_group(group())
    assert cache["time_vs_k2"] == pytest.approx(0.5) and cache["memory_vs_k2"] == pytest.approx(0.35)
    assert cache["time_vs_matmul"] == pytest.approx(2.0)
    assert k2["time_vs_k2"] == k2["memory_vs_k2"] == 1.0
    assert matmul["time_vs_k2"] is None and matmul["time_vs_matmul"] == 1.0


def test_without_k2_there_is_no_ratio_to_it():
    rows = rows_of_group([job("ours", "cache"), job("naive"), job("k2", cannot="not installed"), job("matmul")])
    assert [(row["peer"], row["impl"]) for row in rows] == [(None, "torch"), ("naive", None), ("matmul", None)]
    assert all(row["time_vs_k2"] is None and row["memory_vs_k2"] is None for row in rows)


def test_memory_grows_by_bytes_a_class_and_bytes_a_node():
    rows = []
    for vocab in (500, 5000):
        for size in (8, 16):
            made = job("ours", vocab=vocab, batches=[[[T, 4]] * size for T in (10, 20, 30)])
            made.peak_bytes = [10_000 + 2052 * vocab + 300 * size * T * 5 for T in (10, 20, 30)]
            rows += rows_of_group([made])
    ((name, variant, a_class, a_node),) = growth(rows)
    assert (name, variant, round(a_class), round(a_node)) == ("ours (torch)", "none", 2052, 300)
    ((*_, only_one_size, _),) = growth(rows_of_group([job("ours")]))
    assert only_one_size is None


def test_results_that_differ_are_named():
    agree = [job("ours"), job("k2"), job("ours", "online", losses=(9, 9, 9)), job("torchaudio", losses=(4, 4, 4))]
    assert disagreements(agree, 1e-3) == []
    for wrong in [job("naive", losses=(5.0, 6.1, 7.0)), job("naive", losses=(5.0, float("nan"), 7.0))]:
        (sentence,) = disagreements([*agree, wrong], 1e-3)
        assert "naive none" in sentence and "batch 1" in sentence and "6" in sentence
    rounded, wrong = job("ours", "cache", losses=(9.05, 9, 9)), job("ours", "cache", losses=(9.5, 9, 9))
    assert disagreements([*agree, rounded], 1e-3) == []
    assert len(disagreements([*agree, wrong], 1e-3)) == 1


def test_tables_hold_every_row_and_the_least_that_any_loss_needs():
    rows = rows_of_group(group())
    text = results_table(rows)
    assert len(text.splitlines()) == 2 + len(rows)
    assert "0.500" in text and "ours (torch)" in text and "0.4000" in text
    assert "2052" in growth_table(rows, joiner_dim=512, bytes_a_number=4)


def test_plot_of_two_vocabularies_is_a_picture(tmp_path):
    rows = [row for vocab in (500, 5000) for row in rows_of_group(group(vocab))]
    plot_results(rows, tmp_path / "plot.png", "title")
    assert (tmp_path / "plot.png").read_bytes().startswith(b"\x89PNG")
