"""Quicklooks: PCA colours and k-means classes of embeddings, and a PNG beside every raster."""

from __future__ import annotations

import logging
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from sklearn.decomposition import PCA

from util.geotiff.cog_writer import read_reduced
from util.geotiff.parts import Part, Parts, read_part
from util.geotiff.raster_spec import RasterSpec, length_unit_of
from util.inference.embedding_components import (
    CLUSTER_COMPONENTS,
    CLUSTER_WINDOW,
    class_colours,
    classify,
    fit_clusters,
    fit_components,
    project,
    smooth,
    to_bytes,
)
from util.plots.maps import Corner, Panel, map_figure
from util.plots.reconstruction import robust_limits, save_figure

logger = logging.getLogger(__name__)

SAMPLE_PLACES = 50_000
"""Places at which components and clusters are fitted."""

PICTURE_PIXELS = 900
ROUGH_PIXELS = 64
TITLE_WIDTH = 60
"""Characters in a line of the title of a single map."""
MOST_LEGEND = 40
"""Classes that all stand in a legend, whether they occur or not."""
MOST_CLASSES = 12
"""Classes whose probabilities a picture shows, at most."""

_STYLES = {"spread": "magnitude", "error": "difference", "uncertainty": "magnitude"}


def embedding_quicklooks(
    spec: RasterSpec, parts: Sequence[Part], into: Parts, *, clusters: int, seed: int
) -> dict[str, RasterSpec]:
    """Computes colours out of principal components and, if asked for, classes.

    Args:
        spec: the embeddings.
        parts: their parts.
        into: gets the parts of the new rasters.
        clusters: number of classes, 0 = none.
        seed: of the clusters.

    Returns:
        The rasters made, by name; none, with a warning, if fewer than two places have an embedding.

    Raises:
        ValueError: no place has an embedding.
    """
    if not parts:
        raise ValueError("no place has an embedding: no layer has a valid pixel here; check the layers and --aoi")
    vectors = _sample(spec, parts)
    if len(vectors) < 2:
        logger.warning("a single place has an embedding: without others no colours%s", " or classes" * bool(clusters))
        return {}
    components = fit_components(vectors, CLUSTER_COMPONENTS if clusters else 3)
    places = project(components, vectors.T)
    low, high = np.percentile(_first_three(places), (2, 98), axis=1)
    explained = ", ".join(f"{100 * x:.1f} %" for x in components.explained_variance_ratio_[:3])
    logger.info("three components explain %s of the variance", explained)
    picture = replace(
        spec,
        dtype="uint8",
        nodata=0,
        names=("component_1", "component_2", "component_3"),
        units=("",) * 3,
        tags={**spec.tags, "variance_explained": explained, "scaled": "2 to 98 % of each component as 1 to 255"},
        is_picture=True,
    )
    rasters = {"embeddings_pca": picture}
    if clusters:
        centres = fit_clusters(_smooth_sample(components, parts), clusters, seed=seed)
        if len(centres) < clusters:
            found = len(centres)
            logger.warning("--clusters %d: only %d places have an embedding, so %d classes", clusters, found, found)
        classes = {k: (f"class {k}", colour) for k, colour in enumerate(class_colours(len(centres)), start=1)}
        tags = {**spec.tags, "smoothed": f"mean of {CLUSTER_WINDOW} x {CLUSTER_WINDOW} places before clustering"}
        classed = replace(spec, dtype="uint8", nodata=0, names=("class",), units=("",), classes=classes, tags=tags)
        rasters["embeddings_clusters"] = classed
    into.open({"of": "embeddings"}, resume=False)
    for number, (path, row, col, _, _) in enumerate(parts):
        projected = project(components, read_part(path))
        arrays = {"embeddings_pca": (picture, to_bytes(_first_three(projected), low, high), row, col)}
        if clusters:
            arrays["embeddings_clusters"] = (classed, classify(smooth(projected), centres), row, col)
        into.write(number, 0, arrays)
    return rasters


