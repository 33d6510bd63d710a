"""Draw a synthetic geology: beds folded, then faulted, then intruded, known at any position and depth.

A column of beds, repeated without end, is laid out by a scalar, the stratigraphic height: folds shape it and
faults displace the place at which it is asked. Plutons with contact aureoles and dykes cut what they find, a
cover hides it all. Each rock has one density and one susceptibility, the dense ones being mostly the magnetic
ones, and each bed has a texture of its own.
"""

from __future__ import annotations

import math
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

FloatArray = NDArray[np.float32]
ByteArray = NDArray[np.uint8]
BoolArray = NDArray[np.bool_]


@dataclass(frozen=True)
class RockUnit:
    """One class of the lithology map: density in g/cm3, susceptibility in SI, colour as red, green, blue."""

    code: int
    name: str
    colour: tuple[int, int, int]
    density: float
    susceptibility: float


UNITS = (
    RockUnit(1, "gneiss", (226, 178, 190), 2.68, 0.003),
    RockUnit(2, "greywacke", (250, 236, 160), 2.72, 0.001),
    RockUnit(3, "black schist", (120, 130, 150), 2.78, 0.006),
    RockUnit(4, "felsic volcanics", (255, 196, 96), 2.66, 0.0005),
    RockUnit(5, "basalt", (110, 175, 90), 2.94, 0.022),
    RockUnit(6, "banded iron formation", (150, 40, 40), 3.15, 0.045),
    RockUnit(7, "granite", (240, 90, 110), 2.61, 0.0003),
    RockUnit(8, "gabbro", (60, 90, 170), 3.02, 0.035),
    RockUnit(9, "hornfels aureole", (190, 140, 210), 2.80, 0.018),
    RockUnit(10, "dolerite dyke", (40, 40, 40), 2.98, 0.040),
    RockUnit(11, "basin sandstone", (255, 250, 215), 2.50, 0.0),
)
GNEISS, GREYWACKE, SCHIST, FELSIC, BASALT, IRON, GRANITE, GABBRO, HORNFELS, DYKE, BASIN = (unit.code for unit in UNITS)
COVER_DENSITY = UNITS[BASIN - 1].density  # of all that covers the bedrock, basins and soil; it is not magnetic
# The rock column, oldest bed first: (code, thinnest, thickest) in metres of true thickness.
COLUMN = (
    *((GNEISS, 1800, 3600), (BASALT, 1400, 2600), (IRON, 400, 700), (SCHIST, 800, 1600)),
    *((GREYWACKE, 1600, 3000), (FELSIC, 1000, 1800), (BASALT, 1000, 2200), (SCHIST, 600, 1200)),
    *((IRON, 300, 600), (GREYWACKE, 1400, 2800), (BASALT, 600, 1400), (FELSIC, 1000, 2000)),
)
COLUMN_STEP_M = 10.0  # of the column's lookup tables


def draw_geology(rng: np.random.Generator, *, width_m: float, height_m: float) -> Geology:
    """Draw the rocks of an area; lengths are absolute, the numbers of bodies go with the area."""
    area_km2 = width_m * height_m / 1e6
    axes = float(rng.uniform(0.35, 0.65) * math.pi)  # azimuth of the folds' axes, about north-south
    dyke_azimuth = float(rng.uniform(0.65, 0.85) * math.pi)
    thicknesses = [rng.uniform(thinnest, thickest) for _, thinnest, thickest in COLUMN]
    codes = np.array([code for code, _, _ in COLUMN], dtype=np.uint8)
    column = np.repeat(codes, (np.array(thicknesses) / COLUMN_STEP_M).astype(int))
    bedding = ndimage.gaussian_filter1d(rng.standard_normal(len(column)), 90 / COLUMN_STEP_M, mode="wrap")

    def place() -> tuple[float, float]:
        return float(rng.uniform(0, width_m)), float(rng.uniform(0, height_m))

    across = axes - math.pi / 2
    return Geology(
        faults=tuple(_draw_fault(rng, place(), axes) for _ in range(3 + round(area_km2 / 2200))),
        dykes=tuple(_draw_dyke(rng, place(), dyke_azimuth) for _ in range(2 + round(area_km2 / 2500))),
        plutons=tuple(_draw_pluton(rng, place(), axes, i) for i in range(2 + round(area_km2 / 420))),
        warp=Waves.draw(rng, count=7, shortest=14e3, longest=60e3, growth=0.7),
        folds=Waves.draw(rng, count=9, shortest=11e3, longest=48e3, growth=1.0, azimuth=across, spread=0.7),
        parasitic=Waves.draw(rng, count=6, shortest=1800, longest=4500, growth=1, azimuth=across, spread=0.9),
        roughness=Waves.draw(rng, count=9, shortest=1100, longest=9e3, growth=0.8),
        basins=Waves.draw(rng, count=7, shortest=18e3, longest=60e3, growth=0.5),
        soil=Waves.draw(rng, count=8, shortest=3e3, longest=25e3, growth=0.4),
        column_code=column,
        column_texture=(bedding / bedding.std()).astype(np.float32),
    )


