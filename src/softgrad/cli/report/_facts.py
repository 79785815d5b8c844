"""What the report says in words: the figures of its headline, and what there is to worry about."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from markupsafe import Markup

from softgrad.cli.report._wording import cut, number, percent, rows, times
from softgrad.cli.terminal._results import Evaluation, Reliability, Training

__all__ = ["Figure", "figures", "held_out", "most_frequent", "noise", "option", "warnings"]

FEW = 10  # rows of a class, below which its figures mean little
_LISTED = 6


@dataclass(frozen=True)
class Figure:
    """One figure of the headline: what it is, the number itself, as shown, and a line on how to read it."""

    name: str
    value: float
    shown: str
    note: str


def held_out(training: Training) -> Evaluation | None:
    """The evaluation that counts, if it is one of rows that were not trained on."""
    last = training.evaluations[-1] if training.evaluations else None
    return last if last is not None and last.name != "train" else None


def option(training: Training, name: str) -> float | None:
    """A number among the options, under ``name`` or ``--name``."""
    for key, value in training.options.items():
        if key.lstrip("-").replace("-", "_") == name:
            try:
                return float(value)
            except (TypeError, ValueError):
                return None
    return None


def most_frequent(evaluation: Evaluation) -> tuple[int, float, float]:
    """The most frequent class, its share (who always says it is right so often), and the entropy of the shares."""
    shares = evaluation.support / max(evaluation.support.sum(), 1e-300)
    there = shares[shares > 0]
    return int(shares.argmax()), float(shares.max()), float(-(there * np.log(there)).sum())


def figures(training: Training) -> list[Figure]:
    """The headline."""
    found = []
    if training.evaluations:
        last = training.evaluations[-1]
        name, share, entropy = most_frequent(last)
        low, high = last.log_loss_interval
        label = cut(training.classes[name], 24)
        found = [
            Figure(
                "accuracy",
                last.accuracy,
                percent(last.accuracy, last.rows),
                f"always saying {label}: {percent(share, last.rows)}",
            ),
            Figure(
                "balanced accuracy",
                last.balanced_accuracy,
                percent(last.balanced_accuracy, last.rows),
                "the mean recall of the classes",
            ),
            Figure("macro-F1", last.macro_f1, number(last.macro_f1, 3), "the mean F1 of the classes"),
            Figure(
                "log-loss",
                last.log_loss,
                number(last.log_loss, 3),
                f"95 %: {number(low, 3)} to {number(high, 3)}; knowing the shares only: {number(entropy, 3)}",
            ),
            Figure(
                "calibration error",
                last.calibration_error,
                percent(last.calibration_error, last.rows),
                f"chance alone makes about {percent(noise(last.reliability), last.rows)}",
            ),
        ]
    tol = option(training, "tol")
    gap = "at most so far above the optimum, in parts of it"
    if math.isnan(training.gap):
        gap = "without a penalty there is no certificate"
    elif tol is not None:
        gap += f"; tol {number(tol, 2)}"
    found.append(Figure("certified gap", training.gap, number(training.gap, 2), gap))
    total = float(sum(training.seconds.values()))
    train = training.seconds.get("train")
    note = f"training: {times(train)}" if train is not None else "in all"
    found.append(Figure("time", total, times(total), note))
    return found


def noise(reliability: Reliability) -> float:
    """The calibration error that a calibrated model is expected to show in so few rows, by the normal distribution."""
    weight, p = reliability.weight, np.clip(reliability.confidence, 0, 1)
    spread = np.sqrt(2 / np.pi * p * (1 - p) / np.maximum(weight, 1))
    return float(spread @ weight / max(weight.sum(), 1e-300))


def warnings(training: Training) -> list[Markup]:
    """What there is to worry about, each with what can be done."""
    found = [*_of_the_fit(training), *_of_the_rows(training)]
    last = held_out(training)
    return found + (_of_the_model(training, last) if last is not None else [])


def _of_the_fit(training: Training) -> list[Markup]:
    found = []
    tol = option(training, "tol")
    if training.interrupted:
        found.append(
            _say(
                "The fit was interrupted.",
                "The model is what it had reached; its certified gap is "
                f"{number(training.gap, 2)}. Run the command again to finish it.",
            )
        )
    elif training.gap > (tol if tol is not None else math.inf) or training.gap == math.inf:
        wanted = f", above the tolerance of {number(tol, 2)}" if tol is not None else ""
        found.append(
            _say(
                "The fit did not reach its tolerance.",
                f"The certified gap is {number(training.gap, 2)}{wanted}: allow it more iterations.",
            )
        )
    return found


def _of_the_rows(training: Training) -> list[Markup]:
    found = []
    if held_out(training) is None:
        found.append(
            _say(
                "No rows were held out.",
                "The figures are of the rows trained on, and new rows will be predicted worse.",
            )
        )
    few = np.flatnonzero(training.counts < FEW)
    if few.size:
        listed = [f"{cut(training.classes[k], 40)} ({rows(training.counts[k])})" for k in few[:_LISTED]]
        more = f" and {few.size - _LISTED} more" if few.size > _LISTED else ""
        found.append(
            _say(
                f"{'A class has' if few.size == 1 else f'{few.size} classes have'} fewer than {FEW} rows:",
                f"{', '.join(listed)}{more}. What is said of them rests on little.",
            )
        )
    return found


def _of_the_model(training: Training, last: Evaluation) -> list[Markup]:
    found = []
    train = next((e for e in training.evaluations if e.name == "train"), None)
    if train is not None and last.log_loss_interval[0] > train.log_loss and last.log_loss > 1.5 * train.log_loss + 0.02:
        found.append(
            _say(
                "The model fits its own rows much better than new ones:",
                f"log-loss {number(last.log_loss, 3)} on {last.name} rows, {number(train.log_loss, 3)} on "
                "those trained on. A smaller C, or more rows, should help.",
            )
        )
    name, share, entropy = most_frequent(last)
    if last.accuracy <= share:
        found.append(
            _say(
                "It is right no more often than a constant answer:",
                f"always saying {cut(training.classes[name], 40)} is right on {percent(share)}.",
            )
        )
    if last.log_loss > entropy:
        found.append(
            _say(
                "Its probabilities are worse than the shares of the classes:",
                f"log-loss {number(last.log_loss, 3)} against {number(entropy, 3)}.",
            )
        )
    error, chance = last.calibration_error, noise(last.reliability)
    if error > 0.03 and error > 2 * chance:
        surer = float((last.reliability.confidence - last.reliability.accuracy) @ last.reliability.weight) > 0
        what = "less often right than it is sure" if surer else "more often right than it is sure"
        say = f"it is {what}, by {percent(error)} on average, where chance makes {percent(chance)}."
        cure = "" if training.temperature is not None else Markup("<code>--calibrate</code> corrects that.")
        found.append(_say("The probabilities are off:", Markup("{} {}").format(say, cure)))
    never = [k for k in np.flatnonzero(last.support > 0) if last.confusion[:, k].sum() == 0]
    if never:
        listed = ", ".join(cut(training.classes[k], 40) for k in never[:_LISTED])
        more = f" and {len(never) - _LISTED} more" if len(never) > _LISTED else ""
        found.append(_say("Never predicted:", f"{listed}{more}."))
    return found


def _say(what: str, more: str) -> Markup:
    return Markup("<strong>{}</strong> {}").format(what, more)
