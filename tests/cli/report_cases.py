"""Accounts of real fits, for the tests of the report, and one of everything that a report could stumble over."""

from __future__ import annotations

import re
import warnings
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn import datasets, metrics
from sklearn.exceptions import ConvergenceWarning
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.model_selection import train_test_split
from sklearn.preprocessing import StandardScaler

import softgrad
from softgrad.cli.terminal._results import (
    Column,
    Confusion,
    Evaluation,
    Mistake,
    RegularisationPath,
    Reliability,
    Training,
)
from softgrad.sklearn import SoftmaxRegression, SoftmaxRegressionCV

HOSTILE = (
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "</style><b>&amp;'",
    "{{ 7 * 7 }}{% raw %}",
    "line\nline\r\ttab\x00\x1b[31m\ud800",
    "\u202eright to left\u2066",
    "العربية עברית",
    "🦊👩‍👩‍👧 日本語",
    "$x_1^2$ \\frac{",
    "w" * 700,
    "",
    "  ",
    "\ufeff\u200b",
)


def reliability(probabilities: NDArray[Any], right: NDArray[Any], bins: int = 15) -> Reliability:
    """Bins of equal width."""
    sure = probabilities.max(axis=1)
    place = np.minimum((sure * bins).astype(int), bins - 1)
    there = [place == b for b in range(bins) if (place == b).any()]
    return Reliability(
        confidence=np.array([sure[rows].mean() for rows in there]),
        accuracy=np.array([right[rows].mean() for rows in there]),
        weight=np.array([rows.sum() for rows in there], dtype=float),
    )


def evaluation(name: str, y: NDArray[Any], probabilities: NDArray[Any], classes: list[Any]) -> Evaluation:
    """Predictions measured by scikit-learn; y holds places in classes."""
    k = range(len(classes))
    predicted = probabilities.argmax(axis=1)
    matrix = metrics.confusion_matrix(y, predicted, labels=list(k)).astype(float)
    precision, recall, f1, support = metrics.precision_recall_fscore_support(
        y, predicted, labels=list(k), zero_division=np.nan
    )
    losses = -np.log(np.maximum(probabilities[np.arange(len(y)), y], 1e-300))
    rng = np.random.default_rng(0)
    means = losses[rng.integers(0, len(y), (500, len(y)))].mean(axis=1)
    wrong = sorted((-matrix[i, j], i, j) for i in k for j in k if i != j and matrix[i, j])
    return Evaluation(
        name=name, rows=len(y), accuracy=float((predicted == y).mean()), balanced_accuracy=float(np.nanmean(recall)),
        macro_f1=float(np.nanmean(f1)), log_loss=float(losses.mean()),
        log_loss_interval=(float(np.quantile(means, 0.025)), float(np.quantile(means, 0.975))),
        reliability=reliability(probabilities, predicted == y), confusion=matrix, precision=precision, recall=recall,
        f1=f1, support=support.astype(float),
        confused=[Confusion(classes[i], classes[j], -rows) for rows, i, j in wrong],
    )  # fmt: skip


