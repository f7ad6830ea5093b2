"""Engines give the module's numbers; encoders take turns; rows say what was measured."""

import numpy as np
import pytest
import torch

from rnnt_kd.benchmark import encoder_pass
from rnnt_kd.benchmark.dense_products import compare_products
from rnnt_kd.benchmark.encoder_rows import HEADER, encoder_table, rows_of_engine
from rnnt_kd.benchmark.encoder_words import recognise, word_figures
from rnnt_kd.benchmark.engines import available_engines, compile_encoder
from rnnt_kd.benchmark.rounds import Job
from rnnt_kd.data.speech import Speech
from rnnt_kd.decoding import greedy_search, modified_beam_search
from rnnt_kd.errors import UserError
from rnnt_kd.inference.products import dense_product
from rnnt_kd.models import build_transducer
from rnnt_kd.scoring.recognitions import Recognition

TINY = {"size": "tiny", "seed": 3}
DENSE = {**TINY, "structure": "unstructured", "sparsity": 0.0}


def small_transducer(vocab=7):
    torch.manual_seed(0)
    options = dict(dim=32, num_layers=1, feedforward_dim=32)
    model = build_transducer(
        encoder="conformer", size="tiny", encoder_options=options, predictor_dim=16, joiner_dim=16, dropout=0.0,
        ctc_head=False, vocab_size=vocab, blank_id=0,
    )  # fmt: skip
    return model.eval().requires_grad_(False)


def log_mel(frames):
    return torch.randn(frames, 80, generator=torch.Generator().manual_seed(frames)) * 3.5 - 7.5


def test_engines_are_files():
    assert available_engines() == ["numba", "onnxruntime", "onnxruntime_int8", "torch", "torch_bsr"]
    with pytest.raises(UserError, match="'tensorrt'.*onnxruntime_int8"):
        compile_encoder(small_transducer().encoder, "tensorrt")


def test_onnxruntime_equals_torch_and_int8_comes_near():
    encoder = small_transducer().encoder
    compiled = {name: compile_encoder(encoder, name) for name in ("torch", "onnxruntime", "onnxruntime_int8", "numba")}
    for frames in (1, 50, 163):
        out = {name: encode(log_mel(frames)) for name, encode in compiled.items()}
        torch.testing.assert_close(out["onnxruntime"], out["torch"], atol=1e-4, rtol=0)
        torch.testing.assert_close(out["numba"], out["torch"], atol=1e-4, rtol=0)
        error = (out["onnxruntime_int8"] - out["torch"]).norm() / out["torch"].norm()
        assert 1e-6 < error < 0.1, "int8 must differ, but not by much"
    assert compiled["onnxruntime_int8"].num_bytes < 0.6 * compiled["onnxruntime"].num_bytes


@pytest.mark.parametrize("structure, sparsity", [("16x1", 0.9), ("unstructured", 0.8), ("4x4", 0.5), ("2:4", 0.5)])
def test_random_systems_have_the_zeros_asked_for(structure, sparsity):
    model = encoder_pass.make_model({**TINY, "structure": structure, "sparsity": sparsity})
    facts = encoder_pass.describe_weights(model)
    assert facts["structure"] == ("unstructured" if structure == "2:4" else structure)
    assert abs(facts["sparsity"] - sparsity) < 0.01
    dense = encoder_pass.describe_weights(encoder_pass.make_model(DENSE))
    assert (dense["structure"], dense["sparsity"]) == ("dense", 0.0)
    assert facts["non_zeros"] < dense["non_zeros"]


def test_every_encoder_sees_every_utterance_in_every_round():
    features = [torch.full((1, 1), float(number)) for number in range(7)]
    seen, order, told = {0: [], 1: [], 2: []}, [], []

    def encoder(index):
        def encode(x):
            seen[index].append(int(x))
            order.append(index)

        return encode

    seconds = encoder_pass.time_in_turns([encoder(index) for index in range(3)], features, 2, 4, lambda: told.append(1))
    warm_up = 2
    for utterances in seen.values():
        assert sorted(utterances[warm_up:]) == sorted(list(range(7)) * 4)
    assert [[len(rounds) for rounds in parts] for parts in seconds] == [[4, 4]] * 3
    assert len(told) == 8 and all(time >= 0.0 for parts in seconds for rounds in parts for time in rounds)
    starts = [order[3 * warm_up :][place] for place in (0, 12)]  # 4 utterances in part 0, three encoders
    assert starts == [0, 1], "another one first"


def test_more_parts_than_utterances():
    assert [len(parts) for parts in encoder_pass.time_in_turns([lambda x: x], [log_mel(3)] * 2, 10, 1)] == [2]


