"""``local/score.sh`` and ``python -m rnnt_kd.bin.score`` / ``summarize``: from recogs to the table."""

import json
import os
import subprocess

import pytest

from rnnt_kd.bin import score, summarize
from rnnt_kd.scoring.recognitions import Recognition, write_recogs

REFS = {"s1-a": "one two three", "s1-b": "four", "s2-c": "fünf sechs", "s2-d": "ja"}


def write_hyps(folder, hyps, name="test"):
    write_recogs(
        folder / f"recogs-{name}.txt",
        [Recognition(k, tuple(REFS[k].split()), tuple(h.split())) for k, h in hyps.items()],
    )
    return folder


@pytest.fixture
def decoded(tmp_path):
    """A data directory and two systems' recognitions of it."""
    data = tmp_path / "data" / "test"
    data.mkdir(parents=True)
    tables = {
        "wav.scp": {key: data / "x.wav" for key in REFS},
        "text": REFS,
        "utt2spk": {key: key.split("-")[0] for key in REFS},
    }
    (data / "x.wav").write_bytes(b"")
    for name, table in tables.items():
        (data / name).write_text("".join(f"{key} {value}".rstrip() + "\n" for key, value in table.items()))
    twin = write_hyps(tmp_path / "exp" / "twin", {"s1-a": "one two", "s1-b": "for", "s2-c": "fünf", "s2-d": "ja ah"})
    ours = write_hyps(
        tmp_path / "exp" / "ours", {"s1-a": "one two", "s1-b": "four", "s2-c": "fünf sechs", "s2-d": "ja ah"}
    )
    return data, ours, twin


def test_score_sh_writes_everything(root, decoded):
    data, ours, twin = decoded
    command = [str(root / "local/score.sh"), "--baseline-decode-dir", str(twin), str(data), str(ours)]
    environment = {
        **os.environ,
        "RNNT_KD_ENV": "none",
        "PATH": f"{os.path.dirname(os.sys.executable)}:{os.environ['PATH']}",
    }
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd="/", check=True)
    lines = done.stdout.splitlines()
    assert lines[0] == "%WER 28.57 [ 2 / 7, 1 ins, 1 del, 0 sub ]"
    assert lines[1].startswith("95 % interval") and "baseline %WER 57.14" in lines[2] and ": p = " in lines[2]
    assert lines[-1].split() == ["s2", "2", "3", "33.33", "1", "0", "0"]
    result = json.loads((ours / "wer-test.json").read_text())
    assert result["wer"] == 28.5714 and result["ins"] == 1 and result["baseline"] == str(twin)
    assert 0 < result["p_value"] <= 1 and result["ci95"][0] <= result["wer"] <= result["ci95"][1]
    assert result["command"].startswith("python -m rnnt_kd.bin.score --baseline-decode-dir ")
    assert (ours / "errs-test.txt").read_text().startswith("%WER = 28.57\nErrors: 1 insertions, 1 deletions, 0 subst")
    assert (ours / "wer-test.txt").read_text() == done.stdout


def test_score_sh_usage_and_user_errors_have_no_traceback(root, decoded):
    data, ours, _ = decoded
    environment = {
        **os.environ,
        "RNNT_KD_ENV": "none",
        "PATH": f"{os.path.dirname(os.sys.executable)}:{os.environ['PATH']}",
    }
    script = str(root / "local/score.sh")
    shown = subprocess.run([script, "--help"], capture_output=True, text=True)
    assert shown.returncode == 0 and "DATA_DIR DECODE_DIR" in shown.stdout and "set -euo" not in shown.stdout
    assert subprocess.run([script, str(data)], capture_output=True).returncode == 1
    (ours / "recogs-test.txt").write_text("nonsense\n")
    failed = subprocess.run([script, str(data), str(ours)], capture_output=True, text=True, env=environment)
    assert failed.returncode == 1 and failed.stderr.startswith("error: ") and failed.stderr.count("\n") == 1
    assert "recogs-test.txt:1" in failed.stderr and not list(ours.glob("*.json"))


def run(capsys, *arguments, main=score.main):
    """Exit status and what was printed."""
    try:
        main([str(argument) for argument in arguments])
        status = 0
    except SystemExit as end:
        status = end.code
    captured = capsys.readouterr()
    return status, captured.out + captured.err


