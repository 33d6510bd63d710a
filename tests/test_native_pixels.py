"""Layers at their native pixels: which scale, values known on paper, statistics, and what a trained model accepts."""

import numpy as np
import pytest
import torch

from datasets.ground.grid import Grid
from datasets.layers.encoding import linear_encodings
from datasets.survey.detail import measure_detail
from datasets.survey.inference_survey import open_inference_survey, stored_encodings, stored_native
from datasets.survey.open_survey import SurveySettings, open_survey
from datasets.survey.open_test_survey import open_test_survey
from datasets.survey.pyramid import NativeGroup, Pyramid
from datasets.survey.pyramid_cache import PyramidCache, pyramid_bytes, to_sample
from datasets.survey.scales_and_groups import MAX_NATIVE_SCALE, native_groups, native_scales
from datasets.survey.stack import LayerBundle, Placement
from datasets.survey.tile_reader import TileReader, Tiles
from tests.rasters import write_grid
from tests.surveys import write_survey

CPU, NAN = torch.device("cpu"), float("nan")


class BandOf:
    """The resolution of a layer, which is all that scales follow from."""

    def __init__(self, x, y=None):
        self.grid = Grid("EPSG:28354", 0.0, 0.0, x, y or x, 10, 10)


class TestScales:
    @pytest.mark.parametrize(
        ("pixel", "scale"),
        [(100, 4), (200, 2), (250, 1), (400, 1), (1000, 1), (50, 8), (130, 3), (10, 16), (99.9999, 4)],
    )
    def test_parts_no_finer_than_the_pixels(self, pixel, scale):
        assert native_scales([BandOf(pixel)], base_resolution=400.0) == (scale,)
        assert scale <= MAX_NATIVE_SCALE

    def test_the_longer_edge_counts(self):
        assert native_scales([BandOf(100.0, 180.0)], base_resolution=400.0) == (2,)

    def test_a_group_is_read_at_its_finest_layer(self):
        assert native_groups([(2, 0), (1,), (3,)], (2, 1, 4, 1)) == (NativeGroup((2, 0), 4),)


def make_pyramid(bundles, native, *, tile, input_size, scales=(1,), **changes):
    channels = sum(len(b.channels) for b in bundles)
    return Pyramid(
        bundles=bundles,
        tile_rows=tile,
        tile_cols=tile,
        input_size=input_size,
        scales=scales,
        scored={s: range(channels) for s in scales},
        encodings=linear_encodings([0.0] * channels, changes.get("scale", [1.0] * channels)),
        native=native,
    )


def bundle(channels, rows, ratio=1.0, *, aligned=True):
    return LayerBundle(channels, rows, rows, aligned=aligned, placement=Placement(ratio, ratio, 0.0, 0.0))


class TestPyramid:
    def test_own_pixels_in_model_units(self):
        values = torch.arange(16.0).view(1, 1, 4, 4)
        values[0, 0, 0, 1] = NAN
        make = make_pyramid([bundle((0,), 4)], [NativeGroup((0,), 2)], tile=4, input_size=2, scale=[2.0])
        (own,) = make([values], [None]).native
        np.testing.assert_array_equal(own, values / 2)

    def test_finer_layers_are_averaged_and_coarser_ones_repeated(self):
        """Of 4 x 4, 2 x 2 and 1 pixels of a base pixel, read 2 x 2: means over what is valid, pixels, copies."""
        fine = torch.tensor([[1.0, 3, NAN, NAN], [5, 7, NAN, NAN], [NAN, 2, 0, 0], [4, 6, 0, 8]]).view(1, 1, 4, 4)
        equal = torch.tensor([[1.0, 2], [3, 4]]).view(1, 1, 2, 2)
        coarse = torch.tensor(9.0).view(1, 1, 1, 1)
        bundles = [bundle((0,), 4), bundle((1,), 2, 0.5), bundle((2,), 1, 0.25)]
        make = make_pyramid(bundles, [NativeGroup((2, 0, 1), 2)], tile=4, input_size=1)
        (own,) = make([fine, equal, coarse], [None] * 3).native
        np.testing.assert_allclose(own[0], [[[9, 9], [9, 9]], [[4, NAN], [4, 2]], [[1, 2], [3, 4]]], rtol=1e-6)

    def test_shifted_by_half_a_pixel(self):
        """Tiles that start in the middle of a pixel: means of neighbours, along both axes."""
        values = torch.arange(25.0).view(1, 1, 5, 5)
        make = make_pyramid([bundle((0,), 5, aligned=False)], [NativeGroup((0,), 2)], tile=4, input_size=2)
        (own,) = make([values], [torch.tensor([[0.5, 0.5]])]).native
        expected = [[5 * (r + 0.5) + c + 0.5 for c in range(4)] for r in range(4)]
        np.testing.assert_allclose(own[0, 0], expected, rtol=1e-6)

    def test_base_and_finer_targets_stay_as_they_are(self):
        values = torch.randn(2, 1, 8, 8)
        plain = make_pyramid([bundle((0,), 8)], [], tile=8, input_size=2, scales=(1, 2, 4))([values], [None])
        stem = make_pyramid([bundle((0,), 8)], [NativeGroup((0,), 4)], tile=8, input_size=2, scales=(1, 2, 4))
        more = stem([values], [None])
        assert torch.equal(plain.imgs, more.imgs) and not plain.native
        assert all(torch.equal(a, b) for a, b in zip(plain.imgs_up, more.imgs_up, strict=True))
        assert torch.equal(more.native[0], values)


