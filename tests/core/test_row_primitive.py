"""The row primitive of the kernels: upstreams of each row and output, sums over the gradient, slices, the mean."""

from __future__ import annotations

import itertools
import math
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np
import pytest
from cases import ARITHMETIC, DTYPES, INSTRUCTION_SETS, STORAGE, TARGETS, TINY, close, logits, spread, targets

import softgrad
from softgrad import reference
from softgrad._core import backend, fallback
from softgrad._core.arrays import as_rows
from softgrad._core.schedule import run_gradient, run_statistics, statistics_dtype
from softgrad._core.targets import NO_TARGETS, as_targets

NATIVE = tuple(name for name in INSTRUCTION_SETS if name != "numpy")
INF, NAN = math.inf, math.nan
each_native = pytest.mark.parametrize("name", NATIVE)
each_shape = pytest.mark.parametrize(
    ("columns", "dtype"),
    [(columns, "float32") for columns in (1, 5, 32, 33, 100, 2100, 66_000)]
    + [(columns, dtype) for columns in (5, 100, 2100) for dtype in DTYPES if dtype != "float32"],
)
OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "scaled": {"logit_scale": -1.5, "temperature": 0.7},
    "capped": {"logit_scale": 1.5, "softcap": 3.0, "temperature": 0.7},
    "smooth": {"label_smoothing": 0.1},
    "weighted": {"label_smoothing": 0.1, "smooth_finite_only": True, "class_weight": True, "logit_scale": 2.0},
}


class Answers(NamedTuple):
    """The outputs of each row, and the sum over them and the gradient for an upstream, in float64."""

    ce: Any
    lse: Any
    entropy: Any
    gradient: Any  # by the logits
    terms: Any  # what the gradient is the difference of
    along: Any
    slope: Any
    size: Any  # the terms of the sums


def given_options(name: str, columns: int) -> dict[str, Any]:
    options = dict(OPTIONS[name])
    if options.get("class_weight"):
        options["class_weight"] = np.linspace(0.5, 1.5, columns)
    return options


def oracle(o: Any, y: Any, upstream: Any, **options: Any) -> Answers:
    """The definition: G = S∘(ce t + lse − entropy (log S + H)) − ce w y'."""
    p = reference._problem(o, y, reduction="none", **options)[0]
    stats = reference.row_statistics(p.u, p.wy)
    ce, lse = reference.loss_from_statistics(stats)
    entropy = stats.log_sum - stats.moment / stats.sumexp
    a, b, h = (0.0 if part is None else np.where(p.keep, part, 0.0)[:, None] for part in upstream)
    s = reference.probabilities(p.u, stats)
    masked = p.u == -INF
    log_s = np.where(masked, 0.0, p.u - stats.maximum[:, None]) - stats.log_sum[:, None]
    g = s * (a * stats.mass[:, None] + b - h * (log_s + entropy[:, None])) - a * p.wy
    terms = s * (np.abs(a * stats.mass[:, None]) + np.abs(b) + np.abs(h) * (np.abs(log_s) + entropy[:, None]))
    terms += np.abs(a * p.wy)
    u = np.where(masked, 0.0, p.u)
    # ∂u/∂s, with o from its transform: o s/τ ∂u/∂o.
    by_scale = np.where(masked, 0.0, p.slope * np.where(masked, 0.0, p.o) / options.get("logit_scale", 1.0))
    return Answers(
        ce, lse, entropy, p.slope * g, np.abs(p.slope) * terms, (g * u).sum(axis=1), (g * by_scale).sum(axis=1),
        (terms * (np.abs(u) + np.abs(by_scale) + 1)).sum(axis=1),
    )  # fmt: skip


def head_of(o: Any, y: Any, *, first: int = 0, classes: int = 0, row_weight: Any = None, **options: Any) -> Any:
    rows = as_rows(o)
    record = as_targets(y, rows).record(first, classes) if y is not None else NO_TARGETS.record(first, classes)
    class_weight = options.pop("class_weight", None)
    if class_weight is not None:
        class_weight = class_weight.astype(np.float64 if o.dtype == np.float64 else np.float32)
    options["softcap"] = options.get("softcap") or 0.0
    kernels = backend.kernels()
    return kernels.Head(rows.array, rows.storage, record, kernels.Options(**options), class_weight, row_weight)