@dataclass(frozen=True)
class Waves:
    """A smooth random function of the plane: a sum of plane waves, so that it is known at any point."""

    amplitude: NDArray[np.float32]
    k_x: NDArray[np.float32]
    k_y: NDArray[np.float32]
    phase: NDArray[np.float32]

    @classmethod
    def draw(
        cls,
        rng: np.random.Generator,
        *,
        count: int,
        shortest: float,
        longest: float,
        growth: float,
        azimuth: float = 0.0,
        spread: float = math.pi,
    ) -> Waves:
        """Waves of unit variance in all; amplitude as wavelength**growth; azimuth and spread in radians."""
        wavelength = np.geomspace(shortest, longest, count) * rng.uniform(0.9, 1.1, count)
        angle = azimuth + rng.uniform(-spread, spread, count)
        amplitude = wavelength**growth
        amplitude *= math.sqrt(2 / np.sum(amplitude**2))
        k = 2 * np.pi / wavelength
        parts = (amplitude, k * np.cos(angle), k * np.sin(angle), rng.uniform(0, 2 * np.pi, count))
        return cls(*(part.astype(np.float32) for part in parts))

    def __call__(self, x: FloatArray, y: FloatArray) -> FloatArray:
        """Value at x and y, which broadcast; in the unit of the wavelengths."""
        total = np.zeros(np.broadcast_shapes(x.shape, y.shape), dtype=np.float32)
        for amplitude, k_x, k_y, phase in zip(self.amplitude, self.k_x, self.k_y, self.phase, strict=True):
            total += amplitude * np.sin(k_x * x + (k_y * y + phase))
        return total


@dataclass(frozen=True)
class Sheet:
    """A fault or dyke: a gently bent, dipping sheet through (x, y); metres, azimuth from east in radians."""

    x: float
    y: float
    azimuth: float
    half_length: float
    dip_cotangent: float
    bend: float
    bend_length: float
    slip: float = 0.0  # along strike, of what lies left of a fault
    throw: float = 0.0  # likewise, in stratigraphic height
    half_width: float = 0.0  # of a dyke

    def along_across(self, x: FloatArray, y: FloatArray, depth_m: float) -> tuple[FloatArray, FloatArray]:
        """Distances along the sheet from its middle, and across it (positive to the left), in metres."""
        along, across = _rotate(x, y, self.x, self.y, self.azimuth)
        bend = np.float32(self.bend) * np.sin(along * np.float32(2 * math.pi / self.bend_length))
        return along, across + (bend - np.float32(depth_m * self.dip_cotangent))


@dataclass(frozen=True)
class Pluton:
    """An intrusion: an ellipse that widens downwards; the geology's roughness makes its outline irregular."""

    x: float
    y: float
    radius: float
    elongation: float
    azimuth: float
    code: int

    def radii(self, x: FloatArray, y: FloatArray, depth_m: float) -> FloatArray:
        """Distance from the middle, 1 at the smooth outline at this depth."""
        along, across = _rotate(x, y, self.x, self.y, self.azimuth)
        stretch = np.float32(self.elongation)
        return np.hypot(along / stretch, across * stretch) / np.float32(self.radius + 0.25 * depth_m)


