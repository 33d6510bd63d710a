"""Layers of different resolution over one reference grid: placement, extents, windows."""

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rasterio.crs import CRS

from datasets.ground.grid import Grid
from datasets.layers.layer import Layer
from datasets.rasters.chunk_cache import CHUNKS
from datasets.rasters.open_band import open_band
from datasets.survey.stack import Placement, Stack, make_bundles, place, reference_grid
from tests.rasters import ramp, write_grid

MGA54 = CRS.from_epsg(28354)
REFERENCE = Grid(MGA54, 500_000.0, 6_000_000.0, 100.0, 100.0, 40, 60)


def shifted(*, left=0.0, top=0.0, resolution_x=100.0, resolution_y=None, rows=40, cols=60):
    """A grid whose corner lies `left` to the east and `top` to the north of the reference grid's."""
    height = resolution_x if resolution_y is None else resolution_y
    return Grid(MGA54, 500_000.0 + left, 6_000_000.0 + top, resolution_x, height, rows, cols)


def numbers(placement):
    return placement.ratio_x, placement.ratio_y, placement.offset_x, placement.offset_y


def band(path, *, rows=4, cols=6, name=None, **options):
    write_grid(path, ramp(rows, cols), **options)
    return open_band(Layer(name or path.stem, str(path)))


class TestPlace:
    @pytest.mark.parametrize(
        "grid, expected",
        [
            (shifted(), (1, 1, 0, 0)),
            (shifted(resolution_x=200.0), (0.5, 0.5, 0, 0)),
            (shifted(resolution_x=250.0), (0.4, 0.4, 0, 0)),
            (shifted(resolution_x=300.0), (1 / 3, 1 / 3, 0, 0)),
            (shifted(resolution_x=50.0, resolution_y=200.0), (2, 0.5, 0, 0)),
            (shifted(left=50.0, top=-50.0), (1, 1, -0.5, -0.5)),  # half a pixel east and south
            (shifted(left=-300.0, top=200.0), (1, 1, 3, 2)),  # the layer begins 3 pixels west, 2 north
            (shifted(left=-100.0, top=100.0, resolution_x=200.0), (0.5, 0.5, 0.5, 0.5)),
            (shifted(left=25.0, top=-75.0), (1, 1, -0.25, -0.75)),
        ],
    )
    def test_ratio_and_offset(self, grid, expected):
        assert numbers(place(grid, REFERENCE)) == pytest.approx(expected, abs=1e-12)

    def test_rounding_of_stored_coordinates_is_no_shift(self):
        assert numbers(place(shifted(left=0.0008, top=-0.0008, resolution_x=200.0), REFERENCE)) == (0.5, 0.5, 0, 0)
        assert numbers(place(shifted(resolution_x=200.0000001), REFERENCE)) == (0.5, 0.5, 0, 0)

    def test_real_shifts_are_kept_to_a_thousandth_of_a_pixel(self):
        assert place(shifted(left=3.0), REFERENCE).offset_x == pytest.approx(-0.03, abs=1e-3)

    def test_edges_in_native_pixels(self):
        placement = place(shifted(left=-500.0, resolution_x=250.0), REFERENCE)
        assert [placement.native_col(c) for c in (0, 1, 5, 10)] == [2.0, 2.4, 4.0, 6.0]
        assert [placement.native_row(r) for r in (0, 5)] == [0.0, 2.0]

    @pytest.mark.parametrize(
        "grid, rows, step, aligned",
        [
            (shifted(), 8, 1, True),
            (shifted(resolution_x=200.0), 8, 2, True),
            (shifted(resolution_x=200.0), 8, 1, False),  # tiles may start in the middle of a native pixel
            (shifted(resolution_x=250.0), 40, 5, True),
            (shifted(resolution_x=250.0), 40, 4, False),
            (shifted(left=50.0), 8, 4, False),
            (shifted(resolution_x=300.0), 12, 3, True),
            (shifted(resolution_x=300.0), 8, 3, False),
        ],
    )
    def test_aligned_windows(self, grid, rows, step, aligned):
        assert place(grid, REFERENCE).is_aligned(rows=rows, cols=rows, step=step) is aligned


