"""Skill against the layer mean and interpolation: on planes, written-out errors, and predictors with a known skill."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from datasets.layers.encoding import Encoding
from datasets.layers.transforms import Transform
from util.metrics import skill
from util.metrics.interpolation_baselines import baseline_images, interpolate_visible, nearest_visible, refine
from util.metrics.skill import REGIONS, HeldOutEvaluator, ScoredBatch, ScoredLayer, Scores, error_sums
from util.model.layer_losses import LayerChannels

NAN = float("nan")


class TestInterpolation:
    @settings(max_examples=30, deadline=None)
    @given(seed=st.integers(0, 999), a=st.floats(-3, 3), b=st.floats(-3, 3))
    def test_a_plane_is_exact_between_its_known_pixels(self, seed, a, b):
        rng = np.random.default_rng(seed)
        rows, cols = np.mgrid[:12, :10]
        plane = (a * rows + b * cols + 5).astype(np.float32)
        known = rng.random(plane.shape) < 0.15
        known[[0, 0, -1, -1], [0, -1, 0, -1]] = True  # the whole tile lies inside the hull
        filled = interpolate_visible(np.where(known, plane, 1e9), known, fallback=0.0)
        np.testing.assert_allclose(filled, plane, atol=1e-4)
        assert filled.dtype == np.float32

    def test_outside_the_hull_the_nearest_known_pixel_counts(self):
        values = np.arange(25.0).reshape(5, 5)
        known = np.zeros((5, 5), dtype=bool)
        known[1:4, 1:4] = True
        filled = interpolate_visible(values, known, fallback=-1.0)
        assert filled[0].tolist() == [6, 6, 7, 8, 8]
        assert filled[:, 4].tolist() == [8, 8, 13, 18, 18]
        np.testing.assert_array_equal(filled[known], values[known])

    def test_a_hidden_square_in_a_row_of_known_ones(self):
        known = np.ones((3, 5), dtype=bool)
        known[:, 1:4] = False
        values = np.where(known, [0.0, 0, 0, 0, 8], 77.0)
        np.testing.assert_allclose(
            interpolate_visible(values, known, fallback=0.0), np.tile([0, 2, 4, 6, 8], (3, 1)), atol=1e-6
        )

    @pytest.mark.parametrize("pixels", [[(2, 2)], [(0, 0), (3, 3)], [(1, 0), (1, 2), (1, 4)]])
    def test_too_few_to_span_a_triangle(self, pixels):
        """One pixel, two, or all on one line: the nearest counts."""
        known = np.zeros((5, 5), dtype=bool)
        known[tuple(zip(*pixels, strict=True))] = True
        values = np.arange(25.0).reshape(5, 5)
        filled = interpolate_visible(values, known, fallback=-1.0)
        assert set(np.unique(filled)) <= {values[pixel] for pixel in pixels}
        np.testing.assert_array_equal(filled[known], values[known])

    def test_nothing_known(self):
        filled = interpolate_visible(np.full((2, 3), 9.0), np.zeros((2, 3), dtype=bool), fallback=-1.5)
        assert filled.tolist() == [[-1.5] * 3] * 2 and filled.dtype == np.float32

    def test_everything_known(self):
        values = np.random.default_rng(0).normal(size=(4, 4)).astype(np.float32)
        filled = interpolate_visible(values, np.ones((4, 4), dtype=bool), fallback=0.0)
        np.testing.assert_array_equal(filled, values)
        assert filled is not values


class TestRefine:
    def test_scale_1_is_the_image_itself(self):
        image = torch.rand(1, 2, 3, 3)
        assert refine(image, 1) is image

    @pytest.mark.parametrize("scale", [2, 3, 4])
    def test_pixel_centres_stay_in_place(self, scale):
        """A plane over coarse pixel centres is nearly the same plane over fine ones, and keeps each pixel's mean."""
        rows = cols = torch.arange(12.0) + 0.5
        fine = (torch.arange(12.0 * scale) + 0.5) / scale
        coarse = (2 * rows[:, None] - 3 * cols[None])[None, None]
        found = refine(coarse, scale)
        inner = slice(2 * scale, -2 * scale)
        plane = 2 * fine[:, None] - 3 * fine[None]
        # Cubic convolution with a = -3/4 strays from a straight line by at most 0.05 of the step between pixels.
        torch.testing.assert_close(found[0, 0, inner, inner], plane[inner, inner], rtol=0, atol=0.05 * (2 + 3))
        means = torch.nn.functional.avg_pool2d(found, scale)
        torch.testing.assert_close(means[..., 2:-2, 2:-2], coarse[..., 2:-2, 2:-2])

    def test_the_middle_of_a_pixel_keeps_its_value(self):
        image = torch.rand(1, 2, 5, 6)
        torch.testing.assert_close(refine(image, 3)[..., 1::3, 1::3], image)

    def test_a_constant_stays_constant_to_the_edges(self):
        torch.testing.assert_close(refine(torch.full((1, 1, 3, 3), 7.0), 4), torch.full((1, 1, 12, 12), 7.0))


