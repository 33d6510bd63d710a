"""Time to the score of trees, and how many models must share a pre-training: answers on paper."""

import csv
import dataclasses
import math

import pytest

from study.bootstrap import pool
from study.curves import Curve, write_curves
from study.readouts import break_even, break_evens, reach_times
from study.regimes import Regime
from study.report import build_report, report_text
from study.summary import ArmFacts, Group
from tests.study_runs import errors_run, study_runs
from tests.test_study_report import study_of

ARMS = [{"name": "scratch"}, {"name": "one", "against": "scratch"}, {"name": "trees", "against": "one"}]


def curve(arm, *scores, mode="full", fraction=1.0, seed=0, fold=0, seconds=40.0):
    return Curve(arm, mode, fraction, seed, fold, seconds, scores)


def test_time_to_a_score_is_that_of_the_first_epoch_that_has_it():
    one = curve("one", 0.1, math.nan, 0.5, 0.4)
    assert [one.seconds_to(score) for score in (0.1, 0.2, 0.5, 0.6)] == [10.0, 30.0, 30.0, math.inf]


def groups_of(*runs):
    found = {}
    for run in runs:
        found.setdefault((run.arm, run.mode, run.regime), []).append(run)
    return [
        Group(
            *key, tuple(of), {seed: pool([run for run in of if run.seed == seed]) for seed in {run.seed for run in of}}
        )
        for key, of in found.items()
    ]


def test_the_median_time_counts_fits_that_never_reach_the_trees():
    folds = range(3)
    runs = [errors_run("one", [1.0], fold=k, blocks=[k], pretrain_s=100.0, finetune_s=40.0) for k in folds]
    runs += [errors_run("trees", [1.0], mode="trees", fold=k, blocks=[k]) for k in folds]
    arms, groups = [ArmFacts("one"), ArmFacts("told", "leak"), ArmFacts("trees")], groups_of(*runs)
    trees = [curve("trees", score, mode="trees", fold=k) for k, score in enumerate((0.2, 0.3, 0.9))]
    fits = [curve("one", 0.1, 0.2, 0.3, 0.3, fold=k) for k in folds]  # after 20 s, 30 s and never
    found = reach_times(arms, groups, [*trees, *fits])[("one", "full", Regime())]
    assert dataclasses.astuple(found) == ("trees", 3, 2, 130.0, 30.0)
    only_two = reach_times(arms, groups, [*trees[1:], *fits])[("one", "full", Regime())]
    assert (only_two.fits, only_two.reached, only_two.seconds) == (2, 1, math.inf)
    assert reach_times(arms, groups, fits) == reach_times(arms, groups, []) == {}
    undefined = [dataclasses.replace(of, scores=(math.nan,)) for of in trees]
    assert reach_times(arms, groups, [*undefined, *fits]) == {}


def test_twins_of_the_control_meet_the_trees_of_their_seed():
    arms = [ArmFacts("one"), ArmFacts("again", "null", "one"), ArmFacts("trees")]
    groups = groups_of(
        errors_run("again", [1.0], seed=1001),
        *(errors_run("trees", [1.0], mode="trees", seed=seed) for seed in (0, 1)),
    )
    trees = [curve("trees", score, mode="trees", seed=seed) for seed, score in enumerate((0.9, 0.2))]
    found = reach_times(arms, groups, [*trees, curve("again", 0.1, 0.2, seed=1001)])
    assert found[("again", "full", Regime())].seconds == 40.0 and found[("again", "full", Regime())].reached == 1


@pytest.mark.parametrize(
    ("scratch", "expected"),
    [
        ({}, None),
        # 100 / n + 20 < 45: n = 4 gives 45, not less; 5 gives 40
        ({"long": (45.0, 0.5)}, ("from", 5, "long")),
        ({"short": (30.0, 0.4), "mid": (70.0, 0.6), "long": (120.0, 0.7)}, ("from", 3, "mid")),  # 100 / n < 50
        ({"long": (120.0, 0.5)}, ("from", 2, "long")),  # trained as long as both: two models pay
        ({"short": (20.0, 0.5), "long": (120.0, 0.9)}, ("never", None, "short")),
        ({"short": (25.0, 0.5)}, ("never", None, "short")),  # the same time, give or take 25 %
        ({"short": (25.0, 0.4)}, ("unknown", None, "short")),
        ({"short": (20.0, 0.4), "long": (120.0, 0.4)}, ("at most", 2, "long")),
        ({"long": (220.0, 0.4)}, ("at most", 1, "long")),  # one model is cheaper already
        ({"short": (20.0, 0.4)}, ("unknown", None, "short")),
    ],
)
def test_how_many_models_must_share_a_pretraining(scratch, expected):
    found = break_even(0.5, pretrain_s=100.0, finetune_s=20.0, scratch=scratch)
    assert found is None if expected is None else (found.word, found.models, found.twin) == expected


