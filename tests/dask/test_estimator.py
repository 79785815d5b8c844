"""softgrad.dask without a cluster: the optimum of the fit in memory, the same bits however it is computed."""

from __future__ import annotations

import os
import pickle
import signal
import sys
import threading
from collections.abc import Iterator
from typing import Any

import dask
import dask.array as da
import dask.dataframe as dd
import numpy as np
import pandas as pd
import pytest
from scipy import sparse
from sklearn.base import clone
from sklearn.exceptions import ConvergenceWarning

from softgrad.dask import SoftmaxRegression
from softgrad.dask._block import Block, NamedDirection, Point, SharedModel
from softgrad.regression import Progress
from softgrad.regression.solvers._exact import MOST_PARAMETERS
from softgrad.sklearn import SoftmaxRegression as InMemory

Array = Any


@pytest.fixture(autouse=True, params=["threads"])
def scheduler(request: pytest.FixtureRequest) -> Iterator[str]:
    with dask.config.set(scheduler=request.param, num_workers=2):
        yield request.param


def data(n: int, p: int, k: int, dtype: Any = np.float64, seed: int = 0) -> tuple[Array, Array]:
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((n, p))
    y = (x @ rng.standard_normal((p, k)) + rng.gumbel(size=(n, k))).argmax(axis=1)
    return x.astype(dtype), y


def cut(values: Array, rows: int) -> Any:
    """Blocks of rows; of sparse ones, one after the other."""
    if sparse.issparse(values):
        parts = [values[lo : lo + rows] for lo in range(0, values.shape[0], rows)]
        return da.concatenate([da.from_delayed(dask.delayed(part), part.shape, meta=values[:0]) for part in parts])
    return da.from_array(values, chunks=(rows, *values.shape[1:]))


CASES: dict[str, Any] = {
    "float64": {},
    "float32": {"dtype": np.float32},
    "two classes": {"k": 2},
    "no intercept": {"fit_intercept": False},
    "balanced, smoothed": {"class_weight": "balanced", "label_smoothing": 0.1},
    "class weights": {"class_weight": {0: 2.0, 2: 0.5}},
    "weights": {"weights": True},
    "soft": {"soft": True},
    "soft, weights": {"soft": True, "weights": True, "label_smoothing": 0.05},
    "offset": {"offset": True},
    "offset of two classes": {"offset": True, "k": 2},
    "sparse": {"sparse": True},
    "nothing stored": {"max_memory": 1},
    "read again": {"cache": False},
    "lbfgs": {"solver": "lbfgs"},
    "many classes": {"k": 40},
}


LARGER = ("float32", "weights", "offset of two classes", "sparse", "no intercept", "nothing stored", "read again")


@pytest.mark.parametrize(("n", "name"), [(900, name) for name in CASES] + [(22_000, name) for name in LARGER])
def test_the_optimum_is_that_in_memory(n: int, name: str) -> None:
    """In float64 throughout (900 rows), and in float32 judged in float64."""
    case = dict(CASES[name])
    k = case.pop("k", 5)
    dtype, soft, weighted = case.pop("dtype", np.float64), case.pop("soft", False), case.pop("weights", False)
    offset, is_sparse = case.pop("offset", False), case.pop("sparse", False)
    x, y = data(n, 20, k, dtype)
    rng = np.random.default_rng(1)
    if is_sparse:
        x = sparse.csr_matrix(np.where(rng.random(x.shape) < 0.3, x, 0))
    if soft:
        y = rng.dirichlet(np.ones(k), size=n)
    a = rng.exponential(size=n) * (rng.random(n) < 0.9) if weighted else None
    o = (rng.standard_normal((n, k)) if k > 2 else rng.standard_normal(n)) if offset else None
    options = {"C": 0.02, "tol": 1e-9, **case}
    rows = n // 7
    model = SoftmaxRegression(**options)
    model.fit(cut(x, rows), cut(y, rows), None if a is None else cut(a, rows), None if o is None else cut(o, rows))
    options.pop("cache", None)
    whole = InMemory(**options).fit(x, y, a, o)
    assert model.gap_ <= 1e-9
    assert model.objective_ == pytest.approx(whole.objective_, rel=1e-9)
    np.testing.assert_allclose(model.coef_, whole.coef_, atol=2e-3 * np.abs(whole.coef_).max())
    assert model.coef_.dtype == whole.coef_.dtype
    assert model.classes_.tolist() == whole.classes_.tolist()
    if model.solver == "auto" and model.cache and model.max_memory is None:
        few = not is_sparse and len(whole.classes_) * (20 + int(model.fit_intercept)) <= MOST_PARAMETERS
        peer = InMemory(**options, solver="newton" if few else "newton-cg").fit(x, y, a, o)
        assert model.n_passes_ < 1.5 * peer.n_passes_ + 10, "it is preconditioned as in memory"


