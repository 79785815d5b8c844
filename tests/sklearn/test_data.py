"""What the estimator is fitted on: soft labels, offsets, tables, sparse matrices, data on disk; and what it refuses."""

from __future__ import annotations

import pickle
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest
import skops.io
from classifiers import largest_slope, real, soft_labels
from scipy import sparse
from scipy.special import softmax
from sklearn.exceptions import DataConversionWarning
from sklearn.model_selection import GridSearchCV, KFold, cross_val_score

from softgrad.regression.rows._sources import RowBlocks
from softgrad.sklearn import SoftmaxRegression

SIZES = {"iris": 3, "breast_cancer": 2}


# --- soft labels -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("data", ["iris", "breast_cancer"])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_every_option_at_once_is_at_the_optimum(data: str, smoothing: float) -> None:
    """Soft labels whose rows do not sum to 1, row and class weights, offset and smoothing: the gradient is 0."""
    x, y = real(data)
    n_classes = SIZES[data]
    soft = soft_labels(y, n_classes)
    rng = np.random.default_rng(1)
    weights, offset = rng.integers(0, 3, len(y)), rng.standard_normal((len(y), n_classes))
    of_class = [0.5, 2.0, 1.0][:n_classes]
    model = SoftmaxRegression(class_weight=dict(enumerate(of_class)), label_smoothing=smoothing, tol=1e-13)
    model.fit(x, soft, weights, offset)
    found = largest_slope(model, x, soft, sample_weight=weights, class_weight=of_class, offset=offset)
    assert found < 1e-6
    assert largest_slope(model, x, soft, sample_weight=weights, class_weight=of_class) > 1e-3, "the offset counts"


@pytest.mark.parametrize("data", ["iris", "breast_cancer"])
def test_soft_labels_are_weighted_repetitions_of_labels(data: str) -> None:
    x, y = real(data)
    n_classes = SIZES[data]
    soft = soft_labels(y, n_classes)
    model = SoftmaxRegression(tol=1e-12).fit(x, soft)
    every = np.tile(np.arange(n_classes), len(y))
    repeated = SoftmaxRegression(tol=1e-12).fit(np.repeat(x, n_classes, axis=0), every, soft.ravel())
    np.testing.assert_allclose(model.coef_, repeated.coef_, atol=1e-5)
    assert model.objective_ == pytest.approx(repeated.objective_, rel=1e-9)
    assert model.coef_.shape == (1 if n_classes == 2 else n_classes, x.shape[1])
    balanced = SoftmaxRegression(class_weight="balanced", tol=1e-12)
    again = balanced.fit(np.repeat(x, n_classes, axis=0), every, soft.ravel()).coef_
    np.testing.assert_allclose(balanced.fit(x, soft).coef_, again, atol=1e-5)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_one_hot_soft_labels_are_labels(dtype: Any) -> None:
    x, y = real("iris")
    hard, soft = (SoftmaxRegression(tol=1e-12).fit(x, given) for given in (y, np.eye(3, dtype=dtype)[y]))
    np.testing.assert_allclose(soft.coef_, hard.coef_, atol=1e-5)
    assert soft.classes_.tolist() == [0, 1, 2]


def test_soft_labels_are_scored_by_log_loss_and_labels_by_accuracy() -> None:
    x, y = real("iris")
    soft, weights = soft_labels(y, 3), np.arange(len(y)) % 4
    model = SoftmaxRegression().fit(x, soft)
    logs = model.predict_log_proba(x)
    by_hand = (weights @ (soft * logs).sum(axis=1)) / (weights @ soft.sum(axis=1))
    assert model.score(x, soft, weights) == pytest.approx(by_hand, rel=1e-12)
    assert model.score(x, y) == np.mean(model.predict(x) == y)
    best = softmax(np.log(soft + 1e-300), axis=1)
    assert model.score(x, soft) < np.einsum("ij,ij->", soft, np.log(best)) / soft.sum()
    assert cross_val_score(SoftmaxRegression(), x, soft).shape == (5,)
    assert GridSearchCV(SoftmaxRegression(), {"C": [1e-6, 1.0]}, cv=KFold(3, shuffle=True, random_state=0)).fit(
        x, soft
    ).best_params_ == {"C": 1.0}


