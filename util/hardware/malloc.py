"""The C library's malloc: keeps freed memory for the next step instead of returning it to the system.

A step allocates and frees the same large tensors again and again. By default glibc returns those above some size to the
system, which then provides new zeroed pages: this takes a fifth of a small model's step on a CPU.
"""

from __future__ import annotations

from util.hardware.system import c_function

# Numbers of mallopt's parameters, from glibc's malloc.h.
_TRIM_THRESHOLD, _MMAP_THRESHOLD, _ARENA_MAX = -1, -3, -8
_MIB = 1 << 20
_LARGEST = 2**31 - 1


def keep_freed_memory() -> bool:
    """Makes the C library keep freed memory, for the rest of this process.

    This raises the peak, by about ten times the largest tensor. A smaller threshold would cost less memory, but tensors
    above it would get new pages at every step (docs/performance.md, Memory).

    Returns:
        True if the C library accepted the setting; others than glibc do not know it, and nothing changes.
    """
    return _set(mmap_threshold=1024 * _MIB, trim_threshold=_LARGEST, arenas=1)


def default_malloc() -> bool:
    """Restores the thresholds that glibc reaches by itself in a long run, and returns free memory: for comparisons."""
    done = _set(mmap_threshold=32 * _MIB, trim_threshold=64 * _MIB, arenas=0)
    if done:
        return_freed_memory()
    return done


def return_freed_memory() -> None:
    """Returns free memory to the system, so that only memory in use remains; does nothing without glibc."""
    trim = c_function("malloc_trim")
    if trim is not None:
        trim(0)


def _set(*, mmap_threshold: int, trim_threshold: int, arenas: int) -> bool:
    mallopt = c_function("mallopt")
    if mallopt is None:
        return False
    # Older glibc refuses a threshold above 32 MiB: then that.
    done = mallopt(_MMAP_THRESHOLD, mmap_threshold) or mallopt(_MMAP_THRESHOLD, 32 * _MIB)
    done = mallopt(_TRIM_THRESHOLD, trim_threshold) and done
    # Threads then share one heap, which has no upper limit; each thread's own ends at 64 MiB.
    return bool(done and (not arenas or mallopt(_ARENA_MAX, arenas)))
