"""Rows that are read in blocks: the same matrix as in memory, in bounded memory, and every mistake named."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.dataset as ds
import pyarrow.feather
import pyarrow.parquet as pq
import pytest
from scipy import sparse

from softgrad.regression.rows._arrow import block_rows, read_column
from softgrad.regression.rows._blocks import first_not_finite
from softgrad.regression.rows._sources import RowBlocks, is_source


class Blocks:
    """A re-iterable of given blocks."""

    def __init__(self, *blocks: Any) -> None:
        self.blocks = blocks

    def __iter__(self) -> Iterator[Any]:
        yield from self.blocks


@pytest.fixture
def x() -> Any:
    return np.random.default_rng(0).standard_normal((1000, 7), dtype=np.float32)


def table(x: Any, **more: Any) -> pa.Table:
    return pa.table({f"f{j}": x[:, j] for j in range(x.shape[1])} | more)


def together(blocks: RowBlocks) -> Any:
    parts = list(blocks)
    return sparse.vstack(parts).toarray() if sparse.issparse(parts[0]) else np.concatenate(parts)


# --- blocks ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.float16, np.int32, np.bool_])
def test_blocks_are_the_matrix_every_time(x: Any, dtype: Any) -> None:
    x = (10 * x).astype(dtype)
    blocks = RowBlocks.of(Blocks(x[:300], x[300:301], x[:0], x[301:]))
    assert (blocks.n_rows, blocks.n_features) == x.shape
    assert blocks.dtype is (np.float32 if dtype in (np.float32, np.float16) else np.float64)
    for _ in range(3):
        np.testing.assert_array_equal(together(blocks), x.astype(blocks.dtype))
    for block in blocks:
        assert block.flags.c_contiguous
        assert block.dtype == blocks.dtype


@pytest.mark.parametrize("make", [sparse.csr_array, sparse.csr_matrix, sparse.csc_array, sparse.coo_matrix])
def test_sparse_blocks_become_csr(x: Any, make: Any) -> None:
    x[x < 0.5] = 0
    blocks = RowBlocks.of(Blocks(make(x[:400]), make(x[400:])))
    assert all(block.format == "csr" for block in blocks)
    np.testing.assert_array_equal(together(blocks), x)


def test_a_list_of_blocks_fortran_order_and_tables_will_do(x: Any) -> None:
    for source in ([x[:10], x[10:]], [np.asfortranarray(x)], [x[::-1][::-1]], [pa.table(table(x))]):
        np.testing.assert_array_equal(together(RowBlocks.of(source)), x)
    again = RowBlocks.of([x])
    assert RowBlocks.of(again) is again


def test_an_unfinished_pass_does_not_disturb_the_next(x: Any) -> None:
    blocks = RowBlocks.of(Blocks(x[:500], x[500:]))
    next(iter(blocks))
    np.testing.assert_array_equal(together(blocks), x)


@pytest.mark.parametrize("source", [(np.zeros((2, 2)) for _ in range(2)), iter([np.zeros((2, 2))]), map(abs, [])])
def test_what_can_be_read_once_is_refused(source: Any) -> None:
    assert is_source(source)
    with pytest.raises(TypeError, match=r"one-shot .*: it is empty after one pass, and a fit makes many"):
        RowBlocks.of(source)


@pytest.mark.parametrize("source", [3, "rows.npy", b"rows", {"a": 1}, None])
def test_what_is_no_source_is_refused(source: Any) -> None:
    with pytest.raises(TypeError, match=f"must be a re-iterable .*, not {type(source).__name__}"):
        RowBlocks.of(source)


def test_arrays_tables_and_sequences_are_not_sources(x: Any) -> None:
    for values in (x, x.tolist(), sparse.csr_array(x), table(x), {"a": x}, "text", None, memoryview(x)):
        assert not is_source(values)
    for values in (Blocks(x), RowBlocks.of([x]), ds.dataset(table(x))):
        assert is_source(values)


@pytest.mark.parametrize(
    ("blocks", "message"),
    [
        ([np.zeros((2, 3)), np.zeros((2, 4))], "block 1 of the source has 4 features, but the first has 3"),
        (
            [np.zeros((2, 3)), np.zeros((2, 3), np.float32)],
            "block 1 of the source is float32, but the first is float64",
        ),
        ([np.zeros((2, 3)), np.zeros(3)], r"block 1 of the source has 1 dimension\(s\), not two"),
        (
            [np.zeros((2, 3)), sparse.csr_array((2, 3))],
            "block 1 of the source is a csr_array, but the first is a ndarray",
        ),
        ([np.zeros((2, 3), complex)], "block 0 of the source is of dtype complex128: features must be real numbers"),
        ([np.array([["a", "b"]])], "block 0 of the source is of dtype <U1"),
        ([], "the source has no rows"),
        ([np.zeros((0, 3))], "the source has no rows"),
    ],
)
def test_blocks_that_do_not_fit_together(blocks: list[Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        RowBlocks.of(blocks)


@pytest.mark.parametrize(("value", "kind"), [(np.nan, "NaN"), (np.inf, "infinity"), (-np.inf, "infinity")])
@pytest.mark.parametrize("make", [np.asarray, sparse.csr_array])
def test_the_first_value_that_is_not_finite_is_named(x: Any, value: float, kind: str, make: Any) -> None:
    x[700, 5] = x[999, 1] = value
    with pytest.raises(ValueError, match=f"Input X contains {kind}: row 700, column 5; "):
        RowBlocks.of([make(x[:600]), make(x[600:])])


def test_an_overflowing_sum_is_not_taken_for_infinity() -> None:
    big = np.full((5, 3), np.finfo(np.float32).max)
    assert first_not_finite(big) is None
    assert first_not_finite(sparse.csr_array(big)) is None
    big[4, 2] = np.nan
    assert first_not_finite(big)[:2] == first_not_finite(sparse.csr_array(big))[:2] == (4, 2)  # type: ignore[index]


class Changing:
    """Blocks that a function of the number of the pass makes."""

    def __init__(self, make: Any) -> None:
        self.make, self.n_passes = make, 0

    def __iter__(self) -> Iterator[Any]:
        self.n_passes += 1
        yield from self.make(self.n_passes)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda x, n: [x[:500], x[500 : 1000 - (n > 1)]], "block 1, which begins at row 500, is not what it was"),
        (lambda x, n: [x[:500], x[500:]][: 3 - n], "it gave 500 rows in this pass and 1000 before"),
        (lambda x, n: [x] * n, "block 1, which begins at row 1000, is not what it was"),
        (
            lambda x, n: [np.random.default_rng(n).permutation(x)],
            "block 0, .* is not what it was",
        ),  # a shuffling loader
        (lambda x, n: [x[500:], x[:500]][:: 1 if n == 1 else -1], "block 0, .* is not what it was"),
    ],
)
def test_a_source_that_changes_is_caught(x: Any, make: Any, message: str) -> None:
    blocks = RowBlocks.of(Changing(lambda n_passes: make(x, n_passes)))
    with pytest.raises(ValueError, match=f"the source changed between two passes: {message}"):
        together(blocks)


# --- datasets of Arrow -----------------------------------------------------------------------------------------------


def write(folder: Path, kind: str, content: pa.Table) -> ds.Dataset:
    if kind == "memory":
        return ds.dataset(content)
    folder.mkdir(exist_ok=True)
    if kind == "parquet":
        pq.write_table(content, folder / "a.parquet", row_group_size=300)
    elif kind == "two files":
        pq.write_table(content.slice(0, 417), folder / "a.parquet", row_group_size=100)
        pq.write_table(content.slice(417), folder / "b.parquet")
    elif kind == "feather":
        pa.feather.write_feather(content, folder / "a.feather", chunksize=128)
        return ds.dataset(folder, format="feather")
    elif kind == "csv":
        pa.csv.write_csv(content, folder / "a.csv")
        return ds.dataset(folder, format="csv")
    return ds.dataset(folder)


@pytest.mark.parametrize("kind", ["memory", "parquet", "two files", "feather", "csv"])
def test_a_dataset_is_its_columns(x: Any, tmp_path: Path, kind: str) -> None:
    dataset = write(tmp_path, kind, table(x))
    blocks = RowBlocks.of(dataset)
    assert blocks.columns == blocks.names == [f"f{j}" for j in range(7)]
    assert blocks.dtype is (np.float64 if kind == "csv" else np.float32)
    assert (blocks.n_rows, blocks.n_features) == x.shape
    for _ in range(2):
        np.testing.assert_allclose(together(blocks), x, rtol=1e-6)
    chosen = RowBlocks.of(dataset, columns=["f5", "f2"])
    np.testing.assert_allclose(together(chosen), x[:, [5, 2]], rtol=1e-6)


def test_max_memory_bounds_the_blocks(x: Any, tmp_path: Path) -> None:
    dataset = write(tmp_path, "parquet", table(x))
    blocks = RowBlocks.of(dataset, max_memory=8 * 7 * 4 * 50)
    assert max(len(block) for block in blocks) == 50
    np.testing.assert_array_equal(together(blocks), x)
    assert block_rows(512, 4, None) == 8192
    assert block_rows(10**9, 4, 1) == 1
    with pytest.raises(ValueError, match="max_memory must be a positive number of bytes, not 0"):
        RowBlocks.of(dataset, max_memory=0)


def test_a_column_of_embeddings_is_many_features(x: Any, tmp_path: Path) -> None:
    fixed = pa.FixedSizeListArray.from_arrays(pa.array(x.ravel()), 7)
    free = pa.array(x.tolist(), type=pa.list_(pa.float32()))
    large = pa.array(x.tolist(), type=pa.large_list(pa.float64()))
    for number, column in enumerate((fixed, free, large)):
        dataset = write(tmp_path / str(number), "parquet", pa.table({"e": column}))
        blocks = RowBlocks.of(dataset)
        assert (blocks.n_features, blocks.columns, blocks.names) == (7, ["e"], None)
        assert blocks.dtype is (np.float64 if column is large else np.float32)
        np.testing.assert_array_equal(together(blocks), x)
    mixed = RowBlocks.of(ds.dataset(pa.table({"e": fixed, "a": x[:, 0]})))
    np.testing.assert_array_equal(together(mixed), np.column_stack([x, x[:, 0]]))


def test_types_become_float32_only_where_all_are(x: Any) -> None:
    columns = {"a": x[:, 0], "b": (x[:, 1] > 0), "c": np.arange(len(x)), "h": x[:, 2].astype(np.float16)}
    content = pa.table(columns)
    assert RowBlocks.of(ds.dataset(content.select(["a", "h"]))).dtype is np.float32
    blocks = RowBlocks.of(ds.dataset(content))
    assert blocks.dtype is np.float64
    np.testing.assert_array_equal(together(blocks), np.column_stack(list(columns.values())).astype(float))


def test_a_filtered_and_a_partitioned_dataset(x: Any, tmp_path: Path) -> None:
    content = table(x, part=np.arange(1000) // 300)
    dataset = ds.dataset(content).filter(ds.field("part") == 1)
    np.testing.assert_array_equal(together(RowBlocks.of(dataset))[:, :7], x[300:600])
    pq.write_table(content, tmp_path / "a.parquet")
    filtered = ds.dataset(tmp_path / "a.parquet").filter(ds.field("part") == 2)
    np.testing.assert_array_equal(together(RowBlocks.of(filtered, columns=["f0"])), x[600:900, :1])
    ds.write_dataset(
        content, tmp_path / "parts", format="parquet", partitioning=ds.partitioning(content.select(["part"]).schema)
    )
    parts = ds.dataset(tmp_path / "parts", partitioning=["part"])
    got = together(RowBlocks.of(parts, columns=["part", "f1"]))
    np.testing.assert_array_equal(got, np.column_stack([np.arange(1000) // 300, x[:, 1]]))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"a": ["x", "y"]}, "column 'a' of the dataset is of type string: features must be real numbers"),
        ({"a": [[1.0], [1.0, 2.0]]}, "column 'a' of the dataset holds 2 numbers in row 1 and 1 in row 0"),
        ({"a": [1.0, 2.0], "b": [1.0, None]}, "column 'b' of the dataset is null in row 1: fill it"),
        ({"a": [[1.0, 2.0], None]}, "column 'a' of the dataset is null in row 1"),
        ({"a": [[1.0, 2.0], [3.0, None]]}, "column 'a' of the dataset is null inside row 1"),
        ({"a": [1.0, 2.0], "b": [1.0, np.inf]}, r"Input X contains infinity: row 1, column 1 \('b'\)"),
        ({"a": pa.array([], pa.float64())}, "the dataset has no rows"),
        ({}, "the dataset has no column left"),
    ],
)
def test_columns_that_will_not_do(content: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        together(RowBlocks.of(ds.dataset(pa.table(content))))


def test_columns_that_are_not_there(x: Any) -> None:
    dataset = ds.dataset(table(x[:, :2]))
    with pytest.raises(ValueError, match=r"the dataset has no column 'g'; it has \['f0', 'f1'\]"):
        RowBlocks.of(dataset, columns=["f0", "g"])
    with pytest.raises(ValueError, match="the dataset has no column 'y'"):
        read_column(dataset, "y")
    with pytest.raises(TypeError, match="columns= selects columns of a pyarrow Dataset; the source is a list"):
        RowBlocks.of([x], columns=["f0"])


def test_a_column_in_memory() -> None:
    soft = [[0.5, 0.5], [1.0, 0.0]]
    content = pa.table(
        {
            "n": [3, 4],
            "t": ["a", "bc"],
            "d": pa.array(["u", "v"]).dictionary_encode(),
            "s": pa.array(soft, type=pa.list_(pa.float32(), 2)),
            "z": ["a", None],
        }
    )
    dataset = ds.dataset(content)
    assert read_column(dataset, "n").tolist() == [3, 4]
    assert read_column(dataset, "t").tolist() == ["a", "bc"]
    assert read_column(dataset, "t").dtype.kind == "U"
    assert read_column(dataset, "d").tolist() == ["u", "v"]
    assert read_column(dataset, "s").tolist() == soft
    with pytest.raises(ValueError, match="column 'z' of the dataset is null in row 1"):
        read_column(dataset, "z")


def test_a_dataset_that_grows_is_caught(x: Any, tmp_path: Path) -> None:
    dataset = write(tmp_path, "parquet", table(x))
    blocks = RowBlocks.of(dataset)
    together(blocks)
    pq.write_table(table(x + 1), tmp_path / "a.parquet", row_group_size=300)
    with pytest.raises(ValueError, match="the source changed between two passes: block 0, which begins at row 0"):
        together(blocks)


_MEMORY = """
import sys, threading, time
import numpy as np, pyarrow.dataset, pyarrow.parquet
from softgrad.regression.rows._sources import RowBlocks

