"""Opens labels on the ground of opened layers: targets, classes and folds of a fine-tuning run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from datasets.finetuning.dense_targets import DenseTargets
from datasets.finetuning.scene_targets import SceneGround, SceneSplit, SceneTargets, open_scene_targets
from datasets.finetuning.window_targets import WindowExamples, WindowTargets, point_examples, tile_examples
from datasets.folds.blocks import count_points
from datasets.folds.folds import Folds
from datasets.folds.make_folds import (
    LABEL_CELL,
    LabelCells,
    TooFewLabels,
    folds_from_rectangles,
    make_folds,
    one_fold,
)
from datasets.ground.grid import length_text
from datasets.labels.label_map import LabelMap, seen_ground
from datasets.labels.open_labels import TargetGrid, are_points, open_labels
from datasets.labels.points import open_points
from datasets.layers.class_table import ClassTable
from datasets.survey.inference_survey import InferenceSurvey
from datasets.survey.overview import MOST_TILES, ground_map

MOST_PRESENCES = 5000
"""Places of deposits that a checkpoint stores, to be drawn on maps."""
EPOCH_WINDOWS = 512
"""Default number of windows in an epoch on ground."""
PRESENCE = ClassTable(
    codes=("absent", "present"), names=("absent", "present"), colours=("#b0b0b0", "#c0392b"), counts=(0, 0)
)
"""Classes of presence-only points: background is learned as absence."""


@dataclass(frozen=True)
class FinetuneData:
    """Targets of a fine-tuning run, and the folds that they are divided into.

    Attributes:
        targets: training and test examples.
        folds: which examples each fold trains on, validates on and tests.
        classes: names and colours; None for values.
        units: of the values.
        labels: all labels on target pixels; None for points and images.
        presence_only: classes are background and presence.
        warnings: warnings for the user.
    """

    targets: DenseTargets | WindowTargets | SceneTargets
    folds: Folds | SceneSplit
    classes: ClassTable | None
    units: str = ""
    labels: LabelMap | None = None
    presence_only: bool = False
    warnings: tuple[str, ...] = ()

    @property
    def ground(self) -> DenseTargets | None:
        """The targets, if every pixel has one."""
        return self.targets if isinstance(self.targets, DenseTargets) else None

    @property
    def windows(self) -> WindowTargets | SceneTargets | None:
        """The targets, if whole windows or images have one each."""
        return None if isinstance(self.targets, DenseTargets) else self.targets

    @property
    def has_ground(self) -> bool:
        """True if labels lie on ground; False for images."""
        return not isinstance(self.targets, SceneTargets)

    @property
    def validates(self) -> bool:
        """True if each fold has ground for validation."""
        return isinstance(self.folds, Folds) and self.folds.early_stopping

    @property
    def window_centres(self) -> np.ndarray | None:
        """(k, 2) int64 base-scale (row, col) of each window's centre; None for pixels and for images."""
        return self.targets.examples.centres.astype(np.int64) if isinstance(self.targets, WindowTargets) else None

    def window_blocks(self) -> np.ndarray | None:
        """(k,) int32 block number of each window's centre; None for pixels and for images."""
        if not isinstance(self.targets, WindowTargets):
            return None
        row, col = self.targets.examples.centres.T
        return self.targets.folds.block_at(row, col)

    def presences(self, survey: InferenceSurvey) -> list[list[float]]:
        """[x, y] of the known presences in CRS units, at most `MOST_PRESENCES`; none of other labels."""
        if not self.presence_only or not isinstance(self.targets, WindowTargets):
            return []
        examples, grid, base = self.targets.examples, survey.stack.reference, survey.base_resolution
        rows, cols = examples.centres[np.asarray(examples.classes) == 1][:MOST_PRESENCES].T
        return np.stack([grid.left + cols * base, grid.top - rows * base], axis=1).tolist()

    def seen(self, survey: InferenceSurvey) -> np.ndarray:
        """(rows, cols) bool of target pixels, True where some layer of the ground has a valid one.

        Raises:
            OSError: a layer cannot be read.
        """
        return seen_ground(survey if self.scale == 1 else survey.zoomed(self.scale))

    @property
    def epoch_windows(self) -> int:
        """Default number of windows in an epoch: each image once, or `EPOCH_WINDOWS` on ground."""
        return len(self.targets.chosen) if isinstance(self.targets, SceneTargets) else EPOCH_WINDOWS

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the classes; none for values."""
        return () if self.classes is None else self.classes.names

    @property
    def outputs(self) -> int:
        """Number of outputs K of a network: classes, or one value."""
        return 1 if self.classes is None else len(self.classes.codes)

    @property
    def scale(self) -> int:
        """Target pixels along the edge of a base-scale pixel; 1 for windows."""
        return 1 if self.ground is None else self.ground.labels.scale

    def description(self) -> dict[str, Any]:
        """Scale, units and classes, as a checkpoint stores them for prediction."""
        table = self.classes
        return {
            "scale": self.scale,
            "units": self.units,
            "codes": None if table is None else list(table.codes),
            "names": None if table is None else list(table.names),
            "colours": None if table is None else list(table.colours),
        }

    def summary_lines(self) -> list[str]:
        """Classes or values and the number of their labels, as lines to log."""
        if self.classes is None:
            assert self.labels is not None
            grid, count = self.labels.grid, int(self.labels.count(LABEL_CELL).sum())
            return [f"{count} labelled pixels of {length_text(grid.resolution, grid.crs)}"]
        if self.windows is not None:
            counts = np.bincount(self.windows.examples.classes, minlength=self.outputs)
            what = "images to test" if isinstance(self.targets, SceneTargets) else "windows"
        else:
            assert self.labels is not None
            counts = self.labels.count(LABEL_CELL).sum(axis=(0, 1))
            what = "pixels"
        return [
            f"class {name if name == str(code) else f'{code} {name}'}: {count} {what}"
            for code, name, count in zip(self.classes.codes, self.names, counts, strict=True)
        ]

    def overview(self, survey: InferenceSurvey | SceneGround) -> dict[str, Any]:
        """Labels and folds as plain values for a page: numbers of labels, and where they and the folds lie.

        Args:
            survey: the layers, or the images.
        """
        found: dict[str, Any] = {"folds": self.folds.summary(), "classes": list(self.names), "label_unit": self.units}
        if not isinstance(survey, InferenceSurvey) or not isinstance(self.folds, Folds):
            return found
        grid, base = survey.stack.reference, survey.base_resolution
        blocks, numbers = self.folds.block_grid, self.folds.fold_numbers
        rectangles = [
            {"bounds": [grid.left + left * base, grid.top - (top + height) * base, *corner], "name": f"fold {fold}"}
            for fold in range(self.folds.count)
            for top, left, height, width in blocks.rectangles(numbers == fold)
            for corner in [(grid.left + (left + width) * base, grid.top - top * base)]
        ]
        place: dict[str, Any] = {}
        if self.labels is not None:
            labelled = self.labels.count(LABEL_CELL).sum(axis=2) / (LABEL_CELL * self.labels.scale) ** 2
            place = {"fraction": labelled.clip(0, 1), "cell": LABEL_CELL * base / grid.resolution_x}
        drawn = ground_map(grid, **place) | {"rectangles": rectangles, "points": self._example_places(survey)}
        return found | {"map": drawn}

    def _example_places(self, survey: InferenceSurvey) -> list[dict[str, Any]]:
        """Places of examples by class, as `overview` lists them; none of labels that every pixel has."""
        if not isinstance(self.targets, WindowTargets):
            return []
        examples, grid, base = self.targets.examples, survey.stack.reference, survey.base_resolution
        places = []
        for number, name in enumerate(self.names):
            rows, cols = examples.centres[np.asarray(examples.classes) == number][:MOST_TILES].T
            at = np.stack([grid.left + cols * base, grid.top - rows * base], axis=1)
            places.append({"name": str(name), "places": at.tolist()})
        return places


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
    """How labels are divided into folds; see `make_folds`. With `split` = `all` every label is tested.

    With `validation_optional` no ground is set aside for early stopping where that would leave too few labels.
    """

    split: str
    folds: int
    block: int
    buffer: int
    label_fraction: float
    early_stopping: bool
    seed: int
    label_seed: int
    rectangles: Sequence[Sequence[float]] | None = None
    label_blocks: int | None = None
    validation_optional: bool = False


@dataclass(frozen=True)
class TargetOptions:
    """What is predicted, and how windows are cut.

    Attributes:
        per_pixel: every pixel has a target; else windows have one class each.
        has_classes: targets are classes; else values.
        scale: target pixels along the edge of a base-scale pixel.
        overlap: fraction of a training window that the next one repeats.
        min_labelled: windows: smallest labelled fraction of a tile.
        background_ratio: presence only: background windows per presence.
        background_distance: presence only: smallest distance of background from presences, base-scale pixels.
        jitter: largest shift of a training window around a point, base-scale pixels.
        class_codes: codes of a model that was trained before; others are refused.
    """

    per_pixel: bool
    has_classes: bool
    scale: int
    overlap: float
    min_labelled: float
    background_ratio: float
    background_distance: float
    jitter: int
    class_codes: Sequence[Any] | None = None


def open_targets(
    survey: InferenceSurvey, path: str, *, labels: LabelOptions, targets: TargetOptions, split: SplitOptions
) -> FinetuneData:
    """Reads labels on the survey's ground and divides them into folds.

    Args:
        survey: the layers.
        path: the labels.
        labels: how labels are read.
        targets: what is predicted, and how windows are cut.
        split: how labels are divided.

    Raises:
        ValueError, FileNotFoundError: the labels cannot be used, or leave nothing to train on or to test; the message
            names them.
    """
    valid = seen_ground(survey)
    if not targets.per_pixel and are_points(path, x_column=labels.x_column):
        return _open_points(survey, path, valid, labels=labels, targets=targets, split=split)
    burned = _burn_labels(survey, path, valid, labels=labels, targets=targets)
    names = None if burned.classes is None else burned.classes.names
    made: DenseTargets | WindowTargets
    if targets.per_pixel:
        # The same ground and labels, whatever the base pixel they are predicted from.
        cell = max(LABEL_CELL // targets.scale, 1)
        folds = _divide(burned.count(cell), survey, split, names, cell=cell)
        made = DenseTargets(survey, burned, folds, overlap=targets.overlap)
    else:
        assert burned.classes is not None
        kinds = len(burned.classes.codes)
        examples = tile_examples(burned, size=survey.input_size, least_labelled=targets.min_labelled)
        folds = _divide(_count_examples(examples, survey.shape, kinds=kinds), survey, split, names, cell=LABEL_CELL)
        made = WindowTargets(survey, examples, folds, kinds=kinds, jitter=0)
    dropped = [_dropped_warning(burned.dropped, "labelled pixels", path)] if burned.dropped else []
    return FinetuneData(
        targets=made,
        folds=folds,
        classes=burned.classes,
        units=burned.units,
        labels=burned,
        warnings=(*dropped, *folds.warnings),
    )


def target_grid(survey: InferenceSurvey, scale: int) -> TargetGrid:
    """The grid of target pixels, `scale` of them along the edge of a base-scale pixel."""
    grid = survey.stack.reference
    return TargetGrid(
        crs=grid.crs,
        left=grid.left,
        top=grid.top,
        resolution=survey.base_resolution / scale,
        rows=survey.shape[0] * scale,
        cols=survey.shape[1] * scale,
    )


def _burn_labels(
    survey: InferenceSurvey, path: str, valid: np.ndarray, *, labels: LabelOptions, targets: TargetOptions
) -> LabelMap:
    """Labels on target pixels, dropped where no layer is valid."""
    opened = open_labels(
        path,
        kind="classes" if targets.has_classes else "values",
        grid=target_grid(survey, targets.scale),
        column=labels.column,
        classes_csv=labels.classes_csv,
        band=labels.band,
        nodata=labels.nodata,
        class_codes=targets.class_codes,
        label_crs=labels.crs,
        x_column=labels.x_column,
        y_column=labels.y_column,
    )
    scale = targets.scale
    return LabelMap(opened, valid if scale == 1 else seen_ground(survey.zoomed(scale)), scale=scale)


def _open_points(
    survey: InferenceSurvey,
    path: str,
    valid: np.ndarray,
    *,
    labels: LabelOptions,
    targets: TargetOptions,
    split: SplitOptions,
) -> FinetuneData:
    """Windows around points, with one class each or presences only."""
    grid, codes = target_grid(survey, 1), targets.class_codes
    points = open_points(
        path,
        class_codes=codes if codes is not None and list(codes) != list(PRESENCE.codes) else None,
        grid=grid,
        column=labels.column,
        x_column=labels.x_column,
        y_column=labels.y_column,
        label_crs=labels.crs,
        nodata=labels.nodata,
        classes_csv=labels.classes_csv,
    )
    positions = np.stack(
        [(grid.top - points.xy[:, 1]) / grid.resolution, (points.xy[:, 0] - grid.left) / grid.resolution], axis=1
    )
    table = points.table or PRESENCE
    if codes is not None and list(codes) != list(table.codes):
        raise ValueError(
            f"labels {path}: classes {', '.join(map(str, table.codes))}; the checkpoint was trained on "
            f"{', '.join(map(str, codes))}; expected the same (--label_column names the column of classes)"
        )
    examples, left_out = point_examples(
        positions,
        points.classes,
        valid,
        background_ratio=targets.background_ratio,
        least_distance=targets.background_distance,
        seed=split.seed,
    )
    counts = _count_examples(examples, survey.shape, kinds=len(table.codes))
    folds = _divide(counts, survey, split, table.names, cell=LABEL_CELL)
    return FinetuneData(
        targets=WindowTargets(survey, examples, folds, kinds=len(table.codes), jitter=targets.jitter),
        folds=folds,
        classes=table,
        presence_only=points.classes is None,
        warnings=(*([_dropped_warning(left_out, "points", path)] if left_out else []), *folds.warnings),
    )


def _count_examples(examples: WindowExamples, shape: tuple[int, int], *, kinds: int) -> np.ndarray:
    """(cell rows, cell cols, K) examples in each cell of `LABEL_CELL` base-scale pixels."""
    row, col = examples.centres.T
    return count_points(row, col, examples.classes, shape=shape, cell=LABEL_CELL, kinds=kinds)


def _divide(
    counts: np.ndarray, survey: InferenceSurvey, split: SplitOptions, names: Sequence[str] | None, *, cell: int
) -> Folds:
    labels = LabelCells(counts, survey.shape, cell, wrap_columns=survey.wrap_columns, names=names)
    if split.split == "all":
        return one_fold(labels, tile=survey.input_size)
    if split.split == "from_checkpoint":
        assert split.rectangles is not None
        grid = survey.stack.reference
        return folds_from_rectangles(
            [(r[0], r[1], r[2], r[3]) for r in split.rectangles],
            labels,
            left=grid.left,
            top=grid.top,
            resolution=survey.base_resolution,
            buffer=split.buffer,
            seed=split.label_seed,
            label_fraction=split.label_fraction,
        )
    if not (split.early_stopping and split.validation_optional):
        return _cut_folds(labels, survey, split, early_stopping=split.early_stopping)
    folds: Folds | None = None
    try:
        folds = _cut_folds(labels, survey, split, early_stopping=True)
        why = _single_class(folds)
        if not why:
            return folds
    except TooFewLabels as error:
        why = str(error).split(";")[0]
    without = _cut_folds(labels, survey, split, early_stopping=False)
    if folds is not None and _single_class(without):
        return folds
    note = f"too few labels to set ground aside for validation ({why}): every fit trains all --epochs"
    return replace(without, warnings=(note, *without.warnings))


def _single_class(folds: Folds) -> str:
    """Which fold has labels of a single class to train on, where there are several classes; empty if none has."""
    for fold, counts in enumerate(folds.label_counts["trained_classes"]):
        if np.count_nonzero(counts) < 2 <= len(counts):
            return f"fold {fold} would have one class alone to train on"
    return ""


def _cut_folds(labels: LabelCells, survey: InferenceSurvey, split: SplitOptions, *, early_stopping: bool) -> Folds:
    """Folds of this ground by blocks or cells, with validation ground or without."""
    return make_folds(
        labels,
        tile=survey.input_size,
        folds=split.folds,
        buffer=split.buffer,
        split=split.split,
        block=split.block,
        early_stopping=early_stopping,
        seed=split.seed,
        label_fraction=split.label_fraction,
        label_blocks=split.label_blocks,
        label_seed=split.label_seed,
    )


def _dropped_warning(count: int, what: str, path: str) -> str:
    return f"labels {path}: {count} {what} lie where no layer has a valid pixel; they are neither trained on nor tested"


def open_scene_data(ground: SceneGround, test_path: str | None, *, label_fraction: float, seed: int) -> FinetuneData:
    """Images with one class each, to train on and to test.

    Args:
        ground: the images to train on.
        test_path: table of the images to test; None for those held out.
        label_fraction: fraction of the training images to use.
        seed: seed of their choice.

    Raises:
        ValueError, FileNotFoundError, OSError: they cannot be used, by name.
    """
    targets, split, table = open_scene_targets(ground, test_path, label_fraction=label_fraction, seed=seed)
    return FinetuneData(targets=targets, folds=split, classes=table)
