"""LogisticRegression and LogisticRegressionCV in the place of scikit-learn's: its tests, its optimum, its shapes."""

from __future__ import annotations

import inspect
import os
import pickle
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any
from unittest import SkipTest

import numpy as np
import pytest
import sklearn
import skops.io
from classifiers import real
from scipy import sparse
from sklearn import linear_model
from sklearn.base import clone
from sklearn.exceptions import ConvergenceWarning
from sklearn.model_selection import GridSearchCV
from sklearn.utils.estimator_checks import parametrize_with_checks

from softgrad.sklearn import LogisticRegression, LogisticRegressionCV, SoftmaxRegression

SAME_SIGNATURE = "use_legacy_attributes" in inspect.signature(linear_model.LogisticRegressionCV).parameters
MODERN: dict[str, Any] = {"l1_ratios": (0,), "scoring": None, "use_legacy_attributes": False}

# Tests of scikit-learn 1.9 that do not hold, by the beginning of their names, and why: the table of
# docs/how-to/from-logistic-regression.md. A name that ends with "[" or "-" stands for what follows.
L1 = "L1 and elastic-net penalties are refused"
LIBLINEAR_TYPE = "float32 is kept, also with solver='liblinear'"
LARGE = "64-bit indices are accepted with every solver"
EXCEPTIONS = {
    "test_logreg_l1[": L1,
    "test_elastic_net_coeffs[": L1,
    "test_elastic_net_l1_l2_equivalence[": L1,
    "test_elastic_net_vs_l1_l2[": L1,
    "test_LogisticRegression_elastic_net_objective[": L1,
    "test_LogisticRegressionCV_GridSearchCV_elastic_net[": L1,
    "test_LogisticRegressionCV_no_refit[2-l1_ratios1]": L1,
    "test_LogisticRegressionCV_no_refit[3-l1_ratios1]": L1,
    "test_LogisticRegressionCV_elasticnet_attribute_shapes[": L1,
    "test_elastic_net_versus_sgd[": L1,
    "test_l1_ratio_non_elasticnet": L1,
    "test_scores_attribute_layout_elasticnet": L1,
    "test_saga_vs_liblinear[": L1,
    "test_liblinear_not_stuck[": L1,
    "test_lr_penalty_l1ratio_incompatible[l1-0.0]": L1,
    "test_sample_and_class_weight_equivalence_liblinear[": L1,
    "test_logistic_regression_cv_refit[42-1]": L1,
    "test_logisticregression_liblinear_sample_weight[42-params0]": L1,
    "test_max_iter[": "the warning names the gap, not the solver; some fits are done within one iteration",
    "test_liblinear_dual_random_state[": "nothing is random: random_state does not change the result",
    "test_logistic_cv_mock_scorer": "the scorer, which counts its calls, is called C by C, not fold by fold",
    "test_logistic_cv_multinomial_score[neg_log_loss-": "scikit-learn's own path, at its tolerance, is 3e-4 away",
    "test_logreg_predict_proba_multinomial[": "_predict_proba_lr is private",
    "test_get_default_scorer": "_get_scorer is private",
    "test_dtype_match[csr_matrix-False-liblinear]": LIBLINEAR_TYPE,
    "test_dtype_match[csr_matrix-True-liblinear]": LIBLINEAR_TYPE,
    "test_dtype_match[csr_array-False-liblinear]": LIBLINEAR_TYPE,
    "test_dtype_match[csr_array-True-liblinear]": LIBLINEAR_TYPE,
    "test_large_sparse_matrix[csr_matrix-": LARGE,
    "test_large_sparse_matrix[csr_array-": LARGE,
    "test_liblinear_with_large_values": "features up to 1e150 are fitted",
    "test_newton_cholesky_fallback_to_lbfgs": "C = 1e30 on separable rows: the gap is warned of; no solver falls back",
    "test_logistic_regression_callback_support[0]": "max_iter=0 makes no iteration, and calls no callback of one",
}


def listed(name: str) -> str | None:
    """The exception that covers a test."""
    return next((key for key in EXCEPTIONS if name == key or (key[-1] in "[-" and name.startswith(key))), None)


