"""Write a synthetic survey: gravity, magnetics and the rocks that cause both, as files on disk.

The rocks are drawn first (`geology`): five slabs of ground, which differ as beds, faults and plutons dip.
The fields of the slabs follow by forward modelling (`potential_field`) and are added up, so that gravity and
magnetics see the same rocks, and a model can learn one from the other. Then survey effects are added: cells,
lines, noise, an outline and gaps. The rocks are written as labels.
"""

from __future__ import annotations

import contextlib
import csv
import json
import logging
import math
import os
import shutil
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import rasterio
from numpy.typing import NDArray
from rasterio.features import shapes
from rasterio.transform import Affine, from_origin
from scipy import ndimage

from datasets.synthetic.geology import (
    BASALT,
    BASIN,
    COVER_DENSITY,
    GABBRO,
    GRANITE,
    IRON,
    UNITS,
    Geology,
    Waves,
    draw_geology,
)
from datasets.synthetic.potential_field import Wavenumbers

logger = logging.getLogger(__name__)

FloatArray = NDArray[np.float32]
ByteArray = NDArray[np.uint8]
BoolArray = NDArray[np.bool_]

DEFAULT_DIRECTORY = "sample_survey"
SURVEY_VERSION = 2  # raised whenever the same seed and size would give other arrays
CELL_M = 100.0  # of magnetics, lithology and the forward model; gravity has cells twice as wide
MARGIN = 96  # cells modelled beyond each edge, over which contrasts fade out, so that nothing wraps round
CRS = "EPSG:28354"  # GDA94 / MGA zone 54, metres
LEFT, TOP = 400_000.0, 6_600_000.0
INCLINATION_DEG, DECLINATION_DEG, FIELD_NT = -64.0, 8.0, 58_000.0
SLABS_M = ((100.0, 250.0), (250.0, 500.0), (500.0, 900.0), (900.0, 1600.0), (1600.0, 2800.0))
MAGNETICS_NODATA = -99999.0
GRAVITY_NODATA = float(np.float32(1.70141e38))  # the dummy of Surfer grids, declared as nodata
GEOTIFF = {"driver": "GTiff", "tiled": True, "blockxsize": 256, "blockysize": 256, "compress": "deflate"}


def write_sample_survey(
    directory: str | Path, *, seed: int = 0, rows: int = 2048, cols: int = 2048, overwrite: bool = False
) -> Path:
    """Write the sample survey of this seed and size into `directory`, unless it is already there.

    All is written beside `directory` and renamed when complete: a half-written survey never has its name.

    Args:
        directory: where the survey goes; its parents are made.
        seed: every array of the survey is a function of (seed, rows, cols).
        rows: rows of the 100 m grid, even, at least 64.
        cols: columns of the 100 m grid, even, at least 64.
        overwrite: replace another sample survey that lies there; never a directory of another kind.

    Returns:
        `directory`, with gravity.tif, magnetics.tif, layers.csv, README.md, survey.json and labels/ inside.

    Raises:
        ValueError: a size or seed out of range, or a directory that holds something else.
        OSError: the place cannot be written.
    """
    directory = Path(directory)
    _check_request(seed=seed, rows=rows, cols=cols)
    identity = {"seed": seed, "rows": rows, "cols": cols, "version": SURVEY_VERSION}
    if _is_there(directory, identity=identity, overwrite=overwrite):
        return directory
    partial = directory.parent / f".{directory.name}-{uuid.uuid4().hex[:8]}.partial"
    try:
        partial.mkdir(parents=True)
        logger.info("modelling a sample survey of %d x %d cells of 100 m, seed %d", rows, cols, seed)
        _write_files(partial, _make_survey(seed, rows, cols), identity)
        _move_into_place(partial, directory, identity=identity, overwrite=overwrite)
    except (OSError, RuntimeError) as error:  # pyogrio's errors are not OSErrors
        raise OSError(
            f"sample survey: writing {directory} failed ({error}), and nothing was changed there; free some "
            "space (30 MB are enough for the default size), or choose a place that can be written"
        ) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    logger.info("sample survey written to %s", directory)
    return directory


