"""Chooses, checks and scans the layers of a survey before it is built."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from datasets.ground.area_of_interest import AreaOfInterest
from datasets.layers.encoding import Encoding
from datasets.layers.layer import Layer
from datasets.layers.table import layers_from_directory, read_layers_table
from datasets.layers.transforms import TRANSFORMS
from datasets.rasters.band import RasterBand
from datasets.rasters.nodata import listed
from datasets.rasters.open_band import check_sheets
from datasets.rasters.scan import BandSummary, scan, with_positive_values_only, with_undeclared_nodata
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
    if data_dir is not None:
        check_sheets(kept)
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


@dataclass(frozen=True)
class TrainedLayers:
    """Layers that a model was trained on, as which those of other rasters are read.

    Attributes:
        layers: the layers in channel order.
        encodings: per layer, how its values become channels.
    """

    layers: Sequence[Layer]
    encodings: Sequence[Encoding]

    @property
    def classes(self) -> list[Encoding | None]:
        """Per layer, the classes that may occur in it; None for other layers."""
        return [encoding if encoding.is_classes else None for encoding in self.encodings]

    def read_as_trained(self, layers: Sequence[Layer], where: str) -> list[Layer]:
        """Layers of other rasters, to be read as these.

        Raises:
            ValueError: their names differ, or a table states another kind for one of them.
        """
        names, expected = [layer.name for layer in layers], [layer.name for layer in self.layers]
        if names != expected:
            raise ValueError(
                f"{where}: layers {', '.join(names)}; expected {', '.join(expected)} as in training; name and order "
                "them in the table like those"
            )
        return [as_trained(layer, known) for layer, known in zip(layers, self.layers, strict=True)]


def as_trained(layer: Layer, trained: Layer) -> Layer:
    """A layer of another raster, to be read as that of training: kind, classes, transform and recognised nodata.

    Raises:
        ValueError: the table states another kind for it.
    """
    if layer.kind_stated and layer.kind != trained.kind:
        raise ValueError(
            f"{layer.where}: kind is {layer.kind}, expected {trained.kind} as in training; correct the table, or give "
            "another layer this name"
        )
    return replace(
        layer,
        units=layer.units or trained.units,
        classes=None,
        kind=trained.kind,
        kind_stated=True,
        transform=trained.transform,
        loss=trained.loss,
        dummies=trained.dummies,
    )


def scan_bands(
    bands: Sequence[RasterBand], *, aoi: AreaOfInterest | None, trained: bool = False
) -> tuple[list[RasterBand], tuple[BandSummary, ...], list[str]]:
    """Scan every layer, and make undeclared nodata values that are recognised invalid.

    Args:
        bands: the layers.
        aoi: polygons outside which pixels are invalid.
        trained: they are layers of a trained model (see `scan`): values that their transforms cannot take are made
            invalid.

    Returns:
        The bands, whose layers state the dummies recognised; their summaries; and warnings.

    Raises:
        ValueError: a layer cannot be used, or none has a valid pixel.
    """
    bands = [replace(band, aoi=aoi) for band in bands] if aoi is not None else list(bands)
    summaries, notes = [], []
    for number, band in enumerate(bands):
        band, summary, remarks = _scan_band(band, trained=trained)
        notes += [f"layer '{band.layer.name}': {text}" for text in (*remarks, *band.notes, *summary.suspicious)]
        bands[number] = band
        summaries.append(summary)
    if not any(summary.valid_fraction for summary in summaries):
        raise ValueError(f"none of the {len(bands)} layers has a valid pixel: {'; '.join(notes)}")
    return bands, tuple(summaries), notes + _repeated_layers(bands, summaries)


def _scan_band(band: RasterBand, *, trained: bool) -> tuple[RasterBand, BandSummary, list[str]]:
    """Scan a layer; returns it with what is invalid in it, its summary, and remarks about that."""
    remarks = []
    known = with_undeclared_nodata(band, band.layer.dummies)
    if known is not band:
        remarks.append(f"{listed(band.layer.dummies)} counts as no-data, as recognised in training")
    band, summary = known, scan(known, trained=trained)
    if TRANSFORMS[band.layer.transform].only_positive and summary.minimum <= 0:
        band = with_positive_values_only(band)
        summary = scan(band, trained=trained)
        remarks.append(f"values of 0 and below have no transform {band.layer.transform}: they count as no-data")
    if summary.dummies:
        band = with_undeclared_nodata(band, summary.dummies)
        band = replace(band, layer=replace(band.layer, dummies=(*band.layer.dummies, *summary.dummies)))
        remarks.append(
            f"{listed(summary.dummies)} is not declared as nodata but stands far from all other values: taken for "
            "no-data; set nodata in layers.csv, or in the file, to state it"
        )
    return band, summary, remarks


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
