"""Tiles a second of mapping whole rasters, compared with the encoder alone on batches in memory."""

from __future__ import annotations

import argparse
import logging
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

import main_inference
import main_pretrain
from scripts.benchmarks.common import RESOLUTION, describe_machine, time_in_turn, write_raster
from util.processes import distributed as dist
from util.processes.signals import Stop


def run_inference(args: argparse.Namespace) -> dict[str, Any]:
    """Times embeddings of a whole raster, from reading to writing, in turn with the encoder alone, for each model."""
    device = torch.device(args.device)
    rows = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "layers").mkdir()
        for layer, factor in (("fine", 1), ("coarse", 2)):
            path = folder / "layers" / f"{layer}.tif"
            write_raster(path, size=args.size // factor, resolution=RESOLUTION * factor, seed=factor)
        for model in args.models:
            rows.append(_measure(model, folder, args, device))
    return {"machine": describe_machine(device), "rows": rows}


def _measure(model: str, folder: Path, args: argparse.Namespace, device: torch.device) -> dict[str, Any]:
    job = _prepare(_checkpoint(model, folder, args), folder / f"maps-{model}", args, device)
    engine, size = job.engine, job.engine.model.img_size
    count = args.batch_size
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(count, engine.model.in_chans, size, size, generator=generator).to(device)
    valid = torch.ones_like(images, dtype=torch.bool)
    native = [
        torch.randn(count, channels, edge, edge, generator=generator).to(device)
        for channels, edge in engine.model.native_shapes
    ]
    _map(job)
    tiles = engine.meter.tiles

    def bare() -> None:
        for first in range(0, tiles, count):
            part = slice(0, min(count, tiles - first))
            with torch.inference_mode(), engine.autocast():
                engine.model.forward_tokens(images[part], valid[part], [image[part] for image in native])

    jobs: dict[str, Callable[[], object]] = {"bare": bare, "map": lambda: _map(job)}
    times = time_in_turn(jobs, repeats=args.repeats, warmup=0, device=device)
    bare_s, map_s = (times[name]["median_s"] for name in ("bare", "map"))
    return {
        "model": model,
        "tiles": tiles,
        "bare_tiles_per_s": tiles / bare_s,
        "map_tiles_per_s": tiles / map_s,
        "of_bare": bare_s / map_s,
        "of_bare_cpu": times["bare"]["cpu_s"] / times["map"]["cpu_s"],
    }


def _checkpoint(model: str, folder: Path, args: argparse.Namespace) -> Path:
    """Writes nearly untrained weights: their values do not change the time."""
    output = folder / f"weights-{model}"
    flags = f"--model {model} --input_size {args.input_size} --patch_size {args.patch_size} --epochs 1 --batch_size 1"
    flags += f" --tiles_per_epoch 1 --val_fraction 0 --figure_every 0 --no_progress --device {args.device}"
    logging.disable(logging.WARNING)
    try:
        status = main_pretrain.main([*flags.split(), "--data_dir", str(folder / "layers"), "--output_dir", str(output)])
    finally:
        logging.disable(logging.NOTSET)
    if status:
        raise ValueError("no checkpoint was written to measure with; run main_pretrain with these options to see why")
    return output / "checkpoint-last.pth"


def _prepare(
    checkpoint: Path, output: Path, args: argparse.Namespace, device: torch.device
) -> main_inference.InferenceRun:
    flags = f"--output embeddings --batch_size {args.batch_size} --device {args.device} --amp {args.amp} --no_progress"
    given = ["--checkpoint", str(checkpoint), "--output_dir", str(output), *flags.split()]
    return main_inference.prepare(main_inference.get_args_parser().parse_args(given), device, dist.Ranks())


def _map(job: main_inference.InferenceRun) -> None:
    """Runs the whole loop; its results are thrown away."""
    job.parts.open({}, resume=False)
    with Stop() as stop:
        main_inference.compute(job, stop)
