"""Times reading batches from rasters, zarr and netCDF, on disk and over HTTP, and with plain xbatcher.

python -m scripts.benchmark_sources --pixels 2048 --tile 64 --batch_size 16 --batches 12

Needs the packages of requirements-xarray.txt. Each source reads the same tiles in the same order, one batch in turn, so
that other load on the machine affects all alike. Plain xbatcher chooses its own tiles, in order; it is timed on as many
tiles of the same size, masked to NaN by xarray.
"""

from __future__ import annotations

import sys
from pathlib import Path

if not __package__:  # run as a file, from any folder
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import argparse
import json
import os
import platform
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable, Sequence
from itertools import islice

import numpy as np
import rasterio
import torch
from affine import Affine

from datasets.rasters.handles import close_datasets
from datasets.rasters.xarray_store import require
from datasets.survey.open_survey import SurveySettings, open_survey
from datasets.survey.survey import Survey
from datasets.survey.tile_reader import TileReader
from scripts.benchmarks.http_server import Served, serve
from scripts.benchmarks.xbatcher_tiles import TileBatches, bundle_dataset
from util.options.parser import Parser

CRS = "EPSG:28354"
BLOCK = 256


def get_args_parser() -> argparse.ArgumentParser:
    """The options."""
    parser = Parser("benchmark_sources", description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--pixels", type=int, default=2048, help="edge of the finer layer, pixels (2048)")
    parser.add_argument("--tile", type=int, default=64, help="tile edge on the finer layer, pixels (64)")
    parser.add_argument("--batch_size", type=int, default=16, help="tiles in a batch (16)")
    parser.add_argument("--batches", type=int, default=12, help="timed batches of each source (12)")
    parser.add_argument("--warmup", type=int, default=2, help="batches of each before timing (2)")
    parser.add_argument("--cold", action="store_true", help="drop decoded blocks before every batch")
    parser.add_argument("--json", action="store_true", help="print one JSON object and nothing else")
    return parser


def parse_arguments(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Reads the command line."""
    return get_args_parser().parse_args(argv)


def write_data(folder: Path, pixels: int) -> None:
    """Writes a layer of 100 m and one of 200 m as tiled GeoTIFF, in a zarr store and in a netCDF file."""
    xarray = require("xarray", "writing test data")
    rng = np.random.default_rng(0)
    (folder / "tif").mkdir()
    for number, (name, resolution) in enumerate({"fine": 100.0, "coarse": 200.0}.items()):
        count = round(pixels * 100 / resolution)
        values = rng.normal(size=(count, count)).astype(np.float32)
        values[: count // 8, : count // 8] = -99999.0
        transform = Affine(resolution, 0.0, 500_000.0, 0.0, -resolution, 6_000_000.0)
        profile = {"driver": "GTiff", "dtype": "float32", "count": 1, "crs": CRS, "transform": transform}
        profile |= {"nodata": -99999.0, "tiled": True, "blockxsize": BLOCK, "blockysize": BLOCK, "compress": "deflate"}
        with rasterio.open(folder / "tif" / f"{name}.tif", "w", width=count, height=count, **profile) as file:
            file.write(values, 1)
        edges = (np.arange(count) + 0.5) * resolution
        dataset = xarray.Dataset(
            {name: (("y", "x"), values, {"_FillValue": np.float32(-99999.0), "grid_mapping": "spatial_ref"})},
            coords={"y": 6_000_000.0 - edges, "x": 500_000.0 + edges},
        ).assign_coords(spatial_ref=((), 0, {"crs_wkt": rasterio.CRS.from_string(CRS).to_wkt()}))
        mode, chunks = "a" if number else "w", (BLOCK, BLOCK)
        dataset.to_zarr(folder / "all.zarr", group=name, mode=mode, encoding={name: {"chunks": chunks}})
        packed = {"chunksizes": chunks, "zlib": True}
        dataset.to_netcdf(folder / "all.nc", group=name, mode=mode, engine="h5netcdf", encoding={name: packed})
    require("zarr", "writing test data").consolidate_metadata(folder / "all.zarr")


def plain_xbatcher(store: str, *, tile: int, batch_size: int) -> Callable[[int], list[torch.Tensor]]:
    """Batches without our code: xarray masks, xbatcher slices one tile after the other, and both are stacked."""
    xarray, xbatcher = require("xarray", "plain xbatcher"), require("xbatcher", "plain xbatcher")
    generators = []
    for group, edge in (("fine", tile), ("coarse", tile // 2)):
        dataset = xarray.open_dataset(store, group=group, engine="zarr", chunks=None, cache=False)[[group]]
        generators.append(iter(xbatcher.BatchGenerator(dataset, input_dims={"y": edge, "x": edge})))

    def read(number: int) -> list[torch.Tensor]:
        batch = []
        for generator in generators:
            tiles = [next(iter(part.data_vars.values())).values for part in islice(generator, batch_size)]
            batch.append(torch.from_numpy(np.stack(tiles)[:, None]))
        return batch

    return read


def make_readers(folder: Path, served: Served, args: argparse.Namespace) -> dict[str, Callable[[int], object]]:
    """A function that reads batch number n, for each source."""
    options = {
        "input_size": args.tile // 4,
        "scales": (1, 2, 4),
        "val_fraction": 0.0,
        "cache": "none",
        "tile_overlap": 0.5,
    }
    table = folder / "remote.csv"
    lines = [f"/vsicurl/{served.url}/tif/{name}.tif" for name in ("coarse", "fine")]
    table.write_text("\n".join(["path", *lines]) + "\n", encoding="utf-8")
    surveys = {
        "GeoTIFF": open_survey(SurveySettings(data_dir=str(folder / "tif"), **options)),
        "zarr": open_survey(SurveySettings(data_path=[str(folder / "all.zarr")], **options)),
        "netCDF": open_survey(SurveySettings(data_path=[str(folder / "all.nc")], **options)),
        "GeoTIFF over HTTP": open_survey(SurveySettings(layers_table=str(table), **options)),
        "zarr over HTTP": open_survey(SurveySettings(data_path=[f"{served.url}/all.zarr"], **options)),
        "in memory": open_survey(SurveySettings(data_path=[str(folder / "all.zarr")], **{**options, "cache": "ram"})),
    }
    needed = (args.batches + args.warmup) * args.batch_size
    origins = surveys["zarr"].tiles.epoch(seed=0, epoch=0, tiles=needed)

    def of_survey(survey: Survey) -> Callable[[int], object]:
        reader = TileReader(survey.stack, survey.bundles)
        return lambda n: reader.read(origins[n * args.batch_size : (n + 1) * args.batch_size])

    readers: dict[str, Callable[[int], object]] = {name: of_survey(survey) for name, survey in surveys.items()}
    memory = surveys["in memory"]
    parts = [
        TileBatches(bundle_dataset(memory, bundle), bundle, origins, batch_size=args.batch_size)
        for bundle in memory.bundles
    ]
    readers["in memory, tiles through xbatcher"] = lambda n: [part[n] for part in parts]
    plain = {"tile": args.tile, "batch_size": args.batch_size}
    readers["plain xbatcher, zarr"] = plain_xbatcher(str(folder / "all.zarr"), **plain)
    readers["plain xbatcher, zarr over HTTP"] = plain_xbatcher(f"{served.url}/all.zarr", **plain)
    return readers


def time_in_turn(
    readers: dict[str, Callable[[int], object]], served: Served, *, batches: int, warmup: int, cold: bool
) -> dict[str, dict[str, float]]:
    """Batches a second of each source, and bytes sent by the server, one batch of each in turn."""
    times: dict[str, list[float]] = {name: [] for name in readers}
    sent = dict.fromkeys(readers, 0)
    for n in range(warmup + batches):
        for name, read in readers.items():
            if cold:
                close_datasets()  # decoded pixels go with them
            before, start = served.sent, time.perf_counter()
            read(n)
            elapsed = time.perf_counter() - start
            if n >= warmup:
                times[name].append(elapsed)
                sent[name] += served.sent - before
    return {
        name: {
            "batches_per_s": 1 / statistics.median(values),
            "slowest_s": max(values),
            "sent_bytes_per_batch": sent[name] / len(values),
        }
        for name, values in times.items()
    }


def main(argv: Sequence[str] | None = None) -> int:
    """Measures and prints a table; exit status 2 for bad input."""
    args = parse_arguments(argv)
    warnings.simplefilter("ignore")  # consolidated metadata is not part of zarr format 3 yet
    try:
        if args.tile % 8:
            raise ValueError(f"--tile {args.tile}: expected a multiple of 8 pixels")
        with tempfile.TemporaryDirectory() as name, serve(Path(name)) as served:
            write_data(Path(name), args.pixels)
            readers = make_readers(Path(name), served, args)
            found = time_in_turn(readers, served, batches=args.batches, warmup=args.warmup, cold=args.cold)
    except ValueError as error:
        print(f"benchmark_sources: error: {error}", file=sys.stderr)
        return 2
    facts = {"machine": f"{platform.machine()}, {os.cpu_count()} CPUs, Python {platform.python_version()}"}
    if args.json:
        print(
            json.dumps({**facts, "arguments": {k: v for k, v in vars(args).items() if k != "json"}, "sources": found})
        )
        return 0
    print(
        f"{facts['machine']}; {args.pixels} x {args.pixels} pixels and half of that, tiles of {args.tile}, batches of "
        f"{args.batch_size}, one thread, {args.batches} batches of each in turn, "
        f"decoded blocks {'dropped' if args.cold else 'cached'} between them"
    )
    for name, row in found.items():
        kib = row["sent_bytes_per_batch"] / 1024
        print(
            f"{name:36}{row['batches_per_s']:9.1f} batches/s  slowest {1000 * row['slowest_s']:7.1f} ms"
            + (f"  {kib:8.0f} KiB sent a batch" if kib else "")
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
