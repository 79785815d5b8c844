"""Arrays as they come: any layout, axis, byte order and ownership; inputs unchanged; `out=` obeyed or refused."""

from __future__ import annotations

import gc
import re
import tracemalloc
from collections.abc import Callable
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from cases import DTYPES, logits, targets

import softgrad

Array = Any


def c_contiguous(a: Array) -> Array:
    return np.ascontiguousarray(a)


def fortran(a: Array) -> Array:
    return np.asfortranarray(a)


def every_other_row(a: Array) -> Array:
    big = np.full((2 * a.shape[0], *a.shape[1:]), 7, dtype=a.dtype)
    big[::2] = a
    return big[::2]


def every_other_column(a: Array) -> Array:
    big = np.full((*a.shape[:-1], 2 * a.shape[-1]), 7, dtype=a.dtype)
    big[..., ::2] = a
    return big[..., ::2]


def inner_columns(a: Array) -> Array:
    big = np.full((*a.shape[:-1], a.shape[-1] + 5), 7, dtype=a.dtype)
    big[..., 2:-3] = a
    return big[..., 2:-3]


def reversed_rows(a: Array) -> Array:
    return np.ascontiguousarray(a[::-1])[::-1]


def reversed_columns(a: Array) -> Array:
    return np.ascontiguousarray(a[..., ::-1])[..., ::-1]


def unaligned(a: Array) -> Array:
    buffer = np.zeros(a.nbytes + 1, dtype=np.uint8)
    view = buffer[1:].view(a.dtype).reshape(a.shape)
    view[...] = a
    return view


def read_only(a: Array) -> Array:
    copy = a.copy()
    copy.flags.writeable = False
    return copy


def structured_field(a: Array) -> Array:
    """Rows and columns whose distance is not a whole number of items."""
    record = np.zeros(a.shape, dtype=[("tag", np.uint8), ("value", a.dtype)])
    record["value"] = a
    return record["value"]


LAYOUTS: tuple[Callable[[Array], Array], ...] = (
    c_contiguous, fortran, every_other_row, every_other_column, inner_columns, reversed_rows, reversed_columns,
    unaligned, read_only, structured_field,
)  # fmt: skip
COLUMNS = (3, 40, 2100)


def everything(o: Array, y: Array, v: Array, **options: Any) -> dict[str, Array]:
    """Every function's result on the same arrays."""
    transform = {k: x for k, x in options.items() if k == "axis"}
    loss, gradient = softgrad.cross_entropy_with_grad(o, y, reduction="none", **options)
    stats = softgrad.prediction_stats(o, y, **transform)
    return {
        "loss": loss,
        "gradient": gradient,
        "loss alone": softgrad.cross_entropy(o, y, reduction="none", **options),
        "hvp": softgrad.cross_entropy_hvp(o, y, v, **options),
        "softmax": softgrad.softmax(o, **transform),
        "log_softmax": softgrad.log_softmax(o, **transform),
        "logsumexp": softgrad.logsumexp(o, **transform),
        "jvp": softgrad.softmax_jvp(o, v, **transform),
        **stats._asdict(),
    }


def bits(a: Array) -> bytes:
    return np.ascontiguousarray(a).tobytes()


# --- layouts ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", LAYOUTS, ids=lambda f: f.__name__)
@pytest.mark.parametrize("dtype", DTYPES)
def test_any_layout_gives_the_same_bits(dtype: str, layout: Any, instruction_set: str) -> None:
    for columns in COLUMNS:
        o = logits("flat", 6, columns, dtype)
        v = np.random.default_rng(0).normal(size=o.shape).astype(o.dtype)
        for y in (targets("labels", o), targets("dense", o).astype(np.float32), targets("sparse", o)):
            expected = everything(o, y, v)
            laid = tuple(layout(np.asarray(part)) for part in y) if isinstance(y, tuple) else layout(np.asarray(y))
            arrays = (layout(o), laid, layout(v))
            before = [bits(a) for a in (arrays[0], *(laid if isinstance(laid, tuple) else (laid,)), arrays[2])]
            got = everything(*arrays)
            for name, value in expected.items():
                assert bits(got[name]) == bits(value), f"{name} {columns}"
                assert got[name].dtype == value.dtype
            after = [bits(a) for a in (arrays[0], *(laid if isinstance(laid, tuple) else (laid,)), arrays[2])]
            assert after == before, "an input was changed"


