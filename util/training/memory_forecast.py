"""How much memory training will take: counted before anything is trained, by a step whose tensors hold no memory."""

from __future__ import annotations

import gc
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from timm.optim import param_groups_weight_decay
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from util.hardware.device import used_memory_bytes, wait_for
from util.hardware.malloc import return_freed_memory
from util.hardware.tensor_bytes import counted
from util.training.engine import Updater, make_adamw

MIB = 1 << 20
LIBRARIES = 32 * MIB
"""What a first step on a CPU brings in besides tensors: code and buffers of libraries; 31 to 41 MiB were seen."""
KEPT_TENSORS, KEPT = 10, 100 * MIB
"""On a CPU: memory that the C library keeps after it was freed and does not use again, as so many times the largest
tensor of a step, and up to so many bytes besides (no more than a step holds for a while): measured, as
`util/hardware/malloc.py` sets it. Gaps that large tensors leave between others are what costs, so their size counts
for more than how much a step holds; docs/performance.md says how far off it is."""
CUDA_CONTEXT = 600 * MIB
"""Assumed, where no card can be asked: what CUDA takes on a card before the first tensor."""
CUDA_SHARE = 0.1
"""Assumed: what torch's allocator on a card loses to rounding and gaps, as a share of what a step holds besides weights
and moments; and buffers of cuBLAS and cuDNN."""


@dataclass(frozen=True)
class Step:
    """What a training step does, apart from where: on a device, or in `util.live_bytes.counted`.

    Attributes:
        make_model: builds the model, on the CPU.
        make_batch: tensors of so many samples, on a device.
        loss: of a model and a batch, with whatever results are kept until the next step.
        make_optimizer: of a model.
        amp_dtype: of autocast, None for full precision.
        clip_grad: largest gradient norm.
    """

    make_model: Callable[[], nn.Module]
    make_batch: Callable[[int, torch.device], Any]
    loss: Callable[[nn.Module, Any], tuple[Tensor, Any]]
    make_optimizer: Callable[[nn.Module], torch.optim.Optimizer]
    amp_dtype: torch.dtype | None
    clip_grad: float | None

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


@dataclass(frozen=True)
class StepMemory:
    """Bytes of the tensors of a step, and of its parts.

    Attributes:
        weights: parameters and buffers.
        moments: the state of the optimiser.
        gradients: of all weights that are trained.
        batch: images, targets and validity of one batch.
        peak: most held at any time of an update.
        largest: the largest tensor made in an update.
    """

    weights: int
    moments: int
    gradients: int
    batch: int
    peak: int
    largest: int = 0

    @property
    def passing(self) -> int:
        """Held at the peak besides weights, moments and the batch: activations, gradients, results."""
        return self.peak - self.weights - self.moments - self.batch


def base_bytes(device: torch.device) -> int:
    """Returns what is in use before there is a model, when what was freed has been handed back."""
    gc.collect()
    return_freed_memory()
    return used_memory_bytes(device)


def count_step(step: Step, *, batch_size: int, accum_iter: int = 1, device_type: str = "cpu") -> StepMemory:
    """Counts the memory of the second update of a model, when the optimiser has its moments.

    Args:
        step: what is done.
        batch_size: samples in one forward pass.
        accum_iter: batches of an update; from the second on, gradients are there while activations are.
        device_type: `cpu` or `cuda`: where it will run, whose rules of autocast are followed.

    Raises:
        ValueError: the batch is empty.
    """
    if batch_size < 1:
        raise ValueError(f"batch_size {batch_size}: expected at least 1")
    cpu = torch.device("cpu")
    with torch.random.fork_rng(devices=[]), counted() as live, _PrecisionOf(device_type):
        model = step.make_model().train()
        weights = live.now
        batch = step.make_batch(batch_size, cpu)
        batch_bytes = live.now - weights
        updater, kept = step.updater(model, "cpu"), None
        for _ in range(2):
            live.forget_peak()
            for _ in range(min(accum_iter, 2)):
                with updater.autocast():
                    loss, kept = step.loss(model, batch)
                updater.backward(loss)
            updater.step(1e-3)
        moments = sum(
            value.nbytes for state in updater.optimizer.state.values() for value in state.values() if value.ndim
        )
        gradients = sum(p.nbytes for p in model.parameters() if p.requires_grad)
        found = StepMemory(weights, moments, gradients, batch_bytes, live.peak, live.largest)
        del loss, kept, updater, model
    gc.collect()
    return found


class _PrecisionOf(TorchFunctionMode):
    """Does in full precision what autocast on a GPU does so, and on a CPU not: layer norm."""

    def __init__(self, device_type: str) -> None:
        super().__init__()
        self._is_gpu = device_type == "cuda"

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if self._is_gpu and func in (F.layer_norm, torch.layer_norm) and torch.is_autocast_enabled("cpu"):
            args = (args[0].float(), *args[1:])
        return func(*args, **(kwargs or {}))


def try_step(
    step: Step,
    model: nn.Module,
    *,
    batch_size: int,
    device: torch.device,
    shared: bool = False,
    accumulates: bool = False,
) -> bool:
    """Does one forward and backward pass of a batch of zeros on a GPU, beside what the optimiser will hold.

    Weights and random numbers are as they were before; gradients are cleared.

    Args:
        step: what is done.
        model: on the device, not yet wrapped.
        batch_size: samples in the pass.
        device: the GPU.
        shared: several processes will share gradients, which takes them once more.
        accumulates: an update has several passes: from the second on, gradients are there.

    Returns:
        False if the GPU's memory was not enough.
    """
    try:
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            for _ in range(2 if accumulates else 1):
                _one_pass(step, model, batch_size, device, shared)
        return True
    except torch.cuda.OutOfMemoryError:
        return False
    finally:  # by now the tensors of a pass that failed are gone with its frames
        model.zero_grad(set_to_none=True)
        gc.collect()
        if device.type == "cuda":
            torch.cuda.empty_cache()