def plain(means):
    """Continuous layers of one channel each, in which a model unit is two physical ones."""
    return [
        ScoredLayer(LayerChannels(c), lambda images: images.squeeze(-3) * 2, 2.0, (mean,))
        for c, mean in enumerate(means)
    ]


class TestErrorSums:
    def test_written_out(self):
        """One channel, 2 x 2 base pixels of which the first is hidden, at scales 1 and 2."""
        hidden = torch.tensor([[[[True, False], [False, False]]]])
        base = torch.tensor([[[[3.0, 5.0], [1.0, 1.0]]]])
        fine = torch.zeros(1, 1, 4, 4)
        fine[0, 0, 0, 0], fine[0, 0, 1, 1], fine[0, 0, 3, 3] = 2.0, 3.0, 4.0
        everything = [torch.ones_like(base, dtype=torch.bool), torch.ones_like(fine, dtype=torch.bool)]
        targets = [torch.zeros_like(base), torch.zeros_like(fine)]
        (sums, physical), counts = error_sums([base, fine], targets, everything, hidden, plain([0.0]))
        assert REGIONS == ("scored", "hidden", "visible")
        assert sums[:, :, 0].tolist() == [[9, 4 + 9 + 16], [9, 4 + 9], [0, 16]]
        assert counts[:, :, 0].tolist() == [[1, 16], [1, 4], [0, 12]]
        torch.testing.assert_close(physical, 4 * sums)
        assert sums.dtype == counts.dtype == torch.float64

    def test_invalid_pixels_do_not_count_whatever_they_hold(self):
        hidden = torch.ones(1, 2, 2, 2, dtype=torch.bool)
        valid = torch.ones(1, 2, 2, 2, dtype=torch.bool)
        valid[0, 0, 0, 0] = False
        image = torch.ones(1, 2, 2, 2)
        image[0, 0, 0, 0] = NAN
        (sums, _), counts = error_sums([image], [torch.zeros(1, 2, 2, 2)], [valid], hidden, plain([0.0] * 2))
        assert sums[0].tolist() == [[3, 4]] and counts[0].tolist() == [[3, 4]]

    def test_half_precision_predictions_are_compared_in_full(self):
        hidden = torch.ones(1, 1, 1, 1, dtype=torch.bool)
        image = torch.full((1, 1, 1, 1), 300.0, dtype=torch.float16)  # 300 ** 2 is beyond fp16
        (sums, _), _ = error_sums([image], [torch.zeros(1, 1, 1, 1)], [hidden], hidden, plain([0.0]))
        assert sums[0].item() == 90_000


def test_baseline_images():
    """Two channels: a plane with a hidden middle, and one of which nothing is known."""
    plane = torch.arange(9.0).reshape(1, 1, 3, 3)
    imgs = torch.cat([plane, torch.zeros(1, 1, 3, 3)], dim=1)
    valid, hidden = torch.ones(1, 2, 3, 3, dtype=torch.bool), torch.zeros(1, 2, 3, 3, dtype=torch.bool)
    hidden[0, 0, 1, 1] = True
    valid[0, 1] = False
    mean, filled = baseline_images(imgs, valid, hidden, means=[0.5, -2.0], scales=(1, 2))
    assert [image.shape[-1] for image in mean] == [image.shape[-1] for image in filled] == [3, 6]
    assert mean[0][0, 0].unique().tolist() == [0.5] and mean[1][0, 1].unique().tolist() == [-2.0]
    torch.testing.assert_close(filled[0][0, 0], plane[0, 0])
    assert filled[0][0, 1].unique().tolist() == [-2.0]
    torch.testing.assert_close(filled[1], refine(filled[0], 2))


