"""The training loop: one system from its configuration to its averaged weights.

Killed at any moment and started again, a run on a CPU ends with the same bits: the
order of the batches is a function of (seed, epoch), every random draw one of (seed,
step), and a checkpoint holds all the rest.
"""

import contextlib
import math
import time
from pathlib import Path
from typing import Dict, List, Optional, Tuple

import torch
from lightning_fabric import Fabric
from torch import Tensor

from rnnt_kd import choices, progress_bar
from rnnt_kd.config import SystemConfig
from rnnt_kd.data.selection import write_left_out
from rnnt_kd.errors import UserError
from rnnt_kd.lattice import get_backend
from rnnt_kd.systems import store
from rnnt_kd.systems.compose import check_device
from rnnt_kd.systems.describe import describe
from rnnt_kd.text.tokenizer import Tokenizer
from rnnt_kd.training import checkpoint, learning_rates, moving_average, setup
from rnnt_kd.training import system_dir as system_files
from rnnt_kd.training.batches import Prepared, TrainingData
from rnnt_kd.training.objective import TERMS, Objective, combine, loss_scales
from rnnt_kd.training.optimizer import load_optimizer_tensors, make_optimizer, optimizer_tensors
from rnnt_kd.training.progress import Metrics, Say
from rnnt_kd.training.state import EpochResult, TrainState, draw_seed

KEEP_LAST = 2  # checkpoints, besides the best


def train_system(
    config: SystemConfig,
    system_dir: Path,
    *,
    train_cuts: Path,
    dev_cuts: Path,
    tokenizer: Tokenizer,
    teacher_dir: Optional[Path] = None,
    kd_cache: Optional[Path] = None,
    device: str = "cpu",
    backend_name: str = "auto",
    say: Say,
) -> None:
    """Train ``config`` in ``system_dir``, or go on with it, or find it finished.

    Args:
      config: ``vocab_size``, ``blank_id`` and the checksums are filled in here.
      kd_cache: of stage 4, for ``config.kd.ranges`` "teacher"; then no teacher runs.
      say:    takes a line for the user.
    Raises:
      UserError: another run holds the folder, teacher (or its cache) and data do not fit together,
        a damaged checkpoint, no utterance left, or a loss that stays non-finite.
    """
    check_device(config, device)
    backend = get_backend(backend_name, torch.device(device))
    cache = setup.teacher_cache(config, tokenizer, kd_cache, teacher_dir, train_cuts)
    config = setup.resolve(config, tokenizer, teacher_dir, cache)
    inputs = setup.input_digests(train_cuts, dev_cuts, cache)
    record = system_files.system_record(system_dir, config, inputs, backend.__name__.rpartition(".")[2])
    data = TrainingData(config, tokenizer, train_cuts, dev_cuts, cache, pin_memory=device == "cuda")
    with system_files.locked(system_dir):
        if cache is not None and record.why_not():
            setup.check_cache(cache, config, data, say)  # before anything is written
        if system_files.open_system_dir(record, config, say):
            fabric = Fabric(accelerator=device, devices=1, precision=config.training.precision)
            training = Training(config, system_dir, data, fabric, backend, teacher_dir, say, record.identity())
            averaged = training.run()
            record.finish([store.CONFIG])  # before checkpoints go: killed here, the run ends again, the same
            checkpoint.tidy(training.checkpoints, 0, averaged)


