"""The reader's numbers: what is given, as fifty-digit decimals for the proof and as float64 for the library."""

from __future__ import annotations

from decimal import Decimal
from typing import Any

import numpy as np
from numpy.typing import NDArray

from softgrad.derivation._decimal import DecimalArithmetic, fifty_digits
from softgrad.derivation._evaluate import Scope
from softgrad.derivation._formula import parse
from softgrad.derivation._training import TRAINING

__all__ = ["MOST_CLASSES", "Case"]

Float = NDArray[np.float64]
MOST_CLASSES = 10

_exact = np.frompyfunc(lambda value: Decimal(float(value)), 1, 1)


class Case:
    """One row of logits with its target, and a small linear model that gives just these logits.

    Parameters
    ----------
    z : ndarray of shape (V,)
        The logits, as the reader gave them: before the temperature.
    h : ndarray of shape (V,)
        The target, before smoothing; sums to one.
    label_smoothing, temperature : float
    label : int or None
        The class, if the target is one class.
    """

    learning_rate = 0.5
    z_loss = 0.1

    def __init__(self, z: Float, h: Float, label_smoothing: float, temperature: float, label: int | None) -> None:
        self.z: Float = z
        self.h: Float = h
        self.label_smoothing: float = label_smoothing
        self.temperature: float = temperature
        self.label = label
        self.classes = len(z)
        self.scope = self._scope()

    @property
    def target(self) -> Any:
        """As the library takes it: a label or a distribution."""
        return self.h if self.label is None else self.label

    def _scope(self) -> Scope:
        z, h = _exact(self.z), _exact(self.h)
        classes = range(self.classes)
        x = _exact(np.array([1.0, 0.5]))
        weight, bias = np.empty((self.classes, 2), dtype=object), _exact(np.zeros(self.classes))
        with fifty_digits():
            temperature = Decimal(float(self.temperature))
            h = h / h.sum()  # 0.3 + 0.7 is not one, in float64
            for i in classes:
                o = z[i] / temperature
                weight[i, 1] = Decimal((-1) ** i * (1 + i)) / 4
                bias[i] = Decimal(i - 1) / 4
                if o.is_finite():
                    weight[i, 0] = o - bias[i] - weight[i, 1] * x[1]
                else:  # a masked class is masked by its bias: its weights stay numbers
                    weight[i, 0], bias[i] = Decimal(1), o
            # Any weights of the classes, and a target whose sum is 1.5, to show what then changes.
            w = _exact(np.array([1.0 + 0.5 * (i % 3) for i in classes]))
            first = int(np.argmax(self.h))
            r = _exact(np.zeros(self.classes))
            r[first], r[self.other] = Decimal(1), Decimal("0.5")
        points = np.array(TRAINING)
        given = {
            "z": z, "h": h, "x": x, "W": weight, "b": bias, "w": w, "r": r,
            "τ": temperature, "ε": Decimal(float(self.label_smoothing)), "η": Decimal(str(self.learning_rate)),
            "λ": Decimal(str(self.z_loss)),
            "X": _exact(points[:, :2]), "Y": _exact(np.eye(3)[points[:, 2].astype(int)]),
            "A": _exact(np.zeros((3, 2))), "c": _exact(np.zeros(3)),
        }  # fmt: skip
        return Scope(DecimalArithmetic(), given, {"V": self.classes, "D": 2, "N": len(points), "K": 3})

    @property
    def first(self) -> int:
        """The class that examples are shown at: the target's largest."""
        return int(np.argmax(self.h))

    @property
    def other(self) -> int:
        """Another class beside it: the next one whose logit is finite, if there is one."""
        order = [(self.first + step) % self.classes for step in range(1, self.classes)]
        return next((i for i in order if np.isfinite(self.z[i])), order[0])

    def worth(self, expression: str) -> Any:
        """What an expression of the language is worth here, in float64."""
        with fifty_digits():
            value = self.scope.value(parse(expression))
        if isinstance(value, np.ndarray):
            return np.array([float(v) for v in value.flat]).reshape(value.shape)
        return float(value)

    def __getattr__(self, name: str) -> Any:
        """``c.W``, ``c.S``, ``c.y``, ``c.o_new``, …: any name of the derivation, in float64."""
        if name.startswith("__"):
            raise AttributeError(name)
        try:
            value = self.worth(name)
        except KeyError:
            raise AttributeError(name) from None
        self.__dict__[name] = value
        return value
