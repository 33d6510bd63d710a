"""Whether the files of a raster are as long as their headers say: GDAL reads what is missing as zeros or rubbish.

Formats whose drivers refuse such files themselves (GeoTIFF, JPEG 2000, GeoPackage, ...) are not checked here. Damage
that leaves the length as it is cannot be, such as a flipped bit of an uncompressed file.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeAlias

import numpy as np
import rasterio

from datasets.layers.layer import Layer
from datasets.layers.paths import is_plain_path
from datasets.rasters.netcdf_classic import is_classic_netcdf, length_of_classic_netcdf

Lengths: TypeAlias = Iterator[tuple[Path, int]]
"""Files and the least number of bytes that each holds."""
_LengthsOf: TypeAlias = Callable[[Layer, rasterio.DatasetReader], Lengths]

_COMPRESSED = (b"\x1f\x8b", b"\x89HDF")
# A label is in the first bytes of its file.
_LABEL_BYTES = 2**16
# Bytes before the pixels of formats that hold them in one file, uncompressed.
_HEADER_BYTES = {
    **dict.fromkeys("EHdr ENVI ERS ISCE netCDF PAux ROI_PAC RRASTER RST".split(), 0),
    **{"BT": 256, "CTable2": 160, "GTX": 40, "LAN": 128, "PCRaster": 256},
}
# Endings of headers and sidecars beside the pixels.
_HEADER_ENDINGS = frozenset(".aux .clr .ers .grd .hdr .prj .rdc .ref .rsc .stx .xml".split())
_ILWIS_BYTES = {"Byte": 1, "Int": 2, "Long": 4, "Float": 4, "Real": 8}


def require_complete_files(layer: Layer, dataset: rasterio.DatasetReader) -> None:
    """Compares the files of a raster with what their headers say; those in archives and on a network are not checked.

    Raises:
        ValueError: one is shorter.
    """
    lengths = _LENGTHS.get(dataset.driver, _one_file if dataset.driver in _HEADER_BYTES else None)
    if lengths is None:
        return
    for path, expected in lengths(layer, dataset):
        size = path.stat().st_size
        if size < expected:
            raise ValueError(
                f"{layer.where}: incomplete: {path} has {size} bytes, expected at least {expected} for "
                f"{dataset.height} rows x {dataset.width} columns; it is cut short or damaged: get it again, or "
                "restore it from a good copy"
            )


def _local_files(dataset: rasterio.DatasetReader) -> list[Path]:
    return [path for path in map(Path, dataset.files) if path.is_file()]


def _pixel_bytes(dataset: rasterio.DatasetReader) -> int:
    return dataset.width * dataset.height * sum(np.dtype(dtype).itemsize for dtype in dataset.dtypes)


def _one_file(layer: Layer, dataset: rasterio.DatasetReader) -> Lengths:
    """Pixels in the largest file but headers, behind some bytes; netCDF-3 by its own header."""
    files = _local_files(dataset)
    if not files:
        return
    pixels = [file for file in files if file.suffix.lower() not in _HEADER_ENDINGS]
    data = max(pixels or files, key=lambda file: file.stat().st_size)
    if is_classic_netcdf(data):
        yield data, length_of_classic_netcdf(data)
        return
    with open(data, "rb") as stream:
        compressed = stream.read(4).startswith(_COMPRESSED)
    packed = "NBITS" in dataset.tags(layer.band, ns="IMAGE_STRUCTURE")
    foreign = dataset.driver == "ERS" and data.suffix != ""  # the header may name an ECW or TIFF file
    if not (compressed or packed or foreign):
        yield data, _HEADER_BYTES[dataset.driver] + _pixel_bytes(dataset)


def _mff(layer: Layer, dataset: rasterio.DatasetReader) -> Lengths:
    """A file for each band, whose ending says type and number, such as .r00."""
    kinds = {"b": 1, "i": 2, "j": 4, "r": 4, "x": 8}
    for path in _local_files(dataset):
        ending = re.fullmatch(r"\.([bijrx])\d\d", path.suffix.lower())
        if ending:
            yield path, dataset.width * dataset.height * kinds[ending[1]]


def _mff2(layer: Layer, dataset: rasterio.DatasetReader) -> Lengths:
    """A folder of files, of which GDAL does not list that of the pixels."""
    data = Path(layer.path) / "image_data"
    if data.is_file():
        yield data, _pixel_bytes(dataset)


def _labelled(pattern: str, offset: Callable[[re.Match[str]], int]) -> _LengthsOf:
    """Pixels behind an offset that a label states, in the file of the label or in one that the label names."""

    def lengths(layer: Layer, dataset: rasterio.DatasetReader) -> Lengths:
        files = _local_files(dataset)
        if not files or not is_plain_path(layer.path) or "NBITS" in dataset.tags(layer.band, ns="IMAGE_STRUCTURE"):
            return
        label = _label(files[0])
        stated = re.search(pattern, label, re.DOTALL)
        data = [path for path in files[1:] if path.suffix.lower() != ".xml" and path.name in label]
        if stated is not None and not re.search(r"COMPRESS\s*=\s*'BASIC|ENCODING_TYPE\s*=|Format\s*=\s*GeoTIFF", label):
            yield (data or files)[0], offset(stated) + _pixel_bytes(dataset)

    return lengths


def _label(path: Path) -> str:
    with open(path, "rb") as stream:
        return stream.read(_LABEL_BYTES).decode("latin-1")


def _ilwis(layer: Layer, dataset: rasterio.DatasetReader) -> Lengths:
    """A text that names the file of the pixels and their type."""
    for header in _local_files(dataset)[:1]:
        label = _label(header)
        store = label.partition("[MapStore]")[2]
        name, kind = (re.search(rf"^{key}=(.+?)\s*$", store, re.MULTILINE) for key in ("Data", "Type"))
        if name and kind and kind[1] in _ILWIS_BYTES and (header.parent / name[1].strip("'")).is_file():
            yield header.parent / name[1].strip("'"), dataset.width * dataset.height * _ILWIS_BYTES[kind[1]]


def _png(layer: Layer, dataset: rasterio.DatasetReader) -> Lengths:
    """Chunks with their lengths, up to IEND."""
    for path in _local_files(dataset)[:1]:
        place = 8
        with open(path, "rb") as stream:
            while True:
                stream.seek(place)
                head = stream.read(8)
                if len(head) < 8:
                    yield path, place + 12  # the next chunk, which is empty at the least
                    return
                place += 12 + int.from_bytes(head[:4], "big")
                if head[4:] == b"IEND":
                    yield path, place
                    return


def _hfa(layer: Layer, dataset: rasterio.DatasetReader) -> Lengths:
    """A tree of entries, each with the place and the length of its data."""
    for path in _local_files(dataset)[:1]:
        with open(path, "rb") as stream:

            def numbers(place: int, form: str) -> tuple[int, ...]:
                stream.seek(place)
                size = struct.calcsize(form)
                return struct.unpack(form, stream.read(size).ljust(size, b"\0"))

            (header,) = numbers(16, "<I")
            end, waiting, seen = header + 18, [numbers(header, "<IIIHI")[2]], set[int]()
            while waiting:
                place = waiting.pop()
                if place in seen:
                    continue
                seen.add(place)
                following, _, _, child, data, size = numbers(place, "<6I")
                end = max(end, place + 128, data + size if size else 0)
                waiting += [each for each in (following, child) if each]
        yield path, end


_LENGTHS: dict[str, _LengthsOf] = {
    "HFA": _hfa,
    "ILWIS": _ilwis,
    "ISIS2": _labelled(
        r"RECORD_BYTES\s*=\s*(\d+).*\^QUBE\s*=\s*\(?\s*(?:\"[^\"]*\"\s*,\s*)?(\d+)",
        lambda match: int(match[1]) * (int(match[2]) - 1),
    ),
    "ISIS3": _labelled(r"StartByte\s*=\s*(\d+)", lambda match: int(match[1]) - 1),
    "MFF": _mff,
    "MFF2": _mff2,
    "PDS": _labelled(
        r"RECORD_BYTES\s*=\s*(\d+).*\^IMAGE\s*=\s*\(?\s*(?:\"[^\"]*\"\s*,\s*)?(\d+)\s*[)\r\n]",
        lambda match: int(match[1]) * (int(match[2]) - 1),
    ),
    "PDS4": _labelled(r"<Array_[23]D.*?<offset unit=\"byte\">(\d+)</offset>", lambda match: int(match[1])),
    "PNG": _png,
    "VICAR": _labelled(r"LBLSIZE=(\d+)", lambda match: int(match[1])),
}
