"""``softgrad explain``: the derivation in the terminal, or as a page."""

from __future__ import annotations

import sys
import tempfile
import webbrowser
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from softgrad.cli.tables._output import check_output, replacing
from softgrad.cli.terminal._messages import UserError, shown
from softgrad.cli.terminal._show import print_json
from softgrad.derivation._explain import explain
from softgrad.derivation._explanation import Explanation
from softgrad.derivation._languages import WORDS
from softgrad.derivation._notation import text
from softgrad.derivation._results import StepResult
from softgrad.derivation._substitute import number_text
from softgrad.derivation._verify import Check
from softgrad.derivation._wording import check_line, heat, with_formulas

__all__ = ["show"]


def _numbers(name: str, words: list[str]) -> list[float]:
    values = []
    for i, word in enumerate(words):
        try:
            values.append(float(word.replace("−", "-")))
        except ValueError:
            raise UserError(f"--{name}: number {i} is {word!r}, not a number") from None
    return values


def show(
    logits: list[str], target: list[str], options: dict[str, Any], html: Path | None, open_page: bool, json: bool
) -> int:
    """Print the derivation, or write its page; returns the exit code, 1 if a check fails."""
    if json and (html or open_page):
        raise UserError("--json prints what --html or --open make a page of: give one of them")
    numbers = _numbers("logits", logits)
    parts = _numbers("target", target)
    if len(parts) == 1 and not parts[0].is_integer():
        raise UserError(
            f"--target is {target[0]}; a class is a whole number, a distribution has one number for each class"
        )
    wanted: Any = int(parts[0]) if len(parts) == 1 else parts
    try:
        explanation = explain(numbers, wanted, **options)
    except (TypeError, ValueError) as error:
        raise UserError(str(error)) from None
    if html or open_page:
        return _page(explanation.page(), html, open_page)
    return _machine(explanation) if json else _terminal(explanation)


def _page(page: str, html: Path | None, look: bool) -> int:
    content = page.encode()
    if html is None:
        with tempfile.NamedTemporaryFile(prefix="softgrad-", suffix=".html", delete=False) as file:
            file.write(content)
        html = Path(file.name)
    else:
        check_output(html, (".html", ".htm"), "--html")
        with replacing(html) as out:
            out.write(content)
    print(f"the derivation as a page: {shown(html)}")
    if look and not webbrowser.open(html.resolve().as_uri()):
        print("no browser could be started: open the file in one", file=sys.stderr)
    return 0


def _machine(e: Explanation) -> int:
    """Formulas are in the language of the derivation, which is Python's but for ``d(a, b)``."""
    names = ("logits", "target", "label_smoothing", "temperature", "loss", "probabilities", "gradient", "jacobian")
    steps = [
        {
            "name": step.name,
            "title": step.title,
            "sentence": step.sentence,
            "tables": {text(node): values for node, values in step.tables},
            "facts": [{"what": what, "value": value} for what, value in step.facts],
            "checks": [check._asdict() for check in step.checks],
        }
        for step in e.steps
    ]
    wrong = sum(check.ok is False for check in e.checks)
    print_json({name: getattr(e, name) for name in names} | {"steps": steps, "checks": len(e.checks), "wrong": wrong})
    return 1 if wrong else 0


def _terminal(e: Explanation) -> int:
    console = Console(highlight=False)
    words, part, checks, wrong = WORDS[e.lang], "", 0, 0
    console.print(Text(words["title"], style="bold"))
    number = 0
    steps = e.run()
    while True:
        # The proof in letters takes a moment, a second for some of the steps.
        with console.status("…") if console.is_terminal else nullcontext():
            step = next(steps, None)
        if step is None:
            break
        number += 1
        if step.part != part:
            part = step.part
            console.rule(words[part], style="dim", align="left")
        _print_step(console, number, step, e.lang)
        checks += len(step.checks)
        wrong += sum(check.ok is False for check in step.checks)
    style = "bold red" if wrong else "bold green"
    console.print(Text("\n" + words["summary"].format(checks=checks, wrong=wrong), style=style))
    return 1 if wrong else 0


def _print_step(console: Console, number: int, step: StepResult, lang: str) -> None:
    soft = not console.is_terminal  # what is piped is not broken into lines
    console.print()
    console.print(Text(f"{number}. {step.title}", style="bold"), soft_wrap=soft)
    console.print(Text(with_formulas(step.sentence, text)), soft_wrap=soft)
    for shown_formula in step.formulas:
        _indented(console, Text(text(shown_formula.general), style="bold cyan"), 2, soft)
        for node in shown_formula.instances:
            _indented(console, Text(text(node)), 4, soft)
        _print_checks(console, shown_formula.checks, lang, 4, soft)
    for node, values in step.tables:
        console.print(Padding(_table(text(node), values), (0, 0, 0, 2)))
    for what, much in step.facts:
        _indented(console, Text(f"{what}: {much}" if what else much), 2, soft)
    _print_checks(console, step.against, lang, 2, soft)


def _print_checks(console: Console, checks: tuple[Check, ...], lang: str, by: int, soft: bool) -> None:
    for check in checks:
        style = {True: "green", False: "bold red", None: "yellow"}[check.ok]
        _indented(console, Text(check_line(check, lang), style=style), by, soft)


def _indented(console: Console, line: Text, by: int, soft: bool) -> None:
    if soft:
        console.print(Text(" " * by).append_text(line), soft_wrap=True)
    else:
        console.print(Padding(line, (0, 0, 0, by)))


def _table(name: str, values: Any) -> Table:
    """A vector or matrix; the deeper the colour the larger, orange for positive and blue for negative."""
    rows = heat(values)
    table = Table(name, *(str(i).rjust(9) for i in range(len(rows[0]))), box=None, pad_edge=False, header_style="dim")
    for number, row in enumerate(rows):
        cells = []
        for value, colour, much in row:
            ground = [round(30 + (channel - 30) * much) for channel in colour]
            cells.append(Text(number_text(value).rjust(9), style=f"white on rgb({ground[0]},{ground[1]},{ground[2]})"))
        table.add_row(Text(str(number) if values.ndim == 2 else "", style="dim"), *cells)
    return table
