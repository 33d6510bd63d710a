"""Exponential moving average of the weights, which scores less noisily than the weights of the last update.

timm's ModelEmaV3 and torch's AveragedModel do not fit: they average after skipped updates too, or ask the device how
many there were, and neither takes that count into a recorded CUDA graph.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch

from util.processes.fsdp import own_part


class WeightAverage:
    """Average of trained weights over updates: average <- d average + (1 - d) weights.

    After t updates the next one has d = min(decay, (1 + t) / (10 + t)): initial weights are soon forgotten.

    Args:
        parameters: the trained weights, and statistics that belong to them; of sharded ones, each process averages its
            part.
        decay: largest d, above 0 and below 1.

    References:
        Polyak and Juditsky, Acceleration of stochastic approximation by averaging, SIAM J. Control Optim. 30 (1992),
        where all updates weigh the same. Decay and its rise are those of TensorFlow's `ExponentialMovingAverage`
        (argument `num_updates`).
    """

    def __init__(self, parameters: Sequence[torch.Tensor], decay: float) -> None:
        self._parameters, self._decay = parameters, decay
        self._averages = [weight.clone() for weight in self._weights()]
        self._updates = torch.zeros((), device=self._averages[0].device)

    @property
    def updates(self) -> int:
        """Updates that were averaged; the host waits for the device."""
        return int(self._updates)

    @torch.no_grad()
    def update(self, is_updated: torch.Tensor) -> None:
        """Includes the weights after an update, without waiting for the device.

        Args:
            is_updated: scalar bool, False if the update was skipped: then nothing changes.
        """
        decay = ((1 + self._updates) / (10 + self._updates)).clamp_max(self._decay)
        differences = torch._foreach_sub(self._weights(), self._averages)  # all weights at once: few kernels
        torch._foreach_mul_(differences, (1 - decay) * is_updated)
        torch._foreach_add_(self._averages, differences)
        self._updates += is_updated

    @contextmanager
    def swapped(self) -> Iterator[None]:
        """A context in which the network has the averages for weights; it may compute, but not train."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    def restart(self, updates: int) -> None:
        """Takes the network's present weights for the average over a number of updates."""
        torch._foreach_copy_(self._averages, self._weights())
        self._updates.fill_(updates)

    @torch.no_grad()
    def keep(self) -> bool:
        """Gives the network the averages for good; returns whether it had other weights."""
        weights = self._weights()
        is_other = any(not torch.equal(*pair) for pair in zip(weights, self._averages, strict=True))
        torch._foreach_copy_(weights, self._averages)
        return is_other

    def _weights(self) -> list[torch.Tensor]:
        """The weights as tensors of this process, found anew: sharding may replace them."""
        return [own_part(parameter) for parameter in self._parameters]

    def _swap(self) -> None:
        for weight, average in zip(self._weights(), self._averages, strict=True):
            kept = weight.clone()
            weight.copy_(average)
            average.copy_(kept)
