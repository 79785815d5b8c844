"""Arithmetic of fifty digits with derivatives: dual numbers of `decimal.Decimal`, from the standard library.

A dual number ``a + a'·d`` carries a value and how it changes with one variable ``d``; sums, products, quotients, exp
and log are defined by their own rules of differentiation, so the softmax's and the cross-entropy's derivatives come
out without any formula of theirs. Second derivatives are dual numbers of dual numbers; each variable has a number of
its own.

Reference: Wengert, "A simple automatic derivative evaluation program", 1964.
"""

from __future__ import annotations

import decimal
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count
from typing import Any

from softgrad.derivation._evaluate import Arithmetic

__all__ = ["DecimalArithmetic", "fifty_digits"]

_ZERO, _ONE = decimal.Decimal(0), decimal.Decimal(1)


@contextmanager
def fifty_digits() -> Iterator[None]:
    """Fifty digits, any exponent, and infinities and NaN instead of exceptions, for this thread and block."""
    context = decimal.Context(prec=50, Emax=decimal.MAX_EMAX, Emin=decimal.MIN_EMIN, traps=[])
    with decimal.localcontext(context):
        yield


class Dual:
    """A value and its derivative by one variable."""

    __slots__ = ("slope", "value", "variable")

    def __init__(self, value: Any, slope: Any, variable: int) -> None:
        self.value, self.slope, self.variable = value, slope, variable

    def __add__(self, other: Any) -> Dual:
        variable, a, da, b, db = _pair(self, other)
        return Dual(a + b, da + db, variable)

    __radd__ = __add__

    def __neg__(self) -> Dual:
        return Dual(-self.value, -self.slope, self.variable)

    def __sub__(self, other: Any) -> Dual:
        return self.__add__(-other)

    def __rsub__(self, other: Any) -> Dual:
        return self.__neg__().__add__(other)


def _pair(left: Any, right: Any) -> tuple[int, Any, Any, Any, Any]:
    """The later of the variables of two numbers, and both numbers' values and derivatives by it."""
    variable = max(n.variable for n in (left, right) if isinstance(n, Dual))
    parts = []
    for n in (left, right):
        parts += [n.value, n.slope] if isinstance(n, Dual) and n.variable == variable else [n, _ZERO]
    return variable, parts[0], parts[1], parts[2], parts[3]


def _plain(number: Any) -> Any:
    while isinstance(number, Dual):
        number = number.value
    return number


class DecimalArithmetic(Arithmetic):
    """The operations of `_evaluate` on decimals and on duals of them."""

    def __init__(self) -> None:
        self._variables = count(1)

    def number(self, text: str) -> Any:
        return decimal.Decimal(text)

    def exp(self, value: Any) -> Any:
        if isinstance(value, Dual):
            result = self.exp(value.value)
            return Dual(result, self.times(result, value.slope), value.variable)
        return value.exp()

    def log(self, value: Any) -> Any:
        if isinstance(value, Dual):
            return Dual(self.log(value.value), self.over(value.slope, value.value), value.variable)
        return value.ln()

    def times(self, left: Any, right: Any) -> Any:
        if isinstance(left, Dual) or isinstance(right, Dual):
            variable, a, da, b, db = _pair(left, right)
            return Dual(self.times(a, b), self.times(da, b) + self.times(a, db), variable)
        return _ZERO if left == 0 or right == 0 else left * right

    def over(self, above: Any, below: Any) -> Any:
        if isinstance(above, Dual) or isinstance(below, Dual):
            variable, a, da, b, db = _pair(above, below)
            quotient = self.over(a, b)
            return Dual(quotient, self.over(da - self.times(quotient, db), b), variable)
        return _ZERO if above == 0 else above / below

    def larger(self, left: Any, right: Any) -> bool:
        return bool(_plain(left) > _plain(right))

    def variable(self, value: Any) -> Any:
        return Dual(value, _ONE, next(self._variables))

    def derivative(self, result: Any, variable: Any) -> Any:
        if isinstance(result, Dual) and result.variable == variable.variable:
            return result.slope
        return _ZERO
