"""Kernel against reference: every storage type, option, pair of options, target kind, width and instruction set."""

from __future__ import annotations

import itertools
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from cases import (
    ARITHMETIC,
    DTYPES,
    KINDS,
    STORAGE,
    TARGETS,
    TINY,
    check_gradient,
    check_informative,
    check_loss,
    close,
    gradient_terms,
    logits,
    spread,
    targets,
)

import softgrad
from softgrad import reference

# tile = 2048 and panel = 32768 columns inside, one row a vector lane up to 32: beside, below and beyond each of them
WIDTHS = (1, 2, 3, 10, 31, 33, 100, 1000, 2049, 5000, 40000)


def rows_for(columns: int) -> int:
    return 37 if columns <= 100 else 5 if columns <= 5000 else 2


def check_everything(o: Any, y: Any, dtype: str, context: str = "", **options: Any) -> None:
    """Loss with and without gradient, and the gradient."""
    loss, gradient = softgrad.cross_entropy_with_grad(o, y, **options)
    assert gradient.dtype == o.dtype
    assert gradient.shape == o.shape
    assert np.asarray(loss).dtype == (np.float64 if dtype == "float64" else np.float32)
    check_loss(loss, o, y, dtype, context, **options)
    check_gradient(gradient, o, y, dtype, context, **options)
    alone = softgrad.cross_entropy(o, y, **options)
    np.testing.assert_array_equal(alone, loss, err_msg=f"loss alone {context}")


def check_product(o: Any, y: Any, dtype: str, context: str = "", **options: Any) -> None:
    """H v, relative to the terms it is made of."""
    v = np.random.default_rng(o.shape[1]).choice([-1.0, 0.5, 1.0, 2.0], size=o.shape).astype(o.dtype)
    expected = reference.cross_entropy_hvp(o, y, v, **options)
    product = softgrad.cross_entropy_hvp(o, y, v, **options)
    assert product.dtype == o.dtype
    scale = abs(options.get("logit_scale", 1.0) / options.get("temperature", 1.0))
    size = 8 * gradient_terms(o, y, **options) * scale * (1 + abs(options.get("logit_scale", 1.0)))
    if "softcap" not in options:  # targets enter H only by way of the softcap's curvature: S alone bounds the rest
        p = reference._problem(o, y, **options)[0]
        stats = reference.row_statistics(p.u, p.wy)
        lse = np.nan_to_num(reference.loss_from_statistics(stats)[1])
        mass = np.abs(p.ce * stats.mass) + np.abs(2 * p.z * lse) + np.abs(2 * p.z)
        size = np.where(p.keep[:, None], 8 * scale**2 * mass[:, None] * reference.probabilities(p.u, stats), 0.0)
        size = reference._restore(size, o.shape, options.get("axis", -1))
    unit = (24 + 4 * spread(o, **options)) * ARITHMETIC[dtype]
    stored = STORAGE[dtype] * np.abs(expected) if STORAGE[dtype] != ARITHMETIC[dtype] else 0.0
    close(product, expected, unit * size + stored + TINY[dtype], f"hvp {context}")


# --- widths, types, inputs, targets ----------------------------------------------------------------------------------


