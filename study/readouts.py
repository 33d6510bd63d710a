"""What a study says besides scores and differences: whether fits came to their end, and when pre-training pays."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from study.bootstrap import HIGHER_IS_BETTER
from study.curves import Curve
from study.regimes import Regime
from study.summary import ArmFacts, Group, Key
from study.verdict import seed_offset

SAME_WORK = 1.25
"""Processor times that differ by a factor of up to that may be of the same work, on a machine with other work to do."""
OPEN_ENDED = 0.25
"""An arm is called not converged if more than this share of its fits trained up to the greatest length."""


@dataclass(frozen=True)
class FitLengths:
    """How long the fits of one arm, mode and regime of labels trained.

    Attributes:
        arm: its name.
        mode: one of `results.MODES`.
        regime: the labels.
        fits: number of fits.
        best_epoch: median of the epochs with the best validation score; None if none has a score.
        epochs: median of all epochs trained, those after the best one too.
        at_greatest: fits that trained the greatest length, so that they did not stop improving within it; None where
            it is not known, or the length was fixed.
    """

    arm: str
    mode: str
    regime: Regime
    fits: int
    best_epoch: float | None
    epochs: float
    at_greatest: int | None


def fit_lengths(curves: Sequence[Curve], *, greatest: int | None) -> FitLengths:
    """Lengths of fits that belong together.

    Args:
        curves: of one arm, mode and regime of labels; one at least.
        greatest: most epochs that a fit could have; None if the length was fixed or is not known.
    """
    first, trained = curves[0], [len(of.scores) for of in curves]
    best = [of.best_epoch for of in curves if of.best_epoch is not None]
    return FitLengths(
        first.arm,
        first.mode,
        first.regime,
        len(curves),
        statistics.median(best) if best else None,
        statistics.median(trained),
        None if greatest is None else sum(epochs >= greatest for epochs in trained),
    )


def not_converged(lengths: Sequence[FitLengths]) -> frozenset[str]:
    """Names of the arms of which more than `OPEN_ENDED` of the fits trained up to the greatest length.

    Args:
        lengths: of all modes and regimes of labels; those of fixed length are not judged.
    """
    fits: dict[str, list[tuple[int, int]]] = {}
    for of in lengths:
        if of.at_greatest is not None:
            fits.setdefault(of.arm, []).append((of.at_greatest, of.fits))
    totals = {arm: [sum(column) for column in zip(*counts, strict=True)] for arm, counts in fits.items()}
    return frozenset(arm for arm, (reached, count) in totals.items() if reached > OPEN_ENDED * count)


@dataclass(frozen=True)
class ReachTime:
    """How long the fits of one arm, mode and regime of labels took to the score that trees have on the same ground.

    Attributes:
        trees: name of the arm of trees.
        fits: fits with trees of the same seed and fold to compare with.
        reached: how many of them had an epoch with at least the trees' score.
        seconds: median over the fits, pre-training included; infinite if half of them did not reach it.
        finetune_s: likewise, of fine-tuning alone.
    """

    trees: str
    fits: int
    reached: int
    seconds: float
    finetune_s: float


def reach_times(arms: Sequence[ArmFacts], groups: Sequence[Group], curves: Sequence[Curve]) -> dict[Key, ReachTime]:
    """Time to the score of trees on validation ground, for all networks that were validated.

    Trees are those of the first arm of trees that is no control, with the same labels, seed and fold.
    """
    controls = {arm.name for arm in arms if arm.role in ("null", "leak")}
    trees = next((of.arm for of in groups if of.mode == "trees" and of.arm not in controls), None)
    scores = {(of.regime, of.seed, of.fold): of.scores[0] for of in curves if of.arm == trees}
    found = {}
    for group in (of for of in groups if of.mode != "trees"):
        offset, before = seed_offset(arms, group), {(run.seed, run.fold): run.pretrain_s or 0.0 for run in group.runs}
        times = [
            (before[of.seed, of.fold], of.seconds_to(score))
            for of in curves
            if (of.arm, of.mode, of.regime) == (group.arm, group.mode, group.regime)
            and (of.seed, of.fold) in before
            and not math.isnan(score := scores.get((of.regime, of.seed - offset, of.fold), math.nan))
        ]
        if times and trees is not None:
            found[group.arm, group.mode, group.regime] = ReachTime(
                trees,
                len(times),
                sum(math.isfinite(time) for _, time in times),
                statistics.median(pretraining + time for pretraining, time in times),
                statistics.median(time for _, time in times),
            )
    return found


@dataclass(frozen=True)
class BreakEven:
    """How many models must share a pre-training until each is cheaper than training from scratch to the same score.

    Attributes:
        word: `from` so many models on; `never`, as training from scratch reaches the score in the time of fine-tuning,
            give or take what times of the same work vary; `at most`, as training from scratch does not reach it in any
            length tried; `unknown`, as it does not, and was not tried for longer than fine-tuning takes.
        models: their number; None for `never` and `unknown`.
        twin: the arm from scratch that it follows from.
        twin_s: seconds of its training.
    """

    word: str
    models: int | None
    twin: str
    twin_s: float


def break_even(
    score: float, *, pretrain_s: float, finetune_s: float, scratch: Mapping[str, tuple[float, float]]
) -> BreakEven | None:
    """Compares pretrain_s / n + finetune_s with the shortest training from scratch that has at least the score.

    Args:
        score: of the pre-trained arm, more is better.
        pretrain_s: seconds of its pre-training.
        finetune_s: seconds of its fine-tuning.
        scratch: seconds of training and score of the arms from scratch, by name.

    Returns:
        None without any arm from scratch.
    """
    if not scratch:
        return None
    reaching = {name: seconds for name, (seconds, reached) in scratch.items() if reached >= score}
    lengths = {name: seconds for name, (seconds, _) in scratch.items()}
    twin = min(reaching, key=lambda name: reaching[name]) if reaching else max(lengths, key=lambda name: lengths[name])
    seconds = lengths[twin]
    if seconds <= SAME_WORK * finetune_s:
        return BreakEven("never" if reaching else "unknown", None, twin, seconds)
    models = math.floor(pretrain_s / (seconds - finetune_s)) + 1
    return BreakEven("from" if reaching else "at most", models, twin, seconds)


def break_evens(arms: Sequence[ArmFacts], groups: Sequence[Group]) -> dict[Key, BreakEven]:
    """Break-even of every fully fine-tuned network with pre-training, with each regime of labels; not of controls.

    Scores are means over seeds and test blocks, times means over runs; arms tested on other blocks do not meet.
    """
    controls = {arm.name for arm in arms if arm.role in ("null", "leak")}
    networks = [
        of for of in groups if of.mode == "full" and of.arm not in controls and of.scores and of.cost("finetune_s")
    ]
    found = {}
    for group in (of for of in networks if of.cost("pretrain_s")):
        sign = 1 if HIGHER_IS_BETTER[group.runs[0].metric] else -1
        scratch = {
            of.arm: (of.cost("finetune_s") or 0.0, sign * of.mean)
            for of in networks
            if of.regime == group.regime and of.blocks == group.blocks and not of.cost("pretrain_s")
        }
        even = break_even(
            sign * group.mean,
            pretrain_s=group.cost("pretrain_s") or 0.0,
            finetune_s=group.cost("finetune_s") or 0.0,
            scratch=scratch,
        )
        if even is not None:
            found[group.arm, group.mode, group.regime] = even
    return found
