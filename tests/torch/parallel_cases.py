"""Cases of the vocabulary-parallel losses, which every rank of a `torchrun` runs, by `torch/parallel_worker.py`.

Each builds the whole problem on every rank, computes it in this process alone, and then with its slices of the classes.
A case returns the tensors that must have the same bits on every rank.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch_cases import (
    eighths,
    followed,
    formula,
    labels_for,
    near,
    normal,
    outer_of,
    same_bits,
    soft_for,
    sparse_for,
    upstream_for,
)

from softgrad._core import backend
from softgrad.torch import cross_entropy, linear_cross_entropy
from softgrad.torch.parallel import vocab_parallel_cross_entropy, vocab_parallel_linear_cross_entropy

Case = Callable[[], Any]
CASES: dict[str, Case] = {}
INF = float("inf")


def case(function: Case) -> Case:
    """Register a case."""
    CASES[function.__name__] = function
    return function


def sizes_of(classes: int, kind: str = "uneven") -> list[int]:
    """Sizes of the slices: nothing is even, and with ``empty`` the second rank has none."""
    ranks = dist.get_world_size()
    if kind == "empty":
        return [0 if r == 1 else classes if r == 0 and ranks == 2 else classes // (ranks - 1) if r else
                classes - (ranks - 2) * (classes // (ranks - 1)) for r in range(ranks)]  # fmt: skip
    shares = [3 + 2 * (r % 3) for r in range(ranks)]
    edges = [classes * sum(shares[:r]) // sum(shares) for r in range(ranks + 1)]
    return [b - a for a, b in itertools.pairwise(edges)]


def mine(tensor: Any, axis: int, kind: str = "uneven") -> Any:
    """This rank's slice of the classes, of a tensor or a pair that has none."""
    if tensor is None or isinstance(tensor, tuple):
        return tensor
    sizes = sizes_of(tensor.shape[axis], kind)
    return tensor.narrow(axis, sum(sizes[: dist.get_rank()]), sizes[dist.get_rank()])


def close(actual: Tensor, expected: Tensor, context: Any, tolerance: float = 1e-12) -> None:
    """Within a share of the largest element; NaN and infinities in the same places."""
    assert actual.shape == expected.shape, f"{context}: {tuple(actual.shape)}, expected {tuple(expected.shape)}"
    assert actual.dtype == expected.dtype, f"{context}: {actual.dtype}, expected {expected.dtype}"
    a, e = actual.detach().double(), expected.detach().double()
    finite = torch.isfinite(e)
    size = float(e[finite].abs().max()) if finite.any() else 0.0
    ok = torch.where(finite, (a - e).abs() <= tolerance * max(size, 1e-300), (a == e) | (a.isnan() & e.isnan()))
    assert ok.all(), f"{context}: {a[~ok][:3].tolist()}, expected {e[~ok][:3].tolist()}"


def raises(kind: type[Exception], pattern: list[str], call: Callable[[], Any]) -> str:
    """The message of the error that a call ends with; it holds all these words."""
    caught: Exception | None = None
    try:
        call()
    except kind as error:
        caught = error
    assert type(caught) is kind, f"{caught!r} on rank {dist.get_rank()}"
    for part in pattern:
        assert part in str(caught), f"{part!r} is not in: {caught}"
    return str(caught)


@contextmanager
def traffic() -> Iterator[list[tuple[str, int]]]:
    """What a block sends: the names of its collectives and their bytes."""
    seen: list[tuple[str, int]] = []
    reduce, gather = dist.all_reduce, dist.all_gather

    def all_reduce(tensor: Tensor, *args: Any, **options: Any) -> Any:
        seen.append(("reduce", tensor.nbytes))
        return reduce(tensor, *args, **options)

    def all_gather(tensors: list[Tensor], tensor: Tensor, *args: Any, **options: Any) -> Any:
        seen.append(("gather", tensor.nbytes))
        return gather(tensors, tensor, *args, **options)

    dist.all_reduce, dist.all_gather = all_reduce, all_gather
    try:
        yield seen
    finally:
        dist.all_reduce, dist.all_gather = reduce, gather


# --- options ---------------------------------------------------------------------------------------------------------

N, V, D = 9, 37, 6


