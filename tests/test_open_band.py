"""Opening, reading and scanning rasters of every odd kind."""

import gzip
import multiprocessing
import os
import pickle
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from xml.sax.saxutils import escape

import geopandas
import numpy as np
import pytest
import rasterio
import rasterio.shutil
import shapely
from affine import Affine
from rasterio.crs import CRS
from rasterio.enums import ColorInterp
from rasterio.transform import from_origin
from rasterio.warp import transform as transform_points

from datasets.ground.area_of_interest import load_area_of_interest
from datasets.ground.grid import Grid, crs_agree
from datasets.layers.layer import Layer
from datasets.rasters import handles
from datasets.rasters import scan as scan_module
from datasets.rasters.chunk_cache import CHUNKS
from datasets.rasters.handles import close_datasets
from datasets.rasters.open_band import layer_crs, open_band
from datasets.rasters.scan import scan, with_undeclared_nodata
from tests.rasters import ramp, write_grid

pytestmark = [
    pytest.mark.filterwarnings("ignore::PendingDeprecationWarning:rasterio"),
    pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning"),
    pytest.mark.filterwarnings("ignore:'crs' was not provided:UserWarning"),
]

MGA54 = CRS.from_epsg(28354)
MGA55 = CRS.from_epsg(28355)
NAN = np.nan


def opened(path, **options):
    """The band of a file as a layer named 'x'."""
    keys = ("reproject_to", "aoi")
    return open_band(
        Layer("x", str(path), **{key: value for key, value in options.items() if key not in keys}),
        **{key: value for key, value in options.items() if key in keys},
    )


def whole(band):
    """Every pixel of a band."""
    return band.read(0, 0, band.grid.rows, band.grid.cols)


class TestGridAndWindows:
    def test_grid_of_a_plain_file(self, tmp_path):
        band = opened(write_grid(tmp_path / "a.tif", ramp(3, 4), resolution=(100.0, 50.0)))
        assert band.grid == Grid(MGA54, 500_000.0, 6_000_000.0, 100.0, 50.0, 3, 4)
        assert band.grid.bounds == (500_000.0, 5_999_850.0, 500_400.0, 6_000_000.0)
        assert band.grid.transform == Affine(100.0, 0.0, 500_000.0, 0.0, -50.0, 6_000_000.0)
        assert band.nodata == () and band.nodata_rule == "not finite; |value| >= 1e+30"
        assert (band.dtype, band.scale, band.offset, band.notes, band.warped) == (
            "float32",
            1.0,
            0.0,
            [],
            False,
        )
        np.testing.assert_array_equal(whole(band), ramp(3, 4))
        assert whole(band).dtype == np.float32

    @pytest.mark.parametrize(
        "window", [(-2, -1, 4, 3), (2, 3, 5, 5), (-1, -1, 6, 7), (1, 1, 1, 2), (-5, 0, 2, 2), (0, 9, 2, 2)]
    )
    def test_windows_may_stick_out(self, tmp_path, window):
        band = opened(write_grid(tmp_path / "a.tif", ramp(3, 4)))
        framed = np.full((23, 24), NAN, "float32")
        framed[10:13, 10:14] = ramp(3, 4)
        row, col, rows, cols = window
        expected = framed[10 + row : 10 + row + rows, 10 + col : 10 + col + cols]
        np.testing.assert_array_equal(band.read(*window), expected)

    def test_south_up_is_presented_north_up(self, tmp_path):
        plain = opened(write_grid(tmp_path / "a.tif", ramp(5, 4)))
        band = opened(write_grid(tmp_path / "b.tif", ramp(5, 4), south_up=True))
        assert band.grid == plain.grid
        np.testing.assert_array_equal(whole(band), ramp(5, 4))
        values = band.read(1, 2, 3, 5)
        np.testing.assert_array_equal(values, plain.read(1, 2, 3, 5))
        assert values.flags["C_CONTIGUOUS"]

    def test_columns_from_east_to_west_are_turned(self, tmp_path):
        path = write_grid(tmp_path / "a.tif", ramp(3, 4)[:, ::-1])
        with rasterio.open(path, "r+") as file:
            file.transform = Affine(-100.0, 0.0, 500_400.0, 0.0, -100.0, 6_000_000.0)
        band = opened(path)
        assert band.grid == Grid(MGA54, 500_000.0, 6_000_000.0, 100.0, 100.0, 3, 4)
        np.testing.assert_array_equal(band.read(1, 1, 2, 2), ramp(3, 4)[1:, 1:3])

    @pytest.mark.parametrize("shape", [(1, 7), (7, 1), (1, 1), (2, 1)])
    def test_one_pixel_wide(self, tmp_path, shape):
        band = opened(write_grid(tmp_path / "a.tif", ramp(*shape)))
        np.testing.assert_array_equal(whole(band), ramp(*shape))
        assert band.read(-1, -1, shape[0] + 2, shape[1] + 2)[1:-1, 1:-1].tolist() == ramp(*shape).tolist()

    @pytest.mark.parametrize(
        "layout",
        [
            {"blockysize": 3, "compress": "lzw"},
            {"blockysize": 50, "compress": "deflate"},
            {"tiled": True, "blockxsize": 16, "blockysize": 32},
            {"interleave": "pixel"},
            {"driver": "COG", "blocksize": 128},
        ],
        ids=["strips", "one strip", "tiles", "pixel-interleaved", "cog"],
    )
    def test_layouts(self, tmp_path, layout):
        values = ramp(50, 41)
        band = opened(write_grid(tmp_path / "a.tif", np.stack([values, -values]), **layout), band=2)
        np.testing.assert_array_equal(whole(band), -values)
        np.testing.assert_array_equal(band.read(13, 15, 20, 9), -values[13:33, 15:24])
        assert scan(band).mean == pytest.approx(-values.mean(dtype=float), rel=1e-12)

    @pytest.mark.parametrize(
        ("name", "driver"),
        [
            ("a.ers", "ERS"),
            ("a.bil", "EHdr"),
            ("a.grd", "GSAG"),
            ("a.grd", "GS7BG"),
            ("a.asc", "AAIGrid"),
            ("a.img", "HFA"),
        ],
    )
    def test_other_formats(self, tmp_path, name, driver):
        band = opened(write_grid(tmp_path / name, ramp(3, 4), driver=driver))
        np.testing.assert_array_equal(whole(band), ramp(3, 4))
        assert band.grid.bounds == (500_000.0, 5_999_700.0, 500_400.0, 6_000_000.0)

    def test_netcdf(self, tmp_path):
        source = write_grid(tmp_path / "a.tif", ramp(3, 4), nodata=12.0)
        rasterio.shutil.copy(str(source), str(tmp_path / "a.nc"), driver="netCDF")
        expected = ramp(3, 4)
        expected[1, 2] = NAN
        np.testing.assert_array_equal(whole(opened(tmp_path / "a.nc")), expected)

    def test_vrt_of_a_part(self, tmp_path):
        source = write_grid(tmp_path / "a.tif", ramp(6, 8))
        vrt = f"""<VRTDataset rasterXSize="3" rasterYSize="2"><SRS>EPSG:28354</SRS>
            <GeoTransform>500200, 100, 0, 5999900, 0, -100</GeoTransform>
            <VRTRasterBand dataType="Float32" band="1"><SimpleSource><SourceFilename>{source}</SourceFilename>
            <SrcRect xOff="2" yOff="1" xSize="3" ySize="2"/><DstRect xOff="0" yOff="0" xSize="3" ySize="2"/>
            </SimpleSource></VRTRasterBand></VRTDataset>"""
        (tmp_path / "a.vrt").write_text(vrt)
        np.testing.assert_array_equal(whole(opened(tmp_path / "a.vrt")), ramp(6, 8)[1:3, 2:5])

    def test_gxf_and_surfer_text(self, tmp_path):
        gxf = (
            "#POINTS\n3\n#ROWS\n2\n#PTSEPARATION\n100\n#RWSEPARATION\n100\n#XORIGIN\n500050\n#YORIGIN\n5999850\n"
            "#ROTATION\n0\n#SENSE\n1\n#DUMMY\n-1e32\n#MAP_PROJECTION\n"
            '"GDA94 / MGA zone 54"\n"GDA94",6378137,0.0818191910428,0\n'
            '"Transverse Mercator",0,141,0.9996,500000,10000000\n#UNIT_LENGTH\nm,1\n'
            "#GRID\n1 2 3\n4 -1e32 6\n"
        )
        (tmp_path / "a.gxf").write_text(gxf)
        band = opened(tmp_path / "a.gxf")  # rows run from the south
        np.testing.assert_array_equal(whole(band), np.array([[4, NAN, 6], [1, 2, 3]], "float32"))
        assert band.grid.bounds == (500_000.0, 5_999_800.0, 500_300.0, 6_000_000.0)
        (tmp_path / "b.grd").write_text("DSAA\n3 2\n500050 500250\n5999850 5999950\n1 6\n1 2 3\n4 1.70141e+38 6\n")
        with pytest.raises(ValueError, match="has no CRS, expected a coordinate reference system"):
            opened(tmp_path / "b.grd")
        surfer = write_grid(tmp_path / "c.grd", np.array([[4, 1.70141e38, 6], [1, 2, 3]]), driver="GSAG")
        np.testing.assert_array_equal(whole(opened(surfer)), whole(band))


