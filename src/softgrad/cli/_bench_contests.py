"""What ``softgrad bench`` compares: each contest sets up one piece of work and the pairs of calls that do it.

Rivals are called in the best way that is ordinary for them: NumPy writes into arrays that it is given, as softgrad then
does, too; PyTorch, which cannot, makes a fresh gradient, and so does softgrad beside it. NumPy's element-wise functions
have one thread, so softgrad has one there. Fits are compared at an equal objective: scikit-learn's tolerance is lowered
until its objective is softgrad's, for what each calls its tolerance is not the same thing. Fits have one thread on both
sides: their matrices are small, and on a machine that is busy otherwise a BLAS with more is a hundred times slower.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

import numpy as np
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

import softgrad

EQUAL_OBJECTIVE = 1e-6  # how far a rival's objective may lie above softgrad's, relative to it
# Of scikit-learn, from the loosest that has been seen to do on these data.
_TOLERANCES = {"lbfgs": (1e-4, 3e-5, 1e-5, 3e-6, 1e-6, 1e-7), "newton-cholesky": (1e-4, 1e-5, 1e-6)}
_GRADIENT_ERROR = 1e-4  # of two float32 gradients, relative to the largest entry


class WrongResultError(RuntimeError):
    """Two calls that should give the same do not: there is nothing to time."""


class UnavailableError(Exception):
    """A pair that cannot be run here; the message is its note."""


@dataclass(frozen=True)
class Pair:
    """Two calls that do the same work, and with how many threads."""

    rival: str
    threads: int
    ours: Callable[[], Any]
    theirs: Callable[[], Any]
    note: str = ""


@dataclass(frozen=True)
class Contest:
    """A piece of work: ``pairs(threads, within)`` sets it up, ``rivals`` says who takes part.

    A pair comes out only when the results of its two calls have been found to agree. ``within()`` is whether there is
    time for more.
    """

    name: str
    shape: str
    dtype: str
    rivals: tuple[str, ...]
    weight: float  # its part of the time; about the seconds it needs
    pairs: Callable[[int, Callable[[], bool]], Iterator[Pair]]
    most_threads: int | None = None


def agree(name: str, rival: str, ours: tuple[Any, ...], theirs: tuple[Any, ...]) -> None:
    """Raise if a loss or a gradient differs by more than rounding."""
    for ours_part, theirs_part in zip(ours, theirs, strict=True):
        expected, given = np.asarray(ours_part), np.asarray(theirs_part)
        if expected.shape != given.shape:
            raise WrongResultError(f"{name}: {rival} gives shape {given.shape}, softgrad {expected.shape}")
        away = float(np.abs(expected - given).max())
        if not away <= _GRADIENT_ERROR * float(np.abs(expected).max()):
            raise WrongResultError(f"{name}: {rival} and softgrad differ by {away:.2e}, before any timing")


# --- cross-entropy ---------------------------------------------------------------------------------------------------


def cross_entropy(rows: int, classes: int) -> Contest:
    """The mean loss of a batch of logits, and its gradient."""

    def pairs(threads: int, within: Callable[[], bool]) -> Iterator[Pair]:
        rng = np.random.default_rng(0)
        logits = rng.standard_normal((rows, classes), dtype=np.float32)
        labels = rng.integers(0, classes, rows)
        mine, other = np.empty_like(logits), np.empty_like(logits)

        def in_place(n_threads: int = 1) -> tuple[Any, ...]:
            return softgrad.cross_entropy_with_grad(logits, labels, out=mine, n_threads=n_threads)

        def by_hand() -> tuple[Any, ...]:
            return numpy_cross_entropy(logits, labels, other)

        agree(contest.name, "NumPy", in_place(), by_hand())
        yield Pair("NumPy", 1, in_place, by_hand, "into a given array")
        if within() and find_spec("torch") is not None:
            from softgrad.torch import _rivals

            def fresh() -> tuple[Any, ...]:
                return softgrad.cross_entropy_with_grad(logits, labels, n_threads=threads)

            theirs = _rivals.cross_entropy(logits, labels)
            agree(contest.name, "PyTorch", fresh(), theirs())
            yield Pair("PyTorch", threads, fresh, theirs, "a fresh gradient")

    contest = Contest("cross-entropy and gradient", f"{rows} x {classes}", "float32", ("NumPy", "PyTorch"), 1.0, pairs)
    return contest


def numpy_cross_entropy(logits: NDArray[Any], labels: NDArray[Any], out: NDArray[Any]) -> tuple[float, NDArray[Any]]:
    """What one writes by hand: every pass of it in place, and one division in all."""
    rows = np.arange(len(labels))
    np.subtract(logits, logits.max(axis=1, keepdims=True), out=out)
    own = out[rows, labels]
    np.exp(out, out=out)
    total = out.sum(axis=1, keepdims=True)
    loss = float(np.mean(np.log(total[:, 0]) - own))
    total *= len(labels)
    np.divide(out, total, out=out)
    out[rows, labels] -= 1 / len(labels)
    return loss, out


def linear_head(rows: int, depth: int, classes: int) -> Contest:
    """The mean loss of ``x @ weight.T``, and its gradients by both."""

    def pairs(threads: int, within: Callable[[], bool]) -> Iterator[Pair]:  # noqa: ARG001
        if find_spec("torch") is None:
            return
        from softgrad.torch import _rivals

        rng = np.random.default_rng(0)
        x = rng.standard_normal((rows, depth), dtype=np.float32)
        weight = rng.standard_normal((classes, depth), dtype=np.float32) / np.float32(depth) ** 0.5
        labels = rng.integers(0, classes, rows)

        def ours() -> tuple[Any, ...]:
            loss, gradients = softgrad.linear_cross_entropy_with_grad(
                x, weight, labels, with_respect_to=("x", "weight"), n_threads=threads
            )
            return loss, gradients.x, gradients.weight

        theirs = _rivals.linear_cross_entropy(x, weight, labels)
        agree(contest.name, "PyTorch", ours(), theirs())
        yield Pair("PyTorch", threads, ours, theirs, "linear, then cross_entropy")

    contest = Contest("linear head and gradients", f"{rows} x {depth} x {classes}", "float32", ("PyTorch",), 1.5, pairs)
    return contest


# --- softmax regression ----------------------------------------------------------------------------------------------


def digits() -> tuple[NDArray[np.float64], NDArray[Any]]:
    """scikit-learn's digits, standardised."""
    from sklearn.datasets import load_digits
    from sklearn.preprocessing import StandardScaler

    X, y = load_digits(return_X_y=True)
    return StandardScaler().fit_transform(X), y


