"""Processes that take a step together move the same weights, and a row counts the frames of all."""

import pytest

from benchmark import ddp
from benchmark.turns import Measurement
from rnnt_kd.children import Worker

SPECIFICATION = dict(
    module="benchmark.ddp", num_threads=1, device="cpu", seed=1, prune_range=3, encoder="conformer", size="tiny",
    joiner_dim=8, vocab=7, batches=[[[9, 3], [8, 2]], [[11, 4]]],
)  # fmt: skip


@pytest.mark.parametrize("processes", [1, 2])
def test_a_step_of_several_processes_is_measured_as_one_of_one_is(processes, root):
    with Worker(
        "benchmark.worker", environment={"PYTHONPATH": f"{root}:{root}/plugin:{root}/packages/engine"}
    ) as worker:
        assert worker.ask({**SPECIFICATION, "processes": processes}) == {"facts": {}}
        for batch in (0, 1):
            assert worker.ask({"batch": batch, "with_memory": False})["seconds"] > 0.0


def test_rows_count_the_frames_of_all_processes():
    def job(processes, seconds):
        given = {**SPECIFICATION, "processes": processes}
        return Measurement(str(processes), given, seconds=[[seconds]] * 2, peak_bytes=[10**6] * 2)

    one, two = ddp.rows_of_group([job(1, 2.0), job(2, 2.5)])
    assert one["frames_a_second"] == (9 + 8 + 11) / 2 / 2.0 and one["times_one"] == 1.0
    assert two["frames_a_second"] == 2 * one["frames_a_second"] * 2.0 / 2.5
    assert two["times_one"] == pytest.approx(1.6)
