"""What a study says besides scores and differences: whether fits came to their end."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from study.curves import Curve


@dataclass(frozen=True)
class FitLengths:
    """How long the fits of one arm, mode and share of labels trained.

    Attributes:
        arm: its name.
        mode: one of `results.MODES`.
        fraction: share of the labels.
        fits: number of fits.
        best_epoch: median of the epochs with the best validation score; None if none has a score.
        epochs: median of all epochs trained, those after the best one too.
        at_greatest: fits that trained the greatest length, so that they did not stop improving within it; None where
            it is not known, or the length was fixed.
    """

    arm: str
    mode: str
    fraction: float
    fits: int
    best_epoch: float | None
    epochs: float
    at_greatest: int | None


def fit_lengths(curves: Sequence[Curve], *, greatest: int | None) -> FitLengths:
    """Lengths of fits that belong together.

    Args:
        curves: of one arm, mode and share of labels; one at least.
        greatest: most epochs that a fit could have; None if the length was fixed or is not known.
    """
    first, trained = curves[0], [len(of.scores) for of in curves]
    best = [of.best_epoch for of in curves if of.best_epoch is not None]
    return FitLengths(
        first.arm,
        first.mode,
        first.label_fraction,
        len(curves),
        statistics.median(best) if best else None,
        statistics.median(trained),
        None if greatest is None else sum(epochs >= greatest for epochs in trained),
    )
