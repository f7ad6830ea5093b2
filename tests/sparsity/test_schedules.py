"""The cubic ramp against its closed form in exact fractions."""

from fractions import Fraction

from hypothesis import given
from hypothesis import strategies as st

from rnnt_kd.sparsity.schedules import cubic


@given(st.integers(0, 500), st.integers(1, 500), st.integers(-10, 1100), st.integers(0, 99), st.integers(0, 100))
def test_cubic_equals_the_closed_form(begin, length, step, percent, share):
    final = Fraction(percent, 100)
    initial = final * Fraction(share, 100)
    done = Fraction(step - begin, length)
    expected = initial + (final - initial) * (3 * done - 3 * done**2 + done**3)  # 1 - (1 - x)^3, multiplied out
    expected = Fraction(0) if done <= 0 else final if done >= 1 else expected
    assert abs(cubic(step, begin, begin + length, float(final), float(initial)) - float(expected)) < 1e-12
    assert share or cubic(step, begin, begin + length, float(final)) == cubic(
        step, begin, begin + length, float(final), 0.0
    )


def test_ends_are_exact_and_the_ramp_never_falls():
    values = [cubic(step, 10, 60, 0.9) for step in range(80)]
    assert values[10] == 0.0 and values[60] == values[79] == 0.9
    assert all(a <= b for a, b in zip(values[:-1], values[1:], strict=True))
    assert cubic(35, 10, 60, 0.9) == 0.9 * 0.875
    assert [cubic(step, 10, 60, 0.9, 0.6) for step in (9, 10, 60)] == [0.0, 0.0, 0.9] and cubic(
        11, 10, 60, 0.9, 0.6
    ) > 0.6
    # an empty ramp is a jump
    assert [cubic(step, 5, 5, 0.6) for step in (4, 5, 6)] == [0.0, 0.6, 0.6]
