"""Audio of the real world: every kind is read, and what is damaged is named; a header is a claim, not an order."""

import functools
import io
import pickle
import struct

import audio_cases
import numpy as np
import pytest
import soundfile

from rnnt_kd.bin.compute_features import main as compute_features
from rnnt_kd.data.audio import BadAudio, check_header, read_recording
from rnnt_kd.data.check_audio import check_audio
from rnnt_kd.data.kaldi_dir import RecordingEntry, read_data_dir
from rnnt_kd.data.speech import load_samples, read_speech
from rnnt_kd.errors import UserError

RATE = 16000


tone = functools.partial(audio_cases.tone, noise=0.02)


def encoded(form, subtype=None, samples=None, rate=RATE, **options) -> bytes:
    stream = io.BytesIO()
    soundfile.write(stream, tone() if samples is None else samples, rate, format=form, subtype=subtype, **options)
    return stream.getvalue()


def changed(content: bytes, place: int, new: bytes) -> bytes:
    return content[:place] + new + content[place + len(new) :]


def wav(data_size=None, riff_size=None, samples=None, words=b"", behind=b"") -> bytes:
    data = (np.round((tone() if samples is None else samples) * 32767)).astype("<i2").tobytes()
    body = b"WAVEfmt " + struct.pack("<IHHIIHH", 16, 1, 1, RATE, 2 * RATE, 2, 16) + words
    body += b"data" + struct.pack("<I", len(data) if data_size is None else data_size) + data + behind
    return b"RIFF" + struct.pack("<I", len(body) if riff_size is None else riff_size) + body


def entry(path, pipe=False) -> RecordingEntry:
    return RecordingEntry("a", f"cat '{path}'" if pipe else str(path), pipe, "wav.scp:1")


@pytest.fixture
def read(tmp_path):
    """Samples of a file with this content, the same by a pipe; stage 0 agrees about its length, to so many seconds."""

    def of(content: bytes, seconds: float = 0.03) -> np.ndarray:
        path = tmp_path / "audio"
        path.write_bytes(content)
        audio = read_recording(entry(path))
        samples, rate = audio.samples, audio.rate
        np.testing.assert_array_equal(read_recording(entry(path, pipe=True)).samples, samples)
        assert check_header(entry(path)) == pytest.approx(len(samples) / rate, abs=seconds)
        return samples

    return of


@pytest.mark.parametrize(
    "form, subtype",
    [("WAV", kind) for kind in ("GSM610", "IMA_ADPCM", "MS_ADPCM", "ULAW", "ALAW", "G721_32", "NMS_ADPCM_16", "PCM_24")]
    + [("AU", kind) for kind in ("G721_32", "G723_24", "G723_40", "ULAW")]
    + [("AIFF", kind) for kind in ("GSM610", "DWVW_16", "IMA_ADPCM", "PCM_16")]
    + [
        ("W64", "GSM610"),
        ("RF64", "PCM_16"),
        ("WAVEX", "PCM_16"),
        ("CAF", "ALAC_16"),
        ("NIST", "ULAW"),
        ("VOC", "ULAW"),
    ]
    + [("SVX", "PCM_16"), ("AVR", "PCM_16"), ("MAT4", "PCM_16")],
)
def test_what_libsndfile_decodes_is_read_whether_it_can_seek_or_not(read, form, subtype):
    samples = read(encoded(form, subtype))
    assert RATE <= len(samples) < RATE + 300
    assert np.corrcoef(samples[:RATE], tone())[0, 1] > 0.95


@pytest.mark.parametrize("form", ["IRCAM", "MAT5", "PAF", "PVF", "SDS"])
def test_a_container_that_states_no_length_is_named(read, form):
    """A part of it would be taken for the whole."""
    with pytest.raises(BadAudio, match=f"is {form}, whose length cannot be checked: convert it to WAV or FLAC"):
        read(encoded(form, "PCM_16"))


def test_flac_that_leaves_its_length_open_is_read_to_its_end(read):
    content = encoded("FLAC")
    expected = read(content)
    unknown = changed(content, 21, bytes([content[21] & 0xF0]) + bytes(4))
    np.testing.assert_array_equal(read(unknown), expected)
    with pytest.raises(BadAudio, match="truncated"):
        read(unknown[:-2000])


