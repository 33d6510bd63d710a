"""Ten thousand updates: memory, open files and threads do not grow."""

from __future__ import annotations

import gc
from unittest import mock

import psutil
import pytest

import main_pretrain
from tests import surveys

UPDATES, WARM = 10_000, 500
EVERY = 100
MOST_GROWTH_MIB = 8.0
"""Of resident memory after the first updates; a leak of one batch of pixels an update would be 10 times that."""


@pytest.mark.slow
def test_ten_thousand_updates_leave_memory_files_and_threads_flat(tmp_path, capsys):
    survey = surveys.write_survey(tmp_path / "survey", size=64)
    process, seen = psutil.Process(), []
    log_window = main_pretrain.log_window

    def measured(run, *rest):
        log_window(run, *rest)
        if run.state.progress.step % EVERY == 0:
            gc.collect()
            memory = process.memory_info().rss / 2**20
            seen.append((run.state.progress.step, memory, process.num_fds(), process.num_threads()))

    flags = (
        "--input_size 8 --patch_size 4 --batch_size 1 --tiles_per_epoch 500 --epochs 20 --num_workers 1 --log_every 20"
    )
    with mock.patch.object(main_pretrain, "log_window", measured):
        assert surveys.train(survey, tmp_path / "output", *flags.split()) == 0
    assert seen[-1][0] == UPDATES
    warm = [row for row in seen if row[0] > WARM]
    first, last = warm[0], warm[-1]
    with capsys.disabled():
        print(f"\nupdate, resident MiB, files, threads: {seen[0]}, {first}, {warm[len(warm) // 2]}, {last}")
    half = len(warm) // 2
    growth = max(row[1] for row in warm[half:]) - max(row[1] for row in warm[: half // 2])
    assert growth < MOST_GROWTH_MIB, warm
    assert max(row[2] for row in warm) <= first[2] + 2 and max(row[3] for row in warm) <= first[3] + 1, warm
