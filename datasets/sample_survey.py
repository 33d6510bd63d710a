"""Write a synthetic survey: gravity, magnetics and the rocks that cause both, as a geologist would map them.

The rocks are made first. A stratigraphic height (metres above the base of a rock column) is folded, then cut and
displaced by dipping faults; plutons with contact aureoles and dykes cut it, a cover of uneven depth and a few young
basins hide it. Every rock has a density and a susceptibility. The fields follow by forward modelling: the ground is
five slabs whose rocks differ because beds, faults and plutons dip, and each slab's field is exact in the wavenumber
domain. Gravity and magnetics therefore see the same rocks, which is what a model can learn from one about the other.

References:
    Blakely (1995), Potential Theory in Gravity and Magnetic Applications, section 11.1: fields of a horizontal layer.
"""

from __future__ import annotations

import csv
import json
import logging
import math
import os
import shutil
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import rasterio
from numpy.typing import NDArray
from rasterio.features import shapes
from rasterio.transform import Affine, from_origin
from scipy import fft, ndimage

logger = logging.getLogger(__name__)

FloatArray = NDArray[np.float32]
ByteArray = NDArray[np.uint8]
BoolArray = NDArray[np.bool_]

DEFAULT_DIRECTORY = "sample_survey"
SURVEY_VERSION = 1  # raised whenever the same seed and size would give other arrays
CELL_M = 100.0  # magnetics, lithology and the forward model; gravity has cells twice as wide
MARGIN = 96  # cells modelled beyond each edge, over which contrasts fade out, so that nothing wraps round
CRS = "EPSG:28354"  # GDA94 / MGA zone 54, metres
ORIGIN_XY = (400_000.0, 6_600_000.0)  # left, top
INCLINATION_DEG, DECLINATION_DEG, FIELD_NT = -64.0, 8.0, 58_000.0
SLABS_M = ((100.0, 250.0), (250.0, 500.0), (500.0, 900.0), (900.0, 1600.0), (1600.0, 2800.0))
MAGNETICS_NODATA = -99999.0
GRAVITY_NODATA = float(np.float32(1.70141e38))  # the dummy of Surfer grids, declared as nodata
GRAVITATION = 6.67430e-11  # m3 kg-1 s-2
MGAL_PER_SI = 1e5
COVER_DENSITY = 2.50  # g/cm3; its susceptibility is taken as zero


@dataclass(frozen=True)
class RockUnit:
    """One class of the lithology map: density in g/cm3, susceptibility in SI, colour as red, green, blue."""

    code: int
    name: str
    colour: tuple[int, int, int]
    density: float
    susceptibility: float


UNITS = (
    RockUnit(1, "gneiss", (226, 178, 190), 2.68, 0.004),
    RockUnit(2, "greywacke", (250, 236, 160), 2.72, 0.001),
    RockUnit(3, "black schist", (120, 130, 150), 2.78, 0.006),
    RockUnit(4, "felsic volcanics", (255, 196, 96), 2.66, 0.0005),
    RockUnit(5, "basalt", (110, 175, 90), 2.94, 0.014),
    RockUnit(6, "banded iron formation", (150, 40, 40), 3.20, 0.060),
    RockUnit(7, "granite", (240, 90, 110), 2.61, 0.0003),
    RockUnit(8, "gabbro", (60, 90, 170), 3.02, 0.035),
    RockUnit(9, "hornfels aureole", (190, 140, 210), 2.80, 0.018),
    RockUnit(10, "dolerite dyke", (40, 40, 40), 2.98, 0.040),
    RockUnit(11, "basin sandstone", (255, 250, 215), 2.45, 0.0),
)
GREYWACKE, SCHIST, FELSIC, BASALT, IRON, GRANITE, GABBRO, HORNFELS, DYKE, BASIN = (
    2,
    3,
    4,
    5,
    6,
    7,
    8,
    9,
    10,
    11,
)
# The rock column, oldest first: (code, thinnest, thickest) in metres of true thickness.
COLUMN = (
    (1, 1800, 3600), (BASALT, 1400, 2600), (IRON, 400, 700), (SCHIST, 800, 1600), (GREYWACKE, 1600, 3000),
    (FELSIC, 1000, 1800), (BASALT, 1000, 2200), (SCHIST, 600, 1200), (IRON, 300, 600), (GREYWACKE, 1400, 2800),
    (BASALT, 600, 1400), (FELSIC, 1000, 2000),
)  # fmt: skip
LUT_M = 10.0  # step of the column's lookup tables


def write_sample_survey(
    directory: str | Path, *, seed: int = 0, rows: int = 2048, cols: int = 2048, overwrite: bool = False
) -> Path:
    """Write the sample survey of this seed and size into `directory`, unless it is already there.

    Everything is written beside `directory` and renamed when complete, so a half-written survey never has its name.

    Args:
        directory: where the survey goes; its parents are made.
        seed: every array of the survey is a function of (seed, rows, cols).
        rows: rows of the 100 m grid, even, at least 64.
        cols: columns of the 100 m grid, even, at least 64.
        overwrite: replace a survey that lies there; never another kind of directory.

    Returns:
        `directory`, with gravity.tif, magnetics.tif, layers.csv, README.md, survey.json and labels/ inside.

    Raises:
        ValueError: a size or seed out of range, or a directory that holds something else.
    """
    directory = Path(directory)
    _check_request(seed=seed, rows=rows, cols=cols)
    identity = {"seed": seed, "rows": rows, "cols": cols, "version": SURVEY_VERSION}
    if _is_there(directory, identity=identity, overwrite=overwrite):
        return directory
    directory.parent.mkdir(parents=True, exist_ok=True)
    partial = directory.parent / f".{directory.name}-{uuid.uuid4().hex[:8]}.partial"
    try:
        _write_parts(partial, identity)
        _move_into_place(partial, directory, identity)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    logger.info("sample survey written to %s", directory)
    return directory


# ------------------------------------------------------------------------------------------------ forward model


