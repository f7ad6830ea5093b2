"""``wer-<test set>.json``: what it holds when it is damaged is one line."""

import json
import re

import pytest

from rnnt_kd.errors import UserError
from rnnt_kd.scoring.recognitions import Recognition
from rnnt_kd.scoring.results import read_json, read_scores, score

ITEMS = [Recognition(f"u{n:02d}", ("零一二", "三"), ("零一", "三")) for n in range(20)]


@pytest.fixture
def path(tmp_path):
    (tmp_path / "wer-test.json").write_text(json.dumps(score(ITEMS, utt2spk={}, replications=20)))
    return tmp_path / "wer-test.json"


def test_scores_come_back(path):
    assert read_scores(path) == json.loads(path.read_text()) == score(ITEMS, utt2spk={}, replications=20)


@pytest.mark.parametrize("changes, message", [
    ({"words": None}, "words is None; expected a number"),
    ({"wer": "5"}, "wer is '5'"),
    ({"p_value": []}, "p_value is []"),
    ({"ins": True}, "ins is True"),
    ({"ci95": 7}, "ci95 is '7'"),
    ({"ci95": [1, "2"]}, "the end of ci95 is '2'"),
    ({"characters": "x"}, "errors is None"),
    ({"characters": {"cer": 1.0}}, "errors is None"),
])  # fmt: skip
def test_a_damaged_value_is_one_line(path, changes, message):
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
    with pytest.raises(UserError, match=re.escape(f"{path}: {message}")):
        read_scores(path)


@pytest.mark.parametrize("content", ["", "[", "[]", "[" * 99999, '{"a": NaN}', '{"a": -Infinity}', b"\xff", "3"])
def test_what_is_no_json_object_is_one_line(path, content):
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(UserError, match="not a JSON object"):
        read_json(path)
