"""Keeps memory that was freed for the next step instead of handing it back to the system.

A step allocates and frees the same large tensors again and again. By default glibc returns those above some size to the
system, which then hands out zeroed pages anew: a fifth of a small model's step on a CPU goes there.
"""

from __future__ import annotations

import ctypes

# Numbers of mallopt's parameters, from glibc's malloc.h.
_TRIM_THRESHOLD, _MMAP_THRESHOLD, _ARENA_MAX = -1, -3, -8
_MIB = 1 << 20
_LARGEST = 2**31 - 1


def keep_freed_memory() -> bool:
    """Lets the C library keep what is freed, for the rest of this process.

    The peak is higher for it, by about ten of the largest tensors: a smaller limit would cost less memory, but tensors
    above it are then made of fresh pages at every step (docs/performance.md, Memory).

    Returns:
        True if the C library took the setting; other ones than glibc do not know it, and nothing changes.
    """
    return _set(mmap_threshold=1024 * _MIB, trim_threshold=_LARGEST, arenas=1)


def default_malloc() -> bool:
    """Goes back to what glibc settles on by itself in a long run, and returns what is free now: for comparisons."""
    done = _set(mmap_threshold=32 * _MIB, trim_threshold=64 * _MIB, arenas=0)
    if done:
        return_freed_memory()
    return done


def return_freed_memory() -> None:
    """Hands back what is free now, so that what remains is in use; does nothing without glibc."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


def _set(*, mmap_threshold: int, trim_threshold: int, arenas: int) -> bool:
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    # Older glibc refuses a threshold above 32 MiB: then that.
    done = mallopt(_MMAP_THRESHOLD, mmap_threshold) or mallopt(_MMAP_THRESHOLD, 32 * _MIB)
    done = mallopt(_TRIM_THRESHOLD, trim_threshold) and done
    # Threads then share one heap, which has no upper limit; each thread's own ends at 64 MiB.
    return bool(done and (not arenas or mallopt(_ARENA_MAX, arenas)))
