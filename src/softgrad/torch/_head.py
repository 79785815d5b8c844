"""The row primitive on a linear head through the CPU kernels, as autograd sees it.

`NativeHeadRows` maps ``x Wᵀ + b`` to row values, a tile of logits at a time, and makes the logits
again in its backward pass: four matrix products, any upstream.  `HeadLossFunction` is a schedule for
losses that are reduced to one number: it makes the gradients in the forward pass, with three products.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from softgrad._core import backend
from softgrad._core.arrays import Array
from softgrad._core.linear_tiles import (
    HeadParts,
    HeadTiles,
    LayerArrays,
    LinearGradients,
    TileSizes,
    contiguous,
    loss_and_gradients,
)
from softgrad._core.schedule import run_gradient, run_statistics, statistics_dtype
from softgrad.torch import _memory, _rows
from softgrad.torch._call import Call
from softgrad.torch._formulas import WHOLE, Columns, RowValues, is_labels
from softgrad.torch._products import TorchProducts, choose
from softgrad.torch._tensors import (
    ARRAY_DTYPES,
    HALF,
    STORAGE,
    array_of,
    class_vector_of,
    lent_array_of,
    targets_of,
    tensor_of,
    threads_for,
    vector_of,
)


@dataclass(frozen=True, slots=True, eq=False)
class Plan:
    """How a call of the linear head runs.

    Attributes
    ----------
    max_memory : int or None
        Bytes of the tiles.
    max_rows : int or None
        Rows of a tile at most.
    impl : str or None
        Whose matrix products; ``composite`` for PyTorch's operations throughout.
    accumulate_dtype : torch.dtype or None
        What tiles of rows add up in.
    """

    max_memory: int | None = None
    max_rows: int | None = None
    impl: str | None = None
    accumulate_dtype: torch.dtype | None = None


def accumulator(dtype: torch.dtype, asked: torch.dtype | None = None) -> torch.dtype:
    """Return the type in which tiles of rows add up."""
    usual = torch.float32 if dtype in HALF else dtype
    if asked not in (None, usual, torch.float64):
        raise ValueError(
            f"accumulate_dtype={asked} is none of {usual} (the default) and torch.float64 for {dtype} weights"
        )
    return usual if asked is None else asked


def head_sizes(x: Tensor, linear_weight: Tensor, plan: Plan, *, windows: bool, widest: int = 0) -> TileSizes:
    """Return the sizes of the tiles of logits; half precision counts as if it were always converted."""
    item = 8 if x.dtype == torch.float64 else 4
    classes = widest or len(linear_weight)
    return TileSizes.of(len(x), x.shape[-1], classes, item, x.dtype in HALF, plan.max_memory, plan.max_rows, windows)


class HeadWalk(HeadTiles):
    """Tiles of a head with the targets and weights of their rows and columns.

    Attributes
    ----------
    parts : HeadParts
    """

    def __init__(
        self,
        tensors: tuple[Any, ...],
        call: Call,
        plan: Plan,
        row_weight: Array | None = None,
        *,
        windows: bool = True,
        z_loss: float = 0.0,
        columns: Columns = WHOLE,
    ) -> None:
        x, linear_weight, bias, target, values, weight = tensors
        products = choose(x.dtype, x.shape[-1], plan.impl)
        half = x.dtype in HALF and not isinstance(products, TorchProducts)
        kind = torch.float32 if half else x.dtype
        storage, own = STORAGE[kind], len(linear_weight)
        self.parts = HeadParts(
            storage, targets_of(target, values, x.ndim - 1), _rows.native_options(call.options, z_loss),
            class_vector_of(weight, storage), row_weight, columns.first, columns.classes or own,
        )  # fmt: skip
        self.columns, self.options = columns, call.options
        self.unit_mass = is_labels(target, values) and weight is None
        layer = LayerArrays(
            contiguous(array_of(x)), contiguous(lent_array_of(linear_weight)),
            None if bias is None else lent_array_of(bias), ARRAY_DTYPES[kind],
        )  # fmt: skip
        sizes = head_sizes(x, linear_weight, plan, windows=windows and columns.whole, widest=columns.widest)
        super().__init__(layer, sizes, threads_for(call.n_threads, len(x) * max(1, own)), products)

    def head(self, logits: Array, rows: tuple[int, int], window: tuple[int, int]) -> Any:
        """Return the kernels' view of one tile, its labels checked."""
        head = self.parts.head(logits, rows, window)
        if head.settle(False).bad_row >= 0:
            raise changed_label(rows[0])
        return head

    def statistics(self, buffers: dict[str, Array], by_products: bool = False) -> Array:
        """Fill row values; return the records of all rows, merged over the windows."""
        n, own = len(self.layer.x), len(self.layer.weight)
        finish_at_once = len(self.windows) == 1 and self.columns.whole
        records = np.zeros(n, statistics_dtype())
        with self.products.single_threaded():
            for rows in self.rows:
                x, count = self.inputs(*rows), rows[1] - rows[0]
                part = {name: buffer[slice(*rows)] for name, buffer in buffers.items()}
                for window in self.windows:
                    logits = self.logits(x, window)
                    head, cols = self.head(logits, rows, window), window[1] - window[0]
                    last = window is self.windows[-1]
                    outputs = backend.kernels().Outputs(
                        count, cols, self.parts.storage, **(part if finish_at_once else {})
                    )
                    found = run_statistics(head, outputs, count, cols, self.n_threads, by_products=by_products)
                    if window[0] == 0:
                        records[slice(*rows)] = found
                    else:
                        head.merge(records[slice(*rows)], found)
                    if last and not finish_at_once and self.columns.whole:
                        outputs = backend.kernels().Outputs(count, cols, self.parts.storage, **part)
                        head.finish(outputs, records[slice(*rows)], 0, count)
        if not self.columns.whole:
            unseen = np.broadcast_to(np.zeros((1, own), self.layer.compute), (n, own))
            head = self.parts.head(unseen, (0, n), (0, own))
            self.columns.merge(head, records, self.parts.storage, self.options, self.unit_mass)
            head.finish(backend.kernels().Outputs(n, own, self.parts.storage, **buffers), records, 0, n)
        return records

    def gradients(
        self, records: Array, upstream: tuple[Array | None, ...], grads: LinearGradients, sums: dict[str, Array],
        *, kept: bool = False, rows_done: Any = None,
    ) -> None:  # fmt: skip
        """Add the gradients for upstream numbers of cross-entropy, lse and entropy to ``grads``.

        ``kept``: the one tile still holds its logits.  ``rows_done(lo, hi)`` is called when a tile's gradient by x is
        complete, before its products for W.
        """
        half = self.layer.x.dtype.itemsize == 2
        apart = len(self.windows) > 1 and grads.x is not None and half  # sums over windows, rounded once
        x_rows = np.empty((self.sizes.rows, self.layer.x.shape[1]), np.float32) if apart else None
        if not self.rows:
            for grad in grads:
                if grad is not None:
                    grad[...] = 0
        with self.products.single_threaded():
            for rows in self.rows:
                x, count, part = self.inputs(*rows), rows[1] - rows[0], slice(*rows)
                for window in self.windows:
                    cols = window[1] - window[0]
                    g = self.view(count, window) if kept else self.logits(x, window)
                    head = self.head(g, rows, window)
                    head.set_upstream(*(None if u is None else u[part] for u in upstream))
                    buffers = {name: buffer[part] for name, buffer in sums.items()}
                    outputs = backend.kernels().Outputs(count, cols, self.parts.storage, grad=g, **buffers)
                    run_gradient(head, outputs, records[part], count, cols, self.n_threads)
                    if grads.x is not None:
                        to = grads.x[part] if x_rows is None else x_rows[:count]
                        self.add_to_x(g, window, to, window[0] == 0)
                        if window is self.windows[-1] and x_rows is not None:
                            self.products.store(grads.x[part], x_rows[:count])
                    if rows_done is not None and window is self.windows[-1]:
                        rows_done(*rows)
                    self.add_to_weight(g, x, window, grads.weight, grads.bias, rows[0] == 0)


