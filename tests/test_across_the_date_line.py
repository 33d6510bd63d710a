"""Layers and labels brought to another CRS across the date line and around a pole: all of their ground, and no more."""

import geopandas
import numpy as np
import pytest
from rasterio.crs import CRS
from shapely.affinity import translate
from shapely.geometry import LineString, Polygon, box

from datasets.ground.area_of_interest import unwrapped
from datasets.ground.grid import Grid
from datasets.ground.planet import planet_of
from datasets.ground.warp import footprint
from datasets.labels.open_labels import TargetGrid, open_labels
from datasets.labels.points import open_points
from datasets.layers.layer import Layer
from datasets.rasters.open_band import open_band
from tests.rasters import write_grid

pytestmark = pytest.mark.filterwarnings("ignore:'crs' was not provided:UserWarning")

DEGREES, PACIFIC, ANTARCTIC = (CRS.from_epsg(code) for code in (4326, 3832, 3031))
GLOBE = TargetGrid(crs=DEGREES, left=-180.0, top=90.0, resolution=1.0, rows=180, cols=360)


def labelled(path, grid, code="x"):
    """(rows, cols) bool: target pixels of a class."""
    labels = open_labels(path, kind="classes", grid=grid)
    return labels.read(0, 0, grid.rows, grid.cols) == labels.classes.codes.index(code)


def features(path, shapes, crs, codes="xyz"):
    shapes = list(shapes)
    geopandas.GeoDataFrame({"code": list(codes[: len(shapes)])}, geometry=shapes, crs=crs).to_file(path)
    return path


@pytest.mark.parametrize("left", [177.5, -182.5])
def test_a_layer_across_the_line_keeps_both_sides(tmp_path, left):
    values = np.broadcast_to(np.arange(100.0, dtype=np.float32), (100, 100))
    path = write_grid(tmp_path / "b.tif", values, resolution=0.05, left=left, top=-15.0, crs="EPSG:4326")
    band = open_band(Layer("b", str(path)), reproject_to=PACIFIC)
    read = band.read(0, 0, band.grid.rows, band.grid.cols)
    assert np.isfinite(read).mean() > 0.99
    assert np.all(np.diff(read[50][np.isfinite(read[50])]) > 0)  # no seam


def test_a_layer_from_0_to_360_around_the_pole_has_no_hole(tmp_path):
    rows, cols = np.mgrid[0:60, 0:720]
    path = write_grid(
        tmp_path / "south.tif", (cols / 2).astype(np.float32), resolution=0.5, left=0.0, top=-60.0, crs="EPSG:4326"
    )
    band = open_band(Layer("south", str(path)), reproject_to=ANTARCTIC)
    grid = band.grid
    x = grid.left + (np.arange(grid.cols) + 0.5) * grid.resolution_x
    y = grid.top - (np.arange(grid.rows) + 0.5) * grid.resolution_y
    inside = np.hypot(*np.meshgrid(x, y)) < 3.2e6  # of some 3.3e6 m at 60 degrees south
    assert np.isfinite(band.read(0, 0, grid.rows, grid.cols)[inside]).all()
    assert rows.shape == (60, 720)


def test_the_window_under_a_block_that_holds_the_pole_has_all_longitudes():
    grid = Grid(ANTARCTIC, -640_000.0, 640_000.0, 10_000.0, 10_000.0, 128, 128)
    frame = Grid(DEGREES, -180.0, 90.0, 0.1, 0.1, 1800, 3600)

    class Frame:
        crs, transform, rows, cols = frame.crs, frame.window_transform(0, 0), frame.rows, frame.cols

    top, left, rows, cols = footprint(Frame, grid, (0, 0, 128, 128))
    assert (left, cols) == (0, 3600) and top + rows == 1800


