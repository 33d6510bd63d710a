"""One run at a time in an output folder."""

import errno
import fcntl
import logging
import os
import re

import filelock
import pytest

import main_inference
from tests import labelled, surveys
from util.processes import output_lock
from util.processes.output_lock import LOCK, hold_output_folder, output_folder_given_back

HOLDER = "process 4711 on somewhere"


@pytest.fixture
def busy(tmp_path):
    """A folder in which another process is at work."""
    folder = tmp_path / "output"
    folder.mkdir()
    with open(folder / LOCK, "w") as file:
        file.write(HOLDER)
        file.flush()
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield folder


@pytest.fixture(scope="module")
def survey(tmp_path_factory):
    """The small survey."""
    return surveys.write_survey(tmp_path_factory.mktemp("survey"))


def refusal(folder) -> str:
    return f"--output_dir {folder}: another run ({HOLDER}) is at work there; wait for it, stop it, or"


def infer(output, tmp_path) -> int:
    checkpoint = ["--checkpoint", str(tmp_path / "any.pth"), "--device", "cpu"]
    return main_inference.main([*checkpoint, "--output", "embeddings", "--output_dir", str(output)])


@pytest.mark.parametrize("program", ["main_pretrain", "main_finetune", "main_inference"])
def test_a_second_run_is_refused(busy, survey, tmp_path, capsys, program):
    start = {
        "main_pretrain": lambda: surveys.train(survey, busy, "--epochs", "1"),
        "main_finetune": lambda: labelled.finetune(survey, busy, labels=labelled.write_classes(tmp_path)),
        "main_inference": lambda: infer(busy, tmp_path),
    }
    assert start[program]() == 2
    assert f"{program}: error: {refusal(busy)}" in capsys.readouterr().err
    assert os.listdir(busy) == [LOCK]


def test_a_dry_run_writes_nothing_and_is_not_refused(busy, survey):
    assert surveys.train(survey, busy, "--dry_run") == 0
    assert os.listdir(busy) == [LOCK]


def test_what_a_killed_run_left_behind_holds_nothing(survey, tmp_path):
    output = tmp_path / "output"
    output.mkdir()
    (output / LOCK).write_text("process 1 on here")  # even where a process of that number lives
    assert surveys.train(survey, output, "--epochs", "1") == 0
    assert not (output / LOCK).exists()
    assert surveys.train(survey, output, "--epochs", "2", "--resume", "auto") == 0


def test_a_folder_is_held_until_the_end_and_says_by_whom(tmp_path):
    with output_folder_given_back():
        hold_output_folder(tmp_path)
        assert re.fullmatch(rf"process {os.getpid()} on \S+", (tmp_path / LOCK).read_text())
        with open(tmp_path / LOCK) as file, pytest.raises(BlockingIOError):
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    assert os.listdir(tmp_path) == []


def test_a_folder_is_given_back_after_an_error(tmp_path):
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt), output_folder_given_back():
            hold_output_folder(tmp_path)
            raise KeyboardInterrupt
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("number", [errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP])
def test_a_file_system_without_locks_is_named_in_a_warning(tmp_path, monkeypatch, caplog, number):
    def without_locks(*_):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(filelock._unix.fcntl, "flock", without_locks)
    with caplog.at_level(logging.WARNING, logger=output_lock.__name__), output_folder_given_back():
        hold_output_folder(tmp_path)
    assert "has no locks" in caplog.text and "make sure that no second run writes there" in caplog.text
