"""Records of a run that only rank 0 writes: JSON lines in log.txt and TensorBoard events."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from matplotlib.figure import Figure

from util.hardware.system import replace_file
from util.processes import distributed as dist
from util.processes.output_lock import hold_output_folder


class JsonLines:
    """Appends one JSON object a line to a file; numbers that JSON does not have, NaN and inf, become null."""

    def __init__(self, path: str | os.PathLike[str], *, purge_step: int | None = None, enabled: bool = True) -> None:
        """Opens the file.

        Args:
            path: the file; made if missing, with its folder. A last line cut short by a kill is removed.
            purge_step: when resuming, the first step that will be done again: lines with a "step" from there
                on are removed, as TensorBoard does, so that each step stands once.
            enabled: False makes `write` do nothing (ranks other than 0).

        Raises:
            OSError: the file cannot be written.
        """
        self._file = None
        if not enabled:
            return
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.exists():
            _tidy_json_lines(path, purge_step)
        self._file = open(path, "a", encoding="utf-8")  # noqa: SIM115 - closed by close()

    def write(self, record: Mapping[str, Any]) -> None:
        """Writes one object (plain values, numpy scalars, tensors of one element, nested) and flushes it."""
        if self._file is not None:
            self._file.write(json.dumps(plain(record), allow_nan=False) + "\n")
            self._file.flush()

    def close(self) -> None:
        """Closes the file."""
        if self._file is not None:
            self._file.close()
            self._file = None


def _tidy_json_lines(path: Path, purge_step: int | None) -> None:
    """Removes a torn last line and, if asked, the lines from a step on; the file is replaced whole."""
    text = path.read_text(encoding="utf-8", errors="replace")
    lines = text.splitlines(keepends=True)
    kept = [line for line in lines if line.endswith("\n") and not _is_from(line, purge_step)]
    if kept == lines:
        return
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        temporary.write_text("".join(kept), encoding="utf-8")
        replace_file(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def _is_from(line: str, purge_step: int | None) -> bool:
    if purge_step is None:
        return False
    try:
        step = json.loads(line).get("step")
    except (ValueError, AttributeError):
        return False
    return isinstance(step, int | float) and step >= purge_step


def plain(value: Any) -> Any:
    """Returns `value` as strict JSON has it."""
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, torch.Tensor | np.ndarray | np.generic):
        return plain(value.tolist())
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if value is None or isinstance(value, str | int):
        return value
    return str(value)


class Writer(Protocol):
    """What TensorBoardLog and NullLog both offer."""

    def scalar(self, tag: str, value: float, step: int, *, about: str = "") -> None:
        """Adds a point to the curve `tag`; `about` says what the curve is, with its unit."""

    def hparams(self, options: Mapping[str, Any], scores: Mapping[str, float]) -> None:
        """Makes the run a line of the table of runs: its options, and its final scores."""

    def figure(self, tag: str, figure: Figure, step: int) -> None:
        """Adds a picture."""

    def text(self, tag: str, text: str, step: int = 0) -> None:
        """Adds a text, shown as Markdown."""

    def flush(self) -> None:
        """Puts everything on disk."""

    def close(self) -> None:
        """Flushes and closes."""


class TensorBoardLog:
    """TensorBoard events in a folder."""

    def __init__(self, log_dir: str | os.PathLike[str], *, purge_step: int | None = None) -> None:
        """Opens a new event file; `purge_step` hides earlier events from that step on, when resuming."""
        from torch.utils.tensorboard import SummaryWriter  # slow to import, and only rank 0 needs it

        self._writer = SummaryWriter(str(log_dir), purge_step=purge_step)

    def scalar(self, tag: str, value: float, step: int, *, about: str = "") -> None:
        """Adds a point to the curve `tag`; `about` says what the curve is, with its unit."""
        from torch.utils.tensorboard.summary import scalar

        # As SummaryWriter.add_scalar does, which has no place for a description.
        point = scalar(tag, float(value))
        if about:
            point.value[0].metadata.summary_description = about
        self._writer.file_writer.add_summary(point, step)

    def hparams(self, options: Mapping[str, Any], scores: Mapping[str, float]) -> None:
        """Makes the run a line of the table of runs: its options, and its final scores."""
        from torch.utils.tensorboard.summary import hparams

        plain_options = {
            name: value if isinstance(value, bool | int | float | str) else str(value)
            for name, value in options.items()
        }
        known = {name: float(value) for name, value in scores.items() if value is not None and math.isfinite(value)}
        for summary in hparams(plain_options, known):
            self._writer.file_writer.add_summary(summary)
        for name, value in known.items():
            self.scalar(name, value, 0, about="The value at the end of the run, for the table of runs.")

    def figure(self, tag: str, figure: Figure, step: int) -> None:
        """Adds a picture."""
        self._writer.add_figure(tag, figure, step, close=False)

    def text(self, tag: str, text: str, step: int = 0) -> None:
        """Adds a text, shown as Markdown."""
        self._writer.add_text(tag, text, step)

    def flush(self) -> None:
        """Puts everything on disk."""
        self._writer.flush()

    def close(self) -> None:
        """Flushes and closes."""
        self._writer.close()


class NullLog:
    """The same methods, doing nothing: for ranks other than 0 and for runs without a log folder."""

    def scalar(self, tag: str, value: float, step: int, *, about: str = "") -> None:
        """Does nothing."""

    def hparams(self, options: Mapping[str, Any], scores: Mapping[str, float]) -> None:
        """Does nothing."""

    def figure(self, tag: str, figure: Figure, step: int) -> None:
        """Does nothing."""

    def text(self, tag: str, text: str, step: int = 0) -> None:
        """Does nothing."""

    def flush(self) -> None:
        """Does nothing."""

    def close(self) -> None:
        """Does nothing."""


def make_writer(
    log_dir: str | os.PathLike[str] | None, *, purge_step: int | None = None, enabled: bool = True
) -> Writer:
    """Returns a TensorBoard log in `log_dir`, or a null one if there is no folder or `enabled` is False."""
    if log_dir is None or not enabled:
        return NullLog()
    return TensorBoardLog(log_dir, purge_step=purge_step)


def check_writable(folder: Path, *, flag: str) -> None:
    """Checks that a folder can be written, before anything is computed; creates it if missing.

    Args:
        folder: the folder.
        flag: the option that names it, for the message.

    Raises:
        ValueError: naming the folder and the reason.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / ".writable"
        probe.write_bytes(b"")
        probe.unlink()
    except OSError as error:
        raise ValueError(f"{flag} {folder}: not writable ({error.strerror}); choose another directory") from error


def claim_output_folders(output_dir: str, log_dir: str | None = None, *, alone: bool = True) -> None:
    """Checks that the main process can write --output_dir and --log_dir; every process must call it.

    Args:
        output_dir: value of --output_dir, created if missing.
        log_dir: value of --log_dir, None or empty for none.
        alone: take --output_dir for this run; False if nothing will be written there.

    Raises:
        ValueError: naming the folder and the reason; or another run is at work in --output_dir.
    """
    dist.on_main_rank(lambda: check_writable(Path(output_dir), flag="--output_dir"))
    if alone:
        hold_output_folder(Path(output_dir))
    if log_dir:
        dist.on_main_rank(lambda: check_writable(Path(log_dir), flag="--log_dir"))
