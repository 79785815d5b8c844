"""The report of a fit in a real browser: that it says what the fit found, to everybody, whatever the data hold."""

from __future__ import annotations

import math
import os
import pickle
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from report_cases import CASES, HOSTILE, digits, hostile, letters, many, mixed, wine

from softgrad.cli.report._confusion import ordered
from softgrad.cli.report._facts import figures, warnings
from softgrad.cli.report._page import render, write
from softgrad.cli.report._weights import grid
from softgrad.cli.report._wording import cut
from softgrad.cli.report._wording import text as plain
from softgrad.cli.terminal._messages import UserError
from softgrad.cli.terminal._results import Column, RegularisationPath, Training

NAMES = list(CASES)


@cache
def page(name: str) -> str:
    return render(CASES[name]())


@pytest.fixture
def picture(artefacts: Path) -> Callable[..., None]:
    """Takes a screenshot of the whole page, where somebody is to look at it: of so long a one it takes a second."""

    def take(tab: Any, name: str) -> None:
        if "SOFTGRAD_ARTEFACTS" in os.environ:
            tab.screenshot(path=artefacts / name, full_page=True)

    return take


def values(tab: Any, selector: str) -> list[float]:
    """The exact numbers in the page, in its order."""
    found = tab.evaluate(
        "(s) => [...document.querySelectorAll(s)].map((e) => e.dataset.value ?? e.querySelector('[data-value]')?.dataset.value)",
        selector,
    )
    return [float(value) for value in found if value is not None]


def same(found: Any, expected: Any) -> None:
    np.testing.assert_array_equal(np.asarray(found, dtype=float), np.asarray(expected, dtype=float))


# --- the numbers -----------------------------------------------------------------------------------------------------


def test_every_number_is_the_trainings(opened: Any) -> None:
    t = digits()
    tab = opened(page("digits"))
    last = t.evaluations[-1]
    same(
        values(tab, ".figures .value"),
        [last.accuracy, last.balanced_accuracy, last.macro_f1, last.log_loss, last.calibration_error, t.gap,
         sum(t.seconds.values())],
    )  # fmt: skip
    for k, e in enumerate(t.evaluations):
        same(
            values(tab, f"#evaluations tbody td:nth-child({k + 2})"),
            [
                e.rows,
                e.accuracy,
                e.balanced_accuracy,
                e.macro_f1,
                e.log_loss,
                *e.log_loss_interval,
                e.calibration_error,
            ],
        )
    same(values(tab, "#confusion tbody td"), last.confusion.ravel())
    same(values(tab, "#confused td:nth-child(3)"), [c.rows for c in last.confused[:12]])
    for column, of in enumerate((last.precision, last.recall, last.f1, last.support, t.counts)):
        same(values(tab, f"#per-class tbody td:nth-child({column + 2})"), of)
    for k, r in enumerate((t.uncalibrated, last.reliability)):
        assert r is not None
        table = f".reliability:nth-of-type({k + 1})"
        same(values(tab, f"{table} td"), np.column_stack([r.confidence, r.accuracy, r.weight]).ravel())
    for column, name in enumerate(("iteration", "objective", "gap", "passes", "seconds")):
        same(values(tab, f"#history tbody td:nth-child({column + 1})"), t.history[name])
    assert t.path is not None
    for column, of in ((1, t.path.Cs), (2, -t.path.scores.mean(axis=0)), (4, t.path.norms), (5, t.path.gaps)):
        same(values(tab, f"#path tbody td:nth-child({column})"), of)
    assert tab.locator("#path .chosen td").first.get_attribute("data-value") == repr(t.path.chosen)
    same(values(tab, "#counts .n"), t.counts)
    same(values(tab, "#stages .n"), list(t.seconds.values()))
    same(values(tab, "#result dd"), [t.objective, t.gap, t.temperature])
    strongest = np.sort(t.coef[3])[::-1]
    same(values(tab, ".weight:nth-of-type(4) .sides > div:first-child .n"), strongest[:8])
    wrong = [[m.probability, m.probability_true] for m in t.mistakes]
    same(values(tab, ".mistake .sure .n"), np.ravel(wrong))


