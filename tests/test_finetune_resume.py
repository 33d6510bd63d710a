"""Fine-tuning that is stopped, killed or shared by processes gives what it would have given otherwise."""

import json
import logging
import os
import signal
from pathlib import Path
from unittest import mock

import pytest

import main_finetune
from tests import labelled, surveys
from util.records.finetune_records import FinetuneFiles

LASTING = (
    "model",
    "raw_model",
    "averaged_updates",
    "optimizer",
    "scaler",
    "epoch",
    "update",
    "step",
    "model_config",
    "task",
    "training",
    "options",
)
"""What must be equal, bit for bit, in the last checkpoints of a run that was stopped and of one that was not."""
CHANGING = ("output_dir", "log_dir", "resume", "save_minutes", "num_workers")
UPDATES = 18
"""Of a run with `labelled.FLAGS`: two folds and all labels, two epochs of three updates each."""


@pytest.fixture(scope="module")
def survey(tmp_path_factory):
    """The small survey."""
    return surveys.write_survey(tmp_path_factory.mktemp("survey"))


@pytest.fixture(scope="module")
def labels(tmp_path_factory):
    """Three classes."""
    return labelled.write_classes(tmp_path_factory.mktemp("labels"))


@pytest.fixture(scope="module")
def straight(survey, labels, tmp_path_factory):
    """The output of a run that nothing stopped."""
    output = tmp_path_factory.mktemp("straight")
    assert labelled.finetune(survey, output, labels=labels) == 0
    return output


def stop_at(update: int, number: int = signal.SIGTERM):
    """Sends this process a signal in an update, counted from 1 over the whole run."""
    seed, count = main_finetune.seed_step, [0]

    def seed_and_signal(*args, **kwargs):
        seed(*args, **kwargs)
        count[0] += 1
        if count[0] == update:
            signal.raise_signal(number)

    return mock.patch.object(main_finetune, "seed_step", seed_and_signal)


def assert_same_fit(ours: dict, theirs: dict) -> None:
    """What lasts of two checkpoints is equal, bit for bit."""
    for key in LASTING:
        one, other = (state[key] for state in (ours, theirs))
        if key == "options":
            one, other = ({k: v for k, v in part.items() if k not in CHANGING} for part in (one, other))
        assert surveys.same_bits(one, other), key


def assert_same_end(output: Path, straight: Path, arm: str = "scratch") -> None:
    """Checkpoints and scores are equal bit for bit, and the log has each line once."""
    for fold in (0, 1, None):
        assert_same_fit(labelled.fit(output, arm, fold), labelled.fit(straight, arm, fold))
    for fold in (0, 1):
        ours, theirs = (labelled.scores(folder, arm, fold) for folder in (output, straight))
        assert ours["test"] == theirs["test"] and ours["updates"] == theirs["updates"]
    for kind in ("epoch", "score"):
        lines = [[(x["arm"], x["fold"], x.get("epoch")) for x in surveys.log(f, kind)] for f in (output, straight)]
        assert lines[0] == lines[1]
    losses = [[line["loss"] for line in surveys.log(folder, "epoch")] for folder in (output, straight)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-6)  # the mean over an epoch that was stopped has two parts
    summaries = [labelled.read_strict(folder / "metrics.json")["arms"][arm]["summary"] for folder in (output, straight)]
    assert summaries[0] == summaries[1]


# Stopped and continued


def test_stopped_again_and_again(survey, labels, straight, tmp_path, caplog):
    """Within epochs, in their last updates, between folds, in the last fit: by every signal it knows."""
    caplog.set_level(logging.INFO)
    for count in range(UPDATES):
        with stop_at(4, (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)[count % 3]):
            assert labelled.finetune(survey, tmp_path, "--resume", "auto", labels=labels) == 0
        if "fitted on all labels, for main_inference" in caplog.text:
            break
    assert 3 <= count <= 5
    assert_same_end(tmp_path, straight)
    assert caplog.text.count("stopped by a signal; everything is saved") == count
    assert "scratch/fold0: resumed at epoch 2, update 1" in caplog.text
    assert "scratch fold 0 was done before" in caplog.text


