"""A streaming export in sherpa-onnx's OnlineRecognizer, against torch and against our streaming decoder."""

import re
import shutil

import numpy as np
import onnx
import pytest
import torch
from audio_cases import noise
from export_cases import change_model, make_system, rewrite, right_integers, run_readme
from export_cases import export as exported_to

from rnnt_kd.bin import export
from rnnt_kd.data.speech import filter_banks, read_speech
from rnnt_kd.decoding.streaming import StreamingRecognizer
from rnnt_kd.errors import UserError
from rnnt_kd.export import check_client, client
from rnnt_kd.export.check_files import verify_static
from rnnt_kd.export.check_numbers import verify_numbers
from rnnt_kd.export.model_json import read_manifest
from rnnt_kd.export.onnx_file import load_onnx, metadata_of, session
from rnnt_kd.systems.store import load_system, write_tensors
from rnnt_kd.text.tokenizer import Tokenizer

SEARCHES = ("greedy_search", "modified_beam_search")


@pytest.fixture(scope="module")
def system(workplace):
    """Random weights, but silent in silence: there are endpoints."""
    folder = make_system(workplace / "systems" / "stream", workplace / "bpe", encoder="streaming_conformer", seed=3)
    model, _ = load_system(folder)
    output = model.joiner.output_linear
    with torch.no_grad():
        silent, loud = (hidden(model, audio) for audio in (np.zeros(64000, np.float32), speech(4.0)[:32000]))
        direction = (silent - loud) / (silent - loud).square().sum()
        output.weight[0] += 60 * direction
        output.bias[0] -= 60 * direction @ loud + 9
    write_tensors(folder / "model.safetensors", model.state_dict())
    return folder


def hidden(model, samples):
    """What the output layer sees on average."""
    x = filter_banks(samples)
    encoder_out, _ = model.encode(x[None], torch.tensor([len(x)]))
    contexts = torch.randint(0, 16, (50, 2), generator=torch.Generator().manual_seed(0))
    predicted = model.joiner.predictor_proj(model.predictor(contexts, need_pad=False)[:, 0])
    return torch.tanh(model.joiner.encoder_proj(encoder_out[0])[-20:, None] + predicted).mean((0, 1))


@pytest.fixture(scope="module")
def streaming(workplace, system):
    return exported_to(workplace, "stream", streaming=True, check_data_dir=workplace / "data")


@pytest.fixture(scope="module")
def model(system):
    return load_system(system)[0]


@pytest.fixture
def folder(streaming, tmp_path):
    """A copy to spoil."""
    return shutil.copytree(streaming, tmp_path / "export")


def speech(seconds, seed=5):
    """Noise that swells and falls, with a pause of 3 s in the middle."""
    half, rest = np.array_split(noise(seconds, seed), 2)
    return np.concatenate([half, np.zeros(48000, np.float32), rest])


def test_a_good_export_passes_in_every_search_with_and_without_endpoints(streaming):
    assert metadata_of(load_onnx(streaming / "encoder.onnx"))["pad_length"] == "3"
    manifest = verify_static(streaming)
    assert manifest["streaming"] and manifest["check"]["differences"] == 0
    runs = manifest["check"]["runs"]
    assert [(run["search"], run["segments"]) for run in runs] == [
        (search, segments) for segments in ("utterances", "endpoints") for search in SEARCHES
    ]
    assert any(run["number_of_segments"] > run["streams"] for run in runs)


def test_frames_counted_from_0_again_change_nothing(streaming):
    """After an endpoint the client counts from 0 and keeps the caches."""
    run, generator = session(streaming / "encoder.onnx"), np.random.default_rng(1)
    feeds = {
        item.name: generator.normal(size=[1 if isinstance(n, str) else n for n in item.shape]).astype(np.float32)
        for item in run.get_inputs()[:3]
    }

    def after(frames):
        return run.run(None, {**feeds, "processed_lens": np.array([frames], dtype=np.int64)})

    late, early = after(6400), after(0)
    assert all(np.array_equal(one, other) for one, other in zip(late, early, strict=True))
    feeds["cached_attn"][:] = 0
    assert np.abs(after(6400)[0] - late[0]).max() > 1e-3  # what was heard before matters


def same(ours, theirs):
    assert len(ours) == len(theirs)
    for own, other in zip(ours, theirs, strict=True):
        assert other.text == own.text.strip() and other.start == pytest.approx(own.start)
        words = [[token.replace("\u2581", " ") for token in side.tokens] for side in (own, other)]
        assert words[0] == words[1]
        assert other.timestamps == pytest.approx(own.timestamps, abs=1e-3)


@pytest.mark.parametrize("search", SEARCHES)
@pytest.mark.parametrize("endpoints, segments", [(False, (1,)), (True, (2, 3, 4))])
def test_the_client_hears_what_our_streaming_decoder_hears(streaming, model, workplace, search, endpoints, segments):
    """Tokens, times and starts of all segments."""
    tokenizer = Tokenizer.load(workplace / "bpe")
    audio = [speech(3.0), speech(1.0, seed=6), np.zeros(800, np.float32), np.zeros(0, np.float32)]
    theirs = client.recognize_streaming(streaming, audio, search=search, beam=4, endpoints=endpoints)
    ours = [check_client.stream(model, tokenizer, samples, search, endpoints) for samples in audio]
    assert len(theirs) == 4 and len(theirs[0]) in segments
    assert sum(len(segment.tokens) for segment in theirs[0]) > 6
    for own, other in zip(ours, theirs, strict=True):
        same(own, other)


