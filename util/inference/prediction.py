"""Maps of what a fine-tuned network predicts: classes with probabilities and entropy, or values with their spread."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from util.geotiff.raster_spec import RasterSpec
from util.inference.engine import Engine, Ground
from util.inference.finetuned_task import Task, stored_classes
from util.inference.inputs import InferenceInputs
from util.inference.product import Arrays, Product, ProductType, Window
from util.mosaics.dense_prediction import DensePrediction, Forward, viewed
from util.mosaics.mosaic import Block, origin_pairs

logger = logging.getLogger(__name__)


def entropy(shares: np.ndarray) -> np.ndarray:
    """Entropy of class shares, of that of equal shares: 0 = certain, 1 = all K classes alike.

    Args:
        shares: (K, ...) from 0 to 1, summing to 1 along the first axis; NaN = unknown.

    Returns:
        (...) float32.
    """
    terms = shares * np.log(np.clip(shares, np.finfo(np.float32).tiny, None))
    return np.clip(-terms.sum(axis=0) / math.log(len(shares)), 0.0, 1.0).astype(np.float32)


# ------------------------------------------------------------------------------------------------------------
# Which rasters there are
# ------------------------------------------------------------------------------------------------------------


class Results(Protocol):
    """The rasters of one kind of task."""

    rasters: dict[str, RasterSpec]

    def arrays(self, mean: np.ndarray, spread: np.ndarray | None, row: int, col: int) -> Arrays:
        """The pixels of a part, out of (K, rows, cols) outputs (NaN = none) and their spread, from (row, col) on."""


class ClassResults:
    """Classes under the codes of the labels, their probabilities, and the entropy."""

    def __init__(self, sheet: RasterSpec, task: Task) -> None:
        stored = stored_classes(task)
        self._codes = np.array(stored.codes, dtype=stored.dtype)
        tags = dict(sheet.tags)
        if stored.renumbered:
            numbered = zip(stored.codes, task.codes, strict=True)
            tags |= {f"label_code_of_{number}": str(code) for number, code in numbered}
        classes = replace(
            sheet,
            dtype=stored.dtype,
            nodata=stored.nodata,
            names=("class",),
            units=("",),
            classes=stored.classes,
            tags=tags,
        )
        self.rasters = {
            "prediction_classes": classes,
            "prediction_probabilities": _shares(sheet, task.names),
            "prediction_entropy": _shares(sheet, ("entropy",)),
        }

    def arrays(self, mean: np.ndarray, spread: np.ndarray | None, row: int, col: int) -> Arrays:
        """Where probabilities are known, the code of the largest; the first of equals, as in scoring."""
        spec = self.rasters["prediction_classes"]
        known = np.isfinite(mean).all(axis=0)
        codes = np.where(known, self._codes[np.where(known, mean, 0.0).argmax(axis=0)], spec.nodata)
        found = (codes.astype(spec.dtype)[None], mean, entropy(mean)[None])
        return {name: (self.rasters[name], part, row, col) for name, part in zip(self.rasters, found, strict=True)}


class PresenceResults:
    """The probability of presence, and the entropy of presence and absence."""

    def __init__(self, sheet: RasterSpec) -> None:
        self.rasters = {"prediction_probability": _shares(sheet, ("probability", "entropy"))}

    def arrays(self, mean: np.ndarray, spread: np.ndarray | None, row: int, col: int) -> Arrays:
        """Absence and presence -> presence and entropy."""
        name = "prediction_probability"
        return {name: (self.rasters[name], np.stack([mean[1], entropy(mean)]), row, col)}


class ValueResults:
    """Values, and their standard deviation over overlapping tiles and views where there are such."""

    def __init__(self, sheet: RasterSpec, task: Task, *, with_spread: bool) -> None:
        names = ("prediction", "prediction spread") if with_spread else ("prediction",)
        self.rasters = {"prediction_values": replace(sheet, names=names, units=(task.units,) * len(names))}

    def arrays(self, mean: np.ndarray, spread: np.ndarray | None, row: int, col: int) -> Arrays:
        """Value and spread."""
        name = "prediction_values"
        return {name: (self.rasters[name], mean if spread is None else np.concatenate([mean, spread]), row, col)}


def _shares(sheet: RasterSpec, names: Sequence[str]) -> RasterSpec:
    return replace(sheet, names=tuple(names), units=("",) * len(names), limits=(0.0, 1.0))


def task_results(
    ground: Ground,
    task: Task,
    tags: Mapping[str, str],
    *,
    pixel: float,
    shape: tuple[int, int],
    with_spread: bool = True,
) -> Results:
    """The rasters of a task.

    Args:
        ground: the base-scale pixels.
        task: what is predicted.
        tags: metadata of the rasters.
        pixel: edge of their pixels, in base-scale pixels.
        shape: their rows and columns.
        with_spread: predicted values have a standard deviation.
    """
    sheet = RasterSpec(
        crs=ground.crs,
        left=ground.left,
        top=ground.top,
        resolution_x=pixel * ground.base,
        resolution_y=pixel * ground.base,
        rows=shape[0],
        cols=shape[1],
        dtype="float32",
        nodata=math.nan,
        names=("",),
        units=("",),
        tags=tags,
    )
    if not task.has_classes:
        return ValueResults(sheet, task, with_spread=with_spread)
    if task.is_ranking:
        sheet = replace(sheet, points=task.presences_in(ground.crs), point_name="known presences")
    return PresenceResults(sheet) if task.is_ranking else ClassResults(sheet, task)


# ------------------------------------------------------------------------------------------------------------
# Products
# ------------------------------------------------------------------------------------------------------------


def _timed(engine: Engine, views: Sequence[Forward]) -> list[Forward]:
    """The same views, their time counted, in the engine's precision."""

    def timed(view: Forward) -> Forward:
        def forward(imgs: Tensor, valid: Tensor, native: Sequence[Tensor]) -> Tensor:
            with engine.meter.network(len(imgs)), engine.autocast():
                return view(imgs, valid, native)

        return forward

    return [timed(view) for view in views]


