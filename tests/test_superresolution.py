"""Finer than measured: interpolation that keeps means, what a model adds to it, and how it may be asked."""

import numpy as np
import pytest
import rasterio

from datasets.layers.layer import Layer
from datasets.rasters.open_band import open_band
from scripts.measure_superresolution import row_of
from tests.rasters import write_grid
from util.inference.superresolution import (
    SuperresolutionStep,
    detail_of,
    pool_known,
    refine_known,
    superresolution_step,
)


def cell_means(rows, cols, edge, function):
    """Means of a function of (y, x) over cells, by sums over many points."""
    fine = 16
    y = (np.arange(rows * fine) + 0.5) * edge / fine
    x = (np.arange(cols * fine) + 0.5) * edge / fine
    return function(y[:, None], x[None]).reshape(rows, fine, cols, fine).mean(axis=(1, 3))


class TestInterpolation:
    @pytest.mark.parametrize("factor", [2, 3, 4])
    def test_parts_of_a_cell_average_back_to_it(self, factor):
        image = np.random.default_rng(0).normal(size=(9, 7)).astype(np.float32)
        np.testing.assert_allclose(pool_known(refine_known(image, factor), factor), image, atol=1e-5)

    def test_a_quadratic_field_is_exact(self):
        def field(y, x):
            return 2 + y - 3 * x + 0.1 * y * y - 0.2 * x * x + 0.3 * x * y

        fine = refine_known(cell_means(12, 10, 1.0, field).astype(np.float32), 2)
        np.testing.assert_allclose(fine, cell_means(24, 20, 0.5, field), atol=2e-3)

    def test_waves_are_met_better_than_by_repeating(self):
        def wave(y, x):
            return np.sin(y / 1.1) * np.cos(x / 1.3)

        truth = cell_means(48, 48, 0.5, wave)
        coarse = pool_known(truth, 2)
        errors = [
            np.abs(image - truth)[6:-6, 6:-6].max()
            for image in (refine_known(coarse, 2), coarse.repeat(2, 0).repeat(2, 1))
        ]
        assert errors[0] < 0.1 * errors[1]

    def test_gaps_stay_gaps(self):
        image = np.ones((12, 10), np.float32)
        image[3, 4] = np.nan
        fine = refine_known(image, 2)
        assert np.array_equal(np.isnan(fine), np.isnan(image).repeat(2, axis=0).repeat(2, axis=1))
        assert np.isnan(refine_known(np.full((3, 3), np.nan), 2)).all()
        assert np.isnan(pool_known(image, 2)).sum() == 1 and refine_known(np.ones((1, 1)), 2).shape == (2, 2)


class TestDetail:
    def test_a_plane_has_none_and_what_is_added_is_found(self):
        y, x = np.mgrid[:24, :20].astype(np.float32)
        added = 0.5 * (-1) ** (x + y)  # averages to nothing over any cell
        np.testing.assert_allclose(detail_of(x - 2 * y, 2)[2:-2, 2:-2], 0, atol=1e-4)
        np.testing.assert_allclose(detail_of(x - 2 * y + added, 2)[2:-2, 2:-2], added[2:-2, 2:-2], atol=1e-4)

    def test_unknown(self):
        image = np.ones((8, 8), np.float32)
        image[2, 3] = np.nan
        assert np.isnan(detail_of(image, 2)).sum() == 4 and np.isnan(detail_of(np.full((4, 4), np.nan), 2)).all()


class TestStep:
    """Magnetics (1) are trained at 1x, 2x and 4x, gravity (0) at 1x and 2x."""

    SCORED = {1: (0, 1), 2: (0, 1), 4: (1,)}

    @pytest.mark.parametrize(
        ("channel", "scale", "known", "expected"),
        [
            (1, 4, {1: (0, 1), 2: (0, 1), 4: ()}, SuperresolutionStep(1, 4, known=2)),  # trained at it
            (1, 4, {1: (0, 1), 2: (0,), 4: ()}, SuperresolutionStep(1, 4, known=1)),
            (
                0,
                4,
                {1: (0, 1), 2: (0, 1), 4: (1,)},
                SuperresolutionStep(0, 4, known=2, zoom=2),
            ),  # with finer base pixels
            (0, 2, {1: (0, 1), 2: (1,), 4: (1,)}, SuperresolutionStep(0, 2, known=1)),
            (0, 4, {1: (0, 1), 2: (1,), 4: (1,)}, None),  # its pixels are as large as base pixels: no finer ones
            (0, 4, {1: (1,), 2: (1,), 4: (1,)}, None),
        ],
    )
    def test_how(self, channel, scale, known, expected):
        assert superresolution_step(channel, scale, known=known, scored=self.SCORED) == expected

    def test_what_was_trained_at_the_base_scale_alone_cannot_be_refined(self):
        known = {1: (0, 1), 2: (0, 1), 4: (1,)}
        assert superresolution_step(0, 4, known=known, scored={1: (0, 1), 2: (1,), 4: (1,)}) is None

    def test_pixels_along_a_pixel(self):
        assert SuperresolutionStep(0, 4, known=2, zoom=2).factor == 2 and SuperresolutionStep(0, 4, known=1).factor == 4


class TestMeasuring:
    """A layer of 100 m that is averaged to 200 m, and a perfect prediction on ground that other layers make larger."""

    def measure(self, tmp_path, *, west=0.0, north=0.0):
        truth = np.random.default_rng(0).normal(size=(24, 20)).astype(np.float32)
        found = np.full((2, 40, 40), 9.0, np.float32)
        row, col = round(max(0.0, north)), round(max(0.0, west))
        seen = truth[round(max(0.0, -north)) :, round(max(0.0, -west)) :]
        found[:, row : row + seen.shape[0], col : col + seen.shape[1]] = seen
        found[1] += 2.0
        corner = {"left": 500_000.0 - 100 * west, "top": 6_000_000.0 + 100 * north}
        path = write_grid(tmp_path / "superresolution_a_2x.tif", found, **corner)
        with rasterio.open(path, "r+") as file:
            file.update_tags(share_of_model_detail="1")
        means = truth.reshape(12, 2, 10, 2).mean(axis=(1, 3))
        coarse = write_grid(tmp_path / "coarse.tif", means, resolution=200.0)
        fine = write_grid(tmp_path / "fine.tif", truth)
        bands = [open_band(Layer(path=str(of), name="a", kind="continuous")) for of in (fine, coarse)]
        return [float(cell) for cell in row_of(path, *bands).split("|")[3:7]]

    @pytest.mark.parametrize("west, north", [(0, 0), (8, 0), (0, 6), (4, 2), (-2, -4)])
    def test_rasters_are_compared_where_they_lie(self, tmp_path, west, north):
        predicted, interpolated, bicubic, repeated = self.measure(tmp_path, west=west, north=north)
        assert predicted == 0 and interpolated == pytest.approx(2, abs=1e-5) and 0 < repeated < 2 and 0 < bicubic < 2

    def test_pixels_that_do_not_match_are_refused(self, tmp_path):
        with pytest.raises(ValueError, match=r"begins 0.50 columns and 0.00 rows of 100 from the layer's corner"):
            self.measure(tmp_path, west=0.5)
