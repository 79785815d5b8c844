"""The derivation: every step holds, what is shown is what was computed, and a wrong formula is found out."""

from __future__ import annotations

import itertools
import re
from html import escape
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import softgrad
from softgrad import reference
from softgrad.derivation import chapter
from softgrad.derivation._case import Case
from softgrad.derivation._evaluate import DEFINITIONS
from softgrad.derivation._facts import train
from softgrad.derivation._formula import free_indices, parse, to_json
from softgrad.derivation._languages import LANGUAGES, TEXTS, WORDS
from softgrad.derivation._notation import latex, mathml, text
from softgrad.derivation._steps import STEPS, Formula, Step
from softgrad.derivation._substitute import number_text
from softgrad.derivation._symbols import proved
from softgrad.derivation._training import TRAINING
from softgrad.derivation._verify import Check, check_against, check_formula
from softgrad.derivation._wording import parse_inline, with_formulas

INF = float("inf")
FORMULAS = [(step, formula) for step in STEPS for formula in step.formulas]


def case(logits: list[float], target: Any, label_smoothing: float = 0.0, temperature: float = 1.0) -> Case:
    z = np.array(logits, dtype=float)
    label = target if isinstance(target, int) else None
    h = np.eye(len(z))[target] if isinstance(target, int) else np.array(target, dtype=float)
    return Case(z, h, label_smoothing, temperature, label)


def check_step(step: Step, case: Case, symbolic: bool = True) -> list[Check]:
    checks = [check for formula in step.formulas for check in check_formula(formula, case, symbolic)]
    return [*checks, *check_against(step, case)]


CASES = {
    "textbook": case([2.0, 1.0, 0.1], 0),
    "smoothed and cooled": case([2.0, 1.0, 0.1], 1, 0.1, 2.5),
    "equal": case([3.0, 3.0, 3.0], 2, 0.3, 0.5),
    "huge": case([1e4, -1e4, 0.0], 1),
    "masked": case([5.0, -INF, 1.0], 0),
    "soft": case([1.0, 2.0], [0.3, 0.7], 0.1),
    "ten": case([float(i) for i in range(10)], 9),
    "far": case([1e15, 0.0], 1),
    "all smoothing": case([0.5, -0.5, 0.0, 9.0], 3, 1.0),
}


# --- it holds --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("formula", [f for _, f in FORMULAS if f.symbolic], ids=lambda f: f.text[:40])
def test_every_formula_is_proved_in_letters(formula: Formula) -> None:
    assert proved(formula.text, distinct=formula.distinct, sums_to_one=formula.sums_to_one)


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("step", STEPS, ids=lambda s: s.name)
def test_every_step_holds_with_numbers(step: Step, name: str) -> None:
    """With fifty digits, against the reference and against the kernels; something is defined in every step."""
    checks = check_step(step, CASES[name], symbolic=False)
    assert {check.how for check in checks} == {"computed", "reference", "kernel"}
    assert [check for check in checks if check.ok is not True] == []


@given(
    st.lists(st.floats(-50, 50), min_size=2, max_size=5),
    st.integers(0, 4),
    st.floats(0, 1),
    st.floats(0.1, 10),
)
@settings(max_examples=15)
def test_any_numbers_hold(logits: list[float], target: int, label_smoothing: float, temperature: float) -> None:
    c = case(logits, target % len(logits), label_smoothing, temperature)
    assert [k for step in STEPS for k in check_step(step, c, symbolic=False) if k.ok is False] == []


def test_logits_that_fifty_digits_do_not_tell_apart() -> None:
    """The library finds the arg-max of such logits, by comparing them; the computed one is no check."""
    c = case([0.0, 1e-313, -1.0], 0)
    step = next(step for step in STEPS if step.name == "prediction")
    checks = check_step(step, c, symbolic=False)
    assert [check.ok for check in checks if check.how == "computed"] == [None, True]
    assert [k for step in STEPS for k in check_step(step, c, symbolic=False) if k.ok is False] == []


@pytest.mark.parametrize("instruction", ["native", "numpy"])
def test_the_kernel_that_is_in_use_is_the_one_checked(instruction: str) -> None:
    from softgrad._core import backend

    with backend.use(backend.available()[0] if instruction == "native" else "numpy"):
        assert all(k.ok for step in STEPS for k in check_step(step, CASES["textbook"], symbolic=False))


