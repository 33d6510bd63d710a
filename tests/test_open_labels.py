"""Labels as they lie: class maps, values and vectors, on target pixels; what is refused, and how."""

import os
import pickle
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import geopandas
import numpy as np
import pytest
import rasterio
import shapely
from rasterio.crs import CRS

from datasets.labels.open_labels import TargetGrid, open_labels
from datasets.labels.points import open_points
from tests.rasters import write_grid

pytestmark = [
    pytest.mark.filterwarnings("ignore::PendingDeprecationWarning:rasterio"),
    pytest.mark.filterwarnings("ignore:'crs' was not provided:UserWarning"),
]

MGA54 = CRS.from_epsg(28354)
NAN = np.nan
REFERENCE = os.environ.get("GRIDMAE_REFERENCE_DIR", "")


def grid_of(rows, cols, *, resolution=100.0, left=500_000.0, top=6_000_000.0, crs=MGA54):
    return TargetGrid(crs=crs, left=left, top=top, resolution=resolution, rows=rows, cols=cols)


def whole(labels):
    return labels.read(0, 0, labels.grid.rows, labels.grid.cols)


def write_features(path, shapes, crs="EPSG:28354", **columns):
    geopandas.GeoDataFrame(columns, geometry=list(shapes), crs=crs).to_file(path)
    return path


