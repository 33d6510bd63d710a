"""One run at a time in an output folder: a lock that the system gives up when the process that holds it ends."""

from __future__ import annotations

import contextlib
import logging
import os
import socket
from collections.abc import Iterator
from pathlib import Path

from filelock import FileLock, Timeout

from util.processes import distributed as dist

logger = logging.getLogger(__name__)

LOCK = ".run.lock"
"""Hidden file in the folder of a run, while the run goes on; it says which process holds it."""

_held: list[FileLock] = []


def hold_output_folder(folder: Path) -> None:
    """Takes an output folder for this run until `output_folder_given_back`; all ranks of a run are one.

    The lock belongs to the main process and ends with it, however it ends: a file that a killed process left behind
    holds nothing. On a file system without locks a warning says that a second run would not be noticed.

    Args:
        folder: an existing folder that can be written. Every process of the run must call this.

    Raises:
        ValueError: another run is at work there.
    """
    dist.on_main_rank(lambda: _hold(folder))


def _hold(folder: Path) -> None:
    path = folder / LOCK
    holder = _holder(path)  # read first: older versions of filelock empty the file when they try
    lock = FileLock(path, timeout=0, fallback_to_soft=False)  # a soft lock would outlive a killed process
    try:
        lock.acquire()
    except Timeout as error:
        raise ValueError(
            f"--output_dir {folder}: another run ({holder}) is at work there; wait for it, stop it, or choose "
            "another --output_dir"
        ) from error
    except (OSError, NotImplementedError) as error:
        logger.warning(
            "%s: its file system has no locks (%s); make sure that no second run writes there", folder, error
        )
        return
    _held.append(lock)
    with contextlib.suppress(OSError):  # a full disk, or Windows, where nobody may write to a locked file
        path.write_text(f"process {os.getpid()} on {socket.gethostname()}", encoding="utf-8")


def _holder(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8").strip() or "an unknown process"
    except OSError:
        return "an unknown process"


@contextlib.contextmanager
def output_folder_given_back() -> Iterator[None]:
    """A context at whose end the folder that was held within it is free again."""
    try:
        yield
    finally:
        while _held:
            lock = _held.pop()
            with contextlib.suppress(OSError):  # removed while held: whoever waits for it then sees that it is gone
                os.unlink(lock.lock_file)
            lock.release()