def training(
    X: NDArray[Any], y: NDArray[Any], classes: list[Any], *, source: str, feature_names: list[str],
    origins: list[str] | None = None, columns: list[Column] | None = None, cells: Any = None, choose: bool = False,
    calibrate: bool = False, test_size: float = 0.2, scale: bool = True, target: str = "target", **options: Any,
) -> Training:  # fmt: skip
    """Fit, and tell all about it; y holds places in classes."""
    rows = np.arange(len(y))
    fitted, kept = (
        train_test_split(rows, test_size=test_size, random_state=0, stratify=y) if test_size else (rows, rows[:0])
    )
    scaler = StandardScaler(with_mean=scale, with_std=scale).fit(X[fitted])
    A, B = scaler.transform(X[fitted]), scaler.transform(X[kept]) if len(kept) else X[kept]
    path = None
    if choose:
        search = SoftmaxRegressionCV(Cs=np.logspace(-4, 2, 7), cv=3, scoring="neg_log_loss").fit(A, y[fitted])
        norms = np.sqrt((search.path_coefs_**2).sum(axis=(1, 2)))
        path = RegularisationPath(search.Cs_, search.scores_, float(search.C_), search.path_gaps_, norms)
        options["C"] = float(search.C_)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # one of the cases is to fall short
        model = SoftmaxRegression(**options).fit(A, y[fitted])
    coef, intercept = model.coef_, model.intercept_
    if len(classes) == 2:
        coef, intercept = np.vstack([-coef, coef]) / 1.0, np.concatenate([-intercept, intercept])
    last, names = (B, y[kept]) if len(kept) else (A, y[fitted]), kept if len(kept) else fitted
    probabilities = model.predict_proba(last[0])
    uncalibrated, temperature = None, None
    if calibrate:
        uncalibrated = reliability(probabilities, probabilities.argmax(axis=1) == last[1])
        temperature = 1.3
        probabilities = probabilities ** (1 / temperature)
        probabilities /= probabilities.sum(axis=1, keepdims=True)
    evaluations = [evaluation("train", y[fitted], model.predict_proba(A), classes)]
    if len(kept):
        evaluations.append(evaluation("held out", last[1], probabilities, classes))
    predicted = probabilities.argmax(axis=1)
    wrong = np.flatnonzero(predicted != last[1])
    wrong = wrong[np.argsort(-probabilities[wrong, predicted[wrong]], kind="stable")][:20]
    cells = cells or (lambda row: {feature_names[f]: f"{X[row, f]:.4g}" for f in range(min(5, X.shape[1]))})
    origins = origins or feature_names
    return Training(
        source=source, target=target, command=f"softgrad fit {source} --target {target} --report report.html",
        versions={"softgrad": softgrad.__version__, "Python": "3.11.9", "numpy": np.__version__},
        options={"C": 1.0, "tol": 1e-6, "test_size": test_size, "seed": 0, "threads": None} | options,
        seconds={"read": 0.0123, "prepare": 0.031, "train": 0.31, "measure": 0.052},
        columns=columns or [
            Column(name, "numeric", 0, len(np.unique(X[:, f])), f"{X[:, f].min():g} to {X[:, f].max():g}", 1)
            for f, name in enumerate(feature_names)
        ],
        classes=classes, counts=np.bincount(y[fitted], minlength=len(classes)).astype(float),
        feature_names=feature_names, origins=origins, coef=coef, intercept=intercept, history=steady(model.history_),
        objective=float(model.objective_), gap=float(model.gap_), temperature=temperature, path=path,
        evaluations=evaluations, uncalibrated=uncalibrated,
        mistakes=[
            Mistake(f"row {names[k] + 1}", classes[last[1][k]], classes[predicted[k]],
                    float(probabilities[k, predicted[k]]), float(probabilities[k, last[1][k]]), cells(names[k]))
            for k in wrong
        ],
    )  # fmt: skip


def steady(history: NDArray[Any]) -> NDArray[Any]:
    """Without the clock's mood: a millisecond an iteration."""
    history = history.copy()
    history["seconds"] = 0.001 * history["iteration"]
    return history


@cache
def digits() -> Training:
    """Ten classes, pictures of 8 by 8 pixels, a path and a temperature."""
    bunch = datasets.load_digits()
    return training(bunch.data, bunch.target, list(range(10)), source="digits", feature_names=list(bunch.feature_names),
                    choose=True, calibrate=True)  # fmt: skip


@cache
def wine() -> Training:
    """Three classes, thirteen features."""
    bunch = datasets.load_wine()
    return training(bunch.data, bunch.target, ["Barolo", "Grignolino", "Barbera"], source="wine.csv", target="cultivar",
                    feature_names=list(bunch.feature_names), choose=True, test_size=0.3)  # fmt: skip


@cache
def mixed() -> Training:
    """Two classes; numbers, a categorical column with its levels, a date, a column left out."""
    bunch = datasets.load_breast_cancer()
    rng = np.random.default_rng(0)
    levels = ["north", "south", "west & east", "(missing)"]
    where = (rng.integers(0, 4, len(bunch.target)) + bunch.target) % 4
    X = np.column_stack([bunch.data[:, :8], np.eye(4)[where], rng.integers(0, 7, len(where))])
    names = [*bunch.feature_names[:8], *(f"region = {level}" for level in levels), "weekday"]
    columns = [
        *(Column(str(n), "numeric", 3 * k, 400 + k, "0.1 to 28.1, median 13.4", 1) for k, n in enumerate(names[:8])),
        Column("region", "categorical", 41, 3, "north, south, west & east", 4),
        Column("date of visit", "date", 0, 213, "2019-01-04 to 2021-12-30", 1),
        Column("patient id", "left out", 0, 569, "every value differs", 0),
    ]
    return training(
        X, bunch.target, ["malignant", "benign"], source="clinic.parquet", target="diagnosis",
        feature_names=[str(n) for n in names], origins=[*map(str, names[:8]), *["region"] * 4, "date of visit"],
        columns=columns, C=0.1,
        cells=lambda row: {"region": levels[where[row]]} | {names[f]: f"{X[row, f]:.4g}" for f in range(8)},
    )  # fmt: skip


