"""Training from the teacher's cache: no teacher runs, and what it learns from is what the teacher said."""

import copy
import dataclasses
import gzip
import json
import math
import shutil

import pytest
import reference
import torch
from command_cases import edit_record, told
from safetensors.torch import load_file
from training_cases import metrics, system_json, whole_lattice

from rnnt_kd.bin import train as command
from rnnt_kd.config_io import load_recipe
from rnnt_kd.data.dataset import load_cuts_info, read_batches
from rnnt_kd.data.far import surroundings
from rnnt_kd.data.features import compute_features
from rnnt_kd.data.kaldi_dir import read_data_dir
from rnnt_kd.errors import UserError
from rnnt_kd.lattice import get_backend
from rnnt_kd.lattice.prune_ranges import get_rnnt_prune_ranges
from rnnt_kd.lattice.smoothed_loss import rnnt_loss_smoothed
from rnnt_kd.losses.kept_nodes import kept_nodes
from rnnt_kd.losses.packed_posteriors import unpack
from rnnt_kd.models.transducer import Transducer
from rnnt_kd.systems import store
from rnnt_kd.teachers.cache import TeacherCache
from rnnt_kd.teachers.shards import shard_path
from rnnt_kd.teachers.views import CachedTeacher
from rnnt_kd.text.labels import padded_labels
from rnnt_kd.text.tokenizer import Tokenizer
from rnnt_kd.text.train_bpe import train_bpe
from rnnt_kd.training.loop import Training
from rnnt_kd.training.objective import Objective

ONE_EPOCH = ["small_student.training.epochs=1", "sparse_student.training.epochs=1"]


@pytest.fixture(scope="module")
def caches(tone_corpus, teacher_dir, kd_cache, tmp_path_factory):
    """Of temperature 1 and 2."""
    hot = tmp_path_factory.mktemp("cache") / "kd_cache_temperature2"
    return {1.0: kd_cache, 2.0: tone_corpus.cache(teacher_dir, hot, ["kd.temperature=2.0"])}


@pytest.fixture(scope="module")
def taught(tone_corpus, kd_cache, tmp_path_factory):
    """A student that learned from the cache for an epoch."""
    folder = tmp_path_factory.mktemp("taught") / "x"
    tone_corpus.train(student_config(tone_corpus), folder, kd_cache=kd_cache)
    return folder


def student_config(tone_corpus, name="small_kd", overrides=ONE_EPOCH, **kd):
    return tone_corpus.config("small_student", name, with_kd=True, overrides=overrides, **kd)


def batch_of(tone_corpus, places, cuts=None):
    """Features, lengths, labels, label lengths of some cuts, and their ids."""
    (batch,) = read_batches(cuts or tone_corpus.train_cuts, [places])
    labels, label_lens = padded_labels([*map(Tokenizer.load(tone_corpus.bpe_dir).encode, batch.texts)], 0)
    return (batch.features, batch.feature_lens, labels, label_lens), batch.utterance_ids


def cached_batch(folder, inputs, ids, subsampled):
    cache = TeacherCache.open(folder)
    return cache.lookup(ids, subsampled.tolist(), inputs[2].size(1))


def encoder_frames(lens):
    return torch.div(torch.div(lens + 1, 2, rounding_mode="floor") + 1, 2, rounding_mode="floor")


def full_posteriors(model, inputs, ranges, temperature=1.0):
    """Posteriors of blank, label, rest on the kept nodes, float64, from whole logits."""
    features, lens, labels, label_lens = inputs
    model = copy.deepcopy(model).double()
    posteriors = (whole_lattice(model, features.double(), lens, labels)[0] / temperature).softmax(-1)
    result, frames = torch.zeros(*ranges.shape, 3, dtype=torch.float64), encoder_frames(lens)
    for b, t, k in torch.cartesian_prod(*map(torch.arange, ranges.shape)).tolist():
        s = int(ranges[b, t, k])
        if t < frames[b] and s <= label_lens[b]:
            blank = posteriors[b, t, s, 0]
            label = posteriors[b, t, s, labels[b, s]] if s < label_lens[b] else torch.zeros(())
            result[b, t, k] = torch.stack((blank, label, 1 - blank - label))
    return result