def outputs_of(o: Any, **arrays: Any) -> Any:
    rows = as_rows(o)
    return backend.kernels().Outputs(*rows.array.shape, rows.storage, **arrays)


def bits_of(array: Any) -> Any:
    return array.view(np.uint16) if array.dtype == ml_dtypes.bfloat16 else array


# --- one upstream a row and output -----------------------------------------------------------------------------------


@each_shape
@pytest.mark.parametrize("kind", OPTIONS)
@each_native
def test_gradient_is_that_of_the_outputs(name: str, kind: str, columns: int, dtype: str) -> None:
    rows, options = 5 if columns < 10_000 else 2, given_options(kind, columns)
    random = np.random.default_rng(columns)
    o = logits("masked" if options.get("logit_scale", 1) > 0 and columns > 3 else "flat", rows, columns, dtype)
    with backend.use(name):
        for target, nothing in itertools.product(TARGETS, ((), (0,), (1,), (2,), (0, 2))):
            y = targets(target, o)
            upstream = [None if i in nothing else random.normal(size=rows) for i in range(3)]
            if kind == "smooth" and not options.get("smooth_finite_only"):  # a masked class has a share
                o = logits("flat", rows, columns, dtype)
                y = targets(target, o)
            answer = oracle(o, y, upstream, **options)
            grad = np.empty_like(o)
            along, slope = np.empty(rows), np.empty(rows)
            head = head_of(o, y, **options)
            head.set_upstream(*upstream)
            head.rows(outputs_of(o, grad=bits_of(grad)), 0, rows)
            transform = {key: options[key] for key in ("logit_scale", "softcap", "temperature") if key in options}
            # A softcap's tanh has an error of its own in every logit.
            unit = ((40 if kind == "capped" else 24) + 4 * spread(o, **transform)) * ARITHMETIC[dtype]
            stored = STORAGE[dtype] * np.abs(answer.gradient) if STORAGE[dtype] != ARITHMETIC[dtype] else 0.0
            close(grad, answer.gradient, unit * answer.terms + stored + TINY[dtype], f"{target} {nothing}")
            again = np.empty_like(o)
            head.rows(outputs_of(o, grad=bits_of(again), along=along, slope=slope), 0, rows)
            close(again, answer.gradient, unit * answer.terms + stored + TINY[dtype], f"{target} {nothing}, with sums")
            close(along, answer.along, unit * answer.size + 1e-300, f"along {target} {nothing}")
            close(slope, answer.slope, unit * answer.size + 1e-300, f"slope {target} {nothing}")
            alone = np.full((2, rows), 7.0)
            head.rows(outputs_of(o, along=alone[0], slope=alone[1]), 0, rows)  # without an array of N×V
            np.testing.assert_array_equal(alone, [along, slope])


@pytest.mark.parametrize("columns", [5, 100, 2100, 70_000])
@each_native
def test_statistics_then_gradient_equal_rows_bit_for_bit(name: str, columns: int) -> None:
    o = logits("masked", 3, columns, "float32")
    y, random = targets("labels", o), np.random.default_rng(0)
    upstream = random.normal(size=(3, 3))
    with backend.use(name):
        results = []
        for path in ("rows", "statistics", "panels"):
            head = head_of(o, y, softcap=2.0 if columns == 2100 else None)
            head.set_upstream(*upstream)
            grad, sums = np.empty_like(o), np.empty((2, 3))
            out = outputs_of(o, grad=grad, along=sums[0], slope=sums[1])
            if path == "rows":
                head.rows(out, 0, 3)
            else:
                n_threads = 1 if path == "statistics" else 2
                records = run_statistics(head, outputs_of(o), 3, columns, n_threads, by_products=True)
                run_gradient(head, out, records, 3, columns, n_threads)
            results.append((grad.tobytes(), sums.tobytes()))
    assert results[0] == results[1] == results[2]


