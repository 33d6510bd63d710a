"""Columns and rasters of labels: doubtful nodata, texts that mean a missing number, dates."""

import datetime

import geopandas
import numpy as np
import pandas
import pytest
import shapely
from rasterio.crs import CRS

from datasets.labels.columns import parse_numbers
from datasets.labels.open_labels import TargetGrid, are_points, open_labels
from tests.rasters import write_grid

pytestmark = pytest.mark.filterwarnings("ignore::PendingDeprecationWarning:rasterio")

MGA54 = CRS.from_epsg(28354)
GRID = TargetGrid(MGA54, left=500_000.0, top=6_000_000.0, resolution=100.0, rows=30, cols=40)
DOUBTFUL = "often a dummy, but other values are near it: taken for data; if it means no data: --label_nodata"


def centre(number):
    row, col = divmod(number, GRID.cols)
    return 500_050.0 + 100 * col, 5_999_950.0 - 100 * row


def write_table(path, values, header="x,y,v"):
    rows = ["{},{},{}\n".format(*centre(number), value) for number, value in enumerate(values)]
    path.write_text(f"{header}\n" + "".join(rows), encoding="utf-8")
    return path


def write_package(path, values):
    points = [shapely.Point(centre(number)) for number in range(len(values))]
    geopandas.GeoDataFrame({"v": values}, geometry=points, crs=MGA54.to_wkt()).to_file(path)
    return path


def values_of(labels):
    read = labels.read(0, 0, GRID.rows, GRID.cols)
    return read[np.isfinite(read)].tolist()


def copper():
    """(1200,) float32, lognormal, 0.1 to 25000; 99 of them -9999."""
    values = np.exp(np.random.default_rng(0).normal(4.0, 2.0, 1200)).clip(0.1, 25_000).astype(np.float32)
    values[0] = 25_000
    values[100:199] = -9999
    return values


class TestDoubtfulNodata:
    def test_in_a_table_of_values(self, tmp_path, caplog):
        path = write_table(tmp_path / "cu.csv", copper().tolist())
        assert values_of(open_labels(path, kind="values", grid=GRID)).count(-9999) == 99
        assert f"labels {path}: column 'v': 99 of 1200 features hold -9999, {DOUBTFUL} -9999" in caplog.text
        assert caplog.text.count("often a dummy") == 1

    def test_in_a_raster_of_values(self, tmp_path, caplog):
        path = write_grid(tmp_path / "cu.tif", copper().reshape(30, 40))
        assert values_of(open_labels(path, kind="values", grid=GRID)).count(-9999) == 99
        assert f": 99 pixels hold -9999, {DOUBTFUL} -9999" in caplog.text and str(path) in caplog.text
        assert caplog.text.count("often a dummy") == 1

    @pytest.mark.parametrize("table", [True, False])
    def test_declared_it_is_unlabelled_without_a_warning(self, tmp_path, caplog, table):
        if table:
            path = write_table(tmp_path / "cu.csv", copper().tolist())
        else:
            path = write_grid(tmp_path / "cu.tif", copper().reshape(30, 40))
        found = values_of(open_labels(path, kind="values", grid=GRID, nodata=-9999))
        assert len(found) == 1101 and min(found) > 0
        assert "often a dummy" not in caplog.text

    @pytest.mark.parametrize("table", [True, False])
    def test_minus_999_among_values_to_1200(self, tmp_path, caplog, table):
        values = np.arange(1200, dtype=np.int16) + 1
        values[:3] = -999
        if table:
            path, counted = write_table(tmp_path / "a.csv", values.tolist()), "3 of 1200 features"
        else:
            path, counted = write_grid(tmp_path / "a.tif", values.reshape(30, 40)), "3 pixels"
        open_labels(path, kind="values", grid=GRID)
        assert f"{counted} hold -999, {DOUBTFUL} -999" in caplog.text
        assert "hold 999," not in caplog.text  # once among 1200 whole numbers: by chance

    @pytest.mark.parametrize("name", ["a.csv", "a.tif", "texts.gpkg"])
    def test_among_class_codes(self, tmp_path, caplog, name):
        codes = [101, 2003, 30012, -9999] * 300
        if name == "a.csv":
            path, counted = write_table(tmp_path / name, codes), "300 of 1200 features"
        elif name == "a.tif":
            path, counted = write_grid(tmp_path / name, np.reshape(codes, (30, 40)).astype(np.int16)), "300 pixels"
        else:
            path, counted = write_package(tmp_path / name, [str(code) for code in codes]), "300 of 1200 features"
        assert len(open_labels(path, kind="classes", grid=GRID).classes) == 4
        assert f"{counted} hold -9999, {DOUBTFUL} -9999" in caplog.text
        caplog.clear()
        assert len(open_labels(path, kind="classes", grid=GRID, nodata=-9999).classes) == 3
        assert "often a dummy" not in caplog.text

    def test_two_classes_are_no_dummies(self, tmp_path, caplog):
        path = write_grid(tmp_path / "a.tif", np.tile(np.array([0, 255], np.uint8), (30, 20)))
        assert open_labels(path, kind="classes", grid=GRID).classes.codes == (0, 255)
        assert "often a dummy" not in caplog.text


