"""Temporary parts of an output raster, one per block, so that a stopped run can be resumed."""

from __future__ import annotations

import contextlib
import json
import math
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
import rasterio.shutil
from rasterio._err import CPLE_BaseError
from rasterio.errors import RasterioError

from util.geotiff.raster_spec import DTYPES, RasterSpec
from util.hardware.system import replace_file

BLOCK = 256
"""Edge of a block of the files, pixels."""


CACHE_BYTES = 64 * 2**20
"""Decoded pixels that GDAL may keep."""


# What rasterio raises when GDAL fails: some of GDAL's own errors pass through it unchanged.
GDAL_ERRORS = (RasterioError, CPLE_BaseError)


Part = tuple[Path, int, int, int, int]
"""(file, first row, first column, rows, columns) of a part of a raster."""


def limited_cache() -> rasterio.Env:
    """A context in which GDAL keeps few decoded pixels: its own default is a fraction of the machine's memory."""
    return rasterio.Env(GDAL_CACHEMAX=CACHE_BYTES)


class Parts:
    """The folder in which parts of results wait until all are there.

    Args:
        folder: where; made by `open`.
    """

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        self.folder = Path(folder)

    def open(self, job: Mapping[str, Any], *, resume: bool) -> None:
        """Makes the folder, or goes on with the one that an earlier run of the same job left.

        Args:
            job: what the parts depend on, fit for JSON.
            resume: keep the parts that are there; otherwise they are removed.

        Raises:
            ValueError: the parts there are of another job.
        """
        record = self.folder / "job.json"
        job = json.loads(json.dumps(job))
        if self.folder.exists() and not resume:
            shutil.rmtree(self.folder)
        if record.exists():
            before = json.loads(record.read_text(encoding="utf-8"))
            changed = [key for key in {**before, **job} if before.get(key) != job.get(key)]
            if changed:
                raise ValueError(
                    f"--resume: {self.folder} holds parts of another job: {changed[0]} was "
                    f"{before.get(changed[0])!r}, now {job.get(changed[0])!r}; give the same options, or leave "
                    "--resume out to begin again"
                )
            for left in self.folder.glob(".*.tmp*"):  # of a run that was killed
                left.unlink(missing_ok=True)
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        _write_text(record, json.dumps(job, indent=1))

    def is_done(self, row: int, col: int) -> bool:
        """Whether a unit's parts were all written."""
        return self._mark(row, col).exists()

    def write(self, row: int, col: int, arrays: Mapping[str, tuple[RasterSpec, np.ndarray, int, int]]) -> None:
        """Writes the parts of one block, and marks it as done.

        Args:
            row: number of the block from the north.
            col: number of the block from the west.
            arrays: name of the raster -> (raster, (B, r, c) pixels, first row, first column). Parts without any
                valid pixel are left out.

        Raises:
            OSError: a part could not be written.
        """
        written = {}
        for name, (spec, pixels, first_row, first_col) in arrays.items():
            if pixels.size and not _is_empty(pixels, spec.nodata):
                file = f"{name}-{row}-{col}.tif"
                _write_part(self.folder / file, spec, pixels)
                written[name] = [file, first_row, first_col, *pixels.shape[1:]]
        _write_text(self._mark(row, col), json.dumps(written))

    def of(self, name: str) -> list[Part]:
        """(file, first row, first column, rows, columns) of every part of one raster, in order."""
        found = []
        for mark in sorted(self.folder.glob("block-*.json"), key=_numbers):
            part = json.loads(mark.read_text(encoding="utf-8")).get(name)
            if part is not None:
                found.append((self.folder / part[0], *part[1:]))
        return found

    def remove(self) -> None:
        """Removes the folder."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def _mark(self, row: int, col: int) -> Path:
        return self.folder / f"block-{row}-{col}.json"


def _numbers(path: Path) -> tuple[int, ...]:
    return tuple(int(part) for part in path.stem.split("-")[1:])


def _is_empty(pixels: np.ndarray, nodata: float) -> bool:
    return bool(np.isnan(pixels).all() if math.isnan(nodata) else (pixels == nodata).all())


def _write_text(path: Path, text: str) -> None:
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    temporary.write_text(text, encoding="utf-8")
    replace_file(temporary, path)


def _write_part(path: Path, spec: RasterSpec, pixels: np.ndarray) -> None:
    if spec.dtype == "float16" and np.nanmax(np.abs(pixels)) > np.finfo(np.float16).max:
        raise OSError(
            f"{path.name}: a value of {np.nanmax(np.abs(pixels)):.6g} is beyond float16's range; use --dtype float32"
        )
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    half = {"nbits": 16} if spec.dtype == "float16" else {}
    # Half floats are rounded here: GDAL cuts their last bits off.
    stored = pixels.astype(spec.dtype, copy=False).astype(DTYPES[spec.dtype], copy=False)
    try:
        with rasterio.open(
            temporary,
            "w",
            driver="GTiff",
            dtype=DTYPES[spec.dtype],
            count=pixels.shape[0],
            height=pixels.shape[1],
            width=pixels.shape[2],
            nodata=spec.nodata,
            crs=spec.crs,
            transform=spec.transform,
            tiled=True,
            blockxsize=min(BLOCK, -(-pixels.shape[2] // 16) * 16),  # a block is stored whole: no larger than the part
            blockysize=min(BLOCK, -(-pixels.shape[1] // 16) * 16),
            compress="deflate",
            zlevel=1,
            interleave="band",
            bigtiff="if_safer",
            **half,
        ) as sink:
            sink.write(stored)
        # On a full disk GDAL may close a file that lacks its end without a word.
        if not np.array_equal(read_part(temporary), stored, equal_nan=True):
            raise OSError("it does not hold what was written")
        replace_file(temporary, path)
    except (*GDAL_ERRORS, OSError) as error:
        message = f"{path}: cannot be written ({error}); is the disk full? Free some space, then go on with --resume"
        raise OSError(message) from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


def read_part(path: str | os.PathLike[str]) -> np.ndarray:
    """The (B, r, c) pixels of a part as written, nodata and all.

    Raises:
        OSError: it cannot be read.
    """
    with rasterio.open(path) as file:
        return file.read()