def test_the_path_to_the_hessian_of_few_parameters() -> None:
    """Three classes of four features: the exact Hessian, of a sample of each block's rows."""
    x, y = data(60_000, 4, 3, np.float32)
    model = SoftmaxRegression(tol=1e-9).fit(cut(x, 9000), cut(y, 9000))
    assert model.objective_ == pytest.approx(InMemory(tol=1e-9).fit(x, y).objective_, rel=1e-9)


def test_large_coefficients_and_many_blocks_go_through_the_tree(monkeypatch: pytest.MonkeyPatch) -> None:
    x, y = data(3000, 18, 40, np.float32)
    few = SoftmaxRegression().fit(cut(x, 290), cut(y, 290))
    monkeypatch.setattr("softgrad.dask._graph.SMALL_RESULTS", 0)
    monkeypatch.setattr("softgrad.dask._graph.FEW_BYTES", 0)
    tree = SoftmaxRegression().fit(cut(x, 290), cut(y, 290))
    np.testing.assert_array_equal(few.coef_, tree.coef_)
    assert few.gap_ == tree.gap_


@pytest.mark.parametrize("n_threads", [None, 2])
def test_the_bits_do_not_depend_on_threads(n_threads: int | None) -> None:
    x, y = data(22_000, 20, 5, np.float32)
    X, Y = cut(x, 2000), cut(y, 2000)
    model = SoftmaxRegression(n_threads=n_threads).fit(X, Y)
    with dask.config.set(scheduler="synchronous"):
        alone = SoftmaxRegression().fit(X, Y)
    np.testing.assert_array_equal(model.coef_, alone.coef_)
    assert model.objective_ == alone.objective_


# --- a block that was lost -------------------------------------------------------------------------------------------


def moved(block: Block) -> Block:
    """The block as another worker gets it: its arrays lie in buffers that begin anywhere."""
    buffers: list[pickle.PickleBuffer] = []
    stream = pickle.dumps(block, protocol=5, buffer_callback=buffers.append)
    return pickle.loads(stream, buffers=[memoryview(b"x" + buffer.raw())[1:] for buffer in buffers])


