"""Settings of a pre-training run, and the schedule and optimiser that are built from them."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from timm.optim import param_groups_weight_decay
from torch import nn

from util.training.engine import Updater, make_adamw
from util.training.lr_sched import Schedule

DEFAULT_LR = 1e-3
"""Peak learning rate without --lr and --blr; chosen for the tiny model at 32 tiles or windows an update."""


@dataclass(frozen=True)
class TrainingSettings:
    """How a network is pre-trained; each attribute is the option of the same name.

    Attributes:
        seed: seed of tiles, masks and weights.
        batch_size: tiles per step and process.
        accum_iter: steps per update.
        epochs: total number of epochs.
        lr: peak learning rate, None to derive it from `blr`.
        blr: peak learning rate at an effective batch of 256, None for `DEFAULT_LR`.
        min_lr: final learning rate.
        warmup_epochs: epochs of linear warm-up.
        weight_decay: of AdamW.
        clip_grad: largest gradient norm.
        base_loss_weight: weight of the base-scale loss.
        scale_loss_weight: weight of the loss at finer scales.
        mask_ratio: fraction of tokens removed.
        layer_dropout: probability that a tile is trained without a layer.
    """

    seed: int
    batch_size: int
    accum_iter: int
    epochs: int
    lr: float | None
    blr: float | None
    min_lr: float
    warmup_epochs: float
    weight_decay: float
    clip_grad: float
    base_loss_weight: float
    scale_loss_weight: float
    mask_ratio: float
    layer_dropout: float

    @property
    def loss_weights(self) -> tuple[float, float]:
        """Weights of the base-scale loss and of the loss at finer scales."""
        return self.base_loss_weight, self.scale_loss_weight


@dataclass(frozen=True)
class RunSettings:
    """How a run reads, reports and saves; each attribute is the option of the same name. None changes the results.

    Attributes:
        num_workers: threads that read ahead.
        pin_mem: copy batches to a GPU from page-locked memory.
        log_every: updates between lines of the log.
        figure_every: epochs between pictures, 0 for the last epoch only.
        keep_every: epochs between checkpoints that are kept.
        save_minutes: minutes between checkpoints within an epoch.
        no_progress: show no progress bar.
    """

    num_workers: int
    pin_mem: bool
    log_every: int
    figure_every: int
    keep_every: int
    save_minutes: float
    no_progress: bool


def make_schedule(
    *,
    tiles: int,
    updates: int,
    epochs: int,
    warmup_epochs: float,
    effective_batch: int,
    lr: float | None,
    blr: float | None,
    min_lr: float,
) -> Schedule:
    """Returns the learning-rate schedule of a run.

    Args:
        tiles: tiles in an epoch.
        updates: optimiser steps in an epoch.
        epochs: total number of epochs.
        warmup_epochs: epochs of linear warm-up.
        effective_batch: tiles in an update, over all processes.
        lr: peak learning rate, None to derive it.
        blr: peak learning rate at an effective batch of 256, None for `DEFAULT_LR`.
        min_lr: final learning rate.
    """
    return Schedule(
        tiles=tiles,
        updates=updates,
        epochs=epochs,
        warmup_steps=round(warmup_epochs * updates),
        peak_lr=lr or (blr * effective_batch / 256 if blr else DEFAULT_LR),
        min_lr=min_lr,
        effective_batch=effective_batch,
    )


def pretraining_updater(
    network: nn.Module,
    model: nn.Module,
    settings: TrainingSettings,
    *,
    peak_lr: float,
    amp_dtype: torch.dtype | None,
    device: torch.device,
) -> Updater:
    """Returns the optimiser steps of a run: AdamW without weight decay of biases and norms, clipping, mixed precision.

    Args:
        network: the network that is trained.
        model: the same, wrapped for several processes or compiled.
        settings: weight decay and clipping.
        peak_lr: initial learning rate; each step sets its own.
        amp_dtype: number format of autocast, None for full precision; gradients are scaled for float16.
        device: where the model computes.
    """
    return Updater(
        model,
        make_adamw(param_groups_weight_decay(network, settings.weight_decay), lr=peak_lr),
        amp_dtype=amp_dtype,
        scaler=torch.amp.GradScaler(device.type, enabled=amp_dtype == torch.float16),
        device_type=device.type,
        clip_grad=settings.clip_grad,
    )
