"""Charts, histograms and maps as lines and ticks that a template draws as SVG; pure arithmetic.

A drawing has a fixed size of its own, near that at which it is shown, so that its text stays readable on a narrow
screen.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.ticker import MaxNLocator

from util.run_page.content import Chart, GroundMap, Histogram, Line

COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00", "#6a51a3", "#737373")
"""Okabe and Ito's colours, which colour-blind readers tell apart, and two more."""
DASHES = ("", "6 3", "2 3")
"""A second and third round of the colours are dashed and dotted."""
MOST_POINTS = 240
"""Points of a curve that are drawn; of more, means of neighbours are."""

WIDTH, HEIGHT = 420, 250
LEFT, RIGHT, TOP, BOTTOM = 58, 10, 12, 38
MAP_EDGE, MAP_RIM = 300, 4
FEW_PLACES = 300
"""Places on a map up to which they are large dots."""
SMALL_WIDTH, SMALL_HEIGHT = 108, 30


@dataclass(frozen=True)
class Tick:
    """A place along an axis of a drawing and its label."""

    at: float
    label: str


@dataclass(frozen=True)
class Stroke:
    """A curve of a drawing: `path` as SVG has it; `dot` is its only point, if it has one alone."""

    name: str
    path: str
    colour: str
    dash: str
    dot: tuple[float, float] | None = None


@dataclass(frozen=True)
class DrawnChart:
    """A chart, ready to be drawn; `level` is the height of its horizontal line."""

    x_ticks: Sequence[Tick]
    y_ticks: Sequence[Tick]
    strokes: Sequence[Stroke]
    level: float | None
    width: int = WIDTH
    height: int = HEIGHT
    left: int = LEFT
    right: int = WIDTH - RIGHT
    top: int = TOP
    bottom: int = HEIGHT - BOTTOM


