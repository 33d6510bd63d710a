"""Runs of several processes over gloo: the numbers of one process, and one end for all, whatever happens to one."""

import json
import os
import signal
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import main_pretrain
from datasets.survey.tile_reader import TileReader
from tests import surveys
from tests.test_resume import LASTING, limit_files

PAIR = ["--batch_size", "4"]
"""Two processes of 4 tiles make the updates of `FLAGS`, 8 tiles each; the last of 49 has one: none for rank 1."""


@pytest.fixture(scope="module")
def survey(tmp_path_factory):
    """The small survey."""
    return surveys.write_survey(tmp_path_factory.mktemp("survey"))


@pytest.fixture(scope="module")
def pair(survey, tmp_path_factory):
    """The output of a run of two processes."""
    output = tmp_path_factory.mktemp("pair") / "output"
    results = surveys.run_ranks(surveys.arguments(survey, output, *PAIR), output.parent)
    assert [status for status, _ in results] == [0, 0], results
    return output


# The same numbers


@pytest.mark.parametrize(
    ("alone", "shared", "world_size"),
    [
        ("", "--batch_size 2 --accum_iter 2", 2),
        ("--batch_size 12", "--batch_size 4", 3),  # 49 = 4 x 12 + 1: in the last update, two ranks have no tile
        ("--batch_size 6 --accum_iter 3 --spatial_mask", "--batch_size 9 --spatial_mask", 2),
        ("--ema_decay 0.9", "--batch_size 2 --accum_iter 2 --ema_decay 0.9", 2),
    ],
)
def test_ranks_share_what_one_does_alone(survey, tmp_path, alone, shared, world_size):
    """At equal effective batch, with a partial last update.

    Only the order of float32 sums differs: losses, also held-out ones, agree to 1e-6 of their value (2e-7 was seen).
    """
    other = surveys.write_survey(tmp_path / "other", size=128)
    scored = ["--test_path", str(other / "layers.csv")]
    assert surveys.train(survey, tmp_path / "alone", *scored, *alone.split()) == 0
    arguments = surveys.arguments(survey, tmp_path / "shared", *scored, *shared.split())
    results = surveys.run_ranks(arguments, tmp_path, world_size=world_size)
    assert [status for status, _ in results] == [0] * world_size, results
    assert surveys.largest_loss_difference(tmp_path / "alone", tmp_path / "shared") < 1e-6
    weights = [surveys.checkpoint(tmp_path / name)["model"] for name in ("alone", "shared")]
    surveys.assert_weights_agree(*weights)
    for one, two in zip(*(surveys.log(tmp_path / name, "epoch") for name in ("alone", "shared")), strict=True):
        assert one["val_tiles"] == two["val_tiles"] == 9
        for key in ("val_loss", "val_base_loss", "val_scale_loss"):
            assert two[key] == pytest.approx(one[key], rel=1e-6)
        for name, by_scale in one["val"].items():
            for scale, scores in by_scale.items():
                assert two["val"][name][scale] == pytest.approx(scores, rel=1e-5, abs=1e-5)


def test_the_same_seed_gives_the_same_bits(pair, survey, tmp_path):
    results = surveys.run_ranks(surveys.arguments(survey, tmp_path / "output", *PAIR, "--num_workers", "2"), tmp_path)
    assert [status for status, _ in results] == [0, 0], results
    assert_same_end(tmp_path / "output", pair)


def test_a_rank_without_anything_to_score(survey, tmp_path):
    """One held-out tile for two processes."""
    assert surveys.train(survey, tmp_path / "alone", *surveys.HELD_OUT) == 0
    arguments = surveys.arguments(survey, tmp_path / "shared", *surveys.HELD_OUT, *PAIR)
    results = surveys.run_ranks(arguments, tmp_path)
    assert [status for status, _ in results] == [0, 0], results
    for one, two in zip(*(surveys.log(tmp_path / name, "epoch") for name in ("alone", "shared")), strict=True):
        assert one["val_tiles"] == two["val_tiles"] == 1
        assert two["val_loss"] == pytest.approx(one["val_loss"], rel=1e-6)


def assert_same_end(output: Path, straight: Path) -> None:
    """The last checkpoints and the logged losses are equal, bit for bit."""
    ours, theirs = surveys.checkpoint(output), surveys.checkpoint(straight)
    for key in LASTING:
        assert surveys.same_bits(ours[key], theirs[key]), key
    assert surveys.losses(output) == surveys.losses(straight)


def messages(results: list[tuple[int, str]]) -> list[str]:
    """The error messages of all processes, without tracebacks."""
    assert not any("Traceback" in text for _, text in results), results
    return [line for _, text in results for line in text.splitlines() if line.startswith("main_pretrain: error")]


