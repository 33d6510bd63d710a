"""Maps of results with colour bars and a scale bar, to check them without a GIS."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import BoundaryNorm, ListedColormap, to_rgb
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from util.plots.reconstruction import error_limit, robust_limits, unit_text

_NODATA_COLOUR = "0.85"
_PANEL_INCHES = 4.0
_BAR_FRACTION = 0.3
_MAX_COLUMNS = 4


@dataclass(frozen=True)
class Panel:
    """One map.

    Attributes:
        title: title above the map.
        image: (rows, cols) values, NaN = nodata; or (3, rows, cols) colours from 0 to 255.
        unit: unit of the values.
        style: `field`, `magnitude` (colours start at zero), `difference` (colours centred on zero) or `colours`.
        classes: code -> (name, colour) if values are classes.
        limits: colour limits of a field; None: 2 and 98 % quantiles of its values.
        points: (n, 2) x and y of points to draw on the map, CRS units; needs a `Corner`.
        point_name: of these points, for the title.
    """

    title: str
    image: np.ndarray
    unit: str = ""
    style: str = "field"
    classes: dict[int, tuple[str, tuple[int, int, int]]] | None = None
    limits: tuple[float, float] | None = None
    points: np.ndarray | None = None
    point_name: str = "points"


Preview = tuple[str, str, np.ndarray, dict[int, tuple[str, str]] | None]
"""Name, unit and (rows, cols) values of a layer; and of classes, code -> (name, '#rrggbb')."""


def layer_panels(previews: Iterable[Preview]) -> list[Panel]:
    """Maps of layers, to be drawn beside what was made of them."""
    return [
        Panel(name, image, unit, classes=None if classes is None else _coloured(classes))
        for name, unit, image, classes in previews
    ]


def _coloured(classes: Mapping[int, tuple[str, str]]) -> dict[int, tuple[str, tuple[int, int, int]]]:
    return {code: (name, colour_bytes(colour)) for code, (name, colour) in classes.items()}


def colour_bytes(colour: str | tuple[float, ...]) -> tuple[int, int, int]:
    """Red, green and blue from 0 to 255."""
    red, green, blue = (round(255 * part) for part in to_rgb(colour))
    return red, green, blue


@dataclass(frozen=True)
class Corner:
    """Where maps lie.

    Attributes:
        left: western edge, CRS units.
        top: northern edge, CRS units.
        unit: name of the CRS unit: `m`, `degrees`, ...
        unit_length: length of a CRS unit, length units of the figure.
    """

    left: float
    top: float
    unit: str
    unit_length: float = 1.0


def map_figure(
    panels: Sequence[Panel],
    *,
    pixel_size: float,
    length_unit: str,
    title: str = "",
    where: str = "",
    corner: Corner | None = None,
) -> Figure:
    """Draws maps of the same area side by side, four in a row.

    Args:
        panels: the maps.
        pixel_size: ground width of a pixel of the first panel, length units.
        length_unit: unit of lengths on the ground; from 1000 m on, lengths are in kilometres.
        title: title of the figure.
        where: place on the map at which `pixel_size` holds, such as a latitude; empty if it holds everywhere.
        corner: where the maps lie, for coordinates along their edges; None: no coordinates.

    Raises:
        ValueError: there is no panel.
    """
    if not panels:
        raise ValueError("nothing to draw: expected at least one panel")
    rows, cols = panels[0].image.shape[-2:]
    height = min(max(_PANEL_INCHES * rows / cols, 2.0), 3 * _PANEL_INCHES)
    figure_cols = min(len(panels), _MAX_COLUMNS)
    figure_rows = -(-len(panels) // figure_cols)
    inches = ((_PANEL_INCHES + 0.9) * figure_cols, (height + 0.9) * figure_rows)
    figure = Figure(figsize=inches, layout="constrained")
    FigureCanvasAgg(figure)
    extent = (0.0, cols * pixel_size, 0.0, rows * pixel_size)
    axes = figure.subplots(figure_rows, figure_cols, squeeze=False).ravel()
    for axis in axes[len(panels) :]:
        axis.set_axis_off()
    for number, (axis, panel) in enumerate(zip(axes, panels, strict=False)):
        _draw(figure, axis, panel, extent)
        _scale_bar(axis, extent[1], extent[3], length_unit, where)
        axis.set_title(panel.title, fontsize=9)
        axis.set_xticks([])
        axis.set_yticks([])
        if corner is not None:
            is_lowest = number + figure_cols >= len(panels)
            _coordinates(axis, extent, corner, below=is_lowest, beside=number % figure_cols == 0)
            _points(axis, panel, extent, corner)
    if title:
        figure.suptitle(title, fontsize=10)
    return figure


def _coordinates(
    axis: Axes, extent: tuple[float, float, float, float], corner: Corner, *, below: bool, beside: bool
) -> None:
    """Writes coordinates along the lower and the left edge of a map, in kilometres where metres are large."""
    width, height = extent[1] / corner.unit_length, extent[3] / corner.unit_length
    factor, unit = (1e-3, "km") if corner.unit == "m" and max(width, height) >= 5000 else (1.0, corner.unit)
    names = ("longitude", "latitude") if corner.unit == "degrees" else ("easting", "northing")
    for is_drawn, first, length, sides in (
        (below, corner.left, width, (axis.set_xticks, axis.set_xlabel, names[0])),
        (beside, corner.top - height, height, (axis.set_yticks, axis.set_ylabel, names[1])),
    ):
        ticks = MaxNLocator(5, steps=[1, 2, 5, 10]).tick_values(first * factor, (first + length) * factor)
        values = np.asarray(ticks)
        values = values[(values >= first * factor) & (values <= (first + length) * factor)]
        if not is_drawn or not len(values):
            continue
        set_ticks, set_label, name = sides
        turned: dict[str, Any] = {} if name == names[0] else {"rotation": 90, "va": "center"}
        set_ticks((values / factor - first) * corner.unit_length, [f"{v:.9g}" for v in values], fontsize=6, **turned)
        set_label(f"{name}, {unit}" if unit else name, fontsize=6)
    axis.tick_params(length=2, pad=1.5)


def _points(axis: Axes, panel: Panel, extent: tuple[float, float, float, float], corner: Corner) -> None:
    """Draws the points of a panel that lie on its map, and counts them in its title."""
    if panel.points is None or not len(panel.points):
        return
    x = (panel.points[:, 0] - corner.left) * corner.unit_length
    y = extent[3] - (corner.top - panel.points[:, 1]) * corner.unit_length
    on_map = (x >= 0) & (x <= extent[1]) & (y >= 0) & (y <= extent[3])
    axis.scatter(x[on_map], y[on_map], s=9, facecolors="none", edgecolors="white", linewidths=1.6)
    axis.scatter(x[on_map], y[on_map], s=9, facecolors="none", edgecolors="#a50f15", linewidths=0.8)
    axis.set_title(f"{panel.title}; circles: {on_map.sum()} {panel.point_name}", fontsize=9)


def _draw(figure: Figure, axis: Axes, panel: Panel, extent: tuple[float, float, float, float]) -> None:
    axis.set_facecolor(_NODATA_COLOUR)
    if panel.style == "colours":
        known = np.isfinite(panel.image).all(axis=0)
        colours = np.nan_to_num(panel.image).transpose(1, 2, 0) / 255
        axis.imshow(np.dstack([colours, known]), extent=extent, interpolation="nearest")
        return
    image = np.ma.masked_invalid(panel.image)
    if panel.classes is not None:
        codes = sorted(panel.classes)
        colours = ListedColormap([np.array(panel.classes[code][1]) / 255 for code in codes])
        edges = [*(code - 0.5 for code in codes), codes[-1] + 0.5]
        norm = BoundaryNorm(edges, len(codes))
        drawn = axis.imshow(image, cmap=colours, norm=norm, extent=extent, interpolation="nearest")
        bar = figure.colorbar(drawn, ax=axis, fraction=0.05, pad=0.02, ticks=[(a + b) / 2 for a, b in pairwise(edges)])
        bar.ax.set_yticklabels([panel.classes[code][0] for code in codes], fontsize=min(6.0, 150 / len(codes)))
        return
    low, high, colours = colour_range(panel)
    drawn = axis.imshow(image, cmap=colours, vmin=low, vmax=high, extent=extent, interpolation="nearest")
    figure.colorbar(drawn, ax=axis, label=unit_text(panel.unit), fraction=0.05, pad=0.02)


def colour_range(panel: Panel) -> tuple[float, float, str]:
    """Values of the first and the last colour of a map of values, and the name of its colour map in matplotlib."""
    if panel.style == "difference":
        limit = error_limit(panel.image)
        return -limit, limit, "RdBu_r"
    if panel.style == "magnitude":
        return 0.0, error_limit(panel.image), "magma"
    return *(panel.limits or robust_limits([panel.image])), "viridis"


def bar_length(width: float) -> float:
    """Length of a scale bar: the largest 1, 2 or 5 times a power of ten that is at most three tenths of the width."""
    power = 10.0 ** math.floor(math.log10(width * _BAR_FRACTION))
    return max(step * power for step in (1, 2, 5) if step * power <= width * _BAR_FRACTION * (1 + 1e-9))


def bar_label(length: float, length_unit: str) -> str:
    """Text of a length, in kilometres from 1000 m on."""
    return f"{length / 1000:g} km" if length_unit == "m" and length >= 1000 else f"{length:g} {length_unit}"


def _scale_bar(axis: Axes, width: float, height: float, length_unit: str, where: str) -> None:
    length = bar_length(width)
    left, bottom, thick = 0.04 * width, 0.04 * height, 0.012 * height
    axis.fill([left, left + length, left + length, left], [bottom, bottom, bottom + thick, bottom + thick], "black")
    axis.text(
        left + length / 2,
        bottom + 2 * thick,
        bar_label(length, length_unit) + f" {where}" * bool(where),
        ha="center",
        va="bottom",
        fontsize=7,
        bbox={"facecolor": "white", "alpha": 0.7, "linewidth": 0, "pad": 1},
    )
