"""The penalised objective of softmax regression: its value and its gradient, from the linear head's kernel.

    F(W, b) = C Σ_i a_i ℓ_i(W x_i + b) + ½ ‖W‖²            (the intercept b is not penalised)

The optimiser sees F / (C Σ a), the mean loss plus a penalty, as scikit-learn's does, so that a tolerance on its
gradient means the same for any number of rows.  Two classes have one free row: the logits are [0, w·x + b], which is
the binomial model.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from softgrad.linear import linear_cross_entropy_with_grad

Float = NDArray[np.float64]

__all__ = ["SoftmaxObjective"]


class SoftmaxObjective:
    """Value and gradient of the penalised loss, as a function of one flat float64 vector.

    Parameters
    ----------
    x : array (N, P) of float32 or float64
        The rows. Products are computed in this type.
    targets : array or (indices, values)
        Any target of :func:`softgrad.linear_cross_entropy`: labels in [0, n_classes), or soft targets.
    n_classes : int
        Number of classes, at least 2.
    C : float
        Weight of the loss against the penalty; ``inf`` means no penalty.
    sample_weight : array (N,), optional
        Row weights a_i, not negative; ones if not given.
    fit_intercept : bool
        Whether the model has the intercept b.
    label_smoothing : float
        ε in [0, 1], as in :func:`softgrad.cross_entropy`.
    n_threads : int, optional
        Threads of the kernel.

    Attributes
    ----------
    n_rows_free : int
        Rows of W that are fitted: 1 for two classes (the first class's logit is 0), else one a class.
    size : int
        Length of the flat parameter vector: W by rows, then b.
    """

    def __init__(
        self,
        x: NDArray[Any],
        targets: Any,
        n_classes: int,
        *,
        C: float = 1.0,
        sample_weight: ArrayLike | None = None,
        fit_intercept: bool = True,
        label_smoothing: float = 0.0,
        n_threads: int | None = None,
    ) -> None:
        x = np.asarray(x)
        if x.ndim != 2 or x.dtype not in (np.float32, np.float64):
            raise ValueError(f"x must be a float32 or float64 array (N, P), not {x.dtype} of shape {x.shape}")
        if n_classes < 2:
            raise ValueError(f"n_classes must be at least 2, not {n_classes}: one class leaves nothing to fit")
        if not C > 0:
            raise ValueError(f"C must be positive, not {C}: use C=inf for no penalty")
        weights = np.ones(len(x)) if sample_weight is None else np.asarray(sample_weight, dtype=np.float64)
        if weights.shape != (len(x),):
            raise ValueError(f"sample_weight must have one weight a row, {(len(x),)}, not shape {weights.shape}")
        bad = np.flatnonzero(~(np.isfinite(weights) & (weights >= 0)))
        if bad.size:
            raise ValueError(
                f"sample_weight[{bad[0]}] is {weights[bad[0]]}: weights of a fit must be finite and not negative"
            )
        self.total_weight = float(weights.sum())
        if self.total_weight == 0:
            raise ValueError("sample_weight is zero in every row: at least one weight must be positive")
        self.x = x
        self.targets = targets
        self.n_classes = n_classes
        self.sample_weight = None if sample_weight is None else weights
        self.fit_intercept = fit_intercept
        self.label_smoothing = label_smoothing
        self.n_threads = n_threads
        self.n_rows_free = 1 if n_classes == 2 else n_classes
        self.size = self.n_rows_free * (x.shape[1] + int(fit_intercept))
        self.penalty = 1.0 / (C * self.total_weight)
        # What the optimiser's value is multiplied by to give F; without a penalty F is the plain weighted sum.
        self.scale = self.total_weight * (C if np.isfinite(C) else 1.0)

    def __call__(self, parameters: Float) -> tuple[float, Float]:
        """F / (C Σ a) and its gradient at a flat parameter vector."""
        coef, intercept = self.unpack(parameters)
        # The losses of the rows rather than their sum, which would come rounded to the type of the data.
        losses, gradients = linear_cross_entropy_with_grad(
            self.x,
            self._all_rows(coef),
            self.targets,
            bias=self._all_rows(intercept) if self.fit_intercept else None,
            sample_weight=self.sample_weight,
            label_smoothing=self.label_smoothing,
            reduction="none",
            with_respect_to=("weight", "bias") if self.fit_intercept else ("weight",),
            n_threads=self.n_threads,
        )
        assert gradients.weight is not None
        value = float(losses.sum(dtype=np.float64)) / self.total_weight + 0.5 * self.penalty * float(
            np.vdot(coef, coef)
        )
        slope_coef = gradients.weight[-self.n_rows_free :] / self.total_weight + self.penalty * coef
        slope = [slope_coef.ravel()]
        if gradients.bias is not None:
            slope.append(gradients.bias[-self.n_rows_free :] / self.total_weight)
        return value, np.concatenate(slope, dtype=np.float64)

    def pack(self, coef: ArrayLike, intercept: ArrayLike) -> Float:
        """Put W and b into the flat vector; b is left out of a model without an intercept."""
        parts = (coef, intercept) if self.fit_intercept else (coef,)
        parameters = np.concatenate([np.ravel(part) for part in parts], dtype=np.float64)
        if parameters.size != self.size:
            raise ValueError(f"expected {self.size} parameters, coef and intercept hold {parameters.size}")
        return parameters

    def unpack(self, parameters: Float) -> tuple[Float, Float]:
        """W (n_rows_free, P) and b (n_rows_free,) of a flat vector; b is zeros without an intercept."""
        split = self.n_rows_free * self.x.shape[1]
        coef = parameters[:split].reshape(self.n_rows_free, self.x.shape[1])
        return coef, parameters[split:] if self.fit_intercept else np.zeros(self.n_rows_free)

    def _all_rows(self, free: Float) -> NDArray[Any]:
        """The rows of every class in the data's type: the first of two classes is held at zero."""
        if self.n_rows_free == self.n_classes:
            return free.astype(self.x.dtype)
        return np.concatenate([np.zeros_like(free), free], dtype=self.x.dtype)
