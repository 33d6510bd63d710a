"""Output files of fine-tuning: log.txt, TensorBoard events, one folder per fit, metrics.json and figures."""

from __future__ import annotations

import json
import math
import os
import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from util.checkpoints import resume_state
from util.checkpoints.run_checkpoints import move_to_earlier, owns_events
from util.hardware.system import replace_file
from util.plots.reconstruction import save_figure
from util.records import tags as tag
from util.records.log import JsonLines, Writer, make_writer, plain
from util.run_page.finetuning import BASELINE_MAPS
from util.run_page.page import PAGE_FILES, RunPage
from util.run_page.record import read_records

SETTINGS, METRICS, FITS = "run.json", "metrics.json", "fits"
EVALUATION = "evaluation.json"
FIGURES = ("scores", "map", "confusion", "success_rate", "calibration")
RUN_FILES = (
    (SETTINGS, METRICS, FITS, BASELINE_MAPS, "confusion.csv", "checkpoint-*.pth", "log.txt", "reconstruction-*.png")
    + tuple(f"{name}.png" for name in FIGURES)
    + PAGE_FILES
)
"""Files that are moved aside when another run begins in the same folder; records of pre-training, too."""
EVENTS, CURVES = "events.out.tfevents.*", "curves"
"""TensorBoard: pictures and tables of the whole run, and a folder with a run for each fit."""
_TAGS = {
    "validation": f"{tag.SCORE}/validation",
    "loss": f"{tag.LOSS}/training",
    "lr": f"{tag.OPTIMISER}/lr",
    "grad_norm": f"{tag.OPTIMISER}/grad_norm",
    "tiles_per_s": f"{tag.SPEED}/tiles_per_s",
    "wait_share": f"{tag.SPEED}/wait_share",
    "cpu_seconds": f"{tag.SPEED}/cpu_seconds",
    "peak_memory_mb": f"{tag.MEMORY}/peak_mb",
}
"""Key of an epoch's record -> the tag of its curve, the same in all fits."""


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
        self._fits: dict[str, Writer] = {}
        self._options: Mapping[str, Any] = {}
        self._lines: JsonLines | None = None
        self._page = RunPage(output_dir, "main_finetune", enabled=enabled)
        self._is_resumed, self._facts, self._fits_done = False, dict[str, Any](), 0
        self._overview: Callable[[], dict[str, Any]] | None = None

    def begin(
        self,
        settings: Mapping[str, Any],
        *,
        resume: bool,
        overview: Callable[[], dict[str, Any]] | None = None,
        facts: Mapping[str, Any] | None = None,
    ) -> Path | None:
        """Opens the records of the run in the folder to continue it, or starts new ones and moves an earlier run aside.

        Args:
            settings: everything that decides the numbers, plain values; written to run.json.
            resume: continue the run in the folder.
            overview: gives what was read, for the page.
            facts: task, methods and folds, likewise.

        Returns:
            Where an earlier run was moved to; None if there was none.

        Raises:
            ValueError: the run in the folder has other settings.
        """
        path = self.output_dir / SETTINGS
        if resume and path.exists():
            resume_state.check_same_configuration(_read_json(path), settings, "run.json")
            aside = None
        else:
            aside = self._set_aside()
            write_json(path, settings)
        self._is_resumed, self._overview, self._facts = aside is None and resume, overview, dict(facts or {})
        self._lines = JsonLines(self.output_dir / "log.txt")
        self._writer = make_writer(self.log_dir)
        return aside

    def _set_aside(self) -> Path | None:
        """Moves all files of an earlier run into a new folder earlier-<n>."""
        found = [path for name in RUN_FILES for path in sorted(self.output_dir.glob(name))]
        recorded = [run.facts.get("log_dir") for run in read_records(self.output_dir)]
        if owns_events(self.log_dir, self.output_dir, recorded=recorded, holds_run=bool(found)):
            found += [path for name in (EVENTS, CURVES) for path in sorted(self.log_dir.glob(name))]
        return move_to_earlier(found, self.output_dir)

    def folder(self, method: str, fold: int | None) -> Path:
        """The folder of a fit's checkpoints; for the fit on all labels it is the run's own."""
        return self.output_dir if fold is None else self.output_dir / FITS / f"{method}-fold{fold}"

    def forget(self, method: str, fold: int | None, *, epochs_done: int, step: int = 0) -> None:
        """Removes the records of a fit about epochs after those that are done, which are trained again.

        Args:
            method: name of the method.
            fold: number of the fold; None for all labels.
            epochs_done: epochs that are not trained again.
            step: updates that are not.
        """
        if self._enabled:
            self._fit_writer(method, fold, purge_step=step + 1 if step else None)
        if self._lines is None:
            return
        self._lines.close()
        path = self.output_dir / "log.txt"
        lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
        kept = [line for line in lines if not _is_later(json.loads(line), method, fold, epochs_done)]
        if kept != lines:
            _replace(path, "".join(kept))
        self._lines = JsonLines(path)

    def log_epoch(self, record: Mapping[str, Any]) -> None:
        """Writes the record of an epoch of the fit of its `arm` and `fold` to the log, and numbers to TensorBoard."""
        self._log(record, {name: record.get(key) for key, name in _TAGS.items()}, step=record["step"])
        fold = "all labels" if record["fold"] is None else f"fold {record['fold']}"
        self._page.update(progress=f"{record['arm']}, {fold}: epoch {record['epoch']} done")

    def _log(self, record: Mapping[str, Any], tags: Mapping[str, float | None], *, step: int) -> None:
        if not self._enabled:
            return
        writer = self._fit_writer(record["arm"], record["fold"])
        for name, value in tags.items():
            if value is not None and math.isfinite(value):
                writer.scalar(name, value, step, about=tag.about(name))
        writer.flush()
        if self._lines is not None:
            self._lines.write(record)

    def _fit_writer(self, method: str, fold: int | None, *, purge_step: int | None = None) -> Writer:
        """TensorBoard events of a fit, a run of its own."""
        name = f"{method}-{'all' if fold is None else f'fold{fold}'}"
        if name not in self._fits:
            self._fits[name] = make_writer(self.log_dir / CURVES / name, purge_step=purge_step)
        return self._fits[name]

    def log_scores(self, method: str, fold: int, record: Mapping[str, Any]) -> None:
        """Writes the scores and costs of a finished fit to the log, and its test scores to TensorBoard."""
        tags = {f"{tag.SCORE}/{name}": value for name, value in flat_numbers(record["test"]) if _is_score(name)}
        self._log({"kind": "score", "arm": method, "fold": fold, **record}, tags, step=0)
        self._page.update(progress=f"{method}, fold {fold} done")
        if self._enabled:
            final = {f"final/{name.partition('/')[2]}": value for name, value in tags.items()}
            self._fit_writer(method, fold).hparams({"method": method, "fold": fold, **self._options}, final)

    def fold_scores(self, method: str, fold: int) -> tuple[dict[str, Any], dict[str, np.ndarray]] | None:
        """The scores of a finished fit, and its arrays; None if it is not finished.

        Raises:
            ValueError: its files are damaged.
        """
        folder = self.output_dir / FITS / f"{method}-fold{fold}"
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

    def write_fold_scores(
        self, method: str, fold: int, scores: Mapping[str, Any], arrays: Mapping[str, np.ndarray]
    ) -> None:
        """Writes the scores of a fit, which mark it as finished."""
        if not self._enabled:
            return
        folder = self.output_dir / FITS / f"{method}-fold{fold}"
        folder.mkdir(parents=True, exist_ok=True)
        temporary = folder / ".scores.tmp.npz"
        np.savez_compressed(temporary, **arrays)  # type: ignore[arg-type]
        replace_file(temporary, folder / "scores.npz")
        write_json(folder / "scores.json", scores)

    def write(self, name: str, table: Mapping[str, Any]) -> Path:
        """Writes a table as JSON; returns its path."""
        if self._enabled:
            write_json(self.output_dir / name, table)
        return self.output_dir / name

    def draw(self, name: str, figure: Figure, step: int = 0) -> Path:
        """Writes a figure as PNG and into TensorBoard; returns its path."""
        path = self.output_dir / f"{name}.png"
        if self._enabled:
            self._writer.figure(name, figure, step)
            save_figure(path, figure)
        return path

    def describe(self, tables: Mapping[str, Mapping[str, Any]]) -> None:
        """Writes tables of settings, `options` and `environment` among them, into TensorBoard; begins the page."""
        self._options = tables.get("options", {})
        for name, table in tables.items():
            rows = "\n".join(f"| {key} | {value} |" for key, value in table.items())
            self._writer.text(name, f"| | |\n|---|---|\n{rows}")
        self._page.begin(
            resumed=self._is_resumed,
            options=self._options,
            environment=tables.get("environment", {}),
            overview=self._overview,
            facts={"log_dir": str(self.log_dir), **self._facts},
        )

    def finish(self) -> None:
        """Notes that all fits are done and reported, for the page."""
        self._page.finish()

    def close(self, error: BaseException | None = None) -> None:
        """Closes the records; on a full disk their last lines are lost.

        Args:
            error: what ended the run, for its page.
        """
        self._page.end(error)
        for writer in (self._writer, *self._fits.values()):
            with suppress(OSError):
                writer.close()
        if self._lines is not None:
            with suppress(OSError):
                self._lines.close()


