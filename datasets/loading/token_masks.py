"""Masks shaped like surveys: blocks, flight lines, whole groups of layers; and layers that are absent.

A mask is the order of a tile's noise: the tokens with the smallest numbers stay visible, as many as the mask ratio
says. So a shape is a choice of noise, and how much is hidden does not depend on it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from datasets.loading.batch_plan import noise_generators

MASK_SHAPES = ("random", "block", "lines", "layer")


@dataclass(frozen=True)
class Masks:
    """How tokens are hidden in training.

    Attributes:
        shares: (shape, share of the tiles) pairs; shares add up to 1.
        groups: number of groups of channels G.
        side: patches along the edge of a tile.
        spatial: a place is hidden in all groups at once, so that noise is per place.
        mask_ratio: share of the tokens that is hidden.
    """

    shares: tuple[tuple[str, float], ...]
    groups: int
    side: int
    spatial: bool
    mask_ratio: float

    def __post_init__(self) -> None:
        """Checks the shapes.

        Raises:
            ValueError: a group cannot be hidden as a whole.
        """
        if "layer" not in dict(self.shares):
            return
        if self.spatial or self.groups < 2:
            reason = "--spatial_mask hides all groups alike" if self.spatial else "there is one group of layers"
            raise ValueError(
                f"--mask_shape layer: {reason}, expected at least two groups of which one can be hidden; see "
                "--grouped_bands, or leave the shape out"
            )
        if self.mask_ratio * self.groups < 1:
            raise ValueError(
                f"--mask_shape layer: --mask_ratio {self.mask_ratio:g} of {self.groups} groups is less than one, "
                f"expected at least {1 / self.groups:.3g}; raise it, or leave the shape out"
            )

    @property
    def tokens(self) -> int:
        """Number of things that masking chooses among: tokens, or places."""
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
        return np.stack([self._noise(rng) for rng in noise_generators(positions, seed=seed, epoch=epoch)])

    def _noise(self, rng: np.random.Generator) -> np.ndarray:
        noise = rng.random(self.tokens, dtype=np.float32)
        ends = np.cumsum([share for _, share in self.shares])
        shape = self.shares[min(int(np.searchsorted(ends, rng.random(), side="right")), len(ends) - 1)][0]
        if shape == "random":
            return noise
        by_group = noise.reshape(-1, self.side**2)
        if shape == "layer":
            most = max(1, min(len(by_group) - 1, int(self.mask_ratio * len(by_group) + 1e-6)))
            hidden = rng.permutation(len(by_group))[: rng.integers(1, most, endpoint=True)]
            by_group[hidden] += 1
            return noise
        for group in by_group:
            numbers = _block(self.side, rng) if shape == "block" else _lines(self.side, rng, 1 - self.mask_ratio)
            group[:] = _ranks(numbers, group)
        return noise


def mask_fractions(pairs: Sequence[tuple[str, float | None]]) -> tuple[tuple[str, float], ...]:
    """Shapes with the shares that they are given, or equal ones, made to add up to 1.

    Raises:
        ValueError: a shape is unknown or named twice, only some have a share, or the shares are not above 0.
    """
    names = [name for name, _ in pairs]
    text = " ".join(name if share is None else f"{name}={share:g}" for name, share in pairs)
    unknown = [name for name in names if name not in MASK_SHAPES]
    if unknown or len(set(names)) != len(names):
        raise ValueError(
            f"--mask_shape {text}: expected each of {', '.join(MASK_SHAPES)} at most once, such as random=0.5 block=0.5"
        )
    given = [share for _, share in pairs if share is not None]
    if given and (len(given) < len(pairs) or min(given) <= 0):
        raise ValueError(f"--mask_shape {text}: expected a share above 0 for every shape, or for none")
    shares = given or [1.0] * len(pairs)
    return tuple((name, share / sum(shares)) for name, share in zip(names, shares, strict=True))


def dropped_layers(positions: np.ndarray, *, layers: int, share: float, seed: int, epoch: int) -> np.ndarray:
    """Which layers each tile goes without, a function of (seed, epoch, position) alone; each keeps at least one.

    Args:
        positions: (n,) positions in the epoch's order.
        layers: number of layers.
        share: chance of each layer to be dropped, from 0 to below 1.
        seed: seed of the run.
        epoch: number of the epoch.

    Returns:
        (n, layers) bool, True = dropped.
    """
    chances = np.stack([rng.random(layers) for rng in noise_generators(positions, seed=seed, epoch=epoch, purpose=4)])
    dropped = chances < share
    dropped[np.arange(len(chances)), chances.argmax(axis=1)] = False
    return dropped


def _places(side: int) -> tuple[np.ndarray, np.ndarray]:
    """Row and column, in patches, of the middle of every patch, (side * side,) each."""
    rows, cols = np.mgrid[:side, :side] + 0.5
    return rows.ravel(), cols.ravel()


def _block(side: int, rng: np.random.Generator) -> np.ndarray:
    """Numbers that grow towards a random point, in squares around it."""
    rows, cols = _places(side)
    centre = rng.random(2) * side
    return -np.maximum(np.abs(rows - centre[0]), np.abs(cols - centre[1]))


def _lines(side: int, rng: np.random.Generator, visible: float) -> np.ndarray:
    """Distances from parallel lines of random direction and spacing.

    Lines lie as far apart as makes a visible stripe about a patch wide, or up to three quarters of a tile.
    """
    rows, cols = _places(side)
    least = min(1 / visible, side)
    angle, spacing = rng.random() * np.pi, least + rng.random() * max(0.75 * side - least, 0)
    along = (rows * np.sin(angle) + cols * np.cos(angle) + rng.random() * spacing) % spacing
    return np.minimum(along, spacing - along)


def _ranks(numbers: np.ndarray, ties: np.ndarray) -> np.ndarray:
    """Order of numbers as shares from 0 to below 1; `ties` decides among equals."""
    order = np.lexsort((ties, np.round(numbers, 6)))
    ranks = np.empty(len(numbers), dtype=np.float32)
    ranks[order] = np.arange(len(numbers)) / len(numbers)
    return ranks
