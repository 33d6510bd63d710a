"""Tables of labels and GeoJSON as people export them: read rightly, or refused with advice that leads to a run."""

import json
import re

import geopandas
import numpy as np
import pytest
import rasterio
import rasterio.warp
import shapely
from rasterio.crs import CRS
from rasterio.transform import from_origin

from datasets.labels.open_labels import TargetGrid, are_points, open_labels
from datasets.labels.points import open_points
from datasets.labels.tables import read_table
from tests.rasters import write_grid

pytestmark = pytest.mark.filterwarnings("ignore::PendingDeprecationWarning:rasterio")

MGA54 = CRS.from_epsg(28354)
GRID = TargetGrid(MGA54, left=500_000.0, top=7_000_000.0, resolution=100.0, rows=10, cols=10)
"""x 500000..501000, y 6999000..7000000."""


def write(path, text):
    path.write_text(text, encoding="utf-8")
    return path


def places(count=8):
    return [(500_050.5 + 100 * k, 6_999_950.5 - 100 * k) for k in range(count)]


def degrees_of(xy, crs=4326):
    return list(zip(*rasterio.warp.transform(MGA54, CRS.from_epsg(crs), *zip(*xy, strict=True)), strict=True))


def values_of(labels):
    read = labels.read(0, 0, labels.grid.rows, labels.grid.cols)
    return sorted(read[np.isfinite(read)].tolist())


class TestNodata:
    def table(self, path, values):
        rows = [f"{x},{y},{value}\n" for (x, y), value in zip(places(), values, strict=True)]
        return write(path, "x,y,Cu\n" + "".join(rows))

    @pytest.mark.parametrize("dummy", ["-9999", "-99999", "1e32", "-1.70141e38", "-32768", "inf"])
    def test_undeclared_nodata_in_a_column_of_values(self, tmp_path, caplog, dummy):
        path = self.table(tmp_path / "a.csv", [1, 2.5, dummy, 4, dummy, 6, 7, 8])
        assert values_of(open_labels(path, kind="values", grid=GRID)) == [1, 2.5, 4, 6, 7, 8]
        assert (
            "features have no value" if dummy == "inf" else "(2 of 8 features), not declared as nodata"
        ) in caplog.text

    def test_in_vector_files(self, tmp_path, caplog):
        points = [shapely.Point(xy) for xy in places()]
        frame = geopandas.GeoDataFrame({"Cu": [-9999, 1, 2, 3, 4, 5, -9999, 6]}, geometry=points, crs=MGA54.to_wkt())
        frame.to_file(tmp_path / "a.gpkg")
        assert values_of(open_labels(tmp_path / "a.gpkg", kind="values", grid=GRID)) == [1, 2, 3, 4, 5, 6]
        assert "column 'Cu' holds -9999 (2 of 8 features)" in caplog.text and "--label_nodata" in caplog.text

    def test_as_class_codes(self, tmp_path, caplog):
        path = self.table(tmp_path / "a.csv", [1, 2, -9999, 2, 1e32, 1, 2, 1])
        assert open_labels(path, kind="classes", grid=GRID).classes.codes == (1, 2)
        assert open_points(path, grid=GRID, column="Cu").classes.tolist() == [0, 1, 1, 0, 1, 0]
        assert "-9999, 1e+32 (2 of 8 features)" in caplog.text
        path = self.table(tmp_path / "b.csv", ["Au", "Cu", "-9999", "Au", "", "Cu", "-9999", "Au"])
        assert open_points(path, grid=GRID, column="Cu").table.codes == ("Au", "Cu")

    def test_codes_that_look_like_nodata_stay_among_their_like(self, tmp_path):
        path = self.table(tmp_path / "a.csv", [1, 500, 999, 1000, 1, 500, 999, 1000])
        assert open_points(path, grid=GRID, column="Cu").table.codes == (1, 500, 999, 1000)

    def test_the_number_that_is_named(self, tmp_path):
        path = self.table(tmp_path / "a.csv", [0, 2, 3, 0, 2, 3, 0, 2])
        assert open_labels(path, kind="classes", grid=GRID, nodata=0).classes.codes == (2, 3)
        assert open_points(path, grid=GRID, column="Cu", nodata=0).table.codes == (2, 3)
        assert values_of(open_labels(path, kind="values", grid=GRID, nodata=0)) == [2, 2, 2, 3, 3]


