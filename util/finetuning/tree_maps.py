"""Maps of trees: fitted on all labels, they predict all ground, in rasters like those of main_inference."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any

import numpy as np

from util.finetuning.compared_methods import Method
from util.finetuning.predictors import Predictor
from util.finetuning.run import FinetuneRun, baseline_inputs
from util.finetuning.scoring import ground_blocks, target_window
from util.finetuning.tasks import TASKS
from util.geotiff.parts import Parts
from util.inference import results
from util.inference.engine import Ground
from util.inference.finetuned_task import Task, task_of
from util.inference.inputs import common_tags, ground_of
from util.inference.prediction import task_results
from util.inference.product import Arrays, Product
from util.inference.qgis import source_layers
from util.mosaics.mosaic import Block
from util.plots.maps import Preview
from util.processes import distributed as dist
from util.processes.signals import Stop, Stopped
from util.processes.terminal import progress_bar
from util.run_page.finetuning import BASELINE_MAPS

logger = logging.getLogger(__name__)


class TreeMap(Product):
    """What trees predict at each pixel: classes with probabilities and entropy, presence, or values.

    Args:
        predictor: fitted trees.
        ground: the base-scale pixels.
        task: what is predicted.
        seen: (rows, cols) bool of target pixels, True where some layer has a valid one; the rest is nodata.
        tags: metadata of the rasters.
    """

    def __init__(
        self, predictor: Predictor, *, ground: Ground, task: Task, seen: np.ndarray, tags: Mapping[str, str]
    ) -> None:
        self.ground, self.reach = ground, 0
        self._predictor, self._scale, self._outputs, self._seen = predictor, task.scale, task.outputs, seen
        shape = (ground.rows * task.scale, ground.cols * task.scale)
        self._results = task_results(ground, task, tags, pixel=1 / task.scale, shape=shape, with_spread=False)
        self.rasters = self._results.rasters

    def make(self, block: Block, window: Any = None) -> Arrays:
        """The block's predictions; `window` is not used, as the trees' features read the layers themselves."""
        row, col, rows, cols = target_window(block, self._scale)
        seen = self._seen[row : row + rows, col : col + cols]
        if not seen.any():
            return {}
        return self._results.arrays(self._predictor.of_ground(block, seen), None, row, col)


def map_trees(
    run: FinetuneRun, metrics: Mapping[str, Any], previews: Callable[[Any], Iterable[Preview]], stop: Stop
) -> None:
    """Fits all trees of a run on all labels, and writes their maps; the main process does it.

    Args:
        run: the run, which compared them.
        metrics: its scores, which the rasters state.
        previews: gives small images of the layers, for their colours in QGIS.
        stop: polled before each map.

    Raises:
        Stopped: by a signal; the maps written before are whole.
        OSError: a layer cannot be read, or a file not written.
    """
    for method in (method for method in run.methods if method.needs_pixels):
        if dist.any_rank(stop.signal is not None):
            raise Stopped
        dist.on_main_rank(partial(_write_map, run, method, metrics, previews))


def _write_map(
    run: FinetuneRun, method: Method, metrics: Mapping[str, Any], previews: Callable[[Any], Iterable[Preview]]
) -> None:
    """Fits trees on all labels, predicts all ground and writes the rasters, with a picture and styles for QGIS."""
    assert method.fit is not None
    folder, survey = run.files.output_dir / BASELINE_MAPS / method.name, run.layers[None].survey
    state = {**run.stored, "fold": None, "arm": method.name, "scores": metrics}
    tags = common_tags(state, survey, program="main_finetune", output="prediction")
    tags["hidden_layers"] = ", ".join(survey.layers[number].name for number in sorted(survey.hidden)) or "none"
    predictor, _ = method.fit(baseline_inputs(run, None))
    task, seen = task_of(state, TASKS), run.inputs.data.seen(survey)
    product = TreeMap(predictor, ground=ground_of(survey), task=task, seen=seen, tags=tags)
    parts = Parts(folder / ".prediction.parts")
    parts.open({"method": method.name}, resume=False)
    blocks = ground_blocks(survey.shape, survey.input_size)
    bar = progress_bar(
        total=len(blocks), desc=f"map of {method.name}", unit="block", enabled=run.settings.show_progress
    )
    for block in blocks:
        parts.write(block.row, block.col, product.make(block))
        bar.update(1)
    bar.close()
    results.finish(folder, parts, product, **survey.map_scale, layers=source_layers(survey, previews(survey)))
