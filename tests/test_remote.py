"""Layers over HTTP: only what windows need is sent, short outages pass, longer ones end a run with its checkpoint."""

from __future__ import annotations

import socket

import numpy as np
import pytest
import rasterio
import torch

from datasets.layers.layer import Layer
from datasets.layers.table import read_layers_table
from datasets.rasters import retry, xarray_store
from datasets.rasters.chunk_cache import CHUNKS
from datasets.rasters.handles import close_datasets
from datasets.rasters.open_band import open_band
from datasets.rasters.xarray_band import layers_of_stores
from datasets.survey.open_survey import SurveySettings, open_survey
from datasets.survey.tile_reader import TileReader
from scripts.benchmarks.http_server import serve
from tests import small_main
from tests.arrays import dataset_of, store_of, write_store
from tests.rasters import write_grid
from tests.surveys import FLAGS, checkpoint, losses, train, write_survey


@pytest.fixture(autouse=True)
def short_waits(monkeypatch):
    monkeypatch.setattr(retry, "RETRY_WAITS_S", (0.01, 0.02, 0.04))
    yield
    close_datasets()


@pytest.fixture(scope="module")
def large(tmp_path_factory):
    """A grid of 1024 x 1024 random pixels, 4 MiB that do not compress: cloud-optimised, as zarr, as netCDF."""
    folder = tmp_path_factory.mktemp("large")
    values = np.random.default_rng(0).normal(size=(1024, 1024)).astype(np.float32)
    write_grid(folder / "g.tif", values, driver="COG", blocksize=128, compress="NONE", overviews="NONE")
    write_store(folder / "g.zarr", {"/": dataset_of(folder / "g.tif")}, chunk=128)
    write_store(folder / "g.nc", {"/": dataset_of(folder / "g.tif")}, chunk=128)
    return folder, values


@pytest.mark.parametrize(
    "name, most",
    [
        ("xarray:{url}/g.zarr#g", 0.10),  # 4 tiles of 64 pixels touch at most 9 chunks each of 64, and share some
        ("xarray:{url}/g.nc#g", 0.40),  # blocks of 128 KiB
        ("/vsicurl/{url}/g.tif", 0.20),  # GDAL reads at least 16 KiB
    ],
)
def test_only_what_windows_need_is_sent(large, name, most):
    folder, values = large
    with serve(folder) as served:
        layer = Layer("g", name.format(url=served.url))
        opened = open_band(layer)
        header = served.sent
        for row, col in ((0, 0), (130, 130), (700, 10), (900, 900)):
            np.testing.assert_array_equal(opened.read(row, col, 60, 60), values[row : row + 60, col : col + 60])
        share = served.sent / values.nbytes
        print(f"{name}: {header} bytes to open, {served.sent} in all, {100 * share:.1f} % of {values.nbytes}")
        assert header < 0.07 * values.nbytes and share < most
    xarray_store.forget(f"{served.url}/g.zarr")


def test_batches_over_http_are_those_of_files(tmp_path):
    survey = write_survey(tmp_path / "survey")
    store_of(survey, tmp_path / "both.zarr")
    options = {"input_size": 16, "scales": (1, 2, 4), "cache": "none", "val_fraction": 0.0}
    plain = open_survey(SurveySettings(data_dir=str(survey), **options))
    origins = plain.tiles.train[:6]
    expected = TileReader(plain.stack, plain.bundles).read(origins)
    with serve(tmp_path) as served:
        table = tmp_path / "remote.csv"
        rows = [f"/vsicurl/{served.url}/survey/{name}.tif,{name}" for name in ("gravity", "magnetics")]
        table.write_text("\n".join(["path,name", *rows]) + "\n")
        assert [layer.name for layer in read_layers_table(table)] == ["gravity", "magnetics"]
        for source in ({"data_path": [f"{served.url}/both.zarr"]}, {"layers_table": str(table)}):
            remote = open_survey(SurveySettings(**source, **options))
            found = TileReader(remote.stack, remote.bundles).read(origins)
            assert all(
                torch.equal(a.nan_to_num(9e9), b.nan_to_num(9e9))
                for a, b in zip(expected.arrays, found.arrays, strict=True)
            )


