"""The softmax + cross-entropy head: loss, the gradient ``S − y``, curvature, and the learning done with them."""

from softgrad._checker.check import check_gradient
from softgrad._checker.report import GradientReport
from softgrad._core.call import PredictionStats
from softgrad._info import info
from softgrad._version import __version__
from softgrad.derivation._explain import explain
from softgrad.linear import LinearGradients, linear_cross_entropy, linear_cross_entropy_with_grad
from softgrad.loss import (
    cross_entropy,
    cross_entropy_hvp,
    cross_entropy_with_grad,
    log_softmax,
    logsumexp,
    prediction_stats,
    softmax,
    softmax_jacobian,
    softmax_jvp,
)

__all__ = [
    "GradientReport",
    "LinearGradients",
    "PredictionStats",
    "__version__",
    "check_gradient",
    "cross_entropy",
    "cross_entropy_hvp",
    "cross_entropy_with_grad",
    "explain",
    "info",
    "linear_cross_entropy",
    "linear_cross_entropy_with_grad",
    "log_softmax",
    "logsumexp",
    "prediction_stats",
    "softmax",
    "softmax_jacobian",
    "softmax_jvp",
]
