"""Exported files: refused where something stands already, and whole or not there."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from util.checkpoints.checkpoint_file import temporary_path
from util.hardware.system import replace_file


def check_free(path: Path, *, overwrite: bool) -> None:
    """Checks that a file and its model card can be written, and makes their folder.

    Raises:
        ValueError: one of them exists and is not to be replaced, or is a folder.
        OSError: the folder cannot be made.
    """
    for each in (path, card_path(path)):
        if each.is_dir():
            raise ValueError(f"--output {path}: {each} is a folder; give the path of a file")
        if each.exists() and not overwrite:
            raise ValueError(f"--output {path}: {each} exists; give another path, or --overwrite to replace it")
    path.parent.mkdir(parents=True, exist_ok=True)


def card_path(path: Path) -> Path:
    """Where the model card of an exported file goes: beside it, under its whole name, as formats share a stem."""
    return path.with_name(f"{path.name}.md")


@contextlib.contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """A temporary path beside a file, which is renamed to it if nothing goes wrong and removed otherwise."""
    temporary = temporary_path(path)
    try:
        yield temporary
        replace_file(temporary, path)
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
