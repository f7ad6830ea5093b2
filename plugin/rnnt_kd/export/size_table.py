"""A system in every format that its files can have: bytes, bytes after gzip, what it recognises; the table of that.

The three ONNX files in nine ``formats``; "safetensors" and "packed safetensors", our checkpoint, whole and without its
zeros.  The ONNX formats are decoded by onnxruntime with our own search, the checkpoints by torch, both one utterance at
a time in the encoder.
"""

import gzip
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any, Callable, Dict, List, Sequence, Tuple

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from rnnt_kd import tables
from rnnt_kd.config import ModelConfig, SparsityConfig, SystemConfig
from rnnt_kd.data.speech import Speech, filter_banks
from rnnt_kd.decoding.lookup import get_search
from rnnt_kd.export.formats import BASE, convert
from rnnt_kd.export.model_json import ONNX_FILES, check_exportable
from rnnt_kd.export.onnx_file import session, write_graph
from rnnt_kd.export.targets.sherpa_onnx import SPECS
from rnnt_kd.models.interfaces import StreamingEncoder
from rnnt_kd.models.transducer import Transducer
from rnnt_kd.scoring.bootstrap import one_seed_p_value
from rnnt_kd.scoring.characters import as_characters, counts_characters
from rnnt_kd.scoring.recognitions import Recognition, words_counted
from rnnt_kd.scoring.results import figures
from rnnt_kd.scoring.word_errors import count_all
from rnnt_kd.sparsity.sparsifier import Sparsifier
from rnnt_kd.systems.packed import read_packed, unpacked_bytes, write_packed
from rnnt_kd.systems.store import as_cut, build_model, load_system, weights_file, write_tensors
from rnnt_kd.tables import shown
from rnnt_kd.text.tokenizer import Tokenizer

SizeRow = Dict[str, Any]
_ROUNDED = ("float16", "int8", "int4")
_STEPS = (BASE, *_ROUNDED, "sparse", *(f"{name}+sparse" for name in _ROUNDED), "sparse_initializer")
ONNX_FORMATS = {" ".join(reversed(steps.split("+"))): steps for steps in _STEPS}  # what the table calls it -> steps
DENSE, PACKED = "safetensors", "packed safetensors"
FORMATS = (*ONNX_FORMATS, DENSE, PACKED)
SEARCH_BATCH = 32  # utterances that are searched together; the result does not depend on it


def measure_system(
    name: str,
    system_dir: Path,
    bpe_dir: Path,
    speech: Sequence[Speech],
    *,
    search: str,
    beam: int,
    features=None,
    score_events: bool = True,
) -> List[SizeRow]:
    """A row a format: system, format, bytes, gzip_bytes, load_seconds, wer, cer, errors, words, ins, del, sub, p_value.

    Args:
      name:     what the rows call the system.
      speech:   the test set (all with samples).
      features: of ``speech``, where they are at hand.
      score_events: words such as <unk> and [noise] count.
    ``p_value``: against float32 of the same system (two-sided, paired bootstrap; None for too few utterances).
    Without a reference word ``wer`` is None, and where characters are not counted, ``cer``.
    Raises: UserError: no finished system, or another BPE model.
    """
    model, config = load_system(system_dir)
    tokenizer = Tokenizer.load(bpe_dir)
    check_exportable(config, tokenizer, model, system_dir, bpe_dir)
    if isinstance(model.encoder, StreamingEncoder):
        model.encoder.eval_chunk_frames = 0  # all at once: the same file in every format
    if features is None:
        features = [filter_banks(item.samples) for item in speech if item.samples is not None]
    source, base = weights_file(system_dir), None
    checkpoint = source.read_bytes() if source.name == "model.safetensors" else unpacked_bytes(source)
    rows: List[SizeRow] = []
    with tempfile.TemporaryDirectory(prefix="rnnt_kd-sizes-") as made:
        for form, files in _write_all(model, checkpoint, Path(made)).items():
            row: SizeRow = {"system": name, "format": form, "load_seconds": None}
            if form in ONNX_FORMATS:
                texts, row["load_seconds"] = recognise_onnx(files[0].parent, features, tokenizer, search, beam)
            else:
                if form == PACKED:
                    model.load_state_dict(read_packed(files[0]))
                texts = recognise_torch(model, features, tokenizer, search, beam)
            pairs = zip(speech, texts, strict=True)
            found = [Recognition(item.id, tuple(item.text.split()), tuple(text.split())) for item, text in pairs]
            found = words_counted(found, score_events)
            base = base or found
            rows.append({**row, **size_of(files), **_scores(found, base)})
    return rows


