"""Write the synthetic sample survey: `python -m scripts.make_sample_survey --output_dir sample_survey`."""

from __future__ import annotations

import sys
from pathlib import Path

if not __package__:  # run as a file, from any folder
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from scripts.parsers import make_sample_survey_parser
from util.options.early import before_imports

if __name__ == "__main__":  # --help and wrong flags are answered at once: the imports below take seconds
    before_imports(make_sample_survey_parser(__doc__))

import argparse
import logging
import time
from collections.abc import Sequence

import rasterio

from datasets.synthetic.geology import UNITS
from datasets.synthetic.sample_survey import write_sample_survey
from util.geotiff.raster_spec import RasterSpec
from util.inference.qgis import SourceLayer, write_project, write_style
from util.options.commands import command

FIELDS, LITHOLOGY = ("gravity", "magnetics"), "labels/lithology"


def get_args_parser() -> argparse.ArgumentParser:
    """The options."""
    return make_sample_survey_parser(__doc__)


def main(argv: Sequence[str] | None = None) -> int:
    """Write the survey and list its files; exit status 2 with one message where it is refused."""
    options = get_args_parser().parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    logging.getLogger("pyogrio").setLevel(logging.WARNING)  # it counts the records it writes
    started = time.monotonic()
    try:
        directory = write_sample_survey(
            Path(options.output_dir),
            seed=options.seed,
            rows=options.rows,
            cols=options.cols,
            overwrite=options.overwrite,
        )
        project = write_styles(directory)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    files = sorted(path for path in directory.rglob("*") if path.is_file())
    for path in files:
        print(f"{path.stat().st_size / 1e6:8.2f} MB  {path.relative_to(directory)}")
    total = sum(path.stat().st_size for path in files) / 1e6
    print(f"{total:8.2f} MB  {directory}, {time.monotonic() - started:.0f} s")
    print(f"next: open {project} in QGIS, or train: {training_command(directory)}")
    return 0


def training_command(directory: Path) -> str:
    """The command that pre-trains on the survey."""
    return command("main_pretrain", "--train_path", directory / "layers.csv", "--output_dir", "output_dir")


def write_styles(directory: Path) -> Path:
    """Writes a style for QGIS beside each raster of a sample survey, and a project of them; returns its path.

    Raises:
        OSError: a raster cannot be read, or a file cannot be written.
    """
    specs = {name: spec_of(directory, name) for name in (LITHOLOGY, *FIELDS)}
    for name, spec in specs.items():
        write_style(directory / f"{name}.tif", spec)
    sources = [SourceLayer(name, str(directory / f"{name}.tif"), 1, specs[name].units[0]) for name in FIELDS]
    return write_project(directory, {LITHOLOGY: specs[LITHOLOGY]}, sources, heading="labels")


def spec_of(directory: Path, name: str) -> RasterSpec:
    """What a raster of the survey is."""
    with rasterio.open(directory / f"{name}.tif") as file:
        return RasterSpec(
            crs=file.crs.to_wkt(),
            left=file.bounds.left,
            top=file.bounds.top,
            resolution_x=file.res[0],
            resolution_y=file.res[1],
            rows=file.height,
            cols=file.width,
            dtype=file.dtypes[0],
            nodata=file.nodata,
            names=(name.rpartition("/")[2],),
            units=(file.units[0] or "",),
            classes={unit.code: (unit.name, unit.colour) for unit in UNITS} if name == LITHOLOGY else None,
        )


if __name__ == "__main__":
    sys.exit(main())
