"""ctm and trn files are what sclite (Debian package sctk) reads, and its counts and confidences are ours."""

import math
import random
import re
import subprocess

import pytest
from sclite_cases import find_sclite, noisy_recognitions

from rnnt_kd.scoring.alternatives import Alternative
from rnnt_kd.scoring.ctm import write_ctm
from rnnt_kd.scoring.recognitions import Recognition
from rnnt_kd.scoring.trn import write_trn
from rnnt_kd.scoring.word_errors import align, count_all


def alternative(words, confidences, frame=0.04):
    starts = tuple(0.48 * place for place in range(len(words)))
    ends = tuple(start + 3 * frame for start in starts)
    return Alternative(" ".join(words), -1.0, (), (), (), tuple(words), starts, ends, tuple(confidences))


def made(folder, items, seed=0):
    """hyp.ctm and ref.stm (by hand) of the recognitions; returns the confidences."""
    generator = random.Random(seed)
    sure = {item.utterance_id: [generator.uniform(0.01, 0.99) for _ in item.hyp] for item in items}
    found = [(item.utterance_id, alternative(item.hyp, sure[item.utterance_id])) for item in items]
    write_ctm(folder / "hyp.ctm", found)
    lines = [f"{item.utterance_id} 1 {item.utterance_id} 0.0 99.0 {' '.join(item.ref)}\n" for item in items]
    (folder / "ref.stm").write_text("".join(lines))
    return sure


def test_lines_are_sorted_as_sclite_wants_them_and_hold_start_length_and_confidence(tmp_path):
    ends = (0.12, 1.0)
    item = Alternative("YES PLEASE", -1.0, (), (), (), ("YES", "PLEASE"), (0.04, 0.48), ends, (0.91, 0.12345))
    nothing = alternative((), ())
    write_ctm(tmp_path / "x.ctm", [("b", item), ("a", nothing), ("B", alternative(("NO",), (1.0,)))])
    lines = ["B 1 0.00 0.12 NO 1.0000", "b 1 0.04 0.08 YES 0.9100", "b 1 0.48 0.52 PLEASE 0.1235"]
    assert (tmp_path / "x.ctm").read_text().splitlines() == lines
    items = [Recognition("b", ("YES",), ()), Recognition("a", ("NO",), ("NO", "NO"))]
    write_trn(tmp_path / "r", tmp_path / "h", items, {"a": "x", "b": "y"})
    assert (tmp_path / "r").read_text() == "NO (x-a)\nYES (y-b)\n"
    assert (tmp_path / "h").read_text() == "NO NO (x-a)\n(y-b)\n"


def summary(folder):
    """Of ref.stm and hyp.ctm: words, (correct, sub, del, ins), normalised cross entropy."""
    command = [find_sclite(), "-s", "-r", "ref.stm", "stm", "-h", "hyp.ctm", "ctm", "-o", "rsum", "stdout"]
    output = subprocess.run(command, capture_output=True, text=True, check=True, cwd=folder).stdout
    row = re.search(r"\| Sum[^|]*\|([^|]*)\|([^|]*)\|([^|]*)\|", output)
    assert row, output
    words, numbers = row.group(1).split()[1], row.group(2).split()[:4]
    return int(words), tuple(map(int, numbers)), float(row.group(3))


def test_sclite_counts_our_ctm_and_trusts_the_confidences_as_we_say(tmp_path):
    items = noisy_recognitions(2, 100_000, 6)  # no word twice: one alignment
    sure = made(tmp_path, items)
    words, counts, entropy = summary(tmp_path)
    total = count_all(items)
    assert (words, counts) == (total.words, (total.correct, total.subs, total.dels, total.ins))
    bits, right, number = 0.0, 0, 0
    for item in items:
        pairs = [pair for pair in align(item.ref, item.hyp) if pair[1]]
        for (ref, hyp), confidence in zip(pairs, sure[item.utterance_id], strict=True):
            chance = round(confidence, 4)
            bits += math.log2(chance if ref == hyp else 1.0 - chance)
            right, number = right + (ref == hyp), number + 1
    share = right / number
    highest = -right * math.log2(share) - (number - right) * math.log2(1.0 - share)
    assert entropy == pytest.approx((highest + bits) / highest, abs=2e-3)
