"""Corpora of noise and systems with random weights, for the tests of commands."""

import torch
from audio_cases import noise_files

from rnnt_kd.config import ModelConfig, SystemConfig
from rnnt_kd.config_io import write_system_config
from rnnt_kd.data.features import compute_features
from rnnt_kd.data.kaldi_dir import write_data_dir
from rnnt_kd.systems.store import build_model, write_tensors
from rnnt_kd.text.tokenizer import Tokenizer
from rnnt_kd.text.train_bpe import train_bpe

SMALL = ModelConfig(size="tiny", encoder_options={"num_layers": 1, "dim": 32, "feedforward_dim": 32})


def noise_corpus(folder, texts, samples, name="test", speeds=(1.0,)):
    """data/NAME, exp/cuts/NAME and exp/bpe below ``folder``; returns the tokenizer.

    Utterance n is ``samples(n)`` samples of noise at 16 kHz; its speaker stands before the "-" of its id.
    """
    audio = noise_files(folder, {key: samples(index) for index, key in enumerate(texts)})
    speakers = {key: key.split("-")[0] for key in texts}
    data = write_data_dir(folder / "data" / name, wav_scp=audio, text=texts, utt2spk=speakers)
    compute_features(data, folder / "exp/cuts", name, list(speeds))
    train_bpe([text for text in texts.values() if text], 16, folder / "exp/bpe")
    return Tokenizer.load(folder / "exp/bpe")


def random_system(folder, tokenizer, seed=1, model=SMALL, peak=1.0, silence=0.0, **values):
    """config.yaml and model.safetensors.  ``peak`` multiplies the logits; ``silence`` moves those of blank and <unk>."""
    config = SystemConfig(model=model, vocab_size=tokenizer.vocab_size, bpe_checksum=tokenizer.checksum, **values)
    torch.manual_seed(seed)
    built = build_model(config)
    with torch.no_grad():
        built.joiner.output_linear.weight.mul_(peak)
        built.joiner.output_linear.bias[:2] += silence
    folder.mkdir(parents=True)
    write_system_config(folder / "config.yaml", config)
    write_tensors(folder / "model.safetensors", built.state_dict())
    return folder
