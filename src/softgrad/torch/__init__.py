"""The head for PyTorch: drop-in losses for tensors, a linear head without its logits, and by-products."""

from softgrad._core.call import PredictionStats
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
