"""Options as tensors, odd tensors in any argument, and modes around a call, on every path."""

from __future__ import annotations

import gc
import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.fx.experimental.proxy_tensor import make_fx
from torch.nn import functional as F  # noqa: N812
from torch.utils.checkpoint import checkpoint
from torch.utils.flop_counter import FlopCounterMode
from torch_cases import eighths, followed, formula, labels_for, near, normal, same_bits, soft_for, value_and_grads

from softgrad.torch import (
    CrossEntropyLoss,
    LinearCrossEntropyLoss,
    _dispatch,
    _memory,
    _rows,
    cross_entropy,
    linear_cross_entropy,
    linear_prediction_stats,
    prediction_stats,
)

X, W = normal(4, 3, dtype=torch.float32), normal(7, 3, dtype=torch.float32, seed=1)
O, Y = normal(4, 7, dtype=torch.float32, seed=2), torch.tensor([0, 6, 3, 1])  # noqa: E741
NUMBERS = {"logit_scale": 1.5, "softcap": 2.5, "temperature": 0.75, "z_loss": 0.125, "label_smoothing": 0.25}

LOSSES: dict[str, Callable[..., Tensor]] = {
    "logits": lambda **o: cross_entropy(O, Y, **o),
    "head": lambda **o: linear_cross_entropy(X, W, Y, **o),
    "head in PyTorch's operations": lambda **o: linear_cross_entropy(X, W, Y, impl="composite", **o),
    "module": lambda **o: CrossEntropyLoss(**o)(O, Y),
}
TRUTH = {name: O if name in ("logits", "module") else X @ W.T for name in LOSSES}


# --- numbers that are tensors ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("name", NUMBERS)
def test_a_tensor_is_read_at_each_call(name: str, loss: str) -> None:
    number = torch.tensor(NUMBERS[name])
    LOSSES[loss](**{name: number})
    number.mul_(0.5)
    near(LOSSES[loss](**{name: number}), formula(TRUTH[loss], Y, **{name: number.item()}), torch.float32)


@pytest.mark.parametrize("target", ["labels", "soft", "sparse"])
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("name", NUMBERS)
def test_every_number_is_followed(name: str, reduction: str, target: str) -> None:
    o, x, w = (normal(*shape, seed=3) for shape in ((5, 70), (5, 3), (70, 3)))
    y: Any = labels_for(o) if target == "labels" else soft_for(o)
    if target == "sparse":
        y = (torch.tensor([[1, 4], [2, -1], [0, 3], [69, 69], [7, 8]]), eighths(5, 2))
    others = {n: v for n, v in NUMBERS.items() if n != name}

    def losses(function: Any, *layer: Tensor) -> list[Tensor]:
        number = followed(torch.tensor(NUMBERS[name], dtype=torch.float64))
        leaves = [followed(t) for t in layer]
        loss = function(*leaves, y, **{name: number}, reduction=reduction, **others)
        found = torch.autograd.grad(loss.sum(), [*leaves, number])
        again = function(*leaves, y, **{name: number}, reduction=reduction, **others).sum()
        (again,) = torch.autograd.grad(again, number)
        assert same_bits(again, found[-1])
        return [loss.detach(), *found]

    for mine, right in zip(losses(cross_entropy, o), losses(formula, o), strict=True):
        near(mine, right, torch.float64, name, 256)
    expected = losses(lambda a, b, *rest, **given: formula(a @ b.T, *rest, **given), x, w)
    for mine, right in zip(losses(linear_cross_entropy, x, w), expected, strict=True):
        near(mine, right, torch.float64, name, 256)


def test_logits_need_no_gradient_for_a_number_to_be_learnt() -> None:
    o = normal(300, 70)
    y = labels_for(o)
    tau = followed(torch.tensor(0.75, dtype=torch.float64))
    (mine,) = torch.autograd.grad(cross_entropy(o, y, temperature=tau), tau)
    (right,) = torch.autograd.grad(F.cross_entropy(o / tau, y), tau)
    near(mine, right, torch.float64)


def test_parameters_of_modules_are_learnt() -> None:
    for name, value in NUMBERS.items():
        module = CrossEntropyLoss(**{name: torch.nn.Parameter(torch.tensor(value))})
        head = LinearCrossEntropyLoss(3, 7, **{name: torch.nn.Parameter(torch.tensor(value))})
        assert name in dict(module.named_parameters())
        module(O, Y).backward()
        head(X, Y).backward()
        assert getattr(module, name).grad != 0
        assert getattr(head, name).grad != 0


