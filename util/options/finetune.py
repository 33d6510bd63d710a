"""Command-line options of main_finetune."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass

from util.options import common as options

EPOCHS, SCENE_EPOCHS, PATIENCE = 150, 15, 20
"""Defaults of --epochs, on ground and for images, and of --patience."""


@dataclass(frozen=True)
class Choices:
    """The tasks, baselines and class weightings that the program offers.

    Attributes:
        tasks: values of --task, the default first.
        window_tasks: those tasks that predict one class for a window; the others predict every pixel.
        baselines: values of --baselines.
        default_baselines: baselines of the bare flag.
        network_baselines: baselines that train a network.
        pixel_baselines: baselines that read single pixels of a survey, which images do not offer.
        class_weights: values of --class_weights.
        splits: values of --split.
        heads: values of --head.
        stems: values of --stem.
    """

    tasks: tuple[str, ...]
    window_tasks: tuple[str, ...]
    baselines: tuple[str, ...]
    default_baselines: tuple[str, ...]
    network_baselines: tuple[str, ...]
    pixel_baselines: tuple[str, ...]
    class_weights: tuple[str, ...]
    splits: tuple[str, ...]
    heads: tuple[str, ...]
    stems: tuple[str, ...]


def add_all_options(parser: argparse.ArgumentParser, choices: Choices) -> None:
    """Adds the options of the program."""
    add_task_options(parser, tasks=choices.tasks)
    add_data_options(parser)
    add_split_options(parser, splits=choices.splits)
    add_network_options(parser, heads=choices.heads, stems=choices.stems)
    add_training_options(parser, class_weights=choices.class_weights)
    add_comparison_options(parser, baselines=choices.baselines, default_baselines=choices.default_baselines)
    add_run_options(parser)


def add_task_options(parser: argparse.ArgumentParser, *, tasks: Sequence[str]) -> None:
    """Adds the options of the task and its labels; the first task is the default."""
    task = parser.add_argument_group("task")
    task.add_argument(
        "--finetune",
        default="",
        help="checkpoint of main_pretrain, or published SatMAE++ weights, to start from ('': from scratch)",
    )
    task.add_argument("--task", default=tasks[0], choices=tasks, help=f"what is predicted ({tasks[0]})")
    task.add_argument(
        "--labels", help="raster, xarray:STORE#VARIABLE, vector file or CSV (the sample survey has its own)"
    )
    task.add_argument("--label_column", help="column of classes or values, where labels are vectors or a CSV")
    task.add_argument("--label_band", type=options.positive_int, default=1, help="band, where labels are a raster (1)")
    task.add_argument("--label_nodata", type=float, help="further value that means unlabelled")
    task.add_argument("--label_classes", help="CSV that names the classes: code, name, colour")
    task.add_argument(
        "--label_crs",
        help="CRS of a table's coordinates (EPSG:4326 for columns named longitude and latitude, else the layers'), of "
        "vector files without one, and of GeoJSON",
    )
    task.add_argument("--x_column", help="column of eastings or longitudes, where labels are a CSV of points")
    task.add_argument("--y_column", help="column of northings or latitudes")
    task.add_argument(
        "--label_scale",
        type=options.positive_int,
        default=1,
        help="predicted pixels along the edge of a base-scale pixel: 1, 2, 4 (1)",
    )
    task.add_argument(
        "--min_labelled",
        type=options.share,
        default=0.5,
        help="classification of tiles: smallest labelled fraction of a tile (0.5)",
    )
    task.add_argument(
        "--background_ratio",
        type=options.positive,
        default=10.0,
        help="presence only: background windows per presence (10)",
    )
    task.add_argument(
        "--background_distance",
        type=options.non_negative,
        default=8.0,
        help="presence only: smallest distance of background from presences, base pixels (8)",
    )


def add_data_options(parser: argparse.ArgumentParser) -> None:
    """Adds the options of layers and windows; the defaults of a run with a checkpoint are the checkpoint's own."""
    data = parser.add_argument_group("data")
    data.add_argument(
        "--dataset_type",
        default="grid",
        choices=["grid", *options.SCENE_TYPES],
        help="grid = rasters on disk; or a scene data set, for classification, see docs/scenes.md (grid)",
    )
    data.add_argument("--test_path", help="scenes: table of the images to test (default: a fraction of the locations)")
    data.add_argument(
        "--val_fraction", type=options.fraction, default=0.1, help="scenes: fraction of locations to test (0.1)"
    )
    data.add_argument("--data_dir", help="directory with the layers (those of the checkpoint, or the sample survey)")
    data.add_argument("--train_path", help="layers.csv that names them instead")
    data.add_argument("--dropped_bands", type=options.count, nargs="*", metavar="N", help="from scratch only")
    data.add_argument(
        "--masked_bands",
        type=options.count,
        nargs="+",
        default=[],
        metavar="N",
        help="layers hidden from the network, shown as no-data",
    )
    data.add_argument(
        "--grouped_bands", type=options.count, nargs="+", action="append", metavar="N", help="from scratch only"
    )
    data.add_argument(
        "--extent",
        choices=["union", "intersection"],
        help="ground covered: of any layer, or of all (as in the checkpoint, or union)",
    )
    data.add_argument("--reproject", action="store_true", help="warp layers on the fly to the first layer's CRS")
    data.add_argument(
        "--aoi", help="vector file of polygons; pixels outside count as nodata; none: no limit (the checkpoint's)"
    )
    data.add_argument(
        "--cache",
        default="auto",
        choices=["auto", "ram", "none"],
        help="keep decoded layers in memory; auto: if they fit (auto)",
    )
    data.add_argument("--input_size", type=options.positive_int, help="window edge, base pixels (checkpoint's, or 48)")
    data.add_argument("--scales", type=options.positive_int, nargs="+", default=[1, 2, 4], help="from scratch only")
    data.add_argument(
        "--base_resolution",
        type=options.positive,
        help="edge of a base pixel, CRS units (checkpoint's, or by --scales)",
    )
    data.add_argument("--tile_overlap", type=options.fraction, default=0.75, help="overlap of training windows (0.75)")
    data.add_argument(
        "--missing_layers",
        default="refuse",
        choices=["refuse", "allow"],
        help="allow: continue without layers of the checkpoint that are not found (refuse)",
    )


