"""Shared by the benchmarks: a description of the machine, timing in turn, tables, test rasters."""

from __future__ import annotations

import platform
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
import timm
import torch
from affine import Affine

RESOLUTION = 100.0


def describe_machine(device: torch.device) -> dict[str, Any]:
    """Hardware and versions that times were measured with."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else _processor()
    return {
        "device": f"{device.type} {name}",
        "cpus": torch.multiprocessing.cpu_count(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "timm": timm.__version__,
        "numpy": np.__version__,
        "gdal": rasterio.__gdal_version__,
        "python": platform.python_version(),
    }


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    except OSError:
        names = []
    name = names[0] if names else platform.processor() or platform.machine()
    return f"{name}, {torch.backends.cpu.get_cpu_capability()}"


def time_in_turn(
    jobs: Mapping[str, Callable[[], object]],
    *,
    repeats: int,
    warmup: int = 1,
    device: torch.device | None = None,
    before: Callable[[str], None] = lambda name: None,
) -> dict[str, dict[str, float]]:
    """Times jobs in turn, so that other load on the machine affects all alike.

    Args:
        jobs: functions to run, by name.
        repeats: timed runs of each.
        warmup: untimed runs of each before.
        device: a GPU to wait for after each run.
        before: called with the job's name ahead of each run, outside of the time.

    Returns:
        For each job: median, lower and upper quartile of the wall-clock seconds of a run, and the median of the CPU
        seconds that all threads of this process took for it, which a busy machine does not lengthen as much.
    """
    wall: dict[str, list[float]] = {name: [] for name in jobs}
    spent: dict[str, list[float]] = {name: [] for name in jobs}
    for i in range(warmup + repeats):
        for name, job in jobs.items():
            before(name)
            start, cpu = time.perf_counter(), time.process_time()
            job()
            if device is not None and device.type == "cuda":
                torch.cuda.synchronize(device)
            if i >= warmup:
                wall[name].append(time.perf_counter() - start)
                spent[name].append(time.process_time() - cpu)
    return {name: summary(wall[name]) | {"cpu_s": statistics.median(spent[name])} for name in jobs}


def summary(seconds: Sequence[float]) -> dict[str, float]:
    """Median and quartiles."""
    low, middle, high = np.quantile(seconds, [0.25, 0.5, 0.75]).tolist()
    return {"median_s": middle, "q25_s": low, "q75_s": high}


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Rows as aligned text, a column for each key of the first one."""
    if not rows:
        return ""
    columns = list(dict.fromkeys(name for row in rows for name in row))
    cells = [columns, *([_text(row.get(column)) for column in columns] for row in rows)]
    widths = [max(len(line[k]) for line in cells) for k in range(len(columns))]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if k == 0 else cell.rjust(width)
            for k, (cell, width) in enumerate(zip(line, widths, strict=True))
        )
        for line in cells
    )


def _text(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:.4g}" if abs(value) < 1e4 else f"{value:.0f}"
    return str(value)


def write_raster(path: Path, *, size: int, resolution: float, seed: int = 0, block: int = 256) -> None:
    """Writes a square float32 GeoTIFF, tiled and compressed, of a field with detail at every scale."""
    rng = np.random.default_rng(seed)
    field = np.cumsum(rng.normal(size=(size, size)).astype(np.float32), axis=1)
    profile = {"driver": "GTiff", "dtype": "float32", "count": 1, "crs": "EPSG:32633", "compress": "deflate"}
    place = Affine(resolution, 0.0, 400_000.0, 0.0, -resolution, 6_000_000.0)
    tiling = {"tiled": True, "blockxsize": block, "blockysize": block}
    with rasterio.open(path, "w", width=size, height=size, transform=place, **profile, **tiling) as file:
        file.write(field, 1)


def write_sparse_raster(path: Path, *, size: int, resolution: float = RESOLUTION, block: int = 512) -> None:
    """Writes a square float32 GeoTIFF of which only the blocks near the diagonal hold data."""
    y, x = np.mgrid[:block, :block]
    field = (np.sin(x / 20) + np.cos(y / 30) + np.random.default_rng(0).normal(size=x.shape) / 10).astype(np.float32)
    profile = {"driver": "GTiff", "dtype": "float32", "count": 1, "crs": "EPSG:32633", "compress": "deflate"}
    profile |= {"nodata": -9999.0, "SPARSE_OK": "TRUE", "BIGTIFF": "YES"}
    place = Affine(resolution, 0.0, 400_000.0, 0.0, -resolution, 9_000_000.0)
    tiling = {"tiled": True, "blockxsize": block, "blockysize": block}
    with rasterio.open(path, "w", width=size, height=size, transform=place, **profile, **tiling) as file:
        count = size // block
        for i in range(count):
            for j in range(max(0, i - 3), min(count, i + 4)):
                window = rasterio.windows.Window(j * block, i * block, block, block)
                file.write(field + np.float32(0.01 * i + 0.02 * j), 1, window=window)