class TestDetail:
    def test_on_paper(self):
        """Native pixels that lie 3 above and 3 below their base pixel, in units of 2: 1.5."""
        signs = torch.tensor([[3.0, -3], [-3, 3]]).repeat(4, 4).view(1, 1, 8, 8)
        base = torch.randn(1, 1, 4, 4).repeat_interleave(2, 2).repeat_interleave(2, 3)
        make = make_pyramid([bundle((0,), 8)], [NativeGroup((0,), 2)], tile=8, input_size=4, scale=[2.0])

        class Reader:
            def read(self, tiles):
                return Tiles([(base + signs).repeat(len(tiles), 1, 1, 1)], [None])

        detail = measure_detail(Reader(), make, np.zeros((3, 2), dtype=np.int64), make.encodings)
        assert detail == pytest.approx((1.5,), rel=1e-5)

    def test_of_training_ground_alone(self, tmp_path):
        """What lies in held-out blocks changes no statistic."""

        def opened(name, spoiled):
            folder = tmp_path / name
            write_survey(folder)
            survey = open_small(folder)
            if spoiled is not None:
                import rasterio

                for left, bottom, right, top in spoiled:
                    for path in folder.glob("*.tif"):
                        with rasterio.open(path, "r+") as file:
                            window = file.window(left, bottom, right, top).round_offsets().round_lengths()
                            noise = np.random.default_rng(0).normal(0, 1e4, (round(window.height), round(window.width)))
                            file.write(noise.astype(np.float32), 1, window=window)
                survey = open_small(folder)
            return survey

        plain = opened("a", None)
        assert len(plain.tiles.val)
        spoiled = opened("b", plain.held_out_ground())
        assert [item.detail for item in plain.statistics] == [item.detail for item in spoiled.statistics]
        assert all(item.detail > 0 for item in plain.statistics)


def open_small(folder, **changes):
    given = {"input_size": 16, "scales": (1, 2, 4), "val_fraction": 0.1, "val_buffer": 0, "native": True}
    return open_survey(SurveySettings(layers_table=str(folder / "layers.csv"), **(given | changes)))


