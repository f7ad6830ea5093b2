"""A family of sparsities out of one training: whole systems, of which each decodes and is exported as any other."""

import copy
import dataclasses
import json
import shutil

import pytest
import torch
from objective_cases import make_batch, make_model, objective
from safetensors.torch import load_file
from training_cases import metrics, system_json, train_with_stops

from rnnt_kd.bin import decode, export
from rnnt_kd.config import KdConfig
from rnnt_kd.errors import UserError
from rnnt_kd.sparsity.rounding import rounded
from rnnt_kd.sparsity.sparsifier import Sparsifier
from rnnt_kd.systems.store import load_system, read_system
from rnnt_kd.training.loop import Training

UNITS = dict(target=0.6, nested=[0.3], structure="heads+ffn+channels", scope="global")
WEIGHTS = dict(target=0.9, nested=[0.8, 0.5])
IN_PLACE = dict(hears="same-view", in_place=True)


@pytest.fixture(scope="module", params=["weights", "units", "in place"])
def family(request, tone_corpus, teacher_dir, tmp_path_factory):
    folder = tmp_path_factory.mktemp("family") / "x"
    sparsity, kd = {"weights": (WEIGHTS, {}), "units": (UNITS, {}), "in place": (WEIGHTS, IN_PLACE)}[request.param]
    config = tone_corpus.config("sparse_student", sparsity=sparsity, with_kd=True, ranges="student", **kd)
    config.training.log_every_steps = 1
    tone_corpus.train(config, folder, teacher_dir=teacher_dir)
    return config, folder


def members(config, folder):
    """Sparsity -> folder, the densest first."""
    densest, *others = sorted([*config.sparsity.nested, config.sparsity.target])
    return {densest: folder, **{sparsity: folder / "members" / f"{sparsity:g}" for sparsity in others}}


def test_every_member_is_a_system_of_its_sparsity(family):
    config, folder = family
    found = members(config, folder)
    assert sorted(path.name for path in (folder / "members").iterdir()) == [f"{s:g}" for s in list(found)[1:]]
    sizes = []
    for sparsity, place in found.items():
        model, read = load_system(place)
        about = system_json(place)
        assert read.sparsity.target == sparsity and read.sparsity.nested == []
        assert about["sparsity"] == pytest.approx(sparsity, abs=0.12)
        assert about["nonzero_params"] == sum(int(weight.count_nonzero()) for weight in model.parameters())
        sizes.append(about["nonzero_params"])
    assert sizes == sorted(sizes, reverse=True) and len(set(sizes)) == len(sizes)


@pytest.mark.parametrize("structure", ["unstructured", "16x1"])
def test_members_learn_with_the_rounded_weights_that_are_written(
    tone_corpus, teacher_dir, tmp_path, monkeypatch, structure
):
    """Where a mask hides the largest weight of an output, its member has another scale."""
    real, compared = Training._write_weights, []

    def write(self, folder, member=0):
        report = real(self, folder, member)
        step = next(step for step in range(10) if self.sparsifier.turn(step) == member)
        with self.sparsifier.shown(step, self.rounder.on_grid):
            shown = {name: weight.clone() for name, weight in self.model.state_dict().items()}
        written = load_file(folder / "model.safetensors")
        compared.append(sum(int((written[name] != shown[name]).sum()) for name in written))
        return report

    monkeypatch.setattr(Training, "_write_weights", write)
    sparsity = dict(target=0.8, nested=[0.4], structure=structure)
    overrides = ["sparse_student.training.weight_bits=4"]
    config = tone_corpus.config("sparse_student", sparsity=sparsity, overrides=overrides)
    tone_corpus.train(config, tmp_path / "x", teacher_dir=teacher_dir)
    assert compared == [0, 0]


def test_it_is_finished_and_a_damaged_configuration_is_written_again(family, tone_corpus, teacher_dir):
    config, folder = family
    assert config.zeros == min(config.sparsity.nested)  # what tables call it
    before = (folder / "config.yaml").read_bytes()
    (folder / "config.yaml").write_text("name: y\n")
    said = tone_corpus.train(config, folder, teacher_dir=teacher_dir)
    assert "is written again" in said[0] and (folder / "config.yaml").read_bytes() == before
    assert "finished already" in tone_corpus.train(config, folder, teacher_dir=teacher_dir)[-1]


