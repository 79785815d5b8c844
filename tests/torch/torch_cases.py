"""What the tests of `softgrad.torch` share: inputs, an oracle in float64 autograd, and how near is near.

`formula` is the mathematics of shared/design.md §2 written down once more in PyTorch's operations, in float64 and for
finite logits: differentiable by every argument, and transformed by ``torch.func`` as it stands.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

DTYPES = {
    "float64": torch.float64,
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}
INTEGERS = (torch.int8, torch.uint8, torch.int16, torch.int32, torch.int64)
REDUCTIONS = ("mean", "sum", "none")
# Unit roundoff of the arithmetic and of the storage.
ARITHMETIC = {torch.float64: 2.0**-53, torch.float32: 2.0**-24, torch.bfloat16: 2.0**-24, torch.float16: 2.0**-24}
STORAGE = {torch.float64: 0.0, torch.float32: 0.0, torch.bfloat16: 2.0**-8, torch.float16: 2.0**-11}
TINY = {torch.float64: 1e-300, torch.float32: 1e-33, torch.bfloat16: 1e-33, torch.float16: 2.0**-24}


def generator(*seed: int) -> torch.Generator:
    """Random numbers that a test can repeat."""
    return torch.Generator().manual_seed(hash(seed) % (1 << 31))


def normal(*shape: int, dtype: torch.dtype = torch.float64, seed: int = 0, scale: float = 1.0) -> Tensor:
    """Normal numbers as the type rounds them."""
    return (scale * torch.randn(shape, generator=generator(seed, *shape), dtype=torch.float64)).to(dtype)


def axis_of(shape: Any) -> int:
    """PyTorch's class axis."""
    return 1 if len(shape) > 1 else 0


def outer_of(shape: Any) -> tuple[int, ...]:
    """The shape without the class axis."""
    return tuple(n for i, n in enumerate(shape) if i != axis_of(shape))


def labels_for(o: Tensor, dtype: torch.dtype = torch.int64, seed: int = 0) -> Tensor:
    """A label a row."""
    shape = outer_of(o.shape)
    return torch.randint(o.shape[axis_of(o.shape)], shape, generator=generator(seed, 7, *shape)).to(dtype)


def soft_for(o: Tensor, dtype: torch.dtype | None = None, seed: int = 0) -> Tensor:
    """Soft targets whose rows add up to anything, as the type rounds them."""
    y = torch.rand(o.shape, generator=generator(seed, 8, *o.shape), dtype=torch.float64) ** 3
    return (y / y.mean(axis_of(o.shape), keepdim=True)).to(dtype or o.dtype)


