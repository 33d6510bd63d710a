"""Styles and project for QGIS: as XML, and as QGIS itself reads them where it is installed."""

import json
import os
import shutil
import subprocess
import sys
import xml.etree.ElementTree as ET
from pathlib import Path

import numpy as np
import pytest
import rasterio

from tests.rasters import write_grid
from tests.test_cog_writer import classes, info, write
from util.inference.qgis import PROJECT, SourceLayer, pipes_of, write_project, write_style

FIELDS = ("gravity reconstruction", "gravity spread", "gravity error")
READ_BY_QGIS = Path(__file__).parent / "qgis_reader.py"


def style_of(path: Path) -> ET.Element:
    """The renderer in the style beside a raster."""
    renderer = ET.parse(path.with_suffix(".qml")).getroot().find("pipe/rasterrenderer")
    assert renderer is not None
    return renderer


def fields(folder: Path) -> tuple[Path, object]:
    """A raster of a field from 0 to 100, its spread and its error."""
    raster = info(10, 101, names=FIELDS, units=("mGal",) * 3)
    ramp = np.broadcast_to(np.arange(101, dtype=np.float32), (10, 101))
    return write(folder, raster, np.stack([ramp, ramp / 10, ramp - 40])), raster


def test_a_field_is_drawn_between_its_quantiles_with_units_in_the_legend(tmp_path):
    path, raster = fields(tmp_path)
    write_style(path, raster)
    renderer = style_of(path)
    assert renderer.get("type") == "singlebandpseudocolor" and renderer.get("band") == "1"
    items = renderer.findall("rastershader/colorrampshader/item")
    assert items[0].get("label").endswith(" mGal") and len(items) == 9
    # The observed field, reconstruction plus error, shares the colours: -40 to 160 without 2 % at either end.
    assert float(items[0].get("value")) == float(renderer.get("classificationMin")) < 2.1
    assert float(items[-1].get("value")) > 98
    assert items[0].get("color") == "#440154"  # the first colour of viridis


def test_errors_are_centred_on_zero_and_spreads_begin_there(tmp_path):
    path, raster = fields(tmp_path)
    _, spread, error = (pipe.find("rasterrenderer") for pipe in pipes_of(path, raster, most=3))
    assert float(spread.get("classificationMin")) == 0 and spread.get("band") == "2"
    assert float(error.get("classificationMin")) == -float(error.get("classificationMax")) != 0


def test_classes_have_an_entry_each_and_nothing_else(tmp_path):
    raster = classes(6, 8)
    path = write(tmp_path, raster, np.ones((1, 6, 8), np.uint8))
    write_style(path, raster)
    entries = style_of(path).findall("colorPalette/paletteEntry")
    found = {int(entry.get("value")): (entry.get("label"), entry.get("color")) for entry in entries}
    expected = {code: (name, "#{:02x}{:02x}{:02x}".format(*colour)) for code, (name, colour) in raster.classes.items()}
    assert found == expected


def test_only_pictures_open_as_red_green_blue(tmp_path):
    raster = info(4, 5, names=("r", "g", "b"), units=("",) * 3, dtype="uint8", nodata=0, is_picture=True)
    write_style(path := write(tmp_path, raster, np.ones((3, 4, 5), np.uint8)), raster)
    assert style_of(path).get("type") == "multibandcolor"


def test_the_project_lists_results_over_layers_and_keeps_older_results(tmp_path):
    (tmp_path / "out").mkdir()
    path, raster = fields(tmp_path / "out")
    source = shutil.copy(path, tmp_path / "gravity & more.tif")
    sources = [SourceLayer("gravity <b>", str(source), 1, "mGal"), SourceLayer("store", "xarray:a.zarr#b", 1)]
    write_project(path.parent, {"r": raster}, sources)
    second = shutil.copy(path, path.with_name("later.tif"))
    write_project(path.parent, {"later": raster}, sources)
    root = ET.parse(path.parent / PROJECT).getroot()
    found = [(layer.findtext("layername"), layer.findtext("datasource")) for layer in root.iter("maplayer")]
    names = [f"{stem}: {name}" for stem in ("later", "r") for name in FIELDS]
    assert found == [*((name, f"./{name.split(':')[0]}.tif") for name in names), ("gravity <b>", str(source))]
    legend = [item.get("label") for item in list(root.iter("maplayer"))[-1].iter("item")]
    assert len(legend) == 9 and all(label.endswith(" mGal") for label in legend)
    Path(second).unlink()
    write_project(path.parent, {"r": raster}, [])
    left = [layer.findtext("layername") for layer in ET.parse(path.parent / PROJECT).getroot().iter("maplayer")]
    assert left == [f"r: {name}" for name in FIELDS]


