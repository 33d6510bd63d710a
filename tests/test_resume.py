"""Runs that are stopped, killed, or find their files damaged go on as if nothing had happened, or say why not."""

import logging
import os
import pickle
import random
import resource
import signal
import time
from functools import partial
from pathlib import Path
from unittest import mock

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import main_pretrain
from tests import surveys
from util.checkpoints.checkpoint_file import save_checkpoint
from util.metrics.held_out import HeldOutScorer

LASTING = ("model", "optimizer", "scaler", "epoch", "update", "step", "model_config", "layers", "statistics")
"""What must be equal, bit for bit, in the last checkpoints of a run that was stopped and of one that was not."""


@pytest.fixture(scope="module")
def survey(tmp_path_factory):
    """The small survey."""
    return surveys.write_survey(tmp_path_factory.mktemp("survey"))


@pytest.fixture(scope="module")
def straight(survey, tmp_path_factory):
    """The output of a run of two epochs, 7 updates each, that nothing stopped."""
    output = tmp_path_factory.mktemp("straight")
    assert surveys.train(survey, output) == 0
    return output


def stop_at(step: int, number: int = signal.SIGTERM):
    """Sends this process a signal when it records a step; the update after it is the last."""
    record = main_pretrain.log_window

    def record_and_signal(run, *rest):
        record(run, *rest)
        if run.state.progress.step == step:
            signal.raise_signal(number)

    return mock.patch.object(main_pretrain, "log_window", record_and_signal)


def assert_same_end(output: Path, straight: Path) -> None:
    """The last checkpoints are equal bit for bit, and the log has each step once with equal losses."""
    ours, theirs = surveys.checkpoint(output), surveys.checkpoint(straight)
    for key in LASTING:
        assert surveys.same_bits(ours[key], theirs[key]), key
    assert surveys.same_bits(ours["rng"]["torch"], theirs["rng"]["torch"])
    assert surveys.losses(output) == surveys.losses(straight)
    assert [(line["epoch"], line["step"]) for line in surveys.log(output, "epoch")] == [
        (line["epoch"], line["step"]) for line in surveys.log(straight, "epoch")
    ]


# Stopped and continued


@pytest.mark.parametrize(
    ("step", "flags"),
    [
        (2, "--resume auto"),
        (6, "--resume auto"),  # the signal comes in the last update of the epoch
        (7, "--resume auto --num_workers 3"),  # between two epochs
        (9, "--resume auto --num_workers 2 --batch_size 4 --accum_iter 2 --cache none --save_minutes 5"),
        (9, "--resume {output}/checkpoint-last.pth"),
    ],
)
def test_a_signal_stops_cleanly_and_resuming_changes_nothing(survey, straight, tmp_path, caplog, step, flags):
    caplog.set_level(logging.INFO)
    with stop_at(step):
        assert surveys.train(survey, tmp_path) == 0
    stopped = surveys.checkpoint(tmp_path)["step"]
    assert stopped == step + (step != 7)
    assert "stopped by signal 15" in caplog.text and "continue with --resume auto" in caplog.text
    assert surveys.train(survey, tmp_path, *flags.format(output=tmp_path).split()) == 0
    epoch, update = divmod(stopped, 7)
    assert f"resumed at epoch {epoch + 1}, update {update} (step {stopped})" in caplog.text
    if "--batch_size" in flags:  # the same tiles in other micro-batches: see test_micro_batches_add_up
        assert surveys.largest_loss_difference(straight, tmp_path) < 1e-6
    else:
        assert_same_end(tmp_path, straight)


@pytest.mark.parametrize("begun_in_half", [False, True])
def test_a_run_goes_on_where_other_numbers_are_used(survey, tmp_path, monkeypatch, begun_in_half):
    """Begun without a gradient scaler, as on a CPU, and continued with one, as --amp auto does on a V100; and back."""
    choices = {True: (torch.float16, True), False: (None, False)}
    monkeypatch.setattr(main_pretrain, "amp_policy", lambda *_: choices[begun_in_half])
    with stop_at(2):
        assert surveys.train(survey, tmp_path) == 0
    assert bool(surveys.checkpoint(tmp_path)["scaler"]) is begun_in_half
    monkeypatch.setattr(main_pretrain, "amp_policy", lambda *_: choices[not begun_in_half])
    assert surveys.train(survey, tmp_path, "--resume", "auto") == 0
    end = surveys.checkpoint(tmp_path)
    assert end["step"] == 14 and bool(end["scaler"]) is not begun_in_half