def patches(seed=0, rows=30, cols=40, kinds=4):
    """(rows, cols) uint8 of codes 10, 20, ... in 3 x 3 squares, 0 = nodata in some."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, kinds + 1, (-(-rows // 3), -(-cols // 3)))
    return (10 * np.kron(coarse, np.ones((3, 3))))[:rows, :cols].astype(np.uint8)


class TestClassRasters:
    def test_codes_are_numbered_in_order_and_nodata_is_unlabelled(self, tmp_path):
        path = write_grid(tmp_path / "a.tif", np.array([[7, 3, 3], [0, 250, 7]], np.uint8), nodata=0)
        labels = open_labels(path, kind="classes", grid=grid_of(2, 3))
        assert whole(labels).tolist() == [[1, 0, 0], [-1, 2, 1]] and whole(labels).dtype == np.int16
        assert labels.classes.codes == (3, 7, 250) and labels.classes.counts == (2, 2, 1)
        assert labels.classes.names == ("3", "7", "250") and labels.kind == "classes"

    def test_whatever_the_type_and_orientation(self, tmp_path):
        values = np.array([[7, 3, 3], [-9999, 25000, 7]])
        for number, (dtype, south_up) in enumerate(
            [("int16", True), ("int32", False), ("float32", True), ("float64", False)]
        ):
            path = write_grid(tmp_path / f"{number}.tif", values.astype(dtype), nodata=-9999, south_up=south_up)
            labels = open_labels(path, kind="classes", grid=grid_of(2, 3))
            assert whole(labels).tolist() == [[1, 0, 0], [-1, 2, 1]] and labels.classes.codes == (3, 7, 25000)

    def test_nan_a_mask_and_the_value_given_are_unlabelled(self, tmp_path):
        path = write_grid(tmp_path / "a.tif", np.array([[1, NAN, 2], [9, 1, 2]], np.float32))
        assert whole(open_labels(path, kind="classes", grid=grid_of(2, 3), nodata=9)).tolist() == [
            [0, -1, 1],
            [-1, 0, 1],
        ]
        mask = np.array([[True, True, False], [True, False, True]])
        path = write_grid(tmp_path / "b.tif", np.array([[1, 2, 2], [2, 5, 1]], np.uint8), mask=mask)
        assert whole(open_labels(path, kind="classes", grid=grid_of(2, 3))).tolist() == [[0, 1, -1], [1, -1, 0]]

    def test_an_undeclared_dummy_is_recognised_and_said(self, tmp_path, caplog):
        path = write_grid(tmp_path / "a.tif", np.array([[1, 2, 3], [-9999, 1, 2]], np.int16))
        labels = open_labels(path, kind="classes", grid=grid_of(2, 3))
        assert labels.classes.codes == (1, 2, 3) and whole(labels)[1, 0] == -1
        assert "-9999 is not declared as nodata" in caplog.text

    def test_coarser_labels_are_repeated(self, tmp_path):
        path = write_grid(tmp_path / "a.tif", np.array([[1, 2], [0, 3]], np.uint8), nodata=0, resolution=200.0)
        labels = open_labels(path, kind="classes", grid=grid_of(4, 4))
        expected = np.kron([[0, 1], [-1, 2]], np.ones((2, 2)))
        assert np.array_equal(whole(labels), expected) and labels.classes.counts == (4, 4, 4)

    def test_finer_labels_give_the_commonest_class_of_those_labelled(self, tmp_path):
        values = np.array([[1, 1, 0, 0], [2, 1, 0, 3], [0, 0, 2, 2], [0, 0, 2, 3]], np.uint8)
        path = write_grid(tmp_path / "a.tif", values, nodata=0)
        labels = open_labels(path, kind="classes", grid=grid_of(2, 2, resolution=200.0))
        assert whole(labels).tolist() == [[0, 2], [-1, 1]]

    def test_a_class_that_wins_nowhere_is_none(self, tmp_path):
        path = write_grid(tmp_path / "a.tif", np.array([[1, 1, 3, 3], [1, 2, 3, 2]], np.uint8))
        labels = open_labels(path, kind="classes", grid=grid_of(1, 2, resolution=200.0))
        assert labels.classes.codes == (1, 3) and whole(labels).tolist() == [[0, 1]]

    def test_very_fine_labels(self, tmp_path):
        values = np.full((600, 600), 1, np.uint8)
        values[:, 310:] = 2
        path = write_grid(tmp_path / "a.tif", values, resolution=1.0)
        labels = open_labels(path, kind="classes", grid=grid_of(2, 2, resolution=300.0))
        assert whole(labels).tolist() == [[0, 1], [0, 1]]

    def test_what_lies_under_nodata_changes_nothing(self, tmp_path):
        values = patches()
        rng = np.random.default_rng(1)
        mask = values > 0
        read = []
        for number, under in enumerate((np.zeros_like(values), 10 * rng.integers(1, 5, values.shape))):
            path = write_grid(tmp_path / f"{number}.tif", np.where(mask, values, under).astype(np.uint8), mask=mask)
            read.append(
                [
                    whole(open_labels(path, kind="classes", grid=grid_of(20, 20, resolution=resolution)))
                    for resolution in (50.0, 100.0, 230.0)
                ]
            )
        for one, other in zip(*read, strict=True):
            assert np.array_equal(one, other) and (one == -1).any()

    @pytest.mark.parametrize("resolution", [60.0, 100.0, 250.0])
    def test_a_window_is_a_slice_of_the_whole_and_counts_are_those_of_the_whole(self, tmp_path, resolution):
        path = write_grid(tmp_path / "a.tif", patches(rows=90, cols=120), nodata=0)
        labels = open_labels(path, kind="classes", grid=grid_of(170, 200, resolution=resolution, left=499_000.0))
        full = whole(labels)
        padded = np.pad(full, 40, constant_values=-1)
        rng = np.random.default_rng(0)
        for _ in range(8):
            row, col, rows, cols = *rng.integers(-30, 150, 2), *rng.integers(1, 40, 2)
            expected = padded[row + 40 : row + 40 + rows, col + 40 : col + 40 + cols]
            assert np.array_equal(labels.read(row, col, rows, cols)[: expected.shape[0], : expected.shape[1]], expected)
        assert (labels.read(-300, 0, 20, 20) == -1).all()
        for cell in (1, 7, 64, 1000):
            counts = labels.count(cell)
            assert counts.shape == (-(-170 // cell), -(-200 // cell), 4)
            part = full[:cell, cell : 2 * cell]
            if part.size:
                assert counts[0, 1].tolist() == np.bincount(part[part >= 0], minlength=4).tolist()
            assert counts.sum(axis=(0, 1)).tolist() == np.bincount(full[full >= 0], minlength=4).tolist()
        assert labels.classes.counts == tuple(np.bincount(full[full >= 0]))

    def test_another_crs(self, tmp_path):
        values = np.kron([[1, 2], [3, 4]], np.ones((20, 20))).astype(np.uint8)
        path = write_grid(tmp_path / "a.tif", values, crs="EPSG:28355", left=50_000.0, top=6_000_000.0)
        x, y = rasterio.warp.transform("EPSG:28355", "EPSG:28354", [52_000.0], [5_998_000.0])  # where the four meet
        labels = open_labels(path, kind="classes", grid=grid_of(10, 10, left=x[0] - 500, top=y[0] + 500))
        found = whole(labels)
        assert [found[2, 2], found[2, 7], found[7, 2], found[7, 7]] == [0, 1, 2, 3]

    def test_a_turned_grid(self, tmp_path):
        values = np.repeat(np.array([[1], [2]], np.uint8), 10, axis=0).repeat(20, axis=1)
        path = write_grid(tmp_path / "a.tif", values, rotation=90.0)  # the first row runs north
        labels = open_labels(path, kind="classes", grid=grid_of(20, 20, top=6_002_000.0))
        assert labels.classes.counts == (200, 200) and (whole(labels)[:, :10] == 0).all()

    def test_names_and_colours_that_lie_with_the_raster(self, tmp_path):
        path = tmp_path / "a.tif"
        write_grid(path, np.array([[1, 2, 3]], np.uint8), colormap={1: (255, 0, 0), 2: (0, 128, 255)})
        with rasterio.open(path, "r+") as file:
            file.update_tags(1, class_1="shale", class_2="basalt")
        table = open_labels(path, kind="classes", grid=grid_of(1, 3)).classes
        assert table.names == ("shale", "basalt", "3") and table.colours[:2] == ("#ff0000", "#0080ff")
        (tmp_path / "a.tif.aux.xml").write_text(
            """<PAMDataset><PAMRasterBand band="1"><CategoryNames><Category/><Category>one</Category>
            <Category>two</Category><Category>three</Category></CategoryNames></PAMRasterBand></PAMDataset>"""
        )
        assert open_labels(path, kind="classes", grid=grid_of(1, 3)).classes.names == ("one", "two", "three")

    def test_an_attribute_table(self, tmp_path):
        path = write_grid(tmp_path / "a.tif", np.array([[4, 900]], np.uint16))
        columns = [("OID", 0, 0), ("VALUE", 0, 0), ("ROCK", 2, 2), ("Red", 0, 6), ("Green", 0, 7), ("Blue", 0, 8)]
        fields = "".join(
            f'<FieldDefn index="{k}"><Name>{name}</Name><Type>{kind}</Type><Usage>{use}</Usage></FieldDefn>'
            for k, (name, kind, use) in enumerate(columns)
        )
        rows = "".join(
            f'<Row index="{k}">' + "".join(f"<F>{cell}</F>" for cell in cells) + "</Row>"
            for k, cells in enumerate(
                [(0, 4, "schist", 1, 2, 3), (1, 900, "granite", 255, 0, 16), (2, 7.5, "x", 0, 0, 0)]
            )
        )
        (tmp_path / "a.tif.aux.xml").write_text(
            f'<PAMDataset><PAMRasterBand band="1"><GDALRasterAttributeTable tableType="thematic">{fields}{rows}'
            "</GDALRasterAttributeTable></PAMRasterBand></PAMDataset>"
        )
        table = open_labels(path, kind="classes", grid=grid_of(1, 2)).classes
        assert table.names == ("schist", "granite") and table.colours == ("#010203", "#ff0010")

    def test_a_broken_sidecar_is_said(self, tmp_path, caplog):
        path = write_grid(tmp_path / "a.tif", np.array([[4, 9]], np.uint16))
        (tmp_path / "a.tif.aux.xml").write_text("<PAMDataset>")
        assert open_labels(path, kind="classes", grid=grid_of(1, 2)).classes.names == ("4", "9")
        assert "names of classes in it are not used" in caplog.text

    def test_colours_differ(self, tmp_path):
        path = write_grid(tmp_path / "a.tif", np.arange(100, dtype=np.uint8)[None])
        table = open_labels(path, kind="classes", grid=grid_of(1, 100)).classes
        assert len(set(table.colours)) == 100 and all(len(colour) == 7 for colour in table.colours)

    def test_the_mapping_of_a_trained_model(self, tmp_path):
        path = write_grid(tmp_path / "a.tif", np.array([[3, 7, 3]], np.uint8))
        labels = open_labels(path, kind="classes", grid=grid_of(1, 3), class_codes=(7, 5, 3))
        assert whole(labels).tolist() == [[2, 0, 2]]
        assert labels.classes.codes == (7, 5, 3) and labels.classes.counts == (1, 0, 2)
        only = write_grid(tmp_path / "b.tif", np.array([[3, 3, 3]], np.uint8))
        assert whole(open_labels(only, kind="classes", grid=grid_of(1, 3), class_codes=[3, 7])).tolist() == [[0, 0, 0]]

    def test_it_is_read_alike_by_threads_and_after_pickling(self, tmp_path):
        path = write_grid(tmp_path / "a.tif", patches(), nodata=0)
        labels = open_labels(path, kind="classes", grid=grid_of(30, 40))
        full = whole(labels)
        with ThreadPoolExecutor(4) as pool:
            for read in pool.map(lambda _: whole(pickle.loads(pickle.dumps(labels))), range(8)):
                assert np.array_equal(read, full)


class TestValues:
    def test_equal_pixels_are_read_as_they_are(self, tmp_path):
        values = np.array([[1.5, -2.0, NAN], [NAN, 4.0, 1e31]], np.float32)
        path = write_grid(tmp_path / "a.tif", values)
        labels = open_labels(path, kind="values", grid=grid_of(2, 3))
        assert np.array_equal(whole(labels), [[1.5, -2, NAN], [NAN, 4, NAN]], equal_nan=True)
        assert labels.classes is None and labels.count(2)[..., 0].tolist() == [[3, 0]]
        assert np.isnan(labels.read(-1, -1, 2, 2)).tolist() == [[True, True], [True, False]]

    def test_finer_values_are_averaged_over_the_labelled(self, tmp_path):
        values = np.array([[1, 2, -99, -99], [3, -99, -99, -99]], np.float32)
        path = write_grid(tmp_path / "a.tif", values, nodata=-99)
        read = whole(open_labels(path, kind="values", grid=grid_of(1, 2, resolution=200.0)))
        assert np.array_equal(read, [[2, NAN]], equal_nan=True)

    def test_coarser_values_are_interpolated_and_nodata_leaks_nowhere(self, tmp_path):
        plane = 100.0 + 10.0 * np.arange(6)[:, None] + np.arange(6)[None, :]
        mask = np.ones((6, 6), bool)
        mask[2:4, 2:4] = False
        read = []
        for number, under in enumerate((0.0, 1e6)):
            path = write_grid(tmp_path / f"{number}.tif", np.where(mask, plane, under).astype(np.float32), mask=mask)
            read.append(whole(open_labels(path, kind="values", grid=grid_of(12, 12, resolution=50.0))))
        assert np.array_equal(*read, equal_nan=True) and np.isnan(read[0][4:8, 4:8]).all()
        row, col = np.mgrid[:12, :12] / 2 - 0.25
        away = (np.maximum(abs(row - 2.5), abs(col - 2.5)) > 1.6) & (abs(row - 2.5) < 2.5) & (abs(col - 2.5) < 2.5)
        assert np.allclose(read[0][away], (100 + 10 * row + col)[away], atol=1e-4)

    def test_scale_offset_and_unit(self, tmp_path):
        path = write_grid(tmp_path / "a.tif", np.array([[10, 20]], np.int16), scale=0.5, offset=1.0)
        with rasterio.open(path, "r+") as file:
            file.units = ("ppm",)
        labels = open_labels(path, kind="values", grid=grid_of(1, 2))
        assert whole(labels).tolist() == [[6.0, 11.0]] and labels.units == "ppm"

    def test_an_undeclared_dummy_is_recognised(self, tmp_path, caplog):
        path = write_grid(tmp_path / "a.tif", np.array([[1.0, 2.0, -99999.0]], np.float32))
        labels = open_labels(path, kind="values", grid=grid_of(1, 3))
        assert np.array_equal(whole(labels), [[1, 2, NAN]], equal_nan=True)
        assert "taken for unlabelled" in caplog.text


def box(left, bottom, right, top):
    """A rectangle in pixels of 100 m right and down of the corner."""
    return shapely.box(500_000 + 100 * left, 6_000_000 - 100 * top, 500_000 + 100 * right, 6_000_000 - 100 * bottom)


def point(x, y):
    return shapely.Point(500_000 + 100 * x, 6_000_000 - 100 * y)


class TestVectors:
    def test_text_becomes_classes_sorted_by_name_and_later_features_cover_earlier_ones(self, tmp_path):
        shapes = [box(0, 0, 3, 2), box(1, 0, 2, 1), box(2, 0, 3, 1)]
        path = write_features(tmp_path / "a.gpkg", shapes, rock=["schist", "basalt", None])
        labels = open_labels(path, kind="classes", grid=grid_of(3, 4))
        assert labels.classes.codes == ("basalt", "schist") and labels.classes.counts == (1, 5)
        assert whole(labels).tolist() == [[1, 0, 1, -1], [1, 1, 1, -1], [-1, -1, -1, -1]]

    @pytest.mark.parametrize("name", ["a.gpkg", "a.geojson", "a.shp"])
    def test_whole_numbers_in_any_format(self, tmp_path, name):
        path = tmp_path / name
        shapes = geopandas.GeoDataFrame(
            {"code": [20, 5], "other": ["x", "y"]}, geometry=[box(0, 0, 1, 1), box(1, 0, 2, 1)], crs="EPSG:28354"
        )
        shapes.to_crs(4326 if name.endswith("json") else 28354).to_file(path)
        labels = open_labels(path, kind="classes", grid=grid_of(1, 2), column="code")
        assert labels.classes.codes == (5, 20) and whole(labels).tolist() == [[1, 0]]

    def test_points_in_one_pixel_count_together(self, tmp_path, caplog):
        """Samples in the first pixel, after an area that they overwrite, and one sample elsewhere."""
        area = shapely.box(*point(0, 1).coords[0], *point(3, 0).coords[0])
        places = [area, point(0.2, 0.3), point(0.9, 0.1), point(0.5, 0.5), point(1.5, 1.5)]
        path = write_features(tmp_path / "a.gpkg", places, code=[9, 7, 5, 7, 5], gold=[1.0, 2.0, 4.0, 9.0, np.nan])
        values = open_labels(path, kind="values", column="gold", grid=grid_of(2, 3))
        np.testing.assert_array_equal(whole(values), [[5, 1, 1], [NAN, NAN, NAN]])
        assert "points of several classes" not in caplog.text
        classes = open_labels(path, kind="classes", column="code", grid=grid_of(2, 3))
        assert classes.classes.codes == (5, 7, 9) and whole(classes).tolist() == [[1, 2, 2], [-1, 0, -1]]
        assert "1 of 2 target pixels with points hold points of several classes" in caplog.text

    def test_of_classes_equally_common_the_last_is_taken(self, tmp_path):
        places = [point(0.2, 0.3), point(0.9, 0.1), point(2.5, 0.5)]
        path = write_features(tmp_path / "a.gpkg", places, code=[7, 5, 7])
        assert whole(open_labels(path, kind="classes", grid=grid_of(1, 3))).tolist() == [[0, -1, 1]]

    def test_points_burn_their_pixel_lines_their_cells(self, tmp_path):
        line = shapely.LineString([point(0.5, 0.2), point(2.5, 2.2)])
        path = write_features(tmp_path / "a.gpkg", [line, point(0.1, 2.9)], code=[1, 2])
        labels = open_labels(path, kind="classes", grid=grid_of(3, 4))
        assert whole(labels).tolist() == [[0, 0, -1, -1], [-1, 0, 0, -1], [1, -1, 0, -1]]

    def test_a_window_is_a_slice_of_the_whole(self, tmp_path):
        rng = np.random.default_rng(3)
        shapes = [
            point(*xy).buffer(rng.uniform(100, 1500), quad_segs=rng.integers(1, 90))
            for xy in rng.uniform(-5, 65, (40, 2))
        ]
        shapes += [shapely.LineString([point(*a), point(*b)]) for a, b in rng.uniform(-5, 65, (20, 2, 2))]
        shapes += [point(*xy) for xy in rng.uniform(0, 60, (20, 2))]
        order = rng.permutation(len(shapes))
        path = write_features(tmp_path / "a.gpkg", [shapes[k] for k in order], code=rng.integers(0, 9, len(shapes)))
        labels = open_labels(path, kind="classes", grid=grid_of(60, 50))
        full = whole(labels)
        for _ in range(20):
            row, col, rows, cols = *rng.integers(0, 40, 2), *rng.integers(1, 20, 2)
            expected = full[row : row + rows, col : col + cols]
            assert np.array_equal(labels.read(row, col, rows, cols)[: expected.shape[0], : expected.shape[1]], expected)
        assert labels.classes.counts == tuple(np.bincount(full[full >= 0])) and (full == -1).any()
        assert np.array_equal(whole(pickle.loads(pickle.dumps(labels))), full)

    def test_values(self, tmp_path, caplog):
        path = write_features(
            tmp_path / "a.gpkg", [box(0, 0, 1, 1), box(1, 0, 2, 1), box(2, 0, 3, 1)], grade=[0.5, NAN, 2.5]
        )
        labels = open_labels(path, kind="values", grid=grid_of(1, 3))
        assert np.array_equal(whole(labels), [[0.5, NAN, 2.5]], equal_nan=True)
        assert "1 of 3 features have no value" in caplog.text

    def test_broken_polygons_collections_and_holes(self, tmp_path):
        bow = shapely.Polygon([(500_000, 6_000_000), (500_400, 5_999_600), (500_400, 6_000_000), (500_000, 5_999_600)])
        ring = shapely.difference(box(4, 0, 7, 3), box(5, 1, 6, 2))
        path = write_features(
            tmp_path / "a.gpkg", [bow, shapely.GeometryCollection([ring, point(9.5, 0.5)])], code=[1, 2]
        )
        read = whole(open_labels(path, kind="classes", grid=grid_of(4, 10)))
        assert read[:, 4:].tolist() == [[1, 1, 1, -1, -1, 1], [1, -1, 1, -1, -1, -1], [1, 1, 1, -1, -1, -1], [-1] * 6]
        assert (read[1:3, 0] == 0).all() and (read[1:3, 3] == 0).all() and read[0, 1] == -1

    def test_another_crs_with_edges_that_bend(self, tmp_path):
        """A rectangle 400 km wide in degrees: its edge along a parallel bows by kilometres in the grid's CRS."""
        wide = geopandas.GeoSeries([shapely.box(139.0, -37.0, 143.0, -36.0)], crs=4326)
        path = write_features(
            tmp_path / "a.gpkg", [wide[0], shapely.box(139.0, -36.0, 143.0, -35.0)], crs="EPSG:4326", code=[1, 2]
        )
        x, y = rasterio.warp.transform("EPSG:4326", MGA54, [139.5], [-36.0])  # on the edge, between its ends
        labels = open_labels(
            path, kind="classes", grid=grid_of(2, 1, resolution=500.0, left=x[0] - 250, top=y[0] + 500)
        )
        assert whole(labels).tolist() == [[1], [0]]

    def test_what_the_projection_cannot_hold_is_left_out(self, tmp_path):
        world = shapely.box(-180, -90, 180, 90)
        path = write_features(
            tmp_path / "a.gpkg",
            [world, shapely.Point(-60, 40), shapely.box(141, -36, 141.001, -35.99)],
            crs="EPSG:4326",
            code=[1, 2, 3],
        )
        x, y = rasterio.warp.transform("EPSG:4326", MGA54, [141.0], [-36.0])
        labels = open_labels(path, kind="classes", grid=grid_of(4, 4, left=x[0], top=y[0] + 400, resolution=50.0))
        assert labels.classes.codes == (1, 3)

    def test_a_table_with_wkt(self, tmp_path):
        path = tmp_path / "a.csv"
        path.write_text(f'code,polygon\n4,"{box(0, 0, 1, 1).wkt}"\n9,"{box(1, 0, 2, 1).wkt}"\n', encoding="utf-8")
        assert whole(open_labels(path, kind="classes", grid=grid_of(1, 3))).tolist() == [[0, 1, -1]]
        degrees = geopandas.GeoSeries([box(0, 0, 1, 1), box(1, 0, 2, 1)], crs=28354).to_crs(4326)
        path.write_text("code;polygon\n" + "".join(f"{k};{shape.wkt}\n" for k, shape in enumerate(degrees)))
        labels = open_labels(path, kind="classes", grid=grid_of(1, 3), label_crs="EPSG:4326")
        assert whole(labels).tolist() == [[0, 1, -1]]

    def test_a_table_of_points(self, tmp_path):
        path = tmp_path / "a.csv"
        path.write_text("Easting,Northing,au\n500050,5999950,0.25\n500150,5999950,\n500150,5999850,4\n")
        read = whole(open_labels(path, kind="values", grid=grid_of(2, 2)))
        assert np.array_equal(read, [[0.25, NAN], [NAN, 4]], equal_nan=True)

    def test_the_mapping_of_a_trained_model(self, tmp_path):
        path = write_features(tmp_path / "a.gpkg", [box(0, 0, 1, 1), box(9, 9, 10, 10)], rock=["b", "new"])
        labels = open_labels(path, kind="classes", grid=grid_of(2, 2), class_codes=("c", "b"))
        assert whole(labels).tolist() == [[1, -1], [-1, -1]]  # the unknown rock is not on the grid
        with pytest.raises(ValueError, match=r"not trained on: 'new' \(1 times\); expected 'c', 'b'"):
            open_labels(path, kind="classes", grid=grid_of(20, 20), class_codes=("c", "b"))


