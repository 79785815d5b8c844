"""A user's mistake gets one clear message, naming the argument and the value, before anything is written."""

from __future__ import annotations

import inspect
import math
import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import softgrad
from softgrad._core import threads

pytestmark = pytest.mark.usefixtures("instruction_set")

O = np.random.default_rng(0).normal(size=(3, 4))  # noqa: E741
Y = np.array([0, 1, 3])
X, W, B = np.random.default_rng(1).normal(size=(3, 2)), np.random.default_rng(2).normal(size=(4, 2)), np.zeros(4)

LOSSES: dict[str, Callable[..., Any]] = {
    "cross_entropy": lambda **k: softgrad.cross_entropy(k.pop("logits", O), k.pop("targets", Y), **k),
    "cross_entropy_with_grad": lambda **k: softgrad.cross_entropy_with_grad(
        k.pop("logits", O), k.pop("targets", Y), **k
    ),
    "cross_entropy_hvp": lambda **k: softgrad.cross_entropy_hvp(k.pop("logits", O), k.pop("targets", Y), O, **k),
    "linear_cross_entropy": lambda **k: softgrad.linear_cross_entropy(X, W, k.pop("targets", Y), bias=B, **k),
    "linear_cross_entropy_with_grad": lambda **k: softgrad.linear_cross_entropy_with_grad(
        X, W, k.pop("targets", Y), bias=B, **k
    ),
}
TRANSFORMS: dict[str, Callable[..., Any]] = {
    **LOSSES,
    "softmax": lambda **k: softgrad.softmax(k.pop("logits", O), **k),
    "log_softmax": lambda **k: softgrad.log_softmax(k.pop("logits", O), **k),
    "logsumexp": lambda **k: softgrad.logsumexp(k.pop("logits", O), **k),
    "softmax_jvp": lambda **k: softgrad.softmax_jvp(k.pop("logits", O), O, **k),
    "prediction_stats": lambda **k: softgrad.prediction_stats(k.pop("logits", O), k.pop("targets", Y), **k),
}
NAN, INF = math.nan, math.inf

# (option, bad value, error, what the message must say besides the option's name)
LOSS_OPTIONS: tuple[tuple[str, Any, type[Exception], str], ...] = (
    ("label_smoothing", -0.01, ValueError, "-0.01"),
    ("label_smoothing", 1.01, ValueError, "1.01"),
    ("label_smoothing", NAN, ValueError, "nan"),
    ("label_smoothing", "a lot", TypeError, "a lot"),
    ("label_smoothing", None, TypeError, "None"),
    ("z_loss", -1.0, ValueError, "-1"),
    ("z_loss", NAN, ValueError, "nan"),
    ("z_loss", INF, ValueError, "inf"),
    ("reduction", "average", ValueError, "average"),
    ("reduction", None, ValueError, "None"),
    ("smooth_finite_only", "yes", TypeError, "yes"),
    ("ignore_index", 1.5, TypeError, "1.5"),
    ("ignore_index", True, TypeError, "True"),
    ("class_weight", [1.0, 2.0, 3.0], ValueError, "(4,)"),
    ("class_weight", np.ones((1, 4)), ValueError, "(1, 4)"),
    ("class_weight", 2.0, ValueError, "()"),
    ("class_weight", [1.0, NAN, 1.0, 1.0], ValueError, "[1] is nan"),
    ("class_weight", [1.0, 1.0, 1.0, INF], ValueError, "[3] is inf"),
    ("class_weight", ["a"] * 4, TypeError, "U1"),
    ("class_weight", [1j] * 4, TypeError, "complex"),
    ("sample_weight", [1.0, 2.0], ValueError, "(3,)"),
    ("sample_weight", np.ones((3, 1)), ValueError, "(3, 1)"),
    ("sample_weight", 1.0, ValueError, "()"),
    ("sample_weight", [1.0, 1.0, NAN], ValueError, "[2] is nan"),
    ("sample_weight", [-INF, 1.0, 1.0], ValueError, "[0] is -inf"),
    ("sample_weight", ["a"] * 3, TypeError, "U1"),
)
TRANSFORM_OPTIONS: tuple[tuple[str, Any, type[Exception], str], ...] = (
    ("logit_scale", 0.0, ValueError, "0"),
    ("logit_scale", NAN, ValueError, "nan"),
    ("logit_scale", INF, ValueError, "inf"),
    ("logit_scale", None, TypeError, "None"),
    ("softcap", 0.0, ValueError, "0"),
    ("softcap", -5.0, ValueError, "-5"),
    ("softcap", NAN, ValueError, "nan"),
    ("softcap", INF, ValueError, "inf"),
    ("softcap", "x", TypeError, "x"),
    ("temperature", 0.0, ValueError, "0"),
    ("temperature", -1.0, ValueError, "-1"),
    ("temperature", NAN, ValueError, "nan"),
    ("temperature", INF, ValueError, "inf"),
    ("n_threads", 0, ValueError, "0"),
    ("n_threads", -1, ValueError, "-1"),
    ("n_threads", 100_000, ValueError, "100000"),
    ("n_threads", 1.5, TypeError, "1.5"),
    ("n_threads", True, TypeError, "True"),
    ("n_threads", "2", TypeError, "2"),
)


