"""Rules of the parameters, checked at fit as scikit-learn does."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import cache
from numbers import Integral, Real
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn import get_config

__all__ = ["Rules", "check_parameters", "check_routed", "grid", "is_integer", "is_real"]


Rules = dict[str, tuple[Callable[[Any], bool], str]]


def check_parameters(estimator: Any, rules: Rules | None = None) -> None:
    """Refuse the first parameter of the estimator that breaks its rule, one of ``rules`` or of softgrad's own."""
    rules = _RULES if rules is None else _RULES | rules
    for name in _parameter_names(type(estimator)):  # type: ignore[arg-type]
        rule, value = rules.get(name), getattr(estimator, name)
        if rule is not None and not rule[0](value):
            raise ValueError(f"{name} must be {rule[1]}, not {value!r}")


@cache
def _parameter_names(kind: Any) -> list[str]:
    names: list[str] = kind._get_param_names()
    return names


def check_routed(params: dict[str, Any], method: str) -> None:
    """Refuse metadata that nothing passes on."""
    if params and not get_config()["enable_metadata_routing"]:
        raise ValueError(
            f"{method} got {next(iter(params))!r}, which is only supported if enable_metadata_routing=True "
            "is set with sklearn.set_config"
        )


def grid(Cs: Any) -> NDArray[np.float64]:
    """The values of C, ascending, each once; an integer is a number of values from 1e-4 to 1e4."""
    if is_integer(Cs) and Cs >= 1:
        return np.logspace(-4, 4, int(Cs))
    wanted = "Cs must be a positive number of values, or positive values (inf for no penalty)"
    if not isinstance(Cs, Iterable) or isinstance(Cs, str):
        raise ValueError(f"{wanted}, not {Cs!r}")
    values = list(Cs)
    bad = [value for value in values if not (is_real(value) and value > 0)]
    if bad or not values:
        raise ValueError(f"{wanted}, not {bad[0] if bad else values!r}")
    return np.unique(np.array(values, dtype=np.float64))


def is_real(value: Any) -> bool:
    """Whether a value is a real number, and no boolean."""
    return isinstance(value, Real) and not isinstance(value, (bool, np.bool_))


def is_integer(value: Any) -> bool:
    """Whether a value is an integer, and no boolean."""
    return isinstance(value, Integral) and not isinstance(value, (bool, np.bool_))


def is_count(value: Any) -> bool:
    """Whether a value is an integer of at least 1."""
    return is_integer(value) and value >= 1


def _is_class_weight(value: Any) -> bool:
    return value is None or isinstance(value, dict) or (isinstance(value, str) and value == "balanced")


_RULES: Rules = {
    "C": (lambda v: is_real(v) and v > 0, "a positive number (inf for no penalty)"),
    "class_weight": (_is_class_weight, 'None, a dict of label and weight, or "balanced"'),
    "label_smoothing": (lambda v: is_real(v) and 0 <= v <= 1, "in [0, 1]"),
    "standardize": (lambda v: isinstance(v, bool | np.bool_), "True or False"),
    "solver": (lambda v: isinstance(v, str), 'the name of a solver, or "auto"'),
    "tol": (lambda v: is_real(v) and 0 < v < np.inf, "a positive number"),
    "max_iter": (is_count, "an integer of at least 1"),
    "max_memory": (lambda v: v is None or is_count(v), "None or a positive number of bytes"),
    "early_stop": (lambda v: v is None or is_count(v), "None or a number of values of C, at least 1"),
    "n_threads": (lambda v: v is None or is_count(v), "None or an integer of at least 1"),
}
