"""Scores: numbers worked out by hand, agreement with scikit-learn, what is undefined, and several processes."""

import json
import math
import warnings

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics

from tests.test_distributed import run_ranks
from util.finetuning.tasks import TASKS
from util.metrics.prospectivity_curves import calibration, success_rate
from util.metrics.scores import (
    ClassificationScores,
    ProspectivityScores,
    RegressionScores,
    SegmentationScores,
    confusion_table,
    summarise,
)
from util.processes.distributed import Ranks


def segmentation(predictions, target, names="abc"):
    scores = SegmentationScores(list(names))
    scores.update(torch.as_tensor(predictions), torch.as_tensor(target))
    return scores.compute()


def prospectivity(scores, target):
    collected = ProspectivityScores()
    collected.update(torch.tensor(scores), torch.tensor(target))
    return collected.compute()


class TestSegmentation:
    def test_two_classes_by_hand(self):
        """Truth a a a b, predicted a a b b: matrix [[2, 1], [0, 1]]."""
        found = segmentation([[0, 0], [1, 1]], [[0, 0], [0, 1]], names="ab")
        assert found["confusion"] == [[2, 1], [0, 1]]
        assert found["iou"] == {"a": pytest.approx(2 / 3), "b": pytest.approx(1 / 2)}
        assert found["f1"] == {"a": pytest.approx(4 / 5), "b": pytest.approx(2 / 3)}
        assert found["recall"] == {"a": pytest.approx(2 / 3), "b": 1.0}
        assert found["mean_iou"] == pytest.approx(7 / 12)
        assert found["mean_f1"] == pytest.approx(11 / 15)
        assert found["balanced_accuracy"] == pytest.approx(5 / 6)
        assert (found["accuracy"], found["count"], found["classes"]) == (0.75, 4, 2)

    def test_three_classes_by_hand(self):
        truth = [0] * 5 + [1] * 3 + [2] * 2
        predicted = [0, 0, 0, 1, 2, 1, 1, 0, 2, 2]
        found = segmentation(predicted, truth)
        assert found["confusion"] == [[3, 1, 1], [1, 2, 0], [0, 0, 2]]
        assert found["iou"] == {"a": pytest.approx(3 / 6), "b": pytest.approx(2 / 4), "c": pytest.approx(2 / 3)}
        assert found["f1"] == {"a": pytest.approx(6 / 9), "b": pytest.approx(4 / 6), "c": pytest.approx(4 / 5)}
        assert found["balanced_accuracy"] == pytest.approx((3 / 5 + 2 / 3 + 1) / 3)
        assert found["accuracy"] == 0.7

    def test_a_class_that_does_not_occur_has_no_score_and_no_part_in_means(self):
        """'c' is predicted once, where 'b' is true: that counts against 'b' alone."""
        found = segmentation([0, 0, 1, 2], [0, 0, 1, 1])
        assert found["iou"] == {"a": 1.0, "b": 0.5, "c": None}
        assert found["f1"]["c"] is None and found["recall"]["c"] is None
        assert found["classes"] == 2
        assert found["mean_iou"] == 0.75 and found["balanced_accuracy"] == 0.75

    def test_unlabelled_pixels_change_nothing(self):
        logits = torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(0))
        target = torch.arange(32).reshape(2, 4, 4) % 4 - 1
        changed = torch.where(target[:, None] == -1, torch.tensor(float("nan")), logits)
        expected = segmentation(logits.argmax(1)[target >= 0], target[target >= 0])
        assert segmentation(logits, target) == segmentation(changed, target) == expected
        assert expected["count"] == 24

    def test_nothing_scored(self):
        found = segmentation([0, 1], [-1, -1])
        assert found["mean_iou"] is None and found["accuracy"] is None and found["count"] == 0
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert SegmentationScores(["a", "b"]).compute()["balanced_accuracy"] is None

    @given(seed=st.integers(0, 1000), kinds=st.integers(2, 6))
    @settings(max_examples=20, deadline=None)
    def test_agrees_with_scikit_learn_in_one_go_and_in_parts(self, seed, kinds):
        rng = np.random.default_rng(seed)
        truth, predicted = rng.integers(0, kinds, (2, 200))
        scores = SegmentationScores([str(k) for k in range(kinds)])
        for part in (slice(0, 3), slice(3, 120), slice(120, 200)):
            scores.update(torch.tensor(predicted[part]), torch.tensor(truth[part]))
        found = scores.compute()
        there = np.unique(truth)
        np.testing.assert_array_equal(
            found["confusion"], metrics.confusion_matrix(truth, predicted, labels=range(kinds))
        )
        options = {"labels": there, "average": "macro"}
        assert found["mean_iou"] == pytest.approx(metrics.jaccard_score(truth, predicted, **options))
        assert found["mean_f1"] == pytest.approx(metrics.f1_score(truth, predicted, **options))
        assert found["balanced_accuracy"] == pytest.approx(metrics.recall_score(truth, predicted, **options))
        scores.reset()
        assert scores.compute()["count"] == 0

    @pytest.mark.parametrize(
        ("predictions", "target", "message"),
        [
            (torch.zeros(2, 4, 5), torch.zeros(2, 5).long(), r"shape \(2, 4, 5\).*expected \(N, 3, ...\)"),
            (torch.zeros(3, 5), torch.zeros(2, 5).long(), r"shape \(3, 5\) and target of shape \(2, 5\)"),
            (torch.full((2, 3), torch.nan), torch.zeros(2).long(), "6 of 6 predictions to score are not finite"),
        ],
    )
    def test_refused(self, predictions, target, message):
        with pytest.raises(ValueError, match=message):
            segmentation(predictions, target)

    def test_table(self):
        assert confusion_table([[3, 1], [0, 2]], ["a", "b"]) == [
            ["truth \\ prediction", "a", "b"],
            ["a", "3", "1"],
            ["b", "0", "2"],
        ]