def slab_gravity(
    density: NDArray[np.floating],
    *,
    cell_m: float,
    top_m: float,
    bottom_m: float,
    pad_cells: int | None = None,
) -> FloatArray:
    """Gravity of one horizontal slab of square cells, each a vertical prism of uniform density.

    Args:
        density: (rows, cols) density contrast in g/cm3; row 0 is north; zero outside the array.
        cell_m: cell edge in metres.
        top_m: depth of the slab's top below the observation plane in metres, > 0.
        bottom_m: depth of its bottom in metres, > top_m.
        pad_cells: zeros added below and right against wrap-around; by default as many as the array has cells.

    Returns:
        (rows, cols) vertical attraction, positive downwards, at the cell centres in mGal.

    Raises:
        ValueError: depths or cell size out of order.
    """
    spectrum = _Spectrum.padded(density.shape, cell_m=cell_m, pad_cells=pad_cells)
    return spectrum.to_grid(spectrum.gravity(density, top_m=top_m, bottom_m=bottom_m))


def slab_magnetics(
    susceptibility: NDArray[np.floating],
    *,
    cell_m: float,
    top_m: float,
    bottom_m: float,
    inclination_deg: float = INCLINATION_DEG,
    declination_deg: float = DECLINATION_DEG,
    field_nt: float = FIELD_NT,
    pad_cells: int | None = None,
) -> FloatArray:
    """Total-field anomaly of one horizontal slab of square cells magnetised by the Earth's field alone.

    Args:
        susceptibility: (rows, cols) SI susceptibility; row 0 is north; zero outside the array.
        cell_m: cell edge in metres.
        top_m: depth of the slab's top below the observation plane in metres, > 0.
        bottom_m: depth of its bottom in metres, > top_m.
        inclination_deg: dip of the Earth's field, positive downwards.
        declination_deg: azimuth of the Earth's field, positive east of grid north.
        field_nt: strength of the Earth's field in nT.
        pad_cells: zeros added below and right against wrap-around; by default as many as the array has cells.

    Returns:
        (rows, cols) anomaly at the cell centres in nT.

    Raises:
        ValueError: depths or cell size out of order.
    """
    spectrum = _Spectrum.padded(susceptibility.shape, cell_m=cell_m, pad_cells=pad_cells)
    earth = spectrum.earth_field(inclination_deg, declination_deg, field_nt)
    return spectrum.to_grid(spectrum.magnetics(susceptibility, top_m=top_m, bottom_m=bottom_m) * earth)


class _Spectrum:
    """Wavenumbers of a padded grid, and the spectra of slabs on it (Blakely 1995, equations 11.5 to 11.35)."""

    def __init__(self, shape: tuple[int, ...], padded_shape: tuple[int, int], cell_m: float) -> None:
        self.shape, self.padded_shape = (shape[0], shape[1]), padded_shape
        north = -2 * np.pi * fft.fftfreq(padded_shape[0], cell_m)  # rows run southwards
        east = 2 * np.pi * fft.rfftfreq(padded_shape[1], cell_m)
        self.k_north = north.astype(np.float32)[:, None]
        self.k_east = east.astype(np.float32)[None, :]
        self.k = np.hypot(self.k_north, self.k_east)
        # A cell is a square, not a point: its spectrum is a product of two sincs.
        self.cell = np.outer(np.sinc(north * cell_m / 2 / np.pi), np.sinc(east * cell_m / 2 / np.pi)).astype(
            np.float32
        )

    @classmethod
    def padded(cls, shape: tuple[int, ...], *, cell_m: float, pad_cells: int | None) -> _Spectrum:
        if not cell_m > 0:
            raise ValueError(f"cell_m is {cell_m}, expected a positive length in metres")
        pads = [size if pad_cells is None else pad_cells for size in shape]
        return cls(
            shape, (fft.next_fast_len(shape[0] + pads[0]), fft.next_fast_len(shape[1] + pads[1])), cell_m
        )

    def gravity(
        self, density: NDArray[np.floating], *, top_m: float, bottom_m: float
    ) -> NDArray[np.complex64]:
        """Spectrum in mGal of a slab whose contrasts are in g/cm3."""
        _check_depths(top_m, bottom_m)
        safe_k = np.where(self.k > 0, self.k, np.float32(1))
        thickness = np.where(
            self.k > 0, -np.expm1(-safe_k * np.float32(bottom_m - top_m)) / safe_k, bottom_m - top_m
        )
        scale = 2 * math.pi * GRAVITATION * 1000 * MGAL_PER_SI
        response = (
            np.float32(scale) * self.cell * thickness.astype(np.float32) * np.exp(-self.k * np.float32(top_m))
        )
        return self._transform(density) * response

    def magnetics(
        self, susceptibility: NDArray[np.floating], *, top_m: float, bottom_m: float
    ) -> NDArray[np.complex64]:
        """Spectrum of a slab before the direction and strength of the Earth's field are applied."""
        _check_depths(top_m, bottom_m)
        decay = np.exp(-self.k * np.float32(top_m)) - np.exp(-self.k * np.float32(bottom_m))
        return self._transform(susceptibility) * (self.cell * decay)

    def earth_field(
        self, inclination_deg: float, declination_deg: float, field_nt: float
    ) -> NDArray[np.complex64]:
        """What turns `magnetics` into nT: half the field times its direction, as inducer and as component measured."""
        inclination, declination = math.radians(inclination_deg), math.radians(declination_deg)
        north, east = (
            math.cos(inclination) * math.cos(declination),
            math.cos(inclination) * math.sin(declination),
        )
        safe_k = np.where(self.k > 0, self.k, np.float32(1))
        theta = math.sin(inclination) + 1j * (self.k_north * north + self.k_east * east) / safe_k
        return (0.5 * field_nt * theta * theta).astype(np.complex64)

    def to_grid(self, spectrum: NDArray[np.complex64]) -> FloatArray:
        grid = fft.irfft2(spectrum, s=self.padded_shape, workers=2)
        return np.ascontiguousarray(grid[: self.shape[0], : self.shape[1]], dtype=np.float32)

    def _transform(self, values: NDArray[np.floating]) -> NDArray[np.complex64]:
        return fft.rfft2(np.asarray(values, dtype=np.float32), s=self.padded_shape, workers=2)


