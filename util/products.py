"""What a trained model makes of one unit of ground: embeddings, reconstructions, filled gaps, finer grids.

A maker says which rasters it writes and computes one unit of them at a time from tiles that it asks for. It knows
nothing of files: tiles come from a callable, pixels go out as arrays.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import torch
from scipy import ndimage
from torch import Tensor

from util.gaps import RING, Filling, fillable, fit_filling, gap_details, resample_linear
from util.geotiff import RasterInfo
from util.mosaic import Moments, Mosaic, Unit, raised_cosine, tile_origins
from util.views import draws_to_show_all, least_draws, token_pixels, view_noise, visible_counts

Arrays = dict[str, tuple[RasterInfo, np.ndarray, int, int]]
"""Name of a raster -> (raster, (B, rows, cols) pixels, first row, first column)."""

SampleOf = Callable[[np.ndarray], Any]
"""(N, 2) base-scale origins -> imgs, valid, imgs_up, valid_up of these tiles, on the device."""


@dataclass(frozen=True)
class Ground:
    """Base-scale pixels on the ground.

    Attributes:
        crs: coordinate reference system, as WKT.
        left: western edge, CRS units.
        top: northern edge, CRS units.
        base: edge of a base-scale pixel, CRS units.
        rows: base-scale rows.
        cols: base-scale columns.
    """

    crs: str
    left: float
    top: float
    base: float
    rows: int
    cols: int


@dataclass(frozen=True)
class LayerValues:
    """A layer's name and unit, a name for files, and model units -> physical: x * spread + location."""

    name: str
    unit: str
    file: str
    location: float
    spread: float


@dataclass
class Meter:
    """Tiles seen and time spent in the network, of all the time."""

    device: torch.device
    tiles: int = 0
    network_s: float = 0.0
    start: float = field(default_factory=time.perf_counter)

    def restart(self) -> None:
        """Forgets what was counted."""
        self.tiles, self.network_s, self.start = 0, 0.0, time.perf_counter()

    def elapsed(self) -> float:
        """Seconds since the start."""
        return time.perf_counter() - self.start

    @contextmanager
    def network(self, tiles: int) -> Iterator[None]:
        """Counts the time inside as the network's."""
        begin = time.perf_counter()
        yield
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        self.network_s += time.perf_counter() - begin
        self.tiles += tiles


@dataclass(frozen=True)
class Engine:
    """The network, and how to run it.

    Attributes:
        model: the trained network.
        device: where it lives.
        autocast: makes a mixed-precision context.
        batch_size: most tiles in a batch.
        overlap: share of a tile that the next one repeats.
        meter: counts tiles and time.
    """

    model: Any
    device: torch.device
    autocast: Callable[[], AbstractContextManager]
    batch_size: int
    overlap: float
    meter: Meter

    @property
    def tile_stride(self) -> int:
        """Distance between tiles, base-scale pixels: whole patches."""
        patch, size = self.model.patch_size, self.model.img_size
        return min(size, max(patch, round(size * (1 - self.overlap) / patch) * patch))

    def batches(self, origins: np.ndarray, sample_of: SampleOf) -> Iterator[tuple[np.ndarray, list[Tensor]]]:
        """Yields tiles that hold a valid pixel, batch by batch: origins, and [imgs, valid, *imgs_up, *valid_up]."""
        for k in range(0, len(origins), self.batch_size):
            part = origins[k : k + self.batch_size]
            imgs, valid, imgs_up, valid_up = sample_of(part)
            useful = valid.flatten(1).any(dim=1)
            if useful.any():
                kept = [tensor[useful] for tensor in (imgs, valid, *imgs_up, *valid_up)]
                yield part[useful.cpu().numpy()], kept

    def lattice(self, ground: Ground, *, first: int = 0) -> tuple[np.ndarray, np.ndarray]:
        """Origins of tiles in rows and in columns that cover the ground from `first` on."""
        arguments = {"tile": self.model.img_size, "stride": self.tile_stride, "align": self.model.patch_size}
        return (
            tile_origins(ground.rows, **arguments, first=first),
            tile_origins(ground.cols, **arguments, first=first),
        )

    def tiles_of(self, unit: Unit, ground: Ground) -> np.ndarray:
        """(n, 2) origins of the tiles that share ground with a unit, row by row."""
        rows, cols = self.lattice(ground)
        size = self.model.img_size
        rows = rows[(rows < unit.bottom) & (rows + size > unit.top)]
        cols = cols[(cols < unit.right) & (cols + size > unit.left)]
        return _product(rows, cols)


