"""Gap filling: layers on their own grids with narrow gaps filled by a spline and the detail of the model."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from scipy import ndimage

from util.geotiff.raster_spec import RasterSpec
from util.inference.engine import Engine, Ground
from util.inference.gap_calibration import FOLDS, GapModel, TrialGap, fit_gap_model, roughness
from util.inference.gap_spline import RING, fillable, gap_details, resample_linear
from util.inference.inputs import InferenceInputs
from util.inference.layers import NativeLayer
from util.inference.masked_views import MaskedViews, mosaic_views
from util.inference.product import Arrays, Product, ProductType, Window
from util.mosaics.mosaic import Block
from util.processes import distributed as dist

logger = logging.getLogger(__name__)

ARTIFICIAL_GAPS = 24
"""Gaps cut out of each layer to calibrate the filling; enough for errors at eight distances."""
GAP_TRIES = 1000
"""Tiles in which an artificial gap is tried, at most."""
GAP_SIZES = (0.3, 0.6, 0.9)
"""Edges of artificial gaps, as fractions of the widest gap that is filled."""


class GapFillingProduct(Product):
    """Layers on their own grids with narrow gaps filled; valid pixels stay as they are.

    Args:
        engine: the network.
        ground: the base-scale pixels.
        layers: the layers to fill.
        views: how tiles are masked.
        max_gap: widest gap that is filled, CRS units.
        tags: metadata of the rasters.

    Attributes:
        gap_models: how each channel's gaps are filled; from `calibrate`.
    """

    def __init__(
        self,
        engine: Engine,
        ground: Ground,
        *,
        layers: Sequence[NativeLayer],
        views: MaskedViews,
        max_gap: float,
        tags: Mapping[str, str],
    ) -> None:
        views.check()
        tile = engine.model.img_size * ground.base
        if max_gap > tile:
            raise ValueError(
                f"--max_gap {max_gap:g} is wider than a tile, {tile:g}: the model cannot see across; expected at most "
                f"{tile:g}"
            )
        self.engine, self.ground, self.layers, self.views, self.max_gap = engine, ground, layers, views, max_gap
        self.margin = math.ceil(max_gap / ground.base) + RING + 1
        self.reach = self.margin + engine.model.img_size
        self.gap_models: dict[int, GapModel] = {}
        self.rasters = {
            f"gapfill_{layer.values.file}": RasterSpec(
                crs=ground.crs,
                left=layer.left,
                top=layer.top,
                resolution_x=layer.resolution_x,
                resolution_y=layer.resolution_y,
                rows=layer.rows,
                cols=layer.cols,
                dtype="float32",
                nodata=math.nan,
                names=(f"{layer.values.name} filled", f"{layer.values.name} uncertainty"),
                units=(layer.values.unit,) * 2,
                tags={
                    **tags,
                    "layer": layer.values.name,
                    "max_gap": f"{max_gap:g}",
                    "predicted_at": f"{layer.scale}x",
                    "uncertainty": "error expected from artificial gaps; 0 = measured; > 0 = filled",
                },
            )
            for layer in layers
        }

    @torch.inference_mode()
    def make(self, block: Block, window: Window) -> Arrays:
        """The block's layers with their gaps filled, and the uncertainty of filled pixels."""
        grown = block.grown(self.margin)
        values, fills, marks = [], [], np.zeros((grown.bottom - grown.top, grown.right - grown.left), dtype=bool)
        for layer in self.layers:
            native = layer.window(grown)
            values.append(window.read(layer.channel, *native))
            fill = fillable(
                np.isfinite(values[-1]),
                width_y=self.max_gap / layer.resolution_y,
                width_x=self.max_gap / layer.resolution_x,
            )
            fills.append(fill)
            _mark_base_pixels(marks, layer, fill, grown)
        predicted = self._predict(grown, marks, window) if marks.any() else {}
        arrays: Arrays = {}
        for layer, value, fill in zip(self.layers, values, fills, strict=True):
            name = f"gapfill_{layer.values.file}"
            native = layer.window(grown)
            bands = self._fill(layer, value, fill, predicted, grown)
            core = layer.window(block)
            top, left = max(core[0], 0), max(core[1], 0)
            bottom, right = min(core[0] + core[2], layer.rows), min(core[1] + core[3], layer.cols)
            if bottom > top and right > left:
                part = bands[:, top - native[0] : bottom - native[0], left - native[1] : right - native[1]]
                arrays[name] = (self.rasters[name], part, top, left)
        return arrays

    def _predict(self, grown: Block, marks: np.ndarray, window: Window) -> dict[tuple[int, int], np.ndarray]:
        """Mean predictions by (scale, channel) in model units, from the tiles that touch a gap."""
        size = self.engine.model.img_size
        near = ndimage.binary_dilation(marks, structure=np.ones((3, 3)), iterations=2)
        table = np.pad(near.cumsum(axis=0).cumsum(axis=1), ((1, 0), (1, 0)))
        tiles = self.engine.tiles_of(grown, self.ground)
        top, left = np.maximum(tiles - [grown.top, grown.left], 0).T
        bottom = np.minimum(tiles[:, 0] + size - grown.top, near.shape[0])
        right = np.minimum(tiles[:, 1] + size - grown.left, near.shape[1])
        touched = table[bottom, right] - table[top, right] - table[bottom, left] + table[top, left] > 0
        wanted: dict[int, list[int]] = {}
        for layer in self.layers:
            wanted.setdefault(layer.scale, []).append(layer.channel)
        channels = {s: [self.engine.model.layers[c].first for c in numbers] for s, numbers in wanted.items()}
        mosaics, _ = mosaic_views(
            self.engine,
            self.views,
            grown,
            tiles[touched],
            lambda o: window.sample(o, self.engine.device),
            channels,
        )
        means = {s: mosaics[s].mean for s in wanted}
        return {(s, c): means[s][k] for s, numbers in wanted.items() for k, c in enumerate(numbers)}

    def _details(
        self,
        layer: NativeLayer,
        value: np.ndarray,
        fill: np.ndarray,
        predicted: Mapping[tuple[int, int], np.ndarray],
        grown: Block,
    ) -> tuple[np.ndarray, np.ndarray]:
        """Spline and model detail in gaps, physical units, on the layer's native pixels."""
        row, col, rows, cols = layer.window(grown)
        image_rows = (layer.base_coordinates(row, rows, axis=0) - grown.top) * layer.scale - 0.5
        image_cols = (layer.base_coordinates(col, cols, axis=1) - grown.left) * layer.scale - 0.5
        mean = resample_linear(predicted[layer.scale, layer.channel], image_rows, image_cols)
        return gap_details(value, layer.values.physical(mean), fill)

    def _fill(
        self,
        layer: NativeLayer,
        value: np.ndarray,
        fill: np.ndarray,
        predicted: Mapping[tuple[int, int], np.ndarray],
        grown: Block,
    ) -> np.ndarray:
        """(2, rows, cols): values with gaps filled, and the uncertainty."""
        known = np.isfinite(value)
        filled, uncertainty = value.copy(), np.where(known, 0.0, np.nan).astype(np.float32)
        if fill.any() and predicted:
            gap_model = self.gap_models[layer.channel]
            spline, detail = self._details(layer, value, fill, predicted, grown)
            done = np.isfinite(spline)
            filled[done] = (spline + gap_model.detail_fraction * detail)[done]
            uncertainty[done] = gap_model.uncertainty(known, self._roughness(layer, value))[done]
        return np.stack([filled, uncertainty])

    def _roughness(self, layer: NativeLayer, value: np.ndarray) -> np.ndarray:
        """Roughness of the layer around its gaps, from valid pixels as far as the widest gap reaches."""
        reach_y, reach_x = (self.max_gap / 2 / size + RING for size in (layer.resolution_y, layer.resolution_x))
        return roughness(value, reach_y=reach_y, reach_x=reach_x)

    @torch.inference_mode()
    def calibrate(self, windows: Callable[[Block], Any], tiles: np.ndarray, *, count: int) -> dict[int, GapModel]:
        """Fits the gap model of each layer on artificial gaps in it, the other layers left as they are.

        Squares of three sizes up to `max_gap` are cut out of the middle of tiles: in each tile that of which there are
        fewest so far, or the next that fits.

        Args:
            windows: reads the pixels of a block.
            tiles: (n, 2) origins of tiles to try, in order.
            count: gaps for each layer, at most.

        Returns:
            The gap models by channel, for `gap_models`.

        Raises:
            ValueError: no gap could be made in a layer.
        """
        size = self.engine.model.img_size
        found = {}
        for layer in self.layers:
            collected: list[TrialGap] = []
            counts = dict.fromkeys(GAP_SIZES, 0)
            for top, left in tiles.tolist():
                block = Block(0, 0, top, left, top + size, left + size)
                window = windows(block.grown(self.reach))
                native = layer.window(block)
                truth = window.read(layer.channel, *native)
                gap = self._fitting_gap(layer, native, truth, counts)
                if gap is None:
                    continue
                collected.append(self._try_gap(layer, block, window.without(layer.channel, native, gap), truth, gap))
                if len(collected) == count:
                    break
            try:
                found[layer.channel] = fit_gap_model(collected)
            except ValueError as error:
                raise ValueError(f"layer '{layer.values.name}': {error}; lower --max_gap") from error
        return found

    def _fitting_gap(
        self, layer: NativeLayer, native: tuple[int, int, int, int], truth: np.ndarray, counts: dict[float, int]
    ) -> np.ndarray | None:
        """An artificial gap with valid pixels in and around it, of the size with the lowest count, which it raises.

        Args:
            layer: the layer.
            native: (row, col, rows, cols) of its pixels in a tile.
            truth: these pixels.
            counts: gaps made so far, by size; changed.

        Returns:
            (rows, cols) bool, True in the gap; None if none fits.
        """
        for fraction in sorted(counts, key=counts.__getitem__):
            edge = self.max_gap * fraction
            gap = _middle(native, edge / layer.resolution_y, edge / layer.resolution_x)
            around = ndimage.binary_dilation(gap, structure=np.ones((3, 3)), iterations=RING)
            if np.isfinite(truth[around]).all():
                counts[fraction] += 1
                return gap
        return None

    def _try_gap(self, layer: NativeLayer, block: Block, window: Any, truth: np.ndarray, gap: np.ndarray) -> TrialGap:
        """Fills one artificial gap."""
        marks = np.zeros((block.bottom - block.top, block.right - block.left), dtype=bool)
        _mark_base_pixels(marks, layer, gap, block)
        predicted = self._predict(block, marks, window)
        value = np.where(gap, np.nan, truth)
        spline, detail = self._details(layer, value, gap, predicted, block)
        return TrialGap(spline, detail, truth, gap, self._roughness(layer, value))


