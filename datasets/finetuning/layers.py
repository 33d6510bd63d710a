"""Opens the layers to fine-tune on: those of a checkpoint, where they were or elsewhere, or any from scratch."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from datasets.finetuning.fold_statistics import detail_on_fold, fit_on_fold
from datasets.finetuning.pixel_features import pixel_features
from datasets.finetuning.random_features import draw_filters, random_features
from datasets.finetuning.scene_targets import SceneGround, open_scene_ground
from datasets.layers.encoding import per_channel
from datasets.layers.layer import Layer
from datasets.layers.paths import file_of, sheet_paths, variable_of
from datasets.survey.inference_survey import (
    InferenceSurvey,
    NativeLayers,
    inference_survey_from,
    open_inference_survey,
    stored_base_crs,
    stored_encodings,
    stored_layers,
    stored_native,
)
from datasets.survey.memory import fits_memory
from datasets.survey.open_survey import SurveySettings, open_survey
from datasets.synthetic.sample_survey import labels_of_sample

logger = logging.getLogger(__name__)

CHANNEL_ARGUMENTS = ("in_chans", "channel_groups", "native_scales", "detail_scales")
"""Arguments of an encoder that follow from the layers."""
DEFAULT_INPUT_SIZE = 48
"""Base-scale pixels along the edge of a window, without a checkpoint."""
NO_AREA = "none"
"""In place of a file of polygons: all ground is shown, whatever the checkpoint says."""


@dataclass(frozen=True)
class LayerOptions:
    """Which layers are opened, and how.

    Attributes:
        data_dir: directory of rasters.
        layers_table: table of layers instead; with neither, the checkpoint's own paths are opened.
        hidden: channels shown as no-data.
        input_size: base-scale pixels along a window's edge; default the checkpoint's, or `DEFAULT_INPUT_SIZE`.
        base_resolution: edge of a base-scale pixel, CRS units; default the finest resolution x the largest scale.
        extent: `union` or `intersection` of the layers' extents.
        reproject: warp layers to the first layer's CRS.
        aoi: polygons file, ground outside is invalid; `NO_AREA`: no limit; default the checkpoint's polygons.
        cache: `auto`, `ram` or `none`.
        allow_missing: go on without layers of the checkpoint that are not found.
        dropped_bands: from scratch: layer numbers to leave out.
        grouped_bands: from scratch: channel groups by layer number.
        one_group: from scratch: all layers in one group.
        scales: from scratch: the largest decides the base resolution.
        seed: from scratch: seed of the survey.
        native: read layers at their native pixels as well, for a model with a stem.
    """

    data_dir: str | None = None
    layers_table: str | None = None
    hidden: Sequence[int] = ()
    input_size: int | None = None
    base_resolution: float | None = None
    extent: str = "union"
    reproject: bool = False
    aoi: str | None = None
    cache: str = "auto"
    allow_missing: bool = False
    dropped_bands: Sequence[int] = ()
    grouped_bands: Sequence[Sequence[int]] | None = None
    one_group: bool = False
    scales: Sequence[int] = (1,)
    seed: int = 0
    native: bool = False


@dataclass(frozen=True)
class OpenedLayers:
    """Layers to fine-tune on.

    Attributes:
        survey: the ground that windows are cut out of, or the images.
        layers: in channel order, as a checkpoint stores them.
        statistics: centre and scale of each layer, as a checkpoint stores them.
        encodings: how values of each layer become channels, as a checkpoint stores it.
        channels: `in_chans`, `channel_groups` and the scales of stems for a network from scratch; empty where a
            checkpoint has them.
        fits_statistics: statistics are no checkpoint's, so each fold fits its own (`on_fold`).
        targets: layers that pre-training predicted and never saw, as a checkpoint stores them.
    """

    survey: InferenceSurvey | SceneGround
    layers: list[dict[str, Any]]
    statistics: list[dict[str, Any]]
    encodings: list[dict[str, Any]]
    channels: dict[str, Any]
    fits_statistics: bool = False
    targets: Sequence[dict[str, Any]] = ()

    @property
    def grids(self) -> InferenceSurvey:
        """The survey, where layers are rasters of one ground."""
        assert isinstance(self.survey, InferenceSurvey)
        return self.survey

    @property
    def scenes(self) -> SceneGround:
        """The images, where layers are bands of images."""
        assert isinstance(self.survey, SceneGround)
        return self.survey

    @property
    def aoi(self) -> dict[str, Any] | None:
        """The area outside which ground is invalid, as a checkpoint stores it; None without limit, and for images."""
        area = self.survey.stack.aoi if isinstance(self.survey, InferenceSurvey) else None
        return None if area is None else area.plain()

    def pixel_features(self, pixels: np.ndarray, *, scale: int) -> np.ndarray:
        """(n, F) features of (n, 2) target pixels, as `pixel_features.pixel_features` computes them."""
        return pixel_features(self.grids, pixels, scale=scale)

    def random_features(self, training: np.ndarray, *, scale: int, seed: int) -> Callable[[np.ndarray], np.ndarray]:
        """A function that returns (n, F) features of (n, 2) target pixels, of random convolutions drawn at others."""
        filters = draw_filters(self.grids, training, scale=scale, seed=seed)
        return lambda pixels: random_features(self.grids, filters, pixels, scale=scale)

    def on_fold(self, folds: Any, fold: int | None) -> OpenedLayers:
        """The layers as the networks of a fold see them: without a checkpoint, with statistics of its training ground.

        Args:
            folds: all folds; of images not used, as their statistics are those of training images anyway.
            fold: number of the fold; None for a fit on all labels, which uses all ground.

        Raises:
            ValueError, OSError: see `fit_on_fold`.
        """
        if fold is None or not self.fits_statistics:
            return self
        statistics, encodings = fit_on_fold(self.grids, folds, fold)
        survey, channels = self.grids.with_encodings(encodings), self.channels
        if survey.native:
            detail = detail_on_fold(survey, folds, fold)
            statistics = tuple(replace(item, detail=d) for item, d in zip(statistics, detail, strict=True))
            channels = {**channels, "detail_scales": per_channel(detail, encodings)}
        return replace(
            self,
            survey=survey,
            channels=channels,
            statistics=[item.as_dict() for item in statistics],
            encodings=[encoding.plain() for encoding in encodings],
        )


def open_layers(stored: Mapping[str, Any] | None, options: LayerOptions, *, local_ranks: int) -> OpenedLayers:
    """Opens the layers of a checkpoint, from their own paths or by name among others; or any layers, from scratch.

    Args:
        stored: the checkpoint, whose `options` hold the scales of its training; None to fine-tune from scratch.
        options: which layers, and how.
        local_ranks: processes on this machine that each hold the layers in memory.

    Raises:
        ValueError, FileNotFoundError: the layers are not there or cannot be used; the message names them.
    """
    if options.data_dir is not None and options.layers_table is not None:
        raise ValueError("give one of --data_dir and --train_path, or neither for the layers of the checkpoint")
    if stored is None:
        return _open_from_scratch(options, local_ranks)
    return _open_stored(stored, options, local_ranks)


def _open_from_scratch(options: LayerOptions, local_ranks: int) -> OpenedLayers:
    """Opens and scans any layers once, and computes their statistics."""
    survey = open_survey(
        SurveySettings(
            data_dir=options.data_dir,
            layers_table=options.layers_table,
            dropped_bands=options.dropped_bands,
            grouped_bands=options.grouped_bands,
            one_group=options.one_group,
            input_size=options.input_size or DEFAULT_INPUT_SIZE,
            scales=options.scales,
            base_resolution=options.base_resolution,
            extent=options.extent,
            reproject=options.reproject,
            aoi=None if options.aoi == NO_AREA else options.aoi,
            min_valid=0.0,
            val_fraction=0.0,
            seed=options.seed,
            cache=options.cache,
            local_ranks=local_ranks,
            native=options.native,
        )
    )
    _check_hidden(options.hidden, len(survey.layers))
    channels = survey.channel_options()
    return OpenedLayers(
        survey=inference_survey_from(survey, scales=(1,), hidden=options.hidden),
        layers=[asdict(layer) for layer in survey.layers],
        statistics=[item.as_dict() for item in survey.statistics],
        encodings=[encoding.plain() for encoding in survey.encodings],
        channels={key: channels[key] for key in CHANNEL_ARGUMENTS if key in channels},
        fits_statistics=True,
    )


def _open_stored(stored: Mapping[str, Any], options: LayerOptions, local_ranks: int) -> OpenedLayers:
    """Opens the layers of a checkpoint with its statistics."""
    layers, encodings = stored["layers"], stored_encodings(stored)
    _check_hidden(options.hidden, len(layers))
    survey = open_inference_survey(
        stored_layers(layers),
        data_dir=options.data_dir,
        layers_table=options.layers_table,
        encodings=encodings,
        input_size=options.input_size or stored["model_config"]["img_size"],
        scales=(1,),
        base_resolution=options.base_resolution,
        base_crs=stored_base_crs(stored) if options.base_resolution == stored.get("base_resolution") else None,
        finest_scale=max(stored["options"].get("scales") or (1,)),
        hidden=options.hidden,
        extent=options.extent,
        reproject=options.reproject,
        shown=_shown_area(stored, options.aoi),
        allow_missing=options.allow_missing,
        native=stored_native(stored, encodings) if options.native else NativeLayers(),
    )
    if options.aoi is None and survey.stack.aoi is not None:
        logger.info(
            "area of interest %s of the checkpoint: ground outside it is invalid (--aoi %s shows it)",
            survey.stack.aoi.path,
            NO_AREA,
        )
    if fits_memory(survey.stack, options.cache, local_ranks):
        survey.stack.load()
    return OpenedLayers(
        survey,
        layers,
        stored["statistics"],
        [encoding.plain() for encoding in encodings],
        {},
        targets=stored.get("targets", ()),
    )


def _shown_area(stored: Mapping[str, Any], given: str | None) -> str | Mapping[str, Any] | None:
    """Polygons outside which ground is invalid: as given, else of the checkpoint, in which older ones have a path."""
    area = given or stored.get("aoi", stored["options"].get("aoi"))
    return None if area == NO_AREA else area


def _check_hidden(hidden: Sequence[int], count: int) -> None:
    wrong = [channel for channel in hidden if channel >= count]
    if wrong:
        raise ValueError(f"--masked_bands {wrong[0]}: there are {count} layers, expected 0 to {count - 1}")
    if len(set(hidden)) == count:
        raise ValueError(
            "every layer is hidden, so there is nothing to predict from; show at least one (--masked_bands)"
        )


def labels_path(labels: str | None, sample_labels: str, layers: Sequence[Layer]) -> str:
    """The path of the labels: as given, or the labels that come with the sample survey.

    Args:
        labels: as given.
        sample_labels: labels of the sample survey, relative to its folder.
        layers: the opened layers.

    Raises:
        ValueError: none are given and the layers are not the sample survey's.
    """
    if labels is not None:
        return labels
    found = labels_of_sample(layers[0].path, sample_labels)
    if found is None:
        raise ValueError(
            "--labels is missing: expected a class raster, a raster of values, or a vector file (only the sample "
            "survey comes with labels)"
        )
    logger.info("no --labels given: using the sample survey's, %s", found)
    return str(found)


def hide_labels(opened: OpenedLayers, labels: str, band: int) -> None:
    """Hides layers whose pixels are the labels themselves, which would give the answer away.

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
    """Channels whose pixels are the labels themselves.

    Where both paths name a variable of a file, only the same variable counts.
    """
    return [
        channel
        for channel, layer in enumerate(layers)
        if layer.band == band and any(_is_same(labels, path) for path in sheet_paths(layer.path))
    ]


def _is_same(labels: str, path: str) -> bool:
    variables = {variable_of(labels), variable_of(path)} - {""}
    first, second = Path(file_of(labels)).expanduser(), Path(file_of(path))
    if not (first.exists() and second.exists()):  # a URL, for example
        return labels == path
    return len(variables) <= 1 and first.samefile(second)


def open_scene_layers(stored: Mapping[str, Any] | None, **options: Any) -> OpenedLayers:
    """Opens the images of a scene data set to train on; arguments as of `open_scene_ground`.

    Raises:
        ValueError, FileNotFoundError, OSError: they cannot be used; the message names them.
    """
    ground = open_scene_ground(stored, **options)
    scenes = ground.scenes
    channels = scenes.channel_options()
    return OpenedLayers(
        ground,
        [asdict(layer) for layer in scenes.layers],
        [item.as_dict() for item in scenes.statistics],
        [encoding.plain() for encoding in scenes.encodings],
        {} if stored is not None else {key: channels[key] for key in CHANNEL_ARGUMENTS if key in channels},
    )
