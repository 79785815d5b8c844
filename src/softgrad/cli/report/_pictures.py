"""The pictures of the report that matplotlib draws: curves, the reliability diagram, and images of a matrix."""

from __future__ import annotations

import base64
import io
import warnings
from typing import Any

import numpy as np
from markupsafe import Markup
from matplotlib import image
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator, NullLocator
from numpy.typing import NDArray

from softgrad.cli.report._svg import COLOURS, drawing, inline
from softgrad.cli.report._wording import number, percent, times
from softgrad.cli.terminal._results import RegularisationPath, Reliability

Float = NDArray[np.float64]

__all__ = ["confusion_image", "learning_curve", "path_curve", "reliability_diagram", "weight_image"]

_INK, _SOFT, _LINE, _BLUE, _ORANGE = (COLOURS[k] for k in ("ink", "soft", "line", "minus", "plus"))
# Seen on white and on black: an image is the same in both, its strength is its opacity.
_BLUE_RGB, _ORANGE_RGB = (0x2F / 255, 0x7E / 255, 0xCB / 255), (0xD9 / 255, 0x73 / 255, 0x0D / 255)

_WIDTH = 350  # small, so that its letters can be read on a phone


def _panels(height: float, rows: int = 1, ratios: tuple[float, ...] = (1,)) -> tuple[Figure, list[Axes]]:
    figure = Figure(figsize=(_WIDTH / 72, height / 72))
    grid = figure.subplots(rows, 1, sharex=True, squeeze=False, height_ratios=ratios)
    figure.subplots_adjust(left=0.18, right=0.965, top=1 - 26 / height, bottom=42 / height, hspace=0.16)
    for ax in grid[:, 0]:
        ax.grid(axis="y")
        ax.set_axisbelow(True)
    return figure, list(grid[:, 0])


def _log(axis: Any) -> None:
    """Decades as 10⁻³ in plain text, which needs no mathematics from matplotlib; between them only where few are."""
    low, high = sorted(axis.get_view_interval())
    over = high / max(low, 1e-300)
    decades = LogLocator(subs=(1, 2, 5) if over < 60 else (1,), numticks=5)
    axis.set_major_locator(MaxNLocator(4) if over < 8 else decades)
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(_power)


_RAISED = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


def _power(value: float, _: Any = None) -> str:
    if value <= 0:  # a locator's tick beyond the edge
        return ""
    if 0.01 <= value < 100_000:
        return f"{value:.4g}"
    exponent = int(np.floor(np.log10(value) + 1e-9))
    lead = value / 10.0**exponent
    return ("" if abs(lead - 1) < 1e-6 else f"{lead:.3g}·") + "10" + str(exponent).translate(_RAISED)


def learning_curve(history: NDArray[Any], tol: float | None) -> Markup:
    """Objective and certified gap of each iteration, both on logarithmic scales; seconds along the top."""
    steps, objective, gap = (np.asarray(history[k], dtype=np.float64) for k in ("iteration", "objective", "gap"))
    with drawing():
        figure, (top, bottom) = _panels(290, 2, (1, 1.2))
        good = np.isfinite(objective) & (objective > 0)
        top.plot(steps[good], objective[good], color=_BLUE, marker="o" if len(steps) < 40 else None)
        top.set_yscale("log")
        top.set_ylabel("objective")
        bottom.set_ylabel("certified gap")
        bottom.set_xlabel("iteration")
        _gap(bottom, steps, gap, tol)
        for ax in (top, bottom):
            _log(ax.yaxis)
        top.xaxis.set_major_locator(MaxNLocator(6, integer=True, min_n_ticks=1))
        if len(steps) > 1:
            _seconds(top, steps, np.asarray(history["seconds"], dtype=np.float64))
        last = f"objective {number(objective[-1], 6)} and certified gap {number(gap[-1], 2)}"
        return inline(
            figure,
            "curve",
            f"Objective and certified gap against the iteration: after {len(steps)} iterations, {last}.",
        )


