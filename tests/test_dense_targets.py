"""Labels on target pixels and the windows that are trained on, per fold."""

from types import SimpleNamespace
from unittest import mock

import numpy as np
import pytest
import torch

from datasets.finetuning.finetune_data import LabelOptions, SplitOptions, TargetOptions, open_targets
from datasets.finetuning.layers import LayerOptions, labels_path, layers_that_are, open_layers
from datasets.finetuning.window_targets import point_examples, tile_examples
from datasets.folds.make_folds import LabelCells, make_folds
from datasets.labels.label_map import LabelMap, seen_ground
from datasets.layers.layer import Layer
from datasets.rasters.scan import scan
from tests import labelled, surveys
from tests.rasters import write_grid
from util.finetuning.tasks import TASKS, task_of_labels

SIZE = 8
LAYERS = {"input_size": SIZE, "cache": "ram", "scales": (1, 2, 4)}
SPLIT = {
    "split": "blocks",
    "folds": 2,
    "block": 0,
    "buffer": 4,
    "label_fraction": 1.0,
    "early_stopping": False,
    "seed": 0,
    "label_seed": 0,
}
TARGETS = {
    "scale": 1,
    "overlap": 0.5,
    "min_labelled": 0.5,
    "background_ratio": 3.0,
    "background_distance": 2.0,
    "jitter": 1,
}


def opened(folder, **changes):
    return open_layers(None, LayerOptions(**(LAYERS | {"data_dir": str(folder)} | changes)), local_ranks=1)


