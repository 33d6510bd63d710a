"""Overlapping tiles -> one image: where tiles lie, how they are weighted, and running moments of their values.

A `Mosaic` holds one window of the output, never the whole of it; windows are computed independently of each other,
so a result depends neither on their order nor on the number of processes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True)
class Block:
    """A rectangle of the output that is computed, written and resumed as a whole; edges in base-scale pixels.

    Attributes:
        row: number of the rectangle from the north.
        col: number of the rectangle from the west.
        top: first base row.
        left: first base column.
        bottom: base row after the last.
        right: base column after the last.
    """

    row: int
    col: int
    top: int
    left: int
    bottom: int
    right: int

    def zoomed(self, zoom: int) -> Block:
        """The same rectangle in base-scale pixels that are `zoom` times finer."""
        return Block(self.row, self.col, *(edge * zoom for edge in self.edges))

    @property
    def edges(self) -> tuple[int, int, int, int]:
        """(top, left, bottom, right)."""
        return self.top, self.left, self.bottom, self.right

    def grown(self, margin: int) -> Block:
        """The same rectangle with a margin on every side, base-scale pixels."""
        return Block(
            self.row, self.col, self.top - margin, self.left - margin, self.bottom + margin, self.right + margin
        )


def blocks_of(rows: int, cols: int, *, edge: int) -> list[Block]:
    """Divides base-scale pixels into rectangles, row by row; those at the far edges are smaller.

    Args:
        rows: base-scale rows.
        cols: base-scale columns.
        edge: edge of a rectangle, base-scale pixels.
    """
    return [
        Block(i, j, top, left, min(top + edge, rows), min(left + edge, cols))
        for i, top in enumerate(range(0, rows, edge))
        for j, left in enumerate(range(0, cols, edge))
    ]


def blocks_of_rank(blocks: Sequence[Block], *, rank: int, count: int) -> list[Block]:
    """The rectangles that one of `count` processes makes: those of neighbouring rows."""
    rows = sorted({block.row for block in blocks})
    mine = set(np.array_split(np.array(rows), count)[rank].tolist())
    return [block for block in blocks if block.row in mine]


def tile_origins(length: int, *, tile: int, stride: int, align: int, first: int = 0) -> np.ndarray:
    """First pixels of tiles that together cover [first, length) along one axis.

    Args:
        length: pixels to cover.
        tile: tile edge, pixels.
        stride: distance between tiles, a multiple of `align`.
        align: tiles start at `first` plus a multiple of this.
        first: start of the first tile; may be negative.

    Returns:
        (n,) int64, increasing. The last tile sticks out by less than `align`, a single one by as much as it must.

    Raises:
        ValueError: the stride is not a multiple of `align`, or larger than a tile.
    """
    if stride < 1 or stride % align or stride > tile:
        raise ValueError(f"stride {stride}: expected a multiple of {align} from {align} to the tile's {tile} pixels")
    last = first + math.ceil(max(0, length - first - tile) / align) * align
    regular = np.arange(first, last, stride, dtype=np.int64)
    return np.append(regular, last)


def tile_columns(cols: int, *, tile: int, stride: int, align: int, first: int = 0, wrap_columns: int = 0) -> np.ndarray:
    """First columns of tiles that cover ground of `cols` columns; around a planet each tile once, without an end.

    Args:
        cols: base-scale columns of the ground.
        tile: tile edge, pixels.
        stride: distance between tiles.
        align: as in `tile_origins`.
        first: start of the first tile.
        wrap_columns: columns after which the ground repeats; 0 = never.
    """
    if wrap_columns:
        return np.arange(first, first + wrap_columns, stride, dtype=np.int64)
    return tile_origins(cols, tile=tile, stride=stride, align=align, first=first)


def columns_between(cols: np.ndarray, left: int, right: int, *, tile: int, wrap_columns: int = 0) -> np.ndarray:
    """Columns of tiles that reach into [left, right), increasing; around a planet, once for each wrap."""
    if wrap_columns:
        wraps = np.arange((left - tile - cols.max()) // wrap_columns, (right - cols.min()) // wrap_columns + 1)
        cols = np.sort((cols + wraps[:, None] * wrap_columns).ravel())
    return cols[(cols < right) & (cols + tile > left)]


def tile_stride(tile: int, *, patch: int, overlap: float) -> int:
    """Distance between tiles that repeat a fraction of each other, pixels: whole patches, at least one.

    Args:
        tile: tile edge, pixels.
        patch: patch edge, pixels.
        overlap: fraction of a tile that the next one repeats.
    """
    return min(tile, max(patch, round(tile * (1 - overlap) / patch) * patch))


def origin_pairs(rows: np.ndarray, cols: np.ndarray) -> np.ndarray:
    """(R * C, 2) all pairs of a row and a column, row by row."""
    return np.stack(np.meshgrid(rows, cols, indexing="ij"), axis=-1).reshape(-1, 2)


def raised_cosine(size: int) -> Tensor:
    """(size,) float32 weights of a tile's pixels, sin^2, highest in the middle and above zero at both ends.

    Tiles half a tile apart sum to one.
    """
    places = (torch.arange(size, dtype=torch.float64) + 0.5) / size
    return torch.sin(math.pi * places).square().float()


class WeightedMoments:
    """Weighted mean and variance of values that come one after the other, pixel by pixel.

    Means and sums of squares are updated (West 1979), which keeps small spreads of large values.

    Args:
        shape: of the values.
        device: where they live.
    """

    def __init__(self, shape: tuple[int, ...], device: torch.device) -> None:
        self.weight = torch.zeros(shape, device=device)
        self.mean = torch.zeros(shape, device=device)
        self.squares = torch.zeros(shape, device=device)

    def add(self, values: Tensor, weight: Tensor) -> None:
        """Adds values with weights (zero = not seen), both of the shape."""
        self.weight += weight
        fraction = torch.where(weight > 0, weight / self.weight.clamp_min(1e-30), 0.0)
        step = values - self.mean
        self.mean += step * fraction
        self.squares += weight * step * (values - self.mean)


class Mosaic:
    """One window of an output, into which overlapping tiles are merged.

    Args:
        bands: number of bands B.
        rows: rows of the window.
        cols: columns of the window.
        device: where it lives.
        with_std: keep what the standard deviation needs.
    """

    def __init__(self, bands: int, rows: int, cols: int, *, device: torch.device, with_std: bool = True) -> None:
        self.rows, self.cols = rows, cols
        self._weight = torch.zeros((bands, rows, cols), device=device)
        self._mean = torch.zeros_like(self._weight)
        self._squares = torch.zeros_like(self._weight) if with_std else None

    def add(
        self,
        mean: Tensor,
        weight: Tensor,
        *,
        row: int,
        col: int,
        squares: Tensor | None = None,
        step: int = 1,
    ) -> None:
        """Merges one tile.

        Args:
            mean: (B, h, w) values.
            weight: (h, w) or (B, h, w), their weights; zero = nothing known there.
            row: row of the window at which the tile's first row lies; may be negative.
            col: likewise for columns.
            squares: (B, h, w) weighted sums of squared differences from `mean`, where it is a mean of several.
            step: rows and columns between two of the tile's pixels.
        """
        rows, to_rows = _inside(row, mean.shape[1], step, self.rows)
        cols, to_cols = _inside(col, mean.shape[2], step, self.cols)
        if not len(range(*rows.indices(mean.shape[1]))) or not len(range(*cols.indices(mean.shape[2]))):
            return
        place = (slice(None), to_rows, to_cols)
        part = mean[:, rows, cols]
        added = weight.expand(mean.shape)[:, rows, cols]
        before = self._weight[place]
        total = before + added
        fraction = torch.where(added > 0, added / total.clamp_min(1e-30), 0.0)
        difference = part - self._mean[place]
        if self._squares is not None:
            # Chan, Golub & LeVeque (1983): moments of two sets from the moments of each.
            self._squares[place] += difference.square() * before * fraction
            if squares is not None:
                self._squares[place] += squares[:, rows, cols]
        self._mean[place] += difference * fraction
        self._weight[place] = total

    @property
    def mean(self) -> np.ndarray:
        """(B, rows, cols) float32, NaN where no tile said anything."""
        return torch.where(self._weight > 0, self._mean, torch.nan).cpu().numpy()

    @property
    def std(self) -> np.ndarray:
        """(B, rows, cols) float32, weighted standard deviation of all that was merged; NaN where nothing was."""
        assert self._squares is not None
        variance = self._squares.clamp_min(0.0) / self._weight.clamp_min(1e-30)
        return torch.where(self._weight > 0, variance.sqrt(), torch.nan).cpu().numpy()


def _inside(first: int, count: int, step: int, limit: int) -> tuple[slice, slice]:
    """The part of a tile's pixels that lies in a window of `limit` pixels, and where it lies there."""
    start = max(0, math.ceil(-first / step))
    stop = max(start, min(count, math.ceil((limit - first) / step)))
    begin = first + start * step
    return slice(start, stop), slice(begin, first + (stop - 1) * step + 1 if stop > start else begin, step)
