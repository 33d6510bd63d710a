"""Maps of truth, prediction, error and folds side by side, of pixels or of points.

Each figure shows a warning, if there is one, in its title, because figures are copied without the log.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from util.plots.maps import Corner, Panel, colour_bytes, map_figure
from util.plots.names import short_name
from util.plots.reconstruction import robust_limits
from util.plots.scores import LONGEST_NAME, distinct_colours, put_title

Legend = dict[int, tuple[str, tuple[int, int, int]]]

_RIGHT_OR_WRONG: Legend = {0: ("right", (158, 202, 225)), 1: ("wrong", (203, 24, 29))}

_POINT_MAP_PIXELS = 200
"""Pixels along the longer edge of the empty map on which points are drawn."""


def class_maps(
    truth: np.ndarray,
    prediction: np.ndarray,
    folds: np.ndarray,
    *,
    names: Sequence[str],
    colours: Sequence[str],
    pixel_size: float,
    length_unit: str,
    title: str = "",
    warning: str = "",
    corner: Corner | None = None,
    layers: Sequence[Panel] = (),
) -> Figure:
    """Draws maps of true classes, predicted classes, where they differ, and folds.

    Args:
        truth: (rows, cols) class numbers, NaN or negative = unlabelled.
        prediction: (rows, cols) class numbers, NaN or negative = not predicted.
        folds: fold in which each pixel is tested, NaN or negative = in none.
        names: names of the classes.
        colours: colours of the classes, '#rrggbb'.
        pixel_size: ground width of a pixel, CRS units.
        length_unit: unit of the CRS.
        title: title of the figure.
        warning: second line of the title, in red.
        corner: where the map lies, for coordinates along its edges.
        layers: maps of the layers on the same ground, drawn below.

    Raises:
        ValueError: maps that differ in shape.
    """
    truth, prediction, folds = _same_shape(truth=truth, prediction=prediction, folds=folds)
    legend = class_legend(names, colours)
    wrong = np.where(np.isnan(truth) | np.isnan(prediction), np.nan, truth != prediction)
    percent = f": {100 * np.nanmean(wrong):.0f} % of pixels" if np.isfinite(wrong).any() else ""
    panels = [
        Panel("truth", truth, classes=legend),
        Panel("prediction", prediction, classes=legend),
        Panel(f"wrong{percent}", wrong, classes=_RIGHT_OR_WRONG),
        Panel("folds", folds, classes=fold_legend(folds)),
        *layers,
    ]
    figure = map_figure(panels, pixel_size=pixel_size, length_unit=length_unit, corner=corner)
    put_title(figure, title, warning)
    return figure


def value_maps(
    truth: np.ndarray,
    prediction: np.ndarray,
    folds: np.ndarray,
    *,
    unit: str,
    pixel_size: float,
    length_unit: str,
    title: str = "",
    warning: str = "",
    corner: Corner | None = None,
    layers: Sequence[Panel] = (),
) -> Figure:
    """Draws maps of true and predicted values on one colour scale, prediction minus truth, and folds.

    Args:
        truth: (rows, cols) values, NaN = unknown.
        prediction: (rows, cols) values, NaN = not predicted.
        folds: fold in which each pixel is tested, NaN or negative = in none.
        unit: unit of the values.
        pixel_size: ground width of a pixel, CRS units.
        length_unit: unit of the CRS.
        title: title of the figure.
        warning: second line of the title, in red.
        corner: where the map lies, for coordinates along its edges.
        layers: maps of the layers on the same ground, drawn below.

    Raises:
        ValueError: maps that differ in shape.
    """
    folds = _same_shape(truth=truth, prediction=prediction, folds=folds)[2]
    panels = [
        Panel("truth", truth, unit),
        Panel("prediction", prediction, unit),
        Panel("error: prediction minus truth", prediction - truth, unit, "difference"),
        Panel("folds", folds, classes=fold_legend(folds)),
        *layers,
    ]
    figure = map_figure(panels, pixel_size=pixel_size, length_unit=length_unit, corner=corner)
    limits = robust_limits([truth])
    for axis in _panels(figure)[:2]:
        axis.images[0].set_clim(*limits)
    put_title(figure, title, warning)
    return figure


def point_maps(
    positions: np.ndarray,
    truth: np.ndarray,
    prediction: np.ndarray,
    folds: np.ndarray,
    *,
    names: Sequence[str],
    colours: Sequence[str],
    shape: tuple[int, int],
    pixel_size: float,
    length_unit: str,
    title: str = "",
    warning: str = "",
    corner: Corner | None = None,
    layers: Sequence[Panel] = (),
) -> Figure:
    """Draws maps of points, coloured by true class, prediction, error and fold.

    Args:
        positions: (n, 2) rows and columns, base pixels.
        truth: (n,) class numbers.
        prediction: (n,) class numbers, integers; or floats, scores from 0 to 1 of class 1 of two classes.
        folds: (n,) fold in which each is tested, negative = in none.
        names: names of the classes.
        colours: colours of the classes, '#rrggbb'.
        shape: (rows, cols) of the map, base pixels.
        pixel_size: ground width of a base pixel, CRS units.
        length_unit: unit of the CRS.
        title: title of the figure.
        warning: second line of the title, in red.
        corner: where the map lies, for coordinates along its edges.
        layers: maps of the layers on the same ground, drawn below.

    Raises:
        ValueError: arrays that differ in length.
    """
    lengths = {len(values) for values in (positions, truth, prediction, folds)}
    if len(lengths) != 1:
        raise ValueError(f"points differ in number: {sorted(lengths)}; expected a truth, prediction and fold for each")
    step = -(-max(shape) // _POINT_MAP_PIXELS)
    empty = np.full([-(-size // step) for size in shape], np.nan)
    legend = class_legend(names, colours)
    predicted, error, errors = _prediction_panels(truth, prediction, empty, names=names, legend=legend)
    panels = [
        Panel("truth", empty, classes=legend),
        predicted,
        error,
        Panel("folds", empty, classes=fold_legend(folds)),
        *layers,
    ]
    figure = map_figure(panels, pixel_size=pixel_size * step, length_unit=length_unit, corner=corner)
    x, y = positions[:, 1] * pixel_size, (empty.shape[0] * step - positions[:, 0]) * pixel_size
    for axis, values in zip(_panels(figure)[:4], (truth, prediction, errors, folds), strict=True):
        drawn = values >= 0 if values is folds else np.ones(len(values), dtype=bool)
        axis.set_facecolor("white")
        axis.scatter(
            x[drawn],
            y[drawn],
            color=axis.images[0].to_rgba(values[drawn]),
            s=16,
            edgecolors="0.2",
            linewidths=0.3,
        )
    put_title(figure, title, warning)
    return figure


def _prediction_panels(
    truth: np.ndarray, prediction: np.ndarray, empty: np.ndarray, *, names: Sequence[str], legend: Legend
) -> tuple[Panel, Panel, np.ndarray]:
    """Panels for predictions and errors of points, on an empty map, and the error of each point."""
    if np.issubdtype(prediction.dtype, np.floating):
        predicted = Panel(f"score of {names[1]}", empty, "score, 0 to 1")
        error = Panel("error: score minus truth", empty, "score", style="difference")
        return predicted, error, prediction - truth
    wrong = (truth != prediction).astype(np.int64)
    title = f"wrong: {100 * wrong.mean() if wrong.size else 0:.0f} % of points"
    return Panel("prediction", empty, classes=legend), Panel(title, empty, classes=_RIGHT_OR_WRONG), wrong


def class_legend(names: Sequence[str], colours: Sequence[str]) -> Legend:
    """Class number -> (name, colour 0..255), from names and '#rrggbb'."""
    return {
        number: (short_name(name, LONGEST_NAME), colour_bytes(colour))
        for number, (name, colour) in enumerate(zip(names, colours, strict=True))
    }


def fold_legend(folds: np.ndarray) -> Legend:
    """Fold number -> (name, colour), of folds 0 to the largest."""
    largest = int(np.nanmax(folds)) if np.isfinite(folds).any() else 0
    colours = distinct_colours(largest + 1)
    return {fold: (f"fold {fold}", colour_bytes(colour)) for fold, colour in enumerate(colours)}


def _same_shape(**maps: np.ndarray) -> list[np.ndarray]:
    """The maps as float64, with NaN for negative values."""
    shapes = {name: values.shape for name, values in maps.items()}
    if len(set(shapes.values())) != 1:
        listed = ", ".join(f"{name} {shape}" for name, shape in shapes.items())
        raise ValueError(f"maps differ in shape: {listed}; expected the same pixels in all of them")
    return [np.where(values >= 0, values, np.nan).astype(np.float64) for values in maps.values()]


def _panels(figure: Figure) -> list[Axes]:
    """The axes of the maps, without those of colour bars."""
    return [axis for axis in figure.axes if axis.images]
