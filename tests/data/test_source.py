"""Every kind of source gives what Lhotse gives; an index is made once, held against its file, and never believed when
damaged."""

import argparse
import gzip
import hashlib
import json
import os
import pickle
import shutil
import zlib
from pathlib import Path

import h5py
import numpy as np
import pytest
import soundfile
from lhotse import CutSet, Fbank, LilcomChunkyWriter, MonoCut, Recording, SupervisionSegment
from lhotse.audio import AudioSource
from lhotse.features.io import (
    ChunkedLilcomHdf5Writer,
    LilcomFilesWriter,
    LilcomHdf5Writer,
    NumpyFilesWriter,
    NumpyHdf5Writer,
    close_cached_file_handles,
)
from lhotse.shar import SharWriter
from lhotse.utils import fastcopy

from rnnt_kd.bin.options import add_data_root
from rnnt_kd.data import source as source_module
from rnnt_kd.data.dataset import make_dataloader
from rnnt_kd.data.source import open_source
from rnnt_kd.errors import UserError
from rnnt_kd.files import DATA_ROOTS, STORAGES
from rnnt_kd.record import json_digest


@pytest.fixture(scope="module")
def audio(tmp_path_factory):
    """Cuts of two recordings of 4 s, with a start of their own, at two speeds; no features."""
    folder = tmp_path_factory.mktemp("audio")
    rng, cuts = np.random.default_rng(0), []
    for name in ("one", "two"):
        soundfile.write(folder / f"{name}.wav", 0.1 * rng.normal(size=4 * 16000), 16000)
        recording = Recording(name, [AudioSource("file", [0], str(folder / f"{name}.wav"))], 16000, 64000, 4.0)
        for start, duration in ((0.0, 1.0), (0.5, 2.345), (2.0, 2.0)):
            said = SupervisionSegment(f"{name}-{start}", name, 0.0, duration, text=f"{name} {start}", speaker=name)
            cuts.append(MonoCut(f"{name}-{start}", start, duration, 0, supervisions=[said], recording=recording))
    plain = CutSet.from_cuts(cuts)
    return folder, CutSet.from_cuts([*plain, *plain.perturb_speed(0.9)])


@pytest.fixture(autouse=True)
def no_roots(monkeypatch):
    monkeypatch.setenv(DATA_ROOTS, "[]")


def same(source, cuts):
    """Everything of ``cuts`` comes out of ``source``, bit by bit."""
    expected = list(cuts)
    assert len(source) == len(expected) and source.ids(range(len(source))) == [cut.id for cut in expected]
    for place, cut in enumerate(expected):
        info, features = source.read(place)
        wanted = cut.load_features() if cut.has_features else Fbank().extract(cut.load_audio(), 16000)
        np.testing.assert_array_equal(features.numpy(), wanted)
        assert (info.id, info.text, info.speaker) == (cut.id, cut.supervisions[0].text, cut.supervisions[0].speaker)
        assert info == source.info(place) and info.duration == source.durations[place] == cut.duration
        assert info.num_frames == source.num_frames[place] == len(features)
    assert [info.id for info in source.infos()] == [cut.id for cut in source] == [cut.id for cut in expected]


@pytest.mark.parametrize("writer", [LilcomChunkyWriter, LilcomFilesWriter, NumpyFilesWriter])
def test_a_manifest_of_lhotse_is_read_as_lhotse_reads_it(audio, tmp_path, writer):
    cuts = audio[1].compute_and_store_features(Fbank(), str(tmp_path / "feats_x"), storage_type=writer)
    cuts = CutSet.from_cuts(
        [*cuts, *(cut.truncate(offset=0.3, duration=0.5, preserve_id=False) for cut in cuts if cut.duration > 1)]
    )
    cuts.to_file(tmp_path / "cuts_x.jsonl.gz")
    same(open_source(tmp_path / "cuts_x.jsonl.gz"), cuts)
    moved = shutil.copytree(tmp_path, tmp_path / "other" / "place")
    for made in tmp_path.glob("feats_x*"):
        shutil.rmtree(made) if made.is_dir() else made.unlink()
    (batch,) = make_dataloader(moved / "cuts_x.jsonl.gz", batch_seconds=1000)
    assert len(batch.texts) == len(cuts)


