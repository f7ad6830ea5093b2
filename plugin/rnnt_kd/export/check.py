"""Is a written folder what it promises?  ``check`` asks in this order, and the first fault ends it:

verify_static    the files by themselves and against each other, then one run in onnxruntime; no system is needed.
                 sherpa-onnx answers a bad model by ending its process, so it is asked here first
verify_numbers   onnxruntime against the system in torch, on random lengths and batches
check_features   the filter banks of sherpa-onnx against ours
check_client     what sherpa-onnx recognises against our own decoder on the system in torch

Letters: C labels, J joiner dimension, F features.
"""

import copy
from dataclasses import asdict, dataclass, replace
from itertools import zip_longest
from pathlib import Path
from typing import Any, Callable, Dict, Iterator, List, Mapping, Optional, Sequence, Tuple

import numpy as np
import onnx
import torch
from torch import Tensor, nn

from rnnt_kd.data.audio_format import FEATURE_DIM, FRAME_SAMPLES, FRAME_SECONDS, SAMPLING_RATE
from rnnt_kd.data.speech import Speech, filter_banks
from rnnt_kd.decoding.lookup import get_search
from rnnt_kd.decoding.streaming import StreamingRecognizer
from rnnt_kd.errors import UserError
from rnnt_kd.export import blank_penalty, client, client_text
from rnnt_kd.export.client import ClientResult
from rnnt_kd.export.graphs import (
    JoinerFile,
    OfflineEncoder,
    PredictorFile,
    StreamingEncoderFile,
    encoder_of,
    random_chunks,
)
from rnnt_kd.export.model_json import ONNX_FILES, read_manifest
from rnnt_kd.export.onnx_file import (
    AGAIN,
    TRANSPOSED,
    OneByOne,
    first_line,
    load_onnx,
    metadata_of,
    multiplies_integers,
    run,
    session,
)
from rnnt_kd.models.transducer import Transducer
from rnnt_kd.scoring.bootstrap import one_seed_p_value
from rnnt_kd.scoring.recognitions import Recognition, words_counted
from rnnt_kd.scoring.word_errors import count_all
from rnnt_kd.sparsity import rounding
from rnnt_kd.text.tokenizer import Tokenizer

Say = Callable[[str], None]
CHECK = "check.json"


def check(
    folder: Path,
    model: Transducer,
    tokenizer: Tokenizer,
    speech: Sequence[Speech],
    data_dir: Optional[Path],
    score_events: bool,
    say: Say,
) -> Tuple[Dict[str, Any], str]:
    """Returns what was measured, and what is wrong with it ("" where nothing is); UserError: what is worse."""
    manifest = verify_static(folder)
    stored = model if manifest["weights"] == "int8" else _stored(model, manifest["weights"])
    exact = manifest["weights"] != "int8" and _learned_so(model, stored)
    found: Dict[str, Any] = {"onnxruntime_against_torch": verify_numbers(folder, model, manifest)}
    usable = [item for item in speech if item.samples is not None]
    found["data_dir"] = str(data_dir) if data_dir else None
    found["left_out"] = {item.id: item.reason for item in speech if item.samples is None}
    if not usable:
        raise UserError(data_dir, "no utterance can be used", "usable audio")
    found["features_difference"] = check_features(usable, folder)
    heard_by = stored if exact else model
    found.update(check_client(folder, heard_by, tokenizer, usable, manifest["streaming"], score_events))
    differences = found["differences"]
    shown = [item for item in differences if exact or item["what"] == "text"]
    for item in shown:
        say(
            f"{item['utterance']} ({item['search']}, batches of {item['batch_size']}): {item['what']} "
            f"'{item['sherpa_onnx']}' from sherpa-onnx, '{item['rnnt_kd']}' from rnnt_kd"
        )
    for number, what in (
        (len(differences) - len(shown), f"more differ in times alone; {CHECK} lists them"),
        (len(found["ties"]), f"times two results were as likely, and sherpa-onnx took the other; {CHECK} lists them"),
        (len(found["differences_in_blanks"]), f"texts have other blanks than {CHECK} expects of sherpa-onnx"),
    ):
        if number:
            say(f"{number} {what}")
    return found, f"sherpa-onnx and rnnt_kd differ {len(differences)} times" if differences and exact else ""