@pytest.mark.parametrize("arrays", [0, 2, 3])
@pytest.mark.parametrize("kind", ["small", "float32", "float64", "sparse", "no intercept"])
def test_a_block_made_anew_answers_with_the_same_bits(kind: str, arrays: int) -> None:
    """Every task of two Newton steps, on a block that has seen the steps before and on one that has seen nothing."""
    n, p, k = 700, 20, 4
    x, y = data(n, p, k, np.float32 if kind in ("float32", "sparse") else np.float64)
    rows = sparse.csr_array(np.where(np.random.default_rng(1).random(x.shape) < 0.3, x, 0)) if kind == "sparse" else x
    model = SharedModel(2 * n, k, None, 0.1, kind != "no intercept", kind == "small", arrays, 1)
    a = np.random.default_rng(2).exponential(size=n)
    old = Block(rows, y.astype(np.int64), a, None, model)
    rng = np.random.default_rng(3)
    dtype = np.float64 if model.small else np.float32
    settled = arrays > 0 and model.fit_intercept
    for precise in (False, True, True):
        point = Point(
            f"p{precise}{rng.random()}", rng.standard_normal((k, p)), rng.standard_normal(k), precise, settled
        )
        step = NamedDirection(f"s{rng.random()}", rng.standard_normal((k, p)).astype(dtype), rng.standard_normal(k))
        held = np.float64 if precise else dtype
        moves = tuple(rng.standard_normal(k).astype(held) for _ in range(2)) if settled else ()
        calls: list[tuple[str, Any]] = []
        if model.fit_intercept:
            calls += [("level_sums", (point, moves[:count])) for count in range(len(moves) + 1)]
        calls += [("sums", (point, moves)), ("product", (point, moves, step)), ("spread", (point, moves))]
        if kind != "sparse":
            gram = (np.zeros(p), 20.0, 1.0, 2.0, False, np.full(k, 50.0), None)
            calls += [("class_grams", (point, moves, *gram)), ("hessian", (point, moves, None))]
        calls += [("hessian_diagonal", (point, moves)), ("class_curvature", (point, moves))]
        calls += [
            ("direction", (point, step, moves)),
            ("line", (point, step, moves, 0.7)),
            ("product", (point, moves, step)),
        ]
        calls += [("line", (point, step, moves, 0.3)), ("target_sums", (np.full(k, 1 / k),))]
        for method, arguments in calls:
            fresh = moved(old)
            mine, other = (getattr(block, method)(*arguments) for block in (old, fresh))
            for one, two in zip(*(v if isinstance(v, tuple) else (v,) for v in (mine, other)), strict=True):
                np.testing.assert_array_equal(one, two, err_msg=f"{method}, precise={precise}")


def test_a_block_says_what_it_holds() -> None:
    """Dask spills by these bytes."""
    x, y = data(4000, 50, 5)
    block = Block(x, y, None, None, SharedModel(4000, 5, None, 0.0, True, False, 3, 1))
    problem = block.problem
    held = [x, y, problem.design.single(), problem.losses, problem.scores, problem.along, problem.prob]
    assert sys.getsizeof(block) == pytest.approx(sum(part.nbytes for part in held), rel=0.02)
    assert len(pickle.dumps(block)) < x.nbytes + y.nbytes + 5000, "what can be made again is not written to disk"


# --- the data --------------------------------------------------------------------------------------------------------


def frame(n: int = 600, seed: int = 0) -> pd.DataFrame:
    x, y = data(n, 4, 3, seed=seed)
    table = pd.DataFrame(x, columns=["a", "b", "c", "d"])
    table["flag"] = np.arange(n) % 2 == 0
    table["count"] = np.arange(n) % 7
    table["label"] = np.array(["red", "green", "blue"])[y]
    table["w"] = np.random.default_rng(1).exponential(size=n)
    return table


def test_a_table_with_its_columns_by_name() -> None:
    table = frame()
    model = SoftmaxRegression(C=0.1, tol=1e-12).fit(dd.from_pandas(table, npartitions=5), "label", sample_weight="w")
    x = table.drop(columns=["label", "w"])
    whole = InMemory(C=0.1, tol=1e-12).fit(x, table["label"], table["w"])
    np.testing.assert_allclose(model.coef_, whole.coef_, atol=1e-6)
    assert model.classes_.tolist() == ["blue", "green", "red"]
    assert model.feature_names_in_.tolist() == x.columns.tolist()
    shuffled = dd.from_pandas(table[["label", "d", "c", "b", "a", "count", "flag"]], npartitions=3)
    np.testing.assert_array_equal(model.predict(shuffled).compute(), whole.predict(x))
    np.testing.assert_array_equal(model.predict(x), whole.predict(x))
    assert model.score(shuffled, "label") == pytest.approx(whole.score(x, table["label"]))
    with pytest.raises(ValueError, match="no column 'c'"):
        model.predict(shuffled.drop(columns=["c"]))


def test_parquet_is_read_again_in_every_pass(tmp_path: Any) -> None:
    table = frame()
    for part in range(4):
        table[150 * part : 150 * (part + 1)].to_parquet(tmp_path / f"part-{part}.parquet")
    read = dd.read_parquet(tmp_path / "part-*.parquet")
    model = SoftmaxRegression(cache=False, tol=1e-12).fit(read.drop(columns=["label", "w"]), read["label"])
    whole = InMemory(tol=1e-12).fit(table.drop(columns=["label", "w"]), table["label"])
    np.testing.assert_allclose(model.coef_, whole.coef_, atol=1e-6)


