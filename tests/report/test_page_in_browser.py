"""The page in headless Chromium: no error, the scorer's figures, sorting, searching, every width and scheme."""

import json
import math

import pytest

pytest.importorskip("jinja2", reason="the page needs Jinja2: pip install 'rnnt-kd[report]'")
pytest.importorskip("matplotlib", reason="the page needs matplotlib: pip install 'rnnt-kd[report]'")

from lattice_pictures import TOKENS, utterance_lattice
from report_cases import UNFINISHED, make_experiment

from rnnt_kd.bin import report
from rnnt_kd.report.lattice_data import lattices_dir, write_lattice
from rnnt_kd.report.plots.lattice import LEAST_WIDTH

LONG, SHORT = {"T": 60, "tokens": TOKENS * 3, "s_range": 5}, {"T": 12, "tokens": ("\u2581GO",), "s_range": 2}


@pytest.fixture(scope="module")
def experiment(chromium, tmp_path_factory):
    folder = make_experiment(tmp_path_factory.mktemp("exp") / "default")
    for number, sizes in enumerate((LONG, SHORT), 1):
        item = utterance_lattice(
            number, utterance=f"spk{number}-utt0{number}", order=number, student="pruned_taught", **sizes
        )
        write_lattice(lattices_dir(folder, "pruned_taught", "test"), item)
    report.main(["--experiment-dir", str(folder)])
    return folder


@pytest.fixture
def browser(show, experiment):
    return show(experiment / "report" / "index.html")


def test_it_opens_without_an_error_and_asks_for_nothing_else(browser):
    assert browser.execute_script("return document.documentElement.dataset.ready") == "yes"
    assert browser.get_log("browser") == []
    loaded = browser.execute_script("return performance.getEntriesByType('resource').map(e => e.name)")
    assert [name for name in loaded if not name.startswith("data:")] == []


def test_the_figures_are_those_of_the_summary(browser, experiment):
    table = browser.execute_script(
        """const heads = [...document.querySelectorAll('#system-table thead th')].map(h => h.textContent.trim());
        return [...document.querySelectorAll('#system-table tbody tr')].map(row => Object.fromEntries(
          [...row.children].map((cell, i) => [heads[i], cell.dataset.value ?? cell.textContent.trim()])));"""
    )
    summary = json.loads((experiment / "summary.json").read_text())
    assert [row["system"] for row in table] == [row["system"] for row in summary]
    for row, expected in zip(table[:-1], summary):
        for shown, key in (("%WER", "wer"), ("ins", "ins"), ("del", "del"), ("sub", "sub"), ("words", "words")):
            assert float(row[shown]) == expected[key]
        assert float(row["95 %"]) == expected["ci95"][0]
        for shown, key in (("change, %", "relative_change"), ("p, these two trainings", "p_value")):
            assert row[shown] == "–" if expected[key] is None else float(row[shown]) == expected[key]
    assert table[-1]["system"] == UNFINISHED
    assert table[-1]["%WER"] == "–" and table[-1]["state"] == "not trained to the end"
    change = browser.execute_script("return document.querySelector('#pairs tbody tr').children[4].dataset.value")
    assert float(change) == next(row for row in summary if row["system"] == "pruned_taught")["relative_change"]


def test_errors_of_the_utterances_add_up_to_those_of_the_summary(browser, experiment):
    rows = browser.execute_script(
        """return [...document.querySelectorAll('#utterance-table tbody tr')].map(row => ({
          errors: Number(row.children[5].textContent), twin: Number(row.children[4].textContent),
          gain: Number(row.children[3].dataset.value), marks: row.children[7].querySelectorAll('.sub, .del, .ins').length}));"""
    )
    summary = {row["system"]: row for row in json.loads((experiment / "summary.json").read_text())}
    for key, name in (("errors", "pruned_taught"), ("twin", "pruned")):
        assert sum(row[key] for row in rows) == sum(summary[name][error] for error in ("ins", "del", "sub"))
    assert all(row["gain"] == row["twin"] - row["errors"] and row["marks"] == row["errors"] for row in rows)
    assert len({row["gain"] for row in rows}) > 2


