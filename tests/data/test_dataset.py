"""Batches: a pure function of (seed, epoch), every cut once, padded right, resumable without reading."""

import gzip
import random
import shutil

import numpy as np
import pytest
import torch
from audio_cases import noise_files
from command_cases import told
from lhotse import CutSet

from rnnt_kd.data import batch_order
from rnnt_kd.data.batch_order import plan_batches
from rnnt_kd.data.dataset import PADDING_VALUE, load_cuts_info, make_dataloader
from rnnt_kd.data.features import compute_features
from rnnt_kd.data.kaldi_dir import write_data_dir
from rnnt_kd.errors import UserError


@pytest.fixture(scope="module")
def cuts_path(tmp_path_factory):
    """30 utterances of 0.2 to 1.36 s."""
    folder = tmp_path_factory.mktemp("dataset")
    audio = noise_files(folder, {f"u{index:02d}": int(16000 * (0.2 + 0.04 * index)) for index in range(30)})
    text = {key: "ONE" if index % 3 else "" for index, key in enumerate(audio)}
    write_data_dir(folder / "data", wav_scp=audio, text=text, utt2spk={key: f"s{key[1]}" for key in audio})
    return compute_features(folder / "data", folder / "cuts", "x").cuts_path


def load(cuts_path, **options):
    return make_dataloader(cuts_path, **{"batch_seconds": 4.0, "num_buckets": 3, "shuffle": True, "seed": 1, **options})


def test_every_cut_comes_once_and_batches_keep_to_their_seconds(cuts_path):
    loader = load(cuts_path)
    batches = list(loader)
    assert len(loader) == len(batches) == len(loader.utterance_ids) > 3
    assert sorted(uid for batch in batches for uid in batch.utterance_ids) == [f"u{index:02d}" for index in range(30)]
    assert all(max(batch.durations) * len(batch.durations) <= 4.0 for batch in batches)
    assert len(load(cuts_path, batch_seconds=100.0, num_buckets=30)) == 1  # few seconds, whatever the buckets


def test_a_batch_is_padded_features_in_the_order_of_its_ids(cuts_path):
    cuts = {cut.id: cut for cut in CutSet.from_jsonl(cuts_path)}
    for batch in load(cuts_path):
        assert batch.features.dtype == torch.float32 and batch.feature_lens.dtype == torch.int64
        assert batch.features.shape == (len(batch.texts), int(batch.feature_lens.max()), 80)
        supervisions = [cuts[uid].supervisions[0] for uid in batch.utterance_ids]
        assert batch.texts == [item.text or "" for item in supervisions]
        assert batch.speakers == [item.speaker for item in supervisions]
        assert batch.durations == [cuts[uid].duration for uid in batch.utterance_ids]
        for row, length, uid in zip(batch.features, batch.feature_lens, batch.utterance_ids, strict=True):
            np.testing.assert_array_equal(row[:length].numpy(), cuts[uid].load_features())
            assert (row[length:] == np.float32(PADDING_VALUE)).all()


def test_the_order_is_a_function_of_seed_and_epoch_alone(cuts_path):
    first = load(cuts_path, epoch=2).utterance_ids
    random.seed(5), np.random.seed(5), torch.manual_seed(5)
    for epoch in (0, 1):
        list(load(cuts_path, epoch=epoch))
    assert load(cuts_path, epoch=2).utterance_ids == first
    others = [load(cuts_path, epoch=3).utterance_ids, load(cuts_path, epoch=2, seed=2).utterance_ids]
    others += [load(cuts_path, epoch=1, seed=2).utterance_ids]  # seed + epoch are the same
    assert first not in others
    plain, later = (load(cuts_path, shuffle=False, epoch=number, seed=number).utterance_ids for number in (0, 9))
    assert plain == later


def test_loading_takes_nothing_from_global_generators(cuts_path):
    random.seed(3), np.random.seed(3), torch.manual_seed(3)
    before = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()
    list(load(cuts_path))
    assert (random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()) == before


