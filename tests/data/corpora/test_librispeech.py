"""LibriSpeech: the true layout, held-out speakers, the downloader, and every way a tree can be broken."""

import json
import logging
import pathlib
import tarfile

import pytest

from rnnt_kd.data.corpora import librispeech
from rnnt_kd.data.kaldi_dir import read_data_dir
from rnnt_kd.errors import UserError

FIVE_HOURS = {"train": "train-clean-5", "dev": "dev-clean-2", "test": ""}


def make_part(root, part, speakers, suffix="flac"):
    """Two utterances for each speaker; the audio is never opened here."""
    for speaker in speakers:
        chapter = root / part / speaker / "100"
        chapter.mkdir(parents=True)
        for number in range(2):
            (chapter / f"{speaker}-100-{number:04d}.{suffix}").write_bytes(b"audio")
        lines = [f"{speaker}-100-{number:04d} WORDS OF {speaker} DON'T STOP\n" for number in range(2)]
        (chapter / f"{speaker}-100.trans.txt").write_text("".join(lines))
    return root


@pytest.fixture
def tree(tmp_path):
    return make_part(tmp_path / "LibriSpeech", "train-clean-5", ["19", "32", "669", "1737", "7312", "4640"])


def prepare(tree, tmp_path, **options):
    return librispeech.prepare(tree, tmp_path / "out", seed=1, options={**FIVE_HOURS, **options})


def speakers(path):
    return set(read_data_dir(path).speakers)


def test_full_layout_with_official_parts(tmp_path):
    root = tmp_path / "LibriSpeech"
    for name, part in enumerate("train-clean-100 dev-clean dev-other test-clean test-other".split(), 1):
        make_part(root, part, [str(name)])
    made = librispeech.prepare(root, tmp_path / "out", seed=1, options={"train": "train-clean-100"})
    assert [path.name for path in made] == ["train", "dev", "test-clean", "test-other"]
    assert [speakers(path) for path in made] == [{"1"}, {"2", "3"}, {"4"}, {"5"}]
    data = read_data_dir(made[0])
    assert [utterance.id for utterance in data.utterances] == ["1-100-0000", "1-100-0001"]
    assert data.utterances[0].text == "WORDS OF 1 DON'T STOP"
    assert data.recordings["1-100-0000"].source == str(root / "train-clean-100/1/100/1-100-0000.flac")


def test_the_folder_that_holds_librispeech_is_taken_too(tree, tmp_path):
    made = prepare(tree.parent, tmp_path)
    assert len(read_data_dir(made[0]).utterances) == 4


def test_opus_is_taken_and_flac_preferred(tmp_path):
    root = make_part(tmp_path / "LibriSpeech", "train-clean-5", ["1", "2"], suffix="opus")
    (root / "train-clean-5/1/100/1-100-0000.flac").write_bytes(b"audio")
    made = prepare(root, tmp_path, dev_speakers="2")
    sources = [entry.source for entry in read_data_dir(made[0]).recordings.values()]
    assert [source.rsplit(".", 1)[1] for source in sources] == ["flac", "opus"]


def test_missing_dev_part_holds_out_the_four_speakers_and_says_that_test_is_dev(tree, tmp_path, caplog):
    with caplog.at_level(logging.WARNING):
        train, dev, test = prepare(tree, tmp_path)
    assert speakers(train) == {"19", "4640"} and speakers(dev) == speakers(test) == {"32", "669", "1737", "7312"}
    assert (dev / "wav.scp").read_text() == (test / "wav.scp").read_text()
    assert "test is the dev set again" in caplog.text
    split = json.loads((tmp_path / "out" / "split.json").read_text())
    assert split["dev"]["held_out_speakers"] == ["32", "669", "1737", "7312"] and split["test"] == {"same_as": "dev"}