@pytest.mark.parametrize("size", [0, 0x7F000008, 0x7FFFF000, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF, 0xFFFFFFDB])
def test_wav_and_au_of_a_recorder_that_never_came_back_to_the_header(read, size):
    expected = read(wav())
    np.testing.assert_array_equal(read(wav(data_size=size, riff_size=size and min(size + 36, 0xFFFFFFFF))), expected)
    if size in (0, 0xFFFFFFFF):
        au = encoded("AU", "PCM_16")
        np.testing.assert_array_equal(read(changed(au, 8, struct.pack(">I", size))), read(au))


@pytest.mark.parametrize("data_size", [0, 0xFFFFFFFF])
def test_rf64_of_a_recorder_that_never_came_back_to_the_header(read, data_size):
    content = encoded("RF64", "PCM_16")
    expected = read(content)
    zeros = changed(content, content.index(b"ds64") + 8, bytes(24))
    np.testing.assert_array_equal(
        read(changed(zeros, content.index(b"data") + 4, struct.pack("<I", data_size))), expected
    )


def test_a_wav_without_samples_but_with_words_behind_has_none(read):
    with pytest.raises(BadAudio, match="has no samples"):
        read(wav(samples=np.zeros(0), behind=b"LIST" + struct.pack("<I", 12) + b"INFOISFT\0\0\0\0"))


def ogg_pages(content):
    """(begin, end) of each page."""
    places, place = [], 0
    while place < len(content):
        size = 27 + content[place + 26] + sum(content[place + 27 : place + 27 + content[place + 26]])
        places.append((place, place + size))
        place += size
    return places


def with_last_page(content, later=0, marked=True):
    """The last page ends ``later`` than it does, or has no mark as the last; its check sum is right."""
    begin, _ = ogg_pages(content)[-1]
    page = bytearray(content[begin:])
    page[6:14] = struct.pack("<q", struct.unpack("<q", page[6:14])[0] + later)
    page[5] = page[5] if marked else page[5] & ~4
    page[22:26] = bytes(4)
    crc = 0
    for byte in page:
        crc ^= byte << 24
        for _ in range(8):
            crc = (crc << 1 ^ (0x04C11DB7 if crc >> 31 else 0)) & 0xFFFFFFFF
    page[22:26] = struct.pack("<I", crc)
    return content[:begin] + bytes(page)


