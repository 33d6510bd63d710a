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
import hashlib
import io
import logging
import os
import pickle
import random
import re
import shutil
import struct
import zipfile
from collections import OrderedDict
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, cast

import numpy as np
import torch

logger = logging.getLogger(__name__)

CHECKPOINT_KEYS = (
    "model",
    "optimizer",
    "scaler",
    "epoch",
    "update",
    "step",
    "rng",
    "model_config",
    "layers",
    "statistics",
    "options",
    "version",
)
LAST = "checkpoint-last.pth"
PREVIOUS = "checkpoint-previous.pth"
RUN_FILES = ("checkpoint-*.pth", "log.txt", "layers.csv", "categories.csv", "statistics.json", "reconstruction-*.png")

_COMMENT = re.compile(rb"GRID-MAE step=(\d{12}) sha256=([0-9a-f]{64})")
_COMMENT_BYTES = len(b"GRID-MAE step=" + b"0" * 12 + b" sha256=" + b"0" * 64)
_DIGEST_BYTES = 64  # the hexadecimal digest, last in the file and the only part it does not cover
_CHUNK_BYTES = 1 << 22
_PLAIN_TYPES = (str, int, float, bool, bytes, type(None))
# Files that this process wrote or checked, with their (inode, size, mtime) then: they need no second reading.
_verified: dict[Path, tuple[int, int, int]] = {}


class CheckpointError(ValueError):
    """A checkpoint is damaged, incomplete or unsafe to load; says which file, why and what to do."""


class Resumable(NamedTuple):
    """The checkpoint to go on from: path and contents, and (path, reason) of each newer one passed over."""

    path: Path
    state: dict[str, Any]
    skipped: list[tuple[Path, str]]


# ------------------------------------------------------------------------------------------------------------
# One file
# ------------------------------------------------------------------------------------------------------------


class _DigestingFile:
    """A write-only file for torch.save that hashes what passes and keeps the first error instead of raising
    it.

    torch's zip writer turns an exception in the middle of a record into different errors in different
    versions, and warns from a destructor. Here the remaining writes are only counted, so that the whole size
    is known when `seal` reports the error.
    """

    def __init__(self, raw: io.RawIOBase) -> None:
        self._raw = raw
        self._held = b""  # the zip's last two bytes, the comment's length, are only known to be the last in seal()
        self._digest = hashlib.sha256()
        self._error: OSError | None = None
        self._size = 0  # bytes asked to be written, whether or not they could be

    @property
    def size_sealed(self) -> int:
        """Bytes the file will have when the zip written so far is sealed."""
        return self._size + len(self._held) + _COMMENT_BYTES

    def write(self, data: Any) -> int:
        """Writes `data` (bytes-like) but for the last two bytes seen so far; returns its length."""
        view = memoryview(data).cast("B")
        if len(view) >= 2:
            self._put(self._held)
            self._put(view[:-2])
            self._held = bytes(view[-2:])
        else:
            both = self._held + bytes(view)
            self._put(both[:-2])
            self._held = both[-2:]
        return len(view)

    def flush(self) -> None:
        """Does nothing: the file is synchronised once, by `seal`."""

    def seal(self, step: int) -> None:
        """Ends the file with the zip comment (step, digest of every byte before the digest) and synchronises
        it.

        Raises:
            OSError: the first error of any write.
        """
        self._put(struct.pack("<H", _COMMENT_BYTES) + b"GRID-MAE step=%012d sha256=" % step)
        self._put(self._digest.hexdigest().encode())
        if self._error is not None:
            raise self._error
        os.fsync(self._raw.fileno())

    def _put(self, data: bytes | memoryview) -> None:
        self._size += len(data)
        self._digest.update(data)
        view = memoryview(data)
        try:
            while len(view) and self._error is None:
                view = view[self._raw.write(view) :]  # the system may take less than it is given
        except OSError as error:
            self._error = error


def save_checkpoint(path: str | os.PathLike[str], state: Mapping[str, Any]) -> None:
    """Writes `state` to `path` whole or not at all: to a temporary file in the same folder, synchronised,
    then renamed.

    Args:
        path: the file to write; an existing one is replaced only when the new one is complete on disk.
        state: tensors, str, int, float, bool, bytes, None, and dicts, lists and tuples of them.
            `state["step"]`, if there, is the number of optimiser updates and is repeated at the end of the
            file.

    Raises:
        TypeError: a value that `torch.load(weights_only=True)` would refuse, named by its place in `state`.
        OSError: the file could not be written (full disk, file-size limit, no permission): the temporary file
            is removed, and files written earlier are as they were.
    """
    path = Path(path)
    _check_plain(state, "state")
    temporary = _temporary_for(path)
    needed: int | None = None
    try:
        temporary.unlink(missing_ok=True)
        with open(temporary, "xb", buffering=0) as raw:
            out = _DigestingFile(raw)
            torch.save(dict(state), cast(BinaryIO, out))
            needed = out.size_sealed
            out.seal(int(state.get("step", 0)))
        os.replace(temporary, path)
    except OSError as error:
        raise _write_error(path, error, needed=needed) from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
    _sync_folder(path.parent)
    _remember(path)


