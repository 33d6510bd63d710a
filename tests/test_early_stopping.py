"""When fits end, and what is kept of them."""

import copy
import json
import logging
from types import SimpleNamespace

import numpy as np
import pytest
import torch

import main_finetune
from tests import labelled, surveys
from tests.rasters import write_grid
from tests.test_finetune_resume import assert_same_fit, stop_at
from util.finetuning.early_stopping import begin_decay_if_due, decay_epochs, learning_rate_of, median_epochs
from util.finetuning.fit import FitProgress, note_best
from util.finetuning.scoring import some_numbers, some_units
from util.mosaics.mosaic import Block
from util.options import finetune_checks as checks
from util.options.finetune import EPOCHS, PATIENCE
from util.training.lr_sched import Schedule

THREE_FOLDS = "--folds 3 --fold_block 1 --val_buffer 2".split()
"""Folds of the small survey that leave ground for validation."""
SHORT = [*THREE_FOLDS, *"--epochs 3 --patience 2 --only_folds 0 1".split()]
"""Two fits of nine updates, and the last one."""


class Network(torch.nn.Module):
    """One weight."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))


def course(scores, *, patience, bound, updates=10):
    """Trains a network whose weight is the number of epochs behind it; returns the fit and the rates of its epochs."""
    schedule = Schedule(
        tiles=updates, updates=updates, epochs=bound, warmup_steps=0, peak_lr=1.0, min_lr=0.0, effective_batch=1
    )
    progress = FitProgress(last_epoch=bound)
    fit = SimpleNamespace(name="fit", patience=patience, progress=progress, schedule=schedule, network=Network())
    fit.updater = SimpleNamespace(average=None)
    rates = []
    while progress.epoch < progress.last_epoch:
        rates.append(learning_rate_of(fit))
        with torch.no_grad():
            fit.network.weight += 1
        progress.step += updates
        progress.readings = [[updates, 0.0, 0.0]]
        progress.end_epoch()
        assert fit.network.weight.item() == progress.trained
        note_best(fit, scores[progress.epoch - 1])
        begin_decay_if_due(fit)
    return fit, rates


def test_a_fit_returns_to_its_best_weights_and_lets_the_rate_fall():
    """Best after 8 epochs; 3 more without a better score; then 2 epochs of decay, a fifth of 8 + 2."""
    rising = [0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.7, 0.75, 0.8]
    fit, rates = course([*rising, 0.85, 0.9, *[0.0] * 20], patience=3, bound=100)
    assert fit.progress.epoch == 13 and rates == pytest.approx([1.0] * 12 + [0.5])
    assert (fit.progress.best_epoch, fit.progress.kept_epochs) == (12, 10)
    assert fit.progress.best_model["weight"].item() == 10  # 8 and 2


def test_what_the_decay_does_not_better_is_not_kept():
    fit, _ = course([0.1, 0.9, *[0.5] * 20], patience=4, bound=100)
    assert (fit.progress.epoch, fit.progress.best_epoch, fit.progress.kept_epochs) == (7, 1, 2)
    assert fit.progress.best_model["weight"].item() == 2


def test_the_bound_leaves_room_for_the_decay():
    fit, rates = course(list(range(40)), patience=5, bound=20)
    assert fit.progress.epoch == fit.progress.kept_epochs == 20
    assert rates[:17] == [1.0] * 17 and sorted(rates[16:], reverse=True) == rates[16:] and rates[-1] < 0.2
    for bound in range(1, 30):
        for stop in range(bound):
            scores = [float(min(epoch, stop)) for epoch in range(bound)]
            assert course(scores, patience=2, bound=bound)[0].progress.epoch <= bound


def test_scores_that_are_not_defined_end_nothing():
    fit, _ = course([float("-inf")] * 12, patience=2, bound=12)
    assert fit.progress.epoch == fit.progress.kept_epochs == 12 and not fit.progress.best_model


def test_lengths():
    assert [decay_epochs(number) for number in (1, 2, 10, 150)] == [1, 1, 2, 30]
    assert median_epochs([3, 100, 7]) == 7 and median_epochs([4, 6]) == 5 and median_epochs([0]) == 1


def test_large_validation_ground_is_sampled():
    numbers = np.arange(100) * 3
    few = some_numbers(numbers, most=10, seed=1)
    assert len(few) == 10 and np.isin(few, numbers).all() and (np.diff(few) > 0).all()
    np.testing.assert_array_equal(few, some_numbers(numbers, most=10, seed=1))
    np.testing.assert_array_equal(numbers, some_numbers(numbers, most=100, seed=1))
    units = [Block(number, 0, number, 0, number + 1, 1) for number in range(50)]
    odd = some_units(units, lambda unit: unit.top % 2 == 1, most=5, seed=0)
    assert len(odd) == 5 and all(unit.top % 2 for unit in odd) and odd == sorted(odd, key=lambda unit: unit.top)
    assert some_units(units, lambda unit: unit.top % 2 == 1, most=99, seed=0) == units[1::2]


# The program


@pytest.fixture(scope="module")
def survey(tmp_path_factory):
    """The small survey."""
    return surveys.write_survey(tmp_path_factory.mktemp("survey"))


@pytest.fixture(scope="module")
def labels(tmp_path_factory):
    """Three classes."""
    return labelled.write_classes(tmp_path_factory.mktemp("labels"))


@pytest.fixture(scope="module")
def stopped(survey, labels, tmp_path_factory):
    """A run of two folds and the last fit."""
    output = tmp_path_factory.mktemp("stopped")
    assert labelled.finetune(survey, output, *SHORT, labels=labels) == 0
    return output


def options_of(output):
    return json.loads((output / "run.json").read_text(encoding="utf-8"))["options"]


def test_each_epoch_is_validated(stopped):
    for fold in (0, 1):
        lines = [line for line in surveys.log(stopped, "epoch") if line["fold"] == fold]
        assert len(lines) == 3 and all(np.isfinite(line["validation"]) for line in lines)
        rates = [line["lr"] for line in lines]
        assert rates[:2] == [0.003] * 2 and rates[2] < 0.001  # of the last of the three updates of each epoch
        record = labelled.scores(stopped, "scratch", fold)
        assert record["epochs"] == 3 and record["updates"] == 9 and record["validation_seconds"] > 0
        assert record["kept_epochs"] == 1 + int(np.argmax([line["validation"] for line in lines]))


def test_the_last_fit_is_as_long_as_the_folds_were_worth(stopped):
    kept = [labelled.scores(stopped, "scratch", fold)["kept_epochs"] for fold in (0, 1)]
    state, lines = labelled.fit(stopped, "scratch", None), surveys.log(stopped, "epoch")
    assert state["epoch"] == round(np.median(kept)) == len([line for line in lines if line["fold"] is None])
    assert state["length"]["decay_epoch"] == state["epoch"] - 1 and not state["best"]["model"]
    assert "validation" not in lines[-1]


def test_stopped_and_continued(survey, labels, stopped, tmp_path):
    """In a fold, and in the fit on all labels."""
    flags = [*SHORT, "--resume", "auto"]
    for update in (8, 13):
        with stop_at(update):
            assert labelled.finetune(survey, tmp_path, *flags, labels=labels) == 0
    assert labelled.fit(tmp_path, "scratch", None)["step"] >= 1
    assert labelled.finetune(survey, tmp_path, *flags, labels=labels) == 0
    for fold in (0, 1, None):
        assert_same_fit(labelled.fit(tmp_path, "scratch", fold), labelled.fit(stopped, "scratch", fold))
    for fold in (0, 1):
        ours, theirs = (labelled.scores(output, "scratch", fold) for output in (tmp_path, stopped))
        assert ours["test"] == theirs["test"] and ours["kept_epochs"] == theirs["kept_epochs"]


def test_patience_0_is_a_cosine_over_all_epochs(survey, labels, tmp_path):
    flags = [*THREE_FOLDS, *"--patience 0 --epochs 3 --only_folds 0 --no_final".split()]
    assert labelled.finetune(survey, tmp_path, *flags, labels=labels) == 0
    lines = surveys.log(tmp_path, "epoch")
    rates = [0.003 * (1 + np.cos(np.pi * step / 9)) / 2 for step in (2, 5, 8)]
    assert [line["lr"] for line in lines] == pytest.approx(rates, abs=1e-6)
    assert not any("validation" in line for line in lines)
    state = labelled.fit(tmp_path, "scratch")
    assert not state["folds"]["early_stopping"] and not state["best"]["model"]


def weights_validated(survey, labels, output, monkeypatch, *flags):
    """Weights that the epochs of a fit are validated with, and those of their last updates."""
    validated, last = [], []

    def note(fit, score):
        validated.append(copy.deepcopy(fit.network.state_dict()))
        with fit.updater.averaged():  # once more, which gives the network its own weights
            last.append(copy.deepcopy(fit.network.state_dict()))
        note_best(fit, score)

    monkeypatch.setattr("util.finetuning.run.note_best", note)
    assert labelled.finetune(survey, output, *SHORT, "--only_folds", "0", "--no_final", *flags, labels=labels) == 0
    return validated, last


def test_the_average_of_the_weights_is_validated_and_kept(survey, labels, tmp_path, monkeypatch):
    plain, _ = weights_validated(survey, labels, tmp_path / "plain", monkeypatch, "--ema_decay", "0")
    validated, last = weights_validated(survey, labels, tmp_path / "ours", monkeypatch)
    assert surveys.same_bits(dict(plain[0]), dict(last[0])) and not surveys.same_bits(
        dict(plain[0]), dict(validated[0])
    )
    state = labelled.fit(tmp_path / "ours", "scratch", 0)
    assert surveys.same_bits(dict(state["model"]), dict(validated[state["best"]["epoch"]]))
    losses = [[line["loss"] for line in surveys.log(tmp_path / name, "epoch")] for name in ("plain", "ours")]
    assert losses[0][:2] == losses[1][:2]  # until the rate falls


def test_without_validation_the_last_average_is_kept(survey, labels, tmp_path):
    flags = [*THREE_FOLDS, *"--patience 0 --epochs 2 --only_folds 0 --no_final".split()]
    for decay in ("0", "0.99"):
        assert labelled.finetune(survey, tmp_path / decay, *flags, "--ema_decay", decay, labels=labels) == 0
    plain, ours = (labelled.fit(tmp_path / decay, "scratch", 0) for decay in ("0", "0.99"))
    assert surveys.same_bits(plain["optimizer"], ours["optimizer"]) and ours["averaged_updates"] == 6
    assert surveys.same_bits(dict(ours["model"]), dict(ours["raw_model"]))
    assert not surveys.same_bits(dict(plain["model"]), dict(ours["model"])) and "raw_model" not in plain
    assert "ema_decay" not in options_of(tmp_path / "0") and options_of(tmp_path / "0.99")["ema_decay"] == 0.99


def chosen(argv, *, validates=True):
    """Epochs and patience of a command line, where labels allow validation or not."""
    args = checks.with_length(main_finetune.get_args_parser().parse_args(argv.split()))
    args = checks.with_patience(args, validates=validates)
    return args.epochs, args.patience


def test_early_stopping_is_on_where_it_can_end_a_fit():
    assert chosen("") == chosen("--folds 3") == (EPOCHS, PATIENCE) == (150, 20)
    assert chosen("--epochs 21") == (21, 20) and chosen("--epochs 20") == (20, 0)
    assert chosen("--epochs 4 --patience 2") == (4, 2) and chosen("--patience 0") == (150, 0)
    for without in ("--folds 2", "--split from_checkpoint --finetune a.pth"):
        assert chosen(without) == (150, 0)
    assert chosen("", validates=False) == (150, 0)  # too few labels
    assert chosen("--dataset_type rgb", validates=False) == (15, 0)
    with pytest.raises(ValueError, match="--patience does not go with --dataset_type rgb.*choose --epochs"):
        chosen("--dataset_type rgb --patience 3")


def test_the_default_patience_validates(survey, labels, tmp_path):
    flags = "--tiles_per_epoch 4 --no_final --only_folds 0 --epochs 21".split()
    assert labelled.finetune(survey, tmp_path, *THREE_FOLDS, *flags, labels=labels) == 0
    assert options_of(tmp_path)["patience"] == PATIENCE
    assert all(np.isfinite(line["validation"]) for line in surveys.log(tmp_path, "epoch"))


def test_two_folds_leave_no_ground_for_validation(survey, labels, tmp_path, caplog):
    caplog.set_level(logging.INFO)
    assert labelled.finetune(survey, tmp_path, "--only_folds", "0", "--no_final", labels=labels) == 0
    assert "networks are trained for 2 epochs, without validation" in caplog.text
    assert options_of(tmp_path)["patience"] == 0


def test_few_labels_are_all_trained_on(survey, tmp_path, caplog):
    """Two classes in three blocks: with one tested and one validated, a single one would be left."""
    codes = np.zeros((160, 160), np.uint8)
    for column in (0, 64, 128):
        codes[64:96, column : column + 16], codes[64:96, column + 16 : column + 32] = 3, 7
    codes[64:96, 0:32] = 3
    codes[64:96, 64:96] = 7
    path = write_grid(tmp_path / "few.tif", codes, nodata=0)
    flags = [*THREE_FOLDS, *"--no_final --only_folds 0 --epochs 21 --tiles_per_epoch 4".split()]
    assert labelled.finetune(survey, tmp_path / "output", *flags, labels=path) == 0
    assert "too few labels to set ground aside for validation" in caplog.text
    assert options_of(tmp_path / "output")["patience"] == 0
    first = tmp_path / "output/fits/scratch-fold0/checkpoint-last.pth"
    assert labelled.score(first, tmp_path / "eval") == 0  # the same folds again


# Whole blocks of labels


@pytest.mark.parametrize(("task", "flags"), [("segmentation", "--label_scale 2"), ("regression", "")])
def test_whole_blocks_of_labels(survey, tmp_path, caplog, task, flags):
    caplog.set_level(logging.INFO)
    path = (labelled.write_classes if task == "segmentation" else labelled.write_values)(tmp_path)
    more = [*flags.split(), "--task", task, "--label_blocks", "2", "--fold_block", "1", "--only_folds", "0"]
    assert labelled.finetune(survey, tmp_path / "output", *more, "--baselines", "constant", labels=path) == 0
    assert "of which those in 2 blocks are used" in caplog.text
    split = labelled.read_strict(tmp_path / "output/metrics.json")["split"]
    state = labelled.fit(tmp_path / "output", "scratch")
    pixels = 16 * 16 if task == "segmentation" else 8 * 8  # of a block
    assert split["label_blocks"] == 2 and split["kept_blocks"] == state["folds"]["kept_blocks"]
    assert 0.8 * pixels < split["trained"][0] <= state["training"]["labels"] <= 2 * pixels
    assert labelled.scores(tmp_path / "output", "constant")["train_labels"] == state["training"]["labels"]
    assert not (tmp_path / "output/checkpoint-last.pth").exists()  # no fit on all labels after one on some
    assert labelled.score(tmp_path / "output/fits/scratch-fold0/checkpoint-last.pth", tmp_path / "eval") == 0


@pytest.mark.parametrize("name", ["points.csv", "kinds.csv", "classes.tif"])
def test_whole_blocks_of_windows(survey, tmp_path, name):
    kinds = ("basalt", "granite") if name == "kinds.csv" else ()
    path = labelled.write_classes(tmp_path) if name == "classes.tif" else None
    path = path or labelled.write_points(tmp_path, count=60, kinds=kinds, name=name)
    flags = "--task classification --label_blocks 5 --fold_block 1 --only_folds 0 --background_distance 2".split()
    more = [*flags, *(["--label_column", "rock"] if kinds else [])]
    more += ["--val_buffer", "0"] if name == "classes.tif" else []  # with any, all tiles touch a block of one tile
    assert labelled.finetune(survey, tmp_path / "output", *more, labels=path) == 0
    state = labelled.fit(tmp_path / "output", "scratch")
    counts = np.array(state["training"]["class_counts"])
    known = counts[1] if name == "points.csv" else counts.sum()  # background is drawn on all training ground
    assert 0 < known <= 30 and len(state["folds"]["kept_blocks"][0]) == 5
