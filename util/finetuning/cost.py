"""What a fit costs: time, FLOPs, windows, memory."""

from __future__ import annotations

import copy
from typing import Any

import torch

from util.finetuning.fit import Fit
from util.hardware.device import peak_memory_bytes
from util.training.flops import count_flops
from util.training.timer import TrainingTimer


def window_flops(network: Any, *, input_size: int) -> int:
    """FLOPs of one training window, forward and backward, counted on the meta device, where nothing is computed.

    As in `util/training/flops.py`; frozen weights have no backward pass.

    Args:
        network: takes (1, C, H, W) values and validity; is not touched.
        input_size: edge of a window, base-scale pixels.
    """
    twin = copy.deepcopy(network).to("meta").train()
    images = torch.empty(1, twin.config["in_chans"], input_size, input_size, device="meta")
    return count_flops(lambda: twin(images, torch.empty_like(images, dtype=torch.bool)).sum())[1]


def fit_costs(fit: Fit, *, device: torch.device, input_size: int) -> dict[str, Any]:
    """Facts of a finished fit for its record: updates, epochs, windows, seconds, FLOPs of training, peak memory.

    Scoring is not part of seconds and FLOPs. The peak is that of the process up to now.
    """
    windows = fit.place.epoch * fit.schedule.tiles
    return {
        "updates": fit.place.step,
        "epochs": fit.place.epoch,
        "train_windows": windows,
        "train_seconds": fit.clock.trained_s,
        "train_cpu_seconds": fit.clock.trained_cpu_s,
        "train_flops": windows * window_flops(fit.network, input_size=input_size),
        "peak_memory_mb": peak_memory_bytes(device) / 2**20,
    }


def baseline_costs(clock: TrainingTimer, *, device: torch.device) -> dict[str, float]:
    """Facts of a fitted baseline for its record, as `fit_costs` has them; `clock` was started before the fit."""
    clock.read(1)
    memory = peak_memory_bytes(device) / 2**20
    return {"train_seconds": clock.trained_s, "train_cpu_seconds": clock.trained_cpu_s, "peak_memory_mb": memory}
