"""Two pictures of a study: score against cost with every run, and all differences with their intervals."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

from study.summary import ArmFacts, Group
from study.verdict import Comparison
from study.words import labels_words

# Okabe and Ito (2008), Color universal design, without yellow, which is faint on white; black first.
_COLOURS = ("#000000", "#e69f00", "#56b4e9", "#009e73", "#0072b2", "#d55e00", "#cc79a7")
_MARKERS = ("o", "s", "^", "D", "v", "P", "X", "p")
_WORD_COLOURS = {"better": "#0072b2", "worse": "#d55e00", "undecided": "0.45"}
_MODE_ROWS = (("full", "trees"), ("probe",))
_ROW_TITLES = {"full": "all weights", "probe": "linear probe"}


def cost_figure(arms: Sequence[ArmFacts], groups: Sequence[Group], *, metric: str, seconds: str) -> Figure:
    """Draws score against training cost: a panel for each share of labels, small dots = folds of a seed, large = mean.

    Arms given test labels are left out: what they reach would flatten all else. Switches and twins of the control are
    hollow.

    Args:
        arms: in the order of their colours.
        groups: their runs.
        metric: what scores are, for the axis.
        seconds: what seconds are, for the axis.
    """
    styles = _styles(arms)
    drawn = [group for group in groups if group.arm in styles and group.seconds]
    fractions = sorted({group.fraction for group in drawn})
    rows = [modes for modes in _MODE_ROWS if any(group.mode in modes for group in drawn)]
    size = (3.5 * max(len(fractions), 1) + 2.9, max(3.2 * len(rows), 3.6) + 0.9)
    figure, axes = _panels(size, max(len(rows), 1), max(len(fractions), 1))
    for (row, modes), (column, fraction) in _cells(rows, fractions):
        axis = axes[row, column]
        for group in (of for of in drawn if of.mode in modes and of.fraction == fraction):
            _draw_group(axis, group, styles[group.arm])
        axis.grid(color="0.92", linewidth=0.6)
        axis.set_axisbelow(True)
        if row == 0:
            axis.set_title(labels_words(fraction), fontsize=10)
        if column == 0:
            axis.set_ylabel(f"{metric}\n({_ROW_TITLES[modes[0]]})" if len(rows) > 1 else metric)
    _log_ticks(axes[0, 0], [group.seconds for group in drawn if group.seconds])
    figure.supxlabel(f"training of one model: pre-training and fine-tuning, {seconds}", fontsize=10)
    handles = [
        Line2D([], [], linestyle="", marker=marker, color=colour, markerfacecolor=face, markersize=7, label=name)
        for name, (marker, colour, face) in styles.items()
        if any(group.arm == name for group in drawn)
    ]
    legend = {"fontsize": 8, "title_fontsize": 8, "frameon": False}
    figure.legend(handles=handles, loc="outside right center", title="large: mean of seeds\nsmall: one fold", **legend)
    return figure


def differences_figure(comparisons: Sequence[Comparison], *, metric: str) -> Figure:
    """Draws all differences with their intervals: a panel for each share of labels, a row for each pair of arms.

    Args:
        comparisons: what was compared.
        metric: what differs, for the axis.
    """
    fractions = sorted({of.first.fraction for of in comparisons})
    rows = list(dict.fromkeys(_row_label(of) for of in comparisons))
    label_inches = 0.062 * max((len(row) for row in rows), default=0)
    size = (max(2.9 * len(fractions), 3.6) + label_inches + 0.3, 0.3 * len(rows) + 1.7)
    figure, axes = _panels(size, 1, max(len(fractions), 1))
    for axis, fraction in zip(axes[0], fractions, strict=False):
        for of in (of for of in comparisons if of.first.fraction == fraction):
            _draw_difference(axis, of, rows.index(_row_label(of)))
        axis.axvline(0, color="0.2", linewidth=0.9)
        axis.set_title(labels_words(fraction), fontsize=10)
        axis.xaxis.set_major_locator(MaxNLocator(5))
        axis.tick_params(axis="x", labelsize=9)
        axis.grid(axis="x", color="0.92", linewidth=0.6)
        axis.set_axisbelow(True)
        for row in range(0, len(rows), 2):
            axis.axhspan(row - 0.5, row + 0.5, color="0.97", zorder=0)
    axes[0, 0].set_yticks(range(len(rows)), rows, fontsize=8)
    axes[0, 0].set_ylim(max(len(rows), 1) - 0.5, -0.5)
    figure.supxlabel(f"difference of {metric}, above 0 = the first named is better; bar: 95 % interval", fontsize=10)
    handles = [
        Line2D([], [], color=colour, marker="o", markerfacecolor=_face(word), label=word)
        for word, colour in _WORD_COLOURS.items()
    ]
    figure.legend(handles=handles, loc="outside upper center", ncols=3, fontsize=8, frameon=False)
    return figure


def _styles(arms: Sequence[ArmFacts]) -> dict[str, tuple[str, str, str]]:
    """Marker, colour and face of each arm that is drawn; a twin has its original's, hollow."""
    styles: dict[str, tuple[str, str, str]] = {}
    for arm in (of for of in arms if of.role != "leak"):
        number = len(styles)
        marker, colour = _MARKERS[number % len(_MARKERS)], _COLOURS[number % len(_COLOURS)]
        if arm.role == "null" and arm.against in styles:
            marker, colour, _ = styles[arm.against]
        styles[arm.name] = (marker, colour, colour if arm.role == "" else "none")
    return styles


