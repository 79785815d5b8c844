"""The gap and the objective are those of the model handed out, on the problem that was given."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from regression_cases import EVERY_SOLVER
from scipy import sparse
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from written import SOLVERS

from softgrad.regression import RowBlocks, fit, softmax_path
from softgrad.sklearn import SoftmaxRegression, SoftmaxRegressionCV

Long = np.longdouble


def objective(x: Any, labels: Any, coef: Any, intercept: Any, C: float) -> np.longdouble:
    """F of a model in long double."""
    z = np.asarray(x, Long) @ np.asarray(coef, Long).T + np.asarray(intercept, Long)
    if z.shape[1] == 1:
        z = np.hstack([np.zeros_like(z), z])
    m = z.max(axis=1, keepdims=True)
    losses = (m[:, 0] + np.log(np.exp(z - m).sum(axis=1))) - z[np.arange(len(z)), labels]
    if np.inf == C:
        return Long(losses.sum())
    return Long(C * losses.sum() + (np.asarray(coef, Long) ** 2).sum() / 2)


def table(n: int, p: int, k: int, seed: int = 0) -> tuple[Any, Any]:
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n, p))
    return x, (x @ rng.normal(size=(p, k)) + rng.gumbel(size=(n, k))).argmax(axis=1)


def check(x: Any, labels: Any, coef: Any, intercept: Any, C: float, said: float, gap: float, least: Any) -> None:
    true = objective(x, labels, coef, intercept, C)
    assert said == pytest.approx(float(true), rel=1e-9)
    assert gap >= float((true - least) / least) - 1e-12


@pytest.mark.parametrize("scale", [1e-150, 1e-9, 1e9, 3e8, 1e100, 1e150 / 4])
@pytest.mark.parametrize(("n", "p", "k"), [(40, 100, 2), (30, 60, 3), (200, 5, 3)])
def test_one_feature_of_another_scale(scale: float, n: int, p: int, k: int) -> None:
    """A row space must keep small features beside a large one, or say that it did not."""
    x, labels = table(n, p, k)
    x[:, -1] *= scale
    result = fit(x, labels, k)
    # The scaled feature costs no penalty if it is large, and is worth nothing if it is small: solve the rest apart.
    other = x.copy()
    other[:, -1] = x[:, -1] / scale * 1e6 if scale > 1 else 0.0
    rest = fit(other, labels, k, tol=1e-12)
    coef = rest.coef.copy()
    coef[:, -1] *= 1e6 / scale if scale > 1 else 0.0
    least = min(objective(x, labels, c, b, 1.0) for c, b in ((coef, rest.intercept), (result.coef, result.intercept)))
    assert result.converged, result.message
    check(x, labels, result.coef, result.intercept, 1.0, result.objective, result.gap, least)


@EVERY_SOLVER
@pytest.mark.parametrize("far", [1e2, 1e5, 1.7e9, -1e12])
@pytest.mark.parametrize("k", [2, 3])
def test_features_far_from_zero(far: float, k: int, solver: str) -> None:
    """With an intercept a shift is exact: a year or a time stamp needs no scaling by hand."""
    x, labels = table(300, 4, k)
    x = np.round(x * 1024) / 1024  # so that x + far keeps its digits
    x[:, 1] = np.round(x[:, 1] * 8)
    moved = x.copy()
    moved[:, 1] += far
    near, result = fit(x, labels, k, tol=1e-10), fit(moved, labels, k, tol=1e-7, solver=solver)
    assert result.converged, result.message
    assert result.n_iter <= 40
    np.testing.assert_allclose(result.coef, near.coef, atol=2e-3)
    # far · coef has 53 bits: the intercept that is handed out is rounded, and its gap says so
    assert result.objective == pytest.approx(near.objective, rel=1e-6)
    assert result.gap >= result.objective / near.objective - 1 - 1e-9


def rows_as(kind: str, x: Any) -> Any:
    if kind == "float32":
        return x.astype(np.float32)
    if kind == "sparse":
        return sparse.csr_array(x)
    if kind == "blocks":
        return RowBlocks.of([x[:700], x[700:]])
    return np.asfortranarray(x)


@pytest.mark.parametrize("kind", ["dense", "float32", "sparse", "blocks"])
@pytest.mark.parametrize("n", [1500, 60000])
def test_a_year_in_every_kind_of_rows(kind: str, n: int) -> None:
    """At sizes that are computed in float64 and in float32; sparse rows keep their zeros."""
    x, labels = table(n, 20, 3, seed=1)
    x[:, :18][np.abs(x[:, :18]) < 1] = 0
    x[:, 19] = 2000 + np.round(x[:, 19] * 8)
    given = rows_as(kind, x)
    least = fit(np.column_stack([x[:, :19], x[:, 19] - 2000]), labels, 3, tol=1e-11).objective
    result = fit(given, labels, 3, tol=1e-6)
    assert result.converged, result.message
    assert result.n_iter <= 40
    assert result.objective == pytest.approx(least, rel=2e-6)
    assert result.gap >= result.objective / least - 1 - 1e-9


def test_without_an_intercept_nothing_is_shifted() -> None:
    x, labels = table(300, 3, 3)
    x[:, 0] += 100
    result = fit(x, labels, 3, fit_intercept=False, tol=1e-9)
    assert result.converged
    free = LogisticRegression(fit_intercept=False, solver="newton-cholesky", tol=1e-12).fit(x, labels)
    np.testing.assert_allclose(result.coef, free.coef_, atol=1e-4)


@pytest.mark.parametrize("C", [1e-4, 1.0, 1e4])
@pytest.mark.parametrize("k", [2, 4])
@pytest.mark.parametrize("scale", [1.0, 1e3])
def test_float32_models_are_certified_as_they_are_handed_out(C: float, k: int, scale: float) -> None:
    x, labels = table(400, 6, k, seed=2)
    x = (x * np.logspace(0, np.log10(scale), 6)).astype(np.float32)
    least = fit(x.astype(np.float64), labels, k, C=C, tol=1e-13).objective
    model = SoftmaxRegression(C=C, tol=1e-8).fit(x, labels)
    assert model.coef_.dtype == np.float32
    check(x, labels, model.coef_, model.intercept_, C, model.objective_, model.gap_, least)
    path = softmax_path(x, labels, [C], coef_dtype=np.float32, tol=1e-8)
    check(x, labels, path.coefs[0], path.intercepts[0], C, path.objectives[0], path.gaps[0], least)
    chosen = SoftmaxRegressionCV(Cs=[C], cv=2, tol=1e-8).fit(x, labels)
    check(x, labels, chosen.coef_, chosen.intercept_, C, chosen.path_objectives_[0], chosen.path_gaps_[0], least)


def test_a_float32_intercept_that_holds_no_digits_has_no_small_gap() -> None:
    """coef · 1e7 does not fit into 24 bits."""
    x, labels = table(400, 2, 2)
    x[:, 0] = np.round(x[:, 0] * 64) + 2.0**24
    x = x.astype(np.float32)
    with pytest.warns(ConvergenceWarning, match="gap"):
        model = SoftmaxRegression().fit(x, labels)
    near = x.astype(np.float64) - [2.0**24, 0]
    least = fit(near, labels, 2, tol=1e-12).objective
    true = objective(x, labels, model.coef_, model.intercept_, 1.0)
    assert model.gap_ >= float(true / least) - 1 - 1e-9
    assert model.objective_ == pytest.approx(float(true), rel=1e-6)


def test_coefficients_that_overflow_their_type_are_refused() -> None:
    x, labels = table(100, 2, 2)
    with pytest.raises(ValueError, match="a coefficient overflows float32"):
        fit(x * [1e-60, 1], labels, 2, C=1e150, coef_dtype=np.float32)


@pytest.mark.parametrize("k", [2, 3])
@pytest.mark.parametrize(
    ("scale", "solver"), [(1.0, solver) for solver in SOLVERS] + [(1e-60, "auto"), (1e60, "auto"), (1e60, "newton")]
)
def test_without_a_penalty_there_is_a_bound(k: int, scale: float, solver: str) -> None:
    x, labels = table(400, 4, k, seed=3)
    x[:, 2] *= scale
    result = fit(x, labels, k, C=np.inf, solver=solver)
    assert result.converged, result.message
    exact = fit(x, labels, k, C=np.inf, solver="newton", tol=1e-13)
    least = objective(x, labels, exact.coef, exact.intercept, np.inf)
    check(x, labels, result.coef, result.intercept, np.inf, result.objective, result.gap, least)
    assert 0 < result.gap <= 1e-6
    unit = np.array([1, 1, scale, 1])
    np.testing.assert_allclose(result.coef * unit, exact.coef * unit, atol=3e-5)


def test_without_a_penalty_unfinished_fits_have_no_small_gap() -> None:
    x, labels = table(400, 4, 3, seed=3)
    least = fit(x, labels, 3, C=np.inf, tol=1e-12).objective
    for max_iter in range(1, 6):
        result = fit(x, labels, 3, C=np.inf, max_iter=max_iter)
        assert result.gap >= result.objective / least - 1 - 1e-12


@pytest.mark.parametrize("kind", ["duplicate", "constant", "zero", "sum of others"])
def test_without_a_penalty_collinear_features_have_a_bound(kind: str) -> None:
    """The coefficients are not unique, the least loss is."""
    x, labels = table(400, 4, 3, seed=4)
    more = {"duplicate": x[:, 0], "constant": np.ones(400), "zero": np.zeros(400), "sum of others": x.sum(axis=1)}[kind]
    least = fit(x, labels, 3, C=np.inf, tol=1e-12).objective
    result = fit(np.column_stack([x, more]), labels, 3, C=np.inf)
    assert result.converged, result.message
    assert result.objective == pytest.approx(least, rel=1e-6)
    assert result.objective / least - 1 - 1e-12 <= result.gap <= 1e-6


def test_without_a_penalty_sparse_rows_have_a_bound() -> None:
    x, labels = table(8000, 100, 3, seed=5)
    x[np.abs(x) < 1] = 0
    result = fit(sparse.csr_array(x), labels, 3, C=np.inf)
    least = fit(x, labels, 3, C=np.inf, tol=1e-10).objective
    assert result.converged, result.message
    assert result.objective / least - 1 - 1e-10 <= result.gap <= 1e-6


def test_without_a_penalty_and_with_many_parameters_the_gap_is_nan_and_the_message_says_why() -> None:
    x, labels = table(9000, 800, 2, seed=6)
    labels = (x[:, 0] + np.random.default_rng(0).logistic(size=9000) * 3 > 0).astype(int)
    result = fit(x, labels, 2, C=np.inf, tol=1e-3)
    assert np.isnan(result.gap)
    assert "gap is NaN" in result.message
    assert result.converged