class TestValidity:
    def test_declared_nodata_is_compared_in_the_files_own_type(self, tmp_path):
        values = ramp(3, 4)
        values[1, 1] = np.float32(-1e32)
        values[2, 2] = np.float32(-99999.9)
        band = opened(write_grid(tmp_path / "a.tif", values, nodata=-99999.9))
        expected = ramp(3, 4)
        expected[1, 1] = expected[2, 2] = NAN
        np.testing.assert_array_equal(whole(band), expected)
        assert band.nodata == (float(np.float32(-99999.9)),)
        assert band.nodata_rule == "declared -99999.8984; not finite; |value| >= 1e+30"

    @pytest.mark.parametrize("bad", [NAN, np.inf, -np.inf, 1e30, -1e32, 1.70141e38, np.finfo("f4").min])
    def test_never_valid(self, tmp_path, bad):
        values = ramp(3, 4)
        values[0, 3] = bad
        assert np.isnan(whole(opened(write_grid(tmp_path / "a.tif", values)))).sum() == 1

    def test_float64_is_tested_before_narrowing(self, tmp_path):
        values = ramp(3, 4, "float64")
        values[0, :] = [
            1e300,
            -99999.9,
            np.float32(-99999.9),
            7.0,
        ]  # dummy as double, and passed through float32
        band = opened(write_grid(tmp_path / "a.tif", values, nodata=-99999.9))
        expected = ramp(3, 4)
        expected[0] = [NAN, NAN, NAN, 7.0]
        np.testing.assert_array_equal(whole(band), expected)

    def test_int16_with_scale_and_offset(self, tmp_path):
        stored = np.array([[-32768, 0, 100], [200, -100, 7]], "int16")
        band = opened(write_grid(tmp_path / "a.tif", stored, nodata=-32768, scale=0.1, offset=5.0), nodata=7.0)
        np.testing.assert_allclose(whole(band), [[NAN, 5, 15], [25, -5, NAN]], rtol=1e-6)
        assert (band.scale, band.offset, band.nodata) == (0.1, 5.0, (-32768, 7))
        assert band.nodata_rule == "declared -32768; given 7"
        summary = scan(band)
        assert (summary.minimum, summary.maximum) == pytest.approx((-5.0, 25.0))
        assert summary.mean == pytest.approx(10.0) and summary.valid_fraction == 4 / 6

    def test_negative_scale_swaps_the_range(self, tmp_path):
        band = opened(write_grid(tmp_path / "a.tif", ramp(3, 4), scale=-2.0, offset=1.0))
        summary = scan(band)
        physical = 1.0 - 2.0 * ramp(3, 4)
        assert (summary.minimum, summary.maximum) == (physical.min(), physical.max())
        assert summary.std == pytest.approx(physical.std(dtype=float), rel=1e-12)

    def test_values_that_scaling_takes_beyond_float32_are_invalid(self, tmp_path):
        values = np.array([[1.0, 1e29], [2.0, 3.0]])
        band = opened(write_grid(tmp_path / "a.tif", values, scale=1e20))
        np.testing.assert_allclose(whole(band), [[1e20, NAN], [2e20, 3e20]], rtol=1e-6)

    @pytest.mark.parametrize("dtype", ["uint8", "int16", "uint16", "int32", "uint32", "float64"])
    def test_types(self, tmp_path, dtype):
        band = opened(write_grid(tmp_path / "a.tif", ramp(3, 4, dtype), nodata=11))
        expected = ramp(3, 4)
        expected[1, 1] = NAN
        np.testing.assert_array_equal(whole(band), expected)

    def test_large_integers_keep_their_nodata(self, tmp_path):
        values = np.array([[2**31 - 1, 2**31 - 2], [5, 6]], "int32")
        np.testing.assert_array_equal(
            np.isnan(whole(opened(write_grid(tmp_path / "a.tif", values, nodata=2**31 - 1)))),
            [[True, False], [False, False]],
        )

    def test_declared_nodata_that_does_not_fit_is_noted(self, tmp_path):
        band = opened(write_grid(tmp_path / "a.tif", ramp(3, 4, "int16"), nodata=-0.5))
        np.testing.assert_array_equal(whole(band), ramp(3, 4))
        assert band.nodata == ()
        assert band.notes == ["declares nodata -0.5, which no pixel of type int16 can hold: it matches nothing"]

    def test_given_nodata_that_does_not_fit_is_refused(self, tmp_path):
        path = write_grid(tmp_path / "a.tif", ramp(3, 4, "uint8"))
        with pytest.raises(ValueError, match="given nodata -9999, expected a value that a pixel of type uint8"):
            opened(path, nodata=-9999.0)

    def test_internal_mask(self, tmp_path):
        mask = np.ones((3, 4), bool)
        mask[0, :2] = False
        band = opened(write_grid(tmp_path / "a.tif", ramp(3, 4), mask=mask, nodata=23.0))
        expected = np.where(mask, ramp(3, 4), NAN)
        expected[2, 3] = NAN  # nodata counts besides the mask
        np.testing.assert_array_equal(whole(band), expected)
        assert band.nodata_rule == "declared 23; mask band; not finite; |value| >= 1e+30"

    @pytest.mark.parametrize("south_up", [False, True])
    def test_external_mask(self, tmp_path, south_up):
        path = write_grid(tmp_path / "a.tif", ramp(3, 4, "int16"), south_up=south_up)
        mask = np.ones((3, 4), bool)
        mask[0, :2] = False
        with rasterio.Env(GDAL_TIFF_INTERNAL_MASK=False), rasterio.open(path, "r+") as file:
            file.write_mask(mask[::-1] if south_up else mask)
        assert (tmp_path / "a.tif.msk").exists()
        np.testing.assert_array_equal(whole(opened(path)), np.where(mask, ramp(3, 4), NAN))

    @pytest.mark.parametrize("nodata", [None, 5.0])
    def test_alpha_band(self, tmp_path, nodata):
        alpha = np.full((3, 4), 255.0, "float32")
        alpha[2] = [0, 0, 128, 255]
        path = write_grid(tmp_path / "a.tif", np.stack([ramp(3, 4), alpha]), nodata=nodata)
        with rasterio.open(path, "r+") as file:
            file.colorinterp = [ColorInterp.gray, ColorInterp.alpha]
        expected = np.where(alpha > 0, ramp(3, 4), NAN)
        if nodata is not None:
            expected[expected == nodata] = NAN
        np.testing.assert_array_equal(whole(opened(path)), expected)
        assert "alpha band" in opened(path).nodata_rule
        with pytest.raises(ValueError, match="an alpha band, which is a mask"):
            opened(path, band=2)

    def test_what_lies_under_nodata_changes_nothing(self, tmp_path):
        results = []
        for fill in (0.0, -99999.0, 1e31, NAN):
            values = ramp(6, 5)
            values[2:4, 1:3] = fill
            mask = np.ones((6, 5), bool)
            mask[2:4, 1:3] = False
            band = opened(write_grid(tmp_path / "a.tif", values, mask=mask))
            results.append((whole(band).tobytes(), scan(band)))
            close_datasets()
        assert all(result == results[0] for result in results)


