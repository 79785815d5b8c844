"""The report of ``softgrad fit --report``: one HTML file that needs nothing else.

The page asks nothing of any network, which its Content-Security-Policy also forbids.  What comes from the data (labels,
names, cells) goes through Jinja's escaping and stands as text.  The same Training gives the same bytes.
"""

from __future__ import annotations

import base64
import hashlib
import pathlib
from collections import Counter
from functools import cache
from importlib.resources import files
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from softgrad.cli.report import _wording as shown
from softgrad.cli.tables._output import replacing
from softgrad.cli.terminal._results import Training

if TYPE_CHECKING:
    import jinja2

__all__ = ["render", "write"]

_CUTS = {
    "classes": 400,
    "pairs": 12,
    "all_pairs": 200,
    "columns": 300,
    "open_columns": 24,
    "mistakes": 50,
    "open_mistakes": 6,
}


def write(training: Training, path: pathlib.Path) -> None:
    """Write the report of a fit, whole or not at all.

    Parameters
    ----------
    training : Training
    path : Path

    Raises
    ------
    UserError
        If the file cannot be written.
    """
    page = render(training).encode()
    with replacing(path) as file:
        file.write(page)


def render(training: Training) -> str:
    """The report of a fit as HTML.

    Parameters
    ----------
    training : Training

    Returns
    -------
    str
    """
    style, script = _part("report.css"), _part("report.js")
    template = _environment().get_template("report.html.jinja")
    return template.render(
        style=style, style_hash=_hash(style), script=script, script_hash=_hash(script), **_view(training)
    )


@cache
def _environment() -> jinja2.Environment:
    """Jinja with the templates, which it compiles once."""
    import jinja2

    environment = jinja2.Environment(
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        loader=jinja2.FunctionLoader(_part),
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {name: getattr(shown, name) for name in ("cut", "exact", "number", "percent", "times")}
    environment.filters |= {"as_rows": shown.rows, "as_text": shown.text}
    return environment


def _view(training: Training) -> dict[str, Any]:
    """All that the templates need."""
    from softgrad.cli.report import _facts as facts
    from softgrad.cli.report import _pictures as pictures
    from softgrad.cli.report._confusion import confusion_matrix
    from softgrad.cli.report._weights import OPEN_CARDS, largest_of, weights

    last = training.evaluations[-1] if training.evaluations else None
    return {
        "t": training,
        "last": last,
        "held_out": facts.held_out(training),
        "figures": facts.figures(training),
        "warnings": facts.warnings(training),
        "matrix": confusion_matrix(last, training.classes) if last is not None else None,
        "reliability": pictures.reliability_diagram(last.reliability, training.uncalibrated)
        if last is not None
        else "",
        "curve": pictures.learning_curve(training.history, facts.option(training, "tol"))
        if len(training.history)
        else "",
        "path": pictures.path_curve(training.path) if training.path is not None else "",
        "edges": _edges(training.history["gap"]),
        "path_table": _path_table(training),
        "weights": weights(training),
        "largest_of": largest_of,
        "per_class": _per_class(training),
        "kinds": Counter(column.role for column in training.columns).most_common(),
        "cuts": _CUTS | {"cards": OPEN_CARDS},
    }


def _edges(gap: NDArray[np.float64]) -> str:
    """What the triangles of the learning curve stand for, if there are any."""
    signs = {"no bound yet": gap == np.inf, "zero": gap <= 0}
    return " or ".join(words for words, there in signs.items() if there.any())


def _per_class(training: Training) -> list[tuple[int, Any]]:
    """Number and label of the classes of the table: all, or those with the lowest F1 if they are very many."""
    numbers = list(range(len(training.classes)))
    if len(numbers) > _CUTS["classes"] and training.evaluations:
        f1 = np.nan_to_num(training.evaluations[-1].f1, nan=2.0)
        numbers = sorted(np.argsort(f1, kind="stable")[: _CUTS["classes"]].tolist())
    return [(k, training.classes[k]) for k in numbers[: _CUTS["classes"]]]


def _path_table(training: Training) -> list[tuple[float, ...]]:
    if training.path is None:
        return []
    from softgrad.cli.report._pictures import fold_means

    mean, spread = fold_means(training.path)
    return [
        tuple(map(float, row))
        for row in zip(training.path.Cs, mean, spread, training.path.norms, training.path.gaps, strict=True)
    ]


def _part(name: str) -> str:
    return (files("softgrad.cli.report") / "_files" / name).read_text(encoding="utf-8")


def _hash(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
