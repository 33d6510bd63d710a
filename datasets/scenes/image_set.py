"""The scene data sets of SatMAE and SatMAE++: labelled images, read by number.

`KINDS` describes each data set. `SceneSet.read` gives images and the numbers of their
categories, for classification as well as for pre-training.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import torch

from datasets.ground.grid import GDAL_ERRORS
from datasets.scenes.images import Crop, centre_crop, random_crop, read_box, read_image, to_size
from datasets.scenes.tables import Directories, SceneTable, read_euro_sat, read_fmow_table
from datasets.survey.open_layers import check_numbers
from datasets.survey.tile_reader import Tiles

SENTINEL_BANDS = ("B1", "B2", "B3", "B4", "B5", "B6", "B7", "B8", "B8A", "B9", "B10", "B11", "B12")
SENTINEL_GROUPS = (("B2", "B3", "B4", "B8"), ("B5", "B6", "B7", "B8A"), ("B11", "B12"), ("B1", "B9", "B10"))
"""Groups of SatMAE and SatMAE++; the last one, of the bands of 60 m, is theirs to drop."""

RGB_BANDS = ("red", "green", "blue")
CENTRE = -1
"""In place of a key of random crops: none, the centre."""

PROBED = 256
"""Images of a set that are opened when the set is, evenly spread: a wrong kind of file is found before training."""


@dataclass(frozen=True)
class SceneKind:
    """Description of a data set: bands, groups, tables.

    Attributes:
        name: as `--dataset_type` has it.
        title: its published name.
        bands: names of the bands, by the numbers that `--dropped_bands` takes.
        in_file: for each of them, its number in the files, from 1.
        dropped: numbers of the bands that are left out by default.
        groups: names of the bands of each channel group.
        read_table: path -> table of images.
        boxed: a JSON file beside each image has the box that the image is cut to.
    """

    name: str
    title: str
    bands: tuple[str, ...]
    in_file: tuple[int, ...]
    dropped: tuple[int, ...]
    groups: tuple[tuple[str, ...], ...]
    read_table: Callable[[str | Path], SceneTable]
    boxed: bool = False


KINDS = {
    kind.name: kind
    for kind in (
        SceneKind(
            name="sentinel",
            title="fMoW-Sentinel",
            bands=SENTINEL_BANDS,
            in_file=tuple(range(1, 14)),
            dropped=(0, 9, 10),
            groups=SENTINEL_GROUPS,
            read_table=partial(read_fmow_table, has_ids=True),
        ),
        SceneKind(
            name="rgb",
            title="fMoW-RGB",
            bands=RGB_BANDS,
            in_file=(1, 2, 3),
            dropped=(),
            groups=(RGB_BANDS,),
            read_table=partial(read_fmow_table, has_ids=False),
            boxed=True,
        ),
        SceneKind(
            name="euro_sat",
            title="EuroSAT",
            bands=SENTINEL_BANDS,
            in_file=(1, 2, 3, 4, 5, 6, 7, 8, 13, 9, 10, 11, 12),  # its files have B8A last
            dropped=(0, 9, 10),
            groups=SENTINEL_GROUPS,
            read_table=read_euro_sat,
        ),
    )
}


@dataclass(frozen=True)
class SceneBatch:
    """Some images.

    Attributes:
        tiles: one block of (N, C, size, size) float32, physical units, NaN = invalid.
        labels: (N,) int64 numbers of their categories.
    """

    tiles: Tiles
    labels: torch.Tensor


@dataclass(frozen=True)
class SceneSet:
    """Labelled images of one table, all cropped and resampled to one size when read.

    Attributes:
        kind: which data set.
        table: where the images lie.
        bands: numbers of the bands that are channels.
        hidden: channels presented as wholly invalid.
        size: edge of an image as read, pixels.
        categories: names of the categories, sorted.
        labels: (n,) int64, for each image the number of its category.
        boxes: whether images are cut to the boxes in the JSON files beside them.
        warnings: what a user should know before training.
    """

    kind: SceneKind
    table: SceneTable
    bands: tuple[int, ...]
    hidden: frozenset[int]
    size: int
    categories: tuple[str, ...]
    labels: np.ndarray
    boxes: bool
    warnings: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def band_names(self) -> tuple[str, ...]:
        """Names of the channels."""
        return tuple(self.kind.bands[band] for band in self.bands)

    def read(self, indices: Sequence[int] | np.ndarray, *, epoch: int | None = None, seed: int = 0) -> SceneBatch:
        """Reads images with their labels.

        Args:
            indices: (N,) numbers of the images.
            epoch: for training, the number of the epoch: each image is cropped and turned at random, as (seed, epoch,
                number) says. None, for evaluation, takes the centre.
            seed: seed of the run.

        Raises:
            OSError: naming row and file of an image that cannot be used.
        """
        indices = np.asarray(indices, dtype=np.int64)
        key = CENTRE if epoch is None else crop_key(seed=seed, epoch=epoch)
        tiles = np.stack([indices, np.full_like(indices, key), np.zeros_like(indices)], axis=1)
        return SceneBatch(self.read_tiles(tiles), torch.from_numpy(self.labels[indices]))

    def read_tiles(self, tiles: np.ndarray) -> Tiles:
        """Reads images, each cropped as it says.

        Args:
            tiles: (N, 3) int64: number of the image; key of random crops (`crop_key`) or `CENTRE`; how often that image
                has come before under that key.

        Returns:
            One block of (N, C, size, size).

        Raises:
            OSError: naming row and file of an image that cannot be used.
        """
        array = np.full((len(tiles), len(self.bands), self.size, self.size), np.nan, dtype=np.float32)
        shown = [channel for channel in range(len(self.bands)) if channel not in self.hidden]
        for n, (number, key, repeat) in enumerate(tiles.tolist()):
            choose = centre_crop
            if key != CENTRE:
                state = np.array([key, (repeat << 40) + number], dtype=np.uint64)
                choose = partial(random_crop, rng=np.random.Generator(np.random.Philox(key=state)))
            array[n, shown] = to_size(self.pixels(number, shown, choose=choose, size=self.size), self.size)
        return Tiles(arrays=[torch.from_numpy(array)], phases=[None])

    def pixels(
        self,
        number: int,
        channels: Sequence[int],
        *,
        choose: Callable[[int, int], Crop] | None = None,
        size: int | None = None,
    ) -> np.ndarray:
        """An image in its native pixels: (channels, rows, cols) float32, NaN where invalid.

        Args:
            number: of the image.
            channels: channels to read.
            choose: (rows, cols) of the image -> what to read of it; default all.
            size: edge of the square that it becomes next, pixels; a much larger JPEG is then read reduced.

        Raises:
            OSError: naming row and file of an image that cannot be used.
        """
        path = self.table.paths[number]
        try:
            box = read_box(_json_of(path), self.table.categories[number]) if self.boxes else None
            numbers = [self.kind.in_file[self.bands[channel]] for channel in channels]
            return read_image(path, bands=numbers, expected=len(self.kind.bands), box=box, choose=choose, size=size)
        except GDAL_ERRORS as error:
            raise OSError(
                f"{self.table.where(number)} cannot be read ({error.__cause__ or error}); fetch it again, or take it "
                "out of the data set"
            ) from error
        except ValueError as error:
            raise OSError(
                f"{self.table.where(number)}: {error}; --dataset_type {self.kind.name} takes images of "
                f"{self.kind.title}; put this one right, or take it out of the data set"
            ) from error

    def probe(self) -> None:
        """Opens some images, evenly spread, and reads a pixel of each.

        Raises:
            OSError: naming row and file of an image that cannot be used.
        """
        for number in np.unique(np.linspace(0, len(self) - 1, PROBED).round().astype(int)).tolist():
            self.pixels(number, [0], choose=lambda rows, cols: Crop(rows // 2, cols // 2, 1, 1))


def crop_key(*, seed: int, epoch: int) -> int:
    """What decides, with an image's number, how it is cropped in an epoch: a number below 2^63."""
    return int(np.random.SeedSequence((seed, epoch, 4)).generate_state(1, np.uint64)[0] >> np.uint64(1))


