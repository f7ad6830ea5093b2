"""The training objective against the plain loops, and what it promises about teacher and scales."""

import copy
import dataclasses
import itertools

import pytest
import reference
import torch
from model_cases import transducer
from objective_cases import SMALL, TRAINING, full_lattice, make_batch, make_model, objective, transcripts

from rnnt_kd.config import ConsistencyConfig, KdConfig
from rnnt_kd.errors import UserError
from rnnt_kd.lattice import get_backend
from rnnt_kd.lattice.smoothed_loss import rnnt_loss_smoothed
from rnnt_kd.losses import rnnt_kd_loss, rnnt_loss_pruned
from rnnt_kd.losses.node_scores import torch_impl
from rnnt_kd.losses.packed_posteriors import pack
from rnnt_kd.models.encoders.conformer import rotary_tables
from rnnt_kd.teachers.interface import as_teacher
from rnnt_kd.teachers.views import CachedTeacher
from rnnt_kd.training.objective import loss_scales, weighted_sum


@pytest.mark.parametrize("backend", ["torch", "k2"])
def test_terms_equal_the_plain_loops(backend):
    if backend == "k2":
        pytest.importorskip("k2")
    model, teacher, batch = make_model(0), make_model(1), make_batch()
    features, lens, labels, label_lens = batch
    kd = KdConfig(variant="collapsed", weighting="occupancy", temperature=2.0, ranges="student")
    terms = objective(model, kd=kd, teacher=teacher, backend=backend)(*batch)

    logits, ranges, frames = full_lattice(model, features, lens, labels)
    teacher_logits, _, _ = full_lattice(teacher, features, lens, labels)
    symbols = transcripts(labels, label_lens)
    am = model.simple_am_proj(model.encode(features, lens)[0]).double()
    lm = model.simple_lm_proj(model.predict(labels)).double()
    expected = {
        "simple": reference.rnnt_losses_smoothed(lm, am, symbols, 0, frames, 0.25, 0.0).sum(),
        "pruned": reference.rnnt_losses_pruned(logits, symbols, ranges, 0, frames).sum(),
        "ctc": sum(plain_ctc(model, features, lens, symbols)),
        "kd": reference.kd_losses(
            logits, teacher_logits, symbols, ranges, 0, frames,
            variant="collapsed", weighting="occupancy", temperature=2.0,
        ).sum(),
        "frames": torch.tensor(float(sum(frames))),
    }  # fmt: skip
    for name, value in expected.items():
        assert terms[name].item() == pytest.approx(value.item(), rel=1e-4), name


@pytest.mark.parametrize("megabytes, bytes_given", [(None, None), (0.0, 0), (1.5, 1_500_000)])
def test_loss_memory_reaches_the_loss(megabytes, bytes_given, monkeypatch):
    given = []
    split = torch_impl.split_logits
    monkeypatch.setattr(torch_impl, "split_logits", lambda *args: given.append(args[-1]) or split(*args))
    objective(make_model(0), dataclasses.replace(TRAINING, loss_memory_mb=megabytes))(*make_batch())
    assert given == [bytes_given]


def test_alignment_entropy_is_that_of_all_paths_and_not_there_in_validation():
    model, batch = make_model(0), make_batch()
    training = dataclasses.replace(TRAINING, alignment_entropy=0.3)
    run = objective(model, training)
    logits, ranges, frames = full_lattice(model, *batch[:3])
    expected = reference.alignment_entropies(logits, transcripts(*batch[2:]), ranges, 0, frames)
    assert run(*batch)["entropy"].item() == pytest.approx(expected.sum().item(), rel=1e-4) and expected.sum() > 0.1
    assert run(*batch, with_kd=False)["entropy"] == 0.0 == objective(model)(*batch)["entropy"]


