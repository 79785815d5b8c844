"""A path over C and its cross-validation: each is the single fits, found sooner."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from regression_cases import EVERY_SOLVER, GOLDEN, golden_problems, problem, random_problem
from scipy import sparse
from written import Problem, centred

from softgrad.regression import FitInterrupted, cross_validate_path, fit, softmax_path

GRID = np.logspace(-3, 3, 7)


def everything(n_classes: int, n: int = 60) -> tuple[Any, Any, dict[str, Any]]:
    """A problem with every option that changes the objective."""
    x, labels, weights = random_problem(n_classes, n=n, p=5)
    random = np.random.default_rng(7)
    return (
        x,
        labels,
        {
            "sample_weight": weights,
            "class_weight": random.uniform(0.5, 2, size=n_classes),
            "label_smoothing": 0.05,
            "offset": random.normal(size=(n, n_classes) if n_classes > 2 else n),
        },
    )


@pytest.mark.parametrize("n_classes", [2, 3])
@pytest.mark.parametrize("fit_intercept", [True, False])
@EVERY_SOLVER
def test_path_is_the_single_fits(n_classes: int, fit_intercept: bool, solver: str) -> None:
    x, labels, options = everything(n_classes)
    options |= {"fit_intercept": fit_intercept, "solver": solver, "tol": 1e-9}
    path = softmax_path(x, labels, GRID, n_classes=n_classes, **options)
    rows = 1 if n_classes == 2 else n_classes
    assert np.shape(path.coefs) == (7, rows, 5)
    assert np.shape(path.intercepts) == (7, rows)
    np.testing.assert_array_equal(path.Cs, GRID)
    assert np.all(path.converged)
    for i, C in enumerate(GRID):
        single = fit(x, labels, n_classes, C=C, **options)
        written = Problem(x, labels, n_classes, C=C, **options)
        assert path.gaps[i] <= 1e-9
        assert path.objectives[i] == pytest.approx(written.value(path.coefs[i], path.intercepts[i]), rel=1e-12)
        assert path.objectives[i] == pytest.approx(single.objective, rel=3e-9)
        np.testing.assert_allclose(path.coefs[i], single.coef, atol=2 * np.sqrt(4e-9 * single.objective))


@pytest.mark.parametrize("name", ["iris", "wine_weights", "wine_offset", "cancer_weights_offset"])
def test_path_finds_what_glmnets_path_finds(name: str) -> None:
    (x, y, n_classes), options = golden_problems()[name]
    golden = GOLDEN[name]
    path = softmax_path(x, y, golden["Cs"], n_classes=n_classes, tol=1e-12, **options)
    np.testing.assert_allclose(path.coefs, golden["coefs"], rtol=2e-5, atol=2e-6)
    np.testing.assert_allclose(centred(path.intercepts), centred(golden["intercepts"]), rtol=2e-5, atol=2e-6)


def test_grid_is_sorted() -> None:
    x, labels, _ = random_problem(3)
    up = softmax_path(x, labels, GRID, n_classes=3)
    mixed = softmax_path(x, labels, GRID[[3, 0, 5, 6, 1, 4, 2]])
    np.testing.assert_array_equal(mixed.Cs, GRID)
    np.testing.assert_array_equal(mixed.coefs, up.coefs)


def test_path_to_no_penalty() -> None:
    x, labels, _ = random_problem(3, n=120)
    path = softmax_path(x, labels, [1.0, 100.0, np.inf], tol=1e-9)
    alone = fit(x, labels, 3, C=np.inf, tol=1e-9)
    assert np.all(path.converged)
    assert path.gaps[2] <= 1e-9
    assert path.objectives[2] == pytest.approx(alone.objective, rel=1e-8)


def test_path_costs_less_than_its_fits() -> None:
    x, y, n_classes = problem("digits")
    Cs = np.logspace(-3, 1, 9)
    path = softmax_path(x, y, Cs, n_classes=n_classes, tol=1e-4)
    singles = sum(fit(x, y, n_classes, C=C, tol=1e-4).n_passes for C in Cs)
    assert np.all(path.converged)
    assert float(np.sum(path.n_passes)) < 0.9 * singles
    assert (np.asarray(path.n_iters) >= 0).all()


def test_path_of_soft_labels_float32_and_sparse() -> None:
    x, _, weights = random_problem(3)
    x[np.abs(x) < 0.5] = 0
    y = np.random.default_rng(0).uniform(size=(len(x), 3)).astype(np.float32)
    options = {"sample_weight": weights, "tol": 1e-10}
    dense = softmax_path(x.astype(np.float32), y, GRID, n_classes=3, **options)
    rows = softmax_path(sparse.csr_array(x.astype(np.float32)), y, GRID, n_classes=3, **options)
    np.testing.assert_allclose(dense.objectives, rows.objectives, rtol=3e-10)
    for i, C in enumerate(GRID):
        least = Problem(x.astype(np.float32), y, 3, C=C, sample_weight=weights).minimum()[0]
        assert dense.objectives[i] == pytest.approx(least, rel=2e-10)


@EVERY_SOLVER
def test_threads_change_no_bit_of_a_path(solver: str) -> None:
    x, y, n_classes = problem("digits")
    paths = [
        softmax_path(x, y, [0.01, 0.1], n_classes=n_classes, tol=1e-3, n_threads=n, solver=solver) for n in (1, 2, 3)
    ]
    for path in paths[1:]:
        np.testing.assert_array_equal(path.coefs, paths[0].coefs)
        np.testing.assert_array_equal(path.gaps, paths[0].gaps)


def test_path_says_where_it_did_not_converge() -> None:
    x, y, n_classes = problem("digits")
    path = softmax_path(x, y, [1e-8, 1e3], n_classes=n_classes, tol=1e-9, max_iter=2)
    assert list(path.converged) == [True, False]
    assert path.gaps[0] <= 1e-9 < path.gaps[1]


@pytest.mark.parametrize("Cs", [[], [1.0, 0.0], [1.0, -1.0], [1.0, np.nan]])
def test_grids_that_cannot_be(Cs: Any) -> None:
    x, labels, _ = random_problem(3)
    with pytest.raises(ValueError, match=r"\bCs?\b"):
        softmax_path(x, labels, Cs, n_classes=3)


# --- cross-validation ------------------------------------------------------------------------------------------------


def folds_of(n: int, n_folds: int = 3) -> list[tuple[Any, Any]]:
    fold = np.random.default_rng(3).permutation(n) % n_folds
    return [(np.flatnonzero(fold != k), np.flatnonzero(fold == k)) for k in range(n_folds)]


def same_softmax(a: Any, b: Any) -> bool:
    """Logits that differ by a constant a row."""
    return np.shape(a) == np.shape(b) and np.allclose(a - a[:, :1], b - b[:, :1], atol=1e-9)


def part(options: dict[str, Any], rows: Any) -> dict[str, Any]:
    return {key: value[rows] if key in ("sample_weight", "offset") else value for key, value in options.items()}


@pytest.mark.parametrize("n_classes", [2, 3])
@EVERY_SOLVER
def test_cross_validation_is_the_fits_of_the_folds(n_classes: int, solver: str) -> None:
    x, labels, options = everything(n_classes, n=90)
    options |= {"solver": solver, "tol": 1e-9}
    folds = folds_of(len(x))
    heard: list[tuple[Any, Any]] = []

    def score(logits: Any, rows: Any) -> float:
        heard.append((np.array(logits), np.array(rows)))
        return float(np.sum(logits[:, -1]))

    Cs = GRID[::2]
    found = cross_validate_path(x, labels, Cs, folds, n_classes=n_classes, score=score, **options)
    assert np.shape(found.scores) == (3, 4)
    rows = 1 if n_classes == 2 else n_classes
    assert np.shape(found.fold_coefs) == (3, 4, rows, 5)
    assert np.shape(found.fold_intercepts) == (3, 4, rows)
    alone = softmax_path(x, labels, Cs, n_classes=n_classes, **options)
    np.testing.assert_allclose(found.path.objectives, alone.objectives, rtol=3e-9)
    np.testing.assert_allclose(found.path.coefs, alone.coefs, atol=1e-2)
    for k, (train, test) in enumerate(folds):
        for i, C in enumerate(Cs):
            single = fit(x[train], labels[train], n_classes, C=C, **part(options, train))
            written = Problem(x[train], labels[train], n_classes, C=C, **part(options, train))
            coef, intercept = found.fold_coefs[k, i], found.fold_intercepts[k, i]
            assert written.value(coef, intercept) == pytest.approx(single.objective, rel=3e-9)
            held_out = Problem(x[test], labels[test], n_classes, **part(options, test)).logits(coef, intercept)
            mine = [z for z, at in heard if np.array_equal(at, test) and same_softmax(z, held_out)]
            assert len(mine) == 1, f"fold {k} at C = {C}"
            assert found.scores[k, i] == float(np.sum(mine[0][:, -1]))
    assert len(heard) == 12


def test_cross_validation_does_not_see_the_held_out_rows() -> None:
    """Whatever the test rows of a fold hold, its coefficients are the same bits."""
    x, labels, options = everything(3, n=90)
    folds = folds_of(90)
    train, test = folds[0]
    other_x, other_labels = x.copy(), labels.copy()
    other_x[test] = 5 * np.random.default_rng(0).normal(size=(len(test), 5))
    other_labels[test] = (labels[test] + 1) % 3
    a, b = (
        cross_validate_path(u, v, GRID[2:5], folds, n_classes=3, score=lambda z, r: 0.0, tol=1e-10, **options)
        for u, v in ((x, labels), (other_x, other_labels))
    )
    np.testing.assert_allclose(a.fold_coefs[0], b.fold_coefs[0], atol=1e-3)
    assert np.abs(a.fold_coefs[1] - b.fold_coefs[1]).max() > 1e-2
    for i, C in enumerate(GRID[2:5]):
        kept = part(options, train)
        for found in (a, b):
            written = Problem(x[train], labels[train], 3, C=C, **kept)
            least = written.minimum()[0]
            assert written.value(found.fold_coefs[0, i], found.fold_intercepts[0, i]) == pytest.approx(least, rel=2e-10)


def test_uneven_and_overlapping_folds() -> None:
    x, labels, _ = random_problem(3, n=50)
    rows = np.arange(50)
    folds = [(rows[:40], rows[40:]), (rows[5:], rows[:3]), (rows[:45], rows[45:46])]
    found = cross_validate_path(
        x, labels, [0.1, 1.0], folds, n_classes=3, score=lambda logits, at: float(len(at)), tol=1e-9
    )
    np.testing.assert_array_equal(found.scores, [[10, 10], [3, 3], [1, 1]])
    for k, (train, _) in enumerate(folds):
        least = Problem(x[train], labels[train], 3, C=1.0).minimum()[0]
        written = Problem(x[train], labels[train], 3, C=1.0)
        assert written.value(found.fold_coefs[k, 1], found.fold_intercepts[k, 1]) == pytest.approx(least, rel=2e-9)


def test_a_class_that_a_fold_does_not_have() -> None:
    """What was never seen is impossible: its logit is −∞, and the others are fitted without it."""
    x, labels, _ = random_problem(3, n=60)
    train, test = np.flatnonzero(labels != 1), np.flatnonzero(labels == 1)
    heard: list[Any] = []
    found = cross_validate_path(
        x, labels, [0.3], [(train, test)], n_classes=3, score=lambda z, r: heard.append(z) or 0.0, tol=1e-10
    )
    np.testing.assert_array_equal(heard[0][:, 1], -np.inf)
    np.testing.assert_array_equal(found.fold_coefs[0, 0, 1], 0)
    assert found.fold_intercepts[0, 0, 1] == -np.inf
    kept = found.fold_coefs[0, 0, [0, 2]], found.fold_intercepts[0, 0, [0, 2]]
    # Two rows of coefficients, both penalised: the binomial model with w = W₁ − W₀ = 2 W₁ and so half the penalty.
    two = Problem(x[train], labels[train] // 2, 2, C=0.6).minimum()
    np.testing.assert_allclose(kept[0][1] - kept[0][0], two[1][0], atol=1e-4)
    np.testing.assert_allclose(kept[1][1] - kept[1][0], two[2][0], atol=1e-4)


def test_early_stop_leaves_the_rest_unscored() -> None:
    x, labels, _ = random_problem(3, n=60)
    values = list(np.repeat([1.0, 2.0, 1.5, 1.0, 9.0], 3))
    found = cross_validate_path(
        x, labels, GRID[:5], folds_of(60), n_classes=3, score=lambda z, r: values.pop(0), early_stop=2
    )
    np.testing.assert_array_equal(found.scores[:, :4], np.tile([1, 2, 1.5, 1], (3, 1)))
    assert np.isnan(found.scores[:, 4]).all()


def test_cross_validation_of_sparse_rows() -> None:
    x, labels, _ = random_problem(3, n=60)
    x[np.abs(x) < 0.5] = 0
    folds = folds_of(60)
    a, b = (
        cross_validate_path(u, labels, GRID[2:5], folds, n_classes=3, score=lambda z, r: float(z.sum()), tol=1e-11)
        for u in (x, sparse.csr_array(x))
    )
    np.testing.assert_allclose(a.fold_coefs, b.fold_coefs, atol=1e-3)
    np.testing.assert_allclose(a.scores, b.scores, atol=1e-2)


def test_cross_validation_can_be_interrupted() -> None:
    x, labels, _ = random_problem(3, n=60)
    heard: list[Any] = []

    def interrupt(progress: Any) -> None:
        heard.append(progress)
        if len(heard) == 3:
            raise KeyboardInterrupt

    with pytest.raises((FitInterrupted, KeyboardInterrupt)):
        cross_validate_path(
            x, labels, GRID, folds_of(60), n_classes=3, score=lambda z, r: 0.0, tol=1e-9, callback=interrupt
        )
    assert len(heard) == 3


@pytest.mark.parametrize(
    "folds",
    [
        [],
        [(np.arange(3), np.array([], dtype=np.int64))],
        [(np.array([], dtype=np.int64), np.arange(3))],
        [(np.arange(30), np.array([60]))],
        [(np.array([-1, 3]), np.arange(30))],
    ],
    ids=["none", "no test rows", "no training rows", "beyond the end", "before the start"],
)
def test_folds_that_cannot_be(folds: Any) -> None:
    x, labels, _ = random_problem(3, n=60)
    with pytest.raises((ValueError, IndexError), match=r"(?i)fold|row|class"):
        cross_validate_path(x, labels, [1.0], folds, n_classes=3, score=lambda z, r: 0.0)


def test_folds_take_the_preconditioner_of_the_total(monkeypatch: pytest.MonkeyPatch) -> None:
    """Three folds ask for no more preconditioners than the path alone."""
    from softgrad.regression.solvers import _truncated

    made: list[Any] = []
    make = _truncated.preconditioner_of

    def counted(*arguments: Any) -> Any:
        made.append(make(*arguments))
        return made[-1]

    monkeypatch.setattr(_truncated, "preconditioner_of", counted)
    x, labels, _ = large()
    softmax_path(x, labels, GRID, solver="newton-cg", tol=1e-6)
    alone = len(made)
    folds = [(np.flatnonzero(np.arange(len(x)) % 3 != i), np.flatnonzero(np.arange(len(x)) % 3 == i)) for i in range(3)]
    made.clear()
    cross_validate_path(x, labels, GRID, folds, n_classes=5, score=lambda z, rows: 0.0, solver="newton-cg", tol=1e-6)
    assert 0 < alone <= len(made) <= 2 * alone


def test_folds_of_many_rows_are_not_copied(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows that stay without weight give what rows that are taken out give."""
    from softgrad.regression import path

    x, labels, _ = large()
    folds = [(np.flatnonzero(np.arange(len(x)) % 3 != i), np.flatnonzero(np.arange(len(x)) % 3 == i)) for i in range(3)]
    options: dict[str, Any] = {"n_classes": 5, "score": lambda z, rows: float(z.sum()), "tol": 1e-8}
    copied = cross_validate_path(x, labels, GRID[:3], folds, **options)
    monkeypatch.setattr(path, "COPIED", 0)
    kept = cross_validate_path(x, labels, GRID[:3], folds, **options)
    np.testing.assert_allclose(kept.fold_coefs, copied.fold_coefs, atol=2e-3)
    np.testing.assert_allclose(kept.scores, copied.scores, rtol=1e-3, atol=1e-2)


def large() -> tuple[Any, Any, Any]:
    """Enough rows for float32 and its preconditioners."""
    random = np.random.default_rng(5)
    centres = random.normal(size=(5, 40))
    labels = random.integers(5, size=12_000)
    x = (centres[labels] + 3 * random.normal(size=(12_000, 40))).astype(np.float32)
    return x, labels, centres
