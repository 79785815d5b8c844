"""The options of the head: described once, checked once, spelled the same in every front-end."""

from __future__ import annotations

import inspect
import math
import operator
import reprlib
from collections.abc import Callable
from dataclasses import dataclass, fields
from textwrap import indent
from typing import Any, Literal, TypedDict, TypeVar

import numpy as np
from numpy.typing import ArrayLike

from softgrad._core.backend import KernelOptions

Reduction = Literal["mean", "sum", "none"]
F = TypeVar("F", bound=Callable[..., Any])

DESCRIPTIONS = {
    "logits": """logits : array_like
    ``o``, of any shape; float32, float64, float16 or ml_dtypes.bfloat16 (integers become float64).""",
    "targets": """targets : array_like or tuple
    Integers: labels, of the logits' shape without the class axis.  Floats: soft targets ``y``, of the logits'
    shape; rows need not sum to one.  A pair ``(indices, values)``: the soft targets that are not 0, with a
    trailing axis of k entries a row; duplicates add up, the index −1 pads.""",
    "linear": """x : array_like of shape (..., D)
    Inputs of the head; float32, float64, float16 or ml_dtypes.bfloat16.
weight : array_like of shape (V, D)
    One row a class, of the dtype of ``x``.
targets : array_like or tuple
    Labels of shape (...), soft targets of shape (..., V) or sparse soft targets, as in `cross_entropy`.
bias : array_like of shape (V,), optional
    ``b``, of the dtype of ``x``.""",
    "class_weight": """class_weight : array_like of shape (V,), optional
    Weight ``w_j`` of each class.  For labels, ``mean`` divides by the weights of the labels, as PyTorch does.""",
    "sample_weight": """sample_weight : array_like, one number a row, optional
    Weight ``a_i`` of each row, of any sign.  A row of weight 0 is ignored, whatever its logits
    hold.""",
    "ignore_index": """ignore_index : int, optional
    Rows with this label are ignored: loss 0, gradient exactly 0.  None (the default) ignores nothing; it
    goes with labels only.""",
    "label_smoothing": """label_smoothing : float in [0, 1], default 0
    ``ε`` of ``y' = (1 − ε) y + ε/V``.""",
    "smooth_finite_only": """smooth_finite_only : bool, default False
    Spread ``ε`` over the classes whose logit is not −inf, instead of giving a masked class a share and the row the
    loss +inf.""",
    "logit_scale": """logit_scale : float, default 1
    ``s`` of ``v = s·o``; finite and not 0.""",
    "softcap": """softcap : float, optional
    ``c > 0`` of ``v = c·tanh(s·o / c)``.  A logit of −inf stays masked.""",
    "temperature": """temperature : float, default 1
    ``τ > 0`` of ``u = v / τ``, applied last.""",
    "z_loss": """z_loss : float, default 0
    ``λ ≥ 0`` of the penalty ``λ lse(u)²``.""",
    "reduction": """reduction : {"mean", "sum", "none"}, default "mean"
    ``mean`` divides the cross-entropy by ``Σ a_i w_{y_i}`` over the rows kept for labels and by ``Σ a_i`` for soft
    targets, and the z-loss by ``Σ a_i``.  ``none`` gives one loss a row.""",
    "axis": """axis : int, default -1
    The class axis.""",
    "out": """out : ndarray, optional
    Where the result goes: shape and dtype of the logits.  ``out=logits`` computes in place.""",
    "stats": """stats : PredictionStats, optional
    Buffers (`PredictionStats.empty`) for the by-products, filled in the same pass.""",
    "n_threads": """n_threads : int, optional
    Threads to use: by default ``SOFTGRAD_NUM_THREADS`` or all processors.  The result's bits do not depend on it.
    Without the native kernels one thread computes.""",
    "max_memory": """max_memory : int, optional
    Bytes that the tiles of logits and products may take, beyond the returned arrays; by default 64 MB.  At least one
    row of logits is needed.""",
}

TRANSFORM = ("logit_scale", "softcap", "temperature")
LOSS = (
    "class_weight", "sample_weight", "ignore_index", "label_smoothing", "smooth_finite_only", *TRANSFORM, "z_loss",
    "reduction",
)  # fmt: skip


class TransformOptions(TypedDict, total=False):
    """Keywords of the functions of logits alone."""

    logit_scale: float
    softcap: float | None
    temperature: float


class LossOptions(TransformOptions, total=False):
    """Keywords of the losses."""

    class_weight: ArrayLike | None
    sample_weight: ArrayLike | None
    ignore_index: int | None
    label_smoothing: float
    smooth_finite_only: bool
    z_loss: float
    reduction: Reduction


def _shown(value: Any) -> str:
    """Return a value for a message, on one line."""
    return reprlib.repr(" ".join(repr(value).split()))[1:-1] if hasattr(value, "ndim") else repr(value)


