"""Synthetic rocks: faults, plutons and dykes where they were put; rocks as a function of position."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
from numpy.typing import NDArray

from datasets.synthetic.geology import (
    COLUMN_STEP_M,
    DYKE,
    GRANITE,
    HORNFELS,
    UNITS,
    Geology,
    Pluton,
    Sheet,
    Waves,
    draw_geology,
)


def flat(step_m: float = 100.0, count: int = 100) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    x = ((np.arange(count) + 0.5) * step_m).astype(np.float32)
    return x[None, :], x[::-1, None].copy()


@pytest.fixture
def plain() -> Geology:
    """A geology without folds, faults or intrusions: beds 100 m thick, codes 1 to 6 in turn, lying flat."""
    nothing = np.zeros(1, np.float32)
    still = Waves(nothing, nothing, nothing, nothing)
    column = np.repeat(np.arange(1, 7, dtype=np.uint8), round(100 / COLUMN_STEP_M))
    texture = np.ones(len(column), np.float32)
    return Geology((), (), (), still, still, still, still, still, still, column, texture)


def test_flat_beds_follow_each_other_downwards_and_repeat(plain: Geology) -> None:
    x, y = flat(count=4)
    codes = [int(plain.rocks(x, y, depth_m)[0][2, 2]) for depth_m in (50, 150, 250, 350, 450, 550, 650)]
    assert codes == [1, 2, 3, 4, 5, 6, 1]


def test_a_fault_lifts_what_lies_on_its_left(plain: Geology) -> None:
    fault = Sheet(5000.0, 5000.0, math.pi / 2, 1e6, 0.0, 0.0, 1e4, throw=300.0)  # upright, through the middle
    x, y = flat()
    height = dataclasses.replace(plain, faults=(fault,)).stratigraphic_height(x, y, 50.0)
    np.testing.assert_allclose(height[:, 50:], 50.0)  # east of a fault that looks north is its right
    np.testing.assert_allclose(height[:, :50], 350.0, rtol=0.01)  # fading over 1500 km
    dipping = dataclasses.replace(fault, dip_cotangent=0.5)
    height = dataclasses.replace(plain, faults=(dipping,)).stratigraphic_height(x, y, 2000.0)
    assert (height[0] > 2100).sum() == 40  # 2000 m down it lies 1000 m further left


def test_slip_moves_a_fold_along_the_fault(plain: Geology) -> None:
    one, north = np.ones(1, np.float32), np.full(1, 2 * np.pi / 4000, np.float32)
    folds = Waves(one, 0 * north, north, 0 * one)
    fault = Sheet(5000.0, 5000.0, math.pi / 2, 1e7, 0.0, 0.0, 1e4, slip=1000.0)
    x, y = flat()
    height = dataclasses.replace(plain, folds=folds, faults=(fault,)).stratigraphic_height(x, y, 0.0)
    np.testing.assert_allclose(height[:-10, 20], height[10:, 80], atol=20)  # 1000 m north on the left


def test_a_pluton_has_its_radius_an_aureole_and_widens_downwards(plain: Geology) -> None:
    pluton = Pluton(5000.0, 5000.0, radius=2000.0, elongation=1.0, azimuth=0.3, code=GRANITE)
    x, y = flat()
    ground = dataclasses.replace(plain, plutons=(pluton,))
    code, texture = ground.rocks(x, y, 0.0)
    assert (code == GRANITE).sum() == pytest.approx(math.pi * 20**2, rel=0.01)
    assert (code == HORNFELS).sum() == pytest.approx(math.pi * 20**2 * (1.22**2 - 1), rel=0.03)
    assert (texture[code == GRANITE] == 0).all() and (texture[code == HORNFELS] == 1).all()
    assert (ground.rocks(x, y, 1000.0)[0] == GRANITE).sum() == pytest.approx(math.pi * 22.5**2, rel=0.01)


def test_a_later_pluton_bakes_beds_and_not_an_older_pluton(plain: Geology) -> None:
    older = Pluton(4000.0, 5000.0, radius=2000.0, elongation=1.0, azimuth=0.0, code=GRANITE)
    later = dataclasses.replace(older, x=6000.0)
    x, y = flat()
    code, _ = dataclasses.replace(plain, plutons=(older, later)).rocks(x, y, 0.0)
    alone, _ = dataclasses.replace(plain, plutons=(older,)).rocks(x, y, 0.0)
    assert (code[alone == GRANITE] == GRANITE).all()


def test_a_dyke_is_a_line_of_its_width_that_cuts_everything(plain: Geology) -> None:
    pluton = Pluton(5000.0, 5000.0, radius=2000.0, elongation=1.0, azimuth=0.0, code=GRANITE)
    dyke = Sheet(5000.0, 5000.0, 0.0, 3000.0, 0.0, 0.0, 1e4, half_width=120.0)
    x, y = flat()
    code, _ = dataclasses.replace(plain, plutons=(pluton,), dykes=(dyke,)).rocks(x, y, 0.0)
    rows, cols = np.nonzero(code == DYKE)
    assert set(rows.tolist()) == {49, 50} and (cols.min(), cols.max()) == (20, 79)


def test_waves_have_unit_variance_and_keep_to_their_direction() -> None:
    waves = Waves.draw(np.random.default_rng(0), count=8, shortest=500, longest=4000, growth=1, azimuth=0.0, spread=0.1)
    x, y = flat(count=400)
    values = waves(x, y)
    assert values.std() == pytest.approx(1, abs=0.15)
    assert np.abs(np.diff(values, axis=0)).mean() < 0.2 * np.abs(np.diff(values, axis=1)).mean()


def test_rocks_do_not_depend_on_the_strip_they_are_asked_in() -> None:
    ground = draw_geology(np.random.default_rng(5), width_m=10_000, height_m=10_000)
    x, y = flat()
    whole, strips = ground.rocks(x, y, 300.0), ground.rocks_by_strips(x, y, 300.0)
    np.testing.assert_array_equal(whole[0], strips[0])
    np.testing.assert_array_equal(whole[1], strips[1])
    assert set(np.unique(whole[0])) <= {unit.code for unit in UNITS}


def test_rocks_change_with_depth_because_they_dip() -> None:
    ground = draw_geology(np.random.default_rng(5), width_m=20_000, height_m=20_000)
    x, y = flat(count=200)
    shallow, deeper, deep = (ground.rocks(x, y, depth_m)[0] for depth_m in (200.0, 400.0, 2000.0))
    assert 0 < (shallow != deeper).mean() < (shallow != deep).mean() < 0.8


def test_cover_is_thin_outside_the_basins() -> None:
    ground = draw_geology(np.random.default_rng(5), width_m=200_000, height_m=200_000)
    depth, basin = ground.cover(*flat(step_m=1000, count=200))
    assert 0.01 < basin.mean() < 0.15
    assert 0 < depth[~basin].min() and depth[~basin].max() < 350 and depth[basin].max() > 400


def test_codes_count_from_one() -> None:
    assert [unit.code for unit in UNITS] == list(range(1, len(UNITS) + 1))
