"""What an experiment left behind: its costs, and its scores block by block."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

import models_mae_group_channels as models
from study.arms import OF_TREES, StudyArm
from study.curves import Curve
from study.plan import PRETRAIN_TILES, Task
from study.results import Run
from util.checkpoints import checkpoint_file
from util.training.flops import step_cost

DONE = "done.json"
METRICS = {
    "segmentation": "mean_iou",
    "regression": "rmse",
    "prospectivity": "roc_auc",
    "classification": "balanced_accuracy",
}
"""Headline of a study by the task as main_finetune names it."""
FITS = {"pretrained": "full", "scratch": "full", "unet": "full", "probe": "probe"} | dict.fromkeys(OF_TREES, "trees")
"""Mode by the name of main_finetune's arm."""
_RESTORE = {
    "plan.json": "restore it, or begin the study anew in another --output_dir",
    "study.json": "restore it, or run the study's command again, which writes it anew",
}
"""What to do about a damaged file that lies in the folder of the whole study."""


def read_json(path: Path) -> Any:
    """The contents of a JSON file, an object.

    Raises:
        ValueError: it is damaged.
    """
    advice = _RESTORE.get(path.name, "remove its folder, and the study does that part again")
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path}: no JSON ({error}); {advice}") from error
    if not isinstance(found, dict):
        raise ValueError(f"{path}: holds a {type(found).__name__}, expected an object; {advice}")
    return found


def done_facts(folder: Path, task: Task) -> dict[str, Any] | None:
    """What was noted when a task was done; None if it is not."""
    path = folder / task.name / DONE
    return read_json(path) if path.exists() else None


def is_finished(folder: Path, task: Task, *, epochs: int, folds: Sequence[int]) -> bool:
    """Whether a program that ended with status 0 came to its end: a signal also ends it with 0, part way.

    Args:
        folder: of the study.
        task: the task.
        epochs: of a pre-training.
        folds: numbers of the folds of a fit; scores of fewer may be there, from before the study got more.
    """
    place = folder / task.name
    if task.stage == "fit":
        return set(folds) <= _scored_folds(place)
    return _epochs_done(place / "log.txt") == epochs


def folds_done(folder: Path, task: Task) -> set[int]:
    """Numbers of the folds that a fit was done for; none if it is not done."""
    place = folder / task.name
    return _scored_folds(place) if (place / DONE).exists() else set()


def _scored_folds(place: Path) -> set[int]:
    path = place / "metrics.json"
    arms = read_json(path)["arms"].values() if path.exists() else ()
    return {int(fold) for arm in arms for fold in arm["folds"]}


def pretrain_facts(folder: Path, task: Task) -> dict[str, Any]:
    """Costs of a pre-training, counted and measured, and the base pixel it chose."""
    place = folder / task.name
    last = [line for line in _log(place) if line.get("kind") == "epoch"][-1]
    state = checkpoint_file.load_checkpoint(place / "checkpoint-last.pth")
    with_model = models.MaskedAutoencoderGroupChannelViT(**state["model_config"])
    tiles = (last["epoch"]) * PRETRAIN_TILES
    ratio = state["options"]["mask_ratio"]
    return {
        "epochs": last["epoch"],
        "tiles": tiles,
        "seconds": last["seconds"],
        "cpu_seconds": last["cpu_seconds"],
        "flops": step_cost(with_model, batch_size=1, mask_ratio=ratio).step_flops * tiles,
        "peak_memory_mb": last["peak_memory_mb"],
        "base_resolution": state["base_resolution"],
    }


def fit_facts(folder: Path, task: Task) -> dict[str, Any]:
    """Means over the folds of what the fits of a task took, by mode, and the split."""
    metrics = read_json(folder / task.name / "metrics.json")
    costs = {}
    for name, arm in metrics["arms"].items():
        if name in FITS:
            folds = list(arm["folds"].values())
            keys = ["seconds", "train_seconds", "train_cpu_seconds"]
            keys += [key for key in ("epochs", "validation_seconds") if key in folds[0]]
            costs[FITS[name]] = {key: float(np.mean([fold[key] for fold in folds])) for key in keys}
    return {"task": metrics["task"], "units": metrics["units"], "split": metrics["split"], "modes": costs}


