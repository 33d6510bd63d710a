"""Pictures of scores: confusion, calibration, success rate, and arms beside each other.

Every picture takes a warning, which goes into its title: a picture travels further than the log beside it.
"""

from __future__ import annotations

import math
import textwrap
from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

_WARNING_COLOUR = "#a50f15"
_WRITTEN_CLASSES = 24
"""With more classes than this, counts are not written into a confusion matrix: they would not be legible."""


def confusion_figure(
    confusion: Sequence[Sequence[int]], names: Sequence[str], *, title: str = "", warning: str = ""
) -> Figure:
    """Draws a confusion matrix: colours are shares of each true class, numbers are counts.

    Args:
        confusion: (K, K) counts, rows = truth, columns = prediction.
        names: of the classes.
        title: above.
        warning: likewise, in red.

    Raises:
        ValueError: a matrix that does not fit the names.
    """
    counts = np.asarray(confusion, dtype=np.float64)
    kinds = len(names)
    if counts.shape != (kinds, kinds):
        raise ValueError(f"confusion matrix of shape {counts.shape}: expected ({kinds}, {kinds}) for {kinds} names")
    with np.errstate(invalid="ignore"):
        shares = counts / counts.sum(axis=1, keepdims=True)
    size = min(max(0.55 * kinds, 2.4), 12.0)
    figure, axis = _one_axis((size + 2.6, size + 1.4))
    colours = colormaps["Blues"].with_extremes(bad="0.85")
    drawn = axis.imshow(np.ma.masked_invalid(shares), cmap=colours, vmin=0, vmax=1)
    figure.colorbar(drawn, ax=axis, label="share of the true class", fraction=0.046, pad=0.03)
    short = [textwrap.shorten(str(name), 28, placeholder="...") for name in names]
    axis.set_xticks(range(kinds), short, rotation=45, ha="right", rotation_mode="anchor", fontsize=8)
    axis.set_yticks(range(kinds), short, fontsize=8)
    axis.set_xlabel("prediction")
    axis.set_ylabel("truth")
    if kinds <= _WRITTEN_CLASSES:
        for row, col in np.ndindex(counts.shape):
            dark = np.nan_to_num(shares[row, col]) > 0.55
            text = _short_count(counts[row, col])
            axis.text(col, row, text, ha="center", va="center", fontsize=7, color="white" if dark else "0.15")
    put_title(figure, title, warning)
    return figure


def calibration_figure(
    curves: Mapping[str, Mapping[str, Sequence[float]]], *, title: str = "", warning: str = ""
) -> Figure:
    """Draws predicted against observed shares of deposits.

    Args:
        curves: by name, such as of folds, what `ProspectivityScores.compute` gives as `calibration`; those without
            points are left out. A point's area grows with the number behind it.
        title: above.
        warning: likewise, in red.
    """
    figure, axis = _one_axis((5.0, 5.0))
    ends = [value for curve in curves.values() for key in ("predicted", "observed") for value in curve[key]]
    limit = min(1.0, 1.08 * max([*ends, 0.01]))
    axis.plot([0, limit], [0, limit], color="0.6", linewidth=1, linestyle="--", label="perfect")
    most = max((count for curve in curves.values() for count in curve["count"]), default=1)
    for (name, curve), colour in zip(curves.items(), distinct_colours(len(curves)), strict=True):
        if curve["predicted"]:
            axis.plot(curve["predicted"], curve["observed"], color=colour, linewidth=1.2, label=name)
            areas = 8 + 40 * np.asarray(curve["count"]) / most
            axis.scatter(curve["predicted"], curve["observed"], s=areas, color=colour, zorder=3)
    axis.set(xlim=(0, limit), ylim=(-0.02 * limit, limit), aspect="equal")
    axis.set_xlabel("predicted score, mean of each part")
    axis.set_ylabel("observed share of deposits")
    axis.legend(fontsize=8, loc="upper left")
    put_title(figure, title, warning)
    return figure


