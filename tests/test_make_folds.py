"""Folds: what is tested, what may be trained on and how near, counted pixel by pixel on small ground."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from datasets.folds.assignment import assign_blocks, auto_block, label_ranking
from datasets.folds.blocks import block_grid_from_rectangles, count_points, counts_in_blocks, even_block_grid
from datasets.folds.folds import CONTROL_WARNING, LEAK_WARNING
from datasets.folds.make_folds import LabelCells, folds_from_rectangles, make_folds

CELL_OPTIONS = ("shape", "cell", "wrap_columns", "names")
OPTIONS = {"shape": (64, 64), "cell": 4, "tile": 8, "folds": 3, "buffer": 4, "seed": 0, "block": 1}


def full(rows=64, cols=64, *, cell=4, kinds=1):
    """Counts of ground whose every pixel is labelled; classes lie in stripes of cells."""
    rows, cols = -(-rows // cell), -(-cols // cell)
    counts = np.zeros((rows, cols, kinds), dtype=np.int64)
    counts[:, np.arange(cols), np.arange(cols) % kinds] = cell * cell
    return counts


def cells_and_options(counts, options):
    """The `LabelCells` that some of the options describe, and the others."""
    rest = dict(options)
    return LabelCells(counts, **{key: rest.pop(key) for key in CELL_OPTIONS if key in rest}), rest


def make(counts=None, **options):
    options = OPTIONS | options
    counts = full(*options["shape"], cell=options["cell"]) if counts is None else counts
    labels, options = cells_and_options(counts, options)
    return make_folds(labels, **options)


def fold_of_cells(folds):
    """Fold of the ground at each cell's centre, -1 = never tested."""
    row, col = (
        (np.arange(0, n, folds.cell) + np.minimum(np.arange(0, n, folds.cell) + folds.cell, n)) / 2 for n in folds.shape
    )
    return folds.fold_at(*(each.ravel() for each in np.meshgrid(row, col, indexing="ij"))).reshape(len(row), len(col))


def everything(folds, scale=1):
    return (0, 0, folds.shape[0] * scale, folds.shape[1] * scale)


def too_near(ground, reach):
    """Pixels with a pixel of the ground in the square that reaches `reach` pixels beyond them, by plain looking."""
    near = np.zeros_like(ground)
    for row, col in np.ndindex(ground.shape):
        near[row, col] = ground[max(row - reach, 0) : row + reach + 1, max(col - reach, 0) : col + reach + 1].any()
    return near


