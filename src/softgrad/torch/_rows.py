"""The row primitive on logits through the CPU kernels, as autograd sees it.

`NativeRows` maps logits to row values and keeps one record of statistics a row; its backward pass is
the gradient kernel with one upstream number per row and output.  `LossFunction` is a schedule of the
same kernels for rows of one tile: the gradient is made with the loss, from the same exponentials.
Derivatives of higher order, and by soft targets and class weights, differentiate
`_formulas.row_values`.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from softgrad._core import backend
from softgrad._core.arrays import Array, Output
from softgrad._core.schedule import run_gradient, run_rows, run_statistics, streams
from softgrad.torch import _formulas, _memory
from softgrad.torch._call import Call, outer_shape
from softgrad.torch._formulas import WHOLE, Columns, RowMask, RowOptions, RowValues
from softgrad.torch._tensors import (
    HALF,
    STORAGE,
    array_of,
    class_vector_of,
    has_memory,
    rows_of,
    targets_of,
    tensor_of,
    threads_for,
    vector_of,
)

SMALL_BYTES = 1 << 19  # logits of a batch that one call of the extension computes
INTEGERS = (torch.int64, torch.int32, torch.int16, torch.int8)
NUMBERS = ("logit_scale", "softcap", "temperature")  # whose derivatives the gradient kernel sums


def native_options(options: RowOptions, z_loss: float = 0.0) -> Any:
    """Return the options as the kernels' record."""
    return backend.KernelOptions(
        label_smoothing=options.label_smoothing, smooth_finite_only=options.smooth_finite_only,
        logit_scale=options.logit_scale, softcap=options.softcap or 0.0, temperature=options.temperature,
        z_loss=z_loss, ignore_index=options.ignore_index,
    )  # fmt: skip


class Batch:
    """Logits on the CPU with their targets, and the passes of the kernels over them.

    Attributes
    ----------
    rows : LogitRows
        The logits as rows.
    n, cols, n_threads : int
    head : Head
        The kernels' view of the batch; its labels have been checked.
    settled : Settled
        Factors of ``mean`` and whether its total weight is 0.
    """

    def __init__(
        self, tensors: tuple[Any, ...], options: RowOptions, axis: int, n_threads: int | None,
        row_weight: Array | None = None, *, z_loss: float = 0.0, mean: bool = False, columns: Columns = WHOLE,
    ) -> None:  # fmt: skip
        logits, target, values, weight = tensors
        self.dtype, self.options, self.columns = logits.dtype, options, columns
        self.unit_mass = _formulas.is_labels(target, values) and weight is None
        self.rows = rows_of(logits, axis)
        self.n, self.cols = self.rows.array.shape
        self.n_threads = threads_for(n_threads, self.rows.array.size)
        self.head = backend.kernels().Head(
            self.rows.array, self.rows.storage,
            targets_of(target, values, axis).record(columns.first, columns.classes), native_options(options, z_loss),
            class_vector_of(weight, self.rows.storage), row_weight,
        )  # fmt: skip
        self.settled = self.head.settle(mean)
        if self.settled.bad_row >= 0:
            if columns.whole:
                _formulas.check_labels(target, values, self.cols, options.ignore_index)
            raise IndexError(f"target changed while it was read: row {self.settled.bad_row} holds an invalid label")

    def outputs(self, **buffers: Any) -> Any:
        """Return the record of buffers that the kernels write into."""
        return backend.kernels().Outputs(self.n, self.cols, self.rows.storage, **buffers)

    def statistics(self, buffers: dict[str, Array], by_products: bool) -> Array:
        """Fill row values from one read of the logits; return the records that a gradient can be made from."""
        outputs = self.outputs(**buffers)
        if self.columns.whole:
            return run_statistics(self.head, outputs, self.n, self.cols, self.n_threads, by_products=by_products)
        records = run_statistics(self.head, self.outputs(), self.n, self.cols, self.n_threads)
        self.columns.merge(self.head, records, self.rows.storage, self.options, self.unit_mass)
        self.head.finish(outputs, records, 0, self.n)
        return records

    def gradient(self, records: Array | None, out: Array | None = None, **buffers: Array) -> Tensor:
        """Return the gradient by the logits, from records or from the logits alone."""
        to = Output(self.rows, out, allocate=_memory.empty)
        if self.settled.empty_mean:
            to.rows[...] = 0
        else:
            over = to.rows.ctypes.data == self.rows.array.ctypes.data
            outputs = self.outputs(grad=to.rows, stream=streams(to.rows) and not over, **buffers)
            self._run(outputs, records)
        return tensor_of(to.deliver(), self.dtype)

    def sums(self, records: Array | None, **buffers: Array) -> None:
        """Fill sums over the gradient, without writing it."""
        self._run(self.outputs(**buffers), records)

    def _run(self, outputs: Any, records: Array | None) -> None:
        if records is None:
            run_rows(lambda lo, hi: self.head.rows(outputs, lo, hi), self.n, self.cols, self.n_threads)
        else:
            run_gradient(self.head, outputs, records, self.n, self.cols, self.n_threads)


