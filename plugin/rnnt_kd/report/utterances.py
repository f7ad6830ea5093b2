"""The table of utterances: how a distilled system and its twin differ on each, and the words with their errors.

Words, or characters where no blanks part the words, are marked, and not by colour alone: ``M>N`` said M, recognised N;
``-M`` left out; ``+N`` put in.
"""

from dataclasses import dataclass
from typing import Dict, List, Mapping, Optional, Sequence, Tuple

from rnnt_kd.errors import UserError
from rnnt_kd.report.lattice_choice import decodings
from rnnt_kd.report.read import FinishedExperiment, FinishedSystem
from rnnt_kd.scoring.characters import as_characters, has_no_blanks
from rnnt_kd.scoring.recognitions import Recognition, check_same_references, read_recogs, words_counted
from rnnt_kd.scoring.results import read_json
from rnnt_kd.scoring.word_errors import GAP, Alignment, align, count
from rnnt_kd.systems.experiment_folder import ExperimentFolder

MOST_ROWS = 1500  # in the page


@dataclass(frozen=True)
class Piece:
    """``kind``: "ok" (several words), "sub", "del" or "ins"."""

    kind: str
    ref: str
    hyp: str


@dataclass(frozen=True)
class ComparedUtterance:
    """One row; ``difference`` > 0: distillation took so many errors away."""

    utterance: str
    speaker: str
    twin_errors: int
    errors: int
    ref: str
    twin_pieces: Tuple[Piece, ...]
    pieces: Tuple[Piece, ...]

    @property
    def difference(self) -> int:
        return self.twin_errors - self.errors


@dataclass(frozen=True)
class Comparison:
    """A distilled system and its twin, the first seed of each, on a test set.

    ``left_out``: utterances that are not among the rows.
    """

    system: str
    twin: str
    test_set: str
    rows: Tuple[ComparedUtterance, ...]
    left_out: int

    @property
    def key(self) -> str:
        return f"{self.system} {self.test_set}"


def compare(experiment: FinishedExperiment, problems: List[str]) -> List[Comparison]:
    """Every pair and test set that both have decoded; the rows with most gain first."""
    wanted = [(*pair, test_set) for pair in experiment.pairs() for test_set in experiment.about.test_sets]
    most = MOST_ROWS // max(1, len(wanted))
    found = []
    for system, twin, test_set in wanted:
        try:
            made = _comparison(system, twin, test_set, experiment.about, most)
        except UserError as error:
            problems.append(str(error))
            continue
        if made is not None:
            found.append(made)
    return found


def pieces(alignment: Alignment, between: str = " ") -> Tuple[Piece, ...]:
    """The words of one utterance, or its characters, with nothing ``between``; correct ones in a row joined."""
    made: List[Piece] = []
    for ref, hyp in alignment:
        kind = "ins" if ref == GAP else "del" if hyp == GAP else "ok" if ref == hyp else "sub"
        if kind == "ok" and made and made[-1].kind == "ok":
            made[-1] = Piece("ok", f"{made[-1].ref}{between}{ref}", f"{made[-1].hyp}{between}{hyp}")
        else:
            made.append(Piece(kind, ref, hyp))
    return tuple(made)


def columns(ref: Sequence[str], hyps: Mapping[str, Sequence[str]]) -> Tuple[List[str], Dict[str, List[Piece]]]:
    """Texts below one another: the words of ``ref``, "" where some hypothesis puts in a word, and a piece a column."""
    slots: Dict[str, List[Tuple[List[str], Optional[str]]]] = {}  # words put in before a ref word; what stands for it
    for name, hyp in hyps.items():
        row: List[Tuple[List[str], Optional[str]]] = []
        before: List[str] = []
        for one, other in align(ref, hyp):
            if one == GAP:
                before.append(other)
            else:
                row.append((before, other))
                before = []
        slots[name] = [*row, (before, None)]
    head: List[str] = []
    lines: Dict[str, List[Piece]] = {name: [] for name in hyps}
    words: List[Optional[str]] = [*ref, None]
    for place, word in enumerate(words):
        width = max((len(row[place][0]) for row in slots.values()), default=0)
        head += [""] * width + ([word] if word is not None else [])
        for name, row in slots.items():
            put_in, stands = row[place]
            lines[name] += [Piece("ok", "", "")] * (width - len(put_in)) + [Piece("ins", "", text) for text in put_in]
            if word is not None:
                kind = "ok" if word == stands else "del" if stands == GAP else "sub"
                lines[name].append(Piece(kind, word, stands or ""))
    return head, lines


def _comparison(
    system: FinishedSystem, twin: FinishedSystem, test_set: str, about: ExperimentFolder, most: int
) -> Optional[Comparison]:
    ours, theirs = (decodings(one.listed.first, test_set).get(about.search) for one in (system, twin))
    if ours is None or theirs is None:
        return None
    own, other = read_recogs(ours), read_recogs(theirs)
    check_same_references(own, other, ours, theirs)
    own, other = (words_counted(items, about.score_events) for items in (own, other))
    speakers = read_json(ours.parent / f"speakers-{test_set}.json", default={})
    between = " "
    if has_no_blanks(item.ref for item in own):
        between, own, other = "", as_characters(own), as_characters(other)
    rows = [_utterance(one, two, str(speakers.get(one.utterance_id, "")), between) for one, two in zip(own, other)]
    kept = sorted(rows, key=lambda row: (-abs(row.difference), -row.errors - row.twin_errors, row.utterance))[:most]
    kept.sort(key=lambda row: (-row.difference, -row.twin_errors, row.utterance))
    return Comparison(system.name, twin.name, test_set, tuple(kept), len(rows) - len(kept))


def _utterance(own: Recognition, other: Recognition, speaker: str, between: str) -> ComparedUtterance:
    ours, theirs = align(own.ref, own.hyp), align(other.ref, other.hyp)
    errors = count(theirs).errors, count(ours).errors
    found = pieces(theirs, between), pieces(ours, between)
    return ComparedUtterance(own.utterance_id, speaker, *errors, between.join(own.ref), *found)