def fresh_tensor(shape: Any, dtype: torch.dtype) -> Tensor:
    """Return uninitialised memory as a tensor."""
    return tensor_of(_memory.empty(tuple(shape), ARRAY_DTYPES[dtype]), dtype)


def gradient_tensors(tensors: tuple[Any, ...], plan: Plan, needs: Any) -> list[Tensor | None]:
    """Return memory for the gradients by x, W and b that are needed."""
    x, linear_weight = tensors[:2]
    wide = plan.accumulate_dtype or accumulator(linear_weight.dtype)
    return [
        fresh_tensor(x.shape, x.dtype) if needs[0] else None,
        fresh_tensor(linear_weight.shape, wide) if needs[1] else None,
        fresh_tensor(linear_weight.shape[:1], wide) if needs[2] else None,
    ]


def gradient_arrays(grads: list[Tensor | None]) -> LinearGradients:
    """Return the gradients' memory as arrays."""
    return LinearGradients(*(None if grad is None else array_of(grad) for grad in grads))


def rounded(grad: Tensor | None, like: Tensor) -> Tensor | None:
    """Return a gradient in its tensor's type, or wider where ``Tensor.grad_dtype`` asks for it."""
    if grad is None:
        return None
    dtype = getattr(like, "grad_dtype", like.dtype) if like.is_leaf else like.dtype
    return grad.to(like.dtype if dtype is None else dtype)


