"""`linear_cross_entropy`: F.linear and F.cross_entropy in float64, without the logits."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812
from torch_cases import (
    DTYPES,
    REDUCTIONS,
    STORAGE,
    eighths,
    followed,
    linear_formula,
    near,
    normal,
    oracle,
    same_bits,
    soft_for,
    sparse_for,
    upstream_for,
)

from softgrad._core.products import Products
from softgrad.torch import linear_cross_entropy, linear_prediction_stats, prediction_stats
from softgrad.torch._products import TorchProducts

pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:DeprecationWarning")
IMPLEMENTATIONS = (None, "numpy", "torch", "composite")
each_reduction = pytest.mark.parametrize("reduction", REDUCTIONS)
each_impl = pytest.mark.parametrize("impl", IMPLEMENTATIONS, ids=str)
N, D, V = 6, 5, 9


def head(
    rows: int = N, depth: int = D, classes: int = V, dtype: torch.dtype = torch.float64, scale: float = 0.5
) -> tuple[Tensor, Tensor, Tensor]:
    """Inputs, weight and a bias of both signs."""
    return (
        normal(rows, depth, dtype=dtype, seed=1),
        normal(classes, depth, dtype=dtype, seed=2, scale=scale),
        normal(classes, dtype=dtype, seed=3, scale=2 * scale),
    )


def grads(function: Callable[..., Tensor], layer: Any, y: Any, **options: Any) -> tuple[Tensor, ...]:
    """The loss, and its gradients by the layer's tensors for a non-uniform upstream gradient."""
    x, w, b = (None if t is None else followed(t) for t in layer)
    loss = function(x, w, y, linear_bias=b, **options)
    by = [t for t in (x, w, b) if t is not None]
    return (loss.detach(), *torch.autograd.grad(loss, by, upstream_for(loss)))


def check(layer: Any, y: Any, context: Any = "", floor: float = 0.0, units: float = 256, **options: Any) -> None:
    """Loss and gradients against the formula in float64; half precision to its own rounding of the logits."""
    dtype = layer[0].dtype
    ours = grads(linear_cross_entropy, layer, y, **options)
    wide = [None if t is None else t.double() for t in layer]
    target: Any = y
    if isinstance(y, tuple):
        target = (y[0], y[1].double())
    elif y.is_floating_point():
        target = y.double()
    shared = {k: v for k, v in options.items() if k not in ("impl", "max_memory", "n_threads", "accumulate_dtype")}
    theirs = grads(linear_formula, wide, target, **oracle(shared))
    for name, a, e in zip(("loss", "x", "weight", "bias"), ours, theirs, strict=False):
        assert a.dtype == dtype
        rough = 8 * STORAGE[dtype] / 2.0**-24 if STORAGE[dtype] else 0.0  # the logits themselves may be rounded
        near(a, e, dtype, f"{name} {context}", units + rough, floor)


TARGETS: dict[str, Callable[[], Any]] = {
    "labels": lambda: torch.tensor([2, 0, -100, 8, 2, 5]),
    "soft": lambda: soft_for(normal(N, V)),
    "sparse": lambda: sparse_for(normal(N, V), torch.float64),
}
OPTIONS: dict[str, tuple[Any, ...]] = {
    "weight": ("eighths",),
    "sample_weight": ("signed", "with zeros"),
    "ignore_index": (2,),
    "label_smoothing": (0.1,),
    "logit_scale": (-1.5,),
    "softcap": (2.0,),
    "temperature": (0.75,),
    "z_loss": (0.0625,),
    "reduction": ("sum", "none"),
    "bias": (False,),
}
PAIRS = [
    {a: x, b: y} for a, b in itertools.combinations(OPTIONS, 2) for x, y in itertools.product(OPTIONS[a], OPTIONS[b])
]


def concrete(chosen: dict[str, Any]) -> dict[str, Any]:
    options = {k: v for k, v in chosen.items() if k != "bias"}
    if "weight" in options:
        options["weight"] = eighths(V)
    if "sample_weight" in options:
        a = eighths(N)
        a[::2] *= -0.25 if options["sample_weight"] == "signed" else 0.0
        options["sample_weight"] = a
    return options


# --- the mathematics -------------------------------------------------------------------------------------------------


