"""One optimiser step: mixed precision, accumulation, clipping, and the random seed of a step."""

from __future__ import annotations

import logging
import random
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from torch import nn

from util.processes import distributed as dist
from util.processes.fsdp import whole
from util.processes.program import RunFailed
from util.training.weight_average import WeightAverage

logger = logging.getLogger(__name__)

T = TypeVar("T")

MOST_SKIPPED = 25
"""Updates in a row that a gradient scaler may skip, each at half the scale of the one before: from 65536 down to 0.002,
where no gradient overflows fp16 that is not infinite itself."""


def make_adamw(groups: list[dict], *, lr: float, betas: tuple[float, float] = (0.9, 0.95)) -> torch.optim.AdamW:
    """AdamW in its fused form, which runs as one kernel and skips an update whose gradients are not finite.

    Args:
        groups: parameter groups with their weight decay.
        lr: initial rate.
        betas: as published for MAE.
    """
    return torch.optim.AdamW(groups, lr=lr, betas=betas, fused=True)


def seed_step(seed: int, *, step: int, rank: int) -> None:
    """Seeds the global generators for one update, so that random draws do not depend on the updates before.

    Stochastic depth (torch), timm's mixup (numpy) and random erasing (Python) take no generator of their own. Seeded
    at each update, a resumed run draws the same numbers as an uninterrupted one.

    Args:
        seed: seed of the run.
        step: number of the update.
        rank: of this process: each draws its own numbers.
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
        ema_decay: decay of the moving average of the weights, 0 for none.

    Attributes:
        average: the moving average, None without.
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
        ema_decay: float = 0.0,
    ) -> None:
        self.model = model
        self.optimizer = optimizer
        self.scaler = scaler
        self._amp_dtype = amp_dtype
        self._device_type = device_type
        self._clip_grad = float("inf") if clip_grad is None else clip_grad
        self._parameters = [p for p in model.parameters() if p.requires_grad]
        statistics = [buffer for buffer in model.buffers() if buffer.is_floating_point()]  # of batch normalisation
        self.average = WeightAverage([*self._parameters, *statistics], ema_decay) if ema_decay else None
        self._skipped: torch.Tensor | None = None  # on the device: since `require_updates`, and in a row until now
        self._keeps_gradients = False  # at their addresses, as zeros

    def autocast(self) -> torch.autocast:
        """Mixed-precision context for the forward pass."""
        return torch.autocast(self._device_type, dtype=self._amp_dtype, enabled=self._amp_dtype is not None)

    def averaged(self) -> AbstractContextManager[None]:
        """A context in which the network has its averaged weights, if they are averaged."""
        return nullcontext() if self.average is None else self.average.swapped()

    def backward(self, loss: torch.Tensor) -> None:
        """Adds the gradients of a loss."""
        self.scaler.scale(loss).backward()

    def accumulate(self, backward: Callable[[Any, Any], T], inputs: Any, weight: float) -> T:
        """Adds the gradients of a micro-batch.

        Args:
            backward: computes the loss of inputs, multiplies it by a weight and passes it to `self.backward`; returns
                tensors without gradients.
            inputs: tensors, the same nest of containers for all micro-batches; the first axis counts samples.
            weight: factor for the loss.
        """
        return backward(inputs, weight)

    def restore_scaler(self, state: Mapping[str, Any]) -> None:
        """Restores the gradient scaler; it begins anew where the run had none, on a device that computes otherwise."""
        if state:
            self.scaler.load_state_dict(dict(state))

    def set_rate(self, lr: float | torch.Tensor) -> None:
        """Sets the learning rate of all parameter groups."""
        for group in self.optimizer.param_groups:
            group["lr"] = lr * group.get("lr_scale", 1.0)

    def step(self, lr: float | torch.Tensor) -> torch.Tensor:
        """Clips, updates the weights and their average unless a gradient is not finite, and clears the gradients.

        Args:
            lr: rate of this step.

        Returns:
            Gradient norm before clipping, a tensor on the device, so that the host does not wait.
        """
        self.set_rate(lr)
        if self.scaler.is_enabled():
            self.scaler.unscale_(self.optimizer)
        norm = whole(torch.nn.utils.clip_grad_norm_(self._parameters, self._clip_grad))
        if self.scaler.is_enabled():
            self.scaler.step(self.optimizer)
            self.scaler.update()
            self._count_skipped(norm)
        else:
            # The attribute by which GradScaler makes a fused optimiser skip an update, without a sync.
            self.optimizer.found_inf = (~torch.isfinite(norm)).float()  # type: ignore[attr-defined]
            self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=not self._keeps_gradients)
        if self.average is not None:
            self.average.update(torch.isfinite(norm.detach()))
        return norm.detach()

    def _count_skipped(self, norm: torch.Tensor) -> None:
        """Counts an update that the scaler has skipped, without waiting for the device."""
        skipped = (~torch.isfinite(norm.detach())).float()
        if self._skipped is None:
            self._skipped = torch.zeros(2, device=norm.device)
        self._skipped += skipped
        self._skipped[1] *= skipped

    def require_updates(self, output_dir: Path, *, is_end: bool = False) -> dict[str, float]:
        """Returns what the gradient scaler did since the last call; the host waits for the device.

        Args:
            output_dir: folder of the checkpoints, for the error message.
            is_end: no update follows, so that one at least must have changed the weights.

        Returns:
            `skipped` updates and the `loss_scale` now; nothing without a scaler.

        Raises:
            RunFailed: the last `MOST_SKIPPED` updates or more were all skipped; at the end, all since training began.
        """
        if not self.scaler.is_enabled() or self._skipped is None:
            return {}
        count, in_a_row = (int(number) for number in self._skipped.tolist())
        self._skipped[0] = 0
        scale = self.scaler.get_scale()
        is_untrained = is_end and in_a_row > 0 and not self._has_updated()
        if in_a_row >= MOST_SKIPPED or is_untrained:
            which = f"all {in_a_row}" if is_untrained else f"the last {in_a_row}"
            effect = "are those that training began with" if is_untrained else "no longer change"
            error = RunFailed(
                f"{which} updates were skipped: gradients overflow fp16 even at a loss scale of {scale:.3g}, and the "
                f"weights {effect}; earlier checkpoints in {output_dir} are intact. Use --amp off or bf16, lower --lr, "
                "or tame extreme values of the layers (column `transform`)"
            )
            raise dist.mark_shared(error)
        if count:
            logger.info("skipped %d updates whose gradients overflowed fp16; loss scale now %g", count, scale)
        return {"skipped": count, "loss_scale": scale}

    def _has_updated(self) -> bool:
        """Whether any update was not skipped, in this process or before it resumed: the optimiser counts those."""
        return any(float(state["step"]) > 0 for state in self.optimizer.state.values())
