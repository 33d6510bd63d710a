"""Prospectivity scores of labelled windows: ranking, success-rate curve and calibration.

Each window belongs to a deposit or to background. Fractions are of the scored windows, not of the ground: with
ten background points for each deposit, deposits are one eleventh of them.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from sklearn.metrics import auc, average_precision_score, roc_auc_score

CALIBRATION_BINS = 10
"""Number of bins, of about equal numbers of windows, in which predicted and observed fractions are compared."""

CAPTURED_PERCENT = (1, 5, 10, 20)
"""Percentages of windows, ranked highest, for which the fraction of captured deposits is given."""

_CURVE_POINTS = 201


def ranking_scores(scores: np.ndarray, deposits: np.ndarray) -> dict[str, Any]:
    """Scores how well windows with deposits are ranked above the others; see `ProspectivityScores.compute`.

    Args:
        scores: (n,) from 0 to 1.
        deposits: (n,) 1 = deposit, 0 = background.
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
        "success_rate": {"ground": [], "deposits": []},  # "ground": fractions of windows; the name is older
        "calibration": calibration(scores, deposits),
    }
    if not 0 < found < count:
        return numbers
    ranked, captured = success_rate(scores, deposits)
    at_percent = np.interp(np.array(CAPTURED_PERCENT) / 100, ranked, captured)
    at = np.linspace(0, 1, _CURVE_POINTS)
    return numbers | {
        "roc_auc": float(roc_auc_score(deposits, scores)),
        "average_precision": float(average_precision_score(deposits, scores)),
        "success_area": float(auc(ranked, captured)),
        "captured": {f"{p} %": float(value) for p, value in zip(CAPTURED_PERCENT, at_percent, strict=True)},
        "success_rate": {"ground": at.tolist(), "deposits": np.interp(at, ranked, captured).tolist()},
    }


def success_rate(scores: np.ndarray, deposits: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Success-rate curve: fraction of windows ranked highest against the fraction of deposits among them.

    Windows with equal scores form one straight segment of the curve.

    Args:
        scores: (n,) from 0 to 1.
        deposits: (n,) 1 = deposit, 0 = background; at least one deposit.

    Returns:
        (m,) fractions of windows (deposits and background), from 0 to 1, and (m,) fractions of deposits.
    """
    _, rank = np.unique(scores, return_inverse=True)
    windows, found = np.bincount(rank), np.bincount(rank, weights=deposits)
    fractions = [np.cumsum(part[::-1]) / part.sum() for part in (windows, found)]
    return np.concatenate([[0.0], fractions[0]]), np.concatenate([[0.0], fractions[1]])


def calibration(scores: np.ndarray, deposits: np.ndarray) -> dict[str, list[float]]:
    """Predicted against observed fraction of deposits, in `CALIBRATION_BINS` bins of about equal numbers of windows.

    Unlike in scikit-learn's calibration_curve, windows with equal scores stay in one bin.

    Args:
        scores: (n,) from 0 to 1.
        deposits: (n,) 1 = deposit, 0 = background.

    Returns:
        For each bin that is not empty, from low to high scores: `predicted`, the mean score; `observed`; `count`.
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