class TestDummies:
    @pytest.mark.parametrize("dummy", [-9999.0, -99999.0, 999999.0, 1e10, -32768.0, -999.0])
    def test_isolated_dummy_is_recognised(self, tmp_path, dummy):
        values = ramp(6, 5)
        values[1, 1:4] = dummy
        band = opened(write_grid(tmp_path / "a.tif", values))
        summary = scan(band)
        assert summary.dummies == (dummy,) and summary.suspicious == ()
        assert summary.valid_fraction == 27 / 30 and (summary.minimum, summary.maximum) == (0.0, 54.0)
        assert not np.isnan(whole(band)).any()  # nothing changes until it is asked for
        known = with_undeclared_nodata(band, summary.dummies)
        assert np.isnan(whole(known)).sum() == 3 and known.nodata == (dummy,)
        assert known.nodata_rule.endswith(f"recognised {dummy:.9g}")
        assert scan(known).dummies == () and scan(known).mean == summary.mean

    @pytest.mark.parametrize(
        "dtype, levels, dummy",
        [
            ("uint8", range(101), 255),
            ("uint8", (0, 1), 255),
            ("int8", range(0, 61), -128),
            ("int8", range(-50, 10), 127),
        ],
    )
    def test_isolated_limit_of_an_8_bit_type_is_recognised(self, tmp_path, dtype, levels, dummy):
        values = np.resize(np.array(levels, dtype=dtype), (40, 40))
        values[:12] = dummy
        summary = scan(opened(write_grid(tmp_path / "a.tif", values)))
        assert summary.dummies == (dummy,) and summary.valid_fraction == pytest.approx(0.7)
        assert (summary.minimum, summary.maximum) == (levels[0], levels[-1])

    @pytest.mark.parametrize(
        "levels, doubted",
        [(range(256), False), (range(60, 256), False), ((*range(240), 255), False), ((*range(180), 255), True)]
        + [((0, 255), True), ((0, 127, 255), True), ((0, 100, 255), True)],
    )
    def test_images_and_masks_of_8_bits_keep_their_limit(self, tmp_path, levels, doubted):
        values = np.resize(np.array(levels, dtype=np.uint8), (40, 40))
        summary = scan(opened(write_grid(tmp_path / "a.tif", values)))
        assert summary.dummies == () and summary.maximum == 255 and summary.valid_fraction == 1.0
        assert any("hold 255, often a dummy" in text for text in summary.suspicious) == doubted

    @pytest.mark.parametrize(("value", "which"), [(-99.75, "smallest"), (999.5, "largest")])
    @pytest.mark.parametrize(("rows", "warned"), [(3, False), (4, True)])
    def test_many_equal_pixels_at_an_end_are_suspicious(self, tmp_path, monkeypatch, value, which, rows, warned):
        """A dummy of the writer's own: 15 % or 20 % of 20 rows, in chunks of which the last ones have none."""
        monkeypatch.setattr(scan_module, "_CHUNK_PIXELS", 60)
        values = np.random.default_rng(0).normal(100.0, 10.0, (20, 30)).astype("float32")
        values[:rows] = value
        found = scan(opened(write_grid(tmp_path / "a.tif", values, blockysize=1))).suspicious
        text = f"20 % of the valid pixels hold exactly {value:g}, its {which} value, which is not declared as nodata"
        assert any(each.startswith(text) for each in found) == warned
        assert warned or found == ()

    @pytest.mark.parametrize("fraction, warned", [(0.45, True), (0.1, False)])
    @pytest.mark.parametrize("reproject_to", [None, MGA55])
    def test_many_exact_zeros_are_suspicious(self, tmp_path, fraction, warned, reproject_to):
        values = ramp(40, 40) + 0.5
        values[: round(40 * fraction)] = 0
        path = write_grid(tmp_path / "a.tif", values)
        found = scan(opened(path, reproject_to=reproject_to)).suspicious
        assert [f"{100 * fraction:.0f} % of the valid pixels hold exactly 0" in text for text in found] == [
            True
        ] * warned
        assert scan(opened(path, nodata=0.0)).suspicious == ()

    def test_dummy_within_reach_of_the_data_is_only_suspicious(self, tmp_path):
        values = ramp(6, 5) * 400.0  # range 21,600; -9,999 is nearer than that
        values[1, 1:4] = -9999.0
        summary = scan(opened(write_grid(tmp_path / "a.tif", values)))
        assert summary.dummies == () and summary.minimum == -9999.0 and summary.valid_fraction == 1.0
        assert "3 pixels hold -9999, often a dummy" in summary.suspicious[0]

    def test_several_dummies_nearest_first(self, tmp_path):
        values = ramp(6, 5)
        values[0, 0], values[0, 1] = -99999.0, 9999.0
        assert set(scan(opened(write_grid(tmp_path / "a.tif", values))).dummies) == {-99999.0, 9999.0}

    def test_similar_value_is_data(self, tmp_path):
        values = ramp(6, 5)
        values[0, 0] = -9998.5
        summary = scan(opened(write_grid(tmp_path / "a.tif", values)))
        assert summary.dummies == () and summary.minimum == -9998.5

    def test_float64_dummy_that_passed_through_float32(self, tmp_path):
        values = ramp(6, 5, "float64")
        values[0, 0] = -1e20
        values[0, 1] = np.float32(-1e20)
        assert scan(opened(write_grid(tmp_path / "a.tif", values))).valid_fraction == 28 / 30

    def test_int16_dummy_with_scale(self, tmp_path):
        values = ramp(6, 5, "int16")
        values[0, 0] = -32768
        band = opened(write_grid(tmp_path / "a.tif", values, scale=0.01))
        summary = scan(band)
        assert summary.dummies == (-32768.0,) and summary.minimum == pytest.approx(0.01)
        assert np.isnan(with_undeclared_nodata(band, summary.dummies).read(0, 0, 1, 1)).all()

    def test_whole_numbers_meet_a_dummy_by_chance(self, tmp_path):
        heights = np.arange(900, 1100, dtype="int16").reshape(10, 20)
        assert scan(opened(write_grid(tmp_path / "a.tif", heights))).suspicious == ()
        heights[0] = 999
        assert "21 pixels hold 999" in scan(opened(write_grid(tmp_path / "b.tif", heights))).suspicious[0]

    def test_few_whole_numbers_look_like_classes(self, tmp_path):
        for dtype in ("uint8", "float32"):
            values = (ramp(20, 20, "int32") % 16).astype(dtype)
            assert (
                "only 16 distinct whole numbers" in scan(opened(write_grid(tmp_path / "a.tif", values))).suspicious[0]
            )
            close_datasets()
        assert scan(opened(write_grid(tmp_path / "b.tif", ramp(20, 20, "int32") % 17))).suspicious == ()
        assert scan(opened(write_grid(tmp_path / "c.tif", ramp(20, 20) % 16 + 0.5))).suspicious == ()

    def test_values_too_fine_for_float32_are_suspicious(self, tmp_path):
        values = 5e7 + ramp(6, 5, "float64")
        assert "4 apart in float32" in scan(opened(write_grid(tmp_path / "a.tif", values))).suspicious[0]


