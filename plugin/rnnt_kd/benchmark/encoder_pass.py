"""Encoders in engines, on one utterance at a time: what ``bench_infer`` measures.

A specification says which system ("system_dir", or a "size" with random weights, "structure", "sparsity" and
"seed"), which "engine", and where the features lie ("features", a ``.npz`` file).
"""

import time
from pathlib import Path
from typing import Any, Callable, Dict, List, Sequence, Tuple

import numpy as np
import torch
from torch import Tensor, nn

from rnnt_kd.benchmark.engines import compile_encoder
from rnnt_kd.benchmark.measure import measure
from rnnt_kd.benchmark.worker import Subject
from rnnt_kd.config import SparsityConfig
from rnnt_kd.errors import UserError
from rnnt_kd.inference.structure import structure_of
from rnnt_kd.models import build_transducer
from rnnt_kd.sparsity.report import select_parameters
from rnnt_kd.sparsity.sparsifier import Sparsifier
from rnnt_kd.systems.store import load_system

VOCAB, DIM = 500, 512  # of random systems, which are not decoded


def encoder_subjects(specification: Dict[str, Any]) -> Tuple[List[Subject], Dict[str, Any]]:
    """Nothing to time, but facts: bytes of the weights; peak_bytes of loading the encoder into the engine and encoding
    the longest utterance, which needs a process of its own; structure and sparsity of the weights; non_zeros."""
    engine, longest = specification["engine"], max(read_features(specification["features"]), key=len)
    model = make_model(specification)
    try:
        compile_encoder(_random_model("tiny", 0).encoder, engine)(longest[:64])  # the engine's own code is loaded now
    except UserError:  # it wants zeros
        pass
    made = []

    def load_and_run() -> None:
        made.append(compile_encoder(model.encoder, engine))
        made[0](longest)

    peak_bytes = measure(load_and_run, [torch.zeros(1)], with_memory=True).peak_bytes
    return [], {"bytes": made[0].num_bytes, "peak_bytes": peak_bytes, **describe_weights(model)}


def time_in_turns(
    encoders: Sequence[Callable[[Tensor], Tensor]], features: Sequence[Tensor], parts: int, rounds: int,
    tell: Callable[[], object] = lambda: None,
) -> List[List[List[float]]]:  # fmt: skip
    """Seconds of each encoder -> part of the utterances -> round, in one process.

    Every part has long and short utterances, one encoded after the other.  Part by part all encoders have their
    turn, each time another one first, so disturbances fall on all alike.  ``tell`` is called after every part.
    """
    batches = [features[start::parts] for start in range(min(parts, len(features)))]
    seconds: List[List[List[float]]] = [[[] for _ in batches] for _ in encoders]
    for encode in encoders:
        for batch in batches:
            encode(batch[0])
    for turn in range(rounds):
        for number, batch in enumerate(batches):
            first = (turn + number) % len(encoders)
            for index in [*range(first, len(encoders)), *range(first)]:
                start = time.perf_counter()
                for x in batch:
                    encoders[index](x)
                seconds[index][number].append(time.perf_counter() - start)
            tell()
    return seconds


def read_features(path: str) -> List[Tensor]:
    """The arrays of a ``.npz`` file, (T, 80) each, in their order."""
    with np.load(path) as archive:
        return [torch.from_numpy(archive[name]) for name in archive.files]


def make_model(specification: Dict[str, Any]) -> nn.Module:
    """The transducer of a specification, in eval mode.  UserError: no such system, size or structure."""
    if "system_dir" in specification:
        return load_system(Path(specification["system_dir"]))[0]
    model = _random_model(specification["size"], specification["seed"])
    if specification["sparsity"]:
        choice = SparsityConfig()
        sparsifier = Sparsifier(
            model, specification["sparsity"], 0, 0, structure=specification["structure"], include=choice.include,
            exclude=choice.exclude,
        )  # fmt: skip
        sparsifier.step(1)
    return model


def describe_weights(model: nn.Module) -> Dict[str, Any]:
    """Of the encoder's matrices that are sparsified: the structure of their zeros, "mixed" where they differ, and
    the fraction of zeros; and of the encoder, its weights that are not zero."""
    choice = SparsityConfig()
    weights = select_parameters(model, choice.include, choice.exclude)
    weights = {name: weight.detach().numpy() for name, weight in weights.items() if name.startswith("encoder.")}
    found = {structure_of(weight) for weight in weights.values()}
    total, zeros = (sum(count(weight) for weight in weights.values()) for count in (np.size, _zeros))
    return {
        "structure": found.pop() if len(found) == 1 else "mixed",
        "sparsity": zeros / total,
        "non_zeros": sum(int(parameter.count_nonzero()) for parameter in model.encoder.parameters()),
    }


def _zeros(weight: np.ndarray) -> int:
    return weight.size - int(np.count_nonzero(weight))


def _random_model(size: str, seed: int) -> nn.Module:
    torch.manual_seed(seed)
    model = build_transducer(
        encoder="conformer", size=size, encoder_options={}, predictor_dim=DIM, joiner_dim=DIM, dropout=0.0,
        ctc_head=False, vocab_size=VOCAB, blank_id=0,
    )  # fmt: skip
    return model.eval().requires_grad_(False)
