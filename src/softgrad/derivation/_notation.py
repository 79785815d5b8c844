"""Trees of formulas as LaTeX, MathML and plain text: one walk, three notations."""

from __future__ import annotations

from abc import ABC, abstractmethod
from html import escape

from softgrad.derivation._formula import Node

__all__ = ["latex", "mathml", "text"]

# How tightly an operation binds; what binds less than its surroundings gets parentheses.
_ORDER = {"eq": 0, "le": 0, "add": 1, "sub": 1, "neg": 1.5, "sum": 2, "mul": 3, "matmul": 3, "d": 4, "pow": 4}
_GREEK = {"ε": r"\varepsilon", "τ": r"\tau", "λ": r"\lambda", "η": r"\eta", "δ": r"\delta"}
_SUBSCRIPT = str.maketrans("0123456789ijklnp", "₀₁₂₃₄₅₆₇₈₉ᵢⱼₖₗₙₚ")
_SUPERSCRIPT = str.maketrans("newzr", "ⁿᵉʷᶻʳ")


def latex(node: Node) -> str:
    """As LaTeX, without dollar signs."""
    return _Latex().show(node)


def mathml(node: Node, *, block: bool = False) -> str:
    """As a ``<math>`` element, which browsers show without a library."""
    display = ' display="block"' if block else ""
    return f'<math xmlns="http://www.w3.org/1998/Math/MathML"{display}>{_MathML().show(node)}</math>'


def text(node: Node) -> str:
    """On one line, in Unicode."""
    return _Text().show(node)


class _Notation(ABC):
    """The walk: which parts there are, and where parentheses must be."""

    fraction = 4.2  # a fraction with a line is its own parentheses

    def show(self, node: Node) -> str:
        return str(getattr(self, "_" + node.op)(*node.args))

    def within(self, node: Node, least: float) -> str:
        """Shown, in parentheses if it binds less tightly than asked."""
        shown = self.show(node)
        order = self.fraction if node.op == "div" else _ORDER.get(node.op, 9)
        if node.op == "value" and node.args[0].startswith("−"):
            order = 1.5  # a negative number is a sign and a number
        return self.parentheses(shown) if order < least else shown

    def parentheses(self, shown: str) -> str:
        return self.row(self.mark("("), shown, self.mark(")"))

    def row(self, *parts: str) -> str:
        return "".join(parts)

    @abstractmethod
    def mark(self, sign: str) -> str: ...

    def _value(self, shown: str) -> str:
        return self._number(shown)

    @abstractmethod
    def _number(self, shown: str) -> str: ...

    @abstractmethod
    def _name(self, name: str) -> str: ...

    @abstractmethod
    def sub(self, base: str, below: str) -> str: ...

    def indices(self, parts: tuple[Node, ...]) -> str:
        return self.row(*map(self.show, parts))

    def _at(self, name: str, *parts: Node) -> str:
        if "_" in name:  # W_new[i, p]: the word goes above, the indices below
            base, word = name.split("_")
            return self.both(self._name(base), self.indices(parts), self.word(word))
        return self.sub(self._name(name), self.indices(parts))

    @abstractmethod
    def both(self, base: str, below: str, above: str) -> str: ...

    @abstractmethod
    def word(self, word: str) -> str: ...

    def _eq(self, *sides: Node) -> str:
        shown = [self.show(side) for side in sides]
        parts = [shown[0]]
        for side in shown[1:]:
            parts += [self.mark("="), side]
        return self.row(*parts)

    def _le(self, left: Node, right: Node) -> str:
        return self.row(self.show(left), self.mark("≤"), self.show(right))

    def _ne(self, left: Node, right: Node) -> str:
        return self.row(self.show(left), self.mark("≠"), self.show(right))

    def _add(self, left: Node, right: Node) -> str:
        return self.row(self.show(left), self.mark("+"), self.within(right, 1 if right.op == "add" else 1.6))

    def _sub(self, left: Node, right: Node) -> str:
        return self.row(self.show(left), self.mark("−"), self.within(right, 1.6))

    def _neg(self, part: Node) -> str:
        return self.row(self.mark("−"), self.within(part, 1.6))

    def _mul(self, left: Node, right: Node) -> str:
        between = self.mark("·") if _first(right).op in ("value", "number") else self.mark(" ")
        return self.row(self.within(left, 2.5), between, self.within(right, 2 if right.op == "sum" else 3.5))

    def _matmul(self, left: Node, right: Node) -> str:
        return self.row(self.within(left, 2.5), self.mark(" "), self.within(right, 3.5))

    def _delta(self, left: Node, right: Node) -> str:
        return self.sub(self._name("δ"), self.indices((left, right)))

    def _over(self, name: str, *values: Node) -> str:
        parts = [self.show(values[0])]
        for value in values[1:]:
            parts += [self.mark(","), self.show(value)]
        return self.row(self.function(name), self.parentheses(self.row(*parts)))

    def _dots(self) -> str:
        return self.mark("⋯")

    def _log(self, part: Node) -> str:
        return self.row(self.function("log"), self.mark(" "), self._argument(part))

    def _argument(self, part: Node) -> str:
        return self.within(part, 4.5)

    def _diag(self, part: Node) -> str:
        return self.row(self.function("diag"), self.parentheses(self.show(part)))

    @abstractmethod
    def function(self, name: str) -> str: ...

    @abstractmethod
    def under(self, sign: str, below: str) -> str: ...

    def bound(self, index: str, other: Node | None) -> str:
        if other is None:
            return self._name(index)
        return self.row(self._name(index), self.mark("≠"), self.show(other))

    def _sum(self, index: str, other: Node | None, body: Node) -> str:
        return self.row(self.under("∑", self.bound(index, other)), self.mark(" "), self.within(body, 2))

    def _max(self, index: str, body: Node) -> str:
        return self.row(self.under("max", self._name(index)), self.mark(" "), self.within(body, 2))

    def _argmax(self, index: str, body: Node) -> str:
        return self.row(self.under("arg max", self._name(index)), self.mark(" "), self.within(body, 2))


