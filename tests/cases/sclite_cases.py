"""NIST's sclite: its counts for files, and files to count."""

import os
import random
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from rnnt_kd.scoring.recognitions import Recognition
from rnnt_kd.scoring.trn import write_trn

ROOTS = "RNNT_KD_EXP"  # folders of experiments, with ":" between them


def find_sclite():
    """Where it is; without it the test is skipped."""
    sclite = shutil.which("sclite") or shutil.which("sclite", path="/usr/lib/sctk/bin")  # where Debian puts it
    if not sclite:
        pytest.skip("sclite is not installed (Debian package sctk)")
    return sclite


def scores(ref, ref_kind, hyp, hyp_kind):
    """Utterance id -> (correct, sub, del, ins), as sclite counts them, of two trn files, or of an stm and a ctm file
    (of several segments of a file the sums)."""
    kinds = [] if hyp_kind == "ctm" else ["-i", "rm"]
    command = [find_sclite(), "-s", "-e", "utf-8", "-r", str(ref), ref_kind, "-h", str(hyp), hyp_kind, *kinds]
    command += ["-o", "pralign", "stdout"]
    output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    found = {}
    for part in re.split(r"(?m)^id: ", output)[1:]:
        name = re.match(r"\((.*)\)", part).group(1)
        numbers = re.search(r"Scores: \(#C #S #D #I\) (\d+) (\d+) (\d+) (\d+)", part).groups()
        found[name] = tuple(map(int, numbers))
    return found


def utterances(*pairs):
    """Recognitions of (reference, hypothesis), words in a string."""
    return [Recognition(f"u{i:03d}", tuple(r.split()), tuple(h.split())) for i, (r, h) in enumerate(pairs)]


def write_sides(folder, items):
    """The two trn files of recognitions."""
    paths = folder / "ref.trn", folder / "hyp.trn"
    write_trn(*paths, items, {item.utterance_id: "s" for item in items})
    return paths


def noisy_recognitions(seed, vocabulary, longest, size=150):
    """Every second word is wrong, so that there are many alignments."""
    generator = random.Random(seed)
    words = [f"w{number}" for number in range(vocabulary)]
    items = []
    for number in range(size):
        ref = [generator.choice(words) for _ in range(generator.randint(1, longest))]
        hyp = []
        for word in ref:
            hyp += [[], [word], [word], [generator.choice(words)]][generator.randrange(4)]
            hyp += [generator.choice(words)] * (generator.random() < 0.15)
        items.append(Recognition(f"u{number:04d}", tuple(ref), tuple(hyp)))
    return items


def trained(pattern):
    """Files of trained systems: below the folders that the variable ``RNNT_KD_EXP`` names, else below exp/."""
    here = Path(__file__).resolve().parents[2] / "exp"
    roots = [Path(root) for root in os.environ.get(ROOTS, str(here)).split(os.pathsep) if root]
    found = sorted(path for root in roots for path in root.rglob(pattern))
    if not found:
        pytest.skip(f"no decoded system below {os.pathsep.join(map(str, roots))}; name others by {ROOTS}")
    return found
