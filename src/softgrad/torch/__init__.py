"""The head for PyTorch: drop-in losses for tensors, a linear head without its logits, and by-products."""

from typing import Any as _Any

from softgrad._core.call import PredictionStats
from softgrad.torch._call import FOREIGN as _FOREIGN
from softgrad.torch._products import report as products
from softgrad.torch.linear import linear_cross_entropy
from softgrad.torch.loss import cross_entropy
from softgrad.torch.modules import CrossEntropyLoss, LinearCrossEntropyLoss
from softgrad.torch.statistics import linear_prediction_stats, prediction_stats
from softgrad.torch.transformers import patch_transformers, unpatch_transformers

__all__ = [
    "CrossEntropyLoss",
    "LinearCrossEntropyLoss",
    "PredictionStats",
    "cross_entropy",
    "linear_cross_entropy",
    "linear_prediction_stats",
    "patch_transformers",
    "prediction_stats",
    "products",
    "unpatch_transformers",
]


def _dtensors() -> _Any:  # when one comes: the import takes longer than a loss
    from softgrad.torch._ranks import dtensor

    return dtensor


_FOREIGN["DTensor"] = _dtensors
