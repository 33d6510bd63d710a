"""What scores keep between batches: sums and rows in float64, gathered over processes by torchmetrics."""

from __future__ import annotations

import warnings
from typing import Any

import torch
from torchmetrics import Metric

from util.processes.distributed import peer_errors_named


def placed(metric: Metric, device: torch.device | str) -> Any:
    """The metric on a device; on the CPU for one that has no float64."""
    return metric.to("cpu" if torch.device(device).type == "mps" else device)


def gathered(metric: Metric) -> Any:
    """What a metric comes to over all processes, each of which must ask, also if it saw nothing."""
    if isinstance(metric, StoredValues) and not metric.update_called:  # torchmetrics would stand in for it with float32
        metric.update(torch.zeros(0, device=metric.device))
    with peer_errors_named(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The ``compute`` method of metric")
        return metric.compute()


class CountSum(Metric):
    """Sums of a float64 tensor of fixed shape, exact for whole numbers below 2^53."""

    total: torch.Tensor

    def __init__(self, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.add_state("total", torch.zeros(shape, dtype=torch.float64), dist_reduce_fx="sum")

    def update(self, values: torch.Tensor) -> None:
        """Adds values of that shape."""
        self.total = self.total + values

    def compute(self) -> torch.Tensor:
        """The sums."""
        return self.total


class StoredValues(Metric):
    """Float64 rows of a fixed width, all of them."""

    rows: list[torch.Tensor]

    def __init__(self, width: int) -> None:
        super().__init__()
        self._width = width
        self.add_state("rows", [], dist_reduce_fx="cat")

    def update(self, rows: torch.Tensor) -> None:
        """Adds (n, width) rows."""
        self.rows.append(rows.double().reshape(-1))

    def compute(self) -> torch.Tensor:
        """(n, width) rows, those of lower ranks first."""
        # A list where there is one process, one tensor where several were gathered.
        parts = self.rows if isinstance(self.rows, list) else [self.rows]
        return torch.cat([torch.zeros(0, dtype=torch.float64, device=self.device), *parts]).reshape(-1, self._width)


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
        spread = (target - mean).square().sum()
        own = torch.stack([torch.full_like(mean, len(target)), mean, spread])
        self.moments = _merge(torch.stack([self.moments, own]))
        error = predictions - target
        self.sums = self.sums + torch.stack([error.abs().sum(), error.sum(), error.square().sum()])

    def compute(self) -> torch.Tensor:
        """(6,): count, mean and summed squared deviations of the truth; summed size, sum and squares of the errors."""
        return torch.cat([_merge(self.moments.reshape(-1, 3)), self.sums])


def _merge(moments: torch.Tensor) -> torch.Tensor:
    """Count, mean and summed squared deviations (n, 3) of parts, of the whole (3,)."""
    count = moments[:, 0].sum()
    mean = (moments[:, 0] * moments[:, 1]).sum() / count.clamp(min=1)
    spread = moments[:, 2].sum() + (moments[:, 0] * (moments[:, 1] - mean).square()).sum()
    return torch.stack([count, mean, spread])
