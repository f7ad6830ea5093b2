"""``python -m rnnt_kd.bin.decode --chunk-frames`` on a streaming system with random weights."""

import json
import shutil

import pytest
import torch
from system_cases import noise_corpus, random_system

from rnnt_kd.bin import decode
from rnnt_kd.config import ModelConfig
from rnnt_kd.config_io import read_system_config, write_system_config
from rnnt_kd.data.dataset import make_dataloader
from rnnt_kd.decoding.lookup import get_search
from rnnt_kd.scoring.emissions import read_emissions
from rnnt_kd.systems.store import load_system
from rnnt_kd.text.tokenizer import Tokenizer

TEXTS = {"a-1": "one two", "a-2": "two", "b-1": "three ONE"}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """cuts, bpe, and a streaming system."""
    folder = tmp_path_factory.mktemp("stream")
    tokenizer = noise_corpus(folder, TEXTS, lambda index: 30000 + 4000 * index)
    model = ModelConfig("streaming_conformer", encoder_options={"chunk_frames": 4, "left_frames": 8})
    random_system(folder / "exp/stream", tokenizer, model=model, peak=4.0)
    return folder / "exp"


def run(made, out_dir, *more, system="stream"):
    options = ["--system-dir", made / system, "--cuts", made / "cuts/test.jsonl.gz", "--bpe-dir", made / "bpe"]
    options += ["--out-dir", out_dir, "--test-set", "test", "--device", "cpu", "--search", "greedy_search", *more]
    decode.main([str(part) for part in options])
    lines = (out_dir / "tokens-test.jsonl").read_text().splitlines()
    found = {item["id"]: (item["tokens"], item["timestamps"]) for item in map(json.loads, lines)}
    return found, json.loads((out_dir / "decode.json").read_text())


@pytest.mark.parametrize("chunk", [None, 4, 6, 0])
def test_chunks_are_those_asked_for(made, tmp_path, chunk):
    found, record = run(made, tmp_path, *(() if chunk is None else ("--chunk-frames", chunk)))
    assert record.get("chunk_frames") == chunk
    model, _ = load_system(made / "stream")
    model.encoder.eval_chunk_frames = 4 if chunk is None else chunk
    pieces = Tokenizer.load(made / "bpe").pieces()
    for batch in make_dataloader(made / "cuts/test.jsonl.gz", batch_seconds=0.1):
        with torch.no_grad():
            out, lens = model.encode(batch.features, batch.feature_lens)
        best = get_search("greedy_search")(model, out, lens)[0][0]
        times = [round(0.04 * time, 4) for time in best.timestamps]
        assert found[batch.utterance_ids[0]] == ([pieces[token] for token in best.tokens], times)
    assert read_emissions(tmp_path / "tokens-test.jsonl").keys() == TEXTS.keys()


def test_a_negative_chunk_and_a_system_of_whole_utterances_are_one_line(made, tmp_path, capsys):
    with pytest.raises(SystemExit):
        run(made, tmp_path / "x", "--chunk-frames", -1)
    assert "--chunk-frames: -1" in capsys.readouterr().err
    config = read_system_config(made / "stream/config.yaml")
    config.model = ModelConfig("conformer")
    shutil.copytree(made / "stream", made / "offline")
    write_system_config(made / "offline/config.yaml", config)
    with pytest.raises(SystemExit):
        run(made, tmp_path / "x", "--chunk-frames", 8, system="offline")
    assert "which sees the whole utterance" in capsys.readouterr().err
    assert not (tmp_path / "x" / "decode.json").exists()