def test_what_other_manifests_may_leave_open(audio, tmp_path):
    """A speaker with blanks is one word, as ids are; no changes of the audio are none."""
    recording = {**audio[1][0].recording.to_dict(), "transforms": None}
    cut = {**audio[1][0].to_dict(), "recording": recording}
    cut["supervisions"][0]["speaker"] = " Jane  Doe"
    (tmp_path / "cuts.jsonl").write_text(json.dumps(cut))
    shutil.copy(audio[0] / "one.wav", tmp_path)
    recording["sources"][0]["source"] = "one.wav"
    (tmp_path / "cuts.jsonl").write_text(json.dumps(cut))
    source = open_source(tmp_path / "cuts.jsonl")
    assert source.read(0)[0].speaker == "Jane_Doe" and source.audio_files() == {"one": tmp_path / "one.wav"}


def test_cuts_with_audio_alone_have_their_features_computed(audio, tmp_path):
    folder, cuts = audio
    cuts.to_file(tmp_path / "cuts.jsonl")
    with pytest.raises(UserError, match="cuts.jsonl: names .*one.wav, which is not below .*--data-root"):
        open_source(tmp_path / "cuts.jsonl").read(0)
    os.environ[DATA_ROOTS] = json.dumps([str(folder)])
    same(open_source(tmp_path / "cuts.jsonl"), cuts)


@pytest.mark.parametrize("fields", [{"features": "lilcom"}, {"features": "numpy"}, {"recording": "wav"}])
def test_a_shar_folder_is_read_as_lhotse_reads_it(audio, tmp_path, fields):
    cuts = audio[1]
    if "features" in fields:
        cuts = cuts.compute_and_store_features(Fbank(), str(tmp_path / "x"), storage_type=LilcomChunkyWriter)
    (tmp_path / "shar").mkdir()
    with SharWriter(str(tmp_path / "shar"), fields=fields, shard_size=5) as writer:
        for cut in cuts:
            writer.write(cut)
    source = open_source(tmp_path / "shar")
    same(source, CutSet.from_shar(in_dir=tmp_path / "shar"))
    assert [source.find(cut.id) for cut in cuts] == list(range(len(cuts))) and source.find("no") is None
    loader = make_dataloader(tmp_path / "shar", batch_seconds=5, shuffle=True, seed=3)
    assert sorted(name for batch in loader for name in batch.utterance_ids) == sorted(cut.id for cut in cuts)
    again = pickle.loads(pickle.dumps(source))
    np.testing.assert_array_equal(again.read(7)[1], source.read(7)[1])


@pytest.fixture(scope="module")
def shar(audio, tmp_path_factory):
    folder = tmp_path_factory.mktemp("shar")
    cuts = audio[1].compute_and_store_features(Fbank(), str(folder / "x"), storage_type=LilcomChunkyWriter)
    (folder / "shar").mkdir()
    with SharWriter(str(folder / "shar"), fields={"features": "lilcom"}, shard_size=5) as writer:
        for cut in cuts:
            writer.write(cut)
    return folder / "shar"


@pytest.mark.parametrize("damage, reason", [
    (lambda folder: (folder / "features.000001.tar").unlink(), "3 files of cuts and 2 of features"),
    (lambda folder: [path.unlink() for path in folder.glob("cuts*")], "no cuts"),
    (lambda folder: cut_off(folder / "features.000001.tar", 9000), "features.000001.tar: "),
    (lambda folder: shutil.copy(folder / "features.000000.tar", folder / "features.000001.tar"), "(has|ends) .*where"),
    (lambda folder: shutil.copy(folder / "cuts.000002.jsonl.gz", folder / "cuts.000000.jsonl.gz"), "(has|ends) .*where"),
    (lambda folder: rewritten(folder / "cuts.000001.jsonl.gz", lambda lines: lines[:-1]), "behind the last cut"),
    (lambda folder: rewritten(folder / "cuts.000001.jsonl.gz", lambda lines: [*lines, lines[0]]), "ends where"),
    (lambda folder: (folder / "features.000001.tar").rename(folder / "features.000001.tar.gz"), "is packed"),
    (lambda folder: linked(folder / "features.000001.tar"), "not below"),
])  # fmt: skip
def test_a_damaged_shar_folder_is_one_line(shar, tmp_path, damage, reason):
    folder = shutil.copytree(shar, tmp_path / "shar")
    damage(folder)
    with pytest.raises(UserError, match=reason):
        open_source(folder)


