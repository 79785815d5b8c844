"""Sparse features in the format of svmlight and LIBSVM: read by scikit-learn, held in memory, taken as they are."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from softgrad.cli.tables._sources import Source
from softgrad.cli.terminal._messages import UserError, shown

__all__ = ["SparseRows"]


class SparseRows:
    """Rows of sparse files; their columns are numbered.

    Attributes
    ----------
    x : CSR array (n_rows, n_features)
    labels : array (n_rows,)
    base : int
        The number of the first feature, 0 or 1: 1 if no file names a feature 0, unless a model says it.
    """

    def __init__(self, source: Source, n_features: int | None = None, base: int | None = None) -> None:
        from sklearn.datasets import load_svmlight_file

        self.source = source
        self._lengths: list[int] = []
        blocks, labels = [], []
        for path in source.paths:
            try:
                x, y = load_svmlight_file(str(path), zero_based=True)
            except (OSError, ValueError, EOFError) as error:
                raise UserError(f"{shown(path)}: cannot be read as svmlight ({error})") from error
            self._lengths.append(x.shape[0])
            blocks.append(x)
            labels.append(y)
        self.base = base if base is not None else int(not any((block.indices == 0).any() for block in blocks))
        width = max(block.shape[1] for block in blocks) if n_features is None else n_features + self.base
        for path, block in zip(source.paths, blocks, strict=True):
            self._refuse_foreign(path, block, width, n_features)
            block.resize(block.shape[0], width)
        self.x = sparse.csr_array(sparse.vstack(blocks, format="csr"))[:, self.base :]
        self.labels = _labels(np.concatenate(labels))
        if not self.x.shape[0]:
            raise UserError(f"{source.text}: has no rows")
        bad = np.flatnonzero(~np.isfinite(self.x.data))
        if bad.size:
            row = int(np.searchsorted(self.x.indptr, bad[0], side="right")) - 1
            raise UserError(f"{self.where(row)}: feature {self.x.indices[bad[0]]} is not a finite number")

    def _refuse_foreign(self, path: Path, block: Any, width: int, n_features: int | None) -> None:
        """Refuse features that a model does not have."""
        if block.shape[1] > width:
            raise UserError(
                f"{shown(path)}: cannot be read as svmlight (has more features than the {n_features} of the model)"
            )
        if self.base and (block.indices == 0).any():
            raise UserError(f"{shown(path)}: names a feature 0, but the model was trained on features counted from 1")

    @property
    def names(self) -> list[str]:
        """Of the features."""
        return [f"feature {i}" for i in range(self.x.shape[1])]

    def places(self, rows: list[int]) -> list[str]:
        """The places of some rows."""
        return [self.where(row) for row in rows]

    def where(self, row: int, _: str | None = None) -> str:
        """The place of a row for a message."""
        for path, length in zip(self.source.paths, self._lengths, strict=True):
            if row < length:
                text = self.source.text if len(self.source.paths) == 1 else shown(Path(path))
                return f"{text}: row {row + 1}"
            row -= length
        return self.source.text


def _labels(values: NDArray[np.float64]) -> NDArray[Any]:
    """Labels that are whole numbers are integers."""
    return values.astype(np.int64) if np.array_equal(values, np.round(values)) else values