@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_the_cache_holds_the_teachers_posteriors_on_its_own_ranges(tone_corpus, teacher_dir, caches, temperature):
    teacher, config = store.load_system(teacher_dir)
    inputs, ids = batch_of(tone_corpus, [3, 11, 17, 20])  # of several shards
    features, lens, labels, label_lens = inputs
    cached = cached_batch(caches[temperature], inputs, ids, encoder_frames(lens))
    for packed, at in ((cached.packed, 1.0), (cached.tempered, temperature)):
        if at == 1.0 and packed is None:
            continue
        expected = full_posteriors(teacher, inputs, cached.ranges(), at)
        found = torch.stack([x.exp() for x in unpack(packed)], dim=-1).double()
        is_node = expected.sum(-1) > 0
        torch.testing.assert_close(found[is_node], expected[is_node], rtol=0.02, atol=2e-4)
        assert not packed[~is_node].any()
    assert (cached.tempered is None) == (temperature == 1.0)

    backend = get_backend("torch")
    boundary = torch.stack([0 * lens, 0 * lens, label_lens, encoder_frames(lens)], dim=1)
    am = teacher.simple_am_proj(teacher.encode(features, lens)[0])
    lm = teacher.simple_lm_proj(teacher.predict(labels))
    scales = (config.training.lm_only_scale, config.training.am_only_scale)
    _, grads = rnnt_loss_smoothed(lm, am, labels, 0, *scales, boundary, return_grad=True, backend=backend)
    ranges = get_rnnt_prune_ranges(*grads, boundary, 3)
    mask = kept_nodes(labels, ranges, 0, boundary, "regular").node_mask
    assert torch.equal(cached.ranges()[mask], ranges[mask])


def test_the_occupancy_is_recovered_from_what_is_stored(tone_corpus, teacher_dir, kd_cache):
    teacher, _ = store.load_system(teacher_dir)
    inputs, ids = batch_of(tone_corpus, [0, 9, 23])
    _, lens, labels, label_lens = inputs
    cached = cached_batch(kd_cache, inputs, ids, encoder_frames(lens))
    boundary = torch.stack([0 * lens, 0 * lens, label_lens, encoder_frames(lens)], dim=1)
    exact = full_posteriors(teacher, inputs, cached.ranges()).clamp(min=1e-300).log()
    rounded = unpack(cached.packed)
    recursion = get_backend("torch").pruned_recursion
    arguments = (cached.ranges(), boundary)
    _, wanted = recursion(exact[..., 0].clamp(min=-1e30), exact[..., 1].clamp(min=-1e30), *arguments, return_grad=True)
    _, found = recursion(rounded.log_blank, rounded.log_label, *arguments, return_grad=True)
    for first, second in zip(found, wanted):
        torch.testing.assert_close(first.double(), second.double(), rtol=0, atol=5e-3)
    total = (found[0] + found[1]).sum(dim=(1, 2))
    torch.testing.assert_close(total, (label_lens + encoder_frames(lens)).float(), rtol=1e-4, atol=0)


