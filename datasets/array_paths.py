"""How a layer's path names a variable of a zarr store, netCDF file or other source that xarray opens.

`xarray:STORE#VARIABLE`, with the groups before the variable (`xarray:a.zarr#fine/gravity`) and, where the source states
no CRS, one after it (`xarray:a.nc#gravity;crs=EPSG:28354`). The layer's band counts along its third dimension, from 1.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

PREFIX = "xarray:"
_URL = re.compile(r"^[A-Za-z][A-Za-z0-9+.-]*://")
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
