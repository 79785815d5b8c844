"""The fit against glmnet, scikit-learn, a plain Newton method and itself told in other words."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cases import INSTRUCTION_SETS
from hypothesis import given
from hypothesis import strategies as st
from regression_cases import EVERY_SOLVER, GOLDEN, golden_problems, problem, random_problem
from scipy import sparse
from sklearn.linear_model import LogisticRegression
from threadpoolctl import threadpool_limits
from written import SOLVERS, TIGHT, Problem, centred

from softgrad import reference
from softgrad._core import backend
from softgrad.regression import FitInterrupted, FitResult, fit

NAMES = ("iris", "wine", "digits", "breast_cancer")


def same_optimum(a: FitResult, b: FitResult, rel: float = 1e-9) -> None:
    """Two fits of one problem: strong convexity bounds the distance of the coefficients by the gaps."""
    assert a.converged, a.message
    assert b.converged, b.message
    assert a.objective == pytest.approx(b.objective, rel=rel)
    apart = 2 * np.sqrt(2 * (max(a.gap, b.gap) + 1e-14) * max(a.objective, b.objective))
    assert np.linalg.norm(a.coef - b.coef) <= apart


# --- other programs --------------------------------------------------------------------------------------------------

GOLDEN_NAMES = sorted(set(GOLDEN) - {"made_with"})


@pytest.mark.parametrize("name", GOLDEN_NAMES)
@EVERY_SOLVER
def test_finds_what_glmnet_finds(name: str, solver: str) -> None:
    arguments, options = golden_problems()[name]
    for C, coef, intercept in zip(*(GOLDEN[name][key] for key in ("Cs", "coefs", "intercepts")), strict=True):
        result = fit(*arguments, C=C, tol=TIGHT[solver], solver=solver, **options)
        assert result.converged, result.message
        assert result.coef.shape == np.shape(coef)
        assert result.intercept.shape == np.shape(intercept)
        close = 1e-6 if solver != "lbfgs" else 3e-5
        np.testing.assert_allclose(result.coef, coef, rtol=close, atol=close)
        np.testing.assert_allclose(centred(result.intercept), centred(intercept), rtol=close, atol=10 * close)
        theirs = Problem(*arguments, C=C, **options).value(coef, intercept)
        assert result.objective == pytest.approx(theirs, rel=2 * TIGHT[solver])


def test_the_golden_numbers_are_those_of_scikit_learns_tests() -> None:
    """``test_logistic_glmnet`` there has these digits, by another run of glmnet."""
    two, three = GOLDEN["nine_rows_binomial"], GOLDEN["nine_rows_multinomial"]
    np.testing.assert_allclose(two["coefs"][0], [[0.44464569182, 0.01457563448]], rtol=1e-6)
    np.testing.assert_allclose(two["intercepts"][0], [0.89230405539], rtol=1e-6)
    rows = [[-0.38023389305, -0.01226499932], [-8.164030176e-05, 0.04734548012], [0.3803155334, -0.0350804808]]
    np.testing.assert_allclose(three["coefs"][0], rows, rtol=1e-6, atol=1e-8)
    np.testing.assert_allclose(three["intercepts"][0], [-0.12004759652, 0.2251747383, -0.1051271418], rtol=1e-6)


@cache
def rival(name: str, C: float) -> LogisticRegression:
    """Scikit-learn's fit, on one thread: its idle BLAS threads would spin."""
    x, y, _ = problem(name)
    with threadpool_limits(1):
        return LogisticRegression(C=C, tol=1e-10, max_iter=1000, solver="newton-cholesky").fit(x, y)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("C", [0.01, 1.0, 100.0])
@EVERY_SOLVER
def test_reaches_scikit_learns_optimum(name: str, C: float, solver: str) -> None:
    x, y, n_classes = problem(name)
    tol = 1e-6 if (solver, C) == ("lbfgs", 100.0) else TIGHT[solver]  # a first-order method's certificate is late
    tol = max(tol, 1e-11 if C == 100.0 else 0.0)  # the loss is a thousandth of the sums that are rounded
    ours = fit(x, y, n_classes, C=C, tol=tol, solver=solver, max_iter=5000)
    theirs = rival(name, C)
    assert ours.converged, ours.message
    assert ours.solver == solver
    assert ours.gap <= tol
    assert ours.coef.shape == theirs.coef_.shape
    written = Problem(x, y, n_classes, C=C)
    least = written.value(theirs.coef_, theirs.intercept_)
    assert ours.objective == pytest.approx(written.value(ours.coef, ours.intercept), rel=1e-10)
    assert -1e-11 <= ours.objective / least - 1 <= tol + 1e-11
    # ½‖W − W*‖² ≤ F − F*: how far apart the coefficients of two such fits can be.
    assert np.linalg.norm(ours.coef - theirs.coef_) <= 2 * np.sqrt(2 * (tol + 1e-11) * least)
    rows = x[::7]
    ours_says = reference.softmax(Problem(rows, y[::7], n_classes).logits(ours.coef, ours.intercept))
    with threadpool_limits(1):
        np.testing.assert_allclose(ours_says, theirs.predict_proba(rows), atol=2e-3 if tol > 1e-11 else 1e-4)


