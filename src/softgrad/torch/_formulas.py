"""The head in PyTorch's operations: any device, any order of derivative, every transform.

`row_values` is the row primitive: it maps rows of logits to a few numbers each.  `total_loss` makes a loss of those
numbers.  The CPU kernels (`_rows`, `_head`) compute the same row values, and share `total_loss`; derivatives that the
kernels lack differentiate `row_values`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import is_fake

from softgrad.torch._tensors import check_storage

INFINITY = math.inf


class RowValues(NamedTuple):
    """What the head computes of each row; floats are float64 on the CPU, where the kernels compute them.

    Attributes
    ----------
    ce : Tensor
        Cross-entropy ``t log s − Σ_j w_j y'_j (u_j − max u)``, without row weight; 0 in ignored rows.
    lse : Tensor
        ``max u + log s`` with ``s = Σ_j exp(u_j − max u)``; NaN in ignored rows.
    entropy : Tensor
        ``log s − Σ_j S_j (u_j − max u)``; NaN in ignored rows.
    argmax, rank : Tensor
        As in `PredictionStats`; −1 in ignored rows.
    """

    ce: Tensor
    lse: Tensor
    entropy: Tensor
    argmax: Tensor
    rank: Tensor


class Columns:
    """The part of the logits that this process holds: here all classes of all rows.

    `softgrad.torch._ranks` has the part of one rank among others.  A tensor is equal on the ranks that it is about, or
    each has its own: sums turn the latter into the former, and ``vary`` is the way back, whose gradient is a sum.

    Attributes
    ----------
    whole : bool
        Whether the logits hold every class.
    first, classes : int
        The first class that they hold, and how many all slices hold; 0 where the logits hold every class.
    widest : int
        The largest slice's classes, or 0.  Tiles of rows are as if every slice were of this size.
    sums_inputs : bool
        Whether the gradient by the inputs of a linear head is summed over the slices.
    """

    whole = True
    first = 0
    classes = 0
    widest = 0
    sums_inputs = False

    def maximum(self, tensor: Tensor) -> Tensor:
        """Return the largest over the slices of the classes."""
        return tensor

    def total(self, tensor: Tensor) -> Tensor:
        """Return the sum over the slices of the classes."""
        return tensor

    def vary(self, tensor: Tensor) -> Tensor:
        """Return a tensor that is equal on all slices, for use with this one."""
        return tensor

    def merge(self, head: Any, records: Any, storage: Any, options: RowOptions, unit_mass: bool) -> None:
        """Merge the kernels' records of all slices, in place; ``unit_mass``: each target has a mass of 1."""

    def adding(self) -> Any:
        """Return an object whose ``begin(tensor)`` starts a sum over the slices in place, and ``finish()`` ends all."""

    def total_of_rows(self, tensor: Tensor) -> Tensor:
        """Return the sum over the parts that hold other rows."""
        return tensor

    def vary_by_rows(self, tensor: Tensor) -> Tensor:
        """Return a tensor that is equal on the parts that hold other rows, for use with these rows."""
        return tensor


WHOLE = Columns()


class RowMask(NamedTuple):
    """Rows that count.

    Attributes
    ----------
    active : Tensor or None
        Rows whose weight is not 0; the others count as ignored.
    weightless : Tensor or None
        Rows of weight 0 that count if their logits have a softmax: the derivative by the weight is their loss.
    """

    active: Tensor | None = None
    weightless: Tensor | None = None


class RowOptions(NamedTuple):
    """Options of the row primitive; each number may be a tensor with a derivative."""

    ignore_index: int | None = None
    label_smoothing: Any = 0.0
    smooth_finite_only: bool = False
    logit_scale: Any = 1.0
    softcap: Any = None
    temperature: Any = 1.0


