"""What products are built from: the network, the ground, the layers and the options that all products share."""

from __future__ import annotations

import hashlib
import logging
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from util.checkpoints.target_layers import target_numbers
from util.inference import finetuned_task
from util.inference.engine import Engine, Ground, SampleOf
from util.inference.layers import LayerValues, NativeLayer
from util.inference.masked_views import MaskedViews
from util.mosaics.mosaic import Block

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class InferenceInputs:
    """What products are built from.

    Attributes:
        engine: the network.
        ground: the base-scale pixels.
        layers: name, unit and encoding of every layer, in their order.
        natives: their own grids, in the same order; None where a layer is absent.
        known: for each scale, the layers whose native pixels are no coarser than those of the scale.
        read: reads the pixels of a block.
        tags: metadata of every raster: where it comes from.
        mask_ratio: fraction of tokens hidden in training.
        seed: seed of masks and clusters.
        finetuned: the task and predictions of a fine-tuned network, None for a pre-trained one.
    """

    engine: Engine
    ground: Ground
    layers: Sequence[LayerValues]
    natives: Sequence[NativeLayer | None]
    known: Mapping[int, Sequence[int]]
    read: Callable[[Block], Any]
    tags: Mapping[str, str]
    mask_ratio: float
    seed: int
    finetuned: finetuned_task.FinetunedNetwork | None

    def masked_views(self, *, draws: int, mask_ratio: float | None, use: str = "hidden") -> MaskedViews:
        """How tiles are masked: with the mask ratio of training (None) or another."""
        ratio = self.mask_ratio if mask_ratio is None else mask_ratio
        return MaskedViews(mask_ratio=ratio, draws=draws, seed=self.seed, use=use)

    def tiles(self, most: int) -> np.ndarray:
        """(n, 2) origins of randomly chosen tiles, at most `most`."""
        rows, cols = self.engine.lattice(self.ground)
        numbers = np.random.default_rng(most).permutation(len(rows) * len(cols))[:most]
        return np.stack([rows[numbers // len(cols)], cols[numbers % len(cols)]], axis=1)

    def single_tiles(self) -> SampleOf:
        """A function that reads one tile at a time, anywhere on the ground."""
        size = self.engine.model.img_size

        def sample(origins: np.ndarray) -> Any:
            top, left = (int(x) for x in origins[0])
            return self.read(Block(0, 0, top, left, top + size, left + size)).sample(origins, self.engine.device)

        return sample

    def continuous(self, cannot: str) -> dict[int, tuple[int, ...]]:
        """For each scale the numbers of the continuous layers that the model sees, and predicts there.

        Args:
            cannot: what cannot be done to other layers, for the log, such as "filled".

        Raises:
            ValueError: there are no such layers.
        """
        others = {c: layer.encoding.kind for c, layer in enumerate(self.layers) if not layer.encoding.is_continuous}
        others |= dict.fromkeys(self.engine.model.target_layers, "target, never seen")
        names = ", ".join(f"'{self.layers[c].name}' ({why})" for c, why in others.items())
        if len(others) == len(self.layers):
            raise ValueError(f"no continuous layer: {names} cannot be {cannot}")
        if others:
            logger.warning("%s cannot be %s", names, cannot)
        scored = self.engine.model.scored_layers
        return {s: tuple(c for c in numbers if c not in others) for s, numbers in scored.items()}

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
    """The base-scale pixels of a `datasets.survey.inference_survey.InferenceSurvey`."""
    grid, (rows, cols) = survey.stack.reference, survey.shape
    return Ground(grid.crs.to_wkt(), grid.left, grid.top, survey.base_resolution, rows, cols)


def file_names(names: Sequence[str]) -> list[str]:
    """What layers are called in names of files: their names without characters that may not stand there.

    No two are alike, also where upper and lower case are one: later ones end in `_2`, `_3`, ... A name that needs no
    change comes before those that become it.
    """
    cleaned = [re.sub(r"[^\w.-]+", "_", name) for name in names]
    order = sorted(range(len(names)), key=lambda number: cleaned[number] != names[number])
    found: dict[int, str] = {}
    taken: set[str] = set()
    for number in order:
        candidate, count = cleaned[number], 1
        while candidate.casefold() in taken:
            count += 1
            candidate = f"{cleaned[number]}_{count}"
        taken.add(candidate.casefold())
        found[number] = candidate
    return [found[number] for number in range(len(names))]


def layer_values(survey: Any) -> list[LayerValues]:
    """Names and units of the layers of an `InferenceSurvey`, and how their channels become values."""
    files = file_names([layer.name for layer in survey.layers])
    return [
        LayerValues(layer.name, layer.units, file, encoding)
        for layer, file, encoding in zip(survey.layers, files, survey.encodings, strict=True)
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


def hidden_channels(state: Mapping[str, Any]) -> Sequence[int]:
    """Layers that the network of a checkpoint never saw: masked ones, in fine-tuning also labels, and targets."""
    masked = state["hidden"] if "task" in state else state["options"].get("masked_bands") or ()
    return [*masked, *target_numbers(state)]


def raster_tags(state: Mapping[str, Any], survey: Any, *, checkpoint: str, output: str) -> dict[str, str]:
    """Metadata of every raster: software, checkpoint, layers and, of fine-tuned models, task and scores.

    Args:
        state: contents of the checkpoint.
        survey: the `InferenceSurvey`.
        checkpoint: path of the checkpoint.
        output: name of the product.
    """
    weights = b"".join(tensor.cpu().numpy().tobytes() for tensor in state["model"].values())
    tags = common_tags(state, survey, program="main_inference", output=output) | {
        "checkpoint": Path(checkpoint).name,
        "checkpoint_weights_sha256": hashlib.sha256(weights).hexdigest()[:16],
        "missing_layers": ", ".join(survey.missing) or "none",
    }
    if "task" in state:
        hidden = [survey.layers[channel].name for channel in hidden_channels(state)]
        tags["hidden_layers"] = ", ".join(hidden) or "none"
    return tags


def common_tags(state: Mapping[str, Any], survey: Any, *, program: str, output: str) -> dict[str, str]:
    """Metadata of rasters whatever made them: software, layers and, of fine-tuned models, task and scores.

    Args:
        state: contents of a checkpoint, or what one would hold.
        survey: the `InferenceSurvey`.
        program: that writes the rasters.
        output: name of the product.
    """
    return {
        "software": f"GRID-MAE {program}",
        "version": str(state["version"]),
        "layers": ", ".join(layer.name for layer in survey.layers),
        "output": output,
        **(finetuned_task.provenance(state) if "task" in state else {}),
    }
