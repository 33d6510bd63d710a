"""Runs of a study whose answers are known: errors of blocks given as numbers."""

import numpy as np

from study.results import Run


def errors_run(arm, rmse, *, mode="full", fraction=1.0, seed=0, fold=0, blocks=None, **costs):
    """A regression of 100 pixels a block with the given RMSE in each block."""
    rmse = np.asarray(rmse, dtype=np.float64)
    blocks = np.arange(len(rmse)) if blocks is None else np.asarray(blocks)
    count = np.full(len(rmse), 100.0)
    errors = np.stack([count, count * rmse**2, count * rmse, count * 5, count * 30], axis=1)
    score = float(np.sqrt((rmse**2).mean()))
    return Run(arm, mode, fraction, seed, fold, "rmse", score, blocks, errors=errors, **costs)


def classes_run(arm, share, *, mode="full", fraction=1.0, seed=0, fold=0, blocks=None, **costs):
    """A segmentation of two classes, 100 pixels of each a block, of which a share (B,) is right."""
    hits = np.round(100 * np.asarray(share, dtype=np.float64)).astype(np.int64)
    blocks = np.arange(len(hits)) if blocks is None else np.asarray(blocks)
    hits = np.stack([hits, hits], axis=1)
    labelled = np.full_like(hits, 100)
    total = hits.sum()
    sums = {"hits": hits, "predicted": hits + (labelled - hits)[:, ::-1], "labelled": labelled}
    score = total / (2 * labelled.sum() - total)
    return Run(arm, mode, fraction, seed, fold, "mean_iou", float(score), blocks, **sums, **costs)


def study_runs(levels, *, seeds=3, blocks=12, folds=2, spread=0.02, shift=None, **choice):
    """Runs of arms over seeds and folds: a share that is right by arm, plus noise of blocks and seeds.

    Args:
        levels: by arm, its mean share.
        seeds: their number.
        blocks: likewise.
        folds: likewise; block b is tested in fold b % folds.
        spread: of the noise, of each block and seed.
        shift: by arm, added to its seeds.
        choice: mode, fraction and costs.
    """
    runs = []
    for number, (arm, level) in enumerate(levels.items()):
        generator = np.random.default_rng(number)
        for seed in range(seeds):
            share = np.clip(level + generator.normal(0, spread, blocks), 0, 1)
            for fold in range(folds):
                tested = np.arange(fold, blocks, folds)
                of = seed + (shift or {}).get(arm, 0)
                runs.append(classes_run(arm, share[tested], seed=of, fold=fold, blocks=tested, **choice))
    return runs
