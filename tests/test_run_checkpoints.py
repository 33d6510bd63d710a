"""Checkpoints survive kills, full disks and flipped bits, and never run code when loaded."""

import os
import pickle
import random
import resource
import signal
import time
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch

from util.checkpoints import checkpoint_file, resume_state
from util.checkpoints import run_checkpoints as ckpt
from util.checkpoints.checkpoint_file import CheckpointError


def make_state(step: int, *, epoch: int = 0, size: int = 50) -> dict:
    """A complete checkpoint whose every tensor is filled with its step."""
    return {
        "model": {"weight": torch.full((size,), float(step)), "bias": torch.full((3,), float(step))},
        "optimizer": {
            "state": {0: {"exp_avg": torch.full((size,), -float(step))}},
            "param_groups": [{"lr": 0.1}],
        },
        "scaler": None,
        "epoch": epoch,
        "update": step,
        "step": step,
        "rng": [resume_state.collect_rng_state()],
        "model_config": {"embed_dim": 8, "scales": [1, 2]},
        "layers": [{"name": "gravity", "nodata": None}],
        "statistics": {"mean": [0.5]},
        "options": {"lr": 0.1},
        "version": "0",
    }


def equal(left, right) -> bool:
    """Deep equality with tensors compared bit for bit."""
    if isinstance(left, torch.Tensor):
        return isinstance(right, torch.Tensor) and left.dtype == right.dtype and torch.equal(left, right)
    if isinstance(left, dict):
        return left.keys() == right.keys() and all(equal(left[key], right[key]) for key in left)
    if isinstance(left, list | tuple):
        return len(left) == len(right) and all(equal(a, b) for a, b in zip(left, right, strict=True))
    return left == right


