"""Which layer is scored at which scale, and which layers share a channel group."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from datasets.ground.grid import ALIKE
from datasets.rasters.band import RasterBand
from datasets.rasters.wrapped_band import WrappedBand
from datasets.survey.pyramid import NativeGroup
from datasets.survey.stack import longest_edge


def score_scales(
    bands: Sequence[RasterBand | WrappedBand],
    *,
    scales: Sequence[int],
    base_resolution: float,
    hidden: Sequence[int] = (),
) -> tuple[tuple[int, ...], dict[int, tuple[int, ...]], list[str]]:
    """Decide which layer is scored at which scale: none at a scale finer than its native pixels.

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


MAX_NATIVE_SCALE = 16
"""Finest scale at which a stem reads a layer; finer layers are averaged to it, so that tiles fit into memory."""


def native_scales(bands: Sequence[RasterBand | WrappedBand], *, base_resolution: float) -> tuple[int, ...]:
    """How many native pixels of each layer lie along the edge of a base pixel.

    Args:
        bands: the layers.
        base_resolution: edge of a base-scale pixel, CRS units.

    Returns:
        For each layer the largest whole number, up to `MAX_NATIVE_SCALE`, of parts that are no finer than its pixels;
        1 for layers as coarse as the base pixel.
    """
    fits = (int(base_resolution / longest_edge(band) * ALIKE) for band in bands)
    return tuple(min(max(scale, 1), MAX_NATIVE_SCALE) for scale in fits)


def check_native_scales(
    bands: Sequence[RasterBand | WrappedBand],
    needed: Sequence[int],
    *,
    base_resolution: float,
    hidden: Iterable[int] = (),
) -> None:
    """Refuse layers that are coarser than the pixels at which a model's stem reads them; finer ones are averaged.

    Args:
        bands: the layers.
        needed: of each layer, the scale at which the model reads it; none for a model that sees base pixels alone.
        base_resolution: edge of a base-scale pixel, CRS units.
        hidden: numbers of layers that are not shown.

    Raises:
        ValueError: naming layer, resolution and what was expected.
    """
    found = native_scales(bands, base_resolution=base_resolution)
    for number, (band, scale, least) in enumerate(zip(bands, found, needed, strict=bool(needed))):
        if scale < least and number not in set(hidden):
            raise ValueError(
                f"{band.layer.where}: pixels of {longest_edge(band):g}, expected at most {base_resolution / least:g}: "
                f"the model's stem reads {least} x {least} of them in a base pixel of {base_resolution:g}, and values "
                "interpolated to that would be another quantity. Give the layer at that resolution or finer, hide it "
                "(--masked_bands) or leave it out (--missing_layers allow), or use a model trained with --stem base"
            )


def native_groups(groups: Sequence[Sequence[int]], scales: Sequence[int]) -> tuple[NativeGroup, ...]:
    """The channel groups that have pixels finer than the base pixel: at the scale of the finest of their layers.

    Args:
        groups: numbers of the layers of each group.
        scales: of each layer, as of `native_scales`.
    """
    found = (NativeGroup(tuple(group), max(scales[layer] for layer in group)) for group in groups)
    return tuple(group for group in found if group.scale > 1)


def channel_groups(
    bands: Sequence[RasterBand],
    *,
    grouped_bands: Sequence[Sequence[int]] | None = None,
    one_group: bool = False,
    targets: Sequence[int] = (),
) -> tuple[tuple[int, ...], ...]:
    """Groups of channels that share tokens.

    Args:
        bands: the layers.
        grouped_bands: groups by layer number, as given.
        one_group: everything together.
        targets: numbers of the layers that are predicted and never seen; they share no group with others.

    Returns:
        The groups: as given, one, by the `group` column of the layers table, or by native resolution (finest first).
        Those of targets come last.

    Raises:
        ValueError: if the groups given are not a partition of the layers, or mix targets with others.
    """
    if grouped_bands is not None:
        groups = given_groups(grouped_bands, [band.layer.name for band in bands])
        return _targets_last(groups, bands, targets, "--grouped_bands")
    if one_group:
        seen = tuple(number for number in range(len(bands)) if number not in targets)
        return (seen, tuple(sorted(targets))) if targets else (seen,)
    by_key: dict[tuple[bool, float, str], list[int]] = {}
    resolutions: list[float] = []
    for edge in sorted(longest_edge(band) for band in bands):
        if not resolutions or edge > resolutions[-1] * ALIKE:
            resolutions.append(edge)
    for channel, band in enumerate(bands):
        resolution = max(r for r in resolutions if r <= longest_edge(band))
        # Without a label targets are kept apart; one that they share with other layers is refused below.
        key = (False, -1.0, band.layer.group) if band.layer.group else (channel in targets, resolution, "")
        by_key.setdefault(key, []).append(channel)
    return _targets_last([tuple(by_key[key]) for key in sorted(by_key)], bands, targets, "column `group`")


def _targets_last(
    groups: Sequence[tuple[int, ...]], bands: Sequence[RasterBand], targets: Sequence[int], where: str
) -> tuple[tuple[int, ...], ...]:
    """The groups in their order, those of targets after the others.

    Raises:
        ValueError: a group mixes targets with other layers.
    """
    for group in groups:
        apart: tuple[list[str], list[str]] = ([], [])
        for number in group:
            apart[number in targets].append(f"'{bands[number].layer.name}'")
        if all(apart):
            raise ValueError(
                f"{where} puts {', '.join(apart[1])}, a target (--target_layers), into one channel group with "
                f"{', '.join(apart[0])}; expected groups of targets alone, which the encoder never sees; divide it"
            )
    return tuple(sorted(groups, key=lambda group: group[0] in targets))


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