def _check_depths(top_m: float, bottom_m: float) -> None:
    if not 0 < top_m < bottom_m:
        raise ValueError(
            f"slab from {top_m} m to {bottom_m} m: expected 0 < top_m < bottom_m, depths in metres"
        )


# ------------------------------------------------------------------------------------------------------ geology


@dataclass(frozen=True)
class _Waves:
    """A smooth random function of the plane: a sum of plane waves, so that it is known at any point exactly."""

    amplitude: NDArray[np.float64]
    k_x: NDArray[np.float64]
    k_y: NDArray[np.float64]
    phase: NDArray[np.float64]

    @classmethod
    def draw(
        cls,
        rng: np.random.Generator,
        *,
        count: int,
        shortest: float,
        longest: float,
        slope: float = 0.0,
        azimuth: float = 0.0,
        spread: float = math.pi,
    ) -> _Waves:
        """Waves of unit variance in all; amplitude grows as wavelength**slope; directions in azimuth +- spread."""
        wavelength = np.exp(np.linspace(math.log(shortest), math.log(longest), count))
        wavelength *= rng.uniform(0.9, 1.1, count)
        angle = azimuth + rng.uniform(-spread, spread, count)
        amplitude = wavelength**slope
        amplitude *= math.sqrt(2 / np.sum(amplitude**2))
        k = 2 * np.pi / wavelength
        return cls(amplitude, k * np.cos(angle), k * np.sin(angle), rng.uniform(0, 2 * np.pi, count))

    def __call__(self, x: FloatArray, y: FloatArray) -> FloatArray:
        total = np.zeros(np.broadcast_shapes(x.shape, y.shape), dtype=np.float32)
        for amplitude, k_x, k_y, phase in zip(self.amplitude, self.k_x, self.k_y, self.phase, strict=True):
            total += np.float32(amplitude) * np.sin(
                np.float32(k_x) * x + (np.float32(k_y) * y + np.float32(phase))
            )
        return total


@dataclass(frozen=True)
class _Line:
    """A fault or a dyke: a gently bent, dipping surface through (x, y), with its azimuth from east in radians."""

    x: float
    y: float
    azimuth: float
    half_length: float
    dip_cotangent: float
    bend: float
    bend_length: float
    slip: float = 0.0  # along strike, faults
    throw: float = 0.0  # in stratigraphic height, faults
    half_width: float = 0.0  # dykes

    def along_across(self, x: FloatArray, y: FloatArray, depth_m: float) -> tuple[FloatArray, FloatArray]:
        c, s = np.float32(math.cos(self.azimuth)), np.float32(math.sin(self.azimuth))
        dx, dy = x - np.float32(self.x), y - np.float32(self.y)
        along = c * dx + s * dy
        across = c * dy - s * dx - np.float32(depth_m * self.dip_cotangent)
        across += np.float32(self.bend) * np.sin(along * np.float32(2 * math.pi / self.bend_length))
        return along, across


@dataclass(frozen=True)
class _Pluton:
    """A domed intrusion: an ellipse whose outline is made irregular by `_Geology.roughness`."""

    x: float
    y: float
    radius: float
    elongation: float
    azimuth: float
    code: int


@dataclass(frozen=True)
class _Geology:
    """The rocks of one survey, as functions of position (metres east and north of its south-west corner)."""

    faults: tuple[_Line, ...]  # youngest first
    dykes: tuple[_Line, ...]
    plutons: tuple[_Pluton, ...]  # oldest first
    warp: _Waves
    folds: _Waves
    parasitic: _Waves
    roughness: _Waves
    basins: _Waves
    regolith: _Waves
    column_code: ByteArray  # lookup tables of the rock column, one entry every LUT_M
    column_texture: FloatArray
    strike: float

    def stratigraphy(self, x: FloatArray, y: FloatArray, depth_m: float) -> FloatArray:
        """Stratigraphic height in metres: faults undone, youngest first, then the folds."""
        x, y = np.broadcast_arrays(x, y)
        throw = np.zeros(x.shape, dtype=np.float32)
        for fault in self.faults:
            along, across = fault.along_across(x, y, depth_m)
            moved = np.clip(1 - np.square(along / np.float32(fault.half_length)), 0, None)
            moved *= (across > 0) * np.clip(1 - across / np.float32(1.5 * fault.half_length), 0, None)
            x = x - np.float32(fault.slip * math.cos(fault.azimuth)) * moved
            y = y - np.float32(fault.slip * math.sin(fault.azimuth)) * moved
            throw += np.float32(fault.throw) * moved
        x = x + np.float32(2500) * self.warp(x, y)
        return (
            np.float32(6500) * self.folds(x, y)
            + np.float32(180) * self.parasitic(x, y)
            + throw
            + np.float32(depth_m)
        )

    def rocks(self, x: FloatArray, y: FloatArray, depth_m: float) -> tuple[ByteArray, FloatArray]:
        """Class code and bedding texture (about -1 to 1) at (x, y) and this depth, below any cover."""
        entry = np.floor(self.stratigraphy(x, y, depth_m) / np.float32(LUT_M)).astype(np.int32) % len(
            self.column_code
        )
        code, texture = self.column_code[entry], self.column_texture[entry]
        rough = np.float32(0.13) * self.roughness(x, y)
        for pluton in self.plutons:
            reach = 1.7 * pluton.radius * max(pluton.elongation, 1 / pluton.elongation)
            i = slice(*np.searchsorted(-y[:, 0], [-(pluton.y + reach), -(pluton.y - reach)]))
            j = slice(*np.searchsorted(x[0], [pluton.x - reach, pluton.x + reach]))
            if i.start == i.stop or j.start == j.stop:
                continue
            _intrude(
                code[i, j],
                texture[i, j],
                _distance(pluton, x[:, j], y[i], depth_m) + rough[i, j],
                pluton.code,
            )
        for dyke in self.dykes:
            along, across = dyke.along_across(x, y, depth_m)
            inside = (np.abs(across) < dyke.half_width) & (np.abs(along) < dyke.half_length)
            code[inside], texture[inside] = DYKE, 0
        return code, texture

    def cover(self, x: FloatArray, y: FloatArray) -> tuple[FloatArray, BoolArray]:
        """Depth in metres of the cover's base, and True where it is a young basin that the map shows."""
        basin = np.clip(self.basins(x, y) - np.float32(1.55), 0, None)
        return np.float32(150) + np.float32(45) * self.regolith(x, y) + np.float32(900) * basin, basin > 0


