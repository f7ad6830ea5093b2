"""``rnnt_kd.espnet`` in ESPnet2: its tasks, its trainer, its inference, its data."""

import dataclasses
import types
from pathlib import Path

import pytest
import torch
import yaml

pytest.importorskip("espnet2.tasks.asr_transducer", reason="ESPnet is not here (tests/run.sh --env espnet)")

from command_cases import told  # noqa: E402
from espnet_cases import HYBRID, TOKENS, TRANSDUCER  # noqa: E402
from reference import alignment_entropies, rnnt_losses_pruned  # noqa: E402

from rnnt_kd.espnet import KdASRTask, KdTransducerTask  # noqa: E402
from rnnt_kd.espnet.cache import fill_cache
from rnnt_kd.espnet.models import EspnetTransducer  # noqa: E402
from rnnt_kd.espnet.tasks import load_teacher  # noqa: E402
from rnnt_kd.lattice import get_backend  # noqa: E402
from rnnt_kd.lattice.prune_ranges import do_rnnt_pruning, get_rnnt_prune_ranges  # noqa: E402
from rnnt_kd.lattice.smoothed_loss import rnnt_loss_smoothed  # noqa: E402
from rnnt_kd.losses import rnnt_loss_pruned  # noqa: E402
from rnnt_kd.teachers.cache import TeacherCache  # noqa: E402

TASKS = {"transducer": (KdTransducerTask, TRANSDUCER), "hybrid": (KdASRTask, HYBRID)}


def build(world, kind="transducer", seed=0, **more):
    """A model in train mode, without SpecAugment and dropout and with the statistics that a teacher has."""
    task, model = TASKS[kind]
    words = world.options("built", model, **{"specaug": None, "specaug_conf": {}, **more})
    torch.manual_seed(seed)
    found = task.build_model(task.get_parser().parse_args(words)).train()
    for part in found.modules():
        if isinstance(part, torch.nn.BatchNorm1d):
            part.eval()  # as in a teacher
    return found


def batch(seed=1):
    torch.manual_seed(seed)
    text = torch.tensor([[2, 3, 4, 2], [5, 6, -1, -1]])
    return {
        "speech": torch.randn(2, 9600), "speech_lengths": torch.tensor([9600, 8000]),
        "text": text, "text_lengths": torch.tensor([4, 2]),
    }  # fmt: skip


def stats_of(world, name):
    """Of the only epoch: part -> key -> mean."""
    state = torch.load(world.folder / name / "checkpoint.pth", weights_only=False)
    return state["reporter"]["stats"][1]


# The loss


def test_without_a_teacher_the_value_and_gradient_are_those_of_espnets_own_code(world, monkeypatch):
    """Which calls k2; here, functions that other tests compare with it."""
    torch_backend = get_backend("torch")

    class RaggedTensor:
        def __init__(self, rows):
            self.rows = rows

        def to(self, device):
            return self

        def pad(self, mode, padding_value):
            longest = max(map(len, self.rows))
            return torch.tensor([row + [padding_value] * (longest - len(row)) for row in self.rows])

    k2 = types.ModuleType("k2")
    k2.RaggedTensor, k2.rnnt_loss_pruned = RaggedTensor, rnnt_loss_pruned
    k2.rnnt_loss_smoothed = lambda *words, **more: rnnt_loss_smoothed(*words, **more, backend=torch_backend)
    k2.get_rnnt_prune_ranges, k2.do_rnnt_pruning = get_rnnt_prune_ranges, do_rnnt_pruning
    ours, found = build(world, scheduler="warmuplr", scheduler_conf={"warmup_steps": 4}), []
    for model in (ours, build(world, scheduler="warmuplr", scheduler_conf={"warmup_steps": 4})):
        if found:
            monkeypatch.setitem(__import__("sys").modules, "k2", k2)
            model.__class__ = type(model).__mro__[2]
        for step in range(3):  # of the ramp
            loss, stats, weight = model(**batch(step))
            loss.backward()
        found.append((loss.detach(), {name: x.grad for name, x in model.named_parameters()}, weight))
    (loss, gradients, weight), (their_loss, their_gradients, their_weight) = found
    torch.testing.assert_close(loss, their_loss, rtol=1e-6, atol=1e-6)
    assert weight == their_weight
    for name, gradient in their_gradients.items():
        torch.testing.assert_close(gradients[name], gradient, rtol=1e-4, atol=1e-5, msg=name)


