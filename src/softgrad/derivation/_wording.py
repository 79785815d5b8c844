"""What every output of an explanation says alike: formulas within sentences, checks in words, colours of cells."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from softgrad.derivation._formula import Node, parse
from softgrad.derivation._languages import WORDS
from softgrad.derivation._notation import text
from softgrad.derivation._substitute import number_text

if TYPE_CHECKING:
    from softgrad.derivation._case import Case
    from softgrad.derivation._verify import Check

__all__ = ["check_line", "given", "heat", "parse_inline", "with_formulas"]

# Blue for what is negative, orange for what is positive, as on the page: told apart by every kind of colour vision.
_NEGATIVE, _POSITIVE = (37, 99, 235), (217, 119, 6)
_MARKS = {True: "✓", False: "✗", None: "–"}


def with_formulas(sentence: str, show: Callable[[Node], str], escaped: Callable[[str], str] = str) -> str:
    """A sentence with its formulas, which stand between backticks, shown by a notation."""
    parts = re.split(r"`([^`]*)`", sentence)
    return "".join(show(parse_inline(part)) if n % 2 else escaped(part) for n, part in enumerate(parts))


def parse_inline(text: str) -> Node:
    """As `parse`; ``i = j`` and ``i ≠ j`` are allowed, as conditions are written."""
    for sign in (" ≠ ", " = "):
        if sign in text and "==" not in text:
            left, right = text.split(sign)
            return Node("eq" if sign == " = " else "ne", (parse(left), parse(right)))
    return parse(text)


def check_line(check: Check, lang: str) -> str:
    """One check in words, behind its mark."""
    words, what = WORDS[lang], text(parse(check.what))
    how = words[check.how].format(what=what)
    if check.ok is False:
        said = f"{words['wrong']}: {what} ({how}{'' if check.error is None else f' {number_text(check.error)}'})"
    elif check.how == "proved":
        said = how if check.ok else words["not-proved"]
    else:
        said = words["undefined"] if check.error is None else f"{how} {number_text(check.error)}"
    return f"{_MARKS[check.ok]} {said}"


def given(case: Case, lang: str) -> str:
    """The reader's numbers on one line."""
    words = WORDS[lang]
    parts = [f"{words['logits']} {_list(case.z)}", f"{words['target']} {_list(case.h)}"]
    if case.label_smoothing:
        parts.append(f"{words['label_smoothing']} {number_text(case.label_smoothing)}")
    if case.temperature != 1:
        parts.append(f"{words['temperature']} {number_text(case.temperature)}")
    return "; ".join(parts)


def _list(values: Any) -> str:
    return "(" + ", ".join(number_text(v) for v in values) + ")"


def heat(values: Any) -> list[list[tuple[float, tuple[int, int, int], float]]]:
    """The rows of a vector or matrix: each value with its colour, and how much of it, from 0 to 0.75."""
    rows = np.atleast_2d(values)
    largest = np.abs(rows[np.isfinite(rows)]).max(initial=0.0) or 1.0
    return [
        [
            (
                float(v),
                _NEGATIVE if v < 0 else _POSITIVE,
                round(0.75 * min(abs(v) / largest, 1.0), 3) if np.isfinite(v) else 0.0,
            )
            for v in row
        ]
        for row in rows
    ]