def test_delay_penalty_and_class_scales_reach_the_losses():
    model, teacher, (features, lens, labels, label_lens) = make_model(0), make_model(1), make_batch()
    training = dataclasses.replace(TRAINING, delay_penalty=2.0)
    kd = KdConfig(ranges="student", weighting="occupancy", class_scales=[0.5, 2.0, 3.0])
    terms = objective(model, training, kd, teacher)(features, lens, labels, label_lens)

    logits, ranges, frames = full_lattice(model, features, lens, labels)
    teacher_logits, _, _ = full_lattice(teacher, features, lens, labels)
    boundary = torch.tensor([[0, 0, *ends] for ends in zip(label_lens.tolist(), frames, strict=True)])
    am = model.simple_am_proj(model.encode(features, lens)[0]).double()
    lm = model.simple_lm_proj(model.predict(labels)).double()
    shared = dict(boundary=boundary, reduction="sum")
    simple, pruned, plain = (
        rnnt_loss_smoothed(lm, am, labels, 0, 0.25, 0.0, delay_penalty=2.0, backend=get_backend("torch"), **shared),
        *(rnnt_loss_pruned(logits, labels, ranges, 0, delay_penalty=penalty, **shared) for penalty in (2.0, 0.0)),
    )
    distilled, unscaled = (
        rnnt_kd_loss(
            logits, teacher_logits, labels, ranges, 0,
            kd_variant="collapsed", kd_weighting="occupancy", kd_class_scales=scales, **shared,
        )
        for scales in ((0.5, 2.0, 3.0), None)
    )  # fmt: skip
    for name, value in dict(simple=simple, pruned=pruned, kd=distilled).items():
        assert terms[name].item() == pytest.approx(value.item(), rel=1e-4), name
    assert abs(pruned - plain) > 0.01 and abs(distilled - unscaled) > 0.01


def plain_ctc(model, features, lens, symbols):
    """Every label sequence over the frames that collapses to the transcript."""
    encoder_out, encoder_lens = model.encode(features, lens)
    log_probs = model.ctc_output(encoder_out).double().log_softmax(-1)
    for row, length, wanted in zip(log_probs, encoder_lens.tolist(), symbols, strict=True):
        paths = itertools.product(range(4), repeat=length)
        right = [path for path in paths if [c for c, _ in itertools.groupby(path) if c != 0] == wanted]
        yield -torch.logsumexp(torch.stack([sum(row[t, c] for t, c in enumerate(path)) for path in right]), 0)


def test_an_utterance_counts_the_same_alone_and_in_a_batch():
    model, (features, lens, labels, label_lens) = make_model(0), make_batch()
    together = objective(model)(features, lens, labels, label_lens)
    alone = [
        objective(model)(features[b : b + 1, : lens[b]], lens[b : b + 1], labels[b : b + 1], label_lens[b : b + 1])
        for b in range(3)
    ]
    for name in together:
        expected = sum(terms[name].item() for terms in alone)
        assert together[name].item() == pytest.approx(expected, rel=1e-4, abs=1e-4), name


def test_loss_does_not_depend_on_how_often_the_batch_is_repeated():
    """All terms have one reduction: kd_scale means the same at any batch size."""
    model, teacher = make_model(0), make_model(1)
    run = objective(model, kd=KdConfig(ranges="student"), teacher=teacher)
    once, scales = make_batch(), {"simple": 0.5, "pruned": 1.0, "ctc": 0.2, "kd": 3.0, "features": 0.0}
    thrice = [torch.cat([tensor] * 3) for tensor in once]
    of_one, of_three = (weighted_sum(terms, scales) / terms["frames"] for terms in (run(*once), run(*thrice)))
    assert of_one.item() == pytest.approx(of_three.item(), rel=1e-5)


def test_no_gradient_and_no_parameter_of_the_teacher():
    model, teacher = make_model(0), make_model(1)
    run = objective(model, kd=KdConfig(ranges="student"), teacher=teacher)
    run(*make_batch())["kd"].backward()
    assert all(p.grad is None for p in teacher.parameters())
    assert any(p.grad is not None and p.grad.abs().max() > 0 for p in model.parameters())
    assert not {id(p) for p in run.parameters()} & {id(p) for p in teacher.parameters()}
    assert run.train() and teacher.eval() and run.train() and not teacher.training


def test_teacher_hears_the_clean_features():
    model, (features, lens, labels, label_lens) = make_model(0), make_batch()
    masked = features.clone()
    masked[:, 3:6] = -5.0
    same = objective(model, kd=KdConfig(ranges="student"), teacher=make_model(0))
    taught = same(masked, lens, labels, label_lens)["kd"]  # by its equal: nothing
    assert taught.item() == pytest.approx(0.0, abs=1e-5)
    taught.backward()
    assert all(p.grad is None or p.grad.abs().max() < 1e-5 for p in model.parameters())
    assert same(masked, lens, labels, label_lens, features)["kd"].item() > 1e-3