def _is_score(name: str) -> bool:
    """Whether a number of the test scores deserves a curve: neither one of a single class nor a count."""
    return "/" not in name and name not in ("count", "classes")


def _is_later(line: Mapping[str, Any], method: str, fold: int | None, epochs_done: int) -> bool:
    """Whether a line is about a fit's scores, or about an epoch, counted from 1, after those that are done."""
    return line.get("arm") == method and line.get("fold") == fold and line.get("epoch", math.inf) > epochs_done


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(
            f"{path}: not valid JSON ({error}); restore it, or start a new run in another --output_dir"
        ) from error


def write_json(path: Path, value: Any) -> None:
    """Writes a JSON file as a whole or not at all; NaN and infinities become null."""
    _replace(path, json.dumps(plain(value), indent=1, allow_nan=False) + "\n")


def _replace(path: Path, text: str) -> None:
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        temporary.write_text(text, encoding="utf-8")
        replace_file(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def flat_numbers(table: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, float]]:
    """(dotted name, number) of every number in nested dicts; lists are skipped."""
    for key, value in table.items():
        if isinstance(value, Mapping):
            yield from flat_numbers(value, f"{prefix}{key}/")
        elif isinstance(value, int | float) and not isinstance(value, bool):
            yield f"{prefix}{key}", float(value)