@pytest.mark.parametrize("columns", WIDTHS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_widths(dtype: str, columns: int, instruction_set: str) -> None:
    kinds = KINDS if columns <= 5000 else ("flat", "masked")
    for kind, target in itertools.product(kinds, TARGETS):
        o = logits(kind, rows_for(columns), columns, dtype)
        y = targets(target, o)
        context = f"{kind} {target}"
        check_everything(o, y, dtype, context)
        if kind == "flat":
            check_informative(o, y, softgrad.cross_entropy_with_grad(o, y, reduction="sum")[1])
        check_product(o, y, dtype, context)


@pytest.mark.parametrize("columns", WIDTHS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_distributions(dtype: str, columns: int, instruction_set: str) -> None:
    for kind, options in itertools.product(
        KINDS if columns <= 5000 else ("masked",),
        ({}, {"logit_scale": -0.5, "temperature": 2.0}, {"softcap": 3.0, "temperature": 0.5}),
    ):
        o = logits(kind, rows_for(columns), columns, dtype)
        if kind == "masked" and options.get("logit_scale", 1.0) < 0:
            o = -o  # masked is what has u = −inf
        unit = (16 + 4 * spread(o, **options)) * ARITHMETIC[dtype]
        stored = STORAGE[dtype] if STORAGE[dtype] != ARITHMETIC[dtype] else 0.0
        s, log_s = reference.softmax(o, **options), reference.log_softmax(o, **options)
        lse = reference.logsumexp(o, **options)
        context = f"{kind} {options}"
        got = softgrad.softmax(o, **options)
        assert got.dtype == o.dtype
        close(got, s, (unit + stored) * s + TINY[dtype], f"softmax {context}")
        size = np.where(np.isfinite(log_s), np.abs(log_s), 0.0)
        bound = unit * (1 + size) + stored * size
        close(softgrad.log_softmax(o, **options), log_s, bound, f"log_softmax {context}")
        close(softgrad.logsumexp(o, **options), lse, unit * (1 + np.abs(lse)), f"logsumexp {context}")
        v = np.random.default_rng(1).normal(size=o.shape).astype(o.dtype)
        bound = 16 * (unit + stored) * s * (1 + np.abs(v.astype(float)).max()) + TINY[dtype]
        if not options:
            close(softgrad.softmax_jvp(o, v), reference.softmax_jvp(o, v), bound, f"jvp {context}")


@pytest.mark.parametrize("columns", [c for c in WIDTHS if c <= 100])
@pytest.mark.parametrize("dtype", DTYPES)
def test_jacobian(dtype: str, columns: int, instruction_set: str) -> None:
    o = logits("peaked", 3, columns, dtype)
    expected = reference.softmax_jacobian(o)
    got = softgrad.softmax_jacobian(o)
    assert got.dtype == o.dtype
    unit = 64 * ARITHMETIC[dtype] + 4 * STORAGE[dtype]
    s = reference.softmax(o)
    size = s[:, :, None] * (np.eye(columns) + s[:, None, :])
    close(got, expected, unit * size + TINY[dtype], "jacobian")


@pytest.mark.parametrize("integer", ["int8", "uint8", "int16", "uint16", "int32", "uint32", "int64", "uint64"])
@pytest.mark.parametrize("columns", [7, 100, 2100])
def test_labels_of_every_integer_width(columns: int, integer: str, instruction_set: str) -> None:
    o = logits("flat", 9, columns, "float32")
    labels = (targets("labels", o) % 127).astype(integer)
    check_everything(o, labels, "float32")
    if integer[0] == "i":
        labels[[0, 4]] = -1
        check_everything(o, labels, "float32", ignore_index=-1)
    else:
        labels[[0, 4]] = 255
        check_everything(o, labels, "float32", ignore_index=255, label_smoothing=0.1)


@pytest.mark.parametrize("integer", ["int8", "int16", "uint16", "int32", "int64", "uint64"])
def test_sparse_indices_of_every_integer_width(integer: str, instruction_set: str) -> None:
    o = logits("flat", 9, 50, "float32")
    index, value = targets("sparse", o)
    if integer[0] == "u":
        index = np.abs(index)
    check_everything(o, (index.astype(integer), value), "float32")


@pytest.mark.parametrize("value_type", [np.float32, np.float64, np.float16, ml_dtypes.bfloat16])
@pytest.mark.parametrize("dtype", DTYPES)
def test_soft_targets_of_every_float_type(dtype: str, value_type: Any, instruction_set: str) -> None:
    for columns in (5, 2100):
        o = logits("flat", 6, columns, dtype)
        y = targets("dense", o).astype(value_type)
        if not (dtype == "float64" and value_type == np.float64) and value_type == np.float64:
            y = y.astype(np.float32).astype(np.float64)  # what float32 arithmetic can see of them
        check_everything(o, y, dtype, "dense")
        index, value = targets("sparse", o)
        check_everything(o, (index, value.astype(value_type)), dtype, "sparse")


def test_sparse_equals_dense(instruction_set: str) -> None:
    o = logits("flat", 8, 300, "float64")
    index, value = targets("sparse", o)
    dense = np.zeros(o.shape)
    np.add.at(
        dense, (np.arange(8)[:, None].repeat(index.shape[1], 1)[index >= 0], index[index >= 0]), value[index >= 0]
    )
    for options in ({}, {"label_smoothing": 0.2, "class_weight": np.linspace(0.5, 2, 300)}):
        loss, gradient = softgrad.cross_entropy_with_grad(o, (index, value), **options)
        expected, expected_gradient = softgrad.cross_entropy_with_grad(o, dense, **options)
        assert loss == pytest.approx(expected, rel=1e-13)
        np.testing.assert_allclose(gradient, expected_gradient, rtol=1e-12, atol=1e-17)


# --- options, alone and in pairs -------------------------------------------------------------------------------------

VALUES: dict[str, tuple[Any, ...]] = {
    "class_weight": ("eighths", "with zeros"),
    "sample_weight": ("signed", "with zeros"),
    "ignore_index": (-100, 0),
    "label_smoothing": (0.1, 1.0),
    "smooth_finite_only": (True,),
    "logit_scale": (0.37, -1.5),
    "softcap": (4.0,),
    "temperature": (0.7, 2.5),
    "z_loss": (0.05,),
    "reduction": ("sum", "none"),
    "axis": (0,),
}
SINGLE = [{name: value} for name, values in VALUES.items() for value in values]
PAIRS = [{a: x, b: y} for a, b in itertools.combinations(VALUES, 2) for x, y in itertools.product(VALUES[a], VALUES[b])]


def concrete(chosen: dict[str, Any], rows: int, columns: int) -> dict[str, Any]:
    """Names of weights as arrays that every type holds exactly."""
    random, options = np.random.default_rng(9), dict(chosen)
    if "class_weight" in options:
        weight = random.integers(1, 24, size=columns) / 8
        if options["class_weight"] == "with zeros":
            weight[1::3] = 0.0
        options["class_weight"] = weight
    if "sample_weight" in options:
        weight = random.integers(4, 24, size=rows) / 8
        if options["sample_weight"] == "signed":
            weight[::3] *= -0.25
        else:
            weight[::3] = 0.0
        options["sample_weight"] = weight
    return options


def check_options(dtype: str, target: str, rows: int, columns: int, combinations: list[dict[str, Any]]) -> None:
    for chosen in combinations:
        masked = bool(chosen.get("smooth_finite_only")) or columns == 33
        o = logits("masked" if masked else "flat", rows, columns, dtype)
        if chosen.get("logit_scale", 1.0) < 0 and masked:
            o[~np.isfinite(o.astype(float))] = 0.25
        y = targets(target, o)
        options = concrete(chosen, rows, columns)
        if chosen.get("label_smoothing") and masked and "smooth_finite_only" not in chosen:
            o[~np.isfinite(o.astype(float))] = -2.0  # a masked class with a share of ε is an edge case, not this test
        if target != "labels":
            options.pop("ignore_index", None)
        elif options.get("ignore_index") == -100:
            y[1::4] = -100
        if "class_weight" in options and target == "labels" and columns > 1:
            assert options["class_weight"][y[y >= 0]].any()
        if chosen.get("axis") == 0:
            o = np.ascontiguousarray(o.T)
            if target == "dense":
                y = np.ascontiguousarray(y.T)
        context = f"{chosen}"
        check_everything(o, y, dtype, context, **options)
        check_product(o, y, dtype, context, **options)


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("rows", "columns"), [(19, 10), (5, 33), (3, 2100)])
def test_each_option(rows: int, columns: int, dtype: str, target: str, instruction_set: str) -> None:
    check_options(dtype, target, rows, columns, SINGLE)


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("rows", "columns"), [pytest.param(7, 10, marks=pytest.mark.exhaustive), (5, 33)])
def test_all_pairs_of_options(rows: int, columns: int, dtype: str, target: str, instruction_set: str) -> None:
    check_options(dtype, target, rows, columns, PAIRS)


