"""The end of a fine-tuning run: a table of all methods, metrics.json and figures."""

from __future__ import annotations

import csv
import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from util.finetuning.scoring import SampledMap, ground_blocks, merged, target_window
from util.finetuning.tasks import Task
from util.metrics.scores import confusion_scores, confusion_table, summarise
from util.options.commands import after_finetuning
from util.plots.maps import Corner, Panel, Preview, layer_panels
from util.plots.score_maps import class_maps, point_maps, value_maps
from util.plots.scores import confusion_figure, methods_figure
from util.records.finetune_records import METRICS, FinetuneFiles

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Comparison:
    """What was compared, and how.

    Attributes:
        task: what was predicted.
        names: of the classes.
        methods: names of the methods, the main one first.
        folds: numbers of the folds that were run.
        split: options and counts of the split.
        leak_warning: a sentence that every output must bear if the split leaks; else empty.
        units: of values.
    """

    task: Task
    names: Sequence[str]
    methods: Sequence[str]
    folds: Sequence[int]
    split: Mapping[str, Any]
    leak_warning: str
    units: str


def report_run(run: Any, previews: Callable[[Any], Iterable[Preview]]) -> dict[str, Any]:
    """Reports a finished `util.finetuning.run.FinetuneRun` as `report` does; in the main process.

    Args:
        run: the run.
        previews: gives the layers of its ground that a picture shows.
    """
    data = run.inputs.data
    comparison = Comparison(
        task=run.inputs.task,
        names=data.names,
        methods=[method.name for method in run.methods],
        folds=run.folds,
        split=data.folds.summary(),
        leak_warning=data.folds.leak_warning,
        units=data.units,
    )
    if not data.has_ground:
        return report(comparison, run.files, data, None)
    survey = run.inputs.opened.survey
    return report(comparison, run.files, data, survey, layers=layer_panels(previews(survey)))


def log_checkpoint(path: Path) -> None:
    """Logs where the checkpoint of the last fit is, and the command that makes maps with it."""
    logger.info("checkpoint   %s (fitted on all labels, for main_inference)", path)
    for line in after_finetuning(path):
        logger.info("next: %s", line)


def report(
    comparison: Comparison, files: FinetuneFiles, data: Any, survey: Any, *, layers: Sequence[Panel] = ()
) -> dict[str, Any]:
    """Logs the scores of all methods, and writes metrics.json and figures; in the main process.

    Args:
        comparison: what was compared.
        files: the scores of the fits, and where everything goes.
        data: the targets, as `draw_map` takes them.
        survey: the layers' ground; None for images, of which no map is drawn.
        layers: maps of the layers, for the same figure.

    Returns:
        The scores, as in metrics.json.
    """
    metrics = collect(comparison, files)
    path = files.write(METRICS, metrics)
    for text in table_lines(comparison, metrics):
        logger.info("%s", text)
    figures = draw_scores(comparison, metrics, files)
    if survey is not None:
        figures.append(draw_map(comparison, files, data, survey, layers=layers))
    for figure in figures:
        logger.info("picture      %s", figure)
    logger.info("scores       %s", path)
    logger.info("tensorboard  tensorboard --logdir %s", files.log_dir)
    return metrics


def collect(comparison: Comparison, files: FinetuneFiles) -> dict[str, Any]:
    """All scores of each method: by fold, their mean and standard deviation, and for classes those of all folds pooled.

    Raises:
        ValueError: a fit that should be finished is not.
    """
    methods: dict[str, Any] = {}
    for method in comparison.methods:
        found = {fold: files.fold_scores(method, fold) for fold in comparison.folds}
        lost = [fold for fold, fold_scores in found.items() if fold_scores is None]
        if lost:
            raise ValueError(
                f"{files.output_dir}: the scores of {method}, fold {lost[0]} are gone; run it again with --resume auto"
            )
        scores = {fold: fold_scores[0] for fold, fold_scores in found.items() if fold_scores is not None}
        methods[method] = {"summary": summarise([of["test"] for of in scores.values()]), "folds": scores}
        if comparison.task.has_confusion:
            confusion = np.sum([of["test"]["confusion"] for of in scores.values()], axis=0)
            methods[method]["all_folds"] = confusion_scores(torch.from_numpy(confusion), comparison.names)
    return {
        "task": comparison.task.name,
        "headline": comparison.task.headline,
        "units": comparison.units,
        "warning": comparison.leak_warning or None,
        "split": comparison.split,
        "arms": methods,
    }


