"""What a training step costs, counted before training on the meta device, where nothing is computed."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode


@dataclass(frozen=True)
class StepCost:
    """Cost of one forward and backward pass of a batch and the update after it.

    FLOPs are those of matrix products, convolutions and attention, two for a multiply-add; element-wise work,
    norms and softmax are not counted. Memory is counted by `util.memory`.
    """

    parameters: int
    forward_flops: int
    head_forward_flops: int  # the part of the cross-scale heads
    step_flops: int  # forward and backward

    @property
    def head_share(self) -> float:
        """Share of forward FLOPs spent in the cross-scale heads, 0 to 1."""
        return self.head_forward_flops / self.forward_flops


def step_cost(model: nn.Module, *, batch_size: int, mask_ratio: float = 0.75) -> StepCost:
    """Count the cost of a step of a masked autoencoder.

    Args:
        model: has `config`, the arguments that rebuild it; may be on any device, and is not touched.
        batch_size: samples in one forward pass.
        mask_ratio: share of tokens removed.

    Raises:
        ValueError: the batch is empty.
    """
    if batch_size < 1:
        raise ValueError(f"batch_size {batch_size}: expected at least 1")
    twin, images, valid = _twin_on_meta(model, batch_size=batch_size)
    with FlopCounterMode(display=False) as counter:
        loss = _total_loss(twin, images, valid, mask_ratio)
        flops = counter.get_total_flops()
        loss.backward()
    return StepCost(
        parameters=sum(p.numel() for p in twin.parameters()),
        forward_flops=flops,
        head_forward_flops=flops - _rest_flops(model, mask_ratio) * batch_size,
        step_flops=counter.get_total_flops(),
    )


def head_share(model: nn.Module, *, mask_ratio: float = 0.75) -> float:
    """Share of forward FLOPs spent in the cross-scale heads, 0 to 1; quicker than `step_cost`."""
    flops = _forward_flops(*_twin_on_meta(model, batch_size=1), mask_ratio)
    return 1 - _rest_flops(model, mask_ratio) / flops


def _rest_flops(model: nn.Module, mask_ratio: float) -> int:
    """Forward FLOPs of one sample through the model without cross-scale heads."""
    return _forward_flops(*_twin_on_meta(model, batch_size=1, scales=[1], scored=None), mask_ratio)


def _forward_flops(twin: nn.Module, images: list[Tensor], valid: list[Tensor], mask_ratio: float) -> int:
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        _total_loss(twin, images, valid, mask_ratio)
    return counter.get_total_flops()


def _total_loss(twin: nn.Module, images: list[Tensor], valid: list[Tensor], mask_ratio: float) -> Tensor:
    loss, ms_loss, _, _ = twin(images[0], images[1:], mask_ratio=mask_ratio, valid=valid[0], valid_up=valid[1:])
    return 0.6 * loss + 0.4 * ms_loss


def _twin_on_meta(
    model: nn.Module, *, batch_size: int, **changes: object
) -> tuple[nn.Module, list[Tensor], list[Tensor]]:
    """A model like this one, but for some arguments, and a batch for it: shapes without memory."""
    with torch.device("meta"):
        twin = type(model)(**{**model.config, **changes})
        edges = [twin.img_size * s for s in twin.scales]
        images = [torch.empty(batch_size, twin.in_chans, edge, edge) for edge in edges]
        return twin, images, [torch.empty_like(image, dtype=torch.bool) for image in images]
