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

    ``make`` turns the specification into the subjects, one a batch, and facts about them.  That
    they cannot run here is an answer, too: a UserError's text, "out of memory", or whatever a peer
    raises.  Our own errors end the process, with their traceback.
    """

    def answer(**values: Any) -> None:
        answers.write(json.dumps(values) + "\n")
        answers.flush()

    specification = json.loads(requests.readline())
    try:
        torch.set_num_threads(specification["num_threads"])
        torch.set_flush_denormal(True)  # as in training
        subjects, facts = make(specification)
        answer(ready=facts)
        for line in iter(requests.readline, ""):
            request = json.loads(line)
            function, leaves = subjects[request["batch"]]
            answer(**measure(function, leaves, request["with_memory"])._asdict())
    except (UserError, MemoryError) as error:
        answer(cannot=str(error) or "out of memory")
    except Exception as error:
        if isinstance(error, RuntimeError) and "memory" in str(error):  # torch's, on either device
            answer(cannot="out of memory")
        elif specification.get("subject", "ours") == "ours":
            raise
        else:
            answer(cannot=" ".join(f"{type(error).__name__}: {error}".split())[:300])


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
    warm_up(subjects, device)
    return subjects, facts


def warm_up(subjects: Sequence[Subject], device: torch.device) -> None:
    """Passes of full size: kernels are chosen, and the allocator settles.

    On a CPU the longest batch, the last one, is enough; on a GPU kernels are compiled for each size.
    """
    for function, leaves in subjects if device.type == "cuda" else subjects[-1:]:
        measure(function, leaves, with_memory=False)
