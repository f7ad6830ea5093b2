"""The processes of one data-parallel training (torch calls them ranks), and what they tell one another.

``bin.train --nproc N``, torchrun and srun start them; each finds its place in the environment.  A training of one
process has a ``Ranks``, too: it has nobody to talk to, and gets back what it gave.
"""

import contextlib
import datetime
import logging
import os
import re
import sys
from dataclasses import dataclass
from typing import Any, Callable, Iterator, List, Mapping, Optional, Tuple, TypeVar

import torch
from lightning_fabric import Fabric
from lightning_fabric.plugins.environments import LightningEnvironment, SLURMEnvironment, TorchElasticEnvironment
from lightning_fabric.strategies import DDPStrategy
from torch import Tensor, distributed, nn

from rnnt_kd.errors import UserError
from rnnt_kd.systems.store import Tensors, tensors_digest

Result = TypeVar("Result")

GO_ON = "see the lines of the others; the same command goes on from the last checkpoint"
_TALK = re.compile(r"\bgloo\b|nccl|TCPStore|\bstore\b|socket|\bconnection\b|reset by peer|broken pipe", re.IGNORECASE)
_LATE = re.compile(r"time[d]?[ -]?out|took too long", re.IGNORECASE)
_PORTS = 15000, 10000  # the first, and how many: one for each job of Slurm


@dataclass(frozen=True)
class World:
    """Place of this process: ``rank`` of ``size``, of which ``local_size`` run on each machine."""

    rank: int = 0
    size: int = 1
    local_size: int = 1


def find_world() -> World:
    """What torchrun, srun or ``jobs.run_ranks`` say in the environment; one process where they say nothing.

    Raises UserError: machines with different numbers of processes.
    """
    have = os.environ
    if "TORCHELASTIC_RUN_ID" not in have and int(have.get("SLURM_STEP_NUM_TASKS", 1)) > 1:
        first = SLURMEnvironment.resolve_root_node_address(have.get("SLURM_STEP_NODELIST", "127.0.0.1"))
        have.update(RANK=have["SLURM_PROCID"], WORLD_SIZE=have["SLURM_STEP_NUM_TASKS"])
        have.update(LOCAL_RANK=have["SLURM_LOCALID"], GROUP_RANK=have.get("SLURM_NODEID", "0"))
        have["LOCAL_WORLD_SIZE"] = have.get("SLURM_STEP_TASKS_PER_NODE", have["WORLD_SIZE"]).partition("(")[0]
        have.setdefault("MASTER_ADDR", first)
        have.setdefault("MASTER_PORT", str(_PORTS[0] + int(have.get("SLURM_JOB_ID", 0)) % _PORTS[1]))
        have["TORCHELASTIC_RUN_ID"] = f"slurm {have.get('SLURM_JOB_ID', '')}"
    if "TORCHELASTIC_RUN_ID" not in have:
        return World()
    here = have["LOCAL_WORLD_SIZE"]
    if not here.isdigit() or int(have["WORLD_SIZE"]) % int(here):
        problem = f"{have['WORLD_SIZE']} processes, of which {here} on each machine"
        raise UserError("the processes of this training", problem, "equally many on each machine")
    return World(int(have["RANK"]), int(have["WORLD_SIZE"]), int(here))


