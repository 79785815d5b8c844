"""The estimator: scikit-learn's own checks, its optimum, and the life of a model around the fit."""

from __future__ import annotations

import importlib.util
import inspect
import os
import pickle
import signal
import subprocess
import sys
import warnings
from typing import Any
from unittest import SkipTest

import numpy as np
import pytest
import sklearn
import skops.io
from classifiers import largest_slope, real
from sklearn import datasets
from sklearn.base import clone
from sklearn.calibration import CalibratedClassifierCV
from sklearn.ensemble import AdaBoostClassifier, BaggingClassifier, VotingClassifier
from sklearn.exceptions import ConvergenceWarning, NotFittedError
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV, KFold, cross_val_score
from sklearn.multiclass import OneVsRestClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import parametrize_with_checks

import softgrad.sklearn
from softgrad.sklearn import SoftmaxRegression, SoftmaxRegressionCV

_mark = parametrize_with_checks([SoftmaxRegression(), SoftmaxRegressionCV(Cs=3, cv=3)]).mark
# What a check may want that is not there: it runs as far as it can and then says so.
_ABSENT = {"SCIPY_ARRAY_API": not os.environ.get("SCIPY_ARRAY_API")}
CALLBACKS = importlib.util.find_spec("sklearn.callback") is not None  # scikit-learn 1.9


@pytest.mark.parametrize(("estimator", "check"), list(_mark.args[1]), ids=_mark.kwargs["ids"])
def test_scikit_learns_checks(estimator: Any, check: Any) -> None:
    try:
        check(estimator)
    except SkipTest as reason:
        assert any(absent and name in str(reason) for name, absent in _ABSENT.items()), reason  # noqa: PT017


def test_public_names() -> None:
    names = [
        "LogisticRegression",
        "LogisticRegressionCV",
        "SoftmaxPathDisplay",
        "SoftmaxRegression",
        "SoftmaxRegressionCV",
    ]
    assert softgrad.sklearn.__all__ == names
    for name in names:
        kind = getattr(softgrad.sklearn, name)
        assert kind.__module__ == "softgrad.sklearn"
        text = inspect.getdoc(kind)
        assert text
        assert "Examples" in text
        for parameter in inspect.signature(kind).parameters:
            assert f"\n{parameter} : " in text, parameter


@pytest.mark.parametrize("data", ["iris", "breast_cancer"])
def test_is_scikit_learns_model(data: str) -> None:
    x, y = real(data)
    ours = SoftmaxRegression(C=0.5, tol=1e-12).fit(x, y)
    theirs = LogisticRegression(C=0.5, tol=1e-10, solver="newton-cholesky").fit(x, y)
    assert ours.coef_.shape == theirs.coef_.shape
    assert ours.intercept_.shape == theirs.intercept_.shape
    assert ours.n_iter_.shape == theirs.n_iter_.shape
    np.testing.assert_allclose(ours.coef_, theirs.coef_, atol=1e-5)
    np.testing.assert_allclose(ours.decision_function(x), theirs.decision_function(x), atol=1e-4)
    np.testing.assert_allclose(ours.predict_proba(x), theirs.predict_proba(x), atol=1e-5)
    np.testing.assert_array_equal(ours.predict(x), theirs.predict(x))


# --- weights ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("class_weight", ["balanced", {0: 3.0, 1: 0.5}])
def test_class_weights_are_scikit_learns(class_weight: Any) -> None:
    x, y = real("breast_cancer")
    ours = SoftmaxRegression(class_weight=class_weight, tol=1e-12).fit(x, y)
    theirs = LogisticRegression(class_weight=class_weight, tol=1e-10, solver="newton-cholesky").fit(x, y)
    np.testing.assert_allclose(ours.coef_, theirs.coef_, atol=1e-5)
    assert np.abs(ours.coef_ - SoftmaxRegression(tol=1e-12).fit(x, y).coef_).max() > 1e-3


