"""Files are whole or absent."""

import errno
import os
import subprocess
import sys

import pytest

from rnnt_kd import atomic


def test_write_replaces_and_leaves_no_temporary(tmp_path):
    path = tmp_path / "new" / "file.txt"
    atomic.write_text(path, "eins\n")
    atomic.write_text(path, "zwei ü\n")
    assert path.read_text(encoding="utf-8") == "zwei ü\n"
    assert [p.name for p in path.parent.iterdir()] == ["file.txt"]


def test_what_a_killed_process_left_goes_when_the_same_is_written_again(tmp_path):
    code = "import os, sys; from pathlib import Path; from rnnt_kd import atomic\n"
    code += "os.fsync = lambda _: os.kill(os.getpid(), 9)\n"
    code += "folder = Path(sys.argv[1])\nif sys.argv[2] == 'file': atomic.write_text(folder / 'file', 'half')\n"
    code += "with atomic.new_dir(folder / 'made[1]') as made: (made / 'half').touch(); os.kill(os.getpid(), 9)\n"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    for kind in ("file", "folder"):
        assert subprocess.run([sys.executable, "-c", code, tmp_path, kind], env=environment).returncode == -9
    assert len(list(tmp_path.iterdir())) == 2
    (tmp_path / f"{atomic.temporary_prefix(tmp_path / 'file')}x.tmp").touch()  # of a process that lives
    atomic.write_text(tmp_path / "file", "whole")
    with atomic.new_dir(tmp_path / "made[1]") as made:
        (made / "whole").touch()
    assert sorted(path.name for path in tmp_path.rglob("*") if path.suffix != ".tmp") == ["file", "made[1]", "whole"]
    assert len(list(tmp_path.glob(".*.tmp"))) == 1


def test_a_link_stays_and_the_folder_that_it_leads_to_is_made_anew(tmp_path):
    (tmp_path / "disk").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "disk" / "folder")  # which is made by the first
    for content in ("one", "two"):
        with atomic.new_dir(tmp_path / "link") as made:
            (made / "file").write_text(content)
        assert (tmp_path / "link").is_symlink() and (tmp_path / "disk/folder/file").read_text() == content
    (tmp_path / ".x.retired").symlink_to(tmp_path / "disk")  # an earlier version left such
    (tmp_path / "x").mkdir()
    with atomic.new_dir(tmp_path / "x") as made:
        (made / "file").touch()
    assert (tmp_path / "disk/folder/file").exists() and sorted(path.name for path in tmp_path.iterdir()) == [
        "disk",
        "link",
        "x",
    ]


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


@pytest.mark.parametrize("umask", [0o022, 0o077, 0o000])
def test_files_and_folders_are_for_whom_the_umask_lets_in(tmp_path, umask):
    before = os.umask(umask)
    try:
        atomic.write_text(tmp_path / "a" / "file", "")
        with atomic.new_dir(tmp_path / "made") as made:
            (made / "file").touch()
    finally:
        os.umask(before)
    modes = {path.name: path.stat().st_mode & 0o777 for path in (tmp_path / "a" / "file", tmp_path / "made")}
    assert modes == {"file": 0o666 & ~umask, "made": 0o777 & ~umask}