def cut_off(path, size):
    path.write_bytes(path.read_bytes()[:size])


def linked(path):
    elsewhere = path.parents[1] / "elsewhere.tar"
    path.rename(elsewhere)
    path.symlink_to(elsewhere)


def rewritten(path, change):
    opened = gzip.open if path.suffix == ".gz" else open
    with opened(path, "rt") as file:
        lines = [json.loads(line) for line in file]
    with opened(path, "wt") as file:
        file.writelines(json.dumps(line) + "\n" for line in change(lines))
    return path


@pytest.mark.parametrize("change, reason", [
    (lambda cut: {**cut, "supervisions": cut["supervisions"] * 2}, "has 2 supervisions; expected one; .*trim_to_superv"),
    (lambda cut: {**cut, "supervisions": []}, "supervisions: .*at least 1"),
    (lambda cut: {**cut, "supervisions": 7}, "supervisions: 7"),
    (lambda cut: {**cut, "supervisions": [{**cut["supervisions"][0], "text": "A\ud800"}]}, "half of a character"),
    (lambda cut: {**cut, "type": "MixedCut", "tracks": []}, 'type: "MixedCut"; expected .MonoCut'),
    (lambda cut: {**cut, "features": {**cut["features"], "num_features": 40}}, "features.num_features: 40; expected 80"),
    (lambda cut: {**cut, "features": {**cut["features"], "frame_shift": 0.02}}, "features.frame_shift: 0.02"),
    (lambda cut: {**cut, "features": {**cut["features"], "storage_type": "kaldiio"}}, 'storage_type: "kaldiio"'),
    (lambda cut: {**cut, "features": {**cut["features"], "storage_type": "lilcom_url"}}, 'storage_type: "lilcom_url"'),
    (lambda cut: {**cut, "features": {**cut["features"], "storage_type": "shar"}}, "storage 'shar'"),
    (lambda cut: {**cut, "start": 3.5}, "it is from 3.5 to .* a part of its features"),
    (lambda cut: {**cut, "features": None, "recording": None}, "neither features nor a recording"),
    (lambda cut: {**cut, "id": None}, "id: null"), (lambda cut: [], "expected"), (lambda cut: {}, "missing"),
    (lambda cut: {**without(cut), "recording": {**cut["recording"], "sources": [
        {"type": "command", "channels": [0], "source": "touch EXECUTED"}]}}, 'sources.0.type: "command"'),
    (lambda cut: {**without(cut), "recording": {**cut["recording"], "transforms": [
        {"name": "ReverbWithImpulseResponse", "kwargs": {}}]}}, "transforms.0: .*ReverbWithImpulseResponse"),
    *((lambda cut, kwargs=kwargs: {**without(cut), "recording": {**cut["recording"], "transforms": [
        {"name": "Speed", "kwargs": kwargs}]}}, "transforms.0.Speed.kwargs") for kwargs in ({}, {"factor": 0}, {"factor": 1, "x": 1})),
    (lambda cut: {**cut, "features": {**cut["features"], "type": "whisper-fbank"}}, 'features.type: "whisper-fbank"'),
])  # fmt: skip
def test_a_cut_that_cannot_be_used_is_one_line_with_its_name(audio, tmp_path, change, reason):
    cuts = audio[1].compute_and_store_features(Fbank(), str(tmp_path / "x"), storage_type=LilcomChunkyWriter)
    cuts.to_file(tmp_path / "cuts.jsonl")
    rewritten(tmp_path / "cuts.jsonl", lambda lines: [lines[0], change(lines[1]), *lines[2:]])
    with pytest.raises(UserError, match=f"cuts.jsonl:2.*{reason}"):
        open_source(tmp_path / "cuts.jsonl")


def without(cut):
    return {key: value for key, value in cut.items() if key != "features"}


