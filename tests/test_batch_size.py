"""The largest batch that fits, against a pretended limit, and in runs of both programs."""

import logging
from unittest import mock

import pytest
import torch

from tests import labelled, surveys
from util.hardware import device as devices
from util.processes.distributed import Ranks
from util.training import batch_size as batches
from util.training import memory
from util.training.batch_size import choose_batch_size, divisors, samples_per_process
from util.training.memory import MemoryTrials

CPU = torch.device("cpu")
ALONE = Ranks()
SAMPLE = 1000
"""Bytes of a sample in the pretended step."""


def pretended(most=10**9):
    """Trials of a step that takes `SAMPLE` bytes a sample, and runs out of memory above a size."""
    return MemoryTrials(lambda size: size * SAMPLE if size <= most else None, without_batch=0)


def chosen(
    limit,
    *,
    ranks=ALONE,
    device=CPU,
    batch_size="auto",
    accum_iter=1,
    effective_batch=None,
    most=10**9,
    records_graphs=False,
):
    with (
        mock.patch.object(batches, "memory_limit_bytes", lambda *_: limit),
        mock.patch.object(batches, "used_memory_bytes", lambda _: 0),
    ):
        found = choose_batch_size(
            batch_size,
            accum_iter=accum_iter,
            effective_batch=effective_batch,
            ranks=ranks,
            device=device,
            trials=pretended(most),
            records_graphs=records_graphs,
        )
    return found.batch_size, found.accum_iter


def test_divisors():
    assert [divisors(number) for number in (1, 7, 12)] == [[1], [1, 7], [1, 2, 3, 4, 6, 12]]


