"""C chosen by cross-validation, and the path drawn."""

from __future__ import annotations

import pickle
import subprocess
import sys
from collections.abc import Iterator
from inspect import signature
from typing import Any

import matplotlib as mpl
import numpy as np
import pandas as pd
import pytest
import sklearn
import skops.io
from classifiers import real, soft_labels
from sklearn.base import clone
from sklearn.exceptions import ConvergenceWarning, NotFittedError, UnsetMetadataPassedError
from sklearn.linear_model import LogisticRegression, LogisticRegressionCV
from sklearn.metrics import (
    brier_score_loss,
    cohen_kappa_score,
    f1_score,
    get_scorer,
    log_loss,
    make_scorer,
    matthews_corrcoef,
)
from sklearn.model_selection import GroupKFold, KFold, StratifiedKFold, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from softgrad.regression import softmax_path
from softgrad.sklearn import SoftmaxPathDisplay, SoftmaxRegression, SoftmaxRegressionCV

CS = [1e-3, 0.1, 10.0]


@pytest.fixture(autouse=True)
def _without_a_screen() -> Iterator[None]:
    mpl.use("agg")
    yield
    import matplotlib.pyplot as plt

    plt.close("all")


# --- the choice ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("data", ["iris", "breast_cancer"])
@pytest.mark.parametrize("scoring", [None, "neg_log_loss", "roc_auc_ovr", "balanced_accuracy"])
def test_scores_are_those_of_single_fits(data: str, scoring: Any) -> None:
    x, y = real(data)
    model = SoftmaxRegressionCV(Cs=CS, cv=4, scoring=scoring, tol=1e-10).fit(x, y)
    assert model.scores_.shape == (4, 3)
    assert model.Cs_.tolist() == CS
    scorer = get_scorer(scoring or "accuracy")
    for number, (train, test) in enumerate(StratifiedKFold(4).split(x, y)):
        for position, C in enumerate(CS):
            single = LogisticRegression(C=C, tol=1e-10, solver="newton-cholesky").fit(x[train], y[train])
            assert model.scores_[number, position] == pytest.approx(scorer(single, x[test], y[test]), rel=1e-4)
            full = np.column_stack([single.coef_, single.intercept_])
            np.testing.assert_allclose(model.coefs_paths_[number, position], full, atol=1e-3)
    np.testing.assert_allclose(model.mean_scores_, model.scores_.mean(axis=0))
    best = int(model.mean_scores_.argmax())
    assert CS[best] == model.C_
    single = SoftmaxRegression(C=CS[best], tol=1e-10).fit(x, y)
    np.testing.assert_allclose(model.coef_, single.coef_, atol=1e-3)
    np.testing.assert_allclose(model.predict_proba(x), single.predict_proba(x), atol=1e-4)
    assert model.score(x, y) == pytest.approx(scorer(single, x, y), rel=1e-4)


@pytest.mark.parametrize("data", ["iris", "breast_cancer"])
def test_the_path_is_that_of_all_rows(data: str) -> None:
    x, y = real(data)
    model = SoftmaxRegressionCV(Cs=CS, tol=1e-10).fit(x, y)
    rows = 1 if data == "breast_cancer" else 3
    assert model.path_coefs_.shape == (3, rows, x.shape[1])
    assert model.path_intercepts_.shape == (3, rows)
    assert model.coefs_paths_.shape == (5, 3, rows, x.shape[1] + 1)
    assert model.n_iter_.shape == model.path_gaps_.shape == model.path_objectives_.shape == (3,)
    assert (model.path_gaps_ <= 1e-10).all()
    assert model.n_passes_ > 0
    for position, C in enumerate(CS):
        single = SoftmaxRegression(C=C, tol=1e-10).fit(x, y)
        np.testing.assert_allclose(model.path_coefs_[position], single.coef_, atol=1e-3)
        assert model.path_objectives_[position] == pytest.approx(single.objective_, rel=1e-8)


def test_ten_values_by_default_each_once_in_order() -> None:
    x, y = real("iris")
    np.testing.assert_allclose(SoftmaxRegressionCV(cv=2).fit(x, y).Cs_, np.logspace(-4, 4, 10))
    assert SoftmaxRegressionCV(Cs=[10, 0.1, 10.0], cv=2).fit(x, y).Cs_.tolist() == [0.1, 10.0]