class PixelPredictionProduct(Product):
    """What a network for pixels predicts, blended over overlapping tiles as main_finetune scores it.

    Args:
        engine: the network.
        ground: the base-scale pixels.
        task: what it predicts.
        views: predictions of a tile in several orientations, averaged: class probabilities, or physical values.
        tags: metadata of the rasters.
    """

    def __init__(
        self, engine: Engine, ground: Ground, *, task: Task, views: Sequence[Forward], tags: Mapping[str, str]
    ) -> None:
        self.ground, self.task, self.reach = ground, task, engine.model.img_size
        s = task.scale
        self._results = task_results(ground, task, tags, pixel=1 / s, shape=(ground.rows * s, ground.cols * s))
        self.rasters = self._results.rasters
        self._device, self._watch = engine.device, engine.meter.passed
        self._prediction = DensePrediction(
            _timed(engine, views),
            bands=task.outputs,
            size=engine.model.img_size,
            patch=engine.model.patch_size,
            overlap=engine.overlap,
            scale=s,
            batch_size=engine.batch_size,
            device=engine.device,
            wrap_columns=engine.wrap_columns,
        )

    def make(self, block: Block, window: Window) -> Arrays:
        """The block's predictions."""
        with_std = not self.task.has_classes
        mosaic = self._prediction.mosaic(
            block,
            self.extent(),
            lambda origins: window.sample(origins, self._device),
            with_std=with_std,
            watch=self._watch,
        )
        s = self.task.scale
        return self._results.arrays(mosaic.mean, mosaic.std if with_std else None, block.top * s, block.left * s)


