"""Directions turn with the ground, in augmentation and under --reproject; phases do not; strikes repeat after 180."""

import math

import numpy as np
import pytest
import torch
from affine import Affine
from rasterio.crs import CRS

from datasets.finetuning.batch import Batch
from datasets.layers.encoding import Encoding
from datasets.layers.layer import Layer
from datasets.loading.augment import ROTATIONS, rotated, rotated_tiles
from datasets.rasters.open_band import open_band
from datasets.survey.open_survey import SurveySettings, open_survey
from tests.rasters import write_grid
from util.metrics.skill import scored_layers
from util.model.layer_losses import LayerChannels

MGA54, MGA55 = "EPSG:28354", "EPSG:28355"
TURNS = torch.arange(ROTATIONS)


def encoding(kind):
    return Encoding(kind, centres=(0.1, -0.2), scales=(0.5, 0.5))


def turned(kind, degrees):
    """One direction in all eight orientations of the tile, in degrees."""
    layer = encoding(kind)
    channels, usable = layer.encode(torch.full((ROTATIONS, 4, 4), float(degrees)))
    imgs, valid = rotated_tiles(channels, usable.unsqueeze(1).expand_as(channels), TURNS, [layer])
    assert valid.all()
    return layer.decode(imgs)[:, 0, 0].tolist()


class TestAugmentation:
    def test_azimuths_typed_out(self):
        """Quarter turns are anticlockwise: what pointed to 30 degrees points to 300; mirrored before, 330."""
        assert turned("circular", 30) == pytest.approx([30, 300, 210, 120, 330, 240, 150, 60], abs=1e-3)

    def test_strikes_typed_out(self):
        assert turned("axial", 30) == pytest.approx([30, 120, 30, 120, 150, 60, 150, 60], abs=1e-3)

    def test_phases_stay(self):
        assert turned("phase", 30) == pytest.approx([30] * 8, abs=1e-3)

    def test_pixels_and_azimuths_turn_alike(self):
        """Azimuths away from the centre of a tile point away from it, however the tile is turned."""
        y, x = (torch.arange(6.0) - 2.5)[:, None].expand(6, 6), (torch.arange(6.0) - 2.5).expand(6, 6)
        layer = encoding("circular")
        channels, usable = layer.encode(torch.atan2(x, -y).rad2deg().expand(ROTATIONS, 6, 6))
        imgs, _ = rotated_tiles(channels, usable.unsqueeze(1).expand_as(channels), TURNS, [layer])
        torch.testing.assert_close(imgs, channels, atol=1e-5, rtol=0)

    def test_other_layers_and_invalid_pixels_only_move(self):
        layers = [Encoding(), encoding("circular"), Encoding("categorical", centres=(), scales=(), codes=(1.0, 2.0))]
        imgs = torch.randn(ROTATIONS, 5, 4, 4, generator=torch.Generator().manual_seed(0))
        valid = torch.ones_like(imgs, dtype=torch.bool)
        valid[:, :, 1] = False
        imgs = imgs.where(valid, 0.0)
        before = imgs.clone()
        moved, ok = rotated_tiles(imgs, valid, TURNS, layers)
        assert torch.equal(imgs, before)
        plain = rotated(imgs, TURNS)
        assert torch.equal(moved[:, [0, 3, 4]], plain[:, [0, 3, 4]]) and not torch.equal(moved, plain)
        assert torch.equal(moved[0], imgs[0])  # to the bit
        assert (moved[~ok] == 0).all() and torch.equal(ok, rotated(valid, TURNS))

    def test_in_the_batches_of_fine_tuning(self, tmp_path):
        values = np.random.default_rng(0).uniform(0, 360, size=(16, 16)).astype(np.float32)
        write_grid(tmp_path / "a.tif", values)
        (tmp_path / "layers.csv").write_text("path,kind\na.tif,circular\n")
        survey = open_survey(
            SurveySettings(
                layers_table=str(tmp_path / "layers.csv"),
                input_size=8,
                scales=(1,),
                base_resolution=100.0,
                val_buffer=0,
            )
        )
        tiles = survey.reader().read(np.zeros((2, 2), dtype=np.int64))
        target = torch.zeros(2, dtype=torch.int64)
        imgs = Batch(tiles, target, torch.tensor([0, 1])).to(torch.device("cpu"), survey.pyramid())[0]
        upright, turned = survey.encodings[0].decode(imgs)
        difference = (turned - torch.rot90(upright, 1)) % 360
        torch.testing.assert_close(difference, torch.full_like(difference, 270.0), atol=1e-3, rtol=0)


