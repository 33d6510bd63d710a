"""One network on one fold: what its training loop works with, its checkpoints, and how it resumes from them."""

from __future__ import annotations

import copy
import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from timm.optim import param_groups_layer_decay, param_groups_weight_decay

from util.checkpoints import resume_state
from util.checkpoints import run_checkpoints as ckpt
from util.checkpoints.same_step import require_same_step
from util.finetuning.compared_methods import Method
from util.finetuning.objectives import Objective
from util.options.finetune_values import TrainingSettings
from util.processes import distributed as dist
from util.processes.program import RunFailed
from util.training.batch_size import BatchSize, choose_batch_size
from util.training.engine import Updater, make_adamw
from util.training.lr_sched import Schedule
from util.training.memory import memory_trials
from util.training.state import collect_weights, restore_weights
from util.training.step_meter import StepMeter
from util.training.timer import TimeLeft, TrainingTimer
from util.training.training_step import TrainingStep, native_zeros

logger = logging.getLogger(__name__)


LENGTH = ("last_epoch", "decay_epoch", "trained", "best_trained", "validation_s")
"""Fields of `FitProgress` that early stopping decides by."""


@dataclass
class FitProgress:
    """Progress of a fit.

    Attributes:
        epoch: the next epoch.
        update: the next update within it.
        step: updates done.
        readings: [updates, mean loss, mean gradient norm] of finished parts of the current epoch.
        best_epoch: the epoch of the best validation score; -1 before there is one.
        best_score: that score.
        best_model: the weights then; empty without validation.
        last_epoch: epochs after which the fit ends; with early stopping the most, until the end is decided.
        decay_epoch: with early stopping the first epoch of falling rate; None before that is decided.
        trained: epochs behind the current weights: fewer than `epoch` once a fit has returned to its best weights.
        best_trained: epochs behind the best weights.
        validation_s: seconds of validation.
        stored_scores: of the comparison, as the checkpoint held them that the fit was resumed from.
    """

    epoch: int = 0
    update: int = 0
    step: int = 0
    readings: list[list[float]] = field(default_factory=list)
    best_epoch: int = -1
    best_score: float = float("-inf")
    best_model: dict[str, torch.Tensor] = field(default_factory=dict)
    last_epoch: int = 0
    decay_epoch: int | None = None
    trained: int = 0
    best_trained: int = 0
    validation_s: float = 0.0
    stored_scores: Any = None

    @property
    def kept_epochs(self) -> int:
        """Epochs behind the weights that are kept: the best ones, or without validation the last."""
        return self.best_trained if self.best_model else self.trained

    def end_epoch(self) -> dict[str, float]:
        """Goes to the next epoch; returns the mean loss and gradient norm of the one that ends."""
        updates = sum(part[0] for part in self.readings)
        means = [sum(part[0] * part[k] for part in self.readings) / updates for k in (1, 2)]
        self.epoch, self.trained, self.update, self.readings = self.epoch + 1, self.trained + 1, 0, []
        return {"loss": means[0], "grad_norm": means[1]}

    def waits_too_long(self, patience: int) -> bool:
        """Whether `patience` epochs (0 = no limit) have passed without a better validation score, if there is one."""
        return patience > 0 and bool(self.best_model) and self.epoch - 1 - self.best_epoch >= patience


@dataclass(frozen=True)
class Fit:
    """One network on one fold.

    Attributes:
        method: how it is trained.
        fold: number of the fold; None for all labels.
        examples: training windows of the fold.
        layers: the layers with the statistics of the fold, a `datasets.finetuning.layers.OpenedLayers`.
        objective: what is learned.
        network: the network itself.
        model: the network, wrapped if there are several processes.
        updater: the optimiser's steps.
        schedule: rate of each step of a fit of fixed length.
        patience: epochs without a better validation score after which a fit ends; 0: its length is fixed.
        progress: next epoch and update, and the best weights so far.
        timer: time spent training.
    """

    method: Method
    fold: int | None
    examples: Any
    layers: Any
    objective: Objective
    network: Any
    model: torch.nn.Module
    updater: Updater
    schedule: Schedule
    patience: int = 0
    progress: FitProgress = field(default_factory=FitProgress)
    timer: TrainingTimer = field(default_factory=TrainingTimer)

    @property
    def name(self) -> str:
        """For messages and tags."""
        return f"{self.method.name}/all" if self.fold is None else f"{self.method.name}/fold{self.fold}"

    @property
    def pyramid(self) -> Any:
        """Makes the network's input of native pixels."""
        return as_seen_by(self.network, self.layers.survey).pyramid

    @property
    def is_validated(self) -> bool:
        """Whether it is scored on validation ground after each epoch: not when all labels are trained on."""
        return self.patience > 0 and self.fold is not None


