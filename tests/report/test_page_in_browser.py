"""The page in headless Chromium: no error, the scorer's figures, sorting, searching, every width and scheme."""

import json
import math
import shutil

import pytest

pytest.importorskip("jinja2", reason="the page needs Jinja2: pip install 'rnnt-kd[report]'")
pytest.importorskip("matplotlib", reason="the page needs matplotlib: pip install 'rnnt-kd[report]'")
pytest.importorskip("selenium", reason="the browser is driven by selenium: pip install selenium")

from lattice_pictures import utterance_lattice
from report_cases import make_experiment, make_study
from selenium import webdriver

from rnnt_kd.bin import report
from rnnt_kd.report.lattice_data import lattices_dir, write_lattice


@pytest.fixture(scope="module")
def experiment(tmp_path_factory):
    if not shutil.which("chromium") or not shutil.which("chromedriver"):
        pytest.skip("chromium and chromedriver are not installed (Debian: chromium, chromium-driver)")
    folder = make_experiment(tmp_path_factory.mktemp("exp"))
    make_study(folder)
    for number in (1, 2):
        item = utterance_lattice(number, utterance=f"spk{number}-utt0{number}", order=number, T=60)
        write_lattice(lattices_dir(folder, "sparse90_kd", "test"), item)
    report.main(["--exp-dir", str(folder), "--test-sets", "test", "--corpus", "synth"])
    return folder


@pytest.fixture(scope="module")
def driver(experiment):
    options = webdriver.ChromeOptions()
    options.binary_location = shutil.which("chromium")
    for argument in ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    made = webdriver.Chrome(options=options, service=webdriver.ChromeService(shutil.which("chromedriver")))
    yield made
    made.quit()


@pytest.fixture
def browser(driver, experiment):
    driver.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
    driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "", "features": []})
    driver.get((experiment / "report" / "index.html").as_uri())
    return driver


def test_it_opens_without_an_error_and_asks_for_nothing_else(browser):
    assert browser.execute_script("return document.documentElement.dataset.ready") == "yes"
    assert browser.get_log("browser") == []
    loaded = browser.execute_script("return performance.getEntriesByType('resource').map(e => e.name)")
    assert [name for name in loaded if not name.startswith("data:")] == []


def test_the_figures_are_the_scorers(browser, experiment):
    table = browser.execute_script(
        """const heads = [...document.querySelectorAll('#system-table thead th')].map(h => h.textContent.trim());
        return [...document.querySelectorAll('#system-table tbody tr')].map(row => Object.fromEntries(
          [...row.children].map((cell, i) => [heads[i], cell.dataset.value ?? cell.textContent.trim()])));"""
    )
    assert [row["system"] for row in table] == ["teacher", "sparse90", "sparse90_kd", "small", "small_kd"]
    for row in table[:-1]:
        folder = experiment / "teacher" if row["system"] == "teacher" else experiment / "students" / row["system"]
        scored = json.loads((folder / "decode_test_greedy_search" / "wer-test.json").read_text())
        for shown, key in (("%WER", "wer"), ("ins", "ins"), ("del", "del"), ("sub", "sub"), ("words", "words")):
            assert float(row[shown]) == scored[key]
        assert float(row["95 %"]) == scored["ci95"][0]
        assert row["p"] == "–" if scored["p_value"] is None else float(row["p"]) == scored["p_value"]
    assert table[-1]["%WER"] == "–" and table[-1]["state"] == "training is not finished"
    twin, kd = (json.loads(path.read_text())["wer"] for path in (
        experiment / "students" / name / "decode_test_greedy_search" / "wer-test.json" for name in ("sparse90", "sparse90_kd")
    ))  # fmt: skip
    change = browser.execute_script("return document.querySelector('#pairs tbody tr').children[5].dataset.value")
    assert float(change) == pytest.approx(100 * (kd - twin) / twin)
    rates = browser.execute_script(
        "return [...document.querySelectorAll('table.study tbody tr')].map(r => r.children[3].textContent)"
    )
    assert rates == ["20.25", "15.12", "–"]


def test_errors_of_the_utterances_add_up_to_the_scorers(browser, experiment):
    rows = browser.execute_script(
        """return [...document.querySelectorAll('#utterance-table tbody tr')].map(row => ({
          errors: Number(row.children[5].textContent), twin: Number(row.children[4].textContent),
          gain: Number(row.children[3].dataset.value), marks: row.children[7].querySelectorAll('.sub, .del, .ins').length}));"""
    )
    for key, name in (("errors", "sparse90_kd"), ("twin", "sparse90")):
        path = experiment / "students" / name / "decode_test_greedy_search" / "wer-test.json"
        assert sum(row[key] for row in rows) == json.loads(path.read_text())["errors"]
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

    before, _ = column(3, False)
    falling, sort = column(3, True)
    assert sort == "descending" and falling[-1] == "–"
    assert numbers(falling)[:-1] == sorted(numbers(before)[:-1], reverse=True) != numbers(before)[:-1]
    rising, sort = column(3, True)
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
    assert len(everything) == 12 and said == "12 utterances"
    for text in ("utt07", "SPK1", "march", "spk2 zero"):
        rows, said = found(text)
        expected = [row for row in everything if all(word in row.lower() for word in text.lower().split())]
        assert rows == expected and 0 < len(rows) < 12 and said.startswith(str(len(rows)))
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
def test_nothing_sticks_out_and_text_can_be_read(browser, width, scheme):
    browser.execute_cdp_cmd(
        "Emulation.setDeviceMetricsOverride",
        {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 600},
    )
    browser.execute_cdp_cmd(
        "Emulation.setEmulatedMedia", {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
    )
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


def test_on_paper_the_tools_are_gone(browser):
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "print"})
    shown = browser.execute_script(
        "return ['nav', '.tools', 'audio', '#system-table'].map(s => getComputedStyle(document.querySelector(s)).display)"
    )
    assert shown == ["none", "none", "none", "table"]
