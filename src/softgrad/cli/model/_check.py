"""The settings of a loaded pipeline: those that `softgrad fit` writes, and no others.

skops builds only trusted types, but it sets whatever attributes a file names: ``input="filename"`` would make a
vectorizer open the files that cells name, a ``token_pattern`` may take exponential time, ``n_jobs`` starts processes.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from sklearn.base import BaseEstimator
from sklearn.compose import ColumnTransformer
from sklearn.feature_extraction.text import TfidfTransformer, TfidfVectorizer
from sklearn.impute import MissingIndicator, SimpleImputer
from sklearn.pipeline import Pipeline
from sklearn.preprocessing import OneHotEncoder, StandardScaler

from softgrad.sklearn import SoftmaxRegression

DEEPEST = 12  # objects inside objects of a pipeline that softgrad writes: half as many

__all__ = ["unexpected_setting"]


def _is_nan(value: Any) -> bool:
    return isinstance(value, float) and value != value


def _is_count(value: Any) -> bool:
    return isinstance(value, int | np.integer) and bool(0 < value < 2**31)


def _is_steps(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(part, tuple) for part in value)


def _one_of(*values: Any) -> Callable[[Any], bool]:
    return lambda value: any(type(value) is type(other) and value == other for other in values)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and value > 0


def _is_class_weight(value: Any) -> bool:
    return value is None or value == "balanced" or isinstance(value, dict)


# Settings that differ from the class's default, by class; every other one has the default.
_SETTINGS: dict[type, dict[str, Callable[[Any], bool]]] = {
    Pipeline: {"steps": _is_steps},
    ColumnTransformer: {
        "transformers": _is_steps,
        "sparse_threshold": _one_of(0.0, 1.0),
        "verbose_feature_names_out": _one_of(False, True),
    },
    StandardScaler: {},
    SimpleImputer: {
        "missing_values": _is_nan,
        "add_indicator": _one_of(True),
        "keep_empty_features": _one_of(True),
        "strategy": _one_of("constant", "mean"),
        "fill_value": _one_of(0.0, None),
    },
    MissingIndicator: {"missing_values": _is_nan, "error_on_new": _one_of(False)},
    OneHotEncoder: {
        "handle_unknown": _one_of("infrequent_if_exist"),
        "min_frequency": _is_count,
        "sparse_output": _one_of(True, False),
        "dtype": lambda value: value is np.float64,
    },
    TfidfVectorizer: {
        "min_df": _is_count,
        "sublinear_tf": _one_of(True),
        "vocabulary": lambda value: isinstance(value, np.ndarray) and value.dtype.kind == "U",
        "dtype": lambda value: value is np.float64,
    },
    TfidfTransformer: {"sublinear_tf": _one_of(True)},
    SoftmaxRegression: {
        "C": _is_number,
        "tol": _is_number,
        "max_iter": _is_count,
        "fit_intercept": _one_of(True, False),
        "class_weight": _is_class_weight,
        "label_smoothing": lambda value: isinstance(value, int | float) and 0 <= value <= 1,
        "solver": _one_of("auto", "newton-cg", "newton", "lbfgs"),
        "max_memory": lambda value: value is None or _is_count(value) or isinstance(value, int),
        "n_threads": lambda value: value is None or _is_count(value),
    },
}


def unexpected_setting(pipeline: Any) -> str | None:
    """Return what a pipeline holds that `softgrad fit` does not write, in a few words; None if there is nothing."""
    for step in _estimators(pipeline, 0):
        kind = type(step)
        if kind not in _SETTINGS:
            return f"a {kind.__name__}"
        defaults = {name: p.default for name, p in inspect.signature(kind.__init__).parameters.items()}
        for name, value in vars(step).items():
            expected = _SETTINGS[kind].get(name)
            if expected is not None:
                fine = expected(value) or value is defaults[name]
            elif name in defaults:
                fine = type(value) is type(defaults[name]) and value == defaults[name]
            else:
                fine = not callable(getattr(kind, name, None))  # a fitted attribute must not stand for a method
            if not fine:
                return f"{kind.__name__}({name}={str(value)[:60]!r})"
    return None


def _estimators(value: Any, depth: int) -> Iterator[Any]:
    """Iterate over the estimators in an object, with all that are inside them."""
    if depth > DEEPEST:
        raise ValueError("its objects are nested too deeply")
    inside: Any = ()
    if isinstance(value, BaseEstimator):
        yield value
        inside = vars(value).values()
    elif isinstance(value, dict):
        inside = value.values()
    elif isinstance(value, list | tuple):
        inside = value
    elif isinstance(value, np.ndarray) and value.dtype == object:
        inside = value.ravel().tolist()
    for part in inside:
        if not isinstance(part, str | int | float | bool | None):
            yield from _estimators(part, depth + 1)
