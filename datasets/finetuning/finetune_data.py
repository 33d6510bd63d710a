"""Labels on opened layers -> everything that fine-tuning needs to know of its targets before its first batch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from datasets.finetuning.dense_targets import DenseTargets
from datasets.finetuning.scene_targets import SceneGround, SceneSplit, SceneTargets, open_scene_targets
from datasets.finetuning.window_targets import WindowExamples, WindowTargets, point_examples, tile_examples
from datasets.folds.blocks import count_points
from datasets.folds.folds import Folds
from datasets.folds.make_folds import LABEL_CELL, LabelCells, folds_from_rectangles, make_folds, one_fold
from datasets.labels.label_map import LabelMap, seen_ground
from datasets.labels.open_labels import TargetGrid, open_labels
from datasets.labels.points import open_points
from datasets.layers.class_table import ClassTable
from datasets.survey.inference_survey import InferenceSurvey

EPOCH_WINDOWS = 512
"""Windows in an epoch on ground, where there is no natural number of them."""
VECTOR_ENDINGS = (".gpkg", ".geojson", ".json", ".shp", ".csv", ".fgb")
PRESENCE = ClassTable(
    codes=("absent", "present"), names=("absent", "present"), colours=("#b0b0b0", "#c0392b"), counts=(0, 0)
)
"""Classes of presence-only points: background is what the network takes for absence."""


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

    targets: DenseTargets | WindowTargets | SceneTargets
    folds: Folds | SceneSplit
    task: str
    classes: ClassTable | None
    presence_only: bool
    units: str
    labels: LabelMap | None
    notes: tuple[str, ...]

    @property
    def ground(self) -> DenseTargets | None:
        """The targets, if every pixel has one."""
        return self.targets if isinstance(self.targets, DenseTargets) else None

    @property
    def windows(self) -> WindowTargets | SceneTargets | None:
        """The targets, if whole windows or images have one each."""
        return None if isinstance(self.targets, DenseTargets) else self.targets

    def window_blocks(self) -> np.ndarray | None:
        """Number of the block that each window's centre lies in, (k,) int32; None for pixels, and for images."""
        if not isinstance(self.targets, WindowTargets):
            return None
        row, col = self.targets.examples.centres.T
        return self.targets.folds.block_at(row, col)

    @property
    def epoch_windows(self) -> int:
        """Windows in an epoch unless another number is asked for: each image once, and on ground a fixed number."""
        return len(self.targets.chosen) if isinstance(self.targets, SceneTargets) else EPOCH_WINDOWS

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

    @property
    def scale(self) -> int:
        """Target pixels along the edge of a base-scale pixel; 1 for windows."""
        return 1 if self.ground is None else self.ground.labels.scale

    def description(self) -> dict[str, Any]:
        """What a checkpoint must hold to predict: task, classes, unit."""
        table = self.classes
        return {
            "kind": self.kind,
            "scale": self.scale,
            "units": self.units,
            "codes": None if table is None else list(table.codes),
            "names": None if table is None else list(table.names),
            "colours": None if table is None else list(table.colours),
        }

    def summary_lines(self) -> list[str]:
        """What is predicted, as lines to log."""
        if self.classes is None:
            assert self.labels is not None
            return [f"{int(self.labels.count(LABEL_CELL).sum())} labelled pixels of {self.labels.grid.resolution:g}"]
        if self.windows is not None:
            counts = np.bincount(self.windows.examples.classes, minlength=self.outputs)
            what = "images to test" if isinstance(self.targets, SceneTargets) else "windows"
        else:
            assert self.labels is not None
            counts = self.labels.count(LABEL_CELL).sum(axis=(0, 1))
            what = "pixels"
        return [
            f"class {code} {name}: {count} {what}"
            for code, name, count in zip(self.classes.codes, self.names, counts, strict=True)
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
    """How folds are cut; see `make_folds`. `split` may also be `all`: everything is tested, for scoring alone."""

    split: str
    folds: int
    block: int
    buffer: int
    label_fraction: float
    early_stopping: bool
    seed: int
    label_seed: int
    rectangles: Sequence[Sequence[float]] | None = None


def open_targets(
    survey: InferenceSurvey,
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
    burned = LabelMap(labels, seen if scale == 1 else seen_ground(survey.zoomed(scale)), scale=scale)
    notes = [_dropped_note(burned.dropped, "labelled pixels", path)] if burned.dropped else []
    if task == "classification":
        examples = tile_examples(burned, size=survey.input_size, least_labelled=min_labelled)
        assert burned.classes is not None
        counts = _count_examples(examples, survey.shape, kinds=len(burned.classes.codes))
        cell = LABEL_CELL
    else:
        cell = max(
            LABEL_CELL // scale, 1
        )  # the same ground and labels, whatever the base pixel they are predicted from
        counts = burned.count(cell)
    names = None if burned.classes is None else burned.classes.names
    folds = _cut(counts, survey, split, names, cell=cell)
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
    survey: InferenceSurvey,
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
    counts = _count_examples(examples, survey.shape, kinds=len(table.codes))
    folds = _cut(counts, survey, split, table.names, cell=LABEL_CELL)
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


def _count_examples(examples: WindowExamples, shape: tuple[int, int], *, kinds: int) -> np.ndarray:
    """(cell rows, cell cols, K) examples in each cell of `LABEL_CELL` base-scale pixels."""
    row, col = examples.centres.T
    return count_points(row, col, examples.classes, shape=shape, cell=LABEL_CELL, kinds=kinds)


def _cut(
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
    return make_folds(
        labels,
        tile=survey.input_size,
        folds=split.folds,
        buffer=split.buffer,
        split=split.split,
        block=split.block,
        early_stopping=split.early_stopping,
        seed=split.seed,
        label_fraction=split.label_fraction,
        label_seed=split.label_seed,
    )


def _dropped_note(count: int, what: str, path: str) -> str:
    return f"labels {path}: {count} {what} lie where no layer has a valid pixel; they are neither trained on nor tested"


def open_scene_data(ground: SceneGround, test_path: str | None, *, label_fraction: float, seed: int) -> FinetuneData:
    """Classification of images.

    Args:
        ground: the images to train on.
        test_path: table of those to test; None: those held out.
        label_fraction: share of the training images to use.
        seed: decides which.

    Raises:
        ValueError, FileNotFoundError, OSError: they cannot be used, by name.
    """
    targets, split, table = open_scene_targets(ground, test_path, label_fraction=label_fraction, seed=seed)
    return FinetuneData(
        targets=targets,
        folds=split,
        task="classification",
        classes=table,
        presence_only=False,
        units="",
        labels=None,
        notes=(),
    )
