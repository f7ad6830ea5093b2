"""Stages 0 to 2 from the command line: the whole path, the skip, and every error as one line with status 1."""

import errno
import os
import shutil

import numpy as np
import pytest
import soundfile
from audio_cases import noise_files
from command_cases import LONG, fails_on_a_full_disk, refused, start
from filelock import FileLock

from rnnt_kd import record
from rnnt_kd.bin import compute_features, prepare_corpus, train_bpe, validate_data_dir
from rnnt_kd.data import features
from rnnt_kd.data.dataset import make_dataloader
from rnnt_kd.data.kaldi_dir import write_data_dir
from rnnt_kd.errors import UserError
from rnnt_kd.text.tokenizer import Tokenizer


@pytest.fixture
def data_dir(tmp_path):
    audio = noise_files(tmp_path, {f"u{index}": 8000 for index in range(4)})
    text = dict(zip(audio, ["ÜBER ALLES", "SAY IT", "SAY IT AGAIN", ""], strict=True))
    return write_data_dir(tmp_path / "data", wav_scp=audio, text=text, utt2spk=dict.fromkeys(audio, "s"))


def test_the_whole_path_runs_and_then_skips(data_dir, tmp_path, capsys):
    validate_data_dir.main([str(data_dir)])
    assert "4 utterances, 1 speakers, 0.00 hours: valid" in capsys.readouterr().out
    cuts = ["--data-dir", str(data_dir), "--out-dir", str(tmp_path / "cuts"), "--name", "train"]
    cuts += ["--speed-perturb", "0.9", "1.0", "1.1"]
    bpe = ["--text", str(data_dir / "text"), "--vocab-size", "20", "--out-dir", str(tmp_path / "bpe")]
    compute_features.main(cuts)
    train_bpe.main(bpe)
    assert "12 cuts of 4 utterances" in capsys.readouterr().out
    compute_features.main(cuts)
    train_bpe.main(bpe)
    assert capsys.readouterr().out.count("finished already, skipped") == 2
    tokenizer = Tokenizer.load(tmp_path / "bpe")
    (batch,) = make_dataloader(tmp_path / "cuts" / "train.jsonl.gz", batch_seconds=60)
    assert len(batch.texts) == 12 and tokenizer.decode(tokenizer.encode("ÜBER")) == "ÜBER"
    soundfile.write(tmp_path / "4.wav", np.random.default_rng(1).normal(size=8000) * 0.1, 16000)
    with open(data_dir / "wav.scp", "a") as scp, open(data_dir / "text", "a") as text:
        scp.write(f"u4 {tmp_path}/4.wav\n")
        text.write("u4 MORE WORDS\n")
    (data_dir / "utt2spk").write_text("".join(f"u{index} s\n" for index in range(5)))
    (data_dir / "spk2utt").unlink()
    compute_features.main(cuts)
    train_bpe.main(bpe)
    out = capsys.readouterr().out
    assert "15 cuts of 5 utterances" in out and out.count("runs again, because") == 2


@pytest.fixture
def long_dir(tmp_path):
    """45 recordings: work for three jobs; every seventh is left out."""
    audio = {f"u{index:02d}": tmp_path / f"{index}.wav" for index in range(45)}
    for index, path in enumerate(audio.values()):
        samples = 0.1 * np.random.default_rng(index).normal(size=3000 + 100 * index)
        soundfile.write(path, samples * (index % 7 > 0), 16000)
    return write_data_dir(
        tmp_path / "long", wav_scp=audio, text=dict.fromkeys(audio, "YES"), utt2spk=dict.fromkeys(audio, "s")
    )


def contents(folder):
    """Of the files that people see."""
    seen = [path for path in folder.rglob("*") if path.is_file() and not path.relative_to(folder).parts[0][0] == "."]
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in seen}


def test_jobs_in_any_order_leave_the_files_of_one_process(long_dir, tmp_path, capsys):
    def run(*more):
        compute_features.main([*options, *map(str, more)])
        return capsys.readouterr().out

    options = ["--data-dir", str(long_dir), "--out-dir", str(tmp_path / "cuts"), "--name", "x"]
    options += ["--speed-perturb", "0.9", "1.0"]
    told = run().splitlines()[0]
    expected = contents(tmp_path / "cuts")
    assert len(expected) == 5
    for nj, order in ((2, (2, 1)), (3, (1, 3, 2)), (5, (5, 4, 3, 2, 1))):  # of five, two have nothing to do
        shutil.rmtree(tmp_path / "cuts")
        for job in order[:-1]:
            assert run("--job", job, "--nj", nj) == f"features of x: job {job} of {nj} has done its part\n"
            assert contents(tmp_path / "cuts") == {}
        assert run("--job", order[-1], "--nj", nj).splitlines()[0] == told
        assert contents(tmp_path / "cuts") == expected
        assert not list((tmp_path / "cuts").glob(".x.parts*"))
        assert "finished already" in run("--job", 1, "--nj", nj) and "finished already" in run()


