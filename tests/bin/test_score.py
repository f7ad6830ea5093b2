"""``local/score.sh`` and ``python -m rnnt_kd.bin.score``: from recogs to rates."""

import json
import os
import subprocess

import pytest

from rnnt_kd.bin import score
from rnnt_kd.data.kaldi_dir import write_data_dir
from rnnt_kd.scoring.recognitions import Recognition, write_recogs
from rnnt_kd.scoring.trn import write_trn

TIMES = 5  # each sentence is spoken: 20 utterances, enough for an interval


def spoken(texts):
    """Utterance id -> words, of speaker-sentence -> words."""
    return {f"{key}{n}": text for key, text in texts.items() for n in range(TIMES)}


REFS = spoken({"s1-a": "one two three", "s1-b": "four", "s2-c": "fünf sechs", "s2-d": "ja"})


def write_hyps(folder, hyps, name="test"):
    items = [Recognition(k, tuple(REFS[k].split()), tuple(h.split())) for k, h in spoken(hyps).items()]
    write_recogs(folder / f"recogs-{name}.txt", items)
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
    assert lines[0] == "%WER 28.57 [ 10 / 35, 5 ins, 5 del, 0 sub ]"
    assert lines[1].startswith("95 % interval") and "baseline %WER 57.14" in lines[2] and ": p = " in lines[2]
    assert lines[-1].replace("|", "").split() == ["s2", "10", "15", "33.33", "5", "0", "0"]
    result = json.loads((ours / "wer-test.json").read_text())
    assert result["wer"] == 28.5714 and result["ins"] == 5 and result["baseline"] == str(twin)
    assert 0 < result["p_value"] <= 1 and result["ci95"][0] <= result["wer"] <= result["ci95"][1]
    assert result["command"].startswith("python -m rnnt_kd.bin.score --baseline-decode-dir ")
    assert (ours / "errs-test.txt").read_text().startswith("%WER = 28.57\nErrors: 5 insertions, 5 deletions, 0 subst")
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


HYPS = spoken({"s2-d": "ja ah", "s1-a": "one two", "s2-c": "fünf sechs", "s1-b": "four"})
KALDI = "".join(f"{key}  {words}\n\n" for key, words in HYPS.items())
FORMS = {
    "text": KALDI,
    "hyp.bom.crlf": "\ufeff" + KALDI.replace("\n", "\r\n"),
    "hyp.trn": "".join(f"{words} ({key[:2]}-{key})\n" for key, words in HYPS.items()),
    "ids.trn": "".join(f"{words} ({key})\n" for key, words in HYPS.items()),
}


@pytest.mark.parametrize("name", [*FORMS, "recogs.txt"])
def test_hypotheses_of_any_recogniser_get_the_figures_of_a_decoding(score_sh, decoded, name):
    data, ours, twin = decoded
    (data / "wav.scp").unlink()  # audio is not needed
    score_sh("--baseline-decode-dir", twin, data, ours)
    recogs = (ours / "recogs-test.txt").read_text() + "s1-a0:\ttimestamp_hyp=[0.120, 0.480]\n"
    file, baseline = ours / name, twin / "text"
    file.write_text({**FORMS, "recogs.txt": recogs}[name], newline="")
    hyps = spoken({"s1-a": "one two", "s1-b": "for", "s2-c": "fünf", "s2-d": "ja ah"})
    baseline.write_text("".join(f"{key} {words}\n" for key, words in hyps.items()))
    done = score_sh(f"--baseline-decode-dir={baseline}", data, file)
    assert done.stdout.splitlines()[0] == "%WER 28.57 [ 10 / 35, 5 ins, 5 del, 0 sub ]", done.stderr
    folders = (ours, ours / f"{name}.score")
    expected, found = (json.loads((folder / "wer-test.json").read_text()) for folder in folders)
    assert {key for key in expected if expected[key] != found[key]} == {"baseline", "command"}
    assert 0 < found["p_value"] < 1


@pytest.mark.parametrize("said, options, rate, note", [
    (("ONE TWO", "FOUR", "SECHS", "JA"), [], "100.00", "note: test: upper and lower case are not as"),
    (("one\u3000<unk> two", "four", "fu\u0308nf sechs", "ja [noise]"), [], "42.86", ""),
    (("one two <unk>", "four", "fu\u0308nf sechs", "ja [noise]"), ["--ignore-events"], "14.29",
     "note: test: words in brackets, such as <unk> and [noise], do not count (--ignore-events)"),
])  # fmt: skip
def test_what_the_text_has_to_do_with_the_rate_is_said(decoded, tmp_path, capsys, said, options, rate, note):
    hyps = spoken(dict(zip(("s1-a", "s1-b", "s2-c", "s2-d"), said, strict=True)))
    content = "".join(f"{key} {words}\n" for key, words in hyps.items())
    (tmp_path / "hyps").write_text(content, encoding="utf-8")
    status, printed = run(capsys, "--data-dir", decoded[0], "--decode-dir", tmp_path / "hyps", *options)
    assert status == 0 and printed.startswith(f"%WER {rate} ")
    assert [line.startswith(note) for line in printed.splitlines() if line.startswith("note: ")] == [True] * bool(note)


