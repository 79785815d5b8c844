"""The scikit-learn estimators: softmax regression at one C, at the best of many, and the path over C drawn."""

from __future__ import annotations

from softgrad.sklearn._cv import SoftmaxRegressionCV
from softgrad.sklearn._display import SoftmaxPathDisplay
from softgrad.sklearn._estimator import SoftmaxRegression

__all__ = ["SoftmaxPathDisplay", "SoftmaxRegression", "SoftmaxRegressionCV"]