class TestClassTables:
    def make(self, tmp_path, text, values=((1, 2),)):
        (tmp_path / "classes.csv").write_text(text, encoding="utf-8")
        path = write_grid(tmp_path / "a.tif", np.array(values, np.uint8))
        return open_labels(path, kind="classes", grid=grid_of(1, 2), classes_csv=tmp_path / "classes.csv").classes

    def test_it_names_and_colours(self, tmp_path, caplog):
        table = self.make(tmp_path, "\ufeffCode,density,Name,color\n2,2.7,basalt,#0A0B0C\n1,2.6,schist,\n7,3,gabbro,\n")
        assert table.names == ("schist", "basalt") and table.colours[1] == "#0a0b0c"
        assert "code(s) 7 do not occur" in caplog.text

    def test_text_codes(self, tmp_path):
        (tmp_path / "c.csv").write_text("code,name\nAb,basalt\n12,twelve\n")
        path = write_features(tmp_path / "a.gpkg", [box(0, 0, 1, 1), box(1, 0, 2, 1)], unit=["Ab", "12"])
        labels = open_labels(path, kind="classes", grid=grid_of(1, 2), classes_csv=tmp_path / "c.csv")
        assert labels.classes.codes == ("12", "Ab") and labels.classes.names == ("twelve", "basalt")

    def test_what_is_refused(self, tmp_path):
        with pytest.raises(ValueError, match=r"lacks the column\(s\) name; it has code, title; expected code"):
            self.make(tmp_path, "code,title\n1,a\n")
        with pytest.raises(ValueError, match=r"does not name the code\(s\) 2 of the labels; add a row"):
            self.make(tmp_path, "code,name\n1,a\n")
        with pytest.raises(ValueError, match=r"row 3: code 1 is there twice"):
            self.make(tmp_path, "code,name\n1,a\n1.0,b\n2,c\n")
        with pytest.raises(ValueError, match=r"row 2: colour 'red', expected '#rrggbb'"):
            self.make(tmp_path, "code,name,colour\n1,a,red\n2,b,\n")
        with pytest.raises(ValueError, match=r"row 3: no code"):
            self.make(tmp_path, "code,name\n1,a\n,b\n2,c\n")
        path = tmp_path / "a.tif"
        with pytest.raises(FileNotFoundError, match=r"none.csv: no such file; --label_classes takes a CSV"):
            open_labels(path, kind="classes", grid=grid_of(1, 2), classes_csv=tmp_path / "none.csv")
        (tmp_path / "classes.csv").write_bytes(b"code,name\n1,\xff\xfe\n")
        with pytest.raises(ValueError, match="cannot be read as comma-separated UTF-8"):
            open_labels(path, kind="classes", grid=grid_of(1, 2), classes_csv=tmp_path / "classes.csv")