class TestScan:
    def test_statistics_over_many_chunks(self, tmp_path, monkeypatch):
        monkeypatch.setattr(scan_module, "_CHUNK_PIXELS", 700)
        values = np.random.default_rng(0).normal(50_000.0, 30.0, (90, 71)).astype("float32")
        values[10:30, 5:9] = NAN
        layouts: list[dict[str, Any]] = [
            {"blockysize": 4},
            {"tiled": True, "blockxsize": 16, "blockysize": 16},
            {"blockysize": 90},
        ]
        for layout in layouts:
            summary = scan(opened(write_grid(tmp_path / "a.tif", values, **layout)))
            close_datasets()
            exact = values[~np.isnan(values)].astype(float)
            assert summary.pixels_read == 90 * 71 and not summary.sampled
            assert summary.valid_fraction == exact.size / values.size
            assert (summary.minimum, summary.maximum) == (exact.min(), exact.max())
            assert summary.mean == pytest.approx(exact.mean(), rel=1e-13)
            assert summary.std == pytest.approx(exact.std(), rel=1e-10)

    def test_chunks_cover_once_and_follow_blocks(self):
        for rows, cols, block in [
            (90, 71, (16, 16)),
            (90, 71, (3, 71)),
            (90, 71, (90, 71)),
            (5000, 3000, (5000, 3000)),
        ]:
            seen = np.zeros((rows, cols), int)
            for row, col, height, width in scan_module._chunks(rows, cols, block=block, thin=1):
                seen[row : row + height, col : col + width] += 1
                assert height * width <= 2 * scan_module._CHUNK_PIXELS
            assert (seen == 1).all()

    def test_very_large_layers_are_sampled(self, tmp_path, monkeypatch):
        monkeypatch.setattr(scan_module, "_CHUNK_PIXELS", 200)
        monkeypatch.setattr(scan_module, "SCAN_PIXELS", 2000)
        path = write_grid(tmp_path / "a.tif", ramp(100, 60), blockysize=1)
        summary = scan(opened(path))
        assert summary.sampled and 1500 <= summary.pixels_read <= 2500
        assert summary.mean == pytest.approx(ramp(100, 60).mean(), rel=0.05)
        values = np.full((100, 60), NAN, "float32")
        values[3:5] = ramp(2, 60)  # outside the sample: then everything is read
        summary = scan(opened(write_grid(tmp_path / "b.tif", values, blockysize=1)))
        assert not summary.sampled and summary.valid_fraction == 0.02

    def test_all_nodata(self, tmp_path):
        band = opened(write_grid(tmp_path / "a.tif", np.full((3, 4), -9999.0, "float32"), nodata=-9999.0))
        with pytest.raises(ValueError, match=r"layer 'x' .*all nodata: none of 12 pixels is valid .*declared -9999"):
            scan(band)

    @pytest.mark.parametrize("value", [5.0, -9999.0])
    def test_constant(self, tmp_path, value):
        values = np.full((3, 4), value, "float32")
        values[0, 0] = NAN
        with pytest.raises(ValueError, match=f"constant: every valid pixel is {value:g} "):
            scan(opened(write_grid(tmp_path / "a.tif", values)))

    def test_a_constant_that_is_allowed_is_said(self, tmp_path):
        summary = scan(opened(write_grid(tmp_path / "a.tif", np.zeros((3, 4), "float32"))), trained=True)
        assert summary.suspicious == ("constant: every valid pixel is 0 (invalid: not finite; |value| >= 1e+30)",)
        assert (summary.minimum, summary.maximum, summary.std) == (0, 0, 0)

    def test_constant_apart_from_a_dummy(self, tmp_path):
        values = np.full((3, 4), 5.0, "float32")
        values[0, 0] = -99999.0
        with pytest.raises(ValueError, match="constant: every valid pixel is 5 .*recognised -99999"):
            scan(opened(write_grid(tmp_path / "a.tif", values)))

    @pytest.mark.parametrize(
        "options",
        [
            {},
            {"compress": "deflate"},
            {"compress": "lzw", "tiled": True, "blockxsize": 16, "blockysize": 16},
            {"driver": "ERS"},
            {"driver": "ENVI"},
            {"driver": "EHdr"},
            {"driver": "GSBG"},
            {"driver": "GSAG"},
            {"driver": "AAIGrid"},
            {"driver": "HFA"},
        ],
        ids=lambda options: str(options.get("driver", options.get("compress", "plain"))),
    )
    def test_truncated_files_are_refused(self, tmp_path, options):
        values = np.random.default_rng(1).normal(size=(64, 48)).astype("float32")
        path = write_grid(tmp_path / ("a.ers" if options.get("driver") == "ERS" else "a.dat"), values, **options)
        data = max(tmp_path.iterdir(), key=lambda file: file.stat().st_size)
        os.truncate(data, int(data.stat().st_size * 0.7))
        with pytest.raises(ValueError, match="cannot be opened|cannot be read|incomplete"):
            scan(opened(path))

    def test_truncated_netcdf_is_refused(self, tmp_path):
        source = write_grid(tmp_path / "a.tif", ramp(64, 48))
        rasterio.shutil.copy(str(source), str(tmp_path / "a.nc"), driver="netCDF")
        whole = (tmp_path / "a.nc").stat().st_size
        os.truncate(tmp_path / "a.nc", 8000)
        with pytest.raises(ValueError, match=f"incomplete: .*a.nc has 8000 bytes, expected at least {whole}"):
            opened(tmp_path / "a.nc")

    def test_truncated_strip_names_file_and_rows(self, tmp_path):
        path = write_grid(tmp_path / "a.tif", ramp(64, 48), blockysize=8)
        os.truncate(path, path.stat().st_size - 2000)
        band = opened(path)
        with pytest.raises(ValueError, match=r"layer 'x' \(.*a.tif, band 1\): rows 0 to 63, columns 0 to 47"):
            scan(band)
        with pytest.raises(OSError, match=r"layer 'x' \(.*a.tif, band 1\): rows 60 to 61, columns 3 to 4 of the file"):
            band.read(60, 3, 2, 2)
        np.testing.assert_array_equal(band.read(3, 3, 2, 2), ramp(64, 48)[3:5, 3:5])

    def test_blocks_never_written_are_noted(self, tmp_path):
        transform = from_origin(5e5, 6e6, 100, 100)
        options = {"tiled": True, "blockxsize": 16, "blockysize": 16, "SPARSE_OK": True}
        with rasterio.open(
            tmp_path / "a.tif", "w", driver="GTiff", width=64, height=32, count=1, dtype="float32",
            crs="EPSG:28354", transform=transform, **options,
        ) as file:  # fmt: skip
            file.write(ramp(16, 16), 1, window=((0, 16), (0, 16)))
        (note,) = opened(tmp_path / "a.tif").notes
        assert note.startswith("7 of 8 blocks checked are not in the file and read as 0")

    @pytest.mark.parametrize("declared", [None, -99])
    def test_gaps_of_a_virtual_raster_are_noted(self, tmp_path, declared):
        for number, left in enumerate((500_000.0, 502_000.0)):
            write_grid(tmp_path / f"{number}.tif", np.full((10, 10), 300.0, np.float32), left=left, nodata=declared)
        with rasterio.open(tmp_path / "0.tif") as first:
            crs = first.crs.to_wkt()
        place = '<{}Rect xOff="{}" yOff="0" xSize="10" ySize="10"/>'
        sources = "".join(
            f'<SimpleSource><SourceFilename relativeToVRT="1">{number}.tif</SourceFilename><SourceBand>1</SourceBand>'
            f"{place.format('Src', 0)}{place.format('Dst', 20 * number)}</SimpleSource>"
            for number in (0, 1)
        )
        nodata = "" if declared is None else f"<NoDataValue>{declared}</NoDataValue>"
        (tmp_path / "a.vrt").write_text(
            f'<VRTDataset rasterXSize="30" rasterYSize="10"><SRS>{escape(crs)}</SRS>'
            "<GeoTransform>500000, 100, 0, 6000000, 0, -100</GeoTransform>"
            f'<VRTRasterBand dataType="Float32" band="1">{nodata}{sources}</VRTRasterBand></VRTDataset>'
        )
        band = opened(tmp_path / "a.vrt")
        if declared is None:
            (note,) = band.notes
            assert note.startswith("33.3 % of this virtual raster lies in none of the files that it is made of")
        else:
            assert not band.notes and np.isfinite(band.read(0, 0, 10, 30)).mean() == pytest.approx(2 / 3)

    @pytest.mark.parametrize("dtype", ["int64", "uint64"])
    @pytest.mark.parametrize("is_declared", [True, False])
    def test_the_limit_of_64_bits_is_nodata(self, tmp_path, dtype, is_declared):
        values = np.arange(100, dtype=dtype).reshape(10, 10)
        values[0, :2] = np.iinfo(dtype).max
        path = write_grid(tmp_path / "a.tif", values)
        if is_declared:
            (tmp_path / "a.tif.aux.xml").write_text(
                f'<PAMDataset><PAMRasterBand band="1"><NoDataValue>{np.iinfo(dtype).max}</NoDataValue></PAMRasterBand>'
                "</PAMDataset>"
            )
        band = opened(path)
        band = with_undeclared_nodata(band, scan(band).dummies)
        read = band.read(0, 0, 10, 10)
        assert np.isnan(read[0, :2]).all() and read[0, 2] == 2 and np.isnan(read).sum() == 2


class TestRefusals:
    def test_missing_file(self, tmp_path):
        with pytest.raises(FileNotFoundError, match=r"layer 'x' \(.*none.tif, band 1\): no such file"):
            opened(tmp_path / "none.tif")

    @pytest.mark.parametrize("content", [b"", b"II*\x00\x08\x00\x00\x00", b"not a raster"])
    def test_unreadable_header(self, tmp_path, content):
        (tmp_path / "a.tif").write_bytes(content)
        with pytest.raises(ValueError, match="cannot be opened as a raster"):
            opened(tmp_path / "a.tif")

    def test_missing_member_of_an_archive(self, tmp_path):
        with pytest.raises(ValueError, match="cannot be opened as a raster"):
            opened(f"/vsizip/{tmp_path}/none.zip/a.tif")

    @pytest.mark.parametrize("number", [0, 3])
    def test_band_out_of_range(self, tmp_path, number):
        path = write_grid(tmp_path / "a.tif", np.ones((2, 3, 4), "float32"))
        with pytest.raises(ValueError, match=rf"there is no band {number}, the file has 2 band\(s\)"):
            opened(path, band=number)

    def test_no_crs(self, tmp_path):
        path = write_grid(tmp_path / "a.tif", ramp(3, 4), crs=None)
        with pytest.raises(ValueError, match="has no CRS, expected .*gdal_edit.py -a_srs"):
            opened(path)

    def test_no_geotransform(self, tmp_path):
        with rasterio.open(
            tmp_path / "a.tif",
            "w",
            driver="GTiff",
            width=4,
            height=3,
            count=1,
            dtype="float32",
            crs="EPSG:28354",
        ) as file:
            file.write(ramp(3, 4), 1)
        with pytest.raises(ValueError, match="has no geotransform, expected pixels with a place on the ground"):
            opened(tmp_path / "a.tif")

    @pytest.mark.parametrize("rotation", [0.5, 30.0, 90.0])
    def test_rotated(self, tmp_path, rotation):
        path = write_grid(tmp_path / "a.tif", ramp(3, 4), rotation=rotation)
        with pytest.raises(ValueError, match="rotated or sheared .*add --reproject .*or run gdalwarp"):
            opened(path)
        assert layer_crs(Layer("x", str(path))) == MGA54

    def test_rotation_by_rounding_is_none(self, tmp_path):
        path = write_grid(tmp_path / "a.tif", ramp(3, 4), rotation=1e-9)
        assert opened(path).grid.rows == 3

    def test_complex(self, tmp_path):
        path = write_grid(tmp_path / "a.tif", np.ones((3, 4), "complex64"))
        with pytest.raises(ValueError, match=r"complex numbers \(complex64\), expected real ones"):
            opened(path)

    def test_scale_zero(self, tmp_path):
        path = write_grid(tmp_path / "a.tif", ramp(3, 4), scale=0.0, offset=1.0)
        with pytest.raises(ValueError, match="scale 0 and offset 1, expected finite numbers"):
            opened(path)

    def test_unknown_kind(self, tmp_path):
        path = write_grid(tmp_path / "a.tif", ramp(3, 4))
        with pytest.raises(ValueError, match="kind is 'text', expected one of continuous"):
            opened(path, kind="text")

    def test_colour_table(self, tmp_path):
        colours = {0: (0, 0, 0), 1: (255, 0, 0)}
        path = write_grid(tmp_path / "a.tif", ramp(3, 4, "uint8"), colormap=colours)
        band = opened(path)
        assert band.layer.kind == "categorical" and whole(band)[2, 3] == 23.0
        assert "has a colour table: taken for a layer of kind categorical; set kind=continuous" in band.notes[0]
        assert opened(path, kind_stated=True).layer.kind == "continuous"
        assert whole(opened(path, kind_stated=True))[2, 3] == 23.0

    def test_category_names(self, tmp_path):
        path = write_grid(tmp_path / "a.tif", ramp(3, 4, "uint8"))
        names = "".join(f"<Category>{name}</Category>" for name in ("none", "granite", "basalt"))
        band = f'<PAMRasterBand band="1"><CategoryNames>{names}</CategoryNames></PAMRasterBand>'
        (tmp_path / "a.tif.aux.xml").write_text(f"<PAMDataset>{band}</PAMDataset>")
        band = opened(path)
        assert band.layer.kind == "categorical" and "has category names" in band.notes[0]

    def test_scaled_class_codes(self, tmp_path):
        path = write_grid(tmp_path / "a.tif", ramp(3, 4, "uint8"), scale=0.5)
        with pytest.raises(ValueError, match="scale 0.5 and offset 0, expected none on class codes .*remove them"):
            opened(path, kind="categorical")

    def test_subdatasets_are_named(self, tmp_path):
        netcdf = pytest.importorskip("scipy.io").netcdf_file(tmp_path / "a.nc", "w")
        netcdf.createDimension("y", 3)
        netcdf.createDimension("x", 4)
        for name in ("gravity", "magnetics"):
            netcdf.createVariable(name, "f", ("y", "x"))[:] = ramp(3, 4)
        netcdf.close()
        with pytest.raises(ValueError, match="there is no band 1, .*subdatasets .*gravity"):
            opened(tmp_path / "a.nc")