@pytest.mark.parametrize("name, times", [("xarray:{url}/g.zarr#g", 2), ("/vsicurl/{url}/g.tif", 6)])
def test_a_short_outage_passes_and_is_told(large, name, times, caplog):
    folder, values = large
    with serve(folder) as served:
        opened = open_band(Layer("g", name.format(url=served.url)))
        served.fail("/g", times=times)  # GDAL asks twice before it says so
        np.testing.assert_array_equal(opened.read(300, 300, 50, 50), values[300:350, 300:350])
        told = [record.getMessage() for record in caplog.records if "attempt" in record.getMessage()]
        assert told and "attempt 1 of 4 failed" in told[0] and "next in 0.01 s" in told[0] and "layer 'g'" in told[0]


@pytest.mark.parametrize("name", ["xarray:{url}/g.zarr#g", "/vsicurl/{url}/g.tif"])
def test_a_long_outage_is_an_error_that_names_layer_and_window(large, name):
    folder, values = large
    with serve(folder) as served:
        opened = open_band(Layer("g", name.format(url=served.url)))
        served.fail("/g", times=10**9)
        with pytest.raises(OSError, match=r"layer 'g' .*rows 300 to 349, columns 300 to 349 of the .* cannot be read"):
            opened.read(300, 300, 50, 50)
        served.fail("", times=0)
        np.testing.assert_array_equal(opened.read(300, 300, 50, 50), values[300:350, 300:350])


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def test_a_server_that_is_not_there(tmp_path, capsys):
    url = f"http://127.0.0.1:{free_port()}/a.zarr"
    with pytest.raises(
        ValueError, match=r"http://127.*a\.zarr: cannot be opened .*check the address, and that its server answers"
    ):
        layers_of_stores([url])
    arguments = ["--dataset_type", "xarray", "--data_path", url, "--output_dir", str(tmp_path / "run"), *FLAGS]
    assert small_main.main(arguments) == 2
    assert "check the address, and that its server answers" in capsys.readouterr().err
    with pytest.raises(ValueError, match=r"layer 'g' .*cannot be opened as a raster"):
        open_band(Layer("g", f"/vsicurl/http://127.0.0.1:{free_port()}/a.tif"))


def test_a_server_that_does_not_speak(monkeypatch):
    monkeypatch.setattr(xarray_store, "ANSWER_S", 0.2)
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        with pytest.raises(ValueError, match="check the address, and that its server answers"):
            layers_of_stores([f"http://127.0.0.1:{silent.getsockname()[1]}/a.zarr"])


def test_a_run_stops_with_its_last_checkpoint_and_goes_on(tmp_path, capsys, monkeypatch):
    """The server breaks in the second epoch and comes back: resumed, the losses are those of an unbroken run."""
    monkeypatch.setattr(CHUNKS, "limit", 0)  # kept chunks would outlast the outage
    survey = write_survey(tmp_path / "survey")
    store_of(survey, tmp_path / "both.zarr")
    with serve(tmp_path) as served:
        flags = ["--dataset_type", "xarray", "--data_path", f"{served.url}/both.zarr", "--cache", "none", *FLAGS]
        whole = tmp_path / "whole"
        assert train(survey, whole, "--cache", "none") == 0
        served.fail("/c/", times=10**9, when=tmp_path / "run" / "checkpoint-last.pth")
        assert small_main.main([*flags, "--output_dir", str(tmp_path / "run")]) == 1
        message = capsys.readouterr().err
        assert "attempt 1 of 4 failed" in message
        assert (
            "tile at reference row" in message and "layer '" in message and "of the variable cannot be read" in message
        )
        state = checkpoint(tmp_path / "run")
        assert (state["epoch"], state["update"]) == (1, 0)
        served.fail("", times=0)
        assert small_main.main([*flags, "--output_dir", str(tmp_path / "run"), "--resume", "auto"]) == 0
        assert losses(tmp_path / "run") == losses(whole)


def test_local_files_are_tried_once(tmp_path, monkeypatch, caplog):
    write_grid(tmp_path / "a.tif", np.zeros((4, 4), np.float32))
    opened = open_band(Layer("a", str(tmp_path / "a.tif")))
    calls = []

    def fails(path):
        calls.append(path)
        raise rasterio.errors.RasterioIOError("broken")

    monkeypatch.setattr("datasets.rasters.band.open_dataset", fails)
    with pytest.raises(OSError, match="layer 'a' .*broken"):
        opened.read(0, 0, 2, 2)
    assert len(calls) == 1 and not caplog.records