def test_a_run_started_again_by_torchrun_goes_on(survey, labels, straight, tmp_path, monkeypatch):
    surveys.start_of_launch(monkeypatch, 0)
    with stop_at(4):
        assert labelled.finetune(survey, tmp_path, labels=labels) == 0
    surveys.start_of_launch(monkeypatch, 1)
    assert labelled.finetune(survey, tmp_path, labels=labels) == 0
    assert_same_end(tmp_path, straight)
    assert not (tmp_path / "earlier-1").exists()


@pytest.mark.parametrize("update", [3, 6])
def test_stopped_in_the_last_update_of_an_epoch_or_fit(survey, labels, straight, tmp_path, update):
    """The epoch is ended and kept; a fit that is done is scored before the run stops."""
    with stop_at(update):
        assert labelled.finetune(survey, tmp_path, labels=labels) == 0
    assert labelled.fit(tmp_path, "scratch")["step"] == update
    assert (tmp_path / "fits/scratch-fold0/scores.json").exists() == (update == 6)
    assert labelled.finetune(survey, tmp_path, "--resume", "auto", "--num_workers", "2", labels=labels) == 0
    assert_same_end(tmp_path, straight)


def test_epochs_of_one_update_are_stopped_too(survey, labels, tmp_path):
    flags = "--tiles_per_epoch 4 --no_final --only_folds 0 --epochs 4".split()
    assert labelled.finetune(survey, tmp_path / "straight", *flags, labels=labels) == 0
    with stop_at(2):
        assert labelled.finetune(survey, tmp_path / "output", *flags, labels=labels) == 0
    assert labelled.fit(tmp_path / "output", "scratch")["epoch"] == 2
    assert labelled.finetune(survey, tmp_path / "output", *flags, "--resume", "auto", labels=labels) == 0
    assert_same_fit(*(labelled.fit(tmp_path / name, "scratch") for name in ("output", "straight")))


def test_random_mixing_and_drop_path_go_on_where_they_were(survey, tmp_path):
    labels = labelled.write_points(tmp_path, kinds=("basalt", "granite"))
    flags = "--task classification --label_column rock --mixup 0.8 --cutmix 1 --reprob 0.5 --drop_path 0.3 --no_final"
    more = [*flags.split(), "--only_folds", "1"]
    assert labelled.finetune(survey, tmp_path / "straight", *more, labels=labels) == 0
    with stop_at(2):
        assert labelled.finetune(survey, tmp_path / "output", *more, labels=labels) == 0
    assert labelled.fit(tmp_path / "output", "scratch", 1)["step"] == 3 - 1
    assert labelled.finetune(survey, tmp_path / "output", *more, "--resume", "auto", labels=labels) == 0
    assert_same_fit(*(labelled.fit(tmp_path / name, "scratch", 1) for name in ("output", "straight")))


