"""The linear head: logits x Wᵀ + b that are never made, against the reference that makes them."""

from __future__ import annotations

import itertools
import subprocess
import sys
import tracemalloc
from typing import Any

import numpy as np
import pytest
from cases import ARITHMETIC, DTYPES, STORAGE, TARGETS, close, targets

import softgrad
from softgrad import reference

NAMES = ("x", "weight", "bias")
# relative to the largest entry: float32 sums of D and of V or N terms
TOLERANCE = {name: 64 * ARITHMETIC[name] + 2 * STORAGE[name] for name in DTYPES}


def head(n: int, depth: int, classes: int, dtype: str, seed: int = 0) -> tuple[Any, Any, Any]:
    """Inputs whose logits are of order 1 and whose bias matters."""
    random = np.random.default_rng([seed, n, depth, classes])
    x = random.normal(size=(n, depth)) / np.sqrt(depth)
    weight, bias = random.normal(size=(classes, depth)), random.normal(size=classes)
    return tuple(a.astype(DTYPES[dtype]) for a in (x, weight, bias))


def check(x: Any, weight: Any, bias: Any, y: Any, dtype: str, context: str = "", **options: Any) -> None:
    """Loss and all gradients; the references' logits are exact where the head's are float32 or float64."""
    scheduling = {k: options.pop(k) for k in ("max_memory", "n_threads") if k in options}
    loss, grads = softgrad.linear_cross_entropy_with_grad(x, weight, y, bias=bias, **options, **scheduling)
    alone = softgrad.linear_cross_entropy(x, weight, y, bias=bias, **options, **scheduling)
    np.testing.assert_array_equal(alone, loss)
    expected, expected_grads = reference.linear_cross_entropy_with_grad(x, weight, y, bias=bias, **options)
    unit = 64 * ARITHMETIC[dtype]
    size = np.abs(expected) + np.max(np.abs(expected), initial=1.0)
    close(loss, expected, unit * size, f"loss {context}")
    assert np.asarray(loss).dtype == (np.float64 if dtype == "float64" else np.float32)
    for name, got, want in zip(NAMES, grads, expected_grads, strict=True):
        if name == "bias" and bias is None:
            assert got is None
            continue
        assert got.dtype == x.dtype
        assert got.shape == want.shape
        close(got, want, TOLERANCE[dtype] * np.abs(want).max(initial=1e-30) * 2, f"{name} {context}")
        assert np.abs(want).max(initial=0) > 1e-6 or not want.size, "nothing to compare"


# --- shapes, types, options ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("n", "depth", "classes"),
    [(1, 1, 2), (7, 3, 2), (5, 1, 33), (37, 16, 10), (161, 17, 101), (3, 5, 2049), (200, 129, 700)],
)
def test_shapes(n: int, depth: int, classes: int, dtype: str, instruction_set: str) -> None:
    x, weight, bias = head(n, depth, classes, dtype)
    o = x.astype(float) @ weight.astype(float).T
    for target in TARGETS:
        y = targets(target, o)
        check(x, weight, bias, y, dtype, target)
        check(x, weight, None, y, dtype, f"{target} without bias")


OPTIONS: dict[str, Any] = {
    "label_smoothing": 0.1,
    "softcap": 3.0,
    "temperature": 0.7,
    "logit_scale": -1.5,
    "z_loss": 0.05,
    "reduction": "sum",
    "class_weight": np.linspace(0.5, 2.0, 101),
    "sample_weight": np.linspace(-0.5, 2.0, 23),
    "smooth_finite_only": True,
}


@pytest.mark.parametrize("dtype", ["float32", "float64", "bfloat16"])
@pytest.mark.parametrize("pair", list(itertools.combinations(OPTIONS, 2)), ids="-".join)
def test_pairs_of_options(pair: tuple[str, str], dtype: str) -> None:
    x, weight, bias = head(23, 9, 101, dtype)
    o = x.astype(float) @ weight.astype(float).T
    options = {name: OPTIONS[name] for name in pair}
    for target in TARGETS:
        check(x, weight, bias, targets(target, o), dtype, target, max_memory=40_000, **options)