def option_sets(shape: tuple[int, ...], classes: int) -> dict[str, dict[str, Any]]:
    """Every option, alone and together."""
    outer = outer_of(shape)
    a = eighths(*outer, seed=3) - 1.25
    a.reshape(-1)[:1] = 0.0
    sets: dict[str, dict[str, Any]] = {
        "plain": {},
        "smoothing": {"label_smoothing": 0.2},
        "all smoothing": {"label_smoothing": 1.0},
        "weights": {"weight": eighths(classes, seed=1)},
        "weighted smoothing": {"weight": eighths(classes, seed=1), "label_smoothing": 0.1},
        "open classes": {"label_smoothing": 0.1, "smooth_finite_only": True, "weight": eighths(classes, seed=1)},
        "softcap": {"softcap": 2.0},
        "scales": {"logit_scale": -1.5, "temperature": 0.7},
        "capped scales": {"softcap": 2.0, "logit_scale": -1.5},
        "z-loss": {"z_loss": 0.3},
        "rows": {"sample_weight": a},
    }
    sets["everything"] = {
        "weight": eighths(classes, seed=1), "sample_weight": a, "label_smoothing": 0.1, "smooth_finite_only": True,
        "logit_scale": 1.5, "softcap": 3.0, "temperature": 0.8, "z_loss": 0.1,
    }  # fmt: skip
    return sets


def local(options: dict[str, Any], kind: str = "uneven") -> dict[str, Any]:
    """Options with this rank's class weights."""
    return {**options, "weight": mine(options.get("weight"), 0, kind)}


def targets_of(o: Tensor, axis: int) -> dict[str, Any]:
    """Targets of every kind."""
    labels = labels_for(o)
    labels.reshape(-1)[1::4] = -100
    return {"labels": labels, "soft": soft_for(o), "sparse": sparse_for(o, dtype=torch.float64)}


def compare_logits(o: Tensor, target: Any, options: dict[str, Any], context: Any, kind: str = "uneven",
                   tolerance: float = 1e-12) -> Tensor:  # fmt: skip
    """The loss and the gradient, in slices and in one process."""
    axis = 1 if o.ndim > 1 else 0
    whole, part = followed(o), followed(mine(o, axis, kind))
    soft = isinstance(target, Tensor) and target.is_floating_point()
    expected = cross_entropy(whole, target, **options)
    loss = vocab_parallel_cross_entropy(part, mine(target, axis, kind) if soft else target, **local(options, kind))
    close(loss, expected, (context, "loss"), tolerance)
    g = upstream_for(expected)
    gradient = torch.autograd.grad(expected, whole, g)[0]
    close(torch.autograd.grad(loss, part, g)[0], mine(gradient, axis, kind), (context, "gradient"), tolerance)
    return loss.detach()


def masked(o: Tensor, mask: bool) -> Tensor:
    """Some logits masked, among them all that the last rank has of the first row."""
    o = o.clone()
    if mask:
        o[:, 2] = o[:, -2] = -INF
        o[0, sum(sizes_of(o.shape[1])[:-1]) :] = -INF
    return o


@case
def every_option_with_every_target() -> list[Tensor]:
    o = normal(N, V)
    losses = []
    for (name, options), reduction in itertools.product(option_sets(o.shape, V).items(), ("mean", "sum", "none")):
        logits = masked(o, options.get("smooth_finite_only", False))
        for kind, target in targets_of(o, 1).items():
            context = (name, reduction, kind)
            losses.append(compare_logits(logits, target, {**options, "reduction": reduction}, context))
    return losses


@case
def slices_agree_with_the_formula() -> list[Tensor]:
    o = normal(N, V, seed=5)
    target = labels_for(o)
    options = {"label_smoothing": 0.1, "z_loss": 0.2, "weight": eighths(V), "softcap": 4.0, "reduction": "none"}
    part = followed(mine(o, 1))
    loss = vocab_parallel_cross_entropy(part, target, **local(options))
    whole = followed(o)
    expected = formula(whole, target, **options)
    close(loss, expected.detach(), "loss")
    close(torch.autograd.grad(loss.sum(), part)[0], mine(torch.autograd.grad(expected.sum(), whole)[0], 1), "gradient")
    return [loss.detach()]


@case
def label_smoothing_is_over_all_classes() -> list[Tensor]:
    """Not over those of a rank: the two differ by far."""
    o, target = torch.zeros(3, V, dtype=torch.float64), torch.tensor([0, 1, V - 1])
    o[:, 0] = 3.0
    found = vocab_parallel_cross_entropy(mine(o, 1), target, label_smoothing=0.5)
    y = 0.5 * torch.nn.functional.one_hot(target, V).double() + 0.5 / V
    close(found, -(y * torch.log_softmax(o, 1)).sum(1).mean(), "loss")
    wrong = mine(o, 1).shape[1]
    assert wrong != V
    return [found]


