"""Recognisers of one system: all start from samples and end with text."""

import time
from functools import partial
from pathlib import Path
from typing import Any, Callable, Dict, List, Sequence, Tuple

import torch
from torch.nn.utils.rnn import pad_sequence

from benchmark import plain_search
from rnnt_kd.data.speech import Speech, filter_banks
from rnnt_kd.decoding.graphs import words_of
from rnnt_kd.decoding.lookup import get_search
from rnnt_kd.decoding.options import Search
from rnnt_kd.errors import UserError
from rnnt_kd.models.transducer import Transducer
from rnnt_kd.systems.store import load_system
from rnnt_kd.text.tokenizer import Tokenizer
from rnnt_kd.text.transcripts import read_transcripts
from rnnt_kd_engine import Batches

OURS, LOOP, SHERPA = "ours", "plain loop", "sherpa-onnx"
TIMEOUT = 600.0  # seconds in which sherpa-onnx recognises a batch

# Texts of a batch, and the seconds of "search" (encoder's output to tokens) and "encoder_search" (with the encoder, and
# the tokens put together to text), where these can be told apart.
Recogniser = Callable[[Sequence[Speech]], Tuple[List[str], Dict[str, float]]]


def make_recogniser(specification: Dict[str, Any]) -> Recogniser:
    """That of "by": the "search" with "beam" of "system_dir" and "bpe_dir", over the words of "graph_text", if given;
    or of "export_dir".  "by" may be ``OURS`` with the encoder in an engine: "ours, numba"."""
    search, beam = specification["search"], specification["beam"]
    if specification["by"] == SHERPA:
        return _sherpa_onnx(Path(specification["export_dir"]), search, beam)
    model, _ = load_system(Path(specification["system_dir"]))
    tokenizer = Tokenizer.load(Path(specification["bpe_dir"]))
    function: Search = plain_search.SEARCHES[search] if specification["by"] == LOOP else get_search(search)
    if specification["graph_text"] is not None:
        text = Path(specification["graph_text"])
        function = partial(function, graph=words_of(read_transcripts([text]), tokenizer, source=text))
    if specification["by"] not in (OURS, LOOP):
        model.encoder = Batches(model.encoder, specification["by"].removeprefix(f"{OURS}, "))
    return _in_torch(model, tokenizer, beam, function)


def check_same_weights(folder: Path, model: Transducer) -> None:
    """UserError: sherpa-onnx cannot run the export, it is a streaming one, or its weights are not the model's."""
    from rnnt_kd.export.check_files import verify_static
    from rnnt_kd.export.model_json import tensor_digest

    manifest = verify_static(folder)
    if manifest["streaming"]:
        raise UserError(folder, "a streaming export", "an offline one", "export the system without --streaming")
    state = model.state_dict()
    for name, values in manifest["parameters"].items():
        if name not in state or tensor_digest(state[name]) != values["sha256"]:
            raise UserError(folder, f"other weights ('{name}')", "an export of the system", "export it again")


def _in_torch(model: Transducer, tokenizer, beam: int, search: Callable) -> Recogniser:
    settings = {"beam": beam, "blank_id": tokenizer.blank_id, "unk_id": tokenizer.unk_id}

    def recognise(batch: Sequence[Speech]) -> Tuple[List[str], Dict[str, float]]:
        features = [filter_banks(item.heard) for item in batch]
        before_encoder = time.perf_counter()
        lens = torch.tensor([len(part) for part in features])
        with torch.no_grad():
            encoder_out, out_lens = model.encode(pad_sequence(features, batch_first=True), lens)
        before_search = time.perf_counter()
        found = search(model, encoder_out, out_lens, **settings)
        after_search = time.perf_counter()
        texts = [tokenizer.decode(best.tokens) for best, *_ in found]
        end = time.perf_counter()
        return texts, {"search": after_search - before_search, "encoder_search": end - before_encoder}

    return recognise


def _sherpa_onnx(folder: Path, search: str, beam: int) -> Recogniser:
    """What the pipe to its process takes is in its time: of a hundred seconds of audio some milliseconds."""
    from rnnt_kd.export.client import ClientProcess

    client = ClientProcess(folder, search, beam, timeout=TIMEOUT)

    def recognise(batch: Sequence[Speech]) -> Tuple[List[str], Dict[str, float]]:
        return [result.text for result in client.decode([item.heard for item in batch])], {}

    return recognise
