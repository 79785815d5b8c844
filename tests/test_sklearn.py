"""The estimator: scikit-learn's own checks, its optimum, and the life of a model around the fit."""

from __future__ import annotations

import importlib.util
import os
import pickle
from typing import Any
from unittest import SkipTest

import numpy as np
import pyarrow as pa
import pytest
import skops.io
from sklearn import datasets
from sklearn.base import clone
from sklearn.exceptions import ConvergenceWarning, NotFittedError
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import parametrize_with_checks

from softgrad.sklearn import SoftmaxRegression

_mark = parametrize_with_checks([SoftmaxRegression()]).mark
# What a check may want that is not there: it runs as far as it can and then says so.
_ABSENT = {
    "pandas": importlib.util.find_spec("pandas") is None,
    "SCIPY_ARRAY_API": not os.environ.get("SCIPY_ARRAY_API"),
}


@pytest.mark.parametrize(("estimator", "check"), list(_mark.args[1]), ids=_mark.kwargs["ids"])
def test_scikit_learns_checks(estimator: Any, check: Any) -> None:
    try:
        check(estimator)
    except SkipTest as reason:
        assert any(absent and name in str(reason) for name, absent in _ABSENT.items()), reason  # noqa: PT017


@pytest.fixture(scope="module")
def iris() -> tuple[Any, Any]:
    x, y = datasets.load_iris(return_X_y=True)
    return StandardScaler().fit_transform(x), y


@pytest.fixture(scope="module")
def cancer() -> tuple[Any, Any]:
    x, y = datasets.load_breast_cancer(return_X_y=True)
    return StandardScaler().fit_transform(x), y


@pytest.mark.parametrize("data", ["iris", "cancer"])
def test_is_scikit_learns_model(data: str, request: pytest.FixtureRequest) -> None:
    x, y = request.getfixturevalue(data)
    ours = SoftmaxRegression(C=0.5, tol=1e-9).fit(x, y)
    theirs = LogisticRegression(C=0.5, tol=1e-10, max_iter=10_000).fit(x, y)
    assert ours.coef_.shape == theirs.coef_.shape
    assert ours.intercept_.shape == theirs.intercept_.shape
    assert ours.n_iter_.shape == theirs.n_iter_.shape
    np.testing.assert_allclose(ours.coef_, theirs.coef_, atol=1e-5)
    np.testing.assert_allclose(ours.decision_function(x), theirs.decision_function(x), atol=1e-4)
    np.testing.assert_allclose(ours.predict_proba(x), theirs.predict_proba(x), atol=1e-5)
    np.testing.assert_array_equal(ours.predict(x), theirs.predict(x))


@pytest.mark.parametrize("class_weight", ["balanced", {0: 3.0, 1: 0.5}])
def test_class_weights_are_scikit_learns(class_weight: Any, cancer: tuple[Any, Any]) -> None:
    x, y = cancer
    ours = SoftmaxRegression(class_weight=class_weight, tol=1e-9).fit(x, y)
    theirs = LogisticRegression(class_weight=class_weight, tol=1e-10, max_iter=10_000).fit(x, y)
    np.testing.assert_allclose(ours.coef_, theirs.coef_, atol=1e-5)
    assert np.abs(ours.coef_ - SoftmaxRegression(tol=1e-9).fit(x, y).coef_).max() > 1e-3


def test_balanced_counts_sample_weight_as_repetition(iris: tuple[Any, Any]) -> None:
    x, y = iris
    counts = np.random.default_rng(0).integers(0, 3, size=len(y))
    weighted = SoftmaxRegression(class_weight="balanced", tol=1e-10).fit(x, y, counts)
    repeated = SoftmaxRegression(class_weight="balanced", tol=1e-10).fit(np.repeat(x, counts, 0), np.repeat(y, counts))
    np.testing.assert_allclose(weighted.coef_, repeated.coef_, atol=1e-6)


def test_row_of_weight_zero_is_absent_with_its_label(iris: tuple[Any, Any]) -> None:
    x, y = iris
    model = SoftmaxRegression().fit(x, y, sample_weight=(y > 0).astype(float))
    np.testing.assert_array_equal(model.classes_, [1, 2])
    np.testing.assert_array_equal(model.coef_, SoftmaxRegression().fit(x[y > 0], y[y > 0]).coef_)