@case
def every_dtype() -> list[Tensor]:
    losses = []
    options = {"label_smoothing": 0.1, "z_loss": 0.01, "softcap": 8.0, "weight": eighths(1000), "reduction": "none"}
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        o = normal(7, 1000, dtype=dtype, scale=3.0)
        for target in (labels_for(o), soft_for(o, dtype), sparse_for(o)):
            soft = isinstance(target, Tensor) and target.is_floating_point()
            whole, part = followed(o.double()), followed(mine(o, 1))
            expected = formula(whole, target, **options)
            loss = vocab_parallel_cross_entropy(part, mine(target, 1) if soft else target, **local(options))
            assert loss.dtype == dtype
            near(loss, expected, dtype, (dtype, "loss"))
            g = upstream_for(loss)
            wanted = torch.autograd.grad(expected, whole, g.double())[0]
            near(torch.autograd.grad(loss, part, g)[0], mine(wanted, 1), dtype, (dtype, "gradient"))
            losses.append(loss.detach())
    return losses


@case
def every_shape() -> list[Tensor]:
    losses = []
    for shape in ((V,), (3, V), (1, V), (2, V, 3), (2, V, 3, 2), (0, V)):
        o = normal(*shape, seed=2)
        for kind, target in targets_of(o, 1 if o.ndim > 1 else 0).items():
            if o.ndim == 1:
                target = labels_for(o) if kind == "labels" else target
            losses.append(compare_logits(o, target, {"label_smoothing": 0.1, "reduction": "sum"}, (shape, kind)))
    backwards = normal(V, N, seed=4).T  # strided
    losses.append(compare_logits(backwards, labels_for(backwards), {}, "strided"))
    wide = normal(3, 70_000, seed=6)
    losses.append(compare_logits(wide, labels_for(wide), {"label_smoothing": 0.1}, "wide", tolerance=1e-11))
    return losses


@case
def labels_of_every_integer_type() -> list[Tensor]:
    o = normal(N, V)
    return [
        compare_logits(o, labels_for(o).to(kind), {"ignore_index": 3}, kind)
        for kind in (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)
    ]


@case
def a_rank_without_classes() -> list[Tensor]:
    o = normal(N, V, seed=8)
    losses = []
    for kind, target in targets_of(o, 1).items():
        for name in ("plain", "everything", "weighted smoothing"):
            options = option_sets(o.shape, V)[name]
            losses.append(compare_logits(masked(o, True), target, options, (kind, name), "empty"))
    x, w, b = normal(N, D), normal(V, D, seed=2), normal(V, seed=3)
    for max_memory in (None, 4_000):
        options = {"label_smoothing": 0.1, "max_memory": max_memory}
        losses.append(compare_linear(x, w, b, labels_for(o), options, "linear", "empty"))
    return losses


@case
def edges_have_the_same_answers() -> list[Tensor]:
    """Undefined and masked rows, as in one process."""
    o = normal(N, V, seed=9)
    last = sum(sizes_of(V)[:-1])
    o[1] = -INF
    o[2, last] = float("nan")
    o[3, 0] = INF
    o[4, :last] = -INF
    o[5] += 1e30
    o[6, 4] = -INF
    target = labels_for(o)
    target[4], target[6], target[8] = last, 4, -100
    o[8] = float("nan")
    a = torch.ones(N, dtype=torch.float64)
    a[7], o[7] = 0.0, float("nan")
    losses = []
    for reduction, extra in itertools.product(
        ("none", "sum"), ({}, {"label_smoothing": 0.1}, {"label_smoothing": 0.1, "smooth_finite_only": True},
                          {"softcap": 5.0}, {"z_loss": 0.1}),
    ):  # fmt: skip
        options = {**extra, "reduction": reduction, "sample_weight": a}
        losses.append(compare_logits(o, target, options, (reduction, extra)))
    quiet = torch.full((N,), -100)
    sets: tuple[dict[str, Any], ...] = ({}, {"z_loss": 0.1}, {"reduction": "sum"})
    losses += [compare_logits(o, quiet, options, ("ignored", options)) for options in sets]
    weights = torch.zeros(V, dtype=torch.float64)
    losses.append(compare_logits(normal(N, V), labels_for(o), {"weight": weights}, "weights of 0"))
    return losses