def batched(*tensors: Tensor | None) -> bool:
    """Return whether ``is_grads_batched=True`` stacks several upstream gradients: an older kind of vmap."""
    for tensor in tensors:  # noqa: SIM110 - a generator costs as much as a small batch
        if tensor is not None and torch._C._functorch.is_legacy_batchedtensor(tensor):
            return True
    return False


def differentiable(outputs: RowValues, upstream: tuple[Any, ...], inputs: list[Any], needs: list[bool]) -> list[Any]:
    """Return derivatives of row values by the inputs that need one, themselves differentiable in grad mode."""
    wanted = [t for t, need in zip(inputs, needs, strict=True) if need]
    pairs = [(o, g.to(o.dtype)) for o, g in zip(outputs, upstream, strict=False) if g is not None and o.requires_grad]
    found: Any = [None] * len(wanted)
    if pairs and wanted:
        found = torch.autograd.grad(
            [o for o, _ in pairs], wanted, [g for _, g in pairs], allow_unused=True,
            create_graph=torch.is_grad_enabled(),
        )  # fmt: skip
    results = iter(found)
    return [next(results) if need else None for need in needs]


def again(tensors: list[Any], needs: list[bool]) -> list[Any]:
    """Return the tensors to differentiate by: themselves in grad mode, else leaves of a graph of their own."""
    if torch.is_grad_enabled():
        return tensors
    return [t.detach().requires_grad_() if need else t for t, need in zip(tensors, needs, strict=True)]


class NativeRows(torch.autograd.Function):
    """Row values of logits.

    Inputs are logits, target, values, class weight, the followed ones of logit scale, softcap and temperature (else
    None), the `Call`, the mask of active rows or None, whether entropy, arg-max and rank are wanted, and `Columns`.
    """

    @staticmethod
    def forward(ctx: Any, *inputs: Any) -> tuple[Tensor, ...]:
        *tensors, call, active, by_products, columns = inputs
        ctx.call, ctx.row_weight, ctx.columns = call, vector_of(active), columns
        batch = row_batch(ctx, tensors)
        found = buffers_for(batch.n, by_products)
        ctx.records = batch.statistics(found, by_products)
        ctx.save_for_backward(*tensors)
        results = row_tensors(found, batch.rows.outer)
        ctx.mark_non_differentiable(*results[3:])
        ctx.set_materialize_grads(False)
        return results

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor | None) -> tuple[Any, ...]:
        call, tensors, needs = ctx.call, list(ctx.saved_tensors), list(ctx.needs_input_grad[:7])
        upstream = upstream[:3]
        nothing: list[Any] = [None] * 7
        if all(g is None for g in upstream):
            return (*nothing, None, None, None, None)
        graph = torch.is_grad_enabled() or batched(*upstream)
        if graph and call.inplace:
            raise RuntimeError(
                "inplace=True writes the gradient over the logits, which create_graph=True reads again; "
                "use inplace=False"
            )
        by_formulas = [need and (graph or i in (1, 2, 3)) for i, need in enumerate(needs)]
        grads = nothing
        if any(by_formulas):  # before the logits may be written over
            leaves = again(tensors, by_formulas)
            active = None if ctx.row_weight is None else torch.from_numpy(ctx.row_weight != 0)
            outer = outer_shape(tensors[0].shape, call.axis)
            with torch.enable_grad():
                active = None if active is None else active.reshape(outer)
                rows = formula_rows(leaves, call, active, columns=ctx.columns)
                grads = differentiable(rows, upstream, leaves, by_formulas)
        if not graph and (needs[0] or any(needs[4:])):
            by_logits, *by_numbers = native_gradient(ctx, tensors, upstream)
            grads = [by_logits, *grads[1:4], *by_numbers]
        return (*grads, None, None, None, None)


def row_batch(ctx: Any, tensors: list[Any]) -> Batch:
    """Return the batch of a `NativeRows`."""
    call = ctx.call
    return Batch(tuple(tensors[:4]), call.options, call.axis, call.n_threads, ctx.row_weight, columns=ctx.columns)


