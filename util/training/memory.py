"""Memory of training: measured by trying small batches before the first update, or counted from tensor sizes alone.

A trial makes two forward and backward passes of a batch of zeros with the run's own network, precision and
checkpointing, beside room for the moments of AdamW. Peak memory grows in proportion to the batch, so a few small
trials tell that of a larger batch before it is tried.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
import torch
from torch import nn

from util.hardware.device import (
    is_out_of_memory,
    peak_memory_bytes,
    reset_peak_memory,
    used_memory_bytes,
    wait_for,
)
from util.hardware.malloc import return_freed_memory
from util.hardware.tensor_bytes import counted
from util.training.training_step import TrainingStep

MIB = 1 << 20
MOMENTS = 2
"""Moments that AdamW holds of each weight."""


class MemoryTrials:
    """Peak memory by batch size: measured for batches that were tried, in proportion to these for others.

    Args:
        try_batch: tries a batch of a size; returns its peak in bytes, None if memory ran out.
        without_batch: bytes needed whatever the batch.

    Attributes:
        peaks: bytes by size of the batches that were tried.
    """

    def __init__(self, try_batch: Callable[[int], int | None], *, without_batch: int) -> None:
        self._try_batch = try_batch
        self._without_batch = without_batch
        self._too_large = float("inf")
        self.peaks: dict[int, int] = {}

    def expected(self, size: int) -> float:
        """Peak of a batch in bytes: interpolated, or along the line through the two largest that were tried."""
        if size >= self._too_large:
            return float("inf")
        sizes, peaks = zip(*sorted({0: self._without_batch, **self.peaks}.items()), strict=True)
        if size <= sizes[-1] or len(sizes) == 1:
            return float(np.interp(size, sizes, peaks))
        slope = (peaks[-1] - peaks[-2]) / (sizes[-1] - sizes[-2])
        return peaks[-1] + max(0.0, slope) * (size - sizes[-1])

    def fits(self, size: int, limit: int) -> bool:
        """Whether a batch stays within a limit in bytes; it is tried unless it is expected to exceed it."""
        if size not in self.peaks and self.expected(size) <= limit:
            if not self.peaks:
                self._try_batch(size)  # the first pass also loads libraries: not measured
            peak = self._try_batch(size)
            if peak is None:
                self._too_large = min(self._too_large, size)
            else:
                self.peaks[size] = peak
        return self.expected(size) <= limit

    def try_small(self, largest: int, limit: int) -> None:
        """Tries batches of 1, 2, 4 and so on up to a size, as long as the next is expected to fit."""
        size = 1
        while size <= largest and self.fits(size, limit):
            size *= 2

    def largest_fitting(self, sizes: Sequence[int], limit: int) -> int:
        """The largest of some batch sizes, in growing order, that stays within a limit; 0 if none does."""
        self.try_small(sizes[-1], limit)
        return next((size for size in reversed(sizes) if self.fits(size, limit)), 0)


def memory_trials(
    step: TrainingStep,
    network: nn.Module,
    *,
    device: torch.device,
    accumulates: bool,
    shares_gradients: bool,
    batches_ahead: int,
    averages_weights: bool = False,
) -> MemoryTrials:
    """Trials of a network; nothing is tried yet.

    Args:
        step: what an update computes.
        network: on the device, not wrapped.
        device: where it trains.
        accumulates: an update has several passes: from the second on, gradients exist beside the activations.
        shares_gradients: gradients are averaged over processes, which takes their size once more.
        batches_ahead: batches that wait in the host's memory while one is computed.
        averages_weights: a moving average of the weights takes their size once more.
    """
    copies = MOMENTS + shares_gradients + averages_weights
    return MemoryTrials(
        partial(
            try_batch,
            step,
            network,
            device=device,
            accumulates=accumulates,
            weight_copies=copies,
            batches_ahead=0 if device.type == "cuda" else batches_ahead,
        ),
        without_batch=_free_unused(device) + (copies + 1) * sum(p.nbytes for p in _trained(network)),
    )


def try_batch(
    step: TrainingStep,
    network: nn.Module,
    batch_size: int,
    *,
    device: torch.device,
    accumulates: bool,
    weight_copies: int = MOMENTS,
    batches_ahead: int = 0,
) -> int | None:
    """Makes two forward and backward passes; weights and torch's random numbers stay as they were.

    Args:
        step: what an update computes.
        network: on the device, not wrapped.
        batch_size: samples in a pass.
        device: where it trains.
        accumulates: gradients of the first pass are still there in the second.
        weight_copies: copies of all trained weights that are held meanwhile, for the moments of AdamW.
        batches_ahead: further batches that are held meanwhile.

    Returns:
        Peak memory in bytes, of the process or of the whole GPU; None if the GPU's memory was not enough.
    """
    _free_unused(device)
    reset_peak_memory(device)
    try:
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            held = [torch.ones_like(p) for p in _trained(network) for _ in range(weight_copies)]
            batches = [step.make_batch(batch_size, device) for _ in range(1 + batches_ahead)]
            updater = step.updater(network, device.type)
            for _ in range(2):
                with updater.autocast():
                    loss, results = step.loss(network, batches[0])
                updater.backward(loss)
                if not accumulates:
                    network.zero_grad(set_to_none=True)
            wait_for(device)
            del held, batches, results
            return _peak_bytes(device)
    except RuntimeError as error:
        if is_out_of_memory(error):
            return None
        raise
    finally:  # the tensors of a pass that failed are gone with its frames
        network.zero_grad(set_to_none=True)
        _free_unused(device)
        reset_peak_memory(device)


def count_tensors(step: TrainingStep, *, batch_size: int) -> int:
    """Bytes of all tensors at the peak of an update, counted on tensors without memory.

    What the process holds besides, and what its allocator loses, is not counted.

    Raises:
        ValueError: the batch is empty.
    """
    if batch_size < 1:
        raise ValueError(f"batch_size {batch_size}: expected at least 1; give a positive number")
    with torch.random.fork_rng(devices=[]), counted() as live:
        model = step.make_model().train()
        batch = step.make_batch(batch_size, torch.device("cpu"))
        updater = step.updater(model, "cpu")
        for _ in range(2):  # the optimiser has its moments from the second update on
            with updater.autocast():
                loss, results = step.loss(model, batch)
            updater.backward(loss)
            updater.step(1e-3)
        del loss, results
    return live.peak


def _trained(network: nn.Module) -> list[nn.Parameter]:
    return [p for p in network.parameters() if p.requires_grad]


def _free_unused(device: torch.device) -> int:
    """Returns freed memory to the system; returns the bytes that remain in use."""
    gc.collect()
    return_freed_memory()
    if device.type == "cuda":
        torch.cuda.empty_cache()
    return used_memory_bytes(device)


def _peak_bytes(device: torch.device) -> int:
    """Most bytes in use since `reset_peak_memory`: of this process, or on a GPU of all that use it."""
    peak = peak_memory_bytes(device)
    if device.type == "cuda":  # tensors alone so far: add the CUDA context and other programs
        peak += used_memory_bytes(device) - torch.cuda.memory_reserved(device)
    return peak