def _first(node: Node) -> Node:
    return _first(node.args[0]) if node.op in ("mul", "pow") else node


class _Text(_Notation):
    fraction = 2.4

    def mark(self, sign: str) -> str:
        return ", " if sign == "," else sign if sign in "()· ⋯" else f" {sign} "

    def _number(self, shown: str) -> str:
        return shown

    def _name(self, name: str) -> str:
        base, _, word = name.partition("_")
        return base + self.word(word)

    def _neg(self, part: Node) -> str:
        return "−" + self.within(part, 1.6)

    def sub(self, base: str, below: str) -> str:
        return base + below.translate(_SUBSCRIPT)

    def both(self, base: str, below: str, above: str) -> str:
        return self.sub(base, below) + above

    def word(self, word: str) -> str:
        return word.translate(_SUPERSCRIPT)

    def function(self, name: str) -> str:
        return name

    def _exp(self, part: Node) -> str:
        return f"exp({self.show(part)})"

    def _diag(self, part: Node) -> str:
        return f"diag({self.show(part)})"

    def _pow(self, base: Node, power: Node) -> str:
        raised = self.show(power)
        return self.within(base, 4.5) + ("²" if raised == "2" else f"^{raised}")

    def _transpose(self, part: Node) -> str:
        return self.within(part, 4.5) + "ᵀ"

    def _div(self, above: Node, below: Node) -> str:
        return f"{self.within(above, 1.5)} / {self.within(below, 3.5)}"

    def _d(self, part: Node, by: Node) -> str:
        if part.op == "d":
            return f"∂²{self.show(part.args[0])}/∂{self.show(part.args[1])}∂{self.show(by)}"
        return f"∂{self.within(part, 4.5)}/∂{self.show(by)}"

    def under(self, sign: str, below: str) -> str:
        low = below.replace(" ", "")
        return f"{sign}[{low}]" if "≠" in low or len(sign) > 1 else sign + low.translate(_SUBSCRIPT)


