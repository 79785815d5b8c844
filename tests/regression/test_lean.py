"""Little data: the lean Newton's method finds what the general solver finds, and stops at tol."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from regression_cases import problem, random_problem

from softgrad.regression import _fit, fit


@pytest.mark.parametrize("name", ["iris", "digits"])
def test_tol_is_honoured(name: str) -> None:
    x, y, k = problem(name)
    loose, tight = (fit(x, y, k, tol=tol) for tol in (1e-2, 1e-9))
    assert loose.gap <= 1e-2
    assert tight.gap <= 1e-9
    assert loose.n_iter < tight.n_iter
    assert loose.objective > tight.objective * (1 + 1e-9)


@pytest.mark.parametrize("fit_intercept", [True, False])
@pytest.mark.parametrize(("n_classes", "p"), [(2, 3), (4, 3), (7, 20)])  # (7, 20): conjugate gradients
def test_the_general_solver_agrees(
    n_classes: int, p: int, fit_intercept: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    x, labels, weights = random_problem(n_classes, 90, p)
    soft = 0.8 * np.eye(n_classes)[labels] + 0.2 / n_classes
    options: dict[str, Any] = {
        "sample_weight": weights, "class_weight": np.linspace(0.5, 2, n_classes), "label_smoothing": 0.1,
        "offset": np.random.default_rng(1).normal(size=(90, n_classes)), "fit_intercept": fit_intercept, "tol": 1e-11,
        "start": (np.full((1 if n_classes == 2 else n_classes, p), 0.3), np.zeros(1 if n_classes == 2 else n_classes)),
    }  # fmt: skip
    ended = []
    run = _fit.lean
    monkeypatch.setattr(_fit, "lean", lambda *args: ended.append(run(*args)) or ended[-1])
    found = fit(x, soft, n_classes, **options)
    assert ended == [True]
    other = fit(x, soft, n_classes, solver="newton-cg", **options)
    assert found.objective == pytest.approx(other.objective, rel=1e-10)
    np.testing.assert_allclose(found.coef, other.coef, atol=1e-4)
    assert [h.iteration for h in found.history] == list(range(1, found.n_iter + 1))
