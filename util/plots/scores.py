"""Figures of scores: confusion matrix, calibration, success-rate curve, and comparison of methods.

Each figure shows a warning, if there is one, in its title, because figures are copied without the log.
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

from util.plots.names import short_name

LONGEST_NAME = 28
"""Characters of the name of a class beside a matrix or in a legend, at most."""
_WARNING_COLOUR = "#a50f15"
_MAX_CLASSES_WITH_COUNTS = 24
"""Up to this number of classes, a confusion matrix shows counts; with more they would not be legible."""


def confusion_figure(
    confusion: Sequence[Sequence[int]], names: Sequence[str], *, title: str = "", warning: str = ""
) -> Figure:
    """Draws a confusion matrix: colours are fractions of each true class, numbers are counts.

    Args:
        confusion: (K, K) counts, rows = truth, columns = prediction.
        names: names of the classes.
        title: title of the figure.
        warning: second line of the title, in red.

    Raises:
        ValueError: the matrix does not fit the names.
    """
    counts = np.asarray(confusion, dtype=np.float64)
    classes = len(names)
    if counts.shape != (classes, classes):
        raise ValueError(
            f"confusion matrix of shape {counts.shape}: expected ({classes}, {classes}) for {classes} names"
        )
    with np.errstate(invalid="ignore"):
        fractions = counts / counts.sum(axis=1, keepdims=True)
    size = min(max(0.55 * classes, 2.4), 12.0)
    figure, axis = _one_axis((size + 2.6, size + 1.4))
    colours = colormaps["Blues"].with_extremes(bad="0.85")
    drawn = axis.imshow(np.ma.masked_invalid(fractions), cmap=colours, vmin=0, vmax=1)
    figure.colorbar(drawn, ax=axis, label="fraction of the true class", fraction=0.046, pad=0.03)
    short = [short_name(str(name), LONGEST_NAME) for name in names]
    axis.set_xticks(range(classes), short, rotation=45, ha="right", rotation_mode="anchor", fontsize=8)
    axis.set_yticks(range(classes), short, fontsize=8)
    axis.set_xlabel("prediction")
    axis.set_ylabel("truth")
    if classes <= _MAX_CLASSES_WITH_COUNTS:
        for row, col in np.ndindex(counts.shape):
            dark = np.nan_to_num(fractions[row, col]) > 0.55
            text = _short_count(counts[row, col])
            axis.text(col, row, text, ha="center", va="center", fontsize=7, color="white" if dark else "0.15")
    put_title(figure, title, warning)
    return figure


def calibration_figure(
    curves: Mapping[str, Mapping[str, Sequence[float]]], *, title: str = "", warning: str = ""
) -> Figure:
    """Draws observed fractions of deposits against predicted scores; larger points are bins with more windows.

    Args:
        curves: name, such as that of a fold, -> `calibration` of `ProspectivityScores.compute`; empty curves are
            omitted.
        title: title of the figure.
        warning: second line of the title, in red.
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
    axis.set_xlabel("mean predicted score of each bin")
    axis.set_ylabel("observed fraction of deposits")
    axis.legend(fontsize=8, loc="upper left")
    put_title(figure, title, warning)
    return figure


def success_rate_figure(
    curves: Mapping[str, Mapping[str, Sequence[float]]], *, title: str = "", warning: str = ""
) -> Figure:
    """Draws the fraction of windows (deposits and background) ranked highest against the fraction of deposits in them.

    Args:
        curves: name -> `success_rate` of `ProspectivityScores.compute`; empty curves are omitted.
        title: title of the figure.
        warning: second line of the title, in red.
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


def methods_figure(
    scores: Mapping[str, Sequence[float | None]], *, score: str, title: str = "", warning: str = ""
) -> Figure:
    """Draws a column for each method: the score of each fold, connected between methods, and the mean.

    Args:
        scores: method -> scores of the folds, in the same order; None = undefined.
        score: name of the score, the label of the axis.
        title: title of the figure.
        warning: second line of the title, in red.

    Raises:
        ValueError: methods differ in their number of folds.
    """
    table = np.array(
        [[np.nan if v is None else v for v in values] for values in _same_length(scores)], dtype=np.float64
    )
    methods, folds = table.shape
    figure, axis = _one_axis((max(1.5 * methods, 3.0) + 1.6, 4.2))
    offsets = np.linspace(-0.22, 0.22, folds) if folds > 1 else np.zeros(1)
    for fold, colour in zip(range(folds), distinct_colours(folds), strict=True):
        at = np.arange(methods) + offsets[fold]
        axis.plot(at, table[:, fold], color=colour, linewidth=0.6, alpha=0.45, zorder=1)
        axis.scatter(at, table[:, fold], s=26, color=colour, zorder=3, label=f"fold {fold}")
    for method, values in enumerate(table):
        if np.isfinite(values).any():
            mean = float(np.nanmean(values))
            axis.hlines(mean, method - 0.34, method + 0.34, color="0.1", linewidth=2, zorder=2)
            axis.annotate(f"{mean:.3g}", (method + 0.36, mean), fontsize=8, va="center", ha="left", zorder=4)
    axis.set_xticks(range(methods), ["\n".join(textwrap.wrap(name, 16)) for name in scores], fontsize=8)
    axis.set_xlim(-0.6, methods - 0.4 + 0.15)
    axis.set_ylabel(score)
    axis.grid(axis="y", color="0.9", linewidth=0.6)
    axis.set_axisbelow(True)
    axis.legend(fontsize=8, loc="center left", bbox_to_anchor=(1.01, 0.5), title="bar: mean", title_fontsize=8)
    put_title(figure, title, warning)
    return figure


def distinct_colours(count: int) -> list[tuple[float, ...]]:
    """A number of colours, of different hues up to 10."""
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
        raise ValueError(f"methods differ in number of folds: {listed or 'none'}; expected the same folds for all")
    return list(scores.values())


def _one_axis(inches: tuple[float, float]) -> tuple[Figure, Axes]:
    figure = Figure(figsize=inches, layout="compressed")
    FigureCanvasAgg(figure)
    return figure, figure.subplots()


def put_title(figure: Figure, title: str, warning: str) -> None:
    """Sets the title of a figure and below it the warning, wrapped to its width; both are red if there is a warning."""
    lines = math.floor(figure.get_figwidth() * 12.5)  # characters of 10 points in an inch, about
    text = "\n".join(line for part in (title, warning) for line in textwrap.wrap(part, lines))
    if text:
        figure.suptitle(text, fontsize=10, color=_WARNING_COLOUR if warning else "black")
