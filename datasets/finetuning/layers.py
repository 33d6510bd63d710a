"""The layers to fine-tune on: those that a checkpoint was trained on, here or elsewhere, or others from scratch."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from datasets.finetuning.scene_targets import SceneGround, open_scene_ground
from datasets.layers.layer import Layer
from datasets.layers.paths import file_of, variable_of
from datasets.survey.inference_survey import InferenceSurvey, open_inference_survey, stored_encodings, stored_layers
from datasets.survey.memory import fits_memory
from datasets.survey.survey import open_survey
from datasets.synthetic.sample_survey import labels_of_sample

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class OpenedLayers:
    """Layers to fine-tune on.

    Attributes:
        survey: where windows are cut out of.
        layers: in channel order, as a checkpoint holds them.
        statistics: per layer location and spread, as a checkpoint holds them.
        encodings: per layer how values become channels, likewise.
        channels: `in_chans` and `channel_groups` for a network from scratch; empty where a checkpoint says it.
    """

    survey: InferenceSurvey | SceneGround
    layers: list[dict[str, Any]]
    statistics: list[dict[str, Any]]
    encodings: list[dict[str, Any]]
    channels: dict[str, Any]

    @property
    def grids(self) -> InferenceSurvey:
        """The survey, where layers are rasters of one ground."""
        assert isinstance(self.survey, InferenceSurvey)
        return self.survey

    @property
    def scenes(self) -> SceneGround:
        """What stands for the survey, where they are bands of images."""
        assert isinstance(self.survey, SceneGround)
        return self.survey


def open_layers(
    stored: Mapping[str, Any] | None,
    *,
    data_dir: str | None,
    layers_table: str | None,
    hidden: Sequence[int],
    input_size: int | None,
    base_resolution: float | None,
    extent: str | None,
    reproject: bool,
    cache: str,
    local_ranks: int,
    allow_missing: bool,
    scratch: Mapping[str, Any],
) -> OpenedLayers:
    """Opens the layers of a checkpoint, where they lay or by name among others; or any layers, from scratch.

    Args:
        stored: the checkpoint, whose `options` say with what scales it was trained; None to fine-tune from scratch.
        data_dir: directory of rasters.
        layers_table: table of layers instead.
        hidden: channels shown as no-data.
        input_size: base-scale pixels along a window's edge; default the checkpoint's.
        base_resolution: edge of a base-scale pixel, CRS units; default by the scales.
        extent: `union` or `intersection`; default union.
        reproject: warp layers to the first layer's CRS.
        cache: `auto`, `ram` or `none`.
        local_ranks: processes on this machine that each hold the layers.
        allow_missing: go on without layers that are not there.
        scratch: further arguments of `open_survey`, used without a checkpoint.

    Raises:
        ValueError, FileNotFoundError: the layers are not there or cannot be used, by name.
    """
    if data_dir is not None and layers_table is not None:
        raise ValueError("give one of --data_dir and --train_path, or neither for the layers of the checkpoint")
    base: float | None
    if stored is None:
        found = open_survey(
            data_dir=data_dir,
            layers_table=layers_table,
            input_size=input_size or 48,
            base_resolution=base_resolution,
            extent=extent or "union",
            reproject=reproject,
            val_fraction=0.0,
            min_valid=0.0,
            cache="none",
            **scratch,
        )
        layers, statistics = [asdict(layer) for layer in found.layers], [asdict(item) for item in found.statistics]
        encodings, options = found.encodings, found.channel_options()
        channels = {key: options[key] for key in ("in_chans", "channel_groups")}
        size, base = found.input_size, found.base_resolution
        data_dir = layers_table = None
        finest_scale = 1
    else:
        layers, statistics, encodings = stored["layers"], stored["statistics"], stored_encodings(stored)
        channels = {}
        size = input_size or stored["model_config"]["img_size"]
        base = base_resolution
        finest_scale = max(stored["options"].get("scales") or (1,))
    wrong = [channel for channel in hidden if channel >= len(layers)]
    if wrong:
        raise ValueError(f"--masked_bands {wrong[0]}: there are {len(layers)} layers, expected 0 to {len(layers) - 1}")
    if len(set(hidden)) == len(layers):
        raise ValueError(
            "every layer is hidden, so there is nothing to predict from; show at least one (--masked_bands)"
        )
    survey = open_inference_survey(
        stored_layers(layers),
        data_dir=data_dir,
        layers_table=layers_table,
        location=(),
        spread=(),
        encodings=encodings,
        input_size=size,
        scales=(1,),
        base_resolution=base,
        finest_scale=finest_scale,
        hidden=hidden,
        extent=extent or "union",
        reproject=reproject,
        allow_missing=allow_missing,
    )
    if fits_memory(survey.stack, cache, local_ranks):
        survey.stack.load()
    return OpenedLayers(survey, layers, statistics, [encoding.plain() for encoding in encodings], channels)


def labels_path(labels: str | None, task: str, layers: Sequence[Layer]) -> str:
    """The labels: as given, or those that lie beside the sample survey's layers.

    Raises:
        ValueError: none are given and the layers are not the sample survey's.
    """
    if labels is not None:
        return labels
    found = labels_of_sample(layers[0].path, task)
    if found is None:
        raise ValueError(
            "--labels is missing: expected a class raster, a raster of values, or a vector file (without it, only the "
            "sample survey's own labels are known)"
        )
    logger.info("no --labels given: using the sample survey's, %s", found)
    return str(found)


def hide_labels(opened: OpenedLayers, labels: str, band: int) -> None:
    """Hides layers whose pixels are the labels themselves: they would be their own answer.

    Raises:
        ValueError: no other layer is left.
    """
    survey = opened.grids
    themselves = layers_that_are(labels, band, survey.layers)
    for channel in themselves:
        logger.info("layer '%s' holds the labels: it is hidden from the network", survey.layers[channel].name)
    survey.stack.hide(themselves)
    if len(survey.stack.hidden) == len(survey.layers):
        raise ValueError(f"--labels {labels} is the only layer that is shown; give others to predict it from")


def layers_that_are(labels: str, band: int, layers: Sequence[Layer]) -> list[int]:
    """Channels whose pixels are the labels themselves: they must be hidden, or there is nothing to predict.

    Variables of one file are told apart where both paths name one.
    """
    return [channel for channel, layer in enumerate(layers) if layer.band == band and _is_same(labels, layer.path)]


def _is_same(labels: str, path: str) -> bool:
    variables = {variable_of(labels), variable_of(path)} - {""}
    first, second = Path(file_of(labels)).expanduser(), Path(file_of(path))
    if not (first.exists() and second.exists()):  # a URL, say
        return labels == path
    return len(variables) <= 1 and first.samefile(second)


def open_scene_layers(stored: Mapping[str, Any] | None, **options: Any) -> OpenedLayers:
    """Opens the images of a scene data set to train on; arguments as of `open_scene_ground`.

    Raises:
        ValueError, FileNotFoundError, OSError: they cannot be used, by name.
    """
    ground = open_scene_ground(stored, **options)
    scenes = ground.scenes
    return OpenedLayers(
        ground,
        [asdict(layer) for layer in scenes.layers],
        [asdict(item) for item in scenes.statistics],
        [encoding.plain() for encoding in scenes.encodings],
        {} if stored is not None else {"in_chans": len(scenes.layers), "channel_groups": scenes.groups},
    )