class TestReferenceGrid:
    def test_union_takes_the_finest_pixels_over_all_extents(self, tmp_path):
        fine = band(tmp_path / "fine.tif", rows=4, cols=6)  # 600 x 400 m
        coarse = band(tmp_path / "coarse.tif", rows=4, cols=4, resolution=200.0, left=499_800.0, top=6_000_200.0)
        grid = reference_grid([coarse, fine])
        assert (grid.left, grid.top, grid.resolution_x, grid.resolution_y) == (499_800.0, 6_000_200.0, 100.0, 100.0)
        assert (grid.rows, grid.cols) == (8, 8)
        assert grid.bounds == (499_800.0, 5_999_400.0, 500_600.0, 6_000_200.0)

    def test_intersection_is_the_common_ground(self, tmp_path):
        fine = band(tmp_path / "fine.tif", rows=4, cols=6)
        coarse = band(tmp_path / "coarse.tif", rows=2, cols=4, resolution=200.0, left=499_800.0, top=6_000_200.0)
        grid = reference_grid([coarse, fine], extent="intersection")
        assert grid.bounds == (500_000.0, 5_999_800.0, 500_600.0, 6_000_000.0)

    def test_pixel_edges_stay_those_of_the_finest_layer(self, tmp_path):
        """The union grows outwards to whole pixels of the finest layer, the intersection shrinks inwards."""
        fine = band(tmp_path / "fine.tif", rows=4, cols=6)
        coarse = band(tmp_path / "coarse.tif", rows=2, cols=2, resolution=250.0, left=499_950.0, top=6_000_030.0)
        union = reference_grid([fine, coarse])
        assert union.bounds == (499_900.0, 5_999_500.0, 500_600.0, 6_000_100.0)
        common = reference_grid([fine, coarse], extent="intersection")
        assert common.bounds == (500_000.0, 5_999_600.0, 500_400.0, 6_000_000.0)

    def test_extents_that_differ_by_rounding_add_no_row(self, tmp_path):
        first = band(tmp_path / "a.tif", rows=4, cols=6)
        second = band(tmp_path / "b.tif", rows=2, cols=3, resolution=200.0, left=499_999.9992, top=6_000_000.0008)
        grid = reference_grid([first, second])
        assert (grid.rows, grid.cols, grid.left, grid.top) == (4, 6, 500_000.0, 6_000_000.0)

    def test_of_anisotropic_layers_the_smaller_longest_edge_is_finest(self, tmp_path):
        thin = band(tmp_path / "thin.tif", rows=4, cols=40, resolution=(10.0, 100.0))
        square = band(tmp_path / "square.tif", rows=8, cols=8, resolution=50.0)
        grid = reference_grid([thin, square])
        assert (grid.resolution_x, grid.resolution_y, grid.rows, grid.cols) == (50.0, 50.0, 8, 8)
        assert numbers(place(thin.grid, grid)) == (5.0, 0.5, 0.0, 0.0)

    def test_of_layers_that_are_alike_the_first_is_the_reference(self, tmp_path):
        """Another CRS's 100 m may become 99.97 m when warped: that makes no finer grid."""
        bands = [
            band(tmp_path / "coarse.tif", rows=2, cols=3, resolution=200.0),
            band(tmp_path / "given.tif", rows=4, cols=6),
            band(tmp_path / "warped.tif", rows=4, cols=6, resolution=99.97),
        ]
        grid = reference_grid(bands)
        assert (grid.resolution_x, grid.cols) == (100.0, 6)

    def test_south_up_file_lies_where_the_north_up_one_lies(self, tmp_path):
        north = band(tmp_path / "north.tif")
        south = band(tmp_path / "south.tif", south_up=True)
        assert reference_grid([north, south]) == north.grid
        stack = Stack([north, south], north.grid)
        np.testing.assert_array_equal(stack.read(0, 1, 2, 2, 3), stack.read(1, 1, 2, 2, 3))

    def test_differing_crs_is_refused(self, tmp_path):
        first = band(tmp_path / "a.tif")
        other = band(tmp_path / "b.tif", crs="EPSG:28355")
        with pytest.raises(
            ValueError, match=r"layer 'b' \(.*b\.tif\): CRS EPSG:28355, expected EPSG:28354 of layer 'a'"
        ):
            reference_grid([first, other])

    def test_layer_that_overlaps_nothing_is_refused(self, tmp_path):
        bands = [band(tmp_path / f"{name}.tif") for name in "ab"]
        bands.append(band(tmp_path / "far.tif", left=900_000.0))
        for extent in ("union", "intersection"):
            with pytest.raises(ValueError, match="layer 'far'.*does not overlap 'a', 'b'; .*far x 900000"):
                reference_grid(bands, extent=extent)

    def test_the_layer_named_is_the_one_apart(self, tmp_path):
        bands = [band(tmp_path / f"{name}.tif", left=9e5 if name == "a" else 5e5) for name in "abc"]
        with pytest.raises(ValueError, match="layer 'a'.*does not overlap 'b', 'c'"):
            reference_grid(bands)

    def test_layers_that_only_touch_do_not_overlap(self, tmp_path):
        bands = [band(tmp_path / "a.tif"), band(tmp_path / "b.tif", left=500_600.0)]
        with pytest.raises(ValueError, match="layer 'b'.*does not overlap 'a'.*b x 500600..501200, y 5999600..6000000"):
            reference_grid(bands)

    def test_two_surveys_in_one_folder_are_refused(self, tmp_path):
        """Each layer overlaps another, but the ground between the two pairs would be an empty ocean."""
        bands = [
            band(tmp_path / f"{name}.tif", left=left) for name, left in zip("abcd", (5e5, 5e5, 9e5, 9e5), strict=True)
        ]
        with pytest.raises(ValueError, match="layer 'c'.*does not overlap 'a', 'b'"):
            reference_grid(bands)

    def test_empty_intersection_is_refused(self, tmp_path):
        """A chain in which neighbours overlap, the ends not."""
        bands = [band(tmp_path / f"{k}.tif", left=500_000.0 + 400.0 * k) for k in range(3)]
        assert reference_grid(bands).cols == 14
        with pytest.raises(ValueError, match="share no ground.*--extent union"):
            reference_grid(bands, extent="intersection")


