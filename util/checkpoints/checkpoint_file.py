"""One checkpoint file: written whole or not at all, checked byte for byte when read.

A checkpoint is an ordinary `torch.save` file, so any tool can open it with `torch.load(path, weights_only=True)`. It
differs in its zip comment, which ends the file and holds the optimiser step and the SHA-256 of everything before it:

    GRID-MAE step=000000001200 sha256=<64 hexadecimal digits>

torch does not check the CRC-32 of what it reads, and a CRC does not cover the zip's own headers; the digest covers all.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import logging
import os
import pickle
import re
import shutil
import struct
import zipfile
from collections import OrderedDict
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, BinaryIO, cast

import torch

from util.hardware.system import replace_file

logger = logging.getLogger(__name__)

LAST = "checkpoint-last.pth"
"""The newest checkpoint of a run, in its folder."""

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

_COMMENT = re.compile(rb"GRID-MAE step=(\d{12}) sha256=([0-9a-f]{64})")
_COMMENT_BYTES = len(b"GRID-MAE step=" + b"0" * 12 + b" sha256=" + b"0" * 64)
_DIGEST_BYTES = 64  # the hexadecimal digest, last in the file and the only part it does not cover
CHUNK_BYTES = 1 << 22
_PLAIN_TYPES = (str, int, float, bool, bytes, type(None))

_verified: dict[Path, tuple[int, int, int]] = {}
"""(inode, size, mtime) of files when this process wrote or checked them: they need no second reading."""


class CheckpointError(ValueError):
    """A checkpoint is damaged, incomplete or unsafe to load; says which file, why and what to do."""


class _DigestingFile:
    """A write-only file for torch.save that hashes all bytes, and remembers the first error instead of raising it.

    torch's zip writer turns an exception in the middle of a record into different errors in different versions, and
    warns from a destructor. Here the writes after an error are only counted, so that the whole size is known when
    `seal` reports it.
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
        """Writes `data` (bytes-like), holding back the last two bytes so far; returns its length."""
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
        """Does nothing: the file is synced once, by `seal`."""

    def seal(self, step: int) -> None:
        """Ends the file with the zip comment (step, digest of every byte before the digest) and syncs it to disk.

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
    """Writes `state` to `path` whole or not at all: to a temporary file in the same folder, synced, then renamed.

    Args:
        path: the file to write; an existing one is replaced only when the new one is complete on disk.
        state: tensors, str, int, float, bool, bytes, None, and dicts, lists and tuples of them.
            `state["step"]`, if there, is the number of optimiser updates, repeated at the end of the file.

    Raises:
        TypeError: a value that `torch.load(weights_only=True)` would refuse; names its place in `state`.
        OSError: the file could not be written (full disk, file-size limit, no permission); the temporary file is
            removed, and earlier files are unchanged.
    """
    path = Path(path)
    _check_plain(state, "state")
    temporary = temporary_path(path)
    needed: int | None = None
    try:
        temporary.unlink(missing_ok=True)
        with open(temporary, "xb", buffering=0) as raw:
            out = _DigestingFile(raw)
            torch.save(dict(state), cast(BinaryIO, out))
            needed = out.size_sealed
            out.seal(int(state.get("step", 0)))
        replace_file(temporary, path)
    except OSError as error:
        raise write_error(path, error, needed=needed) from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
    sync_folder(path.parent)
    _remember(path)


def checkpoint_in(path: str | os.PathLike[str]) -> Path:
    """The file that a path names; of the folder of a run its last checkpoint, which is logged.

    Raises:
        FileNotFoundError: a folder without a last checkpoint.
    """
    path = Path(path).expanduser()
    if not path.is_dir():
        return path
    if not (path / LAST).is_file():
        raise FileNotFoundError(f"checkpoint {path}: a folder without {LAST}; give the path of a checkpoint")
    logger.info("checkpoint %s: a folder, of which %s is taken", path, LAST)
    return path / LAST


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
        CheckpointError: cut short, damaged, not written by this program, without a required key, or holding anything
            but plain data (a pickle that would run code is refused, not run).
    """
    path = checkpoint_in(path)
    if not path.is_file():
        raise FileNotFoundError(f"checkpoint {path}: no such file; give the path of a checkpoint-<epoch>.pth")
    check_digest(path)
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


def check_digest(path: Path) -> None:
    """Raises CheckpointError unless the file ends with the digest of all bytes before it."""
    size = path.stat().st_size
    with open(path, "rb") as file:
        comment = read_comment(file, size)
        if comment is None:
            raise CheckpointError(
                f"checkpoint {path}: cut short, damaged, or not written by this program: its {size} bytes "
                "do not end with a checksum; use an earlier checkpoint"
            )
        file.seek(0)
        digest = hashlib.sha256()
        left = size - _DIGEST_BYTES
        while left and (chunk := file.read(min(left, CHUNK_BYTES))):
            digest.update(chunk)
            left -= len(chunk)
    found, expected = digest.hexdigest(), comment[1]
    if found != expected:
        raise CheckpointError(
            f"checkpoint {path}: damaged, the SHA-256 of its contents is {found[:12]}..., expected "
            f"{expected[:12]}...; use an earlier checkpoint"
        )


def read_comment(file: BinaryIO, size: int) -> tuple[int, str] | None:
    """Returns (step, digest) from the end of an open checkpoint of `size` bytes, None where there is none."""
    if size <= _COMMENT_BYTES:
        return None
    file.seek(size - _COMMENT_BYTES)
    match = _COMMENT.fullmatch(file.read(_COMMENT_BYTES))
    return (int(match[1]), match[2].decode()) if match else None


def _check_plain(value: Any, place: str) -> None:
    """Raises TypeError, naming the place, for a value that a weights-only load would refuse."""
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


def is_verified(path: Path) -> bool:
    """Whether this process wrote or checked the file, and it has not changed since."""
    return _verified.get(path.absolute()) == _identity(path)


def _identity(path: Path) -> tuple[int, int, int]:
    stat = path.stat()
    return stat.st_ino, stat.st_size, stat.st_mtime_ns


def _remember(path: Path) -> None:
    _verified[path.absolute()] = _identity(path)


def temporary_path(path: Path) -> Path:
    """Hidden name beside a file, of this process alone, to write to before renaming."""
    return path.with_name(f".{path.name}.{os.getpid()}.tmp")


def write_error(path: Path, error: OSError, *, needed: int | None) -> OSError:
    """Returns the OSError to raise: the file, the cause, bytes needed and free, and the remedy."""
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


def sync_folder(folder: Path) -> None:
    """Makes renames in the folder survive a power cut, where the system can sync a folder."""
    with contextlib.suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def _first_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0][:200]}" if lines else type(error).__name__
