"""Sheets of one layer (map sheets, tiles, blocks of a delivery) read as one raster.

`SheetsSource` stands in for the `BandSource` of one file: each sheet is opened and checked as a raster of its own, and
a window is put together from those that it touches. Nothing is written; a mosaic is named by the paths of its sheets.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from affine import Affine

from datasets.ground.grid import SNAP
from datasets.layers.layer import Layer
from datasets.layers.paths import sheet_paths
from datasets.rasters.band import BandSource

OpenedSource = tuple[BandSource, list[float], list[str], list[str]]
"""A source; the stored values stated as no data; what is invalid, in words; notes."""

# Pixels of an overlap that are compared at a time.
_COMPARED_PIXELS = 2**21


@dataclass(frozen=True)
class Sheet:
    """A sheet and the row and column of the mosaic at which it begins."""

    row: int
    col: int
    source: BandSource

    def common(self, row: int, col: int, rows: int, cols: int) -> tuple[int, int, int, int] | None:
        """(row, col, rows, cols) of the part of a window of the mosaic that the sheet covers; None if there is none."""
        top, left = max(row, self.row), max(col, self.col)
        bottom, right = min(row + rows, self.row + self.source.rows), min(col + cols, self.col + self.source.cols)
        return (top, left, bottom - top, right - left) if bottom > top and right > left else None


@dataclass(frozen=True)
class SheetsSource(BandSource):
    """One band of a layer in several sheets, in their common pixel frame. Picklable, holds no handle.

    Attributes:
        sheets: the sheets; where they overlap, the first that is valid counts.
    """

    sheets: tuple[Sheet, ...] = ()

    def read_stored(self, row: int, col: int, rows: int, cols: int) -> tuple[np.ndarray, np.ndarray | None]:
        """Read a window of the mosaic.

        Returns:
            (rows, cols) in the type of the files, and a boolean array of invalid pixels, those in no sheet among
            them; None if none is invalid.

        Raises:
            OSError: a sheet cannot be read; names layer, sheet and window.
        """
        raw, invalid = np.zeros((rows, cols), dtype=self.dtype), np.ones((rows, cols), dtype=bool)
        for sheet in self.sheets:
            common = sheet.common(row, col, rows, cols)
            if common is None:
                continue
            top, left, height, width = common
            place = slice(top - row, top - row + height), slice(left - col, left - col + width)
            missing = invalid[place]
            if not missing.any():
                continue
            part, invalid_part = sheet.source.read_stored(top - sheet.row, left - sheet.col, height, width)
            raw[place][missing] = part[missing]
            invalid[place] = False if invalid_part is None else missing & invalid_part
        by_value = self.invalid_stored(raw)
        invalid = invalid if by_value is None else invalid | by_value
        return raw, invalid if invalid.any() else None

    def with_nodata(self, values: Sequence[float]) -> SheetsSource:
        """The same mosaic with further nodata, also in each sheet, so that another one counts where they overlap."""
        sheets = tuple(replace(sheet, source=sheet.source.with_nodata(values)) for sheet in self.sheets)
        return replace(self, nodata=(*self.nodata, *values), sheets=sheets)


def open_sheets(layer: Layer, open_one: Callable[[Layer], OpenedSource]) -> OpenedSource:
    """Open the sheets of a layer as one source.

    Args:
        layer: its path names the sheets.
        open_one: opens one of them as a raster of its own.

    Raises:
        ValueError: a sheet cannot be used, or does not fit the first one; the message says why and what to do.
        FileNotFoundError: a sheet is not there.
    """
    opened = [open_one(replace(layer, path=path)) for path in sheet_paths(layer.path)]
    sources = [source for source, *_ in opened]
    first = sources[0]
    for source in sources[1:]:
        _require_same(layer, first, source)
    sheets, transform, (rows, cols) = _placed(sources)
    common = [value for value in first.nodata if all(value in source.nodata for source in sources)]
    mosaic = SheetsSource(
        layer=replace(first.layer, path=layer.path),
        crs=first.crs,
        transform=transform,
        rows=rows,
        cols=cols,
        dtype=first.dtype,
        scale=first.scale,
        offset=first.offset,
        nodata=tuple(common),
        has_mask=any(source.has_mask for source in sources),  # for the words; each sheet reads its own
        alpha=max(source.alpha for source in sources),
        block=first.block,
        sheets=sheets,
    )
    stated = list(dict.fromkeys(value for _, values, *_ in opened for value in values))
    rule = list(dict.fromkeys(text for _, _, texts, _ in opened for text in texts))
    notes = _common_notes(sources, [texts for *_, texts in opened])
    covered = sum(sheet.source.rows * sheet.source.cols for sheet in sheets)
    if covered < rows * cols:
        rule.append("outside its sheets")
    differing, largest = _disagreement(mosaic)
    if differing:
        notes.append(
            f"{differing} pixels differ where its sheets overlap, by up to {largest:.6g}: the sheet that is named "
            "first counts"
        )
    return mosaic, stated, rule, notes


def _require_same(layer: Layer, first: BandSource, other: BandSource) -> None:
    """Refuse a sheet that is stored otherwise than the first one, or lies on another pixel grid."""
    a, b = tuple(first.transform)[:6], tuple(other.transform)[:6]
    pairs: list[tuple[str, object, object]] = [
        ("type", first.dtype, other.dtype),
        ("kind", first.layer.kind, other.layer.kind),
        ("scale", first.scale, other.scale),
        ("offset", first.offset, other.offset),
        ("CRS", first.crs.to_string()[:60], other.crs.to_string()[:60]),
    ]
    if _stretch(first, other) > SNAP:
        pairs.append(("pixel size", f"{a[0]:.9g} x {a[4]:.9g}", f"{b[0]:.9g} x {b[4]:.9g}"))
    elif first.crs == other.crs and _misfit(first, other) > SNAP:
        pairs.append(("alignment", "whole pixels", f"shifted by {_misfit(first, other):.3g} of a pixel"))
    for what, expected, found in pairs:
        if expected != found:
            raise ValueError(
                f"{layer.where}: sheet {other.layer.path} has {what} {found}, expected {expected} as in "
                f"{Path(first.layer.path).name}: sheets of one layer share type, kind and pixel grid; bring it to the "
                "others' (gdal_translate -ot, gdalwarp -tr ... -tap), or give it a row of its own in layers.csv"
            )


def _stretch(first: BandSource, other: BandSource) -> float:
    """How far the pixels of a sheet are from the first one's at its far corner, pixels, if their corners met."""
    a, b = tuple(first.transform)[:6], tuple(other.transform)[:6]
    pixel = max(abs(a[0]), abs(a[1])), max(abs(a[3]), abs(a[4]))
    x = abs(b[0] - a[0]) * other.cols + abs(b[1] - a[1]) * other.rows
    y = abs(b[3] - a[3]) * other.cols + abs(b[4] - a[4]) * other.rows
    return max(x / pixel[0], y / pixel[1])


