"""Every figure of the lattice pictures equals the plain loops of ``reference.py``, on models with random weights."""

import copy
import math

import pytest
import reference
import torch

from rnnt_kd.config import ModelConfig, SystemConfig, TrainingConfig
from rnnt_kd.errors import UserError
from rnnt_kd.lattice import get_backend
from rnnt_kd.losses.packed_posteriors import unpack
from rnnt_kd.report.utterance_lattice import utterance_lattice
from rnnt_kd.systems.store import build_model
from rnnt_kd.teachers.cache import TeacherCache
from rnnt_kd.teachers.interface import as_teacher
from rnnt_kd.teachers.write_cache import cache_facts, write_cache

VOCABULARY, PRUNE_RANGE = 6, 3
TRAINING = TrainingConfig(lm_only_scale=0.25, am_only_scale=0.1)
TEXTS = {"some": [2, 3, 3, 5], "one": [4], "none": []}


def random_model(seed, **options):
    torch.manual_seed(seed)
    options = {"num_layers": 1, "dim": 32, "feedforward_dim": 32, **options}
    model = ModelConfig(size="tiny", encoder_options=options, predictor_dim=16, joiner_dim=16)
    built = build_model(SystemConfig(model=model, vocab_size=VOCABULARY)).double().eval()
    with torch.no_grad():  # as sure of themselves as trained ones
        for layer in (built.simple_am_proj, built.simple_lm_proj, built.joiner.output_linear):
            layer.weight.mul_(8.0)
    return built


@pytest.fixture(scope="module")
def models():
    return {"teacher": random_model(1), "twin": random_model(2), "student": random_model(3)}


