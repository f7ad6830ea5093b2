"""How training went: every term of the loss, and the sparsity, against the steps."""

from typing import Any, Dict, Iterator, List, Sequence, Tuple

import numpy as np

from rnnt_kd.report.plots import style
from rnnt_kd.report.plots.inline_svg import PixelFigure, pixel_figure
from rnnt_kd.report.plots.style import KINDS, WIDTH, Plot, legend
from rnnt_kd.report.read import FinishedExperiment, FinishedSystem

POINTS = 80  # of a line; training steps between two are averaged
MOST = 6  # systems in a picture of curves
TERMS = {  # of metrics.jsonl, in words
    "loss": "all terms together",
    "pruned_loss": "pruned transducer loss",
    "simple_loss": "simple transducer loss",
    "ctc_loss": "CTC loss",
    "kd_loss": "distillation",
    "features_loss": "distillation of layers",
    "consistency_loss": "two views, lattice",
    "ctc_consistency_loss": "two views, CTC",
    "entropy_loss": "entropy of the alignments",
}
PANEL, TITLE, GAP = 82, 18, 8


def learning(experiment: FinishedExperiment) -> Iterator[Plot]:
    """Every term of the loss against the steps, a system and its distilled twins together."""
    for family, systems in experiment.families().items():
        drawn, more = systems[:MOST], len(systems) - MOST
        terms = [term for term in TERMS if any(_points(system.metrics, "train", term)[1].any() for system in drawn)]
        if terms:
            figure, words = _panels(drawn, terms)
            note = "Lines: training, mean of a frame's loss. Marks: dev set." + _which_seed(systems)
            note += f" {more} more distilled twins are not drawn." if more > 0 else ""
            yield style.finished(figure, f"Learning curves: {family}", words, note)


def schedule(experiment: FinishedExperiment) -> Iterator[Plot]:
    """The target sparsity at each step, and what the finished weights have."""
    for family, systems in experiment.families().items():
        drawn = [(system, *_points(system.metrics, "train", "target_sparsity")) for system in systems[:MOST]]
        drawn = [item for item in drawn if len(item[1])]
        if not drawn:
            continue
        figure = pixel_figure(WIDTH, 240)
        ax = figure.add_axes((38, 44, WIDTH - 52, 158))
        for system, steps, values in drawn:
            kind, measured = KINDS[system.kind], system.measured("sparsity_measured")
            ax.plot(*_averaged(steps, values * 100), color=kind.colour, linestyle=kind.dashes, linewidth=1.4)
            if measured:
                ax.plot(steps[-1], 100 * measured, kind.mark, color=kind.colour, markersize=6)
        ax.set_ylim(0, 104)
        style.quiet(ax)
        ax.locator_params(axis="x", nbins=5)
        style.label(ax, "steps", "% zeros: target as a line, measured at the end as a mark")
        legend(ax, {system.kind for system, *_ in drawn}, lines=True, bbox_to_anchor=(-0.08, 1.1))
        words = "; ".join(
            f"{system.name} {100 * values[-1]:.1f} % at step {steps[-1]}" for system, steps, values in drawn
        )
        yield style.finished(figure, f"Sparsity against step: {family}", words, _which_seed(systems).strip())


def matrices(experiment: FinishedExperiment) -> Iterator[Plot]:
    """The zeros of every weight matrix, a mark a system."""
    for family, systems in experiment.families().items():
        systems = [system for system in systems if system.listed.sparsity and _share(system.matrices)]  # else cut out
        if not systems:
            continue
        names = list(dict.fromkeys(name for system in systems for name in system.matrices))
        shown = [_short(name) for name in names]
        figure, left = pixel_figure(WIDTH, 44 + 13 * len(names) + 34), min(210.0, style.left_of(shown) - 8)
        ax = figure.add_axes((left, 40, WIDTH - left - 14, 13 * len(names)))
        for system in systems:
            kind = KINDS[system.kind]
            zeros = {name: 100.0 * (1 - kept / total) for name, (kept, total) in system.matrices.items()}
            places = [names.index(name) for name in zeros]
            ax.plot(list(zeros.values()), places, kind.mark, color=kind.colour, markersize=4, alpha=0.75)
        ax.set_ylim(len(names) - 0.5, -0.5)
        ax.set_xlim(-3, 103)
        style.quiet(ax)
        ax.set_yticks(range(len(names)), shown, fontsize=9.5)
        style.label(ax, "% zeros")
        kinds = {system.kind for system in systems}
        legend(ax, kinds, ncols=1, loc="lower right", bbox_to_anchor=(1, 1.0), labelspacing=0.1)
        words = "; ".join(f"{one.name} {_share(one.matrices):.1f} % of {len(one.matrices)} matrices" for one in systems)
        yield style.finished(figure, f"Zeros of each matrix: {family}", words, _which_seed(systems).strip())


