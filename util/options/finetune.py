"""Command-line options of fine-tuning."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from util.options import common as options

CLASS_WEIGHTS = {"none": 0.0, "sqrt": 0.5, "balanced": 1.0}
"""Power of the inverse frequency by which each choice weighs a class."""
TASKS = ("segmentation", "regression", "classification")
BASELINES = ("scratch", "probe", "trees", "forest", "constant")
DEFAULT_BASELINES = ("scratch", "trees", "constant")


def add_task_options(parser: argparse.ArgumentParser) -> None:
    """Adds what is predicted from what."""
    task = parser.add_argument_group("task")
    task.add_argument(
        "--finetune",
        default="",
        help="checkpoint of main_pretrain, or published SatMAE++ weights, to start from ('': from scratch)",
    )
    task.add_argument("--task", default="segmentation", choices=TASKS, help="what is predicted (segmentation)")
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
        help="pixels that are predicted along the edge of a base-scale pixel: 1, 2, 4 (1)",
    )
    task.add_argument(
        "--min_labelled", type=options.share, default=0.5, help="classes of tiles: least share of labelled ground (0.5)"
    )
    task.add_argument(
        "--background_ratio", type=options.positive, default=10.0, help="presence only: ground drawn per presence (10)"
    )
    task.add_argument(
        "--background_distance",
        type=options.non_negative,
        default=8.0,
        help="presence only: least distance of that ground from presences, base pixels (8)",
    )


def add_data_options(parser: argparse.ArgumentParser, *, splits: Sequence[str] | None = None) -> None:
    """Adds which layers are read, and how; with a checkpoint its own settings are the defaults."""
    data = parser.add_argument_group("data")
    data.add_argument(
        "--dataset_type",
        default="grid",
        choices=["grid", *options.SCENE_TYPES],
        help="grid = rasters on disk; or a scene data set, for classification, see docs/scenes.md (grid)",
    )
    data.add_argument("--test_path", help="scenes: table of the images to test (else a share of the locations)")
    data.add_argument(
        "--val_fraction", type=options.fraction, default=0.1, help="scenes: share of locations to test (0.1)"
    )
    data.add_argument("--data_dir", help="directory with the layers (those of the checkpoint, or the sample survey)")
    data.add_argument("--train_path", help="layers.csv that names them instead")
    data.add_argument("--dropped_bands", type=options.count, nargs="*", metavar="N", help="from scratch only")
    data.add_argument(
        "--masked_bands", type=options.count, nargs="+", default=[], metavar="N", help="layers shown as no-data"
    )
    data.add_argument(
        "--grouped_bands", type=options.count, nargs="+", action="append", metavar="N", help="from scratch only"
    )
    data.add_argument(
        "--extent", choices=["union", "intersection"], help="ground covered (as in the checkpoint, union)"
    )
    data.add_argument("--reproject", action="store_true", help="warp layers on the fly to the first layer's CRS")
    data.add_argument("--cache", default="auto", choices=["auto", "ram", "none"], help="layers in memory (auto)")
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
        help="allow: go on with layers absent (refuse)",
    )
    split = parser.add_argument_group("split")
    split.add_argument(
        "--split",
        default="blocks",
        choices=splits,
        help="blocks: spatial blocks in folds; from_checkpoint: the ground that pre-training held out; random: leaks, "
        "to show how much; leaking: blocks, but tested labels are trained on, a control (blocks)",
    )
    split.add_argument("--folds", type=options.positive_int, default=5, help="folds (5)")
    split.add_argument("--only_folds", type=options.count, nargs="+", metavar="K", help="run these folds alone (all)")
    split.add_argument("--fold_block", type=options.count, default=0, help="edge of a block, windows; 0: automatic (0)")
    split.add_argument(
        "--val_buffer", type=options.count, help="training's distance from test ground, base pixels (window)"
    )
    split.add_argument(
        "--label_fraction", type=_label_share, default=1.0, help="share of the training labels that is used (1)"
    )
    split.add_argument("--seed", type=options.count, default=0, help="seed of folds, kept labels, windows, weights (0)")
    split.add_argument("--fold_seed", type=options.count, help="seed of the folds alone (that of --seed)")
    split.add_argument("--label_seed", type=options.count, help="seed of the kept labels alone (that of --seed)")


def _label_share(text: str) -> float:
    value = options.positive(text)
    if value > 1:
        raise argparse.ArgumentTypeError(f"{text}: expected a number above 0, at most 1")
    return float(value)


def add_network_options(parser: argparse.ArgumentParser) -> None:
    """Adds the network and how it is trained."""
    net = parser.add_argument_group("network")
    net.add_argument(
        "--model", default="tiny", metavar="NAME", help="tiny, small, base or large; from scratch only (tiny)"
    )
    net.add_argument("--model_type", default="group_c", choices=["group_c", "vanilla"], help="from scratch only")
    net.add_argument("--patch_size", type=options.positive_int, default=8, help="from scratch only (8)")
    net.add_argument(
        "--head", choices=["linear", "upsample"], help="per-pixel head (upsample; linear for a frozen encoder)"
    )
    net.add_argument("--freeze_encoder", action="store_true", help="train the head alone: a probe")
    net.add_argument("--global_pool", action="store_true", default=True, help="classification: mean of the tokens (on)")
    net.add_argument("--cls_token", action="store_false", dest="global_pool", help="classification: the class token")
    net.add_argument("--drop_path", type=options.fraction, default=0.1, help="stochastic depth (0.1)")
    net.add_argument("--grad_checkpointing", action="store_true", help="recompute blocks to save memory")
    train = parser.add_argument_group("training")
    options.add_batch_options(train, what="windows")
    train.add_argument("--accum_iter", type=options.positive_int, default=1, help="micro-batches per update (1)")
    train.add_argument("--epochs", type=options.positive_int, default=15, help="epochs of each fit (15)")
    train.add_argument(
        "--tiles_per_epoch", type=options.positive_int, help="windows in an epoch (512; of scenes, all images)"
    )
    train.add_argument("--lr", type=options.positive, help="peak learning rate (1e-3, or as --blr gives it)")
    train.add_argument("--blr", type=options.positive, help="peak rate as blr x effective batch / 256")
    train.add_argument("--min_lr", type=options.non_negative, default=1e-6, help="final learning rate (1e-6)")
    train.add_argument("--warmup_epochs", type=options.non_negative, default=1, help="epochs of warm-up (1)")
    train.add_argument("--weight_decay", type=options.non_negative, default=0.05, help="AdamW weight decay (0.05)")
    train.add_argument(
        "--layer_decay", type=options.positive, default=1.0, help="rate decay from head to input; 1: none (1)"
    )
    train.add_argument(
        "--head_lr_scale", type=options.positive, default=8.0, help="learning rate of the head, times --lr (8)"
    )
    train.add_argument("--clip_grad", type=options.positive, default=1.0, help="largest gradient norm (1)")
    train.add_argument("--smoothing", type=options.fraction, default=0.0, help="label smoothing (0)")
    train.add_argument("--class_weights", default="sqrt", choices=list(CLASS_WEIGHTS), help="against imbalance (sqrt)")
    train.add_argument("--mixup", type=options.non_negative, default=0.0, help="classification: mixup alpha (0)")
    train.add_argument("--cutmix", type=options.non_negative, default=0.0, help="classification: cutmix alpha (0)")
    train.add_argument("--reprob", type=options.share, default=0.0, help="classification: random erasing (0)")
    train.add_argument("--no_augment", action="store_true", help="neither flips nor turns")
    train.add_argument(
        "--patience",
        type=options.count,
        default=0,
        help="epochs without a better validation score; 0: no early stop (0)",
    )


def add_comparison_options(parser: argparse.ArgumentParser) -> None:
    """Adds what it is compared with, and scoring alone."""
    group = parser.add_argument_group("comparison")
    group.add_argument(
        "--baselines",
        nargs="*",
        choices=BASELINES,
        help="also, on the same folds: the network from scratch, a probe of the frozen encoder, gradient-boosted "
        "trees, a random forest, majority or mean; without names: " + " ".join(DEFAULT_BASELINES),
    )
    group.add_argument("--no_network", action="store_true", help="the --baselines alone, without the network")
    group.add_argument(
        "--eval", action="store_true", help="score the fine-tuned checkpoint that --resume names, no more"
    )
    group.add_argument("--no_final", action="store_true", help="do not fit once more, on all labels, after the folds")
    group.add_argument("--overlap", type=options.fraction, default=0.5, help="overlap of tiles when predicting (0.5)")
    group.add_argument(
        "--tree_samples", type=options.positive_int, default=50_000, help="pixels trees learn from (50000)"
    )


def add_run_options(parser: argparse.ArgumentParser) -> None:
    """Adds where and how it runs."""
    run = parser.add_argument_group("run")
    run.add_argument("--output_dir", default="./finetune_dir", help="where everything goes (./finetune_dir)")
    run.add_argument("--log_dir", help="where TensorBoard events go (output_dir)")
    run.add_argument("--resume", default="", help="auto: go on with what output_dir holds; with --eval a checkpoint")
    run.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N (auto)")
    run.add_argument("--amp", default="auto", choices=["auto", "fp16", "bf16", "off"], help="mixed precision (auto)")
    run.add_argument("--num_workers", type=options.count, default=2, help="threads that read ahead (2)")
    run.add_argument("--pin_mem", action=argparse.BooleanOptionalAction, default=True, help="page-locked batches (on)")
    run.add_argument("--save_minutes", type=options.positive, default=10.0, help="minutes between checkpoints (10)")
    run.add_argument("--no_progress", action="store_true", help="no progress bar")
    run.add_argument("--world_size", type=options.positive_int, default=1, help="processes (set by torchrun)")
    run.add_argument("--local_rank", "--local-rank", type=int, default=-1, help="set by launchers")
    run.add_argument("--dist_url", default="env://", help="where processes meet (env://)")


# ------------------------------------------------------------------------------------------------- what options mean

MAY_CHANGE = set(
    "batch_size accum_iter effective_batch world_size local_rank dist_url device num_workers pin_mem resume output_dir "
    "log_dir no_progress save_minutes cache data_dir train_path finetune baselines no_network only_folds no_final "
    "grad_checkpointing eval".split()
)
"""Options that do not decide the numbers of a fit, or whose effect is checked elsewhere."""

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
"""What a checkpoint decides."""


def check_resume(args: argparse.Namespace) -> None:
    """Refuses a --resume that does not go with what is to be done.

    Raises:
        ValueError: naming what would do.
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


