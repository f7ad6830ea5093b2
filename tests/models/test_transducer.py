"""Promises of predictor, joiner, transducer and ``build_transducer``."""

import importlib
import re
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from model_cases import transducer

from rnnt_kd import choices, models
from rnnt_kd.errors import UserError
from rnnt_kd.export.graphs import JoinerFile
from rnnt_kd.models.encoders.conformer import SIZES
from rnnt_kd.models.joiners.tanh import TanhJoiner
from rnnt_kd.models.predictors.stateless import StatelessPredictor
from rnnt_kd.sparsity.report import select_parameters
from rnnt_kd.teachers.interface import OurTransducer


def build(**changes):
    return transducer(4, **{**dict(predictor_dim=128, joiner_dim=128, vocab_size=80), **changes})


@pytest.mark.parametrize(
    "size, vocab_size, dim, millions",
    [("tiny", 80, 128, 0.7), ("S", 500, 512, 10), ("M", 500, 512, 30), ("L", 500, 512, 118)],
)
def test_sizes_have_the_promised_parameters(size, vocab_size, dim, millions):
    model = build(size=size, vocab_size=vocab_size, predictor_dim=dim, joiner_dim=dim)
    parameters = sum(p.numel() for p in model.parameters())
    assert abs(parameters / (millions * 1e6) - 1) < 0.05, parameters


def test_encoders_are_files():
    folder = Path(models.__file__).parent / "encoders"
    assert choices.names("rnnt_kd.models.encoders") == sorted(path.stem for path in folder.glob("[a-z]*.py"))
    assert list(SIZES) == ["tiny", "S", "M", "L"]


@pytest.mark.parametrize("changes, words", [
    (dict(encoder="conformed"), "conformer"),
    (dict(predictor="statefull"), "stateless"),
    (dict(joiner="tan"), "tanh"),
    (dict(encoder="../conformer"), "conformer"),
    (dict(size="XL"), "tiny, S, M, L"),
    (dict(encoder_options={"num_layer": 3}), "num_layers"),
    (dict(encoder_options={"dropout": 3}), "num_layers"),
    (dict(encoder_options={"dim": 90}), "num_heads"),
    (dict(encoder_options={"dim": "wide"}), "TypeError"),
    (dict(encoder_options={"num_heads": 0}), "ZeroDivisionError"),
    (dict(encoder_options={"depthwise_kernel": 8}), "odd"),
    (dict(encoder_options={"input_norm": "batch"}), "utterance"),
    (dict(blank_id=80), "80"),
])  # fmt: skip
def test_wrong_names_are_one_line_that_lists_the_right_ones(changes, words):
    with pytest.raises(UserError, match=re.escape(words)):
        build(**changes)


def test_options_override_single_values_of_the_row():
    model = build(encoder_options={"num_layers": 2, "dim": 64})
    dims = (model.encoder.output_dim, model.joiner.encoder_proj.in_features)
    assert len(model.encoder.layers) == 2 and dims == (64, 64)


def test_predictor_equals_a_convolution_over_labels():
    torch.manual_seed(5)
    predictor = StatelessPredictor(11, 6, context_size=3).double()
    y = torch.randint(0, 11, (2, 7))
    y[0, 2] = -1
    embedded = predictor.embedding.weight[y.clamp(min=0)]
    embedded[0, 2] = 0
    kernel = predictor.context_proj.weight.view(6, 3, 6).transpose(1, 2)  # (out, in, tap)
    expected = F.relu(F.conv1d(embedded.transpose(1, 2), kernel, predictor.context_proj.bias)).transpose(1, 2)
    torch.testing.assert_close(predictor(y, need_pad=False), expected)
    torch.testing.assert_close(predictor(y)[:, 2:], expected)
    assert predictor(y).shape == (2, 7, 6)


def test_negative_labels_have_no_embedding_and_no_gradient():
    predictor = StatelessPredictor(5, 4)
    torch.testing.assert_close(
        predictor(torch.tensor([[-1, 0]]), need_pad=False), predictor(torch.tensor([[-7, 0]]), need_pad=False)
    )
    predictor(torch.tensor([[-1, 3]])).sum().backward()
    assert (predictor.embedding.weight.grad[[0, 1, 2, 4]] == 0).all()


def test_label_dropout_takes_labels_away_in_training_alone():
    predictor = StatelessPredictor(5, 4, dropout=0.4)
    y = torch.randint(0, 5, (50, 40))
    torch.manual_seed(1)
    noisy = predictor(y)
    torch.manual_seed(1)
    gone = torch.rand(y.shape) < 0.4
    assert torch.equal(noisy, predictor.eval()(y.masked_fill(gone, -1))) and 0.3 < gone.float().mean() < 0.5
    assert not torch.equal(noisy, predictor(y)) and torch.equal(predictor(y), predictor(y))
    without, state = build().predictor, torch.get_rng_state()
    without(y)
    assert torch.equal(state, torch.get_rng_state()), "older trainings draw what they drew"
    assert build(label_dropout=0.4).predictor.dropout == 0.4


@pytest.mark.parametrize("context_size", [1, 2, 3])
def test_the_tables_give_what_forward_gives(context_size):
    predictor = StatelessPredictor(6, 5, context_size).double()
    torch.nn.init.normal_(predictor.context_proj.bias)
    values = torch.tensor([-1, *range(6)])
    contexts = torch.cartesian_prod(*[values] * context_size).reshape(-1, context_size)
    torch.testing.assert_close(predictor.tabulated()(contexts), predictor(contexts, need_pad=False)[:, 0])


