"""One optimiser step, and what is remembered of it without making the device wait."""

from __future__ import annotations

import os
import random
import signal
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from util.fsdp import whole


def make_adamw(groups: list[dict], *, lr: float, betas: tuple[float, float] = (0.9, 0.95)) -> torch.optim.AdamW:
    """AdamW in its fused form, which runs as one kernel and skips an update whose gradients are not finite.

    Args:
        groups: parameter groups with their weight decay.
        lr: initial rate.
        betas: as published for MAE.
    """
    return torch.optim.AdamW(groups, lr=lr, betas=betas, fused=True)


def seed_step(seed: int, *, step: int, rank: int) -> None:
    """Sets the global generators for one update, so that what draws from them does not depend on the updates before.

    Stochastic depth (torch), timm's mixing (numpy) and erasing (Python) take no generator of their own; seeded anew at
    each update, a run that is resumed draws what it would have drawn.

    Args:
        seed: seed of the run.
        step: number of the update.
        rank: of this process: each drops and mixes for itself.
    """
    state = np.random.SeedSequence((seed, step, rank)).generate_state(3)
    torch.manual_seed(int(state[0]))
    np.random.seed(int(state[1]))
    random.seed(int(state[2]))


class Updater:
    """Forward context, backward and optimiser step, with accumulation, mixed precision and clipping.

    Args:
        model: the network, or its DistributedDataParallel wrapper.
        optimizer: a fused optimiser.
        amp_dtype: dtype of autocast, None for full precision.
        scaler: gradient scaler, disabled unless fp16 is used.
        device_type: `cpu` or `cuda`.
        clip_grad: largest gradient norm, None for no limit.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        *,
        amp_dtype: torch.dtype | None,
        scaler: torch.amp.GradScaler,
        device_type: str,
        clip_grad: float | None,
    ) -> None:
        self.model = model
        self.optimizer = optimizer
        self.scaler = scaler
        self._amp_dtype = amp_dtype
        self._device_type = device_type
        self._clip_grad = float("inf") if clip_grad is None else clip_grad
        self._parameters = [p for p in model.parameters() if p.requires_grad]

    def autocast(self) -> torch.autocast:
        """Mixed-precision context for the forward pass."""
        return torch.autocast(self._device_type, dtype=self._amp_dtype, enabled=self._amp_dtype is not None)

    def backward(self, loss: torch.Tensor) -> None:
        """Adds the gradients of a loss."""
        self.scaler.scale(loss).backward()

    def step(self, lr: float) -> torch.Tensor:
        """Clips, updates the weights unless a gradient is not finite, and clears the gradients.

        Args:
            lr: rate of this step.

        Returns:
            Gradient norm before clipping, a tensor on the device: nothing waits for it.
        """
        for group in self.optimizer.param_groups:
            group["lr"] = lr * group.get("lr_scale", 1.0)
        if self.scaler.is_enabled():
            self.scaler.unscale_(self.optimizer)
        norm = whole(torch.nn.utils.clip_grad_norm_(self._parameters, self._clip_grad))
        if self.scaler.is_enabled():
            self.scaler.step(self.optimizer)
            self.scaler.update()
        else:
            # The hook by which GradScaler tells a fused optimiser to leave the weights alone, without a sync.
            self.optimizer.found_inf = (~torch.isfinite(norm)).float()  # type: ignore[attr-defined]
            self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return norm.detach()


@dataclass(frozen=True)
class WindowOfSteps:
    """What a `StepMeter` saw since it was last read.

    Attributes:
        updates: number of updates.
        loss: total loss, mean over updates.
        base_loss: base-scale term.
        scale_loss: finer-scale term.
        grad_norm: mean gradient norm.
        layer_losses: (S, C) mean error per scale and channel, NaN where nothing was scored.
        first_bad: index, within the window, of the first update with a non-finite loss; None if there is none.
        bad_here: True if that update's loss was non-finite on this rank.
    """

    updates: int
    loss: float
    base_loss: float
    scale_loss: float
    grad_norm: float
    layer_losses: torch.Tensor
    first_bad: int | None
    bad_here: bool


class StepMeter:
    """Collects losses on the device and hands them over once a window, so that ordinary steps do not wait.

    Args:
        updates: most updates between two reads.
        scales: number of scales S.
        channels: number of layers C.
        device: where the losses live.
        check_gradients: count a non-finite gradient norm as a failure too (not under a gradient scaler, which
            meets such norms while it looks for its scale).
    """

    def __init__(
        self, *, updates: int, scales: int, channels: int, device: torch.device, check_gradients: bool
    ) -> None:
        self._rows = torch.zeros(updates, 4, device=device)
        self._sums = torch.zeros(2, scales, channels, device=device)
        self._check_gradients = check_gradients
        self.count = 0

    def add(
        self,
        *,
        losses: tuple[torch.Tensor, torch.Tensor, torch.Tensor],
        weight: float,
        error_sums: torch.Tensor,
        error_counts: torch.Tensor,
    ) -> None:
        """Adds a micro-batch: (total, base, finer) losses with their weight, and per-layer error sums and counts."""
        self._rows[self.count, :3] += torch.stack([x.detach().float() for x in losses]) * weight
        self._sums += torch.stack([error_sums, error_counts]).float() * (weight > 0)

    def end_update(self, grad_norm: torch.Tensor) -> None:
        """Closes an update."""
        self._rows[self.count, 3] = grad_norm
        self.count += 1

    @property
    def is_full(self) -> bool:
        """True when the window must be read before the next update."""
        return self.count == len(self._rows)

    def read(
        self,
        reduce_mean: Callable[[torch.Tensor], torch.Tensor],
        reduce_sum: Callable[[torch.Tensor], torch.Tensor],
    ) -> WindowOfSteps:
        """Reads and clears the window. The only place where the host waits for the device.

        Args:
            reduce_mean: averages a tensor over ranks.
            reduce_sum: adds a tensor over ranks.

        Returns:
            The window, the same on every rank but for `bad_here`.
        """
        here = self._rows[: self.count].clone()
        rows = reduce_mean(here.clone()).cpu()
        sums = reduce_sum(self._sums.clone()).cpu()
        columns = rows if self._check_gradients else rows[:, :3]
        bad = (~torch.isfinite(columns)).any(dim=1)
        first_bad = int(bad.nonzero()[0]) if bad.any() else None
        bad_here = first_bad is not None and not bool(torch.isfinite(here[first_bad, :3]).all())
        updates, means = self.count, rows.mean(dim=0).tolist()
        self._rows.zero_()
        self._sums.zero_()
        self.count = 0
        return WindowOfSteps(
            updates=updates,
            loss=means[0],
            base_loss=means[1],
            scale_loss=means[2],
            grad_norm=means[3],
            layer_losses=sums[0] / sums[1],
            first_bad=first_bad,
            bad_here=bad_here,
        )


class Stop:
    """Within its context, remembers that a signal asked the run to end; a second Ctrl-C ends it at once.

    Args:
        note: said on standard error when a signal comes, if the end may take a while.

    Attributes:
        signal: number of the signal, None until there is one.
    """

    def __init__(self, note: str = "") -> None:
        self.signal: int | None = None
        self._note = note
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Stop:
        """Starts listening."""
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1):
                self._before[number] = signal.signal(number, self._remember)
        return self

    def __exit__(self, *_: object) -> None:
        """Puts back what handled the signals before."""
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _remember(self, number: int, _: object) -> None:
        if number == signal.SIGINT == self.signal:
            raise KeyboardInterrupt
        if self._note and self.signal is None:
            os.write(2, f"\n{self._note}\n".encode())
        self.signal = number
