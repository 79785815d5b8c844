"""Every row of the edge-case table, in every function that it concerns, on every instruction set.

Each case stands in the second of five rows; `others` checks that the other rows do not notice.
"""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import pytest
from cases import DTYPES

import softgrad
from softgrad import reference

pytestmark = pytest.mark.usefixtures("instruction_set")

INF, NAN = math.inf, math.nan
ROW = 1  # where the case stands
# narrow: the lanes of a vector are rows; one tile; several tiles; more than one panel, split by columns
WIDTHS = (4, 32, 33, 2500, 70_000)
each_dtype = pytest.mark.parametrize("dtype", DTYPES)
each_width = pytest.mark.parametrize("columns", WIDTHS)
each_shape = pytest.mark.parametrize(
    ("columns", "dtype"),
    [(columns, "float32") for columns in WIDTHS]
    + [(columns, dtype) for columns in (4, 33, 2500) for dtype in DTYPES if dtype != "float32"],
)


def batch(columns: int, dtype: str = "float32") -> np.ndarray:
    random = np.random.default_rng(columns)
    rows = 5 if columns < 10_000 else 3
    return random.normal(size=(rows, columns)).astype(DTYPES[dtype])


def labels_for(o: np.ndarray) -> np.ndarray:
    return (np.arange(len(o)) * 3) % o.shape[1]


def both(o: Any, y: Any, **options: Any) -> tuple[np.ndarray, np.ndarray]:
    """Row losses and gradient as float64, from one call each, which must agree."""
    loss, gradient = softgrad.cross_entropy_with_grad(o, y, reduction="none", **options)
    np.testing.assert_array_equal(softgrad.cross_entropy(o, y, reduction="none", **options), loss)
    return np.asarray(loss, dtype=np.float64), gradient.astype(np.float64)


def others(got: np.ndarray, clean: np.ndarray) -> None:
    """All rows but the case's, bit for bit."""
    keep = np.arange(len(got)) != ROW
    np.testing.assert_array_equal(got[keep], clean[keep])
    assert np.isfinite(clean[keep].astype(np.float64)).all()


# --- a row that has no softmax ---------------------------------------------------------------------------------------


def spoil(o: np.ndarray, how: str) -> np.ndarray:
    bad = o.copy()
    if how == "all masked":
        bad[ROW] = -INF
    elif how == "nan first":
        bad[ROW, 0] = NAN
    elif how == "nan last":
        bad[ROW, -1] = NAN
    elif how == "all nan":
        bad[ROW] = NAN
    elif how == "+inf first":
        bad[ROW, 0] = INF
    elif how == "+inf last":
        bad[ROW, -1] = INF
    elif how == "two +inf":
        bad[ROW, [0, -1]] = INF
    else:
        bad[ROW] = -INF
        bad[ROW, -1] = INF
    return bad


SPOILED = ("all masked", "nan first", "nan last", "all nan", "+inf first", "+inf last", "two +inf", "+inf and -inf")


@each_shape
@pytest.mark.parametrize("how", SPOILED)
def test_a_row_without_a_softmax_is_nan_and_no_other(how: str, columns: int, dtype: str) -> None:
    clean = batch(columns, dtype)
    bad, labels = spoil(clean, how), labels_for(clean)
    soft = np.full(clean.shape, 1 / columns, dtype=np.float32)
    top = (labels[:, None], np.ones((len(labels), 1)))
    variants: tuple[dict[str, Any], ...] = ({}, {"softcap": 5.0}, {"z_loss": 0.1, "temperature": 2.0})
    for options in variants if columns < 10_000 else variants[:2]:
        for y in (labels, soft, top):
            loss, gradient = both(bad, y, **options)
            clean_loss, clean_gradient = both(clean, y, **options)
            assert np.isnan(loss[ROW]), options
            assert np.isnan(gradient[ROW]).all(), options
            others(loss, clean_loss)
            others(gradient, clean_gradient)
            v = np.ones_like(clean)
            v[:, 0] = 2
            product = softgrad.cross_entropy_hvp(bad, y, v, reduction="sum", **options)
            assert np.isnan(product[ROW].astype(float)).all()
            others(product, softgrad.cross_entropy_hvp(clean, y, v, reduction="sum", **options))
        transform = {k: x for k, x in options.items() if k != "z_loss"}
        for f in (softgrad.softmax, softgrad.log_softmax, softgrad.logsumexp):
            got = f(bad, **transform)
            assert np.isnan(got[ROW].astype(float)).all(), (f, transform)
            others(got, f(clean, **transform))
        stats, clean_stats = (softgrad.prediction_stats(x, labels, **transform) for x in (bad, clean))
        assert np.isnan([stats.lse[ROW], stats.log_prob[ROW], stats.entropy[ROW]]).all()
        assert stats.argmax[ROW] == -1
        assert stats.rank[ROW] == -1
        for a, b in zip(stats, clean_stats, strict=True):
            others(a, b)
    total = softgrad.cross_entropy(bad, labels)
    assert np.isnan(total)


