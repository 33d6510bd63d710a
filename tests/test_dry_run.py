"""A run that is only tried out: says what an epoch would cost, and leaves nothing behind."""

import logging
import re

import pytest

from tests import small_main, surveys


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
