"""Features: equal to Lhotse's own reading of the same audio; every kind of audio; bad audio is named."""

import copy
import gzip
import hashlib
import json
import multiprocessing
from pathlib import Path

import numpy as np
import pytest
import soundfile
from audio_cases import tone, unchecked_dir, write_audio
from filelock import FileLock
from lhotse import CutSet, Fbank

from rnnt_kd.data.audio import BadAudio, read_recording
from rnnt_kd.data.check_audio import check_audio
from rnnt_kd.data.features import compute_features
from rnnt_kd.data.kaldi_dir import RecordingEntry, read_data_dir
from rnnt_kd.data.source import open_source
from rnnt_kd.errors import UserError

LILCOM = 2.0**-5  # a tick: stored values are off by at most this, and a little more at chunk starts


def cuts_of(out: Path, name: str) -> dict:
    return {cut.id: cut for cut in CutSet.from_jsonl(out / f"{name}.jsonl.gz")}


@pytest.fixture(scope="module")
def kinds(tmp_path_factory):
    """Every kind of audio, in one directory, with its cuts."""
    folder = tmp_path_factory.mktemp("kinds")
    left, right = tone(1.0, seed=1), tone(1.0, seed=2)
    audio = {
        "flac": write_audio(folder / "a.flac", left),
        "float": write_audio(folder / "a.float.wav", left, subtype="FLOAT"),
        "long": write_audio(folder / "long.flac", tone(35.0)),
        "opus": write_audio(folder / "a.opus", left, format="OGG", subtype="OPUS"),
        "rate11025": write_audio(folder / "r11.wav", tone(1.0, 11025), 11025),
        "rate44100": write_audio(folder / "r44.wav", tone(1.003, 44100), 44100),
        "rate8000": write_audio(folder / "r8.wav", tone(1.0, 8000), 8000),
        "short": write_audio(folder / "short.wav", tone(0.2)),
        "sph": write_audio(folder / "a.sph", left, format="NIST", subtype="PCM_16"),
        "stereo": write_audio(folder / "stereo.wav", np.stack([left, right], axis=1)),
        "ulaw": write_audio(folder / "u.sph", left, format="NIST", subtype="ULAW"),
        "wav": write_audio(folder / "a.wav", left),
    }
    summary = compute_features(unchecked_dir(folder / "data", audio), folder / "cuts", "x", [0.9, 1.0, 1.1])
    return folder, summary, cuts_of(folder / "cuts", "x")


def test_what_cuts_are_does_not_depend_on_where_they_lie(kinds, tmp_path):
    """But on features, words and lengths; ``lines``, as earlier versions recorded it, on folders, too."""
    folder, _, _ = kinds
    before = open_source(folder / "cuts" / "x.jsonl.gz")
    lines = [json.loads(line) for line in gzip.open(before.path)]
    assert before.lines == hashlib.sha256(gzip.open(before.path).read()).hexdigest() != before.content
    made = compute_features(folder / "data", tmp_path / "cuts", "x", [0.9, 1.0, 1.1])
    elsewhere = open_source(made.cuts_path)
    assert (elsewhere.content, elsewhere.digest) == (before.content, before.digest)
    assert elsewhere.lines != before.lines
    assert before.content_as(None) == before.content_as(elsewhere.lines) == before.content
    assert before.content_as(before.lines) == before.lines

    def content(name, change):
        """Of other cuts, a manifest of Lhotse's."""
        changed = copy.deepcopy(lines)
        change(changed[4])
        path = tmp_path / f"{name}.jsonl"
        path.write_text("".join(json.dumps(line) + "\n" for line in changed))
        return open_source(path).content

    same = content("same", lambda cut: cut["recording"]["sources"][0].update(source="/elsewhere/a.wav"))
    assert same == content("moved", lambda cut: cut["features"].update(storage_path="/elsewhere/feats.lca"))
    others = {
        content("words", lambda cut: cut["supervisions"][0].update(text="OTHER")),
        content("features", lambda cut: cut["custom"].update(features_sha256=64 * "0")),
        content("place", lambda cut: cut["features"].update(storage_key="0,1")),
        content("unknown", lambda cut: cut.pop("custom")),  # then where they lie is all that is known
        content("unknown moved", lambda cut: [cut.pop("custom"), cut["features"].update(storage_path="/elsewhere")]),
        content("unchecked", lambda cut: cut["features"].update(storage_type="numpy_files")),
        content("unchecked moved", lambda cut: cut["features"].update(storage_type="numpy_files", storage_path="/x")),
    }
    assert len(others) == 7 and same not in others