def draw_chart(chart: Chart) -> DrawnChart | None:
    """The lines and ticks of a chart; None if it has no finite point."""
    lines = [Line(line.name, thinned(finite(line.points)), line.number) for line in chart.lines]
    lines = [line for line in lines if line.points]
    if not lines:
        return None
    x_low, x_high = _span([x for line in lines for x, _ in line.points])
    levels = [] if chart.level is None else [chart.level]
    y_low, y_high = _span([y for line in lines for _, y in line.points] + levels, margin=0.05)

    def place(x: float, y: float) -> tuple[float, float]:
        across = LEFT + (x - x_low) / (x_high - x_low) * (WIDTH - LEFT - RIGHT)
        down = HEIGHT - BOTTOM - (y - y_low) / (y_high - y_low) * (HEIGHT - TOP - BOTTOM)
        return round(across, 1), round(down, 1)

    strokes = []
    for place_in_chart, line in enumerate(lines):
        number = place_in_chart if line.number is None else line.number
        places = [place(*point) for point in line.points]
        path = "M" + "L".join(f"{x:g} {y:g}" for x, y in places)
        colour, dash = COLOURS[number % len(COLOURS)], DASHES[number // len(COLOURS) % len(DASHES)]
        strokes.append(Stroke(line.name, path, colour, dash, places[0] if len(places) == 1 else None))
    x_ticks = [Tick(place(x, y_low)[0], number_text(x)) for x in ticks(x_low, x_high, whole=True)]
    y_ticks = [Tick(place(x_low, y)[1], number_text(y)) for y in ticks(y_low, y_high)]
    return DrawnChart(x_ticks, y_ticks, strokes, None if chart.level is None else place(x_low, chart.level)[1])


def finite(points: Iterable[tuple[float | None, float | None]]) -> list[tuple[float, float]]:
    """The points of which both numbers are finite."""
    return [(x, y) for x, y in points if x is not None and y is not None and math.isfinite(x) and math.isfinite(y)]


def thinned(points: Sequence[tuple[float, float]]) -> Sequence[tuple[float, float]]:
    """At most `MOST_POINTS` points: means of as many neighbours as it takes; the last one stays."""
    if len(points) <= MOST_POINTS:
        return points
    parts = np.array_split(np.asarray(points[:-1], dtype=np.float64), MOST_POINTS - 1)
    return [*(tuple(part.mean(axis=0).tolist()) for part in parts), points[-1]]  # type: ignore[misc]


def _span(values: Sequence[float], *, margin: float = 0.0) -> tuple[float, float]:
    """Lowest and highest value, apart from each other, with a margin as a fraction of their distance."""
    low, high = min(values), max(values)
    if high - low <= 1e-9 * max(abs(low), abs(high)):
        low, high = low - 0.5 * (abs(low) or 1), high + 0.5 * (abs(high) or 1)
    return low - margin * (high - low), high + margin * (high - low)


def ticks(low: float, high: float, *, whole: bool = False) -> list[float]:
    """A few round numbers from low to high."""
    found = MaxNLocator(nbins=5, integer=whole, steps=[1, 2, 2.5, 5, 10]).tick_values(low, high)
    slack = 1e-9 * (high - low)
    return [float(x) for x in found if low - slack <= x <= high + slack]


def number_text(value: float) -> str:
    """A number of a few digits."""
    if value == 0 or 1e-3 <= abs(value) < 1e5:
        return f"{round(value, 10):.6g}"
    return f"{value:.2g}"


@dataclass(frozen=True)
class DrawnHistogram:
    """Bars (x, y, width, height) of a histogram."""

    bars: Sequence[tuple[float, float, float, float]]
    width: int = SMALL_WIDTH
    height: int = SMALL_HEIGHT


def draw_histogram(histogram: Histogram) -> DrawnHistogram:
    """The bars of a histogram."""
    most, width = max([*histogram.counts, 1]), SMALL_WIDTH / max(len(histogram.counts), 1)
    bars = []
    for number, count in enumerate(histogram.counts):
        height = SMALL_HEIGHT * count / most
        bars.append(
            (round(number * width, 2), round(SMALL_HEIGHT - height, 2), round(0.9 * width, 2), round(height, 2))
        )
    return DrawnHistogram(bars)


@dataclass(frozen=True)
class Shape:
    """A rectangle (x, y, width, height) of a drawn map, and the colour of its outline."""

    box: tuple[float, float, float, float]
    colour: str


@dataclass(frozen=True)
class DrawnMap:
    """A map, ready to be drawn.

    Attributes:
        frame: of the ground, (x, y, width, height).
        cells: place of the image of the cells; None if there is none.
        percent: the cells' values.
        shapes: rectangles.
        dots: (colour, path that draws every place as a dot) of each kind.
        dot: diameter of a dot.
        legend: (name, colour, whether it is a dot) of each kind.
        tile: of a tile, at the corner; None if there is none.
        corners: coordinates of the north-western and the south-eastern corner.
    """

    width: float
    height: float
    frame: tuple[float, float, float, float]
    cells: tuple[float, float, float, float] | None
    percent: Sequence[Sequence[int]]
    shapes: Sequence[Shape]
    dots: Sequence[tuple[str, str]]
    dot: float
    legend: Sequence[tuple[str, str, bool]]
    tile: tuple[float, float, float, float] | None
    corners: tuple[str, str]


def draw_map(ground_map: GroundMap) -> DrawnMap:
    """The shapes of a map of the ground; held-out blocks, folds and classes by colour."""
    ground = ground_map.ground
    left, bottom, right, top = ground["bounds"]
    scale = MAP_EDGE / max(right - left, top - bottom)

    def box(bounds: Sequence[float]) -> tuple[float, float, float, float]:
        west, south, east, north = bounds
        x, y = MAP_RIM + (west - left) * scale, MAP_RIM + (top - north) * scale
        return round(x, 2), round(y, 2), round((east - west) * scale, 2), round((north - south) * scale, 2)

    rectangles, points = ground.get("rectangles", []), ground.get("points", [])
    names = list(dict.fromkeys(item["name"] for item in rectangles))
    colours = {name: COLOURS[(number + 1) % len(COLOURS)] for number, name in enumerate(names)}
    dots, legend = [], [(name, colours[name], False) for name in names]
    for number, item in enumerate(of for of in points if of["places"]):
        colour = COLOURS[number % len(COLOURS)]
        places = (box([x, y, x, y])[:2] for x, y in item["places"])
        dots.append((colour, "".join(f"M{x:g} {y:g}h0" for x, y in places)))
        legend.append((item["name"], colour, True))
    tile = None
    if "tile" in ground:
        tile = box([left, top - ground["tile"][1], left + ground["tile"][0], top])
        legend.append(("a tile", "#111", False))
    cells, (_, _, width, height) = ground.get("cells"), box(ground["bounds"])
    return DrawnMap(
        width=round(width + 2 * MAP_RIM, 2),
        height=round(height + 2 * MAP_RIM, 2),
        frame=box(ground["bounds"]),
        cells=box(cells["bounds"]) if cells else None,
        percent=cells["percent"] if cells else (),
        shapes=[Shape(box(item["bounds"]), colours[item["name"]]) for item in rectangles],
        dots=dots,
        dot=5.0 if sum(len(of["places"]) for of in points) <= FEW_PLACES else 2.2,
        legend=legend,
        tile=tile,
        corners=(_corner(left, top, ground["unit"]), _corner(right, bottom, ground["unit"])),
    )


def _corner(x: float, y: float, unit: str) -> str:
    """Coordinates in words; kilometres where they are in metres."""
    if unit == "m":
        return f"{x / 1000:,.6g} km, {y / 1000:,.6g} km"
    return f"{x:,.6g}, {y:,.6g} {unit}".rstrip()


def cell_pixels(percent: Sequence[Sequence[Any]]) -> np.ndarray:
    """(rows, cols, 3) uint8 colours of the cells of a map: white for 0 %, blue-grey for 100 %."""
    fraction = np.asarray(percent, dtype=np.float64)[..., None] / 100
    return np.rint(255 + fraction * (np.array([176, 196, 222]) - 255)).astype(np.uint8)