def test_empty_transcripts_are_finite():
    model = make_model(0)
    features, lens, _, _ = make_batch()
    terms = objective(model, kd=KdConfig(ranges="student"), teacher=make_model(1))(
        features, lens, torch.zeros(3, 1, dtype=torch.int64), torch.zeros(3, dtype=torch.int64)
    )
    weighted_sum(terms, {"simple": 0.5, "pruned": 1.0, "ctc": 0.2, "kd": 1.0, "features": 0.0}).backward()
    assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)


def test_validation_leaves_distillation_out():
    run = objective(make_model(0), kd=KdConfig(ranges="student"), teacher=make_model(1))
    assert run(*make_batch(), with_kd=False)["kd"].item() == 0.0


FEATURES = dict(ranges="student", hears="same-view", features=1.0)


@pytest.mark.parametrize("dim, blocks", [(16, 2), (8, 1)], ids=["equal layers", "a narrower one of half as many"])
def test_layers_imitate_the_teachers_on_the_same_batch(dim, blocks):
    """Against the encoders' layers, called one after the other."""
    model = transducer(0, encoder_options={**SMALL, "dim": dim, "num_layers": blocks}, dropout=0.0, vocab_size=4)
    teacher = transducer(1, encoder_options={**SMALL, "num_layers": 2}, dropout=0.0, vocab_size=4)
    (features, lens, labels, label_lens) = make_batch()
    run = objective(model, kd=KdConfig(**FEATURES), teacher=teacher)
    found = run(features, lens, labels, label_lens)["features"]
    ours, frames = layers_of(model, features, lens)
    theirs, _ = layers_of(teacher, features, lens)
    expected = 0.0
    for h, t in zip(ours, theirs if blocks == 2 else theirs[1:], strict=True):
        if dim != 16:
            h = h @ torch.linalg.lstsq(h, t).solution
        expected += ((h - t) ** 2).sum().item() / (t**2).sum().item() / blocks
    assert found.item() == pytest.approx(expected * sum(frames), rel=1e-3) and expected > 0.01
    found.backward()
    assert all(p.grad is None for p in teacher.parameters())
    taught = {name.split(".")[0] for name, p in model.named_parameters() if p.grad is not None and p.grad.any()}
    assert taught == {"encoder"}
    assert run(features, lens, labels, label_lens, with_kd=False)["features"].item() == 0.0
    equal = objective(model, kd=KdConfig(**FEATURES), teacher=model)
    assert equal(features, lens, labels, label_lens)["features"].item() == pytest.approx(0.0, abs=1e-3)


def layers_of(model, features, lens):
    """What each block gives on the valid frames of a batch, an utterance at a time, in float64; their number."""
    model = copy.deepcopy(model).double()
    found = [[] for _ in model.encoder.layers]
    for x, length in zip(features.double(), lens.tolist(), strict=True):
        x, own = model.encoder.subsampling(x[None, :length], torch.tensor([length]))
        T = int(own)
        cos, sin = rotary_tables(T, model.encoder.head_dim, x)
        for values, layer in zip(found, model.encoder.layers, strict=True):
            x = layer(x, torch.zeros(1, 1, T).double(), torch.zeros(1, T, 1, dtype=torch.bool), cos, sin)
            values.append(x[0])
    return [torch.cat(values) for values in found], [len(rows) for rows in found[0]]


@pytest.mark.parametrize(
    "options, expected",
    [
        (dict(features=1.0), "kd.features: .*; expected kd.ranges student and kd.hears same-view"),
        (dict(FEATURES, align="crop-pad"), "kd.features: with kd.align crop-pad"),
        (dict(FEATURES, feature_layers=[]), "feature_layers"),
        (dict(hears="same-view"), "kd.hears: same-view, .*; expected kd.ranges student"),
        (
            dict(FEATURES, feature_layers=["encoder.blocks.0"]),
            "encoder.blocks.0 is no module of the student; expected names as encoder.layers.0",
        ),
        (dict(FEATURES, feature_layers=["("]), "a regular expression"),
        (dict(FEATURES, feature_layers=["encoder"]), "encoder gives no"),
        (dict(FEATURES, feature_layers=[".*norm"]), "more than the teacher has"),
    ],
)
def test_features_that_cannot_be_compared_are_one_line(options, expected):
    model = transducer(0, encoder_options={**SMALL, "num_layers": 2}, dropout=0.0, vocab_size=4)
    with pytest.raises(ValueError, match=expected):  # pydantic's, of UserError's line, or that
        objective(model, kd=KdConfig(**options), teacher=make_model(1))(*make_batch())
    assert not any(module._forward_hooks for module in model.modules())


