"""The functions of vectors against float64, over all numbers that matter."""

import numpy as np
import pytest
from numba import njit

from rnnt_kd_engine import vectors
from rnnt_kd_engine.kernels import elementwise

LANES = vectors.LANES


def applied(function, x):
    """``function`` of every number of x, vector by vector."""
    kernel = elementwise(function)

    @njit
    def over(array):
        for position in range(0, len(array), LANES):
            kernel(array, position)

    out = np.zeros(-(-len(x) // LANES) * LANES, np.float32)
    out[: len(x)] = x
    over(out)
    return out[: len(x)].astype(np.float64)


@pytest.fixture(scope="module")
def numbers():
    small = np.geomspace(1e-30, 1e-3, 500)
    x = np.concatenate([np.linspace(-86.9, 86.9, 200003), small, -small, [0.0, -0.0]])
    return x.astype(np.float32)


@pytest.mark.parametrize("name, formula, relative, absolute", [
    ("exp", np.exp, 3e-7, 0.0),
    ("sigmoid", lambda x: 1.0 / (1.0 + np.exp(-x)), 5e-7, 1e-37),
    ("silu", lambda x: x / (1.0 + np.exp(-x)), 5e-7, 1e-37),
])  # fmt: skip
def test_functions_equal_their_formula(name, formula, relative, absolute, numbers):
    wanted = formula(numbers.astype(np.float64))
    error = np.abs(applied(getattr(vectors, name), numbers) - wanted)
    assert (error <= relative * np.abs(wanted) + absolute).all(), numbers[error.argmax()]


@pytest.mark.parametrize("name, wanted", [
    ("exp", np.exp([-87.0] * 3 + [87.0] * 3)),
    ("sigmoid", [0.0, 0.0, 0.0, 1.0, 1.0, 1.0]),
    ("silu", [0.0, 0.0, 0.0, 88.0, 1e5, 3e38]),
])  # fmt: skip
def test_functions_of_huge_numbers_stay_finite(name, wanted):
    out = applied(getattr(vectors, name), np.array([-3e38, -1e5, -88.0, 88.0, 1e5, 3e38], np.float32))
    if name == "silu":
        assert abs(out[0]) <= 10.0  # 3e38 e^-87
        out[0] = 0.0
    np.testing.assert_allclose(out, wanted, rtol=3e-7 if name == "exp" else 1e-6, atol=0.0 if name == "exp" else 1e-30)
