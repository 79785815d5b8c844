"""States of the interactive page, and what its tests share."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from browser import settle

import softgrad
from softgrad.derivation._steps import STEPS

__all__ = ["FORMULAS", "HTML", "INF", "TO_NUMBERS", "close", "page", "sent", "settle", "states", "until"]

INF = math.inf
FORMULAS = [(step.name, formula) for step in STEPS for formula in step.formulas]
TO_NUMBERS = '(x) => (x === "-inf" ? -Infinity : x)'


def page(logits: Any = (2.0, 1.0, 0.1), target: Any = 0, **options: Any) -> str:
    return softgrad.explain(logits, target, **options).page()


HTML = page()


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
