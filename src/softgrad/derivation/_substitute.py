"""A formula with the reader's numbers in it."""

from __future__ import annotations

from typing import Any

from softgrad.derivation._evaluate import DEFINITIONS, Scope
from softgrad.derivation._formula import RANGES, Node, equal_sides, walk

__all__ = ["has_whole_arrays", "number_text", "substituted"]

_MOST_TERMS = 4  # of a sum that are written out; longer ones show the first two and the last


def number_text(value: Any) -> str:
    """Four significant digits, without trailing zeros: ``0.659``, ``−12``, ``1.2e−9``, ``∞``."""
    number = float(value)
    if number != number:
        return "undefined"
    if abs(number) == float("inf"):
        return "∞" if number > 0 else "−∞"
    if (value and not number) or (number and not 1e-4 <= abs(number) < 1e6):
        mantissa, _, power = f"{value:.3e}".lower().partition("e")
        shown = mantissa.rstrip("0").rstrip(".") + "e" + str(int(power))
    else:
        # Four digits, but never fewer than a whole number has.
        whole = len(str(int(abs(number))))
        shown = f"{number:.{max(4, whole)}g}"
        shown = shown if "e" not in shown else f"{number:.0f}"
    return shown.replace("-", "−")


def substituted(node: Node, scope: Scope, indices: dict[str, int]) -> Node:
    """The formula at these indices: its first side in letters, the others in numbers, and what they come to.

    Parameters
    ----------
    node : Node
        A chain of equations, or one expression.
    scope : Scope
        Where the numbers come from.
    indices : dict of str to int
        A value for each free index.

    Returns
    -------
    Node
    """
    sides = equal_sides(node)
    if node.op == "le":
        return Node("le", tuple(_numbers(side, scope, indices) for side in node.args))
    shown = [_letters(sides[0], indices)]
    for side in sides[1:]:
        written = _numbers(side, scope, indices)
        if written != shown[-1]:
            shown.append(written)
    result = _value(scope.value(sides[-1], indices))
    if shown[-1] != result and shown[-1] != Node("number", result.args):
        shown.append(result)
    return Node("eq", tuple(shown))


def _value(value: Any) -> Node:
    return Node("value", (number_text(value),))


def _letters(node: Any, indices: dict[str, int]) -> Any:
    """The same with numbers for the indices alone."""
    if not isinstance(node, Node):
        return node
    if node.op == "name" and node.args[0] in indices:
        return Node("number", (str(indices[node.args[0]]),))
    return Node(node.op, tuple(_letters(part, indices) for part in node.args))


def _numbers(node: Any, scope: Scope, indices: dict[str, int]) -> Any:
    match node:
        case Node("at" | "d" | "delta"):
            return _value(scope.value(node, indices))
        case Node("name", (name,)) if name not in RANGES:
            return _value(scope.value(node, indices))
        case Node("sum", (index, other, body)):
            left_out = _letters(other, indices).args[0] if other else None
            terms = [
                _numbers(body, scope, indices | {index: i}) for i in range(scope.size(index)) if str(i) != left_out
            ]
            if len(terms) > _MOST_TERMS:
                terms = [*terms[:2], Node("dots", ()), terms[-1]]
            total = terms[0] if terms else Node("number", ("0",))
            for term in terms[1:]:
                total = Node("add", (total, term))
            return total
        case Node(("max" | "argmax") as name, (index, body)):
            values = [_numbers(body, scope, indices | {index: i}) for i in range(scope.size(index))]
            if len(values) > _MOST_TERMS:
                values = [*values[:2], Node("dots", ()), values[-1]]
            return Node("over", ("max" if name == "max" else "arg max", *values))
        case Node(op, args):
            return Node(op, tuple(_numbers(part, scope, indices) for part in args))
    return node


def has_whole_arrays(node: Node) -> bool:
    """Whether a formula is about vectors or matrices as wholes, not about their elements."""
    return any(
        part.op in ("matmul", "transpose", "diag")
        or (part.op == "name" and part.args[0] in DEFINITIONS and DEFINITIONS[part.args[0]][0] != ())
        or (part.op == "name" and part.args[0] in ("W", "x", "b", "h", "r", "w"))
        for part in walk(node)
    )