def formula_rows(
    tensors: list[Any], call: Call, active: Tensor | None, axis: int | None = None, columns: Columns = WHOLE
) -> RowValues:
    """Return row values in PyTorch's operations; the last three tensors are the numbers that are followed, or None."""
    numbers: dict[str, Any] = {name: n for name, n in zip(NUMBERS, tensors[4:], strict=True) if n is not None}
    logits, target, values, weight = tensors[:4]
    options, axis = call.options._replace(**numbers), call.axis if axis is None else axis
    return _formulas.row_values(logits, target, values, weight, options, axis, active, columns=columns)


def native_gradient(ctx: Any, tensors: list[Any], upstream: tuple[Any, ...]) -> list[Any]:
    """Return the derivatives by logits, logit scale, softcap and temperature through the gradient kernel."""
    call, needs, logits = ctx.call, ctx.needs_input_grad, tensors[0]
    batch = row_batch(ctx, tensors)
    batch.head.set_upstream(*(vector_of(g) for g in upstream))
    numbers = needs[4:7]
    sums = {name: np.empty(batch.n) for name in ("along", "slope")} if any(numbers) else {}
    by_logits = None
    if not needs[0]:
        batch.sums(ctx.records, **sums)
    elif call.inplace:
        batch.gradient(ctx.records, array_of(logits).view(batch.rows.dtype), **sums)
        torch.autograd.graph.increment_version(logits)  # a later reader of the logits gets PyTorch's own error
        by_logits = logits.detach()
    else:
        by_logits = batch.gradient(ctx.records, **sums)
    return [by_logits, *number_gradients(call.options, sums, tensors[4:7], numbers)]


def number_gradients(options: RowOptions, sums: dict[str, Array], tensors: list[Any], needs: list[bool]) -> list[Any]:
    """Return derivatives by logit scale, softcap and temperature from ``Σ G u`` and ``Σ G ∂u/∂s`` of each row."""
    if not any(needs):
        return [None] * 3
    along, slope = float(sums["along"].sum()), float(sums["slope"].sum())
    s, c, tau = options.logit_scale, options.softcap, options.temperature
    totals = (slope, (along - s * slope) / c if c else 0.0, -along / tau)
    return [
        torch.full_like(tensor, total) if need else None
        for total, tensor, need in zip(totals, tensors, needs, strict=True)
    ]


def buffers_for(n: int, by_products: bool) -> dict[str, Array]:
    """Return buffers for row values."""
    found = {"loss": np.empty(n), "lse": np.empty(n)}
    if by_products:
        found |= {"entropy": np.empty(n), "argmax": np.empty(n, np.int64), "rank": np.empty(n, np.int64)}
    return found


def row_tensors(found: dict[str, Array], shape: Any) -> tuple[Tensor, ...]:
    """Return the buffers as tensors in the order of `RowValues`."""
    names = ("loss", "lse", "entropy", "argmax", "rank")
    absent = {"entropy": np.empty(0), "argmax": np.empty(0, np.int64), "rank": np.empty(0, np.int64)}
    return tuple(
        torch.from_numpy(found[n]).reshape(shape) if n in found else torch.from_numpy(absent[n]) for n in names
    )


class Total(torch.autograd.Function):
    """The sum of float64 losses on the CPU, whose bits do not depend on the number of threads."""

    @staticmethod
    def forward(ctx: Any, losses: Tensor) -> Tensor:
        if ctx is not None:
            ctx.shape = losses.shape
        return torch.from_numpy(np.asarray(total_of(losses.detach().numpy())))

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> Tensor:
        return upstream.expand(ctx.shape)


def native_total(losses: Tensor) -> Tensor:
    """Return the sum of row losses."""
    return Total.apply(losses) if losses.requires_grad else Total.forward(None, losses)


def total_of(losses: Array) -> Any:
    """Return the sum of row losses in float64."""
    with np.errstate(invalid="ignore", over="ignore"):  # infinities of both signs: NaN says so
        return losses.reshape(-1).sum()


def loss_tensor(total: Any, dtype: torch.dtype) -> Tensor:
    """Return a loss as a tensor on the CPU, rounded by PyTorch, which does not warn of an infinity."""
    return torch.from_numpy(np.array(total)).to(dtype)


# --- the gradient with the loss ---------------------------------------------------------------------------------------


def makes_gradient_with_loss(logits: Tensor, call: Call) -> bool:
    """Return whether `LossFunction` is the best schedule: rows of one tile, reduced, and nobody watching saved tensors.

    Hooks of saved tensors (checkpointing, offloading) would not see the gradient that it keeps.
    """
    return (
        call.reduction != "none"
        and logits.shape[call.axis] <= backend.kernels().tile
        and not call.inplace
        and torch._C._autograd._top_saved_tensors_default_hooks(True) is None
    )