def _distance(pluton: _Pluton, x: FloatArray, y: FloatArray, depth_m: float) -> FloatArray:
    """Distance from a pluton's centre in radii; the radius grows with depth."""
    c, s = np.float32(math.cos(pluton.azimuth)), np.float32(math.sin(pluton.azimuth))
    dx, dy = x - np.float32(pluton.x), y - np.float32(pluton.y)
    major, minor = (
        (c * dx + s * dy) / np.float32(pluton.elongation),
        (c * dy - s * dx) * np.float32(pluton.elongation),
    )
    return np.hypot(major, minor) / np.float32(pluton.radius + 0.25 * depth_m)


def _intrude(code: ByteArray, texture: FloatArray, distance: FloatArray, pluton_code: int) -> None:
    """Put a pluton and its aureole into views of the codes and textures, in place; granite bakes more than gabbro."""
    aureole = 1.22 if pluton_code == GRANITE else 1.08
    baked = distance < aureole
    code[baked] = HORNFELS
    inside = distance < 1
    code[inside] = pluton_code
    texture[inside] = 0


def _draw_geology(rng: np.random.Generator, rows: int, cols: int) -> _Geology:
    """Draw the rocks of a survey; lengths are absolute, numbers of bodies go with the area."""
    width, height = cols * CELL_M, rows * CELL_M
    area_km2 = width * height / 1e6

    def place() -> tuple[float, float]:
        return float(rng.uniform(0, width)), float(rng.uniform(0, height))

    strike = float(rng.uniform(0.35, 0.65) * math.pi)  # of the folds' axes, about north-south
    codes, thicknesses = zip(*((code, rng.uniform(low, high)) for code, low, high in COLUMN), strict=True)
    column = np.repeat(np.array(codes, np.uint8), np.maximum(1, np.array(thicknesses) / LUT_M).astype(int))
    bedding = ndimage.gaussian_filter1d(rng.standard_normal(len(column)), 9, mode="wrap")
    across = strike - math.pi / 2
    return _Geology(
        faults=tuple(_draw_fault(rng, place(), strike) for _ in range(3 + round(area_km2 / 2200))),
        dykes=tuple(_draw_dykes(rng, place, count=2 + round(area_km2 / 2500))),
        plutons=tuple(_draw_pluton(rng, place(), strike, i) for i in range(2 + round(area_km2 / 420))),
        warp=_Waves.draw(rng, count=7, shortest=14e3, longest=60e3, slope=0.7),
        folds=_Waves.draw(rng, count=9, shortest=11e3, longest=48e3, slope=1.0, azimuth=across, spread=0.5),
        parasitic=_Waves.draw(
            rng, count=6, shortest=1800, longest=4500, slope=1.0, azimuth=across, spread=0.7
        ),
        roughness=_Waves.draw(rng, count=9, shortest=1100, longest=9e3, slope=0.8),
        basins=_Waves.draw(rng, count=7, shortest=18e3, longest=60e3, slope=0.5),
        regolith=_Waves.draw(rng, count=8, shortest=3e3, longest=25e3, slope=0.4),
        column_code=column,
        column_texture=(bedding / bedding.std()).astype(np.float32),
        strike=strike,
    )


def _draw_fault(rng: np.random.Generator, centre_xy: tuple[float, float], strike: float) -> _Line:
    return _Line(
        *centre_xy,
        azimuth=strike + float(rng.choice([0.0, 0.75, -0.75, 1.4]) + rng.normal(0, 0.15)),
        half_length=float(rng.uniform(18e3, 65e3)),
        dip_cotangent=float(rng.uniform(-0.6, 0.6)),
        bend=float(rng.uniform(-900, 900)),
        bend_length=float(rng.uniform(15e3, 45e3)),
        slip=float(rng.choice([-1, 1]) * rng.uniform(1500, 7000)),
        throw=float(rng.choice([-1, 1]) * rng.uniform(500, 4000)),
    )


def _draw_dykes(
    rng: np.random.Generator, place: Callable[[], tuple[float, float]], *, count: int
) -> Iterator[_Line]:
    azimuth = float(rng.uniform(0.65, 0.85) * math.pi)
    for _ in range(count):
        yield _Line(
            *place(),
            azimuth=azimuth + float(rng.normal(0, 0.07)),
            half_length=float(rng.uniform(8e3, 55e3)),
            dip_cotangent=float(rng.uniform(-0.08, 0.08)),
            bend=float(rng.uniform(-350, 350)),
            bend_length=float(rng.uniform(12e3, 30e3)),
            half_width=float(rng.uniform(110, 190)),
        )


def _draw_pluton(
    rng: np.random.Generator, centre_xy: tuple[float, float], strike: float, index: int
) -> _Pluton:
    code = GABBRO if index % 5 in (1, 3) else GRANITE
    radius = (
        math.exp(rng.normal(math.log(3400), 0.4))
        if code == GRANITE
        else math.exp(rng.normal(math.log(1700), 0.4))
    )
    return _Pluton(*centre_xy, radius, float(rng.uniform(1.0, 1.5)), strike + float(rng.normal(0, 0.3)), code)


@dataclass(frozen=True)
class _Fields:
    """What the rocks are and cause, on the 100 m grid: anomalies in mGal and nT, class codes of the bedrock."""

    gravity: FloatArray
    magnetics: FloatArray
    lithology: ByteArray