def test_of_equal_scores_the_strongest_penalty_wins() -> None:
    x, y = real("breast_cancer")
    model = SoftmaxRegressionCV(Cs=[1e-2, 1.0, 1e2], scoring=lambda *_: 0.5).fit(x, y)
    assert model.C_ == 1e-2


def test_without_refit_the_best_of_the_folds_are_averaged() -> None:
    x, y = real("iris")
    model = SoftmaxRegressionCV(Cs=CS, cv=3, refit=False, scoring="neg_log_loss").fit(x, y)
    best = model.scores_.argmax(axis=1)
    mean = np.mean([model.coefs_paths_[fold, c] for fold, c in enumerate(best)], axis=0)
    np.testing.assert_allclose(np.column_stack([model.coef_, model.intercept_]), mean)
    assert np.array(CS)[best].mean() == model.C_


def test_early_stop_leaves_the_rest_without_scores() -> None:
    x, y = real("iris")
    rng = np.random.default_rng(0)
    labels = np.where(rng.random(len(y)) < 0.4, rng.integers(0, 3, len(y)), y)  # so noisy that a large C overfits
    options: dict[str, Any] = {"Cs": np.logspace(-4, 4, 9), "scoring": "neg_log_loss"}
    whole = SoftmaxRegressionCV(**options).fit(x, labels)
    model = SoftmaxRegressionCV(early_stop=1, **options).fit(x, labels)
    there = ~np.isnan(model.mean_scores_)
    assert 2 <= there.sum() < 9
    assert there.argmin() == there.sum(), "the first ones"
    np.testing.assert_allclose(model.mean_scores_[there], whole.mean_scores_[there], rtol=1e-4)
    assert model.C_ == whole.C_
    np.testing.assert_allclose(model.coef_, whole.coef_, atol=1e-3)
    assert model.n_passes_ < whole.n_passes_
    SoftmaxPathDisplay.from_estimator(model)


def test_a_path_that_stops_early_says_where() -> None:
    with pytest.warns(ConvergenceWarning, match=r"at \d of 3 values of C, the first C = .*max_iter") as caught:
        SoftmaxRegressionCV(Cs=CS, max_iter=1, tol=1e-12).fit(*real("breast_cancer"))
    assert caught[0].filename == __file__


# --- scorers ---------------------------------------------------------------------------------------------------------

LABELLED = [
    "neg_log_loss", "neg_brier_score", "d2_log_loss_score", "d2_brier_score", "top_k_accuracy", "f1_macro",
    "f1_weighted", "precision_micro", "recall_macro", "jaccard_macro", make_scorer(cohen_kappa_score),
]  # fmt: skip
TOLD = "use_legacy_attributes" in signature(LogisticRegressionCV).parameters  # scikit-learn gives the classes, too


def rare() -> tuple[Any, Any]:
    """Three classes, of which "c" has two rows."""
    y = np.repeat([0, 1, 2], [20, 20, 2])
    return y[:, None] + np.random.default_rng(0).normal(0, 0.7, (42, 3)), np.array(["a", "b", "c"])[y]


@pytest.mark.skipif(not TOLD, reason="scikit-learn 1.8 and newer")
@pytest.mark.filterwarnings("ignore:.*(ill-defined|least populated class|have only one label)")
@pytest.mark.parametrize("scoring", LABELLED)
def test_scorers_are_told_the_classes_that_held_out_rows_lack(scoring: Any) -> None:
    x, y = rare()
    model = SoftmaxRegressionCV(Cs=[1.0], scoring=scoring, tol=1e-12).fit(x, y)
    theirs = LogisticRegressionCV(
        Cs=[1.0], scoring=scoring, tol=1e-10, max_iter=5000, l1_ratios=(0,), use_legacy_attributes=False
    ).fit(x, y)
    np.testing.assert_allclose(model.scores_.ravel(), theirs.scores_.ravel(), atol=1e-4)
    assert np.isfinite(model.score(x[:30], y[:30]))


