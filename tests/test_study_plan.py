"""Plan of a study: which tasks, what they wait for, how long they train and take, worked out by hand."""

import dataclasses
from pathlib import Path

import pytest

from study.arms import StudyArm
from study.commands import Settings, fit_command
from study.plan import (
    LEAST_FINETUNE_EPOCHS,
    LEAST_PRETRAIN_EPOCHS,
    PROBE_SHARE,
    Lengths,
    Rates,
    Task,
    all_tasks,
    choose_lengths,
    equal_time_epochs,
    estimate,
    lengths_of,
)
from study.regimes import regimes_of

SCRATCH = StudyArm("scratch")
ONE = StudyArm("one", pretrain=("--scales", "1"), probe=True)
MULTI = StudyArm("multi", pretrain=("--scales", "1", "2"))
ONE_LONG = StudyArm("one_long", pretrain=("--scales", "1"), as_long_as="multi")
SCRATCH_LONG = StudyArm("scratch_long", as_long_as="multi")
TREES = StudyArm("trees", method="trees", label_fractions=(1.0,))
ARMS = [SCRATCH_LONG, SCRATCH, ONE_LONG, ONE, MULTI, TREES]
REGIMES = regimes_of([0.1, 1.0], [])
RATES = Rates(
    pretrain={"one": 10.0, "multi": 15.0}, finetune=4.0, probe=4.0 * PROBE_SHARE, score=2.0, trees=6.0, start=5.0
)
OPTIONS = {"jobs": 1, "folds": 2, "regimes": REGIMES, "pretrain_epochs": 20, "finetune_epochs": 10}


def tasks(seeds=2):
    return all_tasks(ARMS, seeds=seeds, regimes=REGIMES)


def test_every_arm_seed_and_share_once():
    found = [task.name for task in tasks()]
    assert len(set(found)) == len(found)
    assert sum(name.startswith("pretrain/") for name in found) == 3 * 2  # those with pre-training
    assert sum(name.startswith("fit/") for name in found) == (5 * 2 + 1) * 2  # trees on one share alone


def test_nothing_waits_for_what_comes_later_in_a_seed_or_for_itself():
    found = tasks()
    place = {task.name: number for number, task in enumerate(found)}
    for task in found:
        assert all(place[need] < place[task.name] for need in task.needs), task.name


def test_equal_time_waits_for_what_it_is_measured_by():
    needs = {task.name: set(task.needs) for task in tasks()}
    both = {f"pretrain/{arm}-seed{seed}" for arm in ("one", "multi") for seed in (0, 1)}
    assert needs["pretrain/one_long-seed1"] == both
    alone = StudyArm("alone", pretrain=("--scales", "4"), as_long_as="multi")
    found = all_tasks([*ARMS, alone], seeds=2, regimes=REGIMES)
    assert next(set(of.needs) for of in found if of.name == "pretrain/alone-seed0") == {
        "pretrain/multi-seed0",
        "pretrain/multi-seed1",
    }
    assert needs["fit/one_long-seed1-labels0.1"] == {"pretrain/one_long-seed1"}
    assert needs["fit/scratch_long-seed0-labels1"] == {
        "pretrain/multi-seed0",
        "pretrain/multi-seed1",
        "fit/multi-seed0-labels0.1",
        "fit/multi-seed0-labels1",
    }


@pytest.mark.parametrize(("fractions", "expected"), [((1.0,), ["labels1"]), ((0.5,), ["labels0.1", "labels1"])])
def test_equal_time_is_measured_by_fits_on_the_same_labels_where_there_are_any(fractions, expected):
    timed = dataclasses.replace(SCRATCH_LONG, label_fractions=fractions)
    found = all_tasks([timed, MULTI], seeds=1, regimes=REGIMES)
    assert [of for of in found[-1].needs if of.startswith("fit/")] == [f"fit/multi-seed0-{name}" for name in expected]


def test_estimates_by_hand():
    lengths = Lengths(
        2, 1.0, pretrain={"one": 20, "multi": 20}, finetune=dict.fromkeys(("scratch", "one", "multi", "one_long"), 10)
    )
    seconds = {task.name: estimate(task, lengths, RATES, arms=ARMS, folds=2) for task in tasks()}
    assert seconds["pretrain/one-seed0"] == 5 + 20 * 10
    assert seconds["pretrain/one_long-seed0"] == seconds["pretrain/multi-seed0"] == 5 + 20 * 15
    assert seconds["fit/scratch-seed0-labels1"] == 5 + 2 * (10 * 4 + 2)
    assert seconds["fit/one-seed0-labels1"] == pytest.approx(5 + 2 * (10 * 4 + 2 + 10 * 1.6 + 2))
    assert seconds["fit/scratch_long-seed0-labels1"] == 5 + 2 * (20 * 15 + 10 * 4 + 2)
    assert seconds["fit/trees-seed0-labels1"] == 5 + 2 * 6