def test_log_probabilities_are_finite_where_probabilities_are_not(iris: tuple[Any, Any]) -> None:
    x, y = iris
    model = SoftmaxRegression().fit(x, y)
    far = 2000.0 * x[:1]
    probabilities, logs = model.predict_proba(far), model.predict_log_proba(far)
    assert probabilities.min() == 0.0
    assert np.isfinite(logs).all()
    logits = model.decision_function(far)
    np.testing.assert_allclose(logs[0] - logs[0, 0], logits[0] - logits[0, 0], rtol=1e-12)


@pytest.mark.parametrize("data", ["iris", "cancer"])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_the_type_of_the_features_is_kept(data: str, dtype: Any, request: pytest.FixtureRequest) -> None:
    x, y = request.getfixturevalue(data)
    model = SoftmaxRegression().fit(x.astype(dtype), y)
    assert model.coef_.dtype == model.intercept_.dtype == dtype
    for answer in (model.decision_function, model.predict_proba, model.predict_log_proba):
        assert answer(x.astype(dtype)).dtype == dtype
    np.testing.assert_allclose(model.predict_proba(x.astype(dtype)).sum(axis=1), 1, rtol=1e-6)


@pytest.mark.parametrize("labels", [["no", "yes"], [False, True], [-7, 3], [1.0, 2.0]])
def test_labels_keep_their_type(labels: list[Any], cancer: tuple[Any, Any]) -> None:
    x, y = cancer
    named = np.array(labels)[y]
    model = SoftmaxRegression().fit(x, named)
    assert model.classes_.tolist() == labels
    predicted = model.predict(x)
    assert predicted.dtype == named.dtype
    assert np.mean(predicted == named) > 0.95


def test_label_smoothing_softens_the_probabilities(iris: tuple[Any, Any]) -> None:
    x, y = iris
    sure = SoftmaxRegression(C=1e3).fit(x, y).predict_proba(x).max(axis=1).mean()
    soft = SoftmaxRegression(C=1e3, label_smoothing=0.3).fit(x, y).predict_proba(x).max(axis=1).mean()
    assert soft < 0.9 < sure


def test_without_intercept(iris: tuple[Any, Any]) -> None:
    x, y = iris
    model = SoftmaxRegression(fit_intercept=False).fit(x, y)
    np.testing.assert_array_equal(model.intercept_, np.zeros(3))
    np.testing.assert_allclose(model.predict_proba(np.zeros((1, 4))), 1 / 3)


def test_warm_start_goes_on_from_the_last_fit(iris: tuple[Any, Any]) -> None:
    x, y = iris
    model = SoftmaxRegression(warm_start=True).fit(x, y)
    cold = model.n_iter_[0]
    assert model.fit(x, y).n_iter_[0] <= 1 < cold
    with pytest.raises(ValueError, match=r"warm_start=True needs the classes .*\[0, 1, 2\].*\[0, 1\]"):
        model.fit(x[y < 2], y[y < 2])
    with pytest.raises(ValueError, match="warm_start=True needs the 4 features"):
        model.fit(x[:, :2], y)


def test_a_fit_that_stops_early_warns_and_the_model_still_works(iris: tuple[Any, Any]) -> None:
    x, y = iris
    model = SoftmaxRegression(max_iter=2)
    with pytest.warns(ConvergenceWarning, match="max_iter = 2"):
        model.fit(x, y)
    assert model.n_iter_.tolist() == [2]
    assert model.score(x, y) > 0.5