def _one_pass(step: Step, model: nn.Module, batch_size: int, device: torch.device, shared: bool) -> None:
    """Forward and backward; `held` stands for moments and shared gradients."""
    held = [torch.empty_like(p) for p in model.parameters() if p.requires_grad for _ in range(3 if shared else 2)]
    updater = step.updater(model, device.type)
    with updater.autocast():
        loss, results = step.loss(model, step.make_batch(batch_size, device))
    updater.backward(loss)
    wait_for(device)
    del held, results


def pretraining_step(
    network: nn.Module,
    *,
    mask_ratio: float,
    amp_dtype: torch.dtype | None,
    clip_grad: float | None = 1.0,
    weight_decay: float = 0.05,
) -> Step:
    """The step of a masked autoencoder as `main_pretrain` does it.

    Args:
        network: has `config`, the arguments that rebuild it.
        mask_ratio: share of tokens removed.
        amp_dtype: of autocast.
        clip_grad: largest gradient norm.
        weight_decay: of AdamW.
    """
    kind: Any = type(network)
    edges = [network.img_size * s for s in network.scales]
    channels, groups = network.in_chans, 1 if network.spatial_mask else network.num_groups

    def make_batch(size: int, device: torch.device) -> tuple[list[Tensor], list[Tensor], Tensor]:
        images = [torch.zeros(size, channels, edge, edge, device=device) for edge in edges]
        valid = [torch.ones_like(image, dtype=torch.bool) for image in images]
        return images, valid, torch.zeros(size, groups * network.num_patches, device=device)

    def loss(model: nn.Module, batch: tuple[list[Tensor], list[Tensor], Tensor]) -> tuple[Tensor, Any]:
        images, valid, noise = batch
        out = model(
            images[0],
            images[1:],
            mask_ratio=mask_ratio,
            valid=valid[0],
            valid_up=valid[1:],
            noise=noise,
            details=True,
        )
        return 0.6 * out.loss + 0.4 * out.ms_loss, out

    return Step(
        make_model=lambda: kind(**network.config),
        make_batch=make_batch,
        loss=loss,
        make_optimizer=lambda model: make_adamw(param_groups_weight_decay(model, weight_decay), lr=1e-3),
        amp_dtype=amp_dtype,
        clip_grad=clip_grad,
    )


@dataclass(frozen=True)
class Forecast:
    """Peak memory of training: of this process on a CPU, of the card on a GPU.

    Attributes:
        step: bytes of tensors.
        device_type: `cpu` or `cuda`.
        base: taken before there is a model: programs, libraries and layers; on a GPU all that is in use.
        ahead: batches that wait to be trained on.
        buckets: further gradients, where several processes share them.
        parts_of: processes over which weights, moments and gradients are shared out (`--fsdp`), 1 = they are not.
    """

    step: StepMemory
    device_type: str
    base: int
    ahead: int = 0
    buckets: int = 0
    parts_of: int = 1

    @property
    def elsewhere(self) -> int:
        """Bytes of weights, moments and gradients that other processes hold."""
        shared_out = self.step.weights + self.step.moments + self.step.gradients
        return round(shared_out * (1 - 1 / self.parts_of))

    @property
    def tensors(self) -> int:
        """Bytes of tensors at the peak."""
        return self.step.peak + self.ahead + self.buckets - self.elsewhere

    @property
    def overhead(self) -> int:
        """Bytes that the allocator loses, and those of libraries."""
        if self.device_type == "cpu":
            return KEPT_TENSORS * self.step.largest + min(KEPT, self.step.passing) + LIBRARIES
        return round(CUDA_SHARE * self.step.passing)

    @property
    def total(self) -> int:
        """Bytes at the peak."""
        return self.base + self.tensors + self.overhead

    def parts(self) -> dict[str, int]:
        """Bytes of each part of the total."""
        return {
            "before the model": self.base,
            "weights": self.step.weights,
            "moments of AdamW": self.step.moments,
            "batches": self.step.batch + self.ahead,
            "activations and gradients": self.step.passing + self.buckets,
            "allocator and libraries": self.overhead,
            "of these in other processes": -self.elsewhere,
        }

    def describe(self) -> str:
        """The total and its parts, in words."""
        parts = ", ".join(f"{name} {value / MIB:.0f}" for name, value in self.parts().items() if value)
        return f"{self.total / MIB:.0f} MiB ({parts})"


def forecast(
    step: Step,
    batch_size: int,
    *,
    device_type: str,
    base: int,
    accum_iter: int = 1,
    batches_ahead: int = 0,
    processes: int = 1,
    shared_out: bool = False,
) -> Forecast:
    """Predicts the peak memory of training.

    Args:
        step: what an update does.
        batch_size: samples in a forward pass.
        device_type: `cpu` or `cuda`.
        base: bytes taken before there is a model, from `base_bytes`.
        accum_iter: batches of an update.
        batches_ahead: batches read ahead; they lie in the host's memory, and count there alone.
        processes: number of processes that share gradients.
        shared_out: they share out weights, moments and gradients too; the block whose weights are together at a time
            is not counted.

    Raises:
        ValueError: the batch is empty.
    """
    found = count_step(step, batch_size=batch_size, accum_iter=accum_iter, device_type=device_type)
    return Forecast(
        found,
        device_type,
        base,
        ahead=batches_ahead * found.batch if device_type == "cpu" else 0,
        buckets=found.gradients if processes > 1 and not shared_out else 0,
        parts_of=processes if shared_out else 1,
    )
