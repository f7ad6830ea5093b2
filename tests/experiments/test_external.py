"""A teacher that icefall's train.py made, in an experiment of ours: cached, online, decoded, and what cannot be one."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from experiments.conftest import Trial

from rnnt_kd.config_io import read_system_config
from rnnt_kd.errors import UserError
from rnnt_kd.experiments.definition import read_experiment
from rnnt_kd.icefall import load_teacher
from rnnt_kd.systems.store import load_system
from rnnt_kd.teachers.interface import as_teacher
from rnnt_kd.text.tokenizer import Tokenizer

RECIPE = """  # train.py and model of a recipe of icefall's
import torch
from torch import nn


class Decoder(nn.Module):
    def __init__(self, C, D):
        super().__init__()
        self.embedding, self.conv = nn.Embedding(C, D), nn.Conv1d(D, D, 2, groups=D // 4, bias=False)
        self.blank_id, self.context_size = 0, 2

    def forward(self, y, need_pad=True):
        out = (self.embedding(y.clamp(min=0)) * (y >= 0).unsqueeze(-1)).permute(0, 2, 1)
        return self.conv(nn.functional.pad(out, (1, 0)) if need_pad else out).permute(0, 2, 1).relu()


class Joiner(nn.Module):
    def __init__(self, E, D, J, C):
        super().__init__()
        self.encoder_proj, self.decoder_proj, self.output_linear = nn.Linear(E, J), nn.Linear(D, J), nn.Linear(J, C)

    def forward(self, am, lm, project_input=True):
        return self.output_linear(torch.tanh(am + lm))


class AsrModel(nn.Module):
    def __init__(self, C, E=24, D=16):
        super().__init__()
        self.encoder_embed, self.encoder = nn.Linear(80, E), nn.GRU(E, E, batch_first=True)
        self.decoder, self.joiner = Decoder(C, D), Joiner(E, D, 20, C)
        self.simple_am_proj, self.simple_lm_proj = nn.Linear(E, C), nn.Linear(D, C)

    def forward_encoder(self, x, x_lens):  # (T - 5) // 4 frames, as the Zipformer
        return self.encoder(self.encoder_embed(x[:, 5::4][:, : (x.shape[1] - 5) // 4]))[0], (x_lens - 5) // 4


def get_params():
    return {}


def get_model(params):
    return AsrModel(int(params["vocab_size"]))


compute_loss = run = main = None
"""  # fmt: skip
SYSTEMS = """
seeds: [1]
systems:
  teacher: {external: icefall, path: PATH, epoch: 2, avg: 0}
  small: {role: small_student}
  cached: {base: small, kd: {align: crop-pad}}
  online: {base: small, kd: {align: crop-pad, ranges: student}}
"""


@pytest.fixture(scope="module")
def external(tone_corpus, tmp_path_factory):  # noqa: F811
    """(trial, folder of the icefall training)"""
    folder = tmp_path_factory.mktemp("external")
    recipe, bpe = folder / "icefall" / "toy", Tokenizer.load(tone_corpus.bpe_dir)
    (recipe / "exp").mkdir(parents=True)
    (recipe / "train.py").write_text(RECIPE)
    parts = {}
    exec(compile(RECIPE, "train.py", "exec"), parts)
    torch.manual_seed(0)
    options = {
        "vocab_size": bpe.vocab_size,
        "blank_id": 0,
        "lm_scale": 0.3,
        "bpe_model": f"{tone_corpus.bpe_dir}/bpe.model",
    }
    torch.save({"model": parts["get_model"](options).state_dict(), **options}, recipe / "exp" / "epoch-2.pt")
    trial = Trial(folder, tone_corpus)
    trial.file.write_text(SYSTEMS.replace("PATH", str(recipe / "exp")))
    shutil.copytree(tone_corpus.folder / "cuts", trial.exp / "cuts")
    shutil.copytree(tone_corpus.bpe_dir, trial.exp / "bpe")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(folder / "icefall"))
        yield trial, recipe / "exp"


def test_an_icefall_teacher_is_taken_over_cached_run_online_and_decoded(external):
    trial, exp = external
    started = trial.run()
    assert [line for line in started if "teacher" in line and "train" in line] == ["train teacher/1"]
    assert {"train small/1", "train cached/1", "train online/1"} <= set(started)
    made, config = load_system(trial.teacher)
    original = load_teacher(exp, epoch=2, avg=0)
    assert (config.training.lm_only_scale, config.model.ctc_head) == (0.3, False)
    x, lens, labels = torch.randn(2, 90, 80), torch.tensor([90, 61]), torch.randint(1, config.vocab_size, (2, 7))
    parts = [t for t in (as_teacher(made), original)]
    encoded = [t.encode(x, lens) for t in parts]
    predicted = [t.predict(labels) for t in parts]
    torch.testing.assert_close(*encoded)
    torch.testing.assert_close(*predicted)
    joined = [t.joiner(e[0], p) for t, e, p in zip(parts, encoded, predicted)]
    simple = [t.simple(e[0], p) for t, e, p in zip(parts, encoded, predicted)]
    (ours, theirs), (mine, its) = joined, simple
    torch.testing.assert_close([*ours[:4], *mine], [*theirs[:4], *its])
    assert [*trial.teacher.glob("kd_cache*")] and (trial.teacher / "decode_dev_modified_beam_search").is_dir()
    assert all(
        read_system_config(trial.dir / name / "seed1/config.yaml").teacher_checksum for name in ("cached", "online")
    )
    assert trial.run() == []  # all is there
    with pytest.MonkeyPatch.context() as patch, pytest.raises(UserError, match="lies in no folder of PYTHONPATH"):
        patch.setenv("PYTHONPATH", "/nowhere")
        load_system(trial.teacher)
    trial.file.write_text(trial.file.read_text().replace("avg: 0", "avg: 0, options: {vocab_size: 9}"))
    with pytest.raises(UserError, match="9|size mismatch"):
        trial.run("--steps", "teacher")


@pytest.mark.parametrize("entry, message", [
    ({"external": "kaldi", "path": "x"}, "external teacher teacher: there is no 'kaldi'; expected one of: icefall"),
    ({"external": "icefall"}, "names no path"),
    ({"external": "icefall", "path": "EXP", "epoch": 2, "avg": 0, "beam": 3}, "beam"),
    ({"external": "icefall", "path": "EXP", "epoch": 7}, "no epoch-7.pt here"),
    ({"external": "icefall", "path": "EXP", "epoch": 2, "avg": 0, "tokens": "TOKENS"}, "number 1 of its pieces is 'x'"),
])  # fmt: skip
def test_what_is_no_teacher_is_one_line(external, tmp_path, entry, message):
    first, exp = external
    shutil.copytree(first.exp / "cuts", tmp_path / "exp/cuts")
    shutil.copytree(first.exp / "bpe", tmp_path / "exp/bpe")
    (tmp_path / "tokens.txt").write_text("<blk> 0\nx 1\n")
    text = yaml.safe_dump({"systems": {"teacher": entry}})
    trial = Trial(tmp_path, first.corpus)
    trial.file.write_text(text.replace("EXP", str(exp)).replace("TOKENS", str(tmp_path / "tokens.txt")))
    with pytest.raises(UserError, match=message):
        trial.run("--steps", "teacher")


def test_several_processes_take_it_over_once(external, tone_corpus):
    trial, exp = external
    file = trial.exp.with_name("trial.yaml")  # as it was: others change theirs
    file.write_text(SYSTEMS.replace("PATH", str(exp)))
    words = [sys.executable, "-m", "rnnt_kd.bin.train", "--config", tone_corpus.preset, "--experiment", file]
    words += ["--system", "teacher", "--exp-dir", trial.exp.with_name("several"), "--device", "cpu", "--nproc", "2"]
    shutil.copytree(trial.exp, trial.exp.with_name("several"), ignore=shutil.ignore_patterns("trial"))
    folders = [os.environ["PYTHONPATH"], str(Path(__file__).parents[2] / "plugin")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(folders)}
    done = subprocess.run([str(word) for word in words], env=environment, capture_output=True, text=True)
    assert done.returncode == 0 and "another run" not in done.stderr, done.stderr
    made, _ = load_system(trial.exp.with_name("several") / "trial" / "teacher" / "seed1")
    assert made.encoder is not None


def test_a_sparse_student_starts_from_a_teacher_of_ours(tmp_path):
    file = tmp_path / "x.yaml"
    file.write_text("systems:\n  teacher: {external: icefall, path: x}\n  s: {role: sparse_student, sparsity: 0.9}\n")
    with pytest.raises(UserError, match="system s: teacher: teacher is external"):
        read_experiment(file)
