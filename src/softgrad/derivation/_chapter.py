"""The chapter of the documentation."""

from __future__ import annotations

from softgrad.derivation._documents import html_step, in_parts
from softgrad.derivation._explain import explain
from softgrad.derivation._languages import WORDS

__all__ = ["chapter"]


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
    e = explain([2.0, 1.0, 0.1], 0, lang=lang)
    if not e.ok:
        raise AssertionError(f"the derivation does not hold: {[check for check in e.checks if check.ok is False]}")
    lines = [f"# {WORDS[lang]['title']}", "", e.given, ""]
    for part, number, step in in_parts(e.steps, lang):
        lines += [f"## {part}", ""] if part else []
        lines += [f"### {number}. {step.title}", "", html_step(step, lang), ""]
    return "\n".join(lines)