class TestAxial:
    def test_179_and_1_are_neighbours(self):
        layer = encoding("axial")
        near, _ = layer.encode(torch.tensor([[[179.0, 1.0, 181.0, 90.0]]]))
        a, b, c, d = near[0, :, 0].T
        torch.testing.assert_close(b, c)
        assert (a - b).norm() < 0.2 and (a - d).norm() > 3.9
        assert layer.decode(near)[0, 0].tolist() == pytest.approx([179, 1, 1, 90], abs=1e-3)

    def test_the_error_is_at_most_90_degrees(self):
        layer = encoding("axial")
        (scored,) = scored_layers([LayerChannels(0, 2, form="angle")], [layer])
        image, target = (layer.encode(torch.tensor([[[value]]]))[0] for value in (179.0, 1.0))
        assert scored.errors(image, target)[0].item() == pytest.approx(4.0, abs=1e-2)


def warped(path, kind, values, target=MGA54, **options):
    band = open_band(
        Layer("k", str(write_grid(path, values, **options)), kind=kind), reproject_to=CRS.from_string(target)
    )
    return band.read(0, 0, band.grid.rows, band.grid.cols), band


class TestReprojection:
    """True north, seen from zone 54 (central meridian 141): tan(angle) = -tan(longitude - 141) sin(latitude)."""

    DEGREES = {"crs": "EPSG:4326", "left": 143.0, "top": -34.0, "resolution": 0.01}
    EXPECTED = math.degrees(-math.atan(math.tan(math.radians(143.1 - 141)) * math.sin(math.radians(-34.1))))

    @pytest.mark.parametrize("azimuth", [0.0, 100.0, 359.5])
    def test_azimuths_follow_grid_north(self, tmp_path, azimuth):
        values, _ = warped(tmp_path / "a.tif", "circular", np.full((20, 20), azimuth, np.float32), **self.DEGREES)
        rows, cols = np.array(values.shape) // 2
        assert values[rows, cols] == pytest.approx((azimuth + self.EXPECTED) % 360, abs=0.02)
        assert self.EXPECTED == pytest.approx(1.18, abs=0.01)  # clockwise: true north lies east of grid north here

    def test_strikes_keep_below_180(self, tmp_path):
        values, _ = warped(tmp_path / "a.tif", "axial", np.full((20, 20), 179.5, np.float32), **self.DEGREES)
        rows, cols = np.array(values.shape) // 2
        assert values[rows, cols] == pytest.approx(179.5 + self.EXPECTED - 180, abs=0.02)

    @pytest.mark.parametrize("kind", ["phase", "categorical"])
    def test_other_numbers_stay(self, tmp_path, kind):
        values, _ = warped(tmp_path / "a.tif", kind, np.full((20, 20), 100.0, np.float32), **self.DEGREES)
        assert set(values[np.isfinite(values)].tolist()) == {100.0}

    def test_into_degrees_where_they_are_no_squares(self, tmp_path):
        """A line to the north-east of zone 55's grid, followed over the ground: the azimuth between its two ends."""
        from pyproj import Geod, Transformer

        place = {"crs": MGA55, "left": 700_000.0, "top": 6_000_000.0, "resolution": 1000.0}
        values, band = warped(tmp_path / "a.tif", "circular", np.full((20, 20), 45.0, np.float32), "EPSG:4283", **place)
        to_degrees = Transformer.from_crs(MGA55, "EPSG:4283", always_xy=True)
        (lon, other_lon), (lat, other_lat) = to_degrees.transform([710_000, 710_100], [5_990_000, 5_990_100])
        expected = Geod(ellps="GRS80").inv(lon, lat, other_lon, other_lat)[0] % 360
        row, col = (band.grid.top - lat) / band.grid.resolution_y, (lon - band.grid.left) / band.grid.resolution_x
        assert values[int(row), int(col)] == pytest.approx(expected, abs=0.05)

    def test_a_window_is_a_slice_of_the_whole(self, tmp_path):
        values, band = warped(
            tmp_path / "a.tif",
            "circular",
            np.full((300, 300), 5.0, np.float32),
            **(self.DEGREES | {"resolution": 0.001}),
        )
        np.testing.assert_array_equal(band.read(100, 90, 60, 70), values[100:160, 90:160])

    def test_the_same_crs_turns_nothing(self, tmp_path):
        values, band = warped(tmp_path / "a.tif", "circular", np.full((20, 20), 400.0, np.float32), rotation=20.0)
        assert band.warped and set(values[np.isfinite(values)].tolist()) == {400.0}
        assert Affine.identity() != band.source.transform
