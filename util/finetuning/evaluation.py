"""Scoring a fine-tuned checkpoint: on what ground, and how."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass
from typing import Any

from util.checkpoints.resume_state import check_same_configuration
from util.finetuning.label_source import LabelSource, may_overlap
from util.finetuning.run import FinetuneRun, network_predictor, score
from util.finetuning.scoring import score_line
from util.processes.signals import Stop
from util.records.finetune_records import EVALUATION
from util.records.log import plain

logger = logging.getLogger(__name__)

FINETUNED_KEYS = tuple(
    "model model_config layers statistics options base_resolution hidden "
    "task training fold ground folds version".split()
)
"""Entries that a checkpoint of main_finetune has for those who use it."""


@dataclass(frozen=True)
class ScoredGround:
    """What a fine-tuned checkpoint is scored on.

    Attributes:
        is_fold: the test ground of its fold; else all labels.
        description: in words.
        warning: what a reader of the scores must know.
    """

    is_fold: bool
    description: str
    warning: str = ""


IMAGES = ScoredGround(True, "images of --test_path, or held out by location")
"""What the checkpoint of a scene data set is scored on."""


def scored_ground(
    labels: LabelSource, state: Mapping[str, Any], ground: Mapping[str, Any], *, checkpoint: str
) -> ScoredGround:
    """Decides what a fine-tuned checkpoint can be scored on.

    Args:
        labels: the labels to score it with.
        state: contents of the checkpoint.
        ground: `crs` and `bounds` of the layers that are opened.
        checkpoint: its path, for the error message.

    Raises:
        ValueError: it was fitted on all of these labels.
    """
    overlaps = may_overlap(ground, state["ground"])
    if overlaps and labels.is_same(state):
        if state["fold"] is None:
            raise ValueError(
                f"--resume {checkpoint} was fitted on all of these labels, so they cannot score it; name the "
                "checkpoint of a fold (in fits/), or other --labels, or --data_dir with other ground"
            )
        return ScoredGround(True, f"test ground of fold {state['fold']}")
    warning = "these labels lie on ground that the checkpoint was fitted on: scores elsewhere may be lower"
    return ScoredGround(False, "all labels", warning if overlaps else "")


@dataclass(frozen=True)
class Evaluation:
    """A fine-tuned checkpoint to score.

    Attributes:
        run: labels and settings.
        network: its network, on the run's device.
        path: its path.
        state: its contents.
        ground: what it is scored on.
    """

    run: FinetuneRun
    network: Any
    path: str
    state: dict[str, Any]
    ground: ScoredGround


def require_same_folds(state: Mapping[str, Any], data: Any) -> None:
    """Refuses labels or layers from which other folds follow than the checkpoint was fitted and tested on.

    Raises:
        ValueError: naming the differences.
    """
    check_same_configuration(state["folds"], plain(data.folds.summary()), "folds (labels or layers changed)")


def evaluate(chosen: Evaluation, _: Stop) -> int:
    """Scores a fine-tuned checkpoint; returns exit status 0."""
    run, state, ground = chosen.run, chosen.state, chosen.ground
    task, data = run.inputs.task, run.inputs.data
    with closing(run.files):
        objective = task.objective(state["training"], run.loss)
        predictor = network_predictor(run, chosen.network, objective, run.inputs.opened.survey)
        scores = score(run, predictor, state["fold"] if ground.is_fold else 0).scores
        logger.info("%s: %s", ground.description, score_line(task, scores, data.units))
        warnings = [text for text in (ground.warning, data.folds.leak_warning) if text]
        for text in warnings if run.ranks.is_main else ():
            logger.warning("%s", text)
        record: dict[str, Any] = {
            "checkpoint": chosen.path,
            "scored": ground.description,
            "warning": "; ".join(warnings) or None,
        }
        record |= {"task": task.name, "split": data.folds.summary(), "test": scores}
        logger.info("scores       %s", run.files.write(EVALUATION, record))
    return 0
