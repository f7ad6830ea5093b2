"""Promises of predictor, joiner, transducer and ``build_transducer``."""

import importlib
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from rnnt_kd import models
from rnnt_kd.errors import UserError
from rnnt_kd.export.graphs import JoinerFile
from rnnt_kd.models import available_encoders, build_transducer
from rnnt_kd.models.encoders.conformer import SIZES
from rnnt_kd.models.joiners.tanh import TanhJoiner
from rnnt_kd.models.predictors.stateless import StatelessPredictor
from rnnt_kd.sparsity.report import select_parameters
from rnnt_kd.teachers.posteriors import joiner_parts

ARGUMENTS = dict(
    encoder="conformer",
    size="tiny",
    encoder_options={},
    predictor_dim=128,
    joiner_dim=128,
    dropout=0.1,
    ctc_head=True,
    vocab_size=80,
    blank_id=0,
)


def build(**changes):
    torch.manual_seed(4)
    return build_transducer(**{**ARGUMENTS, **changes})


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
    assert available_encoders() == sorted(path.stem for path in folder.glob("[a-z]*.py"))
    assert list(SIZES) == ["tiny", "S", "M", "L"]


@pytest.mark.parametrize(
    "changes, words",
    [
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
    ],
)
def test_wrong_names_are_one_line_that_lists_the_right_ones(changes, words):
    with pytest.raises(UserError) as error:
        build(**changes)
    assert words in str(error.value) and "\n" not in str(error.value)


def test_options_override_single_values_of_the_row():
    model = build(encoder_options={"num_layers": 2, "dim": 64})
    assert (
        len(model.encoder.layers) == 2
        and model.encoder.output_dim == 64
        and model.joiner.encoder_proj.in_features == 64
    )


def test_same_seed_same_weights():
    assert all(
        torch.equal(a, b) for a, b in zip(build().state_dict().values(), build().state_dict().values(), strict=True)
    )


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
        "class WiderPredictor(StatelessPredictor):\n    pass\n",
        "joiners": "import torch\nfrom rnnt_kd.models.joiners.tanh import TanhJoiner\n"
        "class ReluJoiner(TanhJoiner):\n    activation = staticmethod(torch.relu)\n",
    }.items():
        (tmp_path / kind).mkdir()
        (tmp_path / kind / {"predictors": "wider.py", "joiners": "relu.py"}[kind]).write_text(code)
        package = importlib.import_module(f"rnnt_kd.models.{kind}")
        monkeypatch.setattr(package, "__path__", [*package.__path__, str(tmp_path / kind)])
    model = build(predictor="wider", joiner="relu")
    assert type(model.predictor).__name__ == "WiderPredictor"
    encoder_out, predictor_out = torch.randn(2, 3, 96), torch.randn(2, 4, 128)
    parts = joiner_parts(model, encoder_out, predictor_out)
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

    model = build()
    config = SparsityConfig()
    names = set(select_parameters(model, config.include, config.exclude))
    layer = "encoder.layers.0."
    assert {
        "encoder.subsampling.linear.weight",
        layer + "feedforward1.linear_in.weight",
        layer + "feedforward2.linear_out.weight",
        layer + "attention.qkv_proj.weight",
        layer + "attention.out_proj.weight",
        layer + "convolution.pointwise_in.weight",
        layer + "convolution.pointwise_out.weight",
        "predictor.context_proj.weight",
        "joiner.encoder_proj.weight",
        "joiner.predictor_proj.weight",
        "joiner.output_linear.weight",
    } <= names
    assert not any(
        word in n
        for n in names
        for word in ("norm", "bias", "depthwise", "embedding", "simple", "ctc", "conv1", "conv2")
    )
    assert all(dict(model.named_parameters())[n].dim() == 2 for n in names)
