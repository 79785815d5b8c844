"""The linear head in tiles of columns: the same law as in tiles of rows, where a row does not fit."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from torch import Tensor

from softgrad._core import linear_tiles
from softgrad._core.linear_tiles import TileSizes
from softgrad.torch import linear_cross_entropy

N, D, V = 37, 5, 211
SMALL = 40_000  # tiles of some rows and a few columns


@pytest.fixture(autouse=True)
def columns(monkeypatch: pytest.MonkeyPatch) -> None:
    """Take this path whatever the sizes are."""
    monkeypatch.setattr(linear_tiles, "LEAST_ROWS", 1 << 30)


def layer(dtype: torch.dtype = torch.float64) -> list[Tensor]:
    torch.manual_seed(0)
    return [torch.randn(shape, dtype=torch.float64).to(dtype).requires_grad_() for shape in ((N, D), (V, D), (V,))]


def targets(kind: str) -> Any:
    torch.manual_seed(1)
    if kind == "labels":
        y = torch.randint(0, V, (N,))
        y[3] = -100
        return y
    if kind == "dense":
        return torch.rand(N, V, dtype=torch.float64)
    index = torch.randint(-1, V, (N, 4))
    index[:, 3] = index[:, 0]  # duplicates add up
    return index, torch.rand(N, 4, dtype=torch.float64)


def both(tensors: list[Tensor], target: Any, upstream: Tensor | None = None, **options: Any) -> list[list[Tensor]]:
    found = []
    for budget in (SMALL, None):
        x, w, b = tensors
        loss = linear_cross_entropy(x, w, target, linear_bias=b, max_memory=budget, **options)
        g = torch.ones_like(loss) if upstream is None else upstream
        found.append([loss.detach(), *torch.autograd.grad(loss, [t for t in tensors if t.requires_grad], g)])
    return found


OPTIONS: list[dict[str, Any]] = [
    {},
    {"label_smoothing": 0.1, "z_loss": 0.01},
    {"softcap": 3.0, "temperature": 0.7, "logit_scale": -1.3},
    {"weight": torch.linspace(0, 2, V, dtype=torch.float64), "label_smoothing": 0.2, "smooth_finite_only": True},
    {"sample_weight": torch.linspace(-1, 3, N, dtype=torch.float64)},
]


@pytest.mark.parametrize("kind", ["labels", "dense", "sparse"])
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_columns_agree_with_rows(kind: str, reduction: str) -> None:
    upstream = torch.linspace(-1, 1, N, dtype=torch.float64) if reduction == "none" else None
    for options in OPTIONS:
        mine, expected = both(layer(), targets(kind), upstream, reduction=reduction, **options)
        for a, e in zip(mine, expected, strict=True):
            torch.testing.assert_close(a, e, rtol=1e-11, atol=1e-12)


def test_masked_columns_and_whole_rows() -> None:
    """The first tile all −inf through the bias; a poisoned row that is ignored; a row of NaN that is not."""
    x, w, b = layer()
    with torch.no_grad():
        b[:100] = -torch.inf
        x[3], x[5] = 1e300, torch.nan
    y = targets("labels").clamp(min=-100)
    y[y < 100] = torch.where(y[y < 100] == -100, -100, 150)
    mine, expected = both([x, w, b], y, torch.ones(N, dtype=torch.float64), reduction="none")
    assert mine[0][3] == 0
    assert torch.all(mine[1][3] == 0)
    assert torch.isnan(mine[0][5])
    sound = torch.arange(N) != 5
    torch.testing.assert_close(mine[0][sound], expected[0][sound], rtol=1e-11, atol=1e-12)


def test_nothing_to_average() -> None:
    x, w, b = layer()
    mine, _ = both([x, w, b], torch.full((N,), -100))
    assert torch.isnan(mine[0])
    assert all(torch.all(g == 0) for g in mine[1:])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_other_types(dtype: torch.dtype) -> None:
    tolerance = {torch.float32: 1e-5, torch.bfloat16: 2e-2, torch.float16: 2e-3}[dtype]
    mine, expected = both(layer(dtype), targets("labels"))
    for a, e in zip(mine, expected, strict=True):
        assert a.dtype == dtype
        assert (a.double() - e.double()).abs().max() <= tolerance * e.double().abs().max()


def test_threads_change_no_bit_and_frozen_sides_cost_nothing() -> None:
    first, second = (
        both(layer(torch.float32), targets("labels"), n_threads=count)[0] for count in (1, 2)
    )  # fmt: skip
    for a, b in zip(first, second, strict=True):
        assert torch.equal(a, b)
    x, w, b = layer()
    mine, expected = both([x.detach(), w, b.detach()], targets("labels"))
    assert len(mine) == 2
    torch.testing.assert_close(mine[1], expected[1], rtol=1e-11, atol=1e-12)


def test_a_bad_label_is_named() -> None:
    y = targets("labels")
    y[7] = V
    with pytest.raises(IndexError, match=rf"target\[7\] is {V}"):
        linear_cross_entropy(*layer()[:2], y, max_memory=SMALL)


def test_when_columns_are_tiled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()

    def tiled(rows: int, classes: int, budget: int | None) -> bool:
        return TileSizes.of(rows, 1, classes, 4, False, budget, windows=True).cols < classes

    assert not tiled(100, 2_000_000, None)
    assert tiled(100, 10_000_000, None)
    for rows, room in itertools.product((1, 4), (3_990, 4_020, 7_990, 8_020)):
        # One part in eight is for products; a row has its logits, and the sum of its gradient by x.
        assert tiled(rows, 1000, room * 8 // 7) == (room < 4_004 * min(rows, 2))


def test_nothing_at_all(monkeypatch: pytest.MonkeyPatch) -> None:
    """No rows within no memory, and no features: the limits of the formula."""
    monkeypatch.undo()
    x, w = torch.empty(0, 3, requires_grad=True), torch.ones(5, 3, requires_grad=True)
    loss = linear_cross_entropy(x, w, torch.empty(0, dtype=torch.long), reduction="sum", max_memory=8)
    loss.backward()
    assert float(loss.detach()) == 0
    assert torch.all(w.grad == 0)
    flat = linear_cross_entropy(torch.empty(2, 0), torch.empty(5, 0), torch.tensor([0, 4]))
    torch.testing.assert_close(flat, torch.tensor(5.0).log())