def runs_of(folder: Path, task: Task, *, pretraining: Mapping[str, Any] | None, seconds: str) -> Iterator[Run]:
    """The runs of a finished fit task, one for each mode and fold, with the costs of training.

    Args:
        folder: of the study.
        task: the task.
        pretraining: facts of the pre-training that it began with.
        seconds: `cpu_seconds` or `seconds`, what is called time.

    Raises:
        ValueError: a file of the fits is damaged.
    """
    metrics = read_json(folder / task.name / "metrics.json")
    before = pretraining or {}
    for name, arm in metrics["arms"].items():
        if name not in FITS:
            continue
        for fold, facts in arm["folds"].items():
            metric = METRICS[metrics["task"]]
            score = facts["test"].get(metric)
            yield Run(
                arm=task.arm.name,
                mode=FITS[name],
                label_fraction=task.regime.fraction,
                label_blocks=task.regime.blocks,
                seed=task.seed + task.arm.seed_offset,
                fold=int(fold),
                metric=metric,
                score=float("nan") if score is None else score,
                **_sums(folder / task.name / "fits" / f"{name}-fold{fold}" / "scores.npz", metric),
                pretrain_s=before.get(seconds, 0.0),
                finetune_s=facts[f"train_{seconds}"],
                pretrain_flops=before.get("flops", 0.0),
                finetune_flops=facts.get("train_flops"),
                pretrain_tiles=before.get("tiles", 0.0),
                finetune_tiles=facts.get("train_windows"),
                peak_memory_mb=max(facts["peak_memory_mb"], before.get("peak_memory_mb", 0.0)),
                train_labels=facts["train_labels"],
            )


def curves_of(folder: Path, task: Task, *, seconds: str) -> Iterator[Curve]:
    """Validation scores of the fits of a finished task that were validated, one curve for each mode and fold.

    Args:
        folder: of the study.
        task: the task.
        seconds: `cpu_seconds` or `seconds`, what is called time.
    """
    place = folder / task.name
    scores: dict[tuple[str, int], list[float | None]] = {}  # of trees there is one, beside their other scores
    for line in _log(place):
        if line.get("kind") == "epoch" and "validation" in line:
            scores.setdefault((line["arm"], line["fold"]), []).append(line["validation"])
    for name, arm in read_json(place / "metrics.json")["arms"].items():
        for fold, facts in arm["folds"].items():
            found = [facts["validation"]] if "validation" in facts else scores.get((name, int(fold)))
            if name in FITS and found:
                yield Curve(
                    task.arm.name,
                    FITS[name],
                    task.regime.fraction,
                    task.seed + task.arm.seed_offset,
                    int(fold),
                    facts[f"train_{seconds}"],
                    tuple(math.nan if score is None else score for score in found),
                    task.regime.blocks,
                )


def _sums(path: Path, metric: str) -> dict[str, Any]:
    """Blocks with tested labels, and what each adds to the score."""
    with np.load(path) as arrays:
        if metric in ("roc_auc", "balanced_accuracy"):
            shares, classes, blocks = arrays["shares"], arrays["classes"], arrays["blocks"]
            found = shares[:, 1] if metric == "roc_auc" else shares.argmax(axis=1)
            tested = np.unique(blocks)
            parts = [np.flatnonzero(blocks == block) for block in tested]
            return {
                "blocks": tested.astype(np.int64),
                "truth": tuple(classes[part].astype(np.int64) for part in parts),
                "shares": tuple(found[part].astype(np.float64) for part in parts),
            }
        sums = arrays["blocks"]
    tested = np.flatnonzero(sums.reshape(len(sums), -1).any(axis=1))
    if metric == "rmse":
        return {"blocks": tested, "errors": sums[tested]}
    confusion = sums[tested]
    return {
        "blocks": tested,
        "hits": np.einsum("bkk->bk", confusion),
        "predicted": confusion.sum(axis=1),
        "labelled": confusion.sum(axis=2),
    }


def tidy(folder: Path, task: Task) -> None:
    """Removes checkpoints that nothing needs any more: all of fits, and all but the last of pre-training."""
    for path in (folder / task.name).rglob("checkpoint-*.pth"):
        if task.stage == "fit" or path.name != "checkpoint-last.pth":
            path.unlink()


def mean_cost(facts: Sequence[Mapping[str, Any]], seconds: str) -> float:
    """Mean training time of several pre-trainings or fits."""
    return float(np.mean([fact[seconds] for fact in facts]))


def arm_facts(arm: StudyArm) -> dict[str, Any]:
    """An arm as plain values for the report."""
    pretrain = None if arm.pretrain is None else " ".join(arm.pretrain)
    return {
        "name": arm.name,
        "role": arm.role,
        "against": " ".join(arm.against),
        "question": arm.question,
        "pretrain": pretrain,
        "finetune": " ".join(arm.finetune),
        "as_long_as": arm.as_long_as,
    }


def _log(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "log.txt").read_text(encoding="utf-8").splitlines()]


def _epochs_done(path: Path) -> int:
    if not path.exists():
        return 0
    return max((line["epoch"] for line in _log(path.parent) if line.get("kind") == "epoch"), default=0)