@pytest.mark.parametrize("name", NAMES)
def test_auto_names_the_solver_it_took(name: str) -> None:
    x, y, n_classes = problem(name)
    result = fit(x, y, n_classes)
    assert result.converged
    assert result.gap <= 1e-6
    assert result.solver in SOLVERS
    least = Problem(x, y, n_classes).value(rival(name, 1.0).coef_, rival(name, 1.0).intercept_)
    assert result.objective <= least * (1 + 1e-6)


# --- curvature -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("columns", [1, 2, 7, 20, 32, 33, 100])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("layout", ["contiguous", "padded", "every second row"])
def test_curvature_kernel(columns: int, dtype: Any, layout: str, instruction_set: str) -> None:
    random = np.random.default_rng(columns)
    n = 23

    def laid(values: Any) -> Any:
        if layout == "contiguous":
            return np.array(values, dtype)
        if layout == "padded":
            whole = np.full((n, columns + 5), 77.0, dtype)
            whole[:, :columns] = values
            return whole[:, :columns]
        whole = np.full((2 * n, columns), 77.0, dtype)
        whole[::2] = values
        return whole[::2]

    o = 2 * random.normal(size=(n, columns))
    o[::5, 0] += 30  # some rows all but one-hot
    s, v = laid(reference.softmax(o)), laid(random.normal(size=(n, columns)))
    weight = random.uniform(0, 3, size=n)
    weight[3] = 0
    exact_s, exact_v = s.astype(np.float64), v.astype(np.float64)
    along = (exact_s * exact_v).sum(axis=1, keepdims=True)
    for a in (weight, None):
        out = laid(v)
        around = out.base
        before = None if around is None else around.copy()
        backend.kernels().curvature(s, a, out)
        w = np.ones(n) if a is None else a
        matrices = np.eye(columns) * exact_s[:, None, :] - exact_s[:, :, None] * exact_s[:, None, :]
        expected = w[:, None] * (exact_s * (exact_v - along))
        if dtype is np.float64 and columns <= 33:
            np.testing.assert_allclose(expected, w[:, None] * (matrices @ exact_v[..., None])[..., 0], atol=1e-13)
            np.testing.assert_allclose(expected, w[:, None] * reference.softmax_jvp(o, exact_v), atol=1e-13)
        terms = w[:, None] * exact_s * (np.abs(exact_v) + (exact_s * np.abs(exact_v)).sum(axis=1, keepdims=True))
        assert (np.abs(out - expected) <= 8 * np.finfo(dtype).eps * terms + 1e-37).all()
        assert a is None or not out[3].any()
        if before is not None and layout == "padded":
            np.testing.assert_array_equal(around[:, columns:], before[:, columns:])
        elif before is not None and layout == "every second row":
            np.testing.assert_array_equal(around[1::2], before[1::2])


@pytest.mark.parametrize("columns", [2, 7, 33])
def test_curvature_is_the_derivative_of_the_probabilities(columns: int, instruction_set: str) -> None:
    random = np.random.default_rng(columns)
    o, v = 2 * random.normal(size=(2, 9, columns))
    weight, h = random.uniform(0.1, 3, size=9), 1e-5
    difference = weight[:, None] * (reference.softmax(o + h * v) - reference.softmax(o - h * v)) / (2 * h)
    out = v.copy()
    backend.kernels().curvature(reference.softmax(o), weight, out)
    np.testing.assert_allclose(out, difference, atol=1e-8)
    assert np.abs(out).max() > 1e-2


def test_curvature_of_no_rows(instruction_set: str) -> None:
    for dtype in (np.float32, np.float64):
        empty = np.empty((0, 3), dtype)
        backend.kernels().curvature(empty, np.empty(0), empty)


