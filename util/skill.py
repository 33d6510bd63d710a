"""Honest skill: the model's error against two predictions that cost nothing.

The two are the layer's mean (over training ground) and linear interpolation between the pixels that the model was
shown. At finer scales the interpolated base-scale grid is interpolated once more, to the finer pixels. All three see
the same pixels and are scored on the same ones: at the base scale the valid pixels of hidden tokens, at finer scales
every valid pixel.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from scipy.interpolate import LinearNDInterpolator, NearestNDInterpolator
from scipy.spatial import QhullError

REGIONS = ("scored", "hidden", "visible")
"""`scored` is what the headline uses; finer scales are also told apart by whether the token was hidden."""


def interpolate_visible(values: np.ndarray, known: np.ndarray, *, fallback: float) -> np.ndarray:
    """Fills a tile from its known pixels: linear between them (Delaunay), nearest outside their hull.

    Args:
        values: (H, W) float.
        known: (H, W) bool, True where the value may be used.
        fallback: value where nothing is known.

    Returns:
        (H, W) float32; known pixels keep their value.
    """
    if not known.any():
        return np.full(values.shape, fallback, dtype=np.float32)
    points = np.argwhere(known)
    missing = np.argwhere(~known)
    filled = values.astype(np.float32).copy()
    if not len(missing):
        return filled
    nearest = NearestNDInterpolator(points, values[known])(missing)
    try:
        linear = LinearNDInterpolator(points, values[known])(missing)
    except QhullError:  # all known pixels on one line: there is no triangle to interpolate in
        linear = np.full(len(missing), np.nan)
    filled[~known] = np.where(np.isfinite(linear), linear, nearest)
    return filled


def refine(base: torch.Tensor, scale: int) -> torch.Tensor:
    """Bicubic interpolation of a base-scale grid (N, C, H, W) to (N, C, sH, sW), pixel centres kept in place."""
    if scale == 1:
        return base
    return F.interpolate(base, scale_factor=scale, mode="bicubic", align_corners=False)


def squared_errors(
    images: Sequence[torch.Tensor],
    targets: Sequence[torch.Tensor],
    valid: Sequence[torch.Tensor],
    hidden: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Sums of squared errors by region, scale and channel.

    Args:
        images: predictions, per scale (N, C, sH, sW), the base scale first.
        targets: truth, likewise.
        valid: likewise bool; False where not scored.
        hidden: (N, C, H, W) bool, True inside hidden tokens.

    Returns:
        sums and counts, (3, S, C) float64 on the CPU, regions in the order of `REGIONS`. Visible base-scale pixels
        were given to the model, so the base scale has no `visible` region.
    """
    sums = torch.zeros(3, len(images), images[0].shape[1], dtype=torch.float64)
    counts = torch.zeros_like(sums)
    for level, (image, target, ok) in enumerate(zip(images, targets, valid, strict=True)):
        scale = target.shape[-1] // hidden.shape[-1]
        inside = hidden.repeat_interleave(scale, -1).repeat_interleave(scale, -2)
        error = torch.where(ok, image.float() - target, 0.0).square()
        masks = [ok & inside if level == 0 else ok, ok & inside, ok & ~inside if level else ok & False]
        for region, mask in enumerate(masks):
            sums[region, level] = (error * mask).sum(dim=(0, 2, 3), dtype=torch.float64).cpu()
            counts[region, level] = mask.sum(dim=(0, 2, 3)).double().cpu()
    return sums, counts


def baseline_images(
    imgs: torch.Tensor,
    valid: torch.Tensor,
    hidden: torch.Tensor,
    *,
    means: Sequence[float],
    scales: Sequence[int],
) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """What the two free predictions say about a batch.

    Args:
        imgs: (N, C, H, W) base-scale values, model units.
        valid: likewise bool.
        hidden: likewise bool, True inside hidden tokens.
        means: per channel, the layer's mean in model units.
        scales: scales, 1 first.

    Returns:
        Per scale the mean image and the interpolated image, (N, C, sH, sW) on the CPU.
    """
    values = imgs.float().cpu()
    known = (valid & ~hidden).cpu().numpy()
    filled = torch.stack(
        [
            torch.stack(
                [
                    torch.from_numpy(interpolate_visible(values[n, c].numpy(), known[n, c], fallback=means[c]))
                    for c in range(values.shape[1])
                ]
            )
            for n in range(values.shape[0])
        ]
    )
    flat = torch.tensor(means, dtype=torch.float32)[:, None, None].expand_as(values)
    return [refine(flat, s) for s in scales], [refine(filled, s) for s in scales]


@dataclass(frozen=True)
class Scores:
    """Held-out scores.

    Attributes:
        loss: total loss.
        base_loss: base-scale term.
        scale_loss: finer-scale term.
        model: mean squared errors of the model, (3, S, C) float64, model units, regions in the order of `REGIONS`.
        mean: likewise of the layer mean.
        interpolation: likewise of interpolation.
        counts: (3, S, C) float64, number of pixels behind each error.
        views: number of masked tiles scored.
    """

    loss: float
    base_loss: float
    scale_loss: float
    model: torch.Tensor
    mean: torch.Tensor
    interpolation: torch.Tensor
    counts: torch.Tensor
    views: int

    @property
    def best(self) -> torch.Tensor:
        """Mean squared error of the better free prediction, (3, S, C) float64.

        Over all scored pixels it is put together from the better one on hidden and the better one on visible
        ground, so that a prediction good on one of them does not pass for good on both.
        """
        best = torch.minimum(self.mean, self.interpolation)
        parts = torch.where(self.counts[1:] > 0, best[1:] * self.counts[1:], 0.0).sum(0)
        return torch.cat([(parts / self.counts[0]).unsqueeze(0), best[1:]])

    @property
    def skill(self) -> torch.Tensor:
        """1 - error / best, by region, scale and channel, (3, S, C) float64; NaN where there is no pixel."""
        return 1.0 - self.model / self.best


