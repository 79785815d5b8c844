"""The interactive page in a real browser: what its script computes and shows is what Python computes and shows."""

from __future__ import annotations

import math
import re
from typing import Any

import numpy as np
from page_cases import FORMULAS, HTML, TO_NUMBERS, close, sent, settle, states

from softgrad import reference
from softgrad.derivation._case import Case
from softgrad.derivation._decimal import fifty_digits
from softgrad.derivation._evaluate import DEFINITIONS
from softgrad.derivation._formula import equal_sides, free_indices, parse, to_json
from softgrad.derivation._notation import mathml
from softgrad.derivation._substitute import substituted
from softgrad.derivation._training import TRAINING


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
