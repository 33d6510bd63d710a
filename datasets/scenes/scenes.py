"""Scene data sets for training: images instead of tiles of ground.

An image is resampled to `input_size` times the largest scale; the pyramid averages it down to the other scales, as it
does with tiles of rasters. `open_scenes` does everything that comes before the first batch.
"""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from datasets.layers.encoding import Encoding, linear_encodings
from datasets.layers.layer import Layer
from datasets.layers.layer_statistics import LayerStatistics
from datasets.scenes.image_set import CENTRE, SceneSet, crop_key, open_other_table, open_scene_set
from datasets.scenes.images import CROP_SHARE
from datasets.scenes.statistics import scene_statistics
from datasets.survey.detail import measure_detail
from datasets.survey.overview import histogram, layer_facts, plain_rows
from datasets.survey.pyramid import Pyramid
from datasets.survey.scales_and_groups import given_groups, native_groups
from datasets.survey.stack import LayerBundle, Placement
from datasets.survey.tile_reader import Tiles

OVERVIEW_IMAGES = 32
"""Training images of which the histograms of a page are made."""


@dataclass(frozen=True)
class SceneReader:
    """Reads the images of a set, each cropped as its tile says."""

    images: SceneSet

    def read(self, tiles: np.ndarray) -> Tiles:
        """As `SceneSet.read_tiles`."""
        return self.images.read_tiles(tiles)