def _mark_base_pixels(marks: np.ndarray, layer: NativeLayer, pixels: np.ndarray, block: Block) -> None:
    """Sets the base-scale pixels of a block in which chosen native pixels of a layer have their centres.

    Args:
        marks: (rows, cols) bool, base-scale pixels of the block; changed.
        layer: the layer.
        pixels: bool, the chosen ones among the native pixels of the block.
        block: the block.
    """
    row, col, row_count, col_count = layer.window(block)
    rows, cols = np.nonzero(pixels)
    base_rows = np.floor(layer.base_coordinates(row, row_count, axis=0)).astype(int)
    base_cols = np.floor(layer.base_coordinates(col, col_count, axis=1)).astype(int)
    marks[base_rows[rows] - block.top, base_cols[cols] - block.left] = True


def _middle(native: tuple[int, int, int, int], height: float, width: float) -> np.ndarray:
    """(rows, cols) bool, True in a rectangle in the middle of a window of native pixels."""
    gap = np.zeros(native[2:], dtype=bool)
    rows, cols = max(1, round(height)), max(1, round(width))
    top, left = (native[2] - rows) // 2, (native[3] - cols) // 2
    gap[max(top, 0) : top + rows, max(left, 0) : left + cols] = True
    return gap


def build_gapfill(
    inputs: InferenceInputs, *, draws: int, mask_ratio: float | None, max_gap: float | None
) -> GapFillingProduct:
    """Layers on their own grids, gaps up to `max_gap` (CRS units; None: half a tile) filled; calibrated in rank 0.

    Raises:
        ValueError: no layer can be filled; the gap is wider than a tile; predictions have no units.
    """
    inputs.refuse_normalised("gapfill")
    product = GapFillingProduct(
        inputs.engine,
        inputs.ground,
        layers=_fillable_layers(inputs),
        views=inputs.masked_views(draws=draws, mask_ratio=mask_ratio),
        max_gap=max_gap or inputs.engine.model.img_size * inputs.ground.base / 2,
        tags=inputs.tags,
    )
    logger.info("filling artificial gaps to calibrate the filling")
    product.gap_models = dist.on_main_rank(
        lambda: product.calibrate(inputs.read, inputs.tiles(GAP_TRIES), count=ARTIFICIAL_GAPS)
    )
    for layer in product.layers:
        _record_gap_model(product, layer, product.gap_models[layer.channel])
    return product