def test_the_oracle_is_pytorchs() -> None:
    """F.linear_cross_entropy itself, where it has the options."""
    for reduction, smoothing, y in itertools.product(REDUCTIONS, (0.0, 0.1), ("labels", "soft")):
        options: dict[str, Any] = {"reduction": reduction, "label_smoothing": smoothing, "weight": eighths(V)}
        theirs = grads(F.linear_cross_entropy, head(), TARGETS[y](), **options)
        for a, e in zip(grads(linear_formula, head(), TARGETS[y](), **options), theirs, strict=True):
            torch.testing.assert_close(a, e)


@each_impl
@pytest.mark.parametrize("target", TARGETS)
def test_pairs_of_options(target: str, impl: str | None) -> None:
    for chosen in [{}, *PAIRS]:
        if target != "labels" and "ignore_index" in chosen:
            continue
        y, layer, options = TARGETS[target](), head(), concrete(chosen)
        if "ignore_index" in chosen:
            y = y.clamp(min=0)
        if chosen.get("bias") is False:
            layer = (*layer[:2], None)
        check(layer, y, chosen, floor=2.0, impl=impl, **options)


@each_impl
@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)
def test_every_type(dtype: torch.dtype, impl: str | None) -> None:
    for reduction, target, biased in itertools.product(REDUCTIONS, TARGETS, (True, False)):
        layer = head(dtype=dtype)
        y = TARGETS[target]()
        y = y if target == "labels" else y.to(dtype) if target == "soft" else (y[0], y[1].to(dtype))
        options = {"reduction": reduction, "label_smoothing": 0.125, "impl": impl}
        check(layer if biased else (*layer[:2], None), y, options, floor=1.0, **options)


@each_impl
@each_reduction
def test_inputs_of_any_leading_rank(reduction: str, impl: str | None) -> None:
    for outer in ((), (4,), (2, 3), (2, 1, 3), (0,), (2, 0)):
        x, w, b = normal(*outer, D), *head()[1:]
        o = normal(*outer, V)
        y, soft, (index, values) = torch.randint(V, outer), torch.rand_like(o), sparse_for(normal(4, V))
        k = (*outer, 4)
        sparse = (index[0].expand(*outer, 4).contiguous(), values[0].expand(k).contiguous())
        for target in (y, soft, sparse):
            if 0 in outer and reduction == "mean":
                loss, *slopes = grads(linear_cross_entropy, (x, w, b), target, reduction=reduction, impl=impl)
                assert loss.isnan()
                assert all((s == 0).all() for s in slopes)
            else:
                check((x, w, b), target, outer, reduction=reduction, impl=impl, sample_weight=eighths(*outer))


@each_impl
def test_near_zero_logits_of_one_class_more_than_a_tile(impl: str | None) -> None:
    """Padding with zeros would show: every logit is nearly 0 and V is no multiple of a tile of 2048 columns."""
    for classes in (2049, 4097):
        layer = head(3, 2, classes, torch.float32, scale=1e-3)
        check(layer, torch.tensor([0, 2048, classes - 1]), classes, impl=impl)


@each_impl
@each_reduction
def test_a_first_tile_that_the_bias_masks(reduction: str, impl: str | None) -> None:
    x, w, b = head(3, 2, 2100)
    b[:2049] = -torch.inf
    y = torch.tensor([2049, 2099, 2060])
    loss, by_x, by_w, by_b = grads(linear_cross_entropy, (x, w, b), y, reduction=reduction, impl=impl)
    expected = grads(linear_formula, (x, w[2049:], b[2049:]), y - 2049, reduction=reduction)
    near(loss, expected[0], torch.float64)
    near(by_x, expected[1], torch.float64)
    assert (by_w[:2049] == 0).all()
    assert (by_b[:2049] == 0).all()
    near(by_w[2049:], expected[2], torch.float64)
    near(by_b[2049:], expected[3], torch.float64)


@each_impl
@each_reduction
def test_all_ignored(reduction: str, impl: str | None) -> None:
    loss, *slopes = grads(linear_cross_entropy, head(), torch.full((N,), -100), reduction=reduction, impl=impl)
    assert loss.isnan() if reduction == "mean" else (loss == 0).all()
    assert all((s == 0).all() for s in slopes)