def test_class_weight_is_sample_weight_is_repetition() -> None:
    x, y = real("iris")
    by_class = np.array([1, 3, 2])
    fits = [
        SoftmaxRegression(class_weight=dict(enumerate(by_class.tolist())), tol=1e-12).fit(x, y),
        SoftmaxRegression(tol=1e-12).fit(x, y, by_class[y]),
        SoftmaxRegression(tol=1e-12).fit(np.repeat(x, by_class[y], axis=0), np.repeat(y, by_class[y])),
    ]
    for fit in fits[1:]:
        np.testing.assert_allclose(fit.coef_, fits[0].coef_, atol=1e-5)
        np.testing.assert_allclose(fit.objective_, fits[0].objective_, rtol=1e-9)


def test_with_smoothing_a_class_weight_is_the_weight_of_the_class_in_every_target() -> None:
    x, y = real("iris")
    model = SoftmaxRegression(class_weight={0: 1, 1: 3, 2: 2}, label_smoothing=0.2, tol=1e-12).fit(x, y)
    assert largest_slope(model, x, y, class_weight=[1, 3, 2]) < 1e-6


def test_balanced_counts_sample_weight_as_repetition() -> None:
    x, y = real("iris")
    counts = np.random.default_rng(0).integers(0, 3, size=len(y))
    weighted = SoftmaxRegression(class_weight="balanced", tol=1e-12).fit(x, y, counts)
    repeated = SoftmaxRegression(class_weight="balanced", tol=1e-12).fit(np.repeat(x, counts, 0), np.repeat(y, counts))
    np.testing.assert_allclose(weighted.coef_, repeated.coef_, atol=1e-5)


def test_the_import_loads_what_estimators_are_made_of_and_no_solver() -> None:
    """sklearn.linear_model loads its metrics and its searches; the import of softgrad.sklearn costs less than that."""
    code = "import sys, softgrad.sklearn; print(*sys.modules)"
    loaded = set(
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    )
    late = {"softgrad.regression", "sklearn.linear_model", "sklearn.metrics", "sklearn.model_selection", "matplotlib"}
    assert late & loaded == set()


@pytest.mark.parametrize("by", ["sample_weight", "class_weight"])
@pytest.mark.parametrize("data", ["iris", "breast_cancer"])
@pytest.mark.parametrize("empty", [0, 1])
def test_a_class_of_weight_zero_stays_a_class_of_probability_zero(by: str, data: str, empty: int) -> None:
    x, y = real(data)
    weights = 1.0 + np.arange(len(y)) % 3
    options: dict[str, Any] = {"C": 0.7, "tol": 1e-10}
    theirs = LogisticRegression(C=0.7, tol=1e-9, max_iter=5000)
    for one in (options,) if by == "class_weight" else ():
        one["class_weight"] = {empty: 0.0}
    given = weights if by == "class_weight" else weights * (y != empty)
    model = SoftmaxRegression(**options).fit(x, y, given)
    theirs.set_params(class_weight=options.get("class_weight")).fit(x, y, given)
    np.testing.assert_array_equal(model.classes_, theirs.classes_)
    assert model.coef_.shape == theirs.coef_.shape
    assert model.predict_proba(x)[:, empty].max() < 1e-300
    assert np.isfinite(model.predict_log_proba(x)).all()
    np.testing.assert_allclose(model.predict_proba(x), theirs.predict_proba(x), atol=5e-3)
    logs = model.predict_log_proba(x)[np.arange(len(y)), y]
    loss = -((weights * logs)[y != empty]).sum()
    assert model.objective_ == pytest.approx(0.7 * loss + 0.5 * (model.coef_**2).sum(), rel=1e-9, abs=1e-200)
    assert 0 <= model.gap_ <= 1e-10


def test_two_of_three_classes_keep_the_penalty_of_two_rows() -> None:
    x, y = real("iris")
    model = SoftmaxRegression(tol=1e-12).fit(x, y, (y > 0).astype(float))
    two = SoftmaxRegression(C=2.0, tol=1e-12).fit(x[y > 0], y[y > 0])
    np.testing.assert_allclose(model.coef_[2] - model.coef_[1], two.coef_[0], atol=1e-5)
    np.testing.assert_array_equal(model.coef_[0], 0)
    again = SoftmaxRegression(tol=1e-12, warm_start=True).fit(x, y, (y > 0).astype(float))
    again.fit(x, y, (y > 0).astype(float))
    assert again.n_iter_[0] <= 1
    np.testing.assert_allclose(again.coef_, model.coef_, atol=1e-6)


