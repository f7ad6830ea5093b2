"""The model in the checkout writes down what was said: streaming, in the client."""

import pytest

from rnnt_kd.bin import transcribe
from rnnt_kd.export.check_files import verify_static

pytest.importorskip("sherpa_onnx")
WORDS = {"fvap/cen3-fvap-b": "THREE ZERO TWO ONE", "mjwl/an395-mjwl-b": "ENTER ONE OH FOUR"}


def written(capsys, *argv):
    transcribe.main([str(part) for part in argv])
    return [line.split("\t")[1] for line in capsys.readouterr().out.splitlines()]


@pytest.fixture
def folder(root):
    return root / "egs" / "an4" / "pretrained"


@pytest.mark.parametrize("search", ["greedy_search", "modified_beam_search"])
def test_the_example_beside_it(folder, capsys, search):
    assert written(capsys, folder, "--search", search, folder / "example.flac") == ["THREE ZERO TWO ONE"]


@pytest.mark.parametrize("search", ["greedy_search", "modified_beam_search"])
def test_two_utterances_of_the_test_set(folder, corpora, capsys, search):
    audio = [corpora / "an4" / "wav" / "an4test_clstk" / f"{name}.flac" for name in WORDS]
    assert written(capsys, folder, "--search", search, *audio) == list(WORDS.values())


def test_it_is_small_whole_and_streaming(folder):
    assert sum(path.stat().st_size for path in folder.iterdir()) <= 400_000
    manifest = verify_static(folder)
    assert manifest["streaming"] and manifest["sparsity"] == pytest.approx(0.75, abs=0.001)