@pytest.mark.parametrize("more, is_taken_over", [([], True), (["--max-bad-fraction", "0.5"], False)])
def test_what_a_killed_run_made_is_taken_over_unless_the_settings_are_others(long_dir, tmp_path, more, is_taken_over):
    options = ["--data-dir", str(long_dir), "--out-dir", str(tmp_path / "cuts"), "--name", "x"]
    compute_features.main([*options, "--job", "1", "--nj", "3"])
    (done,) = (path.stat() for path in (tmp_path / "cuts").glob(".x.parts-*/feats/feats-00000.lca"))
    compute_features.main([*options, *more])
    now = (tmp_path / "cuts" / "x_feats" / "feats-00000.lca").stat()
    assert (now.st_ino == done.st_ino) == is_taken_over and not list((tmp_path / "cuts").glob(".x.parts*"))


@pytest.mark.parametrize("job, nj, words", [(0, 2, "1 to 2"), (3, 2, "1 to 2"), (1, 0, "--nj: 0")])
def test_a_job_that_there_is_not(data_dir, tmp_path, capsys, job, nj, words):
    options = ["--data-dir", data_dir, "--out-dir", tmp_path / "cuts", "--name", "x", "--job", job, "--nj", nj]
    assert words in refused(capsys, compute_features.main, *map(str, options))


def test_a_full_disk_is_one_line_and_leaves_nothing_half_made(data_dir, tmp_path, root):
    out = tmp_path / "out"
    features = "compute_features", ["--data-dir", data_dir, "--out-dir", out, "--name", "train"]
    bpe = "train_bpe", ["--text", data_dir / "text", "--vocab-size", "20", "--out-dir", out]
    for command, file_bytes in ((features, 3000), (bpe, 100)):
        fails_on_a_full_disk(root, *command, file_bytes=file_bytes)
        assert not [path for path in out.rglob("*") if path.is_file() and path.stat().st_size]
    process = start(root, *features)
    assert "4 cuts of 4 utterances" in process.communicate(timeout=LONG)[0]


def lose(path):
    path.unlink()


