"""Reads damaged files in a process of its own, one JSON line for each: `python -m tests.damaged_files FILE [FILE ...]`.

A line holds the file, the exit status and stderr. The caller notices a traceback, a hang or a crash of the process.
"""

from __future__ import annotations

import contextlib
import io
import json
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path

from rasterio.crs import CRS

import main_inference
from datasets.labels.open_labels import TargetGrid
from datasets.labels.points import open_points
from datasets.survey.open_survey import SurveySettings, open_survey
from scripts import describe_grids
from util.options.common import survey_options
from util.processes.terminal import setup_logging

SMALL = "--input_size 16 --patch_size 4 --val_fraction 0".split()


def survey(argv: Sequence[str]) -> int:
    """Opens and scans a survey as the programs do."""
    try:
        open_survey(SurveySettings(**survey_options(describe_grids.get_args_parser().parse_args(argv))))
    except (ValueError, OSError) as error:
        print(error, file=sys.stderr)
        return 2
    return 0


def read(path: Path) -> int:
    """Reads one file as its suffix asks for; returns the exit status of the program that would have read it."""
    if path.suffix in (".tif", ".gxf") or path.name == "gdal.nc":
        return survey(["--data_dir", str(path.parent), *SMALL])
    if path.suffix == ".zarr" or path.name == "xarray.nc":
        return survey(["--dataset_type", "xarray", "--data_path", str(path), *SMALL])
    grids = str(path.parent / "grids")
    if path.suffix == ".gpkg":
        return survey(["--data_dir", grids, "--aoi", str(path), *SMALL])
    if path.name == "layers.csv":
        return survey(["--train_path", str(path), *SMALL])
    if path.suffix == ".pth":
        where = ["--output_dir", str(path.parent / "out"), "--overwrite", "--device", "cpu", "--no_progress"]
        return main_inference.main(["--checkpoint", str(path), "--output", "embeddings", "--data_dir", grids, *where])
    assert path.suffix == ".csv"
    try:
        open_points(path, grid=TargetGrid(CRS.from_epsg(28354), 500_000.0, 6_000_000.0, 100.0, 64, 64), column="rock")
    except (ValueError, OSError) as error:
        print(error, file=sys.stderr)
        return 2
    return 0


def main(paths: Sequence[str]) -> None:
    """Prints what became of each file."""
    for path in paths:
        print(json.dumps({"path": path, "begun": True}), flush=True)
        errors = io.StringIO()
        with contextlib.redirect_stderr(errors), contextlib.redirect_stdout(io.StringIO()):
            setup_logging()
            try:
                status = read(Path(path))
            except SystemExit as error:
                status = int(error.code or 0)
            except BaseException:
                status = -1
                traceback.print_exc()
        print(json.dumps({"path": path, "status": status, "errors": errors.getvalue()[-4000:]}), flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