def message(error: type[Exception], *words: str) -> Any:
    """Match all the words in order, on a single line."""
    return pytest.raises(error, match=r"^(?!.*\n).*" + ".*".join(re.escape(w) for w in words))


@pytest.mark.parametrize("function", LOSSES)
@pytest.mark.parametrize(("option", "value", "error", "says"), LOSS_OPTIONS)
def test_bad_loss_option(option: str, value: Any, error: type[Exception], says: str, function: str) -> None:
    with message(error, option, says):
        LOSSES[function](**{option: value})


@pytest.mark.parametrize("function", TRANSFORMS)
@pytest.mark.parametrize(("option", "value", "error", "says"), TRANSFORM_OPTIONS)
def test_bad_transform_option(option: str, value: Any, error: type[Exception], says: str, function: str) -> None:
    with message(error, option, says):
        TRANSFORMS[function](**{option: value})


@pytest.mark.parametrize("function", TRANSFORMS)
def test_unknown_option_is_named_with_the_known_ones(function: str) -> None:
    with pytest.raises(TypeError, match=rf"{function}\(\).*'temprature'"):
        TRANSFORMS[function](temprature=2.0)


@pytest.mark.parametrize("name", [n for n in softgrad.__all__ if inspect.isfunction(getattr(softgrad, n))])
def test_options_are_keyword_only_and_shown_in_the_signature(name: str) -> None:
    parameters = inspect.signature(getattr(softgrad, name)).parameters
    positional = {"logits", "target", "targets", "vector", "x", "weight", "loss"}
    for parameter in parameters.values():
        assert parameter.kind is not parameter.VAR_KEYWORD, f"{name} hides its options"
        if parameter.name not in positional:
            assert parameter.kind is parameter.KEYWORD_ONLY, f"{name}({parameter.name})"


# --- labels ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("integer", ["int8", "uint8", "int32", "uint32", "int64", "uint64"])
@pytest.mark.parametrize("bad", [4, -1, -100, 127, 2**31 - 1, -(2**31), 2**63 - 1, 2**64 - 1, 2**63])
@pytest.mark.parametrize("columns", [4, 100, 40_000])
def test_label_outside_names_the_first_row_and_value_and_writes_nothing(columns: int, bad: int, integer: str) -> None:
    info = np.iinfo(integer)
    if not info.min <= bad <= info.max or 0 <= bad < columns:
        bad = columns if columns <= info.max else -1
        if not info.min <= bad:
            return  # every value of this type is a label
    o = np.zeros((5, columns), np.float32)
    labels = np.array([0, 1, bad, 2, bad], dtype=integer)
    for call in (
        lambda out: softgrad.cross_entropy_with_grad(o, labels, out=out, n_threads=2),
        lambda out: softgrad.cross_entropy_hvp(o, labels, o, out=out, n_threads=2),
        lambda out: softgrad.cross_entropy(o, labels),
        lambda out: softgrad.prediction_stats(o, labels),
    ):
        out = np.full_like(o, 7)
        with message(ValueError, "targets[2]", str(bad), f"[0, {columns})"):
            call(out)
        np.testing.assert_array_equal(out, 7)
    weight, x = np.zeros((columns, 2), np.float32), np.zeros((5, 2), np.float32)
    grads = softgrad.LinearGradients(np.full_like(x, 7), np.full_like(weight, 7), None)
    with message(ValueError, "targets[2]", str(bad)):
        softgrad.linear_cross_entropy_with_grad(x, weight, labels, with_respect_to=("x", "weight"), out=grads)
    np.testing.assert_array_equal(grads.x, 7)
    np.testing.assert_array_equal(grads.weight, 7)


def test_label_in_a_batch_of_many_axes_is_found_at_its_place() -> None:
    o, labels = np.zeros((2, 3, 4)), np.zeros((2, 3), int)
    labels[1, 2] = 4
    with message(ValueError, "targets[1, 2]", "4"):
        softgrad.cross_entropy(o, labels)
    with message(ValueError, "targets", "7"):
        softgrad.cross_entropy(np.zeros(4), 7)