@pytest.mark.parametrize("make", [pd.DataFrame, pl.DataFrame, pa.table])
def test_the_columns_of_a_table_of_soft_labels_are_the_classes(make: Any) -> None:
    x, y = real("iris")
    soft = np.eye(3)[y] * 0.9 + 0.1 / 3
    names = ["virginica", "setosa", "versicolor"]  # in the order of the columns, not of the alphabet
    table = make(dict(zip(names, soft.T, strict=True)))
    model = SoftmaxRegression().fit(x, table)
    assert model.classes_.tolist() == names
    given = SoftmaxRegression().fit(x, soft, classes=names)
    assert given.classes_.tolist() == names
    np.testing.assert_array_equal(model.coef_, given.coef_)
    assert model.predict(x[:1]).tolist() == ["virginica"]
    assert model.score(x, table) == given.score(x, soft)
    assert SoftmaxRegression(class_weight={"setosa": 5.0}).fit(x, table).intercept_[1] > model.intercept_[1]
    swapped = make(dict(zip(names[::-1], soft.T, strict=True)))
    with pytest.raises(
        ValueError, match=r"y has the columns \['versicolor', .*, but the classes of the fit are \['virg"
    ):
        model.score(x, swapped)


def test_a_column_of_labels_is_flattened_with_a_warning() -> None:
    x, y = real("iris")
    with pytest.warns(DataConversionWarning, match="A column-vector y was passed"):
        model = SoftmaxRegression().fit(x, y[:, np.newaxis])
    np.testing.assert_array_equal(model.coef_, SoftmaxRegression().fit(x, y).coef_)


def spoiled(values: Any, row: int, column: int, value: float) -> Any:
    changed = np.array(values, dtype=float)
    changed[row, column] = value
    return changed


@pytest.mark.parametrize(
    ("y", "options", "message"),
    [
        (lambda soft: spoiled(soft, 7, 1, -0.5), {}, r"y\[7, 1\] is -0.5: soft labels must be finite and not negative"),
        (lambda soft: spoiled(soft, 149, 2, np.nan), {}, r"y\[149, 2\] is nan: soft labels"),
        (lambda soft: spoiled(soft, 3, 0, np.inf), {}, r"y\[3, 0\] is inf: soft labels"),
        (lambda soft: soft * [1, 0, 1], {}, "class 1, column 1 of y, is empty: .* leave the column out"),
        (lambda soft: soft * [1, 0, 1], {"classes": list("abc")}, "class 'b', column 1 of y, is empty"),
        (lambda soft: soft, {"sample_weight": np.zeros(150)}, "sample_weight is zero in every row"),
        (lambda soft: soft, {"classes": ["a", "b"]}, r"y has 3 columns, but classes= names 2: \['a', 'b'\]"),
        (lambda soft: soft, {"classes": ["a", "b", "a"]}, "two columns of y have the same class"),
        (
            lambda soft: pd.DataFrame(soft),
            {"classes": list("abc")},
            r"the columns of y are \[0, 1, 2\], but classes= names",
        ),
        (
            lambda soft: soft.argmax(axis=1),
            {"classes": [0, 1, 2]},
            "classes= names the columns of soft labels; y holds labels",
        ),
        (
            lambda soft: soft.astype(int),
            {},
            r"neither labels, .* nor soft labels, which are floats; .* y.astype\(float\)",
        ),
        (lambda soft: soft.astype(str), {}, "neither labels, .* nor soft labels"),
        (lambda soft: soft[:149], {}, r"inconsistent numbers of samples: \[150, 149\]"),
        (lambda soft: soft[:, :, np.newaxis], {}, "Found array with dim 3"),
        (lambda soft: sparse.csr_array(soft), {}, "[Ss]parse data was passed"),
    ],
)
def test_soft_labels_that_will_not_do(y: Any, options: dict[str, Any], message: str) -> None:
    x, labels = real("iris")
    with pytest.raises((ValueError, TypeError), match=message):
        SoftmaxRegression().fit(x, y(soft_labels(labels, 3)), **options)


