"""The product of sparse rows with a dense matrix: SciPy's result, for every width, type and instruction set."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import pytest
from cases import INSTRUCTION_SETS
from scipy import sparse

from softgrad._core import backend
from softgrad.regression.rows._sparse import HALF, Turned, gathered, longest, to_half


def csr(rows: int, cols: int, density: float, dtype: Any, index: Any) -> Any:
    random = np.random.default_rng(rows + cols)
    dense = random.normal(size=(rows, cols)) * (random.random((rows, cols)) < density)
    made = sparse.csr_array(dense.astype(dtype))
    return made.data, made.indices.astype(index), made.indptr.astype(index), dense.astype(dtype)


def product(data: Any, indices: Any, indptr: Any, dense: Any, out: Any) -> None:
    backend.kernels().sparse_product(data, indices, indptr, dense, out)


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


@pytest.mark.parametrize("kind", [np.float32, np.float64, HALF])
@pytest.mark.parametrize("width", [1, 7, 8, 9, 16, 17, 20, 24, 31, 32, 33, 52, 65])
def test_rows_that_end_where_vectors_do(instruction_set: str, kind: Any, width: int) -> None:
    dtype = np.float32 if kind == HALF else kind
    data, indices, indptr, x = csr(37, 23, 0.3, dtype, np.int32)
    b = np.random.default_rng(width).normal(size=(23, width)).astype(dtype)
    dense = gathered(23, width, kind)
    if kind == HALF:
        to_half(b, dense[:, :width])
        b = (dense[:, :width].astype(np.uint32) << 16).view(np.float32)
    else:
        dense[:, :width] = b
    assert dense.ctypes.data % 64 == 0
    assert dense.shape[1] % 8 == 0
    dense[:, width:] = 0x7FC0 if kind == HALF else np.nan  # may be read, and is not in the result
    out = np.full((37, width + 3), np.nan, dtype)
    product(data, indices, indptr, dense, out[:, :width])
    np.testing.assert_allclose(out[:, :width], x.astype(np.float64) @ b, atol=40 * np.finfo(dtype).eps)
    assert np.isnan(out[:, width:]).all()


@pytest.mark.parametrize("native", [name for name in INSTRUCTION_SETS if name != "numpy"])
def test_halves_that_are_not_padded_are_refused(native: str) -> None:
    out = np.full((3, 5), np.nan, np.float32)
    indptr = np.array([0, 0, 1, 1], np.int32)
    with backend.use(native), pytest.raises(ValueError, match="too few columns"):
        product(np.ones(1, np.float32), np.ones(1, np.int32), indptr, np.zeros((2, 5), HALF), out)
    assert np.isnan(out).all()


def test_half_is_the_nearest_bfloat16(instruction_set: str) -> None:
    random = np.random.default_rng(0)
    values = (random.normal(size=(40, 50)) * 10.0 ** random.integers(-30, 30, (40, 50))).astype(np.float32)
    values[0, :6] = [0.0, -0.0, np.inf, -np.inf, np.nan, 1.0]
    bits = np.zeros((40, 64), HALF)
    to_half(values[:, :45], bits[:, :45])
    assert not bits[:, 45:].any()
    back = (bits[:, :45].astype(np.uint32) << 16).view(np.float32)
    with np.errstate(invalid="ignore"):  # of NaN
        expected = values[:, :45].astype(ml_dtypes.bfloat16).astype(np.float32)
    finite = np.isfinite(values[:, :45])
    np.testing.assert_array_equal(back[~finite], values[:, :45][~finite])
    part = values[:, :45][finite]
    error, least = np.abs(back[finite] - part), np.abs(expected[finite] - part)
    np.testing.assert_array_equal(error, least)  # ties may go another way


@pytest.mark.parametrize("kind", [np.float32, np.float64, HALF])
def test_turned_rows(instruction_set: str, kind: Any) -> None:
    random = np.random.default_rng(3)
    x = sparse.random_array((300, 90), density=0.1, rng=random, dtype=np.float64).tocsr()
    g = random.normal(size=(300, 20)).astype(np.float64 if kind == np.float64 else np.float32)
    turned = Turned(x.astype(g.dtype), 20)
    for lo in range(0, 300, 70):
        turned.hold(g[lo : lo + 70], lo, kind)
    atol = 0.05 if kind == HALF else 1e-4 if kind == np.float32 else 1e-12
    for n_threads in (1, 2):
        np.testing.assert_allclose(turned.back(n_threads), g.T @ x.toarray(), atol=atol)
        np.testing.assert_allclose(turned.back(n_threads, square=True), g.T @ x.toarray() ** 2, atol=atol)
    top, columns = turned.heavy()
    np.testing.assert_array_equal(top, np.arange(90))
    np.testing.assert_array_equal(columns, x.toarray().astype(np.float32))
    assert longest(x) == pytest.approx((x.toarray() ** 2).sum(axis=1).max(), rel=1e-14)


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
    with backend.use(native), pytest.raises(ValueError, match="outside"):
        product(data, np.array(indices, np.int32), np.array(indptr, np.int32), dense, out)
    np.testing.assert_array_equal(out, 1)
