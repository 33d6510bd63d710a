"""FLOPs of a training step, counted on the meta device, where nothing is computed.

Counted are matrix products, convolutions and attention, two FLOPs for a multiply-add; element-wise work, norms and
softmax are not.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from util.training.training_step import TrainingStep, pretraining_step

META = torch.device("meta")
T = TypeVar("T")
_COUNTED: dict[Hashable, Any] = {}


@dataclass(frozen=True)
class StepCost:
    """Cost of one forward and backward pass of a batch and the update after it."""

    parameters: int
    forward_flops: int
    head_forward_flops: int  # the part of the heads of finer scales and of textures
    step_flops: int  # forward and backward

    @property
    def head_share(self) -> float:
        """Fraction of forward FLOPs spent in the heads of finer scales and of textures, 0 to 1."""
        return self.head_forward_flops / self.forward_flops


def step_cost(network: nn.Module, *, batch_size: int, mask_ratio: float = 0.75) -> StepCost:
    """Counts the cost of a step of a masked autoencoder.

    Args:
        network: has `config`, the arguments that rebuild it; may be on any device, and is not touched.
        batch_size: samples in one forward pass.
        mask_ratio: fraction of tokens removed.

    Raises:
        ValueError: the batch is empty.
    """
    if batch_size < 1:
        raise ValueError(f"batch_size {batch_size}: expected at least 1; give a positive number")
    return counted_once(lambda: _count_step(network, batch_size, mask_ratio), network, batch_size, mask_ratio)


def _count_step(network: nn.Module, batch_size: int, mask_ratio: float) -> StepCost:
    step = pretraining_step(network, mask_ratio=mask_ratio)
    with META:
        model = step.make_model()
    forward, both = count_flops(lambda: step.loss(model, step.make_batch(batch_size, META))[0])
    return StepCost(
        parameters=sum(p.numel() for p in model.parameters()),
        forward_flops=forward,
        head_forward_flops=forward - _flops_without_heads(network, mask_ratio) * batch_size,
        step_flops=both,
    )


def counted_once(count: Callable[[], T], network: Any, *rest: Hashable) -> T:
    """What `count` returns, or returned before in this process for a network alike: counting takes seconds.

    Args:
        count: counts the operations of a network.
        network: has `config`, the arguments that rebuild it; statistics among them change no operations.
        rest: what else decides the count.
    """
    config = {name: value for name, value in network.config.items() if name != "detail_scales"}
    frozen = tuple(name for name, weights in network.named_parameters() if not weights.requires_grad)
    key = (type(network), repr(config), frozen, rest)
    if key not in _COUNTED:
        _COUNTED[key] = count()
    return _COUNTED[key]


def head_share(network: nn.Module, *, mask_ratio: float = 0.75) -> float:
    """Fraction of forward FLOPs spent in the heads of finer scales and of textures; quicker than `step_cost`."""
    flops = _forward_flops(pretraining_step(network, mask_ratio=mask_ratio))
    return 1 - _flops_without_heads(network, mask_ratio) / flops


def count_flops(loss: Callable[[], Tensor]) -> tuple[int, int]:
    """FLOPs of computing a loss, and of that and its backward pass together.

    Args:
        loss: computes the loss of a model on a batch, both on the meta device.
    """
    with FlopCounterMode(display=False) as counter:
        total = loss()
        forward = int(counter.get_total_flops())
        total.backward()
    return forward, int(counter.get_total_flops())


def _flops_without_heads(network: nn.Module, mask_ratio: float) -> int:
    """Forward FLOPs of one sample through the model without heads of finer scales and of textures."""
    return _forward_flops(pretraining_step(network, mask_ratio=mask_ratio, scales=[1], scored=None, texture=False))


def _forward_flops(step: TrainingStep) -> int:
    """Forward FLOPs of one sample."""
    with META:
        model = step.make_model()
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        step.loss(model, step.make_batch(1, META))
    return int(counter.get_total_flops())
