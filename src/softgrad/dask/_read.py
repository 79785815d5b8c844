"""From collections to a problem among the workers: the data are read, checked and counted where they are."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from softgrad.dask._block import SharedModel
from softgrad.dask._collections import Parts
from softgrad.dask._graph import collect, each, keep, let_go
from softgrad.dask._problem import Remote, Shape
from softgrad.dask._rows import BlockSummary, make, moments, summary
from softgrad.regression._inputs import far_from_zero, standard_deviations
from softgrad.regression.rows._problem import SMALL, STORED
from softgrad.sklearn._class_support import ClassSupport, supported
from softgrad.sklearn._targets import FitTargets
from softgrad.sklearn._weights import class_weights

Array = NDArray[Any]
Float = NDArray[np.float64]

__all__ = ["Read", "read_blocks"]


@dataclass(frozen=True)
class Read:
    """The problem of the classes of ``support``; ``targets`` has no values; ``kept``: blocks to be let go."""

    problem: Remote
    targets: FitTargets
    support: ClassSupport
    kept: list[Any]


def read_blocks(estimator: Any, parts: Parts, columns: list[Any] | None, classes: Any) -> Read:
    """The problem of a fit; ``columns``: the names of the columns of soft labels that are a table."""
    rows = parts.read()
    if estimator.cache:
        rows = keep(rows)
    found = _alike(collect(each("count", summary, rows)))
    used = [number for number, one in enumerate(found) if one.n_rows]
    if not used:
        empty = sum(one.n_given for one in found) == 0
        raise ValueError(
            "X has no rows" if empty else "sample_weight is zero in every row: at least one weight must be positive"
        )
    targets = _classes([one for one in found if one.n_given], columns, classes, type(estimator).__name__)
    rows, found = [rows[number] for number in used], [found[number] for number in used]
    first = found[0]
    _check_offset(first, len(targets.classes))
    weight = class_weights(estimator.class_weight, targets)
    support = _supported(estimator, targets, weight)
    weight = None if weight is None else weight[support.index]
    k = len(support.index)
    lengths = [one.n_rows for one in found]
    n, p = sum(lengths), first.n_features
    small = n * p * k <= SMALL
    least = np.min([one.least for one in found if one.least is not None], axis=0)
    most = np.max([one.most for one in found if one.most is not None], axis=0)
    shift = far_from_zero(least, most) if estimator.fit_intercept else None
    middle = 0.0 if shift is None else shift
    column_reach = np.maximum(most - middle, middle - least)
    reach = max(one.reach for one in found) if first.sparse and shift is None else np.inf
    scale = None
    if estimator.standardize:
        scale = 1 / standard_deviations(collect(each("moments", moments, rows)))
        column_reach, reach = column_reach * scale, reach * float(scale.max())
    model = SharedModel(
        n, k, weight, float(estimator.label_smoothing), bool(estimator.fit_intercept), small,
        _arrays(estimator, n, k, small, sum(one.n_bytes for one in found)), estimator.n_threads or 1, shift, scale,
    )  # fmt: skip
    blocks = each("block", make, rows, shared=(model, targets.classes, support))
    if estimator.cache:
        blocks = keep(blocks)
        let_go(rows)  # what the blocks are made of goes on with them
    shape = Shape(
        lengths, p, first.dtype, sparse=first.sparse and not small,
        reach=reach, column_reach=column_reach, shift=shift, scale=scale, stored=sum(one.stored for one in found),
    )  # fmt: skip
    w = np.ones(k) if weight is None else weight
    mass = (1 - model.label_smoothing) * w * targets.totals[support.index]
    mass = mass + model.label_smoothing * w / k * sum(one.weight for one in found)
    remote = Remote(blocks, shape, model, mass, offset=bool(first.offset_columns))
    return Read(remote, targets, support, blocks if estimator.cache else [])


def _supported(estimator: Any, targets: FitTargets, weight: Float | None) -> ClassSupport:
    """The classes of the fit, or an error where a class without weight needs what blocks do not have."""
    support = supported(targets.totals, weight, estimator.label_smoothing)
    if support.full:
        return support
    names = targets.classes.tolist()
    absent = next(name for number, name in enumerate(names) if number not in support.index)
    if len(support.index) < 2:
        raise ValueError(
            f"{type(estimator).__name__} needs at least two classes with a positive weight, but only "
            f"{names[support.index[0]]!r} has one"
        )
    if estimator.label_smoothing or not estimator.fit_intercept:
        name = "label_smoothing" if estimator.label_smoothing else "fit_intercept=False"
        raise ValueError(f"class {absent!r} has no weight, which {name} does not go with here: leave out its rows")
    return support


def _arrays(estimator: Any, n: int, k: int, small: bool, n_bytes: int) -> int:
    """How many arrays (N, K) the workers keep: scores, those of a direction, probabilities."""
    if not estimator.cache:
        return 0
    each_one = n * k * (8 if small else 4)
    if estimator.max_memory is None:
        return 3 if each_one <= max(STORED, n_bytes // 2) else 2
    return next((count for count in (3, 2) if count * each_one <= estimator.max_memory), 0)


def _alike(found: list[BlockSummary]) -> list[BlockSummary]:
    """Refuse the first block that is not like the others, with its place."""
    first_row, like = 0, None
    for number, one in enumerate(found):
        wrong = one.error
        if wrong is None and one.n_rows:
            like = one if like is None else like
            if one.n_features != like.n_features:
                wrong = f"it has {one.n_features} features, but those before have {like.n_features}"
            elif one.dtype != like.dtype:
                wrong = f"it is {one.dtype}, but those before are {like.dtype}: blocks must be of one type"
            elif one.sparse != like.sparse:
                wrong = "some blocks are sparse and some are not: blocks must be alike"
            elif (one.known is None) != (like.known is None):
                wrong = "its y is soft labels, but not that of all blocks" if one.known is None else "its y is labels"
            elif one.known is None and len(one.totals) != len(like.totals):  # type: ignore[arg-type]
                wrong = f"its y has {len(one.totals)} columns, but those before have {len(like.totals)}"  # type: ignore[arg-type]
            elif one.offset_columns != like.offset_columns:
                wrong = f"its offset has {one.offset_columns} columns, but those before have {like.offset_columns}"
        if wrong is not None:
            raise ValueError(f"block {number}, whose first row is row {first_row} of X: {wrong}")
        first_row += one.n_given
    return found


def _classes(found: list[BlockSummary], columns: list[Any] | None, classes: Any, name: str) -> FitTargets:
    nothing = np.empty(0)
    if found[0].known is None:
        totals = np.sum([one.totals for one in found if one.totals is not None], axis=0)
        names = np.arange(len(totals)) if columns is None else np.asarray(columns)
        if classes is not None:
            names = np.asarray(list(classes))
            if columns is not None and columns != names.tolist():
                raise ValueError(f"the columns of y are {columns}, but classes= names {names.tolist()}")
        if names.shape != totals.shape:
            raise ValueError(f"y has {len(totals)} columns, but classes= names {len(names)}: {names.tolist()}")
        if len(np.unique(names)) < len(names):
            raise ValueError(f"two columns of y have the same class: {names.tolist()}")
        empty = np.flatnonzero(totals == 0)
        if empty.size:
            raise ValueError(
                f"class {names.tolist()[empty[0]]!r}, column {empty[0]} of y, is empty: its soft labels are 0 in every "
                "row with a positive weight; leave the column out"
            )
        return FitTargets(nothing, names, totals)
    if classes is not None:
        raise ValueError("classes= names the columns of soft labels; y holds labels, and those are the classes")
    try:
        known = np.unique(np.concatenate([one.known for one in found if one.known is not None]))
    except TypeError as wrong:
        raise ValueError(f"y has labels that cannot be sorted together: {wrong}") from wrong
    if len(known) < 2:
        raise ValueError(
            f"{name} needs at least two classes, but every row has the same one class: {known.tolist()[0]!r}"
        )
    totals = np.zeros(len(known))
    for one in found:
        assert one.known is not None
        assert one.totals is not None
        totals[np.searchsorted(known, one.known)] += one.totals
    return FitTargets(nothing, known, totals)


def _check_offset(first: BlockSummary, k: int) -> None:
    if first.offset_columns not in ((0, 1, 2) if k == 2 else (0, k)):
        also = " or one" if k == 2 else ""
        raise ValueError(f"offset must have {k}{also} columns, one for each class, not {first.offset_columns}")