@pytest.mark.parametrize("dtype", ["float32", "float64", "float16"])
def test_byte_swapped_arrays(dtype: str, instruction_set: str) -> None:
    o = logits("flat", 4, 40, dtype)
    v = np.ones_like(o)
    for y in (targets("labels", o), targets("dense", o)):
        expected = everything(o, y, v)
        swapped = (a.astype(a.dtype.newbyteorder()) for a in (o, y, v))
        got = everything(*swapped)
        for name, value in expected.items():
            assert got[name].dtype.isnative
            np.testing.assert_array_equal(got[name], value, err_msg=name)


@pytest.mark.parametrize("axis", [0, 1, 2, -1, -2, -3])
@pytest.mark.parametrize("dtype", DTYPES)
def test_any_class_axis(dtype: str, axis: int, instruction_set: str) -> None:
    """(N, V, T) and the like: the same as moving the axis to the end by hand."""
    random = np.random.default_rng(4)
    o = random.normal(size=(3, 5, 4)).astype(DTYPES[dtype])
    moved = np.ascontiguousarray(np.moveaxis(o, axis, -1))
    outer, columns = moved.shape[:-1], moved.shape[-1]
    labels = random.integers(columns, size=outer)
    dense = random.random(moved.shape).astype(np.float32)
    sparse = (random.integers(-1, columns, size=(*outer, 2)), random.random((*outer, 2)))
    v = random.normal(size=moved.shape).astype(o.dtype)
    a = random.integers(1, 5, size=outer) / 4
    for y in (labels, dense, sparse):
        expected = everything(moved, y, v, sample_weight=a)
        own = np.moveaxis(y, -1, axis) if y is dense else y
        got = everything(o, own, np.moveaxis(v, -1, axis), axis=axis, sample_weight=a)
        for name, value in expected.items():
            back = np.moveaxis(got[name], axis, -1) if got[name].ndim == 3 else got[name]
            assert bits(back) == bits(value), name
    jacobian = softgrad.softmax_jacobian(o, axis=axis)
    assert jacobian.shape == (*outer, columns, columns)
    np.testing.assert_array_equal(jacobian, softgrad.softmax_jacobian(moved))


@pytest.mark.parametrize("shape", [(7,), (1, 7), (2, 3, 7), (2, 1, 3, 7)])
def test_any_rank(shape: tuple[int, ...], instruction_set: str) -> None:
    random = np.random.default_rng(5)
    o = random.normal(size=shape)
    y = random.integers(7, size=shape[:-1])
    flat = everything(o.reshape(-1, 7), y.reshape(-1), o.reshape(-1, 7) ** 2)
    for name, value in everything(o, y, o**2).items():
        assert value.shape in (shape, shape[:-1]), name
        np.testing.assert_array_equal(np.reshape(value, flat[name].shape), flat[name], err_msg=name)


def test_broadcast_rows(instruction_set: str) -> None:
    """A row repeated by a stride of 0 is read like any other."""
    row = logits("flat", 1, 40, "float32")
    o = np.broadcast_to(row, (5, 40))
    y = np.broadcast_to(np.array([3]), (5,))
    got = everything(o, y, o)
    for name, value in everything(np.ascontiguousarray(o), y.copy(), np.ascontiguousarray(o)).items():
        np.testing.assert_array_equal(got[name], value, err_msg=name)


def test_lists_integers_and_scalars() -> None:
    o, y = [[2, 1, 0], [0, 0, 5]], [0, 2]
    expected = softgrad.cross_entropy_with_grad(np.array(o, dtype=np.float64), np.array(y))
    for given in (o, tuple(map(tuple, o)), np.array(o, dtype=np.int8), np.array(o, dtype=np.uint64)):
        loss, gradient = softgrad.cross_entropy_with_grad(given, y)
        assert loss == expected[0]
        assert gradient.dtype == np.float64
        np.testing.assert_array_equal(gradient, expected[1])
        assert softgrad.softmax(given).dtype == np.float64
    one = softgrad.cross_entropy([2.0, 1.0, 0.0], 0)
    assert np.shape(one) == ()
    assert float(one) == pytest.approx(float(softgrad.cross_entropy([[2.0, 1.0, 0.0]], [0])), rel=0)