@pytest.mark.parametrize("columns", [5, 100, 2100])
@each_native
def test_ignored_rows_stay_zero_whatever_comes_from_upstream(name: str, columns: int) -> None:
    o = logits("flat", 4, columns, "float32")
    o[1], o[2] = NAN, INF
    y, weight = np.array([1, -100, 2, 3]), np.array([1.0, 1.0, 0.0, 1.0])
    with backend.use(name):
        for value, entropy in itertools.product((NAN, INF, 1.0), (True, False)):
            head = head_of(o, y, row_weight=weight, ignore_index=-100)
            bad = np.where([False, True, True, False], value, 0.5)
            head.set_upstream(bad, bad, bad if entropy else None)
            grad, sums = np.full_like(o, 7), np.full((2, 4), 7.0)
            head.rows(outputs_of(o, grad=grad), 0, 4)
            assert not grad[1:3].any()
            assert np.isfinite(grad).all()
            assert np.abs(grad[[0, 3]]).max() > 1e-3
            head.rows(outputs_of(o, grad=grad, along=sums[0], slope=sums[1]), 0, 4)
            assert not grad[1:3].any()
            assert not sums[:, 1:3].any()
            assert np.isfinite(sums).all()


@pytest.mark.parametrize("columns", [5, 100, 2100])
@each_native
def test_rows_without_a_softmax_are_nan(name: str, columns: int) -> None:
    o = logits("flat", 5, columns, "float32")
    o[1], o[2, 0], o[3, 1] = -INF, INF, NAN
    with backend.use(name):
        for entropy, cap in itertools.product((True, False), (None, 3.0)):
            head = head_of(o, np.zeros(5, int), softcap=cap)
            head.set_upstream(np.ones(5), np.ones(5), np.ones(5) if entropy else None)
            grad, sums = np.empty_like(o), np.empty((2, 5))
            head.rows(outputs_of(o, grad=grad, along=sums[0], slope=sums[1]), 0, 5)
            assert np.isnan(sums[:, 1:4]).all()
            assert np.isnan(grad[1:4]).any(axis=1).all()
            assert np.isfinite(grad[[0, 4]]).all()
            assert np.isfinite(sums[:, [0, 4]]).all()


@pytest.mark.parametrize("columns", [5, 100, 2100])
@each_native
def test_sums_keep_their_digits_under_a_common_offset(name: str, columns: int) -> None:
    """Σ G u of a cross-entropy does not depend on a constant in all logits, however large."""
    o = np.round(64 * logits("flat", 3, columns, "float64")) / 64
    y = targets("labels", o)
    with backend.use(name):
        found = []
        for offset in (0.0, 2.0**40):
            along = np.empty(3)
            head = head_of(o + offset, y)
            head.set_upstream(np.ones(3), None, np.ones(3))
            head.rows(outputs_of(o, along=along), 0, 3)
            found.append(along)
    np.testing.assert_array_equal(found[0], found[1])


@each_native
def test_derivatives_by_temperature_scale_and_softcap(name: str) -> None:
    """−along/τ, slope and (along − s slope)/c against differences of the outputs."""
    o = logits("flat", 4, 40, "float64")
    y, upstream = targets("labels", o), np.random.default_rng(0).normal(size=(3, 4))
    s, c, tau, step = -1.3, 2.5, 0.6, 1e-6

    def total(s: float, c: float | None, tau: float) -> Any:
        answer = oracle(o, y, upstream, logit_scale=s, softcap=c, temperature=tau)
        return upstream[0] * answer.ce + upstream[1] * answer.lse + upstream[2] * answer.entropy

    with backend.use(name):
        for cap in (None, c):
            head = head_of(o, y, logit_scale=s, softcap=cap, temperature=tau)
            head.set_upstream(*upstream)
            along, slope = np.empty(4), np.empty(4)
            head.rows(outputs_of(o, along=along, slope=slope), 0, 4)
            by_tau = (total(s, cap, tau + step) - total(s, cap, tau - step)) / (2 * step)
            by_scale = (total(s + step, cap, tau) - total(s - step, cap, tau)) / (2 * step)
            np.testing.assert_allclose(-along / tau, by_tau, rtol=1e-7, atol=1e-8)
            np.testing.assert_allclose(slope, by_scale, rtol=1e-7, atol=1e-8)
            if cap:
                by_cap = (total(s, cap + step, tau) - total(s, cap - step, tau)) / (2 * step)
                np.testing.assert_allclose((along - s * slope) / cap, by_cap, rtol=1e-7, atol=1e-8)


