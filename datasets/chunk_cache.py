"""Decoded chunks of arrays, kept as long as there is room: neighbouring windows need the same ones.

GDAL keeps the blocks of rasters for the same reason; zarr and netCDF libraries decode a chunk every time it is touched.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable

import numpy as np

CACHE_BYTES = 2**28
"""Most bytes of chunks that a process keeps."""
CHUNK_SHARE = 16
"""A window whose chunks take more than this share of that passes by the cache, as strips of a whole layer do."""

ReadBlock = Callable[[int, int, int, int], np.ndarray]
"""(row, col, rows, cols) -> the block, an array that nobody else changes."""


class ChunkCache:
    """Chunks by key, the least recently used forgotten first. Safe between threads.

    Args:
        limit: most bytes to keep.
    """

    def __init__(self, limit: int = CACHE_BYTES) -> None:
        self.limit = limit
        self.size = 0
        self._chunks: OrderedDict[tuple[Hashable, int, int], np.ndarray] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, key: tuple[Hashable, int, int]) -> np.ndarray | None:
        """The chunk, None if it is not kept."""
        with self._lock:
            chunk = self._chunks.get(key)
            if chunk is not None:
                self._chunks.move_to_end(key)
            return chunk

    def put(self, key: tuple[Hashable, int, int], chunk: np.ndarray) -> None:
        """Keeps a chunk."""
        with self._lock:
            old = self._chunks.pop(key, None)
            self.size += chunk.nbytes - (0 if old is None else old.nbytes)
            self._chunks[key] = chunk
            while self.size > self.limit:
                self.size -= self._chunks.popitem(last=False)[1].nbytes

    def forget(self) -> None:
        """Keeps nothing any more."""
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
        itemsize: int,
        read: ReadBlock,
    ) -> np.ndarray:
        """A window of an array, decoding only chunks that are not kept.

        Args:
            name: of the array.
            window: (row, col, rows, cols), inside the array.
            chunk: (rows, cols) of a chunk.
            shape: (rows, cols) of the array.
            itemsize: bytes of a number.
            read: reads a block.

        Returns:
            (rows, cols), the caller's own.
        """
        row, col, rows, cols = window
        down = range(row // chunk[0], -(-(row + rows) // chunk[0]))
        across = range(col // chunk[1], -(-(col + cols) // chunk[1]))
        if len(down) * len(across) * chunk[0] * chunk[1] * itemsize * CHUNK_SHARE > self.limit:
            return read(*window)
        found = {(i, j): self.get((name, i, j)) for i in down for j in across}
        missing = [place for place, part in found.items() if part is None]
        if len(missing) == len(found):  # in one go: what is decoded side by side, or sent over a network, overlaps
            block = _span(down, across, chunk, shape)
            values = read(*block)
            for i, j in missing:
                top, left, height, width = _span(range(i, i + 1), range(j, j + 1), chunk, shape)
                part = values[top - block[0] : top - block[0] + height, left - block[1] : left - block[1] + width]
                self.put((name, i, j), part.copy())
            return values[row - block[0] : row - block[0] + rows, col - block[1] : col - block[1] + cols].copy()
        window_values: np.ndarray | None = None
        for (i, j), kept in found.items():
            top, left, height, width = _span(range(i, i + 1), range(j, j + 1), chunk, shape)
            part = read(top, left, height, width) if kept is None else kept
            if kept is None:
                self.put((name, i, j), part)
            if window_values is None:
                window_values = np.empty((rows, cols), dtype=part.dtype)
            first_row, last_row = max(row, top), min(row + rows, top + height)
            first_col, last_col = max(col, left), min(col + cols, left + width)
            window_values[first_row - row : last_row - row, first_col - col : last_col - col] = part[
                first_row - top : last_row - top, first_col - left : last_col - left
            ]
        assert window_values is not None
        return window_values


def _span(down: range, across: range, chunk: tuple[int, int], shape: tuple[int, int]) -> tuple[int, int, int, int]:
    """(row, col, rows, cols) of a rectangle of chunks, cut at the array's edges."""
    top, left = down.start * chunk[0], across.start * chunk[1]
    bottom, right = min(down.stop * chunk[0], shape[0]), min(across.stop * chunk[1], shape[1])
    return top, left, bottom - top, right - left
