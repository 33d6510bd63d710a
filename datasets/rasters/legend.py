"""Class names and colours stored with a raster: category names, attribute tables, .aux.xml sidecars."""

from __future__ import annotations

import logging
import uuid
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree

import rasterio
import rasterio.shutil
from rasterio.errors import NotGeoreferencedWarning

from datasets.ground.grid import GDAL_ERRORS
from datasets.layers.class_table import Code, as_colour
from datasets.layers.paths import parse_array_path, sheet_paths
from datasets.rasters.xarray_store import open_groups

logger = logging.getLogger(__name__)

_CATEGORIES = "CategoryNames/Category"


@dataclass(frozen=True)
class RasterLegend:
    """Names and colours that a raster stores for its codes, and its unit."""

    names: dict[Code, str]
    colours: dict[Code, str]
    units: str


def read_legend(path: str, band: int) -> RasterLegend:
    """Return the names and colours that a raster gives to its codes, and its unit.

    Names come from a raster attribute table, GDAL's category names or band tags `class_<code>`, colours from the
    attribute table or a colour table; the first source takes precedence.

    Raises:
        ValueError: sheets of one layer name a code differently.
    """
    sheets = sheet_paths(path)
    if len(sheets) > 1:
        return _common_legend(sheets, [read_legend(sheet, band) for sheet in sheets])
    names: dict[Code, str] = {}
    colours: dict[Code, str] = {}
    named = parse_array_path(path)
    if named is not None:  # a variable that xarray opens has no legend
        attributes = open_groups(named.store)[named.group].variables[named.name].attrs
        return RasterLegend(names, colours, str(attributes.get("units", "")))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NotGeoreferencedWarning)
        with rasterio.open(path) as dataset:
            units = dataset.units[band - 1] or ""
            tags = dataset.tags(band)
            try:
                table = dataset.colormap(band)
            except ValueError:  # rasterio raises it if there is none
                table = {}
            described = [*_sidecars(dataset, band), *_as_vrt(dataset, band)]
    for tag, name in tags.items():
        code = tag.removeprefix("class_")
        if code != tag and code.lstrip("-").isdigit():
            names[int(code)] = name
    colours.update((code, as_colour(rgb)) for code, rgb in table.items())
    for element in described:
        categories = element.findall(_CATEGORIES)
        names.update((code, text) for code, text in enumerate((c.text or "").strip() for c in categories) if text)
    for element in described:
        for attributes in element.findall("GDALRasterAttributeTable"):
            _read_attributes(attributes, names, colours)
    return RasterLegend(names, colours, units)


def _common_legend(sheets: Sequence[str], legends: Sequence[RasterLegend]) -> RasterLegend:
    """The legend of several sheets; colours are those of the first that has one."""
    names: dict[Code, str] = {}
    colours: dict[Code, str] = {}
    named_by: dict[Code, str] = {}
    for sheet, legend in zip(sheets, legends, strict=True):
        for code, name in legend.names.items():
            if names.setdefault(code, name) != name:
                raise ValueError(
                    f"{sheet}: names class {code} '{name}', expected '{names[code]}' as in {named_by[code]}: sheets of "
                    "one layer share their classes; give the layer a table of classes (column 'classes' of layers.csv)"
                )
            named_by.setdefault(code, sheet)
        colours = {**legend.colours, **colours}
    return RasterLegend(names, colours, next((legend.units for legend in legends if legend.units), ""))


def _sidecars(dataset: rasterio.DatasetReader, band: int) -> list[ElementTree.Element]:
    """The elements of a band in the .aux.xml files beside a raster."""
    found = []
    for name in dataset.files:
        if name.endswith(".aux.xml") and Path(name).is_file():
            try:
                found += ElementTree.parse(name).getroot().findall(f"PAMRasterBand[@band='{band}']")
            except ElementTree.ParseError as error:
                logger.warning("%s: cannot be read (%s): names of classes in it are not used", name, error)
    return found


def has_category_names(dataset: rasterio.DatasetReader, band: int) -> bool:
    """Whether GDAL knows names for the values of a band."""
    found = [category for element in _as_vrt(dataset, band) for category in element.findall(_CATEGORIES)]
    return any((category.text or "").strip() for category in found)


def _as_vrt(dataset: rasterio.DatasetReader, band: int) -> list[ElementTree.Element]:
    """The elements of a band in a VRT of the dataset: they hold metadata that rasterio has no function for."""
    name = f"/vsimem/{uuid.uuid4().hex}.vrt"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NotGeoreferencedWarning)
        try:
            rasterio.shutil.copy(dataset, name, driver="VRT")
            with rasterio.open(name) as vrt:
                text = vrt.tags(ns="xml:VRT")["xml:VRT"]
            rasterio.shutil.delete(name)
        except (*GDAL_ERRORS, KeyError):
            return []
    return ElementTree.fromstring(text).findall(f"VRTRasterBand[@band='{band}']")


# GDAL's numbers for the usage of a column of an attribute table (GDALRATFieldUsage).
_NAME, _MINIMUM, _VALUE, _RED = 2, 3, 5, 6


def _read_attributes(table: ElementTree.Element, names: dict[Code, str], colours: dict[Code, str]) -> None:
    """Add the names and colours of a raster attribute table, by the declared use of its columns or by their titles."""
    uses = [int(column.findtext("Usage") or 0) for column in table.findall("FieldDefn")]
    titles = [(column.findtext("Name") or "").strip().lower() for column in table.findall("FieldDefn")]

    def column(use: int, *known: str) -> int | None:
        by_use = [k for k, each in enumerate(uses) if each == use]
        return next(iter([*by_use, *(k for k, title in enumerate(titles) if title in known)]), None)

    value = column(_VALUE, "value", "code")
    value = column(_MINIMUM) if value is None else value
    name = column(_NAME, "name", "class", "class_name", "label", "category")
    channels = [column(_RED + k, title) for k, title in enumerate(("red", "green", "blue"))]
    for row in table.findall("Row"):
        cells = [(cell.text or "").strip() for cell in row.findall("F")]
        try:
            code = float(cells[value]) if value is not None else float(row.get("index", "nan"))
            if not code.is_integer():
                continue
            if name is not None and cells[name]:
                names[int(code)] = cells[name]
            if None not in channels:
                colours[int(code)] = as_colour([int(float(cells[k])) for k in channels if k is not None])
        except (ValueError, IndexError):  # an unreadable row: its code serves as the name
            continue
