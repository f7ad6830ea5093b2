"""Medians, ratios, goals and slopes, from measured passes."""

import pytest

from rnnt_kd.benchmark.plot import check, plot_results
from rnnt_kd.benchmark.results import JSON_KEYS, disagreements, goals, rows_of_group, slopes
from rnnt_kd.benchmark.rounds import Job
from rnnt_kd.benchmark.table import goals_table, results_table, slopes_table
from rnnt_kd.errors import UserError

BATCHES = [[[10, 4]] * 8, [[20, 4]] * 8, [[30, 4]] * 8]


def job(
    subject, variant="none", seconds=1.0, peak=10**8, vocab=500, batches=BATCHES, losses=(5.0, 6.0, 7.0), **changed
):
    """``seconds`` and ``peak`` of the middle batch; the others have half and twice as much."""
    impl = "torch" if subject == "ours" else None
    made = Job(
        f"{subject} {variant}",
        dict(subject=subject, variant=variant, vocab=vocab, batches=batches, prune_range=5, impl=impl),
        seconds=[[0.8 * seconds * f, 3.0 * seconds * f, seconds * f] for f in (0.5, 1.0, 2.0)],
        peak_bytes=[round(peak * f) for f in (0.5, 1.0, 2.0)],
        losses=list(losses),
        facts={"impl": impl, "lattice": {"torchaudio": "full", "matmul": ""}.get(subject, "pruned")},
    )
    for name, value in changed.items():
        setattr(made, name, value)
    return made


def group(vocab=500, **changed):
    return [
        job("ours", "none", 0.3, 30 * 10**6, vocab),
        job("ours", "online", 0.5, 40 * 10**6, vocab),
        job("ours", "cache", 0.4, 35 * 10**6, vocab),
        job("k2", "none", 0.8, 10**8, vocab),
        job("torchaudio", "none", 8.0, 10**9, vocab),
        job("matmul", "none", 0.2, 0, vocab),
    ]


def test_a_row_is_the_median_over_batches_of_the_medians_over_rounds():
    row = rows_of_group([job("ours", seconds=2.0)])[0]
    assert (row.seconds, row.low, row.high) == (2.0, 1.6, 6.0)  # the mean would be 3.2
    assert (row.peak_mb, row.rounds, row.batch) == (100.0, 3, 8)
    assert [batch["nodes"] for batch in row.batches] == [400, 800, 1200]
    assert [batch["frames"] for batch in row.batches] == [10, 20, 30]


def test_ratios_are_to_k2_without_a_teacher_and_to_the_matrix_products():
    rows = {(row.peer or "ours", row.variant): row for row in rows_of_group(group())}
    cache = rows["ours", "cache"]
    assert cache.time_vs_k2 == pytest.approx(0.5) and cache.memory_vs_k2 == pytest.approx(0.35)
    assert cache.time_vs_matmul == pytest.approx(2.0)
    assert rows["k2", "none"].time_vs_k2 == rows["k2", "none"].memory_vs_k2 == 1.0
    assert rows["matmul", "none"].time_vs_k2 is None and rows["matmul", "none"].time_vs_matmul == 1.0


def test_without_k2_there_is_no_ratio_to_it():
    rows = rows_of_group([job("ours", "cache"), job("naive"), job("k2", cannot="not installed"), job("matmul")])
    assert len(rows) == 3
    assert all(row.time_vs_k2 is None and row.memory_vs_k2 is None for row in rows)


def test_json_has_exactly_the_promised_keys():
    ours, k2 = rows_of_group([job("ours", "cache"), job("k2")])
    assert tuple(ours.to_json()) == JSON_KEYS
    assert set(JSON_KEYS) == {
        "variant", "impl", "peer", "vocab", "batch", "seconds", "peak_mb", "time_vs_k2", "memory_vs_k2", "time_vs_matmul"
    }  # fmt: skip
    assert (ours.to_json()["impl"], ours.to_json()["peer"]) == ("torch", None)
    assert (k2.to_json()["impl"], k2.to_json()["peer"]) == (None, "k2")


