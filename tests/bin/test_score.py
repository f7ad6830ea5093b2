"""``local/score.sh`` and ``python -m rnnt_kd.bin.score``: from recogs to rates."""

import json
import os
import subprocess

import pytest

from rnnt_kd.bin import score
from rnnt_kd.data.kaldi_dir import write_data_dir
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
    audio, speakers = tmp_path / "x.wav", {key: key.split("-")[0] for key in REFS}
    audio.write_bytes(b"")
    data = write_data_dir(tmp_path / "data/test", wav_scp=dict.fromkeys(REFS, audio), text=REFS, utt2spk=speakers)
    exp = tmp_path / "exp"
    twin = write_hyps(exp / "twin", {"s1-a": "one two", "s1-b": "for", "s2-c": "fünf", "s2-d": "ja ah"})
    ours = write_hyps(exp / "ours", {"s1-a": "one two", "s1-b": "four", "s2-c": "fünf sechs", "s2-d": "ja ah"})
    return data, ours, twin


@pytest.fixture
def score_sh(root):
    """Run the script, in the Python of the tests."""
    path = f"{os.path.dirname(os.sys.executable)}:{os.environ['PATH']}"
    environment = {**os.environ, "RNNT_KD_ENV": "none", "PATH": path}

    def call(*arguments):
        command = [root / "local/score.sh", *arguments]
        return subprocess.run(list(map(str, command)), capture_output=True, text=True, env=environment, cwd="/")

    return call


def test_score_sh_writes_everything(score_sh, decoded):
    data, ours, twin = decoded
    done = score_sh("--baseline-decode-dir", twin, data, ours)
    lines = done.stdout.splitlines()
    assert lines[0] == "%WER 28.57 [ 2 / 7, 1 ins, 1 del, 0 sub ]"
    assert lines[1].startswith("95 % interval") and "baseline %WER 57.14" in lines[2] and ": p = " in lines[2]
    assert lines[-1].replace("|", "").split() == ["s2", "2", "3", "33.33", "1", "0", "0"]
    result = json.loads((ours / "wer-test.json").read_text())
    assert result["wer"] == 28.5714 and result["ins"] == 1 and result["baseline"] == str(twin)
    assert 0 < result["p_value"] <= 1 and result["ci95"][0] <= result["wer"] <= result["ci95"][1]
    assert result["command"].startswith("python -m rnnt_kd.bin.score --baseline-decode-dir ")
    assert (ours / "errs-test.txt").read_text().startswith("%WER = 28.57\nErrors: 1 insertions, 1 deletions, 0 subst")
    assert (ours / "wer-test.txt").read_text() == done.stdout
    assert (ours / "wer_0_0.0").read_text().splitlines()[0] == lines[0]
    assert (ours / "scoring_kaldi/best_wer").read_text() == f"{lines[0]} {ours}/wer_0_0.0\n"


def test_score_sh_is_called_as_kaldi_calls_it(score_sh, decoded):
    data, ours, twin = decoded
    done = score_sh(
        "--cmd",
        "run.pl --mem 4G",
        f"--baseline-decode-dir={twin}",
        "--seed=3",
        "--ignore-events",
        data,
        "no/graph",
        ours,
    )
    assert done.stdout.startswith("%WER 28.57 ") and "baseline %WER 57.14" in done.stdout
    assert json.loads((ours / "wer-test.json").read_text())["seed"] == 3


def test_score_sh_usage_and_user_errors_have_no_traceback(score_sh, decoded):
    data, ours, _ = decoded
    shown = score_sh("--help")
    assert shown.returncode == 0 and "DATA_DIR [LANG_OR_GRAPH_DIR] DECODE_DIR" in shown.stdout
    assert "HYP_FILE" in shown.stdout and "set -euo" not in shown.stdout
    assert [score_sh(data).returncode, score_sh(data, "a", "b", ours).returncode] == [1, 1]
    (ours / "recogs-test.txt").write_text("nonsense\n")
    failed = score_sh(data, ours)
    assert failed.returncode == 1 and failed.stderr.startswith("error: ") and failed.stderr.count("\n") == 1
    assert "recogs-test.txt:1" in failed.stderr and not list(ours.glob("*.json"))


KALDI = "s2-d ja ah\ns1-a one two\n\ns2-c fünf sechs\ns1-b  four\n"
FORMS = {
    "text": KALDI,
    "hyp.bom.crlf": "\ufeff" + KALDI.replace("\n", "\r\n"),
    "hyp.trn": "ja ah (s2-s2-d)\none two (s1-s1-a)\nfünf sechs (s2-s2-c)\nfour (s1-s1-b)\n",
    "ids.trn": "ja ah (s2-d)\none two (s1-a)\nfünf sechs (s2-c)\nfour (s1-b)\n",
}


