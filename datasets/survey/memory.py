"""How much memory decoded layers may take, and whether they fit."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

import psutil

from datasets.survey.stack import Stack

MEMORY_SHARE = 0.25
"""Fraction of memory that decoded layers may take before they are read by window (`cache="auto"`)."""


def memory_limit() -> float:
    """Bytes that decoded layers may take, all processes together, of what this machine or this job has."""
    return MEMORY_SHARE * min([psutil.virtual_memory().total, *job_limits()])


def job_limits(root: Path = Path("/")) -> list[int]:
    """Memory limits in bytes of the control groups that this process is in, of versions 1 and 2, up to the top.

    Args:
        root: folder that holds `proc` and `sys`.
    """
    return [limit for limit, _ in _limited_groups(root)]


def free_in_job(root: Path = Path("/")) -> float:
    """Bytes that the job of this process may still take: the least that a control group leaves; inf without a limit.

    Args:
        root: folder that holds `proc` and `sys`.
    """
    return min((float(limit - used) for limit, used in _limited_groups(root)), default=math.inf)


def _limited_groups(root: Path) -> Iterator[tuple[int, int]]:
    """Limit and use, bytes, of each control group of this process that has a limit, from the innermost on."""
    try:
        lines = (root / "proc/self/cgroup").read_text(encoding="utf-8").splitlines()
    except OSError:  # not Linux
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if not controllers:
            base, names = root / "sys/fs/cgroup", ("memory.max", "memory.current")
        elif "memory" in controllers.split(","):
            base, names = root / "sys/fs/cgroup/memory", ("memory.limit_in_bytes", "memory.usage_in_bytes")
        else:
            continue
        inside = PurePosixPath(path.lstrip("/"))
        for group in (inside, *inside.parents):  # a container may see its own group at the top
            limit, used = (_number_in(base / group / name) for name in names)
            if limit is not None:
                yield limit, used or 0


def _number_in(file: Path) -> int | None:
    """The whole number that a file holds; None if it is not there, or says "max"."""
    try:
        return int(file.read_text(encoding="ascii"))
    except (OSError, ValueError):
        return None


def fits_memory(stack: Stack, cache: str, local_ranks: int) -> bool:
    """Whether to hold decoded layers in memory: `cache` decides, or (`auto`) those of all processes take at most a
    quarter of it.
    """
    if cache in ("ram", "none"):
        return cache == "ram"
    return stack.memory_bytes * local_ranks <= memory_limit()
