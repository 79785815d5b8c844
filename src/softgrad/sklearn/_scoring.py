"""Scores of held-out rows from their logits.

Accuracy and log-loss are computed at once, any other scorer of scikit-learn through a classifier that has the logits.
"""

from __future__ import annotations

from collections.abc import Callable
from inspect import signature
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from sklearn.base import BaseEstimator, ClassifierMixin

from softgrad.loss import log_softmax, softmax

if TYPE_CHECKING:
    from softgrad.sklearn._fit_data import FitData

__all__ = ["fold_score", "scorer_of", "soft_log_loss"]

# The log-probability of a class that the rows of a fold did not have: that of the smallest step of float64, as in
# scikit-learn's log-loss. Minus infinity would make all C equal.
_UNSEEN = float(np.log(np.finfo(np.float64).eps))

Score = Callable[[NDArray[Any], NDArray[np.intp]], float]


def fold_score(scoring: Any, data: FitData, parameters: dict[str, Any]) -> Score:
    """A function of the logits of held-out rows and their numbers; ``parameters`` are those of the scorer."""
    soft = data.targets.soft
    name = ("neg_log_loss" if soft else "accuracy") if scoring is None else scoring
    weights = parameters.get("sample_weight")
    if name == "neg_log_loss" and parameters.keys() <= {"sample_weight"}:
        return _neg_log_loss(data, weights)
    if soft and not callable(name):
        raise ValueError(f'scoring={name!r} compares labels, but y holds soft labels: use "neg_log_loss" or a callable')
    if name == "accuracy" and parameters.keys() <= {"sample_weight"}:
        return _accuracy(data, weights)
    return _scorer(scorer_of(name, None if soft else data.targets.classes), data, parameters)


def scorer_of(scoring: Any, classes: NDArray[Any] | None) -> Callable[..., Any]:
    """The scorer of a name or callable, told the classes where its metric takes them: some rows may lack a class."""
    from sklearn.metrics import get_scorer, make_scorer

    scorer = get_scorer(scoring)
    metric = getattr(scorer, "_score_func", None)  # of a scorer of scikit-learn
    if classes is None or metric is None:
        return scorer  # type: ignore[no-any-return]
    taken, given = signature(metric).parameters, scorer._kwargs
    told: dict[str, Any] = {}
    if "labels" in taken and "labels" not in given:
        told["labels"] = classes
    # Of a metric with an average, pos_label counts for the average of two classes only.
    binary = len(classes) == 2 and given.get("average", "binary") == "binary"
    if told and binary and "pos_label" in taken and "pos_label" not in given:
        told["pos_label"] = classes[1]
    if not told:
        return scorer  # type: ignore[no-any-return]
    return make_scorer(  # type: ignore[no-any-return]
        metric, response_method=scorer._response_method, greater_is_better=scorer._sign > 0, **given, **told
    )


def soft_log_loss(logs: NDArray[Any], values: NDArray[Any], weights: NDArray[np.float64] | None) -> float:
    """−Σ_i a_i Σ_k y_ik log p_ik / Σ_i a_i Σ_k y_ik."""
    loss = -np.einsum("ij,ij->i", values, logs, dtype=np.float64)
    total = values.sum(axis=1, dtype=np.float64)
    if weights is not None:
        loss, total = weights * loss, weights * total
    return float(loss.sum() / total.sum())


def _accuracy(data: FitData, weights: NDArray[np.float64] | None) -> Score:
    def score(logits: NDArray[Any], rows: NDArray[np.intp]) -> float:
        right = logits.argmax(axis=1) == data.targets.values[rows]
        return float(np.average(right, weights=None if weights is None else weights[rows]))

    return score


def _neg_log_loss(data: FitData, weights: NDArray[np.float64] | None) -> Score:
    def score(logits: NDArray[Any], rows: NDArray[np.intp]) -> float:
        logs = log_softmax(logits)
        logs[np.isneginf(logits)] = _UNSEEN
        values = data.targets.values[rows]
        of_rows = None if weights is None else weights[rows]
        if data.targets.soft:
            return -soft_log_loss(logs, values, of_rows)
        return float(np.average(logs[np.arange(len(rows)), values], weights=of_rows))

    return score


def _scorer(scorer: Callable[..., Any], data: FitData, parameters: dict[str, Any]) -> Score:
    """Any scorer: the model it gets answers for the held-out rows, and only for those."""
    needs_rows = not hasattr(scorer, "_score_func")  # a scorer of scikit-learn hands X on to the model unread
    if needs_rows and not data.in_memory:
        raise ValueError(
            f"scoring={scorer!r} is a callable that may read X, which is not in memory: name a scorer, or wrap its "
            "metric in sklearn.metrics.make_scorer"
        )

    def score(logits: NDArray[Any], rows: NDArray[np.intp]) -> float:
        given = {name: _of_rows(value, rows, data.n_rows) for name, value in parameters.items()}
        held_out = data.x[rows] if needs_rows else rows.reshape(-1, 1)
        model = HeldOutModel(logits, data.targets.classes)
        return float(scorer(model, held_out, data.targets.take(rows), **given))

    return score


def _of_rows(value: Any, rows: NDArray[np.intp], n_rows: int) -> Any:
    return value[rows] if isinstance(value, np.ndarray) and value.shape[:1] == (n_rows,) else value


class HeldOutModel(ClassifierMixin, BaseEstimator):  # type: ignore[misc]
    """A classifier with the logits of the held-out rows, in the place of the fitted model."""

    def __init__(self, logits: NDArray[Any], classes: NDArray[Any]) -> None:
        # The logit of a class that the fold lacks is minus infinity, which metrics refuse.
        self.logits: NDArray[Any] = np.maximum(logits, np.finfo(logits.dtype).min / 4)
        self.classes = classes
        self.classes_ = classes

    def decision_function(self, X: Any) -> NDArray[Any]:
        """Logits of the held-out rows; of two classes, of the second against the first."""
        logits = self._of(X)
        return logits if logits.shape[1] != 2 else np.asarray(logits[:, 1] - logits[:, 0])

    def predict(self, X: Any) -> NDArray[Any]:
        """Labels of the held-out rows."""
        return np.asarray(self.classes_[self._of(X).argmax(axis=1)])

    def predict_proba(self, X: Any) -> NDArray[Any]:
        """Probabilities of the held-out rows."""
        return softmax(self._of(X))

    def predict_log_proba(self, X: Any) -> NDArray[Any]:
        """Log-probabilities of the held-out rows."""
        return log_softmax(self._of(X))

    def _of(self, X: Any) -> NDArray[Any]:
        n_rows = X.shape[0] if hasattr(X, "shape") else len(X)
        if n_rows != len(self.logits):
            raise ValueError(
                f"the scorer asked for {n_rows} rows, but {len(self.logits)} are held out: a scorer that changes the "
                "rows needs GridSearchCV"
            )
        return self.logits
