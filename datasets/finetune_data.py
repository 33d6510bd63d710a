"""Layers and labels -> everything that fine-tuning needs to know before its first batch.

`open_layers` opens the layers that a checkpoint was trained on, or others from scratch; `open_targets` reads the labels
on them and cuts the folds. Both refuse, by name, what cannot be used.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from datasets.classes import ClassTable
from datasets.folds import LABEL_CELL, Folds, folds_from_rectangles, make_folds
from datasets.grid import fits_memory, open_survey
from datasets.label_map import LabelMap, seen_ground
from datasets.labels import TargetGrid, open_labels
from datasets.layers import Layer
from datasets.points import open_points
from datasets.reopen import ReopenedSurvey, reopen_survey, stored_layers
from datasets.sample_survey import labels_of_sample
from datasets.targets import DenseTargets
from datasets.window_targets import WindowTargets, point_examples, tile_examples

logger = logging.getLogger(__name__)

VECTOR_ENDINGS = (".gpkg", ".geojson", ".json", ".shp", ".csv", ".fgb")
PRESENCE = ClassTable(
    codes=("absent", "present"), names=("absent", "present"), colours=("#b0b0b0", "#c0392b"), counts=(0, 0)
)
"""Classes of presence-only points: background is what the network takes for absence."""


@dataclass(frozen=True)
class OpenedLayers:
    """Layers to fine-tune on.

    Attributes:
        survey: where windows are cut out of.
        layers: in channel order, as a checkpoint holds them.
        statistics: per layer location and spread, as a checkpoint holds them.
        channels: `in_chans` and `channel_groups` for a network from scratch; empty where a checkpoint says it.
    """

    survey: ReopenedSurvey
    layers: list[dict[str, Any]]
    statistics: list[dict[str, Any]]
    channels: dict[str, Any]


@dataclass(frozen=True)
class FinetuneData:
    """What is predicted from what.

    Attributes:
        targets: training and test examples.
        folds: which is which.
        task: `segmentation`, `regression` or `classification`.
        classes: names and colours; None for values.
        presence_only: classes are background and presence.
        units: of the values.
        labels: all labels on target pixels; None for points.
        notes: what a user should know.
    """

    targets: DenseTargets | WindowTargets
    folds: Folds
    task: str
    classes: ClassTable | None
    presence_only: bool
    units: str
    labels: LabelMap | None
    notes: tuple[str, ...]

    @property
    def kind(self) -> str:
        """How it is scored: as the task, or `prospectivity` for presences."""
        return "prospectivity" if self.presence_only else self.task

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the classes; none for values."""
        return () if self.classes is None else self.classes.names

    @property
    def outputs(self) -> int:
        """Number of outputs K of a network: classes, or one value."""
        return 1 if self.classes is None else len(self.classes.codes)

    def description(self) -> dict[str, Any]:
        """What a checkpoint must hold to predict: task, classes, unit."""
        table = self.classes
        return {
            "kind": self.kind,
            "scale": 1 if self.labels is None else self.labels.scale,
            "units": self.units,
            "codes": None if table is None else list(table.codes),
            "names": None if table is None else list(table.names),
            "colours": None if table is None else list(table.colours),
        }

    def lines(self) -> list[str]:
        """What is predicted, as lines to log."""
        if isinstance(self.targets, WindowTargets):
            counts = np.bincount(self.targets.examples.classes, minlength=self.outputs)
            what = "windows"
        elif self.labels is not None and self.classes is not None:
            counts = self.labels.count(LABEL_CELL).sum(axis=(0, 1))
            what = "pixels"
        else:
            assert self.labels is not None
            return [f"{int(self.labels.count(LABEL_CELL).sum())} labelled pixels of {self.labels.grid.resolution:g}"]
        return [
            f"class {code} {name}: {count} {what}"
            for code, name, count in zip(self.classes.codes, self.names, counts, strict=True)
        ]