class TestRoundABody:
    """Labels from 0 to 360 degrees on ground from -180 to 180."""

    def ground(self):
        return grid_of(18, 36, resolution=10.0, left=-180.0, top=90.0, crs=CRS.from_epsg(4326))

    @pytest.mark.parametrize("kind", ["classes", "values"])
    def test_rasters(self, tmp_path, kind):
        here = np.arange(18 * 36).reshape(18, 36) % 7 + 1
        path = write_grid(
            tmp_path / "a.tif",
            np.roll(here, 18, axis=1).astype(np.uint8),
            resolution=10.0,
            left=0.0,
            top=90.0,
            crs="EPSG:4326",
        )
        found = whole(open_labels(path, kind=kind, grid=self.ground()))
        assert np.array_equal(found, here - (kind == "classes"))

    def test_polygons_and_points(self, tmp_path):
        shapes = [shapely.box(170, 0, 200, 20), shapely.box(300, 40, 310, 50)]
        path = write_features(tmp_path / "a.gpkg", shapes, crs="EPSG:4326", unit=["a", "b"])
        found = whole(open_labels(path, kind="classes", grid=self.ground()))
        assert (found[7:9, :2] == 0).all() and (found[7:9, 35] == 0).all()
        assert found[4, 12] == 1 and (found >= 0).sum() == 7
        table = tmp_path / "a.csv"
        table.write_text("lon,lat\n190,5\n-170,5\n10,5\n")
        assert np.allclose(open_points(table, grid=self.ground()).xy, [[-170, 5], [-170, 5], [10, 5]])