@case
def without_the_kernels() -> list[Tensor]:
    """An installation without a compiler computes in PyTorch's operations."""
    o, x, w, b = normal(N, V), normal(N, D), normal(V, D, seed=2), normal(V, seed=3)
    losses = []
    with backend.use("numpy"):
        for name, reduction in itertools.product(("weighted smoothing", "everything"), ("mean", "none")):
            options = {**option_sets(o.shape, V)[name], "reduction": reduction}
            for kind, target in targets_of(o, 1).items():
                for slices in ("uneven", "empty"):
                    context = (name, reduction, kind, slices)
                    losses.append(compare_logits(o, target, options, context, slices))
                    losses.append(compare_linear(x, w, b, target, options, context, slices))
    return losses


@case
def in_place() -> list[Tensor]:
    o, target = normal(N, V, dtype=torch.float32), labels_for(normal(N, V))
    whole, leaf = followed(o), followed(mine(o, 1))
    expected = cross_entropy(whole, target, label_smoothing=0.1)
    logits = leaf * 1
    loss = vocab_parallel_cross_entropy(logits, target, label_smoothing=0.1, inplace=True)
    gradient = torch.autograd.grad(loss, logits)[0]
    assert gradient.data_ptr() == logits.data_ptr()
    near(gradient, mine(torch.autograd.grad(expected, whole)[0], 1), torch.float32)
    again = leaf * 1
    loss = vocab_parallel_cross_entropy(again, target, inplace=True)
    raises(RuntimeError, ["use inplace=False"], lambda: torch.autograd.grad(loss, leaf, create_graph=True))
    raises(ValueError, ["leaf"], lambda: vocab_parallel_cross_entropy(followed(leaf), target, inplace=True))
    return [loss.detach()]


# --- the linear head -------------------------------------------------------------------------------------------------


def compare_linear(
    x: Tensor, w: Tensor, b: Tensor | None, target: Any, options: dict[str, Any], context: Any, kind: str = "uneven",
    tolerance: float = 1e-12,
) -> Tensor:  # fmt: skip
    """The loss and the gradients by input, weight and bias."""
    whole = [followed(t) for t in (x, w) if t is not None] + ([followed(b)] if b is not None else [])
    parts = [followed(x), followed(mine(w, 0, kind))] + ([followed(mine(b, 0, kind))] if b is not None else [])
    soft = isinstance(target, Tensor) and target.is_floating_point()
    single = {k: v for k, v in options.items() if k not in ("max_memory", "options")}
    expected = linear_cross_entropy(*whole[:2], target, linear_bias=whole[2] if b is not None else None, **single)
    own = mine(target, target.ndim - 1, kind) if soft else target
    loss = vocab_parallel_linear_cross_entropy(
        *parts[:2], own, bias=parts[2] if b is not None else None, **local(options, kind)
    )
    close(loss, expected, (context, "loss"), tolerance)
    g = upstream_for(expected)
    wanted, found = torch.autograd.grad(expected, whole, g), torch.autograd.grad(loss, parts, g)
    close(found[0], wanted[0], (context, "x"), tolerance)
    for name, ours, theirs in zip(("weight", "bias"), found[1:], wanted[1:], strict=False):
        close(ours, mine(theirs, 0, kind), (context, name), tolerance)
    return loss.detach()


@case
def linear_every_option_with_every_target() -> list[Tensor]:
    x, w, b = normal(N, D), normal(V, D, seed=2), normal(V, seed=3)
    o = x @ w.T + b
    losses = []
    for (name, options), reduction in itertools.product(option_sets(o.shape, V).items(), ("mean", "sum", "none")):
        for kind, target in targets_of(o, 1).items():
            context = (name, reduction, kind)
            losses.append(compare_linear(x, w, b, target, {**options, "reduction": reduction}, context))
    return losses


@case
def linear_tiles_of_rows() -> list[Tensor]:
    """Whatever fits into memory; the tiles of all ranks have the same rows."""
    n = 45
    x, w, b = normal(n, D), normal(V, D, seed=2), normal(V, seed=3)
    target = labels_for(x @ w.T)
    losses = []
    sets = ({}, {"reduction": "none"}, {"label_smoothing": 0.1, "weight": eighths(V), "z_loss": 0.1})
    for max_memory, options, bias in itertools.product((None, 1_500, 6_000), sets, (b, None)):
        context = (max_memory, options)
        losses.append(compare_linear(x, w, bias, target, {**options, "max_memory": max_memory}, context))
    chunk = torch.nn.LinearCrossEntropyOptions(batch_chunk_size=7)
    losses.append(compare_linear(x, w, b, target, {"options": chunk}, "chunks"))
    for_all = {"label_smoothing": 0.1}
    losses += [compare_linear(x, w, b, target, {"impl": i, **for_all}, i) for i in ("numpy", "torch", "composite")]
    losses.append(compare_linear(x.reshape(5, 9, D), w, b, target.reshape(5, 9), {"shift": True}, "shift"))
    soft = soft_for(x @ w.T).reshape(5, 9, V)
    losses.append(compare_linear(x.reshape(5, 9, D), w, b, soft, {"shift": True, "max_memory": 2_000}, "soft shift"))
    raises(ValueError, ["max_memory=10", "not enough"],
           lambda: vocab_parallel_linear_cross_entropy(x, mine(w, 0), target, max_memory=10))  # fmt: skip
    return losses