class NativeHeadRows(torch.autograd.Function):
    """Row values of ``x Wᵀ + b``.

    Inputs are x, W, b, target, values, class weight, the followed ones of logit scale, softcap and temperature (else
    None), the `Call`, the `Plan`, the mask of active rows or None, whether entropy, arg-max and rank are wanted,
    `Columns`, and whether gradients are enabled.
    """

    @staticmethod
    def forward(ctx: Any, *inputs: Any) -> tuple[Tensor, ...]:
        *tensors, ctx.call, ctx.plan, active, ctx.by_products, ctx.columns, graded = inputs
        ctx.row_weight = vector_of(active)
        walk = row_walk(ctx, tensors)
        found = _rows.buffers_for(len(tensors[0]), ctx.by_products)
        ctx.records = walk.statistics(found, ctx.by_products)
        one_tile = len(walk.rows) == len(walk.windows) == 1 and graded and any(ctx.needs_input_grad)
        ctx.tile = walk.tile if one_tile else None  # within the budget: no need to make the logits again
        ctx.save_for_backward(*tensors)
        results = _rows.row_tensors(found, (len(tensors[0]),))
        ctx.mark_non_differentiable(*results[3:])
        ctx.set_materialize_grads(False)
        return results

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor | None) -> tuple[Any, ...]:
        tensors, needs, columns = list(ctx.saved_tensors), list(ctx.needs_input_grad[:9]), ctx.columns
        upstream = upstream[:3]
        if all(g is None for g in upstream):
            return (None,) * 15
        if torch.is_grad_enabled() or _rows.batched(*upstream):
            active = None if ctx.row_weight is None else torch.from_numpy(ctx.row_weight != 0)
            leaves = _rows.again(tensors, needs)
            with torch.enable_grad():
                rows = logit_rows(leaves, ctx.call, active, columns)
                grads = _rows.differentiable(rows, upstream, leaves, needs)
            return (*grads, *(None,) * 6)
        walk = row_walk(ctx, tensors)
        kept = ctx.tile is not None
        if kept:
            walk.tile, ctx.tile = ctx.tile, None  # the gradient is written over it
        found = gradient_tensors(tuple(tensors), ctx.plan, needs)
        sums = {name: np.empty(len(tensors[0])) for name in ("along", "slope")} if any(needs[6:]) else {}
        adding = columns.adding() if needs[0] and columns.sums_inputs else None
        if adding is not None and tensors[0].dtype in HALF:  # the slices add up in float32
            found[0] = fresh_tensor(tensors[0].shape, torch.float32)
        by_x: Any = found[0]
        rows_done = None if adding is None else lambda lo, hi: adding.begin(by_x[lo:hi])
        walk.gradients(
            ctx.records, tuple(map(vector_of, upstream)), gradient_arrays(found), sums, kept=kept, rows_done=rows_done
        )
        if adding is not None:
            adding.finish()
        numbers = _rows.number_gradients(ctx.call.options, sums, tensors[6:9], needs[6:9])
        layer = (rounded(grad, like) for grad, like in zip(found, tensors, strict=False))
        return (*layer, None, None, None, *numbers, *(None,) * 6)


