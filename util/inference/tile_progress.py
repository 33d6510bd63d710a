"""Progress of inference in tiles of the ground, whatever the number of blocks and of views of a tile."""

from __future__ import annotations

from collections.abc import Sequence

from tqdm import tqdm


class TileProgress:
    """Moves a progress bar along the tiles of blocks that are computed one after the other.

    A product may run over the tiles of a block several times: the bar then stands still after the first.

    Args:
        bar: counts tiles of all blocks.
        tiles: number of tiles of each block, in the order of the blocks.
    """

    def __init__(self, bar: tqdm, tiles: Sequence[int]) -> None:
        self._bar, self._tiles = bar, tiles
        self._block = self._before = 0

    def within(self, fraction: float) -> None:
        """Notes that a fraction of the tiles of the current block is done."""
        if self._block < len(self._tiles):
            self._move_to(self._before + int(fraction * self._tiles[self._block]))

    def end_block(self) -> None:
        """Notes that the current block is done."""
        self._before += self._tiles[self._block]
        self._block += 1
        self._move_to(self._before)

    def _move_to(self, tiles: int) -> None:
        self._bar.update(max(tiles - self._bar.n, 0))
