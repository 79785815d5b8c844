"""Derivatives of every order and mode: right, or refused; never zero or wrong in silence."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.autograd import forward_ad, gradcheck, gradgradcheck
from torch.nn import functional as F  # noqa: N812
from torch_cases import (
    REDUCTIONS,
    eighths,
    followed,
    formula,
    labels_for,
    linear_formula,
    near,
    normal,
    same_bits,
    soft_for,
    sparse_for,
    upstream_for,
)

from softgrad.torch import cross_entropy, linear_cross_entropy, linear_prediction_stats, prediction_stats

# PyTorch's own: it loads its formulas of forward mode by `torch.jit.script`.
pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:DeprecationWarning")
each_reduction = pytest.mark.parametrize("reduction", REDUCTIONS)
Z, Y = normal(3, 4), torch.tensor([1, -100, 3])
X, W, B = normal(3, 2, seed=1), normal(4, 2, seed=2), normal(4, seed=3)
A, C = eighths(3), eighths(4)
OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "weights": {"weight": C, "sample_weight": A},
    "smoothing and z-loss": {"label_smoothing": 0.25, "z_loss": 0.5, "weight": C},
    "softcap": {"softcap": 1.5, "temperature": 0.75, "logit_scale": -1.25, "z_loss": 0.25},
}
TARGETS = {"labels": Y, "soft": soft_for(Z), "sparse": sparse_for(Z, torch.float64)}


def both_checks(function: Callable[..., Any], *inputs: Tensor) -> None:
    leaves = tuple(followed(t) for t in inputs)
    assert gradcheck(function, leaves, check_forward_ad=True, check_batched_grad=True)
    assert gradgradcheck(function, leaves, fast_mode=True)


# --- against finite differences --------------------------------------------------------------------------------------


@each_reduction
@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("options", OPTIONS)
def test_gradcheck_by_the_logits(options: str, target: str, reduction: str) -> None:
    y, given = TARGETS[target], OPTIONS[options]
    both_checks(lambda o: cross_entropy(o, y, reduction=reduction, **given), Z)


@each_reduction
def test_gradcheck_by_soft_targets(reduction: str) -> None:
    for given in OPTIONS.values():
        index, values = TARGETS["sparse"]
        both_checks(lambda o, y: cross_entropy(o, y, reduction=reduction, **given), Z, TARGETS["soft"])  # noqa: B023
        both_checks(lambda o, v: cross_entropy(o, (index, v), reduction=reduction, **given), Z, values)  # noqa: B023


@each_reduction
def test_gradcheck_by_weights_and_temperatures(reduction: str) -> None:
    number = torch.tensor(0.75, dtype=torch.float64)
    for y in (Y, TARGETS["soft"]):
        both_checks(
            lambda o, w, a, t, s: cross_entropy(
                o, y, w, sample_weight=a, temperature=t, logit_scale=s, softcap=2.0, z_loss=0.25, reduction=reduction  # noqa: B023
            ),
            Z, C, A, number, number * 2,
        )  # fmt: skip


@each_reduction
@pytest.mark.parametrize("options", OPTIONS)
def test_gradcheck_of_the_linear_head(options: str, reduction: str) -> None:
    for y in TARGETS.values():
        both_checks(
            lambda x, w, b: linear_cross_entropy(x, w, y, linear_bias=b, reduction=reduction, **OPTIONS[options]),  # noqa: B023
            X, W, B,
        )  # fmt: skip


@each_reduction
def test_gradcheck_of_the_linear_head_by_weights_temperatures_and_targets(reduction: str) -> None:
    number = torch.tensor(0.75, dtype=torch.float64)

    def of_weights(x: Tensor, w: Tensor, c: Tensor, a: Tensor, t: Tensor) -> Tensor:
        return linear_cross_entropy(x, w, Y, weight=c, sample_weight=a, temperature=t, z_loss=0.25, reduction=reduction)

    both_checks(of_weights, X, W, C, A, number)
    index, values = TARGETS["sparse"]
    both_checks(lambda x, w, y: linear_cross_entropy(x, w, y, reduction=reduction), X, W, TARGETS["soft"])
    both_checks(lambda x, w, v: linear_cross_entropy(x, w, (index, v), reduction=reduction), X, W, values)


def floats(stats: Any) -> tuple[Tensor, ...]:
    return stats.lse, stats.log_prob, stats.entropy


def test_gradcheck_of_the_by_products() -> None:
    number, y = torch.tensor(0.75, dtype=torch.float64), torch.tensor([1, 0, 3])
    for target in (y, TARGETS["soft"], TARGETS["sparse"]):
        for given in ({}, {"softcap": 1.5, "temperature": 0.5}):
            f = lambda o: floats(prediction_stats(o, target, **given))  # noqa: B023, E731
            assert gradcheck(f, followed(Z))
            assert gradgradcheck(f, followed(Z), fast_mode=True)
            f2 = lambda x, w, b: floats(linear_prediction_stats(x, w, target, linear_bias=b, **given))  # noqa: B023, E731
            assert gradcheck(f2, (followed(X), followed(W), followed(B)))
            assert gradgradcheck(f2, (followed(X), followed(W), followed(B)), fast_mode=True)
    assert gradcheck(lambda o, t: floats(prediction_stats(o, y, temperature=t)), (followed(Z), followed(number)))
    assert gradcheck(
        lambda x, t: floats(linear_prediction_stats(x, W, y, logit_scale=t)), (followed(X), followed(number))
    )


def test_forward_mode_of_the_by_products() -> None:
    y = torch.tensor([1, 0, 3])
    for f, at, plain in (
        (lambda o: prediction_stats(o, y).entropy, Z, lambda o: torch.special.entr(o.softmax(1)).sum(1)),
        (lambda o: prediction_stats(o, y).log_prob, Z, lambda o: -F.cross_entropy(o, y, reduction="none")),
        (lambda x: linear_prediction_stats(x, W, y).lse, X, lambda x: (x @ W.T).logsumexp(1)),
    ):
        v = normal(*at.shape, seed=4)
        expected = torch.func.jvp(plain, (at,), (v,))[1]
        near(torch.func.jvp(f, (at,), (v,))[1], expected, torch.float64)
        with forward_ad.dual_level():
            near(forward_ad.unpack_dual(f(forward_ad.make_dual(at, v))).tangent, expected, torch.float64)


@pytest.mark.usefixtures("passes")
def test_third_derivatives() -> None:
    for given, target in itertools.product(OPTIONS.values(), (torch.tensor([1, 0, 3]), TARGETS["soft"])):

        def third(function: Callable[..., Tensor]) -> Tensor:
            o = followed(Z)
            (g,) = torch.autograd.grad(function(o, target, **given), o, create_graph=True)  # noqa: B023
            (h,) = torch.autograd.grad((g * g * normal(*Z.shape, seed=5)).sum(), o, create_graph=True)
            return torch.autograd.grad((h * h).sum(), o)[0]

        near(third(cross_entropy), third(formula), torch.float64, given, 512)


# --- torch.func ------------------------------------------------------------------------------------------------------

TRANSFORMS: dict[str, Callable[..., Any]] = {
    "grad": lambda f, o: torch.func.grad(lambda p: f(p).sum())(o),
    "vjp": lambda f, o: (lambda r: r[1](upstream_for(r[0]))[0])(torch.func.vjp(f, o)),
    "jvp": lambda f, o: torch.func.jvp(f, (o,), (normal(*o.shape, seed=6),))[1],
    "jacrev": lambda f, o: torch.func.jacrev(f)(o),
    "jacfwd": lambda f, o: torch.func.jacfwd(f)(o),
    "hessian": lambda f, o: torch.func.hessian(f)(o),
    "jacrev of jacrev": lambda f, o: torch.func.jacrev(torch.func.jacrev(f))(o),
    "jacfwd of jacfwd": lambda f, o: torch.func.jacfwd(torch.func.jacfwd(f))(o),
    "vmap": lambda f, o: torch.vmap(f)(torch.stack([o, 2 * o, -o])),
    "vmap(grad)": lambda f, o: torch.vmap(torch.func.grad(lambda p: f(p).sum()))(torch.stack([o, 2 * o])),
    "grad of vmap": lambda f, o: torch.func.grad(lambda p: torch.vmap(f, 1)(torch.stack([p, 2 * p], 1)).sum())(o),
    "vmap(jvp)": lambda f, o: torch.vmap(lambda v: torch.func.jvp(f, (o,), (v,))[1])(normal(3, *o.shape, seed=7)),
    "vmap(hessian)": lambda f, o: torch.vmap(torch.func.hessian(f))(torch.stack([o, -o])),
}


@pytest.mark.parametrize("transform", TRANSFORMS)
@each_reduction
def test_transforms_give_what_pytorchs_function_gives(reduction: str, transform: str) -> None:
    given = {"reduction": reduction, "label_smoothing": 0.25, "weight": C}
    for target in (Y, TARGETS["soft"]):
        ours = TRANSFORMS[transform](lambda o: cross_entropy(o, target, **given), Z)  # noqa: B023
        theirs = TRANSFORMS[transform](lambda o: F.cross_entropy(o, target, **given), Z)  # noqa: B023
        near(ours, theirs, torch.float64, transform, 512)
        ours = TRANSFORMS[transform](lambda w: linear_cross_entropy(X, w, target, linear_bias=B, **given), W)  # noqa: B023
        theirs = TRANSFORMS[transform](lambda w: F.cross_entropy(F.linear(X, w, B), target, **given), W)  # noqa: B023
        near(ours, theirs, torch.float64, transform, 512)


def test_vmap_over_targets_weights_and_logits_together() -> None:
    o, y, a = normal(5, 3, 4), torch.randint(4, (5, 3)), eighths(5, 3)

    def per_example(f: Callable[..., Tensor]) -> Any:
        return torch.func.grad(lambda p, t, s: f(p, t, sample_weight=s))

    near(
        torch.vmap(per_example(cross_entropy))(o, y, a), torch.vmap(per_example(formula))(o, y, a), torch.float64, "",
    )  # fmt: skip
    near(torch.vmap(cross_entropy, (None, 0))(Z, y), torch.vmap(F.cross_entropy, (None, 0))(Z, y), torch.float64)
    near(
        torch.vmap(cross_entropy, (2, 1))(o.movedim(0, 2), y.T), torch.vmap(F.cross_entropy)(o, y), torch.float64, "",
    )  # fmt: skip
    with pytest.raises(IndexError, match="target"):
        torch.vmap(cross_entropy)(o, y + 4)


# --- nothing wrong in silence ----------------------------------------------------------------------------------------

MODES = (
    "reverse", "forward", "func.grad", "func.jvp", "vmap(grad)", "create_graph", "forward over reverse",
    "forward over forward", "compiled reverse", "compiled func.grad", "compiled func.jvp",
    "compiled with dual inputs", "compiled twice",
)  # fmt: skip
ORDERS = {"create_graph": 2, "forward over reverse": 2, "forward over forward": 2, "compiled twice": 2}


@dataclass
class Case:
    """A loss as a function of one of its arguments, and the same by the formula."""

    ours: Callable[[Tensor], Tensor]
    formula: Callable[[Tensor], Tensor]
    at: Tensor


def case_of(function: str, argument: str, reduction: str) -> Case:
    y = torch.tensor([1, 0, 3])
    index, values = TARGETS["sparse"]
    one = torch.tensor(0.75, dtype=torch.float64)
    start: dict[str, Any] = {
        "input": Z if function == "cross_entropy" else X, "linear_weight": W, "linear_bias": B, "weight": C,
        "sample_weight": A, "temperature": one, "logit_scale": one, "soft target": TARGETS["soft"],
        "sparse values": values,
    }  # fmt: skip

    def called(f: Callable[..., Tensor], p: Tensor) -> Tensor:
        given = {**start, argument: p}
        options = {"reduction": reduction, "z_loss": 0.25}
        options |= {k: given[k] for k in ("weight", "sample_weight", "temperature", "logit_scale") if k == argument}
        target: Any = y
        if argument == "soft target":
            target = p
        elif argument == "sparse values":
            target = (index, p)
        if function == "cross_entropy":
            return f(given["input"], target, **options)
        return f(given["input"], given["linear_weight"], target, linear_bias=given["linear_bias"], **options)

    ours, theirs = {
        "cross_entropy": (cross_entropy, formula),
        "linear_cross_entropy": (linear_cross_entropy, linear_formula),
    }[function]
    return Case(lambda p: called(ours, p), lambda p: called(theirs, p), start[argument])


def derivative(f: Callable[[Tensor], Tensor], at: Tensor, mode: str, *, compiled: bool) -> Tensor:
    """One derivative of ``f`` in a mode; of order one along a direction, of order two along another one as well."""
    v = normal(*at.shape, seed=8) if at.ndim else torch.tensor(0.5, dtype=torch.float64)

    g = upstream_for(f(at))

    def total(p: Tensor) -> Tensor:
        return (f(p) * g).sum()

    def compile_(g: Callable[..., Any]) -> Callable[..., Any]:
        torch._dynamo.reset()
        return torch.compile(g, backend="aot_eager", fullgraph=True) if compiled else g

    def dual(g: Callable[..., Any]) -> Tensor:
        with forward_ad.dual_level():
            tangent = forward_ad.unpack_dual(g(forward_ad.make_dual(at, v))).tangent
            assert tangent is not None
            return tangent.clone()

    if mode in ("reverse", "compiled reverse"):
        leaf = followed(at)
        return torch.autograd.grad(compile_(total)(leaf), leaf)[0]
    if mode in ("forward", "compiled with dual inputs"):
        return dual(compile_(f))
    if mode in ("func.grad", "compiled func.grad"):
        return compile_(torch.func.grad(total))(at)
    if mode in ("func.jvp", "compiled func.jvp"):
        return compile_(lambda p: torch.func.jvp(f, (p,), (v,))[1])(at)
    if mode == "vmap(grad)":
        return torch.vmap(torch.func.grad(total))(torch.stack([at, at * 0.5]))
    if mode == "forward over forward":
        return torch.func.jvp(lambda p: torch.func.jvp(f, (p,), (v,))[1], (at,), (v,))[1]
    if mode == "forward over reverse":
        return torch.func.jvp(torch.func.grad(total), (at,), (v,))[1]
    leaf = followed(at)
    (first,) = torch.autograd.grad(compile_(total)(leaf), leaf, create_graph=True)
    if not first.requires_grad and not compiled:  # the loss is linear in it
        return torch.zeros_like(at)
    (second,) = torch.autograd.grad((first * v).sum(), leaf, allow_unused=not compiled)
    return torch.zeros_like(at) if second is None else second


LOGITS = ("input", "weight", "sample_weight", "temperature", "logit_scale", "soft target", "sparse values")
ARGUMENTS = {
    "cross_entropy": LOGITS,
    "linear_cross_entropy": ("input", "linear_weight", "linear_bias", *LOGITS[1:]),
}
COMPILED = {  # one for each way of computing: a compilation takes a second
    "cross_entropy": ("input", "temperature", "soft target"),
    "linear_cross_entropy": ("linear_weight", "sample_weight"),
}
BRIEFLY = {"cross_entropy": ("input", "temperature"), "linear_cross_entropy": ("linear_weight",)}
SWEEP = [
    (function, argument, mode)
    for mode in MODES
    for function, arguments in (
        ARGUMENTS
        if "compiled" not in mode
        else COMPILED
        if mode in ("compiled reverse", "compiled with dual inputs")
        else BRIEFLY
    ).items()
    for argument in arguments
]


@pytest.mark.parametrize(("function", "argument", "mode"), SWEEP)
def test_no_path_is_wrong_in_silence(function: str, argument: str, mode: str) -> None:
    """Right to float64's rounding, or an exception; in eager mode right."""
    reductions = ("mean", "none") if "compiled" not in mode else ("none",) if mode == "compiled reverse" else ("mean",)
    for reduction in reductions:
        case = case_of(function, argument, reduction)
        order = mode.replace("compiled ", "").replace("with dual inputs", "forward").replace("twice", "create_graph")
        expected = derivative(case.formula, case.at, order, compiled=False)
        linear = argument in ("soft target", "sparse values") or (reduction == "none" and "weight" in argument)
        assert (linear and mode in ORDERS) or expected.abs().max() > 1e-3, "the case proves nothing"
        try:
            found = derivative(case.ours, case.at, mode, compiled="compiled" in mode)
        except (RuntimeError, NotImplementedError) as error:
            if "compiled" in mode and mode != "compiled reverse":
                continue  # refused
            raise AssertionError("eager mode and compiled reverse mode refuse nothing") from error
        near(found, expected, torch.float64, f"{reduction} {mode}", 4096, floor=0.1)