def test_options_that_do_not_apply_are_said(tmp_path, caplog):
    path = write_grid(tmp_path / "a.tif", np.array([[1, 2]], np.uint8))
    open_labels(path, kind="classes", grid=grid_of(1, 2), column="rock", label_crs="EPSG:4326")
    assert "a raster: --label_column, --label_crs is not used" in caplog.text
    path = write_features(tmp_path / "a.gpkg", [box(0, 0, 1, 1), box(1, 0, 2, 1)], code=[1, 2])
    open_labels(path, kind="classes", grid=grid_of(1, 2), band=2, label_crs="EPSG:4326")
    assert "no raster: --label_band is not used" in caplog.text
    assert "says its CRS itself (EPSG:28354): --label_crs is not used" in caplog.text


class TestRefusals:
    def refuse(self, path, match, *, kind="classes", error=ValueError, grid=None, **options):
        with pytest.raises(error, match=match):
            open_labels(path, kind=kind, grid=grid or grid_of(2, 3), **options)

    def test_files(self, tmp_path):
        self.refuse(tmp_path / "none.tif", "none.tif: no such file", error=FileNotFoundError)
        (tmp_path / "broken.gpkg").write_bytes(b"nothing")
        self.refuse(tmp_path / "broken.gpkg", "cannot be read as a raster or as a vector file")
        (tmp_path / "broken.csv").write_text("")
        self.refuse(tmp_path / "broken.csv", "cannot be read as a table")
        (tmp_path / "a.dbf").write_bytes(b"")
        self.refuse(tmp_path / "a.dbf", "cannot be read as a raster or as a vector file")
        path = write_grid(tmp_path / "a.tif", np.ones((2, 3), np.uint8))
        self.refuse(path, "there is no band 2", band=2)
        self.refuse(path, "kind is 'other', expected 'classes' or 'values'", kind="other")

    def test_a_file_that_breaks_off(self, tmp_path):
        values = np.random.default_rng(0).integers(0, 4, (256, 256)).astype(np.uint8)
        path = write_grid(tmp_path / "a.tif", values, tiled=True, blockxsize=64, blockysize=64, compress="deflate")
        path.write_bytes(path.read_bytes()[:9000])
        self.refuse(path, "cannot be (read|opened)", error=(OSError, ValueError), grid=grid_of(256, 256))

    def test_no_crs(self, tmp_path):
        self.refuse(
            write_grid(tmp_path / "a.tif", np.ones((2, 3), np.uint8), crs=None), "has no CRS.*gdal_edit.py -a_srs"
        )
        path = write_features(tmp_path / "a.shp", [box(0, 0, 1, 1), box(1, 0, 2, 1)], crs=None, code=[1, 2])
        self.refuse(path, "has no CRS, expected one; give it by --label_crs")
        labels = open_labels(path, kind="classes", grid=grid_of(1, 2), label_crs="EPSG:28354")
        assert whole(labels).tolist() == [[0, 1]]
        self.refuse(path, "--label_crs 'nowhere' is no CRS", label_crs="nowhere")

    def test_no_common_ground(self, tmp_path):
        far = grid_of(2, 3, left=700_000.0)
        self.refuse(
            write_grid(tmp_path / "a.tif", np.ones((2, 3), np.uint8)),
            "does not overlap the survey: it covers",
            grid=far,
        )
        path = write_features(tmp_path / "a.gpkg", [box(0, 0, 1, 1), box(1, 0, 2, 1)], code=[1, 2])
        self.refuse(path, r"does not overlap the survey: it covers x 500000\.\.500200", grid=far)
        near = grid_of(2, 3, left=500_350.0)
        self.refuse(tmp_path / "a.tif", "no target pixel of the survey is labelled", grid=near)

    def test_nothing_labelled(self, tmp_path):
        path = write_grid(tmp_path / "a.tif", np.full((2, 3), NAN, np.float32))
        for kind in ("classes", "values"):
            self.refuse(path, "no target pixel of the survey is labelled", kind=kind)
        path = write_features(tmp_path / "a.gpkg", [box(0, 0, 1, 1)], code=[NAN])
        for kind in ("classes", "values"):
            self.refuse(path, "no target pixel of the survey is labelled", kind=kind)

    def test_one_class_only(self, tmp_path):
        path = write_grid(tmp_path / "a.tif", np.array([[0, 4, 4]], np.uint8), nodata=0)
        self.refuse(path, r"one class only \(4\) on this ground, expected at least two")

    def test_columns(self, tmp_path):
        path = write_features(tmp_path / "a.gpkg", [box(0, 0, 1, 1)], rock=["a"], age=[1])
        self.refuse(path, "there is no column 'stone'; expected one of: rock, age", column="stone")
        self.refuse(path, "no --label_column is given; expected one of: rock, age")
        self.refuse(
            path, "column 'rock' holds 'a', expected numbers.*--task segmentation", kind="values", column="rock"
        )

    def test_measurements_are_no_classes(self, tmp_path):
        path = write_grid(tmp_path / "a.tif", np.array([[1, 2.5, 3]], np.float32))
        self.refuse(path, "holds 2.5, which is no class code.*--task regression")
        path = write_features(tmp_path / "a.gpkg", [box(0, 0, 1, 1)], grade=[0.5])
        self.refuse(path, "column 'grade' holds 0.5, which is no class code.*--task regression")

    def test_too_many_classes(self, tmp_path):
        path = write_grid(tmp_path / "a.tif", np.arange(300, dtype=np.int32).reshape(10, 30))
        self.refuse(path, "more than 255 different codes.*--task regression", grid=grid_of(10, 30))
        path = write_features(
            tmp_path / "a.gpkg", [point(k, 0) for k in range(300)], name=[f"n{k}" for k in range(300)]
        )
        self.refuse(path, "more than 255 different codes", grid=grid_of(1, 300))

    def test_classes_beyond_those_trained(self, tmp_path):
        path = write_grid(tmp_path / "a.tif", np.array([[1, 2, 9], [9, 1, 2]], np.uint8))
        self.refuse(
            path, r"1 class\(es\) that the model was not trained on: 9 \(2 times\); expected 1, 2", class_codes=(1, 2)
        )

    def test_tables(self, tmp_path):
        path = tmp_path / "a.csv"
        path.write_text("a,b,code\n1,2,3\n")
        self.refuse(path, "no coordinates recognised among the columns a, b, code")
        self.refuse(path, "--y_column c, expected one of the columns: a, b, code", x_column="a", y_column="c")
        path.write_text('polygon,code\n"POLYGON ((0 0, 1",3\n')
        self.refuse(path, "row 2: column 'polygon' holds .*expected well-known text")
        path.write_text("x,y,code\n,,3\n")
        self.refuse(path, "no feature has a geometry")
        path.write_text("x,y,code\n141.2,-36.1,3\n")
        self.refuse(path, "does not overlap the survey.*look like degrees; name its CRS by --label_crs EPSG:4326")


@pytest.mark.skipif(not REFERENCE, reason="GRIDMAE_REFERENCE_DIR does not name the reference data")
def test_flin_flon():
    path = Path(REFERENCE) / "data/flinflon_200m/two_res/200m/label_vms_lith.tif"
    with rasterio.open(path) as file:
        stored, transform, crs = file.read(1), file.transform, file.crs
    grid = TargetGrid(crs, transform.c, transform.f, 200.0, *stored.shape)
    labels = open_labels(path, kind="classes", grid=grid)
    assert labels.classes.codes == (1, 2, 3, 4, 5) and np.array_equal(whole(labels), stored.astype(int) - 1)
    # of its 109932 pixels of class 1, as the original grid has them, 15 are in the column that was dropped
    assert labels.classes.counts == (109917, 14985, 29423, 13359, 124344)
    original = open_labels(path.parents[2] / "orig/vms_lith.tif", kind="classes", grid=grid)  # float32, 0.0008 m off
    assert np.array_equal(whole(original), whole(labels))
