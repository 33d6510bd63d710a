"""Tiles a second of the loader: native windows and tiles ready for the model, from memory and from files."""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
import torch

from datasets.loading.prefetch import prefetch
from datasets.rasters.handles import close_datasets
from datasets.survey.open_survey import SurveySettings, open_survey
from datasets.survey.pyramid_cache import PyramidCache, to_sample
from datasets.survey.survey import Survey
from datasets.survey.tile_reader import TileReader
from scripts.benchmarks.common import RESOLUTION, describe_machine, time_in_turn, write_raster
from util.hardware.malloc import keep_freed_memory

CPU = torch.device("cpu")
CACHED_SIZE = 2000
"""Largest raster whose blocks stay decoded: 20 MiB of our cache of 256, and 40 of GDAL's 128, half for bare reads."""


@contextmanager
def opened(*, size: int, input_size: int, cache: str) -> Iterator[tuple[Survey, Path]]:
    """A survey of a 100 m and a 200 m layer of the same ground, 100 m pixels `size` along an edge."""
    with tempfile.TemporaryDirectory() as folder:
        for name, factor in (("fine", 1), ("coarse", 2)):
            path = Path(folder) / f"{name}.tif"
            write_raster(path, size=size // factor, resolution=RESOLUTION * factor, seed=factor)
        settings = SurveySettings(data_dir=folder, input_size=input_size, scales=(1, 2, 4), cache=cache)
        yield open_survey(settings), Path(folder)


def run_loader(args: argparse.Namespace) -> dict[str, Any]:
    """Tiles a second of every way to read, timed in turn; where threads read ahead, the consumer does nothing."""
    keep_freed_memory()
    small = {"size": min(args.size, CACHED_SIZE), "input_size": args.input_size, "cache": "none"}
    with (
        opened(size=args.size, input_size=args.input_size, cache="ram") as (survey, _),
        opened(**small) as (windowed, folder),
    ):
        memory = TileReader(survey.stack, survey.bundles)
        pooled = PyramidCache(survey, CPU)
        pyramid = survey.pyramid()
        batches, of_files = (_batches(each, args) for each in (survey, windowed))

        def ready(part: np.ndarray) -> object:
            return to_sample(memory.read(part), pyramid, CPU)

        files = TileReader(windowed.stack, windowed.bundles)
        jobs: dict[str, Callable[[], object]] = {
            "native, memory": partial(_each, batches, memory.read),
            "ready, each tile pooled": partial(_each, batches, ready),
            "ready, pooled once": partial(_each, batches, pooled.read),
            "native, files, decoded before": partial(_each, of_files, files.read),
            "the same, bare rasterio": partial(_each, of_files, partial(_bare, _handles(folder), windowed)),
        }
        for workers in args.workers:
            jobs[f"ready, pooled once, {workers} threads"] = partial(_ahead, batches, pooled.read, workers)
            jobs[f"native, files, {workers} threads"] = partial(_ahead, of_files, files.read, workers)
        if args.device:
            jobs |= _onto_device(survey, batches, torch.device(args.device), args.workers)
        times = time_in_turn(jobs, repeats=args.repeats, device=torch.device(args.device or "cpu"))
    count = args.tiles
    rows = [
        {
            "way": name,
            "tiles_per_s": count / found["median_s"],
            "from": count / found["q75_s"],
            "to": count / found["q25_s"],
            "tiles_per_cpu_s": count / found["cpu_s"],
        }
        for name, found in times.items()
    ]
    facts = {"pooled_mib": pooled.memory_bytes / 2**20, "decoding": _decoding(args)}
    return {"machine": describe_machine(torch.device(args.device or "cpu")), "rows": rows, "facts": facts}


def _onto_device(
    survey: Survey, batches: list[np.ndarray], device: torch.device, workers: list[int]
) -> dict[str, Callable[[], object]]:
    """Two ways to tiles that are ready on a device: all layers kept there, or native pixels copied there and averaged.

    Native pixels are copied from page-locked memory, without waiting, as training does.
    """
    kept, pyramid, native = PyramidCache(survey, device), survey.pyramid(), TileReader(survey.stack, survey.bundles)

    def read(part: np.ndarray) -> Any:
        found = native.read(part)
        return found.pin() if device.type == "cuda" else found

    def copied(count: int) -> None:
        for _, tiles in prefetch(batches, read, workers=count):
            to_sample(tiles, pyramid, device)

    jobs: dict[str, Callable[[], object]] = {f"on {device.type}, --cache device": partial(_each, batches, kept.read)}
    return jobs | {f"on {device.type}, native pixels, {count} threads": partial(copied, count) for count in workers}


def _batches(survey: Survey, args: argparse.Namespace) -> list[np.ndarray]:
    origins = survey.tiles.epoch(seed=0, epoch=0, tiles=args.tiles)
    return [origins[k : k + args.batch_size] for k in range(0, len(origins), args.batch_size)]


def _each(batches: list[np.ndarray], read: Callable[[np.ndarray], object]) -> None:
    for part in batches:
        read(part)


def _ahead(batches: list[np.ndarray], read: Callable[[np.ndarray], object], workers: int) -> None:
    for _ in prefetch(batches, read, workers=workers):
        pass


def _handles(folder: Path) -> list[rasterio.DatasetReader]:
    return [rasterio.open(path) for path in sorted(folder.glob("*.tif"), reverse=True)]


def _bare(handles: list[rasterio.DatasetReader], survey: Survey, part: np.ndarray) -> None:
    """Reads the same windows with rasterio alone: handles stay open, results are thrown away."""
    height, width = survey.tiles.height, survey.tiles.width
    for row, col in part.tolist():
        for factor, handle in enumerate(handles, start=1):
            window = rasterio.windows.Window(col // factor, row // factor, width // factor, height // factor)
            handle.read(1, window=window)


def _decoding(args: argparse.Namespace) -> dict[str, float]:
    """Tiles a second where nothing is decoded yet: files are opened anew, so that no cache holds any block."""
    rates: dict[str, list[float]] = {"ours": [], "bare": []}
    with opened(size=args.size, input_size=args.input_size, cache="none") as (survey, folder):
        origins = survey.tiles.epoch(seed=0, epoch=0, tiles=args.batch_size)
        for _ in range(args.repeats):
            close_datasets()
            start = time.process_time()
            TileReader(survey.stack, survey.bundles).read(origins)
            rates["ours"].append(len(origins) / (time.process_time() - start))
            handles = _handles(folder)
            start = time.process_time()
            _bare(handles, survey, origins)
            rates["bare"].append(len(origins) / (time.process_time() - start))
            for handle in handles:
                handle.close()
    ours, bare = (float(np.median(rates[name])) for name in ("ours", "bare"))
    return {"tiles_per_cpu_s": ours, "bare_tiles_per_cpu_s": bare, "of_bare": ours / bare}
