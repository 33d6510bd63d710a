"""Where windows of one class are cut: nothing about it may tell presences from background, or reach tested ground."""

from types import SimpleNamespace

import numpy as np
import pytest

from datasets.finetuning.window_targets import WindowExamples, WindowFold, WindowTargets, point_examples
from datasets.folds.make_folds import LabelCells, make_folds


def targets_of(examples, folds=None, *, size=16):
    """Targets on a survey that is not read."""
    found = WindowTargets.__new__(WindowTargets)
    found.survey, found.examples, found.folds, found.kinds = SimpleNamespace(input_size=size), examples, folds, 2
    return found


@pytest.mark.parametrize("size", [15, 16])
def test_origins_of_presences_and_background_are_even_and_odd_alike(size):
    """With a coarser layer, the parity of an origin shows how its pixels lie in the window."""
    rng = np.random.default_rng(0)
    seen = np.ones((400, 400), dtype=bool)
    examples, _ = point_examples(
        rng.uniform(20, 380, (400, 2)), None, seen, background_ratio=2.0, least_distance=1.0, seed=0
    )
    odd = targets_of(examples, size=size).origins(np.arange(len(examples.classes))) % 2
    for background in (False, True):
        assert 0.4 < odd[examples.background == background].mean() < 0.6


def test_windows_are_centred_to_half_a_pixel():
    places = np.array([[10.0, 10.0], [10.5, 11.0], [11.5, 10.49]])
    examples = WindowExamples(places, np.array([0, 1, 1]), np.zeros(3, dtype=bool))
    assert targets_of(examples).origins(np.arange(3)).tolist() == [[2, 2], [3, 3], [4, 2]]


@pytest.mark.parametrize("buffer", [0, 4, 8, 16])
def test_the_whole_ground_of_a_label_keeps_the_distance(buffer):
    rng = np.random.default_rng(1)
    counts = rng.integers(0, 9, (40, 40, 2))
    folds = make_folds(LabelCells(counts, (160, 160), 4), tile=16, folds=2, buffer=buffer, seed=0, block=2)
    centres = (np.stack(np.meshgrid(np.arange(10), np.arange(10), indexing="ij"), axis=-1).reshape(-1, 2) + 0.5) * 16
    classes = rng.integers(0, 2, len(centres))
    examples = WindowExamples(centres, classes, np.zeros(len(centres), dtype=bool), extent=16)
    tested = np.argwhere(folds.testing(0, 0, 0, 160, 160))
    kept = WindowFold(targets_of(examples, folds), 0).numbers
    assert len(kept)
    for row, col in centres[kept] - 8:  # Chebyshev distance from the square's edge to that of the nearest tested pixel
        gaps = [
            np.maximum(row - (tested[:, 0] + 1), tested[:, 0] - (row + 16)),
            np.maximum(col - (tested[:, 1] + 1), tested[:, 1] - (col + 16)),
        ]
        assert max(np.maximum(*gaps).min(), 0) >= buffer