@each_impl
@each_reduction
def test_an_ignored_row_with_infinite_logits_does_not_poison(reduction: str, impl: str | None) -> None:
    """Its logits overflow; its gradient is exactly 0, and the others do not notice."""
    x, w, b = head(dtype=torch.float32)
    x[2] = 3e38
    y = TARGETS["labels"]()
    loss, by_x, by_w, by_b = grads(linear_cross_entropy, (x, w, b), y, reduction=reduction, impl=impl)
    clean = x.clone()
    clean[2] = 0
    expected = grads(linear_formula, [t.double() for t in (clean, w, b)], y, reduction=reduction)
    assert (by_x[2] == 0).all()
    for a, e in zip((loss, by_x, by_w, by_b), expected, strict=True):
        near(a, e, torch.float32, units=256)


def test_shift_predicts_the_next_position() -> None:
    x, (_, w, b) = normal(2, 5, D), head()
    y, a = torch.randint(V, (2, 5)), eighths(2, 5)
    y[0, 3] = -100
    soft, sparse = torch.rand(2, 5, V).double(), sparse_for(normal(10, V), torch.float64)
    sparse = tuple(t.reshape(2, 5, 4) for t in sparse)
    for target, reduction in itertools.product((y, soft, sparse), REDUCTIONS):
        later = tuple(t[:, 1:] for t in target) if isinstance(target, tuple) else target[:, 1:]
        ours = grads(linear_cross_entropy, (x, w, b), target, shift=True, reduction=reduction, sample_weight=a)
        cut = grads(linear_formula, (x[:, :-1], w, b), later, reduction=reduction, sample_weight=a[:, 1:])
        near(ours[0], cut[0], torch.float64)
        near(ours[1][:, :-1], cut[1], torch.float64)
        assert (ours[1][:, -1] == 0).all()
        near(ours[2], cut[2], torch.float64)
    near(
        linear_cross_entropy(x[0], w, y[0], shift=True),
        linear_formula(x[0, :-1], w, y[0, 1:]), torch.float64,
    )  # fmt: skip


def test_a_weight_with_more_axes_as_pytorch() -> None:
    x, w, b = normal(4, D), normal(V, 2, 3, D), normal(V, 2, 3)
    y = torch.randint(V, (4, 2, 3))
    y[0, 1] = -100
    for target, reduction in itertools.product((y, torch.rand(4, V, 2, 3).double()), REDUCTIONS):
        options: dict[str, Any] = {"reduction": reduction, "label_smoothing": 0.1, "weight": eighths(V)}
        ours = grads(linear_cross_entropy, (x, w, b), target, **options)
        theirs = grads(F.linear_cross_entropy, (x, w, b), target, **options)
        for a, e in zip(ours, theirs, strict=True):
            near(a, e, torch.float64)


def test_stats_of_the_linear_head() -> None:
    x, w, b = head()
    for target in (None, TARGETS["labels"](), TARGETS["soft"](), TARGETS["sparse"]()):
        expected = prediction_stats(F.linear(x, w, b), target, temperature=2.0)
        for impl in IMPLEMENTATIONS:
            found = linear_prediction_stats(x, w, target, linear_bias=b, temperature=2.0, impl=impl, max_memory=4000)
            for a, e in zip(found, expected, strict=True):
                assert a.dtype == e.dtype
                near(a, e, torch.float64)


