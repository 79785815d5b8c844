"""skops, imported in a fifth of its time.

When ``skops.io`` is imported it lists every estimator of scikit-learn, so as to trust them all; for that it imports
the whole of scikit-learn, and PyTorch where that is installed: 4 s of every command.  Here that list is empty, and the
types that a model of ``softgrad fit`` is made of are named one by one instead.  A process that had imported skops
before keeps its list.
"""

from __future__ import annotations

import importlib
import sys
from functools import cache
from typing import Any

__all__ = ["TRUSTED", "skops_io"]

# Besides Python's and NumPy's own types, which skops trusts.
TRUSTED = [
    "numpy.dtype",
    "scipy.sparse._csr.csr_matrix",
    "sklearn.compose._column_transformer.ColumnTransformer",
    "sklearn.feature_extraction.text.TfidfTransformer",
    "sklearn.feature_extraction.text.TfidfVectorizer",
    "sklearn.impute._base.MissingIndicator",
    "sklearn.impute._base.SimpleImputer",
    "sklearn.pipeline.Pipeline",
    "sklearn.preprocessing._data.StandardScaler",
    "sklearn.preprocessing._encoders.OneHotEncoder",
    "softgrad.sklearn.SoftmaxRegression",
]


@cache
def skops_io() -> Any:
    """The module ``skops.io``."""
    if "skops.io" not in sys.modules:
        import sklearn.utils

        listed = sklearn.utils.all_estimators
        sklearn.utils.all_estimators = lambda *_, **__: []
        try:
            return importlib.import_module("skops.io")
        finally:
            sklearn.utils.all_estimators = listed
    return sys.modules["skops.io"]
