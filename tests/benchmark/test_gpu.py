"""tests/gpu.sh: every part is run for itself, within its time, and none stops another."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from benchmark import gpu
from benchmark.gpu import Part, parts, run


@pytest.mark.parametrize("words, status", [(["-c", "pass"], "ok"), (["-c", "raise SystemExit(3)"], "failed")])
def test_how_a_part_ends(words, status, tmp_path):
    found = run(Part("tests", 60, words), tmp_path)
    assert found["status"] == status and found["rows"] == []


def test_what_a_part_started_ends_with_it(tmp_path):
    begin = "import pathlib, subprocess; child = subprocess.Popen(['sleep', '300'])"
    words = ["-c", f"{begin}; pathlib.Path({str(tmp_path / 'pid')!r}).write_text(str(child.pid)); child.wait()"]
    started = time.monotonic()
    found = run(Part("tests", 8, words), tmp_path)
    assert found["status"] == "too long" and found["rows"] == [] and time.monotonic() - started < 100
    pid = int((tmp_path / "pid").read_text())
    for _ in range(300):  # it is init's to take note of
        state = Path(f"/proc/{pid}/stat").read_text().split()[2] if Path(f"/proc/{pid}").exists() else "gone"
        if state in ("gone", "Z", "X"):
            return
        time.sleep(0.1)
    pytest.fail(f"process {pid} goes on")


def test_all_parts_together_take_eight_minutes_at_most():
    assert sum(part.limit for part in parts("cuda", 2, None)) <= 480


def test_what_fails_stops_no_other_and_is_said(monkeypatch, tmp_path, capsys):
    report = 'import sys; open(sys.argv[2], \'w\').write(\'{"where": "here", "rows": [{"a": 1}]}\')'
    fake = [Part("bad", 60, ["-c", "raise SystemExit(1)"]), Part("good", 60, ["-c", report])]
    monkeypatch.setattr(gpu, "parts", lambda *_: fake)
    with pytest.raises(SystemExit):
        gpu.main(["--device", "cpu", "--json", str(tmp_path / "x.json")])
    written = json.loads((tmp_path / "x.json").read_text())
    assert torch.__version__ in written["where"]
    ended = {name: (part["status"], part["rows"]) for name, part in written["parts"].items()}
    assert ended == {"bad": ("failed", []), "good": ("ok", [{"a": 1}])}
    out = capsys.readouterr().out
    assert "failed" in out and str(tmp_path / "x.json") in out


def test_the_command_on_a_cpu(root, tmp_path):
    """A benchmark itself, with small numbers."""
    words = [root / "tests" / "gpu.sh", "--device", "cpu", "--parts", "loss float32", "--json", tmp_path / "x"]
    done = subprocess.run(words, env={**os.environ, "PYTHON": sys.executable}, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads((tmp_path / "x").read_text())["parts"]
    assert list(found) == ["loss float32"] and found["loss float32"]["status"] == "ok" and found["loss float32"]["rows"]


def test_wheels_that_are_not_there_are_one_line(root):
    done = subprocess.run([root / "tests" / "gpu.sh", "--wheels", "nowhere"], capture_output=True, text=True)
    assert done.returncode == 1 and done.stderr.startswith("error: --wheels: 'nowhere' is no folder")