# --- only what is needed ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("impl", ["numpy", "torch"])
@each_reduction
def test_products_that_nobody_needs_are_not_made(reduction: str, impl: str, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[str] = []
    wrapped = [*itertools.product((Products, TorchProducts), ("multiply", "accumulate")), (TorchProducts, "affine")]
    for kind, name in wrapped:
        usual = vars(kind)[name]

        def counted(self: Any, *a: Any, usual: Any = usual, name: str = name) -> None:
            made.append("multiply" if name == "affine" else name)
            usual(self, *a)

        monkeypatch.setattr(kind, name, counted)
    y = TARGETS["labels"]()
    for by in itertools.product((True, False), repeat=3):
        made.clear()
        x, w, b = (t.requires_grad_(need) for t, need in zip(head(), by, strict=True))
        loss = linear_cross_entropy(x, w, y, linear_bias=b, reduction=reduction, impl=impl)
        if any(by):
            loss.sum().backward()
        assert made.count("multiply") == 1 + by[0], by  # the one tile of logits is kept for the backward pass
        assert made.count("accumulate") == by[1], by
        assert [t.grad is not None for t in (x, w, b)] == list(by)
    made.clear()
    with torch.no_grad():
        linear_cross_entropy(*(t.requires_grad_() for t in head()[:2]), y, reduction=reduction, impl=impl)
    assert made == ["multiply"]


def test_frozen_sides_change_no_gradient() -> None:
    y = TARGETS["labels"]()
    for reduction, impl in itertools.product(REDUCTIONS, IMPLEMENTATIONS):
        _, *whole = grads(linear_cross_entropy, head(), y, reduction=reduction, impl=impl)
        for i in range(3):
            tensors = [followed(t) if i == j else t for j, t in enumerate(head())]
            loss = linear_cross_entropy(*tensors[:2], y, linear_bias=tensors[2], reduction=reduction, impl=impl)
            (alone,) = torch.autograd.grad(loss, tensors[i], upstream_for(loss))
            assert same_bits(alone, whole[i]), (i, reduction, impl)


@each_reduction
@each_impl
def test_inputs_are_not_changed(impl: str | None, reduction: str) -> None:
    for dtype in DTYPES.values():
        tensors = [*head(dtype=dtype), eighths(V).to(dtype), eighths(N).to(dtype), TARGETS["labels"]()]
        before = [t.clone() for t in tensors]
        x, w, b, c, a, y = tensors
        leaves = [t.detach().requires_grad_() for t in (x, w, b)]
        loss = linear_cross_entropy(
            *leaves[:2], y, linear_bias=leaves[2], weight=c, sample_weight=a, reduction=reduction, impl=impl
        )
        loss.backward(upstream_for(loss))
        assert all(same_bits(t, k) for t, k in zip(tensors, before, strict=True))


def test_inputs_lie_as_they_like() -> None:
    x, w, b = head()
    y = TARGETS["labels"]()
    expected = grads(linear_formula, (x, w, b), y)
    odd = (x.t().contiguous().t(), torch.stack([w, w], -1)[..., 0], torch.stack([b, b], 1)[:, 0])
    for impl in IMPLEMENTATIONS:
        leaves = [t.detach().requires_grad_() for t in odd]
        loss = linear_cross_entropy(*leaves[:2], torch.stack([y, y], 1)[:, 0], linear_bias=leaves[2], impl=impl)
        for a, e in zip(torch.autograd.grad(loss, leaves, upstream_for(loss)), expected[1:], strict=True):
            near(a, e, torch.float64)


# --- how it runs -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("impl", ["numpy", "torch", "composite"])
@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)
def test_the_size_of_a_chunk_changes_the_last_bits_only(dtype: torch.dtype, impl: str) -> None:
    """By less than one rounding to the type and 16 roundoffs of the arithmetic at the largest element."""
    rows, classes = 40, 300
    layer, y = head(rows, 8, classes, dtype), torch.arange(rows) * 7
    for reduction in ("mean", "none"):
        whole = grads(linear_cross_entropy, layer, y, impl=impl, reduction=reduction)
        for budget in (12_000, 20_000, 41_000):
            for a, e in zip(
                grads(linear_cross_entropy, layer, y, impl=impl, reduction=reduction, max_memory=budget), whole,
                strict=True,
            ):  # fmt: skip
                near(a, e, dtype, f"{budget} {reduction}", 16 if STORAGE[dtype] == 0 else 16 + STORAGE[dtype] * 2.0**24)


@pytest.mark.parametrize("impl", ["numpy", "torch"])
def test_threads_do_not_change_the_bits(impl: str) -> None:
    for dtype, reduction in itertools.product((torch.float32, torch.bfloat16), ("mean", "none")):
        layer, y = head(200, 16, 1500, dtype), torch.arange(200)
        one, two = (grads(linear_cross_entropy, layer, y, impl=impl, reduction=reduction, n_threads=n) for n in (1, 2))
        assert all(same_bits(a, b) for a, b in zip(one, two, strict=True)), (dtype, reduction)


def test_pytorchs_options_are_honoured() -> None:
    layer, y = head(), TARGETS["labels"]()
    whole = grads(linear_cross_entropy, layer, y)
    for given in ({"batch_chunk_size": 2}, {"acc_policy": "accurate"}, {"allow_retain_graph": True}, {}):
        options = torch.nn.LinearCrossEntropyOptions(**given)
        for a, e in zip(grads(linear_cross_entropy, layer, y, options=options), whole, strict=True):
            near(a, e, torch.float64)


