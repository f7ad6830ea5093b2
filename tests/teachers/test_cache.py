"""The teacher's cache as files: what is written comes back, what is wrong is named."""

import dataclasses
import hashlib
import json
import os
import resource
import tracemalloc

import numpy as np
import pytest
import safetensors
import torch
from command_cases import told

from rnnt_kd import files
from rnnt_kd.errors import UserError
from rnnt_kd.teachers import shards as teacher_shards
from rnnt_kd.teachers.cache import TeacherCache, check_utterances, collate_teacher
from rnnt_kd.teachers.shards import CacheFacts, Entry, shard_path, write_shard

FACTS = CacheFacts(
    teacher="a" * 64, bpe="b" * 64, cuts="c" * 64, blank_id=0, subsampling=4, prune_range=5, rnnt_type="regular",
    temperature=1.0, lm_only_scale=0.25, am_only_scale=0.0, min_seconds=0.1, max_seconds=35.0, shard_utterances=4,
)  # fmt: skip


def make_entries(lengths, seed=0, tempered=False, name="{}"):
    """Random entries; starts rise from 0, one symbol a frame at most."""
    generator = torch.Generator().manual_seed(seed)
    entries = []
    for number, length in enumerate(lengths):
        starts = torch.randint(0, 2, (length,), generator=generator).cumsum(0)
        numbers = [torch.randn(length, 5, 2, generator=generator).half() for _ in range(2)]
        entries.append(Entry(name.format(number), starts, numbers[0], numbers[1] if tempered else None))
    return entries


def write_cache(folder, facts, entries):
    size = facts.shard_utterances
    parts = [entries[begin : begin + size] for begin in range(0, len(entries), size)]
    for index, part in enumerate(parts):
        write_shard(folder, facts, index, len(parts), part)
    return folder


@pytest.fixture
def entries():
    return make_entries([7, 3, 12, 1, 9, 5, 2, 8, 4, 6], name="spk{}-utt_sp0.9")


@pytest.fixture
def folder(tmp_path, entries):
    return write_cache(tmp_path / "cache", FACTS, entries)


def lookup(cache, entries, max_symbols=40):
    return cache.lookup([entry.id for entry in entries], [len(entry.starts) for entry in entries], max_symbols)


def read_all(folder, entries):
    lookup(TeacherCache.open(folder), entries)


def expect(found, entries, s_range):
    for b, entry in enumerate(entries):
        length = len(entry.starts)
        assert torch.equal(found.starts[b, :length], entry.starts)
        assert (found.starts[b, length:] == entry.starts[-1]).all()
        for got, given in ((found.packed, entry.packed), (found.tempered, entry.tempered)):
            assert (got is None) == (given is None)
            if got is not None:
                assert torch.equal(got[b, :length], given[:, :s_range]) and not got[b, length:].any()


@pytest.mark.parametrize("temperature", [1.0, 2.5])
def test_what_was_written_comes_back(tmp_path, temperature):
    entries = make_entries([7, 3, 12, 1, 9, 5, 2, 8, 4, 6], tempered=temperature != 1.0, name="Übung-{}-発話")
    cache = TeacherCache.open(write_cache(tmp_path, dataclasses.replace(FACTS, temperature=temperature), entries))
    assert len(cache) == len(entries)
    for seed in range(5):  # shuffled: any utterances together, across shards
        order = torch.randperm(len(entries), generator=torch.Generator().manual_seed(seed))[:6].tolist()
        chosen = [entries[place] for place in order]
        found = lookup(cache, chosen)
        assert found.starts.dtype == torch.int64 and found.packed.dtype == torch.float16
        assert found.packed.shape == (6, max(len(entry.starts) for entry in chosen), 5, 2)
        expect(found, chosen, 5)


def test_a_batch_of_short_texts_gets_fewer_columns(tmp_path):
    entries = [entry._replace(starts=torch.zeros_like(entry.starts)) for entry in make_entries([4, 6])]
    cache = TeacherCache.open(write_cache(tmp_path, FACTS, entries))
    for max_symbols, s_range in ((1, 2), (2, 3), (4, 5), (5, 5)):
        found = lookup(cache, entries, max_symbols=max_symbols)
        assert found.packed.shape[2] == s_range
        expect(found, entries, s_range)


