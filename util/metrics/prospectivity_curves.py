"""Scores of rankings: which ground is best, and how much of what was sought lies there. Arrays in, numbers out."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from sklearn.metrics import auc, average_precision_score, roc_auc_score

BINS = 8192
"""Bins of scores from 0 to 1, of equal width in log-odds: a fixed memory for maps of any size."""

CALIBRATION_BINS = 10
"""Parts of equal number in which predicted and observed shares are compared."""

CAPTURED_PERCENT = (1, 5, 10, 20)
"""Shares of the ground whose share of the deposits is given as numbers."""

_CURVE_POINTS = 201
_LARGEST_LOGIT = 16.0  # scores nearer to 0 or 1 than 1e-7, which float32 hardly tells apart, share the last bins


def bin_of(scores: torch.Tensor) -> torch.Tensor:
    """Number of the bin, 0..BINS - 1, of scores from 0 to 1; int64 of the same shape, increasing with the score."""
    logits = torch.special.logit(scores.double()).clamp(-_LARGEST_LOGIT, _LARGEST_LOGIT)
    return ((logits + _LARGEST_LOGIT) * (BINS / (2 * _LARGEST_LOGIT))).long().clamp(0, BINS - 1)


def bin_scores() -> torch.Tensor:
    """(BINS,) float64 score in the middle of each bin."""
    middles = (torch.arange(BINS, dtype=torch.float64) + 0.5) * (2 * _LARGEST_LOGIT / BINS) - _LARGEST_LOGIT
    return torch.sigmoid(middles)


def ranking_scores(
    scores: np.ndarray, positive: np.ndarray, negative: np.ndarray, *, ground: np.ndarray | None = None
) -> dict[str, Any]:
    """How well scores rank deposits above the rest; see `ProspectivityScores.compute`.

    Args:
        scores: (n,) from 0 to 1.
        positive: (n,) how many deposits have each score.
        negative: (n,) how many others.
        ground: (BINS,) how much ground has a score in each bin; None: deposits and others together are the ground.
    """
    deposits, others = float(positive.sum()), float(negative.sum())
    numbers: dict[str, Any] = {
        "roc_auc": None,
        "average_precision": None,
        "success_area": None,
        "captured": dict.fromkeys((f"{percent} %" for percent in CAPTURED_PERCENT), None),
        "deposits": int(deposits),
        "count": int(deposits + others),
        "prevalence": deposits / (deposits + others) if deposits + others else None,
        "success_rate": {"ground": [], "deposits": []},
        "calibration": calibration(scores, positive, negative),
    }
    if deposits and others:
        truth = np.concatenate([np.ones(len(scores)), np.zeros(len(scores))])
        twice, weights = np.concatenate([scores, scores]), np.concatenate([positive, negative])
        counted = weights > 0
        sample = {"y_true": truth[counted], "y_score": twice[counted], "sample_weight": weights[counted]}
        numbers["roc_auc"] = float(roc_auc_score(**sample))
        numbers["average_precision"] = float(average_precision_score(**sample))
    if deposits and (others or ground is not None):
        share, captured = success_rate(scores, positive, negative, ground=ground)
        numbers["success_area"] = float(auc(share, captured))
        found = np.interp(np.array(CAPTURED_PERCENT) / 100, share, captured)
        numbers["captured"] = {
            f"{percent} %": float(value) for percent, value in zip(CAPTURED_PERCENT, found, strict=True)
        }
        at = np.linspace(0, 1, _CURVE_POINTS)
        numbers["success_rate"] = {"ground": at.tolist(), "deposits": np.interp(at, share, captured).tolist()}
    return numbers


def success_rate(
    scores: np.ndarray, positive: np.ndarray, negative: np.ndarray, *, ground: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Share of the ground ranked highest against the share of deposits that lie there.

    Ground of equal score is taken in together: between its ends the curve is straight.

    Args:
        scores: as in `ranking_scores`, with at least one deposit.
        positive: likewise.
        negative: likewise.
        ground: likewise.

    Returns:
        (m,) shares of ground from 0 to 1 and (m,) shares of deposits.
    """
    if ground is None:
        _, rank = np.unique(scores, return_inverse=True)
        area = np.bincount(rank, weights=positive + negative)
    else:
        rank, area = bin_of(torch.from_numpy(scores)).numpy(), ground
    deposits = np.bincount(rank, weights=positive, minlength=len(area))
    there = (area > 0) | (deposits > 0)
    shares = [np.cumsum(part[there][::-1]) / part.sum() for part in (area, deposits)]
    return np.concatenate([[0.0], shares[0]]), np.concatenate([[0.0], shares[1]])


def calibration(scores: np.ndarray, positive: np.ndarray, negative: np.ndarray) -> dict[str, list[float]]:
    """Predicted against observed share of deposits, in `CALIBRATION_BINS` parts of about equal number.

    scikit-learn's calibration_curve takes no counts; here equal scores stay in one part.

    Args:
        scores: as in `ranking_scores`.
        positive: likewise.
        negative: likewise.

    Returns:
        For each part that holds any, from low to high: `predicted`, the mean score; `observed`; `count`.
    """
    values, rank = np.unique(scores, return_inverse=True)
    found = np.bincount(rank, weights=positive, minlength=len(values))
    count = found + np.bincount(rank, weights=negative, minlength=len(values))
    middles = np.cumsum(count) - count / 2
    part = np.minimum(CALIBRATION_BINS * middles / max(count.sum(), 1), CALIBRATION_BINS - 1).astype(np.int64)
    counts, sums, observed = (np.bincount(part, weights=w, minlength=1) for w in (count, count * values, found))
    held = counts > 0
    return {
        "predicted": (sums[held] / counts[held]).tolist(),
        "observed": (observed[held] / counts[held]).tolist(),
        "count": counts[held].tolist(),
    }