def three_layers(folder, *, hidden=()):
    """100 m with a hole, 200 m shifted by half a reference pixel, int16 at 250 m with scale, offset and nodata."""
    fine = ramp(24, 30)
    fine[5:9, 7:11] = np.nan
    coarse = ramp(12, 16, "int16")
    coarse[3, 3] = -999
    paths = [
        write_grid(folder / "a.tif", fine),
        write_grid(folder / "b.tif", ramp(13, 16), resolution=200.0, left=499_950.0, top=6_000_050.0),
        write_grid(
            folder / "c.tif",
            coarse,
            resolution=250.0,
            nodata=-999,
            scale=0.1,
            offset=5.0,
            left=499_900.0,
            top=6_000_100.0,
        ),
    ]
    bands = [open_band(Layer(path.stem, str(path))) for path in paths]
    return Stack(bands, reference_grid(bands), hidden=hidden)


@pytest.fixture(scope="module")
def two_stacks(tmp_path_factory):
    """The same layers read by window, and from memory."""
    folder = tmp_path_factory.mktemp("stack")
    lazy, loaded = three_layers(folder), three_layers(folder)
    loaded.load()
    return lazy, loaded


class TestStack:
    def test_length_and_memory(self, tmp_path):
        stack = three_layers(tmp_path)
        assert len(stack) == 3
        assert stack.memory_bytes == 4 * (24 * 30 + 13 * 16 + 12 * 16)
        assert not stack.in_memory
        stack.load()
        assert stack.in_memory

    @settings(max_examples=60, deadline=None)
    @given(data=st.data())
    def test_a_window_is_a_slice_of_the_whole_whether_in_memory_or_not(self, two_stacks, data):
        lazy, loaded = two_stacks
        channel = data.draw(st.integers(0, 2))
        grid = lazy.bands[channel].grid
        row, col = data.draw(st.integers(-6, grid.rows + 3)), data.draw(st.integers(-6, grid.cols + 3))
        rows, cols = data.draw(st.integers(1, 12)), data.draw(st.integers(1, 12))
        padded = np.pad(lazy.read(channel, 0, 0, grid.rows, grid.cols), 20, constant_values=np.nan)
        expected = padded[20 + row : 20 + row + rows, 20 + col : 20 + col + cols]
        for stack in (lazy, loaded):
            window = stack.read(channel, row, col, rows, cols)
            assert window.dtype == np.float32
            np.testing.assert_array_equal(window, expected)

    def test_hidden_layer_has_no_valid_pixel(self, tmp_path):
        stack = three_layers(tmp_path, hidden=[1])
        stack.load()
        assert np.isnan(stack.read(1, 0, 0, 5, 5)).all()
        assert np.isfinite(stack.read(0, 0, 0, 5, 5)).all()

    def test_what_is_in_memory_is_kept_once(self, tmp_path):
        tiled = {"tiled": True, "blockxsize": 64, "blockysize": 64}
        layer = open_band(Layer("a", str(write_grid(tmp_path / "a.tif", ramp(80, 90), **tiled))))
        stack = Stack([layer], layer.grid)
        CHUNKS.forget()
        np.testing.assert_array_equal(stack.read(0, 60, 60, 9, 9), ramp(80, 90)[60:69, 60:69])
        assert CHUNKS.size == 4 * 80 * 90
        CHUNKS.forget()
        stack.load()
        assert CHUNKS.size == 0
        np.testing.assert_array_equal(stack.read(0, 60, 60, 9, 9), ramp(80, 90)[60:69, 60:69])

    def test_unreadable_window_names_layer_and_file(self, tmp_path):
        stack = three_layers(tmp_path)
        gone = replace(stack.bands[0].layer, path=str(tmp_path / "gone.tif"))
        broken = replace(stack.bands[0], layer=gone, source=replace(stack.bands[0].source, layer=gone))
        with pytest.raises(OSError, match=r"layer 'a' \(.*gone\.tif, band 1\): rows 2 to 4, columns 1 to 4"):
            Stack([broken], stack.reference).read(0, 2, 1, 3, 4)