class TestClassification:
    def test_top_one_and_top_five_by_hand(self):
        """Class k of 7 has score -k, so 0..4 are the first five."""
        scores = ClassificationScores([str(k) for k in range(7)])
        ranked = -torch.arange(7.0).expand(5, 7)
        scores.update(ranked, torch.tensor([0, 4, 5, 6, -1]))
        found = scores.compute()
        assert (found["top1"], found["top5"], found["count"]) == (0.25, 0.5, 4)
        assert found["balanced_accuracy"] == 0.25
        assert "accuracy" not in found

    def test_no_top_five_among_five(self):
        scores = ClassificationScores(list("abcde"))
        scores.update(torch.eye(5), torch.arange(5))
        assert "top5" not in scores.compute() and scores.compute()["top1"] == 1
        scores.reset()
        assert scores.compute()["top1"] is None

    def test_refused(self):
        with pytest.raises(ValueError, match=r"shape \(3,\): expected \(N, 2\)"):
            ClassificationScores(["a", "b"]).update(torch.zeros(3), torch.zeros(3).long())


class TestRegression:
    def test_by_hand(self):
        scores = RegressionScores()
        scores.update(torch.tensor([[1.0, 2.0], [3.0, 9.0]]), torch.tensor([[2.0, 2.0], [5.0, float("nan")]]))
        found = scores.compute()
        assert found == {
            "rmse": pytest.approx(math.sqrt(5 / 3)),
            "mae": 1.0,
            "bias": -1.0,
            "r2": pytest.approx(1 - 5 / 6),
            "count": 3,
            "truth_mean": 3.0,
            "truth_std": pytest.approx(math.sqrt(2)),
        }

    @pytest.mark.parametrize(("offset", "unit"), [(0.0, 1.0), (5e4, 1.0), (0.0, 1e-9), (1e7, 1.0)])
    def test_parts_make_the_whole_in_any_unit(self, offset, unit):
        """Float64 values of the given offset and spread; offset squared is 1e14 times the variance in the last."""
        rng = np.random.default_rng(0)
        truth = offset + unit * rng.normal(size=1000)
        predicted = truth + 0.3 * unit * rng.normal(size=1000)
        scores = RegressionScores()
        for part in np.array_split(np.arange(1000), [1, 2, 700]):
            scores.update(torch.tensor(predicted[part]), torch.tensor(truth[part]))
        found = scores.compute()
        assert found["r2"] == pytest.approx(metrics.r2_score(truth, predicted), rel=1e-6)
        assert found["rmse"] == pytest.approx(metrics.root_mean_squared_error(truth, predicted), rel=1e-9)
        assert found["mae"] == pytest.approx(metrics.mean_absolute_error(truth, predicted), rel=1e-9)
        assert found["truth_std"] == pytest.approx(truth.std(), rel=1e-6)

    def test_many_pixels_are_counted_exactly(self):
        """Float32 sums would stop at 2^24."""
        scores = RegressionScores()
        for _ in range(5):
            scores.update(torch.ones(4_000_000), torch.zeros(4_000_000))
        assert scores.compute()["count"] == 20_000_000 and scores.compute()["bias"] == 1.0

    def test_undefined(self):
        scores = RegressionScores()
        assert set(scores.compute().values()) == {None, 0}
        scores.update(torch.tensor([0.2, 0.3, 0.4]), torch.full((3,), 0.1))
        assert scores.compute()["r2"] is None and scores.compute()["mae"] == pytest.approx(0.2)
        scores.reset()
        assert scores.compute()["rmse"] is None

    def test_refused(self):
        with pytest.raises(ValueError, match=r"shape \(2,\) and target of shape \(3,\)"):
            RegressionScores().update(torch.zeros(2), torch.zeros(3))
        with pytest.raises(ValueError, match="1 of 2 predictions to score are not finite"):
            RegressionScores().update(torch.tensor([torch.inf, 0.0]), torch.zeros(2))


