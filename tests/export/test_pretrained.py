"""The models in the checkout write down what was said, in the client."""

import pytest

from rnnt_kd.bin import transcribe
from rnnt_kd.export.check_files import verify_static

pytest.importorskip("sherpa_onnx")
WORDS = {"fvap/cen3-fvap-b": "THREE ZERO TWO ONE", "mjwl/an395-mjwl-b": "ENTER ONE OH FOUR"}


def written(capsys, *argv):
    transcribe.main([str(part) for part in argv])
    return [line.split("\t")[1] for line in capsys.readouterr().out.splitlines()]


FOLDERS = {"pretrained": (400_000, True, 0.75), "pretrained_offline": (200_000, False, 0.95)}


@pytest.fixture(params=list(FOLDERS))
def folder(request, root):
    return root / "egs" / "an4" / request.param


@pytest.mark.parametrize("search", ["greedy_search", "modified_beam_search"])
def test_the_example(folder, capsys, search):
    example = folder.parent / "pretrained" / "example.flac"
    assert written(capsys, folder, "--search", search, example) == ["THREE ZERO TWO ONE"]


@pytest.mark.parametrize("search", ["greedy_search", "modified_beam_search"])
def test_two_utterances_of_the_test_set(folder, corpora, capsys, search):
    audio = [corpora / "an4" / "wav" / "an4test_clstk" / f"{name}.flac" for name in WORDS]
    assert written(capsys, folder, "--search", search, *audio) == list(WORDS.values())


def test_it_is_small_and_whole(folder):
    most, streaming, sparsity = FOLDERS[folder.name]
    assert sum(path.stat().st_size for path in folder.iterdir()) <= most
    manifest = verify_static(folder)
    assert manifest["streaming"] == streaming and manifest["sparsity"] == pytest.approx(sparsity, abs=0.001)
