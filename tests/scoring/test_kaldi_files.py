"""Kaldi's files against what Kaldi's own scripts make of the same alignments.

``golden_kaldi/``: ``text``, ``utt2spk`` and ``hyp`` are drawn at random from odd words, with utterances that are empty
on one side or both, and a speaker who says nothing.  The alignments of ``word_errors.align``, in the form of Kaldi's
align-text (``<id> ref hyp ; ref hyp``, "***" for a gap), went through ``wer_per_utt_details.pl`` (``per_utt``), from
there through ``wer_per_spk_details.pl utt2spk`` (``per_spk``) and ``wer_ops_details.pl | LC_ALL=C sort -b -i -k 1,1
-k 4,4rn -k 2,2 -k 3,3`` (``ops``), as steps/scoring/score_kaldi_wer.sh has it (Kaldi f40076610).
"""

import re
from pathlib import Path

import pytest

from rnnt_kd.bin import score

GOLDEN = Path(__file__).parent / "golden_kaldi"
# `grep WER exp/*/decode*/wer_* | utils/best_wer.sh`, Kaldi's, run on the two folders of the fixture
BEST = "%WER 48.15 [ 13 / 27, 5 ins, 2 del, 6 sub ] exp/golden/decode_test.score/wer_0_0.0\n"


@pytest.fixture
def scored(tmp_path, monkeypatch):
    """The golden hypotheses, scored, and beside them empty ones."""
    monkeypatch.chdir(tmp_path)
    hyps = (GOLDEN / "hyp").read_text(encoding="utf-8")
    for system, content in (("empty", re.sub(r"(?m) .*$", "", hyps)), ("golden", hyps)):
        file = Path("exp") / system / "decode_test"
        file.parent.mkdir(parents=True)
        file.write_text(content, encoding="utf-8")
        score.main(["--data-dir", str(GOLDEN), "--decode-dir", str(file)])
    return Path("exp/golden/decode_test.score")


@pytest.mark.parametrize("name", ["per_utt", "per_spk", "ops"])
def test_details_are_what_kaldis_scripts_print(scored, name):
    assert (scored / "scoring_kaldi/wer_details" / name).read_bytes() == (GOLDEN / name).read_bytes()


def test_rates_are_as_compute_wer_prints_them(scored):
    assert (scored / "wer_0_0.0").read_text() == (
        "%WER 48.15 [ 13 / 27, 5 ins, 2 del, 6 sub ]\n"
        "%SER 53.85 [ 7 / 13 ]\n"
        "Scored 13 sentences, 0 not present in hyp.\n"
    )


def test_best_wer_sh_finds_our_line_and_we_write_what_it_prints(scored):
    """The script takes the least number behind WER or SER and puts the path behind the line."""
    lines = [
        f"{path}:{line}"
        for path in sorted(Path().glob("exp/*/decode*/wer_*"))
        for line in path.read_text().splitlines()
        if "WER" in line
    ]
    best = min(lines, key=lambda line: float(re.search(r"[WS]ER (\S+)", line)[1]))
    path, _, rates = best.partition(":")
    assert len(lines) == 2 and f"{rates} {path}\n" == BEST == (scored / "scoring_kaldi/best_wer").read_text()