def test_a_frame_costs_what_its_numbers_cost(tmp_path):
    """22 bytes at five positions; all the rest is at most a tenth of that, on AN4's short utterances."""
    entries = make_entries([75] * 400, name="fash-an251-fash-b-{:06d}_sp0.9")
    write_shard(tmp_path, FACTS, 0, 1, entries)
    size = shard_path(tmp_path, 0).stat().st_size
    assert 4 * 5 + 2 < size / (400 * 75) <= 1.10 * (4 * 5 + 2)


def test_a_shard_is_an_ordinary_file_that_describes_itself(folder, entries):
    with safetensors.safe_open(str(shard_path(folder, 1)), framework="np") as file:
        values = json.loads(file.metadata()["teacher_cache"].partition(" ")[2])
        frames = file.get_tensor("kd")
    packed = frames[:, 1:].copy().view(np.float16).reshape(-1, 5, 2)
    assert np.array_equal(packed, torch.cat([entry.packed for entry in entries[4:8]]).numpy())
    assert np.array_equal(frames[:, 0], torch.cat([entry.starts for entry in entries[4:8]]).numpy())
    assert [name for name, _, _ in values["utterances"]] == [entry.id for entry in entries[4:8]]
    assert {key: values[key] for key in dataclasses.asdict(FACTS)} == dataclasses.asdict(FACTS)
    assert (values["format"], values["shard"], values["shards"]) == (2, 1, 3)


def test_equal_contents_give_equal_bytes(folder, entries, tmp_path):
    again = write_cache(tmp_path / "again", FACTS, entries)
    for index in range(3):
        assert shard_path(again, index).read_bytes() == shard_path(folder, index).read_bytes()
    assert TeacherCache.open(again).digest == TeacherCache.open(folder).digest
    other = write_cache(tmp_path / "other", FACTS, make_entries([7, 3, 12], seed=1))
    assert TeacherCache.open(other).digest != TeacherCache.open(folder).digest


def test_a_shard_may_be_empty(tmp_path, entries):
    write_shard(tmp_path, FACTS, 0, 3, [])
    write_shard(tmp_path, FACTS, 1, 3, entries[:2])
    write_shard(tmp_path, FACTS, 2, 3, [])
    cache = TeacherCache.open(tmp_path)
    expect(lookup(cache, entries[:2]), entries[:2], 5)
    write_shard(tmp_path, FACTS, 1, 3, [])
    assert not lookup(TeacherCache.open(tmp_path), entries[:1]).is_known.any()


def test_every_flipped_bit_is_found_and_its_shard_named(folder, entries):
    path = shard_path(folder, 1)
    whole = path.read_bytes()
    for place in range(len(whole)):
        damaged = bytearray(whole)
        damaged[place] ^= 1 << place % 8
        path.write_bytes(damaged)
        said = told(read_all, folder, entries)
        assert str(path) in said and "make the cache again" in said, (place, said)


@pytest.mark.parametrize("keep", [0, 1, 7, 8, 100, -200, -1, None])
def test_a_shard_too_short_or_too_long_is_named_without_reading_it(folder, keep):
    path = shard_path(folder, 2)
    content = path.read_bytes()
    path.write_bytes(content + b"\0" if keep is None else content[:keep])
    said = told(TeacherCache.open, folder)
    assert said.startswith(f"{path}: damaged: it") and "makes this one anew" in said


def test_opening_reads_no_frames_verifying_and_looking_up_do(folder, entries):
    path = shard_path(folder, 0)
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    cache = TeacherCache.open(folder)
    assert f"{path}: damaged: the frames of {entries[3].id} are not what was written" in told(cache.verify)
    lookup(cache, entries[:3])
    assert str(path) in told(lookup, cache, entries[3:4])


