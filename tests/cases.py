"""Inputs that can show a mistake, and how far from the oracle an answer may be.

A test on degenerate data passes whatever the code does: logits so peaked that every gradient is 0, or so far from 0
that padding with zeros would go unseen.  `check_informative` refuses such data.
"""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import pytest
from numpy.typing import NDArray

from softgrad import reference
from softgrad._core import backend

Array = NDArray[Any]

INSTRUCTION_SETS: tuple[str, ...] = tuple(dict.fromkeys((*backend.available(), "numpy")))
# Parameters of a test: the widest instruction set and the fallback, and those between, which are the same source
# compiled for shorter vectors.
EACH_INSTRUCTION_SET = [
    pytest.param(name, marks=pytest.mark.exhaustive) if name in INSTRUCTION_SETS[1:-1] else name
    for name in INSTRUCTION_SETS
]
DTYPES: dict[str, Any] = {
    "float32": np.float32,
    "float64": np.float64,
    "float16": np.float16,
    "bfloat16": ml_dtypes.bfloat16,
}
KINDS = ("flat", "peaked", "offset", "masked")
TARGETS = ("labels", "dense", "sparse")

# Unit roundoff of the arithmetic (float32 for the half types) and of the storage of a gradient.
ARITHMETIC = {"float32": 2.0**-24, "float64": 2.0**-53, "float16": 2.0**-24, "bfloat16": 2.0**-24}
STORAGE = {"float32": 2.0**-24, "float64": 2.0**-53, "float16": 2.0**-11, "bfloat16": 2.0**-8}
# Below this a stored value may be anything smaller: the kernels keep probabilities out of the denormals.
TINY = {"float32": 2.0**-110, "float64": 2.0**-1000, "float16": 2.0**-24, "bfloat16": 2.0**-110}


def logits(kind: str, rows: int, columns: int, dtype: str = "float64", seed: int = 0) -> Array:
    """Rows of logits as the caller's type rounds them."""
    random = np.random.default_rng([seed, rows, columns])
    o = random.normal(size=(rows, columns))
    if kind == "flat":
        o *= 0.25  # near zero: a column too many, read as 0, would show
    elif kind == "peaked":
        spike = random.integers(columns, size=rows)
        o[np.arange(rows), spike] += np.log(columns) + 4.0  # half the mass or more on one class
        o[:, ::7] -= 9.0
    elif kind == "offset":
        o = 2 * o + (1e4 if dtype != "float16" else 2e3) * random.choice([-1.0, 1.0], size=(rows, 1))
    elif kind == "masked":
        o[random.random(o.shape) < 0.4] = -np.inf
        o[np.arange(rows), random.integers(columns, size=rows)] = 0.5  # no row is masked altogether
    else:
        raise ValueError(kind)
    return o.astype(DTYPES[dtype])


def targets(kind: str, o: Array, seed: int = 0, *, smooth: bool = False) -> Any:
    """Targets for the rows ``o``: labels, dense or sparse soft targets that avoid the masked classes."""
    random = np.random.default_rng([seed + 1, *o.shape])
    rows, columns = o.shape
    open_ = o.astype(np.float64) > -np.inf
    if kind == "labels":
        score = np.where(open_, random.random(o.shape), -1.0)
        return score.argmax(axis=1)
    if kind == "dense":
        y = np.where(open_, random.random(o.shape) ** 4, 0.0)
        return y / y.sum(axis=1, keepdims=True) * random.uniform(0.5, 1.5, size=(rows, 1))  # any Σ y
    if kind == "sparse":
        k = min(4, columns + 1)
        index = np.where(open_, random.random(o.shape), -1.0).argsort(axis=1)[:, ::-1][:, : max(1, k - 1)]
        index = np.concatenate([index, index[:, :1]], axis=1)  # a duplicate, which adds up
        value = random.uniform(0.1, 0.5, size=index.shape)
        value[~np.take_along_axis(open_, index, axis=1)] = 0.0
        if index.shape[1] > 2:
            index[::2, 1] = -1  # padding, whose value counts for nothing
        return index, value.astype(np.float32)
    raise ValueError(kind)


def check_informative(o: Array, y: Any, gradient: Array) -> None:
    """Refuse data on which any code would pass: a zero gradient, one-hot probabilities, or equal rows."""
    g = np.abs(gradient.astype(np.float64))
    assert np.isfinite(g).all()
    rows, columns = g.shape
    if columns == 1:
        return
    assert (g.max(axis=1) > 1e-4).all(), "a row has no gradient to speak of"
    s = reference.softmax(o)
    assert (s.max(axis=1) < 1 - 1e-3).all(), "a row is one-hot"
    assert rows == 1 or np.ptp(s.max(axis=1)) > 1e-6 or columns < 3, "all rows are alike"


