"""What a formula is worth: the tree computed with given arithmetic, derivatives included.

A name is either given (a number, a vector, a matrix) or defined by a formula in terms of others; a derivative ``d(a,
b)`` makes ``b`` a variable, computes everything between ``b`` and ``a`` again by the definitions, and differentiates.
How depends on the arithmetic: `_decimal` carries dual numbers of fifty digits, `_symbols` lets SymPy differentiate.
Neither knows a formula for a gradient: that is what is being proved.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from collections.abc import Set as AbstractSet
from itertools import product
from typing import Any, Protocol

import numpy as np

from softgrad.derivation._formula import RANGES, Node, parse, walk

__all__ = ["DEFINITIONS", "Arithmetic", "Scope", "assignments"]

# Every quantity of the derivation in terms of those before it.  Indices on the left say its shape.
DEFINITIONS: dict[str, tuple[tuple[str, ...], Node]] = {
    name: (tuple(indices), parse(formula))
    for name, indices, formula in [
        ("z", "i", "τ * (sum(p, W[i, p] * x[p]) + b[i])"),
        ("o", "i", "z[i] / τ"),
        ("m", "", "max(k, o[k])"),
        ("s", "", "sum(k, exp(o[k] - m))"),
        ("S", "i", "exp(o[i] - m) / s"),
        ("lse", "", "m + log(s)"),
        ("J", "ij", "d(S[i], o[j])"),
        ("y", "i", "(1 - ε) * h[i] + ε / V"),
        ("L", "", "-sum(i, y[i] * log(S[i]))"),
        ("L_r", "", "-sum(i, r[i] * log(S[i]))"),
        ("L_w", "", "-sum(i, w[i] * y[i] * log(S[i]))"),
        ("L_z", "", "L + λ * lse ** 2"),
        ("W_new", "ip", "W[i, p] - η * d(L, W[i, p])"),
        ("b_new", "i", "b[i] - η * d(L, b[i])"),
        ("o_new", "i", "sum(p, W_new[i, p] * x[p]) + b_new[i]"),
        ("m_new", "", "max(k, o_new[k])"),
        ("S_new", "i", "exp(o_new[i] - m_new) / sum(k, exp(o_new[k] - m_new))"),
        ("L_new", "", "-sum(i, y[i] * log(S_new[i]))"),
        ("F", "nl", "sum(p, A[l, p] * X[n, p]) + c[l]"),
        ("P", "nl", "exp(F[n, l]) / sum(q, exp(F[n, q]))"),
        ("M", "", "-sum(n, sum(l, Y[n, l] * log(P[n, l]))) / N"),
    ]
}


def _users() -> dict[str, frozenset[str]]:
    """For each name, the names whose value changes with it."""
    uses: dict[str, set[str]] = {}
    for name, (_, formula) in DEFINITIONS.items():
        for node in walk(formula):
            if node.op in ("name", "at"):
                uses.setdefault(node.args[0], set()).add(name)
    found = {}
    for name in uses:
        reached: set[str] = set()
        frontier = {name}
        while frontier:
            frontier = set().union(*(uses.get(n, set()) for n in frontier)) - reached
            reached |= frontier
        found[name] = frozenset(reached)
    return found


_USERS = _users()


class Arithmetic(Protocol):
    """What numbers are: Python's operators work on them, and these."""

    def number(self, text: str) -> Any:
        """A constant."""

    def exp(self, value: Any) -> Any:
        """Its exponential."""

    def log(self, value: Any) -> Any:
        """Its natural logarithm."""

    def times(self, left: Any, right: Any) -> Any:
        """Their product, where 0·∞ counts as 0."""

    def over(self, above: Any, below: Any) -> Any:
        """Their quotient."""

    def larger(self, left: Any, right: Any) -> bool:
        """Whether the left one is strictly larger."""

    def variable(self, value: Any) -> Any:
        """The value, as what is differentiated by from here on."""

    def derivative(self, result: Any, variable: Any) -> Any:
        """How the result changes with the variable."""