def anonymous():
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) for line in file if line.startswith("RssAnon"))

base, most, done = anonymous(), 0, False
def watch():
    global most
    while not done:
        most = max(most, anonymous())
        time.sleep(0.001)
watcher = threading.Thread(target=watch); watcher.start()
blocks = RowBlocks.of(pyarrow.dataset.dataset(sys.argv[1]), max_memory=1 << 23)
rows = sum(len(block) for _ in range(2) for block in blocks)
done = True; watcher.join()
print(rows, (most - base) // 1024)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_a_dataset_is_read_in_little_memory(tmp_path: Path) -> None:
    x = np.random.default_rng(0).standard_normal((1 << 19, 64), dtype=np.float32)  # 128 MB
    pq.write_table(table(x), tmp_path / "a.parquet", row_group_size=1 << 14)
    done = subprocess.run(
        [sys.executable, "-c", _MEMORY, str(tmp_path / "a.parquet")],
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    )
    rows, megabytes = map(int, done.stdout.split())
    assert rows == 2 * len(x)
    assert megabytes < 64


def test_nothing_imports_pyarrow_before_a_dataset_is_read() -> None:
    code = (
        "import sys, numpy as np; from softgrad.regression.rows._sources import RowBlocks; "
        "RowBlocks.of([np.zeros((2, 2))]); print('pyarrow' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout == "False\n"