def row_walk(ctx: Any, tensors: list[Any]) -> HeadWalk:
    """Return the walk of a `NativeHeadRows`."""
    return HeadWalk(
        tuple(tensors[:6]), ctx.call, ctx.plan, ctx.row_weight, windows=not ctx.by_products, columns=ctx.columns
    )


def logit_rows(tensors: list[Any], call: Call, active: Tensor | None, columns: Columns = WHOLE) -> RowValues:
    """Return row values by way of the N×V logits, in PyTorch's operations."""
    x, linear_weight, bias, *others = tensors
    logits = torch.nn.functional.linear(columns.vary(x) if columns.sums_inputs else x, linear_weight, bias)
    return _rows.formula_rows([logits, *others], call, active, axis=1, columns=columns)


class HeadLossFunction(torch.autograd.Function):
    """The loss of ``x Wᵀ + b``.

    Inputs are x, W, b, target, values, class weight, sample weight, the `Call`, the `Plan`, and whether gradients are
    enabled.

    The first backward pass hands over the gradients that were made with the loss; another one, under
    ``retain_graph``, makes them again.
    """

    @staticmethod
    def forward(ctx: Any, *inputs: Any) -> Tensor:
        *tensors, call, plan, graded = inputs
        needs = [graded and need for need in ctx.needs_input_grad[:3]]
        total, ctx.grads = head_loss_and_gradients(tuple(tensors), call, plan, needs)
        ctx.call, ctx.plan = call, plan
        ctx.save_for_backward(*tensors)
        return total

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Any, ...]:
        tensors, needs = ctx.saved_tensors, list(ctx.needs_input_grad[:7])
        if torch.is_grad_enabled() or _rows.batched(upstream):
            leaves = _rows.again(list(tensors), needs)
            with torch.enable_grad():
                logits = torch.nn.functional.linear(*leaves[:3])
                loss = _rows.formula_loss([logits, *leaves[3:]], ctx.call, axis=1)
                grads = _rows.differentiable((loss,), (upstream,), leaves, needs)  # type: ignore[arg-type]
            return (*grads, None, None, None)
        scale = float(upstream)
        grads, ctx.grads = ctx.grads, None
        if grads is None:
            grads = head_loss_and_gradients(tensors, ctx.call, ctx.plan, needs)[1]
        for grad in grads:
            if grad is not None and scale != 1.0:
                grad.mul_(scale)
        layer = (rounded(grad, like) for grad, like in zip(grads, tensors, strict=False))
        return (*layer, *(None,) * 7)


def head_loss_and_gradients(
    tensors: tuple[Any, ...], call: Call, plan: Plan, needs: Any
) -> tuple[Tensor, list[Tensor | None]]:
    """Return the loss, and the gradients by x, W and b that are needed, from one walk over whole rows."""
    walk = HeadWalk(tensors[:6], call, plan, vector_of(tensors[6]), windows=False, z_loss=call.z_loss)
    found = gradient_tensors(tensors, plan, needs)
    losses, empty_mean = loss_and_gradients(
        walk, walk.parts, call.reduction == "mean", gradient_arrays(found), changed_label
    )
    return _rows.loss_tensor(np.nan if empty_mean else _rows.total_of(losses), call.dtype), found


def changed_label(row: int) -> IndexError:
    """Return the error for a label that was valid when the call began."""
    return IndexError(f"target changed while it was read: row {row} or a later one holds an invalid label")