class Ranks:
    """All processes call the same methods in the same order.

    Args:
      device:    "cpu" (they talk over gloo) or "cuda" (nccl; one GPU a process).
      precision: Fabric's name.
      timeout:   seconds that a process waits for the others.
    Attributes: ``rank`` of ``size``; ``is_first``: the one that writes and talks; ``fabric``.
    Raises: UserError: the others cannot be reached.
    """

    have_met = False  # this process has others to talk to

    def __init__(self, device: str, precision: Any, timeout: float):
        world = find_world()
        self.rank, self.size, self.is_first, self.timeout = world.rank, world.size, world.rank == 0, timeout
        if self.size == 1:  # also in a job of Slurm that has room for more
            self.fabric = Fabric(accelerator=device, devices=1, precision=precision, plugins=[LightningEnvironment()])
            self._leave_inputs_alone()
            return
        # Without find_unused_parameters buckets are rebuilt after the first step: a resumed run would sum otherwise.
        strategy = DDPStrategy(
            process_group_backend="nccl" if device == "cuda" else "gloo",
            timeout=datetime.timedelta(seconds=timeout),
            find_unused_parameters=True,
            broadcast_buffers=False,
        )
        self.fabric = Fabric(
            accelerator=device,
            devices=world.local_size,
            num_nodes=world.size // world.local_size,
            precision=precision,
            strategy=strategy,
            plugins=[TorchElasticEnvironment()],
        )
        logging.getLogger("lightning_fabric").setLevel(logging.WARNING)
        with self.in_touch():
            self.fabric.launch()
        self._leave_inputs_alone()
        Ranks.have_met = True

    def _leave_inputs_alone(self) -> None:
        """Fabric would round all inputs, features and posteriors too; autocast rounds what it multiplies."""
        self.fabric.strategy.precision.convert_input = lambda data: data  # type: ignore[method-assign]

    def end_unscaling(self) -> None:
        """After gradients that were unscaled (clipped) for a step that is not taken; scales are of 16-mixed alone."""
        if self._scaler is not None:
            self._scaler.update()

    def gradient_scale(self) -> float:
        """By what 16-mixed multiplies its loss now; 1 elsewhere."""
        return 1.0 if self._scaler is None else self._scaler.get_scale()

    @property
    def _scaler(self) -> Any:
        return getattr(self.fabric.strategy.precision, "scaler", None)

    @contextlib.contextmanager
    def in_touch(self) -> Iterator[None]:
        """Raises UserError where an operation of the block failed because another process ended or is late."""
        try:
            yield
        except RuntimeError as error:
            text = re.sub(r"^\[[^]]*\] ", "", " ".join(str(error).split()))  # without the place in gloo's source
            if self.size == 1 or not _TALK.search(str(error)):
                raise
            problem = "lost touch with the others: one of them ended"
            if _LATE.search(text):
                problem = f"no answer from the others in {self.timeout:g} s: one of them hangs"
            raise UserError(self.name, f"{problem} ({text[:160]})", "", GO_ON) from None

    @property
    def name(self) -> str:
        return f"process {self.rank} of {self.size}"

    def first(self, function: Callable[[], Result]) -> Result:
        """What ``function`` gives in the first process, which alone calls it; the others wait.

        Raises: what it raises; in the others UserError.
        """
        if self.size == 1:
            return function()
        result: Any = None
        error: Optional[Exception] = None
        if self.is_first:
            try:
                result = function()
            except Exception as raised:
                error = raised
        text, result = self.fabric.broadcast((None if error is None else " ".join(str(error).split()), result))
        if error is not None:
            raise error
        if text is not None:
            raise UserError(self.name, f"ends with process 0, which says: {text}")
        return result

    def tensors(self, function: Callable[[], Tensors]) -> Tensors:
        """The tensors, on the CPU, that ``function`` gives in the first process; raises as ``first``."""
        if self.size == 1:
            return function()
        made: Tensors = {}

        def shapes():
            made.update(function())
            return [(name, tensor.shape, tensor.dtype) for name, tensor in made.items()]

        sent = {}
        for name, shape, dtype in self.first(shapes):
            whole = made[name].detach() if self.is_first else torch.empty(shape, dtype=dtype)
            content = whole.reshape(-1).contiguous().view(torch.uint8).to(self.fabric.device)  # nobody rounds bytes
            if content.numel():
                distributed.broadcast(content, 0)
            sent[name] = content.cpu().view(dtype).reshape(shape)
        return sent

    def gathered(self, value: Any) -> List[Any]:
        """The ``value`` of each process, in their order."""
        if self.size == 1:
            return [value]
        values: List[Any] = [None] * self.size
        distributed.all_gather_object(values, value)
        return values

    def total(self, tensor: Tensor) -> Tensor:
        """The sum over all processes, the same bits in each."""
        if self.size == 1:
            return tensor
        tensor = tensor.detach().clone()
        distributed.all_reduce(tensor)
        return tensor

    def shared_loss(self, weighted: Tensor, frames: Tensor) -> Tuple[Tensor, Tensor, Tensor]:
        """(loss, divisor, whole loss) of this process's sum of terms and its frames, all 0-dim.

        ``loss`` is ``weighted / divisor``; the mean over the processes, which DDP takes of its gradient, is the loss of
        all frames: the whole loss, the same in each.
        """
        if self.size == 1:
            loss = weighted / frames
            return loss, frames, loss
        both = self.total(torch.stack([weighted, frames]).double())
        divisor = (both[1] / self.size).to(weighted)
        return weighted / divisor, divisor, both[0] / both[1]

    def average_buffers(self, module: nn.Module) -> None:
        """Buffers that each process changes by itself (running means of a BatchNorm) become their mean."""
        for buffer in module.buffers() if self.size > 1 else ():
            if buffer.is_floating_point():
                buffer.copy_(self.total(buffer.double()) / self.size)

    def check_same(self, tensors: Mapping[str, Tensor]) -> None:
        """UserError: in some process they have other values than in the first."""
        if self.size == 1:
            return
        digests = self.gathered(tensors_digest(tensors))
        others = [str(rank) for rank, other in enumerate(digests) if other != digests[0]]
        if others:
            problem = f"weights or masks differ from those of process 0 in process {', '.join(others)}"
            next_step = "nothing was written; look at that machine; the same command goes on from the last checkpoint"
            raise UserError(self.name, problem, "the same bits in all", next_step)


def leave(status: int = 0) -> None:
    """Ends this process, where it is one of several, with ``status``.

    Not by tidying up: torch 1.13 then aborts some of them ("terminate called without an active exception").
    """
    if Ranks.have_met:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
