"""Pooled scores and differences with intervals, with answers on paper."""

import dataclasses
import math

import numpy as np
import pytest
import torch
from sklearn.metrics import balanced_accuracy_score, roc_auc_score

from study.bootstrap import compare, pool, student
from study.results import Run
from study.verdict import advise
from tests.study_runs import classes_run, errors_run
from util.metrics.scores import SegmentationScores


def by_seed(runs):
    return {run.seed: pool([run]) for run in runs}


def test_mean_iou_of_two_blocks_on_paper():
    # block 0: class 0 has 6 of 8 right, class 1 has 1 of 2; block 1: class 0 has 2 of 2, class 1 does not occur
    sums = {
        "hits": np.array([[6, 1], [2, 0]]),
        "predicted": np.array([[7, 3], [2, 0]]),
        "labelled": np.array([[8, 2], [2, 0]]),
    }
    pooled = pool([Run("a", "full", 1.0, 0, 0, "mean_iou", 0.0, np.array([3, 1]), **sums)])
    assert pooled.blocks.tolist() == [1, 3]
    # pooled: class 0 8 / (10 + 9 - 8) = 8/11, class 1 1 / (2 + 3 - 1) = 1/4; block 1 alone: 1; block 3 alone: 6/9, 1/4
    weights = np.array([[1, 1], [1, 0], [0, 2], [0, 0]])
    expected = [(8 / 11 + 1 / 4) / 2, 1.0, (6 / 9 + 1 / 4) / 2, math.nan]
    np.testing.assert_allclose(pooled.scores(weights), expected)


def test_pooled_blocks_score_as_the_program_does():
    generator = torch.Generator().manual_seed(1)
    truth = torch.randint(0, 4, (6, 8, 8), generator=generator)
    guess = torch.where(torch.rand(truth.shape, generator=generator) < 0.6, truth, (truth + 1) % 5)
    truth[truth == 3] = -1  # not scored, so that class 3 and 4 do not occur in truth but are predicted
    program = SegmentationScores(["a", "b", "c", "d", "e"])
    program.update(guess, truth)
    scored = truth >= 0
    sums = {"hits": scored & (guess == truth), "predicted": scored, "labelled": scored}
    of = {"hits": truth, "predicted": guess, "labelled": truth}
    blocks = {
        name: np.array([np.bincount(of[name][b][here[b]].numpy(), minlength=5) for b in range(6)])
        for name, here in sums.items()
    }
    run = Run("a", "full", 1.0, 0, 0, "mean_iou", 0.0, np.arange(6), **blocks)
    assert pool([run]).score() == pytest.approx(program.compute()["mean_iou"], abs=1e-12)


def test_rmse_weighs_pixels():
    errors = np.array([[1, 4.0, 2, 0, 0], [3, 0.0, 0, 0, 0]])
    pooled = pool([Run("a", "full", 1.0, 0, 0, "rmse", 0.0, np.arange(2), errors=errors)])
    np.testing.assert_allclose(pooled.scores(np.array([[1, 1], [2, 0], [1, 3]])), [1.0, 2.0, math.sqrt(0.4)])


def windows_run(metric, generator, values):
    truth = tuple(generator.integers(0, 2, count) for count in (5, 0, 9, 4))
    shares = tuple(generator.choice(values, len(of)).astype(float) for of in truth)
    blocks = np.array([8, 2, 5, 3])
    return Run("a", "full", 1.0, 0, 0, metric, 0.0, blocks, truth=truth, shares=shares)


@pytest.mark.parametrize(
    ("metric", "values", "reference"),
    [
        ("roc_auc", np.linspace(0, 1, 6), roc_auc_score),  # few values: many ties
        ("balanced_accuracy", np.arange(3), balanced_accuracy_score),
    ],
)
@pytest.mark.filterwarnings("ignore:y_pred contains classes")
def test_weighted_windows_are_windows_repeated(metric, values, reference):
    run = windows_run(metric, np.random.default_rng(0), values)
    weights = np.array([[1, 1, 1, 1], [3, 0, 1, 2], [0, 2, 2, 0]])
    order = np.argsort(run.blocks)
    expected = []
    for times in weights:
        repeated = [place for place, count in zip(order, times, strict=True) for _ in range(count)]
        truth, shares = (np.concatenate([of[place] for place in repeated]) for of in (run.truth, run.shares))
        expected.append(reference(truth, shares))
    np.testing.assert_allclose(pool([run]).scores(weights), expected, rtol=1e-12)


def test_auc_without_deposits_is_not_defined():
    run = Run("a", "full", 1.0, 0, 0, "roc_auc", math.nan, np.array([0]), truth=(np.zeros(3),), shares=(np.ones(3),))
    assert math.isnan(pool([run]).score())


def test_identical_arms_differ_by_nothing():
    runs = [classes_run("a", np.random.default_rng(seed).random(9), seed=seed) for seed in range(3)]
    found = compare(by_seed(runs), by_seed(runs))
    assert (found.estimate, found.low, found.high, found.word) == (0, 0, 0, "undecided")
    assert advise(found, seed_s=10).by == "nothing"


