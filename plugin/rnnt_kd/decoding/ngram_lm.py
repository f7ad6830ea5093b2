"""Back-off n-gram language models from ARPA files, looked up for many histories and words at once.

    lm = read_arpa("3gram.arpa")
    log_probs, states = lm.lookup(states, words)     # any shape; states begin with lm.start

A state is a history that the file knows.  A word it does not follow in the file is looked up in the shorter history,
for the price of the back-off weight (Katz, IEEE Trans. ASSP 35(3), 1987).
"""

import importlib.util
import math
import re
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Dict, List, Tuple, TypeVar

import torch
from torch import Tensor

from rnnt_kd.children import Worker, WorkerDied
from rnnt_kd.decoding.arpa import ARPA, checked_lines
from rnnt_kd.errors import UserError

WORKER = "rnnt_kd.decoding.arpa_worker"
UNKNOWN = ("<unk>", "<UNK>")
_NO_WORDS = ("<eps>", "#0", "<s>", "</s>", *UNKNOWN)
Tables = TypeVar("Tables", bound="OnDevice")


class OnDevice:
    """What scores by tensors; ``to`` moves them, and those of what it holds of this kind."""

    def to(self: Tables, device) -> Tables:
        for name, value in vars(self).items():
            if isinstance(value, (Tensor, OnDevice)):
                setattr(self, name, value.to(device))
        return self


@dataclass
class NgramLm(OnDevice):
    """S states, A n-grams; log-probabilities are natural, float64; labels are int64.

    Attributes:
      words:       word -> label, without <s>, </s> and the unknown word.
      start, end:  the state after <s>; the label of </s>.
      unknown:     label of the unknown word, whether the file has one or not.
      floor:       log-probability of what no history knows: that of the file's rarest word.
      keys:        (A,) state * labels + label, sorted.
      log_probs, next_states: (A,) of that n-gram.
      shorter, back_off:      (S,) the shorter history, -1 where there is none, and the log of its weight.
      order:       histories to try at most.
    """

    words: Dict[str, int]
    start: int
    end: int
    unknown: int
    floor: float
    labels: int
    keys: Tensor
    log_probs: Tensor
    next_states: Tensor
    shorter: Tensor
    back_off: Tensor
    order: int

    @property
    def shortest(self) -> int:
        """The state without a history."""
        return int((self.shorter < 0).nonzero()[0])

    def lookup(self, states: Tensor, labels: Tensor) -> Tuple[Tensor, Tensor]:
        """log p(label | state) and the state after it, of two int64 tensors that broadcast against each other."""
        states, labels = (part.contiguous() for part in torch.broadcast_tensors(states, labels))
        log_probs = torch.zeros(states.shape, dtype=torch.float64, device=states.device)
        found = torch.zeros_like(states, dtype=torch.bool)
        for _ in range(self.order):
            keys = states * self.labels + labels
            places = torch.searchsorted(self.keys, keys).clamp(max=len(self.keys) - 1)
            hits = ~found & (self.keys[places] == keys)
            shorter = self.shorter[states]
            ends = ~found & ~hits & (shorter < 0)  # nobody knows this word
            misses = ~found & ~hits & ~ends
            log_probs += torch.where(hits, self.log_probs[places], 0.0) + torch.where(
                misses, self.back_off[states], 0.0
            )
            log_probs += torch.where(ends, self.floor, 0.0)
            states = torch.where(hits, self.next_states[places], torch.where(misses, shorter, states))
            found |= hits | ends
        return log_probs, states


def read_arpa(path: Path, normalization: str = "nfc") -> NgramLm:
    """Read a language model, by kaldilm; gzip, bzip2 or xz may have compressed the file.

    Args:
      normalization: of the words; see ``text.normalization``.
    Raises:
      ModuleNotFoundError: kaldilm is not installed.
      UserError:           no such file, or a line of it that cannot be read.
    """
    if importlib.util.find_spec("kaldilm") is None:
        raise ModuleNotFoundError("No module named 'kaldilm'", name="kaldilm")
    with tempfile.NamedTemporaryFile("w", encoding="utf-8", newline="\n", suffix=".arpa") as copy:
        copy.writelines(f"{line}\n" for line in checked_lines(path, normalization))
        copy.flush()
        try:
            with Worker(WORKER) as worker:
                answer = worker.ask({"arpa": copy.name})
        except WorkerDied as death:
            reasons = re.findall(r"\[[EF]\] *(.*)", death.errors)
            reason = re.sub(r"[^ -~]", "", reasons[-1]).strip() if reasons else "no reason given"
            raise UserError(path, f"kaldilm cannot read it ({reason[:200]})", ARPA, "check the file") from None
    symbols = dict(line.rsplit("\t", 1) for line in answer["symbols"].split("\n") if line)
    rows = [line.split("\t") for line in answer["fst"].split("\n") if line]
    return _tables(rows, {word: int(label) for word, label in symbols.items()})


def _tables(rows: List[List[str]], symbols: Dict[str, int]) -> NgramLm:
    end, back_off_label = symbols["</s>"], symbols["#0"]
    unknown = next((symbols[name] for name in UNKNOWN if name in symbols), len(symbols))
    labels = len(symbols) + 1
    states = 1 + max(int(row[0]) for row in rows)
    shorter, back_off = torch.full((states,), -1), torch.zeros(states, dtype=torch.float64)
    arcs: List[Tuple[int, float, int]] = []  # key, log-probability, next state
    for row in rows:
        state = int(row[0])
        if len(row) <= 2:  # final: </s> may follow
            arcs.append((state * labels + end, -float(row[1]) if len(row) == 2 else 0.0, state))
            continue
        label, log_prob = int(row[2]), -float(row[4]) if len(row) == 5 else 0.0
        if label == back_off_label:
            shorter[state], back_off[state] = int(row[1]), log_prob
        else:
            arcs.append((state * labels + label, log_prob, int(row[1])))
    arcs.sort()
    depth, longest = torch.arange(states), 0
    while bool((depth >= 0).any()):
        depth, longest = torch.where(depth >= 0, shorter[depth.clamp(min=0)], -1), longest + 1
    unigrams = [log_prob for key, log_prob, _ in arcs if shorter[key // labels] < 0]
    keys, log_probs, next_states = zip(*arcs, strict=True)
    return NgramLm(
        words={word: label for word, label in symbols.items() if word not in _NO_WORDS},
        start=int(rows[0][0]),
        end=end,
        unknown=unknown,
        floor=min(unigrams, default=-math.inf),
        labels=labels,
        keys=torch.tensor(keys),
        log_probs=torch.tensor(log_probs, dtype=torch.float64),
        next_states=torch.tensor(next_states),
        shorter=shorter,
        back_off=back_off,
        order=longest,
    )
