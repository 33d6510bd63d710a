"""Memory of training: tensors counted as on paper, and peaks that small trials tell of larger batches."""

import mmap
from contextlib import nullcontext
from unittest import mock

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

import models_vit_group_channels
from models_mae_group_channels import build_model
from util.hardware.device import peak_memory_bytes, reset_peak_memory, used_memory_bytes
from util.hardware.malloc import keep_freed_memory
from util.hardware.tensor_bytes import counted
from util.training.memory import MIB, MemoryTrials, count_tensors, memory_trials, try_batch
from util.training.training_step import TrainingStep, pretraining_step

CPU = torch.device("cpu")
N, WIDTH, OUT = 8, 64, 16
"""Samples, inputs and outputs of linear layers."""


def step_of(make_model, *, amp_dtype=None, width=WIDTH):
    """A step of a plain model whose loss is the sum of its output."""
    return TrainingStep(
        make_model=make_model,
        make_batch=lambda size, device: torch.zeros(size, width, device=device),
        loss=lambda model, batch: (model(batch).sum(), None),
        make_optimizer=lambda model: torch.optim.AdamW(model.parameters(), fused=True),
        amp_dtype=amp_dtype,
        clip_grad=None,
    )


def tiny(**changes):
    arguments = {"img_size": 32, "in_chans": 2, "channel_groups": ((0,), (1,)), "depth": 4, "decoder_depth": 2}
    arguments |= {"scale_heads": "subpixel", **changes}
    with torch.device("meta"):
        return build_model("tiny", **arguments)


def peak(*, batch_size=4, amp_dtype=None, **changes):
    return count_tensors(pretraining_step(tiny(**changes), amp_dtype=amp_dtype), batch_size=batch_size)


class TestCount:
    def test_storages_count_once_and_until_they_are_freed(self):
        with counted() as live:
            x = torch.zeros(10, 100)  # 4000 bytes
            view = x.t()[3:]
            assert live.now == 4000
            y = view.double()
            assert live.now == 4000 + 97 * 10 * 8
            del x
            assert live.now == 4000 + 97 * 10 * 8  # the view holds it
            del view
            assert live.now == 97 * 10 * 8
            del y
            assert (live.now, live.peak) == (0, 4000 + 97 * 10 * 8)

    def test_forward_and_backward_hold_what_is_on_paper(self):
        with counted() as live:
            one, two = nn.Linear(WIDTH, WIDTH, bias=False), nn.Linear(WIDTH, OUT, bias=False)
            x = torch.zeros(N, WIDTH)
            weights, given = 4 * WIDTH * (WIDTH + OUT), 4 * N * WIDTH
            assert live.now == weights + given
            hidden = one(x).relu()  # the input of relu is freed: its output is kept, as input of the second layer
            out = two(hidden)
            del hidden
            assert live.now == weights + given + 4 * N * WIDTH + 4 * N * OUT
            out.sum().backward()
            del out
            assert live.now == 2 * weights + given

    def test_checkpointing_keeps_the_input_of_a_block_alone(self):
        with counted() as live:
            block = nn.Sequential(*(nn.Sequential(nn.Linear(WIDTH, WIDTH, bias=False), nn.ReLU()) for _ in range(3)))
            x = torch.zeros(N, WIDTH, requires_grad=True)
            before = live.now
            out = block(x)
            assert live.now - before == 3 * 4 * N * WIDTH
            del out
            out = checkpoint(block, x, use_reentrant=False)
            assert out.shape == (N, WIDTH)
            assert live.now - before == pytest.approx(4 * N * WIDTH, abs=100)

    def test_an_update_holds_weights_moments_gradients_and_the_batch(self):
        parameters = WIDTH * OUT + OUT
        least = 4 * (4 * parameters + N * WIDTH)
        assert least <= count_tensors(step_of(lambda: nn.Linear(WIDTH, OUT)), batch_size=N) < least + 4 * N * OUT + 100

    @pytest.mark.slow
    def test_half_precision_and_checkpointing_take_less(self, monkeypatch):
        whole, half, again = (
            peak(batch_size=64, **k) for k in ({}, {"amp_dtype": torch.float16}, {"grad_checkpointing": True})
        )
        assert half < 0.9 * whole and again < 0.9 * whole
        with_scores = peak(batch_size=64, amp_dtype=torch.bfloat16)
        monkeypatch.setattr(models_vit_group_channels, "MOST_EXPLICIT_TOKENS", 0)
        without = peak(batch_size=64, amp_dtype=torch.bfloat16)
        assert without < with_scores < 1.02 * without
        assert half - without == 12  # the scale of gradients, and two counts of skipped updates
        both = peak(batch_size=64, amp_dtype=torch.float16, grad_checkpointing=True)
        assert both < half  # but not below `again`: the rest is in the heads, which compute in full precision

    def test_memory_grows_with_the_batch_in_proportion(self):
        sizes = [peak(batch_size=n, depth=1, decoder_depth=1) for n in (1, 16, 32, 64)]
        assert sizes == sorted(set(sizes))
        assert (sizes[3] - sizes[2]) / (sizes[2] - sizes[1]) == pytest.approx(2, rel=0.01)

    @pytest.mark.slow
    def test_tensors_of_large_fit_a_card_of_16_gb(self):
        """With the published heads, which take more: 8 tiles, half precision, checkpointing."""
        with torch.device("meta"):
            groups = [list(range(10))[k::2] for k in range(2)]
            model = build_model("large", in_chans=10, channel_groups=groups, grad_checkpointing=True)
        assert count_tensors(pretraining_step(model, amp_dtype=torch.float16), batch_size=8) < 14e9

    def test_empty_batch_is_refused(self):
        with pytest.raises(ValueError, match="batch_size 0: expected at least 1"):
            count_tensors(step_of(lambda: nn.Linear(WIDTH, OUT)), batch_size=0)


