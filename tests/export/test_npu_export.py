"""``--target npu``: a number for every size, and the numbers and tokens of files that take any."""

import re
import shutil
from pathlib import Path

import export_cases as cases
import numpy as np
import onnx
import pytest
import torch
from command_cases import refused, told
from export_cases import change_model, rewrite

from rnnt_kd.bin import export, transcribe
from rnnt_kd.data.speech import filter_banks, read_speech
from rnnt_kd.decoding import greedy_search
from rnnt_kd.decoding.streaming import StreamingRecognizer
from rnnt_kd.export import check_files, check_numbers
from rnnt_kd.export.import_back import import_export
from rnnt_kd.export.model_json import ONNX_FILES, read_manifest
from rnnt_kd.export.onnx_file import session
from rnnt_kd.export.targets import npu
from rnnt_kd.systems.store import load_system, read_tensors
from rnnt_kd.text.tokenizer import Tokenizer

FRAMES = 133  # of b-2, so that it and all shorter ones fit
DOCS = Path(__file__).resolve().parents[2] / "docs" / "export.md"


@pytest.fixture(scope="module")
def any_size(workplace):
    """Of a system that says different labels, and blanks."""
    cases.make_system(workplace / "systems" / "talks", workplace / "bpe", seed=5)
    return cases.export(workplace, "talks", check=False)


@pytest.fixture(scope="module")
def offline(any_size, workplace):
    options = {"seconds": FRAMES / 100, "check_data_dir": workplace / "data"}
    return cases.export(workplace, "talks", "npu", target="npu", **options)


@pytest.fixture(scope="module")
def chunks(hears, workplace):
    options = {"streaming": True, "check_data_dir": workplace / "data"}
    return cases.export(workplace, "hears", "npu chunks", target="npu", **options)


@pytest.fixture(params=["offline", "chunks"])
def made(request):
    return request.getfixturevalue(request.param)


def sizes(values):
    return {value.name: [size.dim_value for size in value.type.tensor_type.shape.dim] for value in values}


def pairs_of(one, other, feeds):
    """Outputs of two files."""
    return zip(*(session(path).run(None, feeds) for path in (one, other)), strict=True)


def test_every_size_is_a_number_that_onnx_infers(made):
    for name in ONNX_FILES:
        model = onnx.load(made / name)
        graph = onnx.shape_inference.infer_shapes(model, check_type=True, strict_mode=True, data_prop=True).graph
        found = sizes([*graph.input, *graph.value_info, *graph.output])
        assert set(found) >= {output for node in graph.node for output in node.output}
        assert all(size > 0 for shape in found.values() for size in shape)  # 0: no number
        assert {shape[2 if "cached" in key else 0] for key, shape in sizes([*graph.input, *graph.output]).items()} == {
            1
        }


def test_the_operators_are_those_of_the_docs_and_none_makes_sizes(offline, chunks):
    rows = dict(
        re.findall(
            r"^\| (encoder, both|offline also|streaming also|decoder|joiner) \| (.*) \|$", DOCS.read_text(), re.M
        )
    )
    rows = {key: set(re.findall(r"[A-Z]\w+", text.split(";")[0])) for key, text in rows.items()}
    for folder, kind in ((offline, "offline also"), (chunks, "streaming also")):
        documented = {"encoder.onnx": rows["encoder, both"] | rows[kind], "decoder.onnx": rows["decoder"]}
        for name, operators in {**documented, "joiner.onnx": rows["joiner"]}.items():
            assert {node.op_type for node in onnx.load(folder / name).graph.node} == operators


def test_model_json_and_readme_say_so(offline, chunks):
    values = read_manifest(offline)
    assert values["static"] == {"feature_frames": FRAMES, "encoder_frames": 34} and values["check"]["utterances"] == 4
    assert values["check"]["left_out"] == 2 and {run["by"] for run in values["check"]["runs"]} == {"onnxruntime"}
    assert read_manifest(chunks)["static"] == {"feature_frames": 67, "encoder_frames": 16}
    assert "takes 133 frames of\n10 ms and gives 34" in (offline / "README.md").read_text()
    assert "begins 64 frames later" in (chunks / "README.md").read_text()


