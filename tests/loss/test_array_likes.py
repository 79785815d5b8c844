"""Arguments that are no plain arrays of numbers: masks, missing values, other libraries and types; odd options."""

from __future__ import annotations

import math
import re
from typing import Any

import ml_dtypes
import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest

import softgrad

O = np.random.default_rng(0).normal(size=(3, 4))  # noqa: E741
Y = np.array([0, 1, 3])
X, W, B = np.random.default_rng(1).normal(size=(3, 2)), np.random.default_rng(2).normal(size=(4, 2)), np.zeros(4)


def message(error: Any, *words: str) -> Any:
    """Match all the words in order, on a single line."""
    return pytest.raises(error, match=r"^(?!.*\n).*" + ".*".join(re.escape(w) for w in words))


SOFT = np.full((3, 4), 0.25)
ARGUMENTS: dict[str, tuple[Any, Any]] = {  # by argument: a good value, and the call
    "logits": (O, lambda v: softgrad.cross_entropy(v, Y)),
    "logits of softmax": (O, softgrad.softmax),
    "logits of prediction_stats": (O, softgrad.prediction_stats),
    "targets": (Y, lambda v: softgrad.cross_entropy(O, v)),
    "targets, soft": (SOFT, lambda v: softgrad.cross_entropy(O, v)),
    "indices of sparse targets": (Y[:, None], lambda v: softgrad.cross_entropy(O, (v, np.ones((3, 1))))),
    "values of sparse targets": (np.ones((3, 1)), lambda v: softgrad.cross_entropy(O, (Y[:, None], v))),
    "sample_weight": (np.ones(3), lambda v: softgrad.cross_entropy(O, Y, sample_weight=v)),
    "sample_weight of prediction_stats": (np.ones(3), lambda v: softgrad.prediction_stats(O, sample_weight=v)),
    "class_weight": (np.ones(4), lambda v: softgrad.cross_entropy_with_grad(O, Y, class_weight=v)),
    "vector": (O, lambda v: softgrad.cross_entropy_hvp(O, Y, v)),
    "vector of softmax_jvp": (O, lambda v: softgrad.softmax_jvp(O, v)),
    "x": (X, lambda v: softgrad.linear_cross_entropy(v, W, Y)),
    "weight": (W, lambda v: softgrad.linear_cross_entropy(X, v, Y)),
    "bias": (B, lambda v: softgrad.linear_cross_entropy(X, W, Y, bias=v)),
}


def without_a_value(good: Any) -> list[Any]:
    """The values with one of them missing, as several libraries have it."""
    floats = good.astype(float)
    missing = floats.tolist()
    (missing if good.ndim == 1 else missing[0])[0] = None
    if good.ndim == 2:
        frame = pd.DataFrame(missing, dtype="Float64")
        return [frame, pl.DataFrame(missing, orient="row")]
    return [pd.array(missing, "Float64"), pd.Series(missing, dtype="Float64"), pa.array(missing), pl.Series(missing)]


@pytest.mark.parametrize("argument", ARGUMENTS)
def test_no_mask_is_dropped(argument: str, instruction_set: str) -> None:
    good, call = ARGUMENTS[argument]
    call(good)
    for mask in (np.ma.nomask, np.arange(good.size).reshape(good.shape) == 0):
        with message(TypeError, argument.split(" of p")[0].split(" of softmax")[0].split(",")[0], "is a masked array"):
            call(np.ma.array(good, mask=mask))


@pytest.mark.parametrize("argument", ARGUMENTS)
def test_missing_values_and_other_objects_are_refused_by_name(argument: str) -> None:
    good, call = ARGUMENTS[argument]
    name = argument.split(" of p")[0].split(" of softmax")[0].split(",")[0]
    for value in without_a_value(good):
        with message(ValueError, name, "has missing values"):
            call(value)
    for value in (good.astype(object), good.astype(complex), good.astype("M8[s]"), good.astype(str)):
        with message((TypeError, ValueError), name, str(value.dtype)):
            call(value)


def test_arrays_of_other_libraries_without_missing_values_are_taken() -> None:
    expected = softgrad.cross_entropy(O, Y, sample_weight=[1.0, 2.0, 3.0])
    logits, labels, weight = O.tolist(), Y.tolist(), [1.0, 2.0, 3.0]
    for given in (
        (pd.DataFrame(logits), pd.array(labels, "Int64"), pd.Series(weight, dtype="Float64")),
        (pl.DataFrame(logits, orient="row"), pl.Series(labels), pl.Series(weight)),
        (O, pa.array(labels), pa.array(weight)),
    ):
        assert softgrad.cross_entropy(given[0], given[1], sample_weight=given[2]) == expected


@pytest.mark.parametrize("name", ["label_smoothing", "logit_scale", "softcap", "temperature", "z_loss", "ignore_index"])
def test_an_option_is_a_number_or_an_array_of_no_dimensions(name: str) -> None:
    o = O
    number: Any = 2 if name == "ignore_index" else 0.5
    expected = softgrad.cross_entropy(o, Y, **{name: number})
    whole = [np.int32(2)] if name == "ignore_index" else [np.float32(0.5), ml_dtypes.bfloat16(0.5)]
    for value in (np.array(number), *whole):
        assert softgrad.cross_entropy(o, Y, **{name: value}) == expected
    for value in ("0.5", b"1", [0.5], np.array([number]), np.ma.masked, np.ma.array(number), 1j, np.array("1")):
        with message(TypeError, name, "must be a"):
            softgrad.cross_entropy(o, Y, **{name: value})


def test_a_truth_value_may_be_numpys() -> None:
    expected = softgrad.cross_entropy(O, Y, label_smoothing=0.1, smooth_finite_only=True)
    for value in (np.True_, np.array(True)):
        found = softgrad.cross_entropy(O, Y, label_smoothing=0.1, smooth_finite_only=value)
        assert found == expected
    with message(TypeError, "smooth_finite_only", "True or False"):
        softgrad.cross_entropy(O, Y, smooth_finite_only=np.array([True]))


@pytest.mark.parametrize("name", ["sample_weight", "class_weight"])
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_weights_that_are_not_finite_are_refused_by_name(name: str, value: float, instruction_set: str) -> None:
    weights = np.ones(3 if name == "sample_weight" else 4)
    weights[1] = value
    for call in (
        lambda **k: softgrad.cross_entropy(O, Y, **k),
        lambda **k: softgrad.cross_entropy_with_grad(O, Y, **k),
        lambda **k: softgrad.cross_entropy_hvp(O, Y, O, **k),
        lambda **k: softgrad.linear_cross_entropy(X, W, Y, **k),
        lambda **k: softgrad.linear_cross_entropy_with_grad(X, W, Y, **k),
    ):
        with message(ValueError, f"{name}[1] is {value}; weights are finite"):
            call(**{name: weights})