def test_a_class_whose_rows_all_have_weight_zero_is_empty() -> None:
    x, y = real("iris")
    with pytest.raises(
        ValueError, match="class 2, column 2 of y, is empty: its soft labels are 0 in every row with a pos"
    ):
        SoftmaxRegression().fit(x, np.eye(3)[y], (y < 2).astype(float))


def test_soft_labels_of_another_width_are_not_scored() -> None:
    x, y = real("iris")
    model = SoftmaxRegression().fit(x, y)
    with pytest.raises(ValueError, match=r"y has 2 columns, but the classes of the fit are \[0, 1, 2\]"):
        model.score(x, np.ones((len(y), 2)))


# --- offset ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("data", ["iris", "breast_cancer"])
def test_an_offset_is_added_to_the_logits(data: str) -> None:
    x, y = real(data)
    rng = np.random.default_rng(0)
    model = SoftmaxRegression().fit(x, y)
    offset = rng.standard_normal((len(y), SIZES[data]))
    logits = model.decision_function(x)
    if logits.ndim == 1:
        np.testing.assert_allclose(model.decision_function(x, offset), logits + offset[:, 1] - offset[:, 0])
        one = offset[:, 1] - offset[:, 0]
        np.testing.assert_allclose(model.predict_proba(x, one), model.predict_proba(x, offset), rtol=1e-12)
        np.testing.assert_allclose(model.predict_proba(x, one[:, np.newaxis]), model.predict_proba(x, one))
        np.testing.assert_allclose(model.fit(x, y, offset=one).coef_, model.fit(x, y, offset=offset).coef_, atol=1e-4)
        model.fit(x, y)
    else:
        np.testing.assert_allclose(model.decision_function(x, offset), logits + offset)
    expected = softmax(np.log(model.predict_proba(x)) + offset, axis=1)
    np.testing.assert_allclose(model.predict_proba(x, offset), expected, rtol=1e-9)
    np.testing.assert_allclose(np.exp(model.predict_log_proba(x, offset)), expected, rtol=1e-9)
    np.testing.assert_array_equal(model.predict(x, offset), model.classes_[expected.argmax(axis=1)])
    assert model.score(x, y, offset=offset) == np.mean(expected.argmax(axis=1) == y)
    assert model.score(x, y, offset=-500 * np.eye(SIZES[data])[y]) == 0


def test_an_offset_takes_over_what_it_explains() -> None:
    """Without a penalty, what the offset adds along the features is what the coefficients lose."""
    x, y = real("breast_cancer")
    x = x[:, :3]  # not separable
    along = x @ [0.3, -0.2, 0.1] + 0.7
    without, given = (SoftmaxRegression(C=np.inf, tol=1e-12).fit(x, y, offset=o) for o in (None, along))
    np.testing.assert_allclose(given.coef_ + np.array([0.3, -0.2, 0.1]), without.coef_, atol=1e-5)
    np.testing.assert_allclose(given.intercept_ + 0.7, without.intercept_, atol=1e-5)


@pytest.mark.parametrize(
    ("data", "offset", "message"),
    [
        ("iris", np.zeros(150), r"offset must have one number for each row and class: shape \(150, 3\), not \(150,\)"),
        ("breast_cancer", np.zeros((569, 3)), r"shape \(569, 2\) or \(569,\), not \(569, 3\)"),
        ("iris", np.zeros((149, 3)), r"shape \(150, 3\), not \(149, 3\)"),
        ("iris", spoiled(np.zeros((150, 3)), 4, 2, np.nan), r"offset\[4, 2\] is nan: offsets must be finite"),
        ("breast_cancer", np.where(np.arange(569) == 9, np.inf, 0), r"offset\[9\] is inf"),
    ],
)
def test_offsets_that_will_not_do(data: str, offset: Any, message: str) -> None:
    x, y = real(data)
    with pytest.raises(ValueError, match=message):
        SoftmaxRegression().fit(x, y, offset=offset)
    model = SoftmaxRegression().fit(x, y)
    with pytest.raises(ValueError, match=message):
        model.predict(x, offset=offset)


