"""The experiments of a study: which there are, on what they wait, how long each trains, what each will take."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from study.arms import OF_TREES, StudyArm
from study.regimes import Regime, regimes_of

PRETRAIN_TILES = 1024
"""Tiles in an epoch of pre-training, for all arms alike."""
FINETUNE_WINDOWS = 256
"""Windows in an epoch of fine-tuning."""
LEAST_PRETRAIN_EPOCHS, LEAST_FINETUNE_EPOCHS = 3, 2
LEAST_SEEDS, MOST_SEEDS = 3, 10
RESERVE = 0.9
"""Share of the budget that is planned; the rest is for what takes longer than was estimated."""
PROBE_SHARE = 0.4
"""Time of a probe's update beside a full one's, until one was measured: a third by FLOPs, and the reading."""


@dataclass(frozen=True)
class Task:
    """One program to run.

    Attributes:
        name: of its folder.
        stage: `pretrain` or `fit`.
        arm: the arm.
        seed: number of the seed, 0, 1, ...; a null control's program gets another one.
        regime: labels of a fit.
        needs: names of the tasks that must be done before.
    """

    name: str
    stage: str
    arm: StudyArm
    seed: int
    regime: Regime = Regime()
    needs: tuple[str, ...] = ()


TIMES = {"rcf": 4.0, "trees+embeddings": 3.0, "unet": 16.0}
"""Times that a method takes of what trees, or an epoch of the network, take: the tiny model on a CPU, roughly."""


@dataclass(frozen=True)
class Rates:
    """What was measured to take how long, wall-clock seconds of one job slot.

    Attributes:
        pretrain: an epoch of pre-training, by the arm's name.
        finetune: an epoch of a full fit of one fold.
        probe: an epoch of a probe of one fold.
        score: scoring one fold.
        trees: trees on one fold, scored.
        start: beginning and ending a program.
        validation: validating an epoch of a fit of one fold; 0 where fits have fixed lengths.
    """

    pretrain: Mapping[str, float]
    finetune: float
    probe: float
    score: float
    trees: float
    start: float
    validation: float = 0.0


@dataclass
class Lengths:
    """How long arms train, in epochs; those of arms that get another arm's time are known once that was measured.

    Attributes:
        seeds: number of seeds.
        share: of the longest training asked for.
        pretrain: epochs of pre-training by the arm's name.
        finetune: epochs of fine-tuning by the arm's name.
    """

    seeds: int
    share: float
    pretrain: dict[str, int] = field(default_factory=dict)
    finetune: dict[str, int] = field(default_factory=dict)

    def facts(self) -> dict[str, Any]:
        """As plain values."""
        return asdict(self)


def pretrain_name(arm: StudyArm, seed: int) -> str:
    """Folder of a pre-training."""
    return f"pretrain/{arm.name}-seed{seed}"


def fit_name(arm: StudyArm, seed: int, regime: Regime) -> str:
    """Folder of the fits of all folds with some of the labels."""
    return f"fit/{arm.name}-seed{seed}-{regime.folder}"


def regimes_of_arm(arm: StudyArm, regimes: Sequence[Regime]) -> tuple[Regime, ...]:
    """Labels that an arm is fitted on: its own, or those of the study."""
    return regimes_of(arm.label_fractions, arm.label_blocks) or tuple(regimes)


def all_tasks(arms: Sequence[StudyArm], *, seeds: int, regimes: Sequence[Regime]) -> list[Task]:
    """Every program of a study, in the order in which they begin as long as nothing has to be waited for.

    Pre-training comes first, of all seeds, as its measured time decides how long the arms of equal cost train; then
    fits, one seed after another, so that a study that is cut short has whole seeds.

    Args:
        arms: the arms.
        seeds: number of seeds.
        regimes: of labels.
    """
    by_name = {arm.name: arm for arm in arms}
    tasks = []
    for arm in sorted(arms, key=lambda arm: bool(arm.as_long_as)):
        if arm.pretrain is not None:
            before = _all_pretrainings(_timed_by(arm, arms), seeds) if arm.as_long_as else ()
            tasks += [Task(pretrain_name(arm, s), "pretrain", arm, s, needs=before) for s in range(seeds)]
    for seed in range(seeds):
        for arm in sorted(arms, key=lambda arm: bool(arm.as_long_as) and arm.pretrain is None):
            needs: tuple[str, ...] = ()
            if arm.pretrain is not None:
                needs = (pretrain_name(arm, seed),)
            elif arm.is_timed_fit:
                other = by_name[arm.as_long_as]
                needs = _all_pretrainings([other], seeds)
                own, others = (regimes_of_arm(of, regimes) for of in (arm, other))
                needs += tuple(
                    fit_name(other, 0, regime) for regime in others if regime in own or not {*own} & {*others}
                )
            for regime in regimes_of_arm(arm, regimes):
                tasks.append(Task(fit_name(arm, seed, regime), "fit", arm, seed, regime, needs))
    return tasks


def _all_pretrainings(arms: Sequence[StudyArm], seeds: int) -> tuple[str, ...]:
    return tuple(pretrain_name(arm, seed) for arm in arms for seed in range(seeds))


def _timed_by(arm: StudyArm, arms: Sequence[StudyArm]) -> list[StudyArm]:
    """Arms whose pre-training says how long this one may take: the one it gets the time of, and its own like.

    Without a like it is its trial, which has run.
    """
    like = own_like(arm, arms)
    return [other for other in arms if other.name == arm.as_long_as or (other == like and other != arm)]


def own_like(arm: StudyArm, arms: Sequence[StudyArm]) -> StudyArm:
    """The first arm that pre-trains in the same way for a time of its own; the arm itself if there is none."""
    return next((other for other in arms if other.pretrain == arm.pretrain and not other.as_long_as), arm)


def lengths_of(
    arms: Sequence[StudyArm], *, share: float, seeds: int, pretrain_epochs: int, finetune_epochs: int
) -> Lengths:
    """Epochs of arms with a time of their own, all alike, for a share of the longest training.

    Args:
        arms: the arms.
        share: 0 to 1; there are fewest epochs, even for 0.
        seeds: number of seeds.
        pretrain_epochs: longest pre-training.
        finetune_epochs: longest fine-tuning.
    """
    found = Lengths(seeds, share)
    for arm in arms:
        if arm.pretrain is not None and not arm.as_long_as:
            found.pretrain[arm.name] = max(min(LEAST_PRETRAIN_EPOCHS, pretrain_epochs), round(share * pretrain_epochs))
        if arm.method not in OF_TREES and (arm.pretrain is not None or not arm.as_long_as):
            found.finetune[arm.name] = max(min(LEAST_FINETUNE_EPOCHS, finetune_epochs), round(share * finetune_epochs))
    return found


def choose_lengths(
    arms: Sequence[StudyArm],
    rates: Rates,
    *,
    budget_s: float,
    jobs: int,
    seeds: int | None,
    folds: int,
    regimes: Sequence[Regime],
    pretrain_epochs: int,
    finetune_epochs: int,
) -> Lengths:
    """Fits a study into a budget: shorter training where it is too long, more seeds where time is left.

    Args:
        arms: the arms.
        rates: measured.
        budget_s: seconds.
        jobs: programs at a time.
        seeds: number of seeds; None: at least three, more where the budget allows.
        folds: number of folds.
        regimes: of labels.
        pretrain_epochs: longest pre-training.
        finetune_epochs: longest fine-tuning.

    Raises:
        ValueError: not even the shortest training fits.
    """

    def lengths(share: float, count: int) -> Lengths:
        return lengths_of(
            arms, share=share, seeds=count, pretrain_epochs=pretrain_epochs, finetune_epochs=finetune_epochs
        )

    def seconds(found: Lengths) -> float:
        tasks = all_tasks(arms, seeds=found.seeds, regimes=regimes)
        return sum(estimate(task, found, rates, arms=arms, folds=folds) for task in tasks) / jobs

    available, count = RESERVE * budget_s, seeds or LEAST_SEEDS
    if seconds(lengths(0.0, count)) > available:
        need = seconds(lengths(0.0, count)) / RESERVE
        raise ValueError(
            f"--budget {budget_s / 3600:.3g} h: {len(arms)} arms, {count} seeds, {folds} folds and "
            f"{len(regimes)} regimes of labels need {need / 3600:.3g} h even with the shortest training "
            f"({LEAST_PRETRAIN_EPOCHS} epochs of pre-training, {LEAST_FINETUNE_EPOCHS} of fine-tuning); give a larger "
            "--budget, fewer --only_arms, --label_fractions, --label_blocks or --folds"
        )
    low, high = 0.0, 1.0
    if seconds(lengths(1.0, count)) <= available:
        while seeds is None and count < MOST_SEEDS and seconds(lengths(1.0, count + 1)) <= available:
            count += 1
        return lengths(1.0, count)
    for _ in range(40):
        middle = (low + high) / 2
        low, high = (middle, high) if seconds(lengths(middle, count)) <= available else (low, middle)
    return lengths(low, count)


def estimate(task: Task, lengths: Lengths, rates: Rates, *, arms: Sequence[StudyArm], folds: int) -> float:
    """Seconds that a task will take in its job slot; fits that may end early are taken to reach their greatest length.

    Args:
        task: the task.
        lengths: as chosen; an arm of equal cost whose length is not known yet is taken to cost what it should.
        rates: measured.
        arms: all arms.
        folds: number of folds.
    """
    arm, by_name = task.arm, {arm.name: arm for arm in arms}
    if task.stage == "pretrain":
        paid = by_name[arm.as_long_as] if arm.as_long_as else arm
        return rates.start + lengths.pretrain[paid.name] * _pretrain_rate(paid, arms, rates)
    if arm.method in OF_TREES:
        return rates.start + folds * rates.trees * TIMES.get(arm.method, 1.0)
    epoch = rates.finetune + rates.validation
    if arm.is_timed_fit:
        other = by_name[arm.as_long_as]
        training = lengths.pretrain[other.name] * _pretrain_rate(other, arms, rates)
        training += lengths.finetune[other.name] * rates.finetune
        return rates.start + folds * (training * (epoch / rates.finetune) + rates.score)
    epochs = lengths.finetune[arm.name] * TIMES.get(arm.method, 1.0)
    probe = epochs * (rates.probe + rates.validation) + rates.score if arm.probe else 0.0
    return rates.start + folds * (epochs * epoch + rates.score + probe)


def _pretrain_rate(arm: StudyArm, arms: Sequence[StudyArm], rates: Rates) -> float:
    return rates.pretrain[own_like(arm, arms).name]


def equal_time_epochs(own_epochs: float, own_cost: float, cost: float) -> int:
    """Epochs for a given cost, by what another number of epochs of the same training did cost; one at least."""
    return max(1, round(own_epochs * cost / own_cost))