def test_weights_as_a_table_and_the_columns(opened: Any) -> None:
    t = wine()
    tab = opened(page("wine"))
    same(values(tab, "#coefficients tbody td"), t.coef.T.ravel())
    same(values(tab, "#coefficients tfoot td"), t.intercept)
    norms = np.linalg.norm(t.coef, axis=0)
    same(values(tab, "#columns-norm .n"), sorted(norms, reverse=True))
    for column, of in enumerate(("missing", "distinct", "features")):
        same(values(tab, f"#columns tbody td:nth-child({column + 3})"), [getattr(c, of) for c in t.columns])


@pytest.mark.parametrize("name", NAMES)
def test_what_is_shown_is_the_number_rounded(name: str) -> None:
    """Every number of the page agrees with the exact one beside it, to the digits that it shows."""
    cells = re.findall(r'<(?:td|dd|span)[^>]* data-value="([^"]+)"[^>]*>(?:<svg.*?</svg><span>)?([^<]*)<', page(name))
    assert len(cells) > 150
    for exact, shown in cells:
        value, said = float(exact), shown.strip().replace("−", "-").replace(",", "").replace("∞", "inf")
        if said in ("", "–"):
            assert math.isnan(value) if said else value == 0  # no mistakes of the kind: an empty cell of the matrix
            continue
        match = re.fullmatch(r"(-?)(inf|(\d+)(?:\.(\d+))?(?:e([+-]\d+))?)( %| ms| s)?", said)
        assert match, (exact, shown)
        found = float(match[1] + match[2])
        if math.isinf(value):
            assert found == value
            continue
        scaled = value * {" %": 100.0, " ms": 1000.0}.get(match[6] or "", 1.0)
        step = 10.0 ** (int(match[5] or 0) - len(match[4] or ""))
        assert abs(found - scaled) <= 0.5 * step * (1 + 1e-9), (exact, shown)


# --- the page --------------------------------------------------------------------------------------------------------


_CONTRAST = """() => {
  const canvas = new OffscreenCanvas(1, 1).getContext("2d", { willReadFrequently: true });
  const parsed = new Map();
  const rgba = (colour) => {
    if (!parsed.has(colour)) {
      canvas.clearRect(0, 0, 1, 1);
      canvas.fillStyle = colour;
      canvas.fillRect(0, 0, 1, 1);
      parsed.set(colour, [...canvas.getImageData(0, 0, 1, 1).data].map((v, k) => (k === 3 ? v / 255 : v)));
    }
    return parsed.get(colour);
  };
  const over = (top, ground) => [0, 1, 2].map((k) => top[3] * top[k] + (1 - top[3]) * ground[k]);
  const grounds = new Map([[null, [255, 255, 255]]]);
  const ground = (element) => {
    if (!grounds.has(element)) {
      grounds.set(element, over(rgba(getComputedStyle(element).backgroundColor), ground(element.parentElement)));
    }
    return grounds.get(element);
  };
  const light = (c) => {
    const [r, g, b] = c.map((v) => (v / 255 <= 0.04045 ? v / 255 / 12.92 : ((v / 255 + 0.055) / 1.055) ** 2.4));
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const worst = [];
  for (const element of document.querySelectorAll("body *")) {
    if (![...element.childNodes].some((n) => n.nodeType === 3 && n.data.trim()) || !element.checkVisibility()) continue;
    const style = getComputedStyle(element);
    const below = ground(element);
    const above = over(rgba(element.closest("svg") ? style.fill : style.color), below);
    const [a, b] = [light(above), light(below)].sort((x, y) => y - x);
    worst.push([(a + 0.05) / (b + 0.05), element.tagName, element.className.baseVal ?? element.className, element.textContent.slice(0, 40)]);
  }
  return [worst.length, worst.sort((x, y) => x[0] - y[0]).slice(0, 3)];
}"""


