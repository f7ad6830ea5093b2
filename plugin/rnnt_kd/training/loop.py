"""The training loop: one system from its configuration to its averaged weights.

Killed at any moment and started again, a run on a CPU ends with the same bits: the
order of the batches is a function of (seed, epoch, number of processes), every random draw one of (seed,
step, process), and a checkpoint holds all the rest.  Several processes take a step together (data parallel): each has a
batch of its own, and the loss is that of all their frames.  The first one writes and talks.
"""

import contextlib
import functools
import math
import time
from pathlib import Path
from typing import Any, Dict, List, Optional, Sequence, Tuple, Union

import torch
from torch import Tensor, nn

from rnnt_kd import choices, progress_bar
from rnnt_kd.config import SystemConfig
from rnnt_kd.config_io import write_system_config
from rnnt_kd.data.selection import write_left_out
from rnnt_kd.errors import UserError
from rnnt_kd.lattice import get_backend
from rnnt_kd.sparsity import rounding
from rnnt_kd.sparsity.rounding import Rounder
from rnnt_kd.systems import store
from rnnt_kd.systems.compose import check_device
from rnnt_kd.systems.describe import describe
from rnnt_kd.text.tokenizer import Tokenizer
from rnnt_kd.training import checkpoint, learning_rates, moving_average, setup
from rnnt_kd.training import system_dir as system_files
from rnnt_kd.training.batches import Prepared, TrainingData
from rnnt_kd.training.objective import ONLY_IN_TRAINING, TERMS, Objective, loss_scales, weighted_sum
from rnnt_kd.training.optimizer import load_optimizer_tensors, make_optimizer, optimizer_tensors
from rnnt_kd.training.progress import Metrics, Say, Silent
from rnnt_kd.training.ranks import Ranks
from rnnt_kd.training.state import EpochResult, TrainState, draw_seed

KEEP_LAST = 2  # checkpoints, besides the best
NOT_FINITE = 1e30  # a loss that is no number: JSON has none, and it is never among the best


def train_system(
    config: SystemConfig,
    system_dir: Path,
    *,
    train_cuts: Path,
    dev_cuts: Path,
    tokenizer: Tokenizer,
    teacher_dir: Optional[Path] = None,
    more_teachers: Sequence[Path] = (),
    kd_cache: Optional[Path] = None,
    device: str = "cpu",
    backend_name: str = "auto",
    timeout: float = 1800.0,
    say: Say,
) -> None:
    """Train ``config`` in ``system_dir``, or go on with it, or find it finished.

    Args:
      config: ``vocab_size``, ``blank_id`` and the checksums are filled in here.
      more_teachers: whose posteriors are in the cache, in the mean with those of ``teacher_dir``.
      kd_cache: of stage 4, for ``config.kd.ranges`` "teacher"; then no teacher runs.
      timeout: seconds that the processes of this training, if there are several, wait for one another.
      say:    takes a line for the user.
    Raises:
      UserError: another run holds the folder, teacher (or its cache) and data do not fit together, a damaged
        checkpoint, no utterance left, a loss that stays non-finite; another process of this training ended or hangs.
    """
    check_device(config, device)
    ranks = Ranks(device, config.training.precision, timeout)
    with contextlib.ExitStack() as held, ranks.in_touch():
        backend = get_backend(backend_name, torch.device(device))
        teachers = [*([teacher_dir] if teacher_dir else []), *more_teachers]
        cache = setup.teacher_cache(config, tokenizer, kd_cache, teachers, train_cuts)
        config = ranks.first(lambda: setup.resolve(config, tokenizer, teacher_dir, cache))
        inputs = setup.input_digests(system_dir, train_cuts, dev_cuts, cache)
        record = system_files.system_record(system_dir, config, inputs, backend.__name__.rpartition(".")[2])
        data = TrainingData(
            config, tokenizer, train_cuts, dev_cuts, cache, device == "cuda", rank=ranks.rank, size=ranks.size
        )

        def is_to_do() -> bool:
            held.enter_context(system_files.locked(system_dir))
            if cache is not None and record.why_not():
                setup.check_cache(cache, config, data, say)  # before anything is written
            return system_files.open_system_dir(record, config, say)

        if ranks.first(is_to_do):
            training = Training(config, system_dir, data, ranks, backend, teacher_dir, say, record.identity())
            averaged = training.run()
            ranks.first(record.finish)  # before checkpoints go: killed here, it ends again
            ranks.first(lambda: checkpoint.tidy(training.checkpoints, 0, averaged))


