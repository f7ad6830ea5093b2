"""The process of one subject: it makes its inputs, says so, and measures a pass whenever it is told to.

It is asked first with the specification, then for passes:

    {"module": "benchmark.loss", "num_threads": 1, ...}   -> {"facts": {...}} or {"cannot": "..."}
    {"batch": 0, "with_memory": true}                     -> {"seconds", "peak_bytes", "loss", "parts"} or {"cannot"}

``subjects(specification)`` of the module gives what to measure, a (function, leaves) a batch for ``measure``, and
facts: anything that JSON has.
"""

import importlib
from typing import Any, Callable, Dict, List

import torch

from benchmark.measure import Subject, measure
from rnnt_kd.children import serve
from rnnt_kd.errors import UserError


def answerer() -> Callable[..., Dict[str, Any]]:
    """The function that answers one subject's requests.

    That it cannot run here is an answer, too: a UserError's text, "out of memory", or whatever a peer raises.  What
    our own code raises ("subject" is "ours", or not there) is raised, and ends the process with its traceback.
    """
    specification: Dict[str, Any] = {}
    subjects: List[Subject] = []

    def answer(request: Dict[str, Any], arrays: Any = ()) -> Dict[str, Any]:
        try:
            if not specification:
                specification.update(request)
                return {"facts": prepare(request)}
            function, leaves = subjects[request["batch"]]
            return measure(function, leaves, request["with_memory"])._asdict()
        except (UserError, MemoryError) as error:
            return {"cannot": str(error) or "out of memory"}
        except Exception as error:
            if isinstance(error, RuntimeError) and "memory" in str(error):  # torch's, on either device
                return {"cannot": "out of memory"}
            if specification.get("subject", "ours") == "ours":
                raise
            return {"cannot": " ".join(f"{type(error).__name__}: {error}".split())[:300]}

    def prepare(request: Dict[str, Any]) -> Dict[str, Any]:
        torch.set_num_threads(request["num_threads"])
        torch.set_flush_denormal(True)  # as in training
        made, facts = importlib.import_module(request["module"]).subjects(request)
        subjects.extend(made)
        return facts

    return answer


if __name__ == "__main__":
    serve(answerer())
