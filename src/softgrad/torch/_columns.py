"""The linear head in tiles of rows and columns, where not even a few rows of logits fit into the budget.

Columns merge by log-sum-exp: a first walk over the columns summarises each row, a second one makes the logits again and
carries ``S − y`` back.  Each tile is computed by one thread, in PyTorch's operations; sizes depend on shapes and budget
alone, and what tiles give is added up in their order, so the bits do not depend on the number of threads.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from softgrad._core.call import Outcome
from softgrad._core.linear_tiles import DEFAULT_MEMORY
from softgrad._core.threads import run_blocks
from softgrad.torch import _composite
from softgrad.torch._batch import threads_for
from softgrad.torch._products import TorchProducts, limit_worker

LEAST_ROWS = 2  # of logits in the budget: the kernels' walk, which reads the whole weight for each, is faster with more
MOST_ROWS = 256
TOGETHER = 8  # tiles at a time, whatever the number of threads: their parts are kept until they are added up
COPIES = 12  # tensors of a tile that live at a time
INFINITY = float("inf")


class Summary(NamedTuple):
    """What some columns say about a tile of rows, at distances from ``ref``."""

    ref: Tensor  # max u, or 0 where all columns are masked
    masked: Tensor  # whether they are
    s: Tensor  # Σ exp(u − ref)
    mass: Tensor  # Σ w y
    dot: Tensor  # Σ w y (u − ref)
    smooth_mass: Tensor  # Σ w over what smoothing reaches
    smooth_dot: Tensor
    reached: Tensor  # how many those are

    def merge(self, other: Summary) -> Summary:
        """Of both sets of columns."""
        ref = torch.where(
            self.masked, other.ref, torch.where(other.masked, self.ref, torch.maximum(self.ref, other.ref))
        )
        parts = []
        for one in (self, other):
            shift = torch.where(one.masked, 0, one.ref - ref)
            s = torch.where(one.masked, 0, one.s * torch.exp(shift))
            dots = [d + torch.where(m == 0, 0, m * (one.ref - ref)) for m, d in one.pairs()]
            parts.append((s, one.mass, dots[0], one.smooth_mass, dots[1], one.reached))
        added = [a + b for a, b in zip(*parts, strict=True)]
        return Summary(ref, self.masked & other.masked, *added)

    def pairs(self) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
        """Masses with their dots."""
        return (self.mass, self.dot), (self.smooth_mass, self.smooth_dot)


class _Tile:
    """Rows [lo, hi) and columns [left, right) of logits that exist for a moment."""

    def __init__(self, walk: _Walk, rows: slice, columns: slice) -> None:
        limit_worker()
        x, weight, bias, target, values, class_weight, _ = walk.tensors
        self.x = x[rows].to(walk.wide)
        self.w = weight[columns].to(walk.wide)
        o = self.x @ self.w.T
        if bias is not None:
            o += bias[columns].to(walk.wide)
        o = torch.where(walk.active[rows, None], o, 0)
        self.u, self.slope, _ = _composite.transform(o, walk.options, {})
        self.weights: Any = 1.0 if class_weight is None else class_weight[columns].to(walk.wide)
        y = torch.zeros_like(o)
        if values is not None:
            index = target[rows].long() - columns.start
            inside = (index >= 0) & (index < o.shape[1]) & (target[rows] >= 0)
            y.scatter_add_(1, torch.where(inside, index, 0), torch.where(inside, values[rows].to(walk.wide), 0))
        elif target.is_floating_point():
            y = target[rows, columns].to(walk.wide)
        else:
            index = target[rows].long() - columns.start
            inside = (index >= 0) & (index < o.shape[1])
            y.scatter_(1, torch.where(inside, index, 0)[:, None], inside[:, None].to(walk.wide))
        self.y = torch.where(walk.active[rows, None], y, 0)
        self.reach = torch.ones_like(self.u)
        if walk.options.smooth_finite_only:
            self.reach = (self.u != -INFINITY).to(walk.wide)

    def summary(self) -> Summary:
        """What these columns say."""
        peak = self.u.amax(1)
        masked = peak == -INFINITY
        ref = torch.where(masked, 0, peak)
        d = self.u - ref[:, None]
        sums: list[Tensor] = []
        for shares in (self.weights * self.y, self.weights * self.reach):
            sums += [shares.sum(1), (shares * torch.where((shares == 0) & (d == -INFINITY), 0, d)).sum(1)]
        mass, dot, smooth_mass, smooth_dot = sums
        return Summary(ref, masked, torch.exp(d).sum(1), mass, dot, smooth_mass, smooth_dot, self.reach.sum(1))

    def gradient(self, walk: _Walk, rows: slice, total: Summary) -> Tensor:
        """``∂L/∂o`` of these columns."""
        epsilon, ce = walk.options.label_smoothing, walk.ce[rows]
        log_s = torch.log(total.s)
        mass = ce * walk.mass_of(total)
        if walk.z is not None:
            mass = mass + 2 * walk.z[rows] * (total.ref + log_s)
        s = torch.exp(self.u - total.ref[:, None] - log_s[:, None])
        shares = (1 - epsilon) * self.y
        if epsilon:
            shares = shares + epsilon * self.reach / total.reached[:, None]
        g = self.slope * (mass[:, None] * s - ce[:, None] * (self.weights * shares))
        g = torch.where(total.masked[:, None], float("nan"), g)
        return torch.where((walk.active & (walk.ce != 0))[rows, None], g, 0)


class _Walk:
    """One call: factors of the rows, sizes of the tiles, and the two walks."""

    def __init__(self, plan: Any, tensors: tuple[Any, ...], upstream: Tensor | None) -> None:
        self.tensors, self.options = tensors, plan.call.options
        x, weight, _, target, values, class_weight, sample_weight = tensors
        self.wide = _composite.compute_dtype(x.dtype)
        n, classes = len(x), len(weight)
        _composite.check_labels(target, values, classes, self.options)
        self.n_threads = threads_for(plan.call.n_threads, n * classes)
        self._factors(target, values, class_weight, sample_weight, upstream)
        budget = DEFAULT_MEMORY if plan.max_memory is None else plan.max_memory
        elements = max(1, budget // (COPIES * TOGETHER * (8 if self.wide == torch.float64 else 4)))
        step = max(1, min(n, MOST_ROWS, max(16, math.isqrt(elements)), elements))
        self.rows = [slice(lo, min(lo + step, n)) for lo in range(0, n, step)]
        across = max(1, elements // step)
        self.columns = [slice(lo, min(lo + across, classes)) for lo in range(0, classes, across)]

    def _factors(self, target: Tensor, values: Any, class_weight: Any, sample_weight: Any, upstream: Any) -> None:
        options = self.options
        n = len(target)
        labelled = values is None and not target.is_floating_point()
        kept = torch.ones(n, dtype=torch.bool)
        if labelled and options.ignore_index is not None:
            kept = target != options.ignore_index
        a = kept.to(torch.float64)
        if sample_weight is not None:
            a = torch.where(kept, sample_weight.to(torch.float64), 0)
        self.active = a != 0
        ce, z, self.void = a, a, False
        if options.reduction == "mean":
            own = a
            if labelled and class_weight is not None:
                own = a * class_weight.to(torch.float64)[torch.where(kept, target, 0).long()]
            by, count = float(own.sum()), float(a.sum())
            self.void = by == 0 or not bool(self.active.any())
            ce, z = (a * 0, a * 0) if self.void else (a / by, a / count if count else a * float("nan"))
        elif options.reduction == "none" and upstream is not None:
            ce = z = torch.where(self.active, a * upstream.reshape(-1).to(torch.float64), 0)
        self.ce = ce.to(self.wide)
        self.z = (options.z_loss * z).to(self.wide) if options.z_loss else None

    def mass_of(self, total: Summary) -> Tensor:
        """``t = Σ w y'``."""
        epsilon = self.options.label_smoothing
        return (1 - epsilon) * total.mass + (epsilon * total.smooth_mass / total.reached if epsilon else 0)

    def together(self, work: Any, count: int) -> list[Any]:
        """Results of ``work(i)``, in order."""
        found: list[Any] = [None] * count

        def one(i: int) -> None:
            with torch.no_grad():
                found[i] = work(i)

        run_blocks(one, count, self.n_threads)
        return found

    def summarise(self, rows: slice) -> Summary:
        """Every column, merged from left to right."""
        total: Summary | None = None
        for first in range(0, len(self.columns), TOGETHER):
            group = self.columns[first : first + TOGETHER]
            for part in self.together(lambda i: _Tile(self, rows, group[i]).summary(), len(group)):  # noqa: B023
                total = part if total is None else total.merge(part)
        if total is None:
            raise AssertionError("a head without classes")
        return total

    def losses(self, rows: slice, total: Summary) -> Tensor:
        """Of a tile of rows."""
        epsilon, log_s = self.options.label_smoothing, torch.log(total.s)
        dot = (1 - epsilon) * total.dot if epsilon != 1 else torch.zeros_like(total.dot)
        if epsilon:
            dot = dot + epsilon * total.smooth_dot / total.reached
        losses = self.ce[rows] * (self.mass_of(total) * log_s - dot)
        if self.z is not None:
            losses = losses + self.z[rows] * (total.ref + log_s) ** 2
        losses = torch.where(total.masked, float("nan"), losses)
        return torch.where(self.active[rows] & (self.ce[rows] != 0), losses, 0).to(torch.float64)

    def carry_back(self, rows: slice, total: Summary, totals: list[Any]) -> None:
        """Add the gradients of a tile of rows to what is wanted."""
        by_x, by_weight, by_bias = totals
        x = self.tensors[0]
        partial: Any = 0

        def work(i: int) -> Any:
            columns = group[i]
            tile = _Tile(self, rows, columns)
            g = tile.gradient(self, rows, total)
            if by_weight is not None:
                by_weight[columns] += (g.T @ tile.x).to(by_weight.dtype)
            if by_bias is not None:
                by_bias[columns] += g.sum(0).to(by_bias.dtype)
            return g @ tile.w if by_x is not None else None

        for first in range(0, len(self.columns), TOGETHER):
            group = self.columns[first : first + TOGETHER]
            for part in self.together(work, len(group)):
                partial = part if isinstance(partial, int) else partial + part if part is not None else None
        if by_x is not None:
            by_x[rows] = partial.to(x.dtype)


def needed(max_memory: int | None, rows: int, classes: int) -> bool:
    """Whether a walk over whole rows would have fewer than two at a time."""
    return (DEFAULT_MEMORY if max_memory is None else max_memory) // (4 * classes) < min(max(1, rows), LEAST_ROWS)


def walk(plan: Any, tensors: tuple[Any, ...], totals: list[Any], upstream: Tensor | None) -> Outcome:
    """Row losses, and the gradients that are wanted into ``totals``."""
    x = tensors[0]
    losses = np.zeros(len(x))
    for total in totals:
        if total is not None:
            total.zero_()
    run = _Walk(plan, tensors, upstream)
    if run.void:
        return Outcome(losses, True)
    with torch.no_grad(), TorchProducts(x.dtype).single_threaded():
        for rows in run.rows:
            summary = run.summarise(rows)
            losses[rows] = run.losses(rows, summary).numpy()
            if any(total is not None for total in totals):
                run.carry_back(rows, summary, totals)
    return Outcome(losses, False)
