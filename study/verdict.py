"""What the results decide: each arm against the one it is compared with, controls, and what would decide the rest."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.special import stdtrit

from study.arms import StudyArm
from study.bootstrap import DRAWS, HIGHER_IS_BETTER, LEAST_BLOCKS, LEAST_SEEDS, LEVEL, Difference, compare, student
from study.regimes import Regime
from study.summary import ArmFacts, Group, Key

Groups = Mapping[Key, Group]

MOST_SEEDS = 1000
"""More seeds than that are out of reach: no number is given."""

MOST_GROUND = 100
"""Likewise times the labelled ground."""


@dataclass(frozen=True)
class Advice:
    """What would decide a difference that is undecided, extrapolated from the spread observed.

    Attributes:
        by: `seeds`; `beyond` (more than MOST_SEEDS of them); `ground`; `nothing` (no difference was seen at all);
            `more` (too little to extrapolate from).
        seeds: number of seeds needed in all; 0 = not by seeds.
        blocks: number of independent blocks needed in all, infinite above MOST_GROUND times those there are; 0 = not
            by ground.
        total_hours: training hours of the two arms with that many seeds; None = not known.
        further_hours: of these, those still to come.
    """

    by: str
    seeds: int = 0
    blocks: float = 0.0
    total_hours: float | None = None
    further_hours: float | None = None


@dataclass(frozen=True, eq=False)
class Comparison:
    """An arm against another at one share of labels.

    Attributes:
        arm: facts of the first arm.
        first: its runs.
        second: those of the other arm.
        difference: first minus second, above zero = first better.
        advice: what would decide it; None if it is decided.
        chosen: the other arm was chosen for its score, which favours it.
    """

    arm: ArmFacts
    first: Group
    second: Group
    difference: Difference
    advice: Advice | None
    chosen: bool = False

    @property
    def cost_ratio(self) -> float | None:
        """Training seconds of the first over those of the second."""
        first, second = self.first.seconds, self.second.seconds
        return first / second if first is not None and second else None


@dataclass(frozen=True)
class Control:
    """How a control came out.

    Attributes:
        arm: its name.
        role: `null` or `leak`.
        passed: None = it could not be judged.
        text: what was found, in a sentence or two.
        compared: number of comparisons that it was judged by.
        failed: how many of these came out as they must not.
    """

    arm: str
    role: str
    passed: bool | None
    text: str
    compared: int = 0
    failed: int = 0


def compare_arms(arms: Sequence[ArmFacts], groups: Groups, *, draws: int = DRAWS, seed: int = 0) -> list[Comparison]:
    """All differences that the arms ask for and the results allow; not those of `leak` arms.

    Args:
        arms: the arms.
        groups: their runs.
        draws: of each interval.
        seed: of the draws.
    """
    found = []
    for arm in arms:
        for first in (group for group in groups.values() if group.arm == arm.name and arm.role != "leak"):
            chosen = not arm.against and first.mode == "trees"
            seconds = (
                [best_network(arms, groups, first.regime)]
                if chosen
                else [_opponent(name, first, groups) for name in arm.against]
            )
            others = [of for of in seconds if of is not None and of is not first]
            for second in _not_met(others, first, arms) if chosen else others:
                offset = seed_offset(arms, first) - seed_offset(arms, second)
                difference = compare(first.seeds, second.seeds, offset=offset, draws=draws, seed=seed)
                seed_s = sum(group.pretrain_per_seed_s + group.finetune_per_seed_s for group in (first, second))
                advice = advise(difference, seed_s=seed_s)
                found.append(Comparison(arm, first, second, difference, advice, chosen))
    return found


def best_network(arms: Sequence[ArmFacts], groups: Groups, regime: Regime) -> Group | None:
    """The fully fine-tuned network, controls apart, with the best mean score with a regime of labels.

    Of networks some of whose folds are still to run, only those tested on most blocks are looked at.
    """
    controls = {arm.name for arm in arms if arm.role in ("null", "leak")}
    networks = [
        group
        for group in groups.values()
        if group.mode == "full" and group.regime == regime and group.arm not in controls and group.scores
    ]
    most = max((len(group.blocks) for group in networks), default=0)
    return max((group for group in networks if len(group.blocks) == most), key=_worth, default=None)


def _not_met(networks: Sequence[Group], trees: Group, arms: Sequence[ArmFacts]) -> list[Group]:
    """Networks that are not compared with these trees in their own right."""
    met = {arm.name for arm in arms if trees.arm in arm.against}
    return [group for group in networks if group.arm not in met]


def advise(difference: Difference, *, seed_s: float) -> Advice | None:
    """What would decide a difference.

    Seeds decide if the spread from blocks alone would leave zero out; else only more labelled ground does.

    Args:
        difference: the difference.
        seed_s: training seconds that one seed of both arms takes; 0 = not known.

    Returns:
        None if it is decided.
    """
    if difference.word != "undecided":
        return None
    size = abs(difference.estimate)
    if not difference.can_decide:
        return Advice("more")
    if size == 0 or (difference.var_blocks == 0 and difference.var_seeds == 0):
        return Advice("nothing")
    reach = float(stdtrit(difference.blocks - 1, (1 + LEVEL) / 2)) * math.sqrt(difference.var_blocks)
    if reach >= size:
        ratio = (reach / size) ** 2
        return Advice("ground", blocks=difference.blocks * ratio if ratio <= MOST_GROUND else math.inf)
    for seeds in range(difference.seeds + 1, MOST_SEEDS + 1):
        spread = math.sqrt(difference.var_blocks + difference.var_seeds / seeds)
        known = {"blocks": difference.blocks, "seeds": seeds}
        if student(difference.var_blocks, difference.var_seeds, **known) * spread < size:
            hours = (seeds * seed_s / 3600, (seeds - difference.seeds) * seed_s / 3600) if seed_s else (None, None)
            return Advice("seeds", seeds, 0.0, *hours)
    return Advice("beyond")


def further_hours(comparisons: Sequence[Comparison]) -> float:
    """Training hours of all further seeds that would decide what seeds can decide; each run counted once."""
    extra: dict[Key, tuple[Group, int]] = {}
    for of in comparisons:
        if of.advice is not None and of.advice.by == "seeds":
            for group in (of.first, of.second):
                key = (group.arm, group.mode, group.regime)
                more = of.advice.seeds - of.difference.seeds
                extra[key] = (group, max(more, extra.get(key, (group, 0))[1]))
    pretraining: dict[str, float] = {}
    for group, more in extra.values():
        pretraining[group.arm] = max(pretraining.get(group.arm, 0.0), group.pretrain_per_seed_s * more)
    finetuning = sum(group.finetune_per_seed_s * more for group, more in extra.values())
    return (sum(pretraining.values()) + finetuning) / 3600


def most_seeds_needed(comparisons: Sequence[Comparison]) -> int:
    """Seeds in all that would decide every comparison that seeds can decide; 0 = none can."""
    return max((of.advice.seeds for of in comparisons if of.advice is not None and of.advice.by == "seeds"), default=0)


def judge_controls(
    arms: Sequence[ArmFacts], groups: Groups, comparisons: Sequence[Comparison], *, draws: int = DRAWS, seed: int = 0
) -> list[Control]:
    """How the controls came out: `null` arms should not differ from their twins, `leak` arms must beat their kind."""
    controls = []
    for arm in arms:
        if arm.role == "null":
            controls.append(_judge_null(arm, [of for of in comparisons if of.arm is arm]))
        elif arm.role == "leak":
            controls.append(_judge_leak(arm, arms, groups, draws=draws, seed=seed))
    return controls


def seed_offset(arms: Sequence[ArmFacts], group: Group) -> int:
    """What the study adds to the seeds of a group's arm."""
    role = next(arm.role for arm in arms if arm.name == group.arm)
    return StudyArm(group.arm, role=role).seed_offset


