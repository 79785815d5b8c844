"""`torch.compile(fullgraph=True)`: one graph, the bits of eager, first order; the rest right or refused."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch_cases import (
    REDUCTIONS,
    eighths,
    followed,
    formula,
    labels_for,
    near,
    normal,
    same_bits,
    soft_for,
    sparse_for,
)

from softgrad.torch import _head, _operators, cross_entropy, linear_cross_entropy, prediction_stats
from softgrad.torch._call import make_call

pytestmark = pytest.mark.usefixtures("fresh_compiler")
each_reduction = pytest.mark.parametrize("reduction", REDUCTIONS)


def compiled(function: Callable[..., Any], backend: str = "aot_eager", **how: Any) -> Callable[..., Any]:
    return torch.compile(function, fullgraph=True, backend=backend, **how)


def value_and_grads(function: Callable[..., Tensor], *tensors: Any) -> list[Tensor]:
    leaves = [followed(t) for t in tensors]
    loss = function(*leaves)
    # Powers of two, which scale a gradient exactly wherever they are multiplied in.
    g = torch.tensor([1.0, -2.0, 0.5, 4.0], dtype=loss.dtype).repeat(loss.numel())[: loss.numel()].reshape(loss.shape)
    return [loss.detach(), *torch.autograd.grad(loss, leaves, g)]


def same(function: Callable[..., Tensor], *tensors: Tensor, **how: Any) -> None:
    """Compiled and eager: the same bits."""
    for a, b in zip(
        value_and_grads(compiled(function, **how), *tensors), value_and_grads(function, *tensors), strict=True
    ):
        assert same_bits(a, b), (a, b)


TARGETS: dict[str, Callable[[Tensor], Any]] = {
    "labels": labels_for,
    "soft": lambda o: soft_for(o).float(),
    "sparse": sparse_for,
}


@each_reduction
@pytest.mark.usefixtures("passes")
def test_losses_and_gradients_have_eagers_bits(reduction: str) -> None:
    """Every kind of target and option in one graph, in float32 and bfloat16."""
    o, half, image = normal(5, 70, dtype=torch.float32), normal(4, 9, dtype=torch.bfloat16), normal(2, 5, 3)
    options = {"label_smoothing": 0.1, "softcap": 3.0, "temperature": 2.0, "logit_scale": -0.5, "z_loss": 0.125}
    targets = {name: make(o) for name, make in TARGETS.items()}

    def losses(o: Tensor, half: Tensor, image: Tensor) -> Tensor:
        parts = [cross_entropy(o, y, reduction=reduction, **given) for y in targets.values() for given in ({}, options)]
        parts += [cross_entropy(half, labels_for_half, reduction=reduction)]
        parts += [cross_entropy(image, labels_for_image, reduction=reduction)]
        return torch.cat([part.float().reshape(-1) for part in parts])

    labels_for_half, labels_for_image = labels_for(half), labels_for(image)
    same(losses, o, half, image)


@each_reduction
def test_linear_losses_and_gradients_have_eagers_bits(reduction: str) -> None:
    x, w, b = normal(6, 4, dtype=torch.float32), normal(70, 4, dtype=torch.float32), normal(70, dtype=torch.float32)
    like = normal(6, 70, dtype=torch.float32)
    targets = {name: make(like) for name, make in TARGETS.items()}
    y = targets["labels"].reshape(2, 3)
    options = {"label_smoothing": 0.1, "softcap": 3.0, "temperature": 2.0, "z_loss": 0.125}

    def losses(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
        parts = [
            linear_cross_entropy(x, w, t, linear_bias=b, reduction=reduction, impl="torch", **given)
            for t in targets.values()
            for given in ({}, options)
        ]
        parts.append(linear_cross_entropy(x.reshape(2, 3, 4), w, y, reduction=reduction, impl="numpy", max_memory=9000))
        parts.append(linear_cross_entropy(x.bfloat16(), w.bfloat16(), targets["labels"], reduction=reduction))
        return torch.cat([part.float().reshape(-1) for part in parts])

    same(losses, x, w, b)


@each_reduction
def test_weights_under_compile(reduction: str) -> None:
    o, x, w, c, a = normal(5, 70), normal(5, 3), normal(70, 3), eighths(70), eighths(5)
    y = labels_for(o)

    def losses(o: Tensor, x: Tensor, w: Tensor) -> Tensor:
        first = cross_entropy(o, y, c, sample_weight=a, reduction=reduction)
        return first + linear_cross_entropy(x, w, y, weight=c, sample_weight=a, reduction=reduction)

    same(losses, o, x, w)


def test_frozen_sides_under_compile() -> None:
    x, w, y = normal(3, 4), normal(5, 4), torch.tensor([0, 4, -100])
    for reduction in REDUCTIONS:
        same(lambda x: linear_cross_entropy(x, w, y, reduction=reduction), x)  # noqa: B023
        torch._dynamo.reset()
        same(lambda w: linear_cross_entropy(x, w, y, reduction=reduction), w)  # noqa: B023
        torch._dynamo.reset()
        assert same_bits(
            compiled(lambda: linear_cross_entropy(x, w, y, reduction=reduction))(),  # noqa: B023
            linear_cross_entropy(x, w, y, reduction=reduction),
        )


@torch._dynamo.config.patch(error_on_recompile=False)
def test_one_graph_for_batches_of_every_size() -> None:
    def losses(o: Tensor, x: Tensor, w: Tensor, y: Tensor) -> Tensor:
        return cross_entropy(o, y) + linear_cross_entropy(x, w, y)

    function = compiled(losses, dynamic=True)
    for n in (4, 7, 12):
        torch._dynamo.config.error_on_recompile = n != 4
        tensors = [normal(n, 70), normal(n, 3), normal(70, 3)]
        y = labels_for(tensors[0])
        found = value_and_grads(lambda *t: function(*t, y), *tensors)  # noqa: B023
        expected = value_and_grads(lambda *t: losses(*t, y), *tensors)  # noqa: B023
        assert all(same_bits(a, b) for a, b in zip(found, expected, strict=True))


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.exhaustive  # compiles C++
def test_inductor() -> None:
    """With what the compiler fuses around it: to rounding."""
    x, w, y = normal(6, 4, dtype=torch.float32), normal(70, 4, dtype=torch.float32), torch.arange(6)

    def losses(x: Tensor, w: Tensor) -> Tensor:
        hidden = torch.tanh(x) * 2
        return cross_entropy(hidden @ w.T, y) + linear_cross_entropy(hidden, w, y, reduction="none").sum()

    try:
        found = value_and_grads(compiled(losses, backend="inductor"), x, w)
    except torch._inductor.exc.InductorError as error:
        assert "ompiler" in str(error), "no C++ compiler here"  # noqa: PT017
        return
    for a, b in zip(found, value_and_grads(losses, x, w), strict=True):
        near(a, b, torch.float32, units=256)


# --- what the operators do not do ------------------------------------------------------------------------------------


def test_numbers_and_weights_with_a_gradient() -> None:
    """A trained temperature and weights are computed in PyTorch's own operations, in the same graph."""
    o, y = normal(4, 5), torch.tensor([0, 4, -100, 2])
    t, a, w = torch.tensor(0.75, dtype=torch.float64), eighths(4), eighths(5)

    def function(f: Callable[..., Tensor]) -> Callable[..., Tensor]:
        return lambda o, t, s, a, w: f(o, y, w, sample_weight=a, temperature=t, logit_scale=s, z_loss=0.25)

    found = value_and_grads(compiled(function(cross_entropy)), o, t, 2 * t, a, w)
    for got, expected in zip(found, value_and_grads(function(formula), o, t, 2 * t, a, w), strict=True):
        near(got, expected, torch.float64)
    torch._dynamo.reset()
    near(compiled(lambda t: cross_entropy(o, y, temperature=t))(t), formula(o, y, temperature=t), torch.float64)