def test_subclasses_and_array_likes() -> None:
    class Wrapper:
        def __init__(self, array: Array) -> None:
            self.array = array

        def __array__(self, dtype: Any = None, copy: Any = None) -> Array:
            return np.array(self.array, dtype=dtype)

    o = logits("flat", 3, 5)
    expected = softgrad.cross_entropy(o, [0, 1, 2])
    assert softgrad.cross_entropy(Wrapper(o), Wrapper(np.array([0, 1, 2]))) == expected
    assert softgrad.cross_entropy(o.view(type("Named", (np.ndarray,), {})), [0, 1, 2]) == expected


# --- inputs are never changed ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES)
def test_inputs_are_unchanged_bit_for_bit(dtype: str, instruction_set: str) -> None:
    for columns in (3, 40, 2100, 70_000):
        o = logits("masked", 3, columns, dtype)
        weight, a = np.linspace(0.5, 2, columns), np.linspace(0.5, 2, 3)
        x = np.ones((3, 2), DTYPES[dtype])
        for y in (targets("labels", o), targets("dense", o), targets("sparse", o)):
            held = [o, weight, a, *(y if isinstance(y, tuple) else (y,))]
            before = [bits(h) for h in held]
            options: dict[str, Any] = {
                "class_weight": weight, "sample_weight": a, "softcap": 5.0, "label_smoothing": 0.1, "z_loss": 0.1,
                "smooth_finite_only": True,
            }  # fmt: skip
            softgrad.cross_entropy_with_grad(o, y, **options)
            softgrad.cross_entropy_with_grad(o, y)
            softgrad.cross_entropy_hvp(o, y, o, **options)
            softgrad.prediction_stats(o, y)
            w = np.ones((columns, 2), DTYPES[dtype])
            softgrad.linear_cross_entropy_with_grad(x, w, y, bias=w[:, 0].copy(), **options)
            assert [bits(h) for h in held] == before
            assert bits(w) == bits(np.ones_like(w))
            assert bits(x) == bits(np.ones_like(x))


# --- out= ------------------------------------------------------------------------------------------------------------


def calls(o: Array, y: Array, v: Array) -> dict[str, Callable[..., Array]]:
    return {
        "cross_entropy_with_grad": lambda o=o, **k: softgrad.cross_entropy_with_grad(o, y, **k)[1],
        "with softcap and smoothing": lambda o=o, **k: softgrad.cross_entropy_with_grad(
            o, y, softcap=4.0, label_smoothing=0.1, **k
        )[1],
        "cross_entropy_hvp": lambda o=o, **k: softgrad.cross_entropy_hvp(o, y, v, **k),
        "softmax": lambda o=o, **k: softgrad.softmax(o, **k),
        "log_softmax": lambda o=o, **k: softgrad.log_softmax(o, **k),
        "softmax_jvp": lambda o=o, **k: softgrad.softmax_jvp(o, v, **k),
    }


FUNCTIONS = tuple(calls(None, None, None))