@pytest.mark.parametrize("how", SPOILED)
def test_jacobian_and_jvp_of_a_spoiled_row(how: str) -> None:
    clean = batch(6, "float64")
    bad = spoil(clean, how)
    for got, expected in (
        (softgrad.softmax_jacobian(bad), softgrad.softmax_jacobian(clean)),
        (softgrad.softmax_jvp(bad, clean), softgrad.softmax_jvp(clean, clean)),
    ):
        assert np.isnan(got[ROW]).all()
        others(got, expected)


@pytest.mark.parametrize("how", SPOILED)
def test_linear_head_with_a_spoiled_row(how: str) -> None:
    """One-hot weights make the logits x itself: the row's loss and input gradient are NaN, no other row's are."""
    clean = batch(5, "float64")
    bias = np.zeros(5)
    x = np.concatenate([clean, np.zeros((5, 1))], axis=1)
    weight = np.concatenate([np.eye(5), np.zeros((5, 1))], axis=1)
    poisoned = x.copy()
    poisoned[ROW, 5] = NAN  # 0·NaN makes the row NaN, whichever way it is spoiled
    del how
    y = labels_for(clean)
    loss, gradients = softgrad.linear_cross_entropy_with_grad(
        poisoned, weight, y, bias=bias, reduction="none", with_respect_to=("x",)
    )
    expected, clean_gradients = softgrad.linear_cross_entropy_with_grad(
        x, weight, y, bias=bias, reduction="none", with_respect_to=("x",)
    )
    assert np.isnan(loss[ROW])
    assert np.isnan(gradients.x[ROW]).all()
    others(loss, expected)
    others(gradients.x, clean_gradients.x)


# --- masked classes --------------------------------------------------------------------------------------------------


@each_shape
@pytest.mark.parametrize("mask", ["first half", "last half", "all but the label", "every other"])
def test_masked_classes_have_probability_and_gradient_zero(mask: str, columns: int, dtype: str) -> None:
    o = batch(columns, dtype)
    labels = labels_for(o)
    half = columns // 2
    closed = np.zeros(o.shape, dtype=bool)
    if mask == "first half":
        closed[ROW, :half] = True  # a whole first tile, or panel
    elif mask == "last half":
        closed[ROW, half:] = True
    elif mask == "all but the label":
        closed[ROW] = True
    else:
        closed[ROW, ::2] = True
    labels[ROW] = half if mask == "first half" else 1 if mask == "every other" else 0
    closed[ROW, labels[ROW]] = False
    o[closed] = -INF
    dense = (np.arange(columns) == labels[:, None]).astype(np.float32)  # 0 where masked: 0·∞ counts as 0
    open_ = ~closed[ROW]
    expected, expected_gradient = reference.cross_entropy_with_grad(
        o[ROW : ROW + 1, open_], np.array([np.flatnonzero(open_).tolist().index(labels[ROW])]), reduction="none"
    )
    for y in (labels, dense, (labels[:, None], np.ones((len(o), 1)))):
        loss, gradient = both(o, y)
        assert loss[ROW] == pytest.approx(expected[0], rel=1e-6, abs=1e-6)
        np.testing.assert_array_equal(gradient[closed], 0.0)
        np.testing.assert_allclose(gradient[ROW, open_], expected_gradient[0], rtol=1e-2, atol=1e-6)
        assert np.isfinite(gradient).all()
        product = softgrad.cross_entropy_hvp(o, y, np.ones_like(o), reduction="sum").astype(float)
        np.testing.assert_array_equal(product[closed], 0.0)
        assert np.isfinite(product).all()
    np.testing.assert_array_equal(softgrad.softmax(o)[closed].astype(float), 0.0)
    np.testing.assert_array_equal(softgrad.log_softmax(o)[closed].astype(float), -INF)
    assert np.isfinite(softgrad.logsumexp(o)).all()
    stats = softgrad.prediction_stats(o, labels)
    assert all(np.isfinite(s).all() for s in stats)
    if mask == "all but the label":
        assert loss[ROW] == 0
        assert stats.entropy[ROW] == 0
        assert (stats.argmax[ROW], stats.rank[ROW]) == (labels[ROW], 0)
        np.testing.assert_array_equal(gradient[ROW], 0.0)


