"""Token masks: random, clumped, or shaped like survey gaps (blocks, flight lines, groups of layers); and absent layers.

The order of a tile's noise decides its mask: the tokens with the smallest numbers stay visible, as many as the mask
ratio leaves. A mask shape is therefore a choice of noise, and does not change how much is hidden. A new shape is one
function and one line in `MASK_SHAPES`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from datasets.loading.batch_plan import noise_generators

NOISE_SIGMAS = (0.7, 2.0)
"""Standard deviations, in patches, of the two blurs whose difference `noise` masks take: they pass most at a wavelength
of 5.7 patches, so that clumps and gaps are about three patches wide and a grid of 6 x 6 patches holds both."""


@dataclass(frozen=True)
class Masks:
    """How tokens are hidden in training.

    Attributes:
        fractions: (shape, fraction of the tiles) pairs; fractions add up to 1.
        groups: number of channel groups G.
        side: patches along the edge of a tile.
        spatial: a patch is hidden in all groups at once, so that there is one noise value per patch.
        mask_ratio: fraction of the tokens that is hidden.

    Raises:
        ValueError: the ratio leaves no token visible, or a shape does not suit the groups, such as hiding the only
            group.
    """

    fractions: tuple[tuple[str, float], ...]
    groups: int
    side: int
    spatial: bool
    mask_ratio: float

    def __post_init__(self) -> None:
        _check_visible(self)
        for name, _ in self.fractions:
            MASK_SHAPES[name].check(self)

    @property
    def tokens(self) -> int:
        """Number of noise values: one per token, or per patch of a spatial mask."""
        return self.side**2 * (1 if self.spatial else self.groups)

    def noise(self, positions: np.ndarray, *, seed: int, epoch: int) -> np.ndarray:
        """Noise that decides the mask of each tile, a function of (seed, epoch, position) alone.

        Args:
            positions: (n,) positions in the epoch's order.
            seed: seed of the run.
            epoch: number of the epoch.

        Returns:
            (n, tokens) float32, at least 0; below 1 and uniform for random masks.
        """
        return np.stack([self._tile_noise(rng) for rng in noise_generators(positions, seed=seed, epoch=epoch)])

    def _tile_noise(self, rng: np.random.Generator) -> np.ndarray:
        noise = rng.random(self.tokens, dtype=np.float32)
        ends = np.cumsum([fraction for _, fraction in self.fractions])
        chosen = min(int(np.searchsorted(ends, rng.random(), side="right")), len(ends) - 1)
        shape = MASK_SHAPES[self.fractions[chosen][0]]
        shape.draw(noise.reshape(-1, self.side**2), self, rng)
        return noise


def _random(noise: np.ndarray, masks: Masks, rng: np.random.Generator) -> None:
    """Leaves uniform noise as it is."""


def _block(noise: np.ndarray, masks: Masks, rng: np.random.Generator) -> None:
    """Hides a square around a random point in each group."""
    for group in noise:
        group[:] = _ranks(_closeness_to_point(masks.side, rng), group)


def _lines(noise: np.ndarray, masks: Masks, rng: np.random.Generator) -> None:
    """Leaves parallel stripes visible, like flight lines, in each group."""
    for group in noise:
        group[:] = _ranks(_distance_to_lines(masks.side, rng, 1 - masks.mask_ratio), group)


def _band_passed(noise: np.ndarray, masks: Masks, rng: np.random.Generator) -> None:
    """Hides clumps of patches in each group: the largest values of white noise between two Gaussian blurs.

    Blurs wrap around, so that patches at the edge are hidden as often as others.

    References:
        Hinojosa et al., ColorMAE, ECCV 2024: green noise. There, masks are cropped from large patterns made
        beforehand; here each is drawn on its own grid.
    """
    white = rng.standard_normal((len(noise), masks.side, masks.side))
    fine, coarse = (ndimage.gaussian_filter(white, (0, sigma, sigma), mode="wrap") for sigma in NOISE_SIGMAS)
    for group, clumps in zip(noise, fine - coarse, strict=True):
        group[:] = _ranks(clumps.ravel(), group)


def _layer(noise: np.ndarray, masks: Masks, rng: np.random.Generator) -> None:
    """Hides some groups as a whole, at most as many as the mask ratio covers."""
    most = max(1, min(len(noise) - 1, int(masks.mask_ratio * len(noise) + 1e-6)))
    hidden = rng.permutation(len(noise))[: rng.integers(1, most, endpoint=True)]
    noise[hidden] += 1


def _check_visible(masks: Masks) -> None:
    """Refuses masks that hide every token of a tile."""
    count, ratio = masks.tokens, masks.mask_ratio
    if _visible(count, ratio):
        return
    more = "cut tiles into more patches (a larger --input_size, a smaller --patch_size)"
    if count == 1:
        raise ValueError(f"--mask_ratio {ratio:g} hides the only token of a tile, expected at least two tokens; {more}")
    what = "patches" if masks.spatial else "tokens"
    wrong = f"--mask_ratio {ratio:g} leaves none of the {count} {what} of a tile visible"
    most = next(k / 1e4 for k in range(math.floor(1e4 * (1 - 1 / count)), -1, -1) if _visible(count, k / 1e4))
    raise ValueError(f"{wrong}, expected at most {most:g}; lower it, or {more}")


def _visible(count: int, mask_ratio: float) -> int:
    """Number of visible positions of a tile without invalid ones, as the model counts them."""
    return int(count * (1 - mask_ratio))


def _check_nothing(masks: Masks) -> None:
    """Suits all masks."""


def _check_groups(masks: Masks) -> None:
    """Refuses masks that cannot hide a group as a whole."""
    if masks.spatial or masks.groups < 2:
        reason = "--spatial_mask hides all groups alike" if masks.spatial else "there is one group of layers"
        raise ValueError(
            f"--mask_shape layer: {reason}, expected at least two groups of which one can be hidden; see "
            "--grouped_bands, or leave the shape out"
        )
    if masks.mask_ratio * masks.groups < 1:
        raise ValueError(
            f"--mask_shape layer: --mask_ratio {masks.mask_ratio:g} of {masks.groups} groups is less than one, "
            f"expected at least {1 / masks.groups:.3g}; raise it, or leave the shape out"
        )


@dataclass(frozen=True)
class MaskShape:
    """A shape of hidden tokens.

    Attributes:
        draw: changes uniform noise (G or, of a spatial mask, 1; side * side) in place; the largest values are hidden.
        check: raises ValueError if the shape does not suit the masks.
    """

    draw: Callable[[np.ndarray, Masks, np.random.Generator], None]
    check: Callable[[Masks], None] = _check_nothing


MASK_SHAPES = {
    "random": MaskShape(_random),
    "block": MaskShape(_block),
    "lines": MaskShape(_lines),
    "noise": MaskShape(_band_passed),
    "layer": MaskShape(_layer, check=_check_groups),
}
"""Choices of `--mask_shape`."""


def mask_fractions(pairs: Sequence[tuple[str, float | None]]) -> tuple[tuple[str, float], ...]:
    """Shapes with their given fractions, or equal ones, scaled to add up to 1.

    Raises:
        ValueError: a shape is unknown or named twice, only some have a fraction, or a fraction is not above 0.
    """
    names = [name for name, _ in pairs]
    text = " ".join(name if fraction is None else f"{name}={fraction:g}" for name, fraction in pairs)
    unknown = [name for name in names if name not in MASK_SHAPES]
    if unknown or len(set(names)) != len(names):
        raise ValueError(
            f"--mask_shape {text}: expected each of {', '.join(MASK_SHAPES)} at most once, such as random=0.5 block=0.5"
        )
    given = [fraction for _, fraction in pairs if fraction is not None]
    if given and (len(given) < len(pairs) or min(given) <= 0):
        raise ValueError(f"--mask_shape {text}: expected a fraction above 0 for every shape, or for none")
    fractions = given or [1.0] * len(pairs)
    return tuple((name, fraction / sum(fractions)) for name, fraction in zip(names, fractions, strict=True))


def new_masks(
    shapes: Sequence[tuple[str, float | None]] | None, *, groups: int, side: int, spatial: bool, mask_ratio: float
) -> Masks:
    """The masks of a training run.

    Args:
        shapes: as `mask_fractions` takes them; None for random tokens.
        groups, side, spatial, mask_ratio: as of `Masks`.

    Raises:
        ValueError: the shapes are unknown, or do not suit the channel groups.
    """
    fractions = mask_fractions(shapes or [("random", None)])
    return Masks(fractions, groups=groups, side=side, spatial=spatial, mask_ratio=mask_ratio)


def dropped_layers(positions: np.ndarray, *, layers: int, probability: float, seed: int, epoch: int) -> np.ndarray:
    """Layers dropped from each tile, a function of (seed, epoch, position) alone; each tile keeps at least one.

    Args:
        positions: (n,) positions in the epoch's order.
        layers: number of layers.
        probability: of each layer to be dropped, from 0 to below 1.
        seed: seed of the run.
        epoch: number of the epoch.

    Returns:
        (n, layers) bool, True = dropped.
    """
    draws = np.stack([rng.random(layers) for rng in noise_generators(positions, seed=seed, epoch=epoch, purpose=4)])
    dropped = draws < probability
    dropped[np.arange(len(draws)), draws.argmax(axis=1)] = False
    return dropped


def _patch_centres(side: int) -> tuple[np.ndarray, np.ndarray]:
    """Row and column, in patches, of the centre of every patch, (side * side,) each."""
    rows, cols = np.mgrid[:side, :side] + 0.5
    return rows.ravel(), cols.ravel()


def _closeness_to_point(side: int, rng: np.random.Generator) -> np.ndarray:
    """Minus the distance of patches to a random point, by the larger of rows and columns."""
    rows, cols = _patch_centres(side)
    centre = rng.random(2) * side
    return -np.maximum(np.abs(rows - centre[0]), np.abs(cols - centre[1]))


def _distance_to_lines(side: int, rng: np.random.Generator, visible: float) -> np.ndarray:
    """Distance of patches to parallel lines of random direction and spacing.

    The spacing is from the one that makes a visible stripe about a patch wide to three quarters of a tile.
    """
    rows, cols = _patch_centres(side)
    least = min(1 / visible, side)
    angle, spacing = rng.random() * np.pi, least + rng.random() * max(0.75 * side - least, 0)
    along = (rows * np.sin(angle) + cols * np.cos(angle) + rng.random() * spacing) % spacing
    return np.minimum(along, spacing - along)


def _ranks(numbers: np.ndarray, ties: np.ndarray) -> np.ndarray:
    """Ranks of numbers, scaled to 0 to below 1; `ties` decides among equals."""
    order = np.lexsort((ties, np.round(numbers, 6)))
    ranks = np.empty(len(numbers), dtype=np.float32)
    ranks[order] = np.arange(len(numbers)) / len(numbers)
    return ranks
