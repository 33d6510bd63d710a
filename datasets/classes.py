"""Classes of a categorical layer: the codes that its pixels hold, checked against those declared, with names."""

from __future__ import annotations

import csv
import logging
import re
import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import rasterio
from rasterio.errors import NotGeoreferencedWarning

from datasets.band import GDAL_ERRORS, RasterBand
from datasets.kinds import EXACT, MAX_CLASSES, Encoding
from datasets.layers import Layer
from datasets.validity import KNOWN_DUMMIES, listed

logger = logging.getLogger(__name__)

CHUNK_PIXELS = 2**22
"""Pixels looked at together when codes are collected."""


def find_classes(band: RasterBand, declared: Encoding | None = None) -> tuple[Encoding, list[str]]:
    """The classes of a categorical layer.

    Args:
        band: the layer.
        declared: classes that a trained model knows; the layer may hold fewer, and none besides.

    Returns:
        An encoding with the codes, ascending, and their names and colours where a table or the file has them; and notes
        for the user. The codes are the declared ones, else those of the table of the layer's `classes`, else those
        that its pixels hold.

    Raises:
        ValueError: a code is no whole number, was never declared, or there are too many or fewer than two.
        FileNotFoundError: there is no such table.
    """
    layer = band.layer
    found = _codes(band)
    table = declared or (None if layer.classes is None else read_classes(layer))
    if table is not None:
        strange = sorted(set(found) - set(table.codes))
        if strange:
            where = "the checkpoint" if declared else layer.classes
            raise ValueError(
                f"{layer.where}: class code {listed(strange)} is not among the classes of {where} "
                f"({listed(table.codes)}); reclassify it, declare it as nodata, or "
                + ("train on a map that has it" if declared else "add it to the table")
            )
        return table, []
    if len(found) < 2:
        raise ValueError(
            f"{layer.where}: {len(found)} class ({listed(found)}), expected at least two; leave the layer out"
        )
    notes = [
        f"class code {code:g} is often a dummy: taken for a class; set nodata in layers.csv if it means no data"
        for code in found
        if code in KNOWN_DUMMIES
    ]
    names, colours = _labels_in_file(layer, found)
    return Encoding("categorical", locations=(), spreads=(), codes=found, names=names, colours=colours), notes


def layer_classes(
    bands: Sequence[RasterBand], declared: Sequence[Encoding | None] | None = None
) -> tuple[list[Encoding | None], list[str]]:
    """The classes of each categorical layer, None for other layers; and notes for the user.

    Raises:
        ValueError: a layer holds a class that was not declared, or that cannot be one.
    """
    tables: list[Encoding | None] = []
    notes = []
    for number, band in enumerate(bands):
        if band.layer.kind != "categorical":
            tables.append(None)
            continue
        table, found = find_classes(band, declared[number] if declared and number < len(declared) else None)
        tables.append(table)
        notes += [f"layer '{band.layer.name}': {text}" for text in found]
    return tables, notes


def read_classes(layer: Layer) -> Encoding:
    """Classes that a table declares: a CSV with a column `code`, and `name` and `colour` ('#rrggbb') if wanted.

    Raises:
        FileNotFoundError: there is no such table.
        ValueError: it has no column `code`, a code is no whole number or repeated, or there are fewer than two.
    """
    path = Path(str(layer.classes))
    if not path.is_file():
        raise FileNotFoundError(f"{layer.where}: classes {path}: no such file; expected a CSV with a column 'code'")
    with open(path, newline="", encoding="utf-8-sig") as stream:
        rows = [{str(k).strip().lower(): (v or "").strip() for k, v in row.items()} for row in csv.DictReader(stream)]
    if not rows or "code" not in rows[0]:
        raise ValueError(
            f"{layer.where}: classes {path}: no column 'code' or no row below it; expected a comma-separated header "
            "with 'code', and 'name' and 'colour' if wanted"
        )
    try:
        codes = [float(row["code"]) for row in rows]
    except ValueError as error:
        raise ValueError(f"{layer.where}: classes {path}: {error}; expected whole numbers as codes") from error
    _check_codes(layer, sorted(codes))
    if len(set(codes)) != len(codes) or len(codes) < 2:
        raise ValueError(
            f"{layer.where}: classes {path}: codes {listed(codes)}, expected at least two and each once; correct it"
        )
    ordered = sorted(zip(codes, rows, strict=True), key=lambda pair: pair[0])
    names = tuple(row.get("name", "") for _, row in ordered)
    colours = tuple(row.get("colour", row.get("color", "")) for _, row in ordered)
    return Encoding(
        "categorical",
        locations=(),
        spreads=(),
        codes=tuple(code for code, _ in ordered),
        names=names if any(names) else (),
        colours=colours if all(re.fullmatch("#[0-9a-fA-F]{6}", colour) for colour in colours) else (),
    )


def _codes(band: RasterBand) -> tuple[float, ...]:
    """The distinct valid values of a layer, ascending."""
    grid = band.grid
    height = max(1, CHUNK_PIXELS // grid.cols)
    found: set[float] = set()
    for row in range(0, grid.rows, height):
        values = band.read(row, 0, min(height, grid.rows - row), grid.cols)
        found.update(np.unique(values[np.isfinite(values)]).tolist())
        _check_codes(band.layer, sorted(found))
    return tuple(sorted(found))


def _check_codes(layer: Layer, codes: Sequence[float]) -> None:
    odd = [code for code in codes if code != round(code) or abs(code) > EXACT]
    if odd:
        raise ValueError(
            f"{layer.where}: class code {odd[0]:.9g}, expected whole numbers up to {EXACT}; set kind=continuous in "
            "layers.csv if these are measurements, or reclassify"
        )
    if len(codes) > MAX_CLASSES:
        raise ValueError(
            f"{layer.where}: more than {MAX_CLASSES} classes, expected at most that; set kind=continuous in layers.csv "
            "if these are measurements, or reclassify"
        )


def _labels_in_file(layer: Layer, codes: Sequence[float]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Names (tags `class_<code>`) and colours (colour table) of the classes, empty where the file has none."""
    try:
        with warnings.catch_warnings(), rasterio.open(layer.path) as dataset:
            warnings.simplefilter("ignore", NotGeoreferencedWarning)
            tags = dataset.tags(layer.band)
            try:
                colours = dataset.colormap(layer.band)
            except ValueError:  # rasterio's way to say that there is none
                colours = {}
    except GDAL_ERRORS:
        logger.debug("%s: not a file with names of classes", layer.where)
        return (), ()
    names = tuple(tags.get(f"class_{code:g}", "") for code in codes)
    shades = tuple("#" + bytes(colours[int(code)][:3]).hex() for code in codes if int(code) in colours)
    return names if any(names) else (), shades if len(shades) == len(codes) else ()
