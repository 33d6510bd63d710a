"""A survey from files: layers, groups, scored scales, reference grid, and what is refused or told."""

import argparse
import logging
from dataclasses import fields
from typing import Any

import geopandas
import numpy as np
import pytest
import shapely
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from rasterio.warp import transform

from datasets.loading.prefetch import prefetch
from datasets.survey import memory, open_layers
from datasets.survey import open_survey as opening
from datasets.survey.open_survey import SurveySettings, open_survey
from datasets.survey.open_test_survey import open_test_survey
from datasets.survey.survey import smooth_layers
from datasets.survey.tile_reader import TileReader
from tests.rasters import ramp, write_grid
from util.options.common import add_data_options, add_model_options, survey_options

SMALL: dict[str, Any] = {"input_size": 4, "scales": (1, 2, 4), "val_fraction": 0.0}
"""Tiles of 4 x 4 base pixels of 4 reference pixels each."""


def field(rows, cols=None, seed=0):
    """A smooth field with some noise, about 20 with a spread of 10."""
    cols = rows if cols is None else cols
    y, x = np.mgrid[:rows, :cols] / max(rows, cols)
    values = 20 + 10 * np.sin(7 * x + seed) * np.cos(5 * y) + np.random.default_rng(seed).normal(size=(rows, cols))
    return values.astype(np.float32)


def make(folder, **layers):
    """Writes rasters named by keyword, an array or (array, options), and returns the folder as text."""
    folder.mkdir(exist_ok=True)
    for name, entry in layers.items():
        values, options = entry if isinstance(entry, tuple) else (entry, {})
        write_grid(folder / f"{name}.tif", values, **options)
    return str(folder)


def two_resolutions(folder, **more):
    """a and c at 100 m, b at 200 m, the same ground."""
    coarse = (field(20, seed=1), {"resolution": 200.0})
    return make(folder, a=field(40), b=coarse, c=field(40, seed=2), **more)


def survey(folder, **options):
    return open_survey(SurveySettings(data_dir=folder, **(SMALL | options)))


def samples(opened, origins=None):
    """The tiles at some origins as the model gets them."""
    origins = opened.tiles.train if origins is None else np.array(origins)
    return opened.pyramid()(*TileReader(opened.stack, opened.bundles).read(origins).parts)


def flat(sample):
    return [sample.imgs, sample.valid, *sample.imgs_up, *sample.valid_up]


class TestGroups:
    def test_by_resolution_finest_first(self, tmp_path):
        assert survey(two_resolutions(tmp_path)).groups == ((0, 2), (1,))

    def test_as_given(self, tmp_path):
        assert survey(two_resolutions(tmp_path), grouped_bands=[[2], [1, 0]]).groups == ((2,), (1, 0))

    def test_vanilla_is_one_group(self, tmp_path):
        assert survey(two_resolutions(tmp_path), one_group=True).groups == ((0, 1, 2),)

    def test_by_the_column_of_the_table(self, tmp_path):
        two_resolutions(tmp_path)
        table = tmp_path / "layers.csv"
        table.write_text("path,group\na.tif,potential\nb.tif,potential\nc.tif,other\n")
        opened = open_survey(SurveySettings(layers_table=str(table), **SMALL))
        assert sorted(opened.groups) == [(0, 1), (2,)]

    def test_layers_without_a_group_are_grouped_by_resolution(self, tmp_path):
        two_resolutions(tmp_path, d=(field(20), {"resolution": 200.0}))
        table = tmp_path / "layers.csv"
        table.write_text("path,group\na.tif,\nb.tif,\nc.tif,mine\nd.tif,\n")
        opened = open_survey(SurveySettings(layers_table=str(table), **SMALL))
        assert opened.groups == ((2,), (0,), (1, 3))

    def test_resolutions_that_differ_by_rounding_are_one(self, tmp_path):
        """99.97 m, as warping makes of 100 m: one group, scored alike."""
        nearly = (field(40, seed=3), {"resolution": 99.97})
        opened = survey(two_resolutions(tmp_path, d=nearly), extent="intersection")
        assert opened.base_resolution == 400.0
        assert opened.groups == ((0, 2, 3), (1,))
        assert opened.scored == {1: (0, 1, 2, 3), 2: (0, 1, 2, 3), 4: (0, 2, 3)}

    @pytest.mark.parametrize(
        "groups, wrong",
        [
            ([[0], [1]], r"missing \[2\], twice \[\], unknown \[\]"),
            ([[0, 1], [1, 2]], r"missing \[\], twice \[1\], unknown \[\]"),
            ([[0, 1], [2, 3]], r"missing \[\], twice \[\], unknown \[3\]"),
            ([[0, 1, 2], []], r"missing \[\], twice \[\], unknown \[\]"),
        ],
    )
    def test_not_a_partition(self, tmp_path, groups, wrong):
        with pytest.raises(ValueError, match=rf"not a partition of the 3 layers \(0 = a, 1 = b, 2 = c\): {wrong}"):
            survey(two_resolutions(tmp_path), grouped_bands=groups)


