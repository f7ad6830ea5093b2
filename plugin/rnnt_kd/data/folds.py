"""Cross-validation by speaker: the data directories and cuts of every fold, selected from one union of all parts.

    EXP_DIR/folds<N>/{data,cuts}                 the union of all parts of the corpus, and its features, computed once
    EXP_DIR/fold<K>of<N>/data/{train,dev,test}   Kaldi data directories; K = 1 .. N
    EXP_DIR/fold<K>of<N>/cuts/*.jsonl.gz         their cuts; the features stay in the union.  Where labels are few the
                                                 training set once more, in two: labelled20, unlabelled20

Fold k is tested, fold k + 1 (the first after the last) validates, the others train.  A training set has every copy of
its utterances (speeds), the other sets the plain ones.  Which speaker is in which fold depends on the speakers' ids
and their numbers of words alone.
"""

import gzip
import hashlib
import json
import os
from collections import Counter
from pathlib import Path
from typing import Callable, Dict, Iterable, List, Mapping, Sequence, Set, Tuple

from rnnt_kd import atomic
from rnnt_kd.data.cuts import parse_line, read_lines
from rnnt_kd.data.kaldi_dir import (
    TABLES,
    KaldiDataDir,
    RecordingEntry,
    Utterance,
    read_data_dir,
    read_table,
    write_data_dir,
)
from rnnt_kd.data.source import open_source
from rnnt_kd.errors import UserError
from rnnt_kd.files import parse_json
from rnnt_kd.record import Record, json_digest

LEAST, MOST = 3, 1000  # folds: one to train on, one that validates, one to test on
SETS = ("train", "dev", "test")


def union_dir(exp_dir: Path, folds: int) -> Path:
    return Path(exp_dir) / f"folds{folds}"


def fold_dir(exp_dir: Path, fold: int, folds: int) -> Path:
    """An EXP_DIR of its own: cuts, BPE model, and the systems of all experiments with so many folds."""
    return Path(exp_dir) / f"fold{fold}of{folds}"


def count_words(utterances: Iterable[Utterance]) -> Dict[str, int]:
    """Of each speaker."""
    words: Counter = Counter()
    for utterance in utterances:
        words[utterance.speaker] += len(utterance.text.split())
    return words


def divide(words: Mapping[str, int], folds: int) -> List[List[str]]:
    """Speakers -> folds, balanced in words: the next longest speaker goes to the fold that has the fewest.

    Args:
      words: speaker -> number of words.
    Returns: the speakers of each fold, sorted.
    Raises: UserError: fewer speakers than folds, or a fold without words.
    """
    if len(words) < folds:
        raise UserError("folds", f"{len(words)} speakers for {folds} folds", "at least one speaker a fold", "use fewer")
    parts: List[List[str]] = [[] for _ in range(folds)]
    totals = [0] * folds
    for speaker in sorted(words, key=lambda speaker: (-words[speaker], speaker)):
        smallest = min(range(folds), key=lambda fold: (totals[fold], len(parts[fold]), fold))
        parts[smallest].append(speaker)
        totals[smallest] += words[speaker]
    if 0 in totals:
        problem = f"fold {totals.index(0) + 1} has no word: only {sum(map(bool, words.values()))} speakers say any"
        raise UserError("folds", problem, "words in every fold", "use fewer folds")
    return [sorted(part) for part in parts]


def sets_of(parts: Sequence[Sequence[str]], fold: int) -> Dict[str, Set[str]]:
    """ "train", "dev", "test" -> speakers, of fold 1 .. N."""
    test, dev = fold - 1, fold % len(parts)
    train = {speaker for number, part in enumerate(parts) if number not in (test, dev) for speaker in part}
    return {"train": train, "dev": set(parts[dev]), "test": set(parts[test])}


