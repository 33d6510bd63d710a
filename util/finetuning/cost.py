"""Costs of a fit: time, FLOPs, windows and memory."""

from __future__ import annotations

import copy
from typing import Any

import torch

from util.finetuning.fit import Fit, input_edge, trained_weights
from util.hardware.device import peak_memory_bytes
from util.training.flops import count_flops, counted_once
from util.training.training_step import native_zeros


def window_flops(network: Any) -> int:
    """FLOPs of one training window, forward and backward, counted on the meta device, where nothing is computed.

    Counts matrix products, convolutions and attention, two for a multiply-add; frozen weights have no backward part.

    Args:
        network: takes (1, C, H, W) values, validity and, if it has a stem, native pixels; is not changed.
    """
    return counted_once(lambda: _count(network), network)


def _count(network: Any) -> int:
    twin = copy.deepcopy(network).to("meta").train()
    images = torch.empty(1, twin.config["in_chans"], *[input_edge(twin)] * 2, device="meta")
    inputs = [images, torch.empty_like(images, dtype=torch.bool)]
    if native := native_zeros(twin, 1, torch.device("meta")):
        inputs.append(native)
    return count_flops(lambda: twin(*inputs).sum())[1]


def fit_costs(fit: Fit, *, device: torch.device) -> dict[str, Any]:
    """Costs of a finished fit: weights, updates, epochs, windows, seconds and FLOPs without scoring, and peak memory.

    All epochs count, also those after the weights that early stopping keeps (`kept_epochs`). Validation has seconds of
    its own. The peak is that of the process up to now.
    """
    windows = fit.progress.epoch * fit.schedule.tiles
    return {
        "trained_weights": trained_weights(fit.network),
        "updates": fit.progress.step,
        "epochs": fit.progress.epoch,
        "kept_epochs": fit.progress.kept_epochs,
        "train_windows": windows,
        "train_seconds": fit.timer.trained_s,
        "train_cpu_seconds": fit.timer.trained_cpu_s,
        "validation_seconds": fit.progress.validation_s,
        "train_flops": windows * window_flops(fit.network),
        "peak_memory_mb": peak_memory_bytes(device) / 2**20,
    }