class TestScales:
    def test_no_layer_is_scored_finer_than_its_own_pixels(self, tmp_path):
        opened = survey(two_resolutions(tmp_path))
        assert opened.base_resolution == 400.0  # finest resolution x largest scale
        assert opened.scales == (1, 2, 4)
        assert opened.scored == {1: (0, 1, 2), 2: (0, 1, 2), 4: (0, 2)}
        sample = samples(opened)
        assert sample.valid[:, 1].all() and sample.valid_up[0][:, 1].all() and not sample.valid_up[1][:, 1].any()
        assert sample.imgs_up[1].shape[1:] == (3, 16, 16)

    def test_order_of_scales_does_not_matter(self, tmp_path):
        assert survey(two_resolutions(tmp_path), scales=(4, 1, 2)).scales == (1, 2, 4)

    def test_scales_at_which_nothing_is_scored_are_dropped_and_told(self, tmp_path):
        opened = survey(two_resolutions(tmp_path), base_resolution=200.0)
        assert opened.scales == (1, 2)
        assert opened.scored == {1: (0, 1, 2), 2: (0, 2)}
        assert opened.warnings == ("no layer is as fine as scale 4 (50): it is left out",)

    def test_layers_coarser_than_the_base_pixel_are_shown_unscored_and_told(self, tmp_path):
        opened = survey(two_resolutions(tmp_path), base_resolution=100.0, scales=(1,))
        assert opened.scored == {1: (0, 2)}
        assert any(
            "layer 'b' has pixels of 200, coarser than the base pixel of 100" in text for text in opened.warnings
        )
        assert samples(opened).valid[:, 1].all()

    def test_base_resolution_finer_than_every_layer(self, tmp_path):
        with pytest.raises(ValueError, match=r"--base_resolution 50 is finer than every layer \(.*pixels of 100\)"):
            survey(two_resolutions(tmp_path), base_resolution=50.0)

    def test_tile_that_is_no_whole_number_of_reference_pixels(self, tmp_path):
        with pytest.raises(ValueError, match=r"--input_size 4 x --base_resolution 130 is 5\.2 reference pixels of 100"):
            survey(two_resolutions(tmp_path), base_resolution=130.0)

    def test_base_pixels_of_two_and_a_half_reference_pixels(self, tmp_path):
        opened = survey(two_resolutions(tmp_path), base_resolution=250.0, scales=(1, 2))
        assert (opened.tiles.height, opened.tiles.step) == (10, 1)
        assert opened.scored == {1: (0, 1, 2), 2: (0, 2)}
        assert not any(bundle.aligned for bundle in opened.bundles if bundle.placement.ratio_x == 0.5)

    @pytest.mark.parametrize(
        "resolution, place",
        [
            ((100.0, 93.7), {}),
            ((93.7, 100.0), {}),
            ((100.0, 99.998), {}),
            ((0.00083333, 0.00083334), {"crs": "EPSG:4326", "left": 140.0, "top": -30.0}),
        ],
    )
    def test_pixels_that_are_nearly_square(self, tmp_path, resolution, place):
        """Tiles are cut from a square grid of the longer edge; a plane stays the plane that it is."""
        width, height = resolution
        longer = max(resolution)
        y, x = np.mgrid[:64, :64] + 0.5
        plane = (x * width - 2 * y * height) / longer  # in units of the longer edge
        folder = make(tmp_path / "s", a=(plane.astype(np.float32), {"resolution": resolution, **place}))
        opened = survey(folder)
        reference = opened.stack.reference
        assert (reference.resolution_x, reference.resolution_y) == (longer, longer)
        assert (opened.base_resolution, opened.scales) == (4 * longer, (1, 2, 4))
        (tile,) = samples(opened, [[16, 8]]).imgs[:, 0].numpy()
        values = tile * opened.statistics[0].scale + opened.statistics[0].centre
        row, col = np.mgrid[:4, :4] * 4 + 2.0  # centres of base pixels
        np.testing.assert_allclose(values, (8 + col) - 2 * (16 + row), atol=0.15)

    def test_the_same_layer_twice_is_warned_about(self, tmp_path):
        again = survey(make(tmp_path / "s", a=field(40), b=field(40), c=field(40, seed=1)))
        (text,) = [text for text in again.layer_warnings if "seems to be the same" in text]
        assert text.startswith("layer 'b' seems to be the same as layer 'a'") and "--dropped_bands" in text
        remedied = survey(str(tmp_path / "s"), dropped_bands=[1])
        assert not any("seems to be the same" in text for text in remedied.layer_warnings)

    def test_the_base_resolution_in_the_message_leads_to_a_run(self, tmp_path):
        folder = make(tmp_path / "s", a=(field(64), {"resolution": (100.0, 93.7)}))
        with pytest.raises(ValueError, match=r"14\.992 reference pixels of 100, .*such as --base_resolution 400$"):
            survey(folder, base_resolution=374.8)
        assert survey(folder, base_resolution=400.0).base_resolution == 400

    def test_anisotropic_pixels(self, tmp_path):
        """50 m along the rows, 100 m across them: base pixels stay square on the ground."""
        opened = survey(make(tmp_path, a=(field(40, 80), {"resolution": (50.0, 100.0)})), scales=(1, 2), val_buffer=8)
        assert opened.base_resolution == 200.0
        assert (opened.tiles.height, opened.tiles.width) == (8, 16)
        assert opened.tiles.held_out.grid.buffer >= 8 * 4  # at least 8 base pixels in either direction
        assert samples(opened).imgs.shape[1:] == (1, 4, 4)


