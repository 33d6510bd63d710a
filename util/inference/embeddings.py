"""Embeddings of whole rasters, one vector per patch or finer."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from util.geotiff.parts import Parts
from util.geotiff.raster_spec import RasterSpec
from util.inference.engine import Engine, Ground, SampleOf
from util.inference.inputs import InferenceInputs
from util.inference.product import Arrays, Product, ProductType, Window
from util.inference.quicklooks import embedding_quicklooks
from util.mosaics.mosaic import Block, Mosaic, origin_pairs, raised_cosine

POSITION_TILES = 512
"""Tiles over which features are averaged at each position within a tile."""


class EmbeddingProduct(Product):
    """Features of the encoder at every patch, or every `stride` base-scale pixels, blended over overlapping tiles.

    A pixel of the result lies in the middle of its patch. Each is the mean over the tiles that hold this patch.

    Args:
        engine: the network.
        ground: the base-scale pixels.
        pool: `mean` over the groups that have a valid pixel there, or `group`: all of them, one after the other.
        stride: base-scale pixels between results; divides the patch.
        dtype: `float32` or `float16`.
        tags: metadata of the raster.
        clusters: number of classes to divide the embeddings into, 0 = none.
        seed: of the classes.

    Attributes:
        position_means: (G, L, D), subtracted from features if given: see `position_means`.
    """

    def __init__(
        self,
        engine: Engine,
        ground: Ground,
        *,
        pool: str,
        stride: int,
        dtype: str,
        tags: Mapping[str, str],
        clusters: int = 0,
        seed: int = 0,
    ) -> None:
        model = engine.model
        if stride < 1 or model.patch_size % stride:
            raise ValueError(
                f"--stride {stride}: expected a divisor of the patch's {model.patch_size} base pixels (--patch_size of "
                "training)"
            )
        self.ground, self.pool, self.stride = ground, pool, stride
        self.clusters, self.seed = clusters, seed
        self.derived = ("embeddings_pca", "embeddings_clusters") if clusters else ("embeddings_pca",)
        self.position_means: Tensor | None = None
        self.lead = math.ceil((model.patch_size - stride) / 2 / stride) * stride
        self.offset = (model.patch_size - stride) / 2 - self.lead  # of the first result's edge, base pixels
        # Around a planet the results wrap if its columns are a whole number of them.
        self.engine = engine = engine if engine.wrap_columns % stride == 0 else replace(engine, wrap_columns=0)
        self.cells = tuple(math.ceil((count - self.offset) / stride) for count in (ground.rows, ground.cols))
        if engine.wrap_columns:
            self.cells = (self.cells[0], engine.wrap_columns // stride)
        self.reach = model.img_size + model.patch_size
        width = model.pos_embed.shape[-1] + model.channel_embed.shape[-1]
        names = [f"embedding_{k}" for k in range(width)]
        if pool == "group":
            names = [f"group_{g}_{name}" for g in range(model.encoded_groups) for name in names]
        self.rasters = {
            "embeddings": RasterSpec(
                crs=ground.crs,
                left=ground.left + self.offset * ground.base,
                top=ground.top - self.offset * ground.base,
                resolution_x=stride * ground.base,
                resolution_y=stride * ground.base,
                rows=self.cells[0],
                cols=self.cells[1],
                dtype=dtype,
                nodata=math.nan,
                names=tuple(names),
                units=("",) * len(names),
                tags={**tags, "pool": pool, "stride_base_pixels": str(stride)},
            )
        }

    def extent(self) -> tuple[int, int]:
        """Base-scale (rows, cols) to be divided into blocks: whole results."""
        return self.cells[0] * self.stride, self.cells[1] * self.stride

    def tiles_of(self, block: Block) -> np.ndarray:
        """(n, 2) origins of the tiles with a patch among the unit's results, for every shift of the patches."""
        size, patch = self.engine.model.img_size, self.engine.model.patch_size
        found = []
        for shift_y in range(0, patch, self.stride):
            rows = self.engine.lattice(self.ground, first=shift_y - self.lead)[0]
            rows = rows[(rows + self.lead < block.bottom) & (rows + self.lead + size > block.top)]
            for shift_x in range(0, patch, self.stride):
                cols = self.engine.lattice(self.ground, first=shift_x - self.lead)[1]
                cols = self.engine.cols_between(cols, block.left - self.lead, block.right - self.lead)
                found.append(origin_pairs(rows, cols))
        return np.concatenate(found)

    @torch.inference_mode()
    def make(self, block: Block, window: Window) -> Arrays:
        """The block's embeddings."""
        model, stride, device = self.engine.model, self.stride, self.engine.device
        row, col = block.top // stride, block.left // stride
        rows, cols = -(-block.bottom // stride) - row, -(-block.right // stride) - col
        side, step = model.img_size // model.patch_size, model.patch_size // stride
        taper = raised_cosine(side).to(device)
        taper = taper[:, None] * taper
        groups = model.encoded_groups if self.pool == "group" else 1
        bands = len(self.rasters["embeddings"].names) // groups
        mosaics = [Mosaic(bands, rows, cols, device=device, with_std=False) for _ in range(groups)]
        for origins, tiles in self.engine.batches(self.tiles_of(block), lambda o: window.sample(o, device)):
            with self.engine.meter.network(len(origins)), self.engine.autocast():
                features, known = model.forward_tokens(tiles.imgs, tiles.valid, tiles.native)
            if self.position_means is not None:
                features = features - self.position_means
            weight = known.float()
            if self.pool == "mean":
                total = (features * weight[..., None]).sum(dim=1, keepdim=True)
                features = total / weight.sum(dim=1, keepdim=True)[..., None].clamp_min(1.0)
                weight = known.any(dim=1, keepdim=True).float()
            images = features.transpose(2, 3).unflatten(-1, (side, side))  # (N, groups, D, side, side)
            weights = weight.unflatten(-1, (side, side)) * taper
            for n, (top, left) in enumerate(origins):
                place = {"row": int(top + self.lead) // stride - row, "col": int(left + self.lead) // stride - col}
                for g, mosaic in enumerate(mosaics):
                    mosaic.add(images[n, g], weights[n, g], **place, step=step)
        pixels = np.concatenate([mosaic.mean for mosaic in mosaics])
        return {"embeddings": (self.rasters["embeddings"], pixels, row, col)}

    def derive(self, parts: Parts, into: Parts) -> dict[str, RasterSpec]:
        """Colours out of three principal components and, if asked for, classes."""
        spec = self.rasters["embeddings"]
        return embedding_quicklooks(spec, parts.of("embeddings"), into, clusters=self.clusters, seed=self.seed)


@torch.inference_mode()
def position_means(engine: Engine, tiles: np.ndarray, sample_of: SampleOf) -> Tensor:
    """What features owe to their place within a tile: their mean there, less their mean over all places.

    Features know where in a tile they stand, and a mosaic of tiles shows it as a pattern that repeats with the tiles.

    Args:
        engine: the network.
        tiles: (n, 2) origins of the tiles to average over.
        sample_of: gives the tiles, one at a time.

    Returns:
        (G, L, D) float32; zero where no tile had a valid pixel.
    """
    model = engine.model
    sums, counts = torch.zeros((), device=engine.device), torch.zeros((), device=engine.device)
    for tile in tiles:
        for _, part in engine.batches(tile[None], sample_of):
            with engine.autocast():
                features, known = model.forward_tokens(part.imgs, part.valid, part.native)
            sums = sums + (features * known[..., None]).sum(dim=0)
            counts = counts + known.sum(dim=0)[..., None]
    if not sums.ndim:
        raise ValueError("no valid pixel in any of the tiles looked at; check the layers")
    means = sums / counts.clamp_min(1)
    overall = sums.sum(dim=1, keepdim=True) / counts.sum(dim=1, keepdim=True).clamp_min(1)
    return torch.where(counts > 0, means - overall, 0.0)


def build_embeddings(
    inputs: InferenceInputs, *, pool: str, stride: int | None, positions: str, dtype: str, clusters: int
) -> EmbeddingProduct:
    """Embeddings at patch stride (None) or finer.

    Raises:
        ValueError: number of classes or stride out of range; no valid pixel.
    """
    if clusters > 255 or clusters == 1:
        raise ValueError(f"--clusters {clusters}: expected 2 to 255, or 0 for none")
    engine = inputs.engine
    product = EmbeddingProduct(
        engine,
        inputs.ground,
        pool=pool,
        stride=stride or engine.model.patch_size,
        dtype=dtype,
        tags=inputs.tags,
        clusters=clusters,
        seed=inputs.seed,
    )
    if positions == "remove":
        product.position_means = position_means(engine, inputs.tiles(POSITION_TILES), inputs.single_tiles())
    return product


EMBEDDINGS = ProductType(
    name="embeddings",
    help="feature vectors of the encoder, one a patch or finer",
    build=build_embeddings,
    options=("pool", "stride", "positions", "dtype", "clusters"),
    finetuned=True,
    base_scale_only=True,
)