@given(st.integers(2, 12), st.floats(0, 30), st.floats(0.1, 4), st.integers(0, 2**32 - 1))
def test_bohnings_inequality(n_classes: int, spread: float, mass: float, seed: int) -> None:
    """``vᵀ H v ≤ vᵀ B v`` with ``B = t/2 (I − 11ᵀ/K)``: the fixed matrix that bounds the curvature at every point."""
    random = np.random.default_rng(seed)
    o, v = spread * random.normal(size=(5, n_classes)), random.normal(size=(5, n_classes))
    y = random.dirichlet(np.ones(n_classes), size=5) * mass
    product = reference.cross_entropy_hvp(o, y, v, reduction="sum")
    curved = (v * product).sum(axis=1)
    bound = mass / 2 * ((v**2).sum(axis=1) - v.sum(axis=1) ** 2 / n_classes)
    assert (curved <= bound * (1 + 1e-9) + 1e-12).all()
    assert (curved >= -1e-12).all()
    if n_classes == 2:  # tight at even odds
        even = reference.cross_entropy_hvp(0 * o, y, v, reduction="sum")
        np.testing.assert_allclose((v * even).sum(axis=1), bound, rtol=1e-9, atol=1e-12)


# --- the same problem in other words ---------------------------------------------------------------------------------


@pytest.mark.parametrize("n_classes", [2, 3])
@EVERY_SOLVER
def test_class_weight_is_sample_weight_is_repetition(n_classes: int, solver: str) -> None:
    x, labels, _ = random_problem(n_classes)
    w = np.array([2, 1, 3])[:n_classes]
    options = {"tol": TIGHT[solver], "solver": solver}
    by_class = fit(x, labels, n_classes, class_weight=w.astype(float), **options)
    by_row = fit(x, labels, n_classes, sample_weight=w[labels].astype(float), **options)
    repeated = fit(np.repeat(x, w[labels], 0), np.repeat(labels, w[labels]), n_classes, **options)
    same_optimum(by_class, by_row)
    same_optimum(by_class, repeated)
    assert np.abs(by_class.coef - fit(x, labels, n_classes, **options).coef).max() > 1e-2


@pytest.mark.parametrize("n_classes", [2, 4])
@EVERY_SOLVER
def test_zero_weight_is_absence(n_classes: int, solver: str) -> None:
    x, labels, weights = random_problem(n_classes)
    weights[7::3] = 0
    kept = weights > 0
    options = {"tol": TIGHT[solver], "solver": solver}
    same_optimum(
        fit(x, labels, n_classes, sample_weight=weights, **options),
        fit(x[kept], labels[kept], n_classes, sample_weight=weights[kept], **options),
    )


@pytest.mark.parametrize("n_classes", [2, 3])
def test_labels_are_one_hot_soft_labels(n_classes: int) -> None:
    x, labels, weights = random_problem(n_classes)
    options = {"tol": 1e-12, "sample_weight": weights, "label_smoothing": 0.1}
    options["class_weight"] = np.arange(1.0, n_classes + 1)
    hard = fit(x, labels, n_classes, **options)
    for dtype in (np.float32, np.float64):
        same_optimum(hard, fit(x, np.eye(n_classes, dtype=dtype)[labels], n_classes, **options))


def test_soft_labels_are_rows_with_weights() -> None:
    """A row with targets y is K rows with one label each, weighted by y: so what does not sum to one has a meaning."""
    x, _, weights = random_problem(3)
    y = np.random.default_rng(1).uniform(0, 1, size=(len(x), 3))
    soft = fit(x, y, 3, sample_weight=weights, tol=1e-12)
    labels = np.tile(np.arange(3), len(x))
    rows = fit(np.repeat(x, 3, 0), labels, 3, sample_weight=(weights[:, None] * y).ravel(), tol=1e-12)
    same_optimum(soft, rows)


@pytest.mark.parametrize("n_classes", [2, 3])
@EVERY_SOLVER
def test_an_offset_that_features_could_make(n_classes: int, solver: str) -> None:
    """With little penalty an offset ``x·V`` is taken off the coefficients again."""
    x, labels, _ = random_problem(n_classes, n=80)
    v = np.random.default_rng(1).normal(size=(n_classes, 3))
    offset = x @ v.T
    if n_classes == 2:
        offset, v = x @ v[1], v[1:]
    plain = fit(x, labels, n_classes, C=1e4, solver=solver, tol=TIGHT[solver])
    moved = fit(x, labels, n_classes, C=1e4, offset=offset, solver=solver, tol=TIGHT[solver])
    assert np.abs(centred((moved.coef + v).T) - centred(plain.coef.T)).max() < 1e-2
    least = Problem(x, labels, n_classes, C=1e4, offset=offset).minimum()[0]
    assert moved.objective == pytest.approx(least, rel=10 * TIGHT[solver])


