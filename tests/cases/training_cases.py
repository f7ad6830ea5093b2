"""What tests of training read of a run, and how they stop one."""

import contextlib
import json

import pytest

from rnnt_kd.training import checkpoint


def metrics(system_dir, kind=None):
    """Lines of metrics.jsonl without wall-clock times; of one kind, where it is named."""
    lines = [json.loads(line) for line in (system_dir / "metrics.jsonl").read_text().splitlines()]
    chosen = [line for line in lines if kind in (None, line["kind"])]
    return [{key: value for key, value in line.items() if key != "seconds"} for line in chosen]


def system_json(system_dir):
    """What is said of a finished system."""
    return json.loads((system_dir / "system.json").read_text())


def whole_lattice(model, features, lens, labels):
    """Joiner logits of every node, (B, T, S + 1, C) float64, and the frames of each utterance."""
    encoder_out, encoder_lens = model.encode(features, lens)
    am, lm = model.joiner.encoder_proj(encoder_out), model.joiner.predictor_proj(model.predict(labels))
    return model.joiner(am[:, :, None], lm[:, None]).double(), encoder_lens.tolist()


@contextlib.contextmanager
def interrupted_after(saves):
    """Ctrl-C instead of the checkpoint after so many."""
    real, done = checkpoint.save_checkpoint, 0

    def save(*arguments):
        nonlocal done
        done += 1
        if done > saves:
            raise KeyboardInterrupt
        real(*arguments)

    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(checkpoint, "save_checkpoint", save)
        yield


def train_with_stops(corpus, config, folder, saves, **options):
    """To the end, stopped first instead of each of these checkpoints, counted from the last stop."""
    for number in saves:
        with interrupted_after(number):
            corpus.train(config, folder, **options)
    corpus.train(config, folder, **options)


def assert_same_end(one, other):
    """Two runs said the same on their way and ended with the same bits."""
    assert metrics(one) == metrics(other)
    assert (one / "model.safetensors").read_bytes() == (other / "model.safetensors").read_bytes()


def goes_on_the_same(corpus, config, folder, saves, **options):
    """At once (folder/whole), and stopped instead of the checkpoint after so many (folder/stopped): the same end."""
    whole, stopped = folder / "whole", folder / "stopped"
    corpus.train(config, whole, **options)
    with interrupted_after(saves):
        corpus.train(config, stopped, **options)
    assert any("resumes from step-" in line for line in corpus.train(config, stopped, **options))
    assert_same_end(whole, stopped)