def test_official_dev_part_is_used_where_it_is(tree, tmp_path):
    make_part(tree, "dev-clean-2", ["84"])
    train, dev, test = prepare(tree, tmp_path)
    assert speakers(dev) == {"84"} and len(speakers(train)) == 6


def test_chosen_speakers_are_held_out_for_test(tree, tmp_path, caplog):
    train, dev, test = prepare(tree, tmp_path, test_speakers="19")
    assert speakers(test) == {"19"} and speakers(train) == {"4640"} and not caplog.text


def test_without_the_four_speakers_others_are_drawn_by_the_seed(tmp_path):
    root = make_part(tmp_path / "LibriSpeech", "train-clean-5", [str(number) for number in range(1, 10)])
    first, again, *others = (
        speakers(librispeech.prepare(root, tmp_path / "out", seed=seed, options=FIVE_HOURS)[1])
        for seed in (1, 1, 2, 3, 4, 5)
    )
    assert first == again and len(first) == 4 and any(other != first for other in others)


@pytest.mark.parametrize("options, found", [
    ({"download": "maybe"}, 'found "maybe"'),
    ({"train": ""}, "names no part"),
    ({"train": "train-clean-100"}, "no part train-clean-100"),
    ({"test": "test-clean"}, "no part test-clean"),
    ({"dev_speakers": "32,9"}, 'speaker "9"'),
    ({"dev_speakers": ""}, "names nobody"),
    ({"dev_speakers": "32", "test_speakers": "32"}, "32 also in dev_speakers"),
    ({"dev_speakers": "19,32,669,1737,7312,4640"}, "all training speakers"),
])  # fmt: skip
def test_wrong_options_are_user_errors(tree, tmp_path, options, found):
    with pytest.raises(UserError, match=found):
        prepare(tree, tmp_path, **options)
    assert not (tmp_path / "out").exists()


def empty_the_chapter(chapter):
    for path in chapter.iterdir():
        path.unlink()


def empty_the_part(chapter):
    part = chapter.parents[1]
    part.rename(part.with_name("elsewhere"))
    part.mkdir()


def transcripts(content):
    return lambda chapter: (chapter / "19-100.trans.txt").write_bytes(content)


@pytest.mark.parametrize("damage, where, found", [
    (lambda chapter: (chapter / "19-100-0001.flac").unlink(), "19-100.trans.txt:2", "19-100-0001 has no audio"),
    (lambda chapter: (chapter / "19-100.trans.txt").unlink(), "19-100.trans.txt", "no such file, but 2 audio"),
    (transcripts(b"19-100-0000 WORDS\n"), "19-100-0001.flac", "has no transcript"),
    (transcripts(b"19-100-0000 A\n19-100-0000 A\n19-100-0001 A\n"), "19-100.trans.txt:2", "a second transcript"),
    (transcripts(b"19-100-0000 WORDS\n19-100-0001 \n"), "19-100.trans.txt:2", 'found "19-100-0001'),
    (transcripts(b"19-101-0000 WORDS\n"), "19-100.trans.txt:1", 'found "19-101-0000'),
    (transcripts(b"19-100-0000 \xff\xfe\n"), "19-100.trans.txt:1", "is not UTF-8"),
    (empty_the_chapter, "19/100", "is empty"),
    (empty_the_part, "train-clean-5", "holds no speech"),
])  # fmt: skip
def test_a_damaged_tree_is_a_user_error_that_names_the_place(tree, tmp_path, damage, where, found):
    damage(tree / "train-clean-5" / "19" / "100")
    with pytest.raises(UserError) as caught:
        prepare(tree, tmp_path)
    assert where in caught.value.where and found in caught.value.problem and caught.value.expected
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["", "19", "19/100", "19/100/19-100.trans.txt"])
def test_what_may_not_be_read_is_a_user_error(tree, tmp_path, monkeypatch, name):
    forbidden = tree / "train-clean-5" / name

    def refuse(method):  # not chmod: root may read everything
        def call(path):
            if path == forbidden:
                raise PermissionError(13, "Permission denied", str(path))
            return method(path)

        return call

    monkeypatch.setattr(pathlib.Path, "iterdir", refuse(pathlib.Path.iterdir))
    monkeypatch.setattr(pathlib.Path, "read_bytes", refuse(pathlib.Path.read_bytes))
    with pytest.raises(UserError, match="cannot be read.*ermission denied") as caught:
        prepare(tree, tmp_path)
    assert caught.value.where == str(forbidden) and not (tmp_path / "out").exists()


