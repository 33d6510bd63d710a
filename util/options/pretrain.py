"""Options of main_pretrain alone, and those that a resumed run may change."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from typing import Any

from util.options.common import BASE_STEM, fraction

CUDA_GRAPHS = ("off", "auto", "on")
MAY_CHANGE = frozenset(
    "accum_iter auto batch_size cache compile crs cuda_graphs data_dir data_path device dist_url dry_run "
    "effective_batch epochs figure_every fsdp grad_checkpointing keep_every local_rank log_dir log_every no_progress "
    "num_workers output_dir pin_mem resume save_minutes start_epoch test_path train_path val_tiles world_size".split()
)
"""Options that do not change the numbers a run computes, or whose effect is checked elsewhere."""


def add_pretrain_options(parser: argparse.ArgumentParser) -> None:
    """Adds the options that only main_pretrain has."""
    parser.add_argument(
        "--fsdp", action="store_true", help="shard weights and optimiser state across processes, for large models"
    )
    parser.add_argument(
        "--cuda_graphs",
        choices=CUDA_GRAPHS,
        default="off",
        help="record updates as CUDA graphs, for small models on one GPU; auto: if that is faster in the first updates "
        "(off)",
    )
    parser.add_argument(
        "--ema_decay",
        type=fraction,
        default=0.0,
        metavar="D",
        help="score and save a moving average of the weights, of which an update keeps the fraction D, such as 0.999; "
        "0: no average (0)",
    )
    parser.add_argument(
        "--auto",
        action="store_true",
        help="take sizes of pixel, tile and patch, held-out ground and epochs that suit the survey, as describe_grids "
        "--suggest proposes them; flags that are given stay",
    )
    parser.add_argument(
        "--dry_run",
        action="store_true",
        help="open all inputs, time one update and report what an epoch costs; train nothing",
    )


def decisive(options: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the options that must stay the same when a run is resumed."""
    options = {name: value for name, value in options.items() if name not in MAY_CHANGE and value is not None}
    if options.get("stem") == BASE_STEM:  # as in checkpoints of versions without stems
        del options["stem"]
    for name in ("ema_decay", "texture_weight"):  # 0: as in checkpoints of versions without them
        if not options.get(name):
            options.pop(name, None)
    return options


def check(args: argparse.Namespace) -> None:
    """Checks that the options of main_pretrain fit together.

    Raises:
        ValueError: all losses have weight 0.
    """
    if not args.base_loss_weight + args.scale_loss_weight + args.texture_weight:
        raise ValueError("--base_loss_weight 0 and --scale_loss_weight 0 leave nothing to learn; raise one of them")


def mask_options(args: argparse.Namespace) -> dict[str, Any]:
    """The arguments of `token_masks.new_masks` that the options give."""
    return {
        "shapes": args.mask_shape,
        "mask_ratio": args.mask_ratio,
        "spatial": args.spatial_mask,
        "side": args.input_size // args.patch_size,
    }


def batch_options(args: argparse.Namespace) -> dict[str, Any]:
    """The keyword arguments of `PretrainData.batches` that the options give."""
    return {
        "seed": args.seed,
        "batch_size": args.batch_size,
        "accum_iter": args.accum_iter,
        "tiles": args.tiles_per_epoch,
        "layer_dropout": args.layer_dropout,
    }
