"""Rows of features as they come, block by block: in memory up to a limit, beyond it in a temporary directory."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from scipy import sparse

from softgrad.cli.terminal._messages import UserError, shown

DOUBLE = 1 << 24  # numbers up to which they are kept in float64

__all__ = ["Matrix", "SparseFiles"]


class Matrix:
    """Collects blocks and gives them back as one matrix.

    Parameters
    ----------
    n_rows, width : int
        The shape it will have.
    is_sparse : bool
        Whether blocks are CSR.
    limit : int
        Bytes that may be held in memory.
    folder : Path
        Where the rest goes; it is the caller's to remove.
    name : str
        Of the files.
    """

    def __init__(self, n_rows: int, width: int, *, is_sparse: bool, limit: int, folder: Path, name: str) -> None:
        self.n_rows, self.width, self.is_sparse, self.limit = n_rows, width, is_sparse, limit
        self.dtype: Any = np.float64 if n_rows * width <= DOUBLE else np.float32
        self.path = folder / name
        self.filled = 0
        self._file: Any = None
        self._blocks: list[Any] = []
        self._held = 0
        self._files: SparseFiles | None = None
        self._dense: Any = None
        if not is_sparse:
            self.on_disk = n_rows * width * np.dtype(self.dtype).itemsize > limit
            self._dense = None if self.on_disk else np.empty((n_rows, width), self.dtype)
        else:
            self.on_disk = False
            self.dtype = np.float64

    def append(self, block: Any) -> None:
        """The next rows."""
        rows = block.shape[0]
        if not rows:
            return
        try:
            if self.is_sparse:
                self._append_sparse(sparse.csr_array(block, dtype=self.dtype))
            elif self._dense is not None:
                self._dense[self.filled : self.filled + rows] = block
            else:
                self._file = self._file or self.path.open("wb")
                self._file.write(np.ascontiguousarray(block, dtype=self.dtype).data)
        except OSError as error:
            if self._file is not None:
                self._file.close()
            raise UserError(
                f"cannot keep the prepared rows in {shown(self.path.parent)}: {error.strerror or error}; give them "
                "more --memory, or set TMPDIR to a disk with more room"
            ) from error
        self.filled += rows

    def _append_sparse(self, block: Any) -> None:
        if self._files is None:
            self._blocks.append(block)
            self._held += block.data.nbytes + block.indices.nbytes
            if self._held <= self.limit:
                return
            self.on_disk, self._files = True, SparseFiles(self.path, self.width)
            for held in self._blocks:
                self._files.append(held)
            self._blocks = []
            return
        self._files.append(block)

    def finish(self) -> Any:
        """The matrix: an array, a CSR array, a memory-mapped array, or a source of CSR blocks."""
        assert self.filled == self.n_rows, (self.filled, self.n_rows)
        if self._file is not None:
            self._file.close()
            return np.memmap(self.path, self.dtype, mode="r", shape=(self.n_rows, self.width))
        if self._files is not None:
            return self._files
        if self.is_sparse:
            blocks = self._blocks or [sparse.csr_array((0, self.width), dtype=self.dtype)]
            return sparse.csr_array(sparse.vstack(blocks, format="csr"))
        return self._dense


class SparseFiles:
    """Blocks of CSR rows in files, read anew each time they are iterated over."""

    def __init__(self, folder: Path, width: int) -> None:
        folder.mkdir()
        self.folder, self.width, self.count = folder, width, 0

    def append(self, block: Any) -> None:
        """Keep a block."""
        for part in ("data", "indices", "indptr"):
            np.save(self.folder / f"{self.count}.{part}.npy", getattr(block, part))
        self.count += 1

    def __iter__(self) -> Iterator[Any]:
        for number in range(self.count):
            parts = [np.load(self.folder / f"{number}.{part}.npy") for part in ("data", "indices", "indptr")]
            yield sparse.csr_array(tuple(parts), shape=(len(parts[2]) - 1, self.width))
