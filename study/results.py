"""Results of a study as one tidy table: a row for each spatial block that a run was tested on.

From the sums in it every score can be worked out again for any choice of blocks, so that a report needs nothing else.
A run is an arm with its mode, share of labels, seed and fold.
"""

from __future__ import annotations

import csv
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from study.cells import (
    ERRORS,
    as_text,
    read_cost,
    read_count,
    read_counts,
    read_errors,
    read_name,
    read_numbers,
    read_one_of,
    read_score,
    read_share,
)
from study.regimes import BLOCKS, Regime
from util.hardware.system import replace_file

T = TypeVar("T")

MODES = ("full", "probe", "trees")
"""All weights fine-tuned; a linear probe on frozen weights; trees, which have no weights."""

KEYS = ("arm", "mode", "label_fraction", "seed", "fold")
COSTS = (
    "pretrain_s",
    "finetune_s",
    "pretrain_flops",
    "finetune_flops",
    "pretrain_tiles",
    "finetune_tiles",
    "peak_memory_mb",
    "train_labels",
)
COUNTS = ("hits", "predicted", "labelled")
WINDOWS = ("truth", "shares")
COLUMNS = (*KEYS, "block", "metric", "score", *COUNTS, "errors", *WINDOWS, *COSTS)

SUMS = {"mean_iou": COUNTS, "rmse": ("errors",), "roc_auc": WINDOWS, "balanced_accuracy": WINDOWS}
"""Headline numbers, and the columns that each is worked out from."""

_LONGEST_CELL = 2**27  # characters; the csv module's own limit is 25,000 windows of a block


@dataclass(frozen=True, eq=False)
class Run:
    """One fit and what it was tested on, block by block (B blocks).

    Attributes:
        arm: name of the arm.
        mode: one of MODES.
        label_fraction: share of the training labels used, above 0 up to 1; 1 with `label_blocks`.
        seed: of weights, order and choice of labels.
        fold: number of the fold.
        metric: headline number, a key of SUMS.
        score: that number over the fold, as the program gave it; NaN = undefined.
        blocks: (B,) int64, numbers of the blocks.
        hits: (B, K) right pixels of each class, or None.
        predicted: (B, K) pixels predicted as each class, or None.
        labelled: (B, K) pixels of each class in truth, or None.
        errors: (B, 5) pixels, sums of squared error, of absolute error, of truth and of squared truth, or None.
        truth: B arrays of the classes of windows (1 = deposit for roc_auc).
        shares: B arrays alike: share of class 1 for roc_auc, predicted class for balanced_accuracy.
        pretrain_s: seconds of pre-training: of the processor on a CPU, of the clock on a GPU; shared by all runs
            of the arm and seed. None = not known, as of every cost.
        finetune_s: seconds of fine-tuning, likewise; of this run alone.
        pretrain_flops: operations of pre-training.
        finetune_flops: operations of fine-tuning.
        pretrain_tiles: tiles seen in pre-training.
        finetune_tiles: tiles or windows seen in fine-tuning.
        peak_memory_mb: most memory held.
        train_labels: number of training labels.
        label_blocks: number of whole blocks of labels used; 0: a share.
    """

    arm: str
    mode: str
    label_fraction: float
    seed: int
    fold: int
    metric: str
    score: float
    blocks: np.ndarray
    hits: np.ndarray | None = None
    predicted: np.ndarray | None = None
    labelled: np.ndarray | None = None
    errors: np.ndarray | None = None
    truth: tuple[np.ndarray, ...] = ()
    shares: tuple[np.ndarray, ...] = ()
    pretrain_s: float | None = None
    finetune_s: float | None = None
    pretrain_flops: float | None = None
    finetune_flops: float | None = None
    pretrain_tiles: float | None = None
    finetune_tiles: float | None = None
    peak_memory_mb: float | None = None
    train_labels: float | None = None
    label_blocks: int = 0

    def __post_init__(self) -> None:
        """Refuses what cannot be scored.

        Raises:
            ValueError: an unknown mode or metric, no block, or sums that do not fit the blocks.
        """
        if self.mode not in MODES or self.metric not in SUMS:
            raise ValueError(
                f"{self.title}: mode '{self.mode}', metric '{self.metric}': expected one of {', '.join(MODES)} and one "
                f"of {', '.join(SUMS)}"
            )
        if not len(self.blocks):
            raise ValueError(f"{self.title}: no block was tested; a run needs one at least")
        if not self._fits():
            raise ValueError(
                f"{self.title}: {' and '.join(SUMS[self.metric])} do not fit {len(self.blocks)} blocks: expected an "
                "entry for each of them, alike in length"
            )

    def _fits(self) -> bool:
        """True if the sums that the metric needs are there for each block."""
        if self.metric == "mean_iou":
            shapes = [_shape(getattr(self, name)) for name in COUNTS]
            return len(set(shapes)) == 1 and len(shapes[0]) == 2 and shapes[0][0] == len(self.blocks)
        if self.metric == "rmse":
            return _shape(self.errors) == (len(self.blocks), ERRORS)
        lengths = [[len(of) for of in windows] for windows in (self.truth, self.shares)]
        return lengths[0] == lengths[1] and len(lengths[0]) == len(self.blocks)

    @property
    def regime(self) -> Regime:
        """The labels it was fitted on."""
        return Regime(self.label_fraction, self.label_blocks)

    @property
    def key(self) -> tuple[str, str, Regime, int, int]:
        """What tells the run from all others."""
        return self.arm, self.mode, self.regime, self.seed, self.fold

    @property
    def title(self) -> str:
        """The key in words."""
        return f"{self.arm}, {self.mode}, {self.regime}, seed {self.seed}, fold {self.fold}"


