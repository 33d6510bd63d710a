"""Measures the error of superresolution: averages a layer, predicts its finer pixels, and compares with the true ones.

    python -m scripts.measure_superresolution --checkpoint output_dir/checkpoint-last.pth --layer magnetics --factor 2

With `--truth` the layer is not averaged, and the result is compared with a finer raster of the same layer: for a layer
that the model was trained on at its coarse resolution. The prediction is compared with interpolation that preserves the
measured means, PyTorch's bicubic interpolation, and repeated pixels. Prints a table.
"""

from __future__ import annotations

import sys
from pathlib import Path

if not __package__:  # run as a file, from any folder
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import argparse
import logging
import re
from collections.abc import Sequence
from dataclasses import replace
from tempfile import TemporaryDirectory

import numpy as np
import rasterio
import torch
from rasterio.transform import Affine
from scipy import ndimage

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


def get_args_parser() -> argparse.ArgumentParser:
    """The options."""
    parser = Parser("measure_superresolution", description=__doc__.split("\n\n")[0])
    parser.add_argument("--checkpoint", required=True, help="checkpoint of main_pretrain")
    parser.add_argument("--layer", required=True, help="name of the layer")
    parser.add_argument("--train_path", help="layers.csv (default: the layers of the checkpoint)")
    parser.add_argument("--factor", type=options.positive_int, default=2, help="pixels averaged along an edge (2)")
    parser.add_argument("--truth", help="finer raster of the layer, same corner; the layer is then not averaged")
    parser.add_argument("--inference", nargs=argparse.REMAINDER, default=[], help="further options of main_inference")
    return parser