def _smooth_sample(components: PCA, parts: Sequence[Part]) -> np.ndarray:
    """(n, k) smoothed components of places, as many from each part."""
    sample, most = [], -(-SAMPLE_PLACES // len(parts))
    for path, *_ in parts:
        flat = smooth(project(components, read_part(path))).reshape(components.n_components_, -1).T
        flat = flat[np.isfinite(flat).all(axis=1)]
        sample.append(flat[np.linspace(0, len(flat) - 1, min(most, len(flat))).round().astype(int)])
    return np.concatenate(sample)


def _first_three(projected: np.ndarray) -> np.ndarray:
    """The first three components, zeros in place of those that do not exist."""
    return np.concatenate([projected[:3], *[0 * projected[:1]] * (3 - len(projected))])


def _sample(spec: RasterSpec, parts: Sequence[Part]) -> np.ndarray:
    """(n, B) vectors of places with any band, as many from each part; a band that is absent there has its mean.

    A band that is absent everywhere is 0, so that it has no variance.
    """
    sample = []
    for path, *_ in parts:
        flat = read_part(path).reshape(len(spec.names), -1).T
        flat = flat[np.isfinite(flat).any(axis=1)]
        most = -(-SAMPLE_PLACES // len(parts))
        sample.append(flat[np.linspace(0, len(flat) - 1, min(most, len(flat))).round().astype(int)])
    vectors = np.concatenate(sample)
    known = np.isfinite(vectors)
    means = np.where(known, vectors, 0.0).sum(axis=0, dtype=np.float64) / np.maximum(known.sum(axis=0), 1)
    return np.where(known, vectors, means.astype(vectors.dtype))


def draw_raster(
    path: Path,
    spec: RasterSpec,
    *,
    length_unit: str,
    unit_length: float = 1.0,
    where: str = "",
    beside: Sequence[Panel] = (),
) -> Path:
    """Draws a raster as PNG beside it; returns the picture's path.

    Args:
        path: the raster.
        spec: what it is.
        length_unit: of lengths on its ground.
        unit_length: length of a CRS unit along x, in that unit.
        where: where on the map that length holds, if not everywhere.
        beside: further maps of the same ground.
    """
    spec, bands = _shown(path, spec)
    pixels, width = read_reduced(path, bands=bands, most=PICTURE_PIXELS)
    if spec.is_picture:
        panels = [Panel("three principal components", pixels, style="colours")]
    elif spec.classes is not None:
        occurring = set(np.unique(pixels[0][np.isfinite(pixels[0])]).astype(int).tolist())
        panels = [_class_panel(spec.classes, pixels[0], occurring)]
    else:
        panels = panels_of(spec, pixels)
    if spec.points:
        panels[0] = replace(panels[0], points=np.array(spec.points), point_name=spec.point_name)
    panels += beside
    title = "\n".join([path.stem, *_remarks(spec, width=TITLE_WIDTH * min(len(panels), 2))])
    size = width * unit_length
    corner = Corner(spec.left, spec.top, length_unit_of(spec.crs), unit_length)
    figure = map_figure(panels, pixel_size=size, length_unit=length_unit, title=title, where=where, corner=corner)
    save_figure(path.with_suffix(".png"), figure)
    return path.with_suffix(".png")


def _class_panel(
    classes: Mapping[int, tuple[str, tuple[int, int, int]]], image: np.ndarray, occurring: set[int]
) -> Panel:
    """A map of classes whose legend has all of them, also those that do not occur here; of many only those that do."""
    shown = classes if len(classes) <= MOST_LEGEND else {k: style for k, style in classes.items() if k in occurring}
    legend = {
        code: (name if code in occurring else f"{name} (not here)", colour)
        for code, (name, colour) in (shown or classes).items()
    }
    return Panel(f"{len(occurring)} of {len(classes)} classes occur", image, classes=legend)


def _remarks(spec: RasterSpec, *, width: int) -> list[str]:
    """Score and warning of a prediction, so that they stay with the picture."""
    return [line for key in ("score", "warning") for line in textwrap.wrap(spec.tags.get(key, ""), width)]


def _shown(path: Path, spec: RasterSpec) -> tuple[RasterSpec, list[int]]:
    """The bands that a picture has room for, numbered from 1: of many classes the most probable."""
    bands = list(range(1, len(spec.names) + 1))
    if spec.limits is None or len(bands) <= MOST_CLASSES:
        return spec, bands
    rough = read_reduced(path, bands=bands, most=ROUGH_PIXELS)[0]
    largest = np.sort(np.argsort(-np.nanmean(rough, axis=(1, 2)))[:MOST_CLASSES])
    names, units = ([texts[k] for k in largest] for texts in (spec.names, spec.units))
    return replace(spec, names=tuple(names), units=tuple(units)), [bands[k] for k in largest]


def panels_of(spec: RasterSpec, pixels: np.ndarray) -> list[Panel]:
    """A panel for each band; fields of one unit share their colours; a reconstruction also shows the observed field."""
    if spec.limits is not None:
        bounded = zip(spec.names, spec.units, pixels, strict=True)
        span = "{:g} to {:g}".format(*spec.limits)
        return [Panel(name, image, unit or span, limits=spec.limits) for name, unit, image in bounded]
    kinds = [name.rsplit(" ", 1)[-1] for name in spec.names]
    bands = list(zip(kinds, spec.names, spec.units, pixels, strict=True))
    if "reconstruction" in kinds and "error" in kinds:
        observed = pixels[kinds.index("reconstruction")] + pixels[kinds.index("error")]
        name = spec.names[0].removesuffix("reconstruction") + "observed"
        bands.insert(0, ("observed", name, spec.units[0], observed))
    panels = []
    for kind, name, unit, image in bands:
        if kind == "uncertainty":  # zero where measured: what was filled stands out
            image = np.where(image == 0, np.nan, image)
        alike = [other for k, _, u, other in bands if k not in _STYLES and u == unit]
        limits = robust_limits(alike) if alike else None
        panels.append(Panel(name, image, unit, _STYLES.get(kind, "field"), limits=limits))
    return panels