def open_layers(
    stored: Mapping[str, Any] | None,
    *,
    data_dir: str | None,
    layers_table: str | None,
    hidden: Sequence[int],
    input_size: int | None,
    base_resolution: float | None,
    extent: str | None,
    reproject: bool,
    cache: str,
    local_ranks: int,
    allow_missing: bool,
    scratch: Mapping[str, Any],
) -> OpenedLayers:
    """Opens the layers of a checkpoint, where they lay or by name among others; or any layers, from scratch.

    Args:
        stored: the checkpoint; None to fine-tune from scratch.
        data_dir: directory of rasters.
        layers_table: table of layers instead.
        hidden: channels shown as no-data, beside those that pre-training hid.
        input_size: base-scale pixels along a window's edge; default the checkpoint's.
        base_resolution: edge of a base-scale pixel, CRS units; default the checkpoint's.
        extent: `union` or `intersection`; default the checkpoint's, or union.
        reproject: warp layers to the first layer's CRS.
        cache: `auto`, `ram` or `none`.
        local_ranks: processes on this machine that each hold the layers.
        allow_missing: go on without layers that are not there.
        scratch: further arguments of `open_survey`, used without a checkpoint.

    Raises:
        ValueError, FileNotFoundError: the layers are not there or cannot be used, by name.
    """
    if data_dir is not None and layers_table is not None:
        raise ValueError("give one of --data_dir and --train_path, or neither for the layers of the checkpoint")
    if stored is None:
        survey = open_survey(
            data_dir=data_dir,
            layers_table=layers_table,
            input_size=input_size or 48,
            base_resolution=base_resolution,
            extent=extent or "union",
            reproject=reproject,
            val_fraction=0.0,
            min_valid=0.0,
            cache="none",
            **scratch,
        )
        layers, statistics = [asdict(layer) for layer in survey.layers], [asdict(item) for item in survey.statistics]
        channels = {"in_chans": len(layers), "channel_groups": survey.groups}
        size, base, was_hidden = survey.input_size, survey.base_resolution, ()
        data_dir = layers_table = None
        trained: Mapping[str, Any] = {"extent": extent, "reproject": reproject}
    else:
        layers, statistics, channels, trained = stored["layers"], stored["statistics"], {}, stored["options"]
        size = input_size or stored["model_config"]["img_size"]
        base = base_resolution or stored.get("base_resolution") or trained.get("base_resolution")
        was_hidden = trained.get("masked_bands") or ()
    wrong = [channel for channel in hidden if channel >= len(layers)]
    if wrong:
        raise ValueError(f"--masked_bands {wrong[0]}: there are {len(layers)} layers, expected 0 to {len(layers) - 1}")
    if len({*hidden, *was_hidden}) == len(layers):
        raise ValueError(
            "every layer is hidden, so there is nothing to predict from; show at least one (--masked_bands)"
        )
    survey = reopen_survey(
        stored_layers(layers),
        data_dir=data_dir,
        layers_table=layers_table,
        location=[item["location"] for item in statistics],
        spread=[item["spread"] for item in statistics],
        input_size=size,
        scales=(1,),
        base_resolution=base,
        finest_scale=max(trained.get("scales") or (1,)),
        hidden=[*hidden, *was_hidden],
        extent=extent or trained.get("extent") or "union",
        reproject=reproject or bool(trained.get("reproject")),
        allow_missing=allow_missing,
    )
    if fits_memory(survey.stack, cache, local_ranks):
        survey.stack.load()
    return OpenedLayers(survey, layers, statistics, channels)


def labels_path(labels: str | None, task: str, layers: Sequence[Layer]) -> str:
    """The labels: as given, or those that lie beside the sample survey's layers.

    Raises:
        ValueError: none are given and the layers are not the sample survey's.
    """
    if labels is not None:
        return labels
    found = labels_of_sample(layers[0].path, task)
    if found is None:
        raise ValueError(
            "--labels is missing: expected a class raster, a raster of values, or a vector file (without it, only the "
            "sample survey's own labels are known)"
        )
    logger.info("no --labels given: using the sample survey's, %s", found)
    return str(found)


def layers_that_are(labels: str, band: int, layers: Sequence[Layer]) -> list[int]:
    """Channels whose pixels are the labels themselves: they must be hidden, or there is nothing to predict."""
    path = Path(labels)
    return [
        channel
        for channel, layer in enumerate(layers)
        if path.exists() and os.path.exists(layer.path) and path.samefile(layer.path) and layer.band == band
    ]


