"""Copies to a GPU: none that the host waits for, seen on tensors without data on a GPU that is not there."""

import numpy as np
import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from datasets.layers import on_device as module
from datasets.layers.encoding import Encoding
from datasets.layers.on_device import constant, on_device
from datasets.layers.transforms import Transform
from datasets.survey.pyramid_cache import _cut_on_device

ENCODINGS = {
    "continuous": Encoding(centres=(1.0,), scales=(2.0,)),
    "quantile": Encoding(transform=Transform("quantile", knots=(0.0, 1.0, 4.0), scores=(-1.0, 0.0, 1.0))),
    "circular": Encoding("circular", centres=(0.1, -0.2), scales=(0.5, 0.5)),
    "categorical": Encoding("categorical", centres=(), scales=(), codes=(3.0, 17.0), frequencies=(0.5, 0.5)),
}


class Copies(TorchDispatchMode):
    """Counts copies from the host to another device, and those that the host waits for."""

    def __init__(self):
        super().__init__()
        self.count = self.blocking = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        target = kwargs.get("device")
        if func is torch.ops.aten._to_copy.default and target is not None and target.type != args[0].device.type:
            self.count += 1
            self.blocking += not kwargs.get("non_blocking", False)
        return result


@pytest.fixture
def copies(monkeypatch):
    """Counts copies to a GPU that is not there; page-locking is left out."""
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda self: self)
    with FakeTensorMode(), Copies() as seen:
        yield seen


@pytest.mark.parametrize("encoding", ENCODINGS.values(), ids=ENCODINGS)
def test_encoding_on_a_gpu_waits_for_no_copy(copies, encoding):
    channels, _ = encoding.encode(torch.empty(2, 4, 4, device="cuda"))
    assert channels.device.type == "cuda" and copies.count > 0 and copies.blocking == 0


def test_cutting_cached_tiles_waits_for_no_copy(copies, monkeypatch):
    monkeypatch.setattr(torch, "from_numpy", lambda array: torch.zeros(array.shape, dtype=torch.int64))
    found = _cut_on_device(torch.empty(2, 8, 8, device="cuda"), np.ones((3, 2), dtype=np.int64), 4, [0, 2], 3)
    assert found.shape == (3, 3, 4, 4) and copies.count == 2 and copies.blocking == 0


def test_a_waiting_copy_would_be_seen(copies):
    torch.tensor((1.0, 2.0), device="cuda")
    torch.zeros(2).to("cuda")
    assert (copies.count, copies.blocking) == (2, 2)
    on_device(torch.zeros(2), torch.device("cuda", 0))
    assert (copies.count, copies.blocking) == (3, 2)


def test_a_cpu_gets_a_tensor_of_its_own():
    first, second = (constant((1.0, 2.0), dtype=torch.float32, device=torch.device("cpu")) for _ in range(2))
    assert first.tolist() == second.tolist() == [1.0, 2.0] and first is not second
    assert not module._kept


@pytest.mark.gpu
def test_a_gpu_gets_numbers_once():
    with torch.inference_mode():
        first = constant((1.0, 2.0), dtype=torch.float32, device=torch.device("cuda", 0))
    second = constant([1.0, 2.0], dtype=torch.float32, device=torch.device("cuda", 0))
    assert first is second and first.tolist() == [1.0, 2.0] and not first.is_inference()
