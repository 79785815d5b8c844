"""X, y, weights and offset of one fit: validated, as :func:`softgrad.regression.fit` takes them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import sparse
from sklearn import get_config
from sklearn.utils.validation import column_or_1d, validate_data

from softgrad.regression.rows._arrow import is_dataset, read_column
from softgrad.regression.rows._blocks import check_finite
from softgrad.regression.rows._sources import RowBlocks, is_source
from softgrad.sklearn._targets import FitTargets, read_targets
from softgrad.sklearn._weights import class_weights, read_offset, row_weights

__all__ = ["FitData", "read_data", "rows_for_prediction"]


@dataclass(frozen=True)
class FitData:
    """Validated arguments of a fit.

    Attributes
    ----------
    x : array, CSR matrix or RowBlocks
        The rows.
    targets : FitTargets
        Their labels.
    sample_weight, class_weight, offset : arrays or None
        As the fit takes them.
    """

    x: Any
    targets: FitTargets
    sample_weight: NDArray[np.float64] | None
    class_weight: NDArray[np.float64] | None
    offset: NDArray[Any] | None

    @property
    def n_classes(self) -> int:
        """Number of classes."""
        return len(self.targets.classes)

    @property
    def n_rows(self) -> int:
        """Number of rows."""
        return len(self.targets.values)

    @property
    def in_memory(self) -> bool:
        """Whether ``x`` can be indexed by rows."""
        return not isinstance(self.x, RowBlocks)


def read_data(
    estimator: Any, X: Any, y: Any, sample_weight: Any, offset: Any = None, classes: Any = None, *, soft: bool = True
) -> FitData:
    """Validate the arguments of ``fit``; set ``n_features_in_`` and ``feature_names_in_`` of the estimator.

    Soft labels are refused unless ``soft`` is set.
    """
    if y is None:
        raise ValueError(
            f"This {type(estimator).__name__} estimator requires y to be passed, but the target y is None."
        )
    if is_source(X):
        x, y, sample_weight, offset = _read_source(X, y, sample_weight, offset, estimator.max_memory)
        _remember_features(estimator, x)
        n_rows = x.n_rows
    else:
        x = _check_rows(estimator, X, reset=True)
        estimator._columns = None
        n_rows = x.shape[0]
    for name, given in (("y", y), ("sample_weight", sample_weight), ("offset", offset)):
        if isinstance(given, str):
            raise ValueError(
                f"{name}={given!r} names a column, which needs a pyarrow Dataset as X, not {type(X).__name__}"
            )
    if not soft:
        y = column_or_1d(y, warn=True)
    weights = row_weights(sample_weight, n_rows)
    targets = read_targets(y, n_rows, weights=weights, classes=classes, estimator=type(estimator).__name__)
    offset = read_offset(offset, n_rows, len(targets.classes))
    return FitData(x, targets, weights, class_weights(estimator.class_weight, targets), offset)


def _check_rows(estimator: Any, X: Any, *, reset: bool) -> Any:
    """X as a C- or Fortran-ordered array or CSR matrix of float32 or float64, finite, where it lies if it can be."""
    x = validate_data(
        estimator, X, reset=reset, accept_sparse="csr", dtype=(np.float64, np.float32), ensure_all_finite=False
    )
    if not sparse.issparse(x) and not (x.flags.c_contiguous or x.flags.f_contiguous):
        x = np.ascontiguousarray(x)
    if not get_config()["assume_finite"]:
        check_finite(x, getattr(estimator, "feature_names_in_", None))
    return x


def rows_for_prediction(estimator: Any, X: Any) -> Any:
    """X of a fitted estimator: an array, a CSR matrix or RowBlocks with the features of the fit."""
    if not is_source(X):
        return _check_rows(estimator, X, reset=False)
    names = getattr(estimator, "feature_names_in_", None)
    names = None if names is None else names.tolist()
    x = RowBlocks.of(X, estimator.max_memory, columns=(names or estimator._columns) if is_dataset(X) else None)
    if x.n_features != estimator.n_features_in_:
        raise ValueError(
            f"X has {x.n_features} features, but {type(estimator).__name__} is expecting {estimator.n_features_in_} "
            "features as input"
        )
    if names is not None and x.names is not None and x.names != names:
        raise ValueError(f"the feature names of X are {x.names}, but those of the fit are {names}")
    return x


def _read_source(X: Any, y: Any, sample_weight: Any, offset: Any, max_memory: int | None) -> tuple[Any, Any, Any, Any]:
    """RowBlocks, and what of the rest is a column of the dataset; its other columns are the features."""
    if not is_dataset(X):
        return RowBlocks.of(X, max_memory), y, sample_weight, offset
    arguments = {"y": y, "sample_weight": sample_weight, "offset": offset}
    taken = {name: given for name, given in arguments.items() if isinstance(given, str)}
    for name, given in taken.items():
        if given not in X.schema.names:
            raise ValueError(f"{name}={given!r} is not a column of the dataset; it has {X.schema.names}")
    x = RowBlocks.of(X, max_memory, columns=[name for name in X.schema.names if name not in taken.values()])
    arguments |= {name: read_column(X, given) for name, given in taken.items()}
    return x, arguments["y"], arguments["sample_weight"], arguments["offset"]


def _remember_features(estimator: Any, x: RowBlocks) -> None:
    estimator.n_features_in_ = x.n_features
    estimator._columns = x.columns  # of a dataset, to find the same ones in another
    if x.names is not None:
        estimator.feature_names_in_ = np.asarray(x.names, dtype=object)
    elif hasattr(estimator, "feature_names_in_"):
        del estimator.feature_names_in_