def targets(survey, path, *, task="segmentation", split=None, how=None, **changes):
    kind = {"per_pixel": TASKS[task].per_pixel, "has_classes": TASKS[task].has_classes}
    return open_targets(
        survey,
        str(path),
        labels=LabelOptions(**(how or {})),
        targets=TargetOptions(**(TARGETS | kind | changes)),
        split=SplitOptions(**(SPLIT | (split or {}))),
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The small survey: a folder of layers."""
    return surveys.write_survey(tmp_path_factory.mktemp("survey"))


@pytest.fixture(scope="module")
def labels_folder(tmp_path_factory):
    """Where labels lie."""
    return tmp_path_factory.mktemp("labels")


@pytest.fixture(scope="module")
def survey(folder):
    return opened(folder).survey


@pytest.fixture(scope="module")
def classes(labels_folder):
    return labelled.write_classes(labels_folder)


@pytest.fixture(scope="module")
def values(labels_folder):
    return labelled.write_values(labels_folder)


# Which layers


def test_each_raster_is_scanned_once_from_scratch(folder):
    with mock.patch("datasets.survey.open_layers.scan", wraps=scan) as counted:
        layers = opened(folder).layers
    assert [call.args[0].layer.name for call in counted.call_args_list] == [layer["name"] for layer in layers]


def test_layers_from_scratch_are_read_as_those_of_its_checkpoint(folder):
    fresh = opened(folder)
    stored = {
        "layers": fresh.layers,
        "statistics": fresh.statistics,
        "encodings": fresh.encodings,
        "model_config": {"img_size": SIZE},
        "options": {"scales": (1, 2, 4)},
    }
    again = open_layers(stored, LayerOptions(), local_ranks=1)
    assert again.survey.ground() == fresh.survey.ground() and again.encodings == fresh.encodings
    samples = [
        layers.survey.read(0, 0, 40, 40).sample(np.array([[5, 7]]), torch.device("cpu")) for layers in (fresh, again)
    ]
    assert torch.equal(samples[0].imgs, samples[1].imgs) and torch.equal(samples[0].valid, samples[1].valid)


# Which ground and which labels


def test_seen_ground_is_where_some_layer_is_valid(survey):
    seen = seen_ground(survey)
    assert seen.shape == (40, 40)
    # Both layers have a hole of 2 km by 3 km in the north-western corner, which base pixels of 400 m tell whole.
    assert not seen[:5, :7].any() and seen[6:, :].all() and seen[:, 8:].all()


@pytest.mark.parametrize("scale", [1, 2, 4])
def test_labels_where_no_layer_is_valid_are_dropped(survey, classes, scale):
    data = targets(survey, classes, scale=scale)
    labels, seen = data.labels, seen_ground(survey)
    assert labels.values.shape == (40 * scale, 40 * scale)
    here = np.repeat(np.repeat(seen, scale, axis=0), scale, axis=1)
    assert not (labels.labelled(0, 0, 40 * scale, 40 * scale) & ~here).any()
    assert labels.dropped > 0 and any("lie where no layer" in note for note in data.warnings)


def test_what_is_labelled_under_nodata_changes_nothing(survey, tmp_path):
    data = []
    for number, code in enumerate((3, 7)):
        where = tmp_path / str(number)
        where.mkdir()
        path = labelled.write_classes(where)
        codes = np.tile(np.array([3, 7, 12]), (160, 54))[:, :160].astype(np.uint8)
        codes[:20, :28] = code  # inside the hole of both layers
        data.append(targets(survey, write_grid(path, codes, nodata=0)))
    first, second = data
    assert np.array_equal(first.labels.values, second.labels.values)
    assert first.folds.summary() == second.folds.summary()
    assert first.targets.fold(0).statistics == second.targets.fold(0).statistics


@pytest.mark.parametrize("fraction", [1.0, 0.3])
def test_larger_base_pixels_leave_ground_and_labels_of_the_same_target_pixels(folder, classes, fraction):
    """A base pixel of 400 m predicted at 1x, and of 800 m at 2x: tested and trained pixels of 400 m agree."""
    found = []
    for base, scale in ((400.0, 1), (800.0, 2)):
        ground = opened(folder, base_resolution=base, input_size=SIZE // scale).survey
        split = {"buffer": 4 // scale, "label_fraction": fraction}
        found.append(targets(ground, classes, scale=scale, split=split))
    fine, coarse = found
    assert np.array_equal(fine.labels.values, coarse.labels.values)
    for fold in (0, 1):
        assert fine.targets.fold(fold).statistics.class_counts == coarse.targets.fold(fold).statistics.class_counts
        for name in ("testing", "training"):
            first, second = (
                getattr(of.folds, name)(fold, 0, 0, 40, 40, scale=scale) for of, scale in ((fine, 1), (coarse, 2))
            )
            assert first.any() and np.array_equal(first, second), name


def test_a_window_of_the_map_is_a_slice_of_it_and_unlabelled_outside(survey, classes):
    labels = targets(survey, classes, scale=2).labels
    window = labels.read(-3, 70, 20, 20)
    assert np.array_equal(window[3:, :10], labels.values[:17, 70:80])
    assert (window[:3] == -1).all() and (window[:, 10:] == -1).all()


def test_counts_are_those_of_the_pixels(survey, classes, values):
    labels = targets(survey, classes, scale=2).labels
    counts = labels.count(7)
    assert counts.shape == (6, 6, 3)
    expected = np.bincount(labels.values[labels.values >= 0], minlength=3)
    assert counts.sum(axis=(0, 1)).tolist() == expected.tolist()
    part = labels.values[14:28, 42:56]
    assert counts[1, 3].tolist() == [(part == k).sum() for k in range(3)]
    measured = targets(survey, values, task="regression").labels
    assert measured.count(40).tolist() == [[[np.isfinite(measured.values).sum()]]]


# Training windows of a fold


@pytest.mark.parametrize("scale", [1, 2])
def test_training_labels_keep_away_from_test_ground(survey, classes, scale):
    data = targets(survey, classes, scale=scale)
    for fold in range(2):
        examples = data.targets.fold(fold)
        _, tested = data.targets.truth((0, 0, 40 * scale, 40 * scale), fold=fold)
        trained = examples.training(0, 0, 40 * scale, 40 * scale)
        assert tested.any() and trained.any()
        rows, cols = np.nonzero(data.folds.testing(fold, 0, 0, 40 * scale, 40 * scale, scale=scale))
        for row, col in np.argwhere(trained)[::37]:
            gap = np.maximum(np.abs(rows - row), np.abs(cols - col)).min() - 1
            assert gap >= 4 * scale


def test_a_batch_holds_training_labels_alone(survey, classes):
    data = targets(survey, classes, scale=2)
    examples = data.targets.fold(1)
    jobs = examples.epoch(seed=3, epoch=0, tiles=50, augment=True)
    batch = examples.read(jobs)
    assert batch.target.shape == (50, 16, 16) and batch.target.dtype == torch.int64
    for (row, col, _), target in zip(jobs, batch.target.numpy(), strict=True):
        window = (row * 2, col * 2, 16, 16)
        trained = examples.training(*window)
        assert np.array_equal(target >= 0, trained)
        assert np.array_equal(target[trained], data.labels.read(*window)[trained])


def test_facts_are_those_of_the_training_labels(survey, classes, values):
    examples = targets(survey, classes).targets.fold(0)
    data = targets(survey, classes)
    trained = data.labels.values[examples.training(0, 0, 40, 40)]
    assert examples.statistics.class_counts == tuple(np.bincount(trained, minlength=3).tolist())
    assert examples.statistics.labels == len(trained)
    measured = targets(survey, values, task="regression")
    fold = measured.targets.fold(0)
    kept = measured.labels.values[fold.training(0, 0, 40, 40)].astype(np.float64)
    assert fold.statistics.mean == pytest.approx(kept.mean()) and fold.statistics.std == pytest.approx(kept.std())


def test_epochs_are_functions_of_seed_and_number(survey, classes):
    examples = targets(survey, classes).targets.fold(0)
    first = examples.epoch(seed=1, epoch=4, tiles=30, augment=True)
    assert np.array_equal(first, examples.epoch(seed=1, epoch=4, tiles=30, augment=True))
    assert not np.array_equal(first, examples.epoch(seed=1, epoch=5, tiles=30, augment=True))
    assert (first[:, :2] >= 0).all() and (first[:, :2] <= 40 - SIZE).all()
    assert set(first[:, 2]) == set(range(8))
    still = examples.epoch(seed=1, epoch=4, tiles=30, augment=False)
    assert not still[:, 2].any() and np.array_equal(still[:, :2], first[:, :2])


def test_every_window_with_a_training_label_is_among_the_origins(survey, classes):
    examples = targets(survey, classes).targets.fold(0)
    trained = examples.training(0, 0, 40, 40)
    lattice = [(row, col) for row in range(0, 33, 4) for col in range(0, 33, 4)]
    expected = [place for place in lattice if trained[place[0] : place[0] + 8, place[1] : place[1] + 8].any()]
    assert [tuple(origin) for origin in examples.origins.tolist()] == expected


def test_all_labels_for_the_last_fit(survey, classes):
    data = targets(survey, classes)
    assert data.targets.fold(None).statistics.labels == int(data.labels.count(4).sum())


def test_sampled_pixels_are_training_pixels(survey, classes):
    data = targets(survey, classes)
    examples = data.targets.fold(0)
    pixels, kinds = examples.sampled_pixels(100, seed=0)
    assert 60 < len(pixels) < 140
    trained = examples.training(0, 0, 40, 40)
    assert trained[pixels[:, 0], pixels[:, 1]].all()
    assert np.array_equal(kinds, data.labels.values[pixels[:, 0], pixels[:, 1]])
    every, _ = examples.sampled_pixels(10**6, seed=0)
    assert len(every) == trained.sum()


def test_rare_classes_are_among_the_sampled_pixels(survey, tmp_path):
    """Of 8 pixels of a class among 1,600 all are drawn, where a share of 50 would draw none in three of four cases."""
    codes = np.full((40, 40), 3, np.uint8)
    codes[:, 20:] = 7
    codes[10:12, 4:8] = 12
    labels = write_grid(tmp_path / "rare.tif", codes, resolution=400.0, nodata=0)
    examples = targets(survey, labels).targets.fold(None)
    for seed in range(5):
        _, kinds = examples.sampled_pixels(50, seed=seed)
        assert (kinds == 2).sum() == examples.statistics.class_counts[2] > 0
        assert 20 <= len(kinds) < 110


def test_a_share_of_the_labels_is_nested(survey, classes):
    kept = []
    for share in (0.1, 0.5, 1.0):
        data = targets(survey, classes, split={"label_fraction": share})
        kept.append(data.targets.fold(0).training(0, 0, 40, 40))
    assert (kept[0] <= kept[1]).all() and (kept[1] <= kept[2]).all()
    assert 0 < kept[0].sum() < kept[1].sum() < kept[2].sum()


# Windows with one class


def test_windows_around_points(survey, labels_folder):
    path = labelled.write_points(labels_folder, kinds=("basalt", "granite"), name="kinds.csv")
    data = targets(survey, path, task="classification", how={"column": "rock"})
    assert data.names == ("basalt", "granite") and not data.presence_only
    examples = data.targets.examples
    assert not examples.background.any()
    batch = data.targets.read(np.arange(3))
    assert batch.target.tolist() == examples.classes[:3].tolist() and not batch.turns.any()
    assert np.abs(data.targets.origins(np.arange(3)) + SIZE / 2 - examples.centres[:3]).max() <= 0.5


def test_presences_get_background_at_a_distance(survey, labels_folder):
    path = labelled.write_points(labels_folder, name="hole.csv")
    path.write_text(path.read_text() + "500500,5999500\n")  # in the hole of both layers
    data = targets(survey, path, task="classification")
    assert data.presence_only and data.outputs == 2
    assert task_of_labels("classification", presence_only=data.presence_only).name == "prospectivity"
    examples = data.targets.examples
    present, ground = examples.centres[examples.classes == 1], examples.centres[examples.classes == 0]
    assert len(ground) == 3 * len(present) and np.array_equal(examples.background, examples.classes == 0)
    gaps = np.linalg.norm(present[:, None] - ground[None], axis=2)
    assert gaps.min() >= 2.0
    seen = seen_ground(survey)
    assert seen[tuple(np.floor(examples.centres).astype(int).T)].all()
    assert any("1 points lie where no layer" in note for note in data.warnings)


def test_examples_of_a_fold_are_not_trained_on(survey, labels_folder):
    data = targets(survey, labelled.write_points(labels_folder), task="classification")
    tested = [set(data.targets.numbers(fold).tolist()) for fold in range(2)]
    assert not tested[0] & tested[1]
    for fold in range(2):
        chosen = data.targets.fold(fold).numbers
        assert not tested[fold] & set(chosen.tolist())
        places = data.targets.examples.centres
        gap = np.abs(places[chosen][:, None] - places[sorted(tested[fold])][None]).max(axis=2)
        assert gap.min() >= 4


def test_a_share_of_presences_keeps_the_background(survey, labels_folder):
    path = labelled.write_points(labels_folder)
    whole = targets(survey, path, task="classification").targets.fold(0).statistics.class_counts
    part = (
        targets(survey, path, task="classification", split={"label_fraction": 0.5})
        .targets.fold(0)
        .statistics.class_counts
    )
    assert part[0] == whole[0] and 0 < part[1] < whole[1]


def test_training_windows_are_shifted_and_turned(survey, labels_folder):
    fold = targets(survey, labelled.write_points(labels_folder), task="classification").targets.fold(0)
    jobs = fold.epoch(seed=0, epoch=0, tiles=200, augment=True)
    assert set(jobs[:, 1]) == {-1, 0, 1} and set(jobs[:, 3]) == set(range(8))
    assert not fold.epoch(seed=0, epoch=0, tiles=200, augment=False)[:, 1:].any()
    assert set(jobs[:, 0]) <= set(fold.numbers.tolist())


def test_a_tile_that_the_edge_cuts_is_centred_on_its_ground():
    """Tiles of 16 on 88 x 93 base pixels end at rows 80 to 88 and columns 80 to 93: none is lost to the folds."""
    classes = np.indices((88 * 2, 93 * 2)).sum(axis=0) // 40 % 2
    counts = np.zeros((6, 6, 2))
    np.add.at(counts, (*(np.indices(classes.shape) // 32), classes), 1)
    labels = SimpleNamespace(values=classes, scale=2, count=lambda size: counts, source="labels")
    examples = tile_examples(labels, size=16, least_labelled=0.1)
    assert len(examples.centres) == 36
    assert examples.centres[[0, 5, 30, 35]].tolist() == [[8, 8], [8, 86.5], [84, 8], [84, 86.5]]
    folds = make_folds(LabelCells(counts, (88, 93), 16), tile=16, folds=2, buffer=0, seed=0, block=2)
    assert set(folds.fold_at(*examples.centres.T)) == {0, 1}


def test_tiles_have_the_class_of_most_of_their_pixels(survey, tmp_path):
    codes = np.full((160, 160), 3, dtype=np.uint8)
    codes[:, 80:] = 7
    codes[96:128, 96:128] = 0  # a tile of 8 base pixels of 400 m without a label
    data = targets(survey, write_grid(tmp_path / "c.tif", codes, nodata=0), task="classification")
    centres = data.targets.examples.centres
    classes = data.targets.examples.classes
    assert [28.0, 28.0] not in centres.tolist()
    assert (classes[centres[:, 1] < 16] == 0).all() and (classes[centres[:, 1] > 24] == 1).all()
    with pytest.raises(ValueError, match="no tile of 8 base pixels is labelled over 200 %"):
        tile_examples(data.labels, size=SIZE, least_labelled=2.0)


# What is refused


def test_labels_elsewhere(survey, tmp_path):
    far = write_grid(tmp_path / "far.tif", np.full((20, 20), 3, np.uint8), left=900_000.0, nodata=0)
    with pytest.raises(ValueError, match="far.tif"):
        targets(survey, far)


def test_labels_on_unseen_ground_alone(survey, tmp_path):
    codes = np.zeros((160, 160), np.uint8)
    codes[:8, :8], codes[:8, 8:16] = 3, 7
    with pytest.raises(ValueError, match="none of them lies where a layer has a valid pixel"):
        targets(survey, write_grid(tmp_path / "hole.tif", codes, nodata=0))


def test_points_on_unseen_ground_alone():
    seen = np.zeros((10, 10), bool)
    seen[5:] = True
    kwargs = {"background_ratio": 2, "least_distance": 1, "seed": 0}
    with pytest.raises(ValueError, match="none of the 2 points lies where a layer has a valid pixel"):
        point_examples(np.array([[1.5, 1.5], [-3.0, 4.0]]), None, seen, **kwargs)
    with pytest.raises(ValueError, match="no ground is left for the background at least 50 base pixels"):
        point_examples(np.array([[7.5, 1.5]]), None, seen, **(kwargs | {"least_distance": 50}))


def test_values_that_are_all_the_same(survey, tmp_path):
    flat = write_grid(tmp_path / "flat.tif", np.full((160, 160), 2.5, np.float32))
    data = targets(survey, flat, task="regression")
    with pytest.raises(ValueError, match="training values are all 2.5; expected values that differ"):
        data.targets.fold(0)


def test_one_class_left_in_training(survey, tmp_path, labels_folder):
    path = labelled.write_points(tmp_path, kinds=("a",) * 23 + ("b",), name="one.csv")
    data = targets(survey, path, task="classification", how={"column": "rock"})
    with pytest.raises(ValueError, match="expected two classes; lower --val_buffer"):
        for fold in range(2):
            data.targets.fold(fold)


def test_labels_that_are_missing_or_a_layer_themselves(survey, folder, classes):
    with pytest.raises(ValueError, match="--labels is missing: expected a class raster"):
        labels_path(None, "labels/lithology.tif", survey.layers)
    assert labels_path(str(classes), "labels/lithology.tif", survey.layers) == str(classes)
    assert layers_that_are(str(folder / "magnetics.tif"), 1, survey.layers) == [1]
    assert layers_that_are(str(folder / "magnetics.tif"), 2, survey.layers) == []
    assert layers_that_are(str(classes), 1, survey.layers) == []


def test_labels_that_are_a_variable_of_a_store_of_layers(tmp_path):
    store = tmp_path / "a.nc"
    store.touch()
    layers = [
        Layer("a", f"xarray:{store}#a"),
        Layer("rock", f"xarray:{store}#fine/rock"),
        Layer("c", "https://c/c.tif"),
    ]
    assert layers_that_are(f"NETCDF:{store}:/fine/rock", 1, layers) == [1]
    assert layers_that_are(f"xarray:{store}#fine/rock", 1, layers) == [1]
    assert layers_that_are(str(store), 1, layers) == [0, 1]
    assert layers_that_are(f"xarray:{store}#other", 1, layers) == []
    assert layers_that_are("https://c/c.tif", 1, layers) == [2]


def test_every_layer_hidden(folder):
    with pytest.raises(ValueError, match="every layer is hidden, so there is nothing"):
        opened(folder, hidden=(0, 1))
    with pytest.raises(ValueError, match="--masked_bands 2: there are 2 layers"):
        opened(folder, hidden=(2,))


def test_two_sources_of_layers(folder):
    with pytest.raises(ValueError, match="give one of --data_dir and --train_path"):
        opened(folder, layers_table=str(folder / "layers.csv"))


def test_label_maps_do_not_care_how_they_are_gone_through(survey, classes, monkeypatch):
    whole = targets(survey, classes, scale=2)
    monkeypatch.setattr("datasets.labels.label_map.STRIP_PIXELS", 7 * 80)
    strips = targets(survey, classes, scale=2)
    assert isinstance(strips.labels, LabelMap) and np.array_equal(whole.labels.values, strips.labels.values)
    assert strips.targets.fold(0).statistics == whole.targets.fold(0).statistics
