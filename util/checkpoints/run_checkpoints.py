"""The checkpoints of a run: the last, the one before and those of epochs, of which one is always good."""

from __future__ import annotations

import contextlib
import logging
import os
import re
import shutil
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch

from util.checkpoints.checkpoint_file import (
    CHECKPOINT_KEYS,
    CHUNK_BYTES,
    LAST,
    CheckpointError,
    check_digest,
    checkpoint_in,
    is_verified,
    load_checkpoint,
    read_comment,
    save_checkpoint,
    sync_folder,
    temporary_path,
    write_error,
)
from util.hardware.system import replace_file

logger = logging.getLogger(__name__)

PREVIOUS = "checkpoint-previous.pth"
RUN_FILES = (
    "checkpoint-*.pth",
    "log.txt",
    "layers.csv",
    "categories.csv",
    "statistics.json",
    "reconstruction-*.png",
    "report.html",
    "report.json",
)

TABLES = ("layers.csv", "categories.csv")
"""Files of a run whose names those of users may have as well."""


class Resumable(NamedTuple):
    """The checkpoint to resume from: path and contents, and (path, reason) of each newer one skipped."""

    path: Path
    state: dict[str, Any]
    skipped: list[tuple[Path, str]]


def save_run_checkpoint(output_dir: str | os.PathLike[str], state: Mapping[str, Any], *, epoch_file: bool) -> Path:
    """Writes checkpoint-last.pth, keeps the one before as checkpoint-previous.pth, and returns the path written.

    Whenever the process is killed, at least one complete checkpoint has a name that `find_resumable` looks for: the
    new file takes the name of the last one in a single rename, and only then does the old one, still held by a second
    hard link (a copy where the file system has none), replace the one before it. A damaged last one does not replace
    a good previous one.

    Args:
        output_dir: folder of the run; made if missing.
        state: contents, see `save_checkpoint`; must have every key of `CHECKPOINT_KEYS`.
        epoch_file: also keep it as checkpoint-<state["epoch"]>.pth.

    Raises:
        KeyError: a key of `CHECKPOINT_KEYS` is missing.
        TypeError, OSError: as `save_checkpoint`; earlier checkpoints are intact.
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
            old_last = temporary_path(previous)
            _link_or_copy(last, old_last)
        save_checkpoint(last, state)
        if old_last is not None:
            replace_file(old_last, previous)
        if epoch_file:
            _keep_as(last, folder / f"checkpoint-{int(state['epoch'])}.pth")
        sync_folder(folder)
    finally:
        if old_last is not None:
            # Two names of the same file: rename() then leaves both, so the temporary one may still be there.
            with contextlib.suppress(OSError):
                old_last.unlink(missing_ok=True)
    return last


def restore_epoch_file(output_dir: str | os.PathLike[str], *, epoch: int, step: int) -> None:
    """Gives the run's checkpoint of a step its second name, checkpoint-<epoch>.pth, unless a file has that name.

    For a run that was killed before it could give its last checkpoint the second name.

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

    Damaged ones are skipped, each with its reason in `skipped`, which the caller logs. Nothing is changed on disk, so
    all ranks may call it. Temporary files of a killed save are ignored; the next save removes them.

    Raises:
        CheckpointError: there are checkpoints but all are damaged; gives the reason of each.
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
    """Returns the state that a run resumes from, None if it starts afresh.

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
        state = load_checkpoint(resume)
        _refuse_finetuned(state, f"--resume {resume}")
        return state
    found = find_resumable(output_dir)
    if found is None:
        logger.info("--resume auto: %s holds no checkpoint, starting afresh", output_dir)
        return None
    for path, reason in found.skipped:
        logger.warning("skipped %s: %s", path, reason)
    _refuse_finetuned(found.state, f"--resume auto, {found.path}")
    logger.info("resuming from %s", found.path)
    return found.state


def continues_in(resume: str, output_dir: Path) -> bool:
    """Whether a run that resumes from the value of --resume goes on in the folder of that checkpoint."""
    return resume in ("", "auto") or checkpoint_in(resume).resolve().parent == output_dir.resolve()


def _refuse_finetuned(state: Mapping[str, Any], where: str) -> None:
    """Refuses a checkpoint of fine-tuning.

    Raises:
        CheckpointError: it is one.
    """
    if "task" in state:
        raise CheckpointError(
            f"{where}: a checkpoint of main_finetune ({state['task'].get('kind', 'labels')}), which pre-training "
            "cannot continue; give one of main_pretrain, or use main_finetune --resume auto in its own --output_dir"
        )


def set_aside(
    output_dir: str | os.PathLike[str],
    log_dir: str | os.PathLike[str] | None = None,
    *,
    recorded: Iterable[str | None] = (),
) -> Path | None:
    """Moves the files of an earlier run into a new folder earlier-<n>; returns it, None if there are none.

    For a run that starts afresh in a folder already used: nothing is overwritten, a later resume cannot mistake the
    earlier run's checkpoints for its own, and TensorBoard shows the earlier run as a run of its own.

    Args:
        output_dir: checkpoints, log, tables and pictures are moved.
        log_dir: TensorBoard events directly in it are moved too, if they are those of the run; default `output_dir`.
        recorded: values of --log_dir that are recorded in `output_dir`.

    Raises:
        ValueError: the folder holds tables of layers alone, so that they are not those of a run.
    """
    folder = Path(output_dir)
    found = [path for pattern in RUN_FILES for path in sorted(folder.glob(pattern)) if path.is_file()]
    if found and all(path.name in TABLES for path in found):
        raise ValueError(
            f"--output_dir {folder} holds {found[0].name} and nothing of an earlier run: it is somebody's own table, "
            "and would be replaced; choose another folder"
        )
    events = Path(log_dir or folder)
    if owns_events(events, folder, recorded=recorded, holds_run=bool(found)):
        found += [path for path in sorted(events.glob("events.out.tfevents.*")) if path.is_file()]
    return move_to_earlier(found, folder)


def owns_events(log_dir: Path, output_dir: Path, *, recorded: Iterable[str | None], holds_run: bool) -> bool:
    """Whether TensorBoard events in a folder belong to the earlier run of another folder; several runs may share one.

    Args:
        log_dir: folder of the events.
        output_dir: folder of the run.
        recorded: values of --log_dir that are recorded in `output_dir`; none if nothing is known.
        holds_run: whether there are other files of an earlier run in `output_dir`.
    """
    known = {Path(text).resolve() for text in recorded if text}
    if log_dir.resolve() == output_dir.resolve():
        return True
    return holds_run and (not known or log_dir.resolve() in known)


def set_newer_aside(output_dir: str | os.PathLike[str], step: int) -> Path | None:
    """Moves checkpoints beyond `step`, or damaged at their end, to a new folder earlier-<n>; returns it, None if none.

    For a run that resumes from an earlier checkpoint than its newest: the next `find_resumable` must not return one of
    the updates that are about to be repeated.
    """
    folder = Path(output_dir)
    steps = {path: _stated_step(path) for path in _candidates(folder)}
    return move_to_earlier([path for path, stated in steps.items() if stated is None or stated > step], folder)


def move_to_earlier(files: Sequence[Path], folder: Path) -> Path | None:
    """Moves files into a new folder earlier-<n> in `folder`; returns it, None if there is nothing to move."""
    if not files:
        return None
    number = 1
    while (folder / f"earlier-{number}").exists():
        number += 1
    target = folder / f"earlier-{number}"
    target.mkdir(parents=True)
    for path in files:
        shutil.move(path, target / path.name)
    return target


def _candidates(folder: Path) -> list[Path]:
    """Returns the run's checkpoint files, newest first by the step each states; those that state none come first.

    A file without a readable end is damaged, so loading it fails fast and is reported; at equal steps
    checkpoint-last.pth comes before that of the epoch.
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
            comment = read_comment(file, path.stat().st_size)
    except OSError:
        return None
    return comment[0] if comment else None


