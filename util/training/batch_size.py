"""Batch size: the largest that fits into memory, with the accumulation that keeps an update the same."""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass

import torch

from util.hardware.device import memory_limit_bytes, peak_memory_bytes, used_memory_bytes
from util.options.common import DEFAULT_BATCH_SIZE
from util.processes import distributed as dist
from util.training.memory import MIB, MemoryTrials

logger = logging.getLogger(__name__)

CPU_MARGIN = 0.85
"""Fraction of the host's free memory that training may take: scoring, pictures and other programs take some, too."""
GPU_MARGIN = 0.92
"""Fraction of a GPU's memory that training may take: what the allocator loses differs from update to update."""
GRAPH_SHARE = 0.5
"""Of what is left for batches if updates are recorded: a recorded pass keeps its memory while others take theirs."""


@dataclass(frozen=True)
class BatchSize:
    """Samples of one forward pass, and forward passes of an update."""

    batch_size: int
    accum_iter: int


def choose_batch_size(
    batch_size: int | str,
    *,
    accum_iter: int,
    effective_batch: int | None,
    ranks: dist.Ranks,
    device: torch.device,
    trials: MemoryTrials,
    job_free: float = math.inf,
    records_graphs: bool = False,
) -> BatchSize:
    """Returns the batch size and the accumulation, chosen where `auto` or an effective batch is given.

    Args:
        batch_size: as given: a number, or `auto` for the largest that fits.
        accum_iter: as given.
        effective_batch: samples of an update over all processes; None to leave it to the other two.
        ranks: which process this is; every process must call it.
        device: where it trains.
        trials: measures the memory of a batch.
        job_free: bytes of the host that a container or a batch system lets this job still take.
        records_graphs: updates may be recorded as CUDA graphs.

    Raises:
        ValueError: options contradict each other, the effective batch does not divide, or no batch fits.
    """
    if batch_size != "auto" and effective_batch is None:
        return BatchSize(int(batch_size), accum_iter)
    samples = samples_per_process(ranks.world_size, accum_iter=accum_iter, effective_batch=effective_batch)
    if batch_size != "auto":
        return _divided(int(batch_size), samples, effective_batch=effective_batch, processes=ranks.world_size)
    limit = memory_for_training(device, ranks, job_free)
    if records_graphs:
        limit -= round((1 - GRAPH_SHARE) * max(limit - trials.expected(0), 0))

    def find() -> int:
        found = trials.largest_fitting(divisors(samples), limit)
        if not found:
            raise ValueError(
                f"--batch_size auto: not even one sample fits into {limit / MIB:.0f} MiB (expected "
                f"{trials.expected(1) / MIB:.0f} MiB or more); use --grad_checkpointing, --amp fp16 on a GPU, or a "
                "smaller --model"
            )
        return found

    smallest = min(dist.gather_objects(dist.on_all(find)))
    chosen = BatchSize(smallest, samples // smallest)
    logger.info(
        "--batch_size auto: %d, --accum_iter %d (effective batch %d, limit %.0f MiB)",
        chosen.batch_size,
        chosen.accum_iter,
        samples * ranks.world_size,
        limit / MIB,
    )
    return chosen


def _divided(batch_size: int, samples: int, *, effective_batch: int | None, processes: int) -> BatchSize:
    """A given batch size, with the accumulation that gives this number of samples per process.

    Raises:
        ValueError: the batch size does not divide them.
    """
    if samples % batch_size:
        best = max(k for k in divisors(samples) if k <= batch_size)
        raise ValueError(
            f"--effective_batch {effective_batch}: {samples} samples for each of {processes} processes "
            f"are not a multiple of --batch_size {batch_size}; use --batch_size {best}"
        )
    return BatchSize(batch_size, samples // batch_size)


def memory_for_training(device: torch.device, ranks: dist.Ranks, job_free: float = math.inf) -> int:
    """Bytes that a process may have in use at its peak, the same in all; every process must call it.

    On a GPU `GPU_MARGIN` of its memory; elsewhere the memory in use by this process plus its part of the free memory of
    the machine, or of its job (`job_free` bytes) if that is less.
    """
    limit = memory_limit_bytes(device, job_free)
    if device.type == "cuda":
        limit = round(GPU_MARGIN * limit)
    else:
        used = used_memory_bytes(device)
        limit = used + round((CPU_MARGIN * limit - used) / ranks.local_world_size)
    return min(dist.gather_objects(limit))


def predict_memory(
    trials: MemoryTrials, batch_size: int, *, device: torch.device, ranks: dist.Ranks, job_free: float = math.inf
) -> float:
    """Tries smaller batches; logs the peak memory of training, whether it fits, and what to do if not.

    Every process must call it.

    Returns:
        Expected peak in bytes.
    """
    limit = memory_for_training(device, ranks, job_free)
    dist.on_all(lambda: trials.try_small(max(1, batch_size // 2), limit))
    predicted = trials.expected(batch_size)
    tried = ", ".join(f"{size}: {peak / MIB:.0f}" for size, peak in sorted(trials.peaks.items())) or "none"
    logger.info("dry run: predicted peak memory %.0f MiB (MiB of batches tried: %s)", predicted / MIB, tried)
    where = "this card's" if device.type == "cuda" else "this process can get"
    if predicted <= limit:
        logger.info("dry run: it fits: %s %.0f MiB", where, limit / MIB)
    else:
        logger.warning(
            "dry run: it does not fit: %s %.0f MiB; use a smaller --batch_size with a larger --accum_iter "
            "(--batch_size auto finds both), --grad_checkpointing, or on a GPU --amp fp16",
            where,
            limit / MIB,
        )
    return predicted


def report_measured(predicted: float, device: torch.device) -> None:
    """Logs the peak memory that was used, and its ratio to the prediction."""
    used = used_memory_bytes(device) if device.type == "cuda" else peak_memory_bytes(device)
    logger.info(
        "dry run: peak memory predicted %.0f MiB, measured %.0f MiB, ratio %.2f",
        predicted / MIB,
        used / MIB,
        predicted / used,
    )


def samples_per_process(processes: int, *, accum_iter: int, effective_batch: int | None) -> int:
    """Samples that each process contributes to an update.

    Raises:
        ValueError: two options contradict each other, or processes cannot share the effective batch evenly.
    """
    if effective_batch is None:
        return DEFAULT_BATCH_SIZE * accum_iter
    if accum_iter != 1:
        raise ValueError(
            f"--effective_batch {effective_batch} with --accum_iter {accum_iter}: the first decides the second; leave "
            "one of them out"
        )
    if effective_batch % processes:
        raise ValueError(
            f"--effective_batch {effective_batch} cannot be shared by {processes} processes; expected a multiple "
            f"of {processes}, such as {-(-effective_batch // processes) * processes}"
        )
    return effective_batch // processes


def divisors(number: int) -> list[int]:
    """All divisors of a number, in growing order."""
    return [k for k in range(1, number + 1) if number % k == 0]
