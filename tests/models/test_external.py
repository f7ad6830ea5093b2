"""``encoder: external``: what a foreign module needs, what is found out, and what is refused."""

import re

import pytest
import torch
from model_cases import transducer

from rnnt_kd.errors import UserError
from rnnt_kd.models.interfaces import Encoder, StreamingEncoder


def build(**options):
    return transducer(encoder="external", encoder_options=options)


@pytest.mark.parametrize("stride", [1, 3, 8])
def test_forward_is_enough_the_rest_is_found_out(stride):
    encoder = build(factory="toy_encoder:Toy", stride=stride, dim=12).encoder
    assert (encoder.output_dim, encoder.subsampling_factor) == (12, stride)
    lens = torch.arange(1, 500)
    assert torch.equal(encoder.output_lengths(lens), torch.div(lens + stride - 1, stride, rounding_mode="floor"))
    assert isinstance(encoder, Encoder) and not isinstance(encoder, StreamingEncoder)


def test_the_trial_draws_no_random_number_and_leaves_the_module_in_its_mode():
    import toy_encoder

    torch.manual_seed(0)
    toy_encoder.Toy()
    expected = torch.rand(3)
    from rnnt_kd.models.encoders.external import External

    torch.manual_seed(0)
    assert External(factory="toy_encoder:Toy").module.training
    assert torch.equal(torch.rand(3), expected)


COMMAND = "import pathlib; pathlib.Path('EXECUTED').touch()"
HOSTILE = [
    ("subprocess:run", {"args": ["python", "-c", COMMAND]}), ("os:system", {"command": "touch EXECUTED"}),
    ("posix:system", {"command": "touch EXECUTED"}), ("builtins:exec", {"source": COMMAND}),
    ("torch.hub:load", {"repo_or_dir": "x/y", "model": "z"}), ("numpy:load", {"file": "x", "allow_pickle": True}),
    ("rnnt_kd.jobs:run_ranks", {"step": ["-c", COMMAND], "processes": 1}), ("benchmark.worker:main", {}),
    ("os.path:join", {}), ("importlib:import_module", {"name": "this"}), ("lhotse.utils:exec", {}),
    ("toy_encoder:system", {"command": "touch EXECUTED"}),
]  # fmt: skip


@pytest.mark.parametrize("options, words", [
    (dict(), "''; expected \"package.module:function\""),
    (dict(factory="toy_encoder"), "package.module:function"),
    (dict(factory="os:system('x')"), "package.module:function"),
    (dict(factory="../toy_encoder:Toy"), "package.module:function"),
    *((dict(factory=factory, **options), "expected a function") for factory, options in HOSTILE),
    (dict(factory="no_such_package.at_all:Toy"), "does not import (ModuleNotFoundError"),
    (dict(factory="toy_encoder:Tow"), "has no function Tow"),
    (dict(factory="toy_encoder:not_callable"), "has no function not_callable"),
    (dict(factory="toy_encoder:Toy", width=3), "fails (TypeError"),
    (dict(factory="toy_encoder:broken", kind="string"), "returns a str; expected an nn.Module"),
    (dict(factory="toy_encoder:broken", kind="exits"), "fails (SystemExit"),
    (dict(factory="toy_encoder:broken", kind="exits later"), "fails on x (41, 200, 80), x_lens (41,) (SystemExit"),
    (dict(factory="toy_encoder:broken", kind="alone"), "forward(x, x_lens) -> (out, lens)"),
    (dict(factory="toy_encoder:broken", kind="dims"), "returns out (41, 1072) and lens (41,)"),
    (dict(factory="toy_encoder:broken", kind="frames"), "expected (41, 67, D)"),
    (dict(factory="toy_encoder:broken", kind="uneven"), "subsampling_factor and output_lengths"),
    (dict(factory="toy_encoder:broken", kind="lengths"), "makes 54 frames of 160; expected 53"),
    (dict(factory="toy_encoder:broken", kind="dim"), "makes 16 dimensions; expected 17"),
])  # fmt: skip
def test_a_factory_that_makes_no_encoder_is_one_line_and_nothing_of_python_is_called(
    options, words, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=rf"encoder_options\.factory.*{re.escape(words)}"):
        build(**options)
    assert not (tmp_path / "EXECUTED").exists()
