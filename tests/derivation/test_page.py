"""The interactive page in a real browser: what a reader does with it, and what its address holds."""

from __future__ import annotations

import math
import re
from typing import Any

import numpy as np
import pytest
from page_cases import FORMULAS, HTML, INF, page, settle, until

from softgrad import reference
from softgrad.derivation._languages import TEXTS, WORDS
from softgrad.derivation._steps import STEPS


def test_silent_and_alone(opened: Any) -> None:
    tab = opened(HTML)
    tab.evaluate("scrollTo(0, 1e6)")
    tab.wait_for_timeout(300)
    assert "http" not in re.sub(r'xmlns="[^"]*"', "", HTML).replace("http-equiv", "").replace("www.w3.org", "").replace(
        "http:///1998/Math/MathML", ""
    )
    assert tab.evaluate("Object.keys(globalThis).filter((name) => name === 'softgrad')") == ["softgrad"]


def test_policy_forbids_every_request(chromium: Any, tmp_path: Any) -> None:
    file = tmp_path / "page.html"
    file.write_text(HTML, encoding="utf-8")
    tab = chromium.new_page()
    tab.goto(file.as_uri())
    refused = tab.evaluate(
        "() => new Promise((done) => { document.addEventListener('securitypolicyviolation', (e) => done(e.effectiveDirective));"
        " fetch('https://example.invalid/').catch(() => {}); })"
    )
    tab.close()
    assert refused == "connect-src"


def test_reads_without_script(opened: Any) -> None:
    for lang in ("en", "zh"):
        file = page(lang=lang)
        tab = opened(file, java_script_enabled=False)
        shown = tab.inner_text("body")
        for step in STEPS:
            assert TEXTS[lang][step.name][0] in shown
        other = "zh" if lang == "en" else "en"
        assert TEXTS[other]["gradient"][0] not in shown or TEXTS[lang]["gradient"][0] == TEXTS[other]["gradient"][0]
        assert WORDS[lang]["derivation"] in shown
        assert tab.locator("math:visible").count() > len(FORMULAS)
        assert not tab.locator("#controls").is_visible()


def test_sliders_fields_and_examples(opened: Any) -> None:
    tab = opened(HTML)

    def state(key: str) -> Any:
        return tab.evaluate(f"softgrad.state.{key}")

    tab.locator(".logit input[type=range]").nth(1).press("ArrowRight")
    assert state("z[1]") == pytest.approx(1.1)
    field = tab.locator(".logit input[inputmode]").nth(2)
    for text, value in [("1e4", 1e4), ("-inf", -INF), ("−∞", -INF), ("-2.5", -2.5)]:
        field.fill(text)
        assert state("z[2]") == value
    for text in ("", "NaN", "abc", "<script>alert(1)</script>", "inf", "1e999", "0x10", "1,2"):
        field.fill(text)
        assert state("z[2]") == -2.5
        assert field.get_attribute("aria-invalid") == "true"
        assert text[:20] in tab.inner_text("#mistake")
    field.fill("3")
    assert not tab.locator("#mistake").is_visible()
    tab.locator(".logit input[type=radio]").nth(1).press("Space")
    assert state("t") == 1
    for key in ("End", "Home"):
        tab.locator("#V").press(key)
        settle(tab)
        assert len(state("z")) == {"End": 10, "Home": 2}[key] == tab.locator(".logit").count()
        assert tab.locator("#heat td").count() == len(state("z")) ** 2
    tab.locator("#e").press("ArrowRight")
    tab.locator("#T").press("ArrowLeft")
    assert state("e") == 0.01
    assert state("T") < 1
    for k in range(6):
        tab.locator("#presets button").nth(k).click()
        settle(tab)
        assert tab.get_attribute("#differences", "data-state") == "ok"
    assert min(state("z")) == -INF or state("z[2]") == -INF
    tab.locator("#reset").click()
    assert state("z") == [2, 1, 0.1]
    assert state("e") == 0