@pytest.mark.parametrize("path", ["pipe:touch EXECUTED", "https://localhost/x", "/etc/passwd", "../x.lca"])
@pytest.mark.parametrize("storage_type", ["lilcom_chunky", "lilcom_files", "numpy_files"])
def test_no_storage_opens_pipes_urls_or_files_elsewhere(audio, tmp_path, monkeypatch, path, storage_type):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv(
        STORAGES, json.dumps([storage_type])
    )  # --allow-storage is for those that we do not read ourselves
    (tmp_path / "in").mkdir()
    cuts = audio[1].compute_and_store_features(Fbank(), str(tmp_path / "x"), storage_type=LilcomChunkyWriter)
    cuts.to_file(tmp_path / "in/cuts.jsonl")
    for place in (
        {"storage_path": path},
        {"storage_path": "y", "storage_key": f"../{path}"},
        {"storage_path": "", "storage_key": path},
    ):
        if storage_type == "lilcom_chunky" and "storage_key" in place:
            continue
        rewritten(
            tmp_path / "in/cuts.jsonl",
            lambda lines: [
                {**cut, "features": {**cut["features"], "storage_type": storage_type, **place}} for cut in lines
            ],
        )
        with pytest.raises(UserError):
            open_source(tmp_path / "in/cuts.jsonl").read(0)
        assert not list(tmp_path.rglob("EXECUTED"))


def test_lhotse_opens_a_storage_that_the_user_allowed_wherever_it_is(audio, tmp_path, monkeypatch):
    monkeypatch.setenv(STORAGES, "[]")
    cuts = audio[1].compute_and_store_features(Fbank(), str(tmp_path / "x"), storage_type=LilcomFilesWriter)
    (tmp_path / "in").mkdir()
    path = tmp_path / "in/cuts.jsonl"
    url = [fastcopy(cut, features=fastcopy(cut.features, storage_type="lilcom_url")) for cut in cuts]
    CutSet.from_cuts(url).to_file(path)
    with pytest.raises(UserError, match="cuts.jsonl:1.*lilcom_url.*--allow-storage"):
        open_source(path)
    options = argparse.ArgumentParser()
    add_data_root(options)
    options.parse_args(["--allow-storage", "lilcom_url", "--allow-storage", "kaldiio"])
    source = open_source(path)
    for place, cut in enumerate(cuts):
        assert np.array_equal(source.read(place)[1].numpy(), cut.load_features())
    rewritten(path, lambda lines: [{**cut, "features": {**cut["features"], "storage_key": "no"}} for cut in lines])
    with pytest.raises(UserError, match="cannot be read .lilcom_url: [A-Za-z]+Error"):
        open_source(path).read(0)


@pytest.mark.parametrize("writer", [LilcomHdf5Writer, ChunkedLilcomHdf5Writer, NumpyHdf5Writer])
def test_hdf5_is_read_as_lhotse_reads_it_and_leads_to_no_other_file(audio, tmp_path, writer):
    (tmp_path / "in").mkdir()
    path, elsewhere = tmp_path / "in/cuts.jsonl", tmp_path / "other.h5"
    cuts = audio[1].compute_and_store_features(Fbank(), str(tmp_path / "in/x"), storage_type=writer)
    cuts.to_file(path)
    source = open_source(path)
    for place, cut in enumerate(cuts):
        assert np.array_equal(source.read(place)[1].numpy(), cut.load_features())
    close_cached_file_handles()
    key, stored = cuts[0].features.storage_key, Path(cuts[0].features.storage_path)
    shutil.copy(stored, elsewhere)
    (tmp_path / "raw").write_bytes(bytes(4 * 80 * 1000))

    def damaged(change):
        with h5py.File(stored, "a") as file:
            del file[key]
            change(file)
        with pytest.raises(UserError, match=f"{stored.name}.*(link|another file)"):
            source.read(0)

    raw = dict(dtype="f4", external=[(str(tmp_path / "raw"), 0, h5py.h5f.UNLIMITED)])
    layout = h5py.VirtualLayout(shape=(10, 80), dtype="f4")
    layout[:] = h5py.VirtualSource(str(elsewhere), key, shape=(10, 80))
    damaged(lambda file: file.update({key: h5py.ExternalLink(str(elsewhere), key)}))
    damaged(lambda file: file.update({key: h5py.SoftLink("/x")}))
    damaged(lambda file: file.create_dataset(key, shape=(1000, 80), **raw))
    damaged(lambda file: file.create_virtual_dataset(key, layout))
    damaged(lambda file: None)
    with h5py.File(stored, "a") as file:
        file.create_dataset(key, shape=(8_000_000, 80), dtype="f4", chunks=(100_000, 80))
    with pytest.raises(UserError, match="claims .8000000, 80. numbers, which are not there"):
        source.read(0)
    with h5py.File(stored, "a") as file:
        del file[key]
        file[f"{key}/a"] = 1
    with pytest.raises(UserError, match="no array"):
        source.read(0)