def test_a_sparser_one_has_weights_of_the_denser_one_alone(family):
    config, folder = family
    if config.sparsity.structure != "unstructured":
        pytest.skip("units are cut out: the shapes differ")
    tensors = [load_file(place / "model.safetensors") for place in members(config, folder).values()]
    for denser, sparser in zip(tensors, tensors[1:]):
        assert all(torch.equal(sparser[name], denser[name] * (sparser[name] != 0)) for name in denser)


def test_members_decode_and_are_exported(family, tone_corpus, tmp_path):
    config, folder = family
    sparsest = list(members(config, folder).values())[-1]
    words = ["--system-dir", sparsest, "--cuts", tone_corpus.dev_cuts, "--bpe-dir", tone_corpus.bpe_dir]
    words += ["--test-set", "dev", "--out-dir", tmp_path / "decode", "--device", "cpu"]
    decode.main([str(word) for word in words])
    assert (tmp_path / "decode" / "recogs-dev.txt").stat().st_size > 0
    export.main([str(sparsest), "--bpe-dir", str(tone_corpus.bpe_dir), "--out", str(tmp_path / "out")])
    assert json.loads((tmp_path / "out" / "model.json").read_text())["system"] == f"x-{config.sparsity.target:g}"


def test_stopped_on_the_ramp_and_after_it_it_ends_with_the_same_bits(family, tone_corpus, teacher_dir, tmp_path):
    config, whole = family
    train_with_stops(tone_corpus, config, tmp_path / "x", (1, 1, 2), teacher_dir=teacher_dir)
    assert metrics(tmp_path / "x", "dev") == metrics(whole, "dev")
    for ours, right in zip(members(config, tmp_path / "x").values(), members(config, whole).values()):
        for name in ("model.safetensors", "config.yaml"):
            assert (ours / name).read_bytes() == (right / name).read_bytes(), (right, name)


def test_in_place_a_sparser_member_learns_from_the_densest_as_from_a_teacher_that_is_a_copy_of_it():
    """The same losses and gradients as with a second model of the densest member's weights, run online."""
    online = KdConfig(ranges="student", hears="same-view")
    model, batch, found = make_model(1), make_batch(), {}
    torch.nn.init.normal_(model.joiner.output_linear.bias)
    matched = dict(include=[r"encoder\..*\.weight", r"joiner\..*"], scope="per-layer")
    sparsifier = Sparsifier(model, 0.8, 0, 1, 1, nested=[0.3], **matched)
    sparsifier.step(1)
    densest = copy.deepcopy(model).eval().requires_grad_(False)
    ours = objective(model, kd=dataclasses.replace(online, in_place=True)).train()
    view = ours.in_place(*batch[:3])
    assert model.training
    with sparsifier.shown(0):
        for name, weight in densest.joiner.output_linear.named_parameters():
            assert not torch.equal(model.joiner.output_linear.get_parameter(name), weight)
        for name, terms in (
            ("in place", ours(*batch, densest=view)),
            ("copy", objective(model, kd=online, teacher=densest).train()(*batch)),
            ("no teacher", ours(*batch)),
        ):
            model.zero_grad()
            (terms["pruned"] + terms["kd"]).backward()
            gradients = [weight.grad.clone() for weight in model.parameters() if weight.grad is not None]
            found[name] = [*terms.values(), *gradients]
            assert (terms["kd"] > 1e-3) == (name != "no teacher")
    assert len(found["in place"]) == len(found["copy"]) and all(map(torch.equal, found["in place"], found["copy"]))


def test_in_place_each_member_but_the_densest_has_a_teacher(family):
    config, folder = family
    has_teacher = [line["kd_loss"] > 0 for line in metrics(folder, "train")]
    turns = 1 + len(config.sparsity.nested)
    assert len(has_teacher) > 2 * turns
    wanted = [not config.kd.in_place or step % turns != 1 for step in range(len(has_teacher))]
    assert has_teacher == wanted