def test_goals_on_a_cpu():
    found = {goal.what: goal for goal in goals(rows_of_group(group()), "cpu")}
    assert set(found) == {
        "cache, C=500: time ÷ k2", "cache, C=500: memory ÷ k2", "cache, C=500: time ÷ matmul",
        "online, C=500: time ÷ k2", "online, C=500: memory ÷ k2",
        "none, C=500: time ÷ torchaudio", "none, C=500: memory ÷ torchaudio",
    }  # fmt: skip
    assert found["cache, C=500: time ÷ k2"].limit == 0.8 and found["cache, C=500: time ÷ k2"].is_reached
    assert found["none, C=500: memory ÷ torchaudio"].value == pytest.approx(0.03)
    at_5000 = {goal.what: goal for goal in goals(rows_of_group(group(5000)), "cpu")}
    assert not at_5000["cache, C=5000: time ÷ matmul"].is_reached  # 2.0 > 1.6
    assert goals(rows_of_group([job("ours", "cache", batches=[[[10, 4]]] * 3), job("k2")]), "cpu") == []


def test_goals_against_k2_hold_without_its_pruning_too():
    found = goals(
        rows_of_group([job("ours", "cache", 0.5), job("k2", seconds=1.0), job("k2_indexed", seconds=0.6)]), "cpu"
    )
    times = {goal.what: goal.is_reached for goal in found if "time" in goal.what}
    assert times == {"cache, C=500: time ÷ k2": True, "cache, C=500: time ÷ k2_indexed": False}


def test_goals_against_matmul_hold_with_our_kernels_too():
    found = goals(
        rows_of_group([job("ours", "cache", 0.5), job("matmul", seconds=0.3), job("matmul_onednn", seconds=0.1)]), "cpu"
    )
    assert {goal.what: goal.is_reached for goal in found} == {
        "cache, C=500: time ÷ matmul": True, "cache, C=500: time ÷ matmul_onednn": False
    }  # fmt: skip


def test_goals_on_a_gpu_are_against_the_naive_loss_of_the_same_variant():
    jobs = [
        job("ours", "online", 0.4),
        job("naive", "none", 0.5),
        job("naive", "online", 1.0),
        job("matmul", seconds=0.25),
    ]
    found = {goal.what: goal.value for goal in goals(rows_of_group(jobs), "cuda")}
    assert found["online, C=500: time ÷ naive"] == pytest.approx(0.4)
    assert found["online, C=500: time ÷ matmul"] == pytest.approx(1.6)


def test_slopes_are_bytes_a_class_and_bytes_a_node():
    rows = []
    for vocab in (500, 5000):
        for size in (8, 16):
            batches = [[[T, 4]] * size for T in (10, 20, 30)]
            made = job("ours", vocab=vocab, batches=batches)
            made.peak_bytes = [10_000 + 2052 * vocab + 300 * size * T * 5 for T in (10, 20, 30)]
            rows += rows_of_group([made])
    (slope,) = slopes(rows)
    assert slope.bytes_a_class == pytest.approx(2052) and slope.bytes_a_node == pytest.approx(300)
    (only_one_size,) = slopes(rows_of_group([job("ours")]))
    assert only_one_size.bytes_a_class is None


def test_results_that_differ_are_named():
    agree = [job("ours"), job("k2"), job("ours", "online", losses=(9, 9, 9)), job("torchaudio", losses=(4, 4, 4))]
    assert disagreements(agree, 1e-3) == []
    for wrong in [job("naive", losses=(5.0, 6.1, 7.0)), job("naive", losses=(5.0, float("nan"), 7.0))]:
        (sentence,) = disagreements([*agree, wrong], 1e-3)
        assert "naive none" in sentence and "batch 1" in sentence and "6" in sentence
    rounded, wrong = job("ours", "cache", losses=(9.05, 9, 9)), job("ours", "cache", losses=(9.5, 9, 9))
    assert disagreements([*agree, rounded], 1e-3) == []
    assert len(disagreements([*agree, wrong], 1e-3)) == 1


def test_tables_hold_every_row_and_verdict():
    rows = rows_of_group(group())
    text = results_table(rows)
    assert len(text.splitlines()) == 1 + len(rows)
    assert "0.500" in text and "ours (torch)" in text and "0.4000" in text
    verdicts = goals_table(goals(rows_of_group(group(5000)), "cpu"))
    assert "NOT reached" in verdicts and "1.6" in verdicts
    assert "2052" in slopes_table(slopes(rows), joiner_dim=512, bytes_a_number=4)


@pytest.mark.parametrize("vocabs", [(500,), (500, 5000)])
def test_plot_is_a_picture(tmp_path, vocabs):
    rows = [row for vocab in vocabs for row in rows_of_group(group(vocab))]
    plot_results(rows, tmp_path / "new" / "plot.png", "title")
    assert (tmp_path / "new" / "plot.png").read_bytes().startswith(b"\x89PNG")


def test_a_plot_that_cannot_be_is_said_before_measuring(tmp_path):
    with pytest.raises(UserError, match=".png"):
        check(tmp_path / "plot.txt")