class TestBands:
    def test_dropped_bands_leave_the_others_numbered_anew(self, tmp_path):
        opened = survey(two_resolutions(tmp_path), dropped_bands=[0])
        assert [layer.name for layer in opened.layers] == ["b", "c"]
        assert opened.groups == ((1,), (0,))

    def test_masked_bands_are_there_but_wholly_invalid(self, tmp_path):
        opened = survey(two_resolutions(tmp_path), masked_bands=[2])
        assert len(opened.stack) == 3
        sample = samples(opened)
        for valid in (sample.valid, *sample.valid_up):
            assert not valid[:, 2].any() and valid[:, 0].any()
        assert opened.scored == {1: (0, 1), 2: (0, 1), 4: (0,)}  # there is nothing to score it on

    def test_masked_bands_do_not_count_as_missing_ground(self, tmp_path):
        opened = survey(two_resolutions(tmp_path), masked_bands=[0, 2], min_valid=0.9)
        assert opened.scales == (1, 2)
        assert len(opened.tiles.train) == len(survey(two_resolutions(tmp_path), min_valid=0.9).tiles.train)

    def test_all_bands_masked(self, tmp_path):
        with pytest.raises(ValueError, match="--masked_bands hides every one of the 3 layers; leave at least one"):
            survey(two_resolutions(tmp_path), masked_bands=[0, 1, 2])

    def test_all_bands_dropped(self, tmp_path):
        with pytest.raises(ValueError, match="--dropped_bands leaves none of the 3 layers"):
            survey(two_resolutions(tmp_path), dropped_bands=[0, 1, 2])

    def test_numbers_out_of_range(self, tmp_path):
        folder = two_resolutions(tmp_path)
        with pytest.raises(ValueError, match=r"--dropped_bands names layer 3, expected 0\.\.2 \(there are 3 layers\)"):
            survey(folder, dropped_bands=[3])
        with pytest.raises(ValueError, match=r"--masked_bands names layer 2, expected 0\.\.1 \(there are 2 layers\)"):
            survey(folder, dropped_bands=[1], masked_bands=[2])

    def test_both_or_neither_of_directory_and_table(self, tmp_path):
        neither: dict[str, str] = {}
        both = {"data_dir": "a", "layers_table": "b"}
        for options in (neither, both):
            with pytest.raises(ValueError, match="give one of --data_dir .* and --train_path"):
                open_survey(SurveySettings(**(SMALL | options)))


