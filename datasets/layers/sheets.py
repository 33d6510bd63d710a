"""Which rasters of a directory are sheets of one layer, by their names and headers; no pixels are read."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from datasets.ground.grid import SNAP
from datasets.layers.discovery import RasterContents, RasterHeader
from datasets.layers.paths import SHEET_SEPARATOR, sheet_paths, stem_of

logger = logging.getLogger(__name__)

# Words that tell sheets apart, besides numbers and single letters.
_PLACES = frozenset(
    "nw ne sw se north south east west northeast northwest southeast southwest "
    "upper lower left right top bottom middle center centre central".split()
)
_TOKEN = re.compile(r"[^\W\d_]+|\d+")
# Two sheets may share this fraction of the smaller one; rasters that share more are layers over the same ground.
_MOST_OVERLAP = 0.25

Found = tuple[Path, RasterContents, str | None]
"""First file of a raster, what it holds, and the name of its layer if that is not the file's stem."""


def join_sheets(rasters: Sequence[tuple[Path, RasterContents]], root: Path) -> list[Found]:
    """The rasters of a directory, with the sheets of each layer in place of its first one.

    Rasters are sheets of one layer if their names differ only in numbers, single letters and words such as north or
    left; they share CRS, type, bands and pixel grid; some touch, none shares more than a quarter of its ground with
    another, and none is farther from the others than a sheet is large.

    Args:
        rasters: in the order of layers.
        root: the directory; names of folders below it count as parts of the names.

    Raises:
        ValueError: names and places are those of sheets, but something else is not; the message has both readings.
    """
    groups: dict[tuple[str, ...], list[int]] = {}
    for number, (path, contents) in enumerate(rasters):
        key = _key(path, contents, root)
        if key is not None:
            groups.setdefault(key, []).append(number)
    joined: dict[int, Found | None] = {}
    for group in groups.values():
        members = [rasters[number] for number in group]
        if len(group) == 1 or not _lie_side_by_side([_header(contents) for _, contents in members], members, root):
            continue
        paths = [contents.rasters[0][0] for _, contents in members]
        path, contents = members[0]
        raster = (SHEET_SEPARATOR.join(paths), *contents.rasters[0][1:])
        name = name_of(raster[0])
        joined |= dict.fromkeys(group[1:])
        joined[group[0]] = (path, replace(contents, rasters=(raster,)), name)
        logger.info("%s: %d files are sheets of one layer: %s", name, len(group), _listed(members, root))
    found = [joined.get(number, (*raster, None)) for number, raster in enumerate(rasters)]
    return [each for each in found if each is not None]


def name_of(path: str) -> str:
    """The name that a layer gets from its path: the file's stem, or what the stems of its sheets share."""
    paths = sheet_paths(path)
    if len(paths) == 1:
        return stem_of(path)
    stems = [stem_of(sheet) for sheet in paths]
    shared = [_shared_words(stem) for stem in stems]
    if all([word.lower() for word in words] == [word.lower() for word in shared[0]] for words in shared):
        return "_".join(shared[0]) or "sheets"
    return os.path.commonprefix(stems).rstrip("_-. ") or stems[0]


def longer_name_of(path: str) -> str:
    """The name of a layer in sheets with the numbers that all of them share, such as a year."""
    words = [_TOKEN.findall(stem_of(sheet)) for sheet in sheet_paths(path)]
    return "_".join(each[0] for each in zip(*words, strict=False) if len(set(each)) == 1) or name_of(path)


def _shared_words(name: str) -> list[str]:
    """The words of a name that do not tell sheets apart."""
    return [word for word in _TOKEN.findall(name) if not (word.isdigit() or len(word) == 1 or word.lower() in _PLACES)]


def _key(path: Path, contents: RasterContents, root: Path) -> tuple[str, ...] | None:
    """What sheets of one layer have in common by name and CRS; None for what cannot be a sheet."""
    header, name = contents.header, os.path.relpath(path.with_suffix(""), root)
    if header is None or header.transform.is_identity or header.transform.b or header.transform.d:
        return None
    words = _shared_words(name)
    if not words and not any(character.isdigit() for character in name):
        return None  # single letters alone, such as K and U, are no numbers of sheets
    return (header.crs, *(word.lower() for word in words))


