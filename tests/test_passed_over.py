"""What lies in a folder of rasters and is no layer: it is named, and what the message advises leads to a layer."""

import struct
import zipfile

import numpy as np
import pytest
import rasterio.shutil
from rasterio.crs import CRS

from datasets.layers.passed_over import is_geosoft_grid
from datasets.layers.table import layers_from_directory, read_layers_table
from datasets.rasters.open_band import open_band
from tests.arrays import dataset_of, write_store
from tests.rasters import write_grid

VALUES = np.arange(1, 65, dtype=np.float32).reshape(8, 8)


@pytest.fixture()
def folder(tmp_path):
    """A folder with one grid."""
    write_grid(tmp_path / "mag.tif", VALUES)
    return tmp_path


def remarks(folder, caplog):
    """Messages about each file that is passed over, by its name; the grid is the one layer."""
    caplog.clear()
    assert [layer.name for layer in layers_from_directory(folder)] == ["mag"]
    texts = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    return {text.split(": ")[0].rsplit("/", 1)[-1]: text for text in texts}


def named(folder, cell):
    """The values of a layer that a row of a table names."""
    (folder / "layers.csv").write_text(f"path\n{cell}\n", encoding="utf-8")
    (layer,) = read_layers_table(folder / "layers.csv")
    return open_band(layer).read(0, 0, 8, 8)


def test_each_kind_is_named_once_with_what_to_do(folder, caplog):
    for name in ("grav.ecw", "rad.sid", "old.map", "em.7z", "strange.bin7", "dem.npy"):
        (folder / name).write_bytes(b"x" * 100)
    rows = "\n".join(f"{500_000 + i} {6_000_000 - j} {i + j}" for i in range(3) for j in range(3))
    (folder / "k.xyz").write_text(rows)
    (folder / "sites.csv").write_text("Easting,Northing,Cu\n1,2,3\n")
    found = remarks(folder, caplog)
    assert set(found) == {"grav.ecw", "rad.sid", "old.map", "em.7z", "strange.bin7", "k.xyz", "sites.csv", "dem.npy"}
    assert "an array without a place on the ground" in found["dem.npy"]
    assert "an ECW picture, which GDAL does not read here: convert it to GeoTIFF" in found["grav.ecw"]
    assert "a MrSID picture" in found["rad.sid"] and "a Geosoft map" in found["old.map"]
    assert "an archive: unpack it" in found["em.7z"]
    assert "not a raster that GDAL reads here, not used; if it is a grid: convert it" in found["strange.bin7"]
    assert "a table of points" in found["k.xyz"] and "gdal_translate" in found["k.xyz"]
    assert "--labels" in found["sites.csv"]


def test_what_belongs_beside_grids_is_no_matter(folder, caplog):
    (folder / "layers.csv").write_text("path\nmag.tif\n")
    (folder / "README").write_text("read me")
    (folder / "notes.txt").write_text("flown in 1998\nat 80 m\n")
    (folder / "mag.tfw").write_text("1\n0\n0\n-1\n5\n6\n")
    (folder / "maps").mkdir()
    assert remarks(folder, caplog) == {}


def test_a_raster_in_a_geopackage_is_read_when_named(folder, caplog):
    write_grid(folder / "dem.tif", VALUES.astype(np.uint8))
    rasterio.shutil.copy(folder / "dem.tif", folder / "dem.gpkg", driver="GPKG", TILE_FORMAT="PNG")
    (folder / "dem.tif").unlink()
    assert "name it in a table of layers" in remarks(folder, caplog)["dem.gpkg"]
    (folder / "layers.csv").write_text("path,band\ndem.gpkg,1\n")
    (layer,) = read_layers_table(folder / "layers.csv")
    np.testing.assert_array_equal(open_band(layer).read(0, 0, 8, 8), VALUES)


def test_a_grid_in_an_archive_is_read_when_named(folder, caplog):
    write_grid(folder / "em.tif", VALUES)
    with zipfile.ZipFile(folder / "em.zip", "w") as archive:
        archive.write(folder / "em.tif", "em.tif")
    (folder / "em.tif").unlink()
    message = remarks(folder, caplog)["em.zip"]
    path = message.split("(--train_path): ")[1]
    np.testing.assert_array_equal(named(folder, path.replace("FILE", "em.tif")), VALUES)


def test_a_store_is_read_when_named(folder, caplog):
    write_store(folder / "a.zarr", {"/": dataset_of(folder / "mag.tif")})
    message = remarks(folder, caplog)["a.zarr"]
    assert f"--dataset_type xarray --data_path {folder / 'a.zarr'}" in message
    cell = message.split(" a row ")[1].split(" in a table")[0]
    np.testing.assert_array_equal(named(folder, cell.replace("VARIABLE", "mag")), VALUES)


def test_gridded_points_become_a_layer_by_the_command_that_is_named(folder, caplog):
    lines = [
        f"{500_050 + 100 * col} {5_999_950 - 100 * row} {VALUES[row, col]}" for row in range(8) for col in range(8)
    ]
    (folder / "k.xyz").write_text("\n".join(lines) + "\n")
    assert "gdal_translate -a_srs" in remarks(folder, caplog)["k.xyz"]
    with rasterio.open(folder / "k.xyz") as source:  # as gdal_translate -a_srs does
        options = source.profile | {"driver": "GTiff", "crs": CRS.from_epsg(28354)}
        with rasterio.open(folder / "k.tif", "w", **options) as target:
            target.write(source.read())
    assert [layer.name for layer in layers_from_directory(folder)] == ["k", "mag"]
    np.testing.assert_array_equal(named(folder, "k.tif"), VALUES)


@pytest.mark.parametrize(("size", "order"), [(4, 1), (2, -1), (1024 + 4, 1)])
def test_a_geosoft_grid_is_recognised(folder, size, order):
    header = struct.pack("<5i", size, 1, 8, 8, order) + struct.pack("<5d", 100, 100, 500_000, 6_000_000, 0)
    path = folder / "gravity.grd"
    path.write_bytes(header.ljust(512, b"\0") + VALUES.astype("<f4").tobytes())
    with pytest.raises(ValueError, match=r"gravity\.grd: a Geosoft \(Oasis montaj\) grid.*export it as GeoTIFF"):
        layers_from_directory(folder)
    with pytest.raises(ValueError, match=r"a Geosoft \(Oasis montaj\) grid.*export it as GeoTIFF"):
        named(folder, "gravity.grd")


@pytest.mark.parametrize("data", [b"", b"DSAA\n8 8\n", b"DSBB" + bytes(60), bytes(60), b"CDF\x01" + bytes(60)])
def test_other_grids_of_that_ending_are_not(tmp_path, data):
    (tmp_path / "a.grd").write_bytes(data)
    assert not is_geosoft_grid(tmp_path / "a.grd")
