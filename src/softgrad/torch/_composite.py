"""The head in PyTorch's own operations: any device, any order of derivative, every transform.

The formulas are those of `softgrad.reference`, with the class axis last and any axes before it.  Half precision is
computed in float32.  Rows that are ignored are replaced by zeros before anything is computed, so that what they hold
reaches neither the loss nor a derivative.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import is_fake

from softgrad._core.options import Options

INFINITY = float("inf")


class Row(NamedTuple):
    """A batch as the formulas want it; every tensor has the class axis last."""

    d: Tensor  # u − max u
    peak: Tensor  # max u, a constant
    log_s: Tensor  # log Σ exp d
    slope: Any  # D = ∂u/∂o
    curve: Any  # ∂²u/∂o², None without softcap
    wy: Tensor  # w_j y'_j
    w: Any  # class weights or 1
    plain: Tensor  # y before smoothing
    ce: Tensor  # row factor of the cross-entropy: a_i over the mean's denominator
    z: Any  # λ times the row factor of the z-loss, None without
    active: Tensor  # rows that count
    void: Any  # whether a mean is taken over nothing

    @property
    def s(self) -> Tensor:
        """``S``."""
        return torch.exp(self.d - self.log_s[..., None])

    @property
    def mass(self) -> Tensor:
        """``ce t + 2 z lse``: what multiplies S in the gradient."""
        mass = self.ce * self.wy.sum(-1)
        return mass if self.z is None else mass + 2 * self.z * (self.peak + self.log_s)


def compute_dtype(dtype: torch.dtype) -> torch.dtype:
    """Float64 for float64, float32 for everything else."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def transform(o: Tensor, options: Options, scalars: dict[str, Tensor]) -> tuple[Tensor, Any, Any]:
    s: Any = scalars.get("logit_scale", options.logit_scale)
    tau: Any = scalars.get("temperature", options.temperature)
    if options.softcap is None:
        if not scalars and s == 1 and tau == 1:
            return o, 1.0, None
        bounded = torch.where(o == -INFINITY, 0, o)  # 0·∞ would reach a derivative by s or τ
        scaled = torch.where(o == -INFINITY, o * _sign(s, o), bounded * (s / tau))
        return scaled, s / tau, None
    c = options.softcap
    bounded = torch.where(torch.isinf(o), 0, o)
    v = o.detach() * _sign(s, o)
    th = torch.where(torch.isinf(o), torch.sign(v), torch.tanh(s * bounded / c))
    u = torch.where(torch.isinf(o), v, c * th / tau)
    slope = 1 - th * th
    return u, slope * (s / tau), -2 * th * slope * (s * s / (tau * c))


def _sign(s: Any, like: Tensor) -> Any:
    return torch.sign(s.detach()).to(like.dtype) if isinstance(s, Tensor) else (1.0 if s > 0 else -1.0)


def _plain_targets(o: Tensor, target: Tensor, values: Tensor | None, axis: int) -> Tensor:
    """Targets before smoothing as (…, V)."""
    if values is not None:
        index = target.long()
        shares = torch.where(index < 0, 0, values.to(o.dtype))
        return torch.zeros_like(o.detach()).scatter_add(-1, index.clamp(min=0), shares)
    if target.is_floating_point():
        return target.movedim(axis, -1).to(o.dtype)
    inside = target.clamp(0, o.shape[-1] - 1).long()
    return torch.zeros_like(o.detach()).scatter(-1, inside[..., None], 1.0)