class Scope:
    """Names, what they are worth, and the indices that stand for numbers at the moment.

    Parameters
    ----------
    arithmetic : Arithmetic
    given : mapping of str to number or array
        Arrays are NumPy arrays of objects.  What is given hides its definition.
    sizes : mapping of str to int
        ``V``, ``D``, ``N`` and ``K``.
    fixed : set of str
        Names that stay what they are, whatever they depend on becomes a variable.
    """

    def __init__(
        self,
        arithmetic: Arithmetic,
        given: Mapping[str, Any],
        sizes: Mapping[str, int],
        fixed: AbstractSet[str] = frozenset(),
    ) -> None:
        self.arithmetic, self.sizes, self.fixed = arithmetic, sizes, fixed
        self._values = dict(given)

    def value(self, node: Node, indices: Mapping[str, int] | None = None) -> Any:
        """What a formula is worth; a vector or matrix is an array."""
        return getattr(self, "_" + node.op)(dict(indices or {}), *node.args)

    def named(self, name: str) -> Any:
        """What a name is worth, by its definition unless it is given."""
        if name not in self._values:
            indices, formula = DEFINITIONS[name]
            ranges = [range(self.size(index)) for index in indices]
            values = [self.value(formula, dict(zip(indices, at, strict=True))) for at in product(*ranges)]
            if not indices:
                self._values[name] = values[0]
            else:
                array = np.empty([len(r) for r in ranges], dtype=object)
                array.flat[:] = values
                self._values[name] = array
        return self._values[name]

    def size(self, index: str) -> int:
        """How many values an index has."""
        return self.sizes[RANGES[index]]

    def with_variable(self, name: str, at: tuple[int, ...]) -> tuple[Scope, Any]:
        """A scope in which one element is a variable and what depends on it is to be computed anew."""
        values = self.named(name)
        changed = _USERS.get(name, frozenset()) - self.fixed
        keep = {k: v for k, v in self._values.items() if k not in changed}
        element = self.arithmetic.variable(values[at] if at else values)
        if at:
            values = values.copy()
            values[at] = element
        else:
            values = element
        return Scope(self.arithmetic, keep | {name: values}, self.sizes, self.fixed), element

    # --- one method for each operation of the language

    def _number(self, _: dict[str, int], text: str) -> Any:
        return self.arithmetic.number(text)

    def _name(self, indices: dict[str, int], name: str) -> Any:
        if name in indices:
            return self.arithmetic.number(str(indices[name]))
        return self.arithmetic.number(str(self.sizes[name])) if name in self.sizes else self.named(name)

    def _place(self, indices: dict[str, int], parts: tuple[Node, ...]) -> tuple[int, ...]:
        return tuple(indices[p.args[0]] if p.op == "name" else int(p.args[0]) for p in parts)

    def _at(self, indices: dict[str, int], name: str, *parts: Node) -> Any:
        return self.named(name)[self._place(indices, parts)]

    def _add(self, indices: dict[str, int], left: Node, right: Node) -> Any:
        return self.value(left, indices) + self.value(right, indices)

    def _sub(self, indices: dict[str, int], left: Node, right: Node) -> Any:
        return self.value(left, indices) - self.value(right, indices)

    def _neg(self, indices: dict[str, int], part: Node) -> Any:
        return -self.value(part, indices)

    def _mul(self, indices: dict[str, int], left: Node, right: Node) -> Any:
        a, b = self.value(left, indices), self.value(right, indices)
        if isinstance(a, np.ndarray) or isinstance(b, np.ndarray):
            return np.frompyfunc(self.arithmetic.times, 2, 1)(a, b)
        return self.arithmetic.times(a, b)

    def _div(self, indices: dict[str, int], above: Node, below: Node) -> Any:
        a, b = self.value(above, indices), self.value(below, indices)
        if isinstance(a, np.ndarray):
            return np.frompyfunc(self.arithmetic.over, 2, 1)(a, b)
        return self.arithmetic.over(a, b)

    def _pow(self, indices: dict[str, int], base: Node, power: Node) -> Any:
        value = self.value(base, indices)
        result = value
        for _ in range(int(power.args[0]) - 1):
            result = self.arithmetic.times(result, value)
        return result

    def _matmul(self, indices: dict[str, int], left: Node, right: Node) -> Any:
        a, b = self.value(left, indices), self.value(right, indices)
        if right.op == "transpose" and b.ndim == 1:  # a column times a row
            return np.frompyfunc(self.arithmetic.times, 2, 1)(a[:, None], b[None, :])
        terms = np.frompyfunc(self.arithmetic.times, 2, 1)(a[..., None] if b.ndim == 2 else a, b)
        return terms.sum(axis=-2 if b.ndim == 2 else -1)

    def _transpose(self, indices: dict[str, int], part: Node) -> Any:
        return self.value(part, indices).T

    def _diag(self, indices: dict[str, int], part: Node) -> Any:
        values = self.value(part, indices)
        result = np.full((len(values), len(values)), self.arithmetic.number("0"), dtype=object)
        result[np.diag_indices(len(values))] = values
        return result

    def _exp(self, indices: dict[str, int], part: Node) -> Any:
        return self.arithmetic.exp(self.value(part, indices))

    def _log(self, indices: dict[str, int], part: Node) -> Any:
        return self.arithmetic.log(self.value(part, indices))

    def _delta(self, indices: dict[str, int], left: Node, right: Node) -> Any:
        a, b = self._place(indices, (left, right))
        return self.arithmetic.number("1" if a == b else "0")

    def _over_range(self, indices: dict[str, int], index: str, body: Node) -> Iterator[Any]:
        for i in range(self.size(index)):
            yield self.value(body, indices | {index: i})

    def _sum(self, indices: dict[str, int], index: str, other: Node | None, body: Node) -> Any:
        left_out = self._place(indices, (other,))[0] if other else None
        total = self.arithmetic.number("0")
        for i in range(self.size(index)):
            if i != left_out:
                total = total + self.value(body, indices | {index: i})
        return total

    def maxima(self, indices: dict[str, int], index: str, body: Node) -> list[int]:
        """All places of the largest value."""
        values = list(self._over_range(indices, index, body))
        found: list[int] = []
        for i, value in enumerate(values):
            if found and self.arithmetic.larger(value, values[found[0]]):
                found = []
            if not found or not self.arithmetic.larger(values[found[0]], value):
                found.append(i)
        return found

    def _argmax(self, indices: dict[str, int], index: str, body: Node) -> Any:
        return self.arithmetic.number(str(self.maxima(indices, index, body)[0]))

    def _max(self, indices: dict[str, int], index: str, body: Node) -> Any:
        values = list(self._over_range(indices, index, body))
        best = values[0]
        for value in values[1:]:
            if self.arithmetic.larger(value, best):
                best = value
        return best

    def _d(self, indices: dict[str, int], part: Node, by: Node) -> Any:
        if by.op == "at":
            scope, variable = self.with_variable(by.args[0], self._place(indices, by.args[1:]))
            return self.arithmetic.derivative(scope.value(part, indices), variable)
        values = self.named(by.args[0])  # by a vector or a matrix: of the same shape
        result = np.empty(values.shape, dtype=object)
        for at in np.ndindex(values.shape):
            scope, variable = self.with_variable(by.args[0], at)
            result[at] = self.arithmetic.derivative(scope.value(part, indices), variable)
        return result


def assignments(scope: Scope, indices: list[str]) -> Iterator[dict[str, int]]:
    """Every value of every free index."""
    for at in product(*(range(scope.size(index)) for index in indices)):
        yield dict(zip(indices, at, strict=True))
