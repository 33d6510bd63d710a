"""Two pictures of a study: score against cost with every run, and all differences with their intervals."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

from study.regimes import Regime
from study.summary import ArmFacts, Group
from study.verdict import Comparison
from study.words import labels_words

# Okabe and Ito (2008), Color universal design, without yellow, which is faint on white; black first.
_COLOURS = ("#000000", "#e69f00", "#56b4e9", "#009e73", "#0072b2", "#d55e00", "#cc79a7")
_MARKERS = ("o", "s", "^", "D", "v", "P", "X", "p")
_WORD_COLOURS = {"better": "#0072b2", "worse": "#d55e00", "undecided": "0.45"}
_MODE_ROWS = (("full", "trees"), ("probe",))
_APART = 4.0
"""Pairs that reach further than that many times the median have panels of their own."""
_ROW_TITLES = {"full": "all weights", "probe": "linear probe"}


def cost_figure(arms: Sequence[ArmFacts], groups: Sequence[Group], *, metric: str, seconds: str) -> Figure:
    """Draws score against training cost: a panel for each regime of labels; small: folds of a seed, rings: means.

    Arms given test labels are left out: what they reach would flatten all else. Of switches and of twins of the
    control, small marks are hollow and rings dashed.

    Args:
        arms: in the order of their colours.
        groups: their runs.
        metric: what scores are, for the axis.
        seconds: what seconds are, for the axis.
    """
    styles = _styles(arms)
    drawn = [group for group in groups if group.arm in styles and group.seconds]
    regimes = sorted({group.regime for group in drawn}, key=lambda regime: regime.order)
    rows = [modes for modes in _MODE_ROWS if any(group.mode in modes for group in drawn)]
    size = (3.5 * max(len(regimes), 1) + 2.9, max(3.2 * len(rows), 3.6) + 0.9)
    figure, axes = _panels(size, max(len(rows), 1), max(len(regimes), 1), sharex=True, sharey="row")
    for (row, modes), (column, regime) in _cells(rows, regimes):
        axis = axes[row, column]
        for group in (of for of in drawn if of.mode in modes and of.regime == regime):
            _draw_group(axis, group, styles[group.arm])
        axis.grid(color="0.92", linewidth=0.6)
        axis.set_axisbelow(True)
        if row == 0:
            axis.set_title(labels_words(regime), fontsize=10)
        if column == 0:
            axis.set_ylabel(f"{metric}\n({_ROW_TITLES[modes[0]]})" if len(rows) > 1 else metric)
    _log_ticks(axes[0, 0], [group.seconds for group in drawn if group.seconds])
    figure.supxlabel(f"training of one model: pre-training and fine-tuning, {seconds}", fontsize=10)
    handles = [
        axes[0, 0].scatter([], [], s=60, facecolors="none", label=name, **_ring(style))
        for name, style in styles.items()
        if any(group.arm == name for group in drawn)
    ]
    legend = {"fontsize": 8, "title_fontsize": 8, "frameon": False}
    figure.legend(handles=handles, loc="outside right center", title="ring: mean of seeds\nsmall: one fold", **legend)
    return figure


@dataclass(frozen=True)
class Survey:
    """A study as one column of a figure of several.

    Attributes:
        title: of the column.
        arms: its arms.
        groups: their runs.
        metric: what its scores are, for the axis.
        seconds: what its seconds are, for the axis.
    """

    title: str
    arms: Sequence[ArmFacts]
    groups: Sequence[Group]
    metric: str
    seconds: str


def surveys_figure(surveys: Sequence[Survey]) -> Figure:
    """Draws score against total cost of several studies: a column for each survey, a row for each regime of labels.

    Arms of the same name look alike in all of them; as in `cost_figure`, small marks are folds of a seed, rings means.
    Probes are left out, and arms given test labels. A survey without runs of a regime has no panel there.

    Args:
        surveys: in the order of columns, one at least; their seconds must be of one kind.
    """
    first = {arm.name: arm for survey in reversed(surveys) for arm in reversed(survey.arms)}
    styles = _styles(list(reversed(first.values())))
    drawn = [
        [of for of in survey.groups if of.arm in styles and of.seconds and of.mode in _MODE_ROWS[0]]
        for survey in surveys
    ]
    regimes = sorted({of.regime for groups in drawn for of in groups}, key=lambda regime: regime.order) or [Regime()]
    size = (3.0 * len(surveys) + 2.4, max(2.5 * len(regimes), 3.2) + 0.9)
    figure, axes = _panels(size, len(regimes), len(surveys), sharex="col")
    for (row, regime), (column, (survey, groups)) in _cells(regimes, list(zip(surveys, drawn, strict=True))):
        axis, here = axes[row, column], [of for of in groups if of.regime == regime]
        axis.set_title(f"{survey.title}\n{labels_words(regime)}", fontsize=9)
        for group in here:
            _draw_group(axis, group, styles[group.arm])
        axis.set_ylabel(survey.metric, fontsize=8)
        axis.tick_params(labelsize=8)
        axis.grid(color="0.92", linewidth=0.6)
        axis.set_axisbelow(True)
        axis.set_visible(bool(here))
    for column, groups in enumerate(drawn):
        _log_ticks(axes[0, column], [of.seconds for of in groups if of.seconds])
    figure.supxlabel(f"training of one model: pre-training and fine-tuning, {surveys[0].seconds}", fontsize=10)
    handles = [
        axes[0, 0].scatter([], [], s=60, facecolors="none", label=name, **_ring(style))
        for name, style in styles.items()
        if any(of.arm == name for groups in drawn for of in groups)
    ]
    legend = {"fontsize": 8, "title_fontsize": 8, "frameon": False}
    figure.legend(handles=handles, loc="outside right center", title="ring: mean of seeds\nsmall: one fold", **legend)
    return figure


def differences_figure(comparisons: Sequence[Comparison], *, metric: str) -> Figure:
    """Draws all differences with their intervals: a panel for each regime of labels, a row for each pair of arms.

    Pairs that reach much further than the rest have panels of their own, so that small intervals can be seen.

    Args:
        comparisons: what was compared.
        metric: what differs, for the axis.
    """
    regimes = sorted({of.first.regime for of in comparisons}, key=lambda regime: regime.order)
    panels = _near_and_far(comparisons) or [[]]
    labels = [label for panel in panels for label in panel]
    size = (
        max(2.9 * len(regimes), 3.6) + 0.062 * max((len(label) for label in labels), default=0) + 0.3,
        0.3 * len(labels) + 0.6 * len(panels) + 1.1,
    )
    heights = [len(panel) + 0.5 for panel in panels]
    figure, axes = _panels(size, len(panels), max(len(regimes), 1), sharey="row", height_ratios=heights)
    for (number, panel), (column, regime) in _cells(panels, regimes):
        axis = axes[number, column]
        for of in (of for of in comparisons if of.first.regime == regime and _row_label(of) in panel):
            _draw_difference(axis, of, panel.index(_row_label(of)))
        axis.axvline(0, color="0.2", linewidth=0.9)
        if number == 0:
            axis.set_title(labels_words(regime), fontsize=10)
        axis.xaxis.set_major_locator(MaxNLocator(5))
        axis.tick_params(axis="x", labelsize=8)
        axis.grid(axis="x", color="0.92", linewidth=0.6)
        axis.set_axisbelow(True)
        for row in range(0, len(panel), 2):
            axis.axhspan(row - 0.5, row + 0.5, color="0.97", zorder=0)
    for (axis, *_), panel in zip(axes, panels, strict=True):
        axis.set_yticks(range(len(panel)), panel, fontsize=8)
        axis.set_ylim(max(len(panel), 1) - 0.5, -0.5)
    figure.supxlabel(f"difference of {metric}, above 0 = the first named is better; bar: 95 % interval", fontsize=10)
    handles = [
        Line2D([], [], color=colour, marker="o", markerfacecolor=_face(word), markersize=3.5, label=word)
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
        twin = " ".join(arm.against)
        if arm.role == "null" and twin in styles:
            marker, colour, _ = styles[twin]
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
        edge: dict[str, Any] = {"linewidths": 0.0 if face != "none" else 0.8, "edgecolors": colour}
        axis.scatter(across, up, s=13, alpha=0.75, marker=marker, facecolors=face, zorder=4, **edge)
    if group.scores and group.seconds:  # below the runs, which it must not hide
        axis.scatter(group.seconds, group.mean, s=110, facecolors="none", zorder=2, **_ring(style))


def _ring(style: tuple[str, str, str]) -> dict[str, Any]:
    marker, colour, face = style
    dashes = "solid" if face != "none" else (0, (2.0, 1.2))
    return {"marker": marker, "edgecolors": colour, "linewidths": 1.4, "linestyles": [dashes]}


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
    axis.plot(
        of.per_seed, [row] * len(of.per_seed), "|", color=colour, markersize=7, markeredgewidth=0.8, alpha=0.7, zorder=3
    )
    if math.isfinite(of.estimate):
        axis.plot(of.estimate, row, "o", color=colour, markersize=3.5, markerfacecolor=_face(of.word), zorder=4)


def _row_label(comparison: Comparison) -> str:
    rival = "the best network" if comparison.chosen else comparison.second.arm
    mode = {"full": "", "probe": " (probe)", "trees": ""}[comparison.first.mode]
    control = " [control]" if comparison.arm.role == "null" else ""
    return f"{comparison.arm.name} against {rival}{mode}{control}"


def _near_and_far(comparisons: Sequence[Comparison]) -> list[list[str]]:
    """Labels of the pairs of arms, one or two lists: those that reach much further than the median one come apart."""
    reach = {of: max(_ends(of), default=0.0) for of in comparisons}
    limit = _APART * float(np.median(list(reach.values()))) if reach else 0.0
    far = {_row_label(of) for of, ends in reach.items() if ends > limit}
    labels = list(dict.fromkeys(_row_label(of) for of in comparisons))
    panels = [[of for of in labels if of not in far], [of for of in labels if of in far]]
    return [panel for panel in panels if panel]


def _ends(comparison: Comparison) -> list[float]:
    of = comparison.difference
    return [abs(end) for end in (of.low, of.high, of.estimate) if math.isfinite(end)]


def _panels(inches: tuple[float, float], rows: int, columns: int, **choice: Any) -> tuple[Figure, np.ndarray]:
    figure = Figure(figsize=inches, layout="constrained")
    FigureCanvasAgg(figure)
    return figure, figure.subplots(rows, columns, squeeze=False, **choice)


def _cells(rows: Sequence[Any], columns: Sequence[Any]) -> list[tuple[tuple[int, Any], tuple[int, Any]]]:
    return [(row, column) for row in enumerate(rows) for column in enumerate(columns)]


def _face(word: str) -> str:
    return "white" if word == "undecided" else _WORD_COLOURS[word]