class TestPolygonsOfAProjectedMap:
    """Brought to longitude and latitude, vertex by vertex."""

    @pytest.mark.parametrize(
        ("grid", "expected"), [(GLOBE, 4), (TargetGrid(DEGREES, 170.0, -10.0, 0.1, 150, 200), 400)]
    )
    def test_across_the_line(self, tmp_path, grid, expected):
        shapes = geopandas.GeoSeries([box(179, -18, 181, -16), box(176, -18, 178, -16)], crs=4326).to_crs(PACIFIC)
        assert labelled(features(tmp_path / "a.gpkg", shapes, PACIFIC), grid).sum() == expected

    def test_around_the_pole(self, tmp_path):
        shapes = [box(-1e6, -1e6, 1e6, 1e6), box(1.5e6, 1.5e6, 2.5e6, 2.5e6)]
        found = labelled(features(tmp_path / "a.gpkg", shapes, ANTARCTIC), GLOBE)
        area = np.cos(np.radians(89.5 - np.arange(180)))[:, None] * 111.2**2  # km2 of a pixel of a degree
        assert (found * area).sum() == pytest.approx(4e6, rel=0.05)  # the map is true to scale at 71 degrees
        assert found[-1].all() and not found[:165].any()


@pytest.mark.parametrize("epsg", [3832, 32701])
@pytest.mark.parametrize("turns", [0, 360])
def test_labels_in_degrees_on_a_survey_across_the_line(tmp_path, epsg, turns):
    middle = geopandas.GeoSeries.from_xy([180], [-17], crs=4326).to_crs(epsg).iloc[0]
    grid = TargetGrid(CRS.from_epsg(epsg), middle.x - 100_000, middle.y + 100_000, 1000.0, 200, 200)
    east = translate(box(-179.95, -17.5, -179.3, -16.5), turns)
    path = features(tmp_path / "a.gpkg", [box(179.2, -17.5, 179.95, -16.5), east], DEGREES)
    west, east = labelled(path, grid), labelled(path, grid, "y")
    assert west.sum() == pytest.approx(east.sum() * 0.75 / 0.65, rel=0.1)
    assert np.argwhere(west)[:, 1].max() < np.argwhere(east)[:, 1].min()


def test_each_point_is_taken_once(tmp_path):
    (tmp_path / "a.csv").write_text("lon,lat\n179.5,-70\n-179.5,-70\n180,-70\n0.5,-80\n359.5,-80\n")
    grid = TargetGrid(ANTARCTIC, -3e6, 3e6, 30_000.0, 200, 200)
    assert len(open_points(str(tmp_path / "a.csv"), grid=grid)) == 5


def test_lines_are_made_whole():
    line = unwrapped(LineString([(179, 0), (-179, 1), (-178, 2)]), planet_of(DEGREES))
    assert list(line.coords) == [(179, 0), (181, 1), (182, 2)]


@pytest.mark.parametrize("crs", ["EPSG:28354", "EPSG:4326"])
def test_spikes_of_polygons_label_nothing_in_any_crs(tmp_path, crs):
    spike = Polygon(
        [(500_000, 5_999_000), (501_000, 5_999_000), (501_000, 6_000_000), (501_900, 6_000_000)]
        + [(501_000, 6_000_000), (500_000, 6_000_000)]
    )
    shapes = geopandas.GeoSeries([spike, box(500_000, 5_998_000, 502_000, 5_999_000)], crs=28354).to_crs(crs)
    grid = TargetGrid(CRS.from_epsg(28354), 500_000.0, 6_000_000.0, 100.0, 20, 20)
    assert labelled(features(tmp_path / "a.gpkg", shapes, crs), grid).sum() == 100


def test_a_layer_that_reaches_far_beyond_a_crs_is_not_made_coarse(tmp_path):
    globe = np.zeros((72, 144), dtype=np.float32)
    path = write_grid(tmp_path / "a.tif", globe, resolution=2.5, left=-180.0, top=90.0, crs="EPSG:4326")
    for crs in (ANTARCTIC, CRS.from_epsg(3857)):
        with pytest.raises(ValueError, match=r"its pixels would be .* instead of some .*; cut it to the survey first"):
            open_band(Layer("a", str(path)), reproject_to=crs)
    assert open_band(Layer("a", str(path)), reproject_to=CRS.from_epsg(8857)).grid.resolution_x < 400_000  # Equal Earth


def test_a_turned_layer_in_degrees_across_the_line_is_read(tmp_path):
    values = np.arange(64.0, dtype=np.float32).reshape(8, 8)
    path = write_grid(tmp_path / "a.tif", values, resolution=0.5, left=178.0, top=-15.0, crs="EPSG:4326", rotation=90.0)
    band = open_band(Layer("a", str(path)), reproject_to=PACIFIC)
    assert np.isfinite(band.read(0, 0, band.grid.rows, band.grid.cols)).mean() > 0.8