class LossFunction(torch.autograd.Function):
    """The loss of logits whose rows are one tile; inputs are logits, target, values, weight, sample weight, `Call`.

    The first backward pass hands over the gradient that was made with the loss; another one, under ``retain_graph``,
    makes it again.
    """

    @staticmethod
    def forward(ctx: Any, *inputs: Any) -> Tensor:
        *tensors, call, graded = inputs
        ctx.call = call
        wanted = graded and ctx.needs_input_grad[0]
        ctx.alone = not any(ctx.needs_input_grad[1:3])  # no derivative by soft targets
        loss, ctx.unit = small_loss(tensors, call, wanted)
        if loss is None:
            batch = loss_batch(tensors, call)
            losses = np.empty(batch.n)
            if wanted:
                ctx.unit = batch.gradient(None, loss=losses)
            else:
                batch.sums(None, loss=losses)
            loss = loss_tensor(np.nan if batch.settled.empty_mean else total_of(losses), call.dtype)
        ctx.save_for_backward(*tensors)
        return loss

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Any, ...]:
        saved = ctx.saved_tensors  # raises where one of them was written to
        graph = torch.is_grad_enabled() or batched(upstream)
        if ctx.alone and ctx.unit is not None and not graph and float(upstream) == 1.0:
            unit, ctx.unit = ctx.unit, None
            return (unit, *(None,) * 6)
        tensors, call, needs = list(saved), ctx.call, list(ctx.needs_input_grad[:5])
        by_formulas = [need and (graph or i != 0) for i, need in enumerate(needs)]
        grads: list[Any] = [None] * 5
        if any(by_formulas):
            leaves = again(tensors, by_formulas)
            with torch.enable_grad():
                loss = formula_loss(leaves, call)
                grads = differentiable((loss,), (upstream,), leaves, by_formulas)  # type: ignore[arg-type]
        if needs[0] and not graph:
            unit, ctx.unit = ctx.unit, None
            grads[0] = scaled_gradient(tensors, call, float(upstream), unit)
        return (*grads, None, None)


def loss_batch(tensors: list[Any], call: Call) -> Batch:
    """Return the batch of a loss, with the factors of its mean."""
    return Batch(
        tuple(tensors[:4]), call.options, call.axis, call.n_threads, vector_of(tensors[4]), z_loss=call.z_loss,
        mean=call.reduction == "mean",
    )  # fmt: skip


def scaled_gradient(tensors: list[Any], call: Call, scale: float, unit: Tensor | None) -> Tensor:
    """Return the gradient for an upstream number; ``unit`` is that for an upstream of 1, or None to make it again."""
    # Half precision would be rounded twice; infinity and NaN may not reach rows that are ignored.
    exact = scale == 1.0 or (tensors[0].dtype not in HALF and np.isfinite(scale))
    if not exact:
        batch = loss_batch(tensors, call)
        batch.head.set_factors(batch.settled.ce_factor * scale, batch.settled.z_factor * scale)
        return batch.gradient(None)
    if unit is None:
        unit = loss_batch(tensors, call).gradient(None)
    return unit if scale == 1.0 else unit.mul_(scale)


def formula_loss(tensors: list[Any], call: Call, axis: int | None = None) -> Tensor:
    """Return the loss in PyTorch's operations."""
    logits, *others = tensors

    def rows(weight: Tensor | None, mask: RowMask) -> RowValues:
        target, values = others[:2]
        return _formulas.row_values(
            logits, target, values, weight, call.formula_options, call.axis if axis is None else axis, *mask,
            by_products=False,
        )  # fmt: skip

    return _formulas.loss_of_rows(rows, tuple(others), call)


def small_loss(tensors: list[Any], call: Call, wanted: bool) -> tuple[Tensor | None, Tensor | None]:
    """Return the loss, and its gradient if wanted, of a few contiguous rows with labels, or None for other batches.

    One call of the extension: records and threads cost several times the kernel on some thousand logits.
    """
    logits, target, values, weight, sample_weight = tensors
    if (
        values is not None or weight is not None or sample_weight is not None or target.dtype not in INTEGERS
        or logits.ndim != 2 or not 0 < logits.nbytes <= SMALL_BYTES or logits.is_neg()
        or not (logits.is_contiguous() and target.is_contiguous() and has_memory(logits) and has_memory(target))
    ):  # fmt: skip
        return None, None
    logits = logits.detach()
    gradient = torch.empty_like(logits) if wanted else None
    half = logits.dtype is torch.bfloat16
    arrays = [t if t is None else (t.view(torch.uint16) if half else t).numpy() for t in (logits, gradient)]
    bad, total = backend.kernels().small_batch(
        arrays[0], STORAGE[logits.dtype], target.numpy(), native_options(call.options, call.z_loss),
        call.reduction == "mean", arrays[1],
    )  # fmt: skip
    if bad >= 0:
        return None, None
    return loss_tensor(total, call.dtype), gradient
