"""The confusion matrix of the report: which classes, in which order, and how strong the colour of each cell."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from markupsafe import Markup
from numpy.typing import NDArray

from softgrad.cli.report._pictures import confusion_image
from softgrad.cli.report._wording import cut, percent, rows
from softgrad.cli.terminal._results import Evaluation

Float = NDArray[np.float64]

WITH_NUMBERS = 24  # classes, up to which numbers fit into the cells
MOST = 160  # classes in the picture
LEVELS = 10  # of colour

__all__ = ["ConfusionTable", "confusion_matrix", "ordered"]


@dataclass(frozen=True)
class ConfusionTable:
    """A table of cells where numbers fit, else a picture.

    Attributes
    ----------
    labels : list of str
        Of the classes shown, in order.
    cells : list of list of tuple
        (value, as shown, style class, description) by true and predicted class; empty if there is a picture.
    picture : Markup or None
    note : str
        What is left out, and the order.
    """

    labels: list[str]
    cells: list[list[tuple[float, str, str, str]]]
    picture: Markup | None
    note: str


def confusion_matrix(evaluation: Evaluation, classes: list[Any]) -> ConfusionTable:
    """The matrix of an evaluation, as the page shows it."""
    counts = np.asarray(evaluation.confusion, dtype=np.float64)
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1e-300)
    if len(classes) <= WITH_NUMBERS:
        labels = [cut(label, 24) for label in classes]
        cells = [[_cell(counts, shares, labels, i, j) for j in range(len(labels))] for i in range(len(labels))]
        return ConfusionTable(labels, cells, None, "")
    kept, order, note = np.arange(len(classes)), "", ""
    if len(classes) > MOST:
        wrong = counts.sum(axis=0) + counts.sum(axis=1) - 2 * counts.diagonal()
        kept = np.sort(np.argsort(-wrong, kind="stable")[:MOST])
        note = f"The {MOST} classes in most mistakes, and {len(classes) - MOST} more that are not shown. "
    if not all(isinstance(label, int | float | np.number) for label in classes):
        kept = kept[ordered(counts[np.ix_(kept, kept)])]
        order = "Each class stands beside the one it is most often confused with, of those not yet placed."
    labels = [cut(classes[k], 16) for k in kept]
    said = f"Confusion matrix of {len(kept)} classes; accuracy {percent(evaluation.accuracy, evaluation.rows)}. "
    picture = confusion_image(shares[np.ix_(kept, kept)], labels, said + "The most confused pairs are listed below.")
    return ConfusionTable(labels, [], picture, note + order)


def _cell(counts: Float, shares: Float, labels: list[str], i: int, j: int) -> tuple[float, str, str, str]:
    value, share = float(counts[i, j]), float(shares[i, j])
    strength = 0 if value <= 0 else max(1, int(np.ceil(LEVELS * np.sqrt(share) - 1e-9)))
    style = f"{'hit' if i == j else 'miss'}{strength}" if strength else "none"
    description = f"{labels[i]} predicted as {labels[j]}: {rows(value)} rows, {percent(share)} of the class"
    return value, rows(value) if value else "", style, description


def ordered(counts: Float) -> list[int]:
    """An order of the classes in which confused ones are neighbours: from the most confused, always to the nearest.

    Parameters
    ----------
    counts : array (n, n)
        A confusion matrix.

    Returns
    -------
    list of int
        A permutation; ties go by number.
    """
    ties = counts + counts.T
    np.fill_diagonal(ties, 0)
    ties /= np.sqrt(np.maximum(np.outer(counts.sum(axis=1), counts.sum(axis=1)), 1e-300))
    left = np.ones(len(counts), dtype=bool)
    place = int(ties.max(axis=1).argmax())
    order = []
    while True:
        order.append(place)
        left[place] = False
        if not left.any():
            return order
        near = np.where(left, ties[place], -1.0)
        if near.max() <= 0:  # tied to none of those left: begin anew, at the most confused of them
            near = np.where(left, np.where(left, ties, -1.0).max(axis=1), -1.0)
        place = int(near.argmax())