def average(values: np.ndarray, factor: int) -> np.ndarray:
    """Means over squares of `factor` pixels, NaN where any is; incomplete rows and columns of squares are cut off."""
    rows, cols = (size // factor for size in values.shape)
    squares = values[: rows * factor, : cols * factor].reshape(rows, factor, cols, factor)
    return squares.mean(axis=(1, 3), dtype=np.float64).astype(np.float32)


def read_whole(band: RasterBand) -> np.ndarray:
    """All pixels of a layer, NaN where invalid."""
    return band.read(0, 0, band.grid.rows, band.grid.cols)


def write_averaged(band: RasterBand, factor: int, folder: Path) -> Layer:
    """Writes a layer averaged to pixels `factor` times as large."""
    values, grid = average(read_whole(band), factor), band.grid
    path = folder / "averaged.tif"
    right, down = grid.resolution_x * factor, grid.resolution_y * factor
    georeference = {"crs": grid.crs, "transform": Affine(right, 0, grid.left, 0, -down, grid.top), "nodata": np.nan}
    shape = {"height": values.shape[0], "width": values.shape[1]}
    with rasterio.open(path, "w", driver="GTiff", dtype="float32", count=1, **shape, **georeference) as sink:
        sink.write(values, 1)
    return replace(band.layer, path=str(path), band=1, nodata=None)


def simple_refinements(coarse: np.ndarray, factor: int) -> dict[str, np.ndarray]:
    """Coarse pixels refined by `factor`, by bicubic interpolation and by repeating; gaps take the nearest pixel."""
    nearest = ndimage.distance_transform_edt(~np.isfinite(coarse), return_distances=False, return_indices=True)
    filled = torch.from_numpy(coarse[tuple(nearest)])[None, None]
    bicubic = torch.nn.functional.interpolate(filled, scale_factor=factor, mode="bicubic")[0, 0].numpy()
    return {"bicubic": bicubic, "repeated": filled[0, 0].numpy().repeat(factor, 0).repeat(factor, 1)}


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the program; exit status 2 for bad input."""
    args = get_args_parser().parse_args(argv)
    try:
        state = checkpoint_file.load_checkpoint(args.checkpoint, required=main_inference.NEEDED)
        trained = [layer.name for layer in stored_layers(state["layers"])]
        layers = read_layers_table(args.train_path) if args.train_path else stored_layers(state["layers"])
        chosen = next((layer for layer in layers if layer.name == args.layer), None)
        if chosen is None or args.layer not in trained:
            names = ", ".join(layer.name for layer in layers if layer.name in trained)
            raise ValueError(f"no layer '{args.layer}'; expected one of {names}")
        band = open_band(chosen)
        truth = open_band(replace(chosen, path=args.truth, band=1, nodata=None)) if args.truth else band
        corner, other = ((of.grid.left, of.grid.top) for of in (band, truth))
        if max(abs(a - b) for a, b in zip(corner, other, strict=True)) > 0.01 * truth.grid.resolution_x:
            raise ValueError(
                f"--truth {args.truth}: begins at {other}, expected the corner of layer '{args.layer}', {corner}; "
                "cut both to the same corner"
            )
    except (ValueError, OSError) as error:
        print(f"measure_superresolution: error: {error}", file=sys.stderr)
        return 2
    factor = 1 if args.truth else args.factor
    with TemporaryDirectory() as temporary:
        folder = Path(temporary)
        coarse = write_averaged(band, factor, folder)
        write_layers_table(folder / "layers.csv", [coarse if layer.name == args.layer else layer for layer in layers])
        status = main_inference.main(
            ["--checkpoint", args.checkpoint, "--train_path", str(folder / "layers.csv"), "--output", "superresolution"]
            + ["--output_dir", str(folder), "--no_progress", *args.inference]
        )
        if status:
            return status
        print("| pixels of | given | predicted | interpolated | bicubic | repeated | share of model detail |")
        print("|---|---|---|---|---|---|---|")
        name = re.escape(file_names(trained)[trained.index(args.layer)])
        refined = re.compile(rf"superresolution_{name}_\d+x\.tif")
        for path in sorted(path for path in folder.iterdir() if refined.fullmatch(path.name)):
            try:
                print(row_of(path, truth, open_band(coarse)), flush=True)
            except ValueError as error:
                print(f"measure_superresolution: error: {error}", file=sys.stderr)
                return 2
    maps = command(
        "main_inference", "--checkpoint", args.checkpoint, "--output", "superresolution", "--output_dir", "maps"
    )
    print(f"next: {maps}", file=sys.stderr)
    return 0


def row_of(path: Path, truth: RasterBand, coarse: RasterBand) -> str:
    """One row of the table: root mean square errors against the true layer averaged to the pixels of the result.

    Raises:
        ValueError: pixels of the result do not begin where those of the layer do.
    """
    with rasterio.open(path) as file:
        found, edge, bounds = file.read(), file.res[0], file.bounds
        share = file.tags()["share_of_model_detail"]
    row, col = (bounds.top - truth.grid.top) / edge, (truth.grid.left - bounds.left) / edge
    if max(abs(row - round(row)), abs(col - round(col))) > 0.01:
        raise ValueError(
            f"{path.name} begins {abs(col):.2f} columns and {abs(row):.2f} rows of {edge:g} from the layer's corner, "
            "expected whole pixels; leave out the layers that are not aligned with it (--train_path)"
        )
    row, col = round(row), round(col)  # of the result that lie before the layer, which other layers may exceed
    expected = average(read_whole(truth), round(edge / truth.grid.resolution_x))[max(0, -row) :, max(0, -col) :]
    simple = simple_refinements(read_whole(coarse), round(coarse.grid.resolution_x / edge))
    images = {
        "predicted": found[0, max(0, row) :, max(0, col) :],
        "interpolated": found[1, max(0, row) :, max(0, col) :],
    }
    images |= {name: image[max(0, -row) :, max(0, -col) :] for name, image in simple.items()}
    rows, cols = (min(image.shape[k] for image in (expected, *images.values())) for k in (0, 1))
    known = np.isfinite([image[:rows, :cols] for image in (expected, *images.values())]).all(axis=0)
    errors = [
        np.sqrt(np.mean(np.square((image[:rows, :cols] - expected[:rows, :cols])[known]))) for image in images.values()
    ]
    cells = " | ".join(f"{error:.4g}" for error in errors)
    return f"| {edge:g} | {coarse.grid.resolution_x:g} | {cells} | {100 * float(share):.0f} % |"


if __name__ == "__main__":
    sys.exit(main())
