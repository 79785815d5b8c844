"""The kernels of a narrow linear layer, X W + b and Gᵀ X, for every shape, type and instruction set."""

from __future__ import annotations

from itertools import cycle
from typing import Any, NamedTuple

import numpy as np
import pytest
from cases import INSTRUCTION_SETS
from hypothesis import given
from hypothesis import strategies as st

from softgrad import reference
from softgrad._core import backend
from softgrad._core.backend import KernelOptions, Storage, TargetKind

NATIVE = [name for name in INSTRUCTION_SETS if name != "numpy"]
LANES = 16
PAIRS = [(np.float32, np.float32), (np.float64, np.float32), (np.float64, np.float64)]  # arithmetic and storage
CLASSES = [2, 3, 4, 7, 8, 9, 15, 16, 17, 20, 24, 26, 31, 33, 48, 52, 65, 100]
FEATURES = [16, 17, 31, 33, 64, 200]
ROWS = [0, 1, 2, 71, 72, 73, 505]
CHUNKS = [72, 504, 1, 13, 8]  # rows that go through both products together

EVERY_CLASS = pytest.mark.parametrize("classes", CLASSES)
EVERY_PAIR = pytest.mark.parametrize(("arithmetic", "storage"), PAIRS, ids=["f32", "f64 of f32", "f64"])

# Every row count with half of the feature counts and most chunks.
SHAPES = list(zip(2 * ROWS, cycle(FEATURES), cycle(CHUNKS), strict=False))


class Layer(NamedTuple):
    """Arrays of a layer, each part of a wider one that is NaN around it, and the kernels' view of them."""

    x: Any
    weight: Any  # (features, classes): without what the kernels want behind it
    bias: Any
    total: Any
    sums: Any
    kernel: Any


def inside(values: Any, dtype: Any, *, before: int = 0, after: int = 5) -> Any:
    """A copy of a matrix whose rows are part of longer ones that hold NaN elsewhere, with such rows around them."""
    rows, cols = values.shape
    whole = np.full((rows + 2, before + cols + after), np.nan, dtype)
    part = whole[1 : rows + 1, before : before + cols]
    part[...] = values
    return part


def around_is_nan(part: Any) -> bool:
    """Whether nothing but the part of the wider array was written."""
    whole = part.base.copy()
    whole[1 : len(part) + 1][:, _columns(part)] = np.nan
    return bool(np.isnan(whole).all())


def _columns(part: Any) -> slice:
    first = (part.ctypes.data - part.base.ctypes.data) // part.itemsize % part.base.shape[1]
    return slice(first, first + part.shape[1])


