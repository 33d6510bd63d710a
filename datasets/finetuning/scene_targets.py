"""Scene data sets for classification: the images of one table to train on, those of another, or held out, to test."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch

from datasets.finetuning.batch import Batch, TargetStatistics, repeat_permutations
from datasets.layers.class_table import ClassTable, default_colour
from datasets.layers.layer import Layer
from datasets.layers.layer_statistics import statistics_from_dict
from datasets.scenes.image_set import CENTRE, crop_key
from datasets.scenes.scenes import Scenes, open_scenes, open_test_scenes
from datasets.survey.pyramid import Pyramid


@dataclass(frozen=True)
class SceneGround:
    """The images of a scene data set, in place of a survey.

    Attributes:
        scenes: the images to train on.
        pyramid: pooling with the statistics of training.
    """

    scenes: Scenes
    pyramid: Pyramid

    @property
    def input_size(self) -> int:
        """Base-scale pixels along an image's edge."""
        return self.scenes.input_size

    @property
    def layers(self) -> list[Layer]:
        """The bands."""
        return self.scenes.layers

    @property
    def base_resolution(self) -> None:
        """Images have no ground resolution in common."""

    @property
    def hidden(self) -> frozenset[int]:
        """Channels shown as no-data."""
        return self.scenes.images.hidden

    @property
    def warnings(self) -> tuple[str, ...]:
        """Warnings for the user."""
        return self.scenes.images.warnings

    def summary_lines(self) -> list[str]:
        """The images, as lines to log."""
        return self.scenes.summary_lines()

    def overview(self) -> dict[str, Any]:
        """The bands and numbers of images, as plain values for a page."""
        return self.scenes.overview()

    def ground(self) -> dict[str, Any]:
        """The table of the images."""
        return {"table": str(self.scenes.images.table.path)}


@dataclass(frozen=True)
class SceneSplit:
    """Which images are tested: one fold, given by a table or by location.

    Attributes:
        tested: number of images that are tested.
        trained: number of images that are trained on.
        given: a table of their own names the tested images.
        label_fraction: fraction of the training images that is used.
        warnings: warnings for the user.
    """

    tested: int
    trained: int
    given: bool
    label_fraction: float
    warnings: tuple[str, ...] = ()
    count: int = 1

    @property
    def leak_warning(self) -> str:
        """Empty: images of one location are on one side."""
        return ""

    def describe(self) -> str:
        """One line for the log."""
        how = "those of --test_path" if self.given else "locations held out"
        return f"{self.trained} images to train on ({100 * self.label_fraction:g} %), {self.tested} tested: {how}"

    def summary(self) -> dict[str, Any]:
        """Options and counts for the log and for JSON."""
        split = "test table" if self.given else "locations"
        return {"split": split, **asdict(self), "leak": "", "warning": None}


@dataclass(frozen=True)
class SceneExamples:
    """Classes of the tested images, (n,) int64."""

    classes: np.ndarray


class SceneTargets:
    """Images with one class each.

    Args:
        train: the images to train on.
        test: the images to test.
        label_fraction: fraction of the training images to use; a smaller one is part of a larger one.
        seed: seed of their choice.
    """

    def __init__(self, train: Scenes, test: Scenes, *, label_fraction: float, seed: int) -> None:
        self.train, self.test = train, test
        order = np.random.default_rng((seed, 14)).permutation(train.train)
        self.chosen = np.sort(order[: max(1, round(label_fraction * len(order)))])
        self.tested = test.held_out
        self.examples = SceneExamples(test.images.labels[self.tested])

    def numbers(self, fold: int, *, validation: bool = False) -> np.ndarray:
        """Numbers of the tested images; there is one fold, and no ground for validation."""
        assert fold == 0 and not validation
        return np.arange(len(self.tested))

    def read(self, numbers: np.ndarray) -> Batch:
        """Reads the centres of tested images.

        Raises:
            OSError: naming row and file of an image that cannot be used.
        """
        rows = np.zeros((len(numbers), 3), dtype=np.int64)
        rows[:, 0], rows[:, 1] = self.tested[numbers], CENTRE
        return _batch(self.test, rows)

    def fold(self, fold: int | None) -> SceneFold:
        """The training images.

        Raises:
            ValueError: only one class is left to train on.
        """
        return SceneFold(self)


