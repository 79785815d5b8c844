"""Cases of DTensors, `fully_shard` and sharded rows beside a sharded vocabulary; see `parallel_cases`.

On four ranks the mesh is 2 × 2: rows × classes.  On two it is 1 × 2.
"""

from __future__ import annotations

import itertools
from typing import Any

import torch
import torch.distributed as dist
from parallel_cases import D, N, V, close, option_sets, raises, targets_of, traffic
from torch import Tensor
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Partial, Replicate, Shard, distribute_tensor
from torch.distributed.tensor.parallel import loss_parallel
from torch_cases import eighths, followed, labels_for, normal, soft_for, upstream_for

from softgrad.torch import (
    CrossEntropyLoss,
    LinearCrossEntropyLoss,
    cross_entropy,
    linear_cross_entropy,
    linear_prediction_stats,
    prediction_stats,
)

CASES: dict[str, Any] = {}


def case(function: Any) -> Any:
    """Register a case."""
    CASES[function.__name__] = function
    return function


def mesh_of(two: bool = True) -> Any:
    """Rows × classes, or the classes alone."""
    ranks = dist.get_world_size()
    if not two:
        return init_device_mesh("cpu", (ranks,), mesh_dim_names=("classes",))
    return init_device_mesh("cpu", (ranks // 2, 2), mesh_dim_names=("rows", "classes"))


def spread(tensor: Any, mesh: Any, *placements: Any) -> Any:
    """A DTensor, or a pair of them."""
    if isinstance(tensor, tuple):
        return tuple(spread(t, mesh, *placements) for t in tensor)
    return None if tensor is None else distribute_tensor(tensor, mesh, placements[-mesh.ndim :])


def full(tensor: Any) -> Tensor:
    """The whole of a DTensor."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def is_soft(target: Any) -> bool:
    """Dense soft targets have a class axis."""
    return isinstance(target, Tensor) and target.is_floating_point()


@case
def logits_sharded_by_class_and_row() -> list[Tensor]:
    losses = []
    o = normal(N, V)
    reductions = itertools.cycle(("mean", "sum", "none", "mean"))
    meshes = {two: mesh_of(two) for two in (False, True)}
    for name, options in option_sets(o.shape, V).items():
        for (kind, target), reduction in zip(targets_of(o, 1).items(), reductions, strict=False):
            two = name != "plain"
            mesh, context = meshes[two], (two, name, reduction, kind)
            whole = followed(o)
            expected = cross_entropy(whole, target, reduction=reduction, **options)
            g = upstream_for(expected)
            wanted = torch.autograd.grad(expected, whole, g)[0]
            logits = spread(o, mesh, Shard(0), Shard(1)).requires_grad_()
            rows = (Shard(0), Replicate())
            given = {n: spread(v, mesh, *rows) if n == "sample_weight" else v for n, v in options.items()}
            soft = (Shard(0), Shard(1)) if is_soft(target) else rows
            loss = cross_entropy(logits, spread(target, mesh, *soft), reduction=reduction, **given)
            assert isinstance(loss, DTensor)
            assert loss.placements == (rows[-mesh.ndim :] if reduction == "none" else (Replicate(),) * mesh.ndim)
            close(loss.full_tensor(), expected, (context, "loss"))
            above = spread(g, mesh, *rows) if reduction == "none" else g
            if reduction != "none":
                above = distribute_tensor(g, mesh, [Replicate()] * mesh.ndim)
            (found,) = torch.autograd.grad(loss, logits, above)
            assert found.placements == logits.placements
            close(found.full_tensor(), wanted, (context, "gradient"))
            losses.append(loss.full_tensor().detach())
    return losses


@case
def as_pytorchs_loss_parallel() -> list[Tensor]:
    """The same results, and the backward pass needs no context."""
    mesh = mesh_of(False)
    losses = []
    for weight, reduction in itertools.product((None, eighths(40)), ("mean", "sum", "none")):
        o, target = normal(N, 40), labels_for(normal(N, 40))
        if weight is None:  # else PyTorch 2.13 reads outside the weights
            target[2] = -100
        g = upstream_for(cross_entropy(o, target, reduction=reduction))
        theirs, ours = (spread(o, mesh, Shard(1)).requires_grad_() for _ in range(2))
        with loss_parallel():
            expected = torch.nn.functional.cross_entropy(theirs, target, weight, reduction=reduction)
            (expected * spread(g, mesh, Replicate())).sum().backward()
        loss = cross_entropy(ours, target, weight, reduction=reduction)
        (loss * spread(g, mesh, Replicate())).sum().backward()
        close(loss.full_tensor(), expected.full_tensor(), "loss")
        assert ours.grad.placements == theirs.grad.placements
        close(ours.grad.full_tensor(), theirs.grad.full_tensor(), "gradient")
        losses.append(loss.full_tensor().detach())
    return losses


@case
def plain_targets_and_weights_are_replicated() -> list[Tensor]:
    mesh = mesh_of(False)
    o, a = normal(N, V), eighths(N)
    losses = []
    for target in targets_of(o, 1).values():
        options: dict[str, Any] = {"weight": eighths(V), "sample_weight": a, "label_smoothing": 0.1}
        logits = spread(o, mesh, Shard(1)).requires_grad_()
        loss = CrossEntropyLoss(options["weight"], label_smoothing=0.1)(logits, target, a)
        close(loss.full_tensor(), cross_entropy(o, target, **options), "loss")
        losses.append(loss.full_tensor().detach())
    deep = normal(2, V, 4)
    logits = spread(deep, mesh_of(), Shard(2), Shard(1))
    rows = (Shard(1), Replicate())
    for reduction in ("mean", "none"):
        loss = cross_entropy(logits, spread(labels_for(deep), mesh_of(), *rows), reduction=reduction, z_loss=0.1)
        close(loss.full_tensor(), cross_entropy(deep, labels_for(deep), reduction=reduction, z_loss=0.1), "deep")
        losses.append(loss.full_tensor())
    return losses


@case
def derivatives_by_weights_and_temperature() -> list[Tensor]:
    """Whole on every rank, though rows and classes are spread."""
    mesh = mesh_of()
    o = normal(N, V)
    whole = {
        "o": o, "y": soft_for(o), "weight": eighths(V), "sample_weight": eighths(N, seed=2),
        "temperature": torch.tensor(0.7, dtype=torch.float64), "z_loss": torch.tensor(0.1, dtype=torch.float64),
        "label_smoothing": torch.tensor(0.1, dtype=torch.float64),
    }  # fmt: skip
    whole = {n: followed(t) for n, t in whole.items()}
    lay = {"o": (Shard(0), Shard(1)), "y": (Shard(0), Shard(1)), "sample_weight": (Shard(0), Replicate())}
    parts = {
        n: spread(t.detach(), mesh, *lay[n]).requires_grad_() if n in lay else followed(t) for n, t in whole.items()
    }
    gradients = []
    for tensors in (whole, parts):
        options = {n: t for n, t in tensors.items() if n not in ("o", "y")}
        loss = cross_entropy(tensors["o"], tensors["y"], **options)
        gradients.append(torch.autograd.grad(loss, list(tensors.values())))
    for name, expected, found in zip(whole, *gradients, strict=True):
        close(full(found), expected, name, 1e-11)
    return [full(t) for t in gradients[1]]


@case
def a_head_sharded_by_class() -> list[Tensor]:
    """Rows plain, replicated, or sharded over either dimension of the mesh."""
    n = 5
    x, w, b = normal(4, n, D), normal(V, D, seed=2), normal(V, seed=3)
    target = labels_for(normal(4 * n, V)).reshape(4, n)
    target[0, 0] = -100
    losses = []
    mesh = mesh_of()
    layouts = [(Replicate(), Replicate()), (Shard(0), Replicate()), (Shard(1), Replicate()), (Shard(0), Shard(1))]
    for rows, reduction, shift in itertools.product(layouts, ("mean", "sum", "none"), (False, True)):
        if shift and Shard(1) in rows[:1]:
            continue
        context = (rows, reduction, shift)
        whole = [followed(t) for t in (x, w, b)]
        options = {"reduction": reduction, "shift": shift, "label_smoothing": 0.1}
        expected = linear_cross_entropy(*whole[:2], target, linear_bias=whole[2], **options)
        g = upstream_for(expected)
        wanted = torch.autograd.grad(expected, whole, g)
        inputs = spread(x, mesh, *rows).requires_grad_()
        head, bias = (spread(t, mesh, Replicate(), Shard(0)).requires_grad_() for t in (w, b))
        loss = linear_cross_entropy(inputs, head, spread(target, mesh, *rows), linear_bias=bias, **options)
        close(loss.full_tensor(), expected, (context, "loss"))
        by_row = (rows[0], Replicate()) if reduction == "none" else (Replicate(), Replicate())
        found = torch.autograd.grad(loss, (inputs, head, bias), spread(g, mesh, *by_row))
        for name, ours, theirs in zip(("x", "weight", "bias"), found, wanted, strict=True):
            close(ours.full_tensor(), theirs, (context, name))
        assert found[1].placements == head.placements
        losses.append(loss.full_tensor().detach())
    mesh = mesh_of(False)
    plain = linear_cross_entropy(x, spread(w, mesh, Shard(0)), target)
    close(plain.full_tensor(), linear_cross_entropy(x, w, target), "plain input")
    return [*losses, plain.full_tensor()]


@case
def what_cannot_be_is_refused() -> None:
    mesh = mesh_of()
    o, target = normal(8, 8), labels_for(normal(8, 8))
    raises(ValueError, ["one dimension of the mesh"],
           lambda: cross_entropy(spread(o, mesh, Shard(1), Shard(1)), target))  # fmt: skip
    if mesh.shape[0] > 1:
        raises(ValueError, ["target is a plain tensor"],
               lambda: cross_entropy(spread(o, mesh, Shard(0), Shard(1)), target))  # fmt: skip
    partial = DTensor.from_local(o[:, :4], mesh, [Partial(), Shard(1)], run_check=False)
    raises(ValueError, ["redistribute"], lambda: cross_entropy(partial, target))
    logits = spread(o, mesh, Replicate(), Shard(1))
    raises(ValueError, ["inplace"], lambda: cross_entropy(logits, target, inplace=True))
    w = spread(normal(V, D), mesh, Replicate(), Shard(0))
    x = normal(8, D)
    raises(ValueError, ["features not"],
           lambda: linear_cross_entropy(spread(x, mesh, Shard(1), Replicate()), w, target))  # fmt: skip
    raises(ValueError, ["nothing but its classes"],
           lambda: linear_cross_entropy(x, spread(normal(V, D), mesh, Shard(1), Shard(0)), target))  # fmt: skip
    raises(ValueError, ["shift before"], lambda: linear_cross_entropy(
        spread(normal(4, 4, D), mesh, Shard(1), Replicate()), w, target[:4], shift=True))  # fmt: skip
    raises(ValueError, ["lies on"], lambda: cross_entropy(logits, spread(target, mesh_of(False), Replicate())))


def apart(tensor: Tensor, odd: int) -> Tensor:
    """The tensor, whose last element is another one on one rank."""
    other = tensor.clone()
    if dist.get_rank() == odd:
        other.view(-1)[-1] = torch.nextafter(other.view(-1)[-1], torch.tensor(9.0, dtype=tensor.dtype))
    return other


REMEDY = ["hand over DTensors sharded by rows", "full_tensor()"]


def each_plain_argument(mesh: Any, odd: int) -> dict[str, list[Any]]:
    """Calls whose argument of that name is another one on one rank; with ``odd`` −1 none is."""
    o, x, w, b = normal(8, V), normal(8, D), normal(V, D, seed=2), normal(V, seed=3)
    logits, head = (spread(t, mesh, Replicate(), Shard(axis)) for t, axis in ((o, 1), (w, 0)))
    target, (index, values) = labels_for(o), targets_of(o, 1)["sparse"]
    soft, weight, rows, bias = (apart(t, odd) for t in (soft_for(o), eighths(V), eighths(8), b))
    tau, inputs, shares = (apart(t, odd) for t in (torch.tensor(0.7, dtype=torch.float64), x, values))
    return {
        "target": [
            lambda: cross_entropy(logits, soft),
            lambda: cross_entropy(logits, (index, shares)),
            lambda: linear_cross_entropy(x, head, soft),
        ],
        "weight": [
            lambda: cross_entropy(logits, target, weight),
            lambda: linear_cross_entropy(x, head, target, weight=weight),
        ],
        "sample_weight": [
            lambda: cross_entropy(logits, target, sample_weight=rows),
            lambda: linear_cross_entropy(x, head, target, sample_weight=rows),
        ],
        "input": [lambda: linear_cross_entropy(inputs, head, target)],
        "linear_bias": [lambda: linear_cross_entropy(x, head, target, linear_bias=bias)],
        "temperature": [lambda: cross_entropy(logits, target, temperature=tau)],
    }


@case
def plain_tensors_that_differ_are_named() -> list[Tensor]:
    """One bit on one rank, anywhere in the mesh: an error on every rank, and the group is as good as before."""
    results = []
    for two, odd in itertools.product((False, True), {0, dist.get_world_size() - 1}):
        mesh = mesh_of(two)
        for name, calls in each_plain_argument(mesh, odd).items():
            words = ["disagree", f"the contents of {name}", f"rank {odd}", *REMEDY]
            for call in calls:
                said = raises(RuntimeError, words, call)
                assert said.count("the contents of") == 1, said
        results += [call().full_tensor() for calls in each_plain_argument(mesh, -1).values() for call in calls]
    return results


@case
def a_sharded_head_beside_rows_of_ones_own() -> None:
    """FSDP2 between passes: weights that are DTensors, and in data parallelism other rows on each rank."""
    torch.manual_seed(0)
    head = torch.nn.Linear(D, V, dtype=torch.float64)
    w, b = head.weight.detach().clone(), head.bias.detach().clone()
    fully_shard(head, mesh=mesh_of(False))
    own = normal(5, D, seed=10 + dist.get_rank())
    teacher = (own @ w.T).softmax(1)
    raises(RuntimeError, ["the contents of input", "the contents of target", *REMEDY],
           lambda: linear_cross_entropy(own, head.weight, teacher, linear_bias=head.bias))  # fmt: skip
    loss = linear_cross_entropy(own, head.weight.full_tensor(), teacher, linear_bias=head.bias.full_tensor())
    close(loss, cross_entropy(own @ w.T + b, teacher), "by the whole head")


@case
def a_rank_that_refuses_is_named_over_the_mesh() -> None:
    odd = dist.get_world_size() - 1
    mesh = mesh_of()
    logits = spread(normal(8, V), mesh, Shard(0), Shard(1))
    target = spread(labels_for(normal(8, V)), mesh, Shard(0), Replicate())
    smoothing = 2.0 if dist.get_rank() == odd else 0.0
    raises(
        ValueError if dist.get_rank() == odd else RuntimeError,
        ["label_smoothing=2.0"]
        if dist.get_rank() == odd
        else [f"rank {odd} refused its arguments", "label_smoothing=2.0"],
        lambda: cross_entropy(logits, target, label_smoothing=smoothing),
    )
    smoothing = 0.2 if dist.get_rank() == odd else 0.0
    raises(RuntimeError, ["label_smoothing", f"rank {odd}", "0.2", "0.0"],
           lambda: cross_entropy(logits, target, label_smoothing=smoothing))  # fmt: skip


@case
def dtensors_elsewhere_are_refused() -> None:
    mesh = mesh_of(False)
    o, x, w = normal(8, V), normal(8, D), normal(V, D)
    target = labels_for(o)
    for name, call in (
        ("input", lambda: prediction_stats(spread(o, mesh, Shard(1)), target)),
        ("target", lambda: prediction_stats(o, spread(target, mesh, Replicate()))),
        ("sample_weight", lambda: prediction_stats(o, target, sample_weight=spread(eighths(8), mesh, Replicate()))),
        ("linear_weight", lambda: linear_prediction_stats(x, spread(w, mesh, Shard(0)), target)),
        ("linear_bias", lambda: linear_prediction_stats(x, w, linear_bias=spread(normal(V), mesh, Shard(0)))),
        ("target", lambda: linear_prediction_stats(x, w, spread(targets_of(o, 1)["sparse"], mesh, Replicate()))),
        ("weight", lambda: cross_entropy(o, target, spread(eighths(V), mesh, Shard(0)))),
        ("linear_bias", lambda: linear_cross_entropy(x, w, target, linear_bias=spread(normal(V), mesh, Shard(0)))),
    ):
        raises(TypeError, [f"{name} is a DTensor", "full_tensor()"], call)


class Model(torch.nn.Module):
    """A layer and a head with its loss."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer = torch.nn.Linear(D, D, dtype=torch.float64)
        self.head = LinearCrossEntropyLoss(D, V, bias=True, dtype=torch.float64, label_smoothing=0.1)

    def forward(self, x: Tensor, target: Tensor) -> Tensor:
        return self.head(torch.tanh(self.layer(x)), target)


@case
def under_fully_shard() -> list[Tensor]:
    """FSDP2 over the rows, the head's classes over the other dimension; as one process over three steps."""
    return three_steps(mesh_of(), split=True)


@case
def under_fully_shard_alone() -> list[Tensor]:
    """FSDP2 over all ranks: each has the whole head while it is read, and its memory goes in between."""
    return three_steps(init_device_mesh("cpu", (dist.get_world_size(),), mesh_dim_names=("rows",)), split=False)


def three_steps(mesh: Any, split: bool) -> list[Tensor]:
    """Losses, gradients and weights are those of one process."""
    alone, model = Model(), Model()
    for name in ("weight", "bias") if split else ():
        parameter = getattr(model.head.linear, name)
        part = distribute_tensor(parameter.detach(), mesh["classes"], [Shard(0)])
        setattr(model.head.linear, name, torch.nn.Parameter(part))
    for module in (model.layer, model.head, model):
        fully_shard(module, mesh=mesh["rows"])
    place, shares = mesh.get_coordinate()[0], mesh.shape[0]
    optimizers = [torch.optim.SGD(m.parameters(), lr=0.5) for m in (alone, model)]
    losses = []
    for step in range(3):
        x, target = normal(8, D, seed=step), labels_for(normal(8, V, seed=step))
        expected = alone(x, target)
        loss = full(model(x.tensor_split(shares)[place], target.tensor_split(shares)[place]))
        for value in (expected, loss):
            value.backward()
        for name, parameter in alone.named_parameters():
            ours = dict(model.named_parameters())[name]
            close(full(ours.grad), parameter.grad, (step, name))
        mean = loss.detach().clone()
        dist.all_reduce(mean, group=mesh.get_group("rows"))
        close(mean / shares, expected, (step, "loss"))
        losses.append(mean)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
    return losses


@case
def sharded_by_rows_alone() -> list[Tensor]:
    """Nothing is asked of ranks that have other rows, but sums."""
    o, x, w, b = normal(N, V), normal(N, D), normal(V, D, seed=2), normal(V)
    target = labels_for(o)
    target[1] = -100
    mesh = mesh_of(False)
    results = []
    for reduction in ("mean", "sum", "none"):
        whole = [followed(t) for t in (o, x, w, b)]
        logits, inputs = (spread(t, mesh, Shard(0)).requires_grad_() for t in (o, x))
        head, bias = followed(w), spread(b, mesh, Replicate()).requires_grad_()
        options = {"reduction": reduction, "weight": eighths(V), "label_smoothing": 0.1}
        with traffic() as seen:
            first = cross_entropy(logits, spread(target, mesh, Shard(0)), **options)
            second = linear_cross_entropy(inputs, head, spread(target, mesh, Shard(0)), linear_bias=bias, **options)
        assert {size for _, size in seen} == {"mean": {24, 8}, "sum": {8}, "none": set()}[reduction]
        for loss, expected, ours, theirs in (
            (first, cross_entropy(whole[0], target, **options), (logits,), whole[:1]),
            (second, linear_cross_entropy(*whole[1:3], target, linear_bias=whole[3], **options),
             (inputs, head, bias), whole[1:]),
        ):  # fmt: skip
            close(loss.full_tensor(), expected, (reduction, "loss"))
            g = upstream_for(expected)
            above = spread(g, mesh, Shard(0) if reduction == "none" else Replicate())
            found = torch.autograd.grad(loss, ours, above)
            for a, e in zip(found, torch.autograd.grad(expected, theirs, g), strict=True):
                close(full(a), e, (reduction, "gradient"))
            results.append(loss.full_tensor().detach())
    return results
