"""The one door: what a file names is a plain file in that file's folder or in a folder that the user named."""

import json
import os
from pathlib import Path

import pytest

from rnnt_kd.errors import UserError
from rnnt_kd.files import DATA_ROOTS, allow, named_in, parse_json

PACKAGE = Path(__file__).resolve().parents[1] / "plugin" / "rnnt_kd"


@pytest.fixture
def place(tmp_path, monkeypatch):
    """home/list, which names; home/sub/a; other/b, elsewhere; links that lead there and back."""
    monkeypatch.setenv(DATA_ROOTS, "[]")
    for name in ("home/list", "home/sub/a", "other/b"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(name)
    (tmp_path / "home/there").symlink_to(tmp_path / "other/b")
    (tmp_path / "home/folder").symlink_to(tmp_path / "other")
    (tmp_path / "home/here").symlink_to(tmp_path / "home/sub/a")
    (tmp_path / "link").symlink_to(tmp_path / "home")
    (tmp_path / "home/circle").symlink_to("circle")
    os.mkfifo(tmp_path / "home/fifo")
    return tmp_path


@pytest.mark.parametrize("name", ["sub/a", "sub/../sub/a", "here", "{}/home/sub/a", "{}/link/sub/a", "../home/sub/a"])
@pytest.mark.parametrize("folder", ["home", "link"])
def test_a_plain_file_in_the_folder_is_found_however_it_is_written(place, folder, name):
    assert named_in(place / folder / "list", name.format(place)) == place / "home/sub/a"


@pytest.mark.parametrize("name, reason", [
    ("../other/b", "not below"), ("{}/other/b", "not below"), ("there", "not below"), ("folder/b", "not below"),
    ("/dev/zero", "not below"), ("/proc/self/environ", "not below"), ("../home2/list", "not below"),
    ("fifo", "a device or pipe"), ("nothing", "no such file"), ("list/x", "no such file"),
    ("circle", "no such file"), ("x" * 300, "no such file"),
    ("pipe:touch {}/RUN", "a shell pipe"), ("touch {}/RUN |", "a shell pipe"), ("| touch {}/RUN", "a shell pipe"),
    ("http://localhost/a", "a URL"), ("s3://bucket/a", "a URL"), ("file:///etc/passwd", "a URL"),
    ("", "names ''"), ("a\0b", "names"), (None, "names 'None'"), (3, "names '3'"), (["sub/a"], "names"),
])  # fmt: skip
def test_everything_else_is_refused_by_name_and_not_opened(place, name, reason):
    name = name.format(place) if isinstance(name, str) else name
    with pytest.raises(UserError, match=reason) as refused:
        named_in(place / "home/list", name)
    assert "\n" not in str(refused.value) and not (place / "RUN").exists()


def test_a_data_root_that_the_user_names_is_allowed_in_this_process_and_its_children(place):
    with pytest.raises(UserError, match="--data-root"):
        named_in(place / "home/list", "there")
    allow([place / "home/folder"])  # a link: where it leads
    assert named_in(place / "home/list", "there") == place / "other/b"
    assert json.loads(os.environ[DATA_ROOTS]) == [str(place / "other")]
    with pytest.raises(UserError, match="not below"):
        named_in(place / "home/list", "../link2")


def test_a_path_may_be_missing_where_that_is_said_but_not_elsewhere(place):
    assert named_in(place / "home/list", "sub/new", exists=False) == place / "home/sub/new"
    assert named_in(place / "home/sub/a", "../new", within=place / "home", exists=False) == place / "home/new"
    with pytest.raises(UserError, match="not below"):
        named_in(place / "home/list", "../new", exists=False)


@pytest.mark.parametrize("text", ["[" * 100_000, '{"a":' * 100_000, b"\xff", "{", "1 2"])
def test_json_that_is_none_or_too_deep_is_a_value_error(text):
    with pytest.raises(ValueError):
        parse_json(text)
    assert parse_json('{"a": [1.5, null]}') == {"a": [1.5, None]}
