"""Files with flipped bytes or cut short: read, or refused with one message; never a traceback, a hang or a crash."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path

import geopandas
import numpy as np
import pytest
import shapely

from tests.arrays import dataset_of, write_store
from tests.rasters import write_grid
from tests.surveys import ROOT, environment, train, write_survey

pytestmark = pytest.mark.slow

COPIES = 60
"""Damaged copies of each kind of file: ten kinds, 600 files."""
PER_PROCESS = 20
LIMIT_S = 300.0
"""For a process that reads `PER_PROCESS` files; an undamaged one takes less than a second."""

GXF = "#POINTS\n64\n#ROWS\n64\n#PTSEPARATION\n100\n#RWSEPARATION\n100\n#XORIGIN\n500000\n#YORIGIN\n5993600\n#SENSE\n1\n"
GXF += '#MAP_PROJECTION\n"WGS 84 / UTM zone 54S"\n"WGS 84",6378137,0.0818191908,0\n'
GXF += '"Transverse Mercator",0,141,0.9996,500000,10000000\n#GRID\n'


@pytest.fixture(scope="module")
def originals(tmp_path_factory) -> dict[str, Path]:
    """An undamaged file of each kind, by its suffix or name."""
    folder = tmp_path_factory.mktemp("originals")
    rng = np.random.default_rng(0)
    values = rng.normal(size=(64, 64)).cumsum(axis=0).astype(np.float32)
    plain = write_grid(folder / "plain.tif", values)
    packed = write_grid(folder / "packed.tif", values, compress="deflate", tiled=True, blockxsize=16, blockysize=16)
    store = write_store(folder / "a.zarr", {"/": dataset_of(plain)}, chunk=16)
    dataset = dataset_of(plain)
    for axis in "xy":  # without these GDAL does not take them for coordinates
        dataset[axis].attrs = {"standard_name": f"projection_{axis}_coordinate", "units": "m"}
    file = write_store(folder / "gdal.nc", {"/": dataset}, chunk=16)
    shutil.copy(file, folder / "xarray.nc")
    rows = "\n".join(" ".join(f"{value:.3f}" for value in row) for row in values[::-1])
    (folder / "a.gxf").write_text(GXF + rows + "\n")
    square = shapely.box(500_500, 5_994_000, 505_500, 5_999_500)
    geopandas.GeoDataFrame({"name": ["area"]}, geometry=[square], crs=28354).to_file(folder / "a.gpkg")
    points = rng.integers(0, 6400, size=(60, 2))
    lines = [f"{500_000 + x},{6_000_000 - y},{rock}" for (x, y), rock in zip(points, "abc" * 20, strict=True)]
    (folder / "points.csv").write_text("x,y,rock\n" + "\n".join(lines) + "\n")
    survey = write_survey(folder / "grids")
    (folder / "layers.csv").write_text(
        "name,path,units\ngravity,grids/gravity.tif,mGal\nmagnetics,grids/magnetics.tif,nT\n"
    )
    assert train(survey, folder / "run", "--epochs", "1") == 0
    shutil.copy(folder / "run" / "checkpoint-last.pth", folder / "a.pth")
    return {
        "plain.tif": plain,
        "packed.tif": packed,
        "a.zarr": store,
        "gdal.nc": file,
        "xarray.nc": folder / "xarray.nc",
        "a.gxf": folder / "a.gxf",
        "a.gpkg": folder / "a.gpkg",
        "points.csv": folder / "points.csv",
        "layers.csv": folder / "layers.csv",
        "a.pth": folder / "a.pth",
    }


def damage(path: Path, rng: np.random.Generator) -> None:
    """Flips one to eight bytes of a file, or cuts it off; in a store, of one of its files."""
    if path.is_dir():
        files = sorted(file for file in path.rglob("*") if file.is_file())
        path = files[int(rng.integers(len(files)))]
    data = bytearray(path.read_bytes())
    if rng.random() < 0.3:
        data = data[: int(rng.integers(len(data)))]
    else:
        early = rng.random() < 0.5  # headers are where a flipped byte does most
        for place in rng.integers(min(len(data), 600) if early else len(data), size=int(rng.integers(1, 9))):
            data[place] ^= int(rng.integers(1, 256))
    path.write_bytes(bytes(data))


def damaged_copies(original: Path, folder: Path) -> list[Path]:
    """Copies in folders of their own, each beside the undamaged grids; the first one is undamaged."""
    copies = []
    for number in range(COPIES + 1):
        home = folder / str(number)
        home.mkdir()
        copy = home / original.name
        (shutil.copytree if original.is_dir() else shutil.copy)(original, copy)
        if original.suffix in (".gpkg", ".csv", ".pth"):
            (home / "grids").symlink_to(original.parent / "grids")
        if number:
            damage(copy, np.random.default_rng([number, len(original.name)]))
        copies.append(copy)
    return copies


def results_of(paths: list[Path]) -> dict[str, dict]:
    """Reads files in a process; a crash or hang fails the test, naming the file."""
    command = [sys.executable, "-m", "tests.damaged_files", *map(str, paths)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=environment(), timeout=LIMIT_S)
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert done.returncode == 0, f"crashed at {lines[-1]['path'] if lines else 'the start'}: {done.stderr[-2000:]}"
    return {line["path"]: line for line in lines if "status" in line}


@pytest.mark.parametrize(
    "name",
    [
        "plain.tif",
        "packed.tif",
        "a.zarr",
        "gdal.nc",
        "xarray.nc",
        "a.gxf",
        "a.gpkg",
        "points.csv",
        "layers.csv",
        "a.pth",
    ],
)
def test_damaged_files_are_read_or_refused(originals, tmp_path, name):
    copies = damaged_copies(originals[name], tmp_path)
    results: dict[str, dict] = {}
    for start in range(0, len(copies), PER_PROCESS):
        results |= results_of(copies[start : start + PER_PROCESS])
    assert results[str(copies[0])]["status"] == 0, results[str(copies[0])]["errors"]
    for path, result in results.items():
        assert result["status"] in (0, 1, 2) and "Traceback" not in result["errors"], f"{path}:\n{result['errors']}"
        assert result["status"] == 0 or result["errors"].strip(), (
            f"{path}: ended with {result['status']} and no message"
        )
    counts = Counter(result["status"] for result in results.values())
    print(f"{name}: exit statuses of {len(results) - 1} damaged copies and the original: {dict(counts)}")
    assert counts.total() > counts[0], "no damage was noticed at all"
