"""Cross-layer skill: how well each layer is predicted from each group of layers.

Each group of layers is hidden in turn and predicted from each other group alone, from all others, from a fraction of
its own tokens, and from all of these. Skill is measured against the layer's mean or its class frequencies: 0 is no
better than this constant, 1 is a perfect prediction.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from util.metrics.skill import ScoredLayer, error_sums
from util.model.patches import token_pixels


@dataclass(frozen=True)
class ShownGroups:
    """The groups of a tile that are shown to the model to predict the layers of one group.

    Attributes:
        target: the group that is predicted.
        own: True if a fraction of its own tokens is shown.
        others: the other groups that are shown, complete.
    """

    target: int
    own: bool
    others: tuple[int, ...]


@dataclass
class CrossLayerScore:
    """Errors of one layer, predicted from some groups.

    Attributes:
        error: mean `error` of the model, see `util.metrics.skill`.
        constant: mean `error` of the layer's mean or class frequencies.
        report: mean `report` of the model.
        constant_report: mean `report` of the constant.
        pixels: number of pixels in these means.
    """

    error: float
    constant: float
    report: float
    constant_report: float
    pixels: int

    @property
    def skill(self) -> float:
        """1 - error of the model / error of the constant."""
        return 1 - self.error / self.constant


def shown_groups_for(target: int, groups: int) -> list[ShownGroups]:
    """The choices of shown groups to score.

    Own tokens alone, each other group alone, and, with and without own tokens, all others and all others but one.
    """
    rest = [g for g in range(groups) if g != target]
    found = [ShownGroups(target, True, ()), *(ShownGroups(target, False, (g,)) for g in rest)]
    for own in (False, True):
        found.append(ShownGroups(target, own, tuple(rest)))
        found += [ShownGroups(target, own, tuple(h for h in rest if h != g)) for g in rest]
    return [shown for shown in dict.fromkeys(found) if shown.own or shown.others]


def shown_groups_noise(
    shown: ShownGroups, token_valid: Tensor, noise: Tensor, *, mask_ratio: float
) -> tuple[Tensor, Tensor]:
    """Noise that is smallest at the tokens to show.

    Args:
        shown: the groups to show.
        token_valid: (N, G, L) bool.
        noise: (N, G, L) uniform noise, which chooses the own tokens to show.
        mask_ratio: fraction of the own tokens that stay hidden.

    Returns:
        (N, G*L) noise, and the number of shown tokens of each tile, (N,) int64.
    """
    visible = torch.zeros_like(token_valid)
    visible[:, list(shown.others)] = True
    if shown.own:
        order = torch.where(token_valid[:, shown.target], noise[:, shown.target], 2.0).argsort(dim=1).argsort(dim=1)
        count = (token_valid[:, shown.target].sum(dim=1, keepdim=True) * (1 - mask_ratio)).round().clamp_min(1)
        visible[:, shown.target] = order < count
    visible &= token_valid
    return torch.where(visible, noise, noise + 2).flatten(1), visible.sum(dim=(1, 2))


@torch.inference_mode()
def cross_layer_scores(
    model: Any,
    batches: Iterable[tuple[Tensor, Tensor, Tensor, Sequence[Tensor]]],
    *,
    layers: Sequence[ScoredLayer],
    groups: Sequence[Sequence[int]],
    scored: Sequence[int],
    mask_ratio: float,
) -> dict[tuple[int, ShownGroups], CrossLayerScore]:
    """Scores a model for all choices of shown groups, at the base scale, on hidden tokens of the predicted group.

    Args:
        model: the network.
        batches: imgs (N, C, H, W) and valid of held-out tiles, uniform noise (N, G, L), and native pixels for a model
            with a stem.
        layers: the layers.
        groups: the numbers of the layers of each group.
        scored: the numbers of the layers that the model predicts at the base scale.
        mask_ratio: fraction of a group's own tokens that is hidden where the others are shown.

    Returns:
        Scores by layer and shown groups, without layers that have no pixel to score.
    """
    sums: dict[tuple[int, ShownGroups], Tensor] = {}
    means = [mean for layer in layers for mean in layer.mean]
    for imgs, valid, uniform, native in batches:
        constant = torch.tensor(means, device=imgs.device)[:, None, None].expand_as(imgs)
        token_valid = model.valid_positions(valid).unflatten(1, (len(groups), -1))
        for target, members in enumerate(groups):
            numbers = [c for c in members if c in scored]
            for shown in shown_groups_for(target, len(groups)) if numbers else ():
                noise, counts = shown_groups_noise(shown, token_valid, uniform, mask_ratio=mask_ratio)
                for count in counts[counts > 0].unique().tolist():
                    tiles = (counts == count).nonzero()[:, 0]
                    rows = _error_rows(
                        model,
                        imgs[tiles],
                        valid[tiles],
                        constant[tiles],
                        native=[image[tiles] for image in native],
                        noise=noise[tiles],
                        keep=count,
                        layers=[layers[c] for c in numbers],
                    )
                    for k, c in enumerate(numbers):
                        sums[c, shown] = sums.get((c, shown), torch.zeros(5, dtype=torch.float64)) + rows[:, k]
    return {key: _mean_score(row.tolist()) for key, row in sums.items() if row[4] > 0}


def _error_rows(
    model: Any,
    imgs: Tensor,
    valid: Tensor,
    constant: Tensor,
    *,
    native: Sequence[Tensor],
    noise: Tensor,
    keep: int,
    layers: Sequence[ScoredLayer],
) -> Tensor:
    """Sums over hidden pixels of tiles, (5, layers): error and report of model and constant, and number of pixels."""
    images, hidden = model.reconstruct(imgs, valid, native, noise=noise, keep=keep)
    pixels = token_pixels(hidden, scale=1, patch_size=model.patch_size)
    found, count = error_sums([images[1].float()], [imgs], [valid], pixels, layers)
    baseline, _ = error_sums([constant], [imgs], [valid], pixels, layers)
    return torch.cat([found[:, 0, 0], baseline[:, 0, 0], count[:1, 0]])


def _mean_score(sums: Sequence[float]) -> CrossLayerScore:
    """Means from the sums of error and report of the model, the same of the constant, and the number of pixels."""
    error, report, constant, constant_report, pixels = sums
    return CrossLayerScore(error / pixels, constant / pixels, report / pixels, constant_report / pixels, int(pixels))