@EVERY_SOLVER
def test_a_constant_offset_moves_the_intercept_alone(solver: str) -> None:
    x, labels, _ = random_problem(3)
    options = {"tol": TIGHT[solver], "solver": solver}
    shift = np.array([1.0, -2.0, 0.5])
    plain = fit(x, labels, 3, **options)
    moved = fit(x, labels, 3, offset=np.tile(shift, (len(x), 1)), **options)
    same_optimum(plain, moved)
    np.testing.assert_allclose(centred(moved.intercept + shift), centred(plain.intercept), atol=1e-5)


@EVERY_SOLVER
def test_options_together_are_the_written_formula(solver: str) -> None:
    for n_classes in (2, 3):
        x, labels, weights = random_problem(n_classes)
        random = np.random.default_rng(5)
        options: dict[str, Any] = {
            "C": 0.7,
            "sample_weight": weights,
            "class_weight": random.uniform(0.3, 2, size=n_classes),
            "label_smoothing": 0.15,
            "offset": random.normal(size=(len(x), n_classes) if n_classes > 2 else len(x)),
        }
        for targets in (labels, random.uniform(0, 1, size=(len(x), n_classes))):
            for fit_intercept in (True, False):
                told = options | {"fit_intercept": fit_intercept}
                result = fit(x, targets, n_classes, tol=TIGHT[solver], solver=solver, **told)
                written = Problem(x, targets, n_classes, **told)
                least, coef, intercept = written.minimum()
                assert result.objective == pytest.approx(written.value(result.coef, result.intercept), rel=1e-10)
                assert result.objective == pytest.approx(least, rel=10 * TIGHT[solver])
                np.testing.assert_allclose(result.coef, coef, atol=1e-4)
                np.testing.assert_allclose(centred(result.intercept), centred(intercept), atol=1e-4)
                if not fit_intercept:
                    np.testing.assert_array_equal(result.intercept, 0)


@EVERY_SOLVER
def test_constant_features(solver: str) -> None:
    """A column of zeros, and one that only repeats the intercept, get no coefficient."""
    x, labels, _ = random_problem(3)
    options = {"tol": TIGHT[solver], "solver": solver}
    plain = fit(x, labels, 3, **options)
    wider = fit(np.column_stack([x, np.zeros(len(x)), np.full(len(x), 3.0)]), labels, 3, **options)
    assert wider.objective == pytest.approx(plain.objective, rel=10 * TIGHT[solver])
    np.testing.assert_array_equal(wider.coef[:, 3], 0)
    np.testing.assert_allclose(wider.coef[:, 4], 0, atol=1e-5)
    np.testing.assert_allclose(wider.coef[:, :3], plain.coef, atol=1e-4)


@EVERY_SOLVER
@pytest.mark.parametrize("n_classes", [2, 3])
def test_only_constant_features(n_classes: int, solver: str) -> None:
    """What remains is the intercept, the logarithm of the class shares."""
    _, labels, weights = random_problem(n_classes)
    result = fit(np.zeros((len(labels), 2)), labels, n_classes, sample_weight=weights, tol=TIGHT[solver], solver=solver)
    assert result.converged, result.message
    np.testing.assert_array_equal(result.coef, 0)
    share = np.bincount(labels, weights)
    expected = np.log(share[1:] / share[0]) if n_classes == 2 else np.log(share)
    np.testing.assert_allclose(centred(result.intercept), centred(expected), atol=1e-5)


@EVERY_SOLVER
@pytest.mark.parametrize("shift", [1e2, 1e4])
def test_features_far_from_zero(solver: str, shift: float) -> None:
    """The intercept is free, so the optimum does not depend on where the features' zero is."""
    x, labels, _ = random_problem(3)
    plain = fit(x, labels, 3, tol=1e-10)
    moved = fit(x + shift, labels, 3, tol=1e-8, solver=solver, max_iter=5000)
    assert moved.converged, moved.message
    assert moved.objective == pytest.approx(plain.objective, rel=1e-8)


@EVERY_SOLVER
def test_more_classes_than_rows(solver: str) -> None:
    random = np.random.default_rng(0)
    x, y = random.normal(size=(6, 3)), random.dirichlet(np.ones(9), size=6)
    result = fit(x, y, 9, tol=TIGHT[solver], solver=solver)
    least, coef, _ = Problem(x, y, 9).minimum()
    assert result.converged, result.message
    assert result.objective == pytest.approx(least, rel=10 * TIGHT[solver])
    np.testing.assert_allclose(result.coef, coef, atol=1e-4)


