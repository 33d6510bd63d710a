"""Fingerprint of what the three programs compute, to show that a refactor changed no number.

Trains, fine-tunes and maps a small synthetic survey on one CPU thread, and writes every loss, score and a checksum of
every output array to a JSON file. Run it on two commits and compare:

    python -m scripts.fingerprint before.json                      # on the first commit
    python -m scripts.fingerprint after.json --compare before.json # on the second
"""

from __future__ import annotations

import sys
from pathlib import Path

if not __package__:  # run as a file, from any folder
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import argparse
import hashlib
import json
import os
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from typing import Any

import rasterio

from util.options.parser import Parser

TIMES = ("seconds", "per_s", "wait", "memory", "cpu", "time")
"""Keys of the log that contain one of these words measure the machine, not the computation."""
CHECKPOINT = "checkpoint-last.pth"
QUIET = "--device cpu --num_workers 1 --no_progress".split()
SURVEY = "--rows 512 --cols 512 --seed 3 --overwrite".split()
PRETRAINING = [
    *"--model mae_vit_tiny_patch16 --input_size 24 --patch_size 8 --batch_size 8 --seed 1".split(),
    *QUIET,
    *"--epochs 4 --warmup_epochs 1 --tiles_per_epoch 40 --log_every 1".split(),
]
FINETUNING = [
    *QUIET,
    *"--epochs 3 --tiles_per_epoch 16 --batch_size 8 --folds 2 --seed 1 --tree_samples 500".split(),
]


def get_args_parser() -> argparse.ArgumentParser:
    """The options."""
    parser = Parser("fingerprint", description=__doc__.split("\n\n")[0])
    parser.add_argument("output", type=Path, help="JSON file to write")
    parser.add_argument("--compare", type=Path, help="JSON file of an earlier run; every difference is printed")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the program; exit status 1 if `--compare` finds a difference."""
    args = get_args_parser().parse_args(argv)
    with tempfile.TemporaryDirectory() as folder:
        numbers = fingerprint(Path(folder))
    args.output.write_text(json.dumps(numbers, indent=1, sort_keys=True), encoding="utf-8")
    if args.compare is None:
        return 0
    earlier = json.loads(args.compare.read_text(encoding="utf-8"))
    changed = [key for key in sorted(earlier.keys() | numbers.keys()) if earlier.get(key) != numbers.get(key)]
    for key in changed:
        print(f"{key}: {earlier.get(key)} before, {numbers.get(key)} now")
    print(f"{len(numbers)} numbers, {len(changed)} differ")
    return 1 if changed else 0


def fingerprint(folder: Path) -> dict[str, Any]:
    """Runs all programs on a small survey.

    Returns:
        Every number by a name such as `pretrain/log/3/train_loss`, and the SHA-256 of every band by its file.
    """
    run("scripts.make_sample_survey", *SURVEY, "--output_dir", folder / "survey")
    rasters = {path.stem: path for path in (folder / "survey").rglob("*.tif")}
    table, mixed = write_tables(folder, rasters)
    for name, layers, *more in (("pretrain", table), ("kinds", mixed, "--layer_dropout", "0.3")):
        run("main_pretrain", "--train_path", layers, "--output_dir", folder / str(name), *PRETRAINING, *more)
    checkpoint, finetuned = folder / "pretrain" / CHECKPOINT, folder / "segmentation" / CHECKPOINT
    pretrained = ["--finetune", checkpoint, "--baselines"]
    fits: list[tuple[str, str, str, Sequence[object]]] = [
        ("segmentation", "segmentation", "lithology", pretrained),
        ("regression", "regression", "gravity", pretrained),
        ("scratch", "segmentation", "lithology", ["--input_size", "24"]),
    ]
    for name, task, labels, options in fits:
        data = ("--train_path", table, "--task", task, "--labels", rasters[labels])
        run("main_finetune", *data, "--output_dir", folder / name, *FINETUNING, *options)
    maps = [(product, checkpoint) for product in ("embeddings", "reconstruction", "gapfill")]
    for product, weights in [*maps, ("prediction", finetuned)] if finetuned.exists() else maps:
        options = ["--clusters", "3"] if product == "embeddings" else []
        where = ("--output", product, "--output_dir", folder / product)
        run("main_inference", "--checkpoint", weights, *where, *QUIET, *options)
    return collect(folder)


def write_tables(folder: Path, rasters: Mapping[str, Path]) -> tuple[Path, Path]:
    """Writes a table of two continuous layers, and one of a continuous and a categorical layer."""
    table, mixed = folder / "layers.csv", folder / "kinds.csv"
    table.write_text(
        f"path,name,units,transform\n{rasters['gravity']},gravity,mGal,\n{rasters['magnetics']},magnetics,nT,asinh\n",
        encoding="utf-8",
    )
    mixed.write_text(
        f"path,name,kind\n{rasters['gravity']},gravity,continuous\n{rasters['lithology']},lithology,categorical\n",
        encoding="utf-8",
    )
    return table, mixed


def run(module: str, *arguments: Any) -> None:
    """Runs one program on one thread; if it fails, exits with its error output."""
    environment = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, "-m", module, *map(str, arguments)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, cwd=Path(__file__).parents[1])
    if done.returncode:
        raise SystemExit(f"{' '.join(command)}\nended with status {done.returncode}:\n{done.stderr[-4000:]}")


def collect(folder: Path) -> dict[str, Any]:
    """Collects every number of the logs and scores in a folder, and a checksum of every band of its rasters."""
    numbers: dict[str, Any] = {}
    for path in sorted(folder.rglob("log.txt")):
        for count, line in enumerate(path.read_text(encoding="utf-8").splitlines()):
            add(numbers, f"{path.relative_to(folder)}/{count}", json.loads(line))
    for path in sorted(folder.rglob("metrics.json")):
        add(numbers, str(path.relative_to(folder)), json.loads(path.read_text(encoding="utf-8")))
    for path in sorted(folder.rglob("*.tif")):
        with rasterio.open(path) as dataset:
            for band in dataset.indexes:
                name = f"{path.relative_to(folder)}/{band}"
                numbers[name] = hashlib.sha256(dataset.read(band).tobytes()).hexdigest()
    return numbers


def add(numbers: dict[str, Any], name: str, value: Any) -> None:
    """Adds all numbers inside a JSON value except those that measure time or memory."""
    if isinstance(value, dict):
        for key, item in value.items():
            if not any(word in key for word in TIMES) and key not in ("options", "environment"):
                add(numbers, f"{name}/{key}", item)
    elif isinstance(value, list):
        for count, item in enumerate(value):
            add(numbers, f"{name}/{count}", item)
    elif isinstance(value, (int, float)):
        numbers[name] = value


if __name__ == "__main__":
    sys.exit(main())
