"""Options of main_finetune that do not go together, and those that a checkpoint decides."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from util.options import common as options
from util.options.finetune import (
    EPOCHS,
    PATIENCE,
    SCENE_EPOCHS,
    Choices,
    add_data_options,
    add_network_options,
    add_split_options,
    add_task_options,
    add_training_options,
)

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
    "extent reproject aoi tile_overlap missing_layers min_labelled background_ratio background_distance split folds "
    "only_folds fold_block val_buffer label_blocks".split()
)
"""Options that do nothing for images, which carry their classes and lie on no common ground."""


BLOCK_SPLITS = ("blocks", "leaking")
"""Values of --split that cut all ground into blocks of some windows."""


SCENES_ONLY = ("test_path", "val_fraction")


LEAST_VALIDATED_FOLDS = 3
"""Folds without which none is left to train on beside those that are tested and validated."""


FITTED = ("task", "label_scale", "head", "model", "patch_size", "input_size")
"""Options that a fine-tuned checkpoint decides."""


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
    if args.label_blocks is not None and args.label_fraction < 1:
        raise ValueError(
            f"--label_blocks {args.label_blocks} with --label_fraction {args.label_fraction:g}: give one, whole blocks "
            "or labels scattered over all training ground"
        )
    if args.label_blocks is not None and args.split not in BLOCK_SPLITS:
        raise ValueError(
            f"--label_blocks {args.label_blocks} with --split {args.split}: expected --split "
            f"{' or '.join(BLOCK_SPLITS)}, which cut the ground into blocks"
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
        "stem": _stem(args, config, published="layers" not in stored),
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


def _stem(args: argparse.Namespace, config: Mapping[str, Any], *, published: bool) -> str:
    """The stem: as given, else that of the checkpoint's model; published weights load into any.

    Raises:
        ValueError: the checkpoint does not say how to read layers at their native pixels.
    """
    trained = config.get("stem", options.BASE_STEM)
    if published:
        return args.stem or options.DEFAULT_STEM
    if args.stem not in (None, options.BASE_STEM, trained) and trained == options.BASE_STEM:
        raise ValueError(
            f"--stem {args.stem}: the checkpoint {args.finetune} was trained with --stem base, so it holds no "
            "statistics of pixels finer than the base pixel; leave --stem out, or pre-train with --stem native"
        )
    return args.stem or trained


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


def with_stored(args: argparse.Namespace, stored: Mapping[str, Any], given: frozenset[str]) -> argparse.Namespace:
    """The options of a fine-tuned checkpoint, with those replaced that are given now or say where and how to run.

    Args:
        args: the options.
        stored: those of the checkpoint.
        given: names of options that are on the command line, be it with their default.

    Raises:
        ValueError: an option that decides what the network predicts, or from what, and differs from the checkpoint's.
    """
    for name in FITTED:
        value, fitted = getattr(args, name), stored.get(name)
        if name in given and fitted is not None and value != fitted:
            raise ValueError(
                f"--{name} {value}: the checkpoint {args.resume} was fine-tuned with --{name} {fitted}; leave it out, "
                f"or score a checkpoint that was fine-tuned with --{name} {value}"
            )
    here = given | set("eval resume device output_dir log_dir world_size local_rank dist_url baselines aoi".split())
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


def with_length(args: argparse.Namespace) -> argparse.Namespace:
    """The options with --epochs, and with --patience 0 where validation could not end a fit.

    That is where no ground can be set aside for it, or no fit could last longer than the default patience. Elsewhere a
    --patience that is not given stays None until the labels say whether there are enough (`with_patience`).

    Raises:
        ValueError: a --patience for images.
    """
    is_grid = args.dataset_type == "grid"
    if args.patience and not is_grid:
        raise ValueError(
            f"--patience does not go with --dataset_type {args.dataset_type}: its images lie on no common ground, of "
            "which some could be set aside for validation; leave it out, and choose --epochs"
        )
    epochs = args.epochs or (EPOCHS if is_grid else SCENE_EPOCHS)
    validates = is_grid and args.split != "from_checkpoint" and args.folds >= LEAST_VALIDATED_FOLDS
    is_off = args.patience is None and (not validates or epochs <= PATIENCE)
    return with_values(args, epochs=epochs, patience=0 if is_off else args.patience)


def with_patience(args: argparse.Namespace, *, validates: bool) -> argparse.Namespace:
    """The options with a number for --patience: 0 unless ground was set aside for validation."""
    patience = PATIENCE if args.patience is None else args.patience
    return with_values(args, patience=patience if validates else 0)


def wants_final(args: argparse.Namespace) -> bool:
    """Whether the main method is fitted once more on all labels: not on a part of them, nor after a leaking split."""
    is_partial = args.label_fraction < 1 or args.label_blocks is not None
    return args.dataset_type == "grid" and not args.no_final and not is_partial and args.split == "blocks"


def deciding_options(args: argparse.Namespace) -> dict[str, Any]:
    """The options that decide the numbers of a run; those of versions without averages have no `ema_decay`."""
    options = {key: value for key, value in vars(args).items() if key not in MAY_CHANGE and value is not None}
    return {key: value for key, value in options.items() if key != "ema_decay" or value}
