"""``python -m rnnt_kd.bin.cache_teacher``: whatever happens to it, the cache ends with the same bytes."""

import shutil

import numpy as np
import pytest
import safetensors.torch
from command_cases import LONG, fails_on_a_full_disk, kill, refused, start, words, writes_interrupted
from system_cases import noise_corpus, random_system

from rnnt_kd import atomic, progress_bar
from rnnt_kd.bin import cache_teacher as command
from rnnt_kd.bin import verify_cache as verify_command
from rnnt_kd.teachers.cache import TeacherCache
from rnnt_kd.text.tokenizer import Tokenizer
from rnnt_kd.text.train_bpe import train_bpe

WORDS = ["one", "two", "three", "four", ""]
NUM_SHARDS = 8  # of three cuts


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """exp/: 24 cuts (each utterance at two speeds), bpe and a teacher with random weights."""
    folder = tmp_path_factory.mktemp("cache")
    generator = np.random.default_rng(0)
    texts = {f"s-{n:02d}": " ".join(generator.choice(WORDS, n % 4)).strip() for n in range(12)}
    tokenizer = noise_corpus(folder, texts, lambda index: 9000 + 2000 * index, "train", (1.0, 1.1))
    random_system(folder / "exp/teacher", tokenizer)
    return folder


def arguments(made, cache_dir, **changed):
    values = {"teacher_dir": made / "exp/teacher", "bpe_dir": made / "exp/bpe", "cache_dir": cache_dir}
    values.update(cuts=made / "exp/cuts/train.jsonl.gz", shard_utterances=3, device="cpu", lattice_backend="torch")
    return words(**{**values, **changed})


def contents(cache_dir):
    return {path.name: path.read_bytes() for path in sorted(cache_dir.glob("*.safetensors"))}


def stamps(cache_dir):
    return {path.name: path.stat().st_mtime_ns for path in cache_dir.glob("*.safetensors")}


@pytest.fixture(scope="module")
def whole(made, tmp_path_factory):
    """A cache that nobody disturbed."""
    folder = tmp_path_factory.mktemp("whole") / "kd_cache"
    command.main(arguments(made, folder))
    assert len(contents(folder)) == NUM_SHARDS
    return folder


def test_both_spellings_of_two_teachers_make_one_cache_which_is_of_neither(made, whole, tmp_path):
    other, first = tmp_path / "other", made / "exp/teacher"
    random_system(other, Tokenizer.load(made / "exp/bpe"), seed=5)
    spellings = [[first, other]], [[first], [other]]
    for number, folders in enumerate(spellings):
        given = arguments(made, tmp_path / str(number))
        at = given.index("--teacher-dir")
        teachers = [str(word) for some in folders for word in ("--teacher-dir", *some)]
        command.main([*given[:at], *given[at + 2 :], *teachers])
    one, two = (contents(tmp_path / name) for name in "01")
    assert one == two and set(one) == set(contents(whole)) and one != contents(whole)


@pytest.fixture
def copy(whole, tmp_path):
    return shutil.copytree(whole, tmp_path / "copy")


def test_every_utterance_is_there_at_each_speed_and_with_any_text(made, whole):
    cache = TeacherCache.open(whole)
    assert len(cache) == 24 and cache.facts.prune_range == 5
    ids = ["s-00", "s-00_sp1.1", "s-03", "s-11_sp1.1"]
    assert all(place.frames > 0 for place in cache.places(ids)) and cache.places(["s-00_sp1.2"]) == [None]


def test_verifying_is_a_command_that_names_the_damaged_shard(copy, capsys):
    verify_command.main([str(copy)])
    assert f"{copy}: whole, 24 utterances" in capsys.readouterr().out
    path = copy / "shard-00004.safetensors"
    content = bytearray(path.read_bytes())
    content[-9] ^= 4
    path.write_bytes(content)
    assert f"{path}: damaged: the frames of s-" in refused(capsys, verify_command.main, str(copy))


def test_finished_already_is_one_line_and_touches_nothing(made, copy, capsys):
    before = stamps(copy)
    command.main(arguments(made, copy))
    assert capsys.readouterr().err == f"teacher cache: finished already, skipped ({copy})\n"
    assert stamps(copy) == before


def test_kill_9_loses_one_shard_at_most(made, whole, tmp_path, root):
    folder = tmp_path / "killed"
    kill(root, "cache_teacher", arguments(made, folder), killed_in="rnnt_kd.atomic:os.replace", after=4)
    left = contents(folder)
    assert 2 <= len(left) < NUM_SHARDS, "killed in the middle"
    assert all(contents(whole)[name] == content for name, content in left.items())
    process = start(root, "cache_teacher", arguments(made, folder))
    said, _ = process.communicate(timeout=LONG)
    assert process.returncode == 0 and f"{NUM_SHARDS - len(left)} of {NUM_SHARDS} shards to make" in said
    assert contents(folder) == contents(whole)
    assert not list(folder.glob(".*.tmp"))