# --- closeness -------------------------------------------------------------------------------------------------------


def gradient_terms(o: Array, y: Any, **options: Any) -> Array:
    """The size of what a gradient is the difference of, ``|D|·(|mass|·S + |w y'|)``: errors are relative to it."""
    p = reference._problem(o, y, **options)[0]
    stats = reference.row_statistics(p.u, p.wy)
    lse = reference.loss_from_statistics(stats)[1]
    slope = abs(options.get("logit_scale", 1.0) / options.get("temperature", 1.0))  # at most: a softcap lowers it
    mass = np.abs(p.ce * stats.mass) + np.abs(2 * p.z * np.nan_to_num(lse))
    terms = slope * (mass[:, None] * reference.probabilities(p.u, stats) + np.abs(p.ce[:, None] * p.wy))
    terms[~p.keep] = 0.0
    return reference._restore(terms, np.shape(o), options.get("axis", -1))


def spread(o: Array, **options: Any) -> float:
    """How far apart the finite transformed logits of a row lie: an exponent's rounding error grows with it."""
    u = reference._transform(o.astype(np.float64), *(options.get(k, d) for k, d in TRANSFORM.items()))[0]
    u = np.moveaxis(u, options.get("axis", -1), -1)
    low, high = np.where(np.isfinite(u), u, np.inf).min(-1), np.where(np.isfinite(u), u, -np.inf).max(-1)
    apart = high - low
    return float(np.max(apart, initial=0.0, where=np.isfinite(apart)))


TRANSFORM: dict[str, Any] = {"logit_scale": 1.0, "softcap": None, "temperature": 1.0}


def close(actual: Any, expected: Any, tolerance: Any, context: str = "") -> None:
    """Every element within its own tolerance, the same NaN and infinities, and a message that says where."""
    actual, expected = np.asarray(actual).astype(np.float64), np.asarray(expected, dtype=np.float64)
    assert actual.shape == expected.shape, f"{context}: shape {actual.shape}, expected {expected.shape}"
    with np.errstate(invalid="ignore"):
        ok = np.abs(actual - expected) <= tolerance
    ok |= (actual == expected) | (np.isnan(actual) & np.isnan(expected))
    if not ok.all():
        at = tuple(int(k) for k in np.argwhere(~ok)[0])
        limit = float(np.broadcast_to(tolerance, ok.shape)[at])
        raise AssertionError(
            f"{context}: {np.sum(~ok)} of {ok.size} off; first at {at}: {actual[at]!r}, expected {expected[at]!r},"
            f" tolerance {limit:.3g}"
        )


def check_loss(actual: Any, o: Array, y: Any, dtype: str, context: str = "", **options: Any) -> None:
    """A loss against the oracle: relative to the sum of the rows' sizes, so that no row hides behind another."""
    expected = reference.cross_entropy(o, y, **options)
    p = reference._problem(o, y, **options)[0]
    stats = reference.row_statistics(p.u, p.wy)
    log_s = np.abs(np.nan_to_num(np.log(stats.sumexp))) + 1
    lse = np.nan_to_num(reference.loss_from_statistics(stats)[1])
    distance = np.where(np.isfinite(p.u), p.u - p.u.max(axis=1, keepdims=True), 0.0)
    size = np.abs(p.ce) * (np.abs(stats.mass) * log_s + (np.abs(p.wy) * np.abs(distance)).sum(axis=1))
    size += np.abs(p.z) * (np.abs(lse) + 1) ** 2
    size = np.where(p.keep & np.isfinite(size), size, 0.0)
    total = size.reshape(np.shape(expected)) if np.ndim(expected) else size.sum()
    apart = spread(o, **options) if options.get("softcap") else 0.0
    close(actual, expected, (16 + 4 * apart) * ARITHMETIC[dtype] * total + 1e-300, f"loss {context}")


def check_gradient(actual: Array, o: Array, y: Any, dtype: str, context: str = "", **options: Any) -> None:
    """A gradient against the oracle, element by element, relative to the terms it is the difference of."""
    expected = reference.cross_entropy_with_grad(o, y, **options)[1]
    unit = (24 + 4 * spread(o, **options)) * ARITHMETIC[dtype]
    terms = gradient_terms(o, y, **options)
    stored = STORAGE[dtype] * np.abs(expected) if STORAGE[dtype] != ARITHMETIC[dtype] else 0.0
    close(actual, expected, unit * terms + stored + TINY[dtype], f"gradient {context}")
