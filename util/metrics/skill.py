"""Skill: the model's error compared with two baselines, the mean and interpolation.

Model and baselines see the same pixels and are scored on the same ones: at the base scale the valid pixels of hidden
tokens, at finer scales all valid pixels, or those of hidden tokens alone if the model sees fine pixels in visible ones.
Each layer has two errors:

| channels | `error`, from which skill follows | `report`, in physical units |
|---|---|---|
| values | squared difference, model units | squared difference, physical units |
| angle | squared angle, degrees | the same |
| class fractions | cross-entropy | fraction of the ground that is not of the most probable class |
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from util.metrics.interpolation_baselines import baseline_images
from util.model.layer_losses import LOG_FLOOR, LayerChannels
from util.model.patches import token_pixels

REGIONS = ("scored", "hidden", "visible")
"""Regions of pixels: all that are scored, and of these the ones in hidden and in visible tokens."""

MIXTURES = (0.0, 0.02, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.8)
"""Weights of the class frequencies in mixtures with the class fractions of the nearest visible pixel.

Without them a class that is not nearest would have probability 0. The mixture with the smallest error is the baseline,
chosen on the scored pixels themselves, in its favour.
"""


@dataclass(frozen=True)
class ScoredLayer:
    """A layer with what scoring needs.

    Attributes:
        channels: its channels in the model.
        decode: (N, k, h, w) model units -> (N, h, w) physical units or degrees.
        physical_per_model_unit: size of a model unit in physical units; None where the two are not proportional.
        mean: for each channel, the best constant prediction in model units.
        period: of angles, degrees after which they repeat.
    """

    channels: LayerChannels
    decode: Callable[[torch.Tensor], torch.Tensor]
    physical_per_model_unit: float | None
    mean: tuple[float, ...]
    period: float = 360.0

    def errors(self, image: torch.Tensor, target: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """`error` and `report` of each pixel, (N, h, w) each.

        Args:
            image: (N, C, h, w) prediction, model units.
            target: (N, C, h, w) truth, model units, finite.
        """
        image, target = self.channels.of(image).float(), self.channels.of(target)
        if self.channels.has_fractions:
            entropy = -(target * (image + LOG_FLOOR).log()).sum(dim=1)
            right = target.gather(1, image.argmax(dim=1, keepdim=True)).squeeze(1)
            return entropy, target.sum(dim=1) - right
        if self.channels.is_angle:
            half = self.period / 2
            degrees = (self.decode(image) - self.decode(target) + half) % self.period - half
            return degrees.square(), degrees.square()
        error = (image - target).squeeze(1).square()
        if self.physical_per_model_unit is not None:
            return error, error * self.physical_per_model_unit**2
        return error, (self.decode(image) - self.decode(target)).square()


def scored_layers(channels: Sequence[LayerChannels], encodings: Sequence[Any]) -> list[ScoredLayer]:
    """The layers to score, from their channels in the model and their encodings."""
    return [
        ScoredLayer(part, encoding.decode, encoding.physical_per_model_unit, encoding.means, encoding.period)
        for part, encoding in zip(channels, encodings, strict=True)
    ]


def error_sums(
    images: Sequence[torch.Tensor],
    targets: Sequence[torch.Tensor],
    valid: Sequence[torch.Tensor],
    hidden: torch.Tensor,
    layers: Sequence[ScoredLayer],
) -> tuple[torch.Tensor, torch.Tensor]:
    """Sums of errors by region, scale and layer.

    Args:
        images: predictions at each scale, (N, C, sH, sW), the base scale first.
        targets: truth at each scale.
        valid: bool at each scale, False where not scored.
        hidden: (N, C, H, W) bool, True inside hidden tokens.
        layers: the layers.

    Returns:
        Sums (2, 3, S, Y) of `error` and `report`, and counts (3, S, Y), float64 on the CPU, regions in the order of
        `REGIONS`. Visible base-scale pixels are input of the model, so the base scale has no `visible` region.
    """
    sums = torch.zeros(2, 3, len(images), len(layers), dtype=torch.float64, device=hidden.device)
    counts = torch.zeros(sums.shape[1:], dtype=torch.float64, device=hidden.device)
    for level, (image, target, image_valid) in enumerate(zip(images, targets, valid, strict=True)):
        scale = target.shape[-1] // hidden.shape[-1]
        for number, layer in enumerate(layers):
            ok, layer_hidden = image_valid[:, layer.channels.first], hidden[:, layer.channels.first]
            if not ok.any():
                continue
            inside = layer_hidden.repeat_interleave(scale, -1).repeat_interleave(scale, -2)
            errors = layer.errors(torch.where(ok.unsqueeze(1), image, 0.0), torch.where(ok.unsqueeze(1), target, 0.0))
            masks = [ok & inside if level == 0 else ok, ok & inside, ok & ~inside if level else ok & False]
            for region, mask in enumerate(masks):
                for k, error in enumerate(errors):
                    sums[k, region, level, number] = torch.where(mask, error, 0.0).sum(dtype=torch.float64)
                counts[region, level, number] = mask.sum()
    return sums.cpu(), counts.cpu()


def baseline_error_sums(
    batch: ScoredBatch,
    targets: Sequence[torch.Tensor],
    valid: Sequence[torch.Tensor],
    hidden: torch.Tensor,
    *,
    layers: Sequence[ScoredLayer],
    scales: Sequence[int],
) -> torch.Tensor:
    """Sums of errors of the baselines on a batch.

    Args:
        batch: the input of the model.
        targets: as in `error_sums`.
        valid: as in `error_sums`.
        hidden: as in `error_sums`.
        layers: the layers.
        scales: scales, 1 first.

    Returns:
        (1 + M, 2, 3, S, Y) float64: errors of the constant, then of the interpolation, of which layers of class
        fractions are mixed with the constant as in `MIXTURES`.
    """
    means = [mean for layer in layers for mean in layer.mean]
    channels = [layer.channels for layer in layers]
    constant, interpolated = baseline_images(
        batch.imgs, batch.valid, hidden, means=means, scales=scales, layers=channels
    )
    on_cpu = [t.cpu() for t in targets], [v.cpu() for v in valid], hidden.cpu()
    found = [error_sums(constant, *on_cpu, layers)[0], error_sums(interpolated, *on_cpu, layers)[0]]
    classes = [layer if layer.channels.has_fractions else None for layer in layers]
    if not any(classes):
        return torch.stack(found + found[1:] * (len(MIXTURES) - 1))
    for weight in MIXTURES[1:]:
        mixed = [(1 - weight) * near + weight * even for near, even in zip(interpolated, constant, strict=True)]
        sums = found[1].clone()
        for number, layer in enumerate(classes):
            if layer is not None:
                part, _ = error_sums(mixed, *on_cpu, [layer])
                sums[..., number] = part[..., 0]
        found.append(sums)
    return torch.stack(found)


@dataclass(frozen=True)
class Scores:
    """Held-out scores.

    Attributes:
        loss: total loss.
        base_loss: base-scale term.
        scale_loss: finer-scale term.
        model: mean `error` of the model, (3, S, Y) float64, regions in the order of `REGIONS`.
        mean: mean `error` of the constant.
        interpolation: mean `error` of interpolation, or of the nearest visible classes.
        reports: mean `report` of these three, (3, S, Y) float64 each.
        counts: (3, S, Y) float64, number of pixels in each mean.
        views: number of masked tiles scored.
        texture_loss: loss of textures, None if the model predicts none.
    """

    loss: float
    base_loss: float
    scale_loss: float
    model: torch.Tensor
    mean: torch.Tensor
    interpolation: torch.Tensor
    reports: tuple[torch.Tensor, torch.Tensor, torch.Tensor]
    counts: torch.Tensor
    views: int
    texture_loss: float | None = None

    @property
    def best(self) -> torch.Tensor:
        """Mean error of the better baseline, (3, S, Y) float64.

        Over all scored pixels it combines the better baseline on hidden pixels with the better one on visible pixels,
        so that the comparison does not favour a model that is good on only one of them.
        """
        best = torch.minimum(self.mean, self.interpolation)
        parts = torch.where(self.counts[1:] > 0, best[1:] * self.counts[1:], 0.0).sum(0)
        return torch.cat([(parts / self.counts[0]).unsqueeze(0), best[1:]])

    @property
    def skill(self) -> torch.Tensor:
        """1 - error / best, by region, scale and layer, (3, S, Y) float64; NaN where there is no pixel."""
        return 1.0 - self.model / self.best


@dataclass(frozen=True)
class ScoredBatch:
    """A held-out batch.

    Attributes:
        imgs: (N, C, H, W) base-scale values, model units.
        valid: (N, C, H, W) bool, True = usable.
        imgs_up: finer targets.
        valid_up: validity of the finer targets.
        noise: (N, tokens) float32, which determines the mask.
        native: native pixels of channel groups, for a model with a stem.
    """

    imgs: torch.Tensor
    valid: torch.Tensor
    imgs_up: list[torch.Tensor]
    valid_up: list[torch.Tensor]
    noise: torch.Tensor
    native: Sequence[torch.Tensor] = ()


class HeldOutEvaluator:
    """Scores a model on the same held-out tiles with the same masks each time it is called.

    The baselines do not change, so their errors are computed once.

    Args:
        fetch: tile numbers -> batch on the device.
        batches: this rank's tile numbers, batch by batch.
        scales: scales, 1 first.
        scored_at_base: (Y,) bool, layers scored at the base scale.
        layers: the layers.
        groups: channel groups.
        patch_size: patch edge.
        base_in_units: False if base-scale predictions are normalised by patch and cannot be compared.
        hidden_alone: finer scales are scored in hidden tokens alone: the model sees finer pixels in visible ones.
        sum_over_ranks: sums a tensor over ranks.
    """

    def __init__(
        self,
        *,
        fetch: Callable[[np.ndarray], ScoredBatch],
        batches: Sequence[np.ndarray],
        scales: Sequence[int],
        scored_at_base: Sequence[bool],
        layers: Sequence[ScoredLayer],
        groups: Sequence[Sequence[int]],
        patch_size: int,
        base_in_units: bool,
        sum_over_ranks: Callable[[torch.Tensor], torch.Tensor],
        hidden_alone: bool = False,
    ) -> None:
        self.batches = list(batches)
        self.fetch = fetch
        self._scales = tuple(scales)
        self._scored_at_base = torch.tensor(
            [scored for scored, layer in zip(scored_at_base, layers, strict=True) for _ in layer.channels.channels]
        )
        self._layers = tuple(layers)
        self._groups = groups
        self._patch_size = patch_size
        self._base_in_units, self._hidden_alone = base_in_units, hidden_alone
        self._sum_over_ranks = sum_over_ranks
        self._baselines: torch.Tensor | None = None

    def __call__(
        self,
        predict: Callable[[ScoredBatch], Any],
        *,
        loss_weights: tuple[float, ...],
        show: Callable = iter,
    ) -> Scores:
        """Scores a model.

        Args:
            predict: batch -> the model's `Reconstruction`, without gradients.
            loss_weights: of the base-scale and the finer-scale term and, if there is one, that of textures.
            show: wraps the list of batches, to show a progress bar.

        Returns:
            The scores over all ranks.
        """
        shape = (3, len(self._scales), len(self._layers))
        sums, counts = torch.zeros((2, *shape), dtype=torch.float64), torch.zeros(shape, dtype=torch.float64)
        losses = torch.zeros(len(loss_weights) + 1, dtype=torch.float64)
        baselines: list[torch.Tensor] = []
        for numbers in show(self.batches):
            batch = self.fetch(numbers)
            out = predict(batch)
            hidden = self.hidden_pixels(out.mask, batch.imgs.shape)
            targets, valid = [batch.imgs, *batch.imgs_up], self._scored_pixels(batch, hidden)
            images = [out.images[s] for s in self._scales]
            part, part_counts = error_sums(images, targets, valid, hidden, self._layers)
            sums += part
            counts += part_counts
            losses += torch.stack([*out.losses, torch.ones_like(out.loss)]).double().cpu() * len(numbers)
            if self._baselines is None:
                baselines.append(
                    baseline_error_sums(batch, targets, valid, hidden, layers=self._layers, scales=self._scales)
                )
        if self._baselines is None:
            empty = torch.zeros(1 + len(MIXTURES), 2, *shape, dtype=torch.float64)
            self._baselines = _best_mixture(self._sum_over_ranks(torch.stack(baselines).sum(0) if baselines else empty))
        sums, counts, losses = (self._sum_over_ranks(x) for x in (sums, counts, losses))
        model = sums / counts
        if not self._base_in_units:
            has_values = [layer.channels.has_values for layer in self._layers]
            model[:, :, 0, has_values] = float("nan")
        base, finer, *texture = terms = (losses[:-1] / losses[-1]).tolist()
        constant, interpolated = (sums / counts for sums in self._baselines)
        return Scores(
            loss=sum(weight * term for weight, term in zip(loss_weights, terms, strict=True)),
            base_loss=base,
            scale_loss=finer,
            model=model[0],
            mean=constant[0],
            interpolation=interpolated[0],
            reports=(model[1], constant[1], interpolated[1]),
            counts=counts,
            views=int(losses[-1]),
            texture_loss=texture[0] if texture else None,
        )

    def hidden_pixels(self, mask: torch.Tensor, shape: Sequence[int]) -> torch.Tensor:
        """Token mask (N, G, L), 1 = removed -> (N, C, H, W) bool, True inside removed tokens of the channel's group."""
        group_of = [next(g for g, group in enumerate(self._groups) if c in group) for c in range(shape[1])]
        return token_pixels(mask[:, group_of] > 0.5, scale=1, patch_size=self._patch_size)

    def _scored_pixels(self, batch: ScoredBatch, hidden: torch.Tensor) -> list[torch.Tensor]:
        scored, finer = self._scored_at_base.to(batch.valid.device)[:, None, None], batch.valid_up
        if self._hidden_alone:
            scales = [ok.shape[-1] // hidden.shape[-1] for ok in finer]
            inside = [hidden.repeat_interleave(s, -1).repeat_interleave(s, -2) for s in scales]
            finer = [ok & part for ok, part in zip(finer, inside, strict=True)]
        return [batch.valid & scored, *finer]


def _best_mixture(sums: torch.Tensor) -> torch.Tensor:
    """Selects the constant and the mixture of smallest error: (1 + M, 2, 3, S, Y) -> (2, 2, 3, S, Y)."""
    best = sums[1:, 0].argmin(dim=0)  # (3, S, Y)
    chosen = sums[1:].gather(0, best.expand(1, 2, *best.shape))[0]
    return torch.stack([sums[0], chosen])