def make_data(
    exp_dir: Path,
    folds: int,
    sources: Sequence[Path],
    say: Callable[[str], None],
    allow_pipes: bool = False,
    normalization: str = "nfc",
) -> None:
    """Write the data directories of the union and of every fold; nothing where they are what would be written.

    Args:
      sources: the corpus's own data directories; one with the very tables of another (a dev set that also tests) is it.
    Raises:
      UserError: a defect of one of them; an utterance or recording that stands in two; no speakers (every utterance
        has its own); what ``divide`` refuses.
    """
    sources = list({tuple(_bytes(source / name) for name in TABLES): source for source in sources}.values())
    tables = [source / name for source in sources for name in TABLES]
    folders = [fold_dir(exp_dir, fold, folds) / "data" for fold in range(1, folds + 1)]
    outputs = [
        os.path.relpath(folder / name / "text", union_dir(exp_dir, folds)) for folder in folders for name in SETS
    ]
    data = [read_data_dir(source, allow_pipes, normalization) for source in sources]
    audio = {"audio": json_digest(sorted((key, one.source) for each in data for key, one in each.recordings.items()))}
    settings = {"folds": folds, "normalization": normalization, **audio}  # tables may say where by relative paths
    record = Record(union_dir(exp_dir, folds), "data", settings, tables, ["data/text", *outputs], defaults=audio)
    if not record.why_not():
        return
    record.start()
    utterances = _united(data)
    words = count_words(utterances)
    if len(words) == len(utterances) > 1:
        problem = "has a speaker of its own for each utterance: who speaks is not known"
        raise UserError(data[0].path / "utt2spk", problem, "speakers, which folds keep apart", "name the speakers")
    parts = divide(words, folds)
    entries = [entry for one in data for entry in one.recordings.values()]
    wav_scp = {entry.id: f"{entry.source} |" if entry.is_pipe else entry.source for entry in entries}
    has_segments = any(one.has_segments for one in data)

    def write(folder: Path, chosen: Set[str]) -> None:
        own = [utterance for utterance in utterances if utterance.speaker in chosen]
        spans = {item.id: (item.recording_id, item.start, -1.0 if item.end is None else item.end) for item in own}
        write_data_dir(
            folder,
            wav_scp={item.recording_id: wav_scp[item.recording_id] for item in own},
            text={item.id: item.text for item in own},
            utt2spk={item.id: item.speaker for item in own},
            segments=spans if has_segments else None,
        )

    write(union_dir(exp_dir, folds) / "data", set(words))
    for fold, folder in enumerate(folders, 1):
        for name, speakers in sets_of(parts, fold).items():
            write(folder / name, speakers)
        tested = sum(words[speaker] for speaker in parts[fold - 1])
        say(f"fold {fold} of {folds}: tested on {tested} words of {len(parts[fold - 1])} speakers")
    record.finish()


def select_cuts(exp_dir: Path, fold: int, folds: int, sets: Mapping[str, Tuple[str, Path]]) -> None:
    """Write a fold's cuts, selected from the union's; nothing where they are what would be written.

    Args:
      sets: name of the set -> (name of the union's cuts, the fold's data directory).  "train" gets every copy of its
        utterances, the others the cuts that have an utterance's id.
    Raises: UserError: damaged cuts of the union; a set of which every utterance was left out.
    """
    folder = fold_dir(exp_dir, fold, folds) / "cuts"
    folder.mkdir(parents=True, exist_ok=True)
    for name, (source, data_dir) in sets.items():
        united = union_dir(exp_dir, folds) / "cuts" / f"{source}.jsonl.gz"
        left_out = united.with_name(f"{source}.left_out.json")
        inputs = [united, left_out, data_dir / "utt2spk"]
        outputs = [f"{name}.jsonl.gz", f"{name}.left_out.json"]
        record = Record(folder, f"features_{name}", {"copies": name == "train"}, inputs, outputs)
        if not record.why_not():
            continue
        record.start()
        speaker_of = {key: value for key, (value, _) in read_table(data_dir / "utt2spk").items()}
        speakers = set(speaker_of.values())
        chosen = [
            cut.supervisions[0].speaker in speakers if name == "train" else cut.id in speaker_of
            for cut in open_source(united)
        ]
        if not any(chosen):
            raise UserError(data_dir, f"every utterance of fold {fold} was left out", "usable audio", f"see {left_out}")
        lines = b"".join(line for line, is_chosen in zip(read_lines(united), chosen) if is_chosen)
        try:
            reasons = parse_json(left_out.read_text(encoding="utf-8")).items()
        except (OSError, ValueError, AttributeError) as error:
            raise UserError(left_out, f"damaged ({error})", "reasons by utterance", "run stage 1 again") from None
        reasons = {key: reason for key, reason in reasons if key in speaker_of}
        link = folder / f"{source}_feats"  # so that EXP_DIR can be moved
        if not link.is_symlink():
            link.symlink_to(os.path.relpath(united.with_name(link.name), folder))
        atomic.write_json(folder / outputs[1], reasons, sort_keys=True)
        atomic.write_bytes(folder / outputs[0], gzip.compress(lines, compresslevel=6, mtime=0))
        record.finish()


