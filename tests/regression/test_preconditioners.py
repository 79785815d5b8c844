"""What the directions of Newton's method are made of: preconditioners, samples of rows, exact Hessians, levels."""

from __future__ import annotations

from bisect import bisect_left
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import sparse

from softgrad import reference
from softgrad._core.blas import single_threaded_blas
from softgrad.regression._inputs import checked
from softgrad.regression.preconditioners._choice import preconditioner_of
from softgrad.regression.preconditioners._class_blocks import Blocks
from softgrad.regression.preconditioners._diagonal import Diagonal, Heavy, Scaled
from softgrad.regression.preconditioners._kronecker import Kronecker
from softgrad.regression.rows._design import Design
from softgrad.regression.rows._problem import SMALL, Problem
from softgrad.regression.rows._sample import draw
from softgrad.regression.solvers._exact import Exact
from softgrad.regression.solvers._state import State
from softgrad.regression.solvers._truncated import conjugate_gradients

Array = Any

SAMPLE = 2.0  # rows of a block for each feature


TOLD: dict[str, Any] = {
    "sample_weight": None,
    "class_weight": None,
    "label_smoothing": 0.0,
    "offset": None,
    "fit_intercept": True,
    "max_memory": None,
}


def made(x: Array, y: Array, classes: int, *, n_threads: int = 1, **options: Any) -> Problem:
    return checked(x, y, classes, n_threads=n_threads, **({"reduce_rows": False} | TOLD | options)).problem


def rows_of(n: int, p: int, classes: int, dtype: Any = np.float64, seed: int = 0) -> tuple[Array, Array, Array]:
    """Correlated features of unequal scales and means, and labels that they explain in part; a W that explains them."""
    random = np.random.default_rng([seed, n, p, classes])
    mix = np.eye(p) + random.normal(size=(p, p)) / np.sqrt(p)
    x = random.normal(size=(n, p)) @ mix * random.uniform(0.3, 3, size=p) + random.normal(size=p)
    w = random.normal(size=(classes, p)) / np.sqrt(p)
    w -= w.mean(axis=0)
    y = (x @ w.T + random.gumbel(size=(n, classes))).argmax(axis=1)
    y[:classes] = np.arange(classes)
    return x.astype(dtype), y, w


def words(n: int, p: int, classes: int, seed: int = 0) -> tuple[Array, Array]:
    """Rows of words as frequent as Zipf says: half of them everybody's, half of them those of a topic a class."""
    random = np.random.default_rng([seed, n, p, classes])
    y = np.arange(n) % classes
    share = 1 / np.arange(1, p + 1)
    topics = share * random.gamma(1.0, 1, size=(classes, p))
    topics = topics / topics.sum(axis=1, keepdims=True) + share / share.sum()
    counts = np.stack([random.multinomial(random.integers(30, 120), topics[label] / 2) for label in y])
    return sparse.csr_array(np.log1p(counts).astype(np.float32)), y


def without_mean(v: Array) -> Array:
    return v - v.mean(axis=0)


def dense_hessian(problem: Problem, x: Array, weight: Array, bias: Array, kappa: float = 0.0) -> Array:
    """The Hessian at a point from its formula: parameters (W_k, b_k) class by class."""
    k = problem.n_classes
    wide = np.column_stack([x, np.ones(len(x))]) if problem.fit_intercept else x
    s = reference.softmax(x @ weight.T + bias)
    h = np.ones(len(x)) if problem.curvature is None else problem.curvature
    matrices = h[:, None, None] * (np.eye(k) * s[:, None, :] - s[:, :, None] * s[:, None, :])
    whole = np.einsum("nkl,np,nq->kplq", matrices, wide, wide, optimize=True)
    whole = whole.reshape(k * wide.shape[1], k * wide.shape[1])
    penalty = np.ones(wide.shape[1])
    if problem.fit_intercept:
        penalty[-1] = 0
    return whole + kappa * np.diag(np.tile(penalty, k))


def joined(weight: Array, bias: Array) -> Array:
    return np.column_stack([np.asarray(weight, np.float64), bias])


# --- inverses --------------------------------------------------------------------------------------------------------

KINDS = ("kronecker", "kronecker of many classes", "blocks", "diagonal", "heavy")