def test_soft_labels_of_a_table_name_the_classes() -> None:
    x, y = data(300, 4, 3)
    soft = pd.DataFrame(0.8 * np.eye(3)[y] + 0.2 / 3, columns=["u", "v", "w"])
    X, Y = cut(x, 100), dd.from_pandas(soft, npartitions=3)
    model = SoftmaxRegression(tol=1e-12).fit(X, Y)
    whole = InMemory(tol=1e-12).fit(x, soft)
    assert model.classes_.tolist() == ["u", "v", "w"]
    np.testing.assert_allclose(model.coef_, whole.coef_, atol=1e-6)
    assert model.score(X, Y) == pytest.approx(whole.score(x, soft))
    named = SoftmaxRegression(tol=1e-12).fit(X, soft.to_numpy(), classes=["r", "s", "t"])
    assert named.classes_.tolist() == ["r", "s", "t"]
    assert named.score(X, soft.to_numpy()) == pytest.approx(model.score(X, Y))


def test_blocks_of_unknown_length_columns_in_blocks_and_empty_blocks() -> None:
    x, y = data(600, 6, 3)
    whole = InMemory(tol=1e-12).fit(x, y)
    both = da.concatenate([cut(x, 150), cut(y, 150)[:, None]], axis=1)
    both = both[both[:, 0] > -np.inf]  # Dask does not know how many rows are left
    assert np.isnan(both.chunks[0]).all()
    models = [
        SoftmaxRegression(tol=1e-12).fit(both[:, :6], both[:, 6].astype(int)),
        SoftmaxRegression(tol=1e-12).fit(da.from_array(x, chunks=(200, 2)), da.from_array(y, chunks=77)),
        SoftmaxRegression(tol=1e-12).fit(da.concatenate([cut(x[:400], 150), cut(x[:0], 1), cut(x[400:], 200)]), y),
        SoftmaxRegression(tol=1e-12).fit(cut(x, 599), y),
    ]
    for model in models:
        np.testing.assert_allclose(model.coef_, whole.coef_, atol=1e-6)


def test_rows_of_weight_zero_count_as_absent() -> None:
    x, y = data(400, 4, 3)
    a = np.where(np.arange(400) < 100, 0.0, 1.0)
    y[:50] = 7  # a class that no other row has
    model = SoftmaxRegression(tol=1e-12).fit(cut(x, 100), cut(y, 100), cut(a, 100))
    whole = InMemory(tol=1e-12).fit(x[100:], y[100:])
    assert model.classes_.tolist() == [0, 1, 2, 7]
    np.testing.assert_allclose(model.coef_[:3], whole.coef_, atol=1e-8)
    assert model.predict_proba(x)[:, 3].max() < 1e-300


@pytest.mark.parametrize("class_weight", [{0: 0.0}, {0: 1.0, 1: 2.0, 2: 1.0, "z": 3.0}, {1: 0.0, 2: 3.0}])
def test_class_weights_of_zero_and_of_classes_that_y_lacks(class_weight: Any) -> None:
    x, y = data(400, 4, 3)
    offset = np.random.default_rng(0).standard_normal((400, 3))
    model, whole = (kind(class_weight=class_weight, tol=1e-12) for kind in (SoftmaxRegression, InMemory))
    model.fit(cut(x, 100), cut(y, 100), None, cut(offset, 100))
    whole.fit(x, y, None, offset)
    np.testing.assert_allclose(model.coef_, whole.coef_, atol=1e-6)
    np.testing.assert_allclose(model.intercept_, whole.intercept_, atol=1e-6)
    assert model.objective_ == pytest.approx(whole.objective_, rel=1e-9)