def test_early_stopping_is_resumed_with_its_best_weights(survey, labels, tmp_path):
    """Stopped after the epoch that exhausts the patience, before its scores: no further epoch is trained."""
    flags = (
        "--folds 3 --fold_block 1 --val_buffer 2 --patience 2 --epochs 24 --lr 0.02 --no_final --only_folds 0".split()
    )
    assert labelled.finetune(survey, tmp_path / "straight", *flags, labels=labels) == 0
    score, epochs = main_finetune.score, len(surveys.log(tmp_path / "straight", "epoch"))
    assert epochs < 24

    def fail_at_the_end(job, outputs, fold, *, validation=False):
        if not validation:
            raise OSError("the disk is gone")
        return score(job, outputs, fold, validation=True)

    with mock.patch.object(main_finetune, "score", fail_at_the_end):
        assert labelled.finetune(survey, tmp_path / "output", *flags, labels=labels) == 1
    assert labelled.finetune(survey, tmp_path / "output", *flags, "--resume", "auto", labels=labels) == 0
    with stop_at(4):
        assert labelled.finetune(survey, tmp_path / "cut", *flags, labels=labels) == 0
    assert labelled.finetune(survey, tmp_path / "cut", *flags, "--resume", "auto", labels=labels) == 0
    for name in ("output", "cut"):
        assert_same_fit(*(labelled.fit(tmp_path / folder, "scratch") for folder in (name, "straight")))
        assert len(surveys.log(tmp_path / name, "epoch")) == epochs
        ours, theirs = (labelled.scores(tmp_path / folder, "scratch") for folder in (name, "straight"))
        assert ours["test"] == theirs["test"]


def test_killed_at_any_time(survey, labels, straight, tmp_path):
    """Ended without a word, within an epoch and with a torn line in its log."""
    output = tmp_path / "output"
    arguments = labelled.arguments(survey, output, "--save_minutes", "0.000001", labels=labels)
    process = surveys.Started(arguments, tmp_path / "messages.txt", program=labelled.run)
    checkpoint = output / "fits/scratch-fold1/checkpoint-last.pth"
    process.wait_for(checkpoint.exists)
    os.kill(process.process.pid, signal.SIGKILL)
    assert process.wait()[0] == -signal.SIGKILL
    with open(output / "log.txt", "a", encoding="utf-8") as file:
        file.write('{"kind": "epo')
    finished = (output / "fits/scratch-fold0/scores.json").read_bytes()
    assert labelled.finetune(survey, output, "--resume", "auto", labels=labels) == 0
    assert (output / "fits/scratch-fold0/scores.json").read_bytes() == finished
    assert_same_end(output, straight)


def test_killed_between_a_line_of_the_log_and_its_checkpoint(survey, labels, straight, tmp_path):
    """An epoch, and scores, that are written but not yet kept are written anew: once."""

    def fail(*_, **__):
        raise OSError("no space left")

    with mock.patch.object(main_finetune, "save_fit", fail):
        assert labelled.finetune(survey, tmp_path, labels=labels) == 1
    assert len(surveys.log(tmp_path, "epoch")) == 1
    with mock.patch.object(FinetuneFiles, "write_fold_scores", fail):
        assert labelled.finetune(survey, tmp_path, "--resume", "auto", labels=labels) == 1
    assert len(surveys.log(tmp_path, "score")) == 1
    assert labelled.finetune(survey, tmp_path, "--resume", "auto", labels=labels) == 0
    assert_same_end(tmp_path, straight)


def test_a_damaged_checkpoint_is_passed_over(survey, labels, straight, tmp_path, caplog):
    with stop_at(9):
        assert labelled.finetune(survey, tmp_path, "--save_minutes", "0.000001", labels=labels) == 0
    last = tmp_path / "fits/scratch-fold1/checkpoint-last.pth"
    last.write_bytes(last.read_bytes()[:-40])
    assert labelled.finetune(survey, tmp_path, "--resume", "auto", labels=labels) == 0
    assert f"skipped {last}: " in caplog.text
    assert_same_end(tmp_path, straight)


# What a new run does with an old one


def test_an_earlier_run_is_moved_aside(survey, labels, tmp_path, caplog):
    output, events = tmp_path / "output", tmp_path / "events"
    flags = ["--no_final", "--only_folds", "0", "--log_dir", str(events)]
    assert labelled.finetune(survey, output, *flags, labels=labels) == 0
    table = output / "labels.csv"  # a file of the user's, who keeps things together
    table.write_text("not ours")
    before = {p.relative_to(output): p.read_bytes() for p in output.rglob("*") if p.is_file() and p != table}
    written = {p.relative_to(events): p.read_bytes() for p in events.rglob("*") if p.is_file()}
    assert len(written) == 2
    assert labelled.finetune(survey, output, *flags, labels=labels) == 0
    assert f"{output} held an earlier run: now in {output / 'earlier-1'}" in caplog.text
    assert {name: (output / "earlier-1" / name).read_bytes() for name in (*before, *written)} == {**before, **written}
    assert table.read_text() == "not ours"
    assert len(surveys.log(output, "epoch")) == 2 and len([p for p in events.rglob("*") if p.is_file()]) == 2


