"""Target layers of pre-training with values on test ground: an encoder that learned from them may know the labels."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from datasets.folds.folds import Folds
from datasets.ground.grid import Grid
from datasets.labels.label_map import strips
from datasets.labels.raster_labels import NoOverlapError, open_label_raster
from datasets.layers.layer import Layer


def known_tests(grid: Grid, folds: Folds, targets: Sequence[Layer]) -> list[str]:
    """Warnings about target layers with values on the test ground of a fold.

    Args:
        grid: base-scale pixels of the ground.
        folds: which of them each fold tests.
        targets: the target layers.

    Returns:
        One sentence for each such layer, and for each that cannot be read.

    Raises:
        OSError: a window of a layer cannot be read.
    """
    found = []
    for layer in targets:
        try:
            raster = open_label_raster(layer.path, kind="values", grid=grid, band=layer.band, nodata=layer.nodata)
        except NoOverlapError:  # pre-training was on other ground
            continue
        except (ValueError, OSError) as error:
            found.append(
                f"layer '{layer.name}', a target of pre-training (--target_layers), cannot be read ({error}), so that "
                "nothing says whether the encoder has learned from labels of test ground"
            )
            continue
        known = np.zeros(folds.count, dtype=bool)
        for top, bottom in strips(grid.rows, grid.cols):
            window = (top, 0, bottom - top, grid.cols)
            values = np.isfinite(raster.read(*window))
            known |= [bool((values & folds.testing(fold, *window)).any()) for fold in range(folds.count)]
        if known.any():
            tested = " ".join(map(str, np.flatnonzero(known)))
            found.append(
                f"layer '{layer.name}', a target of pre-training (--target_layers), has values on ground that is "
                f"tested in fold {tested}: if they are the labels, the encoder has learned them, and scores there are "
                "too good; pre-train with the labels that one fold may know (scripts.known_labels), and score it "
                "alone (--only_folds)"
            )
    return found