def test_a_class_of_weight_zero_needs_another_two_and_no_smoothing() -> None:
    x, y = data(400, 4, 3)
    X, Y = cut(x, 100), cut(y, 100)
    for options, message in (
        ({"class_weight": {0: 0, 1: 0}}, "at least two classes with a positive weight, but only 2 has one"),
        ({"class_weight": {0: 0}, "label_smoothing": 0.1}, "class 0 has no weight, which label_smoothing"),
        ({"class_weight": {0: 0}, "fit_intercept": False}, "class 0 has no weight, which fit_intercept=False"),
    ):
        with pytest.raises(ValueError, match=message):
            SoftmaxRegression(**options).fit(X, Y)


@pytest.mark.parametrize("weighted", [False, True])
def test_labels_as_a_series_are_scored(weighted: bool) -> None:
    x, y = data(120, 2, 3)
    frame = pd.DataFrame(x, columns=["u", "v"]).assign(label=np.array(["a", "b", "c"])[y], w=1.0 + np.arange(120) % 3)
    table = dd.from_pandas(frame, npartitions=4)
    X, weights = table[["u", "v"]], table["w"] if weighted else None
    model = SoftmaxRegression().fit(X, table["label"], weights)
    expected = model.score(frame[["u", "v"]], frame["label"], frame["w"] if weighted else None)
    assert model.score(X, table["label"], weights) == pytest.approx(expected)
    assert model.score(X, table[["label"]], weights) == pytest.approx(expected)
    assert model.score(table, "label", "w" if weighted else None) == pytest.approx(expected)


# --- answers ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("k", [2, 3])
@pytest.mark.parametrize("kind", ["float32", "sparse"])
def test_answers_are_lazy_for_a_collection_and_numpy_for_an_array(k: int, kind: str) -> None:
    x, y = data(500, 6, k, np.float32)
    x = sparse.csr_matrix(x) if kind == "sparse" else x
    X, Y = cut(x, 120), cut(np.array(["no", "yes", "maybe"])[y], 120)
    model = SoftmaxRegression().fit(X, Y)
    whole = InMemory(n_threads=1)
    whole.__dict__.update({name: v for name, v in vars(model).items() if name.endswith("_")} | {"_columns": None})
    o = np.random.default_rng(0).standard_normal((500, k) if k > 2 else 500)
    for method in ("decision_function", "predict", "predict_proba", "predict_log_proba"):
        lazy = getattr(model, method)(X)
        assert isinstance(lazy, da.Array)
        expected = getattr(whole, method)(x)
        assert lazy.shape == expected.shape
        assert lazy.dtype == expected.dtype
        answer = lazy.compute()
        if method == "predict":
            assert (answer == expected).mean() > 0.99  # of equals, rounding decides
        else:
            np.testing.assert_allclose(answer, expected, rtol=2e-5, atol=1e-6)
        assert isinstance(getattr(model, method)(x), np.ndarray)
        moved = getattr(model, method)(X, cut(o, 120)).compute()
        against = getattr(whole, method)(x, o)
        assert (moved == against).mean() > 0.99 if method == "predict" else np.allclose(moved, against, 2e-5, 1e-6)
    a = np.random.default_rng(1).exponential(size=500)
    assert model.score(X, Y, cut(a, 120)) == pytest.approx(whole.score(x, Y.compute(), a))
    assert model.score(x, Y.compute()) == pytest.approx(model.score(X, Y))
    refitted = model.predict(X)
    model.coef_ = -model.coef_
    np.testing.assert_array_equal(refitted.compute(), whole.predict(x), err_msg="what was asked before is not changed")
    with pytest.raises(ValueError, match="6"):
        model.predict(X[:, :3])


# --- as an estimator -------------------------------------------------------------------------------------------------


def test_parameters_are_those_in_memory_and_cache() -> None:
    model = SoftmaxRegression(C=0.5, cache=False)
    ours, theirs = model.get_params(), InMemory().get_params()
    assert ours.keys() == theirs.keys() | {"cache"}
    assert clone(model).get_params() == ours
    assert {name: v for name, v in SoftmaxRegression().get_params().items() if name != "cache"} == theirs
    fitted = SoftmaxRegression().fit(*(cut(v, 100) for v in data(300, 4, 3)))
    whole = InMemory().fit(*data(300, 4, 3))
    assert {name for name in vars(whole) if name.endswith("_")} == {name for name in vars(fitted) if name.endswith("_")}
    assert pickle.loads(pickle.dumps(fitted)).coef_.tolist() == fitted.coef_.tolist()