class TestNumbers:
    @pytest.mark.parametrize("separator", [";", "\t"])
    @pytest.mark.parametrize("every", [1, 2])
    def test_decimal_commas(self, tmp_path, separator, every):
        xy = [(x, y) if k % every == 0 else (round(x), round(y)) for k, (x, y) in enumerate(places())]
        lines = [f"{x}{separator}{y}{separator}{k % 2},5".replace(".", ",") for k, (x, y) in enumerate(xy)]
        path = write(tmp_path / "a.csv", "\n".join([separator.join(["x", "y", "Cu"]), *lines]))
        assert open_points(path, grid=GRID).xy.tolist() == [list(each) for each in xy]
        assert set(values_of(open_labels(path, kind="values", grid=GRID))) == {0.5, 1.5}

    @pytest.mark.parametrize(
        ("text", "remedy"),
        [
            ("500,123", "thousands separators"),
            ("7 000 000", "thousands separators"),
            ("500.123,5", "thousands separators"),
            ("500'123.5", "thousands separators"),
            ("34°30'15\"S", "decimal degrees"),
            ("-34 30 15", "decimal degrees"),
            ("34:30:15.5", "decimal degrees"),
            ("138.5E", "decimal degrees"),
            ("unknown", "leave it empty"),
        ],
    )
    def test_what_is_no_number_is_refused_by_row_and_column(self, tmp_path, text, remedy):
        path = write(tmp_path / "a.csv", f"x;y\n500050.5;6999950.5\n500150;{text}\n")
        with pytest.raises(
            ValueError, match=rf"a.csv, row 3: column 'y' holds .*expected numbers.*{remedy}"
        ) as refusal:
            open_points(path, grid=GRID)
        assert repr(text) in str(refusal.value)

    def test_values_too(self, tmp_path):
        path = write(tmp_path / "a.csv", "x;y;Cu\n500050;6999950;1.5\n500150;6999950;2,5\n")
        with pytest.raises(ValueError, match=r"row 3: column 'Cu' holds '2,5', expected numbers.*decimal points"):
            open_labels(path, kind="values", grid=GRID)

    def test_commas_that_also_separate(self, tmp_path):
        path = write(tmp_path / "a.csv", "x,y,Cu\n500050,5,6999950,5,1\n")
        with pytest.raises(ValueError, match=r"row 2: has more fields than the header \(x,y,Cu\).*semicolons"):
            open_points(path, grid=GRID)
        path = write(tmp_path / "a.csv", "x,y,Cu\n500050,6999950,1\n500050,5,6999950,5,1\n")
        with pytest.raises(ValueError, match="cannot be read as a table .*semicolons"):
            open_points(path, grid=GRID)

    def test_a_comma_at_the_end_of_each_row(self, tmp_path):
        path = write(tmp_path / "a.csv", "x,y,Cu\n500050,6999950,1,\n500150,6999950,2,\n")
        assert open_points(path, grid=GRID, column="Cu").xy.tolist() == [[500050, 6999950], [500150, 6999950]]