def row_of(tensors: Sequence[Any], options: Options, axis: int, scalars: dict[str, Tensor] | None = None) -> Row:
    """Everything that loss, gradient and products share.

    The tensors are logits, target, values, weight and sample_weight; labels have been checked.
    """
    logits, target, values, weight, sample_weight = tensors
    o = logits.movedim(axis, -1).to(compute_dtype(logits.dtype))
    labelled = values is None and not target.is_floating_point()
    kept = torch.ones(o.shape[:-1], dtype=torch.bool, device=o.device)
    if labelled and options.ignore_index is not None:
        kept = target != options.ignore_index
    a = torch.ones(o.shape[:-1], dtype=o.dtype, device=o.device)
    active = kept
    if sample_weight is not None:
        a = sample_weight.to(o.dtype)
        # A row of weight 0 counts for nothing, but its loss is what the weight's own derivative is about.
        sound = (torch.isfinite(o) | (o == -INFINITY)).all(-1) & (o > -INFINITY).any(-1)
        active = kept & ((a != 0) | (sound & derived(sample_weight)))
    a = torch.where(kept, a, 0)
    o = torch.where(active[..., None], o, 0)
    u, slope, curve = transform(o, options, scalars or {})
    peak = u.detach().amax(-1)
    d = u - peak[..., None]
    log_s = torch.log(torch.exp(d).sum(-1))
    plain = torch.where(active[..., None], _plain_targets(o, target, values, axis), 0)
    y = plain
    if options.label_smoothing:
        spread: Any = 1.0 / o.shape[-1]
        if options.smooth_finite_only:
            finite = (u.detach() != -INFINITY).to(o.dtype)
            spread = finite / finite.sum(-1, keepdim=True)
        y = (1 - options.label_smoothing) * plain + options.label_smoothing * spread
    w: Any = 1.0 if weight is None else weight.to(o.dtype)
    ce, z, void = a, a, None
    if options.reduction == "mean":
        own: Any = a
        if labelled and weight is not None:
            own = a * (plain * w).sum(-1)
        ce_total, total = own.sum(), a.sum()
        void = (ce_total == 0) | ~(a != 0).any()
        ce = torch.where(void, 0, a / torch.where(void, 1, ce_total))
        z = torch.where(void, 0, a / torch.where(void, 1, total))
    return Row(
        d, peak, log_s, slope, curve, y * w, w, plain, ce, z * options.z_loss if options.z_loss else None, active, void
    )  # fmt: skip


def derived(tensor: Tensor) -> bool:
    """Whether somebody may ask for a derivative by this tensor."""
    return tensor.requires_grad or torch._C._functorch.is_functorch_wrapped_tensor(tensor) or has_tangent(tensor)


def has_tangent(tensor: Any) -> bool:
    """Whether forward mode follows this tensor."""
    if torch.autograd.forward_ad._current_level < 0 or not isinstance(tensor, Tensor):
        return False
    return torch.autograd.forward_ad.unpack_dual(tensor).tangent is not None


def row_losses(row: Row) -> Tensor:
    """Each row's share of the total: ``ce (t log s − Σ w y' d) + z lse²``."""
    d = torch.where((row.wy == 0) & (row.d == -INFINITY), 0, row.d)  # 0·∞ counts as 0, in derivatives too
    losses = row.wy.sum(-1) * row.log_s - (row.wy * d).sum(-1)
    dropped = ~row.active | ((row.ce == 0) & ~torch.isfinite(losses))
    total = torch.where(dropped, 0, row.ce * torch.where(dropped, 0, losses))
    if row.z is not None:
        total = total + torch.where(dropped, 0, row.z * torch.where(dropped, 0, row.peak + row.log_s) ** 2)
    return total


def cross_entropy(
    tensors: Sequence[Any], options: Options, axis: int, dtype: torch.dtype, scalars: dict[str, Tensor] | None = None
) -> Tensor:
    """The loss, differentiable by whatever is a tensor."""
    row = row_of(tensors, options, axis, scalars)
    losses = row_losses(row)
    if options.reduction == "none":
        return losses.to(dtype)
    # A total of many float32 numbers is a float64's work, as in the kernels; some accelerators have none.
    wide = torch.float64 if losses.device.type in ("cpu", "cuda") else losses.dtype
    total = losses.sum(dtype=wide)
    if row.void is not None:
        total = torch.where(row.void, float("nan"), total)
    return total.to(dtype)


def _upstream(row: Row, upstream: Tensor) -> Tensor:
    """``∂L/∂row loss`` as (…) beside the rows: one number, or one a row."""
    return upstream.to(row.d.dtype)


def _u_gradient(row: Row) -> Tensor:
    return row.mass[..., None] * row.s - row.ce[..., None] * row.wy


