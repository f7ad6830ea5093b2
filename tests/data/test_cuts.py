"""A cuts file is data: nothing that it names is run, and a cut that stage 1 does not write is one line."""

import gzip
import json
import os
import shutil

import numpy as np
import pytest
from system_cases import noise_corpus

from rnnt_kd.data.dataset import make_dataloader
from rnnt_kd.data.source import open_source
from rnnt_kd.errors import UserError
from rnnt_kd.files import DATA_ROOTS


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cuts")
    noise_corpus(folder, {"s-a": "one two", "s-b": ""}, lambda index: 8000 + 4000 * index, speeds=(0.9, 1.0))
    return folder / "exp/cuts"


@pytest.fixture
def cuts(made, tmp_path, monkeypatch):
    """A copy, and no data root."""
    monkeypatch.setenv(DATA_ROOTS, "[]")
    return shutil.copytree(made, tmp_path / "cuts") / "test.jsonl.gz"


def lines_of(path):
    return [json.loads(line) for line in gzip.decompress(path.read_bytes()).splitlines()]


def write(path, lines):
    path.write_bytes(gzip.compress("".join(json.dumps(line) + "\n" for line in lines).encode()))


def changed(path, keys, value):
    """The first cut with another value, at ``keys`` joined by dots."""
    lines = lines_of(path)
    *above, last = keys.split(".")
    place = lines[0]
    for key in above:
        place = place[int(key) if key.isdigit() else key]
    if value is MISSING:
        del place[last]
    else:
        place[last] = value
    write(path, lines)
    return path


def read(path):
    return list(make_dataloader(path, batch_seconds=10.0))


MISSING = object()
KEYS = ["id", "start", "duration", "channel", "supervisions", "features", "recording", "type"]
KEYS += [f"supervisions.0.{key}" for key in ("id", "recording_id", "start", "duration", "channel")]
KEYS += [f"features.{key}" for key in ("type", "num_frames", "num_features", "frame_shift", "sampling_rate", "start")]
KEYS += [f"features.{key}" for key in ("duration", "storage_type", "storage_path", "storage_key", "recording_id")]
KEYS += [f"recording.{key}" for key in ("id", "sources", "sampling_rate", "num_samples", "duration")]
WRONG = [MISSING, None, "x", "", -1, 1e300, float("nan"), float("inf"), 10**400, True, [], {}, [[]], {"x": {}}]


@pytest.mark.parametrize("key", KEYS)
def test_a_value_of_another_type_or_out_of_range_is_one_line_that_names_it(cuts, key):
    original = cuts.read_bytes()
    for value in WRONG:
        cuts.write_bytes(original)
        known = lines_of(cuts)[0]
        if key in ("recording.sources", "id", "features.storage_path") and value in ([], "x", [[]]):
            continue  # a list that is not read; an id; a path, tested below
        with pytest.raises(UserError, match=r"test.jsonl.gz:1: .*run stage 1 again") as refused:
            open_source(changed(cuts, key, value))
        assert key == "id" or known["id"] in str(refused.value), value


@pytest.mark.parametrize("key, value", [
    ("duration", 0.6), ("start", 0.2), ("features.num_frames", 57), ("features.num_features", 40),
    ("features.duration", 3.0), ("features.start", 1.0), ("features.sampling_rate", 8000),
    ("features.frame_shift", 0.02), ("features.type", "fbank"), ("features.recording_id", "other"),
    ("supervisions.0.duration", 9.0), ("supervisions.0.start", 0.1), ("supervisions.0.id", "other"),
    ("supervisions.0.recording_id", "other"), ("supervisions.0.text", 3), ("supervisions.0.speaker", ["x"]),
    ("recording.num_samples", 10), ("recording.duration", 0.1), ("recording.id", "other"), ("type", "MixedCut"),
    ("id", "s-b"), ("id", "a b"), ("id", "a\nb"), ("custom", {"x": {"array": {"storage_path": "pipe:x"}}}),
    ("supervisions", [{}]), ("features.storage_key", "0"), ("features.storage_key", "-5,10"),
    ("features.storage_key", "a,b"), ("features.storage_key", "0,9999999999999999999"), ("tracks", []),
])  # fmt: skip
def test_a_value_that_does_not_fit_its_neighbours_is_one_line(cuts, key, value):
    with pytest.raises(UserError, match=r"test.jsonl.gz:\d: .*run stage 1 again"):
        read(changed(cuts, key, value))


