"""What QGIS needs to show results as their pictures do: a style beside every raster, and a project of all of them.

QGIS reads `NAME.qml` when it opens `NAME.tif`. Without it, two or three bands would be taken for red, green and blue,
and a raster of classes would have 256 entries in its legend. `maps.qgs` opens all rasters of a folder over the layers
that they were made of. The files are written in the form of QGIS 3.22, which later versions read, too.
"""

from __future__ import annotations

import itertools
import logging
import math
import os
import xml.etree.ElementTree as ET
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import rasterio
from matplotlib import colormaps
from matplotlib.colors import to_hex
from rasterio.crs import CRS

from util.geotiff.cog_writer import read_reduced
from util.geotiff.parts import GDAL_ERRORS
from util.geotiff.raster_spec import RasterSpec
from util.hardware.system import replace_file
from util.inference.quicklooks import panels_of
from util.plots.maps import Panel, Preview, colour_range
from util.plots.reconstruction import robust_limits

logger = logging.getLogger(__name__)

PROJECT = "maps.qgs"
VERSION = "3.22.0"
SAMPLE_PIXELS = 512
"""Pixels along the longer side of the reduced raster that limits of colours are taken from."""
MOST_BANDS = 16
"""Bands of a raster that the project lists, each as a layer of its own."""
RAMP_COLOURS = 9
NODATA_MARGIN = 1e-6
"""Relative difference up to which a value is taken for nodata: values that are scaled are rounded to float32."""


class SourceLayer(NamedTuple):
    """A layer that results were made of.

    Attributes:
        name: in the legend.
        path: the file that holds it.
        band: number of its band, from 1.
        unit: of its values.
        limits: values of the first and the last colour, physical units; None: 2 and 98 % quantiles of the file.
        nodata: stored values that mean no data, whether the file declares them or not.
    """

    name: str
    path: str
    band: int
    unit: str = ""
    limits: tuple[float, float] | None = None
    nodata: tuple[float, ...] = ()


class MapLayer(NamedTuple):
    """A layer of the project.

    Attributes:
        name: in the legend.
        path: the file.
        crs: coordinate reference system, as WKT.
        pipe: how it is drawn; None: as QGIS does by default.
        nodata: further values that are not drawn, and the band that has them; None: those that the file declares.
    """

    name: str
    path: Path
    crs: str
    pipe: ET.Element | None
    nodata: ET.Element | None = None


def source_layers(survey: Any, previews: Iterable[Preview]) -> list[SourceLayer]:
    """The layers of an `InferenceSurvey` that are there, with the limits and the nodata that its values have.

    Args:
        survey: the layers.
        previews: small images of some of them, as they were read.
    """
    images = {name: image for name, _, image, classes in previews if classes is None and np.isfinite(image).any()}
    limits = {name: robust_limits([image]) for name, image in images.items()}
    present = zip(survey.stack.bands, survey.layers, survey.summaries, strict=True)
    return [
        SourceLayer(layer.name, layer.path, layer.band, layer.units, limits.get(layer.name), tuple(band.nodata))
        for band, layer, summary in present
        if summary is not None
    ]


# ------------------------------------------------------------------------------------------------------------
# Styles
# ------------------------------------------------------------------------------------------------------------


def write_style(path: Path, spec: RasterSpec) -> None:
    """Writes the style of a finished raster beside it, which QGIS takes by itself: that of its first band.

    Raises:
        OSError: the raster cannot be read, or the style cannot be written.
    """
    root = ET.Element("qgis", version=VERSION, styleCategories="Symbology|Rendering")
    root.append(pipes_of(path, spec, most=1)[0])
    ET.SubElement(root, "blendMode").text = "0"
    _write(path.with_suffix(".qml"), root, doctype="qgis PUBLIC 'http://mrcc.com/qgis.dtd' 'SYSTEM'")


