"""Cutting images out, turning them over, bringing them to size; what is invalid stays so."""

import json

import numpy as np
import pytest
import rasterio
from rasterio.errors import RasterioError

from datasets.scenes.images import CROP_RATIO, Crop, centre_crop, random_crop, read_box, read_image, to_size
from tests.scene_files import write_image

PIXELS = np.arange(2 * 6 * 8, dtype=np.float32).reshape(2, 6, 8)


class TestCrops:
    @pytest.mark.parametrize(
        ("shape", "crop"),
        [
            ((6, 8), Crop(0, 1, 6, 6)),
            ((9, 4), Crop(2, 0, 4, 4)),
            ((5, 5), Crop(0, 0, 5, 5)),
            ((1, 1), Crop(0, 0, 1, 1)),
        ],
    )
    def test_the_centre_is_what_short_side_and_cut_leave(self, shape, crop):
        assert centre_crop(*shape) == crop

    def test_random_crops_lie_inside_and_vary(self):
        crops = [random_crop(40, 60, rng=np.random.default_rng(k)) for k in range(300)]
        shares = np.array([crop.rows * crop.cols / 2400 for crop in crops])
        ratios = np.array([crop.cols / crop.rows for crop in crops])
        assert all(0 <= c.top <= 40 - c.rows and 0 <= c.left <= 60 - c.cols for c in crops)
        assert 0.18 < shares.min() < 0.3 and shares.max() > 0.8
        assert ratios.min() > CROP_RATIO[0] - 0.06 and ratios.max() < CROP_RATIO[1] + 0.06 and ratios.std() > 0.1
        turned = [sum(c.flip_rows for c in crops), sum(c.flip_cols for c in crops)]
        assert all(110 < count < 190 for count in turned)
        assert random_crop(40, 60, rng=np.random.default_rng(7)) == crops[7]

    def test_an_image_too_narrow_for_any_gives_its_centre(self):
        crop = random_crop(2, 400, rng=np.random.default_rng(0))
        assert (crop.top, crop.left, crop.rows, crop.cols) == (0, 199, 2, 2)


