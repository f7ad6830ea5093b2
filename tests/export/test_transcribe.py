"""Recordings of any length and kind, and a microphone, as text on the screen."""

import functools
import sys
import types

import numpy as np
import pytest
from audio_cases import noise, write_audio
from command_cases import refused, told

from rnnt_kd.bin import transcribe
from rnnt_kd.data.kaldi_dir import read_data_dir
from rnnt_kd.data.pieces import cut_at_quiet
from rnnt_kd.data.speech import load_samples
from rnnt_kd.export import client
from rnnt_kd.export.client import Transcriber, chunks_of, listen, microphone

write = functools.partial(write_audio, subtype="FLOAT")


def lines(capsys):
    said = capsys.readouterr()
    return [tuple(line.split("\t")) for line in said.out.splitlines()], said.err.splitlines()


# offline


def test_files_are_printed_with_their_text(exported, workplace, tmp_path, capsys):
    paths = [workplace / "a-2.wav", write(tmp_path / "48k.wav", noise(1.0), 48000)]
    transcribe.main([str(part) for part in (exported, *paths)])
    found, errors = lines(capsys)
    audio = [load_samples(path) for path in paths]
    expected = client.recognize(exported, audio, search="modified_beam_search", beam=4)
    assert errors == [] and found == [(str(path), item.text) for path, item in zip(paths, expected, strict=True)]
    transcribe.main([str(exported), str(paths[0]), "--search", "greedy_search"])
    assert lines(capsys)[0][0][1] == client.recognize(exported, audio[:1])[0].text


def test_the_text_of_a_data_directory(exported, tmp_path, capsys):
    """In the form that stage 0 reads; what cannot be used is named and has no words."""
    folder, audio = tmp_path / "calls", noise(3.0, 4)
    folder.mkdir()
    write(tmp_path / "whole.wav", audio, 16000), write(tmp_path / "still.wav", np.zeros(16000))
    (folder / "wav.scp").write_text(f"still {tmp_path / 'still.wav'}\nwhole {tmp_path / 'whole.wav'}\n")
    (folder / "segments").write_text("a-1 whole 0.0 1.4\na-2 whole 1.5 -1\nz-1 still 0.0 1.0\n")
    (folder / "utt2spk").write_text("a-1 a\na-2 a\nz-1 z\n")
    transcribe.main([str(exported), "--data-dir", str(folder)])
    said = capsys.readouterr()
    expected = client.recognize(exported, [audio[:22400], audio[24000:]], search="modified_beam_search", beam=4)
    written = (folder / "text").read_text().splitlines()
    assert written == [*(f"a-{n} {item.text}".rstrip() for n, item in enumerate(expected, 1)), "z-1"]
    assert said.out == f"{folder / 'text'}: 3 utterances\n"
    assert f"{folder}: z-1 is silent" in said.err
    assert [one.text for one in read_data_dir(folder).utterances] == [*(item.text for item in expected), ""]
    given = [exported, "--data-dir", folder]
    assert f"{folder / 'text'}: is there; expected a data directory without" in refused(capsys, transcribe.main, *given)
    assert "not one of audio files" in refused(capsys, transcribe.main, *given, tmp_path / "whole.wav")


def test_the_text_of_a_data_directory_has_the_models_words(exported, tmp_path, capsys, monkeypatch):
    """Which the client's text closes up; a piece begins a new word."""
    pieces = [[" ZE", "RO", " [noise]", " 'EM"], ["TWO", " \ub458", " \ud558", "\ub098"]]
    found = [client.ClientResult("ZERO[noise]'EM", pieces[0], [0.0] * 4), client.ClientResult("", pieces[1], [0.0] * 4)]
    monkeypatch.setattr(client.Transcriber, "pieces", lambda self, samples: iter(found))
    write(tmp_path / "a.wav", noise(1.0, 4), 16000)
    (tmp_path / "wav.scp").write_text(f"a {tmp_path / 'a.wav'}\n")
    (tmp_path / "utt2spk").write_text("a a\n")
    transcribe.main([str(exported), "--data-dir", str(tmp_path)])
    assert (tmp_path / "text").read_text() == "a ZERO [noise] 'EM TWO \ub458 \ud558\ub098\n"
    heard = [client.Heard(result=one, seconds=1.0, final=final) for one, final in zip([found[1], *found], (0, 1, 1))]
    assert [one.tokens for one in transcribe._segments(heard)] == pieces