# --- tables and matrices ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("make", [pd.DataFrame, pl.DataFrame, pa.table])
def test_column_names_are_remembered_and_compared(make: Any) -> None:
    x, y = real("iris")
    columns = dict(zip("abcd", x.T, strict=True))
    model = SoftmaxRegression().fit(make(columns), y)
    assert model.feature_names_in_.tolist() == ["a", "b", "c", "d"]
    assert model.n_features_in_ == 4
    np.testing.assert_array_equal(model.predict(make(columns)), SoftmaxRegression().fit(x, y).predict(x))
    with pytest.raises(ValueError, match="feature names"):
        model.predict(make({name: columns[name] for name in "bacd"}))


@pytest.mark.parametrize("make", [pd.Series, pl.Series, list])
def test_labels_and_weights_of_any_kind(make: Any) -> None:
    x, y = real("iris")
    named = np.array(["setosa", "versicolor", "virginica"])[y]
    weights = 1.0 + np.arange(len(y)) % 3
    model = SoftmaxRegression().fit(x, make(named.tolist()), make(weights.tolist()))
    expected = SoftmaxRegression().fit(x, named, weights)
    assert model.classes_.tolist() == expected.classes_.tolist()
    np.testing.assert_array_equal(model.coef_, expected.coef_)
    assert model.score(x, make(named.tolist())) == expected.score(x, named)


def test_categories_of_pandas() -> None:
    x, y = real("iris")
    model = SoftmaxRegression().fit(x, pd.Series(np.array(["b", "c", "a"])[y]).astype("category"))
    assert model.classes_.tolist() == ["a", "b", "c"]


@pytest.mark.parametrize("data", ["iris", "breast_cancer"])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("make", [sparse.csr_array, sparse.csr_matrix, sparse.csc_array, sparse.coo_matrix])
def test_sparse_rows(data: str, dtype: Any, make: Any) -> None:
    x, y = real(data)
    x = np.where(np.abs(x) < 0.5, 0, x).astype(dtype)
    dense, model = (SoftmaxRegression(tol=1e-9).fit(rows, y) for rows in (x, make(x)))
    assert model.coef_.dtype == dtype
    np.testing.assert_allclose(model.coef_, dense.coef_, atol=1e-3)
    np.testing.assert_allclose(model.predict_proba(make(x)), model.predict_proba(x), rtol=1e-4)
    assert model.score(make(x), y) == model.score(x, y)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("layout", [np.ascontiguousarray, np.asfortranarray, lambda x: np.repeat(x, 2, axis=0)[::2]])
def test_memory_layouts(dtype: Any, layout: Any) -> None:
    x, y = real("iris")
    x = x.astype(dtype)
    model = SoftmaxRegression(tol=1e-9).fit(layout(x), y)
    np.testing.assert_allclose(model.coef_, SoftmaxRegression(tol=1e-9).fit(x, y).coef_, atol=1e-3)


def test_the_input_is_not_changed() -> None:
    x, y = (np.array(part) for part in real("iris"))
    soft, weights, offset = soft_labels(y, 3), np.arange(len(y)) % 3 * 1.0, np.ones((len(y), 3))
    before = [part.copy() for part in (x, soft, weights, offset)]
    SoftmaxRegression().fit(x, soft, weights, offset).predict(x, offset)
    for now, then in zip((x, soft, weights, offset), before, strict=True):
        np.testing.assert_array_equal(now, then)


# --- larger than memory ----------------------------------------------------------------------------------------------


class Blocks:
    """Two blocks, from the first at every `for`."""

    def __init__(self, x: Any) -> None:
        self.x = x

    def __iter__(self) -> Iterator[Any]:
        yield self.x[:60]
        yield self.x[60:]


@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_a_memory_map_is_read_where_it_lies(tmp_path: Path, monkeypatch: Any, order: Any, dtype: Any) -> None:
    from softgrad import regression

    x, y = real("iris")
    stored = np.lib.format.open_memmap(tmp_path / "x.npy", "w+", dtype=dtype, shape=x.shape, fortran_order=order == "F")
    stored[:] = x
    stored.flush()
    mapped = np.load(tmp_path / "x.npy", mmap_mode="r")
    real_fit, seen = regression.fit, []

    def fit(rows: Any, *arguments: Any, **options: Any) -> Any:
        seen.append((rows, options["sample_weight"]))
        return real_fit(rows, *arguments, **options)

    monkeypatch.setattr(regression, "fit", fit)
    weights = (np.arange(len(y)) % 2) * (y > 0)
    model = SoftmaxRegression(tol=1e-9).fit(mapped, y, weights)
    assert np.shares_memory(seen[0][0], mapped)
    assert len(seen[0][1]) == len(y), "rows of weight 0 stay, with their weight"
    assert model.classes_.tolist() == [0, 1, 2]
    in_memory = SoftmaxRegression(tol=1e-9).fit(np.array(x, dtype), y, weights)
    np.testing.assert_allclose(model.coef_, in_memory.coef_, atol=1e-3)