@each_shape
def test_masked_logit_stays_masked_under_a_softcap(columns: int, dtype: str) -> None:
    """−inf stays −inf, not −c: probability exactly 0, although c·tanh(−∞/c) = −c has one of its own."""
    o = batch(columns, dtype)
    o[ROW, : columns // 2] = -INF
    labels = labels_for(o)
    labels[ROW] = columns - 1
    for cap in (0.5, 30.0):
        s = softgrad.softmax(o, softcap=cap).astype(float)
        np.testing.assert_array_equal(s[ROW, : columns // 2], 0.0)
        assert s.sum(axis=1) == pytest.approx(1.0, rel=0.02)
        loss, gradient = both(o, labels, softcap=cap, temperature=0.5)
        expected, expected_gradient = reference.cross_entropy_with_grad(
            o, labels, softcap=cap, temperature=0.5, reduction="none"
        )
        np.testing.assert_allclose(loss, expected, rtol=1e-5)
        np.testing.assert_allclose(gradient, expected_gradient, rtol=2e-2, atol=1e-4)
        np.testing.assert_array_equal(gradient[ROW, : columns // 2], 0.0)
        product = softgrad.cross_entropy_hvp(o, labels, np.ones_like(o), softcap=cap, reduction="sum").astype(float)
        np.testing.assert_array_equal(product[ROW, : columns // 2], 0.0)
        assert np.isfinite(product).all()


@each_width
def test_masked_under_a_negative_scale_is_plus_infinity(columns: int) -> None:
    """u = s·o decides: with s < 0 a logit of +inf is masked, and one of −inf spoils its row."""
    o = batch(columns)
    labels = labels_for(o)
    labels[ROW] = columns - 1
    o[ROW, : columns // 2] = INF
    for cap in (None, 4.0):
        loss, gradient = both(o, labels, logit_scale=-2.0, softcap=cap)
        expected, expected_gradient = reference.cross_entropy_with_grad(
            o, labels, logit_scale=-2.0, softcap=cap, reduction="none"
        )
        assert np.isfinite(loss).all()
        np.testing.assert_allclose(loss, expected, rtol=1e-5)
        np.testing.assert_allclose(gradient, expected_gradient, rtol=1e-4, atol=1e-5)
        np.testing.assert_array_equal(softgrad.softmax(o, logit_scale=-2.0, softcap=cap)[ROW, : columns // 2], 0.0)
        assert np.isnan(both(-o, labels, logit_scale=-2.0, softcap=cap)[0][ROW])


@each_shape
def test_label_smoothing_on_a_masked_class(columns: int, dtype: str) -> None:
    """Loss +inf as in PyTorch, with a finite gradient S − y'; `smooth_finite_only` spreads ε over the open classes."""
    import torch

    o = batch(columns, dtype)
    labels = labels_for(o)
    o[ROW, 0] = -INF
    labels[ROW] = 2
    soft = (np.arange(columns) == labels[:, None]).astype(np.float32)
    torch_loss = torch.nn.functional.cross_entropy(
        torch.from_numpy(o.astype(np.float64)), torch.from_numpy(labels), label_smoothing=0.1, reduction="none"
    ).numpy()
    assert torch_loss[ROW] == INF
    for y in (labels, soft):
        loss, gradient = both(o, y, label_smoothing=0.1)
        np.testing.assert_allclose(loss, torch_loss, rtol=1e-5)
        assert np.isfinite(gradient).all()
        assert gradient[ROW, 0] == pytest.approx(-0.1 / columns, rel=1e-2)
        assert softgrad.cross_entropy(o, y, label_smoothing=0.1, reduction="sum") == INF

        loss, gradient = both(o, y, label_smoothing=0.1, smooth_finite_only=True)
        assert np.isfinite(loss).all()
        assert gradient[ROW, 0] == 0
        open_loss, open_gradient = reference.cross_entropy_with_grad(
            o[ROW : ROW + 1, 1:], labels[ROW : ROW + 1] - 1, label_smoothing=0.1, reduction="none"
        )
        assert loss[ROW] == pytest.approx(open_loss[0], rel=1e-5)  # the loss of the row without its masked class
        np.testing.assert_allclose(gradient[ROW, 1:], open_gradient[0], rtol=1e-2, atol=1e-6)


@each_width
def test_all_the_weight_on_smoothing(columns: int) -> None:
    """ε = 1 forgets the targets, even a masked one."""
    o = batch(columns)
    labels = labels_for(o)
    expected = both(o, labels, label_smoothing=1.0)
    for a, b in zip(expected, both(o, labels[::-1].copy(), label_smoothing=1.0), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-8)
    o[ROW, labels[ROW]] = -INF
    loss, gradient = both(o, labels, label_smoothing=1.0, smooth_finite_only=True)
    assert np.isfinite(loss).all()
    assert gradient[ROW, labels[ROW]] == 0


@each_shape
def test_masked_target_has_infinite_loss_and_a_finite_gradient(columns: int, dtype: str) -> None:
    o = batch(columns, dtype)
    labels = labels_for(o)
    o[ROW, labels[ROW]] = -INF
    dense = (np.arange(columns) == labels[:, None]).astype(np.float32)
    for y, options in itertools.product(
        (labels, dense, (labels[:, None], np.ones((len(o), 1), dtype=np.float32))), ({}, {"z_loss": 0.1})
    ):
        loss, gradient = both(o, y, **options)
        assert loss[ROW] == INF
        assert np.isfinite(np.delete(loss, ROW)).all()
        assert np.isfinite(gradient).all()
        assert gradient[ROW, labels[ROW]] == -1
        expected = reference.cross_entropy_with_grad(o, y, reduction="none", **options)[1]
        np.testing.assert_allclose(gradient, expected, rtol=1e-2, atol=1e-5)
        assert softgrad.cross_entropy(o, y, reduction="mean", **options) == INF
    stats = softgrad.prediction_stats(o, labels)
    assert stats.log_prob[ROW] == -INF
    assert stats.rank[ROW] == columns - 1
    assert np.isfinite(stats.entropy).all()


# --- ignored rows, empty means ---------------------------------------------------------------------------------------


@each_shape
@pytest.mark.parametrize("content", ["ordinary", "all masked", "nan first", "all nan", "+inf last", "two +inf"])
def test_ignored_row_is_exactly_zero_whatever_it_holds(content: str, columns: int, dtype: str) -> None:
    clean = batch(columns, dtype)
    labels = labels_for(clean)
    o = clean if content == "ordinary" else spoil(clean, content)
    ignored = labels.copy()
    ignored[ROW] = -100
    weights = np.ones(len(o))
    weights[ROW] = 0.0
    for options in ({}, {"label_smoothing": 0.1}, {"z_loss": 0.1, "softcap": 5.0}, {"class_weight": np.ones(columns)}):
        for y, how in ((ignored, {"ignore_index": -100}), (labels, {"sample_weight": weights})):
            loss, gradient = both(o, y, **how, **options)
            assert loss[ROW] == 0
            assert not np.signbit(loss[ROW])
            np.testing.assert_array_equal(gradient[ROW], 0.0)
            clean_loss, clean_gradient = both(clean, labels, **options)
            others(loss, clean_loss)
            others(gradient, clean_gradient)
            mean, mean_gradient = softgrad.cross_entropy_with_grad(o, y, **how, **options)
            keep = np.arange(len(o)) != ROW
            assert mean == pytest.approx(float(softgrad.cross_entropy(clean[keep], labels[keep], **options)), rel=1e-6)
            np.testing.assert_array_equal(mean_gradient[ROW].astype(float), 0.0)
            product = softgrad.cross_entropy_hvp(o, y, np.ones_like(o), **how, **options)
            np.testing.assert_array_equal(product[ROW].astype(float), 0.0)
            assert np.isfinite(product.astype(float)).all()
    stats = softgrad.prediction_stats(o, ignored, ignore_index=-100)
    assert np.isnan([stats.lse[ROW], stats.log_prob[ROW], stats.entropy[ROW]]).all()
    assert (stats.argmax[ROW], stats.rank[ROW]) == (-1, -1)
    for a, b in zip(stats, softgrad.prediction_stats(clean, labels), strict=True):
        others(a, b)


@each_dtype
@pytest.mark.parametrize(
    "how", ["ignore_index", "sample_weight", "class weights of zero", "weights that cancel", "empty"]
)
def test_mean_over_nothing_is_nan_with_a_gradient_of_exactly_zero(how: str, dtype: str) -> None:
    for columns in (4, 40, 2500):
        o = batch(columns, dtype)
        if how != "empty":
            o[ROW] = NAN  # even then
        labels, options = labels_for(o), {}
        if how == "ignore_index":
            labels[:] = -100
            options = {"ignore_index": -100}
        elif how == "sample_weight":
            options = {"sample_weight": np.zeros(5)}
        elif how == "class weights of zero":
            weight = np.ones(columns)
            weight[labels] = 0.0
            options = {"class_weight": weight}
        elif how == "weights that cancel":
            options = {"sample_weight": [1.0, -1.0, 2.0, -2.0, 0.0]}
        else:
            o, labels = o[:0], labels[:0]
        for more in ({}, {"z_loss": 0.1}, {"label_smoothing": 0.1}):
            loss, gradient = softgrad.cross_entropy_with_grad(o, labels, **options, **more)
            assert np.isnan(loss)
            assert np.isnan(softgrad.cross_entropy(o, labels, **options, **more))
            assert gradient.shape == o.shape
            np.testing.assert_array_equal(gradient.astype(float), 0.0)
            product = softgrad.cross_entropy_hvp(o, labels, np.ones_like(o), **options, **more)
            np.testing.assert_array_equal(product.astype(float), 0.0)
            out = np.full_like(o, 7)
            softgrad.cross_entropy_with_grad(o, labels, out=out, **options, **more)
            np.testing.assert_array_equal(out.astype(float), 0.0)


@each_dtype
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_empty_batch(reduction: str, dtype: str) -> None:
    for columns in (1, 3, 40, 3000):
        o = np.zeros((0, columns), dtype=DTYPES[dtype])
        empty_top = (np.zeros((0, 2), dtype=int), np.zeros((0, 2)))
        for y in (np.zeros(0, dtype=int), np.zeros((0, columns)), empty_top):
            loss, gradient = softgrad.cross_entropy_with_grad(o, y, reduction=reduction)
            assert gradient.shape == (0, columns)
            if reduction == "none":
                assert loss.shape == (0,)
            else:
                assert loss == 0 if reduction == "sum" else np.isnan(loss)
            assert softgrad.cross_entropy_hvp(o, y, o, reduction=reduction).shape == (0, columns)
        assert softgrad.softmax(o).shape == (0, columns)
        assert softgrad.log_softmax(o).shape == (0, columns)
        assert softgrad.logsumexp(o).shape == (0,)
        assert softgrad.prediction_stats(o, np.zeros(0, dtype=int)).rank.shape == (0,)
        assert softgrad.softmax_jvp(o, o).shape == (0, columns)


def test_empty_batch_of_the_linear_head() -> None:
    x, weight, bias, y = np.zeros((0, 3)), np.ones((4, 3)), np.ones(4), np.zeros(0, dtype=int)
    for reduction, expected in (("sum", 0.0), ("mean", NAN)):
        loss, gradients = softgrad.linear_cross_entropy_with_grad(x, weight, y, bias=bias, reduction=reduction)
        np.testing.assert_equal(float(loss), expected)
        assert gradients.x.shape == (0, 3)
        np.testing.assert_array_equal(gradients.weight, np.zeros((4, 3)))
        np.testing.assert_array_equal(gradients.bias, np.zeros(4))


@pytest.mark.parametrize("how", ["ignore_index", "sample_weight"])
def test_mean_over_nothing_in_the_linear_head(how: str) -> None:
    random = np.random.default_rng(2)
    x, weight, y = random.normal(size=(5, 3)), random.normal(size=(4, 3)), np.array([0, 1, 2, 3, 0])
    options: dict[str, Any] = {"sample_weight": np.zeros(5)}
    if how == "ignore_index":
        y[:], options = -1, {"ignore_index": -1}
    loss, gradients = softgrad.linear_cross_entropy_with_grad(x, weight, y, bias=np.zeros(4), **options)
    assert np.isnan(loss)
    for g in gradients:
        np.testing.assert_array_equal(g, np.zeros_like(g))


# --- one class, one row, ties, extremes ------------------------------------------------------------------------------


@each_dtype
def test_one_class(dtype: str) -> None:
    """V = 1: probability 1, loss 0 (plus the z-loss), gradient 0."""
    o = np.array([[3.0], [-200.0], [0.0]], dtype=DTYPES[dtype])
    for y in (
        np.zeros(3, dtype=int),
        np.ones((3, 1), dtype=np.float32),
        (np.zeros((3, 2), dtype=int), np.full((3, 2), 0.5)),
    ):
        loss, gradient = both(o, y)
        np.testing.assert_array_equal(loss, 0.0)
        np.testing.assert_array_equal(gradient, 0.0)
        loss, gradient = both(o, y, z_loss=0.5)
        np.testing.assert_allclose(loss, 0.5 * o[:, 0].astype(float) ** 2, rtol=1e-6)
        np.testing.assert_allclose(gradient, o.astype(float), rtol=1e-2)
    np.testing.assert_array_equal(softgrad.softmax(o).astype(float), 1.0)
    np.testing.assert_array_equal(softgrad.log_softmax(o).astype(float), 0.0)
    np.testing.assert_array_equal(softgrad.logsumexp(o).astype(float), o[:, 0].astype(float))
    stats = softgrad.prediction_stats(o, [0, 0, 0])
    np.testing.assert_array_equal(stats.entropy, 0.0)
    np.testing.assert_array_equal(stats.rank, 0)


@each_dtype
@pytest.mark.parametrize("columns_", [1, 2, 10, 33, 2500])
def test_one_row_equals_its_row_in_a_batch(columns_: int, dtype: str) -> None:
    o = batch(columns_, dtype)
    labels = labels_for(o)
    loss, gradient = both(o, labels)
    for i in range(len(o)):
        alone, alone_gradient = softgrad.cross_entropy_with_grad(o[i], labels[i], reduction="sum")
        assert np.shape(alone) == ()
        assert alone_gradient.shape == (columns_,)
        assert float(alone) == loss[i]
        np.testing.assert_array_equal(alone_gradient.astype(float), gradient[i])


@each_shape
def test_argmax_takes_the_first_of_ties_and_rank_counts_strictly_larger(columns: int, dtype: str) -> None:
    o = np.zeros((3, columns), dtype=DTYPES[dtype])
    o[0, [1, columns - 1]] = 2  # the two ends: other tiles, other panels
    o[1, [2, 3]] = 5
    labels = np.array([columns - 1, 1, columns // 2])
    for options in ({}, {"softcap": 1.0}, {"temperature": 3.0}):
        stats = softgrad.prediction_stats(o, labels, **options)
        np.testing.assert_array_equal(stats.argmax, [1, 2, 0])
        np.testing.assert_array_equal(stats.rank, [0, 2, 0])
    stats = softgrad.prediction_stats(-o, labels, logit_scale=-1.0)
    np.testing.assert_array_equal(stats.argmax, [1, 2, 0])
    np.testing.assert_array_equal(stats.rank, [0, 2, 0])


@each_width
def test_rank_without_labels(columns: int) -> None:
    o = batch(columns)
    soft = np.full(o.shape, 1 / columns, dtype=np.float32)
    for y in (None, soft):
        stats = softgrad.prediction_stats(o, y)
        np.testing.assert_array_equal(stats.rank, -1)
        np.testing.assert_array_equal(stats.argmax, o.argmax(axis=1))
        assert np.isnan(stats.log_prob).all() == (y is None)


@each_width
def test_a_softcap_that_saturates_still_tells_the_largest(columns: int) -> None:
    """c·tanh rounds both logits to c: rank and arg-max look at the logits themselves."""
    o = np.zeros((2, columns), dtype=np.float32)
    o[:, 0], o[:, -1] = 500.0, 600.0
    stats = softgrad.prediction_stats(o, [0, columns - 1], softcap=2.0)
    np.testing.assert_array_equal(stats.argmax, columns - 1)
    np.testing.assert_array_equal(stats.rank, [1, 0])


@each_width
def test_sparse_duplicates_add_up_and_minus_one_pads(columns: int) -> None:
    o = batch(columns)
    n = len(o)
    index = np.tile(np.array([2, 0, 2, -1]), (n, 1))
    value = np.tile(np.array([0.25, 0.5, 0.125, NAN]), (n, 1))  # what pads is never read
    dense = np.zeros(o.shape)
    dense[:, 2], dense[:, 0] = 0.375, 0.5
    loss, gradient = both(o, (index, value))
    expected, expected_gradient = reference.cross_entropy_with_grad(o, dense, reduction="none")
    np.testing.assert_allclose(loss, expected, rtol=2e-6)
    np.testing.assert_allclose(gradient, expected_gradient, rtol=1e-4, atol=1e-6)
    blank = softgrad.cross_entropy_with_grad(o, (np.full((n, 3), -1), np.ones((n, 3))), reduction="none")
    np.testing.assert_array_equal(blank[0], 0.0)  # Σ y = 0: nothing to lose
    np.testing.assert_array_equal(blank[1], 0.0)
    none = softgrad.cross_entropy_with_grad(o, (np.zeros((n, 0), dtype=int), np.zeros((n, 0))), reduction="none")
    np.testing.assert_array_equal(none[0], 0.0)


@each_width
@pytest.mark.parametrize("offset", [1e4, 1e6, 1e30, 3e38])
@pytest.mark.parametrize("sign", [1, -1])
def test_offsets_cost_nothing(offset: float, sign: int, columns: int) -> None:
    steps = np.arange(columns) % 3
    spacing = np.spacing(np.float32(offset))
    o = np.tile((sign * np.float32(offset) - sign * steps * spacing).astype(np.float32), (3, 1))
    shifted = o.astype(np.float64) - o.astype(np.float64).max(axis=1, keepdims=True)
    labels = np.array([0, 1, 2])
    scale = 0.5 / float(spacing)
    loss, gradient = both(o, labels, logit_scale=scale)
    expected, expected_gradient = reference.cross_entropy_with_grad(shifted * scale, labels, reduction="none")
    np.testing.assert_allclose(loss, expected, rtol=2e-6)
    np.testing.assert_allclose(gradient, scale * expected_gradient, rtol=1e-5, atol=1e-6 * scale)


@each_dtype
def test_the_widest_spread_of_a_type(dtype: str) -> None:
    """The largest and the smallest finite number in one row: one-hot, no overflow to NaN."""
    import ml_dtypes

    top = ml_dtypes.finfo(DTYPES[dtype]).max
    for columns in (2, 40):
        o = np.full((2, columns), -top, dtype=DTYPES[dtype])
        o[:, 1] = top
        loss, gradient = both(o, [1, 0])
        assert loss[0] == 0
        assert loss[1] > 1e4  # twice the largest number: infinite where the loss's type ends
        np.testing.assert_array_equal(gradient[0], 0.0)
        assert gradient[1, 0] == -1
        assert gradient[1, 1] == 1
        np.testing.assert_array_equal(softgrad.softmax(o)[:, 1].astype(float), 1.0)


def test_denormal_logits_and_targets() -> None:
    o = np.array([[1e-45, -1e-45, 0.0]], dtype=np.float32)
    loss, gradient = both(o, [0])
    assert loss[0] == pytest.approx(math.log(3), rel=1e-7)
    np.testing.assert_allclose(gradient[0], [-2 / 3, 1 / 3, 1 / 3], rtol=1e-6)


def test_signed_row_weights() -> None:
    """Advantages of policy gradients: the sum is weighted, whatever the sign."""
    o = batch(40, "float64")
    labels = labels_for(o)
    a = np.array([1.5, -2.0, 0.0, 0.25, -1.0])
    loss, gradient = softgrad.cross_entropy_with_grad(o, labels, sample_weight=a, reduction="sum")
    each, each_gradient = both(o, labels)
    assert loss == pytest.approx((a * each).sum(), rel=1e-13)
    np.testing.assert_allclose(gradient, a[:, None] * each_gradient, rtol=1e-13, atol=1e-17)
