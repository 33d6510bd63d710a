"""Data of pre-training: opens rasters or scenes, reads masked batches of tiles, and chooses the held-out tiles."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch

from datasets.loading.batch_plan import MicroBatch, plan_epoch, updates_per_epoch
from datasets.loading.token_masks import Masks, dropped_layers
from datasets.scenes.scenes import Scenes, open_scenes, open_test_scenes
from datasets.survey.open_survey import SurveySettings, open_survey
from datasets.survey.open_test_survey import open_test_survey
from datasets.survey.pyramid import Pyramid, Sample
from datasets.survey.pyramid_cache import choose_reader, to_sample
from datasets.survey.suggestion import short_run
from datasets.survey.survey import Survey
from datasets.survey.tile_reader import Tiles
from datasets.survey.tile_source import Reader, TileSource

logger = logging.getLogger(__name__)

MASKED_VIEWS = 64
"""Least number of masked views of held-out tiles that are scored, unless fewer are asked for."""
VALIDATION_EPOCH = -1
"""Epoch number for the masks of held-out tiles, so that they are always the same."""


@dataclass(frozen=True)
class HeldOut:
    """Tiles that are scored and not trained on.

    Attributes:
        source: source of the tiles.
        tiles: number of different tiles.
        views: (m, k) rows of the source, one for each masked view of a tile.
    """

    source: TileSource
    tiles: int
    views: np.ndarray

    def best(self) -> int | None:
        """Number of the view with the largest fraction of valid ground, None if nothing is held out."""
        return int(self.source.valid_share(self.views).argmax()) if len(self.views) else None

    def batches(self, batch_size: int, *, rank: int, world_size: int) -> list[np.ndarray]:
        """The numbers of the views that one process scores, batch by batch."""
        mine = np.arange(len(self.views))[rank::world_size]
        return [mine[first : first + batch_size] for first in range(0, len(mine), batch_size)]

    def fetcher(
        self, training: TileSource, masks: Masks, *, seed: int, device: torch.device
    ) -> Callable[[np.ndarray], tuple[Sample, torch.Tensor]]:
        """Returns a function from numbers of views to their sample and the noise of their masks, on the device.

        Args:
            training: source of the training tiles, whose statistics normalise the values.
            masks: how tokens are masked.
            seed: seed of the run.
            device: where the model computes.
        """
        reader, pyramid = self.source.reader(), training.pyramid(self.source)

        def fetch(numbers: np.ndarray) -> tuple[Sample, torch.Tensor]:
            sample = to_sample(reader.read(self.views[numbers]), pyramid, device)
            noise = masks.noise(numbers, seed=seed, epoch=VALIDATION_EPOCH)
            return sample, torch.from_numpy(noise).to(device)

        return fetch


def open_held_out(training: TileSource, *, test_path: str | None, chosen: Mapping[str, Any], most: int) -> HeldOut:
    """Opens the tiles to score: those held out of the training data, or all of another survey or table of images.

    If there are fewer than `MASKED_VIEWS` tiles, each is scored under several masks, so that the scores of a small
    survey depend less on which tokens are masked.

    Args:
        training: source of the training tiles.
        test_path: layers.csv of another survey or another table of images, scored instead of the held-out tiles.
        chosen: the options that `training` was opened with.
        most: largest number of tiles.

    Raises:
        ValueError, OSError: `test_path` cannot be used, or has other layers or categories than the training data.
    """
    source = training
    if test_path and isinstance(training, Scenes):
        source = open_test_scenes(training, test_path)
    elif test_path:
        assert isinstance(training, Survey)
        source = open_test_survey(training, test_path, settings=SurveySettings(**chosen))
    tiles = source.held_out_tiles
    if len(tiles) > most:
        tiles = tiles[np.linspace(0, len(tiles) - 1, most).round().astype(int)]
    views = -(-min(MASKED_VIEWS, most) // len(tiles)) if len(tiles) else 1
    return HeldOut(source, len(tiles), np.tile(tiles, (views, 1)))


class Batch(NamedTuple):
    """The tiles of a micro-batch as they are read.

    Attributes:
        tiles: native pixels, or a sample that is ready for the model.
        noise: (N, tokens) float32, decides the masks.
        dropped: (N, C) bool, True for channels that are dropped; None if no layer is ever dropped.
    """

    tiles: Tiles | Sample
    noise: torch.Tensor
    dropped: torch.Tensor | None

    def to(self, device: torch.device, pyramid: Pyramid) -> tuple[Sample, torch.Tensor]:
        """Returns the sample and the noise of its masks, on the device."""
        sample = to_sample(self.tiles, pyramid, device)
        if self.dropped is not None:
            sample = sample.without(self.dropped.to(device, non_blocking=True))
        return sample, self.noise.to(device, non_blocking=True)


class Epoch(NamedTuple):
    """The batches of one process in one epoch.

    Attributes:
        tiles: (n, k) tiles of all processes, in the order of visiting.
        plan: the micro-batches of this process.
        read: reads a micro-batch; may be called from several threads.
    """

    tiles: np.ndarray
    plan: Iterator[MicroBatch]
    read: Callable[[MicroBatch], Batch]


@dataclass(frozen=True)
class TrainingBatches:
    """Reads the masked batches of training tiles; every choice is a function of (seed, epoch, position) alone.

    Attributes:
        source: source of the tiles.
        reader: reads the tiles.
        masks: how tokens are masked.
        channel_counts: number of channels of each layer.
        seed: seed of the run.
        layer_dropout: probability that a tile is trained without a layer.
        tiles: tiles in an epoch, over all processes.
        batch_size: tiles in a micro-batch.
        accum_iter: micro-batches in an update.
        rank: number of this process.
        world_size: number of processes.
        pin: put batches into page-locked memory.
        unseen: numbers of the layers that are never seen, targets and hidden ones, which are never dropped.
    """

    source: TileSource
    reader: Reader
    masks: Masks
    channel_counts: tuple[int, ...]
    seed: int
    layer_dropout: float
    tiles: int
    batch_size: int
    accum_iter: int
    rank: int
    world_size: int
    pin: bool
    unseen: Sequence[int] = ()

    @property
    def updates(self) -> int:
        """Optimiser steps in an epoch."""
        return updates_per_epoch(
            self.tiles, batch_size=self.batch_size, accum_iter=self.accum_iter, world_size=self.world_size
        )

    @property
    def effective_batch(self) -> int:
        """Tiles in an update, over all processes."""
        return self.batch_size * self.accum_iter * self.world_size

    def epoch(self, number: int, *, start_update: int = 0) -> Epoch:
        """The batches of an epoch, from an update on."""
        tiles = self.source.epoch_tiles(seed=self.seed, epoch=number, tiles=self.tiles)
        plan = plan_epoch(
            self.tiles,
            batch_size=self.batch_size,
            accum_iter=self.accum_iter,
            rank=self.rank,
            world_size=self.world_size,
            start_update=start_update,
        )
        return Epoch(tiles, plan, partial(self._read, tiles, number))

    def _read(self, tiles: np.ndarray, epoch: int, micro: MicroBatch) -> Batch:
        """Reads the tiles of a micro-batch and draws the noise of their masks and the layers that they drop."""
        numbers = micro.positions
        found = self.reader.read(tiles[numbers])
        noise = torch.from_numpy(self.masks.noise(numbers, seed=self.seed, epoch=epoch))
        dropped = None
        if self.layer_dropout:
            inputs = [number for number in range(len(self.channel_counts)) if number not in self.unseen]
            layers = np.zeros((len(numbers), len(self.channel_counts)), dtype=bool)
            layers[:, inputs] = dropped_layers(
                numbers, layers=len(inputs), probability=self.layer_dropout, seed=self.seed, epoch=epoch
            )
            dropped = torch.from_numpy(layers.repeat(self.channel_counts, axis=1))
        if not self.pin:
            return Batch(found, noise, dropped)
        return Batch(found.pin(), noise.pin_memory(), None if dropped is None else dropped.pin_memory())


@dataclass(frozen=True)
class PretrainData:
    """The data of a pre-training run.

    Attributes:
        training: source of the training tiles.
        reader: reads them.
        held_out: the tiles that are scored.
    """

    training: TileSource
    reader: Reader
    held_out: HeldOut

    def log_summary(self, patch_size: int, *, warn: bool) -> None:
        """Logs what will be read and, if `warn`, each warning about the training and the held-out data once."""
        for text in self.training.summary_lines():
            logger.info("%s", text)
        for text in dict.fromkeys(
            text for source in (self.training, self.held_out.source) for text in source.training_warnings(patch_size)
        ):
            logger.log(logging.WARNING if warn else logging.DEBUG, "%s", text)

    def warn_if_short(self, updates: int, *, scores: bool, auto: bool, warn: bool) -> None:
        """Warns if the whole run has too few updates, or is scored on too few tiles, to say anything.

        Args:
            updates: of the whole run.
            scores: whether ground is to be held out.
            auto: whether the settings were suggested, but for those that the user gave.
            warn: log warnings; else debug messages.
        """
        texts = short_run(updates=updates, held_out=self.held_out.tiles, scores=scores)
        suits = isinstance(self.training, Survey) and not auto
        remedy = "; --auto takes settings that suit the survey" if suits else ""
        if texts:
            logger.log(logging.WARNING if warn else logging.DEBUG, "%s%s", "; ".join(texts), remedy)

    def batches(self, masks: Masks, *, channel_counts: Sequence[int], tiles: int | None, **how: Any) -> TrainingBatches:
        """Returns the reader of masked training batches.

        Args:
            masks: how tokens are hidden.
            channel_counts: number of channels of each layer.
            tiles: tiles in an epoch, None for each training tile once.
            **how: the other attributes of `TrainingBatches`.
        """
        return TrainingBatches(
            self.training,
            self.reader,
            masks,
            tuple(channel_counts),
            tiles=tiles or self.training.training_tiles,
            unseen=_unseen(self.training),
            **how,
        )


def _unseen(source: TileSource) -> list[int]:
    """Numbers of the layers that models never see: targets, and those shown as no-data."""
    if isinstance(source, Scenes):
        return sorted(source.images.hidden)
    assert isinstance(source, Survey)
    return sorted({*source.targets, *source.stack.hidden})


def open_pretrain_data(
    chosen: Mapping[str, Any],
    *,
    test_path: str | None,
    val_tiles: int,
    cache: str,
    device: torch.device,
    local_ranks: int,
) -> PretrainData:
    """Opens the training data and the held-out tiles.

    Args:
        chosen: keyword arguments of `open_scenes`, which has a `dataset_type`, or else the fields of `SurveySettings`.
        test_path: see `open_held_out`.
        val_tiles: largest number of held-out tiles.
        cache: see `choose_reader`.
        device: where the model computes.
        local_ranks: processes on this machine that each hold the layers.

    Raises:
        ValueError, OSError: the data cannot be used.
    """
    if "dataset_type" in chosen:
        training: TileSource = open_scenes(**chosen)
    else:
        training = open_survey(SurveySettings(**chosen, local_ranks=local_ranks))
    held_out = open_held_out(training, test_path=test_path, chosen=chosen, most=val_tiles)
    return PretrainData(training, choose_reader(training, device, cache=cache, local_ranks=local_ranks), held_out)
