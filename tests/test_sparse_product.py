"""The product of sparse rows with a dense matrix: SciPy's result, for every width, type and instruction set."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from cases import INSTRUCTION_SETS
from scipy import sparse

from softgrad import _backend


def csr(rows: int, cols: int, density: float, dtype: Any, index: Any) -> Any:
    random = np.random.default_rng(rows + cols)
    dense = random.normal(size=(rows, cols)) * (random.random((rows, cols)) < density)
    made = sparse.csr_array(dense.astype(dtype))
    return made.data, made.indices.astype(index), made.indptr.astype(index), dense.astype(dtype)


def product(data: Any, indices: Any, indptr: Any, dense: Any, out: Any) -> None:
    _backend.kernels().sparse_product(data, indices, indptr, data.itemsize, indices.itemsize, dense, out, out.itemsize)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("index", [np.int32, np.int64])
@pytest.mark.parametrize("width", [1, 2, 4, 7, 8, 15, 16, 17, 20, 31, 32, 33, 52, 63, 64, 65, 130])
def test_is_the_dense_product(instruction_set: str, dtype: Any, index: Any, width: int) -> None:
    data, indices, indptr, x = csr(37, 23, 0.3, dtype, index)
    b = np.random.default_rng(width).normal(size=(23, width)).astype(dtype)
    out = np.full((37, width + 3), np.nan, dtype)
    product(data, indices, indptr, b, out[:, :width])
    np.testing.assert_allclose(out[:, :width], x.astype(np.float64) @ b, atol=40 * np.finfo(dtype).eps)
    assert np.isnan(out[:, width:]).all()  # no store goes past the row


def test_empty_rows_give_zeros(instruction_set: str) -> None:
    indptr = np.array([0, 0, 1, 1], np.int32)
    out = np.full((3, 5), np.nan, np.float32)
    product(np.array([2.0], np.float32), np.array([1], np.int32), indptr, np.ones((2, 5), np.float32), out)
    np.testing.assert_array_equal(out, [[0] * 5, [2] * 5, [0] * 5])


@pytest.mark.parametrize("native", [name for name in INSTRUCTION_SETS if name != "numpy"])
@pytest.mark.parametrize(
    ("indices", "indptr"), [([2], [0, 1]), ([-1], [0, 1]), ([0], [0, 2]), ([0], [1, 0]), ([0], [-1, 1])]
)
def test_indices_outside_the_matrix_are_refused(native: str, indices: list[int], indptr: list[int]) -> None:
    data, dense, out = np.ones(1, np.float32), np.ones((2, 3), np.float32), np.ones((1, 3), np.float32)
    with _backend.use(native), pytest.raises(ValueError, match="outside"):
        product(data, np.array(indices, np.int32), np.array(indptr, np.int32), dense, out)
    np.testing.assert_array_equal(out, 1)