def test_a_missing_cache_and_a_missing_shard_are_named(folder, tmp_path):
    assert "no teacher cache here" in told(TeacherCache.open, tmp_path / "nowhere")
    shard_path(folder, 0).unlink()
    said = told(TeacherCache.open, folder)
    assert "not finished: 1 of 3 shards are missing, the first shard-00000.safetensors" in said


def test_a_shard_of_another_teacher_or_in_the_place_of_another_is_refused(folder, entries):
    whole = shard_path(folder, 1).read_bytes()
    write_shard(folder, dataclasses.replace(FACTS, teacher="f" * 64), 1, 3, entries[4:8])
    said = told(TeacherCache.open, folder)
    assert "shard-00001" in said and "ffffffffffff..." in said and "aaaaaaaaaaaa..." in said
    shard_path(folder, 1).write_bytes(whole)
    shard_path(folder, 2).write_bytes(whole)
    assert "shard-00002" in told(TeacherCache.open, folder)


def test_shards_that_an_earlier_cache_left_behind_the_last_one_are_nobodys(folder, entries):
    (folder / "shard-²²²²².safetensors").write_bytes(b"no number to open")
    other = dataclasses.replace(FACTS, teacher="f" * 64, shard_utterances=10)
    write_shard(folder, other, 0, 1, entries)
    cache = TeacherCache.open(folder, {"teacher": other.teacher})
    assert len(cache) == len(entries)


def test_what_is_learned_from_an_unfinished_cache_is_the_same_when_more_of_it_is_there(folder):
    whole = TeacherCache.open(folder).content_as(None)
    every = TeacherCache.open(folder, partial=True)
    shard_path(folder, 2).rename(folder / "later")
    part = TeacherCache.open(folder, partial=True)
    assert part.content_as(None) == every.content_as(None) == every.content_as(part.digest) != whole
    assert every.content_as(whole) == whole  # of a version that recorded the shards that there were