# Stopped, killed, failing: what a process does to itself before it trains


def at_step(step: int, action: Callable[[], None]) -> None:
    """Makes this process do something when it has recorded a step."""
    record = main_pretrain.log_window

    def record_and_act(run, *rest):
        record(run, *rest)
        if run.state.progress.step == step:
            action()

    main_pretrain.log_window = record_and_act


def signal_at_step_9() -> None:
    """Sends itself a SIGTERM."""
    at_step(9, lambda: signal.raise_signal(signal.SIGTERM))


def die_at_step_9() -> None:
    """Ends without a word, as the kernel ends a process when memory runs out."""
    at_step(9, lambda: os.kill(os.getpid(), signal.SIGKILL))


def fetch_with(change: Callable, *, fetch: int) -> None:
    """Puts `change` to work on what this process reads at its n-th fetch while it trains, counted from 0."""
    train, read, lock, count = main_pretrain.train, TileReader.read, threading.Lock(), [0]

    def read_and_change(reader, origins):
        with lock:
            count[0] += 1
            number = count[0] - 1
        tiles = read(reader, origins)
        return change(tiles, origins) if number == fetch else tiles

    def train_and_change(*args):
        TileReader.read = read_and_change  # type: ignore[method-assign]
        return train(*args)

    main_pretrain.train = train_and_change


def read_huge_values() -> None:
    """At its tenth fetch, reads values whose squares exceed float32, and writes where."""

    def change(tiles, origins):
        for array in tiles.arrays:
            array *= 1e30
        Path(f"{os.environ['GRIDMAE_TEST_FOLDER']}/where.json").write_text(json.dumps(origins.tolist()))
        return tiles

    fetch_with(change, fetch=9)


def fail_to_read() -> None:
    """At its tenth fetch, finds the disk gone."""

    def change(tiles, origins):
        raise OSError("layer 'gravity' (gravity.tif): window at row 0 cannot be read")

    fetch_with(change, fetch=9)


def test_a_signal_to_one_stops_all(pair, survey, tmp_path):
    arguments = surveys.arguments(survey, tmp_path / "output", *PAIR)
    results = surveys.run_ranks(arguments, tmp_path, before=(None, signal_at_step_9))
    assert [status for status, _ in results] == [0, 0], results
    assert surveys.checkpoint(tmp_path / "output")["step"] == 10
    assert "stopped by signal" in results[0][1]
    results = surveys.run_ranks([*arguments, "--resume", "auto"], tmp_path)
    assert [status for status, _ in results] == [0, 0], results
    assert_same_end(tmp_path / "output", pair)


def test_one_process_goes_on_where_two_stopped(pair, survey, tmp_path):
    arguments = surveys.arguments(survey, tmp_path / "output", *PAIR)
    results = surveys.run_ranks(arguments, tmp_path, before=(signal_at_step_9, None))
    assert [status for status, _ in results] == [0, 0], results
    assert surveys.train(survey, tmp_path / "output", "--resume", "auto") == 0
    assert surveys.largest_loss_difference(pair, tmp_path / "output") < 1e-6


def test_a_loss_that_is_not_finite_on_one_stops_both(pair, survey, tmp_path):
    """One message, naming the step and the tiles of the process that met it; both end at once with status 1."""
    run = [*PAIR, "--save_minutes", "0.000001", "--cache", "none"]  # so that tiles come from the reader that is broken
    results = surveys.run_ranks(
        surveys.arguments(survey, tmp_path / "output", *run),
        tmp_path,
        limit_s=60,
        before=(None, read_huge_values),
        variables={"GRIDMAE_TEST_FOLDER": str(tmp_path)},
    )
    assert [status for status, _ in results] == [1, 1], results
    (message,) = messages(results)
    where = json.loads((tmp_path / "where.json").read_text())
    assert "main_pretrain: error: loss not finite at step 9 (epoch 2); that step did not touch the weights" in message
    assert f"as (row, col) of 64 x 64 reference pixels: {where}. Mend the layers there" in message
    state = surveys.checkpoint(tmp_path / "output")
    assert state["step"] == 9
    assert all(torch.isfinite(weight).all() for weight in state["model"].values())
    results = surveys.run_ranks(surveys.arguments(survey, tmp_path / "output", *PAIR, "--resume", "auto"), tmp_path)
    assert [status for status, _ in results] == [0, 0], results
    assert_same_end(tmp_path / "output", pair)