def test_the_callback_hears_every_iteration_and_may_end_the_fit(capsys: pytest.CaptureFixture[str]) -> None:
    x, y = data(600, 6, 4)
    heard: list[Progress] = []
    model = SoftmaxRegression(verbose=1).fit(cut(x, 100), cut(y, 100), callback=heard.append)
    assert [h.iteration for h in heard] == list(range(1, model.n_iter_[0] + 1))
    assert model.history_["objective"].tolist() == pytest.approx([h.objective for h in heard])
    assert capsys.readouterr().out.count("iteration") == len(heard)

    def end(progress: Progress) -> None:
        if progress.iteration == 2:
            raise KeyboardInterrupt

    stopped = SoftmaxRegression(warm_start=True)
    with pytest.raises(KeyboardInterrupt):
        stopped.fit(cut(x, 100), cut(y, 100), callback=end)
    assert stopped.n_iter_[0] == 2
    assert stopped.predict(x).shape == (600,)
    stopped.fit(cut(x, 100), cut(y, 100))
    assert stopped.objective_ == pytest.approx(model.objective_, rel=1e-10)


def test_ctrl_c_in_a_pass_leaves_the_model_so_far() -> None:
    x, y = data(22_000, 20, 6, np.float32)

    def interrupt(progress: Progress) -> None:
        if progress.iteration == 2:
            threading.Timer(0.002, os.kill, (os.getpid(), signal.SIGINT)).start()

    model = SoftmaxRegression(tol=1e-13)
    with pytest.raises(KeyboardInterrupt):
        model.fit(cut(x, 1000), cut(y, 1000), callback=interrupt)
    assert model.n_iter_[0] >= 2
    assert np.isfinite(model.predict_proba(x)).all()


def test_a_fit_that_ends_early_says_so() -> None:
    x, y = data(600, 6, 4)
    with pytest.warns(ConvergenceWarning, match="max_iter = 1"):
        SoftmaxRegression(max_iter=1).fit(cut(x, 100), cut(y, 100))


# --- mistakes --------------------------------------------------------------------------------------------------------


def wrong(**changes: Any) -> tuple[Any, ...]:
    x, y = data(400, 4, 3)
    given = {"x": x, "y": y, "a": np.ones(400), **changes}
    return tuple(cut(given[name], 100) for name in ("x", "y", "a"))


def put(values: Array, place: Any, value: Any) -> Array:
    values = values.copy()
    values[place] = value
    return values