@pytest.mark.parametrize(
    "error, mean, interpolation, expected",
    [
        (0.0, 1.0, 0.5, 1.0),
        (0.5, 1.0, 0.5, 0.0),
        (0.25, 1.0, 0.5, 0.5),
        (0.75, 1.0, 3.0, 0.25),  # interpolation may be worse than the mean
        (2.0, 1.0, 0.5, -3.0),
        (NAN, 1.0, 0.5, NAN),
        (1.0, 1.0, NAN, NAN),
    ],
)
def test_skill_on_hidden_ground(error, mean, interpolation, expected):
    model, flat, filled = (regions(x, x, NAN) for x in (error, mean, interpolation))
    scores = Scores(0.0, 0.0, 0.0, model, flat, filled, (model, flat, filled), counts=regions(4, 4, 0), views=1)
    assert scores.skill[:2].flatten().tolist() == pytest.approx([expected, expected], nan_ok=True)
    assert scores.skill[2].isnan().all()


def test_the_best_guess_is_chosen_on_hidden_and_on_visible_ground_apart():
    """The mean is better where tokens are hidden, interpolation where they are visible: 3 pixels and 1."""
    flat, filled = regions(1.75, 2.0, 1.0), regions(2.35, 3.0, 0.4)
    model = regions(0.8, 1.0, 0.2)
    scores = Scores(0.0, 0.0, 0.0, model, flat, filled, (model, flat, filled), counts=regions(4, 3, 1), views=1)
    assert scores.best.flatten().tolist() == pytest.approx([(3 * 2.0 + 1 * 0.4) / 4, 2.0, 0.4])
    assert scores.skill.flatten().tolist() == pytest.approx([0.5, 0.5, 0.5])


def regions(*values):
    """(3, 1, 1) float64: all scored pixels, hidden ones, visible ones, at one scale of one layer."""
    return torch.tensor(values, dtype=torch.float64).reshape(3, 1, 1)


class HeldOutGround:
    """Eight tiles of 8 x 8 base pixels, three channels in the groups (0, 2) and (1,), patches of 4, scales 1 and 2.

    Channel 0 is noise about 1, of whose hidden pixels the mean is the best free guess; channel 1 a plane with a little
    noise, best guessed by interpolation; channel 2 is not scored at all at scale 2, and has a hole.
    """

    scales = (1, 2)
    groups = ((0, 2), (1,))
    means = (1.0, 0.0, 0.0)

    def __init__(self):
        rng = np.random.default_rng(0)
        plane = np.add.outer(np.arange(16.0), np.arange(16.0)) / 8
        fine = rng.normal(size=(8, 3, 16, 16))
        fine[:, 0] += 1.0
        fine[:, 1] = plane + 0.01 * fine[:, 1]
        self.fine = torch.tensor(fine, dtype=torch.float32)
        self.base = torch.nn.functional.avg_pool2d(self.fine, 2)
        self.valid = torch.ones(8, 3, 8, 8, dtype=torch.bool)
        self.valid[:, 2, :3, :3] = False
        self.valid_up = torch.ones(8, 3, 16, 16, dtype=torch.bool)
        self.valid_up[:, 2] = False
        self.mask = torch.tensor(rng.permuted(np.tile([1.0, 0.0, 1.0, 0.0], (8, 2, 1)), axis=-1), dtype=torch.float32)
        self.fetched = 0

    def fetch(self, numbers):
        self.fetched += 1
        return ScoredBatch(
            imgs=torch.where(self.valid, self.base, 0.0)[numbers],
            valid=self.valid[numbers],
            imgs_up=[torch.where(self.valid_up, self.fine, 0.0)[numbers]],
            valid_up=[self.valid_up[numbers]],
            noise=torch.as_tensor(numbers, dtype=torch.float32)[:, None],  # tells a predictor which tiles these are
        )

    def evaluator(self, *, batches=((0, 1, 2), (3, 4, 5), (6, 7)), **options):
        arguments: dict[str, Any] = {
            "fetch": self.fetch,
            "batches": [np.array(batch) for batch in batches],
            "scales": self.scales,
            "scored_at_base": [True, True, True],
            "layers": plain(self.means),
            "groups": self.groups,
            "patch_size": 4,
            "base_in_units": True,
            "sum_over_ranks": lambda tensor: tensor,
        }
        return HeldOutEvaluator(**(arguments | options))

    def predictor(self, images):
        """A model that returns `images(batch, hidden)`, one for each scale, and losses 2 and 3."""

        def predict(batch):
            mask = self.mask[batch.noise[:, 0].long()]
            hidden = self.evaluator().hidden_pixels(mask, batch.imgs.shape)
            first, second = images(batch, hidden)
            losses = (torch.tensor(2.0), torch.tensor(3.0))
            return SimpleNamespace(loss=losses[0], losses=losses, mask=mask, images={1: first, 2: second})

        return predict

    def score(self, images, evaluator=None, weights=(0.6, 0.4)):
        return (evaluator or self.evaluator())(self.predictor(images), loss_weights=weights)