def test_ignored_label_is_no_mistake_and_others_still_are() -> None:
    labels = np.array([-100, 1, 3])
    assert np.isfinite(softgrad.cross_entropy(O, labels, ignore_index=-100))
    with message(ValueError, "targets[0]", "-100", "ignore_index"):  # and says what to do
        softgrad.cross_entropy(O, labels)
    labels[2] = -99
    with message(ValueError, "targets[2]", "-99"):
        softgrad.cross_entropy(O, labels, ignore_index=-100)
    with message(ValueError, "targets[2]", "-99"):  # a row of weight 0 may hold any logits, but no wrong label
        softgrad.cross_entropy(O, labels, ignore_index=-100, sample_weight=[1, 1, 0])


@pytest.mark.parametrize("bad", [4, -2, 2**40])
def test_sparse_index_outside(bad: int) -> None:
    index = np.array([[0, 1], [2, -1], [bad, 3]])
    for name, call in LOSSES.items():
        out = {"out": np.full_like(O, 7)} if name in ("cross_entropy_with_grad", "cross_entropy_hvp") else {}
        with message(ValueError, "targets", "2", str(bad)):
            call(targets=(index, np.ones((3, 2))), **out)
        for array in out.values():
            np.testing.assert_array_equal(array, 7)


# --- shapes and kinds ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("function", LOSSES)
@pytest.mark.parametrize(
    ("targets", "error", "words"),
    [
        (np.zeros(4, int), ValueError, ("(4,)", "(3,)")),
        (np.zeros((3, 1), int), ValueError, ("(3, 1)", "(3,)")),
        (np.zeros((3, 4), int), ValueError, ("(3, 4)", "float")),
        (np.zeros(3), ValueError, ("(3,)", "(3, 4)")),
        (np.zeros((4, 3)), ValueError, ("(4, 3)", "(3, 4)")),
        (0, ValueError, ("()", "(3,)")),
        ((np.zeros((3, 2), int),), ValueError, ("(indices, values)",)),
        ((np.zeros((3, 2), int), np.zeros((3, 2)), 1), ValueError, ("(indices, values)",)),
        ((np.zeros((3, 2)), np.zeros((3, 2))), TypeError, ("indices", "float64")),
        ((np.zeros((3, 2), int), np.zeros((3, 3))), ValueError, ("(3, 2)", "(3, 3)")),
        ((np.zeros((2, 2), int), np.zeros((2, 2))), ValueError, ("(2, 2)",)),
        ((np.zeros(3, int), np.zeros(3)), ValueError, ("(3,)",)),
        (np.array([True, False, True]), TypeError, ("bool",)),
        (None, TypeError, ("targets",)),
        ("abc", TypeError, ("targets",)),
    ],
)
def test_targets_that_do_not_fit(targets: Any, error: type[Exception], words: tuple[str, ...], function: str) -> None:
    with message(error, *words) as caught:
        LOSSES[function](targets=targets)
    assert "targets" in str(caught.value)


@pytest.mark.parametrize("axis", [2, -3, 1.5, None, "0"])
def test_axis_that_is_not_there(axis: Any) -> None:
    for name, call in TRANSFORMS.items():
        if not name.startswith("linear"):
            with message((ValueError, TypeError), "axis", str(axis)):  # type: ignore[arg-type]
                call(axis=axis)
    with message((ValueError, TypeError), "axis", str(axis)):  # type: ignore[arg-type]
        softgrad.softmax_jacobian(O, axis=axis)


def test_the_linear_head_has_no_axis() -> None:
    with pytest.raises(TypeError, match="axis"):
        softgrad.linear_cross_entropy(X, W, Y, axis=0)


@pytest.mark.parametrize("logits", [np.float64(3.0), np.zeros((3, 0)), np.zeros(0)])
def test_logits_without_classes(logits: Any) -> None:
    for call in (softgrad.softmax, softgrad.log_softmax, softgrad.logsumexp, softgrad.softmax_jacobian):
        with message(ValueError, "logits"):
            call(logits)
    with message(ValueError, "logits"):
        softgrad.cross_entropy(logits, np.zeros(np.shape(logits)[:-1], int))


def test_ragged_lists_and_words() -> None:
    with pytest.raises((ValueError, TypeError)):
        softgrad.softmax([[1.0, 2.0], [3.0]])
    with message(TypeError, "logits"):
        softgrad.softmax("words")
    with message(TypeError, "logits"):
        softgrad.softmax(None)