@each_native
def test_sums_follow_the_factors_without_an_upstream(name: str) -> None:
    """With a z-loss and the mean's factors: the derivative of the total by the temperature."""
    o = logits("flat", 4, 40, "float64")
    y, step = targets("labels", o), 1e-6
    with backend.use(name):
        head = head_of(o, y, z_loss=0.1, temperature=0.8)
        assert head.settle(mean=True).ce_factor == 0.25
        along = np.empty(4)
        head.rows(outputs_of(o, along=along), 0, 4)
    up, down = (reference.cross_entropy(o, y, z_loss=0.1, temperature=0.8 + d) for d in (step, -step))
    assert -along.sum() / 0.8 == pytest.approx((up - down) / (2 * step), rel=1e-6)


@each_native
def test_an_upstream_may_be_replaced(name: str) -> None:
    o = logits("flat", 3, 40, "float32")
    with backend.use(name):
        head, grad, other = head_of(o, np.zeros(3, int)), np.empty_like(o), np.empty_like(o)
        head.set_upstream(np.ones(3), None, None)
        head.set_upstream(None, None, None)
        head.rows(outputs_of(o, grad=grad), 0, 3)
        assert not grad.any()
        for scale in (1.0, 2.0):
            head.set_upstream(np.full(3, scale), None, None)
            head.rows(outputs_of(o, grad=other), 0, 3)
            np.testing.assert_allclose(other, scale * (reference.softmax(o) - np.eye(40)[0]), atol=1e-6)


# --- slices of the classes -------------------------------------------------------------------------------------------


