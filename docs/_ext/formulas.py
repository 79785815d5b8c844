"""``{formula}``: a formula in the language of the derivation, checked with numbers and in letters first.

It has to hold for a target of any sum, unless it ends with `IF_ONE`, which is not shown: the sentence around it
says so.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any, ClassVar

import numpy as np
from docutils import nodes
from docutils.parsers.rst import Directive
from sphinx.util import logging

from softgrad.derivation._case import Case
from softgrad.derivation._formula import parse
from softgrad.derivation._notation import mathml
from softgrad.derivation._steps import Formula
from softgrad.derivation._symbols import proved
from softgrad.derivation._verify import check_formula

_CASES = (
    Case(np.array([2.0, 1.0, 0.1]), np.array([1.0, 0.0, 0.0]), 0.0, 1.0, 0),
    Case(np.array([0.3, -2.0, 1.7, 0.4]), np.array([0.1, 0.2, 0.3, 0.4]), 0.2, 1.5, None),
)


IF_ONE = " if sum(i, y[i]) == 1"


@lru_cache
def fault(text: str, distinct: bool = False) -> str | None:
    """Why a formula may not be shown, or None."""
    statement = text.removesuffix(IF_ONE)
    try:
        node = parse(statement)
        if node.op not in ("eq", "le"):
            return None  # a name or an expression states nothing; that it can be computed is checked by its parsing
        for case in _CASES:
            for check in check_formula(Formula(statement, distinct, symbolic=False), case):
                if check.ok is not True:
                    return f"does not hold: its sides differ by {check.error}"
        needs_numbers = node.op == "le" or "max(" in statement
        one = statement != text  # the numbers above are of targets that sum to one
        if not needs_numbers and not proved(statement, distinct=distinct, sums_to_one=one):
            return "is not proved in letters" + ("" if one else f" for a target of any sum (append {IF_ONE!r}?)")
    except (ValueError, KeyError, NotImplementedError) as error:
        return str(error)
    return None


def _shown(text: str, document: Any, line: int, block: bool, distinct: bool = False) -> list[nodes.Node]:
    wrong = fault(text, distinct)
    if wrong:
        place = document.settings.env.docname, line
        logging.getLogger(__name__).warning("formula %r: %s", text, wrong, location=place)
        return []
    return [nodes.raw("", mathml(parse(text.removesuffix(IF_ONE)), block=block), format="html")]


def _role(
    _name: str, _raw: str, text: str, line: int, inliner: Any, *_: Any, **__: Any
) -> tuple[list[nodes.Node], list[Any]]:
    return _shown(text, inliner.document, line, block=False), []


class FormulaDirective(Directive):
    """A block of formulas, one a line; ``:distinct:`` for those that are about i ≠ j only."""

    has_content = True
    option_spec: ClassVar = {"distinct": lambda _: True}

    def run(self) -> list[nodes.Node]:
        """The formulas, each in a line of its own."""
        distinct = "distinct" in self.options
        place = self.state.document, self.lineno
        return [node for line in self.content if line for node in _shown(line, *place, True, distinct)]


def setup(app: Any) -> dict[str, bool]:
    """Sphinx calls this."""
    app.add_role("formula", _role)
    app.add_directive("formula", FormulaDirective)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