def flip(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("damage", [lose, flip])
@pytest.mark.parametrize("name", ["x_feats/feats-00000.lca", "x.jsonl.gz", "x.left_out.json"])
def test_a_lost_or_damaged_output_is_made_again_by_the_same_command(data_dir, tmp_path, capsys, name, damage):
    cuts, out = ["--data-dir", str(data_dir), "--out-dir", str(tmp_path / "cuts"), "--name", "x"], tmp_path / "cuts"
    compute_features.main(cuts)
    whole = (out / name).read_bytes()
    damage(out / name)
    if name != "x.left_out.json":
        with pytest.raises(UserError, match="run stage 1"):
            list(make_dataloader(out / "x.jsonl.gz", batch_seconds=60))
    compute_features.main(cuts)
    assert f"runs again, because {name} is" in capsys.readouterr().out and (out / name).read_bytes() == whole
    compute_features.main(cuts)
    assert "finished already" in capsys.readouterr().out


def test_damage_that_size_and_time_do_not_show_is_found_on_reading_and_its_next_step_works(
    data_dir, tmp_path, capsys, monkeypatch
):
    monkeypatch.setattr(record, "LARGE", 0)
    cuts, out = ["--data-dir", str(data_dir), "--out-dir", str(tmp_path / "cuts"), "--name", "x"], tmp_path / "cuts"
    compute_features.main(cuts)
    archive = out / "x_feats" / "feats-00000.lca"
    times = archive.stat().st_mtime_ns
    flip(archive)
    os.utime(archive, ns=(times, times))
    with pytest.raises(UserError, match=f"move {archive.parent} away and run stage 1 again"):
        list(make_dataloader(out / "x.jsonl.gz", batch_seconds=60))
    archive.parent.rename(tmp_path / "away")
    compute_features.main(cuts)
    assert "x_feats is missing" in capsys.readouterr().out
    list(make_dataloader(out / "x.jsonl.gz", batch_seconds=60))


def test_a_copy_with_other_times_is_finished_and_a_damaged_copy_is_not(data_dir, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(record, "LARGE", 0)
    cuts, out = ["--data-dir", str(data_dir), "--out-dir", str(tmp_path / "cuts"), "--name", "x"], tmp_path / "cuts"
    compute_features.main(cuts)
    archive = out / "x_feats" / "feats-00000.lca"
    os.utime(archive, (0, 0))
    compute_features.main(cuts)
    assert "finished already" in capsys.readouterr().out
    flip(archive)
    compute_features.main(cuts)
    assert "x_feats/feats-00000.lca is not what was written" in capsys.readouterr().out


def test_audio_replaced_by_an_older_file_runs_again(data_dir, tmp_path, capsys):
    cuts = ["--data-dir", str(data_dir), "--out-dir", str(tmp_path / "cuts"), "--name", "x"]
    compute_features.main(cuts)
    soundfile.write(tmp_path / "u1.wav", 0.1 * np.random.default_rng(9).normal(size=8000), 16000)
    os.utime(tmp_path / "u1.wav", (10**9, 10**9))
    compute_features.main(cuts)
    assert f"{tmp_path / 'u1.wav'} changed since" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["bpe.model", "tokens.txt"])
def test_a_damaged_bpe_model_is_refused_and_made_again(data_dir, tmp_path, capsys, name):
    bpe = ["--text", str(data_dir / "text"), "--vocab-size", "20", "--out-dir", str(tmp_path / "bpe")]
    train_bpe.main(bpe)
    whole = (tmp_path / "bpe" / name).read_bytes()
    flip(tmp_path / "bpe" / name)
    if name == "bpe.model":
        with pytest.raises(UserError, match="bpe.model: is not what was written; .*run stage 2 again"):
            Tokenizer.load(tmp_path / "bpe")
    train_bpe.main(bpe)
    assert f"{name} is not what was written" in capsys.readouterr().out
    assert (tmp_path / "bpe" / name).read_bytes() == whole and Tokenizer.load(tmp_path / "bpe")


def test_what_is_left_out_is_said(data_dir, tmp_path, capsys):
    soundfile.write(tmp_path / "u1.wav", np.zeros(8000), 16000)
    (tmp_path / "u2.wav").write_bytes(b"")
    loose = ["--max-bad-fraction", "0.5"]
    validate_data_dir.main([str(data_dir), *loose])
    assert "1 utterances have bad audio and will be left out: u2 (is an empty file)" in capsys.readouterr().out
    compute_features.main(["--data-dir", str(data_dir), "--out-dir", str(tmp_path / "cuts"), "--name", "x", *loose])
    assert "left out 2 utterances: u1 (is silent), u2 (is an empty file); all in" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["../x", "a/b", "", ".."])
def test_a_name_is_no_path(data_dir, tmp_path, capsys, name):
    (tmp_path / "out").mkdir()
    given = ["--data-dir", data_dir, "--out-dir", tmp_path / "out" / "cuts", "--name", name]
    assert "--name: " in refused(capsys, compute_features.main, *given)
    assert not [*(tmp_path / "out").iterdir()]


def test_wrong_data_directories_are_one_line(data_dir, tmp_path, capsys):
    cuts = ["--out-dir", tmp_path / "cuts", "--name", "x"]
    assert "no such directory" in refused(capsys, validate_data_dir.main, tmp_path / "nowhere")
    assert "no such directory" in refused(capsys, compute_features.main, "--data-dir", tmp_path / "nowhere", *cuts)
    (tmp_path / "u2.wav").write_bytes(b"")
    assert "wav.scp:3: audio" in refused(capsys, validate_data_dir.main, data_dir)
    assert "1 of 4 utterances have bad audio" in refused(capsys, compute_features.main, "--data-dir", data_dir, *cuts)
    (tmp_path / "u2.wav").rename(tmp_path / "elsewhere.wav")
    assert "2.wav does not exist" in refused(capsys, validate_data_dir.main, data_dir)
    (tmp_path / "elsewhere.wav").rename(tmp_path / "u2.wav")
    (data_dir / "text").write_text("")
    assert "text: is empty" in refused(capsys, validate_data_dir.main, data_dir)
    assert not list(tmp_path.glob("cuts/x*"))


def test_wrong_text_and_sizes_are_one_line(data_dir, tmp_path, capsys):
    out = ["--out-dir", tmp_path / "bpe"]
    assert "no such file" in refused(capsys, train_bpe.main, "--text", tmp_path / "text", "--vocab-size", 20, *out)
    assert "at most" in refused(capsys, train_bpe.main, "--text", data_dir / "text", "--vocab-size", 999, *out)
    assert "at least" in refused(capsys, train_bpe.main, "--text", data_dir / "text", "--vocab-size", 4, *out)
    (data_dir / "text").write_bytes(b"u0 \xff\n")
    assert "is not UTF-8" in refused(capsys, train_bpe.main, "--text", data_dir / "text", "--vocab-size", 20, *out)
    assert not (tmp_path / "bpe").exists()


