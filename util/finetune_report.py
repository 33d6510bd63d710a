"""The end of a fine-tuning run: a table of all arms, metrics.json and pictures."""

from __future__ import annotations

import csv
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from util.finetune_files import FinetuneFiles
from util.scores import HEADLINES, confusion_scores, confusion_table, summarise

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
