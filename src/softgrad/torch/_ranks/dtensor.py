"""DTensors through the vocabulary-parallel losses.

One dimension of the mesh may shard the classes; over the others rows are sharded, or all is replicated.  Each rank
works on its local tensors; the classes' ranks merge their statistics, the rows' ranks add up the loss and what ``mean``
divides by.  So the result is that of the whole batch, replicated, or sharded as the rows are for ``reduction="none"``.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor, Replicate, Shard

from softgrad.torch._call import class_axis, outer_shape
from softgrad.torch._ranks.agreement import Agreement
from softgrad.torch._ranks.call import cross_entropy_over, linear_cross_entropy_over
from softgrad.torch._ranks.group import ALONE, Vary
from softgrad.torch.linear import NAMES_OF_LAYER

NUMBERS = ("label_smoothing", "logit_scale", "softcap", "temperature", "z_loss")
REMEDY = (
    "a plain tensor beside a DTensor is the same on every rank of the mesh; hand over DTensors sharded by rows, or the "
    "full_tensor() of the sharded one"
)


class Layout:
    """The dimensions of a mesh that shard classes, and those that shard rows."""

    def __init__(self, mesh: Any, classes: int | None, rows: dict[int, int]) -> None:
        self.mesh, self.classes, self.rows = mesh, classes, rows  # rows: mesh dimension → axis among the rows' axes
        self.group = ALONE if classes is None else mesh.get_group(classes)
        self.row_groups = tuple(mesh.get_group(i) for i in sorted(rows))
        self.plain: dict[str, tuple[Any, ...]] = {}  # tensors taken for the same on every rank, by argument

    def placements(self, class_axis: int | None, sharded_rows: bool = True) -> tuple[Any, ...]:
        """Return those of a tensor with the classes at an axis, or none; rows' axes beyond it are moved up."""
        found: list[Any] = [Replicate()] * self.mesh.ndim
        if class_axis is not None and self.classes is not None:
            found[self.classes] = Shard(class_axis)
        if sharded_rows:
            for i, axis in self.rows.items():
                found[i] = Shard(axis + (class_axis is not None and axis >= class_axis))
        return tuple(found)

    def local(self, tensor: Any, placements: tuple[Any, ...], name: str) -> Any:
        """Return this rank's part of a tensor, which is a DTensor, or the whole on every rank."""
        if tensor is None or not isinstance(tensor, Tensor):
            return tensor
        if not isinstance(tensor, DTensor):
            if self.rows and any(placements[i] != Replicate() for i in self.rows):
                raise ValueError(
                    f"{name} is a plain tensor, and the rows are sharded over the mesh; hand over a DTensor, "
                    "so that it is clear which rows these are"
                )
            self.plain[name] = (*self.plain.get(name, ()), tensor)
            tensor = DTensor.from_local(tensor, self.mesh, [Replicate()] * self.mesh.ndim, run_check=False)
        elif tensor.device_mesh != self.mesh:
            raise ValueError(f"{name} lies on {tensor.device_mesh}, and the classes on {self.mesh}")
        if tensor.placements != placements:
            tensor = tensor.redistribute(self.mesh, placements)
        return tensor.to_local(grad_placements=placements)

    def by_rows(self, tensor: Any) -> Any:
        """Return a tensor that is equal on the ranks of all rows, whose gradient is the sum of theirs."""
        follows = isinstance(tensor, Tensor) and tensor.requires_grad and self.row_groups
        return Vary.apply(tensor, self.row_groups) if follows else tensor

    def targets(self, target: Any, rows_axis: int) -> Any:
        """Return this rank's targets of any kind; dense soft ones have the classes at ``rows_axis``."""
        if isinstance(target, tuple):
            rows = self.placements(None)
            return tuple(self.local(part, rows, "target") for part in target)
        soft = isinstance(target, Tensor) and target.is_floating_point()
        return self.local(target, self.placements(rows_axis if soft else None), "target")

    def arguments(self, options: dict[str, Any]) -> dict[str, Any]:
        """Return the options with this rank's part of those that may be tensors."""
        once = self.placements(None, False)
        given = {name: self.by_rows(self.local(options[name], once, name)) for name in NUMBERS}
        given["weight"] = self.by_rows(self.local(options["weight"], self.placements(0, False), "weight"))
        given["sample_weight"] = self.local(options["sample_weight"], self.placements(None), "sample_weight")
        return {**options, **given, "group": self.group, "row_groups": self.row_groups}

    def agreement(self, function: str) -> Agreement:
        """Return the ranks' agreement about a call.

        Ranks that have other rows of unsharded classes need nothing from each other but sums, as in data parallelism,
        and are not asked.
        """
        rows_alone = self.rows if self.classes is None else ()
        asked = [i for i in range(self.mesh.ndim) if i != self.classes and i not in rows_alone]
        further = tuple(self.mesh.get_group(i) for i in asked)
        return Agreement(function, plain=self.plain, remedy=REMEDY, further=further)

    def whole(self, loss: Tensor, reduction: str, outer: tuple[int, ...]) -> DTensor:
        """Return the loss as a DTensor."""
        if reduction != "none":
            return DTensor.from_local(loss, self.mesh, [Replicate()] * self.mesh.ndim, run_check=False)
        stride = torch.empty(outer, device="meta").stride()
        return DTensor.from_local(
            loss, self.mesh, self.placements(None), run_check=False, shape=torch.Size(outer), stride=stride
        )


