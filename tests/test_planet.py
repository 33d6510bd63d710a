"""Round bodies: grids that wrap, tiles across the date line, area, polar rows, polygons in any CRS."""

from __future__ import annotations

import math
from dataclasses import replace

import geopandas
import numpy as np
import pytest
import shapely
from hypothesis import given, settings
from hypothesis import strategies as st
from pyproj import Transformer
from rasterio.crs import CRS

from datasets.ground.area_of_interest import load_area_of_interest
from datasets.ground.grid import Grid, metres_per_unit
from datasets.ground.planet import planet_of
from datasets.ground.wraparound import (
    latitude_weights,
    pixel_size_lines,
    pixel_size_m,
    split_at_seam,
    wrap_columns,
    wrapped_reference,
    wraps,
)
from datasets.layers.layer import Layer
from datasets.rasters.open_band import open_band
from datasets.rasters.wrapped_band import WrappedBand
from datasets.survey.inference_survey import inference_survey_from
from datasets.survey.open_survey import SurveySettings, open_survey
from datasets.survey.stack import Stack, reference_grid
from datasets.survey.tile_reader import TileReader
from datasets.survey.tiles import Coverage, draw_by_weight, index_tiles
from tests.blocks import holdout_blocks
from tests.rasters import ramp, write_grid
from tests.spheres import MOON, global_grid, write_global

WGS84 = CRS.from_epsg(4326)
WHOLE = Grid(WGS84, -180.0, 90.0, 5.0, 5.0, 36, 72)
SMALL = {"input_size": 8, "scales": (1, 2), "val_buffer": 0, "cache": "none"}


def band(path, values, **options):
    write_grid(path, values, **({"crs": "EPSG:4326", "left": -180.0, "top": 90.0} | options))
    return open_band(Layer(path.stem, str(path)))


def seen(stack, channel, row, col, cols):
    """One row of a layer's pixels, those of some columns of the reference grid, which have the same size."""
    first = round(stack.placements[channel].native_col(col))
    return stack.read(channel, round(stack.placements[channel].native_row(row)), first, 1, cols)[0]


def tiles_of(survey, *, epoch=0):
    """Native pixels of an epoch's tiles, and the longitude of each tile's left edge from -180 to 180."""
    origins = survey.tiles.epoch(seed=0, epoch=epoch)
    grid = survey.stack.reference
    west = grid.left + origins[:, 1] * grid.resolution_x
    return TileReader(survey.stack, survey.bundles).read(origins), west


class TestGlobe:
    def test_degrees_of_the_earth(self):
        planet = planet_of(WGS84)
        assert (planet.period, planet.west, planet.equator, planet.degrees) == (360.0, -180.0, 0.0, pytest.approx(1.0))
        # Lengths of a degree on the WGS 84 ellipsoid, from the tables (NGA TR8350.2): equator and 60 degrees.
        assert planet.ground_m(0.0) == pytest.approx((111_319.49, 110_574.28), rel=1e-6)
        assert planet.ground_m(60.0) == pytest.approx((55_800.0, 111_412.3), rel=1e-5)
        assert planet.ground_m(90.0)[0] == pytest.approx(0.0, abs=1e-6)

    @pytest.mark.parametrize("crs, radius", [(MOON, 1_737_400.0), ("IAU_2015:49900", 3_396_190.0)])
    def test_other_bodies(self, crs, radius):
        degree = math.radians(radius)
        assert planet_of(CRS.from_user_input(crs)).ground_m(60.0) == pytest.approx((degree / 2, degree))

    @pytest.mark.parametrize("crs", ["IAU_2015:30110", "+proj=eqc +R=1737400 +lon_0=180 +units=m +no_defs"])
    def test_metres_of_a_cylindrical_map(self, crs):
        planet = planet_of(CRS.from_user_input(crs))
        assert planet.period == pytest.approx(2 * math.pi * 1_737_400.0) and planet.west == pytest.approx(
            -planet.period / 2
        )
        assert planet.latitude(planet.period / 8) == pytest.approx(45.0)
        assert planet.ground_m(planet.period / 6) == pytest.approx((0.5, 1.0))  # at 60 degrees

    def test_grads(self):
        planet = planet_of(CRS.from_epsg(4807))
        assert planet.period == pytest.approx(400.0) and planet.latitude(50.0) == pytest.approx(45.0)

    def test_projected_ground_is_flat(self):
        assert planet_of(CRS.from_epsg(28354)) is None
        flat = replace(WHOLE, crs=CRS.from_epsg(28354))
        assert wrap_columns(flat) == 0 and not wraps(flat) and latitude_weights(flat) is None
        assert pixel_size_lines(flat, 5.0, (0, 1)) == [] and pixel_size_m(flat, 3) == (1.0, 1.0)


