"""What fine-tuning leaves behind: log.txt, TensorBoard events, one folder a fit, metrics.json, pictures."""

from __future__ import annotations

import json
import math
import os
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from util.checkpoints import resume_state
from util.checkpoints.run_checkpoints import move_to_earlier
from util.plots.reconstruction import save_figure
from util.records.log import JsonLines, Writer, make_writer, plain

FACTS, METRICS, FITS = "run.json", "metrics.json", "fits"
EVALUATION = "evaluation.json"
PICTURES = ("scores", "map", "confusion", "success_rate", "calibration")
OF_A_RUN = (FACTS, METRICS, FITS, "confusion.csv", "checkpoint-*.pth", "log.txt", "reconstruction-*.png") + tuple(
    f"{name}.png" for name in PICTURES
)
"""What is moved aside when another run begins in the same folder; pre-training's records, too."""
EVENTS = "events.out.tfevents.*"


class FinetuneFiles:
    """Writes the records of a run of several fits; does nothing in processes other than the main one.

    Args:
        output_dir: where everything goes.
        log_dir: TensorBoard events.
        enabled: False in processes that only compute.
    """

    def __init__(self, output_dir: Path, log_dir: Path, *, enabled: bool) -> None:
        self.output_dir, self.log_dir, self._enabled = output_dir, log_dir, enabled
        self._writer: Writer = make_writer(None)
        self._lines: JsonLines | None = None

    def begin(self, facts: Mapping[str, Any], *, resume: bool) -> Path | None:
        """Opens the records: of the run that the folder holds, or afresh after moving an earlier run aside.

        Args:
            facts: what decides the numbers, plain values; kept in run.json.
            resume: go on with what is there.

        Returns:
            Where an earlier run was moved to; None if there was none.

        Raises:
            ValueError: the run to go on with is another one.
        """
        path = self.output_dir / FACTS
        if resume and path.exists():
            resume_state.check_same_configuration(_read_json(path), facts, "run.json")
            aside = None
        else:
            aside = self._set_aside()
            write_json(path, facts)
        self._lines = JsonLines(self.output_dir / "log.txt")
        self._writer = make_writer(self.log_dir)
        return aside

    def _set_aside(self) -> Path | None:
        """Moves all of an earlier run into a new folder earlier-<n>."""
        found = [path for name in OF_A_RUN for path in sorted(self.output_dir.glob(name))]
        found += sorted(self.log_dir.glob(EVENTS))
        return move_to_earlier(found, self.output_dir)

    def folder(self, arm: str, fold: int | None) -> Path:
        """Where a fit keeps its checkpoints; the one on all labels does so in the run's folder itself."""
        return self.output_dir if fold is None else self.output_dir / FITS / f"{arm}-fold{fold}"

    def forget(self, arm: str, fold: int | None, *, from_epoch: int) -> None:
        """Removes what log.txt says of a fit from an epoch on, which will be trained again: each line stands once."""
        if self._lines is None:
            return
        self._lines.close()
        path = self.output_dir / "log.txt"
        lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
        kept = [line for line in lines if not _is_later(json.loads(line), arm, fold, from_epoch)]
        if kept != lines:
            _replace(path, "".join(kept))
        self._lines = JsonLines(path)

    def log(self, record: Mapping[str, Any], *, tags: Mapping[str, float], step: int) -> None:
        """Writes one line of the log, and numbers to TensorBoard."""
        for tag, value in tags.items():
            if value is not None and math.isfinite(value):
                self._writer.scalar(tag, value, step)
        self._writer.flush()
        if self._lines is not None:
            self._lines.write(record)

    def outcome(self, arm: str, fold: int) -> tuple[dict[str, Any], dict[str, np.ndarray]] | None:
        """What a finished fit was scored, and its arrays; None if it is not finished.

        Raises:
            ValueError: its files are damaged.
        """
        folder = self.output_dir / FITS / f"{arm}-fold{fold}"
        if not (folder / "scores.json").exists():
            return None
        try:
            with np.load(folder / "scores.npz") as arrays:
                return _read_json(folder / "scores.json"), dict(arrays)
        except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
            raise ValueError(
                f"{folder}: the scores of a finished fit cannot be read ({error}); remove scores.json and scores.npz "
                "there, and --resume auto scores that fit again"
            ) from error

    def keep(self, arm: str, fold: int, scores: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> None:
        """Writes what a fit was scored: the fit is finished once this is there."""
        if not self._enabled:
            return
        folder = self.output_dir / FITS / f"{arm}-fold{fold}"
        folder.mkdir(parents=True, exist_ok=True)
        temporary = folder / ".scores.tmp.npz"
        np.savez_compressed(temporary, **arrays)  # type: ignore[arg-type]
        os.replace(temporary, folder / "scores.npz")
        write_json(folder / "scores.json", scores)

    def write(self, name: str, table: Mapping[str, Any]) -> Path:
        """Writes a table as JSON; returns its path."""
        if self._enabled:
            write_json(self.output_dir / name, table)
        return self.output_dir / name

    def draw(self, name: str, figure: Figure, step: int = 0) -> Path:
        """Writes a picture as PNG and into TensorBoard; returns its path."""
        path = self.output_dir / f"{name}.png"
        if self._enabled:
            self._writer.figure(name, figure, step)
            save_figure(path, figure)
        return path

    def describe(self, tables: Mapping[str, Mapping[str, Any]]) -> None:
        """Puts tables of facts into TensorBoard."""
        for name, table in tables.items():
            rows = "\n".join(f"| {key} | {value} |" for key, value in table.items())
            self._writer.text(name, f"| | |\n|---|---|\n{rows}")

    def close(self) -> None:
        """Closes the records; what a full disk has no room for is lost."""
        with suppress(OSError):
            self._writer.close()
        if self._lines is not None:
            with suppress(OSError):
                self._lines.close()


def _is_later(line: Mapping[str, Any], arm: str, fold: int | None, epoch: int) -> bool:
    """Whether a line is of such an epoch of a fit, or of its scores."""
    return line.get("arm") == arm and line.get("fold") == fold and line.get("epoch", math.inf) >= epoch


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path}: no JSON ({error}); restore it, or start afresh in another --output_dir") from error


def write_json(path: Path, value: Any) -> None:
    """Writes a file of JSON whole or not at all; NaN and infinities become null."""
    _replace(path, json.dumps(plain(value), indent=1, allow_nan=False) + "\n")


def _replace(path: Path, text: str) -> None:
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        temporary.write_text(text, encoding="utf-8")
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def flat_numbers(table: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, float]]:
    """(dotted name, number) of every number in nested dicts; lists are passed over."""
    for key, value in table.items():
        if isinstance(value, Mapping):
            yield from flat_numbers(value, f"{prefix}{key}/")
        elif isinstance(value, int | float) and not isinstance(value, bool):
            yield f"{prefix}{key}", float(value)