@pytest.fixture
def kept(audio, tmp_path, monkeypatch):
    """A manifest whose index is kept beside it, and the folder of that."""
    monkeypatch.setattr(source_module, "KEPT_BYTES", 0)
    cuts = audio[1].compute_and_store_features(Fbank(), str(tmp_path / "x"), storage_type=LilcomChunkyWriter)
    cuts.to_file(tmp_path / "cuts.jsonl.gz")
    return tmp_path / "cuts.jsonl.gz", tmp_path / ".cuts.jsonl.gz.index", cuts


def opened(path):
    source_module._open_source.cache_clear()
    return open_source(path)


def test_the_index_is_made_once_and_says_the_same_as_memory(kept, monkeypatch):
    path, folder, cuts = kept
    first = opened(path)
    columns = first.column("x", lambda: np.arange(2 * len(first)).reshape(-1, 2))
    monkeypatch.setattr(source_module, "_read", None)  # nothing is read again
    second = opened(path)
    same(second, cuts)
    assert (second.digest, second.content) == (first.digest, first.content)
    np.testing.assert_array_equal(second.column("x", lambda: 1 / 0), columns)
    monkeypatch.undo()
    memory = source_module._in_memory(path)
    same(memory, cuts)
    assert (memory.digest, memory.content) == (first.digest, first.content)


@pytest.mark.parametrize("damage", [
    lambda folder: shutil.rmtree(folder), lambda folder: (folder / "facts.json").write_text("{}"),
    lambda folder: (folder / "facts.json").write_text("[" * 5000), lambda folder: (folder / "durations").unlink(),
    lambda folder: flip(folder / "durations"), lambda folder: flip(folder / "num_frames"), lambda folder: flip(folder / "ids"),
    lambda folder: flip(folder / "id_ends"), lambda folder: flip(folder / "block_ends"), lambda folder: flip(folder / "facts.json"),
    lambda folder: cut_off(folder / "blocks", 100), lambda folder: cut_off(folder / "ids", 10),
    lambda folder: flip(folder / "column-x"), lambda folder: cut_off(folder / "column-x", 40),
    lambda folder: replace(folder / "facts.json", '"digest": "', '"digest": "0'),
    lambda folder: replace(folder / "facts.json", '"teacher_cuts": []', '"teacher_cuts": [0]'),
])  # fmt: skip
def test_a_damaged_index_is_made_again(kept, damage):
    path, folder, cuts = kept
    first = opened(path)
    first.column("x", lambda: np.ones(len(cuts)))
    damage(folder)
    source = opened(path)
    same(source, cuts)
    assert (source.digest, source.content, source.teacher_cuts) == (first.digest, first.content, [])
    np.testing.assert_array_equal(source.column("x", lambda: np.ones(len(cuts)))[:, 0], 1)


def replace(path, old, new):
    assert old in path.read_text()
    path.write_text(path.read_text().replace(old, new))


def flip(path, at=-1):
    raw = bytearray(path.read_bytes())
    raw[at] ^= 1
    path.write_bytes(raw)


def test_a_damaged_block_is_one_line(kept):
    path, folder, _ = kept
    opened(path)
    flip(folder / "blocks", 30)
    with pytest.raises(UserError, match=r"\.index: damaged.*remove it: it is made again"):
        opened(path).read(0)