WRONG = [
    "d(S[i], o[j]) == S[i] * (delta(i, j) + S[j])",
    "d(L, o[j]) == y[j] - S[j]",
    "d(S[i], o[i]) == S[i] * (1 + S[i])",
    "d(L, S[i]) == y[i] / S[i]",
    "L == sum(i, y[i] * log(S[i]))",
    "d(L, x) == W.T @ (y - S)",
    "d(L_r, o[j]) == S[j] - r[j]",
    "d(L, z[j]) == S[j] - y[j] + τ - 1 + S[j]",
    "J == diag(S) + S @ S.T",
]


@pytest.mark.parametrize("formula", WRONG)
def test_a_wrong_formula_is_found_out(formula: str) -> None:
    assert not proved(formula, sums_to_one=True)
    checks = check_formula(Formula(formula, symbolic=False), CASES["smoothed and cooled"])
    assert [check.ok for check in checks] == [False]


def test_a_library_that_differs_is_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reference, "softmax", lambda *_, **__: np.array([0.5, 0.3, 0.2]))
    step = next(step for step in STEPS if step.name == "softmax")
    assert [k.ok for k in check_step(step, CASES["textbook"], symbolic=False) if k.how == "reference"] == [False]


def test_infinity_equals_itself_alone() -> None:
    """At a masked class: ∞ on both sides agrees, ∞ on one side does not hold."""
    for right, ok in (("max(k, -z[k])", True), ("5", False)):
        formula = Formula(f"max(k, -o[k]) == {right}", symbolic=False)
        assert [check.ok for check in check_formula(formula, CASES["masked"])] == [ok]


def test_the_definitions_know_no_gradient() -> None:
    """Derivatives are taken of the definitions: none of these may be what is to be proved."""
    text_of = {name: text(formula) for name, (_, formula) in DEFINITIONS.items()}
    assert text_of["S"] == "exp(oᵢ − m) / s"
    assert text_of["L"] == "−∑ᵢ yᵢ log Sᵢ"
    assert not any("− y" in shown for shown in text_of.values())


# --- what is shown ---------------------------------------------------------------------------------------------------


def test_notations() -> None:
    node = parse("d(S[i], o[j]) == S[i] * (delta(i, j) - S[j])")
    assert text(node) == "∂Sᵢ/∂oⱼ = Sᵢ (δᵢⱼ − Sⱼ)"
    assert latex(node) == (r"\frac{\partial S_{i}}{\partial o_{j}} = S_{i}\,\left(\delta_{ij}-S_{j}\right)")
    assert mathml(node).startswith('<math xmlns="http://www.w3.org/1998/Math/MathML">')
    assert free_indices(node) == ["i", "j"]
    assert to_json(parse("-y[j]")) == ["neg", ["at", "y", ["name", "j"]]]


@pytest.mark.parametrize(
    ("formula", "shown"),
    [
        ("a * (b + c)", "a (b + c)"),
        ("a - (b - c)", "a − (b − c)"),
        ("a - b - c", "a − b − c"),
        ("-a * b", "−a b"),
        ("a * -b", "a (−b)"),
        ("(a / b) * c", "(a / b) c"),
        ("a / (b * c)", "a / (b c)"),
        ("(a + b) ** 2", "(a + b)²"),
        ("sum(i, a + b)", "∑ᵢ (a + b)"),
        ("sum(i, i != j, y[i]) * a", "(∑[i≠j] yᵢ) a"),
        ("d(d(L, o[i]), o[j])", "∂²L/∂oᵢ∂oⱼ"),
        ("W_new[i, p]", "Wᵢₚⁿᵉʷ"),
    ],
)
def test_parentheses_keep_the_meaning(formula: str, shown: str) -> None:
    assert text(parse(formula)) == shown


@pytest.mark.parametrize(
    "formula", ["import os", "f(x)", "a < b", "a[0:1]", "x.y", "1 +", "sum(1, a)", "a if b else c"]
)
def test_what_is_not_a_formula_is_refused(formula: str) -> None:
    with pytest.raises(ValueError, match="formula"):
        parse(formula)


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (0.6590011388, "0.659"), (-0.15977, "−0.1598"), (1.0, "1"), (0.0, "0"), (1e-9, "1e−9"), (INF, "∞"),
        (-INF, "−∞"), (12345.6, "12346"), (1e15, "1e15"), (-1234567.0, "−1.235e6"), (0.1, "0.1"),
    ],
)  # fmt: skip
def test_numbers(value: float, shown: str) -> None:
    assert number_text(value) == shown