def test_a_click_sorts_and_another_turns_it_round(browser):
    def column(place, click):
        return browser.execute_script(
            """const table = document.getElementById('system-table');
            if (arguments[1]) table.querySelectorAll('thead th button')[arguments[0]].click();
            return [[...table.tBodies[0].rows].map(row => row.children[arguments[0]].dataset.value ?? row.children[arguments[0]].textContent),
                    table.querySelectorAll('thead th')[arguments[0]].getAttribute('aria-sort')];""",
            place, click,
        )  # fmt: skip

    def numbers(cells):
        return [math.nan if cell == "–" else float(cell) for cell in cells]

    before, _ = column(2, False)
    falling, sort = column(2, True)
    assert sort == "descending" and falling[-1] == "–"
    assert numbers(falling)[:-1] == sorted(numbers(before)[:-1], reverse=True) != numbers(before)[:-1]
    rising, sort = column(2, True)
    assert sort == "ascending" and numbers(rising)[:-1] == sorted(numbers(before)[:-1]) and rising[-1] == "–"
    names, sort = column(0, True)
    assert sort == "ascending" and names == sorted(names)


def test_search_finds_ids_speakers_and_words(browser):
    def found(text):
        return browser.execute_script(
            """const search = document.getElementById('search'); search.value = arguments[0];
            search.dispatchEvent(new Event('input'));
            return [[...document.querySelectorAll('#utterance-table tbody tr')].filter(r => r.offsetParent).map(r => r.innerText),
                    document.getElementById('shown').textContent];""",
            text,
        )

    everything, said = found("")
    assert len(everything) == 24 and said == "24 utterances"
    for text in ("utt07", "SPK1", "march", "spk2 zero"):
        rows, said = found(text)
        expected = [row for row in everything if all(word in row.lower() for word in text.lower().split())]
        assert rows == expected and 0 < len(rows) < 24 and said.startswith(str(len(rows)))
    assert found("nowhere to be found")[0] == []


def test_only_other_words_leaves_the_changed_ones(browser):
    browser.execute_script(
        "const box = document.getElementById('changed'); box.checked = true; box.dispatchEvent(new Event('input'))"
    )
    rows = browser.execute_script(
        """return [...document.querySelectorAll('#utterance-table tbody tr')].map(
          r => [!r.hidden, r.children[6].textContent !== r.children[7].textContent])"""
    )
    assert all(shown == changed for shown, changed in rows) and {shown for shown, _ in rows} == {True, False}


@pytest.mark.parametrize("width", [390, 1400])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_nothing_sticks_out_and_text_can_be_read(show, experiment, width, scheme):
    browser = show(experiment / "report" / "index.html", width, scheme)
    assert browser.execute_script("return document.documentElement.scrollWidth") <= width
    sizes = browser.execute_script(
        """return [...document.querySelectorAll('.plots svg')].map(svg => svg.getBoundingClientRect().width / svg.viewBox.baseVal.width)"""
    )
    assert len(sizes) > 5 and min(sizes) > 0.9  # plots are hardly scaled: 10 px stay 9
    colours = browser.execute_script(
        """const light = c => { const [r, g, b] = c.match(/[\\d.]+/g).map(v => { v /= 255; return v <= .04045 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4; });
             return .2126 * r + .7152 * g + .0722 * b; };
        const contrast = (a, b) => { const [x, y] = [light(a), light(b)].sort((p, q) => q - p); return (x + .05) / (y + .05); };
        const probe = document.createElement('span'); document.body.append(probe);
        const colour = name => { probe.style.color = `var(${name})`; return getComputedStyle(probe).color; };
        return Object.fromEntries(['--fg', '--muted', '--good', '--bad', '--link', '--accent-1', '--accent-4'].map(
          name => [name, contrast(colour(name), colour('--card'))]));"""
    )
    assert min(colours.values()) >= 4.5, colours  # WCAG AA
    card = browser.execute_script("return getComputedStyle(document.body).backgroundColor")
    assert (sum(map(int, card[4:-1].split(","))) < 200) == (scheme == "dark")


def test_those_who_cannot_see_are_told(browser):
    missing = browser.execute_script(
        """return [...document.querySelectorAll('svg')].filter(e => e.getAttribute('role') !== 'img' || !e.getAttribute('aria-label')).length
          + [...document.querySelectorAll('audio, input:not([type=checkbox]), select')].filter(
              e => !e.getAttribute('aria-label') && !e.closest('label')).length
          + [...document.querySelectorAll('thead th')].filter(e => e.scope !== 'col').length"""
    )
    levels = browser.execute_script("return [...document.querySelectorAll('h1,h2,h3')].map(h => Number(h.tagName[1]))")
    assert missing == 0 and levels[0] == 1 and levels.count(1) == 1
    assert all(after - before <= 1 for before, after in zip(levels, levels[1:]))
    ids = browser.execute_script("return [...document.querySelectorAll('[id]')].map(e => e.id)")
    assert len(ids) == len(set(ids))


