"""Cuts that carry their teacher, and caches that do not have all cuts."""

import gzip
import json
import resource
import shutil

import numpy as np
import pytest
import torch
from command_cases import LONG, refused, start, told
from lhotse import CutSet
from lhotse.shar import SharWriter
from training_cases import metrics

from rnnt_kd.bin import attach_teacher as command
from rnnt_kd.config import KdConfig, TrainingConfig
from rnnt_kd.data.dataset import collate
from rnnt_kd.data.source import open_source
from rnnt_kd.data.stored_frames import carried
from rnnt_kd.errors import UserError
from rnnt_kd.experiments.plan import Places, Plan
from rnnt_kd.lattice import get_backend
from rnnt_kd.systems import store
from rnnt_kd.teachers.cache import TeacherCache, collate_teacher
from rnnt_kd.teachers.carried import attach, attach_to_file
from rnnt_kd.teachers.shards import Entry, Shard, shard_path, write_shard
from rnnt_kd.text.labels import padded_labels
from rnnt_kd.text.tokenizer import Tokenizer
from rnnt_kd.training.objective import Objective


@pytest.fixture(scope="module")
def cuts_with_kd(tone_corpus, kd_cache):
    out = tone_corpus.folder / "cuts/train_kd.jsonl.gz"
    command.main(["--cuts", str(tone_corpus.train_cuts), "--kd-cache", str(kd_cache), "--out", str(out)])
    return out


def train(tone_corpus, folder, workers=0, missing="error", **options):
    overrides = ["small_student.training.epochs=1", f"small_student.training.num_workers={workers}"]
    config = tone_corpus.config("small_student", with_kd=True, overrides=overrides, missing=missing)
    return " ".join(tone_corpus.train(config, folder, **options))


def result(folder):
    return metrics(folder), (folder / "model.safetensors").read_bytes()


def expected_array(kd_cache, cut_id):
    (place,) = TeacherCache.open(kd_cache).places([cut_id])
    return place.read()


def test_training_from_cuts_that_carry_the_teacher_is_training_from_the_cache(
    tone_corpus, kd_cache, cuts_with_kd, tmp_path
):
    train(tone_corpus, tmp_path / "cache", kd_cache=kd_cache)
    for workers in (0, 1):
        train(tone_corpus, tmp_path / str(workers), workers, train_cuts=cuts_with_kd)
        assert result(tmp_path / str(workers)) == result(tmp_path / "cache")


