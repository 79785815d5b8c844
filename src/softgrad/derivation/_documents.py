"""An explanation as Markdown and as HTML, for notebooks; and the chapter of the documentation."""

from __future__ import annotations

from collections.abc import Iterator
from html import escape
from typing import TYPE_CHECKING, Any

from softgrad.derivation._formula import Node
from softgrad.derivation._languages import WORDS
from softgrad.derivation._notation import latex, mathml
from softgrad.derivation._substitute import number_text
from softgrad.derivation._wording import check_line, heat, with_formulas

if TYPE_CHECKING:
    from softgrad.derivation._explanation import Explanation, StepResult
    from softgrad.derivation._verify import Check

__all__ = ["chapter", "html", "markdown"]


def _in_parts(e: Explanation) -> Iterator[tuple[str, int, StepResult]]:
    """The steps with their numbers, and the title of a part before its first step."""
    part = ""
    for number, step in enumerate(e.steps, 1):
        yield ("" if step.part == part else WORDS[e.lang][step.part]), number, step
        part = step.part


def markdown(e: Explanation) -> str:
    """The whole derivation as Markdown with LaTeX."""
    lines = [f"# {WORDS[e.lang]['title']}", "", e.given, ""]
    for part, number, step in _in_parts(e):
        lines += [f"## {part}", ""] if part else []
        lines += [f"### {number}. {step.title}", "", with_formulas(step.sentence, lambda n: f"${latex(n)}$"), ""]
        for shown in step.formulas:
            for node in (shown.general, *shown.instances):
                lines += ["$$" + latex(node) + "$$", ""]
            lines += [*(f"- {check_line(check, e.lang)}" for check in shown.checks), ""]
        for node, values in step.tables:
            lines += _markdown_table(node, values)
        lines += [f"- {what}: {much}" if what else f"- {much}" for what, much in step.facts]
        lines += [*(f"- {check_line(check, e.lang)}" for check in step.against), ""]
    return "\n".join(lines)


def _markdown_table(node: Node, values: Any) -> list[str]:
    rows = heat(values)
    head = [f"${latex(node)}$", *map(str, range(len(rows[0])))]
    lines = ["| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
    for number, row in enumerate(rows):
        name = str(number) if values.ndim == 2 else ""
        lines.append("| " + " | ".join([name, *(number_text(value) for value, _, _ in row)]) + " |")
    return [*lines, ""]


def html(e: Explanation) -> str:
    """The whole derivation as one HTML element, with MathML."""
    steps = "".join(
        f"<section><h3>{number}. {escape(step.title)}</h3>{_html_step(step, e.lang)}</section>"
        for number, step in enumerate(e.steps, 1)
    )
    title = escape(WORDS[e.lang]["title"])
    return f'<div class="softgrad-derivation" lang="{e.lang}"><h2>{title}</h2><p>{escape(e.given)}</p>{steps}</div>'


def _html_step(step: StepResult, lang: str) -> str:
    formulas = ""
    for shown in step.formulas:
        for node in (shown.general, *shown.instances):
            formulas += f'<div style="overflow-x:auto;margin:.4em 0">{mathml(node, block=True)}</div>'
        formulas += _html_checks(shown.checks, lang)
    tables = "".join(_html_table(node, values) for node, values in step.tables)
    facts = "".join(f"<li>{escape(f'{what}: {much}' if what else much)}</li>" for what, much in step.facts)
    facts = f"<ul>{facts}</ul>" if facts else ""
    return (
        f"<p>{with_formulas(step.sentence, mathml, escape)}</p>{formulas}{tables}{facts}"
        f"{_html_checks(step.against, lang)}"
    )


def _html_checks(checks: tuple[Check, ...], lang: str) -> str:
    lines = "".join(f"<li>{escape(check_line(check, lang))}</li>" for check in checks)
    return f'<ul style="list-style:none;padding-left:0;margin:.2em 0 .8em;opacity:.8;font-size:.9em">{lines}</ul>'


def _html_table(node: Node, values: Any) -> str:
    rows = heat(values)
    head = "".join(f'<th scope="col">{i}</th>' for i in range(len(rows[0])))
    body = ""
    for number, row in enumerate(rows):
        cells = ""
        for value, colour, much in row:
            ground = f"rgba({','.join(map(str, colour))},{much})"
            cells += f'<td style="background:{ground};text-align:right">{number_text(value)}</td>'
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
    lines = [f"# {WORDS[lang]['title']}", "", e.given, ""]
    for part, number, step in _in_parts(e):
        lines += [f"## {part}", ""] if part else []
        lines += [f"### {number}. {step.title}", "", _html_step(step, lang), ""]
    return "\n".join(lines)
