"""The losses as modules, with the constructors of their namesakes in `torch.nn`."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from softgrad.torch.linear import linear_cross_entropy
from softgrad.torch.loss import cross_entropy

__all__ = ["CrossEntropyLoss", "LinearCrossEntropyLoss"]


class CrossEntropyLoss(torch.nn.CrossEntropyLoss):
    """`torch.nn.CrossEntropyLoss` through `softgrad.torch.cross_entropy`: ``loss(input, target)``.

    Replaces ``torch.nn.CrossEntropyLoss(...)``; its state is the same.

    Parameters
    ----------
    weight, size_average, ignore_index, reduce, reduction, label_smoothing
        As in `torch.nn.CrossEntropyLoss`.
    smooth_finite_only, logit_scale, softcap, temperature, z_loss, inplace, n_threads
        As in `softgrad.torch.cross_entropy`.  A `torch.nn.Parameter` among them is one of the module's, and learnt.

    Raises
    ------
    ValueError
        When called, as `softgrad.torch.cross_entropy`.

    Examples
    --------
    >>> import torch
    >>> from softgrad.torch import CrossEntropyLoss
    >>> CrossEntropyLoss(label_smoothing=0.1)(torch.zeros(2, 4), torch.tensor([0, 3]))
    tensor(1.3863)

    References
    ----------
    Bishop, "Pattern Recognition and Machine Learning", 2006, equation 4.108.
    """

    def __init__(
        self,
        weight: Tensor | None = None,
        size_average: bool | None = None,
        ignore_index: int = -100,
        reduce: bool | None = None,
        reduction: str = "mean",
        label_smoothing: float | Tensor = 0.0,
        *,
        smooth_finite_only: bool = False,
        logit_scale: float | Tensor = 1.0,
        softcap: float | Tensor | None = None,
        temperature: float | Tensor = 1.0,
        z_loss: float | Tensor = 0.0,
        inplace: bool = False,
        n_threads: int | None = None,
    ) -> None:
        super().__init__(weight, size_average, ignore_index, reduce, reduction, label_smoothing)  # type: ignore[arg-type]
        self.smooth_finite_only, self.softcap, self.z_loss = smooth_finite_only, softcap, z_loss
        self.logit_scale, self.temperature = logit_scale, temperature
        self.inplace, self.n_threads = inplace, n_threads

    def forward(self, input: Any, target: Any, sample_weight: Tensor | None = None) -> Tensor:  # noqa: A002
        """Compute the loss; ``sample_weight`` has one number a row."""
        return cross_entropy(
            input,
            target,
            self.weight,
            ignore_index=self.ignore_index,
            reduction=self.reduction,
            label_smoothing=self.label_smoothing,
            sample_weight=sample_weight,
            smooth_finite_only=self.smooth_finite_only,
            logit_scale=self.logit_scale,
            softcap=self.softcap,
            temperature=self.temperature,
            z_loss=self.z_loss,
            inplace=self.inplace,
            n_threads=self.n_threads,
        )


class LinearCrossEntropyLoss(torch.nn.Module):
    """`torch.nn.LinearCrossEntropyLoss` through `softgrad.torch.linear_cross_entropy`: ``loss(input, target)``.

    Replaces ``torch.nn.Linear`` and ``torch.nn.CrossEntropyLoss``; the layer is the attribute ``linear``, as in
    PyTorch's module, whose state it can load.

    Parameters
    ----------
    in_features, num_classes, out_features, bias, device, dtype
        As in `torch.nn.LinearCrossEntropyLoss`.
    reduction, weight, ignore_index, label_smoothing, options
        As in `torch.nn.LinearCrossEntropyLoss`.
    smooth_finite_only, logit_scale, softcap, temperature, z_loss, max_memory, accumulate_dtype, impl, n_threads
        As in `softgrad.torch.linear_cross_entropy`.

    Raises
    ------
    ValueError
        For a weight of another shape; when called, as `softgrad.torch.linear_cross_entropy`.

    Examples
    --------
    >>> import torch
    >>> from softgrad.torch import LinearCrossEntropyLoss
    >>> loss = LinearCrossEntropyLoss(16, 1000)
    >>> loss(torch.randn(8, 16), torch.randint(1000, (8,))).shape
    torch.Size([])

    References
    ----------
    Wijmans et al., "Cut your losses in large-vocabulary language models", 2024, section 4 (never making the logits).
    """

    def __init__(
        self,
        in_features: int,
        num_classes: int,
        *,
        out_features: tuple[int, ...] = (),
        bias: bool = False,
        device: Any = None,
        dtype: Any = None,
        reduction: str = "mean",
        weight: Tensor | None = None,
        ignore_index: int | None = None,
        label_smoothing: float | Tensor = 0.0,
        options: Any = None,
        smooth_finite_only: bool = False,
        logit_scale: float | Tensor = 1.0,
        softcap: float | Tensor | None = None,
        temperature: float | Tensor = 1.0,
        z_loss: float | Tensor = 0.0,
        max_memory: int | None = None,
        accumulate_dtype: torch.dtype | None = None,
        impl: str | None = None,
        n_threads: int | None = None,
    ) -> None:
        super().__init__()
        if weight is not None and tuple(weight.shape) != (num_classes,):
            raise ValueError(f"weight has shape {tuple(weight.shape)}; one weight for each class is {(num_classes,)}")
        self.num_classes, self.out_features = num_classes, tuple(out_features)
        self.linear = torch.nn.Linear(in_features, math.prod(out_features, start=num_classes), bias, device, dtype)
        self.register_buffer("weight", weight)
        self.weight: Tensor | None
        self.reduction, self.ignore_index, self.label_smoothing = reduction, ignore_index, label_smoothing
        self.smooth_finite_only, self.softcap, self.z_loss = smooth_finite_only, softcap, z_loss
        self.logit_scale, self.temperature = logit_scale, temperature
        self.max_memory, self.accumulate_dtype = max_memory, accumulate_dtype
        self.options, self.impl, self.n_threads = options, impl, n_threads

    def forward(self, input: Tensor, target: Any, sample_weight: Tensor | None = None) -> Tensor:  # noqa: A002
        """Compute the loss; ``sample_weight`` has one number a row."""
        heads: Tensor = self.linear.weight
        bias: Tensor | None = self.linear.bias
        if self.out_features:
            heads = heads.reshape(self.num_classes, *self.out_features, -1)
            bias = None if bias is None else bias.reshape(self.num_classes, *self.out_features)
        return linear_cross_entropy(
            input,
            heads,
            target,
            linear_bias=bias,
            weight=self.weight,
            ignore_index=self.ignore_index,
            reduction=self.reduction,
            label_smoothing=self.label_smoothing,
            sample_weight=sample_weight,
            smooth_finite_only=self.smooth_finite_only,
            logit_scale=self.logit_scale,
            softcap=self.softcap,
            temperature=self.temperature,
            z_loss=self.z_loss,
            max_memory=self.max_memory,
            accumulate_dtype=self.accumulate_dtype,
            options=self.options,
            impl=self.impl,
            n_threads=self.n_threads,
        )

    def extra_repr(self) -> str:
        """Return what the printed module says."""
        return (
            f"num_classes={self.num_classes}, out_features={self.out_features}, reduction={self.reduction!r}, "
            f"ignore_index={self.ignore_index}, label_smoothing={self.label_smoothing}"
        )
