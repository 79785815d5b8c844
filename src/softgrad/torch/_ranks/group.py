"""Groups of ranks, their reductions, and the transposes of these.

`Sum` and `Vary` are the pair of transposes that makes the composition differentiable to any order.  A tensor is either
equal on all ranks, or each rank has its own.  ``Sum`` turns the latter into the former and ``Vary`` is the way back:
the identity, whose gradient is summed over the ranks.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

ALONE = "alone"  # a group of one rank, which communicates with no other


class Place(NamedTuple):
    """The columns of this rank among those of its group."""

    group: Any
    rank: int  # in the group
    sizes: tuple[int, ...]  # of the slices, by rank

    @property
    def offset(self) -> int:
        """The first of this rank's classes."""
        return sum(self.sizes[: self.rank])

    @property
    def own(self) -> int:
        """How many classes this rank has."""
        return self.sizes[self.rank]

    @property
    def classes(self) -> int:
        """V."""
        return sum(self.sizes)


def group_of(group: Any) -> Any:
    """Return a validated process group."""
    if group is ALONE:
        return group
    if not dist.is_available() or not dist.is_initialized():
        raise RuntimeError("there is no process group; call torch.distributed.init_process_group, or run torchrun")
    if group is None:
        group = dist.group.WORLD
    if group is dist.GroupMember.NON_GROUP_MEMBER or dist.get_rank(group) < 0:
        raise ValueError(f"rank {dist.get_rank()} is not in the group; only the group's ranks make the call")
    return group


def name_of(group: Any, i: int) -> str:
    """Return the name of a rank of the group, by its number in the world."""
    return f"rank {dist.get_global_rank(group, i)}"


def reduced(collective: Any, group: Any, function: str = "softgrad.torch.parallel") -> Any:
    """Call a collective; where it fails, say who waited for whom."""
    try:
        return collective()
    except RuntimeError as error:
        others = [i for i in range(dist.get_world_size(group)) if i != dist.get_rank(group)]
        raise RuntimeError(
            f"{function}: rank {dist.get_rank()} lost the others of its group "
            f"({', '.join(name_of(group, i) for i in others)}): one of them has ended, or did not make the same call "
            f"within the group's time-out.  {error}"
        ) from error


def all_reduce(tensor: Tensor, operation: Any, group: Any) -> Tensor:
    """Reduce in place, over every rank of the group."""
    if group is not ALONE:
        reduced(lambda: dist.all_reduce(tensor, op=operation, group=group), group)
    return tensor


def maximum(tensor: Tensor, group: Any) -> Tensor:
    """The largest over the ranks; NaN counts as +inf, since not every back end hands it on."""
    return all_reduce(torch.where(torch.isnan(tensor), float("inf"), tensor), dist.ReduceOp.MAX, group)


def total(tensor: Tensor, groups: tuple[Any, ...]) -> Tensor:
    """The sum over the ranks of each group in turn, in place."""
    for group in groups:
        all_reduce(tensor, dist.ReduceOp.SUM, group)
    return tensor


class Later:
    """Sums on their way: one begins while the next tile is computed."""

    def __init__(self, group: Any) -> None:
        self.group = group
        self.under_way: list[Any] = []

    def begin(self, tensor: Tensor) -> None:
        """Sum a contiguous tensor in place, some time before `finish` returns."""
        if self.group is not ALONE:
            work = reduced(lambda: dist.all_reduce(tensor, group=self.group, async_op=True), self.group)
            self.under_way.append(work)

    def finish(self) -> None:
        """Wait."""
        for work in self.under_way:
            reduced(work.wait, self.group)
        self.under_way.clear()


class Sum(torch.autograd.Function):
    """``Σ`` over the ranks: the same on all of them."""

    @staticmethod
    def forward(ctx: Any, tensor: Tensor, groups: tuple[Any, ...]) -> Tensor:
        ctx.groups = groups
        return total(tensor.clone(memory_format=torch.contiguous_format), groups)

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor, None]:
        return Vary.apply(upstream, ctx.groups), None


class Vary(torch.autograd.Function):
    """What is the same on all ranks, for each rank's own use."""

    @staticmethod
    def forward(ctx: Any, tensor: Tensor, groups: tuple[Any, ...]) -> Tensor:
        ctx.groups = groups
        return tensor.view_as(tensor)

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor, None]:
        return Sum.apply(upstream, ctx.groups), None