X0, Y0 = data(400, 4, 3)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"x": put(X0, (317, 2), np.nan)}, r"block 3, whose first row is row 300 of X: .*NaN: row 17, column 2"),
        ({"x": put(X0, (17, 1), np.inf)}, r"block 0, .*infinity: row 17, column 1"),
        ({"x": put(X0, (205, 1), 1e200)}, r"block 2, .*x\[5, 1\] is 1e\+200"),
        ({"y": put(Y0.astype(float), 250, np.nan)}, r"block 2, .*Input y contains nan: row 50 has no label"),
        ({"y": put(Y0.astype(float), 250, 0.5)}, r"block 2, .*y\[50\] is 0\.5"),
        ({"y": put(Y0.astype(object), 399, None)}, r"block 3, .*row 99 has no label"),
        ({"a": put(np.ones(400), 120, -1.0)}, r"block 1, .*sample_weight\[20\] is -1\.0"),
        ({"a": np.zeros(400)}, r"sample_weight is zero in every row"),
        ({"y": np.zeros(400, int)}, r"at least two classes.*one class: 0"),
        ({"y": put(0.5 * np.ones((400, 2)), (333, 1), -1.0)}, r"block 3, .*y\[33, 1\] is -1\.0"),
        ({"y": np.ones((400, 2), int)}, r"block 0, .*neither labels.*nor soft labels"),
    ],
)
def test_a_mistake_is_named_with_its_block_and_row(changes: dict[str, Array], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SoftmaxRegression().fit(*wrong(**changes))


def test_blocks_that_are_not_alike() -> None:
    x, y = data(400, 4, 3)
    parts = [x[:100], x[100:200], x[200:300, :3], x[300:]]
    blocks = [da.from_delayed(dask.delayed(part), (100, 4), dtype=x.dtype) for part in parts]
    with pytest.raises(ValueError, match=r"block 2, whose first row is row 200 of X: it has 3 features"):
        SoftmaxRegression().fit(da.concatenate(blocks), cut(y, 100))
    parts = [x[:100], x[100:200].astype(np.float32), x[200:]]
    blocks = [da.from_delayed(dask.delayed(part), part.shape, dtype=x.dtype) for part in parts]
    with pytest.raises(ValueError, match=r"block 1, .*it is float32"):
        SoftmaxRegression().fit(da.concatenate(blocks), y)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda m, x, y: m.fit(x.compute(), y), TypeError, r"X must be a Dask array or DataFrame, not ndarray"),
        (lambda m, x, y: m.fit(x, None), ValueError, r"requires y"),
        (lambda m, x, y: m.fit(x, "label"), ValueError, r"y='label' names a column"),
        (lambda m, x, y: m.fit(x, y[:399]), ValueError, r"y has 399 rows, but X has 400"),
        (lambda m, x, y: m.fit(x, y, np.ones(5)), ValueError, r"sample_weight has shape \(5,\)"),
        (lambda m, x, y: m.fit(x, y, classes=["a", "b", "c"]), ValueError, r"classes="),
        (lambda m, x, y: m.fit(x, y, offset=np.zeros((400, 2))), ValueError, r"offset must have 3 columns"),
        (lambda m, x, y: m.set_params(C=-1).fit(x, y), ValueError, r"C must be"),
        (lambda m, x, y: m.set_params(solver="sgd").fit(x, y), ValueError, r"solver"),
        (lambda m, x, y: m.set_params(cache="disk").fit(x, y), ValueError, r"cache must be True or False"),
        (lambda m, x, y: m.set_params(class_weight={1: -1.0}).fit(x, y), ValueError, r"class_weight of 1 is -1.0"),
        (lambda m, x, y: m.fit(dd.from_pandas(frame(), npartitions=2), "label"), None, None),
        (lambda m, x, y: m.fit(dd.from_pandas(frame(), npartitions=2), "colour"), ValueError, r"not a column of X"),
        (lambda m, x, y: m.fit(dd.from_pandas(frame(), npartitions=2), "w"), ValueError, r"column 'label' of X"),
        (lambda m, x, y: m.fit(dd.from_pandas(frame()[["a"]], npartitions=2), Y0), TypeError, r"y is a ndarray"),
    ],
)
def test_arguments_that_cannot_be(call: Any, error: Any, message: str | None) -> None:
    x, y = data(400, 4, 3)
    if error is None:
        call(SoftmaxRegression(), cut(x, 100), cut(y, 100))
        return
    with pytest.raises(error, match=message):
        call(SoftmaxRegression(), cut(x, 100), cut(y, 100))


@pytest.mark.parametrize("kind", ["dense", "sparse"])
def test_standardized_features_are_those_of_all_blocks(kind: str) -> None:
    x, y = data(600, 6, 3)
    x = x * np.logspace(-2, 2, 6)
    x[:, 1] += 1e6
    x[:, 2][np.arange(600) % 3 > 0] = 0
    a = np.random.default_rng(0).exponential(size=600)
    whole = InMemory(standardize=True, tol=1e-12).fit(x, y, a)
    given = cut(x if kind == "dense" else sparse.csr_matrix(x), 170)
    model = SoftmaxRegression(standardize=True, tol=1e-12).fit(given, cut(y, 170), cut(a, 170))
    np.testing.assert_allclose(model.coef_ * x.std(axis=0), whole.coef_ * x.std(axis=0), atol=1e-6)
    assert model.objective_ == pytest.approx(whole.objective_, rel=1e-9)
