"""Text files are read as people's programs leave them, by one function."""

import ast
import bz2
import gzip
import lzma
from pathlib import Path

import pytest
from command_cases import told

from rnnt_kd.errors import UserError
from rnnt_kd.text_files import read_text, text_lines

PACKAGE = Path(__file__).resolve().parents[1] / "plugin" / "rnnt_kd"
# These read by themselves what rnnt_kd wrote, or the system
THEIR_OWN = {
    "bin/score.py", "bin/size_table.py", "children.py", "data/folds.py", "decoding/arpa_worker.py",
    "experiments/table.py", "export/check_files.py", "jobs.py", "record.py",
    "report/lattice_data.py", "report/page.py", "report/read.py", "scoring/results.py", "systems/store.py",
    "training/checkpoint.py",
}  # fmt: skip
SAME = {
    "plain": "ä 1\n\nb\n",
    "byte order mark": "\ufeffä 1\n\nb\n",
    "CR LF": "ä 1\r\n\r\nb\r\n",
    "both": "\ufeffä 1\r\n\r\nb\r\n",
    "CR": "ä 1\r\rb\r",
}


@pytest.mark.parametrize("content", SAME.values(), ids=SAME)
def test_marks_and_line_ends_do_not_count(tmp_path, content):
    (tmp_path / "x").write_bytes(content.encode())
    assert read_text(tmp_path / "x") == SAME["plain"]


@pytest.mark.parametrize("packer", [None, gzip, bz2, lzma])
@pytest.mark.parametrize("name", ["plain", "byte order mark", "CR LF", "both"])
def test_a_file_that_is_read_by_lines_may_be_compressed(tmp_path, name, packer):
    content = SAME[name].encode()
    (tmp_path / "x").write_bytes(packer.compress(content) if packer else content)
    assert [line for _, line in text_lines(tmp_path / "x", "text")] == ["ä 1", "", "b"]
    assert [where for where, _ in text_lines(tmp_path / "x", "text")][2] == f"{tmp_path / 'x'}:3"


READERS = [read_text, lambda path: list(text_lines(path, "UTF-8 text"))]


@pytest.mark.parametrize("read", READERS, ids=["whole", "by lines"])
@pytest.mark.parametrize("content, message", [
    (None, "x: no such file; expected UTF-8 text"),
    ("folder", "x: is a folder; expected UTF-8 text"),
    ("ä\nö\n".encode("utf-16"), "x: is not UTF-8 but UTF-16; expected UTF-8 text; run: iconv -f UTF-16"),
    (b"a\nb\xff\n", "x:2: is not UTF-8"),
    ("ä\n".encode("latin-1"), "x:1: is not UTF-8"),
])  # fmt: skip
def test_what_is_no_text_is_one_line(tmp_path, read, content, message):
    if content == "folder":
        (tmp_path / "x").mkdir()
    elif content is not None:
        (tmp_path / "x").write_bytes(content)
    assert message in told(read, tmp_path / "x")


@pytest.mark.parametrize("read", READERS, ids=["whole", "by lines"])
def test_a_name_that_no_file_can_have_is_one_short_line(tmp_path, read):
    (tmp_path / "circle").symlink_to("circle")
    (tmp_path / "file").touch()
    for name in ("x" * 9999, "circle", "file/below"):
        with pytest.raises(UserError, match="no such file .*; expected UTF-8 text") as error:
            read(tmp_path / name)
        assert len(str(error.value)) < 400


@pytest.mark.parametrize("packer", [gzip, bz2, lzma])
def test_an_archive_that_is_cut_or_not_expected_is_one_line(tmp_path, packer):
    packed = packer.compress(b"a line\n" * 1000)
    (tmp_path / "x").write_bytes(packed)
    assert "x: is compressed; expected words; unpack it" in told(read_text, tmp_path / "x", "words")
    (tmp_path / "x").write_bytes(packed[: len(packed) // 2])
    assert "x: is damaged" in told(lambda: list(text_lines(tmp_path / "x", "words")))


def test_a_line_without_an_end_does_not_fill_the_memory(tmp_path):
    (tmp_path / "x").write_bytes(gzip.compress(bytes(50_000_000), compresslevel=1))
    assert "x:1: has more than 1048576 bytes" in told(lambda: list(text_lines(tmp_path / "x", "words")))


def test_nobody_else_reads_text():
    found = set()
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "read_text":
                found.add(path.relative_to(PACKAGE).as_posix())
    assert not found - THEIR_OWN
