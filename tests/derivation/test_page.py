"""The interactive page, in a real browser: its numbers against the reference, and everything a reader can do with it."""

from __future__ import annotations

import json
import math
import re
from importlib.resources import files
from typing import Any

import numpy as np
import pytest

from softgrad import reference
from softgrad.derivation._case import Case
from softgrad.derivation._decimal import fifty_digits
from softgrad.derivation._evaluate import DEFINITIONS
from softgrad.derivation._formula import equal_sides, free_indices, parse, to_json
from softgrad.derivation._languages import TEXTS, WORDS
from softgrad.derivation._notation import mathml
from softgrad.derivation._steps import STEPS, TRAINING
from softgrad.derivation._substitute import substituted
from softgrad.derivation.page import page

INF = math.inf
HTML = page()
FORMULAS = [(step.name, formula) for step in STEPS for formula in step.formulas]
TO_NUMBERS = '(x) => (x === "-inf" ? -Infinity : x)'


def settle(tab: Any) -> None:
    tab.evaluate("() => new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))")


def until(tab: Any, condition: str) -> None:
    """Wait for it: Playwright's own wait needs an eval, which the page's policy forbids."""
    for _ in range(100):
        if tab.evaluate(condition):
            return
        tab.wait_for_timeout(50)
    raise AssertionError(condition)


def states() -> list[dict[str, Any]]:
    rng = np.random.default_rng(0)
    cases = [
        {"z": [2.0, 1.0, 0.1], "t": 0, "e": 0.0, "T": 1.0},
        {"z": [1e4, -1e4, 0.0], "t": 0, "e": 0.0, "T": 1.0},
        {"z": [1e4, -1e4, 0.0], "t": 1, "e": 0.1, "T": 0.3},
        {"z": [-1e4] * 4, "t": 2, "e": 0.2, "T": 1.0},
        {"z": [1e4] * 10, "t": 9, "e": 0.0, "T": 2.0},
        {"z": [0.0, 0.0], "t": 1, "e": 1.0, "T": 1.0},
        {"z": [-INF, 1.0, 0.5], "t": 1, "e": 0.0, "T": 0.5},
        {"z": [-INF, 1.0, 0.5], "t": 0, "e": 0.0, "T": 1.0},
        {"z": [-INF, 1.0, 0.5], "t": 1, "e": 0.1, "T": 1.0},
        {"z": [-INF, -INF, -1e4], "t": 2, "e": 0.0, "T": 1.0},
        {"z": [-INF, -INF], "t": 0, "e": 0.0, "T": 1.0},
        {"z": [0.3, -0.2, 1.5], "t": [0.5, 0.25, 0.25], "e": 0.0, "T": 1.0},
        {"z": [0.3, -INF, 1.5], "t": [0.3, 0.0, 0.7], "e": 0.0, "T": 2.0},
        {"z": [710.0, 700.0, -745.0], "t": 2, "e": 0.0, "T": 1.0},
        {"z": [0.3, -400.0, 1.5], "t": [0.2, 0.2, 0.6], "e": 0.4, "T": 0.7},
    ]
    for v in range(2, 11):
        z = [float(f"{x:.4f}") for x in 3 * rng.standard_normal(v)]
        cases.append({"z": z, "t": int(rng.integers(v)), "e": 0.1 * (v % 3), "T": [0.5, 1.0, 2.0][v % 3]})
    return cases


def sent(state: dict[str, Any]) -> dict[str, Any]:
    return state | {"z": [x if math.isfinite(x) else "-inf" for x in state["z"]]}


def close(found: Any, expected: Any, size: float = 1.0) -> None:
    np.testing.assert_allclose(np.array(found, dtype=float), expected, rtol=1e-12 * size, atol=1e-13 * size)


# --- what the script computes and shows is what Python computes and shows


def test_numbers_are_the_references(opened: Any) -> None:
    tab = opened(HTML)
    for state in states():
        v = [(-1.0) ** k * (k + 1) for k in range(len(state["z"]))]
        found = tab.evaluate(
            f"""([state, v]) => {{
                state.z = state.z.map({TO_NUMBERS});
                const all = softgrad.head(state);
                return {{ ...all, Hv: softgrad.hessianProduct(all, v) }};
            }}""",
            [sent(state), v],
        )
        z = np.array(state["z"])
        target: Any = state["t"] if isinstance(state["t"], int) else np.array(state["t"])
        options = {"label_smoothing": state["e"], "temperature": state["T"]}
        loss, gradient = reference.cross_entropy_with_grad(z, target, **options)
        size = 1 + np.abs(z[np.isfinite(z)]).max(initial=0) / state["T"]
        close(found["S"], reference.softmax(z, temperature=state["T"]), size)
        close(found["L"], loss, size)
        close(np.array(found["G"], dtype=float) / state["T"], gradient, size)
        close(found["J"], reference.softmax_jacobian(z / state["T"]), size)
        product = reference.cross_entropy_hvp(z / state["T"], target, np.array(v), label_smoothing=state["e"])
        close(found["Hv"], product, 10 * size)