def test_a_loss_that_is_not_finite_between_readings(survey, tmp_path):
    """Losses are looked at once in 20 updates; the message still names the update, whose tiles it remembers."""
    run = [*PAIR, "--log_every", "20", "--epochs", "3", "--cache", "none"]
    results = surveys.run_ranks(
        surveys.arguments(survey, tmp_path / "output", *run),
        tmp_path,
        limit_s=60,
        before=(None, read_huge_values),
        variables={"GRIDMAE_TEST_FOLDER": str(tmp_path)},
    )
    assert [status for status, _ in results] == [1, 1], results
    (message,) = messages(results)
    assert "loss not finite at step 9 (epoch 2)" in message
    assert f"reference pixels: {json.loads((tmp_path / 'where.json').read_text())}. Mend" in message
    assert surveys.checkpoint(tmp_path / "output")["step"] == 7


def test_a_full_disk_stops_both(pair, survey, tmp_path):
    arguments = surveys.arguments(survey, tmp_path / "output", *PAIR)
    results = surveys.run_ranks(arguments, tmp_path, before=(signal_at_step_9, None))
    good = (tmp_path / "output/checkpoint-last.pth").read_bytes()
    results = surveys.run_ranks([*arguments, "--resume", "auto"], tmp_path, before=(limit_files, limit_files))
    assert [status for status, _ in results] == [1, 1], results
    (message,) = messages(results)
    assert "checkpoint-last.pth not written: File too large" in message
    assert (tmp_path / "output/checkpoint-last.pth").read_bytes() == good


def test_a_process_that_dies_ends_the_other(pair, survey, tmp_path):
    arguments = surveys.arguments(survey, tmp_path / "output", *PAIR, "--save_minutes", "0.000001")
    results = surveys.run_ranks(arguments, tmp_path, limit_s=60, before=(None, die_at_step_9))
    assert [status for status, _ in results] == [1, -signal.SIGKILL], results
    (message,) = messages(results)
    assert "process 0 of 2 lost the others: one of them died or stopped answering" in message
    assert "--resume auto" in message
    assert surveys.checkpoint(tmp_path / "output")["step"] in (8, 9)
    results = surveys.run_ranks([*arguments, "--resume", "auto"], tmp_path)
    assert [status for status, _ in results] == [0, 0], results
    assert_same_end(tmp_path / "output", pair)


def find_nothing() -> None:
    """Sees none of the run's checkpoints, as a process does whose machine does not share the disk."""
    main_pretrain.ckpt.find_checkpoint = lambda *_: None


def test_processes_that_see_different_checkpoints(survey, tmp_path):
    arguments = surveys.arguments(survey, tmp_path / "output", *PAIR)
    results = surveys.run_ranks(arguments, tmp_path, before=(signal_at_step_9, None))
    assert [status for status, _ in results] == [0, 0], results
    before = {path.name: path.read_bytes() for path in (tmp_path / "output").iterdir()}
    results = surveys.run_ranks([*arguments, "--resume", "auto"], tmp_path, limit_s=60, before=(None, find_nothing))
    assert [status for status, _ in results] == [2, 2], results
    (message,) = messages(results)
    assert "--resume auto: process 0 found a checkpoint of step 10, process 1 none; expected the same" in message
    assert "must lie on a disk that all machines share" in message
    assert {path.name: path.read_bytes() for path in (tmp_path / "output").iterdir()} == before


def test_a_process_that_cannot_read_says_why(survey, tmp_path):
    arguments = surveys.arguments(survey, tmp_path / "output", *PAIR, "--cache", "none")
    results = surveys.run_ranks(arguments, tmp_path, limit_s=60, before=(None, fail_to_read))
    assert [status for status, _ in results] == [1, 1], results
    assert "process 0 of 2 lost the others" in messages(results[:1])[0]
    assert messages(results[1:]) == [
        "main_pretrain: error in process 1 of 2: layer 'gravity' (gravity.tif): window at row 0 cannot be read"
    ]


def test_bad_input_is_refused_once(survey, tmp_path):
    empty = tmp_path / "empty"
    empty.mkdir()
    results = surveys.run_ranks(surveys.arguments(empty, tmp_path / "output", *PAIR), tmp_path, limit_s=60)
    assert [status for status, _ in results] == [2, 2], results
    (message,) = messages(results)
    assert str(empty) in message


def test_the_output_of_one_place_only(survey, tmp_path):
    """A file where the records should go: found by the process that writes, said once, and no process waits."""
    (tmp_path / "events").write_text("")
    flags = [*PAIR, "--log_dir", str(tmp_path / "events")]
    results = surveys.run_ranks(surveys.arguments(survey, tmp_path / "output", *flags), tmp_path, limit_s=60)
    assert [status for status, _ in results] == [2, 2], results
    (message,) = messages(results)
    assert f"--log_dir {tmp_path / 'events'}: not writable" in message