class TestReading:
    def test_refused_from_the_headers_before_any_pixel_is_read(self, tmp_path, monkeypatch):
        monkeypatch.setattr(open_layers, "scan", lambda band, **options: pytest.fail("a pixel was read"))
        folder = two_resolutions(tmp_path)
        for wrong in ({"grouped_bands": [[0]]}, {"base_resolution": 50.0}, {"base_resolution": 130.0}):
            with pytest.raises(ValueError):
                survey(folder, **wrong)
        make(tmp_path, d=(field(40), {"crs": "EPSG:28355"}))
        with pytest.raises(ValueError, match="EPSG:28355"):
            survey(folder)

    @settings(max_examples=8, deadline=None)
    @given(seed=st.integers(0, 9))
    def test_the_cache_changes_no_tile_and_no_statistic(self, odd_survey, seed):
        ram, lazy = (survey(odd_survey, cache=cache, base_resolution=400.0) for cache in ("ram", "none"))
        assert ram.stack.in_memory and not lazy.stack.in_memory
        assert ram.statistics == lazy.statistics and ram.summaries == lazy.summaries
        origins = ram.tiles.epoch(seed=seed, epoch=0)
        np.testing.assert_array_equal(origins, lazy.tiles.epoch(seed=seed, epoch=0))
        for a, b in zip(flat(samples(ram, origins)), flat(samples(lazy, origins)), strict=True):
            assert torch.equal(a, b)

    def test_the_same_tiles_whatever_the_number_of_reading_threads(self, odd_survey):
        opened = survey(odd_survey, cache="none", base_resolution=400.0)
        reader, origins = TileReader(opened.stack, opened.bundles), opened.tiles.epoch(seed=0, epoch=0)
        jobs = [origins[k : k + 3] for k in range(0, len(origins), 3)]
        alone, *others = (list(prefetch(jobs, reader.read, workers=workers)) for workers in (0, 2, 4))
        for other in others:
            for (origin, tiles), (other_origin, other_tiles) in zip(alone, other, strict=True):
                np.testing.assert_array_equal(origin, other_origin)
                for a, b in zip(tiles.arrays, other_tiles.arrays, strict=True):
                    np.testing.assert_array_equal(a.numpy(), b.numpy())

    def test_cache_auto_reads_by_window_what_does_not_fit(self, tmp_path, monkeypatch):
        folder = two_resolutions(tmp_path)
        assert survey(folder).stack.in_memory
        assert not survey(folder, local_ranks=10**9).stack.in_memory
        monkeypatch.setattr(memory, "MEMORY_SHARE", 1e-9)
        assert not survey(folder).stack.in_memory
        assert survey(folder, cache="ram").stack.in_memory

    def test_tiles_are_the_values_on_the_ground(self, tmp_path):
        """Value 10 * row + column of the 100 m layer: base pixel (0, 0) of a tile is the mean of a 4 x 4 square."""
        folder = make(tmp_path, a=ramp(40, 40), b=(ramp(20, 20), {"resolution": 200.0}))
        opened = survey(folder, cache="none")
        assert opened.bundles[0].aligned and opened.bundles[1].aligned
        make_physical = opened.pyramid().to_physical
        sample = samples(opened, [[8, 12], [24, 0]])
        corner = make_physical(sample.imgs)[:, :, 0, 0]
        expected = [[10 * 9.5 + 13.5, 10 * 4.5 + 6.5], [10 * 25.5 + 1.5, 10 * 12.5 + 0.5]]
        np.testing.assert_allclose(corner, expected, rtol=1e-5)
        np.testing.assert_allclose(make_physical(sample.imgs_up[1])[0, 0], ramp(40, 40)[8:24, 12:28], atol=1e-4)

    def test_the_edges_of_a_smaller_layer_are_invalid(self, tmp_path):
        """b covers the west only: tiles in the east have no valid pixel of it."""
        opened = survey(make(tmp_path, a=field(40), b=field(40, 20)), min_valid=0.3)
        sample = samples(opened, [[0, 0], [0, 12], [0, 24]])
        assert sample.valid[:, 0].all()
        assert sample.valid[:, 1].float().mean(dim=(1, 2)).tolist() == [1.0, 0.5, 0.0]
        common = survey(make(tmp_path), extent="intersection")
        assert common.tiles.shape == (40, 20)
        assert samples(common).valid.all()

    def test_what_is_stored_under_nodata_changes_nothing(self, tmp_path):
        """Bit for bit: tiles, statistics, which tiles there are."""
        hole = np.zeros((40, 40), dtype=bool)
        hole[5:17, 3:21] = True
        found = []
        for number, value in enumerate((0.0, -99999.0, 1e30, np.nan)):
            values, coarse = field(40), field(20, seed=1)
            values[hole] = coarse[12:16, 2:9] = value
            folder = make(
                tmp_path / str(number),
                a=(values, {"nodata": value}),
                b=(coarse, {"nodata": value, "resolution": 200.0}),
            )
            opened = survey(folder, val_fraction=0.2, val_buffer=0, input_size=2)
            found.append((opened, samples(opened)))
        first, expected = found[0]
        assert not expected.valid.all()
        for opened, sample in found[1:]:
            assert opened.statistics == first.statistics
            assert opened.correlation_cells == first.correlation_cells
            np.testing.assert_array_equal(opened.tiles.train, first.tiles.train)
            np.testing.assert_array_equal(opened.tiles.val, first.tiles.val)
            for a, b in zip(flat(sample), flat(expected), strict=True):
                assert torch.equal(a, b)

    def test_tiles_that_are_mostly_nodata_are_not_visited(self, tmp_path):
        values = field(40)
        values[:, :20] = np.nan
        opened = survey(make(tmp_path, a=values), min_valid=0.75)
        assert opened.tiles.train[:, 1].min() == 16
        assert samples(opened).valid.float().mean(dim=(1, 2, 3)).min() >= 0.75

    def test_aoi(self, tmp_path):
        west = shapely.box(500_000, 5_996_000, 502_000, 6_000_000)
        geopandas.GeoDataFrame(geometry=[west], crs="EPSG:28354").to_file(tmp_path / "west.gpkg")
        opened = survey(two_resolutions(tmp_path / "data"), aoi=str(tmp_path / "west.gpkg"), min_valid=0.9)
        assert [summary.valid_fraction for summary in opened.summaries] == [0.5, 0.5, 0.5]
        assert opened.tiles.train[:, 1].max() == 4
        assert samples(opened).valid[opened.tiles.train[:, 1] == 4].all()

    def test_reproject_brings_layers_to_the_first_ones_crs(self, tmp_path):
        """The same ground from the neighbouring zone, where it lies far off the central meridian and turned."""
        xs, ys = transform("EPSG:28354", "EPSG:28355", [500_000.0], [6_000_000.0])
        corner = {"left": xs[0] - 1000.0, "top": ys[0] + 1000.0, "crs": "EPSG:28355"}
        folder = make(tmp_path, a=field(40), b=(field(60, seed=3), corner))
        with pytest.raises(ValueError, match="CRS EPSG:28355, expected EPSG:28354.*--reproject"):
            survey(folder)
        opened = survey(folder, reproject=True, extent="intersection")
        assert opened.stack.reference.crs.to_epsg() == 28354
        assert opened.stack.reference.cols in (39, 40)
        assert samples(opened).valid.float().mean() > 0.95

    def test_rotated_first_layer_can_be_reprojected(self, tmp_path):
        folder = make(tmp_path, a=(field(40), {"rotation": 20.0}))
        with pytest.raises(ValueError, match="rotated"):
            survey(folder)
        assert survey(folder, reproject=True).stack.reference.rows > 40

    @pytest.mark.parametrize("offset", [0.0008, -0.0008])
    def test_rounding_of_coordinates_leaves_layers_aligned(self, tmp_path, offset):
        shifted = {"resolution": 200.0, "left": 500_000.0 + offset, "top": 6_000_000.0 - offset}
        opened = survey(make(tmp_path, a=field(40), b=(field(20), shifted)))
        assert opened.tiles.shape == (40, 40)
        assert all(bundle.aligned for bundle in opened.bundles)

    def test_one_row_or_column_of_pixels(self, tmp_path):
        """Handled where a tile fits, refused like any survey that is too small where not."""
        folder = make(tmp_path, a=(field(1, 50)))
        opened = survey(folder, input_size=1, scales=(1,))
        assert samples(opened).imgs.shape[1:] == (1, 1, 1)
        with pytest.raises(ValueError, match="4 x 4 reference pixels but the survey has only 50 x 1"):
            survey(folder, scales=(1,))

    def test_several_bands_of_one_file(self, tmp_path):
        opened = survey(make(tmp_path, stack=np.stack([field(40, seed=k) for k in range(3)])))
        assert [layer.band for layer in opened.layers] == [1, 2, 3]
        assert opened.groups == ((0, 1, 2),) and len(opened.bundles) == 1
        np.testing.assert_allclose(
            [s.mean for s in opened.statistics], [field(40, seed=k).mean() for k in range(3)], rtol=1e-5
        )

    def test_integers_with_scale_and_offset(self, tmp_path):
        stored = np.round(field(40) * 100).astype(np.int16)
        stored[:8, :8] = -32768
        opened = survey(make(tmp_path, a=(stored, {"scale": 0.01, "offset": 5.0, "nodata": -32768})))
        kept = stored[stored > -32768] * 0.01 + 5.0
        assert opened.statistics[0].mean == pytest.approx(kept.mean(), rel=1e-6)
        assert opened.summaries[0].maximum == pytest.approx(kept.max(), rel=1e-6)