@pytest.mark.skipif(not SAME_SIGNATURE, reason="the signature of scikit-learn 1.9")
def test_scikit_learns_own_tests_pass_but_for_those_listed(tmp_path: Path) -> None:
    record = tmp_path / "record"
    environment = os.environ | {
        "SUBSTITUTE_RECORD": str(record),
        "SOFTGRAD_NUM_THREADS": "1",
        "PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")]),
    }
    command = [sys.executable, "-m", "pytest", "-q", "--tb=no", "-p", "substitute", "-p", "no:xdist"]
    command += ["-p", "no:cacheprovider", "-c", os.devnull, f"--rootdir={tmp_path}"]
    command += ["--pyargs", "sklearn.linear_model.tests.test_logistic"]
    done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=900)
    found = [line.split(" ", 1) for line in record.read_text(encoding="utf-8").splitlines()]
    outcomes = {name: outcome for outcome, name in found}
    assert sum(outcome == "passed" for outcome in outcomes.values()) > 180, done.stdout[-2000:]
    failed = [name for name, outcome in outcomes.items() if outcome == "failed"]
    assert [name for name in failed if listed(name) is None] == []
    assert set(EXCEPTIONS) - {listed(name) for name in failed} == set(), "listed, but passing"


# --- the same model --------------------------------------------------------------------------------------------------

pytestmark = pytest.mark.filterwarnings("ignore:.*(l1_ratios|of scikit-learn).*:FutureWarning")


_mark = parametrize_with_checks(
    [LogisticRegression(), LogisticRegression(solver="liblinear"), LogisticRegressionCV(Cs=3, cv=3, **MODERN)],
).mark


@pytest.mark.parametrize(_mark.args[0], list(_mark.args[1]), ids=_mark.kwargs["ids"])
def test_scikit_learns_checks(estimator: Any, check: Any) -> None:
    try:
        check(estimator)
    except SkipTest as reason:
        assert "SCIPY_ARRAY_API" in str(reason), reason  # noqa: PT017


@pytest.mark.skipif(not SAME_SIGNATURE, reason="the signature of scikit-learn 1.9")
@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (LogisticRegression, linear_model.LogisticRegression),
        (LogisticRegressionCV, linear_model.LogisticRegressionCV),
    ],
)
def test_the_signature_is_scikit_learns(ours: Any, theirs: Any) -> None:
    def parameters(of: Any) -> list[tuple[str, Any, Any]]:
        return [(p.name, p.default, p.kind) for p in inspect.signature(of).parameters.values()]

    assert parameters(ours) == parameters(theirs)
    assert parameters(ours.fit) == parameters(theirs.fit)
    missing = [name for name in dir(theirs) if not name.startswith("_") and not hasattr(ours, name)]
    assert set(missing) <= {"param"}, "a variable left over in the body of scikit-learn's class"


OPTIONS: list[dict[str, Any]] = [
    {},
    {"C": 0.02, "class_weight": "balanced"},
    {"C": 30.0, "fit_intercept": False, "solver": "newton-cg"},
    {"class_weight": {0: 3.0, 1: 0.5}, "solver": "newton-cholesky"},
    {"solver": "liblinear"},
    {"solver": "liblinear", "intercept_scaling": 5.0, "dual": True, "C": 0.1},
    {"solver": "liblinear", "fit_intercept": False},
]


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("data", ["iris", "breast_cancer"])
@pytest.mark.parametrize("kind", [np.asarray, sparse.csr_matrix])
@pytest.mark.parametrize("weighted", [False, True])
def test_the_optimum_is_scikit_learns(options: dict[str, Any], data: str, kind: Any, weighted: bool) -> None:
    x, y = real(data)
    weights = 0.5 + np.arange(len(y)) % 3 if weighted else None
    model = LogisticRegression(**options)
    theirs = linear_model.LogisticRegression(**options | {"tol": 1e-10, "max_iter": 100_000, "random_state": 0})
    if options.get("solver") == "liblinear" and data == "iris":
        with pytest.raises(ValueError, match="'liblinear' solver does not support multiclass classification"):
            model.fit(kind(x), y, weights)
        return
    model.fit(kind(x), y, weights)
    theirs.fit(kind(x), y, weights)
    for name in ("classes_", "coef_", "intercept_", "n_iter_"):
        if (name, options.get("fit_intercept")) == ("intercept_", False) and np.isscalar(theirs.intercept_):
            continue  # of liblinear alone
        assert getattr(model, name).shape == getattr(theirs, name).shape
        assert getattr(model, name).dtype == getattr(theirs, name).dtype
    np.testing.assert_allclose(model.coef_, theirs.coef_, atol=2e-3)
    np.testing.assert_allclose(model.predict_proba(x), theirs.predict_proba(x), atol=1e-3)
    assert model.gap_ <= model.tol**2
    assert model.score(x, y, weights) == pytest.approx(theirs.score(x, y, weights), abs=1e-2)