def test_stopped_at_every_update(survey, straight, tmp_path):
    """A run that gets no further than two updates at a time, stopped by each of the signals it knows."""
    for count in range(20):
        with stop_at(2 * count + 1, (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)[count % 3]):
            assert surveys.train(survey, tmp_path, "--resume", "auto") == 0
        if surveys.checkpoint(tmp_path)["step"] == 14:
            break
    assert 5 < count < 8
    assert_same_end(tmp_path, straight)


def test_stopped_while_held_out_ground_is_scored(survey, tmp_path):
    assert surveys.train(survey, tmp_path / "straight", *surveys.HELD_OUT) == 0
    score = HeldOutScorer.score

    def signal_and_score(scorer):
        signal.raise_signal(signal.SIGTERM)
        return score(scorer)

    output = tmp_path / "output"
    with mock.patch.object(HeldOutScorer, "score", signal_and_score):
        assert surveys.train(survey, output, *surveys.HELD_OUT) == 0
    assert surveys.checkpoint(output)["epoch"] == 1
    assert surveys.train(survey, output, *surveys.HELD_OUT, "--resume", "auto") == 0
    assert_same_end(output, tmp_path / "straight")
    scores = [[line["val"] for line in surveys.log(path, "epoch")] for path in (output, tmp_path / "straight")]
    assert scores[0] == scores[1]


def test_a_scaler_is_resumed_too(survey, tmp_path):
    """Gradients in fp16 are scaled by a factor that adapts; it travels with the checkpoint."""
    assert surveys.train(survey, tmp_path / "straight", "--amp", "fp16") == 0
    with stop_at(3):
        assert surveys.train(survey, tmp_path / "output", "--amp", "fp16") == 0
    assert surveys.train(survey, tmp_path / "output", "--amp", "fp16", "--resume", "auto") == 0
    assert surveys.checkpoint(tmp_path / "output")["scaler"]["scale"] > 0
    assert_same_end(tmp_path / "output", tmp_path / "straight")


def test_nothing_to_resume_is_a_new_run(survey, straight, tmp_path, caplog):
    caplog.set_level(logging.INFO)
    assert surveys.train(survey, tmp_path / "new", "--resume", "auto") == 0
    assert f"--resume auto: {tmp_path / 'new'} holds no checkpoint, starting afresh" in caplog.text
    assert_same_end(tmp_path / "new", straight)


def test_more_epochs_may_be_asked_for(survey, tmp_path):
    """With a constant rate the longer run is the one that was asked for at once; the cosine would differ."""
    constant = ["--lr", "0.001", "--min_lr", "0.001", "--warmup_epochs", "0"]
    assert surveys.train(survey, tmp_path / "straight", *constant, "--epochs", "3") == 0
    assert surveys.train(survey, tmp_path / "output", *constant, "--epochs", "1") == 0
    assert surveys.train(survey, tmp_path / "output", *constant, "--epochs", "3", "--resume", "auto") == 0
    assert_same_end(tmp_path / "output", tmp_path / "straight")


def test_a_run_can_be_continued_elsewhere(survey, straight, tmp_path, caplog):
    """A checkpoint of another folder: that folder stays as it is, and an earlier run here is moved aside."""
    with stop_at(8):
        assert surveys.train(survey, tmp_path / "one") == 0
    before = {path.name: path.read_bytes() for path in (tmp_path / "one").iterdir()}
    assert surveys.train(survey, tmp_path / "two", "--epochs", "1") == 0
    assert surveys.train(survey, tmp_path / "two", "--resume", str(tmp_path / "one/checkpoint-last.pth")) == 0
    assert {path.name: path.read_bytes() for path in (tmp_path / "one").iterdir()} == before
    assert (tmp_path / "two/earlier-1/checkpoint-1.pth").exists()
    assert surveys.same_bits(surveys.checkpoint(tmp_path / "two")["model"], surveys.checkpoint(straight)["model"])
    assert surveys.losses(tmp_path / "two") == surveys.losses(straight)[9:]


