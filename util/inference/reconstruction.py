"""Reconstructions of whole rasters, with error and spread over masked views."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch

from util.geotiff.raster_spec import RasterSpec
from util.inference.engine import Arrays, Engine, Ground, LayerValues, Window
from util.inference.masked_views import MaskedViews, mosaic_views
from util.mosaics.mosaic import Block


class ReconstructionProduct:
    """Layers rebuilt from masked views of them, with the spread over views and tiles and the error.

    Args:
        engine: the network.
        ground: the base-scale pixels.
        layers: all layers, in channel order.
        wanted: for each scale, the numbers of the layers to write.
        views: how tiles are shown.
        tags: facts to write along.
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

    def extent(self) -> tuple[int, int]:
        """Base-scale (rows, cols) to be divided into blocks."""
        return self.ground.rows, self.ground.cols

    @torch.inference_mode()
    def make(self, block: Block, window: Window) -> Arrays:
        """The block's predictions, their spread over views and tiles and, of reconstructions, observed minus them."""
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
                bands = self.layers[c].encoding.reconstruction_bands(mean[part], spread[part], seen[part])
                name = self._names[s, c]
                arrays[name] = (self.rasters[name], bands, block.top * s, block.left * s)
        return arrays
