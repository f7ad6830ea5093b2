"""Searches whose library is missing or broken."""

import sys

import pytest

from rnnt_kd.decoding.lookup import available_searches, get_search
from rnnt_kd.errors import UserError


def test_without_k2_there_is_one_line_that_says_what_to_do(monkeypatch):
    monkeypatch.setitem(sys.modules, "k2", None)  # import k2 fails
    monkeypatch.delitem(sys.modules, "rnnt_kd.decoding.fast_beam_search", raising=False)
    assert "fast_beam_search" in available_searches()  # names are files
    with pytest.raises(UserError, match="'fast_beam_search' cannot be used here.*k2.*take modified_beam_search"):
        get_search("fast_beam_search")
    assert callable(get_search("greedy_search"))
