"""The gap of a model bounds its true relative gap, on hundreds of random problems of every awkward kind.

`oracle` brackets the least objective in long double.  Features of any scale and distance from zero, duplicate, constant
and collinear ones, weights over twenty orders of magnitude, soft labels, fewer rows than features, sparse and float32
rows, with and without a penalty; at the sizes that are computed in float64 and, by `SMALL`, as larger data are.
"""

from __future__ import annotations

import warnings
from typing import Any, NamedTuple

import numpy as np
import pytest
from oracle import Oracle
from scipy import sparse
from sklearn.exceptions import ConvergenceWarning

from softgrad.regression import fit
from softgrad.regression._inputs import checked
from softgrad.sklearn import SoftmaxRegression

PROBLEMS = 600
BATCH = 20  # problems to a test
FLOAT64 = 8 * 2048  # roundings of long double in one of float64; a score has several
ROUNDING = 1e-13  # of a gap: what a certificate in float64 does not see
FITS = ("auto", "auto", "auto", "newton-cg", "newton", "lbfgs", "estimator", "estimator")


class Problem(NamedTuple):
    """A random problem: what it is made of in words, the rows, the targets and options of the fit."""

    words: str
    x: Any
    targets: Any
    n_classes: int
    options: dict[str, Any]
    C: float
    tol: float
    max_iter: int
    way: str
    large: bool


class Fitted(NamedTuple):
    """A model as it is handed out, and what is said of it."""

    coef: Any
    intercept: Any
    objective: float
    gap: float
    converged: bool
    message: str


def random_problem(seed: int) -> Problem:
    """Draw a problem; the words name what is unusual about it."""
    rng = np.random.default_rng([16, seed])
    words = []

    def one_in(count: int, name: str) -> bool:
        drawn = bool(rng.integers(count) == 0)
        if drawn:
            words.append(name)
        return drawn

    k = int(rng.choice([2, 2, 2, 3, 3, 4, 6]))
    C = float(10.0 ** rng.uniform(-6, 6)) if not one_in(5, "no penalty") else np.inf
    few = one_in(4, "few rows")
    n = int(rng.integers(k + 4, 25)) if few else int(rng.integers(60, 250))
    p = int(rng.integers(n, 60)) if few else int(rng.integers(1, 12))
    x = rng.normal(size=(n, p))
    signal = x @ rng.normal(size=(p, k)) / np.sqrt(p)
    # Without a penalty hard labels must overlap: they hardly follow the features.
    soft = one_in(4, "soft labels")
    smoothing = float(rng.uniform(0.01, 0.5)) if one_in(5, "smoothing") else 0.0
    unpenalised = bool(np.isinf(C))
    if unpenalised and few and not soft and not smoothing:
        smoothing = 0.1
        words.append("smoothing")
    noise = 3.0 if unpenalised else float(rng.choice([0.1, 1.0]))
    if soft:
        targets = np.exp(signal + rng.normal(size=(n, k)))
        targets /= targets.sum(axis=1, keepdims=True) if rng.integers(2) else 1.0
    else:
        targets = (signal + noise * rng.gumbel(size=(n, k))).argmax(axis=1)
        targets[:k] = np.arange(k)
    single = one_in(5, "float32")
    most = 17.0 if single else 149.0
    scale = np.zeros(p)
    for column in range(p):
        kind = rng.integers(8) if column == 0 else 7
        if kind == 0 and p > 1:
            x[:, column] = x[:, -1]
            words.append("duplicate")
        elif kind == 1:
            x[:, column] = 1.0
            words.append("constant")
        elif kind == 2 and p > 2:
            x[:, column] = x[:, 1:].sum(axis=1)
            words.append("collinear")
        elif kind == 3:
            x[:, column] = 0.0
            words.append("zero")
    scattered = one_in(4, "sparse")
    if scattered:
        x[rng.random(size=x.shape) < 0.6] = 0.0
    if one_in(4, "far from zero"):
        x[:, -1] += 10.0 ** rng.uniform(1, 6 if single else 9)
    if one_in(4, "one scale"):
        scale[rng.integers(p)] = rng.uniform(-most, most - 10)
    if one_in(6, "all scales"):
        scale = rng.uniform(-most, most - 10, size=p) / 20
    if one_in(6, "scale"):
        scale += rng.uniform(-most - scale.min(), most - 10 - scale.max())
    x = x * 10.0**scale
    x = x.astype(np.float32) if single else x
    options: dict[str, Any] = {"label_smoothing": smoothing, "fit_intercept": not one_in(3, "no intercept")}
    if one_in(3, "weights"):
        wide = 2.0 if unpenalised and not soft else 10.0
        options["sample_weight"] = 10.0 ** rng.uniform(-wide, wide, size=n)
    if one_in(5, "class weights"):
        options["class_weight"] = 10.0 ** rng.uniform(-2, 2, size=k)
    if one_in(5, "offset"):
        options["offset"] = rng.normal(size=n if k == 2 and rng.integers(2) else (n, k)) * rng.choice([1.0, 10.0])
    tol = float(10.0 ** -rng.integers(3, 11))
    max_iter = int(rng.integers(1, 6)) if one_in(5, "few iterations") else 1000
    way = str(rng.choice(FITS))
    way = "auto" if way == "newton" and scattered else way
    large = one_in(3, "as large data")
    rows = sparse.csr_array(x) if scattered else x
    text = f"seed {seed}: {n} × {p}, {k} classes, C = {C:.3g}, tol = {tol:g}, {way}; {', '.join(words) or 'plain'}"
    return Problem(text, rows, targets, k, options, C, tol, max_iter, way, large)