def test_a_chunk_has_as_many_rows_as_pytorchs_options_say(monkeypatch: pytest.MonkeyPatch) -> None:
    rows: list[int] = []
    usual = Products.multiply
    monkeypatch.setattr(Products, "multiply", lambda self, a, b, out: (rows.append(len(a)), usual(self, a, b, out))[1])
    x, w, _ = head()
    linear_cross_entropy(
        x, w, TARGETS["labels"](), impl="numpy", options=torch.nn.LinearCrossEntropyOptions(batch_chunk_size=4)
    )
    assert max(rows) <= 4
    assert len(rows) == 2


def test_pytorchs_options_without_a_meaning_are_refused_by_name() -> None:
    x, w, _ = head()
    y = TARGETS["labels"]()
    kind = torch.nn.LinearCrossEntropyOptions
    for given, name in (
        ({"chunking_method": "aspect_ratio"}, "chunking_method"),
        ({"acc_policy": "compact"}, "acc_policy"),
        ({"acc_dtype": torch.float16}, "acc"),
    ):
        try:
            options = kind(**given)
        except (ValueError, TypeError):
            continue  # PyTorch refuses it already
        with pytest.raises(ValueError, match=name):
            linear_cross_entropy(x, w, y, options=options)
    with pytest.raises(TypeError, match="LinearCrossEntropyOptions"):
        linear_cross_entropy(x, w, y, options={"batch_chunk_size": 2})
    with pytest.raises(ValueError, match="accumulate_dtype"):
        linear_cross_entropy(x, w, y, accumulate_dtype=torch.bfloat16)


def test_accumulate_dtype_is_what_tiles_add_up_in() -> None:
    """Float64 totals over many tiles are those of one tile, to float32's rounding of the tiles alone."""
    layer, y = head(64, 4, 50, torch.float32), torch.arange(64) % 50
    for impl in ("numpy", "torch"):
        plain, wide = (
            grads(linear_cross_entropy, layer, y, impl=impl, max_memory=9000, accumulate_dtype=d)
            for d in (None, torch.float64)
        )
        expected = grads(linear_formula, [t.double() for t in layer], y)
        near(wide[2], expected[2], torch.float32, impl)
        near(plain[2], expected[2], torch.float32, impl)
        assert wide[2].dtype == torch.float32


