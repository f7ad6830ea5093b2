"""What lower precision may touch.  There is no scaler of gradients on a CPU but torch's own: it is put in by hand."""

import math

import pytest
import torch
from lightning_fabric import Fabric
from lightning_fabric.plugins.environments import LightningEnvironment
from lightning_fabric.plugins.precision.amp import MixedPrecision
from training_cases import metrics

from rnnt_kd.errors import UserError
from rnnt_kd.training import loop, ranks
from rnnt_kd.training.loop import Training
from rnnt_kd.training.objective import Objective

pytestmark = pytest.mark.skipif(torch.__version__.startswith("1."), reason="torch 1 has no mixed precision on a CPU")
HALF = "training.precision=16-mixed"


@pytest.fixture
def scaler(monkeypatch):
    """Trainings have this one."""
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)

    def fabric(**options):
        precision = MixedPrecision("16-mixed", "cpu", scaler=scaler)
        return Fabric(accelerator="cpu", devices=1, plugins=[LightningEnvironment(), precision])

    monkeypatch.setattr(ranks, "Fabric", fabric)
    monkeypatch.setattr(loop, "check_device", lambda *_: None)
    return scaler


def spied(monkeypatch, before=lambda self, batch: None, after=lambda self: None):
    real = Training._train_step

    def step(self, batch):
        before(self, batch)
        real(self, batch)
        after(self)

    monkeypatch.setattr(Training, "_train_step", step)


def test_a_nonfinite_batch_is_skipped_with_a_scaler_of_gradients_too(scaler, tone_corpus, tmp_path, monkeypatch):
    def poison(self, batch):
        if self.state.step in (1, 2):
            batch.inputs["features"].mul_(math.nan)

    spied(monkeypatch, before=poison)
    config = tone_corpus.config(overrides=[f"teacher.{HALF}", "teacher.training.epochs=1"])
    tone_corpus.train(config, tmp_path / "x")
    assert [line["step"] for line in metrics(tmp_path / "x", "nonfinite")] == [2, 3]
    assert scaler.get_scale() == 2.0**8  # halved at each


def test_gradients_that_overflow_are_in_no_score_and_no_log(scaler, tone_corpus, teacher_dir, tmp_path, monkeypatch):
    scaler.load_state_dict({**scaler.state_dict(), "scale": 2.0**40})
    seen = []

    def look(self):
        seen.append((scaler.get_scale(), torch.isfinite(self.sparsifier._units.changes).all().item()))

    spied(monkeypatch, after=look)
    units = {"target": 0.5, "structure": "ffn", "score": "taylor"}
    config = tone_corpus.config("sparse_student", sparsity=units, overrides=[f"sparse_student.{HALF}"])
    tone_corpus.train(config, tmp_path / "x", teacher_dir=teacher_dir)
    assert seen[0][0] == 2.0**39 and all(is_finite for _, is_finite in seen)  # the first overflowed
    assert all(math.isfinite(line["gradient_norm"]) for line in metrics(tmp_path / "x", "train"))


def test_gradients_that_are_never_finite_end_the_training_at_any_scale(scaler, tone_corpus, tmp_path, monkeypatch):
    def poison(self, batch):
        if self.state.step == 0:
            self.model.joiner.output_linear.weight.register_hook(lambda gradient: gradient * math.nan)

    spied(monkeypatch, before=poison)
    config = tone_corpus.config(overrides=[f"teacher.{HALF}", "teacher.training.epochs=9"])
    with pytest.raises(UserError, match="loss or gradient not finite in 5 batches in a row, up to step 16"):
        tone_corpus.train(config, tmp_path / "x")
    assert not (tmp_path / "x" / "system.json").exists()


def test_a_batch_that_is_skipped_does_not_move_the_average(tone_corpus, tmp_path, monkeypatch):
    averages = []

    def poison(self, batch):
        if self.state.step == 3:
            batch.inputs["features"].mul_(math.nan)

    def look(self):
        averages.append({name: tensor.clone() for name, tensor in self.moving_average.tensors().items()})

    spied(monkeypatch, poison, look)
    config = tone_corpus.config(overrides=["teacher.training.averaging=ema", "teacher.training.epochs=1"])
    tone_corpus.train(config, tmp_path / "x")
    same = [
        all(torch.equal(before[name], after[name]) for name in after) for before, after in zip(averages, averages[1:])
    ]
    assert same[:4] == [False, False, True, False]


def test_inputs_reach_the_model_as_they_were_loaded(tone_corpus, teacher_dir, tmp_path, monkeypatch):
    """Autocast rounds what it multiplies; features and the teacher's posteriors are no weights."""
    real, seen = Objective.forward, set()

    def forward(self, **inputs):
        if self.training:
            seen.add((inputs["features"].dtype, inputs["cached"].packed.dtype))
        return real(self, **inputs)

    monkeypatch.setattr(Objective, "forward", forward)
    config = tone_corpus.config(
        "small_student", with_kd=True, overrides=["small_student.training.precision=bf16-mixed"]
    )
    cache = tone_corpus.cache(teacher_dir, tmp_path / "kd_cache")
    tone_corpus.train(config, tmp_path / "x", kd_cache=cache)
    assert seen == {(torch.float32, torch.float16)}