class _Latex(_Notation):
    def mark(self, sign: str) -> str:
        return {
            "(": r"\left(", ")": r"\right)", "−": "-", "·": r" \cdot ",
            "≤": r" \le ", "≠": r" \ne ", " ": r"\,", "⋯": r"\cdots", ",": r",\,",
        }.get(sign, f" {sign} ")  # fmt: skip

    def _number(self, shown: str) -> str:
        mantissa, _, power = shown.replace("−", "-").replace("∞", r"\infty").partition("e")
        return rf"{mantissa} \cdot 10^{{{power}}}" if power else mantissa

    def _name(self, name: str) -> str:
        base, _, word = name.partition("_")
        shown = _GREEK.get(base, base if len(base) == 1 else rf"\mathrm{{{base}}}")
        return f"{shown}^{{{self.word(word)}}}" if word else shown

    def sub(self, base: str, below: str) -> str:
        return f"{base}_{{{below}}}"

    def both(self, base: str, below: str, above: str) -> str:
        return f"{base}_{{{below}}}^{{{above}}}"

    def word(self, word: str) -> str:
        return rf"\text{{{word}}}"

    def function(self, name: str) -> str:
        return rf"\{name}" if name in ("log", "max") else rf"\operatorname{{{name}}}"

    def _exp(self, part: Node) -> str:
        return f"e^{{{self.show(part)}}}"

    def _pow(self, base: Node, power: Node) -> str:
        return f"{self.within(base, 4.5)}^{{{self.show(power)}}}"

    def _transpose(self, part: Node) -> str:
        return f"{self.within(part, 4.5)}^\\top"

    def _div(self, above: Node, below: Node) -> str:
        return rf"\frac{{{self.show(above)}}}{{{self.show(below)}}}"

    def _d(self, part: Node, by: Node) -> str:
        if part.op == "d":
            inner, first = part.args
            return rf"\frac{{\partial^2 {self.show(inner)}}}{{\partial {self.show(first)}\,\partial {self.show(by)}}}"
        return rf"\frac{{\partial {self.within(part, 4.5)}}}{{\partial {self.show(by)}}}"

    def under(self, sign: str, below: str) -> str:
        shown = {"∑": r"\sum", "max": r"\max"}.get(sign, r"\operatorname*{arg\,max}")
        return rf"{shown}_{{{below}}}"


class _MathML(_Notation):
    def row(self, *parts: str) -> str:
        return "<mrow>" + "".join(parts) + "</mrow>"

    def mark(self, sign: str) -> str:
        return '<mspace width="0.17em"/>' if sign == " " else f"<mo>{escape(sign)}</mo>"

    def _number(self, shown: str) -> str:
        mantissa, _, power = shown.partition("e")
        if power:
            return f"<mrow><mn>{mantissa}</mn><mo>·</mo><msup><mn>10</mn><mn>{power}</mn></msup></mrow>"
        return f"<mn>{mantissa}</mn>"

    def _name(self, name: str) -> str:
        base, _, word = name.partition("_")
        return f"<msup><mi>{base}</mi>{self.word(word)}</msup>" if word else f"<mi>{base}</mi>"

    def sub(self, base: str, below: str) -> str:
        return f"<msub>{base}{below}</msub>"

    def both(self, base: str, below: str, above: str) -> str:
        return f"<msubsup>{base}{below}{above}</msubsup>"

    def word(self, word: str) -> str:
        return f"<mtext>{word}</mtext>"

    def function(self, name: str) -> str:
        return f"<mi>{name}</mi>"

    def _exp(self, part: Node) -> str:
        return f"<msup><mi>e</mi>{self.row(self.show(part))}</msup>"

    def _pow(self, base: Node, power: Node) -> str:
        return f"<msup>{self.row(self.within(base, 4.5))}{self.show(power)}</msup>"

    def _transpose(self, part: Node) -> str:
        return f"<msup>{self.row(self.within(part, 4.5))}<mo>⊤</mo></msup>"

    def _div(self, above: Node, below: Node) -> str:
        return f"<mfrac>{self.row(self.show(above))}{self.row(self.show(below))}</mfrac>"

    def _d(self, part: Node, by: Node) -> str:
        partial = "<mo>∂</mo>"
        if part.op == "d":
            inner, first = part.args
            above = self.row(f"<msup>{partial}<mn>2</mn></msup>", self.show(inner))
            return f"<mfrac>{above}{self.row(partial, self.show(first), partial, self.show(by))}</mfrac>"
        return f"<mfrac>{self.row(partial, self.within(part, 4.5))}{self.row(partial, self.show(by))}</mfrac>"

    def under(self, sign: str, below: str) -> str:
        shown = f"<mo>{sign}</mo>" if sign == "∑" else f'<mo movablelimits="false">{sign}</mo>'
        return f"<munder>{shown}{below}</munder>"