@pytest.mark.parametrize(
    ("scoring", "metric"),
    [
        ("neg_brier_score", lambda y, p: -brier_score_loss(y, p[:, 1], pos_label="b", labels=["a", "b"])),
        ("f1", lambda y, p: f1_score(y, np.where(p[:, 1] > 0.5, "b", "a"), pos_label="b", labels=["a", "b"])),
        ("f1_macro", lambda y, p: f1_score(y, np.where(p[:, 1] > 0.5, "b", "a"), average="macro", labels=["a", "b"])),
    ],
)
@pytest.mark.filterwarnings("ignore:.*ill-defined")
def test_scorers_are_told_the_positive_class(scoring: str, metric: Any) -> None:
    x, y = rare()
    x, y = x[:40], y[:40]
    folds = [(np.arange(40), np.flatnonzero(y == "b")), (np.arange(0, 40, 2), np.arange(1, 40, 2))]
    model = SoftmaxRegressionCV(cv=folds, Cs=[1.0], scoring=scoring).fit(x, y)
    for scores, (train, test) in zip(model.scores_, folds, strict=True):
        expected = metric(y[test], SoftmaxRegression().fit(x[train], y[train]).predict_proba(x[test]))
        assert scores == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("scoring", ["top_k_accuracy", "roc_auc_ovo", "neg_brier_score", "d2_log_loss_score"])
@pytest.mark.filterwarnings("ignore:.*(ill-defined|Only one class is present)")
def test_scorers_take_a_class_that_the_training_rows_lack(scoring: str) -> None:
    x, y = rare()
    folds = [(np.flatnonzero(y != "c"), np.arange(42)), (np.arange(42), np.arange(42))]
    model = SoftmaxRegressionCV(cv=folds, Cs=[1.0], scoring=scoring).fit(x, y)
    assert np.isfinite(model.scores_).all()
    assert model.scores_[0, 0] < model.scores_[1, 0]


@pytest.mark.filterwarnings("ignore:Only one class is present")
def test_an_area_under_the_curve_that_a_fold_does_not_have_is_nan() -> None:
    x, y = real("iris")
    folds = [(np.arange(150), np.flatnonzero(y > 0)), (np.arange(0, 150, 2), np.arange(1, 150, 2))]
    model = SoftmaxRegressionCV(cv=folds, Cs=[1.0], scoring="roc_auc_ovr", refit=False)
    with pytest.raises(ValueError, match="every score is NaN"):
        model.fit(x, y)
    assert np.isnan(model.scores_[0, 0])
    assert model.scores_[1, 0] > 0.9


# --- folds and weights -----------------------------------------------------------------------------------------------


def test_rows_of_weight_zero_are_absent_from_the_folds() -> None:
    x, y = real("iris")
    weights = (np.arange(len(y)) % 3 > 0) * 1.0
    kept = np.flatnonzero(weights)
    given = list(StratifiedKFold(3).split(x, y))
    model = SoftmaxRegressionCV(Cs=CS, cv=3, scoring="neg_log_loss").fit(x, y, weights)
    same = SoftmaxRegressionCV(Cs=CS, cv=3, scoring="neg_log_loss").fit(x[kept], y[kept])
    np.testing.assert_allclose(model.scores_, same.scores_, rtol=1e-12)
    by_number = SoftmaxRegressionCV(Cs=CS, cv=given, scoring="neg_log_loss").fit(x, y, weights)
    single = SoftmaxRegression(C=CS[0]).fit(x[given[0][0]], y[given[0][0]], weights[given[0][0]])
    held_out = given[0][1]
    expected = -log_loss(y[held_out], single.predict_proba(x[held_out]), sample_weight=weights[held_out])
    assert by_number.scores_[0, 0] == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("scoring", ["accuracy", "neg_log_loss", "balanced_accuracy", matthews_corrcoef])
def test_weights_count_in_fits_and_scores_as_repetition(scoring: Any) -> None:
    x, y = real("iris")
    counts = 1 + np.arange(len(y)) % 3
    rows = np.arange(len(y)).repeat(counts)
    folds = list(KFold(3, shuffle=True, random_state=0).split(x))
    repeated = [tuple(np.flatnonzero(np.isin(rows, part)) for part in fold) for fold in folds]
    scoring = make_scorer(scoring) if callable(scoring) else scoring
    options: dict[str, Any] = {"Cs": CS, "scoring": scoring, "tol": 1e-10}
    weighted = SoftmaxRegressionCV(cv=folds, **options).fit(x, y, counts)
    again = SoftmaxRegressionCV(cv=repeated, **options).fit(x[rows], y[rows])
    np.testing.assert_allclose(weighted.scores_, again.scores_, rtol=1e-4)
    assert weighted.C_ == again.C_
    np.testing.assert_allclose(weighted.coef_, again.coef_, atol=1e-3)