def test_another_format_is_named(folder, entries, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(teacher_shards, "FORMAT", 1)
        write_shard(folder, FACTS, 1, 3, entries[4:8])
    said = told(TeacherCache.open, folder)
    assert (
        "shard-00001" in said
        and "its format is 1, and this program writes 2" in said
        and "make the cache again" in said
    )


@pytest.mark.parametrize("key, value, parts", [
    ("teacher", "d" * 64, ("teacher weights aaaaaaaaaaaa...", "teacher weights dddddddddddd...")),
    ("bpe", "d" * 64, ("BPE model bbbb", "BPE model dddd")), ("cuts", "d" * 64, ("cuts cccc", "cuts dddd")),
    ("prune_range", 4, ("prune range 5", "prune range 4")), ("subsampling", 2, ("subsampling 4", "subsampling 2")),
    ("temperature", 2.0, ("temperature 1.0", "temperature 2.0")), ("blank_id", 3, ("blank id 0", "blank id 3")),
    ("rnnt_type", "modified", ("rnnt_type regular", "rnnt_type modified")),
])  # fmt: skip
def test_a_cache_made_with_something_else_names_both(folder, key, value, parts):
    TeacherCache.open(folder, {key: getattr(FACTS, key)})
    said = told(TeacherCache.open, folder, {key: value})
    assert str(folder) in said and all(part in said for part in parts) and "make the cache again" in said


def test_missing_utterances_are_counted_and_one_is_named(folder, entries):
    cache = TeacherCache.open(folder)
    ids = [entries[0].id, "spk77-utt", entries[1].id, "spk0", "z" * 300]
    frames = [7, 1, 3, 1, 1]
    said = told(check_utterances, folder, ids, cache.frames(None, [], ids), frames, "error")
    assert "3 of 5 utterances are missing, the first: spk77-utt" in said
    assert check_utterances(folder, ids, cache.frames(None, [], ids), frames, "skip") == 3
    assert "3 of 5 utterances are missing, the first: spk77-utt" in told(cache.lookup, ids, frames, 20, "error")
    found = cache.lookup(ids, frames, 20)
    assert found.is_known.shape == found.packed.shape[:3] and not found.packed[[1, 3, 4]].any()
    assert (
        found.is_known.all(2).all(1).tolist()
        == found.is_known.any(2).any(1).tolist()
        == [True, False, True, False, False]
    )


def test_another_number_of_frames_names_both(folder, entries):
    cache = TeacherCache.open(folder)
    assert f"the teacher's posteriors of {entries[2].id}: (12, 11)" in told(cache.lookup, [entries[2].id], [24], 40)
    name = entries[2].id
    said = told(check_utterances, folder, [name], cache.frames(None, [], [name]), [24], "skip")
    assert f"12 encoder frames for {entries[2].id}, and the student makes 24" in said and "subsampling" in said


def test_positions_beyond_the_labels_are_an_error_and_no_crash_later(folder, entries):
    last = int(entries[2].starts[-1])
    said = told(lookup, TeacherCache.open(folder), [entries[1], entries[2]], max_symbols=last + 3)
    assert entries[2].id in said and "transcripts" in said


def write_header(path, change):
    """Change the tensors' specifications and the values of the entry; the checksum follows, as an attacker's would."""
    raw = path.read_bytes()
    end = 8 + int.from_bytes(raw[:8], "little")
    tensors = json.loads(raw[8:end])
    values = json.loads(tensors["__metadata__"]["teacher_cache"].partition(" ")[2])
    change(tensors, values)
    text = json.dumps(values)
    if "__metadata__" in tensors:
        tensors["__metadata__"] = {"teacher_cache": f"{hashlib.sha256(text.encode()).hexdigest()} {text}"}
    header = json.dumps(tensors).encode()
    path.write_bytes(len(header).to_bytes(8, "little") + header + raw[end:])


def frames_of_first(frames):
    return lambda tensors, values: values["utterances"][0].__setitem__(1, frames)


def digest_of_first(digest):
    return lambda tensors, values: values["utterances"][0].__setitem__(2, digest)


CLAIMS = {
    "no shards": lambda tensors, values: values.update(shards=0),
    "a billion shards": lambda tensors, values: values.update(shards=10**9),
    "endless shards": lambda tensors, values: values.update(shards=float("inf")),
    "fewer than none": lambda tensors, values: values.update(shard=-1),
    "beyond the last": lambda tensors, values: values.update(shard=3),
    "a long tensor": lambda tensors, values: tensors["kd"].update(shape=[10**15, 11]),
    "one that wraps around": lambda tensors, values: tensors["kd"].update(shape=[2**62, 4]),
    "a negative shape": lambda tensors, values: tensors["kd"].update(shape=[-1, -253]),
    "a shape of fractions": lambda tensors, values: tensors["kd"].update(shape=[23.0, 11]),
    "no shape": lambda tensors, values: tensors["kd"].update(shape=[]),
    "beyond the end": lambda tensors, values: tensors["kd"].update(shape=[10**8, 11], data_offsets=[0, 22 * 10**8]),
    "a wide range": lambda tensors, values: values.update(prune_range=10**9),
    "a range in words": lambda tensors, values: values.update(prune_range="five"),
    "nothing": lambda tensors, values: tensors.clear(),
    "another tensor": lambda tensors, values: tensors.update(odds=tensors.pop("kd")),
    "numbers of another kind": lambda tensors, values: tensors["kd"].update(dtype="F16"),
    "more frames than there are": frames_of_first(8),
    "fewer frames": frames_of_first(6),
    "less than no frames": frames_of_first(-7),
    "frames in words": frames_of_first("seven"),
    "a billion frames": frames_of_first(10**9),
    "utterances without digests": lambda tensors, values: values.update(utterances=[["a", 23]]),
    "no utterances": lambda tensors, values: values.pop("utterances"),
    "a digest in words": digest_of_first("no digest"),
    "a short digest": digest_of_first("ab"),
    "no digest": digest_of_first(""),
    "half a character": lambda tensors, values: values["utterances"][0].__setitem__(0, "\ud800"),
}


@pytest.mark.parametrize("claim", CLAIMS)
def test_what_a_header_claims_is_held_against_the_file_before_memory_is_asked_for(folder, claim):
    write_header(shard_path(folder, 0), CLAIMS[claim])
    tracemalloc.start()
    try:
        assert "shard-00000.safetensors: damaged" in told(TeacherCache.open, folder)
        assert tracemalloc.get_traced_memory()[1] < 5e6
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("length", [0, 2**31, 2**63 - 1, 2**64 - 1])
def test_the_length_of_a_header_is_a_claim_too(folder, length):
    path = shard_path(folder, 1)
    path.write_bytes(length.to_bytes(8, "little") + path.read_bytes()[8:])
    assert "shard-00001.safetensors: damaged: its header is wrong" in told(TeacherCache.open, folder)


def test_a_header_nested_too_deep_is_damaged(folder):
    deep = b"[" * 100_000
    shard_path(folder, 1).write_bytes(len(deep).to_bytes(8, "little") + deep)
    assert "shard-00001.safetensors: damaged: its header is wrong" in told(TeacherCache.open, folder)


def test_a_teacher_of_no_frames_is_refused():
    with pytest.raises(UserError, match=r"posteriors of a: \(0, 11\) frames and numbers"):
        collate_teacher([np.zeros((0, 11), np.int16)], [1], 5, 5, False, ["a"], "crop-pad")


def test_unusable_entries_are_refused(tmp_path):
    (entry,) = make_entries([3])
    said = told(write_shard, tmp_path, FACTS, 0, 1, [entry._replace(starts=torch.tensor([0, 1, 40000]))])
    assert "40000 symbols" in said and entry.id in said
    assert not list(tmp_path.iterdir())


def test_lookups_do_not_read_the_cache_into_memory(tmp_path):
    size = 4 * 500_000 * 22
    for index in range(4):
        zeros = torch.zeros(50_000, 5, 2, dtype=torch.float16)
        long = [Entry(f"{index}-{k}", torch.zeros(50_000), zeros) for k in range(10)]
        write_shard(tmp_path, FACTS, index, 4, long)
    assert sum(path.stat().st_size for path in tmp_path.glob("*.safetensors")) >= size
    tracemalloc.start()
    try:
        cache = TeacherCache.open(tmp_path)
        for index in range(4):
            cache.lookup([f"{index}-3"], [50_000], 9)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 10e6 < size / 4  # one utterance of 1.1 MB, its copies, its starts as int64


def test_a_cache_that_changes_under_a_training_is_noticed(folder, entries):
    cache = TeacherCache.open(folder)
    lookup(cache, entries)
    write_cache(folder, FACTS, make_entries([7, 3, 12, 1, 9, 5, 2, 8, 4, 6], seed=1, name="spk{}-utt_sp0.9"))
    assert "are not what was written" in told(lookup, cache, entries)


def test_no_file_stays_open(tmp_path):
    """2,000 shards under ulimit -n 256."""
    entries = make_entries([2] * 300)
    write_cache(tmp_path, dataclasses.replace(FACTS, shard_utterances=1), entries)
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    in_use = len(os.listdir("/proc/self/fd"))
    resource.setrlimit(resource.RLIMIT_NOFILE, (in_use + 10, limits[1]))
    try:
        cache = TeacherCache.open(tmp_path)
        cache.verify()
        expect(lookup(cache, entries), entries, 5)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)


def test_a_file_that_comes_late_is_waited_for_but_not_for_ever(folder, entries, monkeypatch):
    path, pauses, cache = shard_path(folder, 1), [], TeacherCache.open(folder)
    late = path.rename(folder / "elsewhere")

    def sleep(seconds):
        pauses.append(seconds)
        if sum(pauses) >= 5.0 and late.exists():
            late.rename(path)

    monkeypatch.setattr(files.time, "sleep", sleep)
    expect(lookup(cache, entries), entries, 5)
    assert 5.0 <= sum(pauses) < 6.0
    path.unlink()
    pauses.clear()
    assert f"{path}: damaged: it is gone" in told(lookup, cache, entries) and 5.0 < sum(pauses) < 60
