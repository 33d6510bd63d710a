"""Dry run: times one update, measures its memory and reports what an epoch would cost; trains and writes nothing."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from typing import TypeVar

import torch

from util.hardware.device import peak_memory_bytes, wait_for
from util.training.batch_size import report_measured
from util.training.engine import Updater
from util.training.lr_sched import Schedule

logger = logging.getLogger(__name__)

Micro = TypeVar("Micro")
Fetched = TypeVar("Fetched")


def time_update(
    micro_batches: Sequence[Micro],
    *,
    fetch: Callable[[Micro], Fetched],
    add_gradients: Callable[[Micro, Fetched], torch.Tensor],
    updater: Updater,
    schedule: Schedule,
    device: torch.device,
    predicted_memory: float | None,
    batches_ahead: int,
) -> None:
    """Does the first update twice, the first time to warm up, and logs its time and memory and the cost of an epoch.

    Scoring, pictures and checkpoints are not included.

    Args:
        micro_batches: the micro-batches of the update.
        fetch: reads a micro-batch.
        add_gradients: forward and backward pass of a micro-batch; returns its loss.
        updater: steps the optimiser.
        schedule: length of the run.
        device: where the model computes.
        predicted_memory: expected peak memory in bytes, compared with the measured one; None if not predicted.
        batches_ahead: batches that are read and held in memory during the update, as a run reads ahead.

    Raises:
        OSError: a tile could not be read.
    """
    held = [fetch(micro_batches[0]) for _ in range(batches_ahead)]
    for _ in range(2):
        begin, reading = time.monotonic(), 0.0
        for micro in micro_batches:
            read_from = time.monotonic()
            fetched = fetch(micro)
            reading += time.monotonic() - read_from
            loss = add_gradients(micro, fetched)
        updater.step(schedule.lr(0))
        wait_for(device)
        seconds = time.monotonic() - begin
    logger.info(
        "dry run: an update takes %.3g s, %.3g s of it reading, which --num_workers threads do ahead; peak memory "
        "%.0f MiB; an epoch of %d updates takes about %.3g s, all %d about %.3g h, without scoring; loss %.4f; nothing "
        "was trained or written",
        seconds,
        reading,
        peak_memory_bytes(device) / 2**20,
        schedule.updates,
        seconds * schedule.updates,
        schedule.epochs,
        seconds * schedule.updates * schedule.epochs / 3600,
        float(loss.detach()),
    )
    if predicted_memory is not None:
        report_measured(predicted_memory, device)
    del held
