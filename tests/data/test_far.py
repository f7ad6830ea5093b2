"""Far copies: as long as the clean ones, as loud beside the noise as asked, the same in every process; bad folders."""

import hashlib
import json
import os
from pathlib import Path

import numpy as np
import pytest
import soundfile
from audio_cases import tone, unchecked_dir, write_audio
from command_cases import refused
from lhotse import CutSet

from rnnt_kd.bin.compute_features import main as compute_features_command
from rnnt_kd.bin.far_data import main as far_data
from rnnt_kd.data import far
from rnnt_kd.data.features import compute_features, original_id
from rnnt_kd.data.kaldi_dir import read_data_dir
from rnnt_kd.errors import UserError


def speakers(folder, name, count, utterances=2, seconds=0.5):
    """A data directory of ``count`` speakers, each a tone of its own."""
    audio = {}
    (folder / f"{name}_audio").mkdir(parents=True)
    for speaker in range(count):
        for number in range(utterances):
            key = f"{name}{speaker}-{number}"
            time = np.arange(int(16000 * seconds)) / 16000
            samples = 0.1 * (1 + number) * np.sin(2 * np.pi * (300 + 400 * speaker) * time)
            audio[key] = write_audio(folder / f"{name}_audio" / f"{key}.wav", samples)
    return unchecked_dir(folder / name, audio, speaker=lambda key: key.partition("-")[0])


@pytest.fixture
def train(tmp_path):
    return speakers(tmp_path, "train", 4)


def place(train=None, **options):
    talkers = read_data_dir(train) if train else None
    return far.surroundings(**{"seed": 1, "snr_db": (2.0, 15.0), "talkers": talkers, **options})


def noise_dir(folder, samples=None, rate=16000, name="n.wav"):
    folder.mkdir(parents=True)
    noise = np.random.default_rng(5).normal(size=3 * rate) * 0.1 if samples is None else samples
    write_audio(folder / name, noise, rate)
    return folder


def test_a_far_cut_is_as_long_as_its_original_and_has_its_text(train, tmp_path):
    summary = compute_features(train, tmp_path / "cuts", "x", [0.9, 1.0], surroundings=place(train), far_copies=2)
    cuts = {cut.id: cut for cut in CutSet.from_jsonl(summary.cuts_path)}
    assert summary.num_utterances == 8 and summary.num_cuts == len(cuts) == 8 * 2 * 3
    assert {"train0-0", "train0-0_far1", "train0-0_sp0.9_far2"} < set(cuts)
    for name, cut in cuts.items():
        clean = cuts[original_id(name)]
        assert cut.num_frames == clean.num_frames and cut.duration == clean.duration
        one, other = cut.supervisions[0], clean.supervisions[0]
        assert (one.text, one.speaker, one.id) == (other.text, other.speaker, name)
        difference = np.abs(cut.load_features() - clean.load_features()).max()
        assert difference > 1 if name != clean.id else difference == 0
    two = [cuts[f"train0-0_far{number}"].load_features() for number in (1, 2)]
    assert np.abs(two[0] - two[1]).max() > 1


def test_without_far_copies_stage_1_writes_what_it_wrote_before(train, tmp_path):
    for name, options in (("a", {}), ("b", {"surroundings": place(train), "far_copies": 0})):
        compute_features(train, tmp_path / name, "x", [0.9, 1.0], **options)
    files = [sorted(path for path in (tmp_path / name).rglob("*.lca")) for name in "ab"]
    assert [path.read_bytes() for path in files[0]] == [path.read_bytes() for path in files[1]]


def test_the_result_depends_on_seed_and_id_alone(train, tmp_path):
    contents = []
    for jobs in (1, 2):
        folder = tmp_path / f"jobs{jobs}"
        compute_features(train, folder, "x", num_jobs=jobs, surroundings=place(train), far_copies=1)
        far.write_far_dir(train, folder / "data", place(train), num_jobs=jobs)
        files = [*sorted((folder / "x_feats").iterdir()), *sorted((folder / "data_audio").iterdir())]
        contents.append([path.read_bytes() for path in files])
    assert contents[0] == contents[1]
    samples = tone(0.5)
    first, again = (place(train).heard(samples, "a", "s") for _ in range(2))
    np.testing.assert_array_equal(first, again)
    for other in (place(train).heard(samples, "b", "s"), place(train, seed=2).heard(samples, "a", "s")):
        assert np.abs(first - other).max() > 0.01


