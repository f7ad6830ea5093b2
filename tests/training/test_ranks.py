"""Several processes train one system: the gradient of one process, one line when a rank is lost, the same bits again."""

import json
import shutil
import sys
from pathlib import Path

import pytest
import rank_cases
import torch
from command_cases import LONG, start, told
from training_cases import interrupted_after, metrics, system_json

from rnnt_kd.systems.store import tensors_digest
from rnnt_kd.training import checkpoint, ranks
from rnnt_kd.training.ranks import Ranks, World, find_world

CASES = Path(rank_cases.__file__)
STUDENT = "{role: sparse_student, sparsity: 0.5, kd: {ranges: student}}"


def outputs(processes):
    """(exit status, what it said) of each."""
    said = [process.communicate(timeout=LONG)[0] for process in processes]
    return [(process.returncode, text) for process, text in zip(processes, said)]


def cases(root, case, folder, corpus, size):
    path = ":".join(map(str, (root / "plugin", root / "tests", CASES.parent)))
    return rank_cases.start_ranks([str(CASES), case, str(folder), str(corpus.folder)], size, PYTHONPATH=path)


@pytest.fixture(scope="module")
def ran(tone_corpus, teacher_dir, kd_cache, tmp_path_factory, root):
    """The gradients of two and of three processes, in files."""
    folder = tmp_path_factory.mktemp("gradients")
    (folder / "teacher").symlink_to(teacher_dir)
    (folder / "cache").symlink_to(kd_cache)
    for size in (2, 3):
        for status, said in outputs(cases(root, "gradients", folder, tone_corpus, size)):
            assert status == 0, said
    return folder


def of_one_process(corpus, folder, name, dtype, size):
    """(gradients, norm, loss): of the whole batch in float64; in float32, which rounds a batch by its padding and sums,
    of the same parts."""
    ranks = Ranks("cpu", "32-true", 1.0)
    if dtype == torch.float32:
        return rank_cases.gradient_in_parts(corpus, folder, ranks, name, dtype, size)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.Tensor, "float", torch.Tensor.double)  # the losses compute in float32, else
        return rank_cases.gradient(corpus, folder, ranks, name, dtype)[:3]


