"""The checks of one formula or step: in letters, with fifty digits, against the reference and against the kernels."""

from __future__ import annotations

from decimal import Decimal
from itertools import pairwise
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np

from softgrad import linear, loss, reference
from softgrad.derivation._case import Case
from softgrad.derivation._decimal import fifty_digits
from softgrad.derivation._evaluate import assignments
from softgrad.derivation._formula import equal_sides, free_indices, parse
from softgrad.derivation._steps import Formula, Step
from softgrad.derivation._symbols import available, proved

__all__ = ["Check", "check_against", "check_formula"]

# The public functions of losses, under one name as in the reference.
_LIBRARY = SimpleNamespace(**{name: getattr(module, name) for module in (loss, linear) for name in module.__all__})


class Check(NamedTuple):
    """One check and how it went.

    Attributes
    ----------
    how : str
        ``"proved"`` in letters, ``"computed"`` with fifty digits, or against ``"reference"`` or ``"kernel"``.
    what : str
        The formula or expression, in the language of the derivation.
    error : float or None
        The largest difference, relative to what is compared where that is above one; None for a proof, and where
        the formula is not defined for these numbers.
    ok : bool or None
        None where nothing could be checked: no SymPy, or a formula not defined for these numbers.
    """

    how: str
    what: str
    error: float | None
    ok: bool | None


def check_formula(formula: Formula, case: Case, symbolic: bool = True) -> list[Check]:
    """Prove a formula in letters, and compute its sides with the reader's numbers."""
    checks = []
    if formula.symbolic and symbolic:
        holds = None
        if available():
            holds = proved(formula.text, distinct=formula.distinct, sums_to_one=formula.sums_to_one)
        checks.append(Check("proved", formula.text, None, holds))
    node = parse(formula.text)
    sides, worst, defined = equal_sides(node), Decimal(0), False
    with fifty_digits():
        for indices in assignments(case.scope, free_indices(node)):
            if formula.distinct and indices["i"] == indices["j"]:
                continue
            # Fifty digits do not tell exp(1e-313) from 1: S then has two largest parts and the logits have one.
            if len({len(case.scope.maxima(indices, *side.args)) for side in sides if side.op == "argmax"}) > 1:
                continue
            if node.op == "le":
                left, right = (case.scope.value(side, indices) for side in node.args)
                if left.is_finite() and right.is_finite():
                    defined, worst = True, max(worst, left - right)
                continue
            values = [np.atleast_1d(np.asarray(case.scope.value(s, indices), dtype=object)).ravel() for s in sides]
            for left, right in pairwise(values):
                for a, b in zip(*np.broadcast_arrays(left, right), strict=True):
                    if not (a.is_nan() or b.is_nan()):
                        defined, worst = True, max(worst, _apart(a, b))
        error = float(worst) if defined else None
    return [*checks, Check("computed", formula.text, error, None if error is None else error < 1e-40)]


def check_against(step: Step, case: Case) -> list[Check]:
    """Compare what a step is about with the reference and with the public functions, which ask the kernels in use."""
    checks = []
    # The library has the rounding of float64, once in the logits and once in what it computes from them.
    finite = case.z[np.isfinite(case.z)]
    tolerance = 1e-13 * (1 + float(np.abs(finite / case.temperature).max(initial=0.0)))
    for how, module in (("reference", reference), ("kernel", _LIBRARY)):
        for what, function in step.against:
            with np.errstate(all="ignore"):
                found = np.asarray(function(module, case), dtype=np.float64)
            error = _difference(np.asarray(case.worth(what)), found)
            checks.append(Check(how, what, error, error <= tolerance))
    return checks


def _apart(a: Decimal, b: Decimal) -> Decimal:
    """The difference, relative to a number above one; ∞ is equal to itself alone."""
    if a == b:
        return Decimal(0)
    return abs(a - b) / max(Decimal(1), abs(a)) if a.is_finite() and b.is_finite() else Decimal("Infinity")


def _difference(exact: Any, found: Any) -> float:
    """The largest difference, relative to a number above one; ∞ is equal to itself alone."""
    if exact.shape != found.shape:
        return float("inf")
    with np.errstate(invalid="ignore"):
        difference = np.where(exact == found, 0.0, np.abs(exact - found) / np.maximum(1.0, np.abs(exact)))
    return float("inf") if np.isnan(difference).any() else float(difference.max())
