"""`gap` is a promise: at no iterate of any problem is the objective farther from its minimum than it says."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from regression_cases import EVERY_SOLVER, problem, random_problem
from scipy import sparse
from written import SOLVERS, Problem

from softgrad.regression import fit

ROUNDING = 1e-13  # relative: of sums of a few thousand terms
ROUGH = 1e-5  # of a history whose first entries are made in float32


@dataclass
class Case:
    """A problem that prints as the arguments of `fit`."""

    x: Any
    targets: Any
    n_classes: int
    options: dict[str, Any]


@st.composite
def cases(draw: st.DrawFn) -> Case:
    """Every option that changes the objective, at sizes where any can matter."""
    k = draw(st.sampled_from([2, 2, 3, 4, 7]))
    n, p = draw(st.integers(1, 30)), draw(st.integers(1, 6))
    random = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    targets: Any
    match draw(st.sampled_from(["labels", "distributions", "any sum", "skewed"])):
        case "labels":
            n = max(n, k)
            targets = random.permutation(np.concatenate([np.arange(k), random.integers(k, size=n - k)]))
        case "distributions":
            targets = random.dirichlet(np.ones(k), size=n)
        case "any sum":
            targets = random.uniform(0, 1, size=(n, k)) * random.uniform(0.01, 3, size=(n, 1))
            targets[:, 1:][random.random((n, k - 1)) < 0.3] = 0
            targets[0] += 0.1
        case _:  # classes of very unequal mass, rows without any
            targets = random.uniform(0.5, 1, size=(n, k)) * np.logspace(0, -4, k)
            targets[1::4] = 0
    x = random.normal(size=(n, p)) * 10.0 ** draw(st.sampled_from([-2, 0, 0, 1])) + draw(st.sampled_from([0, 0, 5]))
    options: dict[str, Any] = {
        "C": draw(st.sampled_from([1e-3, 0.1, 1.0, 10.0, 1e3])),
        "fit_intercept": draw(st.booleans()),
        "solver": draw(st.sampled_from(SOLVERS)),
        "max_iter": draw(st.sampled_from([1, 2, 3, 5, 60])),
        "tol": draw(st.sampled_from([1e-3, 1e-10])),
    }
    if draw(st.booleans()):
        options["sample_weight"] = random.uniform(0.1, 1, size=n) * 10.0 ** random.integers(-2, 3, size=n)
    if draw(st.booleans()):
        options["class_weight"] = 10.0 ** random.uniform(-1, 1, size=k)
    if draw(st.booleans()):
        options["label_smoothing"] = draw(st.sampled_from([0.01, 0.1, 0.9]))
    scale = draw(st.sampled_from([0, 0, 1.0, 5.0]))
    if scale:
        options["offset"] = scale * random.normal(size=(n, k) if k > 2 else n)
    if draw(st.sampled_from([False, False, True])):
        rows = 1 if k == 2 else k
        options["start"] = random.normal(size=(rows, p)), random.normal(size=rows) * options["fit_intercept"]
    if draw(st.booleans()):
        x = x.astype(np.float32)
    return Case(x, targets, k, options)


@given(cases())
def test_gap_is_never_below_the_truth(case: Case) -> None:
    written = Problem(case.x, case.targets, case.n_classes, **case.options)
    least = written.minimum()[0]
    result = fit(case.x, case.targets, case.n_classes, **case.options)
    assert result.objective == pytest.approx(written.value(result.coef, result.intercept), rel=1e-9)
    for h in result.history:
        truth = (h.objective - least) / least
        assert truth >= -ROUGH, "an objective below the minimum"
        assert h.gap >= truth - ROUGH, f"iteration {h.iteration}: gap {h.gap} but in truth {truth}"
    assert result.gap >= (written.value(result.coef, result.intercept) - least) / least - ROUNDING
    assert result.converged == (result.gap <= case.options["tol"])


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("n_classes", [2, 3])
def test_the_objective_is_that_of_the_coefficients(n_classes: int, seed: int) -> None:
    """Of classes as good as absent, where a preconditioner knows little of what all classes share."""
    random = np.random.default_rng(seed)
    targets = random.uniform(0.5, 1, size=(12, n_classes)) * np.logspace(0, -4, n_classes)
    targets[1::4] = 0
    x = 5 + 0.01 * random.normal(size=(12, 2))
    weights = random.uniform(0.1, 1, size=12) * 10.0 ** random.integers(-2, 3, size=12)
    options = {"C": 1.0, "fit_intercept": False, "sample_weight": weights}
    result = fit(x, targets, n_classes, solver="lbfgs", tol=1e-3, max_iter=60, **options)
    value = Problem(x, targets, n_classes, **options).value(result.coef, result.intercept)
    assert result.objective == pytest.approx(value, rel=1e-12)


@given(cases())
def test_every_problem_is_solved(case: Case) -> None:
    """Enough iterations, and any of these problems ends with a certificate."""
    tol = 1e-9 if case.options["solver"] != "lbfgs" else 1e-6
    # L-BFGS has needed 6,725 iterations for seven rows whose weights were 1e5 apart; Newton's method 21.
    options = case.options | {"max_iter": 50_000, "tol": tol}
    result = fit(case.x, case.targets, case.n_classes, **options)
    assert result.converged, f"{result.message}: gap {result.gap} after {result.n_iter} iterations"
    assert result.gap <= tol


@EVERY_SOLVER
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("name", ["wine", "digits", "breast_cancer"])
def test_gap_on_real_data(name: str, dtype: Any, solver: str) -> None:
    x, y, n_classes = problem(name)
    x = x.astype(dtype)
    written = Problem(x, y, n_classes)
    optimum = fit(x, y, n_classes, tol=1e-12, max_iter=5000)
    least = written.value(optimum.coef, optimum.intercept)
    result = fit(x, y, n_classes, tol=1e-8, solver=solver, max_iter=2000)
    worst = 0.0
    for h in result.history:
        truth = (h.objective - least) / least
        assert h.gap >= truth - ROUGH
        if 1e-7 < truth < 1e-3:
            worst = max(worst, h.gap / truth)
    assert worst < 1e5, "a bound so loose that tol would cost many iterations too many"
    for max_iter in (1, 2, 3):
        stopped = fit(x, y, n_classes, tol=1e-8, solver=solver, max_iter=max_iter)
        assert stopped.gap >= written.value(stopped.coef, stopped.intercept) / least - 1 - 1e-12


@EVERY_SOLVER
@pytest.mark.parametrize("tol", [1e-1, 1e-3, 1e-6])
def test_tol_is_kept(tol: float, solver: str) -> None:
    for name in ("iris", "wine", "breast_cancer"):
        x, y, n_classes = problem(name)
        for C in (0.01, 100.0):
            result = fit(x, y, n_classes, C=C, tol=tol, solver=solver, max_iter=5000)
            assert result.converged, result.message
            assert result.gap <= tol
            least = fit(x, y, n_classes, C=C, tol=1e-12, max_iter=5000).objective
            assert result.objective <= least * (1 + tol)


@EVERY_SOLVER
@pytest.mark.parametrize("size", [30.0, 1e4])
def test_large_offsets_keep_the_promise(size: float, solver: str) -> None:
    """The dual of a free intercept is feasible only after a correction, which an offset enters."""
    for n_classes in (2, 3):
        x, labels, weights = random_problem(n_classes)
        offset = size * np.random.default_rng(1).normal(size=(len(x), n_classes) if n_classes > 2 else len(x))
        options = {"offset": offset, "sample_weight": weights, "C": 0.1}
        least = Problem(x, labels, n_classes, **options).minimum()[0]
        result = fit(x, labels, n_classes, solver=solver, tol=1e-10, max_iter=300, **options)
        for h in result.history:
            assert h.gap >= (h.objective - least) / least - ROUGH
        assert result.gap >= result.objective / least - 1 - ROUNDING
        assert result.converged == (result.gap <= 1e-10)
        if size < 1e3:  # beyond, float32 scores have no digits left for the rest
            assert result.objective == pytest.approx(least, rel=1e-6)


@EVERY_SOLVER
def test_a_class_of_almost_no_mass(solver: str) -> None:
    x, _, _ = random_problem(3)
    y = np.column_stack([np.full(len(x), 0.5), np.full(len(x), 0.5), np.full(len(x), 1e-12)])
    y[::2, 0] += 0.3
    options = {"C": 10.0, "tol": 1e-9, "solver": solver}
    result = fit(x, y, 3, **options)
    least = Problem(x, y, 3, **options).minimum()[0]
    for h in result.history:
        assert h.gap >= (h.objective - least) / least - ROUGH


@EVERY_SOLVER
def test_gap_of_sparse_rows_and_row_space(solver: str) -> None:
    for n, p in ((60, 5), (12, 80)):
        x, labels, weights = random_problem(3, n=n, p=p)
        x[np.abs(x) < 0.7] = 0
        least = fit(x, labels, 3, sample_weight=weights, tol=1e-12).objective
        for data in (x, sparse.csr_array(x)):
            result = fit(data, labels, 3, sample_weight=weights, tol=1e-9, solver=solver)
            assert result.converged
            for h in result.history:
                assert h.gap >= (h.objective - least) / least - ROUGH


@EVERY_SOLVER
@pytest.mark.parametrize("fit_intercept", [True, False])
def test_gap_at_zero_is_finite(fit_intercept: bool, solver: str) -> None:
    """One iteration from W = 0 there is a bound already, offset or not."""
    x, labels, _ = random_problem(3)
    for offset in (None, np.random.default_rng(0).normal(size=(len(x), 3))):
        result = fit(x, labels, 3, offset=offset, fit_intercept=fit_intercept, solver=solver, max_iter=3, tol=1e-9)
        assert np.isfinite(result.gap), f"offset {offset is not None}"