def of_kind(kind: str, fit_intercept: bool, kappa: float, monkeypatch: pytest.MonkeyPatch) -> tuple[Problem, Any]:
    """A preconditioner at a point where classes are told apart, and its problem."""
    options: dict[str, Any] = {"fit_intercept": fit_intercept}
    if kind == "heavy":
        x, y = words(700, 400, 8)
        weight = 0.3 * without_mean(np.random.default_rng(0).normal(size=(8, 400)))
    else:
        x, y, weight = rows_of(900, 9, 6)
        options["sample_weight"] = np.random.default_rng(1).uniform(0, 2, size=len(x))
    classes = len(weight)
    problem = made(x, y, classes, **options)
    problem.gradient(weight, np.linspace(-1, 1, classes) * fit_intercept)
    if kind == "kronecker of many classes":
        monkeypatch.setattr("softgrad.regression.preconditioners._kronecker.MANY_CLASSES", 3)
    if kind in ("blocks", "heavy"):
        return problem, {"blocks": Blocks, "heavy": Heavy}[kind](problem, kappa, SAMPLE)
    return problem, (Diagonal if kind == "diagonal" else Kronecker)(problem)


@pytest.mark.parametrize(("kappa", "damping"), [(1.0, 0.0), (0.0, 2.0), (0.3, 30.0), (1e4, 0.0), (0.0, 0.0)])
@pytest.mark.parametrize("fit_intercept", [True, False])
@pytest.mark.parametrize("kind", KINDS)
def test_is_symmetric_and_positive(
    kind: str, fit_intercept: bool, kappa: float, damping: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On directions whose classes add up to nothing, which is where all gradients lie."""
    problem, precondition = of_kind(kind, fit_intercept, kappa, monkeypatch)
    precondition.set_penalty(kappa, damping)
    random = np.random.default_rng(3)
    shape = (problem.n_classes, problem.design.n_features)

    def vector() -> tuple[Array, Array]:
        bias = without_mean(random.normal(size=shape[0])) * fit_intercept
        return without_mean(random.normal(size=shape)).astype(np.float32), bias

    def dot(a: tuple[Array, Array], b: tuple[Array, Array]) -> float:
        return float(np.vdot(a[0].astype(np.float64), b[0].astype(np.float64))) + float(a[1] @ b[1])

    for _ in range(8):
        u, v = vector(), vector()
        mu, mv = precondition(u[0].copy(), u[1]), precondition(v[0].copy(), v[1])
        length = np.sqrt(dot(u, mu) * dot(v, mv))
        assert dot(u, mu) > 0
        assert dot(v, mv) > 0
        assert abs(dot(u, mv) - dot(mu, v)) <= 1e-3 * length
        assert abs(mu[1].sum()) <= 1e-4 * np.abs(mu[1]).sum() + 1e-12  # intercepts stay where they are told apart
        if not fit_intercept:
            assert not mu[1].any() or kind in ("kronecker", "kronecker of many classes", "diagonal")


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("fit_intercept", [True, False])
def test_blocks_of_all_rows_are_the_diagonal_blocks(weighted: bool, fit_intercept: bool) -> None:
    x, y, weight = rows_of(60, 5, 4)  # fewer rows than any sample
    options: dict[str, Any] = {"fit_intercept": fit_intercept}
    if weighted:
        options["sample_weight"] = np.random.default_rng(1).uniform(0, 2, size=60)
    problem = made(x, y, 4, **options)
    bias = np.array([0.5, -0.2, 0.1, -0.4]) * fit_intercept
    problem.gradient(weight, bias)
    kappa, damping = 0.7, 0.2
    blocks = Blocks(problem, kappa, SAMPLE)
    blocks.set_penalty(kappa, damping)
    whole = dense_hessian(problem, x - blocks.center, weight, bias + weight @ blocks.center, kappa)
    width = len(whole) // 4
    right = without_mean(np.random.default_rng(2).normal(size=(4, width)))
    solved = np.stack(
        [
            np.linalg.solve(whole[j : j + width, j : j + width] + damping * np.eye(width), right[j // width])
            for j in range(0, len(whole), width)
        ]
    )
    w, b = blocks(right[:, :5].astype(np.float32), right[:, 5] if fit_intercept else np.zeros(4))
    np.testing.assert_allclose(
        joined(w, b)[:, :width], without_mean(solved), atol=2e-5 * np.abs(solved).max(), rtol=1e-4
    )
    assert fit_intercept == bool(blocks.center.any())


@pytest.mark.parametrize("penalties", [[(3.0, 0.0), (3.0, 0.0)], [(3.0, 0.0), (300.0, 0.0), (0.01, 0.1), (3.0, 0.0)]])
def test_blocks_take_one_penalty_after_another(penalties: list[tuple[float, float]]) -> None:
    """The factor shares its memory with the Gram matrix, which has to outlive it."""
    x, y, weight = rows_of(200, 7, 5)
    problem = made(x, y, 5)
    problem.gradient(weight, np.zeros(5))
    used, fresh = Blocks(problem, 3.0, SAMPLE), Blocks(problem, 3.0, SAMPLE)
    for kappa, damping in penalties:
        used.set_penalty(kappa, damping)
    fresh.set_penalty(*penalties[-1])
    r = np.random.default_rng(0).normal(size=(5, 7)).astype(np.float32)
    for a, b in zip(used(r, np.zeros(5)), fresh(r, np.zeros(5)), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6 * np.abs(b).max())


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("fit_intercept", [True, False])
@pytest.mark.parametrize("closed", [False, True], ids=["eigenvectors", "closed form"])
def test_kronecker_is_the_inverse_at_zero(
    closed: bool, fit_intercept: bool, weighted: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where no row is told from another the Hessian is a Kronecker product."""
    if closed:
        monkeypatch.setattr("softgrad.regression.preconditioners._kronecker.MANY_CLASSES", 3)
    x, y, _ = rows_of(300, 6, 5)
    random = np.random.default_rng(1)
    options: dict[str, Any] = {"sample_weight": random.uniform(0, 3, size=300)} if weighted else {}
    problem = made(x, y, 5, fit_intercept=fit_intercept, **options)
    bias = np.log(problem.class_mass / problem.mass) * (fit_intercept or closed)
    if not fit_intercept and closed:  # its shares are those of the classes
        problem = made(x, np.arange(300) % 5, 5, fit_intercept=False)
        bias = np.zeros(5)
    problem.gradient(np.zeros((5, 6)), bias)
    precondition, kappa = Kronecker(problem), 4.0
    assert len(precondition.index) == 300
    precondition.set_penalty(kappa)
    whole = dense_hessian(problem, x - precondition.center, np.zeros((5, 6)), bias, kappa)
    width = len(whole) // 5
    d = without_mean(random.normal(size=(5, width)))
    right = (whole @ d.ravel()).reshape(5, width)
    w, b = precondition(right[:, :6].astype(np.float32), right[:, 6] if fit_intercept else np.zeros(5))
    np.testing.assert_allclose(joined(w, b)[:, :width], d, atol=2e-3 * np.abs(d).max())


def test_the_root_of_kronecker_is_a_root() -> None:
    x, y, weight = rows_of(300, 6, 5)
    problem = made(x, y, 5)
    problem.gradient(weight, np.zeros(5))
    precondition = Kronecker(problem)
    precondition.set_penalty(0.5)
    v = without_mean(np.random.default_rng(0).normal(size=(5, 6)))
    twice = precondition.root(precondition.root(v))
    expected = precondition(v.astype(np.float32), np.zeros(5))[0]
    np.testing.assert_allclose(twice, expected, atol=1e-4 * np.abs(expected).max())
    np.testing.assert_allclose(precondition.root(precondition.root(v), inverse=True), v, atol=1e-4)


@pytest.mark.parametrize("kind", ["blocks", "kronecker", "diagonal", "heavy"])
def test_stale_is_another_point(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    problem, precondition = of_kind(kind, True, 1.0, monkeypatch)
    assert not precondition.is_stale(problem)
    k, p = problem.n_classes, problem.design.n_features
    far = 3 * np.random.default_rng(9).normal(size=(k, p))
    problem.gradient(far, np.zeros(k))
    assert precondition.is_stale(problem)


# --- products that conjugate gradients need --------------------------------------------------------------------------


def test_features_far_from_zero_cost_blocks_no_products() -> None:
    """In float32 the Gram matrix of x + 1e4 has nothing left of the variance."""
    x, y, _ = rows_of(4000, 60, 10)
    weight = without_mean(0.1 * np.random.default_rng(1).normal(size=(10, 60)))
    found = {}
    for far in (0.0, 1e4):
        moved = (x + far).astype(np.float32)
        problem = Problem(Design(moved, 10), y, 10, n_threads=1, **TOLD)  # `checked` would shift the rows
        assert problem.dtype is np.float32
        at = problem.gradient(weight, -(weight @ moved.mean(axis=0, dtype=np.float64)))
        for precondition in (Blocks(problem, 1.0, SAMPLE), Diagonal(problem)):
            precondition.set_penalty(1.0)
            gradient = at.weight + weight, at.bias
            gain, used = conjugate_gradients(problem, 1.0, 0.0, gradient, precondition, rate=1e-2)[2:]
            found[type(precondition), far] = gain, used
    assert found[Blocks, 1e4][1] <= 12 < found[Diagonal, 0.0][1]
    assert found[Blocks, 0.0][1] <= 12
    assert found[Blocks, 1e4][0] == pytest.approx(found[Blocks, 0.0][0], rel=0.05)
    assert found[Diagonal, 1e4][0] < 0.5 * found[Blocks, 1e4][0]


def products_to(
    share: float, problem: Problem, kappa: float, precondition: Any, g: Any, patch: pytest.MonkeyPatch
) -> int:
    """How many products it takes to gain so much of what the quadratic model has to give."""
    precondition.set_penalty(kappa)

    def gain(most: int) -> float:
        patch.setattr("softgrad.regression.solvers._truncated.MOST_PRODUCTS", most)
        return conjugate_gradients(problem, kappa, 0.0, g, precondition, rate=1e-12)[2]

    return 1 + bisect_left(range(1, 200), share * gain(200), key=gain)


@pytest.mark.parametrize("kappa", [0.1, 1.0])
@pytest.mark.parametrize("spread", [0.0, 0.1])
def test_heavy_features_halve_the_products_of_words(
    spread: float, kappa: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    x, y = words(1500, 500, 8)
    problem = made(x, y, 8)
    assert problem.design.sparse
    weight = spread * without_mean(np.random.default_rng(0).normal(size=(8, 500)))
    found = problem.gradient(weight, np.zeros(8))
    gradient = found.weight + kappa * weight, found.bias
    few, many = (
        products_to(0.999, problem, kappa, m, gradient, monkeypatch)
        for m in (Heavy(problem, kappa, SAMPLE), Diagonal(problem))
    )
    assert 2 <= few <= 0.67 * many


@pytest.mark.parametrize("make", [Kronecker, Diagonal, lambda problem: Blocks(problem, 0.5, SAMPLE)])
def test_conjugate_gradients_solve_for_the_direction(make: Any) -> None:
    x, y, weight = rows_of(500, 7, 4)
    problem = made(x, y, 4)
    bias = np.array([0.3, -0.1, 0.2, -0.4])
    found = problem.gradient(weight, bias)
    kappa, damping = 0.5, 0.25
    precondition = make(problem)
    precondition.set_penalty(kappa, damping)
    g = found.weight + kappa * weight, found.bias
    d, db, gain, used = conjugate_gradients(problem, kappa, damping, g, precondition, rate=1e-12)
    # The intercept that the damping holds is that of the rows about the preconditioner's centre.
    shift = np.eye(8)
    shift[7, :7] = precondition.center
    whole = dense_hessian(problem, x, weight, bias, kappa)
    moved = np.kron(np.eye(4), shift)
    turned = moved.T @ np.diag(np.full(len(whole), damping)) @ moved if precondition.center.any() else None
    inverse = np.linalg.inv(moved)
    if turned is None:
        damped = whole + damping * np.eye(len(whole))
    else:
        centred = inverse.T @ whole @ inverse
        damped = moved.T @ (centred + damping * np.eye(len(whole))) @ moved
    expected = np.linalg.lstsq(damped, -joined(*g).ravel(), rcond=None)[0].reshape(4, 8)
    np.testing.assert_allclose(without_mean(joined(d, db)), without_mean(expected), atol=1e-4 * np.abs(expected).max())
    assert gain == pytest.approx(-0.5 * float(np.vdot(joined(*g), expected)), rel=1e-4)
    assert 1 < used < 100


# --- exact Hessians --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fit_intercept", [True, False])
@pytest.mark.parametrize(("classes", "features"), [(2, 3), (3, 5), (5, 20)])
def test_the_hessian_is_the_gradients_derivative(classes: int, features: int, fit_intercept: bool) -> None:
    x, y, weight = rows_of(150, features, classes)
    a = np.random.default_rng(1).uniform(0, 2, size=150)
    problem = made(x, y, classes, sample_weight=a, label_smoothing=0.1, fit_intercept=fit_intercept)
    bias = without_mean(np.arange(classes) / 2.0) * fit_intercept
    problem.gradient(weight, bias)
    whole = problem.hessian()
    scale, step = np.abs(whole).max(), 1e-5
    width = features + int(fit_intercept)
    assert whole.shape == (classes * width, classes * width)
    np.testing.assert_allclose(whole, whole.T, atol=1e-12 * scale)
    np.testing.assert_allclose(whole, dense_hessian(problem, x, weight, bias), atol=1e-12 * scale)
    for j in range(classes * width):
        unit = np.zeros((classes, features + 1))
        unit[j // width, j % width] = 1.0
        hw, hb = problem.product(unit[:, :features].copy(), unit[:, features].copy())
        np.testing.assert_allclose(joined(hw, hb)[:, :width].ravel(), whole[j], atol=1e-12 * scale)
    for j in range(0, classes * width, 3):
        unit = np.zeros((classes, features + 1))
        unit[j // width, j % width] = step
        ends = [problem.gradient(weight + t * unit[:, :features], bias + t * unit[:, features]) for t in (1, -1)]
        slope = (joined(ends[0].weight, ends[0].bias) - joined(ends[1].weight, ends[1].bias)) / (2 * step)
        np.testing.assert_allclose(slope[:, :width].ravel(), whole[j], atol=1e-7 * scale)


def exact(problem: Problem, kappa: float = 1.0) -> Exact:
    k, p = problem.n_classes, problem.design.n_features
    state = State(
        problem, np.zeros((k, p)), np.zeros(k), kappa=kappa, scale=1.0, tol=1e-6, max_iter=10, callback=None
    )  # fmt: skip
    return Exact(problem, state)


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("spread", [0.0, 1.0, 4.0])
def test_the_sampled_hessian_is_near_the_whole(spread: float, weighted: bool) -> None:
    """64 rows a parameter: between 0.6 and 1.5 times the whole in every direction, and within a tenth on the mean."""
    n, p, classes = 60_000, 4, 3
    x, y, weight = rows_of(n, p, classes)
    a = np.random.default_rng(5).exponential(size=n) if weighted else None
    problem = made(x, y, classes, sample_weight=a)
    problem.gradient(spread * weight, np.zeros(classes))
    solver = exact(problem)
    assert solver.sampled
    assert n > 2 * solver.count
    whole, part = problem.hessian(), problem.hessian(solver.count)
    values, vectors = np.linalg.eigh(whole)
    kept = values > 1e-9 * values.max()  # classes add up to nothing in the others
    assert kept.sum() == (classes - 1) * (p + 1)
    root = vectors[:, kept] / np.sqrt(values[kept])
    relative = np.linalg.eigvalsh(root.T @ part @ root)
    assert 0.6 < relative.min() < 1.0 < relative.max() < 1.5
    assert abs(relative.mean() - 1) < 0.1
    null = vectors[:, ~kept]
    assert np.abs(null.T @ part @ null).max() < 1e-9 * values.max()


def test_a_sample_finds_the_direction() -> None:
    """A direction from the sample lowers the quadratic model nearly as far as the exact one."""
    x, y, weight = rows_of(30_000, 4, 3)
    problem = made(x, y, 3)
    found = problem.gradient(0.3 * weight, np.zeros(3))
    g = found.weight + 0.3 * weight, found.bias
    solver = exact(problem)
    assert solver.sampled
    sampled = solver(g, 0.0)
    solver.sampled = False
    whole = solver(g, 0.0)
    matrix = dense_hessian(problem, x, 0.3 * weight, np.zeros(3), 1.0)

    def falls(direction: Any) -> float:
        d = joined(direction.weight, direction.bias).ravel()
        return float(-(joined(*g).ravel() @ d + 0.5 * d @ matrix @ d))

    assert falls(whole) == pytest.approx(whole.gain, rel=1e-6)
    assert 0.9 * whole.gain < falls(sampled) < whole.gain


# --- samples of rows -------------------------------------------------------------------------------------------------


def weights_of(kind: str, n: int, seed: int = 0) -> Array:
    random = np.random.default_rng([seed, n])
    return {
        "even": lambda: np.ones(n),
        "uniform": lambda: random.uniform(0, 1, size=n),
        "exponential": lambda: random.exponential(size=n),
        "heavy": lambda: random.pareto(0.7, size=n),
        "mostly zero": lambda: random.uniform(0, 1, size=n) * (random.random(n) < 0.3),
        "one row": lambda: np.where(np.arange(n) == n // 3, 1e6, 1e-3),
        "tiny": lambda: 1e-30 * random.uniform(0, 1, size=n),
    }[kind]()


@given(
    kind=st.sampled_from(["even", "uniform", "exponential", "heavy", "mostly zero", "one row", "tiny"]),
    n=st.integers(10, 3000),
    share=st.floats(0.02, 0.9),
    dtype=st.sampled_from([np.float32, np.float64]),
    seed=st.integers(0, 1000),
)
def test_draws(kind: str, n: int, share: float, dtype: Any, seed: int) -> None:
    weight = weights_of(kind, n, seed).astype(dtype)
    count = max(2, int(share * n))
    index, given_weight = draw(weight, count)
    total = float(weight.sum(dtype=np.float64))
    if total == 0:
        np.testing.assert_array_equal(index, np.arange(n))
        return
    assert (np.diff(index) > 0).all()
    assert (weight[index] > 0).all()
    assert (given_weight >= weight[index]).all()
    assert len(given_weight) == len(index) <= count + 1
    # What is not certain has the least weight; sums are off by no more than one such draw.
    each = float(given_weight.min(initial=np.inf))
    assert abs(float(given_weight.sum(dtype=np.float64)) - total) <= min(1.01 * each, total / 2) + 1e-6 * total
    assert np.isin(np.flatnonzero(weight > each * (1 + 1e-6)), index).all()
    again = draw(weight, count)
    np.testing.assert_array_equal(again[0], index)
    np.testing.assert_array_equal(again[1], given_weight)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("seed", range(20))
def test_few_rows_that_matter_are_all_taken(seed: int, dtype: Any) -> None:
    """No more rows with a weight than are asked for: each is certain, with its own weight."""
    random = np.random.default_rng(seed)
    weight = np.zeros(100, dtype)
    weight[random.choice(100, 1 + seed % 12, replace=False)] = random.uniform(0.1, 1, size=1 + seed % 12)
    index, given_weight = draw(weight, 20)
    np.testing.assert_array_equal(index[given_weight > 0], np.flatnonzero(weight))
    np.testing.assert_allclose(given_weight[given_weight > 0], weight[weight > 0], rtol=1e-6)


@pytest.mark.parametrize("kind", ["even", "uniform", "exponential", "heavy", "mostly zero"])
@pytest.mark.parametrize("count", [50, 400])
def test_as_many_are_drawn_as_asked(kind: str, count: int) -> None:
    weight = weights_of(kind, 5000)
    index, _ = draw(weight, count)
    assert count - 2 <= len(index) <= count


@pytest.mark.parametrize("kind", ["uniform", "exponential", "heavy"])
def test_sums_of_a_draw_are_unbiased(kind: str) -> None:
    """A systematic sample in each of many orders of the rows: the mean is the sum of all."""
    weight = weights_of(kind, 400)
    value = np.random.default_rng(1).normal(size=400) + weight
    random = np.random.default_rng(2)
    sums = []
    for _ in range(600):
        order = random.permutation(400)
        index, drawn = draw(weight[order], 40)
        sums.append(float(drawn / weight[order][index] * (weight * value)[order][index] @ np.ones(len(index))))
    expected = float(weight @ value)
    deviation = np.std(sums) / np.sqrt(len(sums))
    assert 0 < deviation < 0.02 * abs(expected)
    assert abs(np.mean(sums) - expected) < 4 * deviation + 0.01 * float(np.abs(weight * value).max())


def test_all_rows_and_no_weights() -> None:
    for weight, count in ((np.array([3.0, 0.0, 1.0]), 3), (np.array([3.0, 0.0, 1.0]), 7), (np.zeros(5), 2)):
        index, given_weight = draw(weight, count)
        np.testing.assert_array_equal(index, np.arange(len(weight)))
        np.testing.assert_array_equal(given_weight, weight)


# --- levelled intercepts ---------------------------------------------------------------------------------------------


def level_problem(dtype: Any, targets: str, weighted: bool) -> tuple[Problem, Array, Array]:
    """A problem, weights, and the intercepts at which every class has its mass, by a plain method."""
    n, p, classes = (12_000, 20, 9) if dtype is np.float32 else (2000, 9, 6)
    x, y, weight = rows_of(n, p, classes, dtype)
    random = np.random.default_rng(4)
    if targets == "rare":  # the last class has three rows
        y = np.where(y == classes - 1, 0, y)
        y[:: n // 3 + 1] = classes - 1
    elif targets == "soft":
        y = random.random((n, classes)) ** 6
        y /= y.sum(axis=1, keepdims=True) * random.uniform(0.5, 2, size=(n, 1))
    options = {"sample_weight": random.uniform(0.1, 3, size=n)} if weighted else {}
    problem = made(x, y, classes, **options)
    assert problem.dtype is dtype
    z, bias = x.astype(np.float64) @ weight.T, np.zeros(classes)
    h = np.ones(n) if problem.curvature is None else problem.curvature
    for _ in range(60):
        s = reference.softmax(z + bias)
        curved = np.diag(h @ s) - (h[:, None] * s).T @ s + problem.mass / classes**2
        step = np.linalg.solve(curved, problem.class_mass - h @ s)
        bias += step / max(1.0, 2 * np.abs(step).max())
    return problem, weight, without_mean(bias)


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("targets", ["labels", "soft", "rare"])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("precise", [False, True])
def test_levelled_classes_have_their_mass(dtype: Any, targets: str, weighted: bool, precise: bool) -> None:
    problem, weight, best = level_problem(dtype, targets, weighted)
    bias = best + without_mean(0.1 * np.random.default_rng(5).normal(size=len(best)))
    before = problem.gradient(weight, bias, precise=precise)
    moved = problem.settle(weight, bias, precise=precise, known=True)
    assert moved is not None
    held = problem.wide if precise and dtype is np.float32 else problem.scores
    wide = held.dtype == np.float64
    np.testing.assert_allclose(bias + moved, best, atol=1e-11 if wide else 1e-5)
    assert abs(moved.sum()) < 1e-12
    s = reference.softmax(held)
    h = np.ones(len(s)) if problem.curvature is None else problem.curvature
    excess = np.abs(h @ s - problem.class_mass) / problem.class_mass
    assert excess.max() < (1e-12 if wide else 1e-6)
    after = problem.gradient(weight, bias + moved, precise=precise, known=True)
    assert (np.abs(after.bias) <= (1e-11 if wide else 3e-6) * problem.class_mass).all()
    assert after.loss < before.loss
    assert after.loss == pytest.approx(problem.gradient(weight, best, precise=True).loss, rel=1e-12 if wide else 1e-6)


@pytest.mark.parametrize("far", [0.3, 1.0, 3.0])
@pytest.mark.parametrize("seed", range(5))
def test_a_level_from_afar_is_no_worse(far: float, seed: int) -> None:
    """Whatever is reached is what is said, and it is better than what was there."""
    x, y, weight = rows_of(1000, 9, 6, seed=seed)
    problem = made(x, y, 6)
    bias = without_mean(far * np.random.default_rng(seed).normal(size=6))
    before = problem.gradient(weight, bias)
    moved = problem.settle(weight, bias, precise=False, known=True)
    assert moved is not None
    np.testing.assert_allclose(problem.scores, x @ weight.T + bias + moved, atol=1e-11)
    assert problem.gradient(weight, bias + moved, known=True).loss < before.loss


def test_a_level_that_is_good_enough_is_left() -> None:
    problem, weight, best = level_problem(np.float64, "labels", False)
    bias = best + without_mean(0.1 * np.arange(6.0))
    problem.gradient(weight, bias)
    first = problem.settle(weight, bias, precise=False, known=True, enough=1e-2)
    assert first is not None
    assert 1e-9 < np.abs(bias + first - best).max() < 1e-2
    scores = problem.scores.copy()
    again = problem.settle(weight, bias + first, precise=False, known=True, enough=1e-2)
    assert again is not None
    assert not again.any()
    np.testing.assert_array_equal(problem.scores, scores)


def test_no_intercept_has_no_level() -> None:
    x, y, weight = rows_of(300, 5, 4)
    problem = made(x, y, 4, fit_intercept=False)
    problem.gradient(weight, np.zeros(4))
    scores = problem.scores.copy()
    assert problem.settle(weight, np.zeros(4), precise=False, known=True) is None
    np.testing.assert_array_equal(problem.scores, scores)


def test_scores_are_stored_where_they_were_not_known() -> None:
    """`settle` at another point than the stored one, with an offset: scores of that point, levelled."""
    x, y, weight = rows_of(300, 17, 4)
    offset = np.random.default_rng(0).normal(size=(300, 4))
    problem = made(x, y, 4, offset=offset)
    problem.gradient(np.zeros((4, 17)), np.zeros(4))
    moved = problem.settle(weight, np.ones(4), precise=False, known=False)
    assert moved is not None
    np.testing.assert_allclose(problem.scores, x @ weight.T + 1 + offset + moved, atol=1e-12)
    np.testing.assert_allclose(reference.softmax(problem.scores).sum(axis=0), problem.class_mass, rtol=1e-12)


# --- threads ---------------------------------------------------------------------------------------------------------


def everything(problem: Problem, weight: Array, bias: Array, kappa: float) -> list[Array]:
    """All that the solvers take from a problem, in bits."""
    with single_threaded_blas():
        found = problem.gradient(weight, bias)
        out = [found.weight, found.bias, np.array([found.loss, found.entropy])]
        r = without_mean(found.weight).astype(np.float32), without_mean(found.bias)
        precondition = preconditioner_of(problem, kappa, SAMPLE)
        for penalty in ((kappa, 0.0), (100 * kappa, 1.0)):
            precondition.set_penalty(*penalty)
            out += precondition(r[0].copy(), r[1])
        out += problem.product(r[0].astype(problem.dtype), r[1])
        out += problem.hessian_diagonal()
        d, db, gain, used = conjugate_gradients(
            problem, kappa, 0.0, (found.weight, found.bias), precondition, rate=0.05
        )
        out += [d, db, np.array([gain, used])]
        if not problem.design.sparse and weight.size < 200:
            out.append(problem.hessian())
        moved = problem.settle(weight, bias, precise=False, known=True)
        assert moved is not None
        return [*out, moved, problem.scores.copy()]


@pytest.mark.parametrize("kind", ["blocks", "kronecker", "heavy", "float64"])
def test_threads_change_no_bit(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if kind == "kronecker":
        monkeypatch.setattr("softgrad.regression.preconditioners._choice.BLOCK_BYTES", 0)
    if kind == "heavy":
        x, y = words(2000, 400, 8)
        weight = 0.3 * without_mean(np.random.default_rng(0).normal(size=(8, 400)))
    else:
        x, y, weight = rows_of(2000 if kind == "float64" else 20_000, 18, 9, np.float32)
    classes = len(weight)
    runs = []
    for n_threads in (1, 2, 3):
        problem = made(x, y, classes, n_threads=n_threads)
        assert problem.n_threads == n_threads
        runs.append(everything(problem, weight, without_mean(np.arange(float(classes))), 0.5))
    expected = {"blocks": Blocks, "float64": Blocks, "kronecker": Kronecker, "heavy": Heavy}[kind]
    assert isinstance(preconditioner_of(problem, 0.5, SAMPLE), expected)
    assert (problem.dtype is np.float64) == (kind == "float64")
    assert (x.shape[0] * x.shape[1] * classes <= SMALL) == (kind == "float64")
    for other in runs[1:]:
        for a, b in zip(runs[0], other, strict=True):
            np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("rows_are", ["dense", "sparse"])
def test_where_the_penalty_is_most_of_the_curvature_blocks_are_not_made(rows_are: str) -> None:
    if rows_are == "dense":
        x, y, weight = rows_of(20_000, 18, 9, np.float32)
    else:
        x, y = words(2000, 400, 8)
        weight = 0.3 * without_mean(np.random.default_rng(0).normal(size=(8, 400)))
    problem = made(x, y, len(weight))
    problem.gradient(0.1 * weight, np.zeros(len(weight)))
    light = preconditioner_of(problem, 1e6, SAMPLE)
    assert isinstance(light, Scaled if rows_are == "dense" else Diagonal)
    assert light.light
    light.set_penalty(1e6)
    assert not light.is_stale(problem)
    random = np.random.default_rng(5)
    a, b = (random.normal(size=(2, *weight.shape)).astype(np.float32), random.normal(size=(2, len(weight))))
    b -= b.mean(axis=1, keepdims=True)
    images = [light(a[i], b[i]) for i in range(2)]
    crossed = [float(np.vdot(a[i], images[1 - i][0]) + b[i] @ images[1 - i][1]) for i in range(2)]
    own = [float(np.vdot(a[i], images[i][0]) + b[i] @ images[i][1]) for i in range(2)]
    assert crossed[0] == pytest.approx(crossed[1], rel=1e-4, abs=1e-6 * max(own))
    assert min(own) > 0
    np.testing.assert_allclose(images[0][0], a[0] / 1e6, rtol=0.2)  # the penalty's own inverse, nearly
    light.set_penalty(1.0)  # as a path does
    assert light.is_stale(problem)
    heavier = preconditioner_of(problem, 1.0, SAMPLE)
    assert isinstance(heavier, Blocks if rows_are == "dense" else Heavy)
    assert not heavier.light