def test_derivatives_at_large_offsets() -> None:
    """Logits of 1e30 with one common offset: derivatives by numbers are those of the differences."""
    o = followed(torch.full((2, 70), 1e30, dtype=torch.float64))
    scale = followed(torch.tensor(1.0, dtype=torch.float64))
    by_logits, by_scale = torch.autograd.grad(cross_entropy(o, torch.tensor([3, 9]), logit_scale=scale), [o, scale])
    near(
        by_logits,
        (torch.full((2, 70), 1 / 70, dtype=torch.float64) - F.one_hot(torch.tensor([3, 9]), 70)) / 2,
        torch.float64,
    )
    assert by_scale == 0


# --- labels of any type ----------------------------------------------------------------------------------------------

TYPES = (torch.uint8, torch.int8, torch.int16, torch.uint16, torch.int32, torch.uint32, torch.int64, torch.uint64)


@pytest.mark.parametrize("dtype", TYPES, ids=str)
@pytest.mark.parametrize("classes", [120, 250, 300])
def test_labels_compare_by_their_values(classes: int, dtype: torch.dtype) -> None:
    """156 is −100 in eight bits, and 2³² − 100 in 32: neither is the ignored label."""
    o = normal(3, classes, dtype=torch.float32)
    most = min(classes, torch.iinfo(dtype).max + 1) - 1
    labels = torch.tensor([1, min(156, most), most]).to(dtype)
    right = F.cross_entropy(o, labels.long(), reduction="none")
    tau = torch.tensor(1.0, requires_grad=True)
    h, w = normal(3, 4, dtype=torch.float32), normal(classes, 4, dtype=torch.float32)
    paths = {
        "kernels": lambda: cross_entropy(o, labels, reduction="none"),
        "temperature": lambda: cross_entropy(o, labels, reduction="none", temperature=tau),
        "smoothing": lambda: cross_entropy(o, labels, reduction="none", label_smoothing=tau.detach() * 0),
        "vmap": lambda: torch.vmap(lambda a, b: cross_entropy(a, b))(o, labels),
        "statistics": lambda: -prediction_stats(o, labels).log_prob,
    }
    for name, call in paths.items():
        near(call().detach(), right.double(), torch.float32, name)
    right = F.cross_entropy(h @ w.T, labels.long(), reduction="none")
    for impl in (None, "composite"):
        near(linear_cross_entropy(h, w, labels, reduction="none", impl=impl), right.double(), torch.float32, impl)
        near(-linear_prediction_stats(h, w, labels, impl=impl).log_prob, right.double(), torch.float32, impl)


def test_a_label_beyond_int64_is_outside() -> None:
    labels = torch.tensor([1, 2**64 - 100, 0], dtype=torch.uint64)
    tau = torch.tensor(1.0, requires_grad=True)
    for given in ({}, {"temperature": tau}, {"label_smoothing": tau * 0}):
        with pytest.raises(IndexError, match=r"target\[1\] is 18446744073709551516, outside \[0, 7\)"):
            cross_entropy(O[:3], labels, **given)


# --- subclasses and wrappers -----------------------------------------------------------------------------------------