@case
def linear_dtypes() -> list[Tensor]:
    """Half precision: each rank's part of the gradient of ``x`` is added up in float32."""
    losses = []
    for dtype, impl in itertools.product((torch.float32, torch.bfloat16, torch.float16), ("numpy", "torch")):
        if dtype == torch.float16 and impl == "torch":
            continue
        x, w = normal(33, 16, dtype=dtype), normal(201, 16, dtype=dtype, seed=2)
        target = labels_for(normal(33, 201))
        for max_memory in (None, 20_000):
            leaves = [followed(x), followed(mine(w, 0))]
            loss = vocab_parallel_linear_cross_entropy(*leaves, target, impl=impl, max_memory=max_memory)
            wide = [followed(x.double()), followed(w.double())]
            expected = formula(wide[0] @ wide[1].T, target)
            found = torch.autograd.grad(loss, leaves)
            by_x, by_w = torch.autograd.grad(expected, wide)
            assert found[0].dtype == found[1].dtype == loss.dtype == dtype
            # PyTorch rounds the logits of half precision, the probabilities and each product.
            units = 64 if impl == "numpy" or dtype == torch.float32 else 64 + 8 * 2.0**16
            near(loss, expected, dtype, (dtype, impl, "loss"), units)
            near(found[0], by_x, dtype, (dtype, impl, "x"), units)
            near(found[1], mine(by_w, 0), dtype, (dtype, impl, "weight"), units)
            losses.append(loss.detach())
    w = followed(mine(normal(V, D, dtype=torch.float32), 0))
    loss = vocab_parallel_linear_cross_entropy(
        normal(N, D, dtype=torch.float32), w, labels_for(normal(N, V)), accumulate_dtype=torch.float64
    )
    assert torch.autograd.grad(loss, w)[0].dtype == torch.float32
    return losses


@case
def linear_parts_of_the_input_gradient() -> list[Tensor]:
    """With ``reduce_x_grad=False`` the ranks' parts add up; nothing is sent for a frozen input."""
    x, w, target = normal(N, D), normal(V, D, seed=2), labels_for(normal(N, V))
    leaf = followed(x)
    expected = torch.autograd.grad(linear_cross_entropy(leaf, w, target), leaf)[0]
    losses = []
    for impl in (None, "composite"):
        own = followed(x)
        loss = vocab_parallel_linear_cross_entropy(own, mine(w, 0), target, reduce_x_grad=False, impl=impl)
        with traffic() as seen:
            part = torch.autograd.grad(loss, own)[0]
        assert seen == []
        assert float((part - expected).abs().max()) > 1e-3
        dist.all_reduce(part)
        close(part, expected, impl)
        losses.append(loss.detach())
        frozen = followed(mine(w, 0))
        loss = vocab_parallel_linear_cross_entropy(x, frozen, target, impl=impl)
        with traffic() as seen:
            loss.backward()
        assert seen == []
    return losses


@case
def linear_backward_twice() -> list[Tensor]:
    x, w, target = normal(N, D), normal(V, D, seed=2), labels_for(normal(N, V))
    for max_memory in (None, 1_500):
        leaves = followed(x), followed(mine(w, 0))
        loss = vocab_parallel_linear_cross_entropy(*leaves, target, max_memory=max_memory)
        first = torch.autograd.grad(loss, leaves, retain_graph=True)
        second = torch.autograd.grad(loss, leaves)
        assert all(same_bits(a, b) for a, b in zip(first, second, strict=True))
    return [loss.detach(), first[0]]


# --- what is sent ----------------------------------------------------------------------------------------------------