@pytest.mark.parametrize("temperature", [1.0, 2.0])
@pytest.mark.parametrize("weighting", ["occupancy", "uniform"])
def test_online_and_cached_agree_to_float16_rounding(
    tone_corpus, teacher_dir, caches, monkeypatch, temperature, weighting
):
    """On the same ranges.  The student is another model, and hears masked features."""
    teacher, config = store.load_system(teacher_dir)
    torch.manual_seed(3)
    student = store.build_model(config).eval()
    inputs, ids = batch_of(tone_corpus, [1, 2, 8, 15, 22])
    clean, lens = inputs[0], inputs[1]
    masked = clean.clone()
    masked[:, 4:9] = -8.0
    cached = cached_batch(caches[temperature], inputs, ids, encoder_frames(lens))
    backend, kd = get_backend("torch"), load_recipe(tone_corpus.preset, [f"kd.temperature={temperature}"]).kd
    kd.weighting = weighting

    def terms_and_gradients(ranges, **options):
        objective = Objective(
            student, config.training, backend, dataclasses.replace(kd, ranges=ranges),
            teacher if ranges == "student" else None,
        )  # fmt: skip
        terms = objective(masked, *inputs[1:], **options)
        student.zero_grad()
        terms["kd"].backward()
        gradients = {name: p.grad.clone() for name, p in student.named_parameters() if p.grad is not None}
        return {name: value.item() for name, value in terms.items()}, gradients

    from_cache, cached_gradients = terms_and_gradients("teacher", cached=cached)
    with monkeypatch.context() as patch:
        patch.setattr("rnnt_kd.teachers.prune.get_rnnt_prune_ranges", lambda *arguments: cached.ranges())
        online, online_gradients = terms_and_gradients("student", clean_features=clean)
    assert from_cache["kd"] > 0.1
    for name in ("simple", "pruned", "ctc", "frames"):
        assert from_cache[name] == pytest.approx(online[name], rel=1e-6), name
    rounding = 2.0**-11  # of float16: half a unit in the last place
    assert from_cache["kd"] == pytest.approx(online["kd"], rel=4 * rounding)
    assert set(cached_gradients) == set(online_gradients)
    largest = max(gradient.abs().max() for gradient in online_gradients.values())
    for name, gradient in online_gradients.items():
        assert (cached_gradients[name] - gradient).abs().max() <= 4 * rounding * largest, name


def test_no_teacher_runs_nor_is_loaded(tone_corpus, teacher_dir, kd_cache, taught, tmp_path, monkeypatch):
    def load(*arguments):
        raise AssertionError("the teacher's weights were read")

    monkeypatch.setattr(store, "load_system", load)
    models, real = set(), Transducer.encode

    def encode(self, *arguments):
        models.add(id(self))
        return real(self, *arguments)

    monkeypatch.setattr(Transducer, "encode", encode)
    tone_corpus.train(student_config(tone_corpus), tmp_path / "x", kd_cache=kd_cache, teacher_dir=teacher_dir)
    assert len(models) == 1
    system = system_json(tmp_path / "x")
    assert system["kd"] is True and system["kd_ranges"] == "teacher"
    assert system["teacher"] == str(teacher_dir) and system_json(taught)["teacher"] is None
    assert all(line["kd_loss"] > 0 for line in metrics(tmp_path / "x", "train"))


def test_a_sparse_student_takes_its_weights_from_the_teacher_and_the_rest_from_the_cache(
    tone_corpus, teacher_dir, kd_cache, tmp_path
):
    config = tone_corpus.config("sparse_student", "s", sparsity=0.5, with_kd=True, overrides=ONE_EPOCH)
    with pytest.raises(UserError, match="--teacher-dir: missing"):
        tone_corpus.train(config, tmp_path / "s", kd_cache=kd_cache)
    tone_corpus.train(config, tmp_path / "s", kd_cache=kd_cache, teacher_dir=teacher_dir)
    system = system_json(tmp_path / "s")
    assert system["sparsity"] == pytest.approx(0.5, abs=0.01) and system["teacher"] == str(teacher_dir)