@pytest.fixture(scope="module")
def odd_survey(tmp_path_factory):
    """100 m with holes, 200 m shifted by half a reference pixel, 250 m from south to north, as in real folders."""
    fine = field(40)
    fine[10:20, 10:20] = np.nan
    return make(
        tmp_path_factory.mktemp("odd"),
        a=fine,
        b=(field(21, seed=1), {"resolution": 200.0, "left": 499_950.0, "top": 6_000_050.0}),
        c=(field(16, seed=2), {"resolution": 250.0, "south_up": True}),
    )


class TestSurvey:
    def test_held_out_ground_decides_no_statistic(self, tmp_path):
        before = survey(make(tmp_path / "a", x=field(80)), val_fraction=0.2, input_size=2, val_buffer=0)
        values = field(80)
        for row, col, height, width in before.tiles.held_out.rectangles():
            values[row : row + height, col : col + width] += 1000.0
        after = survey(make(tmp_path / "b", x=values), val_fraction=0.2, input_size=2, val_buffer=0)
        assert after.statistics == before.statistics
        assert after.summaries != before.summaries

    def test_normalised_training_ground_has_mean_0_and_spread_1(self, tmp_path):
        opened = survey(two_resolutions(tmp_path), tile_overlap=0.0)
        assert len(opened.tiles.train) == 9  # of 16 pixels on 40, the last flush with the edge
        covering = [[r, c] for r in (0, 8, 24) for c in (0, 8, 24)]
        pixels = samples(opened, covering).imgs_up[1][:, 0]
        assert pixels.mean() == pytest.approx(0.0, abs=0.2)
        assert pixels.std() == pytest.approx(1.0, abs=0.1)

    def test_lines_say_what_will_be_read(self, tmp_path):
        opened = survey(two_resolutions(tmp_path), masked_bands=[2])
        lines = opened.summary_lines()
        assert lines[0].startswith("layer 0 a: 40 x 40 pixels of 100 m, 100 % valid, ")
        assert lines[1].endswith("scored at 1x 2x") and lines[2].endswith("scored at no scale")
        assert "base pixel 400 m, tile 4 pixels = 1.6 km" in lines[-1]
        assert "49 training and 0 held-out tiles; groups [[0, 2], [1]]; layers in memory" in lines[-1]

    def test_degrees_are_told(self, tmp_path):
        where = {"crs": "EPSG:4326", "resolution": 0.01, "left": 130.0, "top": -30.0}
        opened = survey(make(tmp_path, a=(field(40), where)))
        assert opened.base_resolution == pytest.approx(0.04)
        assert opened.summary_lines()[-1].startswith("a base pixel is 3.")  # km, at 30 degrees south
        assert opened.summary_lines()[-1].endswith("tiles are drawn in proportion to their area on the ground")

    def test_undeclared_dummy_is_taken_for_nodata_and_told(self, tmp_path):
        values = field(40)
        values[:10, :10] = -99999.0
        opened = survey(make(tmp_path, a=values))
        assert opened.summaries[0].dummies == (-99999.0,)
        assert any(text.startswith("layer 'a': -99999 is not declared as nodata") for text in opened.warnings)
        assert opened.statistics[0].mean == pytest.approx(values[values > -99999].mean(), rel=1e-5)
        assert not samples(opened, [[0, 0]]).valid[0, 0, :2, :2].any()

    def test_nothing_odd_is_told_of_a_plain_survey(self, tmp_path, caplog):
        with caplog.at_level(logging.WARNING):
            assert survey(two_resolutions(tmp_path)).warnings == ()
        assert not caplog.records

    def test_smooth_layers_are_named(self, tmp_path):
        y, x = np.mgrid[:160, :160] / 160
        smooth = (np.sin(12 * x) * np.cos(12 * y)).astype(np.float32)
        rough = np.random.default_rng(0).normal(size=(160, 160)).astype(np.float32)
        trend = (x + y).astype(np.float32)
        opened = survey(make(tmp_path, rough=rough, smooth=smooth, trend=trend))
        wavelength = 2 * np.pi / 12 * 40  # base pixels
        assert opened.correlation_cells[0] < 1
        assert opened.correlation_cells[1] == pytest.approx(wavelength * np.arccos(1 / np.e) / (2 * np.pi), rel=0.15)
        assert opened.correlation_cells[2] == np.inf
        found = smooth_layers(opened, 3)
        assert len(found) == 2
        assert "layer 'smooth' is smooth: its autocorrelation length, 4.0 base pixels, " in found[0]
        assert "layer 'trend' is smooth: its autocorrelation length, over a third of the survey, " in found[1]
        assert len(smooth_layers(opened, 10)) == 1

    def test_pyramid_for_the_tiles_of_another_survey(self, tmp_path):
        """Trained on 100 and 200 m, scored on a survey that has the second layer at 100 m."""
        first = survey(make(tmp_path / "a", a=field(40), b=(field(20, seed=1), {"resolution": 200.0})))
        other = survey(make(tmp_path / "b", a=field(40, seed=5), b=field(40, seed=6)), base_resolution=400.0)
        origins = np.array([[8, 8]])
        tiles = TileReader(other.stack, other.bundles).read(origins)
        sample = first.pyramid(other)(*tiles.parts)
        centre, scale = first.statistics[0].centre, first.statistics[0].scale
        expected = (field(40, seed=5)[8:12, 8:12].mean() - centre) / scale
        assert sample.imgs[0, 0, 0, 0] == pytest.approx(expected, abs=1e-5)
        assert not sample.valid_up[1][0, 1].any()


