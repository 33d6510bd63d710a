"""Finds the largest batch that fits into memory, and the accumulation that keeps the updates what they were."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from util.hardware.device import memory_limit_bytes, peak_memory_bytes, used_memory_bytes
from util.options.common import DEFAULT_BATCH_SIZE
from util.processes import distributed as dist
from util.training.memory_forecast import MIB, Forecast, Step, try_step

logger = logging.getLogger(__name__)

CPU_MARGIN = 0.85
"""Share of the memory limit of a CPU that a predicted peak may take: predictions are wrong by up to 15 %."""


@dataclass(frozen=True)
class BatchSize:
    """How the samples of an update are divided: `batch_size` in one forward pass, `accum_iter` passes an update."""

    batch_size: int
    accum_iter: int


def choose_batch_size(
    batch_size: int | str,
    *,
    accum_iter: int,
    effective_batch: int | None,
    ranks: dist.Ranks,
    device: torch.device,
    forecast: Callable[..., Forecast],
    trials: Sequence[tuple[Step, nn.Module]],
) -> BatchSize:
    """Chooses the batch size and the accumulation where `auto` or an effective batch was asked for.

    Args:
        batch_size: as given: a number, or `auto` for the largest that fits.
        accum_iter: as given.
        effective_batch: samples of an update over all processes; None to leave it to the other two.
        ranks: which process this is; every process must call it.
        device: where it trains.
        forecast: the memory that a batch of so many samples will take; knows `accum_iter`, too.
        trials: steps that are really done to try a batch on a GPU, with the model that does them, on the device.

    Raises:
        ValueError: options contradict each other, the effective batch does not divide, or no batch fits.
    """
    if batch_size != "auto" and effective_batch is None:
        return BatchSize(int(batch_size), accum_iter)
    share = samples_of_each(ranks.world_size, accum_iter=accum_iter, effective_batch=effective_batch)
    if batch_size != "auto":
        return _divided(int(batch_size), share, effective_batch=effective_batch, processes=ranks.world_size)
    limit = memory_limit_bytes(device)

    def is_predicted(batch: int) -> bool:
        found = forecast(batch, accum_iter=share // batch)
        if device.type == "cuda":
            return found.total <= limit
        return found.base + (found.total - found.base) * ranks.local_world_size <= CPU_MARGIN * limit

    def fits(batch: int) -> bool:
        how: dict[str, Any] = {"device": device, "shared": ranks.world_size > 1, "accumulates": batch < share}
        return all(try_step(step, model, batch_size=batch, **how) for step, model in trials)

    def find() -> int:
        found = largest_batch(share, is_predicted)
        if device.type == "cuda":
            found = largest_batch(share, fits, first=found or 1)
        if not found:
            raise ValueError(
                f"--batch_size auto: not even one sample fits into {limit / MIB:.0f} MiB (predicted: "
                f"{forecast(1).describe()}); use --grad_checkpointing, --amp fp16 on a GPU, or a smaller --model"
            )
        return found

    smallest = min(dist.gather_objects(dist.on_all(find)))
    chosen = BatchSize(smallest, share // smallest)
    logger.info(
        "--batch_size auto: %d, --accum_iter %d (effective batch %d, limit %.0f MiB)",
        chosen.batch_size,
        chosen.accum_iter,
        share * ranks.world_size,
        limit / MIB,
    )
    return chosen


def _divided(batch_size: int, share: int, *, effective_batch: int | None, processes: int) -> BatchSize:
    """A given batch size, with the accumulation that gives `share` samples a process.

    Raises:
        ValueError: the batch size does not divide them.
    """
    if share % batch_size:
        best = max(k for k in divisors(share) if k <= batch_size)
        raise ValueError(
            f"--effective_batch {effective_batch}: {share} samples for each of {processes} processes "
            f"are no multiple of --batch_size {batch_size}; use --batch_size {best}"
        )
    return BatchSize(batch_size, share // batch_size)


def report_fit(found: Forecast, device: torch.device) -> None:
    """Says what memory training will take, whether that is there, and what to do if not."""
    limit = memory_limit_bytes(device)
    where = "this card's" if device.type == "cuda" else "this process can get"
    logger.info("dry run: predicted peak memory %s", found.describe())
    if found.total <= limit:
        logger.info("dry run: it fits: %s %.0f MiB", where, limit / MIB)
        return
    logger.warning(
        "dry run: it does not fit: %s %.0f MiB; use a smaller --batch_size with a larger --accum_iter (--batch_size "
        "auto finds both), --grad_checkpointing, or on a GPU --amp fp16",
        where,
        limit / MIB,
    )


def report_measured(found: Forecast, device: torch.device) -> None:
    """Says what was taken, beside the prediction."""
    taken = used_memory_bytes(device) if device.type == "cuda" else peak_memory_bytes(device)
    logger.info(
        "dry run: peak memory predicted %.0f MiB, measured %.0f MiB, ratio %.2f",
        found.total / MIB,
        taken / MIB,
        found.total / taken,
    )


def samples_of_each(processes: int, *, accum_iter: int, effective_batch: int | None) -> int:
    """Samples that each process contributes to an update.

    Raises:
        ValueError: two options say different things, or processes cannot share the effective batch evenly.
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
    """All whole numbers that divide a number, in growing order."""
    return [k for k in range(1, number + 1) if number % k == 0]


def largest_batch(share: int, fits: Callable[[int], bool], *, first: int = 0) -> int:
    """Finds the largest divisor that fits, supposing that none fits above one that does not.

    Args:
        share: samples of one process in an update.
        fits: whether a batch fits; asked at most once for a divisor.
        first: the divisor to ask first, where there is a guess; larger ones come then, one after another.

    Returns:
        The divisor; 0 if none fits.
    """
    sizes = divisors(share)
    low, high = -1, len(sizes)  # sizes[low] fits, sizes[high] does not
    if first in sizes:
        high = sizes.index(first)
        while high < len(sizes) and fits(sizes[high]):
            low, high = high, high + 1
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(sizes[middle]) else (low, middle)
    return sizes[low] if low >= 0 else 0