@dataclass(frozen=True)
class ScoredBatch:
    """A held-out batch as the evaluator needs it.

    Attributes:
        imgs: (N, C, H, W) base-scale values, model units.
        valid: likewise bool.
        imgs_up: finer targets.
        valid_up: likewise bool.
        noise: (N, tokens) float32, decides the mask.
    """

    imgs: torch.Tensor
    valid: torch.Tensor
    imgs_up: list[torch.Tensor]
    valid_up: list[torch.Tensor]
    noise: torch.Tensor


class HeldOutEvaluator:
    """Scores a model on the same held-out tiles, under the same masks, each time it is called.

    The free predictions do not change, so their errors are computed once.

    Args:
        fetch: tile numbers -> batch on the device.
        batches: this rank's tile numbers, batch by batch.
        scales: scales, 1 first.
        scored_at_base: (C,) bool, channels scored at the base scale.
        means: per channel, the layer mean in model units.
        groups: channel groups.
        patch_size: patch edge.
        base_in_units: False when base-scale predictions are normalised per patch and cannot be compared.
        sum_over_ranks: adds a tensor over ranks.
    """

    def __init__(
        self,
        *,
        fetch: Callable[[np.ndarray], ScoredBatch],
        batches: Sequence[np.ndarray],
        scales: Sequence[int],
        scored_at_base: Sequence[bool],
        means: Sequence[float],
        groups: Sequence[Sequence[int]],
        patch_size: int,
        base_in_units: bool,
        sum_over_ranks: Callable[[torch.Tensor], torch.Tensor],
    ) -> None:
        self.batches = list(batches)
        self.fetch = fetch
        self._scales = tuple(scales)
        self._scored_at_base = torch.tensor(list(scored_at_base))
        self._means = list(means)
        self._groups = groups
        self._patch_size = patch_size
        self._base_in_units = base_in_units
        self._sum_over_ranks = sum_over_ranks
        self._free: torch.Tensor | None = None

    def __call__(
        self,
        predict: Callable[[ScoredBatch], Any],
        *,
        loss_weights: tuple[float, float],
        show: Callable = iter,
    ) -> Scores:
        """Scores a model.

        Args:
            predict: batch -> the model's `Reconstruction`, without gradients.
            loss_weights: of the base-scale and the finer-scale term.
            show: wraps the list of batches, for a progress bar.

        Returns:
            The scores over all ranks.
        """
        shape = (3, len(self._scales), len(self._means))
        sums, counts = torch.zeros(shape, dtype=torch.float64), torch.zeros(shape, dtype=torch.float64)
        losses = torch.zeros(3, dtype=torch.float64)
        free: list[torch.Tensor] = []
        for numbers in show(self.batches):
            batch = self.fetch(numbers)
            out = predict(batch)
            hidden = self.hidden_pixels(out.mask, batch.imgs.shape)
            targets, valid = [batch.imgs, *batch.imgs_up], self._scored_pixels(batch)
            part, part_counts = squared_errors([out.images[s] for s in self._scales], targets, valid, hidden)
            sums += part
            counts += part_counts
            losses += torch.stack([out.loss, out.ms_loss, torch.ones_like(out.loss)]).double().cpu() * len(numbers)
            if self._free is None:
                guesses = baseline_images(batch.imgs, batch.valid, hidden, means=self._means, scales=self._scales)
                on_cpu = [t.cpu() for t in targets], [v.cpu() for v in valid], hidden.cpu()
                free.append(torch.stack([squared_errors(guess, *on_cpu)[0] for guess in guesses]))
        if self._free is None:
            own = torch.stack(free).sum(0) if free else torch.zeros(2, *shape, dtype=torch.float64)
            self._free = self._sum_over_ranks(own)
        sums, counts, losses = (self._sum_over_ranks(x) for x in (sums, counts, losses))
        model = sums / counts
        if not self._base_in_units:
            model[:, 0] = float("nan")
        base, finer = (losses[:2] / losses[2]).tolist()
        return Scores(
            loss=loss_weights[0] * base + loss_weights[1] * finer,
            base_loss=base,
            scale_loss=finer,
            model=model,
            mean=self._free[0] / counts,
            interpolation=self._free[1] / counts,
            counts=counts,
            views=int(losses[2]),
        )

    def hidden_pixels(self, mask: torch.Tensor, shape: Sequence[int]) -> torch.Tensor:
        """Token mask (N, G, L), 1 = removed -> (N, C, H, W) bool, True inside removed tokens of the channel's group."""
        side = shape[-1] // self._patch_size
        tokens = mask.reshape(mask.shape[0], mask.shape[1], side, side) > 0.5
        pixels = tokens.repeat_interleave(self._patch_size, -1).repeat_interleave(self._patch_size, -2)
        group_of = [next(g for g, group in enumerate(self._groups) if c in group) for c in range(shape[1])]
        return pixels[:, group_of]

    def _scored_pixels(self, batch: ScoredBatch) -> list[torch.Tensor]:
        scored = self._scored_at_base.to(batch.valid.device)[:, None, None]
        return [batch.valid & scored, *batch.valid_up]
