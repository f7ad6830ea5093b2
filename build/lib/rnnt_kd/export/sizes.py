"""A system in every format that a file can have: bytes, bytes after gzip, and what it recognises.

The three ONNX files in each of ``formats``; "safetensors" and "packed safetensors", our checkpoint, whole and
without its zeros.  The ONNX formats are decoded by onnxruntime with our own search, one utterance at a time in
the encoder; the checkpoints by torch.
"""

import gzip
import time
from pathlib import Path
from typing import Dict, List, Sequence, Tuple

import torch
from torch import Tensor

from rnnt_kd.decoding.lookup import get_search
from rnnt_kd.export.formats import BASE, ONNX_FORMATS, convert
from rnnt_kd.export.onnx_file import write_graph
from rnnt_kd.export.onnx_transducer import OnnxTransducer
from rnnt_kd.export.targets.sherpa_onnx import SPECS
from rnnt_kd.models.transducer import Transducer
from rnnt_kd.text.tokenizer import Tokenizer

SEARCH_BATCH = 32  # utterances that are searched together; the result does not depend on it


def write_formats(model: Transducer, folder: Path, formats: Sequence[str] = tuple(ONNX_FORMATS)) -> None:
    """Write ``folder/<format>/{encoder,decoder,joiner}.onnx`` of an offline system (or one that hears all at once)."""
    for name in dict.fromkeys((BASE, *formats)):
        (folder / name).mkdir(parents=True)
        for file, make_spec in SPECS.items():
            if name == BASE:
                write_graph(make_spec(model), folder / name / file)
            convert(folder / BASE / file, folder / name / file, name)


def size_of(files: Sequence[Path]) -> Dict[str, int]:
    """``bytes`` of the files of one format, together; ``gzip_bytes``, after ``gzip -9`` of each."""
    contents = [Path(file).read_bytes() for file in files]
    gzipped = sum(len(gzip.compress(content, 9, mtime=0)) for content in contents)
    return {"bytes": sum(map(len, contents)), "gzip_bytes": gzipped}


def recognise_onnx(
    folder: Path, features: Sequence[Tensor], tokenizer: Tokenizer, search: str, beam: int
) -> Tuple[List[str], float]:
    """Texts of features (T, 80) each, and the seconds that onnxruntime took to load the files."""
    started = time.perf_counter()
    model = OnnxTransducer(folder)
    seconds = time.perf_counter() - started
    return _recognise(model, lambda part: model.encode(part), features, tokenizer, search, beam), seconds


def recognise_torch(
    model: Transducer, features: Sequence[Tensor], tokenizer: Tokenizer, search: str, beam: int
) -> List[str]:
    """The same by the transducer itself."""

    def encode(part: Sequence[Tensor]) -> Tuple[Tensor, Tensor]:
        with torch.no_grad():
            found = [model.encode(matrix[None], torch.tensor([len(matrix)])) for matrix in part]
        padded = torch.nn.utils.rnn.pad_sequence([encoder_out[0] for encoder_out, _ in found], batch_first=True)
        return padded, torch.cat([lens for _, lens in found])

    return _recognise(model, encode, features, tokenizer, search, beam)


def _recognise(model, encode, features: Sequence[Tensor], tokenizer: Tokenizer, search: str, beam: int) -> List[str]:
    by_length = sorted(range(len(features)), key=lambda index: len(features[index]))
    texts = [""] * len(features)
    for start in range(0, len(features), SEARCH_BATCH):
        part = by_length[start : start + SEARCH_BATCH]
        encoder_out, lens = encode([features[index] for index in part])
        found = get_search(search)(
            model, encoder_out, lens, beam=beam, blank_id=tokenizer.blank_id, unk_id=tokenizer.unk_id
        )
        for index, (hypothesis, *_) in zip(part, found, strict=True):
            texts[index] = tokenizer.decode(hypothesis.tokens)
    return texts