def test_tol_bounds_the_distance_of_the_coefficients() -> None:
    x, y = real("iris")
    best = LogisticRegression(tol=1e-6).fit(x, y)
    for tol in (0.1, 1e-2, 1e-3):
        model = LogisticRegression(tol=tol).fit(x, y)
        assert np.linalg.norm(model.coef_ - best.coef_) <= tol * np.sqrt(2 * best.objective_) * (1 + 1e-6)


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("ratios", [None, (0,), (0.0, 0.0)])
@pytest.mark.parametrize("refit", [False, True])
@pytest.mark.parametrize("data", ["iris", "breast_cancer"])
@pytest.mark.skipif(not SAME_SIGNATURE, reason="the attributes of scikit-learn 1.9")
def test_the_search_has_scikit_learns_attributes(legacy: bool, ratios: Any, refit: bool, data: str) -> None:
    x, y = real(data)
    names = np.array(["a", "b", "c"])[y]
    options: dict[str, Any] = {
        "Cs": [1.0, 0.01, 0.3], "cv": 3, "l1_ratios": ratios, "use_legacy_attributes": legacy, "refit": refit,
        "scoring": "neg_log_loss", "fit_intercept": refit,
    }  # fmt: skip
    weights = 0.5 + np.arange(len(y)) % 3
    model = LogisticRegressionCV(**options).fit(x, names, weights)
    theirs = linear_model.LogisticRegressionCV(**options, tol=1e-9, max_iter=10_000).fit(x, names, weights)
    for name in ("C_", "l1_ratio_", "Cs_", "l1_ratios_", "coefs_paths_", "scores_", "n_iter_", "coef_", "intercept_"):
        mine, expected = getattr(model, name), getattr(theirs, name)
        assert type(mine) is type(expected), name
        for key in expected if isinstance(expected, dict) else [None]:
            a, b = (mine, expected) if key is None else (mine[key], expected[key])
            assert np.shape(a) == np.shape(b), name
            if name == "n_iter_":
                assert (a >= 1).all()
            elif None in np.ravel(b):
                np.testing.assert_array_equal(a, b)
            else:
                np.testing.assert_allclose(a, b, atol=1e-3, err_msg=name)


def test_rows_of_weight_zero_are_split_as_scikit_learn_splits_them() -> None:
    x, y = real("iris")
    weights = (np.arange(len(y)) % 4 > 0) * 1.0
    options: dict[str, Any] = {"Cs": [0.1, 1.0], "cv": 4, **MODERN, "scoring": "neg_log_loss"}
    model = LogisticRegressionCV(**options).fit(x, y, weights)
    theirs = linear_model.LogisticRegressionCV(**options, tol=1e-9, max_iter=10_000).fit(x, y, weights)
    np.testing.assert_allclose(model.scores_, theirs.scores_, atol=1e-4)


