"""Pictures of results: maps with colour bars and a scale bar, to see without a GIS whether it worked."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import BoundaryNorm, ListedColormap
from matplotlib.figure import Figure

from util.plots.reconstruction import error_limit, robust_limits

_NOTHING = "0.85"
_PANEL_INCHES = 4.0
_BAR_SHARE = 0.3
_MOST_ACROSS = 4


@dataclass(frozen=True)
class Panel:
    """One map.

    Attributes:
        title: above it.
        image: (r, c) values, NaN where nothing is known; or (3, r, c) colours from 0 to 255.
        unit: of the values.
        style: `field`, `spread` (from zero), `difference` (about zero), `colours` or `classes`.
        classes: for classes, code -> (name, colour).
        limits: of the colours of a field; None: 2 and 98 % of its values.
    """

    title: str
    image: np.ndarray
    unit: str = ""
    style: str = "field"
    classes: dict[int, tuple[str, tuple[int, int, int]]] | None = None
    limits: tuple[float, float] | None = None


def map_figure(
    panels: Sequence[Panel], *, pixel_size: float, length_unit: str, title: str = "", where: str = ""
) -> Figure:
    """Draws maps side by side, four in a row.

    Args:
        panels: what to draw; all of the same ground.
        pixel_size: ground width of a pixel of the first panel, length units.
        length_unit: of lengths on the ground; metres become kilometres where that reads better.
        title: above everything.
        where: where on the map a pixel is that wide, if not everywhere.

    Raises:
        ValueError: nothing to draw.
    """
    if not panels:
        raise ValueError("nothing to draw: expected at least one panel")
    rows, cols = panels[0].image.shape[-2:]
    height = min(max(_PANEL_INCHES * rows / cols, 2.0), 3 * _PANEL_INCHES)
    across = min(len(panels), _MOST_ACROSS)
    down = -(-len(panels) // across)
    figure = Figure(figsize=((_PANEL_INCHES + 0.9) * across, (height + 0.9) * down), layout="constrained")
    FigureCanvasAgg(figure)
    extent = (0.0, cols * pixel_size, 0.0, rows * pixel_size)
    axes = figure.subplots(down, across, squeeze=False).ravel()
    for axis in axes[len(panels) :]:
        axis.set_axis_off()
    for axis, panel in zip(axes, panels, strict=False):
        _draw(figure, axis, panel, extent)
        _scale_bar(axis, extent[1], extent[3], length_unit, where)
        axis.set_title(panel.title, fontsize=9)
        axis.set_xticks([])
        axis.set_yticks([])
    if title:
        figure.suptitle(title, fontsize=10)
    return figure


def _draw(figure: Figure, axis: Axes, panel: Panel, extent: tuple[float, float, float, float]) -> None:
    axis.set_facecolor(_NOTHING)
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
        bar.ax.set_yticklabels([panel.classes[code][0] for code in codes], fontsize=6)
        return
    if panel.style == "difference":
        limit = error_limit(panel.image)
        low, high, colours = -limit, limit, colormaps["RdBu_r"]
    elif panel.style == "spread":
        low, high, colours = 0.0, error_limit(panel.image), colormaps["magma"]
    else:
        (low, high), colours = panel.limits or robust_limits([panel.image]), colormaps["viridis"]
    drawn = axis.imshow(image, cmap=colours, vmin=low, vmax=high, extent=extent, interpolation="nearest")
    figure.colorbar(drawn, ax=axis, label=panel.unit, fraction=0.05, pad=0.02)


def bar_length(width: float) -> float:
    """A round length, 1, 2 or 5 times a power of ten, of at most three tenths of the width."""
    power = 10.0 ** math.floor(math.log10(width * _BAR_SHARE))
    return max(step * power for step in (1, 2, 5) if step * power <= width * _BAR_SHARE * (1 + 1e-9))


def bar_label(length: float, length_unit: str) -> str:
    """The length in words, in kilometres from 1000 m on."""
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
