"""Writes the labels that a fold of main_finetune may know, as a map to pre-train on: main_pretrain --target_layers.

    python -m scripts.known_labels --fold 0 --output geology_0.tif --finetuning --data_dir DIR --labels geology.tif

Labels are those that the fit of the fold is trained on, on the pixels that it predicts (--label_scale); labels of its
test and validation blocks, of their buffer, and those that --label_fraction or --label_blocks leave out are nodata.
"""

from __future__ import annotations

import sys
from pathlib import Path

if not __package__:  # run as a file, from any folder
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from scripts.parsers import known_labels_parser
from util.options.early import before_imports

if __name__ == "__main__":  # --help and wrong flags are answered at once: the imports below take seconds
    before_imports(known_labels_parser(__doc__))

import argparse
import json
import logging
import math
from collections.abc import Iterable, Sequence
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

import main_finetune
from datasets.labels.label_map import LabelMap
from datasets.layers.paths import sheet_paths
from util.finetuning.run import FinetuneInputs
from util.finetuning.tasks import TASKS
from util.geotiff.cog_writer import join
from util.geotiff.parts import Parts
from util.geotiff.raster_spec import RasterSpec
from util.inference.finetuned_task import stored_classes, task_of
from util.options import finetune_checks as checks
from util.options.commands import command
from util.options.version import VERSION
from util.processes.distributed import Ranks
from util.processes.terminal import setup_logging

logger = logging.getLogger(__name__)


def get_args_parser() -> argparse.ArgumentParser:
    """The options."""
    return known_labels_parser(__doc__)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the program; exit status 2 for bad input."""
    args = get_args_parser().parse_args(argv)
    finetuning = main_finetune.get_args_parser().parse_args(args.finetuning)
    setup_logging()
    path = Path(args.output)
    try:
        if path.exists() and not args.overwrite:
            raise ValueError(f"--output {path} exists; give another name, or --overwrite")
        inputs, labels, known = open_known(finetuning, args.fold)
        refuse_inputs(path, [*(layer.path for layer in inputs.opened.survey.layers), labels.source])
        write(path, *raster_of(inputs, labels, known, fold=args.fold))
    except (ValueError, OSError) as error:
        print(f"known_labels: error: {error}", file=sys.stderr)
        return 2
    survey, count = inputs.opened.survey, int(known.sum())
    every = int(labels.labelled(0, 0, *known.shape).sum())
    logger.info("fold %d of %d may know %d of %d labelled pixels", args.fold, inputs.data.folds.count, count, every)
    logger.info("raster   %s", path)
    flags = ("--target_layers", path.stem, "--base_resolution", f"{survey.base_resolution:g}")
    logger.info("next: list it in layers.csv in place of the labels, then")
    logger.info("next: %s", command("main_pretrain", "--train_path", "layers.csv", *flags))
    return 0


def refuse_inputs(output: Path, sources: Iterable[str]) -> None:
    """Refuses to replace what is read, be it asked for or not.

    Raises:
        ValueError: the output is one of the sources.
    """
    if output.resolve() in {Path(path).resolve() for source in sources for path in sheet_paths(source)}:
        raise ValueError(f"--output {output} is one of the rasters that are read; give another name")


def open_known(finetuning: argparse.Namespace, fold: int) -> tuple[FinetuneInputs, LabelMap, np.ndarray]:
    """Opens layers and labels as main_finetune does, and divides the same folds.

    Args:
        finetuning: options of main_finetune.
        fold: number of the fold.

    Returns:
        The inputs of the fit; the labels on target pixels; and (rows, cols) bool, True where the fold is trained.

    Raises:
        ValueError, OSError: bad input; no such fold; labels that are no map.
    """
    checks.check(finetuning, main_finetune.CHOICES)
    if not TASKS[finetuning.task].per_pixel or finetuning.dataset_type != "grid":
        raise ValueError(
            f"--task {finetuning.task}, --dataset_type {finetuning.dataset_type}: expected a label for every pixel of "
            "the ground, such as --task segmentation; points and windows are no layer to pre-train on"
        )
    inputs, _ = main_finetune.open_inputs(checks.with_length(finetuning), Ranks())
    count = inputs.data.folds.count
    if fold >= count:
        raise ValueError(f"--fold {fold}: expected 0 to {count - 1}, as --folds says")
    ground = inputs.data.ground
    assert ground is not None
    return inputs, ground.labels, ground.fold(fold).training(0, 0, *ground.labels.values.shape)


def raster_of(
    inputs: FinetuneInputs, labels: LabelMap, known: np.ndarray, *, fold: int
) -> tuple[RasterSpec, np.ndarray]:
    """The raster to write: labels where they are known, under their own codes, elsewhere nodata."""
    grid, data = labels.grid, inputs.data
    kind: dict[str, Any] = {"dtype": "float32", "nodata": math.nan}
    values = labels.values
    if data.classes is not None:
        stored = stored_classes(task_of({"task": {"kind": inputs.task.name, **data.description()}}, TASKS))
        kind = {"dtype": stored.dtype, "nodata": stored.nodata, "classes": stored.classes}
        values = np.array(stored.codes)[np.where(known, labels.values, 0)]
    spec = RasterSpec(
        crs=grid.crs.to_wkt(),
        left=grid.left,
        top=grid.top,
        resolution_x=grid.resolution,
        resolution_y=grid.resolution,
        rows=grid.rows,
        cols=grid.cols,
        names=("known labels",),
        units=(data.units,),
        tags={
            "software": f"GRID-MAE known_labels {VERSION}",
            "labels": str(labels.source),
            "fold": str(fold),
            "folds": json.dumps(data.folds.summary()),
        },
        **kind,
    )
    return spec, np.where(known, values, spec.nodata).astype(spec.dtype)


def write(path: Path, spec: RasterSpec, pixels: np.ndarray) -> None:
    """Writes a raster of one band.

    Raises:
        OSError: it cannot be written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=path.parent) as folder:
        parts = Parts(folder)
        parts.write(0, 0, {"known": (spec, pixels[None], 0, 0)})
        join(path, spec, parts.of("known"))


if __name__ == "__main__":
    sys.exit(main())