def open_scene_set(
    path: str | Path,
    *,
    dataset_type: str,
    size: int,
    dropped_bands: Sequence[int] | None = None,
    masked_bands: Sequence[int] = (),
    categories: Sequence[str] | None = None,
) -> SceneSet:
    """Opens a table of labelled images; all of them are there.

    Args:
        path: the table, or for EuroSAT a folder.
        dataset_type: one of `KINDS`.
        size: edge of an image as read, pixels.
        dropped_bands: numbers of bands to leave out; default those that the data set's users leave out.
        masked_bands: channels (after dropping) presented as wholly invalid.
        categories: names of the categories that are known; default those of the table.

    Returns:
        The set.

    Raises:
        ValueError: the table or the numbers cannot be used, or an image is of a category that is not known.
        FileNotFoundError: the table or images are not there.
        OSError: one of those that are opened to see whether they are what they should be cannot be used.
    """
    kind = KINDS[dataset_type]
    bands = _kept_bands(kind, dropped_bands)
    check_numbers(masked_bands, len(bands), "--masked_bands")
    if len(set(masked_bands)) == len(bands):
        raise ValueError(f"--masked_bands hides every one of the {len(bands)} bands; leave at least one")
    table = kind.read_table(path)
    names = tuple(sorted(set(table.categories))) if categories is None else tuple(categories)
    number_of = {name: number for number, name in enumerate(names)}
    for number, name in enumerate(table.categories):
        if name not in number_of:
            raise ValueError(
                f"{table.where(number)} is of category {name!r}, expected one of the {len(names)} trained on: "
                f"{', '.join(names)}; take the row out, or train with that category"
            )
    boxes, warnings = _boxes(table) if kind.boxed else (False, ())
    repeated = len(table) - len(set(table.paths))
    if repeated:
        warnings = (*warnings, f"{path}: {repeated} rows name an image that another row names too")
    found = SceneSet(
        kind=kind,
        table=table,
        bands=bands,
        hidden=frozenset(masked_bands),
        size=size,
        categories=names,
        labels=np.array([number_of[name] for name in table.categories], dtype=np.int64),
        boxes=boxes,
        warnings=warnings,
    )
    found.probe()
    return found


