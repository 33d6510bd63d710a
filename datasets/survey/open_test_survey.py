"""Opens another survey of the same layers, whose ground is scored in place of held-out ground (`--test_path`)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

from rasterio.crs import CRS
from rasterio.warp import transform_bounds

from datasets.ground.area_of_interest import load_area_of_interest
from datasets.ground.grid import ALIKE, GDAL_ERRORS, Grid, check_unit
from datasets.ground.planet import longitude_periods
from datasets.survey.open_layers import TrainedLayers
from datasets.survey.open_survey import SurveySettings, open_bands, open_survey
from datasets.survey.scales_and_groups import check_native_scales
from datasets.survey.stack import longest_edge, reference_grid
from datasets.survey.survey import Survey

LEAST_OVERLAP = 0.001
"""Share of the test survey's ground that training must share for a warning: less is a common edge."""


def open_test_survey(survey: Survey, table: str, *, settings: SurveySettings) -> Survey:
    """Open another survey of the same layers, all of whose tiles are held out: for scoring.

    A layer is scored there at the scales at which it is scored in training, but at none finer than its pixels there.

    Args:
        survey: the survey that is trained on.
        table: CSV that names the other survey's layers.
        settings: those that the first survey was opened with.

    Raises:
        ValueError: its layers are not those that are trained on, or it cannot be used.
        FileNotFoundError: a file does not exist.
    """
    where = f"--test_path {table}"
    trained = TrainedLayers(survey.layers, survey.encodings)
    settings = replace(
        settings,
        data_dir=None,
        data_path=None,
        layers_table=table,
        base_resolution=survey.base_resolution,
        transforms={},
        native=False,  # the pyramid of the training survey reads its tiles
        val_fraction=0.0,
        tile_overlap=0.5,
        trained=trained,
    )
    bands, base = open_bands(settings), survey.base_resolution
    reference = reference_grid(bands, extent=settings.extent)
    check_unit(reference.crs, survey.stack.reference.crs, base=base, where=where)
    if survey.native_scales:
        unseen = {*settings.masked_bands, *survey.targets}
        check_native_scales(bands, survey.native_scales, base_resolution=base, hidden=unseen)
    if all(longest_edge(bands[number]) > base * ALIKE for number in survey.scored[1]):
        raise ValueError(
            f"{where}: every layer that is scored in training is coarser there than the base pixel of {base:g}, so "
            "nothing could be scored; give finer layers, or train with a larger --base_resolution"
        )
    settings, notes = _with_area(settings, reference, where=where)
    other = open_survey(settings)
    scored = {s: tuple(sorted({*survey.scored[s]} & {*other.scored.get(s, ())})) for s in survey.scales}
    return replace(
        other,
        statistics=survey.statistics,
        tiles=replace(other.tiles, val=other.tiles.train),
        scales=survey.scales,
        scored=scored,
        layer_warnings=(*other.layer_warnings, *notes, *_overlap(reference, survey.stack.reference, where=where)),
    )


def _with_area(settings: SurveySettings, reference: Grid, *, where: str) -> tuple[SurveySettings, list[str]]:
    """The settings without polygons that lie elsewhere, as those of the training ground may, and a note about them."""
    if settings.aoi is None:
        return settings, []
    try:
        lies_here = bool(load_area_of_interest(settings.aoi, reference.crs).near(*reference.bounds))
    except ValueError:  # training has read them, so it is this CRS that they cannot be brought to
        lies_here = False
    if lies_here:
        return settings, []
    return replace(settings, aoi=None), [f"{where}: --aoi {settings.aoi} lies elsewhere: all of that ground is scored"]


def _overlap(reference: Grid, trained: Grid, *, where: str) -> list[str]:
    """A warning if the bounds of a test survey and those of training overlap."""
    left, bottom, right, top = bounds = reference.bounds
    share = sum(_common_area(bounds, other) for other in _bounds_in(trained, reference.crs))
    share /= (right - left) * (top - bottom)
    if share < LEAST_OVERLAP:
        return []
    return [
        f"{where}: {100 * min(share, 1.0):.3g} % of its ground lies within the bounds of the training survey: scores "
        "of ground that is trained on are too good; give other ground, or leave it out to score held-out blocks"
    ]


def _bounds_in(grid: Grid, crs: CRS) -> list[tuple[float, float, float, float]]:
    """Bounds of a grid in another CRS, on a planet also a turn further west and east; none if that cannot be said."""
    try:
        bounds = grid.bounds if grid.crs == crs else transform_bounds(grid.crs, crs, *grid.bounds)
    except GDAL_ERRORS:
        return []
    left, bottom, right, top = bounds
    periods = longitude_periods(crs)
    if right < left:  # across the line where longitudes begin
        right += max(periods)
    if not all(map(math.isfinite, bounds)) or right <= left:
        return []
    return [(left + shift, bottom, right + shift, top) for shift in periods]


def _common_area(one: Sequence[float], other: Sequence[float]) -> float:
    """Area that two rectangles (left, bottom, right, top) share."""
    width = min(one[2], other[2]) - max(one[0], other[0])
    height = min(one[3], other[3]) - max(one[1], other[1])
    return max(width, 0.0) * max(height, 0.0)