def _fillable_layers(inputs: InferenceInputs) -> list[NativeLayer]:
    """The continuous layers that the model predicts at the base scale, each with its finest scale."""
    scored = inputs.continuous("filled: a spline needs measurements; see --output reconstruction")
    finest = {
        c: max(s for s in scored if c in scored[s] and c in inputs.known[s]) for c in scored[1] if c in inputs.known[1]
    }
    if not finest:
        raise ValueError("no layer is as fine as the base pixels at which the model predicts it; nothing can be filled")
    targets = inputs.engine.model.target_layers
    measured = [c for c, layer in enumerate(inputs.layers) if layer.encoding.is_continuous and c not in targets]
    left_out = [inputs.layers[c].name for c in measured if c not in finest]
    if left_out:
        logger.warning("not filled, because the model does not predict them here: %s", ", ".join(left_out))
    present = ((inputs.natives[c], scale) for c, scale in finest.items())
    return [replace(native, scale=scale) for native, scale in present if native is not None]


def _record_gap_model(product: GapFillingProduct, layer: NativeLayer, model: GapModel) -> None:
    """Writes to log and tags how a layer's gaps are filled."""
    name = f"gapfill_{layer.values.file}"
    spec = product.rasters[name]
    tags = {
        "method": "thin-plate spline and model detail",
        "artificial_gaps": str(model.gaps),
        "share_of_model_detail": f"{model.detail_fraction:.3f}",
        "uncertainty_follows": f"distance to valid pixels, roughness around to the power of {model.power:g}",
    }
    product.rasters[name] = replace(spec, tags={**spec.tags, **tags})
    logger.info(
        "layer '%s', %d artificial gaps: %.0f %% of the model's detail is added to the spline; error %.4g to %.4g %s "
        "from edge to middle of a gap, growing with the roughness around it to the power of %g",
        layer.values.name,
        model.gaps,
        100 * model.detail_fraction,
        model.errors[0],
        model.errors[-1],
        layer.values.unit,
        model.power,
    )
    if model.gaps < FOLDS:
        logger.warning(
            "layer '%s': only %d artificial gaps found enough valid ground, expected %d or more: the fraction of the "
            "model's detail and the uncertainty are rough guesses; a smaller --max_gap fits into more tiles",
            layer.values.name,
            model.gaps,
            FOLDS,
        )


GAPFILL = ProductType(
    name="gapfill",
    help="layers on their own grids with narrow gaps filled, and the uncertainty",
    build=build_gapfill,
    options=("draws", "mask_ratio", "max_gap"),
)
