"""LibriSpeech (read English, 16 kHz) -> Kaldi data directories.

    <corpus_dir>/<part>/<speaker>/<chapter>/<speaker>-<chapter>-<number>.{flac,opus}
    <corpus_dir>/<part>/<speaker>/<chapter>/<speaker>-<chapter>.trans.txt

Audio stays where it lies.  ``corpus_dir`` may also be the folder that holds ``LibriSpeech/``.  Without a
``corpus_dir`` the parts are downloaded by Lhotse to ``<out_dir>/download``.

Which part is what (options ``train``, ``dev``, ``test``: comma lists of parts):

  train  all parts named must be there; speakers held out for dev and test are taken away.
  dev    the official parts that are there, together.  Where none is: held-out training speakers, whole
         (``dev_speakers``; "auto" = 32,669,1737,7312 where they are, else four drawn by the seed).
  test   a directory for each part, by its name.  Where no part is named: one directory ``test``, of
         ``test_speakers`` held out of train, or else **the dev set again**: a warning says so, because a
         system chosen by its dev loss looks a little better there than on new speech.

``<out_dir>/split.json`` says what was done.
"""

import logging
import random
from pathlib import Path
from typing import Dict, List, Mapping, Optional, Sequence

from rnnt_kd import atomic
from rnnt_kd.data.kaldi_dir import write_data_dir
from rnnt_kd.data.librispeech_tree import LibriSpeechUtterance, download, folders, read_part
from rnnt_kd.errors import UserError

OPTIONS = {
    "train": "train-clean-100,train-clean-360,train-other-500",
    "dev": "dev-clean,dev-other",
    "test": "test-clean,test-other",
    "dev_speakers": "auto",
    "test_speakers": "",
    "download": "auto",  # auto: where no corpus directory is given; yes: missing parts too; no
    "base_url": "http://www.openslr.org/resources",
}
DEV_SPEAKERS = ("32", "669", "1737", "7312")  # of train-clean-5, two women and two men


def prepare(corpus_dir: Optional[Path], out_dir: Path, *, seed: int, options: Dict[str, str]) -> List[Path]:
    """Make ``out_dir/train``, ``out_dir/dev`` and the test directories.

    Args:
      corpus_dir: the LibriSpeech tree, or None to download it.
      out_dir:    e.g. ``data/librispeech``.
      seed:       draws held-out speakers where "auto" has to.
      options:    see ``OPTIONS``.
    Returns: the directories: train, dev, test(s).
    Raises: UserError for a missing or empty part, a missing or unreadable file, audio without transcript, transcript
      without audio, unknown speakers, a wrong option, a download that fails.
    """
    settings = {**OPTIONS, **options}
    if settings["download"] not in ("auto", "yes", "no"):
        raise UserError("--option download", f'found "{settings["download"]}"', "auto, yes or no")
    train_parts, dev_parts, test_parts = (_names(settings[key]) for key in ("train", "dev", "test"))
    if not train_parts:
        raise UserError("--option train", "names no part", "a comma list of parts, for example train-clean-5")
    out_dir = Path(out_dir)
    root = _find_root(corpus_dir, out_dir, train_parts + dev_parts + test_parts, settings)
    for part in train_parts + test_parts:
        if not (root / part).is_dir():
            raise _missing_part(root, part)
    present_dev_parts = [part for part in dev_parts if (root / part).is_dir()]
    read = {part: read_part(root / part) for part in dict.fromkeys(train_parts + present_dev_parts + test_parts)}
    train = [utterance for part in train_parts for utterance in read[part]]
    split: Dict[str, object] = {"corpus": str(root), "train": {"parts": train_parts}}

    test_speakers = _names(settings["test_speakers"])
    if present_dev_parts:
        dev = [utterance for part in present_dev_parts for utterance in read[part]]
        dev_speakers: List[str] = []
        split["dev"] = {"parts": present_dev_parts}
    else:
        dev_speakers = _choose_dev_speakers(settings["dev_speakers"], train, seed, without=test_speakers)
        dev = _spoken_by(train, dev_speakers, "dev_speakers")
        split["dev"] = {
            "held_out_speakers": dev_speakers,
            "why": f"no part {' or '.join(dev_parts) or 'named'} in {root}",
        }
    both = set(dev_speakers) & set(test_speakers)
    if both:
        problem = f"{', '.join(sorted(both))} also in dev_speakers"
        raise UserError("--option test_speakers", problem, "different speakers for dev and test")

    tests: Dict[str, List[LibriSpeechUtterance]] = {part: read[part] for part in test_parts}
    if test_speakers:
        tests["test"] = _spoken_by(train, test_speakers, "test_speakers")
        split["test"] = {"held_out_speakers": test_speakers}
    elif test_parts:
        split["test"] = {"parts": test_parts}
    else:
        tests["test"] = dev
        split["test"] = {"same_as": "dev"}
        logging.getLogger(__name__).warning(
            "librispeech: no test part is named, so test is the dev set again; "
            "--option test_speakers=ID,ID holds others out"
        )
    held_out = {*dev_speakers, *test_speakers}
    kept = [utterance for utterance in train if utterance.speaker not in held_out]
    if not kept:
        problem = "all training speakers are held out"
        raise UserError(root, problem, "speakers left for train", "hold out fewer with dev_speakers and test_speakers")
    made = [_write(out_dir / name, utterances) for name, utterances in {"train": kept, "dev": dev, **tests}.items()]
    atomic.write_json(out_dir / "split.json", split)
    return made


