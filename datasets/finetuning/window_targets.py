"""Training windows with one class each: around points, or tiles side by side."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from scipy.spatial import cKDTree

from datasets.finetuning.batch import Batch, TargetStatistics, WindowReader, repeat_permutations
from datasets.folds.folds import Folds
from datasets.labels.label_map import LabelMap
from datasets.loading.augment import ROTATIONS
from datasets.survey.inference_survey import InferenceSurvey

MEASURED_BLOCK = 512
"""Edge of the blocks of base-scale pixels whose distance from points is measured at a time."""


@dataclass(frozen=True)
class WindowExamples:
    """Windows that have one class each.

    Attributes:
        centres: (n, 2) float64 base-scale (row, col) of the windows' centres.
        classes: (n,) int64 class numbers.
        background: (n,) bool, True for ground drawn at random: its class is not known, absence is assumed.
        extent: edge of the square around each centre that its class is of, base-scale pixels; 0: of the point.
    """

    centres: np.ndarray
    classes: np.ndarray
    background: np.ndarray
    extent: int = 0


def point_examples(
    positions: np.ndarray,
    classes: np.ndarray | None,
    seen: np.ndarray,
    *,
    background_ratio: float,
    least_distance: float,
    seed: int,
) -> tuple[WindowExamples, int]:
    """Windows around points; for points without a class (presence only), with windows on random ground added.

    Args:
        positions: (n, 2) float base-scale (row, col).
        classes: (n,) class numbers; None: all are presences (class 1) and ground drawn at random is class 0.
        seen: (rows, cols) bool, base-scale pixels where some layer is valid.
        background_ratio: background windows per presence.
        least_distance: smallest distance of background from every presence, base-scale pixels.
        seed: seed of the draw.

    Returns:
        The examples, and the number of points left out because no layer is valid there.

    Raises:
        ValueError: no point is left, or no ground for the background.
    """
    inside = np.floor(positions).astype(np.int64)
    ok = ((inside >= 0) & (inside < np.array(seen.shape))).all(axis=1)
    ok[ok] = seen[inside[ok, 0], inside[ok, 1]]
    left_out = int((~ok).sum())
    if not ok.any():
        raise ValueError(f"none of the {len(positions)} points lies where a layer has a valid pixel; check coordinates")
    centres = positions[ok]
    if classes is not None:
        return WindowExamples(centres, classes[ok].astype(np.int64), np.zeros(len(centres), dtype=bool)), left_out
    far = _far_ground(centres, seen, least_distance=least_distance)
    available, wanted = int(np.count_nonzero(far)), round(background_ratio * len(centres))
    if not available or not wanted:
        raise ValueError(
            f"no ground is left for the background at least {least_distance:g} base pixels from every one of the "
            f"{len(centres)} points; lower --background_distance or raise --background_ratio ({background_ratio:g})"
        )
    chosen = np.random.default_rng((seed, 13)).choice(available, size=min(wanted, available), replace=False)
    drawn = _places(far, chosen) + 0.5
    return (
        WindowExamples(
            np.concatenate([centres, drawn]),
            np.repeat(np.array([1, 0]), [len(centres), len(drawn)]),
            np.repeat(np.array([False, True]), [len(centres), len(drawn)]),
        ),
        left_out,
    )


def _far_ground(centres: np.ndarray, seen: np.ndarray, *, least_distance: float) -> np.ndarray:
    """Base-scale pixels that are seen and at least some distance from every point, (rows, cols) bool.

    Only pixels of blocks that a point is near to are measured, block by block: there may be as many as in the survey.
    """
    far, reach = seen.copy(), max(least_distance, 1e-9)
    for top in range(0, seen.shape[0], MEASURED_BLOCK):
        for left in range(0, seen.shape[1], MEASURED_BLOCK):
            part = far[top : top + MEASURED_BLOCK, left : left + MEASURED_BLOCK]
            low, high = np.array([top, left]) - reach, np.array([top, left]) + part.shape + reach
            near = centres[((centres >= low) & (centres <= high)).all(axis=1)]
            if len(near):
                places = np.argwhere(part)
                distances, _ = cKDTree(near).query(places + [top + 0.5, left + 0.5], distance_upper_bound=reach)
                close = places[distances < least_distance]
                part[close[:, 0], close[:, 1]] = False
    return far


def _places(marked: np.ndarray, numbers: np.ndarray) -> np.ndarray:
    """(n, 2) row and column of marked pixels by number, counted along the rows: `argwhere(marked)[numbers]`."""
    counts = np.count_nonzero(marked, axis=1)
    first = np.cumsum(counts) - counts
    rows = np.searchsorted(first + counts, numbers, side="right")
    order = np.argsort(rows, kind="stable")
    cols = np.empty_like(rows)
    for same_row in np.split(order, np.flatnonzero(np.diff(rows[order])) + 1):
        row = rows[same_row[0]]
        cols[same_row] = np.flatnonzero(marked[row])[numbers[same_row] - first[row]]
    return np.stack([rows, cols], axis=1)


def tile_examples(labels: LabelMap, *, size: int, least_labelled: float) -> WindowExamples:
    """Tiles side by side, each of the class that most of its labelled pixels have.

    The window of a tile that the edge of the ground cuts is centred on the part that lies on the ground.

    Args:
        labels: classes on target pixels.
        size: edge of a tile, base-scale pixels.
        least_labelled: smallest fraction of labelled pixels in a tile.

    Raises:
        ValueError: no tile has that many.
    """
    counts = labels.count(size)
    full = (size * labels.scale) ** 2
    kept = counts.sum(axis=2) >= max(least_labelled * full, 1)
    if not kept.any():
        raise ValueError(
            f"labels {labels.source}: no tile of {size} base pixels is labelled over {100 * least_labelled:g} % of its "
            "ground; lower --min_labelled or choose a smaller --input_size"
        )
    cells = np.argwhere(kept)
    ends = np.minimum((cells + 1) * size, np.array(labels.values.shape) / labels.scale)
    return WindowExamples(
        centres=(cells * size + ends) / 2,
        classes=counts[kept].argmax(axis=1).astype(np.int64),
        background=np.zeros(len(cells), dtype=bool),
        extent=size,
    )


class WindowTargets:
    """Windows with one class each.

    Args:
        survey: the layers that windows are cut out of.
        examples: centres and classes of the windows.
        kinds: number of classes K.
        folds: which are trained on and which are tested.
        jitter: largest shift of a training window, base-scale pixels.
    """

    def __init__(
        self, survey: InferenceSurvey, examples: WindowExamples, folds: Folds, *, kinds: int, jitter: int
    ) -> None:
        self.survey, self.examples, self.folds, self.kinds, self.jitter = survey, examples, folds, kinds, jitter
        self.reader = WindowReader(survey)

    def numbers(self, fold: int, *, validation: bool = False) -> np.ndarray:
        """Numbers of the examples that are tested in a fold, or validated."""
        row, col = self.examples.centres.T
        if validation:
            return np.flatnonzero(self.folds.validating_at(fold, row, col))
        return np.flatnonzero(self.folds.fold_at(row, col) == fold)

    def origins(self, numbers: np.ndarray) -> np.ndarray:
        """(m, 2) int64 base-scale origins of the windows around some examples.

        Halves go up: to the nearest even number they would leave all background, drawn at centres of pixels, at even
        origins, by which a network can tell it from presences where a layer is coarser than base pixels.
        """
        return np.floor(self.examples.centres[numbers] - self.survey.input_size / 2 + 0.5).astype(np.int64)

    def read(self, numbers: np.ndarray) -> Batch:
        """Reads examples as they are tested: neither shifted nor rotated."""
        jobs = np.hstack([numbers[:, None], np.zeros((len(numbers), 3), dtype=np.int64)])
        return self.read_jobs(jobs)

    def read_jobs(self, jobs: np.ndarray) -> Batch:
        """Reads examples listed as (number, shift of rows, shift of columns, rotation)."""
        return Batch(
            tiles=self.reader.read(self.origins(jobs[:, 0]) + jobs[:, 1:3]),
            target=torch.from_numpy(self.examples.classes[jobs[:, 0]]),
            turns=torch.from_numpy(jobs[:, 3].astype(np.int64)),
        )

    def fold(self, fold: int | None) -> WindowFold:
        """The training windows of a fold; all of them for None.

        Raises:
            ValueError: nothing, or one class only, is left to train on.
        """
        return WindowFold(self, fold)


class WindowFold:
    """The training windows of one fold.

    Args:
        targets: the examples of all folds.
        fold: number of the fold, or None to train on every example.

    Attributes:
        numbers: (n,) numbers of the examples to train on.
    """

    def __init__(self, targets: WindowTargets, fold: int | None) -> None:
        self._targets = targets
        centres = targets.examples.centres
        if fold is None:
            chosen = np.ones(len(centres), dtype=bool)
        else:
            # --label_fraction applies to known labels, not to background.
            chosen = targets.folds.training_at(fold, centres[:, 0], centres[:, 1], extent=targets.examples.extent)
            away = targets.folds.training_at(fold, centres[:, 0], centres[:, 1], all_labels=True)
            chosen = np.where(targets.examples.background, away, chosen)
        self.numbers = np.flatnonzero(chosen)
        self._counts = np.bincount(targets.examples.classes[self.numbers], minlength=targets.kinds)
        if (self._counts > 0).sum() < 2:
            raise ValueError(
                f"fold {fold}: {len(self.numbers)} training examples of {(self._counts > 0).sum()} class(es) are left "
                "outside the test blocks and their buffer; expected two classes; lower --val_buffer, --fold_block or "
                "--folds, or raise --label_fraction"
            )

    @property
    def statistics(self) -> TargetStatistics:
        """Statistics of the training labels."""
        return TargetStatistics(len(self.numbers), tuple(self._counts.tolist()), 0.0, 1.0, 1.0)

    def epoch(self, *, seed: int, epoch: int, tiles: int, augment: bool) -> np.ndarray:
        """Training examples of an epoch in order: (tiles, 4) int64 number, shifts of row and column, turn."""
        order = repeat_permutations(len(self.numbers), seed=seed, epoch=epoch, count=tiles)
        rng = np.random.default_rng((seed, epoch, 11))
        moves = np.zeros((tiles, 3), dtype=np.int64)
        if augment:
            jitter = self._targets.jitter
            moves[:, :2] = rng.integers(-jitter, jitter + 1, size=(tiles, 2))
            moves[:, 2] = rng.integers(0, ROTATIONS, size=tiles)
        return np.hstack([self.numbers[order][:, None], moves])

    def read(self, jobs: np.ndarray) -> Batch:
        """Reads examples listed as by `epoch`."""
        return self._targets.read_jobs(jobs)

    def sampled_pixels(self, most: int, *, seed: int) -> tuple[np.ndarray, np.ndarray]:
        """Centres of the training windows, for models that learn from pixels.

        Args:
            most: largest number of them, drawn at random.
            seed: seed of the draw.

        Returns:
            (n, 2) int64 base-scale (row, col), and their (n,) classes.
        """
        chosen = np.sort(np.random.default_rng((seed, 12)).permutation(self.numbers)[:most])
        examples = self._targets.examples
        return examples.centres[chosen].astype(np.int64), examples.classes[chosen]