@pytest.mark.parametrize("by", ["sample_weight", "class_weight"])
@pytest.mark.parametrize("data", ["iris", "breast_cancer"])
def test_without_an_intercept_a_class_of_weight_zero_is_repelled(by: str, data: str) -> None:
    x, y = real(data)
    class_weight = {1: 0.0} if by == "class_weight" else None
    weights = None if by == "class_weight" else (y != 1).astype(float)
    model = SoftmaxRegression(C=0.1, fit_intercept=False, class_weight=class_weight, tol=1e-12).fit(x, y, weights)
    theirs = LogisticRegression(C=0.1, fit_intercept=False, class_weight=class_weight, tol=1e-10, max_iter=5000)
    np.testing.assert_allclose(model.coef_, theirs.fit(x, y, weights).coef_, atol=1e-5)


def test_label_smoothing_counts_the_classes_of_weight_zero() -> None:
    x, y = real("iris")
    class_weight = {0: 0.0, 1: 2.0, 2: 1.0}
    model = SoftmaxRegression(label_smoothing=0.3, class_weight=class_weight, tol=1e-12).fit(x, y)
    soft = (0.7 * np.eye(3)[y] + 0.1) * [0, 2, 1]
    same = SoftmaxRegression(C=2.0, tol=1e-12).fit(x, soft[:, 1:])
    np.testing.assert_allclose(model.coef_[2] - model.coef_[1], same.coef_[0], atol=1e-5)
    smoothed = SoftmaxRegression(label_smoothing=0.3, tol=1e-12).fit(x, y, (y > 0).astype(float))
    assert smoothed.predict_proba(x)[:, 0].max() > 0.05  # smoothing gives every class a weight


@pytest.mark.parametrize("class_weight", [{0: 1.0, 1: 2.0, 2: 3.0}, {0: 1, 1: 2, 2: 3, 9: 4}])
def test_class_weight_may_name_classes_that_a_subset_lacks(class_weight: dict[int, float]) -> None:
    x, y = real("iris")
    rows = y > 0
    options: dict[str, Any] = {"class_weight": class_weight, "C": 0.3}
    model = SoftmaxRegression(tol=1e-12, **options).fit(x[rows], y[rows])
    theirs = LogisticRegression(tol=1e-10, max_iter=5000, **options).fit(x[rows], y[rows])
    np.testing.assert_allclose(model.coef_, theirs.coef_, atol=1e-5)
    scores = cross_val_score(SoftmaxRegression(**options), x, y, cv=KFold(3), error_score="raise")
    assert scores.shape == (3,)
    assert SoftmaxRegressionCV(class_weight=class_weight, Cs=[1.0], cv=KFold(3)).fit(x, y).scores_.shape == (3, 1)


def test_class_weight_of_another_name_and_a_class_without_one_is_warned_of() -> None:
    with pytest.warns(UserWarning, match=r"names 9, which is not a class in y, but not 0, which is one") as caught:
        SoftmaxRegression(class_weight={9: 1.0, 1: 2.0}).fit(*real("iris"))
    assert caught[0].filename == __file__


@pytest.mark.filterwarnings("ignore:.*sigmoid.*:RuntimeWarning")
@pytest.mark.parametrize("data", ["iris", "breast_cancer"])
def test_ensembles_with_a_class_of_weight_zero(data: str) -> None:
    x, y = real(data)
    weights = (y != 1).astype(float)
    base = SoftmaxRegression()
    for ensemble in (
        BaggingClassifier(base, n_estimators=4, max_samples=8, random_state=0),
        AdaBoostClassifier(base, n_estimators=4, random_state=0),
        VotingClassifier([("a", base), ("b", SoftmaxRegression(C=0.1))], voting="soft"),
        CalibratedClassifierCV(base, cv=3),
        CalibratedClassifierCV(base, cv=3, method="isotonic"),
        OneVsRestClassifier(base),
    ):
        weighted = {} if isinstance(ensemble, OneVsRestClassifier) else {"sample_weight": weights}
        found = ensemble.fit(x, y, **weighted).predict_proba(x)
        assert np.isfinite(found).all()
        if weighted:
            assert (ensemble.predict(x)[y != 1] == y[y != 1]).mean() > 0.9


# --- the fitted model ------------------------------------------------------------------------------------------------


