"""Which tiles make a micro-batch, on which rank, in which optimiser step: a pure function of counts.

An optimiser step (an update) takes `batch_size * accum_iter * world_size` consecutive tiles of the epoch's order.
They are assigned to the ranks in turn and cut into micro-batches, so the tiles of an update are the same whatever
the number of ranks; the last update of an epoch takes the remaining tiles.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class MicroBatch:
    """One forward and backward pass of one rank.

    Attributes:
        update: number of the update within the epoch.
        positions: (n,) int64 positions in the epoch's order; never empty.
        weight: factor for the mean loss of these tiles, such that gradients, summed over the micro-batches of an
            update and averaged over ranks, are those of the mean over all tiles of the update. Zero for a rank that
            has no tile left and repeats one, so that every rank has as many micro-batches in each update: with
            `--fsdp` the processes exchange weights in each.
        is_last: True for the last micro-batch of the update on this rank: gradients are exchanged here.
    """

    update: int
    positions: np.ndarray
    weight: float
    is_last: bool


def updates_per_epoch(tiles: int, *, batch_size: int, accum_iter: int, world_size: int) -> int:
    """Number of optimiser steps that visit every tile once."""
    return -(-tiles // (batch_size * accum_iter * world_size))


def plan_epoch(
    tiles: int, *, batch_size: int, accum_iter: int, rank: int, world_size: int, start_update: int = 0
) -> Iterator[MicroBatch]:
    """Yields the micro-batches of one rank for one epoch.

    Args:
        tiles: number of tiles in the epoch.
        batch_size: most tiles in a micro-batch.
        accum_iter: micro-batches per update and rank (fewer in the last update).
        rank: number of this process.
        world_size: number of processes.
        start_update: first update to yield, when an epoch is resumed.

    Yields:
        Micro-batches in order.
    """
    per_update = batch_size * accum_iter * world_size
    for update in range(start_update, -(-tiles // per_update)):
        members = np.arange(update * per_update, min((update + 1) * per_update, tiles), dtype=np.int64)
        mine = members[rank::world_size]
        most = len(members[::world_size])  # of rank 0; none has more
        for start in range(0, most, batch_size):
            part = mine[start : start + batch_size]
            yield MicroBatch(
                update=update,
                positions=part if len(part) else members[:1],
                weight=len(part) * world_size / len(members),
                is_last=start + batch_size >= most,
            )


def noise_generators(
    positions: np.ndarray, *, seed: int, epoch: int, purpose: int = 3
) -> Iterator[np.random.Generator]:
    """Yields a random generator for each position, a function of (seed, epoch, position) and its purpose.

    Args:
        positions: (n,) positions in the epoch's order.
        seed: seed of the run.
        epoch: number of the epoch, from -1.
        purpose: 3 for masks, 4 for dropped layers; others give other numbers.
    """
    key = np.random.SeedSequence((seed, epoch + 1, purpose)).generate_state(1, np.uint64)[0]
    for position in positions:
        yield np.random.Generator(np.random.Philox(key=np.array([key, position], dtype=np.uint64)))