@pytest.mark.parametrize("dtype", DTYPES)
def test_ignored_rows_count_nowhere(dtype: str, instruction_set: str) -> None:
    """Nor in the mean's denominator, which all the row tiles share."""
    x, weight, bias = head(50, 9, 101, dtype)
    y = np.random.default_rng(0).integers(101, size=50)
    y[::3] = -100
    check(x, weight, bias, y, dtype, ignore_index=-100, max_memory=40_000)
    poisoned = x.copy()
    poisoned[::3] = np.nan
    kept = np.ones(50, dtype=bool)
    kept[::3] = False
    expected = softgrad.linear_cross_entropy(x[kept], weight, y[kept], bias=bias)
    assert softgrad.linear_cross_entropy(poisoned, weight, y, bias=bias, ignore_index=-100) == pytest.approx(expected)
    grads = softgrad.linear_cross_entropy_with_grad(
        poisoned, weight, y, bias=bias, ignore_index=-100, with_respect_to=("x", "bias")
    )[1]
    np.testing.assert_array_equal(grads.x[::3].astype(float), 0.0)
    assert np.isfinite(grads.bias.astype(float)).all()


def test_reduction_none_gives_rows_and_the_gradients_of_their_sum(instruction_set: str) -> None:
    x, weight, bias = head(23, 9, 101, "float64")
    y = np.arange(23)
    loss, grads = softgrad.linear_cross_entropy_with_grad(x, weight, y, bias=bias, reduction="none", max_memory=40_000)
    total, total_grads = softgrad.linear_cross_entropy_with_grad(
        x, weight, y, bias=bias, reduction="sum", max_memory=40_000
    )
    expected = reference.cross_entropy(x @ weight.T + bias, y, reduction="none")
    np.testing.assert_allclose(loss, expected, rtol=1e-13)
    assert total == pytest.approx(expected.sum(), rel=1e-13)
    for a, b in zip(grads, total_grads, strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("outer", [(), (6,), (2, 3), (2, 1, 3), (0, 3)])
def test_any_leading_rank(outer: tuple[int, ...]) -> None:
    n = int(np.prod(outer, dtype=int))
    x, weight, bias = head(n, 4, 11, "float64")
    y = np.arange(n) % 11
    loss, grads = softgrad.linear_cross_entropy_with_grad(
        x.reshape(*outer, 4), weight, y.reshape(outer), bias=bias, reduction="none"
    )
    flat, flat_grads = softgrad.linear_cross_entropy_with_grad(x, weight, y, bias=bias, reduction="none")
    assert loss.shape == outer
    assert grads.x.shape == (*outer, 4)
    np.testing.assert_array_equal(loss.reshape(n), flat)
    np.testing.assert_array_equal(grads.x.reshape(n, 4), flat_grads.x)
    np.testing.assert_array_equal(grads.weight, flat_grads.weight)
    soft = np.full((*outer, 11), 1 / 11)
    top = (y.reshape(*outer, 1), np.ones((*outer, 1)))
    assert softgrad.linear_cross_entropy(x.reshape(*outer, 4), weight, soft, reduction="none").shape == outer
    np.testing.assert_allclose(
        softgrad.linear_cross_entropy(x.reshape(*outer, 4), weight, top, bias=bias, reduction="none"), loss, rtol=1e-13
    )


# --- frozen sides ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["float32", "float64", "float16"])
@pytest.mark.parametrize("wanted", [c for k in range(4) for c in itertools.combinations(NAMES, k)])
def test_frozen_sides_are_none_and_the_others_unchanged(wanted: tuple[str, ...], dtype: str) -> None:
    x, weight, bias = head(41, 9, 101, dtype)
    y = np.arange(41)
    full_loss, full = softgrad.linear_cross_entropy_with_grad(x, weight, y, bias=bias, max_memory=40_000)
    loss, grads = softgrad.linear_cross_entropy_with_grad(
        x, weight, y, bias=bias, with_respect_to=wanted, max_memory=40_000
    )
    assert loss == full_loss
    for name in NAMES:
        got = getattr(grads, name)
        if name in wanted:
            np.testing.assert_array_equal(got, getattr(full, name))
        else:
            assert got is None


def test_frozen_sides_skip_their_products(monkeypatch: pytest.MonkeyPatch) -> None:
    """2 products with a frozen side, 1 for the loss alone, 3 with nothing frozen: counted in multiplications."""
    from softgrad._core import products

    x, weight, _ = head(64, 32, 500, "float32")
    flops: list[int] = []
    original = np.matmul

    def counting(a: Any, b: Any, **k: Any) -> Any:
        flops.append(a.shape[0] * a.shape[1] * b.shape[1])
        return original(a, b, **k)

    class Counted(np.ndarray):
        def __matmul__(self, other: Any) -> Any:
            return counting(np.asarray(self), np.asarray(other))

    class Namespace:
        matmul = staticmethod(counting)

        def __getattr__(self, name: str) -> Any:
            return getattr(np, name)

    monkeypatch.setattr(products, "np", Namespace())
    product = 64 * 32 * 500
    for wanted, count in ((("x", "weight"), 3), (("x",), 2), (("weight",), 2), ((), 1)):
        flops.clear()
        softgrad.linear_cross_entropy_with_grad(x, weight, np.zeros(64, int), with_respect_to=wanted, n_threads=1)
        assert sum(flops) == count * product, wanted


def test_out_receives_the_gradients() -> None:
    x, weight, bias = head(41, 9, 101, "float32")
    y = np.arange(41)
    expected = softgrad.linear_cross_entropy_with_grad(x, weight, y, bias=bias)[1]
    buffers = softgrad.LinearGradients(*(np.full_like(a, 7) for a in (x, weight, bias)))
    got = softgrad.linear_cross_entropy_with_grad(x, weight, y, bias=bias, out=buffers)[1]
    for a, b, c in zip(got, buffers, expected, strict=True):
        assert a is b
        np.testing.assert_array_equal(a, c)  # written, not added to what was there
    partial = softgrad.LinearGradients(None, np.full_like(weight, 7), None)
    got = softgrad.linear_cross_entropy_with_grad(x, weight, y, bias=bias, out=partial)[1]
    assert got.weight is partial.weight
    np.testing.assert_array_equal(got.x, expected.x)


def test_stats_of_the_linear_head(instruction_set: str) -> None:
    x, weight, bias = head(41, 9, 101, "float64")
    y = np.arange(41)
    expected = softgrad.prediction_stats(x @ weight.T + bias, y, temperature=2.0)
    for call in (softgrad.linear_cross_entropy, softgrad.linear_cross_entropy_with_grad):
        stats = softgrad.PredictionStats.empty((41,), np.float64)
        call(x, weight, y, bias=bias, stats=stats, max_memory=20_000, temperature=2.0)
        np.testing.assert_array_equal(stats.argmax, expected.argmax)
        np.testing.assert_array_equal(stats.rank, expected.rank)
        for name in ("lse", "log_prob", "entropy"):
            np.testing.assert_allclose(getattr(stats, name), getattr(expected, name), rtol=1e-12)


# --- layouts ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES)
def test_layouts(dtype: str) -> None:
    x, weight, bias = head(41, 9, 101, dtype)
    y = np.arange(41)
    expected_loss, expected = softgrad.linear_cross_entropy_with_grad(x, weight, y, bias=bias)

    def strided(a: Any) -> Any:
        big = np.zeros(tuple(2 * s for s in a.shape), dtype=a.dtype)
        view = big[tuple(slice(None, None, 2) for _ in a.shape)]
        view[...] = a
        return view

    def backwards(a: Any) -> Any:
        return np.ascontiguousarray(np.flip(a))[tuple(slice(None, None, -1) for _ in a.shape)]

    def frozen(a: Any) -> Any:
        copy = a.copy()
        copy.flags.writeable = False
        return copy

    def unaligned(a: Any) -> Any:
        view = np.zeros(a.nbytes + 1, dtype=np.uint8)[1:].view(a.dtype).reshape(a.shape)
        view[...] = a
        return view

    for layout in (np.asfortranarray, strided, backwards, frozen, unaligned):
        arrays = [layout(a) for a in (x, weight, bias)]
        before = [a.tobytes() for a in arrays]
        loss, grads = softgrad.linear_cross_entropy_with_grad(arrays[0], arrays[1], y, bias=arrays[2])
        assert loss == pytest.approx(expected_loss, rel=1e-6)
        for a, b in zip(grads, expected, strict=True):
            close(a, b.astype(float), TOLERANCE[dtype] * np.abs(b.astype(float)).max(), layout.__name__)
        assert [a.tobytes() for a in arrays] == before


def test_byte_swapped_inputs() -> None:
    x, weight, bias = head(11, 4, 7, "float64")
    expected = softgrad.linear_cross_entropy_with_grad(x, weight, np.arange(11) % 7, bias=bias)
    swapped = [a.astype(a.dtype.newbyteorder()) for a in (x, weight, bias)]
    loss, grads = softgrad.linear_cross_entropy_with_grad(*swapped[:2], np.arange(11) % 7, bias=swapped[2])
    assert loss == expected[0]
    for a, b in zip(grads, expected[1], strict=True):
        assert a.dtype.isnative
        np.testing.assert_array_equal(a, b)


def test_integer_inputs_and_lists() -> None:
    loss, grads = softgrad.linear_cross_entropy_with_grad([[1, 2]], [[0, 1], [1, 0]], [0], bias=[0, 0])
    assert loss == pytest.approx(float(np.log1p(np.exp(-1.0))))
    assert grads.x.dtype == np.float64


# --- memory ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES)
def test_results_do_not_depend_on_the_budget(dtype: str) -> None:
    x, weight, bias = head(203, 17, 301, dtype)
    y = np.arange(203)
    options: dict[str, Any] = {"label_smoothing": 0.1, "z_loss": 0.01}
    for budget in (8_000, 20_000, 100_000, 10_000_000):
        check(x, weight, bias, y, dtype, f"{budget} bytes", max_memory=budget, **options)


@pytest.mark.parametrize("budget", [300_000, 2_000_000, None])
@pytest.mark.parametrize("dtype", ["float32", "float64", "bfloat16"])
@pytest.mark.parametrize("n_threads", [1, 4])
def test_budget_is_obeyed(n_threads: int, dtype: str, budget: int | None) -> None:
    """By what NumPy allocates beyond the returned gradients: tiles, products, converted blocks, labels."""
    x, weight, bias = head(3000, 40, 5000, dtype)
    y = np.arange(3000)
    softgrad.linear_cross_entropy_with_grad(x[:2], weight, y[:2], bias=bias)  # imports, pools
    returned = sum(a.nbytes for a in (x, weight, bias))
    accumulators = 0 if x.dtype in (np.float32, np.float64) else 2 * (weight.nbytes + bias.nbytes)  # in float32
    limit = (64 << 20) if budget is None else budget
    for call in (softgrad.linear_cross_entropy_with_grad, softgrad.linear_cross_entropy):
        tracemalloc.start()
        try:
            call(x, weight, y, bias=bias, max_memory=budget, n_threads=n_threads)
            peak = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
        kept = returned + accumulators if call is softgrad.linear_cross_entropy_with_grad else 0
        per_row = 3000 * 8 * 2  # losses
        assert peak - kept <= limit + per_row + 60_000, f"{peak - kept} bytes, {limit} allowed"
    full = 3000 * 5000 * 4
    assert limit < full or budget is None


def test_budget_is_obeyed_by_the_process() -> None:
    """Peak resident memory of a fresh process, which sees what tracemalloc does not (BLAS, the extension)."""
    code = """
import numpy as np, softgrad
def status(key):
    return next(int(l.split()[1]) * 1024 for l in open("/proc/self/status") if l.startswith(key))
n, depth, classes = 4096, 64, 30000
random = np.random.default_rng(0)
x, w = random.normal(size=(n, depth)).astype(np.float32), random.normal(size=(classes, depth)).astype(np.float32)
y = np.arange(n)
softgrad.linear_cross_entropy_with_grad(x[:600], w, y[:600], n_threads=2, max_memory=8 << 20)
grads = softgrad.LinearGradients(np.zeros_like(x), np.zeros_like(w), None)
open("/proc/self/clear_refs", "w").write("5")
before = status("VmRSS")
softgrad.linear_cross_entropy_with_grad(x, w, y, n_threads=2, max_memory=8 << 20, out=grads)
print(status("VmHWM") - before)
"""
    if not sys.platform.startswith("linux"):
        pytest.skip("reads /proc")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    grown = int(done.stdout)
    assert grown < 16 << 20, f"{grown >> 20} MB with a budget of 8 MB; the logits would be 491 MB"


def test_smallest_budget_that_is_accepted_works() -> None:
    x, weight, bias = head(5, 3, 50, "float64")
    y = np.arange(5)
    expected = softgrad.linear_cross_entropy(x, weight, y, bias=bias)
    for budget in range(8, 4000, 8):
        try:
            loss, grads = softgrad.linear_cross_entropy_with_grad(x, weight, y, bias=bias, max_memory=budget)
        except ValueError as error:
            assert "max_memory" in str(error)  # noqa: PT017
            continue
        assert loss == pytest.approx(expected, rel=1e-13)
        assert np.isfinite(grads.weight).all()
        assert budget <= 2 * 50 * 8  # about a row of logits is enough
        return
    pytest.fail("no budget below 4000 bytes was accepted")
