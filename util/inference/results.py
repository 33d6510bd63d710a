"""Output files: existing ones are protected, finished parts are joined into rasters, and each gets a picture."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from util.geotiff.cog_writer import join
from util.geotiff.parts import Parts
from util.geotiff.raster_spec import RasterSpec, length_unit_of
from util.inference.product import Product
from util.inference.qgis import SourceLayer, write_project, write_style
from util.inference.quicklooks import draw_raster
from util.plots.maps import Panel

logger = logging.getLogger(__name__)

MOST_NAMES = 6
"""Bands that a page names."""


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
        ValueError: a raster has no valid pixel.
        OSError: a file cannot be written.
    """
    derived_parts = Parts(parts.folder / "derived")
    derived = product.derive(parts, derived_parts)
    sources = {name: (spec, parts) for name, spec in product.rasters.items()}
    sources |= {name: (spec, derived_parts) for name, spec in derived.items()}
    for name, (spec, source) in sources.items():
        path = output_dir / f"{name}.tif"
        found = source.of(name)
        if not found:
            raise ValueError(f"{path}: no valid pixel in it, so it is not written; check the layers and --aoi")
        join(path, spec, found, workspace=parts.folder)
        write_style(path, spec)
        logger.info("raster   %s", path)
    lengths: dict[str, Any] = {"length_unit": length_unit, "unit_length": unit_length, "where": where}
    for number, (name, spec) in enumerate((derived or product.rasters).items()):
        others = beside() if beside is not None and not number else ()
        logger.info("picture  %s", draw_raster(output_dir / f"{name}.tif", spec, beside=others, **lengths))
    project = write_project(output_dir, {**derived, **product.rasters}, layers)
    logger.info("next: open %s in QGIS, or any of the rasters: their colours lie beside them (.qml)", project)
    parts.remove()
    written = [raster_facts(output_dir / f"{name}.tif", spec) for name, (spec, _) in sources.items()]
    return {"rasters": written, "project": project.name}


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
