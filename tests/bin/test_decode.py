"""``python -m rnnt_kd.bin.decode`` on a tiny system with random weights, then score and delay."""

import gzip
import importlib.util
import json
import os
import re
import shutil
import sys

import numpy as np
import pytest
import soundfile
import torch
from arpa_cases import make_arpa
from command_cases import edit_record, refused, words
from lhotse import CutSet, MonoCut, Recording, SupervisionSegment
from lhotse.audio import AudioSource
from system_cases import noise_corpus, random_system

from rnnt_kd.bin import decode, delay, score
from rnnt_kd.bin.scorer_options import make_scorers
from rnnt_kd.config import ModelConfig
from rnnt_kd.data.dataset import make_dataloader
from rnnt_kd.data.kaldi_dir import write_data_dir
from rnnt_kd.decoding.hotwords import HotWords
from rnnt_kd.decoding.lookup import available_searches, get_search
from rnnt_kd.decoding.ngram_lm import read_arpa
from rnnt_kd.decoding.scorers import TokenBonus, WordLm
from rnnt_kd.scoring.emissions import read_emissions
from rnnt_kd.scoring.recognitions import read_recogs
from rnnt_kd.systems.store import load_system
from rnnt_kd.text.tokenizer import Tokenizer
from rnnt_kd.text.train_bpe import train_bpe

TEXTS = {"a-1": "one two", "a-2": "two", "b-1": "three ONE", "b-2": "one", "b-3": ""}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """exp/: cuts, bpe and a teacher that emits something; data/test."""
    folder = tmp_path_factory.mktemp("decode")
    tokenizer = noise_corpus(folder, TEXTS, lambda index: 8000 + 4000 * index)
    random_system(folder / "exp/teacher", tokenizer, model=ModelConfig(size="tiny"), peak=4.0, silence=-1.0)
    return folder


def options(made, out_dir, **changed):
    values = {"system_dir": made / "exp/teacher", "cuts": made / "exp/cuts/test.jsonl.gz", "bpe_dir": made / "exp/bpe"}
    return words(**{**values, "out_dir": out_dir, "test_set": "test", "device": "cpu", **changed})


def test_in_an_engine_it_says_the_same_at_the_same_times(made, tmp_path, capsys, monkeypatch):
    """Batches of several utterances of different lengths, too: padding is not encoded."""
    ways = {"torch": {}, "numba": {"engine": "numba"}, "alone": {"engine": "numba", "batch_seconds": 0.1}}
    for name, more in ways.items():
        decode.main(options(made, tmp_path / name, **more))
    said = {name: read_emissions(tmp_path / name / "tokens-test.jsonl") for name in ways}
    assert said["torch"] == said["numba"] == said["alone"] and any(item.words for item in said["torch"].values())
    record = json.loads((tmp_path / "numba" / "decode.json").read_text())
    assert record["engine"] == "numba" and "engine" not in json.loads((tmp_path / "torch" / "decode.json").read_text())


def test_an_engine_that_cannot_run_is_one_clear_error(made, tmp_path, capsys, monkeypatch):
    def said(**more):
        return refused(capsys, decode.main, *options(made, tmp_path / "x", **{"engine": "numba", **more}))

    assert "there is no 'number'" in (line := said(engine="number")) and "did you mean 'numba'?" in line
    monkeypatch.setitem(sys.modules, "rnnt_kd_engine", None)
    assert "rnnt_kd_engine is not installed" in (line := said()) and "packages/engine" in line
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    assert "--engine: given for cuda" in said(device="cuda")
    assert not (tmp_path / "x").exists() or not list((tmp_path / "x").glob("recogs*"))


def test_fast_beam_search_says_words_of_the_text_only(made, tmp_path):
    pytest.importorskip("k2", reason="k2 is not in this environment")
    text = tmp_path / "text"
    text.write_text("x-1 two\nx-2 one ONE\nx-3\nx-4 日本\n")
    said = {}
    for name, more in (("any", {}), ("words", {"graph_text": text})):
        out = tmp_path / name
        decode.main(options(made, out, search="fast_beam_search", **more))
        said[name] = {word for item in read_recogs(out / "recogs-test.txt") for word in item.hyp}
        assert json.loads((out / "decode.json").read_text()).get("graph_text") == (str(text) if more else None)
    assert said["words"] and said["words"] <= {"two", "one", "ONE"}
    assert not said["any"] <= {"two", "one", "ONE"}  # what random weights say


