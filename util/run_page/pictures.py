"""Pictures inside the page: files of PNG and arrays as data URIs."""

from __future__ import annotations

import base64
import io
from functools import lru_cache
from pathlib import Path

import numpy as np
from PIL import Image

WIDEST = 1800
"""Pixels across above which a picture is reduced for the page; the file beside it stays as it is."""


def picture_uri(path: Path) -> str:
    """A PNG file as a data URI, reduced if it is very wide; empty if it cannot be read."""
    try:
        state = path.stat()
        return _encoded(path, state.st_mtime_ns, state.st_size)
    except OSError:
        return ""


@lru_cache(maxsize=64)
def _encoded(path: Path, time_ns: int, size: int) -> str:
    """As `picture_uri`; done once for each version of a file."""
    with Image.open(path) as image:
        if image.width <= WIDEST:
            return _uri(path.read_bytes())
        shape = (WIDEST, max(round(image.height * WIDEST / image.width), 1))
        reduced = image.convert("RGB").resize(shape, Image.Resampling.LANCZOS)
    return _png(reduced)


def array_uri(pixels: np.ndarray) -> str:
    """(rows, cols, 3) uint8 as a PNG in a data URI."""
    return _png(Image.fromarray(pixels))


def _png(image: Image.Image) -> str:
    memory = io.BytesIO()
    image.save(memory, format="PNG", optimize=False)
    return _uri(memory.getvalue())


def _uri(data: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(data).decode("ascii")
