"""Whether cost follows the work alone: time and memory to begin on rasters of several sizes, tiles a second after."""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from datasets.grid import TileReader, open_survey
from scripts.bench_common import describe_machine, write_sparse_raster


def run_scale(args: argparse.Namespace) -> dict[str, Any]:
    """Each size in a process of its own, whose peak memory is its own."""
    rows = []
    for size in args.sizes:
        with tempfile.TemporaryDirectory() as folder:
            write_sparse_raster(Path(folder) / "layer.tif", size=size)
            command = [sys.executable, "-m", "scripts.bench_scale", folder, str(args.input_size), str(args.repeats)]
            rows.append({"size": size} | json.loads(subprocess.run(command, capture_output=True, check=True).stdout))
    for row in rows:
        row["of_first"] = row["tiles_per_cpu_s"] / rows[0]["tiles_per_cpu_s"]
    return {"machine": describe_machine(torch.device("cpu")), "rows": rows}


def begin(folder: str, *, input_size: int, repeats: int) -> dict[str, Any]:
    """Opens a survey by window, reads a first batch, then more of them."""
    start, cpu = time.perf_counter(), time.process_time()
    survey = open_survey(data_dir=folder, input_size=input_size, scales=(1, 2, 4), cache="none")
    reader = TileReader(survey.stack, survey.blocks)
    origins = survey.tiles.epoch(seed=0, epoch=0)
    reader.read(origins[:32])
    result: dict[str, Any] = {
        "tiles": len(survey.tiles.train),
        "first_batch_s": time.perf_counter() - start,
        "first_batch_cpu_s": time.process_time() - cpu,
        "peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    }
    rates = []
    for k in range(1, repeats + 1):
        part = origins[(32 * k) % max(len(origins) - 32, 1) :][:32]
        cpu = time.process_time()
        reader.read(part)
        rates.append(len(part) / (time.process_time() - cpu))
    return result | {"tiles_per_cpu_s": float(np.median(rates))}


if __name__ == "__main__":
    print(json.dumps(begin(sys.argv[1], input_size=int(sys.argv[2]), repeats=int(sys.argv[3]))))
