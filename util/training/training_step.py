"""A training step apart from any data: builds the model and a batch of the right shapes, to count or measure its cost.

The same step is run on the meta device to count FLOPs (`flops.py`), on tensors without memory to count bytes and on the
real device to measure them (`memory.py`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from timm.optim import param_groups_weight_decay
from torch import Tensor, nn

from util.training.engine import Updater, make_adamw


@dataclass(frozen=True)
class TrainingStep:
    """What an update of a model computes.

    Attributes:
        make_model: builds the model on the default device.
        make_batch: tensors of the given number of samples on a device.
        loss: of a model and a batch, with the results that stay alive until the next step.
        make_optimizer: of a model.
        amp_dtype: of autocast, None for full precision.
        clip_grad: largest gradient norm.
    """

    make_model: Callable[[], nn.Module]
    make_batch: Callable[[int, torch.device], Any]
    loss: Callable[[nn.Module, Any], tuple[Tensor, Any]]
    make_optimizer: Callable[[nn.Module], torch.optim.Optimizer]
    amp_dtype: torch.dtype | None = None
    clip_grad: float | None = 1.0

    def updater(self, model: nn.Module, device_type: str) -> Updater:
        """The updates of a model as training makes them."""
        return Updater(
            model,
            self.make_optimizer(model),
            amp_dtype=self.amp_dtype,
            scaler=torch.amp.GradScaler(device_type, enabled=self.amp_dtype == torch.float16),
            device_type=device_type,
            clip_grad=self.clip_grad,
        )


def native_zeros(network: Any, size: int, device: torch.device) -> list[Tensor]:
    """Native pixels of `size` samples as a network takes them, all zero; none if it has no stem."""
    shapes = getattr(network, "native_shapes", ())
    return [torch.zeros(size, channels, edge, edge, device=device) for channels, edge in shapes]


def pretraining_step(
    network: nn.Module,
    *,
    mask_ratio: float = 0.75,
    amp_dtype: torch.dtype | None = None,
    clip_grad: float | None = 1.0,
    weight_decay: float = 0.05,
    **changes: object,
) -> TrainingStep:
    """The step of a masked autoencoder as `main_pretrain` does it.

    Args:
        network: has `config`, the arguments that rebuild it; may be on any device, and is not touched.
        mask_ratio: fraction of tokens removed.
        amp_dtype: of autocast.
        clip_grad: largest gradient norm.
        weight_decay: of AdamW.
        **changes: arguments of the model that replace those of `config`.
    """
    kind: Any = type(network)
    config = {**network.config, **changes}
    edges = [network.img_size * s for s in config["scales"]]
    channels, groups = network.in_chans, 1 if network.spatial_mask else network.encoded_groups

    def make_batch(size: int, device: torch.device) -> tuple[list[Tensor], list[Tensor], Tensor, list[Tensor]]:
        images = [torch.zeros(size, channels, edge, edge, device=device) for edge in edges]
        valid = [torch.ones_like(image, dtype=torch.bool) for image in images]
        noise = torch.zeros(size, groups * network.num_patches, device=device)
        return images, valid, noise, native_zeros(network, size, device)

    def loss(model: nn.Module, batch: tuple[list[Tensor], list[Tensor], Tensor, list[Tensor]]) -> tuple[Tensor, Any]:
        images, valid, noise, native = batch
        out = model(
            images[0],
            images[1:],
            mask_ratio=mask_ratio,
            valid=valid[0],
            valid_up=valid[1:],
            noise=noise,
            details=True,
            native=native,
        )
        return sum(out.losses[2:], 0.6 * out.loss + 0.4 * out.ms_loss), out

    return TrainingStep(
        make_model=lambda: kind(**config),
        make_batch=make_batch,
        loss=loss,
        make_optimizer=lambda model: make_adamw(param_groups_weight_decay(model, weight_decay), lr=1e-3),
        amp_dtype=amp_dtype,
        clip_grad=clip_grad,
    )