@dataclass(frozen=True)
class LabelOptions:
    """How labels are read; see `open_labels` and `open_points`."""

    column: str | None = None
    band: int = 1
    nodata: float | None = None
    classes_csv: str | None = None
    crs: str | None = None
    x_column: str | None = None
    y_column: str | None = None


@dataclass(frozen=True)
class SplitOptions:
    """How folds are cut; see `make_folds`."""

    split: str
    folds: int
    block: int
    buffer: int
    label_fraction: float
    early_stopping: bool
    seed: int
    rectangles: Sequence[Sequence[float]] | None = None


def open_targets(
    survey: ReopenedSurvey,
    path: str,
    *,
    task: str,
    how: LabelOptions,
    split: SplitOptions,
    scale: int,
    overlap: float,
    min_labelled: float,
    background_ratio: float,
    background_distance: float,
    jitter: int,
    class_codes: Sequence[Any] | None = None,
) -> FinetuneData:
    """Reads labels on the survey's ground and cuts the folds.

    Args:
        survey: the layers.
        path: the labels.
        task: `segmentation`, `regression` or `classification`.
        how: how labels are read.
        split: how folds are cut.
        scale: target pixels along the edge of a base-scale pixel.
        overlap: share of a training window that the next repeats.
        min_labelled: classes of tiles: least share of labelled ground.
        background_ratio: presence only: windows of background for each presence.
        background_distance: presence only: their least distance from presences, base-scale pixels.
        jitter: most base-scale pixels by which a training window around a point is shifted.
        class_codes: codes of a model that was trained before; others are refused.

    Raises:
        ValueError, FileNotFoundError: the labels cannot be used, or leave nothing to train on or to test, by name.
    """
    grid = survey.stack.reference
    target = TargetGrid(
        crs=grid.crs,
        left=grid.left,
        top=grid.top,
        resolution=survey.base_resolution / scale,
        rows=survey.shape[0] * scale,
        cols=survey.shape[1] * scale,
    )
    seen = seen_ground(survey)
    if task == "classification" and _holds_points(path):
        return _open_points(
            survey,
            path,
            replace(target, resolution=survey.base_resolution, rows=survey.shape[0], cols=survey.shape[1]),
            seen,
            how=how,
            split=split,
            background_ratio=background_ratio,
            background_distance=background_distance,
            jitter=jitter,
            class_codes=class_codes,
        )
    kind = "values" if task == "regression" else "classes"
    labels = open_labels(
        path,
        kind=kind,
        grid=target,
        column=how.column,
        classes_csv=how.classes_csv,
        band=how.band,
        nodata=how.nodata,
        class_codes=class_codes,
        label_crs=how.crs,
        x_column=how.x_column,
        y_column=how.y_column,
    )
    burned = LabelMap(labels, seen, scale=scale)
    notes = [_dropped_note(burned.dropped, "labelled pixels", path)] if burned.dropped else []
    if task == "classification":
        examples = tile_examples(burned, size=survey.input_size, least_labelled=min_labelled)
        assert burned.classes is not None
        counts = _count_points(examples.centres, examples.classes, survey.shape, kinds=len(burned.classes.codes))
    else:
        counts = burned.count(LABEL_CELL)
    names = None if burned.classes is None else burned.classes.names
    folds = _cut(counts, survey, split, names)
    targets: DenseTargets | WindowTargets
    if task == "classification":
        assert burned.classes is not None
        targets = WindowTargets(survey, examples, folds, kinds=len(burned.classes.codes), jitter=0)
    else:
        targets = DenseTargets(survey, burned, folds, overlap=overlap)
    return FinetuneData(
        targets=targets,
        folds=folds,
        task=task,
        classes=burned.classes,
        presence_only=False,
        units=burned.units,
        labels=burned,
        notes=(*notes, *folds.warnings),
    )