@cache
def text() -> Training:
    """Sentences of scikit-learn's descriptions of its data sets: which of them does one come from?"""
    names = ["breast cancer", "diabetes", "digits", "iris", "linnerud", "wine"]
    sentences, labels = [], []
    for k, name in enumerate(names):
        described = getattr(datasets, f"load_{name.replace(' ', '_')}")().DESCR
        parts = [" ".join(part.split()) for part in re.split(r"(?<=[.:])\s+|\n\n+", described)]
        parts = [part for part in parts if len(re.findall(r"[a-zA-Z]{3,}", part)) >= 2]
        sentences += parts
        labels += [k] * len(parts)
    vectorizer = TfidfVectorizer(min_df=1, max_features=400, token_pattern=r"[a-z]{3,}", stop_words="english")
    X = vectorizer.fit_transform(sentences).toarray()
    tokens = [str(token) for token in vectorizer.get_feature_names_out()]
    return training(
        X, np.array(labels), names, source="sentences.csv", target="about", feature_names=tokens,
        origins=["sentence"] * len(tokens), scale=False, C=10.0, test_size=0.3,
        columns=[Column("sentence", "text", 0, len(set(sentences)), f"{len(tokens)} words", len(tokens))],
        cells=lambda row: {"sentence": sentences[row]},
    )  # fmt: skip


@cache
def letters() -> Training:
    """52 classes: the letters as matplotlib's font draws them, 12 by 12 pixels in one column of lists, with noise."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    rng = np.random.default_rng(0)
    classes = [chr(c) for c in (*range(65, 91), *range(97, 123))]
    rows, labels = [], []
    figure = Figure(figsize=(0.16, 0.16), dpi=100)
    canvas = FigureCanvasAgg(figure)
    said = figure.text(0.5, 0.5, "", ha="center", va="center", fontsize=10)
    for k, letter in enumerate(classes):
        said.set_text(letter)
        for _ in range(3):
            said.set_position(tuple(0.5 + 0.06 * rng.standard_normal(2)))
            canvas.draw()
            picture = 1 - np.asarray(canvas.buffer_rgba())[2:14, 2:14, 0] / 255
            for _ in range(8):
                rows.append((picture + 0.35 * rng.standard_normal(picture.shape)).ravel())
                labels.append(k)
    X = np.array(rows)
    return training(
        X, np.array(labels), classes, source="letters.parquet", target="letter", C=0.01,
        feature_names=[f"image[{f}]" for f in range(144)], origins=["image"] * 144,
        columns=[Column("image", "list", 0, None, "144 numbers each", 144)],
        cells=lambda row: {"image": np.array2string(X[row], precision=2, threshold=20)},
    )  # fmt: skip


@cache
def many() -> Training:
    """120 classes of very different size that lie in groups."""
    rng = np.random.default_rng(0)
    centres = 2.5 * rng.standard_normal((24, 30))[np.arange(120) % 24] + rng.standard_normal((120, 30))
    y = np.repeat(np.arange(120), 4 + (rng.pareto(1.2, 120) * 6).astype(int).clip(0, 150))
    X = centres[y] + 1.4 * rng.standard_normal((len(y), 30))
    classes = [f"species {k:03d}" for k in range(120)]
    return training(X, y, classes, source="herbarium.csv", target="species", C=0.1,
                    feature_names=[f"trait {f}" for f in range(30)])  # fmt: skip


@cache
def hostile() -> Training:
    """Everything that comes from the data is as bad as can be; and every way that a fit can fall short."""
    bunch = datasets.load_digits()
    n = len(HOSTILE)
    X = np.column_stack([bunch.data, np.random.default_rng(0).standard_normal((len(bunch.target), n))])
    y = np.concatenate([bunch.target[:1500], np.arange(1500, len(bunch.target)) % n])
    found = training(X[:, 20:], y, list(HOSTILE), source=HOSTILE[0], target=HOSTILE[1] + HOSTILE[5], max_iter=4,
                     feature_names=[*HOSTILE, *(f"{HOSTILE[k % n]}{k}" for k in range(44))],
                     cells=lambda row: {name: HOSTILE[(row + k) % n] for k, name in enumerate(HOSTILE)})  # fmt: skip
    history = found.history
    history["gap"][:2], history["gap"][-1] = np.inf, 0.0
    return Training(**vars(found) | {
        "command": f"softgrad fit '{HOSTILE[0]}' {HOSTILE[4]} {HOSTILE[9]}", "versions": {HOSTILE[2]: HOSTILE[0]},
        "options": {"tol": 1e-6, HOSTILE[0]: HOSTILE[1], HOSTILE[9]: HOSTILE[9]}, "interrupted": True, "gap": np.inf,
        "columns": [Column(name, "text", 1, None, HOSTILE[(k + 1) % n], 1) for k, name in enumerate(HOSTILE)],
    })  # fmt: skip


CASES = {f.__name__: f for f in (digits, wine, mixed, text, letters, many, hostile)}