def test_every_kind_of_audio_gives_three_cuts(kinds):
    folder, summary, cuts = kinds
    assert check_audio(read_data_dir(folder / "data")).seconds == pytest.approx(9 + 35 + 0.2 + 1.003, abs=0.01)
    assert (summary.num_utterances, summary.num_cuts, summary.left_out) == (12, 36, {})
    assert {cut_id for cut_id in cuts if cut_id.startswith("opus")} == {"opus_sp0.9", "opus", "opus_sp1.1"}
    said = {(cut.supervisions[0].text, cut.supervisions[0].speaker) for cut in cuts.values()}
    assert said == {("SOME WORDS", "spk")}


@pytest.mark.parametrize("kind", ["flac", "float", "opus", "stereo", "wav", "short", "long"])
@pytest.mark.parametrize("speed", ["", "_sp0.9", "_sp1.1"])
def test_features_equal_lhotses_own(kinds, kind, speed):
    cut = kinds[2][kind + speed]
    expected = Fbank().extract(cut.load_audio()[:1], 16000)
    assert cut.load_features().shape == expected.shape == (cut.num_frames, 80)
    assert np.abs(cut.load_features() - expected).max() < 2 * LILCOM


@pytest.mark.parametrize("kind", ["sph", "stereo"])
def test_sphere_and_the_first_channel_equal_wav(kinds, kind):
    """Lhotse reads SPHERE by a program that is not here."""
    cuts = kinds[2]
    np.testing.assert_array_equal(cuts[kind].load_features(), cuts["wav"].load_features())
    assert np.abs(cuts["ulaw"].load_features() - cuts["wav"].load_features()).mean() < 0.5


@pytest.mark.parametrize("kind", ["rate8000", "rate11025", "rate44100"])
@pytest.mark.parametrize("speed", ["", "_sp0.9"])
def test_other_rates_are_resampled(kinds, kind, speed):
    cut = kinds[2][kind + speed]
    features = cut.load_features()
    expected = Fbank().extract(cut.load_audio(), 16000)  # resamplers differ between environments
    assert features.shape == expected.shape
    bins = 45  # below 3 kHz: resamplers agree there
    assert np.abs(features[2:-2, :bins] - expected[2:-2, :bins]).mean() < 0.1


def test_a_slower_copy_is_longer(kinds):
    cuts = kinds[2]
    assert cuts["wav"].duration == 1.0
    assert cuts["wav_sp0.9"].duration == pytest.approx(1 / 0.9, abs=1e-4)
    assert cuts["short_sp1.1"].num_frames == 18


def test_the_result_does_not_depend_on_the_number_of_jobs(tmp_path):
    folder = tmp_path
    audio = {f"u{index:02d}": write_audio(folder / f"{index}.wav", tone(0.3, seed=index)) for index in range(45)}
    data = unchecked_dir(folder / "data", audio)
    contents = []
    for jobs in (1, 2):  # the second starts processes: it is most of the time of this file
        compute_features(data, folder / "cuts", "x", [1.0], num_jobs=jobs)
        content = {p.name: p.read_bytes() for p in (folder / "cuts" / "x_feats").iterdir()}
        content["cuts"] = (folder / "cuts" / "x.jsonl.gz").read_bytes()
        contents.append(content)
    assert contents[0] == contents[1] and len(content) == 4
    names = sorted(p.name for p in (folder / "cuts").iterdir() if "lock" not in p.name)
    assert names == ["x.jsonl.gz", "x.left_out.json", "x_feats"]
    assert not multiprocessing.active_children()


def test_segments_are_cut_where_they_say(tmp_path):
    samples = np.concatenate([tone(1.0, seed=1), tone(0.5, seed=2)])
    audio = {
        "rec": write_audio(tmp_path / "rec.wav", samples),
        "rec8": write_audio(tmp_path / "r8.wav", tone(2.0, 8000), 8000),
    }
    segments = {"u1": "rec 0 1", "u2": "rec 1 -1", "u3": "rec 0.5 1.7", "u4": "rec8 0.31 1.234"}
    compute_features(unchecked_dir(tmp_path / "data", audio, segments), tmp_path / "cuts", "x", [1.0, 1.1])
    cuts = cuts_of(tmp_path / "cuts", "x")
    for cut_id, start, end in (("u1", 0, 1), ("u2", 1, 1.5), ("u3", 0.5, 1.5)):  # u3 overshoots: clipped
        expected = Fbank().extract(
            soundfile.read(audio["rec"], dtype="float32")[0][int(start * 16000) : int(end * 16000)], 16000
        )
        assert np.abs(cuts[cut_id].load_features() - expected).max() < 2 * LILCOM
        assert (cuts[cut_id].start, cuts[cut_id].duration) == (start, end - start)
    assert cuts["u4"].num_frames == 92 and cuts["u4_sp1.1"].num_frames == 84
    # start 0.31 s is sample 4960, and Lhotse finds the same audio there
    expected = Fbank().extract(cuts["u2_sp1.1"].load_audio(), 16000)
    assert np.abs(cuts["u2_sp1.1"].load_features()[3:-3] - expected[3:-3]).mean() < 0.05


