"""Statistics of layers on the training ground of a fold: nothing of the ground that it tests enters a network."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from datasets.finetuning.batch import WindowReader
from datasets.folds.folds import Folds
from datasets.layers.encoding import Encoding
from datasets.layers.kind import CannotFit
from datasets.layers.kinds import kind_of
from datasets.layers.layer_statistics import LayerStatistics
from datasets.survey.detail import measure_detail
from datasets.survey.inference_survey import InferenceSurvey
from datasets.survey.statistics import fit_statistics


@dataclass(frozen=True)
class FoldGround:
    """The ground outside a fold's test and validation blocks and their buffer, whether it is labelled or not.

    Attributes:
        folds: all folds.
        fold: number of the fold.
        pixels_per_base: reference pixels along the height and the width of a base-scale pixel.
    """

    folds: Folds
    fold: int
    pixels_per_base: tuple[float, float]

    def training_ground(self, rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
        """(rows, columns) bool, True for reference pixels whose centre lies on a base-scale pixel of training."""
        down, across = (
            np.floor((pixels + 0.5) / step).astype(np.int64)
            for pixels, step in zip((rows, columns), self.pixels_per_base, strict=True)
        )
        return ~self.folds.near_excluded(self.fold, (down, down + 1), (across, across + 1))


def fit_on_fold(
    survey: InferenceSurvey, folds: Folds, fold: int
) -> tuple[tuple[LayerStatistics, ...], tuple[Encoding, ...]]:
    """Statistics and encodings of all layers, fitted on a fold's training ground.

    Classes of categorical layers stay those of the whole survey, as they decide the network's channels; their
    frequencies, which no network is given here, are those of the fold where it has two classes or more.

    Args:
        survey: the layers; those that are hidden are not read.
        folds: all folds.
        fold: number of the fold.

    Raises:
        ValueError: a layer has no valid pixel on that ground, or only one value.
        OSError: a layer cannot be read.
    """
    grid, base = survey.stack.reference, survey.base_resolution
    ground = FoldGround(folds, fold, (base / grid.resolution_y, base / grid.resolution_x))
    fitted = [_fit_layer(survey, channel, ground) for channel in range(len(survey.layers))]
    return tuple(statistics for statistics, _ in fitted), tuple(encoding for _, encoding in fitted)


def detail_on_fold(survey: InferenceSurvey, folds: Folds, fold: int) -> tuple[float, ...]:
    """Detail of each layer on a fold's training ground, as `measure_detail`.

    Args:
        survey: the layers, with the encodings of the fold.
        folds: all folds.
        fold: number of the fold.
    """
    size = survey.input_size
    rows, cols = (np.arange(0, length, size) for length in survey.shape)

    def is_training(rows: np.ndarray, cols: np.ndarray) -> np.ndarray:
        return ~folds.near_excluded(fold, (rows, rows + 1), (cols, cols + 1))

    def ground(origin: np.ndarray) -> np.ndarray:
        return is_training(*(start + np.arange(size) for start in origin))

    origins = np.stack(np.meshgrid(rows, cols, indexing="ij"), axis=-1).reshape(-1, 2)
    trained = np.array([ground(origin).any() for origin in origins])
    return measure_detail(WindowReader(survey), survey.pyramid, origins[trained], survey.encodings, ground=ground)


def _fit_layer(survey: InferenceSurvey, channel: int, ground: FoldGround) -> tuple[LayerStatistics, Encoding]:
    layer, encoding = survey.layers[channel], survey.encodings[channel]
    try:
        return fit_statistics(survey.stack, channel, ground, encoding if encoding.is_classes else None)
    except CannotFit as error:
        if encoding.is_classes:
            return LayerStatistics(layer.name), kind_of(layer).unfitted(encoding)
        raise ValueError(
            f"fold {ground.fold}: {error.fact}; the training ground of a fold is all ground outside its test and "
            f"validation blocks and their buffer of {ground.folds.buffer} base pixels: choose other blocks "
            f"(--fold_block, --fold_seed, --val_buffer), or hide the layer from the network (--masked_bands {channel})"
        ) from error
