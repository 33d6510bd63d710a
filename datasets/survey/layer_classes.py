"""Finds the classes of a categorical layer: the codes of its pixels, checked against declared ones, with names."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from datasets.ground.grid import GDAL_ERRORS
from datasets.layers.class_table import MAX_CLASSES, default_colour, read_class_rows
from datasets.layers.encoding import EXACT, Encoding
from datasets.layers.kinds import CLASSES, kind_of
from datasets.layers.layer import Layer
from datasets.rasters.band import RasterBand
from datasets.rasters.legend import read_legend
from datasets.rasters.nodata import KNOWN_DUMMIES, listed

CHUNK_PIXELS = 2**22
"""Pixels read at a time to collect codes."""


def find_classes(band: RasterBand, declared: Encoding | None = None) -> tuple[Encoding, list[str]]:
    """The classes of a categorical layer.

    Args:
        band: the layer.
        declared: classes that a trained model knows; the layer may hold fewer, and none besides.

    Returns:
        An encoding with the codes, ascending, their names and colours; and warnings. The codes are the
        declared ones, else those of the table of the layer's `classes`, else those that its pixels hold.

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
    try:
        legend = read_legend(layer.path, layer.band)
    except GDAL_ERRORS:  # pixels of another source, which has no legend
        return _encoding(found, {}, {}), notes
    return _encoding(found, legend.names, legend.colours), notes


def layer_classes(
    bands: Sequence[RasterBand], declared: Sequence[Encoding | None] | None = None
) -> tuple[list[Encoding | None], list[str]]:
    """The classes of each categorical layer, None for other layers; and warnings.

    Raises:
        ValueError: a layer holds a class that was not declared, or that cannot be one.
    """
    tables: list[Encoding | None] = []
    notes = []
    for number, band in enumerate(bands):
        if not kind_of(band.layer).is_classes:
            tables.append(None)
            continue
        table, found = find_classes(band, declared[number] if declared and number < len(declared) else None)
        tables.append(table)
        notes += [f"layer '{band.layer.name}': {text}" for text in found]
    return tables, notes


def read_classes(layer: Layer) -> Encoding:
    """Classes that a table declares: a CSV with the columns `code`, `name` and, if wanted, `colour` ('#rrggbb').

    Raises:
        FileNotFoundError: there is no such table.
        ValueError: a column is missing, a code is no whole number or repeated, or there are fewer than two.
    """
    where = f"{layer.where}: class table {layer.classes}"
    rows = [row for _, row in read_class_rows(Path(str(layer.classes)), where)]
    try:
        codes = [float(row["code"]) for row in rows]
    except ValueError as error:
        raise ValueError(f"{where}: {error}; expected whole numbers as codes") from error
    _check_codes(layer, sorted(codes))
    if len(set(codes)) != len(codes) or len(codes) < 2:
        raise ValueError(f"{where}: codes {listed(codes)}, expected at least two and each once; correct it")
    ordered = sorted(zip(codes, rows, strict=True), key=lambda pair: pair[0])
    return _encoding(
        tuple(code for code, _ in ordered),
        {code: row["name"] for code, row in ordered},
        {code: row["colour"] for code, row in ordered},
    )


def _encoding(codes: tuple[float, ...], names: Mapping[Any, str], colours: Mapping[Any, str]) -> Encoding:
    """An encoding of these codes, with names and colours for those that have none."""
    return Encoding(
        CLASSES,
        centres=(),
        scales=(),
        codes=codes,
        names=tuple(names.get(code, "") or f"{code:g}" for code in codes),
        colours=tuple(colours.get(code, "") or default_colour(number) for number, code in enumerate(codes)),
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