@pytest.mark.parametrize("kind", ["hybrid", "transducer"])
def test_the_full_lattice_is_the_loss_of_plain_loops(world, kind):
    model = build(world, kind, **({"model_conf": {}} if kind == "transducer" else {"model_conf": {"ctc_weight": 0.0}}))
    data = batch()
    loss = model(**data)[0]
    model.kd = dataclasses.replace(model.kd, alignment_entropy=0.3)
    decided = model(**data)[0]
    run = EspnetTransducer(model)
    labels = data["text"].clamp(min=0)
    out, lens = run.encode(data["speech"], data["speech_lengths"])
    T, S = out.shape[1], labels.shape[1]
    logits = model.joint_network(out.unsqueeze(2), run.predict(labels).unsqueeze(1)).double()
    ranges = torch.arange(S + 1).expand(2, T, S + 1)
    frames = lens.tolist()
    expected = rnnt_losses_pruned(logits, [[2, 3, 4, 2], [5, 6]], ranges.tolist(), 0, frames)
    torch.testing.assert_close(loss.double().squeeze(), torch.stack(list(expected)).mean(), rtol=1e-5, atol=1e-5)
    entropy = alignment_entropies(logits, [[2, 3, 4, 2], [5, 6]], ranges.tolist(), 0, frames, "regular").mean()
    torch.testing.assert_close((decided - loss).double().squeeze(), 0.3 * entropy, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", ["transducer", "hybrid", "hybrid pruned"])
def test_a_teacher_that_is_the_student_has_no_term(world, kind, tmp_path):
    kind, *pruned = kind.split()
    conf = {"pruned": {"prune_range": 3}} if pruned else {}
    torch.save(build(world, kind, seed=5, kd_conf=conf).state_dict(), tmp_path / "own.pth")
    (tmp_path / "config.yaml").write_text(built_config(kind))
    for seed, is_own in ((5, True), (6, False)):
        model = build(world, kind, seed=seed, kd_conf={**conf, "teacher_model": str(tmp_path / "own.pth")})
        loss, stats, _ = model(**batch())
        assert (stats["loss_kd"].abs().item() < 1e-5) == is_own
        scale = 1.0 if kind == "hybrid" and not pruned else 0.1  # of the first step
        plain = build(world, kind, seed=seed, kd_conf=conf)(**batch())[0]
        torch.testing.assert_close(loss, plain + scale * stats["loss_kd"], rtol=1e-5, atol=1e-5)


def built_config(kind, **more):
    task, model = TASKS[kind]
    options = {**task.get_default_config(), **model, "frontend_conf": {"n_fft": 400, "hop_length": 160}}
    return yaml.safe_dump({**options, "token_list": TOKENS, **more})


# Training and decoding


def test_the_teacher_is_heard_logged_and_in_no_checkpoint(world, teacher):
    KdTransducerTask.main(cmd=world.options("online", kd_conf={"teacher_model": teacher}))
    stats, own = stats_of(world, "online"), torch.load(world.weights("online"))
    assert (
        float(stats["train"]["loss_kd"].v if hasattr(stats["train"]["loss_kd"], "v") else stats["train"]["loss_kd"]) > 0
    )
    assert "loss_kd" not in stats["valid"] and "loss_pruned" in stats["valid"]
    from espnet2.tasks.asr_transducer import ASRTransducerTask

    plain, _ = ASRTransducerTask.build_model_from_file(world.folder / "online" / "config.yaml")
    assert set(own) == set(plain.state_dict())


@pytest.mark.parametrize("kind", ["transducer", "hybrid"])
def test_stock_inference_decodes_the_student(world, teacher, kind):
    conf = {"teacher_model": teacher, **({"pruned": {"prune_range": 3}} if kind == "hybrid" else {})}
    task, model = TASKS[kind]
    task.main(cmd=world.options(kind, model, kd_conf=conf))
    module = "espnet2.bin.asr_transducer_inference" if kind == "transducer" else "espnet2.bin.asr_inference"
    options = ["--data_path_and_name_and_type", f"{world.folder}/wav.scp,speech,sound", "--num_workers", 0]
    options += ["--asr_train_config", world.folder / kind / "config.yaml", "--asr_model_file", world.weights(kind)]
    options += ["--output_dir", world.folder / f"{kind}_decoded", "--beam_size", 1]
    if kind == "hybrid":
        options += ["--ctc_weight", 0.0]
    stock = [module] if kind == "transducer" else ["rnnt_kd.espnet.run", "-m", module]  # it wants warp-transducer
    world.run(*stock, *options)
    lines = (world.folder / f"{kind}_decoded" / "1best_recog" / "text").read_text().splitlines()
    assert [line.split()[0] for line in lines] == [f"utt{n}" for n in range(8)]


@pytest.fixture(scope="module")
def cache(world, teacher):
    data = [word for name in ("wav.scp,speech,sound", "text,text,text")
            for word in ("--data-path-and-name-and-type", f"{world.folder}/{name}")]  # fmt: skip
    words = ["rnnt_kd.espnet", "cache", "--teacher-model", teacher, *data, "--cache-dir", world.folder / "kd"]
    words += ["--prune-range", 3, "--nj", 2]
    assert world.run(*words).count("done") == 2
    assert world.run(*words, "--job", 2).count("finished already") == 1
    return world.folder / "kd"


@pytest.mark.parametrize("kind", ["transducer", "transducer whole", "hybrid"])
def test_a_cache_and_its_teacher_agree_by_utterance_id(world, teacher, cache, kind):
    """On the cache's own ranges, to float16; ESPnet makes whole logits where ``use_k2_pruned_loss`` is not set."""
    import soundfile

    sounds = [torch.from_numpy(soundfile.read(world.folder / f"utt{n}.wav", dtype="float32")[0]) for n in (4, 1)]
    rows = dict(line.split() for line in (world.folder / "text").read_text().splitlines())
    labels = [torch.tensor([TOKENS.index(letter) for letter in rows[f"utt{n}"]]) for n in (4, 1)]
    pad = torch.nn.utils.rnn.pad_sequence
    data = {"speech": pad(sounds, True), "speech_lengths": torch.tensor([len(x) for x in sounds]),
            "text": pad(labels, True, -1), "text_lengths": torch.tensor([len(x) for x in labels])}  # fmt: skip
    kind, *whole = kind.split()
    more = {"model_conf": {}} if whole else {}
    online = build(world, kind, kd_conf={"teacher_model": teacher}, **more)
    cached = build(world, kind, kd_conf={"cache": str(cache)}, **more)
    assert (online.pruning is None) == (bool(whole) or kind == "hybrid")
    kept = cached.kd.cache.lookup(["utt4", "utt1"], online.encode(*list(data.values())[:2])[1].tolist(), 5)
    heard = online.kd.online.view
    same = types.SimpleNamespace(view=lambda *words: dataclasses.replace(heard(*words), ranges=kept.ranges()))
    online.kd = dataclasses.replace(online.kd, online=same)
    terms = [model(**data, utt_id=["utt4", "utt1"])[1]["loss_kd"] for model in (online, cached)]
    torch.testing.assert_close(*terms, rtol=5e-3, atol=5e-3)
    data["text"] = data["text"].flip(1)
    assert "utt4: made of another transcript" in told(cached, **data, utt_id=["utt4", "utt1"])


def test_a_training_from_a_cache_runs_no_teacher(world, cache):
    KdTransducerTask.main(cmd=world.options("cached", kd_conf={"cache": str(cache)}))
    assert "loss_kd" in stats_of(world, "cached")["train"]


def test_workers_that_espnet_spawns_distil_or_end_in_one_line(world, teacher):
    """As --multiprocessing_distributed does: main_worker in a fresh process."""
    for conf, status in (({"teacher_model": teacher}, 0), ({"teacher_model": f"{world.folder}/gone.pth"}, 1)):
        args = KdTransducerTask.get_parser().parse_args(world.options("spawned", kd_conf=conf))
        args.version, args.distributed = "0", False
        process = torch.multiprocessing.get_context("spawn").Process(target=KdTransducerTask.main_worker, args=(args,))
        process.start()
        process.join()
        assert process.exitcode == status
    assert "loss_kd" in stats_of(world, "spawned")["train"]


def test_the_python_of_asr_sh_trains_with_our_tasks_and_runs_all_else_as_it_is(world, teacher):
    run = "rnnt_kd.espnet.run"
    for kind, module in (("transducer", "asr_transducer_train"), ("hybrid", "asr_train")):
        words = world.options(f"run_{kind}", TASKS[kind][1])
        world.run(run, "-m", f"espnet2.bin.{module}", *words, "--kd_conf", f"teacher_model={teacher}")
        assert "loss_kd" in stats_of(world, f"run_{kind}")["train"]
    assert "usage" in world.run(run, "-m", "espnet2.bin.tokenize_text", "--help")
    script = world.folder / "script.py"
    script.write_text("import sys\nprint(__name__, sys.argv[1:])\n")
    assert "__main__ ['a', '-b']" in world.run(run, script, "a", "-b")


def test_statistics_are_collected_without_the_teacher(world):
    conf = {"teacher_model": f"{world.folder}/gone.pth"}
    KdTransducerTask.main(cmd=world.options("stats", kd_conf=conf, collect_stats=True))
    assert (world.folder / "stats" / "train" / "feats_stats.npz").is_file()


def test_a_teacher_of_dynamic_chunks_draws_none(world, tmp_path):
    """ESPnet draws them in eval mode, too, and its inference turns that off."""
    chunks = {**TRANSDUCER["encoder_conf"], "main_conf": {"dynamic_chunk_training": True, "short_chunk_size": 20}}
    torch.save(build(world, encoder_conf=chunks).state_dict(), tmp_path / "x.pth")
    (tmp_path / "config.yaml").write_text(built_config("transducer", encoder_conf=chunks))
    teacher, _ = load_teacher(str(tmp_path / "x.pth"), None)
    speech, lens = torch.randn(1, 32000), torch.tensor([32000])
    first, *others = (teacher.encode(speech, lens)[0] for _ in range(6))
    assert all(torch.equal(first, other) for other in others)


def test_a_teacher_follows_its_batch_to_another_device():
    class Model(torch.nn.Linear):
        def encode(self, x, lens):
            return self(x), lens

    teacher = EspnetTransducer(Model(3, 3))
    assert teacher.encode(torch.empty(1, 2, 3, device="meta"), None)[0].device.type == "meta"


# Bad input


def test_a_model_that_warps_time_is_warned_of(world, teacher, caplog):
    conf = {"specaug": "specaug", "specaug_conf": {"time_mask_width_range": [0, 10]}}  # warping is ESPnet's default
    build(world, kd_conf={"teacher_model": teacher}, **conf)
    assert "apply_time_warp: false" in caplog.text
    caplog.clear()
    build(world, **conf)
    assert "apply_time_warp" not in caplog.text


@pytest.mark.parametrize("conf, words", [
    ({"teacher": "x"}, ["kd_conf", "there is no 'teacher'", "did you mean 'teacher_model'"]),
    ({"teacher_model": "x", "cache": "y"}, ["teacher_model and cache", "one of them"]),
    ({"teacher_model": ""}, ["kd_conf.teacher_model", "is empty"]),
    ({"teacher_config": "x"}, ["teacher_config without teacher_model"]),
    ({"scale": "much"}, ["kd_conf.scale", "much", "a number"]),
    ({"scale": -1}, ["kd_conf.scale", "-1"]),
    ({"scale": 2}, ["kd_conf.scale", "does nothing without teacher_model or cache"]),
    ({"teacher_model": "x", "missing": "skip"}, ["kd_conf.missing", "does nothing without cache"]),
    ({"weighting": "occupation"}, ["kd weighting", "occupancy"]),
    ({"align": "pad"}, ["kd_conf.align", "crop-pad"]),
    ({"cache": "nowhere"}, ["nowhere", "no teacher cache here"]),
    ({"teacher_model": "nowhere.pth"}, ["nowhere.pth", "no such file"]),
    ({"pruned": {}}, ["kd_conf.pruned", "k2_pruned_loss_args"]),
    *(({"pruned": value}, ["kd_conf.pruned", "a mapping"]) for value in (True, False, 5, "5")),
    *(({"class_scales": value}, ["class scales", "three numbers"]) for value in (2, "1,0,2", [1, 2])),
    ({"class_scales": [1, "much", 0]}, ["kd_conf.class_scales", "much"]),
    ({"shift": 1.7}, ["kd_conf.shift", "1.7", "a whole number"]),
    *(({key: 3}, [f"kd_conf.{key}", "3; expected a path"]) for key in ("teacher_model", "cache")),
])  # fmt: skip
def test_a_wrong_kd_conf_is_one_line(world, conf, words):
    said = told(build, world, kd_conf=conf)
    assert all(word in said for word in words), said


@pytest.mark.parametrize("model_conf, words", [
    ({"use_k2_pruned_loss": True, "k2_pruned_loss_args": {"prune_rang": 3}}, ["prune_rang", "did you mean"]),
    ({"use_k2_pruned_loss": True, "k2_pruned_loss_args": {"reduction": "none"}}, ["reduction", "mean"]),
    ({"use_k2_pruned_loss": True, "k2_pruned_loss_args": {"padding_idx": 9}}, ["padding_idx", "9", "0"]),
    ({"use_k2_pruned_loss": True, "k2_pruned_loss_args": {"prune_range": 2.7}}, ["prune_range", "2.7", "a whole number"]),
    ({"use_k2_pruned_loss": True, "k2_pruned_loss_args": {"lm_scale": "nan"}}, ["lm_scale", "nan"]),
    ({"use_k2_pruned_loss": True, "k2_pruned_loss_args": {"simple_loss_scaling": -1}}, ["simple_loss_scaling", "-1"]),
    ({"fastemit_lambda": 0.1}, ["fastemit_lambda", "0.1"]),
])  # fmt: skip
def test_what_this_loss_cannot_do_is_one_line(world, model_conf, words):
    said = told(build, world, kd_conf={"scale": 1}, model_conf=model_conf)
    assert all(word in said for word in words), said


def test_an_attention_decoder_is_espnets_own_unless_it_is_to_learn_from_a_teacher(world):
    attention = {"decoder": "transformer", "decoder_conf": {"num_blocks": 1, "linear_units": 8, "attention_heads": 2}}
    assert not hasattr(build(world, "hybrid", **attention), "kd")
    assert "no transducer" in told(build, world, "hybrid", **attention, kd_conf={"scale": 1})


def test_a_teacher_of_another_kind_is_one_line_that_names_both(world, teacher, tmp_path):
    other = [*TOKENS[:3], "z", *TOKENS[4:]]
    weights, config = tmp_path / "x.pth", tmp_path / "config.yaml"

    def said(text, state):
        config.write_text(text)
        torch.save(state, weights)
        return told(build, world, kd_conf={"teacher_model": str(weights)})

    state = build(world).state_dict()
    found = said(built_config("transducer", token_list=other), state)
    assert "number 3 of its tokens is 'z'" in found and "'b'" in found and str(config) in found
    assert "11 tokens" in said(built_config("transducer", token_list=[*TOKENS, "z"]), state)
    assert "gives no transducer" in said("- 1\n", state)
    assert "are no weights of" in said(built_config("transducer"), {**state, "lm_proj.bias": torch.zeros(3)})
    lacking = {name: x for name, x in state.items() if name != "lm_proj.bias"}
    assert "lacks 1 of the model's weights, the first lm_proj.bias" in said(built_config("transducer"), lacking)
    for content in (b"no checkpoint", b"some words\n", b""):
        weights.write_bytes(content)
        assert "are no weights of" in told(build, world, kd_conf={"teacher_model": str(weights)})
    config.unlink()
    assert "config.yaml" in told(build, world, kd_conf={"teacher_model": str(weights)})


def test_a_teacher_of_another_frame_rate_is_one_line_that_names_both(world, tmp_path):
    slower = {
        **TRANSDUCER,
        "encoder_conf": {**TRANSDUCER["encoder_conf"], "input_conf": {"conv_size": 4, "subsampling_factor": 6}},
    }
    torch.save(build(world, encoder_conf=slower["encoder_conf"]).state_dict(), tmp_path / "slow.pth")
    (tmp_path / "config.yaml").write_text(built_config("transducer", encoder_conf=slower["encoder_conf"]))
    model = build(world, kd_conf={"teacher_model": str(tmp_path / "slow.pth")})
    assert "encoder frames where the student makes" in told(model, **batch())


def test_weights_in_half_precision_are_taken_in_float32(world, teacher, tmp_path):
    torch.save({name: x.half() for name, x in torch.load(teacher).items()}, tmp_path / "half.pth")
    found, _ = load_teacher(str(tmp_path / "half.pth"), str(Path(teacher).parent / "config.yaml"))
    assert {x.dtype for x in found.model.parameters()} == {torch.float32}


def test_a_cache_for_others_or_without_the_utterance_is_one_line(world, cache):
    conf = {"cache": str(cache)}
    wider = {"use_k2_pruned_loss": True, "k2_pruned_loss_args": {"prune_range": 4}}
    assert "prune range 3" in told(build, world, kd_conf=conf, model_conf=wider)
    assert "temperature 1.0" in told(build, world, kd_conf={**conf, "temperature": 2})
    assert "BPE model" in told(build, world, kd_conf=conf, token_list=[*TOKENS[:3], "z", *TOKENS[4:]])
    assert "no ranges of its own" in told(build, world, "hybrid", kd_conf={**conf, "missing": "skip"})
    model = build(world, kd_conf=conf)
    assert "no utt_id" in told(model, **batch())
    assert "2 of 2 utterances are missing, the first: x" in told(model, **batch(), utt_id=["x", "y"])
    skipping = build(world, kd_conf={**conf, "missing": "skip"})
    assert skipping(**batch(), utt_id=["x", "y"])[1]["loss_kd"] == 0


def test_the_cache_of_a_hybrid_teacher_is_pruned_as_it_was_trained(world, tmp_path):
    pruned = {"loss_type": "modified", "lm_scale": 0.25, "prune_range": 3}
    torch.save(build(world, "hybrid", kd_conf={"pruned": pruned}).state_dict(), tmp_path / "x.pth")
    (tmp_path / "config.yaml").write_text(built_config("hybrid", token_type="char", kd_conf={"pruned": pruned}))
    data = [f"{world.folder}/wav.scp,speech,sound", f"{world.folder}/text,text,text"]
    options = dict(prune_range=3, temperature=1.0, batch_size=4, job=1, num_jobs=1, device="cpu")
    fill_cache(str(tmp_path / "x.pth"), "", data, tmp_path / "kd", **options)
    facts = TeacherCache.open(tmp_path / "kd").facts
    assert (facts.rnnt_type, facts.lm_only_scale, facts.am_only_scale) == ("modified", 0.25, 0.0)


def test_a_teacher_without_heads_fills_no_cache(world, tmp_path):
    torch.save(build(world, "hybrid").state_dict(), tmp_path / "x.pth")
    (tmp_path / "config.yaml").write_text(built_config("hybrid", token_type="char"))
    data = [f"{world.folder}/wav.scp,speech,sound", f"{world.folder}/text,text,text"]
    words = ["rnnt_kd.espnet", "cache", "--teacher-model", tmp_path / "x.pth", "--cache-dir", tmp_path / "kd"]
    for file in data:
        words += ["--data-path-and-name-and-type", file]
    said = world.run(*words, status=1)
    assert "no simple heads" in said.splitlines()[-1] and "Traceback" not in said


@pytest.mark.parametrize("name, lines, words", [
    ("text", "utt0 ab\nutt9 ab\n", "utt9 is not in"), ("text", "utt0 ab\nutt0 ab\n", "utt0 comes twice"),
    ("text", "utt0\n", "utt0 has no value"), ("wav.scp", "", "utt0 is not in"),
])  # fmt: skip
def test_data_of_a_cache_that_do_not_fit_together_are_one_line(world, teacher, tmp_path, name, lines, words):
    data = {file: world.folder / file for file in ("wav.scp", "text")}
    data[name] = tmp_path / name
    data[name].write_text(lines)
    given = [f"{data['wav.scp']},speech,sound", f"{data['text']},text,text"]
    options = dict(prune_range=3, temperature=1.0, batch_size=2, job=1, num_jobs=1, device="cpu")
    assert words in told(fill_cache, teacher, "", given, tmp_path / "kd", **options)
