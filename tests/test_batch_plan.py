"""Which tiles make a micro-batch on which rank, and the noise of their masks."""

import itertools

import numpy as np
import pytest

from datasets.loading.batch_plan import MicroBatch, noise_generators, plan_epoch, updates_per_epoch

SPLITS = [(16, 8, 1, 2), (16, 4, 2, 2), (17, 4, 2, 2), (65, 32, 2, 2)]
SHAPES = [*itertools.product([1, 7, 33], [1, 3], [1, 4], [1, 3]), *SPLITS]
"""(tiles, batch_size, accum_iter, world_size)"""


def plans(tiles, batch_size, accum_iter, world_size, **options):
    """The micro-batches of every rank."""
    return [
        list(
            plan_epoch(tiles, batch_size=batch_size, accum_iter=accum_iter, rank=rank, world_size=world_size, **options)
        )
        for rank in range(world_size)
    ]


def members(ranks, update):
    """Tiles that count in an update, over all ranks."""
    return sorted(int(p) for micros in ranks for m in micros if m.update == update and m.weight for p in m.positions)


@pytest.mark.parametrize("tiles, batch_size, accum_iter, world_size", SHAPES)
class TestAnyCounts:
    def test_every_tile_counts_once(self, tiles, batch_size, accum_iter, world_size):
        ranks = plans(tiles, batch_size, accum_iter, world_size)
        counted = [int(p) for micros in ranks for m in micros if m.weight for p in m.positions]
        assert sorted(counted) == list(range(tiles))
        assert all(1 <= len(m.positions) <= batch_size for micros in ranks for m in micros)

    def test_weights_average_over_the_tiles_of_an_update(self, tiles, batch_size, accum_iter, world_size):
        """Gradients are summed over micro-batches and averaged over ranks: each tile weighs 1 / tiles of the update."""
        ranks = plans(tiles, batch_size, accum_iter, world_size)
        for update in range(
            updates_per_epoch(tiles, batch_size=batch_size, accum_iter=accum_iter, world_size=world_size)
        ):
            here = [m for micros in ranks for m in micros if m.update == update]
            assert sum(m.weight for m in here) / world_size == pytest.approx(1.0, abs=1e-12)
            count = len(members(ranks, update))
            for m in here:
                if m.weight:
                    assert m.weight / world_size / len(m.positions) == pytest.approx(1 / count, abs=1e-12)

    def test_ranks_stay_in_step(self, tiles, batch_size, accum_iter, world_size):
        """Every rank ends every update exactly once, at the last of its at most accum_iter micro-batches."""
        updates = updates_per_epoch(tiles, batch_size=batch_size, accum_iter=accum_iter, world_size=world_size)
        for micros in plans(tiles, batch_size, accum_iter, world_size):
            assert [m.update for m in micros] == sorted(m.update for m in micros)
            for update in range(updates):
                here = [m for m in micros if m.update == update]
                assert 1 <= len(here) <= accum_iter
                assert [m.is_last for m in here] == [False] * (len(here) - 1) + [True]
            assert len({m.update for m in micros}) == updates

    def test_ranks_have_as_many_micro_batches_in_each_update(self, tiles, batch_size, accum_iter, world_size):
        """With --fsdp a process that has more than the others waits for them for ever."""
        ranks = plans(tiles, batch_size, accum_iter, world_size)
        assert len({tuple(m.update for m in micros) for micros in ranks}) == 1

    def test_resuming_yields_the_rest(self, tiles, batch_size, accum_iter, world_size):
        whole = plans(tiles, batch_size, accum_iter, world_size)
        for start in (1, 2):
            rest = plans(tiles, batch_size, accum_iter, world_size, start_update=start)
            expected = [[m for m in micros if m.update >= start] for micros in whole]
            assert list(map(as_numbers, rest)) == list(map(as_numbers, expected))


def as_numbers(micros):
    return [(m.update, m.positions.tolist(), m.weight, m.is_last) for m in micros]


@pytest.mark.parametrize("tiles", [16, 45, 50, 127])
def test_updates_are_the_same_for_any_split_of_the_effective_batch(tiles):
    splits = [(8, 2, 1), (8, 1, 2), (4, 4, 1), (16, 1, 1), (2, 2, 4)]  # batch_size, accum_iter, world_size
    updates = [[members(plans(tiles, *split), update) for update in range(-(-tiles // 16))] for split in splits]
    assert all(each == updates[0] for each in updates)
    assert [len(update) for update in updates[0]][:-1] == [16] * (len(updates[0]) - 1)


def test_rank_without_tiles_repeats_one_at_weight_zero():
    """Five tiles by twos over two ranks, then one tile is left: rank 1 has none of its own."""
    first, second = plans(5, 2, 1, 2)
    assert as_numbers(first) == [(0, [0, 2], 1.0, True), (1, [4], 2.0, True)]
    assert as_numbers(second) == [(0, [1, 3], 1.0, True), (1, [4], 0.0, True)]
    assert isinstance(second[1], MicroBatch)


@pytest.mark.parametrize("tiles, expected", [(1, 1), (16, 1), (17, 2), (32, 2)])
def test_updates_per_epoch(tiles, expected):
    assert updates_per_epoch(tiles, batch_size=4, accum_iter=2, world_size=2) == expected


def token_noise(positions, *, tokens, seed, epoch):
    return np.stack([rng.random(tokens) for rng in noise_generators(positions, seed=seed, epoch=epoch)])


class TestNoise:
    def test_shape_and_range(self):
        noise = token_noise(np.arange(20), tokens=500, seed=0, epoch=0)
        assert noise.shape == (20, 500)
        assert 0 <= noise.min() and noise.max() < 1
        assert noise.mean() == pytest.approx(0.5, abs=0.02)  # standard error 0.003

    def test_depends_on_seed_epoch_and_position_alone(self):
        noise = token_noise(np.array([3, 8, 5]), tokens=12, seed=1, epoch=2)
        np.testing.assert_array_equal(noise[2:], token_noise(np.array([5]), tokens=12, seed=1, epoch=2))
        others = [
            token_noise(np.array([5]), tokens=12, seed=seed, epoch=epoch) for seed, epoch in [(2, 2), (1, 3), (2, 1)]
        ]
        rows = [*noise, *(other[0] for other in others)]
        assert len({tuple(row) for row in rows}) == len(rows)

    def test_a_larger_number_of_tokens_begins_alike(self):
        few, many = (token_noise(np.array([5]), tokens=n, seed=1, epoch=2)[0] for n in (4, 9))
        np.testing.assert_array_equal(few, many[:4])

    def test_validation_has_masks_of_its_own(self):
        held_out = token_noise(np.array([0]), tokens=9, seed=0, epoch=-1)
        assert (held_out != token_noise(np.array([0]), tokens=9, seed=0, epoch=0)).all()


def test_rank_with_fewer_micro_batches_pads_the_update():
    """65 tiles by 32 over two ranks: 33 and 32 of them."""
    first, second = plans(65, 32, 2, 2)
    assert [(len(m.positions), m.weight, m.is_last) for m in first] == [(32, 64 / 65, False), (1, 2 / 65, True)]
    assert [(len(m.positions), m.weight, m.is_last) for m in second] == [(32, 64 / 65, False), (1, 0.0, True)]
