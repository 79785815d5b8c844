"""The exact answers with their tolerances, and what each usual mistake would give instead."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from typing import Any, NamedTuple

import numpy as np

from softgrad import reference
from softgrad._checker.inputs import PRECISION, CheckInput
from softgrad._checker.laws import FORGOTTEN
from softgrad._core.arrays import Array
from softgrad._core.options import TRANSFORM, Options

DEFAULTS = asdict(Options())
Named = Iterator[tuple[str, Array]]


class ExactAnswers(NamedTuple):
    """What is right for one input, in float64, and how far a correct implementation may be from it."""

    case: CheckInput
    options: dict[str, Any]
    rows: reference.Rows
    answers: dict[str, Array]  # by quantity: value, gradient, softmax, Jacobian
    tolerance: dict[str, Array]  # lse − o_y in the user's dtype passes
    strict: dict[str, Array]  # two digits survive a common offset


def exact(
    case: CheckInput, options: dict[str, Any], dtype: str, soft_eps: float, rtol: float | None, wide: bool
) -> ExactAnswers:
    """Answers by `softgrad.reference`; the Jacobian, V×V a row, only if it is wanted (``wide``)."""
    transform = {name: options[name] for name in TRANSFORM}
    p = reference._problem(case.o, case.y, **options)[0]
    value, gradient = reference.cross_entropy_with_grad(case.o, case.y, **options)
    probabilities = reference.softmax(case.o, **transform)
    answers = {"value": np.asarray(value), "gradient": gradient, "softmax": probabilities}
    if wide:
        jacobian = probabilities[:, :, None] * (np.eye(p.u.shape[1]) - probabilities[:, None, :])
        answers["Jacobian"] = jacobian * p.slope[:, None, :]
    eps, _, smallest = PRECISION[dtype]
    eps = max(eps, soft_eps)
    n, classes = p.u.shape
    half = dtype in ("float16", "bfloat16")
    relative = rtol if rtol is not None else eps * (3 + classes**0.5 / 2 if half else 64 + classes + n)
    finite = np.where(np.isfinite(p.u), p.u, 0.0)  # a masked class adds nothing, or makes the answer unusable
    size = np.abs(finite).max(axis=1)  # lse − o_y rounds numbers of this size
    lse = np.abs(log_sum_exp(p.u)[:, 0])
    mass, z = np.abs(p.ce) * np.abs(p.wy).sum(axis=1), np.abs(p.z)
    terms = np.abs(p.ce) * np.where(p.wy == 0, 0.0, np.abs(p.wy * (finite - log_sum_exp(p.u)))).sum(axis=1)

    def bounds(size: Array, slack: float) -> dict[str, Array]:
        rounding = relative + eps * (1.5 if half else 4.0) * size + slack
        loss = relative * (terms + 2 * z * lse**2) + rounding * mass + slack * terms + 4 * smallest
        by_row = (rounding * (mass + 2 * z * (1 + lse)) * (1 + np.abs(p.slope).max(axis=1)))[:, None] + 4 * smallest
        each = (rounding * (1 + np.abs(p.slope).max(axis=1)))[:, None]
        total = loss if options["reduction"] == "none" else loss.sum()
        return {"value": np.asarray(total), "gradient": by_row, "softmax": each, "Jacobian": each[:, :, None]}

    around = np.abs(np.where(np.isfinite(p.u), p.u - p.u.max(axis=1, keepdims=True), 0.0)).max(axis=1)
    return ExactAnswers(case, options, p, answers, bounds(size, 0.0), bounds(around, 0.01))


def log_sum_exp(u: Array) -> Array:
    """Log-sum-exp of each row as a column."""
    return np.asarray(reference.logsumexp(u)[:, None])


def usable(truth: ExactAnswers, dtype: str) -> bool:
    """Whether the answer is finite, and nothing on the way leaves the dtype's range."""
    largest = PRECISION[dtype][1] / 4
    with np.errstate(over="ignore"):
        squares = truth.rows.z.any() and np.abs(log_sum_exp(truth.rows.u)).max() ** 2 > largest
    finite = np.where(np.isneginf(truth.rows.u), 0.0, truth.rows.u)
    return not squares and all(bool((np.abs(x) <= largest).all()) for x in (finite, *truth.answers.values()))


def wrong(found: Array, expected: Array, tolerance: Array) -> Array:
    """Where a result is not the expected one; NaN is wrong."""
    with np.errstate(invalid="ignore"):
        return np.asarray(~(np.abs(found - expected) <= tolerance))


def agrees(found: Array, other: Array, truth: ExactAnswers, quantity: str) -> bool:
    """Whether a result is what a mistake gives."""
    size = np.maximum(1.0, np.abs(other).max() / max(np.abs(truth.answers[quantity]).max(), 1e-300))
    return not wrong(found, other, truth.tolerance[quantity].max() * size).any()


def mistakes(truth: ExactAnswers, quantity: str) -> Named:
    """What each usual mistake gives for this input, the most specific first."""
    with np.errstate(all="ignore"):
        if quantity in ("value", "gradient"):
            yield from _loss_mistakes(truth, quantity)
        elif quantity == "softmax":
            yield from _softmax_mistakes(truth)
        else:
            yield from _jacobian_mistakes(truth)


def _changed(truth: ExactAnswers, part: int, **changes: Any) -> Array:
    o = changes.pop("o", truth.case.o)
    return np.asarray(reference.cross_entropy_with_grad(o, truth.case.y, **{**truth.options, **changes})[part])


