"""A checker for anybody's softmax, loss and gradient: which law fails first, on which input, and why."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from typing import Any, Unpack

import numpy as np

from softgrad._checker.diagnose import ExactAnswers, exact, usable
from softgrad._checker.functions import Functions
from softgrad._checker.inputs import PRECISION, NumPyBridge, cases, check_sample
from softgrad._checker.report import GradientReport
from softgrad._checker.walk import Walk
from softgrad._core.options import LOSS, LossOptions, documented, options_of

__all__ = ["check_gradient"]


@documented(*LOSS)
def check_gradient(
    loss: Callable[..., Any] | None,
    logits: Any,
    targets: Any = None,
    *,
    gradient: Callable[..., Any] | None = None,
    softmax: Callable[..., Any] | None = None,
    jacobian: Callable[..., Any] | None = None,
    offset: float | None = None,
    masked: bool | None = None,
    rtol: float | None = None,
    **options: Unpack[LossOptions],
) -> GradientReport:
    """Check anybody's softmax cross-entropy, its gradient and Jacobian, and name the first law that fails.

    Replaces a loop of finite differences, or `torch.autograd.gradcheck`: it compares with the exact answers, in any
    dtype, on equal, peaked, huge and masked logits too, and says which mistake it is.

    Parameters
    ----------
    loss : callable or None
        ``loss(logits, targets)`` gives the value, or value and gradient.  None where only other functions are checked.
    logits : array_like or torch.Tensor of shape (V,) or (N, V)
        A sample.  The functions are called with it, then with inputs of its shape, dtype and framework: NumPy arrays
        (float64 for lists and integers), or tensors, whose gradient is autograd's if ``loss`` returns only a value.
    targets : array_like or torch.Tensor, optional
        Labels (integers) or soft targets (floats), made alike for the other inputs.  Labels are made if not given.
    gradient : callable, optional
        ``gradient(logits, targets)``, of the logits' shape.
    softmax : callable, optional
        ``softmax(logits)``: the probabilities, with the scale, softcap and temperature below.
    jacobian : callable, optional
        ``jacobian(logits)``: ``∂S_i/∂o_j`` in two trailing axes.
    offset : float, optional
        Common offset of the huge inputs; by default 10,000, and 1536 in float16, 192 in bfloat16, which hold no more
        digits.  Beyond it formulas like ``lse − o_y`` may lose theirs.
    masked : bool, optional
        Whether logits of −inf are tried where the target's weight is 0.  By default they are for labels (without
        smoothing over masked classes, softcap or negative scale), and for soft targets if the sample holds −inf.
    rtol : float, optional
        Relative tolerance, instead of one by dtype and number of classes.
    {options}

    Returns
    -------
    GradientReport
        True when all laws hold; otherwise ``law`` names the first that fails, ``message`` says where, why, and how to
        fix it, ``logits`` and ``targets`` are the input that shows it.

    Raises
    ------
    ValueError
        For a sample or an option that no loss can be checked with: a target outside the range, V = 1, NaN, …
    TypeError
        For what is no function, no number or no option.
    RuntimeError
        When one of the functions raises; the message names the input, the cause is the function's own exception.

    Notes
    -----
    The options say what the functions are meant to compute; they are not passed on.  Overflow to infinity, ``log(0)``
    and the like are findings, not warnings.

    Examples
    --------
    >>> import numpy as np
    >>> from softgrad import check_gradient
    >>> def loss(logits, labels):
    ...     e = np.exp(logits - logits.max(1, keepdims=True))
    ...     p = e / e.sum(1, keepdims=True)
    ...     rows = np.arange(len(p))
    ...     value = -np.log(p[rows, labels]).mean()
    ...     p[rows, labels] -= 1
    ...     return value, p
    >>> report = check_gradient(loss, [[2.0, 1.0, 0.1], [0.5, 2.5, 0.3]], [0, 2])
    >>> report.law
    'mean against sum'
    >>> print(report.message.splitlines()[0])
    gradient[0, 0] is -0.340999, expected -0.170499, on your logits

    References
    ----------
    Blanchard, Higham and Higham, "Accurately computing the log-sum-exp and softmax functions", 2021.
    """
    given = {"loss": loss, "gradient": gradient, "softmax": softmax, "jacobian": jacobian}
    for name, function in given.items():
        if function is not None and not callable(function):
            raise TypeError(f"{name} is of type {type(function).__name__}; give a function (first loss, then logits)")
    if all(function is None for function in given.values()):
        raise TypeError("nothing to check: give loss, gradient=, softmax= or jacobian=")
    checked = options_of("check_gradient", dict(options))
    number: Any
    for name, number in (("offset", offset), ("rtol", rtol)):
        if number is not None and not (isinstance(number, int | float) and 0 < number < np.inf):
            raise ValueError(f"{name}={number!r} must be a finite number greater than 0")
    if not (masked is None or isinstance(masked, bool)):
        raise TypeError(f"masked must be True, False or None, not {masked!r}")
    bridge = _bridge(logits, targets)
    o, y = check_sample(bridge.logits, bridge.targets, checked)
    if bridge.dtype not in PRECISION:
        raise TypeError(f"logits of {bridge.dtype} are not supported; use {', '.join(PRECISION)}")
    largest = PRECISION[bridge.dtype][1] / 4
    if offset is not None and offset > largest:
        raise ValueError(f"offset={offset:g} is too large for {bridge.dtype}; at most {largest:g}")
    settings = asdict(checked)
    if masked is None:
        plain = checked.softcap is None and checked.logit_scale > 0
        spread = checked.label_smoothing == 0 or checked.smooth_finite_only
        masked = plain and spread and (y.ndim == 1 or bool(np.isneginf(o).any()))
    soft_eps = PRECISION.get(bridge.soft_name, (0.0,))[0]  # what rounding does to their sum
    tried = cases(bridge, o, y, bridge.dtype, checked, offset, masked)
    truths = [exact(c, settings, bridge.dtype, soft_eps, rtol, jacobian is not None) for c in tried]
    if not usable(truths[0], bridge.dtype):
        raise ValueError(_unusable(truths[0], bridge.dtype))
    skipped = [f"{t.case.name} (no finite answer in {bridge.dtype})" for t in truths if not usable(t, bridge.dtype)]
    truths = [t for t in truths if usable(t, bridge.dtype)]
    if not masked:
        skipped.append("masked logits, −inf (masked=True tries them)")
    return Walk(Functions(bridge, given, checked.reduction), truths, checked, skipped).run()


def _bridge(logits: Any, targets: Any) -> Any:
    if any(kind.__module__.split(".")[0] == "torch" for kind in type(logits).__mro__):
        from softgrad.torch._checking import TorchBridge  # the user's tensor has loaded PyTorch already

        return TorchBridge(logits, targets)
    return NumPyBridge(logits, targets)


def _unusable(truth: ExactAnswers, dtype: str) -> str:
    o, p = truth.case.o, truth.rows
    infinite = np.isneginf(o) & (p.wy != 0) & p.keep[:, None]
    if infinite.any():
        row, column = (int(i) for i in np.argwhere(infinite)[0])
        return f"logits row {row} is −inf at class {column}, which its target gives weight: the loss is infinite there"
    if not p.keep.any() or not p.ce.any():
        return "every row is ignored or of weight 0: there is no loss to check"
    return f"logits as large as {np.abs(o[np.isfinite(o)]).max():g} leave no room for the loss in {dtype}"