@pytest.mark.parametrize("size", [2, 3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("name", rank_cases.SYSTEMS)
def test_gradient_norm_and_loss_are_those_of_one_process(ran, tone_corpus, name, dtype, size):
    expected, norm, loss = of_one_process(tone_corpus, ran, name, dtype, size)
    found, *others = torch.load(ran / f"{name} {dtype} {size}.pt")
    assert set(found) == set(expected)  # what no loss uses has no gradient, as in one process
    whole = flat(expected, expected)
    error = (flat(found, expected) - whole).norm() / whole.norm()
    bound = 1e-6 if dtype == torch.float32 else 1e-12
    assert error <= bound and others == [pytest.approx(norm, rel=bound), pytest.approx(loss, rel=bound)]


def flat(gradients, names):
    return torch.cat([gradients[name].flatten().double() for name in names])


@pytest.mark.parametrize("size", [2, 3])
def test_processes_agree_or_end(ran, tone_corpus, size):
    training, _ = rank_cases.ready(tone_corpus, ran, Ranks("cpu", "32-true", 1.0), "teacher", torch.float32)
    validated = training._validate()
    for rank in range(size):
        skipped, said, mean, sent, means = json.loads((ran / f"said {rank} {size}.json").read_text())
        assert skipped == [True, 1, size], "an infinite feature in one process: all skip the batch"
        assert f"process {rank} of {size}: weights or masks differ" in said and "in process 1;" in said
        assert mean == pytest.approx([sum(range(size)) / size] * 2)
        assert means == pytest.approx(validated, rel=1e-5)
        assert sent == {"a": [True, False], "b": 1.5, "c": []}


def test_fewer_utterances_than_processes_is_an_error(tone_corpus, monkeypatch, tmp_path):
    for name, value in dict(RANK=0, WORLD_SIZE=25, LOCAL_WORLD_SIZE=25, TORCHELASTIC_RUN_ID="x").items():
        monkeypatch.setenv(name, str(value))
    config = tone_corpus.config()
    data = rank_cases.TrainingData(
        config, rank_cases.Tokenizer.load(tone_corpus.bpe_dir), tone_corpus.train_cuts, tone_corpus.dev_cuts, size=25
    )
    data.select(lambda frames: frames // 4, True)
    assert "24 utterances for 25 processes" in told(data.batches_per_epoch)


@pytest.fixture(scope="module")
def whole(tone_corpus, teacher_dir, tmp_path_factory, root):
    """A sparse student of two processes that torchrun started."""
    folder = tmp_path_factory.mktemp("whole")
    words = ["rnnt_kd.bin.train", *tone_corpus.arguments(folder, STUDENT, teacher_dir)]
    launcher = ["-m", "torch.distributed.run", "--nproc_per_node", "2", "--master_port", str(free_port()), "-m"]
    environment = {"PYTHONPATH": str(root / "plugin"), "OMP_NUM_THREADS": "1"}
    process = rank_cases.popen([sys.executable, *launcher, *words], environment)
    output, _ = process.communicate(timeout=LONG)
    assert process.returncode == 0, output
    assert output.count("averaged epochs") == 1 and "Traceback" not in output
    return folder / "trial" / "x" / "seed1"


def free_port():
    return int(rank_cases.jobs.as_ranks([], 1, 1)[0].environment["MASTER_PORT"])


@pytest.fixture(scope="module")
def killed(tone_corpus, teacher_dir, tmp_path_factory, root):
    """The same, of which first one rank is killed in the middle of an epoch, then the other; what the others said."""
    folder = tmp_path_factory.mktemp("killed")
    words = ["-m", "rnnt_kd.bin.train", *tone_corpus.arguments(folder, STUDENT, teacher_dir)]
    for rank, where, after in ((1, "rnnt_kd.training.loop:Training._train_step", 5),
                               (0, "rnnt_kd.atomic:os.replace", 9)):  # fmt: skip
        path = str(root / "plugin")  # the second time they are started as by srun
        processes = rank_cases.start_ranks(words, 2, (rank, where, after), slurm=rank == 0, PYTHONPATH=path)
        ended = outputs(processes)
        assert ended[rank][0] == -9, ended
        status, said = ended[1 - rank]
        assert status == 1 and "Traceback" not in said, said
        last = said.splitlines()[-1]
        assert last.startswith(f"error: process {1 - rank} of 2: lost touch with the others: one of them ended"), said
        assert said.count("error: ") == 1
    return folder


def test_killed_ranks_change_no_bit(tone_corpus, teacher_dir, killed, whole, root, tmp_path):
    copy = shutil.copytree(killed, tmp_path / "copy", symlinks=True)
    process = start(root, "train", [*tone_corpus.arguments(copy, STUDENT, teacher_dir), "--nproc", "2"])
    output, _ = process.communicate(timeout=LONG)
    assert process.returncode == 0 and output.count("resumes from step-") == 1, output
    made = copy / "trial" / "x" / "seed1"
    assert (whole / "model.safetensors").read_bytes() == (made / "model.safetensors").read_bytes()
    assert metrics(whole) == metrics(made)
    assert system_json(made)["steps"] == system_json(whole)["steps"] < 3 * 6


def test_another_number_of_processes_goes_on_from_the_last_whole_epoch(tone_corpus, teacher_dir, killed, tmp_path):
    copy = shutil.copytree(killed, tmp_path / "copy", symlinks=True) / "trial" / "x" / "seed1"
    newest = checkpoint.list_checkpoints(copy / "checkpoints")[-1]
    epoch_ends = [path for path in checkpoint.list_checkpoints(copy / "checkpoints") if "epoch" in path.name]
    assert newest not in epoch_ends and epoch_ends
    config = tone_corpus.config("sparse_student", "x", sparsity=0.5, with_kd=True, ranges="student")
    said = tone_corpus.train(config, copy, teacher_dir=teacher_dir)
    told = next(line for line in said if "now there are" in line)
    assert f"{newest}: " in told and f"by 2 process(es), and now there are 1; from {epoch_ends[-1].name}" in told
    assert [line["epoch"] for line in metrics(copy, "dev")] == [1, 2, 3]
    zeros = system_json(copy)
    assert zeros["epochs"] == 3 and zeros["sparsity"] == pytest.approx(0.5, abs=0.01)


def test_in_the_first_epoch_another_number_of_processes_starts_anew(tone_corpus, tmp_path):
    """One process, killed in its first epoch; ``load_newest`` of two."""
    config = tone_corpus.config("teacher", overrides=["teacher.training.checkpoint_every_steps=2"])
    with interrupted_after(1):
        tone_corpus.train(config, tmp_path / "x")
    said = []
    run = json.loads(next((tmp_path / "x" / "checkpoints").glob("step-*/state.json")).read_text())["run"]
    assert checkpoint.load_newest(tmp_path / "x" / "checkpoints", run, 2, said.append) == []
    assert "now there are 2; from the start" in said[0] and not checkpoint.list_checkpoints(
        tmp_path / "x" / "checkpoints"
    )


def test_a_full_disk_at_the_checkpoint_is_one_line_from_all(tone_corpus, tmp_path, root):
    words = [*tone_corpus.arguments(tmp_path, "{role: teacher}"), "--nproc", "2"]
    process = start(root, "train", words, file_bytes=50_000)
    output, _ = process.communicate(timeout=LONG)
    lines = [line for line in output.splitlines() if line.startswith("error: ")]
    assert process.returncode == 1 and "Traceback" not in output and len(lines) == 2, output
    assert sum("the disk is full; free some space" in line for line in lines) == 1
    assert sum("process 1 of 2: ends with process 0, which says: " in line for line in lines) == 1
    assert not list((tmp_path / "trial" / "x" / "seed1").rglob("*.tmp"))


def test_a_rank_that_hangs_is_one_line(tone_corpus, tmp_path, root):
    first, second = cases(root, "hangs", tmp_path, tone_corpus, 2)
    try:
        assert outputs([first])[0][0] == 0
        said = (tmp_path / "said").read_text()
        assert said.startswith("process 0 of 2: no answer from the others in 5 s: one of them hangs (")
    finally:
        second.kill()
        second.communicate()


def test_srun_says_who_is_who(monkeypatch):
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "GROUP_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT",
                 "TORCHELASTIC_RUN_ID"):  # fmt: skip
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    assert find_world() == World()
    given = dict(STEP_NUM_TASKS=8, PROCID=5, LOCALID=1, NODEID=1, STEP_TASKS_PER_NODE="4(x2)", STEP_NODELIST="n[3-4]")
    for name, value in {**given, "JOB_ID": 123456}.items():
        monkeypatch.setenv(f"SLURM_{name}", str(value))
    assert find_world() == World(5, 8, 4)
    assert (ranks.os.environ["MASTER_ADDR"], ranks.os.environ["MASTER_PORT"]) == ("n3", "18456")
    monkeypatch.delenv("TORCHELASTIC_RUN_ID")
    monkeypatch.setenv("SLURM_STEP_TASKS_PER_NODE", "5,3")
    assert "equally many on each machine" in told(find_world)


def test_digest_sees_every_bit():
    value = torch.tensor([1.0, -0.0])
    assert tensors_digest({"a": value}) == tensors_digest({"a": value.clone()})
    others = [{"b": value}, {"a": torch.tensor([1.0, 0.0])}, {"a": value.bool()}]
    assert len({tensors_digest(other) for other in [{"a": value}, *others]}) == 4