def default_survey() -> Path:
    """The survey that programs use when no data is given: the complete one in `DEFAULT_DIRECTORY`, else a new one.

    Returns:
        Its directory. A survey of any seed and size already there is used as it is.

    Raises:
        ValueError: the directory holds something else, or a survey that is not complete.
        OSError: the place cannot be written.
    """
    directory = Path(DEFAULT_DIRECTORY)
    try:
        identity = json.loads((directory / "survey.json").read_text(encoding="utf-8"))
        seed, rows, cols = (int(identity[key]) for key in ("seed", "rows", "cols"))
    except (OSError, ValueError, KeyError):
        return write_sample_survey(directory)
    return write_sample_survey(directory, seed=seed, rows=rows, cols=cols)


def labels_of_sample(layer: str | Path, name: str) -> Path | None:
    """The path of a file of the sample survey that a layer belongs to.

    Args:
        layer: path of one of its layers.
        name: of the file, relative to the survey's folder.

    Returns:
        The path; None if the layer is not part of a sample survey, or the file is not there.
    """
    folder = Path(layer).parent
    return folder / name if (folder / "survey.json").exists() and (folder / name).exists() else None


@dataclass(frozen=True)
class Deposit:
    """A mineral deposit at (x, y) in the survey's CRS, in a host rock."""

    name: str
    commodity: str
    type: str
    host: str
    x: float
    y: float


@dataclass(frozen=True)
class Survey:
    """The measured fields, NaN where not measured, and the true rocks, 0 outside the outline."""

    gravity: FloatArray  # (rows / 2, cols / 2) mGal
    magnetics: FloatArray  # (rows, cols) nT
    lithology: ByteArray  # (rows, cols) class codes
    deposits: tuple[Deposit, ...]


