"""``softgrad fit --cluster``: the features are made, and the rows added up, on the workers of a Dask cluster.

This process looks at the columns and measures; each file is a block of rows, which a worker reads, turns into features
and keeps.  The workers see the files under the same names, and have softgrad with its command line.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import sparse
from sklearn.exceptions import ConvergenceWarning

from softgrad.cli.features._frame import Ingredient, frame
from softgrad.cli.features._names import origins_of
from softgrad.cli.features._prepare import is_sparse
from softgrad.cli.model._train import Fitted, TrainingRows, TrainOptions
from softgrad.cli.tables._reader import Reader
from softgrad.cli.tables._sources import Source
from softgrad.cli.terminal._messages import UserError
from softgrad.regression import Progress

__all__ = ["cluster", "refuse", "spread", "train"]


@dataclass(frozen=True)
class _Maker:
    """Makes the features of some rows of one file."""

    source: Source
    ingredients: list[Ingredient]
    transformer: Any
    wanted: NDArray[np.bool_]

    def __call__(self) -> Any:
        reader = Reader(self.source)
        blocks = []
        for batch in reader.batches([item.name for item in self.ingredients]):
            table = frame(reader, batch, self.ingredients)[self.wanted[batch.first : batch.first + batch.n_rows]]
            if len(table):
                blocks.append(self.transformer.transform(table))
        if is_sparse(self.transformer):
            return sparse.csr_array(sparse.vstack(blocks, format="csr"))
        return np.concatenate(blocks)


def refuse(source: Source, Cs: tuple[float, ...], *, calibrate: bool) -> None:
    """Refuse what a cluster cannot do."""
    if source.format not in ("csv", "tsv", "parquet", "feather") or source.text == "standard input":
        raise UserError(f"--cluster: {source.text} is not made of tables in files, which the workers could read")
    if len(Cs) > 1 or calibrate:
        what = "--calibrate" if calibrate else "several values of --C"
        raise UserError(f"--cluster: {what} needs a cross-validation, which is made in one process; give one --C")


def cluster(address: str, threads: int | None) -> AbstractContextManager[Any]:
    """The cluster at an address, or of this machine, with so many workers of one thread."""
    from softgrad.dask import _files

    if address != "local" and threads is not None:
        raise UserError(f"--threads {threads}: the workers of --cluster {address} have their own")
    if address != "local" and "://" not in address:
        raise UserError(f"--cluster {address}: give local, or the address of a scheduler such as tcp://host:8786")
    return _files.connected(address, threads)


def spread(reader: Reader, ingredients: list[Ingredient], transformer: Any, wanted: NDArray[np.bool_]) -> Any:
    """The features of the wanted rows as a Dask array, a block for each file."""
    from softgrad.dask import _files

    makers: list[Callable[[], Any]] = []
    counts = []
    for first, last, path in reader.spans():
        inside = wanted[first:last]
        if inside.any():
            source = replace(reader.source, paths=[Path(path).absolute()], text=str(path))
            makers.append(_Maker(source, ingredients, transformer, inside))
            counts.append(int(inside.sum()))
    width = len(origins_of(transformer, ingredients))
    meta: Any = sparse.csr_array((0, width)) if is_sparse(transformer) else np.empty((0, width))
    return _files.made_rows(makers, counts, width, np.float64, meta)


def train(rows: TrainingRows, options: TrainOptions, listen: Callable[[str, Progress], None]) -> Fitted:
    """As :func:`softgrad.cli.model._train.train`, of rows that are on a cluster."""
    from softgrad.dask import SoftmaxRegression

    weights = options.class_weight
    model = SoftmaxRegression(
        C=options.Cs[0],
        tol=options.tol,
        max_iter=options.max_iter,
        label_smoothing=options.label_smoothing,
        class_weight=None if weights is None else dict(enumerate(weights.tolist())),
    )
    interrupted = False
    history: list[Progress] = []

    def hear(progress: Progress) -> None:
        history.append(progress)
        listen("", progress)

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)  # the command says it in its own words
            model.fit(rows.x, rows.targets, sample_weight=rows.weight, callback=hear)
    except KeyboardInterrupt:
        if not hasattr(model, "coef_"):
            raise
        interrupted = True
    converged = bool(model.gap_ <= options.tol or np.isnan(model.gap_))
    return Fitted(
        options.Cs[0], np.asarray(model.coef_, dtype=np.float64), np.asarray(model.intercept_, dtype=np.float64),
        model.objective_, model.gap_, int(model.n_iter_[0]), model.n_passes_, history, converged,
        f"gap {model.gap_:.3g}, tol = {options.tol:g}", interrupted=interrupted,
    )  # fmt: skip