def _model_fields(geology: _Geology, rng: np.random.Generator, rows: int, cols: int) -> _Fields:
    """Fill the slabs with rock, add up their spectra, and keep the map of the uppermost one."""
    shape = (rows + 2 * MARGIN, cols + 2 * MARGIN)
    x = ((np.arange(shape[1], dtype=np.float32) - MARGIN + 0.5) * np.float32(CELL_M))[None, :]
    y = ((rows + MARGIN - 0.5 - np.arange(shape[0], dtype=np.float32)) * np.float32(CELL_M))[:, None]
    fade = np.outer(_fade(rows), _fade(cols))
    mottle = ndimage.gaussian_filter(rng.standard_normal(shape, dtype=np.float32), 1.5)
    mottle /= mottle.std()
    density_of, susceptibility_of = _property_tables()
    spectrum = _Spectrum.padded(shape, cell_m=CELL_M, pad_cells=0)
    gravity: NDArray[np.complex64] | int = 0
    magnetics: NDArray[np.complex64] | int = 0
    cover, basin = geology.cover(x, y)
    lithology = np.empty(0, np.uint8)
    for top_m, bottom_m in SLABS_M:
        code, texture = _fill(geology, x, y, depth_m=(top_m + bottom_m) / 2)
        if lithology.size == 0:
            inner = (slice(MARGIN, MARGIN + rows), slice(MARGIN, MARGIN + cols))
            lithology = np.where(basin, np.uint8(BASIN), code)[inner]
        rock = 1 - np.clip((cover - np.float32(top_m)) / np.float32(bottom_m - top_m), 0, 1)
        texture += mottle
        density = density_of[code] + np.float32(0.012) * texture - np.float32(COVER_DENSITY)
        susceptibility = susceptibility_of[code] * np.exp(np.float32(0.2) * texture)
        for values in (density, susceptibility):
            values *= rock
            values -= values.mean()
            values *= fade
        gravity = gravity + spectrum.gravity(density, top_m=top_m, bottom_m=bottom_m)
        magnetics = magnetics + spectrum.magnetics(susceptibility, top_m=top_m, bottom_m=bottom_m)
    earth = spectrum.earth_field(INCLINATION_DEG, DECLINATION_DEG, FIELD_NT)
    gravity_grid, magnetics_grid = (spectrum.to_grid(s)[inner] for s in (gravity, magnetics * earth))
    return _Fields(gravity_grid, magnetics_grid, lithology)


def _fill(geology: _Geology, x: FloatArray, y: FloatArray, *, depth_m: float) -> tuple[ByteArray, FloatArray]:
    """`_Geology.rocks` over the whole plane, by strips of rows that fit the processor's cache."""
    strips = [y[start : start + 32] for start in range(0, y.shape[0], 32)]
    with ThreadPoolExecutor(2) as pool:
        parts = list(pool.map(lambda strip: geology.rocks(x, strip, depth_m), strips))
    return np.concatenate([code for code, _ in parts]), np.concatenate([texture for _, texture in parts])


def _fade(size: int) -> FloatArray:
    """One inside the survey, falling to zero over its margin as a raised cosine."""
    ramp = (0.5 - 0.5 * np.cos(np.pi * (np.arange(MARGIN) + 0.5) / MARGIN)).astype(np.float32)
    return np.concatenate([ramp, np.ones(size, np.float32), ramp[::-1]])


def _property_tables() -> tuple[FloatArray, FloatArray]:
    density, susceptibility = np.zeros(256, np.float32), np.zeros(256, np.float32)
    for unit in UNITS:
        density[unit.code], susceptibility[unit.code] = unit.density, unit.susceptibility
    return density, susceptibility


# ------------------------------------------------------------------------------------------------------- survey


@dataclass(frozen=True)
class _Survey:
    """What was measured, and the truth: NaN where not measured, lithology 0 outside the outline."""

    gravity: FloatArray  # (rows / 2, cols / 2) mGal
    magnetics: FloatArray  # (rows, cols) nT
    lithology: ByteArray  # (rows, cols)
    deposits: list[dict[str, object]]