@st.composite
def cases(draw):
    rows, cols, cell = draw(st.integers(8, 26)), draw(st.integers(8, 26)), draw(st.integers(1, 3))
    shape = (-(-rows // cell), -(-cols // cell), draw(st.integers(1, 3)))
    seed = draw(st.integers(0, 2**32 - 1))
    rng = np.random.default_rng(seed)
    counts = rng.integers(1, 9, size=shape) * (rng.uniform(size=shape) < draw(st.sampled_from((0.2, 1.0))))
    options = {
        "shape": (rows, cols),
        "cell": cell,
        "tile": draw(st.integers(2, 6)),
        "folds": draw(st.integers(3, 4)),
        "buffer": draw(st.integers(0, 4)),
        "seed": seed % 1000,
        "split": draw(st.sampled_from(("blocks", "random"))),
        "early_stopping": draw(st.booleans()),
    }
    return counts, options


def made(case, **more):
    """The folds of a case; None where it is refused for what `TestErrors` looks at."""
    labels, options = cells_and_options(*case)
    try:
        return make_folds(labels, **(options | more))
    except ValueError as error:
        assert "hold a label" in str(error) or "no label is left" in str(error) or "keeps none" in str(error)
        return None


class TestPixels:
    @given(case=cases(), scale=st.sampled_from((1, 2, 4)))
    @settings(max_examples=60, deadline=None)
    def test_test_sets_are_disjoint_and_cover_every_label_and_training_keeps_its_distance(self, case, scale):
        if (folds := made(case)) is None:
            return
        tested = np.array([folds.testing(fold, *everything(folds, scale), scale=scale) for fold in range(folds.count)])
        assert tested.sum(axis=0).max() == 1
        centre = case[0].sum(axis=2) > 0
        np.testing.assert_array_equal(fold_of_cells(folds)[centre] >= 0, True)
        for fold in range(folds.count):
            away = tested[fold]
            if folds.early_stopping:
                validated = folds.validating(fold, *everything(folds, scale), scale=scale)
                of_next = tested[(fold + 1) % folds.count]
                numbers = folds.blocks_of(*everything(folds, scale), scale=scale)
                blocks, others = (set(np.unique(numbers[part])) for part in (validated, of_next & ~validated))
                assert not (validated & ~of_next).any() and not blocks & others  # whole blocks of the next fold, half
                assert len(blocks) - len(others) in (0, 1)
                away = away | validated
            training = folds.training(fold, *everything(folds, scale), scale=scale)
            reach = 0 if folds.split == "random" else folds.buffer * scale
            np.testing.assert_array_equal(training, ~too_near(away, reach))

    @given(case=cases(), scale=st.sampled_from((1, 2)), seed=st.integers(0, 1000))
    @settings(max_examples=40, deadline=None)
    def test_a_window_is_a_part_of_the_whole_and_nothing_outside(self, case, scale, seed):
        if (folds := made(case, label_fraction=0.5)) is None:
            return
        rng = np.random.default_rng(seed)
        (row, col), (rows, cols) = rng.integers(-9, 60, 2), rng.integers(0, 40, 2)
        for of in (folds.testing, folds.training):
            padded = np.pad(of(0, *everything(folds, scale), scale=scale), 110)
            part = padded[110 + row : 110 + row + rows, 110 + col : 110 + col + cols]
            np.testing.assert_array_equal(of(0, int(row), int(col), int(rows), int(cols), scale=scale), part)

    def test_scales_see_the_same_ground(self):
        folds = make(label_fraction=0.3)
        fine = folds.training(1, *everything(folds, 4), scale=4)
        np.testing.assert_array_equal(fine, np.kron(folds.training(1, *everything(folds)), np.ones((4, 4), dtype=bool)))

    def test_the_buffer_is_measured_from_edge_to_edge(self):
        """Ground of 12 x 12 with one tested block at rows and columns 4 to 7: a buffer of 2 leaves a rim of 2."""
        counts = full(12, 12, cell=1)
        labels = LabelCells(counts, shape=(12, 12), cell=1)
        folds = folds_from_rectangles(
            [(400, 400, 800, 800)], labels, left=0, top=1200, resolution=100, buffer=2, seed=0
        )
        expected = np.ones((12, 12), dtype=bool)
        expected[2:10, 2:10] = False
        np.testing.assert_array_equal(folds.training(0, 0, 0, 12, 12), expected)

    def test_block_numbers(self):
        folds = make(shape=(16, 16))
        blocks = folds.blocks_of(0, 0, 16, 16)
        np.testing.assert_array_equal(blocks, np.kron([[0, 1], [2, 3]], np.ones((8, 8))))
        np.testing.assert_array_equal(folds.block_at([-1, 0, 15.9, 8], [3, 8, 15.9, 7.9]), [-1, 1, 3, 2])
        assert folds.blocks_of(14, 14, 3, 3)[2, 2] == -1


class TestPoints:
    @given(case=cases(), seed=st.integers(0, 1000))
    @settings(max_examples=60, deadline=None)
    def test_points_by_measuring_to_every_tested_pixel(self, case, seed):
        if (folds := made(case)) is None:
            return
        rng = np.random.default_rng(seed)
        row, col = rng.integers(-8, 4 * folds.shape[0] + 8, 60) / 4, rng.integers(-8, 4 * folds.shape[1] + 8, 60) / 4
        tested = folds.testing(0, *everything(folds))
        fold_at, training_at = folds.fold_at(row, col), folds.training_at(0, row, col)
        away = tested | folds.validating(0, *everything(folds)) if folds.early_stopping else tested
        top, left = np.nonzero(away)
        for k in range(60):
            inside = 0 <= row[k] < folds.shape[0] and 0 <= col[k] < folds.shape[1]
            assert (fold_at[k] == 0) == (inside and tested[int(row[k]), int(col[k])])
            far = np.maximum(
                np.maximum(top - row[k], row[k] - top - 1), np.maximum(left - col[k], col[k] - left - 1)
            ).min()
            expected = inside and not away[int(row[k]), int(col[k])] and far >= folds.buffer
            assert training_at[k] == expected

    def test_counting(self):
        row, col = np.array([0, 3.9, 4, 9.9, -0.1, 12]), np.array([0, 0, 5, 9, 2, 2])
        counts = count_points(row, col, np.array([0, 1, 1, 0, 0, 0]), shape=(10, 10), cell=4, kinds=2)
        expected = np.zeros((3, 3, 2), dtype=np.int64)
        expected[0, 0] = (2, 1)
        expected[1, 1, 1] = 1
        expected[2, 2, 0] = expected[2, 0, 0] = 1
        np.testing.assert_array_equal(counts, expected)

    def test_a_fraction_of_points_is_a_fraction_of_them(self):
        rng = np.random.default_rng(0)
        row, col = rng.uniform(0, 64, (2, 300))
        counts = count_points(row, col, np.zeros(300, dtype=int), shape=(64, 64), cell=4, kinds=1)
        few, many = (make(counts, buffer=0, label_fraction=share) for share in (0.2, 0.6))
        kept, more = few.training_at(0, row, col), many.training_at(0, row, col)
        everyone = few.training_at(0, row, col, all_labels=True)
        np.testing.assert_array_equal(everyone, few.fold_at(row, col) != 0)
        assert (
            kept.sum() == few.label_counts["trained"][0] and not (kept & ~more).any() and not (more & ~everyone).any()
        )
        assert kept.sum() / everyone.sum() == pytest.approx(0.2, abs=0.02)  # half of a cell's points, of about 200


class TestLabelFraction:
    @given(case=cases(), shares=st.tuples(st.floats(0.01, 1), st.floats(0.01, 1)))
    @settings(max_examples=60, deadline=None)
    def test_a_smaller_share_is_inside_a_larger_one(self, case, shares):
        small, large = (made(case, label_fraction=share) for share in sorted(shares))
        if small is None or large is None:
            return
        for fold in range(small.count):
            window = everything(small)
            np.testing.assert_array_equal(small.testing(fold, *window), large.testing(fold, *window))
            assert not (small.training(fold, *window) & ~large.training(fold, *window)).any()

    def test_the_share_is_of_the_training_labels_and_of_every_class(self):
        counts = full(400, 400, kinds=4)
        options = {"shape": (400, 400), "tile": 16, "folds": 5, "block": 2, "buffer": 16}
        whole = make(counts, **options)
        for share in (0.01, 0.1):
            part = make(counts, **options, label_fraction=share)
            for fold in range(5):
                window = everything(part)
                kept = part.training(fold, *window).sum()
                assert kept == part.label_counts["trained"][fold]
                # to half a cell of 16 pixels
                assert abs(kept - share * whole.training(fold, *window).sum()) <= 8
                by_class = np.array(part.label_counts["trained_classes"][fold])
                assert by_class.min() > 0.3 * by_class.mean()

    def test_classes_keep_step_in_the_order(self):
        counts = np.zeros((10, 20, 2), dtype=np.int64)
        counts[..., 0] = 5
        counts[:2, :10] = (0, 1)
        places = label_ranking(counts, np.random.default_rng(0))
        assert sorted(places.ravel()) == list(range(200))
        for first in (20, 50, 100):
            assert (places[:2, :10] < first).sum() == pytest.approx(first / 10, abs=1)

    def test_no_label_has_no_place(self):
        counts = np.zeros((2, 2, 1), dtype=np.int64)
        counts[1, 0] = 3
        last = np.iinfo(np.int32).max
        np.testing.assert_array_equal(label_ranking(counts, np.random.default_rng(0)), [[last, last], [0, last]])


class TestAssignment:
    @given(case=cases())
    @settings(max_examples=20, deadline=None)
    def test_the_same_seed_gives_the_same_folds(self, case):
        one, two = made(case), made(case)
        if one is not None:
            np.testing.assert_array_equal(fold_of_cells(one), fold_of_cells(two))
            assert one.summary() == two.summary()

    @pytest.mark.parametrize("split", ["blocks", "random"])
    def test_another_seed_gives_others(self, split):
        assert (fold_of_cells(make(split=split)) != fold_of_cells(make(split=split, seed=1))).any()

    def test_labels_are_balanced(self):
        rng = np.random.default_rng(0)
        counts = rng.integers(0, 1000, (60, 3)) + 1
        dealt = assign_blocks(counts, 5, rng)
        totals = np.array([counts[dealt == fold].sum(axis=0) for fold in range(5)])
        assert (abs(totals / totals.mean(axis=0) - 1) < 0.15).all()

    def test_no_fold_is_empty(self):
        counts = np.array([[1000], [1], [1]])
        for seed in range(20):
            assert set(assign_blocks(counts, 3, np.random.default_rng(seed))) == {0, 1, 2}

    def test_a_rare_class_is_tested_in_every_fold(self):
        """It lies in 4 blocks of 64."""
        counts = full(kinds=1)
        counts = np.concatenate([counts, np.zeros_like(counts)], axis=2)
        for row, col in ((0, 0), (2, 8), (10, 4), (14, 14)):
            counts[row, col] = (8, 8)
        for seed in range(5):
            folds = make(counts, folds=4, seed=seed)
            assert np.array(folds.label_counts["tested_classes"])[:, 1].tolist() == [8, 8, 8, 8]

    def test_automatic_blocks(self):
        ground = {"cell": 4, "shape": (128, 128), "tile": 16}
        labels = np.ones((32, 32))
        assert auto_block(labels, folds=1, **ground) == 4  # 2 x 2 blocks of 64
        assert auto_block(labels, folds=2, **ground) == 3  # 3 x 3 of 48
        assert auto_block(labels, folds=4, **ground) == 2  # 4 x 4 of 32
        assert auto_block(labels, folds=5, **ground) == 1
        labels[:, 16:] = 0
        assert auto_block(labels, folds=4, **ground) == 1  # half of them without a label

    def test_slivers_go_to_their_neighbour(self):
        lattice = even_block_grid((19, 20), 8)
        assert lattice.row_lines.tolist() == [0, 8, 19]
        assert lattice.col_lines.tolist() == [0, 8, 16, 20]
        assert even_block_grid((5, 8), 8).shape == (1, 1)

    def test_blocks_are_cut_to_whole_cells(self):
        folds = make(shape=(30, 30), cell=4, tile=5)
        assert folds.block_grid.row_lines.tolist() == [0, 8, 16, 24, 30]

    def test_counts_of_blocks(self):
        counts = full(19, 20, kinds=2)
        sums = counts_in_blocks(even_block_grid((19, 20), 8), counts, 4)
        np.testing.assert_array_equal(sums.sum(axis=2), [[64, 64, 32], [96, 96, 48]])
        np.testing.assert_array_equal(sums.sum(axis=(0, 1)), counts.sum(axis=(0, 1)))


class TestRandom:
    def test_neighbours_are_tested_and_every_output_says_so(self):
        folds = make(split="random", buffer=8, tile=16)
        assert folds.buffer == 0
        assert folds.summary()["warning"] == folds.leak_warning == LEAK_WARNING
        assert LEAK_WARNING in folds.describe()
        np.testing.assert_array_equal(folds.training(0, *everything(folds)), ~folds.testing(0, *everything(folds)))
        assert folds.block_grid.row_lines[1] == 4

    def test_a_clean_split_does_not(self):
        assert make().leak_warning == "" and make().summary()["warning"] is None and "WARNING" not in make().describe()


class TestFromCheckpoint:
    GROUND = {"left": 1000.0, "top": 9000.0, "resolution": 100.0, "buffer": 4, "seed": 0}

    @staticmethod
    def labels(counts=None):
        return LabelCells(full(40, 60) if counts is None else counts, shape=(40, 60), cell=4)

    def test_ground_held_out_in_pretraining_is_tested(self):
        """Two blocks of 8 x 8, the second sticking out of the ground in the east."""
        rectangles = [(1800.0, 7400.0, 2600.0, 8200.0), (6600.0, 8200.0, 7400.0, 9000.0)]
        folds = folds_from_rectangles(rectangles, self.labels(), **self.GROUND)
        expected = np.full((40, 60), -1)
        expected[8:16, 8:16] = 0
        expected[0:8, 56:60] = 1
        np.testing.assert_array_equal(folds.blocks_of(0, 0, 40, 60), expected)
        np.testing.assert_array_equal(folds.testing(0, 0, 0, 40, 60), expected >= 0)
        np.testing.assert_array_equal(folds.training(0, 0, 0, 40, 60), ~too_near(expected >= 0, 4))
        assert folds.count == 1 and folds.label_counts["blocks"] == [2] and folds.label_counts["tested"] == [64 + 32]

    def test_only_whole_pixels_are_tested(self):
        """Half a pixel into columns 8 and 16, and rounding as in text files."""
        folds = folds_from_rectangles([(1850.0, 7399.99999, 2650.0, 8200.0)], self.labels(), **self.GROUND)
        assert np.argwhere(folds.testing(0, 0, 0, 40, 60)).min(axis=0).tolist() == [8, 9]
        assert np.argwhere(folds.testing(0, 0, 0, 40, 60)).max(axis=0).tolist() == [15, 15]

    def test_rectangles_that_overlap(self):
        lattice, numbers = block_grid_from_rectangles(np.array([[0, 0, 4, 4], [2, 2, 6, 6]]), (8, 8))
        np.testing.assert_array_equal(lattice.row_lines, [0, 2, 4, 6, 8])
        np.testing.assert_array_equal(numbers, [[0, 0, -1, -1], [0, 1, 1, -1], [-1, 1, 1, -1], [-1] * 4])

    @pytest.mark.parametrize(
        ("rectangles", "message"),
        [
            ([], r"held out no block \(--val_fraction 0\); use --split blocks"),
            ([(0.0, 0.0, 500.0, 500.0)], r"none of the 1 blocks .* lies on this ground; give the rasters"),
            ([(1800.0, 7400.0, 2600.0, 8200.0)], r"no label lies in the 1 blocks"),
        ],
    )
    def test_refused(self, rectangles, message):
        counts = full(40, 60)
        counts[:5] = 0
        with pytest.raises(ValueError, match=message):
            folds_from_rectangles(rectangles, self.labels(counts), **self.GROUND)


class TestErrors:
    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"folds": 1}, "--folds 1: expected at least 2"),
            ({"folds": 2, "early_stopping": True}, "at least 3 with early stopping"),
            ({"split": "from_checkpoint"}, "expected one of blocks, random"),
            (
                {"block": 4, "folds": 5},
                r"only 4 blocks of 4 x 4 tiles \(32 x 32 base pixels\) hold a label.*--fold_block",
            ),
            (
                {"buffer": 64},
                "fold 0 of 3: no label is left to train on.*buffer of 64 base pixels.*smaller --val_buffer",
            ),
            ({"label_fraction": 0.0}, "--label_fraction 0: expected a fraction"),
            ({"label_fraction": 1.5}, "--label_fraction 1.5: expected a fraction"),
            ({"label_fraction": 1e-6}, "--label_fraction 1e-06 keeps none of the [0-9]+ training labels of fold 0"),
            ({"buffer": -1}, "--val_buffer of -1 base pixels"),
            ({"shape": (64, 60)}, r"label counts of shape \(16, 16, 1\): expected \(16, 15, classes\)"),
        ],
    )
    def test_refused(self, options, message):
        with pytest.raises(ValueError, match=message):
            make(full(), **options)

    def test_no_such_fold(self):
        with pytest.raises(ValueError, match="fold 3: expected 0 to 2"):
            make().testing(3, 0, 0, 4, 4)
        with pytest.raises(ValueError, match="without early stopping"):
            make().validating(0, 0, 0, 4, 4)

    def test_what_is_left_of_classes_is_said_by_name(self):
        """'ore' lies in one block alone, so the fold that tests it cannot train on it."""
        counts = full(kinds=1)
        counts = np.concatenate([counts, np.zeros_like(counts)], axis=2)
        counts[:2, :2] = (0, 16)
        folds = make(counts, names=("host", "ore"))
        number = int(fold_of_cells(folds)[0, 0])
        assert folds.warnings == (f"fold {number}: only class 'host' is left in training",)

    def test_little_left_to_train_on_is_said(self):
        folds = make(buffer=12)
        assert min(folds.label_counts["left"]) < 0.25
        assert "of the labels lie outside tested ground and its buffer; a smaller --val_buffer" in folds.warnings[0]

    def test_a_tested_class_without_training_label_is_said(self):
        counts = full(kinds=2)
        counts = np.concatenate([counts, np.zeros_like(counts[..., :1])], axis=2)
        counts[:2, :2] = (0, 0, 16)
        folds = make(counts)
        assert folds.warnings == (f"fold {fold_of_cells(folds)[0, 0]}: tested but without a training label: class 2",)


