"""icefall's own recipes, none of whose files is edited.  Needs ICEFALL_DIR and an environment that icefall runs in."""

import importlib.util
import os
import random
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ICEFALL = Path(os.environ.get("ICEFALL_DIR", "-"))
if not (ICEFALL / "egs").is_dir():
    pytest.skip("no icefall: set ICEFALL_DIR to a checkout", allow_module_level=True)
for package in ("k2", "lhotse", "sentencepiece"):
    pytest.importorskip(package)
sys.path.append(str(ICEFALL))

from rnnt_kd.icefall import distill, load_teacher  # noqa: E402
from rnnt_kd.icefall.cache import cached_model  # noqa: E402
from rnnt_kd.icefall.recipe import averaged, builder, import_train, recipe_imports  # noqa: E402

ASR, PLUGIN = ICEFALL / "egs/librispeech/ASR", Path(__file__).resolve().parents[2] / "plugin"
_found = importlib.util.spec_from_file_location("toy", Path(__file__).with_name("toy.py"))
toy = importlib.util.module_from_spec(_found)
_found.loader.exec_module(toy)
RECIPES = list(toy.SIZES)


def build(name, seed):
    """A toy model with random weights, and the options of its training."""
    torch.manual_seed(seed)
    with recipe_imports(ASR / name):
        train = import_train(ASR / name / "train.py")
        params = {**train.get_params(), **vars(train.get_parser().parse_args(toy.SIZES[name].split()))}
        params.update(blank_id=0, sos_id=1, eos_id=1, unk_id=2, vocab_size=25, bpe_model="data/lang_bpe/bpe.model")
        from icefall.utils import AttributeDict

        return builder(train)(AttributeDict(params)), params


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """The toy corpus, and of each recipe a teacher: exp-<recipe>/epoch-1.pt."""
    folder, here = tmp_path_factory.mktemp("icefall"), Path.cwd()
    os.chdir(folder)
    try:
        toy.make(folder)
    finally:
        os.chdir(here)
    for name in RECIPES:
        model, params = build(name, seed=2)
        (folder / f"exp-{name}").mkdir()
        torch.save({"model": model.state_dict(), **params}, folder / f"exp-{name}/epoch-1.pt")
    return folder


