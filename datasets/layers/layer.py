"""A layer: one band of one raster with its name, kind, nodata rule, units, group and loss."""

from __future__ import annotations

from dataclasses import dataclass

from datasets.layers.paths import shown_path

DEFAULT_KIND = "continuous"
NO_TRANSFORM = "none"


@dataclass(frozen=True)
class Layer:
    """One band of one raster: a channel of the model, or several.

    Attributes:
        name: unique name, used in logs, tables and checkpoints.
        path: file, or anything else that GDAL opens (/vsi path, `netcdf:file.nc:variable`); of a layer in several
            sheets, all of them joined by `|`.
        band: number of the band, from 1.
        kind: a key of `datasets.layers.kinds.KINDS`: `continuous`, `categorical` (class codes), `circular` (degrees).
        group: label of the channel group, None = grouped by native resolution.
        nodata: stored value that means no data, besides the one that the file declares.
        units: physical units, for display.
        normalize: `standard` (mean and standard deviation), `robust` (median and quartiles) or `none`.
        loss_weight: weight in the loss, 0 = input only.
        kind_stated: True if a person has stated the kind: a continuous band may then carry a colour table.
        transform: a key of `datasets.layers.transforms.TRANSFORMS`, applied to continuous values before normalising.
        loss: the model's name of a loss, empty = the default of the kind.
        classes: table (CSV) that declares the class codes, None = those found in the file.
        dummies: stored values that training recognised as undeclared nodata; they are no data in other rasters, too.
    """

    name: str
    path: str
    band: int = 1
    kind: str = DEFAULT_KIND
    group: str | None = None
    nodata: float | None = None
    units: str = ""
    normalize: str = "standard"
    loss_weight: float = 1.0
    kind_stated: bool = False
    transform: str = NO_TRANSFORM
    loss: str = ""
    classes: str | None = None
    dummies: tuple[float, ...] = ()

    @property
    def where(self) -> str:
        """How messages name the layer: name, file and band."""
        return f"layer '{self.name}' ({self.files}, band {self.band})"

    @property
    def files(self) -> str:
        """How messages name its file, or its sheets."""
        return shown_path(self.path)

    @property
    def has_default_kind(self) -> bool:
        """True if nobody has stated the kind: the file may then decide it."""
        return self.kind == DEFAULT_KIND and not self.kind_stated

    @property
    def is_transformed(self) -> bool:
        """True if values are transformed before they are normalised."""
        return self.transform != NO_TRANSFORM
