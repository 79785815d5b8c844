"""What the tests of the estimators share: small real data, and the gradient that is zero at an optimum."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
from scipy.special import softmax
from sklearn import datasets
from sklearn.preprocessing import StandardScaler


@cache
def real(name: str) -> tuple[Any, Any]:
    """Standardised features and labels of iris, wine or breast_cancer; not to be written to."""
    x, y = getattr(datasets, f"load_{name}")(return_X_y=True)
    x = StandardScaler().fit_transform(x)
    x.flags.writeable = y.flags.writeable = False
    return x, y


def soft_labels(y: Any, n_classes: int, seed: int = 0) -> Any:
    """Soft labels that lean towards the labels; their rows do not sum to 1."""
    rng = np.random.default_rng(seed)
    return rng.gamma(0.3, size=(len(y), n_classes)) + np.eye(n_classes)[y] * rng.uniform(0.2, 2, size=(len(y), 1))


def largest_slope(
    model: Any,
    x: Any,
    y: Any,
    *,
    sample_weight: Any = None,
    class_weight: Any = None,
    offset: Any = None,
) -> float:
    """Largest component of the gradient of F = C Σ a ℓ + ½‖W‖² over C Σ a, from its definition: 0 at the optimum."""
    n_classes = len(model.classes_)
    soft = np.eye(n_classes)[y] if np.ndim(y) == 1 else np.asarray(y)
    soft = (1 - model.label_smoothing) * soft + model.label_smoothing / n_classes
    soft = soft * (1.0 if class_weight is None else np.asarray(class_weight))
    a = np.ones(len(soft)) if sample_weight is None else np.asarray(sample_weight, dtype=float)
    coef, intercept = model.coef_, model.intercept_
    if n_classes == 2:
        coef, intercept = np.vstack([0 * coef, coef]), np.append(0, intercept)
    logits = np.asarray(x @ coef.T) + intercept
    if offset is not None:
        logits = logits + (np.column_stack([0 * offset, offset]) if offset.ndim == 1 else offset)
    residual = a[:, None] * (soft.sum(axis=1, keepdims=True) * softmax(logits, axis=1) - soft)
    slope = np.asarray(x.T @ residual).T + (coef / model.C if np.isfinite(model.C) else 0)
    free = slice(1, None) if n_classes == 2 else slice(None)
    parts = [slope[free].ravel(), residual.sum(axis=0)[free] if model.fit_intercept else [0]]
    return float(np.abs(np.concatenate(parts)).max() / a.sum())
