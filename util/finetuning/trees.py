"""Trees as a baseline: gradient boosting and random forests of scikit-learn behind one way to fit and predict.

Unknown features are NaN: both learn on which side of a split they go (boosting and, from version 1.4 on, forests).
"""

from __future__ import annotations

import logging
from typing import Any

import numpy as np
from sklearn.ensemble import (
    HistGradientBoostingClassifier,
    HistGradientBoostingRegressor,
    RandomForestClassifier,
    RandomForestRegressor,
)
from threadpoolctl import threadpool_limits

logger = logging.getLogger(__name__)

KINDS = ("gradient_boosting", "random_forest")

MAX_SAMPLES = 50_000
"""Samples that are fitted at most unless more are asked for: neighbouring pixels say little more."""

# Boosting: scikit-learn's own number. Nothing stops it early: the samples that it would set aside for that lie next to
# those that it learns from, and would never stop it.
_ROUNDS = 100
# Added to the curvature at each leaf of trees of classes. Without it boosting of many classes diverged with some draws
# of the samples, where a class was nearly certain: mean IoU on the sample survey fell from 0.46 to 0.34.
_RIDGE = 1.0
# Forest: as many trees as scikit-learn takes; of its leaves, none smaller than this, for memory.
_TREES, _LEAF = 100, 5
# Samples of which a leaf of boosting holds one at least, up to scikit-learn's 20: few labels still give some splits.
_SAMPLES_PER_LEAF = 50
# Rows that are predicted together.
_CHUNK = 1 << 18


class Trees:
    """Trees for classes or values.

    Args:
        kind: `gradient_boosting` or `random_forest`.
        classes: number of classes; None: values.
        seed: of the choice of samples, and of the forest.
        balanced: weigh classes by the inverse of their frequency.
        max_samples: samples that are fitted at most; of more, a random share of each class.
        threads: threads that are used at most; None: as OMP_NUM_THREADS says, or all cores.

    Attributes:
        samples: samples that were fitted.

    Raises:
        ValueError: another kind.
    """

    def __init__(
        self,
        kind: str,
        *,
        classes: int | None,
        seed: int = 0,
        balanced: bool = False,
        max_samples: int = MAX_SAMPLES,
        threads: int | None = None,
    ) -> None:
        if kind not in KINDS:
            raise ValueError(f"trees of kind '{kind}', expected one of {', '.join(KINDS)}")
        self.kind, self.classes, self.samples = kind, classes, 0
        self._seed, self._balanced, self._max_samples, self._threads = seed, balanced, max_samples, threads
        self._model: Any = None
        self._present = np.empty(0, dtype=np.int64)
        self._known = np.empty(0, dtype=np.int64)

    def fit(self, features: np.ndarray, targets: np.ndarray) -> Trees:
        """Fit labelled samples; those unlabelled (-1 or NaN) are left out.

        Args:
            features: (n, F) float32, NaN = unknown.
            targets: (n,) class numbers, or values.

        Returns:
            Itself.

        Raises:
            ValueError: no sample is labelled, or no feature is known of any.
        """
        labelled = np.flatnonzero(np.isfinite(targets) if self.classes is None else np.asarray(targets) >= 0)
        if not labelled.size:
            raise ValueError("trees: no labelled sample to fit, expected some; give labels on training ground")
        kept = labelled[self._choose(np.asarray(targets)[labelled])]
        features, targets = features[kept], np.asarray(targets)[kept]
        self._known = np.flatnonzero(np.isfinite(features).any(axis=0))  # boosting fails on columns without a value
        if not self._known.size:
            raise ValueError(
                f"trees: nothing is known at {len(kept)} samples, expected a value of some layer; check that labels "
                "lie where layers have data"
            )
        self.samples = len(kept)
        self._present = np.empty(0, np.int64) if self.classes is None else np.unique(targets).astype(np.int64)
        if len(self._present) == 1:
            logger.warning(
                "trees: class %d alone among %d samples: it is what they predict", self._present[0], len(kept)
            )
            return self
        self._model = self._make(len(kept))
        with threadpool_limits(self._threads, user_api="openmp"):
            self._model.fit(features[:, self._known], targets)
        return self

    def predict(self, features: np.ndarray) -> np.ndarray:
        """Return what the trees make of features.

        Args:
            features: (m, F) float32, NaN = unknown.

        Returns:
            (m, K) float32 shares of the classes, 0 for those that no sample had; or (m,) float32 values.
        """
        if self.classes is None:
            predicted = np.empty(len(features), dtype=np.float32)
        else:
            predicted = np.zeros((len(features), self.classes), dtype=np.float32)
        for start in range(0, len(features), _CHUNK):
            part = slice(start, start + _CHUNK)
            if len(self._present) == 1:
                predicted[part, self._present[0]] = 1.0
                continue
            with threadpool_limits(self._threads, user_api="openmp"):
                if self.classes is None:
                    predicted[part] = self._model.predict(features[part][:, self._known])
                else:
                    predicted[part, self._present] = self._model.predict_proba(features[part][:, self._known])
        return predicted

    def score(self, features: np.ndarray) -> np.ndarray:
        """Return (m,) float32 shares of class 1, for two classes: 0 = background, 1 = presence."""
        assert self.classes == 2
        return self.predict(features)[:, 1]

    def _choose(self, targets: np.ndarray) -> np.ndarray:
        """Sorted numbers of the samples to fit: all, or a random share of each class, one at least."""
        if len(targets) <= self._max_samples:
            return np.arange(len(targets))
        rng = np.random.default_rng(self._seed)
        strata = np.zeros(len(targets), np.int64) if self.classes is None else targets.astype(np.int64)
        share = self._max_samples / len(targets)
        chosen = []
        for stratum in np.unique(strata):
            members = np.flatnonzero(strata == stratum)
            chosen.append(rng.choice(members, max(1, int(share * len(members))), replace=False))
        return np.sort(np.concatenate(chosen))

    def _make(self, samples: int) -> Any:
        weight = "balanced" if self._balanced else None
        leaf = max(1, samples // _SAMPLES_PER_LEAF)
        if self.kind == "gradient_boosting":
            options = {
                "max_iter": _ROUNDS,
                "min_samples_leaf": min(20, leaf),
                "early_stopping": False,
                "random_state": self._seed,
            }
            if self.classes is None:
                return HistGradientBoostingRegressor(**options)
            return HistGradientBoostingClassifier(**options, class_weight=weight, l2_regularization=_RIDGE)
        forest: dict[str, Any] = {
            "n_estimators": _TREES,
            "min_samples_leaf": min(_LEAF, leaf),
            "random_state": self._seed,
            "n_jobs": self._threads,
        }
        if self.classes is None:
            return RandomForestRegressor(**forest, max_features=1 / 3)
        return RandomForestClassifier(**forest, class_weight=weight)