def job(name, seconds, cannot=None):
    facts = dict(structure="16x1", sparsity=0.9, non_zeros=10, bytes=2_000_000, peak_bytes=3_000_000)
    return Job(name, {"engine": "numba"}, seconds=seconds, facts=facts, cannot=cannot)


def test_rows_compare_with_the_first_system_turn_by_turn():
    first = job("dense", [[2.0, 40.0, 2.0], [4.0, 4.0, 4.0]])  # one disturbed turn
    second = job("sparse", [[1.0, 20.0, 1.0], [1.0, 2.0, 8.0]])
    rows = rows_of_engine([first, second, job("absent", [], "no")], audio_seconds=100.0)
    assert [row["system"] for row in rows] == ["dense", "sparse"]
    assert rows[0]["rtf"] == 0.06 and rows[0]["faster"] == 1.0
    assert rows[1]["rtf"] == 0.03 and rows[1]["faster"] == 2.0  # median of 2, 2, 2, 4, 2, 0.5
    assert (rows[1]["low"], rows[1]["high"], rows[1]["rounds"]) == (0.02, 0.28, 3)


def test_rows_without_the_first_system_have_no_ratio():
    rows = rows_of_engine([job("dense", [], "no zeros"), job("sparse", [[1.0]])], 10.0)
    assert [row["faster"] for row in rows] == [None]
    assert "numba   sparse" in encoder_table(rows) and " x " not in encoder_table(rows)


def test_tables():
    rows = rows_of_engine([job("dense", [[2.0]]), job("sparse", [[1.0]])], 10.0)
    assert "%WER" not in encoder_table(rows)
    rows[1].update(wer=12.5, ins=1, sub=2, other_words=3, **{"del": 4})
    text, markdown = encoder_table(rows), encoder_table(rows, markdown=True).splitlines()
    assert text.splitlines()[2].split()[-5:] == ["12.50", "1", "4", "2", "3"]
    assert "2.00 x dense" in text and "0.100000" in text
    assert len(markdown) == 4 and all(line.count("|") == len(HEADER) + 1 for line in markdown)
    assert markdown[2].endswith("| - | - | - | - | - |")


class Letters:
    """A tokenizer whose pieces are words."""

    blank_id, unk_id = 0, 1

    def decode(self, ids):
        return " ".join("abcdefgh"[number] for number in ids)


@pytest.mark.parametrize("search", [greedy_search.search, modified_beam_search.search])
def test_recognition_in_batches_is_that_of_single_utterances(search):
    model = small_transducer()
    model.joiner.output_linear.bias[0] -= 1.0  # random weights that say something
    speech = [Speech(f"utterance-{n}", "a b", "s", None) for n in range(40)]
    features = [log_mel(20 + 13 * n % 90) for n in range(40)]
    encode = compile_encoder(model.encoder, "torch")
    found = recognise(encode, model, speech, features, Letters(), search, 4)
    assert [item.utterance_id for item in found] == [item.id for item in speech]
    assert len({item.hyp for item in found}) > 3
    for item, x in zip(found, features):
        out = encode(x)[None]
        alone = search(model, out, torch.tensor([out.shape[1]]), beam=4, blank_id=0, unk_id=1)[0][0]
        assert item.hyp == tuple(Letters().decode(alone.tokens).split()) and item.ref == ("a", "b")


def test_word_figures():
    theirs = [Recognition("1", ("A", "B"), ("A", "B")), Recognition("2", ("C",), ("C",))]
    ours = [Recognition("1", ("A", "B"), ("A", "X", "Y")), Recognition("2", ("C",), ("C",))]
    figures = word_figures(ours, theirs)
    assert (figures["errors"], figures["words"], figures["ins"], figures["sub"], figures["del"]) == (2, 3, 1, 1, 0)
    assert figures["other_words"] == 1 and abs(figures["wer"] - 200 / 3) < 1e-3


def test_the_dense_product_is_the_product():
    rng = np.random.default_rng(0)
    for outputs, inputs, frames in ((16, 8, 1), (19, 33, 62), (192, 96, 125)):
        weight, x = (rng.standard_normal(shape).astype(np.float32) for shape in ((outputs, inputs), (inputs, frames)))
        bias = rng.standard_normal(outputs).astype(np.float32)
        wanted = weight.astype(np.float64) @ x + bias[:, None]
        np.testing.assert_allclose(dense_product(weight, bias, x)(), wanted, atol=1e-4)


def test_dense_products_of_an_encoder_are_counted():
    encoder = small_transducer().encoder
    times = compare_products(encoder, 40)
    assert set(times) == {"own", "numpy", "torch", "best"} and all(value > 0.0 for value in times.values())
    assert times["best"] <= min(times["own"], times["numpy"], times["torch"])
