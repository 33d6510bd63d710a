"""Chooses, checks and scans the layers of a survey before it is built."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from datasets.ground.area_of_interest import load_area_of_interest
from datasets.layers.layer import Layer
from datasets.layers.table import layers_from_directory, read_layers_table
from datasets.rasters.band import RasterBand
from datasets.rasters.nodata import listed
from datasets.rasters.scan import BandSummary, scan, with_undeclared_nodata
from datasets.rasters.xarray_band import layers_of_stores


def choose_layers(
    data_dir: str | None,
    layers_table: str | None,
    dropped_bands: Sequence[int],
    *,
    data_path: Sequence[str] | None = None,
    layer_dim: str | None = None,
    crs: str | None = None,
) -> list[Layer]:
    """The layers of a directory, a table or stores that xarray opens, without those dropped by number.

    Raises:
        ValueError, FileNotFoundError: none or several are given, they hold nothing, or nothing is left.
    """
    if sum(given is not None for given in (data_dir, layers_table, data_path)) != 1:
        raise ValueError(
            "give one of --data_dir (a directory of rasters) and --train_path (a table of layers), or with "
            "--dataset_type xarray --data_path (stores)"
        )
    if data_path is not None:
        layers = layers_of_stores(data_path, layer_dim=layer_dim, crs=crs)
    else:
        layers = layers_from_directory(data_dir) if data_dir is not None else read_layers_table(str(layers_table))
    check_numbers(dropped_bands, len(layers), "--dropped_bands")
    kept = [layer for number, layer in enumerate(layers) if number not in set(dropped_bands)]
    if not kept:
        raise ValueError(f"--dropped_bands leaves none of the {len(layers)} layers; keep at least one")
    return kept


def check_numbers(numbers: Sequence[int], count: int, flag: str) -> None:
    """Refuse layer numbers that do not exist.

    Raises:
        ValueError: names the flag and the number.
    """
    wrong = [n for n in numbers if not 0 <= n < count]
    if wrong:
        raise ValueError(
            f"{flag} names layer {wrong[0]}, expected 0..{count - 1} (there are {count} layers); "
            "describe_grids lists the numbers"
        )


def scan_bands(
    bands: Sequence[RasterBand], *, aoi: str | None, allow_constant: bool = False
) -> tuple[list[RasterBand], tuple[BandSummary, ...], list[str]]:
    """Scan every layer, and make undeclared nodata values that are recognised invalid.

    Args:
        bands: the layers.
        aoi: file of polygons outside which pixels are invalid.
        allow_constant: warn about layers with a single value instead of refusing them.

    Returns:
        The bands, their summaries, and warnings.
    """
    bands = list(bands)
    if aoi is not None:
        polygons = load_area_of_interest(aoi, bands[0].grid.crs)
        bands = [replace(band, aoi=polygons) for band in bands]
    summaries, notes = [], []
    for number, band in enumerate(bands):
        summary = scan(band, allow_constant=allow_constant)
        if summary.dummies:
            bands[number] = with_undeclared_nodata(band, summary.dummies)
            notes.append(
                f"layer '{band.layer.name}': {listed(summary.dummies)} is not declared as nodata but stands far from "
                "all other values: taken for no-data; set nodata in layers.csv, or in the file, to state it"
            )
        notes += [f"layer '{band.layer.name}': {text}" for text in (*band.notes, *summary.suspicious)]
        summaries.append(summary)
    return bands, tuple(summaries), notes + _repeated_layers(bands, summaries)


def _repeated_layers(bands: Sequence[RasterBand], summaries: Sequence[BandSummary]) -> list[str]:
    """Warnings about layers on one grid whose range, mean, standard deviation and valid fraction are all equal."""
    notes: list[str] = []
    first: dict[tuple[float, ...], str] = {}
    for band, summary in zip(bands, summaries, strict=True):
        key = (
            *(*band.grid.bounds, band.grid.rows, band.grid.cols, summary.valid_fraction),
            *(summary.minimum, summary.maximum, summary.mean, summary.std),
        )
        other = first.setdefault(key, band.layer.name)
        if other != band.layer.name:
            notes.append(
                f"layer '{band.layer.name}' seems to be the same as layer '{other}': grid, range, mean and standard "
                "deviation are equal, so that each gives the other away; leave one out (--dropped_bands)"
            )
    return notes