class TestMissing:
    @pytest.mark.parametrize("write", [write_table, write_package])
    def test_names_of_classes_are_kept(self, tmp_path, caplog, write):
        suffix = "csv" if write is write_table else "gpkg"
        path = write(tmp_path / f"a.{suffix}", ["None", "NA", "null", "nan", "sericite", "", "None", "sericite"])
        labels = open_labels(path, kind="classes", grid=GRID)
        assert labels.classes.names == ("NA", "None", "nan", "null", "sericite")
        assert labels.classes.counts == (1, 2, 1, 1, 2)
        assert "1 of 8 features have no 'v': not used" in caplog.text
        assert "1 of 7 features hold 'NA': taken for a class; leave these cells empty" in caplog.text
        assert "'None'" not in caplog.text

    @pytest.mark.parametrize("word", ["NA", "nan", "NaN", "null", "NULL", "N/A", "n/a", "None", "#N/A", "<NA>", ""])
    @pytest.mark.parametrize("write", [write_table, write_package])
    def test_numbers_are_missing(self, tmp_path, caplog, write, word):
        suffix = "csv" if write is write_table else "gpkg"
        path = write(tmp_path / f"a.{suffix}", ["1.5", word, "-3", "1e2"])
        assert values_of(open_labels(path, kind="values", grid=GRID)) == [1.5, -3, 100]
        assert "1 of 4 features have no value: not used" in caplog.text

    def test_codes_with_na_stay_whole_numbers(self, tmp_path, caplog):
        path = write_table(tmp_path / "a.csv", [30, "NA", 7, 30, "", -9999])
        labels = open_labels(path, kind="classes", grid=GRID, nodata=-9999)
        assert labels.classes.codes == (7, 30) and labels.classes.counts == (1, 2)
        assert "2 of 6 features have no 'v': not used" in caplog.text

    def test_decimal_commas_with_na(self, tmp_path):
        path = tmp_path / "a.csv"
        rows = ["{};{};{}\n".format(*centre(number), value) for number, value in enumerate(["1,5", "NA", "2,25"])]
        path.write_text("x;y;v\n" + "".join(rows), encoding="utf-8")
        assert values_of(open_labels(path, kind="values", grid=GRID)) == [1.5, 2.25]

    def test_coordinates_and_zones_with_na(self, tmp_path, caplog):
        (x, y), (other_x, other_y) = centre(0), centre(1)
        path = tmp_path / "a.csv"
        path.write_text(f"x,y,zone,v\n{x},{y},54K,1\nNA,null,NA,2\n{other_x},{other_y},NA,3\n", encoding="utf-8")
        assert values_of(open_labels(path, kind="values", grid=GRID, column="v")) == [1, 3]
        assert "1 of 3 features have no geometry: not used" in caplog.text

    def test_zones_are_still_checked(self, tmp_path):
        x, y = centre(0)
        path = tmp_path / "a.csv"
        path.write_text(f"x,y,zone,v\n{x},{y},55K,1\n{x},{y},NA,2\n", encoding="utf-8")
        with pytest.raises(ValueError, match="column 'zone' holds zone 55"):
            open_labels(path, kind="values", grid=GRID, column="v")

    def test_well_known_text_with_na(self, tmp_path):
        (x, y), (other_x, other_y) = centre(0), centre(1)
        path = tmp_path / "a.csv"
        path.write_text(f"wkt,v\nPOINT ({x} {y}),1\nNA,2\nPOINT ({other_x} {other_y}),3\n", encoding="utf-8")
        assert are_points(str(path))
        assert values_of(open_labels(path, kind="values", grid=GRID)) == [1, 3]

    def test_the_error_names_what_is_no_number(self, tmp_path):
        path = write_table(tmp_path / "a.csv", [1, "NA", "<5", 2])
        with pytest.raises(ValueError, match=r"row 4: column 'v' holds '<5', expected numbers"):
            open_labels(path, kind="values", grid=GRID)

    def test_truth_values_with_empty_cells_stay_names(self, tmp_path):
        path = write_table(tmp_path / "a.csv", ["True", "False", "", "True"])
        assert open_labels(path, kind="classes", grid=GRID).classes.codes == ("False", "True")


class TestDates:
    def test_a_column_of_dates_is_no_target(self, tmp_path):
        days = pandas.to_datetime(["2020-01-01", "2021-06-30", None])
        path = write_package(tmp_path / "a.gpkg", days)
        with pytest.raises(ValueError, match=r"column 'v' holds dates or times, such as 2020-01-01.*expected numbers"):
            open_labels(path, kind="values", grid=GRID)

    @pytest.mark.parametrize(
        "values",
        [
            pandas.to_datetime(["2020-01-01", "2021-06-30"]),
            pandas.to_datetime(["2020-01-01", "2021-06-30"], utc=True),
            pandas.to_timedelta([1, 2], unit="h"),
            [datetime.date(2020, 1, 1), None],
            [datetime.datetime(2020, 1, 1), datetime.datetime(2021, 1, 1)],
            [datetime.time(12), datetime.time(13)],
            pandas.to_datetime([None, None]),
        ],
    )
    def test_of_any_type(self, values):
        column = pandas.Series(values, name="d")
        with pytest.raises(ValueError, match=r"column 'd' holds dates or times.*expected numbers; choose another"):
            parse_numbers(column, "labels a.gpkg", otherwise="choose another column")
