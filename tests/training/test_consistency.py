"""Two views of every utterance: each is taught by the other, on the lattice and in the frames of CTC."""

import copy
import dataclasses

import pytest
import reference
import torch
from objective_cases import TRAINING, full_lattice, make_batch, make_model, objective, transcripts
from training_cases import goes_on_the_same, metrics

from rnnt_kd.config import ConsistencyConfig, KdConfig, ModelConfig, SystemConfig, TrainingConfig
from rnnt_kd.data.dataset import load_cuts_info, read_batches
from rnnt_kd.data.source import open_source
from rnnt_kd.errors import UserError
from rnnt_kd.lattice import get_backend
from rnnt_kd.lattice.prune_ranges import get_rnnt_prune_ranges
from rnnt_kd.losses import Distillation, Logits, OtherHalf, TeacherView, kept_nodes, lattice_terms, rnnt_kd_loss
from rnnt_kd.losses.choices import available_weightings
from rnnt_kd.teachers.interface import OurTransducer
from rnnt_kd.teachers.prune import prune
from rnnt_kd.text.tokenizer import Tokenizer
from rnnt_kd.training.batches import TrainingData


def with_views(**options):
    return dataclasses.replace(TRAINING, consistency=ConsistencyConfig(**options))


def two_views():
    """A batch of three utterances, and of the same with some of it masked."""
    features, *others = make_batch()
    masked = features.clone()
    masked[:, 2:6], masked[:, :, 30:50] = -5.0, -5.0
    return torch.cat((features, masked)), *(torch.cat((x, x)) for x in others)


def swapped(batch):
    return torch.cat((batch[3:], batch[:3]))


@pytest.mark.parametrize("weighting", available_weightings())
def test_terms_equal_the_plain_loops(weighting):
    model, batch = make_model(0), two_views()
    terms = objective(model, with_views(weighting=weighting))(*batch)
    logits, ranges, frames = full_lattice(model, *batch[:3])
    expected = reference.kd_losses(
        logits, swapped(logits), transcripts(*batch[2:]), ranges, 0, frames,
        variant="collapsed", weighting=weighting, temperature=1.0,
    )  # fmt: skip
    assert terms["consistency"].item() == pytest.approx(expected.sum().item(), rel=1e-4) and expected.min() > 1e-3

    encoder_out, lens = model.encode(*batch[:2])
    posteriors, plain = model.ctc_output(encoder_out).double().softmax(-1), 0.0
    for b in range(6):
        for t in range(int(lens[b])):
            own, other = posteriors[b, t].detach(), posteriors[(b + 3) % 6, t].detach()
            plain += sum(float(q * (q / p).log()) for q, p in zip(other, own, strict=True))
    assert terms["ctc_consistency"].item() == pytest.approx(plain, rel=1e-4) and plain > 0.01


def test_each_view_is_a_teacher_without_gradient():
    """As a copy of the model would be that hears the other view online."""
    model, batch = make_model(0), two_views()
    run = objective(model, with_views(weighting="student-occupancy"))
    run(*batch)["consistency"].backward()
    twin = make_model(0)
    online = objective(twin, kd=KdConfig(ranges="student", weighting="student-occupancy"), teacher=copy.deepcopy(twin))
    online(*batch, clean_features=swapped(batch[0]))["kd"].backward()
    for own, expected in zip(model.parameters(), twin.parameters(), strict=True):
        if expected.grad is not None:
            torch.testing.assert_close(own.grad, expected.grad, rtol=1e-4, atol=1e-5)
    model.zero_grad(set_to_none=True)
    run(*batch)["ctc_consistency"].backward()
    found = model.ctc_output.weight.grad
    encoder_out, lens = model.encode(*batch[:2])
    log_probs = model.ctc_output(encoder_out).log_softmax(-1)
    with torch.no_grad():
        teacher = swapped(log_probs)
    is_frame = (torch.arange(log_probs.shape[1]) < lens[:, None])[:, :, None]
    divergence = torch.nn.functional.kl_div(log_probs, teacher, reduction="none", log_target=True)
    (expected,) = torch.autograd.grad((divergence * is_frame).sum(), model.ctc_output.weight)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("variant", ["collapsed", "full"])