def truth(batch, hidden):
    return batch.imgs, batch.imgs_up[0]


def interpolation(batch, hidden):
    return baseline_images(batch.imgs, batch.valid, hidden, means=HeldOutGround.means, scales=(1, 2))[1]


def layer_mean(batch, hidden):
    return baseline_images(batch.imgs, batch.valid, hidden, means=HeldOutGround.means, scales=(1, 2))[0]


class TestEvaluator:
    def test_hidden_pixels(self):
        """Tokens (group 0: 0 and 3 removed; group 1: 1 removed) as pixels of the channels 0, 1, 2."""
        mask = torch.tensor([[[1.0, 0, 0, 1], [0, 1, 0, 0]]])
        found = HeldOutGround().evaluator().hidden_pixels(mask, (1, 3, 8, 8))
        first = np.kron([[1, 0], [0, 1]], np.ones((4, 4)))
        second = np.kron([[0, 1], [0, 0]], np.ones((4, 4)))
        np.testing.assert_array_equal(found[0], np.stack([first, second, first]))
        assert found.dtype == torch.bool

    def test_a_perfect_model_has_skill_1(self):
        scores = HeldOutGround().score(truth)
        assert scores.views == 8
        assert (scores.model[0, :, :2] == 0).all()
        np.testing.assert_array_equal(scores.skill[0], [[1, 1, 1], [1, 1, NAN]])  # channel 2 is not scored at scale 2
        np.testing.assert_array_equal(scores.skill[2], [[NAN] * 3, [1, 1, NAN]])  # nothing visible is scored at scale 1

    def test_the_best_free_guess_has_skill_0(self):
        ground = HeldOutGround()
        by_mean, by_interpolation = ground.score(layer_mean), ground.score(interpolation)
        torch.testing.assert_close(by_mean.model, by_mean.mean, equal_nan=True)
        torch.testing.assert_close(by_interpolation.model, by_interpolation.interpolation, equal_nan=True)
        assert by_mean.skill[0, 0, 0] == 0 and by_interpolation.skill[0, 0, 0] < -0.1
        assert by_interpolation.skill[0, :, 1].tolist() == [0, 0] and (by_mean.skill[0, :, 1] < -10).all()

    def test_a_model_half_way_between_has_skill_three_quarters(self):
        """Half the error is a quarter of the squared error."""

        def images(batch, hidden):
            return [(a + b) / 2 for a, b in zip(truth(batch, hidden), layer_mean(batch, hidden), strict=True)]

        assert HeldOutGround().score(images).skill[0, 0, 0].item() == pytest.approx(0.75, abs=1e-6)

    def test_errors_are_of_hidden_valid_pixels_counted_one_by_one(self):
        ground = HeldOutGround()
        scores = ground.score(lambda batch, hidden: (torch.zeros_like(batch.imgs), torch.zeros_like(batch.imgs_up[0])))
        hidden = ground.evaluator().hidden_pixels(ground.mask, (8, 3, 8, 8))
        for channel in range(3):
            counted = ground.base[:, channel][hidden[:, channel] & ground.valid[:, channel]]
            assert scores.model[0, 0, channel].item() == pytest.approx(counted.square().mean().item(), rel=1e-6)
        assert scores.model[0, 1, 0].item() == pytest.approx(ground.fine[:, 0].square().mean().item(), rel=1e-6)

    def test_losses_are_weighted(self):
        scores = HeldOutGround().score(truth, weights=(0.6, 0.4))
        assert (scores.base_loss, scores.scale_loss) == (2.0, 3.0)
        assert scores.loss == pytest.approx(0.6 * 2 + 0.4 * 3)

    def test_batches_do_not_matter(self):
        ground = HeldOutGround()
        together = ground.score(interpolation, ground.evaluator(batches=[range(8)]))
        apart = ground.score(interpolation, ground.evaluator(batches=[[7], [0, 2, 4], [6, 5, 3, 1]]))
        for name in ("model", "mean", "interpolation"):
            torch.testing.assert_close(getattr(together, name), getattr(apart, name), equal_nan=True)

    def test_ranks_add_up(self):
        """What is summed over ranks is additive: one evaluator with everything equals two with a part each."""
        ground = HeldOutGround()

        def summed(batches):
            seen: list[torch.Tensor] = []

            def sum_over_ranks(tensor):
                seen.append(tensor)
                return tensor

            ground.score(layer_mean, ground.evaluator(batches=batches, sum_over_ranks=sum_over_ranks))
            return seen

        whole, *parts = (summed(batches) for batches in ([range(8)], [[0, 1, 2]], [[3, 4], [5, 6, 7]], []))
        assert len(whole) == len(parts[0]) == len(parts[2]) == 4
        for total, *each in zip(whole, *parts, strict=True):
            torch.testing.assert_close(sum(each), total)

    def test_free_guesses_are_made_once(self, monkeypatch):
        ground = HeldOutGround()
        evaluator = ground.evaluator()
        first = ground.score(truth, evaluator)
        monkeypatch.setattr(skill, "baseline_images", lambda *_, **__: pytest.fail("made again"))
        again = evaluator(ground.predictor(truth), loss_weights=(0.6, 0.4))
        torch.testing.assert_close(again.skill, first.skill, equal_nan=True)

    def test_layers_coarser_than_the_base_pixel_are_not_scored(self):
        ground = HeldOutGround()
        scores = ground.score(truth, ground.evaluator(scored_at_base=[True, False, True]))
        assert scores.skill[0, 0].isnan().tolist() == [False, True, False]

    def test_predictions_normalised_per_patch_are_not_compared(self):
        ground = HeldOutGround()
        scores = ground.score(truth, ground.evaluator(base_in_units=False))
        assert scores.skill[0, 0].isnan().all() and scores.skill[0, 1, 0] == 1

    def test_progress_sees_every_batch(self):
        ground, shown = HeldOutGround(), []

        def show(batches):
            for batch in batches:
                shown.append(len(batch))
                yield batch

        ground.evaluator()(ground.predictor(truth), loss_weights=(1.0, 0.0), show=show)
        assert shown == [3, 3, 2]


