"""Prospectivity scores of labelled points: ranking, success-rate curve and calibration. Arrays in, numbers out."""

from __future__ import annotations

from typing import Any

import numpy as np
from sklearn.metrics import auc, average_precision_score, roc_auc_score

CALIBRATION_BINS = 10
"""Number of bins, with about equal numbers of points, in which predicted and observed fractions are compared."""

CAPTURED_PERCENT = (1, 5, 10, 20)
"""Percentages of the highest-ranked points for which the fraction of captured deposits is given."""

_CURVE_POINTS = 201


def ranking_scores(scores: np.ndarray, deposits: np.ndarray) -> dict[str, Any]:
    """Score how well points with deposits are ranked above the others; see `ProspectivityScores.compute`.

    Args:
        scores: (n,) from 0 to 1.
        deposits: (n,) 1 = deposit, 0 = other point.
    """
    found, count = float(deposits.sum()), len(scores)
    numbers: dict[str, Any] = {
        "roc_auc": None,
        "average_precision": None,
        "success_area": None,
        "captured": dict.fromkeys((f"{percent} %" for percent in CAPTURED_PERCENT), None),
        "deposits": int(found),
        "count": count,
        "prevalence": found / count if count else None,
        "success_rate": {"ground": [], "deposits": []},
        "calibration": calibration(scores, deposits),
    }
    if not 0 < found < count:
        return numbers
    area, captured = success_rate(scores, deposits)
    at_percent = np.interp(np.array(CAPTURED_PERCENT) / 100, area, captured)
    at = np.linspace(0, 1, _CURVE_POINTS)
    return numbers | {
        "roc_auc": float(roc_auc_score(deposits, scores)),
        "average_precision": float(average_precision_score(deposits, scores)),
        "success_area": float(auc(area, captured)),
        "captured": {f"{p} %": float(value) for p, value in zip(CAPTURED_PERCENT, at_percent, strict=True)},
        "success_rate": {"ground": at.tolist(), "deposits": np.interp(at, area, captured).tolist()},
    }


def success_rate(scores: np.ndarray, deposits: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Success-rate curve: fraction of points ranked highest against the fraction of deposits among them.

    Points with equal scores are one straight segment of the curve.

    Args:
        scores: (n,) from 0 to 1.
        deposits: (n,) 1 = deposit, 0 = other point; at least one deposit.

    Returns:
        (m,) fractions of points from 0 to 1 and (m,) fractions of deposits.
    """
    _, rank = np.unique(scores, return_inverse=True)
    points, found = np.bincount(rank), np.bincount(rank, weights=deposits)
    fractions = [np.cumsum(part[::-1]) / part.sum() for part in (points, found)]
    return np.concatenate([[0.0], fractions[0]]), np.concatenate([[0.0], fractions[1]])


def calibration(scores: np.ndarray, deposits: np.ndarray) -> dict[str, list[float]]:
    """Predicted against observed fraction of deposits, in `CALIBRATION_BINS` bins with about equal numbers of points.

    Unlike in scikit-learn's calibration_curve, points with equal scores stay in one bin.

    Args:
        scores: (n,) from 0 to 1.
        deposits: (n,) 1 = deposit, 0 = other point.

    Returns:
        For each bin with points, from low to high scores: `predicted`, the mean score; `observed`; `count`.
    """
    values, rank = np.unique(scores, return_inverse=True)
    found = np.bincount(rank, weights=deposits, minlength=len(values))
    count = np.bincount(rank, minlength=len(values)).astype(np.float64)
    middles = np.cumsum(count) - count / 2
    part = np.minimum(CALIBRATION_BINS * middles / max(count.sum(), 1), CALIBRATION_BINS - 1).astype(np.int64)
    counts, sums, observed = (np.bincount(part, weights=w, minlength=1) for w in (count, count * values, found))
    filled = counts > 0
    return {
        "predicted": (sums[filled] / counts[filled]).tolist(),
        "observed": (observed[filled] / counts[filled]).tolist(),
        "count": counts[filled].tolist(),
    }
