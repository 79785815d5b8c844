"""The loss of a slice of the classes as autograd sees it.

The forward pass reads this rank's logits once, and two small reductions make the statistics of the whole rows; the
backward pass reads them once more and writes this rank's columns of ``S − y``.  The linear head makes the logits of
a tile of rows at a time, in both passes; a tile that holds all rows is kept from one to the other.  What the head sends
back to its input is a sum over the ranks: it travels while the next tile is computed.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from softgrad._core.arrays import Array, LogitRows, Output
from softgrad._core.linear_tiles import INPUT_ROWS, LinearGradients, LinearInputs, TilePass, TilePlan
from softgrad._core.schedule import streams
from softgrad.torch import _memory, _parallel_composite
from softgrad.torch._batch import array_of, rows_of, tensor_of, threads_for
from softgrad.torch._call import Call
from softgrad.torch._linear_function import STORAGE_ARRAYS, Plan, fresh_tensor, inputs_of, rounded
from softgrad.torch._parallel_group import Later, Place, Vary
from softgrad.torch._parallel_kernels import Factors, Slice, summed
from softgrad.torch._products import choose


def _loss(one: Slice, factors: Factors, records: Array, shape: Any, row_groups: tuple[Any, ...], call: Call) -> Tensor:
    losses = one.losses(records, factors)
    if call.options.reduction == "none":
        return torch.from_numpy(losses).reshape(shape).to(call.dtype)
    return summed(losses, factors, row_groups, call.dtype)


def _factor(upstream: Tensor, call: Call) -> Any:
    """What comes from above: a number, or one for each row."""
    if call.options.reduction != "none":
        return float(upstream)
    return upstream.detach().to(torch.float64).contiguous().numpy().reshape(-1)


class ParallelFunction(torch.autograd.Function):
    """The loss of this rank's logits and the others'."""

    @staticmethod
    def forward(ctx: Any, *inputs: Any) -> Tensor:
        *tensors, call, place, row_groups = inputs
        logits = tensors[0]
        rows = _rows(logits, call.axis)
        one = Slice(place, call.options, rows, tuple(tensors[1:]), threads_for(call.n_threads, rows.array.size))
        records = one.statistics(rows.array, 0, one.n)
        one.merge(records)
        factors = one.factors(records, row_groups)
        ctx.call, ctx.place, ctx.row_groups = call, place, row_groups
        ctx.known = (one, records, factors)
        ctx.save_for_backward(*tensors)
        ctx.set_materialize_grads(False)
        return _loss(one, factors, records, rows.outer, row_groups, call)

    @staticmethod
    def backward(ctx: Any, upstream: Tensor | None) -> tuple[Any, ...]:
        nothing = (None,) * 7
        if upstream is None:
            return (None, *nothing)
        tensors, call = ctx.saved_tensors, ctx.call
        if torch.is_grad_enabled():
            if call.inplace:
                raise RuntimeError("inplace=True writes the gradient over the logits, of which create_graph=True needs "
                                   "the values; use inplace=False")  # fmt: skip
            loss = _parallel_composite.cross_entropy(tensors, call, ctx.place, ctx.row_groups, {})
            return (*torch.autograd.grad(loss, tensors[:1], upstream, create_graph=True), *nothing)
        one, records, factors = ctx.known
        logits = tensors[0]
        rows = _rows(logits, call.axis)
        out = array_of(logits).view(rows.dtype) if call.inplace else None
        to = Output(rows, out, allocate=_memory.empty)
        stream = not call.inplace and streams(to.rows)
        one.gradient(rows.array, records, 0, one.n, factors, _factor(upstream, call), to.rows, stream)
        grad = tensor_of(to.deliver(), logits.dtype)
        if call.inplace:
            torch.autograd.graph.increment_version(logits)
            grad = logits.detach()
        return (grad, *nothing)


def _rows(logits: Tensor, axis: int) -> LogitRows:
    if logits.shape[axis]:
        return rows_of(logits, axis)
    array = array_of(logits)
    like = rows_of(logits.new_empty((1, 1)), 1)
    rows = int(np.prod(array.shape[:axis] + array.shape[axis + 1 :]))
    return LogitRows(np.empty((rows, 0), like.array.dtype), like.storage, array.shape, axis, like.dtype)


class _Walk(TilePass):
    """Row tiles of this rank's logits; edges are the same on all ranks, whose reductions have to meet."""

    def __init__(self, plan: Plan, place: Place, tensors: tuple[Any, ...]) -> None:
        x, weight, bias, *rest = tensors
        self.place = place
        products = choose(x.dtype, x.shape[-1], plan.impl)
        inputs = inputs_of(x, weight, bias, products)
        threads = threads_for(plan.call.n_threads, x.shape[0] * max(place.sizes))
        self.one = Slice(place, plan.call.options, inputs.rows, tuple(rest), threads)
        super().__init__(inputs, _sizes(plan, place, x, inputs.x), LinearGradients(None, None, None), threads, products)
        self.bias = None if inputs.bias is None else products.widen(inputs.bias, inputs.compute)
        self.tiles = [(lo, min(lo + self.plan.rows, self.one.n)) for lo in range(0, self.one.n, self.plan.rows)]

    def statistics(self) -> Array:
        """Records of all rows over this rank's columns."""
        records = self.one.nothing(self.one.n)
        with self.products.single_threaded():
            for lo, hi in self.tiles if not self.one.empty else []:
                x = self.products.widen(self.inputs.x[lo:hi], self.inputs.compute)
                records[lo:hi] = self.one.statistics(self.logits(x, self.bias), lo, hi)
        return records

    def carry_back(
        self, records: Array, factors: Factors, upstream: Any, totals: list[Any], kept: bool, later: Later | None
    ) -> None:
        """The gradients that are wanted, into ``totals``; ``kept``: the one tile still holds its logits."""
        by_x, by_weight, by_bias = (None if t is None else array_of(t) for t in totals)
        self.grads = LinearGradients(None, by_weight, by_bias)
        with self.products.single_threaded():
            for lo, hi in self.tiles:
                x = self.products.widen(self.inputs.x[lo:hi], self.inputs.compute)
                if self.one.empty:
                    g = np.empty((hi - lo, 0), self.inputs.compute)
                else:
                    g = self.tile[: hi - lo] if kept else self.logits(x, self.bias)
                    self.one.gradient(g, records, lo, hi, factors, upstream, g, False)
                if by_x is not None:
                    self._to_x(g, by_x[lo:hi])
                if later is not None:  # under way while the weight's product, and the next tile's, are computed
                    later.begin(totals[0][lo:hi])
                self.back(g, x, lo)
            if later is not None:
                later.finish()

    def _to_x(self, g: Array, to: Array) -> None:
        """``G W`` of a tile, in the accumulator's type."""
        blocks = -(-len(g) // INPUT_ROWS)
        if self.one.empty:
            to[...] = 0
            return

        def work(i: int) -> None:
            part = slice(len(g) * i // blocks, len(g) * (i + 1) // blocks)
            if not self.inputs.converts:
                self.products.accumulate(g[part], self.inputs.weight, to[part], first=True)
                return
            for c, d in self.edges:
                self.products.accumulate(g[part, c:d], self._weight(c, d), to[part], first=c == 0)

        self._run(work, blocks, scratch=self.inputs.converts)


def _sizes(plan: Plan, place: Place, x: Tensor, array: Array) -> TilePlan:
    """Tiles for the largest slice, and as if half precision were always converted: the same on every rank."""
    compute, _ = STORAGE_ARRAYS[torch.float64 if x.dtype == torch.float64 else torch.float32]
    weight = np.broadcast_to(np.zeros((1, 1), array.dtype), (max(place.sizes), array.shape[1]))
    return TilePlan.of(LinearInputs(array, weight, None, None, compute), plan.max_memory, plan.max_rows)  # type: ignore[arg-type]


class ParallelLinearFunction(torch.autograd.Function):
    """The loss of ``x Wᵀ + b`` where this rank has some rows of W."""

    @staticmethod
    def forward(ctx: Any, *inputs: Any) -> Tensor:
        *tensors, plan, place, row_groups, reduce_x_grad = inputs
        walk = _Walk(plan, place, tuple(tensors))
        records = walk.statistics()
        walk.one.merge(records)
        factors = walk.one.factors(records, row_groups)
        ctx.plan, ctx.place, ctx.row_groups, ctx.reduce = plan, place, row_groups, reduce_x_grad
        ctx.known = (records, factors)
        # Not the walk itself: `fully_shard` takes the weight's memory away between the passes.
        ctx.tile = walk.tile if any(ctx.needs_input_grad[:3]) and len(walk.tiles) == 1 else None
        ctx.save_for_backward(*tensors)
        ctx.set_materialize_grads(False)
        return _loss(walk.one, factors, records, (walk.one.n,), row_groups, plan.call)

    @staticmethod
    def backward(ctx: Any, upstream: Tensor | None) -> tuple[Any, ...]:
        nothing = (None,) * 8
        need = ctx.needs_input_grad[:3]
        if upstream is None:
            return (None, None, None, *nothing)
        tensors, plan, place = ctx.saved_tensors, ctx.plan, ctx.place
        if torch.is_grad_enabled():
            loss = through_logits(tensors, plan.call, place, ctx.row_groups, {}, ctx.reduce)
            wanted = [t for t, needed in zip(tensors, need, strict=False) if needed]
            found = iter(torch.autograd.grad(loss, wanted, upstream, create_graph=True))
            return (*(next(found) if needed else None for needed in need), *nothing)
        records, factors = ctx.known
        walk = _Walk(plan, place, tensors)
        kept = ctx.tile is not None
        if kept:
            walk.tile, ctx.tile = ctx.tile, None  # the gradient is written over it
        totals = _totals(tensors, plan, need)
        if factors.void or walk.one.n == 0:
            for t in totals:
                if t is not None:
                    t.zero_()
        else:
            later = Later(place.group) if need[0] and ctx.reduce else None
            walk.carry_back(records, factors, _factor(upstream, plan.call), totals, kept, later)
        return (*(rounded(t, like) for t, like in zip(totals, tensors, strict=False)), *nothing)


def _totals(tensors: tuple[Any, ...], plan: Plan, need: Any) -> list[Tensor | None]:
    x, weight, _ = tensors[:3]
    wide = torch.float64 if x.dtype == torch.float64 else torch.float32
    return [
        fresh_tensor(x.shape, wide) if need[0] else None,
        fresh_tensor(weight.shape, plan.accumulate_dtype) if need[1] else None,
        fresh_tensor(weight.shape[:1], plan.accumulate_dtype) if need[2] else None,
    ]


def through_logits(
    tensors: tuple[Any, ...], call: Call, place: Place, row_groups: Any, scalars: dict[str, Tensor], reduce: bool
) -> Tensor:
    """The linear head by way of this rank's N×V_own logits."""
    x, weight, bias, *rest = tensors
    if reduce:
        x = Vary.apply(x, (place.group,))
    logits = torch.nn.functional.linear(x, weight, bias)
    return _parallel_composite.cross_entropy((logits, *rest), call, place, row_groups, scalars)