def test_drags_keep_the_check_green(opened: Any) -> None:
    tab = opened(HTML, "#z=2,1,0.1,-3&t=1&e=0.1&T=0.7")
    box = tab.locator("#bars-S").bounding_box()
    rng = np.random.default_rng(1)
    for k in [*range(4), *rng.integers(0, 4, 12)]:
        x = box["x"] + (k + 0.5) * box["width"] / 4
        y = box["y"] + box["height"] / 2
        before = tab.evaluate("softgrad.state.z")
        tab.mouse.move(x, y)
        tab.mouse.down()
        move = float(rng.uniform(-200, 200))
        tab.mouse.move(x + 5, y + move / 2)
        tab.mouse.move(x + 9, y + move)
        tab.mouse.up()
        settle(tab)
        after = tab.evaluate("softgrad.state.z")
        assert after[k] == pytest.approx(before[k] - move / 15, abs=0.1)
        assert tab.get_attribute("#differences", "data-state") == "ok"
        assert tab.locator("#checks [data-state=ok]").count() == 3


def test_jacobian_by_keyboard_and_mouse(opened: Any) -> None:
    tab = opened(HTML)
    jacobian = reference.softmax_jacobian([2.0, 1.0, 0.1])
    focused = "[document.activeElement.ariaLabel, document.querySelectorAll('#heat td[tabindex=\"0\"]').length]"
    tab.locator("#heat td").first.focus()
    for key, (i, j) in [("ArrowRight", (0, 1)), ("ArrowDown", (1, 1)), ("End", (1, 2)), ("ArrowRight", (1, 2)),
                        ("Home", (1, 0)), ("ArrowUp", (0, 0)), ("Control+End", (2, 2)), ("ArrowLeft", (2, 1))]:  # fmt: skip
        tab.keyboard.press(key)
        label, reachable = tab.evaluate(focused)
        assert label.startswith(f"∂S{i}/∂o{j} = ")
        assert float(label.split("= ")[1].replace("−", "-")) == pytest.approx(jacobian[i, j], rel=1e-3)
        assert reachable == 1
    caption = tab.locator("#heat figcaption")
    assert caption.get_attribute("aria-live") == "polite"
    shown = re.sub(r"\s", "", caption.inner_text())
    assert shown.endswith("=−0.0239")
    assert "0.09857·0.2424" in shown
    tab.keyboard.press("Enter")
    settle(tab)
    assert tab.evaluate("[softgrad.state.i, softgrad.state.j]") == [2, 1]
    assert tab.locator("#heat td[aria-selected=true]").count() == 1
    tab.locator("#heat td").nth(1).hover()
    assert "0.659·0.2424" in re.sub(r"\s", "", caption.inner_text())
    tab.locator("#heat td").nth(0).click()
    settle(tab)
    assert tab.evaluate("[softgrad.state.i, softgrad.state.j]") == [0, 0]
    assert tab.evaluate("document.querySelector('#i').value") == "0"


def test_training_run_pause_and_points(opened: Any) -> None:
    tab = opened(HTML, reduced_motion="no-preference")
    steps = "softgrad.training.losses.length"
    tab.locator("#run").click()
    until(tab, f"{steps} > 4")
    tab.locator("#run").click()
    stopped = tab.evaluate(steps)
    tab.wait_for_timeout(200)
    assert tab.evaluate(steps) == stopped
    assert np.all(np.diff(tab.evaluate("softgrad.training.losses")) < 0)
    tab.locator("#points").scroll_into_view_if_needed()
    box = tab.locator("#points").bounding_box()
    tab.locator("#label").select_option("2")
    tab.mouse.click(box["x"] + box["width"] * 0.75, box["y"] + box["height"] * 0.25)
    points = tab.evaluate("softgrad.training.points")
    assert len(points) == 16
    assert points[-1] == pytest.approx([1.5, 1.5, 2], abs=0.02)
    tab.locator("#x0").fill("-2")
    tab.locator("#x1").fill("0.25")
    tab.keyboard.press("Enter")
    assert tab.evaluate("softgrad.training.points.at(-1)") == [-2, 0.25, 2]
    assert "17" in tab.get_attribute("#points", "aria-label")
    for bad in ("", "x", "9", "-inf", "<b>"):
        tab.locator("#x1").fill(bad)
        tab.keyboard.press("Enter")
        assert tab.locator("#no-point").is_visible()
        assert len(tab.evaluate("softgrad.training.points")) == 17
    tab.locator("#restart").click()
    assert tab.evaluate(steps) == 1
    assert len(tab.evaluate("softgrad.training.points")) == 15
    still = opened(HTML, reduced_motion="reduce")
    still.locator("#run").press("Enter")
    assert still.evaluate(steps) == 51