def test_a_class_missing_in_a_fold_costs_its_rows_and_no_more() -> None:
    x, y = real("iris")
    folds = [(np.flatnonzero(y != k), np.flatnonzero(y == k)) for k in range(3)] + [
        (np.arange(150), np.arange(0, 150, 7))
    ]
    accuracy = SoftmaxRegressionCV(Cs=CS, cv=folds).fit(x, y)
    assert (accuracy.scores_[:3] == 0).all()
    assert (accuracy.scores_[3] > 0.6).all()
    loss = SoftmaxRegressionCV(Cs=CS, cv=folds, scoring="neg_log_loss").fit(x, y)
    assert np.isfinite(loss.scores_).all()
    np.testing.assert_allclose(loss.scores_[:3], np.log(np.finfo(float).eps))
    assert loss.classes_.tolist() == [0, 1, 2]
    assert loss.predict_proba(x).shape == (150, 3)


def test_groups_stay_together() -> None:
    x, y = real("iris")
    groups = np.arange(len(y)) % 6
    model = SoftmaxRegressionCV(Cs=CS, cv=GroupKFold(3)).fit(x, y, groups=groups)
    folds = list(GroupKFold(3).split(x, y, groups))
    np.testing.assert_allclose(model.scores_, SoftmaxRegressionCV(Cs=CS, cv=folds).fit(x, y).scores_)
    weights = (groups > 0) * 1.0
    assert SoftmaxRegressionCV(Cs=CS, cv=GroupKFold(3)).fit(x, y, weights, groups=groups).scores_.shape == (3, 3)
    with pytest.raises(ValueError, match="groups"):
        SoftmaxRegressionCV(Cs=CS, cv=GroupKFold(3)).fit(x, y)


def test_a_fold_without_rows_is_refused() -> None:
    x, y = real("iris")
    folds = [(np.arange(100), np.arange(100, 150)), (np.arange(50, 150), np.arange(10))]
    with pytest.raises(ValueError, match="fold 1 of cv has no held-out rows with a positive weight"):
        SoftmaxRegressionCV(Cs=CS, cv=folds).fit(x, y, (np.arange(150) >= 10) * 1.0)


# --- soft labels, offset, scorers ------------------------------------------------------------------------------------


def test_soft_labels_are_stratified_and_scored_by_log_loss() -> None:
    x, y = real("iris")
    soft = soft_labels(y, 3)
    table = pd.DataFrame(soft, columns=["a", "b", "c"])
    model = SoftmaxRegressionCV(Cs=CS, tol=1e-10).fit(x, table)
    assert model.classes_.tolist() == ["a", "b", "c"]
    train, test = next(StratifiedKFold(5).split(x, soft.argmax(axis=1)))
    single = SoftmaxRegression(C=CS[1], tol=1e-10).fit(x[train], soft[train])
    assert model.scores_[0, 1] == pytest.approx(single.score(x[test], soft[test]), rel=1e-4)
    assert model.score(x, table) == pytest.approx(SoftmaxRegression(C=model.C_).fit(x, table).score(x, table), rel=1e-4)
    named = SoftmaxRegressionCV(Cs=CS, scoring="neg_log_loss", tol=1e-10).fit(x, table)
    np.testing.assert_array_equal(named.scores_, model.scores_)
    assert named.score(x, table) == model.score(x, table)
    with pytest.raises(ValueError, match="scoring='accuracy' compares labels, but y holds soft labels"):
        SoftmaxRegressionCV(Cs=CS, scoring="accuracy").fit(x, soft)


def test_an_offset_counts_in_fits_and_scores() -> None:
    x, y = real("breast_cancer")
    offset = np.random.default_rng(0).standard_normal(len(y))
    model = SoftmaxRegressionCV(Cs=CS, scoring="neg_log_loss", tol=1e-10).fit(x, y, offset=offset)
    train, test = next(StratifiedKFold(5).split(x, y))
    single = SoftmaxRegression(C=CS[1], tol=1e-10).fit(x[train], y[train], offset=offset[train])
    expected = -log_loss(y[test], single.predict_proba(x[test], offset[test]))
    assert model.scores_[0, 1] == pytest.approx(expected, rel=1e-4)
    with pytest.raises(ValueError, match="offset= goes with scoring=None"):
        model.score(x, y, offset=offset)
    accuracy = SoftmaxRegressionCV(Cs=CS).fit(x, y, offset=offset)
    assert accuracy.score(x, y, offset=offset) == np.mean(accuracy.predict(x, offset) == y)