def test_log_probabilities_are_finite_where_probabilities_are_not() -> None:
    x, y = real("iris")
    model = SoftmaxRegression().fit(x, y)
    far = 2000.0 * x[:1]
    probabilities, logs = model.predict_proba(far), model.predict_log_proba(far)
    assert probabilities.min() == 0.0
    assert np.isfinite(logs).all()
    logits = model.decision_function(far)
    np.testing.assert_allclose(logs[0] - logs[0, 0], logits[0] - logits[0, 0], rtol=1e-12)


@pytest.mark.parametrize("data", ["iris", "breast_cancer"])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_the_type_of_the_features_is_kept(data: str, dtype: Any) -> None:
    x, y = real(data)
    model = SoftmaxRegression().fit(x.astype(dtype), y)
    assert model.coef_.dtype == model.intercept_.dtype == dtype
    for answer in (model.decision_function, model.predict_proba, model.predict_log_proba):
        assert answer(x.astype(dtype)).dtype == dtype
    np.testing.assert_allclose(model.predict_proba(x.astype(dtype)).sum(axis=1), 1, rtol=1e-6)


@pytest.mark.parametrize("labels", [["no", "yes"], [False, True], [-7, 3], [1.0, 2.0]])
def test_labels_keep_their_type(labels: list[Any]) -> None:
    x, y = real("breast_cancer")
    named = np.array(labels)[y]
    model = SoftmaxRegression().fit(x, named)
    assert model.classes_.tolist() == labels
    predicted = model.predict(x)
    assert predicted.dtype == named.dtype
    assert np.mean(predicted == named) > 0.95


def test_label_smoothing_softens_the_probabilities() -> None:
    x, y = real("iris")
    sure = SoftmaxRegression(C=1e3).fit(x, y).predict_proba(x).max(axis=1).mean()
    soft = SoftmaxRegression(C=1e3, label_smoothing=0.3).fit(x, y).predict_proba(x).max(axis=1).mean()
    assert soft < 0.9 < sure


def test_without_intercept() -> None:
    model = SoftmaxRegression(fit_intercept=False).fit(*real("iris"))
    np.testing.assert_array_equal(model.intercept_, np.zeros(3))
    np.testing.assert_allclose(model.predict_proba(np.zeros((1, 4))), 1 / 3)


@pytest.mark.parametrize("data", ["iris", "breast_cancer"])
def test_objective_and_gap_are_what_they_say(data: str) -> None:
    x, y = real(data)
    model = SoftmaxRegression(C=2.0).fit(x, y)
    own = model.predict_log_proba(x)[np.arange(len(y)), y]
    assert model.objective_ == pytest.approx(-2.0 * own.sum() + 0.5 * (model.coef_**2).sum(), rel=1e-10)
    assert 0 <= model.gap_ <= 1e-6
    assert model.n_passes_ > 0
    history = model.history_
    assert history.dtype.names == ("iteration", "objective", "gap", "passes", "seconds", "step")
    assert history["iteration"].tolist() == list(range(1, model.n_iter_[0] + 1))
    assert (np.diff(history["passes"]) >= 0).all()
    assert history["objective"][-1] == pytest.approx(model.objective_, rel=1e-6)


def test_a_fit_that_stops_early_warns_and_the_model_still_works() -> None:
    x, y = real("iris")
    model = SoftmaxRegression(max_iter=2, tol=1e-12)
    with pytest.warns(ConvergenceWarning, match=r"max_iter = 2.*gap") as caught:
        model.fit(x, y)
    assert caught[0].filename == __file__
    assert model.n_iter_.tolist() == [2]
    assert model.score(x, y) > 0.5


# --- going on --------------------------------------------------------------------------------------------------------


def test_warm_start_goes_on_from_the_last_fit() -> None:
    x, y = real("iris")
    model = SoftmaxRegression(warm_start=True).fit(x, y)
    cold = model.n_iter_[0]
    assert model.fit(x, y).n_iter_[0] <= 1 < cold
    with pytest.raises(ValueError, match=r"warm_start=True needs the classes .*\[0, 1, 2\].*\[0, 1\]"):
        model.fit(x[y < 2], y[y < 2])
    with pytest.raises(ValueError, match="warm_start=True needs the 4 features"):
        model.fit(x[:, :2], y)


