"""``python -m rnnt_kd.bin.decode --chunk-frames`` on a streaming system with random weights."""

import json
import shutil

import numpy as np
import pytest
import safetensors.torch
import soundfile
import torch

from rnnt_kd.bin import decode
from rnnt_kd.config import ModelConfig, SystemConfig
from rnnt_kd.config_io import read_system_config, write_system_config
from rnnt_kd.data.dataset import make_dataloader
from rnnt_kd.data.features import compute_features
from rnnt_kd.data.kaldi_dir import write_data_dir
from rnnt_kd.decoding.lookup import get_search
from rnnt_kd.decoding.streaming import StreamingRecognizer
from rnnt_kd.scoring.emissions import read_emissions
from rnnt_kd.systems.store import build_model, load_system
from rnnt_kd.text.tokenizer import Tokenizer
from rnnt_kd.text.train_bpe import train_bpe

TEXTS = {"a-1": "one two", "a-2": "two", "b-1": "three ONE"}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """cuts, bpe, and a streaming system."""
    folder = tmp_path_factory.mktemp("stream")
    generator = np.random.default_rng(0)
    for index, key in enumerate(TEXTS):
        soundfile.write(folder / f"{key}.wav", 0.1 * generator.normal(size=30000 + 4000 * index), 16000)
    audio = {key: folder / f"{key}.wav" for key in TEXTS}
    data = write_data_dir(folder / "data/test", wav_scp=audio, text=TEXTS, utt2spk={key: key[0] for key in TEXTS})
    compute_features(data, folder / "cuts", "test")
    train_bpe(TEXTS.values(), 16, folder / "bpe")
    tokenizer = Tokenizer.load(folder / "bpe")
    model_config = ModelConfig("streaming_conformer", encoder_options={"chunk_frames": 4, "left_frames": 8})
    config = SystemConfig(model=model_config, vocab_size=tokenizer.vocab_size, bpe_checksum=tokenizer.checksum)
    torch.manual_seed(1)
    model = build_model(config)
    with torch.no_grad():
        model.joiner.output_linear.weight.mul_(4)
    (folder / "stream").mkdir()
    write_system_config(folder / "stream/config.yaml", config)
    safetensors.torch.save_file(model.state_dict(), folder / "stream/model.safetensors")
    return folder


def run(made, out_dir, *more, system="stream"):
    options = ["--system-dir", made / system, "--cuts", made / "cuts/test.jsonl.gz", "--bpe-dir", made / "bpe"]
    options += ["--out-dir", out_dir, "--test-set", "test", "--device", "cpu", "--search", "greedy_search", *more]
    decode.main([str(part) for part in options])
    found = {item["id"]: (item["tokens"], item["timestamps"]) for item in map(json.loads, read_lines(out_dir))}
    return found, json.loads((out_dir / "decode.json").read_text())


def read_lines(out_dir):
    return (out_dir / "tokens-test.jsonl").read_text().splitlines()


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


def test_chunked_decoding_is_what_a_stream_hears(made, tmp_path):
    """The frames of whole chunks; in the last one the stream also sees the silence that follows."""
    found, _ = run(made, tmp_path)
    model, _ = load_system(made / "stream")
    pieces = Tokenizer.load(made / "bpe").pieces()
    compared = 0
    for batch in make_dataloader(made / "cuts/test.jsonl.gz", batch_seconds=0.1):
        recognizer = StreamingRecognizer(model, search="greedy_search")
        heard = recognizer.accept(batch.features[0])
        tokens, times = found[batch.utterance_ids[0]]
        inside = sum(time < 0.01 * recognizer.processed for time in times)
        assert tokens[:inside] == [pieces[token] for token in heard.tokens]
        assert times[:inside] == [round(0.04 * time, 4) for time in heard.timestamps]
        compared += inside
    assert compared > 10


def test_what_it_refuses(made, tmp_path, capsys):
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
