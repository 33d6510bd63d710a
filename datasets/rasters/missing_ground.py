"""Ground that a file does not hold, although its size includes it: GDAL reads it as nodata, or as 0, without a word."""

from __future__ import annotations

import math
from pathlib import Path
from xml.etree import ElementTree

import rasterio
import shapely

from datasets.layers.layer import Layer

_CHECKED_BLOCKS = 100_000
"""Blocks of a TIFF whose presence is checked; in larger files every n-th is."""
_LEAST_GAP = 1e-6
"""Gaps of a virtual raster of a smaller fraction are rounding."""


def missing_ground(layer: Layer, dataset: rasterio.DatasetReader) -> list[str]:
    """A note if a file lacks ground that GDAL fills silently: a sparse or unfinished TIFF, gaps in a virtual raster."""
    if dataset.driver == "VRT":
        return _gaps_of_vrt(layer, dataset)
    return _missing_blocks(layer, dataset) if dataset.driver == "GTiff" else []


def _missing_blocks(layer: Layer, dataset: rasterio.DatasetReader) -> list[str]:
    block_rows, block_cols = dataset.block_shapes[layer.band - 1]
    across, down = math.ceil(dataset.width / block_cols), math.ceil(dataset.height / block_rows)
    step = math.ceil(across * down / _CHECKED_BLOCKS)
    checked = range(0, across * down, step)
    missing = sum(
        dataset.get_tag_item(f"BLOCK_OFFSET_{k % across}_{k // across}", "TIFF", bidx=layer.band) is None
        for k in checked
    )
    if not missing:
        return []
    filled = dataset.nodatavals[layer.band - 1]
    return [
        f"{missing} of {len(checked)} blocks checked are not in the file and read as {filled or 0:.9g}: "
        "it is sparse, or writing it was interrupted; write it again if it should be complete"
    ]


def _gaps_of_vrt(layer: Layer, dataset: rasterio.DatasetReader) -> list[str]:
    """A note if a virtual raster without nodata has ground that none of the files it is made of covers."""
    path = Path(dataset.name)
    if dataset.nodatavals[layer.band - 1] is not None or not path.is_file():
        return []
    try:
        bands = ElementTree.parse(path).getroot().findall("VRTRasterBand")
    except ElementTree.ParseError:
        return []
    places = [] if len(bands) < layer.band else bands[layer.band - 1].findall("./*/DstRect")
    if not places or bands[layer.band - 1].find("MaskBand") is not None:
        return []
    sizes = [[float(place.get(name, "nan")) for name in ("xOff", "yOff", "xSize", "ySize")] for place in places]
    covered = shapely.union_all([shapely.box(x, y, x + width, y + height) for x, y, width, height in sizes])
    share = 1 - covered.area / (dataset.width * dataset.height)
    if not share > _LEAST_GAP:
        return []
    return [
        f"{100 * share:.3g} % of this virtual raster lies in none of the files that it is made of and reads as 0: "
        "declare nodata (gdalbuildvrt -vrtnodata), or give the files themselves in one row of layers.csv (a.tif|b.tif)"
    ]