@pytest.mark.skipif(torch.__version__.startswith("1."), reason="torch 1 has no mixed bfloat16 LayerNorm on a CPU")
def test_losses_are_float32_whatever_the_model_runs_in():
    model, batch = make_model(0), make_batch()
    exact = objective(model, kd=KdConfig(ranges="student"), teacher=make_model(1))(*batch)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rough = objective(model, kd=KdConfig(ranges="student"), teacher=make_model(1))(*batch)
    for name in ("simple", "pruned", "ctc", "kd"):
        assert rough[name].dtype == torch.float32
        assert rough[name].item() == pytest.approx(exact[name].item(), rel=0.05, abs=0.05), name


def test_scales_rise_linearly_to_their_values():
    training = dataclasses.replace(TRAINING, pruned_loss_warmup_steps=10)
    kd = KdConfig(scale=2.0, ramp_steps=4)
    kd = dataclasses.replace(kd, ranges="student", hears="same-view", features=3.0)
    training = dataclasses.replace(training, consistency=ConsistencyConfig(lattice=0.5, ctc=0.25, ramp_steps=5))
    training = dataclasses.replace(training, alignment_entropy=0.3)
    first, middle, last = (loss_scales(step, training, kd) for step in (0, 5, 10))
    of_views = [(scales.pop("consistency"), scales.pop("ctc_consistency")) for scales in (first, middle, last)]
    assert [scales.pop("entropy") for scales in (first, middle, last)] == pytest.approx([0.03, 0.165, 0.3])
    for found, expected in zip(of_views, [(0.5 * 0.2 * 0.1, 0.25 * 0.2), (0.5 * 0.55, 0.25), (0.5, 0.25)], strict=True):
        assert found == pytest.approx(expected)
    assert first == pytest.approx({"simple": 1.0, "pruned": 0.1, "ctc": 0.2, "kd": 2.0 * 0.25 * 0.1, "features": 0.75})
    assert middle == pytest.approx({"simple": 0.75, "pruned": 0.55, "ctc": 0.2, "kd": 2.0 * 0.55, "features": 3.0})
    assert last == pytest.approx({"simple": 0.5, "pruned": 1.0, "ctc": 0.2, "kd": 2.0, "features": 3.0})
    alone = loss_scales(5, training, dataclasses.replace(kd, label_scale=0.5))
    assert alone.pop("pruned") == 0.5 * middle.pop("pruned") and {name: alone[name] for name in middle} == middle
    assert loss_scales(5, training, dataclasses.replace(kd, label_scale=0.0))["pruned"] == 0.0
    assert loss_scales(10**6, TRAINING, None)["kd"] == loss_scales(10**6, TRAINING, None)["consistency"] == 0.0
    assert loss_scales(0, dataclasses.replace(training, pruned_loss_warmup_steps=0), None)["pruned"] == 1.0


@pytest.mark.parametrize("shift", [1, 2, 50])
def test_an_online_teacher_is_the_plain_loops_on_its_earlier_frames(shift):
    model, teacher, batch = make_model(0), make_model(1), make_batch()
    features, lens, labels, label_lens = batch
    kd = KdConfig(ranges="student", weighting="occupancy", temperature=2.0, shift=shift)
    terms = objective(model, kd=kd, teacher=teacher)(*batch)
    logits, ranges, frames = full_lattice(model, features, lens, labels)
    teacher_logits, _, _ = full_lattice(teacher, features, lens, labels)
    moved = torch.stack([teacher_logits[:, max(t - shift, 0)] for t in range(teacher_logits.size(1))], dim=1)
    expected = reference.kd_losses(
        logits, moved, transcripts(labels, label_lens), ranges, 0, frames,
        variant="collapsed", weighting="occupancy", temperature=2.0,
    ).sum()  # fmt: skip
    assert terms["kd"].item() == pytest.approx(expected.item(), rel=1e-4)
    plain = objective(model, kd=KdConfig(ranges="student", temperature=2.0), teacher=teacher)(*batch)
    assert terms["kd"].item() != pytest.approx(plain["kd"].item(), rel=1e-3)
    assert all(terms[name].item() == plain[name].item() for name in ("simple", "pruned", "ctc", "frames"))


def packed_teacher(logits, symbols, at=1.0):
    """(B, T, s_range, 2), of whole logits."""
    posteriors = (logits / at).softmax(-1)
    label = posteriors.gather(3, symbols[..., None])[..., 0].masked_fill(symbols == 0, 0.0)
    return pack([x.clamp(min=0).log() for x in (posteriors[..., 0], label, 1 - posteriors[..., 0] - label)])


