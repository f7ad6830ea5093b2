"""The launcher, distill, load_teacher and the zeros, on a stand-in with icefall's interface (``standin/``)."""

import copy
import importlib.machinery
import json
import os
import re
import subprocess
import sys
import types
from pathlib import Path

import pytest
import torch

from rnnt_kd import rnnt_kd_loss, rnnt_loss_pruned
from rnnt_kd.errors import UserError
from rnnt_kd.icefall import IcefallModel, distill, load_teacher
from rnnt_kd.icefall.__main__ import main
from rnnt_kd.icefall.distill import _Lattice
from rnnt_kd.icefall.launch import TeacherSettings
from rnnt_kd.icefall.model import output_layer
from rnnt_kd.icefall.recipe import averaged, import_train, recipe_imports
from rnnt_kd.icefall.sparse import sparsified
from rnnt_kd.lattice import get_backend
from rnnt_kd.lattice.prune_ranges import do_rnnt_pruning
from rnnt_kd.losses import Logits, kept_nodes
from rnnt_kd.losses.terms import alignment_entropies
from rnnt_kd.teachers.cache import TeacherCache
from rnnt_kd.teachers.write_cache import cache_facts, write_cache

RECIPE = Path(__file__).with_name("standin")
PLUGIN = Path(__file__).resolve().parents[2] / "plugin"
TEACHER = dict(dim=24, context_size=2, vocab_size=12, blank_id=0, subsampling_factor=4, causal=False)


@pytest.fixture(scope="module")
def recipe():
    with recipe_imports(RECIPE):
        yield import_train(RECIPE / "train.py")


@pytest.fixture
def models(recipe):
    torch.manual_seed(3)
    return recipe.AsrModel(8, 12), recipe.AsrModel(24, 12)


@pytest.fixture
def batch(recipe):
    return recipe.batch_of(0, 0)


def given(batch):
    return dict(x=batch["inputs"], x_lens=batch["supervisions"]["num_frames"], y=batch["y"], y_lens=batch["y_lens"])


def save_teacher(recipe, folder, **changes):
    options = {**TEACHER, **changes}
    torch.manual_seed(9)
    folder.mkdir(parents=True, exist_ok=True)
    torch.save({"model": recipe.get_model(options).state_dict(), **options}, folder / "epoch-1.pt")
    return folder