@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_beside_a_teacher_each_has_its_own_term(variant, temperature):
    generator = torch.Generator().manual_seed(3)
    logits, taught = (torch.randn(4, 5, 3, 6, generator=generator).double() for _ in range(2))
    symbols, ranges = torch.tensor([[1, 2]] * 4), torch.arange(3).expand(4, 5, 3)
    nodes = kept_nodes(symbols, ranges, 0, None, "regular")
    kds = [Distillation(variant, "occupancy", temperature), Distillation("collapsed", "uniform")]
    views = [TeacherView(OtherHalf()), TeacherView(Logits(taught))]
    _, views_term, teachers = lattice_terms(
        Logits(logits), nodes, list(zip(views, kds, strict=True)), get_backend("torch")
    )
    other = torch.cat((logits[2:], logits[:2]))
    for found, teacher, kd in ((views_term, other, kds[0]), (teachers, taught, kds[1])):
        options = dict(kd_variant=kd.variant, kd_weighting=kd.weighting, kd_temperature=kd.temperature)
        expected = rnnt_kd_loss(logits, teacher, symbols, ranges, 0, reduction="none", backend="torch", **options)
        torch.testing.assert_close(found, expected)


def test_both_views_keep_the_nodes_that_are_probable_in_the_mean():
    model, batch = make_model(0), two_views()
    options = dict(rnnt_type="regular", lm_only_scale=0.25, am_only_scale=0.0, backend=get_backend("torch"))
    found = prune(OurTransducer(model), *batch, **options)
    ranges = found.ranges(2, of_both=True)
    assert torch.equal(ranges[:3], ranges[3:])
    mean = [(x[:3] + x[3:]) / 2 for x in found.occupancies]
    assert torch.equal(ranges[:3], get_rnnt_prune_ranges(*mean, found.boundary[:3], 2))
    terms = objective(model, dataclasses.replace(with_views(), prune_range=2))(*batch)
    assert all(terms[name].isfinite() and terms[name] > 0 for name in ("pruned", "consistency", "ctc_consistency"))


def test_equal_views_say_nothing_and_validation_has_none():
    model, batch = make_model(0), [torch.cat((x, x)) for x in make_batch()]
    terms = objective(model, with_views())(*batch)
    for name in ("consistency", "ctc_consistency"):
        assert terms[name].item() == pytest.approx(0.0, abs=1e-4)
        assert objective(model, with_views())(*two_views(), with_kd=False)[name].item() == 0.0
        assert objective(model)(*two_views())[name].item() == 0.0
    odd = [x[:3] for x in batch]
    with pytest.raises(UserError, match="two views of a batch: 3 utterances; expected an even number"):
        objective(model, with_views(lattice=0.2, ctc=0.0))(*odd)


