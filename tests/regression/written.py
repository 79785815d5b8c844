"""The penalised objective written out in NumPy, and its minimum by plain Newton steps: nothing of softgrad in it."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Float = NDArray[np.float64]

SOLVERS = ("newton-cg", "newton", "lbfgs")
TIGHT = {"newton-cg": 1e-11, "newton": 1e-12, "lbfgs": 1e-9}  # the least tol that a test asks of each


class Problem:
    """``F = C Σ a (t lse(z) − Σ y' z) + ½‖W‖²`` with ``y' = w ∘ ((1 − ε) y + ε/K)`` and ``t = Σ y'``, in float64.

    The arguments are those of `softgrad.regression.fit`.  Two classes have one row of parameters, the logits 0 and z.
    """

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
        **others: Any,
    ) -> None:
        self.x = (x.toarray() if hasattr(x, "toarray") else np.asarray(x)).astype(np.float64)
        n = len(self.x)
        targets = np.asarray(targets)
        y = targets.astype(np.float64) if targets.ndim == 2 else np.eye(n_classes)[targets]
        w = np.ones(n_classes) if class_weight is None else np.asarray(class_weight, np.float64)
        self.y = w * ((1 - label_smoothing) * y + label_smoothing / n_classes)
        self.t = self.y.sum(axis=1)
        self.a = np.ones(n) if sample_weight is None else np.asarray(sample_weight, np.float64)
        self.C, self.k, self.fit_intercept = C, n_classes, fit_intercept
        self.rows = 1 if n_classes == 2 else n_classes
        self.offset = np.zeros((n, n_classes)) if offset is None else np.asarray(offset, np.float64)
        if self.offset.ndim == 1:
            self.offset = np.column_stack([np.zeros(n), self.offset])

    def logits(self, coef: Any, intercept: Any) -> Float:
        z = self.x @ np.asarray(coef, np.float64).T + np.asarray(intercept, np.float64)
        return (np.hstack([np.zeros_like(z), z]) if self.rows == 1 else z) + self.offset

    def value(self, coef: Any, intercept: Any) -> float:
        z = self.logits(coef, intercept)
        z = z - z.max(axis=1, keepdims=True)
        losses = self.t * np.log(np.exp(z).sum(axis=1)) - (self.y * z).sum(axis=1)
        scale, penalty = (self.C, 0.5) if np.isfinite(self.C) else (1.0, 0.0)
        return float(scale * (self.a * losses).sum() + penalty * (np.asarray(coef, np.float64) ** 2).sum())

    def slope(self, coef: Any, intercept: Any) -> tuple[Float, Float, Float]:
        """The gradient in W and in b, and the probabilities."""
        z = self.logits(coef, intercept)
        s = np.exp(z - z.max(axis=1, keepdims=True))
        s /= s.sum(axis=1, keepdims=True)
        scale, penalty = (self.C, 1.0) if np.isfinite(self.C) else (1.0, 0.0)
        g = (scale * self.a[:, None] * (self.t[:, None] * s - self.y))[:, -self.rows :]
        return g.T @ self.x + penalty * np.asarray(coef), g.sum(axis=0) * self.fit_intercept, s

    def hessian(self, s: Float) -> Float:
        """The whole matrix, rows of (W, b) one after the other."""
        n, p = self.x.shape
        scale, penalty = (self.C, 1.0) if np.isfinite(self.C) else (1.0, 0.0)
        x1 = np.hstack([self.x, np.ones((n, 1))])
        h = np.empty((self.rows, p + 1, self.rows, p + 1))
        for j in range(self.rows):
            for k in range(j, self.rows):
                sj, sk = s[:, self.k - self.rows + j], s[:, self.k - self.rows + k]
                h[j, :, k] = (x1.T * (scale * self.a * self.t * sj * ((j == k) - sk))) @ x1
                h[k, :, j] = h[j, :, k]
            h[j, np.arange(p), j, np.arange(p)] += penalty
        return h.reshape(self.rows * (p + 1), -1)

    def minimum(self, steps: int = 200) -> tuple[float, Float, Float]:
        """The least value, and where: damped Newton steps from zero until the value falls no more."""
        p = self.x.shape[1]
        coef, intercept = np.zeros((self.rows, p)), np.zeros(self.rows)
        value = self.value(coef, intercept)
        # Directions without curvature: the intercept that is not fitted, and a constant added to every class.
        free = np.kron(np.ones((self.rows, self.rows)), np.eye(p + 1)) if self.rows > 1 else 0.0
        for _ in range(steps):
            g_coef, g_intercept, s = self.slope(coef, intercept)
            h = (self.hessian(s) + free).reshape(self.rows, p + 1, self.rows, p + 1)
            if not self.fit_intercept:
                h[:, -1], h[:, :, :, -1] = 0, 0
                h[np.arange(self.rows), -1, np.arange(self.rows), -1] = 1
            g = np.hstack([g_coef, g_intercept[:, None]])
            h = h.reshape(g.size, g.size)
            h[np.diag_indices(g.size)] += 1e-14 * h.diagonal().max()  # where the softmax has no curvature left
            step = np.linalg.solve(h, -g.ravel()).reshape(g.shape)
            slope, length = float((g * step).sum()), 1.0
            while length > 1e-18:
                trial = coef + length * step[:, :-1], intercept + length * step[:, -1]
                fallen = self.value(*trial)
                if fallen <= value + 1e-4 * length * slope:
                    break
                length /= 2
            else:
                break
            falls = value - fallen
            (coef, intercept), value = trial, fallen
            if falls <= 1e-16 * value and abs(slope) <= 1e-20 * max(value, 1e-300):
                break
        return value, coef, intercept


def centred(intercept: Any) -> Float:
    """With three classes or more the intercepts have one free constant."""
    b = np.asarray(intercept, np.float64)
    return b - b.mean(axis=-1, keepdims=True) if b.shape[-1] > 1 else b
