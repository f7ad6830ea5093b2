"""The report: one HTML page that needs nothing beside itself.

    html = make_page(read_finished(experiment_dir))

``page.html.j2`` says what stands where, ``page.css`` and ``page.js`` how it looks and sorts; the plots are SVG.
"""

import base64
import re
from pathlib import Path
from typing import Any, Callable, Dict, Iterator, List, Sequence, Tuple

import jinja2

from rnnt_kd.errors import UserError
from rnnt_kd.report.lattice_data import UtteranceLattice, list_lattices, read_lattice
from rnnt_kd.report.plots import bars, curves, lattice, scatter
from rnnt_kd.report.plots.style import Plot
from rnnt_kd.report.read import CHARACTERS, FinishedExperiment
from rnnt_kd.report.utterances import Piece, columns, compare
from rnnt_kd.scoring.characters import has_no_blanks

HERE = Path(__file__).parent

PLOTS: Dict[str, Sequence[Callable[[FinishedExperiment], Iterator[Plot]]]] = {  # section -> what is drawn there
    "rates": (bars.rates, bars.errors),
    "size": (scatter.sizes, scatter.sparsity, scatter.file_bytes),
    "training": (curves.learning, curves.schedule, curves.matrices, curves.cost),
}


def make_page(experiment: FinishedExperiment) -> str:
    """The whole page.  What cannot be shown is named at its head."""
    problems = list(experiment.problems)
    comparisons = compare(experiment, problems)
    pictures = _lattices(experiment.folder, problems)
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, loader=jinja2.FileSystemLoader(HERE)
    )
    rows = [(system, test_set, row) for system in experiment.systems for test_set, row in system.rows.items()]
    pairs = [one for one in rows if one[0].twin and None not in (one[2]["baseline_wer"], one[2]["compared_wer"])]
    text = environment.get_template("page.html.j2").render(
        about=experiment.about,
        problems=problems,
        rows=rows,
        pairs=pairs,
        with_folds=experiment.has_folds(),
        beside=_beside(pairs),
        several=experiment.has_several_seeds(),
        few=list(dict.fromkeys(f"{name} ({row['too_few']})" for _, name, row in rows if row["too_few"])),
        no_characters=dict.fromkeys(CHARACTERS),
        plots={
            section: [plot for draw in drawings for plot in draw(experiment)] for section, drawings in PLOTS.items()
        },
        has_bytes=bool(experiment.sizes),
        cache_bytes=experiment.cache_bytes,
        cache_shards=experiment.cache_shards,
        lattices=pictures,
        anchors={item["key"]: item["anchor"] for item in pictures},
        comparisons=comparisons,
        css=(HERE / "page.css").read_text(encoding="utf-8"),
        js=(HERE / "page.js").read_text(encoding="utf-8"),
    )
    return text.strip() + "\n"


def _beside(pairs: Sequence[Any]) -> List[Tuple[Any, Dict[str, Any]]]:
    """(system, test set -> row) of distilled systems, those of a declared endpoint first."""
    found: Dict[str, Tuple[Any, Dict[str, Any]]] = {}
    for system, test_set, row in pairs:
        found.setdefault(system.name, (system, {}))[1][test_set] = row
    return sorted(found.values(), key=lambda item: not any(row["declared"] for row in item[1].values()))


def _lattices(folder: Path, problems: List[str]) -> List[Dict[str, Any]]:
    found = []
    for path in list_lattices(folder):
        try:
            item = read_lattice(path)
        except UserError as error:
            problems.append(str(error))
            continue
        found.append(_lattice(item))
    return found


def _lattice(item: UtteranceLattice) -> Dict[str, Any]:
    said = {"": item.ref, **{key: model.hyp for key, model in item.models.items()}}
    if has_no_blanks([item.ref]):
        said = {key: tuple("".join(words)) for key, words in said.items()}
    head, lines = columns(said.pop(""), said)
    svg = lattice.draw_lattice(item)
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
        "svg": svg,
        "width": re.search(r' width="([\d.]+)"', svg)[1],  # type: ignore[index]
    }