class TestCrs:
    def test_spellings_agree(self, tmp_path):
        path = write_grid(tmp_path / "a.ers", ramp(3, 4), driver="ERS")
        band = opened(path)
        assert crs_agree(band.grid, MGA54)
        same = opened(path, reproject_to=MGA54)
        assert not same.warped and same.grid.crs == MGA54
        np.testing.assert_array_equal(whole(same), ramp(3, 4))

    @pytest.mark.parametrize("code", [28355, 4283, 3857])
    def test_other_places_do_not(self, tmp_path, code):
        assert not crs_agree(opened(write_grid(tmp_path / "a.tif", ramp(3, 4))).grid, CRS.from_epsg(code))


class TestReprojection:
    def plane(self, tmp_path, **options):
        """A plane over easting and northing of zone 54, so that its value anywhere is known."""
        x = 500_000.0 + 100.0 * (np.arange(300) + 0.5)
        y = 6_000_000.0 - 100.0 * (np.arange(280) + 0.5)
        values = (0.01 * (x[None, :] - 500_000.0) + 0.02 * (6_000_000.0 - y[:, None])).astype("float32")
        for rows, cols, fill in options.pop("holes", ()):
            values[rows, cols] = fill
        return write_grid(tmp_path / "plane.tif", values, **options)

    def expected(self, grid):
        x = grid.left + grid.resolution_x * (np.arange(grid.cols) + 0.5)
        y = grid.top - grid.resolution_y * (np.arange(grid.rows) + 0.5)
        xs, ys = np.meshgrid(x, y)
        east, north = (np.array(c) for c in transform_points(grid.crs, MGA54, xs.ravel(), ys.ravel()))
        col, row = (east - 500_000.0) / 100.0, (6_000_000.0 - north) / 100.0
        shape = (grid.rows, grid.cols)
        values = 0.01 * (east - 500_000.0) + 0.02 * (6_000_000.0 - north)
        return values.reshape(shape), row.reshape(shape), col.reshape(shape)

    def test_plane_keeps_its_values_and_its_outline(self, tmp_path):
        band = opened(self.plane(tmp_path), reproject_to=MGA55)
        assert band.warped and band.grid.crs == MGA55 and band.grid.resolution_x == band.grid.resolution_y
        assert 95.0 < band.grid.resolution_x < 105.0
        values = whole(band)
        expected, row, col = self.expected(band.grid)
        # 0.02 pixels of a slope of 2 per pixel; the outermost half pixel has nothing to interpolate with
        inner = (row > 1) & (row < 279) & (col > 1) & (col < 299)
        assert np.abs(values - expected)[inner].max() < 0.04
        assert not np.isnan(values[inner]).any()
        outside = (row < -0.1) | (row > 280.1) | (col < -0.1) | (col > 300.1)
        assert outside.sum() > 1000 and np.isnan(values[outside]).all()

    def test_window_is_a_slice_of_the_whole(self, tmp_path):
        band = opened(self.plane(tmp_path), reproject_to=MGA55)
        values = np.pad(whole(band), 50, constant_values=NAN)
        for row, col, rows, cols in [
            (0, 0, 10, 10),
            (100, 120, 77, 140),
            (127, 127, 2, 2),
            (-20, 200, 60, 140),
        ]:
            expected = values[50 + row : 50 + row + rows, 50 + col : 50 + col + cols]
            np.testing.assert_array_equal(band.read(row, col, rows, cols), expected)

    @pytest.mark.parametrize("kind", ["declared", "dummy", "nan", "huge", "mask", "two values"])
    def test_hole_stays_a_hole_and_is_not_smeared(self, tmp_path, kind):
        hole = (slice(100, 140), slice(60, 110))
        fills = {"nan": NAN, "huge": 1e31, "mask": 0.0, "two values": -9999.0}
        holes = [(*hole, fills.get(kind, -99999.0))]
        if kind == "two values":
            holes.append((slice(100, 120), slice(60, 110), 1e10))
        mask = None
        if kind == "mask":
            mask = np.ones((280, 300), bool)
            mask[hole] = False
        path = self.plane(tmp_path, holes=holes, nodata=-99999.0 if kind == "declared" else None, mask=mask)
        band = opened(path, reproject_to=MGA55)
        summary = scan(band)
        band = with_undeclared_nodata(band, summary.dummies)
        values = whole(band)
        expected, row, col = self.expected(band.grid)
        within = (row > 100.1) & (row < 139.9) & (col > 60.1) & (col < 109.9)
        beyond = (row < 99.9) | (row > 140.1) | (col < 59.9) | (col > 110.1)
        inner = (row > 1) & (row < 279) & (col > 1) & (col < 299)
        assert within.sum() > 1500 and np.isnan(values[within]).all()
        assert not np.isnan(values[beyond & inner]).any()
        # beside the hole only the valid pixels count, which shifts the value by up to half a pixel each way
        assert np.abs(values - expected)[beyond & inner].max() < 0.5 * (1.0 + 2.0) + 0.04
        assert summary.minimum > -5.0 and summary.maximum < 1000.0
        assert len(summary.dummies) == {"dummy": 1, "two values": 2}.get(kind, 0)

    def test_scale_and_offset_apply_to_warped_values(self, tmp_path):
        values = np.full((60, 60), 100, "int16")
        values[:, 30:] = 200
        values[20:30, 10:20] = -32768
        band = opened(write_grid(tmp_path / "a.tif", values, scale=0.1, offset=1.0, nodata=-32768), reproject_to=MGA55)
        summary = scan(band)
        assert (summary.minimum, summary.maximum) == pytest.approx((11.0, 21.0))

    def test_rotated_grid_is_turned(self, tmp_path):
        path = write_grid(tmp_path / "a.tif", ramp(200, 150), rotation=20.0)
        band = opened(path, reproject_to=MGA54)
        assert band.warped and band.grid.crs == MGA54
        values = whole(band)
        with rasterio.open(path) as file:
            inverse = ~file.transform
        rows, cols = np.mgrid[0 : band.grid.rows, 0 : band.grid.cols] + 0.5
        x, y = band.grid.left + cols * band.grid.resolution_x, band.grid.top - rows * band.grid.resolution_y
        col, row = (inverse.a * x + inverse.b * y + inverse.c), (inverse.d * x + inverse.e * y + inverse.f)
        inner = (row > 1) & (row < 199) & (col > 1) & (col < 149)
        np.testing.assert_allclose(values[inner], (10 * (row - 0.5) + col - 0.5)[inner], atol=0.05)
        assert np.isnan(values[(row < -0.1) | (row > 200.1) | (col < -0.1) | (col > 150.1)]).all()

    def test_to_degrees_and_out_of_reach(self, tmp_path):
        band = opened(self.plane(tmp_path), reproject_to=CRS.from_epsg(4326))
        assert 0.0005 < band.grid.resolution_x < 0.002
        assert scan(band).mean == pytest.approx(430.0, rel=0.02)
        polar = write_grid(tmp_path / "b.tif", ramp(40, 80), left=-179.0, top=-60.0, resolution=0.5, crs="EPSG:4326")
        far = opened(polar, reproject_to=CRS.from_epsg(3031))
        assert 0.3 < scan(far).valid_fraction < 1.0

    def test_same_crs_is_left_alone(self, tmp_path):
        band = opened(write_grid(tmp_path / "a.tif", ramp(3, 4)), reproject_to=MGA54)
        assert not band.warped
        np.testing.assert_array_equal(whole(band), ramp(3, 4))