def compute_dtype(dtype: torch.dtype) -> torch.dtype:
    """Return float64 for float64 and float32 for every other type."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def total_dtype(device: torch.device, dtype: torch.dtype) -> torch.dtype:
    """Return the type of sums over rows: float64 where the device has it."""
    return torch.float64 if device.type in ("cpu", "cuda") else dtype


def is_labels(target: Tensor | None, values: Tensor | None) -> bool:
    """Return whether targets are labels rather than soft targets, dense or sparse."""
    return target is not None and values is None and not target.is_floating_point()


def whole_numbers(labels: Tensor) -> Tensor:
    """Return labels as int64, so that comparisons never wrap around; uint64 beyond int64 becomes its maximum."""
    if labels.dtype != torch.uint64:
        return labels.to(torch.int64)
    signed = labels.view(torch.int64)
    return torch.where(signed < 0, torch.iinfo(torch.int64).max, signed)


def transform(o: Tensor, options: RowOptions) -> Tensor:
    """``u = c·tanh(s·o / c) / τ``; a logit of −inf stays −inf."""
    s, c, tau = options.logit_scale, options.softcap, options.temperature
    if c is None and not isinstance(s, Tensor) and not isinstance(tau, Tensor) and s == 1 and tau == 1:
        return o
    infinite = torch.isinf(o)
    bounded = torch.where(infinite, 0, o)  # 0·∞ would reach a derivative by s, c or τ
    if c is None:
        factor = s / tau
        u, limit = bounded * factor, o * (factor.detach() if isinstance(factor, Tensor) else factor)
    else:
        u, limit = c * torch.tanh(s * bounded / c) / tau, o.detach() * _sign(s, o)  # tanh is flat there
    return torch.where(infinite, limit, u).to(o.dtype)


def _sign(s: Any, like: Tensor) -> Any:
    return torch.sign(s.detach()).to(like.dtype) if isinstance(s, Tensor) else math.copysign(1.0, s)


def row_values(
    logits: Tensor,
    target: Tensor | None,
    values: Tensor | None,
    weight: Tensor | None,
    options: RowOptions,
    axis: int = -1,
    active: Tensor | None = None,
    weightless: Tensor | None = None,
    columns: Columns = WHOLE,
    by_products: bool = True,
) -> RowValues:
    """Return the row values of logits with classes at ``axis``; without a target ``ce`` is 0.

    The two masks are those of `RowMask`.  Without ``by_products`` entropy, arg-max and rank are meaningless.
    """
    o = logits.movedim(axis, -1)
    o = o.to(compute_dtype(o.dtype))
    if weightless is not None:
        odd, open_ = ~(torch.isfinite(o) | (o == -INFINITY)).all(-1), (o > -INFINITY).any(-1)
        odd, open_ = columns.maximum(torch.stack([odd, open_]).to(o.dtype)).unbind(0)
        active = ~weightless | ((odd == 0) & (open_ > 0))
    wide = total_dtype(o.device, o.dtype)
    index = None if target is None or target.is_floating_point() else whole_numbers(target)
    labelled = is_labels(target, values)
    if labelled and options.ignore_index is not None and index is not None:
        kept = index != options.ignore_index
        active = kept if active is None else active & kept
    if active is not None:
        o = torch.where(active[..., None], o, 0)
    u = transform(o, options)
    peak = columns.maximum(_peak(u.detach()))
    d = u - peak[..., None]
    e = torch.exp(d)
    others, peaks = torch.where(d == 0, 0, e.detach()).sum(-1), (d == 0).sum(-1).to(o.dtype)
    moment = (e * torch.where(d == -INFINITY, 0, d)).sum(-1) if by_products else torch.zeros_like(others)
    sums = [e.sum(-1), moment, others, peaks]
    sums += _target_sums(d, target, values, index, weight, axis, columns)
    if _smooths(options):
        reach = (u.detach() != -INFINITY).to(o.dtype) if options.smooth_finite_only else torch.ones_like(d.detach())
        sums += [*_mass_and_dot(reach if weight is None else reach * weight.to(o.dtype), d), reach.sum(-1)]
    sums = list(columns.total(torch.stack([part.to(wide) for part in sums])).unbind(0))
    s, moment, others, peaks, mass, dot, *smooth = sums
    epsilon = options.label_smoothing
    if smooth:
        smooth_mass, smooth_dot, reached = smooth
        share = epsilon / reached
        keep = 1 - epsilon
        certain = not isinstance(epsilon, Tensor) and epsilon == 1
        mass = keep * mass + share * smooth_mass
        dot = share * smooth_dot + (0 if certain else keep * dot)
    log_s = torch.log(s)
    # log1p of the terms beside the peak keeps the digits of a sum near 1; derivatives follow log s.
    log_s = log_s + (torch.log1p(others + (peaks - 1)) - log_s).detach().nan_to_num(0.0, posinf=0.0, neginf=0.0)
    ce = mass * log_s - dot if target is not None else torch.zeros_like(log_s)
    lse = peak.to(wide) + log_s
    entropy = log_s - moment / s
    undefined = torch.isnan(log_s)
    argmax = rank = torch.full_like(undefined, -1, dtype=torch.int64)
    if by_products and columns.whole:
        order = o.detach() * _sign(options.logit_scale, o)  # a softcap may round different logits to one u
        argmax = torch.where(undefined, -1, order.argmax(-1))
        if labelled and index is not None:
            own = order.gather(-1, index.clamp(0, o.shape[-1] - 1)[..., None])
            rank = torch.where(undefined, -1, (order > own).sum(-1))
    if active is None:
        return RowValues(ce, lse, entropy, argmax, rank)
    nan = math.nan
    return RowValues(
        torch.where(active, ce, 0), torch.where(active, lse, nan), torch.where(active, entropy, nan),
        torch.where(active, argmax, -1), torch.where(active, rank, -1),
    )  # fmt: skip


def _smooths(options: RowOptions) -> bool:
    return isinstance(options.label_smoothing, Tensor) or options.label_smoothing != 0


def _peak(u: Tensor) -> Tensor:
    return u.amax(-1) if u.shape[-1] else u.new_full(u.shape[:-1], -INFINITY)


def _mass_and_dot(shares: Tensor, d: Tensor) -> list[Tensor]:
    """``Σ w`` and ``Σ w d`` with 0·∞ = 0, in derivatives too."""
    return [shares.sum(-1), (shares * torch.where((shares == 0) & (d == -INFINITY), 0, d)).sum(-1)]


def _target_sums(
    d: Tensor, target: Tensor | None, values: Tensor | None, index: Tensor | None, weight: Tensor | None, axis: int,
    columns: Columns,
) -> list[Tensor]:  # fmt: skip
    """``t = Σ_j w_j y_j`` and ``Σ_j w_j y_j d_j`` over these columns, before smoothing."""
    nothing = torch.zeros_like(d.detach()[..., 0] if d.shape[-1] else d.detach().sum(-1))
    if target is None:
        return [nothing, nothing]
    w = None if weight is None else weight.to(d.dtype)
    if index is None:
        y = target.movedim(axis, -1).to(d.dtype)
        return _mass_and_dot(y if w is None else y * w, d)
    if d.shape[-1] == 0:
        return [nothing, nothing]
    own = index - columns.first
    inside = (own >= 0) & (own < d.shape[-1]) & (index >= 0)
    own = torch.where(inside, own, 0)
    if values is None:
        own, inside = own[..., None], inside[..., None]
        shares = inside.to(d.dtype)
    else:
        shares = torch.where(inside, columns.vary(values).to(d.dtype), 0)
    if w is not None:
        shares = shares * w[own]
    return _mass_and_dot(shares, torch.where(inside, d.gather(-1, own), 0))


def loss_of_rows(
    rows_with: Callable[[Tensor | None, RowMask], RowValues],
    tensors: tuple[Any, ...],
    call: Any,
    total: Callable[[Tensor], Tensor] = torch.sum,
    columns: Columns = WHOLE,
) -> Tensor:
    """Return the loss of row values: weights, z-loss and reduction, differentiable by every tensor.

    Parameters
    ----------
    rows_with
        The row primitive with its logits, of class weights and a mask of rows.
    tensors
        Target, values, class weight and sample weight.
    call : Call
    total
        The sum of a tensor.
    columns
        The part of the logits that this process holds.

    Notes
    -----
    ``mean`` divides the cross-entropy by ``Σ a w_y`` for labels and by ``Σ a`` for soft targets, and the z-loss by
    ``Σ a``, over the kept rows.
    """
    target, values, weight, a = tensors
    options = call.options
    index = whole_numbers(target) if is_labels(target, values) else None
    kept = None if index is None or options.ignore_index is None else index != options.ignore_index
    mask = RowMask()
    if a is not None:
        mask = RowMask(weightless=a == 0) if followed(a) else RowMask(active=a != 0)
    label_weight = None
    if index is not None and weight is not None:
        label_weight = _label_weight(weight, index if kept is None else torch.where(kept, index, 0), columns)
    # Without smoothing the weight of a row's label multiplies all of its loss.
    inside = None if label_weight is not None and not _smooths(call.formula_options) else weight
    rows = rows_with(inside, mask)
    ce = rows.ce
    if inside is not weight and label_weight is not None:
        label_weight = label_weight.to(ce.dtype)
        ce = _weighted(label_weight, ce)
    if a is not None:
        a = a.to(ce.dtype)
    if kept is not None:
        a = kept.to(ce.dtype) if a is None else torch.where(kept, a, 0)
    share = z_share = a
    empty = None
    if call.reduction == "mean":
        ones = torch.ones_like(ce.detach()) if a is None else a
        own = ones if label_weight is None else torch.where(ones == 0, 0, ones * label_weight.to(ce.dtype))
        sums = torch.stack([total(own), total(ones), total((ones != 0).to(ce.dtype))])
        by, count, rows_kept = columns.vary_by_rows(columns.total_of_rows(sums)).unbind(0)
        empty = (by == 0) | (rows_kept == 0)
        share = ones * torch.where(empty, 0, 1 / torch.where(empty, 1, by))
        z_share = ones * torch.where(empty, 0, 1 / torch.where(empty, 1, count))
    losses = _weighted(share, ce)
    z_loss = call.formula_z_loss
    if isinstance(z_loss, Tensor) or z_loss != 0:
        lse = rows.lse
        if a is not None:  # an ignored row has none
            lse = torch.where(torch.isnan(lse) & (a == 0), 0, lse)
        losses = losses + z_loss * _weighted(z_share, lse * lse)
    if call.reduction == "none":
        return losses.to(call.dtype)
    found = columns.total_of_rows(total(losses))
    return (found if empty is None else torch.where(empty, math.nan, found)).to(call.dtype)


def _label_weight(weight: Tensor, index: Tensor, columns: Columns) -> Tensor:
    if columns.whole:
        return weight[index]
    own, classes = index - columns.first, len(weight)
    own = torch.where((own >= 0) & (own < classes), own, classes)
    return columns.total(torch.cat([weight, weight.new_zeros(1)])[own])


def _weighted(a: Tensor | None, losses: Tensor) -> Tensor:
    """``a ℓ``, where a weight of 0 drops a row without a loss."""
    if a is None:
        return losses
    dropped = (a == 0) & ~torch.isfinite(losses)
    return torch.where(dropped, 0, a * torch.where(dropped, 0, losses))


# --- contents of tensors, where they can be looked at -----------------------------------------------------------------


def followed(tensor: Any) -> bool:
    """Return whether a derivative by this argument may be asked for."""
    if not isinstance(tensor, Tensor):
        return False
    if tensor.requires_grad and torch.is_grad_enabled():
        return True
    if torch.compiler.is_compiling():  # inside torch.func or forward mode the formulas compute there
        return False
    return torch._C._functorch.is_functorch_wrapped_tensor(tensor) or has_tangent(tensor)


def has_tangent(tensor: Any) -> bool:
    """Return whether forward mode follows this tensor."""
    if torch.autograd.forward_ad._current_level < 0 or not isinstance(tensor, Tensor):
        return False
    return torch.autograd.forward_ad.unpack_dual(tensor).tangent is not None


def traced() -> bool:
    """Return whether operations are recorded by ``make_fx`` or the like, which does not see the kernels."""
    if not torch._C._len_torch_dispatch_stack():
        return False
    from torch.fx.experimental.proxy_tensor import get_proxy_mode

    return get_proxy_mode() is not None


def require(condition: Tensor, name: str, message: Callable[[], Exception]) -> None:
    """Raise ``message()`` unless the condition, a tensor of one bool, holds; in a graph, assert it when it runs."""
    if torch.compiler.is_compiling() or traced():
        torch._assert_async(condition, f"softgrad: {name} holds invalid values")
    elif condition.device.type != "meta" and not is_fake(condition) and not bool(condition):
        raise message()


def unwrapped(tensor: Tensor) -> Tensor:
    """Return the tensor below the levels of ``torch.func``: what ``vmap`` has stacked is checked as a whole."""
    if not torch.compiler.is_compiling():
        while torch._C._functorch.is_functorch_wrapped_tensor(tensor):
            tensor = torch._C._functorch.get_unwrapped(tensor)
    return tensor


def check_labels(
    target: Tensor | None, values: Tensor | None, classes: int, ignore_index: int | None,
    *, before: tuple[int, int] = (0, 0),
) -> None:  # fmt: skip
    """Raise an error that names the first label outside [0, V).

    ``before`` is an axis of the caller's target, and how many of its first entries this target leaves out.
    """
    if target is None or (values is None and target.is_floating_point()):
        return
    target = unwrapped(target)
    index = whole_numbers(target)
    bad = (index < (0 if values is None else -1)) | (index >= classes)
    if values is None and ignore_index is not None:
        bad = bad & (index != ignore_index)

    def error() -> Exception:
        place = [int(i) for i in bad.nonzero()[0]]
        value = target[tuple(place)].item()
        if before[1]:
            place[before[0]] += before[1]
        hint = "" if values is None else " (−1 pads)"
        return IndexError(f"target{place} is {value}, outside [0, {classes}){hint}; nothing was computed")

    require(~bad.any(), "target", error)


def check_finite(tensor: Tensor | None, name: str) -> None:
    """Raise an error that names the first weight that is not finite."""
    if tensor is None or not tensor.is_floating_point():
        return
    tensor = unwrapped(tensor)
    if type(tensor) is Tensor and tensor.device.type == "cpu" and not torch.compiler.is_compiling():
        check_storage(tensor)

    def error() -> Exception:
        place = [int(i) for i in (~torch.isfinite(tensor)).nonzero()[0]]
        value = tensor[tuple(place)].item()
        return ValueError(f"{name}{place} is {value}; weights are finite (0 leaves a row or class out)")

    require(torch.isfinite(tensor).all(), name, error)