def test_baselines_are_fitted_alone_and_take_longer_than_trees():
    rcf, unet = StudyArm("stones", method="rcf"), StudyArm("net", method="unet")
    both = StudyArm("both", method="trees+embeddings", pretrain=("--scales", "1"))
    found = lengths_of([rcf, unet, both], share=1.0, seeds=1, pretrain_epochs=20, finetune_epochs=10)
    assert (found.pretrain, found.finetune) == ({"both": 20}, {"net": 10})
    options = {"lengths": found, "rates": RATES, "arms": [rcf, unet, both], "folds": 2}
    seconds = {arm.name: estimate(Task(f"fit/{arm.name}", "fit", arm, 0), **options) for arm in (rcf, unet, both)}
    assert seconds == {"stones": 5 + 2 * 6 * 4, "net": 5 + 2 * (16 * 10 * 4 + 2), "both": 5 + 2 * 6 * 3}
    settings = Settings(data=("--train_path", "layers.csv"), labels=("--labels", "a.tif"))
    task = Task("fit/both-seed0", "fit", both, 0, needs=("pretrain/both-seed0",))
    command = " ".join(fit_command(task, settings, folder=Path("study"), epochs=1))
    assert "--finetune study/pretrain/both-seed0/" in command and "--baselines trees+embeddings --no_network" in command


def flags_of(arm, *, patience, epochs):
    settings = Settings(data=("--train_path", "layers.csv"), labels=("--labels", "a.tif"), patience=patience)
    task = Task(f"fit/{arm.name}-seed0", "fit", arm, 0, needs=("pretrain/one-seed0",))
    command = fit_command(task, settings, folder=Path("study"), epochs=epochs)
    return [command[command.index(flag) + 1] for flag in ("--epochs", "--warmup_epochs", "--patience")]


def test_fits_end_early_but_for_those_that_get_the_time_of_another_arm():
    assert flags_of(SCRATCH, patience=0, epochs=40) == ["40", "4", "0"]
    assert flags_of(SCRATCH, patience=20, epochs=90) == flags_of(ONE_LONG, patience=20, epochs=90) == ["90", "2", "20"]
    # validated like the others, but it cannot wait for longer than it lasts
    assert flags_of(SCRATCH_LONG, patience=20, epochs=90) == ["90", "2", "90"]
    assert flags_of(SCRATCH_LONG, patience=20, epochs=5) == ["5", "0.5", "5"]


def test_validation_is_estimated_for_every_epoch_of_the_greatest_length():
    rates = dataclasses.replace(RATES, validation=3.0)
    lengths = Lengths(2, 1.0, {"one": 20, "multi": 20}, dict.fromkeys(("scratch", "one", "multi", "one_long"), 10))
    seconds = {task.name: estimate(task, lengths, rates, arms=ARMS, folds=2) for task in tasks()}
    assert seconds["fit/scratch-seed0-labels1"] == 5 + 2 * (10 * (4 + 3) + 2)
    assert seconds["fit/one-seed0-labels1"] == pytest.approx(5 + 2 * (10 * (4 + 3) + 2 + 10 * (1.6 + 3) + 2))
    # 20 x 15 + 10 x 4 = 340 s of training are 85 epochs of 4 s
    assert seconds["fit/scratch_long-seed0-labels1"] == 5 + 2 * (85 * (4 + 3) + 2)
    assert seconds["pretrain/multi-seed0"] == 5 + 20 * 15


def total(lengths):
    found = all_tasks(ARMS, seeds=lengths.seeds, regimes=REGIMES)
    return sum(estimate(task, lengths, RATES, arms=ARMS, folds=2) for task in found)


def test_a_small_budget_shortens_training():
    lengths = choose_lengths(ARMS, RATES, budget_s=3600, seeds=None, **OPTIONS)
    assert lengths.seeds == 3 and 0 < lengths.share < 1
    assert LEAST_PRETRAIN_EPOCHS <= lengths.pretrain["multi"] < 20
    assert set(lengths.pretrain) == {"one", "multi"} and set(lengths.finetune) == {
        "scratch",
        "one",
        "multi",
        "one_long",
    }
    assert 0.75 * 3600 < total(lengths) <= 0.9 * 3600
    more = choose_lengths(ARMS, RATES, budget_s=3600, seeds=None, **(OPTIONS | {"jobs": 2}))
    assert more.share > lengths.share


def test_a_large_budget_buys_seeds():
    lengths = choose_lengths(ARMS, RATES, budget_s=20000, seeds=None, **OPTIONS)
    assert lengths.share == 1 and lengths.seeds > 3
    assert total(lengths) <= 0.9 * 20000
    assert choose_lengths(ARMS, RATES, budget_s=20000, seeds=4, **OPTIONS).seeds == 4


def test_a_budget_for_nothing_is_refused():
    with pytest.raises(
        ValueError, match=r"--budget 0.0278 h: 6 arms, 3 seeds, 2 folds and 2 regimes of labels need .* h even"
    ) as e:
        choose_lengths(ARMS, RATES, budget_s=100, seeds=None, **OPTIONS)
    shortest = Lengths(
        3,
        0.0,
        dict.fromkeys(("one", "multi"), LEAST_PRETRAIN_EPOCHS),
        dict.fromkeys(("scratch", "one", "multi", "one_long"), LEAST_FINETUNE_EPOCHS),
    )
    assert f"need {total(shortest) / 0.9 / 3600:.3g} h" in str(e.value)


def test_epochs_of_equal_time():
    assert equal_time_epochs(10, 50.0, 75.0) == 15
    assert equal_time_epochs(10, 50.0, 1.0) == 1
