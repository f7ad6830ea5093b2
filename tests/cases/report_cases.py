"""A made-up experiment on disk: a teacher, two distilled systems and their twins, one of them half trained.

No name says what a system is: that stands in experiment.json alone.
"""

import json
import random

import numpy as np
from experiment_cases import write_experiment
from safetensors.numpy import save_file

from rnnt_kd.scoring.recognitions import Recognition, write_recogs
from rnnt_kd.scoring.results import score

WORDS = ["<script>alert(1)</script>", "A&B", "SIX", "MARCH", "ZERO", "Ü"]
SIZE = (8, 10)
KD = {"variant": "collapsed", "weighting": "occupancy", "scale": 1.0, "ranges": "teacher", "temperature": 1.0}
SYSTEMS = {
    "tutor": {"role": "teacher"},
    "pruned": {"role": "sparse_student", "sparsity": 0.9},
    "pruned_taught": {"role": "sparse_student", "sparsity": 0.9, "baseline": "pruned", "kd": KD},
    "pruned_less": {"role": "sparse_student", "sparsity": 0.5},
    "little": {"role": "small_student"},
    "little_taught": {"role": "small_student", "baseline": "little", "kd": {**KD, "ranges": "student"}},
}
UNFINISHED = "little_taught"  # in training: its last line is being written


def make_experiment(folder, utterances=24, seeds=(1,), test_sets=("test",), words=WORDS):
    """Returns folder, EXP_DIR/EXPERIMENT.  Of several seeds the first alone has files; without ``words`` all is noise."""
    generator = random.Random(0)
    refs = {
        f"spk{n % 3}-utt{n:02d}": tuple(generator.choices(words, k=1 + n % 6)) if words else ()
        for n in range(utterances)
    }
    listed = write_experiment(folder, SYSTEMS, seeds, {name: folder / name for name in test_sets}).systems
    rows, singles = [], []
    for system in listed:
        if system.name == UNFINISHED:
            system.first.mkdir(parents=True)
            (system.first / "metrics.jsonl").write_text(json.dumps(metrics_line(20)) + '\n{"kind": "train", "step": 4')
        else:
            make_system(system)
        for test_set in test_sets:
            row = {"system": system.name, "test_set": test_set, "search": "greedy_search", "wer": None, "seeds": []}
            row["unfinished"] = {}
            if system.name == UNFINISHED:
                row["unfinished"] = dict.fromkeys(map(str, seeds), "not trained to the end")
            else:
                noise = random.Random(f"{system.name} {test_set}")
                recognised = [
                    Recognition(
                        key,
                        ref,
                        tuple(w for w in ref if noise.random() > 0.2)
                        + ((words or ["SIX"])[-1],) * (noise.random() < 0.2),
                    )
                    for key, ref in sorted(refs.items())
                ]
                values = make_decoding(system.first, recognised, test_set)
                row.update(_figures(system, values, seeds, rows))
                singles += [{**row, "seed": seed, "wer": values["wer"] and values["wer"] + seed - 1} for seed in seeds]
            rows.append(row)
    (folder / "summary.json").write_text(json.dumps(rows))
    (folder / "results.json").write_text(json.dumps(singles))
    return folder


def make_system(listed):
    folder = listed.first
    folder.mkdir(parents=True)
    lines = [metrics_line(step, listed.sparsity, listed.kd is not None) for step in range(20, 220, 20)]
    lines.append({"kind": "dev", "step": 200, "epoch": 1, "simple_loss": 0.5, "pruned_loss": 0.4, "ctc_loss": 0.3})
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    weights = np.zeros(SIZE, np.float32)
    weights.flat[: round(80 * (1 - listed.sparsity))] = 1.0
    save_file(
        {"encoder.linear.weight": weights, "encoder.linear.bias": np.ones(8, np.float32)}, folder / "model.safetensors"
    )


def metrics_line(step, sparsity=0.0, kd=True):
    terms = {"loss": 3.0, "simple_loss": 2.0, "pruned_loss": 1.0, "ctc_loss": 0.5, "kd_loss": 0.2 if kd else 0.0}
    line = {"kind": "train", "step": step, "epoch": 1, **{key: value * 20 / step for key, value in terms.items()}}
    line["seconds"] = step / 60
    return {**line, **({"target_sparsity": min(sparsity, sparsity * step / 100)} if sparsity else {})}


def make_decoding(system_dir, recognitions, test_set="test"):
    """Returns the scorer's figures."""
    folder = system_dir / f"decode_{test_set}_greedy_search"
    folder.mkdir()
    speakers = {item.utterance_id: item.utterance_id.partition("-")[0] for item in recognitions}
    (folder / "decode.json").write_text(json.dumps({"test_set": test_set, "search": "greedy_search", "rtf": 0.01}))
    write_recogs(folder / f"recogs-{test_set}.txt", recognitions)
    (folder / f"speakers-{test_set}.json").write_text(json.dumps(speakers))
    return score(recognitions, utt2spk=speakers, replications=200)


def _figures(system, values, seeds, rows):
    """As experiments/table.py writes them."""
    baseline = next((row for row in rows if row["system"] == system.baseline), None)
    baseline = baseline if values["wer"] is not None else None
    change = baseline and 100.0 * (values["wer"] - baseline["wer"]) / baseline["wer"]
    units = values["characters"]
    if units:
        units = {
            **units,
            "cer_sd": None,
            "relative_change": change,
            "p_value": baseline and 0.0456,
            "p_value_seeds": None,
        }
        units["baseline_cer"] = baseline and baseline["characters"]["cer"]
        units["compared_cer"] = baseline and units["cer"]
    counts = ("ins", "del", "sub")
    return {
        **{key: values[key] for key in ("wer", "words", *counts)},
        **{f"{key}_mean": float(values[key]) for key in counts},
        "too_few": values["too_few"], "characters": units, "seeds": list(seeds), "ci95": values["ci95"] if len(seeds) == 1 else None,
        "wer_sd": 0.5 if len(seeds) > 1 else None, "params": 80, "nonzero_params": round(80 * (1 - system.sparsity)),
        "sparsity_measured": system.sparsity, "train_seconds": 3.5, "rtf": 0.01, "delay_ms": None,
        "delay_ci95_ms": None, "baseline_wer": baseline and baseline["wer"], "relative_change": change,
        "compared_wer": baseline and values["wer"], "compared_seeds": list(seeds) if baseline else [],
        "p_value": baseline and 0.0123, "p_value_seeds": 0.2345 if baseline and len(seeds) > 1 else None,
    }  # fmt: skip
