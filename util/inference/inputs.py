"""What a trained model is applied to: ground, layers and network, as values that makers of results work with."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from util.inference.engine import Engine, Ground, LayerValues, SampleOf
from util.inference.gap_filling import NativeLayer
from util.mosaics.mosaic import Block

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class InferenceInputs:
    """What a model is applied to: ground, layers, and the network.

    Attributes:
        engine: the network.
        ground: the base-scale pixels.
        layers: name, unit and encoding of every layer, in their order.
        natives: their own grids, in the same order; None where a layer is absent.
        known: for each scale, the layers whose own pixels are no coarser than those of the scale.
        read: reads a rectangle of ground.
        tags: what every result says of where it comes from.
    """

    engine: Engine
    ground: Ground
    layers: Sequence[LayerValues]
    natives: Sequence[NativeLayer | None]
    known: Mapping[int, Sequence[int]]
    read: Callable[[Block], Any]
    tags: Mapping[str, str]

    def tiles(self, most: int) -> np.ndarray:
        """(n, 2) origins of some tiles, spread over the ground in no regular order."""
        rows, cols = self.engine.lattice(self.ground)
        numbers = np.random.default_rng(most).permutation(len(rows) * len(cols))[:most]
        return np.stack([rows[numbers // len(cols)], cols[numbers % len(cols)]], axis=1)

    def single_tiles(self) -> SampleOf:
        """Reads single tiles, wherever they lie."""
        size = self.engine.model.img_size

        def sample(origins: np.ndarray) -> Any:
            top, left = (int(x) for x in origins[0])
            return self.read(Block(0, 0, top, left, top + size, left + size)).sample(origins, self.engine.device)

        return sample

    def continuous(self, cannot: str) -> dict[int, tuple[int, ...]]:
        """For each scale the numbers of the continuous layers that the model predicts there.

        Args:
            cannot: what cannot be made of other layers, for the log.

        Raises:
            ValueError: there are no continuous layers.
        """
        others = [f"'{y.name}' ({y.encoding.kind})" for y in self.layers if not y.encoding.is_continuous]
        if len(others) == len(self.layers):
            raise ValueError(f"no continuous layer: {', '.join(others)} cannot be {cannot}")
        if others:
            logger.warning("%s cannot be %s", ", ".join(others), cannot)
        scored = self.engine.model.scored_layers
        return {s: tuple(c for c in numbers if self.layers[c].encoding.is_continuous) for s, numbers in scored.items()}

    def refuse_normalised(self, output: str) -> None:
        """Refuses models whose predictions have no physical units.

        Raises:
            ValueError: with the remedy.
        """
        if self.engine.model.norm_pix_loss:
            raise ValueError(
                f"--output {output}: the model was trained with --norm_pix_loss, so its predictions are relative to "
                "each patch and have no physical units; train without it"
            )


def ground_of(survey: Any) -> Ground:
    """The base-scale pixels of a `datasets.reopen.ReopenedSurvey`."""
    grid, (rows, cols) = survey.stack.reference, survey.shape
    return Ground(grid.crs.to_wkt(), grid.left, grid.top, survey.base_resolution, rows, cols)


def layer_values(survey: Any) -> list[LayerValues]:
    """Names and units of the layers of a `ReopenedSurvey`, and how their channels become values."""
    return [
        LayerValues(layer.name, layer.units, re.sub(r"[^\w.-]+", "_", layer.name), encoding)
        for layer, encoding in zip(survey.layers, survey.encodings, strict=True)
    ]


def native_layers(survey: Any) -> list[NativeLayer | None]:
    """The layers' own grids, None where a layer is absent."""
    found: list[NativeLayer | None] = []
    reference, base = survey.stack.reference, survey.base_resolution
    for channel, values in enumerate(layer_values(survey)):
        grid, place = survey.stack.bands[channel].grid, survey.stack.placements[channel]
        native = NativeLayer(
            channel=channel,
            values=values,
            left=grid.left,
            top=grid.top,
            resolution_x=grid.resolution_x,
            resolution_y=grid.resolution_y,
            rows=grid.rows,
            cols=grid.cols,
            ratio_yx=(place.ratio_y * base / reference.resolution_y, place.ratio_x * base / reference.resolution_x),
            offset_yx=(place.offset_y, place.offset_x),
        )
        found.append(None if channel in survey.stack.hidden else native)
    return found