@pytest.mark.parametrize("make", [np.asarray, sparse.csr_array])
def test_a_source_of_blocks_is_its_matrix(make: Any) -> None:
    x, y = real("iris")
    soft, weights = soft_labels(y, 3), (np.arange(len(y)) % 3) * 1.0
    source = Blocks(make(x))
    for given in (source, RowBlocks.of(source), RowBlocks.of([make(x)])):
        model = SoftmaxRegression(tol=1e-11).fit(given, soft, weights)
        np.testing.assert_allclose(model.coef_, SoftmaxRegression(tol=1e-11).fit(x, soft, weights).coef_, atol=1e-4)
        assert model.n_features_in_ == 4
        np.testing.assert_allclose(model.predict_proba(given), model.predict_proba(x), rtol=1e-9)
        assert model.score(given, soft) == pytest.approx(model.score(x, soft))
    with pytest.raises(ValueError, match="X has 3 features, but SoftmaxRegression is expecting 4 features as input"):
        model.predict(Blocks(x[:, :3]))
    with pytest.raises(ValueError, match=r"inconsistent numbers of samples: \[150, 149\]"):
        SoftmaxRegression().fit(source, y[:149])


def test_a_one_shot_generator_is_refused() -> None:
    x, y = real("iris")
    with pytest.raises(TypeError, match="one-shot generator: it is empty after one pass"):
        SoftmaxRegression().fit((part for part in (x[:60], x[60:])), y)


def test_a_dataset_of_arrow_with_its_label_column(tmp_path: Path) -> None:
    x, y = real("iris")
    names = np.array(["setosa", "versicolor", "virginica"])[y]
    weights, offset = 1.0 + np.arange(len(y)) % 3, np.random.default_rng(0).standard_normal((len(y), 3))
    columns = dict(zip("abcd", x.T, strict=True))
    whole = columns | {"kind": names, "w": weights, "o": pa.array(offset.tolist(), type=pa.list_(pa.float64(), 3))}
    pq.write_table(pa.table(whole), tmp_path / "a.parquet", row_group_size=40)
    dataset = ds.dataset(tmp_path / "a.parquet")
    model = SoftmaxRegression(tol=1e-11).fit(dataset, "kind", "w", "o")
    expected = SoftmaxRegression(tol=1e-11).fit(x, names, weights, offset)
    assert model.feature_names_in_.tolist() == ["a", "b", "c", "d"]
    assert model.classes_.tolist() == expected.classes_.tolist()
    np.testing.assert_allclose(model.coef_, expected.coef_, atol=1e-4)
    np.testing.assert_array_equal(model.predict(dataset), model.predict(pd.DataFrame(columns)))
    shuffled = ds.dataset(pa.table({name: whole[name] for name in ("d", "kind", "b", "a", "c")}))
    np.testing.assert_array_equal(model.predict(shuffled), model.predict(dataset))
    other = RowBlocks.of(dataset, columns=["b", "a", "c", "d"])
    with pytest.raises(ValueError, match=r"the feature names of X are \['b', .* those of the fit are \['a'"):
        model.predict(other)
    unnamed = SoftmaxRegression().fit(x, names)
    np.testing.assert_array_equal(unnamed.predict(ds.dataset(pa.table(columns))), unnamed.predict(x))
    with pytest.raises(ValueError, match="y='sort' is not a column of the dataset"):
        SoftmaxRegression().fit(dataset, "sort")
    with pytest.raises(ValueError, match="y='kind' names a column, which needs a pyarrow Dataset as X, not ndarray"):
        SoftmaxRegression().fit(x, "kind")


