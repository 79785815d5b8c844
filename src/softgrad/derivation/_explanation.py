"""What `explain` returns: the steps with the reader's numbers, and the values between them."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from softgrad.derivation._formula import RANGES, free_indices, parse
from softgrad.derivation._reader import as_case, checked_language
from softgrad.derivation._results import Shown, StepResult
from softgrad.derivation._steps import STEPS, Formula, Step
from softgrad.derivation._verify import Check

__all__ = ["Explanation"]

Float = NDArray[np.float64]


class Explanation:
    """The derivation of one loss and its gradient, executed; notebooks show it as a page.

    Attributes
    ----------
    logits : ndarray of shape (V,)
        After the temperature.
    target : ndarray of shape (V,)
        After label smoothing.
    probabilities, gradient : ndarray of shape (V,)
        ``S`` and ``S − y``, the gradient by ``logits``.
    jacobian : ndarray of shape (V, V)
    loss : float
        In nats.
    lang : str
    """

    def __init__(self, logits: Any, target: Any, label_smoothing: float, temperature: float, lang: str) -> None:
        self.lang = checked_language(lang)
        self._case = case = as_case(logits, target, label_smoothing, temperature)
        self.label_smoothing, self.temperature = case.label_smoothing, case.temperature
        self.logits: Float = case.o
        self.target: Float = case.y
        self.probabilities: Float = case.S
        self.gradient: Float = case.worth("S - y")
        self.jacobian: Float = case.J
        self.loss: float = case.L

    def run(self, symbolic: bool = True) -> Iterator[StepResult]:
        """One step after another, each computed and checked when it is asked for."""
        for step in STEPS:
            yield self._step(step, symbolic)

    @property
    def given(self) -> str:
        """The reader's numbers on one line."""
        from softgrad.derivation._wording import given

        return given(self._case, self.lang)

    @cached_property
    def steps(self) -> tuple[StepResult, ...]:
        """All steps, checked."""
        return tuple(self.run())

    @property
    def checks(self) -> tuple[Check, ...]:
        """The checks of all steps."""
        return tuple(check for step in self.steps for check in step.checks)

    @property
    def ok(self) -> bool:
        """Whether no check failed."""
        return all(check.ok is not False for check in self.checks)

    def page(self) -> str:
        """One self-contained HTML page to play with, which starts at these numbers."""
        from softgrad.derivation._page import page

        return page(self._case, self.lang)

    def _step(self, step: Step, symbolic: bool) -> StepResult:
        from softgrad.derivation._facts import facts_of
        from softgrad.derivation._languages import TEXTS
        from softgrad.derivation._verify import check_against

        title, sentence = TEXTS[self.lang][step.name]
        formulas = tuple(self._shown(formula, symbolic) for formula in step.formulas)
        tables = tuple((parse(name), np.asarray(self._case.worth(name))) for name in step.tables)
        return StepResult(
            step.name, step.part, title, sentence, formulas, tables,
            facts_of(step.name, self._case, self.lang), tuple(check_against(step, self._case)),
        )  # fmt: skip

    def _shown(self, formula: Formula, symbolic: bool) -> Shown:
        """A formula of vectors has no line with numbers: its table shows them."""
        from softgrad.derivation._decimal import fifty_digits
        from softgrad.derivation._substitute import has_whole_arrays, substituted
        from softgrad.derivation._verify import check_formula

        case, node = self._case, parse(formula.text)
        checks = tuple(check_formula(formula, case, symbolic))
        if has_whole_arrays(node):
            return Shown(node, (), checks)
        with fifty_digits():
            instances = [
                substituted(node, case.scope, at)
                for at in places(free_indices(node), formula.distinct, case.first, case.other)
            ]
        return Shown(node, tuple(instance for instance in instances if instance != node), checks)

    def __repr__(self) -> str:
        return (
            f"<Explanation of logits {self.logits.round(4).tolist()}, target {self.target.round(4).tolist()}:"
            f" loss {self.loss:.4g}, S − y {self.gradient.round(4).tolist()}>"
        )

    def _repr_markdown_(self) -> str:
        from softgrad.derivation._documents import markdown

        return markdown(self.steps, self.given, self.lang)

    def _repr_html_(self) -> str:
        from softgrad.derivation._documents import html

        return html(self.steps, self.given, self.lang)


def places(free: list[str], distinct: bool, first: int, other: int) -> list[dict[str, int]]:
    """Where a formula is shown with numbers: at the target's class, at another one, at both together."""
    fixed = {index: 0 for index in free if RANGES[index] != "V"}
    classes = [index for index in free if RANGES[index] == "V"]
    if not classes:
        return [fixed]
    if len(classes) == 1:
        return [fixed | {classes[0]: first}, fixed | {classes[0]: other}]
    pairs = [(first, other)] if distinct else [(first, first), (first, other)]
    return [fixed | dict(zip(classes, pair, strict=True)) for pair in pairs]