def _gap(ax: Axes, steps: Float, gap: Float, tol: float | None) -> None:
    """The gap; a triangle at the top where there is no bound yet, at the bottom where it is zero."""
    ax.set_yscale("log")
    known = np.isfinite(gap) & (gap > 0)
    drawn = [*gap[known], *([tol] if tol else [])]
    if not drawn or np.isnan(gap).all():
        ax.set_yticks([])
        ax.text(0.5, 0.5, "no certificate without a penalty" if np.isnan(gap).all() else "no bound yet",
                transform=ax.transAxes, ha="center", va="center", color=_SOFT)  # fmt: skip
        ax.set_ylim(0.1, 1)
        return
    low, high = min(drawn) / 4, max(drawn) * 4
    ax.set_ylim(low, high)
    ax.plot(steps[known], gap[known], color=_ORANGE, marker="o" if len(steps) < 40 else None)
    for where, height, sign in ((gap == np.inf, high / 1.6, "^"), (gap <= 0, low * 1.6, "v")):
        if where.any():
            ax.plot(steps[where], np.full(where.sum(), height), sign, color=_ORANGE, markerfacecolor="none")
    if tol:
        ax.axhline(tol, color=_SOFT, linestyle=(0, (4, 3)), linewidth=1.2)
        ax.annotate("tol", (0, tol), xycoords=("axes fraction", "data"), xytext=(3, 3), textcoords="offset points",
                    color=_SOFT, fontsize=10.5)  # fmt: skip


def _seconds(ax: Axes, steps: Float, seconds: Float) -> None:
    above = ax.twiny()
    above.set_xlim(ax.get_xlim())
    places = np.unique(np.linspace(0, len(steps) - 1, 5).round().astype(int))
    above.set_xticks(steps[places], [times(seconds[k]) for k in places])
    above.tick_params(length=2, pad=2, labelsize=10)
    above.spines["top"].set_visible(False)


def path_curve(path: RegularisationPath) -> Markup:
    """Held-out log-loss by C with the spread of the folds, and the norm of the weights."""
    Cs, losses, norms = (np.asarray(a, dtype=np.float64) for a in (path.Cs, -path.scores, path.norms))
    mean, spread = fold_means(path)
    with drawing():
        figure, (top, bottom) = _panels(290, 2, (1.5, 1))
        for row in losses:
            there = np.isfinite(row) & np.isfinite(Cs)
            top.plot(Cs[there], row[there], color=_SOFT, linewidth=0.7, alpha=0.6)
        there = np.isfinite(mean) & np.isfinite(Cs)
        top.fill_between(
            Cs[there], (mean - spread)[there], (mean + spread)[there], color=_BLUE, alpha=0.18, linewidth=0
        )
        top.plot(Cs[there], mean[there], color=_BLUE, marker="o")
        bottom.plot(Cs[np.isfinite(Cs)], norms[np.isfinite(Cs)], color=_ORANGE, marker="o")
        if np.isfinite(path.chosen):
            for ax in (top, bottom):
                ax.axvline(path.chosen, color=_INK, linestyle=(0, (4, 3)), linewidth=1.2)
            top.annotate(f"C = {number(path.chosen, 3)}", (path.chosen, 1), xycoords=("data", "axes fraction"),
                         xytext=(0, 5), textcoords="offset points", ha="center", color=_INK)  # fmt: skip
        top.set_ylabel("held-out log-loss")
        bottom.set_ylabel("‖W‖")
        bottom.set_xlabel("C")
        bottom.set_xscale("log")
        _log(bottom.xaxis)
        for ax in (top, bottom):
            ax.yaxis.set_major_locator(MaxNLocator(5))
        best = f"the chosen C is {number(path.chosen, 4)}"
        return inline(figure, "path", f"Held-out log-loss and norm of the weights for {len(Cs)} values of C: {best}.")


def fold_means(path: RegularisationPath) -> tuple[Float, Float]:
    """Mean and standard deviation over the folds of the held-out log-loss at each C; NaN where a fold has none."""
    losses = -np.asarray(path.scores, dtype=np.float64)
    return losses.mean(axis=0), losses.std(axis=0, ddof=1) if len(losses) > 1 else np.zeros(losses.shape[1])