class TestBlocks:
    def test_layers_of_one_shape_and_place_travel_together(self, tmp_path):
        names = {"a": 100.0, "b": 200.0, "c": 100.0, "d": 250.0}
        bands = [band(tmp_path / f"{n}.tif", rows=20, cols=20, resolution=r) for n, r in names.items()]
        stack = Stack(bands, reference_grid(bands))
        blocks = make_bundles(stack, tile_rows=16, tile_cols=8, step=4)
        assert [(b.channels, b.rows, b.cols, b.aligned) for b in blocks] == [
            ((0, 2), 16, 8, True),
            ((1,), 8, 4, True),
            ((3,), 8, 5, False),  # 6.4 and 3.2 native pixels, rounded up, and one more for the phase
        ]

    def test_window_of_an_aligned_layer(self, tmp_path):
        bands = [band(tmp_path / "a.tif", rows=20, cols=20), band(tmp_path / "b.tif", rows=9, cols=9, resolution=200.0)]
        stack = Stack(bands, reference_grid(bands))
        fine, coarse = make_bundles(stack, tile_rows=8, tile_cols=8, step=4)
        assert fine.window(4, 12) == (4, 12, 0.0, 0.0)
        assert coarse.window(4, 12) == (2, 6, 0.0, 0.0)

    def test_window_of_a_shifted_layer(self):
        """Reference row 3 is native 1.2, column 7 is 2.8 + 0.5."""
        placement = Placement(ratio_x=0.4, ratio_y=0.4, offset_x=0.5, offset_y=0.0)
        block = make_bundles(fake_stack(placement), tile_rows=10, tile_cols=10, step=1)[0]
        assert (block.rows, block.cols, block.aligned) == (5, 5, False)
        row, col, phase_y, phase_x = block.window(3, 7)
        assert (row, col) == (1, 3)
        assert (phase_y, phase_x) == pytest.approx((0.2, 0.3))

    @settings(max_examples=100, deadline=None)
    @given(
        ratio=st.sampled_from([1.0, 0.5, 0.4, 1 / 3, 2.0, 2 / 3, 0.123]),
        offset=st.floats(-30, 30),
        size=st.integers(1, 40),
        step=st.integers(1, 4),
        number=st.integers(0, 500),
    )
    def test_a_window_holds_its_tile(self, ratio, offset, size, step, number):
        placement = Placement(ratio_x=ratio, ratio_y=ratio, offset_x=offset, offset_y=0.0)
        block = make_bundles(fake_stack(placement), tile_rows=size, tile_cols=size, step=step)[0]
        origin = number * step
        row, col, phase_y, phase_x = block.window(origin, origin)
        for first, phase, shift, native in ((row, phase_y, 0.0, block.rows), (col, phase_x, offset, block.cols)):
            assert 0 <= phase < 1
            assert first + phase == pytest.approx(shift + ratio * origin, abs=2e-6)
            assert first + native >= shift + ratio * (origin + size) - 2e-6
            if block.aligned:
                assert phase == pytest.approx(0, abs=2e-6)


def fake_stack(*placements: Placement) -> Any:
    """Only what `make_bundles` looks at."""
    return SimpleNamespace(placements=placements)