@case
def two_small_reductions_a_call() -> list[Tensor]:
    n, width = 45, 6
    o, x, w = (normal(*shape, dtype=torch.float32) for shape in ((n, V), (n, width), (V, width)))
    target = labels_for(o)
    with traffic() as seen:
        leaf = followed(mine(o, 1))
        loss = vocab_parallel_cross_entropy(leaf, target)
        loss.backward()
    assert [name for name, _ in seen] == ["gather", "reduce", "reduce"]
    assert [size for _, size in seen] == [2048, 4 * n, 3 * 8 * n]
    for max_memory, sums in ((None, 1), (500, None)):
        leaves = followed(x), followed(mine(w, 0))
        with traffic() as seen:
            loss = vocab_parallel_linear_cross_entropy(*leaves, target, max_memory=max_memory)
        assert [size for _, size in seen] == [2048, 4 * n, 3 * 8 * n]
        with traffic() as seen:
            loss.backward()
        assert sums in (None, len(seen))
        assert sums == 1 or len(seen) > 3
        assert sum(size for _, size in seen) == 4 * n * width
    return [loss.detach()]


# --- derivatives -----------------------------------------------------------------------------------------------------


@case
def second_derivatives() -> list[Tensor]:
    """Hessian products, and what depends on what comes from above."""
    o, v = normal(N, V), normal(N, V, seed=1)
    results = []
    for (name, options), reduction in itertools.product(option_sets(o.shape, V).items(), ("mean", "none")):
        options = {**options, "reduction": reduction}
        target = targets_of(o, 1)["labels"]
        whole, part = followed(o), followed(mine(o, 1))
        products = []
        for leaf, vector, loss in (
            (whole, v, cross_entropy(whole, target, **options)),
            (part, mine(v, 1), vocab_parallel_cross_entropy(part, target, **local(options))),
        ):
            above = followed(upstream_for(loss))
            gradient = torch.autograd.grad(loss, leaf, above, create_graph=True)[0]
            products.append(torch.autograd.grad((gradient * vector).sum(), (leaf, above)))
        close(products[1][0], mine(products[0][0], 1), (name, "H v"))
        close(products[1][1], products[0][1], (name, "by the upstream gradient"))
        results.append(products[1][1])
    return results


@case
def third_derivatives() -> None:
    o, target = normal(4, V), labels_for(normal(4, V))
    found = []
    for leaf, loss in ((followed(o), cross_entropy), (followed(mine(o, 1)), vocab_parallel_cross_entropy)):
        g = torch.autograd.grad(loss(leaf, target, z_loss=0.1), leaf, create_graph=True)[0]
        h = torch.autograd.grad((g**2).sum(), leaf, create_graph=True)[0]
        found.append(torch.autograd.grad((h**3).sum(), leaf)[0])
    close(found[1], mine(found[0], 1), "third", 1e-11)


@case
def linear_second_derivatives() -> None:
    x, w, b = normal(N, D), normal(V, D, seed=2), normal(V, seed=3)
    vectors = normal(N, D, seed=4), normal(V, D, seed=5), normal(V, seed=6)
    target = labels_for(normal(N, V))
    whole = [followed(t) for t in (x, w, b)]
    parts = [followed(x), followed(mine(w, 0)), followed(mine(b, 0))]
    loss = linear_cross_entropy(*whole[:2], target, linear_bias=whole[2], label_smoothing=0.1, softcap=3.0)
    g = torch.autograd.grad(loss, whole, create_graph=True)
    expected = torch.autograd.grad(sum((a * v).sum() for a, v in zip(g, vectors, strict=True)), whole)
    loss = vocab_parallel_linear_cross_entropy(*parts[:2], target, bias=parts[2], label_smoothing=0.1, softcap=3.0)
    g = torch.autograd.grad(loss, parts, create_graph=True)
    # The vector's parts lie as the gradients do: the whole for the input, slices for slices.
    own = [vectors[0], *(mine(v, 0) for v in vectors[1:])]
    found = torch.autograd.grad(g, parts, own)
    close(found[0], expected[0], "x")
    for ours, theirs in zip(found[1:], expected[1:], strict=True):
        close(ours, mine(theirs, 0), "weight, bias")


