"""The end of a fine-tuning run: a table of all arms, metrics.json and pictures."""

from __future__ import annotations

import csv
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from util.finetuning.scoring import SampledMap, ground_blocks, merged, target_window
from util.metrics.scores import HEADLINES, confusion_scores, confusion_table, summarise
from util.plots.score_maps import class_maps, point_maps, value_maps
from util.plots.scores import arms_figure, calibration_figure, confusion_figure, success_rate_figure
from util.records.finetune_records import FinetuneFiles

logger = logging.getLogger(__name__)

COLUMNS = {
    "segmentation": ("mean_iou", "mean_f1", "balanced_accuracy", "accuracy"),
    "regression": ("rmse", "mae", "r2"),
    "classification": ("top1", "top5", "balanced_accuracy", "mean_f1"),
    "prospectivity": ("roc_auc", "average_precision", "brier", "success_area"),
}
"""Scores in the table that is logged; metrics.json has all of them."""


@dataclass(frozen=True)
class Scored:
    """What was compared, and how.

    Attributes:
        kind: `segmentation`, `regression`, `classification` or `prospectivity`.
        names: of the classes.
        arms: names of the arms, the main one first.
        folds: numbers of the folds that were run.
        facts: of the split.
        leak: a sentence that every output must bear if the split leaks; else empty.
        units: of values.
    """

    kind: str
    names: Sequence[str]
    arms: Sequence[str]
    folds: Sequence[int]
    facts: Mapping[str, Any]
    leak: str
    units: str


def collect(scored: Scored, files: FinetuneFiles) -> dict[str, Any]:
    """All scores, per arm: of each fold, mean and spread over folds, and for classes those of all folds together.

    Raises:
        ValueError: a fit that should be finished is not.
    """
    arms: dict[str, Any] = {}
    for arm in scored.arms:
        found = {fold: files.outcome(arm, fold) for fold in scored.folds}
        lost = [fold for fold, outcome in found.items() if outcome is None]
        if lost:
            raise ValueError(
                f"{files.output_dir}: the scores of {arm}, fold {lost[0]} are gone; run it again with --resume auto"
            )
        scores = {fold: outcome[0] for fold, outcome in found.items() if outcome is not None}
        arms[arm] = {"summary": summarise([of["test"] for of in scores.values()]), "folds": scores}
        if scored.names and scored.kind != "prospectivity":
            confusion = np.sum([of["test"]["confusion"] for of in scores.values()], axis=0)
            arms[arm]["all_folds"] = confusion_scores(torch.from_numpy(confusion), scored.names)
    return {
        "task": scored.kind,
        "headline": HEADLINES[scored.kind],
        "units": scored.units,
        "warning": scored.leak or None,
        "split": scored.facts,
        "arms": arms,
    }


def table_lines(scored: Scored, metrics: Mapping[str, Any]) -> list[str]:
    """The table of all arms, mean and spread over folds, as lines to log."""
    columns = [name for name in COLUMNS[scored.kind] if name in metrics["arms"][scored.arms[0]]["summary"]]
    width = max(len(arm) for arm in scored.arms) + 2
    lines = [f"{'':{width}}" + "".join(f"{name:>26}" for name in columns)]
    for arm in scored.arms:
        summary = metrics["arms"][arm]["summary"]
        lines.append(f"{arm:{width}}" + "".join(f"{_mean_and_spread(summary[name]):>26}" for name in columns))
    lines.append(f"means and standard deviations over {len(scored.folds)} fold(s), {scored.facts['split']} split")
    return lines + ([f"WARNING: {scored.leak}"] if scored.leak else [])


def _mean_and_spread(number: Mapping[str, Any]) -> str:
    if number["mean"] is None:
        return "-"
    return f"{number['mean']:.4g}" + (f" +- {number['std']:.2g}" if number["std"] is not None else "")