def test_better_in_every_block_is_better_and_the_other_way_round_worse():
    base = np.linspace(0.3, 0.6, 12)
    generator = np.random.default_rng(0)
    one = [classes_run("a", base + 0.1 + generator.normal(0, 0.01, 12), seed=seed) for seed in range(3)]
    two = [classes_run("b", base + generator.normal(0, 0.01, 12), seed=seed) for seed in range(3)]
    found, turned = compare(by_seed(one), by_seed(two)), compare(by_seed(two), by_seed(one))
    assert found.word == "better" and 0 < found.low < found.estimate < found.high
    assert turned.word == "worse" and turned.estimate == -found.estimate
    assert advise(found, seed_s=10) is None
    assert (found.seeds, found.blocks, len(found.per_seed)) == (3, 12, 3)


def test_a_lower_rmse_is_better():
    one = [errors_run("a", [1.0, 1.1, 0.9, 1.0, 1.05], seed=seed) for seed in range(3)]
    two = [errors_run("b", [2.0, 2.1, 1.9, 2.2, 2.05], seed=seed) for seed in range(3)]
    found = compare(by_seed(one), by_seed(two))
    assert found.word == "better" and found.estimate == pytest.approx(
        math.sqrt(np.mean(np.square([2, 2.1, 1.9, 2.2, 2.05]))) - math.sqrt(np.mean(np.square([1, 1.1, 0.9, 1, 1.05])))
    )


def difference_of_noise(seed, *, blocks, seeds, ground, chance):
    """Two arms that do not differ on average: RMSE near 1, noise of blocks that lasts over seeds, noise of seeds."""
    generator = np.random.default_rng(seed)
    lasting = generator.normal(0, ground, blocks)

    def arm(of_blocks):
        return [
            errors_run("a", 1 + of_blocks + generator.normal(0, chance) + generator.normal(0, 0.01, blocks), seed=s)
            for s in range(seeds)
        ]

    return compare(by_seed(arm(0 * lasting)), by_seed(arm(lasting)), draws=200, seed=seed)


@pytest.mark.parametrize(("ground", "chance"), [(0.05, 0.0), (0.0, 0.05), (0.04, 0.02)])
def test_the_interval_holds_zero_in_95_of_100(ground, chance):
    # 200 studies: 95 % give or take three standard deviations (1.5 % each) of a count, and the bootstrap's roughness
    found = [difference_of_noise(seed, blocks=16, seeds=3, ground=ground, chance=chance) for seed in range(200)]
    inside = np.mean([of.low <= 0 <= of.high for of in found])
    assert 0.89 <= inside <= 0.995
    share = np.nanmedian([of.block_share for of in found])
    assert share > 0.8 if not chance else share < 0.3 if not ground else 0.2 < share < 0.8


def test_variances_of_blocks_and_seeds_on_paper():
    # equal errors in all blocks: only seeds differ, by 0, 1 and 2 from an arm that is always 3
    one = [errors_run("a", np.full(6, 3.0 - seed), seed=seed) for seed in range(3)]
    two = [errors_run("b", np.full(6, 3.0), seed=seed) for seed in range(3)]
    found = compare(by_seed(one), by_seed(two))
    assert found.estimate == 1 and found.per_seed == (0, 1, 2)
    assert found.var_seeds == pytest.approx(1) and found.var_blocks == pytest.approx(0, abs=1e-20)
    assert found.block_share == pytest.approx(0, abs=1e-9)
    # draws of two seeds of three: means from 0 to 2; widened by t with 2 degrees of freedom, 4.303, over 1.960
    assert found.low == pytest.approx(1 - 4.303 / 1.960, abs=1e-3) and found.word == "undecided"


def test_students_t_has_the_degrees_of_freedom_of_the_larger_part():
    assert student(1.0, 0.0, blocks=11, seeds=3) == pytest.approx(2.228, abs=1e-3)
    assert student(0.0, 1.0, blocks=11, seeds=3) == pytest.approx(4.303, abs=1e-3)
    assert student(1.0, math.nan, blocks=11, seeds=1) == pytest.approx(2.228, abs=1e-3)
    assert student(0.0, 0.0, blocks=11, seeds=3) == pytest.approx(1.960, abs=1e-3)


def test_seeds_pair_by_value_a_control_s_by_value_plus_offset():
    one = [errors_run("a", np.full(4, 2.0 + seed), seed=seed) for seed in (0, 1, 2)]
    two = [errors_run("b", np.full(4, 2.0 + seed), seed=seed) for seed in (1, 2, 3)]
    twin = [errors_run("b", np.full(4, 1.0 + seed), seed=seed + 1000) for seed in (0, 1, 2)]
    found = compare(by_seed(one), by_seed(two))
    assert found.per_seed == (0, 0) and "on 2 of 4 seeds and 4 of 4 blocks" in found.notes[0]  # seeds 1 and 2 of both
    assert compare(by_seed(twin), by_seed(one), offset=1000).per_seed == (1, 1, 1)
    found = compare(by_seed(twin[1:]), by_seed(one), offset=1000)  # by order, 1001 would meet 0
    assert found.per_seed == (1, 1) and "on 2 of 3 seeds" in found.notes[0]
    by_order = compare(by_seed(one), by_seed(twin))
    assert by_order.per_seed == (-1, -1, -1) and by_order.notes == ("no seed in common: paired by order",)


