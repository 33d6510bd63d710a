"""Neither shapes nor Python branches of an update depend on the data, so that it can be recorded once for all batches.

The model compiles to one graph; a whole update does the same operations whatever the data, and runs where tensors have
no data at all, on a GPU that is not there.
"""

import math
from unittest import mock

import pytest
import torch
from timm.optim import param_groups_weight_decay
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import models_mae_group_channels as models
from scripts.benchmarks.step import OURS, make_batch, make_model, total_loss
from tests.small_main import SMALL
from util.training.engine import Updater, make_adamw
from util.training.lr_sched import learning_rate

SHAPE = {"img_size": 16, "patch_size": 8, "in_chans": 2, "channel_groups": [[0], [1]]}
UPDATES = 40


@pytest.mark.parametrize("amp", [False, pytest.param(True, marks=pytest.mark.slow)], ids=["fp32", "bf16"])
def test_one_graph_for_all_ragged_batches(amp):
    graphs = []

    def counting(graph, inputs):
        graphs.append(graph)
        return graph.forward

    torch._dynamo.reset()
    torch.manual_seed(0)
    model = make_model("tiny", OURS, **SHAPE)
    forward = torch.compile(model, backend=counting, fullgraph=True)
    batch = make_batch(model, batch_size=2, device=torch.device("cpu"))
    found = []
    for seed in range(UPDATES):
        generator = torch.Generator().manual_seed(seed)
        for ok in batch.valid:  # from nothing to all
            ok.copy_(torch.rand(ok.shape, generator=generator) < seed / (UPDATES - 1))
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=amp):
            loss = total_loss(forward, batch, finetunes=False)
        loss.backward()
        model.zero_grad(set_to_none=True)
        found.append(float(loss.detach()))
    assert len(graphs) == 1
    assert len(set(found)) > 0.9 * UPDATES


PRECISIONS = pytest.mark.parametrize(
    "amp",
    [torch.float16, *(pytest.param(kind, marks=pytest.mark.slow) for kind in (None, torch.bfloat16))],
    ids=["fp16", "fp32", "bf16"],
)
RATES = {"peak": 1e-3, "floor": 0.0, "warmup_steps": 8, "total_steps": UPDATES}


def make_updater(model, device, amp):
    """The updates of main_pretrain."""
    return Updater(
        model,
        make_adamw(param_groups_weight_decay(model, 0.05), lr=1e-3),
        amp_dtype=amp,
        scaler=torch.amp.GradScaler(device, enabled=amp is torch.float16),
        device_type=device,
        clip_grad=1.0,
    )


class Operations(TorchDispatchMode):
    """Notes every operation with shapes and numbers, and the devices of its tensors."""

    WITHOUT_SHAPES = ("_fused_adamw_", "_amp_foreach_non_finite_check_and_unscale_", "_amp_update_scale_")
    """In place, and unknown to tensors without data."""

    def __init__(self):
        super().__init__()
        self.seen, self.devices = [], set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func.overloadpacket.__name__ in self.WITHOUT_SHAPES and any("Fake" in kind.__name__ for kind in types):
            result = args[0] if func._schema.returns else None
        else:
            result = func(*args, **kwargs)
        values = tree_leaves((args, kwargs, result))
        self.devices |= {value.device.type for value in values if isinstance(value, torch.Tensor)}
        self.seen.append((str(func), *map(_fixed, values)))
        return result


def _fixed(value):
    """What a recording fixes: shapes and types of tensors, numbers as they are."""
    if isinstance(value, torch.Tensor):
        return tuple(value.shape), value.dtype
    return value if isinstance(value, bool | int | float | str | torch.dtype) else type(value)


@PRECISIONS
def test_every_update_does_the_same_operations(amp, monkeypatch):
    """Updates of ragged validity at the rates of a schedule; in every tenth, all gradients overflow."""
    monkeypatch.setattr(models, "_shapes_may_depend_on_data", lambda imgs: False)  # as on a GPU
    monkeypatch.setitem(models.MODEL_SIZES, "tiny", SMALL)
    torch.manual_seed(0)
    model = make_model("tiny", OURS, **SHAPE)
    updater, batch = make_updater(model, "cpu", amp), make_batch(model, batch_size=2, device=torch.device("cpu"))
    lr, weight, first, losses = torch.zeros(()), torch.zeros(()), None, set()
    for step in range(UPDATES):
        generator = torch.Generator().manual_seed(step)
        for ok in batch.valid:
            ok.copy_(torch.rand(ok.shape, generator=generator) < step / (UPDATES - 1))
        lr.fill_(learning_rate(step, **RATES))
        weight.fill_(math.inf if step % 10 == 9 else 1.0)
        with Operations() as operations:
            with updater.autocast():
                loss = total_loss(model, batch, finetunes=False)
            updater.backward(loss * weight)
            updater.step(lr)
        losses.add(float(loss.detach()))
        if step == 1:  # the first one makes the optimiser's moments
            first = operations.seen
        assert step < 2 or operations.seen == first
    assert len(losses) > 0.8 * UPDATES
    assert all(torch.isfinite(parameter).all() for parameter in model.parameters())


@PRECISIONS
def test_an_update_never_leaves_the_gpu(amp):
    """Forward pass, clipping, scaler and optimiser on a GPU that is not there: no tensor on the host, no data needed.

    The backward pass needs a real device; its operations follow from those of the forward pass.
    """
    with (
        FakeTensorMode(allow_non_fake_inputs=True),
        mock.patch.object(torch.cuda.amp.common, "amp_definitely_not_available", lambda: False),
        mock.patch.dict(models.MODEL_SIZES, tiny=SMALL),
        torch.device("cuda"),
    ):
        model = make_model("tiny", OURS, **SHAPE)
        updater = make_updater(model, "cuda", amp)
        batch, lr, weight = make_batch(model, batch_size=2, device=torch.device("cuda")), *torch.zeros(2)
        for _ in range(2):  # the first one makes the optimiser's moments
            with Operations() as operations:
                with updater.autocast():
                    loss = total_loss(model, batch, finetunes=False) * weight
                updater.scaler.scale(loss)
                for parameter in model.parameters():
                    parameter.grad = torch.zeros_like(parameter) if parameter.requires_grad else None
                norm = updater.step(lr)
    assert norm.device.type == "cuda" and len(operations.seen) > 500
    assert operations.devices == {"cuda"}