class TestAreaOfInterest:
    def polygons(self, path, shapes, crs="EPSG:28354"):
        geopandas.GeoDataFrame(geometry=shapes, crs=crs).to_file(path)
        return path

    def test_pixel_centres_decide(self, tmp_path):
        triangle = shapely.Polygon([(500_000, 6_000_000), (500_400, 6_000_000), (500_000, 5_999_600)])
        aoi = load_area_of_interest(self.polygons(tmp_path / "a.gpkg", [triangle]), MGA54)
        band = opened(write_grid(tmp_path / "a.tif", 1 + ramp(4, 4)), aoi=pickle.loads(pickle.dumps(aoi)))
        valid = ~np.isnan(whole(band))
        assert valid[0, :3].all() and valid[1, :2].all() and valid[2, 0]  # clear of the slanted edge
        assert not valid[1, 3] and not valid[2, 2:].any() and not valid[3, 1:].any()
        np.testing.assert_array_equal(band.read(-1, 1, 3, 3)[1:], whole(band)[:2, 1:])
        assert aoi.bounds == (500_000.0, 5_999_600.0, 500_400.0, 6_000_000.0)
        assert scan(band).valid_fraction == valid.sum() / 16

    @pytest.mark.parametrize("south_up", [False, True])
    def test_scan_counts_inside_only(self, tmp_path, south_up):
        aoi = load_area_of_interest(
            self.polygons(tmp_path / "a.gpkg", [shapely.box(500_000, 5_999_800, 500_200, 6_000_000)]), MGA54
        )
        band = opened(write_grid(tmp_path / "a.tif", ramp(4, 5), south_up=south_up), aoi=aoi)
        summary = scan(band)
        assert (summary.minimum, summary.maximum, summary.valid_fraction) == (0.0, 11.0, 4 / 20)

    def test_warped_band(self, tmp_path):
        path = write_grid(tmp_path / "a.tif", ramp(100, 100))
        box = shapely.box(503_000, 5_993_000, 506_000, 5_997_000)
        aoi = load_area_of_interest(self.polygons(tmp_path / "a.gpkg", [box]), MGA55)
        summary = scan(opened(path, reproject_to=MGA55, aoi=aoi))
        assert summary.minimum == pytest.approx(10 * 30 + 30, abs=12) and summary.maximum == pytest.approx(759, abs=12)

    def test_polygons_of_another_crs_are_brought_over(self, tmp_path):
        box = geopandas.GeoSeries([shapely.box(500_000, 5_999_800, 500_200, 6_000_000)], crs="EPSG:28354")
        path = self.polygons(tmp_path / "a.geojson", list(box.to_crs("EPSG:4326")), crs="EPSG:4326")
        aoi = load_area_of_interest(path, MGA54)
        np.testing.assert_allclose(aoi.bounds, (500_000, 5_999_800, 500_200, 6_000_000), atol=0.5)

    def test_holes_and_several_polygons(self, tmp_path):
        ring = shapely.box(500_000, 5_999_500, 500_500, 6_000_000) - shapely.box(500_100, 5_999_600, 500_400, 5_999_900)
        far = shapely.box(900_000, 5_000_000, 900_100, 5_000_100)
        aoi = load_area_of_interest(self.polygons(tmp_path / "a.gpkg", [ring, far]), MGA54)
        valid = ~np.isnan(whole(opened(write_grid(tmp_path / "a.tif", ramp(5, 5)), aoi=aoi)))
        expected = np.ones((5, 5), bool)
        expected[1:4, 1:4] = False
        np.testing.assert_array_equal(valid, expected)
        assert not aoi.inside(from_origin(0, 0, 100, 100), 3, 3).any()

    def test_nothing_inside(self, tmp_path):
        far = self.polygons(tmp_path / "a.gpkg", [shapely.box(900_000, 5_000_000, 900_100, 5_000_100)])
        band = opened(write_grid(tmp_path / "a.tif", ramp(5, 5)), aoi=load_area_of_interest(far, MGA54))
        with pytest.raises(ValueError, match="none of 25 pixels inside the area of interest is valid"):
            scan(band)

    def test_refusals(self, tmp_path):
        with pytest.raises(FileNotFoundError, match="area of interest .*: no such file"):
            load_area_of_interest(tmp_path / "none.gpkg", MGA54)
        (tmp_path / "bad.gpkg").write_bytes(b"bad")
        with pytest.raises(ValueError, match="cannot be read as a vector file"):
            load_area_of_interest(tmp_path / "bad.gpkg", MGA54)
        points = self.polygons(tmp_path / "p.gpkg", [shapely.Point(0, 0)])
        with pytest.raises(ValueError, match=r"no polygons \(it holds Point\)"):
            load_area_of_interest(points, MGA54)
        bare = self.polygons(tmp_path / "b.shp", [shapely.box(0, 0, 1, 1)], crs=None)
        with pytest.raises(ValueError, match="has no CRS, expected one"):
            load_area_of_interest(bare, MGA54)
        (tmp_path / "t.csv").write_text("a,b\n1,2\n")
        with pytest.raises(ValueError, match="a table without geometry"):
            load_area_of_interest(tmp_path / "t.csv", MGA54)
        line = self.polygons(tmp_path / "l.gpkg", [shapely.Polygon([(0, 0), (1, 1), (2, 2)])])
        with pytest.raises(ValueError, match="have no area"):
            load_area_of_interest(line, MGA54)

    def test_other_crs_than_the_grid(self, tmp_path):
        aoi = load_area_of_interest(self.polygons(tmp_path / "a.gpkg", [shapely.box(0, 0, 1, 1)]), MGA55)
        path = write_grid(tmp_path / "a.tif", ramp(5, 5))
        with pytest.raises(ValueError, match="area of interest in EPSG:28355, expected EPSG:28354"):
            opened(path, aoi=aoi)


def _read_in_child(band, window, queue):
    queue.put((os.getpid(), band.read(*window).tolist()))


class TestHandles:
    def test_pickled_band_reads_the_same(self, tmp_path):
        path = write_grid(tmp_path / "a.tif", ramp(30, 40), south_up=True, nodata=5.0)
        for band in (opened(path), opened(path, reproject_to=MGA55)):
            first = whole(band)  # opens a handle, which must not travel
            np.testing.assert_array_equal(whole(pickle.loads(pickle.dumps(band))), first)

    def test_threads(self, tmp_path):
        values = np.random.default_rng(2).normal(size=(300, 200)).astype("float32")
        path = write_grid(tmp_path / "a.tif", values, compress="deflate", tiled=True, blockxsize=32, blockysize=32)
        band = opened(path)
        windows = [(row, col, 37, 41) for row in range(0, 250, 17) for col in range(0, 150, 13)]
        with ThreadPoolExecutor(4) as pool:
            for (row, col, rows, cols), got in zip(windows, pool.map(lambda w: band.read(*w), windows), strict=True):
                np.testing.assert_array_equal(got, values[row : row + rows, col : col + cols])

    def test_fork_opens_its_own(self, tmp_path):
        band = opened(write_grid(tmp_path / "a.tif", ramp(30, 40)))
        expected = band.read(3, 4, 2, 2).tolist()
        context = multiprocessing.get_context("fork")
        queue = context.Queue()
        children = [context.Process(target=_read_in_child, args=(band, (3, 4, 2, 2), queue)) for _ in range(2)]
        for child in children:
            child.start()
        results = [queue.get(timeout=60) for _ in children]
        for child in children:
            child.join()
        assert len({pid for pid, _ in results} | {os.getpid()}) == 3
        assert all(values == expected for _, values in results)
        assert band.read(3, 4, 2, 2).tolist() == expected

    def test_least_recently_used_is_closed(self, tmp_path, monkeypatch):
        close_datasets()
        already = handles._count_open(os.getpid())
        monkeypatch.setattr(handles, "MAX_HANDLES", already + 3)
        bands = [opened(write_grid(tmp_path / f"{k}.tif", ramp(3, 4) + k)) for k in range(6)]
        for _ in range(2):
            for k, band in enumerate(bands):
                assert band.read(0, 0, 1, 1) == k
                assert handles._count_open(os.getpid()) <= already + 3
        assert [Path(path).name for path in handles._own_handles().open] == ["3.tif", "4.tif", "5.tif"]

    def test_opening_leaves_nothing_open(self, tmp_path):
        close_datasets()
        opened(write_grid(tmp_path / "a.tif", ramp(3, 4)))
        assert not handles._own_handles().open

    def test_file_gone_after_opening(self, tmp_path):
        path = write_grid(tmp_path / "a.tif", ramp(3, 4))
        band = opened(path)
        path.unlink()
        with pytest.raises(OSError, match=r"layer 'x' \(.*a.tif, band 1\): rows 0 to 2, columns 0 to 3"):
            whole(band)


TILED: dict[str, Any] = {"tiled": True, "blockxsize": 64, "blockysize": 64, "compress": "deflate"}