@pytest.mark.parametrize("kd, message", [
    (dict(), "with kd.ranges teacher, hears student"),
    (dict(ranges="student", hears="same-view", features=1.0), "features 1"),
    (dict(ranges="student", hears="same-view", shift=1), "shift 1"),
    (dict(ranges="student", hears="same-view", label_scale=0.5), "kd.label_scale: 0.5 with kd.in_place"),
])  # fmt: skip
def test_a_family_cannot_learn_in_place_from_what_is_not_there(kd, message):
    with pytest.raises(ValueError, match=message):
        KdConfig(in_place=True, **kd)


def test_a_system_that_is_no_family_cannot_learn_in_place(tone_corpus):
    with pytest.raises(UserError, match="kd.in_place: without sparsity.nested"):
        tone_corpus.config("sparse_student", sparsity=0.5, with_kd=True, ranges="student", **IN_PLACE)


@pytest.mark.skipif(torch.__version__.startswith("1."), reason="torch 1 has no LayerNorm of mixed precision on a CPU")
def test_in_place_with_mixed_precision(tone_corpus, teacher_dir, tmp_path):
    overrides = ["sparse_student.training.precision=bf16-mixed"]
    kd = dict(with_kd=True, ranges="student", **IN_PLACE)
    config = tone_corpus.config("sparse_student", sparsity=WEIGHTS, overrides=overrides, **kd)
    tone_corpus.train(config, tmp_path / "x", teacher_dir=teacher_dir)
    assert all(line["kd_loss"] > 0 for line in metrics(tmp_path / "x", "train"))


def test_a_members_files_are_held_against_what_was_written(family, tone_corpus, teacher_dir, tmp_path):
    config, folder = family[0], shutil.copytree(family[1], tmp_path / "x")
    sparsest = list(members(config, folder).values())[-1]
    (sparsest / "config.yaml").write_text("name: y\n")
    with pytest.raises(UserError, match="config.yaml: is not what was written"):
        read_system(sparsest)
    assert "is written again" in tone_corpus.train(config, folder, teacher_dir=teacher_dir)[0]
    weights = bytearray((sparsest / "model.safetensors").read_bytes())
    weights[-5] ^= 1
    (sparsest / "model.safetensors").write_bytes(weights)
    with pytest.raises(UserError, match="model.safetensors: is not what was written"):
        load_system(sparsest)
    said = tone_corpus.train(config, folder, teacher_dir=teacher_dir)
    assert "moved the run" in said[0] and "model.safetensors is not what was written" in said[0]
    wanted = members(config, family[1])[config.sparsity.target] / "model.safetensors"
    assert (sparsest / "model.safetensors").read_bytes() == wanted.read_bytes()


def test_rounded_weights_are_on_the_grid_of_each_member(tone_corpus, teacher_dir, tmp_path):
    overrides = ["sparse_student.training.weight_bits=4"]
    config = tone_corpus.config("sparse_student", sparsity=WEIGHTS, overrides=overrides)
    tone_corpus.train(config, tmp_path / "x", teacher_dir=teacher_dir)
    for place in members(config, tmp_path / "x").values():
        weight = load_file(place / "model.safetensors")["encoder.layers.0.feedforward1.linear_in.weight"]
        assert weight.any() and torch.equal(rounded(weight, 4), weight)


@pytest.mark.parametrize("sparsity", [
    dict(target=0.5, nested=[0.6]),
    dict(target=0.5, nested=[0.3], structure="2:4"),
    dict(target=0.9000001, nested=[0.5]),  # members are called by their sparsity, of six digits
    dict(target=0.9, nested=[0.8, 0.8]),
])  # fmt: skip
def test_a_family_that_cannot_be_is_refused_by_its_configuration(tone_corpus, sparsity):
    with pytest.raises(UserError, match="^sparsity.nested: "):
        tone_corpus.config("sparse_student", sparsity=sparsity)