@pytest.mark.parametrize("search", ["greedy_search", "modified_beam_search"])
def test_tokens_and_words_are_those_of_the_search_and_have_the_times_of_their_frames(made, tmp_path, search):
    """A frame is 40 ms; a word comes with its last token.  Alone, an utterance has the words that it has in a batch."""
    decode.main(options(made, tmp_path, search=search))
    recogs = read_recogs(tmp_path / "recogs-test.txt")
    assert {item.utterance_id: " ".join(item.ref) for item in recogs} == TEXTS
    said = {item.utterance_id: item.hyp for item in recogs}
    emissions = read_emissions(tmp_path / "tokens-test.jsonl")
    assert {key: item.words for key, item in emissions.items()} == said and any(said.values())
    model, config = load_system(made / "exp/teacher")
    tokenizer = Tokenizer.load(made / "exp/bpe")
    for batch in make_dataloader(made / "exp/cuts/test.jsonl.gz", batch_seconds=0.1):
        with torch.no_grad():
            encoded = model.encode(batch.features, batch.feature_lens)
        ((best,),) = get_search(search)(model, *encoded, beam=4, blank_id=0, unk_id=1)
        item = emissions[batch.utterance_ids[0]]
        assert list(item.words) == tokenizer.decode(best.tokens).split()
        assert list(item.tokens) == [tokenizer.pieces()[token] for token in best.tokens]
        assert list(item.timestamps) == pytest.approx([0.04 * frame for frame in best.timestamps], abs=1e-9)
        ends = [n for n, token in enumerate(item.tokens) if (*item.tokens, "▁")[n + 1].startswith("▁") and token != "▁"]
        assert list(item.word_times) == [item.timestamps[n] for n in ends]


def test_nbest_lists_and_ctm_belong_to_the_recognised_words(made, tmp_path, capsys):
    decode.main(options(made, tmp_path, nbest=3))
    said = {item.utterance_id: item.hyp for item in read_recogs(tmp_path / "recogs-test.txt")}
    emissions = read_emissions(tmp_path / "tokens-test.jsonl")
    lists = [json.loads(line) for line in (tmp_path / "nbest-test.jsonl").read_text().splitlines()]
    assert [item["id"] for item in lists] == sorted(item["id"] for item in lists)
    for key in TEXTS:
        found = [item for item in lists if item["id"] == key]
        assert [item["rank"] for item in found] == [1, 2, 3]  # random weights: nothing is sure
        assert found[0]["words"] == list(said[key]) == found[0]["text"].split()
        assert found[0]["tokens"] == list(emissions[key].tokens)
        assert found[0]["timestamps"] == list(emissions[key].timestamps)
        assert len({tuple(item["tokens"]) for item in found}) == 3
        ranks = [item["score"] / (len(item["tokens"]) + 2) for item in found]
        assert ranks == sorted(ranks, reverse=True)
        for item in found:
            assert len(item["words"]) == len(item["word_confidences"])
            assert all(0.0 <= confidence <= 1.0 for confidence in item["word_confidences"])
            assert all(a < b for a, b in zip(item["word_starts"], item["word_ends"], strict=True))
            assert all(b <= a + 1e-9 for a, b in zip(item["word_starts"][1:], item["word_ends"]))
    ctm = [line.split() for line in (tmp_path / "test.ctm").read_text().splitlines()]
    for key in TEXTS:
        rows = [row for row in ctm if row[0] == key]
        best = next(item for item in lists if (item["id"], item["rank"]) == (key, 1))
        assert [row[4] for row in rows] == best["words"]
        assert [float(row[2]) for row in rows] == pytest.approx(best["word_starts"])
        assert [float(row[5]) for row in rows] == pytest.approx(best["word_confidences"], abs=1e-4)
    assert sorted((tmp_path / "ref-test.trn").read_text().split("\n")) == sorted(
        ["", *(f"{text} ({key[0]}-{key})".strip() for key, text in TEXTS.items())]
    )
    capsys.readouterr()
    decode.main(options(made, tmp_path))
    assert "nbest was 3" in capsys.readouterr().out and not (tmp_path / "nbest-test.jsonl").exists()


