"""A corpus of noise in icefall's layout, and toy sizes of its recipes.  Run in the environment that icefall runs in."""

import io
import random
from pathlib import Path

import numpy as np

SIZES = {
    "zipformer": "--num-encoder-layers 1,1,1,1,1,1 --feedforward-dim 64,64,64,64,64,64 --encoder-dim 32,32,48,48,32,32 "
    "--encoder-unmasked-dim 32,32,32,32,32,32 --num-heads 2,2,2,2,2,2 --decoder-dim 32 --joiner-dim 32",
    "pruned_transducer_stateless7": "--num-encoder-layers 1,1,1,1,1 --feedforward-dims 64,64,64,64,64 --encoder-dims "
    "32,32,32,32,32 --encoder-unmasked-dims 32,32,32,32,32 --attention-dims 32,32,32,32,32 --nhead 2,2,2,2,2 "
    "--decoder-dim 32 --joiner-dim 32",
    "conv_emformer_transducer_stateless2": "--encoder-dim 32 --nhead 2 --dim-feedforward 64 --num-encoder-layers 2 "
    "--memory-size 2 --chunk-length 32 --left-context-length 32 --right-context-length 8",
}
WORDS = "one two three four five six seven eight nine ten".split()


def make(folder: Path, utterances: int = 16) -> None:
    """data/lang_bpe/bpe.model and data/fbank/librispeech_cuts_*.jsonl.gz below ``folder``, named from there."""
    import sentencepiece
    from lhotse import CutSet, LilcomChunkyWriter, MonoCut, SupervisionSegment

    chance = random.Random(0)
    texts = [" ".join(chance.choices(WORDS, k=chance.randint(2, 5))) for _ in range(200)]
    model, (lang, fbank) = io.BytesIO(), (folder / "data/lang_bpe", folder / "data/fbank")
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(texts), model_writer=model, vocab_size=25, model_type="unigram",
        character_coverage=1.0, user_defined_symbols=["<blk>", "<sos/eos>"], unk_id=2, bos_id=-1, eos_id=-1,
        minloglevel=2,
    )  # fmt: skip
    lang.mkdir(parents=True), fbank.mkdir(parents=True)
    (lang / "bpe.model").write_bytes(model.getvalue())
    noise = np.random.default_rng(0)
    for part in ("train-clean-100", "dev-clean", "dev-other"):
        cuts = []
        with LilcomChunkyWriter(f"data/fbank/feats_{part}") as writer:
            for n in range(utterances if part.startswith("train") else 6):
                frames = 120 + 10 * (n % 8)
                name, seconds = f"{part}-{n}", frames / 100
                features = noise.normal(-7.0, 3.0, (frames, 80)).astype(np.float32)
                key = writer.write(name, features)
                cut = MonoCut(name, 0, seconds, 0, [SupervisionSegment(name, name, 0, seconds, text=texts[n])])
                cut.features = _features(key, name, frames, seconds, writer)
                cuts.append(cut)
        CutSet.from_cuts(cuts).to_file(fbank / f"librispeech_cuts_{part}.jsonl.gz")


def _features(key, name, frames, seconds, writer):
    from lhotse.features.base import Features

    return Features(
        type="kaldi-fbank", num_frames=frames, num_features=80, frame_shift=0.01, sampling_rate=16000, start=0,
        duration=seconds, storage_type=writer.name, storage_path=str(writer.storage_path), recording_id=name,
        storage_key=key, channels=0,
    )  # fmt: skip