# The files

HIGHEST_OPSET, HIGHEST_IR = 23, 11  # onnxruntime 1.23; sherpa-onnx 2.0.1 brings 1.28
DOMAINS = ("", "ai.onnx", "com.microsoft")
STREAMING_KEYS = "T decode_chunk_len left_context encoder_dim num_encoder_layers cnn_module_kernel pad_length".split()
FLOAT, INT64 = onnx.TensorProto.FLOAT, onnx.TensorProto.INT64
_FIXED = (
    ("blank_id", 0, "sherpa-onnx knows no other blank"),
    ("context_size", 2, "the start context of sherpa-onnx is [-1, 0]"),
    ("subsampling_factor", 4, "sherpa-onnx's times assume it"),
)

Value = Tuple[str, int, Tuple[Optional[int], ...]]  # name, element type, sizes (None: any)
Values = List[Value]


def verify_static(folder: Path) -> Dict[str, Any]:
    """Check everything that can be checked without the system; returns ``model.json``.

    Raises:
      UserError: one line for the first thing that is wrong: a missing or changed file, what ``check_graphs`` refuses, a
        context other than 2, a blank other than 0, a vocabulary that tokens.txt, bpe.model, joiner and metadata do
        not share, a size that is no number where ``static`` stands in ``model.json``, a graph that onnxruntime does
        not run.
    """
    folder = Path(folder)
    manifest, path = read_manifest(folder), folder / "model.json"
    models = {name: load_onnx(folder / name) for name in ONNX_FILES}
    for name, model in models.items():
        check_file(folder / name, model)
        if TRANSPOSED not in metadata_of(model):
            raise UserError(folder / name, f"metadata '{TRANSPOSED}' is missing", "a file written by rnnt_kd", AGAIN)
    for key, value, why in _FIXED:
        if manifest.get(key) != value:
            raise UserError(path, f"{key} is {manifest.get(key)}", f"{value}: {why}")
    pieces = Tokenizer.load(folder / "bpe.model").pieces()
    lines = (folder / "tokens.txt").read_text(encoding="utf-8", errors="replace").split("\n")
    pairs = enumerate(zip_longest(lines, client_text.tokens_txt(pieces).split("\n")), 1)
    if wrong := next((number for number, (one, other) in pairs if one != other), 0):
        expected = f"one 'symbol id' line for each of the {len(pieces)} pieces of bpe.model, in their order"
        raise UserError(f"{folder / 'tokens.txt'}:{wrong}", "is not the vocabulary of bpe.model", expected, AGAIN)
    if manifest.get("vocab_size") != len(pieces):
        raise UserError(path, f"vocab_size is {manifest.get('vocab_size')}", f"{len(pieces)}, the lines of tokens.txt")
    C, J, streaming, static = len(pieces), manifest["joiner_dim"], manifest["streaming"], manifest.get("static")
    paths = {name: folder / name for name in ONNX_FILES}
    signatures = check_signatures(paths, models, C, J, streaming, static=static)
    for name in ONNX_FILES if static else ():
        check_sizes(folder / name, models[name])
    rows = 1 if static else 2
    known: Dict[str, Any] = {"x_lens": np.array([9, 1])[:rows], "y": np.array([[-1, 0], [0, C - 1]])[:rows]}
    known["x"] = np.float32(-7.5)
    for name, (inputs, outputs) in signatures.items():
        feeds = {value: _filled(element, sizes, known.get(value, 0)) for value, element, sizes in inputs}
        output = run(folder / name, feeds)[0]
        expected_sizes = _filled(*outputs[0][1:], 0, T=3).shape
        if output.shape != expected_sizes:
            problem = f"its output has the sizes {_text(output.shape)}"
            raise UserError(folder / name, problem, _text(expected_sizes), AGAIN)
        if not np.isfinite(output).all():
            problem = "its output holds NaN or infinity"
            raise UserError(folder / name, problem, "finite numbers", "train the system again")
        known[outputs[0][0]] = output[:, 0] if output.ndim == 3 else output
    return manifest


