"""Where on the lattice twin and student differ from the teacher, in figures over a whole test set.

Nodes are distinguished by the teacher's occupancy: ``on`` its paths (above ``ON``), ``off`` them (below ``OFF``),
``between``.  Needs torch, as ``make_lattices`` does.
"""

from pathlib import Path
from typing import Any, Dict, Mapping

import numpy as np
import torch

from rnnt_kd.data.source import open_source
from rnnt_kd.lattice import get_backend
from rnnt_kd.report.make_lattices import lattices_of, load_trio
from rnnt_kd.text.tokenizer import Tokenizer

ON, OFF = 0.5, 0.01
REGIONS = ("on", "between", "off")


def lattice_figures(
    folders: Mapping[str, Path], cuts: Path, bpe_dir: Path, device: str = "cpu", backend_name: str = "auto"
) -> Dict[str, Any]:
    """JSON values: ``utterances``, ``arcs`` (of all paths: frames and tokens), ``nodes`` by region, and for each model

    loss, kd_per_arc:  nats; minus log-probability of an utterance's text, and the distillation term weighted by
                       the teacher's occupancy, per arc.
    mean_kl:           nats a node, by region.
    kl_share:          of the sum over all nodes, by region.
    blank_at_emission, label_at_emission:  mean probability where the teacher's best path emits a token.
    blank_off:         mean probability off the teacher's paths.
    """
    tokenizer = Tokenizer.load(bpe_dir)
    models, configs = load_trio(folders, tokenizer, bpe_dir, device)
    sums = {key: dict.fromkeys(("loss", "kd", "blank", "label", "blank_off", *REGIONS), 0.0) for key in models}
    counts = dict.fromkeys(("utterances", "arcs", "emissions", *REGIONS), 0)
    places, backend = range(len(open_source(cuts))), get_backend(backend_name, torch.device(device))
    for _, ids, found in lattices_of(models, configs, tokenizer, cuts, places, backend):
        if isinstance(found, str):
            continue
        starts, views = found
        occupancy = views["teacher"].occupancy.numpy()
        path = np.concatenate((views["teacher"].path.numpy(), [[len(starts), len(ids)]]))
        frames, rows = path[:-1][np.diff(path[:, 1]) > 0].T
        emission = (frames, rows - starts.numpy()[frames])
        regions = {"on": occupancy > ON, "off": occupancy < OFF}  # both False where there is no node
        regions["between"] = ~np.isnan(occupancy) & ~regions["on"] & ~regions["off"]
        counts["utterances"] += 1
        counts["arcs"] += len(starts) + len(ids)
        counts["emissions"] += len(frames)
        for region, nodes in regions.items():
            counts[region] += int(nodes.sum())
        for key, view in views.items():
            mine, blank = sums[key], np.exp(view.log_blank.numpy())
            mine["loss"] += view.loss
            mine["kd"] += view.kd
            mine["blank"] += float(blank[emission].sum())
            mine["label"] += float(np.exp(view.log_label.numpy())[emission].sum())
            mine["blank_off"] += float(blank[regions["off"]].sum())
            for region, nodes in regions.items():
                mine[region] += float(np.nansum(view.kl.numpy()[nodes]))
    return {
        **{key: counts[key] for key in ("utterances", "arcs", "emissions")},
        "nodes": {region: counts[region] for region in REGIONS},
        **{key: _means(mine, counts) for key, mine in sums.items()},
    }


def _means(mine: Mapping[str, float], counts: Mapping[str, int]) -> Dict[str, Any]:
    total = sum(mine[region] for region in REGIONS)
    return {
        "loss": mine["loss"] / max(counts["utterances"], 1),
        "kd_per_arc": mine["kd"] / max(counts["arcs"], 1),
        "mean_kl": {region: mine[region] / max(counts[region], 1) for region in REGIONS},
        "kl_share": {region: mine[region] / total if total else 0.0 for region in REGIONS},
        "blank_at_emission": mine["blank"] / max(counts["emissions"], 1),
        "label_at_emission": mine["label"] / max(counts["emissions"], 1),
        "blank_off": mine["blank_off"] / max(counts["off"], 1),
    }