@dataclass(frozen=True)
class Geology:
    """The rocks of one area, asked at metres east (x) and north (y) of its south-west corner."""

    faults: tuple[Sheet, ...]  # youngest first
    dykes: tuple[Sheet, ...]
    plutons: tuple[Pluton, ...]  # oldest first
    warp: Waves
    folds: Waves
    parasitic: Waves
    roughness: Waves
    basins: Waves
    soil: Waves
    column_code: ByteArray  # one entry every COLUMN_STEP_M
    column_texture: FloatArray

    def stratigraphic_height(self, x: FloatArray, y: FloatArray, depth_m: float) -> FloatArray:
        """Metres above the column's base: the faults undone, youngest first, then the folds."""
        height = np.full(np.broadcast_shapes(x.shape, y.shape), depth_m, dtype=np.float32)
        for fault in self.faults:
            along, across = fault.along_across(x, y, depth_m)
            moved = np.clip(1 - np.square(along / np.float32(fault.half_length)), 0, None)
            moved *= (across > 0) * np.clip(1 - across / np.float32(1.5 * fault.half_length), 0, None)
            x = x - np.float32(fault.slip * math.cos(fault.azimuth)) * moved
            y = y - np.float32(fault.slip * math.sin(fault.azimuth)) * moved
            height += np.float32(fault.throw) * moved
        x = x + np.float32(2500) * self.warp(x, y)
        return height + np.float32(6500) * self.folds(x, y) + np.float32(180) * self.parasitic(x, y)

    def rocks(self, x: FloatArray, y: FloatArray, depth_m: float) -> tuple[ByteArray, FloatArray]:
        """Codes and bedding textures (unit variance) of the bedrock.

        Args:
            x: (1, cols) eastings, ascending.
            y: (rows, 1) northings, descending.
            depth_m: one depth for all.

        Returns:
            Two (rows, cols) arrays: class codes, and the texture, zero in intrusions.
        """
        entry = np.floor(self.stratigraphic_height(x, y, depth_m) / np.float32(COLUMN_STEP_M)).astype(np.int32)
        entry %= len(self.column_code)
        code, texture = self.column_code[entry], self.column_texture[entry]
        rough = np.float32(0.13) * self.roughness(x, y)
        for pluton in self.plutons:
            reach = 1.5 * pluton.elongation * (pluton.radius + 0.25 * depth_m)
            i = slice(*np.searchsorted(-y[:, 0], [-pluton.y - reach, -pluton.y + reach]))
            j = slice(*np.searchsorted(x[0], [pluton.x - reach, pluton.x + reach]))
            if i.start < i.stop and j.start < j.stop:
                radii = pluton.radii(x[:, j], y[i], depth_m) + rough[i, j]
                _intrude(code[i, j], texture[i, j], radii, pluton.code)
        for dyke in self.dykes:
            along, across = dyke.along_across(x, y, depth_m)
            inside = (np.abs(across) < dyke.half_width) & (np.abs(along) < dyke.half_length)
            code[inside], texture[inside] = DYKE, 0
        return code, texture

    def rocks_by_strips(self, x: FloatArray, y: FloatArray, depth_m: float) -> tuple[ByteArray, FloatArray]:
        """The same as `rocks`, by strips of rows that fit the processor's cache, on two threads."""
        strips = [y[start : start + 32] for start in range(0, y.shape[0], 32)]
        with ThreadPoolExecutor(2) as pool:
            parts = list(pool.map(lambda strip: self.rocks(x, strip, depth_m), strips))
        return np.concatenate([code for code, _ in parts]), np.concatenate([texture for _, texture in parts])

    def cover(self, x: FloatArray, y: FloatArray) -> tuple[FloatArray, BoolArray]:
        """Depth of the cover's base below the sensor in metres, and True in the basins, which maps show."""
        basin = np.clip(self.basins(x, y) - np.float32(1.55), 0, None)
        return np.float32(150) + np.float32(45) * self.soil(x, y) + np.float32(900) * basin, basin > 0


def _rotate(
    x: FloatArray, y: FloatArray, centre_x: float, centre_y: float, azimuth: float
) -> tuple[FloatArray, FloatArray]:
    cosine, sine = np.float32(math.cos(azimuth)), np.float32(math.sin(azimuth))
    east, north = x - np.float32(centre_x), y - np.float32(centre_y)
    return cosine * east + sine * north, cosine * north - sine * east


def _intrude(code: ByteArray, texture: FloatArray, radii: FloatArray, pluton_code: int) -> None:
    """Put a pluton and the aureole it bakes into older beds into views of codes and textures, in place."""
    aureole = 1.22 if pluton_code == GRANITE else 1.08
    code[(radii < aureole) & (code != GRANITE) & (code != GABBRO)] = HORNFELS
    code[radii < 1], texture[radii < 1] = pluton_code, 0


def _draw_fault(rng: np.random.Generator, centre_xy: tuple[float, float], axes: float) -> Sheet:
    return Sheet(
        *centre_xy,
        azimuth=axes + float(rng.choice([0.0, 0.75, -0.75, 1.4]) + rng.normal(0, 0.15)),
        half_length=float(rng.uniform(18e3, 65e3)),
        dip_cotangent=float(rng.uniform(-0.6, 0.6)),
        bend=float(rng.uniform(-900, 900)),
        bend_length=float(rng.uniform(15e3, 45e3)),
        slip=float(rng.choice([-1, 1]) * rng.uniform(1500, 7000)),
        throw=float(rng.choice([-1, 1]) * rng.uniform(500, 4000)),
    )


def _draw_dyke(rng: np.random.Generator, centre_xy: tuple[float, float], azimuth: float) -> Sheet:
    return Sheet(
        *centre_xy,
        azimuth=azimuth + float(rng.normal(0, 0.07)),
        half_length=float(rng.uniform(8e3, 55e3)),
        dip_cotangent=float(rng.uniform(-0.08, 0.08)),
        bend=float(rng.uniform(-350, 350)),
        bend_length=float(rng.uniform(12e3, 30e3)),
        half_width=float(rng.uniform(110, 190)),
    )


def _draw_pluton(rng: np.random.Generator, centre_xy: tuple[float, float], axes: float, index: int) -> Pluton:
    code = GABBRO if index % 5 in (1, 3) else GRANITE
    radius = math.exp(rng.normal(math.log(3400 if code == GRANITE else 1700), 0.4))
    return Pluton(*centre_xy, radius, float(rng.uniform(1.0, 1.5)), axes + float(rng.normal(0, 0.3)), code)