@each_reduction
def test_a_second_derivative_is_refused(reduction: str) -> None:
    y, w = torch.tensor([0, 1, 2]), normal(4, 3)
    for function, start in (
        (lambda o: cross_entropy(o, y, reduction=reduction), normal(3, 4)),
        (lambda x: linear_cross_entropy(x, w, y, reduction=reduction), normal(3, 3)),
    ):
        torch._dynamo.reset()
        leaf = followed(start)
        loss = compiled(function)(leaf).sum()
        with pytest.raises(RuntimeError):
            torch.autograd.grad(torch.autograd.grad(loss, leaf, create_graph=True)[0].square().sum(), leaf)


def test_a_label_outside_is_an_error_when_the_graph_runs() -> None:
    o, x, w = normal(3, 4), normal(3, 2), normal(4, 2)
    scale = torch.tensor(1.0, dtype=torch.float64, requires_grad=True)
    y = torch.tensor([0, 4, 1])
    for function in (
        lambda y: cross_entropy(o, y),
        lambda y: linear_cross_entropy(x, w, y),
        lambda y: cross_entropy(o, y, temperature=scale),
    ):
        torch._dynamo.reset()
        good = compiled(function)
        good(torch.tensor([0, 3, 1]))
        with pytest.raises((IndexError, RuntimeError), match="target"):
            good(y)


