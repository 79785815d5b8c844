"""Arrays of NumPy, and the built-in data sets, as tables.

A matrix is a list column; its elements become the features ``x[0]``, ``x[1]``, …  An ``.npz`` file has the matrix under
one of ``MATRICES`` (or is the only matrix in it), other vectors of its length are columns of their own.  The labels of
an ``.npy`` file are in another one, which ``--target`` names.
"""

from __future__ import annotations

import re
import zipfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from softgrad.cli.tables._sources import Source
from softgrad.cli.terminal._messages import UserError, names, shown

TARGET = "target"
MATRICES = ("x", "X", "features", "embeddings", "data")
ROWS = 1 << 14
BYTES = 16 << 20

__all__ = ["TARGET", "Arrays", "built_in", "with_labels"]


def with_labels(source: Source, target: str | None) -> tuple[Source, str | None]:
    """The source and the column of its labels; those of an ``.npy`` file are in the file that ``target`` names."""
    if source.format != "npy":
        return source, target
    if target is None or not target.endswith(".npy"):
        raise UserError(
            f"{source.text}: an .npy file has features only; --target names the .npy file with their labels"
        )
    return replace(source, labels=Path(target)), TARGET


class Arrays:
    """The columns of arrays, each with a row of its own for a row."""

    def __init__(self, source: Source) -> None:
        self.source = source
        if source.format == "built-in":
            self.parts = [built_in(source.text)]
        else:
            self.parts = [_loaded(path, source.format) for path in source.paths]
        if source.labels is not None:
            self._add(source.labels)
        kinds = [{name: _arrow_type(values) for name, values in part.items()} for part in self.parts]
        for path, kind in zip(source.paths[1:], kinds[1:], strict=True):
            if kind != kinds[0]:
                raise UserError(f"{shown(path)}: its arrays are {_described(kind)}, those of the first file "
                                f"{_described(kinds[0])}")  # fmt: skip
        self.schema = pa.schema(list(kinds[0].items()))

    def _add(self, path: Path) -> None:
        labels = _read(path, "npy")
        if labels.ndim != 1:
            raise UserError(f"{shown(path)}: has shape {labels.shape}; labels are a vector, one for each row")
        ends = np.cumsum([len(part["x"]) for part in self.parts])
        if len(labels) != ends[-1]:
            raise UserError(f"{shown(path)}: has {len(labels)} labels, but {self.source.text} has {ends[-1]} rows")
        for part, own in zip(self.parts, np.split(labels, ends[:-1]), strict=True):
            part[TARGET] = own

    def batches(self, wanted: list[str]) -> Iterator[tuple[int, Any]]:
        """Record batches with the number of their file."""
        for number, part in enumerate(self.parts):
            width = max(1, sum(np.prod(part[name].shape[1:], dtype=int) for name in wanted))
            step = max(1, min(ROWS, BYTES // (8 * width)))
            n_rows = len(next(iter(part.values())))
            for first in range(0, n_rows, step):
                columns = [_arrow(part[name][first : first + step]) for name in wanted]
                yield number, pa.RecordBatch.from_arrays(columns, names=list(wanted))


def built_in(name: str) -> dict[str, Any]:
    """One of the real data sets that scikit-learn carries; digits has integers as labels, the others names."""
    from sklearn import datasets

    bunch = getattr(datasets, f"load_{name}")()
    labels = bunch.target if name == "digits" else np.asarray(bunch.target_names)[bunch.target]
    columns = dict(zip(map(str, bunch.feature_names), np.asarray(bunch.data, dtype=np.float64).T, strict=True))
    return {**columns, TARGET: labels}


def _read(path: Path, kind: str) -> Any:
    """The array of an ``.npy`` file, or all of an ``.npz`` file by name."""
    try:
        if kind == "npy":
            return np.load(path, mmap_mode="r", allow_pickle=False)
        with path.open("rb") as opened, np.load(opened, allow_pickle=False) as file:
            return {name: file[name] for name in file.files}
    except FileNotFoundError:
        raise UserError(f"{shown(path)}: no such file") from None
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        what = (
            "holds Python objects, which are not loaded"
            if re.search("pickle|Python obj", str(error))
            else f"cannot be read ({error})"
        )
        raise UserError(f"{shown(path)}: {what}") from error


def _loaded(path: Path, kind: str) -> dict[str, Any]:
    arrays = _read(path, kind)
    if kind == "npy":
        return {"x": _matrix(path, "x", arrays)}
    matrices = [name for name, values in arrays.items() if values.ndim == 2]
    name = next((name for name in MATRICES if name in matrices), matrices[0] if len(matrices) == 1 else None)
    if name is None:
        raise UserError(
            f"{shown(path)}: needs a matrix of features called {' or '.join(MATRICES[:3])}; it has "
            f"{names(list(arrays))}"
        )
    n_rows = len(arrays[name])
    vectors = {k: v for k, v in arrays.items() if k != name and v.ndim == 1 and len(v) == n_rows}
    return {"x": _matrix(path, name, arrays[name]), **vectors}


def _matrix(path: Path, name: str, values: Any) -> Any:
    if values.ndim != 2 or values.dtype.kind not in "fiub" or not values.size:
        raise UserError(
            f"{shown(path)}: {name} has shape {values.shape} and type {values.dtype}; features are a matrix of numbers"
        )
    return values


def _arrow_type(values: Any) -> Any:
    kind = pa.from_numpy_dtype(values.dtype) if values.dtype.kind not in "USO" else pa.string()
    return pa.list_(kind, values.shape[1]) if values.ndim == 2 else kind


def _arrow(values: Any) -> Any:
    if values.ndim == 2:
        flat = pa.array(np.ascontiguousarray(values).reshape(-1))
        return pa.FixedSizeListArray.from_arrays(flat, values.shape[1])
    return pa.array(values.astype(str) if values.dtype.kind in "USO" else values)


def _described(kinds: dict[str, Any]) -> str:
    return ", ".join(f"{name} ({kind})" for name, kind in kinds.items())
