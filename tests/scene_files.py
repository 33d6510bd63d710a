"""Small data sets of images in the layouts of fMoW-Sentinel, fMoW-RGB and EuroSAT."""

from __future__ import annotations

import json
import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import rasterio
from rasterio.errors import NotGeoreferencedWarning

CATEGORIES = ("airport", "dam", "zoo")
SIZES = ((18, 18), (20, 17), (16, 25))


def write_image(path: Path, values: np.ndarray, **options) -> Path:
    """Writes (bands, rows, cols) values as GeoTIFF, or as JPEG by its name, without coordinates."""
    path.parent.mkdir(parents=True, exist_ok=True)
    driver = "JPEG" if path.suffix == ".jpg" else "GTiff"
    count, height, width = values.shape
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NotGeoreferencedWarning)
        with rasterio.open(
            path, "w", driver=driver, count=count, height=height, width=width, dtype=values.dtype, **options
        ) as file:
            file.write(values)
    return path


def texture(number: int, *, bands: int = 13, shape: tuple[int, int] = (18, 18), kind: int = 0) -> np.ndarray:
    """(bands, rows, cols) uint16 waves whose length is by kind and whose phase is by number."""
    rng = np.random.default_rng(number)
    y, x = np.mgrid[: shape[0], : shape[1]]
    wave = np.sin(x / (2 + kind) + rng.uniform(0, 6)) * np.cos(y / (3 + kind) + rng.uniform(0, 6))
    gains = 200 + 20 * np.arange(bands)[:, None, None]
    return (1000 + gains * wave + rng.normal(scale=20, size=(bands, *shape))).astype(np.uint16)


def write_sentinel(folder: Path, *, split: str = "train", locations: int = 4, images: int = 2, first: int = 0) -> Path:
    """Writes fMoW-Sentinel: `locations` places of each category with `images` images each; returns the table."""
    lines = ["category,location_id,image_id,timestamp,polygon"]
    for kind, category in enumerate(CATEGORIES):
        for location in range(locations):
            place = f"{category}_{location}"
            for image in range(images):
                path = folder / split / category / place / f"{place}_{image}.tif"
                number = first + 100 * kind + 10 * location + image
                write_image(path, texture(number, shape=SIZES[number % 3], kind=kind))
                polygon = '"POLYGON ((1 2, 3 4, 5 6, 1 2))"'
                lines.append(f"{category},{location},{image},2016-01-0{image + 1}T10:00:00Z,{polygon}")
    return write_lines(folder / f"{split}.csv", lines)


def write_rgb(folder: Path, *, locations: int = 3, box: Sequence[float] = (4, 6, 20, 16)) -> Path:
    """Writes fMoW-RGB: an image of 32 x 30 pixels for each place, with its box; returns the table."""
    lines = ["category,image_path"]
    for kind, category in enumerate(CATEGORIES):
        for location in range(locations):
            place = f"{category}_{location}"
            path = folder / "train" / category / place / f"{place}_0_rgb.jpg"
            values = texture(100 * kind + location, bands=3, shape=(30, 32), kind=kind) // 8
            write_image(path, values.astype(np.uint8))
            content = {"gsd": 0.5, "bounding_boxes": [{"ID": 0, "category": category, "box": list(box)}]}
            path.with_suffix(".json").write_text(json.dumps(content), encoding="utf-8")
            lines.append(f"{category},{path.relative_to(folder).as_posix()}")
    return write_lines(folder / "train.csv", lines)


def write_euro_sat(folder: Path, *, images: int = 3) -> Path:
    """Writes EuroSAT: a folder for each class; returns the folder that they are in."""
    for kind, category in enumerate(("AnnualCrop", "Forest", "River")):
        for image in range(1, images + 1):
            path = folder / category / f"{category}_{image}.tif"
            write_image(path, texture(100 * kind + image, shape=(16, 16), kind=kind))
    return folder


def write_lines(path: Path, lines: Sequence[str]) -> Path:
    """Writes lines of text."""
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path