def _open_points(
    survey: ReopenedSurvey,
    path: str,
    grid: TargetGrid,
    seen: np.ndarray,
    *,
    how: LabelOptions,
    split: SplitOptions,
    background_ratio: float,
    background_distance: float,
    jitter: int,
    class_codes: Sequence[Any] | None,
) -> FinetuneData:
    """Windows around points, with a class each or presence alone."""
    points = open_points(
        path,
        class_codes=class_codes if class_codes is not None and list(class_codes) != list(PRESENCE.codes) else None,
        grid=grid,
        column=how.column,
        x_column=how.x_column,
        y_column=how.y_column,
        label_crs=how.crs,
        classes_csv=how.classes_csv,
    )
    positions = np.stack(
        [(grid.top - points.xy[:, 1]) / grid.resolution, (points.xy[:, 0] - grid.left) / grid.resolution], axis=1
    )
    table = points.table or PRESENCE
    if class_codes is not None and list(class_codes) != list(table.codes):
        raise ValueError(
            f"labels {path}: classes {', '.join(map(str, table.codes))}; the checkpoint was trained on "
            f"{', '.join(map(str, class_codes))}; expected the same (--label_column names the column of classes)"
        )
    examples, left_out = point_examples(
        positions,
        points.classes,
        seen,
        background_ratio=background_ratio,
        least_distance=background_distance,
        seed=split.seed,
    )
    counts = _count_points(examples.centres, examples.classes, survey.shape, kinds=len(table.codes))
    folds = _cut(counts, survey, split, table.names)
    return FinetuneData(
        targets=WindowTargets(survey, examples, folds, kinds=len(table.codes), jitter=jitter),
        folds=folds,
        task="classification",
        classes=table,
        presence_only=points.classes is None,
        units="",
        labels=None,
        notes=(*([_dropped_note(left_out, "points", path)] if left_out else []), *folds.warnings),
    )


def _holds_points(path: str) -> bool:
    """Whether a file is one of points; polygons and rasters are not."""
    if not path.lower().endswith(VECTOR_ENDINGS):
        return False
    if path.lower().endswith(".csv"):
        header = Path(path).read_text(encoding="utf-8-sig").splitlines()[:1] if Path(path).exists() else []
        return not any(
            name.strip().strip('"').lower() in ("polygon", "geometry", "wkt") for name in ",".join(header).split(",")
        )
    import pyogrio

    return "Point" in str(pyogrio.read_info(path).get("geometry_type")) if Path(path).exists() else True


def _count_points(centres: np.ndarray, classes: np.ndarray, shape: tuple[int, int], *, kinds: int) -> np.ndarray:
    """(cell rows, cell cols, K) examples in each cell of `LABEL_CELL` base-scale pixels."""
    counts = np.zeros((-(-shape[0] // LABEL_CELL), -(-shape[1] // LABEL_CELL), kinds), dtype=np.int64)
    rows = np.clip(centres[:, 0] // LABEL_CELL, 0, counts.shape[0] - 1).astype(np.int64)
    cols = np.clip(centres[:, 1] // LABEL_CELL, 0, counts.shape[1] - 1).astype(np.int64)
    np.add.at(counts, (rows, cols, classes), 1)
    return counts


def _cut(counts: np.ndarray, survey: ReopenedSurvey, split: SplitOptions, names: Sequence[str] | None) -> Folds:
    common: dict[str, Any] = {
        "shape": survey.shape,
        "cell": LABEL_CELL,
        "buffer": split.buffer,
        "seed": split.seed,
        "label_fraction": split.label_fraction,
        "names": names,
    }
    if split.split == "from_checkpoint":
        assert split.rectangles is not None
        grid = survey.stack.reference
        return folds_from_rectangles(
            [(r[0], r[1], r[2], r[3]) for r in split.rectangles],
            counts,
            left=grid.left,
            top=grid.top,
            resolution=survey.base_resolution,
            **common,
        )
    return make_folds(
        counts,
        tile=survey.input_size,
        folds=split.folds,
        split=split.split,
        block=split.block,
        early_stopping=split.early_stopping,
        **common,
    )


def _dropped_note(count: int, what: str, path: str) -> str:
    return f"labels {path}: {count} {what} lie where no layer has a valid pixel; they are neither trained on nor tested"