def pipes_of(path: Path, spec: RasterSpec, *, most: int) -> list[ET.Element]:
    """How the first bands of a raster are drawn, with the colours and limits of its picture.

    Args:
        path: the raster.
        spec: what it is.
        most: number of bands at most; three bands of colours, and classes, make one.
    """
    if spec.is_picture:
        return [_pipe(_colours_of_three_bands())]
    if spec.classes is not None:
        return [_pipe(_palette(spec.classes))]
    count = min(most, len(spec.names))
    # The first bands of fields may share their limits: all that could, up to the most of a project, are read.
    read = min(MOST_BANDS, len(spec.names))
    spec = replace(spec, names=spec.names[:read], units=spec.units[:read])
    pixels, _ = read_reduced(path, bands=range(1, read + 1), most=SAMPLE_PIXELS)
    panels = {panel.title: panel for panel in panels_of(spec, pixels)}
    return [
        _pipe(_ramp(number, replace(panels[name], unit=unit)))
        for number, (name, unit) in enumerate(zip(spec.names[:count], spec.units, strict=False), start=1)
    ]


def _pipe(renderer: ET.Element) -> ET.Element:
    pipe = ET.Element("pipe")
    provider = ET.SubElement(pipe, "provider")
    ET.SubElement(
        provider,
        "resampling",
        zoomedInResamplingMethod="nearestNeighbour",
        zoomedOutResamplingMethod="nearestNeighbour",
        maxOversampling="2",
        enabled="false",
    )
    pipe.append(renderer)
    return pipe


def _colours_of_three_bands() -> ET.Element:
    bands = {"redBand": "1", "greenBand": "2", "blueBand": "3"}
    return ET.Element("rasterrenderer", {"type": "multibandcolor", "opacity": "1", "alphaBand": "-1", **bands})


def _palette(classes: Mapping[int, tuple[str, tuple[int, int, int]]]) -> ET.Element:
    """One entry for each class, named."""
    renderer = ET.Element("rasterrenderer", type="paletted", band="1", opacity="1", alphaBand="-1")
    palette = ET.SubElement(renderer, "colorPalette")
    for code, (name, colour) in sorted(classes.items()):
        hexadecimal = "#{:02x}{:02x}{:02x}".format(*colour)
        ET.SubElement(palette, "paletteEntry", value=str(code), color=hexadecimal, alpha="255", label=name)
    return renderer


def _ramp(band: int, panel: Panel) -> ET.Element:
    """Colours between two limits, interpolated; values beyond them have the colours of the limits."""
    low, high, name = colour_range(panel)
    limits = {"classificationMin": f"{low:.9g}", "classificationMax": f"{high:.9g}"}
    common = {"type": "singlebandpseudocolor", "band": str(band), "opacity": "1", "alphaBand": "-1"}
    renderer = ET.Element("rasterrenderer", {**common, **limits})
    shader = ET.SubElement(
        ET.SubElement(renderer, "rastershader"),
        "colorrampshader",
        colorRampType="INTERPOLATED",
        classificationMode="1",
        clip="0",
        minimumValue=f"{low:.9g}",
        maximumValue=f"{high:.9g}",
        labelPrecision="4",
    )
    step = (high - low) / (RAMP_COLOURS - 1)
    decimals = max(1 - math.floor(math.log10(step)), 0) if step > 0 else 2
    for fraction in np.linspace(0, 1, RAMP_COLOURS):
        value, colour = low + fraction * (high - low), to_hex(colormaps[name](fraction))
        label = f"{value:.{decimals}f} {panel.unit}".strip()
        ET.SubElement(shader, "item", value=f"{value:.9g}", color=colour, alpha="255", label=label)
    return renderer


# ------------------------------------------------------------------------------------------------------------
# Project
# ------------------------------------------------------------------------------------------------------------


