"""The picture in a real browser: the page's colours, whole on a phone, nothing cut off."""

import pytest

pytest.importorskip("matplotlib", reason="pictures are drawn by matplotlib: pip install 'rnnt-kd[report]'")

from lattice_pictures import TOKENS, utterance_lattice

from rnnt_kd.report.plots.lattice import LEAST_WIDTH, draw_lattice

COLOURS = {"--fg": "rgb(1, 20, 3)", "--muted": "rgb(4, 5, 60)", "--grid": "rgb(70, 8, 9)"}
COLOURS |= {"--accent-2": "rgb(10, 110, 12)", "--accent-3": "rgb(13, 14, 150)"}
LONG = {"T": 60, "tokens": TOKENS * 3, "s_range": 5, "utterance": "long"}
SHORT = {"T": 12, "tokens": ("\u2581GO",), "s_range": 2, "utterance": "short"}


@pytest.fixture
def browser(show, page):
    """At the width of a phone."""
    return show(page, 390)


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    """With a long and a short utterance."""
    styles = "".join(f"{name}: {value};" for name, value in COLOURS.items())
    boxes = "".join(
        f'<div style="overflow-x: auto">{draw_lattice(utterance_lattice(**changed))}</div>' for changed in (LONG, SHORT)
    )
    page = tmp_path_factory.mktemp("page") / "index.html"
    head = "<meta charset=utf-8><meta name=viewport content='width=device-width'><link rel=icon href='data:,'>"
    page.write_text(f"<!doctype html>{head}<style>:root {{{styles}}}</style><body>{boxes}", "utf-8")
    return page


def boxes(browser, which):
    """[text, left, top, right, bottom] of every text of a picture, in its own pixels."""
    return browser.execute_script(
        """const svg = document.querySelectorAll('svg')[arguments[0]], at = svg.getBoundingClientRect();
        return [...svg.querySelectorAll('text')].map(e => { const b = e.getBoundingClientRect();
          return [e.textContent, b.left - at.left, b.top - at.top, b.right - at.left, b.bottom - at.top]; });""",
        which,
    )


def test_no_complaint_and_the_pages_colours(browser):
    assert browser.get_log("browser") == []
    used = browser.execute_script(
        """const found = new Set();
        for (const e of document.querySelectorAll('svg text, svg path')) {
          const style = getComputedStyle(e); found.add(style.fill); found.add(style.stroke); }
        return [...found];"""
    )
    assert set(COLOURS.values()) <= set(used) and "rgb(10, 11, 0)" not in used  # 0a0b00: what matplotlib was told


@pytest.mark.parametrize("which, changed", [(0, LONG), (1, SHORT)])
def test_nothing_is_cut_off_or_scaled(browser, which, changed):
    size = browser.execute_script(
        "const s = document.querySelectorAll('svg')[arguments[0]].getBoundingClientRect(); return [s.width, s.height];",
        which,
    )
    assert size[0] >= max(LEAST_WIDTH, 84 + 9 * changed["T"])
    for text, left, top, right, bottom in boxes(browser, which):
        assert left >= 0 and top >= 0 and right <= size[0] and bottom <= size[1], text


def test_the_legend_is_whole_on_a_phone(browser):
    legend = {"next token", "blank", "another token", "how probably a path passes the node", "best path", "teacher's"}
    legend |= {"kept: 5 a frame", "4 nats and more", "the teacher's best path"}
    found = {text: right for text, _, _, right, _ in boxes(browser, 0) if text in legend}
    assert set(found) == legend and max(found.values()) <= LEAST_WIDTH


def test_no_text_stands_on_another(browser):
    for which in (0, 1):
        items = boxes(browser, which)
        for index, (text, left, top, right, bottom) in enumerate(items):
            for other, left2, top2, right2, bottom2 in items[:index]:
                across, down = min(right, right2) - max(left, left2), min(bottom, bottom2) - max(top, top2)
                assert across <= 0.5 or down <= 4, f"{text} stands on {other}"  # letters are lower than their boxes
