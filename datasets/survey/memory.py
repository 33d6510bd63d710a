"""How much memory decoded layers may take, and whether they fit."""

from __future__ import annotations

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
    try:
        lines = (root / "proc/self/cgroup").read_text(encoding="utf-8").splitlines()
    except OSError:  # not Linux
        return []
    limits = []
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if not controllers:
            base, name = root / "sys/fs/cgroup", "memory.max"
        elif "memory" in controllers.split(","):
            base, name = root / "sys/fs/cgroup/memory", "memory.limit_in_bytes"
        else:
            continue
        inside = PurePosixPath(path.lstrip("/"))
        for group in (inside, *inside.parents):  # a container may see its own group at the top
            try:
                limits.append(int((base / group / name).read_text(encoding="ascii")))
            except (OSError, ValueError):  # not mounted here, or "max"
                continue
    return limits


def fits_memory(stack: Stack, cache: str, local_ranks: int) -> bool:
    """Whether to hold decoded layers in memory: `cache` decides, or (`auto`) those of all processes take at most a
    quarter of it.
    """
    if cache in ("ram", "none"):
        return cache == "ram"
    return stack.memory_bytes * local_ranks <= memory_limit()
