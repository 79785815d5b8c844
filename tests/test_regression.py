"""The objective and the fit: against finite differences, the reference and scikit-learn's own optimum."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from sklearn import datasets
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler
from threadpoolctl import threadpool_limits

from softgrad import _backend, reference
from softgrad.regression import SoftmaxObjective, fit

LOADERS = {name: getattr(datasets, f"load_{name}") for name in ("iris", "wine", "digits", "breast_cancer")}


def problem(name: str, dtype: Any = np.float64) -> tuple[Any, Any, int]:
    x, y = LOADERS[name](return_X_y=True)
    return StandardScaler().fit_transform(x).astype(dtype), y, len(np.unique(y))


def rival(x: Any, y: Any, weights: Any = None, *, tol: float = 1e-10, **options: Any) -> LogisticRegression:
    """Scikit-learn's fit, on one thread: its idle BLAS threads would spin."""
    with threadpool_limits(1):
        return LogisticRegression(tol=tol, max_iter=10_000, **options).fit(x, y, weights)


def random_problem(n_classes: int, seed: int = 0) -> tuple[Any, Any, Any]:
    random = np.random.default_rng(seed)
    x = random.normal(size=(40, 3)) * [1.0, 3.0, 0.3] + [0.0, 1.0, -2.0]
    labels = np.concatenate([np.arange(n_classes), random.integers(n_classes, size=40 - n_classes)])
    return x, labels, random.uniform(0.2, 3.0, size=40)


@pytest.mark.parametrize("n_classes", [2, 3, 5])
@pytest.mark.parametrize("fit_intercept", [True, False])
@pytest.mark.parametrize("options", [{}, {"C": 0.03}, {"C": np.inf}, {"label_smoothing": 0.2}])
def test_gradient_is_that_of_the_value(n_classes: int, fit_intercept: bool, options: dict[str, float]) -> None:
    x, labels, weights = random_problem(n_classes)
    objective = SoftmaxObjective(x, labels, n_classes, sample_weight=weights, fit_intercept=fit_intercept, **options)
    at = np.random.default_rng(1).normal(size=objective.size)
    slope = objective(at)[1]
    step = 1e-6
    for i, unit in enumerate(np.eye(objective.size)):
        difference = (objective(at + step * unit)[0] - objective(at - step * unit)[0]) / (2 * step)
        assert slope[i] == pytest.approx(difference, rel=1e-6, abs=1e-8)
    assert np.abs(slope).max() > 1e-3


@pytest.mark.parametrize("n_classes", [2, 4])
def test_value_is_the_written_formula(n_classes: int) -> None:
    x, labels, weights = random_problem(n_classes)
    objective = SoftmaxObjective(x, labels, n_classes, C=0.7, sample_weight=weights, label_smoothing=0.1)
    at = np.random.default_rng(2).normal(size=objective.size)
    w, b = objective.unpack(at)
    rows = n_classes if n_classes > 2 else 1
    full_w, full_b = np.zeros((n_classes, 3)), np.zeros(n_classes)
    full_w[-rows:], full_b[-rows:] = w, b
    loss = reference.cross_entropy(
        x @ full_w.T + full_b, labels, sample_weight=weights, label_smoothing=0.1, reduction="sum"
    )
    assert objective(at)[0] * objective.scale == pytest.approx(0.7 * loss + 0.5 * (w**2).sum(), rel=1e-12)


def test_parameters_survive_packing() -> None:
    x, labels, _ = random_problem(3)
    objective = SoftmaxObjective(x, labels, 3)
    at = np.arange(objective.size, dtype=float)
    np.testing.assert_array_equal(objective.pack(*objective.unpack(at)), at)
    with pytest.raises(ValueError, match="expected 12 parameters"):
        objective.pack(np.zeros((2, 3)), np.zeros(2))