class Training:
    """One run.  ``run`` is the loop; the methods below it are its steps."""

    def __init__(
        self,
        config: SystemConfig,
        system_dir: Path,
        data: TrainingData,
        fabric: Fabric,
        backend,
        teacher_dir: Optional[Path],
        say: Say,
        identity: str,
    ):
        self.config, self.training, self.dir, self.data = config, config.training, system_dir, data
        self.teacher_dir, self.fabric, self.say, self.identity = teacher_dir, fabric, say, identity
        torch.set_flush_denormal(True)  # AdamW's moments and the lattice are full of them
        torch.manual_seed(draw_seed(config.seed, "initial weights", 0))
        self.model, teacher = setup.models(config, teacher_dir, fabric.device)
        self.model.to(fabric.device)
        data.select(self.model.encoder.output_lengths, self.model.ctc_output is not None)
        write_left_out(system_dir / "left_out.json", data.selections)
        for name, chosen in data.selections.items():
            say(f"{config.name}: {chosen.summary(name)}")
        steps_per_epoch = data.batches_per_epoch()
        self.total_steps = steps_per_epoch * self.training.epochs
        self.sparsifier = setup.sparsifier(config, self.model, steps_per_epoch)
        self.moving_average = (
            moving_average.MovingAverage(self.model, self.training.ema_decay)
            if self.training.averaging == "ema"
            else None
        )
        self.objective = Objective(self.model, self.training, backend, config.kd, teacher)
        self.optimizer = make_optimizer(self.model, self.training)
        self.wrapped, self.wrapped_optimizer = fabric.setup(self.objective, self.optimizer)
        self.checkpoints = system_dir / "checkpoints"
        self.state = TrainState()
        self.window = torch.zeros(len(TERMS) + 4, dtype=torch.float64, device=fabric.device)

    def run(self) -> List[str]:
        """All epochs that are left, then the averaged weights; returns the checkpoints that they come from."""
        training = self.training
        self._restore()
        state = self.state
        self.metrics = Metrics(self.dir, size=state.metrics_bytes, step=state.step)
        self.clock = time.monotonic()
        progress = progress_bar.ProgressBar(self.config.name, self.total_steps, "steps", state.step)
        with contextlib.closing(self.metrics), progress:
            while state.epoch < training.epochs:
                progress.what = f"epoch {state.epoch + 1}/{training.epochs}"
                for batch in self.data.train_batches(state.epoch, state.batch_in_epoch, state.step):
                    self._train_step(batch)
                    loss = self._log() if state.step % training.log_every_steps == 0 else None
                    progress.update(note="" if loss is None else f"loss {loss:.4f}")
                    if state.step % training.checkpoint_every_steps == 0:
                        self._save(checkpoint.checkpoint_name(state.step))
                self._end_epoch()
            return self._finish()

    def _train_step(self, batch: Prepared) -> None:
        """One batch: forward, backward, clipped update, sparsification."""
        state, training = self.state, self.training
        step = state.step
        for group in self.optimizer.param_groups:
            group["lr"] = self._learning_rate(step)
        torch.manual_seed(draw_seed(self.config.seed, "dropout", step))
        scales = loss_scales(step, training, self.config.kd)
        terms = self.wrapped(**self.fabric.to_device(batch.inputs))
        loss = combine(terms, scales)
        self.fabric.backward(loss)
        if self.sparsifier is not None:
            self.sparsifier.mask_gradients()
        norm = self.fabric.clip_gradients(
            self.wrapped, self.wrapped_optimizer, max_norm=training.gradient_clip, error_if_nonfinite=False
        )
        assert norm is not None
        state.step += 1
        state.batch_in_epoch += 1
        if self._is_finite(loss, norm):
            self.wrapped_optimizer.step()
            state.nonfinite_in_a_row = 0
            self._add_to_window(terms, loss, norm)
        else:
            self._skip(batch, terms)
        self.optimizer.zero_grad(set_to_none=True)
        masks_move = self.sparsifier is not None and not self.sparsifier.frozen
        if self.sparsifier is not None:
            self.sparsifier.step(state.step)
        if self.moving_average is not None:
            self.moving_average.restart() if masks_move else self.moving_average.update()

    def _learning_rate(self, step: int) -> float:
        training = self.training
        schedule = choices.function(learning_rates, training.schedule, "training.schedule")
        return schedule(
            step,
            peak=training.learning_rate,
            warmup_steps=training.warmup_steps,
            total_steps=self.total_steps,
            final_fraction=training.final_learning_rate_fraction,
        )

    def _is_finite(self, loss: Tensor, norm: Tensor) -> bool:
        if self.training.precision == "16-mixed":  # the gradient scaler meets infinite gradients by itself
            return math.isfinite(loss.item())
        return bool(torch.isfinite(loss.detach() + norm))

    def _skip(self, batch: Prepared, terms: Dict[str, Tensor]) -> None:
        """A batch whose loss or gradient is not finite changes nothing but the counters."""
        state, limit = self.state, self.training.max_nonfinite_batches
        state.nonfinite_in_a_row += 1
        state.nonfinite_batches += 1
        values = {name: str(terms[name].item()) for name in TERMS}
        self.metrics.write("nonfinite", state.step, state.epoch + 1, {"utterances": batch.utterance_ids, **values})
        names = " ".join(batch.utterance_ids)
        progress_bar.say(f"{self.config.name}: step {state.step}: loss or gradient not finite, batch skipped: {names}")
        if state.nonfinite_in_a_row >= limit:
            raise UserError(
                self.dir,
                f"loss or gradient not finite in {limit} batches in a row, up to step {state.step}; the last: {names}",
                "",
                "lower training.learning_rate, or look at these utterances; the batches are listed in metrics.jsonl",
            )

    def _add_to_window(self, terms: Dict[str, Tensor], loss: Tensor, norm: Tensor) -> None:
        frames = terms["frames"]
        sums = [terms[name].detach() for name in TERMS]
        self.window += torch.stack([*sums, loss.detach() * frames, frames, norm, torch.ones_like(frames)]).double()

    def _log(self) -> Optional[float]:
        """Write the means since the last line; returns the loss per frame."""
        *sums, loss, frames, norm, batches = self.window.tolist()
        self.window = torch.zeros_like(self.window)
        if batches == 0:
            return None
        state = self.state
        scales = loss_scales(state.step - 1, self.training, self.config.kd)
        values = {
            "loss": loss / frames,
            **{f"{name}_loss": value / frames for name, value in zip(TERMS, sums, strict=True)},
        }
        values.update({f"{name}_scale": scales[name] for name in ("simple", "pruned", "kd")})
        values.update(learning_rate=self._learning_rate(state.step - 1), gradient_norm=norm / batches)
        if self.sparsifier is not None:
            values["target_sparsity"] = self.sparsifier.current_target
        values["seconds"] = round(state.train_seconds + time.monotonic() - self.clock, 3)
        self.metrics.write("train", state.step, state.epoch + 1, values)
        return loss / frames

    def _end_epoch(self) -> None:
        """Validate where due, then a checkpoint at the start of the next epoch."""
        state, training = self.state, self.training
        name = checkpoint.checkpoint_name(state.step, state.epoch + 1)
        if (state.epoch + 1) % training.validate_every_epochs == 0 or state.epoch + 1 == training.epochs:
            means = self._validate()
            self.metrics.write("dev", state.step, state.epoch + 1, means)
            progress_bar.say(
                f"epoch {state.epoch + 1}/{training.epochs} step {state.step} dev loss {means['pruned_loss']:.4f}"
                f" (simple {means['simple_loss']:.4f}, ctc {means['ctc_loss']:.4f})"
            )
            frozen = self.sparsifier is None or self.sparsifier.frozen
            state.results.append(EpochResult(name, state.epoch + 1, state.step, means["pruned_loss"], frozen))
        state.epoch, state.batch_in_epoch = state.epoch + 1, 0
        self._save(name)

    @torch.no_grad()
    def _validate(self) -> Dict[str, float]:
        """Loss terms per encoder frame on the development cuts."""
        self.wrapped.eval()
        sums = torch.zeros(len(TERMS) + 1, dtype=torch.float64, device=self.fabric.device)
        for batch in self.data.dev_batches():
            terms = self.wrapped(**self.fabric.to_device(batch.inputs), with_kd=False)
            sums += torch.stack([terms[name] for name in TERMS] + [terms["frames"]]).double()
        self.wrapped.train()
        *values, frames = sums.tolist()
        means = {f"{name}_loss": value / frames for name, value in zip(TERMS, values, strict=True) if name != "kd"}
        if not math.isfinite(means["pruned_loss"]):
            means["pruned_loss"] = float("1e30")  # JSON has no infinity; never among the best
        return means

    def _save(self, name: str) -> None:
        state = self.state
        state.window, state.metrics_bytes = self.window.tolist(), self.metrics.size
        now = time.monotonic()
        state.train_seconds, self.clock = state.train_seconds + now - self.clock, now
        averaged = self.moving_average.tensors() if self.moving_average is not None else {}
        checkpoint.save_checkpoint(
            self.checkpoints / name,
            self.model.state_dict(),
            {**optimizer_tensors(self.optimizer, self.model), **averaged},
            self.sparsifier.state_dict() if self.sparsifier is not None else {},
            {**state.to_dict(), "precision": self.fabric.strategy.precision.state_dict()},
            self.identity,
        )
        checkpoint.tidy(self.checkpoints, KEEP_LAST, [result.checkpoint for result in self._best()])

    def _restore(self) -> None:
        """Go on from the newest checkpoint, if there is one."""
        checkpoint.remove_leftovers(self.checkpoints)
        found = checkpoint.list_checkpoints(self.checkpoints)
        if not found:
            return
        saved = checkpoint.load_checkpoint(found[-1], self.identity)
        precision = saved.state.pop("precision", {})
        self.state = TrainState.from_dict(saved.state, found[-1] / checkpoint.STATE)
        next_step = f"delete {found[-1]}"
        store.load_weights(self.model, saved.model, found[-1] / checkpoint.MODEL, next_step)
        averaged, of_optimizer = moving_average.split(saved.optimizer)
        load_optimizer_tensors(self.optimizer, self.model, of_optimizer, found[-1] / checkpoint.OPTIMIZER, next_step)
        if self.moving_average is not None:
            self.moving_average.load(averaged)
        if self.sparsifier is not None:
            self.sparsifier.load_state_dict(saved.sparsifier)
        self.fabric.strategy.precision.load_state_dict(precision)
        self.window = torch.tensor(self.state.window, dtype=torch.float64, device=self.fabric.device)
        position = f"epoch {self.state.epoch + 1}, step {self.state.step} of about {self.total_steps}"
        self.say(f"{self.config.name}: resumes from {found[-1].name} ({position})")

    def _best(self) -> List[EpochResult]:
        """The epochs that may be averaged, best first; the newest if none had frozen masks."""
        newest = self.state.results[-1:]
        results = [result for result in self.state.results if self._weights(result).exists() or result in newest]
        usable = [result for result in results if result.can_average] or results[-1:]
        return sorted(usable, key=lambda result: (result.dev_loss, -result.epoch))[: self.training.average_best]

    def _weights(self, result: EpochResult) -> Path:
        return self.checkpoints / result.checkpoint / checkpoint.MODEL

    def _average(self) -> Tuple[List[EpochResult], Dict[str, float]]:
        """Put the averaged weights into the model: the moving average, or the mean of the best epochs, of as many, up
        to ``average_best``, as do best together.  Returns the epochs that they come from, and their dev loss."""
        if self.moving_average is not None:
            self.moving_average.copy_to_model()
            if self.sparsifier is not None:
                self.sparsifier.finalize()
            return self.state.results[-1:], self._validate()
        trials = []
        best = self._best()
        for count in range(1, len(best) + 1):
            folders = [self.checkpoints / result.checkpoint for result in best[:count]]
            weights = checkpoint.average(folders, self.identity)
            store.load_weights(self.model, weights, self._weights(best[0]), "")
            if self.sparsifier is not None:
                self.sparsifier.finalize()
            trials.append(
                (self._validate(), {name: tensor.clone() for name, tensor in self.model.state_dict().items()})
            )
        chosen = min(range(len(trials)), key=lambda index: (trials[index][0]["pruned_loss"], -index))
        means, weights = trials[chosen]
        self.model.load_state_dict(weights)
        return best[: chosen + 1], means

    def _finish(self) -> List[str]:
        """Average the best epochs, measure, and write what marks the system as finished."""
        best, means = self._average()
        store.write_tensors(self.dir / store.FINAL, self.model.state_dict())
        self.state.train_seconds += time.monotonic() - self.clock
        epochs = ", ".join(str(epoch) for epoch in sorted(result.epoch for result in best))
        what = "epochs" if self.moving_average is None else "the weights of all steps to epoch"
        progress_bar.say(
            f"{self.config.name}: averaged {what} {epochs}, dev loss {means['pruned_loss']:.4f},"
            f" {self.dir / store.FINAL}"
        )
        values = describe(self.config, self.model, self.sparsifier, self.teacher_dir, progress_bar.say)
        values.update(
            train_seconds=round(self.state.train_seconds, 1),
            steps=self.state.step,
            epochs=self.state.epoch,
            best_dev_loss=best[0].dev_loss,
            average_dev_loss=means["pruned_loss"],
            averaged_epochs=sorted(result.epoch for result in best),
            nonfinite_batches=self.state.nonfinite_batches,
        )
        store.write_system(self.dir, values)
        return [result.checkpoint for result in best]
