"""Half precision against float64: no worse than PyTorch's own, by root-mean-square and at the worst element."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812
from torch_cases import REDUCTIONS, followed, labels_for, normal, soft_for

from softgrad.torch import cross_entropy, linear_cross_entropy

HALF = {"bfloat16": torch.bfloat16, "float16": torch.float16}
each_half = pytest.mark.parametrize("dtype", HALF.values(), ids=HALF)
each_kind = pytest.mark.parametrize("kind", ["flat", "peaked"])
each_reduction = pytest.mark.parametrize("reduction", REDUCTIONS)
RATIO = 1.1  # of the root-mean-square errors


def unit(exact: Tensor, dtype: torch.dtype) -> Tensor:
    """One unit in the last place of the type at these values, no less than at its smallest normal number."""
    info = torch.finfo(dtype)
    return torch.exp2(torch.floor(torch.log2(exact.abs().clamp(min=info.smallest_normal)))) * info.eps


def no_worse(ours: Tensor, theirs: Tensor, exact: Tensor, context: str, *, sums: bool = False) -> None:
    """Root-mean-square at most 1.1 times PyTorch's, largest at most PyTorch's and half a unit in the last place.

    The unit is that of the element; for a matrix product, whose elements are sums of larger terms, of the largest one.
    """
    assert ours.dtype == theirs.dtype
    mine, other = (ours.double() - exact).abs(), (theirs.double() - exact).abs()
    half = 0.5 * unit(exact, ours.dtype)
    if sums:
        half = half.max().expand_as(half)
    if exact.numel() > 1:
        limit = RATIO * other.square().mean().sqrt()
        assert mine.square().mean().sqrt() <= limit, f"{context}: {float(mine.square().mean().sqrt() / limit):.3f}"
        assert mine.max() <= other.max() + half.flatten()[mine.argmax()], context
    else:
        assert mine <= other + half, context


def logits(kind: str, rows: int, classes: int, dtype: torch.dtype) -> Tensor:
    o = normal(rows, classes, seed=3, scale=0.25 if kind == "flat" else 1.0)
    if kind == "peaked":
        o[torch.arange(rows), (torch.arange(rows) * 5) % classes] += 8.0
    return o.to(dtype)


def grads(function: Any, leaves: list[Tensor], reduction: str) -> list[Tensor]:
    """The loss, and the gradients for an upstream of one that every type holds."""
    tensors = [followed(t) for t in leaves]
    loss = function(*tensors)
    g = torch.ones_like(loss)
    if reduction == "none":
        g[::2] = -0.5
    return [loss.detach(), *torch.autograd.grad(loss, tensors, g)]


@each_half
@each_kind
@each_reduction
def test_cross_entropy(reduction: str, kind: str, dtype: torch.dtype) -> None:
    for classes, soft, smoothing in itertools.product((10, 300, 5000), (False, True), (0.0, 0.1)):
        o = logits(kind, 16, classes, dtype)
        y = soft_for(o) / classes if soft else labels_for(o)
        exact = y.double() if soft else y
        options: dict[str, Any] = {"reduction": reduction, "label_smoothing": smoothing}
        found = [
            grads(lambda o: f(o, t, **options), [o.double() if wide else o], reduction)  # noqa: B023
            for f, t, wide in ((cross_entropy, y, False), (F.cross_entropy, y, False), (F.cross_entropy, exact, True))
        ]
        for name, a, b, e in zip(("loss", "gradient"), *found, strict=True):
            no_worse(a, b, e, f"{name} V={classes} soft={soft} ε={smoothing}")


@each_half
@each_kind
@each_reduction
@pytest.mark.parametrize("impl", ["numpy", "torch"])
def test_linear_cross_entropy(impl: str, reduction: str, kind: str, dtype: torch.dtype) -> None:
    for (rows, depth, classes), biased in itertools.product(((24, 32, 300), (64, 8, 2100)), (False, True)):
        x = normal(rows, depth, dtype=dtype, seed=1)
        w = normal(classes, depth, dtype=dtype, seed=2, scale=(0.25 if kind == "flat" else 2.0) * depth**-0.5)
        y = (torch.arange(rows) * 7) % classes
        leaves = [x, w, normal(classes, dtype=dtype, seed=3, scale=0.5)] if biased else [x, w]

        def ours(x: Tensor, w: Tensor, b: Any = None) -> Tensor:
            return linear_cross_entropy(x, w, y, linear_bias=b, reduction=reduction, impl=impl)  # noqa: B023

        def theirs(x: Tensor, w: Tensor, b: Any = None) -> Tensor:
            return F.cross_entropy(F.linear(x, w, b), y, reduction=reduction)  # noqa: B023

        wide = [t.double() for t in leaves]
        found = [grads(ours, leaves, reduction), grads(theirs, leaves, reduction), grads(theirs, wide, reduction)]
        for name, a, b, e in zip(("loss", "x", "weight", "bias"), *found, strict=False):
            no_worse(a, b, e, f"{name} ({rows}, {depth}, {classes}) bias={biased}", sums=name != "loss")


@each_half
def test_the_measure_notices_a_gradient_rounded_twice(dtype: torch.dtype) -> None:
    """The limits above are tight: probabilities rounded before the label is subtracted exceed them."""
    o = logits("peaked", 16, 300, dtype)
    y = (torch.arange(16) * 5) % 300  # the class that holds the mass
    rounded = torch.softmax(o, 1)
    rounded[torch.arange(16), y] -= 1
    wide = followed(o.double())
    F.cross_entropy(wide, y, reduction="sum").backward()
    half = followed(o)
    cross_entropy(half, y, reduction="sum").backward()
    with pytest.raises(AssertionError):
        no_worse(rounded, half.grad, wide.grad, "")
