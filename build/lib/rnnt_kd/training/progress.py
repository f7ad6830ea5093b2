"""What a run tells while it runs, beside the bar: ``metrics.jsonl``, TensorBoard."""

import json
import os
import time
from pathlib import Path
from typing import Any, Callable, Dict

from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.summary.writer.record_writer import RecordWriter

Say = Callable[[str], None]  # takes a line for the user


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
        # torch.utils.tensorboard of torch 1.13 needs more packages than it asks for, and writes in a thread, where a
        # full disk is a traceback; the format is three messages
        board = (
            system_dir / "tensorboard" / f"events.out.tfevents.{int(time.time())}.{os.uname().nodename}.{os.getpid()}"
        )
        board.parent.mkdir(exist_ok=True)
        self.board = RecordWriter(open(board, "wb"))
        self._add(file_version="brain.Event:2")
        if step:  # TensorBoard forgets what it has from this step on
            self._add(step=step + 1, session_log=SessionLog(status=SessionLog.START))

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
        self._add(step=step, summary=Summary(value=scalars))

    def _add(self, **values: Any) -> None:
        self.board.write(Event(wall_time=time.time(), **values).SerializeToString())
        self.board.flush()

    @property
    def size(self) -> int:
        """Bytes written so far, all of them handed to the system."""
        return self.file.tell()

    def close(self) -> None:
        self.file.close()
        self.board.close()


class Silent:
    """In place of ``Metrics`` and of the bar where another process writes and talks."""

    size, what = 0, ""

    def write(self, *values: Any) -> None:
        pass

    def update(self, **values: Any) -> None:
        pass

    def close(self) -> None:
        pass

    def __enter__(self) -> "Silent":
        return self

    def __exit__(self, *error: Any) -> None:
        pass