class TestKinds:
    """Two classes and an angle, one tile of 1 x 4 base pixels of which the last two are hidden (patches of 1 pixel)."""

    classes = Encoding("categorical", centres=(), scales=(), codes=(5.0, 9.0), frequencies=(0.75, 0.25))
    angle = Encoding("circular", centres=(0.0, 0.0), scales=(1.0, 1.0))

    def scored(self, *encodings):
        layers, first = [], 0
        for encoding in encodings:
            channels = LayerChannels(first, encoding.channels, encoding.form)
            layers.append(ScoredLayer(channels, encoding.decode, None, encoding.means))
            first += encoding.channels
        return layers

    def test_nearest_visible(self):
        shares = np.array([[[1.0, 0.5, 0.0, 0.0]], [[0.0, 0.5, 1.0, 1.0]]])
        known = np.array([[True, True, False, False]])
        filled = nearest_visible(shares, known, fallback=(0.9, 0.1))
        np.testing.assert_allclose(filled, [[[1, 0.5, 0.5, 0.5]], [[0, 0.5, 0.5, 0.5]]], atol=1e-6)
        nothing = nearest_visible(shares, np.zeros_like(known), fallback=(0.9, 0.1))
        np.testing.assert_allclose(nothing[:, 0, 0], [0.9, 0.1], rtol=1e-6)

    def test_classes_at_finer_scales_are_repeated(self):
        imgs = torch.tensor([[[[1.0, 0.0]], [[0.0, 1.0]]]])
        everything = torch.ones_like(imgs, dtype=torch.bool)
        layers = [LayerChannels(0, 2, "fractions")]
        arguments = {"means": [0.75, 0.25], "scales": (1, 2), "layers": layers}
        flat, filled = baseline_images(imgs, everything, ~everything, **arguments)
        assert filled[1][0, 0].tolist() == [[1, 1, 0, 0]] * 2 and flat[1][0, :, 0, 0].tolist() == [0.75, 0.25]

    def test_cross_entropy_and_share_that_is_wrong(self):
        """Of a pixel with 3/4 of one class, predicting it is right for 3/4 of the ground."""
        hidden = torch.ones(1, 2, 1, 2, dtype=torch.bool)
        image = torch.tensor([[[[0.6, 0.2]], [[0.4, 0.8]]]])
        target = torch.tensor([[[[0.75, 1.0]], [[0.25, 0.0]]]])
        (entropy, wrong), counts = error_sums([image], [target], [hidden], hidden, self.scored(self.classes))
        expected = -0.75 * np.log(0.6) - 0.25 * np.log(0.4) - np.log(0.2)
        assert entropy[0].item() == pytest.approx(expected, rel=1e-4) and wrong[0].item() == pytest.approx(0.25 + 1)
        assert counts[0].item() == 2

    def test_angles_are_compared_round_the_circle(self):
        hidden = torch.ones(1, 2, 1, 2, dtype=torch.bool)
        image, target = (self.angle.encode(torch.tensor([[angles]]))[0] for angles in ([359.0, 90.0], [1.0, 120.0]))
        (error, report), _ = error_sums([image], [target], [hidden], hidden, self.scored(self.angle))
        assert error[0].item() == pytest.approx(2**2 + 30**2, rel=1e-4) and torch.equal(error, report)

    def test_errors_of_transformed_layers_are_reported_in_physical_units(self):
        encoding = Encoding(transform=Transform("log"), centres=(1.0,), scales=(2.0,))
        hidden = torch.ones(1, 1, 1, 1, dtype=torch.bool)
        image, target = (encoding.encode(torch.tensor([[[value]]]))[0] for value in (100.0, 10.0))
        (error, report), _ = error_sums([image], [target], [hidden], hidden, self.scored(encoding))
        assert error[0].item() == pytest.approx((np.log(10) / 2) ** 2, rel=1e-5)
        assert report[0].item() == pytest.approx(90**2, rel=1e-4)

    def test_free_predictions_of_classes(self):
        """Known: one pixel of each class; hidden: what is nearest is right once and wrong once."""
        imgs = torch.tensor([[[[1.0, 0.0, 0.0, 1.0]], [[0.0, 1.0, 1.0, 0.0]]]])
        everything, hidden = torch.ones_like(imgs, dtype=torch.bool), torch.zeros_like(imgs, dtype=torch.bool)
        hidden[..., 2:] = True
        batch = ScoredBatch(imgs, everything, [], [], torch.zeros(1, 4))
        layers = self.scored(self.classes)
        sums = skill.baseline_error_sums(batch, [imgs], [everything], hidden, layers=layers, scales=(1,))
        constant, nearest = skill._best_mixture(sums)
        assert constant[0, 0].item() == pytest.approx(-np.log(0.25) - np.log(0.75), rel=1e-4)
        assert constant[1, 0].item() == 1 and nearest[1, 0].item() == 1
        # With a share of m of the frequencies the two cost -log(1 - 0.75 m) and -log(0.75 m), least at m = 2/3.
        costs = {m: -np.log(1 - 0.75 * m) - np.log(0.75 * m) for m in skill.MIXTURES[1:]}
        assert nearest[0, 0].item() == pytest.approx(min(costs.values()), rel=1e-4)