def test_the_mean_of_two_teachers_is_learned_and_no_other_cache_is_taken_for_it(
    tone_corpus, teacher_dir, kd_cache, tmp_path
):
    other = tmp_path / "other"
    tone_corpus.train(dataclasses.replace(tone_corpus.config("teacher"), seed=7), other)
    both = tone_corpus.cache([teacher_dir, other], tmp_path / "both")
    known = TeacherCache.open(kd_cache), TeacherCache.open(both)
    assert known[0].digest != known[1].digest and known[0].facts.teacher != known[1].facts.teacher
    config = tone_corpus.config("sparse_student", sparsity=0.5, with_kd=True)
    tone_corpus.train(config, tmp_path / "x", kd_cache=both, teacher_dir=teacher_dir, more_teachers=[other])
    assert system_json(tmp_path / "x")["teacher"] == str(teacher_dir)
    for folder, more in ((kd_cache, [other]), (both, []), (both, [other, other])):
        with pytest.raises(UserError, match="the teacher cache was made with teacher weights"):
            tone_corpus.train(config, tmp_path / "y", kd_cache=folder, teacher_dir=teacher_dir, more_teachers=more)
    with pytest.raises(UserError, match="the teacher cache was made with teacher weights"):
        tone_corpus.train(config, tmp_path / "y", kd_cache=both, teacher_dir=other, more_teachers=[teacher_dir])
    online = tone_corpus.config("sparse_student", sparsity=0.5, with_kd=True, ranges="student")
    with pytest.raises(UserError, match="other: a further teacher, and kd.ranges student"):
        tone_corpus.train(online, tmp_path / "y", teacher_dir=teacher_dir, more_teachers=[other])


def test_speed_perturbed_copies_have_their_own_entries(tone_corpus, teacher_dir, tmp_path):
    cuts = compute_features(tone_corpus.folder / "train", tmp_path / "cuts", "train", [0.9, 1.0, 1.1]).cuts_path
    folder = tone_corpus.cache(teacher_dir, tmp_path / "kd_cache", cuts=cuts)
    assert len(TeacherCache.open(folder)) == 3 * 24
    ids = {info.id for info in load_cuts_info(cuts)}
    assert "train-000" in ids and "train-000_sp0.9" in ids
    tone_corpus.train(student_config(tone_corpus), tmp_path / "x", kd_cache=folder, train_cuts=cuts)
    assert (tmp_path / "x" / "system.json").exists()


@pytest.fixture(scope="module")
def far_cuts(tone_corpus, tmp_path_factory):
    """The training cuts, each with a copy heard from afar."""
    train = tone_corpus.folder / "train"
    place = surroundings(seed=1, snr_db=(2.0, 15.0), talkers=read_data_dir(train))
    made = compute_features(train, tmp_path_factory.mktemp("far"), "train", surroundings=place, far_copies=1)
    return made.cuts_path


@pytest.mark.parametrize("hears", ["student", "original"])
def test_the_teacher_of_a_far_copy_hears_what_the_option_says_from_its_cache(
    tone_corpus, teacher_dir, far_cuts, tmp_path, hears, monkeypatch
):
    folder = tone_corpus.cache(teacher_dir, tmp_path / "kd_cache", cuts=far_cuts)
    asked, real = [], TeacherCache.places
    monkeypatch.setattr(TeacherCache, "places", lambda self, ids: (asked.append(ids), real(self, ids))[1])
    config = student_config(tone_corpus, hears=hears)
    tone_corpus.train(config, tmp_path / "x", kd_cache=folder, train_cuts=far_cuts)
    names = sorted(name for ids in asked for name in ids)
    originals = [f"train-{number:03d}" for number in range(24)]
    endings = ["", "_far1"] if hears == "student" else ["", ""]
    assert names == sorted(name + ending for name in originals for ending in endings)


