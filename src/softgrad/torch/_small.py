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
from softgrad.torch._batch import STORAGE
from softgrad.torch._call import Call

MOST_BYTES = 1 << 19
LABELS = {torch.int64: (8, True), torch.int32: (4, True), torch.int16: (2, True), torch.int8: (1, True)}


def loss_and_gradient(tensors: Sequence[Any], call: Call, wanted: bool) -> tuple[Tensor, Tensor | None] | None:
    """The loss and its gradient for an upstream of one, or None where the batch is not of the simple kind."""
    logits, target, values, weight, sample_weight = tensors
    storage, kind = STORAGE.get(logits.dtype), LABELS.get(target.dtype)
    if storage is None or kind is None or values is not None or weight is not None or sample_weight is not None:
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
        logits.data_ptr(), rows, cols, storage, target.data_ptr(), *kind, options.ignore_index,
        options.label_smoothing, options.smooth_finite_only, options.logit_scale, options.softcap or 0.0,
        options.temperature, options.z_loss, options.reduction == "mean",
        0 if gradient is None else gradient.data_ptr(),
    )  # fmt: skip
    if bad >= 0:
        return None
    return torch.scalar_tensor(total, dtype=call.dtype), gradient