def measure_random(
    encoder: str, size: str, sparsity: float, structure: str, vocab_size: int = 500, seed: int = 0
) -> List[SizeRow]:
    """Bytes alone, of an encoder of that size with random weights and a random mask ("random M 90 % 16x1").

    Raises: UserError: no such size, sparsity or structure.
    """
    torch.manual_seed(seed)
    model_config = ModelConfig(
        encoder=encoder, size=size, encoder_options={}, predictor_dim=512, joiner_dim=512, dropout=0.0, ctc_head=False
    )
    config = SystemConfig(model=model_config, vocab_size=vocab_size)
    model = build_model(config).eval()
    name = f"random {size}"
    if sparsity:
        name = f"{name} {sparsity:.0%}" + ("" if structure == "unstructured" else f" {structure}")
        weights = sparsify(model, sparsity, structure).cut(model.state_dict())
        config = replace(config, sparsity=SparsityConfig(target=sparsity, structure=structure))
        model = build_model(as_cut(config, weights)).eval()
        model.load_state_dict(weights)
    with tempfile.TemporaryDirectory(prefix="rnnt_kd-sizes-") as made:
        write_tensors(Path(made) / DENSE, model.state_dict())
        files = _write_all(model, (Path(made) / DENSE).read_bytes(), Path(made))
        return [{"system": name, "format": form, **size_of(files[form])} for form in FORMATS]


def write_formats(model: Transducer, folder: Path, formats: Sequence[str] = tuple(ONNX_FORMATS)) -> None:
    """Write ``folder/<format>/{encoder,decoder,joiner}.onnx`` of an offline system (or one that hears all at once)."""
    for name in dict.fromkeys((BASE, *formats)):
        (folder / name).mkdir(parents=True)
        for file, make_spec in SPECS.items():
            if name == BASE:
                write_graph(make_spec(model), folder / name / file)
            convert(folder / BASE / file, folder / name / file, ONNX_FORMATS[name])


def _write_all(model: Transducer, checkpoint: bytes, folder: Path) -> Dict[str, List[Path]]:
    """Format -> its files."""
    write_formats(model, folder)
    (folder / DENSE).write_bytes(checkpoint)
    write_packed(folder / PACKED, checkpoint)
    onnx_files = {form: [folder / form / file for file in ONNX_FILES] for form in ONNX_FORMATS}
    return {**onnx_files, DENSE: [folder / DENSE], PACKED: [folder / PACKED]}


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
    return recognise_torch(model, features, tokenizer, search, beam), seconds


@torch.no_grad()
def recognise_torch(model: Any, features: Sequence[Tensor], tokenizer: Tokenizer, search: str, beam: int) -> List[str]:
    """The same by the transducer itself."""
    by_length = sorted(range(len(features)), key=lambda index: len(features[index]))
    texts = [""] * len(features)
    settings = {"beam": beam, "blank_id": tokenizer.blank_id, "unk_id": tokenizer.unk_id}
    for start in range(0, len(features), SEARCH_BATCH):
        part = by_length[start : start + SEARCH_BATCH]
        heard = [model.encode(features[index][None], torch.tensor([len(features[index])])) for index in part]
        encoder_out = pad_sequence([one[0] for one, _ in heard], batch_first=True)
        found = get_search(search)(model, encoder_out, torch.cat([lens for _, lens in heard]), **settings)
        for index, (hypothesis, *_) in zip(part, found, strict=True):
            texts[index] = tokenizer.decode(hypothesis.tokens)
    return texts


