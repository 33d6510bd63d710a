"""Reading and resizing images as `--dataset_type rgb` and `sentinel` do, compared with full decoding and with OpenCV.

OpenCV is needed for its own rows only (`pip install opencv-python-headless`).
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import tempfile
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
import torch
from rasterio.errors import NotGeoreferencedWarning

from datasets.scenes.images import Crop, centre_crop, read_image, to_size
from scripts.benchmarks.common import describe_machine, time_in_turn
from util.options.common import positive_int

JPEG_QUALITY = 85
DAMAGED = 16
"""Damaged copies of the JPEG: half of them cut short, half with bytes changed."""
CHANGED_BYTES = 40

Reader = Callable[[Path], np.ndarray]


def add_options(command: argparse.ArgumentParser) -> None:
    """The options of `scenes`."""
    command.add_argument("--jpeg", type=positive_int, default=1000, help="edge of the JPEG, pixels (1000)")
    command.add_argument("--chip", type=positive_int, default=100, help="edge of the chip of 13 bands, pixels (100)")
    command.add_argument("--sizes", type=positive_int, nargs="+", default=[224, 384], help="squares made (224 384)")
    command.add_argument("--repeats", type=positive_int, default=20, help="timed images of each way (20)")


def run_scenes(args: argparse.Namespace) -> dict[str, Any]:
    """Milliseconds of an image by each way, what it differs by from full decoding, and damaged files it refuses."""
    cv2 = importlib.import_module("cv2") if importlib.util.find_spec("cv2") else None
    if cv2 is not None:
        cv2.setNumThreads(torch.get_num_threads())
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        jpeg, chip = Path(folder) / "image.jpg", Path(folder) / "chip.tif"
        write_picture(jpeg, bands=3, edge=args.jpeg)
        write_picture(chip, bands=13, edge=args.chip)
        for size in args.sizes:
            for path, ways in ((jpeg, jpeg_ways(size, cv2)), (chip, chip_ways(size, cv2))):
                rows += compare(path, ways, size=size, repeats=args.repeats)
    facts = {} if cv2 else {"OpenCV": "not installed (pip install opencv-python-headless)"}
    return {"machine": describe_machine(torch.device("cpu")), "rows": rows, "facts": facts}


def jpeg_ways(size: int, cv2: Any) -> dict[str, Reader]:
    """Ways from a JPEG of three bands to (3, size, size) float32; the first one is the reference."""
    ways: dict[str, Reader] = {
        "full": lambda path: to_size(read_image(path, bands=[1, 2, 3], expected=3, choose=centre_crop), size),
        "reduced (used)": lambda path: to_size(
            read_image(path, bands=[1, 2, 3], expected=3, choose=centre_crop, size=size), size
        ),
    }

    def with_opencv(path: Path) -> np.ndarray:
        image = cv2.imread(str(path))
        if image is None:
            raise OSError(f"{path}: not decoded")
        crop = centre_crop(*image.shape[:2])
        return cv2_area(cv2, _cut(image, crop), size)[::-1]

    return ways | ({"opencv": with_opencv} if cv2 else {})


def chip_ways(size: int, cv2: Any) -> dict[str, Reader]:
    """Ways from a GeoTIFF of 13 bands to ten of them in a square; OpenCV does not decode such files."""
    bands = [2, 3, 4, 5, 6, 7, 8, 9, 12, 13]

    def read(path: Path) -> np.ndarray:
        return read_image(path, bands=bands, expected=13, choose=centre_crop, size=size)

    ways: dict[str, Reader] = {"full (used)": lambda path: to_size(read(path), size)}

    def resized(path: Path) -> np.ndarray:
        return cv2_area(cv2, np.ascontiguousarray(read(path).transpose(1, 2, 0)), size)

    return ways | ({"opencv resizes": resized} if cv2 else {})


def cv2_area(cv2: Any, image: np.ndarray, size: int) -> np.ndarray:
    """(C, size, size) float32 of an image of (rows, cols, C): averages where it becomes smaller, else bilinear."""
    how = cv2.INTER_AREA if min(image.shape[:2]) > size else cv2.INTER_LINEAR
    resized = cv2.resize(image, (size, size), interpolation=how)
    return np.ascontiguousarray(resized.transpose(2, 0, 1)).astype(np.float32)


def _cut(image: np.ndarray, crop: Crop) -> np.ndarray:
    return image[crop.top : crop.top + crop.rows, crop.left : crop.left + crop.cols]


def compare(path: Path, ways: dict[str, Reader], *, size: int, repeats: int) -> list[dict[str, Any]]:
    """A row for each way to read a file."""
    times = time_in_turn({name: partial(way, path) for name, way in ways.items()}, repeats=repeats)
    reference = next(iter(ways.values()))(path)
    rows = []
    for name, way in ways.items():
        error = way(path) - reference
        rows.append(
            {
                "file": path.name,
                "size": size,
                "way": name,
                "ms": 1e3 * times[name]["median_s"],
                "cpu_ms": 1e3 * times[name]["cpu_s"],
                "rms_difference": float(np.sqrt(np.mean(error**2)) / reference.std()),
                "damaged_refused": refused(path, way) if path.suffix == ".jpg" else None,
            }
        )
    return rows


def refused(path: Path, way: Reader) -> str:
    """How many damaged copies of a file a way refuses: those cut short, and those with changed bytes."""
    content, rng = path.read_bytes(), np.random.default_rng(0)
    counts = {"cut": 0, "changed": 0}
    copy = path.with_name(f"damaged{path.suffix}")
    for number in range(DAMAGED):
        kind, at = ("cut", "changed")[number % 2], int(rng.integers(len(content) // 4, len(content) - CHANGED_BYTES))
        damaged = bytearray(content[:at] if kind == "cut" else content)
        if kind == "changed":
            damaged[at : at + CHANGED_BYTES] = rng.integers(0, 255, CHANGED_BYTES, dtype=np.uint8).tobytes()
        copy.write_bytes(damaged)
        try:
            way(copy)
        except (OSError, rasterio.errors.RasterioError):
            counts[kind] += 1
    return ", ".join(f"{count} of {DAMAGED // 2} {kind}" for kind, count in counts.items())


def write_picture(path: Path, *, bands: int, edge: int) -> None:
    """Writes waves and noise as a JPEG of 8 bits, or a GeoTIFF of 16, a fifth wider than high."""
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:edge, : edge * 6 // 5]
    waves = [120 + 60 * np.sin(x / (7 + band)) * np.cos(y / 11) for band in range(bands)]
    values = np.stack(waves) + rng.normal(scale=12, size=(bands, *x.shape))
    is_jpeg = path.suffix == ".jpg"
    pixels = values.clip(0, 255).astype(np.uint8) if is_jpeg else (20 * values.clip(0)).astype(np.uint16)
    how: dict[str, Any] = {"driver": "JPEG", "quality": JPEG_QUALITY} if is_jpeg else {"driver": "GTiff"}
    shape = {"count": bands, "height": edge, "width": x.shape[1], "dtype": pixels.dtype}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NotGeoreferencedWarning)
        with rasterio.open(path, "w", **how, **shape) as file:
            file.write(pixels)