class WindowPredictionProduct(Product):
    """What a network for windows predicts on a lattice: each cell is the prediction of the window around it.

    A cell in which no layer has a valid pixel is nodata, as no example of training lies there.

    Args:
        engine: the network.
        ground: the base-scale pixels.
        task: what it predicts.
        views: predictions of a window in several orientations: class probabilities, to be averaged.
        stride: edge of a cell, base-scale pixels.
        tags: metadata of the rasters.

    Raises:
        ValueError: a cell is larger than a window.
    """

    def __init__(
        self,
        engine: Engine,
        ground: Ground,
        *,
        task: Task,
        views: Sequence[Forward],
        stride: int,
        tags: Mapping[str, str],
    ) -> None:
        size = engine.model.img_size
        if not 1 <= stride <= size:
            raise ValueError(f"--stride {stride}: expected 1 to {size} base pixels, the window that is classified")
        self.engine, self.ground, self.task, self.stride, self.reach = engine, ground, task, stride, size
        self._views = _timed(engine, views)
        self._cells = (math.ceil(ground.rows / stride), math.ceil(ground.cols / stride))
        self._lead = -math.floor((stride - size) / 2 + 0.5)  # base pixels from a window's edge to its cell
        facts = {**tags, "stride_base_pixels": str(stride), "window_base_pixels": str(size)}
        self._results = task_results(ground, task, facts, pixel=stride, shape=self._cells)
        self.rasters = self._results.rasters

    def extent(self) -> tuple[int, int]:
        """Base-scale (rows, cols) to be divided into blocks: whole cells."""
        return self._cells[0] * self.stride, self._cells[1] * self.stride

    @torch.inference_mode()
    def make(self, block: Block, window: Window) -> Arrays:
        """The predictions of the cells that begin in the block."""
        d, device = self.stride, self.engine.device
        rows, cols = (
            np.arange(math.ceil(first / d), math.ceil(end / d))
            for first, end in ((block.top, block.bottom), (block.left, block.right))
        )
        if not len(rows) or not len(cols):
            return {}
        cells = origin_pairs(rows, cols)
        found = np.full((len(cells), self.task.outputs), np.nan, dtype=np.float32)
        inside = slice(self._lead, self._lead + d)
        for first in range(0, len(cells), self.engine.batch_size):
            part = slice(first, first + self.engine.batch_size)
            sample = window.sample(cells[part] * d - self._lead, device)
            seen = sample.valid[:, :, inside, inside].flatten(1).any(dim=1)
            if seen.any():
                native = [image[seen] for image in sample.native]
                shares, _ = viewed(self._views, sample.imgs[seen], sample.valid[seen], native)
                found[part][seen.cpu().numpy()] = shares.cpu().numpy()
            self.engine.meter.passed(min(first + self.engine.batch_size, len(cells)) / len(cells))
        mean = found.T.reshape(-1, len(rows), len(cols))
        return self._results.arrays(mean, None, int(rows[0]), int(cols[0]))


def build_prediction(inputs: InferenceInputs, *, stride: int | None, views: int | None) -> Product:
    """What a fine-tuned network predicts: of pixels, or of windows around the cells of a lattice.

    Args:
        inputs: ground, layers and the fine-tuned network.
        stride: edge of a cell, base-scale pixels (None: a patch); for windows only.
        views: number of orientations in which each tile is predicted (None: for values all that the network was
            trained with, else one).

    Raises:
        ValueError: the stride does nothing, or is larger than a window.
    """
    network = inputs.finetuned
    assert network is not None  # see `products.check_checkpoint`
    task, engine, ground = network.task, inputs.engine, inputs.ground
    logger.info("%s, fitted on %s: %s", task.kind, inputs.tags["fitted_on"], inputs.tags["score"])
    if "warning" in inputs.tags:
        logger.warning("%s", inputs.tags["warning"])
    count = views or (1 if task.has_classes else network.orientations)
    if count > network.orientations:
        logger.warning(
            "--views %d: the model was trained with --no_augment, without rotated or mirrored windows", count
        )
    forwards: list[Forward] = [partial(network.predict, orientation=number) for number in range(count)]
    tags = {**inputs.tags, "views": str(count)}
    if not task.per_pixel:
        step = stride or engine.model.patch_size
        return WindowPredictionProduct(engine, ground, task=task, views=forwards, stride=step, tags=tags)
    if stride is not None:
        raise ValueError(
            f"--stride {stride} does nothing for --output prediction of {task.kind}: every pixel is predicted, at "
            f"{ground.base / task.scale:g} CRS units; leave it out"
        )
    return PixelPredictionProduct(engine, ground, task=task, views=forwards, tags=tags)


PREDICTION = ProductType(
    name="prediction",
    help="classes or values that a fine-tuned model predicts",
    build=build_prediction,
    options=("stride", "views"),
    pretrained=False,
    finetuned=True,
    shows_inputs=True,
)
