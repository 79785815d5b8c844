"""The interactive page of the derivation: one HTML file that needs nothing else.

Python renders the text of both languages and every general formula, so that the page reads and prints without its
script; the script gets the same formulas as trees, and computes and fills them with the reader's numbers.
"""

from __future__ import annotations

import json
import math
import re
from base64 import b64encode
from hashlib import sha256
from html import escape
from importlib.resources import files
from string import Template
from typing import Any

from softgrad.derivation._case import Case
from softgrad.derivation._evaluate import DEFINITIONS
from softgrad.derivation._formula import RANGES, Node, equal_sides, parse, to_json
from softgrad.derivation._languages import LANGUAGES, TEXTS, WORDS
from softgrad.derivation._notation import mathml
from softgrad.derivation._steps import STEPS, Step
from softgrad.derivation._training import TRAINING
from softgrad.derivation._wording import with_formulas

__all__ = ["page"]

_SCRIPTS = ("formulas", "numbers", "figures", "lessons")


def page(case: Case, lang: str) -> str:
    """The derivation as one self-contained HTML page, with these numbers to begin with.

    Parameters
    ----------
    case : Case
        The numbers, checked.
    lang : str
        ``"en"`` or ``"zh"``; the reader can switch.

    Returns
    -------
    str
        HTML.  It asks nothing of any network, which its Content-Security-Policy also forbids.
    """
    words = json.loads(_part("words.json"))
    for key in ("title", "derivation", "beyond"):
        words[key] = [WORDS[language][key] for language in LANGUAGES]
    style = _part("page.css")
    script = '(() => {\n"use strict";\n' + "\n".join(_part(f"{name}.js") for name in _SCRIPTS) + "})();\n"
    html = Template(_part("page.html")).substitute(
        lang=lang,
        title=escape(WORDS[lang]["title"]),
        heading=_both(words["title"]),
        steps=_steps(),
        data=json.dumps(_data(_start(case) | {"lang": lang}, words), ensure_ascii=False, separators=(",", ":")).replace(
            "<", r"\u003c"
        ),
        style=style,
        style_hash=_hash(style),
        script=script,
        script_hash=_hash(script),
    )
    place = list(LANGUAGES).index(lang)
    html = re.sub(r'data-t="([^"]+)"[^>]*>', lambda m: m[0] + escape(words[m[1]][place]), html)
    return re.sub(r'data-l="([^"]+)"', lambda m: f'{m[0]} aria-label="{escape(words[m[1]][place])}"', html)


def _start(case: Case) -> dict[str, Any]:
    logits = [value if math.isfinite(value) else "-inf" for value in case.z.tolist()]
    target = case.h.tolist() if case.label is None else case.label
    return {"z": logits, "t": target, "e": case.label_smoothing, "T": case.temperature}


def _data(start: dict[str, Any], words: dict[str, list[str]]) -> dict[str, Any]:
    by_name = {step.name: step for step in STEPS}
    return {
        "start": start,
        "words": words,
        "definitions": {name: [indices, to_json(tree)] for name, (indices, tree) in DEFINITIONS.items()},
        "steps": [
            {
                "formulas": [{"tree": to_json(parse(f.text)), "distinct": f.distinct} for f in step.formulas],
                "tables": [to_json(parse(name)) for name in step.tables],
            }
            for step in STEPS
        ],
        "ranges": RANGES,
        "cells": [to_json(parse(by_name[name].formulas[0].text)) for name in ("diagonal", "off-diagonal")],
        "points": TRAINING,
        "constants": {"learning_rate": Case.learning_rate, "z_loss": Case.z_loss},
    }


def _steps() -> str:
    parts = []
    for part in ("derivation", "beyond"):
        steps = "".join(_step(k, step) for k, step in enumerate(STEPS) if step.part == part)
        parts.append(f'<section><h2 data-t="{part}"></h2>\n{steps}</section>\n')
    return "".join(parts)


def _step(k: int, step: Step) -> str:
    titles = [escape(TEXTS[language][step.name][0]) for language in LANGUAGES]
    sentences = [with_formulas(TEXTS[language][step.name][1], mathml, escape) for language in LANGUAGES]
    formulas = "".join(
        f'<div class="formula" data-formula="{k} {m}"><div>{_chain(parse(formula.text))}</div></div>\n'
        for m, formula in enumerate(step.formulas)
    )
    return (
        f'<article class="step" id="step-{step.name}">\n<h3>{_both(titles, escaped=True)}</h3>\n'
        f"<p>{_both(sentences, escaped=True)}</p>\n{formulas}</article>\n"
    )


def _both(texts: list[str], *, escaped: bool = False) -> str:
    """A text in every language; the style shows one of them."""
    shown = zip(LANGUAGES, texts, strict=True)
    return "".join(f'<span lang="{language}">{text if escaped else escape(text)}</span>' for language, text in shown)


def _chain(node: Node) -> str:
    """A chain of equations as one element for each side, so that lines break between them."""
    sides = [mathml(side) for side in equal_sides(node)]
    first, *rest = (re.sub(r"^<math ([^>]*)>(.*)</math>$", r'<math \1 displaystyle="true">\2</math>', s) for s in sides)
    return " ".join([first, *(re.sub(r">(.*)</math>$", r"><mrow><mo>=</mo>\1</mrow></math>", s) for s in rest)])


def _part(name: str) -> str:
    return (files("softgrad.derivation") / "_page_files" / name).read_text(encoding="utf-8")


def _hash(text: str) -> str:
    return "sha256-" + b64encode(sha256(text.encode()).digest()).decode()