def test_going_back_leaves_no_newer_checkpoint_to_be_mistaken(survey, tmp_path):
    """Continued from an earlier checkpoint of the same folder, with another future: the old one is out of the way."""
    output = tmp_path / "output"
    assert surveys.train(survey, output, "--epochs", "3", "--keep_every", "1") == 0
    back = ["--resume", str(output / "checkpoint-1.pth"), "--epochs", "4"]
    with stop_at(8):
        assert surveys.train(survey, output, *back) == 0
    assert surveys.checkpoint(output)["step"] == 9
    assert surveys.train(survey, output, "--epochs", "4", "--resume", "auto") == 0
    assert [line["step"] for line in surveys.log(output)] == list(range(1, 29))
    assert {path.name for path in (output / "earlier-1").iterdir()} == {
        f"checkpoint-{name}.pth" for name in ("last", "previous", 2, 3)
    }
    assert surveys.train(survey, tmp_path / "straight", "--epochs", "3", "--keep_every", "1") == 0
    (tmp_path / "other").mkdir()
    back[1] = str(tmp_path / "straight/checkpoint-1.pth")
    assert surveys.train(survey, tmp_path / "other", *back) == 0
    assert surveys.losses(output)[7:] == surveys.losses(tmp_path / "other")


@pytest.mark.parametrize(
    ("flags", "named"),
    [
        ("--seed 1", ["options.seed: checkpoint 0, now 1"]),
        ("--lr 0.01", ["options.lr: checkpoint 0.001, now 0.01"]),
        ("--patch_size 8", ["options.patch_size: checkpoint 4, now 8"]),
        ("--model small", ["options.model: checkpoint 'mae_vit_tiny_patch16', now 'small'"]),
        (
            "--model_type vanilla --seed 2",
            ["model_type: checkpoint 'group_c', now 'vanilla'", "seed: checkpoint 0, now 2"],
        ),
        ("--scale_heads shared", ["options.scale_heads: checkpoint 'subpixel', now 'shared'"]),
        ("--dropped_bands 0", ["options.dropped_bands[0]: checkpoint '(absent)', now 0"]),
        ("--batch_size 16", ["effective batch (batch_size x accum_iter x processes): checkpoint 8, now 16"]),
        ("--tiles_per_epoch 40", ["options.tiles_per_epoch: checkpoint '(absent)', now 40"]),
        ("--mask_ratio 0.5", ["options.mask_ratio: checkpoint 0.75, now 0.5"]),
        ("--ema_decay 0.9", ["options.ema_decay: checkpoint '(absent)', now 0.9"]),
        ("--amp bf16", ["options.amp: checkpoint 'auto', now 'bf16'"]),
    ],
)
def test_another_configuration_is_refused(survey, straight, capsys, flags, named):
    before = {path.name: path.read_bytes() for path in straight.iterdir()}
    assert surveys.train(survey, straight, "--resume", "auto", *flags.split()) == 2
    message = capsys.readouterr().err
    assert message.count("main_pretrain: error: ") == 1
    assert "of the checkpoint differs from this run's in " in message
    for text in named:
        assert text in message
    assert "start afresh without --resume in another --output_dir" in message
    assert {path.name: path.read_bytes() for path in straight.iterdir()} == before


def test_other_values_in_the_layers_are_refused(straight, tmp_path, capsys):
    """The statistics say that the rasters are not those that the run was begun with, which may have moved."""
    before = {path.name: path.read_bytes() for path in straight.iterdir()}
    other = surveys.write_survey(tmp_path / "survey", size=162)
    assert surveys.train(other, straight, "--resume", "auto") == 2
    assert "statistics[0].location: checkpoint '" in capsys.readouterr().err
    assert {path.name: path.read_bytes() for path in straight.iterdir()} == before


def test_a_checkpoint_to_keep_is_made_up_for(survey, tmp_path):
    """A kill between the writing of checkpoint-last.pth and its second name: resuming gives it that name."""
    assert surveys.train(survey, tmp_path) == 0
    (tmp_path / "checkpoint-2.pth").unlink()
    assert surveys.train(survey, tmp_path, "--resume", "auto") == 0
    assert surveys.same_bits(surveys.checkpoint(tmp_path, "2"), surveys.checkpoint(tmp_path))
    assert surveys.checkpoint(tmp_path, "2")["step"] == 14
    # An epoch that is not kept, or the middle of one, makes no file.
    with stop_at(7):
        assert surveys.train(survey, tmp_path / "other", "--epochs", "3") == 0
    with stop_at(9):
        assert surveys.train(survey, tmp_path / "other", "--epochs", "3", "--resume", "auto") == 0
    assert {path.name for path in (tmp_path / "other").glob("*.pth")} == {
        "checkpoint-last.pth",
        "checkpoint-previous.pth",
    }