@pytest.mark.parametrize("name", NAMES)
def test_fit_for_everybody(opened: Any, picture: Callable[..., None], name: str) -> None:
    """In one visit: silent, alone, never wider than the window, readable in light and dark, and by a screen reader."""
    tab = opened(page(name), color_scheme="light")
    picture(tab, f"report-{name}-light.png")
    _alone(tab)
    _headings_and_pictures(tab, {"digits": 10, "letters": 52}.get(name, 0))
    grounds = []
    for scheme in ("light", "dark"):
        tab.emulate_media(color_scheme=scheme)
        seen, worst = tab.evaluate(_CONTRAST)
        assert seen > 150
        assert worst[0][0] >= 4.5, (scheme, worst)
        grounds.append(tab.evaluate("getComputedStyle(document.body).backgroundColor"))
    assert grounds[0] != grounds[1]
    picture(tab, f"report-{name}-dark.png")
    for width in (1600, 700, 320):
        tab.set_viewport_size({"width": width, "height": 800})
        assert tab.evaluate("document.documentElement.scrollWidth") <= width
    picture(tab, f"report-{name}-320.png")
    tab.evaluate("for (const d of document.querySelectorAll('details')) d.open = true")
    assert tab.evaluate("document.documentElement.scrollWidth") <= 320
    # Wider things scroll in a frame that a keyboard can reach.
    assert tab.evaluate("""[...document.querySelectorAll('main *')].every((e) => {
        const style = getComputedStyle(e);
        const scrolls = e.scrollWidth > e.clientWidth + 1 && style.overflowX === 'auto'
            || e.scrollHeight > e.clientHeight + 1 && style.overflowY === 'auto';
        return !scrolls || e.tabIndex === 0 && e.ariaLabel;
    })""")


def _alone(tab: Any) -> None:
    addresses = tab.evaluate(
        "[...document.querySelectorAll('[src], [href]')].map((e) => e.getAttribute('src') ?? e.getAttribute('href'))"
    )
    assert len(addresses) > 6
    assert all(address.startswith(("data:", "#")) for address in addresses)
    ids = tab.evaluate("[...document.querySelectorAll('[id]')].map((e) => e.id)")
    assert len(set(ids)) == len(ids)
    assert tab.evaluate("[...document.querySelectorAll('nav a')].every((a) => document.querySelector(a.hash))")


def _headings_and_pictures(tab: Any, images: int) -> None:
    levels = tab.evaluate("[...document.querySelectorAll('h1, h2, h3, h4')].map((e) => Number(e.tagName[1]))")
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(after - before <= 1 for before, after in pairwise(levels))
    said = tab.evaluate(
        "[...document.querySelectorAll('svg[role=img], img')].map((e) => e.getAttribute('aria-label') ?? e.alt)"
    )
    assert len(said) >= 2 + images
    assert all(len(words) > 30 for words in said)
    assert tab.evaluate(
        "[...document.querySelectorAll('svg:not([role=img])')].every((e) => e.getAttribute('aria-hidden') === 'true')"
    )
    # The numbers of each drawing are in a table beside it.
    assert tab.evaluate(
        "[...document.querySelectorAll('svg[role=img]')].every((e) => e.closest('.pair, .stack').querySelector('table td'))"
    )
    assert tab.evaluate("[...document.querySelectorAll('th')].every((e) => e.scope)")
    assert tab.locator(".images img").count() == images
    assert tab.evaluate("[...document.querySelectorAll('img')].every((e) => e.naturalWidth > 1)")


def test_policy_forbids_requests_and_other_scripts(chromium: Any, tmp_path: Path) -> None:
    file = tmp_path / "report.html"
    write(wine(), file)
    tab = chromium.new_page()
    tab.goto(file.as_uri())
    refused = tab.evaluate(
        "() => new Promise((done) => { const seen = []; document.addEventListener('securitypolicyviolation', (e) => {"
        " seen.push(e.effectiveDirective); if (seen.length === 3) done(seen.sort()); });"
        " fetch('https://example.invalid/').catch(() => {}); document.body.setAttribute('style', 'color: red');"
        " const s = document.createElement('script'); s.textContent = '1'; document.body.append(s); })"
    )
    tab.close()
    assert refused == ["connect-src", "script-src-elem", "style-src-attr"]