def _make_survey(seed: int, rows: int, cols: int) -> _Survey:
    """Draw the ground, model its fields, and measure them the way surveys do."""
    streams = [np.random.default_rng([seed, rows, cols, part]) for part in range(4)]
    geology = _draw_geology(streams[0], rows, cols)
    fields = _model_fields(geology, streams[1], rows, cols)
    inside = _outline(streams[2], rows, cols)
    magnetics = _fly(fields.magnetics, streams[2])
    gravity = _occupy(fields.gravity, streams[2])
    magnetics[~inside | _gaps(streams[2], inside)] = np.nan
    outside = ~inside | _gaps(streams[2], inside)
    gravity[outside.reshape(rows // 2, 2, cols // 2, 2).any(axis=(1, 3))] = np.nan
    lithology = np.where(inside, fields.lithology, np.uint8(0))
    return _Survey(gravity, magnetics, lithology, _place_deposits(geology, lithology, streams[3]))


def _fly(anomaly: FloatArray, rng: np.random.Generator) -> FloatArray:
    """Magnetics with levelling errors of east-west lines 400 m apart, to the nearest 1/64 nT."""
    rows, cols = anomaly.shape
    lines = -(-rows // 4)
    drift = ndimage.gaussian_filter1d(rng.standard_normal((lines, cols)), 150, axis=1, mode="nearest")
    drift /= drift.std() + 1e-12
    error = 0.02 * rng.standard_normal((lines, 1)) + 0.015 * drift
    measured = anomaly + np.repeat(error, 4, axis=0)[:rows] * anomaly.std()
    return (np.round(measured * 64) / 64).astype(np.float32)


def _occupy(anomaly: FloatArray, rng: np.random.Generator) -> FloatArray:
    """Bouguer gravity as means of 200 m cells, with a regional trend and station noise, to the nearest 1/1024 mGal."""
    rows, cols = anomaly.shape[0] // 2, anomaly.shape[1] // 2
    cells = anomaly.reshape(rows, 2, cols, 2).mean(axis=(1, 3))
    east, north = np.linspace(-1, 1, cols)[None, :], np.linspace(1, -1, rows)[:, None]
    slope_east, slope_north, bow = rng.uniform(-0.6, 0.6, 3)
    regional = -15 + cells.std() * (slope_east * east + slope_north * north + bow * (east**2 + east * north))
    stations = ndimage.gaussian_filter(rng.standard_normal((rows, cols)), 1.0)
    measured = cells + regional + 0.02 * cells.std() / stations.std() * stations
    return (np.round(measured * 1024) / 1024).astype(np.float32)


def _outline(rng: np.random.Generator, rows: int, cols: int) -> BoolArray:
    """True inside a ragged, coast-like outline that leaves out about a tenth of the rectangle."""
    size = min(rows, cols)
    x = (np.arange(cols, dtype=np.float32)[None, :] + np.float32(0.5)) / np.float32(size)
    y = (np.arange(rows, dtype=np.float32)[:, None] + np.float32(0.5)) / np.float32(size)
    to_edge = np.minimum(np.minimum(x, cols / size - x), np.minimum(y, rows / size - y)).astype(np.float32)
    coast = _Waves.draw(rng, count=16, shortest=0.02, longest=0.9, slope=0.85)(x, y)
    seaward = 1 - np.clip(x / np.float32(0.35), 0, 1)  # the west side is the sea
    height = to_edge * (1 - np.float32(0.5) * seaward) + np.float32(0.03) * coast
    inside = height > np.quantile(height[::2, ::2], 0.10)
    pieces, count = ndimage.label(inside)
    return inside & (pieces == 1 + np.argmax(np.bincount(pieces.ravel(), minlength=count + 1)[1:]))


def _gaps(rng: np.random.Generator, inside: BoolArray) -> BoolArray:
    """True in lakes and no-fly blocks: a dozen rounded or square-cut holes, about 2 % of the survey."""
    rows, cols = inside.shape
    x, y = np.arange(cols, dtype=np.float32)[None, :], np.arange(rows, dtype=np.float32)[:, None]
    shore = _Waves.draw(rng, count=8, shortest=0.03 * cols, longest=0.3 * cols, slope=0.8)
    gaps = np.zeros(inside.shape, dtype=bool)
    for index in range(12):
        centre_x, centre_y, angle = rng.uniform(0, cols), rng.uniform(0, rows), rng.uniform(0, math.pi)
        radius = math.sqrt(rows * cols) * rng.uniform(0.012, 0.035)
        c, s = np.float32(math.cos(angle)), np.float32(math.sin(angle))
        along = np.abs(c * (x - np.float32(centre_x)) + s * (y - np.float32(centre_y))) / np.float32(
            radius * 1.4
        )
        across = np.abs(c * (y - np.float32(centre_y)) - s * (x - np.float32(centre_x))) / np.float32(
            radius * 0.8
        )
        if index % 3 == 0:
            gaps |= np.maximum(along, across) < 1
        else:
            near = np.hypot(along, across) < 1.6
            i, j = np.flatnonzero(near.any(axis=1)), np.flatnonzero(near.any(axis=0))
            if i.size and j.size:
                box = (slice(i[0], i[-1] + 1), slice(j[0], j[-1] + 1))
                gaps[box] |= (
                    np.hypot(along, across)[box] + np.float32(0.25) * shore(x[:, box[1]], y[box[0]]) < 1
                )
    return gaps


def _place_deposits(
    geology: _Geology, lithology: ByteArray, rng: np.random.Generator
) -> list[dict[str, object]]:
    """Deposits at contacts of basalt or iron formation, near a fault (gold) or an intrusion (copper-gold).

    The chance falls with the distances to all three on a 200 m grid; no two deposits lie within 1.2 km.
    """
    rock = lithology[::2, ::2]
    host = np.isin(rock, (BASALT, IRON))
    to_contact = _distance_to(host & ndimage.binary_dilation(~host & (rock > 0)))
    to_intrusion = _distance_to(np.isin(rock, (GRANITE, GABBRO)))
    rows, cols = lithology.shape
    x = (np.arange(rock.shape[1], dtype=np.float32) * np.float32(2 * CELL_M) + np.float32(CELL_M / 2))[
        None, :
    ]
    y = (
        (rows - np.arange(rock.shape[0], dtype=np.float32) * 2) * np.float32(CELL_M) - np.float32(CELL_M / 2)
    )[:, None]
    to_fault = np.full(rock.shape, 1e5, dtype=np.float32)
    for fault in geology.faults:
        along, across = fault.along_across(x, y, sum(SLABS_M[0]) / 2)
        reached = np.abs(along) < fault.half_length
        to_fault = np.where(reached, np.minimum(to_fault, np.abs(across)), to_fault)
    chance = np.exp(-np.square(to_contact / 250) - to_intrusion / 2500 - to_fault / 1500) * host
    # Exponential clocks: the cells that ring first are a draw without replacement in proportion to chance.
    rings = rng.exponential(size=chance.shape) / np.maximum(chance, 1e-30)
    wanted = max(3, round(60 * rows * cols / 2048**2))
    chosen: list[tuple[int, int]] = []
    for flat in np.argsort(rings, axis=None, kind="stable")[: 40 * wanted]:
        i, j = divmod(int(flat), rock.shape[1])
        apart = all(math.hypot(i - a, j - b) * 2 * CELL_M > 1200 for a, b in chosen)
        if chance[i, j] > 1e-6 and apart and len(chosen) < wanted:
            chosen.append((i, j))
    names = {unit.code: unit.name for unit in UNITS}
    deposits: list[dict[str, object]] = []
    for number, (i, j) in enumerate(chosen, start=1):
        gold = bool(to_fault[i, j] / 1500 < to_intrusion[i, j] / 2500)
        deposits.append({
            "name": f"prospect {number}", "commodity": "Au" if gold else "Cu-Au",
            "type": "orogenic gold" if gold else "skarn", "host": names[int(rock[i, j])],
            "x": float(ORIGIN_XY[0] + x[0, j]), "y": float(ORIGIN_XY[1] - rows * CELL_M + y[i, 0]),
        })  # fmt: skip
    return deposits


def _distance_to(target: BoolArray) -> FloatArray:
    """Metres to the nearest True cell of a 200 m grid; 100 km where there is none."""
    if not target.any():
        return np.full(target.shape, 1e5, dtype=np.float32)
    return (ndimage.distance_transform_edt(~target) * 2 * CELL_M).astype(np.float32)


# ------------------------------------------------------------------------------------------------------ writing


def _write_parts(folder: Path, identity: dict[str, int]) -> None:
    """Write every file of the survey into a new `folder`; survey.json, with the size of each, comes last."""
    rows, cols = identity["rows"], identity["cols"]
    logger.info("modelling a survey of %d x %d cells of 100 m, seed %d", rows, cols, identity["seed"])
    survey = _make_survey(identity["seed"], rows, cols)
    labels = folder / "labels"
    labels.mkdir(parents=True)
    _write_raster(folder / "gravity.tif", survey.gravity, nodata=GRAVITY_NODATA, cell_m=2 * CELL_M,
                  description="gravity", units="mGal", title="Bouguer gravity with regional")  # fmt: skip
    _write_raster(folder / "magnetics.tif", survey.magnetics, nodata=MAGNETICS_NODATA, cell_m=CELL_M,
                  description="magnetics", units="nT", title="Total magnetic intensity anomaly")  # fmt: skip
    _write_csv(folder / "layers.csv", ("path", "name", "kind", "units"),
               [("gravity.tif", "gravity", "continuous", "mGal"), ("magnetics.tif", "magnetics", "continuous", "nT")])  # fmt: skip
    _write_lithology(labels / "lithology.tif", survey.lithology)
    colours = {unit.code: "#{:02x}{:02x}{:02x}".format(*unit.colour) for unit in UNITS}
    _write_csv(labels / "lithology_classes.csv", ("code", "name", "colour", "density", "susceptibility"),
               [(u.code, u.name, colours[u.code], u.density, u.susceptibility) for u in UNITS])  # fmt: skip
    _write_vectors(labels, survey)
    _write_quicklook(labels / "quicklook.png", survey)
    (folder / "README.md").write_text(_readme(identity), encoding="utf-8")
    files = {
        str(p.relative_to(folder).as_posix()): p.stat().st_size
        for p in sorted(folder.rglob("*"))
        if p.is_file()
    }
    (folder / "survey.json").write_text(
        json.dumps({**identity, "files": files}, indent=2) + "\n", encoding="utf-8"
    )


def _transform(cell_m: float) -> Affine:
    return from_origin(*ORIGIN_XY, cell_m, cell_m)


def _write_raster(
    path: Path, values: FloatArray, *, nodata: float, cell_m: float, description: str, units: str, title: str
) -> None:
    profile = {
        "driver": "GTiff", "height": values.shape[0], "width": values.shape[1], "count": 1, "dtype": "float32",
        "crs": CRS, "transform": _transform(cell_m), "nodata": nodata, "tiled": True, "blockxsize": 256,
        "blockysize": 256, "compress": "deflate", "predictor": 3, "zlevel": 6,
    }  # fmt: skip
    with rasterio.open(path, "w", **profile) as sink:
        sink.write(np.where(np.isnan(values), np.float32(nodata), values), 1)
        sink.set_band_description(1, description)
        sink.units = (units,)
        sink.update_tags(title=title, synthetic="yes")


def _write_lithology(path: Path, codes: ByteArray) -> None:
    profile = {
        "driver": "GTiff", "height": codes.shape[0], "width": codes.shape[1], "count": 1, "dtype": "uint8",
        "crs": CRS, "transform": _transform(CELL_M), "nodata": 0, "tiled": True, "blockxsize": 256,
        "blockysize": 256, "compress": "deflate", "zlevel": 9,
    }  # fmt: skip
    with rasterio.open(path, "w", **profile) as sink:
        sink.write_colormap(1, {0: (255, 255, 255, 0)} | {u.code: (*u.colour, 255) for u in UNITS})
        sink.write(codes, 1)
        sink.set_band_description(1, "lithology")
        sink.update_tags(1, **{f"class_{u.code}": u.name for u in UNITS})


def _write_csv(path: Path, header: tuple[str, ...], lines: list[tuple[object, ...]]) -> None:
    with path.open("w", newline="", encoding="utf-8") as sink:
        csv.writer(sink).writerows([header, *lines])


def _write_vectors(labels: Path, survey: _Survey) -> None:
    """The lithology as polygons along its cells' edges, and the deposits as points."""
    import geopandas as gpd  # slow to import; whoever only asks for DEFAULT_DIRECTORY does not wait for it
    from shapely.geometry import shape

    names = {unit.code: unit.name for unit in UNITS}
    found = list(shapes(survey.lithology, mask=survey.lithology > 0, transform=_transform(CELL_M)))
    table = {"code": [int(code) for _, code in found], "name": [names[int(code)] for _, code in found]}
    polygons = gpd.GeoDataFrame(table, geometry=[shape(outline) for outline, _ in found], crs=CRS)
    polygons.to_file(labels / "lithology.gpkg", layer="lithology", driver="GPKG")
    columns = ("name", "commodity", "type", "host")
    points = gpd.points_from_xy([d["x"] for d in survey.deposits], [d["y"] for d in survey.deposits])
    deposits = gpd.GeoDataFrame(
        {c: [d[c] for d in survey.deposits] for c in columns}, geometry=points, crs=CRS
    )
    deposits.to_file(labels / "deposits.gpkg", layer="deposits", driver="GPKG")


def _write_quicklook(path: Path, survey: _Survey) -> None:
    from matplotlib.colors import LightSource, ListedColormap  # slow to import, see _write_vectors
    from matplotlib.figure import Figure

    rows, cols = survey.lithology.shape
    step = max(1, min(rows, cols) // 512)
    figure = Figure(figsize=(15, 5.4 * rows / cols + 0.4), layout="constrained")
    left, middle, right = figure.subplots(1, 3)
    extent = (0, cols * CELL_M / 1000, 0, rows * CELL_M / 1000)
    for axes, values, title in (
        (left, survey.gravity[:: max(1, step // 2), :: max(1, step // 2)], "gravity (mGal)"),
        (middle, survey.magnetics[::step, ::step], "magnetics (nT)"),
    ):
        low, high = np.nanpercentile(values, (1, 99))
        picture = axes.imshow(
            values, cmap="turbo", vmin=low, vmax=high, extent=extent, interpolation="nearest"
        )
        light = LightSource(azdeg=45, altdeg=45).hillshade(
            np.nan_to_num(values, nan=low), vert_exag=60 / (high - low)
        )
        axes.imshow(
            light, cmap="gray", alpha=0.3 * np.isfinite(values), extent=extent, interpolation="nearest"
        )
        figure.colorbar(picture, ax=axes, shrink=0.7)
        axes.set_title(title)
    colours = ListedColormap([(1, 1, 1), *(tuple(v / 255 for v in unit.colour) for unit in UNITS)])
    right.imshow(survey.lithology[::step, ::step], cmap=colours, vmin=-0.5, vmax=len(UNITS) + 0.5, extent=extent,
                 interpolation="nearest")  # fmt: skip
    easting = [(float(str(d["x"])) - ORIGIN_XY[0]) / 1000 for d in survey.deposits]
    northing = [(float(str(d["y"])) - ORIGIN_XY[1]) / 1000 + extent[3] for d in survey.deposits]
    right.plot(easting, northing, "k*", markersize=5)
    right.set_title("lithology and deposits (km)")
    figure.savefig(path, dpi=110)


def _readme(identity: dict[str, int]) -> str:
    slabs = ", ".join(f"{top:g}-{bottom:g} m" for top, bottom in SLABS_M)
    return f"""# Sample survey (synthetic)

Made by `python -m scripts.make_sample_survey --seed {identity["seed"]} --rows {identity["rows"]} --cols {identity["cols"]}`.
No rock of it exists; the physics is real. All files are in {CRS}, metres.

| file | what | cells | unit | nodata |
|---|---|---|---|---|
| gravity.tif | Bouguer gravity with a regional trend | 200 m | mGal | {GRAVITY_NODATA:.6g} |
| magnetics.tif | total-field anomaly (inclination {INCLINATION_DEG:g}, declination {DECLINATION_DEG:g}, {FIELD_NT:g} nT) | 100 m | nT | {MAGNETICS_NODATA:g} |
| labels/lithology.tif | rock class at the top of the bedrock | 100 m | code | 0 |
| labels/lithology_classes.csv | code, name, colour, density (g/cm3), susceptibility (SI) | | | |
| labels/lithology.gpkg | the same map as polygons | | | |
| labels/deposits.gpkg | mineral deposits: contacts of basalt or iron formation near faults and intrusions | | | |

The ground: a column of volcanic and sedimentary beds with iron formations, folded, faulted, intruded by plutons (with
aureoles) and dykes, below 50 to 250 m of cover and a few young basins. It is cut into slabs ({slabs} below the sensor);
dipping beds, faults and plutons make each differ. Each slab's gravity and induced magnetic field are computed exactly in
the wavenumber domain and added up. Then: gravity is averaged to 200 m cells and gets a regional trend and station noise;
magnetics gets levelling errors along east-west lines 400 m apart; both lose what lies outside the outline and in lakes
and no-fly blocks, which differ.
"""


def _check_request(*, seed: int, rows: int, cols: int) -> None:
    for name, value in (("rows", rows), ("cols", cols)):
        if value < 64 or value % 2:
            raise ValueError(
                f"sample survey: {name} is {value}, expected an even number of at least 64 cells of 100 m "
                f"(gravity has cells of 200 m); choose for example {max(64, value + value % 2)}"
            )
    if seed < 0:
        raise ValueError(f"sample survey: seed is {seed}, expected 0 or more; choose for example {-seed}")


def _is_there(directory: Path, *, identity: dict[str, int], overwrite: bool) -> bool:
    """Whether `directory` already holds this survey, whole; raises where writing would destroy something else."""
    if not os.path.lexists(directory) or (directory.is_dir() and not any(directory.iterdir())):
        return False
    if not directory.is_dir():
        raise ValueError(
            f"sample survey: {directory} is a file, expected a directory; choose another --output_dir"
        )
    found = _read_identity(directory)
    if found is None:
        raise ValueError(
            f"sample survey: {directory} is not empty and holds no sample survey (no readable survey.json); "
            "choose another directory, or empty this one"
        )
    if overwrite:
        return False
    if found != identity:
        raise ValueError(
            f"sample survey: {directory} holds a survey of {found}, expected {identity}; "
            "overwrite it (--overwrite), or choose another directory"
        )
    broken = _broken_files(directory)
    if broken:
        raise ValueError(
            f"sample survey: {directory} lacks {', '.join(broken)} as written; write it anew (--overwrite)"
        )
    return True


def _read_identity(directory: Path) -> dict[str, int] | None:
    try:
        record = json.loads((directory / "survey.json").read_text(encoding="utf-8"))
        return {key: int(record[key]) for key in ("seed", "rows", "cols", "version")}
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _broken_files(directory: Path) -> list[str]:
    """Files that survey.json names and that are missing or of another size."""
    sizes = json.loads((directory / "survey.json").read_text(encoding="utf-8"))["files"]
    return [
        n
        for n, size in sizes.items()
        if not (directory / n).is_file() or (directory / n).stat().st_size != size
    ]


def _move_into_place(partial: Path, directory: Path, identity: dict[str, int]) -> None:
    """Give the finished survey its name; what had it before goes away only then."""
    former = partial.with_suffix(".former")
    if directory.exists():
        directory.rename(former)
    try:
        partial.rename(directory)
    except OSError:
        # Another process finished first: its survey is as good, if it is the same one.
        if _read_identity(directory) != identity or _broken_files(directory):
            raise
    finally:
        if former.exists() and directory.exists():
            shutil.rmtree(former, ignore_errors=True)