def _layout(tensor: DTensor, axis: int, name: str) -> Layout:
    """Return the layout of a tensor with classes at ``axis``."""
    classes = [i for i, p in enumerate(tensor.placements) if p.is_shard(axis)]
    if len(classes) > 1:
        raise ValueError(
            f"{name} has the placements {tensor.placements}; one dimension of the mesh shards the classes (axis {axis})"
        )
    rows = {}
    for i, placement in enumerate(tensor.placements):
        if i in classes or placement == Replicate():
            continue
        if type(placement) is not Shard:
            raise ValueError(f"{name} has the placement {placement}; redistribute it to Shard or Replicate first")
        rows[i] = placement.dim - (placement.dim > axis)
    return Layout(tensor.device_mesh, classes[0] if classes else None, rows)


def cross_entropy(input: Any, target: Any, weight: Any, *, inplace: bool, **options: Any) -> DTensor:  # noqa: A002
    """`softgrad.torch.cross_entropy` of logits that are a DTensor."""
    if inplace:
        raise ValueError("inplace=True does not go with DTensors")
    axis = class_axis(input)
    layout = _layout(input, axis, "input")
    target = layout.targets(target, axis)
    options = layout.arguments({**options, "weight": weight})
    logits = input.to_local(grad_placements=input.placements)
    loss = cross_entropy_over(layout.agreement("cross_entropy"), "input", logits, target, **options)
    return layout.whole(loss, options["reduction"], outer_shape(tuple(input.shape), axis))


def linear_cross_entropy(
    input: Any, linear_weight: Any, target: Any, *, linear_bias: Any, options: Any, shift: bool, **others: Any  # noqa: A002
) -> DTensor:  # fmt: skip
    """`softgrad.torch.linear_cross_entropy` of a head or inputs that are DTensors."""
    if isinstance(linear_weight, DTensor):
        head = _layout(linear_weight, 0, "linear_weight")
        if linear_weight.ndim != 2 or head.rows:
            raise ValueError(
                f"linear_weight of shape {tuple(linear_weight.shape)} has the placements {linear_weight.placements}; "
                "it is (V, D), and nothing but its classes may be sharded"
            )
        mesh, classes = head.mesh, head.classes
    else:
        mesh, classes = input.device_mesh, None
    layout = Layout(mesh, classes, _rows_of(input, classes) if isinstance(input, DTensor) else {})
    last = input.ndim - 1
    if shift and last - 1 in layout.rows.values():
        raise ValueError("shift=True needs the neighbours of each position, and the sequence is sharded: shift before")
    slices = layout.placements(0, False)
    x = layout.local(input, layout.placements(None), "input")
    weight = layout.by_rows(layout.local(linear_weight, slices, "linear_weight"))
    bias = layout.by_rows(layout.local(linear_bias, slices, "linear_bias"))
    target = layout.targets(target, last)
    others = layout.arguments(others)
    loss = linear_cross_entropy_over(
        layout.agreement("linear_cross_entropy"), NAMES_OF_LAYER, x, weight, target, linear_bias=bias, shift=shift,
        torch_options=options, **others,
    )  # fmt: skip
    outer = list(input.shape[:-1])
    if shift:
        outer[-1] = max(0, outer[-1] - 1)
    return layout.whole(loss, others["reduction"], tuple(outer))


def _rows_of(x: DTensor, classes: int | None) -> dict[int, int]:
    """Return how the rows of the input are sharded; over the classes' dimension of the mesh they are gathered."""
    rows = {}
    for i, placement in enumerate(x.placements):
        if i == classes or placement == Replicate() or placement.is_partial():
            continue
        if type(placement) is not Shard or placement.dim == x.ndim - 1:
            raise ValueError(f"input has the placements {x.placements}; its rows may be sharded, its features not")
        rows[i] = placement.dim
    return rows