@pytest.mark.filterwarnings("ignore:Attempted to insert a get_attr Node")
def test_linearize_is_right_or_refused() -> None:
    v = normal(*Z.shape, seed=6)
    expected = torch.func.jvp(lambda o: F.cross_entropy(o, Y), (Z,), (v,))[1]
    try:
        _, tangent = torch.func.linearize(lambda o: cross_entropy(o, Y), Z)
    except RuntimeError:
        return
    near(tangent(v), expected, torch.float64)


# --- the graph's own rules -------------------------------------------------------------------------------------------


@each_reduction
@pytest.mark.usefixtures("passes")
def test_backward_again_under_retain_graph_gives_the_same_bits(reduction: str) -> None:
    leaves = [followed(t) for t in (normal(3, 70), X, W, B)]
    o, x, w, b = leaves
    for loss, by in (
        (cross_entropy(o, Y, reduction=reduction), [o]),
        (linear_cross_entropy(x, w, Y, linear_bias=b, reduction=reduction), [x, w, b]),
    ):
        g = upstream_for(loss)
        first, second, third = (
            [t.clone() for t in torch.autograd.grad(loss, by, k * g, retain_graph=True)] for k in (1, 1, 2)
        )
        assert all(same_bits(a, c) for a, c in zip(first, second, strict=True))
        assert all(same_bits(2 * a, c) for a, c in zip(first, third, strict=True))