class TestProspectivity:
    def test_by_hand(self):
        """Deposits at 0.9 and 0.4, others at 0.5, 0.3, 0.1: of 6 pairs one is in the wrong order."""
        found = prospectivity([0.9, 0.5, 0.4, 0.3, 0.1, 0.7], [1, 0, 1, 0, 0, -1])
        assert found["roc_auc"] == pytest.approx(5 / 6)
        assert found["average_precision"] == pytest.approx(0.5 * 1 + 0.5 * 2 / 3)
        assert found["brier"] == pytest.approx((0.01 + 0.25 + 0.36 + 0.09 + 0.01) / 5)
        assert (found["deposits"], found["count"], found["prevalence"]) == (2, 5, 0.4)
        # half of the deposits in the first fifth of the points, all in three fifths
        assert found["success_area"] == pytest.approx(0.2 * 0.25 + 0.2 * 0.5 + 0.2 * 0.75 + 0.4)
        assert found["captured"] == {
            key: pytest.approx(v) for key, v in zip(found["captured"], (0.025, 0.125, 0.25, 0.5), strict=True)
        }
        assert found["calibration"]["count"] == [1, 1, 1, 1, 1]
        assert found["calibration"]["predicted"] == pytest.approx([0.1, 0.3, 0.4, 0.5, 0.9])
        assert found["calibration"]["observed"] == [0, 0, 1, 0, 1]

    def test_equal_scores_are_a_straight_line(self):
        share, captured = success_rate(np.full(4, 0.5), np.array([1, 0, 1, 0]))
        assert share.tolist() == captured.tolist() == [0, 1]
        assert prospectivity([0.5] * 4, [1, 0, 1, 0])["roc_auc"] == 0.5

    @given(seed=st.integers(0, 1000))
    @settings(max_examples=20, deadline=None)
    def test_agrees_with_scikit_learn(self, seed):
        rng = np.random.default_rng(seed)
        logits = rng.normal(-3, 3, 2000)
        scores, target = 1 / (1 + np.exp(-logits)), (rng.uniform(size=2000) < 0.3).astype(int)
        exact = prospectivity(scores, target)
        assert exact["roc_auc"] == pytest.approx(metrics.roc_auc_score(target, scores), abs=1e-12)
        assert exact["average_precision"] == pytest.approx(metrics.average_precision_score(target, scores), abs=1e-12)
        assert exact["brier"] == pytest.approx(metrics.brier_score_loss(target, scores), abs=1e-12)

    def test_calibration_keeps_equal_scores_together(self):
        found = calibration(np.array([0.0] * 95 + [0.5] * 5), np.array([0] * 95 + [1] * 5))
        assert found == {"predicted": [0.0, 0.5], "observed": [0.0, 1.0], "count": [95.0, 5.0]}

    @pytest.mark.parametrize(("target", "count"), [([], 0), ([0, 0], 2), ([1, 1], 2)])
    def test_one_kind_alone_has_no_ranking(self, target, count):
        found = prospectivity([0.5] * len(target), target)
        assert found["roc_auc"] is None and found["average_precision"] is None and found["success_area"] is None
        assert set(found["captured"].values()) == {None} and found["success_rate"] == {"ground": [], "deposits": []}
        assert found["count"] == count and (found["brier"] is None) == (count == 0)

    def test_starts_anew(self):
        scores = ProspectivityScores()
        scores.update(torch.tensor([0.5]), torch.tensor([1]))
        scores.reset()
        assert scores.compute()["count"] == 0

    def test_refused(self):
        scores = ProspectivityScores()
        with pytest.raises(ValueError, match=r"shape \(2,\) and target of shape \(3,\)"):
            scores.update(torch.zeros(2), torch.zeros(3))
        with pytest.raises(ValueError, match="scores from -1 to 2: expected numbers from 0 to 1"):
            scores.update(torch.tensor([-1.0, 2.0]), torch.tensor([0, 1]))