class OnnxTransducer:
    """The three ONNX files of an offline export, run by onnxruntime, for our own searches.

    Looks like a ``Transducer`` to ``decoding``: the files hold the joiner's projections, so those are the identity.
    Encode one utterance at a time, as a device hears them: the integer products of an int8 file round all utterances of
    a batch with one scale.

    Raises: UserError: onnxruntime does not load a file.
    """

    def __init__(self, folder: Path, load: Callable[[Path], Any] = session):
        self._encoder, predictor, joiner = (load(Path(folder) / name) for name in ONNX_FILES)
        self.predictor, self.joiner = _Predictor(predictor), _Joiner(joiner)

    def encode(self, features: Tensor, lens: Tensor) -> Tuple[Tensor, Tensor]:
        """(N, T, 80), (N,) int64 -> (N, T', J), (N,) int64."""
        encoder_out, out_lens = self._encoder.run(None, {"x": features.numpy(), "x_lens": lens.numpy()})
        return torch.from_numpy(encoder_out), torch.from_numpy(out_lens)


class _Predictor:
    def __init__(self, session):
        self._session = session

    def __call__(self, y: Tensor, need_pad: bool) -> Tensor:
        """(N, 2) int64 -> (N, 1, J)."""
        return self.tabulated()(y)[:, None]

    def start_context(self) -> List[int]:
        return [-1, 0]

    def tabulated(self) -> Callable[[Tensor], Tensor]:
        """(N, 2) int64 -> (N, J), as searches ask; there is no table here."""
        return lambda y: torch.from_numpy(self._session.run(None, {"y": y.numpy()})[0])


class _Joiner:
    encoder_proj = predictor_proj = staticmethod(lambda values: values)

    def __init__(self, session):
        self._session = session

    def __call__(self, am: Tensor, lm: Tensor) -> Tensor:
        """(..., J) twice, which broadcast against each other -> logits (..., C)."""
        am, lm = torch.broadcast_tensors(am, lm)
        rows = {"encoder_out": am, "decoder_out": lm}
        feeds = {name: value.reshape(-1, value.shape[-1]).numpy() for name, value in rows.items()}
        return torch.from_numpy(self._session.run(None, feeds)[0]).reshape(*am.shape[:-1], -1)


def add_ratios(rows: Sequence[SizeRow], dense_bytes: int) -> None:
    """``ratio`` and ``gzip_ratio``: float32 bytes of the dense system by those of each row."""
    for row in rows:
        row["ratio"] = round(dense_bytes / row["bytes"], 3)
        row["gzip_ratio"] = round(dense_bytes / row["gzip_bytes"], 3)


def markdown(rows: Sequence[SizeRow], heading: str, command: str) -> str:
    """The table, GitHub flavour."""
    with_characters = any(row.get("cer") is not None for row in rows)
    head = ["system", "format", "bytes", "times smaller", "gzipped", "times smaller", "%WER"]
    head += ["%CER"] * with_characters + ["p", "load, s"]
    cells = [
        [
            *(row["system"], row["format"], row["bytes"], f"{row['ratio']:.2f}"),
            *(row["gzip_bytes"], f"{row['gzip_ratio']:.2f}", shown(row.get("wer"), ".2f")),
            *[shown(row.get("cer"), ".2f")] * with_characters,
            shown(None if row["format"] == BASE else row.get("p_value"), ".3f"),
            shown(row.get("load_seconds"), ".2f"),
        ]
        for row in rows
    ]
    return f"{heading}\n\n{tables.markdown(head, cells, left=2)}\n\n    {command}\n"


def _scores(found: Sequence[Recognition], base: Sequence[Recognition]) -> SizeRow:
    words = figures(count_all(found))
    characters = count_all(as_characters(found)).wer if counts_characters(found) else None
    changed = sum(one.hyp != other.hyp for one, other in zip(found, base, strict=True))
    p_value = one_seed_p_value(found, base)
    return {
        "wer": words["wer"],
        "cer": characters and round(characters, 4),
        **words,
        "changed": changed,
        "p_value": p_value and round(p_value, 6),
    }


def sparsify(model: nn.Module, sparsity: float, structure: str) -> Sparsifier:
    """Set the smallest weights of every layer that training would sparsify to zero, at once.

    Random matrices do not compete: their scales say how large they are, and nothing else.
    """
    usual = SparsityConfig()
    chosen: Dict[str, Any] = {"structure": structure, "scope": "per-layer"}
    chosen.update(include=usual.include, exclude=usual.exclude)
    sparsifier = Sparsifier(model, sparsity, begin_step=0, end_step=1, update_every_steps=1, **chosen)
    sparsifier.step(1)
    return sparsifier