def test_only_common_blocks_and_seeds_count_and_the_difference_says_so():
    one = [errors_run("a", np.full(6, 1.0), seed=seed) for seed in range(3)]
    two = [errors_run("b", [2, 2, 2, 2, 9, 9], seed=seed) for seed in range(2)]
    two.append(errors_run("b", [2.0], seed=2))
    for run in (0, 1):
        two[run] = dataclasses.replace(two[run], blocks=np.array([0, 1, 2, 3, 10, 11]))
    found = compare(by_seed(one), by_seed(two))
    assert (found.seeds, found.blocks, found.estimate) == (2, 4, 1)
    assert "on 2 of 3 seeds and 4 of 8 blocks" in found.notes[0]
    nothing = compare(by_seed(one), by_seed([errors_run("b", [1.0], blocks=[99])]))
    assert math.isnan(nothing.estimate) and nothing.word == "undecided" and "no block, in common" in nothing.notes[0]


def test_a_single_seed_or_block_decides_nothing():
    one, two = errors_run("a", [1.0, 1.1, 1.2]), errors_run("b", [5.0, 5.1, 5.2])
    alone = compare(by_seed([one]), by_seed([two]))
    assert alone.low > 0 and alone.word == "undecided" and "a single seed" in alone.notes[0]
    seeds = range(3)
    block = compare(
        by_seed([errors_run("a", [1.0], seed=seed) for seed in seeds]),
        by_seed([errors_run("b", [5.0], seed=seed) for seed in seeds]),
    )
    assert math.isnan(block.low) and block.word == "undecided" and "a single block" in block.notes[0]
    assert advise(alone, seed_s=1).by == advise(block, seed_s=1).by == "more"


def test_two_seeds_decide_nothing():
    # the same large difference in all blocks: the interval leaves zero out, but that of two seeds does so too often
    one, two = (
        [errors_run(name, np.linspace(low, low + 0.1, 8), seed=seed) for seed in range(3)]
        for name, low in (("a", 1.0), ("b", 5.0))
    )
    found = compare(by_seed(one[:2]), by_seed(two[:2]))
    assert found.low > 0 and found.word == "undecided" and not found.can_decide
    assert found.notes == ("two seeds: fewer than 3 seeds decide nothing, whatever the interval",)
    assert advise(found, seed_s=1).by == "more"
    assert compare(by_seed(one), by_seed(two)).word == "better"


def test_three_seeds_on_fewer_blocks_are_kept_before_two_on_more():
    one = [errors_run("a", np.linspace(1, 2, 12), seed=seed) for seed in range(3)]
    two = [errors_run("b", np.linspace(3, 4, 12), seed=seed) for seed in range(2)]
    found = compare(by_seed(one), by_seed([*two, errors_run("b", np.linspace(3, 4, 6), seed=2)]))
    assert (found.seeds, found.blocks, found.word) == (3, 6, "better")


def test_other_truth_is_noted():
    one, two = errors_run("a", [1.0, 1.1]), errors_run("b", [2.0, 2.2])
    other = dataclasses.replace(two, errors=two.errors * 2)
    assert not any("same pixels" in note for note in compare(by_seed([one]), by_seed([two])).notes)
    assert any("same pixels" in note for note in compare(by_seed([one]), by_seed([other])).notes)


def test_draws_without_a_score_are_counted():
    truth = (np.array([1]), np.array([0]), np.array([0]))
    runs = [
        Run("a", "full", 1.0, seed, 0, "roc_auc", 0.5, np.arange(3), truth=truth, shares=(np.ones(1),) * 3)
        for seed in range(3)
    ]
    found = compare(by_seed(runs), by_seed(runs), draws=300)
    # two blocks of three are drawn: a deposit and background with probability 2 * 1/3 * 2/3
    assert found.notes and "of 300 draws had no score" in found.notes[0]
    assert int(found.notes[0].split()[0]) == pytest.approx(300 * 5 / 9, abs=40)


def test_draws_depend_on_the_seed_alone():
    found = [difference_of_noise(3, blocks=10, seeds=3, ground=0.05, chance=0.05) for _ in range(2)]
    assert found[0] == found[1] or (found[0].low, found[0].high) == (found[1].low, found[1].high)


def test_mixed_metrics_and_classes_are_refused():
    with pytest.raises(ValueError, match="metrics mean_iou, rmse, expected one"):
        pool([classes_run("a", [0.5]), errors_run("a", [1.0], fold=1, blocks=[1])])
    three = np.zeros((1, 3), dtype=np.int64)
    wide = Run("a", "full", 1.0, 0, 1, "mean_iou", 0.0, np.array([1]), hits=three, predicted=three, labelled=three)
    with pytest.raises(ValueError, match=r"folds with \[2, 3\] classes, expected one number"):
        pool([classes_run("a", [0.5]), wide])
