"""Small batches of logits with labels: one call into the extension, which makes the gradient with the loss.

Arrays, their checks and a second call for the gradient cost several times what the kernel does on a few thousand
logits.  Anything out of the ordinary, an error included, is left to `_batch.Batch`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from softgrad._core import backend, fallback
from softgrad.torch._batch import STORAGE, array_of
from softgrad.torch._call import Call

MOST_BYTES = 1 << 19
LABELS = frozenset({torch.int64, torch.int32, torch.int16, torch.int8})


def loss_and_gradient(tensors: Sequence[Any], call: Call, wanted: bool) -> tuple[Tensor, Tensor | None] | None:
    """The loss and its gradient for an upstream of one, or None where the batch is not of the simple kind."""
    logits, target, values, weight, sample_weight = tensors
    storage = STORAGE.get(logits.dtype)
    if storage is None or target.dtype not in LABELS:
        return None
    if values is not None or weight is not None or sample_weight is not None:
        return None
    shape, options, kernels = logits.shape, call.options, backend.kernels()
    if len(shape) != 2 or options.reduction == "none" or kernels is fallback or call.inplace:
        return None
    rows, cols = shape
    if not 0 < rows * cols * logits.element_size() <= MOST_BYTES:
        return None
    if not (logits.is_contiguous() and target.is_contiguous()) or logits.is_neg():
        return None
    gradient = torch.empty_like(logits) if wanted else None
    bad, total = kernels.small_batch(
        array_of(logits), storage, array_of(target), options.record(), options.reduction == "mean",
        None if gradient is None else array_of(gradient),
    )  # fmt: skip
    if bad >= 0:
        return None
    return torch.scalar_tensor(total, dtype=call.dtype), gradient
