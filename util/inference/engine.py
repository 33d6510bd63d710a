"""The network and how to run it on tiles of the ground: batches, precision, tile origins, time."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from util.hardware.device import peak_memory_bytes
from util.mosaics.mosaic import Block, columns_between, origin_pairs, tile_columns, tile_origins, tile_stride

SampleOf = Callable[[np.ndarray], Any]
"""(N, 2) base-scale origins -> the fields of `TileBatch` for these tiles, on the device."""


class TileBatch(NamedTuple):
    """Tiles of the ground as a model takes them.

    Attributes:
        imgs: (N, C, H, W) model units, 0 where invalid.
        valid: (N, C, H, W) bool, True = usable.
        imgs_up: values at each finer scale.
        valid_up: their validity.
        native: native pixels of channel groups, for a model with a stem.
    """

    imgs: Tensor
    valid: Tensor
    imgs_up: Sequence[Tensor]
    valid_up: Sequence[Tensor]
    native: Sequence[Tensor] = ()

    def select(self, chosen: Tensor) -> TileBatch:
        """Some of the tiles: (N,) bool, or their numbers."""
        lists = ([tensor[chosen] for tensor in part] for part in (self.imgs_up, self.valid_up, self.native))
        return TileBatch(self.imgs[chosen], self.valid[chosen], *lists)


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

    def zoomed(self, zoom: int) -> Ground:
        """The same ground in base-scale pixels that are `zoom` times finer."""
        return replace(self, base=self.base / zoom, rows=self.rows * zoom, cols=self.cols * zoom)


@dataclass
class Meter:
    """Counts tiles, and the time spent in the network out of all time.

    Attributes:
        device: where the network is.
        tiles: views of tiles that the network saw.
        network_s: seconds in the network.
        watch: is told after each batch which fraction of the tiles of a block is done.
        start: when counting began.
    """

    device: torch.device
    tiles: int = 0
    network_s: float = 0.0
    watch: Callable[[float], None] | None = None
    start: float = field(default_factory=time.perf_counter)

    def restart(self, *, watch: Callable[[float], None] | None = None) -> None:
        """Sets the counts to zero; `watch` replaces the attribute."""
        self.watch = watch
        self.tiles, self.network_s, self.start = 0, 0.0, time.perf_counter()

    def passed(self, fraction: float) -> None:
        """Notes that a fraction of the tiles of a block is done."""
        if self.watch is not None:
            self.watch(fraction)

    def elapsed(self) -> float:
        """Seconds since the start."""
        return time.perf_counter() - self.start

    def summary(self) -> str:
        """Rate and peak memory, as text to log."""
        elapsed = max(self.elapsed(), 1e-9)
        return (
            f"{self.tiles} tile views in {elapsed:.1f} s, {self.tiles / elapsed:.1f} a second; "
            f"{100 * (1 - self.network_s / elapsed):.0f} % of the time outside the network; "
            f"peak memory {peak_memory_bytes(self.device) / 2**20:.0f} MiB"
        )

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
        overlap: fraction of a tile that the next one repeats.
        meter: counts tiles and time.
        wrap_columns: base-scale columns after which the ground repeats, around a planet; 0 = never.
    """

    model: Any
    device: torch.device
    autocast: Callable[[], AbstractContextManager]
    batch_size: int
    overlap: float
    meter: Meter
    wrap_columns: int = 0

    @property
    def tile_stride(self) -> int:
        """Distance between tiles, base-scale pixels."""
        return tile_stride(self.model.img_size, patch=self.model.patch_size, overlap=self.overlap)

    def batches(self, origins: np.ndarray, sample_of: SampleOf) -> Iterator[tuple[np.ndarray, TileBatch]]:
        """Yields tiles that hold a valid pixel, batch by batch, with their origins."""
        for k in range(0, len(origins), self.batch_size):
            part = origins[k : k + self.batch_size]
            tiles = TileBatch(*sample_of(part))
            useful = tiles.valid.flatten(1).any(dim=1)
            if useful.any():
                yield part[useful.cpu().numpy()], tiles.select(useful)
            self.meter.passed(min(k + self.batch_size, len(origins)) / len(origins))

    def lattice(self, ground: Ground, *, first: int = 0) -> tuple[np.ndarray, np.ndarray]:
        """Rows and columns of tile origins that cover the ground from `first` on; around a planet, each column once."""
        arguments = {"tile": self.model.img_size, "stride": self.tile_stride, "align": self.model.patch_size}
        rows = tile_origins(ground.rows, **arguments, first=first)
        return rows, tile_columns(ground.cols, **arguments, first=first, wrap_columns=self.wrap_columns)

    def cols_between(self, cols: np.ndarray, left: int, right: int) -> np.ndarray:
        """Columns of tiles that reach into [left, right), increasing; around a planet, once for each wrap."""
        return columns_between(cols, left, right, tile=self.model.img_size, wrap_columns=self.wrap_columns)

    def places(self, origins: np.ndarray) -> np.ndarray:
        """(N, 2) origins with columns wrapped, so that a tile has the same origin in every block."""
        return np.stack([origins[:, 0], origins[:, 1] % self.wrap_columns], axis=1) if self.wrap_columns else origins

    def tiles_of(self, block: Block, ground: Ground) -> np.ndarray:
        """(n, 2) origins of the tiles that share ground with a block, row by row."""
        rows, cols = self.lattice(ground)
        size = self.model.img_size
        rows = rows[(rows < block.bottom) & (rows + size > block.top)]
        return origin_pairs(rows, self.cols_between(cols, block.left, block.right))
