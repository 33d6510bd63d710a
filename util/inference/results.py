"""Output files: existing ones are protected, finished parts are joined into rasters, and each gets a picture."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import stat
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from util.geotiff.cog_writer import join
from util.geotiff.parts import Part, Parts
from util.geotiff.raster_spec import RasterSpec, length_unit_of
from util.inference.product import Product
from util.inference.qgis import SourceLayer, write_project, write_style
from util.inference.quicklooks import draw_raster
from util.plots.maps import Panel

logger = logging.getLogger(__name__)

MOST_NAMES = 6
"""Bands that a page names."""


def sources_of(survey: Any, files_of: Callable[[str], Iterable[str]]) -> dict[str, Any]:
    """What the parts of rasters are made from: a run can only be resumed with the same ground, polygons and layers.

    Polygons are compared by a digest, local files by size and time of modification. URLs, stores in folders and
    files in archives are compared by their paths alone.

    Args:
        survey: an `InferenceSurvey`.
        files_of: gives the files that a layer's path names.

    Returns:
        Settings by name, fit for JSON.
    """
    found: dict[str, Any] = {
        "ground": list(survey.shape),
        "files": [[layer.name, layer.path, layer.band] for layer in survey.layers],
        "polygons of --aoi (sha256)": None if survey.aoi is None else _digest(survey.aoi.plain()),
    }
    for band, layer, summary in zip(survey.stack.bands, survey.layers, survey.summaries, strict=True):
        if summary is None:  # absent: nothing is read
            continue
        found[f"nodata of '{layer.name}'"] = [str(float(value)) for value in band.nodata]  # text: NaN is never equal
        for file in files_of(layer.path):
            state = _file_state(file)
            if state is not None:
                found[f"{file} (bytes, modified in ns)"] = state
    return found


def _digest(plain: Mapping[str, Any]) -> str:
    """Sixteen hexadecimal digits that differ where the contents do."""
    return hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()[:16]


def _file_state(path: str) -> list[int] | None:
    """Size in bytes and time of modification in nanoseconds; None for all that is no file of this machine."""
    try:
        state = os.stat(path)
    except (OSError, ValueError):  # a URL, a path in an archive
        return None
    return [state.st_size, state.st_mtime_ns] if stat.S_ISREG(state.st_mode) else None


def begin_or_resume(
    output_dir: Path, parts: Parts, *, names: Iterable[str], job: Mapping[str, Any], overwrite: bool, resume: bool
) -> None:
    """Refuses to replace existing rasters unless asked to, and opens the folder of parts.

    Args:
        output_dir: where results go.
        parts: the folder of parts.
        names: names of the rasters that will be written.
        job: settings that the parts depend on, fit for JSON.
        overwrite: existing rasters may be replaced.
        resume: go on with the parts of a stopped run.

    Raises:
        ValueError: a raster exists, or the parts are of another job.
    """
    existing = [path for path in (output_dir / f"{name}.tif" for name in names) if path.exists()]
    resumes = resume and parts.folder.exists()
    if existing and not overwrite and not resumes:
        raise ValueError(f"{existing[0]} exists; give --overwrite to replace it, or another --output_dir")
    parts.open(job, resume=resume)


def finish(
    output_dir: Path,
    parts: Parts,
    product: Product,
    *,
    length_unit: str,
    unit_length: float = 1.0,
    where: str = "",
    beside: Callable[[], Sequence[Panel]] | None = None,
    layers: Sequence[SourceLayer] = (),
) -> dict[str, Any]:
    """Joins the parts into files under their final names, draws them, styles them for QGIS, and removes the parts.

    Rasters without a valid pixel are left out with a warning.

    Args:
        output_dir: where results go.
        parts: the parts.
        product: what they are parts of.
        length_unit: unit of lengths on the ground, for scale bars.
        unit_length: length of a CRS unit along x, in that unit.
        where: where on the maps that length holds, if not everywhere.
        beside: gives maps to draw beside the first raster; None: none.
        layers: the layers that the product was made of, for the project of QGIS.

    Returns:
        What was written, for the page of the run: `rasters` with their sizes and bands, and the `project`.

    Raises:
        ValueError: no raster has a valid pixel.
        OSError: a file cannot be written.
    """
    derived_parts = Parts(parts.folder / "derived")
    specs_of_derived = product.derive(parts, derived_parts)
    computed, derived = _with_pixels(product.rasters, parts), _with_pixels(specs_of_derived, derived_parts)
    if not computed:
        names = ", ".join(product.rasters)
        raise ValueError(f"{output_dir}: no valid pixel in {names}: nothing is written; check the layers and --aoi")
    for name in sorted({**product.rasters, **specs_of_derived}.keys() - {**computed, **derived}.keys()):
        _leave_out(output_dir / f"{name}.tif")
    rasters = {name: spec for name, (spec, _) in {**derived, **computed}.items()}
    for name, (spec, found) in {**computed, **derived}.items():
        path = output_dir / f"{name}.tif"
        join(path, spec, found, workspace=parts.folder)
        write_style(path, spec)
        logger.info("raster   %s", path)
    lengths: dict[str, Any] = {"length_unit": length_unit, "unit_length": unit_length, "where": where}
    for number, name in enumerate(derived or computed):
        others = beside() if beside is not None and not number else ()
        path = draw_raster(output_dir / f"{name}.tif", rasters[name], beside=others, **lengths)
        logger.info("picture  %s", path)
    project = write_project(output_dir, rasters, layers)
    logger.info("next: open %s in QGIS, or any of the rasters: their colours lie beside them (.qml)", project)
    parts.remove()
    written = [raster_facts(output_dir / f"{name}.tif", rasters[name]) for name in (*computed, *derived)]
    return {"rasters": written, "project": project.name}


def _with_pixels(rasters: Mapping[str, RasterSpec], parts: Parts) -> dict[str, tuple[RasterSpec, list[Part]]]:
    """The rasters with a valid pixel, and their parts."""
    found = {name: (spec, parts.of(name)) for name, spec in rasters.items()}
    return {name: (spec, own) for name, (spec, own) in found.items() if own}


def _leave_out(path: Path) -> None:
    """Warns that a raster is not written, and removes an older one, which would be taken for a result of this run."""
    logger.warning("%s: no valid pixel in it, so it is not written; check the layers and --aoi", path)
    for older in (path, Path(f"{path}.aux.xml"), path.with_suffix(".qml"), path.with_suffix(".png")):
        older.unlink(missing_ok=True)


def raster_facts(path: Path, spec: RasterSpec) -> dict[str, str]:
    """A raster in a few words.

    Args:
        path: its file.
        spec: what it is.

    Raises:
        OSError: it is not there.
    """
    names = ", ".join(spec.names[:MOST_NAMES]) + ", ..." * (len(spec.names) > MOST_NAMES)
    return {
        "name": path.stem,
        "pixels": f"{spec.cols:,} x {spec.rows:,}",
        "pixel": f"{spec.transform.a:.6g} {length_unit_of(spec.crs)}".strip(),
        "bands": f"{len(spec.names)}: {names}",
        "type": spec.dtype,
        "size": f"{path.stat().st_size / 1e6:,.1f} MB",
    }
