"""sherpa-onnx in its process: what goes in and comes out, and every way in which it can die."""

import importlib.util
import json
import subprocess
import sys

import numpy as np
import onnx
import pytest
from audio_cases import noise
from command_cases import refused, told
from export_cases import change_model

from rnnt_kd.bin.entry import command
from rnnt_kd.data.speech import filter_banks, read_speech
from rnnt_kd.errors import UserError
from rnnt_kd.export.client import ClientProcess, ClientResult, features, recognize


@pytest.fixture(scope="module")
def speech(workplace):
    return [item.samples for item in read_speech(workplace / "data") if item.samples is not None]


def client_by_hand(folder, samples):
    """sherpa-onnx's own example, in a process that is ours alone."""
    code = """
import json, sys, numpy, sherpa_onnx
folder, file = sys.argv[1:]
recognizer = sherpa_onnx.OfflineRecognizer.from_transducer(
    encoder=folder + "/encoder.onnx", decoder=folder + "/decoder.onnx", joiner=folder + "/joiner.onnx",
    tokens=folder + "/tokens.txt", model_type="transducer", num_threads=1)
stream = recognizer.create_stream()
stream.accept_waveform(16000, numpy.load(file))
recognizer.decode_stream(stream)
print(json.dumps([stream.result.text, list(stream.result.tokens), list(stream.result.timestamps)]))
"""
    np.save(folder.parent / "samples.npy", samples)
    argv = [sys.executable, "-c", code, str(folder), str(folder.parent / "samples.npy")]
    return json.loads(subprocess.run(argv, capture_output=True, text=True, check=True).stdout.split("\n")[-2])


def test_the_results_are_those_of_the_client_used_by_hand(folder, speech):
    results = recognize(folder, speech)
    assert len(results) == len(speech) and any(result.text for result in results)
    for samples, result in list(zip(speech, results, strict=True))[-2:]:
        text, tokens, timestamps = client_by_hand(folder, samples)
        assert result.text == text.strip() and result.tokens == tokens
        assert result.timestamps == pytest.approx(timestamps)


def test_the_shortest_audio_and_silence_are_survived(exported):
    """0 ms, 1 sample, 5 ms, 40 ms, silence; a batch mixes them and the order stays."""
    audio = [noise(0), noise(1 / 16000), noise(79 / 16000), noise(0.04), np.zeros(16000, np.float32), noise(1.5)]
    together, alone = recognize(exported, audio, batch_size=6), recognize(exported, audio)
    assert together == alone and len(alone) == 6
    assert alone[:3] == [ClientResult("", [], [])] * 3 and alone[5].text


@pytest.mark.parametrize("audio, settings, message", [
    (np.full(800, np.nan, np.float32), {}, "NaN or infinity"),
    (np.full(800, np.inf, np.float32), {}, "NaN or infinity"),
    (np.zeros((2, 800), np.float32), {}, r"\(2, 800\)"),
    (noise(1), {"search": "best"}, "search: 'best'; expected"),
    (noise(1), {"beam": 0}, "beam: 0; expected"),
])  # fmt: skip
def test_bad_audio_is_one_line_and_bad_settings_before_a_process_starts(
    exported, monkeypatch, audio, settings, message
):
    if settings:
        monkeypatch.setattr("rnnt_kd.children.subprocess.Popen", lambda *args, **kwargs: pytest.fail("started"))
    with pytest.raises(UserError, match=message):
        recognize(exported, [audio], **settings)


def test_features_are_ours(speech):
    for samples in (noise(1.0), noise(0.04), np.zeros(4000, np.float32), *speech[:2]):
        ours, theirs = filter_banks(samples).numpy(), features(samples)
        assert ours.shape == theirs.shape and np.abs(ours - theirs).max() < 2e-3


def drop_an_input(model):
    del model.graph.input[1]
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.array([100], dtype=np.int64), "x_lens"))


@pytest.mark.parametrize("spoil, ending", [
    (lambda folder: (folder / "joiner.onnx").write_bytes(b"no model"), "ended with status 1 .*joiner.onnx"),
    (lambda folder: (folder / "tokens.txt").unlink(), "ended with status 1 "),
    (
        lambda folder: change_model(folder / "decoder.onnx", lambda model: model.ClearField("metadata_props")),
        "ended (with status 255|by SIG).*vocab_size",
    ),
    (lambda folder: change_model(folder / "encoder.onnx", drop_an_input), "ended (by SIG|with status)"),
])  # fmt: skip
def test_a_model_that_kills_the_client_is_one_line_here(folder, spoil, ending):
    spoil(folder)
    with pytest.raises(UserError, match=f"{folder}: sherpa-onnx {ending}") as caught:
        recognize(folder, [noise(1)])
    assert "export the system again" in str(caught.value)


def test_a_client_that_does_not_answer_is_ended(exported):
    assert "no answer in 0.05 s" in told(ClientProcess, exported, timeout=0.05)


def test_no_process_outlives_its_user_and_a_signal_is_told_by_its_name(exported):
    with ClientProcess(exported) as it:
        assert it.process.poll() is None
    assert it.process.poll() is not None
    with ClientProcess(exported) as it:
        it.process.kill()
        it.process.wait()
        assert "ended by SIGKILL" in told(lambda: it.decode([noise(1)]))


def test_without_sherpa_onnx_a_command_says_what_to_install(exported, monkeypatch, capsys):
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "sherpa_onnx" else find(name))
    line = refused(capsys, command(lambda argv: recognize(exported, [noise(1)])))
    assert "pip install 'rnnt-kd[export]'" in line
