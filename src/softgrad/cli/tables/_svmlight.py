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
    """

    def __init__(self, source: Source, n_features: int | None = None) -> None:
        from sklearn.datasets import load_svmlight_file

        self.source = source
        self._lengths: list[int] = []
        blocks, labels = [], []
        for path in source.paths:
            try:
                x, y = load_svmlight_file(str(path), n_features=n_features, zero_based="auto")
            except (OSError, ValueError, EOFError) as error:
                what = str(error)
                if n_features is not None and "n_features" in what:
                    what = f"has more features than the {n_features} of the model"
                raise UserError(f"{shown(path)}: cannot be read as svmlight ({what})") from error
            self._lengths.append(x.shape[0])
            blocks.append(x)
            labels.append(y)
        width = max(block.shape[1] for block in blocks)
        for block in blocks:
            block.resize(block.shape[0], width)
        self.x = sparse.csr_array(sparse.vstack(blocks, format="csr"))
        self.labels = _labels(np.concatenate(labels))
        if not self.x.shape[0]:
            raise UserError(f"{source.text}: has no rows")
        bad = np.flatnonzero(~np.isfinite(self.x.data))
        if bad.size:
            row = int(np.searchsorted(self.x.indptr, bad[0], side="right")) - 1
            raise UserError(f"{self.where(row)}: feature {self.x.indices[bad[0]]} is not a finite number")

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
