"""The objective of softmax regression in plain float64 NumPy, and its minimum with a proof of how near it is.

``F(W, b) = C Σ_i ℓ_i + ½ ‖W‖²``, ``ℓ_i`` the cross-entropy of row i: every method's coefficients are judged by this one
function, which shares no code with softgrad.
"""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from harness import Row

EXACT = 1e-10  # of the minimum; gaps down to 1e-6 are measured from it
ROWS = 4096


def objective(X: Any, y: Any, C: float, W: Any, b: Any) -> float:
    W, b = np.asarray(W, dtype=np.float64), np.asarray(b, dtype=np.float64)
    loss = 0.0
    for _, labels, scores in _blocks(X, y, W, b):
        own = np.take_along_axis(scores, labels[:, None], axis=1)[:, 0]
        loss += float((np.log(np.exp(scores, out=scores).sum(axis=1)) - own).sum())
    return C * loss + 0.5 * float((W**2).sum())


def certified(X: Any, y: Any, C: float, W: Any, b: Any) -> tuple[float, float]:
    """The objective at W and the best intercepts for it, and a bound on how far that is above the minimum.

    The minimum over b is a 1-strongly convex function of W, so half the square of its gradient is such a bound. From a
    near b, Newton's method finds the best one.
    """
    W, b = np.asarray(W, dtype=np.float64), np.asarray(b, dtype=np.float64)
    for _ in range(6):
        by_W, by_b, curvature = W.copy(), np.zeros_like(b), np.zeros((len(b), len(b)))
        for part, labels, scores in _blocks(X, y, W, b):
            share = np.exp(scores, out=scores)
            share /= share.sum(axis=1, keepdims=True)
            free = share[:, -len(b) :]
            curvature += C * (np.diag(free.sum(axis=0)) - free.T @ free)
            share[np.arange(len(labels)), labels] -= 1
            share = free
            by_W += C * (part.T @ share).T
            by_b += C * share.sum(axis=0)
        if np.abs(by_b).max() <= 1e-12 * C * len(y):
            break
        b = b - np.linalg.pinv(curvature, rcond=1e-13, hermitian=True) @ by_b
    return objective(X, y, C, W, b), 0.5 * float((by_W**2).sum())


def _blocks(X: Any, y: Any, W: Any, b: Any) -> Iterator[tuple[Any, Any, Any]]:
    """Rows, their labels, and their scores below the largest of each row; of two classes the first score is 0."""
    for start in range(0, X.shape[0], ROWS):
        part = X[start : start + ROWS].astype(np.float64)
        scores = part @ W.T + b
        if len(b) == 1:
            scores = np.concatenate([np.zeros_like(scores), scores], axis=1)
        scores -= scores.max(axis=1, keepdims=True)
        yield part, y[start : start + ROWS], scores


def minimum(X: Any, y: Any, C: float, name: str, cache: Path) -> Row:
    """The minimum of the data called ``name``, from the cache if it has been found there for the same numbers."""
    path = cache / "optima" / f"{name} C={C:g}.json"
    print_of_data = _fingerprint(X, y)
    if path.exists():
        row: Row = json.loads(path.read_text())
        if row["data"] == print_of_data:
            return row
    row = _search(X, y, C) | {"data": print_of_data, "C": C}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(row))
    return row


def _fingerprint(X: Any, y: Any) -> str:
    digest = hashlib.blake2b(digest_size=16)
    for array in (X, y) if isinstance(X, np.ndarray) else (X.data, X.indices, X.indptr, y):
        digest.update(np.ascontiguousarray(array))
    return digest.hexdigest()


def _search(X: Any, y: Any, C: float) -> Row:
    """Whatever solver gets there; the proof is the certificate and not the solver."""
    wide = X.astype(np.float64)
    best: Row = {"bound": np.inf}
    start: Any = None
    for solver, solve in _solvers(X.shape[1], len(np.unique(y))):
        try:
            W, b = solve(wide, y, C, start)
        except (ArithmeticError, ValueError) as error:
            print(f"optimum: {solver} failed: {error}", file=sys.stderr)
            continue
        value, bound = certified(X, y, C, W, b)
        bound /= value
        if bound < best["bound"]:
            best, start = {"objective": value, "bound": bound, "solver": solver}, (W, b)
        if best["bound"] <= EXACT:
            break
    else:
        print(f"optimum: known only to {best['bound']:.1g} at C={C:g}", file=sys.stderr)
    return best


Solver = Callable[[Any, Any, float, Any], tuple[Any, Any]]


def _solvers(p: int, K: int) -> list[tuple[str, Solver]]:
    chain: list[tuple[str, Solver]] = [("softgrad", _softgrad)]
    if K * (p + 1) <= 1500:
        chain.append(("newton-cholesky", _scikit_learn("newton-cholesky", 1e-12)))
    return chain + [(f"newton-cg {tol:g}", _scikit_learn("newton-cg", tol)) for tol in (1e-8, 1e-10, 1e-12)]


def _softgrad(X: Any, y: Any, C: float, start: Any) -> tuple[Any, Any]:
    from softgrad.sklearn import SoftmaxRegression

    model = SoftmaxRegression(C=C, tol=1e-11).fit(X, y)
    return model.coef_, model.intercept_


def _scikit_learn(solver: str, tol: float) -> Solver:
    def solve(X: Any, y: Any, C: float, start: Any) -> tuple[Any, Any]:
        from sklearn.linear_model import LogisticRegression

        model = LogisticRegression(C=C, solver=solver, tol=tol, max_iter=10_000, warm_start=start is not None)
        if start is not None:
            model.coef_, model.intercept_ = start
        model.fit(X, y)
        return model.coef_, model.intercept_

    return solve