class TestZones:
    """A survey over the boundary of zones 53 and 54, at 138 degrees east."""

    grid = TargetGrid(MGA54, left=200_000.0, top=7_000_000.0, resolution=2000.0, rows=100, cols=90)

    def table(self, path, zones, *, degrees=True):
        xy = [(210_000.0 + 15_000 * k, 6_990_000.0 - 10_000 * k) for k in range(10)]
        lonlat = degrees_of(xy)
        lines = ["EASTING,NORTHING,ZONE" + ",LONGITUDE,LATITUDE" * degrees]
        for k, (lon, lat) in enumerate(lonlat):
            zone = zones[k % len(zones)]
            (x,), (y,) = rasterio.warp.transform("EPSG:4326", f"EPSG:283{zone[:2]}", [lon], [lat])
            lines.append(f"{x:.1f},{y:.1f},{zone}" + f",{lon:.7f},{lat:.7f}" * degrees)
        return write(path, "\n".join(lines)), xy

    def test_several_zones_are_refused_and_the_advice_works(self, tmp_path):
        path, xy = self.table(tmp_path / "a.csv", ["53", "54"])
        with pytest.raises(ValueError, match="column 'ZONE' holds zone 53 and 54") as refusal:
            open_points(path, grid=self.grid)
        x, y = re.search(r"use --x_column (\w+) --y_column (\w+)", str(refusal.value)).groups()
        assert (x, y) == ("LONGITUDE", "LATITUDE")
        assert np.allclose(open_points(path, grid=self.grid, x_column=x, y_column=y).xy, xy, atol=0.1)

    def test_one_zone(self, tmp_path):
        path, xy = self.table(tmp_path / "a.csv", ["54", "54K"])
        assert np.allclose(open_points(path, grid=self.grid).xy, xy, atol=0.1)
        path, xy = self.table(tmp_path / "b.csv", ["53"], degrees=False)
        with pytest.raises(ValueError, match=r"holds zone 53, .*\(zone 54\).*name the CRS of zone 53 by --label_crs"):
            open_points(path, grid=self.grid)
        assert np.allclose(open_points(path, grid=self.grid, label_crs="EPSG:28353").xy, xy, atol=0.1)

    def test_a_column_of_zones_of_another_kind(self, tmp_path):
        path = write(tmp_path / "a.csv", "x,y,zone\n210000,6990000,1\n220000,6990000,2\n")
        assert open_points(path, grid=self.grid, column="zone").table.codes == (1, 2)
        path = write(tmp_path / "a.csv", "x,y,zone\n210000,6990000,ore\n220000,6990000,halo\n")
        assert open_points(path, grid=self.grid, column="zone").table.codes == ("halo", "ore")

    def test_two_pairs_that_disagree(self, tmp_path):
        (lon, lat), *_ = degrees_of([(210_000, 6_990_000)])
        path = write(tmp_path / "a.csv", f"x,y,lon,lat\n300000,6950000,{lon},{lat}\n")
        with pytest.raises(ValueError, match=r"row 2: x 300000, .* km from lon .*--x_column lon --y_column lat"):
            open_points(path, grid=self.grid)
        found = open_points(path, grid=self.grid, x_column="lon", y_column="lat")
        assert np.allclose(found.xy, [[210_000, 6_990_000]], atol=0.1)
        assert open_points(path, grid=self.grid, x_column="x", y_column="y").xy.tolist() == [[300_000, 6_950_000]]
        assert len(open_points(path, grid=self.grid, label_crs="EPSG:4326")) == 1

    def test_two_pairs_that_agree(self, tmp_path):
        (lon, lat), *_ = degrees_of([(210_000, 6_990_000)])
        path = write(tmp_path / "a.csv", f"x,y,lon,lat\n210000,6990000,{lon:.2f},{lat:.2f}\n210000,6990000,,\n")
        assert open_points(path, grid=self.grid).xy.tolist() == [[210_000, 6_990_000]] * 2


