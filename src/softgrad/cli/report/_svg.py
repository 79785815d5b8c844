"""A matplotlib figure as a part of the page: SVG that takes its colours from the page's style.

A figure is drawn with the stand-ins of ``COLOURS``; in the page each becomes a variable of the style sheet, so that one
picture serves light, dark and paper.  Styles become attributes, which the Content-Security-Policy lets pass.
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from markupsafe import Markup
from matplotlib import style
from matplotlib.figure import Figure

__all__ = ["COLOURS", "drawing", "inline"]

COLOURS = {"ink": "#010001", "soft": "#020001", "line": "#030001", "minus": "#040001", "plus": "#050001"}
_SETTINGS: dict[str, Any] = {
    "svg.fonttype": "none",  # text stays text
    "svg.hashsalt": "softgrad",  # the same figure, the same bytes
    "svg.image_inline": True,
    "font.family": "DejaVu Sans",
    "font.size": 11.0,
    "axes.edgecolor": COLOURS["line"],
    "axes.labelcolor": COLOURS["soft"],
    "axes.linewidth": 1.0,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.unicode_minus": True,
    "axes.formatter.use_mathtext": False,
    "grid.color": COLOURS["line"],
    "grid.linewidth": 0.7,
    "xtick.color": COLOURS["line"],
    "ytick.color": COLOURS["line"],
    "xtick.labelcolor": COLOURS["soft"],
    "ytick.labelcolor": COLOURS["soft"],
    "xtick.minor.visible": False,
    "ytick.minor.visible": False,
    "text.color": COLOURS["ink"],
    "text.parse_math": False,  # a label of $x$ is that label
    "legend.frameon": False,
    "lines.linewidth": 2.0,
    "lines.markersize": 4.5,
    "path.simplify": True,
}


@contextmanager
def drawing() -> Iterator[None]:
    """Draw as the report needs it, whatever the user has set for matplotlib; that is back afterwards."""
    with style.context(["default", _SETTINGS]):
        yield


def inline(figure: Figure, name: str, label: str) -> Markup:
    """The figure as an ``<svg>`` element for HTML.

    Parameters
    ----------
    figure : Figure
        Drawn within :func:`drawing`; a unit of its size is an inch of 72 px.
    name : str
        Different for each picture of the page: it begins every id.
    label : str
        What a screen reader says of it.

    Returns
    -------
    Markup
    """
    file = io.StringIO()
    figure.savefig(file, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    found = file.getvalue()
    found = found[found.index("<svg") :]
    box = re.search(r'viewBox="([^"]*)"', found)
    assert box
    body = found[found.index(">", box.end()) + 1 : found.rindex("</svg>")]
    body = re.sub(r"<metadata>.*?</metadata>|<style.*?</style>|<!--.*?-->", "", body, flags=re.DOTALL)
    body = re.sub(r'style="([^"]*)"', lambda m: _attributes(m[1]), body)
    body = re.sub(r' id="', f' id="{name}-', body)
    body = body.replace("url(#", f"url(#{name}-").replace('xlink:href="#', f'xlink:href="#{name}-')
    body = re.sub(r' transform="rotate\(-?0 [^"]*\)"', "", body)
    for variable, stand_in in COLOURS.items():
        body = body.replace(stand_in, f"var(--{variable})")
    body = re.sub(r"\s*\n\s*", "\n", body)
    return Markup('<svg class="picture" viewBox="{}" role="img" aria-label="{}">{}</svg>').format(
        box[1],
        label,
        Markup(body),  # noqa: S704 - matplotlib has escaped the text in it
    )


def _attributes(declarations: str) -> str:
    """``fill: none; stroke: red`` as attributes; the font's family is the page's."""
    pairs = (part.split(":", 1) for part in declarations.split(";") if ":" in part)
    found = {key.strip(): value.strip() for key, value in pairs}
    short = re.search(r"([\d.]+px)", found.pop("font", ""))
    if short:  # how older versions of matplotlib write it
        found["font-size"] = short[1]
    found.pop("font-family", None)
    return " ".join(f'{key}="{value}"' for key, value in found.items())
