"""``python -m benchmark.infer`` on small things: processes, table, files, errors; engines; rows."""

import json

import numpy as np
import pytest
import torch
from command_cases import refused
from export_cases import make_system

from benchmark import encoders, infer
from benchmark.dense_product import dense_product
from benchmark.engines import compile_encoder
from benchmark.infer import chosen_systems, encoder_table, infer_parser, rows_of_engine
from benchmark.turns import Measurement
from rnnt_kd.config import ModelConfig, SystemConfig
from rnnt_kd.decoding.lookup import get_search
from rnnt_kd.systems.store import build_model
from rnnt_kd.text.train_bpe import train_bpe

QUICK = ["--rounds", "1", "--batches", "2"]


def bench(*arguments):
    infer.main(list(map(str, arguments)))


def test_random_weights(tmp_path, capsys):
    arguments = ["--size", "tiny", "--structure", "16x1, 4x4,2:4", "--engines", "numba,torch_bsr", *QUICK]
    bench(*arguments, "--json", tmp_path / "new" / "rows.json", "--md", tmp_path / "rows.md")
    out, err = capsys.readouterr()
    written = json.loads((tmp_path / "new" / "rows.json").read_text())["rows"]
    rows = {(row["engine"], row["system"]): row for row in written if "engine" in row}
    products = {row["products"]: row["seconds"] for row in written if "products" in row}
    assert set(rows) == {("numba", f"tiny {kind}") for kind in ("dense", "16x1", "4x4", "2:4")} | {
        ("torch_bsr", "tiny 4x4")
    }
    left_out = "torch_bsr: tiny 16x1: left out, engine torch_bsr: unstructured weights; expected square blocks of zeros"
    assert left_out in err
    block, dense = rows["numba", "tiny 16x1"], rows["numba", "tiny dense"]
    zeros = {"dense": ("dense", 0.0), "16x1": ("16x1", 0.9), "4x4": ("4x4", 0.9), "2:4": ("unstructured", 0.5)}
    for kind, (structure, sparsity) in zeros.items():
        row = rows["numba", f"tiny {kind}"]
        assert row["structure"] == structure and row["sparsity"] == pytest.approx(sparsity, abs=0.01)
    assert block["bytes"] < 0.3 * dense["bytes"] and block["peak_bytes"] < dense["peak_bytes"]
    assert dense["faster"] == 1.0 and dense["faster_than"] == "tiny dense" and block["rtf"] > 0.0
    assert rows["torch_bsr", "tiny 4x4"]["faster"] is None and block["wer"] is None
    assert block["first_call_seconds"] > 0.0
    assert {"own", "numpy", "torch"} <= set(products) and all(value > 0.0 for value in products.values())
    assert products.pop("the fastest, matrix by matrix") <= min(products.values())
    assert "tiny 16x1" in out and "1 thread" in out and "matrix products" in out
    assert (tmp_path / "rows.md").read_text().startswith("| engine ")


def test_trained_systems_on_speech(place, tmp_path, capsys):
    systems = [place / "systems" / name for name in ("dense", "sparse")]
    arguments = ["--systems", *systems, "--data-dir", place / "data", "--bpe-dir", place / "bpe", "--search"]
    arguments += ["greedy_search", "--engines", "torch,numba,onnxruntime", "--json", tmp_path / "rows.json", *QUICK]
    bench(*arguments)
    rows = [row for row in json.loads((tmp_path / "rows.json").read_text())["rows"] if "engine" in row]
    assert [(row["engine"], row["system"]) for row in rows] == [
        (engine, system) for engine in ("torch", "numba", "onnxruntime") for system in ("dense", "sparse")
    ]
    for row in rows:
        same = next(other for other in rows if (other["engine"], other["system"]) == ("torch", row["system"]))
        assert row["other_words"] == 0 and row["errors"] == same["errors"] and row["words"] == same["words"] > 0
    assert "%WER" in capsys.readouterr().out
    train_bpe(["ANOTHER TEXT ALTOGETHER"], 14, tmp_path / "bpe")
    assert "another BPE model" in refused(capsys, infer.main, *arguments, "--bpe-dir", tmp_path / "bpe", lines=None)


def test_systems_of_one_name_are_told_apart(place, tmp_path):
    other = make_system(tmp_path / "dense", place / "bpe", seed=5)
    systems = [str(place / "systems" / "dense"), str(other), str(place / "systems" / "sparse")]
    arguments = infer_parser().parse_args(["--systems", *systems])
    assert [name for name, _ in chosen_systems(arguments)] == [*systems[:2], "sparse"]


