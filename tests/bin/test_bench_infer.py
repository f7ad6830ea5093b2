"""``python -m rnnt_kd.bin.bench_infer`` on small things: processes, table, files, errors."""

import json

import numpy as np
import pytest
import soundfile
import torch
from export_cases import TEXTS, make_system

from rnnt_kd.bin import bench_infer
from rnnt_kd.bin.bench_infer_options import chosen_systems, infer_parser
from rnnt_kd.data.kaldi_dir import write_data_dir
from rnnt_kd.text.train_bpe import train_bpe

QUICK = ["--rounds", "1", "--batches", "2"]


@pytest.fixture(scope="module")
def bench_workplace(tmp_path_factory):
    """bpe/, data/ (noise, and an utterance without audio), systems/dense, systems/sparse."""
    folder = tmp_path_factory.mktemp("infer")
    generator = np.random.default_rng(0)
    audio = {key: folder / f"{key}.wav" for key in TEXTS}
    for index, path in enumerate(audio.values()):
        soundfile.write(path, 0.05 * generator.normal(size=4800 + 5500 * index), 16000)
    write_data_dir(folder / "data", wav_scp=audio, text=TEXTS, utt2spk={key: key[0] for key in TEXTS})
    audio["a-1"].write_bytes(b"no audio")
    train_bpe([text for text in TEXTS.values() if text], 16, folder / "bpe")
    make_system(folder / "systems" / "dense", folder / "bpe")
    make_system(folder / "systems" / "sparse", folder / "bpe", sparsity=0.9, seed=2)
    return folder


def fails(arguments, capsys):
    with pytest.raises(SystemExit) as error:
        bench_infer.main([str(argument) for argument in arguments])
    assert error.value.code == 1
    lines = capsys.readouterr().err.strip().splitlines()
    assert lines[-1].startswith("error: ") and "Traceback" not in "".join(lines)
    return lines[-1]


def test_random_weights(tmp_path, capsys):
    arguments = ["--size", "tiny", "--structure", "16x1, 4x4,2:4", "--engines", "numba,torch_bsr", *QUICK]
    bench_infer.main([*arguments, "--json", str(tmp_path / "new" / "rows.json"), "--md", str(tmp_path / "rows.md")])
    out, err = capsys.readouterr()
    values = json.loads((tmp_path / "new" / "rows.json").read_text())
    rows = {(row["engine"], row["system"]): row for row in values["rows"]}
    assert set(rows) == {("numba", f"tiny {kind}") for kind in ("dense", "16x1", "4x4", "2:4")} | {
        ("torch_bsr", "tiny 4x4")
    }
    assert "torch_bsr: tiny 16x1: left out, engine torch_bsr: unstructured weights" in err
    block, dense = rows["numba", "tiny 16x1"], rows["numba", "tiny dense"]
    assert (dense["structure"], block["structure"]) == ("dense", "16x1")
    assert abs(block["sparsity"] - 0.9) < 0.01 and abs(rows["numba", "tiny 2:4"]["sparsity"] - 0.5) < 0.01
    assert block["bytes"] < 0.3 * dense["bytes"] and block["peak_bytes"] < dense["peak_bytes"]
    assert dense["faster"] == 1.0 and dense["faster_than"] == "tiny dense" and block["rtf"] > 0.0
    assert rows["torch_bsr", "tiny 4x4"]["faster"] is None and block["wer"] is None
    assert values["dense_products"]["best"] > 0.0 and values["first_call_seconds"]["numba"] > 0.0
    assert "tiny 16x1" in out and "1 thread" in out and "matrix products" in out
    assert (tmp_path / "rows.md").read_text().startswith("| engine |")


def test_trained_systems_on_speech(bench_workplace, tmp_path, capsys):
    folder = bench_workplace
    systems = [folder / "systems" / name for name in ("dense", "sparse")]
    arguments = ["--systems", *systems, "--data-dir", folder / "data", "--bpe-dir", folder / "bpe", "--search"]
    arguments += ["greedy_search", "--engines", "torch,numba,onnxruntime", "--json", tmp_path / "rows.json", *QUICK]
    bench_infer.main([str(argument) for argument in arguments])
    rows = json.loads((tmp_path / "rows.json").read_text())["rows"]
    assert [(row["engine"], row["system"]) for row in rows] == [
        (engine, system) for engine in ("torch", "numba", "onnxruntime") for system in ("dense", "sparse")
    ]
    for row in rows:
        same = next(other for other in rows if (other["engine"], other["system"]) == ("torch", row["system"]))
        assert row["other_words"] == 0 and row["errors"] == same["errors"] and row["words"] == same["words"] > 0
    assert "%WER" in capsys.readouterr().out


def test_systems_of_one_name_are_told_apart(bench_workplace, tmp_path):
    folder = bench_workplace
    other = make_system(tmp_path / "dense", folder / "bpe", seed=5)
    systems = [str(folder / "systems" / "dense"), str(other), str(folder / "systems" / "sparse")]
    arguments = infer_parser("").parse_args(["--systems", *systems])
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
        (["--size", "tiny", "--engines", "torch_bsr", "--structure", "16x1", *QUICK], ["square blocks"]),
    ],
    ids=" ".join,
)
def test_mistakes_are_one_line(arguments, words, capsys):
    line = fails(arguments, capsys)
    assert all(word in line for word in words), line


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_that_is_said(capsys):
    assert "torch finds no GPU" in fails(["--device", "cuda", "--size", "L"], capsys)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="2:4 kernels need a GPU")
def test_semi_structured(capsys):
    bench_infer.main(["--device", "cuda", "--size", "L", "--batch", "2", "--frames", "256", "--rounds", "1"])
    assert "2:4" in capsys.readouterr().out


def test_another_bpe_model(bench_workplace, tmp_path, capsys):
    train_bpe(["ANOTHER TEXT ALTOGETHER"], 14, tmp_path / "bpe")
    folder = bench_workplace
    line = fails(
        [
            *("--systems", folder / "systems" / "dense", "--data-dir", folder / "data", "--bpe-dir", tmp_path / "bpe"),
            *("--engines", "torch", *QUICK),
        ],
        capsys,
    )
    assert "another BPE model" in line