class Wrapped(Tensor):
    """A tensor without memory of its own."""

    inner: Tensor

    @staticmethod
    def __new__(cls, inner: Tensor) -> Any:
        return Tensor._make_wrapper_subclass(cls, inner.shape, dtype=inner.dtype)

    def __init__(self, inner: Tensor) -> None:
        self.inner = inner

    @classmethod
    def __torch_dispatch__(cls, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        plain = [a.inner if isinstance(a, cls) else a for a in args]
        result = function(*plain, **(kwargs or {}))
        same = function is torch.ops.aten.detach.default and isinstance(args[0], cls)
        return cls(result) if same else result


@pytest.mark.parametrize("argument", ["input", "target", "weight", "sample_weight", "linear_weight", "linear_bias"])
def test_a_tensor_without_memory_in_any_argument(argument: str) -> None:
    given = {
        "input": O, "target": Y, "weight": eighths(7).float(), "sample_weight": eighths(4).float(),
        "linear_weight": W, "linear_bias": eighths(7).float(),
    }  # fmt: skip
    changed = {n: Wrapped(t) if n == argument else t for n, t in given.items()}
    plain = [n for n in given if not n.startswith("linear")]
    if argument in plain:
        near(cross_entropy(**{n: changed[n] for n in plain}), formula(*(given[n] for n in plain[:3]),
             sample_weight=given["sample_weight"]), torch.float32)  # fmt: skip
        statistics = {n: changed[n] for n in ("input", "target", "sample_weight")}
        near(prediction_stats(**statistics).lse, torch.logsumexp(O, 1).double(), torch.float32)
    changed["input"] = Wrapped(X) if argument == "input" else X
    logits = F.linear(X, W, given["linear_bias"])
    near(linear_cross_entropy(**changed), formula(logits, Y, given["weight"], sample_weight=given["sample_weight"]),
         torch.float32)  # fmt: skip
    del changed["weight"]
    near(linear_prediction_stats(**changed).lse, torch.logsumexp(logits, 1).double(), torch.float32)


@pytest.mark.parametrize("kind", ["negative", "conjugate"])
def test_views_of_other_bits(kind: str) -> None:
    def view(t: Tensor) -> Tensor:
        if kind == "negative":
            return torch.complex(t, -t).conj().imag  # the negative bit over −t: t
        return torch.complex(t, torch.zeros_like(t)).conj().resolve_conj().real

    weight, a, soft = eighths(7), eighths(4), soft_for(O.double())
    o, x, w = view(O.double()), view(X.double()), view(W.double())
    assert o.is_neg() == (kind == "negative")
    for y in (Y, view(soft)):
        right = formula(O.double(), y, weight, sample_weight=a)
        near(cross_entropy(o, y, view(weight), sample_weight=view(a)), right, torch.float64)
        right = formula(X.double() @ W.double().T, y, weight, sample_weight=a)
        near(linear_cross_entropy(x, w, y, weight=view(weight), sample_weight=view(a)), right, torch.float64)
    near(prediction_stats(o).lse, torch.logsumexp(O.double(), 1), torch.float64)


def test_memory_that_was_freed_is_refused() -> None:
    for spoilt in ("input", "target", "weight"):
        tensors = {"input": O.clone(), "target": Y.clone(), "weight": eighths(7).float()}
        tensors[spoilt].untyped_storage().resize_(0)
        with pytest.raises((ValueError, RuntimeError)):
            cross_entropy(**tensors)


def test_jagged_logits_are_told_what_to_do() -> None:
    jagged = torch.nested.nested_tensor([torch.zeros(2, 3), torch.zeros(4, 3)], layout=torch.jagged)
    with pytest.raises(TypeError, match=r"input\.values\(\)"):
        cross_entropy(jagged, Y)
    with pytest.raises(TypeError, match=r"input\.to_dense\(\)"):
        cross_entropy(O.to_sparse(), Y)


# --- weights and what comes from above -------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [float("inf"), float("-inf"), float("nan")])
@pytest.mark.parametrize("name", ["weight", "sample_weight"])
def test_weights_that_are_not_finite_are_refused_on_every_path(name: str, value: float) -> None:
    weight = torch.ones(7 if name == "weight" else 4)
    weight[3] = value
    tau = torch.tensor(1.0, requires_grad=True)
    calls: list[Callable[[], Any]] = [
        lambda: cross_entropy(O, Y, **{name: weight}),
        lambda: cross_entropy(O, Y, temperature=tau, **{name: weight}),
        lambda: cross_entropy(O, Y, label_smoothing=tau * 0, **{name: weight}),
        lambda: linear_cross_entropy(X, W, Y, **{name: weight}),
        lambda: linear_cross_entropy(X, W, Y, impl="composite", **{name: weight}),
        lambda: torch.func.grad(lambda o: cross_entropy(o, Y, **{name: weight}))(O),
    ]
    for call in calls:
        with pytest.raises(ValueError, match=rf"{name}\[3\] is"):
            call()


@pytest.mark.parametrize("upstream", [float("inf"), float("nan")])
@pytest.mark.parametrize("classes", [5, 2049])
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_ignored_rows_get_zero_whatever_comes_from_above(reduction: str, classes: int, upstream: float) -> None:
    y = torch.tensor([-100, 1, 2])
    options: list[dict[str, Any]] = [{}, {"z_loss": 0.1}, {"sample_weight": torch.tensor([1.0, 0.0, 1.0])}]
    for dtype, given in itertools.product((torch.float32, torch.bfloat16), options):
        o = torch.zeros(3, classes, dtype=dtype, requires_grad=True)
        loss = cross_entropy(o, y, reduction=reduction, **given)
        (gradient,) = torch.autograd.grad(loss, o, torch.full_like(loss, upstream))
        assert (gradient[0] == 0).all()
        if "sample_weight" in given:
            assert (gradient[1] == 0).all()


@pytest.mark.parametrize("classes", [2, 70, 4000])
def test_a_total_beyond_the_type_is_infinite_without_a_warning(classes: int) -> None:
    o = torch.zeros(2, classes)
    o[:, 0] = 3e38
    for function in (cross_entropy, lambda a, *b, **c: linear_cross_entropy(a, torch.eye(classes), *b, **c)):
        assert function(o, torch.tensor([1, 1]), reduction="sum") == torch.inf


# --- modes around a call ---------------------------------------------------------------------------------------------


def test_another_default_device() -> None:
    big, many = torch.ones(600, 300).double(), torch.zeros(600).long()
    ignored = torch.full((4,), -100)
    with torch.device("meta"):
        found = [
            cross_entropy(O, Y), cross_entropy(O, ignored), cross_entropy(big, many), cross_entropy(O, Y, z_loss=0.1),
            linear_cross_entropy(X, W, Y, impl="numpy"), linear_cross_entropy(X, W, Y),
            linear_cross_entropy(X, W, Y, impl="composite"), linear_cross_entropy(X, W, ignored),
            *prediction_stats(O, Y), *linear_prediction_stats(X, W, Y),
        ]  # fmt: skip
    assert {t.device.type for t in found} == {"cpu"}


@pytest.mark.parametrize("impl", [None, "numpy", "torch"])
def test_a_flop_counter_sees_no_trial(impl: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    from softgrad.torch import _products

    monkeypatch.setattr(_products, "_chosen", {})
    counts = []
    for _ in range(2):
        x, w = followed(normal(64, 32, dtype=torch.float32)), followed(normal(70, 32, dtype=torch.float32))
        with FlopCounterMode(display=False) as counter:
            linear_cross_entropy(x, w, torch.zeros(64, dtype=torch.long), impl=impl).backward()
        counts.append(counter.get_total_flops())
    assert counts[0] == counts[1]


@pytest.mark.parametrize("mode", ["real", "fake", "symbolic"])
def test_make_fx(mode: str) -> None:
    other = normal(4, 7, dtype=torch.float32, seed=9)
    functions: list[tuple[Callable[..., Tensor], Tensor]] = [
        (lambda a, b: cross_entropy(a, b), F.cross_entropy(other, Y)),
        (
            lambda a, b: linear_cross_entropy(a[:, :3], a.T[:, :3], b),
            F.cross_entropy(other[:, :3] @ other.T[:, :3].T, Y),
        ),
        (lambda a, b: -prediction_stats(a, b).log_prob.mean(), F.cross_entropy(other, Y)),
    ]
    for function, right in functions:
        graph = make_fx(function, tracing_mode=mode)(O, Y)
        near(graph(other, Y), right.double(), torch.float32)
        with pytest.raises(RuntimeError, match="target"):
            graph(other, torch.tensor([0, 7, 1, 2]))


# --- memory ----------------------------------------------------------------------------------------------------------


def test_a_checkpoint_keeps_no_gradient_of_the_logits(monkeypatch: pytest.MonkeyPatch) -> None:
    """The gradient that is made with the loss is N×V numbers, which a checkpoint is there to drop."""
    made: list[str] = []
    usual = _rows.LossFunction.apply
    monkeypatch.setattr(_rows.LossFunction, "apply", lambda *a: (made.append("with the loss"), usual(*a))[1])
    leaf = followed(normal(6, 300))
    y = labels_for(leaf)
    loss = checkpoint(lambda o: cross_entropy(o * 2, y), leaf, use_reentrant=False)
    assert not made
    (mine,) = torch.autograd.grad(loss, leaf)
    again = followed(leaf.detach())
    (right,) = torch.autograd.grad(F.cross_entropy(again * 2, y), again)
    near(mine, right, torch.float64)


def test_a_gradient_in_a_cycle_may_be_collected_while_another_is_allocated() -> None:
    """Its finalizer takes no lock that the allocation holds."""
    shape = (1100, 1000)

    class Holder:
        me: Holder
        gradient: Any

    for count in range(20):
        gc.collect()
        gc.disable()
        _memory.empty(shape, "f4")
        holder = Holder()
        holder.me, holder.gradient = holder, _memory.empty(shape, "f4")
        del holder
        gc.set_threshold(max(1, gc.get_count()[0] + count))
        gc.enable()
        assert _memory.empty(shape, "f4").shape == shape
    gc.set_threshold(700)


def test_gradients_of_images_have_the_strides_of_the_images() -> None:
    o = followed(normal(2, 5, 3, 4, dtype=torch.float32))
    theirs, mine = followed(o.detach()), o
    y = torch.zeros(2, 3, 4, dtype=torch.long)
    F.cross_entropy(theirs, y).backward()
    cross_entropy(mine, y).backward()
    assert mine.grad.stride() == theirs.grad.stride()
    near(mine.grad, theirs.grad.double(), torch.float32)


# --- a predicate -----------------------------------------------------------------------------------------------------


def test_who_computes() -> None:
    paths = _dispatch.CodePath
    choose = _dispatch.choose_path
    assert choose(O, (Y, None), {}) is paths.KERNELS
    assert choose(O.half(), (Y,), {}) is paths.KERNELS
    assert choose(O, (Wrapped(Y),), {}) is paths.FORMULAS
    assert choose(O.to("meta"), (Y,), {}) is paths.FORMULAS
    assert choose(O, (Y,), {"label_smoothing": torch.tensor(0.1, requires_grad=True)}) is paths.FORMULAS
    loss, grads = value_and_grads(cross_entropy, [leaf := followed(O)], leaf, Y)
    assert loss.dtype == grads[0].dtype == torch.float32