@pytest.mark.parametrize("subtype", ["VORBIS", "OPUS"])
class TestOgg:
    def test_whose_last_page_promises_more_is_read(self, read, subtype):
        content = encoded("OGG", subtype, tone(5.0))
        for later in (20, 3000):
            assert 5 * RATE <= len(read(with_last_page(content, later), 0.2)) <= 5 * RATE + 700
        assert len(read(content + b"TAG" + bytes(125))) == 5 * RATE

    def test_without_the_mark_on_its_last_page_is_read_or_the_mark_is_named(self, read, subtype):
        unmarked = with_last_page(encoded("OGG", subtype), marked=False)
        if subtype == "VORBIS":
            assert len(read(unmarked)) == RATE
        else:
            with pytest.raises(BadAudio, match="not marked as the last"):
                read(unmarked)
            assert len(read(with_last_page(encoded("OGG", subtype), 4000, marked=False))) >= RATE

    def test_with_a_page_missing_broken_or_cut_is_damaged(self, read, subtype):
        content = encoded("OGG", subtype, tone(5.0))
        pages = ogg_pages(content)
        begin, end = pages[len(pages) // 2]
        for damaged in (
            content[:begin] + content[end:],
            changed(content, begin + 400, bytes([content[begin + 400] ^ 4])),
            changed(content, len(content) - 50, bytes([content[-50] ^ 4])),
            content[:-10],
            content[: (begin + end) // 2],
        ):
            with pytest.raises(BadAudio, match="truncated|damaged"):
                read(damaged)

    def test_recorded_from_its_middle_on_is_read(self, read, subtype):
        content = encoded("OGG", subtype, tone(5.0))
        headers = [place for place in ogg_pages(content) if content[place[0] + 6 : place[0] + 14] == bytes(8)]
        assert len(read(content[: headers[-1][1]] + content[ogg_pages(content)[len(headers) + 1][0] :])) > RATE

    def test_with_long_tags_is_damaged_as_well(self, tmp_path, read, subtype):
        """They fill libsndfile's log."""
        with soundfile.SoundFile(tmp_path / "tags", "w", RATE, 1, subtype, format="OGG") as made:
            made.title = made.artist = "words " * 300
            made.write(tone(5.0))
        content = (tmp_path / "tags").read_bytes()
        assert len(read(content)) == 5 * RATE
        with pytest.raises(BadAudio, match="truncated|damaged"):
            read(changed(content, len(content) - 5000, bytes([content[-5000] ^ 4])))

    def test_of_two_streams_is_not_taken_for_the_first(self, read, subtype):
        with pytest.raises(BadAudio, match="holds more than one"):
            read(encoded("OGG", subtype) * 2)


CONTAINERS = {
    "aiff": encoded("AIFF", "PCM_16"),
    "aiff-gsm": encoded("AIFF", "GSM610"),
    "au": encoded("AU", "PCM_16"),
    "au-g721": encoded("AU", "G721_32"),
    "avr": encoded("AVR", "PCM_16"),
    "caf": encoded("CAF", "PCM_16"),
    "caf-alac": encoded("CAF", "ALAC_16"),
    "flac": encoded("FLAC"),
    "mat4": encoded("MAT4", "PCM_16"),
    "mp3": encoded("MP3"),
    "mp3-44100": encoded("MP3", None, tone(1.0, 44100), 44100),
    "ogg": encoded("OGG", "VORBIS"),
    "opus": encoded("OGG", "OPUS"),
    "rf64": encoded("RF64", "PCM_16"),
    "sphere": encoded("NIST", "PCM_16"),
    "sphere-ulaw": encoded("NIST", "ULAW"),
    "svx": encoded("SVX", "PCM_16"),
    "voc": encoded("VOC", "ULAW"),
    "w64": encoded("W64", "PCM_16"),
    "wav": encoded("WAV", "PCM_16"),
    "wav-extensible-24": encoded("WAVEX", "PCM_24"),
    "wav-float": encoded("WAV", "FLOAT"),
    "wav-gsm": encoded("WAV", "GSM610"),
    "wav-ms-adpcm": encoded("WAV", "MS_ADPCM"),
    "wav-words-before": wav(words=b"LIST" + struct.pack("<I", 2804) + b"INFO" + b"ICMT\0\0\0\0" * 350),
}


@pytest.mark.parametrize("share", [0.2, 0.5, 0.9])
@pytest.mark.parametrize("name", CONTAINERS)
def test_a_file_that_ends_before_its_header_says_is_named_in_every_container(read, name, share):
    content = CONTAINERS[name]
    assert len(read(content)) >= RATE
    with pytest.raises(BadAudio, match="truncated"):
        read(content[: int(share * len(content))])


def test_a_few_missing_milliseconds_are_taken_and_counted(tmp_path, capsys):
    short = {"a": wav()[:-200], "b": CONTAINERS["sphere"][:-64], "c": CONTAINERS["aiff"][:-100], "d": wav()}
    for name, content in short.items():
        (tmp_path / name).write_bytes(content)
    assert read_recording(entry(tmp_path / "a")).missing == pytest.approx(100 / RATE)
    data = audio_cases.unchecked_dir(tmp_path / "data", {name: tmp_path / name for name in short})
    compute_features(["--data-dir", str(data), "--out-dir", str(tmp_path / "cuts"), "--name", "x"])
    out = capsys.readouterr().out
    assert "4 cuts of 4 utterances" in out
    assert "3 recordings end some milliseconds before their headers say, and are taken as they are: a, b, c\n" in out


def test_a_block_that_is_cut_is_missing_as_a_whole(read):
    """Of 63 ms, where libsndfile decodes nothing of it; other codes lose what is not there."""
    with pytest.raises(BadAudio, match="truncated: 0.95 s where its header says 1.01 s"):
        read(encoded("WAV", "MS_ADPCM")[:-1])
    for code in ("IMA_ADPCM", "GSM610"):
        assert len(read(encoded("WAV", code)[:-1])) >= RATE


def test_mp3_without_a_header_is_read_where_its_bit_rate_is_constant_and_named_where_it_is_not(read):
    for mode, problem in (("CONSTANT", None), ("VARIABLE", "holds more than its beginning says")):
        content = encoded("MP3", None, tone(5.0), bitrate_mode=mode, compression_level=0.5)
        header = max(content.find(b"Xing"), content.find(b"Info"))
        bare = content[content.index(content[:2], header) :]
        if problem:
            with pytest.raises(BadAudio, match=problem):
                read(bare)
        else:
            assert len(read(bare)) >= 5 * RATE


def test_sphere_with_shorten_says_what_to_do(read):
    head = "NIST_1A\n   1024\nsample_count -i 9\nsample_coding -s26 pcm,embedded-shorten-v2.00\nend_head\n"
    with pytest.raises(BadAudio, match="SPHERE with shorten.*sph2pipe.*--allow-pipes"):
        read(head.encode().ljust(1024) + b"ajkg\x02" + bytes(100))


@pytest.fixture
def archive(tmp_path):
    """Three WAVs in a Kaldi archive, and where each begins; the last is cut off."""
    content, places = b"", {}
    for index, name in enumerate("abc"):
        content += f"{name} ".encode()
        places[name] = len(content)
        content += wav(samples=tone(0.5 + index))
    (tmp_path / "wav.ark").write_bytes(content[:-20000])
    return tmp_path / "wav.ark", places


def test_archives_of_kaldi_are_read(tmp_path, archive):
    path, places = archive
    data = audio_cases.unchecked_dir(tmp_path / "data", {name: f"../wav.ark:{place}" for name, place in places.items()})
    found = {item.id: item for item in read_speech(data)}
    for index, name in enumerate("ab"):
        np.testing.assert_array_equal(found[name].samples, np.round(tone(0.5 + index) * 32767).astype("f4") / 32768)
    assert found["c"].reason.startswith("truncated")
    assert check_audio(read_data_dir(data)).seconds == pytest.approx(0.5 + 1.5 + 2.5)  # by the headers alone


@pytest.mark.parametrize("place, problem", [(3, "holds no WAV"), (10**17, "ends before byte 10+")])
def test_a_wrong_place_in_an_archive_is_named(archive, place, problem):
    with pytest.raises(BadAudio, match=problem):
        read_recording(entry(f"{archive[0]}:{place}"))


@pytest.mark.parametrize("size", [0, 0xFFFFFFFF])
def test_a_header_in_an_archive_that_leaves_the_length_open_does_not_take_what_follows(tmp_path, size):
    (tmp_path / "wav.ark").write_bytes(b"a " + wav(data_size=size) + b"b " + wav())
    with pytest.raises(BadAudio, match="holds no WAV whose header says its length"):
        read_recording(entry(f"{tmp_path}/wav.ark:2"))


def test_a_file_whose_name_looks_like_a_place_in_an_archive_is_itself(tmp_path):
    (tmp_path / "take:12").write_bytes(wav())
    assert len(read_recording(entry(tmp_path / "take:12")).samples) == RATE


@pytest.mark.parametrize("scale", [127, 32768, 2**31])
def test_floating_point_samples_in_the_range_of_integers_are_named(read, scale):
    with pytest.raises(BadAudio, match=r"samples up to .* range \[-1, 1\]"):
        read(encoded("WAV", "FLOAT", tone() * scale))
    assert np.abs(read(encoded("WAV", "FLOAT", 5 * tone()))).max() > 1.5  # loud, not integers


@pytest.mark.parametrize(
    "rate", [1, 1999, 44101, 16001, 10**6, 10**9, 2**31 - 1], ids=lambda rate: f"{rate}Hz"
)  # by their names, these would be hundreds of megabytes and more of a resampler's kernel
def test_a_sampling_rate_that_nothing_has_is_named(read, tmp_path, rate):
    content = changed(wav(), 24, struct.pack("<II", rate, 2 * rate % 2**32))
    with pytest.raises(BadAudio, match=f"sampling rate {rate} Hz"):
        read(content)
    with pytest.raises(UserError, match=f"sampling rate {rate} Hz"):
        load_samples(tmp_path / "audio")


@pytest.mark.parametrize("rate", [8000, 11025, 22050, 44100, 48000, 192000])
def test_rates_of_this_world_are_resampled(tmp_path, rate):
    (tmp_path / "a.wav").write_bytes(encoded("WAV", "PCM_16", tone(0.3, rate), rate))
    assert len(load_samples(tmp_path / "a.wav")) == pytest.approx(0.3 * RATE, abs=2)


@pytest.mark.parametrize(
    "place, new",
    [(22, b"\x02"), (24, b"\x81"), (25, b"\x7e"), (28, b"\x01"), (32, b"\x04")],
    ids=["channels", "rate", "rate-high", "bytes-a-second", "block"],
)
def test_a_header_that_contradicts_itself_is_named(read, place, new):
    with pytest.raises(BadAudio, match="contradicts itself|sampling rate"):
        read(changed(wav(), place, new))


def test_an_aiff_whose_samples_are_fewer_than_its_first_chunk_says_is_named(read):
    content = encoded("AIFF", "PCM_16")
    with pytest.raises(BadAudio, match="truncated"):
        read(changed(content, content.index(b"SSND") + 4, struct.pack(">I", 8008)))


def test_headers_are_claims_and_no_memory_is_asked_for_them(read, tmp_path):
    """1024 channels, 2^36 - 1 samples, and a WAV of zeros that looks like 2^24 chunks."""
    many = encoded("WAV", "PCM_16", np.zeros((16, 1024), dtype=np.float32))
    assert len(read(many)) == 16
    content = encoded("FLAC")
    with pytest.raises(BadAudio, match="truncated"):
        read(changed(content, 21, bytes([content[21] | 0x0F]) + b"\xff" * 4))
    with open(tmp_path / "zeros", "wb") as stream:
        stream.write(b"RIFF\0\0\0\0WAVE")
        stream.truncate(1 << 27)
    with pytest.raises(BadAudio):
        read_recording(entry(tmp_path / "zeros"))


@pytest.fixture
def two_sides(tmp_path):
    """Recordings with silence on the first channel, on the second, and on both."""
    sides = {"both": (0, 0), "first": (1, 0), "second": (0, 1)}
    for name, loud in sides.items():
        soundfile.write(tmp_path / f"{name}.wav", np.stack([tone() * side for side in loud], axis=1), RATE)
    return {name: tmp_path / f"{name}.wav" for name in sides}


def test_sound_on_another_channel_is_told(two_sides):
    with pytest.raises(UserError, match="is silent in its first channel, and channel 2 is not.*remix 2"):
        load_samples(two_sides["second"])
    assert not load_samples(two_sides["both"]).any() and load_samples(two_sides["first"]).any()


def test_reasons_that_take_much_of_the_hours_are_told_with_their_share(tmp_path, two_sides, capsys):
    many = {f"first{index:02d}": two_sides["first"] for index in range(23)}
    soundfile.write(tmp_path / "long.wav", np.stack([np.zeros(5 * RATE), tone(5.0)], axis=1), RATE)
    recordings = {"both": two_sides["both"], "long": tmp_path / "long.wav", **many}
    data = audio_cases.unchecked_dir(tmp_path / "data", recordings)
    options = ["--data-dir", str(data), "--out-dir", str(tmp_path / "cuts"), "--name", "x"]
    compute_features([*options, "--speed-perturb", "0.9", "1.0"])
    last = capsys.readouterr().out.strip().split("\n")
    assert [line for line in last if "of the hours" in line] == [last[-1]]  # silence in both takes 3 %
    assert last[-1].startswith("left out 17 % of the hours: 1 utterances, long is silent in its first channel")


def test_a_reason_survives_the_way_from_another_process():
    error = pickle.loads(pickle.dumps(BadAudio("is silent", 2.0)))
    assert (str(error), error.seconds) == ("is silent", 2.0)


@pytest.mark.parametrize("samples_left", [1, 2, 3])
@pytest.mark.parametrize("form", ["WAV", "RF64", "W64", "AIFF", "CAF"])
def test_a_file_that_is_cut_right_behind_its_header_is_named(tmp_path, form, samples_left):
    content = encoded(form, "PCM_16")
    path = tmp_path / "audio"
    path.write_bytes(content[: len(content) - 2 * RATE + 2 * samples_left])  # the samples stand at the end
    with pytest.raises(BadAudio, match="truncated"):
        read_recording(entry(path))
