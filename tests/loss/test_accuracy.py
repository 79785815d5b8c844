"""How exact the answers are, in units in the last place, against mpmath with 50 digits.

The oracle sees the logits as the caller's type rounds them, and is computed once for each input.  One ULP is the
spacing of the storage type at the exact value, but no less than at the smallest normal number.  The gradient at the
label is S_y − 1, whose error cannot be smaller than that of S_y: it is stated in ULP of 1 of the arithmetic type
(float32 for the half types) after half an ULP for storing it.
"""

from __future__ import annotations

import functools
from typing import Any

import mpmath
import numpy as np
import pytest
from cases import DTYPES, check_informative

import softgrad

# What is promised, for logits that are (flat: |o| < 1 | spread: normal of deviation 3 | peaked: one class holds most of
# the mass, others lie up to 34 below).  A distance of d from the maximum is itself rounded, which costs up to
# 2^⌊log₂ d⌋ ULP of exp(−d) before any other arithmetic: 16 for d = 20, 32 for d = 34.
ARITHMETIC_BOUNDS: dict[str, tuple[float, float, float]] = {
    "softmax": (8, 20, 40),
    "log_softmax": (2, 2, 3),
    "logsumexp": (1, 1, 3),
    "loss": (2, 2, 3),
    "gradient": (8, 20, 40),
    "gradient at the label": (1, 1, 2),
    "hvp": (10, 22, 40),
}
# The half types compute in float32 and round once: half an ULP, however far from the maximum.
HALF_BOUNDS: dict[str, tuple[float, float, float]] = {
    **ARITHMETIC_BOUNDS,  # the loss and the log-sum-exp are float32
    "softmax": (0.51, 0.51, 0.51),
    "log_softmax": (0.51, 0.51, 0.51),
    "gradient": (0.51, 0.51, 0.51),
    "hvp": (0.51, 0.51, 0.51),
}
BOUNDS = {
    "float32": ARITHMETIC_BOUNDS,
    "float64": ARITHMETIC_BOUNDS,
    "float16": HALF_BOUNDS,
    "bfloat16": HALF_BOUNDS,
}

KINDS = ("flat", "spread", "peaked")
SHAPES = ((3, 10), (2, 257), (1, 2100))


def inputs(kind: str, rows: int, columns: int, dtype: str) -> tuple[Any, Any, Any]:
    random = np.random.default_rng([KINDS.index(kind), rows, columns])
    o = random.normal(size=(rows, columns)) * (0.25 if kind == "flat" else 3.0)
    labels = random.integers(columns, size=rows)
    if kind == "peaked":
        o = random.uniform(-25.0, 0.0, size=(rows, columns)) - np.log(columns)
        spike = (labels + np.arange(rows)) % columns  # the label itself in the first row, another class in the others
        o[np.arange(rows), spike] = 1.0
        o[np.arange(rows), (labels + 1 + np.arange(rows)) % columns] = 0.0
    v = random.choice([-1.0, 0.5, 1.0, 2.0], size=o.shape)  # exact in every type
    return o.astype(DTYPES[dtype]), labels, v.astype(DTYPES[dtype])


@functools.cache
def exact(kind: str, rows: int, columns: int, dtype: str) -> dict[str, Any]:
    """Arrays of mpmath numbers; the subtraction from float results is done in 50 digits as well."""
    o, labels, v = inputs(kind, rows, columns, dtype)
    found: dict[str, list[Any]] = {
        name: [] for name in ("softmax", "log_softmax", "logsumexp", "loss", "gradient", "hvp")
    }
    with mpmath.workdps(50):
        for row, label, vector in zip(o.astype(float).tolist(), labels.tolist(), v.astype(float).tolist(), strict=True):
            x = [mpmath.mpf(value) for value in row]
            e = [mpmath.exp(value) for value in x]
            total = mpmath.fsum(e)
            lse, s = mpmath.log(total), [value / total for value in e]
            along = mpmath.fsum(a * b for a, b in zip(s, vector, strict=True))
            found["softmax"].append(s)
            found["log_softmax"].append([value - lse for value in x])
            found["logsumexp"].append(lse)
            found["loss"].append(lse - x[label])
            found["gradient"].append([value - (j == label) for j, value in enumerate(s)])
            found["hvp"].append([a * (b - along) for a, b in zip(s, vector, strict=True)])
    return {name: np.array(value, dtype=object) for name, value in found.items()}


