"""Caches decoded chunks of arrays in memory: neighbouring windows need the same ones.

Bands cache pixels as they return them (physical, warped, NaN where invalid), so that no work is repeated for the next
window or in another thread. Stores also cache chunks as stored: zarr and netCDF libraries decode a chunk at every
access, whereas GDAL caches the blocks of rasters by itself.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterable

import numpy as np
from numpy.typing import DTypeLike

CACHE_BYTES = 2**28
"""Most bytes of chunks that a process caches."""
CHUNK_SHARE = 16
"""A window whose chunks take more than 1 / this of the cache is not cached; strips of a whole layer, for example."""

ReadBlock = Callable[[int, int, int, int], np.ndarray]
"""(row, col, rows, cols) -> the block, an array that nobody else changes."""

Key = tuple[Hashable, int, int]
"""(name of the array, row and column of the chunk among its chunks)."""


class ChunkCache:
    """Chunks by key; the least recently used are dropped first. Thread-safe.

    Args:
        limit: most bytes to cache.
    """

    def __init__(self, limit: int = CACHE_BYTES) -> None:
        self.limit = limit
        self.size = 0
        self._chunks: OrderedDict[Key, np.ndarray] = OrderedDict()
        self._lock = threading.Lock()

    def put(self, key: Key, chunk: np.ndarray) -> None:
        """Cache a chunk."""
        with self._lock:
            old = self._chunks.pop(key, None)
            self.size += chunk.nbytes - (0 if old is None else old.nbytes)
            self._chunks[key] = chunk
            while self.size > self.limit:
                self.size -= self._chunks.popitem(last=False)[1].nbytes

    def cached(self, keys: Iterable[Key]) -> dict[Key, np.ndarray]:
        """Those of some chunks that are cached."""
        found = {}
        with self._lock:
            for key in keys:
                chunk = self._chunks.get(key)
                if chunk is not None:
                    self._chunks.move_to_end(key)
                    found[key] = chunk
        return found

    def forget(self) -> None:
        """Drop all chunks."""
        with self._lock:
            self._chunks.clear()
            self.size = 0

    def read(
        self,
        name: Hashable,
        window: tuple[int, int, int, int],
        *,
        chunk: tuple[int, int],
        shape: tuple[int, int],
        dtype: DTypeLike,
        read: ReadBlock,
    ) -> np.ndarray:
        """A window of an array; only chunks that are not cached are decoded.

        Args:
            name: of the array.
            window: (row, col, rows, cols), inside the array.
            chunk: (rows, cols) of a chunk.
            shape: (rows, cols) of the array.
            dtype: type of its numbers.
            read: reads a block.

        Returns:
            (rows, cols), a copy that the caller may change.
        """
        row, col, rows, cols = window
        down, across = _cuts(row, rows, chunk[0]), _cuts(col, cols, chunk[1])
        itemsize = np.dtype(dtype).itemsize
        if len(down) * len(across) * chunk[0] * chunk[1] * itemsize * CHUNK_SHARE > self.limit:
            return read(*window)
        keys = [(name, i, j) for i, _, _ in down for j, _, _ in across]
        parts = self.cached(keys)
        if not parts:  # in one go: what is decoded side by side, or sent over a network, overlaps
            block = _span(keys[0], keys[-1], chunk, shape)
            values = read(*block)
            for key in keys:
                top, left, height, width = _span(key, key, chunk, shape)
                part = values[top - block[0] : top - block[0] + height, left - block[1] : left - block[1] + width]
                self.put(key, part.copy())
            return values[row - block[0] : row - block[0] + rows, col - block[1] : col - block[1] + cols].copy()
        for key in keys:
            if key not in parts:
                parts[key] = read(*_span(key, key, chunk, shape))
                self.put(key, parts[key])
        values = np.empty((rows, cols), dtype=dtype)
        for i, to_rows, from_rows in down:
            for j, to_cols, from_cols in across:
                values[to_rows, to_cols] = parts[name, i, j][from_rows, from_cols]
        return values


def _cuts(start: int, count: int, step: int) -> list[tuple[int, slice, slice]]:
    """Cuts [start, start + count) at multiples of `step`: (chunk, place in the window, place in the chunk) each."""
    cuts, stop = [], start + count
    for number in range(start // step, -(-stop // step)):
        origin = number * step
        first, last = max(start, origin), min(stop, origin + step)
        cuts.append((number, slice(first - start, last - start), slice(first - origin, last - origin)))
    return cuts


def _span(first: Key, last: Key, chunk: tuple[int, int], shape: tuple[int, int]) -> tuple[int, int, int, int]:
    """(row, col, rows, cols) of the rectangle of chunks from one to another, cut at the array's edges."""
    top, left = first[1] * chunk[0], first[2] * chunk[1]
    bottom, right = min((last[1] + 1) * chunk[0], shape[0]), min((last[2] + 1) * chunk[1], shape[1])
    return top, left, bottom - top, right - left


CHUNKS = ChunkCache()
"""The cache of this process."""
