"""The loss of a slice of the classes in PyTorch's own operations: any device, any order of derivative.

The formulas are those of `_composite`, with the sums over the classes summed over the ranks as well.  What a rank has
of its own (logits, its slices of weights and soft targets) meets what all have alike (row weights, temperatures, values
of sparse targets) through `Vary`, so that each gradient is whole on every rank.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from softgrad.torch import _composite
from softgrad.torch._call import Call
from softgrad.torch._parallel_group import Place, Sum, Vary, maximum

INFINITY = float("inf")


def cross_entropy(
    tensors: Sequence[Any], call: Call, place: Place, row_groups: tuple[Any, ...], scalars: dict[str, Tensor]
) -> Tensor:
    """The loss, the same on all ranks; differentiable by whatever is a tensor.

    ``row_groups`` are those over which the rows of the batch are spread.
    """
    logits, target, values, weight, sample_weight = tensors
    options, here = call.options, (place.group,)
    o = logits.movedim(call.axis, -1).to(_composite.compute_dtype(logits.dtype))
    wide = torch.float64 if o.device.type in ("cpu", "cuda") else o.dtype
    labelled = values is None and not target.is_floating_point()
    kept = torch.ones(o.shape[:-1], dtype=torch.bool, device=o.device)
    if labelled and options.ignore_index is not None:
        kept = target != options.ignore_index
    a = torch.ones(o.shape[:-1], dtype=wide, device=o.device)
    derived = False
    if sample_weight is not None:
        a, derived = sample_weight.to(wide), _composite.derived(sample_weight)
    a = torch.where(kept, a, 0)
    active = kept & ((a != 0) | derived)
    own = {name: Vary.apply(number, here) for name, number in scalars.items()}

    with torch.no_grad():
        peak = _peak(_composite.transform(torch.where(active[..., None], o, 0), options, own)[0])
        peak = maximum(peak, place.group)
    # A row of weight 0 counts for nothing, but its loss is what the weight's own derivative is about, if it has one.
    active = active & ((a != 0) | torch.isfinite(peak))
    peak = torch.where(active, peak, 0)
    u = _composite.transform(torch.where(active[..., None], o, 0), options, own)[0]
    d = u - peak[..., None]
    y = torch.where(active[..., None], _targets(o, target, values, call.axis, place), 0)
    w: Any = 1.0 if weight is None else weight.to(o.dtype)
    sums = [torch.exp(d).sum(-1), *_mass_and_dot(w * y, d)]
    if options.label_smoothing:
        reach = (u.detach() != -INFINITY).to(o.dtype) if options.smooth_finite_only else torch.ones_like(u.detach())
        sums += [*_mass_and_dot(w * reach, d), reach.sum(-1)]
    s, mass, dot, *smooth = Sum.apply(torch.stack([part.to(wide) for part in sums]), here).unbind(0)

    own_mass, epsilon = mass, options.label_smoothing
    if epsilon:
        smooth_mass, smooth_dot, reached = smooth
        mass = (1 - epsilon) * mass + epsilon * smooth_mass / reached
        dot = ((1 - epsilon) * dot if epsilon != 1 else 0) + epsilon * smooth_dot / reached
    log_s = torch.log(s)
    return _reduced(mass * log_s - dot, peak.to(wide) + log_s, own_mass, a, active, labelled and weight is not None,
                    call, row_groups)  # fmt: skip


def _reduced(
    losses: Tensor, lse: Tensor, mass: Tensor, a: Tensor, active: Tensor, weighted: bool, call: Call,
    row_groups: tuple[Any, ...],
) -> Tensor:  # fmt: skip
    """From the rows' losses to the loss."""
    options = call.options
    ce, z, void = a, a, None
    if options.reduction == "mean":
        by = torch.where(active, a * mass, 0) if weighted else a
        totals = Sum.apply(torch.stack([by.sum(), a.sum(), (a != 0).sum().to(a.dtype)]), row_groups)
        totals = Vary.apply(totals, row_groups)
        void = (totals[0] == 0) | (totals[2] == 0)
        ce = torch.where(void, 0, a / torch.where(void, 1, totals[0]))
        z = torch.where(void, 0, a / torch.where(void, 1, totals[1]))
    dropped = ~active | ((ce == 0) & ~torch.isfinite(losses))
    total = torch.where(dropped, 0, ce * torch.where(dropped, 0, losses))
    if options.z_loss:
        total = total + torch.where(dropped, 0, options.z_loss * z * torch.where(dropped, 0, lse) ** 2)
    if options.reduction == "none":
        return total.to(call.dtype)
    total = Sum.apply(total.sum(), row_groups)
    return (total if void is None else torch.where(void, float("nan"), total)).to(call.dtype)


def _peak(u: Tensor) -> Tensor:
    return u.amax(-1) if u.shape[-1] else u.new_full(u.shape[:-1], -INFINITY)


def _mass_and_dot(shares: Tensor, d: Tensor) -> tuple[Tensor, Tensor]:
    """``Σ w`` and ``Σ w d`` with 0·∞ = 0, in derivatives too."""
    return shares.sum(-1), (shares * torch.where((shares == 0) & (d == -INFINITY), 0, d)).sum(-1)


def _targets(o: Tensor, target: Tensor, values: Tensor | None, axis: int, place: Place) -> Tensor:
    """Return this slice of the targets, as (…, V of this rank)."""
    if values is None and target.is_floating_point():
        return target.movedim(axis, -1).to(o.dtype)
    zeros = torch.zeros_like(o.detach())
    if place.own == 0:
        return zeros
    index = target.long() - place.offset
    inside = (index >= 0) & (index < place.own) & (target >= 0)
    index = torch.where(inside, index, 0)
    if values is None:
        return zeros.scatter(-1, index[..., None], inside[..., None].to(o.dtype))
    shares = Vary.apply(values, (place.group,)).to(o.dtype)
    return zeros.scatter_add(-1, index, torch.where(inside, shares, 0))
