"""Files are whole or absent."""

import errno
import os

import pytest

from rnnt_kd import atomic


def test_write_replaces_and_leaves_no_temporary(tmp_path):
    path = tmp_path / "new" / "file.txt"
    atomic.write_text(path, "eins\n")
    atomic.write_text(path, "zwei ü\n")
    assert path.read_text(encoding="utf-8") == "zwei ü\n"
    assert [p.name for p in path.parent.iterdir()] == ["file.txt"]


def test_failed_write_keeps_the_old_file_and_names_it(tmp_path, monkeypatch):
    path = tmp_path / "file.txt"
    atomic.write_text(path, "old")

    def full(descriptor):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError) as caught:
        atomic.write_text(path, "new")
    assert caught.value.filename == str(path)
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["file.txt"]


def test_replace_dir_swaps_whole_folders(tmp_path):
    (tmp_path / "final").mkdir()
    (tmp_path / "final" / "old").write_text("old")
    (tmp_path / "made").mkdir()
    (tmp_path / "made" / "new").write_text("new")
    atomic.replace_dir(tmp_path / "made", tmp_path / "final")
    assert sorted(p.name for p in tmp_path.rglob("*")) == ["final", "new"]
