"""What a program shows on the terminal: log messages, with the rank of other processes, and progress bars."""

from __future__ import annotations

import io
import logging
import sys
from collections.abc import Iterable
from types import TracebackType
from typing import Any, TypeVar

from tqdm.auto import tqdm

from util.processes.heard_warnings import collect_warnings

T = TypeVar("T")

logger = logging.getLogger(__name__)

LINE_SECONDS = 60.0
"""Time between the lines that stand for a progress bar in a file."""

_LINE = "{desc}: {n_fmt} of {total_fmt} {unit}s, {percentage:.0f} %, {elapsed} since its start, {remaining} left"

_OUR_LOGGERS = (
    "__main__",
    "main_pretrain",
    "main_finetune",
    "main_inference",
    "models_mae_group_channels",
    "models_vit_group_channels",
    "datasets",
    "scripts",
    "study",
    "util",
)
"""Loggers whose INFO messages are shown; other packages only show warnings."""


class _BarHandler(logging.StreamHandler):
    """A handler that clears progress bars from the terminal while it writes a message."""

    def emit(self, record: logging.LogRecord) -> None:
        """Writes the record above any bar on the same terminal."""
        with tqdm.external_write_mode(file=self.stream):
            super().emit(record)


def setup_logging(rank: int = 0) -> None:
    """Sends log messages to standard error: INFO and above in rank 0; WARNING and above, with the rank, in the others.

    Python's warnings go the same way. Warnings are also kept for the page of the run. A second call replaces the first.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a console of Windows cannot show the names of all files and layers
            stream.reconfigure(errors="backslashreplace")
    handler = _BarHandler(sys.stderr)
    who = "" if rank == 0 else f"[rank {rank}] "
    handler.setFormatter(logging.Formatter(f"%(asctime)s %(levelname).1s {who}%(message)s", datefmt="%H:%M:%S"))
    root = logging.getLogger()
    for old in [old for old in root.handlers if isinstance(old, _BarHandler)]:
        root.removeHandler(old)
    root.addHandler(handler)
    collect_warnings()
    root.setLevel(logging.WARNING)
    # GDAL repeats its warnings each time a file is opened; datasets/ checks what matters and warns once.
    logging.getLogger("rasterio").setLevel(logging.ERROR)
    for name in _OUR_LOGGERS:
        logging.getLogger(name).setLevel(logging.INFO if rank == 0 else logging.WARNING)
    logging.captureWarnings(True)
    sys.unraisablehook, sys.excepthook = _without_garbled_messages, _without_garbled_errors


def _without_garbled_messages(unraisable: Any) -> None:
    """Drops what follows from a damaged file after its own error, which is raised as usual: a message of GDAL that is
    no text, and a netCDF file that h5netcdf cannot close.
    """
    is_garbled = isinstance(unraisable.exc_value, UnicodeDecodeError) and "rasterio" in str(unraisable.object)
    if is_garbled or getattr(unraisable.object, "__module__", "") == "h5netcdf.core":
        logger.debug("after a damaged file: %s", unraisable.exc_value)
    else:
        sys.__unraisablehook__(unraisable)


def _without_garbled_errors(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """Leaves out the same where rasterio prints it, which is without a place in any code."""
    if not (kind is UnicodeDecodeError and trace is None):
        sys.__excepthook__(kind, error, trace)


class _LogStream:
    """What a bar is drawn on where standard error is a file: each state becomes a log message."""

    def write(self, text: str) -> None:
        """Logs a state; a bar that is erased is none."""
        if shown := text.strip():
            logger.info("%s", shown)

    def flush(self) -> None:
        """Does nothing: messages are written at once."""


def progress_bar(
    iterable: Iterable[T] | None = None,
    *,
    total: int | None = None,
    initial: int = 0,
    desc: str = "",
    unit: str = "it",
    enabled: bool = True,
) -> tqdm:
    """Returns a tqdm progress bar on standard error, erased when done; a line a minute where that is no terminal.

    Args:
        iterable: items to iterate over; or None, then call `.update(n)`.
        total: total number of units, to estimate the time left.
        initial: units already done, when resuming.
        desc: text before the bar.
        unit: name of one unit, such as "tile".
        enabled: False hides the bar (ranks other than 0, or --no_progress).
    """
    common: dict[str, Any] = {"total": total, "initial": initial, "desc": desc, "unit": unit, "leave": False}
    if not enabled or sys.stderr.isatty():
        return tqdm(iterable, **common, dynamic_ncols=True, file=sys.stderr, disable=not enabled)
    return tqdm(
        iterable,
        **common,
        file=_LogStream(),
        ascii=True,
        bar_format=_LINE if total or hasattr(iterable, "__len__") else None,
        delay=LINE_SECONDS,
        mininterval=LINE_SECONDS,
        maxinterval=LINE_SECONDS,
    )
