"""Rows that do not fit in memory: read block by block, as often as the fit needs them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np

from softgrad.regression.rows._arrow import block_rows, dataset_blocks, dataset_layout, is_dataset
from softgrad.regression.rows._blocks import Block, as_block, check_finite, fingerprint

__all__ = ["RowBlocks", "is_source"]


class RowBlocks:
    """The rows of a matrix as blocks that can be read again and again, each time the same.

    Made by :meth:`of`. Every pass is checked: all blocks have the width and the type of the first, all values are
    finite, and the blocks are those of the first pass, in its order (by the number of their rows and a checksum of
    their first and last row): a fit reads its data tens of times, and its labels belong to the rows by their number.

    Attributes
    ----------
    n_rows, n_features : int
        The shape of the matrix.
    dtype : type
        ``numpy.float32`` or ``numpy.float64``.
    columns : list of str or None
        The columns of the dataset that are read; None if the source is not one.
    names : list of str or None
        Names of the features, where each is a column of a dataset.

    Examples
    --------
    >>> import numpy as np
    >>> from softgrad.regression import RowBlocks
    >>> class Halves:  # re-iterable: each `for` starts at the first block
    ...     def __iter__(self):
    ...         yield np.zeros((3, 2), dtype=np.float32)
    ...         yield np.ones((2, 2), dtype=np.float32)
    >>> blocks = RowBlocks.of(Halves())
    >>> blocks.n_rows, blocks.n_features, [len(block) for block in blocks]
    (5, 2, [3, 2])
    """

    n_rows: int
    n_features: int
    dtype: type[np.floating[Any]]
    columns: list[str] | None = None
    names: list[str] | None = None

    def __init__(self, read: Callable[[], Iterable[Block]]) -> None:
        self._read = read
        self._marks: list[tuple[int, int]] | None = None

    @classmethod
    def of(cls, source: Any, max_memory: int | None = None, *, columns: Sequence[str] | None = None) -> RowBlocks:
        """Rows of a re-iterable of blocks or of a dataset of Apache Arrow.

        Parameters
        ----------
        source : re-iterable of blocks, pyarrow.dataset.Dataset or RowBlocks
            Blocks are 2-D arrays or sparse matrices, all dense or all sparse. A re-iterable gives them anew each time
            it is iterated over: a list, or an object whose ``__iter__`` opens the data again. It is read once here, to
            know its shape. The columns of a dataset are the features; a column of lists of numbers (an embedding)
            gives as many features as its lists are long. Features are float32 if all numbers are float32 or float16,
            else float64.
        max_memory : int, optional
            Bytes for the blocks of a dataset, which bounds their rows; 128 MB if not given. To decode Parquet, Arrow
            needs in addition about three times a row group, and of a large one some 2 MB for each column: files of
            many columns are read in the least memory if their row groups are of some ten thousand rows, or if a
            column of lists takes the place of the many. It decodes with threads of its own
            (``pyarrow.set_cpu_count``).
        columns : sequence of str, optional
            The columns of the dataset to read, in this order; all if not given.

        Returns
        -------
        RowBlocks

        Raises
        ------
        TypeError
            For a source that is not one, and for an iterator, which could be read only once.
        ValueError
            For blocks that differ in width or type, are not finite, or hold no numbers.
        """
        if isinstance(source, cls):
            return source
        if columns is not None and not is_dataset(source):
            raise TypeError(f"columns= selects columns of a pyarrow Dataset; the source is a {type(source).__name__}")
        return cls._of_dataset(source, max_memory, columns) if is_dataset(source) else cls._of_iterable(source)

    @classmethod
    def _of_iterable(cls, source: Any) -> RowBlocks:
        if isinstance(source, Iterator):
            raise TypeError(
                f"the source is a one-shot {type(source).__name__}: it is empty after one pass, and a fit makes many. "
                "Give an object whose __iter__ starts again at the first block, such as a class whose __iter__ yields "
                "them"
            )
        if not isinstance(source, Iterable) or isinstance(source, (str, bytes, dict)):
            raise TypeError(
                f"the source must be a re-iterable of blocks or a pyarrow Dataset, not {type(source).__name__}"
            )
        self = cls(lambda: source)
        for _ in self:
            pass
        return self

    @classmethod
    def _of_dataset(cls, dataset: Any, max_memory: int | None, columns: Sequence[str] | None) -> RowBlocks:
        if max_memory is not None and max_memory < 1:
            raise ValueError(f"max_memory must be a positive number of bytes, not {max_memory}")
        names, widths, dtype = dataset_layout(dataset, columns)
        known = [width for width in widths if width is not None]
        if len(known) < len(widths):  # the first row tells how long lists of free length are
            probe = next(iter(dataset_blocks(dataset, names, dtype, 1)), None)
            n_features = 0 if probe is None else probe.shape[1]
        else:
            n_features = sum(known)
        rows = block_rows(n_features, np.dtype(dtype).itemsize, max_memory)
        self = cls(lambda: dataset_blocks(dataset, names, dtype, rows))
        self.n_rows, self.n_features, self.dtype = dataset.count_rows(), n_features, dtype
        self.columns = names
        self.names = names if n_features == len(names) and all(width == 1 for width in widths) else None
        if not self.n_rows:
            raise ValueError("the dataset has no rows")
        return self

    def __iter__(self) -> Iterator[Block]:
        """The blocks, checked."""
        n_rows, kind = 0, None
        marks: list[tuple[int, int]] = []
        for number, values in enumerate(self._read()):
            place = f"block {number} of the source"
            block = as_block(values, place)
            if not block.shape[0]:
                continue
            if kind is None:
                kind = type(block)
            self._check_alike(block, kind, place)
            check_finite(block, self.names, n_rows)
            mark = fingerprint(block)
            if self._marks is not None and (len(marks) >= len(self._marks) or self._marks[len(marks)] != mark):
                raise _changed(f"block {number}, which begins at row {n_rows}, is not what it was in the first pass")
            marks.append(mark)
            n_rows += block.shape[0]
            yield block
        if kind is None and not hasattr(self, "n_rows"):
            raise ValueError("the source has no rows")
        if not hasattr(self, "n_rows"):
            self.n_rows = n_rows
        if n_rows != self.n_rows:
            raise _changed(f"it gave {n_rows} rows in this pass and {self.n_rows} before")
        self._marks = marks

    def _check_alike(self, block: Block, kind: type[Any], place: str) -> None:
        """The first block sets width and type where the source does not say them; all others have the same."""
        if not hasattr(self, "n_features"):
            self.n_features, self.dtype = block.shape[1], block.dtype.type
        if block.shape[1] != self.n_features:
            raise ValueError(f"{place} has {block.shape[1]} features, but the first has {self.n_features}")
        if block.dtype != self.dtype:
            raise ValueError(
                f"{place} is {block.dtype}, but the first is {np.dtype(self.dtype)}: blocks must be of one type"
            )
        if type(block) is not kind:
            raise ValueError(
                f"{place} is a {type(block).__name__}, but the first is a {kind.__name__}: blocks must be alike"
            )


def _changed(how: str) -> ValueError:
    return ValueError(
        f"the source changed between two passes: {how}. It must give the same rows in the same order every time "
        "(no shuffling, no random augmentation)"
    )


def is_source(values: Any) -> bool:
    """Whether X is read in blocks: RowBlocks, a dataset, an iterator, an iterable that is no array or sequence."""
    if isinstance(values, RowBlocks) or is_dataset(values):
        return True
    if isinstance(values, Iterator):  # read only once: RowBlocks says so
        return True
    array_like = ("__array__", "__array_interface__", "__dataframe__", "__arrow_c_stream__", "shape", "__getitem__")
    return isinstance(values, Iterable) and not any(hasattr(values, name) for name in array_like)