def test_a_callable_sees_the_held_out_rows() -> None:
    x, y = real("breast_cancer")
    seen = []

    def scoring(estimator: Any, rows: Any, labels: Any) -> float:
        seen.append(rows)
        assert estimator.classes_.tolist() == [0, 1]
        probabilities = estimator.predict_proba(rows)
        np.testing.assert_allclose(np.exp(estimator.predict_log_proba(rows)), probabilities)
        np.testing.assert_array_equal(estimator.predict(rows), (estimator.decision_function(rows) > 0) * 1)
        return float(np.mean(probabilities[np.arange(len(labels)), labels]))

    model = SoftmaxRegressionCV(Cs=CS, scoring=scoring).fit(x, y)
    assert sum(len(rows) for rows in seen) == 3 * len(y)
    assert (model.scores_ > 0.5).all()
    with pytest.raises(ValueError, match=r"the scorer asked for 5 rows, but 114 are held out: .* needs GridSearchCV"):
        SoftmaxRegressionCV(Cs=CS, scoring=lambda e, rows, _: e.predict(rows[:5]).mean()).fit(x, y)


# --- in scikit-learn's company ---------------------------------------------------------------------------------------


def test_a_pipeline_and_an_outer_cross_validation() -> None:
    x, y = real("iris")
    pipeline = make_pipeline(StandardScaler(), SoftmaxRegressionCV(Cs=CS, cv=3))
    assert cross_val_score(pipeline, x, y, cv=3).mean() > 0.9


def test_metadata_routing() -> None:
    x, y = real("iris")
    weights, groups = 1.0 + np.arange(len(y)) % 3, np.arange(len(y)) % 6
    plain = SoftmaxRegressionCV(Cs=CS, cv=GroupKFold(3)).fit(x, y, weights, groups=groups)
    with sklearn.config_context(enable_metadata_routing=True):
        routed = SoftmaxRegressionCV(Cs=CS, cv=GroupKFold(3)).fit(x, y, weights, groups=groups)
        np.testing.assert_array_equal(routed.scores_, plain.scores_)
        with pytest.raises(UnsetMetadataPassedError, match="sample_weight"):
            SoftmaxRegressionCV(Cs=CS, scoring="neg_log_loss").fit(x, y, weights)
        losses, scores = [], []
        for wanted in (True, False):
            scorer = get_scorer("neg_log_loss").set_score_request(sample_weight=wanted)
            losses.append(SoftmaxRegressionCV(Cs=CS, scoring=scorer).fit(x, y, weights).scores_)
            model = SoftmaxRegressionCV(Cs=CS, scoring=scorer).fit(x, y, weights)
            scores.append(model.score(x, y, sample_weight=weights))
        assert np.abs(losses[0] - losses[1]).max() > 1e-4
        assert scores[0] == pytest.approx(-log_loss(y, model.predict_proba(x), sample_weight=weights))
        assert scores[1] == pytest.approx(-log_loss(y, model.predict_proba(x)))
        with pytest.raises(UnsetMetadataPassedError, match="sample_weight"):
            SoftmaxRegressionCV(Cs=CS, scoring="neg_brier_score").fit(x, y).score(x, y, sample_weight=weights)
    with pytest.raises(ValueError, match=r"score got 'other', which is only supported if enable_metadata_routing=True"):
        model.score(x, y, other=1)
    with_weights = SoftmaxRegressionCV(Cs=CS, scoring="neg_log_loss").fit(x, y, weights)
    np.testing.assert_allclose(losses[0], with_weights.scores_, rtol=1e-9)


