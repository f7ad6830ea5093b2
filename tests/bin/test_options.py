"""Numbers on the command line."""

import pytest

from rnnt_kd.bin import options
from rnnt_kd.bin.compute_features import add_max_bad_fraction
from tests.cases.command_cases import refused


def parsed(words):
    parser = options.parser("x")
    parser.add_argument("--snr-db", type=float, nargs=2)
    parser.add_argument_group("of a group").add_argument("--token-bonus", type=float)
    add_max_bad_fraction(parser)
    return parser.parse_args(words)


def test_numbers_are_taken():
    args = parsed("--snr-db 1e1 0.5 --token-bonus -2 --max-bad-fraction 1".split())
    assert (args.snr_db, args.token_bonus, args.max_bad_fraction) == ([10.0, 0.5], -2.0, 1.0)


@pytest.mark.parametrize("number", ["nan", "NaN", "inf", "-inf", "1e999", "five", ""])
@pytest.mark.parametrize("option", ["--snr-db 1", "--token-bonus", "--max-bad-fraction"])
def test_what_is_no_number_is_named(option, number, capsys):
    assert refused(capsys, parsed, *option.split(), number).startswith(f"error: argument {option.split()[0]}: ")


@pytest.mark.parametrize("number", ["-0.1", "5", "1.01"])
def test_a_percentage_is_no_fraction(number, capsys):
    line = refused(capsys, parsed, "--max-bad-fraction", number)
    assert f"argument --max-bad-fraction: {number}; expected 0 to 1" in line