def test_verbose_prints_each_iteration_and_the_callback_hears_it(
    iris: tuple[Any, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    heard: list[int] = []
    model = SoftmaxRegression(verbose=1).fit(*iris, callback=lambda iteration, _: heard.append(iteration))
    assert len(capsys.readouterr().out.splitlines()) == model.n_iter_[0] == len(heard)
    SoftmaxRegression().fit(*iris)
    assert capsys.readouterr() == ("", "")


def test_objective_is_what_it_says(cancer: tuple[Any, Any]) -> None:
    x, y = cancer
    model = SoftmaxRegression(C=2.0).fit(x, y)
    own = model.predict_log_proba(x)[np.arange(len(y)), y]
    assert model.objective_ == pytest.approx(-2.0 * own.sum() + 0.5 * (model.coef_**2).sum(), rel=1e-12)


def test_pipeline_search_and_cross_validation(iris: tuple[Any, Any]) -> None:
    x, y = datasets.load_iris(return_X_y=True)
    pipeline = make_pipeline(StandardScaler(), SoftmaxRegression())
    assert cross_val_score(pipeline, x, y).mean() > 0.93
    search = GridSearchCV(pipeline, {"softmaxregression__C": [1e-4, 1.0]}).fit(x, y)
    assert search.best_params_ == {"softmaxregression__C": 1.0}


def test_clone_pickle_and_skops_round_trips(iris: tuple[Any, Any]) -> None:
    x, y = iris
    names = np.array(["setosa", "versicolor", "virginica"])
    model = SoftmaxRegression(C=0.3, class_weight={"setosa": 2.0}, n_threads=1).fit(x, names[y])
    fresh = clone(model)
    assert fresh.get_params() == model.get_params()
    with pytest.raises(NotFittedError):
        fresh.predict(x)
    stored = skops.io.dumps(model)
    assert skops.io.get_untrusted_types(data=stored) == ["softgrad.sklearn.SoftmaxRegression"]
    for back in (
        pickle.loads(pickle.dumps(model)),
        skops.io.loads(stored, trusted=["softgrad.sklearn.SoftmaxRegression"]),
    ):
        np.testing.assert_array_equal(back.predict_proba(x), model.predict_proba(x))
        np.testing.assert_array_equal(back.predict(x), model.predict(x))


def test_column_names_are_remembered_and_compared(iris: tuple[Any, Any]) -> None:
    """With a table of pyarrow: pandas is not needed."""
    x, y = iris
    table = pa.table(dict(zip("abcd", x.T, strict=True)))
    model = SoftmaxRegression().fit(table, y)
    assert model.feature_names_in_.tolist() == ["a", "b", "c", "d"]
    assert model.n_features_in_ == 4
    with pytest.raises(ValueError, match="feature names"):
        model.predict(table.select(["b", "a", "c", "d"]))


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"C": 0}, "C must be a positive number .*, not 0"),
        ({"C": "1"}, "C must be"),
        ({"C": float("nan")}, "C must be"),
        ({"tol": 0.0}, "tol must be"),
        ({"max_iter": 0}, "max_iter must be"),
        ({"max_iter": 10.5}, "max_iter must be"),
        ({"label_smoothing": 1.5}, r"label_smoothing must be in \[0, 1\], not 1.5"),
        ({"n_threads": 0}, "n_threads must be"),
        ({"class_weight": "even"}, "class_weight must be .*, not 'even'"),
        ({"class_weight": {9: 1.0}}, r"class_weight names 9, which is not a class in y: \[0, 1, 2\]"),
        ({"class_weight": {1: -1.0}}, "class_weight of 1 is -1.0"),
    ],
)
def test_impossible_parameters(parameters: dict[str, Any], message: str, iris: tuple[Any, Any]) -> None:
    with pytest.raises(ValueError, match=message):
        SoftmaxRegression(**parameters).fit(*iris)


def test_impossible_data(iris: tuple[Any, Any]) -> None:
    x, y = iris
    with pytest.raises(ValueError, match=r"at least two classes, .* one class: 1$"):
        SoftmaxRegression().fit(x, np.ones(len(y), int))
    with pytest.raises(ValueError, match=r"sample_weight\[5\] is -1.0"):
        SoftmaxRegression().fit(x, y, np.where(np.arange(len(y)) == 5, -1.0, 1.0))
    with pytest.raises(ValueError, match="zero in every row"):
        SoftmaxRegression().fit(x, y, np.zeros(len(y)))
    with pytest.raises(ValueError, match="continuous"):
        SoftmaxRegression().fit(x, y + 0.5)
