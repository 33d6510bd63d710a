"""Points as labels: which columns hold coordinates, what is outside, which classes there are."""

import os
from pathlib import Path

import geopandas
import numpy as np
import pytest
import rasterio.warp
import shapely
from rasterio.crs import CRS

from datasets.labels.open_labels import TargetGrid
from datasets.labels.points import open_points

pytestmark = pytest.mark.filterwarnings("ignore:'crs' was not provided:UserWarning")

REFERENCE = os.environ.get("GRIDMAE_REFERENCE_DIR", "")
GRID = TargetGrid(CRS.from_epsg(28354), left=500_000.0, top=6_000_000.0, resolution=100.0, rows=20, cols=30)
"""x 500000..503000, y 5998000..6000000."""


def write_table(tmp_path, text):
    (tmp_path / "points.csv").write_text(text, encoding="utf-8")
    return tmp_path / "points.csv"


def write_points(path, xy, *, crs="EPSG:28354", **columns):
    geopandas.GeoDataFrame(columns, geometry=[shapely.Point(*each) for each in xy], crs=crs).to_file(path)
    return path


@pytest.mark.parametrize(
    "header", ["x,y", "Easting,NORTHING", "east,north", "UTM54E,UTM54N", "utm_54h_e,utm_54h_n", "X;Y", "x\ty"]
)
def test_columns_are_recognised(tmp_path, header):
    separator = next(each for each in ",;\t" if each in header)
    path = write_table(tmp_path, f"{header}\n500050{separator}5999950\n501000.5{separator}5999000.25\n")
    points = open_points(path, grid=GRID)
    assert points.xy.tolist() == [[500050, 5999950], [501000.5, 5999000.25]] and points.xy.dtype == np.float64
    assert points.classes is None and points.table is None and points.names is None and len(points) == 2
    assert points.source == str(path)


def test_longitude_and_latitude(tmp_path):
    lon, lat = rasterio.warp.transform(GRID.crs, "EPSG:4326", [501_000.0], [5_999_000.0])
    for header in ("lon,lat", "Longitude,Latitude"):
        points = open_points(write_table(tmp_path, f"{header}\n{lon[0]:.12f},{lat[0]:.12f}\n"), grid=GRID)
        assert np.allclose(points.xy, [[501_000, 5_999_000]], atol=0.01)
    x, y = rasterio.warp.transform(GRID.crs, "EPSG:28355", [501_000.0], [5_999_000.0])
    path = write_table(tmp_path, f"x,y\n{x[0]:.4f},{y[0]:.4f}\n")
    assert np.allclose(open_points(path, grid=GRID, label_crs="EPSG:28355").xy, [[501_000, 5_999_000]], atol=0.01)
    path = write_table(tmp_path, "lon,lat\n501000,5999000\n")  # the names say degrees, the user knows better
    assert np.allclose(open_points(path, grid=GRID, label_crs="EPSG:28354").xy, [[501_000, 5_999_000]])


def test_columns_given(tmp_path):
    path = write_table(tmp_path, "x,y,mx,my\n0,0,500050,5999950\n")
    assert open_points(path, grid=GRID, x_column="mx", y_column="my").xy.tolist() == [[500050, 5999950]]


@pytest.mark.parametrize("name", ["a.gpkg", "a.geojson", "a.shp"])
def test_files_of_any_format_with_names_and_classes(tmp_path, name):
    path = tmp_path / name
    frame = geopandas.GeoDataFrame(
        {"NAME": ["a", "b", "c"], "metal": ["Cu", "Au", "Cu"]},
        geometry=[shapely.Point(500_050 + 100 * k, 5_999_950) for k in range(3)],
        crs=28354,
    )
    frame.to_crs(4326 if name.endswith("json") else 28354).to_file(path)
    points = open_points(path, grid=GRID, column="metal")
    assert points.classes.tolist() == [1, 0, 1] and points.classes.dtype == np.int64
    assert points.table.codes == ("Au", "Cu") and points.table.counts == (1, 2)
    assert points.names.tolist() == ["a", "b", "c"] and np.allclose(points.xy[2], [500_250, 5_999_950], atol=0.01)