@pytest.fixture
def mirror(tree, tmp_path):
    """A local stand-in for the download site: ``<url>/31/<part>.tar.gz`` as OpenSLR has them."""
    make_part(tree, "dev-clean-2", ["84"])
    folder = tmp_path / "mirror" / "31"
    folder.mkdir(parents=True)
    for part in ("train-clean-5", "dev-clean-2"):
        with tarfile.open(folder / f"{part}.tar.gz", "w:gz") as archive:
            archive.add(tree / part, f"LibriSpeech/{part}")
    return folder


def test_without_a_corpus_dir_the_parts_are_downloaded_once(mirror, tmp_path):
    url = mirror.parent.as_uri()
    train, dev, test = prepare(None, tmp_path, base_url=url)
    assert speakers(dev) == {"84"} and len(speakers(train)) == 6
    for archive in mirror.iterdir():
        archive.unlink()
    for archive in (tmp_path / "out/download").glob("*.tar.gz"):
        archive.unlink()
    assert prepare(None, tmp_path, base_url=url) == [train, dev, test]  # nothing is fetched again


def test_download_yes_adds_missing_parts_to_the_users_folder(mirror, tree, tmp_path):
    mine = make_part(tmp_path / "mine" / "LibriSpeech", "train-clean-5", ["1", "2"])
    made = prepare(mine, tmp_path, base_url=mirror.parent.as_uri(), download="yes")
    assert [speakers(path) for path in made] == [{"1", "2"}, {"84"}, {"84"}]


def test_downloading_never_touches_parts_in_a_folder_of_another_name(mirror, tmp_path):
    mine = make_part(tmp_path / "speech", "train-clean-5", ["1", "2"])
    with pytest.raises(UserError, match="named LibriSpeech"):
        prepare(mine, tmp_path, base_url=mirror.parent.as_uri(), download="yes")
    assert (mine / "train-clean-5/1/100/1-100-0000.flac").is_file()


@pytest.mark.parametrize("folder, options, message", [
    ("nowhere", {}, "no such directory.*--corpus-dir"),
    (None, {"download": "no"}, "download=no"),
    (None, {"base_url": "file:///nowhere"}, "failed.*--corpus-dir"),
    (None, {"train": "train-clean-7", "base_url": "http://127.0.0.1:9"}, 'no part "train-clean-7"'),  # not asked
])  # fmt: skip
def test_a_corpus_that_is_not_there_is_one_clear_line(tmp_path, folder, options, message):
    with pytest.raises(UserError, match=message):
        prepare(folder and tmp_path / folder, tmp_path, **options)
    assert not (tmp_path / "out" / "train").exists()


def test_a_damaged_archive_is_removed_and_fetched_again(mirror, tmp_path):
    archive = mirror / "train-clean-5.tar.gz"
    whole = archive.read_bytes()
    archive.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match="damaged"):
        prepare(None, tmp_path, base_url=mirror.parent.as_uri())
    archive.write_bytes(whole)
    assert len(prepare(None, tmp_path, base_url=mirror.parent.as_uri())) == 3


def test_real_train_clean_5(corpora, tmp_path):
    train, dev, test = prepare(corpora / "LibriSpeech", tmp_path)
    assert len(speakers(train)) == 24 and speakers(dev) == {"32", "669", "1737", "7312"}
    assert len(read_data_dir(dev).utterances) == 96
    assert len(read_data_dir(train).utterances) == 1519 - 96
