"""Predictions and scores of a linear softmax model."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.utils.validation import check_is_fitted

from softgrad._core.blas import refuse_after_broken_fork
from softgrad.loss import log_softmax, softmax
from softgrad.sklearn._callbacks import CallbackSupportMixin
from softgrad.sklearn._scoring import soft_log_loss
from softgrad.sklearn._targets import as_array, column_names, soft_values
from softgrad.sklearn._weights import read_offset, row_weights

__all__ = ["SoftmaxClassifier"]


class SoftmaxClassifier(CallbackSupportMixin, ClassifierMixin, BaseEstimator):  # type: ignore[misc]
    """Predictions of a linear softmax model with ``coef_``, ``intercept_`` and ``classes_``."""

    def decision_function(self, X: Any, offset: Any = None) -> NDArray[Any]:
        """Logits: (n_rows, n_classes), or (n_rows,) for two classes, then of the second against the first.

        Parameters
        ----------
        X : array or sparse matrix (n_rows, n_features), or a source of blocks
            The rows.
        offset : array (n_rows, n_classes), or (n_rows,) for two classes, optional
            Added to the logits, as in ``fit``.

        Returns
        -------
        array
        """
        check_is_fitted(self)
        from softgrad.sklearn._fit_data import rows_for_prediction  # regression/ is not needed to import estimators

        x = rows_for_prediction(self, X)
        refuse_after_broken_fork()
        if hasattr(x, "n_rows"):  # RowBlocks
            logits = np.concatenate([self._products(block) for block in x])
        else:
            logits = self._products(x)
        logits += self.intercept_
        offset = read_offset(offset, len(logits), len(self.classes_))
        if logits.shape[1] == 1:
            logits = logits[:, 0]
            if offset is not None and offset.ndim == 2:
                offset = offset[:, 1] - offset[:, 0]
        if offset is not None:
            logits += offset.astype(logits.dtype, copy=False)
        return logits

    def predict(self, X: Any, offset: Any = None) -> NDArray[Any]:
        """The most probable class of each row.

        Parameters
        ----------
        X : array or sparse matrix (n_rows, n_features), or a source of blocks
            The rows.
        offset : array (n_rows, n_classes), or (n_rows,) for two classes, optional
            Added to the logits, as in ``fit``.

        Returns
        -------
        array (n_rows,)
        """
        logits = self.decision_function(X, offset)
        chosen = (logits > 0).astype(np.intp) if logits.ndim == 1 else logits.argmax(axis=1)
        labels: NDArray[Any] = self.classes_[chosen]
        return labels

    def predict_proba(self, X: Any, offset: Any = None) -> NDArray[Any]:
        """The probability of each class, in the order of ``classes_``.

        Parameters
        ----------
        X : array or sparse matrix (n_rows, n_features), or a source of blocks
            The rows.
        offset : array (n_rows, n_classes), or (n_rows,) for two classes, optional
            Added to the logits, as in ``fit``.

        Returns
        -------
        array (n_rows, n_classes)
        """
        return softmax(self._all_logits(X, offset), n_threads=self.n_threads)

    def predict_log_proba(self, X: Any, offset: Any = None) -> NDArray[Any]:
        """The log-probability of each class: a log-softmax, finite where the probability itself is 0 in floating point.

        Parameters
        ----------
        X : array or sparse matrix (n_rows, n_features), or a source of blocks
            The rows.
        offset : array (n_rows, n_classes), or (n_rows,) for two classes, optional
            Added to the logits, as in ``fit``.

        Returns
        -------
        array (n_rows, n_classes)
        """
        return log_softmax(self._all_logits(X, offset), n_threads=self.n_threads)

    def score(self, X: Any, y: Any, sample_weight: Any = None, offset: Any = None) -> float:
        """Accuracy for labels; for soft labels the log-loss, negated: larger is better.

        The log-loss of soft labels is ``−Σ_i a_i Σ_k y_ik log p_ik / Σ_i a_i Σ_k y_ik``.

        Parameters
        ----------
        X : array or sparse matrix (n_rows, n_features), or a source of blocks
            The rows.
        y : array (n_rows,), or (n_rows, n_classes) of floats
            Labels, or soft labels with the columns of the fit.
        sample_weight : array (n_rows,), optional
            Row weights a_i, not negative.
        offset : array (n_rows, n_classes), or (n_rows,) for two classes, optional
            Added to the logits, as in ``fit``.

        Returns
        -------
        float
        """
        values = as_array(y)
        if values.ndim == 1:
            from sklearn.metrics import accuracy_score  # 40 ms of the import that fits and predictions do not need

            return float(accuracy_score(values, self.predict(X, offset), sample_weight=sample_weight))
        logs = self.predict_log_proba(X, offset)
        return -soft_log_loss(logs, self._same_columns(values, y), row_weights(sample_weight, len(logs)))

    def _products(self, x: Any) -> NDArray[Any]:
        """``x @ coef_.T`` as an array, of dense or sparse factors."""
        products = x @ self.coef_.T
        return products.toarray() if hasattr(products, "toarray") else np.asarray(products)

    def _same_columns(self, values: NDArray[Any], y: Any) -> NDArray[Any]:
        """Soft labels whose columns are the classes of the fit."""
        columns = column_names(y)
        if values.shape[1] != len(self.classes_) or (columns is not None and columns != self.classes_.tolist()):
            has = f"{values.shape[1]} columns" if columns is None else f"the columns {columns}"
            raise ValueError(f"y has {has}, but the classes of the fit are {self.classes_.tolist()}")
        return soft_values(values)

    def _all_logits(self, X: Any, offset: Any) -> NDArray[Any]:
        """One logit a class; the first of two classes has logit 0."""
        logits = self.decision_function(X, offset)
        return logits if logits.ndim == 2 else np.stack([np.zeros_like(logits), logits], axis=1)

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.sparse = True
        return tags
