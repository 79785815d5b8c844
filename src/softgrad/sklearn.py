"""The scikit-learn estimators: softmax regression at one C, at the best of many, and the path over C drawn."""

from __future__ import annotations

from softgrad._sklearn.cv import SoftmaxRegressionCV
from softgrad._sklearn.display import SoftmaxPathDisplay
from softgrad._sklearn.estimator import SoftmaxRegression

__all__ = ["SoftmaxPathDisplay", "SoftmaxRegression", "SoftmaxRegressionCV"]
