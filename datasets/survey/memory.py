"""How much memory decoded layers may take, and whether they fit."""

from __future__ import annotations

import os

from datasets.survey.stack import Stack

MEMORY_SHARE = 0.25
"""Fraction of physical memory that decoded layers may take before they are read by window (`cache="auto"`)."""


def memory_limit() -> float:
    """Bytes that decoded layers may take on this machine, all processes together."""
    return MEMORY_SHARE * os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def fits_memory(stack: Stack, cache: str, local_ranks: int) -> bool:
    """Whether to hold decoded layers in memory: `cache` decides, or (`auto`) those of all processes take at most a
    quarter of it.
    """
    if cache in ("ram", "none"):
        return cache == "ram"
    return stack.memory_bytes * local_ranks <= memory_limit()
