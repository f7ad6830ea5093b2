"""The three ONNX files of icefall's export-onnx.py (or of pip-zipformer's), checked, compacted, and made smaller.

The steps are those of our own exports: ``check``, ``compact``, and ``formats``.  What comes out is what
sherpa-onnx loads in the place of the originals, and is compared with them in onnxruntime before anybody finds it.
"""

import shutil
from pathlib import Path
from typing import Callable, Dict

import numpy as np
import onnx

from rnnt_kd import atomic
from rnnt_kd.data.audio_format import FEATURE_DIM
from rnnt_kd.errors import UserError
from rnnt_kd.export import check_files
from rnnt_kd.export.formats import BASE, convert, steps_of, weights_of
from rnnt_kd.export.model_json import ONNX_FILES
from rnnt_kd.export.onnx_file import load_onnx, metadata_of, run
from rnnt_kd.export.rewriting import compact, has_subgraphs
from rnnt_kd.text.pieces import read_pieces

AGAIN = "export it again with icefall's export-onnx.py"
SMALLER = (".int8.onnx", ".fp16.onnx")  # that export-onnx.py writes beside the float32 files
FRAMES = (96, 61)  # of the noise that is compared


def shrink(folder: Path, tokens: Path, out: Path, form: str, say: Callable[[str], None]) -> Dict[str, float]:
    """Write encoder.onnx, decoder.onnx, joiner.onnx and tokens.txt to the new folder ``out``.

    Args:
      tokens:  tokens.txt of the recipe.
      form:    see ``formats``, such as "int8+sparse".
    Returns: encoder, decoder, joiner -> the largest difference of their outputs, by the largest of the originals.
    Raises UserError: not these files, files that sherpa-onnx would not run, or float32 that is not what it was.
    """
    steps_of(form)
    if out.exists():
        raise UserError(out, "is there already", "a new folder", "choose another --out")
    if Path(tokens).suffix != ".txt":  # it is copied for sherpa-onnx, which reads nothing else
        raise UserError(tokens, "is not tokens.txt", "lines of a symbol and its number", "give the recipe's tokens.txt")
    paths = {name: _found(folder, name) for name in ONNX_FILES}
    models = {name: load_onnx(path) for name, path in paths.items()}
    _check(paths, models, len(read_pieces(tokens)), tokens)
    with atomic.new_dir(out) as made:
        for name, model in models.items():
            if not has_subgraphs(model.graph):
                compact(model.graph)
            atomic.write_bytes(made / name, model.SerializeToString(deterministic=True))
            convert(made / name, made / name, form)
            before, after = ((place.stat().st_size) for place in (paths[name], made / name))
            say(f"{name}: {before} -> {after} bytes, {before / after:.1f} times smaller ({form})")
        shutil.copyfile(tokens, made / "tokens.txt")
        differences = _differences(paths, {name: made / name for name in ONNX_FILES})
        if lost := [name for name, value in differences.items() if not np.isfinite(value)]:
            problem = f"{lost[0]} computes NaN or infinity, and the original none"
            raise UserError(out, problem, "finite numbers", "choose another --format")
        if weights_of(form) == BASE and (wrong := [k for k, v in differences.items() if v]):
            problem = f"{wrong[0]} computes something else than {paths[wrong[0] + '.onnx']}"
            raise UserError(out, problem, "the same bits", "report it with the file")
    return differences


def _found(folder: Path, name: str) -> Path:
    """``encoder-epoch-99-avg-1.onnx``, or encoder.onnx."""
    stem = name.partition(".")[0]
    found = sorted(path for path in Path(folder).glob(f"{stem}*.onnx") if not path.name.endswith(SMALLER))
    if len(found) != 1:
        problem = f"{len(found)} files {stem}*.onnx in float32" + "".join(f", {path.name}" for path in found[:3])
        raise UserError(folder, problem, "one, of icefall's export-onnx.py", "give a folder with one export")
    return found[0]


def _check(paths: Dict[str, Path], models: Dict[str, onnx.ModelProto], C: int, tokens: Path) -> None:
    for name, model in models.items():
        check_files.check_file(paths[name], model)
    theirs = metadata_of(models["decoder.onnx"]).get("vocab_size")
    if theirs != str(C):
        problem, again = f"its vocab_size is {theirs}", "give the tokens.txt it was made with"
        raise UserError(paths["decoder.onnx"], problem, f"{C}, the lines of {tokens}", again)
    J = metadata_of(models["joiner.onnx"]).get("joiner_dim", "")
    if not J.isdecimal():
        raise UserError(paths["joiner.onnx"], f"metadata joiner_dim is {J or 'missing'}", "a number", AGAIN)
    check_files.check_signatures(paths, models, C, int(J), model_type=None)


def _differences(before: Dict[str, Path], after: Dict[str, Path]) -> Dict[str, float]:
    noise = np.random.default_rng(0)
    x = noise.normal(-7.5, 3.5, (2, max(FRAMES), FEATURE_DIM)).astype(np.float32)
    feeds: Dict[str, Dict[str, np.ndarray]] = {"encoder.onnx": {"x": x, "x_lens": np.array(FRAMES, dtype=np.int64)}}
    feeds["decoder.onnx"] = {"y": np.array([[0, 0], [0, 1]], dtype=np.int64)}
    encoder_out, decoder_out = (run(before[name], feeds[name])[0] for name in ONNX_FILES[:2])
    feeds["joiner.onnx"] = {"encoder_out": encoder_out[:, 0], "decoder_out": decoder_out}
    found = {}
    for name in ONNX_FILES:
        pairs = list(zip(run(before[name], feeds[name]), run(after[name], feeds[name]), strict=True))
        largest = max(float(np.abs(one).max()) for one, _ in pairs)
        if not np.isfinite(largest) or not largest:
            raise UserError(before[name], f"computes {largest} at most", "numbers that are finite and not all 0", AGAIN)
        found[name.partition(".")[0]] = max(float(np.abs(one - other).max()) for one, other in pairs) / largest
    return found
