"""Opens what fine-tuning learns from: layers or images, and labels in folds."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from datasets.finetuning.finetune_data import (
    FinetuneData,
    LabelOptions,
    SplitOptions,
    TargetOptions,
    open_scene_data,
    open_targets,
    target_grid,
)
from datasets.finetuning.known_targets import known_tests
from datasets.finetuning.label_copies import label_copies
from datasets.finetuning.layers import (
    LayerOptions,
    OpenedLayers,
    hide_labels,
    labels_path,
    open_layers,
    open_scene_layers,
)
from datasets.folds.folds import Folds
from datasets.survey.inference_survey import stored_layers

logger = logging.getLogger(__name__)


def open_ground(
    stored: Mapping[str, Any] | None,
    *,
    layers: Mapping[str, Any] | None,
    scenes: Mapping[str, Any] | None,
    labels: str | None,
    label_band: int,
    sample_labels: str,
    local_ranks: int,
) -> tuple[OpenedLayers, str | None]:
    """Opens layers without those that hold the labels, or the images of a scene data set.

    Args:
        stored: contents of the checkpoint that decides the layers; None for training from scratch.
        layers: fields of `LayerOptions`; None for a scene data set.
        scenes: keyword arguments of `open_scene_layers`; None for layers.
        labels: path of the labels; None for those of the sample survey.
        label_band: their band.
        sample_labels: labels of the sample survey, relative to its folder.
        local_ranks: processes on this machine.

    Returns:
        What was opened, and the path of the labels.

    Raises:
        ValueError, OSError: bad input.
    """
    if layers is None:
        return open_scene_layers(stored, **(scenes or {})), labels
    opened = open_layers(stored, LayerOptions(**layers), local_ranks=local_ranks)
    path = labels_path(labels, sample_labels, opened.survey.layers)
    hide_labels(opened, path, label_band)
    return opened, path


def open_labels(
    opened: OpenedLayers,
    path: str | None,
    *,
    scenes: Mapping[str, Any] | None,
    labels: Mapping[str, Any],
    targets: Mapping[str, Any],
    split: Mapping[str, Any],
    class_codes: Sequence[Any] | None = None,
) -> FinetuneData:
    """Reads the labels on the layers' ground and divides them into folds; or finds the images to test.

    Args:
        opened: the layers or images.
        path: of the labels.
        scenes: keyword arguments of `open_scene_data`; None for labels on layers.
        labels: fields of `LabelOptions`.
        targets: fields of `TargetOptions`, but for the class codes.
        split: fields of `SplitOptions`.
        per_pixel: every pixel is predicted.
        has_classes: labels are classes.
        class_codes: codes of a trained model, in its order.

    Raises:
        ValueError, OSError: bad input.
    """
    if scenes is not None:
        return open_scene_data(opened.scenes, **scenes)
    assert path is not None
    data = open_targets(
        opened.grids,
        path,
        labels=LabelOptions(**labels),
        targets=TargetOptions(**targets, class_codes=class_codes),
        split=SplitOptions(**split),
    )
    if not opened.targets:
        return data
    assert isinstance(data.folds, Folds)
    known = known_tests(target_grid(opened.grids, 1).pixels, data.folds, stored_layers(opened.targets))
    return replace(data, warnings=(*data.warnings, *known))


def log_inputs(opened: OpenedLayers, data: FinetuneData, *, warn: bool) -> None:
    """Logs what was opened; warnings only if `warn`, else for debugging."""
    for text in (*opened.survey.summary_lines(), *data.summary_lines(), data.folds.describe()):
        logger.info("%s", text)
    copies = label_copies(opened.grids, data.labels) if data.labels is not None and warn else []
    for text in (*opened.survey.warnings, *data.warnings, *copies):
        logger.log(logging.WARNING if warn else logging.DEBUG, "%s", text)
