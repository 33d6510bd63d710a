"""One network on one fold: the parts that its loop works with, and how they are kept and taken up again."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from timm.optim import param_groups_layer_decay, param_groups_weight_decay

from util.checkpoints import resume_state
from util.finetuning.compared_methods import Method
from util.finetuning.objectives import DenseValues, Objective
from util.training.engine import Updater, make_adamw
from util.training.lr_sched import Schedule
from util.training.timer import TrainingTimer
from util.training.training_step import TrainingStep


@dataclass
class FitProgress:
    """Where a fit stands.

    Attributes:
        epoch: the next epoch.
        update: the next update within it.
        step: updates done.
        seen: [updates, mean loss, mean gradient norm] of parts of the present epoch that are done.
        best_epoch: the epoch of the best validation score; -1 before there is one.
        best_score: that score.
        best_model: the weights then; empty without validation.
    """

    epoch: int = 0
    update: int = 0
    step: int = 0
    seen: list[list[float]] = field(default_factory=list)
    best_epoch: int = -1
    best_score: float = float("-inf")
    best_model: dict[str, torch.Tensor] = field(default_factory=dict)

    def end_epoch(self) -> dict[str, float]:
        """Goes to the next epoch; returns the mean loss and gradient norm of the one that ends."""
        updates = sum(part[0] for part in self.seen)
        means = [sum(part[0] * part[k] for part in self.seen) / updates for k in (1, 2)]
        self.epoch, self.update, self.seen = self.epoch + 1, 0, []
        return {"loss": means[0], "grad_norm": means[1]}

    def waits_too_long(self, patience: int) -> bool:
        """Whether so many epochs (0 = any number) have passed without a better validation score."""
        return patience > 0 and self.epoch - 1 - self.best_epoch >= patience


@dataclass(frozen=True)
class Fit:
    """One network on one fold.

    Attributes:
        arm: how it is trained.
        fold: number of the fold; None for all labels.
        examples: gives windows to train on.
        objective: what is learned.
        network: the network itself.
        model: the network, wrapped if there are several processes.
        updater: the optimiser's steps.
        schedule: rate of each step.
        place: where it stands.
        clock: time spent training.
    """

    arm: Method
    fold: int | None
    examples: Any
    objective: Objective
    network: Any
    model: torch.nn.Module
    updater: Updater
    schedule: Schedule
    place: FitProgress = field(default_factory=FitProgress)
    clock: TrainingTimer = field(default_factory=TrainingTimer)

    @property
    def name(self) -> str:
        """For messages and tags."""
        return f"{self.arm.name}/all" if self.fold is None else f"{self.arm.name}/fold{self.fold}"

    @property
    def is_validated(self) -> bool:
        """Whether there is ground to validate on: not when all labels are trained on."""
        return self.fold is not None


def make_updater(
    network: Any,
    model: torch.nn.Module,
    *,
    device: torch.device,
    peak_lr: float,
    weight_decay: float,
    layer_decay: float,
    head_lr_scale: float,
    clip_grad: float,
    amp_dtype: torch.dtype | None,
    needs_scaler: bool,
) -> Updater:
    """The optimiser of a fit: AdamW, whose rate decays towards the input, with a rate of its own for the head.

    Args:
        network: with `group_matcher` and `no_weight_decay`; what is frozen is left out.
        model: the same, wrapped if there are several processes.
        device: where it runs.
        peak_lr: highest rate of the encoder, at its end.
        weight_decay: of AdamW; none for vectors and embeddings.
        layer_decay: factor of the rate from one layer to the one before it.
        head_lr_scale: rate of the head, times `peak_lr`.
        clip_grad: largest gradient norm.
        amp_dtype: of autocast.
        needs_scaler: whether gradients are scaled.
    """
    groups = param_groups_layer_decay(
        network,
        weight_decay=weight_decay,
        no_weight_decay_list=network.no_weight_decay(),
        layer_decay=layer_decay,
    )
    return Updater(
        model,
        make_adamw(list(_with_head_rate(groups, network.head, head_lr_scale)), lr=peak_lr),
        amp_dtype=amp_dtype,
        scaler=torch.amp.GradScaler(device.type, enabled=needs_scaler),
        device_type=device.type,
        clip_grad=clip_grad,
    )


def _with_head_rate(groups: Sequence[dict[str, Any]], head: torch.nn.Module, times: float) -> Iterator[dict[str, Any]]:
    """The groups, with the head's weights in groups of their own, whose rate is so many times as high."""
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
    """The step of a fit, to measure the memory that it takes.

    Args:
        network: as it will be trained.
        objective: what is learned.
        weight_decay: of AdamW.
        clip_grad: largest gradient norm.
        amp_dtype: of autocast.
    """
    config = network.config
    edge, is_dense = config["img_size"], config["kind"] == "dense"
    shape = [edge * config["scale"]] * 2 if is_dense else []
    dtype = torch.float32 if isinstance(objective, DenseValues) else torch.int64

    def make_batch(size: int, device: torch.device) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        images = torch.zeros(size, config["in_chans"], edge, edge, device=device)
        return images, torch.ones_like(images, dtype=torch.bool), torch.zeros(size, *shape, dtype=dtype, device=device)

    return TrainingStep(
        make_model=partial(copy.deepcopy, network),
        make_batch=make_batch,
        loss=lambda model, batch: (objective.loss(model, *batch), None),
        make_optimizer=lambda model: make_adamw(param_groups_weight_decay(model, weight_decay), lr=1e-3),
        amp_dtype=amp_dtype,
        clip_grad=clip_grad,
    )


def trained_weights(network: torch.nn.Module) -> int:
    """Number of weights that are trained."""
    return sum(p.numel() for p in network.parameters() if p.requires_grad)


def note_best(fit: Fit, score: float) -> None:
    """Keeps the weights of the epoch that has just ended if its validation score is the best so far."""
    place = fit.place
    if score > place.best_score:
        place.best_score, place.best_epoch = score, place.epoch - 1
        place.best_model = {key: tensor.detach().cpu().clone() for key, tensor in fit.network.state_dict().items()}


def fit_state(fit: Fit, device: torch.device) -> dict[str, Any]:
    """What a checkpoint must hold for the fit to go on exactly."""
    place = fit.place
    return {
        "model": fit.network.state_dict(),
        "optimizer": fit.updater.optimizer.state_dict(),
        "scaler": fit.updater.scaler.state_dict(),
        "epoch": place.epoch,
        "update": place.update,
        "step": place.step,
        "rng": resume_state.collect_rng_state(device),
        "model_config": fit.network.config,
        "seen": place.seen,
        "best": {"epoch": place.best_epoch, "score": place.best_score, "model": place.best_model},
        **fit.clock.state(),
    }


def resume(fit: Fit, state: Mapping[str, Any]) -> None:
    """Puts a fit where a checkpoint left it."""
    place, best = fit.place, state["best"]
    fit.network.load_state_dict(state["model"])
    fit.updater.optimizer.load_state_dict(state["optimizer"])
    fit.updater.scaler.load_state_dict(state["scaler"])
    place.epoch, place.update, place.step, place.seen = (state[key] for key in ("epoch", "update", "step", "seen"))
    place.best_epoch, place.best_score, place.best_model = best["epoch"], best["score"], best["model"]
    fit.clock.resume(state)