def sparse_for(o: Tensor, dtype: torch.dtype = torch.float32, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Sparse soft targets with a duplicate and padding."""
    shape, classes = outer_of(o.shape), o.shape[axis_of(o.shape)]
    g = generator(seed, 9, *shape)
    index = torch.randint(classes, (*shape, 4), generator=g)
    index[..., 1] = index[..., 0]
    index[..., 3] = -1
    values = torch.rand((*shape, 4), generator=g, dtype=torch.float64) + 0.1
    return index, values.to(dtype)


def eighths(*shape: int, seed: int = 0) -> Tensor:
    """Positive weights that every type holds exactly."""
    return torch.randint(1, 24, shape, generator=generator(seed, 10, *shape)).double() / 8


def dense(target: Any, classes: int) -> Tensor:
    """Targets of any kind as (…, V) in float64, the class axis last; ignored rows are the caller's."""
    if isinstance(target, tuple):
        index, values = target
        shares = torch.where(index < 0, 0.0, values.double())
        return torch.zeros(*index.shape[:-1], classes, dtype=torch.float64).scatter_add(
            -1, index.clamp(min=0).long(), shares
        )
    if target.is_floating_point():
        return target.double().movedim(axis_of(target.shape), -1)
    return (target.clamp(0, classes - 1)[..., None] == torch.arange(classes)).double()  # one_hot refuses vmap


def formula(
    input: Tensor,  # noqa: A002
    target: Any,
    weight: Tensor | None = None,
    *,
    ignore_index: int = -100,
    reduction: str = "mean",
    label_smoothing: float = 0.0,
    sample_weight: Tensor | None = None,
    smooth_finite_only: bool = False,
    logit_scale: Any = 1.0,
    softcap: float | None = None,
    temperature: Any = 1.0,
    z_loss: float = 0.0,
    **_ignored: Any,
) -> Tensor:
    """The loss by its definition."""
    o = input.double().movedim(axis_of(input.shape), -1)
    v = logit_scale * o
    if softcap is not None:
        v = softcap * torch.tanh(v / softcap)
    u = v / temperature
    labelled = isinstance(target, Tensor) and not target.is_floating_point()
    kept = (target != ignore_index) if labelled else torch.ones(u.shape[:-1], dtype=torch.bool)
    plain = dense(target, o.shape[-1])
    spread = torch.ones_like(u) / o.shape[-1]
    if smooth_finite_only:
        open_ = torch.isfinite(o).double()
        spread = open_ / open_.sum(-1, keepdim=True)
    y = (1 - label_smoothing) * plain + label_smoothing * spread
    w = torch.ones(o.shape[-1], dtype=torch.float64) if weight is None else weight.double()
    lse = torch.logsumexp(u, -1)
    wy = w * y
    terms = torch.where(wy == 0, 0.0, wy * torch.where((wy == 0) & torch.isinf(u), 0.0, u))
    ce = wy.sum(-1) * lse - terms.sum(-1)
    a = kept.double() * (1.0 if sample_weight is None else sample_weight.double())
    z = z_loss * lse**2
    if reduction == "none":
        return a * (ce + z)
    if reduction == "sum":
        return (a * (ce + z)).sum()
    by = (a * (plain * w).sum(-1)).sum() if labelled else a.sum()
    return (a * ce).sum() / by + (a * z).sum() / a.sum()


def linear_formula(x: Tensor, linear_weight: Tensor, target: Any, *, linear_bias: Any = None, **options: Any) -> Tensor:
    """The loss of a linear head by its definition: the logits, flattened to (N, V), and `formula`."""
    logits = torch.nn.functional.linear(
        x.double(), linear_weight.double(), None if linear_bias is None else linear_bias.double()
    )
    outer, classes = logits.shape[:-1], logits.shape[-1]

    def flat(t: Any) -> Any:
        return None if t is None else t.reshape(-1, *t.shape[len(outer) :])

    target = tuple(flat(t) for t in target) if isinstance(target, tuple) else flat(target)
    options["sample_weight"] = flat(options.get("sample_weight"))
    loss = formula(logits.reshape(-1, classes), target, **options)
    return loss.reshape(outer) if options.get("reduction") == "none" else loss


def followed(tensor: Tensor) -> Tensor:
    """A fresh leaf with these values."""
    return tensor.detach().clone().requires_grad_()


def upstream_for(loss: Tensor, seed: int = 0) -> Tensor:
    """Something to multiply each row's gradient with, of both signs, exact in every type."""
    signs = torch.randint(-12, 12, loss.shape, generator=generator(seed, 11, *loss.shape))
    return (signs.double() / 8 + 0.0625).to(loss.dtype)


def value_and_grads(
    function: Callable[..., Tensor], by: list[Tensor], *arguments: Any, **options: Any
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """The loss, and its gradients by some tensors for a non-uniform upstream gradient."""
    loss = function(*arguments, **options)
    return loss.detach(), torch.autograd.grad(loss, by, upstream_for(loss))


def oracle(options: dict[str, Any]) -> dict[str, Any]:
    """Options with their tensors in float64."""
    return {k: v.double() if isinstance(v, Tensor) and v.is_floating_point() else v for k, v in options.items()}


def near(
    actual: Tensor, expected: Tensor, dtype: torch.dtype, context: Any = "", units: float = 64, floor: float = 0.0
) -> None:
    """Each element within one rounding to ``dtype`` and some roundoffs of the arithmetic at the largest element.

    ``floor`` is the size of what a number is the difference of, where that is not its own.
    """
    assert actual.shape == expected.shape, f"{context}: {tuple(actual.shape)}, expected {tuple(expected.shape)}"
    a, e = actual.detach().double(), expected.detach().double()
    finite = torch.isfinite(e)
    size = float(e[finite].abs().max()) if finite.any() else 0.0
    size = max(size, floor)
    limit = 1.001 * STORAGE[dtype] * e.abs() + units * ARITHMETIC[dtype] * size + TINY[dtype]
    ok = ((a - e).abs() <= limit) | (a == e) | (a.isnan() & e.isnan())
    if not ok.all():
        at = tuple(int(i) for i in (~ok).nonzero()[0])
        raise AssertionError(
            f"{context}: {int((~ok).sum())} of {ok.numel()} off; first at {at}: {a[at].item()!r}, expected "
            f"{e[at].item()!r}, tolerance {limit[at].item():.3g}"
        )


def same_bits(a: Tensor, b: Tensor) -> bool:
    """Whether two tensors are equal bit for bit, NaN and signs of zeros included."""
    return (
        a.shape == b.shape
        and a.dtype == b.dtype
        and np.array_equal(*(t.detach().contiguous().reshape(-1).view(torch.uint8).numpy() for t in (a, b)))
    )


def defaults(function: Any) -> dict[str, Any]:
    """Parameters of a function with their defaults, in order."""
    return {name: p.default for name, p in inspect.signature(function).parameters.items()}
