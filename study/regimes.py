"""Which training labels a fit learns from: a share of all of them, or those of some whole blocks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

BLOCKS = "label_blocks"
"""Column of tables with blocks among their regimes; tables without any do not have it."""


@dataclass(frozen=True)
class Regime:
    """A regime of labels.

    Attributes:
        fraction: share of the training labels, above 0 up to 1, scattered over all training ground; 1 with `blocks`.
        blocks: number of whole blocks that keep their labels in each fold; 0: a share.
    """

    fraction: float = 1.0
    blocks: int = 0

    @property
    def order(self) -> tuple[bool, int, float]:
        """What regimes are sorted by: whole blocks, then shares, fewest labels first."""
        return not self.blocks, self.blocks, self.fraction

    @property
    def folder(self) -> str:
        """End of the name of a fit's folder."""
        return f"blocks{self.blocks}" if self.blocks else f"labels{self.fraction:g}"

    @property
    def flags(self) -> list[str]:
        """Flags of main_finetune."""
        return [f"--{BLOCKS}", str(self.blocks)] if self.blocks else ["--label_fraction", f"{self.fraction:g}"]

    def __str__(self) -> str:
        """Such as `0.1 of the labels`."""
        return f"labels of {self.blocks} blocks" if self.blocks else f"{self.fraction:g} of the labels"


def regimes_of(fractions: Sequence[float], blocks: Sequence[int]) -> tuple[Regime, ...]:
    """The regimes of some numbers of blocks and some shares of the labels."""
    return (*(Regime(blocks=count) for count in blocks), *(Regime(fraction) for fraction in fractions))


def check_blocks(values: Sequence[int], where: str) -> None:
    """Refuses numbers of blocks that cannot be, or that stand twice.

    Args:
        values: the numbers.
        where: what begins the message.

    Raises:
        ValueError: one is below 1, or two are the same.
    """
    if any(value < 1 for value in values):
        raise ValueError(f"{where}, expected whole numbers of blocks, 1 or more")
    if len(set(values)) < len(values):
        raise ValueError(f"{where}, expected each number of blocks once")