@pytest.mark.parametrize(
    "arguments, words",
    [
        ([], ["--systems", "--size"]),
        (["--size", "tiny", "--systems", "x"], ["both"]),
        (["--systems", "nowhere"], ["nowhere"]),
        (["--size", "huge"], ["huge", "tiny"]),
        (["--size", "tiny", "--structure", "17y1"], ["17y1", "16x1"]),
        (["--size", "tiny", "--sparsity", "90"], ["--sparsity", "0.9"]),
        (["--size", "tiny", "--engines", "numba,tpu"], ["'tpu'", "onnxruntime"]),
        (["--size", "tiny", "--engines", ""], ["--engines"]),
        (["--size", "tiny", "--rounds", "0"], ["--rounds"]),
        (["--size", "tiny", "--bpe-dir", "x"], ["--bpe-dir"]),
        (["--size", "tiny", "--data-dir", "nowhere"], ["nowhere"]),
        (["--size", "tiny", "--search", "psychic"], ["psychic"]),
        pytest.param(
            ["--device", "cuda", "--size", "L"],
            ["torch finds no GPU"],
            marks=pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU"),
        ),
    ],
    ids=" ".join,
)
def test_mistakes_are_one_line(arguments, words, capsys):
    line = refused(capsys, infer.main, *arguments, lines=None)
    assert all(word in line for word in words), line


@pytest.mark.gpu
def test_semi_structured(capsys):
    bench("--device", "cuda", "--size", "L", "--batch", "2", "--frames", "256", "--rounds", "1")
    assert "2:4" in capsys.readouterr().out


def small_transducer(vocab=7):
    torch.manual_seed(0)
    options = dict(dim=32, num_layers=1, feedforward_dim=32)
    config = ModelConfig(encoder_options=options, predictor_dim=16, joiner_dim=16, dropout=0.0, ctc_head=False)
    return build_model(SystemConfig(model=config, vocab_size=vocab)).eval().requires_grad_(False)


def log_mel(frames):
    return torch.randn(frames, 80, generator=torch.Generator().manual_seed(frames)) * 3.5 - 7.5


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


def job(name, seconds, cannot=None):
    facts = dict(structure="16x1", sparsity=0.9, non_zeros=10, bytes=2_000_000, peak_bytes=3_000_000)
    return Measurement(name, {"engine": "numba"}, seconds=seconds, facts=facts, cannot=cannot)


def test_rows_compare_with_the_first_system_turn_by_turn():
    first = job("dense", [[2.0, 40.0, 2.0], [4.0, 4.0, 4.0]])  # one disturbed turn
    second = job("sparse", [[1.0, 20.0, 1.0], [1.0, 2.0, 8.0]])
    rows = rows_of_engine([first, second, job("absent", [], "no")], audio_seconds=100.0)
    assert [row["system"] for row in rows] == ["dense", "sparse"]
    assert rows[0]["rtf"] == 0.06 and rows[0]["faster"] == 1.0
    assert rows[1]["rtf"] == 0.03 and rows[1]["faster"] == 2.0  # median of 2, 2, 2, 4, 2, 0.5
    assert (rows[1]["low"], rows[1]["high"], rows[1]["rounds"]) == (0.02, 0.28, 3)


def test_columns_of_words_are_there_where_words_were_counted():
    rows = rows_of_engine([job("dense", [[2.0]]), job("sparse", [[1.0]])], 10.0)
    assert "%WER" not in encoder_table(rows)
    rows[1].update(wer=12.5, ins=1, sub=2, other_words=3, **{"del": 4})
    lines = [[cell.strip() for cell in line.split("|")[1:-1]] for line in encoder_table(rows).splitlines()]
    assert len(lines) == 4 and {len(line) for line in lines} == {14}
    assert lines[2][-5:] == ["-"] * 5 and lines[3][-5:] == ["12.50", "1", "4", "2", "3"]
    assert lines[3][4:7] == ["0.100000", "0.100000..0.100000", "2.00 x dense"]
    (alone,) = rows_of_engine([job("dense", [], "no zeros"), job("sparse", [[1.0]])], 10.0)
    assert alone["faster"] is None and " x " not in encoder_table([alone])  # without the first system no ratio


class Letters:
    """A tokenizer whose pieces are words."""

    blank_id, unk_id = 0, 1

    def decode(self, ids):
        return " ".join("abcdefgh"[number] for number in ids)


@pytest.mark.parametrize("search", ["greedy_search", "modified_beam_search"])
def test_recognition_in_batches_is_that_of_single_utterances(search):
    model = small_transducer()
    model.joiner.output_linear.bias[0] -= 1.0  # random weights that say something
    features = [log_mel(20 + 13 * n % 90) for n in range(40)]
    encode = compile_encoder(model.encoder, "torch")
    texts = encoders.recognise(encode, model, features, Letters(), search, 4)
    assert len(set(texts)) > 3
    for text, x in zip(texts, features, strict=True):
        out = encode(x)[None]
        alone = get_search(search)(model, out, torch.tensor([out.shape[1]]), beam=4, blank_id=0, unk_id=1)[0][0]
        assert text == Letters().decode(alone.tokens)


@pytest.mark.parametrize("outputs, inputs, frames", [(16, 8, 1), (19, 33, 62), (192, 96, 125)])
def test_the_dense_product_is_the_product(outputs, inputs, frames):
    rng = np.random.default_rng(0)
    shapes = ((outputs, inputs), (inputs, frames), outputs)
    weight, x, bias = (rng.standard_normal(shape).astype(np.float32) for shape in shapes)
    np.testing.assert_allclose(
        dense_product(weight, bias, x)(), weight.astype(np.float64) @ x + bias[:, None], atol=1e-4
    )