class TestSummary:
    def test_means_and_spread_over_folds(self):
        folds = [
            {"mean_iou": 0.5, "iou": {"a": 0.2, "b": None}, "confusion": [[1]], "name": "x"},
            {"mean_iou": 0.7, "iou": {"a": 0.4, "b": 0.6}, "confusion": [[2]], "name": "y"},
        ]
        assert summarise(folds) == {
            "mean_iou": {"mean": pytest.approx(0.6), "std": pytest.approx(math.sqrt(0.02)), "n": 2},
            "iou": {
                "a": {"mean": pytest.approx(0.3), "std": pytest.approx(math.sqrt(0.02)), "n": 2},
                "b": {"mean": 0.6, "std": None, "n": 1},
            },
        }

    def test_nothing_defined(self):
        assert summarise([{"roc_auc": None}, {"roc_auc": float("nan")}]) == {
            "roc_auc": {"mean": None, "std": None, "n": 0}
        }
        assert summarise([]) == {}

    def test_every_score_is_plain_json_and_has_a_headline(self):
        found = {
            "segmentation": segmentation([0, 1], [0, 1]),
            "regression": RegressionScores().compute(),
            "classification": ClassificationScores(["a", "b"]).compute(),
            "prospectivity": prospectivity([0.5, 0.6], [0, 1]),
        }
        assert json.loads(json.dumps(found, allow_nan=False)) == found
        for task, key in ((name, TASKS[name].headline) for name in found):
            assert key in found[task] and key in summarise([found[task]])


# Several processes


def score_all(ranks):
    """Every score of this process's share, together with the others': first of both, then where one has nothing."""
    generator = torch.Generator().manual_seed(0)
    logits, target = torch.randn(60, 7, generator=generator), torch.randint(-1, 7, (60,), generator=generator)
    return [_score(logits[part], target[part]) for part in _shares(ranks)]


def _shares(ranks):
    if ranks.world_size == 1:
        return [slice(0, 60)] * 2
    return [(slice(0, 37), slice(37, 60))[ranks.rank], (slice(0, 60), slice(60, 60))[ranks.rank]]


def _score(logits, target):
    names = [str(k) for k in range(7)]
    collected = [SegmentationScores(names), ClassificationScores(names), RegressionScores()]
    collected += [ProspectivityScores()]
    if len(target):  # else it never updates
        shares = torch.sigmoid(logits[:, 0])
        collected[0].update(logits, target)
        collected[1].update(logits, target)
        collected[2].update(logits[:, 1] + 100, logits[:, 2] + 100)
        for scores in collected[3:]:
            scores.update(shares, target.clamp(max=1))
    return [scores.compute() for scores in collected]


def test_processes_together_score_what_one_scores_alone(tmp_path):
    alone = score_all(Ranks())[0]
    results = run_ranks(score_all, tmp_path)
    assert all(isinstance(result, list) for result in results), results
    assert results[0] == results[1]
    for shared in results[0]:
        for one, two in zip(alone, shared, strict=True):
            assert_alike(one, two)


def assert_alike(one, two):
    """The same, up to the order of float64 sums."""
    if isinstance(one, dict):
        assert one.keys() == two.keys()
        for key in one:
            assert_alike(one[key], two[key])
    else:
        assert two == (pytest.approx(one, rel=1e-12) if isinstance(one, float) else one)
