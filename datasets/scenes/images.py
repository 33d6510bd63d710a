"""Images of any size -> squares of the model's input size: cropped, flipped, resampled.

Invalid pixels stay invalid, and their values do not affect the pixels around them.
"""

from __future__ import annotations

import json
import threading
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import rasterio
import torch
import torch.nn.functional as F
from rasterio.enums import MaskFlags
from rasterio.errors import NotGeoreferencedWarning
from rasterio.windows import Window

CROP_SHARE = (0.2, 1.0)
"""Share of an image's area that a random crop takes, as in SatMAE."""

CROP_RATIO = (3 / 4, 4 / 3)
"""Width over height of a random crop, as is usual."""

CROP_TRIES = 10
"""Random crops drawn before the centre is taken: one that is too wide or too high for the image is drawn again."""

LEAST_WEIGHT = 0.5
"""A pixel of another size is valid when at least this share of what it is made of is."""

REDUCTIONS = (4, 2)
"""A JPEG that becomes smaller is decoded at a quarter or half of its size, which takes a third of the time."""

LEAST_LEFT = 1.25
"""Pixels of the reduced image along a pixel of the square, at least: the squares then differ less from those of the
whole image than two usual ways of averaging differ (`python -m scripts.benchmark scenes`).
"""

_one_at_a_time = threading.Lock()


@dataclass(frozen=True)
class Crop:
    """A rectangle of an image, in pixels, and how it is flipped.

    Attributes:
        top: first row.
        left: first column.
        rows: height.
        cols: width.
        flip_rows: upside down.
        flip_cols: left to right.
    """

    top: int
    left: int
    rows: int
    cols: int
    flip_rows: bool = False
    flip_cols: bool = False