def layer(rows: int, features: int, classes: int, arithmetic: Any, storage: Any, chunk: int = 72) -> Layer:
    random = np.random.default_rng([rows, features, classes])
    x = inside(random.normal(size=(rows, features)), storage, before=3)
    padded = -(-classes // LANES) * LANES
    w, b = np.full((features, padded), np.nan, arithmetic), np.full(padded, np.nan, arithmetic)
    w[:, :classes] = random.normal(size=(features, classes)) / np.sqrt(features)
    b[:classes] = random.normal(size=classes)
    total = inside(random.normal(size=(classes, features)), arithmetic, before=2)
    sums = random.normal(size=classes)
    scratch = np.zeros((chunk, -(-classes // 4) * 4), arithmetic)
    kernel = backend.kernels().Linear(x, w, b, classes, scratch, total, sums)
    return Layer(x, w[:, :classes], b[:classes], total, sums, kernel)


def wide(*arrays: Any) -> list[Any]:
    return [array.astype(np.float64) for array in arrays]


def scores(made: Layer) -> tuple[Any, Any]:
    """X W + b in float64, and the sum of the sizes of its terms."""
    x, w, b = wide(made.x, made.weight, made.bias)
    return x @ w + b, np.abs(x) @ np.abs(w) + np.abs(b)


def close(actual: Any, expected: Any, error: Any) -> None:
    """Every element within its own error."""
    off = ~(np.abs(actual.astype(np.float64) - expected) <= error)
    assert not off.any(), f"{off.sum()} of {off.size} off, first at {np.argwhere(off)[0]}"


def check_totals(made: Layer, before: tuple[Any, Any], g: Any, g_error: Any) -> None:
    """Gᵀ X and the column sums of G were added, G having been computed with an error."""
    total, sums = before
    (x,), eps = wide(made.x), float(np.finfo(made.total.dtype).eps)
    added = (len(x) + 2) * eps  # at worst as many roundings as there are rows
    terms = np.abs(g).T @ np.abs(x) + np.abs(total)
    close(made.total, total + g.T @ x, added * terms + g_error.T @ np.abs(x))
    terms = np.abs(g).sum(axis=0) + np.abs(sums)
    close(made.sums, sums + g.sum(axis=0), min(added, 66 * eps) * terms + g_error.sum(axis=0))
    assert around_is_nan(made.total)


def curved(prob: Any, v: Any, v_error: Any, weight: Any, eps: float) -> tuple[Any, Any]:
    """a(S∘V − S(S·V)) and a bound of its error."""
    a = 1.0 if weight is None else weight[:, None]
    exact = a * prob * (v - (prob * v).sum(axis=1, keepdims=True))
    size, apart = (a * prob * (m + (prob * m).sum(axis=1, keepdims=True)) for m in (np.abs(v), v_error))
    return exact, (prob.shape[1] + 4) * eps * size + apart


# --- X W + b ---------------------------------------------------------------------------------------------------------


@EVERY_CLASS
@EVERY_PAIR
def test_forward_is_the_product(instruction_set: str, classes: int, arithmetic: Any, storage: Any) -> None:
    for rows, features, _ in SHAPES:
        made = layer(rows, features, classes, arithmetic, storage)
        out = inside(np.zeros((rows, classes)), arithmetic, before=1)
        made.kernel.forward(out)
        expected, terms = scores(made)
        close(out, expected, (features + 2) * np.finfo(arithmetic).eps * terms)
        assert around_is_nan(out)


@EVERY_PAIR
@pytest.mark.parametrize("classes", [2, 8, 20, 33, 65])
@pytest.mark.parametrize("name", NATIVE)
def test_a_rows_scores_are_its_own(name: str, classes: int, arithmetic: Any, storage: Any) -> None:
    """Blocks of rows are an order of work, not of sums: the same bits whoever else is there."""
    with backend.use(name):
        made = layer(73, 33, classes, arithmetic, storage)
        whole = np.empty((73, classes), arithmetic)
        made.kernel.forward(whole)
        padded = -(-classes // LANES) * LANES
        w, b = np.zeros((33, padded), arithmetic), np.zeros(padded, arithmetic)
        w[:, :classes], b[:classes] = made.weight, made.bias
        for first, count in [(0, 1), (5, 1), (72, 1), (1, 2), (3, 11), (3, 12), (3, 13), (0, 72), (1, 72)]:
            part = np.empty((count, classes), arithmetic)
            x = made.x[first : first + count]
            backend.kernels().Linear(x, w, b, classes).forward(part)
            np.testing.assert_array_equal(part, whole[first : first + count])


@given(
    rows=st.integers(1, 40),
    features=st.integers(16, 70),
    classes=st.integers(1, 120),
    pair=st.sampled_from(PAIRS),
    name=st.sampled_from(INSTRUCTION_SETS),
)
def test_forward_of_any_shape(rows: int, features: int, classes: int, pair: Any, name: str) -> None:
    with backend.use(name):
        made = layer(rows, features, classes, *pair)
        out = np.full((rows, classes), np.nan, pair[0])
        made.kernel.forward(out)
    expected, terms = scores(made)
    close(out, expected, (features + 2) * np.finfo(pair[0]).eps * terms)


def test_rows_in_any_order_and_apart(instruction_set: str) -> None:
    """Strides are the caller's: every second row, and rows from the last to the first."""
    x = np.random.default_rng(0).normal(size=(30, 21))
    w, b = np.zeros((21, 16)), np.zeros(16)
    w[:, :5] = np.random.default_rng(1).normal(size=(21, 5))
    for view in (x[::2], x[::-1], x[25::-3]):
        out = np.empty((len(view), 5))
        backend.kernels().Linear(view, w, b, 5).forward(out[::-1])
        np.testing.assert_allclose(out[::-1], view @ w[:, :5], rtol=0, atol=1e-13)


# --- Hessian products ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("weighted", [False, True])
@EVERY_CLASS
@EVERY_PAIR
def test_curvature_adds_the_hessian_product(
    instruction_set: str, classes: int, arithmetic: Any, storage: Any, weighted: bool
) -> None:
    eps = np.finfo(arithmetic).eps
    for rows, features, chunk in SHAPES[weighted::2]:
        made = layer(rows, features, classes, arithmetic, storage, chunk)
        random = np.random.default_rng(rows)
        s = reference.softmax(2 * random.normal(size=(rows, classes))) if rows else np.zeros((0, classes))
        prob = inside(s, arithmetic)
        weight = random.uniform(0, 3, size=rows) * (np.arange(rows) % 5 > 0) if weighted else None
        before = made.total.astype(np.float64), made.sums.copy()
        made.kernel.curvature(prob, weight)
        v, terms = scores(made)
        g, g_error = curved(prob.astype(np.float64), v, (features + 2) * eps * terms, weight, eps)
        check_totals(made, before, g, g_error)
        again = made.total.astype(np.float64), made.sums.copy()
        made.kernel.curvature(prob, weight)
        check_totals(made, again, g, g_error)
        assert around_is_nan(prob)


# --- a whole pass ----------------------------------------------------------------------------------------------------


class Pass(NamedTuple):
    """What a head and a layer made of each other."""

    z: Any
    losses: Any
    prob: Any


def head(z: Any, labels: Any, values: Any, class_weight: Any, row_weight: Any, smoothing: float) -> Any:
    storage = Storage.float64 if z.dtype == np.float64 else Storage.float32
    kind = TargetKind.labels if values is None else TargetKind.dense
    targets = backend.kernels().Targets(kind, labels, values, Storage.float64)
    return backend.kernels().Head(z, storage, targets, KernelOptions(smoothing), class_weight, row_weight)


def run(made: Layer, z: Any, targets: Any, *, known: bool, stored: bool = True, **options: Any) -> Pass:
    labels, values = (targets, None) if targets.ndim == 1 else (None, targets)
    class_weight = options.get("class_weight")
    class_weight = None if class_weight is None else class_weight.astype(z.dtype)
    losses = np.full(len(z), np.nan)
    prob = inside(np.zeros(z.shape), z.dtype, before=1) if stored else None
    of = head(z, labels, values, class_weight, options.get("sample_weight"), options.get("label_smoothing", 0.0))
    of.linear(z, losses, prob, made.kernel, known)
    return Pass(z, losses, prob)


def pass_options(rows: int, classes: int, kind: str) -> tuple[Any, dict[str, Any]]:
    """Targets and options: the plain ones have their own code in the kernels."""
    random = np.random.default_rng([rows, classes])
    labels = random.integers(classes, size=rows)
    if kind == "labels":
        return labels, {}
    weights = random.uniform(0.2, 3, size=rows) * (np.arange(rows) % 4 > 0)
    if kind == "weights":
        return labels, {"sample_weight": weights, "class_weight": random.uniform(0.5, 2, size=classes)}
    y = random.random((rows, classes)) ** 4
    return y / classes, {"sample_weight": weights, "label_smoothing": 0.1}


def check_pass(made: Layer, before: tuple[Any, Any], done: Pass, targets: Any, options: dict[str, Any]) -> None:
    """Losses, probabilities and totals against the oracle at the scores that the pass itself stored."""
    rows, classes = done.z.shape
    eps = float(np.finfo(done.z.dtype).eps)
    if not rows:
        np.testing.assert_array_equal(made.total, before[0])
        np.testing.assert_array_equal(made.sums, before[1])
        return
    z = done.z.astype(np.float64)
    losses, g = reference.cross_entropy_with_grad(z, targets, reduction="none", **options)
    p = reference._problem(z, targets, reduction="none", **options)[0]
    apart, a = np.ptp(z, axis=1), np.where(p.keep, p.ce, 0.0)
    s, mass = reference.softmax(z), p.wy.sum(axis=1)
    close(done.losses, losses, (16 + classes) * eps * a * mass * (1 + apart + np.log(classes)))
    error = (16 + 4 * apart[:, None]) * eps
    if done.prob is not None:
        close(done.prob, s, error * s)
        assert around_is_nan(done.prob)
    check_totals(made, before, g, error * a[:, None] * (mass[:, None] * s + p.wy))


@pytest.mark.parametrize("kind", ["labels", "weights", "soft"])
@EVERY_CLASS
@EVERY_PAIR
def test_a_pass_is_scores_losses_and_gradient(
    instruction_set: str, classes: int, arithmetic: Any, storage: Any, kind: str
) -> None:
    step = ["labels", "weights", "soft"].index(kind)
    for rows, features, chunk in SHAPES[step::3]:
        made = layer(rows, features, classes, arithmetic, storage, chunk)
        targets, options = pass_options(rows, classes, kind)
        before = made.total.astype(np.float64), made.sums.copy()
        z = inside(np.full((rows, classes), np.nan), arithmetic, before=1)
        done = run(made, z, targets, known=False, stored=step != 1, **options)
        expected, terms = scores(made)
        close(z, expected, (features + 2) * np.finfo(arithmetic).eps * terms)
        assert around_is_nan(z)
        check_pass(made, before, done, targets, options)


@pytest.mark.parametrize("kind", ["labels", "weights", "soft"])
@pytest.mark.parametrize("classes", [3, 16, 20, 33])
@EVERY_PAIR
def test_known_scores_are_taken_as_given(
    instruction_set: str, classes: int, arithmetic: Any, storage: Any, kind: str
) -> None:
    """Scores that no layer gave, as offsets make them: the weights count for nothing."""
    for rows, features, chunk in [(73, 17, 72), (505, 33, 504), (2, 64, 72), (0, 16, 72)]:
        made = layer(rows, features, classes, arithmetic, storage, chunk)
        made.weight[...], made.bias[...] = np.nan, np.nan
        targets, options = pass_options(rows, classes, kind)
        before = made.total.astype(np.float64), made.sums.copy()
        z = inside(np.random.default_rng(1).normal(size=(rows, classes)), arithmetic, before=1)
        given_scores = z.copy()
        check_pass(made, before, run(made, z, targets, known=True, **options), targets, options)
        np.testing.assert_array_equal(z, given_scores)
        assert around_is_nan(z)


def test_small_steps_of_float32_add_up_in_float64(instruction_set: str) -> None:
    """Column sums of many rows: each of 64 rows in the arithmetic type at most, the sum of these in float64."""
    rows = 1 << 15
    x = np.zeros((rows, LANES), np.float32)
    prob = np.full((rows, 2), 0.5, np.float32)
    w, b = np.zeros((LANES, LANES), np.float32), np.zeros(LANES, np.float32)
    b[1] = 4 * np.float32(0.1)
    total, sums = np.zeros((2, LANES), np.float32), np.zeros(2)
    scratch = np.zeros((504, 4), np.float32)
    backend.kernels().Linear(x, w, b, 2, scratch, total, sums).curvature(prob, None)
    step = float(np.float32(0.5) * np.float32(0.5) * b[1])
    np.testing.assert_allclose(sums, [-rows * step, rows * step], rtol=16 * np.finfo(np.float32).eps)


# --- refusals --------------------------------------------------------------------------------------------------------


def arrays(**changes: Any) -> dict[str, Any]:
    """Arguments of a layer of 6 rows, 20 features and 5 classes, some of them changed."""
    told = {
        "x": np.ones((6, 20), np.float32),
        "weight": np.ones((20, 16), np.float32),
        "bias": np.ones(16, np.float32),
        "scratch": np.zeros((4, 8), np.float32),
        "total": np.full((5, 20), 7.0, np.float32),
        "sums": np.full(5, 7.0),
        "cols": 5,
    }
    return told | changes


F64 = np.float64
REFUSED: dict[str, dict[str, Any]] = {
    "fewer than 16 features": {
        "x": np.ones((6, 15), np.float32),
        "weight": np.ones((15, 16), np.float32),
        "total": np.full((5, 15), 7.0, np.float32),
    },
    "weights of 15 columns": {"weight": np.ones((20, 15), np.float32), "bias": np.ones(15, np.float32)},
    "weights of 17 columns": {"weight": np.ones((20, 17), np.float32), "bias": np.ones(17, np.float32)},
    "more classes than weights": {
        "cols": 17,
        "scratch": np.zeros((4, 20), np.float32),
        "total": np.full((17, 20), 7.0, np.float32),
        "sums": np.full(17, 7.0),
    },
    "no classes": {"cols": 0},
    "weights of other features": {"weight": np.ones((19, 16), np.float32)},
    "transposed weights": {"weight": np.ones((16, 20), np.float32).T},
    "bias of other columns": {"bias": np.ones(5, np.float32)},
    "bias with gaps": {"bias": np.ones(32, np.float32)[::2]},
    "x wider than the arithmetic": {"x": np.ones((6, 20))},
    "x by columns": {"x": np.ones((20, 6), np.float32).T},
    "x of one dimension": {"x": np.ones(20, np.float32)},
    "weights of another type": {"weight": np.ones((20, 16))},
    "items of two bytes": {"x": np.ones((6, 20), np.float16)},
    "integers": {"x": np.ones((6, 20), np.int32)},
    "arithmetic of two bytes": {"x": np.ones((6, 20), np.float16), "weight": np.ones((20, 16), np.float16)},
    "scratch of too few columns": {"scratch": np.zeros((4, 5), np.float32)},
    "scratch of no rows": {"scratch": np.zeros((0, 8), np.float32)},
    "scratch without totals": {"total": None},
    "scratch without sums": {"sums": None},
    "totals of other classes": {"total": np.full((4, 20), 7.0, np.float32)},
    "totals of other features": {"total": np.full((5, 21), 7.0, np.float32)},
    "totals of another type": {"total": np.full((5, 20), 7.0)},
    "sums of other classes": {"sums": np.full(6, 7.0)},
    "sums of float32": {"sums": np.full(5, 7.0, np.float32)},
    "sums with gaps": {"sums": np.full(10, 7.0)[::2]},
}


@pytest.mark.parametrize("change", REFUSED.values(), ids=REFUSED)
@pytest.mark.parametrize("name", NATIVE)
def test_arrays_that_do_not_fit_are_refused(name: str, change: dict[str, Any]) -> None:
    told = arrays(**change)
    with backend.use(name), pytest.raises(ValueError, match=r"."):
        backend.kernels().Linear(**told)
    for array in (told["total"], told["sums"]):
        assert array is None or (array == 7).all()


@pytest.mark.parametrize("name", NATIVE)
def test_an_array_that_cannot_be_written_is_refused(name: str) -> None:
    for field in ("scratch", "total", "sums"):
        told = arrays()
        told[field].flags.writeable = False
        with backend.use(name), pytest.raises((ValueError, BufferError), match=r"read-only|writable"):
            backend.kernels().Linear(**told)


OUTPUTS = [np.full((5, 5), 7, np.float32), np.full((6, 6), 7, np.float32), np.full((6, 5), 7.0), np.full(5, 7.0)]


@pytest.mark.parametrize("out", OUTPUTS, ids=["rows", "columns", "type", "dimensions"])
@pytest.mark.parametrize("name", NATIVE)
def test_scores_that_do_not_fit_are_refused(name: str, out: Any) -> None:
    with backend.use(name), pytest.raises(ValueError, match="out: "):
        backend.kernels().Linear(**arrays()).forward(out)
    assert (out == 7).all()


@pytest.mark.parametrize("name", NATIVE)
def test_products_of_arrays_that_do_not_fit_are_refused(name: str) -> None:
    good, weight = np.full((6, 5), 0.2, np.float32), np.ones(6)
    wrong = [(good[:5], weight), (good[:, :4], weight), (good.astype(F64), weight), (good, weight[:5])]
    wrong += [(good, np.ones(12)[::2]), (good, weight.astype(np.float32))]
    with backend.use(name):
        told = arrays()
        linear = backend.kernels().Linear(**told)
        for prob, a in wrong:
            with pytest.raises(ValueError, match=r"."):
                linear.curvature(prob, a)
        assert (told["total"] == 7).all()
        assert (told["sums"] == 7).all()
        without = backend.kernels().Linear(**arrays(scratch=None, total=None, sums=None))
        with pytest.raises(ValueError, match="scratch: missing"):
            without.curvature(good, weight)


@pytest.mark.parametrize("name", NATIVE)
def test_a_pass_of_arrays_that_do_not_fit_is_refused(name: str) -> None:
    labels = np.zeros(6, np.int64)

    def scores_of(rows: int = 6, classes: int = 5, dtype: Any = np.float32) -> Any:
        return np.full((rows, classes), 7, dtype)

    with backend.use(name):
        told = arrays()
        linear = backend.kernels().Linear(**told)
        without = backend.kernels().Linear(**arrays(scratch=None, total=None, sums=None))
        z, losses = scores_of(), np.full(6, 7.0)
        of = head(z, labels, None, None, None, 0.0)
        cases: list[tuple[Any, ...]] = [
            (of, scores_of(), losses, None, linear),  # other logits than the head's
            (of, z, losses[:5], None, linear),
            (of, z, np.full(12, 7.0)[::2], None, linear),
            (of, z, losses, scores_of(classes=4), linear),
            (of, z, losses, scores_of(dtype=F64), linear),
            (of, z, losses, None, without),
        ]
        for other in (scores_of(dtype=F64), scores_of(classes=4), scores_of(rows=5)):
            its = head(other, labels[: len(other)], None, None, None, 0.0)
            cases.append((its, other, losses[: len(other)], None, linear))
        for its, logits, to, prob, layer_ in cases:
            for known in (False, True):
                with pytest.raises(ValueError, match=r"."):
                    its.linear(logits, to, prob, layer_, known)
            assert (logits == 7).all()
        assert (losses == 7).all()
        assert (told["total"] == 7).all()
        assert (told["sums"] == 7).all()


@pytest.mark.parametrize("name", NATIVE)
def test_a_label_outside_the_classes_is_read_as_no_address(name: str) -> None:
    with backend.use(name):
        z, losses = np.zeros((6, 5), np.float32), np.full(6, 7.0)
        linear = backend.kernels().Linear(**arrays())
        head(z, np.full(6, 1 << 40), None, None, None, 0.0).linear(z, losses, None, linear, False)
    assert (z == 21).all()
