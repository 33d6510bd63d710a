"""Opening zarr stores, netCDF files and whatever else xarray opens: lazily, undecoded, once in a process."""

from __future__ import annotations

import atexit
import importlib
import itertools
import math
import os
import threading
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from datasets.layers.discovery import RASTER_ENDINGS
from datasets.layers.paths import is_url
from datasets.rasters.chunk_cache import CHUNKS
from datasets.rasters.retry import with_retries

NETCDF_ENDINGS = frozenset(".nc .nc4 .cdf .h5 .hdf5 .netcdf".split())
_MOST_CHECKED_CHUNKS = 1_000_000
CONNECT_S = 20.0
"""Seconds after which a server that does not answer is given up."""
BLOCK_BYTES = 2**17
"""Bytes asked for at a time of netCDF files on a network."""

ANSWER_S = 60.0
"""Seconds without a byte after which a request is given up."""


@dataclass(frozen=True)
class MissingChunks:
    """Chunks that a zarr store lacks.

    Attributes:
        places: number of each along the array's dimensions.
        checked: number of chunks that were looked for.
        shape: of a chunk.
        fill_value: what reading them gives.
    """

    places: tuple[tuple[int, ...], ...]
    checked: int
    shape: tuple[int, ...]
    fill_value: Any


_opened: dict[tuple[int, str], dict[str, Any]] = {}
_lock = threading.Lock()