def test_jobs_in_any_order_leave_the_files_of_one_process(made, tmp_path, capsys):
    """All but the times in decode.json; a job that has nothing to do ends well."""

    def files(folder):
        found = {path.name: path.read_bytes() for path in folder.iterdir() if path.name[0] != "."}
        values = json.loads(found.pop("decode.json"))
        assert "--nbest 2" in values["command"] and "--job" not in values["command"] and "--nj" not in values["command"]
        return found, {key: values[key] for key in values if key not in ("decode_seconds", "rtf", "command")}

    more = {"nbest": 2, "batch_seconds": 1.5}  # four batches
    decode.main(options(made, tmp_path / "one", **more))
    expected = files(tmp_path / "one")
    assert len(expected[0]) == 7
    for nj, order in ((2, (2, 1)), (3, (1, 3, 2)), (9, (9, 4, 3, 2, 1, 5))):
        out = tmp_path / str(nj)
        for job in order[:5]:
            assert not (out / "decode.json").exists()
            decode.main([*options(made, out, **more), f"--job={job}", f"--nj={nj}"])
        assert files(out) == expected and not list(out.glob(".decode-test.parts*"))
        capsys.readouterr()
        decode.main(options(made, out, **more, job=order[-1], nj=nj))
        assert "finished already" in capsys.readouterr().out


def test_what_a_killed_decoding_had_done_is_taken_over(made, tmp_path, monkeypatch):
    decode.main(options(made, tmp_path, batch_seconds=1.5, job=1, nj=2))
    real, calls = decode.decode, []
    monkeypatch.setattr(decode, "decode", lambda *a, **more: calls.append(a) or real(*a, **more))
    decode.main(options(made, tmp_path, batch_seconds=1.5))
    assert len(calls) == 2 and len(read_recogs(tmp_path / "recogs-test.txt")) == len(TEXTS)


def test_a_command_in_a_cuts_file_is_not_run(made, tmp_path, capsys):
    """What decodes a colleague's cuts runs nothing of theirs, with or without leave for the pipes of wav.scp."""
    shutil.copytree(made / "exp/cuts", tmp_path / "cuts")
    cuts = tmp_path / "cuts/test.jsonl.gz"
    lines = [json.loads(line) for line in gzip.decompress(cuts.read_bytes()).splitlines()]
    command = {"storage_path": f"pipe:touch {tmp_path}/EXECUTED; #", "storage_key": "x"}
    for changed, said in (
        ({"storage_type": "lilcom_files", **command}, 'features.storage_type: "lilcom_files"'),
        ({"storage_path": command["storage_path"]}, "EXECUTED; #', a shell pipe"),
    ):
        features = {**lines[0]["features"], **changed}
        text = "".join(json.dumps(line) + "\n" for line in [{**lines[0], "features": features}, *lines[1:]])
        cuts.write_bytes(gzip.compress(text.encode()))
        assert said in refused(capsys, decode.main, *options(made, tmp_path / "out", cuts=cuts))
    assert not (tmp_path / "EXECUTED").exists() and not (tmp_path / "out/recogs-test.txt").exists()


def test_what_an_earlier_version_decoded_is_finished(made, tmp_path, capsys):
    """Without the files that have come since."""
    decode.main(options(made, tmp_path))
    record = tmp_path / ".decode-test.record.json"
    assert "nbest" not in json.loads(record.read_text())["settings"]
    for name in ("test.ctm", "ref-test.trn", "hyp-test.trn"):
        edit_record(record, lambda values, name=name: values["outputs"].pop(name))
        (tmp_path / name).unlink()
    capsys.readouterr()
    decode.main(options(made, tmp_path))
    assert "finished already" in capsys.readouterr().out