def _header(contents: RasterContents) -> RasterHeader:
    assert contents.header is not None
    return contents.header


def _lie_side_by_side(
    headers: Sequence[RasterHeader], members: Sequence[tuple[Path, RasterContents]], root: Path
) -> bool:
    """Whether rasters of like names are sheets of one layer.

    Raises:
        ValueError: some are, but others not.
    """
    left, bottom, right, top = np.array([header.bounds for header in headers]).T
    pixel = max(abs(number) for header in headers for number in (header.transform.a, header.transform.e))
    across = np.minimum.outer(right, right) - np.maximum.outer(left, left)  # overlap in x, negative for a distance
    down = np.minimum.outer(top, top) - np.maximum.outer(bottom, bottom)
    area = (right - left) * (top - bottom)
    overlap = np.clip(across, 0, None) * np.clip(down, 0, None) / np.minimum.outer(area, area)
    others = ~np.eye(len(headers), dtype=bool)
    covers = others & (overlap > _MOST_OVERLAP)
    touches = others & (across > -pixel) & (down > -pixel) & ~covers
    if not touches.any():
        return False
    why = ""
    if covers.any():
        one, other = np.argwhere(covers)[0]
        why = f"{members[one][0].name} and {members[other][0].name} cover the same ground"
    elif not _connected((across > -(right - left).max()) & (down > -(top - bottom).max())):
        why = "some lie far from the others"
    else:
        why = next((text for header in headers[1:] if (text := _difference(headers[0], header))), "")
    if why:
        _refuse(why, members, root)
    return True


def _connected(near: np.ndarray) -> bool:
    """Whether all of some rasters hang together, given (n, n) bool which are neighbours."""
    together = near[0]
    while True:
        grown = near[together].any(axis=0) | together
        if (grown == together).all():
            return bool(together.all())
        together = grown


def _difference(first: RasterHeader, other: RasterHeader) -> str:
    """What keeps two rasters from being sheets of one layer; empty if nothing does."""
    if first.dtypes != other.dtypes:
        return f"their types differ ({', '.join(first.dtypes)} and {', '.join(other.dtypes)})"
    if (first.scales, first.offsets) != (other.scales, other.offsets):
        return "their scales and offsets differ"
    a, b = first.transform, other.transform
    if max(abs(b.a / a.a - 1) * other.cols, abs(b.e / a.e - 1) * other.rows) > SNAP:
        return f"their pixels differ ({abs(a.a):.9g} x {abs(a.e):.9g} and {abs(b.a):.9g} x {abs(b.e):.9g})"
    shift = (b.c - a.c) / a.a, (b.f - a.f) / a.e
    if max(abs(part - round(part)) for part in shift) > SNAP:
        return "their pixels are not aligned"
    return ""


def _refuse(why: str, members: Sequence[tuple[Path, RasterContents]], root: Path) -> None:
    names = [os.path.relpath(path, root) for path, _ in members]
    more = "|..." * (len(names) > 2)
    same_grid = "type" in why or "scale" in why or "pixels" in why
    first = "bring them to one type and pixel grid (gdal_translate -ot, gdalwarp -tr ... -tap), then " * same_grid
    raise ValueError(
        f"data directory {root}: {_listed(members, root)} look like sheets of one layer (their names are alike, and "
        f"some lie side by side), but {why}. If they are one layer, {first}name its files in one row of a layers.csv "
        f"(path: {'|'.join(names[:2])}{more}, or a pattern such as {_pattern(names)}); if each is a layer of its own, "
        "give each a row. Then --train_path layers.csv instead of --data_dir"
    )


def _pattern(names: Sequence[str]) -> str:
    return f"{os.path.commonprefix([os.path.splitext(name)[0] for name in names])}*{Path(names[0]).suffix}"


def _listed(members: Sequence[tuple[Path, RasterContents]], root: Path) -> str:
    names = [os.path.relpath(path, root) for path, _ in members]
    return ", ".join(names if len(names) <= 4 else [*names[:3], f"... {names[-1]}"])