class TestSurvey:
    def test_arguments_of_the_model(self, tmp_path):
        survey = open_small(write_survey(tmp_path))
        options = survey.channel_options()
        assert options["native_scales"] == [2, 4]  # gravity of 200 m, magnetics of 100 m, base pixel 400 m
        assert options["detail_scales"] == [item.detail for item in survey.statistics]
        assert "native_scales" not in open_small(tmp_path, native=False).channel_options()

    @pytest.mark.parametrize("cache", ["ram", "none"])
    def test_cut_from_the_cached_pyramid_bit_for_bit(self, tmp_path, cache):
        survey = open_small(write_survey(tmp_path), cache=cache)
        origins = survey.tiles.epoch(seed=3, epoch=1)
        cached = PyramidCache(survey, CPU)
        assert cached.memory_bytes == pyramid_bytes(survey)
        ours = cached.read(origins).native
        theirs = to_sample(TileReader(survey.stack, survey.bundles).read(origins), survey.pyramid(), CPU).native
        assert [tuple(image.shape[1:]) for image in ours] == [(1, 64, 64), (1, 32, 32)]
        for a, b in zip(ours, theirs, strict=True):
            np.testing.assert_array_equal(a, b)

    def test_a_coarser_test_survey_is_refused(self, tmp_path):
        survey = open_small(write_survey(tmp_path / "a"))
        other = tmp_path / "b"
        write_survey(other)
        write_grid(other / "magnetics.tif", np.random.default_rng(0).normal(size=(64, 64)), resolution=250.0)
        settings = SurveySettings(layers_table=str(tmp_path / "a" / "layers.csv"), input_size=16, scales=(1, 2, 4))
        with pytest.raises(ValueError, match=r"magnetics.*pixels of 250, expected at most 100.*--stem base"):
            open_test_survey(survey, str(other / "layers.csv"), settings=settings)


def state_of(survey):
    """The entries of a checkpoint that say how layers are read."""
    options = survey.channel_options()
    return {
        "model_config": {"stem": "native", **options, "img_size": survey.input_size},
        "encodings": [encoding.plain() for encoding in survey.encodings],
    }


def open_for(survey, folder, **changes):
    state = state_of(survey)
    encodings = stored_encodings(state)
    return open_inference_survey(
        survey.layers,
        layers_table=str(folder / "layers.csv"),
        input_size=16,
        scales=(1,),
        base_resolution=400.0,
        finest_scale=4,
        encodings=encodings,
        native=stored_native(state, encodings),
        **changes,
    )


class TestInference:
    def test_tiles_are_those_of_training(self, tmp_path):
        survey = open_small(write_survey(tmp_path))
        opened = open_for(survey, tmp_path)
        origins = survey.tiles.train[:4]
        theirs = to_sample(TileReader(survey.stack, survey.bundles).read(origins), survey.pyramid(), CPU)
        ours = opened.read(0, 0, 40, 40).sample(origins // survey.tiles.step, CPU)
        for a, b in zip((ours.imgs, *ours.native), (theirs.imgs, *theirs.native), strict=True):
            np.testing.assert_allclose(a, b, atol=1e-5)

    def test_finer_rasters_are_averaged_to_what_the_model_saw(self, tmp_path):
        """The same field in pixels half as wide: the means of four are the pixels of training."""
        survey = open_small(write_survey(tmp_path / "a"))
        fine = tmp_path / "b"
        write_survey(fine)
        values = survey.stack.read(1, 0, 0, 160, 160).repeat(2, axis=0).repeat(2, axis=1)
        write_grid(fine / "magnetics.tif", values, resolution=50.0)
        samples = [open_for(survey, folder).read(0, 0, 40, 40) for folder in (tmp_path / "a", fine)]
        first, second = (window.sample(np.array([[4, 4]]), CPU).native[0] for window in samples)
        np.testing.assert_allclose(first, second, atol=1e-5)

    def test_coarser_rasters_are_refused_by_layer_and_resolution(self, tmp_path):
        survey = open_small(write_survey(tmp_path / "a"))
        coarse = tmp_path / "b"
        write_survey(coarse)
        write_grid(coarse / "magnetics.tif", np.random.default_rng(0).normal(size=(64, 64)), resolution=250.0)
        with pytest.raises(ValueError, match=r"magnetics.*250, expected at most 100: the model's stem reads 4 x 4"):
            open_for(survey, coarse)
        assert open_for(survey, coarse, hidden=[1]).native  # as the message advises

    def test_models_without_stem_read_base_pixels_alone(self, tmp_path):
        survey = open_small(write_survey(tmp_path))
        state = state_of(survey)
        for stem in ({"stem": "base"}, {}):
            config = {k: v for k, v in state["model_config"].items() if k != "stem"} | stem
            assert not stored_native({"model_config": config}, survey.encodings).groups
