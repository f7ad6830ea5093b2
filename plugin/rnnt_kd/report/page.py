"""The report: one HTML page that needs nothing beside itself.

    html = make_page(read_experiment(exp_dir, corpus, test_sets), exp_dir)

``page.html.j2`` says what stands where, ``page.css`` and ``page.js`` how it looks and sorts; the plots are SVG.
"""

import base64
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Dict, List, Optional, Sequence, Tuple

import jinja2

from rnnt_kd.errors import UserError
from rnnt_kd.report.lattice_data import UtteranceLattice, list_lattices, read_lattice
from rnnt_kd.report.plots import bars, curves, lattice, scatter
from rnnt_kd.report.read import Experiment, Study, System
from rnnt_kd.report.utterances import Piece, columns, compare
from rnnt_kd.scoring.summary import Row

HERE = Path(__file__).parent


@dataclass(frozen=True)
class Plot:
    title: str
    svg: str
    note: str = ""


def make_page(experiment: Experiment, exp_dir: Path) -> str:
    """The whole page.  What cannot be shown is named at its head."""
    problems = list(experiment.problems)
    comparisons = compare(experiment, problems)
    pictures = _lattices(exp_dir, problems)
    rows = [row for system in experiment.systems for row in system.rows]
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, loader=jinja2.FileSystemLoader(HERE)
    )
    text = environment.get_template("page.html.j2").render(
        corpus=experiment.corpus,
        problems=problems,
        pairs=_pairs(experiment),
        rows=rows,
        conditions=list(_conditions(experiment)),
        rate_plots=_rate_plots(experiment),
        size_plots=_size_plots(experiment),
        has_bytes=bool(experiment.sizes),
        studies=[{"name": one.name, "rows": one.rows, "plots": _study_plots(one)} for one in experiment.studies],
        training_plots=_training_plots(experiment),
        cache_bytes=experiment.cache_bytes,
        cache_shards=experiment.cache_shards,
        lattices=pictures,
        anchors={item["key"]: item["anchor"] for item in pictures},
        comparisons=comparisons,
        css=(HERE / "page.css").read_text(encoding="utf-8"),
        js=(HERE / "page.js").read_text(encoding="utf-8"),
    )
    return text.strip() + "\n"


def _pairs(experiment: Experiment) -> List[Dict[str, Any]]:
    found = []
    for system, twin in experiment.pairs():
        others = {(row.values["test_set"], row.values["search"]): row.values for row in twin.rows}
        for row in system.rows:
            values = row.values
            other = others.get((values["test_set"], values["search"]))
            if values["wer"] is None or other is None or other["wer"] is None:
                continue
            change = 100.0 * (values["wer"] - other["wer"]) / other["wer"] if other["wer"] else None
            found.append({**values, "twin_wer": other["wer"], "change": change})
    return found


def _kind_of(experiment: Experiment):
    kinds = {system.name: system.kind for system in experiment.systems}
    return lambda name: kinds.get(name, "teacher" if name == "teacher" else "kd" if "_kd" in name else "plain")


def _conditions(experiment: Experiment) -> Dict[Tuple[str, str], List[Row]]:
    """(test set, search) -> a row a system; those without a figure are in it where no search is known."""
    scored = [row for system in experiment.systems for row in system.rows]
    with_figures = [row.values for row in scored if row.values["wer"] is not None]
    keys = dict.fromkeys((values["test_set"], values["search"]) for values in with_figures)
    return {
        key: [row for row in scored if (row.values["test_set"], row.values["search"]) in (key, (key[0], None))]
        for key in keys
    }


def _rate_plots(experiment: Experiment) -> List[Plot]:
    kind_of = _kind_of(experiment)
    plots = []
    for (test_set, search), rows in _conditions(experiment).items():
        title = f"%WER on {test_set}, {_words(search)}"
        every = [row.values for row in rows]
        drawn = [(one["system"], kind_of(one["system"]), one["wer"], one["ci95"]) for one in every]
        plots.append(Plot(title, bars.draw_rates(drawn, title), "Lines: 95 % intervals."))
        scored = [row.values for row in rows if row.values["wer"] is not None and row.values["words"]]
        title = f"Kinds of errors on {test_set}, {_words(search)}"
        plots.append(Plot(title, bars.draw_errors(scored, title)))
    return plots