@pytest.mark.parametrize("hears", ["student", "original"])
def test_the_teacher_of_a_far_copy_hears_what_the_option_says_online(
    tone_corpus, teacher_dir, far_cuts, tmp_path, hears, monkeypatch
):
    infos = load_cuts_info(far_cuts)
    (whole,) = read_batches(far_cuts, [range(len(infos))])
    features = {name: whole.features[row, : whole.feature_lens[row]] for row, name in enumerate(whole.utterance_ids)}
    batches, real = [], Training._train_step
    monkeypatch.setattr(Training, "_train_step", lambda self, batch: (batches.append(batch), real(self, batch)))
    config = student_config(tone_corpus, hears=hears, ranges="student")
    tone_corpus.train(config, tmp_path / "x", teacher_dir=teacher_dir, train_cuts=far_cuts)
    assert batches
    for batch in batches:
        masked, clean = batch.inputs["features"], batch.inputs["clean_features"]
        assert not torch.equal(masked, clean)
        for row, (name, frames) in enumerate(zip(batch.utterance_ids, batch.inputs["feature_lens"])):
            expected = features[name.replace("_far1", "") if hears == "original" else name]
            assert torch.equal(clean[row, :frames], expected)


@pytest.mark.parametrize("specaugment", ["null", "{}"])
def test_babble_is_heard_by_the_student_alone(tone_corpus, teacher_dir, tmp_path, specaugment, monkeypatch):
    batches, real = [], Training._train_step
    monkeypatch.setattr(Training, "_train_step", lambda self, batch: (batches.append(batch), real(self, batch)))
    training = "small_student.training"
    overrides = [*ONE_EPOCH, f"{training}.babble={{share: 1.0}}", f"{training}.specaugment={specaugment}"]
    config = student_config(tone_corpus, overrides=overrides, ranges="student")
    tone_corpus.train(config, tmp_path / "x", teacher_dir=teacher_dir)
    infos = load_cuts_info(tone_corpus.train_cuts)
    (whole,) = read_batches(tone_corpus.train_cuts, [range(len(infos))])
    rows = {name: row for row, name in enumerate(whole.utterance_ids)}
    assert batches
    for batch in batches:
        for row, (name, frames) in enumerate(zip(batch.utterance_ids, batch.inputs["feature_lens"])):
            clean = whole.features[rows[name], :frames]
            assert torch.equal(batch.inputs["clean_features"][row, :frames], clean)
            assert not torch.equal(batch.inputs["features"][row, :frames], clean)


def test_a_far_copy_without_its_original_is_named(tone_corpus, teacher_dir, far_cuts, tmp_path):
    lines = gzip.open(far_cuts, "rt").read().splitlines()
    alone = tmp_path / "train.jsonl.gz"
    alone.write_bytes(gzip.compress("\n".join(line for line in lines if '"train-003"' not in line[:30]).encode()))
    shutil.copytree(far_cuts.parent / "train_feats", tmp_path / "train_feats")
    config = student_config(tone_corpus, hears="original", ranges="student")
    with pytest.raises(UserError, match="has no train-003, and a far copy of it"):
        tone_corpus.train(config, tmp_path / "x", teacher_dir=teacher_dir, train_cuts=alone)


def test_a_changed_cache_trains_anew_and_an_equal_one_does_not(tone_corpus, teacher_dir, kd_cache, taught, tmp_path):
    folder = shutil.copytree(kd_cache, tmp_path / "kd_cache")
    config, exp_dir = student_config(tone_corpus), shutil.copytree(taught, tmp_path / "x")
    (said,) = tone_corpus.train(config, exp_dir, kd_cache=kd_cache)
    assert "finished already, skipped" in said
    tone_corpus.cache(teacher_dir, folder, shard_utterances=9)
    said = tone_corpus.train(config, exp_dir, kd_cache=folder)
    assert "teacher cache changed; moved the run" in said[0] and (tmp_path / "x.old-1").is_dir()