class TestTrial:
    def test_weights_and_random_numbers_stay_as_they_are(self):
        model = build_model("tiny", img_size=16, in_chans=1, channel_groups=((0,),), depth=1)
        before, state = {k: v.clone() for k, v in model.state_dict().items()}, torch.get_rng_state()
        step = pretraining_step(model)
        count_tensors(step, batch_size=2)
        for accumulates in (False, True):
            assert try_batch(step, model, 2, device=CPU, accumulates=accumulates, batches_ahead=1)
        assert torch.equal(torch.get_rng_state(), state)
        assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
        assert all(p.grad is None for p in model.parameters())

    @pytest.mark.parametrize(
        ("error", "is_memory"),
        [
            (torch.cuda.OutOfMemoryError("no memory"), True),
            (RuntimeError("GET was unable to find an engine to execute this computation"), True),  # cuDNN
            (RuntimeError("shapes cannot be multiplied"), False),
        ],
    )
    def test_too_little_memory_is_no_failure(self, error, is_memory):
        def fail(*_):
            raise error

        step = step_of(lambda: nn.Linear(WIDTH, OUT))
        step = TrainingStep(**{**vars(step), "loss": fail})
        with nullcontext() if is_memory else pytest.raises(RuntimeError, match="cannot be multiplied"):
            assert try_batch(step, nn.Linear(WIDTH, OUT), 1, device=CPU, accumulates=False) is None

    @pytest.mark.slow
    def test_small_batches_tell_the_peak_of_a_large_one(self):
        """Of 64 samples after trials up to 32: by tensors counted, 2 % at most off."""
        model = build_model("tiny", img_size=32, in_chans=2, channel_groups=((0,), (1,)), depth=2)
        step = pretraining_step(model)

        def held(size):
            with counted() as live:
                assert try_batch(step, model, size, device=CPU, accumulates=False)
            return live.peak

        trials = MemoryTrials(held, without_batch=3 * sum(p.nbytes for p in model.parameters() if p.requires_grad))
        trials.try_small(32, limit=1 << 50)
        assert list(trials.peaks) == [1, 2, 4, 8, 16, 32]
        assert trials.expected(64) == pytest.approx(held(64), rel=0.02)

    def test_the_measured_peak_holds_the_tensors(self):
        """What the allocator adds differs between machines, and what it saves is less than half."""
        keep_freed_memory()
        model = build_model("tiny", img_size=32, in_chans=2, channel_groups=((0,), (1,)), depth=2)
        base, step = used_memory_bytes(CPU), pretraining_step(model)
        trials = memory_trials(step, model, device=CPU, accumulates=False, shares_gradients=False, batches_ahead=0)
        assert trials.fits(64, limit=1 << 50)
        assert trials.peaks[64] - base > count_tensors(step, batch_size=64) / 2

    def test_averaged_weights_count_once_more(self):
        model, step = nn.Linear(WIDTH, OUT, bias=False), step_of(lambda: nn.Linear(WIDTH, OUT, bias=False))
        options = {"device": CPU, "accumulates": False, "shares_gradients": False, "batches_ahead": 0}
        with mock.patch("util.training.memory._free_unused", return_value=0):
            plain, averaged = (memory_trials(step, model, averages_weights=on, **options) for on in (False, True))
        assert averaged.expected(0) - plain.expected(0) == 4 * WIDTH * OUT

    def test_what_is_held_beside_the_passes_counts(self):
        """Weights four times instead of twice, and a batch three times instead of once: counted, not measured."""
        model, step = nn.Linear(WIDTH, OUT, bias=False), step_of(lambda: None)

        def held(size, **more):
            with counted() as live:
                assert try_batch(step, model, size, device=CPU, accumulates=False, **more)
            return live.peak

        assert held(N, weight_copies=4) - held(N, weight_copies=2) == 2 * 4 * WIDTH * OUT
        assert held(N, batches_ahead=2) - held(N, batches_ahead=0) == 2 * 4 * N * WIDTH