def load_checkpoint(
    path: str | os.PathLike[str],
    map_location: str | torch.device = "cpu",
    *,
    required: Collection[str] = CHECKPOINT_KEYS,
) -> dict[str, Any]:
    """Returns the contents of the checkpoint at `path` after checking every byte of it.

    Args:
        path: a file written by `save_checkpoint`.
        map_location: device of the tensors returned.
        required: keys that must be there.

    Raises:
        FileNotFoundError: no such file.
        CheckpointError: cut short, damaged, not one of ours, without a required key, or holding anything but
            plain data (a pickle that would run code is refused, not run).
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"checkpoint {path}: no such file; give the path of a checkpoint-<epoch>.pth")
    _check_digest(path)
    try:
        state = torch.load(path, map_location=map_location, weights_only=True)
    except pickle.UnpicklingError as error:
        raise CheckpointError(
            f"checkpoint {path}: refused, it holds Python objects other than plain data and tensors, and "
            f"loading those can run any program ({_first_line(error)}); use a checkpoint from a source you "
            "trust, written by this program"
        ) from error
    except (RuntimeError, EOFError, KeyError, ValueError, AttributeError, zipfile.BadZipFile) as error:
        raise CheckpointError(
            f"checkpoint {path}: cannot be read ({_first_line(error)}); use an earlier one"
        ) from error
    if not isinstance(state, dict):
        raise CheckpointError(f"checkpoint {path}: holds a {type(state).__name__}, expected a dict of {list(required)}")
    missing = [key for key in required if key not in state]
    if missing:
        raise CheckpointError(
            f"checkpoint {path}: {', '.join(missing)} missing, found only "
            f"{', '.join(map(str, state)) or 'nothing'}; it is not a checkpoint of this kind of run, use "
            "one that main_pretrain.py wrote"
        )
    _remember(path)
    return state


def _check_digest(path: Path) -> None:
    """Raises CheckpointError unless the file ends with the digest of all bytes before it."""
    size = path.stat().st_size
    with open(path, "rb") as file:
        comment = _read_comment(file, size)
        if comment is None:
            raise CheckpointError(
                f"checkpoint {path}: cut short, damaged, or not written by this program: its {size} bytes "
                "do not end with a checksum; use an earlier checkpoint"
            )
        file.seek(0)
        digest = hashlib.sha256()
        left = size - _DIGEST_BYTES
        while left and (chunk := file.read(min(left, _CHUNK_BYTES))):
            digest.update(chunk)
            left -= len(chunk)
    found, expected = digest.hexdigest(), comment[1]
    if found != expected:
        raise CheckpointError(
            f"checkpoint {path}: damaged, the SHA-256 of its contents is {found[:12]}..., expected "
            f"{expected[:12]}...; use an earlier checkpoint"
        )


def _read_comment(file: BinaryIO, size: int) -> tuple[int, str] | None:
    """Returns (step, digest) from the end of an open checkpoint of `size` bytes, None where there is none."""
    if size <= _COMMENT_BYTES:
        return None
    file.seek(size - _COMMENT_BYTES)
    match = _COMMENT.fullmatch(file.read(_COMMENT_BYTES))
    return (int(match[1]), match[2].decode()) if match else None


def _check_plain(value: Any, place: str) -> None:
    """Raises TypeError, naming the place, for what a weights-only load would refuse."""
    if type(value) in _PLAIN_TYPES or isinstance(value, torch.Tensor):
        return
    if type(value) in (dict, OrderedDict):
        for key, item in value.items():
            if type(key) not in _PLAIN_TYPES:
                raise TypeError(f"{place}: key {key!r} is a {type(key).__name__}, expected str or int")
            _check_plain(item, f"{place}[{key!r}]")
    elif type(value) in (list, tuple):
        for index, item in enumerate(value):
            _check_plain(item, f"{place}[{index}]")
    else:
        raise TypeError(
            f"{place} is a {type(value).__module__}.{type(value).__name__}, which a safe load refuses; "
            "store a tensor, str, int, float, bool, list or dict"
        )


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


def _identity(path: Path) -> tuple[int, int, int]:
    stat = path.stat()
    return stat.st_ino, stat.st_size, stat.st_mtime_ns


def _remember(path: Path) -> None:
    _verified[path.absolute()] = _identity(path)


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


def _temporary_for(path: Path) -> Path:
    return path.with_name(f".{path.name}.{os.getpid()}.tmp")


def _remove_leftovers(folder: Path) -> None:
    """Removes temporary files that an interrupted save left; one run writes to a folder at a time."""
    for path in folder.glob(".checkpoint-*.pth.*.tmp"):
        logger.warning("removing %s, left by a save that was interrupted", path)
        path.unlink(missing_ok=True)


def _write_error(path: Path, error: OSError, *, needed: int | None) -> OSError:
    """Returns the OSError to raise: what failed, where, bytes needed and free, and what is safe."""
    try:
        free = f"{shutil.disk_usage(path.parent).free} bytes free"
    except OSError:
        free = "free space unknown"
    need = f"{needed} bytes needed, " if needed is not None else ""
    return OSError(
        error.errno,
        f"checkpoint {path} not written: {error.strerror or error} ({need}{free}); earlier checkpoints are "
        "intact. Free some space or raise the limit, then go on with --resume auto",
    )


def _sync_folder(folder: Path) -> None:
    """Makes renames in the folder survive a power cut, where the system lets a folder be synchronised."""
    with contextlib.suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def _first_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0][:200]}" if lines else type(error).__name__


# ------------------------------------------------------------------------------------------------------------
# What travels in a checkpoint
# ------------------------------------------------------------------------------------------------------------


def collect_rng_state(device: torch.device | None = None) -> dict[str, Any]:
    """Returns the states of the global generators of Python, numpy, torch and a CUDA device as plain data."""
    name, keys, position, has_gauss, cached = cast(tuple, np.random.get_state(legacy=True))
    version, internal, gauss_next = random.getstate()
    state: dict[str, Any] = {
        "torch": torch.get_rng_state(),
        "numpy": [
            str(name),
            torch.tensor([int(key) for key in keys]),
            int(position),
            int(has_gauss),
            float(cached),
        ],
        "python": [version, torch.tensor(internal), gauss_next],
    }
    if device is not None and device.type == "cuda":
        state["cuda"] = torch.cuda.get_rng_state(device)
    return state


def restore_rng_state(state: Mapping[str, Any], device: torch.device | None = None) -> None:
    """Puts the generators back as `collect_rng_state` found them; CUDA's where both have such a device."""
    torch.set_rng_state(state["torch"].cpu())
    name, keys, position, has_gauss, cached = state["numpy"]
    np.random.set_state((name, np.asarray(keys.tolist(), dtype=np.uint32), position, has_gauss, cached))
    version, internal, gauss_next = state["python"]
    random.setstate((version, tuple(internal.tolist()), gauss_next))
    if device is not None and device.type == "cuda" and "cuda" in state:
        torch.cuda.set_rng_state(state["cuda"].cpu(), device)


