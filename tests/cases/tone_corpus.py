"""A corpus of a few seconds made of tones, a BPE model on it, and a trained teacher."""

from dataclasses import dataclass
from pathlib import Path
from typing import Optional

import numpy as np
import soundfile

from rnnt_kd.config_io import load_recipe
from rnnt_kd.data.features import compute_features
from rnnt_kd.data.kaldi_dir import write_data_dir
from rnnt_kd.systems.compose import compose
from rnnt_kd.teachers.cache_teacher import CacheSettings, cache_teacher, our_teachers
from rnnt_kd.text.tokenizer import Tokenizer
from rnnt_kd.text.train_bpe import train_bpe
from rnnt_kd.training.loop import train_system

PRESET = """
text: {vocab_size: 12, model_type: char}
training:
  epochs: 3
  batch_seconds: 6
  num_buckets: 2
  warmup_steps: 4
  pruned_loss_warmup_steps: 4
  average_best: 2
  checkpoint_every_steps: 3
  log_every_steps: 2
  prune_range: 3
teacher: {model: &model {size: tiny, encoder_options: {num_layers: 1, dim: 32, feedforward_dim: 32}, predictor_dim: 16, joiner_dim: 16}}
sparse_student: {sparsity: {end_fraction: 0.5, update_every_steps: 2}}
small_student: {model: *model}
streaming_student: {model: {<<: *model, encoder: streaming_conformer}}
"""


@dataclass
class Corpus:
    """Paths, and ``train(...)`` in this process."""

    folder: Path
    train_cuts: Path
    dev_cuts: Path
    bpe_dir: Path
    preset: Path

    def arguments(self, exp_dir: Path, entry: str, teacher_dir: Optional[Path] = None) -> list:
        """Of ``rnnt_kd.bin.train``: system x of an experiment in ``exp_dir``; it is made in ``exp_dir/trial/x/seed1``."""
        inputs = {"cuts": self.folder / "cuts", "bpe": self.bpe_dir, "trial/teacher/seed1": teacher_dir}
        for name, target in inputs.items():
            (exp_dir / name).parent.mkdir(parents=True, exist_ok=True)
            if target is not None and not (exp_dir / name).exists():
                (exp_dir / name).symlink_to(target)
        file = exp_dir / "trial.yaml"
        file.write_text(f"systems: {{teacher: {{role: teacher}}, x: {entry}}}\n")
        words = ["--config", self.preset, "--experiment", file, "--system", "x", "--exp-dir", exp_dir]
        return [*map(str, words), "--device", "cpu", "--lattice-backend", "torch"]

    def cache(self, teacher_dirs, folder: Path, overrides=(), cuts: Optional[Path] = None, **options) -> Path:
        """The cache of a teacher, or of a list of them, in ``folder``, with the settings that small students of the preset have."""
        recipe = load_recipe(self.preset, list(overrides))
        training = recipe.small_student.training
        limits = training.min_seconds, training.max_seconds
        settings = CacheSettings(training.prune_range, training.rnnt_type, recipe.kd.temperature, *limits)
        given = dict(shard_utterances=7, backend_name="torch", say=lambda line: None)
        tokenizer = Tokenizer.load(self.bpe_dir)
        folders = teacher_dirs if isinstance(teacher_dirs, list) else [teacher_dirs]
        teacher = our_teachers(folders, tokenizer, "cpu")
        cache_teacher(teacher, cuts or self.train_cuts, tokenizer, folder, settings, **{**given, **options})
        return folder

    def config(
        self, role: str = "teacher", name: str = "x", sparsity: float = 0.0, with_kd: bool = False, overrides=(), **kd
    ):
        values = {**({"sparsity": sparsity} if sparsity else {}), **({"kd": kd} if with_kd else {})}
        return compose(load_recipe(self.preset, list(overrides)), name=name, role=role, values=values)

    def train(self, config, exp_dir: Path, **options) -> list:
        """Returns the lines that were said."""
        said = []
        given = dict(
            train_cuts=self.train_cuts,
            dev_cuts=self.dev_cuts,
            tokenizer=Tokenizer.load(self.bpe_dir),
            backend_name="torch",
            say=said.append,
        )
        train_system(config, exp_dir, **{**given, **options})
        return said


def write_tones(path: Path, text: str, generator: np.random.Generator) -> None:
    """0.12 s of a tone for each letter, some noise."""
    time = np.arange(1920) / 16000.0
    letters = [np.sin(2 * np.pi * (300 + 350 * (ord(letter) - ord("a"))) * time) for letter in text.replace(" ", "f")]
    samples = 0.3 * np.concatenate(letters) + 0.01 * generator.standard_normal(1920 * len(text))
    soundfile.write(path, (samples * 32767).astype("<i2"), 16000)


def make_cuts(folder: Path, name: str, texts: dict) -> Path:
    """Cuts of utterance id -> text."""
    generator = np.random.default_rng(0)
    audio = folder / f"{name}_audio"
    audio.mkdir(parents=True)
    for utterance, text in texts.items():
        write_tones(audio / f"{utterance}.wav", text, generator)
    write_data_dir(
        folder / name,
        wav_scp={utterance: audio / f"{utterance}.wav" for utterance in texts},
        text=texts,
        utt2spk={utterance: utterance.split("-")[0] for utterance in texts},
    )
    return compute_features(folder / name, folder / "cuts", name).cuts_path


def make_tone_corpus(folder: Path) -> Corpus:
    """24 utterances to train on and 6 to validate."""
    generator = np.random.default_rng(1)

    def texts(name, count):
        lengths = generator.integers(4, 12, count)
        words = ["".join(generator.choice(list("abcde"), length)) for length in lengths]
        return {f"{name}-{index:03d}": word[:3] + " " + word[3:] for index, word in enumerate(words)}

    train, dev = texts("train", 24), texts("dev", 6)
    (folder / "preset.yaml").write_text(PRESET)
    bpe_dir = train_bpe(train.values(), 8, folder / "bpe", "char")
    return Corpus(
        folder, make_cuts(folder, "train", train), make_cuts(folder, "dev", dev), bpe_dir, folder / "preset.yaml"
    )