def test_facts_add_up():
    counts = full(kinds=2)
    folds = make(counts)
    numbers = folds.summary()
    assert json.loads(json.dumps(numbers)) == numbers
    assert sum(numbers["tested"]) == counts.sum() and sum(numbers["blocks"]) == 64
    np.testing.assert_array_equal(np.sum(numbers["tested_classes"], axis=0), counts.sum(axis=(0, 1)))
    for fold in range(3):
        trained = folds.training(fold, *everything(folds)).sum()
        assert numbers["trained"][fold] == trained and numbers["left"][fold] == trained / counts.sum()
    assert "3 folds (blocks) of 64 blocks; buffer 4 base pixels" in folds.describe()


def test_round_a_body_the_buffer_goes_on_where_the_columns_come_back():
    flat, turned = make(), make(wrap_columns=64)
    np.testing.assert_array_equal(flat.fold_numbers >= 0, turned.fold_numbers >= 0)
    at = np.arange(64) + 0.5
    for fold in range(3):
        tested = turned.testing(fold, *everything(turned))
        expected = ~too_near(np.concatenate([tested] * 3, axis=1), 4)[:, 64:128]
        np.testing.assert_array_equal(turned.training(fold, *everything(turned)), expected)
        finer = turned.training(fold, *everything(turned, scale=2), scale=2)
        np.testing.assert_array_equal(finer[::2, ::2] & finer[1::2, 1::2], expected)
        centres = turned.training_at(fold, np.full(64, 20.5), at)
        assert centres[expected[20]].all() and not centres[tested[20]].any()
    assert any(
        flat.training(f, *everything(flat)).sum() > turned.training(f, *everything(flat)).sum() for f in range(3)
    )


