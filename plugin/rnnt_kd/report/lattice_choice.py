"""Which utterances of a test set get a picture: those whose words distillation changed.

A pure function of what three systems recognised, so the same files give the same choice.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Dict, List, Mapping, Sequence, Tuple

from rnnt_kd.scoring.characters import as_characters, has_no_blanks
from rnnt_kd.scoring.recognitions import Recognition, words_counted
from rnnt_kd.scoring.results import read_json
from rnnt_kd.scoring.word_errors import align, count


@dataclass(frozen=True)
class Chosen:
    """One utterance: the words of the teacher, of the twin and of the distilled student, and their errors, which are of
    characters where text has no blanks between words."""

    utterance: str
    kind: str  # "gained", "lost" or "changed", see report/lattice_data.py
    ref: Tuple[str, ...]
    hyps: Dict[str, Tuple[str, ...]]
    errors: Dict[str, int]


def decodings(system_dir: Path, test_set: str) -> Dict[str, Path]:
    """Search -> recogs file, of the experiment's finished decodings of a test set; by the name of the search.

    A decoding made by hand, with a language model say, may lie beside them.
    """
    found = {}
    for folder in Path(system_dir).glob("decode_*"):
        decode = read_json(folder / "decode.json", default={})
        recogs = folder / f"recogs-{test_set}.txt"
        search = str(decode.get("search"))
        if decode.get("test_set") == test_set and folder.name == f"decode_{test_set}_{search}" and recogs.is_file():
            found[search] = recogs
    return dict(sorted(found.items()))


def choose(
    recognitions: Mapping[str, Sequence[Recognition]],
    seconds: Mapping[str, float],
    most: int,
    max_seconds: float,
    score_events: bool = True,
) -> List[Chosen]:
    """The utterances to draw, at most ``most``: half of them gained and half lost, one kind filling up for the other.

    Those with the largest difference in errors come first; among equal ones those in which the teacher has fewer
    errors (it had something to teach), then the shorter ones.  What is still free goes to utterances whose words
    changed but not the number of errors.

    Args:
      recognitions: of "teacher", "twin" and "student", the same utterances in the same order.
      seconds:      utterance id -> duration; utterances that are not in it, or last longer than ``max_seconds``,
                    are not chosen.
      score_events: words such as <unk> and [noise] count as errors.
    """
    units = {key: words_counted(list(items), score_events) for key, items in recognitions.items()}
    if has_no_blanks(item.ref for item in units["teacher"]):
        units = {key: as_characters(items) for key, items in units.items()}
    candidates: Dict[str, List[Tuple[tuple, Chosen]]] = {"gained": [], "lost": [], "changed": []}
    names = ("teacher", "twin", "student")
    items_of, counted_of = (zip(*(given[key] for key in names)) for given in (recognitions, units))
    for items, counted in zip(items_of, counted_of):
        teacher, twin, student = items
        assert teacher.utterance_id == twin.utterance_id == student.utterance_id
        length = seconds.get(teacher.utterance_id, float("inf"))
        if twin.hyp == student.hyp or length > max_seconds:
            continue
        errors = [count(align(item.ref, item.hyp)).errors for item in counted]
        difference = errors[1] - errors[2]
        kind = "gained" if difference > 0 else "lost" if difference < 0 else "changed"
        rank = (-abs(difference), errors[0], length, teacher.utterance_id)
        hyps = dict(zip(names, (item.hyp for item in items)))
        chosen = Chosen(teacher.utterance_id, kind, teacher.ref, hyps, dict(zip(names, errors)))
        candidates[kind].append((rank, chosen))
    gained, lost, changed = ([one for _, one in sorted(some, key=lambda pair: pair[0])] for some in candidates.values())
    num_lost = min(len(lost), max(most // 2, most - len(gained)))
    picked = gained[: most - num_lost] + lost[:num_lost]
    return picked + changed[: most - len(picked)]
