"""Layers at scales finer than their own pixels: interpolation, and as much of the model's detail as holds elsewhere."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np
import torch
from scipy import ndimage
from scipy.interpolate import make_interp_spline

from util.geotiff.raster_spec import RasterSpec
from util.inference.engine import Engine, Ground
from util.inference.inputs import InferenceInputs
from util.inference.layers import LayerValues
from util.inference.masked_views import MaskedViews, mosaic_views
from util.inference.product import Arrays, Product, ProductType, Window
from util.model.scale_heads import cell_average_taps
from util.mosaics.mosaic import Block
from util.processes import distributed as dist

logger = logging.getLogger(__name__)

Pair = tuple[int, int]
"""(scale, number of a layer)."""

LEAST_FRACTION = 0.005
"""Fraction of the model's detail below which it adds nothing: it is shown as 0 %."""

CALIBRATION_TILES = 24
"""Tiles on which the fraction of the model's detail is found."""

MARGIN = 16
"""Base-scale pixels around a block that interpolation sees: what lies further away counts for less than 1e-8."""


class ZoomableWindow(Protocol):
    """Ground that was read and can be looked at with finer base pixels."""

    def zoomed(self, zoom: int) -> Window:
        """The same ground with base-scale pixels `zoom` times finer."""


def refine_known(image: np.ndarray, factor: int) -> np.ndarray:
    """Interpolation of (h, w) cell means with gaps to (factor * h, factor * w), NaN where they are not known.

    Along each axis a cubic spline runs through the sums up to the edges of the cells; its differences are the means
    over their parts. So the result is smooth across cells, and the parts of a cell average back to it.
    """
    known = np.isfinite(image)
    if not known.any():
        return np.full((image.shape[0] * factor, image.shape[1] * factor), np.nan, dtype=np.float32)
    nearest = ndimage.distance_transform_edt(~known, return_distances=False, return_indices=True)
    fine = image[tuple(nearest)].astype(np.float64)
    for _ in range(2):  # rows, then columns
        count = len(fine)
        sums = np.concatenate([np.zeros((1, fine.shape[1])), np.cumsum(fine, axis=0)])
        curve = make_interp_spline(np.arange(count + 1.0), sums, k=min(3, count))
        fine = factor * np.diff(curve(np.arange(count * factor + 1) / factor), axis=0).T
    return np.where(known.repeat(factor, axis=0).repeat(factor, axis=1), fine, np.nan).astype(np.float32)


