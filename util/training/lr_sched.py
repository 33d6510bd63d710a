"""Learning rate as a pure function of the step, so that a resumed run has the same."""

from __future__ import annotations

import math
from dataclasses import dataclass


def learning_rate(step: int, *, peak: float, floor: float, warmup_steps: int, total_steps: int) -> float:
    """Linear warm-up, then half a cosine down to the floor (Loshchilov and Hutter 2017, as in MAE).

    Args:
        step: optimiser steps done before this one, from 0.
        peak: rate at the end of the warm-up.
        floor: rate at the end of training.
        warmup_steps: length of the warm-up.
        total_steps: length of the whole run.

    Returns:
        The rate for this step.
    """
    if step < warmup_steps:
        return peak * (step + 1) / warmup_steps
    span = max(1, total_steps - warmup_steps)
    progress = min(1.0, (step - warmup_steps) / span)
    return floor + (peak - floor) * 0.5 * (1.0 + math.cos(math.pi * progress))


def constant_then_decay(
    step: int, *, peak: float, floor: float, warmup_steps: int, decay_begin: int | None, total_steps: int
) -> float:
    """Linear warm-up, a constant rate, and at the end half a cosine down to the floor.

    Unlike one cosine over the whole run it needs no length beforehand: the decay begins when it is decided that the
    run shall end (Hägele et al. 2024, "Scaling Laws and Compute-Optimal Training Beyond Fixed Training Durations").

    Args:
        step: optimiser steps done before this one, from 0.
        peak: the constant rate.
        floor: rate at the end.
        warmup_steps: length of the warm-up.
        decay_begin: first step of the decay; None: not decided yet.
        total_steps: length of the whole run; not used before the decay is decided.

    Returns:
        The rate for this step.
    """
    rate = peak * min(1.0, (step + 1) / max(1, warmup_steps))
    if decay_begin is None or step < decay_begin:
        return rate
    decay = total_steps - decay_begin
    return min(rate, learning_rate(step - decay_begin, peak=peak, floor=floor, warmup_steps=0, total_steps=decay))


@dataclass(frozen=True)
class Schedule:
    """Length of a run and its learning rate.

    Attributes:
        tiles: tiles in an epoch.
        updates: optimiser steps in an epoch.
        epochs: epochs in all.
        warmup_steps: steps of warm-up.
        peak_lr: highest rate.
        min_lr: final rate.
        effective_batch: tiles in an update.
    """

    tiles: int
    updates: int
    epochs: int
    warmup_steps: int
    peak_lr: float
    min_lr: float
    effective_batch: int

    @property
    def steps(self) -> int:
        """Updates of the whole run."""
        return self.epochs * self.updates

    def lr(self, step: int) -> float:
        """Rate of a step."""
        return learning_rate(
            step,
            peak=self.peak_lr,
            floor=self.min_lr,
            warmup_steps=self.warmup_steps,
            total_steps=self.steps,
        )