class TestKeptPixels:
    """Pixels are settled once for each block and kept: no window must show it."""

    def band(self, folder, kind):
        """A band of 150 x 170 pixels in blocks of 64 x 64, with every way to be invalid that its kind has."""
        path, values = folder / "a.tif", ramp(150, 170)
        hole = np.zeros(values.shape, bool)
        hole[60:75, 30:140] = hole[149, 169] = True
        aoi = shapely.Point(508_000, 5_992_000).buffer(5_050)
        geopandas.GeoDataFrame(geometry=[aoi], crs=MGA54).to_file(folder / "aoi.gpkg")
        if kind == "not finite":
            values[60:63, 30:140], values[63:66, 30:140], values[66:70, 30:140] = NAN, -np.inf, 1e31
            return opened(write_grid(path, values, **TILED))
        if kind == "mask band":
            return opened(write_grid(path, values.astype("int32"), mask=~hole, **TILED))
        if kind == "alpha band":
            write_grid(path, np.stack([values, np.where(hole, 0, 255)]).astype("uint16"), **TILED)
            with rasterio.open(path, "r+") as file:
                file.colorinterp = [ColorInterp.gray, ColorInterp.alpha]
            return opened(path)
        if kind == "scale and offset":
            stored = np.where(hole, -32768, values).astype("int16")
            return opened(write_grid(path, stored, nodata=-32768, scale=0.1, offset=5.0, **TILED))
        if kind == "float64":
            values = np.where(hole, -99999.9, values.astype("float64"))
            return opened(write_grid(path, values, nodata=-99999.9, **TILED))
        write_grid(path, np.where(hole, -9999.0, values), nodata=-9999.0, south_up=kind == "south up", **TILED)
        if kind == "east to west":
            with rasterio.open(path, "r+") as file:
                file.transform = Affine(-100.0, 0.0, 517_000.0, 0.0, -100.0, 6_000_000.0)
        options: dict[str, Any] = {"polygons": {"aoi": load_area_of_interest(folder / "aoi.gpkg", MGA54)}}
        options |= {"warped": {"reproject_to": MGA55}, "warped classes": {"reproject_to": MGA55, "kind": "categorical"}}
        return opened(path, **options.get(kind, {}))

    @pytest.mark.parametrize(
        "kind",
        ["not finite", "nodata", "mask band", "alpha band", "scale and offset", "float64", "south up", "east to west"]
        + ["polygons", "warped", "warped classes"],
    )
    def test_windows_are_slices_of_what_is_read_by_itself(self, tmp_path, monkeypatch, kind):
        band = self.band(tmp_path, kind)
        with monkeypatch.context() as patch:
            patch.setattr(CHUNKS, "limit", 0)
            whole_band = whole(band)
        assert 0 < np.isnan(whole_band).mean() < 1
        framed = np.pad(whole_band, 100, constant_values=NAN)
        rng = np.random.default_rng(0)
        windows = [(*rng.integers(-60, 160, 2).tolist(), *rng.integers(1, 90, 2).tolist()) for _ in range(30)]
        for turn in range(2):
            for row, col, rows, cols in [*windows, (0, 0, band.grid.rows - 1, band.grid.cols)]:
                values = band.read(row, col, rows, cols)
                np.testing.assert_array_equal(
                    values, framed[100 + row : 100 + row + rows, 100 + col : 100 + col + cols]
                )
                assert values.dtype == np.float32 and values.flags["C_CONTIGUOUS"]
                values[:] = -1  # the caller's own: nothing that is kept changes
            if not turn:  # everything is kept now
                monkeypatch.setattr(handles, "open_dataset", None)

    def test_other_rules_have_pixels_of_their_own(self, tmp_path):
        band = opened(write_grid(tmp_path / "a.tif", ramp(100, 100), **TILED))
        assert band.read(0, 0, 2, 2).tolist() == [[0, 1], [10, 11]]
        np.testing.assert_array_equal(with_undeclared_nodata(band, [11.0]).read(0, 0, 2, 2), [[0, 1], [10, NAN]])
        assert band.read(0, 0, 2, 2).tolist() == [[0, 1], [10, 11]]

    def test_closing_forgets(self, tmp_path):
        band = opened(write_grid(tmp_path / "a.tif", ramp(100, 100), **TILED))
        assert band.read(0, 2, 1, 1) == 2
        write_grid(tmp_path / "a.tif", -ramp(100, 100), **TILED)
        assert band.read(0, 2, 1, 1) == 2
        close_datasets()
        assert band.read(0, 2, 1, 1) == -2

    def test_a_session_begins_with_the_first_read_and_ends_with_the_outermost(self, tmp_path):
        band = opened(write_grid(tmp_path / "a.tif", ramp(100, 100), **TILED))
        for first in (True, False):
            with handles.gdal_session():
                assert not rasterio.env.hasenv()
                with handles.gdal_session():
                    band.read(0, 0, 2, 2)
                assert rasterio.env.hasenv() == first  # what is kept takes none
            assert not rasterio.env.hasenv()

    def test_damage_is_named_by_window_and_hides_nothing_else(self, tmp_path):
        values = np.random.default_rng(0).normal(size=(128, 128)).astype("float32")
        path = write_grid(tmp_path / "a.tif", values, **TILED)
        os.truncate(path, path.stat().st_size - 2000)
        band = opened(path)
        for _ in range(2):
            with pytest.raises(OSError, match=r"layer 'x' \(.*a.tif, band 1\): rows 100 to 109, columns 90 to 94 of"):
                band.read(100, 90, 10, 5)
            np.testing.assert_array_equal(band.read(20, 30, 90, 30), values[20:110, 30:60])


REFERENCE = os.environ.get("GRIDMAE_REFERENCE_DIR", "")


@pytest.mark.skipif(not REFERENCE, reason="GRIDMAE_REFERENCE_DIR names no folder of real grids")
class TestRealGrids:
    @pytest.mark.parametrize(
        ("file", "valid", "low", "high", "mean"),
        [
            ("blanca_colorado_rtp/orig/brtpgrd.gxf", 0.5684, -758.81, 301.31, -417.534),
            ("blanca_colorado_rtp/tif/blanca_rtp_100m.tif", 0.5707, -755.347, 262.504, -417.593),
            ("blanca_colorado_rtp/tif/blanca_rtp_200m.tif", 0.5704, -746.442, 190.225, -417.507),
            ("flinflon_200m/orig/magnetics_rmi.tif", 0.9229, -533.766, 3951.3, -49.1822),
            ("flinflon_200m/orig/fractal_dim.tif", 0.9228, 0.9, 1.43599, 1.13882),
            ("flinflon_200m/orig/vms_lith.tif", 0.9228, 1.0, 5.0, 3.09313),
            ("flinflon_200m/orig/water_bodies.tif", 0.9217, 0.0, 1.0, 0.356262),
            ("bigtujunga_srtm30/orig/srtm_bigtujunga30m_utm11.tif", 1.0, 315.0, 2295.0, 1226.63),
        ],
    )
    def test_published_statistics(self, file, valid, low, high, mean):
        summary = scan(opened(Path(REFERENCE) / "data" / file))
        assert summary.valid_fraction == pytest.approx(valid, abs=6e-5)
        assert (summary.minimum, summary.maximum) == pytest.approx((low, high), rel=1e-5)
        assert summary.mean == pytest.approx(mean, rel=1e-5)
        assert summary.dummies == ()
        assert all("looks like classes" in note for note in summary.suspicious)

    def test_gxf_lies_where_the_geotiff_does(self):
        folder = Path(REFERENCE) / "data" / "blanca_colorado_rtp"
        gxf, tif = opened(folder / "orig" / "brtpgrd.gxf"), opened(folder / "tif" / "blanca_rtp_50m.tif")
        assert crs_agree(gxf.grid, tif.grid.crs)
        np.testing.assert_array_equal(gxf.read(0, 0, 704, 628), whole(tif))