def ulp(values: Any, dtype: str) -> Any:
    """Spacing of the storage type at each value."""
    import ml_dtypes

    info = ml_dtypes.finfo(DTYPES[dtype])
    magnitude = np.maximum(np.abs(np.asarray(values, dtype=np.float64)), float(info.smallest_normal))
    return np.exp2(np.floor(np.log2(magnitude))) * float(info.eps)


def error(got: Any, expected: Any) -> Any:
    """|got − exact| as float64, subtracted in 50 digits."""
    with mpmath.workdps(50):
        flat = [
            abs(mpmath.mpf(a) - b)
            for a, b in zip(np.ravel(got).astype(float).tolist(), np.ravel(expected), strict=True)
        ]
        return np.array([float(value) for value in flat]).reshape(np.shape(expected))


def worst(kind: str, dtype: str, shape: tuple[int, int]) -> dict[str, float]:
    """The largest error of each function, in its unit of the table."""
    o, labels, v = inputs(kind, *shape, dtype)
    known = exact(kind, *shape, dtype)
    rows = np.arange(len(o))
    arithmetic = "float64" if dtype == "float64" else "float32"
    result = {}
    for name in ("softmax", "log_softmax"):
        got = getattr(softgrad, name)(o)
        floor = 1.0 if name == "log_softmax" else 0.0  # log S near 0 has the absolute error of a logarithm of 1 + …
        result[name] = np.max(
            error(got, known[name]) / ulp(np.maximum(np.abs(known[name].astype(float)), floor), dtype)
        )
    for name, got in (
        ("logsumexp", softgrad.logsumexp(o)),
        ("loss", softgrad.cross_entropy(o, labels, reduction="none")),
    ):
        size = np.maximum(np.abs(known[name].astype(float)), 1.0)
        result[name] = np.max(error(got, known[name]) / ulp(size, arithmetic))
    gradient = softgrad.cross_entropy_with_grad(o, labels, reduction="sum")[1]
    check_informative(o, labels, gradient)
    off = error(gradient, known["gradient"])
    expected = known["gradient"].astype(float)
    stored = 0.5 * ulp(expected, dtype) if arithmetic != dtype else np.zeros_like(expected)
    at_label = np.maximum(off - stored, 0)[rows, labels] / ulp(1.0, arithmetic)
    result["gradient at the label"] = np.max(at_label)
    off[rows, labels] = 0.0
    result["gradient"] = np.max(off / ulp(expected, dtype))
    product = softgrad.cross_entropy_hvp(o, labels, v, reduction="sum")
    s, along = known["softmax"].astype(float), (known["softmax"] * v.astype(float)).sum(axis=1, keepdims=True)
    size = s * (np.abs(v.astype(float)) + np.abs(along.astype(float)))  # v − S·v may cancel
    result["hvp"] = np.max(
        error(product, known["hvp"]) / ulp(np.maximum(size, np.abs(known["hvp"].astype(float))), dtype)
    )
    return {name: float(value) for name, value in result.items()}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_errors_are_within_the_table(dtype: str, kind: str, instruction_set: str) -> None:
    for shape in SHAPES:
        for name, value in worst(kind, dtype, shape).items():
            bound = BOUNDS[dtype][name][KINDS.index(kind)]
            assert value <= bound, f"{name} {dtype} {kind} {shape}: {value:.3g} ULP, {bound} promised"


def test_the_table_is_not_slack() -> None:
    """The unit of the table is right: somewhere each bound is used to at least an eighth."""
    used = {
        name: max(
            worst(kind, dtype, shape)[name] / BOUNDS[dtype][name][k]
            for k, kind in enumerate(KINDS) for dtype in DTYPES for shape in SHAPES
        )
        for name in ARITHMETIC_BOUNDS
    }  # fmt: skip
    assert min(used.values()) > 1 / 8, used


def test_cancellation_that_the_usual_formula_suffers() -> None:
    """[2, −1] + 10⁶ in float32: lse − x_y gives 0.0625, log s − (x_y − m) the answer for these logits."""
    o = np.array([[2.0, -1.0]], dtype=np.float32) + np.float32(1e6)
    loss = softgrad.cross_entropy(o, [0])
    assert loss.dtype == np.float32
    assert float(loss) == pytest.approx(float(np.log1p(np.exp(-3.0))), rel=0, abs=6e-8)


