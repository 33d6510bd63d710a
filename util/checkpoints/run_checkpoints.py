"""Checkpoints: written whole or not at all, checked byte for byte when read, one always good.

A checkpoint is an ordinary `torch.save` file, so any tool can open it with `torch.load(path,
weights_only=True)`. It differs in its zip comment, which ends the file and holds the optimiser step and the
SHA-256 of everything before it:

    GRID-MAE step=000000001200 sha256=<64 hexadecimal digits>

torch does not check the CRC-32 of what it reads, and a CRC does not cover the zip's own headers; the digest
covers all.
"""

from __future__ import annotations

import contextlib
import logging
import os
import re
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch

from util.checkpoints.checkpoint_file import (
    _CHUNK_BYTES,
    CHECKPOINT_KEYS,
    CheckpointError,
    _check_digest,
    _identity,
    _read_comment,
    _sync_folder,
    _temporary_for,
    _verified,
    _write_error,
    load_checkpoint,
    save_checkpoint,
)

logger = logging.getLogger(__name__)

LAST = "checkpoint-last.pth"
PREVIOUS = "checkpoint-previous.pth"
RUN_FILES = ("checkpoint-*.pth", "log.txt", "layers.csv", "categories.csv", "statistics.json", "reconstruction-*.png")


class Resumable(NamedTuple):
    """The checkpoint to go on from: path and contents, and (path, reason) of each newer one passed over."""

    path: Path
    state: dict[str, Any]
    skipped: list[tuple[Path, str]]


# ------------------------------------------------------------------------------------------------------------
# One file
# ------------------------------------------------------------------------------------------------------------


# ------------------------------------------------------------------------------------------------------------
# The checkpoints of one run
# ------------------------------------------------------------------------------------------------------------


def save_run_checkpoint(output_dir: str | os.PathLike[str], state: Mapping[str, Any], *, epoch_file: bool) -> Path:
    """Writes checkpoint-last.pth, keeps the one before as checkpoint-previous.pth, and returns the path
    written.

    At every instant, whatever is killed, at least one complete checkpoint bears a name that `find_resumable`
    looks for: the new file takes the name of the last one in a single rename, and only then does the old one,
    still held by a second hard link (a copy where the file system has none), replace the one before it. An
    old last one that turns out damaged does not replace a good previous one.

    Args:
        output_dir: folder of the run; made if missing.
        state: contents, see `save_checkpoint`; must have every key of `CHECKPOINT_KEYS`.
        epoch_file: also keep it as checkpoint-<state["epoch"]>.pth.

    Raises:
        KeyError: a key of `CHECKPOINT_KEYS` is missing.
        TypeError, OSError: as `save_checkpoint`; earlier checkpoints stay intact.
    """
    missing = [key for key in CHECKPOINT_KEYS if key not in state]
    if missing:
        raise KeyError(f"checkpoint for {output_dir} lacks {', '.join(missing)}")
    folder = Path(output_dir)
    folder.mkdir(parents=True, exist_ok=True)
    _remove_leftovers(folder)
    last, previous = folder / LAST, folder / PREVIOUS
    old_last: Path | None = None
    try:
        if _worth_keeping(last):
            old_last = _temporary_for(previous)
            _link_or_copy(last, old_last)
        save_checkpoint(last, state)
        if old_last is not None:
            os.replace(old_last, previous)
        if epoch_file:
            _keep_as(last, folder / f"checkpoint-{int(state['epoch'])}.pth")
        _sync_folder(folder)
    finally:
        if old_last is not None:
            # Two names of the same file: rename() then leaves both, so the temporary one may still be there.
            with contextlib.suppress(OSError):
                old_last.unlink(missing_ok=True)
    return last


def keep_missing(output_dir: str | os.PathLike[str], *, epoch: int, step: int) -> None:
    """Gives the run's checkpoint of a step the name checkpoint-<epoch>.pth too, if no file bears it.

    For a run that was killed between the two names of its last checkpoint.

    Raises:
        OSError: the second name, or a copy, could not be made.
    """
    folder = Path(output_dir)
    target = folder / f"checkpoint-{epoch}.pth"
    source = next((path for path in _candidates(folder) if _stated_step(path) == step), None)
    if source is not None and not target.exists():
        _keep_as(source, target)


def find_resumable(output_dir: str | os.PathLike[str], *, map_location: str | torch.device = "cpu") -> Resumable | None:
    """Returns the newest good checkpoint of a run, by optimiser step, or None where the run has none.

    Damaged ones are passed over, each with its reason in `skipped`; the caller says so. Nothing is changed on
    disk, so all ranks may call it. Temporary files of a killed save are ignored; the next save removes them.

    Raises:
        CheckpointError: there are checkpoints but all are damaged; names each with its reason.
    """
    skipped: list[tuple[Path, str]] = []
    for path in _candidates(Path(output_dir)):
        try:
            return Resumable(path, load_checkpoint(path, map_location), skipped)
        except (CheckpointError, OSError) as error:
            skipped.append((path, str(error)))
    if skipped:
        reasons = "\n  ".join(reason for _, reason in skipped)
        raise CheckpointError(
            f"{output_dir}: none of its {len(skipped)} checkpoints can be used; start afresh with another "
            f"--output_dir, or restore one from a copy:\n  {reasons}"
        )
    return None