@pytest.mark.parametrize("impl", ["numpy", "torch"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@each_reduction
def test_micro_batches_add_up_in_float32(reduction: str, dtype: torch.dtype, impl: str) -> None:
    """``grad_dtype`` keeps what is accumulated for half-precision weights in float32: rounded nowhere."""
    x, w, b = head(32, 8, 20, dtype)
    y, shares = torch.arange(32) % 20, [slice(k, k + 4) for k in range(0, 32, 4)]
    weight, bias = followed(w), followed(b)
    weight.grad_dtype = bias.grad_dtype = torch.float32
    rounded = followed(w)
    total = torch.zeros(w.shape)
    for share in shares:
        for one, other in ((weight, bias), (rounded, b)):
            linear_cross_entropy(
                x[share], one, y[share], linear_bias=other, reduction=reduction, impl=impl
            ).sum().backward()
        part = followed(w)
        part.grad_dtype = torch.float32
        linear_cross_entropy(x[share], part, y[share], linear_bias=b, reduction=reduction, impl=impl).sum().backward()
        total += part.grad
    assert weight.grad.dtype == bias.grad.dtype == torch.float32
    assert same_bits(weight.grad, total)
    assert rounded.grad.dtype == dtype
    exact = sum(slope(x[share], w, b, y[share], reduction) for share in shares)
    assert (weight.grad - exact).norm() < 0.75 * (rounded.grad - exact).norm()


def slope(x: Tensor, w: Tensor, b: Tensor, y: Tensor, reduction: str) -> Tensor:
    weight = followed(w.double())
    loss = linear_formula(x, weight, y, linear_bias=b, reduction=reduction).sum()
    return torch.autograd.grad(loss, weight)[0]


@each_reduction
def test_tied_weights(reduction: str) -> None:
    """The embedding and the head are one tensor: their gradients add up."""
    words, y = torch.tensor([1, 4, 4, 7]), torch.tensor([4, 4, 7, 2])
    found = []
    for function in (linear_cross_entropy, linear_formula):
        table = followed(normal(V, D))
        function(F.embedding(words, table), table, y, reduction=reduction).sum().backward()
        found.append(table.grad)
    near(*found, torch.float64)


@each_reduction
def test_a_head_below_a_model(reduction: str) -> None:
    """Gradients flow on through x, which is no leaf."""
    found = []
    for function in (linear_cross_entropy, linear_formula):
        base, w = followed(normal(N, D)), followed(head()[1])
        loss = function(torch.tanh(base) * 2, w * 1.5, TARGETS["labels"](), reduction=reduction)
        found.append(torch.autograd.grad(loss, [base, w], upstream_for(loss)))
    for a, e in zip(*found, strict=True):
        near(a, e, torch.float64)


def run(code: str, **environment: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=120, env={**os.environ, **environment}
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_variable_decides_who_multiplies() -> None:
    code = """
import torch, softgrad.torch as s
from softgrad._core.products import Products
from softgrad.torch._products import TorchProducts
made = []
for kind in (Products, TorchProducts):
    usual = kind.multiply
    def multiply(self, a, b, out, usual=usual, name=kind.name):
        made.append(name)
        usual(self, a, b, out)
    kind.multiply = multiply
x, w = torch.ones(2, 3), torch.ones(4, 3)
s.linear_cross_entropy(x, w, torch.tensor([0, 1]))
s.linear_cross_entropy(x, w, torch.tensor([0, 1]), impl="torch")
print(made)
"""
    assert run(code, SOFTGRAD_TORCH_PRODUCTS="torch") == "['torch', 'torch']\n"


def test_what_the_variable_cannot_mean_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOFTGRAD_TORCH_PRODUCTS", "mkl")
    with pytest.raises(ValueError, match="SOFTGRAD_TORCH_PRODUCTS='mkl'"):
        linear_cross_entropy(*head()[:2], TARGETS["labels"]())
    with pytest.raises(ValueError, match="impl='mkl'"):
        linear_cross_entropy(*head()[:2], TARGETS["labels"](), impl="mkl")


def test_the_logits_are_never_in_memory() -> None:
    """Peak resident memory of a fresh process beyond the gradients, with a budget of 16 MB; the logits take 164 MB."""
    code = """
import torch, softgrad.torch as s
def status(key):
    return next(int(l.split()[1]) * 1024 for l in open("/proc/self/status") if l.startswith(key))
n, depth, classes = 2048, 8, 20000
torch.manual_seed(0)
x, w = torch.randn(n, depth, requires_grad=True), torch.randn(classes, depth, requires_grad=True)
y = torch.arange(n)
for reduction in ("mean", "none"):
    for impl in ("numpy", "torch", "composite"):
        def step(rows):
            x.grad = w.grad = None
            s.linear_cross_entropy(x[:rows], w, y[:rows], n_threads=2, max_memory=16 << 20, impl=impl,
                                   reduction=reduction).sum().backward()
        step(300)
        open("/proc/self/clear_refs", "w").write("5")
        before = status("VmRSS")
        step(n)
        print(impl, (status("VmHWM") - before) >> 20)
"""
    if not sys.platform.startswith("linux"):
        return
    for line in run(code).splitlines():
        impl, grown = line.split()
        assert int(grown) < (64 if impl == "composite" else 32), f"{impl}: {grown} MB"


@pytest.mark.parametrize("reduction", ["none", "sum", "mean"])
def test_no_rows(reduction: str) -> None:
    """Gradients of an empty batch are 0, whatever their memory held."""
    x, weight, bias = (torch.ones(shape, requires_grad=True) for shape in ((0, 4), (300, 4), (300,)))
    held = [torch.full((300, 4), 7.0) for _ in range(8)]
    del held
    loss = linear_cross_entropy(x, weight, torch.zeros(0, dtype=torch.int64), linear_bias=bias, reduction=reduction)
    gradients = torch.autograd.grad(loss.sum(), (x, weight, bias))
    assert [g.shape for g in gradients] == [(0, 4), (300, 4), (300,)]
    assert not any(g.any() for g in gradients)
