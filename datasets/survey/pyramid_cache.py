"""Caches the scale pyramid of a whole survey: a tile that is ready for the model is a slice of it.

Averaging a tile's native pixels costs more than reading them. Where every tile starts on a base-scale pixel, the
average over a pixel does not depend on the tile: it can be computed once and cached, on the host or the device.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator

import numpy as np
import torch

from datasets.layers.on_device import constant, on_device
from datasets.survey.memory import memory_limit
from datasets.survey.pyramid import Pyramid, Sample
from datasets.survey.survey import Survey
from datasets.survey.tile_reader import TileReader, Tiles
from datasets.survey.tile_source import Reader, TileSource

logger = logging.getLogger(__name__)

DEVICE_SHARE = 0.5
"""Share of the free memory of a GPU that `cache="device"` may take for layers."""

TILES_AT_ONCE = 8
"""Tiles pooled together while the pyramid of the survey is made: bounds what that takes besides the result."""


class PyramidCache:
    """Cuts tiles that are ready for the model from the pooled survey.

    Each value is what `Pyramid` makes of the tile's native pixels, in channels of whatever kind. It is the same bit for
    bit on a CPU where a layer's pixels divide base pixels evenly; elsewhere sums are taken in another order (1e-6 of a
    layer's standard deviation).

    Args:
        survey: the survey, for which `why_not_cached` has no reason.
        device: where pixels are cached and tiles are cut.
    """

    def __init__(self, survey: Survey, device: torch.device) -> None:
        reason = why_not_cached(survey)
        if reason:
            raise ValueError(reason)
        self.device = device
        self._size, self._scales, self._step = survey.input_size, survey.scales, survey.tiles.step
        pyramid = survey.pyramid()
        self._channels = pyramid.channels
        self._members = [pyramid.channels_at(level) for level in range(len(self._scales))]
        self._rows, self._cols = _base_shape(survey)
        shapes = [
            (len(members), self._rows * scale, self._cols * scale)
            for members, scale in zip(self._members, self._scales, strict=True)
        ]
        self._values = [torch.empty(shape, device=device) for shape in shapes]
        self._valid = [torch.empty(shape, dtype=torch.bool, device=device) for shape in shapes]
        self._native_scales = [group.scale for group in pyramid.native]
        self._native = [torch.empty(shape, device=device) for shape in _native_shapes(survey, pyramid)]
        self._fill(TileReader(survey.stack, survey.bundles), pyramid)

    def _fill(self, reader: TileReader, pyramid: Pyramid) -> None:
        """Pools tile after tile, each once, the last ones flush with the end."""
        rows, cols = (_starts(length, self._size) for length in (self._rows, self._cols))
        corners = np.stack(np.meshgrid(rows, cols, indexing="ij"), axis=-1).reshape(-1, 2)
        for k in range(0, len(corners), TILES_AT_ONCE):
            part = corners[k : k + TILES_AT_ONCE]
            sample = pyramid(*reader.read(part * self._step).to(self.device).parts)
            for level, (values, valid) in enumerate(_levels(sample)):
                scale, members = self._scales[level], self._members[level]
                edge = self._size * scale
                for n, (row, col) in enumerate(part * scale):
                    window = (slice(None), slice(row, row + edge), slice(col, col + edge))
                    self._values[level][window] = values[n, members]
                    self._valid[level][window] = valid[n, members]
            for cached, own, scale in zip(self._native, sample.native, self._native_scales, strict=True):
                edge = self._size * scale
                for n, (row, col) in enumerate(part * scale):
                    cached[:, row : row + edge, col : col + edge] = own[n]

    @property
    def memory_bytes(self) -> int:
        """Bytes of the cache."""
        return sum(t.numel() * t.element_size() for t in (*self._values, *self._valid, *self._native))

    def read(self, tiles: np.ndarray) -> Sample:
        """Cuts tiles.

        Args:
            tiles: (N, 2) reference (row, col) of the tiles, as a `TileIndex` gives them.

        Returns:
            The tiles, on this object's device.
        """
        corners = np.asarray(tiles) // self._step
        cut = _cut_on_host if self.device.type == "cpu" else _cut_on_device
        pairs = []
        for level, scale in enumerate(self._scales):
            edge = self._size * scale
            pairs.append(
                tuple(
                    cut(source[level], corners * scale, edge, self._members[level], self._channels)
                    for source in (self._values, self._valid)
                )
            )
        (imgs, valid), finer = pairs[0], pairs[1:]
        native = [
            cut(cached, corners * scale, self._size * scale, list(range(len(cached))), len(cached))
            for cached, scale in zip(self._native, self._native_scales, strict=True)
        ]
        return Sample(imgs, valid, [values for values, _ in finer], [ok for _, ok in finer], native)


def _cut_on_host(
    source: torch.Tensor, corners: np.ndarray, edge: int, members: list[int], channels: int
) -> torch.Tensor:
    """(N, C, edge, edge) windows of (members, rows, cols), zero for other channels; plain copies, row by row."""
    pixels = source.numpy()
    result = np.empty((len(corners), channels, edge, edge), dtype=pixels.dtype)
    for channel in set(range(channels)).difference(members):
        result[:, channel] = 0
    for tile, (row, col) in zip(result, corners.tolist(), strict=True):
        for plane, channel in zip(pixels, members, strict=True):
            tile[channel] = plane[row : row + edge, col : col + edge]
    return torch.from_numpy(result)


def _cut_on_device(
    source: torch.Tensor, corners: np.ndarray, edge: int, members: list[int], channels: int
) -> torch.Tensor:
    """The same in a handful of kernels, however many tiles there are."""
    start = on_device(torch.from_numpy(np.ascontiguousarray(corners)), source.device)
    along = torch.arange(edge, device=source.device)
    rows, cols = start[:, :1] + along, start[:, 1:] + along
    windows = source[:, rows[:, :, None], cols[:, None, :]].transpose(0, 1)  # (N, members, edge, edge)
    if len(members) == channels:
        return windows
    result = source.new_zeros((len(corners), channels, edge, edge))
    result.index_copy_(1, constant(members, dtype=torch.int64, device=source.device), windows)
    return result


def to_sample(tiles: Tiles | Sample, pyramid: Pyramid, device: torch.device) -> Sample:
    """What was read, ready for the model on the device: native pixels are pooled there, pooled tiles only moved."""
    if isinstance(tiles, Sample):
        return tiles.to(device)
    return pyramid(*tiles.to(device).parts)


def choose_reader(survey: TileSource, device: torch.device, *, cache: str = "auto", local_ranks: int = 1) -> Reader:
    """Chooses how tiles are read for training.

    Args:
        survey: what is trained on.
        device: where the model computes.
        cache: `none`: by window; `ram` and `auto`: pooled once if the model computes on the CPU and everything fits the
            memory rule of `open_survey`; `device`: pooled once and kept on the device.
        local_ranks: processes on this machine that each hold the layers.

    Returns:
        A reader of native pixels, which the device pools, or of pooled tiles.

    Raises:
        ValueError: `device` is asked for and the layers do not fit there, or cannot be pooled as a whole.
    """
    reason = why_not_cached(survey)
    if reason or not isinstance(survey, Survey):
        if cache == "device":
            raise ValueError(f"--cache device: {reason}")
        logger.debug("tiles are averaged one by one: %s", reason)
        return survey.reader()
    needed = pyramid_bytes(survey)
    if cache == "device":
        free = _free_bytes(device, local_ranks)
        if needed > free:
            raise ValueError(
                f"--cache device: the layers take {needed / 2**20:.0f} MiB there, expected at most "
                f"{free / 2**20:.0f} MiB; use --cache auto"
            )
    elif cache == "none" or device.type != "cpu" or not survey.stack.in_memory:
        return survey.reader()
    elif (needed + survey.stack.memory_bytes) * local_ranks > memory_limit():
        return survey.reader()
    pooled = PyramidCache(survey, device)
    logger.info("layers averaged to every scale once: %.1f MiB on %s", pooled.memory_bytes / 2**20, device)
    return pooled


def pyramid_bytes(survey: Survey) -> int:
    """Bytes of a `PyramidCache` of a survey: five for each pixel of each scored scale, four for those of stems."""
    rows, cols = _base_shape(survey)
    pyramid = survey.pyramid()
    own = sum(4 * channels * height * width for channels, height, width in _native_shapes(survey, pyramid))
    return own + sum(5 * len(pyramid.channels_at(k)) * rows * cols * scale**2 for k, scale in enumerate(survey.scales))


def why_not_cached(survey: TileSource) -> str:
    """Why tiles cannot be cut out of pixels pooled as a whole; empty if they can."""
    if not isinstance(survey, Survey):
        return "scenes are read one by one; use --cache auto"
    step, tiles = survey.tiles.step, survey.tiles
    if tiles.wrap_columns:
        return "the layers wrap around a planet, and tiles cross the edge of the grid; use --cache auto"
    if (tiles.height, tiles.width) == (survey.input_size * step, survey.input_size * step):
        return ""
    return (
        f"tiles do not start on base pixels, since those of {survey.base_resolution:g} are not a whole number of "
        "reference pixels; choose a --base_resolution that is one, or --cache auto"
    )


def _free_bytes(device: torch.device, local_ranks: int) -> float:
    if device.type == "cuda":
        return DEVICE_SHARE * torch.cuda.mem_get_info(device)[0]
    return memory_limit() / local_ranks


def _base_shape(survey: Survey) -> tuple[int, int]:
    """Whole base pixels of the reference grid: no tile reaches beyond them."""
    reference, step = survey.stack.reference, survey.tiles.step
    return reference.rows // step, reference.cols // step


def _native_shapes(survey: Survey, pyramid: Pyramid) -> list[tuple[int, int, int]]:
    """Channels, rows and columns of the native pixels of each group that is read at them."""
    rows, cols = _base_shape(survey)
    return [(len(pyramid.native_channels(g)), rows * g.scale, cols * g.scale) for g in pyramid.native]


def _starts(length: int, size: int) -> list[int]:
    starts = list(range(0, length - size + 1, size))
    return starts if starts[-1] + size == length else [*starts, length - size]


def _levels(sample: Sample) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    yield sample.imgs, sample.valid
    yield from zip(sample.imgs_up, sample.valid_up, strict=True)
