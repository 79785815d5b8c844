"""Numbers and users' strings as the report shows them: honest digits, and no character that could break the page."""

from __future__ import annotations

import math
from typing import Any

__all__ = ["cut", "exact", "number", "percent", "rows", "text", "times"]

_MOST = 4000  # characters of one string that are shown at all


def text(value: Any) -> str:
    """Any value as text: what HTML cannot hold (control characters, half surrogates) as a sign that it can."""
    found = str(value).encode("utf-8", "backslashreplace").decode()
    found = "".join(_sign(c) for c in found[: _MOST + 1])
    return found if len(found) <= _MOST else found[:_MOST] + "…"


def cut(value: Any, most: int = 60) -> str:
    """A value as one line of at most so many characters; an empty or blank one in quotation marks."""
    line = " ".join(text(value).replace("\n", " ⏎ ").replace("\t", " ").split(" ")).strip()
    if not line:
        return f"“{text(value)}”"
    return line if len(line) <= most else line[: most - 1].rstrip() + "…"


def _sign(c: str) -> str:
    code = ord(c)
    if code < 32 and c not in "\n\t":
        return chr(0x2400 + code)
    return "␡" if 127 <= code < 160 else c


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
