"""Which layer is scored at which scale, and which layers share a channel group."""

from __future__ import annotations

from collections.abc import Sequence

from datasets.ground.grid import ALIKE
from datasets.rasters.band import RasterBand
from datasets.rasters.wrapped_band import WrappedBand
from datasets.survey.stack import longest_edge


def score_scales(
    bands: Sequence[RasterBand | WrappedBand],
    *,
    scales: Sequence[int],
    base_resolution: float,
    hidden: Sequence[int] = (),
) -> tuple[tuple[int, ...], dict[int, tuple[int, ...]], list[str]]:
    """Decide which layer is scored at which scale: none at a scale finer than its own pixels.

    Args:
        bands: the layers.
        scales: scales asked for.
        base_resolution: edge of a base-scale pixel, CRS units.
        hidden: channels that are not to be scored: shown as no-data, or of loss_weight 0.

    Returns:
        The scales at which some layer is scored, the channels scored at each, and warnings.

    Raises:
        ValueError: if no layer can be scored at the base scale.
    """
    pixels = {c: longest_edge(band) for c, band in enumerate(bands) if c not in set(hidden)}
    scored = {
        scale: tuple(c for c, pixel in pixels.items() if pixel <= base_resolution / scale * ALIKE)
        for scale in sorted(scales)
    }
    if not scored[1]:
        finest = min(pixels.values())
        raise ValueError(
            f"--base_resolution {base_resolution:g} is finer than every layer (the finest has pixels of {finest:g}); "
            f"choose at least {finest:g}"
        )
    notes = [
        f"layer '{bands[c].layer.name}' has pixels of {pixel:g}, coarser than the base pixel of {base_resolution:g}: "
        f"the model sees it but is not scored on it; a --base_resolution of {pixel:g} would score it"
        for c, pixel in pixels.items()
        if c not in scored[1]
    ]
    empty = [scale for scale in scored if not scored[scale]]
    notes += [f"no layer is as fine as scale {scale} ({base_resolution / scale:g}): it is left out" for scale in empty]
    kept = {scale: channels for scale, channels in scored.items() if channels}
    return tuple(kept), kept, notes


def channel_groups(
    bands: Sequence[RasterBand],
    *,
    grouped_bands: Sequence[Sequence[int]] | None = None,
    one_group: bool = False,
) -> tuple[tuple[int, ...], ...]:
    """Groups of channels that share tokens.

    Args:
        bands: the layers.
        grouped_bands: groups by layer number, as given.
        one_group: everything together.

    Returns:
        The groups: as given, one, by the `group` column of the layers table, or by native resolution (finest first).

    Raises:
        ValueError: if the groups given are not a partition of the layers.
    """
    if grouped_bands is not None:
        return given_groups(grouped_bands, [band.layer.name for band in bands])
    if one_group:
        return (tuple(range(len(bands))),)
    by_key: dict[tuple[float, str], list[int]] = {}
    resolutions: list[float] = []
    for edge in sorted(longest_edge(band) for band in bands):
        if not resolutions or edge > resolutions[-1] * ALIKE:
            resolutions.append(edge)
    for channel, band in enumerate(bands):
        resolution = max(r for r in resolutions if r <= longest_edge(band))
        key = (-1.0, band.layer.group) if band.layer.group else (resolution, "")
        by_key.setdefault(key, []).append(channel)
    return tuple(tuple(by_key[key]) for key in sorted(by_key))


def given_groups(grouped_bands: Sequence[Sequence[int]], names: Sequence[str]) -> tuple[tuple[int, ...], ...]:
    """Channel groups as given by layer number.

    Raises:
        ValueError: they are not a partition of the layers of these names.
    """
    groups, count = tuple(tuple(group) for group in grouped_bands), len(names)
    flat = [c for group in groups for c in group]
    missing = sorted(set(range(count)) - set(flat))
    extra = sorted(set(flat) - set(range(count)))
    twice = sorted({c for c in flat if flat.count(c) > 1})
    if missing or extra or twice or not all(groups):
        listed_names = ", ".join(f"{c} = {name}" for c, name in enumerate(names))
        raise ValueError(
            f"--grouped_bands {[list(g) for g in groups]} is not a partition of the {count} layers ({listed_names}): "
            f"missing {missing}, twice {twice}, unknown {extra}; name every layer number once"
        )
    return groups
