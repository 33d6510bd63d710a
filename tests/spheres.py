"""Global grids with known content: sums of spherical harmonics, in longitude and latitude or rolled by some columns."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from scipy.special import lpmv

from tests.rasters import write_grid

MOON = "+proj=longlat +R=1737400 +no_defs"


def harmonics(longitude: Any, latitude: Any, *, degree: int = 12, terms: int = 40, seed: int = 0) -> np.ndarray:
    """A sum of real spherical harmonics of degrees 1 to `degree` at places in degrees: smooth across every meridian.

    Each term has a largest value of one and a random phase.
    """
    rng = np.random.default_rng(seed)
    x, sine = np.radians(longitude), np.sin(np.radians(latitude))
    values = np.zeros(np.broadcast_shapes(np.shape(x), np.shape(sine)))
    profile = np.linspace(-1.0, 1.0, 721)
    for n in rng.integers(1, degree + 1, size=terms).tolist():
        m = int(rng.integers(0, n + 1))
        largest = np.abs(lpmv(m, n, profile)).max()
        values = values + lpmv(m, n, sine) / largest * np.cos(m * x + rng.uniform(0, 2 * np.pi))
    return values


def global_grid(resolution: float, *, left: float = -180.0, top: float = 90.0, **options: Any) -> np.ndarray:
    """(rows, cols) float32: the harmonics at the pixel centres of a grid that goes once round from `left` on."""
    rows, cols = round(2 * top / resolution), round(360 / resolution)
    longitude = left + (np.arange(cols) + 0.5) * resolution
    latitude = top - (np.arange(rows) + 0.5) * resolution
    return harmonics(longitude[None, :], latitude[:, None], **options).astype(np.float32)


def write_global(
    path: Path, resolution: float, *, left: float = -180.0, crs: str = "EPSG:4326", noise: float = 0.0, **options: Any
) -> Path:
    """Writes such a grid as a raster; rolled grids hold the same ground, to the bit.

    Args:
        path: file.
        resolution: degrees.
        left: western edge, -180 plus a whole number of pixels.
        crs: any in degrees.
        noise: spread of noise that belongs to the ground.
        **options: of `harmonics`.
    """
    values = global_grid(resolution, **options)
    values += np.random.default_rng(1).normal(0.0, noise, values.shape).astype(np.float32)
    rolled = np.roll(values, -round((left + 180.0) / resolution), axis=1)
    return write_grid(path, rolled, resolution=resolution, left=left, top=90.0, crs=crs)