@pytest.mark.parametrize("columns", [2, 5, 32, 33, 100, 2048, 2049, 5000, 70_000])
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_loss_near_zero_keeps_its_digits(dtype: str, columns: int, instruction_set: str) -> None:
    """log(1 + r) to 8 ULP for distances that are exact, however small r is and wherever the peak lies."""
    random, wide = np.random.default_rng(columns), "float64" if dtype == "float64" else "float32"
    largest = 680 if dtype == "float64" else 80
    at = sorted({0, columns - 1, *(int(k) for k in random.integers(columns, size=4))})
    d = np.full((len(at) + 1, columns), -np.inf)
    for row, k in enumerate(at):
        d[row] = -random.integers(20, largest, columns)
        d[row, random.random(columns) < 0.3] = -np.inf
        d[row, (k + 1) % columns] = -40  # [0, −40] of two columns
        d[row, k] = 0
    d[-1, [0, 1]] = 0, -1  # a large one as well
    peaks = np.array([*at, 0])
    exact = np.log1p(np.exp(np.where(d == 0, -np.inf, d)).sum(axis=1))
    masked = np.isinf(d)
    scaled, capped = -0.5 * np.where(masked, 0, d), 1e4 * np.arctanh(np.where(masked, 0, d) / 1e4)
    scaled[masked], capped[masked] = np.inf, -np.inf
    cases: list[tuple[Any, dict[str, Any], float]] = [(d, {}, 8), (scaled, {"logit_scale": -2.0}, 8)]
    if dtype == "float64":  # a softcap rounds the distances: d ULP of exp(−d)
        cases.append((capped, {"softcap": 1e4}, 3 * largest))
    for o, options, units in cases:
        o = o.astype(DTYPES[dtype])
        for n_threads in (1, 2):
            stats = softgrad.prediction_stats(o, peaks, n_threads=n_threads, **options)
            loss = {"reduction": "none", "n_threads": n_threads, **options}
            found = {
                "lse": softgrad.logsumexp(o, n_threads=n_threads, **options),
                "loss": softgrad.cross_entropy(o, peaks, **loss),
                "loss with gradient": softgrad.cross_entropy_with_grad(o, peaks, **loss)[0],
                "stats.lse": stats.lse,
                "stats.log_prob": -stats.log_prob,
            }
            if dtype == wide:  # half precision rounds its own results
                found["log_softmax"] = -softgrad.log_softmax(o, n_threads=n_threads, **options)[range(len(d)), peaks]
            for name, value in found.items():
                off = error(value, exact) / ulp(exact, wide)
                assert (off <= units).all(), (name, options, off)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_the_gradient_of_a_half_type_is_rounded_once(dtype: str, instruction_set: str) -> None:
    """S_y − 1 for S_y → 1: rounding S_y to the half type first would leave 0 or a whole ULP of 1."""
    o = np.zeros((40, 3), dtype=DTYPES[dtype])
    o[:, 0] = np.linspace(2, 11, 40)
    exact_gradient = -2 * np.exp(-o[:, 0].astype(float)) / (1 + 2 * np.exp(-o[:, 0].astype(float)))
    gradient = softgrad.cross_entropy_with_grad(o, np.zeros(40, dtype=int), reduction="sum")[1][:, 0].astype(float)
    bound = 0.5 * ulp(exact_gradient, dtype) + 2 * 2.0**-24
    assert (np.abs(gradient - exact_gradient) <= bound).all()


def test_logits_of_float16_with_a_large_vocabulary(instruction_set: str) -> None:
    """float16 zeros with V = 100 000: the sum of exponentials does not fit in float16 and need not."""
    o = np.zeros((2, 100_000), dtype=np.float16)
    loss, gradient = softgrad.cross_entropy_with_grad(o, [0, 99_999], reduction="none")
    np.testing.assert_allclose(loss, np.log(100_000), rtol=1e-7)
    np.testing.assert_array_equal(gradient[0, 1:], np.float16(1e-5))
    assert gradient[0, 0] == np.float16(-1 + 1e-5)
