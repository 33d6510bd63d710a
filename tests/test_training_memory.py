"""Predicted memory: live bytes as on paper, and what options do to them."""

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from models_mae_group_channels import build_model
from util.hardware.tensor_bytes import counted
from util.training.memory_forecast import (
    CUDA_CONTEXT,
    LIBRARIES,
    Step,
    count_step,
    forecast,
    pretraining_step,
    try_step,
)

CPU = torch.device("cpu")
N, WIDTH, OUT = 8, 64, 16
"""Samples, inputs and outputs of linear layers."""


def step_of(make_model, *, amp_dtype=None):
    """A step of a plain model whose loss is the sum of its output."""
    return Step(
        make_model=make_model,
        make_batch=lambda size, device: torch.zeros(size, WIDTH, device=device),
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


def peak(*, batch_size=4, amp_dtype=None, accum_iter=1, **changes):
    step = pretraining_step(tiny(**changes), mask_ratio=0.75, amp_dtype=amp_dtype)
    return count_step(step, batch_size=batch_size, accum_iter=accum_iter).peak


def test_storages_count_once_and_until_they_are_freed():
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
        live.forget_peak()
        del y
        assert (live.now, live.peak) == (0, 97 * 10 * 8)


def test_forward_and_backward_hold_what_is_on_paper():
    with counted() as live:
        one, two = nn.Linear(WIDTH, WIDTH, bias=False), nn.Linear(WIDTH, OUT, bias=False)
        x = torch.zeros(N, WIDTH)
        weights, given = 4 * WIDTH * (WIDTH + OUT), 4 * N * WIDTH
        assert live.now == weights + given
        hidden = one(x).relu()  # what relu was given is freed: its output is kept, and is the input of the second layer
        out = two(hidden)
        del hidden
        assert live.now == weights + given + 4 * N * WIDTH + 4 * N * OUT
        out.sum().backward()
        del out
        assert live.now == 2 * weights + given


def test_checkpointing_keeps_the_input_of_a_block_alone():
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


def test_parts_of_a_step():
    found = count_step(step_of(lambda: nn.Linear(WIDTH, OUT)), batch_size=N)
    parameters = WIDTH * OUT + OUT
    assert found.weights == found.gradients == 4 * parameters and found.moments == 2 * found.weights
    assert found.batch == 4 * N * WIDTH
    assert found.passing >= found.gradients and found.peak == found.weights * 3 + found.batch + found.passing


def test_half_precision_and_checkpointing_take_less():
    whole, half, again = (
        peak(batch_size=64, **k) for k in ({}, {"amp_dtype": torch.float16}, {"grad_checkpointing": True})
    )
    assert half < 0.9 * whole and again < 0.9 * whole
    assert half - peak(batch_size=64, amp_dtype=torch.bfloat16) == 4  # the scale of gradients
    both = peak(batch_size=64, amp_dtype=torch.float16, grad_checkpointing=True)
    assert both < half  # but not below `again`: what is left is in the heads, which compute in full precision


def test_memory_grows_with_the_batch_in_proportion():
    sizes = [peak(batch_size=n) for n in (1, 16, 32, 64)]
    assert sizes == sorted(set(sizes))
    assert (sizes[3] - sizes[2]) / (sizes[2] - sizes[1]) == pytest.approx(2, rel=0.01)


def test_gradients_of_earlier_batches_stand_beside_activations():
    alone, second = (peak(batch_size=8, accum_iter=k) for k in (1, 2))
    assert alone < second == peak(batch_size=8, accum_iter=5)


def test_a_gpu_norms_in_full_precision():
    step = pretraining_step(tiny(scale_heads="shared"), mask_ratio=0.75, amp_dtype=torch.float16)
    on_cpu, on_gpu = (count_step(step, batch_size=4, device_type=name).peak for name in ("cpu", "cuda"))
    assert on_gpu > on_cpu


def test_counting_leaves_weights_and_random_numbers_alone():
    model = build_model("tiny", img_size=16, in_chans=1, channel_groups=((0,),), depth=1)
    before, state = {k: v.clone() for k, v in model.state_dict().items()}, torch.get_rng_state()
    step = pretraining_step(model, mask_ratio=0.75, amp_dtype=None)
    count_step(step, batch_size=2)
    assert try_step(step, model, batch_size=2, device=CPU, shared=True)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters())


def test_too_little_memory_is_no_failure():
    def fail(*_):
        raise torch.cuda.OutOfMemoryError("no memory")

    step = step_of(lambda: nn.Linear(WIDTH, OUT))
    step = Step(**{**vars(step), "loss": fail})
    assert not try_step(step, nn.Linear(WIDTH, OUT), batch_size=1, device=CPU, shared=False)


def test_a_forecast_is_the_sum_of_its_parts():
    step = pretraining_step(tiny(), mask_ratio=0.75, amp_dtype=None)
    plain = forecast(step, batch_size=4, device_type="cpu", base=1000)
    assert plain.total == sum(plain.parts().values()) and plain.overhead > LIBRARIES
    more = forecast(step, batch_size=4, device_type="cpu", base=1000, batches_ahead=3, processes=2)
    assert more.total - plain.total == 3 * plain.step.batch + plain.step.gradients
    assert f"{more.total / 2**20:.0f} MiB (before the model 0," in more.describe()
    spread = forecast(step, batch_size=4, device_type="cpu", base=1000, processes=4, shared_out=True)
    held = spread.step.weights + spread.step.moments + spread.step.gradients
    assert plain.total - spread.total == round(held * 3 / 4) and spread.total == sum(spread.parts().values())
    on_gpu = forecast(step, batch_size=4, device_type="cuda", base=0, batches_ahead=3)
    assert on_gpu.total == on_gpu.step.peak + on_gpu.overhead


def test_large_fits_a_card_of_16_gb():
    """Predicted, with the published heads, which take more: 8 tiles, half precision, checkpointing."""
    with torch.device("meta"):
        groups = [list(range(10))[k::2] for k in range(2)]
        model = build_model("large", in_chans=10, channel_groups=groups, grad_checkpointing=True)
    step = pretraining_step(model, mask_ratio=0.75, amp_dtype=torch.float16)
    assert forecast(step, batch_size=8, device_type="cuda", base=CUDA_CONTEXT).total < 15e9


def test_empty_batch_is_refused():
    with pytest.raises(ValueError, match="batch_size 0: expected at least 1"):
        count_step(step_of(lambda: nn.Linear(WIDTH, OUT)), batch_size=0)