def reliability_diagram(after: Reliability, before: Reliability | None) -> Markup:
    """Accuracy against confidence, before and after calibration, over the histogram of the confidence."""
    with drawing():
        figure, (top, bottom) = _panels(290, 2, (2.6, 1))
        top.plot([0, 1], [0, 1], color=_SOFT, linestyle=(0, (4, 3)), linewidth=1.2)
        for shown, colour, name in ((before, _ORANGE, "before"), (after, _BLUE, "after" if before else "error")):
            if shown is not None:
                top.plot(shown.confidence, shown.accuracy, color=colour, linewidth=1.0, alpha=0.6)
                sizes = 8 + 130 * shown.weight / max(shown.weight.max(initial=0), 1e-300)  # few rows, a small dot
                top.scatter(shown.confidence, shown.accuracy, sizes, color=colour, alpha=0.85, linewidth=0)
                place = (0.0, 1.03) if shown is before or before is None else (0.5, 1.03)
                top.annotate(f"{name}: {percent(shown.error)}", place, xycoords="axes fraction", color=colour)
        top.set_ylabel("accuracy")
        top.set_ylim(-0.03, 1.06)
        lowest = min([*after.confidence, *(before.confidence if before is not None else [])], default=0.0)
        left = max(np.floor(10 * lowest - 0.2) / 10, 0.0)
        bottom.set_xlim(left, 1.03)
        for shown, colour, offset, of in ((before, _ORANGE, -0.008, 0.45), (after, _BLUE, 0.0, 0.75)):
            if shown is not None:
                part = shown.weight / max(shown.weight.sum(), 1e-300)
                bottom.bar(
                    shown.confidence + offset,
                    part,
                    width=0.014 * (1.02 - left) / 0.6,
                    color=colour,
                    alpha=of,
                    linewidth=0,
                )
        bottom.set_ylabel("rows")
        bottom.yaxis.set_major_locator(MaxNLocator(2))
        bottom.yaxis.set_major_formatter(lambda value, _: f"{100 * value:.0f} %")
        bottom.set_xlabel("confidence")
        said = f"expected calibration error {percent(after.error)}"
        if before is not None:
            said += f", {percent(before.error)} before calibration"
        return inline(figure, "reliability", f"Accuracy against confidence in {len(after.confidence)} bins: {said}.")


def confusion_image(shares: Float, labels: list[str], label: str) -> Markup:
    """A large confusion matrix: right answers in blue, mistakes in orange, strength the root of the row's share."""
    n = len(labels)
    pixels = np.zeros((n, n, 4))
    pixels[..., :3] = _ORANGE_RGB
    pixels[np.arange(n), np.arange(n), :3] = _BLUE_RGB
    pixels[..., 3] = np.sqrt(np.clip(shares, 0, 1))
    size = min(max(9 * n, 420), 860)
    margin = 12 + 5.2 * min(max(map(len, labels)), 16)
    with drawing():
        whole = size + margin + 6
        figure = Figure(figsize=(whole / 72, whole / 72))
        ax = figure.add_axes((margin / whole, 4 / whole, size / whole, size / whole))
        ax.imshow(pixels, interpolation="none")
        each = int(np.ceil(n * 8.6 / size))  # as many labels as can be told apart
        places = np.arange(0, n, each)
        names = [labels[k] for k in places]
        ax.set_xticks(places, names, rotation=90)
        ax.set_yticks(places, names)
        ax.tick_params(labelsize=min(9.5, 0.86 * each * size / n), length=2, pad=2)
        ax.xaxis.tick_top()
        ax.spines[:].set_visible(True)
        with warnings.catch_warnings():  # a letter that matplotlib's font lacks: the browser's has it
            warnings.filterwarnings("ignore", "Glyph", UserWarning)
            return inline(figure, "confusion", label)


def weight_image(weights: Float, largest: float) -> str:
    """A picture of weights as the address of a PNG: orange above zero, blue below, opacity |w| / largest."""
    pixels = np.empty((*weights.shape, 4))
    pixels[..., :3] = np.where((weights > 0)[..., None], _ORANGE_RGB, _BLUE_RGB)
    pixels[..., 3] = np.abs(weights) / largest if largest > 0 else 0.0
    file = io.BytesIO()
    image.imsave(file, pixels, format="png", metadata={"Software": "softgrad"})
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()