class TestTestSurvey:
    CHOSEN = SMALL | {"val_fraction": 0.2, "val_buffer": 0, "input_size": 2}

    def opened(self, tmp_path, text, *, options=(), **layers):
        """A training survey of a (100 m) and b (200 m), and another one of the given layers and table."""
        coarse, chosen = (field(20, seed=1), {"resolution": 200.0}), self.CHOSEN | dict(options)
        survey = open_survey(SurveySettings(data_dir=make(tmp_path / "train", a=field(40), b=coarse), **chosen))
        make(tmp_path / "test", **layers)
        (tmp_path / "test" / "layers.csv").write_text(text)
        return survey, open_test_survey(
            survey, str(tmp_path / "test" / "layers.csv"), settings=SurveySettings(**chosen)
        )

    def opened_at(self, tmp_path, *, options=(), **place):
        """The same with another survey of the same layers somewhere else."""
        layers = {name: (field(40, seed=seed), place) for seed, name in enumerate("ab", start=5)}
        return self.opened(tmp_path, "path\na.tif\nb.tif\n", options=options, **layers)[1]

    def test_all_of_its_ground_is_scored_at_the_base_resolution_of_training(self, tmp_path):
        layers = {"x": field(80, seed=5), "y": field(80, seed=6)}
        survey, other = self.opened(tmp_path, "path,name\nx.tif,a\ny.tif,b\n", **layers)
        assert other.base_resolution == survey.base_resolution == 400.0
        assert not other.tiles.held_out.chosen.any()
        assert len(other.tiles.train) == 19 * 19  # tiles of 8 pixels every 4 of 80

    def test_a_layer_that_is_coarser_there_is_not_scored_finer_than_its_pixels(self, tmp_path):
        coarse = (field(20, seed=5), {"resolution": 200.0})
        survey, other = self.opened(tmp_path, "path\na.tif\nb.tif\n", a=coarse, b=coarse)
        sample = survey.pyramid(other)(*TileReader(other.stack, other.bundles).read(other.tiles.train).parts)
        assert survey.scored[4] == (0,) and sample.valid_up[0].all() and not sample.valid_up[1].any()

    def test_a_layer_coarser_there_than_the_base_pixel_is_not_scored_at_all(self, tmp_path):
        layers = {"a": field(80, seed=5), "b": (field(10, seed=6), {"resolution": 800.0})}
        survey, other = self.opened(tmp_path, "path\na.tif\nb.tif\n", **layers)
        assert survey.scored == {1: (0, 1), 2: (0, 1), 4: (0,)} and other.scored == {1: (0,), 2: (0,), 4: (0,)}
        assert any("layer 'b' has pixels of 800, coarser than the base pixel" in text for text in other.warnings)

    def test_no_layer_fine_enough_is_refused(self, tmp_path):
        layers = {"a": (field(10, seed=5), {"resolution": 800.0}), "b": field(80, seed=6)}
        with pytest.raises(ValueError, match="every layer that is scored in training is coarser there than the base"):
            self.opened(tmp_path, "path\na.tif\nb.tif\n", options={"masked_bands": (1,)}, **layers)

    @pytest.mark.parametrize("layer, options", [("b", {"masked_bands": (1,)}), ("b", {"target_layers": ("b",)})])
    def test_layers_that_no_stem_reads_may_be_coarser(self, tmp_path, layer, options):
        layers = {"a": field(40, seed=5), layer: (field(10, seed=6), {"resolution": 400.0})}
        text, options = "path\na.tif\nb.tif\n", options | {"native": True}
        assert self.opened(tmp_path, text, options=options, **layers)[0].native_scales == (4, 2)
        with pytest.raises(ValueError, match=r"'b'.*pixels of 400, expected at most 200.*--stem base"):
            self.opened(tmp_path, text, options={"native": True}, **layers)

    @pytest.mark.parametrize(
        "place, share",
        [
            ({}, " 100 %"),
            ({"left": 502_000.0, "top": 5_998_000.0}, " 25 %"),
            ({"left": 504_000.0}, ""),
            ({"crs": "EPSG:32754"}, " %"),
            ({"crs": "EPSG:32755"}, ""),
        ],
    )
    def test_ground_that_is_trained_on_is_named(self, tmp_path, place, share):
        """Squares of 4 km: the same, a corner of it, the one beside it; in WGS84, and in the next zone of it."""
        texts = [text for text in self.opened_at(tmp_path, **place).warnings if "of the training survey" in text]
        assert len(texts) == bool(share) and all(share in text and text.startswith("--test_path ") for text in texts)

    @pytest.mark.parametrize(
        "place, unit",
        [
            ({"crs": "EPSG:2263"}, "EPSG:2263 is in US survey foot"),
            ({"crs": "EPSG:4326", "left": 0.0, "top": 45.0, "resolution": 0.001}, "EPSG:4326 is in degrees"),
        ],
    )
    def test_another_unit_of_length_is_refused(self, tmp_path, place, unit):
        with pytest.raises(
            ValueError, match=f"--test_path .*{unit}, expected m as in training .*EPSG:28354.*; warp its"
        ):
            self.opened_at(tmp_path, **place)

    @pytest.mark.parametrize("crs", ["EPSG:28354", "EPSG:32630"])
    def test_polygons_of_the_training_ground_do_not_count_elsewhere(self, tmp_path, crs):
        area = tmp_path / "area.gpkg"
        square = shapely.box(500_000, 5_996_000, 503_000, 6_000_000)
        geopandas.GeoDataFrame(geometry=[square], crs="EPSG:28354").to_file(area)
        options = {"aoi": str(area), "input_size": 1}
        other = self.opened_at(tmp_path, options=options, left=600_000.0, crs=crs)
        assert other.stack.aoi is None and all(item.valid_fraction == 1 for item in other.summaries)
        assert any(text.startswith("--test_path") and "area.gpkg lies elsewhere" in text for text in other.warnings)
        here = self.opened_at(tmp_path, options=options)
        assert here.stack.aoi is not None and not any("elsewhere" in text for text in here.warnings)

    def test_other_layers_are_refused(self, tmp_path):
        with pytest.raises(ValueError, match=r"--test_path .*layers\.csv: layers b, a; expected a, b as in training"):
            self.opened(tmp_path, "path\nb.tif\na.tif\n", a=field(40), b=field(40))


