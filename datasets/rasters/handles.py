"""Open raster handles: one for each file, process and thread, closed least recently used first."""

from __future__ import annotations

import os
import threading
import warnings
import weakref
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import rasterio
import rasterio.env
from rasterio.errors import NotGeoreferencedWarning

from datasets.rasters.chunk_cache import CHUNKS

# Open files per process: well below the usual limit of 1024, and more than the layers of any survey.
MAX_HANDLES = 256


# Bytes of decoded blocks that GDAL caches: its default, 5 % of the memory, is too much for each of several processes,
# and the pixels of windows are cached in `CHUNKS`.
GDAL_CACHE_BYTES = 128 << 20


class _Handles:
    """Open files of one thread of one process, the least recently used first."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self.open: OrderedDict[str, rasterio.DatasetReader] = OrderedDict()


_local = threading.local()


_registry: list[weakref.ref[_Handles]] = []  # those of every thread; a list, as copying one is atomic


_inherited: list[_Handles] = []  # handles from before a fork are the parent's: kept, neither used nor closed


def _own_handles() -> _Handles:
    pid = os.getpid()
    handles: _Handles | None = getattr(_local, "handles", None)
    if handles is None or handles.pid != pid:
        if handles is not None:
            _inherited.append(handles)
        handles = _local.handles = _Handles(pid)
        _registry.append(weakref.ref(handles))
    return handles


def _count_open(pid: int) -> int:
    alive = [handles for handles in (reference() for reference in list(_registry)) if handles is not None]
    return sum(len(handles.open) for handles in alive if handles.pid == pid)


def open_raster(path: str) -> rasterio.DatasetReader:
    """Return a raster that GDAL has opened, without GDAL's own treatment of valid limits in netCDF.

    Raises:
        rasterio.errors.RasterioIOError: the file cannot be opened.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NotGeoreferencedWarning)
        dataset = rasterio.open(path)
        if dataset.driver != "netCDF":
            return dataset
        dataset.close()
        return rasterio.open(path, HONOUR_VALID_RANGE="NO")  # an option that no other driver knows


def open_dataset(path: str) -> rasterio.DatasetReader:
    """Return an open dataset that belongs to this process and this thread, reused from call to call.

    At most `MAX_HANDLES` stay open in a process; beyond that, this thread's least recently used are closed.

    Raises:
        rasterio.errors.RasterioIOError: the file cannot be opened.
    """
    handles = _own_handles()
    dataset = handles.open.get(path)
    if dataset is not None:
        handles.open.move_to_end(path)
        return dataset
    for _ in range(min(len(handles.open), _count_open(handles.pid) - MAX_HANDLES + 1)):
        handles.open.popitem(last=False)[1].close()
    dataset = open_raster(path)
    handles.open[path] = dataset
    return dataset


@contextmanager
def gdal_session() -> Iterator[None]:
    """A context in which GDAL's messages are logged, from the first read to the end of the outermost context.

    The first read of a process sets the size of GDAL's block cache.
    """
    if getattr(_local, "session", None) is not None:
        yield
        return
    with ExitStack() as session:
        _local.session = session
        try:
            yield
        finally:
            _local.session = None


def _begin_session() -> None:
    """Enter the GDAL environment at the first read; windows of cached pixels do not need it."""
    if not rasterio.env.hasenv():
        _local.session.enter_context(rasterio.Env(GDAL_CACHEMAX=GDAL_CACHE_BYTES))


def close_dataset(path: str) -> None:
    """Close a file that this thread may have open; the next read opens it again."""
    dataset = _own_handles().open.pop(path, None)
    if dataset is not None:
        dataset.close()


def close_datasets() -> None:
    """Close every file that this thread has open and drop all cached pixels; the next read opens files again."""
    CHUNKS.forget()
    handles = _own_handles()
    while handles.open:
        handles.open.popitem()[1].close()
