"""Whether a GXF holds as many values as its header states: GDAL fills what is missing without a word."""

from __future__ import annotations

import re
from pathlib import Path

import rasterio

from datasets.layers.layer import Layer
from datasets.rasters.ignored_headers import gxf_entries


def require_all_values(layer: Layer, dataset: rasterio.DatasetReader) -> None:
    """Count the values of a GXF that is no archive and whose values are text; compressed ones are not counted.

    Raises:
        ValueError: there are fewer than rows times points.
    """
    if dataset.driver != "GXF":
        return
    for path in map(Path, dataset.files):
        if path.suffix.lower() != ".gxf" or not path.is_file() or _is_compressed(path):
            continue
        count, expected = _count_values(path), dataset.width * dataset.height
        if count < expected:
            raise ValueError(
                f"{layer.where}: incomplete: {path.name} has {count} values after #GRID, expected {expected} "
                f"({dataset.height} rows of {dataset.width}); copy it again"
            )


def _is_compressed(path: Path) -> bool:
    return gxf_entries(path).get("GTYPE", "0").strip() not in ("", "0")


def _count_values(path: Path) -> int:
    """Numbers between #GRID and the next entry or the end, read line by line."""
    count, begun = 0, False
    with open(path, encoding="latin-1") as stream:
        for line in stream:
            if not begun:
                begun = re.match(r"#GRID\b", line, re.IGNORECASE) is not None
            elif line.startswith("#"):
                break
            elif not line.startswith("!"):
                count += len(line.split())
    return count