def test_events_of_other_runs_stay_in_a_folder_that_several_share(tmp_path):
    for name, aside in (("one", None), ("two", None), ("one", tmp_path / "one" / "earlier-1")):
        files = FinetuneFiles(tmp_path / name, tmp_path / "events", enabled=True)
        files.output_dir.mkdir(exist_ok=True)
        before = set((tmp_path / "events").glob("*"))
        assert files.begin({}, resume=False) == aside
        files.close()
        assert aside is not None or before < set((tmp_path / "events").glob("*"))


def test_a_finished_run_is_not_repeated(survey, labels, tmp_path, caplog):
    flags = ["--only_folds", "0"]
    assert labelled.finetune(survey, tmp_path, *flags, labels=labels) == 0

    def files() -> dict[Path, bytes]:
        """All but TensorBoard and the page, which say that the program was started again."""
        paths = (path for path in tmp_path.rglob("*") if path.is_file())
        return {path: path.read_bytes() for path in paths if "events" not in path.name and path.stem != "report"}

    before = files()
    with stop_at(1):  # no update is made
        assert labelled.finetune(survey, tmp_path, *flags, "--resume", "auto", labels=labels) == 0
    assert files() == before and not (tmp_path / "earlier-1").exists()


def test_more_folds_are_in_the_scores_of_the_last_fit(survey, labels, tmp_path):
    """What maps say of themselves: the scores of all folds that were run, also those added later."""
    assert labelled.finetune(survey, tmp_path, "--only_folds", "0", labels=labels) == 0
    assert labelled.finetune(survey, tmp_path, "--resume", "auto", labels=labels) == 0
    ours, (arm,) = surveys.checkpoint(tmp_path)["scores"], labelled.read_strict(tmp_path / "metrics.json")["arms"]
    theirs = labelled.read_strict(tmp_path / "metrics.json")["arms"][arm]["summary"]["mean_iou"]
    assert ours["arms"][arm]["summary"]["mean_iou"] == theirs and theirs["n"] > 1


@pytest.mark.parametrize(
    ("flags", "named"),
    [
        ("--seed 1", "options.seed: checkpoint 0, now 1"),
        ("--lr 0.1", "options.lr: checkpoint 0.003, now 0.1"),
        ("--label_scale 2", "options.label_scale: checkpoint 1, now 2"),
        ("--batch_size 8", "effective batch (batch_size x accum_iter x processes): checkpoint 4, now 8"),
        ("--val_buffer 5", "folds.buffer: checkpoint 4, now 5"),
    ],
)
def test_another_configuration_is_refused(survey, labels, straight, capsys, flags, named):
    before = {path: path.read_bytes() for path in straight.rglob("*") if path.is_file()}
    assert labelled.finetune(survey, straight, "--resume", "auto", *flags.split(), labels=labels) == 2
    message = capsys.readouterr().err
    assert named in message and "run.json of the checkpoint differs" in message
    assert {path: path.read_bytes() for path in straight.rglob("*") if path.is_file()} == before