def test_rectangles_across_the_line_where_columns_come_back():
    options = {"left": -180.0, "top": 32.0, "resolution": 1.0, "buffer": 4, "seed": 0}
    labels = LabelCells(full(64, 360), shape=(64, 360), cell=4, wrap_columns=360)
    folds = folds_from_rectangles([(170.0, 0.0, 190.0, 16.0)], labels, **options)
    tested = folds.testing(0, *everything(folds))
    assert tested[16:32, :10].all() and tested[16:32, 350:].all() and tested.sum() == 16 * 20
    assert not folds.training(0, *everything(folds))[16:32, 10:14].any()


def test_the_leaking_control_has_the_same_folds_and_trains_on_everything():
    clean, control = make(), make(split="leaking")
    assert np.array_equal(control.fold_numbers, clean.fold_numbers) and np.array_equal(
        control.block_numbers, clean.block_numbers
    )
    for fold in range(3):
        assert np.array_equal(control.testing(fold, *everything(clean)), clean.testing(fold, *everything(clean)))
        assert control.training(fold, *everything(clean)).all()
        assert not (clean.training(fold, *everything(clean)) & clean.testing(fold, *everything(clean))).any()
    assert control.summary()["warning"] == CONTROL_WARNING and "WARNING leaking" in control.describe()