def add_split_options(parser: argparse.ArgumentParser, *, splits: Sequence[str]) -> None:
    """Adds the options that decide which labels are trained on and which are tested."""
    split = parser.add_argument_group("split")
    split.add_argument(
        "--split",
        default="blocks",
        choices=splits,
        help="blocks: spatial blocks in folds; from_checkpoint: the ground that pre-training held out; random: single "
        "cells, which leaks, to measure how much; leaking: blocks whose tested labels are also trained on, a control "
        "(blocks)",
    )
    split.add_argument("--folds", type=options.positive_int, default=5, help="number of folds (5)")
    split.add_argument("--only_folds", type=options.count, nargs="+", metavar="K", help="run only these folds (all)")
    split.add_argument("--fold_block", type=options.count, default=0, help="edge of a block, windows; 0: automatic (0)")
    split.add_argument(
        "--val_buffer",
        type=options.count,
        help="distance of training labels from test ground, base pixels (one window)",
    )
    split.add_argument(
        "--label_fraction", type=_label_fraction, default=1.0, help="fraction of the training labels that is used (1)"
    )
    split.add_argument(
        "--label_blocks",
        type=options.positive_int,
        metavar="N",
        help="whole blocks that keep their labels in the training ground of each fold (all)",
    )
    split.add_argument(
        "--seed", type=options.count, default=0, help="seed of folds, label subsets, windows and weights (0)"
    )
    split.add_argument("--fold_seed", type=options.count, help="seed of the folds (--seed)")
    split.add_argument("--label_seed", type=options.count, help="seed of the label subset (--seed)")


def _label_fraction(text: str) -> float:
    value = options.positive(text)
    if value > 1:
        raise argparse.ArgumentTypeError(f"{text}: expected a number above 0, at most 1")
    return float(value)


def add_network_options(
    parser: argparse.ArgumentParser, *, heads: Sequence[str] | None = None, stems: Sequence[str] | None = None
) -> None:
    """Adds the options of the network.

    Args:
        parser: where to add them.
        heads: choices of --head; None accepts any name.
        stems: likewise of --stem.
    """
    net = parser.add_argument_group("network")
    net.add_argument(
        "--model", default="tiny", metavar="NAME", help="tiny, small, base or large; from scratch only (tiny)"
    )
    net.add_argument("--model_type", default="group_c", choices=["group_c", "vanilla"], help="from scratch only")
    net.add_argument("--patch_size", type=options.positive_int, default=8, help="from scratch only (8)")
    net.add_argument(
        "--stem",
        choices=stems,
        help="native: tokens and per-pixel head see every layer at its native pixels; base: base pixels alone; tokens, "
        f"head: native in one of them (checkpoint's, or {options.DEFAULT_STEM})",
    )
    net.add_argument("--head", choices=heads, help="per-pixel head (upsample; linear for a frozen encoder)")
    net.add_argument("--freeze_encoder", action="store_true", help="train the head only: a probe")
    net.add_argument(
        "--global_pool", action="store_true", default=True, help="classification: classify the mean of the tokens (on)"
    )
    net.add_argument(
        "--cls_token", action="store_false", dest="global_pool", help="classification: classify the class token"
    )
    net.add_argument("--drop_path", type=options.fraction, default=0.1, help="stochastic depth (0.1)")
    net.add_argument("--grad_checkpointing", action="store_true", help="recompute blocks to save memory")