def read_results(path: Path) -> list[Run]:
    """Reads the runs of a table, in its order.

    Args:
        path: the CSV file.

    Raises:
        FileNotFoundError: no such file.
        ValueError: a column is missing, a cell is not what it should be, rows of a run contradict each other, or a
            block is tested twice; with row, column and what to do.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such table of results; run the study first")
    groups: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    for row in _rows(path):
        groups.setdefault(tuple(row[name] for name in (*KEYS, BLOCKS)), []).append(row)
    runs = [_run_of(path, rows) for rows in groups.values()]
    _check_blocks_once(path, runs)
    return runs


def write_results(path: Path, runs: Iterable[Run]) -> None:
    """Writes a table of runs in place of what is there, whole or not at all.

    Args:
        path: the CSV file.
        runs: the runs.

    Raises:
        ValueError: two runs have the same key, or test the same block.
    """
    kept = list(runs)
    _check_blocks_once(path, kept)
    waiting = path.with_name(path.name + ".tmp")
    with open(waiting, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        with_blocks = any(run.label_blocks for run in kept)
        writer.writerow([*COLUMNS, *[BLOCKS] * with_blocks])
        for run in kept:
            writer.writerows([*row, *[str(run.label_blocks or "")] * with_blocks] for row in _cells(run))
        file.flush()
        os.fsync(file.fileno())
    replace_file(waiting, path)


def _rows(path: Path) -> Iterator[dict[str, Any]]:
    """Parsed rows, each with its line as `line`."""
    csv.field_size_limit(_LONGEST_CELL)
    with open(path, newline="", encoding="utf-8") as file:
        reader = csv.reader(file)
        header = next(reader, [])
        missing = [name for name in COLUMNS if name not in header]
        if missing:
            raise ValueError(
                f"{path}: row 1 has no column '{missing[0]}', expected {', '.join(COLUMNS)}; give the results.csv that "
                "a study wrote"
            )
        for cells in reader:
            if not cells:
                continue
            if len(cells) != len(header):
                raise _damaged(path, reader.line_num, header[min(len(cells), len(header) - 1)], cells[-1], "a full row")
            yield {"line": reader.line_num, **_parsed(path, reader.line_num, dict(zip(header, cells, strict=True)))}


def _parsed(path: Path, line: int, cells: Mapping[str, str]) -> dict[str, Any]:
    """Values of a row's cells."""

    def read(column: str, parse: Callable[[str], T], expected: str) -> T:
        try:
            return parse(cells[column])
        except ValueError:
            raise _damaged(path, line, column, cells[column], expected) from None

    row: dict[str, Any] = {
        "arm": read("arm", read_name, "a name"),
        "mode": read("mode", read_one_of(MODES), f"one of {', '.join(MODES)}"),
        "label_fraction": read("label_fraction", read_share, "a share of the labels above 0 up to 1"),
        "metric": read("metric", read_one_of(tuple(SUMS)), f"one of {', '.join(SUMS)}"),
        "score": read("score", read_score, "a finite number or nothing"),
    }
    row |= {name: read(name, read_count, "a whole number, 0 or more") for name in ("seed", "fold", "block")}
    row[BLOCKS] = read(BLOCKS, read_count, "a whole number of blocks, or nothing") if cells.get(BLOCKS) else 0
    row |= {name: read(name, read_cost, "a number, 0 or more, or nothing") for name in COSTS}
    needed = SUMS[row["metric"]]
    if COUNTS == needed:
        row |= {name: read(name, read_counts, "whole numbers, one for each class") for name in COUNTS}
        if not len(row["hits"]) == len(row["predicted"]) == len(row["labelled"]):
            raise _damaged(path, line, "labelled", cells["labelled"], f"{len(row['hits'])} numbers as in 'hits'")
        if (row["hits"] > np.minimum(row["predicted"], row["labelled"])).any():
            raise _damaged(path, line, "hits", cells["hits"], "no more than 'predicted' and 'labelled'")
    elif WINDOWS == needed:
        row["truth"] = read("truth", lambda text: np.array(text.split(), dtype=np.int64), "a class for each window")
        row["shares"] = read("shares", read_numbers, "a finite number for each window")
        if len(row["truth"]) != len(row["shares"]):
            raise _damaged(path, line, "shares", cells["shares"], f"{len(row['truth'])} numbers as in 'truth'")
    else:
        row["errors"] = read("errors", read_errors, f"{ERRORS} finite numbers")
    return row