@EVERY_SOLVER
@pytest.mark.parametrize("n_classes", [2, 3])
@pytest.mark.parametrize("fit_intercept", [True, False])
def test_more_features_than_rows(n_classes: int, fit_intercept: bool, solver: str) -> None:
    x, labels, weights = random_problem(n_classes, n=24, p=150)
    options = {"tol": TIGHT[solver], "sample_weight": weights, "fit_intercept": fit_intercept, "C": 0.3}
    result = fit(x, labels, n_classes, solver=solver, **options)
    same_optimum(result, fit(x, labels, n_classes, solver="newton-cg", **options))
    written = Problem(x, labels, n_classes, **options)
    assert result.objective == pytest.approx(written.value(result.coef, result.intercept), rel=1e-10)
    inside = result.coef @ np.linalg.pinv(x) @ x  # the optimum lies in the span of the rows
    # As far as the penalty lets a point be that is so little above the optimum.
    assert np.linalg.norm(inside - result.coef) <= np.sqrt(2 * result.gap * result.objective) + 1e-7


@EVERY_SOLVER
@pytest.mark.parametrize("n_classes", [2, 3])
def test_layouts_of_the_features(n_classes: int, solver: str, tmp_path: Path) -> None:
    x, labels, weights = random_problem(n_classes, n=90, p=6)
    x[np.random.default_rng(0).random(x.shape) < 0.4] = 0
    mapped = np.memmap(tmp_path / "x", np.float64, "w+", shape=x.shape)
    mapped[:] = x
    wide = np.zeros((180, 12))
    wide[::2, ::2] = x
    options = {"sample_weight": weights, "tol": TIGHT[solver], "solver": solver}
    plain = fit(x, labels, n_classes, **options)
    dense = (np.asfortranarray(x), mapped, wide[::2, ::2], x[::-1].copy()[::-1])
    for other in dense:
        same_optimum(plain, fit(other, labels, n_classes, **options), rel=10 * TIGHT[solver])
    for other in (sparse.csr_array(x), sparse.csr_matrix(x)):
        same_optimum(plain, fit(other, labels, n_classes, **options), rel=10 * TIGHT[solver])
    same_optimum(plain, fit(sparse.csr_array(x), labels.astype(np.int8), n_classes, **options), rel=10 * TIGHT[solver])
    narrow = fit(sparse.csr_array(x.astype(np.float32)), labels, n_classes, **options)
    same_optimum(fit(x.astype(np.float32), labels, n_classes, **options), narrow, rel=10 * TIGHT[solver])


def test_inputs_are_left_alone() -> None:
    x, labels, weights = random_problem(3)
    y = np.eye(3)[labels]
    offset, start = np.ones((len(x), 3)), (np.ones((3, 3)), np.ones(3))
    everything = (x, y, weights, offset, *start)
    before = [array.copy() for array in everything]
    for solver in SOLVERS:
        fit(x, y, 3, sample_weight=weights, offset=offset, start=start, solver=solver)
    for array, copy in zip(everything, before, strict=True):
        np.testing.assert_array_equal(array, copy)


# --- precision, memory, threads --------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
@EVERY_SOLVER
def test_float32_data_reach_their_float64_optimum(name: str, solver: str) -> None:
    x, y, n_classes = problem(name)
    single = x.astype(np.float32)
    result = fit(single, y, n_classes, tol=TIGHT[solver], solver=solver, max_iter=5000)
    assert result.converged, result.message
    assert result.gap <= TIGHT[solver]
    assert result.coef.dtype == np.float64
    written = Problem(single, y, n_classes)
    least = fit(single.astype(np.float64), y, n_classes, tol=1e-12, max_iter=5000).objective
    assert written.value(result.coef, result.intercept) == pytest.approx(least, rel=max(1e-10, TIGHT[solver]))


@pytest.mark.parametrize("n_classes", [2, 3])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@EVERY_SOLVER
def test_little_memory(n_classes: int, dtype: Any, solver: str) -> None:
    x, labels, weights = random_problem(n_classes, n=400, p=7)
    x = x.astype(dtype)
    options = {"sample_weight": weights, "tol": TIGHT[solver], "solver": solver}
    plain = fit(x, labels, n_classes, **options)
    same_optimum(plain, fit(x, labels, n_classes, max_memory=40_000, **options))
    same_optimum(plain, fit(sparse.csr_array(x), labels, n_classes, max_memory=40_000, **options))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("n_classes", [2, 10])
