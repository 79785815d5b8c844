"""The weights of the report: as images, as one table, or as the strongest features of each class."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any

import numpy as np
from numpy.typing import NDArray

from softgrad.cli.report._confusion import LEVELS
from softgrad.cli.report._pictures import weight_image
from softgrad.cli.report._wording import cut, number
from softgrad.cli.terminal._results import Training

Float = NDArray[np.float64]

TABLE_FEATURES, TABLE_CLASSES = 48, 12  # up to which all weights are one table
STRONGEST = 8  # features of each sign in a card
OPEN_CARDS, CARDS = 12, 300  # classes at once, and in all
COLUMNS = 20

__all__ = ["Card", "Weights", "grid", "weights"]


@dataclass(frozen=True)
class Feature:
    """A feature and its weight; ``width`` is its part of the largest, in percent."""

    name: str
    origin: str
    value: float
    width: float


@dataclass(frozen=True)
class Card:
    """What speaks for a class and what against it; ``image`` is the address of a picture of all its weights."""

    label: str
    against: str
    intercept: float
    positive: list[Feature]
    negative: list[Feature]
    image: str = ""


@dataclass(frozen=True)
class Weights:
    """The section, in one of three forms.

    Attributes
    ----------
    cards : list of Card
        One for each class; with images if the features are pixels. Empty if there is a table.
    shape : (int, int) or None
        Height and width of the images.
    more : int
        Classes without a card.
    groups : list of (str, list of (str, list of (float, str)))
        The table: for each column of the data its features, with weight and style class for each label.
    labels : list of str
        Of the table.
    intercepts : list of float
        Of the table.
    columns : list of Feature
        The norm of the weights of each column of the data, largest first; empty where it would say nothing.
    columns_more : int
        Columns left out of that list.
    largest : float
        The largest weight's size, which is full colour.
    features : int
    """

    largest: float
    features: int
    cards: list[Card] = field(default_factory=list)
    shape: tuple[int, int] | None = None
    more: int = 0
    groups: list[tuple[str, list[tuple[str, list[tuple[float, str]]]]]] = field(default_factory=list)
    labels: list[str] = field(default_factory=list)
    intercepts: list[float] = field(default_factory=list)
    columns: list[Feature] = field(default_factory=list)
    columns_more: int = 0


def weights(training: Training) -> Weights:
    """The section of a training."""
    coef = np.asarray(training.coef, dtype=np.float64)
    # Two classes have rows of opposite sign: one of them says it all.
    shown = [1] if len(training.classes) == 2 else list(range(len(training.classes)))
    largest = float(np.abs(coef).max(initial=0.0))
    places = grid(training)
    columns, more = ([], 0) if places is not None else _columns(training, coef[shown])
    facts: dict[str, Any] = {
        "largest": largest, "features": coef.shape[1], "columns": columns, "columns_more": more,
    }  # fmt: skip
    if places is None and coef.shape[1] <= TABLE_FEATURES and len(shown) <= TABLE_CLASSES:
        labels = [cut(training.classes[k], 24) for k in shown]
        intercepts = [float(training.intercept[k]) for k in shown]
        return Weights(groups=_table(training, coef[shown], largest), labels=labels, intercepts=intercepts, **facts)
    cards = [_card(training, coef, k, places, largest) for k in shown[:CARDS]]
    shape = None if places is None else (places.shape[0], places.shape[1])
    return Weights(cards=cards, shape=shape, more=len(shown) - len(cards), **facts)


def grid(training: Training) -> NDArray[np.intp] | None:
    """The feature in each pixel, if the features are the pixels of a picture.

    They are if their names end in every row and column of a rectangle (``pixel_0_0``), or if they are one column of
    lists of square length whose weights are alike from one line of the square to the next, as no embedding's are.
    A pixel that was left out, being the same in every row, has −1.
    """
    names = training.feature_names
    left_out = [column.name for column in training.columns if column.role == "left out"]
    named = [*names, *left_out]
    matches = [re.fullmatch(r"(.*?)(\d{1,4})[_x,:](\d{1,4})\D?", name) for name in named]
    if len(names) < 16:
        return None
    if all(matches):
        parts = [m.groups() for m in matches if m]
        at = np.array([[int(row), int(column)] for _, row, column in parts])
        at -= at.min(axis=0)
        height, width = at.max(axis=0) + 1
        places = np.full((height, width) if height * width == len(named) else (0, 0), -1, dtype=np.intp)
        if min(places.shape) >= 4 and len({p[0] for p in parts}) == 1:
            places[at[:, 0], at[:, 1]] = np.arange(len(named))
            if (places >= 0).all():
                return np.where(places < len(names), places, -1)
    side = round(len(names) ** 0.5)
    roles = {column.name: column.role for column in training.columns}
    if side * side == len(names) and len(set(training.origins)) == 1 and roles.get(training.origins[0]) == "list":
        places = np.arange(len(names), dtype=np.intp).reshape(side, side)
        if _alike(np.asarray(training.coef, dtype=np.float64), places):
            return places
    return None


def _alike(coef: Float, places: NDArray[np.intp]) -> bool:
    """Whether the weights of pixels one above the other agree beyond three standard errors of no agreement."""
    if len(coef) == 2:
        coef = coef[1:]
    above, below = coef[:, places[:-1]].reshape(len(coef), -1), coef[:, places[1:]].reshape(len(coef), -1)
    sizes = np.linalg.norm(above, axis=0) @ np.linalg.norm(below, axis=0)
    agreement = float((above * below).sum() / max(float(sizes), 1e-300))
    return bool(agreement > 3 / np.sqrt(above.shape[1] * max(len(coef) - 1, 1)))


def _card(training: Training, coef: Float, k: int, places: NDArray[np.intp] | None, largest: float) -> Card:
    row = coef[k]
    order = np.argsort(-np.abs(row), kind="stable")
    several = len(set(training.origins)) > 1

    def origin(f: int) -> str:
        said = several and training.origins[f] != training.feature_names[f]
        return cut(training.origins[f], 30) if said else ""

    def features(wanted: NDArray[np.intp]) -> list[Feature]:
        size = max(largest, 1e-300)
        return [
            Feature(cut(training.feature_names[f], 40), origin(f), float(row[f]), 100 * abs(float(row[f])) / size)
            for f in wanted[:STRONGEST]
        ]

    return Card(
        label=cut(training.classes[k], 60),
        against=cut(training.classes[1 - k], 60) if len(coef) == 2 else "",
        intercept=float(training.intercept[k]),
        positive=features(order[row[order] > 0]),
        negative=features(order[row[order] < 0]),
        image="" if places is None else weight_image(np.append(row, 0.0)[places], largest),
    )


def _table(
    training: Training, coef: Float, largest: float
) -> list[tuple[str, list[tuple[str, list[tuple[float, str]]]]]]:
    """Rows of features under the column that each is made of, which needs no heading where it is the feature."""
    groups = []
    for origin, members in groupby(range(coef.shape[1]), key=lambda f: training.origins[f]):
        features = list(members)
        alone = len(features) == 1 and training.feature_names[features[0]] == origin
        lines = [(cut(training.feature_names[f], 60), [_cell(float(w), largest) for w in coef[:, f]]) for f in features]
        groups.append(("" if alone else cut(origin, 60), lines))
    return groups


def _cell(weight: float, largest: float) -> tuple[float, str]:
    strength = int(np.ceil(LEVELS * abs(weight) / largest - 1e-9)) if largest > 0 else 0
    return weight, f"{'plus' if weight > 0 else 'minus'}{strength}" if strength else "none"


def _columns(training: Training, coef: Float) -> tuple[list[Feature], int]:
    squares: dict[str, float] = {}
    for origin, size in zip(training.origins, (coef**2).sum(axis=0), strict=True):
        squares[origin] = squares.get(origin, 0.0) + float(size)
    if len(squares) < 2:
        return [], 0
    norms = sorted(((value**0.5, name) for name, value in squares.items()), key=lambda pair: -pair[0])
    top = max(norms[0][0], 1e-300)
    kept = [Feature(cut(name, 60), "", value, 100 * value / top) for value, name in norms[:COLUMNS]]
    return kept, len(norms) - len(kept)


def largest_of(card: Card) -> str:
    """The strongest features in one sentence, for who cannot see the image."""
    strongest = sorted([*card.positive, *card.negative], key=lambda f: -abs(f.value))[:6]
    return ", ".join(f"{f.name} {number(f.value, 3)}" for f in strongest)