def test_padding_changes_no_valid_frame(offline, any_size):
    """Whatever stands there, at any length."""
    generator = np.random.default_rng(5)
    for frames in (1, 2, *generator.integers(3, FRAMES, 9), FRAMES):
        x = generator.normal(-7.5, 3.5, size=(1, frames, 80)).astype(np.float32)
        x_lens = np.array([frames])
        out, lens = session(any_size / "encoder.onnx").run(None, {"x": x, "x_lens": x_lens})
        for filling in (0.0, 1e3, -30.0):
            padded = np.pad(x, [(0, 0), (0, FRAMES - frames), (0, 0)], constant_values=filling)
            got, got_lens = session(offline / "encoder.onnx").run(None, {"x": padded, "x_lens": x_lens})
            assert got.shape[1] == 34 and got_lens.tolist() == lens.tolist() == [-(-frames // 4)]
            assert np.abs(got[:, : lens[0]] - out).max() < check_numbers.TOLERANCE


def test_the_other_files_give_the_numbers_of_those_of_any_size(offline, any_size, chunks, hears):
    generator = np.random.default_rng(6)
    for y in ([-1, 0], [0, 15], [7, 3]):
        ((one, other),) = pairs_of(any_size / "decoder.onnx", offline / "decoder.onnx", {"y": np.array([y])})
        rows = {"encoder_out": generator.normal(size=other.shape).astype(np.float32), "decoder_out": other}
        ((logit, own),) = pairs_of(any_size / "joiner.onnx", offline / "joiner.onnx", rows)
        assert (
            np.abs(one - other).max() < check_numbers.TOLERANCE and np.abs(logit - own).max() < check_numbers.TOLERANCE
        )
    shapes = sizes(onnx.load(chunks / "encoder.onnx").graph.input)
    feeds = {name: np.zeros(shapes[name], np.float32) for name in ("cached_attn", "cached_conv")}
    for chunk in range(4):
        feeds.update(x=generator.normal(-7.5, 3.5, size=(1, 67, 80)).astype(np.float32), processed_lens=np.array([0]))
        pairs = list(pairs_of(hears / "encoder.onnx", chunks / "encoder.onnx", feeds))
        assert all(np.abs(one - other).max() < check_numbers.TOLERANCE for one, other in pairs), chunk
        feeds.update(cached_attn=pairs[1][1], cached_conv=pairs[2][1])


def test_a_greedy_search_as_the_readme_tells_it_says_what_ours_says(made, workplace):
    streaming = read_manifest(made)["streaming"]
    encoder, decoder, joiner = (session(made / name) for name in ONNX_FILES)
    model, _ = load_system(workplace / "systems" / ("hears" if streaming else "talks"))
    said = []
    for item in read_speech(workplace / "data"):
        x, rows = filter_banks(item.samples), []
        if streaming:
            stream = StreamingRecognizer(model, search="greedy_search")
            expected = stream.accept(x).tokens
            caches = [np.zeros(value.shape, np.float32) for value in encoder.get_inputs()[1:3]]
            for start in range(0, len(x) - 67, 64):
                feeds = dict(x=x[None, start : start + 67].numpy(), cached_attn=caches[0], cached_conv=caches[1])
                out, *caches = encoder.run(None, {**feeds, "processed_lens": np.array([0])})
                rows += list(out[0])
        elif len(x) <= FRAMES:
            with torch.no_grad():
                expected = greedy_search.search(model, *model.encode(x[None], torch.tensor([len(x)])))[0][0].tokens
            padded = np.zeros((1, FRAMES, 80), np.float32)
            padded[0, : len(x)] = x
            out, lens = encoder.run(None, {"x": padded, "x_lens": np.array([len(x)])})
            rows = list(out[0, : lens[0]])
        else:
            continue
        labels = [-1, 0]
        for row in rows:
            heard = {"encoder_out": row[None], "decoder_out": decoder.run(None, {"y": np.array([labels[-2:]])})[0]}
            best = int(joiner.run(None, heard)[0].argmax())
            labels += [best] * (best > 1)
        assert labels[2:] == expected
        said += expected
    assert len(set(said)) >= 3


@pytest.mark.parametrize("more, message", [
    ([], "--seconds: not given with --target npu; expected 0.1 to 60, the longest utterance"),
    (["--seconds", "0.09"], "--seconds: 0.09; expected 0.1 to 60"),
    (["--seconds", "nan"], "--seconds: invalid float value: 'nan'"),
    (["--seconds", "1e9"], "--seconds: 1e+09; expected 0.1 to 60"),
    (["--seconds", "1", "--format", "int8+sparse"], "--target npu --format: 'int8+sparse'; expected float32: "),
    (["--seconds", "1", "--target", "sherpa-onnx"], "--seconds: 1, but sherpa-onnx gives utterances of any length"),
    (["--seconds", "1", "--streaming"], "looks at the whole utterance; expected a streaming encoder"),
    (["--seconds", "0.2"], "data: no utterance can be used; expected audio of at most 20 frames (0.2 s)"),
])  # fmt: skip
def test_what_cannot_be_is_one_line_and_no_folder(workplace, tmp_path, capsys, more, message):
    argv = [workplace / "systems" / "dense", "--bpe-dir", workplace / "bpe", "--out", tmp_path / "out"]
    argv += ["--target", "npu", "--check-data-dir", workplace / "data", *more]
    assert message in refused(capsys, export.main, *argv)
    assert not (tmp_path / "out").exists()


def test_chunks_have_their_length_and_sherpa_onnx_is_not_sent_such_files(chunks, workplace, tmp_path, capsys):
    argv = [workplace / "systems" / "hears", "--bpe-dir", workplace / "bpe", "--out", tmp_path / "out"]
    argv += ["--target", "npu", "--streaming", "--seconds", "1"]
    assert "--seconds: 1 with --streaming; expected none: the chunk" in refused(capsys, export.main, *argv)
    assert "fixed sizes, for NPUs; expected one for sherpa" in refused(capsys, transcribe.main, chunks, "x.wav")


def test_a_size_that_is_no_number_or_hangs_on_data_is_refused(offline, any_size, tmp_path):
    def changed(change=lambda model: None, source=offline, **values):
        out = shutil.copytree(source, tmp_path / "out", dirs_exist_ok=True)
        change_model(out / "joiner.onnx", change)
        rewrite(out, **values)
        return told(check_files.verify_static, out)

    def hang_on_data(model):
        node = onnx.helper.make_node
        nodes = [node("NonZero", ["encoder_out"], ["places"]), node("ReduceSum", ["places"], ["number"], keepdims=0)]
        nodes += [node("Cast", ["number"], ["as_float"], to=1), node("Add", ["decoder_out", "as_float"], ["more"])]
        users = [one for one in model.graph.node if "decoder_out" in one.input]
        for user in users:
            user.input[list(user.input).index("decoder_out")] = "more"
        for place, one in enumerate(nodes):
            model.graph.node.insert(place, one)

    static = {"feature_frames": FRAMES, "encoder_frames": 34}
    assert "joiner.onnx: the sizes of 'places' are not fixed" in changed(hang_on_data)
    assert "encoder.onnx: the sizes of '" in changed(source=any_size, static=static)
    assert "'x' has the sizes (1, 133, 80); expected (1, 132, 80)" in changed(static={**static, "feature_frames": 132})
    assert "'x' has the sizes (1, 133, 80); expected (any, any, 80)" in changed(static=None)


def test_the_check_hears_another_model(made, workplace, monkeypatch):
    """Its numbers, and without them its tokens."""
    streaming = read_manifest(made)["streaming"]
    model, _ = load_system(workplace / "systems" / ("hears" if streaming else "talks"))
    with torch.no_grad():
        model.joiner.output_linear.bias[5] += 4.0
    said, items = [], list(read_speech(workplace / "data"))
    heard = made, model, Tokenizer.load(workplace / "bpe"), items, workplace / "data", True, said.append
    assert "joiner.onnx: its output differs from torch by 4" in told(npu.check, *heard)
    monkeypatch.setattr(npu, "verify_numbers", lambda *arguments: {})
    found, fault = npu.check(*heard)
    assert fault == f"onnxruntime and rnnt_kd differ {len(said)} times" and len(found["differences"]) == len(said) > 4


def test_weights_come_back(offline, workplace, tmp_path):
    import_export(offline, tmp_path / "system")
    original = read_tensors(workplace / "systems" / "talks" / "model.safetensors")
    for name, value in read_tensors(tmp_path / "system" / "model.safetensors").items():
        assert name.startswith(("simple_", "ctc_")) or torch.equal(value, original[name]), name