def _choose_dev_speakers(
    option: str, train: Sequence[LibriSpeechUtterance], seed: int, without: Sequence[str]
) -> List[str]:
    if option != "auto":
        chosen = _names(option)
        if not chosen:
            problem = "names nobody, and no dev part is there"
            raise UserError("--option dev_speakers", problem, "auto, or a comma list of speakers")
        return chosen
    speakers = sorted({utterance.speaker for utterance in train} - set(without), key=lambda name: (len(name), name))
    if set(DEV_SPEAKERS) <= set(speakers) and len(speakers) > len(DEV_SPEAKERS):
        return list(DEV_SPEAKERS)
    if len(speakers) < 2:
        problem = f"no dev part, and {len(speakers)} training speaker to hold out"
        raise UserError("--option dev", problem, "a dev part, or two speakers")
    count = min(len(DEV_SPEAKERS), len(speakers) // 2)
    return sorted(random.Random(seed).sample(speakers, count), key=lambda name: (len(name), name))


def _spoken_by(
    utterances: Sequence[LibriSpeechUtterance], speakers: Sequence[str], option: str
) -> List[LibriSpeechUtterance]:
    known = {utterance.speaker for utterance in utterances}
    for speaker in speakers:
        if speaker not in known:
            problem = f'speaker "{speaker}" is not in the training parts'
            raise UserError(f"--option {option}", problem, f"of {len(known)} speakers, for example {min(known)}")
    return [utterance for utterance in utterances if utterance.speaker in set(speakers)]


def _write(path: Path, utterances: Sequence[LibriSpeechUtterance]) -> Path:
    return write_data_dir(
        path,
        wav_scp={utterance.id: utterance.audio for utterance in utterances},
        text={utterance.id: utterance.text for utterance in utterances},
        utt2spk={utterance.id: utterance.speaker for utterance in utterances},
    )


def _find_root(corpus_dir: Optional[Path], out_dir: Path, parts: Sequence[str], settings: Mapping[str, str]) -> Path:
    """The folder of the parts; downloads what is missing where ``download`` says so."""
    if corpus_dir is None and settings["download"] == "no":
        problem = "is not given, and download=no"
        raise UserError("--corpus-dir", problem, "the LibriSpeech folder", "give --corpus-dir DIR")
    may_download = settings["download"] == "yes" or corpus_dir is None
    given = Path(corpus_dir) if corpus_dir is not None else out_dir / "download"
    if not may_download and not given.is_dir():
        problem = "no such directory"
        raise UserError(given, problem, "the LibriSpeech folder", "check --corpus-dir, or omit it to download")
    inside = given / "LibriSpeech"
    holds_parts = any((given / part).is_dir() for part in parts)
    root = inside if inside.is_dir() or (may_download and not holds_parts and given.name != "LibriSpeech") else given
    if may_download:
        download(root, parts, settings["base_url"])
    return root.resolve()


def _missing_part(root: Path, part: str) -> UserError:
    found = sorted(path.name for path in folders(root)) if root.is_dir() else []
    return UserError(
        root,
        f"no part {part}",
        f"a folder {part} beside {', '.join(found[:12]) or 'nothing'}",
        "choose a --preset whose parts are there, unpack it, or omit --corpus-dir to download",
    )


def _names(value: str) -> List[str]:
    return list(dict.fromkeys(name.strip() for name in value.split(",") if name.strip()))