def test_options_are_checked_when_the_graph_is_made() -> None:
    o, y = normal(3, 4), torch.tensor([0, 3, 1])
    for given, name in (({"label_smoothing": 1.5}, "label_smoothing=1.5"), ({"softcap": -1.0}, "softcap=-1.0")):
        torch._dynamo.reset()
        with pytest.raises(Exception, match=name):
            compiled(lambda o: cross_entropy(o, y, **given))(o)  # noqa: B023


def test_by_products_under_compile() -> None:
    o, y = normal(3, 4), torch.tensor([0, 3, -100])
    for a, e in zip(compiled(lambda o: tuple(prediction_stats(o, y)))(o), prediction_stats(o, y), strict=True):
        near(a, e, torch.float64)


def test_the_modes_around_it() -> None:
    """No gradients, inference mode, autocast."""
    o, y = normal(3, 4, dtype=torch.float32), torch.tensor([0, 3, 1])
    expected = cross_entropy(o, y)
    for mode in (torch.no_grad, torch.inference_mode):
        torch._dynamo.reset()
        with mode():
            assert same_bits(compiled(cross_entropy)(o, y), expected)
    torch._dynamo.reset()
    with torch.autocast("cpu", torch.bfloat16):
        assert compiled(cross_entropy)(o.bfloat16(), y).dtype == torch.float32


# --- the operators themselves ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_the_operators_pass_pytorchs_own_check(reduction: str) -> None:
    for dtype, target in itertools.product((torch.float32, torch.bfloat16), TARGETS):
        o = normal(3, 70, dtype=dtype)
        y = TARGETS[target](o)
        pair = y if isinstance(y, tuple) else (y, None)
        ignored = -100 if target == "labels" else None
        call = make_call(1, dtype, ignored, reduction, 0.1, False, 1.0, None, 1.0, 0.125)
        settings = _operators.settings_of(call)
        arguments = (followed(o), *pair, eighths(70), None, *settings, reduction == "none")
        checks = ("test_schema", "test_autograd_registration", "test_faketensor", "test_aot_dispatch_dynamic")
        torch.library.opcheck(
            torch.ops.softgrad.row_values.default, arguments, test_utils=checks if target == "labels" else checks[:3]
        )
        plan = _operators.plan_of(_head.Plan(None, None, "torch", torch.float32))
        layer = (followed(normal(3, 4, dtype=dtype)), followed(normal(70, 4, dtype=dtype)), None)
        data = (*layer, *pair, eighths(70), None, *settings, *plan)
        tests = checks if target == "labels" and dtype == torch.float32 else checks[:3]
        loss = (call.reduction, call.z_loss, call.dtype)
        if reduction == "none":
            torch.library.opcheck(torch.ops.softgrad.head_values.default, (*data, True), test_utils=tests)
        else:
            torch.library.opcheck(
                torch.ops.softgrad.head_loss.default, (*data, *loss, [True, True, False]), test_utils=tests
            )