def test_two_trainings_at_once_with_few_files_open_on_one_cache_are_one(
    tone_corpus, teacher_dir, kd_cache, root, tmp_path
):
    teacher = shutil.copytree(teacher_dir, tmp_path / "teacher")
    entry = "{role: small_student, kd: {}, training: {epochs: 1, num_workers: 1}}"
    words = {name: tone_corpus.arguments(tmp_path / name, entry, teacher) for name in ("one", "other")}
    places = Places(tone_corpus.preset, tmp_path / "one", "dev", {})
    cache = Plan(tmp_path / "one/trial.yaml", places).cache(("x", 1)).folder
    tone_corpus.cache(teacher, cache, shard_utterances=1)
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (256, limits[1]))
    try:
        processes = [start(root, "train", given) for given in words.values()]
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    outputs = [process.communicate(timeout=LONG)[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], outputs
    train(tone_corpus, tmp_path / "alone", kd_cache=cache)
    for name in words:
        assert result(tmp_path / name / "trial/x/seed1") == result(tmp_path / "alone")


@pytest.fixture(scope="module")
def shar_with_kd(tone_corpus, cuts_with_kd):
    folder = tone_corpus.folder / "shar"
    folder.mkdir()
    with SharWriter(folder, {"features": "numpy", "kd": "numpy"}, shard_size=7, warn_unused_fields=False) as writer:
        for cut in CutSet.from_file(cuts_with_kd):
            writer.write(cut)
    return folder


def test_training_from_a_shar_folder_that_carries_the_teacher_is_training_from_the_cache(
    tone_corpus, kd_cache, shar_with_kd, tmp_path
):
    source = open_source(shar_with_kd)
    for place, frames in enumerate(source.teacher_frames):
        array = carried(source[place], shar_with_kd).read()
        assert np.array_equal(array, expected_array(kd_cache, source[place].id)) and len(array) == frames
    train(tone_corpus, tmp_path / "cache", kd_cache=kd_cache)
    for workers in (0, 1):
        train(tone_corpus, tmp_path / str(workers), workers, train_cuts=shar_with_kd)
        assert result(tmp_path / str(workers)) == result(tmp_path / "cache")


def in_archive(path, change):
    """Change the bytes of an archive."""
    content = path.read_bytes()
    assert change(content) != content
    path.write_bytes(change(content))


@pytest.mark.parametrize("damage, words", [
    (lambda folder: (folder / "kd.000001.tar").unlink(), r"4 files of cuts and 3 of the teacher \(kd\)"),
    (lambda folder: [path.unlink() for path in folder.glob("kd.*")], "custom.kd.storage_path"),
    (lambda folder: (folder / "kd.000001.tar").rename(folder / "kd.000001.tar.gz"), "is packed"),
    (lambda folder: shutil.copy(folder / "kd.000000.tar", folder / "kd.000001.tar"), "has .*where"),
    (lambda folder: linked(folder / "kd.000000.tar"), "not below"),
    (lambda folder: in_archive(folder / "kd.000000.tar", lambda raw: raw[: len(raw) // 3]), "kd.000000.tar: "),
    (lambda folder: in_archive(folder / "kd.000000.tar", lambda raw: raw.replace(b"'<i2'", b"'<f2'")), "float16 of the"),
    (lambda folder: in_archive(folder / "kd.000000.tar", lambda raw: raw.replace(b"NUMPY", b"NAMPY")), "damaged at byte"),
    (lambda folder: in_archive(folder / "kd.000000.tar", lambda raw: raw.replace(b", 7]", b", 9]")), "int16 of .*, 9"),
    (lambda folder: in_archive(folder / "kd.000000.tar", lambda raw: raw[:650] + b"\7" + raw[651:]), "not what was writ"),
    (lambda folder: in_archive(folder / "kd.000000.tar", lambda raw: raw.replace(b", 7]", b"   ]")), "custom.kd.shape"),
])  # fmt: skip
def test_a_shar_folder_whose_teacher_is_damaged_is_one_line(shar_with_kd, tmp_path, damage, words):
    folder = shutil.copytree(shar_with_kd, tmp_path / "shar")
    damage(folder)
    with pytest.raises(UserError, match=words):
        source = open_source(folder)
        [carried(cut, folder).read() for cut in source]


def linked(path):
    elsewhere = path.parents[1] / "elsewhere.tar"
    path.rename(elsewhere)
    path.symlink_to(elsewhere)


def test_lhotse_reads_it_mixes_it_splits_it_and_writes_it_to_shar(kd_cache, cuts_with_kd, tmp_path):
    cuts = CutSet.from_file(cuts_with_kd)
    for cut in cuts:
        assert np.array_equal(cut.load_kd(), expected_array(kd_cache, cut.id)) and cut.load_kd().dtype == np.int16
    mixed = CutSet.mux(cuts.subset(first=9), cuts.subset(last=7), seed=0)
    assert len(list(mixed)) == 16
    for cut in mixed.split(3)[1]:
        assert np.array_equal(cut.load_kd(), expected_array(kd_cache, cut.id))
    (tmp_path / "shar").mkdir()
    with SharWriter(tmp_path / "shar", {"kd": "numpy"}, shard_size=5, warn_unused_fields=False) as writer:
        for cut in mixed:
            writer.write(cut)
    again = list(CutSet.from_shar(in_dir=tmp_path / "shar"))
    assert [cut.id for cut in again] == [cut.id for cut in mixed]
    for cut in again:
        assert np.array_equal(carried(cut, tmp_path / "shar/cuts"), expected_array(kd_cache, cut.id))
        assert cut.kd_facts == next(iter(cuts)).kd_facts


def test_python_attaches_it_to_any_cuts(tone_corpus, kd_cache):
    cuts = list(attach(open_source(tone_corpus.train_cuts)[:5], TeacherCache.open(kd_cache)))
    for cut, plain in zip(cuts, open_source(tone_corpus.train_cuts)):
        assert np.array_equal(cut.load_kd(), expected_array(kd_cache, cut.id))
        assert cut.id == plain.id and not plain.has_custom("kd")


@pytest.mark.parametrize("content, words", [
    ("", " has no cuts"),
    ("\n", "1: cannot be read as a cut "),
    ("[1]\n", "1: is no cut (TypeError"),
    ('{"id": "a", "text": "\\ud800"}\n', "1: is no cut (UnicodeEncodeError"),
])  # fmt: skip
def test_nothing_is_attached_to_what_are_no_cuts(kd_cache, tmp_path, content, words):
    cuts, out = tmp_path / "cuts.jsonl", tmp_path / "out.jsonl"
    cuts.write_text(content)
    assert f"cuts.jsonl:{words}" in told(lambda: attach_to_file(cuts, TeacherCache.open(kd_cache), out, "skip"))
    assert not out.exists()


def test_a_cut_that_the_cache_does_not_have_is_named_as_such(kd_cache, tmp_path):
    (tmp_path / "cuts.jsonl").write_text('{"id": "nobody"}\n')
    with pytest.raises(UserError, match=f"^{kd_cache}: has nothing of cut nobody"):
        attach_to_file(tmp_path / "cuts.jsonl", TeacherCache.open(kd_cache), tmp_path / "out.jsonl")


def rewritten(path, out, change):
    """A cuts file whose first cut is changed."""
    lines = [json.loads(line) for line in gzip.open(path)]
    change(lines[0]["custom"])
    out.write_bytes(gzip.compress("".join(json.dumps(line) + "\n" for line in lines).encode()))
    return out


@pytest.mark.parametrize("change, words", [
    (lambda custom: custom["kd"].update(storage_path="/etc/passwd"), "not below"),
    (lambda custom: custom["kd"].update(storage_path="touch x |"), "a shell pipe"),
    (lambda custom: custom["kd"].update(storage_type="memory_raw"), "custom.kd"),
    (lambda custom: custom["kd"].update(storage_key="0,1,7,zz"), "BEGIN,FRAMES,WIDTH,DIGEST"),
    (lambda custom: custom["kd"].update(storage_key="0,9999999,7," + "0" * 32), "encoder frames for"),
    (lambda custom: custom["kd_facts"].update(teacher="f" * 64), "teacher weights"),
    (lambda custom: custom["kd_facts"].update(prune_range=4), "prune range"),
    (lambda custom: custom.pop("kd"), "1 of 24 utterances are missing"),
])  # fmt: skip
def test_what_cuts_claim_of_their_teacher_is_held_against_the_training(
    tone_corpus, cuts_with_kd, tmp_path, change, words
):
    cuts = rewritten(cuts_with_kd, tone_corpus.folder / "cuts/changed.jsonl.gz", change)
    with pytest.raises(UserError, match=words):
        train(tone_corpus, tmp_path / "x", train_cuts=cuts)
    assert not (tmp_path / "x/checkpoints").exists()


def test_cuts_that_carry_another_teachers_posteriors_train_anew(tone_corpus, kd_cache, cuts_with_kd, tmp_path):
    """All else in the cuts is the same."""
    cuts = shutil.copy(cuts_with_kd, tone_corpus.folder / "cuts/other.jsonl.gz")
    train(tone_corpus, tmp_path / "x", missing="skip", train_cuts=cuts)
    assert "finished already" in train(tone_corpus, tmp_path / "x", missing="skip", train_cuts=cuts)
    rewritten(cuts_with_kd, cuts, lambda custom: custom.pop("kd"))
    said = train(tone_corpus, tmp_path / "x", missing="skip", train_cuts=cuts)
    assert ": teacher cache changed; moved the run" in said and "1 of 24 utterances (4.2 %) have no teacher" in said


@pytest.mark.parametrize("stored", ["in cuts", "in a cache", "in a cache of before"])
def test_another_transcript_of_as_many_labels_is_named(tone_corpus, kd_cache, cuts_with_kd, tmp_path, stored):
    """A cache of before has no digests of labels."""
    lines = [json.loads(line) for line in gzip.open(cuts_with_kd if stored == "in cuts" else tone_corpus.train_cuts)]
    (said,) = lines[3]["supervisions"]
    words = said["text"].split()
    said["text"] = " ".join(words[::-1])
    assert words != words[::-1]
    cuts = tone_corpus.folder / "cuts" / "other_text.jsonl.gz"
    cuts.write_bytes(gzip.compress("".join(json.dumps(line) + "\n" for line in lines).encode()))
    options = {"train_cuts": cuts, "missing": "skip"}
    if stored != "in cuts":
        options["kd_cache"] = shutil.copytree(kd_cache, tmp_path / "cache")
    if stored == "in a cache of before":
        for path in sorted(options["kd_cache"].glob("*.safetensors")):
            shard = Shard(path)
            entries = [read_entry(name, place) for name, place in shard.places]
            write_shard(options["kd_cache"], shard.facts, shard.index, shard.count, entries)
        assert "24 of 24 utterances" in train(tone_corpus, tmp_path / "x", **options)
    else:
        words = f"posteriors of {lines[3]['id']}: made of another transcript"
        assert words in told(train, tone_corpus, tmp_path / "x", **options)


def read_entry(name, place):
    frames = torch.from_numpy(place.read().copy())
    return Entry(name, frames[:, 0], frames[:, 1:].view(torch.float16).unflatten(1, (-1, 2)))


def test_cuts_that_carry_none_need_a_cache(tone_corpus, tmp_path):
    assert "carry no teacher" in told(train, tone_corpus, tmp_path / "x")


def test_utterances_that_a_cache_lacks_are_an_error_or_counted(tone_corpus, kd_cache, tmp_path, capsys):
    part = tmp_path / "part"
    part.mkdir()
    for number in (0, 2, 3):
        (part / shard_path(part, number).name).write_bytes(shard_path(kd_cache, number).read_bytes())
    assert "1 of 4 shards are missing" in told(train, tone_corpus, tmp_path / "x", kd_cache=part)
    said = train(tone_corpus, tmp_path / "x", missing="skip", kd_cache=part)
    assert "7 of 24 utterances (29.2 %) have no teacher" in said
    whole = train(tone_corpus, tmp_path / "whole", missing="skip", kd_cache=kd_cache)
    assert "have no teacher" not in whole and result(tmp_path / "whole") != result(tmp_path / "x")
    given = ["--cuts", str(tone_corpus.train_cuts), "--kd-cache", str(part), "--out", str(part / "cuts.jsonl")]
    assert "1 of 4 shards are missing" in refused(capsys, command.main, *given)
    command.main([*given, "--missing", "skip"])
    assert "24 cuts, 7 of them without a teacher" in capsys.readouterr().err


def test_cuts_that_a_newer_cache_lacks_do_not_keep_an_older_teacher(tone_corpus, kd_cache, cuts_with_kd, tmp_path):
    part = shutil.copytree(kd_cache, tmp_path / "part")
    next(iter(sorted(part.glob("*.safetensors")))).unlink()
    cache = TeacherCache.open(part, partial=True)
    _, lacking = attach_to_file(cuts_with_kd, cache, tmp_path / "new.jsonl.gz", "skip")
    for cuts in (CutSet.from_file(tmp_path / "new.jsonl.gz"), attach(CutSet.from_file(cuts_with_kd), cache, "skip")):
        bare = [cut for cut in cuts if not {"kd", "kd_facts", "kd_digest"} & set(cut.custom or {})]
        assert len(bare) == lacking > 0


@pytest.mark.parametrize("shift", [0, 2])
def test_without_a_teacher_an_utterance_has_its_own_ranges_and_no_term(tone_corpus, teacher_dir, kd_cache, shift):
    model, training = store.load_system(teacher_dir)[0], TrainingConfig(prune_range=3)
    torch.manual_seed(0)
    with torch.no_grad():
        model.joiner.output_linear.weight += 0.3 * torch.randn_like(model.joiner.output_linear.weight)
    objective = Objective(model, training, get_backend("torch"), KdConfig(shift=shift)).eval()
    cuts, encode = open_source(tone_corpus.train_cuts), Tokenizer.load(tone_corpus.bpe_dir).encode

    def terms(places, taught):
        batch = collate(cuts, places)
        labels, label_lens = padded_labels([encode(text) for text in batch.texts], 0)
        arrays = [expected_array(kd_cache, cuts[place].id) if place in taught else None for place in places]
        frames = model.encoder.output_lengths(batch.feature_lens).tolist()
        cached = collate_teacher(arrays, frames, labels.size(1), 3, False, batch.utterance_ids)
        with torch.no_grad():
            return objective(
                batch.features, batch.feature_lens, labels, label_lens, cached=cached, with_kd=bool(taught)
            )

    both, first, second = terms([0, 1], [0]), terms([0], [0]), terms([1], [])
    torch.testing.assert_close(both["kd"], first["kd"], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(both["pruned"], first["pruned"] + second["pruned"], rtol=1e-4, atol=1e-4)
    assert float(first["kd"]) > 0.1