# Started again by torchrun, with the same command line


@pytest.mark.parametrize("flags", ["", "--resume auto"])
def test_a_run_started_again_goes_on(survey, straight, tmp_path, monkeypatch, flags):
    surveys.start_of_launch(monkeypatch, 0)
    with stop_at(9):
        assert surveys.train(survey, tmp_path, *flags.split()) == 0
    surveys.start_of_launch(monkeypatch, 1)
    assert surveys.train(survey, tmp_path, *flags.split()) == 0
    assert_same_end(tmp_path, straight)
    assert not (tmp_path / "earlier-1").exists()
    surveys.start_of_launch(monkeypatch, 0)  # a launch of its own begins anew
    assert surveys.train(survey, tmp_path, "--epochs", "1") == 0
    assert surveys.checkpoint(tmp_path)["step"] == 7 and (tmp_path / "earlier-1/checkpoint-2.pth").exists()


def test_started_again_before_anything_was_saved(survey, straight, tmp_path, monkeypatch):
    """A run from a checkpoint elsewhere begins there once more, as long as it has none of its own."""
    with stop_at(8):
        assert surveys.train(survey, tmp_path / "one") == 0
    begin = ["--resume", str(tmp_path / "one/checkpoint-last.pth")]

    def fail(*_):
        raise OSError("the disk is gone")

    for number, last in enumerate((9, 12)):
        surveys.start_of_launch(monkeypatch, number)
        with mock.patch.object(main_pretrain, "train_epoch", fail) if not number else stop_at(last):
            assert surveys.train(survey, tmp_path / "two", *begin) == 1 - number
    surveys.start_of_launch(monkeypatch, 2)
    assert surveys.train(survey, tmp_path / "two", *begin) == 0
    assert surveys.same_bits(surveys.checkpoint(tmp_path / "two")["model"], surveys.checkpoint(straight)["model"])
    assert surveys.losses(tmp_path / "two") == surveys.losses(straight)[9:]


@pytest.mark.parametrize("earlier", [None, "another launch"])
def test_started_again_before_the_records_were_opened(survey, straight, tmp_path, monkeypatch, earlier):
    """What lies in the folder is an earlier run's, of torchrun or not: it is moved aside as at the first start."""
    if earlier:
        surveys.start_of_launch(monkeypatch, 0, earlier)
    assert surveys.train(survey, tmp_path, "--epochs", "1") == 0
    surveys.start_of_launch(monkeypatch, 1)
    assert surveys.train(survey, tmp_path) == 0
    assert_same_end(tmp_path, straight)
    assert (tmp_path / "earlier-1/checkpoint-1.pth").exists()


# Killed


def identity(path: Path) -> tuple[int, int] | None:
    """Size and time of a file, None if there is none."""
    return (path.stat().st_size, path.stat().st_mtime_ns) if path.exists() else None


def has_changed(path: Path, before: tuple[int, int] | None) -> bool:
    """Whether a file is there and not as it was."""
    return identity(path) not in (before, None)


class Kills:
    """Lets runs be killed at random moments until one reaches the end, and counts what the kills hit.

    Attributes:
        count: kills.
        in_write: kills that left the temporary file of a checkpoint behind.
        steps: optimiser step of the newest checkpoint after each kill.
    """

    def __init__(self, *, seed: int) -> None:
        self.count = self.in_write = 0
        self.steps: list[int] = []
        self._rng = random.Random(seed)

    def run(self, arguments: list[str], output: Path, *, kills: int, longest_s: float) -> None:
        """Starts runs with --resume auto, kills the first `kills` of them, and lets the last one end.

        A quarter of the kills come up to `longest_s` after the start of the process, while it opens its files;
        the others come up to `longest_s` after its first update.
        """

        log = output / "log.txt"
        for _ in range(kills):
            before = identity(log)
            process = surveys.Started([*arguments, "--resume", "auto"], output.parent / "messages.txt")
            if self._rng.random() < 0.75:
                process.wait_for(partial(has_changed, log, before))
            time.sleep(self._rng.uniform(0, longest_s))
            process.process.kill()
            assert process.wait()[0] == -signal.SIGKILL, process.message
            self.count += 1
            self.in_write += bool(list(output.glob(f".checkpoint-*.{process.process.pid}.tmp")))
            last = output / "checkpoint-last.pth"
            self.steps.append(surveys.checkpoint(output)["step"] if last.exists() else 0)
        status, message = surveys.Started([*arguments, "--resume", "auto"], output.parent / "messages.txt").wait()
        assert status == 0, message