class TestChoice:
    @pytest.mark.parametrize(
        ("fitting", "given", "expected"),
        [
            (1000, {}, (32, 1)),  # no more than the effective batch
            (31, {}, (16, 2)),
            (1, {}, (1, 32)),
            (31, {"accum_iter": 3}, (24, 4)),  # 96 samples an update
            (10, {"effective_batch": 45}, (9, 5)),
            (10, {"effective_batch": 90, "ranks": Ranks(0, 2, 0, 1)}, (9, 5)),
        ],
    )
    def test_the_effective_batch_stays(self, fitting, given, expected):
        limit = fitting * SAMPLE / batches.CPU_MARGIN + 1
        assert chosen(limit, **given) == expected

    def test_a_gpu_keeps_a_reserve_and_room_for_recorded_passes(self):
        limit, gpu = 16 * SAMPLE / batches.GPU_MARGIN + 1, torch.device("cuda")
        assert chosen(limit, device=gpu) == (16, 2)
        assert chosen(limit - SAMPLE, device=gpu) == (8, 4)
        assert chosen(limit, device=gpu, records_graphs=True) == (8, 4)

    def test_processes_of_a_machine_share_its_memory(self):
        limit = 16 * SAMPLE / batches.CPU_MARGIN + 1
        assert chosen(limit, ranks=Ranks(0, 2, 0, 2)) == (8, 4)

    def test_all_processes_take_the_smallest(self):
        limit = 16 * SAMPLE / batches.CPU_MARGIN + 1
        with mock.patch.object(
            batches.dist, "gather_objects", lambda found: [found, min(found, 4)] if found < 100 else [found]
        ):
            assert chosen(limit, ranks=Ranks(0, 2, 0, 1)) == (4, 8)

    def test_numbers_stay_as_they_are(self):
        assert chosen(0, batch_size=8, accum_iter=3) == (8, 3)

    def test_an_effective_batch_decides_the_accumulation_of_a_number(self):
        assert chosen(0, batch_size=8, effective_batch=48, ranks=Ranks(1, 2, 1, 2)) == (8, 3)

    def test_a_gpu_is_filled_until_its_memory_runs_out(self):
        assert chosen(10**9, device=torch.device("cuda"), most=16) == (16, 2)

    def test_nothing_fits(self):
        with pytest.raises(ValueError, match=r"--batch_size auto: not even one sample .*--grad_checkpointing"):
            chosen(SAMPLE // 2)

    def test_processes_that_cannot_share_evenly(self):
        with pytest.raises(ValueError, match="--effective_batch 64 cannot be shared by 3 processes.*such as 66"):
            chosen(10**9, effective_batch=64, ranks=Ranks(0, 3, 0, 3))

    def test_a_batch_that_does_not_divide(self):
        with pytest.raises(ValueError, match="--effective_batch 48: .* not a multiple of --batch_size 10; use .* 8"):
            chosen(0, batch_size=10, effective_batch=48)

    def test_two_options_for_one_thing(self):
        with pytest.raises(ValueError, match="--effective_batch 48 with --accum_iter 2"):
            samples_per_process(1, accum_iter=2, effective_batch=48)


def test_memory_of_this_machine():
    used, limit = devices.used_memory_bytes(CPU), devices.memory_limit_bytes(CPU)
    assert 50 << 20 < used <= devices.peak_memory_bytes(CPU) * 1.05 and used < limit


@pytest.fixture(scope="module")
def survey(tmp_path_factory):
    return surveys.write_survey(tmp_path_factory.mktemp("survey"))


def fits_at_most(batch):
    """Pretends that no larger batch fits on this machine."""
    return mock.patch.object(memory, "try_batch", lambda *given, **_: 1 << (62 if given[2] > batch else 10))


def test_pretraining_goes_as_with_the_numbers_found(survey, tmp_path, caplog):
    caplog.set_level(logging.INFO)
    with fits_at_most(4):
        assert surveys.train(survey, tmp_path / "auto", "--batch_size", "auto", "--effective_batch", "8") == 0
    assert "--batch_size auto: 4, --accum_iter 2 (effective batch 8" in caplog.text
    assert surveys.train(survey, tmp_path / "given", "--batch_size", "4", "--accum_iter", "2") == 0
    ours, theirs = (surveys.checkpoint(tmp_path / name) for name in ("auto", "given"))
    assert surveys.same_bits(ours["model"], theirs["model"])
    assert (ours["options"]["batch_size"], ours["options"]["accum_iter"]) == (4, 2)


def test_resumed_where_less_fits(survey, tmp_path, caplog, capsys):
    flags = ["--batch_size", "auto", "--effective_batch", "8"]
    assert surveys.train(survey, tmp_path, "--epochs", "1", *flags) == 0
    assert surveys.checkpoint(tmp_path)["options"]["batch_size"] == 8
    with fits_at_most(2):
        assert surveys.train(survey, tmp_path, "--epochs", "2", "--resume", "auto", *flags) == 0
        again = surveys.checkpoint(tmp_path)
        assert (again["options"]["batch_size"], again["options"]["accum_iter"], again["step"]) == (2, 4, 14)
        assert surveys.train(survey, tmp_path, "--resume", "auto", "--batch_size", "auto") == 2  # 32 an update
    assert "effective batch (batch_size x accum_iter x processes)" in capsys.readouterr().err


@pytest.mark.parametrize("task", ["segmentation", "regression", "classification"])
def test_finetuning_goes_as_with_the_numbers_found(survey, tmp_path, caplog, task):
    caplog.set_level(logging.INFO)
    make = {"segmentation": labelled.write_classes, "regression": labelled.write_values}.get(task)
    labels = make(tmp_path) if make else labelled.write_points(tmp_path, kinds=("schist", "gneiss"))
    flags = ["--task", task, "--epochs", "1", "--only_folds", "0", "--no_final"]
    flags += ["--label_column", "rock", "--mixup", "0.2", "--reprob", "0.2"] if not make else []
    auto = ["--batch_size", "auto", "--effective_batch", "4"]
    assert labelled.finetune(survey, tmp_path / "auto", *flags, *auto, labels=labels) == 0
    assert "--batch_size auto: 4, --accum_iter 1 (effective batch 4" in caplog.text
    assert labelled.finetune(survey, tmp_path / "given", *flags, labels=labels) == 0
    ours, theirs = (labelled.fit(tmp_path / name, "scratch")["model"] for name in ("auto", "given"))
    assert surveys.same_bits(ours, theirs)


def test_scoring_alone_trains_nothing(tmp_path, capsys):
    assert labelled.score(tmp_path / "checkpoint-last.pth", tmp_path, "--batch_size", "auto") == 2
    assert "--batch_size auto is for training" in capsys.readouterr().err


def test_without_a_network_there_is_no_batch(survey, tmp_path, capsys):
    flags = ["--no_network", "--baselines", "constant", "--batch_size", "auto"]
    assert labelled.finetune(survey, tmp_path, *flags, labels=labelled.write_classes(tmp_path)) == 2
    assert "--no_network with these --baselines trains no network" in capsys.readouterr().err


@pytest.mark.parametrize(("limit", "text"), [(1 << 40, "it fits: this process can get"), (5000, "it does not fit")])
def test_what_to_do_if_it_does_not_fit(caplog, limit, text):
    caplog.set_level(logging.INFO)
    trials = pretended()
    with mock.patch.object(batches, "memory_for_training", lambda *_: limit):
        assert batches.predict_memory(trials, 6, device=CPU, ranks=ALONE) == 6 * SAMPLE
    assert list(trials.peaks) == [1, 2]
    assert text in caplog.text and ("--batch_size auto" in caplog.text) == (limit == 5000)