@EVERY_SOLVER
def test_threads_change_no_bit(dtype: Any, n_classes: int, solver: str) -> None:
    x, y, _ = problem("digits")
    x, y = np.tile(x, (3, 1)).astype(dtype), np.tile(y, 3) % n_classes
    fits = [fit(x, y, n_classes, solver=solver, tol=1e-4, n_threads=n) for n in (1, 2, 3)]
    for other in fits[1:]:
        np.testing.assert_array_equal(fits[0].coef, other.coef)
        np.testing.assert_array_equal(fits[0].intercept, other.intercept)
        assert (fits[0].objective, fits[0].gap, fits[0].n_iter) == (other.objective, other.gap, other.n_iter)


@pytest.mark.parametrize("solver", SOLVERS)
def test_instruction_sets_reach_the_same_optimum(instruction_set: str, solver: str) -> None:
    for name in ("wine", "breast_cancer"):
        x, y, n_classes = problem(name)
        for dtype in (np.float32, np.float64):
            result = fit(x.astype(dtype), y, n_classes, tol=TIGHT[solver], solver=solver)
            assert result.converged, result.message
            np.testing.assert_allclose(result.coef, rival(name, 1.0).coef_, atol=1e-4)
    assert instruction_set in INSTRUCTION_SETS


# --- no penalty ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("n_classes", [2, 3])
@pytest.mark.parametrize("fit_intercept", [True, False])
@EVERY_SOLVER
def test_no_penalty_is_the_maximum_likelihood(n_classes: int, fit_intercept: bool, solver: str) -> None:
    x, labels, weights = random_problem(n_classes, n=120)
    options = {"sample_weight": weights, "fit_intercept": fit_intercept, "C": np.inf}
    free = fit(x, labels, n_classes, solver=solver, tol=TIGHT[solver], **options)
    assert free.converged, free.message
    assert free.gap <= TIGHT[solver]
    written = Problem(x, labels, n_classes, **options)
    g_coef, g_intercept, _ = written.slope(free.coef, free.intercept)
    np.testing.assert_allclose(g_coef, 0, atol=2e-3)
    np.testing.assert_allclose(g_intercept, 0, atol=2e-3)
    assert free.objective == pytest.approx(written.value(free.coef, free.intercept), rel=1e-10)
    least = written.minimum()[0]
    assert free.objective == pytest.approx(least, rel=1e-8)
    assert free.gap >= free.objective / least - 1 - 1e-12


@pytest.mark.parametrize("n_classes", [2, 3])
@EVERY_SOLVER
def test_separable_data_without_a_penalty_end_and_say_so(n_classes: int, solver: str) -> None:
    x = np.array([[-3.0, 1], [-2, 0], [-2.5, -1], [2, 1], [3, 0], [2.5, -1], [0.0, 9], [1, 8], [-1, 9]])
    labels = np.repeat([0, 1, n_classes - 1], 3)
    if n_classes == 2:
        x, labels = x[:6], labels[:6]
    result = fit(x, labels, n_classes, C=np.inf, solver=solver)
    assert not result.converged
    assert result.message
    assert result.n_iter <= 1000
    assert np.isfinite(result.coef).all()
    assert np.isfinite(result.objective)


# --- how a fit goes --------------------------------------------------------------------------------------------------


@EVERY_SOLVER
@pytest.mark.parametrize("name", ["iris", "digits", "breast_cancer"])
def test_history_falls(name: str, solver: str) -> None:
    x, y, n_classes = problem(name)
    heard: list[Any] = []
    result = fit(x, y, n_classes, C=3.0, tol=1e-9, solver=solver, callback=heard.append, max_iter=3000)
    history = result.history
    assert len(history) >= 2
    objectives, gaps = [h.objective for h in history], [h.gap for h in history]
    # The first iterations see the rows in float32, so that the first float64 value may lie that much higher.
    assert all(after <= before * (1 + 1e-9) for before, after in pairwise(objectives))
    assert all(after <= before + 1e-12 for before, after in pairwise(gaps))
    assert not np.isnan(gaps).any()
    passes, seconds = [h.passes for h in history], [h.seconds for h in history]
    assert passes == sorted(passes)
    assert seconds == sorted(seconds)
    iterations = [h.iteration for h in history]
    assert iterations == list(range(iterations[0], result.n_iter + 1))
    assert iterations[0] in (0, 1)
    assert (objectives[-1], gaps[-1]) == (result.objective, result.gap)
    assert passes[-1] <= result.n_passes
    assert heard == list(history)
    assert all(h.step >= 0 for h in history)


