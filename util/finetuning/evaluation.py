"""Scoring a fine-tuned checkpoint: with which options, and on what it may be scored."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

FINETUNED_KEYS = (
    "model",
    "model_config",
    "layers",
    "statistics",
    "options",
    "base_resolution",
    "hidden",
    "task",
    "training",
    "fold",
    "ground",
    "folds",
    "version",
)
"""What a checkpoint of this program holds for those who use it."""


def with_stored(
    args: argparse.Namespace, stored: Mapping[str, Any], parser: argparse.ArgumentParser
) -> argparse.Namespace:
    """The options that a checkpoint was made with, but for those that are given now or say where and how to run."""
    defaults = vars(parser.parse_args([]))
    given = {key for key, value in vars(args).items() if value != defaults[key]}
    here = given | {
        "eval",
        "resume",
        "device",
        "output_dir",
        "log_dir",
        "world_size",
        "local_rank",
        "dist_url",
        "baselines",
    }
    merged = {key: value if key in here else stored.get(key, value) for key, value in vars(args).items()}
    if here & {"data_dir", "train_path"}:  # layers are named in one way: as given now
        merged |= {key: value for key, value in vars(args).items() if key in ("data_dir", "train_path")}
    return argparse.Namespace(**merged)


def same_labels(args: argparse.Namespace, stored: Mapping[str, Any]) -> bool:
    """Whether labels are those that a checkpoint was fitted on: the same file, band and column."""
    return (
        Path(args.labels).resolve() == Path(stored["labels"]).resolve()
        and args.label_band == stored["label_band"]
        and args.label_column == stored["label_column"]
    )


@dataclass(frozen=True)
class Where:
    """What a fine-tuned checkpoint is scored on.

    Attributes:
        is_fold: the test ground of its fold; else all labels.
        what: in words.
        warning: what a reader of the scores must know.
    """

    is_fold: bool
    what: str
    warning: str


IMAGES = Where(True, "images of --test_path, or held out by location", "")
"""What the checkpoint of a scene data set is scored on."""


def where_to_score(args: argparse.Namespace, state: Mapping[str, Any], ground: Mapping[str, Any]) -> Where:
    """Decides on what a fine-tuned checkpoint can be scored.

    Args:
        args: the options.
        state: the checkpoint.
        ground: `crs` and `bounds` of the layers that are opened.

    Raises:
        ValueError: it was fitted on all of these labels.
    """
    shared = is_same_ground(ground, state["ground"])
    if shared and same_labels(args, state["options"]):
        if state["fold"] is None:
            raise ValueError(
                f"--resume {args.resume} was fitted on all of these labels, so they cannot score it; name the "
                "checkpoint of a fold (in fits/), or other --labels, or --data_dir with other ground"
            )
        return Where(True, f"test ground of fold {state['fold']}", "")
    warning = "these labels lie on ground that the checkpoint was fitted on: scores elsewhere may be lower"
    return Where(False, "all labels", warning if shared else "")


def is_same_ground(first: Mapping[str, Any], second: Mapping[str, Any]) -> bool:
    """Whether two grounds, `crs` and `bounds` (left, bottom, right, top), overlap; not known between two CRS."""
    (left, bottom, right, top), (west, south, east, north) = first["bounds"], second["bounds"]
    overlap = left < east and west < right and bottom < north and south < top
    return overlap or first["crs"] != second["crs"]