class TestReading:
    def test_bands_window_and_flips(self, tmp_path):
        path = write_image(tmp_path / "a.tif", PIXELS)
        read = read_image(path, bands=[2, 1], expected=2, choose=lambda *_: Crop(1, 2, 3, 4, flip_rows=True))
        assert (read == PIXELS[::-1, 3:0:-1, 2:6]).all() and read.dtype == np.float32
        read = read_image(
            path, bands=[1], expected=2, box=(1, 2, 5, 3), choose=lambda *_: Crop(1, 1, 2, 3, False, True)
        )
        assert (read == PIXELS[:1, 3:5, 4:1:-1]).all()
        shapes = []
        read_image(
            path, bands=[1], expected=2, box=(1, 2, 5, 3), choose=lambda *s: shapes.append(s) or Crop(0, 0, 1, 1)
        )
        assert shapes == [(3, 5)]

    def test_invalid_is_nan(self, tmp_path):
        values = PIXELS.copy()
        values[0, 0, 0], values[0, 0, 1], values[1, 2, 2] = np.nan, np.inf, -99
        read = read_image(write_image(tmp_path / "a.tif", values, nodata=-99), bands=[1, 2], expected=2)
        expected = PIXELS.copy()
        expected[0, 0, :2], expected[1, 2, 2] = np.nan, np.nan
        assert np.array_equal(read, expected, equal_nan=True)

    def test_another_number_of_bands(self, tmp_path):
        with pytest.raises(ValueError, match="2 bands, expected 13"):
            read_image(write_image(tmp_path / "a.tif", PIXELS), bands=[1], expected=13)

    @pytest.mark.parametrize("name", ["a.tif", "a.jpg"])
    def test_broken_files(self, tmp_path, name):
        """A JPEG that ends early would be decoded as grey."""
        noise = np.random.default_rng(0).integers(0, 255, (3, 64, 64)).astype(np.uint8)
        path = write_image(tmp_path / name, noise)
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
        with pytest.raises((RasterioError, OSError)):
            read_image(path, bands=[1, 2, 3], expected=3)

    @pytest.mark.parametrize(("size", "read_rows"), [(150, 250), (200, 250), (201, 500), (400, 500), (401, 1000)])
    def test_a_large_jpeg_is_decoded_at_half_or_a_quarter(self, tmp_path, size, read_rows):
        """As small as leaves 1.25 pixels along each pixel of the square; the square differs little."""
        y, x = np.mgrid[:1000, :1200]
        waves = np.stack([128 + 60 * np.sin(x / (9 + band)) * np.cos(y / 11) for band in range(3)])
        path = write_image(tmp_path / "a.jpg", waves.astype(np.uint8))
        full = read_image(path, bands=[3, 1], expected=3, choose=centre_crop)
        read = read_image(path, bands=[3, 1], expected=3, choose=centre_crop, size=size)
        assert full.shape == (2, 1000, 1000) and read.shape == (2, read_rows, read_rows)
        expected = to_size(full, size)
        error = to_size(read, size) - expected
        assert np.sqrt(np.mean(error**2)) < 0.05 * expected.std() and np.abs(error).max() < 0.25 * expected.std()

    def test_a_part_of_a_reduced_jpeg(self, tmp_path):
        """Box, crop and flips are in pixels of the file; the reduced part begins where they say."""
        ramp = np.stack([np.tile(np.arange(1200) // 5, (1000, 1))] * 3).astype(np.uint8)
        path = write_image(tmp_path / "a.jpg", ramp, quality=100)
        crop = Crop(5, 21, 800, 800, flip_cols=True)
        read = read_image(path, bands=[1], expected=3, box=(120, 10, 1000, 900), choose=lambda *_: crop, size=160)
        # Columns 141 to 941 begin at column 35 of a quarter, the mean of columns 140 to 143 of a fifth of their number.
        expected = ((140 + np.arange(800)) // 5).reshape(200, 4).mean(axis=1)
        assert read.shape == (1, 200, 200) and np.abs(read[0, :, ::-1] - expected).max() <= 1

    @pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")
    def test_only_a_jpeg_is_reduced(self, tmp_path):
        path = write_image(tmp_path / "a.tif", np.zeros((3, 64, 64), dtype=np.uint8))
        with rasterio.open(path, "r+") as file:
            file.build_overviews([2, 4])
        assert read_image(path, bands=[1], expected=3, size=8).shape == (1, 64, 64)

    def test_a_large_jpeg_that_ends_early(self, tmp_path):
        noise = np.random.default_rng(0).integers(0, 255, (3, 1024, 1024)).astype(np.uint8)
        path = write_image(tmp_path / "a.jpg", noise)
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
        with pytest.raises((RasterioError, OSError)):
            read_image(path, bands=[1, 2, 3], expected=3, size=128)

    @pytest.mark.parametrize("box", [(0, 0, 9.4, 6), (-1, -1, 9, 7), (2, 1, 7, 6)])
    def test_boxes_may_stick_out_by_a_pixel(self, tmp_path, box):
        read = read_image(write_image(tmp_path / "a.tif", PIXELS), bands=[1], expected=2, box=box)
        assert read[0, -1, -1] == PIXELS[0, -1, -1]

    @pytest.mark.parametrize(
        "box", [(0, 0, 10, 6), (-2, 0, 4, 4), (0, 3, 4, 5), (3, 3, 0, 2), (3, 3, 2, -1), (50, 0, 4, 4)]
    )
    def test_boxes_outside_are_refused(self, tmp_path, box):
        with pytest.raises(
            ValueError, match=r"box \[.*\] \(x, y, width, height\) does not lie inside its 8 x 6 pixels"
        ):
            read_image(write_image(tmp_path / "a.tif", PIXELS), bands=[1], expected=2, box=box)

    def test_boxes_that_cover_nothing(self, tmp_path):
        with pytest.raises(ValueError, match=r"covers none of its 8 x 6 pixels"):
            read_image(write_image(tmp_path / "a.tif", PIXELS), bands=[1], expected=2, box=(-1, 0, 1, 3))


class TestBoxes:
    def write(self, folder, content):
        path = folder / "a.json"
        path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
        return path

    def test_the_first_of_the_category(self, tmp_path):
        boxes = [
            {"category": "zoo", "box": [9, 9, 9, 9]},
            {"category": "dam", "box": [1, 2, 3, 4.5]},
            {"box": [0, 0, 1, 1]},
        ]
        path = self.write(tmp_path, {"bounding_boxes": boxes})
        assert read_box(path, "dam") == [1, 2, 3, 4.5] and read_box(path, "zoo") == [9, 9, 9, 9]
        assert read_box(path, "airport") == [0, 0, 1, 1]

    @pytest.mark.parametrize(
        "content",
        ["{", "[]", {}, {"bounding_boxes": []}, {"bounding_boxes": [{"box": [1, 2, 3]}]}, {"bounding_boxes": ["box"]},
         {"bounding_boxes": [{"box": [1, 2, 3, None]}]},
         {"bounding_boxes": [{"category": "zoo", "box": [1, 2, 3, 4]}]}],
    )  # fmt: skip
    def test_none(self, tmp_path, content):
        with pytest.raises(ValueError, match=r"a\.json holds no box for it \(.*expected \{\"bounding_boxes\""):
            read_box(self.write(tmp_path, content), "dam")


class TestSize:
    def test_the_same_size_is_the_same_bits(self):
        values = np.random.default_rng(0).normal(size=(2, 5, 5)).astype(np.float32)
        assert to_size(values, 5).tobytes() == values.tobytes()

    @pytest.mark.parametrize("size", [3, 12, 16])
    def test_a_constant_stays_one(self, size):
        values = np.full((1, 7, 9), 1234.5, dtype=np.float32)
        values[0, :2] = np.nan
        resized = to_size(values, size)
        assert resized.shape == (1, size, size) and resized.dtype == np.float32
        assert np.isnan(resized[0, 0]).all() and np.nanmax(np.abs(resized - 1234.5)) < 1e-3

    def test_by_hand(self):
        values = np.array([[[0, 4], [8, 12]]], dtype=np.float32)
        # Pixel centres of the finer rows lie at -1/4, 1/4, 3/4 and 5/4 of the coarse ones; edges are continued.
        expected = [[0, 1, 3, 4], [2, 3, 5, 6], [6, 7, 9, 10], [8, 9, 11, 12]]
        assert to_size(values, 4)[0].tolist() == expected
        values[0, 0, 1] = np.nan
        enlarged = to_size(values, 4)[0]
        assert np.isnan(enlarged).tolist() == [[False, False, True, True]] * 2 + [[False] * 4] * 2
        assert enlarged[1, 1] == pytest.approx((9 * 0 + 3 * 8 + 1 * 12) / 13, rel=1e-6)

    def test_what_lies_under_invalid_pixels_does_not_matter(self):
        values = np.random.default_rng(0).normal(size=(1, 9, 9)).astype(np.float32)
        values[0, 3:6, 3:6] = np.nan
        assert to_size(values, 3)[0, 1, 1] != to_size(values, 3)[0, 1, 1]
        assert np.isfinite(to_size(values, 3)).sum() == 8