def columns_of(y: Any, target: str, lo: int, hi: int) -> Any:
    return y[:, lo:hi] if target == "dense" else y


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("edges", [(0, 1, 7, 40), (0, 20, 21, 40), (0, 2000, 2100, 5000), (0, 33_000, 70_000)])
@pytest.mark.parametrize("target", TARGETS)
@each_native
def test_slices_are_the_whole(name: str, target: str, edges: tuple[int, ...], dtype: str) -> None:
    if edges[-1] > 2 * 2048 and dtype != "float32":
        return
    rows, classes = 4, edges[-1]
    o, random = logits("masked", rows, classes, dtype), np.random.default_rng(1)
    y, upstream = targets(target, o), random.normal(size=(3, rows))
    weight, a = np.linspace(0.5, 1.5, classes), np.array([1.0, 0.5, 0.0, -2.0])
    options = {"label_smoothing": 0.1, "smooth_finite_only": True, "z_loss": 0.01}
    with backend.use(name):
        heads = [
            head_of(
                np.ascontiguousarray(o[:, lo:hi]), columns_of(y, target, lo, hi), first=lo, classes=classes,
                class_weight=weight[lo:hi], row_weight=a, **options,
            )
            for lo, hi in itertools.pairwise(edges)
        ]  # fmt: skip
        merged, part = (np.zeros(rows, statistics_dtype()) for _ in range(2))
        for i, (lo, hi) in enumerate(itertools.pairwise(edges)):
            heads[i].statistics(0, rows, 0, hi - lo, True, part if i else merged)
            if i:
                heads[i].merge(merged, part)
        loss, lse, entropy, log_prob = np.empty((4, rows))
        argmax, rank = np.empty((2, rows), np.int64)
        grads, sums = [], np.zeros((2, rows))
        for i, (lo, hi) in enumerate(itertools.pairwise(edges)):
            grad, along, slope = np.empty((rows, hi - lo), o.dtype), np.empty(rows), np.empty(rows)
            vectors = {
                "loss": loss,
                "lse": lse,
                "entropy": entropy,
                "log_prob": log_prob,
                "argmax": argmax,
                "rank": rank,
            }
            heads[i].finish(outputs_of(grad, **vectors), merged, 0, rows)
            heads[i].set_upstream(*upstream)
            heads[i].gradient(
                outputs_of(grad, grad=bits_of(grad), along=along, slope=slope), merged, 0, rows, 0, hi - lo
            )
            grads.append(grad)
            sums += along, slope
    kept = a != 0
    expected, _ = reference.cross_entropy_with_grad(
        o, y, reduction="none", sample_weight=a, class_weight=weight, **options
    )
    unit = (24 + 4 * spread(o)) * ARITHMETIC[dtype]
    answer = oracle(o, y, upstream, class_weight=weight, sample_weight=a, label_smoothing=0.1, smooth_finite_only=True)
    close(loss, expected, unit * (np.abs(expected) + 20), "loss")
    close(lse[kept], answer.lse[kept], unit * (np.abs(answer.lse[kept]) + 1), "lse")
    close(entropy[kept], answer.entropy[kept], unit * (answer.entropy[kept] + 1), "entropy")
    np.testing.assert_array_equal(argmax[kept], o.astype(float).argmax(axis=1)[kept])
    assert (rank == -1).all()  # the label's logit may be in another slice
    stored = STORAGE[dtype] * np.abs(answer.gradient) if STORAGE[dtype] != ARITHMETIC[dtype] else 0.0
    close(np.concatenate(grads, axis=1), answer.gradient, unit * answer.terms + stored + TINY[dtype], "gradient")
    close(sums[0], answer.along, unit * answer.size, "along")
    close(sums[1], answer.slope, unit * answer.size, "slope")


@each_native
def test_a_slice_has_labels_of_all_classes_and_no_softmax(name: str) -> None:
    o = np.zeros((2, 5), np.float32)
    with backend.use(name):
        for labels, bad in (([0, 19], -1), ([0, 20], 1), ([-1, 0], 0)):
            assert head_of(o, np.array(labels), first=10, classes=20).settle(mean=True).bad_row == bad
        head = head_of(o, np.array([0, 19]), first=10, classes=20)
        for call in (
            lambda: head.rows(outputs_of(o, lse=np.empty(2)), 0, 2),
            lambda: head.product(o, np.empty_like(o), 0, 2),
            lambda: head.distribution(False, np.empty_like(o), 0, 2),
        ):
            with pytest.raises(ValueError, match="slice"):
                call()
        with pytest.raises(ValueError, match="outside its classes"):
            head_of(o, np.array([0, 1]), first=16, classes=20)
        weighted = head_of(o, np.array([0, 19]), first=10, classes=20, class_weight=np.ones(5))
        with pytest.raises(ValueError, match="statistics of all slices"):
            weighted.settle(mean=True)


# --- the labels and the mean -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8"])
def test_labels_are_compared_by_value(instruction_set: str, kind: str) -> None:
    """No label equals an ignore_index that only its bits are congruent to, and none is accepted as another class."""
    o, info = np.zeros((3, 5), np.float32), np.iinfo(kind)
    congruent = {-100, int(np.array(-100).astype(kind)), -1, int(np.array(-1).astype(kind)), info.max, info.min}
    for value, ignored in itertools.product(sorted(congruent), (None, -100, -1, 2**63 - 1, 3)):
        if not info.min <= value <= info.max:
            continue
        y = np.array([1, value, 3], kind)
        settled = head_of(o, y, ignore_index=ignored).settle(mean=True)
        fits = 0 <= value < 5 or value == ignored
        assert settled.bad_row == (-1 if fits else 1), (value, ignored)
        if fits:
            kept = 3 - (value == ignored) - (ignored == 3)
            assert settled.ce_factor == pytest.approx(1 / kept)
        for call in (softgrad.cross_entropy, softgrad.prediction_stats, softgrad.cross_entropy_with_grad):
            if fits:
                call(o, y, ignore_index=ignored)
            else:
                with pytest.raises(ValueError, match=rf"targets\[1\] is {value}, outside \[0, 5\)"):
                    call(o, y, ignore_index=ignored)