def boundary_of(batch):
    lens = batch["supervisions"]["num_frames"]
    return torch.stack([0 * lens, 0 * lens, batch["y_lens"], (lens + 3) // 4], dim=1)


def logits_of(model, batch, ranges):
    decoder_out = model.decoder(torch.nn.functional.pad(batch["y"], (1, 0)))
    return model.joiner(*do_rnnt_pruning(model.encoder(batch["inputs"][:, ::4]), decoder_out, ranges))


@pytest.fixture(scope="module")
def spawned(recipe, tmp_path_factory):
    """Two ranks, distilled and made sparse, by train.py as it stands."""
    folder = tmp_path_factory.mktemp("spawned")
    save_teacher(recipe, folder / "t")
    command = [sys.executable, "-m", "rnnt_kd.icefall", RECIPE / "train.py", "--kd-teacher", folder / "t"]
    command += ["--kd-teacher-epoch", "1", "--kd-teacher-avg", "0", "--kd-teacher-recipe", RECIPE, "--sparsity", "0.9"]
    command += ["--sparsity-ramp", "1", "5", "--exp-dir", folder / "s", "--num-epochs", "3", "--world-size", "2"]
    environment = {**os.environ, "PYTHONPATH": str(PLUGIN)}
    done = subprocess.run([*map(str, command)], env=environment, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr
    return folder / "s"


def test_every_rank_learns_from_the_teacher_in_every_step(spawned):
    """A launcher that patches the parent alone distils nothing, silently: mp.spawn's children import train.py anew."""
    logs = [[json.loads(line) for line in open(spawned / f"log-{rank}")] for rank in (0, 1)]
    assert [len(log) for log in logs] == [9, 9] and all(info["kd_loss"] > 0 for log in logs for info in log)
    assert logs[0][0]["kd_loss"] != logs[1][0]["kd_loss"]  # of their own batches


def test_the_logged_pruned_loss_is_that_without_a_teacher(spawned, recipe):
    torch.manual_seed(1)
    model = recipe.AsrModel(8, 12)
    first = json.loads(open(spawned / "log-0").readline())
    assert first["pruned_loss"] == pytest.approx(model(**given(recipe.batch_of(0, 0)))[1].item(), rel=1e-5)


def test_the_teacher_is_in_no_checkpoint(spawned, recipe):
    saved = torch.load(spawned / "epoch-3.pt", weights_only=False)
    assert list(saved["model"]) == list(saved["model_avg"]) == list(recipe.AsrModel(8, 12).state_dict())
    assert saved["rnnt_kd"]["teacher"]["place"].endswith("/t")  # but who it was


def zeros(state):
    names = ["encoder.weight", *(f"joiner.{x}.weight" for x in ("encoder_proj", "decoder_proj", "output_linear"))]
    return sum(int((state[name] == 0).sum()) for name in names), sum(round(0.9 * state[name].numel()) for name in names)


@pytest.fixture
def icefall(monkeypatch):
    """icefall's average from epoch a to b, in its own words: (b * avg_b - a * avg_a) / (b - a)."""

    def average(start, end):
        a, b = (torch.load(path, weights_only=False) for path in (start, end))
        n, m = a["batch_idx_train"], b["batch_idx_train"]
        return {x: (b["model_avg"][x] * m - a["model_avg"][x] * n) / (m - n) for x in b["model_avg"]}

    module = types.SimpleNamespace(average_checkpoints_with_averaged_model=average, average_checkpoints=None)
    package = types.ModuleType("icefall")
    package.__spec__ = importlib.machinery.ModuleSpec("icefall", None)
    monkeypatch.setitem(sys.modules, "icefall", package)
    monkeypatch.setitem(sys.modules, "icefall.checkpoint", module)
    return average


def test_an_lstm_gets_sparse_and_a_depthwise_kernel_of_any_name_does_not():
    """As in lstm_transducer_stateless3 and in tiny_transducer_ctc."""
    model = torch.nn.Module()
    model.encoder = torch.nn.Sequential(torch.nn.Conv1d(8, 8, 3, groups=8), torch.nn.Conv1d(8, 8, 1))
    model.encoder.lstm = torch.nn.LSTM(8, 6, proj_size=4)
    lstm = [f"encoder.lstm.weight_{kind}_l0" for kind in ("ih", "hh", "hr")]
    assert sparsified(model) == ["encoder.1.weight", *lstm]


def test_an_averaged_sparse_model_has_exactly_the_zeros_that_were_asked_for(spawned, icefall, tmp_path, capsys):
    dense = icefall(spawned / "epoch-2.pt", spawned / "epoch-3.pt")
    assert zeros(torch.load(spawned / "epoch-3.pt", weights_only=False)["model"])[0] == zeros(dense)[1]
    found, wanted = zeros(averaged(spawned, 3, 2)[0])
    assert zeros(icefall(spawned / "epoch-1.pt", spawned / "epoch-3.pt"))[0] < wanted == found
    main(["average", str(spawned), "--epoch", "3", "--avg", "2", "--out", str(tmp_path / "a/epoch-99.pt")])
    assert re.search(r"89\.98% of its sparsified weights are 0", capsys.readouterr().out)
    teacher = load_teacher(tmp_path / "a", 99, 0, recipe=RECIPE)
    assert zeros(teacher.model.state_dict())[0] == wanted


def test_the_file_of_generate_averaged_model_py_is_no_epoch(spawned, icefall, tmp_path):
    for name in ("epoch-1.pt", "epoch-3.pt", "epoch-2.pt"):
        (tmp_path / name).symlink_to(spawned / name)
    (tmp_path / "epoch-3-avg-1.pt").write_bytes(b"")
    assert averaged(tmp_path, 3, 2)[2].endswith("epoch-3.pt (avg 2)")


def test_an_icefall_that_lacks_what_it_needs_is_one_line(spawned, icefall, monkeypatch):
    monkeypatch.delitem(sys.modules, "icefall.checkpoint")
    with pytest.raises(
        UserError, match=r"epoch-3\.pt \(avg 2\): icefall\.checkpoint does not import \(No module named"
    ):
        averaged(spawned, 3, 2)


def test_a_teacher_that_is_the_student_adds_nothing(models, batch):
    student, _ = models
    kd = distill(student, teacher=copy.deepcopy(student))
    student(**given(batch))
    assert kd.steps == 1 and kd.last.abs() < 1e-4


@pytest.mark.parametrize("is_half", [True, False])
def test_the_teacher_runs_in_the_precision_of_the_student(models, batch, is_half):
    """icefall computes its losses without autocast, in which the teacher is asked."""
    student, teacher = models
    seen = {}
    for name, model in (("student", student), ("teacher", teacher)):
        model.encoder.register_forward_hook(lambda _, __, out, name=name: seen.update({name: out.dtype}))
    distill(student, teacher=teacher)
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=is_half):
        loss = student(**given(batch))[1]
    assert seen["student"] == seen["teacher"] == (torch.bfloat16 if is_half else torch.float32)
    assert torch.isfinite(loss).all()


@pytest.mark.parametrize("weighting", ["uniform", "occupancy"])
def test_value_and_gradient_are_those_of_whole_logits(models, batch, weighting):
    student, teacher = models
    plain, seen = copy.deepcopy(student), {}
    k2 = sys.modules[type(student).__module__].k2 if type(student).__module__ in sys.modules else None
    kd = distill(student, teacher=teacher, scale=0.7, weighting=weighting)
    space = type(plain).forward.__globals__
    k2, keep = space["k2"], space["k2"].get_rnnt_prune_ranges
    k2.get_rnnt_prune_ranges = lambda **tensors: seen.setdefault("ranges", keep(**tensors))
    try:
        simple, pruned = student(**given(batch))
    finally:
        k2.get_rnnt_prune_ranges = keep
    pruned.backward()
    lattice = batch["y"], seen["ranges"], 0, boundary_of(batch)
    logits, theirs = (logits_of(model, batch, seen["ranges"]) for model in (plain, teacher))
    options = dict(reduction="sum", kd_variant="collapsed", kd_weighting=weighting)
    term = rnnt_kd_loss(logits, theirs.detach(), *lattice, **options)
    expected = rnnt_loss_pruned(logits, *lattice, reduction="sum") + 0.7 * term
    expected.backward()
    torch.testing.assert_close(pruned, expected, rtol=1e-6, atol=0)
    torch.testing.assert_close(kd.last, term.detach(), rtol=1e-5, atol=0)
    for (name, found), wanted in zip(student.named_parameters(), plain.parameters()):
        if wanted.grad is not None:
            torch.testing.assert_close(found.grad, wanted.grad, rtol=1e-4, atol=1e-5, msg=name)
    assert all(weight.grad is None for weight in teacher.parameters())


@pytest.mark.parametrize("taught", [True, False], ids=["with a teacher", "alone"])
def test_a_model_may_be_made_to_decide_on_an_alignment(models, batch, taught):
    student, teacher = models
    plain = copy.deepcopy(student)
    kd = distill(student, teacher=teacher if taught else None, alignment_entropy=0.3)
    found = {}
    for scale in (0.3, 0.0):
        kd.alignment_entropy = scale
        found[scale] = student(**given(batch))[1].item()
    if not taught:
        assert found[0.0] == pytest.approx(plain(**given(batch))[1].item(), rel=1e-5) and kd.last == 0
    k2, seen = type(plain).forward.__globals__["k2"], {}
    keep = k2.get_rnnt_prune_ranges
    k2.get_rnnt_prune_ranges = lambda **tensors: seen.setdefault("ranges", keep(**tensors))
    try:
        plain(**given(batch))
    finally:
        k2.get_rnnt_prune_ranges = keep
    nodes = kept_nodes(batch["y"], seen["ranges"], 0, boundary_of(batch), "regular")
    scores = Logits(logits_of(plain, batch, seen["ranges"])).scores(nodes)  # paths are too many here to be counted
    expected = alignment_entropies(scores, nodes, get_backend("torch")).sum().item()
    assert found[0.3] - found[0.0] == pytest.approx(0.3 * expected, rel=1e-3) and expected > 0.1


def test_validation_is_the_recipes_own_to_the_last_bit(models, batch):
    student, teacher = models
    expected = copy.deepcopy(student).eval()(**given(batch))[1]
    kd = distill(student, teacher=teacher)
    assert student.eval()(**given(batch))[1] == expected and kd.steps == 0


def test_a_copy_is_a_model_of_its_own_and_holds_no_teacher(models, batch):
    student, teacher = models
    distill(student, teacher=teacher)
    twin = copy.deepcopy(student)
    torch.nn.init.zeros_(twin.joiner.output_linear.weight)
    student.eval(), twin.eval()
    assert twin(**given(batch))[1] != student(**given(batch))[1]
    assert len([*twin.modules()]) == len([*copy.deepcopy(teacher).modules()])


def test_a_cache_says_what_the_teacher_says_on_its_ranges(models, batch, tmp_path, caplog):
    student, teacher = models
    adapter, ids = IcefallModel(teacher), [cut.id for cut in batch["supervisions"]["cut"]]
    texts = [row[:n].tolist() for row, n in zip(batch["y"], batch["y_lens"])]
    facts = cache_facts(adapter, digest="0" * 64, lm_only_scale=0.25)
    write_cache(adapter, [(ids, batch["inputs"], batch["supervisions"]["num_frames"], texts)], tmp_path, facts)
    cache, frames = TeacherCache.open(tmp_path), boundary_of(batch)[:, 3]
    plain = copy.deepcopy(student)
    kd = distill(student, cache=cache, weighting="uniform", missing="skip")
    kd.batch = batch
    student(**given(batch))
    ranges = cache.lookup(ids, frames.tolist(), 6).ranges()
    logits, theirs = (logits_of(model, batch, ranges) for model in (plain, teacher))
    lattice = batch["y"], ranges, 0, boundary_of(batch)
    expected = rnnt_kd_loss(logits, theirs, *lattice, reduction="sum", kd_variant="collapsed", kd_weighting="uniform")
    torch.testing.assert_close(kd.last, expected.detach(), rtol=2e-3, atol=0)
    other = batch["y"].clone()
    other[2, 0] = other[2, 0] % 5 + 1
    with pytest.raises(UserError, match=f"posteriors of {ids[2]}: made of another transcript"):
        student(**given({**batch, "y": other}))
    batch["supervisions"]["cut"][1].id = "another"
    student(**given(batch))
    student(**given(batch))
    assert kd.skipped == 2 and 0 < kd.last < expected
    assert caplog.text.count("1 of 3 utterances of a batch are not there, the first another") == 1
    kd.missing = "error"
    with pytest.raises(UserError, match="1 of 3 utterances are missing, the first: another"):
        student(**given(batch))
    kd.batch = {**batch, "supervisions": {**batch["supervisions"], "num_frames": torch.tensor([80, 64, 44])}}
    with pytest.raises(UserError, match="set it in every step"):
        student(**given(batch))


def test_scaled_layers_of_older_recipes_act_as_they_do(models):
    _, teacher = models

    class ScaledLinear(torch.nn.Linear):
        def get_weight(self):
            return 2 * self.weight

        def get_bias(self):
            return 3 * self.bias

        def forward(self, x):
            return torch.nn.functional.linear(x, self.get_weight(), self.get_bias())

    teacher.joiner.output_linear.__class__ = ScaledLinear
    IcefallModel(teacher)
    assert torch.equal(output_layer(teacher.joiner)[0], 2 * teacher.joiner.output_linear.weight)


def test_a_half_precision_teacher_and_the_student_itself_are_refused(models):
    student, teacher = models
    for other, problem in ((student, "is the student"), (teacher.half(), "torch.float16; expected torch.float32")):
        with pytest.raises(UserError, match=problem):
            distill(student, teacher=other)


@pytest.fixture
def launched(recipe, tmp_path, monkeypatch, capsys):
    """The launcher in this process: the last line that it says."""
    save_teacher(recipe, tmp_path / "t")
    monkeypatch.setattr(torch, "set_num_interop_threads", lambda n: None)
    for name in ("path", "argv"):
        monkeypatch.setattr(sys, name, [*getattr(sys, name)])
    monkeypatch.setenv("RNNT_KD_ICEFALL", "")
    monkeypatch.chdir(tmp_path)

    def launch(*words):
        for name in ("train", "model"):
            monkeypatch.delitem(sys.modules, name, raising=False)
        with pytest.raises(SystemExit) as ended:
            main([str(RECIPE / "train.py"), "--exp-dir", "s", *words])
        assert ended.value.code == 1
        lines = capsys.readouterr().err.splitlines()
        assert not any("Traceback" in line for line in lines)
        return lines[-1]

    return launch


AVG0 = "--kd-teacher t --kd-teacher-epoch 1 --kd-teacher-avg 0 --kd-teacher-recipe " + str(RECIPE)


@pytest.mark.parametrize("words, problem", [
    ("", "no teacher, no cache, no sparsity"),
    ("--kd-teacher t", "a folder, and no epoch; expected one of epoch [1]"),
    ("--kd-teacher t --kd-teacher-epoch 4", "no epoch-4.pt here; expected one of epoch [1]"),
    ("--kd-teacher t --kd-teacher-epoch 1", "an average over 1 up to epoch 1 needs 2 checkpoints"),
    ("--kd-teacher t/epoch-1.pt --kd-teacher-recipe .", "train.py: no such file"),
    ("--kd-teacher nowhere --kd-teacher-epoch 1", "no such file or folder"),
    (AVG0 + " --context-size 1", "its context size is 2; expected 1, as the student has"),
    (AVG0 + " --kd-teacher-set vocab_size=13", "size mismatch"),
    (AVG0 + " --kd-teacher-set wings=2", "has no option wings"),
    (AVG0 + " --kd-teacher-set dim=wide", "option dim: 'wide'; expected as 24"),
    (AVG0 + " --kd-teacher-set causal=maybe", "option causal: 'maybe'; expected as False"),
    ("--kd-teacher t/epoch-1.pt --kd-teacher-epoch 1", "is a file, which has no epoch to choose"),
    ("--kd-teacher t/epoch-1.pt --kd-teacher-avg 2", "is a file, which has no avg to choose"),
    (AVG0 + " --kd-scale -1", "kd scale: -1"),
    (AVG0 + " --kd-shift -1", "kd shift: -1"),
    (AVG0 + " --kd-weighting nothing", "nothing"),
    ("--alignment-entropy -1", "alignment entropy: -1"),
    ("--alignment-entropy 0", "no teacher, no cache, no sparsity"),
    (AVG0 + " --kd-scal 1", "--kd-scal: unknown option"),
    (AVG0 + " --kd-cache c", "--kd-cache: and --kd-teacher"),
    ("--kd-cache c", "80: SpecAugment moves frames by up to 80"),
    ("--kd-cache c --spec-aug-time-warp-factor -1 --concatenate-cuts 1", "its cuts have new ids"),
    ("--kd-cache c --spec-aug-time-warp-factor -1 --return-cuts 0", "a cache is read by the ids"),
    ("--kd-cache c --spec-aug-time-warp-factor -1", "no teacher cache here"),
    ("--sparsity 0.9", "without a ramp"),
    (AVG0 + " --sparsity-ramp 1 2", "--sparsity-ramp: does nothing without --sparsity"),
    ("--alignment-entropy 0.3 --sparsity-scope global", "--sparsity-scope: does nothing without --sparsity"),
    ("--sparsity 0.9 --sparsity-ramp 1 2 --kd-scale 2", "--kd-scale: does nothing without --kd-teacher"),
    ("--kd-cache c --kd-teacher-epoch 3", "--kd-teacher-epoch: does nothing without --kd-teacher"),
    (AVG0 + " --kd-missing skip", "--kd-missing: does nothing without --kd-cache"),
    (AVG0 + " --kd-teacher-tokens theirs.txt --bpe-model ours.txt", "number 1 of its pieces is 'b'; expected 'c'"),
])  # fmt: skip
def test_what_cannot_be_taught_is_one_line(launched, words, problem):
    Path("theirs.txt").write_text("<blk> 0\nb 1\n"), Path("ours.txt").write_text("<blk> 0\nc 1\n")
    assert problem in launched(*words.split())


@pytest.mark.parametrize("changes, problem", [
    (dict(vocab_size=13), "its classes is 13; expected 12"),
    (dict(blank_id=1), "its blank is 1; expected 0"),
    (dict(subsampling_factor=2), "its subsampling is 2; expected 4"),
])  # fmt: skip
def test_a_teacher_of_another_kind_is_refused_and_both_are_named(recipe, launched, tmp_path, changes, problem):
    save_teacher(recipe, tmp_path / "t", **changes)
    assert problem in launched(*AVG0.split())


def test_weights_without_options_and_damaged_files_are_refused(recipe, launched, tmp_path):
    state = torch.load(tmp_path / "t/epoch-1.pt", weights_only=False)["model"]
    torch.save({"model": state}, tmp_path / "pretrained.pt")
    assert "holds weights without the options" in launched("--kd-teacher", "pretrained.pt")
    (tmp_path / "t/epoch-1.pt").write_bytes(b"PK\3\4 nothing")
    assert "cannot be read" in launched(*AVG0.split())


def test_a_training_with_a_teacher_goes_on_with_one_or_not_at_all(launched, spawned):
    words = ["--exp-dir", str(spawned), "--start-epoch", "3", "--sparsity", "0.9", "--sparsity-ramp", "1", "5"]
    for more in ((), ("--alignment-entropy", "0.3")):
        said = launched(*words, *more)
        assert "its checkpoint is of a training with a teacher; expected --kd-teacher as it had" in said
    said = launched(*words, *AVG0.split(), "--sparsity-structure", "4x1")
    assert "--sparsity-structure: 4x1, and its checkpoint has unstructured" in said
    said = launched(*words, *AVG0.split(), "--sparsity-scope", "global")
    assert "--sparsity-scope: global, and its checkpoint has per-layer" in said


def test_tokens_are_those_of_the_teachers_own_checkout_and_a_file_has_its_folders_recipe(recipe, tmp_path, monkeypatch):
    """Every recipe calls them data/lang/tokens.txt, and there may be two of one name."""
    for name, piece in (("ours", "b"), ("theirs", "c")):
        (tmp_path / name / "data/lang").mkdir(parents=True)
        (tmp_path / name / "data/lang/tokens.txt").write_text(f"<blk> 0\n{piece} 1\n")
    place = save_teacher(recipe, tmp_path / "theirs/zipformer/exp", lang_dir="data/lang")
    monkeypatch.chdir(tmp_path / "ours")
    for settings in (TeacherSettings(str(place)), TeacherSettings("../theirs/zipformer/exp/epoch-1.pt")):
        assert settings.pieces({"lang_dir": "data/lang"}) == ["<blk>", "c"]
        assert settings.pieces({"lang_dir": str(tmp_path / "ours/data/lang")}) == ["<blk>", "b"]
    with pytest.raises(UserError, match="its bpe.model or tokens.txt is in no folder above it"):
        TeacherSettings(str(place)).known_pieces(types.SimpleNamespace(options={}, where="teacher"))
    (place.parent / "train.py").write_text("raise ImportError('the fork of this teacher')")
    for settings in (TeacherSettings(str(place), 1, 0), TeacherSettings(str(place / "epoch-1.pt"))):
        with pytest.raises(UserError, match="the fork of this teacher"):
            settings.load(RECIPE)


def test_options_of_a_teacher_are_read_as_what_they_were(recipe, tmp_path):
    folder = save_teacher(recipe, tmp_path / "t")
    for value, expected in (("0", False), ("1", True), ("True", True), (False, False)):
        assert load_teacher(folder, 1, 0, recipe=RECIPE, causal=value).options["causal"] is expected


def test_options_that_are_younger_than_a_checkpoint_are_those_of_the_recipes_parser(recipe, tmp_path):
    options = {name: value for name, value in TEACHER.items() if name not in ("dim", "context_size")}
    torch.save({"model": recipe.AsrModel(8, 12).state_dict(), **options}, tmp_path / "epoch-1.pt")
    teacher = load_teacher(tmp_path / "epoch-1.pt", recipe=RECIPE)
    assert teacher.options["dim"] == 8 and teacher.model.decoder.context_size == 2


def test_a_teacher_of_dynamic_chunks_draws_none_unless_it_is_asked_to(recipe, tmp_path):
    """icefall's older conformers draw them in eval mode, too."""
    folder = save_teacher(recipe, tmp_path / "t", dynamic_chunk_training=True)
    for given, expected in (({}, False), ({"dynamic_chunk_training": "1"}, True)):
        assert load_teacher(folder, 1, 0, recipe=RECIPE, **given).options["dynamic_chunk_training"] is expected


def test_training_that_does_not_ask_the_teacher_is_an_error(recipe, launched, monkeypatch):
    """As of a model that never calls the pruned loss."""
    monkeypatch.setattr(_Lattice, "rnnt_loss_pruned", lambda *_, **tensors: tensors["logits"].sum())
    assert "without asking the teacher" in launched(*AVG0.split())