@EVERY_SOLVER
def test_stopping_early_is_said(solver: str) -> None:
    x, y, n_classes = problem("digits")
    result = fit(x, y, n_classes, max_iter=2, tol=1e-9, solver=solver)
    assert not result.converged
    assert result.n_iter == 2
    assert "max_iter" in result.message
    assert result.gap > 1e-9
    assert result.objective < Problem(x, y, n_classes).value(np.zeros((10, 64)), np.zeros(10))


@EVERY_SOLVER
@pytest.mark.parametrize("n_classes", [2, 3])
def test_start_goes_on(n_classes: int, solver: str) -> None:
    x, labels, _ = random_problem(n_classes, n=200, p=8)
    whole = fit(x, labels, n_classes, tol=TIGHT[solver], solver=solver)
    again = fit(x, labels, n_classes, tol=2 * TIGHT[solver], solver=solver, start=(whole.coef, whole.intercept))
    assert again.converged
    assert again.n_iter <= 1 < whole.n_iter
    assert again.objective <= whole.objective * (1 + 1e-12)
    part = fit(x, labels, n_classes, tol=TIGHT[solver], solver=solver, max_iter=2)
    rest = fit(x, labels, n_classes, tol=TIGHT[solver], solver=solver, start=(part.coef, part.intercept))
    assert rest.history[0].objective <= part.objective * (1 + 1e-12)
    same_optimum(whole, rest)


@EVERY_SOLVER
def test_a_far_start_is_no_trap(solver: str) -> None:
    """Logits of hundreds, where the softmax has no curvature left."""
    x, labels, _ = random_problem(3)
    start = 100 * np.random.default_rng(0).normal(size=(3, 3)), np.array([50.0, -50.0, 0.0])
    same_optimum(
        fit(x, labels, 3, start=start, tol=TIGHT[solver], solver=solver),
        fit(x, labels, 3, tol=TIGHT[solver], solver=solver),
    )


@EVERY_SOLVER
def test_interruption_keeps_what_was_reached(solver: str) -> None:
    x, y, n_classes = problem("digits")

    def interrupt(progress: Any) -> None:
        if progress.iteration == 2:
            raise KeyboardInterrupt

    with pytest.raises(FitInterrupted) as caught:
        fit(x, y, n_classes, tol=1e-9, solver=solver, callback=interrupt)
    assert isinstance(caught.value, KeyboardInterrupt)
    result = caught.value.result
    assert isinstance(result, FitResult)
    assert not result.converged
    assert result.n_iter == 2
    stopped = fit(x, y, n_classes, tol=1e-9, solver=solver, max_iter=2)
    np.testing.assert_array_equal(result.coef, stopped.coef)
    np.testing.assert_array_equal(result.intercept, stopped.intercept)
    assert result.objective == stopped.objective


def test_an_error_in_the_callback_is_the_callers() -> None:
    x, labels, _ = random_problem(3)

    def fail(progress: Any) -> None:
        raise ZeroDivisionError("mine")

    for solver in SOLVERS:
        with pytest.raises(ZeroDivisionError, match="mine"):
            fit(x, labels, 3, solver=solver, callback=fail)


# --- mistakes --------------------------------------------------------------------------------------------------------


def changed(values: Any, at: Any, to: float) -> Any:
    copy = np.array(values, dtype=np.float64)
    copy[at] = to
    return copy


