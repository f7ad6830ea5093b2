"""A system in every format that a file can have: bytes, bytes after gzip, and what it recognises.

    float32 float16 int8                       the export's three ONNX files; int8 is QUInt8
    sparse, sparse float16, sparse int8        the same without their zeros (``sparse_file``)
    sparse_initializer                         float32 with ONNX's own sparse weights
    safetensors, packed safetensors            our checkpoint, whole and without its zeros

The ONNX formats are decoded by onnxruntime with our own search, one utterance at a time in the encoder; the
checkpoints by torch.
"""

import gzip
import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Callable, Dict, List, Sequence, Tuple

import torch
from torch import Tensor

from rnnt_kd.decoding.lookup import get_search
from rnnt_kd.export.half import make_float16
from rnnt_kd.export.onnx_file import write_graph
from rnnt_kd.export.onnx_transducer import OnnxTransducer
from rnnt_kd.export.quantize import quantize_int8
from rnnt_kd.export.sparse_file import make_sparse
from rnnt_kd.export.targets.sherpa_onnx import SPECS
from rnnt_kd.models.transducer import Transducer
from rnnt_kd.text.tokenizer import Tokenizer

Step = Callable[[Path, Path], None]

BASE = "float32"
SEARCH_BATCH = 32  # utterances that are searched together; the result does not depend on it


def _sparse_initializer(src: Path, dst: Path) -> None:
    make_sparse(src, dst, layout="sparse_initializer")


ONNX_FORMATS: Dict[str, Tuple[Step, ...]] = {
    BASE: (),
    "float16": (make_float16,),
    "int8": (quantize_int8,),
    "sparse": (make_sparse,),
    "sparse float16": (make_float16, make_sparse),
    "sparse int8": (quantize_int8, make_sparse),
    "sparse_initializer": (_sparse_initializer,),
}


@dataclass(frozen=True)
class Size:
    """Bytes of the files of one format, together; gzip is ``gzip -9`` of each."""

    bytes: int
    gzip_bytes: int


def write_formats(model: Transducer, folder: Path, formats: Sequence[str] = tuple(ONNX_FORMATS)) -> None:
    """Write ``folder/<format>/{encoder,decoder,joiner}.onnx`` of an offline system (or one that hears all at once)."""
    for name in (BASE, *(name for name in formats if name != BASE)):
        (folder / name).mkdir(parents=True)
        for file, make_spec in SPECS.items():
            path = folder / name / file
            if name == BASE:
                write_graph(make_spec(model), path)
            source = folder / BASE / file
            for step in ONNX_FORMATS[name]:
                made = path.with_name(f".{file}")
                step(source, made)
                os.replace(made, path)
                source = path


def size_of(files: Sequence[Path]) -> Size:
    contents = [Path(file).read_bytes() for file in files]
    return Size(sum(map(len, contents)), sum(len(gzip.compress(content, 9, mtime=0)) for content in contents))


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