class TestTiles:
    def test_arrays_and_phases(self, odd_survey):
        opened = survey(odd_survey, base_resolution=400.0)
        tiles = TileReader(opened.stack, opened.bundles).read(np.array([[4, 8], [0, 0]]))
        assert [array.shape[:2] for array in tiles.arrays] == [(2, len(b.channels)) for b in opened.bundles]
        assert [phase is None for phase in tiles.phases] == [bundle.aligned for bundle in opened.bundles]
        assert all(array.dtype == torch.float32 for array in tiles.arrays)
        moved = tiles.to(torch.device("cpu"))
        assert all(
            torch.equal(a.nan_to_num(-1), b.nan_to_num(-1)) for a, b in zip(moved.arrays, tiles.arrays, strict=True)
        )
        assert moved.parts == (moved.arrays, moved.phases)

    def test_every_setting_of_a_survey_can_be_given_by_flags(self):
        """The command line and the settings name the same things."""
        parser = argparse.ArgumentParser()
        add_data_options(parser)
        add_model_options(parser)
        named = set(survey_options(parser.parse_args([])))
        assert named | {"local_ranks", "trained"} == {field.name for field in fields(SurveySettings)}


class TestBuffer:
    """Squares of 20 pixels with a random value each: the autocorrelation falls to 1/e at 20 * (1 - 1/e) = 12.6."""

    OPTIONS = {"scales": (1,), "val_fraction": 0.1, "val_block": 2}

    def warned(self, folder, **options):
        opened = survey(folder, **(self.OPTIONS | options))
        return opened, [text for text in opened.warnings if text.startswith("--val_buffer")]

    def blocky(self, count):
        values = np.random.default_rng(1).normal(size=(count, count)).astype(np.float32)
        return np.kron(values, np.ones((20, 20), np.float32))

    def test_a_buffer_below_the_autocorrelation_length_and_the_one_that_would_do(self, tmp_path):
        noise = np.random.default_rng(0).normal(size=(400, 400)).astype(np.float32)
        folder = make(tmp_path, blocky=self.blocky(20), noise=noise)
        opened, (text,) = self.warned(folder)
        length = opened.correlation_cells[0]
        assert length == pytest.approx(12.6, rel=0.1)
        longer = int(np.ceil(length))
        assert text == (
            f"--val_buffer 8 is shorter than the autocorrelation length of layer 'blocky', {length:.1f} base pixels: "
            "held-out tiles resemble the training tiles beside them, and scores are too good; "
            f"--val_buffer {longer} would do"
        )
        assert self.warned(folder, val_buffer=longer)[1] == []
        assert self.warned(folder, val_fraction=0.0)[1] == []
        assert self.warned(folder, masked_bands=(0,))[1] == []

    def test_a_survey_too_small_for_it(self, tmp_path, monkeypatch):
        divide = opening._index_tiles

        def divide_unless_long(settings, *rest):
            if settings.val_buffer > 8:
                raise ValueError("no room")
            return divide(settings, *rest)

        monkeypatch.setattr(opening, "_index_tiles", divide_unless_long)
        _, (text,) = self.warned(make(tmp_path, blocky=self.blocky(20)))
        assert text.endswith("that it takes leave too little of this survey; score other ground (--test_path)")

    def test_a_layer_that_is_correlated_throughout(self, tmp_path):
        _, (text,) = self.warned(make(tmp_path, slope=ramp(60, 60)))
        assert "layer 'slope' is correlated over a third of the survey or more, so that no buffer keeps" in text