def test_options_change_something() -> None:
    """The pairs are worth checking: each single option moves the loss or its gradient on the data above."""
    o = logits("masked", 7, 10)
    y = targets("labels", o)
    plain = reference.cross_entropy_with_grad(o, y)[1]
    for chosen in SINGLE:
        options = concrete(chosen, 7, 10)
        if "smooth_finite_only" in options:
            options["label_smoothing"] = 0.1
        elif "label_smoothing" in options or options.get("logit_scale", 1) < 0:
            continue  # infinite here
        if options.get("axis") == 0 or options.get("ignore_index") == -100:
            continue  # equal by design, on transposed data or without such labels
        assert not np.allclose(reference.cross_entropy_with_grad(o, y, **options)[1], plain), chosen


# --- by-products -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("columns", [c for c in WIDTHS if c <= 5000] + [40000])
@pytest.mark.parametrize("dtype", DTYPES)
def test_prediction_stats(dtype: str, columns: int, instruction_set: str) -> None:
    for kind, target, options in itertools.product(
        ("flat", "peaked", "masked") if columns <= 5000 else ("flat",),
        (*TARGETS, None),
        ({}, {"logit_scale": -0.5}, {"softcap": 3.0, "temperature": 0.5}),
    ):
        o = logits(kind, rows_for(columns), columns, dtype)
        if kind == "masked" and options.get("logit_scale", 1.0) < 0:
            o = -o
        y = None if target is None else targets(target, np.where(np.isfinite(o.astype(float)), 0.0, -np.inf))
        expected = reference.prediction_stats(o, y, **options)
        got = softgrad.prediction_stats(o, y, **options)
        context = f"{kind} {target} {options}"
        for name in ("argmax", "rank"):
            array = getattr(got, name)
            assert array.dtype == np.int64
            np.testing.assert_array_equal(array, expected[name], err_msg=f"{name} {context}")
        unit = (32 + 8 * spread(o, **options)) * ARITHMETIC[dtype]
        for name in ("lse", "log_prob", "entropy"):
            array = getattr(got, name)
            assert array.dtype == (np.float64 if dtype == "float64" else np.float32)
            size = 1 + np.abs(np.nan_to_num(expected[name])) + np.log(columns)
            close(array, expected[name], unit * size, f"{name} {context}")