def test_sorts_by_mouse_and_keyboard(opened: Any) -> None:
    t = digits()
    tab = opened(page("digits"))

    def order() -> list[int]:
        return [
            int(k)
            for k in tab.evaluate("[...document.querySelectorAll('#per-class tbody th')].map((e) => e.dataset.value)")
        ]

    f1 = t.evaluations[-1].f1
    header = tab.locator("#per-class th", has_text="F1")
    header.locator("button").click()
    assert header.get_attribute("aria-sort") == "descending"
    same(f1[order()], np.sort(f1)[::-1])
    header.locator("button").focus()
    tab.keyboard.press("Enter")
    assert header.get_attribute("aria-sort") == "ascending"
    same(f1[order()], np.sort(f1))
    tab.keyboard.press("Space")
    assert header.get_attribute("aria-sort") is None
    assert order() == list(range(10))
    tab.locator("#per-class th", has_text="class").locator("button").click()
    assert order() == list(range(10))
    tab.keyboard.press("Tab")
    assert tab.evaluate("document.activeElement.textContent") == "precision"


def test_no_number_sorts_last_either_way(opened: Any) -> None:
    tab = opened(page("letters"))
    nans = np.isnan(letters().evaluations[-1].precision).sum()
    assert nans > 0
    button = tab.locator("#per-class th", has_text="precision").locator("button")
    for _ in range(2):
        button.click()
        found = values(tab, "#per-class tbody td:nth-child(2)")
        assert np.isnan(found[-nans:]).all()
        assert not np.isnan(found[:-nans]).any()


def test_reads_without_script(opened: Any) -> None:
    shown = opened(page("wine"), java_script_enabled=False).inner_text("main")
    for words in ("Barolo", "proline", "log-loss", "softgrad fit wine.csv --target cultivar"):
        assert words in shown


def test_paper_and_reduced_motion(opened: Any, artefacts: Path) -> None:
    tab = opened(page("wine"), color_scheme="dark", reduced_motion="reduce")
    assert tab.evaluate("getComputedStyle(document.documentElement).scrollBehavior") == "auto"
    pdf = tab.pdf(path=artefacts / "report.pdf", format="A4")
    assert len(re.findall(rb"/Type\s*/Page\b", pdf)) >= 3
    tab.emulate_media(media="print", color_scheme="dark")
    tab.evaluate("dispatchEvent(new Event('beforeprint'))")
    assert tab.locator("#history").is_visible()
    assert not tab.locator("nav").is_visible()
    assert tab.evaluate("getComputedStyle(document.body).color") == "rgb(0, 0, 0)"
    assert tab.evaluate(_CONTRAST)[1][0][0] >= 4.5
    tab.evaluate("dispatchEvent(new Event('afterprint'))")
    assert not tab.locator("#history").is_visible()


# --- what the data hold ----------------------------------------------------------------------------------------------


def test_hostile_text_is_text(opened: Any) -> None:
    tab = opened(page("hostile"))  # which fails the test on a dialog, a message, a request
    assert tab.evaluate("document.querySelectorAll('script').length") == 1
    assert tab.evaluate("document.querySelectorAll('style').length") == 1
    assert tab.evaluate("document.querySelectorAll('img').length") == 0
    labels = tab.evaluate("[...document.querySelectorAll('#per-class tbody th')].map((e) => e.textContent)")
    assert labels == [cut(label) for label in HOSTILE]
    assert len(set(labels)) == len(HOSTILE)
    assert labels[0] == "<script>alert(1)</script>"
    assert labels[3] == "{{ 7 * 7 }}{% raw %}"
    assert labels[4] == r"line ⏎ line\r tab\x00\x1b[31m\ud800"
    assert labels[5] == r"\u202eright to left\u2066"
    assert tab.evaluate("document.querySelector('pre').textContent") == plain(hostile().command)
    assert tab.evaluate("document.title").startswith(cut(hostile().target, 60))
    assert not re.search(r"[\u202a-\u202e\u2066-\u2069]", page("hostile"))
    cells = tab.evaluate(
        "[...document.querySelectorAll('main > section > .mistakes > :first-child .cells dd')].map((e) => e.textContent)"
    )
    assert cells == [plain(cell) if cell else "–" for cell in hostile().mistakes[0].cells.values()]
    assert set(cells) > {plain(label) for label in HOSTILE[:4]}


@pytest.mark.parametrize(
    ("value", "most", "shown"),
    [
        ("a\nb", 60, "a ⏎ b"), ("", 60, "“”"), ("\u200b", 60, "“\\u200b”"), ("x" * 9, 5, "xxxx…"), (True, 60, "True"),
        (3, 60, "3"), (np.float64(0.5), 60, "0.5"), (None, 60, "None"), ("אב", 60, "אב"), ("\u2067x", 60, "\\u2067x"),
    ],
)  # fmt: skip
def test_one_line_of_text(value: Any, most: int, shown: str) -> None:
    assert cut(value, most) == shown


