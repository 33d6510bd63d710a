"""The flags of main_inference, the checks that depend on the product, and what a resumed run must share."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from typing import Any

from util.options import common as options

APPLIED_AT_THE_END = ("clusters",)
"""Result options that the parts of rasters do not depend on."""

ALSO_DECISIVE = ("base_resolution", "block_size", "aoi", "extent", "reproject", "amp")
"""Other options that parts depend on; checkpoint, layers and polygons are compared themselves."""


def product_options(args: argparse.Namespace, options_of: Mapping[str, Sequence[str]]) -> dict[str, Any]:
    """The values of the options of the chosen product, by name.

    Args:
        args: the parsed options.
        options_of: for each product, the names of the options that only some products use.

    Raises:
        ValueError: an option of other products was given, naming the flag, its value and the products.
    """
    own = options_of[args.output]
    defaults = _result_defaults()
    for name in dict.fromkeys(name for names in options_of.values() for name in names):
        value = getattr(args, name)
        if name not in own and value != defaults[name]:
            users = ", ".join(product for product, names in options_of.items() if name in names)
            raise ValueError(f"--{name} {value} does nothing for --output {args.output}; it is for {users}")
    return {name: getattr(args, name) for name in own}


def decisive(args: argparse.Namespace) -> dict[str, Any]:
    """The values of the options that parts of results depend on: a run can only be resumed with the same ones."""
    names = (*(name for name in _result_defaults() if name not in APPLIED_AT_THE_END), *ALSO_DECISIVE)
    return {name: getattr(args, name) for name in names}


def _result_defaults() -> dict[str, Any]:
    """Names and defaults of the options of `add_result_options`."""
    parser = argparse.ArgumentParser(add_help=False)
    add_result_options(parser)
    return vars(parser.parse_args([]))


def add_source_options(parser: argparse.ArgumentParser, *, products: Mapping[str, str]) -> None:
    """Adds checkpoint, product and rasters.

    Args:
        parser: gets the options.
        products: help text of each product, by name.
    """
    what = "what to write: " + "; ".join(f"{name} = {text}" for name, text in products.items())
    parser.add_argument("--checkpoint", required=True, help="checkpoint of main_pretrain or main_finetune")
    parser.add_argument("--output", required=True, choices=list(products), help=what)
    parser.add_argument("--output_dir", default="./inference", help="where to write it (./inference)")
    data = parser.add_argument_group("data")
    data.add_argument("--data_dir", help="directory with the layers, found by name (default: those of the checkpoint)")
    data.add_argument("--train_path", help="layers.csv that lists them instead")
    data.add_argument(
        "--base_resolution", type=options.positive, help="edge of a base-scale pixel, CRS units (as in training)"
    )
    data.add_argument(
        "--extent",
        choices=["union", "intersection"],
        help="ground covered: that of any layer, or of all (as in training)",
    )
    data.add_argument("--reproject", action="store_true", help="warp layers on the fly to the first layer's CRS")
    data.add_argument("--aoi", help="vector file with polygons; nothing is written outside")
    data.add_argument(
        "--missing_layers",
        default="refuse",
        choices=["refuse", "allow"],
        help="allow: run without layers that are absent, and name them in the rasters' tags (refuse)",
    )


def add_result_options(parser: argparse.ArgumentParser) -> None:
    """Adds the options that decide which numbers are written."""
    what = parser.add_argument_group("results")
    what.add_argument(
        "--pool",
        default="mean",
        choices=["mean", "group"],
        help="embeddings: mean over channel groups, or one after the other (mean)",
    )
    what.add_argument(
        "--stride",
        type=options.positive_int,
        help="embeddings, classes of windows: base pixels from one to the next (a patch)",
    )
    what.add_argument(
        "--positions",
        default="remove",
        choices=["remove", "keep"],
        help="embeddings: remove the mean of the features at each position within a tile, or keep it (remove)",
    )
    what.add_argument(
        "--dtype", default="float32", choices=["float32", "float16"], help="embeddings: data type (float32)"
    )
    what.add_argument(
        "--clusters", type=options.count, default=0, help="embeddings: number of k-means classes, 0 = none (0)"
    )
    what.add_argument("--draws", type=options.positive_int, default=4, help="masked views of each tile (4)")
    what.add_argument(
        "--mask_ratio", type=options.fraction, help="fraction of tokens hidden in a view (as in training)"
    )
    what.add_argument(
        "--views",
        type=int,
        choices=[1, 8],
        help="prediction: predict tiles as they lie, or average over all eight rotations and mirror images (8 for "
        "values, whose spread needs them, if training rotated its windows; else 1)",
    )
    what.add_argument("--max_gap", type=options.positive, help="gapfill: widest gap filled, CRS units (half a tile)")
    what.add_argument(
        "--overlap", type=options.fraction, default=0.5, help="fraction of a tile that the next repeats (0.5)"
    )
    what.add_argument("--seed", type=options.count, default=0, help="seed of masks and clusters (0)")


def add_run_options(parser: argparse.ArgumentParser) -> None:
    """Adds where and how a run computes."""
    run = parser.add_argument_group("run")
    run.add_argument("--overwrite", action="store_true", help="replace rasters that exist")
    run.add_argument("--resume", action="store_true", help="continue a stopped run in the output folder")
    run.add_argument("--batch_size", type=options.positive_int, default=64, help="tiles per forward pass (64)")
    run.add_argument(
        "--block_size",
        type=options.positive_int,
        default=384,
        help="edge of the block of ground that is computed at a time, base pixels (384)",
    )
    run.add_argument("--num_workers", type=options.count, default=1, help="threads that read blocks ahead (1)")
    run.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:N or mps (auto)")
    run.add_argument("--amp", default="auto", choices=["auto", "fp16", "bf16", "off"], help="mixed precision (auto)")
    run.add_argument("--no_progress", action="store_true", help="no progress bar")
    run.add_argument("--world_size", type=options.positive_int, default=1, help="processes (set by torchrun)")
    run.add_argument("--local_rank", "--local-rank", type=int, default=-1, help="set by launchers")
    run.add_argument("--dist_url", default="env://", help="where processes meet (env://)")
