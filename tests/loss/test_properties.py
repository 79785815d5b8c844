"""What must hold for every input, looked for by Hypothesis on the reference and on every instruction set."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
from cases import EACH_INSTRUCTION_SET, INSTRUCTION_SETS, check_gradient, check_loss, close
from hypothesis import assume, given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

import softgrad
from softgrad import reference
from softgrad._core import backend

IMPLEMENTATIONS = ("reference", *EACH_INSTRUCTION_SET)
NATIVE = tuple(name for name in INSTRUCTION_SETS if name != "numpy")
EPS = 2.0**-52


@contextmanager
def implementation(name: str) -> Iterator[Any]:
    if name == "reference":
        yield reference
    else:
        with backend.use(name):
            yield softgrad


def batches(columns: tuple[int, int] = (1, 70), magnitude: float = 30.0) -> st.SearchStrategy[np.ndarray]:
    shape = st.tuples(st.integers(1, 5), st.integers(*columns))
    return shape.flatmap(lambda s: hnp.arrays(np.float64, s, elements=st.floats(-magnitude, magnitude, width=32)))


@st.composite
def problems(draw: Any, columns: tuple[int, int] = (1, 70)) -> tuple[np.ndarray, np.ndarray, dict[str, Any]]:
    """Logits, labels and any mixture of options."""
    o = draw(batches(columns, 8.0))
    rows, v = o.shape
    labels = draw(hnp.arrays(np.int64, rows, elements=st.integers(0, v - 1)))
    eighths = st.integers(1, 32).map(lambda k: k / 8)
    options: dict[str, Any] = {}
    if draw(st.booleans()):
        options["class_weight"] = draw(hnp.arrays(np.float64, v, elements=eighths))
    if draw(st.booleans()):
        options["sample_weight"] = draw(hnp.arrays(np.float64, rows, elements=eighths))
    options["label_smoothing"] = draw(st.sampled_from([0.0, 0.1, 1.0]))
    options["logit_scale"] = draw(st.sampled_from([1.0, -0.5, 2.0]))
    options["softcap"] = draw(st.sampled_from([None, 5.0]))
    options["temperature"] = draw(st.sampled_from([1.0, 0.5, 3.0]))
    options["z_loss"] = draw(st.sampled_from([0.0, 0.01]))
    options["reduction"] = draw(st.sampled_from(["mean", "sum", "none"]))
    return o, labels, options


# --- offsets: the exact answer for the logits as the caller's type rounds them ---------------------------------------


@pytest.mark.parametrize("name", IMPLEMENTATIONS)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("offset", [s * x for x in (1e4, 1e6, 1e10, 1e20, 1e30) for s in (1, -1)])
@given(steps=hnp.arrays(np.int64, st.tuples(st.integers(1, 4), st.integers(2, 40)), elements=st.integers(-9, 9)))
def test_offsets(name: str, dtype: Any, offset: float, steps: np.ndarray) -> None:
    """Logits a few steps of their own rounding apart, scaled so that a step is worth 0.5: nothing may be lost."""
    spacing = float(np.spacing(dtype(abs(offset))))
    o = (offset + steps * spacing).astype(dtype)
    apart = (o.astype(np.longdouble) - o.max(axis=1, keepdims=True)) / np.longdouble(spacing) * 0.5
    shifted = apart.astype(np.float64)  # exact: small multiples of a half
    labels = np.argmin(steps, axis=1)
    with implementation(name) as m:
        if name == "reference":
            o = o.astype(np.float64)
        scale = 0.5 / spacing
        loss, gradient = m.cross_entropy_with_grad(o, labels, logit_scale=scale, reduction="sum")
        s = m.softmax(o, logit_scale=scale)
    unit = EPS if o.dtype == np.float64 else 2.0**-23
    # the specification multiplies before it subtracts, and loses |offset|·scale·ε; the kernels subtract first
    lost = abs(offset) * scale * EPS if name in ("reference", "numpy") else 0.0
    expected, expected_gradient = reference.cross_entropy_with_grad(shifted, labels, reduction="sum")
    unit = 40 * (unit + lost)
    close(loss, expected, unit * (1 + abs(expected)), "loss")
    close(s, reference.softmax(shifted), unit * reference.softmax(shifted), "softmax")
    terms = scale * (reference.softmax(shifted) + (np.arange(o.shape[1]) == labels[:, None]))
    close(gradient, scale * expected_gradient, unit * terms, "gradient")


@pytest.mark.parametrize("name", IMPLEMENTATIONS)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@given(o=batches((2, 40), 9.0), offset=st.sampled_from([1e4, -1e4, 1e6, -1e6, 1e10, 1e20, -1e30, 1e30]))
def test_offsets_without_scale(name: str, dtype: Any, o: np.ndarray, offset: float) -> None:
    """The same with logits of ordinary spread, most of which the rounding makes equal."""
    rounded = (o + offset).astype(dtype)
    labels = np.zeros(len(o), dtype=np.int64)
    shifted = (rounded.astype(np.longdouble) - rounded.max(axis=1, keepdims=True)).astype(np.float64)
    with implementation(name) as m:
        loss, gradient = m.cross_entropy_with_grad(rounded, labels, reduction="sum")
    expected, expected_gradient = reference.cross_entropy_with_grad(shifted, labels, reduction="sum")
    unit = 64 * (EPS if dtype == np.float64 or name == "reference" else 2.0**-23)
    close(loss, expected, unit * (1 + abs(expected)), "loss")
    close(gradient, expected_gradient, unit * (np.abs(expected_gradient) + 1) + 1e-37, "gradient")


# --- sums, equalities, symmetries ------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", IMPLEMENTATIONS)
@given(o=batches((1, 70), 8.0), penalty=st.sampled_from([0.0, 0.25, 2.0]), smoothing=st.sampled_from([0.0, 0.3]))
def test_rows_of_the_gradient_sum_to_the_penalty(name: str, o: np.ndarray, penalty: float, smoothing: float) -> None:
    labels = np.arange(len(o)) % o.shape[1]
    options = {"z_loss": penalty, "label_smoothing": smoothing, "reduction": "none"}
    with implementation(name) as m:
        gradient = m.cross_entropy_with_grad(o, labels, **options)[1]
        lse = m.logsumexp(o)
    np.testing.assert_allclose(gradient.sum(axis=1), 2 * penalty * lse, rtol=0, atol=1e-13 * (1 + penalty * 40))


@pytest.mark.parametrize("name", IMPLEMENTATIONS)
@given(
    rows=st.integers(1, 4),
    columns=st.integers(1, 5000),
    level=st.sampled_from([0.0, 1.0, -1e30, 1e30, 3e38]),
    dtype=st.sampled_from([np.float32, np.float64]),
)
def test_equal_logits_give_log_v(name: str, rows: int, columns: int, level: float, dtype: Any) -> None:
    o = np.full((rows, columns), level, dtype=dtype)
    labels = np.full(rows, columns - 1)
    unit = 1e-14 if dtype == np.float64 or name == "reference" else 1e-6
    with implementation(name) as m:
        loss, gradient = m.cross_entropy_with_grad(o, labels, reduction="none")
        s, ls = m.softmax(o), m.log_softmax(o)
    close(loss, np.full(rows, np.log(columns)), unit * (1 + np.log(columns)), "loss")
    close(s, np.full(o.shape, 1 / columns), unit / columns, "softmax")
    close(ls, np.full(o.shape, -np.log(columns)), unit * (1 + np.log(columns)), "log_softmax")
    close(gradient, 1 / columns - (np.arange(columns) == columns - 1) * np.ones((rows, 1)), unit, "gradient")


@pytest.mark.parametrize("name", IMPLEMENTATIONS)
@given(problem=problems(), seed=st.integers(0, 99))
def test_permutation_of_classes(name: str, problem: Any, seed: int) -> None:
    o, labels, options = problem
    order = np.random.default_rng(seed).permutation(o.shape[1])
    place = np.argsort(order)
    permuted = {**options}
    if "class_weight" in options:
        permuted["class_weight"] = options["class_weight"][order]
    with implementation(name) as m:
        loss, gradient = m.cross_entropy_with_grad(o, labels, **options)
        loss_p, gradient_p = m.cross_entropy_with_grad(np.ascontiguousarray(o[:, order]), place[labels], **permuted)
        stats, stats_p = m.prediction_stats(o, labels), m.prediction_stats(o[:, order], place[labels])
    close(loss_p, loss, 1e-12 * (1 + np.abs(loss)), "loss")
    close(gradient_p, gradient[:, order], 1e-12 * (1 + np.abs(gradient).max()), "gradient")
    rank, rank_p = (s["rank"] if isinstance(s, dict) else s.rank for s in (stats, stats_p))
    np.testing.assert_array_equal(rank, rank_p)


@pytest.mark.parametrize("name", IMPLEMENTATIONS)
@given(
    margin=hnp.arrays(np.float64, 6, elements=st.floats(-700, 700)), base=st.sampled_from([0.0, 3.0, -1e4])
)  # fmt: skip
def test_two_classes_equal_the_binomial(name: str, margin: np.ndarray, base: float) -> None:
    """softmax([0, z]) is the logistic function of z: loss log(1 + e^z) − t z, gradient σ(z) − t."""
    margin = (margin + base) - base  # the margin that survives the rounding of the logits
    o = np.stack([np.full(6, base), margin + base], axis=1)
    t = np.array([0, 1, 0, 1, 0, 1])
    with implementation(name) as m:
        loss, gradient = m.cross_entropy_with_grad(o, t, reduction="none")
    z = np.where(t == 1, -margin, margin)  # log(1 + e^z) for either label
    # log(s) − (x_y − m) has the absolute error of log(1 + …): a loss of 1e-20 reads 0
    np.testing.assert_allclose(loss, np.logaddexp(0.0, z), rtol=1e-14, atol=4e-16)
    sigma = np.exp(-np.logaddexp(0.0, -margin))
    np.testing.assert_allclose(gradient[:, 1], sigma - t, rtol=1e-12, atol=4e-16)
    np.testing.assert_allclose(gradient[:, 0], t - sigma, rtol=1e-12, atol=4e-16)


@pytest.mark.parametrize("name", IMPLEMENTATIONS)
@given(o=batches((2, 40), 8.0), shift=st.sampled_from([1.0, -64.0, 1024.0]))
def test_shift_invariance(name: str, o: np.ndarray, shift: float) -> None:
    o = (o + shift) - shift  # values that the shift does not round
    assume(np.array_equal((o + shift) - shift, o))
    labels = np.arange(len(o)) % o.shape[1]
    with implementation(name) as m:
        loss, gradient = m.cross_entropy_with_grad(o, labels)
        moved, moved_gradient = m.cross_entropy_with_grad(o + shift, labels)
        assert loss == moved  # only differences are read: the same bits
        np.testing.assert_array_equal(gradient, moved_gradient)
        np.testing.assert_array_equal(m.softmax(o), m.softmax(o + shift))
        np.testing.assert_allclose(m.logsumexp(o + shift), m.logsumexp(o) + shift, rtol=1e-14, atol=1e-12)


# --- weights ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", IMPLEMENTATIONS)
@given(problem=problems(), seed=st.integers(0, 99))
def test_integer_sample_weights_equal_repetition(name: str, problem: Any, seed: int) -> None:
    o, labels, options = problem
    times = np.random.default_rng(seed).integers(0, 4, size=len(o))
    times[0] += 1
    options = {k: v for k, v in options.items() if k != "sample_weight"}
    if options["reduction"] == "none":
        options["reduction"] = "sum"
    repeated = np.repeat(o, times, axis=0)
    with implementation(name) as m:
        loss, gradient = m.cross_entropy_with_grad(o, labels, sample_weight=times.astype(float), **options)
        loss_r, gradient_r = m.cross_entropy_with_grad(repeated, np.repeat(labels, times), **options)
    close(loss, loss_r, 1e-12 * (1 + np.abs(loss_r)), "loss")
    total = np.zeros_like(gradient)
    np.add.at(total, np.repeat(np.arange(len(o)), times), gradient_r)
    close(gradient, total, 1e-12 * (1 + np.abs(total).max()), "gradient")


@pytest.mark.parametrize("name", IMPLEMENTATIONS)
@given(problem=problems())
def test_class_weights_equal_row_weights(name: str, problem: Any) -> None:
    o, labels, options = problem
    weight = np.linspace(0.25, 3.0, o.shape[1])
    options = {**options, "label_smoothing": 0.0, "z_loss": 0.0}
    options = {k: v for k, v in options.items() if not k.endswith("_weight")}
    with implementation(name) as m:
        loss, gradient = m.cross_entropy_with_grad(o, labels, class_weight=weight, **options)
        loss_r, gradient_r = m.cross_entropy_with_grad(o, labels, sample_weight=weight[labels], **options)
    close(loss, loss_r, 1e-12 * (1 + np.abs(loss_r)), "loss")
    close(gradient, gradient_r, 1e-13 * (1 + np.abs(gradient_r).max()), "gradient")


@pytest.mark.parametrize("name", IMPLEMENTATIONS)
@given(problem=problems())
def test_sum_is_the_sum_of_none_and_mean_its_quotient(name: str, problem: Any) -> None:
    o, labels, options = problem
    a = options.get("sample_weight", np.ones(len(o)))
    w = options.get("class_weight", np.ones(o.shape[1]))
    options = {**options, "z_loss": 0.0}
    with implementation(name) as m:
        (none, g_none), (total, g_sum), (mean, g_mean) = (
            m.cross_entropy_with_grad(o, labels, **{**options, "reduction": r}) for r in ("none", "sum", "mean")
        )
        assert none.shape == (len(o),)
        assert float(m.cross_entropy(o, labels, **{**options, "reduction": "mean"})) == float(mean)
    close(total, none.sum(), 1e-13 * (1 + np.abs(none).sum()), "sum")
    np.testing.assert_array_equal(g_none, g_sum)
    divisor = (a * w[labels]).sum()
    close(mean, none.sum() / divisor, 1e-13 * (1 + np.abs(none).sum() / divisor), "mean")
    close(g_mean, g_none / divisor, 1e-13 * (1 + np.abs(g_none).max()) / divisor, "mean's gradient")


# --- curvature -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", IMPLEMENTATIONS)
@given(problem=problems(), seed=st.integers(0, 99))
def test_hessian_is_symmetric_linear_and_the_slope_of_the_gradient(name: str, problem: Any, seed: int) -> None:
    o, labels, options = problem
    random = np.random.default_rng(seed)
    u, v = random.normal(size=(2, *o.shape))
    with implementation(name) as m:
        hu, hv = (m.cross_entropy_hvp(o, labels, x, **options) for x in (u, v))
        both = m.cross_entropy_hvp(o, labels, 2 * u - 3 * v, **options)
        h = 1e-5
        ahead, behind = (m.cross_entropy_with_grad(o + d * v, labels, **options)[1] for d in (h, -h))
    size = 1 + max(np.abs(hu).max(), np.abs(hv).max())
    close((u * hv).sum(axis=1), (v * hu).sum(axis=1), 1e-12 * size * o.shape[1], "symmetry")
    close(both, 2 * hu - 3 * hv, 1e-12 * size, "linearity")
    close((ahead - behind) / (2 * h), hv, 2e-6 * size, "slope of the gradient")


@pytest.mark.parametrize("name", IMPLEMENTATIONS)
@given(o=batches((1, 40), 8.0))
def test_hessian_of_the_plain_loss_is_positive_semidefinite_and_blind_to_shifts(name: str, o: np.ndarray) -> None:
    labels = np.zeros(len(o), dtype=np.int64)
    v = np.random.default_rng(3).normal(size=o.shape)
    with implementation(name) as m:
        hv = m.cross_entropy_hvp(o, labels, v, reduction="sum")
        h1 = m.cross_entropy_hvp(o, labels, np.ones_like(o), reduction="sum")
        jv = m.softmax_jvp(o, v)
        jacobian = m.softmax_jacobian(o)
    assert ((v * hv).sum(axis=1) >= -1e-14).all()
    close(h1, np.zeros_like(o), 1e-14, "H 1 = 0")
    close(hv, jv, 2e-15, "the Hessian is the Jacobian")
    close(jv, np.einsum("nij,nj->ni", jacobian, v), 1e-14, "J v")


# --- merging columns -------------------------------------------------------------------------------------------------


@given(
    o=batches((2, 60), 200.0),
    cuts=st.lists(st.integers(1, 59), max_size=5),
    masked=st.integers(0, 59),
    order=st.randoms(use_true_random=False),
)
def test_merging_any_split_of_columns_equals_the_whole(o: np.ndarray, cuts: list[int], masked: int, order: Any) -> None:
    columns = o.shape[1]
    o[:, : min(masked, columns - 1)] = -np.inf  # whole tiles may be masked, the first above all
    y = np.random.default_rng(columns).random(o.shape) * (o > -np.inf)
    edges = sorted({0, columns, *(c for c in cuts if c < columns)})
    parts = [reference.row_statistics(o[:, a:b], y[:, a:b]) for a, b in itertools.pairwise(edges)]
    whole = reference.row_statistics(o, y)
    while len(parts) > 1:  # in any order: associative and commutative
        a = parts.pop(order.randrange(len(parts)))
        b = parts.pop(order.randrange(len(parts)))
        parts.append(reference.merge_statistics(a, b))
    for field in ("maximum", "sumexp", "mass", "dot", "moment"):
        expected = getattr(whole, field)
        close(getattr(parts[0], field), expected, 1e-12 * (1 + np.abs(expected)), field)
    close(parts[0].log_sum, whole.log_sum, 1e-12 * whole.log_sum, "log_sum")  # near 0 as well


def native_head(o: np.ndarray, labels: np.ndarray, options: dict[str, Any]) -> Any:
    kernels = backend.kernels()
    names = ("label_smoothing", "logit_scale", "temperature", "z_loss")
    record = kernels.Options(softcap=options["softcap"] or 0.0, **{name: options[name] for name in names})
    targets = kernels.Targets(kernels.TargetKind.labels, labels)
    weights = options.get("class_weight"), options.get("sample_weight")
    head = kernels.Head(o, kernels.Storage.float64, targets, record, *weights)
    assert head.settle(mean=False).bad_row == -1
    return head


@pytest.mark.parametrize("name", NATIVE)
@given(
    problem=problems((2, 70)),
    cuts=st.lists(st.integers(1, 69), max_size=5),
    masked=st.integers(0, 69),
)
def test_merging_native_statistics_equals_the_whole(name: str, problem: Any, cuts: list[int], masked: int) -> None:
    o, labels, options = problem
    rows, columns = o.shape
    o[:, : min(masked, columns - 1)] = -np.inf * np.sign(options["logit_scale"])
    labels[:] = np.maximum(labels, min(masked, columns - 1))
    if masked:
        options["label_smoothing"] = 0.0  # a masked class with a share has the loss +inf
    edges = sorted({0, columns, *(c for c in cuts if c < columns)})
    with backend.use(name):
        fields = np.dtype(backend.kernels().statistics_fields())
        assert backend.kernels().statistics_size == fields.itemsize
        head = native_head(o, labels, options)
        whole, merged, part = (np.zeros(rows, dtype=fields) for _ in range(3))
        head.statistics(0, rows, 0, columns, True, whole)
        for k, (a, b) in enumerate(itertools.pairwise(edges)):
            into = merged if k == 0 else part
            head.statistics(0, rows, a, b, True, into)
            if k:
                head.merge(merged, part)
    for record in (whole, merged):  # parts with equal peaks count them
        record["rest"] += record["at_peak"] - 1
    for field in fields.names:
        if field == "at_peak":
            continue
        if field in ("peak", "best", "argmax", "rank", "finite"):
            np.testing.assert_array_equal(merged[field], whole[field], err_msg=field)
        else:
            close(merged[field], whole[field], 1e-13 * (1 + np.abs(whole[field])), field)
    # and the whole is what the specification says
    p = reference._problem(o, labels, **options)[0]
    stats = reference.row_statistics(p.u, p.wy)
    weightless = p.keep
    others = stats.rest + (stats.at_peak - 1)
    close(whole["rest"][weightless], others[weightless], 1e-13 * others[weightless], "rest")


@pytest.mark.parametrize("name", EACH_INSTRUCTION_SET)
@given(problem=problems((1, 70)))
def test_any_mixture_of_options_agrees_with_the_reference(name: str, problem: Any) -> None:
    o, labels, options = problem
    with backend.use(name):
        loss, gradient = softgrad.cross_entropy_with_grad(o, labels, **options)
    check_loss(loss, o, labels, "float64", **options)
    check_gradient(gradient, o, labels, "float64", **options)