def test_a_cache_that_does_not_fit_is_one_error_before_anything_is_written(
    tone_corpus, teacher_dir, kd_cache, tmp_path, monkeypatch
):
    other_teacher = shutil.copytree(teacher_dir, tmp_path / "teacher")
    weights = load_file(other_teacher / "model.safetensors")
    weights["ctc_output.bias"] += 1.0
    store.write_tensors(other_teacher / "model.safetensors", weights)
    other_bpe = Tokenizer.load(train_bpe(["e d c b a"], 8, tmp_path / "bpe", "char"))
    damaged = shutil.copytree(kd_cache, tmp_path / "damaged")
    content = bytearray(shard_path(damaged, 2).read_bytes())
    content[-400] ^= 16
    shard_path(damaged, 2).write_bytes(content)
    unfinished = shutil.copytree(kd_cache, tmp_path / "unfinished")
    shard_path(unfinished, 1).unlink()
    short = tone_corpus.cache(teacher_dir, tmp_path / "short",
        [f"{role}.training.max_seconds=1.0" for role in ("sparse_student", "small_student", "streaming_student")],
    )  # fmt: skip
    config = student_config(tone_corpus)
    prune = ["small_student.training.prune_range=4"]
    cases = [
        (config, {"kd_cache": None}, "--kd-cache: missing"),
        (config, {"kd_cache": tmp_path / "none"}, "no teacher cache here"),
        (config, {"teacher_dir": other_teacher}, "teacher weights"),
        (config, {"tokenizer": other_bpe}, "made with BPE model"),
        (config, {"train_cuts": tone_corpus.dev_cuts}, "made with cuts"),
        (student_config(tone_corpus, overrides=prune), {}, "made with prune range 3; expected prune range 4"),
        (student_config(tone_corpus, overrides=["kd.temperature=3"]), {}, "made with temperature 1.0; expected"),
        (config, {"kd_cache": unfinished}, "the first shard-00001.safetensors"),
        (config, {"kd_cache": short}, "of 24 utterances are missing, the first: train-"),
    ]
    for wanted, options, message in cases:
        assert message in told(tone_corpus.train, wanted, tmp_path / "x", **{"kd_cache": kd_cache, **options})
        assert not (tmp_path / "x").exists()
    with monkeypatch.context() as patch:
        patch.setattr("rnnt_kd.models.encoders.conformer.Conformer.subsampling_factor", 2)
        with pytest.raises(UserError, match="made with 4 feature frames an encoder frame, and small_kd has 2"):
            tone_corpus.train(config, tmp_path / "x", kd_cache=kd_cache)
    monkeypatch.setattr("rnnt_kd.models.encoders.conformer.Conformer.output_lengths", lambda self, lens: lens // 2)
    with pytest.raises(UserError, match="encoder frames for train-.*subsampling"):
        tone_corpus.train(config, tmp_path / "x", kd_cache=kd_cache)
    assert not (tmp_path / "x").exists()


def test_the_command_trains_from_the_cache_beside_its_teacher(tone_corpus, teacher_dir, kd_cache, tmp_path):
    shutil.copytree(teacher_dir, tmp_path / "teacher")
    shutil.copytree(kd_cache, tmp_path / "teacher" / "kd_cache_range3")
    entry = "{role: small_student, kd: {}, training: {epochs: 1}}"
    command.main(tone_corpus.arguments(tmp_path / "exp", entry, tmp_path / "teacher"))
    inputs = json.loads((tmp_path / "exp" / "trial" / "x" / "seed1" / ".training.record.json").read_text())
    assert inputs["inputs"]["teacher cache"] == TeacherCache.open(kd_cache).digest


@pytest.mark.parametrize("weighting", ["uniform", "occupancy", "one-best"])
def test_from_the_cache_it_is_the_plain_loops(tone_corpus, teacher_dir, kd_cache, weighting):
    """Ranges, posteriors and node weights; on a real cache, of which the plain loops read the packed numbers."""
    _, config = store.load_system(teacher_dir)
    torch.manual_seed(3)
    student = store.build_model(config).eval()
    inputs, ids = batch_of(tone_corpus, [5, 2])
    features, lens, labels, label_lens = inputs
    cached = cached_batch(kd_cache, inputs, ids, encoder_frames(lens))
    # The first 9 frames and 3 symbols of each: few enough paths to walk them all.
    features, lens, labels, label_lens = features[:, :36], lens.clamp(max=36), labels[:, :3], label_lens.clamp(max=3)
    starts = cached.starts[:, :9].clamp(max=1)
    starts[:, -1] = 1
    cached = CachedTeacher(starts, cached.packed[:, :9])
    kd = load_recipe(tone_corpus.preset, ["kd.shift=4", f"kd.weighting={weighting}"]).kd
    term = Objective(student, config.training, get_backend("torch"), kd)(
        features, lens, labels, label_lens, cached=cached
    )["kd"]

    logits, num_frames = whole_lattice(student, features, lens, labels)
    moved = [reference.shifted_starts(row, 4) for row in starts.tolist()]
    logits = torch.stack(
        [torch.stack([frame[start : start + 3] for frame, start in zip(*pair)]) for pair in zip(logits, moved)]
    )
    expected = reference.shifted_kd_losses(
        logits, as_logits(cached, labels, logits.shape[-1]), labels.tolist(), cached.ranges(), 0,
        num_frames, shift=4, weighting=weighting,
    ).sum()  # fmt: skip
    assert num_frames == [9, 9] and term.item() == pytest.approx(expected.item(), rel=1e-4) and term.item() > 0.01


def as_logits(cached, labels, C):
    """(B, T, s_range, C) float64 whose posteriors are those of the cache; the rest on one class that is no label."""
    logits = torch.full((*cached.packed.shape[:3], C), -60.0, dtype=torch.float64)
    ends = torch.nn.functional.pad(labels, (0, 1))
    for b, t, k in torch.cartesian_prod(*(torch.arange(size) for size in cached.packed.shape[:3])).tolist():
        blank, label, rest = (float(x) for x in unpack(cached.packed[b, t, k]))
        symbol = int(ends[b, int(cached.starts[b, t]) + k])
        other = next(c for c in range(1, C) if c != symbol)
        logits[b, t, k, other] = rest if symbol else math.log(math.exp(rest) + math.exp(label))
        logits[b, t, k, 0] = blank
        if symbol:
            logits[b, t, k, symbol] = label
    return logits


def test_a_run_from_before_there_was_a_shift_stays_finished(tone_corpus, kd_cache, taught, tmp_path):
    config = student_config(tone_corpus)
    shutil.copytree(taught, tmp_path / "x")
    record = tmp_path / "x" / ".training.record.json"
    edit_record(record, lambda values: values["settings"].pop("kd.shift"))
    (said,) = tone_corpus.train(config, tmp_path / "x", kd_cache=kd_cache)
    assert "finished already, skipped" in said
    late = dataclasses.replace(config, kd=dataclasses.replace(config.kd, shift=2))
    said = tone_corpus.train(late, tmp_path / "x", kd_cache=kd_cache)
    assert "kd.shift was 0 and is 2; moved the run" in said[0]


@pytest.mark.parametrize("difference", [1, -1])
def test_a_cache_of_a_teacher_with_a_frame_more_or_fewer_is_aligned_where_asked(
    tone_corpus, teacher_dir, tmp_path, monkeypatch, difference
):
    def encode(self, x, x_lens):
        out, lens = self.model.encode(x, x_lens)
        return torch.cat((out, out[:, -1:]), dim=1)[:, : out.size(1) + difference], lens + difference

    with monkeypatch.context() as patch:
        patch.setattr("rnnt_kd.teachers.interface.OurTransducer.encode", encode)
        folder = tone_corpus.cache(teacher_dir, tmp_path / "kd_cache")
    with pytest.raises(UserError, match="encoder frames for train-.*, and the student makes"):
        tone_corpus.train(student_config(tone_corpus), tmp_path / "strict", kd_cache=folder)
    tone_corpus.train(student_config(tone_corpus, align="crop-pad"), tmp_path / "x", kd_cache=folder)
    assert all(line["kd_loss"] > 0 for line in metrics(tmp_path / "x", "train"))
