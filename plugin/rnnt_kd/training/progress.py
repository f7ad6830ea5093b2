"""What a run tells while it runs: a bar or plain lines, ``metrics.jsonl``, TensorBoard."""

import json
import os
import time
from pathlib import Path
from typing import Any, Callable, Dict, Optional, TextIO

from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.summary.writer.event_file_writer import EventFileWriter
from tqdm import tqdm

PLAIN_LINE_SECONDS = 15.0  # at most one plain line in this time


class Progress:
    """A tqdm bar on a terminal; elsewhere lines ``epoch 3/30 step 220/1540 loss 0.412 eta 4:12``.

    Args:
      stream: where to, normally stderr.
      first_step: where this process starts counting; the time left is measured from here.
    """

    def __init__(self, stream: TextIO, *, epochs: int, total_steps: int, first_step: int):
        self.stream, self.epochs, self.total_steps, self.first_step = stream, epochs, total_steps, first_step
        self.start = self.last_line = time.monotonic()
        self.bar = None
        if stream.isatty():
            self.bar = tqdm(
                total=total_steps, initial=first_step, file=stream, unit="step", dynamic_ncols=True, smoothing=0.05
            )

    def update(self, step: int, epoch: int, loss: Optional[float]) -> None:
        """``step`` batches are done; ``epoch`` counts from 1; ``loss`` only when newly measured."""
        if self.bar is not None:
            self.bar.set_description(f"epoch {epoch}/{self.epochs}", refresh=False)
            if loss is not None:
                self.bar.set_postfix_str(f"loss {loss:.4f}", refresh=False)
            self.bar.update(step - self.bar.n)
        elif loss is not None and time.monotonic() - self.last_line >= PLAIN_LINE_SECONDS:
            self.last_line = time.monotonic()
            self.say(
                f"epoch {epoch}/{self.epochs} step {step}/{self.total_steps} loss {loss:.4f} eta {self._left(step)}"
            )

    def say(self, line: str) -> None:
        """A line that does not tear the bar."""
        if self.bar is not None:
            tqdm.write(line, file=self.stream)
        else:
            self.stream.write(line + "\n")
            self.stream.flush()

    def close(self) -> None:
        if self.bar is not None:
            self.bar.close()

    def _left(self, step: int) -> str:
        seconds = (time.monotonic() - self.start) / max(1, step - self.first_step) * max(0, self.total_steps - step)
        hours, rest = divmod(int(seconds), 3600)
        return f"{hours}:{rest // 60:02d}:{rest % 60:02d}" if hours else f"{rest // 60}:{rest % 60:02d}"


class Metrics:
    """``metrics.jsonl`` (one JSON object a line) and TensorBoard side by side.

    A resumed run cuts ``metrics.jsonl`` at ``size``, the length that its checkpoint
    recorded, so that no step appears twice.
    """

    def __init__(self, system_dir: Path, *, size: int, step: int):
        path = system_dir / "metrics.jsonl"
        path.touch()
        os.truncate(path, min(size, path.stat().st_size))
        self.file = open(path, "ab")
        # torch.utils.tensorboard of torch 1.13 needs more packages than it asks for; the format is two messages
        self.board = EventFileWriter(str(system_dir / "tensorboard"))
        if step:
            start = SessionLog(status=SessionLog.START)  # TensorBoard forgets what it has from this step on
            self.board.add_event(Event(wall_time=time.time(), step=step + 1, session_log=start))

    def write(self, kind: str, step: int, epoch: int, values: Dict[str, Any]) -> None:
        """``epoch`` counts from 1.  Numbers go to TensorBoard as ``<kind>/<name>``."""
        line = json.dumps({"kind": kind, "step": step, "epoch": epoch, **values}, ensure_ascii=False)
        self.file.write(line.encode("utf-8") + b"\n")
        self.file.flush()
        scalars = [
            Summary.Value(tag=f"{kind}/{name}", simple_value=value)
            for name, value in values.items()
            if isinstance(value, (int, float))
        ]
        self.board.add_event(Event(wall_time=time.time(), step=step, summary=Summary(value=scalars)))

    @property
    def size(self) -> int:
        """Bytes written so far, all of them handed to the system."""
        return self.file.tell()

    def close(self) -> None:
        self.file.close()
        self.board.close()


Say = Callable[[str], None]
