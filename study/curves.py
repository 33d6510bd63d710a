"""Validation scores of fits, epoch by epoch: where they were best, and how long they took to reach a score."""

from __future__ import annotations

import csv
import math
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from study.cells import as_text, read_cost, read_count, read_name, read_one_of, read_share
from study.regimes import BLOCKS, Regime
from study.results import KEYS, MODES
from util.hardware.system import written_whole

CURVES = "curves.csv"
COLUMNS = (*KEYS, "train_s", "scores")
UNDEFINED = "-"
"""In place of a score that validation ground did not allow, as where it has one class alone."""


@dataclass(frozen=True)
class Curve:
    """The validation of one fit; ground and score are the same for all fits of a fold.

    Attributes:
        arm: name of the arm.
        mode: one of `results.MODES`.
        label_fraction: share of the training labels used, 1 with `label_blocks`.
        seed: as in the results.
        fold: number of the fold.
        train_s: seconds of training of all epochs, without validation.
        scores: of each epoch, more is better; NaN = undefined; a single one of trees, which have no epochs.
        label_blocks: number of whole blocks of labels used; 0: a share.
    """

    arm: str
    mode: str
    label_fraction: float
    seed: int
    fold: int
    train_s: float
    scores: tuple[float, ...]
    label_blocks: int = 0

    @property
    def regime(self) -> Regime:
        """The labels it was fitted on."""
        return Regime(self.label_fraction, self.label_blocks)

    @property
    def best_epoch(self) -> int | None:
        """Number of the first epoch, from 1, with the best score; None if no epoch has one."""
        known = [score for score in self.scores if not math.isnan(score)]
        return 1 + self.scores.index(max(known)) if known else None

    def seconds_to(self, score: float) -> float:
        """Seconds of training up to the end of the first epoch with at least that score; infinite if none has it.

        All epochs have as many windows, so each is taken to have had the same part of the time.
        """
        first = next((epoch for epoch, of in enumerate(self.scores, start=1) if of >= score), None)
        return math.inf if first is None else self.train_s * first / len(self.scores)


def read_curves(path: Path) -> list[Curve]:
    """Reads a table of curves; none if there is no such file, as of fits of fixed length.

    Raises:
        ValueError: a column is missing, or a cell is not what it should be; with its row.
    """
    if not path.is_file():
        return []
    with open(path, newline="", encoding="utf-8") as file:
        reader = csv.DictReader(file)
        missing = [name for name in COLUMNS if name not in (reader.fieldnames or ())]
        if missing:
            raise ValueError(
                f"{path}: row 1 has no column '{missing[0]}', expected {', '.join(COLUMNS)}; remove the file, and run "
                "the study again, which writes it anew"
            )
        return [_curve_of(path, reader.line_num, row) for row in reader]


def _curve_of(path: Path, line: int, row: dict[str, str]) -> Curve:
    try:
        scores = tuple(math.nan if of == UNDEFINED else float(of) for of in row["scores"].split())
        seconds = read_cost(row["train_s"])
        if seconds is None or not scores or any(math.isinf(of) for of in scores):
            raise ValueError
        return Curve(
            read_name(row["arm"]),
            read_one_of(MODES)(row["mode"]),
            read_share(row["label_fraction"]),
            read_count(row["seed"]),
            read_count(row["fold"]),
            seconds,
            scores,
            read_count(row.get(BLOCKS) or "0"),
        )
    except (ValueError, TypeError, AttributeError):  # a short row has None in its last cells
        raise ValueError(
            f"{path}: row {line} cannot be read, expected {', '.join(COLUMNS)} with a score for each epoch; remove the "
            "file, and run the study again, which writes it anew"
        ) from None


def write_curves(path: Path, curves: Iterable[Curve]) -> None:
    """Writes a table of curves, a row for each fit, whole or not at all."""
    kept = list(curves)
    with_blocks = any(of.label_blocks for of in kept)
    with written_whole(path) as waiting, open(waiting, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow([*COLUMNS, *[BLOCKS] * with_blocks])
        for of in kept:
            scores = " ".join(as_text(score) or UNDEFINED for score in of.scores)
            row = (of.arm, of.mode, as_text(of.label_fraction), of.seed, of.fold, as_text(of.train_s), scores)
            writer.writerow([*row, *[of.label_blocks or ""] * with_blocks])