def kill_and_compare(survey: Path, folder: Path, *, epochs: int, kills: int) -> Kills:
    """Trains with a checkpoint after every update, straight and with kills that let it do half of it in all."""
    flags = ["--epochs", str(epochs), "--save_minutes", "0.000001"]
    start = time.monotonic()
    assert surveys.train(survey, folder / "straight", *flags) == 0
    duration_s = time.monotonic() - start
    result, output = Kills(seed=kills), folder / "output"
    result.run(surveys.arguments(survey, output, *flags), output, kills=kills, longest_s=duration_s / kills)
    assert_same_end(output, folder / "straight")
    assert not list(output.glob(".*"))
    kept = [epoch for epoch in range(1, epochs + 1) if epoch % 10 == 0 or epoch == epochs]
    assert [surveys.checkpoint(output, str(epoch))["step"] for epoch in kept] == [7 * epoch for epoch in kept]
    assert tensorboard_steps(output) == list(range(1, 7 * epochs + 1))
    return result


def tensorboard_steps(output: Path) -> list[int]:
    """The steps for which TensorBoard has a training loss, as it shows them."""
    events = EventAccumulator(str(output), size_guidance={"scalars": 0})
    events.Reload()
    return [event.step for event in events.Scalars("2_loss/training")]


def test_killed_and_resumed(survey, tmp_path):
    kill_and_compare(survey, tmp_path, epochs=4, kills=2)


@pytest.mark.slow
def test_killed_fifty_times(survey, tmp_path, capsys):
    """Fifty kills, many of them while a checkpoint is written, and the weights of a run never stopped."""
    kills = kill_and_compare(survey, tmp_path, epochs=100, kills=50)
    with capsys.disabled():
        print(f"\n{kills.count} kills, {kills.in_write} in the writing of a checkpoint, steps {kills.steps}")
    assert kills.in_write >= 5


# Damaged, hostile, or no room


def cut(path: Path) -> None:
    """Truncates a file to two thirds."""
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 2 // 3])


def flip(path: Path) -> None:
    """Flips one bit in the middle of a file."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize(("damage", "reason"), [(cut, "cut short, damaged, or not"), (flip, "damaged, the SHA-256 of")])
def test_a_damaged_checkpoint_is_passed_over(survey, straight, tmp_path, caplog, damage, reason):
    caplog.set_level(logging.INFO)
    with stop_at(10):
        assert surveys.train(survey, tmp_path) == 0
    assert [surveys.checkpoint(tmp_path, name)["step"] for name in ("last", "previous")] == [11, 7]
    damage(tmp_path / "checkpoint-last.pth")
    assert surveys.train(survey, tmp_path, "--resume", "auto") == 0
    assert f"skipped {tmp_path / 'checkpoint-last.pth'}: checkpoint" in caplog.text and reason in caplog.text
    assert f"resuming from {tmp_path / 'checkpoint-previous.pth'}" in caplog.text
    assert_same_end(tmp_path, straight)


def test_all_checkpoints_damaged_is_said(survey, tmp_path, capsys):
    with stop_at(10):
        assert surveys.train(survey, tmp_path) == 0
    for path in tmp_path.glob("checkpoint-*.pth"):
        flip(path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    assert surveys.train(survey, tmp_path, "--resume", "auto") == 2
    message = capsys.readouterr().err
    assert f"{tmp_path}: none of its 2 checkpoints can be used" in message
    assert "checkpoint-last.pth: damaged" in message and "checkpoint-previous.pth: damaged" in message
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


class Hostile:
    """Writes a file when it is unpickled."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self):
        return os.mkdir, (str(self.target),)


