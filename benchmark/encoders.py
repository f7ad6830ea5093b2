"""Encoders in engines, one utterance at a time; or on a GPU in batches, dense and 2:4.

A specification says which system ("system_dir", or a "size" with random weights, "structure", "sparsity" and
"seed"), which "engine", and which utterances ("data_dir", or random features where that is None).
"""

from pathlib import Path
from types import SimpleNamespace
from typing import Any, Callable, Dict, List, Optional, Sequence, Tuple

import numpy as np
import torch
from torch import Tensor, nn

from benchmark.engines import compile_encoder
from benchmark.measure import Subject, measure
from benchmark.speech import usable_speech, word_figures
from rnnt_kd.config import SparsityConfig
from rnnt_kd.data.speech import Speech, filter_banks
from rnnt_kd.errors import UserError
from rnnt_kd.export.size_table import recognise_torch, sparsify
from rnnt_kd.models import build_transducer
from rnnt_kd.models.transducer import Transducer
from rnnt_kd.sparsity.report import select_parameters
from rnnt_kd.systems.store import load_system
from rnnt_kd.text.tokenizer import Tokenizer
from rnnt_kd_engine import CompiledEncoder
from rnnt_kd_engine.structure import structure_of

VOCAB, DIM = 500, 512  # of random systems, which are not decoded
RANDOM_SECONDS = (1.5, 2.5, 3.5, 5.0, 7.5)  # of speech, where there is none
DENSE = {"structure": "unstructured", "sparsity": 0.0}


def subjects(specification: Dict[str, Any]) -> Tuple[List[Subject], Dict[str, Any]]:
    """An encoder on each batch of utterance numbers, one after the other.

    Facts: bytes of the weights; peak_bytes of loading the encoder into the engine and encoding the longest utterance;
    structure, sparsity and non_zeros of the weights; with "bpe_dir" the word figures, other words being those that the
    torch engine's output does not give.
    """
    if specification["device"] == "cuda":
        return _on_gpu(specification), {}
    speech, features = read_features(specification["data_dir"], specification["seed"])
    engine, longest, model = specification["engine"], max(features, key=len), make_model(specification)
    try:
        tiny = random_model("tiny", 0).get_submodule("encoder")
        compile_encoder(tiny, engine)(longest[:64])  # the engine's own code is loaded now
    except UserError:  # it wants zeros
        pass
    made: List[CompiledEncoder] = []

    def load_and_run() -> None:
        made.append(compile_encoder(model.get_submodule("encoder"), engine))
        made[0](longest)

    peak_bytes = measure(load_and_run, [torch.zeros(1)], with_memory=True).peak_bytes
    encode = made[0]
    facts = {"bytes": encode.num_bytes, "peak_bytes": peak_bytes, **describe_weights(model)}
    if specification["bpe_dir"] is not None:
        tokenizer = Tokenizer.load(Path(specification["bpe_dir"]))
        settings = (model, features, tokenizer, specification["search"], specification["beam"])
        dense = compile_encoder(model.get_submodule("encoder"), "torch")
        refs = {item.id: item.text for item in speech}
        facts.update(word_figures(refs, *(dict(zip(refs, recognise(one, *settings))) for one in (encode, dense))))

    def subject(numbers: Sequence[int]) -> Subject:
        def run() -> None:
            for number in numbers:
                encode(features[number])

        return run, [torch.zeros(1)]

    return [subject(numbers) for numbers in specification["batches"]], facts


def read_features(data_dir: Optional[str], seed: int) -> Tuple[List[Speech], List[Tensor]]:
    """The utterances of a Kaldi data directory and their filter banks, (T, 80) each; without one no utterances, and
    random features of ``RANDOM_SECONDS``."""
    if data_dir is not None:
        speech = usable_speech(Path(data_dir))
        return speech, [filter_banks(item.heard) for item in speech]
    generator = torch.Generator().manual_seed(seed)
    return [], [_random_features(int(100 * seconds), generator) for seconds in RANDOM_SECONDS]


