"""What the commands find out, as data: columns, measurements, and the account of a fit that the report is made of."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

Float = NDArray[np.float64]

ROLES = ("numeric", "boolean", "categorical", "text", "date", "list")

__all__ = ["ROLES", "Column", "Confusion", "Evaluation", "Mistake", "RegularisationPath", "Reliability", "Training"]


@dataclass(frozen=True)
class Column:
    """One column of the data, and what is made of it.

    Attributes
    ----------
    name : str
    role : str
        One of ``ROLES``, or "left out".
    missing : int
        Rows without a value.
    distinct : int or None
        Different values; None where they were not counted.
    note : str
        What else there is to say: a range, the first levels, why it is left out.
    features : int
        Columns of the matrix made of it.
    """

    name: str
    role: str
    missing: int = 0
    distinct: int | None = None
    note: str = ""
    features: int = 0


@dataclass(frozen=True)
class Reliability:
    """Predictions in bins of their confidence, the largest probability: a calibrated model has accuracy = confidence.

    Attributes
    ----------
    confidence, accuracy : arrays (n_bins,)
        Means of the bin's rows; only bins that have rows.
    weight : array (n_bins,)
        The rows of each bin, by their weights.
    """

    confidence: Float
    accuracy: Float
    weight: Float

    @property
    def error(self) -> float:
        """Expected calibration error, Σ weight |accuracy − confidence| / Σ weight (Guo et al., 2017, equation 3)."""
        return float(np.abs(self.accuracy - self.confidence) @ self.weight / max(self.weight.sum(), 1e-300))


@dataclass(frozen=True)
class Confusion:
    """One kind of mistake, most frequent first in a list of them."""

    true: Any
    predicted: Any
    rows: float


@dataclass(frozen=True)
class Evaluation:
    """Predictions measured against labels.

    Attributes
    ----------
    name : str
        "train", "held out", or the name of a file.
    rows : int
    accuracy, balanced_accuracy, macro_f1, log_loss : float
        The last in nats a row.
    log_loss_interval : (float, float)
        95 % of bootstrap samples of the rows lie in it.
    reliability : Reliability
    confusion : array (n_classes, n_classes)
        Rows (their weights, if there are any) by true class and predicted class.
    precision, recall, f1, support : arrays (n_classes,)
        NaN where they are not defined; support is the weight of the class's rows.
    confused : list of Confusion
        The most frequent mistakes.
    """

    name: str
    rows: int
    accuracy: float
    balanced_accuracy: float
    macro_f1: float
    log_loss: float
    log_loss_interval: tuple[float, float]
    reliability: Reliability
    confusion: Float
    precision: Float
    recall: Float
    f1: Float
    support: Float
    confused: list[Confusion] = field(default_factory=list)

    @property
    def calibration_error(self) -> float:
        """Of the reliability."""
        return self.reliability.error


@dataclass(frozen=True)
class RegularisationPath:
    """The values of C that were tried, ascending, and their scores on held-out folds.

    Attributes
    ----------
    Cs : array (n_Cs,)
    scores : array (n_folds, n_Cs)
        Negated log-loss of the held-out rows; NaN where the path was ended early.
    chosen : float
        The value of C that was taken.
    gaps : array (n_Cs,)
        The certified relative gap of the fit of all rows at each C.
    norms : array (n_Cs,)
        ‖W‖ of that fit.
    """

    Cs: Float
    scores: Float
    chosen: float
    gaps: Float
    norms: Float


@dataclass(frozen=True)
class Mistake:
    """A row that the model got wrong: where it stands, and its cells."""

    place: str
    true: Any
    predicted: Any
    probability: float  # of the predicted class
    probability_true: float
    cells: dict[str, str]  # a few columns, as text, in the order of the file


@dataclass(frozen=True)
class Training:
    """The whole account of ``softgrad fit``.

    Attributes
    ----------
    source, target : str
        What was read, and the column of the labels.
    command : str
        The command line, to run again.
    versions : dict of str
        Of softgrad, Python and the libraries that decide the result.
    options : dict
        Every option with its value.
    seconds : dict of float
        Of each stage: "read", "prepare", "train", "measure".
    columns : list of Column
    classes : list
        Labels, in the order of the probabilities.
    counts : array (n_classes,)
        Rows (their weights) of each class among those trained on.
    feature_names : list of str
        Of the matrix the classifier sees.
    origins : list of str
        The column that each feature was made of.
    coef, intercept : arrays (n_classes, n_features), (n_classes,)
        For two classes, too, one row each, of opposite sign.
    history : structured array
        Of the final fit: iteration, objective, gap, passes, seconds, step.
    objective, gap : float
    interrupted : bool
        Whether Ctrl-C ended the fit before its tolerance.
    temperature : float or None
        By which the logits were divided to calibrate them; coef and intercept are those afterwards.
    path : RegularisationPath or None
        If C was chosen.
    evaluations : list of Evaluation
        Of the training rows and, if there are any, of those held out; the last is the one that counts.
    uncalibrated : Reliability or None
        Of the last evaluation, without the temperature.
    mistakes : list of Mistake
        Of the last evaluation, the surest first.
    """

    source: str
    target: str
    command: str
    versions: dict[str, str]
    options: dict[str, Any]
    seconds: dict[str, float]
    columns: list[Column]
    classes: list[Any]
    counts: Float
    feature_names: list[str]
    origins: list[str]
    coef: Float
    intercept: Float
    history: NDArray[Any]
    objective: float
    gap: float
    interrupted: bool = False
    temperature: float | None = None
    path: RegularisationPath | None = None
    evaluations: list[Evaluation] = field(default_factory=list)
    uncalibrated: Reliability | None = None
    mistakes: list[Mistake] = field(default_factory=list)
