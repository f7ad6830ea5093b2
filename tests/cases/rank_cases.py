"""What a rank of a test does: ``python rank_cases.py CASE FOLDER``, several at once; and how tests start them."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from command_cases import KILLED_IN

from rnnt_kd import jobs
from rnnt_kd.errors import UserError
from rnnt_kd.lattice import get_backend
from rnnt_kd.text.tokenizer import Tokenizer
from rnnt_kd.training import setup
from rnnt_kd.training.batches import TrainingData
from rnnt_kd.training.loop import Training
from rnnt_kd.training.objective import loss_scales
from rnnt_kd.training.progress import Silent
from rnnt_kd.training.ranks import Ranks, leave

SYSTEMS = {  # name -> arguments of Corpus.config
    "teacher": {},
    "sparse": {"role": "sparse_student", "sparsity": 0.5, "with_kd": True, "ranges": "student"},
    "cached": {"role": "small_student", "with_kd": True},
    "no_ctc": {"role": "small_student", "overrides": ["small_student.training.ctc_loss_scale=0"]},
    "no_simple": {"role": "small_student", "overrides": ["small_student.training.simple_loss_scale=0"]},
}
QUIET = [f"{role}.training.specaugment=null" for role in ("teacher", "sparse_student", "small_student")]
QUIET += ["teacher.model.dropout=0", "small_student.model.dropout=0"]
UTTERANCES = list(range(7))


def ready(corpus, folder, ranks, name, dtype):
    """A training before its step 100, and what makes its batches."""
    given = {**SYSTEMS[name], "name": name, "overrides": [*SYSTEMS[name].get("overrides", ()), *QUIET]}
    config, tokenizer, teacher = corpus.config(**given), Tokenizer.load(corpus.bpe_dir), folder / "teacher"
    cache = setup.teacher_cache(config, tokenizer, folder / "cache", [teacher], corpus.train_cuts)
    config = setup.resolve(config, tokenizer, teacher, cache)
    cuts = corpus.train_cuts, corpus.dev_cuts
    data = TrainingData(config, tokenizer, *cuts, cache, rank=ranks.rank, size=ranks.size)
    out = folder / f"{name} {ranks.size}"
    out.mkdir(exist_ok=True)
    backend = get_backend("torch", torch.device("cpu"))
    with pytest.MonkeyPatch.context() as patch:
        made = setup.models
        patch.setattr(setup, "models", lambda *given: [model and model.to(dtype) for model in made(*given)])
        training = Training(config, out, data, ranks, backend, teacher, lambda line: None, "")
    training.metrics, training.clock, training.state.step = Silent(), 0.0, 100  # after the warm-up
    return training, data


def batch_of(data, places, dtype):
    batch = next(data._ready("train", [(100, places)]))
    batch.inputs["features"] = batch.inputs["features"].to(dtype)
    return batch


def gradient(corpus, folder, ranks, name, dtype, spoil=False):
    """Gradients, their norm and the loss of a step on ``UTTERANCES``, which the ranks share; and the run after it.

    spoil: the last rank hears an infinite feature.
    """
    training, data = ready(corpus, folder, ranks, name, dtype)
    batch = batch_of(data, UTTERANCES[ranks.rank :: ranks.size], dtype)
    if spoil and ranks.rank == ranks.size - 1:
        batch.inputs["features"][0, 0, 0] = float("inf")
    found = {}

    def keep():
        parameters = training.model.named_parameters()
        found.update({name: one.grad.clone() for name, one in parameters if one.grad is not None})

    training.wrapped_optimizer.step = keep
    training._train_step(batch)
    norm = training.window.tolist()[-2]
    return found, norm, training._log(), training


def gradient_in_parts(corpus, folder, ranks, name, dtype, size):
    """The same of one process, which takes the parts of ``size`` one after the other and adds up their gradients."""
    training, data = ready(corpus, folder, ranks, name, dtype)
    scales = loss_scales(100, training.training, training.config.kd)
    sums = torch.zeros(2, dtype=torch.float64)
    for rank in range(size):
        weighted, terms = training.wrapped(scales, **batch_of(data, UTTERANCES[rank::size], dtype).inputs)
        weighted.backward()
        sums += torch.stack([weighted.detach(), terms["frames"]]).double()
    if training.sparsifier is not None:
        training.sparsifier.mask_gradients()
    found = {name: one.grad / sums[1] for name, one in training.model.named_parameters() if one.grad is not None}
    norm = float(torch.cat([one.flatten().double() for one in found.values()]).norm())
    clip = min(1.0, training.training.gradient_clip / norm)
    return {name: one * clip for name, one in found.items()}, norm, float(sums[0] / sums[1])


def gradients_and_agreement(corpus, folder):
    """Gradients of all systems in both types; then what must differ nowhere."""
    ranks = Ranks("cpu", "32-true", 600.0)
    real_float = torch.Tensor.float
    for dtype in (torch.float32, torch.float64):
        torch.Tensor.float = torch.Tensor.double if dtype == torch.float64 else real_float  # losses are float32, else
        for name in SYSTEMS:
            *found, _ = gradient(corpus, folder, ranks, name, dtype)
            if ranks.is_first:
                torch.save(found, folder / f"{name} {dtype} {ranks.size}.pt")
    torch.Tensor.float = real_float
    found, _, _, training = gradient(corpus, folder, ranks, "teacher", torch.float32, spoil=True)
    skipped = [not found, training.state.nonfinite_batches, len(ranks.gathered(0))]
    weights = {"x": torch.full((3,), float(ranks.rank == 1))}
    try:
        ranks.check_same(weights)
        said = ""
    except UserError as error:
        said = str(error)
    buffers = torch.nn.BatchNorm1d(2)
    buffers.running_mean.fill_(ranks.rank)
    ranks.average_buffers(buffers)
    sent = ranks.tensors(lambda: {"a": torch.tensor([True, False]), "b": torch.tensor(1.5), "c": torch.zeros(0, 2)})
    result = [skipped, said, buffers.running_mean.tolist(), {name: value.tolist() for name, value in sent.items()}]
    result.append(training._validate())
    (folder / f"said {ranks.rank} {ranks.size}.json").write_text(json.dumps(result))


def hangs(corpus, folder):
    """The second rank stops where the first waits for it."""
    rank = os.environ["RANK"]
    (folder / f"ready {rank}").touch()
    while not all((folder / f"ready {other}").exists() for other in range(2)):
        time.sleep(0.05)
    ranks = Ranks("cpu", "32-true", 5.0)
    if rank == "1":
        os.kill(os.getpid(), signal.SIGSTOP)
    try:
        with ranks.in_touch():
            ranks.total(torch.zeros(1))
    except UserError as error:
        (folder / "said").write_text(str(error))


def start_ranks(words, size, killed=None, slurm=False, **given):
    """Processes of ``python`` with these words, each as a rank; ``killed``: (rank, module:function, after) as in ``kill``.

    slurm: told who they are by the variables of srun.
    """
    processes, port = [], ""
    for rank, job in enumerate(jobs.as_ranks([*words], size, 1)):
        how = words
        if killed is not None and killed[0] == rank:
            how = ["-c", KILLED_IN, killed[1], str(killed[2]), *words[1:]]
        place = dict(job.environment)
        if slurm:
            says = {"PROCID": rank, "LOCALID": rank, "STEP_NUM_TASKS": size, "STEP_TASKS_PER_NODE": size}
            place = {f"SLURM_{name}": str(value) for name, value in says.items()}
            place["MASTER_PORT"] = port = port or job.environment["MASTER_PORT"]
        processes.append(popen([sys.executable, *how], {**place, "OMP_NUM_THREADS": "1", **given}))
    return processes


def popen(line, environment):
    pipes = dict(stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    return subprocess.Popen(line, env={**os.environ, **environment}, **pipes)


if __name__ == "__main__":
    from tone_corpus import Corpus

    torch.set_num_threads(1)
    case, place, tones = sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3])
    cuts = tones / "cuts"
    made = Corpus(tones, cuts / "train.jsonl.gz", cuts / "dev.jsonl.gz", tones / "bpe", tones / "preset.yaml")
    {"gradients": gradients_and_agreement, "hangs": hangs}[case](made, place)
    leave()