def test_kept_labels_have_a_seed_of_their_own():
    one, other = (make(label_fraction=0.3, label_seed=seed) for seed in (1, 2))
    assert np.array_equal(one.fold_numbers, other.fold_numbers)
    assert not np.array_equal(one.label_ranks, other.label_ranks)
    assert np.array_equal(make(label_fraction=0.3).label_ranks, make(label_fraction=0.3, label_seed=0).label_ranks)


class TestLabelBlocks:
    @pytest.mark.parametrize("early_stopping", [False, True])
    @pytest.mark.parametrize("seed", range(4))
    def test_blocks_keep_all_labels_that_may_be_trained_on_and_others_none(self, seed, early_stopping):
        options = {"seed": seed, "early_stopping": early_stopping, "block": 2, "label_seed": 7 + seed}
        every, small, large = (make(**options, label_blocks=count) for count in (None, 1, 2))
        window = everything(every)
        for fold in range(3):
            np.testing.assert_array_equal(small.testing(fold, *window), every.testing(fold, *window))
            usable = every.training(fold, *window)
            np.testing.assert_array_equal(small.training(fold, *window, all_labels=True), usable)
            kept, more = small.training(fold, *window), large.training(fold, *window)
            assert kept.any() and not (kept & ~more).any()
            inside = np.isin(small.blocks_of(*window), small.summary()["kept_blocks"][fold])
            np.testing.assert_array_equal(kept, inside & usable)
            assert usable[inside].mean() >= 0.5
            assert small.kept_blocks[fold].sum() == 1 and large.kept_blocks[fold].sum() == 2

    def test_written_out(self):
        """64 blocks of 8 x 8 with a label at every pixel; without a buffer all of them can be used."""
        folds = make(label_blocks=2, label_seed=5, buffer=0)
        window = everything(folds)
        for fold in range(3):
            assert folds.training(fold, *window).sum() == 2 * 64 == folds.label_counts["trained"][fold]
            usable = folds.training(fold, *window, all_labels=True).sum()
            cells = folds.label_counts["left"][fold] * 64 * 64
            assert folds.kept_shares[fold] == pytest.approx(2 * 64 / cells) and cells <= usable
        summary = folds.summary()
        assert summary["label_blocks"] == 2 and [len(of) for of in summary["kept_blocks"]] == [2, 2, 2]
        assert "of which those in 2 blocks are used, 5 to 5 %" in folds.describe()
        assert "label_blocks" not in make().summary()  # summaries of earlier versions stay equal
        assert not np.array_equal(folds.kept_blocks, make(label_blocks=2, label_seed=6, buffer=0).kept_blocks)
        assert np.array_equal(folds.kept_blocks, make(label_blocks=2, label_seed=5, buffer=0).kept_blocks)

    def test_points_as_pixels(self):
        row, col = np.random.default_rng(0).uniform(0, 64, (2, 300))
        counts = count_points(row, col, np.zeros(300, dtype=int), shape=(64, 64), cell=4, kinds=1)
        folds = make(counts, buffer=0, label_blocks=3)
        for fold in range(3):
            pixels = folds.training(fold, *everything(folds))
            np.testing.assert_array_equal(folds.training_at(fold, row, col), pixels[row.astype(int), col.astype(int)])
            assert folds.training_at(fold, row, col).sum() == folds.label_counts["trained"][fold]

    def test_more_than_there_are(self):
        with pytest.raises(ValueError, match=r"--label_blocks 60: fold 0 has [0-9]+ labelled blocks at least half"):
            make(label_blocks=60)
        with pytest.raises(ValueError, match="test and validation ground and the buffer of 4 base pixels, expected at"):
            make(label_blocks=60, early_stopping=True)