def test_a_batch_by_its_number_is_the_same_and_no_other_is_read(cuts_path, tmp_path):
    whole, loader = list(load(cuts_path, epoch=1)), load(cuts_path, epoch=1)
    rest = [loader[number] for number in range(3, len(loader))]
    assert [batch.utterance_ids for batch in rest] == [batch.utterance_ids for batch in whole[3:]]
    assert all(torch.equal(a.features, b.features) for a, b in zip(rest, whole[3:], strict=True))
    moved = shutil.copy(cuts_path, tmp_path / "x.jsonl.gz")
    (tmp_path / "x_feats").mkdir()
    for part in (0, 1):
        (tmp_path / "x_feats" / f"feats-0000{part}.lca").write_bytes(b"")  # reading it would fail
    assert load(moved, epoch=1).utterance_ids == loader.utterance_ids
    with pytest.raises(UserError):
        list(load(moved, epoch=1))


def test_only_the_cuts_at_places_are_taken(cuts_path):
    places = np.array([place for place in range(20) if place % 3])
    loader = load(cuts_path, places=places)
    assert {uid for batch in loader.utterance_ids for uid in batch} == {f"u{place:02d}" for place in places}
    assert [loader[index].utterance_ids for index in range(len(loader))] == loader.utterance_ids


@pytest.mark.parametrize("size", [1, 2, 3, 8])
@pytest.mark.parametrize("count, seconds", [(40, 4.0), (9, 4.0), (8, 0.1), (11, 0.1), (30_000, 60.0)])
@pytest.mark.parametrize("shuffle", [True, False])
def test_every_cut_comes_once_and_every_process_has_a_batch_in_each_step(size, count, seconds, shuffle):
    durations = np.random.default_rng(count).uniform(0.2, 2.0, count)
    options = dict(batch_seconds=seconds, num_buckets=5, shuffle=shuffle, seed=1, epoch=2)
    alone, plans = (
        plan_batches(durations, **options),
        [plan_batches(durations, **options, rank=rank, world_size=size) for rank in range(size)],
    )
    assert sorted(place for plan in plans for places in plan for place in places) == list(range(count))
    assert {len(plan) for plan in plans} <= {len(alone) // size, -(-len(alone) // size)}
    assert len({len(plan) for plan in plans}) == 1 and all(len(places) for plan in plans for places in plan)
    assert [list(places) for places in plans[0][2:]] == [list(places) for places in plans[0]][2:]
    if size > 1 and len(plans[0]) > 20:  # in a step, batches of like length
        longest = np.array([[durations[places].max() for places in plan] for plan in plans])
        assert np.ptp(longest, axis=0).mean() < 0.5 * np.ptp(longest)


def test_many_cuts_are_planned_like_few(monkeypatch):
    durations = np.random.default_rng(0).gamma(4, 3, 2000)
    options = dict(batch_seconds=200.0, num_buckets=10, shuffle=True, seed=1)
    few = plan_batches(durations, **options, epoch=1)
    monkeypatch.setattr(batch_order, "SAMPLER_BUFFER", 100)
    many, same, other = (plan_batches(durations, **options, epoch=epoch) for epoch in (1, 1, 2))
    assert list(many) == list(same) != list(other)
    assert sorted(place for places in many for place in places) == list(range(2000))
    assert all(len(places) == 1 or durations[places].max() * len(places) <= 200.0 for places in many)
    assert abs(len(many) - len(few)) <= 0.05 * len(few)
    plain = batch_order.plan_batches(durations, **{**options, "shuffle": False}, epoch=5)
    assert list(plain) == list(batch_order.plan_batches(durations, **{**options, "shuffle": False}, epoch=6))


def test_nothing_left_is_an_error(cuts_path):
    assert "batch_seconds: found 0" in told(load, cuts_path, batch_seconds=0)
    assert "no utterance is left of 30" in told(lambda: load(cuts_path, places=np.array([], dtype=int)))


@pytest.mark.parametrize("count", [1, 2, 5])
@pytest.mark.parametrize("shuffle", [True, False])
def test_few_cuts_are_enough(cuts_path, tmp_path, count, shuffle):
    lines = gzip.decompress(cuts_path.read_bytes()).splitlines(keepends=True)[:count]
    shutil.copytree(cuts_path.parent / "x_feats", tmp_path / "x_feats")
    (tmp_path / "few.jsonl.gz").write_bytes(gzip.compress(b"".join(lines)))
    loader = load(tmp_path / "few.jsonl.gz", shuffle=shuffle, num_buckets=30, batch_seconds=0.1)
    assert [len(ids) for ids in loader.utterance_ids] == [1] * count  # each longer than a batch: alone
    assert sum(len(batch.texts) for batch in loader) == count


def test_cuts_and_features_may_move_together(cuts_path, tmp_path):
    moved = shutil.copytree(cuts_path.parent, tmp_path / "moved")
    text = gzip.decompress((moved / "x.jsonl.gz").read_bytes()).replace(str(cuts_path.parent).encode(), b"/nowhere")
    (moved / "x.jsonl.gz").write_bytes(gzip.compress(text))
    assert len(list(load(moved / "x.jsonl.gz"))) == len(load(cuts_path))


def test_infos_are_in_the_order_of_the_file(cuts_path):
    infos = load_cuts_info(cuts_path)
    assert [info.id for info in infos] == [f"u{index:02d}" for index in range(30)]
    assert (infos[1].text, infos[1].speaker, infos[1].duration, infos[1].num_frames) == ("ONE", "s0", 0.24, 24)


@pytest.mark.parametrize(
    "content", [b"", b"not gzip", *map(gzip.compress, (b"", b"{}\n", b"[1]\n", b"{\n", b"\xff\xfe"))]
)
def test_a_foreign_or_corrupt_cuts_file_is_one_line(tmp_path, content):
    (tmp_path / "x.jsonl.gz").write_bytes(content)
    with pytest.raises(UserError, match="x.jsonl.gz(:1)?: .*run stage 1"):
        load(tmp_path / "x.jsonl.gz")


def test_every_flipped_bit_of_features_is_found(cuts_path, tmp_path):
    folder = shutil.copytree(cuts_path.parent, tmp_path / "cuts")
    archive = folder / "x_feats" / "feats-00001.lca"
    whole = archive.read_bytes()
    for bit in random.Random(0).sample(range(8 * len(whole)), 40):
        damaged = bytearray(whole)
        damaged[bit // 8] ^= 1 << bit % 8
        archive.write_bytes(damaged)
        with pytest.raises(
            UserError, match=f"{archive}: features of u.. .*not what was written.*move {archive.parent}"
        ):
            list(load(folder / cuts_path.name))
    shutil.copy(cuts_path.parent / "x_feats" / "feats-00000.lca", archive)
    assert "feats-00001.lca: features of u" in told(lambda: list(load(folder / cuts_path.name)))


def test_missing_cuts_and_missing_or_corrupt_features_are_one_line(cuts_path, tmp_path):
    assert "nothing.jsonl.gz: no such file" in told(load, tmp_path / "nothing.jsonl.gz")
    text = gzip.decompress(cuts_path.read_bytes()).replace(b"x_feats", b"y_feats")
    text = text.replace(str(cuts_path.parent).encode(), str(tmp_path).encode())
    (tmp_path / "x.jsonl.gz").write_bytes(gzip.compress(text))
    with pytest.raises(UserError, match="y_feats/feats-0000..lca: no such file.*run stage 1"):
        list(load(tmp_path / "x.jsonl.gz"))
    (tmp_path / "y_feats").mkdir()
    archive = (cuts_path.parent / "x_feats" / "feats-00000.lca").read_bytes()
    for broken in (b"", archive[:1000], bytes(len(archive))):
        for part in (0, 1):
            (tmp_path / "y_feats" / f"feats-0000{part}.lca").write_bytes(broken)
        with pytest.raises(UserError, match="features of u.. .*move .*y_feats away and run stage 1"):
            list(load(tmp_path / "x.jsonl.gz"))
