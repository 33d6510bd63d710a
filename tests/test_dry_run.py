"""A run that is only tried out: says what an epoch would cost, and leaves nothing behind."""

import logging
import re

import pytest
import torch

from tests import small_main, surveys
from tests.test_multirank import PAIR


def text_of(caplog):
    return "\n".join(record.getMessage() for record in caplog.records)


def test_says_what_an_epoch_costs_and_writes_nothing(tmp_path, caplog):
    survey, output = surveys.write_survey(tmp_path / "survey"), tmp_path / "output"
    with caplog.at_level(logging.INFO):
        assert small_main.main([*surveys.arguments(survey, output), "--accum_iter", "2", "--dry_run"]) == 0
    text = text_of(caplog)
    assert list(output.iterdir()) == []
    tiles, updates = map(int, re.search(r"M parameters; (\d+) tiles and (\d+) updates an epoch", text).groups())
    assert tiles == surveys.TILES and 1 <= updates < tiles
    update, reading, memory, epoch = map(
        float,
        re.search(
            r"an update takes (\S+) s, (\S+) s of it reading.*peak memory (\S+) MiB; an epoch of \d+ updates takes "
            r"about (\S+) s",
            text,
        ).groups(),
    )
    assert 0 < reading <= update and memory > 50
    predicted, measured, ratio = map(
        float, re.search(r"predicted (\S+) MiB, measured (\S+) MiB, ratio (\S+)", text).groups()
    )
    assert ratio == pytest.approx(predicted / measured, abs=0.01) and "it fits" in text
    assert abs(epoch / (update * updates) - 1) < 0.02  # both are rounded to three digits


def test_an_earlier_run_stays_as_it_is(tmp_path, caplog):
    survey, output = surveys.write_survey(tmp_path / "survey"), tmp_path / "output"
    arguments = surveys.arguments(survey, output)
    assert small_main.main([*arguments, "--epochs", "1"]) == 0
    before = {path: path.read_bytes() for path in output.iterdir() if path.is_file()}
    assert small_main.main([*arguments, "--dry_run"]) == 0
    assert {path: path.read_bytes() for path in output.iterdir() if path.is_file()} == before
    assert small_main.main([*arguments, "--epochs", "2", "--resume", "auto"]) == 0


def test_what_cannot_be_used_is_refused_as_in_a_run(tmp_path, capsys):
    survey = surveys.write_survey(tmp_path / "survey")
    arguments = surveys.arguments(survey, tmp_path / "output")
    assert small_main.main([*arguments, "--patch_size", "5", "--dry_run"]) == 2
    assert "--patch_size" in capsys.readouterr().err


@pytest.mark.parametrize("fsdp", [False, True])
def test_two_processes(tmp_path, fsdp):
    """Memory is predicted unless the weights are split over processes; nothing is written either way."""
    if fsdp and tuple(map(int, torch.__version__.split(".")[:2])) < (2, 8):
        pytest.skip("torch 2.7 refuses --fsdp over gloo")
    survey, output = surveys.write_survey(tmp_path / "survey"), tmp_path / "output"
    arguments = surveys.arguments(survey, output, *PAIR, "--dry_run", *["--fsdp"] * fsdp)
    results = surveys.run_ranks(arguments, tmp_path)
    assert [status for status, _ in results] == [0, 0], results
    text = results[0][1]
    assert "an update takes" in text and list(output.iterdir()) == []
    assert ("it fits: this process can get" in text) is ("peak memory predicted" in text) is not fsdp


def test_two_processes_find_one_batch(tmp_path):
    survey, output = surveys.write_survey(tmp_path / "survey"), tmp_path / "output"
    flags = ["--batch_size", "auto", "--effective_batch", "4", "--epochs", "1"]
    results = surveys.run_ranks(surveys.arguments(survey, output, *flags), tmp_path)
    assert [status for status, _ in results] == [0, 0], results
    assert "--batch_size auto: 2, --accum_iter 1 (effective batch 4" in results[0][1]
    assert surveys.checkpoint(output)["options"]["batch_size"] == 2