def test_a_link_opens_the_picture_of_its_utterance(browser):
    states = browser.execute_async_script(
        """const done = arguments[0], links = document.querySelectorAll('#utterance-table a'), last = links[links.length - 1];
        const target = document.getElementById(decodeURIComponent(last.hash.slice(1))), before = target.open;
        target.open = false; last.click(); setTimeout(() => done([links.length, target.open, !!target.querySelector('audio')]), 300);"""
    )
    assert states == [2, True, True]


def test_a_phone_shows_every_sentence_whole(show, experiment):
    browser = show(experiment / "report" / "index.html", 390)
    cut = browser.execute_script(
        """return [...document.querySelectorAll('p, figcaption, h1, h2, h3, caption')].filter(e => {
          const b = e.getBoundingClientRect(); return b.right > 390 || b.left < 0 || e.closest('.scroll'); }).map(e => e.textContent);"""
    )
    assert cut == []


def test_a_wide_screen_shows_texts_and_lattice_side_by_side(show, experiment):
    places = """const item = document.querySelector('details.lattice[open]'), texts = item.querySelector('.aligned').getBoundingClientRect(),
        svg = item.querySelector('svg').getBoundingClientRect(); return [texts.right <= svg.left, texts.bottom <= svg.top];"""
    assert show(experiment / "report" / "index.html", 1400).execute_script(places) == [True, False]
    assert show(experiment / "report" / "index.html", 390).execute_script(places) == [False, True]
    width = "return document.querySelector('details.lattice[open] svg').getBoundingClientRect().width"
    phone, wide = (show(experiment / "report" / "index.html", pixels).execute_script(width) for pixels in (390, 1900))
    assert phone < wide <= 1.75 * phone + 1  # it grows into the room that is there
    empty = """return [...document.querySelectorAll('details.lattice')].map(item => { item.open = true;
      const [texts, picture] = [item.querySelector('.aligned'), item.querySelector('svg')].map(e => e.getBoundingClientRect());
      return [picture.left - texts.right, item.getBoundingClientRect().right - picture.right]; });"""
    gaps = show(experiment / "report" / "index.html", 1900).execute_script(empty)
    assert len(gaps) == 2 and max(map(max, gaps)) < 60, gaps  # also of the short utterance


def test_on_paper_the_tools_are_gone(show, experiment):
    browser = show(experiment / "report" / "index.html", media="print")
    shown = browser.execute_script(
        "return ['nav', '.tools', 'audio', '#system-table'].map(s => getComputedStyle(document.querySelector(s)).display)"
    )
    assert shown == ["none", "none", "none", "table"]


@pytest.fixture
def pictures(show, experiment):
    """Of each lattice on a phone: width, height, and [text, left, top, right, bottom] of its texts in its own pixels."""
    return show(experiment / "report" / "index.html", 390).execute_script(
        """return [...document.querySelectorAll('details.lattice')].map(item => {
          item.open = true; const svg = item.querySelector('svg'), at = svg.getBoundingClientRect();
          return [at.width, at.height, [...svg.querySelectorAll('text')].map(e => { const b = e.getBoundingClientRect();
            return [e.textContent, b.left - at.left, b.top - at.top, b.right - at.left, b.bottom - at.top]; })]; });"""
    )


def test_nothing_of_a_lattice_is_cut_off_or_scaled_and_no_text_stands_on_another(pictures):
    for (width, height, texts), sizes in zip(pictures, (LONG, SHORT), strict=True):
        assert width >= max(LEAST_WIDTH, 84 + 9 * sizes["T"]) and len(texts) > 10
        for index, (text, left, top, right, bottom) in enumerate(texts):
            assert left >= 0 and top >= 0 and right <= width and bottom <= height, text
            for other, left2, top2, right2, bottom2 in texts[:index]:
                across, down = min(right, right2) - max(left, left2), min(bottom, bottom2) - max(top, top2)
                assert across <= 0.5 or down <= 4, f"{text} stands on {other}"  # letters are lower than their boxes


def test_the_legend_of_a_lattice_is_whole_on_a_phone(pictures):
    legend = {"next token", "blank", "another token", "how probably a path passes the node", "best path", "teacher's"}
    legend |= {"kept: 5 a frame", "4 nats and more", "the teacher's best path"}
    found = {text: right for text, _, _, right, _ in pictures[0][2] if text in legend}
    assert set(found) == legend and max(found.values()) <= LEAST_WIDTH