def check(args: argparse.Namespace) -> None:
    """Refuses options that do not go together.

    Raises:
        ValueError: naming the flag, its value and what would do.
    """
    _check_scenes(args)
    is_network_fitted = not args.no_network or {"scratch", "probe"} & set(baselines_of(args))
    if not is_network_fitted and (args.batch_size == "auto" or args.effective_batch is not None):
        raise ValueError(
            "--no_network with these --baselines trains no network, for which --batch_size auto and "
            "--effective_batch are; leave them out"
        )
    wrong = PIXELS_ONLY if args.task == "classification" else WINDOWS_ONLY
    for name, default in wrong.items():
        if getattr(args, name) != default:
            others = "segmentation or regression" if args.task == "classification" else "classification"
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


def baselines_of(args: argparse.Namespace) -> list[str]:
    """Names of the baselines asked for; the default ones if the flag stands alone."""
    if args.baselines is None:
        return []
    return list(args.baselines) or list(DEFAULT_BASELINES)


def settle(args: argparse.Namespace, config: Mapping[str, Any], stored: Mapping[str, Any], *, again: bool) -> None:
    """Writes into the options what a checkpoint decides, so that what is kept with a run is what was done.

    Args:
        args: the options; changed.
        config: arguments of the checkpoint's model.
        stored: the checkpoint's contents; of published weights nothing that is looked for here.
        again: the checkpoint is a fine-tuned one to be scored: what was hidden from it stays hidden.

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
    defaults = argparse.ArgumentParser()
    add_data_options(defaults)
    add_network_options(defaults)
    known = {**trained, "patch_size": config["patch_size"]}
    for name in SCRATCH_ONLY:
        value = getattr(args, name)
        if not again and value != defaults.get_default(name) and name in known and value != known[name]:
            raise ValueError(
                f"--{name} {value}: the checkpoint {args.finetune} was trained with {known[name]}; leave it out, or "
                "train from scratch (without --finetune)"
            )
    if args.dataset_type != "grid":
        for name in ("dropped_bands", "grouped_bands", "model_type"):
            setattr(args, name, trained.get(name, getattr(args, name)))
    args.patch_size = config["patch_size"]
    args.input_size = args.input_size or config["img_size"]
    if args.dataset_type == "grid":
        args.base_resolution = args.base_resolution or stored.get("base_resolution") or trained.get("base_resolution")
        args.extent = args.extent or trained.get("extent")
        args.reproject = args.reproject or bool(trained.get("reproject"))
    hidden = stored["hidden"] if again else trained.get("masked_bands") or ()
    args.masked_bands = sorted({*args.masked_bands, *hidden})


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


def _check_scenes(args: argparse.Namespace) -> None:
    """Refuses what does not go with scene data sets, or with rasters.

    Raises:
        ValueError: naming the flag and what would do.
    """
    is_grid = args.dataset_type == "grid"
    defaults = argparse.ArgumentParser()
    for add in (add_task_options, add_data_options, add_network_options):
        add(defaults)
    names = SCENES_ONLY if is_grid else GROUND_ONLY
    given = [name for name in names if getattr(args, name) != defaults.get_default(name)]
    if is_grid and given:
        raise ValueError(
            f"--{given[0]} goes with scene data sets (--dataset_type {', '.join(options.SCENE_TYPES)}); rasters are "
            "tested on folds of their own ground; leave it out"
        )
    if is_grid:
        return
    if args.task != "classification":
        raise ValueError(f"--dataset_type {args.dataset_type} with --task {args.task}: expected --task classification")
    if given:
        what = f"{given[0]} {args.split}" if given[0] == "split" else given[0]
        raise ValueError(
            f"--{what} does not go with --dataset_type {args.dataset_type}: its images carry their classes and lie on "
            "no common ground; leave it out"
        )
    trees = {"trees", "forest"} & set(baselines_of(args))
    if trees:
        raise ValueError(
            f"--baselines {min(trees)} does not go with --dataset_type {args.dataset_type}: trees look at pixels of "
            "ground; expected scratch, probe or constant"
        )


def label_options(args: argparse.Namespace) -> dict[str, Any]:
    """The keyword arguments of `LabelOptions` that the options name."""
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
    """The keyword arguments of `SplitOptions` that the options name.

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


def target_options(args: argparse.Namespace, *, patch_size: int) -> dict[str, Any]:
    """The remaining keyword arguments of `open_targets` that the options name."""
    return {
        "task": args.task,
        "scale": args.label_scale,
        "overlap": args.tile_overlap,
        "min_labelled": args.min_labelled,
        "background_ratio": args.background_ratio,
        "background_distance": args.background_distance,
        "jitter": patch_size // 2,
    }