def success_rate_figure(
    curves: Mapping[str, Mapping[str, Sequence[float]]], *, title: str = "", warning: str = ""
) -> Figure:
    """Draws the fraction of windows (deposits and background) ranked highest against the fraction of deposits in them.

    Args:
        curves: by name what `ProspectivityScores.compute` gives as `success_rate`; those without points are left out.
        title: above.
        warning: likewise, in red.
    """
    figure, axis = _one_axis((5.4, 5.0))
    for (name, curve), colour in zip(curves.items(), distinct_colours(len(curves)), strict=True):
        if curve["ground"]:
            ranked, captured = np.asarray(curve["ground"]), np.asarray(curve["deposits"])
            area = float(((captured[1:] + captured[:-1]) / 2 * np.diff(ranked)).sum())
            axis.plot(100 * ranked, 100 * captured, color=colour, linewidth=1.4, label=f"{name} (area {area:.2f})")
    axis.plot([0, 100], [0, 100], color="0.6", linewidth=1, linestyle="--", label="chance (area 0.50)")
    axis.set(xlim=(0, 100), ylim=(0, 102), aspect="equal")
    axis.set_xlabel("windows ranked highest (deposits and background), %")
    axis.set_ylabel("deposits captured, %")
    axis.grid(color="0.9", linewidth=0.6)
    axis.legend(fontsize=8, loc="lower right")
    put_title(figure, title, warning)
    return figure


def arms_figure(
    scores: Mapping[str, Sequence[float | None]], *, score: str, title: str = "", warning: str = ""
) -> Figure:
    """Draws a column for each arm: the score of every fold, joined between arms, and their mean.

    Args:
        scores: by arm, scores of folds in the same order; None = undefined there.
        score: what they are, for the axis.
        title: above.
        warning: likewise, in red.

    Raises:
        ValueError: arms with different numbers of folds.
    """
    table = np.array(
        [[np.nan if v is None else v for v in values] for values in _same_length(scores)], dtype=np.float64
    )
    arms, folds = table.shape
    figure, axis = _one_axis((max(1.5 * arms, 3.0) + 1.6, 4.2))
    offsets = np.linspace(-0.22, 0.22, folds) if folds > 1 else np.zeros(1)
    for fold, colour in zip(range(folds), distinct_colours(folds), strict=True):
        at = np.arange(arms) + offsets[fold]
        axis.plot(at, table[:, fold], color=colour, linewidth=0.6, alpha=0.45, zorder=1)
        axis.scatter(at, table[:, fold], s=26, color=colour, zorder=3, label=f"fold {fold}")
    for arm, values in enumerate(table):
        if np.isfinite(values).any():
            mean = float(np.nanmean(values))
            axis.hlines(mean, arm - 0.34, arm + 0.34, color="0.1", linewidth=2, zorder=2)
            axis.annotate(f"{mean:.3g}", (arm + 0.36, mean), fontsize=8, va="center", ha="left", zorder=4)
    axis.set_xticks(range(arms), ["\n".join(textwrap.wrap(name, 16)) for name in scores], fontsize=8)
    axis.set_xlim(-0.6, arms - 0.4 + 0.15)
    axis.set_ylabel(score)
    axis.grid(axis="y", color="0.9", linewidth=0.6)
    axis.set_axisbelow(True)
    axis.legend(fontsize=8, loc="center left", bbox_to_anchor=(1.01, 0.5), title="bar: mean", title_fontsize=8)
    put_title(figure, title, warning)
    return figure


def distinct_colours(count: int) -> list[tuple[float, ...]]:
    """As many colours, told apart by hue up to 10."""
    if count <= 10:
        return [colormaps["tab10"](number) for number in range(count)]
    return [colormaps["viridis"](value) for value in np.linspace(0, 1, count)]


def _short_count(count: float) -> str:
    """A whole number in at most six characters."""
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if count >= max(size, 1e4):
            return f"{count / size:.3g}{letter}" if count < 1e3 * size else f"{count / size:.0f}{letter}"
    return f"{count:.0f}"


def _same_length(scores: Mapping[str, Sequence[float | None]]) -> list[Sequence[float | None]]:
    lengths = {name: len(values) for name, values in scores.items()}
    if len(set(lengths.values())) != 1:
        listed = ", ".join(f"'{name}' {length}" for name, length in lengths.items())
        raise ValueError(f"arms differ in number of folds: {listed or 'none'}; expected the same folds for all")
    return list(scores.values())


def _one_axis(inches: tuple[float, float]) -> tuple[Figure, Axes]:
    figure = Figure(figsize=inches, layout="compressed")
    FigureCanvasAgg(figure)
    return figure, figure.subplots()


def put_title(figure: Figure, title: str, warning: str) -> None:
    """Title and, in red below it, the warning; both wrapped to the figure's width."""
    lines = math.floor(figure.get_figwidth() * 12.5)  # characters of 10 points in an inch, about
    text = "\n".join(line for part in (title, warning) for line in textwrap.wrap(part, lines))
    if text:
        figure.suptitle(text, fontsize=10, color=_WARNING_COLOUR if warning else "black")
