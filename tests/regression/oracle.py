"""The least objective of softmax regression between two bounds, and the objective of a model, in long double.

Written from the formulas, without `softgrad`: F = C Σ a_i [t_i lse(z_i) − y_i·z_i] + ½‖W‖² with z = W x + b + offset,
or Σ a ℓ for C = inf.  Two classes are the binomial model: one row w, logits 0 and w·x + b.  Newton's method has the
gradient in long double and a triangular factor of the Hessian in float64, so that it refines its own rounding.

The lower bound is the better of two.  Of the dual problem: C Σ a t H(q) − Σ α·offset − ½‖Σ α xᵀ‖² with
α = C a (y − t q), less |Σ α|·|b| for what Σ α = 0 is missed by.  Of the decrement λ² = gᵀH⁻¹g: scores change by at most
M‖Δ‖ where the Hessian's norm of a change of parameters is ‖Δ‖, and the Hessian by at most exp(M‖Δ‖), so that
F − F* ≤ (Mλ + (1 − Mλ) log(1 − Mλ)) / M².
"""

from __future__ import annotations

from fractions import Fraction
from typing import Any, NamedTuple

import numpy as np
from scipy import linalg

Long = np.longdouble
UNIT = float(np.finfo(Long).eps)
MOST_STEPS = 300


class Bracket(NamedTuple):
    """The least objective lies in [lower, upper]."""

    lower: Any
    upper: Any

    @property
    def width(self) -> float:
        """Of the bracket, relative."""
        return float((self.upper - self.lower) / self.lower) if self.lower > 0 else np.inf


class Point(NamedTuple):
    """Row losses, probabilities, their logarithms, and S − y / t."""

    losses: Any
    prob: Any
    log_prob: Any
    residual: Any


class Curved(NamedTuple):
    """Curvature: singular values, B with BᵀB = H⁻¹ where there is curvature, and directions that have none."""

    sigma: Any
    inverse: Any
    null: Any


