"""Command-line options of fine-tuning: the parser's groups, checks, and the settings that the options name."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from util.options import common as options


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


@dataclass(frozen=True)
class NetworkSettings:
    """How the network is built; each attribute is the option of the same name.

    Attributes:
        model: size of an encoder from scratch.
        patch_size: patch edge of an encoder from scratch, base-scale pixels.
        drop_path: stochastic depth.
        grad_checkpointing: recompute blocks to save memory.
        head: per-pixel head of the first method, None for the method's own.
        label_scale: predicted pixels along the edge of a base-scale pixel.
        global_pool: windows are classified by the mean of their tokens, not by the class token.
        seed: seed of the initial weights.
    """

    model: str
    patch_size: int
    drop_path: float
    grad_checkpointing: bool
    head: str | None
    label_scale: int
    global_pool: bool
    seed: int


@dataclass(frozen=True)
class LossSettings:
    """How classes are weighted, and targets smoothed or mixed; the defaults do none of it.

    Attributes:
        class_weights: choice of `class_weights` in util/finetuning/objectives.py.
        smoothing: label smoothing.
        mixup: mixup's alpha, 0 = off.
        cutmix: cutmix's alpha, 0 = off.
        reprob: probability that a rectangle of a window is erased.
    """

    class_weights: str = "none"
    smoothing: float = 0.0
    mixup: float = 0.0
    cutmix: float = 0.0
    reprob: float = 0.0


@dataclass(frozen=True)
class TrainingSettings:
    """How a network is fine-tuned; each attribute is the option of the same name.

    Attributes:
        seed: seed of windows and augmentation.
        epochs: epochs of each fit.
        tiles_per_epoch: windows in an epoch.
        batch_size: windows per step and process.
        accum_iter: steps per update.
        lr: peak learning rate, None to derive it from `blr`.
        blr: peak learning rate at an effective batch of 256, None for the default.
        min_lr: final learning rate.
        warmup_epochs: epochs of linear warm-up.
        weight_decay: of AdamW.
        layer_decay: factor of the rate from one layer to the one before it, for pre-trained encoders.
        head_lr_scale: learning rate of the head, times that of the encoder.
        clip_grad: largest gradient norm.
        augment: flip and rotate windows.
        patience: epochs without a better validation score before a fit stops; 0 = never.
    """

    seed: int
    epochs: int
    tiles_per_epoch: int
    batch_size: int
    accum_iter: int
    lr: float | None
    blr: float | None
    min_lr: float
    warmup_epochs: float
    weight_decay: float
    layer_decay: float
    head_lr_scale: float
    clip_grad: float
    augment: bool
    patience: int


@dataclass(frozen=True)
class PredictionSettings:
    """How test ground is predicted, and what baselines learn from.

    Attributes:
        overlap: fraction of a tile that the next one repeats.
        batch_size: most tiles in a forward pass.
        tree_samples: most pixels that trees learn from.
    """

    overlap: float
    batch_size: int
    tree_samples: int


@dataclass(frozen=True)
class RunSettings:
    """How a run reads, saves and reports; nothing here changes the results.

    Attributes:
        resume: continue with what the output directory holds.
        num_workers: threads that read ahead.
        pin_mem: copy batches to a GPU from page-locked memory.
        save_minutes: minutes between checkpoints within an epoch.
        show_progress: show a progress bar.
    """

    resume: bool
    num_workers: int
    pin_mem: bool
    save_minutes: float
    show_progress: bool


def add_all_options(parser: argparse.ArgumentParser, choices: Choices) -> None:
    """Adds the options of the program."""
    add_task_options(parser, tasks=choices.tasks)
    add_data_options(parser)
    add_split_options(parser, splits=choices.splits)
    add_network_options(parser, heads=choices.heads)
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
    task.add_argument("--label_crs", help="CRS of x and y columns (the layers')")
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
        "--seed", type=options.count, default=0, help="seed of folds, label subsets, windows and weights (0)"
    )
    split.add_argument("--fold_seed", type=options.count, help="seed of the folds (--seed)")
    split.add_argument("--label_seed", type=options.count, help="seed of the label subset (--seed)")


def _label_fraction(text: str) -> float:
    value = options.positive(text)
    if value > 1:
        raise argparse.ArgumentTypeError(f"{text}: expected a number above 0, at most 1")
    return float(value)


def add_network_options(parser: argparse.ArgumentParser, *, heads: Sequence[str] | None = None) -> None:
    """Adds the options of the network.

    Args:
        parser: where to add them.
        heads: choices of --head; None accepts any name.
    """
    net = parser.add_argument_group("network")
    net.add_argument(
        "--model", default="tiny", metavar="NAME", help="tiny, small, base or large; from scratch only (tiny)"
    )
    net.add_argument("--model_type", default="group_c", choices=["group_c", "vanilla"], help="from scratch only")
    net.add_argument("--patch_size", type=options.positive_int, default=8, help="from scratch only (8)")
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
    train.add_argument("--epochs", type=options.positive_int, default=15, help="epochs of each fit (15)")
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
        default=0,
        help="epochs without a better validation score before a fit stops; 0: never stop early (0)",
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
        help="compared on the same folds: the network from scratch, a probe of the frozen encoder, gradient-boosted "
        "trees, a random forest, the majority class or mean value; without names: " + " ".join(default_baselines),
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
    run.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N (auto)")
    run.add_argument("--amp", default="auto", choices=["auto", "fp16", "bf16", "off"], help="mixed precision (auto)")
    run.add_argument("--num_workers", type=options.count, default=2, help="threads that read ahead (2)")
    run.add_argument("--pin_mem", action=argparse.BooleanOptionalAction, default=True, help="page-locked batches (on)")
    run.add_argument("--save_minutes", type=options.positive, default=10.0, help="minutes between checkpoints (10)")
    run.add_argument("--no_progress", action="store_true", help="no progress bar")
    run.add_argument("--world_size", type=options.positive_int, default=1, help="processes (set by torchrun)")
    run.add_argument("--local_rank", "--local-rank", type=int, default=-1, help="set by launchers")
    run.add_argument("--dist_url", default="env://", help="rendezvous of processes (env://)")


# ---------------------------------------------------------------------------------------------- checks and settings

MAY_CHANGE = set(
    "batch_size accum_iter effective_batch world_size local_rank dist_url device num_workers pin_mem resume output_dir "
    "log_dir no_progress save_minutes cache data_dir train_path finetune baselines no_network only_folds no_final "
    "grad_checkpointing eval".split()
)
"""Options that do not change the numbers of a fit, or whose effect is checked elsewhere."""

WINDOWS_ONLY = {"mixup": 0.0, "cutmix": 0.0, "reprob": 0.0}
PIXELS_ONLY = {"label_scale": 1, "head": None}
GROUND_ONLY = tuple(
    "labels label_column label_band label_nodata label_classes label_crs x_column y_column data_dir base_resolution "
    "extent reproject tile_overlap missing_layers min_labelled background_ratio background_distance split folds "
    "only_folds fold_block val_buffer patience".split()
)
"""Options that do nothing for images, which carry their classes and lie on no common ground."""
SCENES_ONLY = ("test_path", "val_fraction")
SCENE_SIZE = 96
"""Edge of images at the base scale without a checkpoint: that of SatMAE++."""
SCRATCH_ONLY = ("model", "model_type", "patch_size", "dropped_bands", "grouped_bands", "scales")
"""Options that a checkpoint decides."""


def check_resume(args: argparse.Namespace) -> None:
    """Refuses a --resume that does not go with --eval or with training.

    Raises:
        ValueError: naming what to use instead.
    """
    if args.eval and args.batch_size == "auto":
        raise ValueError("--batch_size auto is for training, and --eval trains nothing; give a number, or leave it out")
    if args.eval and args.resume in ("", "auto"):
        raise ValueError("--eval needs --resume CHECKPOINT: a fine-tuned checkpoint to score")
    if not args.eval and args.resume not in ("", "auto"):
        raise ValueError(
            f"--resume {args.resume}: expected auto, to go on with what --output_dir holds (a checkpoint's path is for "
            "--eval; weights to start from are given by --finetune)"
        )


def check(args: argparse.Namespace, choices: Choices) -> None:
    """Refuses options that do not go together.

    Raises:
        ValueError: naming the flag, its value and what to use instead.
    """
    check_resume(args)
    _check_scenes(args, choices)
    baselines = baselines_of(args, choices)
    is_network_fitted = not args.no_network or set(choices.network_baselines) & set(baselines)
    if not is_network_fitted and (args.batch_size == "auto" or args.effective_batch is not None):
        raise ValueError(
            "--no_network with these --baselines trains no network, for which --batch_size auto and "
            "--effective_batch are; leave them out"
        )
    is_window_task = args.task in choices.window_tasks
    for name, default in (PIXELS_ONLY if is_window_task else WINDOWS_ONLY).items():
        if getattr(args, name) != default:
            others = " or ".join(task for task in choices.tasks if (task in choices.window_tasks) != is_window_task)
            raise ValueError(f"--{name} {getattr(args, name)} does nothing for --task {args.task}; it is for {others}")
    if args.layer_decay > 1:
        raise ValueError(
            f"--layer_decay {args.layer_decay:g}: expected above 0, at most 1 (1 = the same rate everywhere)"
        )
    if args.split == "from_checkpoint" and not args.finetune:
        raise ValueError("--split from_checkpoint needs --finetune CHECKPOINT: the ground it held out is tested")
    if args.split == "from_checkpoint" and args.patience:
        raise ValueError(
            f"--patience {args.patience} with --split from_checkpoint: that split sets no ground aside to validate on; "
            "leave --patience out, or use --split blocks"
        )
    if args.finetune and Path(args.finetune).resolve().parent == Path(args.output_dir).resolve() and not args.eval:
        raise ValueError(
            f"--output_dir {args.output_dir} holds the checkpoint that --finetune names, which would be moved aside; "
            "choose another directory"
        )


def baselines_of(args: argparse.Namespace, choices: Choices) -> list[str]:
    """Names of the baselines asked for; the default ones for the bare flag."""
    if args.baselines is None:
        return []
    return list(args.baselines) or list(choices.default_baselines)


def with_values(args: argparse.Namespace, **values: Any) -> argparse.Namespace:
    """A copy of the options with some values replaced."""
    return argparse.Namespace(**(vars(args) | values))


def with_checkpoint(
    args: argparse.Namespace, config: Mapping[str, Any], stored: Mapping[str, Any], *, is_finetuned: bool
) -> argparse.Namespace:
    """A copy of the options in which what a checkpoint decides is as in the checkpoint.

    Args:
        args: the options.
        config: arguments of the checkpoint's model.
        stored: the checkpoint's contents; published weights have none of the entries that are read here.
        is_finetuned: the checkpoint is a fine-tuned one to be scored: what was hidden from it stays hidden.

    Raises:
        ValueError: an option that is for training from scratch, and differs from the checkpoint's.
    """
    trained = stored.get("options", {})
    kind = trained.get("dataset_type", args.dataset_type)
    kind = "grid" if kind == "xarray" else kind  # layers are layers, wherever they are read from
    if kind != args.dataset_type:
        raise ValueError(
            f"--dataset_type {args.dataset_type}: the checkpoint {args.finetune} was trained with {kind}; give "
            f"--dataset_type {kind}, or another checkpoint"
        )
    if not is_finetuned:
        _check_scratch_only(args, {**trained, "patch_size": config["patch_size"]})
    hidden = stored["hidden"] if is_finetuned else trained.get("masked_bands") or ()
    decided = {
        "patch_size": config["patch_size"],
        "input_size": args.input_size or config["img_size"],
        "masked_bands": sorted({*args.masked_bands, *hidden}),
    }
    if args.dataset_type == "grid":
        base = args.base_resolution or stored.get("base_resolution") or trained.get("base_resolution")
        decided |= {
            "base_resolution": base,
            "extent": args.extent or trained.get("extent"),
            "reproject": args.reproject or bool(trained.get("reproject")),
        }
    else:
        names = ("dropped_bands", "grouped_bands", "model_type")
        decided |= {name: trained.get(name, getattr(args, name)) for name in names}
    return with_values(args, **decided)


def _check_scratch_only(args: argparse.Namespace, trained: Mapping[str, Any]) -> None:
    """Refuses options for training from scratch that differ from those of a checkpoint."""
    defaults = argparse.ArgumentParser()
    add_data_options(defaults)
    add_network_options(defaults)
    for name in SCRATCH_ONLY:
        value = getattr(args, name)
        if value != defaults.get_default(name) and name in trained and value != trained[name]:
            raise ValueError(
                f"--{name} {value}: the checkpoint {args.finetune} was trained with {trained[name]}; leave it out, or "
                "train from scratch (without --finetune)"
            )


def with_stored(
    args: argparse.Namespace, stored: Mapping[str, Any], parser: argparse.ArgumentParser
) -> argparse.Namespace:
    """The options of a fine-tuned checkpoint, with those replaced that are given now or say where and how to run."""
    defaults = vars(parser.parse_args([]))
    given = {key for key, value in vars(args).items() if value != defaults[key]}
    here = given | set("eval resume device output_dir log_dir world_size local_rank dist_url baselines".split())
    if here & {"data_dir", "train_path"}:  # layers are named in one way: as given now
        here |= {"data_dir", "train_path"}
    return with_values(args, **{key: stored.get(key, value) for key, value in vars(args).items() if key not in here})


def check_channels(path: str, config: Mapping[str, Any], channels: Mapping[str, Any]) -> None:
    """Refuses published weights whose channels are not those of the layers.

    Args:
        path: the weights.
        config: arguments of their encoder.
        channels: `in_chans` and `channel_groups` of the layers; empty where a checkpoint named them itself.

    Raises:
        ValueError: naming both.
    """
    if not channels:
        return
    theirs, ours = ([list(group) for group in groups["channel_groups"]] for groups in (config, channels))
    if theirs != ours:
        raise ValueError(
            f"--finetune {path}: weights for {config['in_chans']} channels in groups {theirs}, but there are "
            f"{channels['in_chans']} layers in groups {ours}; expected the same: choose layers and --grouped_bands to "
            "match, or train from scratch (without --finetune)"
        )


def layer_options(args: argparse.Namespace) -> dict[str, Any]:
    """The fields of `LayerOptions` that the options name."""
    if args.input_size is not None:
        options.check_sizes(input_size=args.input_size, patch_size=args.patch_size, scales=args.scales)
    return {
        "data_dir": args.data_dir,
        "layers_table": args.train_path,
        "hidden": args.masked_bands,
        "input_size": args.input_size,
        "base_resolution": args.base_resolution,
        "extent": args.extent or "union",
        "reproject": args.reproject,
        "cache": args.cache,
        "allow_missing": args.missing_layers == "allow",
        "dropped_bands": args.dropped_bands or [],
        "grouped_bands": args.grouped_bands,
        "one_group": args.model_type == "vanilla",
        "scales": args.scales,
        "seed": args.seed,
    }


def scene_options(args: argparse.Namespace) -> dict[str, Any]:
    """The keyword arguments of `open_scene_layers` that the options name."""
    options.check_sizes(input_size=args.input_size or SCENE_SIZE, patch_size=args.patch_size, scales=args.scales)
    return {
        "dataset_type": args.dataset_type,
        "train_path": args.train_path,
        "dropped_bands": args.dropped_bands,
        "masked_bands": args.masked_bands,
        "grouped_bands": args.grouped_bands,
        "one_group": args.model_type == "vanilla",
        "input_size": args.input_size or SCENE_SIZE,
        "scales": args.scales,
        "val_fraction": 0.0 if args.test_path else args.val_fraction,
        "seed": args.seed,
    }


def _check_scenes(args: argparse.Namespace, choices: Choices) -> None:
    """Refuses options that do not go with scene data sets, or with rasters.

    Raises:
        ValueError: naming the flag and what to use instead.
    """
    is_grid = args.dataset_type == "grid"
    defaults = argparse.ArgumentParser()
    add_task_options(defaults, tasks=choices.tasks)
    add_data_options(defaults)
    add_split_options(defaults, splits=choices.splits)
    add_training_options(defaults, class_weights=choices.class_weights)
    names = SCENES_ONLY if is_grid else GROUND_ONLY
    given = [name for name in names if getattr(args, name) != defaults.get_default(name)]
    if is_grid and given:
        raise ValueError(
            f"--{given[0]} goes with scene data sets (--dataset_type {', '.join(options.SCENE_TYPES)}); rasters are "
            "tested on folds of their own ground; leave it out"
        )
    if is_grid:
        return
    if args.task not in choices.window_tasks:
        raise ValueError(
            f"--dataset_type {args.dataset_type} with --task {args.task}: expected --task "
            f"{' or '.join(choices.window_tasks)}"
        )
    if given:
        what = f"{given[0]} {args.split}" if given[0] == "split" else given[0]
        raise ValueError(
            f"--{what} does not go with --dataset_type {args.dataset_type}: its images carry their classes and lie on "
            "no common ground; leave it out"
        )
    of_pixels = set(choices.pixel_baselines) & set(baselines_of(args, choices))
    if of_pixels:
        others = ", ".join(name for name in choices.baselines if name not in choices.pixel_baselines)
        raise ValueError(
            f"--baselines {min(of_pixels)} does not go with --dataset_type {args.dataset_type}: it learns from single "
            f"pixels of a survey; expected some of {others}"
        )


class LabelKind(Protocol):
    """The properties of a task that decide how labels are read."""

    @property
    def per_pixel(self) -> bool:
        """True if every pixel is predicted, else one class for a window."""

    @property
    def has_classes(self) -> bool:
        """True if labels are classes, else values."""


def ground_options(args: argparse.Namespace, *, sample_labels: str, local_ranks: int) -> dict[str, Any]:
    """The keyword arguments of `open_ground`."""
    is_grid = args.dataset_type == "grid"
    return {
        "layers": layer_options(args) if is_grid else None,
        "scenes": None if is_grid else scene_options(args),
        "labels": args.labels,
        "label_band": args.label_band,
        "sample_labels": sample_labels,
        "local_ranks": local_ranks,
    }


def labels_on_ground(
    args: argparse.Namespace,
    task: LabelKind,
    *,
    input_size: int,
    held_out: Sequence[Sequence[float]] | None,
    tests_all: bool = False,
) -> dict[str, Any]:
    """The keyword arguments of `open_labels` that the options name.

    Args:
        args: the options.
        task: what the labels are learned for.
        input_size: edge of a window, base-scale pixels.
        held_out: ground that pre-training held out.
        tests_all: score all labels, instead of dividing them into folds.

    Raises:
        ValueError: the checkpoint does not say what ground it held out.
    """
    if args.dataset_type != "grid":
        scenes = {name: getattr(args, name) for name in ("test_path", "label_fraction", "seed")}
        return {"scenes": scenes, "labels": {}, "targets": {}, "split": {}}
    split = split_options(args, input_size=input_size, held_out=held_out)
    return {
        "scenes": None,
        "labels": label_options(args),
        "targets": {**target_options(args), "per_pixel": task.per_pixel, "has_classes": task.has_classes},
        "split": split | ({"split": "all"} if tests_all else {}),
    }


def label_options(args: argparse.Namespace) -> dict[str, Any]:
    """The fields of `LabelOptions` that the options name."""
    return {
        "column": args.label_column,
        "band": args.label_band,
        "nodata": args.label_nodata,
        "classes_csv": args.label_classes,
        "crs": args.label_crs,
        "x_column": args.x_column,
        "y_column": args.y_column,
    }


def split_options(
    args: argparse.Namespace, *, input_size: int, held_out: Sequence[Sequence[float]] | None
) -> dict[str, Any]:
    """The fields of `SplitOptions` that the options name.

    Raises:
        ValueError: the checkpoint does not say what ground it held out.
    """
    if args.split == "from_checkpoint" and not held_out:
        raise ValueError(
            f"--split from_checkpoint: {args.finetune} held out no ground, or was written before checkpoints noted it; "
            "expected one trained with --val_fraction above 0 by this version; use --split blocks"
        )
    return {
        "split": args.split,
        "folds": args.folds,
        "block": args.fold_block,
        "buffer": input_size if args.val_buffer is None else args.val_buffer,
        "label_fraction": args.label_fraction,
        "early_stopping": args.patience > 0,
        "seed": args.seed if args.fold_seed is None else args.fold_seed,
        "label_seed": args.seed if args.label_seed is None else args.label_seed,
        "rectangles": held_out,
    }


def target_options(args: argparse.Namespace) -> dict[str, Any]:
    """The fields of `TargetOptions` that the options name."""
    return {
        "scale": args.label_scale,
        "overlap": args.tile_overlap,
        "min_labelled": args.min_labelled,
        "background_ratio": args.background_ratio,
        "background_distance": args.background_distance,
        "jitter": args.patch_size // 2,
    }


def network_settings(args: argparse.Namespace) -> NetworkSettings:
    """How the network is built."""
    return NetworkSettings(**_named(args, NetworkSettings))


def loss_settings(args: argparse.Namespace) -> LossSettings:
    """How classes are weighted, and targets smoothed or mixed."""
    return LossSettings(**_named(args, LossSettings))


def training_settings(args: argparse.Namespace) -> TrainingSettings:
    """How a network is fine-tuned; `batch_size` and `tiles_per_epoch` must be numbers."""
    return TrainingSettings(**_named(args, TrainingSettings), augment=not args.no_augment)


def prediction_settings(args: argparse.Namespace) -> PredictionSettings:
    """How test ground is predicted."""
    return PredictionSettings(**_named(args, PredictionSettings))


def run_settings(args: argparse.Namespace) -> RunSettings:
    """How a run reads, saves and reports."""
    read = {name: getattr(args, name) for name in ("num_workers", "pin_mem", "save_minutes")}
    return RunSettings(resume=bool(args.resume), show_progress=not args.no_progress, **read)


def batch_options(args: argparse.Namespace) -> dict[str, Any]:
    """The keyword arguments of `choose_batches` that the options name."""
    names = ("batch_size", "accum_iter", "effective_batch", "weight_decay", "clip_grad")
    return {name: getattr(args, name) for name in names}


def settings_of(args: argparse.Namespace) -> dict[str, Any]:
    """The settings of a `FinetuneRun`, and the folders of its files."""
    return {
        "amp": args.amp,
        "output_dir": Path(args.output_dir),
        "log_dir": Path(args.log_dir or args.output_dir),
        "prediction": prediction_settings(args),
        "loss": loss_settings(args),
        "settings": run_settings(args),
        "training": training_settings(args),
    }


def wants_final(args: argparse.Namespace) -> bool:
    """Whether the main method is fitted once more on all labels: not on a part of them, nor after a leaking split."""
    return args.dataset_type == "grid" and not args.no_final and args.label_fraction == 1 and args.split == "blocks"


def deciding_options(args: argparse.Namespace) -> dict[str, Any]:
    """The options that decide the numbers of a run."""
    return {key: value for key, value in vars(args).items() if key not in MAY_CHANGE and value is not None}


def _named(args: argparse.Namespace, settings: Any) -> dict[str, Any]:
    """The options that have the name of a field of a dataclass."""
    return {name: getattr(args, name) for name in settings.__dataclass_fields__ if name in args}
