"""What differs between Linux, macOS and Windows, in one place: memory, cores, signals, groups of processes, files.

The only module that names what some systems lack (tests/test_any_system.py enforces it), and each use asks first.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import importlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import psutil

STOP_SIGNALS = tuple(
    getattr(signal, name) for name in ("SIGTERM", "SIGINT", "SIGUSR1", "SIGBREAK") if hasattr(signal, name)
)
"""Signals that ask a program to save and end: SIGUSR1 comes from batch systems, SIGBREAK is Ctrl-Break on Windows."""

SIGKILL = getattr(signal, "SIGKILL", None)
"""Number of the signal that ends a process at once, None on Windows."""

REPLACE_PATIENCE_S = 10.0
"""How long to wait for a program that has a file open which is to be replaced."""


def optional_module(name: str) -> ModuleType | None:
    """A module that some systems lack, None there."""
    try:
        return importlib.import_module(name)
    except ImportError:
        return None


# ------------------------------------------------------------------------------------------------------------
# Memory and cores
# ------------------------------------------------------------------------------------------------------------


def resident_bytes() -> int:
    """Memory of this process that is in use now."""
    return int(psutil.Process().memory_info().rss)


def peak_resident_bytes() -> int:
    """The most memory that this process has used, so far or since `reset_peak_resident`.

    psutil knows it on Windows alone. On Linux getrusage includes the program that started this one, and /proc does not.
    """
    peak = getattr(psutil.Process().memory_info(), "peak_wset", None)
    if peak is not None:
        return int(peak)
    try:
        lines = Path("/proc/self/status").read_text(encoding="ascii", errors="replace").splitlines()
        return next(1024 * int(line.split()[1]) for line in lines if line.startswith("VmHWM:"))
    except (OSError, StopIteration):
        pass
    resource = optional_module("resource")
    if resource is None:
        return resident_bytes()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return int(peak if sys.platform == "darwin" else peak * 1024)  # macOS counts bytes, others KiB


def reset_peak_resident() -> None:
    """Makes `peak_resident_bytes` forget what was used before; does nothing but on Linux.

    Raises:
        OSError: the system does not allow it.
    """
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")


def available_bytes() -> int:
    """Memory that programs can still take without swapping."""
    return int(psutil.virtual_memory().available)


def usable_cpus() -> int:
    """The CPUs this process may run on, which a batch system may have limited."""
    affinity = getattr(psutil.Process(), "cpu_affinity", None)  # macOS has none
    return len(affinity()) if affinity is not None else psutil.cpu_count() or 1


def load_average() -> float | None:
    """Programs that ran or waited for a core in the last minute, on average; None on Windows, which does not count."""
    return os.getloadavg()[0] if hasattr(os, "getloadavg") else None


def c_function(name: str) -> Callable[..., int] | None:
    """A function of the C library that this process runs with, None where it has none of that name."""
    try:
        return getattr(ctypes.CDLL(None), name, None)
    except (OSError, TypeError):  # on Windows no library stands for the whole process
        return None


# ------------------------------------------------------------------------------------------------------------
# Groups of processes
# ------------------------------------------------------------------------------------------------------------


def in_a_group(*, keeps: tuple[int, ...] = ()) -> dict[str, Any]:
    """Arguments of `subprocess.Popen` for a program that Ctrl-C does not reach, and that `end_group` ends.

    Args:
        keeps: descriptors of open files that the program keeps; not on Windows, where programs inherit none.
    """
    new_group = getattr(subprocess, "CREATE_NEW_PROCESS_GROUP", None)
    if new_group is not None:
        return {"creationflags": new_group}
    return {"start_new_session": True, "pass_fds": keeps}


def end_group(process: subprocess.Popen[bytes], *, at_once: bool) -> None:
    """Asks a program and those that it started to save and end, or ends them at once.

    Args:
        process: started with `in_a_group`.
        at_once: leave them no time.
    """
    try:
        if hasattr(os, "killpg"):
            os.killpg(process.pid, signal.SIGKILL if at_once else signal.SIGTERM)
            return
        if not at_once and hasattr(signal, "CTRL_BREAK_EVENT"):
            process.send_signal(signal.CTRL_BREAK_EVENT)
            return
        program = psutil.Process(process.pid)
        for each in [*program.children(recursive=True), program]:
            each.kill() if at_once else each.terminate()
    except (ProcessLookupError, psutil.NoSuchProcess):  # it ended by itself
        pass


# ------------------------------------------------------------------------------------------------------------
# Files
# ------------------------------------------------------------------------------------------------------------


def replace_file(source: str | os.PathLike[str], target: str | os.PathLike[str]) -> None:
    """Gives a finished file its name, in place of an older one.

    Windows replaces no file that a program has open. Virus scanners, indexers and synchronised folders open new files
    for a moment, so there it is tried again for a while.

    Raises:
        OSError: it cannot be replaced.
    """
    end = time.monotonic() + (REPLACE_PATIENCE_S if os.name == "nt" else 0.0)
    while True:
        try:
            os.replace(source, target)
            return
        except PermissionError as error:
            if os.name != "nt":
                raise
            if time.monotonic() > end:
                raise PermissionError(
                    error.errno,
                    f"{target} cannot be replaced: another program (QGIS, TensorBoard, Excel, a synchronised folder) "
                    "has it open; close it there, then go on",
                ) from error
            time.sleep(0.1)


@contextlib.contextmanager
def written_whole(path: Path) -> Iterator[Path]:
    """Gives a path beside a file to write to; what is there gets the file's name at the end, and goes on an error."""
    waiting = path.with_name(f".{os.getpid()}.{path.name}")  # the ending stays: writers go by it
    try:
        yield waiting
        replace_file(waiting, path)
    finally:
        with contextlib.suppress(OSError):
            waiting.unlink(missing_ok=True)


_DISK_FULL = frozenset({errno.ENOSPC, errno.EFBIG, getattr(errno, "EDQUOT", errno.ENOSPC)})


def disk_full_message(error: BaseException, *, then: str) -> str | None:
    """Says what to do where a file could not grow: no space, a limit of sizes, a quota; None for other errors.

    Args:
        error: of the system, as it was raised.
        then: what to do once there is space.
    """
    if not isinstance(error, OSError) or error.errno not in _DISK_FULL:
        return None
    where = f"{error.filename}: " if error.filename else ""
    return f"{where}results not written: {error.strerror}; free some space or raise the limit, then {then}"