def make_updater(
    network: Any,
    model: torch.nn.Module,
    settings: TrainingSettings,
    *,
    peak_lr: float,
    is_pretrained: bool,
    device: torch.device,
    amp_dtype: torch.dtype | None,
) -> Updater:
    """Returns the optimiser steps of a fit: AdamW, with rates that decay towards the input and one for the head.

    Args:
        network: with `group_matcher` and `no_weight_decay`; frozen weights are left out.
        model: the same, wrapped for several processes.
        settings: weight decay, rates and clipping.
        peak_lr: highest rate of the encoder, at its end.
        is_pretrained: rates decay towards the input, which preserves what pre-training learned.
        device: where the model computes.
        amp_dtype: number format of autocast, None for full precision; gradients are scaled for float16.
    """
    groups = param_groups_layer_decay(
        network,
        weight_decay=settings.weight_decay,
        no_weight_decay_list=network.no_weight_decay(),
        layer_decay=settings.layer_decay if is_pretrained else 1.0,
    )
    return Updater(
        model,
        make_adamw(list(_with_head_rate(groups, network.head, settings.head_lr_scale)), lr=peak_lr),
        amp_dtype=amp_dtype,
        scaler=torch.amp.GradScaler(device.type, enabled=amp_dtype == torch.float16),
        device_type=device.type,
        clip_grad=settings.clip_grad,
        ema_decay=settings.ema_decay,
    )


def _with_head_rate(groups: Sequence[dict[str, Any]], head: torch.nn.Module, times: float) -> Iterator[dict[str, Any]]:
    """The groups, with the head's weights in groups of their own, whose rate is `times` as high."""
    own = {id(p) for p in head.parameters()}
    for group in groups:
        for is_head, scale in ((False, 1.0), (True, times)):
            if chosen := [p for p in group["params"] if (id(p) in own) == is_head]:
                yield {**group, "params": chosen, "lr_scale": group["lr_scale"] * scale}


def fit_step(
    network: Any,
    objective: Objective,
    *,
    weight_decay: float,
    clip_grad: float,
    amp_dtype: torch.dtype | None,
) -> TrainingStep:
    """The step of a fit, to predict or measure its memory.

    Args:
        network: the network to train.
        objective: what is learned.
        weight_decay: of AdamW.
        clip_grad: largest gradient norm.
        amp_dtype: of autocast.
    """
    config, dtype = network.config, objective.target_dtype
    edge = input_edge(network)
    shape = [config["img_size"] * config["scale"]] * 2 if objective.per_pixel else []

    def make_batch(size: int, device: torch.device) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, list[Any]]:
        images = torch.zeros(size, config["in_chans"], edge, edge, device=device)
        target = torch.zeros(size, *shape, dtype=dtype, device=device)
        return images, torch.ones_like(images, dtype=torch.bool), target, native_zeros(network, size, device)

    return TrainingStep(
        make_model=partial(copy.deepcopy, network),
        make_batch=make_batch,
        loss=lambda model, batch: (objective.loss(model, *batch), None),
        make_optimizer=lambda model: make_adamw(param_groups_weight_decay(model, weight_decay), lr=1e-3),
        amp_dtype=amp_dtype,
        clip_grad=clip_grad,
    )


def zoom_of(network: Any) -> int:
    """Pixels of a network's input along the edge of a base pixel: 1 but for networks that see finer ones."""
    return network.config.get("zoom", 1)


def as_seen_by(network: Any, survey: Any) -> Any:
    """The layers as a network takes them: averaged to base pixels, or resampled to finer ones."""
    zoom = zoom_of(network)
    return survey if zoom == 1 else replace(survey, pyramid=survey.pyramid.finer(zoom))


