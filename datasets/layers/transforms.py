"""Invertible transforms of a layer's values, applied before normalising, so that long tails do not rule the loss.

Means are taken after the transform. Brought back, the mean of a coarser pixel is therefore not that of the values: it
is their geometric mean for `log`, and near their median for `quantile`.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from scipy.special import ndtri

QUANTILES = 256
"""Knots of the quantile transform besides the two ends; 0.4 % of the values lie between two."""


@dataclass(frozen=True)
class Transform:
    """A strictly increasing function of physical values, and its inverse.

    Attributes:
        kind: `none`; `log`, natural, of values above 0; `asinh` of (x - centre) / width, linear near the centre and
            logarithmic far from it; `quantile`, piecewise linear from `knots` to `scores`, which are those of a
            normal distribution, and beyond the ends straight on.
        centre: of `asinh`, physical units.
        width: likewise, > 0.
        knots: of `quantile`, physical units, strictly increasing.
        scores: what the knots become, strictly increasing.
    """

    kind: str = "none"
    centre: float = 0.0
    width: float = 1.0
    knots: tuple[float, ...] = ()
    scores: tuple[float, ...] = ()

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        """Physical values to transformed ones, any shape; NaN stays NaN."""
        if self.kind == "log":
            return values.log()
        if self.kind == "asinh":
            return ((values - self.centre) / self.width).asinh()
        if self.kind == "quantile":
            return _piecewise(values, self.knots, self.scores)
        return values

    def inverse(self, values: torch.Tensor) -> torch.Tensor:
        """Transformed values back to physical ones, any shape."""
        if self.kind == "log":
            return values.exp()
        if self.kind == "asinh":
            return values.sinh() * self.width + self.centre
        if self.kind == "quantile":
            return _piecewise(values, self.scores, self.knots)
        return values


def fit_transform(kind: str, values: np.ndarray) -> Transform:
    """The transform of a kind that suits a sample of a layer's values.

    Args:
        kind: `none`, `log`, `asinh` or `quantile`.
        values: (n,) float64, at least two distinct ones; above 0 for `log`.

    Returns:
        `asinh` is centred on the median, with half the range from the 16th to the 84th percentile as its width;
        `quantile` has its knots at evenly spaced quantiles and at both ends.
    """
    if kind == "asinh":
        low, median, high = np.quantile(values, [0.16, 0.5, 0.84])
        return Transform(kind, centre=float(median), width=float(high - low) / 2 or float(values.std()))
    if kind == "quantile":
        share = np.concatenate([[0.0], (np.arange(QUANTILES) + 0.5) / QUANTILES, [1.0]])
        edge = min(0.5 / len(values), 0.25 / QUANTILES)
        scores = ndtri(share.clip(edge, 1 - edge))
        knots, place = np.unique(np.quantile(values, share).astype(np.float32), return_inverse=True)
        # Where many values are equal several quantiles are too: their knot takes the mean score.
        means = np.bincount(place, weights=scores) / np.bincount(place)
        return Transform(kind, knots=tuple(knots.tolist()), scores=tuple(means.tolist()))
    return Transform(kind)


def _piecewise(x: torch.Tensor, places: tuple[float, ...], values: tuple[float, ...]) -> torch.Tensor:
    """Linear between increasing places, straight on beyond the first and the last."""
    xs = torch.tensor(places, dtype=x.dtype, device=x.device)
    ys = torch.tensor(values, dtype=x.dtype, device=x.device)
    segment = torch.searchsorted(xs[1:-1].contiguous(), x.contiguous())
    slope = ys.diff() / xs.diff()
    return ys[segment] + (x - xs[segment]) * slope[segment]