def test_the_numbers_of_the_issue_are_substituted() -> None:
    e = softgrad.explain([2.0, 1.0, 0.1], 0)
    lines = [text(node) for step in e.steps for shown in step.formulas for node in shown.instances]
    for line in (
        "S₀ = exp(2) / (exp(2) + exp(1) + exp(0.1)) = 0.659",
        "∂S₀/∂o₁ = 0.659 (0 − 0.2424) = −0.1598",
        "∂L/∂o₀ = 0.659 − 1 = −0.341",
        "0.2485 ≤ 0.417",
    ):
        assert line in lines, lines


def test_both_languages_are_complete() -> None:
    for lang in LANGUAGES:
        assert list(TEXTS[lang]) == [step.name for step in STEPS]
        assert list(WORDS[lang]) == list(WORDS["en"])
        for title, sentence in TEXTS[lang].values():
            assert title
            assert len(sentence) > 40
            for part in re.findall(r"`([^`]*)`", sentence):
                text(parse_inline(part))
    formulas = {lang: [sorted(re.findall(r"`([^`]*)`", s)) for _, s in TEXTS[lang].values()] for lang in LANGUAGES}
    assert [set(a) for a in formulas["en"]] == [set(b) for b in formulas["zh"]]
    chinese = "".join(with_formulas(t + s, lambda _: "") for t, s in TEXTS["zh"].values())
    assert len(re.findall(r"[一-鿿]", chinese)) > 1000
    english = set(re.findall(r"[A-Za-z_]{3,}", chinese))
    assert english <= {"Softmax", "softmax", "logit", "logits", "one", "hot", "float", "loss", "log", "lse", "exp"}, (
        english
    )


# --- explain ---------------------------------------------------------------------------------------------------------


def test_values_are_attributes() -> None:
    e = softgrad.explain([2.0, 1.0, 0.1], 1, label_smoothing=0.1, temperature=2.0)
    z = np.array([2.0, 1.0, 0.1])
    np.testing.assert_allclose(e.logits, z / 2)
    np.testing.assert_allclose(e.probabilities, reference.softmax(z / 2))
    loss, gradient = reference.cross_entropy_with_grad(z / 2, 1, label_smoothing=0.1)
    np.testing.assert_allclose(e.loss, loss)
    np.testing.assert_allclose(e.gradient, gradient, atol=1e-15)
    np.testing.assert_allclose(e.jacobian, reference.softmax_jacobian(z / 2))
    np.testing.assert_allclose(e.target.sum(), 1)
    assert e.ok
    assert len(e.checks) > 100
    assert [step.name for step in e.steps] == [step.name for step in STEPS]
    assert "S − y" in repr(e)


@pytest.mark.parametrize("lang", LANGUAGES)
def test_notebook_forms(lang: str) -> None:
    e = softgrad.explain([2.0, 1.0, 0.1], 0, lang=lang)
    page, notes = e._repr_html_(), e._repr_markdown_()
    for title, _ in TEXTS[lang].values():
        assert escape(title, quote=True) in page
        assert title in notes
    assert page.count("<math") > 100
    assert page.count("<section>") == page.count("</section>") == len(STEPS)
    assert "http" not in page.replace("http://www.w3.org/1998/Math/MathML", "")
    assert "✗" not in page
    assert page.count("✓") == notes.count("✓") == len(e.checks)  # each check is shown, not the worst of a kind
    assert notes.count("$$") % 2 == 0
    import xml.etree.ElementTree as ET

    ET.fromstring(page)  # well-formed: a notebook shows it beside others'


@pytest.mark.parametrize("lang", LANGUAGES)
def test_chapter(lang: str) -> None:
    lines = chapter(lang).splitlines()
    assert sum(line.startswith("### ") for line in lines) == len(STEPS)


def test_a_chapter_that_does_not_hold_is_not_written(monkeypatch: pytest.MonkeyPatch) -> None:
    from softgrad.derivation import _explanation

    wrong = Step("softmax", "derivation", (Formula("sum(k, S[k]) == 2", symbolic=False),), ())
    monkeypatch.setattr(_explanation, "STEPS", (wrong,))
    with pytest.raises(AssertionError, match="does not hold"):
        chapter()