def test_what_the_text_needs_beside_the_preset_is_said(data_dir, tmp_path, capsys):
    (data_dir / "text").write_text("u0 ONE <unk>\nu1 <unk> [noise] 二三\nu2 四五六七\nu3\n", encoding="utf-8")
    bpe = ["--text", str(data_dir / "text"), "--vocab-size", "4", "--out-dir", str(tmp_path / "bpe")]
    train_bpe.main([*bpe, "--enlarge-to-fit", "--keep-events"])
    printed = capsys.readouterr().out
    assert "14 pieces, more than text.vocab_size 4: one for each character of the text" in printed
    assert "such as <unk> (2 times), [noise] (1 times): each has a piece of its own (text.keep_events)" in printed
    assert Tokenizer.load(tmp_path / "bpe").pieces()[2:4] == ["▁<unk>", "▁[noise]"]
    train_bpe.main([*bpe, "--enlarge-to-fit"])
    assert "are spelled in letters (text.keep_events)" in capsys.readouterr().out
    assert "--set text.vocab_size=N" in refused(capsys, train_bpe.main, *bpe)


def test_the_folder_of_a_corpus_may_be_relative(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    few = [f"--option={name}=0.1" for name in ("minutes", "dev_minutes", "test_minutes")]
    for words in ("train: ", "corpus: finished already, skipped (data)"):
        prepare_corpus.main(["--corpus", "synth", "--out-dir", "data", *few])
        assert words in capsys.readouterr().out
    (tmp_path / "link").symlink_to(".")
    refused(capsys, prepare_corpus.main, "--corpus", "synth", "--out-dir", "data", *few, "--option=color=red")
    for same in ("link/data", "link/link/data"):  # and a mistyped option changes nothing
        prepare_corpus.main(["--corpus", "synth", "--out-dir", same, *few])
        assert f"corpus: finished already, skipped ({same})" in capsys.readouterr().out


def test_one_process_at_a_time_makes_a_corpus(tmp_path, capsys):
    with FileLock(str(tmp_path / ".out.lock")):
        text = refused(capsys, prepare_corpus.main, "--corpus", "synth", "--out-dir", tmp_path / "out")
    assert "another process is making this corpus" in text and not (tmp_path / "out").exists()


def test_wrong_corpora_are_one_line(tmp_path, capsys):
    out = ["--out-dir", tmp_path / "out"]
    message = refused(capsys, prepare_corpus.main, "--corpus", "nothing", *out)
    assert "there is no 'nothing'" in message and "an4" in message and "__init__" not in message
    assert "no such directory" in refused(
        capsys, prepare_corpus.main, "--corpus", "an4", "--corpus-dir", tmp_path / "x", *out
    )
    assert "--corpus-dir" in refused(capsys, prepare_corpus.main, "--corpus", "an4", *out)
    assert "KEY=VALUE" in refused(capsys, prepare_corpus.main, "--corpus", "an4", "--option", "seven", *out)
    for corpus, known in (("an4", "dev_speakers"), ("librispeech", "train, dev"), ("synth", "minutes")):
        text = f"corpus {corpus} has no option color; expected {known}"
        assert text in refused(capsys, prepare_corpus.main, "--corpus", corpus, "--option", "color=red", *out)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("trouble", ["full", "interrupt"])
def test_a_full_disk_and_an_interrupt_leave_nothing_half_written(data_dir, tmp_path, capsys, monkeypatch, trouble):
    class Writer(features.LilcomChunkyWriter):
        def write(self, key, value):
            if key == "u2" and trouble == "full":
                raise OSError(errno.ENOSPC, "No space left on device")
            if key == "u2":
                raise KeyboardInterrupt
            return super().write(key, value)

    monkeypatch.setattr(features, "LilcomChunkyWriter", Writer)
    arguments = ["--data-dir", str(data_dir), "--out-dir", str(tmp_path / "cuts"), "--name", "x"]
    with pytest.raises(SystemExit) as end:
        compute_features.main(arguments)
    assert end.value.code == (1 if trouble == "full" else 130)
    error = capsys.readouterr().err
    assert ("the disk is full" if trouble == "full" else "interrupted; run the same command again") in error
    assert "Traceback" not in error
    assert [path.name for path in (tmp_path / "cuts").rglob("*") if path.is_file() and path.suffix != ".lock"] == []
    monkeypatch.undo()
    compute_features.main(arguments)
    assert (tmp_path / "cuts" / "x.jsonl.gz").is_file()
