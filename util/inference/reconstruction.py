"""Reconstructions of whole rasters, with error and spread over masked views."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch

from util.geotiff.raster_spec import RasterSpec
from util.inference.engine import Engine, Ground
from util.inference.inputs import InferenceInputs
from util.inference.layers import LayerValues
from util.inference.masked_views import MaskedViews, mosaic_views
from util.inference.product import Arrays, Product, ProductType, Window
from util.mosaics.mosaic import Block


class ReconstructionProduct(Product):
    """Layers rebuilt from masked views of them, with the spread over views and tiles and the error.

    Args:
        engine: the network.
        ground: the base-scale pixels.
        layers: all layers, in channel order.
        wanted: for each scale, the numbers of the layers to write.
        views: how tiles are masked.
        tags: metadata of the rasters.
    """

    def __init__(
        self,
        engine: Engine,
        ground: Ground,
        *,
        layers: Sequence[LayerValues],
        wanted: Mapping[int, Sequence[int]],
        views: MaskedViews,
        tags: Mapping[str, str],
    ) -> None:
        views.check()
        self.engine, self.ground, self.layers, self.views = engine, ground, layers, views
        self.wanted = {s: tuple(channels) for s, channels in wanted.items() if channels}
        self.reach = engine.model.img_size
        self.rasters, self._names = {}, {}
        for s, channels in self.wanted.items():
            for c in channels:
                file = f"reconstruction_{layers[c].file}_{s}x"
                self._names[s, c] = file
                self.rasters[file] = self._raster(s, layers[c], tags)

    def _raster(self, scale: int, layer: LayerValues, tags: Mapping[str, str]) -> RasterSpec:
        ground, resolution = self.ground, self.ground.base / scale
        return RasterSpec(
            crs=ground.crs,
            left=ground.left,
            top=ground.top,
            resolution_x=resolution,
            resolution_y=resolution,
            rows=ground.rows * scale,
            cols=ground.cols * scale,
            dtype="float32",
            nodata=math.nan,
            names=tuple(f"{layer.name} {name}" for name in layer.encoding.band_names),
            units=(layer.encoding.unit(layer.unit),) * 3,
            tags={
                **tags,
                "layer": layer.name,
                "kind": layer.encoding.kind,
                "scale": f"{scale}x",
                "error": layer.encoding.error_text,
            },
        )

    @torch.inference_mode()
    def make(self, block: Block, window: Window) -> Arrays:
        """The block's predictions, their spread over views and tiles, and the error against observed values."""
        tiles = self.engine.tiles_of(block, self.ground)
        of_layer = self.engine.model.layers
        channels = {s: [k for c in numbers for k in of_layer[c].channels] for s, numbers in self.wanted.items()}
        predicted, observed = mosaic_views(
            self.engine,
            self.views,
            block,
            tiles,
            lambda o: window.sample(o, self.engine.device),
            channels,
            observe=channels,
        )
        arrays: Arrays = {}
        for s, numbers in self.wanted.items():
            mean, spread, seen = predicted[s].mean, predicted[s].std, observed[s].mean
            first = 0
            for c in numbers:
                part = slice(first, first + of_layer[c].count)
                first = part.stop
                is_target = c in self.engine.model.target_layers  # of which nothing was observed
                truth = mean[part] if is_target else seen[part]
                bands = self.layers[c].encoding.reconstruction_bands(mean[part], spread[part], truth)
                if is_target:
                    bands[-1] = math.nan
                name = self._names[s, c]
                arrays[name] = (self.rasters[name], bands, block.top * s, block.left * s)
        return arrays


def build_reconstruction(inputs: InferenceInputs, *, draws: int, mask_ratio: float | None) -> ReconstructionProduct:
    """Every layer at every scale that the model predicts it at and that it has pixels for here, or that is a target.

    Raises:
        ValueError: there is none; predictions have no units; too few views.
    """
    inputs.refuse_normalised("reconstruction")
    model = inputs.engine.model
    wanted = {
        s: [c for c in layers if c in inputs.known[s] or c in model.target_layers]
        for s, layers in model.scored_layers.items()
    }
    if not any(wanted.values()):
        raise ValueError("no layer is as fine as a scale at which the model predicts it; nothing can be reconstructed")
    return ReconstructionProduct(
        inputs.engine,
        inputs.ground,
        layers=inputs.layers,
        wanted=wanted,
        views=inputs.masked_views(draws=draws, mask_ratio=mask_ratio),
        tags=inputs.tags,
    )


RECONSTRUCTION = ProductType(
    name="reconstruction",
    help="layers predicted from masked views, with spread and error",
    build=build_reconstruction,
    options=("draws", "mask_ratio"),
)
