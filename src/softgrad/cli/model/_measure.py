"""Predictions against labels: what a table of results and a report show."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from softgrad._core.blas import single_threaded_blas
from softgrad.cli.terminal._results import Confusion, Evaluation, Reliability
from softgrad.loss import cross_entropy, log_softmax

Float = NDArray[np.float64]

BINS = 15
DRAWS = 1000
DRAWN = 5_000_000  # numbers drawn for the interval, at most
PAIRS = 10

__all__ = ["evaluate", "logits_of", "reliability", "row_losses"]


def logits_of(classifier: Any, x: Any) -> Float:
    """One logit a class, of two classes the first's is 0."""
    with single_threaded_blas():  # a product so narrow gains nothing from a second thread, which would spin
        logits = np.asarray(classifier.decision_function(x), dtype=np.float64)
    return logits if logits.ndim == 2 else np.stack([np.zeros_like(logits), logits], axis=1)


def row_losses(logits: Float, own: NDArray[np.intp], soft: Float | None) -> Float:
    """−Σ_k y_k log p_k of each row, in nats."""
    return np.asarray(cross_entropy(logits, own if soft is None else soft, reduction="none"), dtype=np.float64)


def evaluate(
    name: str,
    logits: Float,
    own: NDArray[np.intp],
    soft: Float | None,
    weight: Float | None,
    classes: NDArray[Any],
    seed: int,
) -> Evaluation:
    """Measure predictions.

    Parameters
    ----------
    name : str
        What the rows are called.
    logits : array (n_rows, n_classes)
    own : array (n_rows,)
        The number of each row's class.
    soft : array (n_rows, n_classes), optional
        Soft labels; the log-loss is theirs, all else is of ``own``.
    weight : array (n_rows,), optional
        Weights of the rows.
    classes : array (n_classes,)
        Their names.
    seed : int
        Of the bootstrap.
    """
    n_classes = len(classes)
    a = np.ones(len(own)) if weight is None else weight
    predicted = logits.argmax(axis=1)
    confusion = np.bincount(own * n_classes + predicted, a, n_classes**2).reshape(n_classes, n_classes).astype(float)
    hits, support, chosen = np.diag(confusion), confusion.sum(axis=1), confusion.sum(axis=0)
    with np.errstate(invalid="ignore", divide="ignore"):
        precision, recall = hits / chosen, hits / support
        f1 = 2 * hits / (support + chosen)
    present = support > 0
    losses = row_losses(logits, own, soft)
    off = confusion - np.diag(hits)
    order = np.lexsort((np.arange(off.size), -off.reshape(-1)))[:PAIRS]
    names = classes.tolist()
    confused = [
        Confusion(names[i // n_classes], names[i % n_classes], float(off.flat[i])) for i in order if off.flat[i] > 0
    ]
    return Evaluation(
        name=name,
        rows=len(own),
        accuracy=float(hits.sum() / confusion.sum()),
        balanced_accuracy=float(recall[present].mean()),
        macro_f1=float(f1[present | (chosen > 0)].mean()),
        log_loss=float(losses @ a / a.sum()),
        log_loss_interval=_interval(losses * a, a, seed),
        reliability=reliability(logits, own, weight),
        confusion=confusion,
        precision=precision,
        recall=recall,
        f1=f1,
        support=support,
        confused=confused,
    )


def reliability(logits: Float, own: NDArray[np.intp], weight: Float | None) -> Reliability:
    """Accuracy against confidence in bins of equal width."""
    confidence = np.exp(log_softmax(logits).max(axis=1))
    right = logits.argmax(axis=1) == own
    a = np.ones(len(own)) if weight is None else weight
    bins = np.minimum((confidence * BINS).astype(np.intp), BINS - 1)
    mass = np.bincount(bins, a, BINS).astype(np.float64)
    held = mass > 0
    sums = [np.bincount(bins, a * values, BINS)[held] for values in (confidence, right)]
    return Reliability(sums[0] / mass[held], sums[1] / mass[held], mass[held])


def _interval(weighted: Float, a: Float, seed: int) -> tuple[float, float]:
    """The middle 95 % of the mean loss of rows drawn again and again (the percentile bootstrap)."""
    rng, n = np.random.default_rng(seed), len(a)
    draws = max(200, min(DRAWS, DRAWN // max(1, n)))
    means = np.empty(draws)
    for i in range(draws):
        rows = rng.integers(n, size=n)
        mass = a[rows].sum()
        means[i] = weighted[rows].sum() / mass if mass > 0 else np.nan
    low, high = np.nanquantile(means, [0.025, 0.975])
    return float(low), float(high)