@pytest.mark.parametrize("value", [2**63, -(2**63) - 1, 2**64])
def test_ignore_index_beyond_int64_is_refused(value: int) -> None:
    with pytest.raises(ValueError, match=f"ignore_index={value} is outside the range of int64"):
        softgrad.cross_entropy(np.zeros((1, 2)), np.array([0], np.uint64), ignore_index=value)


@pytest.mark.parametrize(
    ("labels", "weights", "class_weight", "z_loss", "expected"),
    [
        ([0, 1, 2], None, None, 0.0, (False, 1 / 3, 1 / 3)),
        ([0, 1, -100], None, None, 0.0, (False, 1 / 2, 1 / 2)),
        ([-100] * 3, None, None, 0.0, (True, 0.0, 0.0)),
        ([0, 1, 2], [1.0, 0.0, 3.0], None, 0.0, (False, 1 / 4, 1 / 4)),
        ([0, 1, 2], None, [2.0, 1.0, 1.0], 0.0, (False, 1 / 4, 1 / 3)),
        ([0, 1, 2], [0.0, 0.0, 0.0], None, 0.0, (True, 0.0, 0.0)),
        ([0, 1, 2], [1.0, -1.0, 0.0], None, 0.0, (True, 0.0, 0.0)),
        ([0, 1, 2], [1.0, -1.0, 0.0], [2.0, 1.0, 1.0], 0.0, (False, 1.0, 0.0)),
        ([0, 1, 2], [1.0, -1.0, 0.0], [2.0, 1.0, 1.0], 0.1, (False, 1.0, NAN)),
        ([], None, None, 0.0, (True, 0.0, 0.0)),
    ],
)
def test_the_rule_of_the_mean(
    instruction_set: str, labels: Any, weights: Any, class_weight: Any, z_loss: float, expected: Any
) -> None:
    o = np.zeros((len(labels), 3))
    a = None if weights is None else np.array(weights)
    w = None if class_weight is None else np.array(class_weight)
    y = np.array(labels, np.int64)
    head = head_of(o, y, ignore_index=-100, row_weight=a, class_weight=w, z_loss=z_loss)
    found = head.settle(mean=True)
    np.testing.assert_allclose([found.empty_mean, found.ce_factor, found.z_factor], expected)
    without = head.settle(mean=False)
    assert (without.empty_mean, without.ce_factor, without.z_factor) == (False, 1.0, 1.0)
    if a is None and w is None and len(labels):
        kernels = backend.kernels()
        grad = np.full_like(o, 7)
        bad, total = kernels.small_batch(
            o, kernels.Storage.float64, y, kernels.Options(ignore_index=-100, z_loss=z_loss), True, grad
        )
        assert bad == -1
        expected_total, expected_grad = reference.cross_entropy_with_grad(o, y, ignore_index=-100, z_loss=z_loss)
        np.testing.assert_allclose(total, expected_total)
        np.testing.assert_allclose(grad, expected_grad, atol=1e-15)


def test_what_the_fallback_lacks_is_named() -> None:
    o = np.zeros((2, 3))
    with backend.use("numpy"):
        head = head_of(o, np.array([0, 1]))
        for call in (
            lambda: head.set_upstream(np.ones(2), None, None),
            lambda: head.statistics(0, 2, 0, 3, False, None),
            lambda: head.gradient(None, None, 0, 2, 0, 3),
            lambda: head.rows(fallback.Outputs(2, 3, fallback.Storage.float64, along=np.empty(2)), 0, 2),
            lambda: head_of(o, np.array([0, 1]), first=1, classes=9),
        ):
            with pytest.raises(NotImplementedError, match="needs the native kernels"):
                call()
