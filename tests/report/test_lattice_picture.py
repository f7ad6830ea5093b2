"""The picture shows the figures it was given, in the page's colours, and nothing of it leaks into the page."""

import base64
import io
import re
import xml.etree.ElementTree as ElementTree

import numpy as np
import pytest

pytest.importorskip("matplotlib", reason="pictures are drawn by matplotlib: pip install 'rnnt-kd[report]'")

from lattice_pictures import TOKENS, utterance_lattice
from PIL import Image

from rnnt_kd.report.plots.lattice import BLANK, DIVERGENCE, LABEL, MOST_KL, REST, draw_lattice

SVG, XLINK = "{http://www.w3.org/2000/svg}", "{http://www.w3.org/1999/xlink}"


@pytest.fixture(scope="module")
def item():
    return utterance_lattice()


@pytest.fixture(scope="module")
def svg(item):
    return draw_lattice(item)


def images(svg):
    """RGBA of each panel's cells, row 0 at the bottom: [symbol, frame]."""
    found = []
    for element in ElementTree.fromstring(svg).iter(f"{SVG}image"):
        png = base64.b64decode(element.get(f"{XLINK}href").split(",", 1)[1])
        pixels = np.asarray(Image.open(io.BytesIO(png)).convert("RGBA"), dtype=float)
        scale = [float(x) for x in re.findall(r"-?[\d.]+", element.get("transform"))]
        assert scale[0] > 0 and scale[3] < 0, "drawn upside down: the first row of the file is the lowest"
        found.append(pixels)
    return found


def test_one_element_with_words_for_those_who_cannot_see(item, svg):
    root = ElementTree.fromstring(svg)
    assert root.tag == f"{SVG}svg" and root.get("role") == "img" and svg.startswith("<svg")
    label = root.get("aria-label")
    assert "spk-utt1" in label and "MARCH SIXTY" in label and "sparse90 (no distillation): 2 errors" in label
    for key in ("twin", "student"):
        kl = item.models[key].kl
        frame, place = np.unravel_index(np.nanargmax(kl), kl.shape)
        row = int(item.starts[frame]) + place
        where = f"before {TOKENS[row]}" if row < len(TOKENS) else "after the last token"
        assert f"teacher: {np.nanmax(kl):.2f} nats at {0.04 * frame:.2f} s, {where}." in label


def test_cells_hold_the_posteriors_and_the_occupancy(item, svg):
    panels = images(svg)
    assert len(panels) == 5
    for panel, model in zip(panels, item.models.values()):
        assert panel.shape == (len(TOKENS) + 1, 20, 4)
        seen = np.zeros(panel.shape[:2], dtype=bool)
        for t in range(20):
            for k in range(3):
                row = int(item.starts[t]) + k
                blank, label = np.exp(model.log_blank[t, k]), np.exp(model.log_label[t, k])
                mixed = blank * np.array(BLANK) + label * np.array(LABEL) + (1 - blank - label) * np.array(REST)
                np.testing.assert_allclose(panel[row, t, :3], mixed, atol=1.1)
                seen[row, t] = True
        assert (panel[~seen] == 0).all() and (panel[seen][:, 3] > 0).all()
        occupancy = [model.occupancy[t, k] for t in range(20) for k in range(3)]
        opacity = [panel[int(item.starts[t]) + k, t, 3] for t in range(20) for k in range(3)]
        assert (np.diff(np.array(opacity)[np.argsort(occupancy)]) >= 0).all() and max(opacity) > min(opacity) + 100


def test_divergence_is_opacity(item, svg):
    for panel, key in zip(images(svg)[3:], ("twin", "student")):
        for t in range(20):
            for k in range(3):
                red, green, blue, opacity = panel[int(item.starts[t]) + k, t]
                expected = 255 * min(1.0, item.models[key].kl[t, k] / MOST_KL) ** 0.5
                assert opacity == pytest.approx(expected, abs=1.1)
                assert opacity < 2 or np.allclose((red, green, blue), DIVERGENCE, atol=1)