class TestGeoJson:
    def write(self, path, crs=None):
        features = [
            {"type": "Feature", "properties": {"kind": k % 2}, "geometry": {"type": "Point", "coordinates": xy}}
            for k, xy in enumerate(places())
        ]
        member = {} if crs is None else {"crs": {"type": "name", "properties": {"name": crs}}}
        return write(path, json.dumps({"type": "FeatureCollection", **member, "features": features}))

    def test_metres_without_a_crs(self, tmp_path, caplog):
        path = self.write(tmp_path / "a.geojson")
        with pytest.raises(ValueError, match=r"x 500050.5.* in EPSG:4326, expected ground .* in EPSG:28354") as refusal:
            open_points(path, grid=GRID)
        crs = re.search(r"by --label_crs (\S+)", str(refusal.value))[1]
        assert open_points(path, grid=GRID, label_crs=crs).xy.tolist() == [list(xy) for xy in places()]
        assert "read in EPSG:28354 (--label_crs), not in EPSG:4326" in caplog.text

    def test_a_member_crs(self, tmp_path, caplog):
        path = self.write(tmp_path / "a.json", "urn:ogc:def:crs:EPSG::28354")
        assert len(open_points(path, grid=GRID)) == 8
        assert len(open_points(path, grid=GRID, label_crs="EPSG:28354")) == 8 and not caplog.text
        path = self.write(tmp_path / "b.json", "urn:ogc:def:crs:EPSG::28355")
        assert len(open_points(path, grid=GRID, label_crs="EPSG:28354")) == 8

    def test_a_wrong_crs_in_a_file_that_must_have_one(self, tmp_path):
        points = geopandas.GeoDataFrame(geometry=[shapely.Point(xy) for xy in places()], crs=4326)
        points.to_file(tmp_path / "a.gpkg")
        with pytest.raises(ValueError, match=r"ogr2ogr -a_srs EPSG:28354 .*--label_crs is not used"):
            open_points(tmp_path / "a.gpkg", grid=GRID)


class TestPointsOrAreas:
    @pytest.mark.parametrize("separator", [",", ";", "\t"])
    @pytest.mark.parametrize("name", ["polygon", "WKT", "geometry", "geom", "the_geom"])
    def test_tables(self, tmp_path, separator, name):
        for ending in ("csv", "tsv", "txt"):
            area = shapely.box(500_000, 6_999_500, 500_500, 7_000_000)
            rows = [
                f'{k}{separator}"{shape.wkt}"' for k, shape in enumerate([area, shapely.affinity.translate(area, 500)])
            ]
            path = write(tmp_path / f"a.{ending}", "\n".join([f"kind{separator}{name}", *rows]))
            assert not are_points(str(path))
            assert open_labels(path, kind="classes", grid=GRID).classes.counts == (25, 25)
            path = write(tmp_path / f"b.{ending}", f"kind{separator}{name}\n1{separator}POINT (500050 6999950)\n")
            assert are_points(str(path)) and len(open_points(path, grid=GRID)) == 1
            path = write(tmp_path / f"c.{ending}", f"x{separator}y\n500050{separator}6999950\n")
            assert are_points(str(path)) and len(open_points(path, grid=GRID)) == 1

    def test_files(self, tmp_path):
        shapes = {"points": shapely.Point(1, 1), "areas": shapely.box(0, 0, 1, 1)}
        for ending in ("gpkg", "geojson", "shp", "fgb", "kml", "gml"):
            for name, shape in shapes.items():
                path = tmp_path / f"{name}.{ending}"
                geopandas.GeoDataFrame({"a": [1]}, geometry=[shape], crs=4326).to_file(path)
                assert are_points(str(path)) == (name == "points"), path
        mixed = geopandas.GeoDataFrame({"a": [1, 2]}, geometry=list(shapes.values()), crs=4326)
        mixed.to_file(tmp_path / "mixed.geojson")
        assert not are_points(str(tmp_path / "mixed.geojson"))
        assert not are_points(str(tmp_path / "none.csv"))
        assert not are_points(str(write(tmp_path / "broken.gpkg", "nothing")))