def test_a_dataset_of_embeddings_with_soft_labels() -> None:
    x, y = real("iris")
    soft = soft_labels(y, 3)
    table = pa.table(
        {"e": pa.array(x.tolist(), type=pa.list_(pa.float64(), 4)), "s": soft.tolist(), "id": np.arange(150)}
    )
    dataset = ds.dataset(table)
    model = SoftmaxRegression(tol=1e-11).fit(ds.dataset(table.select(["e", "s"])), "s")
    np.testing.assert_allclose(model.coef_, SoftmaxRegression(tol=1e-11).fit(x, soft).coef_, atol=1e-4)
    assert not hasattr(model, "feature_names_in_")
    for kept in (
        model,
        pickle.loads(pickle.dumps(model)),
        skops.io.loads(skops.io.dumps(model), ["softgrad.sklearn.SoftmaxRegression"]),
    ):
        np.testing.assert_array_equal(kept.predict(dataset), model.predict(x))  # "e" alone is read again


# --- what will not do ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("value", "kind"), [(np.nan, "NaN"), (np.inf, "infinity")])
@pytest.mark.parametrize("make", [np.asarray, np.asfortranarray, sparse.csr_array, Blocks])
def test_a_value_that_is_not_finite_is_named(value: float, kind: str, make: Any) -> None:
    x, y = real("iris")
    bad = make(spoiled(x, 77, 2, value))
    with pytest.raises(ValueError, match=f"Input X contains {kind}: row 77, column 2; "):
        SoftmaxRegression().fit(bad, y)
    with pytest.raises(ValueError, match=f"Input X contains {kind}: row 77, column 2; "):
        SoftmaxRegression().fit(x, y).predict(bad)


def test_the_column_of_a_table_is_named() -> None:
    x, y = real("iris")
    table = pd.DataFrame(spoiled(x, 77, 2, np.nan), columns=list("abcd"))
    with pytest.raises(ValueError, match=r"row 77, column 2 \('c'\); impute it, or drop the row"):
        SoftmaxRegression().fit(table, y)


@pytest.mark.parametrize("value", [None, float("nan"), pd.NA, pd.NaT])
@pytest.mark.parametrize("kind", ["object", "string", "category", "Int64"])
def test_a_missing_label_is_named(value: Any, kind: str) -> None:
    x, y = real("iris")
    labels = pd.Series(y if kind == "Int64" else np.array(["a", "b", "c"])[y], dtype=kind)
    labels[33] = pd.NA if kind == "Int64" else value
    model = SoftmaxRegression()
    for given in (labels, labels.to_numpy(dtype=object)):
        with pytest.raises(ValueError, match=r"Input y contains (None|nan|<NA>|NaT): row 33 has no label"):
            model.fit(x, given)


def test_impossible_labels_and_weights() -> None:
    x, y = real("iris")
    with pytest.raises(ValueError, match=r"at least two classes, .* one class: 1$"):
        SoftmaxRegression().fit(x, np.ones(len(y), int))
    with pytest.raises(ValueError, match=r"sample_weight\[5\] is -1.0"):
        SoftmaxRegression().fit(x, y, np.where(np.arange(len(y)) == 5, -1.0, 1.0))
    with pytest.raises(ValueError, match=r"sample_weight must have one weight a row: shape \(150,\), not \(149,\)"):
        SoftmaxRegression().fit(x, y, np.ones(149))
    with pytest.raises(ValueError, match="zero in every row"):
        SoftmaxRegression().fit(x, y, np.zeros(len(y)))
    with pytest.raises(ValueError, match="continuous"):
        SoftmaxRegression().fit(x, y + 0.5)
    with pytest.raises(ValueError, match="requires y to be passed, but the target y is None"):
        SoftmaxRegression().fit(x, None)


def test_another_number_of_features_is_refused_as_scikit_learn_does() -> None:
    x, y = real("iris")
    model = SoftmaxRegression().fit(x, y)
    with pytest.raises(ValueError, match="X has 3 features, but SoftmaxRegression is expecting 4 features as input"):
        model.predict(x[:, :3])


def test_a_failed_fit_leaves_no_warning_of_numpy() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        x, y = real("iris")
        SoftmaxRegression().fit(x * 1e-30, y)
