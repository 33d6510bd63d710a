"""Time and cost of pre-training on one and on many GPUs: arithmetic from counted FLOPs and stated rates, not measured.

Every rate is an option. Two cases bracket the answer: in the good one a GPU reaches the larger fraction of its peak and
all gradients are sent while others are computed; in the bad one it reaches the smaller, and they are sent afterwards.
"""

from __future__ import annotations

import argparse
import math
from dataclasses import dataclass
from typing import Any

import torch

from models_mae_group_channels import build_model
from scripts.benchmarks.step import divide
from util.training.flops import step_cost
from util.training.memory import count_tensors
from util.training.training_step import pretraining_step

RASTERS = {"sample": 2_048, "state": 20_000, "continent 100 m": 40_000, "continent 80 m": 50_000}
"""Edges in pixels of the finest layer: 205 km, 2,000 km and 4,000 km at 100 m, and 4,000 km at 80 m."""
FINEST = 4
"""Finest scale that is reconstructed: that many pixels along a base pixel."""
GPUS_A_NODE = 8
MEASURED_LAYERS, MEASURED_EDGE = 2, 384
"""Layers and tile edge, in pixels of the finest, for which the rates of the loader were measured."""


@dataclass(frozen=True)
class Rates:
    """Assumed rates of the machines.

    Attributes:
        peak: FLOP/s of a GPU's matrix units in half precision.
        share: fraction of that peak that a step reaches.
        link: bytes a second between the GPUs of a node.
        network: bytes a second between nodes.
        loader: tiles a second that the loader delivers to a GPU.
        overlaps: gradients are sent while others are computed.
    """

    peak: float
    share: float
    link: float
    network: float
    loader: float
    overlaps: bool


def ring_seconds(size: float, *, gpus: int, rates: Rates) -> float:
    """Time of an all-reduce of `size` bytes in a ring: each GPU sends and receives 2 (n - 1) / n of them.

    The slowest link of the ring decides; latency is neglected.
    """
    slowest = rates.link if gpus <= GPUS_A_NODE else min(rates.link, rates.network)
    return 2 * (gpus - 1) / gpus * size / slowest


def tiles_of(size: int, *, edge: int, overlap: float) -> int:
    """Number of windows of `edge` pixels on a square raster without gaps."""
    stride = max(1, round(edge * (1 - overlap)))
    along = (size - edge) // stride + 1 if size >= edge else 0
    return along * along


def update_seconds(tiles: int, *, flops: float, gradient_bytes: float, gpus: int, rates: Rates) -> dict[str, float]:
    """Time of an update: of each of its parts, and in all.

    Args:
        tiles: tiles of the update, on all GPUs together.
        flops: of a tile, forward and backward.
        gradient_bytes: sent once an update.
        gpus: number of GPUs.
        rates: of the machines.

    Returns:
        Seconds of `compute`, `network` and `loader`, and their `all`: reading goes on beside computing.
    """
    mine = math.ceil(tiles / gpus)
    compute, loader = mine * flops / (rates.peak * rates.share), mine / rates.loader
    network = ring_seconds(gradient_bytes, gpus=gpus, rates=rates)
    busy = max(compute, network) if rates.overlaps else compute + network
    return {"compute": compute, "network": network, "loader": loader, "all": max(busy, loader)}


def loader_rate(args: argparse.Namespace, *, size: int, layers: int) -> float:
    """Tiles a second for each process: from memory if the layers of all processes of a node fit, else from files.

    The measured rates are those of two layers and one tile size; they are assumed to scale with the pixels read.
    """
    held = 4 * size * size * layers * GPUS_A_NODE
    rate = args.loader_memory if held <= args.host_gib * 2**30 else args.loader_files
    return rate * MEASURED_LAYERS / layers * (MEASURED_EDGE / (FINEST * args.input_size)) ** 2