def test_scored_twice_is_the_same_and_skipped_until_something_changes(decoded, capsys):
    data, ours, twin = decoded
    arguments = ["--data-dir", data, "--decode-dir", ours, "--baseline-decode-dir", twin]
    _, first = run(capsys, *arguments)
    written = (ours / "wer-test.json").read_bytes()
    _, second = run(capsys, *arguments)
    assert "finished already" in second and second.endswith(first) and (ours / "wer-test.json").read_bytes() == written
    write_hyps(twin, {"s1-a": "one", "s1-b": "for", "s2-c": "fünf", "s2-d": ""})
    _, third = run(capsys, *arguments)
    assert "runs again" in third and "p = " in third


def test_without_a_data_dir_speakers_come_from_the_decoding(decoded, capsys):
    _, ours, _ = decoded
    assert "speaker" not in run(capsys, "--decode-dir", ours)[1]
    (ours / "speakers-test.json").write_text(json.dumps({key: "anna" for key in REFS}))
    status, printed = run(capsys, "--decode-dir", ours)
    assert status == 0 and "anna" in printed


def test_left_out_utterances_are_named_and_others_must_be_there(decoded, capsys):
    data, ours, _ = decoded
    write_hyps(ours, {"s1-a": "one two three", "s2-c": "fünf sechs", "s2-d": ""})
    status, printed = run(capsys, "--data-dir", data, "--decode-dir", ours)
    assert status == 1 and '"s1-b"' in printed
    (ours / "decode.json").write_text(json.dumps({"left_out": {"s1-b": "is silent"}}))
    status, printed = run(capsys, "--data-dir", data, "--decode-dir", ours)
    assert status == 0 and "1 utterances left out: s1-b" in printed


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--decode-dir", "{tmp}/none"], "holds no recogs-*.txt"),
        (["--decode-dir", "{ours}", "--test-set", "other"], "no test set 'other'"),
        (["--decode-dir", "{ours}", "--data-dir", "{tmp}/none"], "no such directory"),
        (["--decode-dir", "{ours}", "--baseline-decode-dir", "{tmp}/none"], "holds no recogs-*.txt"),
        (["--decode-dir", "{ours}", "--replications", "0"], "--replications"),
    ],
)
def test_wrong_options(decoded, tmp_path, capsys, arguments, message):
    filled = [argument.format(tmp=tmp_path, ours=decoded[1]) for argument in arguments]
    status, printed = run(capsys, *filled)
    assert status == 1 and printed.startswith("error: ") and message in printed and printed.count("\n") == 1


def test_several_test_sets_need_a_choice_and_no_words_no_rate(decoded, capsys):
    _, ours, _ = decoded
    write_recogs(ours / "recogs-empty.txt", [Recognition("a", (), ("x",))])
    assert "2 test sets" in run(capsys, "--decode-dir", ours)[1]
    assert run(capsys, "--decode-dir", ours, "--test-set", "test")[0] == 0
    status, printed = run(capsys, "--decode-dir", ours, "--test-set", "empty")
    assert status == 1 and "no reference holds a word" in printed and not (ours / "wer-empty.json").exists()


def test_summarize_prints_what_it_writes(tmp_path, capsys):
    (tmp_path / "exp" / "teacher").mkdir(parents=True)
    options = ["--exp-dir", tmp_path / "exp", "--test-sets", "test", "--systems", "teacher small_kd", "--corpus", "an4"]
    status, printed = run(capsys, *options, main=summarize.main)
    table, title, commands = (tmp_path / "exp/summary.md").read_text().partition("\nCommands that made the figures:")
    assert status == 0 and printed == table and title
    assert "rnnt_kd.bin.summarize --exp-dir" in commands
    rows = json.loads((tmp_path / "exp/summary.json").read_text())
    assert [row["system"] for row in rows] == ["teacher", "small", "small_kd"]
    status, printed = run(capsys, "--exp-dir", tmp_path / "none", "--test-sets", "test", main=summarize.main)
    assert status == 1 and "no such folder" in printed
    status, printed = run(capsys, "--exp-dir", tmp_path, "--test-sets", " ", main=summarize.main)
    assert status == 1 and "--test-sets" in printed