def test_language_switch_changes_everything(opened: Any) -> None:
    tab = opened(HTML, "#z=2,-inf,1e4&t=0&e=0&T=1")
    tab.locator(".logit input[inputmode]").nth(0).fill("x")
    tab.locator("[data-lang=zh]").click()
    tab.locator(".logit input[inputmode]").nth(0).fill("?")
    settle(tab)
    tab.evaluate("softgrad.drawAllSteps()")
    assert tab.get_attribute("html", "lang") == "zh"
    assert tab.title() == WORDS["zh"]["title"]
    said = tab.evaluate(
        """() => {
            const said = [];
            const walk = (node) => {
                if (node.nodeType === 3) return said.push(node.textContent);
                if (node.nodeType !== 1 || ["SCRIPT", "STYLE", "math"].includes(node.tagName)) return;
                if (!node.checkVisibility()) return;
                said.push(node.ariaLabel ?? "");
                for (const child of node.childNodes) walk(child);
            };
            walk(document.body);
            return said.join(" ");
        }"""
    )
    words = set(re.findall(r"[A-Za-z]{2,}", said))
    assert words <= {"English", "softgrad", "logit", "logits", "Logits", "Softmax", "softmax", "one", "hot", "loss", "inf",
                     "float", "lse"}  # fmt: skip
    tab.locator("[data-lang=en]").click()
    settle(tab)
    assert tab.get_attribute("html", "lang") == "en"
    assert not re.search(r"[\u4e00-\u9fff]", tab.inner_text("main"))


def test_every_control_has_a_name_and_can_be_reached(opened: Any) -> None:
    tab = opened(HTML)
    client = tab.context.new_cdp_session(tab)
    nodes = client.send("Accessibility.getFullAXTree")["nodes"]
    roles: dict[str, int] = {}
    for node in nodes:
        role = node.get("role", {}).get("value")
        if node.get("ignored") or role not in {
            "button", "slider", "textbox", "radio", "combobox", "link", "gridcell", "grid", "DisclosureTriangle", "image",
            "columnheader", "rowheader", "searchbox", "spinbutton",
        }:  # fmt: skip
            continue
        roles[role] = roles.get(role, 0) + 1
        assert node.get("name", {}).get("value") or role == "columnheader", node
    assert roles["gridcell"] == 9
    assert roles["grid"] == 1
    assert roles["image"] >= 5  # the bars, the plane, the curve
    assert roles["slider"] == 3 + 3 + 1
    reached = []
    tab.evaluate("document.activeElement.blur()")
    for _ in range(60):
        tab.keyboard.press("Tab")
        settle(tab)
        reached.append(
            tab.evaluate(
                """() => {
                    const e = document.activeElement, style = getComputedStyle(e);
                    return [e.id || e.className || e.dataset.lang || e.tagName, e.type ?? "", style.outlineStyle];
                }"""
            )
        )
        if reached[-1][0] == "BODY" and len(reached) > 1:
            break
    names = [name for name, _, _ in reached]
    order = ["skip", "en", "zh", "theme", "SUMMARY", "V", "e", "T", "reset", "TD", "i", "j", "step", "run", "restart", "rate",
             "label", "x0", "x1"]  # fmt: skip
    names = ["TD" if n in ("plus", "minus", "none") else n for n in names]
    places = [names.index(name) for name in order]
    assert places == sorted(places)
    assert names.count("TD") == 1
    assert sum(kind == "range" for _, kind, _ in reached) == 7
    assert all(outline != "none" for name, _, outline in reached if name not in ("BODY", "main"))


def test_skip_link(opened: Any) -> None:
    tab = opened(HTML)
    tab.keyboard.press("Tab")
    assert tab.locator(".skip").bounding_box()["x"] >= 0
    tab.keyboard.press("Enter")
    assert tab.evaluate("document.activeElement.id") == "main"
    assert tab.evaluate("softgrad.state.z") == [2, 1, 0.1]


# --- the address


