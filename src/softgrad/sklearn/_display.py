"""SoftmaxPathDisplay: a path over C, drawn in the manner of scikit-learn's displays.

matplotlib is imported by ``plot``.
"""

from __future__ import annotations

from typing import Any, Self

import numpy as np
from numpy.typing import ArrayLike
from sklearn.utils.validation import check_is_fitted

__all__ = ["SoftmaxPathDisplay"]

_MOST_LABELS = 12  # a longer legend hides the plot


class SoftmaxPathDisplay:
    """Coefficients and held-out scores along the values of C.

    Better made by :meth:`from_estimator` or :meth:`from_path`.

    Parameters
    ----------
    Cs : array (n_Cs,)
        The values of C.
    coefs : array (n_Cs, 1 or n_classes, n_features), optional
        Coefficients at each.
    scores : array (n_folds, n_Cs), optional
        Held-out scores; NaN where there is none.
    C : float, optional
        The chosen C, marked by a line.
    classes : array (n_classes,), optional
        Names of the classes.
    feature_names : sequence of str, optional
        Names of the features.
    score_name : str, optional
        What the scores are.

    Attributes
    ----------
    ax_ : matplotlib Axes
        Where it was drawn.
    figure_ : matplotlib Figure
        The figure of the axes.
    lines_ : list of matplotlib Line2D
        The coefficients, or the mean score.

    Examples
    --------
    >>> from sklearn.datasets import load_iris
    >>> from softgrad.sklearn import SoftmaxPathDisplay, SoftmaxRegressionCV
    >>> X, y = load_iris(return_X_y=True)
    >>> model = SoftmaxRegressionCV(scoring="neg_log_loss").fit(X, y)
    >>> display = SoftmaxPathDisplay.from_estimator(model)
    >>> display.ax_.get_ylabel()
    'neg_log_loss'
    """

    __module__ = "softgrad.sklearn"  # its public name

    def __init__(
        self,
        *,
        Cs: ArrayLike,
        coefs: ArrayLike | None = None,
        scores: ArrayLike | None = None,
        C: float | None = None,
        classes: ArrayLike | None = None,
        feature_names: Any = None,
        score_name: str | None = None,
    ) -> None:
        self.Cs = Cs
        self.coefs = coefs
        self.scores = scores
        self.C = C
        self.classes = classes
        self.feature_names = feature_names
        self.score_name = score_name

    @classmethod
    def from_estimator(
        cls, estimator: Any, *, kind: str = "validation", label: Any = None, ax: Any = None, **line_options: Any
    ) -> Self:
        """Draw the path of a fitted :class:`SoftmaxRegressionCV`.

        Parameters
        ----------
        estimator : SoftmaxRegressionCV
            The fitted estimator.
        kind, label, ax, **line_options
            As in :meth:`plot`.

        Returns
        -------
        SoftmaxPathDisplay
        """
        check_is_fitted(estimator, ["Cs_", "path_coefs_", "scores_"])
        scoring = estimator.scoring
        display = cls(
            Cs=estimator.Cs_,
            coefs=estimator.path_coefs_,
            scores=estimator.scores_,
            C=estimator.C_,
            classes=estimator.classes_,
            feature_names=getattr(estimator, "feature_names_in_", None),
            score_name=scoring if isinstance(scoring, str) else "score",
        )
        return display.plot(ax, kind=kind, label=label, **line_options)

    @classmethod
    def from_path(
        cls,
        path: Any,
        *,
        classes: ArrayLike | None = None,
        feature_names: Any = None,
        label: Any = None,
        ax: Any = None,
        **line_options: Any,
    ) -> Self:
        """Draw the coefficients of a path.

        Parameters
        ----------
        path : PathResult
            What :func:`softgrad.regression.softmax_path` returned.
        classes : array (n_classes,), optional
            Names of the classes.
        feature_names : sequence of str, optional
            Names of the features.
        label, ax, **line_options
            As in :meth:`plot`.

        Returns
        -------
        SoftmaxPathDisplay
        """
        display = cls(Cs=path.Cs, coefs=path.coefs, classes=classes, feature_names=feature_names)
        return display.plot(ax, kind="coefficients", label=label, **line_options)

    def plot(self, ax: Any = None, *, kind: str = "coefficients", label: Any = None, **line_options: Any) -> Self:
        """Draw.

        Parameters
        ----------
        ax : matplotlib Axes, optional
            Where; new ones if not given.
        kind : {"coefficients", "validation"}, default="coefficients"
            One line for each feature, or the mean score with a band of one standard error of the mean over the folds.
        label : label of a class, optional
            Of the coefficients, draw those of this class; if not given, those of two classes, or the norm over all
            classes of each feature's.
        **line_options
            Passed to matplotlib's ``Axes.plot``.

        Returns
        -------
        self

        Raises
        ------
        ImportError
            Without matplotlib.
        ValueError
            For another kind, for one whose numbers the display does not have, and for an unknown label.
        """
        if kind not in ("coefficients", "validation"):
            raise ValueError(f'kind must be "coefficients" or "validation", not {kind!r}')
        needed = "coefs" if kind == "coefficients" else "scores"
        if getattr(self, needed) is None:
            raise ValueError(f"kind={kind!r} needs {needed}=, which this display was made without")
        try:
            import matplotlib.pyplot as plt
        except ImportError as error:
            raise ImportError(
                "SoftmaxPathDisplay draws with matplotlib, which is not installed: pip install 'softgrad[plot]'"
            ) from error
        if ax is None:
            _, ax = plt.subplots()
        draw = self._draw_coefficients if kind == "coefficients" else self._draw_scores
        self.lines_ = draw(ax, label, line_options)
        if self.C is not None:
            ax.axvline(self.C, color="0.5", linestyle="--", linewidth=1)
        ax.set(xscale="log", xlabel="C")
        self.ax_, self.figure_ = ax, ax.figure
        return self

    def _draw_coefficients(self, ax: Any, label: Any, options: dict[str, Any]) -> list[Any]:
        coefs = np.asarray(self.coefs)
        if coefs.shape[1] == 1:
            values, name = coefs[:, 0], "coefficient"
            if label is not None:
                values = values if self._number(label, 2) else -values
                name = f"coefficient of {label}"
        elif label is None:
            values, name = np.linalg.norm(coefs, axis=1), "norm of the coefficients over the classes"
        else:
            values, name = coefs[:, self._number(label, coefs.shape[1])], f"coefficient of {label}"
        lines: list[Any] = ax.plot(np.asarray(self.Cs), values, **options)
        ax.set_ylabel(name)
        if self.feature_names is not None and len(lines) <= _MOST_LABELS:
            for line, feature in zip(lines, self.feature_names, strict=True):
                line.set_label(str(feature))
            ax.legend()
        return lines

    def _draw_scores(self, ax: Any, label: Any, options: dict[str, Any]) -> list[Any]:
        if label is not None:
            raise ValueError(f'label={label!r} selects coefficients; kind="validation" has none')
        scores, Cs = np.asarray(self.scores, dtype=np.float64), np.asarray(self.Cs)
        there = ~np.isnan(scores).any(axis=0)
        mean = scores[:, there].mean(axis=0)
        lines: list[Any] = ax.plot(Cs[there], mean, **{"marker": "o", **options})
        if len(scores) > 1:
            error = scores[:, there].std(axis=0, ddof=1) / np.sqrt(len(scores))
            ax.fill_between(Cs[there], mean - error, mean + error, alpha=0.2, color=lines[0].get_color())
        ax.set_ylabel(self.score_name or "score")
        return lines

    def _number(self, label: Any, n_classes: int) -> int:
        known = list(range(n_classes)) if self.classes is None else np.asarray(self.classes).tolist()
        if label not in known:
            raise ValueError(f"label={label!r} is not a class of this path: {known}")
        return known.index(label)