def test_without_sympy_it_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    from softgrad.derivation import _verify

    monkeypatch.setattr(_verify, "available", lambda: False)
    e = softgrad.explain([2.0, 1.0], 0)
    assert e.ok
    assert all(check.ok is None for check in e.checks if check.how == "proved")
    assert WORDS["en"]["not-proved"] in e._repr_markdown_()


def test_training_is_plain_gradient_descent_and_falls() -> None:
    losses, weight, bias = train(50)
    points = np.array(TRAINING)
    W, b = np.zeros((3, 2)), np.zeros(3)
    for loss in losses:
        expected, (_, gw, gb) = reference.linear_cross_entropy_with_grad(
            points[:, :2], W, points[:, 2].astype(int), bias=b
        )
        assert loss == pytest.approx(expected, rel=1e-12)
        W, b = W - 0.5 * gw, b - 0.5 * gb
    assert losses[0] == pytest.approx(np.log(3))
    assert all(after < before for before, after in itertools.pairwise(losses))
    assert np.isfinite(weight).all()
    assert np.isfinite(bias).all()


@pytest.mark.parametrize(
    ("logits", "target", "options", "kind", "message"),
    [
        ([2.0, 1.0], 2, {}, ValueError, r"target is 2, outside \[0, 2\)"),
        ([2.0, 1.0], -1, {}, ValueError, r"target is -1, outside"),
        ([2.0, "one"], 0, {}, TypeError, r"logits\[1\] is 'one', not a number"),
        ([2.0, None], 0, {}, TypeError, r"logits\[1\] is None"),
        ([True, False], 0, {}, TypeError, r"logits\[0\] is True, not a number"),
        ("word", 0, {}, TypeError, r"logits\[0\] is 'word'"),
        ([2.0], 0, {}, ValueError, "logits have 1 class; 2 to 10"),
        (list(range(11)), 0, {}, ValueError, "logits have 11 classes"),
        ([[1.0, 2.0]], 0, {}, ValueError, "one row"),
        ([1.0, 2.0], [-0.5, 1.5], {}, ValueError, r"target\[0\] is -0.5"),
        ([1.0, 2.0], [0.5, 0.6], {}, ValueError, "target sums to 1.1"),
        ([1.0, 2.0], [0.5, 0.25, 0.25], {}, ValueError, r"target has shape \(3,\)"),
        ([1.0, 2.0], 0.5, {}, TypeError, "target is 0.5; it is a class"),
        ([1.0, float("nan")], 0, {}, ValueError, r"logits\[1\] is nan"),
        ([1.0, INF], 0, {}, ValueError, r"logits\[1\] is inf"),
        ([1.0, 1e16], 0, {}, ValueError, r"logits\[1\] is 1e\+16"),
        ([-INF, -INF], 0, {}, ValueError, "all are −inf"),
        ([-INF, 1.0], 0, {}, ValueError, r"logits\[0\] is −inf and its target is 1"),
        ([-INF, 1.0], 1, {"label_smoothing": 0.1}, ValueError, r"logits\[0\] is −inf and its target is 0.05"),
        ([1.0, 2.0], 0, {"label_smoothing": 1.5}, ValueError, "label_smoothing is 1.5"),
        ([1.0, 2.0], 0, {"label_smoothing": "much"}, TypeError, "label_smoothing is 'much'"),
        ([1.0, 2.0], 0, {"temperature": 0.0}, ValueError, "temperature is 0"),
        ([1.0, 2.0], 0, {"lang": "fr"}, ValueError, "lang is 'fr'"),
    ],
)
def test_errors(logits: Any, target: Any, options: dict[str, Any], kind: type[Exception], message: str) -> None:
    with pytest.raises(kind, match=message) as caught:
        softgrad.explain(logits, target, **options)
    assert "\n" not in str(caught.value)


def test_tensors_and_half_precision_are_read() -> None:
    import ml_dtypes
    import torch

    plain = softgrad.explain([2.0, 1.0, 0.0], 0)
    for logits in (
        torch.tensor([2.0, 1.0, 0.0], requires_grad=True),
        np.array([2, 1, 0]),
        np.array([2, 1, 0], dtype=ml_dtypes.bfloat16),
    ):
        np.testing.assert_array_equal(softgrad.explain(logits, 0).gradient, plain.gradient)
    assert softgrad.explain([2.0, 1.0, 0.0], torch.tensor(0)).loss == plain.loss
