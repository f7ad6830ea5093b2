"""On a GPU: a training in bfloat16, with distillation and zeros, and the words that its weights give there and on the CPU."""

import pytest
import torch
from training_cases import metrics

from rnnt_kd.data.source import open_source
from rnnt_kd.data.stored_features import read_features
from rnnt_kd.decoding import greedy_search, modified_beam_search
from rnnt_kd.systems.store import load_system

pytestmark = pytest.mark.gpu


@pytest.fixture(scope="module")
def trained(tone_corpus, teacher_dir, tmp_path_factory):
    """60 steps."""
    folder = tmp_path_factory.mktemp("gpu") / "student"
    overrides = ["sparse_student.training.epochs=9", "sparse_student.training.precision=bf16-mixed"]
    config = tone_corpus.config("sparse_student", "x", 0.5, with_kd=True, overrides=overrides, ranges="student")
    tone_corpus.train(config, folder, teacher_dir=teacher_dir, device="cuda", backend_name="auto")
    return folder


def test_a_training_in_bfloat16_learns(trained):
    losses = [line["loss"] for line in metrics(trained, "train")]
    assert len(losses) >= 25 and sum(losses[-5:]) < sum(losses[:5])


@pytest.mark.parametrize("search", [greedy_search, modified_beam_search])
def test_the_words_are_those_of_the_cpu(trained, tone_corpus, search):
    source = open_source(tone_corpus.dev_cuts)
    found = []
    for device in ("cpu", "cuda"):
        model, _ = load_system(trained, device)
        with torch.no_grad():
            model.joiner.output_linear.bias[model.blank_id] -= 4.0  # after so few steps it would say little
        texts = []
        for cut in source:
            x = torch.as_tensor(read_features(cut, tone_corpus.dev_cuts))[None].to(device)
            with torch.no_grad():
                encoder_out, lens = model.encode(x, torch.tensor([x.size(1)], device=device))
                texts.append(search.search(model, encoder_out, lens, beam=4)[0][0].tokens)
        found.append([list(map(int, tokens)) for tokens in texts])
    assert found[0] == found[1] and any(found[0])
