"""The process of one subject: it makes its inputs, says so, and measures a pass whenever it is told to.

Lines of JSON.  In: first the specification, then requests; at the end of the input it leaves.

    {"batches": [[[T, S], ...], ...], "device": "cpu", ...}       -> {"ready": {...}} or {"cannot": "..."}
    {"batch": 0, "with_memory": true}                             -> {"seconds": ..., "peak_bytes": ..., "loss": ...}
"""

import json
from typing import Any, Callable, Dict, List, Optional, Sequence, TextIO, Tuple

import torch
from torch import Tensor

from rnnt_kd.benchmark import matmul, ours
from rnnt_kd.benchmark.loss_inputs import make_inputs
from rnnt_kd.benchmark.measure import measure
from rnnt_kd.benchmark.peers import get_peer
from rnnt_kd.benchmark.shapes import Batch
from rnnt_kd.errors import UserError

SMALL_BATCH: Batch = [(24, 6), (20, 4)]  # for the warm-up

Subject = Tuple[Callable[[], Optional[Tensor]], Sequence[Tensor]]  # what to run, and what gets the gradients
Make = Callable[[Dict[str, Any]], Tuple[List[Subject], Dict[str, Any]]]


def serve(make: Make, requests: TextIO, answers: TextIO) -> None:
    """Answer until the input ends.

    ``make`` turns the specification into the subjects, one a batch, and facts about them.  Subjects that cannot run here are an answer: a UserError's text, or "out of memory".
    """

    def answer(**values: Any) -> None:
        answers.write(json.dumps(values) + "\n")
        answers.flush()

    try:
        specification = json.loads(requests.readline())
        torch.set_num_threads(specification["num_threads"])
        subjects, facts = make(specification)
        answer(ready=facts)
        for line in iter(requests.readline, ""):
            request = json.loads(line)
            function, leaves = subjects[request["batch"]]
            answer(**measure(function, leaves, request["with_memory"])._asdict())
    except (UserError, MemoryError) as error:
        answer(cannot=str(error) or "out of memory")
    except RuntimeError as error:  # torch's own "out of memory" is one, on either device
        if "memory" not in str(error):
            raise
        answer(cannot="out of memory")


def loss_subjects(specification: Dict[str, Any]) -> Tuple[List[Subject], Dict[str, Any]]:
    """The loss of ``specification["subject"]`` on each batch, warmed up on a small one."""
    subject, variant = specification["subject"], specification["variant"]
    device = torch.device(specification["device"])
    sizes = {key: specification[key] for key in ("vocab", "joiner_dim", "prune_range", "seed")}
    sizes.update(dtype=getattr(torch, specification["dtype"]), device=device)
    module = ours if subject == "ours" else matmul if subject == "matmul" else get_peer(subject)
    facts = {"impl": None, "lattice": module.LATTICE}

    def prepared(batch: Batch) -> Subject:
        inputs = make_inputs(batch, **sizes)
        if subject == "ours":
            facts["impl"] = ours.chosen_impl(inputs, specification["impl"])
            return ours.prepare(inputs, variant, facts["impl"]), inputs.leaves
        return module.prepare(inputs, variant), inputs.leaves

    small = prepared(SMALL_BATCH)
    for _ in range(2):
        measure(*small, with_memory=False)
    subjects = [prepared([tuple(shape) for shape in batch]) for batch in specification["batches"]]
    if device.type == "cuda":  # kernels are compiled and chosen for the true sizes
        for function, leaves in subjects:
            measure(function, leaves, with_memory=False)
    return subjects, facts
