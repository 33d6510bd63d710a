"""Settings of a pre-training run, and what is built from them: batch size, parallel model, schedule and optimiser."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

import torch
from timm.optim import param_groups_weight_decay
from torch import nn

from util.hardware.device import busy_warning
from util.processes import distributed as dist
from util.processes import fsdp
from util.training import cuda_graphs
from util.training.batch_size import BatchSize, choose_batch_size, predict_memory
from util.training.engine import Updater, make_adamw
from util.training.lr_sched import Schedule
from util.training.memory import memory_trials
from util.training.training_step import pretraining_step

logger = logging.getLogger(__name__)

DEFAULT_LR = 1e-3
"""Peak learning rate without --lr and --blr; chosen for the tiny model at 32 tiles or windows an update."""


@dataclass(frozen=True)
class TrainingSettings:
    """How a network is pre-trained; each attribute is the option of the same name.

    Attributes:
        epochs: total number of epochs.
        lr: peak learning rate, None to derive it from `blr`.
        blr: peak learning rate at an effective batch of 256, None for `DEFAULT_LR`.
        min_lr: final learning rate.
        warmup_epochs: epochs of linear warm-up.
        weight_decay: of AdamW.
        ema_decay: decay of the moving average of the weights, 0 for none.
        clip_grad: largest gradient norm.
        base_loss_weight: weight of the base-scale loss.
        scale_loss_weight: weight of the loss at finer scales.
        texture_weight: weight of the loss of textures; 0: the network does not predict them.
        mask_ratio: fraction of tokens removed.
    """

    epochs: int
    lr: float | None
    blr: float | None
    min_lr: float
    warmup_epochs: float
    weight_decay: float
    ema_decay: float
    clip_grad: float
    base_loss_weight: float
    scale_loss_weight: float
    texture_weight: float
    mask_ratio: float

    @property
    def loss_weights(self) -> tuple[float, ...]:
        """Weights of the losses at the base scale, at finer scales and, if there is one, of textures."""
        weights = (self.base_loss_weight, self.scale_loss_weight)
        return (*weights, self.texture_weight) if self.texture_weight else weights

    def total_loss(self, losses: Sequence[torch.Tensor]) -> torch.Tensor:
        """The weighted sum of the losses of a `Reconstruction`."""
        base, *others = (weight * loss for weight, loss in zip(self.loss_weights, losses, strict=True))
        return sum(others, base)


@dataclass(frozen=True)
class RunSettings:
    """How a run computes, reports and saves; each attribute is the option of the same name.

    Attributes:
        batch_size: tiles per step and process, or "auto".
        accum_iter: steps per update.
        effective_batch: tiles per update over all processes, None if `accum_iter` decides.
        num_workers: threads that read ahead.
        fsdp: shard weights and optimiser state across processes.
        compile: compile the model.
        cuda_graphs: record updates as CUDA graphs: off, auto or on.
        grad_checkpointing: recompute blocks in the backward pass.
        log_every: updates between lines of the log.
        figure_every: epochs between pictures, 0 for the last epoch only.
        keep_every: epochs between checkpoints that are kept.
        save_minutes: minutes between checkpoints within an epoch.
        no_progress: show no progress bar.
        dry_run: time one update instead of training.
    """

    batch_size: int | str
    accum_iter: int
    effective_batch: int | None
    num_workers: int
    fsdp: bool
    compile: bool
    cuda_graphs: str
    grad_checkpointing: bool
    log_every: int
    figure_every: int
    keep_every: int
    save_minutes: float
    no_progress: bool
    dry_run: bool

    def shows_progress(self, ranks: dist.Ranks) -> bool:
        """True in the process that shows progress bars."""
        return ranks.is_main and not self.no_progress

    def keeps(self, epochs_done: int) -> bool:
        """True if the checkpoint after that number of epochs is kept under its own name, wherever the run ends."""
        return epochs_done % self.keep_every == 0

    def draws(self, epochs_done: int) -> bool:
        """True if a picture is drawn after that number of epochs, wherever the run ends."""
        return bool(self.figure_every) and epochs_done % self.figure_every == 0


def check_start(settings: RunSettings, ranks: dist.Ranks, device: torch.device) -> str:
    """Checks that sharding and CUDA graphs are possible, and warns of busy cores; every process must call it.

    Returns:
        Whether updates are recorded as CUDA graphs: off, auto or on; auto becomes off where they cannot be.

    Raises:
        ValueError: --fsdp with one process or a compiled model, or not supported by this torch; --cuda_graphs on where
            updates cannot be recorded.
    """
    checkpointing = settings.grad_checkpointing
    reason = cuda_graphs.why_not(device=device, processes=ranks.world_size, checkpointing=checkpointing)
    if reason and settings.cuda_graphs == "on":
        raise ValueError(f"--cuda_graphs on: {reason}")
    if settings.fsdp:
        dist.on_all(lambda: fsdp.refuse_unfit(world_size=ranks.world_size, compiled=settings.compile, device=device))
    if busy := busy_warning() if device.type == "cpu" and ranks.is_main else "":
        logger.warning("%s", busy)
    return "off" if reason else settings.cuda_graphs


def require_something_to_learn(network: Any, *, mask_ratio: float, loss_weights: Sequence[float]) -> None:
    """Refuses settings under which no loss would change a weight.

    Args:
        network: a masked autoencoder.
        mask_ratio: fraction of tokens removed.
        loss_weights: as of `TrainingSettings`.

    Raises:
        ValueError: no loss with a weight above 0 has anything to learn from.
    """

    def is_learnt(*, hides: bool) -> bool:
        return any(w and able for w, able in zip(loss_weights, network.can_learn(hides=hides), strict=True))

    if is_learnt(hides=mask_ratio > 0):
        return
    if is_learnt(hides=True):
        seen = "visible tokens see their own finer pixels" if network.embeds_native else "no finer scale has a weight"
        raise ValueError(
            f"--mask_ratio {mask_ratio:g} hides no token, and {seen}, so there is nothing to learn; raise it, such as "
            "--mask_ratio 0.75"
        )
    raise ValueError(
        f"--base_loss_weight {loss_weights[0]:g}: no layer is scored at a scale finer than the base pixel, so there is "
        "nothing to learn; raise it, or give finer --scales"
    )


def fit_batch(
    network: nn.Module,
    training: TrainingSettings,
    settings: RunSettings,
    ranks: dist.Ranks,
    *,
    amp_dtype: torch.dtype | None,
    batches_ahead: int,
    job_free: float,
) -> tuple[BatchSize, float | None]:
    """Chooses the batch size; before a dry run, also predicts the memory that it takes. Every process must call it.

    Args:
        network: the network on the device, not wrapped.
        training: masking, clipping and averaging of weights.
        settings: batch size, accumulation and sharding asked for.
        ranks: which process this is.
        amp_dtype: number format of autocast, None for full precision.
        batches_ahead: batches that are read ahead.
        job_free: bytes of the host that the job of this process may still take.

    Returns:
        The batch size, and the peak memory in bytes, None if it is not predicted.

    Raises:
        ValueError: there is nothing to learn, options contradict each other, or no batch fits into memory.
    """
    require_something_to_learn(network, mask_ratio=training.mask_ratio, loss_weights=training.loss_weights)
    device = next(network.parameters()).device
    step = pretraining_step(network, mask_ratio=training.mask_ratio, amp_dtype=amp_dtype, clip_grad=training.clip_grad)
    trials = memory_trials(
        step,
        network,
        device=device,
        accumulates=settings.batch_size == "auto" or settings.accum_iter > 1,
        shares_gradients=ranks.world_size > 1 and not settings.fsdp,
        batches_ahead=batches_ahead,
        averages_weights=bool(training.ema_decay),
    )
    batch = choose_batch_size(
        settings.batch_size,
        accum_iter=settings.accum_iter,
        effective_batch=settings.effective_batch,
        ranks=ranks,
        device=device,
        trials=trials,
        job_free=job_free,
        records_graphs=settings.cuda_graphs != "off"
        and not cuda_graphs.why_not(
            device=device, processes=ranks.world_size, checkpointing=settings.grad_checkpointing
        ),
    )
    if not settings.dry_run or settings.fsdp:
        return batch, None
    return batch, predict_memory(trials, batch.batch_size, device=device, ranks=ranks, job_free=job_free)


def parallel_model(network: Any, settings: RunSettings, device: torch.device) -> nn.Module:
    """Returns the network as all processes train it together: sharded, or in DistributedDataParallel; compiled or not.

    Args:
        network: has `blocks` and `decoder_blocks`, which are sharded one by one.
        settings: whether to shard or compile.
        device: where the network is.
    """
    if settings.fsdp:
        return fsdp.shard(network, [*network.blocks, *network.decoder_blocks], device)
    return dist.wrap(torch.compile(network) if settings.compile else network, device)  # type: ignore[arg-type]


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


class Batches(Protocol):
    """The numbers of tiles that a schedule follows from."""

    @property
    def tiles(self) -> int:
        """Tiles in an epoch."""

    @property
    def updates(self) -> int:
        """Optimiser steps in an epoch."""

    @property
    def effective_batch(self) -> int:
        """Tiles in an update, over all processes."""


def warn_of_long_warmup(warmup_epochs: float, epochs: int) -> None:
    """Warns if the learning rate never reaches its peak."""
    if warmup_epochs > epochs:
        logger.warning(
            "--warmup_epochs %g is beyond --epochs %d: the learning rate only rises and never reaches its peak; give a "
            "tenth of the epochs, --warmup_epochs %g",
            warmup_epochs,
            epochs,
            epochs / 10,
        )


def pretraining_schedule(settings: TrainingSettings, batches: Batches) -> Schedule:
    """Returns the learning-rate schedule of a pre-training run; warns if its warm-up is too long."""
    warn_of_long_warmup(settings.warmup_epochs, settings.epochs)
    return make_schedule(
        tiles=batches.tiles,
        updates=batches.updates,
        epochs=settings.epochs,
        warmup_epochs=settings.warmup_epochs,
        effective_batch=batches.effective_batch,
        lr=settings.lr,
        blr=settings.blr,
        min_lr=settings.min_lr,
    )


def log_size(name: str, network: Any, schedule: Schedule) -> None:
    """Logs the number of trained parameters, the length of a run, and of how many layers textures are predicted."""
    logger.info(
        "%s: %.2f M parameters; %d tiles and %d updates an epoch, effective batch %d, peak rate %.3g",
        name,
        sum(p.numel() for p in network.parameters() if p.requires_grad) / 1e6,
        schedule.tiles,
        schedule.updates,
        schedule.effective_batch,
        schedule.peak_lr,
    )
    if network.texture_head is not None:
        logger.info("textures of %d of %d layers", len(network.texture_head.sources), len(network.layers))


def pretraining_updater(
    network: nn.Module,
    model: nn.Module,
    settings: TrainingSettings,
    graphs: str = "off",
    *,
    lr: float,
    amp_dtype: torch.dtype | None,
) -> Updater:
    """Returns the optimiser steps of a run: AdamW without weight decay of biases and norms, clipping, mixed precision.

    Args:
        network: the network that is trained.
        model: the same, wrapped for several processes or compiled.
        settings: weight decay, clipping and averaging of weights.
        graphs: record updates as CUDA graphs: off, auto or on.
        lr: initial learning rate; each step sets its own.
        amp_dtype: number format of autocast, None for full precision; gradients are scaled for float16.
    """
    device_type = next(network.parameters()).device.type
    make = Updater if graphs == "off" else partial(cuda_graphs.GraphedUpdater, choice=graphs)
    return make(
        model,
        make_adamw(param_groups_weight_decay(network, settings.weight_decay), lr=lr),
        amp_dtype=amp_dtype,
        scaler=torch.amp.GradScaler(device_type, enabled=amp_dtype == torch.float16),
        device_type=device_type,
        clip_grad=settings.clip_grad,
        ema_decay=settings.ema_decay,
    )