@pytest.mark.parametrize("columns", [3, 40, 2100, 70_000])
@pytest.mark.parametrize("function", FUNCTIONS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_out_and_in_place(dtype: str, function: str, columns: int, instruction_set: str) -> None:
    o = logits("flat", 5 if columns < 10_000 else 1, columns, dtype)
    v = np.random.default_rng(0).normal(size=o.shape).astype(o.dtype)
    for y in (targets("labels", o), targets("dense", o), targets("sparse", o)):
        call = calls(o, y, v)[function]
        expected = call()
        out = np.full_like(o, 9)
        assert call(out=out) is out
        assert bits(out) == bits(expected)
        own = o.copy()
        assert call(own, out=own) is own, "out=logits is in place"
        assert bits(own) == bits(expected)


@pytest.mark.parametrize("layout", [fortran, every_other_row, every_other_column, inner_columns, reversed_rows,
                                    reversed_columns, unaligned], ids=lambda f: f.__name__)  # fmt: skip
@pytest.mark.parametrize("function", FUNCTIONS)
def test_out_of_any_layout(function: str, layout: Any, instruction_set: str) -> None:
    for columns in (3, 40):
        o = logits("flat", 6, columns, "float32")
        y, v = targets("labels", o), np.ones_like(o)
        call = calls(o, y, v)[function]
        expected = call()
        out = layout(np.zeros_like(o))
        assert call(out=out) is out
        np.testing.assert_array_equal(out, expected)
        own = layout(o)
        assert call(own, out=own) is own
        np.testing.assert_array_equal(own, expected)
        if out.base is not None and layout in (every_other_row, every_other_column, inner_columns):
            untouched = np.full(out.base.shape, 7, dtype=o.dtype)
            view = layout(np.zeros_like(o))
            call(out=view)
            strays = view.base.copy()
            (strays[::2] if layout is every_other_row else strays[:, ::2] if layout is every_other_column
             else strays[:, 2:-3])[...] = 7  # fmt: skip
            np.testing.assert_array_equal(strays, untouched, err_msg="written beside out")


@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("function", FUNCTIONS)
def test_out_along_another_axis(function: str, axis: int) -> None:
    o = np.random.default_rng(1).normal(size=(4, 6, 5))
    y = np.zeros(tuple(np.delete(o.shape, axis)), dtype=int)
    call = calls(o, y, o**2)[function]
    expected = call(axis=axis)
    out = np.zeros_like(o)
    assert call(axis=axis, out=out) is out
    np.testing.assert_array_equal(out, expected)
    own = o.copy()
    assert call(own, axis=axis, out=own) is own
    np.testing.assert_array_equal(own, expected)


@pytest.mark.parametrize("function", FUNCTIONS)
def test_out_that_does_not_fit_is_refused_unwritten(function: str) -> None:
    o = logits("flat", 4, 6, "float32")
    y, v = targets("labels", o), np.ones_like(o)
    call = calls(o, y, v)[function]
    frozen = np.zeros_like(o)
    frozen.flags.writeable = False
    bad: list[tuple[Any, type[Exception], str]] = [
        (np.zeros((4, 7), np.float32), ValueError, "out"),
        (np.zeros((6, 4), np.float32), ValueError, "out"),
        (np.zeros(24, np.float32), ValueError, "out"),
        (np.zeros((4, 6), np.float64), ValueError, "float64"),
        (np.zeros((4, 6), np.float16), ValueError, "float16"),
        (frozen, ValueError, "read-only"),
        (np.lib.stride_tricks.as_strided(np.zeros(6, np.float32), (4, 6), (0, 4)), ValueError, "out"),
        ([[0.0] * 6] * 4, TypeError, "out"),
        (bytearray(96), TypeError, "out"),
    ]
    for out, error, word in bad:
        before = bits(out) if isinstance(out, np.ndarray) else None
        with pytest.raises(error, match=word):
            call(out=out)
        if before is not None:
            assert bits(out) == before


@pytest.mark.parametrize("shift", [1, -1, 3, 40, -40, 41])
@pytest.mark.parametrize("function", FUNCTIONS)
def test_out_that_overlaps_the_logits_gives_the_right_answer(function: str, shift: int, instruction_set: str) -> None:
    """Shares memory with the logits, but not element for element."""
    columns, rows = 40, 6
    o = logits("flat", rows, columns, "float32")
    y, v = targets("labels", o), np.ones_like(o)
    expected = calls(o, y, v)[function]()
    buffer = np.zeros(o.size + 128, dtype=np.float32)
    source = buffer[64 : 64 + o.size].reshape(o.shape)
    out = buffer[64 + shift : 64 + shift + o.size].reshape(o.shape)
    source[...] = o
    result = calls(source, y, v)[function](out=out)
    assert result is out
    np.testing.assert_array_equal(out, expected)


@pytest.mark.parametrize("wide", ["logits", "out"])
@pytest.mark.parametrize("function", FUNCTIONS)
def test_out_that_starts_where_the_logits_do_with_other_rows(function: str, wide: str, instruction_set: str) -> None:
    """The same address and shape, but another distance between rows."""
    o = logits("flat", 6, 40, "float32")
    y, v = targets("labels", o), np.ones_like(o)
    expected = calls(o, y, v)[function]()
    buffer = np.zeros((6, 80), dtype=np.float32)
    spaced, packed = buffer[:, :40], buffer.reshape(-1)[: o.size].reshape(o.shape)
    source, out = (spaced, packed) if wide == "logits" else (packed, spaced)
    source[...] = o
    assert calls(source, y, v)[function](out=out) is out
    np.testing.assert_array_equal(out, expected)


def test_out_that_is_the_transposed_or_reversed_logits(instruction_set: str) -> None:
    o = logits("flat", 30, 30, "float32")
    y = targets("labels", o)
    expected = softgrad.cross_entropy_with_grad(o, y)[1]
    for view in (lambda a: a.T, lambda a: a[::-1], lambda a: a[:, ::-1]):
        own = o.copy()
        result = softgrad.cross_entropy_with_grad(own, y, out=view(own))[1]
        np.testing.assert_array_equal(result, expected)


def test_out_that_is_the_targets_or_the_vector(instruction_set: str) -> None:
    """Soft targets and the vector may be handed over as well, whole or shifted."""
    for columns in (40, 2100):
        o = logits("flat", 6, columns, "float32")
        y, v = targets("dense", o).astype(np.float32), np.random.default_rng(0).normal(size=o.shape).astype(np.float32)
        for options in ({}, {"softcap": 3.0, "label_smoothing": 0.1}):
            expected = softgrad.cross_entropy_with_grad(o, y, **options)[1]
            own = y.copy()
            np.testing.assert_array_equal(softgrad.cross_entropy_with_grad(o, own, out=own, **options)[1], expected)
            expected = softgrad.cross_entropy_hvp(o, y, v, **options)
            own = v.copy()
            np.testing.assert_array_equal(softgrad.cross_entropy_hvp(o, y, own, out=own, **options), expected)
            own = o.copy()
            expected = softgrad.cross_entropy_hvp(o, y, o, **options)
            np.testing.assert_array_equal(softgrad.cross_entropy_hvp(own, y, own, out=own, **options), expected)
            buffer = np.zeros(o.size + 8, dtype=np.float32)
            shifted = buffer[:-8].reshape(o.shape)
            shifted[...] = v
            expected = softgrad.cross_entropy_hvp(o, y, v, **options)
            got = softgrad.cross_entropy_hvp(o, y, shifted, out=buffer[8:].reshape(o.shape), **options)
            np.testing.assert_array_equal(got, expected)


def test_weights_that_share_memory_with_out(instruction_set: str) -> None:
    """Weights are read before the gradient is written over them, or refused; never read half-written."""
    o = logits("flat", 40, 40, "float64")
    y = targets("labels", o)
    weight = np.linspace(0.5, 2.0, 40)
    expected = softgrad.cross_entropy_with_grad(o, y, class_weight=weight, sample_weight=weight, label_smoothing=0.1)[1]
    for name in ("class_weight", "sample_weight"):
        out = np.zeros_like(o)
        out[0] = weight
        given = {"class_weight": weight, "sample_weight": weight, name: out[0]}
        got = softgrad.cross_entropy_with_grad(o, y, out=out, label_smoothing=0.1, **given)[1]
        np.testing.assert_array_equal(got, expected, err_msg=name)


def test_results_are_fresh_and_writable() -> None:
    o = logits("flat", 4, 6)
    y = targets("labels", o)
    for function, call in calls(o, y, o).items():
        first, second = call(), call()
        assert not np.may_share_memory(first, second), function
        assert not np.may_share_memory(first, o)
        assert first.flags.writeable
        assert first.dtype.isnative


def test_stats_buffers() -> None:
    """Filled in place, in any float type and layout; refused with the field's name when they do not fit."""
    o = logits("flat", 4, 6)
    y = targets("labels", o)
    expected = softgrad.prediction_stats(o, y)
    stats = softgrad.PredictionStats.empty((4,), np.float64)
    held = tuple(stats)
    softgrad.cross_entropy(o, y, stats=stats)
    for name, mine, value in zip(stats._fields, held, expected, strict=True):
        np.testing.assert_array_equal(mine, value, err_msg=name)
    strided = stats._replace(lse=np.zeros(8)[::2], rank=np.zeros(4, np.int32))
    softgrad.cross_entropy(o, y, stats=strided)
    np.testing.assert_array_equal(strided.lse, expected.lse)
    np.testing.assert_array_equal(strided.rank, expected.rank)
    frozen = np.zeros(4)
    frozen.flags.writeable = False
    bad: tuple[dict[str, Any], ...] = (
        {"lse": np.zeros(5)}, {"rank": np.zeros(4)}, {"argmax": [0, 0, 0, 0]}, {"entropy": frozen},
        {"log_prob": np.zeros(4, int)}, {"lse": np.ma.zeros(4)}, {"entropy": held[0]},
    )  # fmt: skip
    for change in bad:
        out = np.full_like(o, 7)
        with pytest.raises((TypeError, ValueError), match=f"stats.{next(iter(change))}"):
            softgrad.cross_entropy_with_grad(o, y, stats=stats._replace(**change), out=out)
        np.testing.assert_array_equal(out, 7)


# --- types -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "dtype", [np.complex128, np.bool_, object, "U3", "M8[s]", np.longdouble, ml_dtypes.float8_e4m3fn]
)
def test_unsupported_logits_are_refused_by_name(dtype: Any) -> None:
    o = np.ones((2, 3)).astype(dtype) if dtype != "M8[s]" else np.zeros((2, 3), dtype)
    if np.dtype(dtype) == np.float64:
        pytest.fail("this platform's long double is a double: list it with the supported types")
    y = np.zeros(2, int)
    functions: tuple[Callable[[Array], Any], ...] = (
        lambda a: softgrad.cross_entropy_with_grad(a, y), softgrad.softmax, softgrad.log_softmax, softgrad.logsumexp,
        softgrad.prediction_stats, softgrad.softmax_jacobian,
        lambda a: softgrad.cross_entropy_hvp(a, y, np.ones((2, 3))),
    )  # fmt: skip
    for call in functions:
        with pytest.raises(TypeError, match=rf"logits.*{re.escape(str(np.dtype(dtype)))}"):
            call(o)