def write_project(
    folder: Path, rasters: Mapping[str, RasterSpec], sources: Sequence[SourceLayer], *, heading: str = "results"
) -> Path:
    """Writes or extends the project of a folder of results; returns its path.

    Results come first, each band as a layer, and the layers that they were made of last. Of an older project in the
    folder, the rasters that still exist are kept.

    Args:
        folder: where the rasters lie.
        rasters: those just written, by name: that of the file without its ending, in the folder or below.
        sources: the layers they were made of; those that are not files of their own are left out.
        heading: of the rasters in the legend.

    Raises:
        OSError: a raster cannot be read, or the project cannot be written.
    """
    path = _free_project(folder)
    new = [layer for name, spec in rasters.items() for layer in _result_layers(folder / f"{name}.tif", spec)]
    under = [layer for source in sources if (layer := _source_layer(source)) is not None]
    root = ET.Element("qgis", projectname=f"GRID-MAE: {folder.resolve().name}", version=VERSION)
    first = next(iter(rasters.values()))
    destination = ET.SubElement(root, "projectCrs")
    destination.append(_crs(first.crs))
    properties = ET.SubElement(root, "properties")
    ET.SubElement(ET.SubElement(properties, "Paths"), "Absolute", type="bool").text = "false"
    # Without it QGIS passes over projectCrs, and layers of other reference systems lie elsewhere.
    ET.SubElement(ET.SubElement(properties, "SpatialRefSys"), "ProjectionsEnabled", type="int").text = "1"
    tree = ET.SubElement(root, "layer-tree-group")
    results = ET.SubElement(tree, "layer-tree-group", name=heading, checked="Qt::Checked", expanded="1")
    inputs = ET.SubElement(tree, "layer-tree-group", name="layers", checked="Qt::Checked", expanded="1")
    listed = ET.SubElement(root, "projectlayers")
    for number, layer in enumerate([*new, *_kept(path, without=[entry.path for entry in [*new, *under]])]):
        _add(layer, results, listed, folder=folder, shown=number == 0)
    for number, layer in enumerate(under):
        _add(layer, inputs, listed, folder=folder, shown=number == 0)
    canvas = ET.SubElement(root, "mapcanvas", name="theMapCanvas")
    extent = ET.SubElement(canvas, "extent")
    bottom = first.top - first.rows * first.resolution_y
    right = first.left + first.cols * first.resolution_x
    for name, value in (("xmin", first.left), ("ymin", bottom), ("xmax", right), ("ymax", first.top)):
        ET.SubElement(extent, name).text = repr(float(value))
    ET.SubElement(canvas, "destinationsrs").append(_crs(first.crs))
    _write(path, root, doctype="qgis PUBLIC 'http://mrcc.com/qgis.dtd' 'SYSTEM'")
    return path


def _free_project(folder: Path) -> Path:
    """The project to write: `PROJECT`, or the next number if QGIS has saved that one, with what a user put into it."""
    for number in itertools.count(1):
        path = folder / (PROJECT if number == 1 else f"{Path(PROJECT).stem}-{number}.qgs")
        if not path.exists() or _is_ours(path):
            if number > 1:
                logger.warning("%s was saved by QGIS and stays as it is; results: %s", folder / PROJECT, path.name)
            return path
    raise AssertionError


def _is_ours(path: Path) -> bool:
    """Whether a project is as this program wrote it: QGIS adds when and by whom it was saved."""
    try:
        return set(ET.parse(path).getroot().attrib) == {"projectname", "version"}
    except ET.ParseError:
        return False


def _result_layers(path: Path, spec: RasterSpec) -> list[MapLayer]:
    pipes = pipes_of(path, spec, most=MOST_BANDS)
    single = len(pipes) == 1
    names = [path.stem] if single else [f"{path.stem}: {name}" for name in spec.names[: len(pipes)]]
    wkt = CRS.from_user_input(spec.crs).to_wkt()
    return [MapLayer(name, path, wkt, pipe) for name, pipe in zip(names, pipes, strict=True)]


def _source_layer(source: SourceLayer) -> MapLayer | None:
    """A layer in colours between its limits, in physical units as QGIS has them; None if it is no file of its own."""
    path = Path(source.path)
    if not path.is_file():
        return None
    try:
        with rasterio.open(path) as file:
            wkt = file.crs.to_wkt() if file.crs else ""
            has_colours = "palette" in {item.name for item in file.colorinterp}
            scale, offset = file.scales[source.band - 1], file.offsets[source.band - 1]
            further = [value for value in source.nodata if math.isfinite(value) and value != file.nodata]
        limits = source.limits
        if limits is None:
            pixels, _ = read_reduced(path, bands=[source.band], most=SAMPLE_PIXELS)
            limits = robust_limits([pixels[~np.isin(pixels, np.asarray(further, np.float32))] * scale + offset])
    except GDAL_ERRORS:
        return None
    panel = Panel(source.name, np.empty((0, 0)), source.unit, limits=limits)
    pipe = None if has_colours else _pipe(_ramp(source.band, panel))
    return MapLayer(source.name, path, wkt, pipe, _no_data(source.band, [v * scale + offset for v in further]))