# --- what a fit can come to ------------------------------------------------------------------------------------------


def said(training: Training) -> str:
    return " ".join(re.sub("<.*?>", "", warning) for warning in warnings(training))


def test_warnings() -> None:
    t = replace(wine(), options={"tol": 1e-6})
    last = t.evaluations[-1]
    assert "interrupted" not in said(t)
    assert "interrupted" in said(replace(t, interrupted=True, gap=math.inf))
    assert "did not reach" in said(replace(t, gap=1e-3))
    assert "did not reach" in said(replace(t, gap=math.inf, options={}))
    assert "did not reach" not in said(replace(t, gap=math.nan))
    assert "did not reach" not in said(replace(t, gap=1e-7))
    assert "No rows were held out" in said(replace(t, evaluations=t.evaluations[:1]))
    assert "No rows were held out" not in said(t)
    assert "fewer than 10 rows: Barbera (3)" in said(replace(t, counts=np.array([40.0, 50.0, 3.0])))
    worse = replace(last, log_loss=0.5, log_loss_interval=(0.4, 0.6))
    assert "much better than new ones" in said(replace(t, evaluations=[t.evaluations[0], worse]))
    assert "much better" not in said(
        replace(t, evaluations=[t.evaluations[0], replace(worse, log_loss_interval=(0, 1))])
    )
    constant = replace(last, accuracy=0.1, log_loss=9.0)
    assert "constant answer" in said(replace(t, evaluations=[t.evaluations[0], constant]))
    assert "worse than the shares" in said(replace(t, evaluations=[t.evaluations[0], constant]))
    assert "--calibrate" in said(letters())
    assert "--calibrate" not in said(replace(letters(), temperature=2.0))
    assert "probabilities are off" in said(replace(letters(), temperature=2.0))
    assert "Never predicted: C" in said(letters())
    assert not re.search(r"\bnan\b", said(replace(t, gap=math.nan)))


def test_a_gap_off_the_scale_is_explained() -> None:
    assert "a triangle at the edge: no bound yet or zero" in page("hostile")
    assert "a triangle at the edge: no bound yet." in page("digits")
    assert "a triangle" not in page("letters")


def test_figures_of_two_classes_and_no_penalty() -> None:
    found = {f.name: f for f in figures(replace(mixed(), gap=math.nan))}
    assert found["certified gap"].shown == "–"
    assert "no certificate" in found["certified gap"].note
    assert "always saying benign: 63.2 %" in found["accuracy"].note


def no_evaluation(t: Training) -> Training:
    return replace(t, evaluations=[], uncalibrated=None, mistakes=[], temperature=None)


def no_iterations(t: Training) -> Training:
    return replace(t, history=t.history[:0], gap=math.nan)


def no_certificate(t: Training) -> Training:
    history = t.history.copy()
    history["gap"] = np.nan
    return replace(t, history=history, gap=math.nan)


def odd_path(t: Training) -> Training:
    Cs = np.array([1e-3, 1.0, np.inf])
    scores = np.array([[-1.0, -0.5, np.nan], [-1.2, -0.6, -0.9]])
    return replace(
        t, path=RegularisationPath(Cs, scores, 1.0, np.array([1e-9, 1e-8, np.nan]), np.array([1.0, 2.0, 9.0]))
    )


def one_class_in_the_test(t: Training) -> Training:
    last = t.evaluations[-1]
    empty = np.where(np.arange(3) > 0, np.nan, last.recall)
    changed = replace(last, support=np.array([18.0, 0, 0]), recall=empty, f1=empty, confusion=np.diag([18.0, 0, 0]))
    return replace(t, evaluations=[t.evaluations[0], changed])


def zero_weights(t: Training) -> Training:
    return replace(t, coef=0 * t.coef, intercept=0 * t.intercept)


ODD = [no_evaluation, no_iterations, no_certificate, odd_path, one_class_in_the_test, zero_weights]