def labelled(share: float) -> str:
    """Name of a fold's cuts whose labels are used."""
    return f"labelled{100 * share:g}"


def unlabelled(share: float) -> str:
    """Name of the others, without text."""
    return f"un{labelled(share)}"


def take_labels_away(cuts_dir: Path, share: float) -> None:
    """Divide a fold's training cuts by speaker into labelled ones, of about ``share`` of the words, and others.

    Speakers are taken in the order of their ids' digests until they have said as much: ids are often sorted by sex.
    Writes ``labelled(share)`` and ``unlabelled(share)``; nothing where they are what would be written.
    Raises: UserError: one speaker alone, or no words.
    """
    train, outputs = cuts_dir / "train.jsonl.gz", [f"{name}.jsonl.gz" for name in (labelled(share), unlabelled(share))]
    record = Record(cuts_dir, f"labels_{labelled(share)}", {}, [train], outputs)
    if not record.why_not():
        return
    record.start()
    read = [(line, parse_line(line, f"{train}:{number}")) for number, line in enumerate(read_lines(train), 1)]
    words: Counter = Counter()
    for _, cut in read:
        words[cut["supervisions"][0]["speaker"]] += len((cut["supervisions"][0].get("text") or "").split())
    order, chosen, heard = sorted(words, key=lambda speaker: hashlib.sha256(speaker.encode()).digest()), set(), 0
    for speaker in order[:-1]:
        if heard < share * sum(words.values()):
            chosen.add(speaker)
            heard += words[speaker]
    if not heard:
        raise UserError(train, f"{len(order)} speakers, and no words to learn", "two speakers who say some")
    parts: Dict[bool, List[bytes]] = {True: [], False: []}
    for line, cut in read:
        is_labelled = cut["supervisions"][0]["speaker"] in chosen
        if not is_labelled:
            cut["supervisions"][0].pop("text", None)
            line = json.dumps(cut, ensure_ascii=False).encode() + b"\n"
        parts[is_labelled].append(line)
    for name, lines in zip(outputs, parts.values()):
        atomic.write_bytes(cuts_dir / name, gzip.compress(b"".join(lines), compresslevel=6, mtime=0))
    record.finish()


def _bytes(path: Path) -> bytes:
    return path.read_bytes() if path.is_file() else b""


def _united(data: Sequence[KaldiDataDir]) -> List[Utterance]:
    """All utterances, by id.  UserError: an id that stands in two directories, for utterances or for recordings."""
    utterances: Dict[str, Utterance] = {}
    recordings: Dict[str, RecordingEntry] = {}
    for one in data:
        for utterance in one.utterances:
            other = utterances.setdefault(utterance.id, utterance)
            if other is not utterance:
                problem = f"utterance {utterance.id} stands in {other.where}, too"
                raise UserError(utterance.where, problem, "every utterance in one part of the corpus", "rename one")
        for entry in one.recordings.values():
            known = recordings.setdefault(entry.id, entry)
            if (known.source, known.is_pipe) != (entry.source, entry.is_pipe):
                problem = f"recording {entry.id} is another one in {known.where}"
                raise UserError(entry.where, problem, "one recording for each id", "rename one")
    return [utterances[key] for key in sorted(utterances)]