def _offset(first: BandSource, other: BandSource) -> tuple[float, float]:
    """(row, column) of a sheet's corner in the pixels of the first one."""
    inverse, x, y = ~first.transform, other.transform.c, other.transform.f
    return inverse.d * x + inverse.e * y + inverse.f, inverse.a * x + inverse.b * y + inverse.c


def _misfit(first: BandSource, other: BandSource) -> float:
    return max(abs(position - round(position)) for position in _offset(first, other))


def _placed(sources: Sequence[BandSource]) -> tuple[tuple[Sheet, ...], Affine, tuple[int, int]]:
    """The sheets in their common frame, its transform, and its (rows, cols)."""
    corners = [tuple(round(position) for position in _offset(sources[0], source)) for source in sources]
    top, left = min(row for row, _ in corners), min(col for _, col in corners)
    sheets = tuple(Sheet(row - top, col - left, source) for (row, col), source in zip(corners, sources, strict=True))
    rows = max(sheet.row + sheet.source.rows for sheet in sheets)
    cols = max(sheet.col + sheet.source.cols for sheet in sheets)
    return sheets, _corner_transform(sheets), (rows, cols)


def _corner_transform(sheets: Sequence[Sheet]) -> Affine:
    """The transform of the frame: corners as stored where a sheet begins there, without rounding."""
    (a, b, x, d, e, y), row, col = tuple(sheets[0].source.transform)[:6], sheets[0].row, sheets[0].col
    if b or d:
        return Affine(a, b, x - a * col - b * row, d, e, y - d * col - e * row)
    west = next(sheet.source.transform for sheet in sheets if sheet.col == 0)
    north = next(sheet.source.transform for sheet in sheets if sheet.row == 0)
    return Affine(a, b, west.c, d, e, north.f)