class Oracle:
    """A problem, with the arguments of `softgrad.regression.fit`, whose features are centred and scaled."""

    def __init__(
        self,
        x: Any,
        targets: Any,
        n_classes: int,
        *,
        C: float = 1.0,
        sample_weight: Any = None,
        class_weight: Any = None,
        label_smoothing: float = 0.0,
        offset: Any = None,
        fit_intercept: bool = True,
    ) -> None:
        x = np.asarray(x.toarray() if hasattr(x, "toarray") else x, np.float64)
        n, p = x.shape
        self.k, self.free = n_classes, bool(fit_intercept)
        self.rows = 1 if n_classes == 2 else n_classes
        # Nothing depends on what all classes share: coordinates orthogonal to it.
        basis = linalg.null_space(np.ones((1, n_classes))).T if n_classes > 2 else np.ones((1, 1))
        self.basis = _orthonormal(basis.astype(Long))
        targets = np.asarray(targets)
        y = np.asarray(targets, Long) if targets.ndim == 2 else np.eye(n_classes, dtype=Long)[targets]
        w = np.ones(n_classes, Long) if class_weight is None else np.asarray(class_weight, Long)
        smoothing = Long(label_smoothing)
        y = w * ((1 - smoothing) * y + smoothing / n_classes)
        a = np.ones(n, Long) if sample_weight is None else np.asarray(sample_weight, Long)
        self.mass = a * y.sum(axis=1) * (Long(C) if np.isfinite(C) else 1)  # C a t of each row
        self.kappa = Long(np.isfinite(C))
        self.share = y / y.sum(axis=1, keepdims=True)
        self.hard = (self.share == 1).any(axis=1)
        self.offset = np.zeros((n, n_classes), Long)
        if offset is not None:
            given = np.asarray(offset, Long)
            self.offset = np.column_stack([np.zeros(n, Long), given]) if given.ndim == 1 else given.copy()
        # The middle of each feature: float64, so that the intercept of centred features can be computed exactly.
        self.center = (x.min(axis=0) / 2 + x.max(axis=0) / 2) if self.free else np.zeros(p)
        self.x = x.astype(Long) - self.center.astype(Long)
        curvature = (self.mass @ self.x**2) / 4 + self.kappa
        self.unit = 1 / np.sqrt(np.where(curvature > 0, curvature, 1))
        self.scaled = self.x * self.unit
        self.intercept_unit = 1 / np.sqrt(self.mass.sum() / 4)
        self.design = np.column_stack([self.scaled, np.full(n, self.intercept_unit)] if self.free else [self.scaled])

    def scores(self, coef: Any, intercept: Any) -> Any:
        """z of centred features."""
        z = self.x @ np.asarray(coef, Long).T + np.asarray(intercept, Long)
        return (np.column_stack([np.zeros(len(z), Long), z]) if self.rows == 1 else z) + self.offset

    def point(self, z: Any) -> Point:
        """Losses and residuals; of hard labels to full relative precision, however small."""
        best = z.argmax(axis=1)[:, None]
        down = z - np.take_along_axis(z, best, axis=1)
        e = np.exp(down)
        np.put_along_axis(e, best, 0, axis=1)
        others = e.sum(axis=1, keepdims=True)
        log_sum = np.log1p(others)
        np.put_along_axis(e, best, 1, axis=1)
        prob = e / (1 + others)
        losses = self.mass * (log_sum[:, 0] - (self.share * down).sum(axis=1))
        residual = prob - self.share
        own = self.share.argmax(axis=1)[:, None]
        without = prob.copy()
        np.put_along_axis(without, own, 0, axis=1)
        gone = np.where(self.hard[:, None], -without.sum(axis=1, keepdims=True), np.take_along_axis(residual, own, 1))
        np.put_along_axis(residual, own, gone, axis=1)
        return Point(losses, prob, down - log_sum, residual)

    def centred(self, coef: Any, intercept: Any) -> Any:
        """The intercept b + W·center of centred features, from exact products."""
        if not self.free:
            return np.asarray(intercept, Long)
        middle = [Fraction(float(c)) for c in self.center]
        moved = []
        for row, b in zip(np.asarray(coef, np.float64), np.asarray(intercept, np.float64), strict=True):
            total = sum((Fraction(float(w)) * c for w, c in zip(row, middle, strict=True)), Fraction(float(b)))
            head = float(total)
            moved.append(Long(head) + Long(float(total - Fraction(head))))
        return np.array(moved, Long)

    def objective(self, coef: Any, intercept: Any) -> tuple[Any, float]:
        """F of a model with the caller's coefficients and intercepts; and how far rounding may have moved it."""
        coef = np.asarray(coef, Long)
        b = self.centred(coef, intercept)
        found = self.point(self.scores(coef, b))
        value = found.losses.sum() + self.kappa * (coef**2).sum() / 2
        sizes = np.abs(self.x) @ np.abs(coef).T + np.abs(b) + np.abs(self.offset).sum(axis=1)[:, None]
        moved = self.mass * np.abs(found.residual).sum(axis=1) * sizes.max(axis=1)
        return value, float(4 * UNIT * (value + moved.sum()))

    def bracket(self) -> Bracket:
        """Newton's method from the log prior, damped where the model promises too much; bounds at every point."""
        at = np.zeros((len(self.basis), self.design.shape[1]), Long)  # in units of `unit` and `intercept_unit`
        if self.free:
            prior = np.log(self.mass @ self.share)
            at[:, -1] = (prior[1:] - prior[0] if self.rows == 1 else self.basis @ prior) / self.intercept_unit
        lower, upper, damping, stale = Long(-np.inf), Long(np.inf), 0.0, 0
        value, found = self._value(at)
        for _ in range(MOST_STEPS):
            gradient = self._gradient(at, found)
            curved = _decomposed(self._root(found))
            along = curved.inverse @ gradient.astype(np.float64).ravel()
            bound = value - self._excess(curved, gradient, found) - 8 * UNIT * value
            if along @ along <= 1e-3 * value:
                ahead = -(curved.inverse.T @ along).reshape(at.shape)
                bound = max(bound, self._dual(at, ahead, found))
            stale = 0 if bound > lower or value < upper else stale + 1
            lower, upper = max(lower, bound), min(upper, value)
            if upper - lower <= 16 * UNIT * upper or stale > 3:
                break
            while damping < 1e9:
                share = curved.sigma**2 / (curved.sigma**2 + damping)
                step = -(curved.inverse.T @ (share * along)).reshape(at.shape).astype(Long)
                there, then = self._value(at + step)
                if there <= value - 1e-2 * float(along @ (share * along)):
                    break
                if damping == 0 and along @ along < UNIT * value:  # a step that rounding hides
                    break
                damping = max(8 * damping, 1e-10)
            else:
                break
            damping = damping / 30 if damping > 1e-10 else 0.0
            while 0.3 * value > there:  # losses that fall exponentially: farther
                further, after = self._value(at + 2 * step)
                if not further < there:
                    break
                step, there, then = 2 * step, further, after
            at, value, found = at + step, there, then
        return Bracket(lower, upper)

    def _value(self, at: Any) -> tuple[Any, Point]:
        coef, b = self._model(at)
        found = self.point(self.scores(coef, b))
        return found.losses.sum() + self.kappa * (coef**2).sum() / 2, found

    def _model(self, at: Any) -> tuple[Any, Any]:
        p = len(self.unit)
        at = self.basis.T @ at
        return at[:, :p] * self.unit, at[:, p] * self.intercept_unit if self.free else np.zeros(self.rows, Long)

    def _gradient(self, at: Any, found: Point) -> Any:
        p = len(self.unit)
        g = (self.mass[:, None] * (found.residual[:, -self.rows :] @ self.basis.T)).T @ self.design
        g[:, :p] += self.kappa * self.unit**2 * at[:, :p]
        return g

    def _root(self, found: Point) -> Any:
        """A with AᵀA = H, in float64: diag(S) − SSᵀ is BᵀB with B = diag(√S)(I − 1Sᵀ); and the penalty's."""
        n, width = self.design.shape
        p, free = len(self.unit), len(self.basis)
        x, s, weight = self.design.astype(np.float64), found.prob.astype(np.float64), self.mass.astype(np.float64)
        if self.rows == 1:
            blocks = np.sqrt(weight * s[:, 0] * s[:, 1])[:, None] * x
        else:
            b = np.repeat(-s[:, None, :], self.k, axis=1)
            b[:, range(self.k), range(self.k)] = s @ (1 - np.eye(self.k))  # 1 − S_k without cancellation
            b *= np.sqrt(weight[:, None, None] * s[:, :, None])
            b = b @ self.basis.T.astype(np.float64)
            blocks = (b[:, :, :, None] * x[:, None, None, :]).reshape(n * self.k, free * width)
        penalty = np.zeros((free, p, free, width))
        for r in range(free):
            penalty[r, range(p), r, range(p)] = self.unit.astype(np.float64)
        stacked = np.vstack([blocks, penalty.reshape(free * p, -1)]) if self.kappa else blocks
        return linalg.qr(stacked, mode="r", check_finite=False)[0][: stacked.shape[1]]

    def _excess(self, curved: Curved, gradient: Any, found: Point) -> Any:
        """The bound of the module's text on F − F*, with what rounding of the gradient may add to the decrement."""
        free, width = gradient.shape
        # S − ȳ has the rounding of the scores; of soft labels, of S itself as well.
        sizes = np.where(self.hard, np.abs(found.residual).sum(axis=1), 2.0) * (1 + np.abs(found.log_prob).min(axis=1))
        sizes = (self.mass * sizes) @ np.abs(self.design)
        noise = np.tile((8 * UNIT * sizes).astype(np.float64), (free, 1))
        g = gradient.astype(np.float64).ravel()
        if (np.abs(curved.null @ g) > np.abs(curved.null) @ noise.ravel()).any():
            return Long(np.inf)  # the loss falls along a direction whose curvature is lost in rounding
        decrement = float(np.linalg.norm(np.abs(curved.inverse @ g) + np.abs(curved.inverse) @ noise.ravel()))
        parts = curved.inverse.reshape(-1, free, width)
        x = self.design.astype(np.float64)
        squares = [np.square(x @ parts[:, r].T).sum(axis=1) for r in range(free)]
        # A range of scores is at most √2 of their length; of one row of coefficients it is the score.
        most = float(np.sqrt(np.sum(squares, axis=0).max() * (1 if self.rows == 1 else 2)))
        t = most * decrement
        if not t < 1:
            return Long(np.inf)
        if t < 1e-3:
            return Long(decrement) ** 2 * (Long(0.5) + t / 6 + t * t / 10)
        return (t + (1 - Long(t)) * np.log1p(-Long(t))) / Long(most) ** 2

    def _dual(self, at: Any, ahead: Any, found: Point) -> Any:
        """The dual value at q = S, less what rounding may have added; ``ahead``: the step to the optimum, nearly."""
        if not self.kappa:
            return Long(-np.inf)
        alpha = -self.mass[:, None] * found.residual
        entropies = -self.mass[:, None] * found.prob * found.log_prob
        offsets = alpha * self.offset
        v = alpha[:, -self.rows :].T @ self.x
        noise = 4 * UNIT * np.abs(alpha[:, -self.rows :]).T @ np.abs(self.x)
        value = entropies.sum() - offsets.sum() - (v**2).sum() / 2
        rounding = 4 * UNIT * (entropies.sum() + np.abs(offsets).sum()) + (noise * (np.abs(v) + noise)).sum()
        if self.free:
            b = np.abs(self._model(at)[1]) + 4 * np.abs(self._model(ahead)[1])
            missed = np.abs(alpha[:, -self.rows :].sum(axis=0)) + 4 * UNIT * np.abs(alpha[:, -self.rows :]).sum(axis=0)
            rounding += 2 * (missed * b).sum()
        return value - rounding


def _decomposed(root: Any) -> Curved:
    """The singular values of a root with columns of length 1, in the variables of the root."""
    length = np.linalg.norm(root, axis=0)
    length = np.where(length > 0, length, 1.0)
    _, sigma, vt = linalg.svd(root / length, check_finite=False)
    sigma = np.append(sigma, np.zeros(len(vt) - len(sigma)))
    kept = sigma > 1e-14 * sigma[0]
    return Curved(sigma[kept], vt[kept] / sigma[kept, None] / length, vt[~kept] / length)


def _orthonormal(basis: Any) -> Any:
    """An orthonormal basis in long double from one in float64, orthogonal to the constant vector."""
    if len(basis) == 1 and basis.shape[1] == 1:
        return basis
    rows: list[Any] = []
    for row in basis - basis.mean(axis=1, keepdims=True):
        for other in rows * 2:
            row = row - (row @ other) * other
        rows.append(row / np.sqrt(row @ row))
    return np.array(rows)