@each_reduction
@pytest.mark.usefixtures("passes")
def test_a_gradient_is_its_receivers_own(reduction: str) -> None:
    """What a hook does to a gradient it received changes no later one."""
    for make in (
        lambda: (lambda o: (cross_entropy(o, Y, reduction=reduction), [o]))(followed(Z)),
        lambda: (lambda x, w: (linear_cross_entropy(x, w, Y, reduction=reduction), [x, w]))(followed(X), followed(W)),
    ):
        loss, by = make()
        g = torch.ones_like(loss)
        first = torch.autograd.grad(loss, by, g, retain_graph=True)
        kept = [t.clone() for t in first]
        for t in first:
            t.fill_(7.0)
        for a, c in zip(torch.autograd.grad(loss, by, g), kept, strict=True):
            assert same_bits(a, c)


@pytest.mark.usefixtures("passes")
def test_without_retain_graph_a_second_backward_raises() -> None:
    o = followed(Z)
    loss = cross_entropy(o, Y)
    loss.backward()
    with pytest.raises(RuntimeError, match="second time"):
        loss.backward()


@each_reduction
@pytest.mark.usefixtures("passes")
def test_what_was_saved_and_then_written_to_raises(reduction: str) -> None:
    for spoil in ("logits", "target", "weight", "sample_weight", "x", "linear_weight"):
        o, x, w = (followed(t) * 1 for t in (Z, X, W))
        y, c, a = TARGETS["soft"].clone(), C.clone(), A.clone()
        if spoil in ("x", "linear_weight"):
            loss = linear_cross_entropy(x, w, y, weight=c, sample_weight=a, reduction=reduction)
        else:
            loss = cross_entropy(o, y, c, sample_weight=a, reduction=reduction)
        {"logits": o, "target": y, "weight": c, "sample_weight": a, "x": x, "linear_weight": w}[spoil].mul_(2)
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            loss.sum().backward()


