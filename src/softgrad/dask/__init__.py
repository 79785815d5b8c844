"""Softmax regression on Dask: blocks of rows on any number of workers, and sums of what they make of them."""

from __future__ import annotations

from softgrad.dask._estimator import SoftmaxRegression

__all__ = ["SoftmaxRegression"]
