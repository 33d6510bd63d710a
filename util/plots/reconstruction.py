"""Figures of reconstructions: input, masked input, reconstruction, target and error, in physical units."""

from __future__ import annotations

import contextlib
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import Colormap, ListedColormap
from matplotlib.figure import Figure

from util.hardware.system import replace_file
from util.plots.names import short_name

_COLUMNS = ("input", "masked input", "reconstruction", "target", "error")
_INVALID_COLOUR = "0.85"  # light grey: nodata, or hidden from the model
_ROBUST_PERCENT = (2.0, 98.0)
_PANEL_INCHES = 2.2
_NAME_LENGTH = 20


@dataclass(frozen=True)
class RowImages:
    """One row of the figure: one layer of one tile at one scale.

    Arrays are in physical units, row 0 in the north, NaN = invalid, and cover the same area. The inputs are at the base
    scale, so they may have fewer pixels than the reconstruction and target of a finer scale.

    Attributes:
        layer: name of the layer.
        unit: unit of the values, such as "nT"; may be empty.
        scale: number of pixels of `target` along each side of a base pixel: 1, 2, 4.
        pixel_size: width of a pixel of `target`, length units.
        image: complete input tile at the base scale, (h, w).
        visible: the input with NaN in patches hidden from the model, (h, w).
        reconstruction: prediction of the model, (H, W); drawn wherever it is finite.
        target: truth at this scale, (H, W); NaN where it is unknown.
        scored: False if the layer is not scored at this scale, which the label then says.
        is_angle: True if values are degrees; the error is the angle between prediction and truth.
        period: of angles, degrees after which they repeat.
        classes: class code -> (name, '#rrggbb') if values are codes; the error is 1 where the class is wrong.
        pixel_height: height of a pixel of `target`; None: its width.
        skill: of the layer at this scale on all held-out ground, for the label; None: unknown.
    """

    layer: str
    unit: str
    scale: int
    pixel_size: float
    image: np.ndarray
    visible: np.ndarray
    reconstruction: np.ndarray
    target: np.ndarray
    scored: bool = True
    is_angle: bool = False
    period: float = 360.0
    classes: Mapping[float, tuple[str, str]] | None = None
    pixel_height: float | None = None
    skill: float | None = None


def unit_text(unit: str) -> str:
    """The unit of a colour bar, which says so if there is none."""
    return unit or "unit not stated"


