"""What a fine-tuned checkpoint may be scored on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

FINETUNED_KEYS = tuple(
    "model model_config layers statistics options base_resolution hidden "
    "task training fold ground folds version".split()
)
"""Entries that a checkpoint of main_finetune has for those who use it."""


@dataclass(frozen=True)
class LabelSource:
    """Where labels are read from."""

    path: str
    band: int
    column: str | None

    def is_same(self, stored: Mapping[str, Any]) -> bool:
        """Whether these are the labels that the options of a checkpoint name."""
        return (
            Path(self.path).resolve() == Path(stored["labels"]).resolve()
            and self.band == stored["label_band"]
            and self.column == stored["label_column"]
        )


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
    if overlaps and labels.is_same(state["options"]):
        if state["fold"] is None:
            raise ValueError(
                f"--resume {checkpoint} was fitted on all of these labels, so they cannot score it; name the "
                "checkpoint of a fold (in fits/), or other --labels, or --data_dir with other ground"
            )
        return ScoredGround(True, f"test ground of fold {state['fold']}")
    warning = "these labels lie on ground that the checkpoint was fitted on: scores elsewhere may be lower"
    return ScoredGround(False, "all labels", warning if overlaps else "")


def may_overlap(first: Mapping[str, Any], second: Mapping[str, Any]) -> bool:
    """Whether two grounds, `crs` and `bounds` (left, bottom, right, top), overlap; True where the CRS differ."""
    (left, bottom, right, top), (west, south, east, north) = first["bounds"], second["bounds"]
    overlap = left < east and west < right and bottom < north and south < top
    return overlap or first["crs"] != second["crs"]