@pytest.fixture(scope="module")
def features():
    return torch.randn(33, 80, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def logits_of(model, features, labels, ranges):
    """(1, T, s_range, C) by plain loops; at positions past the text's end, which nobody should read, those of the end."""
    with torch.no_grad():
        encoder_out, _ = model.encode(features[None], torch.tensor([len(features)]))
        predictor_out = model.predict(torch.tensor([labels], dtype=torch.int64))
        am, lm = model.joiner.encoder_proj(encoder_out), model.joiner.predictor_proj(predictor_out)
        output = model.joiner.output_linear
        inside = [[[min(s, len(labels)) for s in row] for row in ranges]]
        return reference.joiner_logits(am, lm, output.weight, output.bias, inside)


def close(value, expected):
    assert float(value) == pytest.approx(float(expected), rel=2e-5, abs=2e-6)


@pytest.mark.parametrize("backend_name", ["torch", "k2"])
@pytest.mark.parametrize("rnnt_type", ["regular", "modified", "constrained"])
@pytest.mark.parametrize("text", list(TEXTS))
def test_every_node_is_that_of_the_plain_loops(models, features, text, rnnt_type, backend_name):
    backend, labels = backend_or_skip(backend_name), TEXTS[text]
    starts, views = utterance_lattice(models, TRAINING, PRUNE_RANGE, rnnt_type, backend, features, labels)
    T, S = len(starts), len(labels)
    assert T == 9 and list(views) == ["teacher", "twin", "student"]
    ranges = [[int(start) + k for k in range(PRUNE_RANGE)] for start in starts]
    kept = [(t, s) for t in range(T) for s in ranges[t] if s <= S]
    inside = [[[s if s <= S else -1 for s in row] for row in ranges]]  # -1: no path goes there
    teacher_logits = logits_of(models["teacher"], features, labels, ranges)
    for name, view in views.items():
        logits = logits_of(models[name], features, labels, ranges)
        for t in range(T):
            for k, s in enumerate(ranges[t]):
                arrays = (view.log_blank, view.log_label, view.occupancy, view.kl)
                assert [bool(torch.isnan(array[t, k])) for array in arrays] == [s > S] * 4
        reads = reference.node_reads(logits, [labels], inside, 0, [T], 0, rnnt_type)
        for t, s in kept:
            k, label = ranges[t].index(s), labels[s] if s < S else None
            blank, label_posterior, _ = reference.posteriors(logits[0, t, k], label, 0)
            close(view.log_blank[t, k], blank)
            close(view.log_label[t, k], -math.inf if label_posterior is None else label_posterior)
            close(view.occupancy[t, k], reads.get((t, s), 0.0))
            close(view.kl[t, k], reference.divergence("collapsed", logits[0, t, k], teacher_logits[0, t, k], label, 0))
        best = reference.node_reads(logits, [labels], inside, 0, [T], 0, rnnt_type, best_only=True)
        assert [tuple(node) for node in view.path.tolist()] == sorted(node for node, count in best.items() if count)
        close(view.loss, reference.rnnt_losses_pruned(logits, [labels], inside, 0, [T], rnnt_type)[0])
        weights = reference.node_weights("occupancy", logits, teacher_logits, [labels], inside, 0, [T], 0, rnnt_type)
        divergences = {(t, s): float(view.kl[t, ranges[t].index(s)]) for t, s in kept}
        close(view.kd, sum(weight * divergences[node] for node, weight in weights.items()))
    assert views["teacher"].kd == 0.0 and float(views["teacher"].kl.nansum()) == 0.0


def backend_or_skip(name):
    try:
        return get_backend(name)
    except UserError as error:
        pytest.skip(str(error))


def test_the_nodes_are_those_of_the_teachers_cache(models, features, tmp_path):
    teacher, labels, backend = copy.deepcopy(models["teacher"]).float(), TEXTS["some"], get_backend("torch")
    scales = dict(lm_only_scale=TRAINING.lm_only_scale, am_only_scale=TRAINING.am_only_scale)
    facts = cache_facts(as_teacher(teacher), prune_range=PRUNE_RANGE, digest="random", **scales)
    lens = torch.tensor([len(features)])
    write_cache(as_teacher(teacher), [(["utterance"], features.float()[None], lens, [labels])], tmp_path, facts)
    entry = TeacherCache.open(tmp_path).lookup(["utterance"], [9], len(labels))
    starts, views = utterance_lattice(
        {"teacher": teacher}, TRAINING, PRUNE_RANGE, "regular", backend, features.float(), labels
    )
    assert torch.equal(entry.starts[0], starts)
    cached, view = unpack(entry.packed[0]), views["teacher"]
    valid = ~torch.isnan(view.log_blank)
    assert torch.allclose(cached.log_blank[valid], view.log_blank[valid], rtol=2e-3, atol=1e-3)  # float16
    has_label = valid & (view.log_label > -math.inf)
    assert torch.allclose(cached.log_label[has_label], view.log_label[has_label], rtol=2e-3, atol=1e-3)


@pytest.mark.parametrize("shift", [1, 3])
def test_with_a_shift_the_teachers_lattice_is_moved_as_in_training(models, features, shift):
    labels, backend = TEXTS["some"], get_backend("torch")
    unmoved, before = utterance_lattice(models, TRAINING, PRUNE_RANGE, "regular", backend, features, labels)
    starts, views = utterance_lattice(models, TRAINING, PRUNE_RANGE, "regular", backend, features, labels, shift)
    T = len(starts)
    assert starts.tolist() == reference.shifted_starts(unmoved.tolist(), shift)
    ranges, teacher_ranges = ([[int(x) + k for k in range(PRUNE_RANGE)] for x in each] for each in (starts, unmoved))
    student_logits = logits_of(models["student"], features, labels, ranges)
    teacher_logits = logits_of(models["teacher"], features, labels, teacher_ranges)
    expected = reference.shifted_kd_losses(
        student_logits, teacher_logits, [labels], [teacher_ranges], 0, [T], shift=shift, weighting="occupancy"
    )
    close(views["student"].kd, expected[0])
    close(views["student"].loss, reference.rnnt_losses_pruned(student_logits, [labels], [ranges], 0, [T])[0])
    for t in range(T):
        for k, s in enumerate(ranges[t]):
            known = s in teacher_ranges[max(t - shift, 0)]
            assert bool(torch.isnan(views["student"].kl[t, k])) != known
            if known:
                earlier = teacher_ranges[max(t - shift, 0)].index(s)
                close(views["teacher"].log_blank[t, k], before["teacher"].log_blank[max(t - shift, 0), earlier])


def test_another_frame_rate_is_named(models, features):
    slow = copy.deepcopy(models["student"])
    slow.encode = lambda x, lens: (models["student"].encode(x, lens)[0][:, ::2], torch.tensor([5]))
    with pytest.raises(UserError, match="small: makes 5 encoder frames where teacher makes 9; expected the same sub"):
        utterance_lattice(
            {"teacher": models["teacher"], "small": slow},
            TRAINING, PRUNE_RANGE, "regular", get_backend("torch"), features, [2],
        )  # fmt: skip


def test_a_text_too_long_for_its_frames_is_named(models, features):
    with pytest.raises(UserError, match="no path of the pruned lattice takes its 40 symbols through its 9 frames"):
        utterance_lattice(models, TRAINING, PRUNE_RANGE, "regular", get_backend("torch"), features, [2] * 40)