def check_same_configuration(saved: Mapping[str, Any], current: Mapping[str, Any], what: str) -> None:
    """Checks that a run is continued with the configuration that it was begun with.

    Args:
        saved: configuration in the checkpoint, nested dicts and lists of plain values.
        current: the one of this run. Tuples equal lists, and a key 1 equals a key "1", as after JSON.
        what: what they configure, for the message, such as "model" or "layers".

    Raises:
        ValueError: they differ; names every key that does, with both values.
    """
    left, right = dict(_flatten(saved, "")), dict(_flatten(current, ""))
    lines = []
    for key in [*left, *(key for key in right if key not in left)]:
        old, new = left.get(key, "(absent)"), right.get(key, "(absent)")
        if old != new and not (old != old and new != new):  # NaN equals NaN here
            lines.append(f"{key}: checkpoint {old!r}, now {new!r}")
    if lines:
        raise ValueError(
            f"{what} of the checkpoint differs from this run's in {len(lines)} value(s): " + "; ".join(lines) + ". "
            "Give the same values to continue that run, or start afresh without --resume in another "
            "--output_dir"
        )


def _flatten(value: Any, place: str) -> Iterator[tuple[str, Any]]:
    """Yields (dotted place, plain value) of every leaf; an empty dict or list is a leaf."""
    if isinstance(value, Mapping) and value:
        for key, item in value.items():
            yield from _flatten(item, f"{place}.{key}" if place else str(key))
    elif isinstance(value, list | tuple) and value:
        for index, item in enumerate(value):
            yield from _flatten(item, f"{place}[{index}]")
    else:
        yield place, list(value) if isinstance(value, tuple) else value
