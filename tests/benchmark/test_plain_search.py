"""The plain loops are the same searches: what they say, when, and how probable it is."""

import math

import pytest
import torch
from search_cases import Model, encoder_output

from benchmark.plain_search import SEARCHES
from rnnt_kd.decoding.lookup import get_search


@pytest.mark.parametrize("name", SEARCHES)
@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("options", [{}, {"unk_id": None}, {"blank_id": 4, "beam": 3}], ids=str)
def test_plain_loops_find_what_the_batched_searches_find(name, seed, options):
    model = Model(seed, vocab_size=7, peak=2.0, blank_id=options.get("blank_id", 0))
    with torch.no_grad():  # some frames say nothing, as in speech
        model.joiner.output_linear.bias[options.get("blank_id", 0)] += 3.0
    frames, lens = encoder_output(seed, [70, 0, 33, 8, 9, 1, 17])
    options = {"beam": 4, "blank_id": 0, "unk_id": 1, **options}
    batched, plain = get_search(name)(model, frames, lens, **options), SEARCHES[name](model, frames, lens, **options)
    assert sum(len(best.tokens) for (best,) in plain) > 5
    for (ours,), (theirs,) in zip(batched, plain, strict=True):
        assert (ours.tokens, ours.timestamps) == (theirs.tokens, theirs.timestamps)
        if name == "modified_beam_search":
            assert ours.score == pytest.approx(theirs.score, abs=1e-6)
        else:
            assert math.isnan(theirs.score)
