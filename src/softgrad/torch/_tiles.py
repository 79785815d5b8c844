"""The linear head in PyTorch's operations, a tile of rows at a time, and again for its gradient.

What a tile makes on its way (logits, probabilities) is freed before the next one begins: any device, no N×V tensor.  On
the CPU each tile is computed by one thread of softgrad's pool: its small operations would otherwise wait at OpenMP
barriers, on a busy machine for a hundred times as long as they compute.
"""

from __future__ import annotations

from threading import Lock
from typing import Any

import torch
from torch import Tensor

from softgrad._core.linear_tiles import DEFAULT_MEMORY
from softgrad._core.threads import run_blocks
from softgrad.torch import _formulas
from softgrad.torch._call import PLAIN, Call, transformed
from softgrad.torch._formulas import RowMask, RowValues, has_tangent
from softgrad.torch._products import limit_worker, one_torch_thread
from softgrad.torch._rows import batched
from softgrad.torch._tensors import threads_for

COPIES = 20  # tensors of a tile's logits that live at a time in forward and backward together
TOGETHER = 4  # tiles that may live at a time, whatever the number of threads


def row_values(
    tensors: tuple[Any, ...], call: Call, mask: RowMask, max_memory: int | None = None, by_products: bool = True
) -> RowValues:
    """Return row values of ``x Wᵀ + b``; tensors are x (N, D), W, b, target, values and class weight."""
    x, linear_weight, bias, target, values, weight = tensors
    options = call.formula_options
    names = tuple(name for name, value in options._asdict().items() if isinstance(value, Tensor))

    def rows(
        x: Tensor, target: Any, values: Any, active: Any, weightless: Any, w: Tensor, b: Any, c: Any, *n: Tensor
    ) -> Any:
        numbers: dict[str, Any] = dict(zip(names, n, strict=True))
        given = options._replace(**numbers)
        logits = torch.nn.functional.linear(x, w, b)
        return _formulas.row_values(logits, target, values, c, given, -1, active, weightless, by_products=by_products)

    split = (x, target, values, *mask)
    whole = (linear_weight, bias, weight, *(getattr(options, name) for name in names))
    if transformed() or torch.compiler.is_compiling() or any(has_tangent(t) for t in (*split, *whole)):
        return RowValues(*rows(*split, *whole))  # torch.func, forward mode and graphs see the function itself
    threads = threads_for(call.n_threads, x.shape[0] * linear_weight.shape[0])
    plain = all(t is None or type(t) in PLAIN for t in (*split, *whole))
    watched = torch._C._len_torch_dispatch_stack() > 0  # modes are the caller's alone
    threads = min(threads, TOGETHER) if x.device.type == "cpu" and plain and not watched else 0
    budget = (DEFAULT_MEMORY if max_memory is None else max_memory) // (TOGETHER if threads else 1)
    step = max(1, min(len(x), budget // (4 * COPIES * max(1, len(linear_weight)))))
    edges = tuple((lo, min(lo + step, len(x))) for lo in range(0, len(x), step)) or ((0, 0),)
    return RowValues(*Tiled.apply(rows, edges, threads, len(split), *split, *whole))


class Tiled(torch.autograd.Function):
    """A function of rows, applied to tiles of rows.

    Inputs are the function, the edges of the tiles, the number of threads (0: PyTorch's own, in the
    caller), how many of the tensors have rows, and the tensors.  The results have one entry a row.
    """

    @staticmethod
    def forward(ctx: Any, function: Any, edges: Any, threads: int, split: int, *tensors: Any) -> tuple[Tensor, ...]:
        ctx.function, ctx.edges, ctx.threads, ctx.split = function, edges, threads, split
        ctx.save_for_backward(*tensors)
        ctx.set_materialize_grads(False)
        results: list[Tensor] = []
        lock = Lock()

        def rows(i: int) -> None:  # what a tile makes is freed here: small tensors that outlive it would pin its memory
            part = function(*tile_of(tensors, split, edges[i]))
            with lock:
                if not results:
                    results.extend(p.new_empty((edges[-1][1], *p.shape[1:])) for p in part)
            for result, p in zip(results, part, strict=True):
                result[slice(*edges[i])] = p

        over_tiles(rows, len(edges), threads)
        ctx.mark_non_differentiable(*(r for r in results if not r.is_floating_point()))
        return tuple(results)

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor | None) -> tuple[Any, ...]:
        tensors, needs, split = ctx.saved_tensors, ctx.needs_input_grad[4:], ctx.split
        wanted = [i for i, need in enumerate(needs) if need]
        graph = torch.is_grad_enabled()

        def grads(k: int) -> Any:
            edge = slice(*ctx.edges[k])
            tile = list(tile_of(tensors, split, ctx.edges[k]))
            with torch.enable_grad():
                if not graph:
                    for i in wanted:
                        tile[i] = tile[i].detach().requires_grad_()
                outputs = ctx.function(*tile)
            pairs = [
                (out, g[edge]) for out, g in zip(outputs, upstream, strict=True) if g is not None and out.requires_grad
            ]
            found = torch.autograd.grad(
                [out for out, _ in pairs], [tile[i] for i in wanted], [g for _, g in pairs],
                allow_unused=True, create_graph=graph,
            ) if pairs else [None] * len(wanted)  # fmt: skip
            return [
                torch.zeros_like(tile[i]) if g is None and i < split else g for i, g in zip(wanted, found, strict=True)
            ]

        apart = graph or batched(*upstream)
        sums: list[Any] = [None] * len(tensors)
        group = max(1, ctx.threads)
        for first in range(0, len(ctx.edges), group):  # few parts live at a time, and they are added up in their order
            count = min(group, len(ctx.edges) - first)
            found = over_tiles(lambda k: grads(first + k), count, 0 if apart else ctx.threads)  # noqa: B023
            for k, part in enumerate(found):
                for i, grad in zip(wanted, part, strict=True):
                    if i >= split:
                        sums[i] = added(sums[i], grad, graph)
                    elif apart:
                        sums[i] = [*(sums[i] or ()), grad]
                    else:
                        sums[i] = torch.zeros_like(tensors[i]) if sums[i] is None else sums[i]
                        sums[i][slice(*ctx.edges[first + k])] = grad
        for i in wanted:
            if i < split and apart:
                sums[i] = torch.cat(sums[i])
            elif sums[i] is not None:
                sums[i] = sums[i].to(tensors[i].dtype)
        return (None, None, None, None, *sums)


def over_tiles(work: Any, count: int, threads: int) -> list[Any]:
    """Return ``[work(0), …]``, each computed by one thread; without threads in the caller, by PyTorch's own threads."""
    if threads == 0:
        return [work(i) for i in range(count)]
    found: list[Any] = [None] * count
    grad_mode = torch.is_grad_enabled()

    def one(i: int) -> None:
        limit_worker()
        with torch.set_grad_enabled(grad_mode):
            found[i] = work(i)

    with one_torch_thread():
        run_blocks(one, count, threads)
    return found


def added(total: Tensor | None, part: Tensor | None, graph: bool) -> Tensor | None:
    """Add the parts of a sum over tiles, half precision in float32."""
    if part is None:
        return total
    wide = part.float() if part.dtype in (torch.float16, torch.bfloat16) else part
    if total is None:
        return wide
    return total + wide if graph else total.add_(wide)


def tile_of(tensors: tuple[Any, ...], split: int, edge: tuple[int, int]) -> tuple[Any, ...]:
    """Return the tensors with the rows of one tile."""
    return tuple(t[slice(*edge)] if i < split and t is not None else t for i, t in enumerate(tensors))