@pytest.mark.parametrize(
    ("name", "C"), [(name, C) for name in LOADERS for C in (0.1, 10.0) if (name, C) != ("digits", 10.0)]
)
def test_reaches_scikit_learns_optimum(name: str, C: float) -> None:
    """breast_cancer has two classes: the penalty of one row is the binomial model's."""
    x, y, n_classes = problem(name)
    ours = fit(SoftmaxObjective(x, y, n_classes, C=C), tol=1e-9)
    theirs = rival(x, y, C=C)
    assert ours.converged
    assert ours.coef.shape == theirs.coef_.shape
    np.testing.assert_allclose(ours.coef, theirs.coef_, atol=2e-5 * max(1.0, np.abs(theirs.coef_).max()))
    shift = theirs.intercept_ - ours.intercept  # with three classes or more it has one free constant
    if n_classes > 2:
        shift = shift - shift.mean()
    np.testing.assert_allclose(shift, 0, atol=1e-4)
    logits = x @ theirs.coef_.T + theirs.intercept_
    if n_classes == 2:
        logits = np.hstack([np.zeros_like(logits), logits])
    least = C * reference.cross_entropy(logits, y, reduction="sum") + 0.5 * (theirs.coef_**2).sum()
    assert ours.objective == pytest.approx(least, rel=1e-10)


def test_reaches_the_optimum_without_an_intercept_and_with_weights() -> None:
    x, y, n_classes = problem("wine")
    weights = np.random.default_rng(0).uniform(0.1, 4, size=len(y))
    ours = fit(SoftmaxObjective(x, y, n_classes, sample_weight=weights, fit_intercept=False), tol=1e-10)
    theirs = rival(x, y, weights, fit_intercept=False)
    np.testing.assert_allclose(ours.coef, theirs.coef_, atol=1e-6)
    np.testing.assert_array_equal(ours.intercept, 0)


def test_same_tolerance_takes_about_as_many_iterations_as_scikit_learn() -> None:
    """tol is compared with the gradient of the same scaled objective, by the same algorithm from the same start."""
    x, y, n_classes = problem("digits")
    ours = fit(SoftmaxObjective(x, y, n_classes), tol=1e-4)
    theirs = rival(x, y, tol=1e-4)
    assert abs(ours.n_iter - theirs.n_iter_[0]) <= 3
    assert ours.gradient_norm <= 1e-4


def test_sample_weight_is_repetition_and_zero_is_absence() -> None:
    x, labels, _ = random_problem(3)
    counts = np.random.default_rng(3).integers(0, 4, size=len(labels))
    counts[:3] = 1
    weighted = fit(SoftmaxObjective(x, labels, 3, sample_weight=counts), tol=1e-10)
    repeated = fit(SoftmaxObjective(np.repeat(x, counts, 0), np.repeat(labels, counts), 3), tol=1e-10)
    assert weighted.objective == pytest.approx(repeated.objective, rel=1e-12)
    np.testing.assert_allclose(weighted.coef, repeated.coef, atol=1e-7)


def test_no_penalty_is_the_maximum_likelihood() -> None:
    x, labels, _ = random_problem(2)
    free = fit(SoftmaxObjective(x, labels, 2, C=np.inf), tol=1e-9)
    logits = np.column_stack([np.zeros(len(x)), x @ free.coef[0] + free.intercept[0]])
    g = reference.cross_entropy_with_grad(logits, labels, reduction="sum")[1][:, 1]
    np.testing.assert_allclose(g @ x, 0, atol=1e-6)
    assert free.objective == pytest.approx(reference.cross_entropy(logits, labels, reduction="sum"))
    assert free.objective < fit(SoftmaxObjective(x, labels, 2, C=0.1)).objective / 0.1


def test_soft_targets_fit_as_labels_do() -> None:
    x, labels, _ = random_problem(3)
    hard = fit(SoftmaxObjective(x, labels, 3), tol=1e-9)
    soft = fit(SoftmaxObjective(x, np.eye(3)[labels], 3), tol=1e-9)
    np.testing.assert_allclose(soft.coef, hard.coef, atol=1e-6)


def test_label_smoothing_lowers_the_confidence() -> None:
    x, y, n_classes = problem("iris")
    norms = [
        np.linalg.norm(fit(SoftmaxObjective(x, y, n_classes, C=100.0, label_smoothing=e)).coef) for e in (0, 0.1, 0.4)
    ]
    assert norms[0] > norms[1] > norms[2] > 0.1


@pytest.mark.parametrize("name", ["iris", "digits", "breast_cancer"])
def test_float32_reaches_the_optimum_to_its_precision_and_says_so(name: str) -> None:
    x, y, n_classes = problem(name)
    exact = fit(SoftmaxObjective(x, y, n_classes), tol=1e-10, max_iter=5000)
    single = fit(SoftmaxObjective(x.astype(np.float32), y, n_classes), tol=1e-10, max_iter=5000)
    assert single.converged
    assert "no longer falls" in single.message
    assert single.objective == pytest.approx(exact.objective, rel=1e-5)
    assert single.gradient_norm < 1e-4