def _no_data(band: int, values: Sequence[float]) -> ET.Element | None:
    """Values of a band that QGIS takes for no data besides those that the file declares; None if there are none."""
    if not values:
        return None
    element = ET.Element("noData")
    listed = ET.SubElement(element, "noDataList", bandNo=str(band), useSrcNoData="1")
    for value in values:
        margin = NODATA_MARGIN * abs(value)
        ET.SubElement(listed, "noDataRange", min=f"{value - margin:.17g}", max=f"{value + margin:.17g}")
    return element


def _kept(project: Path, *, without: Sequence[Path]) -> list[MapLayer]:
    """Results of an older project in the same folder, unless they are written anew or are gone."""
    try:
        root = ET.parse(project).getroot()
    except (OSError, ET.ParseError):
        return []
    kept = []
    for layer in root.iterfind("projectlayers/maplayer"):
        path = project.parent / (layer.findtext("datasource") or "")
        if path.is_relative_to(project.parent) and path not in without and path.is_file():
            wkt = layer.findtext("srs/spatialrefsys/wkt") or ""
            kept.append(MapLayer(layer.findtext("layername") or path.stem, path, wkt, layer.find("pipe")))
    return kept


def _add(layer: MapLayer, group: ET.Element, listed: ET.Element, *, folder: Path, shown: bool) -> None:
    """Lists a layer in the legend and among the layers of the project."""
    number = len(listed)
    identity = f"gridmae_layer_{number:04d}"  # QGIS replaces identities of up to ten characters
    inside = layer.path.is_relative_to(folder)
    source = layer.path.relative_to(folder).as_posix() if inside else os.path.abspath(layer.path)
    checked = "Qt::Checked" if shown else "Qt::Unchecked"
    common = {"id": identity, "name": layer.name, "source": source, "providerKey": "gdal"}
    ET.SubElement(group, "layer-tree-layer", {**common, "checked": checked, "expanded": "1" if shown else "0"})
    entry = ET.SubElement(listed, "maplayer", type="raster", autoRefreshEnabled="0")
    for tag, text in (("id", identity), ("datasource", f"./{source}" if inside else source), ("layername", layer.name)):
        ET.SubElement(entry, tag).text = text
    if layer.crs:
        ET.SubElement(entry, "srs").append(_crs(layer.crs))
    ET.SubElement(entry, "provider").text = "gdal"
    if layer.nodata is not None:
        entry.append(layer.nodata)
    if layer.pipe is not None:
        entry.append(layer.pipe)
    ET.SubElement(entry, "blendMode").text = "0"


def _crs(crs: str) -> ET.Element:
    known = CRS.from_user_input(crs)
    system = ET.Element("spatialrefsys", nativeFormat="Wkt")
    ET.SubElement(system, "wkt").text = known.to_wkt()
    code = known.to_epsg()
    if code is not None:
        ET.SubElement(system, "authid").text = f"EPSG:{code}"
    return system


def _write(path: Path, root: ET.Element, *, doctype: str) -> None:
    ET.indent(root)
    text = f"<!DOCTYPE {doctype}>\n{ET.tostring(root, encoding='unicode')}\n"
    text = "".join(c for c in text if c in "\t\n\r" or c >= " ")  # names may hold what XML must not
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        temporary.write_text(text, encoding="utf-8")
        replace_file(temporary, path)
    except OSError as error:
        message = f"{path}: cannot be written ({error}); is the disk full? Free some space, then go on with --resume"
        raise OSError(message) from error
    finally:
        temporary.unlink(missing_ok=True)