@pytest.mark.parametrize(
    "wrong", [dict(weighting="best"), dict(lattice=-1.0), dict(ctc=True), dict(views=3), dict(lattice=0.0, ctc=0.0)]
)
def test_options_that_cannot_be(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        ConsistencyConfig(**wrong)


def test_without_a_ctc_loss_its_views_are_not_compared():
    for given in (dict(ctc_loss_scale=0.0), dict()):
        config = dict(training=TrainingConfig(**given, consistency={"ctc": 0.0}), model=ModelConfig(ctc_head=not given))
        SystemConfig(**config)
    with pytest.raises(ValueError, match="training.consistency.ctc: 0.2, and ctc_loss_scale is 0"):
        TrainingConfig(ctc_loss_scale=0.0, consistency={})
    with pytest.raises(ValueError, match="training.consistency.ctc: 0.2, and model.ctc_head is false"):
        SystemConfig(training=TrainingConfig(consistency={}), model=ModelConfig(ctc_head=False))


OVERRIDES = ["small_student.training.consistency={lattice: 0.5}"]


def test_a_batch_holds_each_utterance_twice_and_no_more_seconds(tone_corpus):
    plain, views = (tone_corpus.config("small_student", overrides=overrides) for overrides in ([], OVERRIDES))
    tokenizer, seconds = Tokenizer.load(tone_corpus.bpe_dir), {}
    seconds = {info.id: info.duration for info in load_cuts_info(tone_corpus.train_cuts)}
    heard = {}
    for name, config, copies in (("plain", plain, 1), ("views", views, 2)):
        data = TrainingData(config, tokenizer, tone_corpus.train_cuts, tone_corpus.dev_cuts)
        data.select(lambda lens: lens // 4, True)
        batches = list(data.train_batches(0, 0, 0))
        heard[name] = sorted(id for batch in batches for id in batch.utterance_ids)
        for batch in batches:
            ids = batch.utterance_ids
            most = max(map(seconds.get, ids[: len(ids) // copies][:-1] or [0.0]))  # the last may be longer
            assert len(ids) * most <= 6.0
            if copies == 2:
                half = len(ids) // 2
                assert ids[:half] == ids[half:]
                assert torch.equal(batch.inputs["labels"][:half], batch.inputs["labels"][half:])
                assert not torch.equal(batch.inputs["features"][:half], batch.inputs["features"][half:])
        assert all(len(set(batch.utterance_ids)) == len(batch.utterance_ids) for batch in data.dev_batches())
    assert heard["views"] == sorted(heard["plain"] * 2)


def test_no_view_is_the_babble_behind_the_other(tone_corpus):
    training = "small_student.training"
    options = [f"{training}.specaugment=null", f"{training}.babble={{share: 1.0, snr_db: [0, 0], talkers: 1}}"]
    tokenizer = Tokenizer.load(tone_corpus.bpe_dir)
    for seconds, is_alone in ((2, True), (12, False)):
        overrides = [*OVERRIDES, *options, f"{training}.batch_seconds={seconds}"]
        config = tone_corpus.config("small_student", overrides=overrides)
        data = TrainingData(config, tokenizer, tone_corpus.train_cuts, tone_corpus.dev_cuts)
        data.select(lambda lens: lens // 4, True)
        for batch in data.train_batches(0, 0, 0):
            heard = batch.inputs["features"]
            (plain,) = read_batches(tone_corpus.train_cuts, [find(tone_corpus, batch.utterance_ids)])
            assert torch.equal(heard, plain.features) == (is_alone or len(heard) == 2)


def find(tone_corpus, ids):
    source = open_source(tone_corpus.train_cuts)
    return [source.find(id) for id in ids]


@pytest.mark.parametrize("with_kd", [False, True], ids=["alone", "beside a cached teacher"])
def test_it_trains_and_goes_on_where_it_stopped(tone_corpus, teacher_dir, tmp_path, with_kd):
    config = tone_corpus.config("small_student", with_kd=with_kd, overrides=OVERRIDES)
    options = dict(kd_cache=tone_corpus.cache(teacher_dir, tmp_path / "kd_cache")) if with_kd else {}
    goes_on_the_same(tone_corpus, config, tmp_path, 2, **options)
    line = metrics(tmp_path / "whole", "train")[-1]
    weighted = sum(line[f"{name}_loss"] * line[f"{name}_scale"] for name in ("simple", "pruned", "kd", "consistency"))
    weighted += 0.2 * (line["ctc_loss"] + line["ctc_consistency_loss"])
    assert line["loss"] == pytest.approx(weighted, rel=1e-4)
    assert line["consistency_loss"] > 0 and line["ctc_consistency_loss"] > 0 and (line["kd_loss"] > 0) == with_kd
    assert all("consistency_loss" not in line for line in metrics(tmp_path / "whole", "dev"))