def _common_notes(sources: Sequence[BandSource], notes: Sequence[Sequence[str]]) -> list[str]:
    """The notes about all sheets, each once, with how many it is about and the first of them."""
    counts = Counter(text for texts in notes for text in texts)
    first = {
        text: source.layer.path for source, texts in reversed(list(zip(sources, notes, strict=True))) for text in texts
    }
    return [
        text if count == len(sources) else f"{count} of {len(sources)} sheets, {Path(first[text]).name} first: {text}"
        for text, count in counts.items()
    ]


def _disagreement(mosaic: SheetsSource) -> tuple[int, float]:
    """How many pixels are valid in two sheets and differ, and the largest difference, physical units."""
    count, largest = 0, 0.0
    for one, other, window in _overlaps(mosaic.sheets):
        values = [
            sheet.source.read(window[0] - sheet.row, window[1] - sheet.col, *window[2:]).astype(np.float64)
            for sheet in (one, other)
        ]
        difference = np.abs(values[0] - values[1])
        count += int((difference > 0).sum())  # NaN, where either is invalid, is not
        largest = max(largest, float(np.nanmax(difference, initial=0.0, where=np.isfinite(difference))))
    return count, largest


def _overlaps(sheets: Sequence[Sheet]) -> Iterator[tuple[Sheet, Sheet, tuple[int, int, int, int]]]:
    """Pairs of sheets and windows (row, col, rows, cols) of the mosaic that both cover, in parts of bounded size."""
    ordered = sorted(sheets, key=lambda sheet: sheet.row)
    for number, one in enumerate(ordered):
        for other in ordered[number + 1 :]:
            if other.row >= one.row + one.source.rows:
                break
            common = one.common(other.row, other.col, other.source.rows, other.source.cols)
            if common is None:
                continue
            row, col, rows, cols = common
            step = max(_COMPARED_PIXELS // cols, 1)
            for top in range(row, row + rows, step):
                yield one, other, (top, col, min(step, row + rows - top), cols)


def require_agreement(mosaic: BandSource) -> None:
    """Refuse sheets of a directory that differ where they overlap: they may be layers of their own.

    Raises:
        ValueError: with both readings and how to choose.
    """
    assert isinstance(mosaic, SheetsSource)
    differing, largest = _disagreement(mosaic)
    if not differing:
        return
    names = [Path(sheet.source.layer.path).name for sheet in mosaic.sheets]
    cell = "|".join(names[:2]) + "|..." * (len(names) > 2)
    raise ValueError(
        f"{mosaic.layer.where}: its files look like sheets of one layer (names, type and pixel grid are alike, and "
        f"they lie side by side), but {differing} pixels differ where they overlap, by up to {largest:.6g}. If they "
        f"are one layer, name them in one row of a layers.csv (path: {cell}): the first then counts. If each is a "
        "layer of its own, give each a row. Then --train_path layers.csv instead of --data_dir"
    )