class TestGrid:
    @pytest.mark.parametrize(
        "resolution, cols, turn, whole",
        [
            (5.0, 72, 72, True),
            (5.0, 71, 72, False),
            (5.0, 73, 72, True),
            (0.7, 514, 0, False),
            (1 / 3, 1080, 1080, True),
        ],
    )
    def test_columns_of_turn(self, resolution, cols, turn, whole):
        grid = replace(WHOLE, resolution_x=resolution, cols=cols)
        assert wrap_columns(grid) == turn and wraps(grid) == whole

    @given(shift=st.integers(-200, 200), resolution=st.sampled_from([5.0, 0.1, 1 / 3, 0.0083333333]))
    def test_where_a_file_begins_is_forgotten(self, shift, resolution):
        grid = replace(WHOLE, resolution_x=resolution, cols=round(360 / resolution), left=-180.0 + shift * resolution)
        assert wrapped_reference(grid).left == pytest.approx(-180.0, abs=0.01 * resolution)
        assert wrapped_reference(grid).cols == grid.cols

    def test_pixels_centred_on_the_line(self):
        assert wrapped_reference(replace(WHOLE, left=2.5)).left == pytest.approx(-182.5)

    @given(col=st.integers(-50, 50), cols=st.integers(1, 60), turn=st.integers(1, 20))
    def test_pieces(self, col, cols, turn):
        found = [c for first, count in split_at_seam(col, cols, turn) for c in range(first, first + count)]
        assert found == [c % turn for c in range(col, col + cols)]

    def test_lines_say_ground_sizes_and_the_polar_rule(self):
        first, second = pixel_size_lines(WHOLE, 5.0, (6, 18))
        assert first.startswith("a base pixel is 279 km wide and 557.1 km high at latitude 60, 556.6 km wide and ")
        assert "cross -180" in second and "poleward of 80 degrees are neither trained on nor scored" in second
        assert pixel_size_lines(replace(WHOLE, cols=30), 0.001, (18, 18)) == [
            "a base pixel is 111.3 m wide and 110.6 m high at latitude 0; tiles are drawn in proportion to their area "
            "on the ground"
        ]