@pytest.mark.parametrize("content, message", [
    (KALDI.replace("s1-b0  four\n", ""), '1 of 20 utterances of {data}/text are missing, the first is "s1-b0"'),
    (KALDI + "s3-x ja\n", '"s3-x" is not in {data}/text; expected the utterances of one data directory'),
    (KALDI + "s1-b0 four\n", ':41: a second hypothesis of "s1-b0"'),
    (
        "".join(f"{key}:\t{side}=['ja']\n" for key in REFS for side in ("ref", "hyp")),
        'ref of "s1-a0" differs from {data}/text: "ja"',
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
    assert status == 1 and '"s1-b0"' in printed
    (ours / "decode.json").write_text(json.dumps({"left_out": {f"s1-b{n}": "is silent" for n in range(TIMES)}}))
    status, printed = run(capsys, "--data-dir", data, "--decode-dir", ours)
    assert status == 0 and "5 utterances left out: s1-b0, s1-b1" in printed


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


def test_several_test_sets_need_a_choice(decoded, capsys):
    _, ours, _ = decoded
    write_recogs(ours / "recogs-other.txt", [Recognition("a", ("x",), ("x",))])
    assert "2 test sets" in run(capsys, "--decode-dir", ours)[1]
    for name, rate in (("other", "0.00"), ("test", "28.57")):  # Kaldi's files are those of the last call
        assert run(capsys, "--decode-dir", ours, "--test-set", name)[0] == 0
        assert (ours / "wer_0_0.0").read_text().startswith(f"%WER {rate} ")


@pytest.mark.parametrize("utterances, speakers, few", [
    (1, 1, "1 utterance"), (19, 2, "19 utterances"), (25, 1, "one speaker"), (20, 2, ""), (25, 0, "")
])  # fmt: skip
def test_too_few_utterances_or_speakers_have_no_interval_and_no_p_value(tmp_path, capsys, utterances, speakers, few):
    ours, twin = tmp_path / "ours", tmp_path / "twin"
    for folder, hyp in ((ours, ("one",)), (twin, ("nine",))):
        items = [Recognition(f"u{n:02d}", ("one",), hyp if n % 2 else ("one",)) for n in range(utterances)]
        write_recogs(folder / "recogs-test.txt", items)
    if speakers:
        (ours / "speakers-test.json").write_text(
            json.dumps({f"u{n:02d}": f"s{n % speakers}" for n in range(utterances)})
        )
    status, printed = run(capsys, "--decode-dir", ours, "--baseline-decode-dir", twin)
    result = json.loads((ours / "wer-test.json").read_text())
    assert status == 0 and result["wer"] == 0.0 and result["baseline_wer"] is not None
    assert result["too_few"] == (few or None) and printed.count(f"too few to tell ({few})") == (2 if few else 0)
    assert (result["ci95"] is None) == (result["p_value"] is None) == bool(few) and ("p = " in printed) == (not few)


def test_a_test_set_without_words_has_insertions_and_no_rate(score_sh, tmp_path):
    audio, keys = tmp_path / "x.wav", [f"noise-{n:02d}" for n in range(25)]
    audio.write_bytes(b"")
    data = write_data_dir(
        tmp_path / "noise",
        wav_scp=dict.fromkeys(keys, audio), text=dict.fromkeys(keys, ""), utt2spk={key: f"s{key[-1]}" for key in keys},
    )  # fmt: skip
    for system, said in (("ours", 1), ("twin", 3)):
        items = [Recognition(key, (), ("yes",) * (n < said)) for n, key in enumerate(keys)]
        write_recogs(tmp_path / system / "recogs-noise.txt", items)
    done = score_sh("--baseline-decode-dir", tmp_path / "twin", data, tmp_path / "ours")
    assert done.stdout.startswith("%WER - [ 1 / 0, 1 ins, 0 del, 0 sub ]\n") and not done.stderr
    assert done.stdout.count("too few to tell (no words)") == 2 and "nan" not in done.stdout
    result = json.loads((tmp_path / "ours/wer-noise.json").read_text(), parse_constant=lambda text: pytest.fail(text))
    figures = [result[key] for key in ("wer", "ci95", "p_value", "baseline_wer", "characters", "ins", "words")]
    assert figures == [None] * 5 + [1, 0]
    assert (tmp_path / "ours/errs-noise.txt").read_text().startswith("%WER = -\n")
    assert (tmp_path / "ours/wer_0_0.0").read_text().startswith("%WER - [ 1 / 0,")


def test_a_speaker_without_words_has_no_rate(decoded, capsys):
    _, ours, _ = decoded
    items = [Recognition(key, () if key < "s2" else ("ja",), ("ja",)) for key in REFS]
    write_recogs(ours / "recogs-test.txt", items)
    (ours / "speakers-test.json").write_text(json.dumps({key: key[:2] for key in REFS}))
    status, printed = run(capsys, "--decode-dir", ours)
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in printed.splitlines()[-2:]]
    assert status == 0
    assert rows == [["s1", "10", "0", "-", "10", "0", "0"], ["s2", "10", "10", "0.00", "0", "0", "0"]]


SCRIPTS = {  # two sentences and what was recognised of them: one character of nine is wrong
    "chinese": (["零一二三四", "五六七八"], ["零一二三五", "五六七八"]),
    "chinese, words set apart": (["零一 二三四", "五六 七八"], ["零一二 三五", "五六七八"]),
    "japanese": (["ゼロいちに", "サンよん"], ["ゼロいちよ", "サンよん"]),
    "korean": (["영일 이삼사", "오육칠팔"], ["영일이 삼오", "오육칠팔"]),
    "thai": (["กขคงจ", "ฉชซฌ"], ["กขคงฉ", "ฉชซฌ"]),
}


@pytest.mark.parametrize("name", SCRIPTS)
def test_characters_are_counted_beside_words_where_nobody_counts_words(tmp_path, capsys, name):
    refs, hyps = SCRIPTS[name]
    for folder, said in (("ours", hyps), ("twin", ["", ""])):
        items = [Recognition(f"u{n:02d}", tuple(refs[n % 2].split()), tuple(said[n % 2].split())) for n in range(20)]
        write_recogs(tmp_path / folder / "recogs-test.txt", items)
    status, printed = run(capsys, "--decode-dir", tmp_path / "ours", "--baseline-decode-dir", tmp_path / "twin")
    assert status == 0 and "%CER 11.11 [ 10 / 90, 0 ins, 0 del, 10 sub ]\n95 % interval" in printed
    assert "baseline %CER 100.00" in printed and "p = 0.0002" in printed
    characters = json.loads((tmp_path / "ours/wer-test.json").read_text())["characters"]
    assert (characters["cer"], characters["baseline_cer"], characters["characters"]) == (11.1111, 100.0, 90)
    low, high = characters["ci95"]
    assert low < characters["cer"] < high and characters["p_value"] == 0.0002
    errors = (tmp_path / "ours/errs-test.txt").read_text()
    assert "\n%CER = 11.11\nErrors: 0 insertions, 0 deletions, 10 substitutions, over 90 reference chara" in errors


@pytest.mark.parametrize("text", ["one two three", "शून्य एक दो", "ОДИН 两 ДВА ТРИ"])
def test_characters_are_not_counted_where_blanks_part_the_words(tmp_path, capsys, text):
    write_recogs(tmp_path / "recogs-test.txt", [Recognition("u", tuple(text.split()), ())])
    assert "%CER" not in run(capsys, "--decode-dir", tmp_path)[1]
    assert json.loads((tmp_path / "wer-test.json").read_text())["characters"] is None


def test_trn_of_words_that_sclite_reads_otherwise_is_scored_as_its_words(tmp_path, capsys):
    keys, words = ["s-u(1)", "s-u2"], ("(UH)", "{", "A", "%28", "100%", ";;")
    items = [Recognition(key, words, words) for key in keys]
    write_trn(tmp_path / "ref.trn", tmp_path / "hyp.trn", items, dict.fromkeys(keys, "s"))
    data = tmp_path / "data"
    data.mkdir()
    (data / "text").write_text("".join(f"{key} {' '.join(words)}\n" for key in keys))
    (data / "utt2spk").write_text("".join(f"{key} s\n" for key in keys))
    status, printed = run(capsys, "--data-dir", data, "--decode-dir", tmp_path / "hyp.trn")
    assert status == 0 and printed.startswith("%WER 0.00 [ 0 / 12,")


def test_the_name_of_a_test_set_is_no_path_and_speakers_may_have_any(decoded, tmp_path, capsys):
    (tmp_path / "hyp").write_text(KALDI)
    for name in ("x/y", "../../x"):
        status, printed = run(capsys, "--data-dir", decoded[0], "--decode-dir", tmp_path / "hyp", "--test-set", name)
        assert (status, printed) == (1, f"error: --test-set: '{name}'; expected a name, not a path\n")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data", "exp", "hyp", "x.wav"]
    (decoded[1] / "speakers-test.json").write_text(json.dumps({key: [1, None][key < "s2"] for key in REFS}))
    assert run(capsys, "--decode-dir", decoded[1])[0] == 0
    (decoded[1] / "speakers-test.json").write_text(json.dumps({key: [1] for key in REFS}))
    assert run(capsys, "--decode-dir", decoded[1])[0] == 0