class TestAdvice:
    """Tables whose rows lie elsewhere, or hold what people write in cells of numbers: the message says what to do."""

    @pytest.mark.parametrize(
        ("change", "advice"),
        [
            (lambda x, y: (y, x), "x and y seem to be swapped: .*--x_column and --y_column"),
            (lambda x, y: (x, -y), "latitudes seem to have the wrong sign: .*correct them"),
        ],
    )
    def test_degrees_that_lie_elsewhere(self, tmp_path, change, advice):
        lon, lat = change(*np.array(degrees_of(places())).T)
        path = write(
            tmp_path / "a.csv", "lon,lat\n" + "".join(f"{a:.6f},{b:.6f}\n" for a, b in zip(lon, lat, strict=True))
        )
        with pytest.raises(ValueError, match=f"does not overlap the survey: .*{advice}"):
            open_points(path, grid=GRID)

    def test_kilometres(self, tmp_path):
        path = write(tmp_path / "a.csv", "x,y\n" + "".join(f"{x / 1000},{y / 1000}\n" for x, y in places()))
        with pytest.raises(
            ValueError, match="does not overlap .*its coordinates seem to be in km: write them in metres"
        ):
            open_points(path, grid=GRID)

    @pytest.mark.parametrize(
        ("text", "advice"),
        [
            ("<5", "number, such as half the limit, or leave"),
            ("5 ppm", "without their unit"),
            ("5%", "without their unit"),
        ],
    )
    def test_limits_of_detection_and_units(self, tmp_path, text, advice):
        rows = "".join(f"{x},{y},{text}\n" for x, y in places())
        with pytest.raises(ValueError, match=f"row 2: column 'cu' holds '{text}', expected numbers.*{advice}"):
            open_labels(write(tmp_path / "a.csv", "x,y,cu\n" + rows), kind="values", grid=GRID, column="cu")

    def test_names_that_differ_in_capitals_alone(self, tmp_path, caplog):
        names = ["Basalt", "basalt", "Shale", "Red bed", "redbed", "Shale", "Shale", "Shale"]
        rows = "".join(f"{x},{y},{name}\n" for (x, y), name in zip(places(), names, strict=True))
        open_points(write(tmp_path / "a.csv", "x,y,rock\n" + rows), grid=GRID, column="rock")
        assert "classes of their own: 'Basalt', 'basalt'; 'Red bed', 'redbed'; spell them alike" in caplog.text