@dataclass(frozen=True)
class Scenes:
    """Images to train on and to score: a `source.TileSource`.

    Attributes:
        images: all images.
        train: numbers of those that are trained on.
        held_out: numbers of those that are scored.
        statistics: per channel, values of training images.
        groups: channel groups, each a tuple of channel numbers.
        input_size: base-scale pixels along an image's edge.
        scales: reconstructed scales, 1 first.
        native: images are given at their native pixels as well, for a model with a stem.
    """

    images: SceneSet
    train: np.ndarray
    held_out: np.ndarray
    statistics: tuple[LayerStatistics, ...]
    groups: tuple[tuple[int, ...], ...]
    input_size: int
    scales: tuple[int, ...]
    native: bool = False

    @property
    def native_scales(self) -> tuple[int, ...]:
        """Per band, pixels of the image along the edge of a base pixel; empty if models see base pixels alone."""
        return (max(self.scales),) * len(self.images.bands) if self.native else ()

    @property
    def categories(self) -> tuple[str, ...]:
        """Names of the categories; a label is a place in them."""
        return self.images.categories

    @property
    def layers(self) -> list[Layer]:
        """The channels: bands of the images."""
        kind, path = self.images.kind, self.images.table.path
        return [Layer(kind.bands[band], str(Path(path).resolve()), kind.in_file[band]) for band in self.images.bands]

    @property
    def encodings(self) -> tuple[Encoding, ...]:
        """Per layer, how its values become a channel."""
        statistics = self.statistics
        return linear_encodings([item.centre for item in statistics], [item.scale for item in statistics])

    @property
    def scored(self) -> dict[int, tuple[int, ...]]:
        """At each scale, all channels that are shown."""
        shown = tuple(c for c in range(len(self.images.bands)) if c not in self.images.hidden)
        return {scale: shown for scale in self.scales}

    @property
    def base_resolution(self) -> float:
        """Edge of a base-scale pixel, in pixels of the images as they are read."""
        return float(max(self.scales))

    @property
    def length_unit(self) -> str:
        """Images have been resized: they have no unit of length but their pixels."""
        return "pixel"

    def base_pixel(self, tile: Sequence[int] | np.ndarray) -> tuple[float, float]:
        """Width and height of a base-scale pixel, the same in every image."""
        return self.base_resolution, self.base_resolution

    @property
    def training_tiles(self) -> int:
        """Number of images that are trained on."""
        return len(self.train)

    @property
    def held_out_tiles(self) -> np.ndarray:
        """(m, 3) int64, the centre of each image that is scored."""
        return np.stack([self.held_out, np.full_like(self.held_out, CENTRE), np.zeros_like(self.held_out)], axis=1)

    def epoch_tiles(self, *, seed: int, epoch: int, tiles: int | None = None) -> np.ndarray:
        """Training images of an epoch, in the order in which they are visited.

        Args:
            seed: seed of the run.
            epoch: number of the epoch.
            tiles: how many; default each image once. More than those repeat with other crops.

        Returns:
            (tiles, 3) int64 rows as `SceneSet.read_tiles` takes them.
        """
        tiles = len(self.train) if tiles is None else tiles
        rng = np.random.default_rng((seed, epoch, 0))
        rounds = -(-tiles // len(self.train))
        numbers = np.concatenate([rng.permutation(self.train) for _ in range(rounds)])[:tiles]
        repeats = np.repeat(np.arange(rounds), len(self.train))[:tiles]
        key = crop_key(seed=seed, epoch=epoch)
        return np.stack([numbers, np.full(tiles, key), repeats], axis=1).astype(np.int64)

    def reader(self) -> SceneReader:
        """Reads the images."""
        return SceneReader(self.images)

    def pyramid(self, source: Any = None) -> Pyramid:
        """On-device pooling with the statistics; images of another set are of the same size."""
        size, channels = self.images.size, len(self.images.bands)
        bundle = LayerBundle(tuple(range(channels)), size, size, aligned=True, placement=Placement(1.0, 1.0, 0.0, 0.0))
        return Pyramid(
            bundles=[bundle],
            tile_rows=size,
            tile_cols=size,
            input_size=self.input_size,
            scales=self.scales,
            scored=self.scored,
            encodings=self.encodings,
            native=native_groups(self.groups, self.native_scales) if self.native else (),
        )

    def valid_share(self, tiles: np.ndarray) -> np.ndarray:
        """Not known before images are read: all alike."""
        return np.ones(len(tiles))

    def name_tiles(self, tiles: Sequence[Sequence[int]]) -> str:
        """Images by row and file."""
        numbers = dict.fromkeys(tile[0] for tile in tiles)
        return "by row and file: " + "; ".join(self.images.table.where(number) for number in numbers)

    def summary_lines(self) -> list[str]:
        """Summary of layers and tiles, as lines to log."""
        images, size = self.images, self.images.size
        places = np.array(images.table.locations)
        bands = " ".join(f"{c} {name}" for c, name in enumerate(images.band_names))
        low, high = CROP_SHARE
        return [
            f"{images.kind.title}, {images.table.path}: {len(images)} images of {len(images.categories)} categories",
            f"{len(self.train)} training images of {len(set(places[self.train]))} locations, {len(self.held_out)} "
            f"held-out images of {len(set(places[self.held_out]))} others",
            f"bands {bands}; groups {[list(group) for group in self.groups]}",
            f"images brought to {size} x {size} pixels: in training {low:g} to {high:g} of their area, chosen and "
            "turned over at random; held-out ones from their centre",
        ]

    def overview(self) -> dict[str, Any]:
        """Bands with histograms of some images, and numbers of images, as plain values for a page.

        Raises:
            OSError: an image cannot be read.
        """
        images = self.images
        some = self.epoch_tiles(seed=0, epoch=0, tiles=min(OVERVIEW_IMAGES, len(self.train)))
        pixels = self.reader().read(some).arrays[0].numpy()
        rows = []
        for channel, (layer, encoding) in enumerate(zip(self.layers, self.encodings, strict=True)):
            values = pixels[:, channel]
            found = histogram(values[np.isfinite(values)], encoding)
            group = next(n for n, group in enumerate(self.groups) if channel in group)
            state = {"state": "hidden"} if channel in images.hidden else {"histogram": found}
            rows.append(layer_facts(layer, encoding) | {"group": group} | state)
        counts = [
            ("images", len(images)),
            ("categories", len(images.categories)),
            ("training images", len(self.train)),
            ("held-out images", len(self.held_out)),
            ("read as", f"{images.size} x {images.size} pixels"),
        ]
        return {"layers": rows, "counts": plain_rows(counts)}

    def training_warnings(self, patch_size: int) -> list[str]:
        """What a user should know before training."""
        return list(self.images.warnings)

    def channel_options(self) -> dict[str, Any]:
        """What a model must know of the bands, as keyword arguments of `build_model`."""
        options = {
            "in_chans": len(self.images.bands),
            "channel_groups": self.groups,
            "scales": self.scales,
            "scored": self.scored,
            "channel_weights": [layer.loss_weight for layer in self.layers],
        }
        if self.native:
            options["native_scales"] = self.native_scales
            options["detail_scales"] = [item.detail for item in self.statistics]
        return options

    def write_tables(self, folder: Path) -> None:
        """Writes categories.csv: number, name, training and held-out images of each category."""
        labels, count = self.images.labels, len(self.categories)
        train, held_out = (np.bincount(labels[part], minlength=count) for part in (self.train, self.held_out))
        with open(folder / "categories.csv", "w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow(["number", "category", "training_images", "held_out_images"])
            writer.writerows(zip(range(count), self.categories, train.tolist(), held_out.tolist(), strict=True))

    def record(self) -> dict[str, Any]:
        """Names of the categories. Images have no ground resolution that another run could take up."""
        return {"categories": list(self.categories), "base_resolution": None}


def open_scenes(
    *,
    dataset_type: str,
    train_path: str,
    dropped_bands: Sequence[int] | None = None,
    masked_bands: Sequence[int] = (),
    grouped_bands: Sequence[Sequence[int]] | None = None,
    one_group: bool = False,
    input_size: int,
    scales: Sequence[int],
    val_fraction: float = 0.1,
    seed: int = 0,
    categories: Sequence[str] | None = None,
    statistics: Sequence[LayerStatistics] | None = None,
    native: bool = False,
) -> Scenes:
    """Opens a data set of images and prepares everything that training needs to know of it.

    Args:
        dataset_type: `sentinel`, `rgb` or `euro_sat`.
        train_path: its table, or for EuroSAT a folder.
        dropped_bands: band numbers to leave out; default those that the data set's users leave out.
        masked_bands: channels (after dropping) presented as wholly invalid.
        grouped_bands: channel groups by number after dropping; default those of SatMAE.
        one_group: all bands in one group.
        input_size: base-scale pixels along an image's edge.
        scales: reconstructed scales, whole numbers with 1 among them.
        val_fraction: share of locations whose images are held out; 0 holds out nothing.
        seed: decides which locations are held out, and which images statistics are of.
        categories: those of a trained model; default those of the table.
        statistics: likewise; default those of training images.
        native: give images at their native pixels as well, for a model with a stem.

    Returns:
        The images.

    Raises:
        ValueError: for anything in the tables or the numbers that cannot be trained on, by name.
        FileNotFoundError: for files that are not there.
        OSError: for images that cannot be used.
    """
    images = open_scene_set(
        train_path,
        dataset_type=dataset_type,
        size=input_size * max(scales),
        dropped_bands=dropped_bands,
        masked_bands=masked_bands,
        categories=categories,
    )
    groups = scene_groups(images, grouped_bands=grouped_bands, one_group=one_group)
    train, held_out = hold_out(images.table.locations, fraction=val_fraction, seed=seed)
    fitted = scene_statistics(images, train, seed=seed) if statistics is None else tuple(statistics)
    scenes = Scenes(
        images=images,
        train=train,
        held_out=held_out,
        statistics=fitted,
        groups=groups,
        input_size=input_size,
        scales=tuple(sorted(scales)),
        native=native,
    )
    return with_detail(scenes) if native and statistics is None else scenes


def with_detail(scenes: Scenes) -> Scenes:
    """The images with the detail of each band measured on training images, among its statistics."""
    tiles = np.stack([scenes.train, np.full_like(scenes.train, CENTRE), np.zeros_like(scenes.train)], axis=1)
    detail = measure_detail(scenes.reader(), scenes.pyramid(), tiles, scenes.encodings)
    measured = tuple(replace(item, detail=d) for item, d in zip(scenes.statistics, detail, strict=True))
    return replace(scenes, statistics=measured)


def open_test_scenes(scenes: Scenes, path: str) -> Scenes:
    """Opens another table of the same data set, all of whose images are for scoring.

    Raises:
        ValueError, FileNotFoundError, OSError: it cannot be used, or has categories that the first does not have.
    """
    images = open_other_table(scenes.images, path)
    every = np.arange(len(images), dtype=np.int64)
    return replace(scenes, images=images, train=every[:0], held_out=every)


def scene_groups(
    images: SceneSet, *, grouped_bands: Sequence[Sequence[int]] | None, one_group: bool
) -> tuple[tuple[int, ...], ...]:
    """Channel groups: as given, one, or SatMAE's.

    Raises:
        ValueError: those given are not a partition of the channels.
    """
    names = images.band_names
    if grouped_bands is not None:
        return given_groups(grouped_bands, names)
    if one_group:
        return (tuple(range(len(names))),)
    groups = [tuple(names.index(name) for name in group if name in names) for group in images.kind.groups]
    return tuple(group for group in groups if group)


def hold_out(locations: Sequence[str], *, fraction: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Splits images by location: all images of a location are on one side.

    Args:
        locations: of each image.
        fraction: share of the locations to hold out; at least one is, unless this is 0, and one is left.
        seed: decides which.

    Returns:
        Numbers of the images to train on and of those held out, ascending int64.

    Raises:
        ValueError: there is one location only.
    """
    names, place = np.unique(np.array(locations), return_inverse=True)
    if fraction and len(names) < 2:
        raise ValueError(
            f"all {len(locations)} images are of one location, {names[0]}: none can be held out; add others, name "
            "images to score with --test_path, or train without: --val_fraction 0"
        )
    count = min(max(round(fraction * len(names)), 1), len(names) - 1) if fraction else 0
    chosen = np.random.default_rng((seed, 2)).permutation(len(names))[:count]
    held = np.isin(place.reshape(-1), chosen)
    return np.flatnonzero(~held), np.flatnonzero(held)