def _product(rows: np.ndarray, cols: np.ndarray) -> np.ndarray:
    return np.stack(np.meshgrid(rows, cols, indexing="ij"), axis=-1).reshape(-1, 2)


class Maker(Protocol):
    """What the programs' loop works with."""

    rasters: dict[str, RasterInfo]
    reach: int  # base-scale pixels around a unit that must be read

    def extent(self) -> tuple[int, int]:
        """Base-scale (rows, cols) to be divided into units."""

    def make(self, unit: Unit, window: Window) -> Arrays:
        """The pixels of one unit."""


class Window(Protocol):
    """Ground that was read: a unit and what lies around it."""

    def sample(self, origins: np.ndarray, device: torch.device) -> Any:
        """Tiles at (N, 2) base-scale origins."""

    def read(self, channel: int, row: int, col: int, rows: int, cols: int) -> np.ndarray:
        """Native pixels of one layer, NaN outside."""


# ------------------------------------------------------------------------------------------------------------
# Embeddings
# ------------------------------------------------------------------------------------------------------------


class EmbeddingMaker:
    """Features of the encoder at every patch, or every `stride` base-scale pixels, blended over overlapping tiles.

    A pixel of the result lies in the middle of its patch. Each is the mean over the tiles that hold this patch.

    Args:
        engine: the network.
        ground: the base-scale pixels.
        pool: `mean` over the groups that have a valid pixel there, or `group`: all of them, one after the other.
        stride: base-scale pixels between results; divides the patch.
        dtype: `float32` or `float16`.
        tags: facts to write along.

    Attributes:
        position_means: (G, L, D), subtracted from features if given: see `position_means`.
    """

    def __init__(
        self, engine: Engine, ground: Ground, *, pool: str, stride: int, dtype: str, tags: Mapping[str, str]
    ) -> None:
        model = engine.model
        if stride < 1 or model.patch_size % stride:
            raise ValueError(
                f"--stride {stride}: expected a divisor of the patch's {model.patch_size} base pixels (--patch_size of "
                "training)"
            )
        self.engine, self.ground, self.pool, self.stride = engine, ground, pool, stride
        self.position_means: Tensor | None = None
        self.lead = math.ceil((model.patch_size - stride) / 2 / stride) * stride
        self.offset = (model.patch_size - stride) / 2 - self.lead  # of the first result's edge, base pixels
        self.cells = tuple(math.ceil((count - self.offset) / stride) for count in (ground.rows, ground.cols))
        self.reach = model.img_size + model.patch_size
        width = model.pos_embed.shape[-1] + model.channel_embed.shape[-1]
        names = [f"embedding_{k}" for k in range(width)]
        if pool == "group":
            names = [f"group_{g}_{name}" for g in range(model.num_groups) for name in names]
        self.rasters = {
            "embeddings": RasterInfo(
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
        """Base-scale (rows, cols) to be divided into units: whole results."""
        return self.cells[0] * self.stride, self.cells[1] * self.stride

    def tiles_of(self, unit: Unit) -> np.ndarray:
        """(n, 2) origins of the tiles with a patch among the unit's results, for every shift of the patches."""
        size, patch = self.engine.model.img_size, self.engine.model.patch_size
        found = []
        for shift_y in range(0, patch, self.stride):
            rows = self.engine.lattice(self.ground, first=shift_y - self.lead)[0]
            rows = rows[(rows + self.lead < unit.bottom) & (rows + self.lead + size > unit.top)]
            for shift_x in range(0, patch, self.stride):
                cols = self.engine.lattice(self.ground, first=shift_x - self.lead)[1]
                cols = cols[(cols + self.lead < unit.right) & (cols + self.lead + size > unit.left)]
                found.append(_product(rows, cols))
        return np.concatenate(found)

    @torch.inference_mode()
    def make(self, unit: Unit, window: Window) -> Arrays:
        """The unit's embeddings."""
        model, stride, device = self.engine.model, self.stride, self.engine.device
        row, col = unit.top // stride, unit.left // stride
        rows, cols = -(-unit.bottom // stride) - row, -(-unit.right // stride) - col
        side, step = model.img_size // model.patch_size, model.patch_size // stride
        taper = raised_cosine(side).to(device)
        taper = taper[:, None] * taper
        groups = model.num_groups if self.pool == "group" else 1
        bands = len(self.rasters["embeddings"].names) // groups
        mosaics = [Mosaic(bands, rows, cols, device=device, spread=False) for _ in range(groups)]
        for origins, tensors in self.engine.batches(self.tiles_of(unit), lambda o: window.sample(o, device)):
            with self.engine.meter.network(len(origins)), self.engine.autocast():
                features, known = model.forward_features(tensors[0], tensors[1])
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
        for _, tensors in engine.batches(tile[None], sample_of):
            with engine.autocast():
                features, known = model.forward_features(tensors[0], tensors[1])
            sums = sums + (features * known[..., None]).sum(dim=0)
            counts = counts + known.sum(dim=0)[..., None]
    if not sums.ndim:
        raise ValueError("no valid pixel in any of the tiles looked at; check the layers")
    means = sums / counts.clamp_min(1)
    overall = sums.sum(dim=1, keepdim=True) / counts.sum(dim=1, keepdim=True).clamp_min(1)
    return torch.where(counts > 0, means - overall, 0.0)


# ------------------------------------------------------------------------------------------------------------
# Masked views
# ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Views:
    """How tiles are shown to the model.

    Attributes:
        mask_ratio: share of valid tokens hidden in a view.
        draws: number of views of a tile.
        seed: decides which tokens.
        count: `hidden` pixels or `visible` ones: which of the predictions are used.
    """

    mask_ratio: float
    draws: int
    seed: int
    count: str = "hidden"

    def check(self) -> None:
        """Refuses too few views to hide everything once.

        Raises:
            ValueError: naming the least number.
        """
        least = least_draws(self.mask_ratio)
        if self.draws < least:
            raise ValueError(
                f"--draws {self.draws}: at a mask ratio of {self.mask_ratio:g} it takes {least} views to hide every "
                "pixel at least once"
            )


def predict_views(
    engine: Engine, views: Views, origins: np.ndarray, tensors: Sequence[Tensor], wanted: Mapping[int, Sequence[int]]
) -> Iterator[tuple[np.ndarray, dict[int, Moments]]]:
    """Predicts tiles from masked views of them.

    Args:
        engine: the network.
        views: how they are shown.
        origins: (N, 2) places of the tiles, which decide the masks.
        tensors: imgs (N, C, H, W) and valid, of the tiles.
        wanted: for each scale, the channels wanted.

    Yields:
        Numbers of some of the tiles, and for each scale the moments (n, C', sH, sW) of what views said of them.
    """
    model = engine.model
    imgs, valid = tensors[0], tensors[1]
    places = model.places_valid(valid)
    counts = visible_counts(places, views.mask_ratio)
    for keep in counts.unique().tolist():
        if keep == 0:
            continue
        chosen = (counts == keep).nonzero()[:, 0]
        part, ok, place = imgs[chosen], valid[chosen], places[chosen]
        numbers = chosen.cpu().numpy()
        size = model.img_size
        moments = {
            s: Moments((len(numbers), len(channels), s * size, s * size), engine.device)
            for s, channels in wanted.items()
        }
        draws = max(views.draws, draws_to_show_all(place, keep)) if views.count == "visible" else views.draws
        for draw in range(draws):
            noise = view_noise(place, keep=keep, draw=draw, origins=origins[numbers], seed=views.seed)
            with engine.meter.network(len(numbers)), engine.autocast():
                images, hidden = model.reconstruct(part, ok, noise=noise, keep=keep)
            used = hidden if views.count == "hidden" else ~hidden
            for s, channels in wanted.items():
                seen = token_pixels(used[:, list(channels)], scale=s, patch_size=model.patch_size)
                moments[s].add(images[s][:, list(channels)].float(), seen.float())
        yield numbers, moments


def mosaic_views(
    engine: Engine,
    views: Views,
    unit: Unit,
    tiles: np.ndarray,
    sample_of: SampleOf,
    wanted: Mapping[int, Sequence[int]],
    *,
    observe: Sequence[int] = (),
) -> tuple[dict[int, Mosaic], dict[int, Mosaic]]:
    """Blends what masked views of overlapping tiles say about a unit.

    Args:
        engine: the network.
        views: how tiles are shown.
        unit: what to cover.
        tiles: (n, 2) origins of the tiles.
        sample_of: gives the tiles.
        wanted: for each scale, the channels wanted.
        observe: scales at which the observed values are wanted too.

    Returns:
        For each scale the prediction, and the observed values where they are known, both in model units.
    """
    model, device = engine.model, engine.device
    shape = {s: (len(c), (unit.bottom - unit.top) * s, (unit.right - unit.left) * s) for s, c in wanted.items()}
    predicted = {s: Mosaic(*shape[s], device=device) for s in wanted}
    observed = {s: Mosaic(*shape[s], device=device, spread=False) for s in observe}
    tapers = {s: raised_cosine(model.img_size * s).to(device) for s in wanted}
    scales = list(model.scales)
    for origins, tensors in engine.batches(tiles, sample_of):
        for n, (top, left) in enumerate(origins):
            for s, mosaic in observed.items():
                level = scales.index(s)
                image = tensors[0] if level == 0 else tensors[1 + level]
                ok = tensors[1] if level == 0 else tensors[len(scales) + level]
                channels = list(wanted[s])
                place = {"row": int(top - unit.top) * s, "col": int(left - unit.left) * s}
                mosaic.add(image[n, channels], ok[n, channels].float(), **place)
        for numbers, moments in predict_views(engine, views, origins, tensors, wanted):
            for k, number in enumerate(numbers):
                top, left = origins[number]
                for s, mosaic in predicted.items():
                    taper = tapers[s][:, None] * tapers[s]
                    mosaic.add(
                        moments[s].mean[k],
                        moments[s].weight[k] * taper,
                        squares=moments[s].squares[k] * taper,
                        row=int(top - unit.top) * s,
                        col=int(left - unit.left) * s,
                    )
    return predicted, observed


class ReconstructionMaker:
    """Layers rebuilt from masked views of them, or predicted at scales finer than their pixels.

    Args:
        engine: the network.
        ground: the base-scale pixels.
        layers: all layers, in channel order.
        wanted: for each scale, the channels to write.
        views: how tiles are shown; `hidden` gives reconstructions, `visible` finer grids.
        name: first word of the files' names.
        tags: facts to write along.
    """

    def __init__(
        self,
        engine: Engine,
        ground: Ground,
        *,
        layers: Sequence[LayerValues],
        wanted: Mapping[int, Sequence[int]],
        views: Views,
        name: str,
        tags: Mapping[str, str],
    ) -> None:
        views.check()
        self.engine, self.ground, self.layers, self.views = engine, ground, layers, views
        self.wanted = {s: tuple(channels) for s, channels in wanted.items() if channels}
        self.reach = engine.model.img_size
        self.with_error = views.count == "hidden"
        self.rasters, self._names = {}, {}
        for s, channels in self.wanted.items():
            for c in channels:
                file = f"{name}_{layers[c].file}_{s}x"
                self._names[s, c] = file
                self.rasters[file] = self._raster(s, layers[c], tags)

    def _raster(self, scale: int, layer: LayerValues, tags: Mapping[str, str]) -> RasterInfo:
        ground, resolution = self.ground, self.ground.base / scale
        names = ("reconstruction", "spread", "error") if self.with_error else ("inferred", "spread")
        return RasterInfo(
            crs=ground.crs,
            left=ground.left,
            top=ground.top,
            resolution_x=resolution,
            resolution_y=resolution,
            rows=ground.rows * scale,
            cols=ground.cols * scale,
            dtype="float32",
            nodata=math.nan,
            names=tuple(f"{layer.name} {name}" for name in names),
            units=(layer.unit,) * len(names),
            tags={
                **tags,
                "layer": layer.name,
                "scale": f"{scale}x",
                "inferred": "no" if self.with_error else "yes: finer than the layer's own pixels",
            },
        )

    def extent(self) -> tuple[int, int]:
        """Base-scale (rows, cols) to be divided into units."""
        return self.ground.rows, self.ground.cols

    @torch.inference_mode()
    def make(self, unit: Unit, window: Window) -> Arrays:
        """The unit's predictions, their spread over views and tiles and, of reconstructions, observed minus them."""
        tiles = self.engine.tiles_of(unit, self.ground)
        observe = list(self.wanted) if self.with_error else [1]
        # Of a finer grid, only the base scale tells where the layer is known.
        wanted = self.wanted if self.with_error else {1: sorted({c for cs in self.wanted.values() for c in cs})}
        predicted, observed = mosaic_views(
            self.engine,
            self.views,
            unit,
            tiles,
            lambda o: window.sample(o, self.engine.device),
            {**wanted, **self.wanted},
            observe=observe,
        )
        arrays: Arrays = {}
        for s, channels in self.wanted.items():
            mean, spread = predicted[s].mean, predicted[s].spread
            seen = observed[s if self.with_error else 1].mean
            for k, c in enumerate(channels):
                layer, info = self.layers[c], self.rasters[self._names[s, c]]
                if self.with_error:
                    bands = [
                        np.where(np.isfinite(seen[k]), mean[k] * layer.spread + layer.location, np.nan),
                        np.where(np.isfinite(seen[k]), spread[k] * layer.spread, np.nan),
                        (seen[k] - mean[k]) * layer.spread,
                    ]
                else:
                    known = np.isfinite(seen[wanted[1].index(c)]).repeat(s, axis=0).repeat(s, axis=1)
                    bands = [
                        np.where(known, mean[k] * layer.spread + layer.location, np.nan),
                        np.where(known, spread[k] * layer.spread, np.nan),
                    ]
                arrays[self._names[s, c]] = (info, np.stack(bands).astype(np.float32), unit.top * s, unit.left * s)
        return arrays


# ------------------------------------------------------------------------------------------------------------
# Gaps
# ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class NativeLayer:
    """A layer's own grid, and where it lies among base-scale pixels: native = offset + ratio * base, per axis.

    Attributes:
        channel: its number.
        values: name, unit and statistics.
        scale: the finest scale at which the model predicts it.
        left: western edge, CRS units.
        top: northern edge, CRS units.
        resolution_x: width of a pixel, CRS units.
        resolution_y: height of a pixel, CRS units.
        rows: number of rows.
        cols: number of columns.
        ratio_yx: native pixels per base-scale pixel.
        offset_yx: native coordinate of the first base-scale pixel's edge.
    """

    channel: int
    values: LayerValues
    scale: int
    left: float
    top: float
    resolution_x: float
    resolution_y: float
    rows: int
    cols: int
    ratio_yx: tuple[float, float]
    offset_yx: tuple[float, float]

    def window(self, unit: Unit) -> tuple[int, int, int, int]:
        """(row, col, rows, cols) of the pixels whose centres lie in a unit; they may lie outside of the layer."""
        first = [
            math.ceil(round(offset + ratio * edge - 0.5, 6))
            for offset, ratio, edge in zip(self.offset_yx, self.ratio_yx, (unit.top, unit.left), strict=True)
        ]
        last = [
            math.ceil(round(offset + ratio * edge - 0.5, 6))
            for offset, ratio, edge in zip(self.offset_yx, self.ratio_yx, (unit.bottom, unit.right), strict=True)
        ]
        return first[0], first[1], last[0] - first[0], last[1] - first[1]

    def base_place(self, first: int, count: int, axis: int) -> np.ndarray:
        """(count,) base-scale coordinates of the centres of pixels along an axis (0 = rows)."""
        return (np.arange(first, first + count) + 0.5 - self.offset_yx[axis]) / self.ratio_yx[axis]


class GapMaker:
    """Layers on their own grids with narrow gaps filled; valid pixels stay as they are.

    Args:
        engine: the network.
        ground: the base-scale pixels.
        layers: the layers to fill.
        views: how tiles are shown.
        max_gap: widest gap that is filled, CRS units.
        tags: facts to write along.

    Attributes:
        fillings: how each channel's gaps are filled; from `calibrate`.
    """

    def __init__(
        self,
        engine: Engine,
        ground: Ground,
        *,
        layers: Sequence[NativeLayer],
        views: Views,
        max_gap: float,
        tags: Mapping[str, str],
    ) -> None:
        views.check()
        tile = engine.model.img_size * ground.base
        if max_gap > tile:
            raise ValueError(
                f"--max_gap {max_gap:g} is wider than a tile, {tile:g}: the model cannot see across; expected at most "
                "that"
            )
        self.engine, self.ground, self.layers, self.views, self.max_gap = engine, ground, layers, views, max_gap
        self.margin = math.ceil(max_gap / ground.base) + RING + 1
        self.reach = self.margin + engine.model.img_size
        self.fillings: dict[int, Filling] = {}
        self.rasters = {
            f"gapfill_{layer.values.file}": RasterInfo(
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
                    "uncertainty": "error expected from artificial gaps; 0 = measured, as it was; > 0 = filled",
                },
            )
            for layer in layers
        }

    def extent(self) -> tuple[int, int]:
        """Base-scale (rows, cols) to be divided into units."""
        return self.ground.rows, self.ground.cols

    @torch.inference_mode()
    def make(self, unit: Unit, window: Window) -> Arrays:
        """The unit's layers with their gaps filled, and the uncertainty of what was filled."""
        grown = unit.grown(self.margin)
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
            rows, cols = np.nonzero(fill)
            marks[
                np.floor(layer.base_place(native[0], native[2], 0)[rows]).astype(int) - grown.top,
                np.floor(layer.base_place(native[1], native[3], 1)[cols]).astype(int) - grown.left,
            ] = True
        predicted = self._predict(grown, marks, window) if marks.any() else {}
        arrays: Arrays = {}
        for layer, value, fill in zip(self.layers, values, fills, strict=True):
            name = f"gapfill_{layer.values.file}"
            native = layer.window(grown)
            bands = self._fill(layer, value, fill, predicted, grown)
            core = layer.window(unit)
            top, left = max(core[0], 0), max(core[1], 0)
            bottom, right = min(core[0] + core[2], layer.rows), min(core[1] + core[3], layer.cols)
            if bottom > top and right > left:
                part = bands[:, top - native[0] : bottom - native[0], left - native[1] : right - native[1]]
                arrays[name] = (self.rasters[name], part, top, left)
        return arrays

    def _predict(self, grown: Unit, marks: np.ndarray, window: Window) -> dict[tuple[int, int], Any]:
        """Means and spreads by (scale, channel) in model units, from the tiles that a gap lies in."""
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
        mosaics, _ = mosaic_views(
            self.engine,
            self.views,
            grown,
            tiles[touched],
            lambda o: window.sample(o, self.engine.device),
            wanted,
        )
        found: dict[tuple[int, int], Any] = {}
        for s, channels in wanted.items():
            mean, spread = mosaics[s].mean, mosaics[s].spread
            found |= {(s, c): (mean[k], spread[k]) for k, c in enumerate(channels)}
        return found

    def _details(
        self, layer: NativeLayer, value: np.ndarray, fill: np.ndarray, predicted: Mapping[Any, Any], grown: Unit
    ) -> tuple[np.ndarray, np.ndarray]:
        """Spline and model detail in gaps, physical units, on the layer's own pixels."""
        row, col, rows, cols = layer.window(grown)
        places_y = (layer.base_place(row, rows, 0) - grown.top) * layer.scale - 0.5
        places_x = (layer.base_place(col, cols, 1) - grown.left) * layer.scale - 0.5
        mean = resample_linear(predicted[layer.scale, layer.channel][0], places_y, places_x)
        return gap_details(value, mean * layer.values.spread + layer.values.location, fill)

    def _fill(
        self, layer: NativeLayer, value: np.ndarray, fill: np.ndarray, predicted: Mapping[Any, Any], grown: Unit
    ) -> np.ndarray:
        """(2, rows, cols): values with gaps filled, and the uncertainty."""
        known = np.isfinite(value)
        filled, uncertainty = value.copy(), np.where(known, 0.0, np.nan).astype(np.float32)
        if fill.any() and predicted:
            filling = self.fillings[layer.channel]
            spline, detail = self._details(layer, value, fill, predicted, grown)
            done = np.isfinite(spline)
            filled[done] = (spline + filling.share * detail)[done]
            uncertainty[done] = filling.uncertainty(known)[done]
        return np.stack([filled, uncertainty])

    @torch.inference_mode()
    def calibrate(self, windows: Callable[[Unit], Any], tiles: np.ndarray, *, count: int) -> dict[int, Filling]:
        """Fills artificial gaps in each layer, others left as they are, to learn how to fill real ones.

        Squares of three sizes up to `max_gap` are taken out of the middle of tiles.

        Args:
            windows: reads the ground of a unit.
            tiles: (n, 2) origins of tiles to choose from, in the order of choice.
            count: gaps for each layer, at most.

        Returns:
            By channel, what `fillings` is to be set to.

        Raises:
            ValueError: no gap could be made in a layer.
        """
        size = self.engine.model.img_size
        found = {}
        for layer in self.layers:
            collected: list[tuple[np.ndarray, ...]] = []
            for top, left in tiles.tolist():
                unit = Unit(0, 0, top, left, top + size, left + size)
                window = windows(unit.grown(self.reach))
                native = layer.window(unit)
                edge = self.max_gap * (0.3, 0.6, 0.9)[len(collected) % 3]
                gap = _middle(native, edge / layer.resolution_y, edge / layer.resolution_x)
                truth = window.read(layer.channel, *native)
                around = ndimage.binary_dilation(gap, structure=np.ones((3, 3)), iterations=RING)
                if not np.isfinite(truth[around]).all():
                    continue
                collected.append(self._try_gap(layer, unit, window.without(layer.channel, native, gap), truth, gap))
                if len(collected) == count:
                    break
            try:
                found[layer.channel] = (
                    fit_filling(*zip(*collected, strict=True)) if collected else fit_filling([], [], [], [])
                )
            except ValueError as error:
                raise ValueError(f"layer '{layer.values.name}': {error}; lower --max_gap") from error
        return found

    def _try_gap(
        self, layer: NativeLayer, unit: Unit, window: Any, truth: np.ndarray, gap: np.ndarray
    ) -> tuple[np.ndarray, ...]:
        """Spline, detail, truth and place of one artificial gap."""
        native = layer.window(unit)
        marks = np.zeros((unit.bottom - unit.top, unit.right - unit.left), dtype=bool)
        rows, cols = np.nonzero(gap)
        marks[
            np.floor(layer.base_place(native[0], native[2], 0)[rows]).astype(int) - unit.top,
            np.floor(layer.base_place(native[1], native[3], 1)[cols]).astype(int) - unit.left,
        ] = True
        predicted = self._predict(unit, marks, window)
        spline, detail = self._details(layer, np.where(gap, np.nan, truth), gap, predicted, unit)
        return spline, detail, truth, gap


def _middle(native: tuple[int, int, int, int], height: float, width: float) -> np.ndarray:
    """(rows, cols) bool, True in a rectangle in the middle of a window."""
    gap = np.zeros(native[2:], dtype=bool)
    rows, cols = max(1, round(height)), max(1, round(width))
    top, left = (native[2] - rows) // 2, (native[3] - cols) // 2
    gap[max(top, 0) : top + rows, max(left, 0) : left + cols] = True
    return gap