def require(module: str, purpose: str) -> ModuleType:
    """Imports an optional package.

    Raises:
        ValueError: it is not installed; says what for and how to install it.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ValueError(
            f"{purpose} needs the package {module}, which cannot be imported ({error}); pip install {module}, or all "
            "that such sources need: pip install -r requirements-xarray.txt"
        ) from error


def open_groups(store: str) -> Mapping[str, Any]:
    """The groups of a store by path (`/` is the root), as xarray datasets that hold no values yet.

    Opened once in a process and shared by its threads; after a fork, anew. Values stay as they are stored: no nodata is
    masked, nothing scaled, no time decoded.

    Args:
        store: file, folder or URL.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it cannot be opened, or needs a package that is not there.
    """
    key = (os.getpid(), store)
    with _lock:
        if key not in _opened:
            _opened[key] = _open(store)
        return _opened[key]


def forget(store: str) -> None:
    """Opens a store anew when it is next asked for."""
    CHUNKS.forget()
    with _lock:
        _opened.pop((os.getpid(), store), None)


def forget_all() -> None:
    """Opens every store anew when it is next asked for: its files may have changed."""
    CHUNKS.forget()
    with _lock:
        for key in [key for key in _opened if key[0] == os.getpid()]:
            del _opened[key]


@atexit.register
def _close() -> None:
    """Close the stores of this process before the libraries that read them are unloaded."""
    for (pid, _), groups in _opened.items():
        if pid == os.getpid():
            for dataset in groups.values():
                dataset.close()


def _open(store: str) -> dict[str, Any]:
    xarray = require("xarray", f"{store}: reading it")
    if not is_url(store) and not Path(store).exists():
        raise FileNotFoundError(f"{store}: no such file or folder; check the path (current folder: {Path.cwd()})")
    if is_url(store):
        _require_file_system(store)
    ending = Path(store.rstrip("/")).suffix.lower()
    if ending in NETCDF_ENDINGS:
        require("h5netcdf", f"{store}: reading netCDF")
    elif ending in RASTER_ENDINGS:
        require("rioxarray", f"{store}: reading rasters through xarray")
    else:
        require("zarr", f"{store}: reading zarr")
        require("numcodecs", f"{store}: reading zarr").register_codec(_RefusedPickle)
    try:
        with (
            warnings.catch_warnings()
        ):  # of what is checked by itself: missing grid mappings, zarr's young third format
            warnings.simplefilter("ignore")
            return with_retries(lambda: _open_with(xarray, store, ending), path=store, what=store)
    except ValueError as error:
        raise ValueError(f"{store}: cannot be opened by xarray ({error}); {_remedy(store)}") from error
    except Exception as error:  # every backend has its own
        raise ValueError(f"{store}: cannot be opened ({_text(error)}); {_remedy(store)}") from error


class _RefusedPickle:
    """Stands in for the codec of pickled objects, which would run whatever code a store holds."""

    codec_id = "pickle"

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> _RefusedPickle:
        """Refuses the codec wherever a store names it, before any chunk is read.

        Raises:
            ValueError: always.
        """
        raise ValueError("an array of pickled objects (codec 'pickle') is not read, as reading it may run any code")


def _require_file_system(store: str) -> None:
    """Imports the package by which fsspec reads a URL, so that its absence is no fault of the network.

    Raises:
        ValueError: the package is not installed, or no package is known for the URL's scheme.
    """
    require("fsspec", f"{store}: reading over a network")
    registry = importlib.import_module("fsspec.registry")
    scheme = store.partition("://")[0]
    known = registry.known_implementations.get(scheme)
    if known is not None and not known["class"].startswith("fsspec."):
        require(known["class"].partition(".")[0], f"{store}: reading {scheme}://")
    try:
        registry.get_filesystem_class(scheme)
    except ImportError as error:
        raise ValueError(f"{store}: a package is missing ({error}); install it") from error
    except ValueError as error:
        raise ValueError(f"{store}: {error}; expected a scheme such as https:// or s3://") from error


def _open_with(xarray: Any, store: str, ending: str) -> dict[str, Any]:
    options: dict[str, Any] = {"chunks": None, "cache": False, "mask_and_scale": False}
    if ending in RASTER_ENDINGS and ending not in NETCDF_ENDINGS:
        return {"/": xarray.open_dataset(store, engine="rasterio", **options)}
    options |= {"decode_times": False, "decode_coords": "all"}
    if ending in NETCDF_ENDINGS:
        if is_url(store):
            fsspec = require("fsspec", f"{store}: reading over a network")
            files, path = fsspec.core.url_to_fs(store, **_network(store))
            stream = files.open(path, block_size=BLOCK_BYTES, cache_type="blockcache")
            return dict(xarray.open_groups(stream, engine="h5netcdf", **options))
        with open(store, "rb") as stream:
            if stream.read(3) == b"CDF":  # netCDF 3 has no groups
                return {"/": xarray.open_dataset(store, engine="scipy", **options)}
        return dict(xarray.open_groups(store, engine="h5netcdf", **options))
    if is_url(store):
        options["storage_options"] = _network(store)
    return dict(xarray.open_groups(store, engine="zarr", **options))


def _network(store: str) -> dict[str, Any]:
    """Options for fsspec: HTTP gives up on servers that do not answer."""
    if not store.startswith(("http://", "https://")):
        return {}
    aiohttp = require("aiohttp", f"{store}: reading over HTTP")
    return {"client_kwargs": {"timeout": aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_S, sock_read=ANSWER_S)}}


def missing_chunks(store: str, variable: str, *, index: Mapping[int, int]) -> MissingChunks | None:
    """The chunks of an array that a zarr store lacks; None if the store is no zarr, or its chunks cannot be listed.

    HTTP lists no folders; larger arrays than `_MOST_CHECKED_CHUNKS` are not checked.

    Args:
        store: file, folder or URL.
        variable: path of the array in the store.
        index: number of the chunk along each dimension but those of rows and columns.
    """
    if Path(store.rstrip("/")).suffix.lower() in NETCDF_ENDINGS | RASTER_ENDINGS:
        return None
    if store.startswith(("http://", "https://")):
        return None
    zarr = importlib.import_module("zarr")
    run = importlib.import_module("zarr.core.sync").sync
    options = {"storage_options": _network(store)} if is_url(store) else {}
    array = zarr.open_group(store, mode="r", **options)[variable]
    chunk = array.shards or array.chunks
    counts = [range(-(-size // step)) for size, step in zip(array.shape, chunk, strict=True)]
    chosen = [range(index[k], index[k] + 1) if k in index else count for k, count in enumerate(counts)]
    if math.prod(map(len, chosen)) > _MOST_CHECKED_CHUNKS:
        return None
    keys = {
        f"{array.path}/{array.metadata.encode_chunk_key(place)}".lstrip("/"): place
        for place in itertools.product(*chosen)
    }
    there = run(_present(array.store, array.path, list(keys)))
    missing = tuple(place for key, place in keys.items() if key not in there)
    return MissingChunks(missing, len(keys), chunk, array.fill_value)


async def _present(store: Any, folder: str, keys: list[str]) -> set[str]:
    """Which of some keys a zarr store holds."""
    listed = {key.lstrip("/") async for key in store.list_prefix(f"{folder}/")}
    return listed.intersection(keys)


def _text(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__


def _remedy(store: str) -> str:
    if is_url(store):
        return "check the address, and that its server answers"
    return "expected a zarr store, a netCDF file or what else xarray opens: it may be damaged or incomplete"