def run_scaling(args: argparse.Namespace) -> dict[str, Any]:
    """Time, GPU hours, cost, memory and bottleneck for each model, number of layers, raster and number of GPUs.

    Raises:
        ValueError: unknown model or raster.
    """
    unknown = [name for name in args.rasters if name not in RASTERS]
    if unknown:
        raise ValueError(f"--rasters {unknown[0]}: unknown, expected one or more of {', '.join(RASTERS)}")
    rows = []
    for name in args.models:
        for layers in args.layers:
            with torch.device("meta"):
                sizes = {"img_size": args.input_size, "patch_size": args.patch_size}
                groups = divide(layers, args.groups)
                model = build_model(name, **sizes, in_chans=layers, channel_groups=groups, scale_heads="subpixel")
            cost = step_cost(model, batch_size=1)
            trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
            facts = {
                "model": name,
                "layers": layers,
                "gflop_a_tile": cost.step_flops / 1e9,
                "gradient_mb": trained / 25e4,
            }
            memory = count_tensors(pretraining_step(model), batch_size=args.batch_size) / 2**30
            rows += [
                facts | row | {"memory_gib": memory}
                for raster in args.rasters
                for row in _rows(args, raster, layers=layers, flops=cost.step_flops, gradient_bytes=4 * trained)
            ]
    return {"rows": rows, "facts": {"kind": "arithmetic; nothing was timed on a GPU"}}


def _rows(
    args: argparse.Namespace, raster: str, *, layers: int, flops: float, gradient_bytes: float
) -> list[dict[str, Any]]:
    """Rows of a model on a raster, one for each number of GPUs."""
    size = RASTERS[raster]
    tiles = tiles_of(size, edge=FINEST * args.input_size, overlap=args.overlap)
    links = {"peak": args.peak_tflops * 1e12, "link": args.link_gb_s * 1e9, "network": args.network_gbit_s / 8 * 1e9}
    links["loader"] = loader_rate(args, size=size, layers=layers)
    rows = []
    for gpus in args.gpus:
        hours, limits = [], ""
        for share, overlaps in ((max(args.shares), True), (min(args.shares), False)):
            rates = Rates(share=share, overlaps=overlaps, **links)
            full, rest = divmod(tiles, args.effective_batch)
            work = {"flops": flops, "gradient_bytes": gradient_bytes, "gpus": gpus, "rates": rates}
            typical = update_seconds(min(tiles, args.effective_batch), **work)
            last = update_seconds(rest, **work)["all"] if rest else 0.0
            hours.append(args.epochs * (full * update_seconds(args.effective_batch, **work)["all"] + last) / 3600)
            limits = limits or max(("compute", "network", "loader"), key=lambda key: typical[key])
        row = {"raster": raster, "tiles": tiles, "gpus": gpus, "hours_good": hours[0], "hours_bad": hours[1]}
        costs = {f"cost_{case}": h * gpus * args.price for case, h in zip(("good", "bad"), hours, strict=True)}
        rows.append(row | {"gpu_hours_bad": hours[1] * gpus} | costs | {"limits_good": limits})
    return rows


def add_options(command: argparse.ArgumentParser) -> None:
    """The assumptions, each with its default."""
    command.add_argument("--models", nargs="+", default=["tiny", "small", "base", "large"], help="(all)")
    command.add_argument("--layers", nargs="+", default=[2, 10], help="numbers (2 10)", type=int)
    command.add_argument("--groups", default=2, help="channel groups (2)", type=int)
    command.add_argument("--input_size", default=96, help="tile edge, base pixels of 4 of the finest (96)", type=int)
    command.add_argument("--patch_size", default=8, help="base pixels (8)", type=int)
    command.add_argument("--rasters", nargs="+", default=list(RASTERS), help=f"out of {', '.join(RASTERS)} (all)")
    command.add_argument("--overlap", default=0.75, help="of training tiles (0.75)", type=float)
    command.add_argument("--epochs", default=50, help="(50)", type=int)
    command.add_argument("--gpus", nargs="+", default=[1, 8, 64], help="numbers (1 8 64)", type=int)
    command.add_argument("--effective_batch", default=512, help="tiles an update, on all GPUs (512)", type=int)
    command.add_argument("--batch_size", default=8, help="tiles at a time on a GPU, for its memory (8)", type=int)
    command.add_argument("--peak_tflops", default=125, help="half-precision peak of a GPU, TFLOP/s (125)", type=float)
    command.add_argument("--shares", nargs=2, default=[0.15, 0.4], help="of it that are reached (0.15 0.4)", type=float)
    command.add_argument("--link_gb_s", default=100, help="between GPUs of a node, GB/s (100)", type=float)
    command.add_argument("--network_gbit_s", default=100, help="between nodes, Gbit/s (100)", type=float)
    command.add_argument("--loader_memory", default=6550, help="tiles/s and process out of memory (6120)", type=float)
    command.add_argument("--loader_files", default=256, help="the same, each block decoded (256)", type=float)
    command.add_argument("--host_gib", default=256, help="memory of a node for layers, GiB (256)", type=float)
    command.add_argument("--price", default=3, help="of a GPU for an hour (3)", type=float)
