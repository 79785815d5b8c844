"""What the commands say on standard error: one line each."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from difflib import get_close_matches
from os import PathLike


class UserError(Exception):
    """A user's mistake: its message is the one line they see."""


def one_line(text: object) -> str:
    """Any text as one printable line."""
    return " ".join(str(text).encode("utf-8", "backslashreplace").decode().split())


def shown(path: str | PathLike[str]) -> str:
    """A path as one printable line, whatever bytes it holds."""
    return one_line(path)


def error(text: object) -> None:
    """Print an error."""
    print(f"softgrad: error: {one_line(text)}", file=sys.stderr)


def warning(text: object) -> None:
    """Print a warning."""
    print(f"softgrad: warning: {one_line(text)}", file=sys.stderr)


@contextmanager
def plain_warnings() -> Iterator[None]:
    """Print each distinct Python warning of the block as one line; none if the block fails, for its error says it."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("default")
        yield
    for text in dict.fromkeys(one_line(item.message) for item in caught):
        warning(text)


def names(values: list[str], most: int = 8) -> str:
    """A list of names for a message, cut short when long."""
    listed = ", ".join(repr(value) for value in values[:most])
    return listed if len(values) <= most else f"{listed} and {len(values) - most} more"


def suggestion(wrong: str, known: list[str]) -> str:
    """``; did you mean …?`` when a known name is close."""
    close = get_close_matches(wrong, known, n=1)
    return f"; did you mean {close[0]!r}?" if close else ""
