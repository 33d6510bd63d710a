"""The flags of main_inference, and those that a stopped run must share with the one that goes on."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any

from util.options import common as options

DECISIVE = (
    "base_resolution",
    "pool",
    "stride",
    "positions",
    "dtype",
    "draws",
    "mask_ratio",
    "max_gap",
    "views",
    "overlap",
    "seed",
    "block_size",
    "aoi",
    "extent",
    "reproject",
    "amp",
)
"""Options that must be the same for a stopped run to be continued; checkpoint and layers are compared themselves."""


MASKED = ("reconstruction", "gapfill", "superresolution")
ONLY_FOR = {
    "pool": ("embeddings",),
    "positions": ("embeddings",),
    "dtype": ("embeddings",),
    "clusters": ("embeddings",),
    "stride": ("embeddings", "prediction"),
    "draws": MASKED,
    "mask_ratio": MASKED,
    "views": ("prediction",),
    "max_gap": ("gapfill",),
}
"""Options that do something for some kinds of results only."""


def check(args: argparse.Namespace) -> None:
    """Refuses options that do nothing for the result that is asked for.

    Raises:
        ValueError: naming the flag, its value and what it is for.
    """
    defaults = argparse.ArgumentParser()
    add_result_options(defaults)
    for name, outputs in ONLY_FOR.items():
        value = getattr(args, name)
        if args.output not in outputs and value != defaults.get_default(name):
            raise ValueError(
                f"--{name} {value} does nothing for --output {args.output}; it is for {', '.join(outputs)}"
            )


def decisive(args: argparse.Namespace) -> dict[str, Any]:
    """The values of the options that parts of results depend on."""
    return {key: getattr(args, key) for key in DECISIVE}


def add_source_options(parser: argparse.ArgumentParser, *, outputs: Sequence[str]) -> None:
    """Adds what is applied to what: checkpoint, kind of result, rasters."""
    parser.add_argument("--checkpoint", required=True, help="checkpoint of main_pretrain or main_finetune")
    parser.add_argument("--output", required=True, choices=list(outputs), help="what to write")
    parser.add_argument("--output_dir", default="./inference", help="where to write it (./inference)")
    data = parser.add_argument_group("data")
    data.add_argument("--data_dir", help="directory with the layers, found by name (default: those of the checkpoint)")
    data.add_argument("--train_path", help="layers.csv that names them instead")
    data.add_argument(
        "--base_resolution", type=options.positive, help="ground edge of a base-scale pixel, CRS units (as in training)"
    )
    data.add_argument("--extent", choices=["union", "intersection"], help="ground (as in training)")
    data.add_argument("--reproject", action="store_true", help="warp layers on the fly to the first layer's CRS")
    data.add_argument("--aoi", help="polygons file; nothing is written outside")
    data.add_argument(
        "--missing_layers",
        default="refuse",
        choices=["refuse", "allow"],
        help="allow: run with layers absent, which the results' tags say (refuse)",
    )


def add_result_options(parser: argparse.ArgumentParser) -> None:
    """Adds what decides the numbers that are written."""
    what = parser.add_argument_group("results")
    what.add_argument(
        "--pool", default="mean", choices=["mean", "group"], help="embeddings: over groups, or each (mean)"
    )
    what.add_argument(
        "--stride", type=options.positive_int, help="embeddings, classes of windows: base pixels between them (a patch)"
    )
    what.add_argument(
        "--positions",
        default="remove",
        choices=["remove", "keep"],
        help="embeddings: remove the mean that features have at each place within a tile, or keep it (remove)",
    )
    what.add_argument("--dtype", default="float32", choices=["float32", "float16"], help="embeddings: type (float32)")
    what.add_argument("--clusters", type=options.count, default=0, help="embeddings: classes by k-means, 0 = none (0)")
    what.add_argument("--draws", type=options.positive_int, default=4, help="masked views of a tile (4)")
    what.add_argument("--mask_ratio", type=options.fraction, help="share of tokens hidden in a view (as in training)")
    what.add_argument(
        "--views",
        type=int,
        choices=[1, 8],
        help="prediction: look at tiles as they lie, or in all eight turned and mirrored ways and average (8 for "
        "values, whose spread needs them, if training turned its windows; else 1)",
    )
    what.add_argument("--max_gap", type=options.positive, help="gapfill: widest gap filled, CRS units (half a tile)")
    what.add_argument(
        "--overlap", type=options.fraction, default=0.5, help="share of a tile that the next repeats (0.5)"
    )
    what.add_argument("--seed", type=options.count, default=0, help="seed of masks and clusters (0)")


def add_run_options(parser: argparse.ArgumentParser) -> None:
    """Adds what decides where and how a run computes."""
    run = parser.add_argument_group("run")
    run.add_argument("--overwrite", action="store_true", help="replace results that exist")
    run.add_argument("--resume", action="store_true", help="go on with what a stopped run left in the output folder")
    run.add_argument("--batch_size", type=options.positive_int, default=64, help="tiles per forward pass (64)")
    run.add_argument(
        "--block_size",
        type=options.positive_int,
        default=384,
        help="edge of the square that is held in memory at a time, base pixels (384)",
    )
    run.add_argument("--num_workers", type=options.count, default=1, help="squares read ahead, in threads (1)")
    run.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    run.add_argument("--amp", default="auto", choices=["auto", "fp16", "bf16", "off"], help="mixed precision (auto)")
    run.add_argument("--no_progress", action="store_true", help="no progress bar")
    run.add_argument("--world_size", type=options.positive_int, default=1, help="processes (set by torchrun)")
    run.add_argument("--local_rank", "--local-rank", type=int, default=-1, help="set by launchers")
    run.add_argument("--dist_url", default="env://", help="where processes meet (env://)")
