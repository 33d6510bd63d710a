"""Measures the error of gap filling: punches holes into a survey, fills them, and compares with the true values.

    python -m scripts.measure_gapfill --checkpoint output_dir/checkpoint-last.pth --holes 4 8 16

The same holes are filled by linear interpolation (SciPy, Delaunay triangles) and by a thin-plate spline, which is
minimum curvature (SciPy, `RBFInterpolator`), from the valid pixels around each hole. Prints a table.
"""

from __future__ import annotations

import sys
from pathlib import Path

if not __package__:  # run as a file, from any folder
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import argparse
import logging
import shutil
from collections.abc import Sequence
from dataclasses import replace
from tempfile import TemporaryDirectory

import numpy as np
import rasterio
from scipy.interpolate import LinearNDInterpolator, NearestNDInterpolator, RBFInterpolator

import main_inference
from datasets.layers.layer import Layer
from datasets.layers.table import read_layers_table, write_layers_table
from datasets.rasters.band import RasterBand
from datasets.rasters.open_band import open_band
from datasets.survey.inference_survey import stored_layers
from util.checkpoints import checkpoint_file
from util.inference.inputs import file_names
from util.options import common as options
from util.options.commands import command
from util.options.parser import Parser

logger = logging.getLogger(__name__)

RIM = 12
"""Width of the rim around a hole whose valid pixels the baselines use, in pixels."""
SPLINE_POINTS = 1500
"""Most points of the rim that the spline interpolates: the nearest to the hole."""
TRIES = 4000

Hole = tuple[slice, slice]


def get_args_parser() -> argparse.ArgumentParser:
    """The options."""
    parser = Parser("measure_gapfill", description=__doc__.split("\n\n")[0])
    parser.add_argument("--checkpoint", required=True, help="checkpoint of main_pretrain")
    parser.add_argument("--train_path", help="layers.csv (default: the layers of the checkpoint)")
    parser.add_argument(
        "--holes", type=options.positive_int, nargs="+", default=[4, 8, 16], help="edges of holes, base pixels (4 8 16)"
    )
    parser.add_argument("--count", type=options.positive_int, default=30, help="holes of each size and layer (30)")
    parser.add_argument("--seed", type=options.count, default=0, help="seed of the positions of holes (0)")
    parser.add_argument("--inference", nargs=argparse.REMAINDER, default=[], help="further options of main_inference")
    return parser


def punch(values: np.ndarray, *, edge: int, count: int, taken: np.ndarray, rng: np.random.Generator) -> list[Hole]:
    """Chooses squares of valid pixels, away from each other, from pixels already taken and from real gaps.

    Args:
        values: (rows, cols), NaN where invalid.
        edge: edge of a square, pixels.
        count: largest number of squares.
        taken: (rows, cols) bool, pixels already taken; the squares are added.
        rng: draws the positions.

    Returns:
        (row slice, column slice) of each; none where the array has no room for a square and its margin.
    """
    margin: int = max(RIM, edge)
    holes: list[Hole] = []
    room = [size - edge - 2 * margin for size in values.shape]
    if min(room) < 0:
        return holes
    for _ in range(TRIES):
        row, col = (margin + int(rng.integers(0, max(1, most))) for most in room)
        hole = slice(row, row + edge), slice(col, col + edge)
        around = tuple(slice(max(0, side.start - margin), side.stop + margin) for side in hole)
        if np.isfinite(values[around]).all() and not taken[around].any():
            taken[hole] = True
            holes.append(hole)
        if len(holes) == count:
            break
    return holes


def baselines(values: np.ndarray, hole: Hole) -> tuple[np.ndarray, np.ndarray]:
    """Fills a hole linearly, and by a thin-plate spline, from the valid pixels around it."""
    around = tuple(slice(max(0, side.start - RIM), side.stop + RIM) for side in hole)
    window = values[around]
    targets = np.argwhere(np.ones_like(values[hole])) + [hole[k].start - around[k].start for k in (0, 1)]
    known = np.argwhere(np.isfinite(window))
    numbers = window[np.isfinite(window)]
    centre = targets.mean(axis=0)
    near = np.argsort(np.abs(known - centre).max(axis=1), kind="stable")[:SPLINE_POINTS]
    linear = LinearNDInterpolator(known, numbers)(targets)
    linear = np.where(np.isfinite(linear), linear, NearestNDInterpolator(known, numbers)(targets))
    spline = RBFInterpolator(known[near], numbers[near], kernel="thin_plate_spline")(targets)
    shape = values[hole].shape
    return linear.reshape(shape), spline.reshape(shape)


