"""Scores of pooled blocks, and differences between two arms with an interval: blocks and seeds drawn anew.

A draw is a weight for each block; scores follow from weights @ sums, so that thousands of draws take no time.

References:
    Efron and Tibshirani (1993), An Introduction to the Bootstrap, chapter 13: percentile intervals.
    Rao and Wu (1988), Resampling inference with complex survey data, section 2: one unit fewer is drawn than there
    are, without which the spread of few units comes out too small. The widening by Student's t is ours.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from scipy.special import stdtrit

from study.results import COUNTS, Run

HIGHER_IS_BETTER = {"mean_iou": True, "rmse": False, "roc_auc": True, "balanced_accuracy": True}

DRAWS = 2000
LEVEL = 0.95
LEAST_SEEDS, LEAST_BLOCKS = 3, 2
"""Fewer decide nothing: intervals of two seeds leave a true zero out in up to 12 of 100 simulated studies."""
_NORMAL = 1.959964  # what Student's t goes to with many units


@dataclass(frozen=True, eq=False)
class BlockSums:
    """What the scores of one arm and seed follow from (B blocks, all folds together).

    Attributes:
        metric: headline number.
        blocks: (B,) numbers of the blocks, ascending.
        sums: (B, M) what is added up over blocks; M depends on the metric.
        pairs: (B, B) of roc_auc: pairs of a deposit in the row's block and background in the column's that are ranked
            rightly, ties half; else None.
        truth: (B, T) sums of truth alone: the same for two arms that were tested on the same pixels.
    """

    metric: str
    blocks: np.ndarray
    sums: np.ndarray
    pairs: np.ndarray | None
    truth: np.ndarray

    def at(self, blocks: np.ndarray) -> BlockSums:
        """Those blocks alone, which must be among them."""
        chosen = np.searchsorted(self.blocks, blocks)
        pairs = None if self.pairs is None else self.pairs[np.ix_(chosen, chosen)]
        return replace(self, blocks=blocks, sums=self.sums[chosen], pairs=pairs, truth=self.truth[chosen])

    def scores(self, weights: np.ndarray) -> np.ndarray:
        """Scores of pooled blocks.

        Args:
            weights: (D, B) how often each block counts in each of D draws.

        Returns:
            (D,) scores, NaN where undefined.
        """
        totals = weights @ self.sums
        with np.errstate(invalid="ignore", divide="ignore"):
            if self.metric == "rmse":
                return np.sqrt(totals[:, 1] / totals[:, 0])
            if self.metric == "roc_auc":
                assert self.pairs is not None
                ranked = np.einsum("db,db->d", weights @ self.pairs, weights)
                return ranked / (totals[:, 0] * totals[:, 1])
            if self.metric == "balanced_accuracy":
                right, truth = np.split(totals, 2, axis=1)
                return _mean_over_classes(right / truth, truth > 0)
            right, predicted, truth = np.split(totals, 3, axis=1)
            return _mean_over_classes(right / (truth + predicted - right), truth > 0)

    def score(self) -> float:
        """Score of all blocks."""
        return float(self.scores(np.ones((1, len(self.blocks))))[0])


@dataclass(frozen=True, eq=False)
class Difference:
    """First arm minus second, turned so that above zero the first is better.

    Attributes:
        estimate: mean over seeds of the difference of pooled scores; NaN = undefined.
        low: lower end of the interval; NaN with a single seed and block, or where it is undefined.
        high: upper end.
        seeds: number of pairs of seeds.
        blocks: number of blocks that both tested with all those seeds.
        per_seed: difference of each pair of seeds.
        var_blocks: variance of the estimate from the choice of blocks, seeds as they are.
        var_seeds: variance of a single seed's difference, blocks as they are; NaN with one seed.
        notes: what the reader must know, sentences.
    """

    estimate: float
    low: float
    high: float
    seeds: int
    blocks: int
    per_seed: tuple[float, ...] = ()
    var_blocks: float = math.nan
    var_seeds: float = math.nan
    notes: tuple[str, ...] = ()

    @property
    def word(self) -> str:
        """`better`, `worse` or `undecided`, the last also where seeds or blocks are too few to trust the interval."""
        if not self.can_decide or not (self.low > 0 or self.high < 0):
            return "undecided"
        return "better" if self.estimate > 0 else "worse"

    @property
    def can_decide(self) -> bool:
        """There is an interval, from seeds and blocks enough to trust it."""
        return self.seeds >= LEAST_SEEDS and self.blocks >= LEAST_BLOCKS and not math.isnan(self.low)

    @property
    def block_share(self) -> float:
        """Share of the variance that comes from the choice of blocks; the rest is from seeds."""
        total = self.var_blocks + self.var_seeds / max(self.seeds, 1)
        return self.var_blocks / total if total > 0 else math.nan


def pool(runs: Sequence[Run]) -> BlockSums:
    """Sums of the runs of one arm, mode, share of labels and seed: its folds together.

    Raises:
        ValueError: runs of different metrics or numbers of classes.
    """
    metrics = sorted({run.metric for run in runs})
    if len(metrics) != 1:
        raise ValueError(f"{runs[0].title}: metrics {', '.join(metrics)}, expected one; keep studies in tables apart")
    blocks = np.concatenate([run.blocks for run in runs])
    order = np.argsort(blocks)
    pairs = None
    if metrics[0] == "rmse":
        sums = np.concatenate([run.errors for run in runs if run.errors is not None])
        truth = sums[:, [0, 3, 4]]
    elif metrics[0] == "mean_iou":
        kinds = {run.hits.shape[1] for run in runs if run.hits is not None}
        if len(kinds) != 1:
            raise ValueError(f"{runs[0].title}: folds with {sorted(kinds)} classes, expected one number; run it again")
        sums = np.concatenate([np.hstack([getattr(run, name) for name in COUNTS]) for run in runs]).astype(np.float64)
        truth = sums[:, -kinds.pop() :]
    else:
        classes = [of for run in runs for of in run.truth]
        shares = [of for run in runs for of in run.shares]
        if metrics[0] == "roc_auc":
            sums = np.array([[np.sum(of == 1), np.sum(of == 0)] for of in classes], dtype=np.float64)
            pairs = _ranked_pairs(classes, shares)[np.ix_(order, order)]
            truth = sums
        else:
            sums = _recall_sums(classes, shares)
            truth = np.array([[len(of), of.sum()] for of in classes], dtype=np.float64)
    return BlockSums(metrics[0], blocks[order], sums[order], pairs, truth[order])


def compare(
    first: Mapping[int, BlockSums],
    second: Mapping[int, BlockSums],
    *,
    offset: int = 0,
    draws: int = DRAWS,
    seed: int = 0,
) -> Difference:
    """Difference of two arms with its interval, both always scored on the same blocks.

    Each draw takes blocks with replacement and seeds with replacement. The percentiles of the draws are then moved
    away from the estimate by Student's t over the normal quantile, with the degrees of freedom of Satterthwaite: with
    three seeds the percentiles alone would be too narrow by half.

    Args:
        first: sums of one arm by seed.
        second: of the other.
        offset: what is added to the seeds of the second arm to give those of the first that they are paired with: of
            a control that repeats an arm with other seeds. Arms without any such pair are paired by order.
        draws: number of draws.
        seed: of the draws.
    """
    pairs, seeds, notes = _paired(first, second, offset)
    chosen, blocks = _common_ground(pairs)
    every = {block for sums in (*first.values(), *second.values()) for block in sums.blocks.tolist()}
    if len(chosen) < seeds or len(blocks) < len(every):
        part = f"on {len(chosen)} of {seeds} seeds and {len(blocks)} of {len(every)} blocks"
        notes.append(f"{part}: those that both have been tested with")
    if not chosen or not len(blocks):
        notes = ["the two have no seed, or no block, in common"]
        return Difference(math.nan, math.nan, math.nan, len(chosen), len(blocks), notes=tuple(notes))
    chosen = [(a.at(blocks), b.at(blocks)) for a, b in chosen]
    sign = 1 if HIGHER_IS_BETTER[chosen[0][0].metric] else -1
    if any(a.truth.shape != b.truth.shape or not np.allclose(a.truth, b.truth) for a, b in chosen):
        notes.append("the two were not tested on exactly the same pixels or windows of these blocks")
    per_seed = np.array([sign * (a.score() - b.score()) for a, b in chosen])
    found = Difference(float(per_seed.mean()), math.nan, math.nan, len(chosen), len(blocks), tuple(per_seed.tolist()))
    if len(chosen) < LEAST_SEEDS:
        count = "a single seed: chance in training is not in the interval, and" if len(chosen) == 1 else "two seeds:"
        notes.append(f"{count} fewer than {LEAST_SEEDS} seeds decide nothing, whatever the interval")
    if len(blocks) < LEAST_BLOCKS:
        return replace(found, notes=(*notes, "a single block: nothing is known of how ground varies"))
    generator = np.random.default_rng(seed)
    weights = _drawn(len(blocks), draws, generator)
    of_draws = np.stack([sign * (a.scores(weights) - b.scores(weights)) for a, b in chosen], axis=1)  # (draws, seeds)
    of_draws = of_draws[np.isfinite(of_draws).all(axis=1)]
    if len(of_draws) < draws:
        notes.append(f"{draws - len(of_draws)} of {draws} draws had no score and were left out")
    found = replace(found, notes=tuple(notes))
    if len(of_draws) < 2 or not np.isfinite(found.estimate):
        return found
    return _with_interval(found, of_draws, _drawn(len(chosen), draws, generator)[: len(of_draws)])


def _with_interval(found: Difference, of_draws: np.ndarray, seed_weights: np.ndarray) -> Difference:
    """Adds the interval and the variances to a difference.

    Args:
        found: the difference.
        of_draws: (D, S) differences of each draw of blocks and each pair of seeds.
        seed_weights: (D, S) how often each pair of seeds counts in each draw.
    """
    both = (of_draws * seed_weights).sum(axis=1) / seed_weights.sum(axis=1)
    var_blocks = float(of_draws.mean(axis=1).var(ddof=1))
    var_seeds = float(np.array(found.per_seed).var(ddof=1)) if found.seeds > 1 else math.nan
    wider = student(var_blocks, var_seeds, blocks=found.blocks, seeds=found.seeds) / _NORMAL
    low, high = np.quantile(both, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return replace(
        found,
        low=found.estimate + wider * min(float(low) - found.estimate, 0.0),
        high=found.estimate + wider * max(float(high) - found.estimate, 0.0),
        var_blocks=var_blocks,
        var_seeds=var_seeds,
    )


def student(var_blocks: float, var_seeds: float, *, blocks: int, seeds: int) -> float:
    """Quantile of Student's t for the sum of two variances that are known from few units each (Satterthwaite).

    Args:
        var_blocks: variance of the estimate from blocks.
        var_seeds: variance of a single seed's value; NaN counts as 0.
        blocks: their number, 2 or more.
        seeds: their number.
    """
    of_seeds = 0.0 if math.isnan(var_seeds) else var_seeds / seeds
    spread = var_blocks**2 / (blocks - 1) + (of_seeds**2 / (seeds - 1) if seeds > 1 else 0.0)
    freedom = (var_blocks + of_seeds) ** 2 / spread if spread > 0 else math.inf
    return float(stdtrit(freedom, (1 + LEVEL) / 2)) if math.isfinite(freedom) else _NORMAL


def _drawn(units: int, draws: int, generator: np.random.Generator) -> np.ndarray:
    """(draws, units) how often each unit is drawn, with replacement; one fewer than there are."""
    return generator.multinomial(max(units - 1, 1), np.full(units, 1 / units), size=draws).astype(np.float64)


def _paired(
    first: Mapping[int, BlockSums], second: Mapping[int, BlockSums], offset: int
) -> tuple[list[tuple[BlockSums, BlockSums]], int, list[str]]:
    """Pairs of seeds, the number of seeds that either arm has, and a note if they had to be paired by order."""
    moved = {seed + offset: sums for seed, sums in second.items()}
    common = sorted(set(first) & set(moved))
    if common:
        return [(first[seed], moved[seed]) for seed in common], len(set(first) | set(moved)), []
    pairs = [(first[a], moved[b]) for a, b in zip(sorted(first), sorted(moved), strict=False)]
    return pairs, max(len(first), len(moved)), ["no seed in common: paired by order"] if pairs else []


def _common_ground(
    pairs: Sequence[tuple[BlockSums, BlockSums]],
) -> tuple[list[tuple[BlockSums, BlockSums]], np.ndarray]:
    """Pairs and the blocks that all of them tested: enough to decide if possible, else two seeds, then most of both."""
    shared = [np.intersect1d(a.blocks, b.blocks) for a, b in pairs]
    order = sorted(range(len(pairs)), key=lambda number: -len(shared[number]))
    best: tuple[tuple[bool, bool, int, int], list[int], np.ndarray]
    best = ((False, False, 0, 0), [], np.array([], dtype=np.int64))
    for count in range(1, len(order) + 1):
        blocks = shared[order[0]]
        for number in order[1:count]:
            blocks = np.intersect1d(blocks, shared[number])
        enough = count >= LEAST_SEEDS and len(blocks) >= LEAST_BLOCKS
        worth = (enough, count > 1 and len(blocks) > 0, count * len(blocks), count)
        if len(blocks) and worth > best[0]:
            best = (worth, sorted(order[:count]), blocks)
    _, chosen, blocks = best
    return [pairs[number] for number in chosen], blocks


def _mean_over_classes(values: np.ndarray, occurs: np.ndarray) -> np.ndarray:
    """(D, K) -> (D,) mean over the classes that occur in truth, as `util.scores.confusion_scores`."""
    counted = occurs.sum(axis=1)
    return np.where(occurs, values, 0.0).sum(axis=1) / np.where(counted, counted, math.nan)


def _ranked_pairs(truth: Sequence[np.ndarray], shares: Sequence[np.ndarray]) -> np.ndarray:
    """(B, B) pairs of a deposit in block b and background in block c that are ranked rightly, ties half."""
    negatives = [np.sort(share[of == 0]) for of, share in zip(truth, shares, strict=True)]
    positives = [share[of == 1] for of, share in zip(truth, shares, strict=True)]
    lengths = [len(of) for of in positives]
    every = np.concatenate([*positives, np.array([])])
    row_of = np.repeat(np.arange(len(truth)), lengths)
    found = np.zeros((len(truth), len(truth)))
    for column, below in enumerate(negatives):
        ranked = (np.searchsorted(below, every, "left") + np.searchsorted(below, every, "right")) / 2
        found[:, column] = np.bincount(row_of, weights=ranked, minlength=len(truth))
    return found


def _recall_sums(truth: Sequence[np.ndarray], classes: Sequence[np.ndarray]) -> np.ndarray:
    """(B, 2K) windows of each class that are predicted rightly, then all windows of each class in truth."""
    kinds = max((int(of.max()) for of in truth if len(of)), default=0) + 1
    right = [np.bincount(of[of == predicted], minlength=kinds) for of, predicted in zip(truth, classes, strict=True)]
    return np.hstack([np.array(right), np.array([np.bincount(of, minlength=kinds) for of in truth])]).astype(np.float64)
