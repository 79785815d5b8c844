"""Apache Arrow datasets as blocks of rows, in bounded memory. pyarrow is imported by the first call."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    import pyarrow as pa
    import pyarrow.dataset as ds

__all__ = ["block_rows", "dataset_blocks", "dataset_layout", "is_dataset", "read_column"]

_BLOCK_BYTES = 16 << 20
_COLUMNS_AT_ONCE = 16  # interleaved together: one cache line of float32
_READ_BUFFER = 1 << 16


def is_dataset(source: object) -> bool:
    """Whether it is a ``pyarrow.dataset.Dataset``; one exists only if its module has been imported."""
    module = sys.modules.get("pyarrow.dataset")
    return module is not None and isinstance(source, module.Dataset)


def dataset_layout(
    dataset: ds.Dataset, columns: Sequence[str] | None
) -> tuple[list[str], list[int | None], type[np.floating[Any]]]:
    """The columns to read, the width of each (None for lists of a length that only the rows tell) and the dtype."""
    import pyarrow as pa

    known = dataset.schema.names
    wanted = list(known if columns is None else columns)
    missing = [name for name in wanted if name not in known]
    if missing:
        raise ValueError(f"the dataset has no column {missing[0]!r}; it has {known}")
    if not wanted:
        raise ValueError("the dataset has no column left for the features")
    widths: list[int | None] = []
    single = True
    for name in wanted:
        kind = dataset.schema.field(name).type
        item = kind.value_type if _is_list(kind) else kind
        if not (pa.types.is_floating(item) or pa.types.is_integer(item) or pa.types.is_boolean(item)):
            raise ValueError(
                f"column {name!r} of the dataset is of type {kind}: features must be real numbers, or lists of them"
            )
        widths.append(kind.list_size if pa.types.is_fixed_size_list(kind) else None if _is_list(kind) else 1)
        single = single and (pa.types.is_float32(item) or pa.types.is_float16(item))
    return wanted, widths, np.float32 if single else np.float64


def block_rows(width: int, itemsize: int, max_memory: int | None) -> int:
    """Rows of a block: 16 MB of them, or an eighth of ``max_memory`` (Arrow's copy and ours, and room to decode)."""
    size = _BLOCK_BYTES if max_memory is None else min(_BLOCK_BYTES, max_memory // 8)
    return max(1, min(1 << 16, size // max(1, width * itemsize)))


def dataset_blocks(
    dataset: ds.Dataset, columns: Sequence[str], dtype: type[np.floating[Any]], rows: int
) -> Iterator[NDArray[Any]]:
    """Dense blocks (up to ``rows``, features) of the columns, in the order of the dataset."""
    import pyarrow as pa

    first = 0
    for batch in _batches(dataset, columns, rows):
        if batch.num_rows:
            yield _dense(batch, columns, dtype, first)
            first += batch.num_rows
    pa.default_memory_pool().release_unused()


def read_column(dataset: ds.Dataset, name: str) -> NDArray[Any]:
    """One column in memory: numbers, text, or lists of numbers as a matrix."""
    import pyarrow as pa

    if name not in dataset.schema.names:
        raise ValueError(f"the dataset has no column {name!r}; it has {dataset.schema.names}")
    parts: list[NDArray[Any]] = []
    first = 0
    for batch in _batches(dataset, [name], 1 << 16):
        array: Any = batch.column(0)
        _refuse_nulls(array, name, first)
        if pa.types.is_dictionary(array.type):
            array = array.dictionary_decode()
        if _is_list(array.type):
            parts.append(_matrix(array, name, first))
        else:
            values = array.to_numpy(zero_copy_only=False)
            parts.append(values.astype(str) if _is_text(array.type) else values)
        first += batch.num_rows
    filled = [part for part in parts if len(part)]
    return np.concatenate(filled) if filled else np.empty(0)


def _batches(dataset: ds.Dataset, columns: Sequence[str], rows: int) -> Iterator[pa.RecordBatch]:
    """Record batches of at most ``rows`` rows.

    Arrow's scanner decodes a whole Parquet row group, and the next ones ahead of it; a Parquet file's own reader holds
    a page a column. The scanner is for what that reader does not know: other formats, filters, partition columns.
    """
    import pyarrow.dataset as ds

    names = list(columns)
    try:
        fragments = list(dataset.get_fragments())
    except ValueError:  # a filtered dataset: only its scanner knows the filter
        fragments = []
    if not fragments:
        yield from _scan(dataset, names, rows)
        return
    for fragment in fragments:
        if isinstance(fragment, ds.ParquetFileFragment) and set(names) <= set(fragment.physical_schema.names):
            yield from _read_parquet(fragment, names, rows)
        else:
            yield from _scan(fragment, names, rows, schema=dataset.schema)


def _scan(source: Any, columns: list[str], rows: int, **options: Any) -> Iterator[pa.RecordBatch]:
    scanner = source.scanner(columns=columns, batch_size=rows, batch_readahead=0, fragment_readahead=0, **options)
    yield from scanner.to_batches()


def _read_parquet(fragment: ds.ParquetFileFragment, columns: list[str], rows: int) -> Iterator[pa.RecordBatch]:
    import pyarrow.parquet as pq

    with fragment.open() as file:
        reader = pq.ParquetFile(file, pre_buffer=False, buffer_size=_READ_BUFFER)
        groups = [group.id for group in fragment.row_groups]
        yield from reader.iter_batches(batch_size=rows, row_groups=groups, columns=columns)


def _dense(batch: pa.RecordBatch, columns: Sequence[str], dtype: type[np.floating[Any]], first: int) -> NDArray[Any]:
    parts = []
    for name in columns:
        array = batch.column(batch.schema.get_field_index(name))
        _refuse_nulls(array, name, first)
        if _is_list(array.type):
            parts.append(_matrix(array, name, first))
        else:
            parts.append(array.to_numpy(zero_copy_only=False))
    if len(parts) == 1 and parts[0].ndim == 2:
        return np.ascontiguousarray(parts[0], dtype=dtype)
    if all(part.ndim == 1 for part in parts):
        block = np.empty((batch.num_rows, len(parts)), dtype)
        for begin in range(0, len(parts), _COLUMNS_AT_ONCE):
            group = parts[begin : begin + _COLUMNS_AT_ONCE]
            block[:, begin : begin + len(group)] = np.stack(group, axis=1)
        return block
    return np.concatenate([part.reshape(batch.num_rows, -1) for part in parts], axis=1, dtype=dtype)


def _matrix(array: Any, name: str, first: int) -> NDArray[Any]:
    """A list column as (rows, width)."""
    import pyarrow as pa

    if pa.types.is_fixed_size_list(array.type):
        width = array.type.list_size
    else:
        lengths = array.value_lengths().to_numpy(zero_copy_only=False)
        width = int(lengths[0]) if len(lengths) else 0
        other = np.flatnonzero(lengths != width)
        if other.size:
            raise ValueError(
                f"column {name!r} of the dataset holds {lengths[other[0]]} numbers in row {first + other[0]} and "
                f"{width} in row {first}: every row must hold as many"
            )
    items = array.flatten()
    if items.null_count:
        row = int(np.flatnonzero(items.is_null().to_numpy(zero_copy_only=False))[0]) // max(1, width)
        raise ValueError(f"column {name!r} of the dataset is null inside row {first + row}: fill it, or drop the row")
    return np.asarray(items.to_numpy(zero_copy_only=False)).reshape(len(array), width)


def _refuse_nulls(array: Any, name: str, first: int) -> None:
    if array.null_count:
        row = first + int(np.flatnonzero(array.is_null().to_numpy(zero_copy_only=False))[0])
        raise ValueError(f"column {name!r} of the dataset is null in row {row}: fill it, or drop the row")


def _is_text(kind: pa.DataType) -> bool:
    import pyarrow as pa

    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind))


def _is_list(kind: pa.DataType) -> bool:
    import pyarrow as pa

    return bool(pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind))