def input_edge(network: Any) -> int:
    """Pixels along the edge of a network's input."""
    return network.config["img_size"] * zoom_of(network)


def share_batch_statistics(network: torch.nn.Module) -> None:
    """Averages the statistics of batch normalisation over all processes, each of which has seen its own windows."""
    for layer in network.modules():
        if isinstance(layer, torch.nn.modules.batchnorm._BatchNorm) and layer.running_mean is not None:
            for statistic in (layer.running_mean, layer.running_var):
                statistic.copy_(dist.mean_over_ranks(statistic))


def trained_weights(network: torch.nn.Module) -> int:
    """Number of weights that are trained."""
    return sum(p.numel() for p in network.parameters() if p.requires_grad)


def choose_batches(
    networks: Sequence[Any],
    objective: Objective,
    *,
    batch_size: int | str,
    accum_iter: int,
    effective_batch: int | None,
    weight_decay: float,
    clip_grad: float,
    ema_decay: float,
    amp_dtype: torch.dtype | None,
    batches_ahead: int,
    job_free: float,
    ranks: dist.Ranks,
    device: torch.device,
) -> BatchSize:
    """Chooses batch size and accumulation for the network that trains most weights, as `choose_batch_size` does.

    Args:
        networks: the networks of all methods; empty if none is trained.
        objective: what is learned.
        batch_size: as given: a number, or `auto`.
        accum_iter: as given.
        effective_batch: as given.
        weight_decay: of AdamW.
        clip_grad: largest gradient norm.
        ema_decay: of the average of the weights, 0 for none.
        amp_dtype: of autocast.
        batches_ahead: batches that are read ahead.
        job_free: bytes of the host that the job of this process may still take.
        ranks: which process this is; every process must call it.
        device: where the networks are trained.

    Raises:
        ValueError: no batch fits, or the options contradict each other.
    """
    if batch_size != "auto" and effective_batch is None:
        return BatchSize(int(batch_size), accum_iter)
    network = max(networks, key=trained_weights).to(device)
    step = fit_step(network, objective, weight_decay=weight_decay, clip_grad=clip_grad, amp_dtype=amp_dtype)
    trials = memory_trials(
        step,
        network,
        device=device,
        accumulates=True,
        shares_gradients=ranks.world_size > 1,
        batches_ahead=batches_ahead,
        averages_weights=bool(ema_decay),
    )
    return choose_batch_size(
        batch_size,
        accum_iter=accum_iter,
        effective_batch=effective_batch,
        ranks=ranks,
        device=device,
        trials=trials,
        job_free=job_free,
    )


def new_meter(fit: Fit, device: torch.device) -> StepMeter:
    """A meter of the losses and gradient norms of an epoch."""
    return StepMeter(
        updates=fit.schedule.updates,
        scales=1,
        channels=1,
        device=device,
        check_gradients=not fit.updater.scaler.is_enabled(),
    )


def log_epoch(fit: Fit, record: Mapping[str, float], time_left: TimeLeft) -> None:
    """Logs the epoch that has just ended, and when the whole run is likely to end."""
    progress = fit.progress
    left = time_left.after_epoch(progress.epoch, progress.last_epoch, fit=fit.name)
    at_most = "at most " * bool(fit.patience)
    logger.info(
        "%s epoch %d of %s%d: loss %.4f, %.0f windows/s, waited %.1f %%%s",
        fit.name,
        progress.epoch,
        at_most if fit.is_validated else "",
        progress.last_epoch,
        record["loss"],
        record["tiles_per_s"],
        100 * record["wait_share"],
        f"; {at_most}{left} left" if left else "",
    )