def test_a_peak_can_be_forgotten():
    """100 MiB mapped and unmapped, whatever the C library keeps."""
    before = used_memory_bytes(CPU)
    with mmap.mmap(-1, 100 * MIB) as block:
        block.write(b"1" * 100 * MIB)
    reset_peak_memory(CPU)
    after = peak_memory_bytes(CPU)
    with mmap.mmap(-1, 100 * MIB) as block:
        for start in range(0, 100 * MIB, mmap.PAGESIZE):
            block[start] = 1
    assert peak_memory_bytes(CPU) - after > 90 * MIB
    assert before > 0


class TestExpected:
    @staticmethod
    def line(slope=10, at_zero=100, most=10**9):
        """Trials of a step that takes `at_zero` bytes and `slope` for each sample, and what was tried."""
        asked = []

        def one(size):
            asked.append(size)
            return at_zero + slope * size if size <= most else None

        return MemoryTrials(one, without_batch=at_zero), asked

    def test_before_and_after_the_trials(self):
        trials, asked = self.line()
        assert trials.expected(7) == 100 and asked == []
        trials.try_small(4, limit=1000)
        assert asked == [1, 1, 2, 4]  # the first one twice: it also loads libraries
        assert [trials.expected(size) for size in (1, 3, 4, 5, 64)] == [110, 130, 140, 150, 740]

    def test_only_batches_expected_to_fit_are_tried(self):
        trials, asked = self.line()
        trials.try_small(64, limit=150)
        assert asked == [1, 1, 2, 4] and not trials.fits(8, 150)
        too_much, asked = self.line(at_zero=200)
        too_much.try_small(64, limit=150)
        assert asked == [] and too_much.expected(1) == 200

    def test_memory_that_ran_out(self):
        trials, asked = self.line(most=5)
        assert trials.largest_fitting([1, 2, 3, 6, 12], limit=10**6) == 3
        assert asked == [1, 1, 2, 4, 8, 6, 3] and trials.expected(6) == float("inf")

    @pytest.mark.parametrize("samples", [1, 2, 7, 12, 97])
    def test_the_largest_that_fits(self, samples):
        sizes = [k for k in range(1, samples + 1) if samples % k == 0]
        for most in range(samples + 1):
            for trials, limit in ((self.line()[0], 100 + 10 * most), (self.line(most=most)[0], 10**9)):
                assert trials.largest_fitting(sizes, limit) == max((k for k in sizes if k <= most), default=0)

    def test_few_trials(self):
        trials, asked = self.line(slope=1, at_zero=0)
        assert trials.largest_fitting([2**k for k in range(21)], limit=1000) == 512
        assert len(asked) == 11