def centre_crop(rows: int, cols: int) -> Crop:
    """The largest square in the middle: what is left of an image when its short side is brought to a size and the long
    one is cut to it.
    """
    side = min(rows, cols)
    return Crop((rows - side) // 2, (cols - side) // 2, side, side)


def random_crop(rows: int, cols: int, *, rng: np.random.Generator) -> Crop:
    """A random rectangle of an image, flipped at random along each axis.

    Args:
        rows: height of the image.
        cols: width of the image.
        rng: source of randomness.

    Returns:
        A crop of `CROP_SHARE` of the area with sides of `CROP_RATIO`; the centre if `CROP_TRIES` did not fit.
    """
    flip_rows, flip_cols = (bool(flip) for flip in rng.random(2) < 0.5)
    for _ in range(CROP_TRIES):
        area = rows * cols * rng.uniform(*CROP_SHARE)
        ratio = np.exp(rng.uniform(*np.log(CROP_RATIO)))
        height, width = max(round(np.sqrt(area / ratio)), 1), max(round(np.sqrt(area * ratio)), 1)
        top, left = rng.random(2)
        if height <= rows and width <= cols:
            where = int(top * (rows - height + 1)), int(left * (cols - width + 1))
            return Crop(*where, height, width, flip_rows, flip_cols)
    middle = centre_crop(rows, cols)
    return Crop(middle.top, middle.left, middle.rows, middle.cols, flip_rows, flip_cols)


def read_image(
    path: str | Path,
    *,
    bands: Sequence[int],
    expected: int,
    box: Sequence[float] | None = None,
    choose: Callable[[int, int], Crop] | None = None,
    size: int | None = None,
) -> np.ndarray:
    """Reads part of an image.

    Args:
        path: the file.
        bands: numbers of its bands, from 1, in the order wanted.
        expected: how many bands it must have.
        box: (x, y, width, height) in pixels of the part that is the image; all of it by default.
        choose: (rows, cols) of the image -> what to read of it; default all.
        size: edge of the square that it becomes next, pixels: a JPEG is then decoded at half or a quarter of its size
            if that leaves `LEAST_LEFT` as many; default: at its own.

    Returns:
        (bands, rows, cols) float32, NaN where invalid (nodata, masked, not finite). A reduced part begins and ends at
        whole pixels of the reduced image, at most 2 pixels of the file from where it was to.

    Raises:
        ValueError: another number of bands, or a box that is not inside.
        RasterioError, OSError: it cannot be decoded.
    """
    with rasterio.Env(GDAL_ERROR_ON_LIBJPEG_WARNING=True), _open(path) as file:
        if file.count != expected:
            raise ValueError(f"{file.count} bands, expected {expected}")
        top, left, rows, cols = (0, 0, file.height, file.width) if box is None else _inside(box, *file.shape)
        crop = Crop(0, 0, rows, cols) if choose is None else choose(rows, cols)
        reduction = 1 if size is None else _reduction(file, crop, size)
        window = Window(left + crop.left, top + crop.top, crop.cols, crop.rows)
        if reduction > 1:
            with _open(path, overview_level=file.overviews(1).index(reduction)) as reduced:
                values = _read(reduced, bands, _reduced(window, reduction))
        else:
            values = _read(file, bands, window)
    values[~np.isfinite(values)] = np.nan
    return values[:, :: -1 if crop.flip_rows else 1, :: -1 if crop.flip_cols else 1]


def _open(path: str | Path, **options: int) -> rasterio.DatasetReader:
    """Opens an image without the warning that it has no coordinates."""
    with _one_at_a_time, warnings.catch_warnings():  # filters of warnings are the process's, not the thread's
        warnings.simplefilter("ignore", NotGeoreferencedWarning)
        return rasterio.open(path, **options)


def _read(file: rasterio.DatasetReader, bands: Sequence[int], window: Window) -> np.ndarray:
    """Bands of a window, NaN where nodata or masked."""
    values = file.read(list(bands), window=window).astype(np.float32)
    if any(MaskFlags.all_valid not in file.mask_flag_enums[band - 1] for band in bands):
        values[file.read_masks(list(bands), window=window) == 0] = np.nan
    return values


def _reduction(file: rasterio.DatasetReader, crop: Crop, size: int) -> int:
    """The factor by which a JPEG is reduced while it is decoded, for a crop that becomes a square; 1: not at all.

    Only a JPEG's reduced images are averages of what is in the file: those of a TIFF may be anything.
    """
    if file.driver != "JPEG":
        return 1
    most = min(crop.rows, crop.cols) / (size * LEAST_LEFT)
    return next((factor for factor in REDUCTIONS if factor <= most and factor in file.overviews(1)), 1)


def _reduced(window: Window, factor: int) -> Window:
    """A window in pixels of a reduced image, its edges at the nearest of them."""
    left, top = round(window.col_off / factor), round(window.row_off / factor)
    right = round((window.col_off + window.width) / factor)
    bottom = round((window.row_off + window.height) / factor)
    return Window(left, top, right - left, bottom - top)


def _inside(box: Sequence[float], height: int, width: int) -> tuple[int, int, int, int]:
    """(top, left, rows, cols) of a box (x, y, width, height); boxes may stick out by a pixel, from rounding.

    Raises:
        ValueError: it is empty or lies outside the image.
    """
    x, y, box_width, box_height = box
    left, top, right, bottom = round(x), round(y), round(x + box_width), round(y + box_height)
    if min(left, top) < -1 or right > width + 1 or bottom > height + 1 or right <= left or bottom <= top:
        raise ValueError(
            f"box {list(box)} (x, y, width, height) does not lie inside its {width} x {height} pixels; correct the "
            "box in the JSON file beside the image"
        )
    left, top, right, bottom = max(left, 0), max(top, 0), min(right, width), min(bottom, height)
    if right <= left or bottom <= top:
        raise ValueError(f"box {list(box)} (x, y, width, height) covers none of its {width} x {height} pixels")
    return top, left, bottom - top, right - left


def read_box(path: str | Path, category: str) -> list[float]:
    """The box of an fMoW image: the first one of a category, or the first one that names no category.

    Args:
        path: JSON with `bounding_boxes`, a list of objects with `box`: [x, y, width, height] in pixels and, perhaps,
            `category`.
        category: of the image.

    Raises:
        ValueError: there is no such box in it; OSError: it cannot be read.
    """
    try:
        with open(path, encoding="utf-8-sig") as file:
            boxes = json.load(file)["bounding_boxes"]
        found = next(item["box"] for item in boxes if item.get("category", category) == category)
        x, y, width, height = (float(number) for number in found)
    except (ValueError, TypeError, KeyError, AttributeError, StopIteration) as error:
        raise ValueError(
            f"{path} holds no box for it ({type(error).__name__}: {error}); expected "
            f'{{"bounding_boxes": [{{"category": "{category}", "box": [x, y, width, height]}}]}}'
        ) from error
    return [x, y, width, height]


def to_size(values: np.ndarray, size: int) -> np.ndarray:
    """Resamples an image to a square by bilinear interpolation, averaging where it becomes smaller.

    Args:
        values: (C, rows, cols) float32, NaN where invalid.
        size: edge of the square, pixels.

    Returns:
        (C, size, size) float32, means of the valid pixels only; NaN where less than `LEAST_WEIGHT` of a pixel is valid.
    """
    if values.shape[1:] == (size, size):
        return np.ascontiguousarray(values)
    valid = np.isfinite(values)
    total = _interpolate(np.where(valid, values, np.float32(0.0)), size)
    if valid.all():
        return total
    weight = _interpolate(valid.astype(np.float32), size)
    return np.where(weight >= LEAST_WEIGHT, total / np.maximum(weight, LEAST_WEIGHT), np.float32("nan"))


def _interpolate(values: np.ndarray, size: int) -> np.ndarray:
    images = torch.from_numpy(np.ascontiguousarray(values))[None]
    return F.interpolate(images, size=(size, size), mode="bilinear", antialias=True, align_corners=False)[0].numpy()
