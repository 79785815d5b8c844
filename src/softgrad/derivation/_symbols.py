"""The proof in letters, by SymPy, for three classes and two features.

The formulas are computed by `_evaluate` with symbols for the logits; SymPy differentiates the definitions. A formula
is proved when the difference of its sides is zero after the exponentials have become letters, ``E_i = exp(o_i)``:
that leaves fractions of polynomials, whose zero is decided, not guessed. Classes are interchangeable, so the first
one and the first pair stand for all.
"""

from __future__ import annotations

from functools import lru_cache
from itertools import pairwise
from typing import Any

import numpy as np

from softgrad.derivation._evaluate import Arithmetic, Scope
from softgrad.derivation._formula import Node, equal_sides, free_indices, parse, walk

__all__ = ["available", "proved"]


def available() -> bool:
    """Whether SymPy is installed."""
    from importlib.util import find_spec

    return find_spec("sympy") is not None


class _SymbolArithmetic(Arithmetic):
    """SymPy's expressions; a variable is a new letter, which is given its value back after differentiating."""

    def __init__(self) -> None:
        self._values: dict[Any, Any] = {}

    def number(self, text: str) -> Any:
        import sympy

        return sympy.Rational(text)

    def exp(self, value: Any) -> Any:
        import sympy

        return sympy.exp(value)

    def log(self, value: Any) -> Any:
        import sympy

        return sympy.log(value)

    def times(self, left: Any, right: Any) -> Any:
        return left * right

    def over(self, above: Any, below: Any) -> Any:
        return above / below

    def larger(self, left: Any, right: Any) -> bool:
        raise NotImplementedError("letters have no order: the maximum is a letter of its own")

    def variable(self, value: Any) -> Any:
        import sympy

        letter = sympy.Symbol(f"v_{len(self._values)}", real=True)
        self._values[letter] = value
        return letter

    def derivative(self, result: Any, variable: Any) -> Any:
        import sympy

        return sympy.diff(result, variable).subs(variable, self._values[variable])


def _letters(name: str, *shape: int, positive: bool = False) -> Any:
    import sympy

    array = np.empty(shape, dtype=object)
    for at in np.ndindex(*shape):
        array[at] = sympy.Symbol(name + "_" + "".join(map(str, at)), real=True, positive=positive or None)
    return array


def _scope(names: set[str]) -> Scope:
    """What the formula is about as letters; the logits as logarithms of letters, ``o_i = log E_i``."""
    import sympy

    classes, features, rows = 3, 2, 2
    o = np.array([sympy.log(e) for e in _letters("E", classes, positive=True)], dtype=object)
    given: dict[str, Any] = {name: sympy.Symbol(name, positive=True) for name in ("τ", "ε", "η", "λ")}
    # The softmax is the same for any m, not only for the maximum, so that m is a letter that nothing changes.
    given |= {"m": sympy.Symbol("m", real=True), "m_new": sympy.Symbol("m_new", real=True)}
    if names & {"y", "h"} == {"y", "h"}:  # the definition of the target: a one-hot or any other distribution
        h = _letters("h", classes)
        h[2] = 1 - h[0] - h[1]
        given["h"] = h
    else:
        given["y"] = _letters("y", classes)
    given |= {"w": _letters("w", classes), "r": _letters("r", classes)}
    if names & {"W", "x", "b"}:
        weight, x = _letters("W", classes, features), _letters("x", features)
        given |= {"W": weight, "x": x, "b": o - weight @ x, "τ": sympy.Integer(1)}
    elif "z" in names:
        given["z"] = given["τ"] * o
    else:
        given["o"] = o
    if "M" in names:
        weight, x = _letters("A", classes, features), _letters("X", rows, features)
        given |= {"A": weight, "X": x, "Y": _letters("Y", rows, classes), "c": _letters("c", classes)}
        given["Y"][:, 2] = 1 - given["Y"][:, 0] - given["Y"][:, 1]
    return Scope(
        _SymbolArithmetic(), given, {"V": classes, "D": features, "N": rows, "K": classes}, fixed={"m", "m_new"}
    )


def _is_zero(expression: Any) -> bool:
    import sympy

    expression = sympy.expand_log(sympy.sympify(expression), force=True)
    if expression == 0:
        return True
    letters: dict[Any, Any] = {}

    def letter(exponent: Any) -> Any:
        """exp(a) is a letter, and so exp(−2 a) is 1 over its square."""
        factor, rest = sympy.expand(exponent).primitive()
        if rest.could_extract_minus_sign():
            factor, rest = -factor, -rest
        return letters.setdefault(rest, sympy.Dummy(positive=True)) ** factor

    numerator, _ = sympy.fraction(sympy.together(expression.replace(sympy.exp, letter)))
    return bool(sympy.expand(numerator) == 0) or bool(sympy.simplify(expression) == 0)


@lru_cache(maxsize=256)
def proved(text: str, *, distinct: bool = False, sums_to_one: bool = False) -> bool:
    """Whether SymPy proves a formula.

    Parameters
    ----------
    text : str
        A chain of equations in the language of `_formula`.
    distinct : bool
        It is about ``i ≠ j`` only.
    sums_to_one : bool
        The target's sum is known to be one.

    Returns
    -------
    bool
    """
    import sympy

    node: Node = parse(text)
    names = {part.args[0] for part in walk(node) if part.op in ("name", "at")}
    scope = _scope(names)
    free = free_indices(node)
    choices: list[dict[str, int]] = [{"p": 0, "n": 0, "l": 0, "i": 0, "j": 1}]
    if {"i", "j"} <= set(free) and not distinct:
        choices.append({"p": 0, "n": 0, "l": 0, "i": 0, "j": 0})
    last = sympy.Symbol("y_2", real=True)
    rest = 1 - sympy.Symbol("y_0", real=True) - sympy.Symbol("y_1", real=True)
    for indices in choices:
        chosen = {name: indices[name] for name in free}
        values = [np.atleast_1d(np.asarray(scope.value(side, chosen), dtype=object)) for side in equal_sides(node)]
        for left, right in pairwise(values):
            corner = (slice(1),) * (left.ndim - 1) + (slice(2),)  # as with indices: the first, and the first pair
            for a, b in zip(*(part[corner].ravel() for part in np.broadcast_arrays(left, right)), strict=True):
                difference = a - b
                if sums_to_one:
                    difference = difference.subs(last, rest)
                if not _is_zero(difference):
                    return False
    return True