def table_lines(comparison: Comparison, metrics: Mapping[str, Any]) -> list[str]:
    """The table of all methods, mean and standard deviation over folds, as lines to log."""
    columns = [name for name in comparison.task.columns if name in metrics["arms"][comparison.methods[0]]["summary"]]
    width = max(len(method) for method in comparison.methods) + 2
    lines = [f"{'':{width}}" + "".join(f"{name:>26}" for name in columns)]
    for method in comparison.methods:
        summary = metrics["arms"][method]["summary"]
        lines.append(f"{method:{width}}" + "".join(f"{_mean_and_std(summary[name]):>26}" for name in columns))
    lines.append(
        f"means and standard deviations over {len(comparison.folds)} fold(s), {comparison.split['split']} split"
    )
    return lines + ([f"WARNING: {comparison.leak_warning}"] if comparison.leak_warning else [])


def _mean_and_std(number: Mapping[str, Any]) -> str:
    if number["mean"] is None:
        return "-"
    return f"{number['mean']:.4g}" + (f" +- {number['std']:.2g}" if number["std"] is not None else "")


def write_confusion(path: Path, confusion: Sequence[Sequence[int]], names: Sequence[str]) -> None:
    """Writes a confusion matrix as CSV, truth down, prediction across."""
    with open(path, "w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows(confusion_table(confusion, names))


def draw_scores(comparison: Comparison, metrics: Mapping[str, Any], files: FinetuneFiles) -> list[Path]:
    """Draws all methods, and curves or the confusion matrix of the main one; returns the figures' paths."""
    main, headline, warning = comparison.methods[0], comparison.task.headline, comparison.leak_warning
    values = {
        method: [of["test"][headline] for of in metrics["arms"][method]["folds"].values()]
        for method in comparison.methods
    }
    figure = methods_figure(values, score=headline, title=f"{headline} on test ground", warning=warning)
    paths = [files.draw("scores", figure)]
    for name, figure_of in comparison.task.curves:
        folds = metrics["arms"][main]["folds"]
        curves = {f"fold {fold}": of["test"][name] for fold, of in folds.items() if of["test"].get(name)}
        paths.append(files.draw(name, figure_of(curves, title=main, warning=warning)))
    if comparison.task.has_confusion:
        confusion = metrics["arms"][main]["all_folds"]["confusion"]
        write_confusion(files.output_dir / "confusion.csv", confusion, comparison.names)
        figure = confusion_figure(confusion, comparison.names, title=main, warning=warning)
        paths.append(files.draw("confusion", figure))
    return paths


def out_of_fold(comparison: Comparison, files: FinetuneFiles, name: str) -> list[np.ndarray]:
    """An array of the main method from every fold."""
    found = [files.fold_scores(comparison.methods[0], fold) for fold in comparison.folds]
    return [fold_scores[1][name] for fold_scores in found if fold_scores is not None]


@dataclass(frozen=True)
class MapFrame:
    """Properties that all maps share.

    Attributes:
        colours: of the classes, '#rrggbb'; none for values.
        base_pixel: edge of a base-scale pixel.
        length_unit: its unit, `m` of every projected CRS.
        corner: where maps lie.
        layers: maps of the layers, which are drawn below.
    """

    colours: Sequence[str]
    base_pixel: float
    length_unit: str
    corner: Corner
    layers: Sequence[Panel] = ()


def draw_map(
    comparison: Comparison, files: FinetuneFiles, data: Any, survey: Any, *, layers: Sequence[Panel] = ()
) -> Path:
    """Draws the predictions of the main method on test ground beside the labels; returns the figure's path.

    Args:
        comparison: what was compared.
        files: the fits' predictions, and where the figure goes.
        data: `classes`, `folds`, and targets as `ground` or as `windows`.
        survey: the layers' ground.
        layers: maps of the layers, which are drawn below.
    """
    grid = survey.stack.reference
    crs, factor = grid.crs, survey.metres_per_unit
    unit = "degrees" if crs.is_geographic else "m" if factor == 1 and crs.is_projected else crs.linear_units
    frame = MapFrame(
        colours=() if data.classes is None else data.classes.colours,
        base_pixel=survey.base_resolution * factor,
        corner=Corner(grid.left, grid.top, unit, factor),
        length_unit="degree" if crs.is_geographic else "m" if crs.is_projected else crs.linear_units,
        layers=layers,
    )
    if data.windows is None:
        labels, testing = data.ground.labels, data.folds.testing
        shape, size = survey.shape, survey.input_size
        return draw_ground(comparison, files, frame, labels=labels, testing=testing, shape=shape, size=size)
    centres, truth = data.windows.examples.centres, data.windows.examples.classes
    folds = data.folds.fold_at(centres[:, 0], centres[:, 1])
    return draw_points(comparison, files, frame, centres=centres, truth=truth, folds=folds, shape=survey.shape)


def draw_ground(
    comparison: Comparison,
    files: FinetuneFiles,
    frame: MapFrame,
    *,
    labels: Any,
    testing: Callable[..., np.ndarray],
    shape: tuple[int, int],
    size: int,
) -> Path:
    """Draws maps of truth, prediction, error and folds of the main method; each pixel as predicted where it was tested.

    Args:
        comparison: what was compared.
        files: the fits' predictions, and where the figure goes.
        frame: colours and units of maps.
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
        for fold in range(comparison.split["count"]):
            tested[here & testing(fold, *window, scale=labels.scale)] = fold
        fold_map.paint(window[0], window[1], tested)
    truth, folds, colours = truth_map.values, fold_map.values, frame.colours
    pixel_size, length_unit = frame.base_pixel / labels.scale * truth_map.step, frame.length_unit
    prediction = merged(out_of_fold(comparison, files, "map"))
    common: dict[str, Any] = {"pixel_size": pixel_size, "length_unit": length_unit, "warning": comparison.leak_warning}
    common |= {"corner": frame.corner, "layers": frame.layers}
    common["title"] = f"{comparison.methods[0]}: every pixel as predicted by the fit that was not trained on it"
    if comparison.names:
        figure = class_maps(truth, prediction, folds, names=comparison.names, colours=colours, **common)
    else:
        figure = value_maps(truth, prediction, folds, unit=comparison.units, **common)
    return files.draw("map", figure)


def draw_points(
    comparison: Comparison,
    files: FinetuneFiles,
    frame: MapFrame,
    *,
    centres: np.ndarray,
    truth: np.ndarray,
    folds: np.ndarray,
    shape: tuple[int, int],
) -> Path:
    """Draws the examples of the main method on the ground by truth, prediction, error and fold.

    Args:
        comparison: what was compared.
        files: the fits' predictions, and where the figure goes.
        frame: colours and units of maps.
        centres: (n, 2) base-scale (row, col) of all examples.
        truth: (n,) their classes.
        folds: (n,) the fold in which each is tested, -1 = in none.
        shape: (rows, cols) of the ground, base-scale pixels.
    """
    numbers = np.concatenate(out_of_fold(comparison, files, "numbers"))
    prediction = comparison.task.mapped_windows(np.concatenate(out_of_fold(comparison, files, "shares")))
    figure = point_maps(
        centres[numbers],
        truth[numbers],
        prediction,
        folds[numbers],
        names=comparison.names,
        colours=frame.colours,
        shape=shape,
        pixel_size=frame.base_pixel,
        length_unit=frame.length_unit,
        corner=frame.corner,
        layers=frame.layers,
        title=f"{comparison.methods[0]}: every example as predicted by the fit that was not trained on it",
        warning=comparison.leak_warning,
    )
    return files.draw("map", figure)
