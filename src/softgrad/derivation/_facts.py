"""What two of the steps show besides formulas: a whole training, and how many digits survive."""

from __future__ import annotations

from decimal import Decimal

import numpy as np

from softgrad.derivation._case import Case
from softgrad.derivation._decimal import fifty_digits
from softgrad.derivation._languages import WORDS
from softgrad.derivation._substitute import number_text
from softgrad.derivation._training import TRAINING
from softgrad.linear import linear_cross_entropy_with_grad

__all__ = ["facts_of", "train"]

_STEPS = (0, 10, 100)


def train(steps: int, learning_rate: float = 0.5) -> tuple[list[float], np.ndarray, np.ndarray]:
    """Gradient descent on TRAINING from zero: the loss before each step and at the end, the weights, the biases."""
    points = np.array(TRAINING)
    x, labels = points[:, :2], points[:, 2].astype(int)
    weight, bias, losses = np.zeros((3, 2)), np.zeros(3), []
    for _ in range(steps):
        loss, gradients = linear_cross_entropy_with_grad(x, weight, labels, bias=bias)
        losses.append(float(loss))
        weight -= learning_rate * np.asarray(gradients.weight)
        bias -= learning_rate * np.asarray(gradients.bias)
    losses.append(float(linear_cross_entropy_with_grad(x, weight, labels, bias=bias)[0]))
    return losses, weight, bias


def facts_of(name: str, case: Case, lang: str) -> tuple[tuple[str, str], ...]:
    """Pairs of what and how much; most steps have none."""
    words = WORDS[lang]
    if name == "training":
        losses, weight, bias = train(_STEPS[-1])
        facts = [(words["loss-after"].format(steps=steps), number_text(losses[steps])) for steps in _STEPS]
        points = np.array(TRAINING)
        right = int((np.argmax(points[:, :2] @ weight.T + bias, axis=1) == points[:, 2]).sum())
        return (*facts, ("", words["accuracy"].format(right=right, rows=len(points))))
    if name == "digits":
        return tuple(fact for offset in (0.0, 1e6, 1e12) for fact in _digits(case, offset, lang))
    return ()


def _digits(case: Case, offset: float, lang: str) -> list[tuple[str, str]]:
    """The loss in float64 by both forms, for these logits with the same number added to each."""
    words = WORDS[lang]
    o = case.o + offset
    m = o.max()
    distance = o - m
    log_s = np.log(np.exp(distance).sum())
    used = case.y > 0
    naive = float(m + log_s) - float(case.y[used] @ o[used])
    stable = float(log_s) - float(case.y[used] @ distance[used])
    exact = _exact_loss(o, case)
    at = words["offset"].format(offset=number_text(offset))
    return [
        (f"{at}: {words[name]}", f"{value:.12f}".replace("-", "−"))
        for name, value in (("naive", naive), ("stable", stable), ("exact", exact))
    ]


def _exact_loss(o: np.ndarray, case: Case) -> float:
    """With fifty digits, for the logits as float64 holds them."""
    with fifty_digits():
        values = [Decimal(float(value)) for value in o]
        lse = sum(((v - max(values)).exp() for v in values), Decimal(0)).ln() + max(values)
        return float(sum(Decimal(float(y)) * (lse - v) for y, v in zip(case.y, values, strict=True) if y > 0))
