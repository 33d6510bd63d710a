"""Which layer can be predicted from which: skill with whole groups of layers hidden or shown.

Each group of layers is hidden in turn, and predicted from every other group alone, from all others, from a share of its
own tokens, and from all of that. Skill is here against the layer's mean, or the class frequencies: 0 is what is known
without looking, 1 is everything.
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
    """What the model is shown of a tile to predict the layers of one group.

    Attributes:
        target: the group that is predicted.
        own: True if a share of its own tokens is shown.
        others: the other groups that are shown, as wholes.
    """

    target: int
    own: bool
    others: tuple[int, ...]


@dataclass
class CrossLayerScore:
    """Errors of one layer under one look.

    Attributes:
        error: mean `error` of the model, see `util.skill`.
        constant: likewise of the layer's mean or class frequencies.
        report: mean `report` of the model.
        constant_report: likewise of the constant.
        pixels: number of pixels they are of.
    """

    error: float
    constant: float
    report: float
    constant_report: float
    pixels: int

    @property
    def skill(self) -> float:
        """1 - error / that of the constant."""
        return 1 - self.error / self.constant


def shown_groups_for(target: int, groups: int) -> list[ShownGroups]:
    """All looks at a group: with its own tokens alone, with each other group alone, with all, and with all but one."""
    rest = [g for g in range(groups) if g != target]
    found = [ShownGroups(target, True, ()), *(ShownGroups(target, False, (g,)) for g in rest)]
    for own in (False, True):
        found.append(ShownGroups(target, own, tuple(rest)))
        found += [ShownGroups(target, own, tuple(h for h in rest if h != g)) for g in rest]
    return [look for look in dict.fromkeys(found) if look.own or look.others]


def shown_groups_noise(
    look: ShownGroups, token_valid: Tensor, chance: Tensor, *, mask_ratio: float
) -> tuple[Tensor, Tensor]:
    """Noise whose smallest entries are the tokens that a look shows.

    Args:
        look: what is shown.
        token_valid: (N, G, L) bool.
        chance: (N, G, L) uniform noise that decides which own tokens are shown.
        mask_ratio: share of the own tokens that stay hidden.

    Returns:
        (N, G*L) noise, and how many tokens of each tile are shown, (N,) int64.
    """
    shown = torch.zeros_like(token_valid)
    shown[:, list(look.others)] = True
    if look.own:
        order = torch.where(token_valid[:, look.target], chance[:, look.target], 2.0).argsort(dim=1).argsort(dim=1)
        count = (token_valid[:, look.target].sum(dim=1, keepdim=True) * (1 - mask_ratio)).round().clamp_min(1)
        shown[:, look.target] = order < count
    shown &= token_valid
    return torch.where(shown, chance, chance + 2).flatten(1), shown.sum(dim=(1, 2))


@torch.inference_mode()
def cross_layer_scores(
    model: Any,
    batches: Iterable[tuple[Tensor, Tensor, Tensor]],
    *,
    layers: Sequence[ScoredLayer],
    groups: Sequence[Sequence[int]],
    scored: Sequence[int],
    mask_ratio: float,
) -> dict[tuple[int, ShownGroups], CrossLayerScore]:
    """Scores a model under every look, at the base scale, on the hidden tokens of the group that is predicted.

    Args:
        model: the network.
        batches: imgs (N, C, H, W) and valid of held-out tiles, and uniform noise (N, G, L).
        layers: the layers.
        groups: the numbers of the layers of each group.
        scored: the numbers of the layers that the model predicts at the base scale.
        mask_ratio: share of a group's own tokens that is hidden where the others are shown.

    Returns:
        By layer and look; a layer without any pixel to score is left out.
    """
    sums: dict[tuple[int, ShownGroups], Tensor] = {}
    for imgs, valid, chance in batches:
        flat = torch.tensor([m for layer in layers for m in layer.mean], device=imgs.device)
        constant = flat[:, None, None].expand_as(imgs)
        token_valid = model.valid_positions(valid).unflatten(1, (len(groups), -1))
        for target, members in enumerate(groups):
            numbers = [c for c in members if c in scored]
            for look in shown_groups_for(target, len(groups)) if numbers else ():
                noise, counts = shown_groups_noise(look, token_valid, chance, mask_ratio=mask_ratio)
                for keep in counts.unique().tolist():
                    chosen = (counts == keep).nonzero()[:, 0]
                    if keep == 0:
                        continue
                    part, ok = imgs[chosen], valid[chosen]
                    images, hidden = model.reconstruct(part, ok, noise=noise[chosen], keep=keep)
                    pixels = token_pixels(hidden, scale=1, patch_size=model.patch_size)
                    chosen_layers = [layers[c] for c in numbers]
                    arguments = [part], [ok], pixels, chosen_layers
                    found, count = error_sums([images[1].float()], *arguments)
                    free, _ = error_sums([constant[chosen]], *arguments)
                    rows = torch.cat([found[:, 0, 0], free[:, 0, 0], count[:1, 0]])  # (5, layers)
                    for k, c in enumerate(numbers):
                        sums[c, look] = sums.get((c, look), torch.zeros(5, dtype=torch.float64)) + rows[:, k]
    return {key: _mean_score(row.tolist()) for key, row in sums.items() if row[4] > 0}


def _mean_score(sums: Sequence[float]) -> CrossLayerScore:
    """Means of the sums error, report, both of the constant, and the number of pixels."""
    error, report, constant, constant_report, pixels = sums
    return CrossLayerScore(error / pixels, constant / pixels, report / pixels, constant_report / pixels, int(pixels))
