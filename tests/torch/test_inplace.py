"""`inplace=True`: the gradient lies where the logits lay, and nobody reads them afterwards unnoticed."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch_cases import DTYPES, REDUCTIONS, eighths, followed, labels_for, normal, same_bits, soft_for, upstream_for

from softgrad.torch import CrossEntropyLoss, cross_entropy

pytestmark = [
    pytest.mark.usefixtures("passes"),
    pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:DeprecationWarning"),
]
each_reduction = pytest.mark.parametrize("reduction", REDUCTIONS)


def layer(*shape: int, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    """A leaf, and logits that a layer computed from it without keeping them."""
    leaf = followed(normal(*shape, dtype=dtype))
    return leaf, leaf * 1


@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)
@pytest.mark.parametrize("shape", [(5, 7), (5, 70), (7,)], ids=str)
@each_reduction
def test_the_gradient_lies_in_the_memory_of_the_logits(
    reduction: str, shape: tuple[int, ...], dtype: torch.dtype
) -> None:
    for soft in (False, True):
        leaf, o = layer(*shape, dtype=dtype)
        y = soft_for(o) if soft else labels_for(o)
        plain = cross_entropy(leaf, y, reduction=reduction)
        (expected,) = torch.autograd.grad(plain, leaf, upstream_for(plain))
        before, version = o.detach().clone(), o._version
        received: list[Tensor] = []
        o.register_hook(received.append)
        loss = cross_entropy(o, y, reduction=reduction, inplace=True)
        assert same_bits(loss, plain)
        assert same_bits(o.detach(), before), "forward writes nothing"
        loss.backward(upstream_for(loss))
        assert received[0].data_ptr() == o.data_ptr()
        assert o._version > version
        torch.testing.assert_close(leaf.grad, expected, rtol=2**-20 if dtype == torch.float32 else None, atol=None
                                   if dtype != torch.float32 else 1e-7)  # fmt: skip
        assert same_bits(o.detach(), leaf.grad)


@pytest.mark.parametrize("layout", ["images", "transposed", "every other column", "channels last", "one image"])
@each_reduction
def test_logits_as_they_lie(reduction: str, layout: str) -> None:
    leaf = followed(normal(2, 70, 3, 4) if layout in ("images", "channels last", "one image") else normal(70, 70))

    def lay(t: Tensor) -> Tensor:
        t = t * 1
        if layout == "transposed":
            return t.t()
        if layout == "every other column":
            return t[:, ::2]
        if layout == "channels last":
            return t.contiguous(memory_format=torch.channels_last)
        return t[:1] if layout == "one image" else t

    y = labels_for(lay(leaf.detach()))
    plain = cross_entropy(lay(leaf), y, reduction=reduction)
    (expected,) = torch.autograd.grad(plain, leaf, upstream_for(plain))
    o = lay(leaf)
    untouched = o._base.detach().clone() if o._base is not None else None
    loss = cross_entropy(o, y, reduction=reduction, inplace=True)
    loss.backward(upstream_for(loss))
    torch.testing.assert_close(leaf.grad, expected, rtol=1e-14, atol=1e-15)
    torch.testing.assert_close(lay(leaf.grad), o.detach(), rtol=0, atol=0)
    if layout == "every other column":  # what lies between is somebody else's
        assert same_bits(o._base.detach()[:, 1::2], untouched[:, 1::2])


def test_a_later_reader_gets_pytorchs_own_error() -> None:
    _, o = layer(5, 70)
    other = (o * o).sum()
    cross_entropy(o, labels_for(o), inplace=True).backward()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        other.backward()


def test_a_view_of_the_logits_is_a_reader_as_well() -> None:
    _, o = layer(5, 70)
    other = o[:, :3].exp().sum() + (o.view(-1) ** 2).sum()
    cross_entropy(o, labels_for(o), inplace=True).backward()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        other.backward()


@each_reduction
def test_a_second_backward_raises(reduction: str) -> None:
    _, o = layer(5, 70)
    loss = cross_entropy(o, labels_for(o), reduction=reduction, inplace=True).sum()
    loss.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_two_losses_of_the_same_logits_raise() -> None:
    _, o = layer(5, 70)
    y = labels_for(o)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        (cross_entropy(o, y, inplace=True) + cross_entropy(o, y, inplace=True)).backward()


def test_the_gradient_by_soft_targets_reads_the_logits_first() -> None:
    leaf, o = layer(4, 70, dtype=torch.float64)
    y = followed(soft_for(leaf))
    expected = torch.autograd.grad(cross_entropy(leaf, y), [leaf, y])
    cross_entropy(o, y, inplace=True).backward()
    torch.testing.assert_close(leaf.grad, expected[0])
    torch.testing.assert_close(y.grad, expected[1])


def test_ignored_rows_and_nothing_at_all() -> None:
    leaf, o = layer(4, 70)
    y = torch.full((4,), -100)
    cross_entropy(o, y, inplace=True).backward()
    assert (o == 0).all()
    assert (leaf.grad == 0).all()


REFUSED: dict[str, Any] = {
    "leaf": (lambda: followed(normal(3, 5)), {}),
    "expanded": (lambda: followed(normal(1, 5)).mul(1).expand(3, 5), {}),
    "label_smoothing": (lambda: layer(3, 5)[1], {"label_smoothing": lambda: torch.tensor(0.1, requires_grad=True)}),
    "device": (lambda: torch.empty(3, 5, device="meta"), {}),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_right_is_refused_at_once(case: str) -> None:
    make, options = REFUSED[case]
    o = make()
    y = torch.zeros(3, dtype=torch.int64, device=o.device)
    with pytest.raises(ValueError, match="inplace=True"):
        cross_entropy(o, y, inplace=True, **{k: v() for k, v in options.items()})


NUMBER = torch.tensor(0.75, dtype=torch.float64)
FOLLOWED: dict[str, Tensor] = {
    "weight": eighths(70), "sample_weight": eighths(4), "temperature": NUMBER, "logit_scale": NUMBER,
    "softcap": NUMBER, "z_loss": NUMBER,
}  # fmt: skip


@pytest.mark.parametrize("name", FOLLOWED)
def test_derivatives_by_options_read_the_logits_first(name: str) -> None:
    leaf, o = layer(4, 70, dtype=torch.float64)
    option = followed(FOLLOWED[name])
    y = labels_for(o)
    expected = torch.autograd.grad(cross_entropy(leaf, y, **{name: option}), [leaf, option])
    cross_entropy(o, y, inplace=True, **{name: option}).backward()
    torch.testing.assert_close(leaf.grad, expected[0])
    torch.testing.assert_close(option.grad, expected[1])
    torch.testing.assert_close(o.detach(), expected[0])


def test_overlapping_memory_is_refused() -> None:
    o = followed(normal(20)).mul(1).as_strided((3, 5), (2, 1))
    with pytest.raises(ValueError, match="inplace=True"):
        cross_entropy(o, torch.tensor([0, 1, 2]), inplace=True)


def test_torch_func_forward_mode_and_create_graph_are_refused() -> None:
    y = torch.tensor([0, 1, 2])
    o = normal(3, 5)
    with pytest.raises(ValueError, match="inplace=True"):
        torch.func.grad(lambda p: cross_entropy(p * 1, y, inplace=True))(o)
    with forward_ad.dual_level(), pytest.raises(ValueError, match="inplace=True"):
        cross_entropy(forward_ad.make_dual(o, o), y, inplace=True)
    _, logits = layer(3, 5)
    loss = cross_entropy(logits, y, inplace=True)
    before = logits.detach().clone()
    with pytest.raises(RuntimeError, match="inplace"):
        torch.autograd.grad(loss, logits, create_graph=True)
    assert same_bits(logits.detach(), before)


@pytest.mark.parametrize("value", [1, "yes", None])
def test_only_true_and_false(value: Any) -> None:
    with pytest.raises(TypeError, match="inplace"):
        cross_entropy(layer(3, 5)[1], torch.tensor([0, 1, 2]), inplace=value)


def test_without_a_gradient_nothing_is_written() -> None:
    o, y = normal(3, 70), torch.tensor([0, 1, 2])
    before = o.clone()
    cross_entropy(o, y, inplace=True)
    with torch.no_grad():
        cross_entropy(layer(3, 70)[1], y, inplace=True)
    assert same_bits(o, before)
    assert o._version == 0


def test_the_module_too() -> None:
    leaf, o = layer(4, 70)
    y = labels_for(o)
    (expected,) = torch.autograd.grad(cross_entropy(leaf, y), leaf)
    CrossEntropyLoss(inplace=True)(o, y).backward()
    torch.testing.assert_close(o.detach(), expected)


def test_a_training_step_with_a_layer_below() -> None:
    torch.manual_seed(0)
    net = torch.nn.Linear(6, 70)
    x, y = torch.randn(5, 6), torch.randint(70, (5,))
    cross_entropy(net(x), y).backward()
    expected = [p.grad.clone() for p in net.parameters()]
    net.zero_grad()
    cross_entropy(net(x), y, inplace=True).backward()
    for p, e in zip(net.parameters(), expected, strict=True):
        torch.testing.assert_close(p.grad, e)