def add_training_options(parser: argparse.ArgumentParser, *, class_weights: Sequence[str]) -> None:
    """Adds the options of training."""
    train = parser.add_argument_group("training")
    options.add_batch_options(train, what="windows")
    train.add_argument("--accum_iter", type=options.positive_int, default=1, help="micro-batches per update (1)")
    train.add_argument(
        "--epochs",
        type=options.positive_int,
        help=f"epochs of each fit; with --patience the most of them ({EPOCHS}; for scenes {SCENE_EPOCHS})",
    )
    train.add_argument(
        "--tiles_per_epoch", type=options.positive_int, help="windows in an epoch (512; for scenes, all images)"
    )
    train.add_argument("--lr", type=options.positive, help="peak learning rate (1e-3, or from --blr)")
    train.add_argument("--blr", type=options.positive, help="peak learning rate as blr x effective batch / 256")
    train.add_argument("--min_lr", type=options.non_negative, default=1e-6, help="final learning rate (1e-6)")
    train.add_argument("--warmup_epochs", type=options.non_negative, default=1, help="epochs of warm-up (1)")
    train.add_argument("--weight_decay", type=options.non_negative, default=0.05, help="AdamW weight decay (0.05)")
    train.add_argument(
        "--layer_decay",
        type=options.positive,
        default=1.0,
        help="decay of the learning rate from one layer to the one below; 1: none (1)",
    )
    train.add_argument(
        "--head_lr_scale", type=options.positive, default=8.0, help="learning rate of the head, times --lr (8)"
    )
    train.add_argument("--clip_grad", type=options.positive, default=1.0, help="largest gradient norm (1)")
    train.add_argument(
        "--ema_decay",
        type=options.fraction,
        default=0.99,
        metavar="D",
        help="validate, test and save a moving average of the weights, of which an update keeps the fraction D, fewer "
        "in the first updates; 0: no average (0.99)",
    )
    train.add_argument("--smoothing", type=options.fraction, default=0.0, help="label smoothing (0)")
    train.add_argument(
        "--class_weights", default="sqrt", choices=class_weights, help="weights of classes against imbalance (sqrt)"
    )
    train.add_argument("--mixup", type=options.non_negative, default=0.0, help="classification: mixup alpha (0)")
    train.add_argument("--cutmix", type=options.non_negative, default=0.0, help="classification: cutmix alpha (0)")
    train.add_argument(
        "--reprob", type=options.share, default=0.0, help="classification: probability of random erasing (0)"
    )
    train.add_argument("--no_augment", action="store_true", help="no flips and rotations")
    train.add_argument(
        "--patience",
        type=options.count,
        metavar="N",
        help="epochs without a better score on validation ground, half the test blocks of the next fold, after which a "
        f"fit lets its rate fall and ends; 0: train all --epochs ({PATIENCE}; 0 with --epochs up to {PATIENCE}, or "
        "where no ground can be set aside)",
    )


def add_comparison_options(
    parser: argparse.ArgumentParser, *, baselines: Sequence[str], default_baselines: Sequence[str]
) -> None:
    """Adds the options of baselines and of scoring a checkpoint."""
    group = parser.add_argument_group("comparison")
    group.add_argument(
        "--baselines",
        nargs="*",
        choices=baselines,
        help="compared on the same folds: the network from scratch, a probe of the frozen encoder, a U-Net "
        "from scratch on the finest pixels, gradient-boosted trees, a random forest, trees on untrained convolutions, "
        "trees on their features and embeddings, the majority class or mean value; without names: "
        + " ".join(default_baselines),
    )
    group.add_argument("--no_network", action="store_true", help="fit only the --baselines")
    group.add_argument("--eval", action="store_true", help="only score the fine-tuned checkpoint that --resume names")
    group.add_argument("--no_final", action="store_true", help="skip the last fit, on all labels, after the folds")
    group.add_argument("--overlap", type=options.fraction, default=0.5, help="overlap of tiles when predicting (0.5)")
    group.add_argument(
        "--tree_samples", type=options.positive_int, default=50_000, help="most pixels that trees learn from (50000)"
    )


def add_run_options(parser: argparse.ArgumentParser) -> None:
    """Adds the options of output, device and processes."""
    run = parser.add_argument_group("run")
    run.add_argument("--output_dir", default="./finetune_dir", help="directory of all outputs (./finetune_dir)")
    run.add_argument("--log_dir", help="directory of TensorBoard events (output_dir)")
    run.add_argument(
        "--resume", default="", help="auto: continue the run in output_dir; with --eval: a checkpoint to score"
    )
    run.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:N or mps (auto)")
    run.add_argument("--amp", default="auto", choices=["auto", "fp16", "bf16", "off"], help="mixed precision (auto)")
    run.add_argument("--num_workers", type=options.count, default=2, help="threads that read ahead (2)")
    run.add_argument("--pin_mem", action=argparse.BooleanOptionalAction, default=True, help="page-locked batches (on)")
    run.add_argument("--save_minutes", type=options.positive, default=10.0, help="minutes between checkpoints (10)")
    run.add_argument("--no_progress", action="store_true", help="no progress bar")
    run.add_argument("--world_size", type=options.positive_int, default=1, help="processes (set by torchrun)")
    run.add_argument("--local_rank", "--local-rank", type=int, default=-1, help="set by launchers")
    run.add_argument("--dist_url", default="env://", help="rendezvous of processes (env://)")