def test_those_outside_are_counted_and_duplicates_stay(tmp_path, caplog):
    xy = [(500_000, 6_000_000), (500_000, 6_000_000), (503_000, 5_999_000), (500_000, 5_998_000), (400_000, 5_999_000)]
    points = open_points(
        write_points(tmp_path / "a.gpkg", xy, metal=["a", "b", "c", "c", "c"]), grid=GRID, column="metal"
    )
    assert points.xy.tolist() == [[500_000, 6_000_000]] * 2  # the eastern and southern edges are the next pixels'
    assert points.table.codes == ("a", "b") and "3 of 5 points are outside the survey" in caplog.text
    caplog.clear()
    several = shapely.MultiPoint([(500_050, 5_999_950), (503_050, 5_999_000), (500_050, 5_997_000)])
    degrees = geopandas.GeoSeries([several, shapely.Point(0, 6_000_000)], crs=28354).to_crs(4326)
    degrees.to_file(tmp_path / "b.geojson")
    assert len(open_points(tmp_path / "b.geojson", grid=GRID)) == 1
    assert "3 of 4 points are outside the survey" in caplog.text


def test_points_without_a_class_or_a_place_are_counted(tmp_path, caplog):
    path = write_table(tmp_path, "x,y,kind\n500050,5999950,1\n,,1\n500150,5999950,\n500250,5999950,2\nnan,1,2\n")
    points = open_points(path, grid=GRID, column="kind")
    assert points.classes.tolist() == [0, 1] and points.table.codes == (1, 2)
    assert "2 of 5 features have no geometry" in caplog.text and "1 of 3 features have no 'kind'" in caplog.text


def test_classes_of_a_trained_model_and_a_class_table(tmp_path):
    path = write_table(tmp_path, "x,y,kind\n500050,5999950,7\n")
    (tmp_path / "classes.csv").write_text("code,name,colour\n7,gold,#ffd700\n5,copper,\n")
    points = open_points(path, grid=GRID, column="kind", class_codes=(5, 7), classes_csv=tmp_path / "classes.csv")
    assert points.classes.tolist() == [1] and points.table.names == ("copper", "gold")
    with pytest.raises(ValueError, match=r"not trained on: 7 \(1 times\); expected 5, 6"):
        open_points(path, grid=GRID, column="kind", class_codes=(5, 6))


def test_what_is_refused(tmp_path):
    def refuse(path, match, error=ValueError, **options):
        with pytest.raises(error, match=match):
            open_points(path, grid=GRID, **options)

    refuse(tmp_path / "none.csv", "none.csv: no such file", FileNotFoundError)
    path = write_table(tmp_path, "x,y,kind\n0,0,a\n1,1,b\n")
    refuse(
        path,
        r"does not overlap the survey: it covers x 0\.\.1, y 0\.\.1 in EPSG:28354, expected ground in x 500000",
    )
    refuse(write_table(tmp_path, "x,y\n503000,5999000\n"), "none of 1 points is inside")
    refuse(write_table(tmp_path, "a,b\n1,2\n"), "no coordinates recognised among the columns a, b")
    path = write_table(tmp_path, "x,y,kind\n500050,5999950,a\n")
    refuse(path, "--x_column q, expected one of the columns: x, y, kind", x_column="q", y_column="y")
    refuse(path, "there is no column 'sort'; expected one of: kind", column="sort")
    refuse(path, "one class only.*leave out --label_column", column="kind")
    areas = geopandas.GeoDataFrame(geometry=[shapely.box(500_000, 5_999_000, 501_000, 6_000_000)], crs=28354)
    areas.to_file(tmp_path / "areas.gpkg")
    refuse(tmp_path / "areas.gpkg", "holds Polygon, expected points")
    refuse(write_points(tmp_path / "a.shp", [(500_050, 5_999_950)], crs=None, code=[1]), "has no CRS.*--label_crs")


@pytest.mark.skipif(not REFERENCE, reason="GRIDMAE_REFERENCE_DIR does not name the reference data")
def test_flin_flon():
    folder = Path(REFERENCE) / "data/flinflon_200m"
    with rasterio.open(folder / "two_res/200m/label_vms_lith.tif") as file:
        grid = TargetGrid(file.crs, file.transform.c, file.transform.f, 200.0, *file.shape)
    points = open_points(folder / "orig/vms_cu.csv", grid=grid)
    assert len(points) == 144 and points.classes is None
    assert points.xy[0].tolist() == [640987.96, 6070439.52]