def forged(folder, change):
    """An index whose cuts are others, with all its digests made right."""
    lines = zlib.decompress((folder / "blocks").read_bytes()).split(b"\n")
    block = zlib.compress(b"\n".join(change(line) for line in lines))
    (folder / "blocks").write_bytes(block)
    ends = np.array([len(block)], "<i8").tobytes()
    (folder / "block_ends").write_bytes(hashlib.sha256(ends).digest() + ends)
    facts = json.loads((folder / "facts.json").read_text())
    facts.update(bytes=len(block))
    facts.pop("sha256")
    (folder / "facts.json").write_text(json.dumps({**facts, "sha256": json_digest(facts)}))


def heard_in_a_room(line):
    """Lhotse runs what the room's recording says."""
    source = {"type": "command", "channels": [0], "source": "touch EXECUTED; cat one.wav"}
    room = {"id": "r", "sources": [source], "sampling_rate": 16000, "num_samples": 16000, "duration": 1.0}
    cut = json.loads(line)
    cut["recording"]["transforms"] = [{"name": "ReverbWithImpulseResponse", "kwargs": {"rir": room}}]
    return json.dumps(cut).encode()


@pytest.mark.parametrize("change", [heard_in_a_room, lambda line: b"[" * 5000, lambda line: line + b" " * (17 << 20)])
def test_an_index_that_came_with_its_file_runs_nothing(audio, tmp_path, monkeypatch, change):
    monkeypatch.setattr(source_module, "KEPT_BYTES", 0)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv(DATA_ROOTS, json.dumps([str(audio[0])]))
    (tmp_path / "x").mkdir()
    CutSet.from_cuts(list(audio[1])[:6]).to_file(tmp_path / "x/cuts.jsonl")
    assert opened(tmp_path / "x/cuts.jsonl").read(0)[1].shape[1] == 80
    forged(tmp_path / "x/.cuts.jsonl.index", change)
    source = opened(tmp_path / "x/cuts.jsonl")
    for look in (lambda: source.read(0), lambda: source[0], lambda: list(source.infos())):
        with pytest.raises(UserError, match=r"\.index: damaged: .*remove it: it is made again"):
            look()
    assert not (tmp_path / "EXECUTED").exists()


def test_the_index_of_another_file_of_this_name_is_made_again(kept):
    path, _, cuts = kept
    opened(path)
    fewer = CutSet.from_cuts(list(cuts)[:3])
    fewer.to_file(path)
    same(opened(path), fewer)


def test_a_folder_that_cannot_be_written_holds_the_index_in_memory_and_says_so(kept, monkeypatch, capsys):
    path, folder, cuts = kept

    def refuse(*_, **__):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(source_module.atomic, "new_dir", refuse)
    same(opened(path), cuts)
    assert "cannot be written, so its index is held in memory" in capsys.readouterr().err and not folder.exists()


def test_two_cuts_of_one_name_are_named_with_file_and_line(shar, tmp_path):
    folder = shutil.copytree(shar, tmp_path / "shar")
    for kind in ("cuts.{}.jsonl.gz", "features.{}.tar"):
        shutil.copy(folder / kind.format("000000"), folder / kind.format("000002"))
    with pytest.raises(UserError, match=r"cuts.000002.jsonl.gz:[1-5]: cut '.*' stands there twice"):
        open_source(folder)


def test_the_index_says_which_cuts_carry_a_teacher_and_where_another_begins(kept):
    path, _, cuts = kept
    arrays = [{"storage_type": "rnnt_kd_frames", "storage_path": "x", "storage_key": f"0,{frames},7,{'0' * 32}"}
              for frames in range(3, 3 + len(cuts))]  # fmt: skip
    facts = [{"teacher": "abb"[place % 2 if place > 3 else 0]} for place in range(len(cuts))]
    carrying = [{"kd": {**array, "shape": [1, 7]}, "kd_facts": fact} for array, fact in zip(arrays, facts)]
    carrying[0] = carrying[4] = {}
    rewritten(path, lambda lines: [{**cut, "custom": custom} for cut, custom in zip(lines, carrying)])
    for source in (opened(path), opened(path), source_module._in_memory(path)):
        wanted = [-1 if place in (0, 4) else 3 + place for place in range(len(cuts))]
        assert source.teacher_frames.tolist() == wanted and source.teacher_cuts == [1, 5]
    rewritten(path, lambda lines: [{**cut, "custom": {}} for cut in lines])
    assert opened(path).teacher_cuts == [] and set(opened(path).teacher_frames.tolist()) == {-1}
