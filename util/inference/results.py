"""Results under their final names: what may be replaced, parts joined to rasters, and a picture beside each."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from util.geotiff.cog_writer import join
from util.geotiff.parts import Parts
from util.geotiff.raster_spec import RasterSpec
from util.inference.quicklooks import draw_raster, embedding_quicklooks

logger = logging.getLogger(__name__)


def begin_or_resume(
    output_dir: Path, parts: Parts, *, names: Iterable[str], job: Mapping[str, Any], overwrite: bool, resume: bool
) -> None:
    """Refuses to replace results unasked, and makes room for parts.

    Args:
        output_dir: where results go.
        parts: where parts wait.
        names: of the rasters that will be written.
        job: what the parts depend on, fit for JSON.
        overwrite: results that exist may be replaced.
        resume: go on with parts that are there.

    Raises:
        ValueError: a result exists, or parts are of another job.
    """
    existing = [path for path in (output_dir / f"{name}.tif" for name in names) if path.exists()]
    resumes = resume and parts.folder.exists()
    if existing and not overwrite and not resumes:
        raise ValueError(f"{existing[0]} exists; give --overwrite to replace it, or another --output_dir")
    parts.open(job, resume=resume)


def quicklook_names(rasters: Iterable[str], *, clusters: int) -> list[str]:
    """Names of the rasters that will be written: those that are made, and those derived from embeddings."""
    names = list(rasters)
    if "embeddings" in names:
        names += ["embeddings_pca"] + ["embeddings_clusters"] * bool(clusters)
    return names


def finish(
    output_dir: Path,
    parts: Parts,
    rasters: Mapping[str, RasterSpec],
    *,
    clusters: int,
    seed: int,
    length_unit: str,
    unit_length: float = 1.0,
    where: str = "",
) -> None:
    """Joins the parts into files under their final names, draws them, and removes the parts.

    Args:
        output_dir: where results go.
        parts: the parts.
        rasters: what they are parts of, by name.
        clusters: number of classes of embeddings, 0 = none.
        seed: of the classes.
        length_unit: of lengths on the ground.
        unit_length: that many of them in a CRS unit of x.
        where: where on the maps that holds, if not everywhere.

    Raises:
        ValueError: a raster has no valid pixel.
        OSError: a file cannot be written.
    """
    derived = Parts(parts.folder / "derived")
    whole = {name: (spec, parts) for name, spec in rasters.items()}
    if "embeddings" in rasters:
        looks = embedding_quicklooks(
            rasters["embeddings"], parts.of("embeddings"), derived, clusters=clusters, seed=seed
        )
        whole |= {name: (spec, derived) for name, spec in looks.items()}
    for name, (spec, waiting) in whole.items():
        path = output_dir / f"{name}.tif"
        found = waiting.of(name)
        if not found:
            raise ValueError(f"{path}: no valid pixel in it, so it is not written; check the layers and --aoi")
        join(path, spec, found, workspace=parts.folder)
        logger.info("raster   %s", path)
    for name, (spec, _) in whole.items():
        if name != "embeddings":
            lengths = {"length_unit": length_unit, "where": where}
            picture = draw_raster(output_dir / f"{name}.tif", spec, unit_length=unit_length, **lengths)
            logger.info("picture  %s", picture)
    parts.remove()
