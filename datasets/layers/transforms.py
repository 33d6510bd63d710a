"""Invertible transforms of a layer's values, applied before normalising, so that long tails do not dominate the loss.

Means are taken after the transform. Brought back, the mean of a coarser pixel is therefore not that of the values: it
is their geometric mean for `log`, and near their median for `quantile`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from scipy.special import ndtri

from datasets.layers.layer import NO_TRANSFORM
from datasets.layers.on_device import constant

QUANTILES = 256
"""Knots of the quantile transform besides the two ends; 0.4 % of the values lie between two."""


@dataclass(frozen=True)
class Transform:
    """A strictly increasing function of physical values, and its inverse.

    Attributes:
        kind: a key of `TRANSFORMS`.
        centre: of `asinh`, physical units.
        width: of `asinh`, physical units, > 0.
        knots: of `quantile`, physical units, strictly increasing.
        scores: of `quantile`, what the knots become, strictly increasing.
    """

    kind: str = NO_TRANSFORM
    centre: float = 0.0
    width: float = 1.0
    knots: tuple[float, ...] = ()
    scores: tuple[float, ...] = ()

    @property
    def is_identity(self) -> bool:
        """True if values stay as they are."""
        return self.kind == NO_TRANSFORM

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        """Physical values to transformed ones, any shape; NaN stays NaN."""
        return TRANSFORMS[self.kind].forward(self, values)

    def inverse(self, values: torch.Tensor) -> torch.Tensor:
        """Transformed values back to physical ones, any shape."""
        return TRANSFORMS[self.kind].inverse(self, values)


def fit_transform(kind: str, values: np.ndarray) -> Transform:
    """The transform of a kind that suits a sample of a layer's values.

    Args:
        kind: a key of `TRANSFORMS`.
        values: (n,) float64, at least two distinct ones; above 0 for `log`.
    """
    return Transform(kind, **TRANSFORMS[kind].fit(values))


@dataclass(frozen=True)
class TransformFunctions:
    """How one transform is fitted, applied and inverted.

    Attributes:
        forward: (fitted transform, physical values) -> transformed values.
        inverse: (fitted transform, transformed values) -> physical values.
        fit: sample of values, (n,) float64 -> fields of `Transform`.
        only_positive: True if values of 0 and below cannot be transformed.
    """

    forward: Callable[[Transform, torch.Tensor], torch.Tensor]
    inverse: Callable[[Transform, torch.Tensor], torch.Tensor]
    fit: Callable[[np.ndarray], dict[str, Any]] = lambda values: {}
    only_positive: bool = False


def _fit_asinh(values: np.ndarray) -> dict[str, Any]:
    """The median as centre, half the range from the 16th to the 84th percentile as width."""
    low, median, high = np.quantile(values, [0.16, 0.5, 0.84])
    return {"centre": float(median), "width": float(high - low) / 2 or float(values.std())}


def _fit_quantile(values: np.ndarray) -> dict[str, Any]:
    """Knots at evenly spaced quantiles and at both ends, with their scores in a normal distribution."""
    share = np.concatenate([[0.0], (np.arange(QUANTILES) + 0.5) / QUANTILES, [1.0]])
    edge = min(0.5 / len(values), 0.25 / QUANTILES)
    scores = ndtri(share.clip(edge, 1 - edge))
    knots, index = np.unique(np.quantile(values, share).astype(np.float32), return_inverse=True)
    # Where many values are equal, several quantiles are equal too: their knot takes the mean score.
    means = np.bincount(index, weights=scores) / np.bincount(index)
    return {"knots": tuple(knots.tolist()), "scores": tuple(means.tolist())}


def _piecewise(x: torch.Tensor, places: tuple[float, ...], values: tuple[float, ...]) -> torch.Tensor:
    """Linear between increasing places, straight on beyond the first and the last."""
    xs, ys = (constant(of, dtype=x.dtype, device=x.device) for of in (places, values))
    segment = torch.searchsorted(xs[1:-1].contiguous(), x.contiguous())
    slope = ys.diff() / xs.diff()
    return ys[segment] + (x - xs[segment]) * slope[segment]


TRANSFORMS = {
    NO_TRANSFORM: TransformFunctions(lambda t, values: values, lambda t, values: values),
    "log": TransformFunctions(lambda t, values: values.log(), lambda t, values: values.exp(), only_positive=True),
    "asinh": TransformFunctions(
        lambda t, values: ((values - t.centre) / t.width).asinh(),
        lambda t, values: values.sinh() * t.width + t.centre,
        _fit_asinh,
    ),
    "quantile": TransformFunctions(
        lambda t, values: _piecewise(values, t.knots, t.scores),
        lambda t, values: _piecewise(values, t.scores, t.knots),
        _fit_quantile,
    ),
}
"""Choices of the column `transform`: none; natural logarithm; asinh of (x - centre) / width, linear near the centre and
logarithmic far from it; quantile, piecewise linear to the scores of a normal distribution, straight beyond the ends."""