def test_a_copy_has_the_same_bytes_in_every_environment():
    samples = ((np.arange(8000) * 7919 % 2001 - 1000) / 4096).astype(np.float32)
    heard = np.concatenate([place().heard(samples, key, "s") for key in "abcdefgh"])
    written = np.rint(heard * np.float32(32767)).astype("<i2").tobytes()
    expected = "fc75f67223e197e386f586454ad7426c4357b91407031e4a3ff9bc1234c43778"
    assert hashlib.sha256(written).hexdigest() == expected


@pytest.mark.parametrize("snr", [2.0, 15.0])
@pytest.mark.parametrize("kind", ["drawn", "files"])
def test_noise_is_as_far_below_the_speech_as_asked(train, tmp_path, kind, snr):
    """Against plain numpy: the same room without noise, and what is left when it is taken away."""
    room = np.zeros(800)
    room[[100, 300, 700]] = 0.5, -0.3, 0.1  # the direct sound comes late; it must not move the speech
    rir_dir = noise_dir(tmp_path / "rooms", room)
    options = {"noise_dir": noise_dir(tmp_path / "noise")} if kind == "files" else {}
    samples = (0.2 * tone(0.7, seed=3)).astype(np.float32)
    shifted = room[100:] / 0.5
    wet = np.convolve(samples.astype(np.float64), shifted)[: len(samples)]
    wet *= np.sqrt((samples.astype(np.float64) ** 2).sum() / (wet**2).sum())  # the energy of the speech stays
    for key in "abcde":
        heard = place(train, rir_dir=rir_dir, snr_db=(snr, snr), **options).heard(samples, key, "train0")
        assert heard.shape == samples.shape and heard.dtype == np.float32 and np.abs(heard).max() <= 1.0
        noise = heard - wet
        assert 10 * np.log10((wet**2).sum() / (noise**2).sum()) == pytest.approx(snr, abs=0.3)


def test_rooms_are_drawn_between_three_and_eight_tenths_of_a_second():
    everywhere = place(snr_db=(60.0, 60.0))
    click = np.zeros(16000, np.float32)
    click[0] = 0.5
    lengths = []
    for key in range(20):
        heard = np.abs(everywhere.heard(click, str(key), "s"))
        decay = np.flatnonzero(heard > heard.max() * 10 ** (-30 / 20))[-1] / 16000  # half of 60 dB
        lengths.append(decay * 2)
    assert 0.15 < min(lengths) and max(lengths) < 0.95 and max(lengths) - min(lengths) > 0.2


def babblers(surroundings, speaker, keys):
    """Speakers that are heard behind ``speaker``."""
    heard, real = set(), far._talk
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(far, "_talk", lambda talker: (heard.add(talker.speaker), real(talker))[1])
        for key in keys:
            surroundings.heard(tone(0.3), key, speaker)
    return heard


def test_nobody_babbles_behind_himself_nor_behind_another_group(train):
    names = [f"train{number}" for number in range(4)]
    keys = [str(number) for number in range(20)]
    assert babblers(place(train), "train0", keys) == set(names[1:])
    assert babblers(place(train), "a test speaker", keys) == set(names)
    two = place(train, groups=[names[:2], names[2:]])
    assert babblers(two, "train0", keys) == {"train1"} and babblers(two, "train3", keys) == {"train2"}


def test_where_all_talkers_are_bad_noise_is_pink(train, tmp_path):
    for path in (tmp_path / "train_audio").iterdir():
        write_audio(path, np.zeros(8000))
    samples = tone(0.5)
    for key in "abcdef":
        heard = place(train, snr_db=(0, 0)).heard(samples, key, "s")
        assert np.isfinite(heard).all() and np.abs(heard - place(snr_db=(90, 90)).heard(samples, key, "s")).max() > 0.05