def test_stopping_early_is_said() -> None:
    x, y, n_classes = problem("digits")
    result = fit(SoftmaxObjective(x, y, n_classes), max_iter=3)
    assert not result.converged
    assert result.n_iter == 3
    assert "max_iter = 3" in result.message


def test_callback_hears_every_iteration_and_the_objective_falls() -> None:
    x, y, n_classes = problem("iris")
    heard: list[tuple[int, float]] = []
    result = fit(SoftmaxObjective(x, y, n_classes, C=3.0), callback=lambda *news: heard.append(news))
    assert [iteration for iteration, _ in heard] == list(range(1, result.n_iter + 1))
    values = [value for _, value in heard]
    assert values == sorted(values, reverse=True)
    assert values[-1] == result.objective


def test_starting_at_the_optimum_ends_at_once() -> None:
    x, y, n_classes = problem("iris")
    objective = SoftmaxObjective(x, y, n_classes)
    first = fit(objective, tol=1e-8)
    again = fit(objective, start=objective.pack(first.coef, first.intercept), tol=1e-8)
    assert again.n_iter <= 1 < first.n_iter


def test_the_native_kernel_computes_every_gradient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not a copy in NumPy: the heads of each pass are made by the extension, and the fit is theirs."""
    heads: list[Any] = []
    native = _backend._native
    assert native is not None

    def head(*arguments: Any) -> Any:
        heads.append(native.Head(*arguments))
        return heads[-1]

    spy = SimpleNamespace(**{**vars(native), "Head": head})

    x, y, n_classes = problem("iris")
    with _backend.use(_backend.available()[0]):
        monkeypatch.setattr(_backend, "kernels", lambda: spy)
        result = fit(SoftmaxObjective(x, y, n_classes))
    assert len(heads) > result.n_iter > 5
    assert {type(made).__module__ for made in heads} == {"softgrad._native"}


def test_instruction_sets_reach_the_same_optimum(instruction_set: str) -> None:
    x, y, n_classes = problem("wine")
    result = fit(SoftmaxObjective(x, y, n_classes), tol=1e-8)
    theirs = rival(x, y)
    np.testing.assert_allclose(result.coef, theirs.coef_, atol=1e-5)


def test_threads_do_not_change_the_fit() -> None:
    x, y, n_classes = problem("digits")
    one, two = (fit(SoftmaxObjective(x, y, n_classes, n_threads=n)) for n in (1, 2))
    np.testing.assert_array_equal(one.coef, two.coef)


def test_features_that_overflow_are_refused() -> None:
    x = np.array([[1e308], [-1e308], [1e308], [2.0]])
    with np.errstate(all="ignore"), pytest.raises(ValueError, match=r"features, up to 1e\+308, .* scale them"):
        fit(SoftmaxObjective(x, np.array([0, 1, 0, 1]), 2))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x": np.zeros((4, 2), np.int64)}, "float32 or float64"),
        ({"x": np.zeros(4)}, r"\(N, P\)"),
        ({"n_classes": 1}, "at least 2"),
        ({"C": 0.0}, "C must be positive"),
        ({"C": float("nan")}, "C must be positive"),
        ({"sample_weight": [1, 1, -2, 1]}, r"sample_weight\[2\] is -2"),
        ({"sample_weight": [1, 1, 1, np.nan]}, r"sample_weight\[3\] is nan"),
        ({"sample_weight": [0, 0, 0, 0]}, "zero in every row"),
        ({"sample_weight": [1, 1]}, "one weight a row"),
    ],
)
def test_mistakes_have_one_clear_message(change: dict[str, Any], message: str) -> None:
    arguments: dict[str, Any] = {"x": np.zeros((4, 2)), "targets": np.array([0, 1, 0, 1]), "n_classes": 2}
    with pytest.raises(ValueError, match=message):
        SoftmaxObjective(**arguments | change)


@pytest.mark.parametrize(("change", "message"), [({"tol": 0.0}, "tol"), ({"max_iter": 0}, "max_iter")])
def test_mistakes_of_the_fit(change: dict[str, Any], message: str) -> None:
    x, labels, _ = random_problem(2)
    with pytest.raises(ValueError, match=message):
        fit(SoftmaxObjective(x, labels, 2), **change)
