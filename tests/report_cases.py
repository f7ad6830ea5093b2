"""A made-up experiment on disk: a teacher, two distilled systems and their twins, one of them half trained."""

import json
import random

import numpy as np
from safetensors.numpy import save_file

from rnnt_kd.scoring.recognitions import Recognition, write_recogs
from rnnt_kd.scoring.results import score

WORDS = ["<script>alert(1)</script>", "A&B", "SIX", "MARCH", "ZERO", "Ü"]
SIZE = (8, 10)


def make_experiment(folder, utterances=12):
    """Returns folder.  small_kd is in training: its last line is being written."""
    generator = random.Random(0)
    refs = {f"spk{n % 3}-utt{n:02d}": tuple(generator.choices(WORDS, k=1 + n % 6)) for n in range(utterances)}
    recognised = {}
    for place, name in enumerate(("teacher", "sparse90", "sparse90_kd", "small")):
        system_dir = folder / "teacher" if name == "teacher" else folder / "students" / name
        make_system(system_dir, name, sparsity=0.9 if "sparse" in name else 0.0, kept=8)
        noise = random.Random(place)
        recognised[name] = [
            Recognition(
                key, ref, tuple(word for word in ref if noise.random() > 0.2) + ("SIX",) * (noise.random() < 0.2)
            )
            for key, ref in sorted(refs.items())
        ]
        make_decoding(system_dir, recognised[name], recognised["sparse90"] if name == "sparse90_kd" else None)
    half = folder / "students" / "small_kd"
    half.mkdir()
    (half / "metrics.jsonl").write_text(json.dumps(metrics_line(20)) + '\n{"kind": "train", "step": 4')
    return folder


def make_system(folder, name, sparsity, kept):
    folder.mkdir(parents=True)
    values = {
        "params": 80,
        "nonzero_params": kept if sparsity else 80,
        "sparsity": sparsity,
        "kd": "_kd" in name,
        "train_seconds": 3.5,
    }
    (folder / "system.json").write_text(json.dumps({"system": name, **values}))
    (folder / "config.yaml").write_text(f"name: {name}\ntarget_sparsity: {sparsity}\n")
    lines = [metrics_line(step, sparsity, "_kd" in name) for step in range(20, 220, 20)]
    lines.append({"kind": "dev", "step": 200, "epoch": 1, "simple_loss": 0.5, "pruned_loss": 0.4, "ctc_loss": 0.3})
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    weights = np.zeros(SIZE, np.float32)
    weights.flat[: kept if sparsity else 80] = 1.0
    save_file(
        {"encoder.linear.weight": weights, "encoder.linear.bias": np.ones(8, np.float32)}, folder / "model.safetensors"
    )


def metrics_line(step, sparsity=0.0, kd=True):
    terms = {"loss": 3.0, "simple_loss": 2.0, "pruned_loss": 1.0, "ctc_loss": 0.5, "kd_loss": 0.2 if kd else 0.0}
    line = {"kind": "train", "step": step, "epoch": 1, **{key: value * 20 / step for key, value in terms.items()}}
    return {
        **line,
        "seconds": step / 60,
        **({"target_sparsity": min(sparsity, sparsity * step / 100)} if sparsity else {}),
    }


def make_decoding(system_dir, recognitions, baseline=None, test_set="test"):
    folder = system_dir / f"decode_{test_set}_greedy_search"
    folder.mkdir()
    speakers = {item.utterance_id: item.utterance_id.partition("-")[0] for item in recognitions}
    (folder / "decode.json").write_text(json.dumps({"test_set": test_set, "search": "greedy_search", "rtf": 0.01}))
    write_recogs(folder / f"recogs-{test_set}.txt", recognitions)
    (folder / f"speakers-{test_set}.json").write_text(json.dumps(speakers))
    values = score(recognitions, utt2spk=speakers, baseline=baseline, replications=200)
    (folder / f"wer-{test_set}.json").write_text(json.dumps(values))


def make_study(folder, name="paper"):
    """Two systems, of which one has an unfinished seed; as experiments/table.py writes them."""
    target = folder / "experiments" / name
    target.mkdir(parents=True)
    common = {"role": "sparse_student", "sparsity": 0.9, "test_set": "test", "words": 40, "nonzero_params": 8}
    rows = [
        {**common, "system": "sparse90", "kd": False, "wer": 20.25, "wer_sd": 1.5, "seeds": [1, 2], "unfinished": {}, "ins": 1, "del": 2, "sub": 3, "baseline": None, "relative_change": None, "p_value": None, "p_value_seeds": None},
        {**common, "system": "sparse90_occupancy", "kd": True, "kd_variant": "collapsed", "kd_weighting": "occupancy", "kd_scale": 2.0, "kd_ranges": "teacher", "kd_temperature": 1.0, "wer": 15.125, "wer_sd": None, "seeds": [1], "unfinished": {"2": "not trained to the end"}, "ins": 1, "del": 1, "sub": 1, "baseline": "sparse90", "relative_change": -25.3, "p_value": 0.01, "p_value_seeds": 0.2},
        {**common, "system": "sparse95", "kd": False, "sparsity": 0.95, "wer": None, "seeds": [], "unfinished": {"1": "not decoded"}, "words": None},
    ]  # fmt: skip
    seeds = [
        {"system": "sparse90", "seed": seed, "test_set": "test", "wer": wer} for seed, wer in ((1, 19.0), (2, 21.5))
    ]
    (target / "summary.json").write_text(json.dumps(rows))
    (target / "results.json").write_text(json.dumps(seeds))