def test_clone_pickle_and_skops_round_trips() -> None:
    x, y = real("iris")
    model = SoftmaxRegressionCV(Cs=CS, scoring="neg_log_loss").fit(x, np.array(["a", "b", "c"])[y])
    assert clone(model).get_params() == model.get_params()
    with pytest.raises(NotFittedError):
        clone(model).predict(x)
    trusted = ["softgrad.sklearn.SoftmaxRegressionCV"]
    assert skops.io.get_untrusted_types(data=skops.io.dumps(model)) == trusted
    for back in (pickle.loads(pickle.dumps(model)), skops.io.loads(skops.io.dumps(model), trusted=trusted)):
        np.testing.assert_array_equal(back.predict_proba(x), model.predict_proba(x))
        np.testing.assert_array_equal(back.scores_, model.scores_)


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"Cs": 0}, "Cs must be a positive number of values, or positive values .*, not 0"),
        ({"Cs": [1.0, -1.0]}, "Cs must be .*, not -1.0"),
        ({"Cs": []}, r"Cs must be .*, not \[\]"),
        ({"Cs": "many"}, "Cs must be .*, not 'many'"),
        ({"early_stop": 0}, "early_stop must be"),
        ({"tol": -1}, "tol must be"),
        ({"cv": 1}, "n_splits=1"),
        ({"scoring": "beauty"}, "beauty"),
    ],
)
def test_impossible_parameters(parameters: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SoftmaxRegressionCV(**parameters).fit(*real("iris"))


# --- the display -----------------------------------------------------------------------------------------------------


def test_the_validation_curve() -> None:
    import matplotlib.pyplot as plt

    model = SoftmaxRegressionCV(Cs=CS, scoring="neg_log_loss").fit(*real("iris"))
    _, ax = plt.subplots()
    display = SoftmaxPathDisplay.from_estimator(model, ax=ax, color="red")
    assert display.ax_ is ax
    assert display.figure_ is ax.figure
    (line,) = display.lines_
    assert line.get_color() == "red"
    np.testing.assert_array_equal(line.get_xdata(), CS)
    np.testing.assert_array_equal(line.get_ydata(), model.mean_scores_)
    assert (ax.get_xscale(), ax.get_xlabel(), ax.get_ylabel()) == ("log", "C", "neg_log_loss")
    assert ax.lines[1].get_xdata()[0] == model.C_
    (band,) = ax.collections
    middle = band.get_paths()[0].vertices[:, 1]
    spread = model.scores_.std(axis=0, ddof=1) / np.sqrt(5)
    assert middle.min() == pytest.approx((model.mean_scores_ - spread).min())


def test_the_coefficients() -> None:
    x, y = real("iris")
    table = pd.DataFrame(x, columns=list("abcd"))
    model = SoftmaxRegressionCV(Cs=CS).fit(table, np.array(["u", "v", "w"])[y])
    display = SoftmaxPathDisplay.from_estimator(model, kind="coefficients", label="v")
    drawn = np.column_stack([line.get_ydata() for line in display.lines_])
    np.testing.assert_array_equal(drawn, model.path_coefs_[:, 1])
    assert [text.get_text() for text in display.ax_.get_legend().get_texts()] == list("abcd")
    assert display.ax_.get_ylabel() == "coefficient of v"
    display.plot()
    drawn = np.column_stack([line.get_ydata() for line in display.lines_])
    np.testing.assert_allclose(drawn, np.linalg.norm(model.path_coefs_, axis=1))
    with pytest.raises(ValueError, match=r"label='z' is not a class of this path: \['u', 'v', 'w'\]"):
        display.plot(label="z")
    with pytest.raises(ValueError, match='kind must be "coefficients" or "validation"'):
        display.plot(kind="pie")
    with pytest.raises(ValueError, match="label='u' selects coefficients"):
        display.plot(kind="validation", label="u")


def test_a_path_without_an_estimator() -> None:
    x, y = real("breast_cancer")
    path = softmax_path(x, y, CS)
    display = SoftmaxPathDisplay.from_path(path, classes=["malignant", "benign"])
    np.testing.assert_array_equal(display.lines_[3].get_ydata(), path.coefs[:, 0, 3])
    assert display.ax_.get_legend() is None, "thirty names would hide the plot"
    display.plot(label="malignant")
    np.testing.assert_array_equal(display.lines_[3].get_ydata(), -path.coefs[:, 0, 3])
    display.plot(label="benign")
    np.testing.assert_array_equal(display.lines_[3].get_ydata(), path.coefs[:, 0, 3])
    with pytest.raises(ValueError, match=r"kind=.validation. needs scores=, which this display was made without"):
        display.plot(kind="validation")
    with pytest.raises(NotFittedError):
        SoftmaxPathDisplay.from_estimator(SoftmaxRegressionCV())


def test_without_matplotlib_only_drawing_fails() -> None:
    code = (
        "import sys; sys.modules['matplotlib'] = None; import numpy as np\n"
        "from softgrad.sklearn import SoftmaxPathDisplay\n"
        "display = SoftmaxPathDisplay(Cs=[1.0], coefs=np.zeros((1, 1, 2)))\n"
        "try: display.plot()\nexcept ImportError as error: print(error)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.strip() == (
        "SoftmaxPathDisplay draws with matplotlib, which is not installed: pip install 'softgrad[plot]'"
    )