def test_how_much_comes_at_a_time_changes_nothing(streaming):
    samples = speech(2.0)
    expected = client.recognize_streaming(streaming, [samples])
    for milliseconds in (10, 37, 1000, 100_000):
        assert client.recognize_streaming(streaming, [samples], chunk=16 * milliseconds) == expected


def test_the_tail_needs_its_silence(streaming):
    """Without T + 1 frames of silence the last words are lost; ``finish`` says them."""
    samples = speech(1.3)
    with client.Listener(streaming, endpoints=False) as listener:
        before = listener.accept(samples)
        after = listener.finish()
    assert len(after.tokens) > len(before.tokens) and client.tail_samples(streaming) == 68 * 160
    assert [after] == client.recognize_streaming(streaming, [samples])[0]


def test_a_listener_that_is_sent_an_offline_export_says_so(exported):
    with pytest.raises(UserError):
        client.recognize_streaming(exported, [speech(1.0)])


def test_our_decoder_differs_where_the_model_does(streaming, system, workplace):
    """The comparison, which found no difference when this was exported, can fail: another system's decoder."""
    items, model = list(read_speech(workplace / "data")), load_system(system)[0]
    with torch.no_grad():
        model.joiner.output_linear.bias[5] += 4.0
    found = check_client.check_client(streaming, model, Tokenizer.load(workplace / "bpe"), items, streaming=True)
    assert {item["search"] for item in found["differences"]} == set(SEARCHES)
    assert len(found["differences"]) == sum(run["differences"] for run in found["runs"])


def test_a_segment_that_begins_elsewhere_is_a_difference():
    one, two = (client.ClientResult("A", ["A"], [0.4], start) for start in (0.0, 0.64))
    assert check_client.compare("u", "greedy_search", 1, [one], [one]) == []
    assert [item.what for item in check_client.compare("u", "greedy_search", 1, [one], [two])] == ["times"]
    empty = client.ClientResult("", [], [], 0.64), client.ClientResult("", [], [], 1.28)
    found = check_client.compare("u", "greedy_search", 1, [one, empty[0]], [one, empty[1]])
    assert [item.what for item in found] == ["segments"]


def test_frames_are_ready_when_the_client_has_them():
    """Windows of 400 samples, 160 apart, the first one centred on the first 160."""
    for samples in range(0, 3000, 7):
        complete = [t for t in range(40) if t * 160 + 80 + 200 <= samples]
        assert check_client.frames_ready(samples) == len(complete)


@pytest.mark.parametrize("key, value", [("decode_chunk_len", "0"), ("left_context", "²"), ("T", "٣")])
def test_metadata_that_are_no_numbers_of_frames_are_refused(folder, key, value):
    def change(encoder):
        props = {**metadata_of(encoder), key: value}
        onnx.helper.set_model_props(encoder, {**props, "T": "3"} if value == "0" else props)

    change_model(folder / "encoder.onnx", change)
    rewrite(folder)
    with pytest.raises(UserError, match="encoder.onnx.*metadata"):
        verify_static(folder)


@pytest.mark.parametrize(
    "key, value", [("T", "66"), ("decode_chunk_len", "63"), ("left_context", "32"), ("model_type", "")]
)
def test_metadata_that_disagree_with_the_graph_are_refused(folder, key, value):
    def change(encoder):
        onnx.helper.set_model_props(encoder, {**metadata_of(encoder), key: value})

    change_model(folder / "encoder.onnx", change)
    rewrite(folder)
    with pytest.raises(UserError, match="encoder.onnx"):
        verify_static(folder)


def test_a_cache_that_is_wrong_is_found(folder, streaming, model):
    """Outputs alone would not show it in the first chunk."""

    def negate(encoder):
        node = next(node for node in encoder.graph.node if "new_cached_conv" in node.output)
        node.output[0] = "right"
        encoder.graph.node.append(onnx.helper.make_node("Neg", ["right"], ["new_cached_conv"]))

    change_model(folder / "encoder.onnx", negate)
    with pytest.raises(UserError, match="encoder.onnx: its output differs from torch"):
        verify_numbers(folder, model, read_manifest(streaming))


def test_chunks_of_another_size_can_be_exported(workplace):
    """The graph's sizes follow the model."""
    folder, options = workplace / "systems" / "small", {"chunk_frames": 4, "left_frames": 7}
    make_system(folder, workplace / "bpe", encoder="streaming_conformer", seed=4, **options)
    out = exported_to(workplace, "small", streaming=True)
    assert metadata_of(load_onnx(out / "encoder.onnx"))["T"] == "19"
    assert read_manifest(out)["check"]["differences"] == 0


@pytest.mark.parametrize("form", [pytest.param("int8", marks=right_integers), "float16", "sparse"])
def test_streaming_exports_of_every_form_run(system, workplace, tmp_path, capsys, form):
    out = tmp_path / "out"
    export.main([str(system), "--bpe-dir", str(workplace / "bpe"), "--out", str(out), "--streaming", "--format", form])
    said = capsys.readouterr().out
    assert len(re.findall(r"sherpa-onnx, \w+_search, \d+ segments: \d+ of \d streams differ", said)) == 4
    assert verify_static(out)["streaming"]


def test_the_commands_of_a_streaming_readme_run(hears, workplace, tmp_path):
    item = list(read_speech(workplace / "data"))[4]
    silence = np.zeros(16000, dtype=np.float32)  # what the README appends, so that no word is lost
    model = load_system(workplace / "systems" / "hears")[0]
    stream = StreamingRecognizer(model, search="modified_beam_search", beam=4)
    stream.accept(filter_banks(np.concatenate([item.samples, silence])))
    expected = Tokenizer.load(workplace / "bpe").decode(stream.result().tokens)
    assert expected and run_readme(shutil.copytree(hears, tmp_path / "out"), item.samples) == expected.strip()