@pytest.mark.parametrize("blank_id", [0, 3])
def test_predict_prepends_the_start_context_and_sees_only_the_past(blank_id):
    model = build(blank_id=blank_id)
    assert model.predictor.start_context() == [-1, blank_id]
    y = torch.randint(1, 80, (2, 5))
    out = model.predict(y)
    assert out.shape == (2, 6, 128)
    for s in range(6):  # as decoding does it: the last two labels of [-1, blank] + y
        labels = torch.cat((torch.tensor([[-1, blank_id]] * 2), y), 1)[:, s : s + 2]
        torch.testing.assert_close(out[:, s], model.predictor(labels, need_pad=False)[:, 0])
    assert model.predict(y[:, :0]).shape == (2, 1, 128)


def test_joiner_is_linear_of_tanh_of_the_sum():
    joiner = TanhJoiner(3, 4, 5, 6)
    am, lm = joiner.encoder_proj(torch.randn(2, 7, 1, 3)), joiner.predictor_proj(torch.randn(2, 1, 4, 4))
    expected = torch.tanh(am + lm) @ joiner.output_linear.weight.t() + joiner.output_linear.bias
    torch.testing.assert_close(joiner(am, lm), expected)
    assert expected.shape == (2, 7, 4, 6)


def test_a_predictor_and_a_joiner_are_files_too(tmp_path, monkeypatch):
    for kind, code in {
        "predictors": "from rnnt_kd.models.predictors.stateless import StatelessPredictor\n"
        "class WiderPredictor(StatelessPredictor):\n"
        "    def __init__(self, *args, context_size, blank_id):\n"
        "        super().__init__(*args, context_size=context_size, blank_id=blank_id)\n",
        "joiners": "import torch\nfrom rnnt_kd.models.joiners.tanh import TanhJoiner\n"
        "class ReluJoiner(TanhJoiner):\n    activation = staticmethod(torch.relu)\n",
    }.items():
        (tmp_path / kind).mkdir()
        (tmp_path / kind / {"predictors": "wider.py", "joiners": "relu.py"}[kind]).write_text(code)
        package = importlib.import_module(f"rnnt_kd.models.{kind}")
        monkeypatch.setattr(package, "__path__", [*package.__path__, str(tmp_path / kind)])
    model = build(predictor="wider", joiner="relu")
    assert type(model.predictor).__name__ == "WiderPredictor"
    with pytest.raises(UserError, match="model.label_dropout: the predictor wider takes no dropout; expected 0"):
        build(predictor="wider", label_dropout=0.1)
    encoder_out, predictor_out = torch.randn(2, 3, 96), torch.randn(2, 4, 128)
    parts = OurTransducer(model).joiner(encoder_out, predictor_out)
    inputs = parts.am[:, :, None] + parts.lm[:, None]
    logits = torch.relu(inputs) @ parts.weight.t() + parts.bias
    torch.testing.assert_close(model.joiner(parts.am[:, :, None], parts.lm[:, None]), logits)
    torch.testing.assert_close(JoinerFile(model)(parts.am[:, 0], parts.lm[:, 0]), logits[:, 0, 0])
    assert parts.activation is torch.relu


def test_heads_and_the_option_to_leave_the_ctc_head_out():
    model = build()
    assert model.simple_am_proj.out_features == model.simple_lm_proj.out_features == model.ctc_output.out_features == 80
    without = build(ctc_head=False)
    assert without.ctc_output is None and not any("ctc" in name for name in without.state_dict())


def test_default_patterns_match_the_names_they_are_written_for():
    from rnnt_kd.config import SparsityConfig

    model, config = build(), SparsityConfig()
    names = set(select_parameters(model, config.include, config.exclude))
    layer = ("feedforward1.linear_in", "feedforward2.linear_out", "attention.qkv_proj", "attention.out_proj")
    layer += ("convolution.pointwise_in", "convolution.pointwise_out")
    heads = {f"joiner.{name}.weight" for name in ("encoder_proj", "predictor_proj", "output_linear")}
    heads |= {"encoder.subsampling.linear.weight", "predictor.context_proj.weight"}
    assert {f"encoder.layers.0.{name}.weight" for name in layer} | heads <= names
    excluded = ("norm", "bias", "depthwise", "embedding", "simple", "ctc", "conv1", "conv2")
    assert not any(word in name for name in names for word in excluded)
    assert all(dict(model.named_parameters())[name].dim() == 2 for name in names)


def test_the_tiny_encoder_learns_a_small_task_from_scratch_at_the_recipes_rate():
    """CTC on eight random 'utterances' whose labels are patterns in the features: the loss must fall below 0.3."""
    model = build(dropout=0.0, encoder_options={"num_layers": 2}).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3, betas=(0.9, 0.98))
    patterns = torch.randn(6, 80) * 3
    y = torch.randint(1, 6, (8, 5))
    x = torch.randn(8, 120, 80) - 7.5 + patterns[y].repeat_interleave(24, dim=1)
    for step in range(60):
        optimizer.param_groups[0]["lr"] = 2e-3 * min(1.0, (step + 1) / 20)
        out, lens = model.encode(x, torch.full((8,), 120))
        log_probs = model.ctc_output(out).log_softmax(2).transpose(0, 1)
        loss = F.ctc_loss(log_probs, y, lens, torch.full((8,), 5))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss < 0.3, loss
