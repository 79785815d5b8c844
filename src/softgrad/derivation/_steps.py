"""The derivation as data: its steps in order, each with its formulas and what the library says of the same quantity.

The words are in `_english` and `_chinese`; everything that shows or checks the derivation reads this one list.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from softgrad.derivation._case import Case

__all__ = ["STEPS", "Formula", "Step"]


class Formula(NamedTuple):
    """A statement in the language of `_formula`, true for all values of its free indices."""

    text: str
    distinct: bool = False  # only where i ≠ j
    symbolic: bool = True  # whether it is proved in letters: an arg-max or an inequality needs numbers
    sums_to_one: bool = False  # needs a target whose sum is one


# What a module, `softgrad.reference` or `softgrad` itself, says an expression is worth.
Against = tuple[str, Callable[[Any, Case], Any]]


class Step(NamedTuple):
    """One step: its name, its formulas, and what is asked of the library about it."""

    name: str
    part: str  # "derivation" or "beyond"
    formulas: tuple[Formula, ...]
    against: tuple[Against, ...]
    tables: tuple[str, ...] = ()  # vectors and matrices worth seeing whole


def _softmax(f: Any, c: Case) -> Any:
    return f.softmax(c.z, temperature=c.temperature)


def _jacobian(f: Any, c: Case) -> Any:
    return f.softmax_jacobian(c.o)


def _loss(f: Any, c: Case) -> Any:
    return f.cross_entropy(c.z, c.target, label_smoothing=c.label_smoothing, temperature=c.temperature)


def _gradient(f: Any, c: Case) -> Any:
    return f.cross_entropy_with_grad(c.o, c.target, label_smoothing=c.label_smoothing)[1]


def _hessian(f: Any, c: Case) -> Any:
    return np.stack([f.cross_entropy_hvp(c.o, c.y, unit, reduction="sum") for unit in np.eye(c.classes)], axis=-1)


def _linear(f: Any, c: Case) -> Any:
    targets, reduction = c.y[None], "sum"
    return f.linear_cross_entropy_with_grad(c.x[None], c.W, targets, bias=c.b, reduction=reduction)[1]


def _trained(f: Any, c: Case) -> Any:
    labels = np.argmax(c.Y, axis=1)
    return f.linear_cross_entropy_with_grad(c.X, c.A, labels, bias=c.c)


def _field(name: str) -> Callable[[Any, Case], Any]:
    def read(f: Any, c: Case) -> Any:
        stats = f.prediction_stats(c.o, np.argmax(c.y))
        return stats[name] if isinstance(stats, dict) else getattr(stats, name)

    return read


def _inverse(f: Any, c: Case) -> Any:
    s = _softmax(f, c)
    return -np.divide(c.y, s, out=np.zeros_like(s), where=c.y != 0)


_EXPONENTIALS = "sum(k, exp(o[k]))"
_QUOTIENT = f"exp(o[i]) / {_EXPONENTIALS}"

STEPS: tuple[Step, ...] = (
    Step(
        "model",
        "derivation",
        (Formula("o == W @ x + b"), Formula("o[i] == sum(p, W[i, p] * x[p]) + b[i]")),
        (("L", lambda f, c: f.linear_cross_entropy(c.x[None], c.W, c.y[None], bias=c.b, reduction="sum")),),
        ("W", "x", "b", "o"),
    ),
    Step(
        "softmax",
        "derivation",
        (Formula(f"S[i] == {_QUOTIENT}"), Formula("sum(k, S[k]) == 1")),
        (("S", _softmax),),
        ("S",),
    ),
    Step(
        "maximum",
        "derivation",
        (
            Formula("m == max(k, o[k])", symbolic=False),
            Formula(f"S[i] == {_QUOTIENT} == exp(o[i] - m) / sum(k, exp(o[k] - m))"),
        ),
        (("S", _softmax), ("lse", lambda f, c: f.logsumexp(c.o))),
    ),
    Step(
        "prediction",
        "derivation",
        (
            Formula("argmax(k, o[k]) == argmax(k, S[k])", symbolic=False),
            Formula("log(S[i]) - log(S[j]) == o[i] - o[j]"),
        ),
        (("argmax(k, o[k])", _field("argmax")),),
    ),
    Step(
        "quotient-rule",
        "derivation",
        (
            Formula("d(exp(o[i]), o[j]) == delta(i, j) * exp(o[i])"),
            Formula(f"d({_EXPONENTIALS}, o[j]) == exp(o[j])"),
            Formula(
                f"d({_QUOTIENT}, o[j]) == (d(exp(o[i]), o[j]) * {_EXPONENTIALS}"
                f" - exp(o[i]) * d({_EXPONENTIALS}, o[j])) / {_EXPONENTIALS} ** 2"
            ),
        ),
        (("J", _jacobian),),
    ),
    Step(
        "diagonal",
        "derivation",
        (
            Formula(
                f"d(S[i], o[i]) == (exp(o[i]) * {_EXPONENTIALS} - exp(o[i]) * exp(o[i])) / {_EXPONENTIALS} ** 2"
                " == S[i] - S[i] ** 2 == S[i] * (1 - S[i])"
            ),
        ),
        (("J", _jacobian),),
    ),
    Step(
        "off-diagonal",
        "derivation",
        (
            Formula(
                f"d(S[i], o[j]) == (0 * {_EXPONENTIALS} - exp(o[i]) * exp(o[j])) / {_EXPONENTIALS} ** 2"
                " == -S[i] * S[j]",
                distinct=True,
            ),
        ),
        (("J", _jacobian),),
    ),
    Step(
        "jacobian",
        "derivation",
        (
            Formula("d(S[i], o[j]) == S[i] * (delta(i, j) - S[j])"),
            Formula("J == diag(S) - S @ S.T"),
            Formula("J == J.T"),
            Formula("sum(j, J[i, j]) == 0"),
        ),
        (("J", _jacobian),),
        ("J",),
    ),
    Step(
        "cross-entropy",
        "derivation",
        (Formula("L == -sum(i, y[i] * log(S[i]))"),),
        (("L", _loss),),
    ),
    Step(
        "loss-by-probability",
        "derivation",
        (Formula("d(L, S[i]) == -y[i] / S[i]"),),
        (("d(L, S)", _inverse),),
    ),
    Step(
        "chain-rule",
        "derivation",
        (Formula("d(L, o[j]) == sum(i, d(L, S[i]) * d(S[i], o[j]))"),),
        (("d(L, o)", _gradient),),
    ),
    Step(
        "two-cases",
        "derivation",
        (
            Formula(
                "d(L, o[j]) == d(L, S[j]) * d(S[j], o[j]) + sum(i, i != j, d(L, S[i]) * d(S[i], o[j]))"
                " == -y[j] / S[j] * (S[j] * (1 - S[j])) + sum(i, i != j, y[i] / S[i] * (S[i] * S[j]))"
            ),
        ),
        (("d(L, o)", _gradient),),
    ),
    Step(
        "collected",
        "derivation",
        (
            Formula(
                "d(L, o[j]) == -y[j] * (1 - S[j]) + sum(i, i != j, y[i] * S[j])"
                " == -y[j] + y[j] * S[j] + S[j] * sum(i, i != j, y[i]) == -y[j] + S[j] * sum(i, y[i])"
            ),
        ),
        (("d(L, o)", _gradient),),
    ),
    Step(
        "targets",
        "derivation",
        (Formula("y[i] == (1 - ε) * h[i] + ε / V"), Formula("sum(i, y[i]) == 1", sums_to_one=True)),
        (("y", lambda f, c: _softmax(f, c) - _gradient(f, c)),),
        ("y",),
    ),
    Step(
        "gradient",
        "derivation",
        (Formula("d(L, o[j]) == S[j] - y[j]", sums_to_one=True), Formula("sum(j, S[j] - y[j]) == 0", sums_to_one=True)),
        (("S - y", _gradient),),
        ("S", "y", "S - y"),
    ),
    Step(
        "parameters",
        "derivation",
        (
            Formula("d(L, W[i, p]) == (S[i] - y[i]) * x[p]", sums_to_one=True),
            Formula("d(L, W) == (S - y) @ x.T", sums_to_one=True),
            Formula("d(L, b) == S - y", sums_to_one=True),
            Formula("d(L, x) == W.T @ (S - y)", sums_to_one=True),
        ),
        (
            ("d(L, x)", lambda f, c: _linear(f, c)[0][0]),
            ("d(L, W)", lambda f, c: _linear(f, c)[1]),
            ("d(L, b)", lambda f, c: _linear(f, c)[2]),
        ),
        ("d(L, W)",),
    ),
    Step(
        "descent",
        "derivation",
        (
            Formula("W_new[i, p] == W[i, p] - η * (S[i] - y[i]) * x[p]", sums_to_one=True),
            Formula("b_new[i] == b[i] - η * (S[i] - y[i])", sums_to_one=True),
            Formula("L_new <= L", symbolic=False),
        ),
        (
            ("L", _loss),
            ("L_new", lambda f, c: f.cross_entropy(c.o_new, c.y)),
        ),
        ("W_new", "b_new"),
    ),
    Step(
        "training",
        "derivation",
        (
            Formula("d(M, A[l, p]) == sum(n, (P[n, l] - Y[n, l]) * X[n, p]) / N"),
            Formula("d(M, A) == (P - Y).T @ X / N"),
        ),
        (
            ("M", lambda f, c: _trained(f, c)[0]),
            ("d(M, A)", lambda f, c: _trained(f, c)[1][1]),
            ("d(M, c)", lambda f, c: _trained(f, c)[1][2]),
        ),
    ),
    Step(
        "hessian",
        "beyond",
        (Formula("d(d(L, o[i]), o[j]) == S[i] * (delta(i, j) - S[j]) == J[i, j]", sums_to_one=True),),
        (("J", _hessian),),
    ),
    Step(
        "any-target",
        "beyond",
        (Formula("d(L_r, o[j]) == -r[j] + S[j] * sum(i, r[i])"), Formula("sum(j, d(L_r, o[j])) == 0")),
        (("d(L_r, o)", lambda f, c: f.cross_entropy_with_grad(c.o, c.r)[1]),),
        ("r", "d(L_r, o)"),
    ),
    Step(
        "class-weights",
        "beyond",
        (
            Formula("L_w == -sum(i, w[i] * y[i] * log(S[i]))"),
            Formula("d(L_w, o[j]) == S[j] * sum(i, w[i] * y[i]) - w[j] * y[j]"),
        ),
        (
            (
                "d(L_w, o)",
                lambda f, c: f.cross_entropy_with_grad(c.o, c.y, class_weight=c.w, reduction="sum")[1],
            ),
        ),
        ("w", "d(L_w, o)"),
    ),
    Step(
        "temperature",
        "beyond",
        (Formula("o[i] == z[i] / τ"), Formula("d(L, z[j]) == (S[j] - y[j]) / τ", sums_to_one=True)),
        (
            (
                "d(L, z)",
                lambda f, c: f.cross_entropy_with_grad(
                    c.z, c.target, label_smoothing=c.label_smoothing, temperature=c.temperature
                )[1],
            ),
        ),
    ),
    Step(
        "z-loss",
        "beyond",
        (
            Formula(f"lse == log({_EXPONENTIALS}) == m + log(s)"),
            Formula("d(lse, o[j]) == S[j]"),
            Formula("L_z == L + λ * lse ** 2"),
            Formula("d(L_z, o[j]) == (1 + 2 * λ * lse) * S[j] - y[j]", sums_to_one=True),
        ),
        (
            ("lse", lambda f, c: f.logsumexp(c.o)),
            ("d(L_z, o)", lambda f, c: f.cross_entropy_with_grad(c.o, c.y, z_loss=c.z_loss)[1]),
        ),
    ),
    Step(
        "digits",
        "beyond",
        (Formula("L == lse - sum(i, y[i] * o[i]) == log(s) - sum(i, y[i] * (o[i] - m))", sums_to_one=True),),
        (("L", _loss),),
    ),
)
