"""The tasks of fine-tuning: everything that depends on the task is declared here, once.

A task is one line of `TASKS`, whose key is stored in checkpoints and metrics.json. Other code asks for the attributes
of a task and does not compare its name.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure

from util.finetuning.objectives import Objective, pixel_classes, pixel_values, window_classes
from util.metrics.scores import ClassificationScores, ProspectivityScores, RegressionScores, SegmentationScores
from util.options.finetune_values import LossSettings
from util.plots.scores import calibration_figure, success_rate_figure


@dataclass(frozen=True)
class Task:
    """What is predicted, how it is learned, and how it is scored.

    Attributes:
        name: its name in checkpoints and metrics.json.
        objective: builds the objective from statistics of the training labels and loss settings.
        new_scores: builds the scores to be updated with predictions, from class names and a device.
        headline: the score that speaks for the task and stops fits early; more is better.
        columns: scores in logs and tables, where they are defined.
        per_pixel: every pixel is predicted; else one class for a window.
        has_classes: classes are predicted; else values.
        is_ranking: the two classes are background and presence, and windows are ranked by the probability of presence.
        curves: figures that are drawn of scores, by their name among the scores.
        sample_labels: labels of the sample survey, relative to its folder; empty for tasks that --task does not offer.
        presence_task: name of the task in place of this one if the labels are presences only.
    """

    name: str
    objective: Callable[[Mapping[str, Any], LossSettings], Objective]
    new_scores: Callable[[Sequence[str], torch.device], Any]
    headline: str
    columns: tuple[str, ...]
    per_pixel: bool = False
    has_classes: bool = True
    is_ranking: bool = False
    curves: tuple[tuple[str, Callable[..., Figure]], ...] = ()
    sample_labels: str = ""
    presence_task: str = ""

    def head_arguments(self, outputs: int, *, scale: int, head: str, global_pool: bool) -> dict[str, Any]:
        """Arguments of `build_finetune_model` that decide the head.

        Args:
            outputs: number of outputs K.
            scale: target pixels along the edge of a base-scale pixel.
            head: kind of per-pixel head.
            global_pool: windows are classified by the mean of their tokens.
        """
        if self.per_pixel:
            return {"kind": "dense", "num_outputs": outputs, "scale": scale, "head": head}
        return {"kind": "classification", "num_classes": outputs, "global_pool": global_pool}

    def scored_windows(self, probabilities: np.ndarray) -> np.ndarray:
        """What the scores of windows are updated with: (n, K) class probabilities, or (n,) of presence."""
        return probabilities[:, 1] if self.is_ranking else probabilities

    def mapped_windows(self, probabilities: np.ndarray) -> np.ndarray:
        """What a map of windows shows: (n,) class numbers, or probabilities of presence."""
        return probabilities[:, 1].astype(np.float64) if self.is_ranking else probabilities.argmax(axis=1)

    @property
    def has_confusion(self) -> bool:
        """Whether its scores hold a confusion matrix."""
        return self.has_classes and not self.is_ranking


TASKS = {
    task.name: task
    for task in (
        Task(
            "segmentation",
            objective=pixel_classes,
            new_scores=lambda names, device: SegmentationScores(names, device=device),
            headline="mean_iou",
            columns=("mean_iou", "mean_f1", "balanced_accuracy", "accuracy"),
            per_pixel=True,
            sample_labels="labels/lithology.tif",
        ),
        Task(
            "regression",
            objective=pixel_values,
            new_scores=lambda names, device: RegressionScores(device=device),
            headline="r2",
            columns=("rmse", "mae", "r2"),
            per_pixel=True,
            has_classes=False,
            sample_labels="gravity.tif",
        ),
        Task(
            "classification",
            objective=window_classes,
            new_scores=lambda names, device: ClassificationScores(names, device=device),
            headline="balanced_accuracy",
            columns=("top1", "top5", "balanced_accuracy", "mean_f1"),
            sample_labels="labels/deposits.gpkg",
            presence_task="prospectivity",
        ),
        Task(
            "prospectivity",
            objective=window_classes,
            new_scores=lambda names, device: ProspectivityScores(device=device),
            headline="roc_auc",
            columns=("roc_auc", "average_precision", "brier", "success_area"),
            is_ranking=True,
            curves=(("success_rate", success_rate_figure), ("calibration", calibration_figure)),
        ),
    )
}
"""Tasks by name, the default of --task first."""

OFFERED = tuple(task.name for task in TASKS.values() if task.sample_labels)
"""Values of --task."""


def task_of_labels(name: str, *, presence_only: bool) -> Task:
    """The task that --task names, or the one in its place if the labels are presences only."""
    return TASKS[TASKS[name].presence_task if presence_only else name]


def trained_objective(name: str, training: Mapping[str, Any]) -> Objective:
    """The objective of a finished fit, to predict with.

    Args:
        name: of the task, as a checkpoint stores it.
        training: statistics of the training labels, as a checkpoint stores them.
    """
    return TASKS[name].objective(training, LossSettings())
