"""Numbers and users' strings as the report shows them: honest digits, and no character that could break the page."""

from __future__ import annotations

import math
import unicodedata
from typing import Any

__all__ = ["cut", "exact", "number", "percent", "rows", "text", "times"]

_MOST = 4000  # characters of one string that are shown at all


def text(value: Any) -> str:
    r"""Any value as text: what would not show, or would turn the text around it, as an escape like ``\x1b``.

    These are control characters, the marks that force a direction (one left open would reach beyond its element) and
    halves of surrogate pairs, which UTF-8 cannot hold.
    """
    found = "".join(map(_plain, str(value)[: _MOST + 1]))
    return found if len(found) <= _MOST else found[:_MOST] + "…"


def cut(value: Any, most: int = 60) -> str:
    """A value as one line of at most so many characters; an empty or blank one in quotation marks."""
    line = " ".join(text(value).replace("\n", " ⏎ ").replace("\t", " ").split(" ")).strip()
    if not any(c.isprintable() and not c.isspace() for c in line):
        hidden = text(value)[:most]
        return f"“{''.join(c if c.isprintable() else c.encode('unicode_escape').decode() for c in hidden)}”"
    return line if len(line) <= most else line[: most - 1].rstrip() + "…"


def _plain(c: str) -> str:
    if c in "\n\t":
        return c
    hidden = unicodedata.category(c) in ("Cc", "Cs") or unicodedata.bidirectional(c) in _DIRECTIONS
    return c.encode("unicode_escape", "backslashreplace").decode() if hidden else c


_DIRECTIONS = {"LRE", "RLE", "LRO", "RLO", "PDF", "LRI", "RLI", "FSI", "PDI"}


def number(value: float, digits: int = 4) -> str:
    """Significant digits, with a true minus sign; – where there is no number."""
    if math.isnan(value):
        return "–"
    if math.isinf(value):
        return "∞" if value > 0 else "−∞"
    shown = f"{value:.{digits}g}"
    if "e" not in shown and abs(value) < 10**digits:
        shown = f"{value:#.{digits}g}".rstrip(".")  # 0.1050, not 0.105: the zero is a measured digit
    return shown.replace("-", "−")


def percent(value: float, rows: float = 1000) -> str:
    """A part of the whole; two decimals only where there are rows enough to tell them apart."""
    return "–" if math.isnan(value) else f"{100 * value:.{2 if rows >= 10_000 else 1}f} %"


def rows(value: float) -> str:
    """A number of rows, or a sum of their weights."""
    if math.isnan(value):
        return "–"
    return f"{value:,.0f}" if float(value).is_integer() else f"{value:,.4g}"


def times(seconds: float) -> str:
    """A duration."""
    if not math.isfinite(seconds):
        return number(seconds)
    if seconds < 1:
        return f"{1000 * seconds:.3g} ms"
    if seconds < 100:
        return f"{seconds:.3g} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s"


def exact(value: Any) -> str:
    """The number itself, all its digits, for the sorting of a table and for whoever reads the page by program."""
    return repr(float(value))
