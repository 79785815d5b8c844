"""The interactive page in a real browser: how it looks, from a phone to paper."""

from __future__ import annotations

import json
import re
from importlib.resources import files
from typing import Any

import pytest
from page_cases import FORMULAS, HTML


@pytest.mark.parametrize("width", [320, 390, 768, 1280])
@pytest.mark.parametrize("classes", [3, 10])
def test_no_sideways_scroll(opened: Any, artefacts: Any, width: int, classes: int) -> None:
    z = ",".join(str(0.7 * k - 4) for k in range(classes)) if classes == 10 else "2,1,0.1"
    tab = opened(HTML, f"#z={z}&t=1&e=0.1&T=1", width, 800)
    tab.evaluate("softgrad.drawAllSteps()")
    assert tab.evaluate("document.documentElement.scrollWidth") <= width
    if not tab.evaluate("document.querySelector('#controls').open"):
        tab.locator("summary").click()
        assert tab.evaluate("document.documentElement.scrollWidth") <= width
        assert tab.locator("#reset").is_visible()
        tab.screenshot(path=artefacts / f"page-{width}-{classes}-controls.png")
        tab.locator("summary").click()
    tab.evaluate("scrollTo(0, 0)")
    tab.screenshot(path=artefacts / f"page-{width}-{classes}.png", full_page=classes == 3 and width == 390)


def test_four_times_larger(opened: Any) -> None:
    tab = opened(HTML, "", 320, 200)
    assert tab.evaluate("document.documentElement.scrollWidth") <= 320
    assert tab.evaluate("getComputedStyle(document.querySelector('#controls')).position") == "static"


def test_light_dark_and_the_switch(opened: Any, artefacts: Any) -> None:
    paper = "getComputedStyle(document.body).backgroundColor"
    light, dark = opened(HTML, color_scheme="light"), opened(HTML, color_scheme="dark")
    assert light.evaluate(paper) != dark.evaluate(paper)
    for tab, name in ((light, "light"), (dark, "dark")):
        tab.evaluate("for (let k = 0; k < 30; k++) document.querySelector('#step').click()")
        tab.evaluate("scrollTo(0, 0)")
        tab.screenshot(path=artefacts / f"page-{name}.png")
        tab.locator("#training").screenshot(path=artefacts / f"page-training-{name}.png")
    expected = dark.evaluate(paper)
    light.locator("#theme").click()
    assert light.evaluate(paper) == expected
    light.locator("#theme").click()
    assert light.evaluate(paper) != expected


def test_screenshots_of_chinese_and_extremes(opened: Any, artefacts: Any) -> None:
    views = {"chinese": "#z=2,1,0.1,0.5&t=1&e=0.1&T=2&lang=zh", "extreme": "#z=1e4,-1e4,0&t=1&e=0&T=1",
             "masked": "#z=1,-inf,0&t=1&e=0&T=1"}  # fmt: skip
    for name, fragment in views.items():
        tab = opened(HTML, fragment)
        tab.evaluate("softgrad.drawAllSteps()")
        tab.screenshot(path=artefacts / f"page-{name}.png")


def test_prints_everything_and_no_controls(opened: Any, artefacts: Any) -> None:
    tab = opened(HTML)
    pdf = tab.pdf(path=artefacts / "page.pdf", format="A4")
    assert len(re.findall(rb"/Type\s*/Page\b", pdf)) > 4
    assert tab.locator(".filled:empty").count() < 12  # only of vectors and matrices
    assert tab.locator(".mark[data-state]").count() == len(FORMULAS) + 3
    tab.emulate_media(media="print", color_scheme="dark")
    for selector in ("#controls", ".tools", "#step", "#add"):
        assert not tab.locator(selector).is_visible()
    assert tab.evaluate("getComputedStyle(document.body).color") == "rgb(0, 0, 0)"
    assert tab.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    tab.screenshot(path=artefacts / "page-print.png", full_page=True)


def _luminance(colour: str) -> float:
    channels = [int(colour[k : k + 2], 16) / 255 for k in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def _contrast(a: str, b: str) -> float:
    high, low = sorted((_luminance(a), _luminance(b)), reverse=True)
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("scheme", [0, 1])
def test_contrast(scheme: int) -> None:
    css = (files("softgrad.derivation") / "_page_files" / "page.css").read_text(encoding="utf-8")
    colours = {name: pair[scheme] for name, *pair in re.findall(r"--([\w-]+): light-dark\((#\w+), (#\w+)\)", css)}
    for ground in ("paper", "card"):
        for text in ("ink", "soft", "plus", "minus", "good", "bad"):
            assert _contrast(colours[text], colours[ground]) >= 4.5, (text, ground)
        assert _contrast(colours["bar"], colours[ground]) >= 3  # borders of controls, bars
    for fill in ("plus-fill", "minus-fill"):
        assert _contrast(colours["ink"], colours[fill]) >= 4.5


def test_words_are_all_there_and_all_used() -> None:
    folder = files("softgrad.derivation") / "_page_files"
    words = json.loads((folder / "words.json").read_text(encoding="utf-8"))
    sources = "".join(f.read_text(encoding="utf-8") for f in folder.iterdir() if f.name != "words.json")
    for key, (english, chinese) in words.items():
        assert re.search(rf"""["']{key}["']|\b{key}:""", sources), key
        assert not re.search(r"[\u4e00-\u9fff]", english)
        assert re.search(r"[\u4e00-\u9fff]", chinese), key
        assert sorted(re.findall(r"\{\d\}", english)) == sorted(re.findall(r"\{\d\}", chinese))
