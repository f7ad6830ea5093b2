"""A bar on a terminal, plain lines in a log."""

import io
import sys

import pytest
from tqdm import tqdm

from rnnt_kd import progress_bar
from rnnt_kd.progress_bar import counted, plain_bars


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.mark.parametrize("items, lines", [
    (
        range(4),
        ["reading: 1 of 4 file, eta 0:30", "reading: 2 of 4 file, eta 0:20", "reading: 3 of 4 file, eta 0:10"],
    ),
    (iter(range(2)), ["reading: 1 file", "reading: 2 file"]),
])  # fmt: skip
def test_a_log_gets_a_line_now_and_then_and_no_carriage_return(items, lines, monkeypatch, capsys):
    clock = iter(range(0, 100, 10))
    monkeypatch.setattr(progress_bar.time, "monotonic", lambda: next(clock))
    monkeypatch.setattr(progress_bar, "LINE_SECONDS", 10.0)
    expected = len(lines) + isinstance(items, range)
    assert list(counted(items, "reading", "file")) == list(range(expected))
    assert capsys.readouterr().err.splitlines() == lines

    clock = iter(range(100))
    list(counted(range(9), "reading", "file"))
    assert capsys.readouterr().err == ""  # it was done before a line was due


def test_a_terminal_gets_a_bar(monkeypatch):
    stream = Terminal()
    monkeypatch.setattr("sys.stderr", stream)
    assert list(counted(range(3), "reading", "file")) == [0, 1, 2]
    assert "\rreading: 100%" in stream.getvalue() and "3/3" in stream.getvalue()


def test_a_bar_of_another_library_becomes_lines_in_a_log(monkeypatch, capsys):
    def download():
        with plain_bars():
            for done in tqdm(range(3), desc="archive", mininterval=0, miniters=1):
                print("a warning" if done == 1 else "", end="", file=sys.stderr)

    monkeypatch.setattr(progress_bar, "LINE_SECONDS", 60.0)
    download()
    assert capsys.readouterr().err == "a warning\n"
    monkeypatch.setattr(progress_bar, "LINE_SECONDS", 0.0)
    download()
    text = capsys.readouterr().err
    assert "\r" not in text and text.splitlines()[-1].startswith("archive: 100%") and "3/3" in text