def reconstruction_figure(rows: Sequence[RowImages], *, title: str = "", length_unit: str = "m") -> Figure:
    """Draws a row for each layer and scale, with columns input, masked input, reconstruction, target and error.

    The first four panels of a row have the same colour limits, the 2 and 98 % quantiles of input and target. Colours of
    the error (reconstruction minus target) are centred on zero and reach the 98 % quantile of its absolute value. Light
    grey is nodata or hidden.

    Args:
        rows: rows from top to bottom.
        title: title of the figure.
        length_unit: unit of the pixel sizes: "m" (extents are then in km) or another, such as "degree".

    Raises:
        ValueError: there are no rows, or arrays of a row differ in shape.
    """
    if not rows:
        raise ValueError("nothing to draw: expected at least one row of images")
    for row in rows:
        _check_row(row)
    height = _PANEL_INCHES * len(rows) + (0.5 if title else 0.1)
    figure = Figure(figsize=(_PANEL_INCHES * (len(_COLUMNS) + 1.4), height), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(len(rows), len(_COLUMNS), squeeze=False)
    for row, row_axes in zip(rows, axes, strict=True):
        _draw_row(figure, row_axes, row, length_unit)
    for axis, name in zip(axes[0], _COLUMNS, strict=True):
        axis.set_title(name, fontsize=9)
    if title:
        figure.suptitle(title, fontsize=10)
    return figure


def save_figure(path: str | os.PathLike[str], figure: Figure, *, dpi: int = 110) -> None:
    """Writes the figure as PNG under a temporary name in the same folder, then renames it.

    Raises:
        OSError: the file cannot be written.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        figure.savefig(temporary, format="png", dpi=dpi)
        replace_file(temporary, path)
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


def robust_limits(arrays: Sequence[np.ndarray]) -> tuple[float, float]:
    """The 2 and 98 % quantiles of all finite values, widened if they are equal; (0, 1) if none is finite."""
    values = np.concatenate([np.asarray(array, dtype=np.float64).ravel() for array in arrays])
    values = values[np.isfinite(values)]
    if values.size == 0:
        return 0.0, 1.0
    low, high = (float(limit) for limit in np.percentile(values, _ROBUST_PERCENT))
    if low == high:
        low, high = float(values.min()), float(values.max())
    if low == high:
        margin = abs(low) * 0.01 or 1.0
        low, high = low - margin, high + margin
    return low, high


def error_limit(error: np.ndarray) -> float:
    """The 98 % quantile of the absolute value of finite errors, never zero; 1 if none is finite."""
    magnitude = np.abs(error[np.isfinite(error)])
    if magnitude.size == 0:
        return 1.0
    return float(np.percentile(magnitude, _ROBUST_PERCENT[1])) or float(magnitude.max()) or 1.0


def _check_row(row: RowImages) -> None:
    name = f"row {row.layer!r} at scale {row.scale}"
    for field in ("image", "visible", "reconstruction", "target"):
        shape = np.shape(getattr(row, field))
        if len(shape) != 2:
            raise ValueError(f"{name}: {field} has shape {shape}, expected (H, W)")
    if row.image.shape != row.visible.shape:
        raise ValueError(f"{name}: image {row.image.shape} and visible {row.visible.shape} differ in shape")
    if row.reconstruction.shape != row.target.shape:
        raise ValueError(
            f"{name}: reconstruction {row.reconstruction.shape} and target {row.target.shape} differ in shape"
        )


def _draw_row(figure: Figure, axes: Sequence[Axes], row: RowImages, length_unit: str) -> None:
    low, high, values_map = _values_colours(row)
    error, limit = _error_of(row)
    error_map = _with_grey("RdBu_r")
    # All panels have the same extent, whatever their number of pixels.
    extent = (0.0, float(row.target.shape[1]), float(row.target.shape[0]), 0.0)
    for axis, image in zip(axes, (row.image, row.visible, row.reconstruction, row.target), strict=False):
        drawn = axis.imshow(
            np.ma.masked_invalid(image if row.classes is None else _class_numbers(image, row.classes)),
            cmap=values_map,
            vmin=low,
            vmax=high,
            extent=extent,
            interpolation="nearest",
        )
    bar = figure.colorbar(drawn, ax=list(axes[:4]), fraction=0.02, pad=0.01)
    unit = unit_text(row.unit)
    if row.classes is None:
        bar.set_label(unit)
    else:
        names = [short_name(row.classes[code][0], _NAME_LENGTH) for code in sorted(row.classes)]
        bar.set_ticks(range(len(names)), labels=names, fontsize=min(6.0, 110 / len(names)))
    drawn = axes[4].imshow(
        np.ma.masked_invalid(error),
        cmap=error_map,
        vmin=-limit,
        vmax=limit,
        extent=extent,
        interpolation="nearest",
    )
    figure.colorbar(drawn, ax=axes[4], label="1 = wrong class" if row.classes else unit, fraction=0.05, pad=0.02)
    for axis in axes:
        axis.set_xticks([])
        axis.set_yticks([])
    axes[0].set_ylabel(_row_label(row, length_unit), fontsize=8)


def _class_numbers(image: np.ndarray, classes: Mapping[float, tuple[str, str]]) -> np.ndarray:
    """Numbers from 0 of the classes in ascending order of their codes, NaN where there is none."""
    return np.where(np.isnan(image), np.nan, np.searchsorted(sorted(classes), np.nan_to_num(image)))


def _values_colours(row: RowImages) -> tuple[float, float, Colormap]:
    """Colour limits and colour map of the values of a row: cyclic for angles, the colour of each class for classes."""
    if row.is_angle:
        return 0.0, row.period, _with_grey("twilight")
    if row.classes is not None:
        colours = ListedColormap([row.classes[code][1] for code in sorted(row.classes)])
        return -0.5, len(row.classes) - 0.5, colours.with_extremes(bad=_INVALID_COLOUR)
    return *robust_limits([row.image, row.target]), _with_grey("viridis")


def _error_of(row: RowImages) -> tuple[np.ndarray, float]:
    """Reconstruction minus target, or their angle or mismatch, and the limit of its colours."""
    error = row.reconstruction - row.target
    if row.is_angle:
        return (error + row.period / 2) % row.period - row.period / 2, row.period / 2
    if row.classes is not None:
        return np.where(np.isnan(error), np.nan, (error != 0).astype(float)), 1.0
    return error, error_limit(error)


def _row_label(row: RowImages, length_unit: str) -> str:
    rows, cols = row.target.shape
    factor, unit = (1e-3, "km") if length_unit == "m" else (1.0, length_unit)
    height = row.pixel_size if row.pixel_height is None else row.pixel_height
    size = f"{row.pixel_size:.6g}" if height == row.pixel_size else f"{row.pixel_size:.4g} x {height:.4g}"
    ground = f"{cols * row.pixel_size * factor:.4g} x {rows * height * factor:.4g} {unit}"
    name = row.layer if row.scored else f"{row.layer} (not scored)"
    skill = "" if row.skill is None or math.isnan(row.skill) else f"\nskill {row.skill:+.2f}"
    return f"{name}\nscale {row.scale}: {size} {length_unit} pixels\n{ground}{skill}"


def _with_grey(name: str) -> Colormap:
    return colormaps[name].with_extremes(bad=_INVALID_COLOUR)