@pytest.mark.parametrize("change", ODD, ids=lambda f: f.__name__)
def test_odd_fits(opened: Any, change: Callable[[Training], Training]) -> None:
    tab = opened(render(change(wine())), width=320)
    assert tab.evaluate("document.documentElement.scrollWidth") <= 320
    assert not re.search(r"\b(nan|None|Undefined)\b", tab.inner_text("main"))
    assert ("no iterations" in tab.inner_text("#fit")) == (change is no_iterations)
    assert tab.locator("#quality").count() == (change is not no_evaluation)
    if change is no_certificate:
        assert "no certificate without a penalty" in tab.locator("#fit svg").first.text_content()


def test_cuts_are_honest() -> None:
    t = many()
    html = page("many")
    assert 'id="confusion"' not in html
    assert 'aria-label="Confusion matrix of 120 classes' in html
    assert html.count('<article class="weight">') == 120
    assert "<summary>108 more classes</summary>" in html
    assert f"<summary>{min(len(t.evaluations[-1].confused), 200) - 12} more</summary>" in html
    wide = render(replace(wine(), columns=[Column(f"c{k}", "numeric") for k in range(1000)]))
    assert wide.count('<span class="tag">numeric</span>') == 300
    assert "and 700 more columns" in wide


def test_pixels_are_told_from_other_numbers() -> None:
    t = digits()
    assert grid(t) is not None
    np.testing.assert_array_equal(grid(t), np.arange(64).reshape(8, 8))
    turned = [f"pixel_{k % 8}_{k // 8}" for k in range(64)]
    np.testing.assert_array_equal(grid(replace(t, feature_names=turned)), np.arange(64).reshape(8, 8).T)
    assert grid(replace(t, feature_names=[*turned[:-1], "age"])) is None
    listed = replace(
        t, feature_names=[f"v[{k}]" for k in range(64)], origins=["v"] * 64, columns=[Column("v", "list", features=64)]
    )
    assert grid(listed) is not None
    assert grid(replace(listed, columns=[Column("v", "text")])) is None
    mixed_up = t.coef[:, np.random.default_rng(0).permutation(64)]  # an embedding: its numbers have no neighbours
    assert grid(replace(listed, coef=mixed_up)) is None
    assert grid(wine()) is None


def test_confused_classes_are_neighbours() -> None:
    counts = 10 * np.eye(6)
    counts[0, 4], counts[2, 5], counts[5, 1] = 5, 3, 1
    assert ordered(counts) == [0, 4, 2, 5, 1, 3]
    assert ordered(np.eye(3)) == [0, 1, 2]


# --- the file --------------------------------------------------------------------------------------------------------


def test_same_training_same_bytes(tmp_path: Path) -> None:
    """Whatever the user's settings of matplotlib, the day, and the seed of Python's hashes."""
    (tmp_path / "matplotlibrc").write_text("lines.linewidth: 9\nfont.size: 30\nsvg.fonttype: path\naxes.grid: True\n")
    (tmp_path / "training").write_bytes(pickle.dumps(hostile()))
    code = """
import pathlib, pickle, sys
import matplotlib
from softgrad.cli.report._page import write
folder = pathlib.Path(sys.argv[1])
assert matplotlib.rcParams["font.size"] == 30
write(pickle.loads((folder / "training").read_bytes()), folder / "report.html")
assert matplotlib.rcParams["font.size"] == 30
assert "matplotlib.pyplot" not in sys.modules
"""
    environment = os.environ | {"MATPLOTLIBRC": str(tmp_path), "PYTHONHASHSEED": "7", "SOURCE_DATE_EPOCH": "1000000000"}
    subprocess.run([sys.executable, "-W", "error", "-c", code, str(tmp_path)], check=True, env=environment, timeout=120)
    assert (tmp_path / "report.html").read_bytes() == page("hostile").encode()


def test_sizes() -> None:
    assert len(page("digits").encode()) < 400_000
    assert len(page("many").encode()) < 1_500_000


def test_written_whole_or_not_at_all(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot write"):
        write(wine(), tmp_path / "no such directory" / "report.html")
    file = tmp_path / "report.html"
    file.write_text("before")
    broken = replace(wine(), classes=["one"])
    with pytest.raises(IndexError):
        write(broken, file)
    assert file.read_text() == "before"
    assert [p.name for p in tmp_path.iterdir()] == ["report.html"]