def _draw_group(axis: Axes, group: Group, style: tuple[str, str, str]) -> None:
    marker, colour, face = style
    points = [
        (seconds, run.score)
        for run in group.runs
        if (seconds := (run.pretrain_s or 0.0) + (run.finetune_s or 0.0)) and math.isfinite(run.score)
    ]
    if points:
        across, up = np.array(points).T
        axis.scatter(across, up, s=11, alpha=0.45, marker=marker, facecolors=colour, linewidths=0, zorder=2)
    if group.scores and group.seconds:
        filled = face != "none"
        edge: dict[str, Any] = {"edgecolors": "white" if filled else colour, "linewidths": 0.9 if filled else 1.6}
        order = 4 if filled else 5  # hollow marks above, so that what they lie on shows through
        axis.scatter(group.seconds, group.mean, s=85, marker=marker, facecolors=face, zorder=order, **edge)


def _log_ticks(axis: Axes, seconds: Sequence[float]) -> None:
    """A log axis with plain numbers, the more of them the fewer powers of ten it spans; shared by all panels."""
    decades = math.log10(max(seconds) / min(seconds)) if seconds else 0.0
    between = (1.0, 2.0, 5.0) if decades < 2.2 else (1.0, 3.0) if decades < 3.2 else (1.0,)
    axis.set_xscale("log")
    axis.xaxis.set_major_locator(LogLocator(subs=between))
    axis.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,g}"))
    axis.xaxis.set_minor_formatter(NullFormatter())


def _draw_difference(axis: Axes, comparison: Comparison, row: int) -> None:
    of = comparison.difference
    colour = _WORD_COLOURS[of.word]
    if math.isfinite(of.low):
        axis.plot([of.low, of.high], [row, row], color=colour, linewidth=1.8, solid_capstyle="butt", zorder=2)
    axis.plot(of.per_seed, [row] * len(of.per_seed), "|", color=colour, markersize=6, alpha=0.7, zorder=3)
    if math.isfinite(of.estimate):
        axis.plot(of.estimate, row, "o", color=colour, markersize=6, markerfacecolor=_face(of.word), zorder=4)


def _row_label(comparison: Comparison) -> str:
    rival = "the best network" if comparison.chosen else comparison.second.arm
    mode = {"full": "", "probe": " (probe)", "trees": ""}[comparison.first.mode]
    control = " [control]" if comparison.arm.role == "null" else ""
    return f"{comparison.arm.name} against {rival}{mode}{control}"


def _panels(inches: tuple[float, float], rows: int, columns: int) -> tuple[Figure, np.ndarray]:
    figure = Figure(figsize=inches, layout="constrained")
    FigureCanvasAgg(figure)
    return figure, figure.subplots(rows, columns, squeeze=False, sharex=True, sharey=True)


def _cells(rows: Sequence[Any], columns: Sequence[Any]) -> list[tuple[tuple[int, Any], tuple[int, Any]]]:
    return [(row, column) for row in enumerate(rows) for column in enumerate(columns)]


def _face(word: str) -> str:
    return "white" if word == "undecided" else _WORD_COLOURS[word]