@pytest.mark.parametrize("dtype", DTYPES)
def test_stats_in_the_same_pass_change_nothing(dtype: str, instruction_set: str) -> None:
    """With `stats=` the loss and gradient agree as without, and the by-products are `prediction_stats`'s."""
    for columns, target in itertools.product((10, 33, 2100), TARGETS):
        o = logits("flat", 6, columns, dtype)
        y = targets(target, o)
        weight = np.linspace(0.5, 2.0, columns)
        options: dict[str, Any] = {"class_weight": weight, "label_smoothing": 0.1, "temperature": 2.0}
        stats = softgrad.PredictionStats.empty((6,), np.float64)
        loss, gradient = softgrad.cross_entropy_with_grad(o, y, stats=stats, **options)
        check_loss(loss, o, y, dtype, **options)
        check_gradient(gradient, o, y, dtype, **options)
        expected = softgrad.prediction_stats(o, y, temperature=2.0)
        for name in stats._fields:
            a, b = getattr(stats, name), getattr(expected, name)
            np.testing.assert_allclose(a, b, rtol=0, atol=(1e-13 if dtype == "float64" else 1e-5), err_msg=name)
        again = softgrad.PredictionStats.empty((6,), np.float64)
        softgrad.cross_entropy(o, y, stats=again, **options)
        for name in stats._fields:
            np.testing.assert_array_equal(getattr(again, name), getattr(stats, name), err_msg=name)