def cost(experiment: FinishedExperiment) -> Iterator[Plot]:
    """Milliseconds that a training step takes, without and with a teacher."""
    timed = []
    for system in experiment.systems:
        steps = max((line["step"] for line in system.metrics), default=0)
        seconds = system.measured("train_seconds")
        if seconds and steps and system.kind != "teacher":
            timed.append((system, 1000.0 * seconds / steps))
    if not any(system.kind in ("kd", "online") for system, _ in timed):
        return
    figure, ax = style.bar_axes([system.name for system, _ in timed], right=46)
    for place, (system, value) in enumerate(timed):
        ax.barh(place, value, height=0.62, color=KINDS[system.kind].colour, alpha=0.8, linewidth=0)
        style.figure_beside(ax, place, f"{value:.0f}")
    style.label(ax, "milliseconds a step")
    words = ", ".join(f"{system.name} {value:.0f}" for system, value in timed)
    note = "With the cache the teacher does not run; online it runs in every step."
    yield style.finished(figure, "What the teacher costs in training", words, note)


def _panels(systems: Sequence[FinishedSystem], terms: Sequence[str]) -> Tuple[PixelFigure, str]:
    """A panel for each term, train as a line, dev as marks; and the picture in words."""
    figure = pixel_figure(WIDTH, 34 + len(terms) * (TITLE + PANEL + GAP) + 30)
    words = []
    for place, term in enumerate(terms):
        ax = figure.add_axes((38, 34 + TITLE + place * (TITLE + PANEL + GAP), WIDTH - 52, PANEL))
        late: List[float] = []
        for system in systems:
            kind = KINDS[system.kind]
            steps, values = _points(system.metrics, "train", term)
            if not values.any():
                continue
            drawn_steps, drawn = _averaged(steps, values)
            ax.plot(drawn_steps, drawn, color=kind.colour, linestyle=kind.dashes, linewidth=1.3)
            late += drawn[len(drawn) // 20 :].tolist()
            dev_steps, dev = _points(system.metrics, "dev", term)
            ax.plot(dev_steps, dev, kind.mark, color=kind.colour, markersize=3, linestyle="none")
            late += dev.tolist()
            words.append(f"{system.name} {TERMS[term]} at step {steps[-1]}: {values[-10:].mean():.3f}")
        if late:  # the first steps are far above all others
            ax.set_ylim(0, 1.1 * float(np.percentile(late, 97)) or 1)
        style.quiet(ax)
        ax.locator_params(axis="y", nbins=4)
        style.label(ax, "steps" if place == len(terms) - 1 else "", TERMS[term])
        if place < len(terms) - 1:
            ax.set_xticklabels([])
        else:
            ax.locator_params(axis="x", nbins=5)
        if not place:
            legend(ax, {system.kind for system in systems}, lines=True, bbox_to_anchor=(-0.08, 1.22), columnspacing=0.9)
    return figure, "; ".join(words)


def _which_seed(systems: Sequence[FinishedSystem]) -> str:
    """A sentence where there are others."""
    seeds = {system.listed.seeds[0] for system in systems if len(system.listed.seeds) > 1}
    return f" Seed {', '.join(map(str, sorted(seeds)))} alone." if seeds else ""


def _points(metrics: Sequence[Dict[str, Any]], kind: str, key: str) -> Tuple[np.ndarray, np.ndarray]:
    lines = [line for line in metrics if line.get("kind") == kind and isinstance(line.get(key), (int, float))]
    return np.array([line["step"] for line in lines], dtype=float), np.array([line[key] for line in lines], dtype=float)


def _averaged(steps: np.ndarray, values: np.ndarray) -> Tuple[np.ndarray, np.ndarray]:
    """A curve of at most ``POINTS`` points."""
    bins = np.array_split(np.arange(len(steps)), min(POINTS, len(steps)))
    return np.array([steps[in_bin].mean() for in_bin in bins]), np.array([values[in_bin].mean() for in_bin in bins])


def _share(matrices: Dict[str, Tuple[int, int]]) -> float:
    total = sum(size for _, size in matrices.values())
    return 100.0 * (1 - sum(kept for kept, _ in matrices.values()) / total) if total else 0.0


def _short(name: str) -> str:
    for long, short in (("encoder.layers.", ""), (".weight", ""), ("feedforward", "ff"), ("convolution", "conv")):
        name = name.replace(long, short)
    return name