def test_an_id_that_stands_twice_and_two_transcripts_of_a_cut_are_refused(cuts):
    lines = lines_of(cuts)
    write(cuts, [*lines, lines[0]])
    with pytest.raises(UserError, match="cut 's-a_sp0.9' stands there twice; expected every id once"):
        read(cuts)
    with pytest.raises(UserError, match="supervisions: .*at most 1"):
        read(changed(cuts, "supervisions", lines[0]["supervisions"] * 2))


@pytest.mark.parametrize(
    "storage_type", ["lilcom_files", "numpy_files", "lilcom_url", "numpy_hdf5", "kaldiio", "memory_raw", "x", ""]
)
def test_a_storage_that_is_not_the_plain_file_of_stage_1_is_refused_by_name(cuts, tmp_path, storage_type):
    lines = lines_of(cuts)
    command = f"pipe:touch {tmp_path}/EXECUTED; #"
    lines[0]["features"].update(storage_type=storage_type, storage_path=command, storage_key="x")
    write(cuts, lines)
    with pytest.raises(UserError, match=f"features.storage_type: \"{storage_type}\"; expected 'lilcom_chunky'"):
        read(cuts)
    assert not (tmp_path / "EXECUTED").exists()


@pytest.mark.parametrize("path, reason", [
    ("pipe:touch {}/EXECUTED; #", "a shell pipe"), ("touch {}/EXECUTED |", "a shell pipe"),
    ("https://localhost/x.lca", "a URL"), ("/dev/zero", "not below"), ("/etc/passwd", "not below"),
    ("../outside/x.lca", "not below"), ("link/x.lca", "not below"), ("fifo", "a device or pipe"),
    ("gone_feats/feats-00000.lca", "no such file"), ("test_feats", "cannot be read"),
])  # fmt: skip
def test_features_elsewhere_are_refused_by_name_and_not_opened(cuts, tmp_path, path, reason):
    (tmp_path / "outside").mkdir()
    shutil.copy(cuts.parent / "test_feats/feats-00000.lca", tmp_path / "outside/x.lca")
    (cuts.parent / "link").symlink_to(tmp_path / "outside")
    os.mkfifo(cuts.parent / "fifo")
    with pytest.raises(UserError, match=reason):
        read(changed(cuts, "features.storage_path", path.format(tmp_path)))
    assert not (tmp_path / "EXECUTED").exists()


def test_features_under_a_data_root_are_read(cuts, made, tmp_path, monkeypatch):
    expected = {name: row for batch in read(cuts) for name, row in zip(batch.utterance_ids, batch.features)}
    alone = shutil.copy(cuts, tmp_path / "alone.jsonl.gz")
    with pytest.raises(UserError, match="alone.jsonl.gz: names .*test_feats.*--data-root"):
        read(alone)
    monkeypatch.setenv(DATA_ROOTS, json.dumps([str(made)]))
    found = {name: row for batch in read(alone) for name, row in zip(batch.utterance_ids, batch.features)}
    assert all(np.array_equal(found[name], expected[name]) for name in expected) and len(found) == 4


@pytest.mark.parametrize("damage", [
    lambda raw: raw[:-12], lambda raw: raw[: len(raw) // 2], lambda raw: raw + b"x",
    lambda raw: gzip.compress(gzip.decompress(raw) + b"\n"), lambda raw: gzip.compress(b"[" * 100_000),
    lambda raw: gzip.compress(b" " * (1 << 24)), lambda raw: gzip.compress(b'"\xff"\n'),
    lambda raw: gzip.compress(b'{"id": "' + b"x" * 2_000_000 + b'"}'),
])  # fmt: skip
def test_a_damaged_file_is_one_line(cuts, damage):
    cuts.write_bytes(damage(cuts.read_bytes()))
    with pytest.raises(UserError, match=r"test.jsonl.gz.*run stage 1 again"):
        read(cuts)


def test_a_flipped_byte_of_the_compressed_file_is_found(cuts):
    raw = cuts.read_bytes()
    for at in range(12, len(raw), max(1, len(raw) // 60)):
        cuts.write_bytes(raw[:at] + bytes([raw[at] ^ 0xFF]) + raw[at + 1 :])
        with pytest.raises(UserError):
            open_source(cuts)