def check_file(path: Path, model: onnx.ModelProto) -> None:
    """UserError: ONNX's checker refuses it; operators or a version that the client has not; an unused input."""
    try:
        onnx.checker.check_model(model)
    except onnx.checker.ValidationError as error:
        raise UserError(path, f"the ONNX checker refuses it ({first_line(error)})", "", AGAIN) from None
    for opset in model.opset_import:
        if opset.domain not in DOMAINS:
            raise UserError(path, f"uses operators of '{opset.domain}'", "ONNX's own", AGAIN)
        if opset.domain != "com.microsoft" and opset.version > HIGHEST_OPSET:
            raise UserError(path, f"opset {opset.version}", f"at most {HIGHEST_OPSET}", AGAIN)
    if model.ir_version > HIGHEST_IR:
        raise UserError(path, f"ONNX IR version {model.ir_version}", f"at most {HIGHEST_IR}", AGAIN)
    used = {name for node in model.graph.node for name in node.input}
    for value in model.graph.input:
        if value.name not in used:
            raise UserError(path, f"its input '{value.name}' is not used", "an input that the graph reads", AGAIN)


def check_signatures(
    paths: Mapping[str, Path],
    models: Mapping[str, onnx.ModelProto],
    C: int,
    J: int,
    streaming: bool = False,
    model_type: Optional[str] = "conformer",
    static: Optional[Mapping[str, int]] = None,
) -> Dict[str, Tuple[Values, Values]]:
    """The inputs and outputs of each file, as sherpa-onnx gives and takes them.

    Raises UserError: other ones, or metadata that are missing or disagree.  ``model_type``: None for any.  ``static``:
    batches of one, and as many frames as there.
    """
    metadata = {name: metadata_of(model) for name, model in models.items()}
    encoder, told = paths["encoder.onnx"], metadata["encoder.onnx"]
    model_types = model_type or told.get("model_type") or "a type such as zipformer2"
    for name, key, value in (
        ("decoder.onnx", "vocab_size", str(C)),
        ("decoder.onnx", "context_size", "2"),
        ("encoder.onnx", "model_type", model_types),
    ):
        if metadata[name].get(key) != value:
            raise UserError(paths[name], f"metadata {key} is {metadata[name].get(key)}", value, AGAIN)
    rows: Values = [("encoder_out", FLOAT, (None, J)), ("decoder_out", FLOAT, (None, J))]
    found: Dict[str, Tuple[Values, Values]] = {
        "encoder.onnx": (
            [("x", FLOAT, (None, None, FEATURE_DIM)), ("x_lens", INT64, (None,))],
            [("encoder_out", FLOAT, (None, None, J)), ("encoder_out_lens", INT64, (None,))],
        ),
        "decoder.onnx": ([("y", INT64, (None, 2))], rows[1:]),
        "joiner.onnx": (rows, [("logit", FLOAT, (None, C))]),
    }
    if streaming:
        for key in STREAMING_KEYS:
            if not told.get(key, "").isdigit():
                raise UserError(encoder, f"metadata {key} is {told.get(key)}", "a number", AGAIN)
        T, step, left, D, L, kernel, _ = (int(told[key]) for key in STREAMING_KEYS)
        if step % 4 or T != step + 3:
            problem = f"metadata T is {T} and decode_chunk_len {step}"
            raise UserError(encoder, problem, "decode_chunk_len a multiple of 4, and T 3 more", AGAIN)
        caches: Values = [("cached_attn", FLOAT, (L, left, None, D)), ("cached_conv", FLOAT, (L, kernel - 1, None, D))]
        found["encoder.onnx"] = (
            [("x", FLOAT, (None, T, FEATURE_DIM)), *caches, ("processed_lens", INT64, (None,))],
            [
                ("encoder_out", FLOAT, (None, step // 4, J)),
                *((f"new_{name}", FLOAT, cache) for name, _, cache in caches),
            ],
        )
    if static:
        lengths = {"x": static["feature_frames"], "encoder_out": static["encoder_frames"]}
        for name, sides in found.items():
            inputs, outputs = ([_numbers(value, lengths) for value in values] for values in sides)
            found[name] = inputs, outputs
    for name, (inputs, outputs) in found.items():
        graph = models[name].graph
        weights = {tensor.name for tensor in graph.initializer}
        _check_values(paths[name], "input", [value for value in graph.input if value.name not in weights], inputs)
        _check_values(paths[name], "output", graph.output, outputs)
    return found


def _numbers(value: Value, lengths: Mapping[str, int]) -> Value:
    name, element, (first, *others) = value
    return name, element, (first or 1, *(lengths.get(name, 1) if size is None else size for size in others))


def check_sizes(path: Path, model: onnx.ModelProto) -> None:
    """UserError: a value in the graph some of whose sizes are not told by those of the inputs."""
    graph = onnx.shape_inference.infer_shapes(model, strict_mode=True, data_prop=True).graph
    told = {
        value.name
        for value in (*graph.input, *graph.value_info, *graph.output)
        if value.type.tensor_type.HasField("shape")
        and all(size.HasField("dim_value") for size in value.type.tensor_type.shape.dim)
    }
    for name in (name for node in graph.node for name in node.output if name not in told):
        raise UserError(path, f"the sizes of '{name}' are not fixed", "numbers alone", AGAIN)


def _check_values(path: Path, kind: str, values: Sequence[onnx.ValueInfoProto], expected: Values) -> None:
    names = [name for name, _, _ in expected]
    if [value.name for value in values] != names:
        raise UserError(path, f"its {kind}s are {', '.join(v.name for v in values)}", ", ".join(names), AGAIN)
    for value, (name, element_type, sizes) in zip(values, expected, strict=True):
        tensor, type_name = value.type.tensor_type, onnx.TensorProto.DataType.Name
        if tensor.elem_type != element_type:
            raise UserError(path, f"{kind} '{name}' is {type_name(tensor.elem_type)}", type_name(element_type), AGAIN)
        got = [size.dim_value if size.HasField("dim_value") else None for size in tensor.shape.dim]
        pairs = list(zip(got, sizes))
        wrong = len(got) != len(sizes) or any(None not in pair and pair[0] != pair[1] for pair in pairs)
        if wrong or kind == "input" and any(b is None and a is not None for a, b in pairs):
            raise UserError(path, f"{kind} '{name}' has the sizes {_text(got)}", _text(sizes), AGAIN)


def _filled(element: int, sizes: Sequence[Optional[int]], values: Any, T: int = 9) -> np.ndarray:
    """Of N = 2 and T where any size may be."""
    shape = [(T if place == 1 else 2) if size is None else size for place, size in enumerate(sizes)]
    return np.broadcast_to(values, shape).astype(np.float32 if element == FLOAT else np.int64)


def _text(sizes: Sequence[Optional[int]]) -> str:
    return "(" + ", ".join("any" if size is None else str(size) for size in sizes) + ")"


# Numbers

TOLERANCE = 1e-4  # encoder outputs and logits are of order 1 to 10
ROUNDED_FACTOR, ROUNDED_FLOOR = 2.0, 1e-4

Case = Tuple[str, type, List[Tuple[Tensor, ...]]]  # file, wrapper of the model, batches


def verify_numbers(folder: Path, model: Transducer, manifest: Dict[str, Any], seed: int = 0) -> Dict[str, float]:
    """File -> largest difference; for rounded weights |difference| / |output|, over all batches together.

    float32, float16, int4: within 1e-4 of the system with the weights that are stored.  int8, whose inputs are rounded,
    too: at most twice as far from the system as a plain imitation in torch, that rounds weights and inputs of every
    linear map and convolution, and the embedding, to 256 steps from least to largest.  (QInt8 weights saturate on CPUs
    with AVX2 and no VNNI, and are eight times as far.)  A streaming encoder gets chunks in a row; its caches are
    compared, too.

    Raises: UserError: a difference above the bound, or other lengths.
    """
    model = copy.deepcopy(model).eval()
    weights = manifest["weights"]
    imitation = _eight_bit(model) if weights == "int8" else _stored(model, weights)
    found: Dict[str, float] = {}
    static = manifest.get("static")
    for name, wrapper, batches in _cases(model, torch.Generator().manual_seed(seed), manifest["streaming"], static):
        path = folder / name
        expected = [_forward(wrapper(model), batch) for batch in batches]
        got = _run_all(OneByOne(path) if static else session(path), batches)
        for one, other in zip(got, expected, strict=True):
            if [value.shape for value in one] != [value.shape for value in other]:
                shapes = [tuple(values[0].shape) for values in (one, other)]
                raise UserError(path, f"its output has the sizes {shapes[0]}", f"{shapes[1]}, as in torch")
            if not manifest["streaming"] and one[1:] and one[1].tolist() != other[1].tolist():
                problem = f"encoder_out_lens {one[1].tolist()}"
                raise UserError(path, problem, f"{other[1].tolist()}, as in torch")
        stored = [_forward(wrapper(imitation), batch) for batch in batches]
        far, bound = _largest(got, stored), TOLERANCE
        found[name] = far if weights == "float32" else _relative(got, expected)
        if weights == "int8":
            far, bound = found[name], max(ROUNDED_FACTOR * _relative(stored, expected), ROUNDED_FLOOR)
        if not far <= bound:
            problem = f"its output differs from torch by {far:.2g}"
            cure = "a fault of the export: report it"
            if weights == "int8" and not multiplies_integers():
                cure = "this onnxruntime multiplies integers wrongly on this CPU: check with another version of it"
            raise UserError(path, problem, f"at most {bound:.2g}", cure)
    return found


def _cases(
    model: Transducer, generator: torch.Generator, streaming: bool, static: Optional[Mapping[str, int]] = None
) -> Iterator[Case]:
    lens = [[50, 31], [1], [7, 3, 123, 2], torch.randint(4, 900, (3,), generator=generator).tolist()]
    if static:  # one at a time: what stands on padding is nobody's
        longest = static["feature_frames"]
        lens = [[1], [longest], *torch.randint(1, longest + 1, (8, 1), generator=generator).tolist()]
    if streaming:
        chunks = [chunk for size in (1, 3) for chunk in random_chunks(model, generator, size, 7)]
        yield "encoder.onnx", StreamingEncoderFile, chunks
    else:
        features = [torch.randn(len(n), max(n), FEATURE_DIM, generator=generator) * 3.5 - 7.5 for n in lens]
        yield "encoder.onnx", OfflineEncoder, [(x, torch.tensor(n)) for x, n in zip(features, lens, strict=True)]
    labels = torch.randint(-1, model.vocab_size, (64, model.predictor.context_size), generator=generator)
    yield "decoder.onnx", PredictorFile, [(labels,), (labels[:1],), (torch.tensor([[-1, 0]]),)]
    dim = model.joiner.output_linear.in_features
    pairs = [(torch.randn(n, dim, generator=generator), torch.randn(n, dim, generator=generator)) for n in (1, 33)]
    yield "joiner.onnx", JoinerFile, [pair for pair in pairs]


@torch.no_grad()
def _forward(network: nn.Module, batch: Tuple[Tensor, ...]) -> List[np.ndarray]:
    output = network.eval()(*batch)
    return [value.numpy() for value in (output if isinstance(output, tuple) else (output,))]


def _run_all(loaded: Any, batches: List[Tuple[Tensor, ...]]) -> List[List[np.ndarray]]:
    names = [value.name for value in loaded.get_inputs()]
    feeds = [{name: value.numpy() for name, value in zip(names, batch, strict=True)} for batch in batches]
    return [loaded.run(None, values) for values in feeds]


def _relative(got: List[List[np.ndarray]], expected: List[List[np.ndarray]]) -> float:
    error = sum(float(((a[0] - b[0]) ** 2).sum(dtype=np.float64)) for a, b in zip(got, expected, strict=True))
    return (error / max(sum(float((b[0] ** 2).sum(dtype=np.float64)) for b in expected), 1e-12)) ** 0.5


def _largest(got: List[List[np.ndarray]], expected: List[List[np.ndarray]]) -> float:
    pairs = [pair for one, other in zip(got, expected, strict=True) for pair in zip(one, other, strict=True)]
    return max(float(np.abs(a - b).max()) for a, b in pairs)


def _stored(model: Transducer, weights: str) -> Transducer:
    """The model with the weights that a file in float32, float16 or int4 holds."""
    model = copy.deepcopy(model).requires_grad_(False)
    for value in model.state_dict().values() if weights != "float32" else ():
        if value.is_floating_point():
            value.copy_(rounding.rounded(value, 4) if weights == "int4" else value.half())
    return model


def _learned_so(model: Transducer, stored: Transducer) -> bool:
    """Does rounding change no weight?  Blank's bias aside, which an export lowers."""
    pairs = zip(model.state_dict().items(), stored.state_dict().values(), strict=True)
    return all(name == blank_penalty.BIAS or torch.equal(a, b) for (name, a), b in pairs)


def _eight_bit(model: Transducer) -> Transducer:
    model = copy.deepcopy(model).requires_grad_(False)
    for module in model.modules():
        if isinstance(module, (nn.Linear, nn.Conv1d, nn.Conv2d)):
            module.register_forward_pre_hook(lambda module, inputs: (_to_256_steps(inputs[0]), *inputs[1:]))
        if isinstance(module, (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Embedding)):
            module.weight.copy_(_to_256_steps(module.weight))
    return model


def _to_256_steps(values: Tensor) -> Tensor:
    """Rounded to 256 steps between the least and the largest value, of which zero is one."""
    low, high = values.min().clamp(max=0.0), values.max().clamp(min=0.0)
    step = ((high - low) / 255).clamp(min=1e-12)
    return ((values / step).round().clamp(-(-low / step).round(), 255 - (-low / step).round())) * step


# What is recognised

BATCH_SIZES = (1, 8)
BEAM = 4
FEATURE_TOLERANCE = 2e-3
TIE_TRIALS = 50
ENCODER_FRAME_SECONDS = 4 * FRAME_SECONDS
JOINED = 3
PAUSE_SECONDS = 1.6  # sherpa-onnx takes 1.2 s of blanks after speech for an endpoint
_FEATURE_SAMPLES = 600 * SAMPLING_RATE

Segments = Sequence[ClientResult]
Run = Tuple[Dict[str, Any], List[Speech], Sequence[Segments], Sequence[Segments]]  # facts, speech, ours, sherpa-onnx's


@dataclass(frozen=True)
class Difference:
    """One utterance that sherpa-onnx and our decoder recognise differently, or at other times."""

    utterance: str
    search: str
    batch_size: int
    what: str  # "text", "tokens", "times", "segments"; "tie": one of these; "blanks": all else is the same
    sherpa_onnx: str
    rnnt_kd: str

    @property
    def decides(self) -> bool:
        """Is it more than a tie, or a client that sets blanks otherwise than ``client_text``?"""
        return self.what not in ("blanks", "tie")


def check_features(speech: Sequence[Speech], folder: Path) -> float:
    """Largest difference between our filter banks and ``OnlineStream.get_frames``, on up to ten minutes in a row.

    Raises: UserError: it is above 2e-3, or the frames are not as many.
    """
    samples = np.concatenate([item.samples for item in speech if item.samples is not None])[:_FEATURE_SAMPLES]
    ours, theirs = filter_banks(samples).numpy(), np.asarray(client.features(samples))
    if ours.shape != theirs.shape:
        raise UserError(folder, f"sherpa-onnx computes features of the shape {theirs.shape}", f"{ours.shape}")
    largest = float(np.abs(ours - theirs).max())
    if not largest <= FEATURE_TOLERANCE:
        raise UserError(folder, f"sherpa-onnx's features differ by {largest:.2g}", f"at most {FEATURE_TOLERANCE:g}")
    return largest


def check_client(
    folder: Path,
    model: Transducer,
    tokenizer: Tokenizer,
    speech: Sequence[Speech],
    streaming: bool = False,
    score_events: bool = True,
) -> Dict[str, Any]:
    """Recognise ``speech`` (all with samples) by greedy and modified beam search on either side.

    Offline: single utterances and batches.  Streaming, 100 ms of audio at a time: every utterance by itself, and all of
    them joined by threes with pauses between them, which are endpoints: there both sides begin a new segment.
    Our side starts from the audio too (Lhotse's filter banks without stage 1's rounding).  Tokens, times and letters
    decide; blanks are compared as ``client_text`` says that the client writes them.  The client's features may differ
    from ours by ``FEATURE_TOLERANCE``.  Where two paths are as likely as that, either may win: a difference that our
    own search makes, too, when its features move by so much is a tie, and decides nothing.  ``score_events``: <unk> and
    [noise] count in the word error rates.

    Returns JSON values: ``utterances``, ``audio_seconds``, ``runs`` (search, batch_size or segments, streams and
    number_of_segments, differences, and where there are reference words wer_sherpa_onnx, wer_rnnt_kd and the p-value
    of the pair), ``differences`` (a list), ``ties`` and ``differences_in_blanks``.
    Raises: UserError: the client died.
    """
    runs: List[Dict[str, Any]] = []
    differences: List[Difference] = []
    for facts, items, ours, theirs in (_streams if streaming else _batches)(folder, model, tokenizer, speech):
        search, found = facts["search"], []
        for item, own, other in zip(items, ours, theirs, strict=True):
            for one in compare(item.id, search, facts.get("batch_size", 1), own, other):
                tie = one.decides and not streaming
                tie = tie and is_tie(model, tokenizer, filter_banks(item.heard), search, other)
                found.append(replace(one, what="tie") if tie else one)
        differences += found
        facts["differences"] = sum(one.decides for one in found)
        if streaming:
            facts["number_of_segments"] = sum(map(len, ours))
        runs.append({**facts, **word_errors(items, ours, theirs, score_events=score_events)})
    return {
        "utterances": len(speech),
        "audio_seconds": round(sum(item.seconds for item in speech), 3),
        "beam": BEAM,
        "runs": runs,
        "differences": [asdict(item) for item in differences if item.decides],
        "ties": [asdict(item) for item in differences if item.what == "tie"],
        "differences_in_blanks": [asdict(item) for item in differences if item.what == "blanks"],
    }


def _batches(folder: Path, model: Transducer, tokenizer: Tokenizer, speech: Sequence[Speech]) -> Iterator[Run]:
    samples = [item.heard for item in speech]
    features = [filter_banks(item) for item in samples]
    for search in client.SEARCHES:
        for size in BATCH_SIZES:
            ours = recognise(model, tokenizer, features, search, size)
            theirs = client.recognize(folder, samples, search=search, beam=BEAM, batch_size=size)
            facts = {"search": search, "batch_size": size}
            yield facts, list(speech), [[result] for result in ours], [[result] for result in theirs]


def _streams(folder: Path, model: Transducer, tokenizer: Tokenizer, speech: Sequence[Speech]) -> Iterator[Run]:
    for segments, items in (("utterances", list(speech)), ("endpoints", _join(speech))):
        samples, at_endpoints = [item.heard for item in items], segments == "endpoints"
        for search in client.SEARCHES:
            theirs = client.recognize_streaming(folder, samples, search=search, beam=BEAM, endpoints=at_endpoints)
            ours = [stream(model, tokenizer, item, search, at_endpoints) for item in samples]
            yield {"search": search, "segments": segments, "streams": len(items)}, items, ours, theirs


def _join(speech: Sequence[Speech]) -> List[Speech]:
    pause = np.zeros(int(PAUSE_SECONDS * SAMPLING_RATE), dtype=np.float32)
    found = []
    for start in range(0, len(speech), JOINED):
        group = speech[start : start + JOINED]
        samples = np.concatenate([part for item in group for part in (item.heard, pause)])
        found.append(Speech("+".join(item.id for item in group), " ".join(item.text for item in group), "", samples))
    return found


def recognise(
    model: Transducer, tokenizer: Tokenizer, features: Sequence[Tensor], search: str, batch_size: int
) -> List[ClientResult]:
    found: List[ClientResult] = []
    for start in range(0, len(features), batch_size):
        batch = features[start : start + batch_size]
        lens = torch.tensor([len(matrix) for matrix in batch])
        with torch.no_grad():
            encoder_out, out_lens = model.encode(nn.utils.rnn.pad_sequence(list(batch), batch_first=True), lens)
        settings = {"beam": BEAM, "blank_id": tokenizer.blank_id, "unk_id": tokenizer.unk_id}
        found += [_result(best, tokenizer) for best, *_ in get_search(search)(model, encoder_out, out_lens, **settings)]
    return found


def stream(
    model: Transducer, tokenizer: Tokenizer, samples: np.ndarray, search: str, at_endpoints: bool = False
) -> List[ClientResult]:
    """The segments that our own streaming decoder finds in ``samples``, heard as ``recognize_streaming`` does."""
    encoder = encoder_of(model)
    tail = (encoder.feature_frames(encoder.chunk_frames) + 1) * FRAME_SAMPLES
    features = filter_banks(np.concatenate([samples, np.zeros(tail, dtype=np.float32)]))
    settings = {"beam": BEAM, "blank_id": tokenizer.blank_id, "unk_id": tokenizer.unk_id}
    recognizer = StreamingRecognizer(model, search=search, **settings)
    heard, segments = 0, []
    for start in range(0, len(samples), client.CHUNK):
        ready = frames_ready(min(start + client.CHUNK, len(samples)))
        recognizer.accept(features[heard:ready])
        heard = ready
        if at_endpoints and recognizer.is_endpoint():
            segments.append(_result(recognizer.result(), tokenizer, recognizer.start_frame * FRAME_SECONDS, True))
            recognizer.reset()
    recognizer.accept(features[heard:])
    return [*segments, _result(recognizer.result(), tokenizer, recognizer.start_frame * FRAME_SECONDS, True)]


def frames_ready(samples: int) -> int:
    """Feature frames whose window of 25 ms, centred in 10 ms, lies within the first ``samples`` of a stream."""
    return max(0, (samples - 120) // FRAME_SAMPLES)


def _result(found, tokenizer: Tokenizer, start: float = 0.0, streaming: bool = False) -> ClientResult:
    """A hypothesis, as sherpa-onnx would give it."""
    symbols, times = tokenizer.pieces(), [frame * ENCODER_FRAME_SECONDS for frame in found.timestamps]
    pieces = [symbols[token] for token in found.tokens]
    return ClientResult(client_text.text_of(pieces, streaming), client_text.tokens_of(pieces), times, start)


def is_tie(model: Transducer, tokenizer: Tokenizer, features: Tensor, search: str, theirs: Segments) -> bool:
    """Does our search find what the client found in some (frames, 80) ``features`` within the tolerance of these?"""
    generator = torch.Generator().manual_seed(0)
    for _ in range(TIE_TRIALS):
        moved = features + FEATURE_TOLERANCE * (2 * torch.rand(features.shape, generator=generator) - 1)
        if not any(one.decides for one in compare("", "", 1, recognise(model, tokenizer, [moved], search, 1), theirs)):
            return True
    return False


def compare(utterance: str, search: str, batch_size: int, ours: Segments, theirs: Segments) -> List[Difference]:
    """The first thing that differs; a list of it, or an empty one."""
    sides = []
    for side in (ours, theirs):
        text = " | ".join(segment.text for segment in side)
        tokens = "|".join(token for segment in side for token in segment.tokens)
        times = " ".join(f"{segment.start + time:.2f}" for segment in side for time in segment.timestamps)
        starts = " ".join(f"{segment.start:.2f}" for segment in side)
        sides.append({"text": text, "tokens": tokens, "times": times, "blanks": text, "segments": starts})
    for what, one in sides[0].items():
        other = sides[1][what]
        if one != other and (what != "text" or "".join(one.split()) != "".join(other.split())):
            return [Difference(utterance, search, batch_size, what, sherpa_onnx=other, rnnt_kd=one)]
    return []


def word_errors(
    speech: Sequence[Speech], ours: Sequence[Segments], theirs: Sequence[Segments], *, score_events: bool
) -> Dict[str, Any]:
    """Both word error rates, the counts of sherpa-onnx's, and the p-value (None: too few); nothing without reference
    words.  Words are counted in the tokens: in its text the client closes words up.  A segment begins a new word.
    """
    counted = []
    for side in (ours, theirs):
        tokens = ([token for one in segments for token in (" ", *one.tokens)] for segments in side)
        words = [tuple(client_text.words_of(one)) for one in tokens]
        found = [Recognition(item.id, tuple(item.text.split()), said) for item, said in zip(speech, words, strict=True)]
        counted.append(words_counted(found, score_events))
    own, other = counted
    if not any(item.ref for item in own):
        return {}
    counts, p_value = count_all(other), one_seed_p_value(other, own)
    return {
        "wer_sherpa_onnx": round(counts.wer or 0.0, 4),
        "errors": {"words": counts.words, "ins": counts.ins, "del": counts.dels, "sub": counts.subs},
        "wer_rnnt_kd": round(count_all(own).wer or 0.0, 4),
        "p_value": p_value and round(p_value, 6),
    }
