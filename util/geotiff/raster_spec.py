"""Specification of a raster to write: grid, bands, type, nodata, tags; and its text as a virtual raster (VRT)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from xml.sax.saxutils import escape, quoteattr

import numpy as np
from affine import Affine
from rasterio.crs import CRS
from rasterio.errors import CRSError

DTYPES = {"float32": "float32", "float16": "float32", "uint8": "uint8", "uint16": "uint16"}
"""Data types that can be written, and the type in memory: GDAL stores float16 as a float of 16 bits."""


@dataclass(frozen=True)
class RasterSpec:
    """A raster to be written.

    Attributes:
        crs: coordinate reference system, as WKT.
        left: western edge, CRS units.
        top: northern edge, CRS units.
        resolution_x: width of a pixel, CRS units.
        resolution_y: height of a pixel, CRS units.
        rows: number of rows.
        cols: number of columns.
        dtype: `float32`, `float16`, `uint8` or `uint16`.
        nodata: stored where nothing is known.
        names: of the bands.
        units: of the bands.
        tags: metadata of the file.
        classes: class code -> (name, (red, green, blue)), for classes.
        is_picture: three bands of colours.
        limits: smallest and largest possible value, for pictures; None: not known.
        points: (x, y) of points to draw on pictures, CRS units.
        point_name: what the points are.
    """

    crs: str
    left: float
    top: float
    resolution_x: float
    resolution_y: float
    rows: int
    cols: int
    dtype: str
    nodata: float
    names: tuple[str, ...]
    units: tuple[str, ...]
    tags: Mapping[str, str] = field(default_factory=dict)
    classes: Mapping[int, tuple[str, tuple[int, int, int]]] | None = None
    is_picture: bool = False
    limits: tuple[float, float] | None = None
    points: tuple[tuple[float, float], ...] = ()
    point_name: str = ""

    def __post_init__(self) -> None:
        """Refuse a nodata value that the type cannot hold, and bands without unit.

        Raises:
            ValueError: naming value and type.
        """
        check_nodata(self.nodata, self.dtype)
        if len(self.names) != len(self.units):
            raise ValueError(f"{len(self.names)} band names and {len(self.units)} units: expected as many")

    @property
    def transform(self) -> Affine:
        """From (column, row) to (x, y)."""
        return self.window_transform(0, 0)

    def window_transform(self, row: int, col: int) -> Affine:
        """The same for a window that starts at (row, col)."""
        x, y = self.left + col * self.resolution_x, self.top - row * self.resolution_y
        return Affine(self.resolution_x, 0.0, x, 0.0, -self.resolution_y, y)

    @property
    def is_discrete(self) -> bool:
        """True for classes, which must not be averaged."""
        return self.classes is not None


def length_unit_of(crs: str) -> str:
    """Name of the unit of coordinates in a CRS: `m`, `degrees`, or as it is called there."""
    known = CRS.from_user_input(crs)
    if known.is_geographic:
        return "degrees"
    try:
        unit = str(known.linear_units)
    except CRSError:
        return ""
    return "m" if unit.lower() in ("metre", "meter") else unit.replace("unknown", "")


def check_nodata(nodata: float, dtype: str) -> None:
    """Refuses a nodata value that pixels of a type cannot hold exactly.

    Raises:
        ValueError: the type is unknown, or does not hold the value.
    """
    if dtype not in DTYPES:
        raise ValueError(f"data type {dtype!r}: expected one of {', '.join(DTYPES)}")
    kind = np.dtype(dtype)
    if kind.kind == "f":
        with np.errstate(over="ignore"):
            fits = math.isnan(nodata) or float(kind.type(nodata)) == nodata
    else:
        fits = nodata == math.floor(nodata) and 0 <= nodata <= np.iinfo(kind).max if math.isfinite(nodata) else False
    if not fits:
        raise ValueError(f"nodata {nodata:g} does not fit pixels of type {dtype}; choose a value that they can hold")


def virtual_raster(spec: RasterSpec, whole: Path, *, wkt: str) -> str:
    """The text of a VRT of a file, with all that is said about the raster; its CRS as WKT."""
    kind = {"float32": "Float32", "uint8": "Byte", "uint16": "UInt16"}[DTYPES[spec.dtype]]
    transform = spec.transform
    numbers = (transform.c, transform.a, transform.b, transform.f, transform.d, transform.e)
    lines = [f'<VRTDataset rasterXSize="{spec.cols}" rasterYSize="{spec.rows}">']
    lines.append(f"<SRS>{escape(wkt)}</SRS>")
    lines.append(f"<GeoTransform>{', '.join(repr(float(x)) for x in numbers)}</GeoTransform>")
    lines.append(_metadata(spec.tags))
    nodata = "nan" if math.isnan(spec.nodata) else repr(spec.nodata)
    colours = ("Red", "Green", "Blue") if spec.is_picture else ("Palette",) if has_palette(spec) else ("Gray",)
    for band, (name, unit) in enumerate(zip(spec.names, spec.units, strict=True), start=1):
        lines.append(f'<VRTRasterBand dataType="{kind}" band="{band}">')
        lines.append(f"<Description>{escape(name)}</Description><NoDataValue>{nodata}</NoDataValue>")
        lines.append(f"<UnitType>{escape(unit)}</UnitType>" if unit else "")
        lines.append(f"<ColorInterp>{colours[min(band, len(colours)) - 1]}</ColorInterp>")
        if spec.classes:
            lines.append(_metadata({f"class_{code}": name for code, (name, _) in spec.classes.items()}))
            lines += [_category_names(spec), _colour_table(spec)] if has_palette(spec) else []
            lines.append(_attribute_table(spec))
        lines.append(
            f'<SimpleSource><SourceFilename relativeToVRT="0">{escape(str(whole.resolve()))}</SourceFilename>'
            f"<SourceBand>{band}</SourceBand></SimpleSource>"
        )
        lines.append("</VRTRasterBand>")
    return "\n".join([*filter(None, lines), "</VRTDataset>"])


def _metadata(tags: Mapping[str, str]) -> str:
    entries = "".join(f"<MDI key={quoteattr(key)}>{escape(str(value))}</MDI>" for key, value in tags.items())
    return f"<Metadata>{entries}</Metadata>"


def has_palette(spec: RasterSpec) -> bool:
    """Whether the file holds colours of its classes itself: a table of 65,536 would drown a legend."""
    return bool(spec.classes) and spec.dtype == "uint8"


def _category_names(spec: RasterSpec) -> str:
    assert spec.classes is not None
    names = [spec.classes[code][0] if code in spec.classes else "" for code in range(max(spec.classes) + 1)]
    entries = "".join(f"<Category>{escape(name)}</Category>" for name in names)
    return f"<CategoryNames>{entries}</CategoryNames>"


def _attribute_table(spec: RasterSpec) -> str:
    """Codes, names and colours as GDAL's table of attributes; types and usages are GDAL's numbers for them."""
    assert spec.classes is not None
    columns = (("Value", 0, 5), ("Class", 2, 2), ("Red", 0, 6), ("Green", 0, 7), ("Blue", 0, 8))
    lines = ['<GDALRasterAttributeTable tableType="thematic">']
    for number, (name, kind, usage) in enumerate(columns):
        lines.append(
            f'<FieldDefn index="{number}"><Name>{name}</Name><Type>{kind}</Type><Usage>{usage}</Usage></FieldDefn>'
        )
    for number, (code, (name, colour)) in enumerate(sorted(spec.classes.items())):
        cells = "".join(f"<F>{escape(str(cell))}</F>" for cell in (code, name, *colour))
        lines.append(f'<Row index="{number}">{cells}</Row>')
    return "".join([*lines, "</GDALRasterAttributeTable>"])


def _colour_table(spec: RasterSpec) -> str:
    assert spec.classes is not None
    entries = []
    for code in range(256):
        red, green, blue = spec.classes[code][1] if code in spec.classes else (0, 0, 0)
        alpha = 255 if code in spec.classes else 0
        entries.append(f'<Entry c1="{red}" c2="{green}" c3="{blue}" c4="{alpha}"/>')
    return f"<ColorTable>{''.join(entries)}</ColorTable>"