def test_text_that_the_model_cannot_write_is_told_before_and_with_the_score(made, tmp_path, capsys):
    cuts = gzip.decompress((made / "exp/cuts/test.jsonl.gz").read_bytes()).decode()
    cuts = re.sub('"text": "([^"]*)"', lambda text: text[0].replace(text[1], text[1].upper()), cuts)
    (made / "exp/cuts/upper.jsonl.gz").write_bytes(gzip.compress(cuts.encode()))
    decode.main(options(made, tmp_path, cuts=made / "exp/cuts/upper.jsonl.gz"))
    line = "test: the BPE model cannot write 3 of 5 utterances (60.0 %), such as"  # it knows the letters of ONE
    said = [printed for printed in capsys.readouterr().out.splitlines() if printed.startswith(line)]
    assert len(said) == 1 and "in lower case it can" in said[0]
    score.main(["--decode-dir", str(tmp_path)])
    assert f"note: {said[0]}\n" in capsys.readouterr().out


def run_with(made, out_dir, **changed):
    """Decode; the best hypotheses as they were written, and decode.json."""
    decode.main(options(made, out_dir, nbest=1, **changed))
    lists = [json.loads(line) for line in (out_dir / "nbest-test.jsonl").read_text().splitlines()]
    return {item["id"]: (item["tokens"], item["score"]) for item in lists}, json.loads(
        (out_dir / "decode.json").read_text()
    )


def test_language_model_hot_words_and_bonus_have_a_say(made, tmp_path, capsys):
    """What decode writes is what the search finds with the scorers, made here by hand."""
    hot = tmp_path / "hot.txt"
    hot.write_text("two :4.0\nthree\n")
    tokenizer = Tokenizer.load(made / "exp/bpe")
    size = tokenizer.vocab_size
    hot_words = HotWords([(tokenizer.encode("two"), 4.0), (tokenizer.encode("three"), 2.0)], size)
    ways = {
        "hot": ([hot_words], {"hotwords": hot, "hotwords_score": 2.0}),
        "bonus": ([TokenBonus(0.5, size)], {"token_bonus": 0.5}),
    }
    if importlib.util.find_spec("kaldilm"):
        arpa = make_arpa(tmp_path / "2.arpa", [text.split() for text in TEXTS.values()], 2)
        scorer = WordLm(read_arpa(arpa), tokenizer.pieces(), 0.2)  # the default scale
        ways["lm"] = [scorer], {"lm": arpa}
        ways["both"] = [scorer, hot_words], {"lm": arpa, **ways["hot"][1]}
    without, record = run_with(made, tmp_path / "without")
    assert not {"lm", "lm_scale", "hotwords", "hotwords_score", "token_bonus"} & record.keys()
    model, _ = load_system(made / "exp/teacher")
    for name, (scorers, changed) in ways.items():
        found, record = run_with(made, tmp_path / name, **changed)
        assert found != without
        assert all(str(record[key]) == str(value) for key, value in changed.items())
        for batch in make_dataloader(made / "exp/cuts/test.jsonl.gz", batch_seconds=0.1):
            with torch.no_grad():
                encoded = model.encode(batch.features, batch.feature_lens)
            ((best,),) = get_search("modified_beam_search")(model, *encoded, beam=4, scorers=scorers)
            tokens, score = found[batch.utterance_ids[0]]
            assert tokens == [tokenizer.pieces()[token] for token in best.tokens]
            assert score == pytest.approx(best.score, abs=1e-3)
    capsys.readouterr()
    hot.write_text("two :4.0\n")
    decode.main(options(made, tmp_path / "hot", nbest=1, **ways["hot"][1]))
    assert f"{hot} changed" in capsys.readouterr().out


