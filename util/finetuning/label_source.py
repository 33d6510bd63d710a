"""Which labels a checkpoint was fitted on, and whether others are the same."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

logger = logging.getLogger(__name__)

LABELS_FILE = "labels_file"
"""Entry of a checkpoint: the absolute path of the labels it was fitted on."""


@dataclass(frozen=True)
class LabelSource:
    """Where labels are read from."""

    path: str
    band: int
    column: str | None

    def is_same(self, state: Mapping[str, Any]) -> bool:
        """Whether these are the labels that a checkpoint was fitted on, wherever the program was called from.

        Those of an exported checkpoint, which holds no folders, are known by the name of their file.
        """
        stored, path = state["options"], state.get(LABELS_FILE)
        own = absolute_source(self.path)
        if path is not None and not re.search(r"[/\\]", path):
            own = re.split(r"[/\\]", own.rstrip("/\\"))[-1]
        return (
            own == (path or absolute_source(stored["labels"]))
            and self.band == stored["label_band"]
            and self.column == stored["label_column"]
        )


def absolute_source(path: str) -> str:
    """The path of labels made absolute; URLs, /vsi paths and variables of stores stay as they are."""
    if re.match(r"[A-Za-z][\w+.-]+:|/vsi", path):  # a drive of Windows has one letter
        return path
    return str(Path(path).expanduser().resolve())


def may_overlap(first: Mapping[str, Any], second: Mapping[str, Any]) -> bool:
    """Whether two grounds, `crs` and `bounds` (left, bottom, right, top), overlap; True where the CRS differ."""
    (left, bottom, right, top), (west, south, east, north) = first["bounds"], second["bounds"]
    overlap = left < east and west < right and bottom < north and south < top
    return overlap or first["crs"] != second["crs"]


def warn_of_known_labels(encoder: Any, options: Mapping[str, Any], ground: Mapping[str, Any]) -> None:
    """Warns if the weights that a fit starts from were fitted on its labels, test ground among them.

    Args:
        encoder: the weights, an `EncoderWeights`; None from scratch.
        options: of the run.
        ground: `crs` and `bounds` of the layers.
    """
    contents = {} if encoder is None else encoder.contents
    if "task" not in contents or not options["labels"] or not contents["options"].get("labels"):
        return
    labels = LabelSource(options["labels"], options["label_band"], options["label_column"])
    if may_overlap(ground, contents["ground"]) and labels.is_same(contents):
        fold = contents["fold"]
        logger.warning(
            "--finetune %s was fitted on %s: scores here are not those of ground it has not seen; start from a "
            "checkpoint of main_pretrain",
            encoder.path,
            "all of these labels" if fold is None else f"these labels but for the test ground of fold {fold}",
        )