def test_an_utterance_without_a_teacher_keeps_the_students_nodes_and_has_no_term():
    model, teacher, batch = make_model(0), make_model(1), make_batch()
    narrow = dataclasses.replace(TRAINING, prune_range=2)
    logits, ranges, _ = full_lattice(teacher, *batch[:3])
    symbols = torch.nn.functional.pad(batch[2], (0, 1))[:, None].expand(ranges.shape)
    packed, nothing = packed_teacher(logits, symbols)[:, :, :2], torch.zeros(ranges.shape[:2], dtype=torch.int64)
    is_known = torch.tensor([False, True, True])[:, None, None].expand(packed.shape[:3])
    cached = CachedTeacher(nothing, packed, is_known=is_known)  # its zeros keep no path of the first utterance
    run = objective(model, narrow, KdConfig())
    together = run(*batch, cached=cached)
    alone = run(*(x[:1] for x in batch), with_kd=False)
    features, lens, labels, label_lens = (x[1:] for x in batch)
    others = run(features, lens, labels, label_lens, cached=CachedTeacher(nothing[1:], packed[1:]))
    for name in together:
        assert together[name].item() == pytest.approx(alone[name].item() + others[name].item(), rel=1e-4), name
    assert others["kd"].item() > 0.01


class OneFrameMore:
    """A teacher of another recipe, of whose frames the first ones are ours."""

    def __init__(self, model):
        self.model, self.blank_id = as_teacher(model), model.blank_id
        self.predict, self.joiner, self.simple = self.model.predict, self.model.joiner, self.model.simple

    def encode(self, x, x_lens):
        out, lens = self.model.encode(x, x_lens)
        return torch.cat((out, out[:, -1:]), dim=1), (lens + 1).int()


def test_kd_align_reaches_the_teacher_online_and_cached():
    model, teacher, batch = make_model(0), make_model(1), make_batch()
    expected = objective(model, kd=KdConfig(ranges="student"), teacher=teacher)(*batch)["kd"]
    foreign = OneFrameMore(teacher)
    with pytest.raises(UserError, match=r"teacher: 5 encoder frames where the student makes 4 \(utterance 0"):
        objective(model, kd=KdConfig(ranges="student"), teacher=foreign)(*batch)
    kd = KdConfig(ranges="student", align="crop-pad")
    assert torch.equal(objective(model, kd=kd, teacher=foreign)(*batch)["kd"], expected)

    logits, ranges, frames = full_lattice(teacher, *batch[:3])
    symbols = torch.nn.functional.pad(batch[2], (0, 1))[:, None].expand(ranges.shape)
    packed = torch.nn.functional.pad(packed_teacher(logits, symbols), (0, 0, 0, 0, 0, 1))  # a fifth frame of anything
    starts = torch.zeros(packed.shape[:2], dtype=torch.int64)
    cached = CachedTeacher(starts, packed, frames=torch.tensor(frames) + 1)
    with pytest.raises(UserError, match="teacher's cache: 5 encoder frames where the student makes 4"):
        objective(model, kd=KdConfig())(*batch, cached=cached)
    found = objective(model, kd=KdConfig(align="crop-pad"))(*batch, cached=cached)["kd"]
    assert found.item() == pytest.approx(expected.item(), rel=4 * 2.0**-11)


def test_online_and_cached_agree_where_all_nodes_are_kept():
    """Only then do both see the same nodes after a shift; up to the float16 of the cache."""
    model, teacher, batch = make_model(0), make_model(1), make_batch()
    online = KdConfig(ranges="student", temperature=2.0, shift=2)
    logits, ranges, _ = full_lattice(teacher, *batch[:3])
    symbols = torch.nn.functional.pad(batch[2], (0, 1))[:, None].expand(ranges.shape)
    packed = (packed_teacher(logits, symbols, at) for at in (1.0, 2.0))
    cached = CachedTeacher(torch.zeros(ranges.shape[:2], dtype=torch.int64), *packed)
    found = objective(model, kd=dataclasses.replace(online, ranges="teacher"))(*batch, cached=cached)
    expected = objective(model, kd=online, teacher=teacher)(*batch)
    assert expected["kd"].item() > 0.01
    assert found["kd"].item() == pytest.approx(expected["kd"].item(), rel=4 * 2.0**-11)