@pytest.mark.parametrize("limits", [None, (-4.0, 6.0)])
def test_layers_are_drawn_in_physical_units_without_nodata_that_a_table_states(tmp_path, limits):
    """QGIS draws scaled values: 0 to 100, stored as tenths from 1000 on, a fifth of them -99999."""
    path, raster = fields(tmp_path)
    source = tmp_path / "scaled.tif"
    stored = np.linspace(1000, 2000, 100, dtype=np.float32)[None].repeat(10, axis=0)
    stored[:2] = -99999
    write_grid(source, stored)
    with rasterio.open(source, "r+") as file:
        file.scales, file.offsets = (0.1,), (-100.0,)
    write_project(tmp_path, {"r": raster}, [SourceLayer("a", str(source), 1, "nT", limits, (-99999.0,))])
    entry = list(ET.parse(tmp_path / PROJECT).iter("maplayer"))[-1]
    renderer = entry.find("pipe/rasterrenderer")
    found = [float(renderer.get(key)) for key in ("classificationMin", "classificationMax")]
    assert found == pytest.approx(limits or (2.0, 98.0), abs=0.5)
    (listed,) = entry.findall("noData/noDataList")
    (hidden,) = listed
    assert (listed.get("bandNo"), listed.get("useSrcNoData"), hidden.tag) == ("1", "1", "noDataRange")
    assert float(hidden.get("min")) < -99999 * 0.1 - 100 < float(hidden.get("max"))


def test_a_project_that_qgis_has_saved_stays_as_it_is(tmp_path, caplog):
    path, raster = fields(tmp_path)
    project = write_project(tmp_path, {"r": raster}, [])
    root = ET.parse(project).getroot()
    root.set("saveDateTime", "2026-11-30T12:00:00")  # as QGIS does
    ET.SubElement(root, "Layouts")
    ET.ElementTree(root).write(project)
    before = project.read_bytes()
    for _ in range(2):
        assert write_project(tmp_path, {"r": raster}, []) == tmp_path / "maps-2.qgs"
    assert project.read_bytes() == before
    assert "maps.qgs was saved by QGIS and stays as it is; results: maps-2.qgs" in caplog.text
    assert len(list(ET.parse(tmp_path / "maps-2.qgs").iter("maplayer"))) == len(FIELDS)


def test_legends_tell_neighbouring_values_apart_and_names_may_hold_anything(tmp_path):
    raster = info(1, 101, names=("total field \x07",), units=("nT",))
    pixels = np.linspace(49_990, 50_000, 101, dtype=np.float32)[None, None]
    path = write(tmp_path, raster, pixels)
    write_style(path, raster)
    labels = [item.get("label") for item in style_of(path).iter("item")]
    assert len(set(labels)) == 9 and all(
        label.endswith(" nT") and label.startswith(("4999", "5000")) for label in labels
    )
    write_project(tmp_path, {"r": raster}, [])
    assert [layer.findtext("layername") for layer in ET.parse(tmp_path / PROJECT).iter("maplayer")] == ["r"]


def qgis_python() -> str | None:
    """A Python that has QGIS: this one, or the system's."""
    for python in (sys.executable, "/usr/bin/python3"):
        if (
            Path(python).exists()
            and not subprocess.run([python, "-c", "import qgis.core"], capture_output=True).returncode
        ):
            return python
    return None


def test_qgis_shows_what_was_meant(tmp_path):
    python = qgis_python()
    if python is None:
        pytest.skip("needs PyQGIS, such as Debian's python3-qgis")
    (tmp_path / "out").mkdir()
    path, raster = fields(tmp_path / "out")
    write_style(path, raster)
    source = shutil.copy(path, tmp_path / "gravity.tif")
    write_project(path.parent, {"r": raster}, [SourceLayer("gravity", str(source), 2)])
    (tmp_path / "classes").mkdir()
    classed = classes(6, 8)
    class_path = write(tmp_path / "classes", classed, np.ones((1, 6, 8), np.uint8))
    write_style(class_path, classed)
    Path(f"{class_path}.aux.xml").unlink()  # names must not depend on it
    picture = tmp_path / "map.png"
    words = [python, str(READ_BY_QGIS), str(path.parent / PROJECT), str(picture), str(path), str(class_path)]
    environment = {k: v for k, v in os.environ.items() if k not in ("PROJ_LIB", "PROJ_DATA", "GDAL_DATA")}
    done = subprocess.run(words, capture_output=True, text=True, env=environment | {"QT_QPA_PLATFORM": "offscreen"})
    assert done.returncode == 0, done.stderr
    seen = json.loads(done.stdout.splitlines()[-1])
    assert seen["crs"] == "EPSG:28354"
    assert [(layer["valid"], layer["crs"]) for layer in seen["project"]] == [(True, True)] * 4
    assert [layer["name"] for layer in seen["project"]] == [*(f"r: {name}" for name in FIELDS), "gravity"]
    assert [layer["band"] for layer in seen["project"]] == [1, 2, 3, 2]
    assert seen["shown"] == ["r: gravity reconstruction", "gravity"]
    assert seen["opened"][0]["renderer"] == "singlebandpseudocolor"
    assert seen["opened"][1]["renderer"] == "paletted"
    assert seen["opened"][1]["labels"] == [name for _, (name, _) in sorted(classed.classes.items())]
    assert seen["colours"] > 50  # of a rendered map