def test_a_hostile_checkpoint_is_refused(survey, straight, tmp_path, capsys, monkeypatch):
    trap, evil = tmp_path / "trap", tmp_path / "checkpoint-9.pth"
    torch.save({"model": Hostile(trap)}, evil)
    assert surveys.train(survey, tmp_path / "output", "--resume", str(evil)) == 2
    assert "do not end with a checksum" in capsys.readouterr().err
    # The same with a right checksum, as somebody who knows the format would make it.
    monkeypatch.setattr("util.checkpoints.checkpoint_file._check_plain", lambda *_: None)
    save_checkpoint(evil, surveys.checkpoint(straight) | {"step": 99, "model": Hostile(trap)})
    monkeypatch.undo()
    assert surveys.train(survey, tmp_path / "output", "--resume", str(evil)) == 2
    assert "refused, it holds Python objects other than plain data" in capsys.readouterr().err
    assert not trap.exists()
    with pytest.raises(pickle.UnpicklingError):
        torch.load(evil, weights_only=True)
    # Lying in a run's folder it is passed over, and the run's own last checkpoint is used.
    with stop_at(10):
        assert surveys.train(survey, tmp_path / "run") == 0
    evil.rename(tmp_path / "run/checkpoint-9.pth")
    assert surveys.train(survey, tmp_path / "run", "--resume", "auto") == 0
    assert "checkpoint-9.pth: refused" in capsys.readouterr().err
    assert not trap.exists()
    assert_same_end(tmp_path / "run", straight)


def test_a_checkpoint_of_another_program_is_refused(survey, straight, tmp_path, capsys):
    state = surveys.checkpoint(straight)
    del state["optimizer"]
    save_checkpoint(tmp_path / "other.pth", state)
    assert surveys.train(survey, tmp_path / "output", "--resume", str(tmp_path / "other.pth")) == 2
    assert "other.pth: optimizer missing" in capsys.readouterr().err


def test_a_checkpoint_that_is_not_there(survey, tmp_path, capsys):
    assert surveys.train(survey, tmp_path / "output", "--resume", str(tmp_path / "none.pth")) == 2
    assert "none.pth: no such file; give the path of a checkpoint-<epoch>.pth" in capsys.readouterr().err


def limit_files() -> None:
    """Lets no file of this process grow beyond 300 kB: a checkpoint of the small model has more."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, 300_000))


def test_a_full_disk_leaves_the_last_good_checkpoint(survey, straight, tmp_path):
    with stop_at(3):
        assert surveys.train(survey, tmp_path / "output") == 0
    good = (tmp_path / "output/checkpoint-last.pth").read_bytes()
    assert len(good) > 300_000
    arguments = surveys.arguments(survey, tmp_path / "output", "--resume", "auto")
    full = surveys.Started(arguments, tmp_path / "messages.txt", before=limit_files)
    status, message = full.wait()
    assert status == 1, message
    assert message.count("main_pretrain: error: ") == 1 and "Traceback" not in message
    assert "checkpoint-last.pth not written: File too large" in message
    assert (
        "earlier checkpoints are intact. Free some space or raise the limit, then go on with --resume auto" in message
    )
    assert (tmp_path / "output/checkpoint-last.pth").read_bytes() == good
    assert not list((tmp_path / "output").glob(".*.tmp"))
    assert surveys.train(survey, tmp_path / "output", "--resume", "auto") == 0
    assert_same_end(tmp_path / "output", straight)


def limit_records() -> None:
    """Lets no file of this process grow beyond 4 kB: less than the events, or the log, of a few updates."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (4000, 4000))


def test_a_disk_too_full_for_the_log(survey, straight, tmp_path):
    with stop_at(3):
        assert surveys.train(survey, tmp_path / "output") == 0
    good = (tmp_path / "output/checkpoint-last.pth").read_bytes()
    arguments = surveys.arguments(survey, tmp_path / "output", "--resume", "auto")
    full = surveys.Started(arguments, tmp_path / "messages.txt", before=limit_records)
    status, message = full.wait()
    assert status == 1, message
    # TensorBoard's writing thread may have its own say, before ours or after; our program ends without a traceback.
    assert message.count("main_pretrain: error: ") == 1 and "main_pretrain.py" not in message
    assert f"records in {tmp_path / 'output'} not written: File too large; earlier checkpoints are intact" in message
    assert "go on with --resume auto" in message
    assert (tmp_path / "output/checkpoint-last.pth").read_bytes() == good
    assert surveys.train(survey, tmp_path / "output", "--resume", "auto") == 0
    assert_same_end(tmp_path / "output", straight)
