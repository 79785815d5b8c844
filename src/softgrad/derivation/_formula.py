"""Formulas as trees: written as Python expressions, shown as LaTeX, MathML or plain text, and computed from.

``d(S[i], o[j]) == S[i] * (delta(i, j) - S[j])`` is parsed to a tree.  `_notation` shows the tree, `_evaluate` computes
both of its sides, and the page's script does both again from the same tree as JSON: what a reader sees is what was
checked.  The language:

    S[i]  W[i, p]               an element              a + b, a - b, -a, a * b, a / b, a ** b, a @ b
    sum(i, a)  sum(i, i != j, a)  over the classes      exp(a)  log(a)  max(k, a)  argmax(k, a)
    d(a, b)                     the derivative ∂a/∂b    delta(i, j)  diag(a)  a.T
    a == b == c                 all are equal           a <= b
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from functools import lru_cache
from typing import Any, NamedTuple

__all__ = ["RANGES", "Node", "equal_sides", "free_indices", "parse", "to_json", "walk"]

# What an index runs over: the classes, the features of x, the rows of the training set and its classes.
RANGES = {"i": "V", "j": "V", "k": "V", "p": "D", "n": "N", "l": "K", "q": "K"}

_BINARY: dict[type[ast.operator], str] = {
    ast.Add: "add", ast.Sub: "sub", ast.Mult: "mul", ast.Div: "div", ast.Pow: "pow", ast.MatMult: "matmul",
}  # fmt: skip
_CALLS = {"exp": 1, "log": 1, "diag": 1, "delta": 2, "d": 2, "max": 2, "argmax": 2}


class Node(NamedTuple):
    """An operation and what it is applied to: nodes, or the text of a name or number."""

    op: str
    args: tuple[Any, ...]


@lru_cache(maxsize=512)
def parse(text: str) -> Node:
    """The tree of a formula.

    Parameters
    ----------
    text : str
        In the language at the head of this module.

    Returns
    -------
    Node

    Raises
    ------
    ValueError
        For text that is not a formula; it names the part.
    """
    try:
        return _node(ast.parse(text.strip(), mode="eval").body)
    except SyntaxError as error:
        raise ValueError(f"formula {text!r}: {error.msg}") from None


def _node(tree: ast.expr) -> Node:
    match tree:
        case ast.Compare(left, ops, rest) if all(isinstance(op, ast.Eq) for op in ops):
            return Node("eq", (_node(left), *map(_node, rest)))
        case ast.Compare(left, [ast.LtE()], [right]):
            return Node("le", (_node(left), _node(right)))
        case ast.BinOp(ast.UnaryOp(ast.USub(), left), (ast.Mult() | ast.Div()) as op, right):
            return Node("neg", (Node(_BINARY[type(op)], (_node(left), _node(right))),))  # −a·b is read as −(a·b)
        case ast.BinOp(left, op, right) if type(op) in _BINARY:
            return Node(_BINARY[type(op)], (_node(left), _node(right)))
        case ast.UnaryOp(ast.USub(), operand):
            return Node("neg", (_node(operand),))
        case ast.Constant(int() | float() as value):
            return Node("number", (str(value),))
        case ast.Name(name):
            return Node("name", (name,))
        case ast.Attribute(value, "T"):
            return Node("transpose", (_node(value),))
        case ast.Subscript(ast.Name(name), ast.Tuple(parts)):
            return Node("at", (name, *map(_node, parts)))
        case ast.Subscript(ast.Name(name), part):
            return Node("at", (name, _node(part)))
        case ast.Call(ast.Name("sum"), [ast.Name(index), body]):
            return Node("sum", (index, None, _node(body)))
        case ast.Call(ast.Name("sum"), [ast.Name(index), ast.Compare(ast.Name(left), [ast.NotEq()], [other]), body]):
            if left == index:
                return Node("sum", (index, _node(other), _node(body)))
        case ast.Call(ast.Name(("max" | "argmax") as name), [ast.Name(index), body]):
            return Node(name, (index, _node(body)))
        case ast.Call(ast.Name(name), args) if _CALLS.get(name) == len(args):
            return Node(name, tuple(map(_node, args)))
    raise ValueError(f"formula: {ast.unparse(tree)!r} is not in the language of softgrad.derivation._formula")


def walk(node: Node) -> Iterator[Node]:
    """The node and all below it."""
    yield node
    for part in node.args:
        if isinstance(part, Node):
            yield from walk(part)


def equal_sides(node: Node) -> tuple[Node, ...]:
    """The members of a chain of equations; of anything else, itself."""
    return node.args if node.op == "eq" else (node,)


def free_indices(node: Node) -> list[str]:
    """Index names that no sum or maximum binds, in the order of RANGES: the formula holds for each of their values."""

    def find(part: Node) -> set[str]:
        if part.op == "name":
            return set(part.args) & set(RANGES)
        inner = set().union(*(find(a) for a in part.args if isinstance(a, Node)), set())
        return inner - {part.args[0]} if part.op in ("sum", "max", "argmax") else inner

    found = find(node)
    return [name for name in RANGES if name in found]


def to_json(node: Node) -> list[Any]:
    """Nested lists ``[operation, …]``, as the page reads them."""
    return [node.op, *(to_json(part) if isinstance(part, Node) else part for part in node.args)]