def test_decode_score_delay_and_again_with_another_beam(made, capsys):
    out_dir = made / "exp/teacher/decode_test_greedy_search"
    arguments = options(made, out_dir, search="greedy_search")
    decode.main(arguments)
    record = json.loads((out_dir / "decode.json").read_text())
    seconds = sum(0.5 + 0.25 * index for index in range(5))
    assert record["utterances"] == 5 and record["audio_seconds"] == pytest.approx(seconds, abs=0.01)
    assert record["rtf"] == pytest.approx(record["decode_seconds"] / record["audio_seconds"], abs=1e-3)
    settings = {"search": "greedy_search", "beam": 4, "test_set": "test", "left_out": {}}
    assert settings.items() <= record.items()
    capsys.readouterr()

    score.main(["--data-dir", str(made / "data/test"), "--decode-dir", str(out_dir)])
    printed = capsys.readouterr().out
    assert printed.startswith("%WER ") and "speaker" in printed
    row = json.loads((out_dir / "wer-test.json").read_text())
    rates = f"%WER {row['wer']:.2f} [ {row['errors']} / 6, {row['ins']} ins, {row['del']} del, {row['sub']} sub ]"
    assert rates in printed

    delay.main(["--decode-dir", str(out_dir), "--baseline-decode-dir", str(out_dir)])
    assert "no delay to tell, no word is right in both" in capsys.readouterr().out  # random weights
    decode.main(arguments)
    assert "finished already" in capsys.readouterr().out and (out_dir / "wer-test.json").exists()
    decode.main(options(made, out_dir, search="greedy_search", beam=2))  # another setting: old scores must go
    assert not (out_dir / "wer-test.json").exists() and not (out_dir / "errs-test.txt").exists()
    assert not (out_dir / "delay-test.json").exists() and not (out_dir / "wer_0_0.0").exists()


def test_a_folder_has_one_test_set_and_the_score_its_own_search(made, tmp_path, capsys):
    decode.main(options(made, tmp_path))
    for name in ("test.jsonl.gz", "test.left_out.json"):
        shutil.copy(made / "exp/cuts" / name, made / "exp/cuts" / name.replace("test", "eval"))
    other = options(made, tmp_path, cuts=made / "exp/cuts/eval.jsonl.gz", test_set="eval", search="greedy_search")
    assert "holds test; expected a folder for eval alone" in refused(capsys, decode.main, *other)
    record = json.loads((tmp_path / "decode.json").read_text())  # earlier versions did decode there
    (tmp_path / "decode.json").write_text(json.dumps({**record, "test_set": "eval", "search": "greedy_search"}))
    score.main(["--decode-dir", str(tmp_path)])
    assert json.loads((tmp_path / "wer-test.json").read_text())["search"] is None


def test_speakers_and_left_out_utterances_are_recorded(made, tmp_path):
    left_out = made / "exp/cuts/test.left_out.json"
    before = left_out.read_text()
    try:
        left_out.write_text(json.dumps({"c-1": "is silent"}))
        decode.main(options(made, tmp_path))
    finally:
        left_out.write_text(before)
    assert json.loads((tmp_path / "decode.json").read_text())["left_out"] == {"c-1": "is silent"}
    assert json.loads((tmp_path / "speakers-test.json").read_text()) == {key: key[0] for key in TEXTS}


def test_cuts_of_audio_without_speakers_are_decoded_scored_and_again_when_the_audio_is_another(made, tmp_path, capsys):
    cuts, rng = [], np.random.default_rng(0)
    for number in range(25):
        soundfile.write(tmp_path / f"u{number}.wav", 0.1 * rng.normal(size=8000), 16000)
        recording = Recording(f"u{number}", [AudioSource("file", [0], f"u{number}.wav")], 16000, 8000, 0.5)
        said = SupervisionSegment(f"u{number}", f"u{number}", 0.0, 0.5, text="one two")
        cuts.append(MonoCut(f"u{number}", 0.0, 0.5, 0, supervisions=[said], recording=recording))
    CutSet.from_cuts(cuts).to_file(tmp_path / "test.jsonl")
    given = options(made, tmp_path / "out", cuts=tmp_path / "test.jsonl")
    decode.main(given)
    assert json.loads((tmp_path / "out/speakers-test.json").read_text()) == {}
    score.main(words(decode_dir=tmp_path / "out"))
    assert "one speaker" not in capsys.readouterr().out
    audio, text = (
        {cut.id: value(cut) for cut in cuts} for value in (lambda cut: tmp_path / f"{cut.id}.wav", lambda _: "one two")
    )
    data = write_data_dir(tmp_path / "kaldi", wav_scp=audio, text=text, utt2spk=dict(zip(audio, audio)))
    (tmp_path / "of_trn").mkdir()
    trn = shutil.copy(tmp_path / "out/hyp-test.trn", tmp_path / "of_trn")
    score.main(words(decode_dir=trn, data_dir=data))
    first, second = (json.loads(next((tmp_path / name).rglob("wer-*.json")).read_text()) for name in ("out", "of_trn"))
    assert first["errors"] == second["errors"] and first["words"] == second["words"] == 50
    decode.main(given)
    assert "finished already" in capsys.readouterr().out
    soundfile.write(tmp_path / "u3.wav", 0.1 * rng.normal(size=8000), 16000)
    os.utime(tmp_path / "u3.wav", (2e9, 2e9))
    decode.main(given)
    assert "u3.wav changed since" in capsys.readouterr().out


