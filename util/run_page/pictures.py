"""Pictures inside the page: files of PNG and arrays as data URIs."""

from __future__ import annotations

import base64
import io
from functools import lru_cache
from pathlib import Path

import numpy as np
from matplotlib.image import imsave


def picture_uri(path: Path) -> str:
    """A PNG file as a data URI; empty if it cannot be read."""
    try:
        state = path.stat()
        return _encoded(path, state.st_mtime_ns, state.st_size)
    except OSError:
        return ""


@lru_cache(maxsize=32)
def _encoded(path: Path, time_ns: int, size: int) -> str:
    """As `picture_uri`; done once for each version of a file."""
    return _uri(path.read_bytes())


def array_uri(pixels: np.ndarray) -> str:
    """(rows, cols, 3) uint8 as a PNG in a data URI."""
    memory = io.BytesIO()
    imsave(memory, pixels, format="png")
    return _uri(memory.getvalue())


def _uri(data: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(data).decode("ascii")
