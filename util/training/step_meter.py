"""Sums of losses and gradient norms on the device, read every few updates so that ordinary steps do not wait."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from util.processes import distributed as dist
from util.processes.program import RunFailed
from util.training.state import Progress


class LossTerms(NamedTuple):
    """What a micro-batch adds to a `StepMeter`: tensors on the device, without gradients.

    Attributes:
        losses: total, base-scale and finer-scale loss and, if there is one, that of textures, scalars.
        error_sums: (S, C) sums of errors.
        error_counts: (S, C) their numbers.
    """

    losses: tuple[torch.Tensor, ...]
    error_sums: torch.Tensor
    error_counts: torch.Tensor


@dataclass(frozen=True)
class WindowOfSteps:
    """Means over the updates since a `StepMeter` was last read.

    Attributes:
        updates: number of updates.
        loss: total loss, mean over updates.
        base_loss: base-scale term.
        scale_loss: finer-scale term.
        grad_norm: mean gradient norm of the updates that were not skipped; NaN if all were.
        layer_losses: (S, C) mean error per scale and channel, NaN where nothing was scored.
        first_bad: index, within the window, of the first update with a non-finite loss; None if there is none.
        bad_here: True if that update's loss was non-finite on this rank.
        texture_loss: loss of textures, None if there is none.
    """

    updates: int
    loss: float
    base_loss: float
    scale_loss: float
    grad_norm: float
    layer_losses: torch.Tensor
    first_bad: int | None
    bad_here: bool
    texture_loss: float | None = None

    @property
    def shown(self) -> dict[str, str]:
        """Losses as a progress bar shows them."""
        losses = {"loss": self.loss} | ({} if self.texture_loss is None else {"texture": self.texture_loss})
        return {name: f"{value:.4f}" for name, value in losses.items()}


class StepMeter:
    """Sums losses and gradient norms on the device until they are read.

    Args:
        updates: most updates between two reads.
        scales: number of scales S.
        channels: number of layers C.
        device: where the losses live.
        check_gradients: treat a non-finite gradient norm as a failure, too (not under a gradient scaler, where such
            norms are normal while it searches for its scale).
    """

    def __init__(
        self, *, updates: int, scales: int, channels: int, device: torch.device, check_gradients: bool
    ) -> None:
        self._rows = torch.zeros(updates, 5, device=device)  # four losses and the gradient norm
        self._losses = 3
        self._sums = torch.zeros(2, scales, channels, device=device)
        self._check_gradients = check_gradients
        self.count = 0

    def add(
        self,
        *,
        losses: tuple[torch.Tensor, ...],
        weight: float,
        error_sums: torch.Tensor,
        error_counts: torch.Tensor,
    ) -> None:
        """Adds a micro-batch: its `LossTerms`, the losses with their weight."""
        self._losses = len(losses)
        self._rows[self.count, : self._losses] += torch.stack([x.detach().float() for x in losses]) * weight
        self._sums += torch.stack([error_sums, error_counts]).float() * (weight > 0)

    def end_update(self, grad_norm: torch.Tensor) -> None:
        """Closes an update."""
        self._rows[self.count, 4] = grad_norm
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
        """Returns the means and clears the sums: the only place where the host waits for the device.

        Args:
            reduce_mean: averages a tensor over ranks.
            reduce_sum: adds a tensor over ranks.

        Returns:
            The means, the same on every rank but for `bad_here`.
        """
        here = self._rows[: self.count].clone()
        rows = reduce_mean(here.clone()).cpu()
        sums = reduce_sum(self._sums.clone()).cpu()
        columns = rows if self._check_gradients else rows[:, :4]
        bad = (~torch.isfinite(columns)).any(dim=1)
        first_bad = int(bad.nonzero()[0]) if bad.any() else None
        bad_here = first_bad is not None and not bool(torch.isfinite(here[first_bad, :4]).all())
        updates, means, norms = self.count, rows.mean(dim=0).tolist(), rows[:, 4]
        finite = norms[torch.isfinite(norms)]  # the gradient scaler skips updates whose norm is not
        self._rows.zero_()
        self._sums.zero_()
        self.count = 0
        return WindowOfSteps(
            updates=updates,
            loss=means[0],
            base_loss=means[1],
            scale_loss=means[2],
            grad_norm=float(finite.mean()) if len(finite) else math.nan,
            layer_losses=sums[0] / sums[1],
            first_bad=first_bad,
            bad_here=bad_here,
            texture_loss=means[3] if self._losses > 3 else None,
        )


def require_finite(
    window: WindowOfSteps,
    tiles_of_steps: Sequence[Sequence[np.ndarray]],
    progress: Progress,
    output_dir: Path,
    *,
    name_tiles: Callable[[list], str],
) -> None:
    """Stops all processes together if a loss was not finite; that step did not change the weights.

    Args:
        window: what a `StepMeter` has read.
        tiles_of_steps: tiles that this process trained on in each step of the window.
        progress: how far the run is.
        output_dir: folder of the checkpoints.
        name_tiles: returns tiles as text.

    Raises:
        RunFailed: naming the step and its tiles.
    """
    if window.first_bad is None:
        return
    here = np.concatenate(list(tiles_of_steps[window.first_bad])).tolist() if window.bad_here else []
    tiles = [tile for part in dist.gather_objects(here) for tile in part]
    step = progress.step - len(tiles_of_steps) + window.first_bad
    error = RunFailed(
        f"loss not finite at step {step} (epoch {progress.epoch + 1}); that step did not touch the weights, and the "
        f"last checkpoint in {output_dir} is good. Tiles of that step, "
        f"{name_tiles(tiles) if tiles else 'unknown (the gradient overflowed)'}. Mend the layers there or lower --lr, "
        "and start afresh: --resume auto repeats the same steps"
    )
    raise dist.mark_shared(error)