@pytest.fixture(scope="module")
def bad_audio(tmp_path_factory) -> dict:
    """A file of each kind of damage."""
    folder = tmp_path_factory.mktemp("bad")
    good = tone(1.0)
    with_nan = good.copy()
    with_nan[7] = np.nan
    made = {
        "nan": write_audio(folder / "nan.wav", with_nan, subtype="FLOAT"),
        "infinite": write_audio(folder / "inf.wav", np.where(np.isnan(with_nan), np.inf, good), subtype="DOUBLE"),
        "silent": write_audio(folder / "silent.flac", np.zeros(16000)),
        "no_samples": write_audio(folder / "none.wav", np.zeros(0)),
        "too_short": write_audio(folder / "blip.wav", tone(0.02)),
        "empty_file": folder / "empty.wav",
        "no_audio": folder / "words.wav",
    }
    made["empty_file"].write_bytes(b"")
    made["no_audio"].write_text("these are words\n")
    opus, sphere = {"format": "OGG", "subtype": "OPUS"}, {"format": "NIST", "subtype": "PCM_16"}
    for suffix, options in {"wav": {}, "flac": {}, "opus": opus, "sph": sphere}.items():
        path = write_audio(folder / f"cut.{suffix}", np.tile(good, 5), **options)
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
        made[f"truncated_{suffix}"] = path
    made["cut_in_last_page"] = write_audio(folder / "one_page.opus", good, **opus)
    made["cut_in_last_page"].write_bytes(made["cut_in_last_page"].read_bytes()[:-10])
    return made


REASONS = {
    "nan": "1 samples are NaN",
    "infinite": "1 samples are NaN or infinite",
    "silent": "is silent",
    "no_samples": "has no samples",
    "too_short": "only 0.02 s long",
    "empty_file": "is an empty file",
    "no_audio": "unreadable",
    "cut_in_last_page": "truncated",
    **{f"truncated_{suffix}": "truncated" for suffix in ("wav", "flac", "opus", "sph")},
}


def test_bad_audio_is_named_and_left_out(tmp_path, bad_audio):
    good = write_audio(tmp_path / "ok.wav", tone(0.5))
    audio = {**bad_audio, "ok": good, "pipe": "echo no such corpus >&2; exit 3 |"}
    data = unchecked_dir(tmp_path / "data", audio)
    summary = compute_features(data, tmp_path / "cuts", "x", allow_pipes=True, max_bad_fraction=1.0)
    assert set(cuts_of(tmp_path / "cuts", "x")) == {"ok"}
    assert summary.left_out == json.loads((tmp_path / "cuts" / "x.left_out.json").read_text())
    assert summary.left_out.pop("pipe") == "pipe ended with status 3 (no such corpus)"
    assert set(summary.left_out) == set(REASONS)
    for name, reason in REASONS.items():
        assert reason in summary.left_out[name], (name, summary.left_out[name])


@pytest.mark.parametrize("pipe", [False, True])
def test_audio_is_read_by_libsndfile_itself(tmp_path, pipe, monkeypatch):
    """It swallows what is raised in a Python callback: Ctrl-C would pass for a truncated file."""
    path = write_audio(tmp_path / "a.flac", tone(0.5))
    opened = []
    real = soundfile.SoundFile.__init__
    monkeypatch.setattr(soundfile.SoundFile, "__init__", lambda *a, **more: opened.append(a[1]) or real(*a, **more))
    samples = read_recording(RecordingEntry("a", f"cat {path}" if pipe else str(path), pipe, "")).samples
    assert len(samples) == 8000 and [type(file) for file in opened] == [int]


def test_much_bad_audio_is_an_error_and_leaves_nothing(tmp_path, bad_audio):
    data = unchecked_dir(tmp_path / "data", {"a": bad_audio["nan"], "b": write_audio(tmp_path / "ok.wav", tone(0.5))})
    message = r"1 of 2 utterances have bad audio \(the first: a 1 samples are NaN.*at most 5 %"
    with pytest.raises(UserError, match=message):
        compute_features(data, tmp_path / "cuts", "x")
    for name in REASONS:
        data = unchecked_dir(tmp_path / name, {"a": bad_audio[name]})
        with pytest.raises(UserError, match=r"no utterance can be used \(1 left out; a .*" + REASONS[name]):
            compute_features(data, tmp_path / "cuts", "x", max_bad_fraction=1.0)
    assert [p.name for p in (tmp_path / "cuts").iterdir() if p.suffix != ".lock"] == []