def fitted(problem: Problem) -> Fitted:
    """Fit by one of the front-ends."""
    common = {"C": problem.C, "tol": problem.tol, "max_iter": problem.max_iter, "n_threads": 1}
    options = dict(problem.options)
    if problem.way != "estimator":
        result = fit(
            problem.x, problem.targets, problem.n_classes, solver=problem.way, **common, **options
        )  # fmt: skip
        return Fitted(result.coef, result.intercept, result.objective, result.gap, result.converged, result.message)
    weights = options.pop("class_weight", None)
    given = {name: options.pop(name) for name in ("sample_weight", "offset") if name in options}
    model = SoftmaxRegression(class_weight=None if weights is None else dict(enumerate(weights)), **common, **options)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", ConvergenceWarning)
        model.fit(problem.x, problem.targets, **given)
    message = " ".join(str(warning.message) for warning in caught)
    return Fitted(model.coef_, model.intercept_, model.objective_, model.gap_, not caught, message)


def check(problem: Problem) -> tuple[list[str], bool]:
    """Return what is wrong with the fit of a problem, and whether the oracle left its optimum open."""
    oracle = Oracle(problem.x, problem.targets, problem.n_classes, C=problem.C, **problem.options)
    bracket = oracle.bracket()
    wrong = []
    model = fitted(problem)
    true, rounding = oracle.objective(model.coef, model.intercept)
    if not true >= bracket.lower - rounding:
        wrong.append(f"the oracle is wrong: objective {float(true)!r} below its bound {float(bracket.lower)!r}")
    if not abs(model.objective - true) <= 1e-9 * true + FLOAT64 * rounding:
        wrong.append(f"objective {model.objective!r} of a model whose objective is {float(true)!r}")
    # The oracle's point bounds the optimum from above, so that no gap is blamed for an open bracket.
    gap = float((true - bracket.upper) / bracket.upper)
    if np.isnan(model.gap):
        if "gap is NaN" not in model.message and "separable" not in model.message:
            wrong.append(f"gap NaN without a reason: {model.message}")
    elif not model.gap >= gap - ROUNDING - rounding / float(bracket.upper):
        wrong.append(f"gap {model.gap:.3g} of a model whose true gap is {gap:.3g}")
    if model.converged and not model.gap <= max(problem.tol, 1e-13):
        wrong.append(f"converged with gap {model.gap:.3g}: {model.message}")
    return wrong, not bracket.width <= 1e-9


@pytest.mark.parametrize("first", range(0, PROBLEMS, BATCH))
def test_the_gap_bounds_the_true_gap(first: int, monkeypatch: pytest.MonkeyPatch) -> None:
    wrong, left_open = [], []
    for seed in range(first, first + BATCH):
        problem = random_problem(seed)
        with monkeypatch.context() as patch:
            if problem.large:
                patch.setattr("softgrad.regression.rows._problem.SMALL", 0)
                patch.setattr("softgrad.regression._inputs.SMALL", 0)
            found, is_open = check(problem)
        wrong += [f"{problem.words}: {words}" for words in found]
        left_open += [problem.words] * is_open
    assert not wrong, "\n".join(wrong)
    assert len(left_open) <= 3, "the oracle leaves optima open:\n" + "\n".join(left_open)


def test_the_hessian_of_rows_that_are_told_keeps_its_digits() -> None:
    """The decomposition of a certificate needs Σ S (1 − S) x² to relative precision where 1 − S is 1e-14."""
    rng = np.random.default_rng(0)
    x, targets = rng.normal(size=(50, 2)), np.arange(50) % 3
    problem = checked(
        x, targets, 3, sample_weight=None, class_weight=None, label_smoothing=0.0, offset=None, fit_intercept=True,
        max_memory=None, n_threads=1, reduce_rows=False,
    ).problem  # fmt: skip
    weight, bias = np.array([[0.1, 0.0], [-0.1, 0.2], [0.0, -0.2]]), np.array([33.0, 0.0, -33.0])
    problem.gradient(weight, bias, precise=True)
    z = x.astype(np.longdouble) @ weight.T + bias
    s = np.exp(z - z.max(axis=1, keepdims=True))
    s /= s.sum(axis=1, keepdims=True)
    expected = (s * np.stack([s[:, 1] + s[:, 2], s[:, 0] + s[:, 2], s[:, 0] + s[:, 1]], axis=1)).T @ x**2
    diagonal = np.diagonal(problem.hessian()).reshape(3, 3)[:, :2]
    np.testing.assert_allclose(diagonal, expected.astype(np.float64), rtol=1e-12)


def test_models_of_large_features_far_from_zero_are_handed_out() -> None:
    """The bound of what rounding the model adds overflowed."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(200, 3)) * [1e149, 1.0, 1.0] + [0.0, 1e9, 0.0]
    result = fit(x, (x[:, 2] + rng.normal(size=200) > 0).astype(int), 2)
    assert result.converged, result.message


@pytest.mark.parametrize("exponent", [-60, 40])
def test_features_that_float32_does_not_hold(exponent: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Larger data are computed in float64 if the square of a feature overflows or vanishes in float32."""
    monkeypatch.setattr("softgrad.regression.rows._problem.SMALL", 0)
    monkeypatch.setattr("softgrad.regression._inputs.SMALL", 0)
    rng = np.random.default_rng(0)
    x = rng.normal(size=(400, 3))
    targets = (x @ rng.normal(size=(3, 3)) + rng.gumbel(size=(400, 3))).argmax(axis=1)
    near = fit(x, targets, 3, C=np.inf)
    result = fit(x * [1.0, 10.0**exponent, 1.0], targets, 3, C=np.inf)
    assert result.converged, result.message
    assert result.objective == pytest.approx(near.objective, rel=1e-6)
