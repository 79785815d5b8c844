"""Separable classes: found with a proof, and nowhere else."""

from __future__ import annotations

from fractions import Fraction
from itertools import product
from typing import Any

import numpy as np
import pytest
from regression_cases import EVERY_SOLVER
from scipy import sparse

from softgrad.regression import RowBlocks, fit


def proved(x: Any, labels: Any, k: int, **options: Any) -> Any:
    """The proof of a fit without a penalty, verified on the rows that were given."""
    result = fit(x, labels, k, C=np.inf, **options)
    found = result.separation
    if found is None:
        assert "separable" not in result.message
        return None
    assert not result.converged
    assert np.isnan(result.gap)
    assert "separable" in result.message
    dense = np.asarray(x.toarray() if sparse.issparse(x) else x, np.longdouble)
    weight = options.get("sample_weight")
    kept = np.ones(len(dense), bool) if weight is None else np.asarray(weight) > 0
    scores = dense[kept] @ found.coef.astype(np.longdouble).T + found.intercept
    if k == 2:
        scores = np.column_stack([np.zeros(len(scores)), scores[:, 0]])
    y = np.asarray(labels)[kept]
    masses = y > 0 if y.ndim == 2 else y[:, None] == np.arange(k)
    size = float(np.abs(scores).max())
    own = np.where(masses, scores, np.inf).min(axis=1, keepdims=True)
    assert (np.where(masses, scores, own) - own <= 1e-9 * size).all(), "classes of one target drift apart"
    margins = np.where(masses, np.inf, own - scores)
    assert margins.min() >= -1e-9 * size
    gains = (margins > 1e-7 * size) & ~masses
    assert gains.any()
    assert found.n_rows >= 1
    assert found.complete == bool((gains | masses).all())
    return found


LINE = np.array([[1.0], [2.0], [3.0], [4.0]])


@EVERY_SOLVER
def test_the_classic_examples(solver: str) -> None:
    assert proved(LINE, [0, 0, 1, 1], 2, solver=solver).complete
    assert not proved(np.array([[1.0], [2], [2], [4]]), [0, 0, 1, 1], 2, solver=solver).complete
    assert proved(LINE, [0, 1, 0, 1], 2, solver=solver) is None


def overlapping(k: int, n: int = 200) -> tuple[Any, Any]:
    rng = np.random.default_rng(k)
    return rng.normal(size=(n, 3)), rng.integers(0, k, n)


def test_a_column_that_is_constant_in_a_class() -> None:
    """What happens with a rare indicator: all who have it are of one class."""
    x, labels = overlapping(2)
    flag = (np.arange(200) % 9 == 0).astype(float)
    labels[flag == 1] = 1
    found = proved(np.column_stack([x, flag]), labels, 2)
    assert found.classes == [(1, 0)]
    assert not found.complete
    assert found.n_rows == int(flag.sum())
    np.testing.assert_allclose(found.coef / np.abs(found.coef).max(), [[0, 0, 0, 1]], atol=1e-9)


def test_one_class_of_three_is_apart() -> None:
    x, labels = overlapping(3)
    assert proved(x, labels, 3) is None
    x[labels == 2, 0] += 10
    found = proved(x, labels, 3)
    assert found.classes == [(0, 2), (1, 2), (2, 0), (2, 1)]
    assert not found.complete
    assert found.n_rows == 200


@pytest.mark.parametrize("kind", ["sparse", "float32", "scaled", "far", "wide"])
def test_every_kind_of_rows(kind: str) -> None:
    x, labels = overlapping(3)
    if kind == "wide":  # fewer rows than features are always separable
        x, labels = np.random.default_rng(0).normal(size=(20, 40)), np.arange(20) % 3
        assert proved(x, labels, 3).complete
        return
    for apart in (False, True):
        moved = x.copy()
        moved[labels == 2, 0] += 10 * apart
        moved[np.abs(moved) < 0.3] = 0
        given: Any = {
            "sparse": lambda m: sparse.csr_array(m),
            "float32": lambda m: m.astype(np.float32),
            "scaled": lambda m: m * [1e100, 1e-100, 1],
            "far": lambda m: np.round(m * 64) + np.array([0, 1e9, 0]),
        }[kind](moved)
        assert (proved(given, labels, 3) is not None) == apart


def test_soft_labels_hold_their_classes_together() -> None:
    soft = np.array([[1, 0], [0.5, 0.5], [0, 1], [0, 1]])
    assert proved(LINE, soft, 2).n_rows == 3
    assert proved(LINE, [[1, 0], [0.5, 0.5], [0.5, 0.5], [0, 1]], 2) is None
    assert proved(LINE, [0, 0, 1, 1], 2, label_smoothing=0.1) is None


def test_rows_without_weight_do_not_count() -> None:
    assert proved(LINE, [0, 1, 0, 1], 2, sample_weight=[1, 1, 0, 1]).complete
    assert proved(LINE, [0, 0, 1, 1], 2, sample_weight=[1, 1, 0, 1]).complete


def test_no_intercept() -> None:
    assert proved(LINE, [0, 0, 1, 1], 2, fit_intercept=False) is None
    assert proved(LINE - 2.5, [0, 0, 1, 1], 2, fit_intercept=False).complete


def test_a_penalty_needs_no_proof() -> None:
    result = fit(LINE, [0, 0, 1, 1], 2)
    assert result.separation is None
    assert result.converged


def test_blocks_are_not_searched() -> None:
    result = fit(RowBlocks.of([LINE[:2], LINE[2:]]), [0, 0, 1, 1], 2, C=np.inf)
    assert result.separation is None
    assert not result.converged
    assert np.isnan(result.gap)
    assert "separable" in result.message


def separable_exactly(points: list[tuple[int, int]], labels: list[int]) -> bool:
    """Whether a line through the plane's points has no point on its wrong side and one off it, in rational arithmetic.

    If there is one, there is one through two points, or through one in a direction of the axes or of another pair.
    """
    directions = {(a[0] - b[0], a[1] - b[1]) for a, b in product(points, points) if a != b} | {(0, 1), (1, 0)}
    normals = {(-dy, dx) for dx, dy in directions} | {(dy, -dx) for dx, dy in directions} | directions
    for normal in normals:
        heights = [Fraction(normal[0]) * p[0] + Fraction(normal[1]) * p[1] for p in points]
        for height in heights:
            sides = [(h - height) * (1 if label else -1) for h, label in zip(heights, labels, strict=True)]
            if min(sides) >= 0 and max(sides) > 0:
                return True
    return False


@pytest.mark.parametrize("seed", range(60))
def test_small_integers_against_rational_arithmetic(seed: int) -> None:
    rng = np.random.default_rng(seed)
    n = int(rng.integers(4, 9))
    points, labels = rng.integers(0, 4, (n, 2)), rng.integers(0, 2, n)
    labels[:2] = 0, 1
    found = proved(points.astype(float), labels, 2)
    assert (found is not None) == separable_exactly([tuple(p) for p in points.tolist()], labels.tolist())