@pytest.mark.parametrize("dtype", [np.bool_, np.complex64, object, "U3"])
def test_unsupported_targets_are_refused_by_name(dtype: Any) -> None:
    o = np.zeros((2, 3))
    for y in (np.zeros(2).astype(dtype), np.zeros((2, 3)).astype(dtype)):
        with pytest.raises(TypeError, match="targets"):
            softgrad.cross_entropy(o, y)


@pytest.mark.parametrize("dtype", DTYPES)
def test_result_types(dtype: str) -> None:
    o = logits("flat", 3, 4, dtype)
    loss = softgrad.cross_entropy(o, [0, 1, 2])
    wide = np.float64 if dtype == "float64" else np.float32
    assert isinstance(loss, wide)
    assert softgrad.cross_entropy(o, [0, 1, 2], reduction="none").dtype == wide
    assert softgrad.logsumexp(o).dtype == wide
    for array in (
        softgrad.softmax(o),
        softgrad.log_softmax(o),
        softgrad.softmax_jvp(o, o),
        softgrad.softmax_jacobian(o),
    ):
        assert array.dtype == o.dtype


# --- memory ----------------------------------------------------------------------------------------------------------


def test_no_memory_is_lost(instruction_set: str) -> None:
    """Neither NumPy's memory (tracemalloc) nor the process's grows over many calls, with errors among them."""
    import psutil

    o = logits("flat", 64, 500, "float32")
    y, soft = targets("labels", o), targets("dense", o)
    x, weight = np.ones((64, 8), np.float32), np.ones((500, 8), np.float32)

    def work() -> None:
        softgrad.cross_entropy_with_grad(o, y, n_threads=2)
        softgrad.cross_entropy_with_grad(o, soft, softcap=5.0, class_weight=np.ones(500))
        softgrad.cross_entropy_hvp(o, y, o)
        softgrad.prediction_stats(o, y)
        softgrad.linear_cross_entropy_with_grad(x, weight, y)
        with pytest.raises(ValueError, match="targets"):
            softgrad.cross_entropy(o, y + 1000)

    rounds = 20 if instruction_set == "numpy" else 150
    for _ in range(10):
        work()
    gc.collect()
    process = psutil.Process()
    resident = process.memory_info().rss
    tracemalloc.start()
    try:
        work()
        gc.collect()
        first = tracemalloc.get_traced_memory()[0]
        for _ in range(rounds):
            work()
        gc.collect()
        last = tracemalloc.get_traced_memory()[0]
    finally:
        tracemalloc.stop()
    assert last - first < 64 << 10, f"{last - first} bytes after {rounds} rounds"
    # one leaked gradient a round would be 128 kB: 19 MB over the rounds
    assert process.memory_info().rss - resident < 12 << 20


def test_references_are_released() -> None:
    """The extension holds no array after the call."""
    import sys

    o, y = np.zeros((3, 50), np.float32), np.zeros(3, int)
    out = np.zeros_like(o)
    before = [sys.getrefcount(a) for a in (o, y, out)]
    for _ in range(10):
        softgrad.cross_entropy_with_grad(o, y, out=out)
        softgrad.softmax(o, out=out)
        softgrad.cross_entropy_hvp(o, y, o, out=out)
    assert [sys.getrefcount(a) for a in (o, y, out)] == before