class TestCoordinatesOfTheCrs:
    """Coordinates that the CRS cannot have are refused; half a pixel beyond a pole is a gridline-registered grid."""

    @pytest.mark.parametrize(
        "place, expected",
        [
            (
                dict(left=500_000, top=7_000_000),
                r"latitudes 6999700 to 7000000 .*expected latitudes from -90 to 90; check",
            ),
            (
                dict(left=-40, top=145, resolution=0.1),
                r"latitudes 144\.7 to 145 .*x and y look swapped: write it again",
            ),
            (dict(left=3000, top=10, resolution=0.1), r"longitudes 3000 to 3000\.4 in CRS EPSG:4326"),
        ],
    )
    def test_degrees_that_do_not_exist(self, tmp_path, place, expected):
        path = write_grid(tmp_path / "a.tif", ramp(3, 4), crs="EPSG:4326", **place)
        for target in (None, MGA54):
            with pytest.raises(ValueError, match=expected):
                opened(path, reproject_to=target)

    def test_the_remedy_leads_to_a_run(self, tmp_path):
        path = write_grid(tmp_path / "a.tif", ramp(3, 4), crs="EPSG:4326", left=500_000, top=7_000_000)
        with rasterio.open(path, "r+") as dataset:  # as gdal_edit.py -a_srs and rio edit-info --crs do
            dataset.crs = MGA54
        assert opened(path).grid.crs == MGA54

    @pytest.mark.parametrize("resolution", [0.5, 10.0])
    def test_gridline_registered_global_grid(self, tmp_path, resolution):
        rows, cols = round(180 / resolution) + 1, round(360 / resolution) + 1
        place = dict(left=-180 - resolution / 2, top=90 + resolution / 2, resolution=resolution)
        band = opened(write_grid(tmp_path / "a.tif", ramp(rows, cols), crs="EPSG:4326", **place))
        assert band.grid.top == 90 + resolution / 2 and band.notes == []

    def test_one_pixel_beyond_a_pole(self, tmp_path):
        path = write_grid(tmp_path / "a.tif", ramp(4, 4), crs="EPSG:4326", left=0, top=91, resolution=1)
        with pytest.raises(ValueError, match="spans latitudes 87 to 91"):
            opened(path)

    def test_metres_of_an_equidistant_cylindrical_projection(self, tmp_path):
        path = write_grid(tmp_path / "a.tif", ramp(3, 4), crs="EPSG:4087", left=0, top=20_000_000)
        with pytest.raises(ValueError, match="expected latitudes from -90 to 90"):
            opened(path)

    def test_swapped_eastings_and_northings(self, tmp_path):
        path = write_grid(tmp_path / "a.tif", ramp(3, 4), left=6_000_000, top=500_000)
        with pytest.raises(ValueError, match=r"far from the area of CRS EPSG:28354 .*expected eastings as x"):
            opened(path)

    def test_kilometres(self, tmp_path):
        """Far from the area of the CRS they are refused, within reach of it a warning: there a drone may have flown."""
        path = write_grid(tmp_path / "a.tif", ramp(3, 4), left=500, top=6000, resolution=0.1)
        with pytest.raises(ValueError, match=r"far from the area of CRS EPSG:28354 .*a thousand times .*found km"):
            opened(path)
        path = write_grid(tmp_path / "b.tif", ramp(3, 4), left=400, top=5300, resolution=0.1, crs="EPSG:32633")
        (note,) = opened(path).notes
        assert "look like km" in note
        assert opened(write_grid(tmp_path / "c.tif", ramp(3, 4), left=400_000, top=5.3e6, crs="EPSG:32633")).notes == []

    def test_elsewhere_on_the_planet(self, tmp_path):
        (note,) = opened(write_grid(tmp_path / "a.tif", ramp(3, 4), top=9_800_000 - 10_000_000)).notes
        assert "is far from the area of CRS EPSG:28354 (Australia" in note and "check its CRS" in note

    def test_a_grid_in_the_neighbouring_zone_is_read(self, tmp_path):
        assert opened(write_grid(tmp_path / "a.tif", ramp(3, 4), left=1_200_000)).notes == []

    def test_degrees_under_a_projected_crs_are_warned_about(self, tmp_path):
        path = write_grid(tmp_path / "a.tif", ramp(3, 4), left=140, top=-30, resolution=0.001)
        (note,) = opened(path).notes
        assert "look like degrees, but its CRS EPSG:28354 is projected" in note


GXF = """#TITLE
x
#POINTS
3
#ROWS
2
#PTSEPARATION
100
#RWSEPARATION
100
#XORIGIN
500000
#YORIGIN
7000000
{more}
#DUMMY
-1e32
#MAP_PROJECTION
"GDA94 / MGA zone 54"
"GDA94",6378137,0.0818191910435,0
"Transverse Mercator",0,141,0.9996,500000,10000000
"m",1
#GRID
1 2 3
4 5 -1e32
"""


class TestHeadersThatGdalIgnores:
    def write_ers(self, folder, rotation):
        path = write_grid(folder / "a.ers", ramp(3, 4), driver="ERS", nodata=-99999)
        text = path.read_text()
        assert "= 0:0:0.0" in text
        path.write_text(text.replace("= 0:0:0.0", f"= {rotation}"))
        return path

    @pytest.mark.parametrize("rotation", ["15:0:0.0", "-0:30:0.0", "12.5", "0:0:1.5"])
    def test_rotated_ers(self, tmp_path, rotation):
        path = self.write_ers(tmp_path, rotation)
        for target in (None, MGA55):
            with pytest.raises(ValueError, match=rf"is rotated: a\.ers states Rotation = {rotation}.*resample it"):
                opened(path, reproject_to=target)

    def test_ers_without_rotation_is_the_remedy(self, tmp_path):
        np.testing.assert_array_equal(whole(opened(self.write_ers(tmp_path, "0:0:0.0"))), ramp(3, 4))

    def test_vrt_of_a_rotated_ers(self, tmp_path):
        rasterio.shutil.copy(self.write_ers(tmp_path, "15:0:0.0"), tmp_path / "b.vrt", driver="VRT")
        with pytest.raises(ValueError, match=r"is rotated: a\.ers states"):
            opened(tmp_path / "b.vrt")

    @pytest.mark.parametrize(
        "more, expected",
        [
            ("#ROTATION\n15", r"is rotated: a\.gxf states #ROTATION 15, .*#ROTATION 0"),
            ("#SENSE\n-1", r"#SENSE -1, an order of points that GDAL does not read; .*export it again with sense 1"),
            ("#SENSE\n4", r"#SENSE 4, .*export it again"),
        ],
    )
    def test_gxf_that_is_refused(self, tmp_path, more, expected):
        (tmp_path / "a.gxf").write_text(GXF.format(more=more))
        with pytest.raises(ValueError, match=expected):
            opened(tmp_path / "a.gxf")

    def test_headers_in_archives(self, tmp_path):
        path = self.write_ers(tmp_path, "15:0:0.0")
        with zipfile.ZipFile(tmp_path / "ers.zip", "w") as archive:
            for name in ("a.ers", "a"):
                archive.write(path.parent / name, f"grids/{name}")
        with pytest.raises(ValueError, match=r"is rotated: a\.ers states Rotation = 15:0:0\.0"):
            open_band(Layer("a", f"/vsizip/{tmp_path}/ers.zip/grids/a.ers"))

        def packed(name, more):
            (tmp_path / name).write_bytes(gzip.compress(GXF.format(more=more).encode()))
            return open_band(Layer("b", f"/vsigzip/{tmp_path / name}"))

        with pytest.raises(ValueError, match="states #ROTATION 15"):
            packed("b.gxf.gz", "#ROTATION\n15")
        with pytest.raises(ValueError, match="states #SENSE -1"):
            packed("c.gxf.gz", "#SENSE\n-1")
        np.testing.assert_array_equal(whole(packed("d.gxf.gz", "#TRANSFORM\n2 10")), [[18, 20, NAN], [12, 14, 16]])

    def test_transform_of_a_gxf_is_applied(self, tmp_path):
        (tmp_path / "a.gxf").write_text(GXF.format(more="#ROTATION\n0\n#SENSE\n1\n#TRANSFORM\n2 10"))
        np.testing.assert_array_equal(whole(opened(tmp_path / "a.gxf")), [[18, 20, NAN], [12, 14, 16]])

    def test_gxf_that_was_cut_short(self, tmp_path):
        """GDAL fills what is missing without a word."""
        text = GXF.format(more="#SENSE\n1").rstrip()
        (tmp_path / "a.gxf").write_text(text[: text.rindex(" ")])
        with pytest.raises(ValueError, match=r"incomplete: a\.gxf has 5 values .*, expected 6 \(2 rows of 3\)"):
            opened(tmp_path / "a.gxf")

    def test_gxf_with_rows_from_the_north(self, tmp_path):
        (tmp_path / "a.gxf").write_text(GXF.format(more="#SENSE\n-2"))
        band = opened(tmp_path / "a.gxf")
        assert band.grid.top == 7_000_050
        np.testing.assert_array_equal(whole(band), [[1, 2, 3], [4, 5, NAN]])

    @pytest.mark.parametrize("pixel", [4.6e-310, NAN, np.inf])
    def test_memory_in_place_of_a_geotransform(self, tmp_path, pixel):
        path = tmp_path / "a.vrt"
        write_grid(tmp_path / "a.tif", ramp(3, 4))
        rasterio.shutil.copy(tmp_path / "a.tif", path, driver="VRT")
        text = path.read_text()
        before, after = text.split("<GeoTransform>")[0], text.split("</GeoTransform>")[1]
        numbers = f"{pixel}, {pixel}, 0, {pixel}, 0, {pixel}"
        path.write_text(f"{before}<GeoTransform>{numbers}</GeoTransform>{after}")
        with pytest.raises(ValueError, match="has no geotransform, expected pixels with a place on the ground"):
            opened(path)

    @pytest.mark.parametrize("driver", ["GS7BG", "GSBG", "GSAG"])
    @pytest.mark.parametrize("dialect", ["WKT1_ESRI", "WKT2_2018"])
    @pytest.mark.filterwarnings("ignore:'morph_to_esri_dialect':UserWarning")
    def test_prj_beside_a_surfer_grid(self, tmp_path, driver, dialect):
        write_grid(tmp_path / "b.tif", ramp(3, 4))
        rasterio.shutil.copy(tmp_path / "b.tif", tmp_path / "a.grd", driver=driver)
        (tmp_path / "a.grd.aux.xml").unlink(missing_ok=True)
        with pytest.raises(ValueError, match=r"has no CRS, .*or put a \.prj beside"):
            opened(tmp_path / "a.grd")
        (tmp_path / "a.prj").write_text(MGA54.to_wkt(dialect))
        assert crs_agree(opened(tmp_path / "a.grd").grid, MGA54)
        assert opened(tmp_path / "a.grd", reproject_to=MGA55).warped
