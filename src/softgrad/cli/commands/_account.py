"""The account of a fit: its rows measured, and all that the model file, the report and the terminal tell of it."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from softgrad._info import info
from softgrad.cli.features._labels import own_classes
from softgrad.cli.features._load import Loaded, Part
from softgrad.cli.model import _archive, _measure
from softgrad.cli.model._mistakes import mistakes
from softgrad.cli.model._train import Fitted
from softgrad.cli.terminal._results import Evaluation, Training

__all__ = ["account", "figures"]


def account(
    loaded: Loaded,
    found: Fitted,
    classifier: Any,
    parts: list[Part],
    counts: NDArray[np.float64],
    seed: int,
    facts: dict[str, Any],
) -> Training:
    """Measure the parts of the data, of which the last is the one that counts.

    Parameters
    ----------
    loaded : Loaded
    found : Fitted
        How the fit ended.
    classifier : SoftmaxRegression
    parts : list of Part
        Rows to measure with.
    counts : array (n_classes,)
        The weight of each class among the training rows.
    seed : int
        Of the bootstrap.
    facts : dict
        Attributes of :class:`Training` that are known to the command alone.
    """
    classes = classifier.classes_
    evaluations = []
    for part in parts:
        logits, own = _measure.logits_of(classifier, part.x), own_classes(part, classes)
        evaluations.append(_measure.evaluate(part.name, logits, own, part.soft, part.weight, classes, seed))
    # Of the last part, from here on.
    before = None
    if found.temperature is not None:
        before = _measure.reliability(logits * found.temperature, own, part.weight)
    coef, intercept = _archive.symmetric_weights(classifier)
    return Training(
        target=loaded.target, versions=_archive.versions() | {"instruction set": str(info()["instruction_set"])},
        columns=loaded.columns, classes=classes.tolist(), counts=counts, feature_names=loaded.feature_names,
        origins=loaded.origins, coef=coef, intercept=intercept, history=classifier.history_,
        objective=found.objective, gap=found.gap, interrupted=found.interrupted, temperature=found.temperature,
        path=found.path, evaluations=evaluations, uncalibrated=before,
        mistakes=mistakes(part, logits, own, classes.tolist()), **facts,
    )  # fmt: skip


def figures(e: Evaluation) -> dict[str, Any]:
    """What a model file keeps of an evaluation."""
    wanted = ("rows", "accuracy", "balanced_accuracy", "macro_f1", "log_loss", "log_loss_interval", "calibration_error")
    return {name: getattr(e, name) for name in wanted}
