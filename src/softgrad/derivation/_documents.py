"""The steps of an explanation as Markdown and as HTML, for notebooks and for the documentation."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from html import escape
from typing import Any

from softgrad.derivation._formula import Node
from softgrad.derivation._languages import WORDS
from softgrad.derivation._notation import latex, mathml
from softgrad.derivation._results import StepResult
from softgrad.derivation._substitute import number_text
from softgrad.derivation._verify import Check
from softgrad.derivation._wording import check_line, heat, with_formulas

__all__ = ["html", "html_step", "in_parts", "markdown"]


def in_parts(steps: Iterable[StepResult], lang: str) -> Iterator[tuple[str, int, StepResult]]:
    """The steps with their numbers, and the title of a part before its first step."""
    part = ""
    for number, step in enumerate(steps, 1):
        yield ("" if step.part == part else WORDS[lang][step.part]), number, step
        part = step.part


def markdown(steps: Iterable[StepResult], given: str, lang: str) -> str:
    """The whole derivation as Markdown with LaTeX."""
    lines = [f"# {WORDS[lang]['title']}", "", given, ""]
    for part, number, step in in_parts(steps, lang):
        lines += [f"## {part}", ""] if part else []
        lines += [f"### {number}. {step.title}", "", with_formulas(step.sentence, lambda n: f"${latex(n)}$"), ""]
        for shown in step.formulas:
            for node in (shown.general, *shown.instances):
                lines += ["$$" + latex(node) + "$$", ""]
            lines += [*(f"- {check_line(check, lang)}" for check in shown.checks), ""]
        for node, values in step.tables:
            lines += _markdown_table(node, values)
        lines += [f"- {what}: {much}" if what else f"- {much}" for what, much in step.facts]
        lines += [*(f"- {check_line(check, lang)}" for check in step.against), ""]
    return "\n".join(lines)


def _markdown_table(node: Node, values: Any) -> list[str]:
    rows = heat(values)
    head = [f"${latex(node)}$", *map(str, range(len(rows[0])))]
    lines = ["| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
    for number, row in enumerate(rows):
        name = str(number) if values.ndim == 2 else ""
        lines.append("| " + " | ".join([name, *(number_text(value) for value, _, _ in row)]) + " |")
    return [*lines, ""]


def html(steps: Iterable[StepResult], given: str, lang: str) -> str:
    """The whole derivation as one HTML element, with MathML."""
    sections = "".join(
        f"<section><h3>{number}. {escape(step.title)}</h3>{html_step(step, lang)}</section>"
        for number, step in enumerate(steps, 1)
    )
    title = escape(WORDS[lang]["title"])
    return f'<div class="softgrad-derivation" lang="{lang}"><h2>{title}</h2><p>{escape(given)}</p>{sections}</div>'


def html_step(step: StepResult, lang: str) -> str:
    """One step, without its title."""
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