@each_reduction
@pytest.mark.usefixtures("passes")
def test_an_upstream_of_zero_gives_zero(reduction: str) -> None:
    o, x, w = followed(Z), followed(X), followed(W)
    for loss, by in (
        (cross_entropy(o, Y, reduction=reduction), [o]),
        (linear_cross_entropy(x, w, Y, reduction=reduction), [x, w]),
    ):
        for grad in torch.autograd.grad(loss, by, torch.zeros_like(loss)):
            assert (grad == 0).all()


@each_reduction
def test_only_what_requires_a_gradient_gets_one(reduction: str) -> None:
    o, y = Z.clone(), followed(TARGETS["soft"])
    cross_entropy(o, y, reduction=reduction).sum().backward()
    assert o.grad is None
    near(y.grad, torch.func.grad(lambda t: formula(Z, t, reduction=reduction).sum())(TARGETS["soft"]), torch.float64)


def test_the_graph_keeps_no_probabilities() -> None:
    """What is saved for the backward pass are the tensors that came in and numbers a row, not N×V numbers more."""
    saved: list[Tensor] = []

    def pack(t: Tensor) -> Tensor:
        saved.append(t)
        return t

    o = followed(normal(6, 300))
    y, c = labels_for(o), eighths(300)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        cross_entropy(o, y, c)
    came_in = {o.data_ptr(), y.data_ptr(), c.data_ptr()}
    assert all(t.numel() <= len(o) for t in saved if t.data_ptr() not in came_in)