class TestStack:
    @settings(max_examples=40, deadline=None)
    @given(col=st.integers(-80, 80), cols=st.integers(1, 90), row=st.integers(-3, 36), rows=st.integers(1, 6))
    def test_windows_go_on_across_the_line(self, tmp_path_factory, col, cols, row, rows):
        folder = tmp_path_factory.mktemp("g")
        values = ramp(36, 72)
        bands = [band(folder / "a.tif", np.roll(values, -30, axis=1), resolution=5.0, left=-30.0)]
        lazy, loaded = (Stack(bands, reference_grid(bands)) for _ in range(2))
        loaded.load()
        assert lazy.reference == replace(WHOLE, crs=lazy.reference.crs)
        padded = np.pad(np.tile(values, 5), ((3, 6), (0, 0)), constant_values=np.nan)
        expected = padded[row + 3 : row + 3 + rows, col + 144 : col + 144 + cols]
        for stack in (lazy, loaded):
            np.testing.assert_array_equal(stack.read(0, row, col, rows, cols), expected)

    def test_layers_of_either_longitude_convention(self, tmp_path):
        """-180..180, 0..360 and a patch at 170..190, and the same patch named -190..-170."""
        bands = [
            band(tmp_path / "a.tif", ramp(36, 72), resolution=5.0),
            band(tmp_path / "b.tif", np.roll(ramp(18, 36), 18, axis=1), resolution=10.0, left=0.0),
            band(tmp_path / "c.tif", 1000 + ramp(4, 4), resolution=5.0, left=170.0, top=10.0),
            band(tmp_path / "d.tif", 1000 + ramp(4, 4), resolution=5.0, left=-190.0, top=10.0),
        ]
        stack = Stack(bands, reference_grid(bands))
        assert (stack.reference.left, stack.reference.cols) == (-180.0, 72)
        np.testing.assert_array_equal(stack.read(1, 0, -2, 1, 5), [[34, 35, 0, 1, 2]])
        np.testing.assert_array_equal(stack.read(1, 0, 34, 1, 4), [[34, 35, 0, 1]])
        for channel in (2, 3):
            np.testing.assert_array_equal(seen(stack, channel, 16, 69, 6) - 1000, [np.nan, 0, 1, 2, 3, np.nan])
            np.testing.assert_array_equal(seen(stack, channel, 16, -2, 3) - 1000, [0, 1, 2])
        stack.load()
        np.testing.assert_array_equal(seen(stack, 3, 17, -3, 6) - 1000, [np.nan, 10, 11, 12, 13, np.nan])

    def test_a_survey_across_the_line_that_does_not_go_round(self, tmp_path):
        bands = [
            band(tmp_path / "a.tif", ramp(4, 4), resolution=5.0, left=170.0, top=10.0),
            band(tmp_path / "b.tif", ramp(4, 4), resolution=5.0, left=-185.0, top=10.0),
            band(tmp_path / "c.tif", ramp(36, 72), resolution=5.0),
        ]
        stack = Stack(bands[:2], reference_grid(bands[:2]))
        assert (stack.reference.left, stack.reference.cols) == (170.0, 5)
        np.testing.assert_array_equal(seen(stack, 1, 0, 0, 5), [np.nan, 0, 1, 2, 3])
        common = Stack(bands, reference_grid(bands, extent="intersection"))
        assert (common.reference.left, common.reference.cols) == (175.0, 3)
        np.testing.assert_array_equal(seen(common, 2, 0, 0, 3), [160 + 71, 160, 160 + 1])  # row 16 of the planet

    def test_a_column_that_repeats_is_not_used_twice(self, tmp_path):
        values = np.concatenate([ramp(36, 72), ramp(36, 72)[:, :1]], axis=1)
        bands = [band(tmp_path / "a.tif", values, resolution=5.0, left=-182.5)]
        stack = Stack(bands, reference_grid(bands))
        assert (stack.reference.left, stack.reference.cols) == (-182.5, 72)
        np.testing.assert_array_equal(stack.read(0, 0, 70, 1, 4), [[70, 71, 0, 1]])


