"""Rows of the table of sizes, and the table for people."""

import tempfile
from pathlib import Path
from typing import Any, Dict, List, Optional, Sequence

import torch
from torch import nn

from rnnt_kd import tables
from rnnt_kd.config import ModelConfig, SparsityConfig, SystemConfig
from rnnt_kd.data.speech import Speech, filter_banks
from rnnt_kd.export import sizes
from rnnt_kd.export.formats import BASE, ONNX_FORMATS
from rnnt_kd.export.model_json import ONNX_FILES, check_exportable
from rnnt_kd.models.interfaces import StreamingEncoder
from rnnt_kd.scoring.bootstrap import one_seed_p_value
from rnnt_kd.scoring.characters import as_characters, counts_characters
from rnnt_kd.scoring.recognitions import Recognition, words_counted
from rnnt_kd.scoring.word_errors import count_all
from rnnt_kd.sparsity.sparsifier import Sparsifier
from rnnt_kd.systems.packed import read_packed, unpacked_bytes, write_packed
from rnnt_kd.systems.store import build_model, load_system, weights_file, write_tensors
from rnnt_kd.tables import shown
from rnnt_kd.text.tokenizer import Tokenizer

SizeRow = Dict[str, Any]
DENSE, PACKED = "safetensors", "packed safetensors"
FORMATS = (*ONNX_FORMATS, DENSE, PACKED)


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
    rows: List[SizeRow] = []
    with tempfile.TemporaryDirectory(prefix="rnnt_kd-sizes-") as made:
        folder = Path(made)
        sizes.write_formats(model, folder)
        base: Optional[List[Recognition]] = None
        for form in FORMATS:
            row: SizeRow = {"system": name, "format": form, "load_seconds": None}
            if form in ONNX_FORMATS:
                files = [folder / form / file for file in ONNX_FILES]
                texts, row["load_seconds"] = sizes.recognise_onnx(folder / form, features, tokenizer, search, beam)
            else:
                files = [_checkpoint(system_dir, folder, form == PACKED)]
                if form == PACKED:
                    model.load_state_dict(read_packed(files[0]))
                texts = sizes.recognise_torch(model, features, tokenizer, search, beam)
            found = [
                Recognition(item.id, tuple(item.text.split()), tuple(text.split()))
                for item, text in zip(speech, texts, strict=True)
            ]
            found = words_counted(found, score_events)
            base = base or found
            rows.append({**row, **sizes.size_of(files), **_scores(found, base)})
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
    model = build_model(SystemConfig(model=model_config, vocab_size=vocab_size)).eval()
    name = f"random {size}"
    if sparsity:
        name = f"{name} {sparsity:.0%}" + ("" if structure == "unstructured" else f" {structure}")
        sparsify(model, sparsity, structure)
    rows: List[SizeRow] = []
    with tempfile.TemporaryDirectory(prefix="rnnt_kd-sizes-") as made:
        folder = Path(made)
        sizes.write_formats(model, folder)
        write_tensors(folder / DENSE, model.state_dict())
        write_packed(folder / PACKED, (folder / DENSE).read_bytes())
        for form in FORMATS:
            files = [folder / form / file for file in ONNX_FILES] if form in ONNX_FORMATS else [folder / form]
            rows.append({"system": name, "format": form, **sizes.size_of(files)})
    return rows


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


def _checkpoint(system_dir: Path, folder: Path, packed: bool) -> Path:
    """The system's checkpoint in either form, written anew."""
    path, source = folder / ("packed" if packed else "dense"), weights_file(system_dir)
    content = source.read_bytes() if source.name == "model.safetensors" else unpacked_bytes(source)
    if packed:
        write_packed(path, content)
    else:
        path.write_bytes(content)
    return path


def _scores(found: Sequence[Recognition], base: Sequence[Recognition]) -> SizeRow:
    counts = count_all(found)
    figures = {"errors": counts.errors, "words": counts.words}
    figures.update({"ins": counts.ins, "del": counts.dels, "sub": counts.subs})
    characters = count_all(as_characters(found)).wer if counts_characters(found) else None
    changed = sum(one.hyp != other.hyp for one, other in zip(found, base, strict=True))
    p_value = one_seed_p_value(found, base)
    return {
        "wer": counts.wer and round(counts.wer, 4),
        "cer": characters and round(characters, 4),
        **figures,
        "changed": changed,
        "p_value": p_value and round(p_value, 6),
    }


def sparsify(model: nn.Module, sparsity: float, structure: str) -> None:
    """Set the smallest weights of every layer that training would sparsify to zero, at once."""
    usual = SparsityConfig()
    chosen: Dict[str, Any] = {"structure": structure, "include": usual.include, "exclude": usual.exclude}
    Sparsifier(model, sparsity, begin_step=0, end_step=1, update_every_steps=1, **chosen).step(1)