def test_other_weights_to_start_from_are_refused(survey, labels, tmp_path, capsys):
    for seed in "01":
        assert surveys.train(survey, tmp_path / seed, "--epochs", "1", "--tiles_per_epoch", "8", "--seed", seed) == 0
    flags = ["--no_final", "--only_folds", "0", "--epochs", "1"]
    first, second = (["--finetune", str(tmp_path / seed / "checkpoint-last.pth")] for seed in "01")
    assert labelled.finetune(survey, tmp_path / "output", *flags, *first, labels=labels) == 0
    capsys.readouterr()
    assert labelled.finetune(survey, tmp_path / "output", *flags, *second, "--resume", "auto", labels=labels) == 2
    assert "weights of --finetune: checkpoint '" in capsys.readouterr().err


# Several processes


def test_two_processes_do_what_one_does(survey, labels, straight, tmp_path):
    """At equal effective batch; only the order of float32 sums differs. Trees and constants are the same."""
    flags = ["--baselines", "constant", "trees", "--tree_samples", "60"]
    arguments = labelled.arguments(survey, tmp_path / "pair", "--batch_size", "2", *flags, labels=labels)
    results = surveys.run_ranks(arguments, tmp_path, program=labelled.run)
    assert [status for status, _ in results] == [0, 0], results
    for fold in (0, 1, None):
        weights = [labelled.fit(output, "scratch", fold)["model"] for output in (tmp_path / "pair", straight)]
        labelled.assert_weights_agree(*weights)
    for fold in (0, 1):
        ours, theirs = (labelled.scores(output, "scratch", fold)["test"] for output in (tmp_path / "pair", straight))
        for key in ("mean_iou", "accuracy", "balanced_accuracy"):
            assert ours[key] == pytest.approx(theirs[key], abs=5e-3)
        assert ours["count"] == theirs["count"]
    lines = [[(x["fold"], x["epoch"]) for x in surveys.log(f, "epoch")] for f in (tmp_path / "pair", straight)]
    assert lines[0] == lines[1]


def test_windows_and_stops_of_two_processes(survey, tmp_path):
    """One process is signalled: both stop, and both go on. More processes than some fold has windows to score."""
    labels = labelled.write_points(tmp_path, count=9, kinds=("basalt", "granite", "basalt"))
    flags = "--task classification --label_column rock --no_final --val_buffer 1 --fold_block 1 --batch_size 2"
    more = [*flags.split(), "--baselines", "trees"]
    assert labelled.finetune(survey, tmp_path / "alone", *more, "--batch_size", "4", labels=labels) == 0
    arguments = labelled.arguments(survey, tmp_path / "pair", *more, labels=labels)
    results = surveys.run_ranks(arguments, tmp_path, before=(None, signal_at_update_2), program=labelled.run)
    assert [status for status, _ in results] == [0, 0], results
    assert "stopped by a signal; everything is saved" in results[0][1]
    assert labelled.fit(tmp_path / "pair", "scratch")["step"] == 2
    results = surveys.run_ranks([*arguments, "--resume", "auto"], tmp_path, program=labelled.run)
    assert [status for status, _ in results] == [0, 0], results
    for fold in (0, 1):
        ours, theirs = (labelled.scores(tmp_path / name, "scratch", fold) for name in ("pair", "alone"))
        assert ours["test"]["count"] == theirs["test"]["count"]
        labelled.assert_weights_agree(
            *(labelled.fit(tmp_path / name, "scratch", fold)["model"] for name in ("pair", "alone"))
        )
        trees = [labelled.scores(tmp_path / name, "trees", fold)["test"] for name in ("pair", "alone")]
        assert json.dumps(trees[0]) == json.dumps(trees[1])


def signal_at_update_2() -> None:
    """Makes this process signal itself in its second update."""
    stop_at(2).start()


def test_bad_input_is_refused_once_by_two_processes(survey, tmp_path):
    arguments = labelled.arguments(survey, tmp_path / "output", labels=tmp_path / "nowhere.tif")
    results = surveys.run_ranks(arguments, tmp_path, limit_s=60, program=labelled.run)
    assert [status for status, _ in results] == [2, 2], results
    assert sum(text.count("main_finetune: error") for _, text in results) == 1
