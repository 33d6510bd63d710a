"""Predictions of a pre-trained model from masked views of tiles, and their blending."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from util.inference.engine import Engine, SampleOf, TileBatch
from util.inference.view_masks import draws_to_show_all, least_draws, view_noise, visible_counts
from util.model.patches import token_pixels
from util.mosaics.mosaic import Block, Mosaic, WeightedMoments, raised_cosine


@dataclass(frozen=True)
class MaskedViews:
    """How tiles are masked before the model sees them.

    Attributes:
        mask_ratio: fraction of valid tokens hidden in a view.
        draws: number of views of a tile.
        seed: decides which tokens.
        use: which predictions are used, those of `hidden` pixels or of `visible` ones.
    """

    mask_ratio: float
    draws: int
    seed: int
    use: str = "hidden"

    def check(self) -> None:
        """Refuses too few views to hide everything once.

        Raises:
            ValueError: naming the least number.
        """
        least = least_draws(self.mask_ratio)
        if self.draws < least:
            raise ValueError(
                f"--draws {self.draws}: at a mask ratio of {self.mask_ratio:g} it takes {least} views to hide every "
                "pixel at least once"
            )


def predict_views(
    engine: Engine,
    views: MaskedViews,
    origins: np.ndarray,
    tiles: TileBatch,
    wanted: Mapping[int, Sequence[int]],
) -> Iterator[tuple[np.ndarray, dict[int, WeightedMoments]]]:
    """Predicts tiles from masked views of them.

    Args:
        engine: the network.
        views: how they are masked.
        origins: (N, 2) places of the tiles, which decide the masks.
        tiles: the tiles.
        wanted: for each scale, the channels wanted.

    Yields:
        Numbers of some of the tiles, and for each scale the moments (n, C', sH, sW) of the predictions over views.
    """
    model = engine.model
    usable = model.valid_positions(tiles.valid)
    places = engine.places(origins)
    counts = visible_counts(usable, views.mask_ratio)
    for keep in counts.unique().tolist():
        if keep == 0:
            continue
        chosen = (counts == keep).nonzero()[:, 0]
        part, place = tiles.select(chosen), usable[chosen]
        numbers = chosen.cpu().numpy()
        size = model.img_size
        moments = {
            s: WeightedMoments((len(numbers), len(channels), s * size, s * size), engine.device)
            for s, channels in wanted.items()
        }
        draws = max(views.draws, draws_to_show_all(place, keep)) if views.use == "visible" else views.draws
        for draw in range(draws):
            noise = view_noise(place, keep=keep, draw=draw, origins=places[numbers], seed=views.seed)
            with engine.meter.network(len(numbers)), engine.autocast():
                images, hidden = model.reconstruct(part.imgs, part.valid, part.native, noise=noise, keep=keep)
            used = hidden if views.use == "hidden" else ~hidden
            for s, channels in wanted.items():
                seen = token_pixels(used[:, list(channels)], scale=s, patch_size=model.patch_size)
                moments[s].add(images[s][:, list(channels)].float(), seen.float())
        yield numbers, moments


def mosaic_views(
    engine: Engine,
    views: MaskedViews,
    block: Block,
    tiles: np.ndarray,
    sample_of: SampleOf,
    wanted: Mapping[int, Sequence[int]],
    *,
    observe: Mapping[int, Sequence[int]] | None = None,
) -> tuple[dict[int, Mosaic], dict[int, Mosaic]]:
    """Blends the predictions from masked views of overlapping tiles in a block.

    Args:
        engine: the network.
        views: how tiles are masked.
        block: what to cover.
        tiles: (n, 2) origins of the tiles.
        sample_of: gives the tiles.
        wanted: for each scale, the channels wanted; the network is not run if there are none.
        observe: for each scale, the channels whose observed values are wanted.

    Returns:
        For each scale the prediction, and the observed values where they are known, both in model units.
    """
    model, device = engine.model, engine.device
    observe = observe or {}
    rows, cols = block.bottom - block.top, block.right - block.left
    predicted = {s: Mosaic(len(c), rows * s, cols * s, device=device) for s, c in wanted.items()}
    observed = {s: Mosaic(len(c), rows * s, cols * s, device=device, with_std=False) for s, c in observe.items()}
    tapers = {s: raised_cosine(model.img_size * s).to(device) for s in wanted}
    scales = list(model.scales)
    for origins, batch in engine.batches(tiles, sample_of):
        for n, (top, left) in enumerate(origins):
            for s, mosaic in observed.items():
                level = scales.index(s)
                image, ok = [batch.imgs, *batch.imgs_up][level], [batch.valid, *batch.valid_up][level]
                channels = list(observe[s])
                place = {"row": int(top - block.top) * s, "col": int(left - block.left) * s}
                mosaic.add(image[n, channels], ok[n, channels].float(), **place)
        views_of_them = predict_views(engine, views, origins, batch, wanted) if wanted else ()
        for numbers, moments in views_of_them:
            for k, number in enumerate(numbers):
                top, left = origins[number]
                for s, mosaic in predicted.items():
                    taper = tapers[s][:, None] * tapers[s]
                    mosaic.add(
                        moments[s].mean[k],
                        moments[s].weight[k] * taper,
                        squares=moments[s].squares[k] * taper,
                        row=int(top - block.top) * s,
                        col=int(left - block.left) * s,
                    )
    return predicted, observed
