"""The reader's logits and target, checked: one clear line for what cannot be explained."""

from __future__ import annotations

from typing import Any

import numpy as np

from softgrad.derivation._case import MOST_CLASSES, Case
from softgrad.derivation._languages import LANGUAGES

__all__ = ["as_case", "checked_language"]

_LARGEST = 1e15  # beyond it a float64 logit has no digit after the point, and fifty digits do not reach its exponential


def as_case(logits: Any, target: Any, label_smoothing: float, temperature: float) -> Case:
    """What to explain, or the error that says why not."""
    z = _numbers("logits", logits)
    if z.ndim != 1:
        raise ValueError(f"logits have shape {z.shape}; one row is explained at a time, such as logits[0]")
    classes = len(z)
    if not 2 <= classes <= MOST_CLASSES:
        raise ValueError(
            f"logits have {classes} {'class' if classes == 1 else 'classes'}; 2 to {MOST_CLASSES} are explained"
        )
    for i, value in enumerate(z):
        if np.isnan(value) or value == np.inf or (np.isfinite(value) and abs(value) > _LARGEST):
            raise ValueError(f"logits[{i}] is {value:g}; a logit is −inf or between −1e15 and 1e15")
    if not np.isfinite(z).any():
        raise ValueError("logits: all are −inf, which masks every class; give one of them a number")
    label, h = _target(target, classes)
    label_smoothing = _option("label_smoothing", label_smoothing)
    temperature = _option("temperature", temperature)
    if not 0 <= label_smoothing <= 1:
        raise ValueError(f"label_smoothing is {label_smoothing:g}; it is a part of the target, between 0 and 1")
    if not 0.01 <= temperature <= 100:
        raise ValueError(f"temperature is {temperature:g}; between 0.01 and 100 is explained")
    wanted = h + label_smoothing
    for masked in np.flatnonzero(np.isneginf(z) & (wanted > 0)):
        i = int(masked)
        raise ValueError(
            f"logits[{i}] is −inf and its target is {(1 - label_smoothing) * h[i] + label_smoothing / classes:g}: the"
            " loss is +inf there and has no derivatives; give it a finite logit or the target 0"
        )
    return Case(z, h, float(label_smoothing), float(temperature), label)


def checked_language(lang: str) -> str:
    """The language's code, or an error that lists them."""
    if lang not in LANGUAGES:
        raise ValueError(f"lang is {lang!r}; the derivation is written in {', '.join(map(repr, LANGUAGES))}")
    return lang


def _numbers(name: str, values: Any) -> Any:
    if hasattr(values, "detach"):  # a tensor of PyTorch
        values = values.detach().cpu()
    try:
        array = np.asarray(values)
        if array.dtype.kind not in "iuf" and not (array.dtype.kind == "V" and "float" in str(array.dtype)):
            raise TypeError
        return array.astype(np.float64)
    except (TypeError, ValueError):
        items = values if isinstance(values, list | tuple) else [values]
        for i, value in enumerate(items):
            if isinstance(value, bool) or not isinstance(value, int | float | np.number):
                raise TypeError(f"{name}[{i}] is {value!r}, not a number") from None
        raise TypeError(f"{name} are no real numbers: {values!r:.80}") from None


def _option(name: str, value: Any) -> float:
    try:
        number = float(value)
    except (TypeError, ValueError):
        raise TypeError(f"{name} is {value!r}, not a number") from None
    if number != number:
        raise ValueError(f"{name} is NaN")
    return number


def _target(target: Any, classes: int) -> tuple[int | None, Any]:
    array = np.asarray(target.detach().cpu() if hasattr(target, "detach") else target)
    if array.ndim == 0:
        if array.dtype.kind not in "iu":
            raise TypeError(f"target is {target!r}; it is a class (an integer) or one number for each class")
        label = int(array)
        if not 0 <= label < classes:
            raise ValueError(
                f"target is {label}, outside [0, {classes}); the logits have {classes} classes, counted from 0"
            )
        return label, np.eye(classes)[label]
    h = _numbers("target", target)
    if h.shape != (classes,):
        raise ValueError(f"target has shape {h.shape}; one number for each of the {classes} classes is ({classes},)")
    for i, value in enumerate(h):
        if not 0 <= value < np.inf:
            raise ValueError(f"target[{i}] is {value:g}; a part of the target is 0 or more")
    if abs(h.sum() - 1) > 1e-6:
        raise ValueError(f"target sums to {h.sum():g}; its parts must sum to 1 (the step 'any-target' shows why)")
    return None, h / h.sum()
