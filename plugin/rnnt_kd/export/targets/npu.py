"""The export target npu: the three ONNX files with a number for every size, as compilers for NPUs ask for them.

QNN, RKNN, Ascend and their like take batches of one and fixed lengths, and round the weights themselves.  Offline an
utterance is padded to ``--seconds``; streaming, the chunk is the length.  Nobody's client is called: onnxruntime runs
the files, by our own searches.
"""

import copy
from dataclasses import asdict
from pathlib import Path
from typing import Any, Dict, List, Optional, Sequence, Tuple

import torch

from rnnt_kd.data.audio_format import FRAME_SECONDS
from rnnt_kd.data.speech import Speech, filter_banks
from rnnt_kd.errors import UserError
from rnnt_kd.export import client, formats
from rnnt_kd.export.check import Say
from rnnt_kd.export.check_client import compare, is_tie, recognise, stream
from rnnt_kd.export.check_files import verify_static
from rnnt_kd.export.check_numbers import verify_numbers
from rnnt_kd.export.graphs import encoder_of
from rnnt_kd.export.onnx_file import OneByOne
from rnnt_kd.export.size_table import OnnxTransducer
from rnnt_kd.export.targets.sherpa_onnx import write_files
from rnnt_kd.models.transducer import Transducer
from rnnt_kd.text.tokenizer import Tokenizer

__all__ = ["check", "static_sizes", "write_files"]

LEAST_SECONDS, MOST_SECONDS = 0.1, 60.0  # attention takes memory with the square


def static_sizes(model: Transducer, form: str, streaming: bool, seconds: Optional[float]) -> Dict[str, int]:
    """``static`` of ``model.json``.  Raises UserError: no length or one that cannot be, another format than float32."""
    if formats.steps_of(form):
        raise UserError("--target npu --format", f"'{form}'", "float32: the NPU's compiler rounds the weights")
    if streaming and seconds is not None:
        raise UserError("--seconds", f"{seconds:g} with --streaming", "none: the chunk is the length")
    if streaming:
        encoder = encoder_of(model)
        return {"feature_frames": encoder.feature_frames(encoder.chunk_frames), "encoder_frames": encoder.chunk_frames}
    if seconds is None or not LEAST_SECONDS <= seconds <= MOST_SECONDS:
        problem = "not given with --target npu" if seconds is None else f"{seconds:g}"
        raise UserError("--seconds", problem, f"{LEAST_SECONDS:g} to {MOST_SECONDS:g}, the longest utterance")
    frames = round(seconds / FRAME_SECONDS)
    return {"feature_frames": frames, "encoder_frames": int(model.encoder.output_lengths(torch.tensor([frames])))}


def check(
    folder: Path,
    model: Transducer,
    tokenizer: Tokenizer,
    speech: Sequence[Speech],
    data_dir: Optional[Path],
    score_events: bool,
    say: Say,
) -> Tuple[Dict[str, Any], str]:
    """What ``check.check`` does, with onnxruntime in the client's place, one utterance at a time.

    Longer utterances than the files take are left out.  Raises UserError: none fits; what ``verify_static`` and
    ``verify_numbers`` refuse.
    """
    manifest = verify_static(folder)
    streaming, longest = manifest["streaming"], manifest["static"]["feature_frames"]
    found: Dict[str, Any] = {"onnxruntime_against_torch": verify_numbers(folder, model, manifest)}
    left_out = {item.id: item.reason for item in speech if item.samples is None}
    heard = [(item, filter_banks(item.heard)) for item in speech if item.samples is not None]
    if not streaming:
        left_out.update({item.id: f"has {len(x)} frames" for item, x in heard if len(x) > longest})
    heard = [(item, x) for item, x in heard if item.id not in left_out]
    if not heard:
        expected = "usable audio" if streaming else f"audio of at most {longest} frames ({longest * FRAME_SECONDS:g} s)"
        raise UserError(data_dir, "no utterance can be used", expected, "give a larger --seconds, or other data")
    static, runs = _of_files(folder, model, streaming), []
    differences: List[Dict[str, Any]] = []
    ties: List[Dict[str, Any]] = []
    for search in client.SEARCHES:
        before = len(differences)
        for item, x in heard:
            ours, theirs = (
                stream(one, tokenizer, item.heard, search) if streaming else recognise(one, tokenizer, [x], search, 1)
                for one in (model, static)
            )
            for one in map(asdict, compare(item.id, search, 1, ours, theirs)):
                one["onnxruntime"] = one.pop("sherpa_onnx")
                tie = not streaming and is_tie(model, tokenizer, x, search, theirs)
                (ties if tie else differences).append(one)
        number = len(differences) - before
        runs.append({"by": "onnxruntime", "search": search, "batch_size": 1, "differences": number})
    for one in differences:
        where = f"{one['utterance']} ({one['search']})"
        say(f"{where}: {one['what']} '{one['onnxruntime']}' from onnxruntime, '{one['rnnt_kd']}' from rnnt_kd")
    found.update({"data_dir": str(data_dir) if data_dir else None, "left_out": left_out, "utterances": len(heard)})
    found.update({"runs": runs, "differences": differences, "ties": ties, "differences_in_blanks": []})
    return found, f"onnxruntime and rnnt_kd differ {len(differences)} times" if differences else ""


def _of_files(folder: Path, model: Transducer, streaming: bool) -> Any:
    """The files, as our searches take a transducer."""
    static: Any = OnnxTransducer(folder, OneByOne)
    if streaming:
        loaded = OneByOne(folder / "encoder.onnx")
        names = [value.name for value in loaded.get_inputs()]

        def forward(*inputs: torch.Tensor) -> List[torch.Tensor]:
            values = loaded.run(None, {name: one.numpy() for name, one in zip(names, inputs, strict=True)})
            return [torch.from_numpy(value) for value in values]

        static.encoder = copy.copy(encoder_of(model))
        static.encoder.streaming_forward = forward
    return static