# --- parameters ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"C": 0}, "C must be a positive number"),
        ({"tol": -1.0}, "tol must be a number of at least 0"),
        ({"max_iter": -1}, "max_iter must be an integer of at least 0"),
        ({"solver": "sgd"}, "solver must be one of 'lbfgs', .*, not 'sgd'"),
        ({"l1_ratio": 1.5}, r"l1_ratio must be in \[0, 1\]"),
        ({"intercept_scaling": 0}, "intercept_scaling must be a positive number"),
        ({"fit_intercept": "no"}, "fit_intercept must be True or False"),
        ({"n_jobs": 1.5}, "n_jobs must be None or an integer"),
        ({"dual": True}, "Solver lbfgs supports only dual=False"),
        ({"l1_ratio": 1}, "Solver lbfgs supports only 'l2' or None penalties, got l1"),
        ({"l1_ratio": 1, "solver": "saga"}, "softgrad fits the L2 penalty only, but penalty='l1' .*by l1_ratio=1"),
        ({"l1_ratio": 0.5, "solver": "saga"}, "softgrad fits the L2 penalty only, but penalty='elasticnet'"),
        ({"l1_ratio": 1, "solver": "liblinear"}, "softgrad fits the L2 penalty only"),
        ({"C": np.inf, "solver": "liblinear"}, "penalty=None is not supported for the liblinear solver"),
    ],
)
def test_impossible_parameters(parameters: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        LogisticRegression(**parameters).fit(*real("breast_cancer"))


def test_soft_labels_belong_to_the_other_class() -> None:
    x, y = real("iris")
    for model in (LogisticRegression(), LogisticRegressionCV(**MODERN)):
        with pytest.raises(ValueError, match="y should be a 1d array"):
            model.fit(x, np.eye(3)[y])


@pytest.mark.filterwarnings("default::FutureWarning")
@pytest.mark.parametrize(
    ("model", "messages"),
    [
        (LogisticRegression(penalty="l2"), ["'penalty' was deprecated"]),
        (LogisticRegression(l1_ratio=None), ["'l1_ratio=None' was deprecated"]),
        (LogisticRegression(n_jobs=2), ["'n_jobs' has no effect"]),
        (
            LogisticRegressionCV(Cs=1),
            [
                "default value for l1_ratios will change",
                "default value of the parameter 'scoring' will change",
                "default value of use_legacy_attributes will change",
            ],
        ),
        (LogisticRegressionCV(Cs=1, **MODERN | {"l1_ratios": None}), ["'l1_ratios=None' was deprecated"]),
    ],
)
def test_scikit_learns_future_warnings(model: Any, messages: list[str]) -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        model.fit(*real("iris"))
    found = [str(one.message) for one in caught if one.category is FutureWarning]
    assert len(found) == len(messages)
    assert all(message in text for message, text in zip(messages, found, strict=True))
    assert {one.filename for one in caught} == {__file__}


def test_no_iteration_and_too_few() -> None:
    x, y = real("iris")
    with pytest.warns(ConvergenceWarning, match="stopped at max_iter = 0"):
        model = LogisticRegression(max_iter=0).fit(x, y)
    assert (model.coef_ == 0).all()
    assert model.n_iter_.tolist() == [0]
    with pytest.warns(ConvergenceWarning, match="stopped at max_iter = 2") as caught:
        LogisticRegression(max_iter=2, tol=1e-6).fit(x, y)
    assert caught[0].filename == __file__


def test_without_a_penalty_and_warm() -> None:
    rng = np.random.default_rng(0)
    x = rng.standard_normal((200, 3))
    y = (x[:, 0] + rng.logistic(size=200) > 0).astype(int)
    model = LogisticRegression(C=np.inf, warm_start=True).fit(x, y)
    theirs = linear_model.LogisticRegression(C=np.inf, tol=1e-9, max_iter=1000).fit(x, y)
    np.testing.assert_allclose(model.coef_, theirs.coef_, atol=1e-3)
    cold = model.n_iter_[0]
    assert model.fit(x, y).n_iter_[0] < cold


@pytest.mark.parametrize("n_jobs", [None, 1, 2, -1])
def test_jobs_are_threads_and_do_not_change_the_bits(n_jobs: int | None) -> None:
    x, y = real("iris")
    options: dict[str, Any] = {"Cs": 3, "cv": 3, **MODERN}
    model = LogisticRegressionCV(n_jobs=n_jobs, **options).fit(x, y)
    np.testing.assert_array_equal(model.coef_, LogisticRegressionCV(**options).fit(x, y).coef_)


# --- the life of a model ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("model", [LogisticRegression(), LogisticRegressionCV(Cs=3, cv=3, **MODERN)])
def test_sparse_coefficients_clone_pickle_and_skops(model: Any) -> None:
    x, y = real("iris")
    model = clone(model).fit(x, y)
    expected = model.predict_proba(x)
    trusted = [f"softgrad.sklearn.{type(model).__name__}"]
    assert skops.io.get_untrusted_types(data=skops.io.dumps(model)) == trusted
    for back in (pickle.loads(pickle.dumps(model)), skops.io.loads(skops.io.dumps(model), trusted=trusted)):
        np.testing.assert_array_equal(back.predict_proba(x), expected)
    assert sparse.issparse(model.sparsify().coef_)
    for rows in (x, sparse.csr_matrix(x)):
        np.testing.assert_allclose(model.predict_proba(rows), expected, rtol=1e-12)
    np.testing.assert_allclose(model.densify().predict_proba(x), expected, rtol=1e-12)


def test_a_search_over_parameters_of_both() -> None:
    x, y = real("iris")
    for base in (LogisticRegression(), SoftmaxRegression()):
        search = GridSearchCV(base, {"C": [0.1, 1.0], "class_weight": [None, "balanced"]}, cv=3).fit(x, y)
        assert search.best_score_ > 0.9
    with sklearn.config_context(enable_metadata_routing=True):
        LogisticRegressionCV(Cs=3, cv=3, **MODERN).fit(x, y)