def run(corpus, *command, **variables):
    paths = [str(Path(__file__).with_name("gloo")), str(PLUGIN), str(ICEFALL)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1", **variables}
    command = [sys.executable, *map(str, command)]
    done = subprocess.run(command, cwd=corpus, env=environment, capture_output=True, text=True, timeout=1500)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout + done.stderr


def train(corpus, name, exp_dir, *words):
    options = "--full-libri 0 --manifest-dir data/fbank --bpe-model data/lang_bpe/bpe.model --enable-musan 0 "
    options += "--num-workers 0 --max-duration 12 --num-buckets 2 --tensorboard 0 --average-period 1 "
    options += f"--exp-dir {exp_dir} {toy.SIZES[name]}"
    return run(corpus, "-m", "rnnt_kd.icefall", ASR / name / "train.py", *options.split(), *map(str, words))


def teacher_words(name):
    words = f"--kd-teacher exp-{name} --kd-teacher-epoch 1 --kd-teacher-avg 0 --kd-teacher-recipe {ASR / name}"
    return words.split()


@pytest.mark.parametrize("world_size", [1, 2])
@pytest.mark.parametrize("name", RECIPES)
def test_an_unedited_train_py_learns_from_a_teacher_on_every_rank(corpus, name, world_size):
    exp_dir = f"s-{name}-{world_size}"
    words = ["--num-epochs", "1", "--world-size", world_size, "--master-port", 13500 + RECIPES.index(name)]
    log = train(corpus, name, exp_dir, *teacher_words(name), *words)
    ranks = [f"({rank}/{world_size}) " for rank in range(world_size)] if world_size > 1 else [""]
    for rank in ranks:
        assert any(f"{rank}Epoch 1, batch 0" in line and "kd_loss=" in line for line in log.splitlines()), rank
    saved = torch.load(corpus / exp_dir / "epoch-1.pt", weights_only=False)
    assert list(saved["model"]) == list(saved["model_avg"]) == list(build(name, 1)[0].state_dict())


@pytest.fixture(scope="module")
def cached(corpus):
    """A zipformer that gets sparse in its last step of four, trained from a cache that two jobs filled."""
    words = "--cuts data/fbank/librispeech_cuts_train-clean-100.jsonl.gz --bpe-model data/lang_bpe/bpe.model"
    words = [*teacher_words("zipformer"), *words.split(), "--cache-dir", "kd", "--shard-utterances", 8, "--nj", 2]
    for job in (1, 2):
        run(corpus, "-m", "rnnt_kd.icefall", "cache", *words, "--device", "cpu", "--job", job)
    words = "--kd-cache kd --spec-aug-time-warp-factor -1 --sparsity 0.9 --sparsity-ramp 0 4 --num-epochs 2"
    return train(corpus, "zipformer", "s-cached", *words.split())


def test_a_student_learns_from_a_cache_of_an_icefall_teacher(corpus, cached):
    assert "kd_loss=" in cached and "learns from 16 utterances of kd" in cached


def test_a_sparse_zipformer_keeps_its_zeros_through_icefalls_averaging(corpus, cached):
    from icefall.checkpoint import average_checkpoints_with_averaged_model

    folder = corpus / "s-cached"
    names = [name for name in torch.load(folder / "epoch-2.pt", weights_only=False)["rnnt_kd"]["sparsifier"]]
    names = [name[: -len(".weight_mask")] for name in names if name.endswith(".weight_mask")]
    state, plain = averaged(folder, 2, 1)[0], average_checkpoints_with_averaged_model(
        str(folder / "epoch-1.pt"), str(folder / "epoch-2.pt")
    )  # fmt: skip
    zeros = [sum(int((one[name] == 0).sum()) for name in names) for one in (state, plain)]
    assert zeros[1] < zeros[0] == sum(round(0.9 * state[name].numel()) for name in names)
    assert len(names) > 30 and any(name.startswith("encoder_embed.") for name in names)


def test_a_jit_script_says_what_the_checkpoint_says(corpus):
    import sentencepiece

    processor = sentencepiece.SentencePieceProcessor()
    processor.load(str(corpus / "data/lang_bpe/bpe.model"))
    lines = [f"{processor.id_to_piece(n)} {n}\n" for n in range(processor.get_piece_size())]
    (corpus / "data/lang_bpe/tokens.txt").write_text("".join(lines), encoding="utf-8")
    words = "--epoch 1 --avg 1 --use-averaged-model 0 --jit 1 --exp-dir exp-zipformer --tokens data/lang_bpe/tokens.txt"
    run(corpus, ASR / "zipformer/export.py", *words.split(), *toy.SIZES["zipformer"].split())
    eager = load_teacher(corpus / "exp-zipformer", 1, 0, recipe=ASR / "zipformer")
    script = load_teacher(corpus / "exp-zipformer/jit_script.pt")
    x, x_lens, labels = torch.randn(2, 120, 80), torch.tensor([120, 90]), torch.tensor([[3, 4, 5], [6, 7, 0]])
    both = []
    for teacher in (eager, script):
        out, lens = teacher.encode(x, x_lens)
        predicted = teacher.predict(labels)
        both.append([out, *teacher.joiner(out, predicted)[:4], *teacher.simple(out, predicted)])
        assert lens.tolist() == [28, 21] and teacher.blank_id == 0
        frames = cached_model(teacher, {}).encoder_frames
        assert frames(torch.tensor([1000, 103])).tolist() == [248, 24]
    for found, expected in zip(both[1], both[0]):
        torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("name", RECIPES)
def test_without_a_term_value_and_gradient_are_k2s_from_a_fixed_encoder_out(name):
    """To the last bit (and one or two units of it in the older recipes, as the matrix products may be), and to 1e-6.

    End to end icefall differs from itself: its Swoosh gradient is dithered."""
    import k2

    torch.manual_seed(4)
    y, x, x_lens = k2.RaggedTensor([[3, 4, 5, 6, 7], [2, 3], [9, 9, 9]]), torch.randn(3, 120, 80), [120, 110, 90]
    given = dict(x=x, x_lens=torch.tensor(x_lens), y=y, prune_range=5, am_scale=0.0, lm_scale=0.25)
    results = []
    for scale in (None, 0.0):
        (model, _), (teacher, _) = build(name, seed=1), build(name, seed=2)
        with torch.no_grad():
            run_encoder = getattr(model, "forward_encoder", model.encoder)
            model.eval()
            out, lens = run_encoder(x, torch.tensor(x_lens))[:2]
        out.requires_grad_()
        model.encoder = _Fixed(out, lens)
        if hasattr(model, "forward_encoder"):
            model.forward_encoder = model.encoder.forward
        if scale is not None:
            kd = distill(model, teacher=teacher, scale=scale)
        model.training = True
        random.seed(4)  # of the decoder's Balancer, which changes the gradient now and then
        simple, pruned = model(**given)[:2]
        (simple + pruned).backward()
        results.append((simple, pruned, torch.cat([out.grad.flatten(), *(
            w.grad.flatten() for w in model.parameters() if w.grad is not None)])))  # fmt: skip
    assert kd.last > 0 and kd.steps == 1
    assert results[0][0] == results[1][0]
    rtol = {"zipformer": 0.0, "pruned_transducer_stateless7": 1.2e-7}.get(name, 2.4e-7)
    torch.testing.assert_close(results[0][1], results[1][1], rtol=rtol, atol=0)
    assert (results[0][2] - results[1][2]).norm() < 1e-6 * results[0][2].norm()


class _Fixed(torch.nn.Module):
    def __init__(self, out, lens):
        super().__init__()
        self.found = out, lens

    def forward(self, x, x_lens, **options):
        return self.found


@pytest.mark.parametrize("name", RECIPES)
def test_a_teacher_that_is_the_student_adds_nothing(name):
    import k2

    (student, _), (teacher, _) = build(name, seed=1), build(name, seed=1)
    kd = distill(student.eval(), teacher=teacher)
    student.training = True
    x, x_lens, y = torch.randn(2, 120, 80), torch.tensor([120, 110]), k2.RaggedTensor([[3, 4, 5, 6, 7], [2, 3]])
    student(x=x, x_lens=x_lens, y=y, prune_range=5, am_scale=0.0, lm_scale=0.25)
    assert kd.steps == 1 and kd.last.abs() < 1e-4
