"""The bar of inference moves by tiles within a block."""

from util.inference.tile_progress import TileProgress


class Bar:
    """Counts as tqdm does."""

    n = 0

    def update(self, count: int) -> None:
        """Moves on."""
        self.n += count


def test_tiles_of_a_block_count_before_it_is_done():
    bar = Bar()
    progress, seen = TileProgress(bar, [40, 20]), []
    for fraction in (0.25, 0.5, 1.0, 0.1):  # the product goes over the block a second time
        progress.within(fraction)
        seen.append(bar.n)
    progress.end_block()
    progress.within(0.5)
    seen.append(bar.n)
    progress.end_block()
    progress.within(1.0)  # tiles that are computed after the last block do not count
    assert seen == [10, 20, 40, 40, 50] and bar.n == 60