def test_address_holds_the_state(opened: Any) -> None:
    fragment = "#z=1.25,-inf,10000,0.1&t=2&e=0.3&T=2.5&i=3&j=0&lang=zh"
    tab = opened(HTML, fragment)
    state = tab.evaluate("softgrad.state")
    assert state == {"z": [1.25, -INF, 10000, 0.1], "t": 2, "e": 0.3, "T": 2.5, "i": 3, "j": 0, "lang": "zh"}
    assert tab.evaluate("softgrad.writeFragment(softgrad.state)") == fragment
    tab.evaluate("softgrad.set({ t: [0.5, 0, 0.25, 0.25], e: 0.125 })")
    until(tab, "location.hash.includes('0.125')")
    address = tab.evaluate("location.hash")
    assert opened(HTML, address).evaluate("softgrad.state") == tab.evaluate("softgrad.state")
    tab.evaluate("location.hash = '#z=1,2&t=1&lang=en'")
    settle(tab)
    assert tab.evaluate("[softgrad.state.z, softgrad.state.t, document.documentElement.lang]") == [[1, 2], 1, "en"]


HOSTILE = [
    "#z=a,b", "#z=", "#z=NaN,1", "#z=inf,1", "#z=1", "#z=" + ",".join("1" * 11), "#t=3", "#t=-1", "#t=0.5,0.6,0", "#e=2",
    "#e=x", "#T=0", "#T=-1", "#T=NaN", "#z=<script>alert(1)</script>", "#z=%3Cimg%20src=x%20onerror=alert(1)%3E", "#lang=xx",
    "#z=%E0%A4%A", "#i=99", "#t=__proto__", "#z=1,2,3&z=4&t=%00", "#z=1e999,0",
]  # fmt: skip


def test_hostile_addresses(opened: Any) -> None:
    for fragment in HOSTILE[::7]:
        stays_whole(opened(HTML, fragment))
    tab = opened(HTML)
    for fragment in HOSTILE:
        tab.evaluate("(fragment) => { location.hash = '#z=9,9&t=1'; location.hash = fragment; }", fragment)
        settle(tab)
        stays_whole(tab)


def stays_whole(tab: Any) -> None:
    assert tab.locator("#mistake").is_visible()
    assert tab.locator("#bars-S rect").count() >= 3
    assert tab.locator("#mistake *, img").count() == 0
    state = tab.evaluate("softgrad.state")
    assert len(state["z"]) == 3
    assert state["T"] == 1


def test_python_takes_arrays() -> None:
    logits = np.array([2.0, 1.0, 0.1])
    assert page(logits, np.int64(1)) == page([2.0, 1.0, 0.1], 1)
    assert page(logits, np.array([0.5, 0.25, 0.25])) == page(logits, [0.5, 0.25, 0.25])


def test_python_gives_the_first_state(opened: Any) -> None:
    html = page([1.0, -INF, 3.0], [0.25, 0.0, 0.75], label_smoothing=0.0, temperature=2.0, lang="zh")
    tab = opened(html)
    state = tab.evaluate("softgrad.state")
    assert state["z"] == [1, -INF, 3]
    assert state["t"] == [0.25, 0, 0.75]
    assert (state["T"], state["lang"]) == (2, "zh")
    assert tab.title() == WORDS["zh"]["title"]
    assert tab.locator("#logits .soft input").is_checked()
    tab.locator(".logit input[type=range]").nth(0).press("ArrowRight")
    tab.locator("#reset").click()
    assert tab.evaluate("softgrad.state.z") == [1, -INF, 3]


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        (([1.0],), {}, "2 to 10"),
        (([1.0] * 11,), {}, "2 to 10"),
        (([1.0, math.nan],), {}, "−inf"),
        (([1.0, INF],), {}, "−inf"),
        (([1.0, 2.0], 2), {}, r"outside \[0, 2\)"),
        (([1.0, 2.0], [0.5, 0.6]), {}, "sum to 1"),
        (([1.0, 2.0], [1.0]), {}, "each of the 2 classes"),
        (([1.0, 2.0],), {"label_smoothing": 1.5}, "label_smoothing"),
        (([1.0, 2.0],), {"temperature": 0.0}, "temperature"),
        (([1.0, 2.0],), {"lang": "fr"}, "lang"),
    ],
)
def test_python_refuses(arguments: Any, options: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        page(*arguments, **options)