def files(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


# One file


def test_what_was_saved_is_loaded_bit_for_bit(tmp_path):
    state = make_state(7)
    state["model"]["half"] = torch.tensor([1.5, float("nan")], dtype=torch.bfloat16)
    checkpoint_file.save_checkpoint(tmp_path / "a.pth", state)
    loaded = checkpoint_file.load_checkpoint(tmp_path / "a.pth")
    half = loaded["model"].pop("half")
    assert half.dtype is torch.bfloat16 and half[0] == 1.5 and half[1].isnan()
    del state["model"]["half"]
    assert equal(loaded, state)
    assert files(tmp_path) == {"a.pth"}


def test_a_checkpoint_is_an_ordinary_torch_file_and_a_valid_zip(tmp_path):
    path = tmp_path / "a.pth"
    checkpoint_file.save_checkpoint(path, make_state(7))
    assert torch.load(path, weights_only=True)["step"] == 7
    with zipfile.ZipFile(path) as archive:
        assert archive.testzip() is None
        assert archive.comment.startswith(b"GRID-MAE step=000000000007 sha256=")


def test_saving_the_models_own_state_dict_works(tmp_path):
    model = torch.nn.Linear(2, 2)  # its state_dict is an OrderedDict with metadata
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    checkpoint_file.save_checkpoint(
        tmp_path / "a.pth", {"model": model.state_dict(), "optimizer": optimizer.state_dict()}
    )
    loaded = checkpoint_file.load_checkpoint(tmp_path / "a.pth", required=("model", "optimizer"))
    assert equal(dict(loaded["model"]), dict(model.state_dict()))
    optimizer.load_state_dict(loaded["optimizer"])


def test_any_flipped_bit_is_noticed(tmp_path):
    path, damaged = tmp_path / "a.pth", tmp_path / "b.pth"
    checkpoint_file.save_checkpoint(path, make_state(7, size=20))
    whole = path.read_bytes()
    chooser = random.Random(0)
    # The end of the file, where the checksum is, bit by bit; the rest by sample.
    places = [*range(8 * (len(whole) - 130), 8 * len(whole)), *chooser.sample(range(8 * len(whole)), 1000)]
    for place in places:
        content = bytearray(whole)
        content[place // 8] ^= 1 << place % 8
        damaged.write_bytes(content)
        with pytest.raises(CheckpointError, match="damaged"):
            checkpoint_file.load_checkpoint(damaged)


def test_a_cut_at_any_length_is_noticed(tmp_path):
    path, damaged = tmp_path / "a.pth", tmp_path / "b.pth"
    checkpoint_file.save_checkpoint(path, make_state(7, size=20))
    whole = path.read_bytes()
    for length in [*range(0, 300), *range(300, len(whole) - 300, 97), *range(len(whole) - 300, len(whole))]:
        damaged.write_bytes(whole[:length])
        with pytest.raises(CheckpointError, match="cut short, damaged, or not written by this program"):
            checkpoint_file.load_checkpoint(damaged)


def test_appended_bytes_are_noticed(tmp_path):
    path = tmp_path / "a.pth"
    checkpoint_file.save_checkpoint(path, make_state(7))
    with open(path, "ab") as file:
        file.write(b"\0")
    with pytest.raises(CheckpointError, match="checksum"):
        checkpoint_file.load_checkpoint(path)


class _RunsCommand:
    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self):
        return os.system, (f"touch {self.target}",)


def test_a_hostile_pickle_is_refused_and_not_run(tmp_path):
    path, touched = tmp_path / "a.pth", tmp_path / "touched"
    state = make_state(7)
    state["options"] = _RunsCommand(touched)
    with open(path, "xb", buffering=0) as raw:  # with a right checksum, as an attacker can make one
        out = checkpoint_file._DigestingFile(raw)
        torch.save(state, out)
        out.seal(7)
    with pytest.raises(CheckpointError, match="refused, it holds Python objects other than plain data"):
        checkpoint_file.load_checkpoint(path)
    assert not touched.exists()


def test_a_bare_pickle_is_refused(tmp_path):
    path, touched = tmp_path / "a.pth", tmp_path / "touched"
    path.write_bytes(pickle.dumps(_RunsCommand(touched)))
    with pytest.raises(CheckpointError, match="not written by this program"):
        checkpoint_file.load_checkpoint(path)
    assert not touched.exists()


@pytest.mark.parametrize(
    ("value", "place"),
    [
        (np.float64(1.0), r"state\['options'\]\['lr'\] is a numpy.float64"),
        (Path("x"), r"state\['options'\]\['lr'\] is a pathlib"),
        ([1, np.zeros(2)], r"state\['options'\]\['lr'\]\[1\] is a numpy.ndarray"),
        ({(1, 2): 3}, r"key \(1, 2\) is a tuple"),
    ],
)
def test_what_could_not_be_loaded_safely_is_not_written(tmp_path, value, place):
    state = make_state(7)
    state["options"]["lr"] = value
    with pytest.raises(TypeError, match=place):
        checkpoint_file.save_checkpoint(tmp_path / "a.pth", state)
    assert files(tmp_path) == set()


def test_missing_keys_and_files_are_named(tmp_path):
    path = tmp_path / "a.pth"
    checkpoint_file.save_checkpoint(path, {"model": {}, "step": 3})
    with pytest.raises(CheckpointError, match="optimizer, scaler, epoch.* missing, found only model, step"):
        checkpoint_file.load_checkpoint(path)
    assert checkpoint_file.load_checkpoint(path, required=("model",)) == {"model": {}, "step": 3}
    with pytest.raises(FileNotFoundError, match="b.pth: no such file"):
        checkpoint_file.load_checkpoint(tmp_path / "b.pth")


# Failed writes


@pytest.fixture
def file_size_limit():
    """Sets the largest file this process may write; lifted after the test."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    yield lambda size: resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("limit", [0, 1000, 100_000, 399_000])
def test_a_file_size_limit_stops_the_save_and_keeps_what_was_there(tmp_path, file_size_limit, limit):
    ckpt.save_run_checkpoint(tmp_path, make_state(1, size=10), epoch_file=True)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    file_size_limit(limit)
    message = r"checkpoint-last.pth not written: File too large \(4\d{5} bytes needed, \d+ bytes free\).*intact"
    with pytest.raises(OSError, match=message):
        ckpt.save_run_checkpoint(tmp_path, make_state(2, size=50_000), epoch_file=True)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_bytes_needed_is_the_size_of_the_file(tmp_path, file_size_limit):
    state = make_state(2, size=1000)
    checkpoint_file.save_checkpoint(tmp_path / "a.pth", state)
    size = (tmp_path / "a.pth").stat().st_size
    file_size_limit(size - 1)
    with pytest.raises(OSError, match=f"{size} bytes needed"):
        checkpoint_file.save_checkpoint(tmp_path / "b.pth", state)
    file_size_limit(size)
    checkpoint_file.save_checkpoint(tmp_path / "b.pth", state)


def test_a_failure_when_the_file_is_synchronised_is_reported(tmp_path, monkeypatch):
    def fail(handle):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(ckpt.os, "fsync", fail)
    with pytest.raises(OSError, match="No space left on device"):
        checkpoint_file.save_checkpoint(tmp_path / "a.pth", make_state(1))
    assert files(tmp_path) == set()


def test_a_missing_folder_is_reported(tmp_path):
    with pytest.raises(OSError, match="a.pth not written: No such file or directory"):
        checkpoint_file.save_checkpoint(tmp_path / "nowhere" / "a.pth", make_state(1))


# The checkpoints of a run


def test_rotation_keeps_last_previous_and_one_per_epoch(tmp_path):
    for step in (1, 2, 3, 4):
        path = ckpt.save_run_checkpoint(tmp_path, make_state(step, epoch=step // 2), epoch_file=step % 2 == 0)
    assert path == tmp_path / "checkpoint-last.pth"
    assert files(tmp_path) == {
        "checkpoint-last.pth",
        "checkpoint-previous.pth",
        "checkpoint-1.pth",
        "checkpoint-2.pth",
    }
    steps = {path.name: checkpoint_file.load_checkpoint(path)["step"] for path in tmp_path.iterdir()}
    assert steps == {
        "checkpoint-last.pth": 4,
        "checkpoint-previous.pth": 3,
        "checkpoint-1.pth": 2,
        "checkpoint-2.pth": 4,
    }


def test_rotation_works_without_hard_links(tmp_path, monkeypatch):
    def no_links(source, target):
        raise OSError(1, "Operation not permitted")

    monkeypatch.setattr(ckpt.os, "link", no_links)
    for step in (1, 2):
        ckpt.save_run_checkpoint(tmp_path, make_state(step, epoch=step), epoch_file=True)
    steps = {path.name: checkpoint_file.load_checkpoint(path)["step"] for path in tmp_path.iterdir()}
    assert steps == {
        "checkpoint-last.pth": 2,
        "checkpoint-previous.pth": 1,
        "checkpoint-1.pth": 1,
        "checkpoint-2.pth": 2,
    }


def test_an_incomplete_state_is_not_written(tmp_path):
    state = make_state(1)
    del state["optimizer"], state["rng"]
    with pytest.raises(KeyError, match="lacks optimizer, rng"):
        ckpt.save_run_checkpoint(tmp_path, state, epoch_file=False)


def damage(path: Path) -> None:
    """Replaces a file by one with a bit flipped; other hard links to it stay as they are."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.unlink()
    path.write_bytes(content)


def test_the_newest_good_checkpoint_is_found(tmp_path):
    assert ckpt.find_resumable(tmp_path) is None
    assert ckpt.find_resumable(tmp_path / "nowhere") is None
    for step in (1, 2, 3):
        ckpt.save_run_checkpoint(tmp_path, make_state(step, epoch=step), epoch_file=step < 3)
    (tmp_path / ".checkpoint-last.pth.99.tmp").write_bytes(b"half a checkp")
    (tmp_path / "checkpoint-best.pth").write_bytes(b"somebody else's")

    def found():
        resumable = ckpt.find_resumable(tmp_path)
        return resumable.path.name, resumable.state["step"], [path.name for path, _ in resumable.skipped]

    last, previous = tmp_path / "checkpoint-last.pth", tmp_path / "checkpoint-previous.pth"
    assert found() == ("checkpoint-last.pth", 3, [])
    damage(last)
    assert found() == ("checkpoint-previous.pth", 2, ["checkpoint-last.pth"])
    damage(previous)
    assert found() == ("checkpoint-2.pth", 2, ["checkpoint-last.pth", "checkpoint-previous.pth"])
    (tmp_path / "checkpoint-2.pth").write_bytes(b"")
    assert found()[:2] == ("checkpoint-1.pth", 1)
    last.unlink()
    previous.unlink()
    damage(tmp_path / "checkpoint-1.pth")
    with pytest.raises(
        CheckpointError, match="none of its 2 checkpoints can be used(.|\n)*checkpoint-2.pth: cut short"
    ):
        ckpt.find_resumable(tmp_path)


def test_the_step_decides_not_the_name(tmp_path):
    checkpoint_file.save_checkpoint(tmp_path / "checkpoint-last.pth", make_state(10))
    checkpoint_file.save_checkpoint(tmp_path / "checkpoint-3.pth", make_state(11))
    checkpoint_file.save_checkpoint(tmp_path / "checkpoint-20.pth", make_state(9))
    assert ckpt.find_resumable(tmp_path).path.name == "checkpoint-3.pth"


def test_a_damaged_last_does_not_replace_a_good_previous(tmp_path, caplog):
    for step in (1, 2):
        ckpt.save_run_checkpoint(tmp_path, make_state(step), epoch_file=False)
    damage(tmp_path / "checkpoint-last.pth")
    ckpt.save_run_checkpoint(tmp_path, make_state(2), epoch_file=False)  # as after resuming from step 1
    assert "not renamed to checkpoint-previous.pth" in caplog.text
    assert checkpoint_file.load_checkpoint(tmp_path / "checkpoint-last.pth")["step"] == 2
    assert checkpoint_file.load_checkpoint(tmp_path / "checkpoint-previous.pth")["step"] == 1


def test_leftovers_of_a_killed_save_are_removed_by_the_next(tmp_path):
    leftover = tmp_path / ".checkpoint-last.pth.99.tmp"
    leftover.write_bytes(b"half a checkp")
    ckpt.save_run_checkpoint(tmp_path, make_state(1), epoch_file=False)
    assert files(tmp_path) == {"checkpoint-last.pth"}


@pytest.mark.parametrize("links", [True, False])
def test_whenever_a_save_is_killed_a_good_checkpoint_is_found(tmp_path, monkeypatch, links):
    if not links:
        monkeypatch.setattr(ckpt.os, "link", lambda source, target: (_ for _ in ()).throw(OSError(1, "no links")))
    chooser = random.Random(0)
    step = 1
    ckpt.save_run_checkpoint(tmp_path, make_state(step, size=20_000), epoch_file=False)
    begin = time.monotonic()
    child = os.fork()
    if child == 0:
        try:
            ckpt.save_run_checkpoint(tmp_path, make_state(step, size=20_000), epoch_file=True)
        finally:
            os._exit(1)
    os.waitpid(child, 0)
    one_save_s = time.monotonic() - begin  # that of a process which must begin first, as those below
    for _ in range(20):
        child = os.fork()
        if child == 0:
            try:
                for later in range(step + 1, step + 1000):
                    state = make_state(later, epoch=later, size=20_000)
                    ckpt.save_run_checkpoint(tmp_path, state, epoch_file=True)
            finally:
                os._exit(1)
        time.sleep(chooser.uniform(0.5, 5) * one_save_s)
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        found = ckpt.find_resumable(tmp_path)
        assert found.skipped == []  # a kill leaves no half file under a name that counts
        assert found.state["step"] >= step
        assert torch.all(found.state["model"]["weight"] == found.state["step"])
        step = found.state["step"]
    assert step > 1  # the children did save


@pytest.mark.parametrize("moment", range(12))
def test_a_kill_between_any_two_system_calls_leaves_a_good_checkpoint(tmp_path, monkeypatch, moment):
    """Each rename, link, removal and synchronisation of a save in turn is the one that never happens."""

    class Killed(BaseException):
        pass

    for step in (1, 2):
        ckpt.save_run_checkpoint(tmp_path, make_state(step), epoch_file=False)
    damage(tmp_path / "checkpoint-last.pth")  # the hardest case: only the previous one is good
    calls = 0

    def dying(function):
        def call(*args, **kwargs):
            nonlocal calls
            calls += 1
            if calls > moment:
                raise Killed
            return function(*args, **kwargs)

        return call

    for name in ("replace", "link", "fsync", "unlink"):
        monkeypatch.setattr(ckpt.os, name, dying(getattr(os, name)))
    monkeypatch.setattr(Path, "unlink", dying(Path.unlink))
    try:
        ckpt.save_run_checkpoint(tmp_path, make_state(2), epoch_file=True)
    except Killed:
        pass
    monkeypatch.undo()
    assert ckpt.find_resumable(tmp_path).state["step"] in (1, 2)


def test_set_aside_moves_an_earlier_runs_checkpoints(tmp_path):
    assert ckpt.set_aside(tmp_path) is None
    for run in (1, 2):
        ckpt.save_run_checkpoint(tmp_path, make_state(run), epoch_file=True)
        assert ckpt.set_aside(tmp_path) == tmp_path / f"earlier-{run}"
        assert ckpt.find_resumable(tmp_path) is None
        assert ckpt.find_resumable(tmp_path / f"earlier-{run}").state["step"] == run


def test_events_of_other_runs_stay_in_a_folder_that_several_share(tmp_path):
    """They are moved with a run that is known, or not known not, to have written them, and where they lie beside it."""
    output, log_dir = tmp_path / "output", tmp_path / "logs"
    events = log_dir / "events.out.tfevents.1"

    def moves(*, recorded=(), log_dir=log_dir):
        log_dir.mkdir(parents=True, exist_ok=True)
        (log_dir / events.name).touch()
        aside = ckpt.set_aside(output, log_dir, recorded=recorded)
        return aside is not None and (aside / events.name).exists()

    assert not moves() and not output.exists()
    for recorded, expected in {(): True, (str(log_dir),): True, (str(output),): False, (None,): True}.items():
        ckpt.save_run_checkpoint(output, make_state(1), epoch_file=False)
        assert moves(recorded=recorded) == expected
        assert events.exists() != expected and not (output / "checkpoint-last.pth").exists()
    assert moves(log_dir=output)


def test_tables_of_somebody_else_stay_where_they_are(tmp_path):
    (tmp_path / "layers.csv").write_text("path\ngravity.tif\n")
    with pytest.raises(ValueError, match=r"holds layers.csv and nothing of an earlier run.* choose another folder"):
        ckpt.set_aside(tmp_path)
    assert (tmp_path / "layers.csv").exists()
    ckpt.save_run_checkpoint(tmp_path, make_state(1), epoch_file=False)
    assert ckpt.set_aside(tmp_path) == tmp_path / "earlier-1" and (tmp_path / "earlier-1/layers.csv").exists()


# What travels in a checkpoint


def test_generators_go_on_where_they_were(tmp_path):
    def draw():
        return [torch.rand(2).tolist(), np.random.standard_normal(3).tolist(), random.gauss(0, 1)]

    draw()  # leaves numpy and Python with half of a pair of normal numbers
    checkpoint_file.save_checkpoint(tmp_path / "a.pth", {"rng": resume_state.collect_rng_state()})
    expected = draw()
    draw()
    resume_state.restore_rng_state(checkpoint_file.load_checkpoint(tmp_path / "a.pth", required=("rng",))["rng"])
    assert draw() == expected


def test_the_same_configuration_passes():
    saved = {"a": 1, "b": {"c": [1, 2], "d": None}, "e": float("nan"), "f": [], "1": "x"}
    resume_state.check_same_configuration(
        saved, {"a": 1, "b": {"c": (1, 2), "d": None}, "e": float("nan"), "f": (), 1: "x"}, "model"
    )


def test_every_difference_is_named_with_both_values():
    saved = {"depth": 6, "scales": [1, 2, 4], "heads": {"kind": "shared"}, "old": 1, "same": 0}
    current = {"depth": 12, "scales": [1, 2], "heads": {"kind": "subpixel"}, "new": True, "same": 0}
    with pytest.raises(ValueError) as caught:
        resume_state.check_same_configuration(saved, current, "model")
    message = str(caught.value)
    assert message.startswith("model of the checkpoint differs from this run's in 5 value(s): ")
    for part in (
        "depth: checkpoint 6, now 12",
        "scales[2]: checkpoint 4, now '(absent)'",
        "heads.kind: checkpoint 'shared', now 'subpixel'",
        "old: checkpoint 1, now '(absent)'",
        "new: checkpoint '(absent)', now True",
        "start afresh without --resume in another --output_dir",
    ):
        assert part in message
    assert "same" not in message.replace("the same values", "")