def write_punched(layer: Layer, path: Path, holes: Sequence[Hole]) -> Layer:
    """Copies a layer to a file with the holes as nodata."""
    band = open_band(layer)
    values = band.read(0, 0, band.grid.rows, band.grid.cols)
    for hole in holes:
        values[hole] = np.nan
    georeference = {"crs": band.grid.crs, "transform": band.grid.transform, "nodata": np.nan}
    with rasterio.open(
        path, "w", driver="GTiff", dtype="float32", count=1, height=band.grid.rows, width=band.grid.cols, **georeference
    ) as sink:
        sink.write(values, 1)
    return replace(layer, path=str(path), band=1, nodata=None)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the program; exit status 2 for bad input."""
    args = get_args_parser().parse_args(argv)
    try:
        state = checkpoint_file.load_checkpoint(args.checkpoint, required=main_inference.NEEDED)
        layers = read_layers_table(args.train_path) if args.train_path else stored_layers(state["layers"])
        bands = [open_band(layer) for layer in layers]
    except (ValueError, OSError) as error:
        print(f"measure_gapfill: error: {error}", file=sys.stderr)
        return 2
    size, scales = state["model_config"]["img_size"], state["options"]["scales"]
    trained = [layer.name for layer in stored_layers(state["layers"])]
    outputs = dict(zip(trained, file_names(trained), strict=True))
    base = state.get("base_resolution") or min(band.grid.resolution_x for band in bands) * max(scales)
    print("| layer | hole | holes | linear | spline | model | within 1 sigma | within 2 sigma | log score |")
    print("|---|---|---|---|---|---|---|---|---|")
    with TemporaryDirectory() as temporary:
        for edge in args.holes:
            folder = Path(temporary) / str(edge)
            folder.mkdir()
            rng = np.random.default_rng((args.seed, edge))
            holes = {}
            for band in bands:
                values = band.read(0, 0, band.grid.rows, band.grid.cols)
                pixels = max(1, round(edge * base / band.grid.resolution_x))
                taken = np.zeros(values.shape, dtype=bool)
                holes[band.layer.name] = punch(values, edge=pixels, count=args.count, taken=taken, rng=rng)
            names = file_names([layer.name for layer in layers])
            punched = [
                write_punched(layer, folder / f"{name}.tif", holes[layer.name])
                for layer, name in zip(layers, names, strict=True)
            ]
            write_layers_table(folder / "layers.csv", punched)
            status = main_inference.main(
                ["--checkpoint", args.checkpoint, "--train_path", str(folder / "layers.csv"), "--output", "gapfill"]
                + ["--output_dir", str(folder), "--max_gap", str(min(size, edge * 1.5) * base), "--no_progress"]
                + ["--base_resolution", str(base)]
                + args.inference
            )
            if status:
                return status
            for band, copy in zip(bands, punched, strict=True):
                filled = folder / f"gapfill_{outputs.get(band.layer.name, '')}.tif"
                row = measure(band, Path(copy.path), filled, holes[band.layer.name])
                print(f"| {band.layer.name} | {edge * base:g} | {row}", flush=True)
            shutil.rmtree(folder)
    maps = command("main_inference", "--checkpoint", args.checkpoint, "--output", "gapfill", "--output_dir", "maps")
    print(f"next: {maps}", file=sys.stderr)
    return 0


def measure(band: RasterBand, punched_path: Path, filled_path: Path, holes: Sequence[Hole]) -> str:
    """One row of the table: root mean square errors, the fraction of errors within the uncertainty, and the log score.

    The log score is the mean of ln(uncertainty) + (error / uncertainty)^2 / 2 over pixels: lower where uncertainties
    match the errors pixel by pixel.

    Args:
        band: the layer.
        punched_path: the layer with holes.
        filled_path: what was made of that; there may be none.
        holes: the holes.
    """
    truth = band.read(0, 0, band.grid.rows, band.grid.cols)
    if not filled_path.exists() or not holes:
        return f"{len(holes)} | - | - | - | - | - | - |"
    with rasterio.open(filled_path) as file:
        filled, sigma = file.read(1), file.read(2)
    with rasterio.open(punched_path) as file:
        punched = file.read(1)
    errors: dict[str, list[np.ndarray]] = {"linear": [], "spline": [], "model": []}
    ratios, scores = [], []
    for hole in holes:
        linear, spline = baselines(punched, hole)
        for name, guess in (("linear", linear), ("spline", spline), ("model", filled[hole])):
            errors[name].append(np.square(guess - truth[hole]).ravel())
        ratios.append((np.abs(filled[hole] - truth[hole]) / sigma[hole]).ravel())
        scores.append(np.log(sigma[hole]).ravel() + np.square(ratios[-1]) / 2)
    ratio = np.concatenate(ratios)
    numbers = [f"{np.sqrt(np.mean(np.concatenate(part))):.4g}" for part in errors.values()]
    inside = [f"{100 * np.mean(ratio <= k):.0f} %" for k in (1, 2)]
    return f"{len(holes)} | {' | '.join([*numbers, *inside])} | {np.mean(np.concatenate(scores)):.2f} |"


if __name__ == "__main__":
    sys.exit(main())
