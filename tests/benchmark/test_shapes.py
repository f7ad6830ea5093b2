"""Lengths for the benchmark: from a file, from the fit, and in batches."""

import numpy as np
import pytest
from command_cases import told

from benchmark.shapes import draw_batches, fitted_shapes, num_nodes, read_shapes

LEVELS = [0.01, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99]
# LibriSpeech's train-clean-100 at speeds 0.9, 1.0 and 1.1
REAL_T = [62, 105, 160, 256, 302, 326, 343, 357, 373, 391.8, 416, 432, 452]
REAL_S = [12, 22, 34, 52, 60, 66, 71, 76, 81, 86, 93, 98, 109]


def test_the_fit_has_the_quantiles_of_real_utterances():
    """S is fitted through S / T in bands of T, so that the quantiles of S itself are a check of it all."""
    T, S = np.array(fitted_shapes(40_000, seed=3)).T
    np.testing.assert_allclose(np.quantile(T, LEVELS), REAL_T, rtol=0.03, atol=2)
    np.testing.assert_allclose(np.quantile(S, LEVELS), REAL_S, rtol=0.04, atol=1)
    assert abs(np.corrcoef(T, S)[0, 1] - 0.824) < 0.03


def test_the_quantiles_above_are_those_of_the_file(root):
    path = root.parent / "shared" / "benchmarks" / "librispeech_clean100_shapes.csv"
    if not path.exists():
        pytest.skip(f"real shapes are not at {path}")
    T, S = np.array(read_shapes(path)).T
    np.testing.assert_allclose(np.quantile(T, LEVELS), REAL_T, atol=1)
    np.testing.assert_allclose(np.quantile(S, LEVELS), REAL_S, atol=1)


def test_equal_seeds_draw_equal_shapes_and_batches():
    assert fitted_shapes(50, seed=1) == fitted_shapes(50, seed=1) != fitted_shapes(50, seed=2)
    shapes = fitted_shapes(300)
    assert draw_batches(shapes, 8, 3) == draw_batches(shapes, 8, 3) != draw_batches(shapes, 8, 3, seed=2)


def test_a_batch_holds_neighbours_in_length_and_batches_grow():
    shapes = fitted_shapes(3000)
    batches = draw_batches(shapes, 8, 5)
    lengths = [[T for T, _ in batch] for batch in batches]
    assert all(len(batch) == 8 for batch in batches)
    assert [sum(T) for T in lengths] == sorted(sum(T) for T in lengths)
    padding = sum(8 * max(T) - sum(T) for T in lengths) / sum(8 * max(T) for T in lengths)
    assert padding < 0.1  # by chance over all lengths: about a quarter
    assert set(batches[2]) <= set(shapes)


@pytest.mark.parametrize("count", [1, 5, 64])
def test_few_shapes_still_make_full_batches(count):
    assert [len(batch) for batch in draw_batches(fitted_shapes(count), 8, 2)] == [8, 8]


@pytest.mark.parametrize(
    "text, shapes", [("T (frames),S (tokens)\n433,101\n288, 73\n\n", [(433, 101), (288, 73)]), ("12,0\n", [(12, 0)])]
)
def test_file_with_and_without_header(tmp_path, text, shapes):
    (tmp_path / "shapes.csv").write_text(text)
    assert read_shapes(tmp_path / "shapes.csv") == shapes


@pytest.mark.parametrize("text, words", [
    ("T,S\n10,5\n10;5\n", [":3", "'10;5'", "T,S"]),
    ("10,5\n0,3\n", [":2", "'0,3'"]),
    ("10,5\n7,-3\n", [":2", "'7,-3'"]),
    ("10,5,3\n", [":1"]),
    ("T,S\n", ["holds no shapes"]),
    ("", ["holds no shapes"]),
])  # fmt: skip
def test_a_bad_file_is_one_error_naming_the_line(tmp_path, text, words):
    path = tmp_path / "shapes.csv"
    path.write_text(text)
    said = told(read_shapes, path)
    assert all(word in said for word in [str(path), *words])


def test_nodes_beyond_a_short_text_do_not_count():
    assert num_nodes([(10, 9), (8, 2), (5, 0)], prune_range=5) == 50 + 24 + 5
