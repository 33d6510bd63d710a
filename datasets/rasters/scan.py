"""Scans the pixels of a layer once: value range, statistics, undeclared nodata, suspicious values."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from datasets.ground.warp import WARP_BLOCK
from datasets.layers.kinds import kind_of
from datasets.layers.layer import Layer
from datasets.layers.moments import RunningMoments
from datasets.layers.transforms import TRANSFORMS
from datasets.rasters.band import RasterBand
from datasets.rasters.nodata import NodataScan, listed, stored_values

# Larger layers are scanned in part: every n-th chunk, n the smallest that keeps to this many pixels.
SCAN_PIXELS = 2**27
# Fraction of the valid pixels of a layer of measurements that hold exactly 0, or exactly its smallest or largest value,
# from which on a warning is given.
_MANY_EQUAL = 0.2
# Pixels decoded at a time while scanning: some 50 MB with everything that is derived from them.
_CHUNK_PIXELS = 2**21


@dataclass(frozen=True)
class BandSummary:
    """Result of a scan of a layer's valid pixels, physical units.

    Attributes:
        valid_fraction: fraction of valid pixels among those read.
        minimum: smallest value.
        maximum: largest value.
        mean: mean.
        std: population standard deviation.
        pixels_read: number of pixels read, valid or not.
        sampled: True if that is not all of them.
        dummies: undeclared nodata values recognised, stored units; pass them to `with_undeclared_nodata`.
        suspicious: warnings for a person to check.
    """

    valid_fraction: float
    minimum: float
    maximum: float
    mean: float
    std: float
    pixels_read: int
    sampled: bool
    dummies: tuple[float, ...]
    suspicious: tuple[str, ...]


def with_undeclared_nodata(band: RasterBand, dummies: Sequence[float]) -> RasterBand:
    """Return the band with further stored values that mean no data, as `scan` found them."""
    added = tuple(value for value in stored_values(dummies, band.dtype) if value not in band.nodata)
    if not added:
        return band
    rule = f"{band.nodata_rule}; recognised {listed(added)}"
    return replace(band, nodata=(*band.nodata, *added), nodata_rule=rule, source=band.source.with_nodata(added))


def with_positive_values_only(band: RasterBand) -> RasterBand:
    """Return the band with physical values of 0 and below counted as no data."""
    rule = f"{band.nodata_rule}; 0 and below (transform {band.layer.transform})"
    return replace(band, nodata_rule=rule, source=replace(band.source, only_positive=True))


def scan(band: RasterBand, *, trained: bool = False) -> BandSummary:
    """Read a layer's pixels once, in chunks that follow the file's blocks, and summarise them.

    A layer of more than `SCAN_PIXELS` pixels is sampled: of its chunks, numbered by row i and column j, those
    with (i + j) divisible by n are read, at full resolution; if they all hold one value, every chunk is read. In a
    warped band dummies are searched for among the file's native pixels, statistics are of the warped ones.

    Args:
        band: the layer.
        trained: it is a layer of a trained model, which learns nothing from it: without a valid pixel, with a single
            value or with values that its transform cannot take it is not refused.

    Raises:
        ValueError: it cannot be read to the end, has no valid pixel, only one value, or values that its transform
            cannot take.
    """
    thin = math.ceil(band.grid.rows * band.grid.cols / SCAN_PIXELS)
    if TRANSFORMS[band.layer.transform].only_positive:  # one value that is not positive is too many
        thin = 1
    try:
        found = _scan_pixels(band, thin)
        if thin > 1 and not found.moments.minimum < found.moments.maximum:
            found = _scan_pixels(band, 1)
    except OSError as error:
        raise ValueError(str(error)) from error
    constant = _check_content(band, found, trained=trained)
    moments = found.moments
    return BandSummary(
        valid_fraction=moments.count / found.pixels,
        minimum=moments.minimum,
        maximum=moments.maximum,
        mean=moments.mean,
        std=moments.std,
        pixels_read=found.pixels,
        sampled=found.pixels < band.grid.rows * band.grid.cols,
        dummies=found.dummies,
        suspicious=constant or tuple(_suspicions(band.layer, found)),
    )


@dataclass(frozen=True)
class _Findings:
    """Raw result: moments in physical units, pixels read, dummies, doubtful dummies, distinct values, and the fractions
    of exact zeros and of the smallest and the largest number.
    """

    moments: RunningMoments
    pixels: int
    dummies: tuple[float, ...]
    doubtful: tuple[tuple[float, int], ...]
    distinct: int | None
    zeros: float
    ends: tuple[tuple[float, float], ...]


def _scan_pixels(band: RasterBand, thin: int) -> _Findings:
    found_nodata = NodataScan(band.dtype, recognise=not kind_of(band.layer).is_classes)
    source = band.source
    for window in _chunks(source.rows, source.cols, block=source.block, thin=thin):
        raw, invalid = source.read_stored(*window)
        if band.aoi is not None and not band.warped:
            row, col, rows, cols = band.to_source(*window)
            inside = band.flip(band.aoi.inside(band.grid.window_transform(row, col), rows, cols))
            invalid = ~inside if invalid is None else invalid | ~inside
        found_nodata.add(raw, invalid)
    dummies, doubtful = found_nodata.classify_nodata_candidates()
    distinct = None if found_nodata.distinct is None else len(found_nodata.distinct)
    total = max(found_nodata.data.count, 1)
    zeros, ends = found_nodata.zeros / total, tuple((value, count / total) for value, count in found_nodata.ends)
    stored = _physical(found_nodata.data, band)
    found = _Findings(stored, found_nodata.pixels, dummies, doubtful, distinct, zeros, ends)
    if not band.warped:
        return found
    moments, pixels = RunningMoments(), 0
    band = with_undeclared_nodata(band, dummies)
    for window in _chunks(band.grid.rows, band.grid.cols, block=(WARP_BLOCK, WARP_BLOCK), thin=thin):
        values = band.read(*window)
        moments.add(values[~np.isnan(values)].astype(np.float64))
        pixels += values.size
    return replace(found, moments=moments, pixels=pixels)


def _chunks(rows: int, cols: int, *, block: tuple[int, int], thin: int) -> Iterator[tuple[int, int, int, int]]:
    """Windows (row, col, rows, cols) over a raster that follow its blocks, about one in ``thin`` of them."""
    block_rows, block_cols = min(block[0], rows), min(block[1], cols)
    chunk_cols = min(cols, max(_CHUNK_PIXELS // block_rows // block_cols, 1) * block_cols)
    chunk_rows = max(_CHUNK_PIXELS // chunk_cols // block_rows, 1) * block_rows
    if chunk_rows * chunk_cols > 2 * _CHUNK_PIXELS:  # blocks larger than a chunk are cut
        chunk_cols = min(chunk_cols, _CHUNK_PIXELS)
        chunk_rows = max(_CHUNK_PIXELS // chunk_cols, 1)
    for i, row in enumerate(range(0, rows, chunk_rows)):
        for j, col in enumerate(range(0, cols, chunk_cols)):
            if (i + j) % thin == 0:
                yield row, col, min(chunk_rows, rows - row), min(chunk_cols, cols - col)


def _physical(stored: RunningMoments, band: RasterBand) -> RunningMoments:
    if not stored.count:
        return stored
    ends = sorted((stored.minimum * band.scale + band.offset, stored.maximum * band.scale + band.offset))
    mean = stored.mean * band.scale + band.offset
    return RunningMoments(stored.count, mean, stored.squares * band.scale**2, ends[0], ends[1])


def _check_content(band: RasterBand, found: _Findings, *, trained: bool) -> tuple[str, ...]:
    """Refuse layers without information; of a layer of a trained model return the warning about that instead."""
    where, rule = band.layer.where, with_undeclared_nodata(band, found.dummies).nodata_rule
    inside = " inside the area of interest" if band.aoi is not None else ""
    if not found.moments.count:
        what = f"all nodata: none of {found.pixels} pixels{inside} is valid (invalid: {rule})"
        if trained:
            return (f"{what}; it is shown as no-data",)
        raise ValueError(f"{where}: {what}, expected data; correct the nodata value, or leave the layer out")
    if TRANSFORMS[band.layer.transform].only_positive and found.moments.minimum <= 0 and not trained:
        raise ValueError(
            f"{where}: smallest value {found.moments.minimum:.9g}, expected values above 0 for transform "
            f"{band.layer.transform}; choose "
            "transform asinh, or declare such values as nodata"
        )
    if np.float32(found.moments.minimum) != np.float32(found.moments.maximum):
        return ()
    what = f"constant: every valid pixel{inside} is {found.moments.minimum:.9g} (invalid: {rule})"
    if not trained:
        raise ValueError(f"{where}: {what}, expected values that differ; leave the layer out")
    return (what,)


def _suspicions(layer: Layer, found: _Findings) -> Iterator[str]:
    moments = found.moments
    if kind_of(layer).is_classes:
        return
    for value, count in found.doubtful:
        yield (
            f"{count} pixels hold {value:.9g}, often a dummy, but other values are near it: taken for data; "
            "set nodata in layers.csv if it means no data"
        )
    if found.distinct is not None:
        yield (
            f"looks like classes: only {found.distinct} distinct whole numbers; set kind=categorical in layers.csv if "
            "they are not measurements"
        )
    else:
        zeros = [(0.0, found.zeros, "")]
        ends = [(*end, f", its {name} value") for end, name in zip(found.ends, ("smallest", "largest"), strict=True)]
        for value, fraction, which in zeros + [end for end in ends if end[0]]:
            if fraction >= _MANY_EQUAL:
                yield (
                    f"{100 * fraction:.0f} % of the valid pixels hold exactly {value:.9g}{which}, which is not "
                    f"declared as nodata: taken for data; set nodata to {value:.9g} in layers.csv if it means no data"
                )
    yield from kind_of(layer).suspicions(moments.minimum, moments.maximum)
    step = float(np.spacing(np.float32(max(abs(moments.minimum), abs(moments.maximum)))))
    if step > 0.01 * moments.std:
        yield (
            f"values near {moments.maximum:.9g} are {step:.3g} apart in float32, against a standard "
            f"deviation of {moments.std:.3g}: subtract a constant"
        )