@pytest.mark.parametrize("vector", [np.zeros((3, 5)), np.zeros(4), np.zeros((1, 4)), 1.0])
def test_vector_of_another_shape(vector: Any) -> None:
    with message(ValueError, "vector", str(np.shape(vector)), "(3, 4)"):
        softgrad.cross_entropy_hvp(O, Y, vector)
    with message(ValueError, "vector", str(np.shape(vector)), "(3, 4)"):
        softgrad.softmax_jvp(O, vector)


def test_an_option_that_would_be_ignored_is_refused() -> None:
    """`ignore_index` compares labels: with soft targets it could only be accepted and ignored."""
    for targets in (np.full((3, 4), 0.25), (np.zeros((3, 1), int), np.ones((3, 1)))):
        for call in (*LOSSES.values(), TRANSFORMS["prediction_stats"]):
            with message((ValueError, TypeError), "ignore_index"):  # type: ignore[arg-type]
                call(targets=targets, ignore_index=-100)


# --- the linear head -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"x": np.zeros((3, 3))}, ValueError, ("x", "(3, 3)", "(4, 2)")),
        ({"x": np.float64(1.0)}, ValueError, ("x", "()")),
        ({"weight": np.zeros(4)}, ValueError, ("weight", "(4,)")),
        ({"weight": np.zeros((0, 2))}, ValueError, ("weight", "(0, 2)")),
        ({"weight": W.astype(np.float32)}, TypeError, ("float64", "weight", "float32")),
        ({"weight": W.astype(complex)}, TypeError, ("weight", "complex")),
        ({"x": X > 0}, TypeError, ("x", "bool")),
        ({"bias": np.zeros(3)}, ValueError, ("bias", "(3,)", "(4,)")),
        ({"bias": np.zeros(4, np.float32)}, (ValueError, TypeError), ("bias", "float32")),
        ({"bias": 0.0}, ValueError, ("bias", "()")),
        ({"max_memory": 10}, ValueError, ("max_memory", "10")),
        ({"max_memory": 0}, ValueError, ("max_memory", "0")),
        ({"max_memory": -5}, ValueError, ("max_memory", "-5")),
        ({"max_memory": 1e6}, TypeError, ("max_memory",)),
        ({"max_memory": "1GB"}, TypeError, ("max_memory", "1GB")),
    ],
)
@pytest.mark.parametrize("function", ["linear_cross_entropy", "linear_cross_entropy_with_grad"])
def test_linear_mistakes(function: str, change: dict[str, Any], error: Any, words: tuple[str, ...]) -> None:
    given = {"x": X, "weight": W, "targets": Y, "bias": B, **change}
    with message(error, *words):
        getattr(softgrad, function)(**given)


@pytest.mark.parametrize(
    ("out", "words"),
    [
        (softgrad.LinearGradients(np.zeros((3, 3)), None, None), ("out.x", "(3, 2)")),
        (softgrad.LinearGradients(None, np.zeros((4, 2), np.float32), None), ("out.weight", "float64")),
        (softgrad.LinearGradients(None, np.zeros((2, 4)).T, None), ("out.weight",)),
        (softgrad.LinearGradients(None, None, np.zeros((4, 1))), ("out.bias", "(4,)")),
        (softgrad.LinearGradients(X, None, None), ("out.x", "shares")),
        (softgrad.LinearGradients(None, W, None), ("out.weight", "shares")),
        (softgrad.LinearGradients(None, None, B), ("out.bias", "shares")),
        (softgrad.LinearGradients([[0.0] * 2] * 3, None, None), ("out.x",)),
    ],
)
def test_linear_out_that_does_not_fit(out: Any, words: tuple[str, ...]) -> None:
    before = (X.copy(), W.copy(), B.copy())
    with message((TypeError, ValueError), *words):
        softgrad.linear_cross_entropy_with_grad(X, W, Y, bias=B, out=out)
    for a, b in zip(before, (X, W, B), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("names", [("x", "weights"), "w", ("b",), (1,)])
def test_with_respect_to_unknown(names: Any) -> None:
    with message(ValueError, "with_respect_to", "x, weight, bias"):
        softgrad.linear_cross_entropy_with_grad(X, W, Y, with_respect_to=names)


def test_gradient_by_a_bias_that_is_not_there_is_none() -> None:
    for names in ({}, {"with_respect_to": ("weight", "bias")}):
        loss, gradients = softgrad.linear_cross_entropy_with_grad(X, W, Y, **names)
        assert np.isfinite(loss)
        assert gradients.bias is None
        assert gradients.weight is not None


def test_most_threads_is_accepted() -> None:
    assert np.isfinite(softgrad.cross_entropy(O, Y, n_threads=threads.MOST_THREADS))
    assert np.isfinite(softgrad.cross_entropy(O, Y, n_threads=np.int64(2)))
