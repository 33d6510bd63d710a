"""Labels for the small survey of tests/surveys.py, and ways to fine-tune on them."""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch

import main_finetune
import models_vit_group_channels as models
from tests import surveys
from tests.rasters import write_grid
from tests.small_main import SMALL
from util.finetuning import report

CODES = (3, 7, 12)
NODATA_CODE = 0

FLAGS = (
    "--input_size 8 --patch_size 4 --batch_size 4 --epochs 2 --tiles_per_epoch 12 --warmup_epochs 0 --lr 0.003 "
    "--folds 2 --val_buffer 4 --drop_path 0 --num_workers 0 --device cpu --no_progress"
).split()
"""Quick: three updates an epoch; base pixels of 400 m, windows of 8 on ground of 40 x 40."""


def write_classes(folder: Path, *, size: int = 160, name: str = "classes.tif") -> Path:
    """Three classes in wavy bands on the 100 m grid, with an unlabelled rim."""
    y, x = (np.mgrid[:size, :size] + 0.5) / 10.0  # kilometres
    codes = np.array(CODES)[np.clip(np.round(1 + np.sin(0.9 * x) + 0.5 * np.sin(1.1 * y)), 0, 2).astype(int)]
    codes[:4] = NODATA_CODE
    return write_grid(folder / name, codes.astype(np.uint8), resolution=100.0, nodata=NODATA_CODE)


def write_values(folder: Path, *, size: int = 160, name: str = "values.tif") -> Path:
    """A smooth field in mGal, NaN along the rim."""
    y, x = (np.mgrid[:size, :size] + 0.5) / 10.0
    values = 100 + 5 * np.sin(0.9 * x) + 3 * np.cos(1.1 * y)
    values[:4] = np.nan
    return write_grid(folder / name, values.astype(np.float32), resolution=100.0, nodata=np.nan)


def write_points(folder: Path, *, count: int = 24, kinds: Sequence[str] = (), name: str = "points.csv") -> Path:
    """Points spread over the survey's ground, 16 km from its corner; with classes in turn if kinds are given."""
    rng = np.random.default_rng(3)
    path = folder / name
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["x", "y", *(["rock"] if kinds else [])])
        for number, (east, south) in enumerate(rng.uniform(500, 15500, size=(count, 2))):
            writer.writerow([500_000 + east, 6_000_000 - south, *([kinds[number % len(kinds)]] if kinds else [])])
    return path


def arguments(survey: Path, output: Path, *flags: str, labels: Path | None = None) -> list[str]:
    """The command line that fine-tunes on a survey; later flags replace earlier ones."""
    given = ["--data_dir", str(survey), "--output_dir", str(output), *FLAGS]
    given += [] if labels is None else ["--labels", str(labels)]
    return [*given, *flags]


def finetune(survey: Path, output: Path, *flags: str, labels: Path | None = None, pictures: bool = False) -> int:
    """Fine-tunes the small network in this process; returns the exit status."""
    return run(arguments(survey, output, *flags, labels=labels), pictures=pictures)


def run(argv: Sequence[str], *, pictures: bool = False) -> int:
    """Runs the program with a network small enough for tests; pictures take longer than that, so they are optional."""
    with ExitStack() as patches:
        patches.enter_context(mock.patch.dict(models.MODEL_SIZES, tiny=SMALL))
        if not pictures:
            patches.enter_context(mock.patch.object(report, "draw_scores", lambda *_: []))
            patches.enter_context(mock.patch.object(report, "draw_map", lambda *_, **__: None))
            patches.enter_context(mock.patch("util.inference.results.draw_raster", lambda path, *_, **__: path))
        return main_finetune.main(list(argv))


def score(checkpoint: Path, output: Path, *flags: str) -> int:
    """Scores a fine-tuned checkpoint in this process; returns the exit status."""
    return run(["--eval", "--resume", str(checkpoint), "--output_dir", str(output), "--device", "cpu", *flags])


def fit(output: Path, arm: str, fold: int | None = 0) -> dict[str, Any]:
    """The last checkpoint of a fit, loaded as anyone would; of the one on all labels for None."""
    return surveys.checkpoint(output if fold is None else output / f"fits/{arm}-fold{fold}")


def scores(output: Path, arm: str, fold: int = 0) -> dict[str, Any]:
    """What a fit was scored."""
    return json.loads((output / f"fits/{arm}-fold{fold}/scores.json").read_text(encoding="utf-8"))


def assert_weights_agree(first: Mapping[str, torch.Tensor], second: Mapping[str, torch.Tensor]) -> None:
    """Weights of runs that differ only in the order of float32 sums: to 1e-2 of the largest of their tensor.

    1.7e-3 was seen, in biases of attention that start at zero, whose steps Adam makes of gradients near rounding.
    """
    assert surveys.largest_difference(dict(first), dict(second)) < 1e-2


def read_strict(path: Path) -> Any:
    """JSON as the standard has it: no NaN, no infinity."""

    def refuse(name: str) -> None:
        raise AssertionError(f"{path} holds {name}")

    return json.loads(path.read_text(encoding="utf-8"), parse_constant=refuse)
