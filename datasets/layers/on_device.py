"""Small tensors of the host on the device of a computation, so that a GPU is never waited for."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from threading import Lock

import torch

_MOST_KEPT = 4096
_kept: OrderedDict[tuple[tuple[float, ...], torch.dtype, torch.device], torch.Tensor] = OrderedDict()
_lock = Lock()


def on_device(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """A tensor of the host on a device.

    A copy from ordinary memory to a GPU waits for everything that the GPU was asked for before; one from page-locked
    memory does not.
    """
    if device.type != "cuda" or tensor.device.type != "cpu":
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)


def constant(values: Sequence[float], *, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """Numbers as a tensor (n,) on a device, which must not be changed; on a GPU they are copied once and kept.

    Args:
        values: the numbers.
        dtype: type of the tensor.
        device: where it is wanted.
    """
    if device.type != "cuda":
        return torch.tensor(values, dtype=dtype, device=device)
    key = (tuple(values), dtype, device)
    with _lock:
        found = _kept.get(key)
        if found is not None:
            _kept.move_to_end(key)
            return found
    with torch.inference_mode(False):  # one made in inference could not be used in training
        made = on_device(torch.tensor(values, dtype=dtype, device="cpu"), device)
    if type(made) is torch.Tensor:  # not the stand-in of a rehearsal without a GPU
        with _lock:
            _kept[key] = made
            while len(_kept) > _MOST_KEPT:
                _kept.popitem(last=False)
    return made
