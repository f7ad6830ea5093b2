"""A trained system -> the folder that another program runs, verified before anybody can find it.

Which files, and how they are tried, is the target's: ``targets/<name>.py``.

The files are written and verified in a hidden folder beside ``out_dir`` and renamed when all is right.  An
export that does not hold what is promised stays beside it as ``<out_dir>.failed``, with ``check.json``, until one
that does takes its place.
"""

import shutil
from pathlib import Path
from typing import Any, Dict, List, Optional, Sequence

import torch

from rnnt_kd import atomic, choices
from rnnt_kd.config import SystemConfig
from rnnt_kd.data.speech import Speech, read_speech
from rnnt_kd.errors import UserError
from rnnt_kd.export import blank_penalty as blank
from rnnt_kd.export import formats, model_json
from rnnt_kd.export.check import CHECK, Say
from rnnt_kd.export.client_text import tokens_txt
from rnnt_kd.export.readme import readme
from rnnt_kd.models.interfaces import StreamingEncoder
from rnnt_kd.models.transducer import Transducer
from rnnt_kd.scoring.results import read_json
from rnnt_kd.systems.store import load_system
from rnnt_kd.text.tokenizer import Tokenizer

FAILED = ".failed"
TARGETS = "rnnt_kd.export.targets"


def export_system(
    system_dir: Path,
    bpe_dir: Path,
    out_dir: Path,
    *,
    target: str = "sherpa-onnx",
    check: bool = True,
    streaming: bool = False,
    seconds: Optional[float] = None,
    form: str = formats.BASE,
    check_data_dir: Optional[Path] = None,
    allow_pipes: bool = False,
    score_events: bool = True,
    decode_dirs: Optional[Sequence[Path]] = None,
    blank_penalty: float = 0.0,
    dev_cuts: Optional[Path] = None,
    say: Say,
) -> Dict[str, Any]:
    """Write and verify an export; returns what ``model.json`` says.

    Args:
      target:         a file of ``targets/``, with "-" for its "_".
      check:          verify it; without, ``check`` in ``model.json`` is empty.
      streaming:      for ``OnlineRecognizer``; the system must have a streaming encoder.
      seconds:        the length of an utterance, where the target takes no other.
      form:           steps of ``formats``, such as "int8+sparse".
      check_data_dir: a Kaldi data directory whose utterances sherpa-onnx must recognise as we do; without it
                      the client runs on a few seconds of noise.
      allow_pipes:    run the shell pipes of its ``wav.scp``.
      score_events:   words such as <unk> and [noise] count in the error rates of both sides.
      decode_dirs:    whose ``wer-*.json`` to copy; None: those under ``system_dir``.
      blank_penalty:  taken off the joiner's bias of blank, in nats; what is verified is the model with it.
      dev_cuts:       choose the penalty on these cuts.
    Raises:
      UserError: an unknown target, the system cannot be exported, or the export is not what it should be.
    """
    system_dir, bpe_dir, out_dir = Path(system_dir), Path(bpe_dir), Path(out_dir)
    choices.check(target, [name.replace("_", "-") for name in choices.names(TARGETS)], "--target")
    writer = choices.load(TARGETS, target.replace("-", "_"))
    formats.steps_of(form)
    if blank_penalty and dev_cuts is not None:
        raise UserError("--blank-penalty --dev-cuts", "both are given", "one of them")
    if not abs(blank_penalty) <= blank.MOST:  # nor NaN
        raise UserError("--blank-penalty", f"{blank_penalty}", f"a number, {blank.MOST:g} at most")
    model, config = load_system(system_dir)
    tokenizer = Tokenizer.load(bpe_dir)
    model_json.check_exportable(config, tokenizer, model, system_dir, bpe_dir)
    _set_mode(model, config, streaming, system_dir)
    static = writer.static_sizes(model, form, streaming, seconds)
    speech = _speech(check_data_dir, allow_pipes) if check else []  # a defect of it comes before anything is written
    lowered: Dict[str, Any] = {"value": blank_penalty}
    if dev_cuts is not None:
        lowered["value"], errors = blank.choose(model, tokenizer, dev_cuts, score_events)
        lowered["errors"] = {f"{penalty:g}": number for penalty, number in errors.items()}
        say(f"{config.name}: blank penalty {lowered['value']:g}, of {lowered['errors']} errors in {dev_cuts}")
    lowered["bias"] = blank.lower(model, lowered["value"])
    decode_dirs = sorted(system_dir.glob("decode_*")) if decode_dirs is None else decode_dirs
    failed = out_dir.parent / (out_dir.name + FAILED)
    for folder in (out_dir, failed):
        if foreign := _foreign_in(folder):
            raise UserError(folder, f"holds files of something else: {foreign}", "a new folder, or an older export")
    with atomic.new_dir(out_dir) as making:
        values = {**model_json.describe_system(model, config), "unk_id": tokenizer.unk_id, "streaming": streaming}
        values.update({"weights": formats.weights_of(form), "sparse": formats.is_sparse(form), "static": static})
        values["wer"] = model_json.scores_of(decode_dirs)
        values["blank_penalty"] = lowered
        names = writer.write_files(model, form, streaming, static, making)
        values["parameters"] = model_json.describe_parameters(model, names)
        shutil.copyfile(bpe_dir / "bpe.model", making / "bpe.model")
        atomic.write_text(making / "tokens.txt", tokens_txt(tokenizer.pieces()))
        atomic.write_text(making / "bpe.vocab", tokenizer.scored_pieces())
        atomic.write_text(making / "README.md", readme(values))
        model_json.write_manifest(making, {**values, "check": {}})
        heard = speech, check_data_dir, score_events, say
        try:
            found, fault = writer.check(making, model, tokenizer, *heard) if check else ({}, "")
        except UserError as error:
            _keep(making, failed, {"fault": error.problem})
            raise
        if fault:
            _keep(making, failed, {"fault": fault, **found})
            raise UserError(out_dir, fault, "none", f"the export is kept in {failed}; {CHECK} there lists them")
        atomic.write_json(making / CHECK, found)
        model_json.write_manifest(making, {**values, "check": _summary(found) if found else {}})
    if check:
        shutil.rmtree(failed, ignore_errors=True)
    return model_json.read_manifest(out_dir)