def _loss_mistakes(truth: ExactAnswers, quantity: str) -> Named:
    part = int(quantity == "gradient")
    options, p, answer = truth.options, truth.rows, truth.answers[quantity]
    n, classes = p.u.shape
    s, mass = truth.answers["softmax"], p.wy.sum(axis=1)
    ce = p.ce[:, None]

    def with_probabilities(other: Array, mass: Array = mass) -> Array:
        if part:
            return np.asarray(ce * p.slope * (mass[:, None] * other - p.wy))
        rows = -p.ce * np.where(p.wy == 0, 0.0, p.wy * np.log(other)).sum(axis=1)
        return np.asarray(rows if options["reduction"] == "none" else rows.sum())

    total = _changed(truth, part, reduction="sum")
    yield "sign", -answer
    if options["reduction"] == "sum":
        yield "mean against sum", _changed(truth, part, reduction="mean")
    elif options["reduction"] == "mean":
        if options["ignore_index"] is not None:
            yield "ignored rows counted in the mean", total / n
        elif options["class_weight"] is not None and truth.case.y.ndim == 1:
            yield "class weights left out of the mean", total / n
        yield "mean against sum", total
        yield "mean over every element", total / (n * classes)
    elif part:
        yield "mean against sum", answer / n
    yield from _forgotten(truth, part)
    plain = {name: DEFAULTS[name] for name in TRANSFORM}
    twice = _changed(truth, part, o=s, **plain)
    yield "double softmax", twice
    for axis in (0, None):
        over = np.exp(p.u - p.u.max(axis=axis, keepdims=True))
        yield "wrong axis", with_probabilities(over / over.sum(axis=axis, keepdims=True))
    yield "sigmoid instead of softmax", with_probabilities(1 / (1 + np.exp(-p.u)), np.ones(n) if part else mass)
    yield "not normalised", with_probabilities(np.exp(p.u))
    yield "not normalised", with_probabilities(np.exp(p.u - p.u.max(axis=1, keepdims=True)))
    if truth.case.y.ndim == 2:
        lse = log_sum_exp(p.u)[:, 0]
        value = p.ce * (lse - np.where(p.wy == 0, 0.0, p.wy * p.u).sum(axis=1))
        reduced = value if options["reduction"] == "none" else value.sum()
        yield "soft targets that do not sum to one", ce * p.slope * (s - p.wy) if part else np.asarray(reduced)
    yield "logarithm to base 2", answer / np.log(2)
    yield "logarithm to base 10", answer / np.log(10)
    if not part:
        rows = -p.ce * (p.wy * s).sum(axis=1)
        yield "logarithm forgotten", np.asarray(rows if options["reduction"] == "none" else rows.sum())
        return
    transform = {name: options[name] for name in TRANSFORM}
    if any(options[name] != DEFAULTS[name] for name in TRANSFORM):
        yield "inner derivative forgotten", np.where(p.slope == 0, 0.0, answer / p.slope)
    yield "double softmax", reference.softmax_jvp(truth.case.o, twice, **transform)
    yield "target not subtracted", ce * mass[:, None] * s * p.slope
    yield "gradient by the probabilities", -ce * p.wy / s
    yield "diagonal of the Jacobian only", -ce * p.wy * (1 - s) * p.slope
    yield "softmax derivative twice", reference.softmax_jvp(truth.case.o, answer, **transform)


def _forgotten(truth: ExactAnswers, part: int) -> Named:
    options, classes = truth.options, truth.rows.u.shape[1]
    for name, law in FORGOTTEN.items():
        value = options[name]
        if (value is None) if DEFAULTS[name] is None else value == DEFAULTS[name]:
            continue
        if name == "ignore_index" and not 0 <= value < classes:
            continue  # no row of such a label has a loss that could be counted
        yield law, _changed(truth, part, **{name: DEFAULTS[name]})
    smoothing = options["label_smoothing"]
    if smoothing:
        spread = _changed(truth, part, label_smoothing=smoothing * classes / (classes - 1))
        yield "label smoothing by ε/(V − 1)", spread
    if options["temperature"] != 1:
        yield "multiplied by the temperature", _changed(truth, part, temperature=1 / options["temperature"])


def _softmax_mistakes(truth: ExactAnswers) -> Named:
    u, s = truth.rows.u, truth.answers["softmax"]
    yield "double softmax", reference.softmax(s)
    for axis in (0, None):
        over = np.exp(u - u.max(axis=axis, keepdims=True))
        yield "wrong axis", over / over.sum(axis=axis, keepdims=True)
    yield "sigmoid instead of softmax", 1 / (1 + np.exp(-u))
    yield "logarithm returned", np.log(s)
    for name in TRANSFORM:
        if truth.options[name] != DEFAULTS[name]:
            changed = {key: truth.options[key] for key in TRANSFORM} | {name: DEFAULTS[name]}
            yield FORGOTTEN[name], reference.softmax(truth.case.o, **changed)
    if truth.options["temperature"] != 1:
        changed = {key: truth.options[key] for key in TRANSFORM} | {"temperature": 1 / truth.options["temperature"]}
        yield "multiplied by the temperature", reference.softmax(truth.case.o, **changed)
    yield "logarithm to base 2", reference.softmax(u * np.log(2))
    yield "not normalised", np.exp(u - u.max(axis=1, keepdims=True))
    yield "not normalised", np.exp(u)


def _jacobian_mistakes(truth: ExactAnswers) -> Named:
    s, j, slope = truth.answers["softmax"], truth.answers["Jacobian"], truth.rows.slope[:, None, :]
    diagonal = np.eye(s.shape[1]) * j
    outer = s[:, :, None] * s[:, None, :] * slope
    yield "sign", -j
    yield "diagonal of the Jacobian only", diagonal
    yield "sign off the diagonal", 2 * diagonal - j
    yield "diagonal left out", -outer
    yield "diagonal left out", outer
    yield "inner derivative forgotten", np.where(slope == 0, 0.0, j / slope)
    yield "transposed", np.swapaxes(j, 1, 2)