@pytest.mark.parametrize("interrupt", [lambda: signal.raise_signal(signal.SIGINT), None])
def test_interrupted_is_not_lost(interrupt: Any, request: pytest.FixtureRequest) -> None:
    x, y = real("breast_cancer")
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a background process ignores it
    request.addfinalizer(lambda: signal.signal(signal.SIGINT, before))

    def callback(progress: Any) -> None:
        if progress.iteration == 2:
            if interrupt is None:
                raise KeyboardInterrupt
            interrupt()

    model = SoftmaxRegression(warm_start=True, tol=1e-10)
    with pytest.raises(KeyboardInterrupt):
        model.fit(x, y, callback=callback)
    assert model.n_iter_.tolist() == [2]
    assert len(model.history_) == 2
    assert model.score(x, y) > 0.9
    early = model.objective_
    model.fit(x, y)
    assert model.gap_ <= 1e-10
    assert model.objective_ < early
    np.testing.assert_allclose(model.coef_, SoftmaxRegression(tol=1e-10).fit(x, y).coef_, atol=1e-4)


def test_verbose_prints_each_iteration_and_the_callback_hears_it(capsys: pytest.CaptureFixture[str]) -> None:
    heard: list[int] = []
    model = SoftmaxRegression(verbose=1).fit(*real("iris"), callback=lambda progress: heard.append(progress.iteration))
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == model.n_iter_[0] == len(heard)
    assert all("objective" in line and "gap" in line for line in lines)
    SoftmaxRegression().fit(*real("iris"))
    assert capsys.readouterr() == ("", "")


class Recorder:
    """A callback of scikit-learn that writes down what it is told, and may ask for the end."""

    def __init__(self, stop_after: int | None = None) -> None:
        self.told: list[str] = []
        self.scores: list[float] = []
        self.stop_after = stop_after

    def setup(self, estimator: Any, context: Any) -> None:
        self.told.append("setup")

    def teardown(self, estimator: Any, context: Any) -> None:
        self.told.append("teardown")

    def on_fit_task_begin(self, estimator: Any, context: Any) -> None:
        self.told.append(f"begin {context.task_name}")

    def on_fit_task_end(
        self, estimator: Any, context: Any, *, X: Any, y: Any, fitted_estimator: Any, metadata: Any
    ) -> bool:
        self.told.append(f"end {context.task_name}")
        if fitted_estimator is not None:
            self.scores.append(fitted_estimator.score(X, y, **(metadata or {})))
        return context.task_name == "iteration" and context.task_id + 1 == self.stop_after


@pytest.mark.skipif(not CALLBACKS, reason="scikit-learn 1.9 and newer")
def test_callbacks_of_scikit_learn() -> None:
    x, y = real("iris")
    recorder = Recorder()
    weights = np.arange(len(y)) % 3
    model = SoftmaxRegression().set_callbacks(recorder).fit(x, y, weights)
    told = recorder.told
    assert told[:3] == ["setup", "begin fit", "begin iteration"]
    assert told[-2:] == ["end fit", "teardown"]
    assert told.count("begin iteration") == told.count("end iteration") == model.n_iter_[0] + 1
    assert recorder.scores[-1] == pytest.approx(model.score(x, y, weights))
    assert len(recorder.scores) == model.n_iter_[0] + 1, "each iteration and the fit hand out a fitted estimator"
    for number, score in enumerate(recorder.scores[:-1], 1):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)
            stopped = SoftmaxRegression(max_iter=number).fit(x, y, weights)
        assert score == pytest.approx(stopped.score(x, y, weights))
    assert not hasattr(model, "_callback_fit_ctx")


@pytest.mark.skipif(not CALLBACKS, reason="scikit-learn 1.9 and newer")
def test_a_callback_of_scikit_learn_may_end_the_fit() -> None:
    x, y = real("iris")
    recorder = Recorder(stop_after=2)
    model = SoftmaxRegression().set_callbacks(recorder).fit(x, y)  # as wished: no warning
    assert model.n_iter_.tolist() == [2]
    assert recorder.told[-2:] == ["end fit", "teardown"]