def test_a_far_set_is_a_data_directory_of_the_same_speakers_and_is_finished_once(train, tmp_path, capsys):
    test = speakers(tmp_path, "test", 2)
    command = ["--data-dir", str(test), "--train-dir", str(train), "--out-dir", str(tmp_path / "exp/test_far")]
    far_data(command)
    made, clean = read_data_dir(tmp_path / "exp/test_far"), read_data_dir(test)
    assert [(one.id, one.text, one.speaker) for one in made.utterances] == [
        (one.id, one.text, one.speaker) for one in clean.utterances
    ]
    for key in clean.recordings:
        lengths = [soundfile.info(data.recordings[key].source).frames for data in (made, clean)]
        assert lengths[0] == lengths[1]
    record = json.loads((tmp_path / "exp/.far_test_far.record.json").read_text())
    assert len([name for name in record["outputs"] if name.endswith(".wav")]) == len(clean.utterances)
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "exp").rglob("*.wav")}
    far_data(command)
    assert "finished already" in capsys.readouterr().out
    assert before == {path: path.stat().st_mtime_ns for path in (tmp_path / "exp").rglob("*.wav")}
    far_data([*command, "--snr-db", "0", "1"])
    assert "runs again, because snr_db" in capsys.readouterr().out


def test_segments_are_heard_apart(tmp_path, train):
    audio = {"rec": write_audio(tmp_path / "rec.wav", np.concatenate([tone(1.0, seed=1), tone(0.5, seed=2)]))}
    data = unchecked_dir(tmp_path / "long", audio, {"u1": "rec 0 1", "u2": "rec 1 -1"})
    far.write_far_dir(data, tmp_path / "far", place(train))
    made = read_data_dir(tmp_path / "far")
    seconds = [soundfile.info(made.recordings[key].source).duration for key in ("u1", "u2")]
    assert seconds == [1.0, 0.5] and not made.has_segments


@pytest.mark.parametrize("rate", [8000, 16000, 44100])
def test_noise_of_any_rate_is_resampled(tmp_path, rate):
    time = np.arange(2 * rate) / rate
    surroundings = place(
        noise_dir=noise_dir(tmp_path / "n", 0.3 * np.sin(2 * np.pi * 1000 * time), rate), snr_db=(-40, -40)
    )
    heard = surroundings.heard(tone(0.5), "a", "s")
    assert np.abs(np.fft.rfft(heard)).argmax() == pytest.approx(500, abs=2)  # 1 kHz in half a second


def test_a_noise_shorter_than_the_utterance_begins_again(tmp_path):
    surroundings = place(noise_dir=noise_dir(tmp_path / "n", tone(0.1)), snr_db=(-20, -20))
    heard = surroundings.heard(tone(1.0), "a", "s")
    quarters = [float((part**2).mean()) for part in np.split(heard, 4)]
    assert max(quarters) < 1.5 * min(quarters)


def test_a_response_longer_than_the_utterance_is_cut(tmp_path):
    response = np.zeros(5 * 16000)
    response[0], response[100], response[70000] = 0.9, 0.2, 0.1
    surroundings = place(rir_dir=noise_dir(tmp_path / "r", response), snr_db=(80, 80))
    samples = tone(0.5)
    expected = samples.astype(np.float64).copy()
    expected[100:] += samples[:-100] * (0.2 / 0.9)
    heard = surroundings.heard(samples, "a", "s").astype(np.float64)
    assert len(heard) == len(samples)
    assert np.corrcoef(heard, expected)[0, 1] > 0.9999


def test_a_kaldi_directory_needs_wav_scp_alone_and_a_tree_may_be_deep(tmp_path):
    (tmp_path / "kaldi").mkdir()
    (tmp_path / "kaldi/wav.scp").write_text(f"n1 {write_audio(tmp_path / 'x.flac', tone(1.0))}\n")
    noise_dir(tmp_path / "tree/a/b")
    (tmp_path / "tree/README").write_text("no audio")
    assert [entry.id for entry in far.sounds(tmp_path / "kaldi")] == ["n1"]
    assert [entry.id for entry in far.sounds(tmp_path / "tree")] == ["a/b/n.wav"]


@pytest.fixture
def one_copy(train, tmp_path):
    """Options of stage 1."""
    return ["--data-dir", str(train), "--out-dir", str(tmp_path / "cuts"), "--name", "x", "--far-copies", "1"]