def test_words_of_text_without_blanks_are_told_to_be_no_words_there(made, tmp_path, capsys):
    pytest.importorskip("kaldilm")
    tokenizer = Tokenizer.load(train_bpe(["北京天气", "我在北京"], 20, tmp_path / "bpe", "char", shrink_to_fit=True))
    arpa = make_arpa(tmp_path / "2.arpa", [list("北京天气"), list("我在北京")], 2)
    make_scorers({"lm": str(arpa), "lm_scale": 0.2}, tokenizer)
    assert "its words are told apart by blanks; where transcripts have none, train it on" in capsys.readouterr().out


def test_user_errors_are_one_line_and_write_nothing(made, tmp_path, capsys):
    other_bpe = tmp_path / "bpe"
    train_bpe(["quite another text with letters"], 20, other_bpe)
    other_blank = shutil.copytree(made / "exp/teacher", tmp_path / "other_blank")
    config = other_blank / "config.yaml"
    config.write_text(config.read_text().replace("blank_id: 0", "blank_id: 2"))
    foreign, other_text = tmp_path / "hot.txt", tmp_path / "text"
    foreign.write_text("QUITE\n")
    other_text.write_text("x-1 日本\n")
    cases = [
        ({"search": "best"}, f"search: there is no 'best'; expected one of: {', '.join(available_searches())}"),
        ({"beam": 0}, "--beam: 0"),
        ({"nbest": 5}, "--nbest: 5; expected 1 .. 4, the hypotheses that --beam keeps"),
        ({"nbest": 0}, "--nbest: 0"),
        ({"batch_seconds": -1}, "--batch-seconds: -1.0"),
        ({"lm_scale": 0.3}, "--lm-scale: given without --lm; expected a file"),
        ({"hotwords_score": 0.3}, "--hotwords-score: given without --hotwords; expected a file"),
        ({"token_bonus": 1, "search": "greedy_search"}, "--search greedy_search: takes no language model, no hot"),
        ({"hotwords": tmp_path / "none.txt"}, "none.txt: no such file"),
        ({"hotwords": foreign}, 'hot.txt:1: the BPE model cannot spell "QUITE"'),
        *(
            (
                {"search": name, "graph_text": other_text},
                f"--graph-text: given with {name}; expected --search fast_beam",
            )
            for name in ("greedy_search", "modified_beam_search")
        ),
        ({"num_threads": 0}, "--num-threads: 0"),
        ({"test_set": "a/b"}, "--test-set: 'a/b'"),
        ({"job": 3, "nj": 2}, "--job: 3; expected 1 to 2"),
        ({"system_dir": tmp_path / "none"}, "no trained system here"),
        ({"bpe_dir": tmp_path / "none"}, "bpe.model"),
        ({"bpe_dir": other_bpe}, "another BPE model"),
        ({"system_dir": other_blank}, "blank_id is 2; expected 0"),
        ({"cuts": tmp_path / "none.jsonl.gz"}, "none.jsonl.gz"),
    ]
    if importlib.util.find_spec("k2"):
        changed = {"search": "fast_beam_search", "graph_text": other_text}
        cases.append((changed, f"error: {other_text}: no token may be said; expected text"))
    if importlib.util.find_spec("kaldilm"):
        cases.append(({"lm": tmp_path / "none.arpa"}, "none.arpa: no such file"))
    if not torch.cuda.is_available():
        cases.append(({"device": "cuda"}, "torch finds no GPU"))
    for changed, message in cases:
        assert message in refused(capsys, decode.main, *options(made, tmp_path / "out", **changed), lines=None)
        assert not (tmp_path / "out").exists()