def _make_survey(seed: int, rows: int, cols: int) -> Survey:
    """Draw the ground, model its fields, and measure them as surveys do."""
    ground, mottle, measuring, prospecting = (np.random.default_rng([seed, rows, cols, i]) for i in range(4))
    geology = draw_geology(ground, width_m=cols * CELL_M, height_m=rows * CELL_M)
    gravity, magnetics, lithology = _model_fields(geology, mottle, rows, cols)
    gravity, magnetics = _occupy_stations(gravity, measuring), _fly_lines(magnetics, measuring)
    outside = ~_outline(measuring, rows, cols)
    magnetics[outside | _gaps(measuring, rows, cols)] = np.nan
    cells = (outside | _gaps(measuring, rows, cols)).reshape(rows // 2, 2, cols // 2, 2)
    gravity[cells.any(axis=(1, 3))] = np.nan
    lithology[outside] = 0
    return Survey(gravity, magnetics, lithology, _place_deposits(geology, lithology, prospecting))


def _model_fields(
    geology: Geology, rng: np.random.Generator, rows: int, cols: int
) -> tuple[FloatArray, FloatArray, ByteArray]:
    """Fill the slabs with rock and add up their fields: mGal, nT, and the codes of the uppermost slab."""
    shape = (rows + 2 * MARGIN, cols + 2 * MARGIN)
    inner = (slice(MARGIN, MARGIN + rows), slice(MARGIN, MARGIN + cols))
    x, y = _eastings(shape[1], first=-MARGIN), _northings(shape[0], first=rows + MARGIN)
    fade = np.outer(_fade(rows), _fade(cols))
    mottle = ndimage.gaussian_filter(rng.standard_normal(shape, dtype=np.float32), 1.5)
    mottle *= np.float32(0.5) / mottle.std()
    density_of = np.array([0, *(unit.density for unit in UNITS)], dtype=np.float32)
    susceptibility_of = np.array([0, *(unit.susceptibility for unit in UNITS)], dtype=np.float32)
    cover, basin = geology.cover(x, y)
    plane = Wavenumbers(shape, cell_m=CELL_M, pad_cells=0)
    gravity, magnetics = np.zeros((2, *plane.k.shape), dtype=np.complex64)
    maps = []
    for top_m, bottom_m in SLABS_M:
        code, texture = geology.rocks_by_strips(x, y, (top_m + bottom_m) / 2)
        texture += mottle
        density = density_of[code] + np.float32(0.012) * texture - np.float32(COVER_DENSITY)
        susceptibility = susceptibility_of[code] * np.exp(np.float32(0.2) * texture)
        bedrock = 1 - np.clip((cover - np.float32(top_m)) / np.float32(bottom_m - top_m), 0, 1)
        for values in (density, susceptibility):
            values *= bedrock
            values -= values.mean()
            values *= fade
        gravity += plane.gravity(density, top_m=top_m, bottom_m=bottom_m)
        magnetics += plane.magnetics(susceptibility, top_m=top_m, bottom_m=bottom_m)
        maps.append(code[inner])
    magnetics *= plane.earth_field(INCLINATION_DEG, DECLINATION_DEG, FIELD_NT)
    lithology = np.where(basin[inner], np.uint8(BASIN), maps[0])
    return plane.to_grid(gravity)[inner], plane.to_grid(magnetics)[inner], lithology


def _eastings(count: int, *, first: float = 0, cell_m: float = CELL_M) -> FloatArray:
    """(1, count) centres of the cells from the first on, in metres from the survey's west edge."""
    return ((np.arange(count, dtype=np.float32) + np.float32(first + 0.5)) * np.float32(cell_m))[None, :]


def _northings(count: int, *, first: float, cell_m: float = CELL_M) -> FloatArray:
    """(count, 1) centres of rows of cells, southwards from `first` cells north of the south edge, metres."""
    return ((np.float32(first - 0.5) - np.arange(count, dtype=np.float32)) * np.float32(cell_m))[:, None]


def _fade(size: int) -> FloatArray:
    """One inside the survey, falling to zero over its margin as a raised cosine."""
    ramp = 0.5 - 0.5 * np.cos(np.pi * (np.arange(MARGIN) + 0.5) / MARGIN)
    return np.concatenate([ramp, np.ones(size), ramp[::-1]]).astype(np.float32)


def _fly_lines(anomaly: FloatArray, rng: np.random.Generator) -> FloatArray:
    """Magnetics with levelling errors of east-west lines 400 m apart, to the nearest 1/64 nT."""
    rows, cols = anomaly.shape
    lines = -(-rows // 4)
    drift = ndimage.gaussian_filter1d(rng.standard_normal((lines, cols)), 150, axis=1, mode="nearest")
    error = 0.02 * rng.standard_normal((lines, 1)) + 0.015 * drift / drift.std()
    measured = anomaly + np.repeat(error, 4, axis=0)[:rows] * anomaly.std()
    return (np.round(measured * 64) / 64).astype(np.float32)


def _occupy_stations(anomaly: FloatArray, rng: np.random.Generator) -> FloatArray:
    """Gravity as means of 200 m cells with a regional trend and station noise, to the nearest 1/1024 mGal."""
    rows, cols = anomaly.shape[0] // 2, anomaly.shape[1] // 2
    cells = anomaly.reshape(rows, 2, cols, 2).mean(axis=(1, 3))
    east, north = np.linspace(-1, 1, cols)[None, :], np.linspace(1, -1, rows)[:, None]
    slope_east, slope_north, bow = rng.uniform(-0.6, 0.6, 3)
    regional = slope_east * east + slope_north * north + bow * east * (east + north)
    noise = ndimage.gaussian_filter(rng.standard_normal((rows, cols)), 1.0)
    measured = cells - 15 + cells.std() * (regional + 0.02 * noise / noise.std())
    return (np.round(measured * 1024) / 1024).astype(np.float32)


def _outline(rng: np.random.Generator, rows: int, cols: int) -> BoolArray:
    """True inside a ragged outline, with the sea in the west, that leaves out a tenth of the rectangle."""
    size = min(rows, cols)
    x, y = _eastings(cols, cell_m=1 / size), _northings(rows, first=rows, cell_m=1 / size)
    to_edge = np.minimum(np.minimum(x, cols / size - x), np.minimum(y, rows / size - y))
    coast = Waves.draw(rng, count=20, shortest=0.012, longest=0.9, growth=0.75)(x, y)
    height = to_edge * (1 - np.float32(0.5) * np.clip(1 - x / np.float32(0.35), 0, 1)) + np.float32(0.03) * coast
    inside = height > np.quantile(height[::2, ::2], 0.10)
    pieces, count = ndimage.label(inside)
    return pieces == 1 + np.argmax(np.bincount(pieces.ravel(), minlength=count + 1)[1:])


def _gaps(rng: np.random.Generator, rows: int, cols: int) -> BoolArray:
    """True in lakes and square-cut no-fly blocks, a dozen, about 2 % of the survey in all."""
    size = math.sqrt(rows * cols)
    x, y = _eastings(cols, cell_m=1), _northings(rows, first=rows, cell_m=1)
    shore = Waves.draw(rng, count=8, shortest=0.03 * size, longest=0.3 * size, growth=0.8)
    gaps = np.zeros((rows, cols), dtype=bool)
    for index in range(12):
        centre_x, centre_y, angle = rng.uniform(0, cols), rng.uniform(0, rows), rng.uniform(0, math.pi)
        radius = size * rng.uniform(0.012, 0.035)
        i = slice(*np.searchsorted(-y[:, 0], [-centre_y - 3 * radius, -centre_y + 3 * radius]))
        j = slice(*np.searchsorted(x[0], [centre_x - 3 * radius, centre_x + 3 * radius]))
        east, north = x[:, j] - np.float32(centre_x), y[i] - np.float32(centre_y)
        along = (east * math.cos(angle) + north * math.sin(angle)) / np.float32(1.4 * radius)
        across = (north * math.cos(angle) - east * math.sin(angle)) / np.float32(0.8 * radius)
        if index % 3 == 0:
            gaps[i, j] |= np.maximum(np.abs(along), np.abs(across)) < 1
        else:
            gaps[i, j] |= np.hypot(along, across) + np.float32(0.25) * shore(x[:, j], y[i]) < 1
    return gaps


def _place_deposits(geology: Geology, lithology: ByteArray, rng: np.random.Generator) -> tuple[Deposit, ...]:
    """Deposits in basalt or iron formation at its contacts, near a fault (gold) or a pluton (copper-gold).

    The chance falls with the distances to all three on a 200 m grid; no two deposits lie within 1.2 km.
    """
    rock, rows = lithology[::2, ::2], lithology.shape[0]
    host = np.isin(rock, (BASALT, IRON))
    to_contact = _distance_to(host & ndimage.binary_dilation(~host & (rock > 0)))
    to_pluton = _distance_to(np.isin(rock, (GRANITE, GABBRO)))
    x = _eastings(rock.shape[1], cell_m=2 * CELL_M) - np.float32(CELL_M / 2)  # where `rock` was taken
    y = _northings(rock.shape[0], first=rows / 2, cell_m=2 * CELL_M) + np.float32(CELL_M / 2)
    to_fault = np.full(rock.shape, 1e5, dtype=np.float32)
    for fault in geology.faults:
        along, across = fault.along_across(x, y, sum(SLABS_M[0]) / 2)
        to_fault = np.where(np.abs(along) < fault.half_length, np.minimum(to_fault, np.abs(across)), to_fault)
    fault_like, pluton_like = to_fault / 1500, to_pluton / 2500
    chance = np.where(host, np.exp(-np.square(to_contact / 250) - pluton_like - fault_like), 0)
    # Exponential clocks: the cells that ring first are a draw without replacement, in proportion to chance.
    rings = rng.exponential(size=chance.shape) / np.maximum(chance, 1e-30)
    wanted = max(3, round(60 * lithology.size / 2048**2))
    deposits: list[Deposit] = []
    for flat in np.argsort(rings, axis=None, kind="stable")[: 40 * wanted]:
        i, j = divmod(int(flat), rock.shape[1])
        easting, northing = LEFT + float(x[0, j]), TOP - rows * CELL_M + float(y[i, 0])
        near = any(math.hypot(easting - d.x, northing - d.y) < 1200 for d in deposits)
        if chance[i, j] > 1e-6 and not near and len(deposits) < wanted:
            commodity, kind = ("Au", "orogenic") if fault_like[i, j] < pluton_like[i, j] else ("Cu-Au", "skarn")
            name, host_name = f"prospect {len(deposits) + 1}", UNITS[rock[i, j] - 1].name
            deposits.append(Deposit(name, commodity, kind, host_name, easting, northing))
    return tuple(deposits)


def _distance_to(target: BoolArray) -> FloatArray:
    """Metres to the nearest True cell of a 200 m grid; 100 km where there is none."""
    if not target.any():
        return np.full(target.shape, 1e5, dtype=np.float32)
    return (ndimage.distance_transform_edt(~target) * (2 * CELL_M)).astype(np.float32)


def _write_files(folder: Path, survey: Survey, identity: dict[str, int]) -> None:
    """Write every file of the survey into `folder`; survey.json, with the size of each, comes last."""
    labels = folder / "labels"
    labels.mkdir()
    tifs = folder / "gravity.tif", folder / "magnetics.tif", labels / "lithology.tif"
    _write_raster(tifs[0], survey.gravity, cell_m=2 * CELL_M, nodata=GRAVITY_NODATA, units="mGal")
    _write_raster(tifs[1], survey.magnetics, cell_m=CELL_M, nodata=MAGNETICS_NODATA, units="nT")
    _write_raster(tifs[2], survey.lithology, cell_m=CELL_M, nodata=0, units="")
    layers = [(tif.name, tif.stem, "continuous", unit) for tif, unit in zip(tifs, ("mGal", "nT"), strict=False)]
    _write_csv(folder / "layers.csv", ("path", "name", "kind", "units"), layers)
    classes = [(u.code, u.name, "#" + bytes(u.colour).hex(), u.density, u.susceptibility) for u in UNITS]
    header = ("code", "name", "colour", "density", "susceptibility")
    _write_csv(labels / "lithology_classes.csv", header, classes)
    _write_vectors(labels, survey)
    _write_quicklook(labels / "quicklook.png", survey)
    (folder / "README.md").write_text(_readme(identity), encoding="utf-8")
    written = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    record = {**identity, "files": {p.relative_to(folder).as_posix(): p.stat().st_size for p in written}}
    (folder / "survey.json").write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")


def _transform(cell_m: float) -> Affine:
    return from_origin(LEFT, TOP, cell_m, cell_m)


def _write_raster(path: Path, values: FloatArray | ByteArray, *, cell_m: float, nodata: float, units: str) -> None:
    """Write values, NaN as nodata, and read them back; bytes are class codes, with colours and names."""
    stored = np.where(np.isnan(values), values.dtype.type(nodata), values)
    shape = {"height": stored.shape[0], "width": stored.shape[1], "count": 1, "dtype": stored.dtype}
    place = {"crs": CRS, "transform": _transform(cell_m), "nodata": nodata}
    predictor = 3 if stored.dtype == np.float32 else 1
    with rasterio.open(path, "w", **shape, **place, **GEOTIFF, predictor=predictor) as sink:
        if stored.dtype == np.uint8:
            sink.write_colormap(1, {0: (255, 255, 255, 0), **{u.code: (*u.colour, 255) for u in UNITS}})
            sink.update_tags(1, **{f"class_{u.code}": u.name for u in UNITS})
        sink.write(stored, 1)
        sink.set_band_description(1, path.stem)
        sink.units = (units,)
        sink.update_tags(synthetic="yes")
    with rasterio.open(path) as source:
        if not np.array_equal(source.read(1), stored):  # GDAL can report success although a tile was lost
            raise OSError(f"{path.name} reads back with other values than were written")


def _write_csv(path: Path, header: tuple[str, ...], rows: Sequence[tuple[object, ...]]) -> None:
    with path.open("w", newline="", encoding="utf-8") as sink:
        csv.writer(sink).writerows([header, *rows])


def _write_vectors(labels: Path, survey: Survey) -> None:
    """The lithology as polygons along the edges of its cells, and the deposits as points."""
    import geopandas as gpd  # slow to import: whoever only asks whether the survey is there need not wait
    from shapely.geometry import shape

    found = list(shapes(survey.lithology, mask=survey.lithology > 0, transform=_transform(CELL_M)))
    codes = [int(code) for _, code in found]
    table = {"code": codes, "name": [UNITS[code - 1].name for code in codes]}
    polygons = gpd.GeoDataFrame(table, geometry=[shape(outline) for outline, _ in found], crs=CRS)
    polygons.to_file(labels / "lithology.gpkg", layer="lithology", driver="GPKG")
    columns = ("name", "commodity", "type", "host")
    points = gpd.points_from_xy([d.x for d in survey.deposits], [d.y for d in survey.deposits])
    attributes = {column: [getattr(d, column) for d in survey.deposits] for column in columns}
    deposits = gpd.GeoDataFrame(attributes, geometry=points, crs=CRS)
    deposits.to_file(labels / "deposits.gpkg", layer="deposits", driver="GPKG")


def _write_quicklook(path: Path, survey: Survey) -> None:
    """Both fields, lit from the north-east, and the map with its deposits."""
    from matplotlib.colors import LightSource, ListedColormap  # slow to import, as above
    from matplotlib.figure import Figure

    rows, cols = survey.lithology.shape
    step = max(1, min(rows, cols) // 512)
    figure = Figure(figsize=(15, max(2.0, 4.6 * rows / cols) + 0.4), layout="constrained")
    left, middle, right = figure.subplots(1, 3)
    extent = (LEFT / 1000, (LEFT + cols * CELL_M) / 1000, (TOP - rows * CELL_M) / 1000, TOP / 1000)
    finer = max(1, step // 2)
    pictures = (
        (left, survey.gravity[::finer, ::finer], "mGal"),
        (middle, survey.magnetics[::step, ::step], "nT"),
    )
    for axes, values, units in pictures:
        low, high = np.nanpercentile(values, (1, 99))
        picture = axes.imshow(values, cmap="turbo", vmin=low, vmax=high, extent=extent)
        light = LightSource(azdeg=45).hillshade(np.nan_to_num(values, nan=low), vert_exag=60 / (high - low))
        axes.imshow(light, cmap="gray", alpha=0.3 * np.isfinite(values), extent=extent)
        figure.colorbar(picture, ax=axes, shrink=0.7, label=units)
        axes.set_title("gravity" if axes is left else "magnetics")
    colours = ListedColormap([(1, 1, 1), *(tuple(v / 255 for v in u.colour) for u in UNITS)])
    limits = {"vmin": -0.5, "vmax": len(UNITS) + 0.5, "interpolation": "nearest"}
    right.imshow(survey.lithology[::step, ::step], cmap=colours, extent=extent, **limits)
    right.plot([d.x / 1000 for d in survey.deposits], [d.y / 1000 for d in survey.deposits], "k*", markersize=5)
    right.set_title("lithology and deposits (km)")
    figure.savefig(path, dpi=110)


def _readme(identity: dict[str, int]) -> str:
    seed, rows, cols = identity["seed"], identity["rows"], identity["cols"]
    width, height = cols * CELL_M / 1000, rows * CELL_M / 1000
    slabs = ", ".join(f"{top:g}-{bottom:g} m" for top, bottom in SLABS_M)
    field = f"inclination {INCLINATION_DEG:g}, declination {DECLINATION_DEG:g} degrees, {FIELD_NT:g} nT"
    return f"""# Sample survey (synthetic)

Made by `python -m scripts.make_sample_survey --seed {seed} --rows {rows} --cols {cols}`:
{width:g} km by {height:g} km in {CRS} (metres). No rock of it exists; the physics is real.

| file | what | cell | unit | nodata |
|---|---|---|---|---|
| gravity.tif | Bouguer gravity | 200 m | mGal | {GRAVITY_NODATA:.6g} |
| magnetics.tif | total-field anomaly | 100 m | nT | {MAGNETICS_NODATA:g} |
| labels/lithology.tif | rock class at the top of the bedrock, or basin | 100 m | code | 0 |
| labels/lithology.gpkg | the same as polygons (code, name) | | | |
| labels/lithology_classes.csv | code, name, colour, density (g/cm3), susceptibility (SI) | | | |
| labels/deposits.gpkg | deposits (name, commodity, type, host) | | | |
| labels/quicklook.png | a picture of all | | | |

**Ground.** Beds of volcanic and sedimentary rocks with iron formations, folded, faulted, and cut by plutons
with aureoles and by dykes, below 50 to 250 m of cover and a few young basins. Five slabs
({slabs} below the sensor) hold what lies at their
middle depth, so that beds, faults and plutons dip.

**Fields.** Each slab's gravity and magnetic field, induced by the Earth's
({field}), are computed in the wavenumber domain,
exactly for cells 100 m wide, and added up.

**Measuring.** Gravity is averaged over its cells and gets a regional trend and 2 % of station noise;
magnetics gets levelling errors of 2 to 3 % along east-west lines 400 m apart (of the standard deviation).
Both lose what lies outside the outline, and in lakes and no-fly blocks, which differ between them.

**Deposits** lie in basalt or iron formation near its contacts, where a fault (Au)
or a pluton (Cu-Au) is near.
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
    """Whether `directory` holds this survey, whole; raises where writing would destroy something else."""
    if not os.path.lexists(directory) or (directory.is_dir() and not any(directory.iterdir())):
        return False
    if not directory.is_dir():
        raise ValueError(f"sample survey: {directory} is a file, expected a directory; choose another place")
    record = _read_record(directory)
    if record is None:
        raise ValueError(
            f"sample survey: {directory} is not empty and holds no sample survey (a readable survey.json is "
            "expected); choose another directory, or empty this one"
        )
    remedy = f"`python -m scripts.make_sample_survey --output_dir {directory} --overwrite`"
    if not overwrite and record[0] != identity:
        raise ValueError(
            f"sample survey: {directory} holds a survey of {record[0]}, expected {identity}; choose another "
            f"directory, or replace it by {remedy}"
        )
    if not overwrite and record[1]:
        raise ValueError(
            f"sample survey: in {directory} the files {', '.join(record[1])} are missing or not of the size "
            f"written, expected all of survey.json; write them anew by {remedy}"
        )
    return not overwrite


def _read_record(directory: Path) -> tuple[dict[str, int], list[str]] | None:
    """What survey.json says the survey is, and files missing or of another size; None without survey.json."""
    try:
        record = json.loads((directory / "survey.json").read_text(encoding="utf-8"))
        identity = {key: int(record[key]) for key in ("seed", "rows", "cols", "version")}
        sizes = {directory / name: int(size) for name, size in record["files"].items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
    return identity, [p.name for p, size in sizes.items() if not p.is_file() or p.stat().st_size != size]


def _move_into_place(partial: Path, directory: Path, *, identity: dict[str, int], overwrite: bool) -> None:
    """Give the finished survey its name; only then does what had the name before go away."""
    former = partial.with_suffix(".former")
    if overwrite and directory.exists():
        directory.rename(former)
    try:
        with contextlib.suppress(OSError):
            directory.rmdir()  # an empty folder: Windows would not rename another to its name
        partial.rename(directory)
    except OSError:
        # Another process finished first: its survey is as good, if it is the same and whole.
        if _read_record(directory) != (identity, []):
            raise
    finally:
        if former.exists() and not directory.exists():
            former.rename(directory)
        shutil.rmtree(former, ignore_errors=True)