def test_training_is_the_references(opened: Any) -> None:
    tab = opened(HTML)
    x, labels = np.array(TRAINING)[:, :2], np.array(TRAINING)[:, 2].astype(int)
    weight, bias, losses = np.zeros((3, 2)), np.zeros(3), []
    rate = 0.5
    for step in range(40):
        loss, (_, by_weight, by_bias) = reference.linear_cross_entropy_with_grad(x, weight, labels, bias=bias)
        losses.append(loss)
        found = tab.evaluate("softgrad.training")
        close(found["model"]["A"], weight, 10)
        close(found["model"]["c"], bias, 10)
        close(found["losses"], losses, 10)
        lesson = tab.evaluate("softgrad.lesson(softgrad.training.model, softgrad.training.points)")
        close(lesson["dA"], by_weight, 10)
        close(lesson["dc"], by_bias, 10)
        if step == 20:
            tab.locator("#rate").press("ArrowRight")
            rate = 0.55
        weight, bias = weight - rate * by_weight, bias - rate * by_bias
        tab.locator("#step").click()
    assert np.all(np.diff(losses) < 0)
    assert "40" in tab.inner_text("#now")


def test_every_formula_looks_as_python_writes_it(opened: Any) -> None:
    tab = opened(HTML)
    trees = [parse(formula.text) for _, formula in FORMULAS] + [tree for _, tree in DEFINITIONS.values()]
    found = tab.evaluate("(trees) => trees.map(softgrad.mathml)", [to_json(tree) for tree in trees])
    assert found == [mathml(tree) for tree in trees]


def _numbers_apart(shown: str) -> tuple[str, list[float]]:
    numbers = re.findall(r"<mn>([−\d.]+)</mn>", shown)
    return re.sub(r"<mn>[−\d.]+</mn>", "#", shown), [float(n.replace("−", "-")) for n in numbers]


def test_every_formula_with_numbers_reads_as_in_python(opened: Any) -> None:
    tab = opened(HTML)
    for state in states():
        if min(state["z"]) > -100 and max(state["z"]) < 100:
            reads_as_in_python(tab, state)


def reads_as_in_python(tab: Any, state: dict[str, Any]) -> None:
    target = state["t"]
    v = len(state["z"])
    h = np.eye(v)[target] if isinstance(target, int) else np.array(target)
    label = target if isinstance(target, int) else None
    case = Case(np.array(state["z"]), h, state["e"], state["T"], label)
    expected, asked = [], []
    for _, formula in FORMULAS:
        node = parse(formula.text)
        at = {name: {"i": case.first, "j": case.other}.get(name, 0) for name in free_indices(node)}
        with fifty_digits():
            if isinstance(case.scope.value(equal_sides(node)[-1] if node.op == "eq" else node.args[0], at), np.ndarray):
                continue
            expected.append(mathml(substituted(node, case.scope, at)))
        asked.append([to_json(node), at])
    found = tab.evaluate(
        """([state, asked]) => {
            const { scope, first, other } = softgrad.scopeOf(state, softgrad.data);
            return [first, other, asked.map(([tree, at]) => softgrad.mathml(softgrad.substituted(tree, scope, at)))];
        }""",
        [sent(state), asked],
    )
    assert found[:2] == [case.first, case.other]
    for ours, theirs in zip(found[2], expected, strict=True):
        if ours != theirs:  # a last digit may round the other way in float64
            shape, numbers = _numbers_apart(ours)
            other_shape, others = _numbers_apart(theirs)
            assert shape == other_shape
            np.testing.assert_allclose(numbers, others, rtol=2e-3, atol=1e-12)


def test_no_formula_is_called_wrong(opened: Any) -> None:
    tab = opened(HTML)
    for state in states():
        nothing_is_called_wrong(tab, state)


def nothing_is_called_wrong(tab: Any, state: dict[str, Any]) -> None:
    tab.evaluate(f"(state) => softgrad.set({{ ...state, z: state.z.map({TO_NUMBERS}) }})", sent(state))
    settle(tab)
    tab.evaluate("softgrad.drawAllSteps()")
    marks = tab.eval_on_selector_all(".formula .mark", "all => all.map((m) => [m.dataset.state, m.textContent])")
    assert len(marks) == len(FORMULAS)
    found = {state for state, _ in marks}
    finite = [x for x in state["z"] if math.isfinite(x)]
    assert "wrong" not in found
    if finite == state["z"] and max(map(abs, finite)) / state["T"] < 100:
        assert found == {"ok"}
    loss = tab.evaluate("softgrad.head(softgrad.state).L")
    if not math.isfinite(loss) and finite != state["z"]:
        assert "undefined" in found
    assert all(text for _, text in marks)


