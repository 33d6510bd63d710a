"""Trees behind one door: shares of all classes, unknown features, seeds, few and many samples."""

import numpy as np
import pytest

from util.finetuning.trees import KINDS, Trees


def squares(count=600, seed=0):
    """Features in [0, 1]^3, of which the first two make a chequerboard of 2 x 2; a tenth is unknown in the third."""
    rng = np.random.default_rng(seed)
    features = rng.random((count, 3)).astype(np.float32)
    features[rng.random(count) < 0.1, 2] = np.nan
    return features, (features[:, 0] > 0.5).astype(np.int64) ^ (features[:, 1] > 0.5)


@pytest.mark.parametrize("kind", KINDS)
class TestKinds:
    def test_classes(self, kind):
        features, classes = squares()
        shares = Trees(kind, classes=2).fit(features, classes).predict(squares(seed=1)[0])
        assert shares.dtype == np.float32 and np.allclose(shares.sum(axis=1), 1, atol=1e-5)
        assert (shares.argmax(axis=1) == squares(seed=1)[1]).mean() > 0.9

    def test_classes_that_no_sample_has_get_nothing(self, kind):
        features, classes = squares()
        trees = Trees(kind, classes=6).fit(features, np.array([4, 1])[classes])
        shares = trees.predict(features)
        assert shares.shape == (600, 6) and not shares[:, [0, 2, 3, 5]].any()
        assert (shares.argmax(axis=1) == np.array([4, 1])[classes]).mean() > 0.9

    def test_values(self, kind):
        features, _ = squares()
        values = 3 * features[:, 0] + 100
        predicted = Trees(kind, classes=None).fit(features, values).predict(features)
        assert predicted.shape == (600,) and predicted.dtype == np.float32
        assert np.abs(predicted - values).mean() < 0.25  # of a range of 3

    def test_unlabelled_samples_change_nothing(self, kind):
        features, classes = squares()
        extra = np.full((50, 3), 7.0, np.float32)
        for targets, unlabelled, count in ((classes, -1, 2), (features[:, 0], np.nan, None)):
            plain = Trees(kind, classes=count, threads=1).fit(features, targets).predict(features)
            more = Trees(kind, classes=count, threads=1).fit(
                np.concatenate([features, extra]), np.concatenate([targets, np.full(50, unlabelled)])
            )
            assert np.array_equal(more.predict(features), plain) and more.samples == 600

    def test_features_unknown_in_training_in_use_and_always(self, kind):
        features, classes = squares()
        features[:, 2] = np.nan
        trees = Trees(kind, classes=2).fit(features, classes)
        assert (trees.predict(features).argmax(axis=1) == classes).mean() > 0.9
        assert np.isfinite(trees.predict(np.full((2, 3), np.nan, np.float32))).all()
        known = np.nan_to_num(features)
        assert np.isfinite(Trees(kind, classes=2).fit(known, classes).predict(features)).all()

    def test_unknown_may_be_what_tells(self, kind):
        features, _ = squares()
        unknown = np.isnan(features[:, 2]).astype(np.int64)
        shares = Trees(kind, classes=2, balanced=True).fit(features, unknown).predict(features)
        assert (shares.argmax(axis=1) == unknown).all()

    def test_the_seed_decides(self, kind):
        features, classes = squares()
        one, same, other = (
            Trees(kind, classes=2, seed=seed, max_samples=200, threads=1).fit(features, classes).predict(features)
            for seed in (3, 3, 4)
        )
        assert np.array_equal(one, same) and not np.array_equal(one, other)

    def test_one_class_alone_is_what_is_predicted(self, kind, caplog):
        trees = Trees(kind, classes=3).fit(squares()[0], np.full(600, 2))
        assert trees.predict(squares()[0][:2]).tolist() == [[0, 0, 1]] * 2
        assert "class 2 alone among 600 samples" in caplog.text

    def test_a_handful_of_samples(self, kind):
        features = np.array([[0.0], [1.0], [2.0], [3.0], [4.0], [5.0]], np.float32)
        trees = Trees(kind, classes=2).fit(features, np.array([0, 0, 0, 1, 1, 1]))
        assert trees.predict(features).argmax(axis=1).tolist() == [0, 0, 0, 1, 1, 1]

    def test_weights_favour_the_rare_class(self, kind):
        rng = np.random.default_rng(0)
        features, rare = rng.random((1000, 1)).astype(np.float32), rng.random(1000) < 0.05
        plain, balanced = (
            Trees(kind, classes=2, balanced=balanced).fit(features, rare.astype(int)).score(features).mean()
            for balanced in (False, True)
        )
        assert balanced > 2 * plain


def test_a_share_of_each_class_is_fitted():
    trees = Trees("random_forest", classes=3, max_samples=100)
    targets = np.repeat([0, 1, 2], [900, 99, 1])
    chosen = trees._choose(targets)
    assert np.bincount(targets[chosen]).tolist() == [90, 9, 1] and (np.diff(chosen) > 0).all()
    assert len(Trees("random_forest", classes=None, max_samples=100)._choose(np.arange(1000.0))) == 100


def test_many_rows_are_predicted_in_pieces(monkeypatch):
    features, classes = squares()
    trees = Trees("gradient_boosting", classes=2).fit(features, classes)
    whole = trees.predict(features)
    monkeypatch.setattr("util.finetuning.trees._CHUNK", 7)
    assert np.array_equal(trees.predict(features), whole)
    assert trees.predict(features[:0]).shape == (0, 2)


def test_what_is_refused():
    with pytest.raises(ValueError, match="kind 'bush', expected one of gradient_boosting, random_forest"):
        Trees("bush", classes=2)
    with pytest.raises(ValueError, match="no labelled sample to fit"):
        Trees("random_forest", classes=2).fit(squares()[0], np.full(600, -1))
    with pytest.raises(ValueError, match="nothing is known at 2 samples, expected a value of some layer"):
        Trees("gradient_boosting", classes=None).fit(np.full((2, 3), np.nan), np.array([1.0, 2.0]))