def lines(svg):
    """Vertices of every path without fill, rounded: [(x, y), ...]."""
    found = []
    for element in ElementTree.fromstring(svg).iter(f"{SVG}path"):
        if "fill: none; stroke" in element.get("style", ""):
            numbers = [float(x) for x in re.findall(r"-?[\d.]+", element.get("d"))]
            found.append(list(zip(numbers[::2], numbers[1::2])))
    return found


def corners(path, end, panel_bottom, cell):
    """Where a path turns, in pixels: ``cell`` a frame, 13 a symbol; the left edge is at 84."""
    nodes = [(t + 0.5, s + 0.5) for t, s in path] + [(end[0], end[1] + 0.5)]
    kept = [nodes[0]]
    for before, here, after in zip(nodes, nodes[1:], nodes[2:]):
        if (before[0] == here[0]) != (here[0] == after[0]):
            kept.append(here)
    return [(84 + cell * x, panel_bottom - 13 * y) for x, y in [*kept, nodes[-1]]]


def test_each_panel_has_the_models_best_path(item, svg):
    drawn = lines(svg)
    matrices = re.findall(r'transform="matrix\(([\d.]+) 0 0 -13 84 ([\d.]+)\)"', svg)
    assert len(matrices) == 5 and {float(cell) for cell, _ in matrices} == {
        (372 - 84 - 14) / 20
    }  # of a short utterance
    for (cell, bottom), key in zip(matrices, ("teacher", "twin", "student", "teacher", "teacher")):
        expected = corners(item.models[key].path.tolist(), (20, len(TOKENS)), float(bottom), float(cell))
        assert any(len(line) == len(expected) and np.allclose(line, expected, atol=0.02) for line in drawn), key


def test_labels_are_the_pieces_from_below_and_the_words(svg):
    texts = [(float(e.get("y")), e.text) for e in ElementTree.fromstring(svg).iter(f"{SVG}text")]
    assert [text for _, text in texts].count("end") == 5
    first = sorted((y, text) for y, text in texts if text in TOKENS or text == "(space)")
    assert [text for _, text in first[:6]] == ["TY", "\u2581SIX", "CH", "AR", "M", "(space)"]
    assert {"MARCH", "SIXTY"} <= {text for _, text in texts}


def test_colours_are_the_pages_and_nothing_comes_from_outside(svg):
    names = set(re.findall(r"var\((--[\w-]+), #[0-9a-f]{6}\)", svg))
    assert names == {"--fg", "--muted", "--grid", "--accent-2", "--accent-3"}
    assert "#0a0b" not in svg  # what matplotlib was told instead
    rest = re.sub(r"var\([^)]*\)", "", svg)
    assert not re.findall(r"(?:stroke|fill): #(?:000000|ffffff)", rest), "either would vanish in one of the styles"
    outside = re.findall(r'https?://[^"\s]*', svg)
    assert set(outside) == {"http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink"}, "namespaces only"
    assert "<style" not in svg and "<script" not in svg and "<!--" not in svg and "<?xml" not in svg


def test_two_pictures_in_one_page_share_no_id(svg):
    other = draw_lattice(utterance_lattice(1, utterance="spk-utt2"))
    ids, others = (re.findall(r' id="([^"]*)"', text) for text in (svg, other))
    assert ids and not set(ids) & set(others) and len(ids) == len(set(ids))
    assert set(re.findall(r"url\(#([^)]*)\)", svg)) <= set(ids)


def test_the_same_item_makes_the_same_picture(item, svg):
    assert draw_lattice(item) == svg


ODD = [{"tokens": (), "ref": ()}, {"T": 1, "tokens": ("\u2581A",), "s_range": 2}]


@pytest.mark.parametrize("changed", [*ODD, {"tokens": ("<", "&", '"', "$x$", "\\", "_"), "utterance": "a&b<c"}])
def test_any_utterance_can_be_drawn(changed):
    root = ElementTree.fromstring(draw_lattice(utterance_lattice(**changed)))
    texts = [element.text for element in root.iter(f"{SVG}text")]
    assert "end" in texts and all(token in texts for token in changed["tokens"])


def test_a_long_one_stays_small():
    assert len(draw_lattice(utterance_lattice(T=300, tokens=TOKENS * 8, s_range=5))) < 150_000