@case
def derivatives_by_everything_else() -> list[Tensor]:
    """Weights, temperatures and soft targets; whole on every rank where all have the same."""
    o = normal(N, V, seed=11)
    results = []
    for kind, reduction in itertools.product(("labels", "soft", "sparse"), ("mean", "none")):
        target = targets_of(o, 1)[kind]
        numbers = {"logit_scale": torch.tensor(1.3, dtype=torch.float64), "temperature": torch.tensor(0.8).double()}
        rows = eighths(N, seed=3)
        rows[2] = 0.0
        whole = {"o": o, "weight": eighths(V, seed=1), "sample_weight": rows, **numbers}
        if kind != "labels":
            whole["y"] = target if kind == "soft" else target[1]
        whole = {name: followed(t) for name, t in whole.items()}
        sliced = {"o": 1, "weight": 0, **({"y": 1} if kind == "soft" else {})}
        parts = {n: followed(mine(t, sliced[n]) if n in sliced else t.detach()) for n, t in whole.items()}
        gradients = []
        for function, tensors in ((cross_entropy, whole), (vocab_parallel_cross_entropy, parts)):
            y = target if kind == "labels" else tensors["y"] if kind == "soft" else (target[0], tensors["y"])
            options = {n: t for n, t in tensors.items() if n not in ("o", "y")}
            loss = function(tensors["o"], y, label_smoothing=0.1, z_loss=0.2, reduction=reduction, **options)
            gradients.append(torch.autograd.grad(loss, list(tensors.values()), upstream_for(loss)))
        for name, expected, found in zip(whole, *gradients, strict=True):
            context = (kind, reduction, name)
            close(found, mine(expected, sliced[name]) if name in sliced else expected, context, 1e-11)
            if name not in sliced:
                results.append(found)
    return results


@case
def derivatives_by_every_number() -> list[Tensor]:
    """Through the kernels' sums over each slice, and through the formulas for a followed smoothing."""
    o, x, w = normal(N, V, seed=12), normal(N, D), normal(V, D, seed=2)
    target = targets_of(o, 1)["labels"]
    values = {"logit_scale": 1.3, "softcap": 2.5, "temperature": 0.8, "z_loss": 0.2}
    results = []
    for extra in ({}, {"label_smoothing": 0.1}):
        gradients = []
        for slices in (False, True):
            numbers = {n: followed(torch.tensor(v, dtype=torch.float64)) for n, v in {**values, **extra}.items()}
            if slices:
                first = vocab_parallel_cross_entropy(mine(o, 1), target, **numbers)
                second = vocab_parallel_linear_cross_entropy(x, mine(w, 0), target, **numbers)
            else:
                first, second = cross_entropy(o, target, **numbers), linear_cross_entropy(x, w, target, **numbers)
            leaves = list(numbers.values())
            gradients += [torch.stack(torch.autograd.grad(loss, leaves)) for loss in (first, second)]
        for found, expected in zip(gradients[2:], gradients[:2], strict=True):
            close(found, expected, tuple(extra), 1e-11)
        results += gradients[2:]
    return results


@case
def transforms_are_refused() -> None:
    o, target = normal(3, V), labels_for(normal(3, V))
    raises(RuntimeError, ["torch.func"],
           lambda: torch.func.grad(lambda t: vocab_parallel_cross_entropy(t, target))(mine(o, 1)))  # fmt: skip
    with torch.autograd.forward_ad.dual_level():
        dual = torch.autograd.forward_ad.make_dual(mine(o, 1), mine(o, 1))
        raises(RuntimeError, ["forward-mode"], lambda: vocab_parallel_cross_entropy(dual, target))


# --- disagreement ----------------------------------------------------------------------------------------------------


@case
def ranks_that_disagree_are_named() -> list[Tensor]:
    """An error on every rank, and the group is as good as before."""
    odd = dist.get_world_size() - 1
    me = dist.get_rank() == odd
    o, x, w, b = normal(N, V), normal(N, D), normal(V, D), normal(V)
    target = labels_for(o)
    other = target.clone()
    other[3] = (other[3] + 1) % V

    def logits(n: int = N, dtype: Any = torch.float64, y: Tensor = target, **options: Any) -> Tensor:
        return vocab_parallel_cross_entropy(mine(o[:n].to(dtype), 1), y[:n], **options)

    def head(n: int = N, depth: int = D, bias: bool = True, y: Tensor = target, **options: Any) -> Tensor:
        own = mine(w[:, :depth], 0)
        return vocab_parallel_linear_cross_entropy(
            x[:n, :depth], own, y[:n], bias=mine(b, 0) if bias else None, **options
        )

    for function in (logits, head):
        for words, change in (
            (["rows", f"({N - 2},)", f"({N},)"], {"n": N - 2}),
            (["label_smoothing", "0.1", "0.0"], {"label_smoothing": 0.1}),
            (["reduction", "sum", "mean"], {"reduction": "sum"}),
            (["softcap"], {"softcap": 3.0}),
            (["the contents of target"], {"y": other}),
            (["the kind of target"], {"y": target.int()}),
            (["sample_weight"], {"sample_weight": torch.ones(N)}),
        ):
            said = raises(RuntimeError, [f"rank {odd}", *words], lambda: function(**(change if me else {})))  # noqa: B023
            assert said.count("\n") == 0
    raises(RuntimeError, [f"rank {odd}", "float32"], lambda: logits(dtype=torch.float32 if me else torch.float64))
    raises(RuntimeError, [f"rank {odd}", "features"], lambda: head(depth=D - 1 if me else D))
    raises(RuntimeError, [f"rank {odd}", "bias"], lambda: head(bias=not me))
    raises(RuntimeError, [f"rank {odd}", "reduce_x_grad"], lambda: head(reduce_x_grad=not me))
    raises(RuntimeError, [f"rank {odd}", "function"], lambda: logits() if me else head())
    return [logits().detach(), head().detach()]