def _number(name: str, value: Any) -> float:
    """Return a number or an array of no dimensions as a float."""
    if type(value) is float:
        return value
    text = isinstance(value, str | bytes) or getattr(getattr(value, "dtype", None), "kind", "f") in "US"
    if not (text or isinstance(value, np.ma.MaskedArray) or getattr(value, "ndim", 0) != 0):
        try:
            return float(value)
        except (TypeError, ValueError):
            pass
    raise TypeError(f"{name} must be a number, not {_shown(value)}")


def _whole_number(name: str, value: Any) -> int:
    if type(value) is int:
        return value
    if not (isinstance(value, bool | np.bool_ | np.ma.MaskedArray) or getattr(value, "ndim", 0) != 0):
        try:
            return operator.index(value)
        except TypeError:
            pass
    raise TypeError(f"{name} must be a whole number or None, not {_shown(value)}")


def _truth(name: str, value: Any) -> bool:
    if isinstance(value, bool):
        return value
    if getattr(value, "dtype", None) == np.bool_ and value.ndim == 0:
        return bool(value)
    raise TypeError(f"{name} must be True or False, not {_shown(value)}")


def _finite(value: float) -> bool:
    return -math.inf < value < math.inf  # a comparison: torch.compile traces it where it cannot trace isfinite


@dataclass(slots=True)
class Options:
    """The options of one call, checked; the only validator of their values."""

    class_weight: Any = None
    sample_weight: Any = None
    ignore_index: int | None = None
    label_smoothing: float = 0.0
    smooth_finite_only: bool = False
    logit_scale: float = 1.0
    softcap: float | None = None
    temperature: float = 1.0
    z_loss: float = 0.0
    reduction: Reduction = "mean"

    def __post_init__(self) -> None:
        self.label_smoothing = _number("label_smoothing", self.label_smoothing)
        self.logit_scale = _number("logit_scale", self.logit_scale)
        self.temperature = _number("temperature", self.temperature)
        self.z_loss = _number("z_loss", self.z_loss)
        if not 0.0 <= self.label_smoothing <= 1.0:
            raise ValueError(f"label_smoothing={self.label_smoothing} is outside [0, 1]")
        if not (_finite(self.logit_scale) and self.logit_scale != 0):
            raise ValueError(f"logit_scale={self.logit_scale} must be finite and not 0")
        if not (_finite(self.temperature) and self.temperature > 0):
            raise ValueError(f"temperature={self.temperature} must be finite and greater than 0")
        if self.softcap is not None:
            self.softcap = _number("softcap", self.softcap)
            if not (_finite(self.softcap) and self.softcap > 0):
                raise ValueError(f"softcap={self.softcap} must be finite and greater than 0 (None for no softcap)")
        if not (_finite(self.z_loss) and self.z_loss >= 0):
            raise ValueError(f"z_loss={self.z_loss} must be finite and at least 0")
        if self.reduction not in ("mean", "sum", "none"):
            raise ValueError(f"reduction={self.reduction!r} is none of 'mean', 'sum', 'none'")
        if self.ignore_index is not None:
            self.ignore_index = _whole_number("ignore_index", self.ignore_index)
            if not -(2**63) <= self.ignore_index < 2**63:
                raise ValueError(f"ignore_index={self.ignore_index} is outside the range of int64")
        self.smooth_finite_only = _truth("smooth_finite_only", self.smooth_finite_only)

    def record(self) -> Any:
        """Build the kernels' record of these options."""
        return KernelOptions(
            self.label_smoothing,
            self.smooth_finite_only,
            self.logit_scale,
            self.softcap or 0.0,
            self.temperature,
            self.z_loss,
            self.ignore_index,
        )


def options_of(function: str, given: dict[str, Any]) -> Options:
    """Check ``**options`` of a public function."""
    for name in given:
        if name not in LOSS:
            raise TypeError(
                f"{function}() got an unexpected keyword argument {name!r}; its options are {', '.join(LOSS)}"
            )
    return Options(**given)


_DEFAULTS = {field.name: field.default for field in fields(Options)}


def documented(*names: str) -> Callable[[F], F]:
    """Put the descriptions of the named options where the docstring says ``{options}``, and show them as keywords.

    ``{logits}`` and the like are replaced as well: what is said of an argument is said once.

    The functions take ``**options`` so that their list stands in one place; readers, `help` and notebooks see it whole.
    """

    def decorate(function: F) -> F:
        texts = {**DESCRIPTIONS, "options": "\n".join(DESCRIPTIONS[name] for name in names)}
        if function.__doc__ is not None:  # python -OO strips it
            for name, text in texts.items():
                function.__doc__ = function.__doc__.replace(f"    {{{name}}}\n", indent(text, "    ") + "\n")
        signature = inspect.signature(function)
        shown = [p for p in signature.parameters.values() if p.kind is not p.VAR_KEYWORD]
        if len(shown) < len(signature.parameters):
            have = {p.name for p in shown}
            shown += [
                inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=_DEFAULTS[name])
                for name in names
                if name not in have
            ]
            function.__signature__ = signature.replace(parameters=shown)  # type: ignore[attr-defined]
        return function

    return decorate