def _size_plots(experiment: Experiment) -> List[Plot]:
    kind_of = _kind_of(experiment)
    plots = []
    for (test_set, search), rows in _conditions(experiment).items():
        points = [
            (row.values["system"], kind_of(row.values["system"]), row.values["nonzero_params"], row.values["wer"])
            for row in rows
            if row.values["wer"] is not None and row.values["nonzero_params"]
        ]
        if points:
            title = f"%WER against non-zero parameters, {test_set}, {_words(search)}"
            note = "A line joins a system with its distilled twins."
            plots.append(Plot(title, scatter.draw_sizes(points, title), note))
    if any(row.get("wer") is not None and row["format"] in scatter.FORMATS for row in experiment.sizes):
        title = "%WER against bytes"
        note = "Names stand at a system's smallest file; its distilled twins are about as large."
        plots.append(Plot(title, scatter.draw_bytes(experiment.sizes, kind_of, title), note))
    return plots


def _study_plots(study: Study) -> List[Plot]:
    plots = []
    for test_set in dict.fromkeys(row["test_set"] for row in study.rows):
        rows = [row for row in study.rows if row["test_set"] == test_set]
        sparse = [row for row in rows if row["wer"] is not None and row.get("role") == "sparse_student"]
        if any(row.get("sparsity") for row in sparse):
            title = f"%WER against sparsity, {test_set}"
            note = "Bars: standard deviation over seeds. Six ways at most; the next picture has all systems."
            plots.append(Plot(title, scatter.draw_against_sparsity(sparse, title), note))
        drawn = []
        for row in rows:
            kind = "teacher" if row.get("role") == "teacher" else "plain" if not row.get("kd") else "kd"
            kind = "online" if kind == "kd" and row.get("kd_ranges") == "student" else kind
            drawn.append((row["system"], kind, row["wer"], None))
        points: Dict[str, List[float]] = {}
        for seed in study.seeds:
            if seed["test_set"] == test_set and seed["wer"] is not None:
                points.setdefault(seed["system"], []).append(seed["wer"])
        title = f"Mean %WER over seeds, {test_set}"
        plots.append(Plot(title, bars.draw_rates(drawn, title, points=points), "Dots: single seeds."))
    return plots


def _training_plots(experiment: Experiment) -> List[Plot]:
    families: Dict[str, List[System]] = {}
    for system in experiment.systems:
        families.setdefault(system.twin or system.name, []).append(system)
    plots: List[Plot] = []

    def add(title: str, svg: Optional[str], note: str = "") -> None:
        if svg is not None:
            plots.append(Plot(title, svg, note))

    for family, systems in families.items():
        title = f"Learning curves: {family}"
        add(title, curves.draw_curves(systems, title), "Lines: training, mean of a frame's loss. Marks: dev set.")
    for family, systems in families.items():
        title = f"Sparsity against step: {family}"
        add(title, curves.draw_schedule(systems, title))
    for family, systems in families.items():
        shown = [system for system in systems if system.matrices and system.target_sparsity]
        if shown:
            title = f"Zeros of each matrix: {family}"
            add(title, curves.draw_matrices(shown, title))
    timed = []
    for system in experiment.systems:
        steps = max((line["step"] for line in system.metrics), default=0)
        if system.train_seconds and steps and system.kind != "teacher":
            timed.append((system.name, system.kind, 1000.0 * system.train_seconds / steps))
    if any(kind in ("kd", "online") for _, kind, _ in timed):
        title = "What the teacher costs in training"
        note = "With the cache the teacher does not run; online it runs in every step."
        add(title, curves.draw_cost(timed, title), note)
    return plots


def _lattices(exp_dir: Path, problems: List[str]) -> List[Dict[str, Any]]:
    found = []
    for path in list_lattices(exp_dir):
        try:
            item = read_lattice(path)
        except UserError as error:
            problems.append(str(error))
            continue
        found.append(_lattice(item))
    return found


def _lattice(item: UtteranceLattice) -> Dict[str, Any]:
    head, lines = columns(item.ref, {key: model.hyp for key, model in item.models.items()})
    data = base64.b64encode(item.audio).decode("ascii")
    models: Sequence[Tuple[str, int, List[Piece]]] = [
        (model.name, model.errors, lines[key]) for key, model in item.models.items()
    ]
    return {
        "key": (item.system, item.test_set, item.utterance),
        "anchor": "lattice-" + re.sub(r"[^\w-]", "-", f"{item.system}-{item.test_set}-{item.utterance}"),
        "system": item.system,
        "utterance": item.utterance,
        "chosen": item.chosen,
        "duration": item.duration,
        "ref": " ".join(item.ref),
        "head": head,
        "lines": models,
        "audio": f"data:{item.audio_type};base64,{data}" if data else "",
        "svg": lattice.draw_lattice(item),
    }


def _words(search: Optional[str]) -> str:
    return (search or "").replace("_search", "").replace("_", " ")