def write_confusion(path: Path, confusion: Sequence[Sequence[int]], names: Sequence[str]) -> None:
    """Writes a confusion matrix as CSV, truth down, prediction across."""
    with open(path, "w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows(confusion_table(confusion, names))


def draw_scores(scored: Scored, metrics: Mapping[str, Any], files: FinetuneFiles) -> list[Path]:
    """Draws the arms beside each other and, of the main arm, what its kind of scores has curves or matrices for."""
    main, head = scored.arms[0], HEADLINES[scored.kind]
    arms = {arm: [of["test"][head] for of in metrics["arms"][arm]["folds"].values()] for arm in scored.arms}
    paths = [files.draw("scores", arms_figure(arms, score=head, title=f"{head} on test ground", warning=scored.leak))]
    if scored.kind == "prospectivity":
        for name, figure_of in (("success_rate", success_rate_figure), ("calibration", calibration_figure)):
            folds = metrics["arms"][main]["folds"]
            curves = {f"fold {fold}": of["test"][name] for fold, of in folds.items() if of["test"].get(name)}
            paths.append(files.draw(name, figure_of(curves, title=main, warning=scored.leak)))
    elif scored.names:
        confusion = metrics["arms"][main]["all_folds"]["confusion"]
        write_confusion(files.output_dir / "confusion.csv", confusion, scored.names)
        paths.append(
            files.draw("confusion", confusion_figure(confusion, scored.names, title=main, warning=scored.leak))
        )
    return paths


def out_of_fold(scored: Scored, files: FinetuneFiles, name: str) -> list[np.ndarray]:
    """An array of the main arm from every fold."""
    found = [files.outcome(scored.arms[0], fold) for fold in scored.folds]
    return [outcome[1][name] for outcome in found if outcome is not None]


@dataclass(frozen=True)
class MapFrame:
    """What maps have in common.

    Attributes:
        colours: of the classes, '#rrggbb'; none for values.
        base_resolution: edge of a base-scale pixel, CRS units.
        length_unit: of the CRS.
    """

    colours: Sequence[str]
    base_resolution: float
    length_unit: str


def draw_map(scored: Scored, files: FinetuneFiles, data: Any, survey: Any) -> Path:
    """Draws what the main arm predicted on test ground beside the truth; returns the picture's path.

    Args:
        scored: what was compared.
        files: where the fits' predictions lie, and the picture goes.
        data: `classes`, `folds`, and targets as `ground` or as `windows`.
        survey: the layers' ground.
    """
    crs = survey.stack.reference.crs
    metric = crs.is_projected and crs.linear_units.startswith("met")
    frame = MapFrame(
        colours=() if data.classes is None else data.classes.colours,
        base_resolution=survey.base_resolution,
        length_unit="degree" if crs.is_geographic else "m" if metric else crs.linear_units,
    )
    if data.windows is None:
        labels, testing = data.ground.labels, data.folds.testing
        shape, size = survey.shape, survey.input_size
        return draw_ground(scored, files, frame, labels=labels, testing=testing, shape=shape, size=size)
    centres, truth = data.windows.examples.centres, data.windows.examples.classes
    folds = data.folds.fold_at(centres[:, 0], centres[:, 1])
    return draw_points(scored, files, frame, centres=centres, truth=truth, folds=folds, shape=survey.shape)


def draw_ground(
    scored: Scored,
    files: FinetuneFiles,
    frame: MapFrame,
    *,
    labels: Any,
    testing: Callable[..., np.ndarray],
    shape: tuple[int, int],
    size: int,
) -> Path:
    """Draws maps of truth, prediction, error and folds of the main arm; each pixel as predicted where it was tested.

    Args:
        scored: what was compared.
        files: where the fits' predictions lie, and the picture goes.
        frame: how maps look.
        labels: all of them, with `values`, `scale`, `read` and `labelled`.
        testing: gives the pixels of a window that are tested in a fold.
        shape: (rows, cols) of the ground, base-scale pixels.
        size: edge of a training window, base-scale pixels.
    """
    truth_map, fold_map = SampledMap(labels.values.shape), SampledMap(labels.values.shape)
    for unit in ground_blocks(shape, size):
        window = target_window(unit, labels.scale)
        here = labels.labelled(*window)
        truth_map.paint(window[0], window[1], np.where(here, labels.read(*window), np.nan).astype(np.float32))
        tested = np.full(here.shape, np.nan, dtype=np.float32)
        for fold in range(scored.facts["count"]):
            tested[here & testing(fold, *window, scale=labels.scale)] = fold
        fold_map.paint(window[0], window[1], tested)
    truth, folds, colours = truth_map.values, fold_map.values, frame.colours
    pixel_size, length_unit = frame.base_resolution / labels.scale * truth_map.step, frame.length_unit
    prediction = merged(out_of_fold(scored, files, "map"))
    common: dict[str, Any] = {"pixel_size": pixel_size, "length_unit": length_unit, "warning": scored.leak}
    common["title"] = f"{scored.arms[0]}: every pixel as predicted by the fit that did not see it"
    if scored.names:
        figure = class_maps(truth, prediction, folds, names=scored.names, colours=colours, **common)
    else:
        figure = value_maps(truth, prediction, folds, unit=scored.units, **common)
    return files.draw("map", figure)


def draw_points(
    scored: Scored,
    files: FinetuneFiles,
    frame: MapFrame,
    *,
    centres: np.ndarray,
    truth: np.ndarray,
    folds: np.ndarray,
    shape: tuple[int, int],
) -> Path:
    """Draws the examples of the main arm on the ground by truth, prediction, error and fold.

    Args:
        scored: what was compared.
        files: where the fits' predictions lie, and the picture goes.
        frame: how maps look.
        centres: (n, 2) base-scale (row, col) of all examples.
        truth: (n,) their classes.
        folds: (n,) the fold in which each is tested, -1 = in none.
        shape: (rows, cols) of the ground, base-scale pixels.
    """
    numbers = np.concatenate(out_of_fold(scored, files, "numbers"))
    shares = np.concatenate(out_of_fold(scored, files, "shares"))
    prediction = shares[:, 1].astype(np.float64) if scored.kind == "prospectivity" else shares.argmax(axis=1)
    figure = point_maps(
        centres[numbers],
        truth[numbers],
        prediction,
        folds[numbers],
        names=scored.names,
        colours=frame.colours,
        shape=shape,
        pixel_size=frame.base_resolution,
        length_unit=frame.length_unit,
        title=f"{scored.arms[0]}: every example as predicted by the fit that did not see it",
        warning=scored.leak,
    )
    return files.draw("map", figure)