def _foreign_in(folder: Path) -> str:
    """The first thing in it that an export, whole or damaged, would not have left there; "": nothing, or no folder."""
    if not folder.is_dir():
        return folder.name if folder.exists() else ""
    known = (*model_json.FILES, model_json.NAME, CHECK)
    paths = (path for path in sorted(folder.iterdir()) if path.name[0] != "." or path.is_dir())  # records; but .git
    others = [path.name for path in paths if path.name not in known]
    try:
        manifest = read_json(folder / model_json.NAME, default={"format": model_json.FORMAT})
    except UserError:  # damaged
        manifest = {"format": model_json.FORMAT}
    return next(iter(others), "" if manifest.get("format") == model_json.FORMAT else model_json.NAME)


def _keep(made: Path, failed: Path, found: Dict[str, Any]) -> None:
    atomic.write_json(made / CHECK, found)
    atomic.replace_dir(made, failed)


def _set_mode(model: Transducer, config: SystemConfig, streaming: bool, system_dir: Path) -> None:
    """A streaming encoder that is exported for whole utterances looks at the whole utterance."""
    if isinstance(model.encoder, StreamingEncoder):
        if not streaming:
            model.encoder.eval_chunk_frames = 0
    elif streaming:
        problem = f"its encoder {config.model.encoder} looks at the whole utterance"
        raise UserError(
            system_dir, problem, "a streaming encoder", "leave out --streaming, or train a streaming_student"
        )


def _speech(data_dir: Optional[Path], allow_pipes: bool) -> List[Speech]:
    """Utterances that the client is tried on, unusable audio included."""
    if data_dir is not None:
        return list(read_speech(data_dir, allow_pipes))
    generator = torch.Generator().manual_seed(0)
    noise = [0.05 * torch.randn(n, generator=generator).numpy() for n in (16000, 4000, 48000, 1600)]
    return [Speech(f"noise-{index}", "", "", samples) for index, samples in enumerate(noise)]


def _summary(check: Dict[str, Any]) -> Dict[str, Any]:
    """The part of ``check.json`` that ``model.json`` keeps: numbers of differences, not the list."""
    texts = sum(item["what"] == "text" for item in check["differences"])
    numbers = {"differences": len(check["differences"]), "differences_in_text": texts}
    numbers.update({name: len(check[name]) for name in ("ties", "differences_in_blanks")})
    return {**check, **numbers, "left_out": len(check["left_out"])}
