"""The scikit-learn estimators: softmax and logistic regression at one C, at the best of many, and the path drawn."""

from __future__ import annotations

from softgrad.sklearn._cv import SoftmaxRegressionCV
from softgrad.sklearn._display import SoftmaxPathDisplay
from softgrad.sklearn._estimator import SoftmaxRegression
from softgrad.sklearn._logistic import LogisticRegression
from softgrad.sklearn._logistic_cv import LogisticRegressionCV

__all__ = [
    "LogisticRegression",
    "LogisticRegressionCV",
    "SoftmaxPathDisplay",
    "SoftmaxRegression",
    "SoftmaxRegressionCV",
]