@pytest.mark.skipif(not CALLBACKS, reason="scikit-learn 1.9 and newer")
def test_callbacks_are_torn_down_when_a_fit_fails() -> None:
    recorder = Recorder()

    def fail(_progress: Any) -> None:
        raise RuntimeError("full disk")

    with pytest.raises(RuntimeError, match="full disk"):
        SoftmaxRegression().set_callbacks(recorder).fit(*real("iris"), callback=fail)
    assert recorder.told[-1] == "teardown"


# --- in scikit-learn's company ---------------------------------------------------------------------------------------


def test_pipeline_search_and_cross_validation() -> None:
    x, y = datasets.load_iris(return_X_y=True)
    pipeline = make_pipeline(StandardScaler(), SoftmaxRegression())
    assert cross_val_score(pipeline, x, y).mean() > 0.93
    search = GridSearchCV(pipeline, {"softmaxregression__C": [1e-4, 1.0]}).fit(x, y)
    assert search.best_params_ == {"softmaxregression__C": 1.0}


def test_metadata_reaches_the_fit_through_a_pipeline() -> None:
    x, y = real("iris")
    rng = np.random.default_rng(0)
    weights, offset = rng.uniform(0.5, 2, len(y)), rng.standard_normal((len(y), 3))
    alone = SoftmaxRegression().fit(x, y, weights, offset)
    with sklearn.config_context(enable_metadata_routing=True):
        model = SoftmaxRegression().set_fit_request(sample_weight=True, offset=True).set_predict_request(offset=True)
        pipeline = make_pipeline(StandardScaler().set_fit_request(sample_weight=False), model)
        pipeline.fit(x, y, sample_weight=weights, offset=offset)
        np.testing.assert_allclose(pipeline[-1].coef_, alone.coef_, atol=1e-4)
        np.testing.assert_array_equal(pipeline.predict(x, offset=offset), alone.predict(x, offset=offset))


@pytest.mark.parametrize("labels", [["setosa", "versicolor", "virginica"], [3, 4, 7]])
def test_clone_pickle_and_skops_round_trips(labels: list[Any]) -> None:
    x, y = real("iris")
    model = SoftmaxRegression(C=0.3, class_weight={labels[0]: 2.0}, n_threads=1).fit(x, np.array(labels)[y])
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
        np.testing.assert_array_equal(back.history_, model.history_)
        assert (back.gap_, back.objective_) == (model.gap_, model.objective_)


# --- parameters that cannot be ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"C": 0}, "C must be a positive number .*, not 0"),
        ({"C": "1"}, "C must be"),
        ({"C": float("nan")}, "C must be"),
        ({"tol": 0.0}, "tol must be"),
        ({"max_iter": 0}, "max_iter must be"),
        ({"max_iter": 10.5}, "max_iter must be"),
        ({"max_memory": 0}, "max_memory must be"),
        ({"solver": None}, "solver must be the name of a solver"),
        ({"solver": "sag"}, "solver must be .*'sag'"),
        ({"label_smoothing": 1.5}, r"label_smoothing must be in \[0, 1\], not 1.5"),
        ({"n_threads": 0}, "n_threads must be"),
        ({"class_weight": "even"}, "class_weight must be .*, not 'even'"),
        ({"class_weight": {1: -1.0}}, "class_weight of 1 is -1.0"),
        ({"class_weight": {0: 0.0, 1: 0.0, 2: 0.0}}, "class_weight is zero for every class with rows"),
    ],
)
def test_impossible_parameters(parameters: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SoftmaxRegression(**parameters).fit(*real("iris"))


def test_separable_classes_are_named_with_a_proof() -> None:
    x = np.array([[-3.0, 1], [-2, 0], [-2.5, -1], [2, 1], [3, 0], [2.5, -1]])
    y = np.array(["left", "left", "left", "right", "right", "right"])
    with pytest.warns(
        ConvergenceWarning, match=r"completely separable .*\(class left against right, right against left\)"
    ):
        model = SoftmaxRegression(C=np.inf).fit(x, y)
    assert np.isnan(model.gap_)
    assert model.separable_.complete
    margins = x @ model.separable_.coef[0] + model.separable_.intercept[0]
    assert (margins[y == "right"] > 0).all()
    assert (margins[y == "left"] < 0).all()
    assert SoftmaxRegression().fit(x, y).separable_ is None