def pool_known(image: np.ndarray, factor: int) -> np.ndarray:
    """Means of squares of (h, w) values, NaN where any is unknown."""
    return image.reshape(image.shape[0] // factor, factor, image.shape[1] // factor, factor).mean(axis=(1, 3))


def detail_of(image: np.ndarray, factor: int) -> np.ndarray:
    """What a predicted (h, w) image holds beyond the parabolas that the model's light heads begin with.

    Those run through the means over squares of `factor` pixels along each axis; NaN where such a mean is unknown.
    """
    coarse = pool_known(image, factor)
    known = np.isfinite(coarse)
    if not known.any():
        return np.full_like(image, np.nan)
    nearest = ndimage.distance_transform_edt(~known, return_distances=False, return_indices=True)
    taps = cell_average_taps(factor).numpy()
    fine = coarse[tuple(nearest)]
    for _ in range(2):  # rows, then columns
        padded = np.pad(fine, ((1, 1), (0, 0)), mode="edge")
        parts = [t[0] * padded[:-2] + t[1] * padded[1:-1] + t[2] * padded[2:] for t in taps]
        fine = np.stack(parts, axis=1).reshape(-1, fine.shape[1]).T
    return np.where(known.repeat(factor, axis=0).repeat(factor, axis=1), image - fine, np.nan)


@dataclass(frozen=True)
class SuperresolutionStep:
    """A coarse layer to be predicted at a finer scale.

    Attributes:
        channel: number of the layer.
        scale: of the result; the layer is not known at it.
        known: finest scale at which it is known here, a divisor of `scale`.
        zoom: the network is run on base pixels so many times finer, so that a scale that it was trained to predict the
            layer at becomes `scale`; 1 where it was trained at `scale` itself. Divides `known` and `scale`.
    """

    channel: int
    scale: int
    known: int
    zoom: int = 1

    @property
    def factor(self) -> int:
        """Pixels of the result along the edge of a known pixel."""
        return self.scale // self.known


def superresolution_step(
    channel: int, scale: int, *, known: Mapping[int, Sequence[int]], scored: Mapping[int, Sequence[int]]
) -> SuperresolutionStep | None:
    """How a layer can be predicted at a scale, with the least zoom; None if it cannot.

    Args:
        channel: number of the layer.
        scale: of the result, finer than the layer.
        known: for each scale, the layers that are as fine.
        scored: for each scale, the layers that the model was trained to predict at it.
    """
    finest = max((s for s in known if channel in known[s] and scale % s == 0), default=0)
    for zoom in range(1, finest + 1):
        at = scale // zoom
        if scale % zoom == 0 and finest % zoom == 0 and channel in scored.get(at, ()) and at > finest // zoom:
            return SuperresolutionStep(channel, scale, finest, zoom)
    return None


class SuperresolutionProduct(Product):
    """Coarse layers at finer scales: interpolation plus a fraction of the detail that the model predicts.

    Args:
        engine: the network.
        ground: the base-scale pixels.
        layers: all layers, in channel order.
        steps: what to predict, each layer and scale once; layers are continuous.
        views: how tiles are masked.
        tags: metadata of the rasters.

    Attributes:
        detail_fractions: fraction of the detail for each channel and scale; from `calibrate`.
    """

    def __init__(
        self,
        engine: Engine,
        ground: Ground,
        *,
        layers: Sequence[LayerValues],
        steps: Sequence[SuperresolutionStep],
        views: MaskedViews,
        tags: Mapping[str, str],
    ) -> None:
        self.engine, self.ground, self.layers, self.steps, self.views = engine, ground, layers, steps, views
        self.reach = engine.model.img_size + MARGIN
        self.detail_fractions: dict[tuple[int, int], float] = {}
        self.rasters = {
            self.name(step.channel, step.scale): RasterSpec(
                crs=ground.crs,
                left=ground.left,
                top=ground.top,
                resolution_x=ground.base / step.scale,
                resolution_y=ground.base / step.scale,
                rows=ground.rows * step.scale,
                cols=ground.cols * step.scale,
                dtype="float32",
                nodata=math.nan,
                names=tuple(f"{layers[step.channel].name} {what}" for what in ("inferred", "interpolated")),
                units=(layers[step.channel].unit,) * 2,
                tags={**tags, **self._facts(step)},
            )
            for step in steps
        }

    def _facts(self, step: SuperresolutionStep) -> dict[str, str]:
        base = self.ground.base
        return {
            "layer": self.layers[step.channel].name,
            "scale": f"{step.scale}x",
            "inferred": f"yes: pixels of {base / step.scale:g}, finer than the layer's own; known at {step.known}x "
            f"({base / step.known:g})",
            "trained_scale": f"{step.scale // step.zoom}x",
            "method": "spline that keeps the mean of each known pixel, and model detail"
            + (
                f"; the model is run with base pixels of {base / step.zoom:g}, and was trained with {base:g}"
                if step.zoom > 1
                else ""
            ),
        }

    def name(self, channel: int, scale: int) -> str:
        """Name of a raster."""
        return f"superresolution_{self.layers[channel].file}_{scale}x"

    def _mosaics(
        self, block: Block, window: Window, tiles: np.ndarray, *, predict: Sequence[Pair], observe: Sequence[Pair]
    ) -> tuple[dict[Pair, np.ndarray], dict[Pair, np.ndarray]]:
        """Predicted and observed images by (scale, layer), model units, NaN where unknown."""
        wanted, seen = ({s: [c for t, c in pairs if t == s] for s, _ in pairs} for pairs in (predict, observe))
        layers = self.engine.model.layers
        mosaics = mosaic_views(
            self.engine,
            self.views,
            block,
            tiles,
            lambda o: window.sample(o, self.engine.device),
            {s: [layers[c].first for c in cs] for s, cs in wanted.items()},
            observe={s: [layers[c].first for c in cs] for s, cs in seen.items()},
        )
        images = ({s: mosaic.mean for s, mosaic in found.items()} for found in mosaics)
        return tuple(  # type: ignore[return-value]
            {(s, c): found[s][k] for s, cs in asked.items() for k, c in enumerate(cs)}
            for found, asked in zip(images, (wanted, seen), strict=True)
        )

    @torch.inference_mode()
    def make(self, block: Block, window: ZoomableWindow) -> Arrays:
        """The block's finer grids; the network is run for those to which it adds something."""
        grown = block.grown(MARGIN)
        known = sorted({(step.known, step.channel) for step in self.steps})
        tiles = self.engine.tiles_of(grown, self.ground)
        _, observed = self._mosaics(grown, window.zoomed(1), tiles, predict=(), observe=known)
        details = self._details(grown, window)
        arrays: Arrays = {}
        for step in self.steps:
            s, c = step.scale, step.channel
            interpolated = refine_known(observed[step.known, c], step.factor)
            inferred = interpolated + self.detail_fractions[c, s] * np.nan_to_num(details.get(step, 0.0))
            core = slice(MARGIN * s, -MARGIN * s)
            bands = np.stack([inferred, interpolated])[:, core, core]
            bands = np.stack([self.layers[c].physical(band) for band in bands])
            name = self.name(c, s)
            arrays[name] = (self.rasters[name], bands.astype(np.float32), block.top * s, block.left * s)
        return arrays

    def _details(self, block: Block, window: ZoomableWindow) -> dict[SuperresolutionStep, np.ndarray]:
        """The model's detail of the steps to which it adds something, model units, NaN where unknown."""
        useful = [step for step in self.steps if self.detail_fractions[step.channel, step.scale] > 0]
        found = {}
        for zoom in sorted({step.zoom for step in useful}):
            fine, steps = block.zoomed(zoom), [step for step in useful if step.zoom == zoom]
            pairs = sorted((step.scale // zoom, step.channel) for step in steps)
            tiles = self.engine.tiles_of(fine, self.ground.zoomed(zoom))
            predicted, _ = self._mosaics(fine, window.zoomed(zoom), tiles, predict=pairs, observe=())
            for step in steps:
                found[step] = detail_of(predicted[step.scale // zoom, step.channel], step.factor)
        return found

    @torch.inference_mode()
    def calibrate(self, windows: Callable[[Block], Any], tiles: np.ndarray) -> dict[tuple[int, int], float]:
        """Finds which fraction of the model's detail is right, by the same step up to the finest known scale.

        Args:
            windows: reads the pixels of a block.
            tiles: (n, 2) origins of the tiles to calibrate on.

        Returns:
            By (channel, scale) the least-squares fraction, clipped to 0..1; 0 where the layer is known only at the
            base scale, at which the model predicts nothing that it sees.
        """
        size = self.engine.model.img_size
        checked = [step for step in self.steps if step.known > 1 and step.known % step.factor == 0]
        pairs = sorted({(step.known, step.channel) for step in checked})
        sums = {step: np.zeros(2) for step in checked}
        for top, left in tiles.tolist() if checked else []:
            block = Block(0, 0, top, left, top + size, left + size)
            predicted, observed = self._mosaics(
                block, windows(block.grown(size)), np.array([[top, left]]), predict=pairs, observe=pairs
            )
            for step in checked:
                key = step.known, step.channel
                detail = detail_of(predicted[key], step.factor)
                missed = observed[key] - refine_known(pool_known(observed[key], step.factor), step.factor)
                both = np.isfinite(detail) & np.isfinite(missed)
                sums[step] += (detail * missed)[both].sum(), np.square(detail[both]).sum()
        found = {(step.channel, step.scale): 0.0 for step in self.steps}
        measured = {step: float(np.clip(a / max(b, 1e-30), 0.0, 1.0)) for step, (a, b) in sums.items()}
        return found | {(step.channel, step.scale): fraction for step, fraction in measured.items()}


def build_superresolution(inputs: InferenceInputs, *, draws: int, mask_ratio: float | None) -> SuperresolutionProduct:
    """Layers at the finer scales that the model predicts them at, or that their neighbours have; calibrated in rank 0.

    Raises:
        ValueError: there is none; predictions have no units; the model sees finer pixels than those to be refined.
    """
    inputs.refuse_normalised("superresolution")
    steps = _possible_steps(inputs)
    if inputs.engine.model.embeds_native:
        raise ValueError(
            "--output superresolution: the model sees layers at their native pixels and learns finer scales where it "
            "sees nothing, so it cannot refine pixels that it sees; use a model trained with --stem base"
        )
    product = SuperresolutionProduct(
        inputs.engine,
        inputs.ground,
        layers=inputs.layers,
        steps=steps,
        views=inputs.masked_views(draws=draws, mask_ratio=mask_ratio, use="visible"),
        tags=inputs.tags,
    )
    tiles = inputs.tiles(CALIBRATION_TILES)
    product.detail_fractions = dist.on_main_rank(lambda: product.calibrate(inputs.read, tiles))
    for (c, s), fraction in product.detail_fractions.items():
        name = product.name(c, s)
        spec = product.rasters[name]
        tags = {**spec.tags, "share_of_model_detail": f"{fraction:.3f}"}
        if fraction < LEAST_FRACTION:
            tags["warning"] = "the model adds nothing: this is interpolation (its detail failed where checked)"
        product.rasters[name] = replace(spec, tags=tags)
        layer, percent = inputs.layers[c].name, 100 * fraction
        logger.info("layer '%s' at %dx: %.0f %% of the model's detail is added to interpolation", layer, s, percent)
    return product


def _possible_steps(inputs: InferenceInputs) -> list[SuperresolutionStep]:
    """Every layer and finer scale that the model can refine it to.

    Raises:
        ValueError: there is none.
    """
    scored = inputs.continuous("refined: only interpolation between measurements can be")
    known = inputs.known
    steps, beyond = [], []
    for channel in (c for c in known[1] if c in scored[1]):
        for scale in (s for s in scored if channel not in known[s] and (known[s] or channel in scored[s])):
            step = superresolution_step(channel, scale, known=known, scored=scored)
            if step is None:
                beyond.append(f"'{inputs.layers[channel].name}' at {inputs.ground.base / scale:g}")
            else:
                steps.append(step)
    finest = {c: inputs.ground.base / max(s for s in scored if c in scored[s]) for c in scored[1]}
    learned = "; ".join(f"'{inputs.layers[c].name}' down to {pixel:g}" for c, pixel in finest.items())
    if not steps:
        raise ValueError(
            "--output superresolution: no layer here is coarser than a neighbour or than in training, or the model "
            f"cannot refine it (it learned {learned}, CRS units). Give a layer that is coarser than another, and that "
            "the model was trained to predict at a scale finer than the base pixels"
        )
    if beyond:
        logger.warning(
            "not predicted, because the model was not trained to refine these layers: %s (it learned %s, CRS units)",
            ", ".join(beyond),
            learned,
        )
    return steps


SUPERRESOLUTION = ProductType(
    name="superresolution",
    help="coarse layers at finer pixels, beside interpolation (models of --stem base)",
    build=build_superresolution,
    options=("draws", "mask_ratio"),
)