def make_model(specification: Dict[str, Any]) -> Transducer:
    """The transducer of a specification, in eval mode.  UserError: no such system, size or structure."""
    if "system_dir" in specification:
        return load_system(Path(specification["system_dir"]))[0]
    model = random_model(specification["size"], specification["seed"])
    if specification["sparsity"]:
        sparsify(model, specification["sparsity"], specification["structure"])
    return model


def random_model(size: str, seed: int) -> Transducer:
    """A dense conformer transducer with random weights."""
    torch.manual_seed(seed)
    dims: Dict[str, Any] = {"predictor_dim": DIM, "joiner_dim": DIM, "dropout": 0.0, "ctc_head": False}
    model = build_transducer(
        encoder="conformer", size=size, encoder_options={}, vocab_size=VOCAB, blank_id=0, **dims
    )  # fmt: skip
    return model.eval().requires_grad_(False)


def describe_weights(model: Transducer) -> Dict[str, Any]:
    """Of the encoder's matrices that are sparsified: the structure of their zeros, "mixed" where they differ, and
    the fraction of zeros; and of the encoder, its weights that are not zero."""
    choice = SparsityConfig()
    chosen = select_parameters(model, choice.include, choice.exclude)
    weights = [weight.detach().numpy() for name, weight in chosen.items() if name.startswith("encoder.")]
    found = {structure_of(weight) for weight in weights}
    return {
        "structure": found.pop() if len(found) == 1 else "mixed",
        "sparsity": 1.0 - sum(map(np.count_nonzero, weights)) / sum(map(np.size, weights)),
        "non_zeros": sum(int(parameter.count_nonzero()) for parameter in model.get_submodule("encoder").parameters()),
    }


def recognise(
    encode: Callable[[Tensor], Tensor], model: Transducer, features: Sequence[Tensor], *settings: Any
) -> List[str]:
    """``recognise_torch`` with another encoder."""

    def encode_one(x: Tensor, _: Tensor) -> Tuple[Tensor, Tensor]:
        out = encode(x[0])
        return out[None], torch.tensor([len(out)])

    made = SimpleNamespace(encode=encode_one, predictor=model.predictor, joiner=model.joiner)
    return recognise_torch(made, features, *settings)


def _on_gpu(specification: Dict[str, Any]) -> List[Subject]:
    """Batches (B, T) in bfloat16; engine "2:4" is torch's semi-structured kernels.  UserError: it has none."""
    encoder = make_model(specification).get_submodule("encoder").to("cuda", torch.bfloat16)
    generator = torch.Generator().manual_seed(specification["seed"])
    try:
        if specification["engine"] == "2:4":
            from torch.sparse import to_sparse_semi_structured

            for module in encoder.modules():
                if isinstance(module, nn.Linear):
                    weight = to_sparse_semi_structured(module.weight.data)
                    module.weight = nn.Parameter(weight, requires_grad=False)

        def subject(batch: Sequence[int]) -> Subject:
            x = torch.stack([_random_features(frames, generator) for frames in batch]).to("cuda", torch.bfloat16)
            lens = torch.tensor(batch, device="cuda")

            @torch.no_grad()
            def run() -> None:
                encoder(x, lens)

            return run, [x]

        made = [subject(batch) for batch in specification["batches"]]
        for run, _ in made:
            run()
    except ImportError:
        raise UserError("torch", f"version {torch.__version__} has no 2:4 matrices", "2.1 or newer") from None
    except (RuntimeError, NotImplementedError) as error:
        problem = " ".join(str(error).split())[:200]
        raise UserError("torch's 2:4 kernels", problem, "a GPU and sizes that they take") from None
    return made


def _random_features(frames: int, generator: torch.Generator) -> Tensor:
    """(frames, 80), like log-mel energies."""
    return torch.randn(frames, 80, generator=generator) * 3.5 - 7.5