X = np.random.default_rng(0).normal(size=(6, 2))
SOFT = np.full((6, 3), 1 / 3)
MISTAKES: list[tuple[dict[str, Any], str]] = [
    ({"x": changed(X, (3, 1), np.nan)}, r"(?i)\bx\b.*\b3\b.*nan|nan.*\brow 3\b"),
    ({"x": changed(X, (4, 0), np.inf)}, r"(?i)\bx\b.*\b4\b.*inf|inf.*\brow 4\b"),
    ({"x": changed(X, (5, 0), -np.inf).astype(np.float32)}, r"(?i)\bx\b.*\b5\b.*inf|inf.*\brow 5\b"),
    ({"x": sparse.csr_array(changed(X, (3, 1), np.nan))}, r"(?i)\bx\b.*\b3\b.*nan|nan.*\brow 3\b"),
    ({"x": np.zeros((6, 2), np.int64)}, "float32 or float64"),
    ({"x": np.zeros(6)}, r"(?i)dimension|shape|\(N, P\)|\(n"),
    ({"x": np.zeros((0, 2)), "targets": np.zeros(0, np.int64)}, r"(?i)row"),
    ({"targets": [0, 1, 2, 0, 1]}, r"(?i)row|shape|label"),
    ({"targets": [0, 1, 2, 0, 1, 3]}, r"\b3\b"),
    ({"targets": [0, 1, 2, 0, -2, 1]}, r"-2\b"),
    ({"targets": [0, 1, 0, 1, 0, 1]}, r"(?i)class 2\b|\b2\b.*class"),
    ({"sample_weight": [1, 1, 0, 1, 1, 0]}, r"(?i)class 2\b|\b2\b.*class"),
    ({"targets": changed(SOFT, (4, 1), -0.5)}, r"(?s)\b4\b.*-0\.5"),
    ({"targets": changed(SOFT, (4, 1), np.nan)}, r"(?s)\b4\b.*nan"),
    ({"targets": np.full((6, 4), 0.25)}, r"(?i)shape|columns|classes"),
    ({"targets": 0 * SOFT}, r"(?i)zero|sum|class"),
    ({"n_classes": 1}, "at least 2"),
    ({"sample_weight": [1, 1, -2, 1, 1, 1]}, r"sample_weight\[2\] is -2"),
    ({"sample_weight": [1, 1, 1, np.nan, 1, 1]}, r"sample_weight\[3\] is nan"),
    ({"sample_weight": [1, 1, 1, np.inf, 1, 1]}, r"sample_weight\[3\] is inf"),
    ({"sample_weight": [0] * 6}, "(?i)zero"),
    ({"sample_weight": [1, 1]}, "sample_weight"),
    ({"class_weight": [1, 1]}, "class_weight"),
    ({"class_weight": [1, -1, 1]}, "class_weight"),
    ({"class_weight": [1, np.nan, 1]}, "class_weight"),
    ({"offset": np.zeros((6, 2))}, "offset"),
    ({"offset": np.zeros((5, 3))}, "offset"),
    ({"offset": changed(SOFT, (2, 1), np.nan)}, r"offset.*\b2\b"),
    ({"C": 0.0}, r"\bC must be positive"),
    ({"C": -1.0}, r"\bC must be positive"),
    ({"C": float("nan")}, r"\bC must be positive"),
    ({"tol": 0.0}, "tol must be positive"),
    ({"tol": float("nan")}, "tol must be positive"),
    ({"max_iter": 0}, "max_iter"),
    ({"label_smoothing": 1.5}, "label_smoothing"),
    ({"label_smoothing": -0.1}, "label_smoothing"),
    ({"solver": "sag"}, r"'auto', 'newton-cg', 'newton', 'lbfgs'.*sag"),
    ({"max_memory": -1}, "max_memory"),
    ({"n_threads": 0}, "n_threads"),
    ({"start": (np.zeros((2, 2)), np.zeros(3))}, "start"),
    ({"start": (np.zeros((3, 2)), np.zeros(2))}, "start"),
    ({"start": (np.full((3, 2), np.nan), np.zeros(3))}, "start"),
]


@pytest.mark.parametrize(("change", "message"), MISTAKES)
def test_mistakes_have_one_clear_message(change: dict[str, Any], message: str) -> None:
    told: dict[str, Any] = {"x": X, "targets": np.array([0, 1, 2, 0, 1, 2]), "n_classes": 3} | change
    with pytest.raises(ValueError, match=message):
        fit(**told)


@EVERY_SOLVER
def test_a_later_block_that_is_not_finite_is_found_too(solver: str) -> None:
    x, labels, _ = random_problem(3, n=4000, p=4)
    x[3210, 2] = np.nan
    for data in (x, x.astype(np.float32), np.asfortranarray(x), sparse.csr_array(x)):
        with pytest.raises(ValueError, match=r"\b3210\b"):
            fit(data, labels, 3, solver=solver, max_memory=100_000)


@pytest.mark.parametrize("value", [1e308, 1e200])
@EVERY_SOLVER
def test_features_that_overflow_are_refused(value: float, solver: str) -> None:
    x = np.array([[value], [-value], [value], [2.0]])
    with pytest.raises(ValueError, match=r"(?i)features.*scale"):
        fit(x, np.array([0, 1, 0, 1]), 2, solver=solver)


@pytest.mark.parametrize("make", [lambda x: x * 1e-30, lambda x: x * 1e12], ids=["tiny", "huge"])
@EVERY_SOLVER
def test_odd_scales_end_honestly(make: Callable[[Any], Any], solver: str) -> None:
    """Whatever can be reached, `converged` and `gap` say the truth about it."""
    x, labels, _ = random_problem(3)
    x = make(x)
    result = fit(x, labels, 3, solver=solver, max_iter=200)
    assert np.isfinite(result.objective)
    assert result.objective == pytest.approx(Problem(x, labels, 3).value(result.coef, result.intercept), rel=1e-9)
    assert result.converged == (result.gap <= 1e-6)
