"""Rasters of several sizes: time and memory until the first batch, and tiles a second after it."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
import torch

from datasets.layers.table import layers_from_directory
from datasets.rasters.chunk_cache import CHUNKS
from datasets.rasters.open_band import open_band
from datasets.survey.open_survey import SurveySettings, open_survey
from datasets.survey.stack import Stack, make_bundles, reference_grid
from datasets.survey.tile_reader import TileReader
from scripts.benchmarks.common import describe_machine, write_sparse_raster
from util.hardware.device import peak_memory_bytes

TILE = 192
"""Tile edge in pixels of the raster: 48 base pixels at scale 4."""
BATCH = 32
ONE_BLOCK = 1 << 20
"""Bytes of decoded blocks in either cache while rates are measured: a raster that fits would be decoded only once."""


def run_scale(args: argparse.Namespace) -> dict[str, Any]:
    """Opens each size in a process of its own, to measure its peak memory; then times tiles of all sizes in turn."""
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        folders = [Path(folder) / str(size) for size in args.sizes]
        for size, each in zip(args.sizes, folders, strict=True):
            each.mkdir()
            write_sparse_raster(each / "layer.tif", size=size)
            rows.append({"size": size} | _apart("begin", each))
        rates = _apart(str(args.repeats), *folders)["tiles_per_cpu_s"]
    for row, found in zip(rows, rates, strict=True):
        row |= {"tiles_per_cpu_s": found, "of_first": found / rates[0]}
    return {"machine": describe_machine(torch.device("cpu")), "rows": rows}


def _apart(*arguments: str | Path) -> dict[str, Any]:
    command = [sys.executable, "-m", "scripts.benchmarks.raster_size", *map(str, arguments)]
    return json.loads(subprocess.run(command, capture_output=True, check=True).stdout)


def begin(folder: str) -> dict[str, Any]:
    """Opens a survey by window, lays out an epoch and reads a first batch."""
    start, cpu = time.perf_counter(), time.process_time()
    survey = open_survey(SurveySettings(data_dir=folder, input_size=TILE // 4, scales=(1, 2, 4), cache="none"))
    origins = survey.tiles.epoch(seed=0, epoch=0)
    survey.reader().read(origins[:BATCH])
    return {
        "tiles": len(survey.tiles.train),
        "first_batch_s": time.perf_counter() - start,
        "first_batch_cpu_s": time.process_time() - cpu,
        "peak_mib": peak_memory_bytes(torch.device("cpu")) / (1 << 20),
    }


def rates(folders: Sequence[str], *, repeats: int) -> dict[str, Any]:
    """Reads tiles at random places near the diagonals, from each raster in turn; each tile has to be decoded."""
    readers, edges = [], []
    for folder in folders:
        bands = [open_band(layer) for layer in layers_from_directory(folder)]
        stack = Stack(bands, reference_grid(bands))
        readers.append(TileReader(stack, make_bundles(stack, tile_rows=TILE, tile_cols=TILE, step=4)))
        edges.append(stack.reference.rows - TILE)
    rng = np.random.default_rng(0)
    seconds = np.zeros((repeats + 1, len(folders)))
    CHUNKS.limit = ONE_BLOCK
    with rasterio.Env(GDAL_CACHEMAX=ONE_BLOCK):
        for row_of_times in seconds:
            for k, (reader, edge) in enumerate(zip(readers, edges, strict=True)):
                row = rng.integers(100, edge // 4 - 100, BATCH) * 4
                col = row + rng.integers(-100, 100, BATCH) * 4
                cpu = time.process_time()
                reader.read(np.stack([row, col], axis=1))
                row_of_times[k] = time.process_time() - cpu
    return {"tiles_per_cpu_s": (BATCH / np.median(seconds[1:], axis=0)).tolist()}


if __name__ == "__main__":
    if sys.argv[1] == "begin":
        print(json.dumps(begin(sys.argv[2])))
    else:
        print(json.dumps(rates(sys.argv[2:], repeats=int(sys.argv[1]))))