def _worth_keeping(last: Path) -> bool:
    """True if checkpoint-last.pth is whole; reads it only if this process neither wrote nor read it."""
    if not last.is_file():
        return False
    if is_verified(last):
        return True
    try:
        check_digest(last)
    except (CheckpointError, OSError) as error:
        logger.warning("not renamed to %s: %s", PREVIOUS, error)
        return False
    return True


def _keep_as(source: Path, target: Path) -> None:
    """Gives the file a second name, atomically replacing any file of that name."""
    temporary = temporary_path(target)
    try:
        _link_or_copy(source, temporary)
        replace_file(temporary, target)
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


def _link_or_copy(source: Path, target: Path) -> None:
    """Hard-links `target` to `source`, or copies it where the file system has no hard links."""
    target.unlink(missing_ok=True)
    try:
        os.link(source, target)
        return
    except OSError:
        logger.debug("no hard links in %s, copying instead", source.parent)
    try:
        with open(source, "rb") as reader, open(target, "xb") as writer:
            shutil.copyfileobj(reader, writer, CHUNK_BYTES)
            writer.flush()
            os.fsync(writer.fileno())
    except OSError as error:
        with contextlib.suppress(OSError):
            target.unlink(missing_ok=True)
        raise write_error(target, error, needed=source.stat().st_size) from error


def _remove_leftovers(folder: Path) -> None:
    """Removes temporary files that an interrupted save left; one run writes to a folder at a time."""
    for path in folder.glob(".checkpoint-*.pth.*.tmp"):
        logger.warning("removing %s, left by a save that was interrupted", path)
        path.unlink(missing_ok=True)