def test_segments_outside_the_recording_are_left_out_and_a_wrong_rate_is_guessed(tmp_path):
    wav = write_audio(tmp_path / "a.wav", tone(1.0))
    segments = {"a": "r 0 0.9", "b": "r 1.2 1.4", "c": "r 0 16000", "d": "r 0.3 1.6"}
    data = unchecked_dir(tmp_path / "data", {"r": wav}, segments)
    summary = compute_features(data, tmp_path / "cuts", "x", max_bad_fraction=1.0)
    assert set(summary.left_out) == {"b", "c", "d"}
    assert "are the times samples" in summary.left_out["c"]
    message = r"segments:2: segment from 1.2 to 1.4 s is outside its recording of 1 s.*3 of 4"
    with pytest.raises(UserError, match=message):
        check_audio(read_data_dir(data))
    check = check_audio(read_data_dir(data), max_bad_fraction=0.8)
    assert check.seconds == pytest.approx(0.9) and set(check.bad) == {"b", "c", "d"}


@pytest.mark.parametrize(
    "name",
    ["no_samples", "empty_file", "no_audio", "truncated_wav", "truncated_opus", "truncated_sph", "cut_in_last_page"],
)
def test_the_quick_check_sees_what_headers_tell(tmp_path, bad_audio, name):
    data = unchecked_dir(tmp_path / "data", {"a": bad_audio[name]})
    with pytest.raises(UserError, match=r"data/wav.scp:1: audio .*" + REASONS[name]):
        check_audio(read_data_dir(data))


def test_a_missing_file_is_bad_audio_even_after_the_directory_was_read(tmp_path, data):
    entry = read_data_dir(data).recordings["a"]
    (tmp_path / "a.wav").unlink()
    with pytest.raises(BadAudio, match="does not exist"):
        read_recording(entry)


@pytest.fixture
def data(tmp_path):
    """Of one utterance."""
    return unchecked_dir(tmp_path / "data", {"a": write_audio(tmp_path / "a.wav", tone(0.5))})


@pytest.mark.parametrize("speeds", [[], [0.0], [1.0, 1.0], [3.0], [float("nan")]])
def test_wrong_speeds_are_errors(tmp_path, data, speeds):
    with pytest.raises(UserError, match="speed_perturb"):
        compute_features(data, tmp_path / "cuts", "x", speeds)


@pytest.mark.parametrize("ids, speeds", [("a a_sp0.9", (0.9, 1.0)), ("a_sp1.1 a_sp1.1_sp0.9", (1.0, 0.9, 1.1))])
def test_an_id_that_is_also_a_copys_is_refused(tmp_path, ids, speeds):
    audio = write_audio(tmp_path / "a.wav", tone(0.5))
    folder = unchecked_dir(tmp_path / "data", dict.fromkeys(ids.split(), audio))
    message = f'wav.scp:2: "{ids.split()[1]}" would name two cuts: of "{ids.split()[0]}" and of "{ids.split()[1]}"'
    with pytest.raises(UserError, match=message):
        compute_features(folder, tmp_path / "cuts", "x", speeds)
    assert compute_features(folder, tmp_path / "cuts", "x", speeds[:1]).num_cuts == 2  # then no two have one name
    assert len(cuts_of(tmp_path / "cuts", "x")) == 2


def test_a_second_writer_is_turned_away(tmp_path, data):
    (tmp_path / "cuts").mkdir()
    with FileLock(str(tmp_path / "cuts" / ".x.lock")):
        with pytest.raises(UserError, match="another process is writing x"):
            compute_features(data, tmp_path / "cuts", "x")


def test_a_failed_run_keeps_the_old_result(tmp_path, data):
    compute_features(data, tmp_path / "cuts", "x")
    before = gzip.decompress((tmp_path / "cuts" / "x.jsonl.gz").read_bytes())
    (tmp_path / "a.wav").write_bytes(b"")
    with pytest.raises(UserError):
        compute_features(data, tmp_path / "cuts", "x")
    assert gzip.decompress((tmp_path / "cuts" / "x.jsonl.gz").read_bytes()) == before
    assert cuts_of(tmp_path / "cuts", "x")["a"].load_features().shape == (50, 80)