class TestPictures:
    def write(self, path, colours, *, count=3):
        values = np.arange(count * 100, dtype=np.uint8).reshape(count, 10, 10) % 3
        with rasterio.open(
            path,
            "w",
            driver="GTiff",
            height=10,
            width=10,
            count=count,
            dtype="uint8",
            crs=MGA54,
            transform=from_origin(GRID.left, GRID.top, 100, 100),
            photometric=colours,
        ) as dataset:
            dataset.write(values)
        return path

    @pytest.mark.parametrize("kind", ["classes", "values"])
    @pytest.mark.parametrize("count", [3, 4])
    def test_are_refused(self, tmp_path, kind, count):
        path = self.write(tmp_path / "a.tif", "RGB", count=count)
        for band in (1, 2, 3):
            with pytest.raises(ValueError, match="of a picture .*red, green, blue.*expected one band of class codes"):
                open_labels(path, kind=kind, grid=GRID, band=band)

    def test_a_band_of_codes_beside_the_colours(self, tmp_path):
        path = self.write(tmp_path / "a.tif", "RGB", count=5)
        with pytest.raises(ValueError, match=r"--label_band \(here 4, 5\)"):
            open_labels(path, kind="classes", grid=GRID)
        assert len(open_labels(path, kind="classes", grid=GRID, band=5).classes) == 3

    @pytest.mark.parametrize("count", [3, 4])
    def test_without_colours_the_number_of_codes_decides(self, tmp_path, caplog, count):
        """Bands that do not say which colour they are: 3 codes are classes, 100 are shades unless they have names."""
        path = self.write(tmp_path / "few.tif", "MINISBLACK", count=count)
        assert len(open_labels(path, kind="classes", grid=GRID).classes) == 3
        assert f"has {count} bands, of which the first is read; name another by --label_band" in caplog.text
        shades = np.arange(count * 100, dtype=np.uint8).reshape(count, 10, 10)
        with rasterio.open(self.write(tmp_path / "many.tif", "MINISBLACK", count=count), "r+") as file:
            file.write(shades)
        with pytest.raises(
            ValueError, match=rf"100 different codes without names .* {count} bands of 8 bits.*label_cl"
        ):
            open_labels(tmp_path / "many.tif", kind="classes", grid=GRID)
        names = write(tmp_path / "names.csv", "code,name\n" + "".join(f"{code},c{code}\n" for code in range(100)))
        assert len(open_labels(tmp_path / "many.tif", kind="classes", grid=GRID, classes_csv=names).classes) == 100

    @pytest.mark.parametrize(("most", "warned"), [(99, False), (100, True)])
    def test_many_codes_of_a_single_band(self, tmp_path, caplog, most, warned):
        codes = np.arange(100, dtype=np.uint8).reshape(10, 10).clip(max=most - 1)
        with rasterio.open(self.write(tmp_path / "a.tif", "MINISBLACK", count=1), "r+") as file:
            file.write(codes, 1)
        assert len(open_labels(tmp_path / "a.tif", kind="classes", grid=GRID).classes) == most
        assert ("100 different codes without names: taken for classes; if they are measure" in caplog.text) == warned
        assert "bands" not in caplog.text

    @pytest.mark.parametrize(
        ("shares", "options", "warned"),
        [
            ([0.3, 0.4, 0.3], {}, True),
            ([0.1, 0.5, 0.4], {}, False),
            ([0.3, 0.4, 0.3], {"nodata": 9}, False),
            ([0.3, 0.7], {}, False),
        ],
    )
    def test_code_0_on_much_of_the_ground(self, tmp_path, caplog, shares, options, warned):
        """Without a name, and with no nodata declared, it often means unlabelled; of two classes 0 is one."""
        codes = np.repeat(np.arange(len(shares)), np.round(np.array(shares) * 100).astype(int)).reshape(10, 10)
        path = write_grid(tmp_path / "a.tif", codes.astype(np.uint8), left=GRID.left, top=GRID.top, **options)
        open_labels(path, kind="classes", grid=GRID)
        assert (
            "30 % of the labelled pixels hold 0, which is not declared as nodata and has no name" in caplog.text
        ) == (warned)
        caplog.clear()
        if warned:  # what the message advises
            assert open_labels(path, kind="classes", grid=GRID, nodata=0).classes.codes == (1, 2)
            assert "hold 0" not in caplog.text

    def test_bands_that_are_no_colours(self, tmp_path):
        path = self.write(tmp_path / "a.tif", "MINISBLACK")
        assert len(open_labels(path, kind="classes", grid=GRID, band=2).classes) == 3


def test_columns_of_one_name_are_refused(tmp_path):
    path = write(tmp_path / "a.csv", "x,y,class,class\n500050,6999950,a,b\n")
    with pytest.raises(ValueError, match="has 2 columns 'class', expected names that differ"):
        read_table(str(path), grid=GRID, label_crs=None, x_column=None, y_column=None)


def test_a_long_column_has_one_type_from_end_to_end(tmp_path):
    """pandas guesses the types of a long table part by part; an empty cell in one of them made 1 into 1.0."""
    rows = ["x,y,c," + ",".join(f"v{k}" for k in range(20))]
    rows += [
        f"500050,5999950,{'' if k == 100 else '3a' if k == 39_000 else k % 3}," + "1," * 19 + "1" for k in range(40_000)
    ]
    (tmp_path / "a.csv").write_text("\n".join(rows) + "\n")
    table = read_table(str(tmp_path / "a.csv"), grid=GRID, label_crs=None, x_column=None, y_column=None)
    assert sorted(table["c"].dropna().unique()) == ["0", "1", "2", "3a"]
