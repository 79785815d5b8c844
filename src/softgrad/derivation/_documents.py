"""An explanation as Markdown and as HTML, for notebooks; and the chapter of the documentation."""

from __future__ import annotations

import re
from collections.abc import Callable
from html import escape
from typing import TYPE_CHECKING, Any

import numpy as np

from softgrad.derivation._formula import Node, parse
from softgrad.derivation._languages import WORDS
from softgrad.derivation._notation import latex, mathml
from softgrad.derivation._substitute import number_text

if TYPE_CHECKING:
    from softgrad.derivation._explanation import Explanation, StepResult
    from softgrad.derivation._verify import Check

__all__ = ["chapter", "check_line", "heat", "html", "markdown", "with_formulas"]

# Blue for what is negative, orange for what is positive, as on the page: told apart by every kind of colour vision.
_NEGATIVE, _POSITIVE = (37, 99, 235), (217, 119, 6)


def heat(value: float, largest: float) -> tuple[int, int, int, float]:
    """Red, green, blue and opacity of a cell."""
    share = 0.0 if not largest or not np.isfinite(value) else min(1.0, abs(value) / largest)
    return (*(_NEGATIVE if value < 0 else _POSITIVE), round(0.75 * share, 3))


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
    """One check in words."""
    words = WORDS[lang]
    if check.ok is False:
        return f"{words['wrong']}: {check.what} ({words[check.how]} {check.error})"
    if check.how == "proved":
        return words["proved"] if check.ok else words["not-proved"]
    if check.error is None:
        return words["undefined"]
    return f"{words[check.how]} {number_text(check.error)}"


def _marked(check: Check, lang: str) -> str:
    return {True: "✓", False: "✗", None: "–"}[check.ok] + " " + check_line(check, lang)


def summarised(checks: tuple[Check, ...]) -> list[Check]:
    """The worst check of each kind: a step of four formulas says once that they are proved."""
    worst: dict[str, Check] = {}
    for check in checks:
        known = worst.get(check.how)
        order = {False: 0, True: 1, None: 2}
        if known is None or (order[check.ok], -(check.error or 0)) < (order[known.ok], -(known.error or 0)):
            worst[check.how] = check
    return list(worst.values())


def _header(e: Explanation) -> list[str]:
    words = WORDS[e.lang]
    given = [f"{words['logits']} {_list(e._case.z)}", f"{words['target']} {_list(e._case.h)}"]
    if e.label_smoothing:
        given.append(f"{words['label_smoothing']} {number_text(e.label_smoothing)}")
    if e.temperature != 1:
        given.append(f"{words['temperature']} {number_text(e.temperature)}")
    return given


def _list(values: Any) -> str:
    return "(" + ", ".join(number_text(v) for v in values) + ")"


def markdown(e: Explanation) -> str:
    """The whole derivation as Markdown with LaTeX."""
    words, part = WORDS[e.lang], ""
    lines = [f"# {words['title']}", "", "; ".join(_header(e)), ""]
    for number, step in enumerate(e.steps, 1):
        if step.part != part:
            part = step.part
            lines += [f"## {words[part]}", ""]
        lines += [f"### {number}. {step.title}", "", with_formulas(step.sentence, lambda n: f"${latex(n)}$"), ""]
        for shown in step.formulas:
            for node in (shown.general, *shown.instances):
                lines += ["$$" + latex(node) + "$$", ""]
        for node, values in step.tables:
            lines += _markdown_table(node, values)
        lines += [f"- {what}: {much}" if what else f"- {much}" for what, much in step.facts]
        lines += ["- " + _marked(check, e.lang) for check in summarised(step.checks)]
        lines.append("")
    return "\n".join(lines)


def _markdown_table(node: Node, values: Any) -> list[str]:
    rows = np.atleast_2d(values)
    head = [f"${latex(node)}$", *map(str, range(rows.shape[1]))]
    lines = ["| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
    for number, row in enumerate(rows):
        name = str(number) if values.ndim == 2 else ""
        lines.append("| " + " | ".join([name, *map(number_text, row)]) + " |")
    return [*lines, ""]


def html(e: Explanation, heading: int = 2) -> str:
    """The whole derivation as one HTML element, with MathML."""
    words = WORDS[e.lang]
    steps = [_html_step(number, step, e.lang, heading + 1) for number, step in enumerate(e.steps, 1)]
    return (
        f'<div class="softgrad-derivation" lang="{e.lang}"><h{heading}>{escape(words["title"])}</h{heading}>'
        f"<p>{escape('; '.join(_header(e)))}</p>{''.join(steps)}</div>"
    )


def _html_step(number: int, step: StepResult, lang: str, heading: int) -> str:
    formulas = "".join(
        f'<div style="overflow-x:auto;margin:.4em 0">{mathml(node, block=True)}</div>'
        for shown in step.formulas
        for node in (shown.general, *shown.instances)
    )
    tables = "".join(_html_table(node, values) for node, values in step.tables)
    facts = "".join(f"<li>{escape(f'{what}: {much}' if what else much)}</li>" for what, much in step.facts)
    checks = "".join(f"<li>{escape(_marked(check, lang))}</li>" for check in summarised(step.checks))
    sentence = with_formulas(step.sentence, mathml, escape)
    return (
        f"<section><h{heading}>{number}. {escape(step.title)}</h{heading}><p>{sentence}</p>{formulas}{tables}"
        f'<ul>{facts}</ul><ul style="list-style:none;padding-left:0;opacity:.8">{checks}</ul></section>'
    )


def _html_table(node: Node, values: Any) -> str:
    rows = np.atleast_2d(values)
    finite = np.abs(rows[np.isfinite(rows)])
    largest = float(finite.max()) if finite.size else 0.0
    head = "".join(f'<th scope="col">{i}</th>' for i in range(rows.shape[1]))
    body = ""
    for number, row in enumerate(rows):
        cells = ""
        for value in row:
            *rgb, alpha = heat(value, largest)
            colour = ",".join(map(str, rgb))
            cells += f'<td style="background:rgba({colour},{alpha});text-align:right">{number_text(value)}</td>'
        body += f'<tr><th scope="row">{number if values.ndim == 2 else ""}</th>{cells}</tr>'
    style = "display:inline-table;margin:.5em 1em .5em 0"
    return f'<table style="{style}"><tr><th>{mathml(node)}</th>{head}</tr>{body}</table>'


def chapter(lang: str = "en") -> str:
    """The derivation as a chapter: Markdown, its formulas as MathML, for the textbook example.

    Parameters
    ----------
    lang : str
        ``"en"`` or ``"zh"``.

    Returns
    -------
    str
        MyST Markdown.

    Raises
    ------
    AssertionError
        If a check fails: a wrong derivation has no chapter.
    """
    from softgrad.derivation.explain import explain

    e = explain([2.0, 1.0, 0.1], 0, lang=lang)
    if not e.ok:
        raise AssertionError(f"the derivation does not hold: {[check for check in e.checks if check.ok is False]}")
    words, part = WORDS[lang], ""
    lines = [f"# {words['title']}", "", "; ".join(_header(e)), ""]
    for number, step in enumerate(e.steps, 1):
        if step.part != part:
            part = step.part
            lines += [f"## {words[part]}", ""]
        body = _html_step(number, step, lang, 3)
        rest = body.removesuffix("</section>").partition("</h3>")[2]
        lines += [f"### {number}. {step.title}", "", rest, ""]
    return "\n".join(lines)