def _deliver(row: Row, rows: Tensor, axis: int, like: Tensor) -> Tensor:
    return torch.where(row.active[..., None], rows, 0).movedim(-1, axis).to(like.dtype)


def gradient(row: Row, upstream: Tensor, axis: int, like: Tensor) -> Tensor:
    """``∂L/∂o = D ((ce t + 2 z lse) S − ce w y')``, times what comes from above."""
    g = _upstream(row, upstream)
    return _deliver(row, g[..., None] * row.slope * _u_gradient(row), axis, like)


def hessian_product(row: Row, upstream: Tensor, vector: Tensor, axis: int, like: Tensor) -> Tensor:
    """``H v`` of the loss by the logits: ``D [(t + 2λ lse) J + 2λ S Sᵀ] D v + ∂ℓ/∂u ∘ ∂²u/∂o² ∘ v``."""
    g = _upstream(row, upstream)[..., None]
    v = vector.movedim(axis, -1).to(row.d.dtype)
    s, moved = row.s, row.slope * v
    along = (s * moved).sum(-1, keepdim=True)
    product = row.mass[..., None] * s * (moved - along)
    if row.z is not None:
        product = product + 2 * row.z[..., None] * s * along
    product = row.slope * product
    if row.curve is not None:
        product = product + _u_gradient(row) * row.curve * v
    return _deliver(row, g * product, axis, like)


def target_gradient(row: Row, upstream: Tensor, options: Options) -> Tensor:
    """``∂L/∂y_j = −(1 − ε) w_j log S_j``, times factor and upstream; the class axis is last."""
    log_p = row.d - row.log_s[..., None]
    masked = (row.plain == 0) & (log_p == -INFINITY)
    factor = (_upstream(row, upstream) * row.ce)[..., None] * (options.label_smoothing - 1)
    return torch.where(row.active[..., None] & ~masked, factor * row.w * torch.where(masked, 0, log_p), 0)


def target_product(row: Row, upstream: Tensor, vector: Tensor, options: Options, axis: int) -> Tensor:
    """``∂/∂y_j ⟨v, ∂L/∂o⟩ = (1 − ε) ce w_j (Σ_i S_i D_i v_i − D_j v_j)``; the class axis is last."""
    moved = row.slope * vector.movedim(axis, -1).to(row.d.dtype)
    factor = (_upstream(row, upstream) * row.ce)[..., None] * (1 - options.label_smoothing)
    product = factor * row.w * ((row.s * moved).sum(-1, keepdim=True) - moved)
    return torch.where(row.active[..., None], product, 0)


def to_target(rows: Tensor, target: Tensor, values: Tensor | None, axis: int) -> Tensor:
    """Derivatives by dense soft targets, as the target or the sparse values lie."""
    if values is None:
        return rows.movedim(-1, axis).to(target.dtype)
    index = target.long()
    return torch.where(index < 0, 0, rows.gather(-1, index.clamp(min=0))).to(values.dtype)


def check_labels(
    target: Tensor, values: Tensor | None, classes: int, options: Options, *, before: tuple[int, int] = (0, 0)
) -> None:
    """Name the first label outside [0, V); what the kernels do for themselves.

    ``before`` is an axis of the caller's target, and how many of its entries this target leaves out at its beginning.
    """
    if not torch.compiler.is_compiling():
        while torch._C._functorch.is_functorch_wrapped_tensor(target):  # what vmap has stacked is checked as a whole
            target = torch._C._functorch.get_unwrapped(target)
    if values is not None:
        bad = (target < -1) | (target >= classes)
    elif target.is_floating_point():
        return
    else:
        bad = (target < 0) | (target >= classes)
        if options.ignore_index is not None:
            bad = bad & (target != options.ignore_index)
    if torch.compiler.is_compiling():
        torch._assert_async(~bad.any(), "softgrad: a target is outside [0, classes)")
    elif target.device.type != "meta" and not is_fake(target) and bool(bad.any()):
        place = [int(i) for i in bad.nonzero()[0]]
        value = int(target[tuple(place)])
        if before[1]:
            place[before[0]] += before[1]
        raise IndexError(f"target{place} is {value}, outside [0, {classes}); nothing was computed")