def test_long_audio_is_the_pieces_one_after_the_other(exported, tmp_path, capsys):
    audio = np.concatenate([noise(1.2, 1), np.zeros(4800), noise(1.3, 2), np.zeros(4800), noise(1.1, 3)])
    audio = audio.astype(np.float32)
    pieces = cut_at_quiet(audio, 2.0)
    assert len(pieces) == 3
    parts = client.recognize(exported, [audio[start:end] for start, end in pieces])
    with Transcriber(exported, search="greedy_search", beam=1, longest_seconds=2.0) as transcriber:
        found = transcriber.transcribe(audio)
        assert transcriber.transcribe(audio[: pieces[0][1]]) == parts[0]
    assert found.text == " ".join(part.text for part in parts if part.text)
    assert found.tokens == [token for part in parts for token in part.tokens]
    starts = [start / 16000 for start, _ in pieces]
    times = [start + time for start, part in zip(starts, parts, strict=True) for time in part.timestamps]
    assert found.timestamps == pytest.approx(times, abs=1e-3) and found.timestamps == sorted(found.timestamps)
    path = write(tmp_path / "long.wav", audio)
    transcribe.main([str(exported), str(path), "--longest", "2", "--search", "greedy_search"])
    assert lines(capsys)[0] == [(str(path), found.text)]


def test_silence_has_no_words_whatever_the_model_says_of_it(exported, tmp_path, capsys):
    """Digital silence, alone and before speech."""
    silence = np.zeros(48000, np.float32)
    assert client.recognize(exported, [silence])[0].text  # the model invents some
    path = write(tmp_path / "silence.wav", silence)
    transcribe.main([str(exported), str(path), "--search", "greedy_search"])
    assert lines(capsys)[0] == [(str(path), "")]
    with Transcriber(exported, search="greedy_search", beam=1, longest_seconds=2.0) as transcriber:
        found = transcriber.transcribe(np.concatenate([silence, noise(1.5)]))
        starts = [start for start, _ in cut_at_quiet(np.concatenate([silence, noise(1.5)]), 2.0)]
    assert found.tokens and found.timestamps[0] >= starts[1] / 16000


def test_a_file_without_words_has_a_line_of_its_own(hears, tmp_path, capsys, monkeypatch):
    nothing = client.ClientResult("", [], [])
    monkeypatch.setattr(client, "listen", lambda listener, chunks: [client.Heard(nothing, 1.0, True)] * 2)
    path = write(tmp_path / "nothing.wav", noise(0.5))
    transcribe.main([str(hears), str(path), str(path)])
    assert lines(capsys) == ([(str(path), "")] * 2, [])


def test_a_bad_file_is_told_and_the_others_are_transcribed(exported, workplace, tmp_path, capsys):
    stump, empty, none = (tmp_path / f"{name}.wav" for name in ("stump", "empty", "none"))
    stump.write_bytes((workplace / "a-1.wav").read_bytes()[:3000])
    write(empty, np.zeros(0))
    good = [workplace / "b-4.wav", workplace / "b-2.wav"]
    with pytest.raises(SystemExit) as ended:
        transcribe.main([str(part) for part in (exported, good[0], stump, empty, none, good[1])])
    found, errors = lines(capsys)
    assert ended.value.code == 1 and [name for name, _ in found] == [str(path) for path in good]
    reasons = {stump: "truncated: 0.09 s", empty: "has no samples", none: "does not exist"}
    for line, (path, reason) in zip(errors, reasons.items(), strict=True):
        assert line.startswith(f"error: {path}: ") and reason in line


def test_a_bad_export_is_told_before_the_client_sees_it(folder, workplace, tmp_path, capsys, monkeypatch):
    (folder / "joiner.onnx").write_bytes(b"no model")
    monkeypatch.setattr(client.ClientProcess, "__init__", lambda *args, **kwargs: pytest.fail("the client was started"))
    assert "joiner.onnx" in refused(capsys, transcribe.main, folder, workplace / "a-1.wav")
    assert "model.json" in refused(capsys, transcribe.main, tmp_path, workplace / "a-1.wav")


@pytest.mark.parametrize("more, reason", [
    ([], "one of them"),
    (["--microphone"], "an offline export"),
    (["x.wav", "--microphone"], "one of them"),
    (["x.wav", "--real-time"], "expected a streaming export"),
    (["x.wav", "--longest", "0"], "1 to 300 s"),
    (["x.wav", "--beam", "0"], "1 or more hypotheses"),
    (["x.wav", "--allow-pipes"], "--allow-pipes: given without --data-dir"),
    (["--data-dir", "x", "--real-time"], "--real-time: given without audio files"),
])  # fmt: skip
def test_options_that_do_not_fit_are_refused(exported, capsys, more, reason):
    assert reason in refused(capsys, transcribe.main, exported, *more)