def _opponent(against: str, first: Group, groups: Groups) -> Group | None:
    """Runs of the other arm in the same mode; trees and fully fine-tuned networks meet each other."""
    modes = {"trees": ("trees", "full"), "full": ("full", "trees"), "probe": ("probe",)}[first.mode]
    found = (groups.get((against, mode, first.regime)) for mode in modes)
    return next((group for group in found if group is not None), None)


def _worth(group: Group) -> float:
    return group.mean if HIGHER_IS_BETTER[group.runs[0].metric] else -group.mean


def _judge_null(arm: ArmFacts, comparisons: Sequence[Comparison]) -> Control:
    judged = [of for of in comparisons if of.difference.can_decide]
    if not judged:
        needs = f"that takes {LEAST_SEEDS} seeds and {LEAST_BLOCKS} blocks"
        return Control(
            arm.name,
            "null",
            None,
            f"{arm.name} could not be compared with its twin {' '.join(arm.against)} yet: {needs}.",
        )
    failed = [of for of in judged if of.difference.word != "undecided"]
    most = max(abs(of.difference.estimate) for of in judged)
    text = (
        f"{arm.name} is {' '.join(arm.against)} once more, with other seeds. The two differ by {most:.3g} at most; the "
        f"interval includes zero in {len(judged) - len(failed)} of {len(judged)} comparisons"
    )
    chance = ". By chance alone about one in twenty would leave it out."
    text += ", as it should." if not failed else chance
    return Control(arm.name, "null", not failed, text, len(judged), len(failed))


def _judge_leak(arm: ArmFacts, arms: Sequence[ArmFacts], groups: Groups, *, draws: int, seed: int) -> Control:
    leaks = {of.name for of in arms if of.role == "leak"}
    beaten, lost, least = 0, [], math.inf
    for first in (group for group in groups.values() if group.arm == arm.name):
        for other in groups.values():
            weaker = first.mode not in ("full", other.mode)  # trees and probes hold less than whole networks
            if other.arm in leaks or other.regime != first.regime or weaker:
                continue
            offset = seed_offset(arms, first) - seed_offset(arms, other)
            difference = compare(first.seeds, other.seeds, offset=offset, draws=draws, seed=seed)
            if difference.estimate > 0:
                beaten, least = beaten + 1, min(least, difference.estimate)
            elif not math.isnan(difference.estimate):
                lost.append(f"{other.arm} ({other.mode}, {other.regime})")
    if not beaten and not lost:
        return Control(arm.name, "leak", None, f"{arm.name} could not be compared with any other arm yet.")
    text = f"{arm.name} was given the labels of the test blocks. It beats {beaten} of {beaten + len(lost)} others"
    end = f", by {least:.3g} at least: as it must."
    if lost:
        end = f", but not {', '.join(lost)}; it must beat all of its kind."
    return Control(arm.name, "leak", not lost, text + end, beaten + len(lost), len(lost))


def spread_from_blocks(comparisons: Sequence[Comparison]) -> float:
    """Median share of the variance that comes from the choice of blocks; NaN if not known."""
    shares = [of.difference.block_share for of in comparisons]
    known = [share for share in shares if math.isfinite(share)]
    return float(np.median(known)) if known else math.nan
