"""From the options of main_finetune to the settings and keyword arguments that the rest of the program takes."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from util.options import common as options


@dataclass(frozen=True)
class NetworkSettings:
    """How the network is built; each attribute is the option of the same name.

    Attributes:
        model: size of an encoder from scratch.
        patch_size: patch edge of an encoder from scratch, base-scale pixels.
        drop_path: stochastic depth.
        grad_checkpointing: recompute blocks to save memory.
        stem: whether tokens and the per-pixel head see layers at their native pixels.
        head: per-pixel head of the first method, None for the method's own.
        label_scale: predicted pixels along the edge of a base-scale pixel.
        global_pool: windows are classified by the mean of their tokens, not by the class token.
        seed: seed of the initial weights.
    """

    model: str
    patch_size: int
    drop_path: float
    grad_checkpointing: bool
    stem: str
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
        epochs: epochs of each fit; with `patience` the most of them.
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
        ema_decay: decay of the moving average of the weights, 0 for none.
        augment: flip and rotate windows.
        patience: epochs without a better validation score after which a fit ends; 0 = all epochs are trained.
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
    ema_decay: float
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


SCENE_SIZE = 96
"""Edge of images at the base scale without a checkpoint: that of SatMAE++."""


def stem_of(args: argparse.Namespace) -> str:
    """The stem: as given or as the checkpoint decides, else the default."""
    return str(args.stem or options.DEFAULT_STEM)


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
        "aoi": args.aoi,
        "cache": args.cache,
        "allow_missing": args.missing_layers == "allow",
        "dropped_bands": args.dropped_bands or [],
        "grouped_bands": args.grouped_bands,
        "one_group": args.model_type == "vanilla",
        "scales": args.scales,
        "seed": args.seed,
        "native": stem_of(args) != options.BASE_STEM,
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
        "native": stem_of(args) != options.BASE_STEM,
    }


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
        "early_stopping": args.patience != 0,
        "validation_optional": args.patience is None,
        "label_blocks": args.label_blocks,
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
    return NetworkSettings(**{**_named(args, NetworkSettings), "stem": stem_of(args)})


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
    names = ("batch_size", "accum_iter", "effective_batch", "weight_decay", "clip_grad", "ema_decay")
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


def _named(args: argparse.Namespace, settings: Any) -> dict[str, Any]:
    """The options that have the name of a field of a dataclass."""
    return {name: getattr(args, name) for name in settings.__dataclass_fields__ if name in args}
