"""From a source to what a fit takes: roles, the split, the features of every row, and their labels and weights.

Three passes over the source: what the columns are; the statistics of the training rows; the features.  Small sources
are parsed once and kept.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from softgrad.cli.features import _labels
from softgrad.cli.features._columns import roles
from softgrad.cli.features._frame import Ingredient, frame
from softgrad.cli.features._matrix import Matrix
from softgrad.cli.features._names import names_of, origins_of
from softgrad.cli.features._prepare import Preparation, is_sparse
from softgrad.cli.tables._reader import Reader, RowChunk
from softgrad.cli.terminal._messages import UserError, names
from softgrad.cli.terminal._results import Column

__all__ = ["Choice", "Loaded", "Part", "load", "stratified", "targets_of"]

Tick = Callable[[str, int, int | None], None]


@dataclass(frozen=True)
class Choice:
    """Which columns are what, as the user says it."""

    target: str | None = None
    target_proba: tuple[str, ...] = ()
    weight: str | None = None
    features: tuple[str, ...] = ()
    drop: tuple[str, ...] = ()
    text: tuple[str, ...] = ()
    categorical: tuple[str, ...] = ()


@dataclass(frozen=True)
class Part:
    """Rows to train on, or to measure with.

    Attributes
    ----------
    name : str
    x : matrix
        Their features.
    labels : array (n_rows,)
        Of soft labels, the name of the largest.
    soft : array (n_rows, n_classes) or None
    weight : array (n_rows,) or None
    rows : array (n_rows,)
        Their numbers in the reader.
    reader : Reader
        Where they come from.
    """

    name: str
    x: Any
    labels: NDArray[Any]
    soft: NDArray[np.float64] | None
    weight: NDArray[np.float64] | None
    rows: NDArray[np.intp]
    reader: Any


@dataclass(frozen=True)
class Loaded:
    """What :func:`load` makes."""

    columns: list[Column]
    ingredients: list[Ingredient]
    transformer: Any
    target: str
    classes: NDArray[Any] | None  # of soft labels
    train: Part
    held_out: Part | None
    feature_names: list[str]
    origins: list[str]
    on_disk: bool
    first_feature: int | None = None  # of svmlight: the number of its first feature


class _Targets:
    """Collects labels and weights while the columns are looked at."""

    def __init__(self, reader: Reader, choice: Choice) -> None:
        self.reader, self.choice = reader, choice
        wanted = [*([choice.target] if choice.target else []), *choice.target_proba]
        self.columns = [*wanted, *([choice.weight] if choice.weight else [])]
        self.held: dict[str, list[Any]] = {name: [] for name in self.columns}

    def __call__(self, batch: RowChunk) -> None:
        for name, parts in self.held.items():
            parts.append(batch.columns[name])

    def column(self, name: str) -> Any:
        return pa.chunked_array(self.held[name])

    def labels(self, like: Any = None) -> tuple[NDArray[Any], NDArray[np.float64] | None]:
        if self.choice.target:
            return _labels.labels(self.reader, self.choice.target, self.column(self.choice.target), like), None
        wanted = list(self.choice.target_proba)
        soft = _labels.soft_labels(self.reader, wanted, [self.column(name) for name in wanted])
        return np.asarray(wanted)[soft.argmax(axis=1)], soft

    def weight(self) -> NDArray[np.float64] | None:
        name = self.choice.weight
        return None if name is None else _labels.weights(self.reader, name, self.column(name))


def targets_of(reader: Reader, choice: Choice, like: Any) -> tuple[NDArray[Any], NDArray[np.float64] | None, Any]:
    """Labels, in the type of known ones, soft labels and weights of a source whose features are known."""
    targets = _Targets(reader, choice)
    reader.require(targets.columns)
    for batch in reader.batches(targets.columns):
        targets(batch)
    return (*targets.labels(like), targets.weight())


def load(
    reader: Reader,
    choice: Choice,
    *,
    test: Reader | None,
    split: Callable[[NDArray[Any], NDArray[np.float64] | None], tuple[NDArray[np.intp], NDArray[np.intp]]],
    standardize: bool,
    memory: int,
    folder: Path,
    tick: Tick,
    look: Callable[[list[Column]], None],
    spread: Callable[..., Any] | None = None,
) -> Loaded:
    """Read a source, and another one to measure with.

    Parameters
    ----------
    reader, test : Reader
        The data, and the rows of ``--test``.
    choice : Choice
        Which columns are what.
    split : callable (labels, weight) -> (training rows, held-out rows)
        Of the reader's rows.
    standardize : bool
        Whether numbers are scaled.
    memory : int
        Bytes for the prepared rows.
    folder : Path
        For what does not fit.
    tick : callable (stage, done, total)
        Hears how far it is.
    look : callable (columns)
        Sees the columns before the training.
    spread : callable (reader, ingredients, transformer, rows wanted), optional
        Makes the features of the training rows elsewhere.
    """
    wanted = _features(reader, choice)
    forced = dict.fromkeys(choice.text, "text") | dict.fromkeys(choice.categorical, "categorical")
    targets = _Targets(reader, choice)
    watch = _Watch(targets, lambda batch: tick("read", batch.first + batch.n_rows, None))
    columns, profiles = roles(reader, wanted, forced, watch)
    ingredients = [
        Ingredient(column.name, column.role, (profiles[column.name].width or 0) if column.role == "list" else 0)
        for column in columns
        if column.role != "left out"
    ]
    if not ingredients:
        why = "; ".join(f"{column.name!r}: {column.note}" for column in columns)
        raise UserError(f"{reader.source.text}: no column is left to learn from ({why})")
    _refuse_collisions(reader, ingredients)
    labels, soft = targets.labels()
    weight = targets.weight()
    train, held_out = split(labels, weight)

    chosen = np.zeros(len(labels), dtype=bool)
    chosen[train] = True
    total = len(labels)
    preparation = Preparation(ingredients, int(chosen.sum()), standardize)
    for batch, table in _tables(reader, ingredients):
        preparation.add(table[chosen[batch.first : batch.first + batch.n_rows]])
        tick("prepare", batch.first + batch.n_rows, total)
    try:
        transformer = preparation.transformer()
    except UserError as error:
        raise UserError(f"{reader.source.text}: {error}") from error
    origins = origins_of(transformer, ingredients)
    feature_names = names_of(transformer, origins)
    counts = {name: origins.count(name) for name in set(origins)}
    columns = [replace(column, features=counts.get(column.name, 0)) for column in columns]
    look(columns)

    kept = np.zeros(total, dtype=bool)
    kept[held_out] = True
    width, scattered = len(feature_names), is_sparse(transformer)

    def matrix(rows: int, name: str) -> Matrix:
        return Matrix(rows, width, is_sparse=scattered, limit=memory, folder=folder, name=name)

    x_held = matrix(len(held_out), "held-out")
    x_train = matrix(len(train), "train") if spread is None else None
    needed = kept if x_train is None else kept | chosen
    for batch, table in _tables(reader, ingredients) if needed.any() else ():
        inside = slice(batch.first, batch.first + batch.n_rows)
        if needed[inside].any():
            features = transformer.transform(table[needed[inside]])
            x_held.append(features[kept[inside][needed[inside]]])
            if x_train is not None:
                x_train.append(features[chosen[inside][needed[inside]]])
        tick("features", batch.first + batch.n_rows, total)
    if x_train is not None:
        x = x_train.finish()
    elif spread is not None:
        x = spread(reader, ingredients, transformer, chosen)

    def part(name: str, x: Any, rows: NDArray[np.intp]) -> Part:
        return Part(
            name, x, labels[rows], None if soft is None else soft[rows], None if weight is None else weight[rows], rows,
            reader,
        )  # fmt: skip

    measured = part("held out", x_held.finish(), held_out) if len(held_out) else None
    if test is not None:
        measured = part_of(test, choice, labels, ingredients, transformer, matrix, tick)
    return Loaded(
        columns=columns,
        ingredients=ingredients,
        transformer=transformer,
        target=choice.target or ", ".join(choice.target_proba),
        classes=None if soft is None else np.asarray(choice.target_proba),
        train=part("train", x, train),
        held_out=measured,
        feature_names=feature_names,
        origins=origins,
        on_disk=x_train is not None and x_train.on_disk,
    )


def part_of(
    test: Reader,
    choice: Choice,
    like: NDArray[Any],
    ingredients: list[Ingredient],
    transformer: Any,
    matrix: Callable[[int, str], Matrix],
    tick: Tick,
) -> Part:
    """The rows of another source, to measure with; ``like``: labels of the type that theirs shall have."""
    test.require([item.name for item in ingredients])
    labels, soft, weight = targets_of(test, choice, like)
    x = matrix(len(labels), "test")
    for batch, table in _tables(test, ingredients):
        x.append(transformer.transform(table))
        tick("features", batch.first + batch.n_rows, len(labels))
    return Part(test.source.text, x.finish(), labels, soft, weight, np.arange(len(labels)), test)


def _tables(reader: Reader, ingredients: list[Ingredient]) -> Iterator[tuple[RowChunk, Any]]:
    for batch in reader.batches([item.name for item in ingredients]):
        yield batch, frame(reader, batch, ingredients)


class _Watch:
    """Labels are collected, and whoever wants to know is told."""

    def __init__(self, targets: _Targets, tell: Callable[[RowChunk], None]) -> None:
        self.columns = targets.columns
        self._targets, self._tell = targets, tell

    def __call__(self, batch: RowChunk) -> None:
        self._targets(batch)
        self._tell(batch)


def _features(reader: Reader, choice: Choice) -> list[str]:
    """The columns that may become features."""
    for option, given in (
        ("--target", [choice.target] if choice.target else []),
        ("--target-proba", choice.target_proba),
        ("--weight", [choice.weight] if choice.weight else []),
        ("--features", choice.features),
        ("--drop", choice.drop),
        ("--text", choice.text),
        ("--categorical", choice.categorical),
    ):
        reader.require(list(given), f"{option}: ")
    taken = {choice.target, choice.weight, *choice.target_proba}
    for option, given in (
        ("--features", choice.features),
        ("--text", choice.text),
        ("--categorical", choice.categorical),
    ):
        used = [name for name in given if name in taken]
        if used:
            raise UserError(f"{option} {used[0]}: is the target or the weight, and cannot be a feature, too")
    both = set(choice.text) & set(choice.categorical)
    if both:
        raise UserError(f"--text and --categorical both name {names(sorted(both))}")
    pool = choice.features or tuple(name for name in reader.names if name not in taken)
    wanted = [name for name in pool if name not in choice.drop]
    if not wanted:
        what = choice.target or ", ".join(choice.target_proba)
        raise UserError(
            f"{reader.source.text}: has no column but the target {what!r}: there is nothing to learn from"
            if len(reader.names) == len(taken - {None})
            else f"{reader.source.text}: every column is dropped: there is nothing to learn from"
        )
    return wanted


def _refuse_collisions(reader: Reader, ingredients: list[Ingredient]) -> None:
    seen: dict[str, str] = {}
    for item in ingredients:
        for part in item.parts:
            if part in seen:
                raise UserError(
                    f"{reader.source.text}: columns {seen[part]!r} and {item.name!r} would both become {part!r}: "
                    "rename one"
                )
            seen[part] = item.name


def stratified(
    labels: NDArray[Any], part: float, seed: int, what: str, target: str
) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Row numbers to train on and to hold out, every class in its proportion in both."""
    from sklearn.model_selection import train_test_split

    rows = np.arange(len(labels))
    classes, counts = np.unique(labels, return_counts=True)
    if len(classes) < 2:
        raise UserError(
            f"{what}: the target column {target!r} holds one class only, {classes[0].item()!r}: two are needed"
        )
    if part == 0:
        return rows, rows[:0]
    if counts.min() < 2:
        alone = classes[counts.argmin()].item()
        raise UserError(
            f"{what}: class {alone!r} of column {target!r} has a single row, which cannot be both "
            "trained on and held out: add rows of it, remove it, or train on everything with --split 0"
        )
    held_out = math.ceil(part * len(rows))
    if held_out < len(classes) or len(rows) - held_out < len(classes):
        raise UserError(
            f"--split {part:g} of {len(rows)} rows holds out {held_out} and trains on "
            f"{len(rows) - held_out}: each needs at least one row of each of the {len(classes)} classes"
        )
    train, test = train_test_split(rows, test_size=held_out, random_state=seed, stratify=labels)
    return np.sort(train), np.sort(test)