@pytest.mark.parametrize("name", [*FORMS, "recogs.txt"])
def test_hypotheses_of_any_recogniser_get_the_figures_of_a_decoding(score_sh, decoded, name):
    data, ours, twin = decoded
    (data / "wav.scp").unlink()  # audio is not needed
    score_sh("--baseline-decode-dir", twin, data, ours)
    recogs = (ours / "recogs-test.txt").read_text() + "s1-a:\ttimestamp_hyp=[0.120, 0.480]\n"
    file, baseline = ours / name, twin / "text"
    file.write_text({**FORMS, "recogs.txt": recogs}[name], newline="")
    baseline.write_text("s1-a one two\ns1-b for\ns2-c fünf\ns2-d ja ah\n")
    done = score_sh(f"--baseline-decode-dir={baseline}", data, file)
    assert done.stdout.splitlines()[0] == "%WER 28.57 [ 2 / 7, 1 ins, 1 del, 0 sub ]", done.stderr
    folders = (ours, ours / f"{name}.score")
    expected, found = (json.loads((folder / "wer-test.json").read_text()) for folder in folders)
    assert {key for key in expected if expected[key] != found[key]} == {"baseline", "command"}
    assert 0 < found["p_value"] < 1


@pytest.mark.parametrize("content, options, rate, note", [
    ("s1-a ONE TWO\ns1-b FOUR\ns2-c SECHS\ns2-d JA\n", [], "100.00", "note: test: upper and lower case are not as"),
    ("s1-a one\u3000<unk> two\ns1-b four\ns2-c fu\u0308nf sechs\ns2-d ja [noise]\n", [], "42.86", ""),
    ("s1-a one two <unk>\ns1-b four\ns2-c fu\u0308nf sechs\ns2-d ja [noise]\n", ["--ignore-events"], "14.29",
     "note: test: words in brackets, such as <unk> and [noise], do not count (--ignore-events)"),
])  # fmt: skip
def test_what_the_text_has_to_do_with_the_rate_is_said(decoded, tmp_path, capsys, content, options, rate, note):
    (tmp_path / "hyps").write_text(content, encoding="utf-8")
    status, printed = run(capsys, "--data-dir", decoded[0], "--decode-dir", tmp_path / "hyps", *options)
    assert status == 0 and printed.startswith(f"%WER {rate} ")
    assert [line.startswith(note) for line in printed.splitlines() if line.startswith("note: ")] == [True] * bool(note)


@pytest.mark.parametrize("content, message", [
    (KALDI.replace("s1-b  four\n", ""), '1 of 4 utterances of {data}/text are missing, the first is "s1-b"'),
    (KALDI + "s3-x ja\n", '"s3-x" is not in {data}/text; expected the utterances of one data directory'),
    (KALDI + "s1-b four\n", ':6: a second hypothesis of "s1-b"'),
    (
        "".join(f"{key}:\t{side}=['ja']\n" for key in REFS for side in ("ref", "hyp")),
        'ref of "s1-a" differs from {data}/text: "ja"',
    ),
    (b"s1-a f\xfcnf\n", "not UTF-8"),
    (" \n", "holds no utterance"),
])  # fmt: skip
def test_hypotheses_that_do_not_fit_are_one_line(decoded, tmp_path, capsys, content, message):
    data, file = decoded[0], tmp_path / "hyps"
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    status, printed = run(capsys, "--data-dir", data, "--decode-dir", file)
    assert status == 1 and printed.startswith(f"error: {file}") and printed.count("\n") == 1
    assert message.format(data=data) in printed and not (tmp_path / "hyps.score").exists()


def run(capsys, *arguments):
    """Exit status and what was printed."""
    try:
        score.main([str(argument) for argument in arguments])
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
        (["--decode-dir", "{ours}", "--data-dir", "{tmp}/none"], "none/text: no such file"),
        (["--decode-dir", "{ours}/recogs-test.txt"], "a file of hypotheses; expected --data-dir"),
        (["--decode-dir", "{ours}", "--baseline-decode-dir", "{tmp}/none"], "holds no recogs-*.txt"),
        (["--decode-dir", "{ours}", "--replications", "0"], "--replications"),
    ],
)
def test_a_wrong_option_is_one_line(decoded, tmp_path, capsys, arguments, message):
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
    write_recogs(ours / "recogs-other.txt", [Recognition("a", ("x",), ("x",))])
    for name, rate in (("other", "0.00"), ("test", "28.57")):  # Kaldi's files are those of the last call
        assert run(capsys, "--decode-dir", ours, "--test-set", name)[0] == 0
        assert (ours / "wer_0_0.0").read_text().startswith(f"%WER {rate} ")
