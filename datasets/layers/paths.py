"""How a layer's path names a variable of a zarr store, netCDF file or other source that xarray opens.

`xarray:STORE#VARIABLE`, with the groups before the variable (`xarray:a.zarr#fine/gravity`) and, where the source states
no CRS, one after it (`xarray:a.nc#gravity;crs=EPSG:28354`). The layer's band counts along its third dimension, from 1.
The path of a layer in several sheets is those of its files, joined by `|`.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, replace
from pathlib import Path, PureWindowsPath

PREFIX = "xarray:"
SHEET_SEPARATOR = "|"
_URL = re.compile(r"^[A-Za-z][A-Za-z0-9+.-]+://")  # two letters at least: one is a drive of Windows
_REMOTE_VSI = re.compile(r"^/vsi(curl|s3|gs|az|adls|oss|swift|webhdfs|hdfs)")


@dataclass(frozen=True)
class ArrayPath:
    """A variable in a store.

    Attributes:
        store: file, folder or URL.
        variable: its name, after those of its groups and slashes; empty for the whole store.
        crs: CRS to use where the store states none, None = none.
    """

    store: str
    variable: str = ""
    crs: str | None = None

    @property
    def group(self) -> str:
        """The group that the variable lies in, `/` for the root."""
        return "/" + self.variable.rpartition("/")[0]

    @property
    def name(self) -> str:
        """The variable's name within its group."""
        return self.variable.rpartition("/")[2]

    def __str__(self) -> str:
        """As a layer's path writes it."""
        return f"{PREFIX}{self.store}#{self.variable}" + (f";crs={self.crs}" if self.crs else "")


def parse_array_path(path: str) -> ArrayPath | None:
    """The store and variable that a layer's path names, None if it names a raster."""
    if not path.startswith(PREFIX):
        return None
    store, mark, rest = path[len(PREFIX) :].rpartition("#")
    if not mark:
        return ArrayPath(rest)
    variable, _, crs = rest.partition(";crs=")
    return ArrayPath(store, variable.strip("/"), crs or None)


def is_url(path: str) -> bool:
    """Whether a path is a URL (`https://...`, `s3://...`)."""
    return bool(_URL.match(path))


def is_remote(path: str) -> bool:
    """Whether reading a layer's path goes over a network: a URL, or one of GDAL's network file systems."""
    named = parse_array_path(path)
    return is_url(named.store if named else path) or bool(_REMOTE_VSI.match(path))


_SUBDATASET = re.compile(r'^(?P<driver>NETCDF|HDF5):"?(?P<file>[^"]{2,}?)"?:(?P<variable>[^:]+)$', re.IGNORECASE)


_DRIVE = re.compile(r"^[A-Za-z]:[\\/]")


def sheet_paths(path: str) -> tuple[str, ...]:
    """The files of a layer in several sheets, in order; the path itself if it names one."""
    if SHEET_SEPARATOR not in path or parse_array_path(path) is not None or Path(path).exists():
        return (path,)
    return tuple(part.strip() for part in path.split(SHEET_SEPARATOR) if part.strip())


def shown_path(path: str) -> str:
    """How messages show a layer's path: of several sheets their number, the first and the last."""
    sheets = sheet_paths(path)
    return path if len(sheets) == 1 else f"{len(sheets)} sheets, {sheets[0]} to {Path(sheets[-1]).name}"


_SCHEME = re.compile(r"^(/vsi|[A-Za-z][A-Za-z0-9_+]+:)")


def is_plain_path(path: str) -> bool:
    """Return whether a layer's path names a file, rather than a /vsi path, a URL or a subdataset."""
    return not _SCHEME.match(path)


def file_of(path: str) -> str:
    """Return the file that a layer's path lies in: itself, that of a subdataset or variable, the first of sheets."""
    path = sheet_paths(path)[0]
    named = parse_array_path(path)
    if named is not None:
        return named.store
    match = _SUBDATASET.match(path)
    return match["file"] if match else path


def variable_of(path: str) -> str:
    """Return the variable that a layer's path names, with its groups; empty for a whole file."""
    named = parse_array_path(path)
    if named is not None:
        return named.variable
    match = _SUBDATASET.match(path)
    return match["variable"].strip('/"') if match else ""


def stem_of(path: str) -> str:
    """Return the name a layer gets from its path: the file's stem, and the variable of a subdataset."""
    named = parse_array_path(path)
    if named is not None:
        return clean_label(named.variable.replace("/", "_")) or _stem(named.store)
    match = _SUBDATASET.match(path)
    return f"{_stem(match['file'])}_{clean_label(match['variable'])}" if match else _stem(path)


def _stem(path: str) -> str:
    """The name of a file without its folders and ending, also of a path that was written on Windows."""
    return (PureWindowsPath(path) if _DRIVE.match(path) else Path(path)).stem


def clean_label(label: str) -> str:
    """Return a band's or variable's description without characters that do not belong in a name."""
    return re.sub(r"[^\w.+-]+", "_", label.strip()).strip("_")


def absolute_path(path: str, folder: Path) -> str:
    """Return a layer's path made absolute, taken to be relative to ``folder``; URLs and /vsi paths stay."""
    if SHEET_SEPARATOR in path and not (folder / path).exists():
        sheets = sheet_paths(path)
        if len(sheets) > 1:
            return SHEET_SEPARATOR.join(absolute_path(sheet, folder) for sheet in sheets)
    named = parse_array_path(path)
    if named is not None:
        return path if is_url(named.store) else str(replace(named, store=absolute_path(named.store, folder)))
    match = _SUBDATASET.match(path)
    if match:
        return f"{match['driver']}:{_absolute(match['file'], folder)}:{match['variable']}"
    if _SCHEME.match(path):
        return path
    return _absolute(os.path.expanduser(path), folder)


def _absolute(path: str, folder: Path) -> str:
    """A file's path made absolute; one with a drive of Windows is, on every system."""
    return os.path.normpath(path) if _DRIVE.match(path) else os.path.abspath(os.path.join(folder, path))


def with_own_separators(path: str, folder: Path) -> str:
    """A path relative to ``folder`` as this system writes it: where there is no such file, backslashes are slashes.

    So a table written on Windows can be read on Linux and macOS, where a backslash may be part of a name.
    """
    if os.sep == "\\" or "\\" not in path or not is_plain_path(path) or os.path.exists(os.path.join(folder, path)):
        return path
    slashed = path.replace("\\", "/")
    return slashed if os.path.exists(os.path.join(folder, slashed)) else path