class Weighted(nn.Module):
    """What DDP wraps: the loss alone leaves it with a gradient, so what no gradient reaches is seen as unused.

    ``forward(scales, ...)`` of the objective's arguments gives the weighted sum of its terms, and the terms.
    """

    def __init__(self, objective: Objective, ranks: Ranks):
        super().__init__()
        self.objective = objective
        if ranks.size > 1:  # torch warns where find_unused_parameters finds none
            self.never_used = nn.Parameter(torch.zeros(1))

    def forward(self, scales: Dict[str, float], *inputs: Any, **more: Any) -> Tuple[Tensor, Dict[str, Tensor]]:
        terms = self.objective(*inputs, **more)
        return weighted_sum(terms, scales), {name: term.detach() for name, term in terms.items()}


class Training:
    """One run.  ``run`` is the loop; the methods below it are its steps."""

    def __init__(
        self,
        config: SystemConfig,
        system_dir: Path,
        data: TrainingData,
        ranks: Ranks,
        backend,
        teacher_dir: Optional[Path],
        say: Say,
        identity: str,
    ):
        self.config, self.training, self.dir, self.data = config, config.training, system_dir, data
        self.teacher_dir, self.ranks, self.fabric, self.identity = teacher_dir, ranks, ranks.fabric, identity
        self.say, self.tell = (say, progress_bar.say) if ranks.is_first else (_nothing, _nothing)
        fabric = ranks.fabric
        torch.set_flush_denormal(True)  # AdamW's moments and the lattice are full of them
        torch.manual_seed(draw_seed(config.seed, "initial weights", 0))
        self.model, teacher = setup.models(config, teacher_dir, fabric.device)
        self.model.to(fabric.device)
        data.select(self.model.encoder.output_lengths, self.model.ctc_output is not None)
        ranks.first(lambda: write_left_out(system_dir / "left_out.json", data.selections))
        for name, chosen in data.selections.items():
            self.say(f"{config.name}: {chosen.summary(name)}")
        self.steps_per_epoch = data.batches_per_epoch()
        self.total_steps = self.steps_per_epoch * self.training.epochs
        self.sparsifier = setup.sparsifier(config, self.model, self.steps_per_epoch)
        self.moving_average = (
            moving_average.MovingAverage(self.model, self.training.ema_decay)
            if self.training.averaging == "ema"
            else None
        )
        self.rounder = Rounder(self.model, self.training.weight_bits)
        self.objective = Objective(self.model, self.training, backend, config.kd, teacher)
        self.optimizer = make_optimizer(self.model, self.training)
        self.wrapped, self.wrapped_optimizer = fabric.setup(Weighted(self.objective, ranks), self.optimizer)
        self.checkpoints = system_dir / "checkpoints"
        self.state = TrainState(processes=ranks.size)
        self.window = torch.zeros(len(TERMS) + 4, dtype=torch.float64, device=fabric.device)

    def run(self) -> List[str]:
        """All epochs that are left, then the averaged weights; returns the checkpoints that they come from."""
        training = self.training
        self._restore()
        state = self.state
        self.metrics: Union[Metrics, Silent] = Silent()
        progress: Union[progress_bar.ProgressBar, Silent] = Silent()
        if self.ranks.is_first:
            self.metrics = Metrics(self.dir, size=state.metrics_bytes, step=state.step)
            total = self.total_steps + state.first_step
            progress = progress_bar.ProgressBar(self.config.name, total, "steps", state.step)
        self.clock = time.monotonic()
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
        """One batch: forward, backward, clipped update, sparsification, rounding."""
        state, training = self.state, self.training
        step = state.step
        for group in self.optimizer.param_groups:
            group["lr"] = self._learning_rate(step)
        torch.manual_seed(draw_seed(self.config.seed, "dropout", step, self.ranks.rank))
        scales = loss_scales(state.position(step), training, self.config.kd)
        inputs = self.fabric.to_device(batch.inputs)
        if self.config.kd is not None and self.config.kd.in_place and self.sparsifier and self.sparsifier.turn(step):
            with self.fabric.autocast():
                inputs["densest"] = self.objective.in_place(**inputs)
        buffers = [buffer.clone() for buffer in self.model.buffers()]  # a BatchNorm's, of an encoder from elsewhere
        shown = self.sparsifier and self.sparsifier.shown(step, self.rounder.on_grid)
        with shown or contextlib.nullcontext():
            weighted, terms = self.wrapped(scales, **inputs)
            loss, divisor, whole_loss = self.ranks.shared_loss(weighted, terms["frames"])
            self.fabric.backward(loss)
        if self.sparsifier is not None:
            self.sparsifier.mask_gradients()
        norm = self.fabric.clip_gradients(
            self.wrapped, self.wrapped_optimizer, max_norm=training.gradient_clip, error_if_nonfinite=False
        )
        assert norm is not None
        state.step += 1
        state.batch_in_epoch += 1
        is_taken, is_known = self._is_finite(whole_loss, norm), bool(torch.isfinite(norm))  # all processes say the same
        if is_taken:
            if self.sparsifier is not None and is_known:
                self.sparsifier.see_gradients()
            self.wrapped_optimizer.step()
            state.nonfinite_in_a_row = 0
            self._add_to_window(terms, loss * divisor, norm if is_known else torch.zeros_like(norm))
        else:
            self.ranks.end_unscaling()
            for buffer, before in zip(self.model.buffers(), buffers):
                buffer.copy_(before)
            self._skip(batch, terms)
        self.optimizer.zero_grad(set_to_none=True)
        masks_move = self.sparsifier is not None and not self.sparsifier.frozen
        self.rounder.restore()
        if self.sparsifier is not None:
            self.sparsifier.step(state.position(state.step))
        if self.moving_average is not None and masks_move:
            self.moving_average.restart()
        elif self.moving_average is not None and is_taken and is_known:
            self.moving_average.update()
        self.rounder.round()

    def _learning_rate(self, step: int) -> float:
        training = self.training
        schedule = choices.function(learning_rates, training.schedule, "training.schedule")
        return schedule(
            self.state.position(step),
            peak=training.learning_rate,
            warmup_steps=training.warmup_steps,
            total_steps=self.total_steps,
            final_fraction=training.final_learning_rate_fraction,
        )

    def _is_finite(self, loss: Tensor, norm: Tensor) -> bool:
        """Or, with 16-mixed, gradients that its scaler made infinite, which it meets by itself."""
        if self.training.precision == "16-mixed" and self.ranks.gradient_scale() >= 1.0:
            return math.isfinite(loss.item())
        return bool(torch.isfinite(loss.detach() + norm))

    def _skip(self, batch: Prepared, terms: Dict[str, Tensor]) -> None:
        """A batch whose loss or gradient is not finite changes nothing but the counters."""
        state, limit = self.state, self.training.max_nonfinite_batches
        state.nonfinite_in_a_row += 1
        state.nonfinite_batches += 1
        values = {name: str(self.ranks.total(terms[name]).item()) for name in TERMS}
        utterances = list(dict.fromkeys(one for ids in self.ranks.gathered(batch.utterance_ids) for one in ids))
        self.metrics.write("nonfinite", state.step, state.epoch + 1, {"utterances": utterances, **values})
        names = " ".join(utterances)
        self.tell(f"{self.config.name}: step {state.step}: loss or gradient not finite, batch skipped: {names}")
        if state.nonfinite_in_a_row >= limit:
            raise UserError(
                self.dir,
                f"loss or gradient not finite in {limit} batches in a row, up to step {state.step}; the last: {names}",
                "",
                "lower training.learning_rate, or look at these utterances; the batches are listed in metrics.jsonl",
            )

    def _add_to_window(self, terms: Dict[str, Tensor], loss_sum: Tensor, norm: Tensor) -> None:
        """Sums of this process; ``_log`` and ``_save`` add those of the others."""
        frames = terms["frames"]
        sums = [terms[name] for name in TERMS]
        self.window += torch.stack([*sums, loss_sum.detach(), frames, norm, torch.ones_like(frames)]).double()

    def _log(self) -> Optional[float]:
        """Write the means since the last line; returns the loss per frame."""
        *sums, loss, frames, norm, batches = self.ranks.total(self.window).tolist()
        self.window = torch.zeros_like(self.window)
        if batches == 0:
            return None
        state = self.state
        scales = loss_scales(state.position(state.step - 1), self.training, self.config.kd)
        values = {
            "loss": loss / frames,
            **{f"{name}_loss": value / frames for name, value in zip(TERMS, sums, strict=True)},
        }
        values.update({f"{name}_scale": scales[name] for name in TERMS if name != "ctc"})
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
            self.tell(
                f"epoch {state.epoch + 1}/{training.epochs} step {state.step} dev loss {means['pruned_loss']:.4f}"
                f" (simple {means['simple_loss']:.4f}, ctc {means['ctc_loss']:.4f})"
            )
            frozen = self.sparsifier is None or self.sparsifier.frozen
            state.results.append(EpochResult(name, state.epoch + 1, state.step, means["pruned_loss"], frozen))
        state.epoch, state.batch_in_epoch = state.epoch + 1, 0
        self._save(name)

    @torch.no_grad()
    def _validate(self) -> Dict[str, float]:
        """Loss terms per encoder frame on the development cuts, of which each process takes a part."""
        self.ranks.average_buffers(self.model)
        self.wrapped.eval()
        sums = torch.zeros(len(TERMS) + 1, dtype=torch.float64, device=self.fabric.device)
        for batch in self.data.dev_batches():
            with self.fabric.autocast():  # DDP would wait here for the others, who may have no batch left
                given = self.objective(**self.fabric.to_device(batch.inputs), with_kd=False)
            sums += torch.stack([given[name] for name in (*TERMS, "frames")]).double()
        self.wrapped.train()
        *values, frames = self.ranks.total(sums).tolist()
        terms = dict(zip(TERMS, values, strict=True))
        means = {f"{name}_loss": value / frames for name, value in terms.items() if name not in ONLY_IN_TRAINING}
        return {name: mean if math.isfinite(mean) else NOT_FINITE for name, mean in means.items()}

    def _save(self, name: str) -> None:
        """The first process writes, once all have been found to hold the same."""
        state = self.state
        self.ranks.average_buffers(self.model)
        model, masks = self.model.state_dict(), self.sparsifier.state_dict() if self.sparsifier is not None else {}
        self.ranks.check_same({**model, **{f"sparsifier {key}": value for key, value in masks.items()}})
        self.window = self.ranks.total(self.window) * self.ranks.is_first  # as it is after a resume
        state.window, state.metrics_bytes = self.window.tolist(), self.metrics.size
        now = time.monotonic()
        state.train_seconds, self.clock = state.train_seconds + now - self.clock, now
        averaged = self.moving_average.tensors() if self.moving_average is not None else {}
        optimizer = {**optimizer_tensors(self.optimizer, self.model), **averaged, **self.rounder.tensors()}
        scalars = {**state.to_dict(), "precision": self.fabric.strategy.precision.state_dict()}

        def write() -> None:
            checkpoint.save_checkpoint(self.checkpoints / name, model, optimizer, masks, scalars, self.identity)
            checkpoint.tidy(self.checkpoints, KEEP_LAST, [result.checkpoint for result in self._best()])

        self.ranks.first(write)

    def _restore(self) -> None:
        """Go on from the newest checkpoint, if there is one; it is read by the first process and sent to the others."""
        found: List[checkpoint.Checkpoint] = []

        def newest() -> Optional[Tuple[Path, Dict[str, Any]]]:
            checkpoint.remove_leftovers(self.checkpoints)
            found.extend(checkpoint.load_newest(self.checkpoints, self.identity, self.ranks.size, self.say))
            return (found[0].path, found[0].state) if found else None

        place = self.ranks.first(newest)
        if place is None:
            return
        path, values = place
        model = self.ranks.tensors(lambda: found[0].model)
        optimizer = self.ranks.tensors(lambda: found[0].optimizer)
        masks = self.ranks.tensors(lambda: found[0].sparsifier)
        precision = values.pop("precision", {})
        self.state = state = TrainState.from_dict(values, path / checkpoint.STATE)
        if state.processes != self.ranks.size:  # at an epoch's end: its length in steps is another one
            state.processes, state.first_step = self.ranks.size, state.step - state.epoch * self.steps_per_epoch
            if self.sparsifier is not None:
                masks["settings"] = self.sparsifier.state_dict()["settings"]
        next_step = f"delete {path}"
        store.load_weights(self.model, model, path / checkpoint.MODEL, next_step)
        averaged, rests = (
            {name: optimizer.pop(name) for name in list(optimizer) if name.startswith(prefix)}
            for prefix in (moving_average.PREFIX, rounding.PREFIX)
        )
        load_optimizer_tensors(self.optimizer, self.model, optimizer, path / checkpoint.OPTIMIZER, next_step)
        if self.moving_average is not None:
            self.moving_average.load(averaged)
        self.rounder.load(rests)
        if self.sparsifier is not None:
            self.sparsifier.load_state_dict(masks)
        self.fabric.strategy.precision.load_state_dict(precision)
        if len(state.window) == len(self.window):  # else of an earlier release, which had fewer terms
            window = torch.tensor(state.window, dtype=torch.float64, device=self.fabric.device)
            self.window = window * self.ranks.is_first
        position = f"epoch {state.epoch + 1}, step {state.step} of about {self.total_steps + state.first_step}"
        self.say(f"{self.config.name}: resumes from {path.name} ({position})")

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
            self._end_weights()
            return self.state.results[-1:], self._validate()
        trials = []
        best = self.ranks.first(self._best)
        for count in range(1, len(best) + 1):
            folders = [self.checkpoints / result.checkpoint for result in best[:count]]
            weights = self.ranks.tensors(functools.partial(checkpoint.average, folders, self.identity))
            store.load_weights(self.model, weights, self._weights(best[0]), "")
            self._end_weights()
            trials.append(
                (self._validate(), {name: tensor.clone() for name, tensor in self.model.state_dict().items()})
            )
        chosen = min(range(len(trials)), key=lambda index: (trials[index][0]["pruned_loss"], -index))
        means, weights = trials[chosen]
        self.model.load_state_dict(weights)
        return best[: chosen + 1], means

    def _end_weights(self) -> None:
        """After averaging: zero what the masks drop, and back to the grid."""
        if self.sparsifier is not None:
            self.sparsifier.finalize()
        self.rounder.round()

    def _finish(self) -> List[str]:
        """Average the best epochs, measure, and write what marks the system as finished."""
        best, means = self._average()
        if means["pruned_loss"] == NOT_FINITE:
            next_step = f"remove {self.dir} and lower training.learning_rate"
            raise UserError(self.dir, "the loss on the development set is not finite", "a number", next_step)
        self.ranks.check_same(self.model.state_dict())
        self.ranks.first(lambda: self._write_system(best, means))
        return [result.checkpoint for result in best]

    def _write_system(self, best: List[EpochResult], means: Dict[str, float]) -> None:
        """Sparser members of a family are systems in a folder of their own; the densest is this one."""
        folders, described = [self.dir / folder for folder in store.member_dirs(self.config)], []
        for member, folder in enumerate(folders):
            folder.mkdir(parents=True, exist_ok=True)
            described.append(self._write_weights(folder, member))
        self.state.train_seconds += time.monotonic() - self.clock
        epochs = ", ".join(str(epoch) for epoch in sorted(result.epoch for result in best))
        what = "epochs" if self.moving_average is None else "the weights of all steps to epoch"
        self.tell(
            f"{self.config.name}: averaged {what} {epochs}, dev loss {means['pruned_loss']:.4f},"
            f" {self.dir / store.FINAL}"
        )
        trained = dict(
            train_seconds=round(self.state.train_seconds, 1),
            steps=self.state.step,
            epochs=self.state.epoch,
            best_dev_loss=best[0].dev_loss,
            average_dev_loss=means["pruned_loss"],
            averaged_epochs=sorted(result.epoch for result in best),
            nonfinite_batches=self.state.nonfinite_batches,
        )
        for folder, about in reversed(list(zip(folders, described))):  # the one that says it is finished, last
            store.write_system(folder, {**about, **trained})

    def _write_weights(self, folder: Path, member: int = 0) -> Dict[str, Any]:
        """Weights and configuration of a member; returns what ``describe`` says."""
        report, weights = {}, self.model.state_dict()
        if self.sparsifier is not None:
            report = self.sparsifier.sparsity_report(self.model, member)
            weights = self.rounder.on_grid(self.sparsifier.cut(weights, member))
        config = store.as_cut(self.config, weights, member)
        write_system_config(folder / store.CONFIG, config)
        store.write_tensors(folder / store.FINAL, weights)
        parameters = {name: weights[name] for name, _ in self.model.named_parameters() if name in weights}
        return describe(config, parameters, report, self.teacher_dir, self.tell)


def _nothing(line: str) -> None:
    """What the others say."""