def synthetic(rows: int, features: int, classes: int) -> tuple[NDArray[np.float64], NDArray[Any]]:
    """Correlated features, and labels drawn from a softmax of them."""
    rng = np.random.default_rng(0)
    X = rng.standard_normal((rows, features)) @ (np.eye(features) + 0.3 * rng.standard_normal((features, features)))
    X /= X.std(axis=0)
    scores = X @ rng.standard_normal((features, classes)) / features**0.5 * 2
    y = (scores + rng.gumbel(size=scores.shape)).argmax(axis=1)
    return X, y


def regression(
    shape: str,
    weight: float,
    data: Callable[[], tuple[NDArray[np.float64], NDArray[Any]]],
    *,
    C: float,
    solvers: tuple[str, ...],
) -> Contest:
    """A fit to an objective that is certified to be within 1e-6 of the optimum."""

    def pairs(threads: int, within: Callable[[], bool]) -> Iterator[Pair]:
        from softgrad.sklearn import SoftmaxRegression

        X, y = data()

        def ours() -> Any:
            return SoftmaxRegression(C=C, tol=EQUAL_OBJECTIVE, n_threads=threads).fit(X, y)

        with threadpool_limits(threads):
            model = ours()
            reached = objective(X, y, C, model.coef_, model.intercept_)
            if not abs(reached - model.objective_) <= EQUAL_OBJECTIVE * reached:
                raise WrongResultError(f"{contest.name}: softgrad says {model.objective_:.9g}, but it is {reached:.9g}")
            for solver in solvers:
                if not within():
                    return
                try:
                    theirs, tol, excess = _equal_fit(X, y, C, solver, reached, within)
                except UnavailableError as error:
                    yield Pair(f"scikit-learn {solver}", threads, ours, ours, str(error))
                    continue
                gap = f"objective {reached:.8g}, at most {model.gap_:.0e} of it above the optimum"
                note = f"{gap}; the rival's {excess:+.0e} of it away, at tol={tol:.0e}"
                yield Pair(f"scikit-learn {solver}", threads, ours, theirs, note)

    rivals = tuple(f"scikit-learn {solver}" for solver in solvers)
    contest = Contest("softmax regression, a fit", shape, "float64", rivals, weight, pairs, most_threads=1)
    return contest


def _equal_fit(
    X: Any, y: Any, C: float, solver: str, reached: float, within: Callable[[], bool]
) -> tuple[Callable[[], Any], float, float]:
    """scikit-learn's fit with the loosest tolerance that reaches the objective; that tolerance; how far it is above."""
    import warnings

    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression

    excess = np.inf
    for tol in _TOLERANCES[solver]:

        def fit(tol: float = tol) -> Any:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", ConvergenceWarning)  # the objective is looked at
                return LogisticRegression(C=C, solver=solver, tol=tol, max_iter=10_000).fit(X, y)

        if not within():
            raise UnavailableError(
                f"no time to find the tolerance for an equal objective: {excess:.0e} above it so far"
            )
        model = fit()
        excess = objective(X, y, C, model.coef_, model.intercept_) / reached - 1
        if excess < -EQUAL_OBJECTIVE:
            raise WrongResultError(f"softmax regression: {solver} is {-excess:.0e} below what was certified as optimal")
        if excess <= EQUAL_OBJECTIVE:
            return fit, tol, float(excess)
    raise UnavailableError(f"it ends {excess:.0e} above the objective, however small its tolerance")


def objective(X: Any, y: Any, C: float, coef: Any, intercept: Any) -> float:
    """``C Σ ℓ + ½ ‖W‖²`` in plain float64 NumPy; both sides are judged by it."""
    scores = X @ coef.T + intercept
    if scores.shape[1] == 1:
        scores = np.concatenate([np.zeros_like(scores), scores], axis=1)
    own = np.take_along_axis(scores, np.searchsorted(np.unique(y), y)[:, None], axis=1)[:, 0]
    most = scores.max(axis=1)
    losses = most + np.log(np.exp(scores - most[:, None]).sum(axis=1)) - own
    return float(C * losses.sum() + 0.5 * np.sum(np.square(coef)))


def all_contests() -> list[Contest]:
    """The contests; those that need most of the time last, for it may not be enough."""
    return [
        cross_entropy(8192, 1000),
        cross_entropy(65536, 10),
        regression("digits: 1797 x 64, 10 classes", 1.5, digits, C=1.0, solvers=("lbfgs", "newton-cholesky")),
        linear_head(512, 256, 16384),
        cross_entropy(256, 50257),
        # newton-cholesky takes most of a minute here
        regression("20000 x 64, 20 classes", 4.0, lambda: synthetic(20_000, 64, 20), C=0.01, solvers=("lbfgs",)),
    ]