def read_meter(fit: Fit, meter: StepMeter, folder: Path) -> None:
    """Adds the meter's losses and gradient norms to the progress of a fit.

    Args:
        fit: the fit.
        meter: what it measured since the last reading.
        folder: where the fit's checkpoints are, for the error message.

    Raises:
        RunFailed: a loss was not finite, or a gradient scaler skips every update, to the end or 25 times.
    """
    progress = fit.progress
    reading = meter.read(dist.mean_over_ranks, dist.sum_over_ranks)
    if reading.first_bad is not None:
        where = f"epoch {progress.epoch + 1}, update {progress.update - reading.updates + reading.first_bad}"
        error = RunFailed(
            f"{fit.name}: loss not finite in {where}; the last checkpoint in {folder} is good. Lower --lr, or look at "
            "the layers and labels"
        )
        raise dist.mark_shared(error)
    is_end = progress.update == fit.schedule.updates and progress.epoch + 1 >= progress.last_epoch
    fit.updater.require_updates(folder, is_end=is_end)
    progress.readings.append([reading.updates, reading.loss, reading.grad_norm])


def note_best(fit: Fit, score: float) -> None:
    """Stores the network's weights after an epoch, those that were validated, if their score is the best so far."""
    progress = fit.progress
    if score > progress.best_score:
        progress.best_score, progress.best_epoch, progress.best_trained = score, progress.epoch - 1, progress.trained
        progress.best_model = {key: tensor.detach().cpu().clone() for key, tensor in fit.network.state_dict().items()}


def save_fit(
    fit: Fit, folder: Path, run: Mapping[str, Any], *, scores: Mapping[str, Any] | None, device: torch.device
) -> None:
    """Writes a checkpoint of a fit from the main process; if it cannot be written, all processes fail.

    Args:
        fit: the fit.
        folder: where it goes.
        run: entries that all checkpoints of the run share.
        scores: of the comparison; None before it is finished.
        device: where the fit runs.
    """
    share_batch_statistics(fit.network)
    of_fit = {
        "training": asdict(fit.examples.statistics),
        "statistics": fit.layers.statistics,
        "encodings": fit.layers.encodings,
        "arm": fit.method.name,
        "fold": fit.fold,
        "scores": scores,
    }
    state = fit_state(fit, device) | dict(run) | of_fit
    dist.on_main_rank(lambda: ckpt.save_run_checkpoint(folder, state, epoch_file=False))


def fit_state(fit: Fit, device: torch.device) -> dict[str, Any]:
    """The entries of a checkpoint from which a fit resumes exactly."""
    progress = fit.progress
    return {
        **collect_weights(fit.network, fit.updater, fit.network.state_dict()),
        "optimizer": fit.updater.optimizer.state_dict(),
        "scaler": fit.updater.scaler.state_dict(),
        "epoch": progress.epoch,
        "update": progress.update,
        "step": progress.step,
        "rng": resume_state.collect_rng_state(device),
        "model_config": fit.network.config,
        "seen": progress.readings,
        "best": {"epoch": progress.best_epoch, "score": progress.best_score, "model": progress.best_model},
        "length": {name: getattr(progress, name) for name in LENGTH},
        **fit.timer.state(),
    }


def resume_fit(fit: Fit, folder: Path) -> None:
    """Resumes a fit from the newest good checkpoint of its folder, if there is one.

    Raises:
        ValueError: all are damaged, or processes found different ones.
    """
    found = dist.on_all(lambda: ckpt.find_resumable(folder))
    require_same_step(None if found is None else found.state, f"{fit.name} in {folder}")
    if found is None:
        return
    for path, reason in found.skipped:
        logger.warning("skipped %s: %s", path, reason)
    restore(fit, found.state)
    logger.info("%s: resumed at epoch %d, update %d", fit.name, fit.progress.epoch + 1, fit.progress.update)


def restore(fit: Fit, state: Mapping[str, Any]) -> None:
    """Puts a fit into the state that a checkpoint holds."""
    progress, best = fit.progress, state["best"]
    restore_weights(state, fit.updater, fit.network.load_state_dict)
    fit.updater.optimizer.load_state_dict(state["optimizer"])
    fit.updater.restore_scaler(state["scaler"])
    progress.epoch, progress.update, progress.step = state["epoch"], state["update"], state["step"]
    progress.readings = state["seen"]
    progress.best_epoch, progress.best_score, progress.best_model = best["epoch"], best["score"], best["model"]
    progress.trained = progress.epoch
    progress.stored_scores = state.get("scores")
    for name, value in state.get("length", {}).items():  # older checkpoints are of fits of fixed length
        setattr(progress, name, value)
    fit.timer.resume(state)