def test_a_wrong_formula_is_called_wrong(opened: Any) -> None:
    tab = opened(HTML)
    mistakes = {
        "d(L, o[j]) == S[j] - 2 * y[j]": "wrong",
        "d(S[i], o[j]) == S[i] * S[j]": "wrong",
        "J == diag(S) + S @ S.T": "wrong",
        "L <= L - 1": "wrong",
        "d(L, o[j]) == S[j] - y[j]": "ok",
    }
    ask = """([tree, at]) => softgrad.verdict(tree, softgrad.scopeOf(softgrad.state, softgrad.data).scope, at).state"""
    for text, expected in mistakes.items():
        tree = parse(text)
        assert tab.evaluate(ask, [to_json(tree), dict.fromkeys(free_indices(tree), 0)]) == expected, text
    # Both sides vanish where only doubles do: no agreement is claimed.
    tab.evaluate("softgrad.set({ z: [-1e4, -1e4, -1e4] })")
    naive = parse("d(exp(o[i]) / sum(k, exp(o[k])), o[j]) == exp(o[i]) / sum(k, exp(o[k]))")
    assert tab.evaluate(ask, [to_json(naive), {"i": 0, "j": 0}]) == "range"


def test_digits_lost_to_rounding_are_no_mistake(opened: Any) -> None:
    tab = opened(HTML, "#z=1e16,10000000000000002&t=0")
    tab.evaluate("softgrad.drawAllSteps()")
    assert tab.get_attribute("#step-digits .mark", "data-state") == "rounding"
    assert tab.locator(".mark[data-state=wrong]").count() == 0


# --- what a reader does


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
    state = lambda key: tab.evaluate(f"softgrad.state.{key}")  # noqa: E731
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


def test_finite_differences_at_every_extreme(opened: Any) -> None:
    tab = opened(HTML)
    for state in states():
        found = tab.evaluate(
            f"(s) => softgrad.finiteDifferences(softgrad.head({{ ...s, z: s.z.map({TO_NUMBERS}) }}))", sent(state)
        )
        loss = reference.cross_entropy(
            np.array(state["z"]),
            state["t"] if isinstance(state["t"], int) else np.array(state["t"]),
            label_smoothing=state["e"],
            temperature=state["T"],
        )
        assert found["state"] == ("ok" if math.isfinite(loss) else "undefined"), state
    broken = "(() => { const a = softgrad.head(softgrad.state); return softgrad.finiteDifferences({ ...a, G: a.y }).state; })()"
    assert tab.evaluate(broken) == "wrong"


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
        (([1.0, math.nan],), {}, "-inf"),
        (([1.0, INF],), {}, "-inf"),
        (([1.0, 2.0], 2), {}, "class from 0 to 1"),
        (([1.0, 2.0], [0.5, 0.6]), {}, "sum is 1"),
        (([1.0, 2.0], [1.0]), {}, "2 entries"),
        (([1.0, 2.0],), {"label_smoothing": 1.5}, "label_smoothing"),
        (([1.0, 2.0],), {"temperature": 0.0}, "temperature"),
        (([1.0, 2.0],), {"lang": "fr"}, "lang"),
    ],
)
def test_python_refuses(arguments: Any, options: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        page(*arguments, **options)


# --- how it looks


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
    css = (files("softgrad.derivation") / "_page" / "page.css").read_text(encoding="utf-8")
    colours = {name: pair[scheme] for name, *pair in re.findall(r"--([\w-]+): light-dark\((#\w+), (#\w+)\)", css)}
    for ground in ("paper", "card"):
        for text in ("ink", "soft", "plus", "minus", "good", "bad"):
            assert _contrast(colours[text], colours[ground]) >= 4.5, (text, ground)
        assert _contrast(colours["bar"], colours[ground]) >= 3  # borders of controls, bars
    for fill in ("plus-fill", "minus-fill"):
        assert _contrast(colours["ink"], colours[fill]) >= 4.5


def test_words_are_all_there_and_all_used() -> None:
    folder = files("softgrad.derivation") / "_page"
    words = json.loads((folder / "words.json").read_text(encoding="utf-8"))
    sources = "".join(f.read_text(encoding="utf-8") for f in folder.iterdir() if f.name != "words.json")
    for key, (english, chinese) in words.items():
        assert re.search(rf"""["']{key}["']|\b{key}:""", sources), key
        assert not re.search(r"[\u4e00-\u9fff]", english)
        assert re.search(r"[\u4e00-\u9fff]", chinese), key
        assert re.findall(r"\{\d\}", english).sort() == re.findall(r"\{\d\}", chinese).sort()