def test_interrupted_at_any_write_it_goes_on(made, whole, tmp_path):
    folder = tmp_path / "stopped"
    for done in range(NUM_SHARDS + 1):
        try:
            with writes_interrupted(1):
                command.main(arguments(made, folder))
            break
        except SystemExit as end:
            assert end.code == 130 and len(contents(folder)) == done + 1
    assert done == NUM_SHARDS - 1 and contents(folder) == contents(whole)


@pytest.mark.parametrize("jobs", [[{"job": 1, "nj": 2}, {"job": 2, "nj": 2}], [{}, {}]], ids=["two jobs", "one twice"])
def test_jobs_at_once_make_the_bytes_of_one(made, whole, tmp_path, root, jobs):
    folder = tmp_path / "shared"
    processes = [start(root, "cache_teacher", arguments(made, folder, **job)) for job in jobs]
    outputs = [process.communicate(timeout=LONG)[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], outputs
    assert all(f"job {job} of 2: 4 of 4 shards to make" in said for job, said in enumerate(outputs, 1) if jobs[0])
    assert contents(folder) == contents(whole)


def test_jobs_one_after_the_other_and_one_without_a_shard(made, whole, tmp_path, capsys):
    for job in (3, 1, 2, 9):
        command.main(arguments(made, tmp_path / "x", job=job, nj=9 if job == 9 else 3))
    assert contents(tmp_path / "x") == contents(whole)
    assert "job 9 of 9: nothing to do, the cache has 8 shards" in capsys.readouterr().err


@pytest.mark.parametrize("damage", ["truncated", "flipped", "empty"])
def test_a_damaged_shard_is_named_and_made_anew(made, whole, copy, capsys, damage):
    victim = copy / "shard-00004.safetensors"
    content = bytearray(victim.read_bytes())
    content[-50] ^= 8
    victim.write_bytes({"truncated": content[:-30], "flipped": content, "empty": b""}[damage])
    before = stamps(copy)
    command.main(arguments(made, copy))
    said = capsys.readouterr().err
    assert "makes shard-00004.safetensors again: damaged" in said and f"1 of {NUM_SHARDS} shards to make" in said
    assert contents(copy) == contents(whole)
    assert [name for name, stamp in stamps(copy).items() if stamp != before[name]] == [victim.name]


def test_what_changed_is_said_and_everything_made_anew(made, copy, tmp_path, capsys):
    other = random_system(tmp_path / "teacher2", Tokenizer.load(made / "exp/bpe"), seed=2)
    for changed, message in (
        ({"teacher_dir": other}, "teacher weights was"),
        ({"temperature": 2}, "temperature was 1.0 and is 2.0"),
        ({"prune_range": 4}, "prune range was 5 and is 4"),
    ):
        command.main(arguments(made, copy, **changed))
        said = capsys.readouterr().err
        assert message in said and f"{NUM_SHARDS} of {NUM_SHARDS} shards to make" in said, said
        command.main(arguments(made, copy, **changed))
        assert "finished already" in capsys.readouterr().err
        command.main(arguments(made, copy))
        capsys.readouterr()


def test_another_bpe_model_or_corpus_changes_the_facts(made, copy, tmp_path, capsys):
    train_bpe(["five six seven eight one two three four"], 18, tmp_path / "bpe")
    random_system(tmp_path / "teacher", Tokenizer.load(tmp_path / "bpe"))
    command.main(arguments(made, copy, bpe_dir=tmp_path / "bpe", teacher_dir=tmp_path / "teacher"))
    assert "BPE model was" in capsys.readouterr().err
    cuts = shutil.copytree(made / "exp/cuts", tmp_path / "cuts") / "train.jsonl.gz"
    command.main(arguments(made, copy, cuts=cuts))
    command.main(arguments(made, copy))
    assert "finished already" in capsys.readouterr().err  # the same cuts in another folder


def test_another_size_of_shards_leaves_no_old_ones(made, whole, copy, capsys):
    command.main(arguments(made, copy, shard_utterances=20))
    assert "shard size was 3 and is 20" in capsys.readouterr().err
    assert list(contents(copy)) == ["shard-00000.safetensors", "shard-00001.safetensors"]
    assert len(TeacherCache.open(copy)) == 24
    command.main(arguments(made, copy))
    assert contents(copy) == contents(whole)


def test_utterances_that_cannot_be_trained_on_are_left_out_and_counted(made, tmp_path, capsys):
    command.main(arguments(made, tmp_path / "x", max_seconds=1.0))
    assert "longer than max_seconds" in capsys.readouterr().err
    cache = TeacherCache.open(tmp_path / "x")
    assert 0 < len(cache) < 24
    assert cache.places(["s-11"]) == [None]


def test_bad_input_is_one_line_and_writes_nothing(made, tmp_path, capsys):
    train_bpe(["quite another text with letters"], 20, tmp_path / "bpe")
    broken = shutil.copytree(made / "exp/teacher", tmp_path / "broken")
    (broken / "model.safetensors").write_bytes((broken / "model.safetensors").read_bytes()[:999])
    cases = [
        ({"job": 3, "nj": 2}, "--job: 3; expected 1 to 2"),
        ({"job": 0}, "--job: 0"),
        ({"nj": 0}, "--nj: 0"),
        ({"shard_utterances": 0}, "--shard-utterances: 0"),
        ({"num_threads": 0}, "--num-threads: 0"),
        ({"batch_seconds": 0}, "--batch-seconds: 0.0"),
        ({"teacher_dir": tmp_path / "none"}, "no trained system here"),
        ({"teacher_dir": broken}, "model.safetensors: damaged"),
        ({"cuts": tmp_path / "none.jsonl.gz"}, "none.jsonl.gz: no such file"),
        ({"bpe_dir": tmp_path / "none"}, "bpe.model"),
        ({"bpe_dir": tmp_path / "bpe"}, "trained with BPE model"),
        ({"temperature": 0}, "--temperature: 0.0"),
        ({"prune_range": 1}, "--prune-range: 1"),
        ({"min_seconds": 3, "max_seconds": 2}, "--min-seconds: 3.0 > 2.0"),
        ({"max_seconds": 0.2}, "nothing is left"),
    ]
    for changed, message in cases:
        given = arguments(made, tmp_path / "out", **changed)
        assert message in refused(capsys, command.main, *given, lines=None)
        assert not (tmp_path / "out").exists()


def test_a_teacher_of_nans_is_named_with_the_utterance(made, tmp_path, capsys):
    broken = shutil.copytree(made / "exp/teacher", tmp_path / "nan")
    weights = safetensors.torch.load_file(broken / "model.safetensors")
    weights["joiner.output_linear.bias"][3] = float("nan")
    safetensors.torch.save_file(weights, broken / "model.safetensors")
    said = refused(capsys, command.main, *arguments(made, tmp_path / "out", teacher_dir=broken), lines=None)
    assert "its posteriors of s-0" in said and not contents(tmp_path / "out")


def test_a_shard_that_the_disk_garbles_is_one_line_at_once(made, whole, tmp_path, capsys, monkeypatch):
    write = atomic.write_bytes

    def garbled(path, content):
        write(path, content[:-1] + bytes([content[-1] ^ 1]) if path.name == "shard-00002.safetensors" else content)

    monkeypatch.setattr(atomic, "write_bytes", garbled)
    said = refused(capsys, command.main, *arguments(made, tmp_path / "cache"), lines=None)
    assert (
        "shard-00002.safetensors: just written, and read back it is not what was written: damaged: the frames of"
        in said
    )
    assert len(contents(tmp_path / "cache")) == 3
    monkeypatch.undo()
    command.main(arguments(made, tmp_path / "cache"))
    assert contents(tmp_path / "cache") == contents(whole)


def test_a_full_disk_is_one_line_and_the_same_command_goes_on(made, whole, tmp_path, root):
    """First not even the record can be written, then no shard of many words."""
    sizes = sorted(map(len, contents(whole).values()))
    for file_bytes, left in ((100, 0), (sizes[4], 5)):
        fails_on_a_full_disk(root, "cache_teacher", arguments(made, tmp_path / "out"), file_bytes=file_bytes)
        assert len(contents(tmp_path / "out")) <= left and not list((tmp_path / "out").rglob("*.tmp"))
    command.main(arguments(made, tmp_path / "out"))
    assert contents(tmp_path / "out") == contents(whole)


def test_plain_progress_lines_tell_the_time_left(made, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(progress_bar, "LINE_SECONDS", 0.0)
    command.main(arguments(made, tmp_path / "x"))
    lines = capsys.readouterr().err.splitlines()
    assert "teacher cache: 8 of 8 shards to make, 24 utterances; cuts: 24 of 24 utterances" in lines
    assert any(line.startswith("teacher cache: 3 of 24 utterances, eta 0:0") for line in lines)
    assert "bytes a frame" in lines[-1]