class SceneFold:
    """The training images, the only fold of a scene data set.

    Args:
        targets: the images.
    """

    def __init__(self, targets: SceneTargets) -> None:
        self._targets = targets
        classes = targets.train.images.labels[targets.chosen]
        counts = np.bincount(classes, minlength=len(targets.train.categories))
        if (counts > 0).sum() < 2:
            raise ValueError(
                f"{len(classes)} training images of {(counts > 0).sum()} category: expected two categories; name a "
                "table with more (--train_path), or raise --label_fraction"
            )
        self.statistics = TargetStatistics(len(classes), tuple(counts.tolist()), 0.0, 1.0, 1.0)

    def epoch(self, *, seed: int, epoch: int, tiles: int, augment: bool) -> np.ndarray:
        """Training images of an epoch in order: (tiles, 3) int64 rows as `SceneSet.read_tiles` takes them."""
        chosen = self._targets.chosen
        order = repeat_permutations(len(chosen), seed=seed, epoch=epoch, count=tiles)
        rows = np.zeros((tiles, 3), dtype=np.int64)
        rows[:, 0], rows[:, 1] = chosen[order], crop_key(seed=seed, epoch=epoch) if augment else CENTRE
        rows[:, 2] = np.arange(tiles) // len(chosen) if augment else 0
        return rows

    def read(self, jobs: np.ndarray) -> Batch:
        """Reads images listed as by `epoch`.

        Raises:
            OSError: naming row and file of an image that cannot be used.
        """
        return _batch(self._targets.train, jobs)


def _batch(scenes: Scenes, rows: np.ndarray) -> Batch:
    labels = torch.from_numpy(scenes.images.labels[rows[:, 0]])
    return Batch(scenes.reader().read(rows), labels, torch.zeros(len(rows), dtype=torch.int64))


def open_scene_ground(
    stored: Mapping[str, Any] | None,
    *,
    dataset_type: str,
    train_path: str | None,
    dropped_bands: Sequence[int] | None,
    masked_bands: Sequence[int],
    grouped_bands: Sequence[Sequence[int]] | None,
    one_group: bool,
    input_size: int,
    scales: Sequence[int],
    val_fraction: float,
    seed: int,
    native: bool = False,
) -> SceneGround:
    """Opens the images to train on, with the statistics of a checkpoint if there is one.

    Args:
        stored: the checkpoint; None to fine-tune from scratch.
        dataset_type: `sentinel`, `rgb` or `euro_sat`.
        train_path: the table of the images, or for EuroSAT a folder.
        dropped_bands: band numbers to leave out.
        masked_bands: channels shown as no-data.
        grouped_bands: channel groups by number.
        one_group: all bands in one group.
        input_size: base-scale pixels along an image's edge.
        scales: as in pre-training: images are read at the finest and averaged.
        val_fraction: fraction of locations to hold out; 0 where another table is tested.
        seed: seed of their choice.
        native: give images at their native pixels as well, for a model with a stem.

    Raises:
        ValueError, FileNotFoundError, OSError: they cannot be used, by name.
    """
    if train_path is None:
        raise ValueError(
            f"--dataset_type {dataset_type} needs --train_path, the table of its images; see docs/scenes.md"
        )
    statistics = None
    if stored is not None:
        statistics = [statistics_from_dict(row) for row in stored["statistics"]]
        scales = stored["model_config"].get("scales") or stored["options"].get("scales") or scales
    scenes = open_scenes(
        dataset_type=dataset_type,
        train_path=train_path,
        dropped_bands=dropped_bands,
        masked_bands=masked_bands,
        grouped_bands=grouped_bands,
        one_group=one_group,
        input_size=input_size,
        scales=scales,
        val_fraction=val_fraction,
        seed=seed,
        statistics=statistics,
        native=native,
    )
    names = [layer.name for layer in scenes.layers]
    expected = names if stored is None else [row["name"] for row in stored["layers"]]
    if names != expected:
        raise ValueError(
            f"--train_path {train_path}: bands {', '.join(names)}; the checkpoint was trained on "
            f"{', '.join(expected)}; name the same with --dropped_bands"
        )
    return SceneGround(scenes, scenes.pyramid())


def open_scene_targets(
    ground: SceneGround, test_path: str | None, *, label_fraction: float, seed: int
) -> tuple[SceneTargets, SceneSplit, ClassTable]:
    """The images to train on and to test, their numbers, and the classes.

    Raises:
        ValueError, FileNotFoundError, OSError: they cannot be used, or have categories that training does not have.
    """
    scenes = ground.scenes
    test = scenes if test_path is None else open_test_scenes(scenes, test_path)
    if not len(test.held_out):
        raise ValueError("no image is left to test: give --test_path, a table of images, or --val_fraction above 0")
    targets = SceneTargets(scenes, test, label_fraction=label_fraction, seed=seed)
    counts = np.bincount(scenes.images.labels[targets.chosen], minlength=len(scenes.categories))
    names = scenes.categories
    table = ClassTable(
        names, names, tuple(default_colour(number) for number in range(len(names))), tuple(counts.tolist())
    )
    split = SceneSplit(len(test.held_out), len(targets.chosen), test_path is not None, label_fraction)
    return targets, split, table