def test_of_errors_the_lower_is_the_better():
    costs = {"pretrain_s": 100.0, "finetune_s": 20.0}
    groups = groups_of(
        errors_run("one", [2.0], **costs),
        errors_run("again", [2.0], **costs),
        errors_run("worse", [3.0], finetune_s=30.0),
        errors_run("better", [1.0], pretrain_s=0.0, finetune_s=45.0),
        errors_run("few", [1.0], fraction=0.1, finetune_s=1.0),
        errors_run("trees", [0.1], mode="trees", finetune_s=1.0),
    )
    arms = [ArmFacts(of.arm, "null" if of.arm == "again" else "") for of in groups]
    found = break_evens(arms, groups)
    assert list(found) == [("one", "full", Regime())]
    assert (found["one", "full", Regime()].word, found["one", "full", Regime()].models) == ("from", 5)


def test_arms_tested_on_other_blocks_do_not_share_a_break_even():
    # an extension that ran out of time: fold 1, of easier ground, is there for training from scratch alone
    costs = {"pretrain_s": 100.0, "finetune_s": 20.0}
    first = [errors_run("one", [2.0, 2.0], **costs), errors_run("scratch", [3.0, 3.0], finetune_s=45.0)]
    more = errors_run("scratch", [0.1, 0.1], finetune_s=45.0, fold=1, blocks=[2, 3])
    arms = [ArmFacts("one"), ArmFacts("scratch")]
    assert break_evens(arms, groups_of(*first))["one", "full", Regime()].word == "at most"
    assert break_evens(arms, groups_of(*first, more)) == {}


def test_report_and_results_have_both(tmp_path):
    costs = {"pretrain_s": 100.0, "finetune_s": 20.0}
    runs = study_runs({"one": 0.7}, **costs) + study_runs({"scratch": 0.5}, finetune_s=45.0)
    runs += study_runs({"trees": 0.6}, mode="trees", finetune_s=1.0)
    text = report_text(study_of(tmp_path, runs, arms=ARMS))
    assert "Not available: fits were not validated" in text and "`--patience` validates them" in text
    row = "| one | all | 100 + 20 | scratch, 45 s, which does not reach its score | 5 at most |"
    assert row in text
    at = [(seed, fold) for seed in range(3) for fold in range(2)]
    curves = [curve(arm, 0.1, 0.3, 0.2, 0.2, seed=s, fold=k) for arm in ("scratch", "one") for s, k in at]
    curves += [curve("trees", 0.2, mode="trees", seed=s, fold=k) for s, k in at]
    write_curves(tmp_path / "curves.csv", curves)
    text = build_report(tmp_path / "results.csv", {"arms": ARMS}, tmp_path / "out", draws=100).read_text()
    assert "| scratch | full | all | 6 of 6 | 20 | 20 |" in text and "| one | full | all | 6 of 6 | 120 | 20 |" in text
    assert "at least that of `trees` of the same seed and fold" in text and row in text
    assert "| trees | trees | all | 6 | 1 |" not in text  # trees have no length
    with open(tmp_path / "out" / "readouts.csv", newline="") as file:
        scratch, one = csv.DictReader(file)
    assert (scratch["reach_s"], scratch["break_even"], one["reach_s"]) == ("20", "", "120")
    assert (one["break_even"], one["models"], one["twin"], one["best_epoch"]) == ("at most", "5", "scratch", "2")
    write_curves(tmp_path / "curves.csv", [of for of in curves if of.arm != "trees"])
    assert "no trees with the same labels" in report_text(study_of(tmp_path, runs, arms=ARMS))