@pytest.mark.parametrize("option", ["--noise-dir", "--rir-dir"])
@pytest.mark.parametrize("kind, words", [
    ("nothing", "no such folder"), ("empty", "holds no audio"), ("silent", "silent"), ("text", "audio that libsndfile reads"),
    ("gone", "is gone"),
])  # fmt: skip
def test_bad_folders_are_one_line(one_copy, tmp_path, capsys, option, kind, words):
    folder = tmp_path / kind
    if kind != "nothing":
        folder.mkdir()
    if kind == "silent":
        write_audio(folder / "a.wav", np.zeros(16000))
    elif kind == "text":
        (folder / "a.wav").write_text("no sound")
    elif kind == "gone":
        (folder / "wav.scp").write_text("a /nowhere/a.wav\n")
    error = refused(capsys, compute_features_command, *one_copy, option, folder)
    assert words in error and str(folder) in error and not (tmp_path / "cuts/x.jsonl.gz").exists()


def test_noise_as_a_room_is_refused(one_copy, tmp_path, capsys):
    error = refused(capsys, compute_features_command, *one_copy, "--rir-dir", noise_dir(tmp_path / "noise"))
    assert "is no room response" in error and not (tmp_path / "cuts/x.jsonl.gz").exists()


def test_a_noise_that_was_taken_away_or_a_room_of_the_same_name_is_no_finished_work(one_copy, tmp_path, capsys):
    noise, rooms = noise_dir(tmp_path / "noise", tone(0.1)), tmp_path / "rooms"
    write_audio(noise / "other.wav", tone(0.2))
    rooms.mkdir()
    write_audio(rooms / "n.wav", np.eye(1, 4000, 40)[0])

    def again():
        compute_features_command([*one_copy, "--noise-dir", str(noise), "--rir-dir", str(rooms)])
        return capsys.readouterr().out

    again()
    assert "finished already" in again()
    write_audio(rooms / "n.wav", np.eye(1, 2000, 20)[0])
    assert "runs again" in again() and "finished already" in again()
    noise, rooms = (Path(os.path.relpath(folder)) for folder in (noise, rooms))  # the same, spelled otherwise
    assert "finished already" in again()
    (noise / "other.wav").unlink()
    assert "noise other.wav changed since" in again() and "finished already" in again()


@pytest.mark.parametrize("by", ["speaker", "file"])
def test_who_is_tested_may_not_be_heard_in_training(train, one_copy, tmp_path, capsys, by):
    test = speakers(tmp_path, "test", 2)
    noise = test
    if by == "file":
        noise = tmp_path / "links"
        noise.mkdir()
        (noise / "n.wav").symlink_to(tmp_path / "test_audio/test0-0.wav")
    error = refused(capsys, compute_features_command, *one_copy, "--noise-dir", noise, "--keep-apart", test)
    assert "must not be heard behind other speech" in error and not (tmp_path / "cuts/x.jsonl.gz").exists()
    far = ["--data-dir", test, "--train-dir", train, "--out-dir", tmp_path / "far"]  # nor be its own noise
    assert "must not be heard" in refused(capsys, far_data, *far, "--noise-dir", noise, "--keep-apart", test)
    assert not (tmp_path / "far").exists()
    others = speakers(tmp_path, "others", 1)
    compute_features_command([*one_copy, "--noise-dir", str(others), "--keep-apart", str(test)])


@pytest.mark.parametrize("words, reason", [
    (["--far-copies", "-1"], "--far-copies"), (["--snr-db", "9", "3"], "snr_db"),
])  # fmt: skip
def test_wrong_values_are_refused(one_copy, capsys, words, reason):
    with pytest.raises(SystemExit):
        compute_features_command([*one_copy, *words])
    assert reason in capsys.readouterr().err


def test_ids_that_copies_would_have_are_refused(tmp_path):
    audio = {key: write_audio(tmp_path / f"{key}.wav", tone(0.3)) for key in ("a", "a_far1")}
    data = unchecked_dir(tmp_path / "data", audio)
    with pytest.raises(UserError, match='"a_far1" would name two cuts'):
        compute_features(data, tmp_path / "cuts", "x", surroundings=place(data), far_copies=1)
    assert compute_features(data, tmp_path / "cuts", "x").num_cuts == 2
