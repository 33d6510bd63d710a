"""Sums and values in float64, accumulated over batches and gathered over processes by torchmetrics.

`ErrorSums` is used in place of the R2 of torchmetrics, which treats sums below 1e-4 as zero and so fails for values in
small units such as tesla.
"""

from __future__ import annotations

import warnings
from typing import Any

import torch
from torchmetrics import CatMetric, Metric, SumMetric

from util.processes.distributed import peer_errors_named


def placed(metric: Metric, device: torch.device | str) -> Any:
    """The metric on a device, or on the CPU if the device has no float64."""
    return metric.to("cpu" if torch.device(device).type == "mps" else device)


def float64_sum(device: torch.device | str) -> Any:
    """A running sum on a device, exact for whole numbers below 2^53."""
    return placed(SumMetric(nan_strategy="disable"), device).set_dtype(torch.float64)  # `to` would reset the dtype


def float64_values(device: torch.device | str) -> Any:
    """The values of all batches, on a device."""
    return placed(CatMetric(nan_strategy="disable"), device).set_dtype(torch.float64)


def gathered(metric: Metric) -> Any:
    """The result of a metric over all processes; all processes must call this, even without data."""
    with peer_errors_named(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The ``compute`` method of metric")
        return metric.compute()


class ErrorSums(Metric):
    """Sums of errors, and count, mean and squared deviations of the truth, merged as in Chan et al. (1979)."""

    moments: torch.Tensor
    sums: torch.Tensor

    def __init__(self) -> None:
        super().__init__()
        self.add_state("moments", torch.zeros(3, dtype=torch.float64), dist_reduce_fx=None)
        self.add_state("sums", torch.zeros(3, dtype=torch.float64), dist_reduce_fx="sum")

    def update(self, predictions: torch.Tensor, target: torch.Tensor) -> None:
        """Adds (n,) float64 predictions and truth."""
        if not len(target):
            return
        mean = target.mean()
        squares = (target - mean).square().sum()
        batch = torch.stack([torch.full_like(mean, len(target)), mean, squares])
        self.moments = _merge(torch.stack([self.moments, batch]))
        error = predictions - target
        self.sums = self.sums + torch.stack([error.abs().sum(), error.sum(), error.square().sum()])

    def compute(self) -> torch.Tensor:
        """(6,): count, mean and squared deviations of the truth; sums of the absolute, signed and squared errors."""
        return torch.cat([_merge(self.moments.reshape(-1, 3)), self.sums])


def _merge(moments: torch.Tensor) -> torch.Tensor:
    """Combine (n, 3) counts, means and sums of squared deviations of parts into (3,) those of the whole."""
    count = moments[:, 0].sum()
    mean = (moments[:, 0] * moments[:, 1]).sum() / count.clamp(min=1)
    squares = moments[:, 2].sum() + (moments[:, 0] * (moments[:, 1] - mean).square()).sum()
    return torch.stack([count, mean, squares])