class TestTiles:
    def ground(self, rows=36):
        return latitude_weights(replace(WHOLE, rows=rows))

    def index(self, coverage=None, *, shape=(36, 72), ground=None, **options):
        coverage = coverage or Coverage(np.ones((shape[0] // 2, shape[1] // 2), dtype=np.float32), 2)
        chosen = {"height": 8, "width": 8, "step": 2, "overlap": 0.5, "min_valid": 0.5, "val_fraction": 0.1}
        chosen |= {"val_block": 1, "buffer": 3, "seed": 0}
        return index_tiles(coverage, shape, **(chosen | options), ground=ground or self.ground())

    def test_tiles_go_round(self):
        index = self.index(val_fraction=0.0)
        assert sorted(set(index.train[:, 1].tolist())) == list(range(0, 72, 4))  # the last reaches 4 columns beyond
        moved = index.epoch(seed=0, epoch=0, tiles=2000)
        assert (moved[:, 1] >= 0).all() and (moved[:, 1] < 72).all() and (moved[:, 1] > 64).any()

    @given(seed=st.integers(0, 30), buffer=st.integers(0, 9), chosen=st.sets(st.integers(0, 7), min_size=1, max_size=3))
    def test_buffers_go_round(self, seed, buffer, chosen):
        """Against counting on the circle: blocks of 8 x 8 in one row of blocks, the last 8 columns in none."""
        blocks = np.zeros((1, 8), dtype=bool)
        blocks[0, list(chosen)] = True
        held_out = holdout_blocks(blocks, 8, 8, buffer, wrap_columns=72)
        held = {c for b in chosen for c in range(8 * b, 8 * b + 8)}
        near = {(c + d) % 72 for c in held for d in range(-buffer, buffer + 1)}
        cols = np.arange(72)
        expected = np.array([any((c + k) % 72 in near for k in range(5)) for c in cols])
        np.testing.assert_array_equal(held_out.touched(np.zeros(72, int), cols, height=4, width=5), expected)
        ground = held_out.training_ground(np.zeros(1, int), cols)[0]
        np.testing.assert_array_equal(ground, [c not in near for c in cols])

    def test_coverage_goes_round(self):
        fraction = np.ones((4, 36), dtype=np.float32)
        fraction[:, :2] = 0  # the four columns east of the line
        coverage = Coverage(fraction, 2, wrap_columns=72)
        share = coverage.of_windows(np.zeros(3, int), np.array([64, 68, 70]), height=8, width=8)
        np.testing.assert_allclose(share, [1.0, 0.5, 0.5])

    def test_tiles_are_drawn_by_area(self):
        index = self.index(val_fraction=0.0, overlap=0.75)  # a stride of one step: tiles are not shifted
        drawn = np.concatenate([index.epoch(seed=0, epoch=e) for e in range(60)])
        equator = np.sum(drawn[:, 0] == 14)
        for row in sorted(set(index.train[:, 0].tolist())):
            latitude = 90 - (row + 4) * 5
            share = np.sum(drawn[:, 0] == row) / equator
            assert share == pytest.approx(np.cos(np.radians(latitude)), abs=0.03)

    def test_epochs_follow_from_seed_and_epoch(self):
        index = self.index()
        first = index.epoch(seed=3, epoch=5)
        np.testing.assert_array_equal(first, self.index().epoch(seed=3, epoch=5))
        assert (first != index.epoch(seed=3, epoch=6)).any() and (first != index.epoch(seed=4, epoch=5)).any()

    @given(st.lists(st.floats(0.01, 5.0), min_size=1, max_size=30), st.integers(1, 100), st.integers(0, 9))
    def test_draws_stay_within_one_of_their_share(self, weights, count, seed):
        weights = np.array(weights)
        drawn = draw_by_weight(weights, count, np.random.default_rng(seed))
        times = np.bincount(drawn, minlength=len(weights))
        assert len(drawn) == count and (np.abs(times - count * weights / weights.sum()) < 1 + 1e-9).all()

    def test_equal_weights_give_every_tile_once(self):
        drawn = draw_by_weight(np.full(50, 0.3), 50, np.random.default_rng(0))
        assert sorted(drawn.tolist()) == list(range(50)) and drawn.tolist() != sorted(drawn.tolist())

    def test_polar_tiles_are_left_out(self):
        index = self.index(height=4, width=4, val_fraction=0.2)
        moved = np.concatenate([index.train, index.val, index.epoch(seed=0, epoch=0)])
        assert np.abs(90 - (moved[:, 0] + 2) * 5).max() <= 80
        assert (index.train[:, 0] == 0).any()  # 90 to 70 degrees, centred on 80
        regional = self.index(height=4, width=4, ground=latitude_weights(replace(WHOLE, cols=60)), shape=(36, 60))
        assert regional.wrap_columns == 0 and (regional.train[:, 0] == 0).any()

    def test_nothing_but_poles_is_refused(self):
        with pytest.raises(ValueError, match="all 2 tiles are centred too near a pole.*polar projection"):
            ground = latitude_weights(Grid(WGS84, -180.0, 90.0, 45.0, 1.0, 8, 8))
            self.index(shape=(8, 8), ground=ground, coverage=Coverage(np.ones((4, 4), np.float32), 2))

    def test_held_out_share_is_of_the_area(self):
        index = self.index(height=4, width=4, buffer=0, val_fraction=0.3, val_block=1)
        rows = np.array([r for r, *_ in index.held_out.rectangles()])
        areas = index.ground.areas(rows, 4) * 4
        assert areas.sum() / 72 == pytest.approx(0.3, abs=0.02)


class TestSurvey:
    def survey(self, folder, left, **options):
        folder.mkdir()
        write_global(folder / "a.tif", 2.0, left=left, noise=0.1)
        write_global(folder / "b.tif", 4.0, left=left, seed=1)
        return open_survey(SurveySettings(data_dir=str(folder), **(SMALL | options)))

    @pytest.mark.parametrize("cache", ["none", "ram"])
    def test_rolling_the_grid_changes_nothing_but_the_order(self, tmp_path, cache):
        """Rolled by 4 k columns, tiles of the same ground hold the same pixels, bit for bit; statistics too."""
        plain = self.survey(tmp_path / "a", -180.0, cache=cache)
        pixels, west = tiles_of(plain)
        assert (west + 32 > 180).any()  # a tile is 8 base pixels of 4 degrees wide
        for number, left in enumerate((0.0, -100.0, 36.0)):
            rolled = self.survey(tmp_path / f"r{number}", left, cache=cache)
            assert rolled.statistics == plain.statistics
            again, west_again = tiles_of(rolled)
            order, order_again = np.argsort(west, kind="stable"), np.argsort(west_again, kind="stable")
            np.testing.assert_array_equal(west[order], west_again[order_again])
            for array, other in zip(pixels.arrays, again.arrays, strict=True):
                np.testing.assert_array_equal(array[order], other[order_again])
            assert plain.tiles.held_out.rectangles() == rolled.tiles.held_out.rectangles()

    def test_tiles_across_the_line_hold_the_rolled_grid(self, tmp_path):
        opened = self.survey(tmp_path / "a", -180.0)
        rolled = np.roll(global_grid(4.0, seed=1), -45, axis=1)  # begins at longitude 0: the line is in the middle
        origins = np.array([[30, 180 - 16]])  # longitude 148 to 180, reference pixels of 2 degrees
        for first in range(-8, 9, 2):
            tile = TileReader(opened.stack, opened.bundles).read(origins + [0, first + 8])
            col = 45 + (180 - 8 + first) // 2 - 90  # of the rolled grid, 4 degrees
            np.testing.assert_array_equal(tile.arrays[1][0, 0], rolled[15:23, col : col + 8])

    def test_the_moon_and_the_log(self, tmp_path):
        write_global(tmp_path / "a.tif", 5.0, left=0.0, crs=MOON)
        opened = open_survey(SurveySettings(data_dir=str(tmp_path), **SMALL))
        assert opened.tiles.wrap_columns == 72
        assert [text for text in opened.warnings if "--val_buffer" not in text] == []  # blocks without a buffer
        assert (
            "303.2 km high at latitude" in opened.summary_lines()[-2]
            and "the grid wraps around the planet" in opened.summary_lines()[-1]
        )
        across, along = opened.base_pixel((18 - 8, 0))  # a tile centred on the equator
        assert across == pytest.approx(along) == pytest.approx(10 * math.radians(1_737_400.0))

    def test_what_does_not_divide_a_turn_is_told(self, tmp_path):
        write_grid(tmp_path / "a.tif", ramp(250, 514), resolution=0.7, left=-180.0, top=87.5, crs="EPSG:4326")
        opened = open_survey(SurveySettings(data_dir=str(tmp_path), **SMALL))
        assert opened.tiles.wrap_columns == 0
        assert any(
            "a full circle is 514.286 pixels, not a whole number: tiles do not cross" in w for w in opened.warnings
        )
        write_global(tmp_path / "b.tif", 0.5)
        opened = open_survey(SurveySettings(data_dir=str(tmp_path), **SMALL))
        assert opened.tiles.wrap_columns == 720
        assert any("layer 'a': a full circle is 514.286 of its pixels" in w for w in opened.warnings)

    def test_repeated_columns_are_told(self, tmp_path):
        values = np.concatenate([global_grid(5.0), global_grid(5.0)[:, :1]], axis=1)
        write_grid(tmp_path / "a.tif", values, resolution=5.0, left=-180.0, top=90.0, crs="EPSG:4326")
        opened = open_survey(SurveySettings(data_dir=str(tmp_path), **SMALL))
        assert any("its last 1 columns repeat ground" in w for w in opened.warnings)


class TestAreaOfInterest:
    """Polygons in any CRS against the pixel centres of the 5-degree grid."""

    def inside(self, path, grid=WHOLE):
        return load_area_of_interest(path, grid.crs).inside(grid.transform, grid.rows, grid.cols)

    def write(self, path, shapes, crs):
        geopandas.GeoDataFrame(geometry=shapes, crs=crs).to_file(path)
        return path

    def test_a_box_across_the_line_in_degrees(self, tmp_path):
        for name, left, right in (("east", 170, 190), ("west", -190, -170), ("round", 530, 550)):
            inside = self.inside(self.write(tmp_path / f"{name}.gpkg", [shapely.box(left, 0, right, 10)], "EPSG:4326"))
            assert np.argwhere(inside).tolist() == [[r, c] for r in (16, 17) for c in (0, 1, 70, 71)]
        later = replace(WHOLE, left=0.0)
        inside = self.inside(tmp_path / "west.gpkg", later)
        assert np.argwhere(inside).tolist() == [[r, c] for r in (16, 17) for c in range(34, 38)]

    def test_a_square_of_metres_across_the_line(self, tmp_path):
        """UTM zone 60 at the equator, from its middle meridian of 177 degrees to 1100 km, some 10 degrees, east."""
        square = shapely.box(500_000, 0, 1_600_000, 1_000_000)
        inside = self.inside(self.write(tmp_path / "a.gpkg", [square], "EPSG:32660"))
        assert np.argwhere(inside).tolist() == [[r, c] for r in (16, 17) for c in (0, 71)]

    @pytest.mark.parametrize("crs, rows", [("EPSG:3995", [0, 1]), ("EPSG:3031", [34, 35])])
    def test_a_cap_around_a_pole(self, tmp_path, crs, rows):
        radius = abs(
            Transformer.from_crs("EPSG:4326", crs, always_xy=True).transform(0.0, 80.0 if rows[0] == 0 else -80.0)[1]
        )
        cap = shapely.Point(0, 0).buffer(radius, quad_segs=64)
        inside = self.inside(self.write(tmp_path / "a.gpkg", [cap], crs))
        assert sorted(set(np.argwhere(inside)[:, 0].tolist())) == rows and inside[rows].all()

    def test_a_ring_around_a_pole_keeps_its_hole(self, tmp_path):
        project = Transformer.from_crs("EPSG:4326", "EPSG:3995", always_xy=True).transform
        outer, inner = (abs(project(0.0, latitude)[1]) for latitude in (70.0, 80.0))
        ring = shapely.Point(0, 0).buffer(outer, quad_segs=64) - shapely.Point(0, 0).buffer(inner, quad_segs=64)
        inside = self.inside(self.write(tmp_path / "a.gpkg", [ring], "EPSG:3995"))
        assert inside[2:4].all() and not inside[:2].any() and not inside[4:].any()

    def test_another_planet_is_refused(self, tmp_path):
        path = self.write(tmp_path / "a.geojson", [shapely.box(0, 0, 10, 10)], "EPSG:4326")
        with pytest.raises(ValueError, match="area of interest .*cannot be brought.*GeoJSON is always of Earth"):
            load_area_of_interest(path, CRS.from_user_input("IAU_2015:30100"))


def test_a_round_band_can_be_pickled(tmp_path):
    import pickle

    bands = [band(tmp_path / "a.tif", ramp(36, 72), resolution=5.0, left=0.0)]
    stack = Stack(bands, reference_grid(bands))
    assert isinstance(stack.bands[0], WrappedBand)
    again = pickle.loads(pickle.dumps(stack.bands[0]))
    np.testing.assert_array_equal(again.read(0, 34, 1, 4), [[70, 71, 0, 1]])
    assert again.layer.name == "a" and again.nodata_rule == bands[0].nodata_rule
    with pytest.raises(AttributeError):
        _ = again.no_such_thing


class TestFeet:
    """EPSG:2225, California zone 1: US survey feet of 1200/3937 m; EPSG:2222, Arizona: international feet."""

    @pytest.mark.parametrize(("code", "metres"), [(2225, 1200 / 3937), (2222, 0.3048), (28354, 1.0), (4326, 1.0)])
    def test_a_unit_in_metres(self, code, metres):
        assert metres_per_unit(CRS.from_epsg(code)) == pytest.approx(metres, rel=1e-12)

    def test_lengths_in_logs_pictures_and_maps_are_metres(self, tmp_path):
        for name, edge in (("fine", 100.0), ("coarse", 200.0)):
            count = round(16_000 / edge)
            values = np.random.default_rng(0).normal(size=(count, count))
            write_grid(tmp_path / f"{name}.tif", values.astype("float32"), crs="EPSG:2222", resolution=edge)
        survey = open_survey(SurveySettings(data_dir=str(tmp_path), **SMALL))
        assert survey.base_resolution == 200.0  # feet
        assert survey.base_pixel((0, 0)) == pytest.approx((60.96, 60.96)) and survey.length_unit == "m"
        assert survey.summary_lines()[-1] == "lengths are in foot of 0.3048 m: a base pixel is 60.96 m"
        ground = inference_survey_from(survey, scales=(1,))
        assert ground.map_scale == {"length_unit": "m", "unit_length": pytest.approx(0.3048)}
        assert ground.base_resolution * ground.metres_per_unit == pytest.approx(60.96)