@case
def inputs_that_differ_are_named() -> list[Tensor]:
    odd = dist.get_world_size() - 1
    x, w, target = normal(N, D), mine(normal(V, D, seed=2), 0), labels_for(normal(N, V))
    other = x[torch.tensor([1, 0, *range(2, N)])] if dist.get_rank() == odd else x  # the same numbers elsewhere
    said = raises(RuntimeError, [f"other on rank {odd} than on rank 0", "the same on every rank"],
                  lambda: vocab_parallel_linear_cross_entropy(other, w, target))  # fmt: skip
    assert said.count("the contents of x") == said.count("the contents of") == 1
    return [vocab_parallel_linear_cross_entropy(x, w, target)]


@case
def a_rank_that_refuses_is_named() -> list[Tensor]:
    odd = dist.get_world_size() - 1
    me = dist.get_rank() == odd
    o, target = normal(N, V), labels_for(normal(N, V))
    for kind, words, bad in (
        (TypeError, ["floating-point"], lambda: (mine(o, 1).long(), target, {})),
        (ValueError, ["target has shape"], lambda: (mine(o, 1), target[1:], {})),
        (ValueError, ["label_smoothing=2.0"], lambda: (mine(o, 1), target, {"label_smoothing": 2.0})),
        (ValueError, ["weight has shape"], lambda: (mine(o, 1), target, {"weight": torch.ones(V)})),
    ):
        logits, y, options = bad() if me else (mine(o, 1), target, {})
        known = [f"rank {odd} refused its arguments: {kind.__name__}"]
        raises(
            kind if me else RuntimeError, words if me else known + words,
            lambda: vocab_parallel_cross_entropy(logits, y, **options),  # noqa: B023
        )  # fmt: skip
    # All ranks find these together.
    wrong = target.clone()
    wrong[2] = V
    raises(IndexError, [f"target[2] is {V}"], lambda: vocab_parallel_cross_entropy(mine(o, 1), wrong))
    w = normal(V, D)
    x, pairs = normal(3, 2, D), wrong[:6].reshape(3, 2)
    raises(IndexError, ["target[1, 0]"], lambda: vocab_parallel_linear_cross_entropy(x, mine(w, 0), pairs))
    raises(ValueError, ["no rank has a class"],
           lambda: vocab_parallel_cross_entropy(torch.zeros(N, 0), torch.full((N,), -100)))  # fmt: skip
    return [vocab_parallel_cross_entropy(mine(o, 1), target)]


@case
def a_group_of_some_ranks() -> list[Tensor]:
    """The ranks of the group share the classes; others must not call."""
    chosen = list(range(dist.get_world_size()))[1:]
    group = dist.new_group(chosen)
    o, target = normal(N, V), labels_for(normal(N, V))
    if dist.get_rank() not in chosen:
        raises(ValueError, [f"rank {dist.get_rank()} is not in the group"],
               lambda: vocab_parallel_cross_entropy(o, target, group=group))  # fmt: skip
        return []
    place = chosen.index(dist.get_rank())
    part = o.tensor_split(len(chosen), 1)[place]
    loss = vocab_parallel_cross_entropy(part, target, group=group)
    close(loss, cross_entropy(o, target), "group")
    if len(chosen) > 1:  # the rank is named by its number in the world
        n = N - 1 if place == 0 else N
        raises(RuntimeError, ["rows: rank 1 has"] if len(chosen) > 2 else ["rows"],
               lambda: vocab_parallel_cross_entropy(part[:n], target[:n], group=group))  # fmt: skip
    return []
