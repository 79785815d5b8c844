"""Classic mistakes in softmax and cross-entropy: `check_gradient` recognises each by its name."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F  # noqa: N812 - as everybody calls it

from softgrad._checker.check import check_gradient

Options = dict[str, Any]
SHAPES = ((4, 5), (5, 5), (3, 2), (6, 9))


def sample(shape: tuple[int, ...], kind: str = "labels", dtype: str = "float64", seed: int = 0) -> tuple[Any, Any]:
    random = np.random.default_rng(seed)
    logits = (2 * random.normal(size=shape)).astype(dtype)
    labels = random.integers(0, shape[-1], shape[:-1])
    if kind == "labels":
        return logits, labels
    if kind == "one-hot":
        return logits, np.eye(shape[-1])[labels]
    return logits, random.random(shape) + 0.1  # soft targets that do not sum to one


def softmax(o: Any, axis: int = -1) -> Any:
    e = np.exp(o - o.max(axis=axis, keepdims=True))
    return e / e.sum(axis=axis, keepdims=True)


def log_softmax(o: Any, axis: int = -1) -> Any:
    d = o - o.max(axis=axis, keepdims=True)
    return d - np.log(np.exp(d).sum(axis=axis, keepdims=True))


def one_hot(o: Any, y: Any) -> Any:
    return np.eye(o.shape[-1])[y]


def picked(log_s: Any, y: Any) -> Any:
    return -np.take_along_axis(log_s, y[:, None], 1)[:, 0]


def right(o: Any, y: Any) -> Any:
    return picked(log_softmax(o), y).mean()


def smoothed(o: Any, y: Any, eps: float) -> Any:
    target = np.full(o.shape, eps / (o.shape[1] - 1))
    np.put_along_axis(target, y[:, None], 1 - eps, 1)
    return -(target * log_softmax(o)).sum(1).mean()


def kept(o: Any, y: Any) -> Any:
    return (picked(log_softmax(o), y) * (y != 1)).mean()


def no_exp(o: Any, y: Any) -> Any:
    return picked(np.log(np.abs(o + 9) / np.abs(o + 9).sum(1, keepdims=True)), y).mean()


def max_over_all(o: Any, y: Any) -> Any:
    e = np.exp(o - o.max())
    return picked(np.log(e / e.sum(1, keepdims=True)), y).mean()


def in_place(o: Any, y: Any) -> Any:
    o -= o.max(1, keepdims=True)
    return right(o, y)


def pure_python(o: Any, y: Any) -> Any:
    return sum(math.log(sum(math.exp(x) for x in row)) - row[k] for row, k in zip(o, y, strict=True)) / len(o)


def pure_python_log(o: Any, y: Any) -> Any:
    return sum(-math.log(row[k]) for row, k in zip(softmax(o), y, strict=True)) / len(o)


VALUES: list[tuple[str, Callable[..., Any], Options]] = [
    ("sign", lambda o, y: -right(o, y), {}),
    ("mean against sum", lambda o, y: right(o, y) * len(o), {}),
    ("mean against sum", right, {"reduction": "sum"}),
    ("mean over every element", lambda o, y: (one_hot(o, y) * -log_softmax(o)).mean(), {}),
    ("double softmax", lambda o, y: right(softmax(o), y), {}),
    ("wrong axis", lambda o, y: picked(log_softmax(o, 0), y).mean(), {}),
    ("wrong axis", lambda o, y: picked(np.log(np.exp(o) / np.exp(o).sum()), y).mean(), {}),
    ("sigmoid instead of softmax", lambda o, y: picked(-np.log1p(np.exp(-o)), y).mean(), {}),
    ("logarithm to base 2", lambda o, y: right(o, y) / np.log(2), {}),
    ("logarithm forgotten", lambda o, y: picked(softmax(o), y).mean(), {}),
    ("log of a clipped probability", lambda o, y: picked(np.log(softmax(o) + 1e-9), y).mean(), {}),
    ("log of a clipped probability", lambda o, y: picked(np.log(softmax(o).clip(1e-15)), y).mean(), {}),
    ("log of zero", lambda o, y: picked(np.log(softmax(o)), y).mean(), {}),
    ("log of zero", pure_python_log, {}),
    ("log of zero", lambda o, y: -(one_hot(o, y) * np.log(softmax(o))).sum(1).mean(), {}),
    ("0·∞", lambda o, y: -(one_hot(o, y) * log_softmax(o)).sum(1).mean(), {}),
    ("maximum not subtracted", lambda o, y: picked(np.log(np.exp(o) / np.exp(o).sum(1, keepdims=True)), y).mean(), {}),
    ("maximum not subtracted", pure_python, {}),
    ("one maximum for all rows", max_over_all, {}),
    ("changes its input", in_place, {}),
    ("forgotten label smoothing", right, {"label_smoothing": 0.1}),
    ("label smoothing by ε/(V − 1)", lambda o, y: smoothed(o, y, 0.1), {"label_smoothing": 0.1}),
    ("forgotten temperature", right, {"temperature": 2.0}),
    ("multiplied by the temperature", lambda o, y: right(2 * o, y), {"temperature": 2.0}),
    ("forgotten z-loss", right, {"z_loss": 0.01}),
    ("forgotten softcap", right, {"softcap": 3.0}),
    ("ignored rows counted in the mean", kept, {"ignore_index": 1}),
    ("ignored rows not left out", right, {"ignore_index": 1}),
    ("shift invariance", no_exp, {}),
    ("shift invariance", lambda o, y: right(o.clip(-20, 20), y), {}),
    ("masked logits", lambda o, y: right(np.where(np.isneginf(o), -1.0, o), y), {}),
    ("value", lambda o, y: right(o, y) + 0.01, {}),
]  # fmt: skip


@pytest.mark.parametrize(("law", "function", "options"), VALUES, ids=[f"{i}-{v[0]}" for i, v in enumerate(VALUES)])
@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("shape", SHAPES)
def test_value(law: str, function: Callable[..., Any], options: Options, dtype: str, shape: tuple[int, ...]) -> None:
    if "ignore_index" in options and shape == (3, 2):
        shape = (4, 5)
    for seed in range(2):
        report = check_gradient(function, *sample(shape, "labels", dtype, seed), **options)
        assert report.law == law, str(report)


def with_weights(o: Any, y: Any) -> Any:
    w = np.array([1.0, 2.0, 3.0, 4.0, 5.0])
    return (picked(log_softmax(o), y) * w[y]).mean()


def test_class_weights() -> None:
    options = {"class_weight": [1.0, 2.0, 3.0, 4.0, 5.0]}
    assert check_gradient(with_weights, *sample((4, 5)), **options).law == "class weights left out of the mean"
    assert check_gradient(right, *sample((4, 5)), **options).law == "forgotten class weights"


GRADIENTS: list[tuple[str, Callable[..., Any], Options]] = [
    ("sign", lambda o, y: (one_hot(o, y) - softmax(o)) / len(o), {}),
    ("mean against sum", lambda o, y: softmax(o) - one_hot(o, y), {}),
    ("mean against sum", lambda o, y: (softmax(o) - one_hot(o, y)) / len(o), {"reduction": "sum"}),
    ("mean against sum", lambda o, y: (softmax(o) - one_hot(o, y)) / len(o), {"reduction": "none"}),
    ("mean over every element", lambda o, y: (softmax(o) - one_hot(o, y)) / o.size, {}),
    ("double softmax", lambda o, y: (softmax(softmax(o)) - one_hot(o, y)) / len(o), {}),
    ("wrong axis", lambda o, y: (softmax(o, 0) - one_hot(o, y)) / len(o), {}),
    ("sigmoid instead of softmax", lambda o, y: (1 / (1 + np.exp(-o)) - one_hot(o, y)) / len(o), {}),
    ("forgotten label smoothing", lambda o, y: (softmax(o) - one_hot(o, y)) / len(o), {"label_smoothing": 0.1}),
    ("inner derivative forgotten", lambda o, y: (softmax(o / 2) - one_hot(o, y)) / len(o), {"temperature": 2.0}),
    ("target not subtracted", lambda o, y: softmax(o) / len(o), {}),
    ("gradient by the probabilities", lambda o, y: -one_hot(o, y) / softmax(o) / len(o), {}),
    ("diagonal of the Jacobian only", lambda o, y: -one_hot(o, y) * (1 - softmax(o)) / len(o), {}),
    ("softmax derivative twice", lambda o, y: product(softmax(o), softmax(o) - one_hot(o, y)) / len(o), {}),
    ("division by a zero probability", lambda o, y: product(softmax(o), -one_hot(o, y) / softmax(o)) / len(o), {}),
    ("maximum not subtracted", lambda o, y: (np.exp(o) / np.exp(o).sum(1, keepdims=True) - one_hot(o, y)) / len(o), {}),
    ("ignored rows not left out", lambda o, y: (softmax(o) - one_hot(o, y)) / len(o), {"ignore_index": 1}),
    ("rows sum to zero", lambda o, y: (softmax(o) * 1.01 - one_hot(o, y)) / len(o), {}),
    ("gradient", lambda o, y: (softmax(o) - one_hot(o, y)) / len(o) + 0.01 * (o - o.mean(1, keepdims=True)), {}),
]


def product(s: Any, v: Any) -> Any:
    return s * (v - (s * v).sum(-1, keepdims=True))


@pytest.mark.parametrize(
    ("law", "function", "options"), GRADIENTS, ids=[f"{i}-{v[0]}" for i, v in enumerate(GRADIENTS)]
)
@pytest.mark.parametrize("shape", [(4, 5), (5, 5), (6, 9)])
def test_gradient(law: str, function: Callable[..., Any], options: Options, shape: tuple[int, ...]) -> None:
    for seed in range(3):
        report = check_gradient(None, *sample(shape, seed=seed), gradient=function, masked=False, **options)
        assert report.law == law, str(report)


def test_soft_targets_that_do_not_sum_to_one() -> None:
    logits, y = sample((4, 5), "soft")
    law = "soft targets that do not sum to one"
    assert check_gradient(None, logits, y, gradient=lambda o, t: (softmax(o) - t) / 4).law == law
    assert check_gradient(lambda o, t: -(t * log_softmax(o)).sum(1).mean(), logits, y).law is None
    y /= y.sum(1, keepdims=True)
    assert check_gradient(None, logits, y, gradient=lambda o, t: (softmax(o) - t) / 4)


def test_one_hot_targets_times_minus_infinity() -> None:
    logits, y = sample((4, 5), "one-hot")

    def loss(o: Any, t: Any) -> Any:
        return -(t * log_softmax(o)).sum(1).mean()

    assert check_gradient(loss, logits, y)
    assert check_gradient(loss, logits, y, masked=True).law == "0·∞"


SOFTMAXES: list[tuple[str, Callable[..., Any], Options]] = [
    ("double softmax", lambda o: softmax(softmax(o)), {}),
    ("wrong axis", lambda o: softmax(o, 0), {}),
    ("wrong axis", lambda o: np.exp(o - o.max()) / np.exp(o - o.max()).sum(), {}),
    ("sigmoid instead of softmax", lambda o: 1 / (1 + np.exp(-o)), {}),
    ("logarithm returned", log_softmax, {}),
    ("forgotten temperature", softmax, {"temperature": 2.0}),
    ("multiplied by the temperature", lambda o: softmax(2 * o), {"temperature": 2.0}),
    ("not normalised", lambda o: np.exp(o - o.max(1, keepdims=True)), {}),
    ("maximum not subtracted", lambda o: np.exp(o) / np.exp(o).sum(1, keepdims=True), {}),
    ("one maximum for all rows", lambda o: np.exp(o - o.max()) / np.exp(o - o.max()).sum(1, keepdims=True), {}),
    ("shift invariance", lambda o: np.abs(o) / np.abs(o).sum(1, keepdims=True), {}),
    ("rows sum to one", lambda o: softmax(o) * (1 - 1e-3), {}),
    ("shift invariance", lambda o: softmax(o.clip(-50, 50)), {}),
]  # fmt: skip


@pytest.mark.parametrize(
    ("law", "function", "options"), SOFTMAXES, ids=[f"{i}-{v[0]}" for i, v in enumerate(SOFTMAXES)]
)
def test_softmax(law: str, function: Callable[..., Any], options: Options) -> None:
    for shape in SHAPES[:2]:
        report = check_gradient(None, sample(shape)[0], softmax=function, **options)
        assert report.law == law, str(report)


def jacobian(diagonal: float, off: float) -> Callable[[Any], Any]:
    def function(o: Any) -> Any:
        s = softmax(o)
        eye = np.eye(s.shape[-1])
        square = s[..., :, None] * s[..., None, :]
        return diagonal * eye * s[..., None] - square * (eye + off * (1 - eye))

    return function


@pytest.mark.parametrize(
    ("law", "function", "options"),
    [
        (None, jacobian(1, 1), {}),
        ("diagonal of the Jacobian only", jacobian(1, 0), {}),
        ("sign off the diagonal", jacobian(1, -1), {}),
        ("diagonal left out", jacobian(0, 1), {}),
        ("sign", lambda o: -jacobian(1, 1)(o), {}),
        ("inner derivative forgotten", lambda o: jacobian(1, 1)(o / 2), {"temperature": 2.0}),
        ("rows sum to zero", jacobian(1.1, 1), {}),
        ("shape", softmax, {}),
    ],
)
@pytest.mark.parametrize("shape", [(4, 5), (5,), (3, 2)])
def test_jacobian(law: str | None, function: Callable[..., Any], options: Options, shape: tuple[int, ...]) -> None:
    report = check_gradient(None, sample(shape)[0], jacobian=function, **options)
    assert report.law == law, str(report)


# --- PyTorch: the gradient is autograd's -----------------------------------------------------------------------------


class IgnoresUpstream(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, o: Any, y: Any) -> Any:
        ctx.save_for_backward(o.softmax(1), y)
        return F.cross_entropy(o, y)

    @staticmethod
    def backward(ctx: Any, upstream: Any) -> Any:
        s, y = ctx.saved_tensors
        return (s - F.one_hot(y, s.shape[1])) / len(s), None


class ForgetsTheMean(IgnoresUpstream):
    @staticmethod
    def backward(ctx: Any, upstream: Any) -> Any:
        s, y = ctx.saved_tensors
        return upstream * (s - F.one_hot(y, s.shape[1])), None


class WrongSign(IgnoresUpstream):
    @staticmethod
    def backward(ctx: Any, upstream: Any) -> Any:
        s, y = ctx.saved_tensors
        return upstream * (F.one_hot(y, s.shape[1]) - s) / len(s), None


def detached(o: Any, y: Any) -> Any:
    return F.cross_entropy(o.detach(), y)


def writes(o: Any, y: Any) -> Any:
    o -= o.amax(1, keepdim=True)
    return F.cross_entropy(o, y)


def writes_data(o: Any, y: Any) -> Any:
    o.data -= o.data.amax(1, keepdim=True)
    return F.cross_entropy(o, y)


def lse_in_half(o: Any, y: Any) -> Any:
    return (o.logsumexp(1) - o.gather(1, y[:, None])[:, 0]).mean()


TORCH: list[tuple[str, Callable[..., Any], Options]] = [
    ("double softmax", lambda o, y: F.cross_entropy(o.softmax(1), y), {}),
    ("wrong axis", lambda o, y: F.nll_loss(o.log_softmax(0), y), {}),
    ("mean against sum", lambda o, y: F.cross_entropy(o, y, reduction="sum"), {}),
    ("sign", lambda o, y: o.log_softmax(1).gather(1, y[:, None]).mean(), {}),
    ("logarithm forgotten", lambda o, y: F.nll_loss(o.softmax(1), y), {}),
    ("mean over every element", lambda o, y: -(F.one_hot(y, o.shape[1]) * o.log_softmax(1)).mean(), {}),
    ("log of zero", lambda o, y: F.nll_loss(o.softmax(1).log(), y), {}),
    ("log of a clipped probability", lambda o, y: F.nll_loss((o.softmax(1) + 1e-9).log(), y), {}),
    ("maximum not subtracted", lambda o, y: (o.exp().sum(1).log() - o.gather(1, y[:, None])[:, 0]).mean(), {}),
    ("forgotten label smoothing", F.cross_entropy, {"label_smoothing": 0.1}),
    ("forgotten temperature", F.cross_entropy, {"temperature": 2.0}),
    ("upstream gradient ignored", IgnoresUpstream.apply, {}),
    ("mean against sum", ForgetsTheMean.apply, {}),
    ("sign", WrongSign.apply, {}),
    ("no gradient", detached, {}),
    ("changes its input", writes, {}),
    ("changes its input", writes_data, {}),
    ("0·∞", lambda o, y: -(F.one_hot(y, o.shape[1]) * o.log_softmax(1)).sum(1).mean(), {}),
]  # fmt: skip


# A tenth of smoothing is smaller than the rounding of half precision allows to tell.
BY_DTYPE = [
    pytest.param(*mistake, dtype, id=f"{dtype}-{number}-{mistake[0]}")
    for number, mistake in enumerate(TORCH)
    for dtype in ("float64", "float32", "float16", "bfloat16")
    if not (dtype in ("float16", "bfloat16") and mistake[0] == "forgotten label smoothing")
]


@pytest.mark.parametrize(("law", "function", "options", "dtype"), BY_DTYPE)
def test_torch(law: str, function: Callable[..., Any], options: Options, dtype: str) -> None:
    if dtype == "float16" and law == "log of a clipped probability":
        law = "log of zero"  # which 1e-9 is in float16
    for seed in range(3):
        logits, y = (torch.tensor(part) for part in sample((4, 5), seed=seed))
        report = check_gradient(function, logits.to(getattr(torch, dtype)), y, **options)
        assert report.law == law, str(report)


def test_digits_lost_to_the_offset() -> None:
    logits, y = (torch.tensor(part) for part in sample((4, 5)))
    law = "digits lost to the offset"
    assert check_gradient(lse_in_half, logits.bfloat16(), y).law == law
    assert check_gradient(lse_in_half, logits.float(), y)
    assert check_gradient(lse_in_half, logits.float(), y, offset=1e8).law == law


@given(seed=st.integers(0, 10_000), n=st.integers(2, 6), v=st.integers(3, 9), data=st.data())
@settings(max_examples=80)
def test_recognised_whatever_the_sample(seed: int, n: int, v: int, data: st.DataObject) -> None:
    law, function, options = data.draw(st.sampled_from([v for v in VALUES if not v[2]]))
    report = check_gradient(function, *sample((n, v), seed=seed), **options)
    assert report.law == law, str(report)


def test_single_precision_inside_double() -> None:
    logits, y = (torch.tensor(part) for part in sample((4, 5)))
    report = check_gradient(lambda o, t: F.cross_entropy(o.float(), t), logits, y)
    assert report.law == "digits of float32"
    found, expected = (part.split(",")[0].split()[-1] for part in report.message.split("expected")[:2])
    assert found != expected


def test_a_sample_that_cannot_show_it() -> None:
    """Equal logits hide a second softmax, large ones everything: the other inputs show it."""
    for logits in (np.zeros((4, 5)), 500 * sample((4, 5))[0]):
        assert check_gradient(lambda o, y: right(softmax(o), y), logits).law == "double softmax"
        assert check_gradient(lambda o, y: -right(o, y), logits).law == "sign"