def _run_of(path: Path, rows: Sequence[Mapping[str, Any]]) -> Run:
    """The run of its rows, which must agree on all that is not of a block."""
    first = rows[0]
    for row in rows[1:]:
        for name in ("metric", "score", *COSTS):
            if row[name] != first[name] and not (row[name] != row[name] and first[name] != first[name]):
                raise _damaged(path, row["line"], name, row[name], f"{first[name]} as in row {first['line']}, same run")
        if "hits" in row and len(row["hits"]) != len(first["hits"]):
            raise _damaged(path, row["line"], "hits", row["hits"], f"{len(first['hits'])} classes, same run")
    seen: dict[int, int] = {}
    for row in rows:
        if row["block"] in seen:
            raise _damaged(path, row["line"], "block", row["block"], f"another than in row {seen[row['block']]}")
        seen[row["block"]] = row["line"]
    blocks = np.array(list(seen), dtype=np.int64)
    of_blocks: dict[str, Any] = {
        name: np.stack([row[name] for row in rows]) for name in (*COUNTS, "errors") if name in first
    }
    of_blocks |= {name: tuple(row[name] for row in rows) for name in WINDOWS if name in first}
    scalars = {name: first[name] for name in (*KEYS, BLOCKS, "metric", "score", *COSTS)}
    return Run(**scalars, **of_blocks, blocks=blocks)


def _shape(array: np.ndarray | None) -> tuple[int, ...]:
    return () if array is None else array.shape


def _check_blocks_once(path: Path, runs: Sequence[Run]) -> None:
    seen: dict[tuple[Any, ...], Run] = {}
    for run in runs:
        for block in run.blocks.tolist():
            other = seen.setdefault((*run.key[:-1], block), run)
            if other is not run:
                raise ValueError(
                    f"{path}: block {block} is tested twice: by {run.title}, and in fold {other.fold}; expected each "
                    "block in one fold; delete the rows of one of the two"
                )


def _cells(run: Run) -> Iterator[list[str]]:
    """Rows of the table, as text that reads back as the same numbers."""
    costs = [as_text(getattr(run, name)) for name in COSTS]
    head = [run.arm, run.mode, as_text(run.label_fraction), str(run.seed), str(run.fold)]
    for place, block in enumerate(run.blocks.tolist()):
        sums = []
        for name in (*COUNTS, "errors", *WINDOWS):
            of = getattr(run, name) if name in SUMS[run.metric] else None
            sums.append("" if of is None else " ".join(as_text(value) for value in np.asarray(of[place]).tolist()))
        yield [*head, str(block), run.metric, as_text(run.score), *sums, *costs]


def _damaged(path: Path, line: int, column: str, value: Any, expected: str) -> ValueError:
    shown = str(value) if len(str(value)) <= 60 else str(value)[:57] + "..."
    return ValueError(
        f"{path}: row {line}, column '{column}': '{shown}', expected {expected}; restore that row, or delete all rows "
        "of its run and run the study again"
    )