def find_checkpoint(resume: str, output_dir: str | os.PathLike[str]) -> dict[str, Any] | None:
    """Returns the state that a run goes on from.

    Args:
        resume: empty (none), `auto` (the newest good checkpoint of the run, None if it has none), or a file.
        output_dir: folder of the run.

    Raises:
        CheckpointError: the file, or every checkpoint of the run, is damaged.
        FileNotFoundError: there is no such file.
    """
    if not resume:
        return None
    if resume != "auto":
        return load_checkpoint(resume)
    found = find_resumable(output_dir)
    if found is None:
        logger.info("--resume auto: %s holds no checkpoint, starting afresh", output_dir)
        return None
    for path, reason in found.skipped:
        logger.warning("passed over %s: %s", path, reason)
    logger.info("going on from %s", found.path)
    return found.state


def set_aside(output_dir: str | os.PathLike[str], log_dir: str | os.PathLike[str] | None = None) -> Path | None:
    """Moves what an earlier run left into a new folder earlier-<n> beside it; returns it, None if no run did.

    For a run that starts afresh in a folder already used: nothing is overwritten, a later resume cannot
        mistake the earlier run's checkpoints for its own, and TensorBoard shows the earlier run as one of its
        own.

    Args:
        output_dir: checkpoints, log, tables and pictures are moved.
        log_dir: TensorBoard events directly in it are moved too; default `output_dir`.
    """
    folder = Path(output_dir)
    found = [path for pattern in RUN_FILES for path in sorted(folder.glob(pattern)) if path.is_file()]
    found += [path for path in sorted(Path(log_dir or folder).glob("events.out.tfevents.*")) if path.is_file()]
    return _move_to_earlier(found, folder)


def set_newer_aside(output_dir: str | os.PathLike[str], step: int) -> Path | None:
    """Moves checkpoints beyond `step`, or damaged at their end, to a new folder earlier-<n>; returns it, None if none.

    For a run that goes on from an earlier checkpoint than its newest: the next `find_resumable` must not take up
    the future that was given up.
    """
    folder = Path(output_dir)
    steps = {path: _stated_step(path) for path in _candidates(folder)}
    return _move_to_earlier([path for path, stated in steps.items() if stated is None or stated > step], folder)


def _move_to_earlier(found: Sequence[Path], folder: Path) -> Path | None:
    """Moves files into a new folder earlier-<n>; returns it, None where there is nothing to move."""
    if not found:
        return None
    number = 1
    while (folder / f"earlier-{number}").exists():
        number += 1
    target = folder / f"earlier-{number}"
    target.mkdir(parents=True)
    for path in found:
        shutil.move(path, target / path.name)
    return target


def _candidates(folder: Path) -> list[Path]:
    """Returns the run's checkpoint files, newest first by the step each states; those that state none come
    first.

    A file without a readable end is damaged, so loading it fails fast and it is reported; at equal steps the
    last one comes before the one kept for the epoch.
    """
    order = {LAST: 0, PREVIOUS: 1}

    def newest_first(path: Path) -> tuple[float, int, str]:
        step = _stated_step(path)
        return (-float("inf") if step is None else -step, order.get(path.name, 2), path.name)

    names = (
        path
        for path in folder.glob("checkpoint-*.pth")
        if re.fullmatch(r"checkpoint-(last|previous|\d+)\.pth", path.name)
    )
    return sorted(names, key=newest_first)


def _stated_step(path: Path) -> int | None:
    """Returns the optimiser step that a checkpoint states at its end, None where that cannot be read."""
    try:
        with open(path, "rb") as file:
            comment = _read_comment(file, path.stat().st_size)
    except OSError:
        return None
    return comment[0] if comment else None


def _worth_keeping(last: Path) -> bool:
    """True if checkpoint-last.pth is whole; reads it only if this process neither wrote nor read it."""
    if not last.is_file():
        return False
    if _verified.get(last.absolute()) == _identity(last):
        return True
    try:
        _check_digest(last)
    except (CheckpointError, OSError) as error:
        logger.warning("not kept as %s: %s", PREVIOUS, error)
        return False
    return True


def _keep_as(source: Path, target: Path) -> None:
    """Gives the file a second name, replacing what bore it, in one step."""
    temporary = _temporary_for(target)
    try:
        _link_or_copy(source, temporary)
        os.replace(temporary, target)
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


def _link_or_copy(source: Path, target: Path) -> None:
    """Makes `target` a second name of `source`, or a copy where the file system has no hard links."""
    target.unlink(missing_ok=True)
    try:
        os.link(source, target)
        return
    except OSError:
        logger.debug("no hard links in %s, copying instead", source.parent)
    try:
        with open(source, "rb") as reader, open(target, "xb") as writer:
            shutil.copyfileobj(reader, writer, _CHUNK_BYTES)
            writer.flush()
            os.fsync(writer.fileno())
    except OSError as error:
        with contextlib.suppress(OSError):
            target.unlink(missing_ok=True)
        raise _write_error(target, error, needed=source.stat().st_size) from error


def _remove_leftovers(folder: Path) -> None:
    """Removes temporary files that an interrupted save left; one run writes to a folder at a time."""
    for path in folder.glob(".checkpoint-*.pth.*.tmp"):
        logger.warning("removing %s, left by a save that was interrupted", path)
        path.unlink(missing_ok=True)


# ------------------------------------------------------------------------------------------------------------
# What travels in a checkpoint
# ------------------------------------------------------------------------------------------------------------
