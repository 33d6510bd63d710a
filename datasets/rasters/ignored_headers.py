"""Entries of headers that GDAL ignores: rotation of ERS, rotation, sense and transform of GXF, a .prj beside a grid."""

from __future__ import annotations

import gzip
import logging
import re
import zipfile
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import rasterio
from rasterio.crs import CRS
from rasterio.errors import CRSError

from datasets.layers.layer import Layer

logger = logging.getLogger(__name__)

_ERS_ROTATION = re.compile(r"^\s*Rotation\s*=\s*\"?([-+\d.:eE]+)", re.MULTILINE | re.IGNORECASE)
_GXF_ENTRY = re.compile(r"^#([A-Z]+)[^\n]*\n([^\n#]*)", re.MULTILINE | re.IGNORECASE)
# A header is in the first bytes of its file; the numbers of a GXF begin after #GRID.
_HEADER_BYTES = 2**16
# Senses of GXF (corner and direction of the first row) that GDAL reads: the others fail, or lose the georeference.
_GXF_SENSES = frozenset((1, -2, 3, -4))
# Degrees. Smaller rotations are rounding.
_LEAST_ROTATION = 1e-9


def check_rotation_and_sense(layer: Layer, dataset: rasterio.DatasetReader) -> None:
    """Refuse ERS and GXF grids whose header places the pixels otherwise than GDAL does.

    Raises:
        ValueError: the header states a rotation, or a sense that GDAL does not read.
    """
    for path in _files(dataset, ".ers"):
        stated = _ERS_ROTATION.search(_header(path))
        if stated is not None and _is_rotated(stated[1]):
            _refuse_rotation(layer, path, f"Rotation = {stated[1]}", "Rotation = 0:0:0.0")
    for path in _files(dataset, ".gxf"):
        entries = gxf_entries(path)
        if _is_rotated(entries.get("ROTATION", "0")):
            _refuse_rotation(layer, path, f"#ROTATION {entries['ROTATION']}", "#ROTATION 0")
        sense = entries.get("SENSE", "1")
        if _numbers(sense) and int(_numbers(sense)[0]) not in _GXF_SENSES:
            raise ValueError(
                f"{layer.where}: {path.name} states #SENSE {sense}, an order of points that GDAL does not read; "
                "expected 1 (rows from west to east, from the south), -2, 3 or -4; export it again with sense 1, or as "
                "GeoTIFF"
            )


def gxf_scale_offset(dataset: rasterio.DatasetReader) -> tuple[float, float]:
    """Scale and offset of #TRANSFORM of a GXF grid written as plain numbers; GDAL applies it to packed ones itself."""
    if dataset.driver != "GXF":
        return 1.0, 0.0
    for path in _files(dataset, ".gxf"):
        entries = gxf_entries(path)
        numbers = _numbers(entries.get("TRANSFORM", ""))
        packed = _numbers(entries.get("GTYPE", "0"))
        if numbers and not (packed and packed[0]):
            return numbers[0], numbers[1] if len(numbers) > 1 else 0.0
    return 1.0, 0.0


def gxf_entries(path: Path) -> dict[str, str]:
    """The entries of a GXF header by name in capitals, without the grid."""
    header = re.split(r"^#GRID", _header(path), flags=re.MULTILINE | re.IGNORECASE)[0]
    return {name.upper(): value.strip() for name, value in _GXF_ENTRY.findall(header)}


def sidecar_crs(path: str) -> CRS | None:
    """The CRS that a .prj beside a file states, which GDAL reads for few formats; None if there is none."""
    for ending in (".prj", ".PRJ"):
        sidecar = Path(path).with_suffix(ending)
        if not sidecar.is_file():
            continue
        try:
            text = sidecar.read_text(encoding="utf-8", errors="replace").strip()
            return CRS.from_user_input(text, morph_from_esri_dialect=True)
        except CRSError:
            return None
    return None


def _files(dataset: rasterio.DatasetReader, ending: str) -> list[Path]:
    """The files of a dataset with an ending whose header can be read; a warning names others, such as remote ones."""
    found = []
    for path in map(Path, dataset.files):
        packed = path.suffix.lower() in (".gz", ".zip") and dataset.driver == ending[1:].upper()
        if path.suffix.lower() != ending and not packed:
            continue
        if path.is_file() or _archive_of(path) is not None:
            found.append(path)
        elif path.parts[1:2] and path.parts[1].startswith("vsi"):
            logger.warning("%s: its header is not checked for rotation and sense; copy it to a local disk", path)
    return found


def _header(path: Path) -> str:
    with ExitStack() as opened:
        archive = None if path.is_file() else _archive_of(path)
        if archive is None:
            stream: Any = opened.enter_context(open(path, "rb"))
        elif path.parts[1] == "vsizip":
            archived = opened.enter_context(zipfile.ZipFile(archive[0]))
            stream = opened.enter_context(archived.open(archive[1] or archived.namelist()[0]))
        else:
            stream = opened.enter_context(gzip.open(archive[0]))
        return stream.read(_HEADER_BYTES).decode("latin-1").replace("\r\n", "\n").replace("\r", "\n")


def _archive_of(path: Path) -> tuple[Path, str] | None:
    """The local archive of a /vsizip or /vsigzip path, and the name of the file in it; None for any other path."""
    kind, parts = path.parts[1:2], path.parts[2:]
    if kind not in (("vsizip",), ("vsigzip",)):
        return None
    for count in range(1, len(parts) + 1):
        for root in ("/", ""):  # absolute, or relative to the current folder
            archive = Path(root, *parts[:count])
            if archive.is_file():
                return archive, "/".join(parts[count:])
    return None


def _numbers(text: str) -> list[float]:
    """The numbers in a text that holds nothing else."""
    try:
        return [float(word) for word in text.replace(",", " ").split()]
    except ValueError:
        return []


def _is_rotated(angle: str) -> bool:
    """Whether an angle, in degrees or as degrees:minutes:seconds, is not 0."""
    numbers = _numbers(angle.replace(":", " "))
    return any(abs(number) > _LEAST_ROTATION for number in numbers)


def _refuse_rotation(layer: Layer, path: Path, stated: str, unrotated: str) -> None:
    raise ValueError(
        f"{layer.where}: its grid is rotated: {path.name} states {stated}, which GDAL ignores, expected rows that run "
        "east-west; resample it to an unrotated grid in the program that wrote it, or, if it is not rotated, correct "
        f"the header to {unrotated}"
    )
