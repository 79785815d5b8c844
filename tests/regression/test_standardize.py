"""A penalty in the unit of each feature's deviation: the fit of standardised features, on every kind of rows."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from scipy import sparse
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from softgrad.regression import RowBlocks, cross_validate_path, fit, softmax_path
from softgrad.sklearn import SoftmaxRegression, SoftmaxRegressionCV


def table(n: int, k: int) -> tuple[Any, Any, Any]:
    """Features of unequal scale, some mostly 0, one far from 0, one constant; labels and weights."""
    rng = np.random.default_rng(k)
    unit = rng.normal(size=(n, 8))
    unit[:, :4][rng.random((n, 4)) < 0.6] = 0
    labels = (unit @ rng.normal(size=(8, k)) / 2 + rng.gumbel(size=(n, k))).argmax(axis=1)
    x = unit * np.logspace(-2, 3, 8)
    x[:, 7] = np.round(x[:, 7]) + 2e6
    x[:, 5] = 3.0
    return x, labels, rng.random(n)


def rows_as(kind: str, x: Any) -> Any:
    return {
        "dense": lambda: x,
        "fortran": lambda: np.asfortranarray(x),
        "float32": lambda: x.astype(np.float32),
        "sparse": lambda: sparse.csr_array(x),
        "blocks": lambda: RowBlocks.of([x[: len(x) // 3], x[len(x) // 3 :]]),
        "sparse blocks": lambda: RowBlocks.of([sparse.csr_array(x[: len(x) // 3]), sparse.csr_array(x[len(x) // 3 :])]),
    }[kind]()


@pytest.mark.parametrize("kind", ["dense", "fortran", "float32", "sparse", "blocks", "sparse blocks"])
@pytest.mark.parametrize("k", [2, 3])
@pytest.mark.parametrize("n", [300, 30_000])
def test_it_is_the_fit_of_standardised_features(n: int, k: int, kind: str) -> None:
    x, labels, weight = table(n, k)
    if kind == "float32":
        x = x.astype(np.float32).astype(np.float64)
    mean = np.average(x, axis=0, weights=weight)
    deviation = np.sqrt(np.average((x - mean) ** 2, axis=0, weights=weight))
    deviation[5] = 1
    expected = fit((x - mean) / deviation, labels, k, sample_weight=weight, C=0.3, tol=1e-12)
    result = fit(rows_as(kind, x), labels, k, sample_weight=weight, C=0.3, tol=1e-10, standardize=True)
    assert result.converged, result.message
    assert result.objective == pytest.approx(expected.objective, rel=1e-8)
    distance = np.sqrt(2 * result.gap * result.objective)  # the objective is strongly convex with modulus 1
    np.testing.assert_allclose(result.coef * deviation, expected.coef, atol=2e-5 + distance)
    if kind != "float32":
        assert result.gap >= result.objective / expected.objective - 1 - 1e-12


def test_few_rows_paths_and_starts() -> None:
    rng = np.random.default_rng(0)
    x, labels = rng.normal(size=(30, 90)) * np.logspace(-2, 2, 90), np.arange(30) % 3
    deviation = x.std(axis=0)
    expected = fit(x / deviation, labels, 3, tol=1e-11)
    found = fit(x, labels, 3, standardize=True, tol=1e-9)
    assert found.objective == pytest.approx(expected.objective, rel=1e-8)
    again = fit(x, labels, 3, standardize=True, tol=1e-9, start=(found.coef, found.intercept))
    assert again.n_iter <= 1
    path = softmax_path(x, labels, [0.1, 1.0], standardize=True, tol=1e-9)
    np.testing.assert_allclose(path.coefs[1] * deviation, expected.coef, atol=1e-4)
    folds = [(np.arange(20), np.arange(20, 30))]
    cross = cross_validate_path(
        x, labels, [1.0], folds, n_classes=3, score=lambda z, rows: 0.0, standardize=True, tol=1e-10
    )
    fold = fit(x[:20], labels[:20], 3, standardize=True, tol=1e-10)
    np.testing.assert_allclose(cross.fold_coefs[0, 0] * deviation, fold.coef * deviation, atol=1e-4)


@pytest.mark.parametrize("k", [2, 3])
def test_the_estimators(k: int) -> None:
    x, labels, _ = table(300, k)
    pipeline = make_pipeline(StandardScaler(), SoftmaxRegression(C=0.5, tol=1e-11)).fit(x, labels)
    for model in (
        SoftmaxRegression(C=0.5, tol=1e-11, standardize=True).fit(x, labels),
        SoftmaxRegressionCV(Cs=[0.5], cv=3, tol=1e-11, standardize=True).fit(x, labels),
    ):
        np.testing.assert_allclose(model.predict_proba(x), pipeline.predict_proba(x), atol=1e-5)
    with pytest.raises(ValueError, match="standardize must be True or False, not 'yes'"):
        SoftmaxRegression(standardize="yes").fit(x, labels)  # type: ignore[arg-type]