def _kept_bands(kind: SceneKind, dropped_bands: Sequence[int] | None) -> tuple[int, ...]:
    """Numbers of the bands that are not dropped, None dropping those that the data set's users leave out."""
    dropped = kind.dropped if dropped_bands is None else dropped_bands
    check_numbers(dropped, len(kind.bands), "--dropped_bands")
    bands = tuple(band for band in range(len(kind.bands)) if band not in set(dropped))
    if not bands:
        raise ValueError(f"--dropped_bands leaves none of the {len(kind.bands)} bands; keep at least one")
    return bands


def _json_of(path: str) -> str:
    return os.path.splitext(path)[0] + ".json"


def _boxes(table: SceneTable) -> tuple[bool, tuple[str, ...]]:
    """Whether there are boxes beside the images, and a note if there are none.

    Raises:
        FileNotFoundError: some images have one, and some have none.
    """
    directories = Directories()
    files = [os.path.split(_json_of(path)) for path in table.paths]
    lost = [number for number, (folder, name) in enumerate(files) if name not in directories.names(folder)]
    if len(lost) == len(table):
        return False, (f"{table.path}: no image has a JSON file with its box beside it; images are taken whole",)
    if lost:
        raise FileNotFoundError(
            f"{table.where(lost[0])} has no box: no {os.path.join(*files[lost[0]])}, as {len(table) - len(lost)} other "
            f"images have one ({len(lost)} have none); put the JSON files beside the images, or take the rows out"
        )
    return True, ()


def count_shared_images(first: SceneSet, second: SceneSet) -> int:
    """The number of images that two sets share."""
    return len(set(first.table.paths) & set(second.table.paths))


def open_other_table(scenes: SceneSet, path: str | Path) -> SceneSet:
    """Opens another table of the same data set, bands, size and categories.

    Raises:
        ValueError, FileNotFoundError, OSError: as `open_scene_set`.
    """
    dropped = [band for band in range(len(scenes.kind.bands)) if band not in scenes.bands]
    other = open_scene_set(
        path,
        dataset_type=scenes.kind.name,
        size=scenes.size,
        dropped_bands=dropped,
        masked_bands=sorted(scenes.hidden),
        categories=scenes.categories,
    )
    shared = count_shared_images(scenes, other)
    warning = (
        f"{path}: {shared} of {len(other)} images are trained on too: scores on them say nothing about other images"
    )
    return replace(other, warnings=(*other.warnings, warning)) if shared else other