def test_a_streaming_export_takes_no_pieces(hears, capsys):
    said = refused(capsys, transcribe.main, hears, "x.wav", "--longest", "30")
    assert "a streaming export, with --longest; expected an offline export" in said


# streaming


def test_a_streaming_export_tells_what_it_hears_as_it_comes(hears, tmp_path, capsys):
    samples = noise(3.0)
    path = write(tmp_path / "speech.wav", samples)
    transcribe.main([str(hears), str(path), "--search", "greedy_search"])
    found, heard = lines(capsys)
    expected = client.recognize_streaming(hears, [samples], endpoints=True)[0]
    assert found == [(str(path), segment.text) for segment in expected if segment.text] and found
    assert len(heard) >= 3  # a chunk every 0.64 s
    seconds = [float(line.split()[0]) for line in heard]
    assert seconds == sorted(seconds) and seconds[0] < 1.0
    assert found[0][1].startswith(heard[0].split(" s  ", 1)[1][:1])


def test_segments_end_at_endpoints(hears):
    """Twenty seconds without a pause are one segment for sherpa-onnx; its third rule ends it."""
    with client.Listener(hears, endpoints=True) as listener:
        heard = list(listen(listener, chunks_of(noise(23, 7))))
    finals = [item for item in heard if item.final]
    assert len(finals) == 2 and finals[1].result.start >= 20 and finals[1].seconds == pytest.approx(23)


def test_real_time_is_the_pace_of_the_speech(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(client.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(client.time, "sleep", lambda seconds: now.append(now.pop() + seconds))
    samples, chunks, given = noise(1.05), [], []
    for chunk in chunks_of(samples, at_its_pace=True):
        chunks.append(chunk)
        given.append(now[0])
        now[0] += 0.03 if len(chunks) < 9 else 0.5  # whoever takes them is slow in the end, and waits for none then
    assert given == pytest.approx([*(100.1 + 0.1 * n for n in range(9)), 101.4, 101.9])
    assert np.array_equal(np.concatenate(chunks), samples) and len(chunks) == 11 and len(chunks[0]) == 1600


class FakeStream:
    """What sounddevice gives: (n, 1) arrays and whether something was lost; then Ctrl-C."""

    def __init__(self, samples, **settings):
        assert settings == {"samplerate": 16000, "channels": 1, "dtype": "float32", "blocksize": 1600}
        self.chunks = [samples[start : start + 1600, None] for start in range(0, len(samples), 1600)]

    def read(self, frames):
        if not self.chunks:
            raise KeyboardInterrupt
        return self.chunks.pop(0), False

    def __enter__(self):
        return self

    def __exit__(self, *error):
        pass


@pytest.fixture
def fake_microphone(monkeypatch):
    """The package sounddevice, with two seconds to hear."""
    fake = types.ModuleType("sounddevice")
    fake.PortAudioError = type("PortAudioError", (Exception,), {})
    fake.InputStream = lambda **settings: FakeStream(noise(2.0), **settings)
    monkeypatch.setitem(sys.modules, "sounddevice", fake)
    return fake


def test_the_microphone_is_heard_until_ctrl_c(hears, fake_microphone, capsys):
    transcribe.main([str(hears), "--microphone", "--search", "greedy_search"])
    expected = client.recognize_streaming(hears, [noise(2.0)])[0]
    assert lines(capsys)[0] == [("microphone", expected[-1].text)]


def test_ctrl_c_in_the_middle_of_a_chunk_ends_quietly(hears, fake_microphone, monkeypatch, capsys):
    accept, heard = client.Listener.accept, []

    def interrupted(self, samples):
        heard.append(len(samples))
        if len(heard) == 9:
            raise KeyboardInterrupt
        return accept(self, samples)

    monkeypatch.setattr(client.Listener, "accept", interrupted)
    transcribe.main([str(hears), "--microphone"])
    assert heard == [1600] * 9 and lines(capsys)[0] == []


def test_without_a_microphone_or_its_package_a_line_says_so(hears, fake_microphone, monkeypatch, capsys):
    def no_device(**settings):
        raise fake_microphone.PortAudioError("Error querying device -1")

    fake_microphone.InputStream = no_device
    assert "Error querying device -1" in refused(capsys, transcribe.main, hears, "--microphone")
    assert "expected a microphone" in told(lambda: next(microphone()))
    monkeypatch.setitem(sys.modules, "sounddevice", None)  # import fails as if it were not installed
    assert "pip install sounddevice" in refused(capsys, transcribe.main, hears, "--microphone")
